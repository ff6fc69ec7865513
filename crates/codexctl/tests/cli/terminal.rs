//! What a person at a terminal is asked. The terminal is made by `script` (Debian: bsdutils, always installed).

use serde_json::json;

use crate::home::Home;
use crate::supervisor::{Supervisor, endpoint};

const KEY: &str = "sk-test-0123456789abcdef";

#[test]
fn a_typed_key_is_not_shown() {
    let home = Home::new();
    let _supervisor = Supervisor::with(&home, &[]);
    let ended = home.run_on_hiding_terminal(&["endpoint", "add", "--preset", "zai"], &format!("{KEY}\n"));
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert!(ended.stdout.contains("key for Z.AI (not shown): "), "{ended:#?}");
    assert!(!ended.stdout.contains(KEY), "{ended:#?}");
    assert_eq!(home.credential("zai"), Some((format!("{KEY}\n"), 0o600)));
}

#[test]
fn the_usual_variable_is_offered() {
    let mut home = Home::new();
    home.set("ZAI_API_KEY", KEY);
    let _supervisor = Supervisor::with(&home, &[]);
    let ended = home.run_on_terminal(&["endpoint", "add", "--preset", "zai"], "\n");
    assert!(ended.stdout.contains("key for Z.AI (not shown, empty for the one in $ZAI_API_KEY): "), "{ended:#?}");
    assert_eq!(home.credential("zai"), Some((format!("{KEY}\n"), 0o600)));
}

#[test]
fn a_removal_is_confirmed() {
    for (answer, code, is_removed) in [("\n", 1, false), ("n\n", 1, false), ("y\n", 0, true)] {
        let home = Home::new();
        let supervisor = Supervisor::with(&home, &[endpoint("zai", json!({}))]);
        let ended = home.run_on_terminal(&["endpoint", "rm", "zai"], answer);
        assert!(ended.stdout.contains("remove endpoint `zai`? [y/N] "), "{ended:#?}");
        assert_eq!(
            (ended.code, supervisor.methods().contains(&"endpoint.remove".to_owned())),
            (Some(code), is_removed),
            "{answer:?}"
        );
    }
}

#[test]
fn the_editor_is_opened_again_after_a_mistake() {
    let mut home = Home::new();
    home.write_settings("# mine\n");
    // Writes a mistake first, and mends it the second time.
    let script = "if grep -q mistake \"$1\"; then echo '# good' > \"$1\"; else echo 'mistake = 1' >> \"$1\"; fi";
    let editor = home.program("my-editor", script);
    home.set("EDITOR", editor);
    let ended = home.run_on_terminal(&["endpoint", "edit"], "\n");
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert!(
        ended.stdout.contains("unknown field `mistake`") && ended.stdout.contains("open the editor again? [Y/n] "),
        "{ended:#?}"
    );
    assert_eq!(std::fs::read_to_string(home.paths.settings()).unwrap(), "# good\n");
    let ended = home.run_on_terminal(&["endpoint", "edit"], "n\n");
    assert!(ended.code == Some(1) && ended.stdout.contains("error: nothing was changed"), "{ended:#?}");
    assert_eq!(std::fs::read_to_string(home.paths.settings()).unwrap(), "# good\n");
}
