//! The user daemon: keeps a worker running behind a listener that never closes, for each endpoint.
//!
//! Small and boring on purpose: no TLS, no provider, no secret. One task owns all state ([`supervisor`]); everything
//! that can happen is one closed enum ([`event`]).
//!
//! | module | what |
//! |---|---|
//! | [`arguments`], [`daemon`] | the command line; start and end of the process, in order |
//! | [`supervisor`] | the owner of all state: endpoints, calls, recovery |
//! | [`event`] | everything that can happen |
//! | [`lifecycle`], [`backoff`] | decides about an endpoint's workers: start, replace, drain, kill; touches nothing |
//! | [`configuration`], [`watch`] | the settings in force, and what a changed file changes |
//! | [`ports`], [`stand_in`] | listeners, and what answers where no worker may |
//! | [`worker`], [`worker_socket`], [`probe`], [`memory`] | workers: their processes, what they say, their health |
//! | [`scope`] | workers that outlive us under systemd |
//! | [`ending`], [`follow`] | Codex's sessions: the end of a process, what is written to a log |
//! | [`codex_config`] | Codex's own `config.toml`, kept right |
//! | [`control`], [`announce`] | the control socket and its events |
//! | [`incidents`] | the incident engine at work: signals in, actions out |
//! | [`database`] | `state.db`: usage and incidents |
//! | [`standing`] | what actions have changed about endpoints, over the settings |
//! | [`stopped`] | what is remembered: the person's stops |
//! | [`remembered`] | the small files of these |
//! | [`systemd`], [`log`], [`clock`] | the service manager, log files, the time |

mod announce;
mod arguments;
mod backoff;
mod clock;
mod codex_config;
mod configuration;
mod control;
mod daemon;
mod database;
mod ending;
mod event;
mod follow;
mod incidents;
mod lifecycle;
mod log;
mod memory;
mod ports;
mod probe;
mod remembered;
mod scope;
mod stand_in;
mod standing;
mod stopped;
mod supervisor;
mod systemd;
mod watch;
mod worker;
mod worker_socket;

use std::process::ExitCode;

use clap::Parser;
use codex_control::report::{self, Hinted};
use codex_control::single::LockError;

use crate::arguments::Arguments;
use crate::event::Farewell;

/// Exit code that asks a service manager for another start; `EX_TEMPFAIL` of sysexits.h. With 0 it lets us rest.
const RESTART_EXIT: u8 = 75;

fn main() -> ExitCode {
    let Arguments { foreground: _ } = Arguments::parse();
    match daemon::run() {
        Ok(Farewell::End) => ExitCode::SUCCESS,
        Ok(Farewell::Restart) => ExitCode::from(RESTART_EXIT),
        Err(error) => {
            eprintln!("error: {}", report::chain(error.as_ref()));
            if let Some(hint) = error.downcast_ref::<LockError>().and_then(Hinted::hint) {
                eprintln!("  hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}
