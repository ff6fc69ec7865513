//! How long to wait before a worker that ended is started again.

use std::time::Duration;

/// Pause before the second restart; each further one is twice as long, up to the person's limit.
pub(crate) const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// Restarts in a row, with no minute of health in between, after which only the person can start it again.
///
/// At the default limit of 30 s that is twenty minutes of trying: a provider's outage does not end a worker, so what
/// still fails then will not mend itself.
pub(crate) const RESTARTS_IN_ROW_MAX: u32 = 50;
/// Jitter: a pause is up to this share shorter, so that workers that died together do not come back together.
const JITTER_SHARE: f64 = 0.25;

/// Counts restarts in a row.
#[derive(Debug)]
pub(crate) struct Backoff {
    in_a_row: u32,
    random: u64,
}

impl Backoff {
    /// Starts at nothing. The same `seed` gives the same jitter.
    pub(crate) fn new(seed: u64) -> Self {
        Self { in_a_row: 0, random: seed }
    }

    /// Whether there was a restart since the last [`Backoff::reset`].
    pub(crate) fn is_running(&self) -> bool {
        self.in_a_row > 0
    }

    /// Whether no further restart is due.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.in_a_row > RESTARTS_IN_ROW_MAX
    }

    /// Counts one more end and returns the pause before the restart, at most `pause_max`; the first is none at all.
    pub(crate) fn pause(&mut self, pause_max: Duration) -> Duration {
        let doublings = self.in_a_row.checked_sub(1);
        self.in_a_row = self.in_a_row.saturating_add(1);
        let Some(doublings) = doublings else {
            return Duration::ZERO;
        };
        let full = PAUSE_FIRST.saturating_mul(2_u32.saturating_pow(doublings)).min(pause_max);
        full.mul_f64(1.0 - JITTER_SHARE * self.next_random())
    }

    /// Forgets all restarts.
    pub(crate) fn reset(&mut self) {
        self.in_a_row = 0;
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

    #[test]
    fn the_first_restart_is_at_once_and_pauses_double_up_to_the_limit() {
        let mut backoff = Backoff::new(7);
        assert!(!backoff.is_running());
        assert_eq!(backoff.pause(MAX), Duration::ZERO);
        assert!(backoff.is_running());
        for full_ms in [100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000, 30_000] {
            let (pause, full) = (backoff.pause(MAX), Duration::from_millis(full_ms));
            assert!(pause <= full && pause >= full.mul_f64(1.0 - JITTER_SHARE), "{pause:?} is not about {full:?}");
        }
        backoff.reset();
        assert_eq!(backoff.pause(MAX), Duration::ZERO);
    }

    #[test]
    fn jitter_differs_between_endpoints_and_repeats_for_a_seed() {
        let pauses = |seed| {
            let mut backoff = Backoff::new(seed);
            (0..8).map(|_| backoff.pause(MAX)).collect::<Vec<_>>()
        };
        assert_eq!(pauses(1), pauses(1));
        assert_ne!(pauses(1), pauses(2));
    }

    #[test]
    fn there_is_an_end_to_it() {
        let mut backoff = Backoff::new(0);
        for _ in 0..RESTARTS_IN_ROW_MAX {
            backoff.pause(MAX);
            assert!(!backoff.is_exhausted());
        }
        backoff.pause(MAX);
        assert!(backoff.is_exhausted());
        for _ in 0..100 {
            assert!(backoff.pause(MAX) <= MAX);
        }
    }
}
