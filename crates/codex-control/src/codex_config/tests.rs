use std::cell::{Cell, RefCell};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::panic::{self, AssertUnwindSafe};
use std::rc::Rc;

use proptest::prelude::*;

use super::redirect::Redirect;
use super::swap::Step;
use super::*;
use crate::EndpointId;
use crate::process;

/// A person's file with everything that is easily lost.
const OWN: &str = "# mine\nmodel = \"gpt-5.6\" # the good one\n\n[tui]   # look\ntheme = 'x'\n\n[projects.\"/p\"]\ntrust_level = \"trusted\"\n";

struct Home {
    folder: tempfile::TempDir,
    paths: Paths,
}

impl Home {
    /// On a file system that costs nothing to sync, where there is one.
    fn new() -> Self {
        let shared = Path::new("/dev/shm");
        let base = if shared.is_dir() { shared.to_owned() } else { std::env::temp_dir() };
        let folder = tempfile::tempdir_in(base).unwrap();
        let home = folder.path().to_str().unwrap();
        let paths =
            Paths::from_environment(&[("HOME", home), ("XDG_RUNTIME_DIR", home)].into_iter().collect()).unwrap();
        fs::create_dir(folder.path().join(".codex")).unwrap();
        Self { folder, paths }
    }

    fn with(text: &str) -> Self {
        let home = Self::new();
        home.write(text);
        home
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join(".codex/config.toml")
    }

    fn write(&self, text: impl AsRef<[u8]>) {
        fs::write(self.file(), text).unwrap();
    }

    fn read(&self) -> String {
        fs::read_to_string(self.file()).unwrap()
    }

    /// Without the wait for other writers, who write at known moments here.
    fn config(&self) -> CodexConfig {
        let mut config = CodexConfig::new(&self.paths);
        config.disk.settle = Duration::ZERO;
        config
    }

    fn hooked(&self, before: impl Fn(Step) + 'static) -> CodexConfig {
        let mut config = self.config();
        config.disk.before = Some(Box::new(before));
        config
    }

    /// What is beside the file, and what we have left in our own folder but for what belongs there.
    #[track_caller]
    fn assert_no_litter(&self) {
        let beside = names(&self.folder.path().join(".codex"));
        assert!(beside.iter().all(|name| name == "config.toml"), "{beside:?}");
        let config = self.config();
        for name in names(&config.folder) {
            assert!(["backups", "journal.json", "lock"].contains(&name.as_str()), "{name}");
        }
        let backups = names(&config.backups_folder());
        assert!(backups.len() <= BACKUPS_YOUNG_MAX && backups.iter().all(|name| !name.contains(".tmp")), "{backups:?}");
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn keys(endpoint: &EndpointId) -> Vec<Key> {
    let address = ([127, 0, 0, 1], 41017).into();
    Redirect { endpoint, name: "N", address, protocol: None, model: Some("m"), codexctl: "/bin/codexctl" }.keys()
}

/// One that stays until it is released.
fn holder(endpoint: &str) -> Holder {
    let endpoint: EndpointId = endpoint.parse().unwrap();
    Holder { id: endpoint.to_string(), keys: keys(&endpoint), endpoint: Some(endpoint), processes: vec![], since_ms: 7 }
}

/// The process of a holder that has ended.
fn ended() -> process::Identity {
    process::Identity { start_ticks: 1, ..process::own_identity().unwrap() }
}

fn with_keys(text: &str, endpoint: &str) -> String {
    text::put(text, &holder(endpoint).keys).unwrap().0
}

#[test]
fn what_is_put_in_is_taken_out_byte_for_byte() {
    for own in [
        OWN,
        "",
        "a = 1",
        "\u{feff}# x\r\na = 1\r\n",
        "model_provider = \"mine\"\n[model_providers.mine]\nname = \"M\"\n",
    ] {
        let home = Home::with(own);
        fs::set_permissions(home.file(), fs::Permissions::from_mode(0o640)).unwrap();
        let held = home.config().hold(holder("zai")).unwrap();
        assert_eq!((held.has_changed, held.n_holders, held.aside.len()), (true, 1, 0));
        assert_eq!(held.in_force, Some(holder("zai")));
        assert_eq!(home.read(), with_keys(own, "zai"));
        assert_eq!(fs::metadata(home.file()).unwrap().mode() & 0o7777, 0o640);
        home.assert_no_litter();
        let released = home.config().release("zai").unwrap();
        assert_eq!(released, Outcome { has_changed: true, ..Outcome::default() });
        assert_eq!(home.read(), own);
        assert_eq!(fs::metadata(home.file()).unwrap().mode() & 0o7777, 0o640);
        home.assert_no_litter();
        assert_eq!(home.config().release("zai").unwrap(), Outcome::default());
    }
}

#[test]
fn an_endpoint_that_moves_is_followed_where_its_address_still_stands() {
    let (former, present) = ("127.0.0.1:41017", "127.0.0.1:4101");
    let moved = |endpoint: &EndpointId| (endpoint.as_str() == "zai").then(|| present.parse().unwrap());
    let home = Home::with(OWN);
    assert!(!home.config().is_misaddressed(moved));
    assert_eq!(home.config().readdress(moved).unwrap(), Outcome::default());
    home.config().hold(holder("zai")).unwrap();
    assert!(!home.config().is_misaddressed(|_| former.parse().ok()));
    assert!(home.config().is_misaddressed(moved));
    home.write(home.read().replace("# mine", "# theirs"));
    let outcome = home.config().readdress(moved).unwrap();
    assert!(outcome.has_changed && outcome.n_holders == 1);
    let theirs = OWN.replace("# mine", "# theirs");
    assert_eq!(home.read(), with_keys(&theirs, "zai").replace(former, present));
    assert!(!home.config().is_misaddressed(moved));
    home.assert_no_litter();
    // One that is not in force now is where the endpoint is when it comes to that.
    home.config().hold(holder("other")).unwrap();
    assert!(home.config().is_misaddressed(|_| former.parse().ok()));
    home.config().readdress(|endpoint| (endpoint.as_str() == "zai").then(|| former.parse().unwrap())).unwrap();
    assert_eq!(home.read(), with_keys(&theirs, "other"));
    home.config().release("other").unwrap();
    assert_eq!(home.read(), with_keys(&theirs, "zai"));
    // An address that the person has written there themselves is theirs.
    let own = home.read().replace(former, "127.0.0.1:9");
    home.write(&own);
    assert!(!home.config().is_misaddressed(moved));
    assert!(!home.config().readdress(moved).unwrap().has_changed);
    assert_eq!(home.read(), own);
    home.config().restore().unwrap();
    assert_eq!(home.read(), theirs);
    home.assert_no_litter();
}

#[test]
fn what_is_regenerated_leads_to_where_endpoints_are_now() {
    let zai: EndpointId = "zai".parse().unwrap();
    let (before, after) = ("127.0.0.1:41017", "127.0.0.1:41018");
    let address = |text: &'static str| move |_: &EndpointId| text.parse().ok();
    let home = Home::with(OWN);
    assert_eq!(home.config().points_at(), None);
    assert_eq!(home.config().regenerate(address(after), || true).unwrap(), Outcome::default());
    home.config().hold(holder("zai")).unwrap();
    assert_eq!(home.config().points_at(), Some((zai.clone(), before.parse().unwrap())));
    let written = home.read();
    let kept = home.config().regenerate(address(before), || true).unwrap();
    assert!(!kept.has_changed);
    assert_eq!(home.read(), written);

    let changed = home.config().regenerate(address(after), || true).unwrap();
    assert!(changed.has_changed);
    assert_eq!(home.read(), written.replace(before, after));
    // One that was written by hand leads nowhere, and goes; it is kept aside.
    home.write(home.read().replace(after, "127.0.0.1:1"));
    let mended = home.config().regenerate(address(after), || true).unwrap();
    assert_eq!((mended.has_changed, mended.aside.len()), (true, 1));
    assert_eq!(home.config().points_at(), Some((zai.clone(), after.parse().unwrap())));
    // What else was edited stays.
    let edited = home.read().replace("request_max_retries = 4", "request_max_retries = 9");
    home.write(&edited);
    home.config().regenerate(address(after), || true).unwrap();
    assert_eq!(home.read(), edited);
    home.config().release("zai").unwrap();
    assert_eq!(home.read(), OWN);
    home.assert_no_litter();
}

#[test]
fn owner_and_links_stay() {
    let home = Home::new();
    let dotfiles = home.folder.path().join("dotfiles");
    fs::create_dir(&dotfiles).unwrap();
    fs::write(dotfiles.join("codex.toml"), OWN).unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(dotfiles.join("codex.toml"), Some(1), Some(2)).unwrap();
    }
    symlink("../dotfiles/codex.toml", home.file()).unwrap();
    let owner = |path: &Path| fs::metadata(path).map(|metadata| (metadata.uid(), metadata.gid())).unwrap();
    let before = owner(&home.file());
    home.config().hold(holder("zai")).unwrap();
    assert_eq!(home.read(), with_keys(OWN, "zai"));
    assert_eq!(owner(&home.file()), before);
    home.config().release("zai").unwrap();
    assert_eq!(fs::read_link(home.file()).unwrap(), Path::new("../dotfiles/codex.toml"));
    assert_eq!(fs::read_to_string(dotfiles.join("codex.toml")).unwrap(), OWN);
    assert_eq!(owner(&home.file()), before);
    assert_eq!(names(&dotfiles), ["codex.toml"]);
}

#[test]
fn one_file_has_one_journal_however_it_is_reached() {
    let home = Home::with(OWN);
    symlink(home.folder.path().join(".codex"), home.folder.path().join("link")).unwrap();
    let text = |path: &str| home.folder.path().join(path).to_str().unwrap().to_owned();
    let (root, link) = (text(""), text("link"));
    let pairs = [("HOME", root.as_str()), ("XDG_RUNTIME_DIR", &root), ("CODEX_HOME", &link)];
    let linked = Paths::from_environment(&pairs.into_iter().collect()).unwrap();
    assert_eq!(CodexConfig::new(&linked).folder, home.config().folder);
    home.config().hold(holder("zai")).unwrap();
    let remembered: Vec<PathBuf> =
        CodexConfig::remembered(&home.paths).iter().map(|config| config.path().to_owned()).collect();
    assert_eq!(remembered, [fs::canonicalize(home.file()).unwrap()]);
}

#[test]
fn an_absent_file_is_absent_again() {
    for has_folder in [true, false] {
        let home = Home::new();
        if !has_folder {
            fs::remove_dir(home.folder.path().join(".codex")).unwrap();
        }
        home.config().hold(holder("zai")).unwrap();
        assert_eq!(home.read(), with_keys("", "zai"));
        home.config().hold(holder("b")).unwrap();
        home.config().release("b").unwrap();
        home.config().release("zai").unwrap();
        assert_eq!(home.folder.path().join(".codex").exists(), has_folder);
        assert!(!home.file().exists());
        // What somebody has written into it is a reason to keep it.
        home.config().hold(holder("zai")).unwrap();
        home.write(home.read() + "[tui]\n");
        home.config().release("zai").unwrap();
        assert_eq!(home.read(), "[tui]\n");
    }
}

#[test]
fn nothing_is_touched_where_nothing_is_wanted() {
    let home = Home::with("broken = ");
    for _ in 0..2 {
        assert_eq!(home.config().resume(|| true).unwrap(), Outcome::default());
        assert_eq!(home.config().restore().unwrap(), Outcome::default());
        assert_eq!(home.config().suspend().unwrap(), Outcome::default());
    }
    assert!(!home.paths.config_transactions_folder().exists());
    assert!(!home.config().needs_recovery());
    assert_eq!(home.read(), "broken = ");
}

#[test]
fn holders_nest_in_any_order() {
    let home = Home::with(OWN);
    let config = home.config();
    config.hold(holder("a")).unwrap();
    config.hold(holder("b")).unwrap();
    assert_eq!(home.read(), with_keys(OWN, "b"));
    config.hold(Holder { id: "own".into(), endpoint: None, keys: vec![], ..holder("c") }).unwrap();
    assert_eq!(home.read(), OWN, "a session on Codex's own login");
    config.release("own").unwrap();
    assert_eq!(home.read(), with_keys(OWN, "b"));
    let outcome = config.release("a").unwrap();
    assert_eq!((outcome.has_changed, outcome.n_holders), (false, 1));
    config.hold(holder("a")).unwrap();
    assert_eq!(home.read(), with_keys(OWN, "a"));
    // A foreign edit in between is the person's own from then on.
    home.write(home.read().replace("[tui]", "[tui]\nnew = 1"));
    config.release("a").unwrap();
    assert_eq!(home.read(), with_keys(&OWN.replace("[tui]", "[tui]\nnew = 1"), "b"));
    config.restore().unwrap();
    assert_eq!(home.read(), OWN.replace("[tui]", "[tui]\nnew = 1"));
    home.assert_no_litter();
}

#[test]
fn an_ended_session_is_let_go() {
    let home = Home::with(OWN);
    let own = process::own_identity().unwrap();
    home.config().hold(Holder { processes: vec![ended(), own], ..holder("a") }).unwrap();
    assert!(!home.config().needs_recovery());
    // Nobody has waited for it yet.
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let process = process::Process::open(child.id()).unwrap();
    assert!(process.ends_within(Duration::from_secs(20)));
    let zombie = process.identity().clone();
    home.config().hold(Holder { processes: vec![ended(), zombie], ..holder("b") }).unwrap();
    assert_eq!(home.read(), with_keys(OWN, "b"));
    assert!(home.config().needs_recovery());
    let outcome = home.config().recover().unwrap();
    assert_eq!((outcome.n_holders, outcome.in_force.unwrap().id), (1, "a".to_owned()));
    assert_eq!(home.read(), with_keys(OWN, "a"));
    assert!(!home.config().needs_recovery());
    child.wait().unwrap();
}

#[test]
fn a_stopped_supervisor_leaves_the_persons_own_file() {
    let home = Home::with(OWN);
    home.config().hold(holder("a")).unwrap();
    assert_eq!(home.config().suspend().unwrap().n_holders, 1);
    assert_eq!(home.read(), OWN);
    home.config().recover().unwrap();
    assert_eq!(home.read(), OWN);
    home.config().resume(|| true).unwrap();
    assert_eq!(home.read(), with_keys(OWN, "a"));
}

/// A launcher that is slow to say what it has started.
#[test]
fn a_session_that_lasts_longer_changes_nothing_else() {
    let home = Home::with(OWN);
    let config = home.config();
    let own = process::own_identity().unwrap();
    let other = process::Process::open(1).unwrap().identity().clone();
    config.hold(Holder { processes: vec![own.clone()], ..holder("a") }).unwrap();
    config.hold(holder("b")).unwrap();
    assert_eq!(config.extend("a", other.clone()).unwrap().in_force.unwrap().id, "b", "the last one decides");
    let processes = |config: &CodexConfig| -> Vec<_> {
        config.holders().unwrap().into_iter().map(|holder| (holder.id, holder.processes)).collect()
    };
    let expected = [("a".to_owned(), vec![own.clone(), other]), ("b".to_owned(), vec![])];
    assert_eq!(processes(&config), expected);
    config.suspend().unwrap();
    config.extend("a", own.clone()).unwrap();
    assert_eq!(home.read(), OWN, "nobody serves it");
    config.restore().unwrap();
    assert_eq!(config.extend("a", own).unwrap(), Outcome::default());
    assert_eq!((home.read(), processes(&config)), (OWN.to_owned(), vec![]), "the person has taken it out");
}

#[test]
fn what_the_person_edits_away_stays_away_until_they_ask_again() {
    let home = Home::with(OWN);
    home.config().hold(holder("a")).unwrap();
    let edited = home.read().replace("\"supervised\"", "\"mine\"");
    home.write(&edited);
    home.config().resume(|| true).unwrap();
    assert_eq!(home.read(), edited);
    home.config().hold(holder("a")).unwrap();
    assert!(home.read().contains("model_provider = \"supervised\""));
    home.config().restore().unwrap();
    assert!(!home.read().contains("supervised\"") && home.read().contains("model_provider = \"mine\""));
}

#[test]
fn a_file_that_cannot_be_read_is_not_touched_and_said_so() {
    let home = Home::with(OWN);
    home.config().hold(holder("a")).unwrap();
    let broken = home.read() + "half = \n";
    home.write(&broken);
    for attempt in [home.config().release("a"), home.config().suspend(), home.config().restore()] {
        let error = attempt.unwrap_err();
        let line = broken.lines().count();
        assert!(crate::report::chain(&error).contains(&format!("stays as it is: line {line}, column 8: ")), "{error}");
        assert_eq!(error.hint().as_deref(), Some("mend that line, then try again"));
        assert_eq!(home.read(), broken);
    }
    assert_eq!(home.config().holders().unwrap().len(), 1, "it is still remembered");
    home.write(broken.replace("half = \n", "half = 1\n"));
    home.config().restore().unwrap();
    assert_eq!(home.read(), format!("{OWN}half = 1\n"));
}

#[test]
fn what_cannot_be_changed_safely_is_refused() {
    #[track_caller]
    fn check(home: &Home, expected: &str, hint: &str) {
        let before = fs::read(home.file()).ok();
        let error = home.config().hold(holder("zai")).unwrap_err();
        let shown = |text: &str| text.replace(home.folder.path().to_str().unwrap(), "~");
        assert_eq!(
            (shown(&crate::report::chain(&error)), shown(&error.hint().unwrap_or_default())),
            (expected.into(), hint.into())
        );
        let error = home.config().preview(&holder("zai").keys).unwrap_err();
        assert_eq!(shown(&crate::report::chain(&error)), expected);
        assert_eq!(fs::read(home.file()).ok(), before);
        assert_eq!(names(&home.folder.path().join(".codex")), ["config.toml"]);
        assert_eq!(home.config().holders().unwrap(), []);
        assert!(!home.config().needs_recovery());
        home.config().restore().unwrap();
    }
    let file = "~/.codex/config.toml";
    let stays = format!("Codex's configuration `{file}` stays as it is: ");
    check(
        &Home::with("a = 1\nb = \"\n"),
        &format!("{stays}line 2, column 6: invalid basic string, expected `\"`"),
        "mend that line, then try again",
    );
    let home = Home::new();
    home.write(b"a = 1\n\xff\n");
    check(&home, &format!("{stays}line 2, column 1: it is not UTF-8 text"), "mend that line, then try again");
    check(
        &Home::with("[model_providers.supervised]\nname = \"Mine\"\n"),
        &format!("{stays}it has a provider `supervised` that is not ours"),
        "give `[model_providers.supervised]` another name, then try again",
    );
    check(
        &Home::with("[[model]]\n"),
        &format!("{stays}`model` is written as array of tables"),
        "give `model` the form of Codex's documentation, then try again",
    );
    let home = Home::with(&"#".repeat(usize::try_from(CONFIG_BYTES_MAX).unwrap() + 1));
    check(
        &home,
        &format!("`{file}` is larger than 1048576 bytes"),
        "look what has made it so large; `codexctl launch cli` needs no change of it",
    );
    let home = Home::with(OWN);
    fs::set_permissions(home.file(), fs::Permissions::from_mode(0o444)).unwrap();
    check(
        &home,
        &format!("`{file}` is read-only"),
        &format!("`chmod u+w {file}` allows the change; `codexctl launch cli` needs none"),
    );
    let home = Home::with(OWN);
    fs::hard_link(home.file(), home.folder.path().join("second")).unwrap();
    let hint = home.config().hold(holder("zai")).unwrap_err().hint().unwrap();
    let hint = hint.replace(home.folder.path().to_str().unwrap(), "~");
    check(&home, &format!("`{file}` is one file with 2 names (hard links), and replacing it would part them"), &hint);
    let home = Home::new();
    fs::create_dir(home.file()).unwrap();
    check(&home, &format!("`{file}` is not a file"), &format!("move `{file}` away"));
    let home = Home::new();
    symlink("../nowhere", home.file()).unwrap();
    check(
        &home,
        &format!("`{file}` is a symbolic link to `../nowhere`, which does not exist"),
        &format!("make `../nowhere`, or remove the link `{file}`"),
    );
    let home = Home::new();
    symlink("config.toml", home.file()).unwrap();
    let loops = format!("Codex's configuration `{file}` cannot be read: {}", io::Error::from(rustix::io::Errno::LOOP));
    check(&home, &loops, "");
    let home = Home::new();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        home.file(),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    check_fifo(&home, &format!("`{file}` is not a file"));
}

/// A pipe without a writer: nothing may wait for one.
#[track_caller]
fn check_fifo(home: &Home, expected: &str) {
    let error = home.config().hold(holder("zai")).unwrap_err();
    assert_eq!(error.to_string().replace(home.folder.path().to_str().unwrap(), "~"), expected);
}

#[test]
fn our_own_placeholder_is_never_taken_for_the_persons() {
    // Copied from another machine, or what we knew is lost.
    let home = Home::with(&with_keys("a = 1\n[tui]\n", "old"));
    assert!(home.config().needs_recovery() || !home.config().folder.exists());
    home.config().hold(holder("new")).unwrap();
    assert_eq!(home.read(), with_keys("a = 1\n[tui]\n", "new"));
    home.config().release("new").unwrap();
    assert_eq!(home.read(), "a = 1\n[tui]\n");
    let home = Home::with(&with_keys("a = 1\n[tui]\n", "old"));
    assert!(home.config().resume(|| true).unwrap().has_changed);
    assert_eq!(home.read(), "a = 1\n[tui]\n");
    // Another program had read the file before we took our keys out, and has written it after.
    let home = Home::with(OWN);
    home.config().hold(holder("a")).unwrap();
    let read = home.read();
    home.config().release("a").unwrap();
    home.write(read + "[new]\n");
    assert!(home.config().needs_recovery());
    home.config().recover().unwrap();
    assert_eq!(home.read(), format!("{OWN}[new]\n"), "their model is back, too");
}

#[test]
fn a_damaged_journal_or_backup_costs_no_foreign_byte() {
    let home = Home::with("a = 1\n[tui]\n");
    home.config().hold(holder("a")).unwrap();
    let journal = home.config().folder.join("journal.json");
    let good = fs::read(&journal).unwrap();
    for at in (0..good.len()).step_by(7) {
        let mut bad = good.clone();
        bad[at] ^= 0x08;
        fs::write(&journal, &bad).unwrap();
        home.write(with_keys("a = 1\n[tui]\n", "a"));
        let _ = home.config().restore();
        assert!(home.read().starts_with("a = 1\n") && home.read().ends_with("[tui]\n"), "{at}: {}", home.read());
    }
    fs::write(&journal, &good[..good.len() / 2]).unwrap();
    home.write(with_keys("a = 1\n[tui]\n", "a"));
    home.config().restore().unwrap();
    assert_eq!(home.read(), "a = 1\n[tui]\n");
    // A backup that is no longer what it was is not put back: the keys are taken out instead.
    let home = Home::with(OWN);
    home.config().hold(holder("a")).unwrap();
    for name in names(&home.config().backups_folder()) {
        fs::write(home.config().backups_folder().join(name), "rubbish").unwrap();
    }
    home.config().release("a").unwrap();
    assert_eq!(home.read(), OWN);
}

#[test]
fn ten_backups_are_kept_and_what_was_edited_in_our_place_is_among_them() {
    let home = Home::with(OWN);
    for n in 0..15 {
        home.write(format!("{OWN}n = {n}\n"));
        home.config().hold(holder("a")).unwrap();
        home.config().release("a").unwrap();
    }
    let backups = home.config().backups_folder();
    assert_eq!(names(&backups).len(), 15, "they are all of this hour");
    for (n, name) in names(&backups).iter().enumerate() {
        fs::rename(backups.join(name), backups.join(format!("{n}-{}", name.split_once('-').unwrap().1))).unwrap();
    }
    home.config().hold(holder("a")).unwrap();
    assert_eq!(names(&backups).len(), BACKUPS_MAX);
    let edited = home.read().replace("\"N (supervised)\"", "\"Mine\"");
    home.write(&edited);
    let outcome = home.config().release("a").unwrap();
    assert_eq!(home.read(), format!("{OWN}n = 14\n"));
    let [aside] = &outcome.aside[..] else { panic!("{outcome:?}") };
    assert_eq!(fs::read_to_string(aside).unwrap(), edited);
}

/// Ends what we do as a kill would: nothing of ours runs after this.
fn killed() -> ! {
    panic::resume_unwind(Box::new("killed"))
}

fn count_down(left: &Cell<usize>) {
    match left.get() {
        0 => killed(),
        n => left.set(n - 1),
    }
}

/// Does `act` once for each step it has, ending it there as a kill would, and looks what the next one makes of it.
fn killed_at_each_step(prepare: impl Fn(&Home), act: impl Fn(&CodexConfig), check: impl Fn(&Home, usize)) -> usize {
    for n in 0.. {
        let home = Home::new();
        prepare(&home);
        let left = Cell::new(n);
        let config = home.hooked(move |_| {
            count_down(&left);
        });
        let was_killed = panic::catch_unwind(AssertUnwindSafe(|| act(&config))).is_err();
        check(&home, n);
        home.assert_no_litter();
        if !was_killed {
            return n;
        }
    }
    0
}

#[test]
fn a_kill_at_any_step_leaves_the_old_or_the_new_file() {
    let both = |home: &Home, n: usize| {
        let ours = with_keys(OWN, "a");
        assert!(home.read() == OWN || home.read() == ours, "killed at {n}: {}", home.read());
        let outcome = home.config().recover().unwrap();
        let expected = if outcome.n_holders == 1 { ours } else { OWN.to_owned() };
        assert_eq!(home.read(), expected, "killed at {n}, then recovered");
        home.config().restore().unwrap();
        assert_eq!(home.read(), OWN);
    };
    let n_put = killed_at_each_step(|home| home.write(OWN), |config| drop(config.hold(holder("a"))), both);
    let held = |home: &Home| {
        home.write(OWN);
        home.config().hold(holder("a")).unwrap();
    };
    let n_taken = killed_at_each_step(held, |config| drop(config.release("a")), both);
    // The same where there was no file, and nothing is to be left of it.
    let none = |home: &Home, n: usize| {
        home.config().recover().unwrap();
        home.config().restore().unwrap();
        assert!(!home.file().exists(), "killed at {n}");
    };
    let n_made = killed_at_each_step(|_| {}, |config| drop(config.hold(holder("a"))), none);
    let gone = |home: &Home| drop(home.config().hold(holder("a")).unwrap());
    let n_gone = killed_at_each_step(gone, |config| drop(config.release("a")), none);
    // A recovery that is itself killed, at any step of the first recovery of a change killed before its end.
    for cut in 0..n_put {
        let cut_off = |home: &Home| {
            home.write(OWN);
            let left = Cell::new(cut);
            let config = home.hooked(move |_| {
                count_down(&left);
            });
            let _ = panic::catch_unwind(AssertUnwindSafe(|| drop(config.hold(holder("a")))));
        };
        killed_at_each_step(cut_off, |config| drop(config.recover()), both);
    }
    assert!(n_put > 8 && n_taken > 6 && n_made > 8 && n_gone > 6, "{n_put} {n_taken} {n_made} {n_gone}");
}

/// Another program that changes the file: reads it, and writes it later with one more key.
#[derive(Default)]
struct Foreign {
    read: Option<String>,
    open: Option<(File, String)>,
    n_written: usize,
}

impl Foreign {
    fn step(&mut self, file: &Path, in_place: bool) {
        if let Some((mut open, text)) = self.open.take() {
            io::Write::write_all(&mut open, text.as_bytes()).unwrap();
            self.n_written += 1;
        } else if let Some(read) = self.read.take() {
            let text = format!("foreign_{} = true\n{read}", self.n_written);
            if in_place {
                self.open = Some((File::create(file).unwrap(), text));
            } else {
                let temporary = file.with_extension("foreign");
                fs::write(&temporary, text).unwrap();
                fs::rename(&temporary, file).unwrap();
                self.n_written += 1;
            }
        } else {
            self.read = Some(fs::read_to_string(file).unwrap_or_default());
        }
    }

    /// Ends what it is writing into an open file: nobody takes a person's time for that.
    fn settle(&mut self, file: &Path) {
        if self.open.is_some() {
            self.step(file, true);
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Hold(&'static str),
    Release(&'static str),
    Suspend,
    Recover,
}

proptest! {
    #[test]
    fn nothing_is_lost_whoever_writes_between_the_steps(
        own in prop_oneof![Just(Some(OWN)), Just(Some("a = 1")), Just(None)],
        acts in prop::collection::vec(prop_oneof![
            Just(Act::Hold("a")), Just(Act::Hold("b")), Just(Act::Release("a")), Just(Act::Release("b")),
            Just(Act::Suspend), Just(Act::Recover),
        ], 1..4),
        // What happens before each step: usually nothing, a step of the other program, or we are killed.
        schedule in prop::collection::vec(prop_oneof![4 => Just(0u8), 2 => Just(1), 1 => Just(2)], 0..60),
        // A step at which we are killed, and whether the other program may read while ours is there for a moment.
        kill_at in prop_oneof![Just(None), (0..60usize).prop_map(Some)],
        reads_anything in any::<bool>(),
    ) {
        let home = Home::new();
        if let Some(own) = own {
            home.write(own);
        }
        let foreign = Rc::new(RefCell::new(Foreign::default()));
        let (n, is_exposed) = (Cell::new(0), Cell::new(false));
        let (file, between) = (home.file(), foreign.clone());
        let config = home.hooked(move |step| {
            let mut foreign = between.borrow_mut();
            match step {
                Step::Compare | Step::GiveBack => is_exposed.set(true),
                Step::Keep => {}
                _ => is_exposed.set(false),
            }
            let may_act = !is_exposed.get() || reads_anything || foreign.open.is_some() || foreign.read.is_some();
            match schedule.get(n.get()) {
                Some(1) if may_act => foreign.step(&file, false),
                Some(2) if may_act => foreign.step(&file, true),
                _ => {}
            }
            n.set(n.get() + 1);
            if kill_at == Some(n.get() - 1) {
                drop(foreign);
                killed();
            }
            if matches!(step, Step::Look | Step::Settle) {
                foreign.settle(&file);
            }
        });
        for act in acts {
            let done = panic::catch_unwind(AssertUnwindSafe(|| match act {
                Act::Hold(id) => config.hold(holder(id)).map(drop),
                Act::Release(id) => config.release(id).map(drop),
                Act::Suspend => config.suspend().map(drop),
                Act::Recover => config.resume(|| true).map(drop),
            }));
            if let Ok(Err(error)) = done {
                prop_assert!(matches!(error, ConfigError::Contended { .. }), "{error}");
            }
        }
        // The other program ends what it has begun; then everybody lets go, and somebody looks.
        let mut foreign = foreign.borrow_mut();
        foreign.settle(&home.file());
        if foreign.read.is_some() {
            foreign.step(&home.file(), false);
        }
        home.config().restore().unwrap();
        prop_assert!(!home.config().needs_recovery());
        home.assert_no_litter();
        let left = fs::read_to_string(home.file()).unwrap_or_default();
        let kept: Vec<String> = names(&home.config().backups_folder())
            .iter()
            .map(|name| fs::read_to_string(home.config().backups_folder().join(name)).unwrap())
            .collect();
        for n in 0..foreign.n_written {
            let line = format!("foreign_{n} = true\n");
            let is_there = left.contains(&line);
            // What somebody overwrites who has read what was there for a moment, or since a kill, is kept aside.
            let may_be_aside = (reads_anything || kill_at.is_some()) && kept.iter().any(|text| text.contains(&line));
            prop_assert!(is_there || may_be_aside, "{line} is lost: {left}\nkept: {kept:?}");
        }
        let rest: Vec<&str> = left.lines().filter(|line| !line.starts_with("foreign_")).collect();
        let rest = rest.join("\n");
        prop_assert_eq!(rest.trim_end(), own.unwrap_or_default().trim_end(), "{}", &left);
    }
}
