//! Codex's `config.toml`, kept right: what a killed process has left half done is finished, keys of a session that has
//! ended are taken out, and those of a person who asked for them are there while we are, and lead to where the endpoint
//! listens.
//!
//! The work itself, and what makes it safe, is [`codex_control::codex_config`]. Any process of ours may do it; this one
//! is there when the others were killed. Nothing is read or written where no change was ever asked for.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use codex_control::EndpointId;
use codex_control::codex_config::{CodexConfig, ConfigError, Outcome};
use codex_control::ipc::Problem;
use codex_control::paths::Paths;
use codex_control::report::{self, Hinted};
use codex_control::rpc::ConfigStatus;
use serde_json::json;
use tracing::{debug, error, info};

use crate::announce::Announcer;
use crate::event::{Event, Queue};

/// Where endpoints listen.
pub(crate) type Addresses = BTreeMap<EndpointId, SocketAddr>;

/// What looking after one file has come to.
#[derive(Debug)]
pub(crate) struct Tended {
    /// The file.
    path: String,
    /// What was done, or why nothing could be.
    result: Result<Outcome, Problem>,
}

/// Looks after the files, one look at a time, and away from the owner task: a disk may be slow, and another process may
/// hold the lock for a moment.
#[derive(Debug, Default)]
pub(crate) struct Tender {
    is_busy: bool,
    /// Whether we are ending: then a look that is still under way puts nothing in again.
    is_ending: Arc<AtomicBool>,
    /// What was told last about each file that could not be put right, so that it is told once.
    told: Vec<(String, Problem)>,
}

impl Tender {
    /// Begins a look, unless one is under way. `resumes`: we have just started, so what was taken out when the last one
    /// of us stopped is put in again. `addresses`: where endpoints listen.
    pub(crate) fn look(&mut self, paths: &Paths, queue: &Queue, resumes: bool, addresses: Addresses) {
        if std::mem::replace(&mut self.is_busy, true) {
            return;
        }
        let (paths, queue, is_ending) = (paths.clone(), queue.clone(), self.is_ending.clone());
        // Ends by itself: what it waits for has deadlines.
        tokio::spawn(async move {
            let looked = tokio::task::spawn_blocking(move || tend(&paths, resumes, &addresses, &is_ending)).await;
            let _ = queue.send(Event::ConfigTended(looked.unwrap_or_default())).await; // fails only when we end
        });
    }

    /// Takes our keys out of every file, for as long as nobody serves them. In place, and before a worker is ended: who
    /// reads the file after this finds the person's own settings, who has read it before is still served.
    pub(crate) fn end(&mut self, paths: &Paths, announcer: &mut Announcer) {
        self.is_ending.store(true, Ordering::SeqCst);
        let suspended = CodexConfig::remembered(paths).into_iter().map(|config| tended(&config, config.suspend()));
        self.looked(suspended.collect(), announcer);
    }

    /// Tells what a look has come to.
    pub(crate) fn looked(&mut self, tended: Vec<Tended>, announcer: &mut Announcer) {
        self.is_busy = false;
        for Tended { path, result } in tended {
            let known = self.told.iter().position(|(known, _)| *known == path);
            match result {
                Ok(outcome) => {
                    known.map(|at| self.told.remove(at));
                    if outcome.has_changed {
                        tell(&path, &outcome, announcer);
                    }
                }
                Err(problem) if known.is_some_and(|at| self.told[at].1 == problem) => {}
                Err(problem) => {
                    error!(
                        path,
                        problem = problem.message,
                        hint = problem.hint,
                        "codex's configuration cannot be put right"
                    );
                    announcer.tell("config.failed", None, problem.message.clone(), json!({ "hint": problem.hint }));
                    known.map(|at| self.told.remove(at));
                    self.told.push((path, problem));
                }
            }
        }
    }
}

fn tend(paths: &Paths, resumes: bool, addresses: &Addresses, is_ending: &AtomicBool) -> Vec<Tended> {
    let is_served = || resumes && !is_ending.load(Ordering::SeqCst);
    let address_of = |endpoint: &EndpointId| addresses.get(endpoint).copied();
    let mut all = Vec::new();
    for config in CodexConfig::remembered(paths) {
        // First, so that nothing leads to a former address even for a moment.
        if config.is_misaddressed(address_of) {
            all.push(tended(&config, config.readdress(address_of)));
        }
        if resumes || config.needs_recovery() {
            all.push(tended(&config, config.resume(is_served)));
        }
    }
    all
}

/// Takes our keys out of every file for good.
pub(crate) fn restore(paths: &Paths) -> Result<Vec<ConfigStatus>, Problem> {
    for config in CodexConfig::remembered(paths) {
        tended(&config, config.restore()).result?;
    }
    Ok(status(paths))
}

/// What of ours is in which file.
pub(crate) fn status(paths: &Paths) -> Vec<ConfigStatus> {
    let files = CodexConfig::remembered(paths).into_iter();
    files
        .map(|config| {
            let holders = config.holders().unwrap_or_default();
            ConfigStatus {
                path: config.path().display().to_string(),
                endpoint: holders.last().and_then(|holder| holder.endpoint.clone()),
                n_holders: holders.len(),
            }
        })
        .collect()
}

fn tended(config: &CodexConfig, result: Result<Outcome, ConfigError>) -> Tended {
    let problem = |error: ConfigError| Problem { message: report::chain(&error), hint: error.hint() };
    Tended { path: config.path().display().to_string(), result: result.map_err(problem) }
}

fn tell(path: &str, outcome: &Outcome, announcer: &mut Announcer) {
    let endpoint = outcome.in_force.as_ref().and_then(|holder| holder.endpoint.as_ref());
    for aside in &outcome.aside {
        info!(path, aside = %aside.display(), "codex's configuration was edited where ours stood, the edit is kept aside");
    }
    let message = match endpoint {
        Some(endpoint) => format!("`{path}` points Codex at the endpoint `{endpoint}`"),
        None => format!("`{path}` is as it was before"),
    };
    debug!(path, n_holders = outcome.n_holders, "codex's configuration was looked after");
    info!(path, endpoint = endpoint.map(tracing::field::display), "codex's configuration was changed");
    announcer.tell("config.changed", endpoint, message, json!({ "path": path, "n_holders": outcome.n_holders }));
}
