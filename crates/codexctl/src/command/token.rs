//! `codexctl token ENDPOINT`: what Codex runs at its start, after a refused token, and before it connects again.
//!
//! Printing the token is half of it: the command wakes the supervisor and the endpoint first, so that Codex heals the
//! system it depends on.

use std::time::{Duration, Instant};

use codex_control::rpc::code;
use codex_control::token;
use serde_json::json;

use crate::client::CallError;
use crate::failure::Failure;
use crate::{Context, daemon, probe};

/// Longest time that can be asked for.
const TIMEOUT_MS_MAX: u64 = 60_000;
/// Part of the time that is kept for printing the token when nothing answers.
const RESERVE: Duration = Duration::from_millis(200);
/// Time beyond its own limit in which the supervisor says that an endpoint did not wake up.
const WAKE_MARGIN: Duration = Duration::from_millis(500);

/// Prints the local token of an endpoint, and wakes the endpoint first
///
/// Codex runs this; the token is worth nothing beyond this machine and this user.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:
  codexctl token zai")]
pub(crate) struct Arguments {
    #[command(flatten)]
    endpoint: super::EndpointArgument,
    /// Milliseconds the whole command may take
    #[arg(long, value_name = "MS", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(100..=TIMEOUT_MS_MAX))]
    timeout_ms: u64,
}

pub(crate) fn run(ctx: &Context, arguments: &Arguments) -> Result<(), Failure> {
    let id = &arguments.endpoint.id;
    let deadline = Instant::now() + Duration::from_millis(arguments.timeout_ms).saturating_sub(RESERVE);
    let left = || deadline.saturating_duration_since(Instant::now());
    let woken = daemon::connect_or_start(ctx, left())
        .map_err(CallError::Lost)
        .and_then(|mut client| probe::wake(&mut client, Some(id), left().saturating_sub(WAKE_MARGIN), WAKE_MARGIN));
    if let Err(CallError::Refused(error)) = &woken
        && error.code == code::NOT_FOUND
    {
        return Err(error.clone().into());
    }
    let path = ctx.paths.token(id);
    let token = token::read_token(&path).map_err(|error| Failure::from_error(&error))?;
    match (token, woken) {
        (Some(token), woken) => {
            if let Err(error) = woken {
                // Codex gets its token all the same: it then tries by itself, for as long as it takes.
                let (message, hint) = Failure::from(error).into_parts();
                ctx.output.warn(&message, hint.as_deref());
            }
            ctx.output.show(&json!({ "endpoint": id, "token": token.expose() }), || token.expose().clone())
        }
        (None, Err(error)) => Err(error.into()),
        (None, Ok(_)) => Err(Failure::new(format!("endpoint `{id}` has no token in `{}`", path.display()))
            .hint(format!("`codexctl restart {id}` makes one"))),
    }
}
