//! How long a provider asks to wait, in every form they use.

use std::time::Duration;

/// What stands directly before a span of time in a message.
const LEADS: [&str; 9] = [
    "try again in ",
    "try again after ",
    "retry in ",
    "retry after ",
    "reset after ",
    "resets in ",
    "reset in ",
    "available in ",
    "wait ",
];

/// The wait that headers made for it ask for: `retry-after-ms`, then `retry-after` as seconds or as a date.
pub(super) fn from_headers(headers: &[(&str, &str)], now_unix_ms: u64) -> Option<Duration> {
    let header = |name: &str| find(headers, name);
    if let Some(wait) =
        header("retry-after-ms").and_then(|value| value.parse::<f64>().ok()).and_then(|ms| seconds(ms / 1_000.0))
    {
        return Some(wait);
    }
    let value = header("retry-after")?;
    if let Ok(number) = value.parse::<f64>() {
        return seconds(number);
    }
    // The provider's own clock is the one its date was made by.
    let now = header("date").and_then(http_date).unwrap_or(now_unix_ms / 1_000);
    http_date(value).map(|at| Duration::from_secs(at.saturating_sub(now)))
}

/// The wait until the limit that is used up opens again, from `x-ratelimit-reset-*` or `anthropic-ratelimit-*-reset`.
///
/// Where `x-ratelimit-remaining-*` tells which one that is, it counts; otherwise the nearest, since asking a little
/// early costs one refusal and waiting for the wrong one costs minutes.
pub(super) fn from_reset_headers(headers: &[(&str, &str)], now_unix_ms: u64) -> Option<Duration> {
    // The header that tells how much is left, and the wait.
    let resets = || {
        headers.iter().filter_map(move |(name, value)| {
            let name = name.to_ascii_lowercase();
            let remaining = if let Some(kind) = name.strip_prefix("x-ratelimit-reset") {
                format!("x-ratelimit-remaining{kind}")
            } else {
                let kind = name.strip_prefix("anthropic-ratelimit-")?.strip_suffix("-reset")?;
                format!("anthropic-ratelimit-{kind}-remaining")
            };
            Some((remaining, reset(value.trim(), now_unix_ms)?))
        })
    };
    let is_spent = |remaining: &str| find(headers, remaining) == Some("0");
    let spent = resets().filter(|(remaining, _)| is_spent(remaining)).map(|(_, wait)| wait).max();
    spent.or_else(|| resets().map(|(_, wait)| wait).min())
}

/// A span (`2m59.56s`), or a moment as a date, as Unix seconds or milliseconds, or plain seconds.
fn reset(value: &str, now_unix_ms: u64) -> Option<Duration> {
    /// Numbers from here on are moments: as seconds this is September 2001, as a span 31 years.
    const MOMENT_S_MIN: f64 = 1e9;
    const MOMENT_MS_MIN: f64 = 1e12;
    let Ok(number) = value.parse::<f64>() else {
        let until = |at: u64| Duration::from_secs(at.saturating_sub(now_unix_ms / 1_000));
        return rfc3339(value).map(until).or_else(|| span(value));
    };
    // Milliseconds since 1970 stay exact in an `f64` for 285 000 years.
    #[expect(clippy::cast_precision_loss, reason = "see above")]
    let now_s = now_unix_ms as f64 / 1_000.0;
    if number >= MOMENT_MS_MIN {
        seconds((number / 1_000.0 - now_s).max(0.0))
    } else if number >= MOMENT_S_MIN {
        seconds((number - now_s).max(0.0))
    } else {
        seconds(number)
    }
}

/// The span that a sentence names after one of [`LEADS`]. `text` is in lower case.
pub(super) fn from_text(text: &str) -> Option<Duration> {
    LEADS.iter().find_map(|lead| text.match_indices(lead).find_map(|(at, _)| span(&text[at + lead.len()..])))
}

/// A span at the start of `text`: numbers with units, as in `7m59.56s`, `900ms`, `1 seconds`, `4h12m7s`.
pub(super) fn span(text: &str) -> Option<Duration> {
    let mut rest = text.trim_start();
    let mut total: Option<f64> = None;
    loop {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let Ok(number) = rest[..end].trim_end_matches('.').parse::<f64>() else { break };
        let after = rest[end..].trim_start_matches(' ');
        let unit_end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let factor = match &after[..unit_end] {
            "ms" | "millisecond" | "milliseconds" => 0.001,
            "s" | "sec" | "secs" | "second" | "seconds" => 1.0,
            "m" | "min" | "mins" | "minute" | "minutes" => 60.0,
            "h" | "hr" | "hrs" | "hour" | "hours" => 3_600.0,
            "d" | "day" | "days" => 86_400.0,
            _ => break,
        };
        total = Some(total.unwrap_or(0.0) + number * factor);
        rest = after[unit_end..].trim_start_matches([' ', ',']);
    }
    seconds(total?)
}

/// A number of seconds as a span; `None` for one that is none. Spans beyond belief are cut later.
pub(super) fn seconds(number: f64) -> Option<Duration> {
    if number.is_nan() || number < 0.0 {
        return None;
    }
    Some(Duration::try_from_secs_f64(number).unwrap_or(Duration::MAX))
}

fn find<'h>(headers: &[(&str, &'h str)], name: &str) -> Option<&'h str> {
    headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// Unix seconds of an HTTP date in its one current form, `Wed, 21 Oct 2026 07:28:00 GMT` (RFC 9110, 5.6.7).
fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut parts = text.split_once(", ")?.1.strip_suffix(" GMT")?.split(' ');
    let day = parts.next()?.parse().ok()?;
    let month = parts.next()?;
    let month = MONTHS.iter().position(|name| *name == month)?;
    unix_seconds(parts.next()?.parse().ok()?, month, day, parts.next()?)
}

/// Unix seconds of a date in UTC as RFC 3339 writes it, `2026-10-21T07:28:00Z`; fractions do not count.
fn rfc3339(text: &str) -> Option<u64> {
    let (date, time) = text.split_once(['T', 't', ' '])?;
    let time = ["Z", "z", "+00:00", "-00:00"].iter().find_map(|utc| time.strip_suffix(utc))?;
    let mut parts = date.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?.parse::<usize>().ok()?, parts.next()?);
    let clock = time.split('.').next()?;
    unix_seconds(year.parse().ok()?, month.checked_sub(1)?, day.parse().ok()?, clock)
}

/// Unix seconds of a moment in UTC; `month` counts from 0, `clock` is like `07:28:00`.
fn unix_seconds(year: u64, month: usize, day: u64, clock: &str) -> Option<u64> {
    const DAYS_BEFORE: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let mut clock = clock.split(':').map(|part| part.parse::<u64>().ok());
    let (hours, minutes, seconds) = (clock.next()??, clock.next()??, clock.next()??);
    if !(1970..10_000).contains(&year) || !(1..=31).contains(&day) || hours > 23 || minutes > 59 || seconds > 60 {
        return None;
    }
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let before = year - 1;
    let leap_days = before / 4 - before / 100 + before / 400 - (1969 / 4 - 1969 / 100 + 1969 / 400);
    let days_before = DAYS_BEFORE.get(month)? + u64::from(is_leap && month > 1);
    let days = (year - 1970) * 365 + leap_days + days_before + day - 1;
    Some(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_760_000_000_000;

    type Headers<'h> = &'h [(&'h str, &'h str)];

    #[expect(clippy::unnecessary_wraps, reason = "what the functions give, too")]
    fn ms(n_ms: u64) -> Option<Duration> {
        Some(Duration::from_millis(n_ms))
    }

    #[test]
    fn spans() {
        let rows = [
            ("7m59.56s", ms(479_560)),
            ("44.5s.", ms(44_500)),
            ("1 seconds", ms(1_000)),
            ("900ms", ms(900)),
            ("2 minutes, 5 seconds and", ms(125_000)),
            ("4h12m7s", ms(15_127_000)),
            ("1 day", ms(86_400_000)),
            ("5", None),
            ("5 requests", None),
            ("soon", None),
            ("", None),
            ("...s", None),
        ];
        for (text, expected) in rows {
            assert_eq!(span(text), expected, "{text:?}");
        }
    }

    #[test]
    fn sentences() {
        let rows = [
            ("limit reached. please try again in 7m59.56s. visit", ms(479_560)),
            ("please try again after 1 seconds", ms(1_000)),
            ("please retry in 44.097740004s.", Some(Duration::from_nanos(44_097_740_004))),
            ("try again in a while, or retry in 900ms", ms(900)),
            ("your quota will reset after 4h12m7s.", ms(15_127_000)),
            ("please retry shortly", None),
        ];
        for (text, expected) in rows {
            assert_eq!(from_text(text), expected, "{text:?}");
        }
    }

    #[test]
    fn headers() {
        let rows: [(Headers<'_>, Option<Duration>); 7] = [
            (&[("Retry-After-Ms", "250"), ("retry-after", "9")], ms(250)),
            (&[("retry-after", "0.5")], ms(500)),
            (&[("retry-after", " 12 ")], ms(12_000)),
            (
                &[("retry-after", "Wed, 21 Oct 2026 07:28:30 GMT"), ("date", "Wed, 21 Oct 2026 07:28:00 GMT")],
                ms(30_000),
            ),
            (&[("retry-after", "Thu, 09 Oct 2025 08:53:30 GMT")], ms(10_000)),
            (&[("retry-after", "Wed, 21 Oct 2020 07:28:30 GMT")], ms(0)),
            (&[("retry-after", "later")], None),
        ];
        for (headers, expected) in rows {
            assert_eq!(from_headers(headers, NOW), expected, "{headers:?}");
        }
    }

    #[test]
    fn reset_headers() {
        let rows: [(Headers<'_>, Option<Duration>); 8] = [
            (&[("x-ratelimit-reset-tokens", "7.66s"), ("x-ratelimit-reset-requests", "2m59.56s")], ms(7_660)),
            (
                &[
                    ("x-ratelimit-reset-tokens", "7.66s"),
                    ("x-ratelimit-reset-requests", "2m59.56s"),
                    ("X-RateLimit-Remaining-Requests", "0"),
                    ("x-ratelimit-remaining-tokens", "10"),
                ],
                ms(179_560),
            ),
            (&[("X-RateLimit-Reset", "1760000012")], ms(12_000)),
            (&[("x-ratelimit-reset", "1760000012500")], ms(12_500)),
            (&[("x-ratelimit-reset", "30")], ms(30_000)),
            (&[("x-ratelimit-reset", "soon")], None),
            (
                &[
                    ("anthropic-ratelimit-requests-reset", "2025-10-09T08:53:25Z"),
                    ("anthropic-ratelimit-requests-remaining", "49"),
                    ("Anthropic-Ratelimit-Input-Tokens-Reset", "2025-10-09T08:54:05Z"),
                    ("anthropic-ratelimit-input-tokens-remaining", "0"),
                ],
                ms(45_000),
            ),
            (
                &[
                    ("anthropic-ratelimit-tokens-reset", "2020-10-09T08:53:25Z"),
                    ("anthropic-ratelimit-tokens-limit", "9"),
                ],
                ms(0),
            ),
        ];
        for (headers, expected) in rows {
            assert_eq!(from_reset_headers(headers, NOW), expected, "{headers:?}");
        }
    }

    #[test]
    fn dates() {
        let rows = [
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Wed, 21 Oct 2026 07:28:00 GMT", Some(1_792_567_680)),
            ("Thu, 29 Feb 2024 23:59:59 GMT", Some(1_709_251_199)),
            ("Fri, 01 Mar 2024 00:00:00 GMT", Some(1_709_251_200)),
            ("Mon, 01 Mar 2100 00:00:00 GMT", Some(4_107_542_400)),
            ("2026-10-21T07:28:00Z", Some(1_792_567_680)),
            ("2026-10-21t07:28:00.75+00:00", Some(1_792_567_680)),
            ("2024-02-29 23:59:59Z", Some(1_709_251_199)),
            ("2026-10-21T07:28:00+02:00", None),
            ("2026-00-21T07:28:00Z", None),
            ("2026-13-21T07:28:00Z", None),
            ("2026-10T07:28:00Z", None),
            ("Wed, 21 Oct 2026 07:28:00", None),
            ("Wed, 21 Foo 2026 07:28:00 GMT", None),
            ("Wed, 99 Oct 2026 07:28:00 GMT", None),
            ("nonsense", None),
        ];
        for (text, expected) in rows {
            assert_eq!(http_date(text).or_else(|| rfc3339(text)), expected, "{text:?}");
        }
    }
}
