//! What happened, told to whoever listens: `events.subscribe`.
//!
//! Nothing waits for a slow reader: it loses the oldest events and sees that by the gap in their numbers.

use std::sync::Arc;

use codex_control::EndpointId;
use codex_control::rpc::{self, JSONRPC};
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tracing::debug;

use crate::clock::unix_ms;

/// Events kept for a reader that is behind; then it loses the oldest.
pub(crate) const EVENTS_QUEUED_MAX: usize = 256;

/// One `event` notification, as a line of JSON with its line end.
pub(crate) type Line = Arc<str>;

/// Numbers events and hands them out.
#[derive(Debug)]
pub(crate) struct Announcer {
    sequence: u64,
    lines: broadcast::Sender<Line>,
}

impl Announcer {
    /// Nobody listens yet.
    pub(crate) fn new() -> Self {
        Self { sequence: 0, lines: broadcast::channel(EVENTS_QUEUED_MAX).0 }
    }

    /// Where readers subscribe.
    pub(crate) fn lines(&self) -> broadcast::Sender<Line> {
        self.lines.clone()
    }

    /// Tells everybody. `kind` is a stable name, `message` is for a person, `detail` for a program.
    pub(crate) fn tell(&mut self, kind: &str, endpoint: Option<&EndpointId>, message: String, detail: Value) {
        self.sequence += 1;
        if self.lines.receiver_count() == 0 {
            return; // numbered all the same: a reader that comes later sees how much it has missed
        }
        let event = rpc::Event {
            sequence: self.sequence,
            at_ms: unix_ms(),
            kind: kind.to_owned(),
            endpoint: endpoint.cloned(),
            message,
            detail,
        };
        let line = format!("{}\n", json!({ "jsonrpc": JSONRPC, "method": "event", "params": event }));
        if self.lines.send(line.into()).is_err() {
            debug!("the last reader of events has just gone");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_reader_loses_the_oldest_and_can_tell() {
        let mut announcer = Announcer::new();
        announcer.tell("a", None, String::new(), Value::Null);
        let mut reader = announcer.lines().subscribe();
        for _ in 0..=EVENTS_QUEUED_MAX {
            announcer.tell("b", None, "happened".to_owned(), json!({}));
        }
        assert!(matches!(reader.try_recv(), Err(broadcast::error::TryRecvError::Lagged(1))));
        let line = reader.try_recv().unwrap();
        let notification: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(notification["method"], "event");
        assert_eq!(notification["params"]["sequence"], 3, "1 was told before, 2 was lost");
        assert!(line.ends_with("}\n") && line.matches('\n').count() == 1);
    }
}
