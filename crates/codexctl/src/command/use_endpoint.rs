//! `codexctl use ENDPOINT|--none`: Codex uses an endpoint however it is started, until it is told otherwise.
//!
//! The one command that asks before it changes a file that is not ours; what it changes is shown first.

use std::io::{self, IsTerminal};

use codex_control::EndpointId;
use codex_control::codex_config::{CodexConfig, Holder};
use serde_json::json;

use crate::failure::Failure;
use crate::{Context, codex_config, daemon, output, probe, text};

/// Name of the holder that a person is.
const HOLDER: &str = "use";

/// Points Codex at an endpoint for good, in its `config.toml`
///
/// What will be changed is shown first. The change is taken back by `--none` and by `codexctl restore`, byte for byte,
/// and whatever was edited meanwhile stays. While the supervisor is stopped the file is as it was before.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  codexctl use zai
  codexctl use zai --model glm-4.7 --yes
  codexctl use --none")]
pub(crate) struct Arguments {
    /// The endpoint, as in `codexctl endpoint list`
    #[arg(value_name = "ENDPOINT", required_unless_present = "none")]
    endpoint: Option<EndpointId>,
    /// Take the change back
    #[arg(long, conflicts_with_all = ["endpoint", "model"])]
    none: bool,
    /// The model; without it, the endpoint's default one
    #[arg(long, short, value_name = "MODEL", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    model: Option<String>,
    /// Change the file without a question
    #[arg(long, short)]
    yes: bool,
}

pub(crate) fn run(ctx: &Context, arguments: &Arguments) -> Result<(), Failure> {
    let config = CodexConfig::new(&ctx.paths);
    let Some(endpoint) = &arguments.endpoint else {
        // Where others want something of it, too, it is theirs that comes.
        if config.holders()?.iter().all(|holder| holder.id == HOLDER)
            && let Ok(preview) = config.preview(&[])
            && preview.before != preview.after
        {
            output::note(codex_config::difference(&preview).trim_end());
        }
        return show(ctx, &config, &config.release(HOLDER)?);
    };
    let mut client = daemon::connect_or_start(ctx, daemon::START_TIMEOUT)?;
    let status = probe::wake(&mut client, Some(endpoint), probe::WAKE_TIMEOUT, probe::WAKE_MARGIN)?;
    let keys = codex_config::keys(&status, arguments.model.as_deref())?;
    let preview = config.preview(&keys)?;
    if preview.before != preview.after {
        output::note(codex_config::difference(&preview).trim_end());
        if !arguments.yes && !is_confirmed(&config)? {
            return Err(Failure::new(format!("nothing was changed: `{}` is as it was", config.path().display())));
        }
    }
    let endpoint = Some(status.id.clone());
    let holder = Holder { id: HOLDER.to_owned(), endpoint, keys, processes: Vec::new(), since_ms: text::now_ms() };
    show(ctx, &config, &config.hold(holder)?)
}

fn show(ctx: &Context, config: &CodexConfig, outcome: &codex_control::codex_config::Outcome) -> Result<(), Failure> {
    if let Some(aside) = codex_config::aside(outcome) {
        ctx.output.warn(&aside, None);
    }
    let endpoint = outcome.in_force.as_ref().and_then(|holder| holder.endpoint.as_ref());
    let body = json!({ "path": config.path(), "changed": outcome.has_changed, "endpoint": endpoint });
    ctx.output.show(&body, || codex_config::told(config, outcome))
}

fn is_confirmed(config: &CodexConfig) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        let what = format!("`{}` would be changed, and nobody can be asked", config.path().display());
        return Err(Failure::new(what).hint("say `--yes` if you mean it"));
    }
    output::ask("change it?")
}
