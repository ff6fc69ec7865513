//! `codexctl incidents simulate FILE [--rules FILE]`

use std::path::{Path, PathBuf};
use std::time::Duration;

use codex_control::rpc::{SimulateParams, Simulation};
use codex_control::tables::incident::IncidentTables;

use super::{done, fault_name, result, tables};
use crate::failure::Failure;
use crate::moment::Moments;
use crate::text;
use crate::{Context, daemon};

/// A large log takes seconds.
const SIMULATE_TIMEOUT: Duration = Duration::from_mins(1);

/// Plays a log of signals and says what would be done; nothing is
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:
  codexctl incidents simulate signals.jsonl --rules my-rules.toml

Each line of the log is like
  {\"at_ms\": 1000, \"signal\": {\"what\": \"upstream-server-error\", \"endpoint\": \"zai\", \"value\": 500}}")]
pub(super) struct Arguments {
    /// The log, one JSON object a line
    log: PathBuf,
    /// Rules to try, over the built-in ones; default: those in force
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
}

pub(super) fn run(ctx: &Context, arguments: &Arguments) -> Result<(), Failure> {
    // The supervisor has another working folder.
    let absolute = |path: &Path| {
        let absolute = std::path::absolute(path).map_err(|error| Failure::from_error(&error))?;
        let text = absolute.to_str().map(str::to_owned);
        text.ok_or_else(|| Failure::new(format!("the path `{}` is not UTF-8 text", path.display())))
    };
    let params =
        SimulateParams { log: absolute(&arguments.log)?, rules: arguments.rules.as_deref().map(absolute).transpose()? };
    let simulation: Simulation =
        daemon::connect_or_start(ctx, daemon::START_TIMEOUT)?.call("incident.simulate", params, SIMULATE_TIMEOUT)?;
    let tables = tables(ctx);
    // Times of a log are its own: whose zone they are in is not known.
    ctx.output.show(&simulation, || shown(&simulation, &tables, &Moments::utc(0)))
}

fn shown(simulation: &Simulation, tables: &IncidentTables, moments: &Moments) -> String {
    let n_signals = usize::try_from(simulation.signals).unwrap_or(usize::MAX);
    let mut parts = vec![format!(
        "{}: {}, {}, {} to an AI\n",
        text::count(n_signals, "signal"),
        text::count(simulation.incidents.len(), "incident"),
        text::count(simulation.notices.len(), "notice"),
        text::count(usize::try_from(simulation.questions).unwrap_or(usize::MAX), "question")
    )];
    let rows: Vec<[String; 5]> = simulation
        .incidents
        .iter()
        .map(|incident| {
            [
                moments.exact(incident.opened_at_ms),
                incident.endpoint.as_ref().map(ToString::to_string).unwrap_or_default(),
                fault_name(incident, tables),
                done(incident),
                result(incident),
            ]
        })
        .collect();
    if !rows.is_empty() {
        parts.push(text::table(["AT", "ENDPOINT", "WHAT", "WOULD DO", "RESULT"], &rows));
    }
    for (at_ms, notice) in &simulation.notices {
        parts.push(format!("{} you would be told: {notice}\n", moments.exact(*at_ms)));
    }
    if simulation.left_out > 0 {
        parts.push(format!("{} more are not shown\n", simulation.left_out));
    }
    parts.join("\n")
}
