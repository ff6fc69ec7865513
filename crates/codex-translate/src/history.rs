//! A Responses conversation as turns, repaired: the form that every other protocol wants it in.
//!
//! Responses items are a flat list in which a model's turn is scattered over reasoning, texts and calls, and results
//! stand wherever they arrived. Other protocols want one message per turn, each call answered exactly once, directly
//! behind it. So:
//!
//! ```text
//!  developer developer │ user │ reasoning text call call │ output output │ user
//!  └──── leading ────┘   User   └───────────── Assistant, with its results ──┘   User
//! ```
//!
//! A result is found wherever it stands; a call without one says so ([`Assistant::calls`] gives `None`); a result
//! without a call, and a second one for the same call, are left out. Calls that share an id are answered in their order.
//! Nothing else moves, and nothing is copied.

pub mod call_ids;
pub(crate) mod compaction;
pub mod earlier;
mod edits;
pub mod fit;
pub(crate) mod stand_in;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;

pub(crate) use edits::Edits;

use crate::json::Str;
use crate::responses::request::{AgentMessage, Content, Item, Message, Reasoning, Role, ToolCall, ToolOutput};

/// A conversation with its calls and results paired.
#[derive(Debug)]
pub struct History<'r, 'a> {
    items: &'r [Item<'a>],
    /// For each item that is a call, the index of its result. What stands there may also be no result's index.
    results: Vec<u32>,
}

/// No result. Not an index: a request has at most [`ITEMS_MAX`](crate::responses::request::ITEMS_MAX) items.
const NONE: u32 = u32::MAX;

/// One turn of a conversation.
#[derive(Clone, Copy, Debug)]
pub enum Turn<'r, 'a> {
    /// Instructions that came in the middle.
    Developer(&'r Message<'a>),
    /// The user speaks.
    User(&'r Message<'a>),
    /// Another agent speaks.
    Agent(&'r AgentMessage<'a>),
    /// The model speaks and calls tools, which then answer.
    Assistant(Assistant<'r, 'a>),
}

/// A turn of the model.
#[derive(Clone, Copy, Debug)]
pub struct Assistant<'r, 'a> {
    all: &'r [Item<'a>],
    items: &'r [Item<'a>],
    results: &'r [u32],
}

/// One piece of what the model did in its turn.
#[derive(Clone, Copy, Debug)]
pub enum Piece<'r, 'a> {
    /// It thought.
    Reasoning(&'r Reasoning<'a>),
    /// It said something, which is not empty.
    Text(Str<'a>),
    /// It called a tool, with this result.
    Call(&'r ToolCall<'a>, Option<&'r ToolOutput<'a>>),
}

impl<'r, 'a> History<'r, 'a> {
    /// Pairs the calls in `items` with their results.
    pub fn new(items: &'r [Item<'a>]) -> Self {
        Self { items, results: pair(items) }
    }

    /// The instructions before anything else was said.
    pub fn leading(&self) -> impl Iterator<Item = &Message<'a>> {
        self.items[..self.body()].iter().filter_map(|item| match item {
            Item::Message(message) => Some(message),
            _ => None,
        })
    }

    /// The turns after the [`leading`](Self::leading) instructions.
    pub fn turns(&self) -> impl Iterator<Item = Turn<'_, 'a>> {
        self.spans().map(|span| match &self.items[span.start] {
            Item::Message(message) if message.role == Role::Developer => Turn::Developer(message),
            Item::Message(message) if message.role == Role::User => Turn::User(message),
            Item::AgentMessage(message) => Turn::Agent(message),
            _ => Turn::Assistant(Assistant {
                all: self.items,
                items: &self.items[span.clone()],
                results: &self.results[span],
            }),
        })
    }

    /// The items of each turn, those of the model with what stands between them. Results belong to their calls,
    /// wherever they are.
    fn spans(&self) -> impl Iterator<Item = Range<usize>> {
        let mut at = self.body();
        std::iter::from_fn(move || {
            while at < self.items.len() {
                let start = at;
                at += 1;
                match &self.items[start] {
                    Item::Message(message) if message.role != Role::Assistant => {}
                    Item::AgentMessage(_) => {}
                    Item::Message(_) | Item::Reasoning(_) | Item::ToolCall(_) => {
                        at += self.assistant_length(at, matches!(self.items[start], Item::ToolCall(_)));
                    }
                    _ => continue,
                }
                return Some(start..at);
            }
            None
        })
    }

    /// Index of the result of the call at `call`, if that is one and has a result.
    fn result_of(&self, call: usize) -> Option<usize> {
        let result = self.results[call] as usize;
        let is_pair =
            matches!((&self.items[call], self.items.get(result)), (Item::ToolCall(_), Some(Item::ToolOutput(_))));
        is_pair.then_some(result)
    }

    /// Items from `at` on that still belong to the model's turn before them.
    fn assistant_length(&self, at: usize, mut has_call: bool) -> usize {
        let rest = &self.items[at..];
        let ends = |item: &Item<'_>| match item {
            Item::Message(message) => message.role != Role::Assistant,
            Item::AgentMessage(_) => true,
            Item::ToolCall(_) => {
                has_call = true;
                false
            }
            // A result that answers nothing of this turn does not end it.
            Item::ToolOutput(_) => has_call,
            _ => false,
        };
        rest.iter().position(ends).unwrap_or(rest.len())
    }

    /// Index of the first item that is said by someone else than the developer.
    fn body(&self) -> usize {
        let is_body = |item: &Item<'_>| match item {
            Item::Message(message) => message.role != Role::Developer,
            Item::AgentMessage(_) | Item::Reasoning(_) | Item::ToolCall(_) => true,
            _ => false,
        };
        self.items.iter().position(is_body).unwrap_or(self.items.len())
    }
}

impl<'r, 'a> Assistant<'r, 'a> {
    /// What the model thought, in order.
    pub fn reasoning(self) -> impl Iterator<Item = &'r Reasoning<'a>> {
        self.items.iter().filter_map(|item| match item {
            Item::Reasoning(reasoning) => Some(reasoning),
            _ => None,
        })
    }

    /// What the model said, in order, without empty texts.
    pub fn texts(self) -> impl Iterator<Item = Str<'a>> {
        let contents = self.items.iter().filter_map(|item| match item {
            Item::Message(message) => Some(message.content),
            _ => None,
        });
        contents.flat_map(Content::texts)
    }

    /// The calls of the turn in order, each with its result.
    pub fn calls(self) -> impl Iterator<Item = (&'r ToolCall<'a>, Option<&'r ToolOutput<'a>>)> {
        self.items.iter().zip(self.results).filter_map(move |(item, &result)| {
            let Item::ToolCall(call) = item else { return None };
            Some((call, self.output(result)))
        })
    }

    /// All of it, in the order in which it came.
    pub fn pieces(self) -> impl Iterator<Item = Piece<'r, 'a>> {
        self.items.iter().zip(self.results).flat_map(move |(item, &result)| {
            let (piece, content) = match item {
                Item::Reasoning(reasoning) => (Some(Piece::Reasoning(reasoning)), None),
                Item::ToolCall(call) => (Some(Piece::Call(call, self.output(result))), None),
                Item::Message(message) => (None, Some(message.content)),
                _ => (None, None),
            };
            let texts = content.into_iter().flat_map(Content::texts).map(Piece::Text);
            piece.into_iter().chain(texts)
        })
    }

    fn output(self, result: u32) -> Option<&'r ToolOutput<'a>> {
        match self.all.get(result as usize) {
            Some(Item::ToolOutput(output)) => Some(output),
            _ => None,
        }
    }
}

/// For each call the index of its result; for all else anything but that.
fn pair(items: &[Item<'_>]) -> Vec<u32> {
    /// Calls of one id that wait for a result: a chain, each call's place in `results` naming the next.
    struct Waiting {
        first: u32,
        last: u32,
    }

    let mut results = vec![NONE; items.len()];
    let mut waiting: HashMap<&str, Waiting> = HashMap::new();
    let mut strays: HashMap<&str, u32> = HashMap::new();
    for (index, item) in (0..).zip(items) {
        match item {
            Item::ToolCall(call) => match waiting.entry(&call.call_id) {
                Entry::Vacant(entry) => {
                    entry.insert(Waiting { first: index, last: index });
                }
                Entry::Occupied(mut entry) => {
                    let last = std::mem::replace(&mut entry.get_mut().last, index);
                    results[last as usize] = index;
                }
            },
            Item::ToolOutput(output) => match waiting.entry(&output.call_id) {
                Entry::Vacant(_) => {
                    strays.entry(&output.call_id).or_insert(index);
                }
                Entry::Occupied(mut entry) => {
                    let Waiting { first, last } = *entry.get();
                    let next = std::mem::replace(&mut results[first as usize], index);
                    if first == last {
                        entry.remove();
                    } else {
                        entry.get_mut().first = next;
                    }
                }
            },
            _ => {}
        }
    }
    // A result before its call is still its result, if none came behind it.
    if !strays.is_empty() {
        for (call_id, Waiting { first, .. }) in waiting {
            if let Some(&stray) = strays.get(call_id) {
                results[first as usize] = stray;
            }
        }
    }
    results
}
