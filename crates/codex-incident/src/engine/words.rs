//! What stands in timelines and messages, and fingerprints.

use std::fmt::Write;

use codex_control::incident::{Incident, Millis, Observation, STEPS_MAX, Signal, Step};
use codex_control::redact;
use codex_control::tables::incident::{FaultRow, Rule, is_tag};

use super::about::{self, About};
use crate::patterns::CIRCUMSTANCES;

/// The states of HTTP that providers use for errors, and that a fix may depend on.
const COMMON_STATUS: &[u64] = &[400, 401, 402, 403, 404, 408, 413, 422, 429, 500, 502, 503, 504, 529];

/// Adds a step to the timeline; when it is full, one of the middle goes.
pub(super) fn step(incident: &mut Incident, at_ms: Millis, text: String) {
    incident.changed_at_ms = at_ms;
    if incident.timeline.len() >= STEPS_MAX {
        incident.timeline.remove(STEPS_MAX / 2);
    }
    incident.timeline.push(Step { at_ms, text });
}

/// An excerpt without what looks like a secret.
pub(super) fn redacted(detail: &str) -> String {
    redact::redact(detail).into_owned()
}

/// The fingerprint by which a fix is remembered: the fault's category, what its signal says, how often; and after an `@`
/// the circumstances, see [`circumstances`].
pub(super) fn fingerprint(row: Option<&FaultRow>, signal: &Signal, count: u32, about: Option<&About>) -> String {
    let mut text = row.map_or_else(|| tag(signal.what.name()), |row| row.category.clone());
    let mut tags: Vec<&str> = signal.tags.iter().map(String::as_str).collect();
    tags.sort_unstable();
    tags.dedup();
    let repeat = match count {
        0..3 => None,
        3..5 => Some("repeat_3x"),
        5..10 => Some("repeat_5x"),
        _ => Some("repeat_10x"),
    };
    for tag in tags.into_iter().chain(repeat) {
        text.push('+');
        text.push_str(tag);
    }
    for (index, tag) in circumstances(row, signal, about).iter().enumerate() {
        text.push(if index == 0 { CIRCUMSTANCES } else { '+' });
        text.push_str(tag);
    }
    text
}

/// What tells two failures of the same name apart, as far as another fix may help: which sign of the fault it was, the
/// HTTP status, the wire protocol and the provider, whether the worker was well, whether the backup's provider was used.
///
/// All of it comes from closed lists or the person's settings: nothing that a provider or a model writes gets in, and
/// there are no more fingerprints than endpoints times faults times a few.
fn circumstances(row: Option<&FaultRow>, signal: &Signal, about: Option<&About>) -> Vec<String> {
    let mut tags = Vec::new();
    if row.is_some_and(|row| row.signs.len() > 1) {
        tags.push(tag(signal.what.name()));
    }
    if let Some(status) = status(signal) {
        tags.push(status);
    }
    if let Some(about) = about {
        tags.push(tag(&about.facts.backend));
        tags.push(tag(&about.facts.provider));
        if about.is_unhealthy {
            tags.push("worker_unhealthy".to_owned());
        }
        if about.facts.route.is_some() {
            tags.push("on_backup".to_owned());
        }
    }
    tags.retain(|tag| is_tag(tag));
    tags.sort_unstable();
    tags.dedup();
    tags
}

/// The HTTP status a signal speaks of; of a rare one only its class, so that a provider cannot make up many.
fn status(signal: &Signal) -> Option<String> {
    match signal.value.filter(|_| about::has_status(signal.what))? {
        status if COMMON_STATUS.contains(&status) => Some(format!("http_{status}")),
        400..500 => Some("http_4xx".to_owned()),
        500..600 => Some("http_5xx".to_owned()),
        _ => None,
    }
}

/// A name as a tag.
fn tag(name: &str) -> String {
    name.replace('-', "_")
}

/// The first step: what was seen.
pub(super) fn seen(signal: &Signal) -> String {
    let mut text = format!("seen: {}", signal.what);
    match (signal.value, signal.limit) {
        (Some(value), Some(limit)) => _ = write!(text, " {value} (limit {limit})"),
        (Some(value), None) => _ = write!(text, " {value}"),
        (None, _) => {}
    }
    if !signal.detail.is_empty() {
        text.push_str(": ");
        text.push_str(&redacted(&signal.detail));
    }
    text
}

/// Why a rule acts.
pub(super) fn because(rule: &Rule) -> String {
    match (rule.count, rule.window_s) {
        (1, _) => format!("rule `{}`", rule.id),
        (count, 0) => format!("rule `{}`: {count} in a row", rule.id),
        (count, window_s) => format!("rule `{}`: {count} within {window_s} s", rule.id),
    }
}

/// The rule that the words of an attempt name, as in "rule `x`: …"; `None` if it is none.
pub fn rule_of(because: &str) -> Option<&str> {
    because.strip_prefix("rule `")?.split_once('`').map(|(id, _)| id)
}

/// What has shown that an action helped.
pub(super) fn proof(by: Observation) -> String {
    format!("it helped: {by} was seen")
}

/// What has shown that it is over.
pub(super) fn passed(by: Observation) -> String {
    format!("over: {by} was seen")
}

/// What a person reads, and what they can do.
pub(super) fn message(row: Option<&FaultRow>, incident: &Incident, detail: &str) -> (String, Option<String>) {
    let Some(row) = row else {
        let endpoint = incident.endpoint.as_ref().map_or(String::new(), |endpoint| format!(" with `{endpoint}`"));
        let text = format!("something{endpoint} is wrong that has no name: {}", or_unknown(&redacted(detail)));
        return (text, None);
    };
    let endpoint = incident.endpoint.as_ref().map_or("the endpoint", |endpoint| endpoint.as_str());
    let model = incident.model.as_deref().unwrap_or("the model");
    let detail = redacted(detail);
    let filled = |template: &str| {
        let text = template.replace("{endpoint}", endpoint).replace("{model}", model);
        text.replace("{detail}", or_unknown(&detail))
    };
    (filled(&row.says), row.hint.as_deref().map(filled))
}

fn or_unknown(detail: &str) -> &str {
    if detail.is_empty() { "no details" } else { detail }
}
