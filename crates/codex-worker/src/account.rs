//! The account of one request: what is told to the supervisor and to the log when it has ended.

use std::sync::Arc;
use std::time::Instant;

use codex_control::ipc::{FromWorker, LastFailure, RequestOutcome, RequestReport};
use codex_control::redact;
use codex_translate::history::earlier;
use codex_translate::reply::Outcome;
use codex_translate::{Failure, Summary};
use http::StatusCode;
use tokio::sync::OwnedSemaphorePermit;

use crate::answer;
use crate::worker::{Worker, now_unix_ms};

/// The account of one request; reported exactly once, however the request ends.
pub(crate) struct Account {
    worker: Arc<Worker>,
    pub(crate) report: RequestReport,
    /// The items of the conversation that the answer continues, where the client wants both to be kept.
    pub(crate) conversation: Option<Conversation>,
    started_at: Instant,
    is_reported: bool,
}

/// The items of a conversation, as JSON, separated by commas.
pub(crate) struct Conversation {
    pub(crate) items: Vec<u8>,
    /// Among all that is kept for answers.
    pub(crate) _room: OwnedSemaphorePermit,
}

impl Account {
    pub(crate) fn new(worker: &Arc<Worker>) -> Self {
        worker.metrics.request_started();
        Self {
            worker: Arc::clone(worker),
            report: RequestReport {
                request: request_id(),
                model: String::new(),
                upstream_model: String::new(),
                status: 200,
                outcome: RequestOutcome::Cancelled,
                failure: None,
                message: None,
                attempts: 0,
                request_bytes: 0,
                first_event_ms: None,
                elapsed_ms: 0,
                ended_at_ms: 0,
                input_tokens: None,
                output_tokens: None,
                cached_tokens: None,
                reasoning_tokens: None,
            },
            conversation: None,
            started_at: Instant::now(),
            is_reported: false,
        }
    }

    pub(crate) fn response_id(&self) -> String {
        format!("resp_{}", self.report.request)
    }

    pub(crate) fn first_event(&mut self) {
        self.report.first_event_ms = Some(self.elapsed_ms());
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.started_at.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The answer has ended by itself.
    pub(crate) fn ended(&mut self, summary: &Summary) {
        if let Some(Conversation { mut items, .. }) = self.conversation.take()
            && summary.outcome == Outcome::Completed
        {
            earlier::append(&mut items, &summary.output);
            let (mut earlier, now_ms) = self.worker.earlier();
            earlier.keep(now_ms, &self.response_id(), items);
        }
        self.worker.states.made(&summary.states, summary.is_compacted);
        if let Some(usage) = &summary.usage {
            self.report.input_tokens = Some(usage.input_tokens);
            self.report.output_tokens = Some(usage.output_tokens);
            self.report.cached_tokens = Some(usage.cached_tokens);
            self.report.reasoning_tokens = Some(usage.reasoning_tokens);
            self.worker.metrics.tokens(usage.input_tokens, usage.output_tokens);
        }
        match &summary.outcome {
            Outcome::Completed => self.succeeded(RequestOutcome::Completed),
            Outcome::Incomplete => self.succeeded(RequestOutcome::Incomplete),
            Outcome::Failed(failure) => self.failed(failure),
        }
    }

    fn succeeded(&mut self, outcome: RequestOutcome) {
        self.worker.metrics.succeeded();
        self.worker.answered(&self.report.upstream_model, self.report.first_event_ms);
        self.report.outcome = outcome;
        self.send();
    }

    pub(crate) fn failed(&mut self, failure: &Failure) {
        let message = redact::redact(&failure.message).into_owned();
        let has_begun = self.report.first_event_ms.is_some();
        self.worker.answer_failed(&self.report.upstream_model, failure, has_begun);
        self.worker.metrics.failed(LastFailure {
            at_ms: now_unix_ms(),
            class: answer::class_name(failure.class).to_owned(),
            status: failure.http_status,
            message: message.clone(),
            hint: answer::hint(&self.worker, failure.class),
        });
        self.report.outcome = RequestOutcome::Failed;
        self.report.failure = Some(answer::class_name(failure.class).to_owned());
        self.report.message = Some(message);
        self.send();
    }

    /// No provider was asked.
    pub(crate) fn refused(&mut self, status: StatusCode, message: &str) {
        self.report.outcome = RequestOutcome::Refused;
        self.report.status = status.as_u16();
        self.report.message = Some(redact::redact(message).into_owned());
        self.send();
    }

    fn send(&mut self) {
        if std::mem::replace(&mut self.is_reported, true) {
            return;
        }
        self.report.elapsed_ms = self.elapsed_ms();
        self.report.ended_at_ms = now_unix_ms();
        self.worker.metrics.request_ended();
        let report = &self.report;
        tracing::info!(
            request = %report.request,
            model = %report.upstream_model,
            status = report.status,
            outcome = ?report.outcome,
            fault = report.failure,
            attempt = report.attempts,
            bytes = report.request_bytes,
            elapsed_ms = report.elapsed_ms,
            first_event_ms = report.first_event_ms,
            "request ended"
        );
        self.worker.report(FromWorker::Finished(Box::new(report.clone())));
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        // Not reported: Codex closed the connection, and this value went with it.
        if !self.is_reported && self.report.attempts > 0 {
            self.worker.abandoned(&self.report.upstream_model);
        }
        self.send();
    }
}

/// 24 hexadecimal digits, random.
fn request_id() -> String {
    let mut bytes = [0_u8; 12];
    if getrandom::fill(&mut bytes).is_err() {
        // Unique is enough: nothing is protected by it.
        bytes[..8].copy_from_slice(&now_unix_ms().to_le_bytes());
    }
    bytes.iter().fold(String::with_capacity(24), |text, byte| text + &format!("{byte:02x}"))
}
