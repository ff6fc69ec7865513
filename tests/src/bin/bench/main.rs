//! The benchmark behind scripts/bench.sh: prints one table.
//!
//! Measures what a person would notice (how soon the first word comes, how fast commands answer and a crash is
//! mended) and what the machine does (memory, processor time), and puts two floors beside it in the same run: the
//! provider spoken to directly, and a plain hyper pass-through. Requests take turns between the three, so that
//! a noisy moment hits all of them. Every answer is checked, event by event.
//!
//! | module | what |
//! |---|---|
//! | [`control`] | starts, crashes, commands, the supervisor |
//! | [`answers`] | requests through a worker and past it |
//! | [`provider`] | a provider that answers at once |
//! | [`relay`] | the pass-through: hyper on both sides and nothing in between |
//! | [`body`] | requests of the sizes Codex sends |
//! | [`load`] | sending them, one by one or at a rate, and their timing |
//! | [`process`] | servers as processes; memory and processor time from `/proc` |
//! | [`table`] | figures into lines |

mod answers;
mod body;
mod control;
mod load;
mod process;
mod provider;
mod relay;
mod table;

use std::net::SocketAddr;

use clap::{Parser, Subcommand, ValueEnum};
use codex_control::descriptors;

use crate::table::Table;

/// Measures the release build and prints one table.
///
/// Example: bench
#[derive(Parser)]
struct Options {
    /// Take each measurement a tenth as often: to try the benchmark itself
    #[arg(long)]
    short: bool,
    /// Measure this alone, e.g. to look on with a profiler
    #[arg(long)]
    only: Option<Section>,
    #[command(subcommand)]
    part: Option<Part>,
}

/// Parts that the benchmark starts as processes of their own.
#[derive(Subcommand)]
enum Part {
    /// A provider that answers at once, on the listener passed as stdin
    Provider,
    /// A pass-through to this address, on the listener passed as stdin
    Relay {
        /// Where it passes requests to
        to: SocketAddr,
    },
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    match options.part {
        Some(Part::Provider) => provider::run(),
        Some(Part::Relay { to }) => relay::run(to),
        None => {
            // The streams that are held open need a descriptor each, here and at the provider.
            descriptors::raise_limit();
            let effort = Effort { divisor: if options.short { 10 } else { 1 }, only: options.only };
            let mut table = Table::default();
            let measured = answers::measure(effort, &mut table).and_then(|()| control::measure(effort, &mut table));
            // What was measured before something failed is worth having.
            println!("{table}");
            measured
        }
    }
}

/// What can be measured alone.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    /// First delta of a 2 KB request
    Small,
    /// First delta of a 60 KB request
    Medium,
    /// First delta of a 1 MB request
    Large,
    /// Requests at a fixed rate
    OpenLoop,
    /// Events as fast as they are taken
    Burst,
    /// Ten events in a millisecond
    Paced,
    /// Streams in a second of processor time
    ClosedLoop,
    /// Memory of streams that are held open
    Held,
    /// Starts, crashes, commands, the supervisor
    Control,
}

/// What is measured, and how often.
#[derive(Clone, Copy)]
struct Effort {
    divisor: u32,
    only: Option<Section>,
}

impl Effort {
    fn wants(self, section: Section) -> bool {
        self.only.is_none_or(|only| only == section)
    }

    /// So often, when a full run takes it `count` times.
    fn of(self, count: u32) -> u32 {
        (count / self.divisor).max(1)
    }
}
