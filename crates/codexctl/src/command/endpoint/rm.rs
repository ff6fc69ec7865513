//! `codexctl endpoint rm ENDPOINT`

use std::io::{self, IsTerminal};

use codex_control::credentials;
use codex_control::rpc::{EndpointDetail, EndpointParams};
use serde_json::{Value, json};

use crate::client::CALL_TIMEOUT;
use crate::command::EndpointArgument;
use crate::failure::Failure;
use crate::{Context, daemon, output};

/// Removes an endpoint and its stored key
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:
  codexctl endpoint rm zai --yes")]
pub(crate) struct Arguments {
    #[command(flatten)]
    endpoint: EndpointArgument,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub(crate) fn run(ctx: &Context, arguments: &Arguments) -> Result<(), Failure> {
    let id = &arguments.endpoint.id;
    let params = EndpointParams { id: id.clone() };
    let mut client = daemon::connect_or_start(ctx, daemon::START_TIMEOUT)?;
    // Asked first, so that a mistyped id is told before a question about it.
    let _: EndpointDetail = client.call("endpoint.show", &params, CALL_TIMEOUT)?;
    let has_key = ctx.paths.credential(id).exists();
    if !arguments.yes {
        let what = if has_key { format!("endpoint `{id}` and its stored key") } else { format!("endpoint `{id}`") };
        if !is_confirmed(&what)? {
            return Err(Failure::new(format!("nothing was removed: endpoint `{id}` is still there")));
        }
    }
    let _: Value = client.call("endpoint.remove", &params, CALL_TIMEOUT)?;
    let key_was_removed = credentials::remove(&ctx.paths, id).map_err(|error| Failure::from_error(&error))?;
    ctx.output.show(&json!({ "endpoint": id, "removed": true, "key_removed": key_was_removed }), || {
        if key_was_removed { format!("{id} and its stored key are removed") } else { format!("{id} is removed") }
    })
}

fn is_confirmed(what: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::new(format!("{what} would be removed, and nobody can be asked"))
            .hint("say `--yes` if you mean it"));
    }
    output::ask(&format!("remove {what}?"))
}
