//! The first system's `incident-store.json`: read and written, so that what was learned there is not lost.
//!
//! ```json
//! {"version": 1, "incidents": {"server_error+repeat_3x": {"fault_ids": ["B2"], "fix": "switch_provider",
//!  "source": "tier1_rule", "success_count": 2, "fail_count": 0, "last_seen": "2026-05-22T14:00:00Z",
//!  "auto_applied": true}}, "ai_diagnostic_calls": 0, "tokens_used": 0, "cost_usd": 0.0}
//! ```
//! An older form has a list of incidents with `pattern`, `success_rate` and `occurrences` instead of the counts.

use std::collections::BTreeMap;

use codex_control::incident::{Fault, Millis};
use codex_control::rpc::Imported;
use codex_incident::{Engine, Fix, Known, PATTERNS_MAX};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest name of a pattern, in bytes: a failure with all its circumstances.
const PATTERN_BYTES_MAX: usize = 400;

/// The file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Store {
    version: u32,
    incidents: Value,
    ai_diagnostic_calls: u64,
    tokens_used: u64,
    cost_usd: f64,
}

/// One entry, in either form.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Entry {
    #[serde(skip_serializing_if = "Option::is_none")]
    pattern: Option<String>,
    fault_ids: Vec<Fault>,
    fix: String,
    source: String,
    success_count: u64,
    fail_count: u64,
    /// RFC 3339.
    last_seen: Option<String>,
    auto_applied: bool,
    #[serde(skip_serializing)]
    success_rate: Option<f64>,
    #[serde(skip_serializing)]
    occurrences: Option<u64>,
}

/// What the engine knows, in the first system's form.
pub(crate) fn export(engine: &Engine, now: Millis) -> Value {
    let spending = engine.guards().spending(now);
    let mut incidents: BTreeMap<&str, (f64, Entry)> = BTreeMap::new();
    for known in engine.patterns().iter() {
        let bound = known.lower_bound(now);
        // The form has one fix for a pattern: the best one.
        if incidents.get(known.fingerprint.as_str()).is_some_and(|(best, _)| *best >= bound) {
            continue;
        }
        let seen_at = i64::try_from(known.seen_at_ms).ok().filter(|at_ms| *at_ms > 0);
        let entry = Entry {
            fault_ids: known.faults.clone(),
            fix: known.what().to_string(),
            source: known.source.clone(),
            success_count: known.success_count,
            fail_count: known.fail_count,
            last_seen: seen_at.and_then(|at_ms| Timestamp::from_millisecond(at_ms).ok()).map(|at| at.to_string()),
            auto_applied: true,
            ..Entry::default()
        };
        incidents.insert(&known.fingerprint, (bound, entry));
    }
    let incidents: BTreeMap<&str, Entry> = incidents.into_iter().map(|(name, (_, entry))| (name, entry)).collect();
    let store = Store {
        version: 1,
        incidents: serde_json::to_value(incidents).unwrap_or_default(),
        ai_diagnostic_calls: spending.n_calls,
        tokens_used: spending.input_tokens + spending.output_tokens,
        cost_usd: spending.usd,
    };
    serde_json::to_value(store).unwrap_or_default()
}

/// Takes over what `store` knows and the engine does not. What was counted there counts as evidence here, no more than
/// our own outcomes do; what it has cost stays where it was spent.
///
/// # Errors
/// A sentence, when it is no incident store at all.
pub(crate) fn import(engine: &mut Engine, store: Value, now: Millis) -> Result<Imported, String> {
    let store: Store = serde_json::from_value(store).map_err(|error| format!("it is no incident store: {error}"))?;
    let entries: Vec<(String, Value)> = match store.incidents {
        Value::Object(named) => named.into_iter().collect(),
        Value::Array(listed) => listed.into_iter().map(|entry| (String::new(), entry)).collect(),
        _ => return Err("it is no incident store: `incidents` is missing".to_owned()),
    };
    let mut imported = Imported::default();
    for (name, entry) in entries {
        match known(&name, entry, now) {
            Ok(known) if imported.patterns >= PATTERNS_MAX as u64 => {
                imported.left_out.push(format!("`{}`: there are more than {PATTERNS_MAX}", known.fingerprint));
            }
            Ok(known) if engine.patterns().iter().any(|ours| is_same(ours, &known)) => {
                imported.left_out.push(format!("`{}`: known already", known.fingerprint));
            }
            Ok(known) => {
                engine.add_pattern(known);
                imported.patterns += 1;
            }
            Err(reason) => imported.left_out.push(reason),
        }
    }
    Ok(imported)
}

fn is_same(ours: &Known, theirs: &Known) -> bool {
    ours.fingerprint == theirs.fingerprint && ours.what() == theirs.what() && ours.seen_at_ms >= theirs.seen_at_ms
}

fn known(name: &str, entry: Value, now: Millis) -> Result<Known, String> {
    let entry: Entry = serde_json::from_value(entry).map_err(|error| format!("`{name}`: {error}"))?;
    // `a + b` in the older form; tags stand without spaces and in one order here.
    let name = entry.pattern.as_deref().unwrap_or(name);
    let fingerprint: String = name.chars().filter(|character| !character.is_whitespace()).collect();
    if fingerprint.is_empty() || fingerprint.len() > PATTERN_BYTES_MAX {
        return Err(format!("`{fingerprint}`: that is no name of a pattern"));
    }
    let fix: Fix = entry.fix.parse().map_err(|_| format!("`{fingerprint}`: its fix `{}` is unknown", entry.fix))?;
    let (success_count, fail_count) = match (entry.success_rate, entry.occurrences) {
        (Some(rate), Some(n)) if entry.success_count == 0 && entry.fail_count == 0 => {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "a share of a count, clamped to it"
            )]
            let successes = ((rate.clamp(0.0, 1.0) * n as f64).round() as u64).min(n);
            (successes, n - successes)
        }
        _ => (entry.success_count, entry.fail_count),
    };
    let seen_at = entry.last_seen.map(|at| at.parse::<Timestamp>()).transpose();
    let seen_at = seen_at.map_err(|error| format!("`{fingerprint}`: {error}"))?;
    let seen_at_ms = seen_at.and_then(|at| u64::try_from(at.as_millisecond()).ok()).unwrap_or_default().min(now);
    #[expect(clippy::cast_precision_loss, reason = "weights; counts beyond 2^53 do not happen")]
    let weight = |count: u64| count as f64;
    Ok(Known {
        fingerprint,
        fix: fix.action,
        then: fix.then,
        stated: None,
        faults: entry.fault_ids,
        source: entry.source,
        successes: weight(success_count),
        failures: weight(fail_count),
        success_count,
        fail_count,
        failures_in_a_row: 0,
        seen_at_ms,
        used_at_ms: now,
    })
}

#[cfg(test)]
mod tests {
    use codex_control::tables::incident::IncidentTables;
    use codex_incident::Policy;
    use serde_json::json;

    use super::*;

    const NOW: Millis = 1_795_000_000_000;

    fn engine() -> Engine {
        let mut engine =
            Engine::new(IncidentTables { patterns: Vec::new(), ..IncidentTables::embedded() }, Policy::default());
        assert_eq!(engine.poll(NOW), None, "it knows what time it is");
        engine
    }

    #[test]
    fn what_was_exported_is_imported() {
        let theirs = json!({
            "version": 1,
            "incidents": {
                "server_error+repeat_3x": {
                    "fault_ids": ["B2"], "fix": "switch_provider", "source": "tier1_rule", "success_count": 9,
                    "fail_count": 1, "last_seen": "2026-05-22T14:00:00Z", "auto_applied": true,
                },
            },
            "ai_diagnostic_calls": 3, "tokens_used": 10, "cost_usd": 0.1,
        });
        let mut engine = engine();
        let imported = import(&mut engine, theirs.clone(), NOW).unwrap();
        assert_eq!(imported, Imported { patterns: 1, left_out: Vec::new() });
        let ours = export(&engine, NOW);
        assert_eq!(ours["incidents"], theirs["incidents"]);
        assert_eq!(ours["cost_usd"], 0.0, "what was spent elsewhere is not ours");
        let again = import(&mut engine, ours, NOW).unwrap();
        assert_eq!((again.patterns, again.left_out.len()), (0, 1), "nothing counts twice");
    }

    #[test]
    fn the_older_form_is_understood_and_the_rest_is_told() {
        let store = json!({ "incidents": [
            { "pattern": "cc_stream_ended_empty + explore_agent + no_url", "fix": "synth_explore_from_last_user_urls",
              "source": "FIX-23", "success_rate": 0.8, "last_seen": "2026-05-22T16:00:00Z", "occurrences": 5 },
            { "pattern": "x", "fix": "rm -rf" },
            { "fix": "ignore" },
            { "pattern": "y", "fix": "ignore", "fault_ids": ["Z9"] },
        ]});
        let mut engine = engine();
        let imported = import(&mut engine, store, NOW).unwrap();
        assert_eq!((imported.patterns, imported.left_out.len()), (1, 3), "{imported:?}");
        let known = engine.patterns().iter().next().unwrap();
        assert_eq!(known.fingerprint, "cc_stream_ended_empty+explore_agent+no_url");
        assert_eq!((known.success_count, known.fail_count), (4, 1));
        assert!(import(&mut engine, json!([]), NOW).is_err() && import(&mut engine, json!({}), NOW).is_err());
    }
}
