//! What this worker tells the incident engine: the one door through which signals go.
//!
//! Each attempt at the provider that failed and each answer that came is one [`Signal`]. They leave in the queue of all
//! reports: bounded, what finds it full is dropped and counted, no request waits for it.
//!
//! Nothing here decides what is wrong or what is done about it; it says what was seen, in the engine's words.

use codex_control::incident::{Observation, Signal};
use codex_control::ipc::FromWorker;
use codex_control::redact;
use codex_translate::{Failure, FailureClass, Trouble};

use crate::worker::Worker;

/// Words of bot walls: the answer of one stands where the provider's should be.
///
/// Source: Cloudflare's error pages, <https://developers.cloudflare.com/support/troubleshooting/http-status-codes/cloudflare-1xxx-errors/>.
const BOT_WALLS: [&str; 4] =
    ["error code: 1010", "error 1010", "attention required! | cloudflare", "sorry, you have been blocked"];

impl Worker {
    /// Tells the supervisor what was seen.
    pub(crate) fn see(&self, signal: Signal) {
        self.report(FromWorker::Signals(vec![signal]));
    }

    /// Whether what was learned could be read.
    pub(crate) fn looked_at_facts(&self) {
        let endpoint = &self.endpoint.id;
        self.see(match self.learned.damage() {
            Some(damage) => Signal::of(Observation::FactsCorrupt, endpoint).detail(damage),
            None => Signal::of(Observation::FactsSound, endpoint),
        });
    }

    /// An attempt at the provider has failed; it may be made again.
    pub(crate) fn attempt_failed(&self, model: &str, failure: &Failure) {
        // One that makes no sense is a riddle only when asking again does not help.
        if failure.class != FailureClass::Malformed {
            self.failed(model, failure, false);
        }
    }

    /// Codex got a failure instead of an answer, or in the middle of one that had begun.
    pub(crate) fn answer_failed(&self, model: &str, failure: &Failure, has_begun: bool) {
        // The attempts before were told one by one.
        if has_begun || failure.class == FailureClass::Malformed {
            self.failed(model, failure, has_begun);
        }
    }

    fn failed(&self, model: &str, failure: &Failure, has_begun: bool) {
        if let Some((what, value)) = observed(failure, has_begun) {
            let detail = redact::redact(&failure.message).into_owned();
            self.see(
                Signal { model: Some(model.to_owned()), value, ..Signal::of(what, &self.endpoint.id) }.detail(detail),
            );
        }
    }

    /// The provider has answered.
    pub(crate) fn answered(&self, model: &str, first_event_ms: Option<u64>) {
        let signal = Signal::of(Observation::UpstreamGood, &self.endpoint.id);
        self.see(Signal { model: Some(model.to_owned()), value: first_event_ms, ..signal });
    }

    /// Codex closed its connection before the answer was whole.
    pub(crate) fn abandoned(&self, model: &str) {
        self.see(Signal { model: Some(model.to_owned()), ..Signal::of(Observation::ClientGone, &self.endpoint.id) });
    }
}

/// What a failure is in the engine's words, and its figure; `None`: nothing that anybody has to mend.
fn observed(failure: &Failure, has_begun: bool) -> Option<(Observation, Option<u64>)> {
    use Observation as O;
    let status = failure.http_status.map(u64::from);
    let bytes = u64::from(has_begun);
    let words = failure.message.to_ascii_lowercase();
    if status == Some(403) && BOT_WALLS.iter().any(|wall| words.contains(wall)) {
        return Some((O::UpstreamBlocked, status));
    }
    let wait_ms = failure.retry_after.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
    if failure.trouble == Some(Trouble::EndedByUs) {
        return None;
    }
    Some(match (failure.class, failure.trouble) {
        (_, Some(Trouble::NameNotFound)) => (O::UpstreamDnsFailed, None),
        (_, Some(Trouble::Untrusted)) => (O::UpstreamTlsFailed, None),
        (_, Some(Trouble::TimedOut)) => (O::UpstreamTimedOut, None),
        (_, Some(Trouble::Silent)) => (O::StreamIdle, Some(bytes)),
        (_, Some(Trouble::Broke | Trouble::EndedByUs)) | (FailureClass::Network | FailureClass::Truncated, None) => {
            (O::UpstreamReset, Some(bytes))
        }
        (FailureClass::Auth, None) => (O::UpstreamUnauthorized, status),
        (FailureClass::Quota, None) => (O::UpstreamQuotaSpent, status),
        (FailureClass::RateLimit, None) => (O::UpstreamRateLimited, wait_ms),
        (FailureClass::UpgradeRequired, None) => (O::UpstreamUpgradeRequired, status),
        (FailureClass::Overloaded, None) => (O::UpstreamOverloaded, status),
        (FailureClass::Server, None) => (O::UpstreamServerError, status),
        (FailureClass::InvalidRequest, None) => (O::UpstreamBadRequest, status),
        (FailureClass::Malformed, None) => (O::UpstreamNonsense, status),
        // The conversation's length, a model's name and the provider's policy are the person's matters: Codex shows them.
        (FailureClass::ContextLength | FailureClass::ModelNotFound | FailureClass::Refused, None) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(status: u16, body: &str) -> Failure {
        Failure::from_response(status, &[("retry-after", "3")], body.as_bytes(), 0)
    }

    #[test]
    fn failures_become_what_was_seen() {
        use Observation as O;
        let connection = |trouble| Failure::of_connection(trouble, "m");
        for (failure, expected) in [
            (response(429, "{}"), Some((O::UpstreamRateLimited, Some(3_000)))),
            (response(500, "{}"), Some((O::UpstreamServerError, Some(500)))),
            (response(502, "{}"), Some((O::UpstreamServerError, Some(502)))),
            (response(529, r#"{"error":{"type":"overloaded_error"}}"#), Some((O::UpstreamOverloaded, Some(529)))),
            (response(401, "{}"), Some((O::UpstreamUnauthorized, Some(401)))),
            (response(402, "{}"), Some((O::UpstreamQuotaSpent, Some(402)))),
            (response(403, "error code: 1010"), Some((O::UpstreamBlocked, Some(403)))),
            (response(403, r#"{"error":"upgrade_required"}"#), Some((O::UpstreamUpgradeRequired, Some(403)))),
            (
                response(400, r#"{"error":{"message":"Invalid type: expected string"}}"#),
                Some((O::UpstreamBadRequest, Some(400))),
            ),
            (response(400, r#"{"error":{"code":"context_length_exceeded"}}"#), None),
            (connection(Trouble::NameNotFound), Some((O::UpstreamDnsFailed, None))),
            (connection(Trouble::Untrusted), Some((O::UpstreamTlsFailed, None))),
            (connection(Trouble::TimedOut), Some((O::UpstreamTimedOut, None))),
            (connection(Trouble::Broke), Some((O::UpstreamReset, Some(1)))),
            (connection(Trouble::Silent), Some((O::StreamIdle, Some(1)))),
            (connection(Trouble::EndedByUs), None),
            (Failure::new(FailureClass::Truncated, "m"), Some((O::UpstreamReset, Some(1)))),
            (Failure::new(FailureClass::Malformed, "m"), Some((O::UpstreamNonsense, None))),
        ] {
            assert_eq!(observed(&failure, true), expected, "{failure:?}");
        }
    }
}
