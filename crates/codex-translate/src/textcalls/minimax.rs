//! `MiniMax`'s `<minimax:tool_call>` around `<invoke name="…">` around `<parameter name="…">`, values without a type.

use super::invoke::{self, Tag};
use super::{Dialect, Found, Opening, first_of, literal, untyped_value};
use crate::tools::ToolTable;

pub(super) const DIALECT: Dialect = Dialect { open, closes: |_, tag| tag == CLOSE, is_plausible: |_| true, parse };

const OPEN: &str = "<minimax:tool_call>";
const CLOSE: &str = "</minimax:tool_call>";

fn open(text: &str) -> Opening {
    first_of([literal(text, OPEN, Opening::Opens(OPEN.len())), literal(text, CLOSE, Opening::Stray(CLOSE.len()))])
}

fn parse(markup: &str, tools: &ToolTable) -> Found {
    invoke::calls(markup, tools, tag_at, |key, _, text| {
        // The line ends next to the tags belong to them.
        let text = text.strip_prefix('\n').unwrap_or(text);
        untyped_value(key, text.strip_suffix('\n').unwrap_or(text))
    })
}

fn tag_at(text: &str) -> Option<(Tag<'_>, usize)> {
    let inside = text.strip_prefix('<')?;
    let (inside, is_closing) = inside.strip_prefix('/').map_or((inside, false), |inside| (inside, true));
    let name = ["invoke", "parameter"].into_iter().find(|name| {
        inside
            .strip_prefix(name)
            .is_some_and(|after| after.starts_with(|next: char| next == '>' || next.is_whitespace()))
    })?;
    let end = inside.find('>')?;
    let length = text.len() - inside.len() + end + 1;
    Some((Tag { is_closing, name, attributes: &inside[name.len()..end] }, length))
}
