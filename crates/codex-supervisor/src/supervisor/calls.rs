//! The methods of the control socket; their table is in [`codex_control::rpc`].

use std::path::Path;
use std::time::{Duration, Instant};

use codex_control::EndpointId;
use codex_control::endpoint;
use codex_control::files::{self, FileError, PRIVATE_FILE_MODE};
use codex_control::incident::Signal;
use codex_control::ipc::Problem;
use codex_control::redact;
use codex_control::report::{self, Hinted};
use codex_control::rpc::{
    DaemonStatus, DatabaseStatus, EndpointParams, EndpointState, EndpointStatus, Protection, RpcError, SetParams,
    SettingsStatus, WAKE_TIMEOUT_MS_MAX, WakeParams, code,
};
use codex_control::settings::edit::{self, Edit, EditError};
use codex_control::settings::{EndpointSettings, SETTINGS_BYTES_MAX, Settings};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use super::{Supervisor, Waiter};
use crate::codex_config;
use crate::event::{Call, Farewell};

/// Every method, for suggestions. `events.subscribe` is answered by the control socket itself.
const METHODS: [&str; 34] = [
    "daemon.status",
    "daemon.reload",
    "daemon.restart",
    "daemon.stop",
    "endpoint.list",
    "endpoint.show",
    "endpoint.add",
    "endpoint.set",
    "endpoint.remove",
    "endpoint.default",
    "endpoint.start",
    "endpoint.stop",
    "endpoint.restart",
    "endpoint.wake",
    "usage.show",
    "session.begin",
    "session.attach",
    "session.end",
    "session.list",
    "config.show",
    "config.restore",
    "incident.list",
    "incident.show",
    "incident.counts",
    "incident.simulate",
    "incident.store",
    "incident.import",
    "incident.report",
    "action.list",
    "action.cancel",
    "action.approve",
    "monitor.show",
    "monitor.set",
    "events.subscribe",
];

/// What is asked or said about things that the incident engine knows from an earlier run. While those are being read,
/// an answer would be wrong, and what is said would be lost.
const ABOUT_THE_KNOWN: [&str; 5] =
    ["incident.store", "incident.import", "action.cancel", "action.approve", "monitor.show"];

pub(super) type Answer = Result<Value, RpcError>;

impl Supervisor {
    pub(super) fn call(&mut self, call: Call, now: Instant) {
        if self.incidents.is_awaited() && ABOUT_THE_KNOWN.contains(&call.request.method.as_str()) {
            self.held_calls.push(call);
            return;
        }
        let Call { request, answer } = call;
        debug!(method = request.method, "called");
        self.sample_memory(now);
        match request.method.as_str() {
            "endpoint.wake" => return self.wake(request.params, answer, now),
            "session.begin" => {
                return match self.not_stopping().and_then(|()| read(request.params)) {
                    Ok(begin) => self.begin_session(&begin, answer),
                    Err(error) => drop(answer.send(Err(error))), // fails only when the caller has gone
                };
            }
            "config.restore" => return self.restore_config(&request.params, answer),
            _ => {}
        }
        let Some((params, answer)) = self.call_database(&request.method, request.params, answer, now) else {
            return;
        };
        let result = self.answer(&request.method, params, now);
        if answer.send(result).is_err() {
            debug!(method = request.method, "the caller has gone");
        }
    }

    /// Calls that waited until it is known what an earlier run has kept, or that it will not be known in time.
    pub(super) fn take_held_calls(&mut self, now: Instant) {
        if !self.incidents.is_awaited() {
            for call in std::mem::take(&mut self.held_calls) {
                self.call(call, now);
            }
        }
    }

    fn answer(&mut self, method: &str, params: Value, now: Instant) -> Answer {
        match method {
            "daemon.status" => {
                no_params(&params)?;
                json(&self.daemon_status())
            }
            "daemon.reload" => {
                no_params(&params)?;
                self.reload(now);
                json(&self.daemon_status())
            }
            "daemon.restart" => {
                no_params(&params)?;
                self.not_stopping()?;
                self.farewell = Farewell::Restart;
                self.leave(now);
                Ok(Value::Null)
            }
            "daemon.stop" => {
                no_params(&params)?;
                if !self.is_ending() {
                    self.stop(now);
                }
                Ok(Value::Null)
            }
            "endpoint.list" => {
                no_params(&params)?;
                json(&self.statuses())
            }
            "endpoint.show" => {
                let EndpointParams { id } = read(params)?;
                self.known(&id)?;
                json(&self.endpoints.get(&id).map(|managed| managed.detail(&self.services)))
            }
            "endpoint.add" => {
                let settings: EndpointSettings = read(params)?;
                let id = settings.id.clone();
                self.edit(&Edit::Add(Box::new(settings)), &id, now)?;
                self.status_of(&id)
            }
            "endpoint.set" => {
                let SetParams { id, key, value } = read(params)?;
                if key == "id" {
                    return Err(invalid("an endpoint's id cannot be changed", "add it anew under the other id"));
                }
                self.edit(&Edit::Set { id: id.clone(), key, value }, &id, now)?;
                self.status_of(&id)
            }
            "endpoint.remove" => {
                let EndpointParams { id } = read(params)?;
                self.edit(&Edit::Remove(id.clone()), &id, now)?;
                // A new endpoint of that name is not to inherit the old one's stop.
                self.set_stopped(&id, false);
                Ok(Value::Null)
            }
            "endpoint.default" => {
                let EndpointParams { id } = read(params)?;
                self.edit(&Edit::Default(id.clone()), &id, now)?;
                Ok(Value::Null)
            }
            "incident.store" => {
                no_params(&params)?;
                Ok(self.export_store(now))
            }
            "incident.import" => self.import_store(params, now),
            "incident.report" => {
                let signal: Signal = read(params)?;
                if let Some(id) = &signal.endpoint {
                    self.known(id)?;
                }
                // A stranger's words: what looks like a secret goes before anybody keeps or repeats them.
                let detail = redact::redact(&signal.detail).into_owned();
                self.services.see(Signal { detail, ..signal });
                Ok(Value::Null)
            }
            "monitor.show" => {
                no_params(&params)?;
                json(&self.monitor_status(now))
            }
            "monitor.set" => self.set_monitor(read(params)?, now),
            "endpoint.start" => self.start_endpoint(read(params)?, now, false),
            "endpoint.restart" => self.start_endpoint(read(params)?, now, true),
            "endpoint.stop" => {
                let EndpointParams { id } = read(params)?;
                self.known(&id)?;
                info!(endpoint = %id, "stopped by the person");
                self.person_wants(&id, false);
                self.set_stopped(&id, true);
                self.drive(&id, now);
                self.status_of(&id)
            }
            "session.attach" => {
                self.attach_session(read(params)?)?;
                Ok(Value::Null)
            }
            "session.end" => {
                self.end_session(&read(params)?)?;
                Ok(Value::Null)
            }
            "session.list" => {
                no_params(&params)?;
                json(&self.sessions.statuses())
            }
            "config.show" => {
                no_params(&params)?;
                json(&codex_config::status(&self.services.paths))
            }
            other => {
                let hint = match report::nearest(other, METHODS) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("there are: {}", METHODS.join(", ")),
                };
                Err(RpcError::new(code::METHOD_NOT_FOUND, format!("there is no method `{other}`"), Some(hint)))
            }
        }
    }

    /// `config.restore`: answered by a thread of its own, which waits for whoever works on the file, and for a disk.
    fn restore_config(&self, params: &Value, answer: oneshot::Sender<Answer>) {
        if let Err(error) = no_params(params) {
            return drop(answer.send(Err(error))); // fails only when the caller has gone
        }
        let paths = self.services.paths.clone();
        // Ends by itself: what it waits for has deadlines.
        tokio::task::spawn_blocking(move || {
            let restored = codex_config::restore(&paths);
            let refused = |problem: Problem| RpcError::new(code::CONFLICT, problem.message, problem.hint);
            let _ = answer.send(restored.map_err(refused).and_then(|status| json(&status)));
        });
    }

    fn start_endpoint(&mut self, params: EndpointParams, now: Instant, replaces: bool) -> Answer {
        let EndpointParams { id } = params;
        self.known(&id)?;
        self.not_stopping()?;
        info!(endpoint = %id, replaces, "started by the person");
        self.person_wants(&id, true);
        self.set_stopped(&id, false);
        if let Some(managed) = self.endpoints.get_mut(&id) {
            if !managed.is_enabled() {
                let message = format!("the endpoint `{id}` is switched off in the settings");
                return Err(RpcError::new(
                    code::CONFLICT,
                    message,
                    Some(format!("`codexctl endpoint set {id} enabled true`")),
                ));
            }
            if replaces {
                managed.replace_worker();
            } else {
                managed.revive();
            }
        }
        self.drive(&id, now);
        self.status_of(&id)
    }

    fn wake(&mut self, params: Value, answer: oneshot::Sender<Answer>, now: Instant) {
        let waiter = self.waiter(params, now);
        match waiter {
            Ok((endpoint, deadline)) => {
                if let Some(managed) = self.endpoints.get_mut(&endpoint) {
                    managed.probe_soon(now);
                    managed.drive(&mut self.services, now);
                }
                // Whether there is anything to wait for is found when waiters are looked through, right after this.
                self.waiters.push(Waiter { endpoint, asked_at: now, deadline, answer });
            }
            Err(error) => {
                let _ = answer.send(Err(error)); // fails only when the caller has gone
            }
        }
    }

    fn waiter(&self, params: Value, now: Instant) -> Result<(EndpointId, Instant), RpcError> {
        let WakeParams { id, timeout_ms } = read(params)?;
        self.not_stopping()?;
        let Some(id) = id.or_else(|| self.services.default_endpoint.clone()) else {
            let (message, hint) = if self.plan.is_empty() {
                (
                    "there is no endpoint",
                    "add one with `codexctl endpoint add --preset NAME`; `codexctl presets` lists them",
                )
            } else {
                ("there is no default endpoint", "name one, or choose it with `codexctl endpoint default ID`")
            };
            return Err(RpcError::new(code::NOT_FOUND, message, Some(hint.to_owned())));
        };
        self.known(&id)?;
        Ok((id, now + Duration::from_millis(timeout_ms.min(WAKE_TIMEOUT_MS_MAX))))
    }

    /// Tells everybody who waits for `id` that it answers.
    pub(super) fn answer_waiters(&mut self, id: &EndpointId) {
        let status = self.status_of(id);
        // A worker without a key answers its health probe, yet no request: that is for the next look to tell.
        if self.endpoints.get(id).is_none_or(|managed| managed.state(&self.services).0 != EndpointState::Running) {
            return;
        }
        for waiter in self.waiters.extract_if(.., |waiter| waiter.endpoint == *id) {
            let _ = waiter.answer.send(status.clone()); // fails only when the caller has gone
        }
    }

    /// Answers those who wait in vain.
    pub(super) fn send_waiters_away(&mut self, now: Instant) {
        for waiter in std::mem::take(&mut self.waiters) {
            match self.hopeless(&waiter, now) {
                // Fails only when the caller has gone.
                Some(error) => drop(waiter.answer.send(Err(error))),
                None => self.waiters.push(waiter),
            }
        }
    }

    fn hopeless(&self, waiter: &Waiter, now: Instant) -> Option<RpcError> {
        let id = &waiter.endpoint;
        if self.is_ending() {
            return self.not_stopping().err();
        }
        let Some(managed) = self.endpoints.get(id).filter(|managed| managed.is_listed()) else {
            return self.known(id).err();
        };
        let broken = |message: String, hint: Option<String>| Some(RpcError::new(code::BROKEN, message, hint));
        match managed.state(&self.services) {
            // The next worker may well have the key that the one before misses.
            (EndpointState::Broken, _) if managed.is_replacing() && now < waiter.deadline => None,
            (EndpointState::Broken, Some(Problem { message, hint })) => broken(message, hint),
            (EndpointState::Stopped, _) => {
                broken(format!("the endpoint `{id}` is stopped"), Some(format!("`codexctl start {id}` starts it")))
            }
            (EndpointState::Disabled, _) => {
                let hint = format!("`codexctl endpoint set {id} enabled true` switches it on");
                broken(format!("the endpoint `{id}` is switched off in the settings"), Some(hint))
            }
            _ if now >= waiter.deadline => {
                let waited_ms = waiter.deadline.duration_since(waiter.asked_at).as_millis();
                let last = managed
                    .status(&self.services)
                    .last_exit
                    .map(|exit| format!("; its last worker: {exit}"))
                    .unwrap_or_default();
                let message = format!("the endpoint `{id}` did not answer within {waited_ms} ms{last}");
                Some(RpcError::new(code::TIMEOUT, message, Some(format!("`codexctl logs {id}` tells more"))))
            }
            _ => None,
        }
    }

    /// Changes the person's file and applies it. `id` is the endpoint the change is about.
    fn edit(&mut self, edit: &Edit, id: &EndpointId, now: Instant) -> Result<(), RpcError> {
        self.not_stopping()?;
        let path = self.services.paths.settings();
        let old = read_settings(&path)?;
        let new = edit::apply(&path, &old, edit).map_err(|error| edit_failed(&error))?;
        let resolves = |text: &str| {
            let settings = Settings::parse(&path, text.as_bytes()).ok()?;
            let own = settings.endpoint(id)?;
            Some(endpoint::resolve(&settings, &self.configuration.tables, own).map(drop))
        };
        // A change never makes a working endpoint unusable; one that is unusable may be mended in several steps.
        if let Some(Err(error)) = resolves(&new)
            && !matches!(resolves(&old), Some(Err(_)))
        {
            return Err(RpcError::new(code::INVALID_PARAMS, error.to_string(), error.hint()));
        }
        files::write_atomically(&path, new.as_bytes(), PRIVATE_FILE_MODE).map_err(|error| file_failed(&error))?;
        self.reload(now);
        Ok(())
    }

    /// Changes what the person's file says about the supervisor itself, and applies it.
    pub(super) fn edit_supervisor(&mut self, edit: &Edit, now: Instant) -> Result<(), RpcError> {
        self.not_stopping()?;
        let path = self.services.paths.settings();
        let old = read_settings(&path)?;
        let new = edit::apply(&path, &old, edit).map_err(|error| edit_failed(&error))?;
        files::write_atomically(&path, new.as_bytes(), PRIVATE_FILE_MODE).map_err(|error| file_failed(&error))?;
        self.reload(now);
        Ok(())
    }

    fn set_stopped(&mut self, id: &EndpointId, stopped: bool) {
        if let Err(error) = self.services.stopped.set(id, stopped) {
            warn!(endpoint = %id, %error, "a stop cannot be remembered; it holds until the supervisor ends");
        }
    }

    fn drive(&mut self, id: &EndpointId, now: Instant) {
        if let Some(managed) = self.endpoints.get_mut(id) {
            managed.drive(&mut self.services, now);
        }
    }

    fn known(&self, id: &EndpointId) -> Result<(), RpcError> {
        if self.endpoints.get(id).is_some_and(super::managed::Managed::is_listed) {
            return Ok(());
        }
        let known = self.plan.iter().map(|planned| planned.settings.id.to_string()).collect();
        Err(edit_failed(&EditError::Unknown { id: id.clone(), known }))
    }

    fn not_stopping(&self) -> Result<(), RpcError> {
        if self.is_ending() || self.leave_by.is_some() {
            let hint = Some("try again in a moment: `codexctl start` starts it again".to_owned());
            return Err(RpcError::new(code::CONFLICT, "the supervisor is about to end", hint));
        }
        Ok(())
    }

    fn statuses(&self) -> Vec<EndpointStatus> {
        let listed = self.plan.iter().filter_map(|planned| self.endpoints.get(&planned.settings.id));
        listed.map(|managed| managed.status(&self.services)).collect()
    }

    fn status_of(&self, id: &EndpointId) -> Answer {
        self.known(id)?;
        json(&self.endpoints.get(id).map(|managed| managed.status(&self.services)))
    }

    fn database_status(&self) -> DatabaseStatus {
        let mut status = self.services.database.status();
        if let (None, Some(reason)) = (&status.problem, self.incidents.unread()) {
            let message = format!("what the incident engine has learned cannot be read: {reason}");
            let hint = "it is left as it is, and nothing new is learned until it can be read; look at the disk and at \
                 who holds the file";
            status.problem = Some(Problem { message, hint: Some(hint.to_owned()) });
        }
        status
    }

    fn daemon_status(&self) -> DaemonStatus {
        let has_scopes = self.services.manager.is_some() && self.services.scope_problem.is_none();
        let protection = match (self.services.store.exists(), has_scopes) {
            (false, _) => Protection::Reduced,
            (true, false) => Protection::Partial,
            (true, true) => Protection::Full,
        };
        DaemonStatus {
            version: self.services.own.build.clone(),
            pid: self.services.own.identity.pid,
            started_at_ms: self.services.own.started_at_ms,
            protection,
            settings: SettingsStatus {
                path: self.services.paths.settings().display().to_string(),
                problem: self.configuration.problem.clone(),
            },
            database: self.database_status(),
            incidents_alerted: self.incidents.n_alerted(),
            default_endpoint: self.services.default_endpoint.clone(),
            endpoints: self.statuses(),
            sessions: self.sessions.statuses(),
        }
    }
}

pub(super) fn json(value: &impl Serialize) -> Answer {
    serde_json::to_value(value).map_err(|error| RpcError::new(code::INTERNAL, error.to_string(), None))
}

pub(super) fn read<T: DeserializeOwned>(params: Value) -> Result<T, RpcError> {
    let params = if params.is_null() { Value::Object(serde_json::Map::new()) } else { params };
    if !params.is_object() {
        return Err(invalid("the parameters are not an object", r#"name them, e.g. {"id":"zai"}"#));
    }
    serde_json::from_value(params)
        .map_err(|error| RpcError::new(code::INVALID_PARAMS, format!("the parameters do not fit: {error}"), None))
}

pub(super) fn no_params(params: &Value) -> Result<(), RpcError> {
    match params {
        Value::Null => Ok(()),
        Value::Object(fields) if fields.is_empty() => Ok(()),
        _ => Err(invalid("this method takes no parameters", "leave them away")),
    }
}

fn invalid(message: &str, hint: &str) -> RpcError {
    RpcError::new(code::INVALID_PARAMS, message, Some(hint.to_owned()))
}

fn read_settings(path: &Path) -> Result<String, RpcError> {
    let bytes = files::read_bounded(path, SETTINGS_BYTES_MAX).map_err(|error| file_failed(&error))?.unwrap_or_default();
    // A file that is not text is told with the line by the reader's own code.
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(error) => match Settings::parse(path, error.as_bytes()) {
            Err(error) => Err(edit_failed(&EditError::Broken(error))),
            Ok(_) => Err(RpcError::new(code::INTERNAL, "the settings are not text", None)),
        },
    }
}

fn edit_failed(error: &EditError) -> RpcError {
    let code = match error {
        EditError::Broken(_) | EditError::Exists(_) => code::CONFLICT,
        EditError::WouldBreak { .. } => code::INVALID_PARAMS,
        EditError::Unknown { .. } => code::NOT_FOUND,
    };
    RpcError::new(code, report::chain(error), error.hint())
}

fn file_failed(error: &FileError) -> RpcError {
    RpcError::new(code::INTERNAL, report::chain(error), None)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_may_be_called_twice_exists() {
        for method in codex_control::rpc::REPEATABLE {
            assert!(METHODS.contains(method), "{method}");
        }
    }

    #[test]
    fn parameters_are_checked() {
        assert_eq!(read::<EndpointParams>(json!({"id": "zai"})).unwrap().id.as_str(), "zai");
        for (params, message) in [
            (Value::Null, "missing field `id`"),
            (json!(["zai"]), "not an object"),
            (json!({"id": "Z"}), "`Z` is not an endpoint id"),
            (json!({"id": "zai", "more": 1}), "unknown field `more`"),
        ] {
            let error = read::<EndpointParams>(params).unwrap_err();
            assert_eq!(error.code, code::INVALID_PARAMS);
            assert!(error.message.contains(message), "{}", error.message);
        }
        assert!(no_params(&Value::Null).is_ok() && no_params(&json!({})).is_ok());
        assert!(no_params(&json!({"x": 1})).is_err());
    }
}
