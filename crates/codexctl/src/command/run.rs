//! `codexctl start|stop|restart [ENDPOINT]`: the same three verbs for the supervisor and for one endpoint.

use std::time::Duration;

use codex_control::EndpointId;
use codex_control::rpc::{DaemonStatus, EndpointParams, EndpointStatus};
use codex_control::settings::Settings;
use serde_json::json;

use crate::client::{CALL_TIMEOUT, Client};
use crate::failure::Failure;
use crate::{Context, daemon, probe};

/// Starts the supervisor, or an endpoint that was stopped
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  codexctl start        # the supervisor
  codexctl start zai    # one endpoint")]
pub(crate) struct StartArguments {
    /// The endpoint; without it, the supervisor itself
    endpoint: Option<EndpointId>,
}

/// Stops the supervisor with everything it runs, or one endpoint
///
/// A stopped endpoint stays stopped, over restarts too, until it is started again.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  codexctl stop         # the supervisor and all endpoints
  codexctl stop zai     # one endpoint")]
pub(crate) struct StopArguments {
    /// The endpoint; without it, the supervisor itself
    endpoint: Option<EndpointId>,
}

/// Restarts the supervisor, or the worker of one endpoint
///
/// No running answer is cut: workers go on without the supervisor, and are replaced one by one where their program or
/// their settings have changed.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  codexctl restart      # the supervisor, e.g. after an upgrade
  codexctl restart zai  # one endpoint; running answers are not cut")]
pub(crate) struct RestartArguments {
    /// The endpoint; without it, the supervisor itself
    endpoint: Option<EndpointId>,
}

pub(crate) fn start(ctx: &Context, arguments: &StartArguments) -> Result<(), Failure> {
    if let Some(id) = &arguments.endpoint {
        return control(ctx, id, "endpoint.start");
    }
    match daemon::find_alive(ctx)? {
        Some(mut client) => show_daemon(ctx, &mut client, "the supervisor runs already"),
        None => show_daemon(ctx, &mut daemon::start(ctx, daemon::START_TIMEOUT)?, "the supervisor runs"),
    }
}

pub(crate) fn stop(ctx: &Context, arguments: &StopArguments) -> Result<(), Failure> {
    if let Some(id) = &arguments.endpoint {
        let status = call(ctx, &mut daemon::connect_or_start(ctx, daemon::START_TIMEOUT)?, id, "endpoint.stop")?;
        return ctx.output.show(&status, || format!("{id} is stopped; `codexctl start {id}` starts it again"));
    }
    let was_running = daemon::stop(ctx)?;
    ctx.output.show(&json!({ "running": false, "was_running": was_running }), || {
        if was_running { "the supervisor is stopped" } else { "the supervisor was not running" }.to_owned()
    })
}

pub(crate) fn restart(ctx: &Context, arguments: &RestartArguments) -> Result<(), Failure> {
    match &arguments.endpoint {
        Some(id) => control(ctx, id, "endpoint.restart"),
        None => show_daemon(ctx, &mut daemon::restart(ctx)?, "the supervisor was restarted"),
    }
}

/// Starts or restarts an endpoint and waits until it answers.
fn control(ctx: &Context, id: &EndpointId, method: &str) -> Result<(), Failure> {
    let mut client = daemon::connect_or_start(ctx, daemon::START_TIMEOUT)?;
    call(ctx, &mut client, id, method)?;
    let status = probe::wake(&mut client, Some(id), probe::WAKE_TIMEOUT, probe::WAKE_MARGIN)?;
    ctx.output.show(&status, || match status.address {
        Some(address) => format!("{id} runs at http://{address}"),
        None => format!("{id} runs"),
    })
}

fn call(ctx: &Context, client: &mut Client, id: &EndpointId, method: &str) -> Result<EndpointStatus, Failure> {
    // Ending a worker takes as long as the person lets its streams take.
    let settings = Settings::load(&ctx.paths.settings()).unwrap_or_default();
    let timeout = Duration::from_secs(settings.daemon.stop_timeout_s) + CALL_TIMEOUT;
    Ok(client.call(method, EndpointParams { id: id.clone() }, timeout)?)
}

fn show_daemon(ctx: &Context, client: &mut Client, what: &str) -> Result<(), Failure> {
    let status: DaemonStatus = client.call("daemon.status", (), CALL_TIMEOUT)?;
    ctx.output.show(&json!({ "running": true, "daemon": status }), || format!("{what} (pid {})", status.pid))
}
