//! What earlier runs have left: listeners with the service manager, living workers in the registry.
//!
//! Nothing is believed without proof. An entry of the registry means a process only if a process with exactly that
//! identity lives; it is adopted when it dials in and hands over its listener, and ended when it does not.

use std::time::Instant;

use codex_control::process::Process;
use tracing::{debug, warn};

use super::Supervisor;
use super::managed::Managed;
use crate::configuration::Planned;
use crate::registry::{Registry, WorkerEntry};
use crate::systemd::Inherited;

impl Supervisor {
    /// Takes over what there is. The endpoints of the settings are there already, and nothing is started yet.
    pub(super) fn recover(&mut self, inherited: Inherited, now: Instant) {
        for (id, listener) in inherited.endpoints {
            match self.endpoints.get_mut(&id) {
                Some(managed) => managed.inherit(listener),
                None => self.services.store.forget(&id),
            }
        }
        let registry = Registry::load(&self.services.paths.registry());
        let (workers, sessions) =
            registry.map_or_else(Default::default, |registry| (registry.workers, registry.sessions));
        self.recover_sessions(sessions);
        for entry in workers {
            match Process::open_identity(&entry.identity) {
                Ok(process) => self.recover_worker(&entry, process, now),
                Err(error) => {
                    debug!(endpoint = %entry.endpoint, worker_pid = entry.identity.pid, %error, "a registered worker has ended");
                }
            }
        }
    }

    fn recover_worker(&mut self, entry: &WorkerEntry, process: Process, now: Instant) {
        if !self.endpoints.contains_key(&entry.endpoint) {
            let Some(planned) = unlisted(entry) else {
                warn!(endpoint = %entry.endpoint, "a registered worker's endpoint means nothing");
                return;
            };
            let mut managed = Managed::new(entry.endpoint.clone(), planned, &self.services);
            managed.replan(None, &self.services);
            self.endpoints.insert(entry.endpoint.clone(), managed);
        }
        if let Some(managed) = self.endpoints.get_mut(&entry.endpoint) {
            managed.add_orphan(now, entry, process, &mut self.services);
        }
    }
}

/// An endpoint that the settings no longer name and whose worker is only to end.
fn unlisted(entry: &WorkerEntry) -> Option<Planned> {
    let settings = serde_json::from_value(serde_json::json!({ "id": entry.endpoint })).ok()?;
    let problem = codex_control::ipc::Problem { message: "it is not in the settings".to_owned(), hint: None };
    Some(Planned { settings, resolved: Err(problem), tables: String::new(), route: None })
}
