//! The scripted provider as a program.
//!
//! Prints its address, then one line per request. On TERM it says whether the script was played and ends: 0 if so.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use e2e::provider::{FakeProvider, Script};
use tokio::signal::unix::{SignalKind, signal};

/// A Chat Completions provider on loopback that plays a script and refuses malformed requests.
///
/// Example: fake-provider --scenario demo
#[derive(Parser)]
#[command(version)]
struct Options {
    /// A built-in scenario
    #[arg(long, value_parser = ["demo"], conflicts_with = "script", required_unless_present = "script")]
    scenario: Option<String>,
    /// A scenario file, TOML
    #[arg(long)]
    script: Option<PathBuf>,
    /// Port, 0 for a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
}

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    let script = match options.script {
        Some(path) => Script::load(&path)?,
        None => toml::from_str(include_str!("../../scenarios/demo.toml")).context("the built-in scenario")?,
    };
    let provider = FakeProvider::start_at(options.port, script, print)?;
    print(&provider.address().to_string());
    wait_for_signal()?;
    let (complaints, unused) = (provider.complaints(), provider.unused_turns());
    for complaint in &complaints {
        print(&format!("refused: {complaint}"));
    }
    for turn in &unused {
        print(&format!("never asked for turn {}", turn + 1));
    }
    Ok(if complaints.is_empty() && unused.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints a line at once, also into a pipe or a file.
fn print(line: &str) {
    let mut stdout = std::io::stdout().lock();
    // Nobody reads any more: then nobody misses it.
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

fn wait_for_signal() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    })
}
