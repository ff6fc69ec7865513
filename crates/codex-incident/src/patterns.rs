//! Which fix has helped against what, as far as it was seen.
//!
//! Each pair of fingerprint and fix keeps two weights, successes and failures. Every new outcome takes a tenth off the
//! older ones, so that about the last ten count; every thirty days halve them. So a fix that stops helping is given up
//! after a few failures however long it helped before, and one that nobody has seen for months must prove itself again.

use std::collections::BTreeMap;

use codex_control::incident::{Action, Fault, Millis};
use codex_control::tables::incident::PatternRow;
use serde::{Deserialize, Serialize};

/// Most entries; the one used longest ago goes for a new one.
pub const PATTERNS_MAX: usize = 500;

/// What an older outcome still weighs when a new one comes.
const KEPT_PER_OUTCOME: f64 = 0.9;
/// In this time weights halve.
const HALF_LIFE_MS: f64 = 30.0 * 24.0 * 3_600_000.0;
/// Failures in a row after which a fix rests for [`DEMOTED_MS`], whatever its rate.
const DEMOTED_AFTER: u32 = 2;
/// How long.
const DEMOTED_MS: u64 = 24 * 60 * 60 * 1000;
/// Less evidence than this is none.
const WEIGHT_MIN: f64 = 0.25;
/// 95 %: the number of standard deviations for the lower bound.
const Z: f64 = 1.96;

/// One fix for one fingerprint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Known {
    /// Against what.
    pub fingerprint: String,
    /// What was done.
    pub fix: Action,
    /// The faults it was seen with.
    pub faults: Vec<Fault>,
    /// Who found it: `tier1_rule`, `tier3_ai`, `FIX-23`, …
    pub source: String,
    /// Weight of its successes at [`Known::seen_at_ms`].
    pub successes: f64,
    /// Weight of its failures at the same moment.
    pub failures: f64,
    /// Successes ever.
    pub success_count: u64,
    /// Failures ever.
    pub fail_count: u64,
    /// Failures since the last success.
    pub failures_in_a_row: u32,
    /// When its last outcome was seen; 0: never by us.
    pub seen_at_ms: Millis,
    /// When it was last looked up or had an outcome.
    pub used_at_ms: Millis,
}

impl Known {
    fn faded(&self, now: Millis) -> (f64, f64) {
        if self.seen_at_ms == 0 {
            return (self.successes, self.failures);
        }
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of months are far below 2^53")]
        let kept = 0.5_f64.powf(now.saturating_sub(self.seen_at_ms) as f64 / HALF_LIFE_MS);
        (self.successes * kept, self.failures * kept)
    }

    /// Its rate of success, 0 to 1; 0 without evidence.
    pub fn rate(&self, now: Millis) -> f64 {
        let (successes, failures) = self.faded(now);
        if successes + failures < WEIGHT_MIN { 0.0 } else { successes / (successes + failures) }
    }

    /// The lower bound (Wilson, 95 %) of its rate of success: of two fixes with the same rate, the one seen more often
    /// is the better bet.
    pub fn lower_bound(&self, now: Millis) -> f64 {
        let (successes, failures) = self.faded(now);
        let n = successes + failures;
        if n < WEIGHT_MIN {
            return 0.0;
        }
        let rate = successes / n;
        let centre = rate + Z * Z / (2.0 * n);
        let spread = Z * (rate * (1.0 - rate) / n + Z * Z / (4.0 * n * n)).sqrt();
        ((centre - spread) / (1.0 + Z * Z / n)).max(0.0)
    }

    /// Whether it rests because it failed several times in a row of late.
    pub fn is_demoted(&self, now: Millis) -> bool {
        self.failures_in_a_row >= DEMOTED_AFTER && now.saturating_sub(self.seen_at_ms) < DEMOTED_MS
    }
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Patterns {
    of: BTreeMap<String, Vec<Known>>,
    len: usize,
}

impl Patterns {
    /// The fixes that are known to begin with.
    pub fn seeded(rows: &[PatternRow]) -> Self {
        let mut patterns = Self::default();
        for row in rows {
            patterns.put(Known {
                fingerprint: row.id.clone(),
                fix: row.fix,
                faults: row.faults.clone(),
                source: row.source.clone(),
                successes: f64::from(row.success_count),
                failures: f64::from(row.fail_count),
                success_count: row.success_count.into(),
                fail_count: row.fail_count.into(),
                failures_in_a_row: 0,
                seen_at_ms: 0,
                used_at_ms: 0,
            });
        }
        patterns
    }

    /// All of them, by fingerprint.
    pub fn iter(&self) -> impl Iterator<Item = &Known> {
        self.of.values().flatten()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds or replaces one. Moments of the future and weights that are no numbers become now and nothing.
    pub fn put(&mut self, known: Known) {
        let of_fingerprint = self.of.entry(known.fingerprint.clone()).or_default();
        if let Some(existing) = of_fingerprint.iter_mut().find(|existing| existing.fix == known.fix) {
            *existing = known;
            return;
        }
        of_fingerprint.push(known);
        self.len += 1;
        if self.len > PATTERNS_MAX {
            self.drop_oldest();
        }
    }

    /// Takes moments of the future for `now`.
    pub(crate) fn clamp(&mut self, now: Millis) {
        for known in self.of.values_mut().flatten() {
            known.seen_at_ms = known.seen_at_ms.min(now);
            known.used_at_ms = known.used_at_ms.min(now);
            for weight in [&mut known.successes, &mut known.failures] {
                *weight = if weight.is_finite() { weight.clamp(0.0, 1e9) } else { 0.0 };
            }
        }
    }

    /// The best fix for `fingerprint` that is not among `tried`: its rate of success is above `rate_min`, and of those
    /// its lower bound is the highest.
    pub fn best(&mut self, now: Millis, fingerprint: &str, tried: &[Action], rate_min: f64) -> Option<&Known> {
        let of_fingerprint = self.of.get_mut(fingerprint)?;
        let best = of_fingerprint
            .iter_mut()
            .filter(|known| !tried.contains(&known.fix) && !known.is_demoted(now) && known.rate(now) > rate_min)
            .max_by(|a, b| a.lower_bound(now).total_cmp(&b.lower_bound(now)).then(b.fix.cmp(&a.fix)))?;
        best.used_at_ms = now;
        Some(best)
    }

    /// What is known about one fix.
    pub fn get(&self, fingerprint: &str, fix: Action) -> Option<&Known> {
        self.of.get(fingerprint)?.iter().find(|known| known.fix == fix)
    }

    /// Remembers an outcome that was seen.
    pub(crate) fn learn(
        &mut self,
        now: Millis,
        fingerprint: &str,
        fault: Option<Fault>,
        fix: Action,
        source: &str,
        helped: bool,
    ) {
        let is_new = self.get(fingerprint, fix).is_none();
        if is_new {
            self.put(Known {
                fingerprint: fingerprint.to_owned(),
                fix,
                faults: Vec::new(),
                source: source.to_owned(),
                successes: 0.0,
                failures: 0.0,
                success_count: 0,
                fail_count: 0,
                failures_in_a_row: 0,
                seen_at_ms: now,
                used_at_ms: now,
            });
        }
        let of_fingerprint = self.of.get_mut(fingerprint);
        let Some(known) = of_fingerprint.and_then(|all| all.iter_mut().find(|known| known.fix == fix)) else { return };
        let (successes, failures) = known.faded(now);
        known.successes = successes * KEPT_PER_OUTCOME + f64::from(u8::from(helped));
        known.failures = failures * KEPT_PER_OUTCOME + f64::from(u8::from(!helped));
        if helped {
            known.success_count += 1;
            known.failures_in_a_row = 0;
        } else {
            known.fail_count += 1;
            known.failures_in_a_row = known.failures_in_a_row.saturating_add(1);
        }
        if let Some(fault) = fault.filter(|fault| !known.faults.contains(fault)) {
            known.faults.push(fault);
        }
        known.seen_at_ms = now;
        known.used_at_ms = now;
    }

    fn drop_oldest(&mut self) {
        let oldest = self.iter().min_by_key(|known| known.used_at_ms);
        let Some((fingerprint, fix)) = oldest.map(|known| (known.fingerprint.clone(), known.fix)) else { return };
        if let Some(of_fingerprint) = self.of.get_mut(&fingerprint) {
            of_fingerprint.retain(|known| known.fix != fix);
            self.len -= 1;
            if of_fingerprint.is_empty() {
                self.of.remove(&fingerprint);
            }
        }
    }
}

impl FromIterator<Known> for Patterns {
    fn from_iter<I: IntoIterator<Item = Known>>(all: I) -> Self {
        let mut patterns = Self::default();
        for known in all {
            patterns.put(known);
        }
        patterns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = 1_795_000_000_000;
    const RATE_MIN: f64 = 0.7;

    fn learn(patterns: &mut Patterns, fix: Action, outcomes: &[bool]) {
        for helped in outcomes {
            patterns.learn(NOW, "f", None, fix, "test", *helped);
        }
    }

    fn best(patterns: &mut Patterns, now: Millis) -> Option<Action> {
        patterns.best(now, "f", &[], RATE_MIN).map(|known| known.fix)
    }

    #[test]
    fn one_seen_success_is_enough_and_one_failure_after_it_too_much() {
        let mut patterns = Patterns::default();
        learn(&mut patterns, Action::RetryNow, &[true]);
        assert_eq!(best(&mut patterns, NOW), Some(Action::RetryNow));
        learn(&mut patterns, Action::RetryNow, &[false]);
        assert_eq!(best(&mut patterns, NOW), None);
    }

    #[test]
    fn nine_of_ten_is_applied_wherever_the_failure_was() {
        for failure in 0..10 {
            let mut patterns = Patterns::default();
            let outcomes: Vec<bool> = (0..10).map(|n| n != failure).collect();
            learn(&mut patterns, Action::RetryNow, &outcomes);
            assert_eq!(best(&mut patterns, NOW), Some(Action::RetryNow), "failure {failure}");
        }
    }

    #[test]
    fn a_long_success_does_not_outlive_its_end() {
        let mut patterns = Patterns::default();
        learn(&mut patterns, Action::RetryNow, &[true; 200]);
        learn(&mut patterns, Action::RetryNow, &[false; 2]);
        assert_eq!(best(&mut patterns, NOW), None);
        assert_eq!(best(&mut patterns, NOW + DEMOTED_MS), Some(Action::RetryNow), "a day later it gets a chance");
        learn(&mut patterns, Action::RetryNow, &[false; 2]);
        assert_eq!(best(&mut patterns, NOW + DEMOTED_MS), None, "its rate is too low now");
    }

    #[test]
    fn more_evidence_wins_and_tried_ones_are_left_out() {
        let mut patterns = Patterns::default();
        learn(&mut patterns, Action::RetryNow, &[true]);
        learn(&mut patterns, Action::ClearSchemaCache, &[true, true, true]);
        assert_eq!(best(&mut patterns, NOW), Some(Action::ClearSchemaCache));
        let other = patterns.best(NOW, "f", &[Action::ClearSchemaCache], RATE_MIN).map(|known| known.fix);
        assert_eq!(other, Some(Action::RetryNow));
        assert_eq!(patterns.best(NOW, "unknown", &[], RATE_MIN), None);
    }

    #[test]
    fn evidence_fades() {
        let mut patterns = Patterns::default();
        learn(&mut patterns, Action::RetryNow, &[true]);
        let month = 30 * 24 * 3_600_000;
        assert_eq!(best(&mut patterns, NOW + month), Some(Action::RetryNow));
        assert_eq!(best(&mut patterns, NOW + 3 * month), None);
    }

    #[test]
    fn five_hundred_and_the_one_used_longest_ago_goes() {
        let mut patterns = Patterns::default();
        for n in 0..PATTERNS_MAX as u64 {
            patterns.learn(NOW + n, &format!("f{n}"), None, Action::RetryNow, "test", true);
        }
        assert!(patterns.best(NOW + 10_000, "f0", &[], RATE_MIN).is_some(), "looked up: used");
        patterns.learn(NOW + 10_001, "new", None, Action::RetryNow, "test", true);
        assert_eq!(patterns.len(), PATTERNS_MAX);
        assert!(patterns.get("f0", Action::RetryNow).is_some());
        assert!(patterns.get("f1", Action::RetryNow).is_none());
        assert_eq!(patterns.iter().count(), PATTERNS_MAX);
    }

    #[test]
    fn the_lower_bound_is_wilsons() {
        let mut patterns = Patterns::default();
        patterns.put(Known {
            fingerprint: "f".to_owned(),
            fix: Action::RetryNow,
            faults: Vec::new(),
            source: String::new(),
            successes: 9.0,
            failures: 1.0,
            success_count: 9,
            fail_count: 1,
            failures_in_a_row: 0,
            seen_at_ms: NOW,
            used_at_ms: NOW,
        });
        let bound = patterns.get("f", Action::RetryNow).unwrap().lower_bound(NOW);
        assert!((bound - 0.5958).abs() < 1e-3, "{bound}");
    }
}
