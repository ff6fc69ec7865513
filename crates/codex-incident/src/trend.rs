//! Failures that announce themselves: memory that grows towards its limit, answers that begin later and later.

use std::collections::VecDeque;

use codex_control::incident::Millis;

/// Samples looked at.
const SAMPLES_MAX: usize = 24;
/// Fewer say nothing.
const SAMPLES_MIN: usize = 12;
/// They must span at least this.
const SPAN_MIN_MS: u64 = 50_000;
/// A limit that is further away than this is no news.
const AHEAD_MS: u64 = 10 * 60 * 1000;
/// Below this share of the limit growth is a start, not a leak.
const SHARE_MIN_PERCENT: u64 = 50;

/// Falls may make up this part of the rises: allocators give a little back now and then.
const FALLS_DIVISOR: u64 = 5;

/// Memory of one process, sampled.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryTrend {
    samples: VecDeque<(Millis, u64)>,
    has_warned: bool,
}

impl MemoryTrend {
    /// Forgets everything: another process.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Adds a sample; says in how many ms the limit will be reached, once, when that is soon.
    ///
    /// Growth is a straight line through the samples (least squares) with hardly a step back: memory that goes up and
    /// down with the work does not count.
    pub(crate) fn sample(&mut self, now: Millis, bytes: u64, limit: u64) -> Option<u64> {
        if self.samples.back().is_some_and(|(at, _)| *at >= now) {
            return None;
        }
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back((now, bytes));
        let (first_at, _) = *self.samples.front()?;
        if self.samples.len() < SAMPLES_MIN || now - first_at < SPAN_MIN_MS {
            return None;
        }
        if bytes >= limit || bytes < limit / 100 * SHARE_MIN_PERCENT {
            self.has_warned = self.has_warned && bytes >= limit;
            return None;
        }
        let steps = self.samples.iter().zip(self.samples.iter().skip(1));
        let (rises, falls) = steps.fold((0, 0), |(rises, falls), ((_, before), (_, after))| {
            (rises + after.saturating_sub(*before), falls + before.saturating_sub(*after))
        });
        if falls > rises / FALLS_DIVISOR {
            self.has_warned = false;
            return None;
        }
        let slope = slope(&self.samples, first_at);
        if slope <= 0.0 {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "bytes and milliseconds far below 2^53")]
        let left_ms = (limit - bytes) as f64 / slope;
        #[expect(clippy::cast_precision_loss, reason = "a small constant")]
        let is_soon = left_ms < AHEAD_MS as f64;
        if !is_soon || std::mem::replace(&mut self.has_warned, true) {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive and below AHEAD_MS")]
        Some(left_ms as u64)
    }
}

/// Bytes per millisecond by least squares.
#[expect(clippy::cast_precision_loss, reason = "differences of moments and bytes far below 2^53")]
fn slope(samples: &VecDeque<(Millis, u64)>, first_at: Millis) -> f64 {
    let n = samples.len() as f64;
    let (mut sum_x, mut sum_y, mut squares, mut products) = (0.0, 0.0, 0.0, 0.0);
    for (at, bytes) in samples {
        let (x, y) = ((at - first_at) as f64, *bytes as f64);
        sum_x += x;
        sum_y += y;
        squares += x * x;
        products += x * y;
    }
    let spread = n * squares - sum_x * sum_x;
    if spread == 0.0 { 0.0 } else { (n * products - sum_x * sum_y) / spread }
}

/// Answers before which nothing is said.
const ANSWERS_MIN: u32 = 20;
/// Weight of a new answer in the usual time.
const USUAL_SHARE: f64 = 0.02;
/// Weight of a new answer in the time of late.
const LATELY_SHARE: f64 = 0.3;
/// Of late this many times the usual is much.
const MUCH: f64 = 3.0;
/// And less than this is normal again.
const NORMAL: f64 = 1.5;
/// Shorter is quick, whatever is usual.
const SLOW_MS: f64 = 5_000.0;

/// The time to the first event of one endpoint's answers.
#[derive(Clone, Debug, Default)]
pub(crate) struct LatencyTrend {
    n: u32,
    usual_ms: f64,
    lately_ms: f64,
    is_slow: bool,
}

impl LatencyTrend {
    /// Adds an answer; says (of late, usual) in ms, once, when it has become much slower.
    pub(crate) fn answer(&mut self, first_event_ms: u64) -> Option<(u64, u64)> {
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of a request")]
        let ms = first_event_ms as f64;
        if self.n == 0 {
            (self.usual_ms, self.lately_ms) = (ms, ms);
        }
        self.n = self.n.saturating_add(1);
        self.lately_ms += LATELY_SHARE * (ms - self.lately_ms);
        if self.is_slow {
            self.is_slow = self.lately_ms > NORMAL * self.usual_ms;
            return None;
        }
        // The first ones settle quickly; later ones change little, so that a slow hour does not become the usual.
        let share = USUAL_SHARE.max(1.0 / f64::from(self.n));
        if self.lately_ms <= MUCH * self.usual_ms || self.n < ANSWERS_MIN {
            self.usual_ms += share * (ms - self.usual_ms);
            return None;
        }
        if self.lately_ms < SLOW_MS {
            return None;
        }
        self.is_slow = true;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive milliseconds")]
        Some((self.lately_ms as u64, self.usual_ms as u64))
    }

    /// Whether it is slow at the moment.
    pub(crate) fn is_slow(&self) -> bool {
        self.is_slow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn run(samples: impl IntoIterator<Item = u64>) -> Vec<(usize, u64)> {
        let mut trend = MemoryTrend::default();
        let at = |index: usize| 1_000_000 + index as u64 * 5_000;
        let warned =
            |(index, mib): (usize, u64)| trend.sample(at(index), mib * MIB, 1024 * MIB).map(|left| (index, left));
        samples.into_iter().enumerate().filter_map(warned).collect()
    }

    #[test]
    fn a_leak_is_announced_once_and_in_time() {
        let warnings = run((0..90).map(|n| 100 + n * 10)); // 2 MiB a second
        let [(index, left_ms)] = warnings[..] else { panic!("{warnings:?}") };
        assert_eq!(index, 42, "at half of the limit");
        assert!(left_ms.abs_diff(252_000) < 2_000, "{left_ms}: (1024 - 520) / 2 s");
    }

    #[test]
    fn work_that_comes_and_goes_is_no_leak() {
        assert_eq!(run((0..200).map(|n| 600 + (n * 37) % 300)), []);
        assert_eq!(run((0..200).map(|_| 900)), []);
        assert_eq!(run((0..40).map(|n| n * 10)), [], "still small");
        assert_eq!(run((0..200).map(|n| 600 + n / 50)), [], "so slow that it does not matter");
    }

    #[test]
    fn answers_that_begin_much_later_are_announced_once() {
        let mut trend = LatencyTrend::default();
        for n in 0..100 {
            assert_eq!(trend.answer(1_500 + n % 7 * 100), None);
        }
        let announced: Vec<_> = (0..50).filter_map(|_| trend.answer(20_000)).collect();
        let [(lately, usual)] = announced[..] else { panic!("{announced:?}") };
        assert!(lately > 5_000 && (1_400..3_000).contains(&usual), "{lately} {usual}");
        assert!(trend.is_slow());
        for _ in 0..20 {
            assert_eq!(trend.answer(1_500), None);
        }
        assert!(!trend.is_slow());
    }

    #[test]
    fn a_quick_provider_may_be_three_times_slower() {
        let mut trend = LatencyTrend::default();
        for _ in 0..100 {
            assert_eq!(trend.answer(100), None);
        }
        for _ in 0..100 {
            assert_eq!(trend.answer(1_000), None);
        }
    }
}
