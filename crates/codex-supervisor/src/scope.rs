//! Workers that outlive us under systemd, each in a scope of its own.
//!
//! When a service ends, however it ends, systemd kills what is left in the service's control group. So each worker is
//! moved out of ours into a transient scope, once it runs: its start is not slowed, and it takes a few milliseconds.
//!
//! - `PartOf=` our service: `systemctl stop` ends the scopes, too; a crash and the restart after it do not, and neither
//!   does `systemctl restart`, since a scope cannot be started again. (`BindsTo=` would end them with a crash.)
//! - `Before=` our service: at a stop we are told first, end our workers in order, and the scopes are gone by then.
//!
//! The manager is told *which* process to move by its pidfd. One before systemd 254 knows numbers only, and a number may be
//! another process's by the time it is read: so it is looked before and after whether ours still has it, and if not, the
//! scope is not ours, and whoever was moved into it is moved out again.
//!
//! We talk to the manager over the user's message bus (its private socket is there without one, too, but answers there
//! have no sender that zbus accepts). Few calls, made one after the other by one task; without a manager there is no
//! task and nothing happens.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use codex_control::environment::{self, Environment};
use codex_control::paths::Paths;
use codex_control::process::Process;
use codex_control::tree::{self, Spared};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, warn};
use zbus::{Connection, Fd, OwnedObjectPath, OwnedVariant, Variant};

use crate::event::{Event, Queue, WorkerId};

/// Calls that may wait: two workers of each endpoint. When it is full a worker stays where it is, and that is told.
const ASKS_MAX: usize = 128;
/// Time for one call, connecting included.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for the kind of our end to be known; without an answer we end as for a stop, which loses streams and leaves
/// nothing.
const JOB_TIMEOUT: Duration = Duration::from_secs(1);
/// Time between the manager's answer and the moment the process is where it belongs.
const MOVE_WITHIN: Duration = Duration::from_secs(1);
/// Time between two looks at where it is.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);
/// What systemd gives a scope to end after TERM, before KILL.
const SCOPE_STOP_TIMEOUT: Duration = Duration::from_secs(6);

/// Where control groups are seen.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";
const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";

/// The manager that runs us as its service.
#[derive(Clone, Debug)]
pub(crate) struct Manager {
    asks: mpsc::Sender<Ask>,
    own_group: String,
}

#[derive(Debug)]
enum Ask {
    /// Move this process into a scope with these limits.
    Scope { worker: WorkerId, process: Process, limits: MemoryLimits },
    /// Give the scope of this process other limits.
    Limit { worker: WorkerId, pid: u32, limits: MemoryLimits },
    /// Move this process into a scope that is not part of us.
    Session { unit: String, description: String, process: Process, answer: oneshot::Sender<Result<PathBuf, String>> },
    /// What is being done with our service?
    Job { answer: oneshot::Sender<Option<String>> },
}

/// What the kernel lets a worker use, where it keeps count of groups: the last resort behind the supervisor's own looks,
/// for one that grows faster than they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryLimits {
    /// Bytes beyond which it is slowed down.
    pub(crate) slowed: u64,
    /// Bytes beyond which it is killed.
    pub(crate) killed: u64,
}

impl MemoryLimits {
    fn properties(self) -> [(&'static str, Variant<'static>); 2] {
        [("MemoryHigh", Variant::from(self.slowed)), ("MemoryMax", Variant::from(self.killed))]
    }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("the message bus `{path}` cannot be reached")]
    Connect {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the service manager refuses")]
    Bus(#[from] zbus::Error),
    #[error("the service manager does not answer within {} s", CALL_TIMEOUT.as_secs())]
    Timeout,
    #[error("it stays in `{0}`")]
    NotMoved(String),
    #[error("it has ended")]
    Ended,
}

impl Manager {
    /// The user's manager, if we are a service of it. Must be called in the runtime.
    pub(crate) fn find(environment: &Environment, paths: &Paths, queue: Queue) -> Option<Self> {
        environment.get(environment::NOTIFY_SOCKET)?;
        let own_group = group_of(std::process::id())?;
        let service = service_of(&own_group)?.to_owned();
        let (asks, asked) = mpsc::channel(ASKS_MAX);
        let task = Task { bus: paths.message_bus_socket(), service, queue, connection: None, takes_pidfds: None };
        // Ends with the last `Manager`.
        tokio::spawn(task.run(asked));
        Some(Self { asks, own_group })
    }

    /// Whether a process would be ended with us.
    pub(crate) fn is_in_our_group(&self, pid: u32) -> bool {
        group_of(pid).is_some_and(|group| group == self.own_group)
    }

    /// Moves a worker into a scope; [`Event::Scoped`] tells how that went. `false` if too many wait for that already.
    pub(crate) fn set_apart(&self, worker: WorkerId, process: &Process, limits: MemoryLimits) -> bool {
        let process = process.try_clone();
        process.is_ok_and(|process| self.asks.try_send(Ask::Scope { worker, process, limits }).is_ok())
    }

    /// Gives a worker that has a scope other limits. `false` if too many calls wait already.
    pub(crate) fn limit(&self, worker: WorkerId, pid: u32, limits: MemoryLimits) -> bool {
        self.asks.try_send(Ask::Limit { worker, pid, limits }).is_ok()
    }

    /// Moves a process into the new scope `unit`, which is not part of us: it ends with what runs in it. Returns its
    /// control group, below `/sys/fs/cgroup`.
    pub(crate) async fn begin_scope(
        &self,
        unit: String,
        description: String,
        process: Process,
    ) -> Result<PathBuf, String> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.asks.send(Ask::Session { unit, description, process, answer }).await.ok()?;
            answered.await.ok()
        };
        let late = || Err("the service manager is too busy".to_owned());
        tokio::time::timeout(CALL_TIMEOUT, asked).await.ok().flatten().unwrap_or_else(late)
    }

    /// Whether we are being restarted, as opposed to stopped.
    pub(crate) async fn is_restarting(&self) -> bool {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.asks.send(Ask::Job { answer }).await.ok()?;
            answered.await.ok()?
        };
        let job = tokio::time::timeout(JOB_TIMEOUT, asked).await.unwrap_or_default();
        debug!(job, "told to end");
        // `restart` until we are gone; a `try-restart` of something that runs has become one, too.
        job.is_some_and(|job| job == "restart")
    }
}

struct Task {
    bus: PathBuf,
    service: String,
    queue: Queue,
    connection: Option<Connection>,
    /// Whether the manager understands pidfds; `None` before that was tried.
    takes_pidfds: Option<bool>,
}

impl Task {
    async fn run(mut self, mut asked: mpsc::Receiver<Ask>) {
        while let Some(ask) = asked.recv().await {
            let answered = self.answer(&ask).await.map_err(|error| codex_control::report::chain(&error));
            match ask {
                Ask::Scope { worker, .. } => {
                    let result = answered.map(drop);
                    if self.queue.send(Event::Scoped { worker, result }).await.is_err() {
                        return; // the owner has ended
                    }
                }
                Ask::Limit { worker, pid, .. } => {
                    if let Err(error) = answered {
                        warn!(endpoint = %worker.endpoint, worker_pid = pid, error, "a worker keeps its former limits");
                    }
                }
                Ask::Session { answer, .. } => {
                    let group = answered.map(|group| Path::new(CGROUP_ROOT).join(group.unwrap_or_default()));
                    let _ = answer.send(group); // fails only when nobody waits any more
                }
                Ask::Job { answer } => {
                    let job = answered.unwrap_or_else(|error| {
                        warn!(error, "what is meant to become of us is not known");
                        None
                    });
                    let _ = answer.send(job); // fails only when nobody waits any more
                }
            }
        }
    }

    /// Makes a call, and once more over a new connection: the manager closes ours when it is loaded anew.
    async fn answer(&mut self, ask: &Ask) -> Result<Option<String>, CallError> {
        let twice = async {
            match self.call(ask).await {
                Err(CallError::Bus(zbus::Error::InputOutput(error))) => {
                    debug!(%error, "connecting to the service manager anew");
                    self.connection = None;
                    self.call(ask).await
                }
                result => result,
            }
        };
        let result = tokio::time::timeout(CALL_TIMEOUT, twice).await.unwrap_or(Err(CallError::Timeout));
        if result.is_err() {
            self.connection = None;
        }
        result
    }

    async fn call(&mut self, ask: &Ask) -> Result<Option<String>, CallError> {
        match ask {
            Ask::Scope { worker, process, limits } => self.set_apart(worker, process, *limits).await.map(|()| None),
            Ask::Limit { worker, pid, limits } => {
                let connection = self.connection().await?;
                let body = (scope_of(worker, *pid), true, limits.properties().to_vec());
                let method = "SetUnitProperties";
                connection.call_method(Some(SYSTEMD), MANAGER_PATH, Some(MANAGER), method, &body).await?;
                Ok(None)
            }
            Ask::Session { unit, description, process, .. } => {
                let group = self.move_into(unit, description, process, Vec::new).await?;
                Ok(Some(group.trim_start_matches('/').to_owned()))
            }
            Ask::Job { .. } => self.job().await,
        }
    }

    async fn connection(&mut self) -> Result<Connection, CallError> {
        if let Some(connection) = &self.connection {
            return Ok(connection.clone());
        }
        let unreachable = |source| CallError::Connect { path: self.bus.clone(), source };
        let stream = tokio::net::UnixStream::connect(&self.bus).await.map_err(unreachable)?;
        let stream = stream.into_std().map_err(unreachable)?;
        let connection = zbus::connection::Builder::unix_stream(stream).build().await?;
        Ok(self.connection.insert(connection).clone())
    }

    async fn set_apart(&mut self, worker: &WorkerId, process: &Process, limits: MemoryLimits) -> Result<(), CallError> {
        let unit = scope_of(worker, process.identity().pid);
        let description = format!("Worker {} of the Codex endpoint {}", worker.generation, worker.endpoint);
        let service = self.service.clone();
        let of_ours = || {
            let service = || Variant::from(vec![service.clone()]);
            let stop_timeout_us = u64::try_from(SCOPE_STOP_TIMEOUT.as_micros()).unwrap_or(u64::MAX);
            let mut of_ours =
                vec![("PartOf", service()), ("Before", service()), ("TimeoutStopUSec", Variant::from(stop_timeout_us))];
            of_ours.extend(limits.properties());
            of_ours
        };
        self.move_into(&unit, &description, process, of_ours).await.map(drop)
    }

    /// Moves `process`, and nobody else, into the new scope `unit`; returns its control group.
    async fn move_into(
        &mut self,
        unit: &str,
        description: &str,
        process: &Process,
        more: impl Fn() -> Vec<(&'static str, Variant<'static>)>,
    ) -> Result<String, CallError> {
        if process.has_ended() {
            return Err(CallError::Ended);
        }
        let pid = process.identity().pid;
        if self.takes_pidfds == Some(false) {
            self.start_scope(unit, description, ("PIDs", Variant::from(vec![pid])), more()).await?;
        } else {
            let handle = Variant::from(vec![Fd::from(process.as_fd())]);
            match self.start_scope(unit, description, ("PIDFDs", handle), more()).await {
                Ok(()) => self.takes_pidfds = Some(true),
                // One that does not know the property says so in one way or another, and so does a bus that passes none.
                Err(CallError::Bus(
                    error @ (zbus::Error::FDO(_) | zbus::Error::MethodError(..) | zbus::Error::Unsupported),
                )) if self.takes_pidfds.is_none() && !process.has_ended() => {
                    debug!(%error, "the service manager takes no pidfd, naming a process by its number");
                    self.start_scope(unit, description, ("PIDs", Variant::from(vec![pid])), more()).await?;
                    self.takes_pidfds = Some(false);
                }
                Err(error) => return Err(error),
            }
        }
        // The answer means that it is going to happen; what counts is where the process is.
        let moved = async {
            loop {
                match group_of(pid) {
                    Some(group) if group.ends_with(unit) => break Some(group),
                    _ if process.has_ended() => break None,
                    _ => tokio::time::sleep(LOOK_INTERVAL).await,
                }
            }
        };
        let group = tokio::time::timeout(MOVE_WITHIN, moved).await;
        let group = group.map_err(|_| CallError::NotMoved(group_of(pid).unwrap_or_default()))?;
        // As long as it lives its number is its own: then it was that number which was moved.
        if let Some(group) = group.filter(|_| !process.has_ended()) {
            return Ok(group);
        }
        if self.takes_pidfds == Some(false) {
            self.free_strangers(unit).await;
        }
        Err(CallError::Ended)
    }

    /// Our process ended before its number was read: whoever has that number now stands in a scope that would end with
    /// us. Each of them gets one of its own, which nothing ends.
    async fn free_strangers(&mut self, unit: &str) {
        let group = match self.group_of_unit(unit).await {
            Ok(group) => group,
            // As it should be: a scope without a process is gone.
            Err(error) => return debug!(unit, %error, "no scope is left of a process that has ended"),
        };
        let folder = Path::new(CGROUP_ROOT).join(group.trim_start_matches('/'));
        for stranger in tree::in_cgroup(&folder, &Spared::default()) {
            let pid = stranger.identity().pid;
            warn!(unit, pid, "a process that got the number of one of ours is moved out of its scope");
            let own_unit = format!("not-of-codex-{pid}.scope");
            let no_more = Vec::new();
            let number = ("PIDs", Variant::from(vec![pid]));
            if let Err(error) = self.start_scope(&own_unit, "Not of Codex", number, no_more).await {
                warn!(unit, pid, %error, "it stays there, and may be ended with us");
            }
        }
    }

    async fn group_of_unit(&mut self, unit: &str) -> Result<String, CallError> {
        let connection = self.connection().await?;
        let path = connection.call_method(Some(SYSTEMD), MANAGER_PATH, Some(MANAGER), "GetUnit", &(unit,)).await?;
        let path: OwnedObjectPath = path.body().deserialize()?;
        let group = property(&connection, &path, "org.freedesktop.systemd1.Scope", "ControlGroup").await?;
        Ok(group.try_into()?)
    }

    async fn start_scope(
        &mut self,
        unit: &str,
        description: &str,
        member: (&'static str, Variant<'_>),
        more: Vec<(&'static str, Variant<'static>)>,
    ) -> Result<(), CallError> {
        let connection = self.connection().await?;
        let body = transient_scope(unit, description, member, more);
        connection.call_method(Some(SYSTEMD), MANAGER_PATH, Some(MANAGER), "StartTransientUnit", &body).await?;
        Ok(())
    }

    /// The type of the job that runs for our service, if one does: `start`, `stop`, `restart`, …
    async fn job(&mut self) -> Result<Option<String>, CallError> {
        let connection = self.connection().await?;
        let unit =
            connection.call_method(Some(SYSTEMD), MANAGER_PATH, Some(MANAGER), "GetUnit", &(&self.service,)).await?;
        let unit: OwnedObjectPath = unit.body().deserialize()?;
        let job = property(&connection, &unit, "org.freedesktop.systemd1.Unit", "Job").await?;
        let (id, job): (u32, OwnedObjectPath) = job.try_into()?;
        if id == 0 {
            return Ok(None);
        }
        let kind = property(&connection, &job, "org.freedesktop.systemd1.Job", "JobType").await?;
        Ok(Some(kind.try_into()?))
    }
}

async fn property(
    connection: &Connection,
    path: &OwnedObjectPath,
    interface: &str,
    name: &str,
) -> Result<OwnedVariant, CallError> {
    let properties = Some("org.freedesktop.DBus.Properties");
    let answer = connection.call_method(Some(SYSTEMD), path, properties, "Get", &(interface, name)).await?;
    Ok(answer.body().deserialize()?)
}

type Properties<'a> = Vec<(&'a str, Variant<'a>)>;

/// What `StartTransientUnit` takes: name, mode, properties, further units.
fn transient_scope<'a>(
    unit: &'a str,
    description: &'a str,
    member: (&'a str, Variant<'a>),
    more: Vec<(&'a str, Variant<'a>)>,
) -> (&'a str, &'static str, Properties<'a>, Vec<(&'a str, Properties<'a>)>) {
    let mut properties =
        vec![("Description", Variant::from(description)), member, ("CollectMode", Variant::from("inactive-or-failed"))];
    properties.extend(more);
    (unit, "fail", properties, Vec::new())
}

/// The name of a worker's scope.
fn scope_of(worker: &WorkerId, pid: u32) -> String {
    format!("codex-worker-{}-{}-{pid}.scope", worker.endpoint, worker.generation)
}

/// The control group of a process, as the unified hierarchy shows it.
fn group_of(pid: u32) -> Option<String> {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    groups.lines().find_map(|line| line.strip_prefix("0::").map(str::to_owned))
}

/// The user's service that a control group belongs to.
fn service_of(group: &str) -> Option<&str> {
    let (manager, unit) = group.rsplit_once('/')?;
    let is_users = manager.split('/').any(|part| part.starts_with("user@") && part.ends_with(".service"));
    (is_users && unit.ends_with(".service") && !unit.starts_with("user@")).then_some(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_named_by_its_pidfd() {
        let own = Process::open(std::process::id()).unwrap();
        let member = ("PIDFDs", Variant::from(vec![Fd::from(own.as_fd())]));
        assert_eq!(member.1.value_signature().to_string(), "ah");
        let body = transient_scope("a.scope", "A", member, vec![("MemoryMax", Variant::from(1_u64))]);
        let call = zbus::Message::method_call(MANAGER_PATH, "StartTransientUnit").build(&body).unwrap();
        assert_eq!(call.body().signature().to_string(), "(ssa(sv)a(sa(sv)))", "as the manager takes it");
        let passed = call.data().fds();
        assert_eq!(passed.len(), 1);
        let inode = |fd: std::os::fd::BorrowedFd<'_>| rustix::fs::fstat(fd).unwrap().st_ino;
        assert_eq!(inode(passed[0].as_fd()), inode(own.as_fd()), "the process itself");
    }

    #[test]
    fn only_a_service_of_the_users_manager_has_scopes() {
        let manager = "/user.slice/user-1000.slice/user@1000.service";
        for (group, expected) in [
            (format!("{manager}/app.slice/codex-supervisor.service"), Some("codex-supervisor.service")),
            (format!("{manager}/app.slice/vte-spawn-1.scope"), None),
            (manager.to_owned(), None),
            ("/system.slice/codex-supervisor.service".to_owned(), None),
            ("/user.slice/user-1000.slice/session-2.scope".to_owned(), None),
            ("/".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(service_of(&group), expected, "{group}");
        }
        assert_eq!(group_of(std::process::id()), group_of(std::process::id()));
        assert_eq!(group_of(u32::MAX), None);
    }
}
