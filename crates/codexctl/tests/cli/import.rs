use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use codex_control::settings::Settings;
use serde_json::{Value, json};

use crate::home::Home;
use crate::supervisor::Supervisor;

/// A file that must load for ever.
fn compat(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/compat").join(name)
}

/// A home that the original launcher was used in.
fn original() -> Home {
    let home = Home::new();
    fs::create_dir_all(home.paths.codex_home()).unwrap();
    fs::copy(compat("original-endpoints.json"), home.paths.original_endpoints()).unwrap();
    fs::create_dir_all(home.paths.original_cache()).unwrap();
    for name in
        ["google-antigravity-oauth-token.json", "google-antigravity-oauth-token-1.json", "proxy-x.json", "proxy.log"]
    {
        fs::write(home.paths.original_cache().join(name), "made-up").unwrap();
    }
    home
}

fn settings(home: &Home) -> String {
    fs::read_to_string(home.paths.settings()).unwrap_or_default()
}

fn ids(home: &Home) -> Vec<String> {
    let settings = Settings::load(&home.paths.settings()).unwrap();
    settings.endpoint.iter().map(|endpoint| endpoint.id.to_string()).collect()
}

#[test]
fn what_the_original_launcher_has_is_shown_first() {
    let home = original();
    let ended = home.run(&["import", "--dry-run"]);
    let (endpoints, cache) = (home.paths.original_endpoints(), home.paths.original_cache());
    let expected = format!(
        "\
from {}
ENDPOINT       NAME            WHAT  KEY
z-ai-coding    Z.ai Coding     new   taken over
openrouter     OpenRouter      new   taken over
claude         Claude          new   -
claude-2       claude!         new   -
ollama-local   Ollama (local)  new   -
ai-monitoring  AI monitoring   new   taken over
OpenRouter: only the first of its 2 keys is taken over
claude!: it has no key
monitor.ai_endpoint = \"ai-monitoring\"
monitor.ai_model = \"Qwen/Qwen3-32B\"
left out:
  Kiro: its backend `kiro-oauth` is unknown
  {cache}: 2 token files of Google accounts: log in anew instead
  {cache}: 1 file of its proxies; they hold keys in plain text, remove them when you no longer need them
nothing was changed
",
        endpoints.display(),
        cache = cache.display()
    );
    assert_eq!((ended.succeeded(), ended.stderr.as_str()), (expected.as_str(), ""));
    assert!(!home.paths.settings().exists() && !home.paths.credentials_folder().exists());

    let ended = home.run(&["import"]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.starts_with("error: nothing was changed: there is nobody to ask\n"), "{ended:#?}");
    let shown = home.run_on_terminal(&["import"], "n\n");
    assert!(shown.code == Some(1) && shown.stdout.contains("import this? [y/N]"), "{shown:#?}");
    assert!(!home.paths.settings().exists() && !home.paths.credentials_folder().exists());
}

#[test]
fn what_the_original_launcher_has_is_taken_over_once_and_stays_as_it_is() {
    let home = original();
    home.write_settings(
        "# mine\n[[endpoint]]\nid = \"claude\"\npreset = \"anthropic\"\n\n[monitor]\nai_model = \"own\"\n",
    );
    let before = fs::read(home.paths.original_endpoints()).unwrap();
    let supervisor = Supervisor::with(&home, &[]);
    let shown = home.run_on_terminal(&["import"], "n\ny\n");
    assert_eq!(shown.code, Some(0), "{shown:#?}");
    assert!(shown.stdout.contains("replace the 1 that differ? [y/N]") && shown.stdout.contains("it is in force"));
    assert_eq!(supervisor.methods(), ["daemon.reload"]);
    let text = settings(&home);
    assert!(text.contains("# mine\n[[endpoint]]\nid = \"claude\"\n"), "{text}");
    let found = Settings::load(&home.paths.settings()).unwrap();
    let found: Value = serde_json::to_value(&found).unwrap();
    let expected = json!([
        { "id": "claude", "preset": "anthropic" },
        { "id": "z-ai-coding", "preset": "zai-coding", "name": "Z.ai Coding", "default_model": "glm-5.1", "models": ["glm-5.1", "glm-5", "glm-4.7"] },
        { "id": "openrouter", "preset": "openrouter", "default_model": "z-ai/glm-4.7" },
        { "id": "claude-2", "name": "claude!", "protocol": "responses", "base_url": "https://responses.example.com/v1", "models": ["one", "two"] },
        { "id": "ollama-local", "preset": "ollama", "default_model": "qwen3" },
        { "id": "ai-monitoring", "preset": "opencode-zen", "name": "AI monitoring" },
    ]);
    let monitor = &found["monitor"];
    assert_eq!(
        (&monitor["ai_endpoint"], &monitor["ai_model"]),
        (&json!("ai-monitoring"), &json!("own")),
        "the person's own stays"
    );
    assert_eq!((&found["endpoint"], &found["default_endpoint"]), (&expected, &json!("claude")));
    assert_eq!(home.credential("z-ai-coding"), Some(("made-up-key-1\n".to_owned(), 0o600)));
    assert_eq!(home.credential("openrouter"), Some(("made-up-key-2\n".to_owned(), 0o600)));
    assert_eq!(home.credential("ollama-local"), None);
    assert_eq!(home.credential("ai-monitoring"), Some(("made-up-key-4\n".to_owned(), 0o600)));
    assert!(!shown.stdout.contains("made-up") && !shown.stderr.contains("made-up") && !text.contains("made-up"));

    let again = home.run(&["import", "--yes", "--json"]).json();
    assert_eq!(again["imported"], false);
    assert_eq!(settings(&home), text, "the same again changes nothing");
    let replaced = home.run(&["import", "--yes", "--replace", "--json"]).json();
    let fates: Vec<&str> =
        replaced["endpoints"].as_array().unwrap().iter().map(|e| e["fate"].as_str().unwrap()).collect();
    assert_eq!(fates, ["same", "same", "replaced", "same", "same", "same"]);
    assert!(settings(&home).contains("CLAUDE_KEY") && settings(&home).contains("ai_model = \"Qwen/Qwen3-32B\""));
    assert_eq!(fs::read(home.paths.original_endpoints()).unwrap(), before, "what is read is not changed");
}

/// A home with settings, an override of a table and a key.
fn with_profile() -> Home {
    let home = Home::new();
    let ended = home.run(&["import", "--yes", compat("profile-1.json").to_str().unwrap()]);
    assert!(ended.succeeded().ends_with("imported; the supervisor is not running and takes it when it starts\n"));
    home
}

#[test]
fn a_profile_goes_there_and_back() {
    let home = with_profile();
    let profile: Value = serde_json::from_slice(&fs::read(compat("profile-1.json")).unwrap()).unwrap();
    assert_eq!(settings(&home), profile["files"]["supervisor.toml"].as_str().unwrap(), "comments included");
    let models = fs::read_to_string(home.paths.table_override("models")).unwrap();
    assert_eq!(models, profile["files"]["models.toml"].as_str().unwrap());
    assert_eq!(home.credential("zai"), Some(("made-up-key-1\n".to_owned(), 0o600)));

    let file = home.root().join("out.json");
    fs::write(&file, "old").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let name = file.to_str().unwrap();
    home.run(&["export", "--with-secrets", name]).failed(
        1,
        &format!("there is a file `{name}` already"),
        Some("choose another name, or add `--force`"),
    );
    let ended = home.run(&["export", "--with-secrets", "--force", name]);
    let said = format!("wrote {name} (0600): models.toml, supervisor.toml; 1 key\n");
    assert_eq!((ended.succeeded(), ended.stderr.as_str()), (said.as_str(), ""));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read(&file).unwrap(), fs::read(compat("profile-1.json")).unwrap(), "the form is a promise");
    let other = Home::new();
    other.run(&["import", "--yes", name]).succeeded();
    assert_eq!((settings(&other), other.credential("zai")), (settings(&home), home.credential("zai")));
    let again = other.run(&["import", "--yes", name]);
    assert!(again.succeeded().ends_with("there is nothing to change\n"), "{again:#?}");

    let bare = home.root().join("bare.json");
    let ended = home.run(&["export", bare.to_str().unwrap()]);
    assert!(ended.succeeded().ends_with("; no keys; `--with-secrets` adds them\n"), "{ended:#?}");
    assert!(!fs::read_to_string(&bare).unwrap().contains("made-up"));
}

#[test]
fn a_profile_holds_each_table() {
    let home = with_profile();
    let tables = ["faults", "models", "patterns", "prices", "providers", "rules", "signatures"];
    for table in tables {
        fs::write(home.paths.table_override(table), format!("# my {table}\n")).unwrap();
    }
    let file = home.root().join("all.json");
    let name = file.to_str().unwrap();
    home.run(&["export", name]).succeeded();
    let other = Home::new();
    other.run(&["import", "--yes", name]).succeeded();
    for table in tables {
        assert_eq!(fs::read_to_string(other.paths.table_override(table)).unwrap(), format!("# my {table}\n"));
    }
}

#[test]
fn what_is_here_is_kept_unless_it_is_to_be_replaced() {
    let own =
        "# own\n[[endpoint]]\nid = \"box\"\npreset = \"vllm\"\n\n[[endpoint]]\nid = \"extra\"\npreset = \"ollama\"\n";
    let home = Home::new();
    home.write_settings(own);
    fs::write(home.paths.table_override("models"), "# own\n").unwrap();
    let profile = compat("profile-1.json");
    let ended = home.run(&["import", "--yes", profile.to_str().unwrap()]);
    let shown = ended.succeeded();
    for words in [
        "box       box   the one here differs and is kept",
        "models.toml: the one here differs and is kept",
        "the sections for all endpoints differ from those here, which are kept",
    ] {
        assert!(shown.contains(words), "`{words}` is not in\n{shown}");
    }
    assert_eq!(ids(&home), ["box", "extra", "zai"]);
    assert!(settings(&home).contains("preset = \"vllm\"") && settings(&home).contains("default_endpoint = \"zai\""));
    assert_eq!(fs::read_to_string(home.paths.table_override("models")).unwrap(), "# own\n");
    home.run(&["import", "--yes", "--replace", profile.to_str().unwrap()]).succeeded();
    assert_eq!(ids(&home), ["extra", "zai", "box"], "what only is here stays");
    assert!(!settings(&home).contains("vllm"));
    assert_ne!(fs::read_to_string(home.paths.table_override("models")).unwrap(), "# own\n");
}

#[test]
fn a_failure_leaves_everything_as_it_was() {
    let own = "# own\n[[endpoint]]\nid = \"box\"\npreset = \"vllm\"\n";
    let home = Home::new();
    home.write_settings(own);
    fs::remove_file(home.paths.settings()).unwrap();
    // An empty file in a place where nobody, root included, can put another: the settings are written last.
    std::os::unix::fs::symlink("/proc/thread-self/children", home.paths.settings()).unwrap();
    let ended = home.run(&["import", "--yes", compat("profile-1.json").to_str().unwrap()]);
    assert!(ended.code == Some(1) && ended.stderr.contains("supervisor.toml"), "{ended:#?}");
    assert_eq!(home.credential("zai"), None);
    assert!(!home.paths.table_override("models").exists());

    for (content, message) in [
        ("{", "it is not JSON"),
        ("[]", "it is no JSON object"),
        ("{}", "it holds neither"),
        (r#"{"format":"codex-supervisor-profile","version":9}"#, "it is a profile of version 9"),
        (
            r#"{"format":"codex-supervisor-profile","version":1,"files":{"supervisor.toml":"x = 1\n"}}"#,
            "its supervisor.toml:1:1: unknown field `x`",
        ),
    ] {
        let home = Home::new();
        home.write_settings(own);
        let file = home.root().join("file.json");
        fs::write(&file, content).unwrap();
        let ended = home.run(&["import", "--yes", file.to_str().unwrap()]);
        assert!(ended.code == Some(1) && ended.stderr.contains(message), "{ended:#?}");
        assert_eq!(settings(&home), own);
    }
    let home = Home::new();
    let path = home.paths.original_endpoints();
    home.run(&["import", "--yes"]).failed(
        1,
        &format!("there is no file `{}`", path.display()),
        Some("name a profile made by `codexctl export`, or an `endpoints.json` of the original launcher"),
    );
    home.run(&["export", "x.json"]).failed(
        1,
        "there are no settings to export",
        Some("`codexctl endpoint add` makes some"),
    );
}

#[test]
fn secrets_in_headers_stay_here_unless_wanted() {
    let home = Home::new();
    home.write_settings(
        "[[endpoint]]\nid = \"box\"\npreset = \"vllm\"\nheaders = { x-title = \"t\", x-api-key = \"made-up\" }\n",
    );
    let file = home.root().join("out.json");
    let ended = home.run(&["export", file.to_str().unwrap()]);
    ended.succeeded();
    let warning = "warning: what looks like secrets is left out: box.x-api-key\n  hint: `--with-secrets` adds them\n";
    assert_eq!(ended.stderr, warning);
    let written = fs::read_to_string(&file).unwrap();
    assert!(!written.contains("made-up") && written.contains("x-title"), "{written}");
}
