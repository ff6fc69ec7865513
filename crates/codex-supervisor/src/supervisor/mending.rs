//! What the incident engine decides, carried out.
//!
//! [`Supervisor::mend`] follows every event: signals that were seen go in, directives come out. Each action here is
//! small and immediate; whether it helped is seen by the engine from the signals that follow.

use std::net::IpAddr;
use std::time::Instant;

use codex_control::EndpointId;
use codex_control::cleanup::{self, Fate};
use codex_control::endpoint;
use codex_control::incident::{Action, ActionId, Actor, AttemptState, IncidentId, Observation, Outcome, Signal};
use codex_control::ipc::ToWorker;
use codex_control::report;
use codex_control::rpc::{
    ActionParams, IncidentListParams, IncidentParams, MonitorSetParams, MonitorStatus, RpcError, SimulateParams,
    UsageParams, code,
};
use codex_control::settings::edit::Edit;
use codex_incident::{Act, Diagnose, Facts, Policy};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::Supervisor;
use super::calls::{Answer, json, no_params, read};
use crate::codex_config::Tended;
use crate::configuration::{Configuration, Planned};
use crate::database::incidents;
use crate::event::Event;
use crate::incidents::ask::{self, Expert};
use crate::incidents::{Deed, Told, desktop, simulate, store};
use crate::standing::TIMEOUT_RAISES_MAX;

const MIB: u64 = 1024 * 1024;
/// The setting that the original calls `max_memory_mb`.
const WORKER_MEMORY: &str = "worker_memory_bytes_max";

/// What `configuration` allows.
pub(super) fn policy(configuration: &Configuration) -> Policy {
    let monitor = &configuration.settings.monitor;
    let expert = monitor.ai_endpoint.as_ref().and_then(|id| {
        let plan = configuration.plan();
        plan.into_iter().find(|planned| planned.settings.id == *id && planned.settings.enabled)?.resolved.ok()
    });
    #[expect(clippy::cast_precision_loss, reason = "a thousand dollars at most")]
    let ai_monthly_usd_max = monitor.ai_budget_cents as f64 / 100.0;
    Policy {
        enabled: monitor.enabled,
        tier1_enabled: monitor.tier1_enabled,
        tier2_enabled: monitor.tier2_enabled,
        tier3_enabled: monitor.tier3_enabled,
        auto_restart_proxy: monitor.auto_restart_proxy,
        auto_switch_provider: monitor.auto_switch_provider,
        ai_monthly_usd_max,
        ai_model: expert.as_ref().and_then(|expert| monitor.ai_model.clone().or_else(|| expert.default_model.clone())),
        ai_is_local: expert.is_some_and(|expert| is_local(&expert.base_url)),
        ..Policy::default()
    }
}

/// Whether a base URL (in its normal form) leads to this machine.
fn is_local(base_url: &str) -> bool {
    let host = base_url.split_once("://").map_or(base_url, |(_, rest)| rest);
    let host = host.split('/').next().unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// How far an action has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// It was carried out.
    Done,
    /// It takes its time; an event will say how it went.
    UnderWay,
}

impl Supervisor {
    /// Lets the engine see what has happened, and does what it decides.
    pub(super) fn mend(&mut self, now: Instant) {
        for signal in self.services.signals.drain(..) {
            self.incidents.observe(signal, now);
        }
        for (endpoint, action, outcome) in std::mem::take(&mut self.services.carried_out) {
            // Whatever it says, a worker speaks about its own endpoint alone.
            if self.incidents.endpoint_of(action) == Some(&endpoint) {
                self.carried_out(action, outcome, now);
            }
        }
        let (told, deeds) = self.incidents.poll(&self.services.database, &self.services.queue, now);
        for told in told {
            self.tell(told);
        }
        for deed in deeds {
            self.carry_out(deed, now);
        }
    }

    fn tell(&mut self, told: Told) {
        match told {
            Told::Changed(incident) => {
                let message = incident.timeline.last().map(|step| step.text.clone()).unwrap_or_default();
                let detail = serde_json::to_value(&incident).unwrap_or_default();
                self.services.announcer.tell("incident", incident.endpoint.as_ref(), message, detail);
            }
            Told::Notice(notice) => {
                warn!(incident = %notice.incident, endpoint = notice.endpoint.as_ref().map(EndpointId::as_str), notice = notice.text, hint = notice.hint, "a person should know");
                let detail = serde_json::to_value(&notice).unwrap_or_default();
                let endpoint = notice.endpoint.clone();
                self.services.announcer.tell("incident.notice", endpoint.as_ref(), notice.text.clone(), detail);
                if desktop::is_wanted(&notice, self.configuration.settings.monitor.notification_level) {
                    tokio::spawn(desktop::show(notice)); // ends by its own deadline
                }
            }
        }
    }

    /// Carries out what was decided and written down.
    pub(super) fn carry_out(&mut self, deed: Deed, now: Instant) {
        match deed {
            Deed::Ask(question) => self.ask(question, now),
            Deed::Act(act) => {
                info!(incident = %act.incident, action = %act.action, endpoint = act.endpoint.as_ref().map(EndpointId::as_str), tier = act.tier.number(), because = act.because, "an action is carried out");
                let outcome = match self.act(&act, now) {
                    Ok(Progress::Done) => Outcome::Done,
                    Ok(Progress::UnderWay) => return,
                    Err(reason) => Outcome::Failed(reason),
                };
                self.carried_out(act.id, outcome, now);
            }
        }
    }

    /// An action was carried out, or could not be.
    pub(super) fn carried_out(&mut self, action: ActionId, outcome: Outcome, now: Instant) {
        info!(%action, ?outcome, "an action was carried out");
        let now_ms = self.incidents.millis(now);
        if !self.incidents.engine().outcome(now_ms, action, outcome) {
            info!(%action, "nobody waits for it any more");
        }
    }

    fn act(&mut self, act: &Act, now: Instant) -> Result<Progress, String> {
        if self.is_ending() {
            return Err("the supervisor is about to end".to_owned());
        }
        let mut progress = Progress::Done;
        // What a worker or a person does is theirs.
        let ours =
            [Some(act.action), act.then].into_iter().flatten().filter(|action| action.actor() == Actor::Supervisor);
        for action in ours {
            let of_action = match &act.endpoint {
                Some(endpoint) => self.act_on(endpoint, action, act.id, now)?,
                None => self.act_here(action, act.id)?,
            };
            // The outcome of one that takes its time is that of both.
            if of_action == Progress::UnderWay {
                progress = of_action;
            }
        }
        Ok(progress)
    }

    /// Does something about one endpoint.
    fn act_on(&mut self, id: &EndpointId, action: Action, by: ActionId, now: Instant) -> Result<Progress, String> {
        let Some(managed) = self.endpoints.get_mut(id).filter(|managed| managed.is_listed()) else {
            return Err(format!("there is no endpoint `{id}` any more"));
        };
        if self.services.stopped.contains(id) {
            return Err(format!("`{id}` was stopped by you"));
        }
        match action {
            Action::RestartProxy => {
                // A worker that was started since is the answer already: one that has ended is never waited for.
                managed.renew_worker(self.incidents.decided_at(by).unwrap_or(now));
                managed.drive(&mut self.services, now);
            }
            Action::CheckProxyHealth => {
                managed.probe_soon(now);
                managed.drive(&mut self.services, now);
            }
            Action::RetryNow => managed.order(ToWorker::RetryNow)?,
            Action::RefreshToken => {
                // It says by itself how that went: a program that prints keys takes its time.
                managed.order(ToWorker::RenewKey { action: by })?;
                return Ok(Progress::UnderWay);
            }
            Action::ClearSchemaCache | Action::DeleteProviderCaps => {
                // The file first: a worker that is just starting would read it.
                let path = self.services.paths.learned(managed.route());
                match std::fs::remove_file(&path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(format!("`{}` cannot be removed: {error}", path.display()));
                    }
                    _ => {}
                }
                match managed.order(ToWorker::ForgetLearned) {
                    Err(_) if managed.is_idle() => {} // nobody is left who could remember
                    told => told?,
                }
            }
            Action::KillStaleProcesses => self.end_stale(id)?,
            Action::SwitchProvider => self.switch(id, by, now)?,
            Action::IncreaseTimeout => {
                let now_ms = self.incidents.millis(now);
                match self.services.standing.raise_timeouts(id, by, now_ms) {
                    Ok(true) => self.replan(now),
                    Ok(false) => {
                        return Err(format!("the timeouts of `{id}` were raised {TIMEOUT_RAISES_MAX} times already"));
                    }
                    Err(error) => return Err(report::chain(&error)),
                }
            }
            other => return self.act_here(other, by),
        }
        Ok(Progress::Done)
    }

    /// Does something about the installation.
    fn act_here(&mut self, action: Action, by: ActionId) -> Result<Progress, String> {
        match action {
            Action::CleanupPids => {
                self.services.registry_is_outdated = true; // written anew from what lives
                Ok(Progress::Done)
            }
            Action::RegenerateConfig => {
                // Inside a transaction, and our own keys alone.
                self.tender.regenerate(&self.services.paths, &self.services.queue, self.addresses(), by);
                Ok(Progress::UnderWay)
            }
            Action::CleanupCodexStale => {
                self.clean_up_codex(by);
                Ok(Progress::UnderWay)
            }
            Action::UpdateCcVersion => Err("only Command Code takes another client version, and no endpoint of this \
                 version speaks Command Code: only an update of codex-supervisor makes it a newer client"
                .to_owned()),
            other => Err(format!("`{other}` is done to an endpoint, and it is not known to which")),
        }
    }

    /// Ends what Codex has left and nobody needs, and removes its stale files.
    fn clean_up_codex(&self, by: ActionId) {
        let (paths, queue) = (self.services.paths.clone(), self.services.queue.clone());
        // On a thread of its own, which ends with what it has to end: `cleanup` has deadlines.
        tokio::task::spawn_blocking(move || {
            let cleaned = cleanup::clean_up(&paths, false);
            let failed: Vec<String> = cleaned
                .items
                .iter()
                .filter_map(|item| match &item.fate {
                    Fate::Failed(why) => Some(format!("{}: {why}", item.what)),
                    Fate::Done | Fate::Kept(_) => None,
                })
                .collect();
            info!(items = ?cleaned.items, hindrance = ?cleaned.hindrance, "cleaned up");
            let outcome = if failed.is_empty() { Outcome::Done } else { Outcome::Failed(failed.join("; ")) };
            let _ = queue.blocking_send(Event::CarriedOut { action: by, outcome }); // fails only when the owner has ended
        });
    }

    /// Codex's configuration was looked after: whether it points at an endpoint where that one listens is seen here.
    pub(super) fn config_tended(&mut self, tended: Vec<Tended>) {
        for signal in tended.iter().filter_map(Tended::signal) {
            self.services.see(signal);
        }
        self.tender.looked(tended, &mut self.services.announcer);
    }

    /// Ends what holds the endpoint's port, if it is a worker of ours that should have gone.
    fn end_stale(&mut self, id: &EndpointId) -> Result<(), String> {
        let Some(port) = self.endpoints.get(id).and_then(|managed| managed.missing_port(&self.services)) else {
            return Ok(()); // the port is ours already
        };
        let Some(holder) = crate::ports::holder(port) else {
            return Err(format!("nobody can be found who holds port {port}"));
        };
        if self.endpoints.values_mut().any(|managed| managed.end_if_stale(holder.pid)) {
            return Ok(());
        }
        Err(format!("port {port} is held by pid {} (`{}`), which is not ours to end", holder.pid, holder.program))
    }

    /// Lets the endpoint use its backup's provider.
    fn switch(&mut self, id: &EndpointId, by: ActionId, now: Instant) -> Result<(), String> {
        let planned = self.plan.iter().find(|planned| planned.settings.id == *id);
        let Some(backup) = planned.and_then(|planned| planned.settings.backup.clone()) else {
            return Err(format!("`{id}` has no backup; `codexctl endpoint set {id} backup ENDPOINT` names one"));
        };
        if self.services.standing.of(id).is_some_and(|change| change.route.as_ref() == Some(&backup)) {
            return Err(format!("`{id}` uses `{backup}` already"));
        }
        let is_usable = |planned: &&Planned| planned.settings.id == backup && planned.resolved.is_ok();
        if !self.plan.iter().any(|planned| is_usable(&planned)) {
            return Err(format!("its backup `{backup}` cannot be used"));
        }
        let now_ms = self.incidents.millis(now);
        self.services.standing.switch(id, &backup, by, now_ms).map_err(|error| report::chain(&error))?;
        self.replan(now);
        Ok(())
    }

    fn ask(&mut self, question: Diagnose, now: Instant) {
        let expert = self.configuration.settings.monitor.ai_endpoint.as_ref().and_then(|id| {
            let address = self.endpoints.get(id)?.status(&self.services).address?;
            Some(Expert { address, token_file: self.services.paths.token(id) })
        });
        let incident = question.incident;
        let Some(expert) = expert else {
            let why = "the endpoint that is to be asked does not run".to_owned();
            let now_ms = self.incidents.millis(now);
            self.incidents.engine().diagnosis(now_ms, incident, codex_control::incident::Answer::None(why));
            return;
        };
        info!(%incident, model = question.model, "asking the AI");
        let queue = self.services.queue.clone();
        // Ends by the question's own deadline.
        tokio::spawn(async move {
            let answer = ask::ask(expert, question).await;
            let _ = queue.send(Event::Diagnosed { incident, answer }).await; // fails only when the owner has ended
        });
    }

    /// The AI has answered, or not.
    pub(super) fn diagnosed(&mut self, incident: IncidentId, answer: codex_control::incident::Answer, now: Instant) {
        let now_ms = self.incidents.millis(now);
        if !self.incidents.engine().diagnosis(now_ms, incident, answer) {
            info!(%incident, "an answer of the AI came too late");
        }
    }

    /// The settings or tables have changed.
    pub(super) fn reread_monitor(&mut self) {
        self.incidents.set_policy(policy(&self.configuration));
        self.incidents.set_tables(self.configuration.incident_tables.clone());
    }

    /// Tells the engine what it may say about the endpoints.
    pub(super) fn tell_facts(&mut self) {
        for planned in &self.plan {
            let Ok(endpoint) = &planned.resolved else { continue };
            let id = &planned.settings.id;
            let Some(managed) = self.endpoints.get(id) else { continue };
            let facts = Facts {
                backend: endpoint.protocol.name().to_owned(),
                provider: endpoint.provider.clone(),
                base_url: endpoint.base_url.clone(),
                model: endpoint.default_model.clone().unwrap_or_default(),
                port: managed.port(),
                started_at_ms: managed.started_at_ms(),
                backup: planned.settings.backup.clone(),
                route: planned.route.clone(),
                sessions: self.sessions.of_endpoint(id).map(ToString::to_string).collect(),
            };
            self.incidents.engine().know(id, facts);
        }
    }

    /// Methods that the database answers. Returns the answer's sender when `method` is none of them.
    pub(super) fn call_database(
        &mut self,
        method: &str,
        params: Value,
        answer: oneshot::Sender<Answer>,
        now: Instant,
    ) -> Option<(Value, oneshot::Sender<Answer>)> {
        // What is in memory counts, too; the database does one thing after the other.
        self.incidents.write(&self.services.database, &self.services.queue);
        let database = &self.services.database;
        macro_rules! parsed {
            ($type:ty) => {
                match read::<$type>(params) {
                    Ok(params) => params,
                    Err(error) => {
                        let _ = answer.send(Err(error)); // fails only when the caller has gone
                        return None;
                    }
                }
            };
        }
        match method {
            "usage.show" => {
                let UsageParams { since_ms } = parsed!(UsageParams);
                let since_ms = since_ms.unwrap_or_default();
                self.services.database.flush();
                self.services
                    .database
                    .answer(answer, move |connection| crate::database::usage::summary(connection, since_ms));
            }
            "incident.list" => {
                let asked = parsed!(IncidentListParams);
                database.answer(answer, move |connection| incidents::list(connection, &asked));
            }
            "incident.show" => {
                let IncidentParams { id } = parsed!(IncidentParams);
                database.answer(answer, move |connection| incidents::show(connection, id));
            }
            "incident.counts" => {
                let UsageParams { since_ms } = parsed!(UsageParams);
                let since_ms = since_ms.unwrap_or_default();
                database.answer(answer, move |connection| incidents::counts(connection, since_ms));
            }
            "incident.simulate" => {
                let asked = parsed!(SimulateParams);
                let (tables, policy) = (self.incidents.known().tables().clone(), policy(&self.configuration));
                // Neither this task nor the database is kept from its work; the log is bounded.
                tokio::task::spawn_blocking(move || {
                    let result = simulate::simulate(&asked, tables, policy);
                    let result = result
                        .map_err(|(message, hint)| RpcError::new(code::INVALID_PARAMS, message, hint))
                        .and_then(|simulation| json(&simulation));
                    let _ = answer.send(result); // fails only when the caller has gone
                });
            }
            "action.list" => {
                if let Err(error) = no_params(&params) {
                    let _ = answer.send(Err(error)); // fails only when the caller has gone
                    return None;
                }
                let standing = self.services.standing.actions();
                database.answer(answer, move |connection| incidents::actions(connection, &standing));
            }
            "action.cancel" | "action.approve" => {
                let ActionParams { id } = parsed!(ActionParams);
                let done = if method == "action.cancel" { self.cancel(id, now) } else { self.approve(id, now) };
                if let Err(error) = done {
                    let _ = answer.send(Err(error)); // fails only when the caller has gone
                    return None;
                }
                self.mend(now);
                self.incidents.write(&self.services.database, &self.services.queue);
                let standing = self.services.standing.actions();
                self.services.database.answer(answer, move |connection| incidents::action(connection, id, &standing));
            }
            _ => return Some((params, answer)),
        }
        None
    }

    fn cancel(&mut self, id: ActionId, now: Instant) -> Result<(), RpcError> {
        let now_ms = self.incidents.millis(now);
        if self.incidents.engine().cancel(now_ms, id) {
            info!(action = %id, "cancelled by the person");
            return Ok(());
        }
        match self.services.standing.take_back(id) {
            Ok(Some(endpoint)) => {
                info!(action = %id, %endpoint, "taken back by the person");
                let message = match self.services.standing.of(&endpoint) {
                    None => format!("`{endpoint}` is again as its settings say"),
                    Some(_) => format!("what action {id} changed on `{endpoint}` is taken back; another change stands"),
                };
                self.services.announcer.tell("action.taken-back", Some(&endpoint), message, json!({ "action": id }));
                self.replan(now);
                Ok(())
            }
            Ok(None) => Err(self.not_pending(id)),
            Err(error) => Err(RpcError::new(code::INTERNAL, report::chain(&error), None)),
        }
    }

    fn approve(&mut self, id: ActionId, now: Instant) -> Result<(), RpcError> {
        let now_ms = self.incidents.millis(now);
        if self.incidents.engine().approve(now_ms, id) {
            info!(action = %id, "approved by the person");
            return Ok(());
        }
        Err(self.not_pending(id))
    }

    fn not_pending(&self, id: ActionId) -> RpcError {
        let state = self.incidents.known().incidents().flat_map(|incident| &incident.attempts).find_map(|attempt| {
            (attempt.id == id).then_some(match attempt.state {
                AttemptState::Cancelled => "was cancelled already",
                AttemptState::Running | AttemptState::Watched { .. } => "was carried out already",
                _ => "is over already",
            })
        });
        let hint = Some("`codexctl actions` lists those that wait or stand".to_owned());
        match state {
            Some(state) => RpcError::new(code::CONFLICT, format!("action {id} {state}"), hint),
            None => RpcError::new(code::NOT_FOUND, format!("there is no action {id} that waits or stands"), hint),
        }
    }

    /// `monitor.show`
    pub(super) fn monitor_status(&self, now: Instant) -> MonitorStatus {
        let engine = self.incidents.known();
        let now_ms = self.incidents.millis(now);
        let spending = engine.guards().spending(now_ms);
        let settings = self.configuration.settings.monitor.clone();
        let ai_model = policy(&self.configuration).ai_model;
        let ai_problem = match (&settings.ai_endpoint, &ai_model, self.incidents.uncounted()) {
            (Some(_), _, Some(reason)) => Some(format!("what it costs cannot be counted: {reason}")),
            (Some(id), None, None) => {
                Some(format!("`{id}` has no default model; `codexctl monitor set ai_model MODEL` names one"))
            }
            _ => None,
        };
        let open = engine.incidents().filter(|incident| !incident.state.is_closed()).count();
        MonitorStatus {
            settings,
            health_check_interval_s: self.services.settings.health_interval_s,
            max_memory_mb: self.services.settings.worker_memory_bytes_max / MIB,
            ai_model,
            ai_problem,
            ai_calls_day: engine.guards().ai_calls_of_day(now_ms) as u64,
            ai_calls_month: spending.n_calls,
            ai_input_tokens: spending.input_tokens,
            ai_output_tokens: spending.output_tokens,
            ai_usd: spending.usd,
            patterns: engine.patterns().len() as u64,
            incidents_open: open as u64,
            signals_dropped_total: self.services.n_signals_dropped + self.incidents.n_signals_dropped(),
        }
    }

    /// `monitor.set`
    pub(super) fn set_monitor(&mut self, params: MonitorSetParams, now: Instant) -> Answer {
        let MonitorSetParams { key, value } = params;
        let (section, key, value) = self.monitor_setting(key, value)?;
        self.edit_supervisor(&Edit::SetIn { section, key, value }, now)?;
        json(&self.monitor_status(now))
    }

    /// Where a setting of the monitor stands. The original's names are understood, too: some belong elsewhere here, and
    /// its AI is a URL with a key where ours is an endpoint.
    fn monitor_setting(
        &self,
        key: String,
        value: Option<String>,
    ) -> Result<(&'static str, String, Option<String>), RpcError> {
        let refused = |message: String, hint: String| Err(RpcError::new(code::INVALID_PARAMS, message, Some(hint)));
        Ok(match (key.as_str(), value) {
            ("health_check_interval_s", value) => ("daemon", "health_interval_s".to_owned(), value),
            ("max_memory_mb", None) => ("daemon", WORKER_MEMORY.to_owned(), None),
            ("max_memory_mb", Some(value)) => {
                let bytes = value.parse::<u64>().ok().and_then(|mebibytes| mebibytes.checked_mul(MIB));
                let Some(bytes) = bytes.filter(|bytes| i64::try_from(*bytes).is_ok()) else {
                    return refused(format!("`{value}` is no number of megabytes"), "1024 is the default".to_owned());
                };
                ("daemon", WORKER_MEMORY.to_owned(), Some(bytes.to_string()))
            }
            ("model", value) => ("monitor", "ai_model".to_owned(), value),
            ("provider_url", None) => ("monitor", "ai_endpoint".to_owned(), None),
            ("provider_url", Some(url)) => {
                let base = endpoint::normalize_base_url(&url).map_err(|reason| {
                    RpcError::new(code::INVALID_PARAMS, format!("`{url}` cannot be used: {reason}"), None)
                })?;
                let leads_there =
                    |planned: &&Planned| planned.resolved.as_ref().is_ok_and(|endpoint| endpoint.base_url == base);
                let Some(planned) = self.plan.iter().find(leads_there) else {
                    return refused(
                        format!("no endpoint leads to `{base}`"),
                        format!(
                            "add one with `codexctl endpoint add ID --base-url {base}`, then `codexctl monitor set ai_endpoint ID`"
                        ),
                    );
                };
                ("monitor", "ai_endpoint".to_owned(), Some(planned.settings.id.to_string()))
            }
            ("api_key", _) => {
                return refused(
                    "the key is that of the endpoint which is asked, and is never given on a command line".to_owned(),
                    "`codexctl login ENDPOINT` asks for it".to_owned(),
                );
            }
            (_, value) => ("monitor", key, value),
        })
    }

    /// `incident.store`
    pub(super) fn export_store(&self, now: Instant) -> Value {
        store::export(self.incidents.known(), self.incidents.millis(now))
    }

    /// `incident.import`
    pub(super) fn import_store(&mut self, params: Value, now: Instant) -> Answer {
        let now_ms = self.incidents.millis(now);
        let imported = store::import(self.incidents.engine(), params, now_ms)
            .map_err(|message| RpcError::new(code::INVALID_PARAMS, message, None))?;
        json(&imported)
    }

    /// The person has stopped or started an endpoint.
    pub(super) fn person_wants(&mut self, id: &EndpointId, runs: bool) {
        let what = if runs { Observation::UserStarted } else { Observation::UserStopped };
        self.services.see(Signal::of(what, id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_on_this_machine_costs_nothing() {
        for (url, expected) in [
            ("http://127.0.0.1:11434/v1", true),
            ("http://localhost:11434", true),
            ("http://[::1]:8080/v1", true),
            ("https://localhost.example.com/v1", false),
            ("https://api.z.ai/api", false),
            ("https://1270.0.0.1/", false),
            ("https://127.example.com/v1", false),
        ] {
            assert_eq!(is_local(url), expected, "{url}");
        }
    }
}
