//! What is never exceeded: restarts, questions to the AI, money, and how often the same failure is acted upon.
//!
//! Everything here is kept over restarts. A moment that lies in the future of a new run (the clock was set back between
//! two runs) is taken for now: a guard may hold a little too long, never too short.

use std::collections::BTreeMap;

use codex_control::incident::Millis;
use serde::{Deserialize, Serialize};

/// Restarts of one endpoint's worker within [`RESTARTS_WINDOW_MS`]; then a person is told.
pub const RESTARTS_MAX: usize = 5;
/// See [`RESTARTS_MAX`].
pub const RESTARTS_WINDOW_MS: u64 = 10 * 60 * 1000;
/// Least time between two questions to the AI.
pub const AI_INTERVAL_MS: u64 = 60 * 1000;
/// Questions to the AI within any 24 hours.
pub const AI_CALLS_PER_DAY_MAX: usize = 10;
/// Pauses after the first, second and third action on the same failure. There is no fourth: a person is told.
pub const LADDER_MS: [u64; 3] = [30_000, 60_000, 300_000];

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// A failure that was not acted upon for this long begins at the foot of the ladder again.
const LADDER_FORGOTTEN_MS: u64 = 15 * 60 * 1000;
/// Entries of each map; the one that ends first is dropped for a new one.
const ENTRIES_MAX: usize = 1024;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Guards {
    /// Restarts of late, by endpoint.
    restarts: BTreeMap<String, Vec<Millis>>,
    /// Questions of the last day.
    ai_calls: Vec<Millis>,
    /// What they have cost.
    spending: AiSpending,
    /// How far each failure has come, by `endpoint/fault`.
    ladder: BTreeMap<String, Rung>,
    /// Rules that rest, by `endpoint/rule`, and until when.
    resting: BTreeMap<String, Millis>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Rung {
    n_actions: u32,
    acted_at_ms: Millis,
    free_at_ms: Millis,
}

/// What questions to the AI have cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AiSpending {
    /// Year and month (UTC) of the figures, as 202611; others begin at nothing.
    pub month: u32,
    /// Questions in it.
    pub n_calls: u64,
    /// Tokens of prompts in it.
    pub input_tokens: u64,
    /// Tokens of answers in it.
    pub output_tokens: u64,
    /// Dollars in it.
    pub usd: f64,
}

/// Why the AI is not asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AiRefusal {
    /// It was asked less than [`AI_INTERVAL_MS`] ago.
    TooSoon,
    /// [`AI_CALLS_PER_DAY_MAX`] is reached.
    DayIsFull,
    /// The month's money is spent.
    BudgetIsSpent,
}

impl AiRefusal {
    /// For a person.
    pub fn text(self) -> &'static str {
        match self {
            Self::TooSoon => "the AI was asked less than a minute ago",
            Self::DayIsFull => "the AI was asked ten times today already",
            Self::BudgetIsSpent => "the month's budget for the AI is spent",
        }
    }
}

/// How the ladder answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Climb {
    /// Act.
    Free,
    /// Not yet.
    Pause,
    /// Not any more: tell a person.
    End,
}

impl Guards {
    /// Takes moments of the future for `now`.
    pub(crate) fn clamp(&mut self, now: Millis) {
        self.restarts.values_mut().flatten().chain(&mut self.ai_calls).for_each(|at| *at = (*at).min(now));
        for rung in self.ladder.values_mut() {
            rung.acted_at_ms = rung.acted_at_ms.min(now);
            rung.free_at_ms = rung.free_at_ms.min(now + LADDER_MS[LADDER_MS.len() - 1]);
        }
        self.resting.values_mut().for_each(|until| *until = (*until).min(now + DAY_MS));
    }

    /// Adds what others have counted: whichever holds longer holds.
    pub(crate) fn add(&mut self, others: Self) {
        for (endpoint, restarts) in others.restarts {
            let ours = self.restarts.entry(endpoint).or_default();
            ours.extend(restarts);
            ours.sort_unstable();
        }
        self.ai_calls.extend(others.ai_calls);
        self.ai_calls.sort_unstable();
        if self.spending.month == others.spending.month {
            self.spending.n_calls += others.spending.n_calls;
            self.spending.input_tokens += others.spending.input_tokens;
            self.spending.output_tokens += others.spending.output_tokens;
            self.spending.usd += others.spending.usd;
        } else if self.spending.month < others.spending.month {
            self.spending = others.spending;
        }
        for (key, theirs) in others.ladder {
            let nothing = Rung { n_actions: 0, acted_at_ms: 0, free_at_ms: 0 };
            let ours = self.ladder.entry(key).or_insert(nothing);
            ours.n_actions = ours.n_actions.saturating_add(theirs.n_actions);
            ours.acted_at_ms = ours.acted_at_ms.max(theirs.acted_at_ms);
            ours.free_at_ms = ours.free_at_ms.max(theirs.free_at_ms);
        }
        for (key, until) in others.resting {
            let ours = self.resting.entry(key).or_default();
            *ours = until.max(*ours);
        }
        while self.ladder.len() > ENTRIES_MAX {
            drop_first(&mut self.ladder, |rung| rung.free_at_ms);
        }
        while self.resting.len() > ENTRIES_MAX {
            drop_first(&mut self.resting, |until| *until);
        }
    }

    /// Whether a worker of `endpoint` may be restarted.
    pub(crate) fn may_restart(&self, now: Millis, endpoint: &str) -> bool {
        let of_late = |restarts: &Vec<Millis>| restarts.iter().filter(|at| now - **at < RESTARTS_WINDOW_MS).count();
        self.restarts.get(endpoint).map_or(0, of_late) < RESTARTS_MAX
    }

    /// Counts a restart.
    pub(crate) fn restarted(&mut self, now: Millis, endpoint: &str) {
        self.restarts.retain(|_, restarts| {
            restarts.retain(|at| now - *at < RESTARTS_WINDOW_MS);
            !restarts.is_empty()
        });
        self.restarts.entry(endpoint.to_owned()).or_default().push(now);
    }

    /// Whether the AI may be asked a question that will cost at most `usd`.
    pub(crate) fn may_ask(&self, now: Millis, usd: f64, usd_max: f64) -> Result<(), AiRefusal> {
        if self.ai_calls.last().is_some_and(|at| now - *at < AI_INTERVAL_MS) {
            return Err(AiRefusal::TooSoon);
        }
        if self.ai_calls.iter().filter(|at| now - **at < DAY_MS).count() >= AI_CALLS_PER_DAY_MAX {
            return Err(AiRefusal::DayIsFull);
        }
        let spent = if self.spending.month == month(now) { self.spending.usd } else { 0.0 };
        if spent + usd > usd_max { Err(AiRefusal::BudgetIsSpent) } else { Ok(()) }
    }

    /// Counts a question, with what it may cost at most.
    pub(crate) fn asked(&mut self, now: Millis, usd: f64) {
        self.ai_calls.retain(|at| now - *at < DAY_MS);
        self.ai_calls.push(now);
        let spending = self.spending_in(month(now));
        spending.n_calls += 1;
        spending.usd += usd;
    }

    /// Corrects what a question has cost. `month_asked`: when it was counted; a bill of last month stays there.
    pub(crate) fn billed(&mut self, asked_at: Millis, now: Millis, estimate: f64, usd: f64, tokens: (u64, u64)) {
        if month(asked_at) != month(now) {
            return;
        }
        let spending = self.spending_in(month(now));
        spending.usd = (spending.usd - estimate + usd).max(0.0);
        spending.input_tokens += tokens.0;
        spending.output_tokens += tokens.1;
    }

    /// What questions have cost this month.
    pub fn spending(&self, now: Millis) -> AiSpending {
        if self.spending.month == month(now) {
            self.spending.clone()
        } else {
            AiSpending { month: month(now), ..AiSpending::default() }
        }
    }

    /// Questions within the last 24 hours.
    pub fn ai_calls_of_day(&self, now: Millis) -> usize {
        self.ai_calls.iter().filter(|at| now - **at < DAY_MS).count()
    }

    fn spending_in(&mut self, month: u32) -> &mut AiSpending {
        if self.spending.month != month {
            self.spending = AiSpending { month, ..AiSpending::default() };
        }
        &mut self.spending
    }

    /// Whether the failure `key` may be acted upon.
    pub(crate) fn climb(&self, now: Millis, key: &str) -> Climb {
        match self.ladder.get(key) {
            Some(rung) if now - rung.acted_at_ms >= LADDER_FORGOTTEN_MS => Climb::Free,
            Some(rung) if now < rung.free_at_ms => Climb::Pause,
            Some(rung) if rung.n_actions as usize >= LADDER_MS.len() => Climb::End,
            Some(_) | None => Climb::Free,
        }
    }

    /// Counts an action on the failure `key`.
    pub(crate) fn acted(&mut self, now: Millis, key: &str) {
        self.ladder.retain(|_, rung| now - rung.acted_at_ms < LADDER_FORGOTTEN_MS);
        if self.ladder.len() >= ENTRIES_MAX && !self.ladder.contains_key(key) {
            drop_first(&mut self.ladder, |rung| rung.free_at_ms);
        }
        let rung =
            self.ladder.entry(key.to_owned()).or_insert(Rung { n_actions: 0, acted_at_ms: now, free_at_ms: now });
        let pause = LADDER_MS[(rung.n_actions as usize).min(LADDER_MS.len() - 1)];
        *rung = Rung { n_actions: rung.n_actions + 1, acted_at_ms: now, free_at_ms: now + pause };
    }

    /// A person has cancelled an action on `key`: it is left alone for the longest pause.
    pub(crate) fn cancelled(&mut self, now: Millis, key: &str) {
        self.acted(now, key);
        if let Some(rung) = self.ladder.get_mut(key) {
            rung.free_at_ms = now + LADDER_MS[LADDER_MS.len() - 1];
        }
    }

    /// Whether the rule `key` rests.
    pub(crate) fn is_resting(&self, now: Millis, key: &str) -> bool {
        self.resting.get(key).is_some_and(|until| now < *until)
    }

    /// Lets the rule `key` rest.
    pub(crate) fn rest(&mut self, now: Millis, key: String, for_ms: u64) {
        if for_ms == 0 {
            return;
        }
        self.resting.retain(|_, until| now < *until);
        if self.resting.len() >= ENTRIES_MAX && !self.resting.contains_key(&key) {
            drop_first(&mut self.resting, |until| *until);
        }
        self.resting.insert(key, now + for_ms);
    }

    /// The rule `key` need not rest any more: what it did has helped.
    pub(crate) fn wake(&mut self, key: &str) {
        self.resting.remove(key);
    }
}

fn drop_first<V>(map: &mut BTreeMap<String, V>, ends_at: impl Fn(&V) -> Millis) {
    if let Some(first) = map.iter().min_by_key(|(_, value)| ends_at(value)).map(|(key, _)| key.clone()) {
        map.remove(&first);
    }
}

/// Year and month (UTC) of a moment, as 202611.
///
/// Source: Howard Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`.
fn month(at: Millis) -> u32 {
    let days = at / DAY_MS + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153; // March is 0
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    u32::try_from(year * 100 + month).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = 1_795_000_000_000; // 2026-11-18

    #[test]
    fn months_are_those_of_the_calendar() {
        for (at, expected) in [
            (0, 197_001),
            (951_782_400_000, 200_002), // 2000-02-29
            (951_868_800_000, 200_003), // 2000-03-01
            (NOW, 202_611),
            (1_796_083_199_999, 202_611), // the last moment of it
            (1_796_083_200_000, 202_612),
            (1_798_761_600_000, 202_701),
        ] {
            assert_eq!(month(at), expected, "{at}");
        }
    }

    #[test]
    fn five_restarts_in_ten_minutes() {
        let mut guards = Guards::default();
        for n in 0..5 {
            assert!(guards.may_restart(NOW + n, "a"));
            guards.restarted(NOW + n, "a");
        }
        assert!(!guards.may_restart(NOW + RESTARTS_WINDOW_MS - 1, "a"));
        assert!(guards.may_restart(NOW + RESTARTS_WINDOW_MS, "a"));
        assert!(guards.may_restart(NOW + 5, "b"), "each endpoint has its own");
    }

    #[test]
    fn one_question_a_minute_ten_a_day_and_the_months_money() {
        let mut guards = Guards::default();
        let mut at = NOW;
        for _ in 0..AI_CALLS_PER_DAY_MAX {
            assert_eq!(guards.may_ask(at, 0.01, 2.0), Ok(()));
            guards.asked(at, 0.01);
            assert_eq!(guards.may_ask(at + AI_INTERVAL_MS - 1, 0.01, 2.0), Err(AiRefusal::TooSoon));
            at += AI_INTERVAL_MS;
        }
        assert_eq!(guards.may_ask(at, 0.01, 2.0), Err(AiRefusal::DayIsFull));
        assert_eq!(guards.may_ask(NOW + DAY_MS, 0.01, 2.0), Ok(()), "the first of them is a day old");
        assert_eq!(guards.may_ask(NOW + DAY_MS, 1.95, 2.0), Err(AiRefusal::BudgetIsSpent));
        assert_eq!(guards.may_ask(NOW + 20 * DAY_MS, 1.95, 2.0), Ok(()), "another month");
        guards.billed(at, at + 1, 0.01, 0.005, (800, 100));
        let spending = guards.spending(at);
        assert!((spending.usd - 0.095).abs() < 1e-9, "{spending:?}");
        assert_eq!((spending.n_calls, spending.input_tokens, spending.output_tokens), (10, 800, 100));
        assert_eq!(guards.spending(NOW + 20 * DAY_MS).usd.to_bits(), 0);
    }

    #[test]
    fn the_ladder_goes_30_60_300_and_ends() {
        let mut guards = Guards::default();
        let mut at = NOW;
        for pause in LADDER_MS {
            assert_eq!(guards.climb(at, "k"), Climb::Free);
            guards.acted(at, "k");
            assert_eq!(guards.climb(at + pause - 1, "k"), Climb::Pause);
            at += pause;
        }
        assert_eq!(guards.climb(at, "k"), Climb::End);
        assert_eq!(guards.climb(at, "other"), Climb::Free);
        assert_eq!(guards.climb(at + LADDER_FORGOTTEN_MS, "k"), Climb::Free, "long forgotten");
    }

    #[test]
    fn a_clock_that_was_set_back_gives_nothing_for_free() {
        let mut guards = Guards::default();
        for _ in 0..RESTARTS_MAX {
            guards.restarted(NOW, "a");
        }
        guards.asked(NOW, 0.1);
        guards.acted(NOW, "k");
        guards.rest(NOW, "r".to_owned(), 300_000);
        let before = NOW - 3_600_000;
        guards.clamp(before);
        assert!(!guards.may_restart(before, "a"));
        assert_eq!(guards.may_ask(before, 0.0, 2.0), Err(AiRefusal::TooSoon));
        assert_eq!(guards.climb(before, "k"), Climb::Pause);
        assert!(guards.is_resting(before, "r"));
        assert!(guards.may_restart(before + RESTARTS_WINDOW_MS, "a"), "and it ends");
    }

    #[test]
    fn maps_are_bounded() {
        let mut guards = Guards::default();
        for n in 0..3_000 {
            guards.acted(NOW, &format!("k{n}"));
            guards.rest(NOW, format!("k{n}"), 1_000);
        }
        assert_eq!((guards.ladder.len(), guards.resting.len()), (ENTRIES_MAX, ENTRIES_MAX));
    }
}
