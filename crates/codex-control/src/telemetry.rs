//! Names of log fields, and how a process starts to log.

use std::io::Write;
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{FmtSpan, Format};
use tracing_subscriber::fmt::writer::{BoxMakeWriter, MakeWriterExt};
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
        .and_then(|text| EnvFilter::try_new(text).ok())
        .unwrap_or_else(|| EnvFilter::new("info"));
    let writer = match file {
        Some(file) => BoxMakeWriter::new(std::io::stderr.and(Mutex::new(file))),
        None => BoxMakeWriter::new(std::io::stderr),
    };
    let subscriber = tracing_subscriber::fmt()
        .event_format(Format::default().with_target(false).compact())
        .with_ansi(false)
        .with_span_events(FmtSpan::NONE)
        .with_env_filter(filter)
        .with_writer(writer)
        .finish();
    // A second call (tests in one process) keeps the first subscriber.
    let _ = subscriber.try_init();
}
