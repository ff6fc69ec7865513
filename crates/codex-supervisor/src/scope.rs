//! Workers that outlive us under systemd, each in a scope of its own.
//!
//! When a service ends, however it ends, systemd kills what is left in the service's control group. So each worker is
//! moved out of ours into a transient scope, once it runs: its start is not slowed, and it takes a few milliseconds.
//!
//! - `PartOf=` our service: `systemctl stop` ends the scopes, too; a crash and the restart after it do not, and neither
//!   does `systemctl restart`, since a scope cannot be started again. (`BindsTo=` would end them with a crash.)
//! - `Before=` our service: at a stop we are told first, end our workers in order, and the scopes are gone by then.
//!
//! We talk to the manager over the user's message bus (its private socket is there without one, too, but answers there
//! have no sender that zbus accepts). Few calls, made one after the other by one task; without a manager there is no
//! task and nothing happens.

use std::path::{Path, PathBuf};
use std::time::Duration;

use codex_control::environment::{self, Environment};
use codex_control::paths::Paths;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, warn};
use zbus::{Connection, OwnedObjectPath, OwnedVariant, Variant};

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
    Scope { worker: WorkerId, pid: u32, limits: MemoryLimits },
    /// Give the scope of this process other limits.
    Limit { worker: WorkerId, pid: u32, limits: MemoryLimits },
    /// Move this process into a scope that is not part of us.
    Session { unit: String, description: String, pid: u32, answer: oneshot::Sender<Result<PathBuf, String>> },
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
}

impl Manager {
    /// The user's manager, if we are a service of it. Must be called in the runtime.
    pub(crate) fn find(environment: &Environment, paths: &Paths, queue: Queue) -> Option<Self> {
        environment.get(environment::NOTIFY_SOCKET)?;
        let own_group = group_of(std::process::id())?;
        let service = service_of(&own_group)?.to_owned();
        let (asks, asked) = mpsc::channel(ASKS_MAX);
        let task =
            Task { bus: paths.message_bus_socket(), service, own_group: own_group.clone(), queue, connection: None };
        // Ends with the last `Manager`.
        tokio::spawn(task.run(asked));
        Some(Self { asks, own_group })
    }

    /// Whether a process would be ended with us.
    pub(crate) fn is_in_our_group(&self, pid: u32) -> bool {
        group_of(pid).is_some_and(|group| group == self.own_group)
    }

    /// Moves a worker into a scope; [`Event::Scoped`] tells how that went. `false` if too many wait for that already.
    pub(crate) fn set_apart(&self, worker: WorkerId, pid: u32, limits: MemoryLimits) -> bool {
        self.asks.try_send(Ask::Scope { worker, pid, limits }).is_ok()
    }

    /// Gives a worker that has a scope other limits. `false` if too many calls wait already.
    pub(crate) fn limit(&self, worker: WorkerId, pid: u32, limits: MemoryLimits) -> bool {
        self.asks.try_send(Ask::Limit { worker, pid, limits }).is_ok()
    }

    /// Moves a process into the new scope `unit`, which is not part of us: it ends with what runs in it. Returns its
    /// control group, below `/sys/fs/cgroup`.
    pub(crate) async fn begin_scope(&self, unit: String, description: String, pid: u32) -> Result<PathBuf, String> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.asks.send(Ask::Session { unit, description, pid, answer }).await.ok()?;
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
    own_group: String,
    queue: Queue,
    connection: Option<Connection>,
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
            Ask::Scope { worker, pid, limits } => self.set_apart(worker, *pid, *limits).await.map(|()| None),
            Ask::Limit { worker, pid, limits } => {
                let connection = self.connection().await?;
                let body = (scope_of(worker, *pid), true, limits.properties().to_vec());
                let method = "SetUnitProperties";
                connection.call_method(Some(SYSTEMD), MANAGER_PATH, Some(MANAGER), method, &body).await?;
                Ok(None)
            }
            Ask::Session { unit, description, pid, .. } => {
                let no_more: Vec<(&str, Variant<'_>)> = Vec::new();
                self.start_scope(unit.clone(), description.clone(), *pid, no_more).await?;
                let moved = async {
                    loop {
                        match group_of(*pid) {
                            Some(group) if group.ends_with(unit.as_str()) => break group,
                            _ => tokio::time::sleep(LOOK_INTERVAL).await,
                        }
                    }
                };
                let group = tokio::time::timeout(MOVE_WITHIN, moved).await;
                let group = group.map_err(|_| CallError::NotMoved(group_of(*pid).unwrap_or_default()))?;
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

    async fn set_apart(&mut self, worker: &WorkerId, pid: u32, limits: MemoryLimits) -> Result<(), CallError> {
        let description = format!("Worker {} of the Codex endpoint {}", worker.generation, worker.endpoint);
        let service = || Variant::from(vec![self.service.clone()]);
        let stop_timeout_us = u64::try_from(SCOPE_STOP_TIMEOUT.as_micros()).unwrap_or(u64::MAX);
        let mut of_ours =
            vec![("PartOf", service()), ("Before", service()), ("TimeoutStopUSec", Variant::from(stop_timeout_us))];
        of_ours.extend(limits.properties());
        self.start_scope(scope_of(worker, pid), description, pid, of_ours).await?;
        // The answer means that it is going to happen; what counts is where the process is.
        let moved = async {
            while group_of(pid).is_some_and(|group| group == self.own_group) {
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        };
        tokio::time::timeout(MOVE_WITHIN, moved).await.map_err(|_| CallError::NotMoved(self.own_group.clone()))
    }

    async fn start_scope(
        &mut self,
        unit: String,
        description: String,
        pid: u32,
        more: Vec<(&str, Variant<'_>)>,
    ) -> Result<(), CallError> {
        let mut properties: Vec<(&str, Variant<'_>)> = vec![
            ("Description", Variant::from(description)),
            ("PIDs", Variant::from(vec![pid])),
            ("CollectMode", Variant::from("inactive-or-failed")),
        ];
        properties.extend(more);
        let others: Vec<(&str, Vec<(&str, Variant<'_>)>)> = Vec::new();
        let connection = self.connection().await?;
        let body = (unit, "fail", properties, others);
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
