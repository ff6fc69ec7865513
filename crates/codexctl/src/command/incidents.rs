//! `codexctl incidents [list|show|export|import|simulate]`

mod export;
mod follow;
mod import;
mod list;
mod show;
mod simulate;

use clap::Subcommand;
use codex_control::EndpointId;
use codex_control::incident::{AttemptState, Incident, IncidentState, Tier};
use codex_control::tables::incident::IncidentTables;

use crate::Context;
use crate::failure::Failure;
use crate::since::Since;
use crate::text;

/// Shows what went wrong, what was done about it, and whether it helped
///
/// Without a command, lists the incidents of the last seven days. ✅ solved, ⚠️ not solved, 🤖 an AI has advised.
#[derive(Clone, Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  codexctl incidents
  codexctl incidents --since 24h --endpoint zai
  codexctl incidents --follow
  codexctl incidents show 12
  codexctl incidents export --format markdown > report.md"
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    list: ListArguments,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Which incidents.
#[derive(Clone, Debug, clap::Args)]
struct ListArguments {
    /// How far back: 30m, 24h, 7d, 4w, or `all`
    #[arg(long, value_name = "SPAN", default_value = "7d")]
    since: Since,
    /// Those of one endpoint only
    #[arg(long, value_name = "ENDPOINT")]
    endpoint: Option<EndpointId>,
    /// Go on with what happens from now on
    #[arg(long, short)]
    follow: bool,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    List(list::Arguments),
    Show(show::Arguments),
    Export(export::Arguments),
    Import(import::Arguments),
    Simulate(simulate::Arguments),
}

pub(crate) fn run(ctx: &Context, arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.command {
        None => list::run(ctx, &arguments.list),
        Some(Command::List(arguments)) => list::run(ctx, &arguments.list),
        Some(Command::Show(arguments)) => show::run(ctx, arguments),
        Some(Command::Export(arguments)) => export::run(ctx, arguments),
        Some(Command::Import(arguments)) => import::run(ctx, arguments),
        Some(Command::Simulate(arguments)) => simulate::run(ctx, arguments),
    }
}

/// The person's own tables where they have some: how faults are called.
fn tables(ctx: &Context) -> IncidentTables {
    let (tables, problems) = IncidentTables::load_from(ctx.paths.config_folder());
    for problem in &problems {
        ctx.output.warn(&problem.to_string(), Some("`codexctl rules check` tells more"));
    }
    tables
}

/// The mark at the beginning of a line, as wide as two letters.
pub(super) fn icon(incident: &Incident) -> &'static str {
    let by_ai = incident.attempts.iter().any(|attempt| attempt.tier == Tier::Ai);
    match incident.state {
        _ if by_ai => "🤖",
        IncidentState::Resolved | IncidentState::Ignored => "✅",
        IncidentState::Open | IncidentState::Alerted | IncidentState::Lapsed => "⚠️",
    }
}

/// The fault's id and name, or what was seen where it has none.
pub(super) fn fault_name(incident: &Incident, tables: &IncidentTables) -> String {
    match incident.fault {
        Some(fault) => format!("{fault} {}", tables.fault(fault).name),
        // None of the named ones: what was seen, as words.
        None => format!("unnamed: {}", incident.what.to_string().replace('-', " ")),
    }
}

/// What was done last: `restart_proxy (Tier 1)`. Where nothing could be done, that the person was told.
pub(super) fn done(incident: &Incident) -> String {
    let Some(last) = incident.attempts.iter().rfind(|attempt| attempt.state != AttemptState::Superseded) else {
        return if incident.told_at_ms().is_some() { Incident::TOLD } else { "" }.to_owned();
    };
    let then = last.then.map(|then| format!(", {then}")).unwrap_or_default();
    let earlier = match incident.attempts.len() - 1 {
        0 => String::new(),
        n => format!(", {} before", text::count(n, "other")),
    };
    format!("{}{then} ({}{earlier})", last.action, tier_name(last.tier))
}

/// `Tier 1`, or `you`.
pub(super) fn tier_name(tier: Tier) -> String {
    match tier.number() {
        0 => "you".to_owned(),
        number => format!("Tier {number}"),
    }
}

/// What came of it, in a few words.
pub(super) fn result(incident: &Incident) -> String {
    let lasted = || text::duration(incident.closed_at_ms.unwrap_or_default().saturating_sub(incident.opened_at_ms));
    let last = incident.attempts.last();
    match (incident.state, last.map(|attempt| attempt.state)) {
        (IncidentState::Resolved, Some(AttemptState::Helped)) => format!("helped, over after {}", lasted()),
        (IncidentState::Resolved, _) => format!("over after {}", lasted()),
        (IncidentState::Ignored, Some(AttemptState::Cancelled)) => "cancelled by you".to_owned(),
        (IncidentState::Ignored, Some(AttemptState::WouldHave)) => "only observed".to_owned(),
        (IncidentState::Ignored, _) => "left alone on purpose".to_owned(),
        (IncidentState::Lapsed, _) => "not seen any more".to_owned(),
        (IncidentState::Alerted, Some(AttemptState::Asked)) => "waits for your yes".to_owned(),
        (IncidentState::Alerted, _) => "needs you".to_owned(),
        (IncidentState::Open, Some(AttemptState::Planned { .. })) => "about to act".to_owned(),
        (IncidentState::Open, Some(AttemptState::Watched { .. })) => "watching whether it helps".to_owned(),
        (IncidentState::Open, _) => "open".to_owned(),
    }
}
