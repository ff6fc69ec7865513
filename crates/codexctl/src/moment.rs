//! Moments for people, in the time of where they are.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Tells moments seen from now.
pub(crate) struct Moments {
    zone: TimeZone,
    now_ms: u64,
}

impl Moments {
    /// Now, here.
    pub(crate) fn now() -> Self {
        Self { zone: TimeZone::system(), now_ms: crate::text::now_ms() }
    }

    /// In UTC, seen from `now_ms`.
    pub(crate) fn utc(now_ms: u64) -> Self {
        Self { zone: TimeZone::UTC, now_ms }
    }

    /// For lists: `16:00` today, `Nov 22 16:00` before.
    pub(crate) fn short(&self, at_ms: u64) -> String {
        let is_today = self.form(at_ms, "%F") == self.form(self.now_ms, "%F");
        self.form(at_ms, if is_today { "%H:%M" } else { "%b %d %H:%M" })
    }

    /// For timelines: `16:00:01.204`.
    pub(crate) fn exact(&self, at_ms: u64) -> String {
        self.form(at_ms, "%H:%M:%S%.3f")
    }

    /// With everything: `2026-11-22 16:00:01 +01:00`.
    pub(crate) fn long(&self, at_ms: u64) -> String {
        self.form(at_ms, "%F %T %:z")
    }

    fn form(&self, at_ms: u64, form: &str) -> String {
        let timestamp = i64::try_from(at_ms).ok().and_then(|at_ms| Timestamp::from_millisecond(at_ms).ok());
        timestamp.map_or_else(|| "?".to_owned(), |at| at.to_zoned(self.zone.clone()).strftime(form).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_as_long_as_needed() {
        let moments = Moments::utc(1_795_000_000_000);
        assert_eq!(moments.long(1_795_000_000_000), "2026-11-18 11:06:40 +00:00");
        assert_eq!(moments.exact(1_795_000_000_204), "11:06:40.204");
        assert_eq!(moments.short(1_795_000_000_000 - 60_000), "11:05");
        assert_eq!(moments.short(1_795_000_000_000 - 86_400_000), "Nov 17 11:06");
        assert_eq!(moments.long(u64::MAX), "?");
    }
}
