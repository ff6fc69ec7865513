//! Token counts, which come in two parts: the input with `message_start`, the output with `message_delta`.

use crate::delta::Usage;
use crate::json::Raw;

/// The counts as far as they are known.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// Input that was neither read from the cache nor written to it.
    input: u64,
    cache_read: u64,
    cache_written: u64,
    output: u64,
    thinking: u64,
}

impl Counts {
    /// Adds what a `usage` object says. Counts are totals, so a later one replaces an earlier one; but gateways fill
    /// in zeros for what they do not know, or said before.
    pub(super) fn add(&mut self, usage: Raw<'_>) {
        for (key, value) in usage.entries() {
            let (place, count) = match key.escaped() {
                "input_tokens" => (&mut self.input, value.as_u64()),
                "cache_read_input_tokens" => (&mut self.cache_read, value.as_u64()),
                "cache_creation_input_tokens" => (&mut self.cache_written, value.as_u64()),
                "output_tokens" => (&mut self.output, value.as_u64()),
                "output_tokens_details" => (&mut self.thinking, value.get("thinking_tokens").and_then(Raw::as_u64)),
                _ => continue,
            };
            if let Some(count) = count.filter(|count| *count > 0) {
                *place = count;
            }
        }
    }

    /// The counts in Responses terms; `None` when the input is not known.
    pub(super) fn usage(self) -> Option<Usage> {
        let input_tokens = self.input.saturating_add(self.cache_read).saturating_add(self.cache_written);
        let usage = Usage {
            input_tokens,
            cached_tokens: self.cache_read,
            output_tokens: self.output,
            reasoning_tokens: self.thinking.min(self.output),
            total_tokens: input_tokens.saturating_add(self.output),
        };
        usage.is_known().then_some(usage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_parts_make_a_whole() {
        let counts = |input_tokens, cached_tokens, output_tokens, reasoning_tokens| {
            let total_tokens = input_tokens + output_tokens;
            Some(Usage { input_tokens, cached_tokens, output_tokens, reasoning_tokens, total_tokens })
        };
        let rows: [(&[&str], Option<Usage>); 9] = [
            (
                &[
                    r#"{"input_tokens":472,"cache_creation_input_tokens":300,"cache_read_input_tokens":1200,"output_tokens":2}"#,
                    r#"{"output_tokens":89}"#,
                ],
                counts(1972, 1200, 89, 0),
            ),
            (&[r#"{"input_tokens":77,"output_tokens":3,"cache_read_input_tokens":50}"#], counts(127, 50, 3, 0)),
            (
                &[r#"{"input_tokens":9,"output_tokens":1}"#, r#"{"input_tokens":0,"output_tokens":4}"#],
                counts(9, 0, 4, 0),
            ),
            (
                &[r#"{"input_tokens":0,"output_tokens":0}"#, r#"{"input_tokens":9,"output_tokens":4}"#],
                counts(9, 0, 4, 0),
            ),
            (&[r#"{"input_tokens":9,"output_tokens":4}"#, r#"{"output_tokens":6}"#, "null"], counts(9, 0, 6, 0)),
            (
                &[r#"{"input_tokens":9,"output_tokens":40,"output_tokens_details":{"thinking_tokens":30}}"#],
                counts(9, 0, 40, 30),
            ),
            (
                &[r#"{"cache_read_input_tokens":9,"cache_creation":{"ephemeral_5m_input_tokens":1}}"#],
                counts(9, 9, 0, 0),
            ),
            (&[r#"{"output_tokens":6}"#], None),
            (&[r#"{"input_tokens":-1,"output_tokens":"x"}"#, "7", "{}"], None),
        ];
        for (parts, expected) in rows {
            let mut counts = Counts::default();
            for part in parts {
                counts.add(crate::json::parse(part).unwrap());
            }
            assert_eq!(counts.usage(), expected, "{parts:?}");
        }
    }
}
