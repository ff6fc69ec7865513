//! `codexctl launch cli|desktop`: Codex on one of our endpoints, or on its own login.
//!
//! The endpoint is woken and must be healthy before Codex starts. Then this process stays as its parent
//! ([`crate::session`]); the person's terminal, signals and exit code are Codex's own.
//!
//! The CLI is told on its command line, given before the person's own arguments: all of its commands take that (`exec`,
//! `resume`, `review`, the TUI), the person's own `-c` wins over it, and it wins over every configuration file. It also
//! keeps Codex from going through its background daemon, which would use the environment and configuration of its own
//! first start. Codex Desktop has no such command line: for it the keys stand in Codex's `config.toml` as long as it
//! runs.

mod desktop;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, ExitCode};

use clap::Subcommand;
use codex_control::EndpointId;
use codex_control::codex_config::{CodexConfig, Holder, Key};
use codex_control::environment;
use codex_control::files;
use codex_control::process::{self, Identity};
use codex_control::rpc::EndpointStatus;
use codex_control::session::{CODEX_LOG, Kind};
use codex_control::settings::SETTINGS_BYTES_MAX;

use crate::client::Client;
use crate::failure::Failure;
use crate::session::{self, Plan};
use crate::{Context, codex_config, daemon, output, probe, program, text};

/// Starts Codex on an endpoint
#[derive(Clone, Debug, Subcommand)]
#[command(after_help = "Examples:
  codexctl launch cli --endpoint zai
  codexctl launch desktop --endpoint zai")]
pub(crate) enum Command {
    Cli(CliArguments),
    Desktop(DesktopArguments),
}

/// Where Codex is to work.
#[derive(Clone, Debug, clap::Args)]
struct On {
    /// The endpoint; without it, the default one
    #[arg(long, short, value_name = "ENDPOINT")]
    endpoint: Option<EndpointId>,
    /// The model; without it, the endpoint's default one
    #[arg(long, short, value_name = "MODEL", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    model: Option<String>,
    /// Codex's own login and settings, no endpoint
    #[arg(long, conflicts_with_all = ["endpoint", "model"])]
    default: bool,
}

/// Starts the Codex CLI on an endpoint, once the endpoint is healthy
///
/// `~/.codex/config.toml` is not changed. With `--default` and after `codexctl use`, what that has put into it is taken
/// out as long as this Codex runs. What stands behind `--` is given to Codex as it is.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  codexctl launch cli
  codexctl launch cli --endpoint zai --model glm-4.7
  codexctl launch cli --endpoint zai -- exec \"explain this folder\"
  codexctl launch cli --endpoint zai -- resume --last
  codexctl launch cli --default")]
pub(crate) struct CliArguments {
    #[command(flatten)]
    on: On,
    /// Arguments for Codex
    #[arg(last = true, value_name = "ARGS")]
    arguments: Vec<OsString>,
}

/// Starts Codex Desktop on an endpoint, once the endpoint is healthy
///
/// As long as it runs, `~/.codex/config.toml` points Codex at the endpoint. What is changed is shown, and taken back
/// byte for byte when it ends, also when something of us was killed; what was edited meanwhile stays.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  codexctl launch desktop --endpoint zai
  codexctl launch desktop --default
  CODEX_SUPERVISOR_DESKTOP=~/apps/codex codexctl launch desktop")]
pub(crate) struct DesktopArguments {
    #[command(flatten)]
    on: On,
    /// Arguments for Codex Desktop
    #[arg(last = true, value_name = "ARGS")]
    arguments: Vec<OsString>,
}

pub(crate) fn run(ctx: &Context, command: &Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Cli(arguments) => cli(ctx, arguments),
        Command::Desktop(arguments) => desktop(ctx, arguments),
    }
}

fn cli(ctx: &Context, arguments: &CliArguments) -> Result<ExitCode, Failure> {
    let codex = find_codex(ctx)?;
    if arguments.on.default {
        return on_own_login(ctx, Kind::Cli, || {
            let mut command = Process::new(&codex);
            command.args(&arguments.arguments);
            command
        });
    }
    let (client, status, keys) = ready(ctx, &arguments.on)?;
    let codex_log = codex_log(ctx);
    let plan = Plan { kind: Kind::Cli, endpoint: Some(status.id), codex_log: codex_log.clone() };
    let make = |begun: Option<&codex_control::session::Begun>| {
        let log_folder = begun.filter(|begun| begun.takes_codex_log && codex_log.is_none()).map(|begun| &*begun.folder);
        // A path that is not text is one that Codex cannot be told.
        let log_folder = log_folder.and_then(Path::to_str).map(|folder| Key::text("log_dir", folder));
        let mut command = Process::new(&codex);
        for key in keys.iter().chain(&log_folder) {
            command.arg("-c").arg(key.argument());
        }
        command.args(&arguments.arguments);
        reach_loopback(ctx, &mut command);
        command
    };
    session::run(ctx, Some(client), &plan, make, |_| {})
}

fn desktop(ctx: &Context, arguments: &DesktopArguments) -> Result<ExitCode, Failure> {
    let (program, first) = desktop::find(ctx)?;
    let make = || {
        let mut command = Process::new(&program);
        command.args(&first).args(&arguments.arguments);
        command
    };
    if arguments.on.default {
        return on_own_login(ctx, Kind::Desktop, make);
    }
    let (client, status, keys) = ready(ctx, &arguments.on)?;
    let config = CodexConfig::new(&ctx.paths);
    let preview = config.preview(&keys)?;
    if preview.before != preview.after {
        output::note("as long as Codex Desktop runs:");
        output::note(codex_config::difference(&preview).trim_end());
    }
    let plan = Plan { kind: Kind::Desktop, endpoint: Some(status.id), codex_log: codex_log(ctx) };
    holding(ctx, &config, &plan, Some(client), keys, || {
        let mut command = make();
        reach_loopback(ctx, &mut command);
        command
    })
}

/// Runs Codex as if we were not there. Its configuration is touched only where something of ours is in it.
fn on_own_login(ctx: &Context, kind: Kind, make: impl FnOnce() -> Process) -> Result<ExitCode, Failure> {
    let config = CodexConfig::new(&ctx.paths);
    if config.needs_recovery() {
        config.recover()?;
    }
    // Whoever wants nothing of ours gets Codex, whatever state we are in.
    let client = daemon::find(ctx).unwrap_or_else(|failure| {
        let (message, hint) = failure.into_parts();
        ctx.output.warn(&format!("Codex runs unwatched: {message}"), hint.as_deref());
        None
    });
    let plan = Plan { kind, endpoint: None, codex_log: codex_log(ctx) };
    if config.holders()?.is_empty() {
        return session::run(ctx, client, &plan, |_| make(), |_| {});
    }
    holding(ctx, &config, &plan, client, Vec::new(), make)
}

/// Runs Codex as long as `keys`, or nothing of ours, are in its configuration.
fn holding(
    ctx: &Context,
    config: &CodexConfig,
    plan: &Plan,
    client: Option<Client>,
    keys: Vec<Key>,
    make: impl FnOnce() -> Process,
) -> Result<ExitCode, Failure> {
    let own =
        process::own_identity().map_err(|error| Failure::new(format!("this process cannot be identified: {error}")))?;
    let holder = Holder {
        id: format!("{}-{}-{}", plan.kind.name(), own.pid, own.start_ticks),
        endpoint: plan.endpoint.clone(),
        keys,
        processes: vec![own],
        since_ms: text::now_ms(),
    };
    let id = holder.id.clone();
    config.hold(holder)?;
    // If we are killed, it lasts as long as what we have started.
    let started = |identity: &Identity| {
        if let Err(error) = config.extend(&id, identity.clone()) {
            let (message, hint) = Failure::from(error).into_parts();
            ctx.output.warn(&message, hint.as_deref());
        }
    };
    let result = session::run(ctx, client, plan, |_| make(), started);
    match config.release(&id) {
        Ok(outcome) => {
            if let Some(aside) = codex_config::aside(&outcome) {
                ctx.output.warn(&aside, None);
            }
            result
        }
        Err(error) => {
            let failure = Failure::from(error);
            if result.is_err() {
                let (message, hint) = failure.into_parts();
                ctx.output.warn(&message, hint.as_deref());
                return result;
            }
            Err(failure)
        }
    }
}

/// Wakes the endpoint; what Codex has to be told, once it is healthy.
fn ready(ctx: &Context, on: &On) -> Result<(Client, EndpointStatus, Vec<Key>), Failure> {
    let mut client = daemon::connect_or_start(ctx, daemon::START_TIMEOUT)?;
    let status = probe::wake(&mut client, on.endpoint.as_ref(), probe::WAKE_TIMEOUT, probe::WAKE_MARGIN)?;
    let keys = codex_config::keys(&status, on.model.as_deref())?;
    if on.model.is_none()
        && status.default_model.is_none()
        && let Some(address) = status.address
    {
        warn_without_models(ctx, &status.id, address);
    }
    Ok((client, status, keys))
}

/// Makes `command` reach loopback without a proxy: Codex applies `HTTP_PROXY` there, too.
fn reach_loopback(ctx: &Context, command: &mut Process) {
    let [upper, lower] = environment::NO_PROXY;
    let (value, other) = (ctx.environment.get_str(upper), ctx.environment.get_str(lower));
    command.env(upper, without_proxy(value.or(other)));
    command.env(lower, without_proxy(other.or(value)));
}

/// Hosts that are reached without a proxy: `present` and loopback.
fn without_proxy(present: Option<&str>) -> String {
    let mut hosts: Vec<&str> =
        present.unwrap_or_default().split(',').map(str::trim).filter(|host| !host.is_empty()).collect();
    if !hosts.contains(&"*") {
        for host in ["127.0.0.1", "localhost"] {
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
    }
    hosts.join(",")
}

/// The log that Codex writes because the person has told it to.
///
/// Codex 0.169 writes [`CODEX_LOG`] only into a `log_dir` of its settings. Settings that cannot be read say nothing.
fn codex_log(ctx: &Context) -> Option<PathBuf> {
    let bytes = files::read_bounded(&ctx.paths.codex_config(), SETTINGS_BYTES_MAX).ok()??;
    let settings: toml::Table = toml::from_str(std::str::from_utf8(&bytes).ok()?).ok()?;
    let folder = Path::new(settings.get("log_dir")?.as_str()?);
    Some(ctx.paths.codex_home().join(folder).join(CODEX_LOG)) // relative to Codex's folder where it is relative
}

/// Says beforehand why Codex is going to find no model. It is started all the same: its own arguments may name one.
fn warn_without_models(ctx: &Context, endpoint: &EndpointId, address: SocketAddr) {
    let remedy =
        || format!("name one: `--model MODEL`, or for good `codexctl endpoint set {endpoint} default_model MODEL`");
    match probe::models(ctx, endpoint, address, false) {
        Ok(list) if list.entries().is_empty() => {
            let why = list.problem().map(|problem| format!(": {}", problem.message)).unwrap_or_default();
            ctx.output
                .warn(&format!("endpoint `{endpoint}` has no default model and offers none{why}"), Some(&remedy()));
        }
        Ok(_) => {}
        Err(failure) => {
            let (message, hint) = failure.into_parts();
            ctx.output.warn(&message, hint.as_deref());
        }
    }
}

/// Finds Codex: where the person says, else on the `PATH`.
pub(crate) fn find_codex(ctx: &Context) -> Result<PathBuf, Failure> {
    let named = ctx.environment.get(environment::CODEX);
    match named {
        Some(name) => program::find(&ctx.environment, name).ok_or_else(|| {
            Failure::new(format!("`{}` names `{}`, which is no program", environment::CODEX, name.to_string_lossy()))
                .hint(format!("name the path of Codex there, or unset `{}`", environment::CODEX))
        }),
        None => program::find(&ctx.environment, "codex".as_ref()).ok_or_else(|| {
            Failure::new("the Codex CLI was not found on the `PATH`")
                .hint("install it with `npm install -g @openai/codex`")
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_reached_without_a_proxy() {
        for (present, expected) in [
            (None, "127.0.0.1,localhost"),
            (Some(""), "127.0.0.1,localhost"),
            (Some("internal, .corp"), "internal,.corp,127.0.0.1,localhost"),
            (Some("localhost"), "localhost,127.0.0.1"),
            (Some("*"), "*"),
        ] {
            assert_eq!(without_proxy(present), expected, "{present:?}");
        }
    }
}
