use std::fs;
use std::path::PathBuf;

use serde_json::json;

use crate::home::Home;
use crate::supervisor::{Supervisor, daemon};

const SETTINGS: &str = "# mine\n[[endpoint]]\nid = \"zai\"\npreset = \"zai\"\n";

/// A home whose editor does `script` to the file `$1`.
fn home_with_editor(script: &str) -> Home {
    let mut home = Home::new();
    let editor = home.program("my-editor", script);
    home.set("EDITOR", format!("{} --wait", editor.display()));
    home.write_settings(SETTINGS);
    home
}

fn settings(home: &Home) -> String {
    fs::read_to_string(home.paths.settings()).unwrap()
}

fn drafts(home: &Home) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(home.paths.state_folder()) else {
        return Vec::new();
    };
    entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect()
}

#[test]
fn valid_settings_take_effect() {
    let home = home_with_editor("echo 'default_model = \"glm-5\"' >> \"$2\"");
    let supervisor = Supervisor::with(&home, &[]);
    assert_eq!(home.run(&["endpoint", "edit", "zai"]).succeeded(), "the new settings are in force\n");
    assert_eq!(settings(&home), format!("{SETTINGS}default_model = \"glm-5\"\n"));
    assert_eq!(supervisor.methods(), ["daemon.reload"]);
    assert_eq!(drafts(&home), Vec::<PathBuf>::new());
}

#[test]
fn without_a_supervisor_the_file_is_saved_and_none_is_started() {
    let home = home_with_editor("sed -i 's/\"zai\"$/\"deepseek\"/; s/preset = .*/preset = \"deepsek\"/' \"$2\"");
    let ended = home.run(&["endpoint", "edit", "--json"]);
    assert_eq!(ended.json(), json!({ "changed": true, "path": home.paths.settings(), "reloaded": false }));
    assert!(
        ended.stderr.contains("names the preset `deepsek`") && ended.stderr.contains("did you mean `deepseek`?"),
        "{ended:#?}"
    );
}

#[test]
fn a_new_file_begins_with_every_setting_explained() {
    let home = home_with_editor("cp \"$2\" \"$HOME/seen\"");
    fs::remove_file(home.paths.settings()).unwrap();
    assert_eq!(home.run(&["endpoint", "edit"]).succeeded(), "nothing was changed\n");
    let seen = fs::read_to_string(home.root().join("home/seen")).unwrap();
    assert!(seen.contains("health_interval_s = 5 "), "{seen}");
    assert!(!home.paths.settings().exists());
    assert_eq!(drafts(&home), Vec::<PathBuf>::new());
}

#[test]
fn invalid_settings_change_nothing_and_are_kept_aside() {
    let home = home_with_editor("echo 'defualt_model = 1' >> \"$2\"");
    let supervisor = Supervisor::with(&home, &[]);
    let ended = home.run(&["endpoint", "edit"]);
    let [draft] = &drafts(&home)[..] else { panic!("{:?}", drafts(&home)) };
    let message = format!(
        "these settings are not valid, and nothing was changed: {}:5:1: unknown field `defualt_model`",
        home.paths.settings().display()
    );
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.starts_with(&format!("error: {message}")), "{ended:#?}");
    let hint = format!("  hint: did you mean `default_model`?; your version is in `{}`\n", draft.display());
    assert!(ended.stderr.ends_with(&hint), "{ended:#?}");
    assert_eq!(settings(&home), SETTINGS);
    assert!(fs::read_to_string(draft).unwrap().ends_with("defualt_model = 1\n"));
    assert_eq!(supervisor.methods(), Vec::<String>::new());
}

#[test]
fn a_change_by_somebody_else_is_not_overwritten() {
    let home = home_with_editor(
        "echo '# draft' >> \"$2\"; echo '# other' >> \"$HOME/.config/codex-supervisor/supervisor.toml\"",
    );
    let ended = home.run(&["endpoint", "edit"]);
    let [draft] = &drafts(&home)[..] else { panic!("{:?}", drafts(&home)) };
    let message = format!("`{}` was changed by somebody else meanwhile", home.paths.settings().display());
    ended.failed(1, &message, Some(&format!("your version is in `{}`", draft.display())));
    assert_eq!(settings(&home), format!("{SETTINGS}# other\n"));
}

#[test]
fn an_editor_that_fails_changes_nothing() {
    let home = home_with_editor("echo broken > \"$2\"; exit 3");
    let ended = home.run(&["endpoint", "edit"]);
    assert!(
        ended.code == Some(1) && ended.stderr.contains("ended with exit status: 3; nothing was changed"),
        "{ended:#?}"
    );
    assert_eq!(settings(&home), SETTINGS);
}

#[test]
fn the_editor_opens_at_the_endpoint_if_it_can() {
    let mut home = Home::new();
    home.write_settings(SETTINGS);
    home.program("vi", "echo \"$@\" > \"$HOME/argv\"");
    home.set("VISUAL", "vi");
    home.run(&["endpoint", "edit", "zai"]).succeeded();
    assert!(fs::read_to_string(home.root().join("home/argv")).unwrap().starts_with("+3 /"));
    home.run(&["endpoint", "edit", "zia"]).failed(
        1,
        "there is no endpoint `zia` in the settings",
        Some("did you mean `zai`?"),
    );
}

#[test]
fn settings_the_supervisor_does_not_take_are_told() {
    let home = home_with_editor("echo '# note' >> \"$2\"");
    let problem = json!({ "settings": { "problem": { "message": "that does not work", "hint": "do this" } } });
    let _supervisor = Supervisor::answering(&home, &[], move |_, _| Some(Ok(daemon(&[], problem.clone()))));
    home.run(&["endpoint", "edit"]).failed(1, "that does not work", Some("do this"));
}
