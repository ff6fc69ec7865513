//! Codex's `config.toml`, kept right: what a killed process has left half done is finished, keys of a session that has
//! ended are taken out, and those of a person who asked for them are there while we are, and lead to where the endpoint
//! listens.
//!
//! The work itself, and what makes it safe, is [`codex_control::codex_config`]. Any process of ours may do it; this one
//! is there when the others were killed. Nothing is read or written where no change was ever asked for.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use codex_control::EndpointId;
use codex_control::codex_config::{CodexConfig, ConfigError, Outcome};
use codex_control::incident::{ActionId, Observation, Outcome as Carried, Signal};
use codex_control::ipc::Problem;
use codex_control::paths::Paths;
use codex_control::report::{self, Hinted};
use codex_control::rpc::ConfigStatus;
use serde_json::json;
use tracing::{debug, error, info};

use crate::announce::Announcer;
use crate::event::{Event, Queue};

/// Time for a connection on this machine.
const ANSWER_WITHIN: Duration = Duration::from_millis(200);

/// Where endpoints listen.
pub(crate) type Addresses = BTreeMap<EndpointId, SocketAddr>;

/// What looking after one file has come to.
#[derive(Debug)]
pub(crate) struct Tended {
    /// The file.
    path: String,
    /// What was done, or why nothing could be; `None`: there was nothing to do.
    result: Option<Result<Outcome, Problem>>,
    /// Whether it points Codex at where an endpoint listens, if at one.
    leads: Option<Lead>,
}

/// Where a file points Codex.
#[derive(Debug)]
struct Lead {
    endpoint: EndpointId,
    /// The port that it names, and the one that the endpoint listens on.
    ports: (u16, u16),
    /// Whether it is another port, and Codex does not find the endpoint there: a person may have put something of their
    /// own in between.
    is_stale: bool,
}

impl Tended {
    /// What the incident engine has to know of it.
    pub(crate) fn signal(&self) -> Option<Signal> {
        let Lead { endpoint, ports: (theirs, ours), is_stale } = self.leads.as_ref()?;
        if theirs == ours {
            return Some(Signal::of(Observation::ConfigSound, endpoint));
        }
        let detail = format!("`{}` names port {theirs}, `{endpoint}` listens on port {ours}", self.path);
        let stale = Signal::of(Observation::ConfigPortStale, endpoint).value((*theirs).into()).limit((*ours).into());
        is_stale.then(|| stale.detail(detail))
    }
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

    /// Puts our keys in again where they have to be, with the `addresses` that endpoints have now; an event says how
    /// that went.
    pub(crate) fn regenerate(&self, paths: &Paths, queue: &Queue, addresses: Addresses, action: ActionId) {
        let (paths, queue, is_ending) = (paths.clone(), queue.clone(), self.is_ending.clone());
        // On a thread of its own, which ends by itself: what it waits for has deadlines.
        tokio::task::spawn_blocking(move || {
            let is_served = || !is_ending.load(Ordering::SeqCst);
            let address_of = |endpoint: &EndpointId| addresses.get(endpoint).copied();
            let regenerated =
                |config: CodexConfig| tended(&config, Some(config.regenerate(address_of, is_served)), &addresses);
            let tended: Vec<Tended> = CodexConfig::remembered(&paths).into_iter().map(regenerated).collect();
            let failed = tended.iter().filter_map(|tended| match &tended.result {
                Some(Err(problem)) => Some(problem.message.clone()),
                _ => None,
            });
            let failed: Vec<String> = failed.collect();
            let outcome = if failed.is_empty() { Carried::Done } else { Carried::Failed(failed.join("; ")) };
            // What is in the files now is seen after it is known that this was done. Both fail only when we end.
            let _ = queue.blocking_send(Event::CarriedOut { action, outcome });
            let _ = queue.blocking_send(Event::ConfigTended(tended));
        });
    }

    /// Takes our keys out of every file, for as long as nobody serves them; an event says how that went. Before a worker
    /// is ended: who reads the file after this finds the person's own settings, who has read it before is still served.
    ///
    /// Nobody is waited for longer than `within`, all files together.
    pub(crate) fn end(&mut self, paths: &Paths, queue: &Queue, within: Duration) {
        self.is_ending.store(true, Ordering::SeqCst);
        let (paths, queue, until) = (paths.clone(), queue.clone(), Instant::now() + within);
        // On a thread of its own, which ends by itself: what it waits for has a deadline.
        tokio::task::spawn_blocking(move || {
            let suspended = |config: CodexConfig| {
                let config = config.with_patience(until.saturating_duration_since(Instant::now()));
                tended(&config, Some(config.suspend()), &Addresses::new())
            };
            let tended = CodexConfig::remembered(&paths).into_iter().map(suspended).collect();
            let _ = queue.blocking_send(Event::ConfigTakenOut(tended)); // fails only when we have ended without it
        });
    }

    /// Tells how that went. What is still in a file stays there for the next supervisor, which serves it.
    pub(crate) fn taken_out(&mut self, tended: Vec<Tended>, announcer: &mut Announcer) {
        let told = tended.into_iter().map(|mut tended| {
            if let Some(Err(problem)) = &mut tended.result {
                problem.message.push_str("; it still points Codex at an endpoint, which ends");
                problem.hint = Some("`codexctl restore` takes it out, `codexctl start` serves it again".to_owned());
            }
            tended
        });
        self.looked(told.collect(), announcer);
    }

    /// Tells what a look has come to.
    pub(crate) fn looked(&mut self, tended: Vec<Tended>, announcer: &mut Announcer) {
        self.is_busy = false;
        for Tended { path, result, leads: _ } in tended {
            let Some(result) = result else { continue };
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
            all.push(tended(&config, Some(config.readdress(address_of)), addresses));
        }
        let is_due = resumes || config.needs_recovery();
        all.push(tended(&config, is_due.then(|| config.resume(is_served)), addresses));
    }
    all
}

/// Takes our keys out of every file for good.
pub(crate) fn restore(paths: &Paths) -> Result<Vec<ConfigStatus>, Problem> {
    for config in CodexConfig::remembered(paths) {
        tended(&config, Some(config.restore()), &Addresses::new()).result.transpose()?;
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

fn tended(config: &CodexConfig, result: Option<Result<Outcome, ConfigError>>, addresses: &Addresses) -> Tended {
    let problem = |error: ConfigError| Problem { message: report::chain(&error), hint: error.hint() };
    Tended {
        path: config.path().display().to_string(),
        result: result.map(|result| result.map_err(problem)),
        leads: config.points_at().and_then(|(endpoint, theirs)| {
            let ours = *addresses.get(&endpoint)?;
            let is_stale = theirs != ours && (addresses.values().any(|other| *other == theirs) || is_dead(theirs));
            Some(Lead { endpoint, ports: (theirs.port(), ours.port()), is_stale })
        }),
    }
}

/// Whether nobody listens there. Only this machine is asked; what is elsewhere counts as alive.
fn is_dead(address: SocketAddr) -> bool {
    address.ip().is_loopback()
        && TcpStream::connect_timeout(&address, ANSWER_WITHIN)
            .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
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
