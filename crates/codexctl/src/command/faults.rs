//! `codexctl faults`

use codex_control::report::{self, Hinted};
use codex_control::rpc::IncidentCounts;
use codex_control::tables::incident::{FaultRow, IncidentTables};
use serde_json::json;

use super::rules::counts;
use crate::Context;
use crate::failure::Failure;
use crate::text;

/// Lists the failures that are known by name: how each is noticed and what shows that it is over
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  codexctl faults
  codexctl faults --json")]
pub(crate) struct Arguments {}

pub(crate) fn run(ctx: &Context) -> Result<(), Failure> {
    let (tables, problems) = IncidentTables::load_from(ctx.paths.config_folder());
    for error in &problems {
        ctx.output.warn(&report::chain(error), error.hint().as_deref());
    }
    let counts = counts(ctx);
    let answer = json!({ "faults": tables.faults, "counts": counts.faults });
    ctx.output.show(&answer, || shown(&tables.faults, &counts))
}

fn shown(faults: &[FaultRow], counts: &IncidentCounts) -> String {
    let rows: Vec<[String; 6]> = faults
        .iter()
        .map(|row| {
            let success: Vec<&str> = row.success.iter().map(|what| what.name()).collect();
            [
                row.id.to_string(),
                row.name.clone(),
                row.detected.clone(),
                success.join(", "),
                text::duration(row.within_s * 1000),
                counts.faults.get(row.id.name()).copied().unwrap_or_default().to_string(),
            ]
        })
        .collect();
    text::table(["FAULT", "NAME", "NOTICED BY", "OVER WHEN", "WITHIN", "SEEN"], &rows)
}
