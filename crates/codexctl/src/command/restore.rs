//! `codexctl restore`: nothing of ours in any `config.toml` of Codex. Needs no supervisor.

use std::collections::BTreeSet;

use codex_control::codex_config::CodexConfig;
use serde_json::json;

use crate::failure::Failure;
use crate::{Context, codex_config};

/// Takes everything of ours out of Codex's `config.toml`
///
/// Finishes a change that was cut off, ends what `codexctl use` and sessions of Codex Desktop have put in, and keeps
/// what anybody else has edited. Works without the supervisor.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:
  codexctl restore")]
pub(crate) struct Arguments {}

pub(crate) fn run(ctx: &Context, _: &Arguments) -> Result<(), Failure> {
    let mut files = CodexConfig::remembered(&ctx.paths);
    files.push(CodexConfig::new(&ctx.paths));
    let mut seen = BTreeSet::new();
    files.retain(|config| seen.insert(config.path().to_owned()));
    let mut bodies = Vec::new();
    let mut lines = Vec::new();
    let mut failed = None;
    for config in &files {
        match config.restore() {
            Ok(outcome) => {
                if let Some(aside) = codex_config::aside(&outcome) {
                    ctx.output.warn(&aside, None);
                }
                bodies.push(json!({ "path": config.path(), "changed": outcome.has_changed }));
                lines.push(codex_config::told(config, &outcome));
            }
            // One that cannot be put right keeps no other from it.
            Err(error) => {
                if let Some(failure) = failed.replace(Failure::from(error)) {
                    let (message, hint) = failure.into_parts();
                    ctx.output.warn(&message, hint.as_deref());
                }
            }
        }
    }
    if let Some(failure) = failed {
        for line in lines {
            crate::output::note(&line);
        }
        return Err(failure);
    }
    ctx.output.show(&bodies, || lines.join("\n"))
}
