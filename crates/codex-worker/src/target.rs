//! From an endpoint's names for its peculiarities to the translator's dialect.

use codex_control::endpoint::{Endpoint, ModelFacts};
use codex_control::tables::Quirk;
use codex_translate::Target;
use codex_translate::chat::{Effort, EmptyContent, MaxTokens, Profile, Replay};

/// The target of one request.
pub(crate) fn target(endpoint: &Endpoint, facts: &ModelFacts, seal_key: [u8; 32]) -> Target {
    let mut chat = Profile::default();
    for quirk in endpoint.quirks.iter().chain(&facts.quirks) {
        apply(&mut chat, *quirk);
    }
    Target {
        provider: endpoint.provider.clone(),
        model: facts.id.clone(),
        images: facts.images,
        chat,
        anthropic: codex_translate::anthropic::Profile::default(),
        seal_key,
    }
}

fn apply(chat: &mut Profile, quirk: Quirk) {
    match quirk {
        Quirk::NoStreamOptions => chat.stream_options = false,
        Quirk::StrictTools => chat.strict_tools = true,
        Quirk::ParallelToolCalls => chat.parallel_tool_calls = true,
        Quirk::NoJsonSchema => chat.json_schema = false,
        Quirk::MaxCompletionTokens => chat.max_tokens = MaxTokens::Completion,
        Quirk::ReasoningEffort => chat.effort = Effort::ReasoningEffort,
        Quirk::ReasoningObject => chat.effort = Effort::ReasoningObject,
        Quirk::ThinkingSwitch => chat.effort = Effort::Thinking,
        Quirk::EnableThinking => chat.effort = Effort::EnableThinking,
        Quirk::ReasoningSplit => chat.effort = Effort::ReasoningSplit,
        Quirk::ReplayReasoningContent => chat.replay = Replay::ReasoningContent,
        Quirk::ReplayReasoningDetails => chat.replay = Replay::ReasoningDetails,
        Quirk::ReplayInlineThink => chat.replay = Replay::InlineThink,
        Quirk::EmptyContentString => chat.empty_content = EmptyContent::EmptyString,
        Quirk::ShortCallIds => chat.short_call_ids = true,
        Quirk::StrictAlternation => chat.strict_alternation = true,
        Quirk::ToolChoiceAutoOnly => chat.tool_choice_auto_only = true,
    }
}
