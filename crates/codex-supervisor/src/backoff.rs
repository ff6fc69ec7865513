//! How long to wait before a worker that ended is started again.
//!
//! Two kinds of ends are counted apart. A *crash* is the worker's own: an exit, a fault, a hang, no memory; crashes in
//! a row make pauses longer, and too many of them open a breaker. A *kill* comes from outside and hits a worker that
//! served: it says nothing about the next one, which is started at once, within a generous limit of its own.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Pause before the second restart; each further one is twice as long, up to the person's limit.
pub(crate) const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// Restarts in a row, with no minute of health in between, after which only the person can start it again.
///
/// At the default limit of 30 s that is twenty minutes of trying: a provider's outage does not end a worker, so what
/// still fails then will not mend itself.
pub(crate) const RESTARTS_IN_ROW_MAX: u32 = 50;
/// Crashes within [`WINDOW`] that are taken for bad luck; one more trips the breaker.
pub(crate) const CRASHES_MAX: usize = 5;
/// Kills within [`WINDOW`] that are answered at once; further ones count as crashes. Eight a second for ten minutes:
/// more is no accident and no test, and restarting would be all that the machine does.
pub(crate) const KILLS_MAX: u32 = 5_000;
/// For how long crashes and kills are remembered.
pub(crate) const WINDOW: Duration = Duration::from_mins(10);
/// Jitter: a pause is up to this share shorter, so that workers that died together do not come back together.
pub(crate) const JITTER_SHARE: f64 = 0.25;

/// What of the crashes lately outlives a supervisor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Crashes {
    /// With no health in between.
    pub(crate) in_a_row: u32,
    /// Within the window, oldest first.
    pub(crate) at: Vec<Instant>,
    /// Whether there were too many.
    pub(crate) is_tripped: bool,
}

/// Counts ends.
#[derive(Debug)]
pub(crate) struct Backoff {
    in_a_row: u32,
    /// Crashes within the window, oldest first; never more than trip the breaker.
    crashes: VecDeque<Instant>,
    is_tripped: bool,
    kills: u32,
    kills_since: Option<Instant>,
    random: u64,
}

impl Backoff {
    /// Starts at nothing. The same `seed` gives the same jitter.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            in_a_row: 0,
            crashes: VecDeque::with_capacity(CRASHES_MAX + 1),
            is_tripped: false,
            kills: 0,
            kills_since: None,
            random: seed,
        }
    }

    /// What is to be remembered of it.
    pub(crate) fn remembered(&self) -> Crashes {
        Crashes { in_a_row: self.in_a_row, at: self.crashes.iter().copied().collect(), is_tripped: self.is_tripped }
    }

    /// Goes on where another one was. Says after which pause the next start is due, at most `pause_max`.
    pub(crate) fn remember(&mut self, crashes: &Crashes, pause_max: Duration) -> Duration {
        self.in_a_row = crashes.in_a_row;
        self.is_tripped = crashes.is_tripped;
        self.crashes = crashes.at.iter().rev().take(CRASHES_MAX).rev().copied().collect();
        if self.is_tripped { pause_max.mul_f64(1.0 - JITTER_SHARE * self.next_random()) } else { Duration::ZERO }
    }

    /// Whether there was a crash and no health since.
    pub(crate) fn is_running(&self) -> bool {
        self.in_a_row > 0
    }

    /// Whether there were too many crashes lately: restarts are slow from now on.
    pub(crate) fn is_tripped(&self) -> bool {
        self.is_tripped
    }

    /// Whether no further restart is due.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.in_a_row > RESTARTS_IN_ROW_MAX
    }

    /// Counts a crash and returns the pause before the restart, at most `pause_max`; the first is none at all.
    pub(crate) fn crashed(&mut self, now: Instant, pause_max: Duration) -> Duration {
        while self.crashes.front().is_some_and(|at| now.saturating_duration_since(*at) >= WINDOW) {
            self.crashes.pop_front();
        }
        self.crashes.push_back(now);
        if self.crashes.len() > CRASHES_MAX {
            self.is_tripped = true;
            self.crashes.pop_front();
        }
        let doublings = self.in_a_row.checked_sub(1);
        self.in_a_row = self.in_a_row.saturating_add(1);
        let full = match doublings {
            _ if self.is_tripped => pause_max,
            None => return Duration::ZERO,
            Some(doublings) => PAUSE_FIRST.saturating_mul(2_u32.saturating_pow(doublings)).min(pause_max),
        };
        full.mul_f64(1.0 - JITTER_SHARE * self.next_random())
    }

    /// Counts a kill and returns the pause before the restart: none, until there are too many.
    pub(crate) fn killed(&mut self, now: Instant, pause_max: Duration) -> Duration {
        if self.kills_since.is_none_or(|since| now.saturating_duration_since(since) >= WINDOW) {
            (self.kills, self.kills_since) = (0, Some(now));
        }
        self.kills = self.kills.saturating_add(1);
        if self.kills > KILLS_MAX { self.crashed(now, pause_max) } else { Duration::ZERO }
    }

    /// A worker was healthy for long enough: restarts start at once again. What happened lately stays remembered.
    pub(crate) fn healthy(&mut self) {
        self.in_a_row = 0;
        self.is_tripped = false;
    }

    /// The person has acted: everything is forgotten.
    pub(crate) fn reset(&mut self) {
        *self = Self::new(self.random);
    }

    /// A number from 0 to 1 by splitmix64 (Steele, Lea, Flood 2014): good enough to spread restarts.
    fn next_random(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        f64::from((z >> 32) as u32) / f64::from(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_secs(30);

    fn is_about(pause: Duration, full: Duration) -> bool {
        pause <= full && pause >= full.mul_f64(1.0 - JITTER_SHARE)
    }

    #[test]
    fn the_first_restart_is_at_once_and_pauses_double_up_to_the_limit() {
        let (mut backoff, mut now) = (Backoff::new(7), Instant::now());
        assert!(!backoff.is_running());
        assert_eq!(backoff.crashed(now, MAX), Duration::ZERO);
        assert!(backoff.is_running());
        for full_ms in [100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000, 30_000] {
            now += WINDOW / 5; // so rarely that the breaker stays closed
            let (pause, full) = (backoff.crashed(now, MAX), Duration::from_millis(full_ms));
            assert!(is_about(pause, full), "{pause:?} is not about {full:?}");
        }
        backoff.healthy();
        assert_eq!(backoff.crashed(now + WINDOW, MAX), Duration::ZERO);
    }

    #[test]
    fn more_than_five_crashes_in_ten_minutes_trip_it_until_it_is_healthy() {
        let (mut backoff, now) = (Backoff::new(7), Instant::now());
        for n in 0..5 {
            backoff.crashed(now + WINDOW / 6 * n, MAX);
            assert!(!backoff.is_tripped());
        }
        assert!(is_about(backoff.crashed(now + WINDOW / 6 * 5, MAX), MAX));
        assert!(backoff.is_tripped());
        backoff.healthy();
        assert!(!backoff.is_tripped());
        backoff.crashed(now + WINDOW / 6 * 5 + MAX * 2, MAX);
        assert!(backoff.is_tripped(), "what happened lately stays remembered");
        backoff.healthy();
        assert_eq!(backoff.crashed(now + WINDOW * 2, MAX), Duration::ZERO, "but not for ever");
        assert!(!backoff.is_tripped());
        backoff.reset();
        assert!(!backoff.is_running());
    }

    #[test]
    fn kills_are_answered_at_once_until_there_are_too_many() {
        let (mut backoff, now) = (Backoff::new(7), Instant::now());
        for _ in 0..KILLS_MAX {
            assert_eq!(backoff.killed(now, MAX), Duration::ZERO);
        }
        assert!(!backoff.is_running() && !backoff.is_tripped());
        for _ in 0..=CRASHES_MAX {
            backoff.killed(now, MAX);
        }
        assert!(backoff.is_tripped());
        assert_eq!(backoff.killed(now + WINDOW, MAX), Duration::ZERO, "another window");
    }

    #[test]
    fn jitter_differs_between_endpoints_and_repeats_for_a_seed() {
        let pauses = |seed| {
            let (mut backoff, now) = (Backoff::new(seed), Instant::now());
            (0..8).map(|_| backoff.crashed(now, MAX)).collect::<Vec<_>>()
        };
        assert_eq!(pauses(1), pauses(1));
        assert_ne!(pauses(1), pauses(2));
    }

    #[test]
    fn there_is_an_end_to_it() {
        let (mut backoff, now) = (Backoff::new(0), Instant::now());
        for _ in 0..RESTARTS_IN_ROW_MAX {
            backoff.crashed(now, MAX);
            assert!(!backoff.is_exhausted());
        }
        backoff.crashed(now, MAX);
        assert!(backoff.is_exhausted());
        for _ in 0..100 {
            assert!(backoff.crashed(now, MAX) <= MAX);
        }
    }
}
