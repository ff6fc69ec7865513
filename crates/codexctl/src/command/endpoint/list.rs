//! `codexctl endpoint list`

use codex_control::rpc::EndpointStatus;

use crate::client::CALL_TIMEOUT;
use crate::command::status::state_name;
use crate::failure::Failure;
use crate::{Context, daemon, text};

/// Lists the endpoints
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:
  codexctl endpoint list")]
pub(crate) struct Arguments {}

pub(crate) fn run(ctx: &Context) -> Result<(), Failure> {
    let mut client = daemon::connect_or_start(ctx, daemon::START_TIMEOUT)?;
    let endpoints: Vec<EndpointStatus> = client.call("endpoint.list", (), CALL_TIMEOUT)?;
    ctx.output.show(&endpoints, || {
        if endpoints.is_empty() {
            return "no endpoint yet: `codexctl endpoint add --preset PRESET` adds one, `codexctl presets` lists the presets"
                .to_owned();
        }
        let rows: Vec<[String; 5]> = endpoints
            .iter()
            .map(|endpoint| {
                [
                    format!("{}{}", endpoint.id, if endpoint.is_default { " (default)" } else { "" }),
                    endpoint.provider.clone(),
                    endpoint.default_model.clone().unwrap_or_default(),
                    state_name(endpoint.state).to_owned(),
                    endpoint.address.map(|address| address.to_string()).unwrap_or_default(),
                ]
            })
            .collect();
        text::table(["ENDPOINT", "PROVIDER", "MODEL", "STATE", "ADDRESS"], &rows)
    })
}
