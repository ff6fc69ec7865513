//! The command line. Each command is a file: its arguments, what it does, what it prints.

mod accounts;
mod actions;
mod cleanup;
mod completions;
mod doctor;
mod endpoint;
mod export;
mod faults;
mod import;
mod incidents;
mod launch;
mod login;
mod logout;
mod logs;
pub(crate) mod models;
mod monitor;
mod presets;
mod restore;
mod rpc;
mod rules;
mod run;
mod status;
mod token;
mod usage;
mod use_endpoint;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use codex_control::EndpointId;

use crate::Context;
use crate::failure::Failure;

/// Runs Codex on any provider, and keeps it running.
#[derive(Debug, Parser)]
#[command(
    name = "codexctl",
    version,
    after_help = "Example:
  codexctl endpoint add --preset zai-coding    # asks for the key
  codexctl launch cli --endpoint zai-coding    # starts Codex on it

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 supervisor not reachable"
)]
pub(crate) struct Arguments {
    /// Print JSON, for programs
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Status(status::Arguments),
    #[command(subcommand)]
    Endpoint(endpoint::Command),
    Presets(presets::Arguments),
    Models(models::Arguments),
    Login(login::Arguments),
    Logout(logout::Arguments),
    Accounts(accounts::Arguments),
    Start(run::StartArguments),
    Stop(run::StopArguments),
    Restart(run::RestartArguments),
    #[command(subcommand)]
    Launch(launch::Command),
    Use(use_endpoint::Arguments),
    Restore(restore::Arguments),
    Token(token::Arguments),
    Incidents(incidents::Arguments),
    Actions(actions::Arguments),
    Monitor(monitor::Arguments),
    Rules(rules::Arguments),
    Faults(faults::Arguments),
    Usage(usage::Arguments),
    Logs(logs::Arguments),
    Doctor(doctor::Arguments),
    Import(import::Arguments),
    Export(export::Arguments),
    Rpc(rpc::Arguments),
    Cleanup(cleanup::Arguments),
    Completions(completions::Arguments),
}

/// Names an endpoint.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct EndpointArgument {
    /// Id of the endpoint, as in `codexctl endpoint list`
    #[arg(value_name = "ENDPOINT")]
    id: EndpointId,
}

/// Does what `command` says. The exit code is that of what it runs, if it runs something.
pub(crate) fn run(ctx: &Context, command: Command) -> Result<ExitCode, Failure> {
    let done = match command {
        Command::Status(_) => status::run(ctx),
        Command::Endpoint(command) => endpoint::run(ctx, command),
        Command::Presets(_) => presets::run(ctx),
        Command::Models(arguments) => models::run(ctx, &arguments),
        Command::Login(arguments) => login::run(ctx, &arguments),
        Command::Logout(arguments) => logout::run(ctx, &arguments),
        Command::Accounts(arguments) => accounts::run(ctx, &arguments),
        Command::Start(arguments) => run::start(ctx, &arguments),
        Command::Stop(arguments) => run::stop(ctx, &arguments),
        Command::Restart(arguments) => run::restart(ctx, &arguments),
        Command::Launch(command) => return launch::run(ctx, &command),
        Command::Use(arguments) => use_endpoint::run(ctx, &arguments),
        Command::Restore(arguments) => restore::run(ctx, &arguments),
        Command::Token(arguments) => token::run(ctx, &arguments),
        Command::Incidents(arguments) => incidents::run(ctx, &arguments),
        Command::Actions(arguments) => actions::run(ctx, &arguments),
        Command::Monitor(arguments) => monitor::run(ctx, &arguments),
        Command::Rules(arguments) => rules::run(ctx, &arguments),
        Command::Faults(_) => faults::run(ctx),
        Command::Usage(arguments) => usage::run(ctx, &arguments),
        Command::Logs(arguments) => logs::run(ctx, &arguments),
        Command::Doctor(arguments) => doctor::run(ctx, &arguments),
        Command::Import(arguments) => import::run(ctx, &arguments),
        Command::Export(arguments) => export::run(ctx, &arguments),
        Command::Rpc(arguments) => rpc::run(ctx, &arguments),
        Command::Cleanup(arguments) => cleanup::run(ctx, &arguments),
        Command::Completions(arguments) => completions::run(ctx, &arguments),
    };
    done.map(|()| ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound_and_each_command_has_an_example() {
        let mut root = Arguments::command();
        root.build();
        root.clone().debug_assert();
        let mut commands = vec![&root];
        while let Some(command) = commands.pop() {
            commands.extend(command.get_subcommands().filter(|sub| sub.get_name() != "help"));
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "`{}` has no example", command.get_name());
            assert!(command.get_about().is_some(), "`{}` says not what it does", command.get_name());
        }
    }
}
