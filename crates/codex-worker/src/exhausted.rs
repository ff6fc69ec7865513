//! Requests whose attempts are spent: Codex asks again by itself, five times, and each of those must not get all of our
//! attempts once more. Together they are one budget.
//!
//! A request is recognised by its thread, its model and the length of its conversation: asked again it is the same in
//! all three.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use codex_translate::responses::Request;
use tokio::time::Instant;

/// How long a request is remembered: Codex's own tries follow each other within seconds.
const LIFE: Duration = Duration::from_mins(2);
/// Most requests remembered; the oldest goes first.
const REQUESTS_MAX: usize = 64;

/// What a request is recognised by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint(u64);

impl Fingerprint {
    pub(crate) fn of(request: &Request<'_>) -> Self {
        let mut hasher = DefaultHasher::new();
        (&*request.model, request.prompt_cache_key.as_deref(), request.input.len()).hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// The requests of one worker. The lock protects a short list; nothing is awaited under it.
#[derive(Debug, Default)]
pub(crate) struct Exhausted(Mutex<VecDeque<(Fingerprint, Instant)>>);

impl Exhausted {
    fn lock(&self) -> MutexGuard<'_, VecDeque<(Fingerprint, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The attempts of this request are spent.
    pub(crate) fn note(&self, now: Instant, request: Fingerprint) {
        let mut requests = self.lock();
        requests.retain(|(known, _)| *known != request);
        if requests.len() >= REQUESTS_MAX {
            requests.pop_front();
        }
        requests.push_back((request, now));
    }

    /// Whether they were, a short time ago.
    pub(crate) fn contains(&self, now: Instant, request: Fingerprint) -> bool {
        let mut requests = self.lock();
        requests.retain(|(_, at)| now.saturating_duration_since(*at) < LIFE);
        requests.iter().any(|(known, _)| *known == request)
    }

    /// The request was answered.
    pub(crate) fn forget(&self, request: Fingerprint) {
        self.lock().retain(|(known, _)| *known != request);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint(body: &str) -> Fingerprint {
        Fingerprint::of(&Request::parse(body.as_bytes()).unwrap())
    }

    #[test]
    fn a_request_is_recognised_when_it_is_asked_again() {
        let first = fingerprint(r#"{"model":"m","prompt_cache_key":"t","input":[{"role":"user","content":"a"}]}"#);
        let again =
            r#"{"model":"m","prompt_cache_key":"t","input":[{"role":"user","content":"a"}],"client_metadata":{"x":1}}"#;
        assert_eq!(fingerprint(again), first);
        for other in [
            r#"{"model":"n","prompt_cache_key":"t","input":[{"role":"user","content":"a"}]}"#,
            r#"{"model":"m","prompt_cache_key":"u","input":[{"role":"user","content":"a"}]}"#,
            r#"{"model":"m","prompt_cache_key":"t","input":[]}"#,
        ] {
            assert_ne!(fingerprint(other), first, "{other}");
        }
    }

    #[test]
    fn requests_are_remembered_for_a_while_and_not_all_of_them() {
        let (exhausted, now) = (Exhausted::default(), Instant::now());
        let [first, second] = [Fingerprint(1), Fingerprint(2)];
        exhausted.note(now, first);
        exhausted.note(now, second);
        exhausted.forget(second);
        assert!(exhausted.contains(now, first) && !exhausted.contains(now, second));
        assert!(!exhausted.contains(now + LIFE, first));
        for n in 0..=REQUESTS_MAX as u64 {
            exhausted.note(now, Fingerprint(n));
        }
        assert!(!exhausted.contains(now, Fingerprint(0)) && exhausted.contains(now, first));
    }
}
