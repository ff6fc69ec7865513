//! The answer while it flows: polled by the connection to Codex, it polls the connection to the provider.
//!
//! There is no task and no queue in between. When Codex closes its connection this value is dropped, and with it the
//! connection to the provider; when Codex reads slowly, so do we.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use codex_translate::native::Sniffer;
use codex_translate::reply::{EndCause, Progress, Reply, Summary};
use codex_translate::{Failure, FailureClass};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Incoming};
use tokio::time::{Instant, Sleep};

use crate::account::Account;
use crate::serve::Drain;
use crate::upstream;

/// Silence after which Codex is sent a keepalive event; its own limit is 300 s, and it restarts with each event.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// Bytes gathered into one write, when the provider delivers faster than that.
const WRITE_BYTES_MAX: usize = 64 * 1024;
/// Time for the last bytes of a finished upstream answer, so that its connection can be used again.
const TAIL_TIMEOUT: Duration = Duration::from_secs(2);

/// How upstream bytes become downstream bytes.
pub(crate) enum Relay {
    /// Another protocol, translated.
    Translated(Box<Reply>),
    /// The Responses API itself, byte for byte.
    Native(Box<Sniffer>),
    /// All is written; only the account of it is left.
    Ended(Box<Summary>),
}

impl Relay {
    pub(crate) fn feed(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Progress {
        match self {
            Self::Translated(reply) => reply.feed(chunk, out),
            Self::Native(sniffer) => {
                out.extend_from_slice(chunk);
                sniffer.feed(chunk)
            }
            Self::Ended(_) => Progress {
                visible: true,
                finished: true,
            },
        }
    }

    /// The failure of an answer that has shown nothing yet: it can be dropped and asked for again.
    pub(crate) fn pending_failure(&self) -> Option<&Failure> {
        match self {
            Self::Translated(reply) => reply.pending_failure(),
            Self::Native(sniffer) => sniffer.failure().filter(|_| !sniffer.progress().visible),
            Self::Ended(_) => None,
        }
    }

    /// Ends the answer: writes the terminal event where it is ours to write.
    pub(crate) fn end(&mut self, cause: EndCause, out: &mut Vec<u8>) -> Summary {
        match self {
            Self::Translated(reply) => reply.end(cause, out),
            // A native stream that was cut stays cut: Codex repeats the request, as it does with OpenAI itself.
            Self::Native(sniffer) => std::mem::take(&mut **sniffer).end(cause),
            Self::Ended(summary) => (**summary).clone(),
        }
    }

    fn keepalive(&mut self, out: &mut Vec<u8>) {
        match self {
            Self::Translated(reply) => reply.keepalive(out),
            // Nothing is put between the bytes of somebody else's stream.
            Self::Native(_) | Self::Ended(_) => {}
        }
    }
}

/// One answer on its way.
pub(crate) struct TurnStream {
    relay: Relay,
    upstream: Option<Incoming>,
    ready: Vec<u8>,
    account: Account,
    idle_timeout: Duration,
    active_at: Instant,
    keepalive_at: Instant,
    timer: Pin<Box<Sleep>>,
    expired: Pin<Box<dyn Future<Output = ()> + Send>>,
    is_ended: bool,
}

impl TurnStream {
    /// `ready` is what was written before the answer was found to be good.
    pub(crate) fn new(
        relay: Relay,
        upstream: Incoming,
        ready: Vec<u8>,
        account: Account,
        idle_timeout: Duration,
        drain: Drain,
    ) -> Self {
        let now = Instant::now();
        Self {
            relay,
            upstream: Some(upstream),
            ready,
            account,
            idle_timeout,
            active_at: now,
            keepalive_at: now + KEEPALIVE_INTERVAL,
            timer: Box::pin(tokio::time::sleep(KEEPALIVE_INTERVAL.min(idle_timeout))),
            expired: Box::pin(async move { drain.expired().await }),
            is_ended: false,
        }
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.is_ended && self.ready.is_empty()
    }

    /// The next bytes for Codex: everything that can be made of what the provider has delivered so far, as one write.
    pub(crate) fn poll_bytes(&mut self, ctx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        while !self.is_ended && self.ready.len() < WRITE_BYTES_MAX {
            match self.poll_upstream(ctx) {
                Poll::Ready(()) => {}
                Poll::Pending => break,
            }
        }
        if !self.is_ended && self.ready.is_empty() {
            self.poll_clock(ctx);
        }
        if !self.ready.is_empty() {
            return Poll::Ready(Some(Bytes::from(std::mem::take(&mut self.ready))));
        }
        if self.is_ended {
            Poll::Ready(None)
        } else {
            Poll::Pending
        }
    }

    fn poll_upstream(&mut self, ctx: &mut Context<'_>) -> Poll<()> {
        let Some(upstream) = &mut self.upstream else {
            return Poll::Pending;
        };
        let frame = std::task::ready!(Pin::new(upstream).poll_frame(ctx));
        match frame {
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else {
                    return Poll::Ready(());
                };
                self.active_at = Instant::now();
                self.keepalive_at = self.active_at + KEEPALIVE_INTERVAL;
                if self.relay.feed(&data, &mut self.ready).finished {
                    self.end(EndCause::Eof);
                }
            }
            Some(Err(error)) => {
                self.end(EndCause::Failed(upstream::network(&format!(
                    "the connection broke: {error}"
                ))));
            }
            None => {
                self.upstream = None;
                self.end(EndCause::Eof);
            }
        }
        Poll::Ready(())
    }

    /// Keepalives, the idle limit and the end of this worker, all looked at only while the provider is silent.
    fn poll_clock(&mut self, ctx: &mut Context<'_>) {
        if self.expired.as_mut().poll(ctx).is_ready() {
            let restarting = Failure::new(FailureClass::Server, "the endpoint is being stopped or replaced");
            self.end(EndCause::Failed(restarting));
            return;
        }
        while self.timer.as_mut().poll(ctx).is_ready() {
            let now = Instant::now();
            let idle_at = self.active_at + self.idle_timeout;
            if now >= idle_at {
                let seconds = self.idle_timeout.as_secs();
                let silent = upstream::network(&format!("the provider was silent for {seconds} s"));
                self.end(EndCause::Failed(silent));
                return;
            }
            if now >= self.keepalive_at {
                self.relay.keepalive(&mut self.ready);
                self.keepalive_at = now + KEEPALIVE_INTERVAL;
            }
            self.timer.as_mut().reset(self.keepalive_at.min(idle_at));
        }
    }

    fn end(&mut self, cause: EndCause) {
        let summary = self.relay.end(cause, &mut self.ready);
        self.is_ended = true;
        self.account.ended(&summary);
        if let Some(upstream) = self.upstream.take() {
            read_tail(upstream);
        }
    }
}

/// Reads what follows the last event (normally the end marker alone), so that the connection goes back to the pool.
pub(crate) fn read_tail(mut upstream: Incoming) {
    if upstream.is_end_stream() {
        return;
    }
    tokio::spawn(tokio::time::timeout(TAIL_TIMEOUT, async move {
        while let Some(Ok(_)) = upstream.frame().await {}
    }));
}
