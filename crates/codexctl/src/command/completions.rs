//! `codexctl completions SHELL`

use clap::{CommandFactory, ValueEnum};
use clap_complete::aot;
use serde_json::json;

use crate::Context;
use crate::failure::Failure;

/// Prints the completion script of a shell
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  codexctl completions bash > ~/.local/share/bash-completion/completions/codexctl
  codexctl completions zsh > ~/.local/share/zsh/site-functions/_codexctl
  codexctl completions fish > ~/.config/fish/completions/codexctl.fish")]
pub(crate) struct Arguments {
    shell: Shell,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

pub(crate) fn run(ctx: &Context, arguments: &Arguments) -> Result<(), Failure> {
    let (name, shell) = match arguments.shell {
        Shell::Bash => ("bash", aot::Shell::Bash),
        Shell::Zsh => ("zsh", aot::Shell::Zsh),
        Shell::Fish => ("fish", aot::Shell::Fish),
    };
    let mut script = Vec::new();
    aot::generate(shell, &mut super::Arguments::command(), "codexctl", &mut script);
    let script = String::from_utf8_lossy(&script);
    ctx.output.show(&json!({ "shell": name, "script": script }), || script.to_string())
}
