//! What is changed in a conversation before it is encoded, item by item.
//!
//! Encoders read items. So whatever has to be said differently is said as items that Codex could have sent, and nothing
//! behind this knows of it. Most requests need no edit, and then nothing is copied.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{compaction, fit};
use crate::json::{self, Raw};
use crate::responses::request::{Content, Item, Message, Role, ToolOutput, ToolResult};
use crate::tools::Definition;
use crate::{Request, Target};

/// Edits by index of their item.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Edits(pub(super) BTreeMap<usize, Edit>);

/// What happens to an item. Contents are JSON: a string, or an array of parts.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Edit {
    LeaveOut,
    /// Becomes a message of the user.
    Say(String),
    /// Stays a result, with this content.
    Return(String),
}

impl Edits {
    /// What has to change in the conversation of `request` for `target`: a compacted history is unfolded, the request
    /// for one is put in words, and what does not fit into the model's context window is shortened.
    ///
    /// `definitions` are the tools that are offered; `gives_reasoning_back` says whether sealed reasoning is sent.
    pub(crate) fn new(
        request: &Request<'_>,
        target: &Target,
        definitions: &[&Definition<'_>],
        gives_reasoning_back: bool,
    ) -> Self {
        let mut edits = compaction::edits(request, target);
        let cuts = {
            let items = edits.apply(&request.input);
            fit::edits(request, &items, target, definitions, gives_reasoning_back)
        };
        edits.0.extend(cuts.0);
        edits
    }

    /// The items as they are to be encoded.
    pub(crate) fn apply<'p>(&'p self, items: &'p [Item<'p>]) -> Cow<'p, [Item<'p>]> {
        if self.0.is_empty() {
            return Cow::Borrowed(items);
        }
        let edited = items.iter().enumerate().filter_map(|(index, item)| match (self.0.get(&index), item) {
            (Some(Edit::LeaveOut), _) => None,
            (Some(Edit::Say(said)), _) => Some(Item::Message(Message { role: Role::User, content: content(said) })),
            (Some(Edit::Return(returned)), Item::ToolOutput(output)) => Some(Item::ToolOutput(ToolOutput {
                call_id: Cow::Borrowed(&output.call_id),
                result: ToolResult::Content(content(returned)),
            })),
            (None | Some(Edit::Return(_)), item) => Some(item.clone()),
        });
        Cow::Owned(edited.collect())
    }
}

/// Reads what [`Edit`] holds.
pub(super) fn content(text: &str) -> Content<'_> {
    let value = json::parse(text).unwrap_or(Raw::NULL);
    value.as_str().map_or(Content::Parts(value), Content::Text)
}

/// `text` as a JSON string.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = Vec::with_capacity(text.len() + text.len() / 16 + 2);
    json::write_string(&mut quoted, text);
    String::from_utf8(quoted).expect("UTF-8 with escapes in it is UTF-8")
}
