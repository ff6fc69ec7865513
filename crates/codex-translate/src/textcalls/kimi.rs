//! Kimi's tokens: `<|tool_calls_section_begin|>`, then for each call `<|tool_call_begin|>functions.NAME:N`,
//! `<|tool_call_argument_begin|>`, JSON and `<|tool_call_end|>`, then `<|tool_calls_section_end|>`.

use super::{Dialect, Found, Opening, first_of, literal, repair};
use crate::tools::ToolTable;

pub(super) const DIALECT: Dialect = Dialect { open, closes, is_plausible: |_| true, parse };

const SECTION_BEGIN: &str = "<|tool_calls_section_begin|>";
const SECTION_END: &str = "<|tool_calls_section_end|>";
const CALL_BEGIN: &str = "<|tool_call_begin|>";
const ARGUMENT_BEGIN: &str = "<|tool_call_argument_begin|>";
const CALL_END: &str = "<|tool_call_end|>";

fn open(text: &str) -> Opening {
    let opens = [SECTION_BEGIN, CALL_BEGIN].map(|token| literal(text, token, Opening::Opens(token.len())));
    let stray = [SECTION_END, ARGUMENT_BEGIN, CALL_END].map(|token| literal(text, token, Opening::Stray(token.len())));
    first_of(opens.into_iter().chain(stray))
}

fn closes(opener: &str, tag: &str) -> bool {
    tag == if opener == SECTION_BEGIN { SECTION_END } else { CALL_END }
}

fn parse(markup: &str, tools: &ToolTable) -> Found {
    let mut found = Found::default();
    for call in markup.split(CALL_BEGIN).skip(1) {
        let parts = call.split_once(ARGUMENT_BEGIN).and_then(|(id, rest)| {
            let end = rest.find(CALL_END).or_else(|| rest.find(SECTION_END))?;
            Some((id.trim(), &rest[..end]))
        });
        let Some((id, arguments)) = parts else {
            found.is_cut = true;
            continue;
        };
        match repair::object(arguments) {
            Ok(arguments) => found.push(id, Some(id.to_owned()), arguments, tools),
            Err(_) => found.is_garbled = true,
        }
    }
    found
}
