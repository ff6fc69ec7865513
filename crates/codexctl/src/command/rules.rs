//! `codexctl rules [check]`

use clap::Subcommand;
use codex_control::report::{self, Hinted};
use codex_control::rpc::{IncidentCounts, UsageParams};
use codex_control::tables::incident::{Guard, IncidentTables, Rule};
use serde_json::json;

use crate::client::CALL_TIMEOUT;
use crate::failure::Failure;
use crate::text::{self, told};
use crate::{Context, daemon};

/// Lists the rules of tier 1: what is done at once when something known goes wrong
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  codexctl rules
  codexctl rules check    # looks for mistakes in your own tables")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Looks for mistakes in your own faults.toml, rules.toml, signatures.toml, patterns.toml and prices.toml
    #[command(after_help = "Example:
  codexctl rules check")]
    Check,
}

pub(crate) fn run(ctx: &Context, arguments: &Arguments) -> Result<(), Failure> {
    let (tables, problems) = IncidentTables::load_from(ctx.paths.config_folder());
    if let Some(Command::Check) = &arguments.command {
        let unread = problems.iter().map(|error| (report::chain(error), error.hint()));
        let wrong = tables.check().into_iter().map(|problem| (problem.to_string(), None));
        let found: Vec<(String, Option<String>)> = unread.chain(wrong).collect();
        return match &found[..] {
            [] => ctx.output.show(&json!({ "rules": tables.rules.len(), "problems": [] }), || {
                format!("{} and all other tables are sound\n", text::count(tables.rules.len(), "rule"))
            }),
            [rest @ .., (last, hint)] => {
                for (message, hint) in rest {
                    ctx.output.warn(message, hint.as_deref());
                }
                Err(Failure::new(last.clone()).hint_if(hint.clone()))
            }
        };
    }
    for error in &problems {
        ctx.output.warn(&report::chain(error), error.hint().as_deref());
    }
    let counts = counts(ctx);
    let answer = json!({ "rules": tables.rules, "counts": counts.rules });
    ctx.output.show(&answer, || shown(&tables, &counts))
}

/// What has become of them; nothing, while no supervisor runs: the tables can be read without it.
pub(super) fn counts(ctx: &Context) -> IncidentCounts {
    let asked = daemon::find(ctx)
        .ok()
        .flatten()
        .and_then(|mut client| client.call("incident.counts", UsageParams::default(), CALL_TIMEOUT).ok());
    asked.unwrap_or_default()
}

fn shown(tables: &IncidentTables, counts: &IncidentCounts) -> String {
    let rows: Vec<[String; 8]> = tables
        .rules
        .iter()
        .map(|rule| {
            let count = counts.rules.get(&rule.id).copied().unwrap_or_default();
            let actions: Vec<&str> = rule.actions.iter().map(|action| action.name()).collect();
            let cooldown = if rule.cooldown_s == 0 { String::new() } else { text::duration(rule.cooldown_s * 1000) };
            [
                rule.id.clone(),
                rule.fault.map(|fault| fault.to_string()).unwrap_or_default(),
                when(rule),
                actions.join(", "),
                cooldown,
                rule.mode.to_string(),
                count.acted.to_string(),
                count.helped.to_string(),
            ]
        })
        .collect();
    let table = text::table(["RULE", "FAULT", "WHEN", "DOES", "RESTS", "MODE", "DONE", "HELPED"], &rows);
    format!(
        "{table}\n{}",
        told("tried from top to bottom, the first that fits acts; `codexctl faults` says what the letters mean", None)
    )
}

/// How often, in which time, and what must also hold.
fn when(rule: &Rule) -> String {
    let often = match (rule.count, rule.window_s) {
        (1, _) => "once".to_owned(),
        (n, 0) => format!("{n} in a row"),
        (n, window_s) => format!("{n} in {}", text::duration(window_s * 1000)),
    };
    let guard = match rule.guard {
        Guard::None => "",
        Guard::NoSuccess => ", nothing good between",
        Guard::WorkerUnhealthy => ", worker unwell",
        Guard::NoBytes => ", nothing received",
    };
    let least = rule.value_min.map(|least| format!(", at least {least}")).unwrap_or_default();
    format!("{often}{least}{guard}")
}
