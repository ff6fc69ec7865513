//! `codexctl logout ENDPOINT`

use codex_control::credentials;
use serde_json::json;

use crate::Context;
use crate::failure::Failure;

/// Removes the stored key of an endpoint
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:
  codexctl logout zai")]
pub(crate) struct Arguments {
    #[command(flatten)]
    endpoint: super::EndpointArgument,
}

pub(crate) fn run(ctx: &Context, arguments: &Arguments) -> Result<(), Failure> {
    let id = &arguments.endpoint.id;
    let was_stored = credentials::remove(&ctx.paths, id).map_err(|error| Failure::from_error(&error))?;
    ctx.output.show(&json!({ "endpoint": id, "removed": was_stored }), || {
        if was_stored { format!("the stored key of {id} is removed") } else { format!("{id} had no stored key") }
    })
}
