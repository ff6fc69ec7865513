//! The answer while it flows: polled by the connection to Codex, it polls the connection to the provider.
//!
//! There is no task and no queue in between. When Codex closes its connection this value is dropped, and with it the
//! connection to the provider; when Codex reads slowly, so do we.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use codex_control::redact;
use codex_translate::native::Sniffer;
use codex_translate::reply::{EndCause, Reply};
use codex_translate::{Failure, Summary, Trouble};
use http_body_util::BodyExt;
use hyper::body::Body as HttpBody;
use tokio::time::{Instant, Sleep};

use crate::serve::Drain;
use crate::turn::{self, Begun, Desk, Ended as TurnEnded, Exchange};
use crate::upstream::{Answer, Patience};
use crate::worker::Worker;
use crate::{answer, upstream};

/// Silence after which Codex is sent a keepalive event; its own limit is 300 s, and it restarts with each event.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// Bytes gathered into one write, when the provider delivers faster than that.
const WRITE_BYTES_MAX: usize = 64 * 1024;
/// Where small pieces keep following each other faster than this, this long is waited before the provider is read
/// again: each write costs as much as translating dozens of events, and nobody reads five hundred words in a second.
const GATHER_TIME: Duration = Duration::from_millis(2);
/// So many such pieces in a row are written at once: an answer that is short, or has just begun, is not put off.
const GATHER_AFTER: u32 = 8;
/// A piece of this size and more is worth a write of its own.
const GATHER_BYTES: usize = 4 * 1024;
/// Time for the last bytes of a finished upstream answer, so that its connection can be used again.
const TAIL_TIMEOUT: Duration = Duration::from_secs(2);
/// Pieces of it that are read without waiting: a usage or two, the end marker, the end of the body.
const TAIL_FRAMES_AT_ONCE: usize = 8;

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
    pub(crate) fn feed(&mut self, chunk: &[u8], out: &mut Vec<u8>) {
        match self {
            Self::Translated(reply) => {
                reply.feed(chunk, out);
            }
            Self::Native(sniffer) => {
                out.extend_from_slice(chunk);
                sniffer.feed(chunk);
            }
            Self::Ended(_) => {}
        }
    }

    /// Events so far that say more than that the provider is alive.
    pub(crate) fn n_events(&self) -> u64 {
        match self {
            Self::Translated(reply) => reply.n_events(),
            Self::Native(sniffer) => sniffer.n_events(),
            Self::Ended(_) => 0,
        }
    }

    /// Whether nothing that still arrives is part of the answer.
    pub(crate) fn is_finished(&self) -> bool {
        match self {
            Self::Translated(reply) => reply.progress().finished,
            Self::Native(sniffer) => sniffer.progress().finished,
            Self::Ended(_) => true,
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

    /// Goes on with the rest of an answer that [wants more](Reply::wants_more).
    fn go_on(&mut self, rest: turn::Rest) -> Answer {
        if let Self::Translated(reply) = self {
            reply.go_on(rest.decoder, rest.framing);
        }
        rest.upstream
    }

    /// Whether the answer is to be gone on with.
    fn wants_more(&self) -> bool {
        matches!(self, Self::Translated(reply) if reply.wants_more())
    }

    /// Reads the end of a body, and says whether the answer is to be gone on with after that.
    fn end_of_body(&mut self, out: &mut Vec<u8>) -> bool {
        if let Self::Translated(reply) = self {
            reply.end_of_body(out);
        }
        self.wants_more()
    }

    /// What the rest of the answer is asked for with.
    fn so_far(&self) -> Vec<u8> {
        match self {
            Self::Translated(reply) => reply.so_far(),
            Self::Native(_) | Self::Ended(_) => Vec::new(),
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
    worker: Arc<Worker>,
    desk: Desk,
    state: State,
    patience: Patience,
    active_at: Instant,
    keepalive_at: Instant,
    /// When the next of these is due: what follows is read, a keepalive is sent, the provider has been silent too long.
    timer: Pin<Box<Sleep>>,
    /// The provider is not read before the timer has run down.
    is_gathering: bool,
    pace: Pace,
    drain: Drain,
    expired: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// How fast the provider sends pieces.
#[derive(Default)]
struct Pace {
    /// Small ones that followed each other fast, the last one included.
    n_quick: u32,
}

impl Pace {
    /// How long the provider is not read after a piece of `n_bytes` that came so long `after` the one before.
    fn pause(&mut self, after: Duration, n_bytes: usize) -> Option<Duration> {
        // Twice: the time that was waited for a fuller piece does not make a slow provider.
        let is_quick = n_bytes < GATHER_BYTES && after < 2 * GATHER_TIME;
        self.n_quick = if is_quick { self.n_quick.saturating_add(1) } else { 0 };
        (self.n_quick >= GATHER_AFTER).then_some(GATHER_TIME)
    }
}

enum State {
    /// The stream is open, the provider has not begun to answer.
    Waiting(Exchange),
    /// The answer flows.
    Flowing(Relay, Answer),
    /// The answer has reached the provider's output limit, and the rest is asked for.
    GoingOn(Relay, Pin<Box<dyn Future<Output = Result<turn::Rest, Failure>> + Send>>),
    /// The terminal event is written.
    Ended,
}

impl TurnStream {
    /// A stream that was opened before there was an answer.
    pub(crate) fn waiting(worker: Arc<Worker>, exchange: Exchange, desk: Desk, drain: Drain) -> Self {
        Self::new(worker, State::Waiting(exchange), desk, drain)
    }

    /// An answer that has begun.
    pub(crate) fn flowing(worker: Arc<Worker>, begun: Begun, desk: Desk, drain: Drain) -> Self {
        desk.lock().account.first_event();
        Self::new(worker, State::Flowing(begun.relay, begun.upstream), desk, drain)
    }

    fn new(worker: Arc<Worker>, state: State, desk: Desk, drain: Drain) -> Self {
        let now = Instant::now();
        let idle_timeout = Duration::from_secs(worker.endpoint.limits.idle_timeout_s);
        Self {
            worker,
            desk,
            state,
            patience: Patience::new(idle_timeout, 0),
            active_at: now,
            keepalive_at: now + KEEPALIVE_INTERVAL,
            timer: Box::pin(tokio::time::sleep(KEEPALIVE_INTERVAL.min(idle_timeout))),
            is_gathering: false,
            pace: Pace::default(),
            expired: Box::pin({
                let drain = drain.clone();
                async move { drain.expired().await }
            }),
            drain,
        }
    }

    pub(crate) fn is_ended(&self) -> bool {
        matches!(self.state, State::Ended) && self.desk.lock().ready.is_empty()
    }

    /// The next bytes for Codex: everything that can be made of what the provider has delivered so far, as one write.
    pub(crate) fn poll_bytes(&mut self, ctx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut out = std::mem::take(&mut self.desk.lock().ready);
        // Here, too: a provider that is never silent does not put off the end of this worker.
        if self.drain.has_begun() && !matches!(self.state, State::Ended) && self.expired.as_mut().poll(ctx).is_ready() {
            self.end(EndCause::Failed(turn::being_replaced()), &mut out);
        }
        if self.is_gathering && out.is_empty() && !matches!(self.state, State::Ended) {
            std::task::ready!(self.timer.as_mut().poll(ctx));
            self.is_gathering = false;
        }
        // The clock is read once, not for each event.
        let mut is_active = false;
        while out.len() < WRITE_BYTES_MAX {
            let polled = match &mut self.state {
                State::Waiting(_) => self.poll_exchange(ctx, &mut out),
                State::Flowing(..) => self.poll_upstream(ctx, &mut out),
                State::GoingOn(..) => self.poll_rest(ctx, &mut out),
                State::Ended => break,
            };
            if polled.is_pending() {
                break;
            }
            is_active = true;
        }
        if is_active {
            let since = std::mem::replace(&mut self.active_at, Instant::now());
            if let State::Flowing(relay, _) = &self.state {
                self.patience.heard(self.active_at, relay.n_events());
            }
            // What is held back, or not shown, is silence for Codex.
            if out.is_empty() {
                self.look_at_clock(self.active_at, &mut out);
            } else {
                self.keepalive_at = self.active_at + KEEPALIVE_INTERVAL;
            }
            let is_flowing = matches!(self.state, State::Flowing(..));
            if let Some(pause) = self.pace.pause(self.active_at.duration_since(since), out.len())
                && is_flowing
            {
                self.is_gathering = true;
                self.timer.as_mut().reset(self.active_at + pause);
            }
        }
        if out.is_empty() {
            self.poll_clock(ctx, &mut out);
        }
        if !out.is_empty() {
            return Poll::Ready(Some(Bytes::from(out)));
        }
        if matches!(self.state, State::Ended) { Poll::Ready(None) } else { Poll::Pending }
    }

    fn poll_exchange(&mut self, ctx: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<()> {
        let State::Waiting(exchange) = &mut self.state else { return Poll::Pending };
        let polled = exchange.as_mut().poll(ctx);
        out.append(&mut self.desk.lock().ready);
        match std::task::ready!(polled) {
            Ok(Begun { relay, upstream }) => {
                self.desk.lock().account.first_event();
                self.state = State::Flowing(relay, upstream);
            }
            Err(TurnEnded::Failed(failure)) => self.fail(&failure, out),
            Err(TurnEnded::Refused(refusal)) => self.fail(&refusal.into_failure(), out),
        }
        Poll::Ready(())
    }

    fn poll_upstream(&mut self, ctx: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<()> {
        let State::Flowing(relay, upstream) = &mut self.state else { return Poll::Pending };
        if relay.wants_more() {
            self.go_on();
            return Poll::Ready(());
        }
        // It may have come whole with its first bytes, from a provider that keeps the connection open.
        if relay.is_finished() {
            self.end(EndCause::Eof, out);
            return Poll::Ready(());
        }
        let frame = std::task::ready!(Pin::new(upstream).poll_frame(ctx));
        let cause = match frame {
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    relay.feed(&data, out);
                }
                return Poll::Ready(());
            }
            Some(Err(error)) => {
                EndCause::Failed(upstream::broken(Trouble::Broke, &format!("the connection broke: {error}")))
            }
            None => {
                if relay.end_of_body(out) {
                    return Poll::Ready(());
                }
                EndCause::Eof
            }
        };
        self.end(cause, out);
        Poll::Ready(())
    }

    /// Asks for the rest of the answer.
    fn go_on(&mut self) {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Flowing(relay, upstream) => {
                let rest = turn::rest(Arc::clone(&self.worker), self.desk.clone(), relay.so_far());
                self.state = State::GoingOn(relay, Box::pin(rest));
                read_tail(upstream);
            }
            other => self.state = other,
        }
    }

    fn poll_rest(&mut self, ctx: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<()> {
        let State::GoingOn(relay, rest) = &mut self.state else { return Poll::Pending };
        match std::task::ready!(rest.as_mut().poll(ctx)) {
            Ok(rest) => {
                let upstream = relay.go_on(rest);
                if let State::GoingOn(relay, _) = std::mem::replace(&mut self.state, State::Ended) {
                    self.state = State::Flowing(relay, upstream);
                }
            }
            Err(failure) => {
                tracing::info!(cause = %redact::redact(&failure.message), "the rest of an answer could not be had");
                self.end(EndCause::Eof, out);
            }
        }
        Poll::Ready(())
    }

    /// Keepalives, the end of patience and of this worker, looked at while nothing has come of what the provider sends.
    fn poll_clock(&mut self, ctx: &mut Context<'_>, out: &mut Vec<u8>) {
        if matches!(self.state, State::Ended) {
            return;
        }
        if self.expired.as_mut().poll(ctx).is_ready() {
            self.end(EndCause::Failed(turn::being_replaced()), out);
            return;
        }
        while self.timer.as_mut().poll(ctx).is_ready() {
            self.look_at_clock(Instant::now(), out);
            if matches!(self.state, State::Ended) {
                return;
            }
            let next = self.ends_at().map_or(self.keepalive_at, |ends_at| ends_at.min(self.keepalive_at));
            self.timer.as_mut().reset(next);
        }
    }

    /// Ends an answer that is waited for in vain, and sends a keepalive when it is due.
    fn look_at_clock(&mut self, now: Instant, out: &mut Vec<u8>) {
        if self.ends_at().is_some_and(|ends_at| now >= ends_at) {
            self.end(EndCause::Failed(self.patience.failure()), out);
        } else if now >= self.keepalive_at {
            self.keepalive(out);
            self.keepalive_at = now + KEEPALIVE_INTERVAL;
        }
    }

    /// When the answer is no longer waited for. While the exchange runs it watches its own deadlines.
    fn ends_at(&self) -> Option<Instant> {
        matches!(self.state, State::Flowing(..)).then(|| self.patience.ends_at())
    }

    fn keepalive(&mut self, out: &mut Vec<u8>) {
        match &mut self.state {
            State::Waiting(_) => {
                if let Some(reply) = &mut self.desk.lock().reply {
                    reply.keepalive(out);
                }
            }
            State::Flowing(relay, _) | State::GoingOn(relay, _) => relay.keepalive(out),
            State::Ended => {}
        }
    }

    fn end(&mut self, cause: EndCause, out: &mut Vec<u8>) {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Flowing(mut relay, upstream) => {
                let summary = relay.end(cause, out);
                self.desk.lock().account.ended(&summary);
                read_tail(upstream);
            }
            State::GoingOn(mut relay, _) => {
                let summary = relay.end(cause, out);
                self.desk.lock().account.ended(&summary);
            }
            State::Waiting(_) => {
                if let EndCause::Failed(failure) = cause {
                    self.fail(&failure, out);
                }
            }
            State::Ended => {}
        }
    }

    /// Tells a failure in a stream that holds nothing of an answer.
    fn fail(&mut self, failure: &Failure, out: &mut Vec<u8>) {
        self.state = State::Ended;
        let mut sheet = self.desk.lock();
        let sheet = &mut *sheet;
        let told = answer::told(&self.worker, &sheet.account.report.upstream_model, failure);
        if let Some(reply) = &mut sheet.reply {
            reply.end(EndCause::Failed(told), out);
        }
        sheet.account.failed(failure);
    }
}

/// Reads what follows the last event (normally the end marker alone), so that the connection can be used again.
pub(crate) fn read_tail(mut upstream: Answer) {
    // The end of the body nearly always came with the last event.
    for _ in 0..TAIL_FRAMES_AT_ONCE {
        match Pin::new(&mut upstream).poll_frame(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(Ok(_))) => {}
            Poll::Ready(None | Some(Err(_))) => return,
            Poll::Pending => break,
        }
    }
    tokio::spawn(tokio::time::timeout(TAIL_TIMEOUT, async move { while let Some(Ok(_)) = upstream.frame().await {} }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pauses(pieces: impl IntoIterator<Item = (Duration, usize)>) -> Vec<bool> {
        let mut pace = Pace::default();
        pieces.into_iter().map(|(after, n_bytes)| pace.pause(after, n_bytes).is_some()).collect()
    }

    #[test]
    fn only_many_small_pieces_in_a_row_are_gathered() {
        let quick = (GATHER_TIME / 2, 200);
        let all = pauses([quick; 20]);
        assert_eq!(all.iter().position(|is_paused| *is_paused), Some(GATHER_AFTER as usize - 1));
        assert!(all[GATHER_AFTER as usize..].iter().all(|is_paused| *is_paused));
        assert!(
            !pauses([(Duration::ZERO, GATHER_BYTES); 100]).contains(&true),
            "large ones cost little for what they are"
        );
        assert!(!pauses([(2 * GATHER_TIME, 200); 100]).contains(&true), "slow ones are sent as they come");
        let interrupted = [quick; 20].into_iter().chain([(3 * GATHER_TIME, 200)]).chain([quick; 3]);
        assert_eq!(pauses(interrupted)[20..], [false; 4]);
    }
}
