//! Counters of a worker: told to the supervisor with each heartbeat, and to Prometheus on request.

use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use codex_control::ipc::{Counters, LastFailure};

use crate::worker::now_unix_ms;

/// Counts since the start of the worker.
#[derive(Default)]
pub(crate) struct Metrics {
    requests_total: AtomicU64,
    requests_active: AtomicU64,
    requests_failed_total: AtomicU64,
    retries_total: AtomicU64,
    connections_open: AtomicU64,
    input_tokens_total: AtomicU64,
    output_tokens_total: AtomicU64,
    reports_dropped_total: AtomicU64,
    /// Protects the pair from being read half: the last success and a failure after it.
    last: Mutex<Last>,
}

#[derive(Clone, Default)]
struct Last {
    success_at_ms: Option<u64>,
    failure: Option<LastFailure>,
}

/// Counts one thing as present until it is dropped.
pub(crate) struct Present<'a>(&'a AtomicU64);

impl Drop for Present<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Metrics {
    pub(crate) fn connection(&self) -> Present<'_> {
        self.connections_open.fetch_add(1, Relaxed);
        Present(&self.connections_open)
    }

    pub(crate) fn request_started(&self) {
        self.requests_total.fetch_add(1, Relaxed);
        self.requests_active.fetch_add(1, Relaxed);
    }

    pub(crate) fn request_ended(&self) {
        self.requests_active.fetch_sub(1, Relaxed);
    }

    pub(crate) fn retried(&self) {
        self.retries_total.fetch_add(1, Relaxed);
    }

    pub(crate) fn report_dropped(&self) {
        self.reports_dropped_total.fetch_add(1, Relaxed);
    }

    pub(crate) fn tokens(&self, input: u64, output: u64) {
        self.input_tokens_total.fetch_add(input, Relaxed);
        self.output_tokens_total.fetch_add(output, Relaxed);
    }

    pub(crate) fn succeeded(&self) {
        *self.last.lock().expect("nothing panics while it is held") =
            Last { success_at_ms: Some(now_unix_ms()), failure: None };
    }

    pub(crate) fn failed(&self, failure: LastFailure) {
        self.requests_failed_total.fetch_add(1, Relaxed);
        self.last.lock().expect("nothing panics while it is held").failure = Some(failure);
    }

    pub(crate) fn requests_total(&self) -> u64 {
        self.requests_total.load(Relaxed)
    }

    pub(crate) fn requests_active(&self) -> u64 {
        self.requests_active.load(Relaxed)
    }

    /// All counters at one moment.
    pub(crate) fn snapshot(&self) -> Counters {
        let last = self.last.lock().expect("nothing panics while it is held").clone();
        Counters {
            requests_total: self.requests_total.load(Relaxed),
            requests_active: self.requests_active.load(Relaxed),
            requests_failed_total: self.requests_failed_total.load(Relaxed),
            retries_total: self.retries_total.load(Relaxed),
            connections_open: self.connections_open.load(Relaxed),
            input_tokens_total: self.input_tokens_total.load(Relaxed),
            output_tokens_total: self.output_tokens_total.load(Relaxed),
            last_success_at_ms: last.success_at_ms,
            last_failure: last.failure,
            reports_dropped_total: self.reports_dropped_total.load(Relaxed),
        }
    }

    /// The counters in Prometheus' text format.
    pub(crate) fn prometheus(&self, endpoint: &str, uptime_s: u64, memory_bytes: u64) -> String {
        let counters = self.snapshot();
        let rows: [(&str, &str, &str, u64); 10] = [
            ("worker_requests_total", "counter", "Requests for a model's answer.", counters.requests_total),
            ("worker_requests_active", "gauge", "Requests that are running.", counters.requests_active),
            (
                "worker_requests_failed_total",
                "counter",
                "Requests that ended in a failure Codex saw.",
                counters.requests_failed_total,
            ),
            (
                "worker_retries_total",
                "counter",
                "Upstream attempts beyond the first of a request.",
                counters.retries_total,
            ),
            ("worker_connections_open", "gauge", "Open connections from Codex.", counters.connections_open),
            (
                "worker_input_tokens_total",
                "counter",
                "Input tokens, as far as the provider told.",
                counters.input_tokens_total,
            ),
            (
                "worker_output_tokens_total",
                "counter",
                "Output tokens, as far as the provider told.",
                counters.output_tokens_total,
            ),
            (
                "worker_reports_dropped_total",
                "counter",
                "Reports the supervisor never got.",
                counters.reports_dropped_total,
            ),
            ("worker_uptime_seconds", "gauge", "Seconds since the start of the worker.", uptime_s),
            ("worker_memory_bytes", "gauge", "Resident memory of the worker.", memory_bytes),
        ];
        let mut text = String::with_capacity(2_048);
        for (name, kind, help, value) in rows {
            let _ =
                write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{{endpoint=\"{endpoint}\"}} {value}\n");
        }
        text
    }
}

/// Resident memory of this process in bytes; 0 where `/proc` does not tell.
pub(crate) fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split_ascii_whitespace().nth(1)?.parse::<u64>().ok())
        .unwrap_or(0);
    pages * rustix::param::page_size() as u64
}
