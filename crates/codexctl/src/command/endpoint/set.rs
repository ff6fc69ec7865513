//! `codexctl endpoint set ENDPOINT KEY VALUE`

use codex_control::rpc::{EndpointStatus, SetParams};

use crate::client::CALL_TIMEOUT;
use crate::command::EndpointArgument;
use crate::failure::Failure;
use crate::{Context, daemon};

/// Changes one setting of an endpoint; comments in the file are kept
///
/// The change takes effect at once, without cutting running answers. Keys are those of `[[endpoint]]` in
/// supervisor.toml, dotted where they are nested.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  codexctl endpoint set zai default_model glm-4.7
  codexctl endpoint set zai port 41017
  codexctl endpoint set zai headers.x-title codex
  codexctl endpoint set zai --unset port")]
pub(crate) struct Arguments {
    #[command(flatten)]
    endpoint: EndpointArgument,
    /// The setting
    key: String,
    /// Its value: TOML, or a bare word
    #[arg(required_unless_present = "unset", conflicts_with = "unset", allow_hyphen_values = true)]
    value: Option<String>,
    /// Remove the setting, so that its default counts
    #[arg(long)]
    unset: bool,
}

pub(crate) fn run(ctx: &Context, arguments: &Arguments) -> Result<(), Failure> {
    let Arguments { endpoint, key, value, .. } = arguments;
    let id = &endpoint.id;
    let mut client = daemon::connect_or_start(ctx, daemon::START_TIMEOUT)?;
    let params = SetParams { id: id.clone(), key: key.clone(), value: value.clone() };
    let status: EndpointStatus = client.call("endpoint.set", params, CALL_TIMEOUT)?;
    ctx.output.show(&status, || match value {
        Some(value) => format!("{id}: {key} is now {value}"),
        None => format!("{id}: {key} is at its default"),
    })?;
    if let Some(problem) = &status.problem {
        ctx.output.warn(&problem.message, problem.hint.as_deref());
    }
    Ok(())
}
