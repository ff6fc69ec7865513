//! Figures and tables for people. Programs get exact values by `--json`.

use std::borrow::Cow;
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970, as all moments in the supervisor's answers.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A span: `320 ms`, `4.2 s`, `37 s`, `12 min`, `5 h 3 min`, `4 days`.
pub(crate) fn duration(ms: u64) -> String {
    const SECOND: u64 = 1_000;
    const MINUTE: u64 = 60 * SECOND;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    match ms {
        0..SECOND => format!("{ms} ms"),
        SECOND..10_000 => format!("{}.{} s", ms / SECOND, ms % SECOND / 100),
        10_000..MINUTE => format!("{} s", ms / SECOND),
        MINUTE..HOUR => format!("{} min", ms / MINUTE),
        HOUR..172_800_000 => format!("{} h {} min", ms / HOUR, ms % HOUR / MINUTE),
        _ => format!("{} days", ms / DAY),
    }
}

/// A moment seen from `now_ms`: `3.2 s ago`. A moment in the future (the clock was set back) counts as now.
pub(crate) fn ago(now_ms: u64, at_ms: u64) -> String {
    format!("{} ago", duration(now_ms.saturating_sub(at_ms)))
}

/// A size: `512 B`, `4.6 MiB`, `120 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    let mut unit_bytes = 1;
    let mut unit = "B";
    for larger in ["KiB", "MiB", "GiB"] {
        if bytes < unit_bytes * 1024 {
            break;
        }
        unit_bytes *= 1024;
        unit = larger;
    }
    let whole = bytes / unit_bytes;
    if unit_bytes == 1 || whole >= 10 {
        format!("{whole} {unit}")
    } else {
        format!("{whole}.{} {unit}", bytes % unit_bytes * 10 / unit_bytes)
    }
}

/// A large number: `940`, `31.4 k`, `4.21 M`.
pub(crate) fn amount(n: u64) -> String {
    match n {
        0..1_000 => n.to_string(),
        1_000..1_000_000 => format!("{}.{} k", n / 1_000, n % 1_000 / 100),
        _ => format!("{}.{:02} M", n / 1_000_000, n % 1_000_000 / 10_000),
    }
}

/// A count with its noun: `1 model`, `12 models`.
pub(crate) fn count(n: usize, noun: &str) -> String {
    if n == 1 { format!("{n} {noun}") } else { format!("{n} {noun}s") }
}

/// `text` without what a terminal would obey: control characters other than line breaks and tabs are replaced.
///
/// Part of what we print was written by others: model names, error messages of providers, log lines.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    let obeyed = |c: char| c.is_control() && c != '\n' && c != '\t';
    if text.contains(obeyed) { Cow::Owned(text.replace(obeyed, "\u{fffd}")) } else { Cow::Borrowed(text) }
}

/// Left-aligned columns with two spaces between them; an empty cell is shown as `-`.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let cells: Vec<[Cow<'_, str>; N]> = std::iter::once(header.map(Cow::Borrowed))
        .chain(rows.iter().map(|row| {
            row.each_ref().map(|cell| match cell.as_str() {
                "" => Cow::Borrowed("-"),
                cell => Cow::Owned(cell.replace('\n', " ")),
            })
        }))
        .collect();
    let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &cells {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `name  value` lines with the values in one column; lines without a value are left out.
pub(crate) fn fields(fields: &[(&str, Option<String>)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    fields
        .iter()
        .filter_map(|(name, value)| {
            value.as_ref().map(|value| format!("{name:width$}  {}\n", value.replace('\n', " ")))
        })
        .collect()
}

/// Something that is wrong, and its remedy on a line of its own.
pub(crate) fn told(message: &str, hint: Option<&str>) -> String {
    let hint = hint.map(|hint| format!("  hint: {hint}\n")).unwrap_or_default();
    format!("{message}\n{hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_at_a_glance() {
        for (ms, expected) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1_000, "1.0 s"),
            (9_999, "9.9 s"),
            (10_000, "10 s"),
            (59_999, "59 s"),
            (60_000, "1 min"),
            (3_599_999, "59 min"),
            (3_600_000, "1 h 0 min"),
            (18_180_000, "5 h 3 min"),
            (172_799_999, "47 h 59 min"),
            (172_800_000, "2 days"),
            (u64::MAX, "213503982334 days"),
        ] {
            assert_eq!(duration(ms), expected, "{ms}");
        }
        assert_eq!(ago(5_000, 1_800), "3.2 s ago");
        assert_eq!(ago(1, 2), "0 ms ago", "a clock that was set back");
    }

    #[test]
    fn sizes_are_read_at_a_glance() {
        for (bytes, expected) in [
            (0, "0 B"),
            (1_023, "1023 B"),
            (1_024, "1.0 KiB"),
            (4_823_449, "4.5 MiB"),
            (125_829_120, "120 MiB"),
            (u64::MAX, "17179869183 GiB"),
        ] {
            assert_eq!(size(bytes), expected, "{bytes}");
        }
        for (n, expected) in [(0, "0"), (999, "999"), (31_400, "31.4 k"), (4_213_000, "4.21 M"), (1_000_000, "1.00 M")]
        {
            assert_eq!(amount(n), expected);
        }
        assert_eq!((count(1, "model"), count(0, "model")), ("1 model".to_owned(), "0 models".to_owned()));
    }

    #[test]
    fn a_table_is_aligned_and_shows_empty_cells() {
        let text = table(["ID", "STATE"], &[["zai".into(), "running".into()], ["münchen".into(), String::new()]]);
        assert_eq!(text, "ID       STATE\nzai      running\nmünchen  -\n");
        assert_eq!(
            fields(&[("a", Some("1".into())), ("long", None), ("b", Some("2\n3".into()))]),
            "a     1\nb     2 3\n"
        );
    }

    #[test]
    fn a_terminal_is_not_given_orders() {
        assert_eq!(printable("plain\n\ttext"), "plain\n\ttext");
        assert_eq!(printable("a\x1b[2Jb\rc\u{9b}d"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}d");
    }
}
