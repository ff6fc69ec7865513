//! How far back a question reaches: `--since 7d`.

use std::str::FromStr;

/// A span before now: `90s`, `30m`, `24h`, `7d`, `4w`, or `all`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Since {
    /// So many milliseconds.
    Ms(u64),
    /// As far as there is anything.
    All,
}

impl Since {
    /// The moment, in milliseconds since 1970; `None`: no limit.
    pub(crate) fn at_ms(self, now_ms: u64) -> Option<u64> {
        match self {
            Self::Ms(span_ms) => Some(now_ms.saturating_sub(span_ms)),
            Self::All => None,
        }
    }

    /// For a headline: `in the last 7 days`.
    pub(crate) fn words(self) -> String {
        const DAY_MS: u64 = 24 * 60 * 60 * 1000;
        match self {
            Self::All => "in all the time that is kept".to_owned(),
            Self::Ms(DAY_MS) => "in the last 24 hours".to_owned(),
            Self::Ms(span_ms) if span_ms.is_multiple_of(DAY_MS) => format!("in the last {} days", span_ms / DAY_MS),
            Self::Ms(span_ms) => format!("in the last {}", crate::text::duration(span_ms)),
        }
    }
}

impl FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "all" {
            return Ok(Self::All);
        }
        let parsed = || {
            let unit = text.chars().last()?;
            let unit_ms: u64 = match unit {
                's' => 1_000,
                'm' => 60 * 1_000,
                'h' => 60 * 60 * 1_000,
                'd' => 24 * 60 * 60 * 1_000,
                'w' => 7 * 24 * 60 * 60 * 1_000,
                _ => return None,
            };
            let n: u64 = text[..text.len() - unit.len_utf8()].parse().ok()?;
            n.checked_mul(unit_ms).filter(|span_ms| *span_ms > 0)
        };
        parsed().map(Self::Ms).ok_or_else(|| "write a span like 30m, 24h, 7d or 4w, or `all`".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read() {
        for (text, span_ms) in
            [("90s", 90_000), ("30m", 1_800_000), ("24h", 86_400_000), ("7d", 604_800_000), ("4w", 2_419_200_000)]
        {
            assert_eq!(text.parse(), Ok(Since::Ms(span_ms)), "{text}");
        }
        assert_eq!("all".parse(), Ok(Since::All));
        for text in ["", "7", "d", "-1d", "0h", "1.5h", "7ä", "99999999999999999999d", "18446744073709551615w"] {
            assert!(text.parse::<Since>().is_err(), "{text}");
        }
        assert_eq!((Since::Ms(1_000).at_ms(5_000), Since::All.at_ms(5_000)), (Some(4_000), None));
    }

    #[test]
    fn spans_are_said_in_words() {
        for (text, words) in
            [("24h", "in the last 24 hours"), ("7d", "in the last 7 days"), ("90m", "in the last 1 h 30 min")]
        {
            assert_eq!(text.parse::<Since>().unwrap().words(), words);
        }
    }
}
