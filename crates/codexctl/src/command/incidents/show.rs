//! `codexctl incidents show ID`

use codex_control::EndpointId;
use codex_control::incident::{AttemptState, Incident, IncidentId, IncidentState};
use codex_control::rpc::IncidentParams;
use codex_control::tables::incident::IncidentTables;

use super::{fault_name, icon, result, tables, tier_name};
use crate::client::CALL_TIMEOUT;
use crate::failure::Failure;
use crate::moment::Moments;
use crate::text;
use crate::{Context, daemon};

/// Shows one incident: what was seen, what was done, and what came of it, in order
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:
  codexctl incidents show 12")]
pub(super) struct Arguments {
    /// Number of the incident, as in `codexctl incidents`
    #[arg(value_name = "ID")]
    id: u64,
}

pub(super) fn run(ctx: &Context, arguments: &Arguments) -> Result<(), Failure> {
    let params = IncidentParams { id: IncidentId(arguments.id) };
    let incident: Incident = daemon::connect(ctx)?.call("incident.show", params, CALL_TIMEOUT)?;
    ctx.output.show(&incident, || shown(&incident, &tables(ctx), &Moments::now()))
}

pub(super) fn shown(incident: &Incident, tables: &IncidentTables, moments: &Moments) -> String {
    let row = incident.fault.map(|fault| tables.fault(fault));
    let mut text = format!("{} incident {}: {}", icon(incident), incident.id, fault_name(incident, tables));
    if let Some(endpoint) = &incident.endpoint {
        text = format!("{text}, on `{endpoint}`");
    }
    text = format!("{text}: {}\n", result(incident));
    if let (IncidentState::Alerted, Some(hint)) = (incident.state, row.and_then(|row| row.hint.as_ref())) {
        let endpoint = incident.endpoint.as_ref().map_or("ENDPOINT", EndpointId::as_str);
        let hint =
            hint.replace("{endpoint}", endpoint).replace("{model}", incident.model.as_deref().unwrap_or("MODEL"));
        text = format!("{text}  hint: {hint}\n");
    }
    let waiting = incident
        .attempts
        .iter()
        .find(|attempt| matches!(attempt.state, AttemptState::Planned { .. } | AttemptState::Asked));
    if let Some(attempt) = waiting {
        let id = attempt.id;
        text = format!(
            "{text}  hint: `codexctl actions cancel {id}` stops {}, `codexctl actions approve {id}` lets it happen now\n",
            attempt.action
        );
    }
    let fields = text::fields(&[
        ("began", Some(moments.long(incident.opened_at_ms))),
        (
            "seen",
            Some(format!(
                "{} ({})",
                text::count(usize::try_from(incident.n_signals).unwrap_or(usize::MAX), "time"),
                incident.what
            )),
        ),
        ("model", incident.model.clone()),
        ("pattern", Some(incident.fingerprint.clone())),
        ("detail", Some(incident.detail.clone()).filter(|detail| !detail.is_empty())),
    ]);
    let steps: Vec<[String; 3]> = incident
        .timeline
        .iter()
        .map(|step| {
            let after = text::duration(step.at_ms.saturating_sub(incident.opened_at_ms));
            [moments.exact(step.at_ms), format!("+{after}"), step.text.clone()]
        })
        .collect();
    let attempts: Vec<[String; 6]> = incident
        .attempts
        .iter()
        .map(|attempt| {
            let then = attempt.then.map(|then| format!(", {then}")).unwrap_or_default();
            let action = format!("{}{then}", attempt.action);
            let state = attempt.state.name().to_owned();
            [
                attempt.id.to_string(),
                action,
                tier_name(attempt.tier),
                attempt.because.clone(),
                state,
                attempt.result.clone(),
            ]
        })
        .collect();
    let mut parts = vec![text, fields, text::table(["WHEN", "AFTER", "WHAT"], &steps)];
    if !attempts.is_empty() {
        parts.push(text::table(["ACTION", "DONE", "BY", "BECAUSE", "STATE", "RESULT"], &attempts));
    }
    parts.join("\n")
}
