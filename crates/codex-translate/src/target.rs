//! Where one request goes: the model and what is known about how its provider wants to be spoken to.

use std::fmt;

use crate::sealed::Origin;

/// The choice made for one request.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    /// Provider id, e.g. `zai-coding`; opaque state is bound to it.
    pub provider: String,
    /// The upstream's name of the model.
    pub model: String,
    /// The model's context window in tokens; 0 if it is not known. What does not fit into it is shortened, see
    /// [`crate::history::fit`].
    pub context_window: u64,
    /// Whether the model takes images; otherwise they become a note.
    pub images: bool,
    /// Chat Completions dialect.
    pub chat: crate::chat::Profile,
    /// Anthropic Messages dialect.
    pub anthropic: crate::anthropic::Profile,
    /// Key that authenticates sealed state, so that a client cannot forge it.
    pub seal_key: [u8; 32],
}

impl Target {
    /// Where state comes from that this target's answer carries, and the only state it is given back.
    pub fn origin(&self) -> Origin {
        Origin { provider: self.provider.clone(), model: self.model.clone() }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { provider, model, context_window, images, chat, anthropic, seal_key: _ } = self;
        f.debug_struct("Target")
            .field("provider", provider)
            .field("model", model)
            .field("context_window", context_window)
            .field("images", images)
            .field("chat", chat)
            .field("anthropic", anthropic)
            .field("seal_key", &"…")
            .finish()
    }
}
