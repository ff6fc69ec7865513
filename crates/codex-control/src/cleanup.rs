//! What earlier runs have left: processes that nobody needs any more are ended, files that mean nothing are removed.
//!
//! Processes: only those in the registry, each proven to be the one that was written down, and only those that nobody
//! needs: workers without a supervisor that no Codex uses, and what a session has left whose Codex and launcher are
//! gone. Files: sockets on which nobody listens and pid files of nobody, of ours and of Codex Desktop, in the places
//! where those put them.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde::Serialize;

use crate::files;
use crate::paths::Paths;
use crate::process::{Identity, Process};
use crate::registry::{Loaded, Registry, SessionEntry, WorkerEntry};
use crate::report;
use crate::session::PATIENCE;
use crate::tree::{self, Spared};

/// Longest pid file that is read.
const PID_FILE_BYTES_MAX: u64 = 64;
/// What Codex Desktop leaves, in each of its folders.
const DESKTOP_SOCKETS: [&str; 2] = [".launch-action-socket", ".codex-desktop-launch-action"];
const DESKTOP_PID_FILES: [&str; 2] = [".codex-desktop-pid", ".webview-pid"];

/// What a look has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Everything that was found, in the order in which it was looked at.
    pub items: Vec<Item>,
    /// Why no process could be looked at.
    pub damage: Option<String>,
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
/// Blocks while processes end, at most twice [`PATIENCE`] for each of them.
pub fn clean_up(paths: &Paths, dry_run: bool) -> Cleaned {
    let mut items = Vec::new();
    let damage = match Registry::load(&paths.registry()) {
        Loaded::Good(registry) => {
            processes(&registry, dry_run, &mut items);
            None
        }
        Loaded::Absent => None,
        Loaded::Damaged(reason) => Some(reason),
    };
    files(paths, dry_run, &mut items);
    Cleaned { items, damage }
}

/// The process, if it is the one that was written down and still runs.
fn living(identity: &Identity) -> Option<Process> {
    Process::open_identity(identity).ok().filter(|process| !process.has_ended())
}

fn processes(registry: &Registry, dry_run: bool, items: &mut Vec<Item>) {
    let supervisor = living(&registry.supervisor.identity);
    for worker in &registry.workers {
        let Some(process) = living(&worker.identity) else { continue };
        let what = format!("worker of `{}`, pid {}", worker.endpoint, worker.identity.pid);
        let fate = match needed(worker, supervisor.as_ref(), &registry.sessions) {
            Some(why) => Fate::Kept(why),
            None if dry_run => Fate::Done,
            // With all of its process group: a worker leads one of its own.
            None => {
                let group: Vec<Identity> = tree::in_group(&process).iter().map(|one| one.identity().clone()).collect();
                end(|| group.iter().filter_map(living).collect())
            }
        };
        items.push(Item { what, fate });
    }
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
        let spared = Spared { programs: session.spared.clone() };
        let left = || -> Vec<Process> {
            let in_scope = session.scope.iter().flat_map(|scope| tree::in_cgroup(&scope.cgroup, &spared));
            let mut left: Vec<Process> = in_scope.chain(entry.members.iter().filter_map(living)).collect();
            left.sort_by_key(|process| process.identity().pid);
            left.dedup_by_key(|process| process.identity().pid);
            left
        };
        let n_left = left().len();
        if n_left > 0 {
            let what = format!("{n_left} processes that Codex ({}) has left", session.id);
            items.push(Item { what, fate: if dry_run { Fate::Done } else { end(left) } });
        }
    }
}

/// Why a worker is still needed.
fn needed(worker: &WorkerEntry, supervisor: Option<&Process>, sessions: &[SessionEntry]) -> Option<String> {
    if let Some(supervisor) = supervisor {
        return Some(format!("the supervisor (pid {}) runs", supervisor.identity().pid));
    }
    let users = sessions.iter().filter(|entry| entry.session.endpoint.as_ref() == Some(&worker.endpoint));
    let user = users.filter_map(|entry| entry.session.program.as_ref()).find_map(living)?;
    Some(format!("Codex (pid {}) uses it; `codexctl start` takes it over", user.identity().pid))
}

fn end(members: impl FnMut() -> Vec<Process>) -> Fate {
    let left = tree::end(members, PATIENCE).left;
    if left.is_empty() { Fate::Done } else { Fate::Failed(format!("{} of them did not end", left.len())) }
}

fn files(paths: &Paths, dry_run: bool, items: &mut Vec<Item>) {
    let [data, cache] = paths.codex_desktop_folders();
    let folders = [paths.codex_home().to_owned(), data, cache];
    let inside = |names: [&'static str; 2]| folders.iter().flat_map(move |folder| names.map(|name| folder.join(name)));
    let own = [paths.control_socket(), paths.worker_socket()];
    // The service manager's own socket is listened on, whether the supervisor runs or not.
    for path in own.into_iter().chain(inside(DESKTOP_SOCKETS)) {
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
    Some(match UnixStream::connect(path) {
        Ok(_) => Err("somebody listens on it".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(format!("whether somebody listens on it is not known: {error}")),
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
