//! What endpoints need of the supervisor to do things.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use codex_control::EndpointId;
use codex_control::environment::Environment;
use codex_control::incident::{ActionId, Outcome, Signal};
use codex_control::paths::Paths;
use codex_control::settings::{CodexSettings, DaemonSettings};

use crate::announce::Announcer;
use crate::database::Database;
use crate::event::Queue;
use crate::lifecycle::{DRAIN_SLACK, Limits};
use crate::log::LogLimits;
use crate::ports::Ports;
use crate::scope::{Manager, MemoryLimits};
use crate::standing::Standing;
use crate::stopped::Stopped;
use crate::systemd::Store;
use codex_control::registry::SupervisorEntry;

/// Shared by all endpoints, used by one at a time.
pub(super) struct Services {
    /// Every path.
    pub(super) paths: Paths,
    /// The environment we were started with.
    pub(super) environment: Environment,
    /// The worker program.
    pub(super) worker_program: PathBuf,
    /// Who we are.
    pub(super) own: SupervisorEntry,
    /// Where tasks report.
    pub(super) queue: Queue,
    /// Who wants to know.
    pub(super) announcer: Announcer,
    /// What outlives us.
    pub(super) database: Database,
    /// The service manager's store of listeners.
    pub(super) store: Store,
    /// The service manager, if we are a service.
    pub(super) manager: Option<Manager>,
    /// Why workers cannot be moved into scopes of their own.
    pub(super) scope_problem: Option<String>,
    /// The endpoints' ports.
    pub(super) ports: Ports,
    /// What the person has stopped.
    pub(super) stopped: Stopped,
    /// What actions have changed.
    pub(super) standing: Standing,
    /// The `[daemon]` settings in force.
    pub(super) settings: DaemonSettings,
    /// The `[codex]` settings in force.
    pub(super) codex: CodexSettings,
    /// The same, for open logs.
    pub(super) log_limits: Arc<LogLimits>,
    /// The endpoint used when a command names none.
    pub(super) default_endpoint: Option<EndpointId>,
    /// What was seen and the incident engine has not been told yet; see [`Services::see`].
    pub(super) signals: VecDeque<Signal>,
    /// How actions went that workers were told to carry out, and whose worker says so; looked at after every event.
    pub(super) carried_out: Vec<(EndpointId, ActionId, Outcome)>,
    /// Signals that were dropped because too many came at once.
    pub(super) n_signals_dropped: u64,
    /// Whether we are ending.
    pub(super) is_stopping: bool,
    /// How much of the time for our end was gone when the workers were told.
    pub(super) stop_spent: Duration,
    /// Whether an endpoint's state is another than the service manager was told.
    pub(super) status_is_outdated: bool,
    /// Whether the registry's file says something else than is true.
    pub(super) registry_is_outdated: bool,
}

/// Signals of one event that wait for its end; beyond it the oldest are dropped and counted.
const SIGNALS_MAX: usize = 4096;

impl Services {
    /// Something was seen that may mean a fault, or the end of one.
    pub(super) fn see(&mut self, signal: Signal) {
        if self.signals.len() >= SIGNALS_MAX {
            self.signals.pop_front();
            self.n_signals_dropped += 1;
        }
        self.signals.push_back(signal);
    }

    /// The settings as a lifecycle knows them.
    pub(super) fn limits(&self) -> Limits {
        Limits {
            restart_pause_max: Duration::from_secs(self.settings.restart_backoff_max_s),
            health_interval: Duration::from_secs(self.settings.health_interval_s),
            health_failures_max: self.settings.health_failures_max,
        }
    }

    /// What a worker may use in the end. It is replaced long before; what goes on growing while it ends its answers has
    /// little time left for them from twice the limit on.
    pub(super) fn memory_limits(&self) -> MemoryLimits {
        let limit = self.settings.worker_memory_bytes_max;
        MemoryLimits { slowed: limit.saturating_mul(2), killed: limit.saturating_mul(3) }
    }

    /// Time a worker has for its running answers when it is stopped: so much less than the person's limit that the
    /// last words of each stream, and the worker's end, still lie within that.
    pub(super) fn stop_within(&self) -> Duration {
        Duration::from_secs(self.settings.stop_timeout_s).saturating_sub(DRAIN_SLACK).saturating_sub(self.stop_spent)
    }
}
