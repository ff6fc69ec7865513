//! What earlier runs have left: listeners with the service manager, living workers in the registry.
//!
//! Nothing is believed without proof. An entry of the registry means a process only if a process with exactly that
//! identity lives; it is adopted when it dials in and hands over its listener, and ended when it does not.
//!
//! Without a registry that can be used, processes that run our worker program and were told our socket are *presumed* to
//! be ours: nothing is started beside them, and whoever of them dials in is adopted. They are not signalled before that,
//! and forgotten if they do not.

use std::net::Ipv4Addr;
use std::time::Instant;

use codex_control::incident::{Observation, Signal};
use codex_control::process::Process;
use tracing::{debug, warn};

use super::Supervisor;
use super::managed::Managed;
use crate::clock::unix_ms;
use crate::configuration::Planned;
use crate::systemd::Inherited;
use crate::worker;
use codex_control::registry::{Loaded, Registry, WorkerEntry};
use codex_control::settings::Port;

impl Supervisor {
    /// Takes over what there is. The endpoints of the settings are there already, and nothing is started yet.
    pub(super) fn recover(&mut self, inherited: Inherited, now: Instant) {
        for (id, listener) in inherited.endpoints {
            match self.endpoints.get_mut(&id) {
                Some(managed) => managed.inherit(listener),
                None => self.services.store.forget(&id),
            }
        }
        let registry = match Registry::load(&self.services.paths.registry()) {
            Loaded::Good(registry) => registry,
            Loaded::Absent => return self.presume(now),
            Loaded::Damaged(reason) => {
                warn!(reason, "the registry of an earlier supervisor cannot be used, looking for workers");
                return self.presume(now);
            }
        };
        self.recover_sessions(registry.sessions);
        for entry in &registry.crashes {
            if let Some(managed) = self.endpoints.get_mut(&entry.endpoint) {
                managed.remember_crashes(now, entry, &self.services);
            }
        }
        let mut n_gone = 0;
        for entry in registry.workers {
            // One that nobody has waited for yet has a number, and nothing else.
            let living = Process::open_identity(&entry.identity).ok().filter(|process| !process.has_ended());
            if let Some(process) = living {
                self.recover_worker(&entry, process, true, now);
            } else {
                debug!(endpoint = %entry.endpoint, worker_pid = entry.identity.pid, "a registered worker has ended");
                n_gone += 1;
            }
        }
        if n_gone > 0 {
            let detail = format!("{n_gone} of its workers have ended while there was no supervisor");
            self.services.see(Signal::new(Observation::RegistryStale).value(n_gone).detail(detail));
        }
    }

    /// Looks for workers that nobody has written down.
    fn presume(&mut self, now: Instant) {
        for (worker, process) in worker::presumed(&self.services.worker_program, &self.services.paths.worker_socket()) {
            let port = self.services.ports.decided(&worker.endpoint, Port::Auto).unwrap_or(0);
            let entry = WorkerEntry {
                endpoint: worker.endpoint,
                generation: worker.generation,
                identity: process.identity().clone(),
                address: (Ipv4Addr::LOCALHOST, port).into(),
                started_at_ms: unix_ms(),
                leaving: false,
                // Fits nothing: it may serve older settings, and is replaced without a stream being cut.
                fingerprint: String::new(),
            };
            self.recover_worker(&entry, process, false, now);
        }
    }

    fn recover_worker(&mut self, entry: &WorkerEntry, process: Process, is_proven: bool, now: Instant) {
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
            managed.add_orphan(now, entry, process, is_proven, &mut self.services);
        }
    }
}

/// An endpoint that the settings no longer name and whose worker is only to end.
fn unlisted(entry: &WorkerEntry) -> Option<Planned> {
    let settings = serde_json::from_value(serde_json::json!({ "id": entry.endpoint })).ok()?;
    let problem = codex_control::ipc::Problem { message: "it is not in the settings".to_owned(), hint: None };
    Some(Planned { settings, resolved: Err(problem), tables: String::new(), route: None })
}
