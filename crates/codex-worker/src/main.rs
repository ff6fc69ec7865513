//! The data plane: one process per endpoint, between Codex and one provider.
//!
//! The only program of the product that talks to the Internet and the only one that reads credentials.
//!
//! | module | what |
//! |---|---|
//! | [`arguments`] | the command line |
//! | [`standalone`] | running without a supervisor, from a settings file |
//! | [`link`] | the conversation with the supervisor |
//! | [`worker`] | what all requests share |
//! | [`serve`], [`door`] | the listener, connections, draining; who may stay when there are many |
//! | [`route`], [`local_token`] | who may ask, and what they ask for |
//! | [`turn`] | the life of one request, read top to bottom |
//! | [`body`], [`account`] | the request as it comes in, and what is told of it afterwards |
//! | [`stream`] | the answer while it flows |
//! | [`answer`] | answers that are known whole, and how a failure is told to Codex |
//! | [`upstream`], [`credential`] | the provider's side: connections, TLS, keys |
//! | [`models`], [`target`] | the model list, the catalog for Codex, the dialect of a model |
//! | [`exhausted`] | requests that Codex repeats although we have tried enough |
//! | [`learned`] | what the provider's refusals have taught |
//! | [`signals`] | what the incident engine is told |
//! | [`metrics`] | counters |

mod account;
mod answer;
mod arguments;
mod body;
mod credential;
mod door;
mod exhausted;
mod learned;
mod link;
mod local_token;
mod metrics;
mod models;
mod route;
mod serve;
mod sign_in;
mod signals;
mod standalone;
mod states;
mod stream;
mod target;
mod turn;
mod upstream;
mod worker;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use codex_control::environment::Environment;
use codex_control::{report, telemetry};

use crate::arguments::Arguments;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let environment = Environment::from_process();
    telemetry::start(&environment, None);
    // One thread: a worker relays; what it computes per event is far below what a context switch costs, and a second
    // thread's stack and allocator arena would double its idle memory.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime");
    let result = runtime.and_then(|runtime| runtime.block_on(run(arguments, &environment)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // `chain` prints the causes once; a `Debug` of the error would print them again.
            eprintln!("error: {}", report::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments, environment: &Environment) -> anyhow::Result<()> {
    match arguments.supervision()? {
        Some(supervision) => link::run_supervised(supervision).await,
        None => standalone::run(arguments, environment).await,
    }
}
