//! `codexctl token ENDPOINT`: what Codex runs at its start, after a refused token, and before it connects again.
//!
//! Printing the token is half of it: the command wakes the supervisor and the endpoint first, so that Codex heals the
//! system it depends on.
//!
//! With `--rotate` it makes another token instead. A worker sees that by itself, and a Codex that runs asks for the new
//! one before its next request, or after that was refused; so nothing has to be restarted.

use std::time::{Duration, Instant};

use codex_control::EndpointId;
use codex_control::rpc::code;
use codex_control::settings::Settings;
use codex_control::settings::edit::EditError;
use codex_control::token;
use serde_json::json;

use crate::client::CallError;
use crate::failure::Failure;
use crate::{Context, daemon, probe, text};

/// Longest time that can be asked for.
const TIMEOUT_MS_MAX: u64 = 60_000;
/// Part of the time that is kept for printing the token when nothing answers.
const RESERVE: Duration = Duration::from_millis(200);
/// Time beyond its own limit in which the supervisor says that an endpoint did not wake up.
const WAKE_MARGIN: Duration = Duration::from_millis(500);

/// Seconds for which the token before is accepted after a rotation. A Codex of ours asks for the new one before its next
/// request; this is for one that cannot ask at the moment, and for scripts that hold a copy.
const EARLIER_ACCEPTED_S: u64 = 3_600;

/// Prints the local token of an endpoint, and wakes the endpoint first
///
/// Codex runs this; the token is worth nothing beyond this machine and this user.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  codexctl token zai
  codexctl token --rotate          # another token for every endpoint; sessions that run go on
  codexctl token --rotate --now zai")]
pub(crate) struct Arguments {
    /// Id of the endpoint, as in `codexctl endpoint list`
    #[arg(value_name = "ENDPOINT", required_unless_present = "rotate")]
    endpoint: Option<EndpointId>,
    /// Make another token, for every endpoint if none is named; the one before is accepted for another hour
    #[arg(long)]
    rotate: bool,
    /// Refuse the token before at once
    #[arg(long, requires = "rotate")]
    now: bool,
    /// Milliseconds the whole command may take
    #[arg(long, value_name = "MS", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(100..=TIMEOUT_MS_MAX))]
    timeout_ms: u64,
}

pub(crate) fn run(ctx: &Context, arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.endpoint {
        Some(id) if !arguments.rotate => print(ctx, arguments, id),
        endpoint => rotate(ctx, endpoint.as_ref(), arguments.now),
    }
}

fn rotate(ctx: &Context, endpoint: Option<&EndpointId>, now: bool) -> Result<(), Failure> {
    let settings = Settings::load(&ctx.paths.settings()).map_err(|error| Failure::from_hinted(&error))?;
    let known = || settings.endpoint.iter().map(|known| &known.id);
    let chosen: Vec<&EndpointId> = match endpoint {
        Some(id) if known().any(|known| known == id) => vec![id],
        Some(id) => {
            let known = known().map(ToString::to_string).collect();
            return Err(Failure::from_hinted(&EditError::Unknown { id: id.clone(), known }));
        }
        None => known().collect(),
    };
    let now_s = text::now_ms() / 1_000;
    let until_s = if now { now_s } else { now_s + EARLIER_ACCEPTED_S };
    for id in &chosen {
        token::rotate(&ctx.paths.token(id), now_s, until_s).map_err(|error| Failure::from_error(&error))?;
    }
    let rotated = json!({ "rotated": chosen, "earlier_accepted_until_s": until_s });
    ctx.output.show(&rotated, || {
        let earlier = if now {
            "the one before is refused from now on".to_owned()
        } else {
            format!("the one before is accepted for another {}", text::duration(EARLIER_ACCEPTED_S * 1_000))
        };
        let lines = chosen.iter().map(|id| format!("{id} has another token; {earlier}\n"));
        if chosen.is_empty() { "there is no endpoint".to_owned() } else { lines.collect() }
    })
}

fn print(ctx: &Context, arguments: &Arguments, id: &EndpointId) -> Result<(), Failure> {
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
