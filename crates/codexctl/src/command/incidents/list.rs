//! `codexctl incidents [list]`

use codex_control::incident::{Incident, IncidentState};
use codex_control::rpc::IncidentListParams;
use codex_control::tables::incident::IncidentTables;

use super::{ListArguments, done, fault_name, follow, icon, result, tables};
use crate::client::CALL_TIMEOUT;
use crate::failure::Failure;
use crate::moment::Moments;
use crate::since::Since;
use crate::text;
use crate::{Context, daemon};

/// Lists incidents, the newest first
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  codexctl incidents list
  codexctl incidents list --since 24h --json")]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) list: ListArguments,
}

pub(super) fn run(ctx: &Context, arguments: &ListArguments) -> Result<(), Failure> {
    let mut client = daemon::connect(ctx)?;
    if arguments.follow {
        // Subscribed before the first look, so that nothing between them is missed.
        client.call_raw("events.subscribe", (), CALL_TIMEOUT)?;
    }
    let asked = IncidentListParams {
        since_ms: arguments.since.at_ms(text::now_ms()),
        endpoint: arguments.endpoint.clone(),
        ..IncidentListParams::default()
    };
    let incidents: Vec<Incident> = client.call("incident.list", asked, CALL_TIMEOUT)?;
    let tables = tables(ctx);
    ctx.output.show(&incidents, || shown(&incidents, arguments.since, &tables, &Moments::now()))?;
    if arguments.follow { follow::run(ctx, &mut client, arguments.endpoint.as_ref(), &tables) } else { Ok(()) }
}

fn shown(incidents: &[Incident], since: Since, tables: &IncidentTables, moments: &Moments) -> String {
    if incidents.is_empty() {
        return format!("nothing went wrong {}\n", since.words());
    }
    let count = |is: fn(IncidentState) -> bool| incidents.iter().filter(|incident| is(incident.state)).count();
    let n_open = count(|state| state == IncidentState::Open);
    let n_needs = count(|state| state == IncidentState::Alerted);
    let mut head = format!(
        "{} {}: {} over",
        text::count(incidents.len(), "incident"),
        since.words(),
        count(IncidentState::is_closed)
    );
    let need = if n_needs == 1 { "needs you" } else { "need you" };
    for (n, what) in [(n_open, "being dealt with"), (n_needs, need)] {
        if n > 0 {
            head = format!("{head}, {n} {what}");
        }
    }
    let rows: Vec<[String; 6]> = incidents
        .iter()
        .map(|incident| {
            [
                moments.short(incident.opened_at_ms),
                incident.endpoint.as_ref().map(ToString::to_string).unwrap_or_default(),
                fault_name(incident, tables),
                done(incident),
                result(incident),
                incident.id.to_string(),
            ]
        })
        .collect();
    let table = text::table(["WHEN", "ENDPOINT", "WHAT", "DONE", "RESULT", "ID"], &rows);
    // Marks have different widths in different terminals: they stand in front, where they push nothing aside.
    let marks = std::iter::once("  ").chain(incidents.iter().map(icon));
    let lines = marks.zip(table.lines()).fold(String::new(), |all, (mark, line)| all + mark + " " + line + "\n");
    let more = match incidents.iter().find(|incident| incident.state == IncidentState::Alerted) {
        Some(incident) => format!("\n`codexctl incidents show {}` tells what you can do\n", incident.id),
        None => String::new(),
    };
    format!("{head}\n\n{lines}{more}")
}

#[cfg(test)]
mod tests {
    use codex_control::incident::{
        Action, ActionId, Attempt, AttemptState, Fault, IncidentId, Observation, Step, Tier,
    };

    use super::*;

    fn incident(
        id: u64,
        fault: Fault,
        state: IncidentState,
        attempt: Option<(Action, Tier, AttemptState)>,
    ) -> Incident {
        let opened_at_ms = 1_795_000_000_000 + id * 600_000;
        let attempts = attempt.map(|(action, tier, state)| Attempt {
            id: ActionId(id),
            action,
            then: None,
            tier,
            because: "why".to_owned(),
            decided_at_ms: opened_at_ms,
            state,
            done_at_ms: None,
            ended_at_ms: None,
            result: String::new(),
        });
        Incident {
            id: IncidentId(id),
            fault: Some(fault),
            what: Observation::WorkerKilled,
            fingerprint: "f".to_owned(),
            endpoint: Some("zai".parse().unwrap()),
            model: None,
            opened_at_ms,
            changed_at_ms: opened_at_ms + 2_100,
            closed_at_ms: state.is_closed().then_some(opened_at_ms + 2_100),
            state,
            n_signals: 1,
            detail: String::new(),
            attempts: attempts.into_iter().collect(),
            timeline: vec![Step { at_ms: opened_at_ms, text: "seen".to_owned() }],
        }
    }

    #[test]
    fn a_day_is_read_at_a_glance() {
        let mut told = incident(3, Fault::B3, IncidentState::Alerted, None);
        told.timeline
            .push(Step { at_ms: told.opened_at_ms, text: "you were told (alert_user_reauth): why".to_owned() });
        let seen = Incident { id: IncidentId(5), state: IncidentState::Lapsed, timeline: Vec::new(), ..told.clone() };
        let incidents = [
            seen,
            incident(
                4,
                Fault::C3,
                IncidentState::Resolved,
                Some((Action::ClearSchemaCache, Tier::Ai, AttemptState::Helped)),
            ),
            told,
            incident(
                2,
                Fault::B9,
                IncidentState::Resolved,
                Some((Action::SwitchProvider, Tier::Pattern, AttemptState::Helped)),
            ),
            incident(
                1,
                Fault::A1,
                IncidentState::Resolved,
                Some((Action::RestartProxy, Tier::Rule, AttemptState::Helped)),
            ),
        ];
        let moments = Moments::utc(1_795_000_000_000 + 3_600_000);
        let text = shown(&incidents, Since::Ms(86_400_000), &IncidentTables::embedded(), &moments);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "5 incidents in the last 24 hours: 4 over, 1 needs you");
        assert!(lines[2].starts_with("   WHEN"), "{text}");
        for (line, mark, words) in [
            (lines[3], "⚠️", "not seen any more"),
            (lines[4], "🤖", "clear_schema_cache (Tier 3)"),
            (lines[5], "⚠️", "you were told  "),
            (lines[5], "⚠️", "needs you"),
            (lines[6], "✅", "switch_provider (Tier 2)"),
            (lines[7], "✅", "restart_proxy (Tier 1)"),
        ] {
            assert!(line.starts_with(mark) && line.contains(words), "{text}");
        }
        assert!(!lines[3].contains("told"), "{text}");
        assert!(lines[7].contains("helped, over after 2.1 s"), "{text}");
        assert_eq!(lines[9], "`codexctl incidents show 3` tells what you can do");
        assert_eq!(
            shown(&[], Since::All, &IncidentTables::embedded(), &moments),
            "nothing went wrong in all the time that is kept\n"
        );
    }
}
