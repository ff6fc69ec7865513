//! The one alphabet into which every upstream protocol decodes.
//!
//! Order is meaning: the emitter opens and closes Responses items from the sequence alone. Text after reasoning
//! closes the reasoning item; a call closes both. Empty strings never appear in a delta.

use crate::failure::Failure;

/// One step of an upstream answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Delta {
    /// The upstream has begun to answer; nothing to show yet.
    Started,
    /// A piece of visible text.
    Text(String),
    /// A piece of readable reasoning.
    Reasoning(String),
    /// Upstream state that must come back on the next turn (a signature, `reasoning_details`, …).
    /// It belongs to the reasoning item that is open, or to one opened for it before the next text or call.
    /// What belongs to one call rides in the [`ToolCall`] instead, since only the emitter knows its final id.
    Opaque(crate::sealed::Part),
    /// One whole tool call. There is no partial form: a call leaves a decoder only when its arguments are complete,
    /// because Codex runs it the moment it sees the finished item.
    Call(ToolCall),
    /// A search that the provider ran by itself; shown, never executed.
    WebSearch {
        /// What was searched for.
        query: String,
    },
    /// Token counts so far; the last one wins, they are never added up.
    Usage(Usage),
    /// The answer is over.
    Stop(StopReason),
    /// The answer failed. Nothing follows.
    Failed(Failure),
}

/// A complete call as the upstream made it, named as the upstream knows the tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// The id the upstream gave, if it gave a usable one.
    pub upstream_id: Option<String>,
    /// The upstream's name for the tool (an alias of the table in [`crate::tools`]), decorations already removed.
    pub name: String,
    /// The arguments: a JSON object, as text.
    pub arguments: String,
    /// Extra fields that must come back with the call (Gemini's thought signatures): a JSON object, as text.
    pub extra_content: Option<String>,
}

/// Why an upstream ended its answer by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// A complete answer, with or without calls.
    Done,
    /// The output limit was reached.
    Length,
    /// A content filter cut the answer.
    ContentFilter,
    /// The provider paused a long server-side turn and expects to be asked again.
    Paused,
}

/// Token counts in Responses terms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// All input tokens, cached ones included.
    pub input_tokens: u64,
    /// Input tokens that came from the provider's cache.
    pub cached_tokens: u64,
    /// All output tokens, reasoning included.
    pub output_tokens: u64,
    /// Output tokens spent on reasoning.
    pub reasoning_tokens: u64,
    /// What the provider calls the total; the sum where it gives none.
    pub total_tokens: u64,
}

impl Usage {
    /// Whether the counts are worth passing on. Codex believes what it is told: zeros would keep it from ever
    /// compacting, while without any counts it makes its own estimate.
    pub fn is_known(&self) -> bool {
        self.input_tokens > 0 && self.total_tokens > 0
    }
}
