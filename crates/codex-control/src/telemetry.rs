//! Names of log fields, and how a process starts to log.

use std::io::Write;
use std::sync::Mutex;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Format;
use tracing_subscriber::fmt::writer::{BoxMakeWriter, MakeWriterExt};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::environment::{self, Environment};

/// The field names every log line draws from.
pub const FIELDS: [&str; 13] = [
    "cause",
    "endpoint",
    "request",
    "worker_pid",
    "provider",
    "model",
    "status",
    "attempt",
    "fault",
    "incident",
    "tier",
    "elapsed_ms",
    "bytes",
];

/// Starts logging to stderr and, if given, to `file` as well. Call once, first thing in `main`.
///
/// Under systemd (stderr is the journal) lines carry no time of their own there.
pub fn start(environment: &Environment, file: Option<Box<dyn Write + Send>>) {
    let filter = environment
        .get_str(environment::LOG)
        .and_then(|text| text.parse::<Targets>().ok())
        .unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let writer = match file {
        Some(file) => BoxMakeWriter::new(std::io::stderr.and(Mutex::new(file))),
        None => BoxMakeWriter::new(std::io::stderr),
    };
    let lines = tracing_subscriber::fmt::layer()
        .event_format(Format::default().with_target(false).compact())
        .with_ansi(false)
        .with_writer(writer);
    let subscriber = tracing_subscriber::registry().with(filter).with(lines);
    // A second call (tests in one process) keeps the first subscriber.
    let _ = subscriber.try_init();
}
