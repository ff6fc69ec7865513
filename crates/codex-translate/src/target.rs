//! Where one request goes: the model and what is known about how its provider wants to be spoken to.

use std::fmt;

use crate::mark::{Mark, Marks};
use crate::sealed::{self, Opened, Origin};

/// The choice made for one request.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    /// Who the provider is, in a word or by its address; opaque state is bound to it.
    pub provider: String,
    /// The upstream's name of the model.
    pub model: String,
    /// Whose account it is, by a name that tells nothing (see [`crate::sealed::account`]); empty where there is none.
    pub account: String,
    /// The model's context window in tokens; 0 if it is not known. What does not fit into it is shortened, see
    /// [`crate::history::fit`].
    pub context_window: u64,
    /// Whether the model takes images; otherwise they become a note.
    pub images: bool,
    /// Chat Completions dialect.
    pub chat: crate::chat::Profile,
    /// Anthropic Messages dialect.
    pub anthropic: crate::anthropic::Profile,
    /// Dialect of the Responses API itself.
    pub native: crate::native::Profile,
    /// Key that authenticates sealed state, so that a client cannot forge it.
    pub seal_key: [u8; 32],
    /// State that the provider has refused, wherever it comes from: it is left out.
    pub refused: Marks,
}

impl Target {
    /// A target of which nothing is known: the portable dialects, a window without limit.
    pub fn new(provider: impl Into<String>, model: impl Into<String>) -> Self {
        Self {
            provider: provider.into(),
            model: model.into(),
            account: String::new(),
            context_window: 0,
            images: true,
            chat: crate::chat::Profile::default(),
            anthropic: crate::anthropic::Profile::default(),
            native: crate::native::Profile::default(),
            seal_key: [0; 32],
            refused: Marks::default(),
        }
    }

    /// Where state comes from that this target's answer carries, and the only state it is given back.
    pub fn origin(&self) -> Origin {
        Origin { provider: self.provider.clone(), model: self.model.clone(), account: self.account.clone() }
    }

    /// Opens state of the history that `origin`, this target's, may be given back.
    pub(crate) fn open(&self, origin: &Origin, state: &str) -> Opened {
        if self.refuses(state) { Opened::Unknown } else { sealed::open(&self.seal_key, origin, state) }
    }

    /// Whether the provider has refused this state.
    pub(crate) fn refuses(&self, state: &str) -> bool {
        !self.refused.is_empty() && self.refused.contains(&Mark::of(&self.account, state))
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { provider, model, account, context_window, images, chat, anthropic, native, seal_key: _, refused } =
            self;
        f.debug_struct("Target")
            .field("provider", provider)
            .field("model", model)
            .field("account", account)
            .field("context_window", context_window)
            .field("images", images)
            .field("chat", chat)
            .field("anthropic", anthropic)
            .field("native", native)
            .field("seal_key", &"…")
            .field("refused", &refused.len())
            .finish()
    }
}
