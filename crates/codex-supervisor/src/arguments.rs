//! The command line.

use clap::Parser;

/// Keeps an endpoint for Codex running for each provider you have set up.
///
/// Usually started by systemd or by `codexctl start`. By hand, to watch it work:
///
///     codex-supervisor --foreground
///
/// Settings are in ~/.config/codex-supervisor/supervisor.toml; `codexctl endpoint add` writes them for you.
#[derive(Debug, Parser)]
#[command(version, verbatim_doc_comment)]
pub(crate) struct Arguments {
    /// Stay in the foreground. That is what happens anyway; the flag is there so that a script can say what it means.
    #[arg(long)]
    pub(crate) foreground: bool,
}
