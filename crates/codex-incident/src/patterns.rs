//! Which fix has helped against what, as far as it was seen.
//!
//! Each pair of fingerprint and fix keeps two weights, successes and failures. Every new outcome takes a tenth off the
//! older ones, so that about the last ten count; every thirty days halve them. So a fix that stops helping is given up
//! after a few failures however long it helped before, and one that nobody has seen for months must prove itself again.
//!
//! A fingerprint has two parts, `server_error+repeat_3x@chat_completions+http_502`: what failed, and after the `@` in
//! which circumstances. An outcome is remembered with and without the circumstances. What is known in just these counts
//! first; where that is too little, what is known about the failure as such. Fingerprints without an `@` (of rows, of
//! the first system, of earlier versions) are of the second kind.
//!
//! What a row of `patterns.toml` states is part of the evidence like an outcome, and remembered beside it: a row that
//! is changed later changes the evidence by the difference, and what was seen stays.

use std::collections::BTreeMap;

use codex_control::incident::{Action, Fault, Millis, UnknownName};
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
/// With less evidence in just these circumstances (two outcomes), a fix that failed there is still judged by what is
/// known in general.
const CIRCUMSTANCES_WEIGHT_MIN: f64 = 1.5;
/// Between what failed and the circumstances.
pub(crate) const CIRCUMSTANCES: char = '@';
/// 95 %: the number of standard deviations for the lower bound.
const Z: f64 = 1.96;

/// A fingerprint, and what it is without the circumstances, where that is not the same.
fn levels(fingerprint: &str) -> impl Iterator<Item = &str> {
    let general = general(fingerprint);
    [Some(fingerprint), Some(general).filter(|general| *general != fingerprint)].into_iter().flatten()
}

/// A fingerprint without the circumstances.
pub(crate) fn general(fingerprint: &str) -> &str {
    fingerprint.split_once(CIRCUMSTANCES).map_or(fingerprint, |(general, _)| general)
}

/// What is done against a failure: one action, or two that are done as one, so that an outcome is that of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fix {
    /// The action, or the first of two.
    pub action: Action,
    /// The second one.
    pub then: Option<Action>,
}

impl Fix {
    /// Its actions, in order.
    pub fn actions(self) -> impl Iterator<Item = Action> {
        [Some(self.action), self.then].into_iter().flatten()
    }
}

impl From<Action> for Fix {
    fn from(action: Action) -> Self {
        Self { action, then: None }
    }
}

impl std::fmt::Display for Fix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.then {
            Some(then) => write!(f, "{}+{then}", self.action),
            None => self.action.fmt(f),
        }
    }
}

impl std::str::FromStr for Fix {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (action, then) = text.split_once('+').map_or((text, None), |(action, then)| (action, Some(then)));
        Ok(Self { action: action.parse()?, then: then.map(str::parse).transpose()? })
    }
}

/// What a row of `patterns.toml` states about a fix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stated {
    /// Times it helped.
    successes: u32,
    /// Times it did not.
    failures: u32,
}

impl From<&PatternRow> for Stated {
    fn from(row: &PatternRow) -> Self {
        Self { successes: row.success_count, failures: row.fail_count }
    }
}

/// One fix for one fingerprint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Known {
    /// Against what.
    pub fingerprint: String,
    /// What was done.
    pub fix: Action,
    /// What was done with it, as one; absent in what earlier versions have kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub then: Option<Action>,
    /// What of it a row of `patterns.toml` states; the rest was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stated: Option<Stated>,
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
    /// When its last outcome was seen, or what is stated about it was changed after that; 0: never seen by us.
    pub seen_at_ms: Millis,
    /// When it was last looked up or had an outcome.
    pub used_at_ms: Millis,
}

impl Known {
    /// One of which nothing is known yet.
    fn new(fingerprint: String, fix: Fix, source: String, now: Millis) -> Self {
        Self {
            fingerprint,
            fix: fix.action,
            then: fix.then,
            stated: None,
            faults: Vec::new(),
            source,
            successes: 0.0,
            failures: 0.0,
            success_count: 0,
            fail_count: 0,
            failures_in_a_row: 0,
            seen_at_ms: 0,
            used_at_ms: now,
        }
    }

    /// What is done.
    pub fn what(&self) -> Fix {
        Fix { action: self.fix, then: self.then }
    }

    /// How much evidence there is, in outcomes.
    fn weight(&self, now: Millis) -> f64 {
        let (successes, failures) = self.faded(now);
        successes + failures
    }

    /// Takes the difference between what is stated now and what was stated before for evidence of now. What failed of
    /// late gets another chance: somebody has thought about it.
    fn restate(&mut self, stated: Option<Stated>, now: Millis) {
        let (before, after) = (self.stated.unwrap_or_default(), stated.unwrap_or_default());
        let (successes, failures) = self.faded(now);
        let changed = |weight: f64, before: u32, after: u32| (weight + f64::from(after) - f64::from(before)).max(0.0);
        self.successes = changed(successes, before.successes, after.successes);
        self.failures = changed(failures, before.failures, after.failures);
        let recounted =
            |count: u64, before: u32, after: u32| count.saturating_sub(before.into()).saturating_add(after.into());
        self.success_count = recounted(self.success_count, before.successes, after.successes);
        self.fail_count = recounted(self.fail_count, before.failures, after.failures);
        self.failures_in_a_row = 0;
        self.stated = stated;
        self.used_at_ms = now;
        if self.seen_at_ms > 0 {
            self.seen_at_ms = now;
        }
    }

    fn is_of(&self, row: &PatternRow) -> bool {
        self.fingerprint == row.id && self.what() == row.fix.into()
    }

    /// Whether all that is known about it is what is stated.
    fn is_only_stated(&self) -> bool {
        let is_stated = |stated: Stated| {
            self.success_count == u64::from(stated.successes) && self.fail_count == u64::from(stated.failures)
        };
        self.stated.is_some_and(is_stated)
    }

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
        patterns.take_rows(rows, 0);
        patterns
    }

    /// Takes over what `rows` state: what is new in them, what they say otherwise than before, what they say no more.
    /// What was seen stays, and rows that are as before change nothing.
    pub(crate) fn take_rows(&mut self, rows: &[PatternRow], now: Millis) {
        for row in rows {
            let stated = Some(Stated::from(row));
            if self.get(&row.id, row.fix).is_none() {
                self.put(Known::new(row.id.clone(), row.fix.into(), row.source.clone(), now));
            }
            let Some(known) = self.get_mut(&row.id, row.fix.into()) else { continue };
            if known.stated != stated {
                known.restate(stated, now);
            }
            for fault in &row.faults {
                if !known.faults.contains(fault) {
                    known.faults.push(*fault);
                }
            }
        }
        let is_row = |known: &Known| rows.iter().any(|row| known.is_of(row));
        for of_fingerprint in self.of.values_mut() {
            of_fingerprint.retain(|known| is_row(known) || !known.is_only_stated());
            for known in of_fingerprint.iter_mut().filter(|known| known.stated.is_some() && !is_row(known)) {
                known.restate(None, now);
            }
        }
        self.of.retain(|_, of_fingerprint| !of_fingerprint.is_empty());
        self.len = self.of.values().map(Vec::len).sum();
    }

    /// Takes for stated by `rows` what an earlier version, which did not tell it apart, has begun with.
    pub(crate) fn tell_stated_apart(&mut self, rows: &[PatternRow]) {
        for row in rows {
            let Some(known) = self.get_mut(&row.id, row.fix.into()) else { continue };
            let holds = known.success_count >= row.success_count.into() && known.fail_count >= row.fail_count.into();
            if known.stated.is_none() && holds {
                known.stated = Some(row.into());
            }
        }
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

    /// Adds or replaces one. What is stated about it is part of both.
    pub fn put(&mut self, known: Known) {
        let of_fingerprint = self.of.entry(known.fingerprint.clone()).or_default();
        if let Some(existing) = of_fingerprint.iter_mut().find(|existing| existing.what() == known.what()) {
            *existing = Known { stated: known.stated.or(existing.stated), ..known };
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
        let mut ruled_out: Vec<Fix> = Vec::new();
        let mut found: Option<(&str, Fix)> = None;
        for level in levels(fingerprint) {
            let of_level = self.of.get(level).map_or(&[][..], Vec::as_slice);
            let is_usable = |known: &&Known| {
                let is_tried = known.what().actions().all(|action| tried.contains(&action));
                !is_tried && !ruled_out.contains(&known.what()) && !known.is_demoted(now) && known.rate(now) > rate_min
            };
            let best = of_level
                .iter()
                .filter(is_usable)
                .max_by(|a, b| a.lower_bound(now).total_cmp(&b.lower_bound(now)).then(b.what().cmp(&a.what())));
            if let Some(best) = best {
                found = Some((level, best.what()));
                break;
            }
            let is_judged = |known: &&Known| known.is_demoted(now) || known.weight(now) >= CIRCUMSTANCES_WEIGHT_MIN;
            ruled_out = of_level.iter().filter(is_judged).map(Known::what).collect();
        }
        let (level, fix) = found?;
        let best = self.get_mut(level, fix)?;
        best.used_at_ms = now;
        Some(best)
    }

    /// Whether a fix rests because it failed several times in a row of late: in just these circumstances, or, where it
    /// was never tried in them, at all.
    pub fn is_demoted(&self, now: Millis, fingerprint: &str, fix: impl Into<Fix>) -> bool {
        let fix = fix.into();
        levels(fingerprint).find_map(|level| self.get(level, fix)).is_some_and(|known| known.is_demoted(now))
    }

    /// What is known about one fix with exactly this fingerprint.
    pub fn get(&self, fingerprint: &str, fix: impl Into<Fix>) -> Option<&Known> {
        let fix = fix.into();
        self.of.get(fingerprint)?.iter().find(|known| known.what() == fix)
    }

    fn get_mut(&mut self, fingerprint: &str, fix: Fix) -> Option<&mut Known> {
        self.of.get_mut(fingerprint)?.iter_mut().find(|known| known.what() == fix)
    }

    /// Remembers an outcome that was seen, with the circumstances and without.
    pub(crate) fn learn(
        &mut self,
        now: Millis,
        fingerprint: &str,
        fault: Option<Fault>,
        fix: impl Into<Fix>,
        source: &str,
        helped: bool,
    ) {
        let fix = fix.into();
        for level in levels(fingerprint) {
            if self.get(level, fix).is_none() {
                let known = Known::new(level.to_owned(), fix, source.to_owned(), now);
                self.put(Known { seen_at_ms: now, ..known });
            }
            let Some(known) = self.get_mut(level, fix) else { continue };
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
    }

    fn drop_oldest(&mut self) {
        let oldest = self.iter().min_by_key(|known| known.used_at_ms);
        let Some((fingerprint, fix)) = oldest.map(|known| (known.fingerprint.clone(), known.what())) else { return };
        if let Some(of_fingerprint) = self.of.get_mut(&fingerprint) {
            of_fingerprint.retain(|known| known.what() != fix);
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
        let known = Known::new("f".to_owned(), Action::RetryNow.into(), String::new(), NOW);
        patterns.put(Known { successes: 9.0, failures: 1.0, seen_at_ms: NOW, ..known });
        let bound = patterns.get("f", Action::RetryNow).unwrap().lower_bound(NOW);
        assert!((bound - 0.5958).abs() < 1e-3, "{bound}");
    }

    fn best_for(patterns: &mut Patterns, fingerprint: &str) -> Option<Action> {
        patterns.best(NOW, fingerprint, &[], RATE_MIN).map(|known| known.fix)
    }

    #[test]
    fn what_is_known_in_just_these_circumstances_counts_first() {
        use Action::{ClearSchemaCache as Clear, RetryNow as Retry};
        let mut patterns = Patterns::default();
        let learn = |patterns: &mut Patterns, fingerprint: &str, fix, outcomes: &[bool]| {
            for helped in outcomes {
                patterns.learn(NOW, fingerprint, None, fix, "test", *helped);
            }
        };
        learn(&mut patterns, "f@anthropic_messages", Retry, &[true; 6]);
        learn(&mut patterns, "f@chat_completions", Clear, &[true]);
        assert_eq!(best_for(&mut patterns, "f@anthropic_messages"), Some(Retry));
        assert_eq!(best_for(&mut patterns, "f@chat_completions"), Some(Clear), "seen there, if only once");
        assert_eq!(best_for(&mut patterns, "f@gemini"), Some(Retry), "never seen there: the failure as such");
        assert_eq!(best_for(&mut patterns, "f"), Some(Retry));
        assert_eq!(best_for(&mut patterns, "g@gemini"), None);

        learn(&mut patterns, "f@gemini", Retry, &[false]);
        assert_eq!(
            best_for(&mut patterns, "f@gemini"),
            Some(Retry),
            "one failure there is little against six successes"
        );
        learn(&mut patterns, "f@gemini", Retry, &[false]);
        assert_eq!(best_for(&mut patterns, "f@gemini"), Some(Clear), "two are not: the next best of all");
        assert!(patterns.is_demoted(NOW, "f@gemini", Retry) && patterns.is_demoted(NOW, "f@other", Retry));
        assert!(!patterns.is_demoted(NOW, "f@anthropic_messages", Retry));
        assert_eq!(best_for(&mut patterns, "f@anthropic_messages"), Some(Retry), "it still helps there");
    }

    #[test]
    fn two_actions_that_are_done_as_one_are_one_fix() {
        let pair = Fix { action: Action::KillStaleProcesses, then: Some(Action::RestartProxy) };
        assert_eq!(pair.to_string().parse(), Ok(pair));
        assert!("kill_stale_processes+rm".parse::<Fix>().is_err());
        let mut patterns = Patterns::default();
        patterns.learn(NOW, "f", None, pair, "test", true);
        assert_eq!(patterns.get("f", Action::KillStaleProcesses), None);
        let best =
            |patterns: &mut Patterns, tried: &[Action]| patterns.best(NOW, "f", tried, RATE_MIN).map(Known::what);
        assert_eq!(best(&mut patterns, &[Action::RestartProxy]), Some(pair), "both have not been tried");
        assert_eq!(best(&mut patterns, &[Action::RestartProxy, Action::KillStaleProcesses]), None);
    }

    fn row(id: &str, success_count: u32, fail_count: u32) -> PatternRow {
        PatternRow {
            id: id.to_owned(),
            faults: vec![Fault::B2],
            fix: Action::RetryNow,
            source: "mine".to_owned(),
            success_count,
            fail_count,
        }
    }

    #[test]
    fn a_changed_row_counts_and_what_was_seen_stays() {
        let rows = [row("f", 2, 0), row("g", 3, 0)];
        let mut patterns = Patterns::seeded(&rows);
        learn(&mut patterns, Action::RetryNow, &[true]);
        let before = patterns.clone();
        patterns.take_rows(&rows, NOW);
        assert_eq!(patterns, before, "rows that are as before change nothing");
        let counts = |patterns: &Patterns| {
            patterns.get("f", Action::RetryNow).map(|known| (known.success_count, known.fail_count))
        };
        assert_eq!(counts(&patterns), Some((3, 0)));

        // "It does not help": said by the person, against what was seen.
        patterns.take_rows(&[row("f", 0, 5)], NOW);
        assert_eq!(counts(&patterns), Some((1, 5)));
        assert_eq!(best(&mut patterns, NOW), None);
        assert_eq!(patterns.get("g", Action::RetryNow), None, "nothing was known about it but what was stated");
        assert_eq!(patterns.len(), patterns.iter().count());

        // The row is gone again, and what was seen is there.
        patterns.take_rows(&[], NOW);
        assert_eq!(counts(&patterns), Some((1, 0)));

        // It has failed of late, and the person says that it helps: it gets a chance.
        learn(&mut patterns, Action::RetryNow, &[false, false, false]);
        assert_eq!(best(&mut patterns, NOW), None);
        patterns.take_rows(&[row("f", 20, 0)], NOW);
        assert_eq!(best(&mut patterns, NOW), Some(Action::RetryNow));
        assert_eq!(counts(&patterns), Some((21, 3)));
    }

    #[test]
    fn what_an_earlier_version_has_kept_is_told_apart() {
        let rows = [row("f", 2, 0)];
        let mut patterns = Patterns::seeded(&rows);
        learn(&mut patterns, Action::RetryNow, &[true, false]);
        let text = serde_json::to_string(&patterns.iter().collect::<Vec<_>>()).unwrap();
        let earlier = text.replace(r#""stated":{"successes":2,"failures":0},"#, "");
        assert_ne!(earlier, text);
        let earlier: Vec<Known> = serde_json::from_str(&earlier).unwrap();
        let mut restored: Patterns = earlier.into_iter().collect();
        restored.tell_stated_apart(&rows);
        restored.take_rows(&rows, NOW);
        assert_eq!(restored, patterns, "nothing counts twice");
    }
}
