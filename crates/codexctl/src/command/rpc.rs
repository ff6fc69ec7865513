//! `codexctl rpc METHOD [JSON]`

use serde_json::Value;

use crate::client::CALL_TIMEOUT;
use crate::failure::Failure;
use crate::{Context, daemon, output};

use codex_control::rpc::WAKE_TIMEOUT_MS_MAX;

/// Method whose answer is followed by notifications.
const SUBSCRIBE: &str = "events.subscribe";

/// Calls any method of the supervisor and prints its result
///
/// `events.subscribe` prints each event as one line of JSON until it is interrupted.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  codexctl rpc daemon.status
  codexctl rpc endpoint.wake '{\"id\": \"zai\", \"timeout_ms\": 5000}'
  codexctl rpc events.subscribe")]
pub(crate) struct Arguments {
    /// Name of the method
    method: String,
    /// Its parameters, a JSON object
    #[arg(value_name = "JSON")]
    params: Option<String>,
}

pub(crate) fn run(ctx: &Context, arguments: &Arguments) -> Result<(), Failure> {
    let params = match &arguments.params {
        Some(text) => serde_json::from_str(text)
            .map_err(|error| Failure::usage(format!("the parameters are not JSON: {error}")))
            .and_then(|params: Value| match params {
                Value::Object(_) | Value::Null => Ok(params),
                _ => Err(Failure::usage("the parameters are not a JSON object").hint("write e.g. '{\"id\": \"zai\"}'")),
            })?,
        None => Value::Null,
    };
    let mut client = daemon::connect_or_start(ctx, daemon::START_TIMEOUT)?;
    // Any method may be called, the slowest included.
    let timeout = CALL_TIMEOUT + std::time::Duration::from_millis(WAKE_TIMEOUT_MS_MAX);
    let result = client.call_raw(&arguments.method, params, timeout)?;
    if arguments.method == SUBSCRIBE {
        loop {
            output::json_line(&client.next_event()?)?;
        }
    }
    ctx.output.show(&result, || serde_json::to_string_pretty(&result).unwrap_or_else(|_| result.to_string()))
}
