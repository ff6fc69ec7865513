//! `codexctl endpoint test ENDPOINT`

use crate::checkup::{self, Options};
use crate::command::EndpointArgument;
use crate::failure::Failure;
use crate::{Context, daemon};

/// Tries an endpoint out: its worker, its provider, the key, and a tool call of its model
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:
  codexctl endpoint test zai")]
pub(crate) struct Arguments {
    #[command(flatten)]
    endpoint: EndpointArgument,
}

pub(crate) fn run(ctx: &Context, arguments: &Arguments) -> Result<(), Failure> {
    let mut client = daemon::connect_or_start(ctx, daemon::START_TIMEOUT)?;
    let options = Options { asks_model: true, clears_learned: false };
    let findings = checkup::endpoint(ctx, &mut client, &arguments.endpoint.id, options);
    ctx.output.show(&findings, || checkup::lines(&findings, ""))?;
    checkup::verdict(&findings)
}
