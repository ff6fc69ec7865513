//! What the engine would do about a log of signals, with the rules in force or others.

use std::collections::BTreeMap;
use std::path::Path;

use codex_control::files;
use codex_control::incident::{Incident, IncidentId, Millis, Signal};
use codex_control::report::{self, Hinted};
use codex_control::rpc::{SimulateParams, Simulation};
use codex_control::tables::incident::IncidentTables;
use codex_incident::{Directive, Engine, Entry, Input, Policy, replay, signals_only};
use serde::Deserialize;

/// Largest log that is read.
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Largest file of rules that is read.
const RULES_BYTES_MAX: u64 = 1024 * 1024;
/// Incidents and notices in the answer, each: it must fit a line of the control socket.
const SHOWN_MAX: usize = 100;

/// One line of a log.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    at_ms: Millis,
    signal: Signal,
}

/// Reads the files and plays the log. Takes up to seconds: not for the task that owns the state.
///
/// # Errors
/// A message and a hint, with the line to mend.
pub(crate) fn simulate(
    asked: &SimulateParams,
    in_force: IncidentTables,
    policy: Policy,
) -> Result<Simulation, (String, Option<String>)> {
    let tables = match &asked.rules {
        Some(path) => {
            let path = Path::new(path);
            let bytes = read(path, RULES_BYTES_MAX)?;
            let tables =
                IncidentTables::with_rules(path, &bytes).map_err(|error| (report::chain(&error), error.hint()))?;
            // What would be refused when it is in force says nothing when it is played.
            if let Some(problem) = tables.check().first() {
                return Err((format!("`{}`: {problem}", path.display()), None));
            }
            tables
        }
        None => in_force,
    };
    let log = read(Path::new(&asked.log), LOG_BYTES_MAX)?;
    let mut entries = Vec::new();
    for (number, line) in (1..).zip(log.split(|byte| *byte == b'\n')) {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let Line { at_ms, signal } = serde_json::from_slice(line).map_err(|error| {
            let hint = r#"each line is like {"at_ms": 1000, "signal": {"what": "upstream-server-error", "endpoint": "zai", "value": 500}}"#;
            (format!("{}:{number}: {error}", asked.log), Some(hint.to_owned()))
        })?;
        entries.push(Entry { at_ms, input: Input::Signal(signal) });
    }
    let mut simulation = Simulation { signals: entries.len() as u64, ..Simulation::default() };
    let mut incidents: BTreeMap<IncidentId, Incident> = BTreeMap::new();
    let mut engine = Engine::new(tables, policy);
    replay(&mut engine, entries, signals_only, |at_ms, directive| match directive {
        Directive::Record(incident) => _ = incidents.insert(incident.id, *incident),
        Directive::Notify(notice) => simulation.notices.push((at_ms, notice.text)),
        Directive::Diagnose(_) => simulation.questions += 1,
        Directive::Act(_) => {}
    });
    let n_all = incidents.len() + simulation.notices.len();
    simulation.incidents = incidents.into_values().take(SHOWN_MAX).collect();
    simulation.notices.truncate(SHOWN_MAX);
    simulation.left_out = (n_all - simulation.incidents.len() - simulation.notices.len()) as u64;
    Ok(simulation)
}

fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, (String, Option<String>)> {
    match files::read_bounded(path, bytes_max) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err((format!("there is no file `{}`", path.display()), None)),
        Err(error) => Err((report::chain(&error), None)),
    }
}
