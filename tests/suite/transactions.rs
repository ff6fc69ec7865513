//! Codex's `config.toml` survives whatever is killed and whatever fails while it is changed.
//!
//! The program `change-config` does one change in one process. It is run again and again under strace, which kills it
//! at the n-th call of one name, or fails that call, for every name and every n. After each the file must be the old or
//! the new one, byte for byte, with its link, mode and owner; and after the next process of ours has looked, nothing may
//! be left beside it.
//!
//! In the suite a spread of the calls is taken; `scripts/transactions.sh` takes all, and every ninth of those of a
//! recovery from each kind of state that a kill has left.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use codex_control::codex_config::{BACKUPS_YOUNG_MAX, CodexConfig, Outcome};
use codex_control::environment::Environment;
use codex_control::paths::Paths;
use e2e::home::binary;
use serde_json::Value;
use tempfile::TempDir;

/// A person's file with what is easily lost.
const OWN: &str = "# mine\r\nmodel = \"gpt-5.6\" # the good one\r\n\r\n[tui]   # look\r\ntheme = 'x'\r\n";
/// Mode of it: not what a new file gets.
const MODE: u32 = 0o640;
/// Calls that are not failed: no disk has to do with them.
const NOT_FAILED: [&str; 14] = [
    "execve",
    "brk",
    "mmap",
    "munmap",
    "mprotect",
    "arch_prctl",
    "prlimit64",
    "rseq",
    "set_robust_list",
    "set_tid_address",
    "rt_sigaction",
    "rt_sigprocmask",
    "sigaltstack",
    "exit_group",
];
/// What a disk says when it is full, broken, or mounted anew.
const ERRORS: [&str; 3] = ["ENOSPC", "EIO", "EROFS"];
/// How long ago every file was written that is put back: one that was written a moment ago is looked at again and again
/// until it is left alone, and how often that is, is a matter of time.
const LONG_AGO: Duration = Duration::from_hours(1);

/// Every how manyth is taken.
fn stride(in_the_suite: usize, in_the_script: usize) -> usize {
    if std::env::var_os("E2E_EVERY_CALL").is_some() { in_the_script } else { in_the_suite }
}

/// A home with a `config.toml` in it.
struct Scene {
    folder: TempDir,
    has_file: bool,
}

/// A file, a folder or a link, for putting everything back as it was.
type Snapshot = BTreeMap<PathBuf, Entry>;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Entry {
    Folder,
    Link(PathBuf),
    File { bytes: Vec<u8>, mode: u32, modified: SystemTime },
}

impl Scene {
    /// With the file a link into a folder of dotfiles, or without one.
    fn new(has_file: bool) -> Self {
        // On a file system that costs nothing to sync, where there is one.
        let shared = Path::new("/dev/shm");
        let base = if shared.is_dir() { shared.to_owned() } else { std::env::temp_dir() };
        let folder = tempfile::tempdir_in(base).expect("a temporary folder is to be had");
        let scene = Self { folder, has_file };
        fs::create_dir_all(scene.path("home/.codex")).expect("the folder is ours");
        if has_file {
            fs::create_dir(scene.path("dotfiles")).expect("the folder is ours");
            fs::write(scene.path("dotfiles/codex.toml"), OWN).expect("the folder is ours");
            fs::set_permissions(scene.path("dotfiles/codex.toml"), fs::Permissions::from_mode(MODE))
                .expect("it is ours");
            symlink("../../dotfiles/codex.toml", scene.file()).expect("the folder is ours");
        }
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self) -> PathBuf {
        self.path("home/.codex/config.toml")
    }

    fn environment(&self) -> [(&'static str, PathBuf); 2] {
        [("HOME", self.path("home")), ("XDG_RUNTIME_DIR", self.path("run"))]
    }

    fn config(&self) -> CodexConfig {
        let environment: Environment = self.environment().into_iter().collect();
        CodexConfig::new(&Paths::from_environment(&environment).expect("the paths are short enough"))
    }

    fn content(&self) -> Option<String> {
        fs::read(self.file()).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The content before anything of ours.
    fn own(&self) -> Option<String> {
        self.has_file.then(|| OWN.to_owned())
    }

    fn change(&self, action: &str) -> Command {
        let mut command = Command::new(binary("change-config"));
        command.arg(action).env_clear().envs(self.environment()).stdin(Stdio::null());
        command
    }

    /// The same under strace.
    fn traced(&self, arguments: &[&str], action: &str) -> Command {
        let mut command = Command::new("strace");
        command
            .args(["-f", "-qq", "-o"])
            .arg(self.path("trace"))
            .args(arguments)
            .arg(binary("change-config"))
            .arg(action);
        command.env_clear().envs(self.environment()).stdin(Stdio::null());
        command
    }

    fn run(mut command: Command) -> Output {
        let output = command.output();
        output.unwrap_or_else(|error| {
            panic!("`{}` cannot be run ({error}): apt-get install strace", command.get_program().display())
        })
    }

    /// The system calls that the action makes from the first one on that concerns this home: the name of each, and the
    /// how manyth of that name it is.
    fn calls(&self, action: &str) -> Vec<(String, usize)> {
        let output = Self::run(self.traced(&[], action));
        assert!(output.status.success(), "{action}: {}", String::from_utf8_lossy(&output.stderr));
        let trace = fs::read_to_string(self.path("trace")).expect("strace writes a trace");
        let home = self.folder.path().to_str().expect("temporary folders have plain names");
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let mut calls = Vec::new();
        let mut has_begun = false;
        for line in trace.lines() {
            // `4711 openat(AT_FDCWD, …`
            let call = line.split_once(' ').map_or("", |(_, call)| call.trim_start());
            let Some((name, _)) = call.split_once('(').filter(|(name, _)| !name.contains([' ', '<', '+'])) else {
                continue;
            };
            let count = counts.entry(name).or_default();
            *count += 1;
            has_begun |= name != "execve" && call.contains(home);
            if has_begun && name != "exit_group" {
                calls.push((name.to_owned(), *count));
            }
        }
        calls
    }

    fn snapshot(&self) -> Snapshot {
        let mut found = Snapshot::new();
        let mut folders = vec![self.path("home"), self.path("dotfiles")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let path = entry.path();
                let metadata = fs::symlink_metadata(&path).expect("it was listed");
                let entry = if metadata.is_symlink() {
                    Entry::Link(fs::read_link(&path).expect("it is a link"))
                } else if metadata.is_dir() {
                    folders.push(path.clone());
                    Entry::Folder
                } else {
                    Entry::File {
                        bytes: fs::read(&path).expect("it is a file"),
                        mode: metadata.permissions().mode() & 0o7777,
                        modified: metadata.modified().expect("a file has a time"),
                    }
                };
                found.insert(path, entry);
            }
        }
        found
    }

    /// Puts everything back, each file as long before the others as it was, and all of them [`LONG_AGO`].
    fn restore(&self, snapshot: &Snapshot) {
        for name in ["home", "dotfiles", "run"] {
            let _ = fs::remove_dir_all(self.path(name)); // not all of them are there
            fs::create_dir(self.path(name)).expect("the folder is ours");
        }
        for (path, entry) in snapshot {
            let made = match entry {
                Entry::Folder => fs::create_dir(path),
                Entry::Link(to) => symlink(to, path),
                Entry::File { bytes, mode, modified } => File::create(path).and_then(|mut file| {
                    file.write_all(bytes)?;
                    file.set_permissions(fs::Permissions::from_mode(*mode))?;
                    file.set_modified(*modified - LONG_AGO)
                }),
            };
            made.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }

    /// What is wrong with the file, if it must be one of `allowed`.
    fn wrong(&self, allowed: &[Option<String>]) -> Option<String> {
        let content = self.content();
        if !allowed.contains(&content) {
            return Some(format!("the file is {content:?}"));
        }
        if self.has_file {
            let link = fs::read_link(self.file());
            if !link.as_ref().is_ok_and(|to| to == Path::new("../../dotfiles/codex.toml")) {
                return Some(format!("the link is {link:?}"));
            }
            let mode = fs::metadata(self.file()).map(|metadata| metadata.permissions().mode() & 0o7777);
            if !mode.as_ref().is_ok_and(|mode| *mode == MODE) {
                return Some(format!("the mode is {mode:?}"));
            }
        }
        None
    }

    /// What is left that should not be there, once the next process of ours has looked.
    fn litter(&self) -> Option<String> {
        let mut allowed: BTreeSet<PathBuf> =
            ["home/.codex", "home/.codex/config.toml", "dotfiles/codex.toml", "home/.local", "home/.local/state"]
                .iter()
                .map(|name| self.path(name))
                .collect();
        let state = self.path("home/.local/state/codex-supervisor");
        let backups = self.config().backups_folder();
        let ledger = backups.parent().expect("it lies in a folder").to_owned();
        allowed.extend([state.clone(), state.join("codex-config"), ledger.clone(), backups.clone()]);
        allowed.extend([ledger.join("journal.json"), ledger.join("lock")]);
        let is_backup =
            |path: &Path| path.parent() == Some(&backups) && path.extension().is_some_and(|end| end == "toml");
        let left: Vec<PathBuf> =
            self.snapshot().into_keys().filter(|path| !allowed.contains(path) && !is_backup(path)).collect();
        let n_backups = fs::read_dir(&backups).into_iter().flatten().count();
        (!left.is_empty() || n_backups > BACKUPS_YOUNG_MAX)
            .then(|| format!("{n_backups} backups, and left is {left:?}"))
    }

    /// What is wrong after the next process of ours has looked, and after everything was taken back.
    fn wrong_after_recovery(&self, allowed: &[Option<String>]) -> Option<String> {
        let recovered = self.config().resume(|| true);
        if let Err(error) = &recovered {
            return Some(format!("the recovery says {error}"));
        }
        if let Some(wrong) = self.wrong(allowed).or_else(|| self.litter()) {
            return Some(format!("after the recovery {wrong}"));
        }
        if !recovered.is_ok_and(|recovered| is_consistent(&recovered, self.content().as_ref() != self.own().as_ref())) {
            return Some("the recovery says something else than is true".to_owned());
        }
        if let Err(error) = self.config().restore() {
            return Some(format!("taking it back says {error}"));
        }
        self.wrong(&[self.own()]).or_else(|| self.litter()).map(|wrong| format!("after it was taken back {wrong}"))
    }
}

fn is_consistent(outcome: &Outcome, is_ours: bool) -> bool {
    outcome.in_force.is_some() == is_ours
}

/// The scenes: what is there, how it was prepared, what is done.
fn scenes() -> Vec<(Scene, Vec<&'static str>, &'static str)> {
    [true, false]
        .into_iter()
        .flat_map(|has_file| {
            [
                (vec![], "hold"),
                (vec!["hold"], "release"),
                (vec!["hold"], "suspend"),
                (vec!["hold", "suspend"], "recover"),
            ]
            .map(|(before, action)| (Scene::new(has_file), before, action))
        })
        .collect()
}

/// The scene prepared, and the file as it may be after the action.
fn prepared(scene: &Scene, before: &[&str], action: &str) -> (Snapshot, Vec<Option<String>>) {
    for step in before {
        assert!(Scene::run(scene.change(step)).status.success());
    }
    let snapshot = scene.snapshot();
    let old = scene.content();
    assert!(Scene::run(scene.change(action)).status.success());
    let allowed = vec![old, scene.content()];
    assert_ne!(allowed[0], allowed[1], "{action} changes the file");
    scene.restore(&snapshot);
    (snapshot, allowed)
}

#[test]
fn a_kill_at_any_call_leaves_the_old_or_the_new_file() {
    let (mut n_kills, mut n_states, mut n_double, mut n_missed) = (0, 0, 0, 0);
    for (scene, before, action) in scenes() {
        let (snapshot, allowed) = prepared(&scene, &before, action);
        let calls = scene.calls(action);
        let mut states: BTreeMap<String, Snapshot> = BTreeMap::new();
        for (name, n) in calls.iter().step_by(stride(9, 1)) {
            scene.restore(&snapshot);
            n_missed += usize::from(!is_killed_at(&scene, action, name, *n));
            n_kills += 1;
            let wrong = scene.wrong(&allowed);
            states.insert(kind(&scene.snapshot()), scene.snapshot());
            let wrong = wrong.or_else(|| scene.wrong_after_recovery(&allowed));
            assert_eq!(wrong, None, "{action} killed at {name} {n}");
        }
        // Everything that a kill can leave is left to a recovery that is killed, too.
        for state in states.values().step_by(stride(4, 1)) {
            n_states += 1;
            scene.restore(state);
            let calls = scene.calls("recover");
            for (name, n) in calls.iter().step_by(stride(31, 9)) {
                scene.restore(state);
                n_missed += usize::from(!is_killed_at(&scene, "recover", name, *n));
                n_double += 1;
                let wrong = scene.wrong(&allowed).or_else(|| scene.wrong_after_recovery(&allowed));
                assert_eq!(wrong, None, "{action} killed, then its recovery at {name} {n}");
            }
        }
    }
    println!("{n_kills} kills, {n_double} of recoveries from {n_states} states; {n_missed} came too late");
    assert!(n_missed * 10 < n_kills + n_double);
}

/// A state without what is random in it, so that two of a kind are one: numbers, which are names and times.
fn kind(state: &Snapshot) -> String {
    /// Digits of the shortest of them.
    const DIGITS_MIN: usize = 8;
    let mut state = state.clone();
    for entry in state.values_mut() {
        if let Entry::File { modified, .. } = entry {
            *modified = SystemTime::UNIX_EPOCH;
        }
    }
    let text = format!("{state:?}");
    let mut kind = String::new();
    for run in text.split_inclusive(|c: char| !c.is_ascii_hexdigit()) {
        let n_digits = run.chars().filter(char::is_ascii_hexdigit).count();
        kind += if n_digits >= DIGITS_MIN { "#" } else { run };
    }
    kind
}

/// Runs the action and kills it at the `n`-th call of that name. `false` if it had ended before: how often it looks at
/// a file that it has written itself, a moment ago, is a matter of time.
fn is_killed_at(scene: &Scene, action: &str, name: &str, n: usize) -> bool {
    let (trace, inject) = (format!("trace={name}"), format!("inject={name}:signal=KILL:when={n}"));
    let output = Scene::run(scene.traced(&["-e", &trace, "-e", &inject], action));
    let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
    assert!(signal == Some(9) || output.status.success(), "{action} is killed at {name} {n}: {output:?}");
    signal.is_some()
}

#[test]
fn a_failure_of_any_call_leaves_the_old_or_the_new_file() {
    let (mut n_failures, mut n_told) = (0, 0);
    for (scene, before, action) in scenes() {
        let (snapshot, allowed) = prepared(&scene, &before, action);
        let calls = scene.calls(action);
        let calls = calls.iter().filter(|(name, _)| !NOT_FAILED.contains(&name.as_str()));
        let faults: Vec<_> = calls.flat_map(|call| ERRORS.map(|error| (call, error))).collect();
        for ((name, n), error) in faults.into_iter().step_by(stride(20, 1)) {
            scene.restore(&snapshot);
            let (trace, inject) = (format!("trace={name}"), format!("inject={name}:error={error}:when={n}"));
            let output = Scene::run(scene.traced(&["-e", &trace, "-e", &inject], action));
            n_failures += 1;
            n_told += usize::from(!output.status.success());
            let said_done = output.status.success().then(|| scene.wrong(&allowed[1..])).flatten();
            let wrong = said_done.or_else(|| scene.wrong(&allowed)).or_else(|| scene.wrong_after_recovery(&allowed));
            assert_eq!(wrong, None, "{action} when {name} {n} says {error}: {output:?}");
        }
    }
    println!("{n_failures} failures, {n_told} of them told");
}

#[test]
fn a_careless_writer_is_caught() {
    let scene = Scene::new(true);
    let (snapshot, allowed) = prepared(&scene, &[], "unsafe");
    let mut caught = BTreeSet::new();
    for (name, n) in scene.calls("unsafe") {
        if !["openat", "write", "fsync", "unlink", "copy_file_range"].contains(&name.as_str()) {
            continue;
        }
        scene.restore(&snapshot);
        assert!(is_killed_at(&scene, "unsafe", &name, n));
        caught.extend(scene.wrong(&allowed).map(|_| "torn"));
        caught.extend(scene.litter().map(|_| "litter"));
    }
    assert_eq!(caught, BTreeSet::from(["litter", "torn"]));
}

#[test]
fn another_program_that_writes_all_the_time_loses_nothing() {
    /// Changes of ours that make it a race, and writes of the other program.
    const N_CHANGES: usize = 20;
    const N_WRITES: usize = 200;
    /// Time for them on a busy machine.
    const RACE_MAX: Duration = Duration::from_mins(5);
    let seconds = std::env::var("E2E_RACE_SECONDS").unwrap_or_else(|_| "2".to_owned());
    let race_min = Duration::from_secs(seconds.parse().expect("E2E_RACE_SECONDS is a number"));
    let scene = Scene::new(false);
    fs::write(scene.file(), OWN).expect("the folder is ours");
    let mut foreign = scene.change("foreign");
    let foreign = foreign.arg(N_WRITES.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut foreign = foreign.spawn().expect("change-config starts");
    let mut stdin = foreign.stdin.take();
    let (begin, mut n_changes, mut n_given_up) = (Instant::now(), 0, 0);
    // It goes on until it is told that we have enough, and until it has enough itself: so each races to the end.
    while foreign.try_wait().expect("it is our child").is_none() {
        for action in ["hold", "release"] {
            let output = Scene::run(scene.change(action));
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            n_changes += 1;
            if !output.status.success() {
                assert!(said.contains("again and again"), "{action}: {said}");
                n_given_up += 1;
            }
        }
        if n_changes > N_CHANGES && begin.elapsed() >= race_min {
            stdin.take();
        }
        if begin.elapsed() > RACE_MAX {
            foreign.kill().expect("it is our child");
            panic!("the other program has not written {N_WRITES} times in {RACE_MAX:?}");
        }
    }
    let output = foreign.wait_with_output().expect("it has ended");
    let report: Value = serde_json::from_slice(&output.stdout).expect("it prints a report");
    let keys =
        |name: &str| -> BTreeSet<String> { serde_json::from_value(report[name].clone()).expect("a list of keys") };
    let (written, unseen) = (keys("written"), keys("unseen"));
    let n_blind = report["n_blind"].as_u64().and_then(|n| usize::try_from(n).ok()).expect("a number");
    scene.config().restore().expect("nobody writes any more");
    assert!(!scene.config().needs_recovery());
    let text = scene.content().expect("the file is there");
    let lost: Vec<&String> =
        written.iter().filter(|key| !unseen.contains(*key) && !text.contains(&format!("{key} = true\n"))).collect();
    println!(
        "{} writes of the other program, {n_changes} changes of ours, {n_given_up} given up; {n_blind} times it was not \
         shown what it had written, for the moment that ours was there: {} keys",
        written.len(),
        unseen.len()
    );
    assert!(lost.is_empty(), "{lost:?} are lost\n{text}");
    assert!(!text.contains("supervised"), "{text}");
    let rest: String = text.split_inclusive('\n').filter(|line| !line.starts_with("foreign_")).collect();
    assert_eq!(rest, OWN);
    assert!(written.len() >= N_WRITES && n_changes > N_CHANGES, "there was a race: {} {n_changes}", written.len());
    // Where we are kept from running in that moment it writes several times, of which it then is not shown any: that is
    // one moment.
    assert!(n_blind * 50 <= written.len(), "{n_blind} times, {unseen:?}");
}
