//! By what the state in an `encrypted_content` is known again.
//!
//! State that we have [sealed](crate::sealed) says itself where it comes from. That of a native provider does not: its
//! answers are relayed byte for byte, and when the thread goes on elsewhere, only the other provider can tell that it
//! cannot read it, by refusing the request. Marks are kept by the worker, so that each such refusal happens once in a
//! conversation: of what was refused ([`Target::refused`](crate::Target)), and of what a provider has given out itself.
//!
//! A mark is a hash, not the state: there may be thousands of them, and each state may be a megabyte. Two states with one
//! mark would cost the thoughts of one old turn, and nobody but the client itself could bring them about.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Request;
use crate::json::{Raw, Str};
use crate::responses::request::Item;

/// The mark of one state of one account: what one cannot read may well be another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mark(u64);

/// Marks that many requests share.
pub type Marks = Arc<HashSet<Mark>>;

impl Mark {
    /// The mark of `state`, for the account of that name (see [`crate::sealed::account`]).
    pub fn of(account: &str, state: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        (account, state).hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// The marks of all states in the history of `request`, in order.
pub fn marks(request: &Request<'_>, account: &str) -> Vec<Mark> {
    let states = request.input.iter().filter_map(|item| match item {
        Item::Reasoning(reasoning) => reasoning.encrypted_content.filter(|state| !state.is_empty()),
        Item::Compaction(raw) | Item::Unknown { raw, .. } => state(*raw),
        _ => None,
    });
    states.map(|state| Mark::of(account, &state.decode())).collect()
}

/// Whether items of this type stand for a history that was compacted: nothing else tells what was said there.
pub(crate) fn is_compacted(kind: Str<'_>) -> bool {
    kind.escaped().contains("compaction")
}

/// The state that an item carries, if it carries any.
pub(crate) fn state(item: Raw<'_>) -> Option<Str<'_>> {
    item.get("encrypted_content").and_then(Raw::as_str).filter(|state| !state.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_of_a_history_has_a_mark_of_its_own() {
        let body = r#"{"model":"m","input":[
            {"type":"reasoning","summary":[],"encrypted_content":"a\/b"},
            {"type":"reasoning","summary":[],"encrypted_content":""},
            {"type":"message","role":"user","content":"encrypted_content"},
            {"type":"compaction","encrypted_content":"c"},
            {"type":"context_compaction","encrypted_content":"d"},
            {"type":"reasoning","summary":[]}
        ]}"#;
        let request = Request::parse(body.as_bytes()).unwrap();
        assert_eq!(marks(&request, "me"), ["a/b", "c", "d"].map(|state| Mark::of("me", state)));
        assert_ne!(Mark::of("me", "c"), Mark::of("you", "c"));
    }
}
