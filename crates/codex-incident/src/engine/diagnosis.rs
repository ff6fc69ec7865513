//! Asking the AI.

use codex_control::incident::{Action, Answer, IncidentId, Level, Millis, Mode, Observation, Tier};

use super::attempt::Decision;
use super::{Alert, Engine, Key, words};
use crate::directive::{Diagnose, Directive};
use crate::patterns::general;
use crate::prompt::{self, Report};

/// The engine waits this much longer than whoever asks, before it gives up by itself.
const SLACK_MS: u64 = 5_000;
/// Sessions told to the AI.
const SESSIONS_TOLD: usize = 3;
/// Past outcomes told to the AI.
const HISTORY_TOLD: usize = 5;

/// A question under way.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) until: Millis,
    at: Millis,
    usd: f64,
}

impl Engine {
    /// Asks the AI, if the guards let us; else the person is told.
    pub(super) fn ask(&mut self, key: &Key) {
        let now = self.now;
        let Some(model) = self.policy.ai_model.clone() else { return self.give_up(key, None) };
        let Some(active) = self.active.get(key) else { return };
        let incident = active.incident.id;
        let user = self.report(key);
        let (input, output) = prompt::tokens_max(&user);
        let usd = self.cost(&model, input, output);
        if let Err(refusal) = self.guards.may_ask(now, usd, self.policy.ai_monthly_usd_max) {
            return self.give_up(key, Some(refusal.text().to_owned()));
        }
        self.guards.asked(now, usd);
        let until = now + prompt::TIMEOUT_MS + SLACK_MS;
        if let Some(active) = self.active.get_mut(key) {
            active.asked = Some(Asked { until, at: now, usd });
            // What it advises is tried; it is not asked again about the same.
            active.may_ask = false;
            words::step(&mut active.incident, now, format!("the AI is asked ({model})"));
        }
        self.due = self.due.min(until);
        self.record(key);
        self.push(Directive::Diagnose(Diagnose {
            incident,
            model,
            system: prompt::SYSTEM.to_owned(),
            user,
            max_tokens: prompt::ANSWER_TOKENS_MAX,
            temperature: prompt::TEMPERATURE,
            timeout_ms: prompt::TIMEOUT_MS,
        }));
    }

    /// The AI has answered, or not. Says whether anybody waited for it; what it cost is counted in any case.
    pub fn diagnosis(&mut self, now: Millis, incident: IncidentId, answer: Answer) -> bool {
        self.advance(now);
        let now = self.now;
        let key = self.active.iter().find(|(_, active)| active.incident.id == incident).map(|(key, _)| key.clone());
        let Some(key) = key else { return false };
        let Some(asked) = self.active.get_mut(&key).and_then(|active| active.asked.take()) else { return false };
        self.revision += 1;
        let (text, tokens) = match answer {
            Answer::None(why) => {
                self.no_diagnosis(&key, &words::redacted(&why));
                return true;
            }
            Answer::Text { text, input_tokens, output_tokens } => (text, input_tokens.zip(output_tokens)),
        };
        if let (Some((input, output)), Some(model)) = (tokens, self.policy.ai_model.clone()) {
            let usd = self.cost(&model, input, output);
            self.guards.billed(asked.at, now, asked.usd, usd, (input, output));
        }
        let choice = match prompt::parse_answer(&text) {
            Ok(choice) => choice,
            Err(why) => {
                self.no_diagnosis(&key, &format!("its answer cannot be used: {why}"));
                return true;
            }
        };
        let because = format!("the AI: {}", choice.reason);
        let Some(active) = self.active.get_mut(&key) else { return true };
        let said =
            format!("the AI advises {} ({:.0} % sure): {}", choice.action, choice.confidence * 100.0, choice.reason);
        words::step(&mut active.incident, now, said);
        if active.tried.contains(&choice.action) {
            self.give_up(&key, Some(format!("the AI advises {}, which was tried already", choice.action)));
        } else if choice.confidence < self.policy.ai_confidence_min {
            let why = Some(format!("{because}; it is not sure"));
            self.alert(
                &key,
                Alert { level: Level::Important, action: Some(choice.action), why, hint: None, asks: None },
            );
        } else if choice.action == Action::AlertUser {
            self.give_up(&key, Some(because));
        } else {
            let actions = vec![choice.action];
            self.decide(&key, &Decision { actions, tier: Tier::Ai, because, at_once: false, mode: Mode::Auto });
        }
        true
    }

    pub(super) fn no_diagnosis(&mut self, key: &Key, why: &str) {
        if let Some(active) = self.active.get_mut(key) {
            active.asked = None;
        }
        self.give_up(key, Some(format!("the AI was asked: {why}")));
    }

    /// Dollars for a question.
    fn cost(&self, model: &str, input_tokens: u64, output_tokens: u64) -> f64 {
        if self.policy.ai_is_local {
            return 0.0;
        }
        let Some(price) = self.tables.price(model) else { return 0.0 };
        #[expect(clippy::cast_precision_loss, reason = "tokens of one question")]
        let usd = |tokens: u64, per_mtok: f64| tokens as f64 * per_mtok / 1e6;
        usd(input_tokens, price.input_usd_per_mtok) + usd(output_tokens, price.output_usd_per_mtok)
    }

    fn report(&self, key: &Key) -> String {
        use Observation as O;
        let now = self.now;
        let Some(active) = self.active.get(key) else { return String::new() };
        let incident = &active.incident;
        let about = self.about.get(&key.endpoint);
        let facts = about.map(|about| &about.facts);
        let fault = self.row(key).map_or("unknown", |row| row.name.as_str());
        let id = incident.fault.map_or("-", |fault| fault.name());
        let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "unknown".to_owned());
        let uptime =
            facts.and_then(|facts| facts.started_at_ms).map(|at| format!("{} s", now.saturating_sub(at) / 1000));
        let n = |what: &[O]| about.map_or(0, |about| about.n_recent(now, what));
        let errors = about.map_or_else(Vec::new, |about| {
            let line = |(age, what, detail): (u64, O, &str)| format!("- {} s ago: {what}: {detail}", age / 1000);
            about.recent_errors(now).map(line).collect()
        });
        // The same failure, whatever the circumstances were: the report has them, and more of it says more.
        let is_same = |past: &&super::Past| general(&past.fingerprint) == general(&incident.fingerprint);
        let history = self.history.iter().rev().filter(is_same);
        let told = |past: &super::Past| {
            let result = if past.helped { "helped" } else { "did not help" };
            format!("- {} s ago: {} {result}", now.saturating_sub(past.at_ms) / 1000, past.fix())
        };
        let model = incident.model.clone().or_else(|| about.and_then(|about| about.model.clone()));
        let model = model.or_else(|| facts.map(|facts| facts.model.clone())).unwrap_or_default();
        let health = match about {
            Some(about) if about.is_unhealthy => "not healthy",
            Some(_) => "alive",
            None => "unknown",
        };
        let sessions =
            facts.map(|facts| facts.sessions.iter().take(SESSIONS_TOLD).map(String::as_str).collect::<Vec<_>>());
        let report = Report {
            time: format!("{now} ms since 1970"),
            session: sessions.filter(|sessions| !sessions.is_empty()).map_or("none".to_owned(), |ids| ids.join(", ")),
            incident: format!("{id} ({fault}), {}, seen {} times", incident.fingerprint, incident.n_signals),
            proxy: format!(
                "{health}, port {}, uptime {}, memory {}",
                or_unknown(facts.and_then(|facts| facts.port).map(|port| port.to_string())),
                or_unknown(uptime),
                or_unknown(about.and_then(|about| about.memory_bytes).map(|bytes| format!("{} MB", bytes >> 20))),
            ),
            upstream: format!(
                "{}, model {model}, last HTTP status {}, last error: {}",
                facts.map_or("unknown", |facts| facts.base_url.as_str()),
                or_unknown(about.and_then(|about| about.last_status).map(|status| status.to_string())),
                active.detail,
            ),
            errors,
            parser: format!(
                "parsed_tool_calls=0: {}, stuck_recovery_count: {}, sanitizer_flags: {}",
                n(&[O::ParserEmpty, O::FormatUnknown, O::ExploreAgentBare]),
                n(&[O::StuckRecovery]),
                n(&[O::CommandWrapped, O::CommandSuspicious, O::CommandEmpty]),
            ),
            provider: format!("{}, {model}", facts.map_or("unknown", |facts| facts.backend.as_str())),
            tried: active.tried.iter().map(ToString::to_string).collect(),
            history: history.take(HISTORY_TOLD).map(told).collect(),
        };
        report.text()
    }
}
