//! Token counts under all the names they have.

use crate::delta::Usage;
use crate::json::{Kind, Raw};

/// The counts of one `usage` object; `None` when it does not tell the input, or counts nothing.
pub(super) fn read(usage: Raw<'_>) -> Option<Usage> {
    let mut input = None;
    let mut output = None;
    let mut total = None;
    let mut cached = None;
    let mut reasoning = None;
    // Anthropic's names: the input without what was read from, or written to, the cache.
    let mut apart = None;
    let (mut cache_read, mut cache_written) = (0, 0);
    for (key, value) in usage.entries() {
        match key.escaped() {
            "prompt_tokens" => input = number(value).or(input),
            "input_tokens" => apart = number(value).or(apart),
            "completion_tokens" | "output_tokens" => output = number(value).or(output),
            "total_tokens" => total = number(value).or(total),
            "prompt_tokens_details" | "input_tokens_details" => {
                cached = value.get("cached_tokens").and_then(number).or(cached);
            }
            "prompt_cache_hit_tokens" | "cached_tokens" => cached = cached.or(number(value)),
            "cache_read_input_tokens" => cache_read = number(value).unwrap_or_default(),
            "cache_creation_input_tokens" => cache_written = number(value).unwrap_or_default(),
            "completion_tokens_details" | "output_tokens_details" => {
                reasoning = value.get("reasoning_tokens").and_then(number).or(reasoning);
            }
            "reasoning_tokens" => reasoning = reasoning.or(number(value)),
            _ => {}
        }
    }
    let input_tokens = match (input, apart) {
        (Some(whole), _) => whole,
        (None, Some(apart)) => apart.saturating_add(cache_read).saturating_add(cache_written),
        (None, None) => return None,
    };
    let reasoning_tokens = reasoning.unwrap_or_default();
    let mut output_tokens = output.unwrap_or_default();
    // xAI counts reasoning beside the completion; only the total shows it.
    if reasoning_tokens > 0
        && total == Some(input_tokens.saturating_add(output_tokens).saturating_add(reasoning_tokens))
    {
        output_tokens += reasoning_tokens;
    }
    let usage = Usage {
        input_tokens,
        cached_tokens: cached.unwrap_or(cache_read).min(input_tokens),
        output_tokens,
        reasoning_tokens: reasoning_tokens.min(output_tokens),
        total_tokens: total.filter(|total| *total > 0).unwrap_or_else(|| input_tokens.saturating_add(output_tokens)),
    };
    usage.is_known().then_some(usage)
}

/// A count, also where it is written as a float or in quotes.
fn number(value: Raw<'_>) -> Option<u64> {
    /// Floats are exact up to here.
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    let text = match value.kind() {
        Kind::Number => value.text(),
        Kind::String => value.as_str()?.escaped(),
        _ => return None,
    };
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let number: f64 = text.parse().ok()?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to lie in the exact range")]
    (0.0..=EXACT_MAX).contains(&number).then_some(number as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name() {
        let counts = |input_tokens, cached_tokens, output_tokens, reasoning_tokens, total_tokens| {
            Some(Usage { input_tokens, cached_tokens, output_tokens, reasoning_tokens, total_tokens })
        };
        let rows = [
            (r#"{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11}"#, counts(9, 0, 2, 0, 11)),
            (r#"{"prompt_tokens":9,"completion_tokens":2}"#, counts(9, 0, 2, 0, 11)),
            (
                r#"{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13,"prompt_tokens_details":{"cached_tokens":8},"completion_tokens_details":{"reasoning_tokens":3}}"#,
                counts(9, 8, 4, 3, 13),
            ),
            (
                r#"{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11,"prompt_cache_hit_tokens":5}"#,
                counts(9, 5, 2, 0, 11),
            ),
            (
                r#"{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11,"cached_tokens":4,"prompt_tokens_details":null}"#,
                counts(9, 4, 2, 0, 11),
            ),
            (
                r#"{"input_tokens":9,"output_tokens":2,"cache_read_input_tokens":100,"cache_creation_input_tokens":10}"#,
                counts(119, 100, 2, 0, 121),
            ),
            (
                r#"{"prompt_tokens":9,"completion_tokens":2,"total_tokens":16,"completion_tokens_details":{"reasoning_tokens":5}}"#,
                counts(9, 0, 7, 5, 16),
            ),
            (r#"{"prompt_tokens":9.0,"completion_tokens":"2","total_tokens":1.1e1}"#, counts(9, 0, 2, 0, 11)),
            (r#"{"prompt_tokens":9,"completion_tokens":0,"total_tokens":9}"#, counts(9, 0, 0, 0, 9)),
            (r#"{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}"#, None),
            (r#"{"completion_tokens":3,"total_tokens":3}"#, None),
            (r#"{"prompt_tokens":null}"#, None),
            (r#"{"prompt_tokens":-1}"#, None),
            ("{}", None),
            ("7", None),
        ];
        for (usage, expected) in rows {
            assert_eq!(read(crate::json::parse(usage).unwrap()), expected, "{usage}");
        }
    }
}
