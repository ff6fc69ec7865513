//! What earlier runs have left: listeners with the service manager, living workers, in the registry or not.
//!
//! Nothing is believed without proof. An entry of the registry means a process only if a process with exactly that
//! identity lives; it is adopted when it dials in and hands over its listener, and ended when it does not.
//!
//! The registry may also not be there, be damaged, or be older than the latest worker, because it could not be written.
//! So processes that run our worker program and were told our socket, and are not in it, are *presumed* to be ours:
//! nothing is started beside them, and whoever of them dials in is adopted. They are not signalled before that, and
//! forgotten if they do not.

use std::net::Ipv4Addr;
use std::time::Instant;

use codex_control::incident::{Observation, Signal};
use codex_control::process::Process;
use tracing::{debug, warn};

use super::Supervisor;
use super::managed::Managed;
use crate::clock::unix_ms;
use crate::configuration::Planned;
use crate::event::WorkerId;
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
        if let Loaded::Good(left) = Registry::load(&self.services.paths.left_sessions()) {
            self.recover_sessions(left.sessions);
            self.has_left_sessions = true;
            self.services.registry_is_outdated = true;
        }
        let registry = match Registry::load(&self.services.paths.registry()) {
            Loaded::Good(registry) => registry,
            Loaded::Absent => {
                self.presume(now);
                return;
            }
            Loaded::Damaged(reason) => {
                warn!(reason, "the registry of an earlier supervisor cannot be used, looking for workers");
                self.presume(now);
                return;
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
        let n_unknown = self.presume(now);
        if n_gone + n_unknown > 0 {
            let mut parts = Vec::new();
            if n_gone > 0 {
                parts.push(format!("{n_gone} of its workers have ended while there was no supervisor"));
            }
            if n_unknown > 0 {
                parts.push(format!("{n_unknown} workers that run are not in it"));
            }
            let stale = Signal::new(Observation::RegistryStale).value(n_gone + n_unknown);
            self.services.see(stale.detail(parts.join(", ")));
        }
    }

    /// Looks for workers that nobody has written down; says how many there are.
    fn presume(&mut self, now: Instant) -> u64 {
        let mut n_found = 0;
        for (worker, process) in worker::presumed(&self.services.worker_program, &self.services.paths.worker_socket()) {
            if self.endpoints.get(&worker.endpoint).is_some_and(|managed| managed.knows(worker.generation)) {
                continue; // written down; or it looks like one that is
            }
            warn!(endpoint = %worker.endpoint, worker_pid = process.identity().pid, "a worker that is not written down");
            n_found += 1;
            let entry = self.presumed_entry(worker, &process);
            self.recover_worker(&entry, process, false, now);
        }
        n_found
    }

    /// A process has said that it is a worker that nobody knows of. If it runs our worker program and was told our
    /// socket, it is one that an earlier supervisor has started and not written down, and that was not seen when we
    /// looked: from now on it is waited for like the others.
    pub(super) fn presume_one(&mut self, id: &WorkerId, pid: u32, now: Instant) {
        let (program, socket) = (&self.services.worker_program, self.services.paths.worker_socket());
        let found = worker::presumed_at(pid, program, &socket).filter(|(found, _)| found == id);
        if let Some((worker, process)) = found {
            warn!(endpoint = %id.endpoint, worker_pid = pid, "a worker that is not written down");
            let entry = self.presumed_entry(worker, &process);
            self.recover_worker(&entry, process, false, now);
        }
    }

    fn presumed_entry(&self, worker: WorkerId, process: &Process) -> WorkerEntry {
        let port = self.services.ports.decided(&worker.endpoint, Port::Auto).unwrap_or(0);
        WorkerEntry {
            endpoint: worker.endpoint,
            generation: worker.generation,
            identity: process.identity().clone(),
            address: (Ipv4Addr::LOCALHOST, port).into(),
            started_at_ms: unix_ms(),
            leaving: false,
            // Fits nothing: it may serve older settings, and is replaced without a stream being cut.
            fingerprint: String::new(),
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
