//! `codexctl endpoint default ENDPOINT`

use codex_control::rpc::EndpointParams;
use serde_json::{Value, json};

use crate::client::CALL_TIMEOUT;
use crate::command::EndpointArgument;
use crate::failure::Failure;
use crate::{Context, daemon};

/// Chooses the endpoint that is used when a command names none
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:
  codexctl endpoint default zai")]
pub(crate) struct Arguments {
    #[command(flatten)]
    endpoint: EndpointArgument,
}

pub(crate) fn run(ctx: &Context, arguments: &Arguments) -> Result<(), Failure> {
    let id = &arguments.endpoint.id;
    let mut client = daemon::connect_or_start(ctx, daemon::START_TIMEOUT)?;
    let _: Value = client.call("endpoint.default", EndpointParams { id: id.clone() }, CALL_TIMEOUT)?;
    ctx.output.show(&json!({ "default_endpoint": id }), || format!("{id} is the default endpoint"))
}
