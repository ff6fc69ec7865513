//! The operator's hand: one command, a few calls to the supervisor, an answer in milliseconds.
//!
//! | module | what |
//! |---|---|
//! | [`command`] | the command line; one file per command |
//! | [`client`], [`daemon`], [`service`] | talking to the supervisor, waking and ending it |
//! | [`probe`], [`checkup`], [`http`] | trying an endpoint out, asking its worker |
//! | [`codex_config`] | Codex's own `config.toml`, for the commands that change it |
//! | [`key`] | where a key comes from |
//! | [`profile`], [`original`] | settings in one file: ours, and those of the original launcher |
//! | [`program`] | finding other programs, running them for a moment |
//! | [`session`] | running Codex, and ending what it leaves behind |
//! | [`since`], [`moment`] | how far back a question reaches, and when something was |
//! | [`output`], [`text`], [`failure`] | what is printed, for people and for programs |
//!
//! Deliberately absent: an asynchronous runtime, logging, an HTTP client library. A command that Codex runs before a
//! request must not cost more than the request.

mod checkup;
mod client;
mod codex_config;
mod command;
mod daemon;
mod failure;
mod http;
mod key;
mod moment;
mod original;
mod output;
mod probe;
mod profile;
mod program;
mod service;
mod session;
mod since;
mod text;

use std::ffi::OsStr;
use std::process::ExitCode;

use clap::Parser;
use codex_control::environment::Environment;
use codex_control::paths::Paths;

use crate::command::{Arguments, Command};
use crate::failure::Failure;
use crate::output::Output;

/// What every command needs.
pub(crate) struct Context {
    pub(crate) environment: Environment,
    pub(crate) paths: Paths,
    pub(crate) output: Output,
}

fn main() -> ExitCode {
    let environment = Environment::from_process();
    let mut words = std::env::args_os().skip(1);
    // Not commands: no person types them, and neither help nor completions may know them.
    let result = match words.next().as_deref().and_then(OsStr::to_str) {
        Some(daemon::DETACH) => daemon::detach(&environment).map(|()| ExitCode::SUCCESS),
        Some(session::APART) => Err(session::become_apart(words)),
        _ => return typed(environment),
    };
    ended(result, Output { json: false })
}

/// What a person has typed.
fn typed(environment: Environment) -> ExitCode {
    let arguments = Arguments::parse();
    let output = Output { json: arguments.json };
    ended(run(environment, output, arguments.command), output)
}

fn ended(result: Result<ExitCode, Failure>, output: Output) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(failure) => ExitCode::from(output.failed(&failure)),
    }
}

fn run(environment: Environment, output: Output, command: Command) -> Result<ExitCode, Failure> {
    let paths = Paths::from_environment(&environment).map_err(|error| Failure::from_error(&error))?;
    command::run(&Context { environment, paths, output }, command)
}
