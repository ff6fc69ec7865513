//! `codexctl endpoint …`: what Codex can connect to.

mod add;
mod default;
pub(crate) mod edit;
mod list;
mod rm;
mod set;
mod show;
mod test;

use clap::Subcommand;

use crate::Context;
use crate::failure::Failure;

/// Adds, shows and changes endpoints: what Codex can connect to
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:
  codexctl endpoint add --preset openrouter --model z-ai/glm-4.7")]
pub(crate) enum Command {
    List(list::Arguments),
    Add(Box<add::Arguments>),
    Show(show::Arguments),
    Edit(edit::Arguments),
    Set(set::Arguments),
    #[command(alias = "remove")]
    Rm(rm::Arguments),
    Test(test::Arguments),
    Default(default::Arguments),
}

pub(crate) fn run(ctx: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::List(_) => list::run(ctx),
        Command::Add(arguments) => add::run(ctx, &arguments),
        Command::Show(arguments) => show::run(ctx, &arguments),
        Command::Edit(arguments) => edit::run(ctx, &arguments),
        Command::Set(arguments) => set::run(ctx, &arguments),
        Command::Rm(arguments) => rm::run(ctx, &arguments),
        Command::Test(arguments) => test::run(ctx, &arguments),
        Command::Default(arguments) => default::run(ctx, &arguments),
    }
}
