//! Codex, where it was started by `codexctl launch`: who runs, how much memory it uses, what it writes, and what it
//! leaves behind. See [`codex_control::session`].
//!
//! ```text
//!             attach                      Codex ends                    launcher says so, or ends
//!  (unknown) ────────► runs ─────────────────────────► launcher cleans up ──────────────────────► (forgotten)
//!                       │ launcher ends                     launcher ends │
//!                       ▼                Codex ends                       ▼
//!                  runs alone ──────────────────────────────────► we clean up ──────────────────► (forgotten)
//! ```
//!
//! Only what is proven to belong to a session is ever signalled: processes in its scope, and those that were seen below
//! its launcher or its Codex, by their identity.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Instant;

use codex_control::EndpointId;
use codex_control::files;
use codex_control::incident::{DETAIL_BYTES_MAX, Observation, Signal};
use codex_control::ipc::Problem;
use codex_control::process::{Identity, Process};
use codex_control::redact::redact;
use codex_control::rpc::{RpcError, code};
use codex_control::session::{Begin, Begun, End, PATIENCE, SESSIONS_MAX, Scope, Session, SessionId, Status};
use codex_control::tables::incident::TextOf;
use codex_control::tree::{self, Ended, Snapshot, Spared};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use super::Supervisor;
use crate::ending;
use crate::event::{Event, Queue};
use crate::follow::Follower;
use crate::memory::Memory;
use codex_control::registry::SessionEntry;

/// Logs a session may have.
const LOGS_MAX: usize = 4;
/// Length at which the log that Codex writes into a session's folder is emptied.
const CODEX_LOG_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Folders of ended sessions that are kept, for a person who wants to know what happened.
const FOLDERS_KEPT: usize = 3;

/// All sessions.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    watched: BTreeMap<SessionId, Watched>,
    /// Begun, with a folder, and not attached yet.
    begun: BTreeMap<SessionId, Process>,
}

#[derive(Debug)]
struct Watched {
    session: Session,
    /// `None`: it has ended.
    launcher: Option<Process>,
    /// `None`: it has ended.
    program: Option<Process>,
    follower: Follower,
    /// Everything below that was seen at the latest look.
    members: Vec<Identity>,
    memory_bytes: Option<u64>,
    problem: Option<Problem>,
    last_line: Option<String>,
    /// Whether what it has left is being ended.
    is_ending: bool,
}

impl Watched {
    fn spared(&self) -> Spared {
        Spared { programs: self.session.spared.clone() }
    }

    fn status(&self) -> Status {
        Status {
            id: self.session.id.clone(),
            kind: self.session.kind,
            endpoint: self.session.endpoint.clone(),
            pid: self.program.as_ref().map(|program| program.identity().pid),
            started_at_ms: self.session.started_at_ms,
            memory_bytes: self.memory_bytes,
            n_processes: self.members.len(),
            problem: self.problem.clone(),
            last_line: self.last_line.as_deref().map(|line| redact(line).into_owned()),
            n_lines: self.follower.n_lines(),
            n_lines_lost: self.follower.n_lines_lost(),
        }
    }

    /// Looks who is in it; says whether somebody new is.
    fn look(&mut self, snapshot: &Snapshot) -> bool {
        let Some(root) = self.launcher.as_ref().or(self.program.as_ref()) else { return false };
        let spared = self.spared();
        let mut members = snapshot.below(root, &spared);
        if let Some(scope) = &self.session.scope {
            let launcher = self.launcher.as_ref().map(Process::identity);
            members.extend(tree::in_cgroup(&scope.cgroup, &spared));
            members.retain(|member| Some(member.identity()) != launcher);
        }
        // Whoever has left its parent after the launcher's end is below nobody of ours any more.
        let has_left = |member: &&Identity| !members.iter().any(|seen| seen.identity() == *member);
        let left = self.members.iter().filter(has_left).filter_map(|member| Process::open_identity(member).ok());
        let left: Vec<Process> = left.filter(|process| !process.has_ended() && !spared.covers(process)).collect();
        members.extend(left);
        let members: BTreeMap<u32, Identity> =
            members.iter().map(|member| (member.identity().pid, member.identity().clone())).collect();
        let members: Vec<Identity> = members.into_values().collect();
        let has_new = members.iter().any(|member| !self.members.contains(member));
        self.members = members;
        has_new
    }
}

impl Sessions {
    /// What `daemon.status` tells, oldest first.
    pub(super) fn statuses(&self) -> Vec<Status> {
        let mut statuses: Vec<Status> = self.watched.values().map(Watched::status).collect();
        statuses.sort_by_key(|status| status.started_at_ms);
        statuses
    }

    /// What the registry holds.
    pub(super) fn entries(&self) -> Vec<SessionEntry> {
        let entry =
            |watched: &Watched| SessionEntry { session: watched.session.clone(), members: watched.members.clone() };
        self.watched.values().map(entry).collect()
    }

    /// Whether what one of them has left is just being ended.
    pub(super) fn is_any_ending(&self) -> bool {
        self.watched.values().any(|watched| watched.is_ending)
    }

    /// The sessions that use `endpoint`.
    pub(super) fn of_endpoint<'s>(&'s self, endpoint: &'s EndpointId) -> impl Iterator<Item = &'s SessionId> {
        let uses_it = |(_, watched): &(&SessionId, &Watched)| watched.session.endpoint.as_ref() == Some(endpoint);
        self.watched.iter().filter(uses_it).map(|(id, _)| id)
    }

    /// Processes of all sessions, for a look at their memory.
    pub(super) fn pids(&self) -> impl Iterator<Item = u32> {
        self.watched.values().flat_map(|watched| watched.members.iter().map(|member| member.pid))
    }
}

/// Reports the end of `process` to the owner.
fn watch(session: &SessionId, process: &Process, queue: Queue) -> std::io::Result<()> {
    let pidfd = ending::watched(process)?;
    let ended = Event::SessionProcessEnded { session: session.clone(), pid: process.identity().pid };
    // The task ends with the process.
    tokio::spawn(async move {
        // An error would mean that nobody can say any more when it ends; the regular look finds it gone.
        if pidfd.readable().await.is_ok() {
            let _ = queue.send(ended).await; // fails only when the owner has ended
        }
    });
    Ok(())
}

impl Supervisor {
    /// `session.begin`: answered when the launcher stands in its scope, or cannot.
    pub(super) fn begin_session(&mut self, wanted: &Begin, answer: oneshot::Sender<Result<Value, RpcError>>) {
        let (mut session, launcher) = match self.begun(wanted) {
            Ok(begun) => begun,
            Err(error) => {
                let _ = answer.send(Err(error)); // fails only when the caller has gone
                return;
            }
        };
        let manager = self.services.manager.clone();
        // Ends with the manager's answer, which has a deadline.
        tokio::spawn(async move {
            if let Some(manager) = manager {
                let unit = Scope::unit_of(&session.id);
                match manager.begin_scope(unit.clone(), format!("Codex ({})", session.id), launcher).await {
                    Ok(cgroup) => session.scope = Some(Scope { unit, cgroup }),
                    Err(error) => warn!(session = %session.id, error, "Codex gets no scope of its own"),
                }
            }
            let result =
                serde_json::to_value(&session).map_err(|error| RpcError::new(code::INTERNAL, error.to_string(), None));
            let _ = answer.send(result); // fails only when the caller has gone
        });
    }

    fn begun(&mut self, begin: &Begin) -> Result<(Begun, Process), RpcError> {
        let internal = |message: String| RpcError::new(code::INTERNAL, message, None);
        let launcher = Process::open_identity(&begin.launcher).map_err(|error| {
            RpcError::new(
                code::NOT_FOUND,
                format!("the launcher, pid {}, is not there: {error}", begin.launcher.pid),
                None,
            )
        })?;
        self.has_room_for_session()?;
        self.tidy_session_folders();
        let number = getrandom::u32().map_err(|error| internal(format!("there are no random numbers: {error}")))?;
        let id = SessionId::new(begin.kind, number);
        let folder = self.services.paths.session_folder(&id);
        files::create_private_folder(&folder).map_err(|error| internal(codex_control::report::chain(&error)))?;
        let held = launcher.try_clone().map_err(|error| internal(format!("the launcher cannot be held: {error}")))?;
        self.sessions.begun.insert(id.clone(), launcher);
        Ok((Begun { id, folder, takes_codex_log: self.services.codex.log, scope: None }, held))
    }

    fn has_room_for_session(&mut self) -> Result<(), RpcError> {
        self.sessions.begun.retain(|_, launcher| !launcher.has_ended());
        if self.sessions.watched.len() + self.sessions.begun.len() < SESSIONS_MAX {
            return Ok(());
        }
        let hint = "end some of them; `codexctl status` lists them".to_owned();
        Err(RpcError::new(code::CONFLICT, format!("{SESSIONS_MAX} sessions are watched already"), Some(hint)))
    }

    /// `session.attach`
    pub(super) fn attach_session(&mut self, session: Session) -> Result<(), RpcError> {
        let is_known = self.sessions.watched.get(&session.id).is_some_and(|watched| watched.session == session);
        if is_known {
            return Ok(()); // the launcher says it again and again
        }
        if session.logs.len() > LOGS_MAX {
            return Err(RpcError::new(code::INVALID_PARAMS, format!("more than {LOGS_MAX} logs"), None));
        }
        let program = session.program.as_ref().and_then(|program| Process::open_identity(program).ok());
        if program.and_then(|program| program.parent()).is_some_and(|parent| parent != session.launcher.pid) {
            let message = "what runs was not started by the launcher".to_owned();
            return Err(RpcError::new(code::INVALID_PARAMS, message, None));
        }
        let is_watched = self.sessions.watched.contains_key(&session.id);
        if !is_watched && !self.sessions.begun.contains_key(&session.id) {
            self.has_room_for_session()?; // begun under another supervisor
        }
        let is_new = self.sessions.begun.remove(&session.id).is_some();
        info!(session = %session.id, pid = session.program.as_ref().map(|program| program.pid), "Codex has started");
        let message = format!("Codex was started ({})", session.id);
        let detail = json!({ "session": session.id, "pid": session.program.as_ref().map(|program| program.pid) });
        self.services.announcer.tell("session.started", session.endpoint.as_ref(), message, detail);
        let mut started = Signal::new(Observation::CodexStarted);
        started.endpoint.clone_from(&session.endpoint);
        self.watch_session(SessionEntry { session, members: Vec::new() }, is_new);
        self.observed(&started);
        Ok(())
    }

    /// Takes over what an earlier supervisor had watched.
    pub(super) fn recover_sessions(&mut self, entries: Vec<SessionEntry>) {
        for entry in entries {
            if !self.sessions.watched.contains_key(&entry.session.id) {
                self.watch_session(entry, false);
            }
        }
    }

    fn watch_session(&mut self, entry: SessionEntry, is_new: bool) {
        let SessionEntry { mut session, members } = entry;
        let id = session.id.clone();
        if let Some(scope) = session.scope.take_if(|scope| !scope.is_of(&id)) {
            warn!(session = %id, ?scope, "a scope that is not its own is left alone");
        }
        let queue = &self.services.queue;
        let held = |identity: Option<&Identity>| {
            let process = Process::open_identity(identity?).ok().filter(|process| !process.has_ended())?;
            if let Err(error) = watch(&id, &process, queue.clone()) {
                warn!(session = %id, %error, "the end of a process cannot be noticed at once");
            }
            Some(process)
        };
        let (launcher, program) = (held(Some(&session.launcher)), held(session.program.as_ref()));
        let follower = Follower::start(&id, &session.logs, is_new, queue.clone());
        let watched = Watched {
            session,
            launcher,
            program,
            follower,
            members,
            memory_bytes: None,
            problem: None,
            last_line: None,
            is_ending: false,
        };
        self.sessions.watched.insert(id.clone(), watched);
        self.services.registry_is_outdated = true;
        self.memory.outdate();
        self.settle_session(&id);
    }

    /// `session.end`: the launcher has done what there was to do.
    pub(super) fn end_session(&mut self, end: &End) -> Result<(), RpcError> {
        let End { id, exit, n_ended, n_left } = end;
        if !self.sessions.watched.contains_key(id) {
            return Err(RpcError::new(code::NOT_FOUND, format!("there is no session `{id}`"), None));
        }
        self.forget_session(id, exit, *n_ended, *n_left);
        Ok(())
    }

    /// A process of a session has ended.
    pub(super) fn session_process_ended(&mut self, id: &SessionId, pid: u32) {
        let Some(watched) = self.sessions.watched.get_mut(id) else { return };
        for process in [&mut watched.launcher, &mut watched.program] {
            if process.as_ref().is_some_and(|process| process.identity().pid == pid && process.has_ended()) {
                debug!(session = %id, pid, "a process of a session has ended");
                *process = None;
            }
        }
        self.settle_session(id);
    }

    /// Cleans up after Codex where nobody else can.
    fn settle_session(&mut self, id: &SessionId) {
        let Some(watched) = self.sessions.watched.get_mut(id) else { return };
        if watched.launcher.is_some() || watched.program.is_some() || watched.is_ending {
            return;
        }
        watched.is_ending = true;
        info!(session = %id, "Codex and its launcher have ended; ending what they left");
        let (scope, members, spared) = (watched.session.scope.clone(), watched.members.clone(), watched.spared());
        let (queue, session) = (self.services.queue.clone(), id.clone());
        let list = move || {
            let in_scope = scope.iter().flat_map(|scope| tree::in_cgroup(&scope.cgroup, &spared));
            let seen = members.iter().filter_map(|member| Process::open_identity(member).ok());
            let seen: Vec<Process> = seen.filter(|process| !process.has_ended()).collect();
            // What they have started since stands below them.
            let snapshot = Snapshot::take();
            let below: Vec<Process> = seen.iter().flat_map(|process| snapshot.below(process, &spared)).collect();
            let mut known = BTreeSet::new();
            let all = in_scope.chain(seen).chain(below);
            all.filter(|process| known.insert(process.identity().pid)).collect()
        };
        // On a thread of its own, which ends with `PATIENCE`.
        tokio::task::spawn_blocking(move || {
            let ended = tree::end(list, PATIENCE);
            let _ = queue.blocking_send(Event::SessionCleared { session, ended }); // fails only when the owner has ended
        });
    }

    /// What a session had left has been ended.
    pub(super) fn session_cleared(&mut self, id: &SessionId, ended: &Ended) {
        let n_left = ended.left.len();
        self.forget_session(id, "unknown: its launcher was ended", ended.n_asked.saturating_sub(n_left), n_left);
    }

    fn forget_session(&mut self, id: &SessionId, exit: &str, n_ended: usize, n_left: usize) {
        // What it wrote last may say why.
        while self.session_wrote(id) {}
        let Some(watched) = self.sessions.watched.remove(id) else { return };
        info!(session = %id, exit, n_ended, n_left, "Codex has ended");
        let mut message = format!("Codex ended ({id}): {exit}");
        if n_left > 0 {
            message = format!("{message}; {n_left} of the processes it left cannot be ended");
        }
        let detail = json!({ "session": id, "exit": exit, "ended": n_ended, "left": n_left });
        self.services.announcer.tell("session.ended", watched.session.endpoint.as_ref(), message, detail);
        self.services.registry_is_outdated = true;
        if let Some(value) = unexpected(exit) {
            let mut gone = Signal::new(Observation::CodexGone).value(value).detail(exit);
            gone.endpoint.clone_from(&watched.session.endpoint);
            self.observed(&gone);
        }
    }

    /// A session has written to its logs. Says whether there is more to read.
    pub(super) fn session_wrote(&mut self, id: &SessionId) -> bool {
        let Some(watched) = self.sessions.watched.get_mut(id) else { return false };
        let mut lines = Vec::new();
        let more = watched.follower.look(|line| lines.push(line.to_owned()));
        for line in lines {
            self.codex_wrote(id, &line);
        }
        more
    }

    /// A line that Codex has written to its stderr or its log: the one place where they arrive. They are Codex's words
    /// and may hold anything, what a person has typed included.
    fn codex_wrote(&mut self, id: &SessionId, line: &str) {
        if let Some(watched) = self.sessions.watched.get_mut(id) {
            watched.last_line = Some(line[..line.floor_char_boundary(DETAIL_BYTES_MAX)].to_owned());
            let seen = self.incidents.known().tables().signature(TextOf::Codex, line);
            let Some((signature, value)) = seen else { return };
            let detail = redact(line).into_owned();
            let endpoint = watched.session.endpoint.clone();
            let tags = signature.tags.clone();
            let signal = Signal { endpoint, value, tags, detail, ..Signal::new(signature.sees) };
            self.observed(&signal);
        }
    }

    /// Something that an incident may begin or end with: the one place where what is seen of Codex arrives.
    pub(super) fn observed(&mut self, signal: &Signal) {
        if !signal.what.is_sample() {
            let message = format!("observed: {}", signal.what);
            self.services.announcer.tell("signal", signal.endpoint.as_ref(), message, json!(signal));
        }
        // Samples within their limit, too: they show that it is over.
        self.incidents.observe(signal.clone(), Instant::now());
    }

    /// What has time: logs whose change was missed, sessions that ended unseen.
    pub(super) fn look_after_sessions(&mut self) {
        let ids: Vec<SessionId> = self.sessions.watched.keys().cloned().collect();
        for id in ids {
            self.session_wrote(&id);
            let folder = self.services.paths.session_folder(&id);
            if let Some(watched) = self.sessions.watched.get_mut(&id) {
                watched.follower.trim(&folder, CODEX_LOG_BYTES_MAX);
                for process in [&mut watched.launcher, &mut watched.program] {
                    if process.as_ref().is_some_and(Process::has_ended) {
                        *process = None;
                    }
                }
            }
            self.settle_session(&id);
        }
    }

    /// Looks who is in the sessions.
    pub(super) fn look_at_sessions(&mut self) {
        if self.sessions.watched.is_empty() {
            return;
        }
        let snapshot = Snapshot::take();
        for watched in self.sessions.watched.values_mut() {
            // The next supervisor may need it to clean up.
            self.services.registry_is_outdated |= watched.look(&snapshot);
        }
    }

    /// Takes over how much memory they use.
    pub(super) fn set_session_memory(&mut self) {
        let limit = self.services.codex.memory_bytes_max;
        let mut signals = Vec::new();
        for watched in self.sessions.watched.values_mut() {
            let known: Vec<u64> = watched.members.iter().filter_map(|member| self.memory.bytes(member.pid)).collect();
            watched.memory_bytes = (!known.is_empty()).then(|| known.iter().sum());
            let Some(mut bytes) = watched.memory_bytes else { continue };
            if bytes > limit {
                // Its processes share pages, which the sum counts several times. Worth asking only now.
                bytes = watched.members.iter().map(|member| proportional(&self.memory, member.pid)).sum();
                watched.memory_bytes = Some(bytes);
            }
            let is_over = bytes > limit;
            if is_over != watched.problem.is_some() {
                watched.problem = is_over.then(|| too_large(watched, bytes, limit));
                let id = &watched.session.id;
                let (kind, message) = match &watched.problem {
                    Some(problem) => ("session.memory-high", problem.message.clone()),
                    None => ("session.memory-normal", format!("the memory of Codex ({id}) is within its limit again")),
                };
                warn!(session = %id, bytes, limit, is_over, "memory of Codex");
                let detail = json!({ "session": id, "bytes": bytes, "limit": limit });
                self.services.announcer.tell(kind, watched.session.endpoint.as_ref(), message, detail);
            }
            let mut sample = Signal::new(Observation::CodexMemory).value(bytes).limit(limit);
            sample.endpoint.clone_from(&watched.session.endpoint);
            signals.push(sample);
        }
        for signal in signals {
            self.observed(&signal);
        }
    }

    /// Removes the folders of all but the latest ended sessions.
    fn tidy_session_folders(&self) {
        let is_live = |name: &str| {
            let id = name.parse::<SessionId>();
            id.is_ok_and(|id| self.sessions.watched.contains_key(&id) || self.sessions.begun.contains_key(&id))
        };
        let entries = std::fs::read_dir(self.services.paths.sessions_folder()).into_iter().flatten().flatten();
        let mut ended: Vec<(std::time::SystemTime, PathBuf)> = entries
            .filter(|entry| entry.file_name().to_str().is_some_and(|name| !is_live(name)))
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        ended.sort();
        let n_too_many = ended.len().saturating_sub(FOLDERS_KEPT);
        for (_, folder) in ended.drain(..n_too_many) {
            if let Err(error) = std::fs::remove_dir_all(&folder) {
                warn!(path = %folder.display(), %error, "the folder of an ended session cannot be removed");
            }
        }
    }
}

/// A process's share of the memory it uses, or all of it where the system does not tell.
fn proportional(memory: &Memory, pid: u32) -> u64 {
    Memory::proportional_bytes(pid).or_else(|| memory.bytes(pid)).unwrap_or(0)
}

fn too_large(watched: &Watched, bytes: u64, limit: u64) -> Problem {
    const MIB: u64 = 1024 * 1024;
    let pid = watched.program.as_ref().map_or(0, |program| program.identity().pid);
    Problem {
        message: format!("Codex (pid {pid}) uses {} MiB of memory, more than {} MiB", bytes / MIB, limit / MIB),
        hint: Some("end it and resume with `codexctl launch cli -- resume --last`".to_owned()),
    }
}

/// What an exit is to the incident engine, unless the person or success was its reason.
fn unexpected(exit: &str) -> Option<u64> {
    const SIGNAL: u64 = 128;
    const BY_THE_PERSON: [u64; 4] = [1, 2, 3, 15]; // HUP, INT, QUIT, TERM
    if let Some(signal) = exit.strip_prefix("signal ").and_then(|number| number.parse().ok()) {
        return (!BY_THE_PERSON.contains(&signal)).then_some(SIGNAL + signal);
    }
    // Codex ends with 1 after a turn that failed, which was told already; with more when it broke down.
    exit.strip_prefix("exit code ").and_then(|code| code.parse().ok()).filter(|code| *code > 1 && *code < SIGNAL)
}
