//! What is known about one endpoint from its signals.

use std::collections::{BTreeMap, VecDeque};

use codex_control::incident::{DETAIL_BYTES_MAX, Millis, Observation, Signal, TAGS_MAX};
use codex_control::tables::incident::{Rule, is_tag};

use super::routes::Cooling;
use crate::policy::Facts;
use crate::trend::{LatencyTrend, MemoryTrend};

/// Errors of late that are kept for the AI's report.
const ERRORS_MAX: usize = 20;
/// Those younger than this are told.
const RECENT_MS: u64 = 60_000;

#[derive(Clone, Debug, Default)]
pub(super) struct About {
    pub(super) facts: Facts,
    /// A person has stopped it.
    pub(super) is_stopped: bool,
    /// Its worker's last probe, heartbeat or life ended badly.
    pub(super) is_unhealthy: bool,
    /// When something good last came from the provider.
    pub(super) good_at: Option<Millis>,
    /// Moments of the signals counted towards each rule, by the rule's number.
    pub(super) counts: BTreeMap<usize, VecDeque<Millis>>,
    pub(super) latency: LatencyTrend,
    /// Of its own provider, whoever has used it.
    pub(super) cooling: Cooling,
    memory: MemoryTrend,
    /// The worker's memory grows towards its limit, and there was no other worker since.
    pub(super) memory_rises: bool,
    pub(super) memory_bytes: Option<u64>,
    pub(super) last_status: Option<u64>,
    pub(super) model: Option<String>,
    errors: VecDeque<(Millis, Observation, String)>,
    pub(super) touched_at: Millis,
}

impl About {
    /// Takes notice of a signal; returns one that follows from it and those before.
    pub(super) fn note(&mut self, now: Millis, signal: &Signal) -> Option<Signal> {
        use Observation as O;
        self.touched_at = now;
        if signal.model.is_some() {
            self.model.clone_from(&signal.model);
        }
        let follows = |what| Signal { what, detail: String::new(), tags: Vec::new(), ..signal.clone() };
        match signal.what {
            O::UserStopped => {
                self.is_stopped = true;
                self.counts.clear();
            }
            O::UserStarted => self.is_stopped = false,
            O::WorkerReady => {
                self.is_unhealthy = false;
                self.memory.reset();
                self.memory_rises = false;
            }
            O::ProbeGood => self.is_unhealthy = false,
            O::WorkerKilled
            | O::WorkerCrashed
            | O::WorkerStuck
            | O::WorkerTripped
            | O::ProbeRefused
            | O::ProbeTimedOut => self.is_unhealthy = true,
            O::MemoryRising => self.memory_rises = true,
            O::WorkerMemory => {
                self.memory_bytes = signal.value;
                let (value, limit) = (signal.value?, signal.limit?);
                let left_ms = self.memory.sample(now, value, limit)?;
                self.memory_rises = true;
                let detail = format!("{} MiB and growing, limit {} MiB", value >> 20, limit >> 20);
                return Some(Signal { value: Some(left_ms), detail, ..follows(O::MemoryRising) });
            }
            O::UpstreamGood => {
                self.good_at = Some(now);
                self.last_status = Some(200);
                let (lately, usual) = self.latency.answer(signal.value?)?;
                let detail = format!("answers begin after {lately} ms, usually after {usual} ms");
                return Some(Signal { value: Some(lately), limit: Some(usual), detail, ..follows(O::LatencyRising) });
            }
            O::ToolCallGood => self.good_at = Some(now),
            what if has_status(what) => self.last_status = signal.value,
            O::UpstreamRateLimited => self.last_status = Some(429),
            _ => {}
        }
        if !signal.is_good() {
            if self.errors.len() == ERRORS_MAX {
                self.errors.pop_front();
            }
            self.errors.push_back((now, signal.what, signal.detail.clone()));
        }
        None
    }

    /// Counts a signal towards a rule; if it is enough, since when.
    pub(super) fn count(&mut self, now: Millis, number: usize, rule: &Rule) -> Option<Millis> {
        if rule.count <= 1 && rule.window_s == 0 {
            return Some(now);
        }
        let counted = self.counts.entry(number).or_default();
        counted.push_back(now);
        while counted.len() > rule.count as usize {
            counted.pop_front();
        }
        if rule.window_s > 0 {
            let oldest = now.saturating_sub(rule.window_s.saturating_mul(1000));
            while counted.front().is_some_and(|at| *at < oldest) {
                counted.pop_front();
            }
        }
        let since = *counted.front()?;
        (counted.len() >= rule.count as usize).then_some(since)
    }

    pub(super) fn forget_counts(&mut self) {
        self.counts.clear();
    }

    /// Errors of the last minute, oldest first, as they came.
    pub(super) fn recent_errors(&self, now: Millis) -> impl Iterator<Item = (u64, Observation, &str)> {
        let ages = self.errors.iter().map(move |(at, what, detail)| (now - at, *what, detail.as_str()));
        ages.filter(|(age, ..)| *age <= RECENT_MS)
    }

    /// How often `what` was among the errors of the last minute.
    pub(super) fn n_recent(&self, now: Millis, what: &[Observation]) -> usize {
        self.recent_errors(now).filter(|(_, seen, _)| what.contains(seen)).count()
    }
}

/// Whether the value of such a signal is an HTTP status.
pub(super) fn has_status(what: Observation) -> bool {
    use Observation as O;
    matches!(
        what,
        O::UpstreamServerError
            | O::UpstreamUnauthorized
            | O::UpstreamQuotaSpent
            | O::UpstreamUpgradeRequired
            | O::UpstreamBadRequest
            | O::UpstreamOverloaded
            | O::UpstreamBlocked
    )
}

/// The signal within its bounds.
pub(super) fn tidied(mut signal: Signal) -> Signal {
    signal.detail.truncate(signal.detail.floor_char_boundary(DETAIL_BYTES_MAX));
    if signal.detail.contains(char::is_control) {
        signal.detail = signal.detail.replace(char::is_control, " ");
    }
    if let Some(model) = &mut signal.model {
        model.truncate(model.floor_char_boundary(DETAIL_BYTES_MAX));
    }
    signal.tags.retain(|tag| is_tag(tag));
    signal.tags.truncate(TAGS_MAX);
    signal
}
