//! `codexctl launch cli`: Codex on one of our endpoints, without a change to its configuration file.
//!
//! The endpoint is woken and must be healthy before Codex starts. Then this process stays as its parent
//! ([`crate::session`]); the person's terminal, signals and exit code are Codex's own.

mod overrides;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, ExitCode};

use clap::Subcommand;
use codex_control::EndpointId;
use codex_control::environment;
use codex_control::files;
use codex_control::session::{CODEX_LOG, Kind};
use codex_control::settings::SETTINGS_BYTES_MAX;

use crate::command::launch::overrides::Launch;
use crate::failure::Failure;
use crate::session::{self, Plan};
use crate::{Context, daemon, probe, program};

/// Starts Codex on an endpoint
#[derive(Clone, Debug, Subcommand)]
#[command(after_help = "Example:
  codexctl launch cli --endpoint zai")]
pub(crate) enum Command {
    Cli(CliArguments),
}

/// Starts the Codex CLI on an endpoint, once the endpoint is healthy
///
/// `~/.codex/config.toml` is not changed. What stands behind `--` is given to Codex as it is.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  codexctl launch cli
  codexctl launch cli --endpoint zai --model glm-4.7
  codexctl launch cli --endpoint zai -- exec \"explain this folder\"
  codexctl launch cli --endpoint zai -- resume --last")]
pub(crate) struct CliArguments {
    /// The endpoint; without it, the default one
    #[arg(long, short, value_name = "ENDPOINT")]
    endpoint: Option<EndpointId>,
    /// The model; without it, the endpoint's default one
    #[arg(long, short, value_name = "MODEL", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    model: Option<String>,
    /// Arguments for Codex
    #[arg(last = true, value_name = "ARGS")]
    arguments: Vec<OsString>,
}

pub(crate) fn run(ctx: &Context, command: &Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Cli(arguments) => cli(ctx, arguments),
    }
}

fn cli(ctx: &Context, arguments: &CliArguments) -> Result<ExitCode, Failure> {
    let codex = find_codex(ctx)?;
    let own =
        program::own_path().map_err(|error| Failure::new(format!("this program's own path is unknown: {error}")))?;
    let own = own.to_str().ok_or_else(|| {
        Failure::new(format!(
            "the path of this program, `{}`, is not UTF-8 text, so Codex cannot call it",
            own.display()
        ))
        .hint("install it elsewhere")
    })?;
    let mut client = daemon::connect_or_start(ctx, daemon::START_TIMEOUT)?;
    let status = probe::wake(&mut client, arguments.endpoint.as_ref(), probe::WAKE_TIMEOUT, probe::WAKE_MARGIN)?;
    let address = status.address.ok_or_else(|| Failure::new(format!("endpoint `{}` has no address", status.id)))?;
    let model = arguments.model.as_deref().or(status.default_model.as_deref());
    if model.is_none() {
        warn_without_models(ctx, &status.id, address);
    }
    let launch =
        Launch { endpoint: &status.id, name: &status.name, address, protocol: status.protocol, model, codexctl: own };
    let codex_log = codex_log(ctx);
    let plan = Plan { kind: Kind::Cli, endpoint: Some(status.id.clone()), codex_log: codex_log.clone() };
    session::run(ctx, Some(client), &plan, |begun| {
        let log_folder = begun.filter(|begun| begun.takes_codex_log && codex_log.is_none()).map(|begun| &*begun.folder);
        let mut command = Process::new(&codex);
        for value in launch.overrides(log_folder) {
            command.arg("-c").arg(value);
        }
        command.args(&arguments.arguments);
        let [upper, lower] = environment::NO_PROXY;
        let (value, other) = (ctx.environment.get_str(upper), ctx.environment.get_str(lower));
        command.env(upper, overrides::without_proxy(value.or(other)));
        command.env(lower, overrides::without_proxy(other.or(value)));
        command
    })
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
