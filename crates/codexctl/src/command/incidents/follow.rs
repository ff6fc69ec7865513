//! `codexctl incidents --follow`: each step of each incident, as it happens.

use std::collections::BTreeMap;

use codex_control::EndpointId;
use codex_control::incident::{Incident, IncidentId, Step};
use codex_control::tables::incident::IncidentTables;

use super::{fault_name, icon};
use crate::client::Client;
use crate::failure::Failure;
use crate::moment::Moments;
use crate::text::told;
use crate::{Context, output};

/// Incidents whose last step is remembered; a longer memory would only repeat fewer lines.
const INCIDENTS_MAX: usize = 1024;

pub(super) fn run(
    ctx: &Context,
    client: &mut Client,
    endpoint: Option<&EndpointId>,
    tables: &IncidentTables,
) -> Result<(), Failure> {
    let mut followed = Followed::default();
    loop {
        let event = client.next_event()?;
        if endpoint.is_some_and(|endpoint| event.endpoint.as_ref() != Some(endpoint)) {
            continue;
        }
        match event.kind.as_str() {
            "incident" | "incident.notice" if ctx.output.json => output::json_line(&event)?,
            "incident" => {
                // A newer supervisor may say more than this program knows: then there is nothing to show.
                let Ok(incident) = serde_json::from_value::<Incident>(event.detail) else { continue };
                for step in followed.news(&incident) {
                    output::plain(&line(&incident, &step, tables, &Moments::now()))?;
                }
            }
            "incident.notice" => {
                output::plain(&told(&format!("⚠️ {}", event.message), event.detail["hint"].as_str()))?;
            }
            _ => {}
        }
    }
}

fn line(incident: &Incident, step: &Step, tables: &IncidentTables, moments: &Moments) -> String {
    let endpoint = incident.endpoint.as_ref().map(|id| format!(" {id}")).unwrap_or_default();
    let name = fault_name(incident, tables);
    format!("{} {} #{}{endpoint} {name}: {}\n", icon(incident), moments.exact(step.at_ms), incident.id, step.text)
}

/// What was shown already.
#[derive(Default)]
struct Followed {
    shown: BTreeMap<IncidentId, (u64, usize)>,
}

impl Followed {
    /// The steps of `incident` that were not shown yet.
    fn news(&mut self, incident: &Incident) -> Vec<Step> {
        let (at_ms, n_there) = self.shown.get(&incident.id).copied().unwrap_or_default();
        // Steps come in order; several may stand at one moment.
        let n_same = incident.timeline.iter().filter(|step| step.at_ms == at_ms).count();
        let news = incident.timeline.iter().filter(|step| step.at_ms > at_ms).cloned();
        let same = incident.timeline.iter().filter(|step| step.at_ms == at_ms).skip(n_there.min(n_same)).cloned();
        let news: Vec<Step> = same.chain(news).collect();
        if let Some(last) = incident.timeline.last() {
            let n_last = incident.timeline.iter().filter(|step| step.at_ms == last.at_ms).count();
            self.shown.insert(incident.id, (last.at_ms, n_last));
        }
        while self.shown.len() > INCIDENTS_MAX {
            self.shown.pop_first();
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_is_shown_once() {
        let step = |at_ms, text: &str| Step { at_ms, text: text.to_owned() };
        let mut incident: Incident = serde_json::from_value(serde_json::json!({
            "id": 1, "fault": "A1", "what": "worker-killed", "fingerprint": "f", "endpoint": "zai", "model": null,
            "opened_at_ms": 1, "changed_at_ms": 1, "closed_at_ms": null, "state": "open", "n_signals": 1, "detail": "",
            "attempts": [], "timeline": [],
        }))
        .unwrap();
        let mut followed = Followed::default();
        let mut texts = |incident: &Incident| -> Vec<String> {
            followed.news(incident).into_iter().map(|step| step.text).collect()
        };
        incident.timeline = vec![step(5, "a"), step(5, "b")];
        assert_eq!(texts(&incident), ["a", "b"]);
        incident.timeline.extend([step(5, "c"), step(6, "d")]);
        assert_eq!(texts(&incident), ["c", "d"]);
        assert!(texts(&incident).is_empty());
    }
}
