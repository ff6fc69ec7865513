//! `codexctl incidents export`

use std::fmt::Write;

use clap::ValueEnum;
use codex_control::incident::{Incident, IncidentId};
use codex_control::rpc::IncidentListParams;
use codex_control::tables::incident::IncidentTables;
use serde_json::Value;

use super::{fault_name, result, show, tables};
use crate::client::{CALL_TIMEOUT, Client};
use crate::failure::Failure;
use crate::moment::Moments;
use crate::since::Since;
use crate::{Context, daemon, output, text};

/// Writes a report of incidents, whole, to standard output
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  codexctl incidents export > report.md
  codexctl incidents export --format json --since all > incidents.json
  codexctl incidents export --format store > incident-store.json")]
pub(super) struct Arguments {
    /// How far back: 30m, 24h, 7d, 4w, or `all`
    #[arg(long, value_name = "SPAN", default_value = "7d")]
    since: Since,
    /// The form: a report for people, JSON, or what was learned in the form of the original's incident-store.json
    #[arg(long, value_enum, default_value_t = Format::Markdown)]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Markdown,
    Json,
    Store,
}

pub(super) fn run(ctx: &Context, arguments: &Arguments) -> Result<(), Failure> {
    let mut client = daemon::connect(ctx)?;
    if arguments.format == Format::Store {
        let store: Value = client.call_raw("incident.store", (), CALL_TIMEOUT)?;
        return output::plain(&serde_json::to_string_pretty(&store).unwrap_or_default());
    }
    let incidents = all(&mut client, arguments.since.at_ms(text::now_ms()))?;
    if ctx.output.json || arguments.format == Format::Json {
        return output::json_line(&incidents);
    }
    output::plain(&report(&incidents, arguments.since, &tables(ctx), &Moments::now()))
}

/// Every incident since then, with its timeline, newest first.
fn all(client: &mut Client, since_ms: Option<u64>) -> Result<Vec<Incident>, Failure> {
    let mut incidents: Vec<Incident> = Vec::new();
    let mut before: Option<IncidentId> = None;
    loop {
        let asked = IncidentListParams { since_ms, before, whole: true, ..IncidentListParams::default() };
        let part: Vec<Incident> = client.call("incident.list", asked, CALL_TIMEOUT)?;
        let Some(last) = part.last() else { return Ok(incidents) };
        before = Some(last.id);
        incidents.extend(part);
    }
}

fn report(incidents: &[Incident], since: Since, tables: &IncidentTables, moments: &Moments) -> String {
    let mut report = format!("# Incidents {}\n\n", since.words());
    if incidents.is_empty() {
        report.push_str("None.\n");
    }
    for incident in incidents {
        let endpoint = incident.endpoint.as_ref().map(|id| format!("`{id}`: ")).unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = write!(
            report,
            "## {} · {endpoint}{} · {}\n\n",
            moments.long(incident.opened_at_ms),
            fault_name(incident, tables),
            result(incident)
        );
        // A fence longer than any inside, so that nothing a provider wrote can end it.
        let body = show::shown(incident, tables, moments);
        let fence = "`".repeat(longest_run(&body, '`').max(2) + 1);
        let _ = write!(report, "{fence}text\n{}\n{fence}\n\n", body.trim_end());
    }
    report
}

fn longest_run(text: &str, wanted: char) -> usize {
    text.split(|character| character != wanted).map(str::len).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_is_longer_than_what_it_holds() {
        assert_eq!((longest_run("", '`'), longest_run("a`b```c", '`')), (0, 3));
        let none = report(&[], Since::All, &IncidentTables::embedded(), &Moments::utc(0));
        assert_eq!(none, "# Incidents in all the time that is kept\n\nNone.\n");
    }
}
