//! What earlier runs have left: processes that nobody needs any more are ended, files that mean nothing are removed.
//!
//! Processes: only those in the registry and among the sessions that a stop has left, each proven to be the one that was
//! written down, and only those that nobody needs: workers without a supervisor that no Codex uses, and what a session
//! has left whose Codex and launcher are gone. Meanwhile nobody supervises ([`single`]): a supervisor that starts waits,
//! and beside one that runs all processes are its own business. Files: sockets on which nobody listens and pid files of
//! nobody, of ours and of Codex Desktop, in the places where those put them.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::files;
use crate::paths::Paths;
use crate::process::{Identity, Process};
use crate::registry::{Loaded, Registry, SessionEntry, WorkerEntry};
use crate::report;
use crate::session::PATIENCE;
use crate::single::{self, Lock, LockError, Purpose};
use crate::tree::{self, Patience, Spared};

/// A worker gets this long to end: after TERM it accepts nobody any more, and has told its streams within five seconds.
const WORKER_PATIENCE: Patience = Patience { term: Duration::from_secs(6), kill: Duration::from_secs(5) };
/// Longest that it takes to end everything; a supervisor that starts meanwhile waits for that.
pub const WITHIN: Duration = total(WORKER_PATIENCE).saturating_add(total(PATIENCE)).saturating_add(SLACK);
/// What looking takes beside the waiting.
const SLACK: Duration = Duration::from_secs(2);
/// Longest pid file that is read.
const PID_FILE_BYTES_MAX: u64 = 64;
/// What Codex Desktop leaves, in each of its folders.
const DESKTOP_SOCKETS: [&str; 2] = [".launch-action-socket", ".codex-desktop-launch-action"];
const DESKTOP_PID_FILES: [&str; 2] = [".codex-desktop-pid", ".webview-pid"];

/// Both spans.
const fn total(patience: Patience) -> Duration {
    patience.term.saturating_add(patience.kill)
}

/// What a look has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Everything that was found, in the order in which it was looked at.
    pub items: Vec<Item>,
    /// Why no process was looked at.
    pub hindrance: Option<Hindrance>,
}

/// Why no process is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hindrance {
    /// The registry says nothing that can be used.
    Damaged(String),
    /// Nobody can say whether a supervisor runs.
    NoLock(String),
}

/// What was looked at, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// For a person: `worker of `zai`, pid 5120`, a path.
    pub what: String,
    /// What became of it.
    #[serde(flatten)]
    pub fate: Fate,
}

/// What became of something that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "fate", content = "why")]
pub enum Fate {
    /// It was ended or removed; or would be.
    Done,
    /// It is needed.
    Kept(String),
    /// It could not be ended or removed.
    Failed(String),
}

/// Cleans up; `dry_run`: only looks what there is to do.
///
/// Blocks while processes end, at most [`WITHIN`], and before that while another one cleans up, as long at most.
pub fn clean_up(paths: &Paths, dry_run: bool) -> Cleaned {
    let mut cleaned = Cleaned::default();
    let items = &mut cleaned.items;
    let order = match Order::make(paths, dry_run) {
        Ok(order) => order,
        Err(reason) => {
            cleaned.hindrance = Some(Hindrance::NoLock(reason));
            files(paths, false, dry_run, items);
            return cleaned;
        }
    };
    // What a stop has left is a file of its own, until the next supervisor has read it.
    let left = match Registry::load(&paths.left_sessions()) {
        Loaded::Good(left) => Some(left),
        Loaded::Absent | Loaded::Damaged(_) => None,
    };
    match Registry::load(&paths.registry()) {
        Loaded::Good(mut registry) => {
            let is_new =
                |entry: &SessionEntry| registry.sessions.iter().all(|known| known.session.id != entry.session.id);
            let more: Vec<SessionEntry> =
                left.into_iter().flat_map(|left| left.sessions).filter(|entry| is_new(entry)).collect();
            registry.sessions.extend(more);
            processes(&registry, &order, dry_run, items);
        }
        Loaded::Absent => left.iter().for_each(|left| processes(left, &order, dry_run, items)),
        Loaded::Damaged(reason) => cleaned.hindrance = Some(Hindrance::Damaged(reason)),
    }
    // A supervisor that starts listens on its sockets a moment after it has made them.
    let are_sockets_ours = !matches!(order, Order::Supervised { .. });
    files(paths, are_sockets_ours, dry_run, items);
    cleaned
}

/// Who may end processes now.
#[derive(Debug)]
enum Order {
    /// A supervisor, and nobody else.
    Supervised { pid: Option<u32> },
    /// We, as long as this lives.
    Ours { _lock: Lock },
    /// Nobody wants to.
    Looking,
    /// There is no folder of ours, and so nothing to end.
    Nothing,
}

impl Order {
    fn make(paths: &Paths, dry_run: bool) -> Result<Self, String> {
        let path = paths.lock();
        let held = |holder: single::Holder| match holder.purpose {
            Purpose::Supervise => Ok(Self::Supervised { pid: holder.pid }),
            Purpose::CleanUp if dry_run => Ok(Self::Looking),
            Purpose::CleanUp => Err(holder.to_string()),
        };
        if dry_run {
            return single::holder(&path).map_or(Ok(Self::Looking), held);
        }
        match single::take(&path, Purpose::CleanUp) {
            Ok(lock) => Ok(Self::Ours { _lock: lock }),
            Err(LockError::Held(holder)) => held(holder),
            Err(LockError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(Self::Nothing),
            Err(error) => Err(report::chain(&error)),
        }
    }
}

/// The process, if it is the one that was written down and still runs.
fn living(identity: &Identity) -> Option<Process> {
    Process::open_identity(identity).ok().filter(|process| !process.has_ended())
}

fn processes(registry: &Registry, order: &Order, dry_run: bool, items: &mut Vec<Item>) {
    // The supervisor itself: its workers stay, and what sessions have left is its to end.
    let is_by_us = matches!(order, Order::Supervised { pid: Some(pid) } if *pid == std::process::id());
    let supervisor = match order {
        Order::Supervised { pid } => Some(*pid),
        // It has lost its lock, as when somebody has removed the file.
        _ => living(&registry.supervisor.identity).map(|supervisor| Some(supervisor.identity().pid)),
    };
    let supervisor = supervisor.map(|pid| {
        let pid = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
        format!("the supervisor{pid} runs")
    });
    let mut unneeded = Vec::new();
    for worker in &registry.workers {
        let Some(process) = living(&worker.identity) else { continue };
        let what = format!("worker of `{}`, pid {}", worker.endpoint, worker.identity.pid);
        let kept = supervisor.clone().or_else(|| used(worker, &registry.sessions));
        if kept.is_none() {
            // With all of its process group: a worker leads one of its own.
            let group: Vec<Identity> = tree::in_group(&process).iter().map(|one| one.identity().clone()).collect();
            unneeded.push((items.len(), group));
        }
        items.push(Item { what, fate: kept.map_or(Fate::Done, Fate::Kept) });
    }
    if !dry_run {
        end_all(&unneeded, items);
    }
    let mut left_behind = Vec::new();
    for entry in &registry.sessions {
        let session = &entry.session;
        if let Some(program) = session.program.as_ref().and_then(living) {
            let what = format!("Codex ({}), pid {}", session.id, program.identity().pid);
            items.push(Item { what, fate: Fate::Kept("it runs".to_owned()) });
            continue;
        }
        if living(&session.launcher).is_some() {
            let what = format!("session {}", session.id);
            items.push(Item { what, fate: Fate::Kept("its launcher is cleaning up".to_owned()) });
            continue;
        }
        let left = left_by(entry);
        if !left.is_empty() {
            let noun = if left.len() == 1 { "process" } else { "processes" };
            let what = format!("{} {noun} that Codex ({}) has left", left.len(), session.id);
            let kept =
                supervisor.as_ref().filter(|_| !is_by_us).map(|supervisor| format!("{supervisor} and ends them"));
            if kept.is_none() {
                left_behind.push((items.len(), entry));
            }
            items.push(Item { what, fate: kept.map_or(Fate::Done, Fate::Kept) });
        }
    }
    if !dry_run {
        end_sessions(&left_behind, items);
    }
}

/// What is left of a session whose launcher and Codex are gone.
fn left_by(entry: &SessionEntry) -> Vec<Process> {
    let session = &entry.session;
    let spared = Spared { programs: session.spared.clone() };
    let in_scope = session.scope.iter().flat_map(|scope| tree::in_cgroup(&scope.cgroup, &spared));
    let mut left: Vec<Process> = in_scope.chain(entry.members.iter().filter_map(living)).collect();
    left.sort_by_key(|process| process.identity().pid);
    left.dedup_by_key(|process| process.identity().pid);
    left
}

/// By whom a worker without a supervisor is needed.
fn used(worker: &WorkerEntry, sessions: &[SessionEntry]) -> Option<String> {
    let users = sessions.iter().filter(|entry| entry.session.endpoint.as_ref() == Some(&worker.endpoint));
    let user = users.filter_map(|entry| entry.session.program.as_ref()).find_map(living)?;
    Some(format!("Codex (pid {}) uses it; `codexctl start` takes it over", user.identity().pid))
}

/// Ends the process groups of workers, all at the same time, and writes down what has become of each.
fn end_all(groups: &[(usize, Vec<Identity>)], items: &mut [Item]) {
    let members = || groups.iter().flat_map(|(_, group)| group.iter().filter_map(living)).collect();
    let left = tree::end(members, WORKER_PATIENCE).left;
    for (item, group) in groups {
        items[*item].fate = fate(group.iter().filter(|identity| left.contains(identity)).count());
    }
}

/// The same for what sessions have left.
fn end_sessions(sessions: &[(usize, &SessionEntry)], items: &mut [Item]) {
    tree::end(|| sessions.iter().flat_map(|(_, entry)| left_by(entry)).collect(), PATIENCE);
    for (item, entry) in sessions {
        items[*item].fate = fate(left_by(entry).len());
    }
}

fn fate(n_left: usize) -> Fate {
    if n_left == 0 { Fate::Done } else { Fate::Failed(format!("{n_left} of them did not end")) }
}

fn files(paths: &Paths, with_own: bool, dry_run: bool, items: &mut Vec<Item>) {
    let [data, cache] = paths.codex_desktop_folders();
    let folders = [paths.codex_home().to_owned(), data, cache];
    let inside = |names: [&'static str; 2]| folders.iter().flat_map(move |folder| names.map(|name| folder.join(name)));
    let own = [paths.control_socket(), paths.worker_socket()];
    for path in own.into_iter().filter(|_| with_own).chain(inside(DESKTOP_SOCKETS)) {
        if let Some(use_) = socket_use(&path) {
            items.push(item(&path, use_, dry_run));
        }
    }
    for path in inside(DESKTOP_PID_FILES) {
        if let Some(use_) = pid_file_use(&path) {
            items.push(item(&path, use_, dry_run));
        }
    }
}

fn item(path: &Path, needed: Result<(), String>, dry_run: bool) -> Item {
    let fate = match needed {
        Err(why) => Fate::Kept(why),
        Ok(()) if dry_run => Fate::Done,
        Ok(()) => match fs::remove_file(path) {
            Ok(()) => Fate::Done,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Fate::Done, // somebody else was quicker
            Err(error) => Fate::Failed(error.to_string()),
        },
    };
    Item { what: path.display().to_string(), fate }
}

/// Whether a socket can go, or why not; `None` if there is nothing. A file that a socket's name was given to is one.
fn socket_use(path: &Path) -> Option<Result<(), String>> {
    let kind = fs::symlink_metadata(path).ok()?.file_type();
    if !kind.is_socket() {
        return Some(if kind.is_file() { Ok(()) } else { Err("it is neither a socket nor a file".to_owned()) });
    }
    // Not by a connection where there is another way: it would start what the service manager listens for.
    if is_listened_on(path) {
        return Some(Err("somebody listens on it".to_owned()));
    }
    Some(match UnixStream::connect(path) {
        Ok(_) => Err("somebody listens on it".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(format!("whether somebody listens on it is not known: {error}")),
    })
}

/// Whether the kernel says that somebody listens on the socket at `path`; it knows the name that was given at its birth.
///
/// `0000000000000000: 00000002 00000000 00010000 0001 01 4711 /run/user/1000/codex-supervisor/control.sock`
fn is_listened_on(path: &Path) -> bool {
    /// `__SO_ACCEPTCON` of the kernel, in the fourth column.
    const ACCEPTS: &str = "00010000";
    let sockets = fs::read("/proc/net/unix").unwrap_or_default();
    let sockets = String::from_utf8_lossy(&sockets);
    let mut listening = sockets.lines().filter(|line| line.split_ascii_whitespace().nth(3) == Some(ACCEPTS));
    path.to_str().is_some_and(|path| {
        listening.any(|line| line.split_once(" /").is_some_and(|(_, name)| format!("/{name}") == path))
    })
}

/// Whether a pid file can go, or why not; `None` if there is none.
fn pid_file_use(path: &Path) -> Option<Result<(), String>> {
    let bytes = match files::read_bounded(path, PID_FILE_BYTES_MAX) {
        Ok(bytes) => bytes?,
        Err(error) => return Some(Err(report::chain(&error))),
    };
    let pid = std::str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse::<u32>().ok());
    let Some(pid) = pid else { return Some(Ok(())) };
    // Whose number it is cannot be proven; that it is nobody's can.
    Some(match Process::open(pid) {
        Ok(_) => Err(format!("there is a process {pid}")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(format!("whether there is a process {pid} is not known: {error}")),
    })
}
