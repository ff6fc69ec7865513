//! From an endpoint's names for its peculiarities to the translator's dialects.

use codex_control::endpoint::{Endpoint, ModelFacts};
use codex_control::tables::{Protocol, Quirk};
use codex_translate::anthropic::{self, Thinking};
use codex_translate::chat::{self, Effort, EmptyContent, MaxTokens, Replay};
use codex_translate::{Repair, Target};

/// The beta by which a model thinks between its calls. Source: <https://docs.anthropic.com/en/docs/build-with-claude/extended-thinking>, read 2026-11.
const INTERLEAVED_THINKING: &str = "interleaved-thinking-2025-05-14";

/// The target of one request.
pub(crate) fn target(endpoint: &Endpoint, facts: &ModelFacts, account: String, seal_key: [u8; 32]) -> Target {
    let (mut chat, mut anthropic) = (chat::Profile::default(), anthropic::Profile::default());
    for quirk in endpoint.quirks.iter().chain(&facts.quirks) {
        apply(&mut chat, &mut anthropic, *quirk);
    }
    let levels: Vec<anthropic::Effort> =
        facts.reasoning_levels.iter().filter_map(|level| anthropic::Effort::parse(level)).collect();
    if !levels.is_empty() {
        chat.levels.clone_from(&levels);
        anthropic.efforts = levels;
    }
    if let Some(output_tokens) = facts.output_tokens {
        anthropic.output_tokens = output_tokens;
    }
    Target {
        account,
        context_window: facts.context_window,
        images: facts.images,
        chat,
        anthropic,
        seal_key,
        // State belongs to who answers at an address. A preset says less: an endpoint may have its dialect and another
        // address, and two servers refuse what the other has signed.
        ..Target::new(endpoint.base_url.clone(), facts.id.clone())
    }
}

fn apply(chat: &mut chat::Profile, anthropic: &mut anthropic::Profile, quirk: Quirk) {
    match quirk {
        Quirk::NoStreamOptions => chat.stream_options = false,
        Quirk::StrictTools => {
            chat.strict_tools = true;
            anthropic.strict_tools = true;
        }
        Quirk::ParallelToolCalls => chat.parallel_tool_calls = true,
        Quirk::NoJsonSchema => chat.json_schema = false,
        Quirk::MaxCompletionTokens => chat.max_tokens = MaxTokens::Completion,
        // The two together mean both, in whichever order they are named.
        Quirk::ReasoningEffort if chat.effort == Effort::Thinking => chat.effort = Effort::ThinkingAndEffort,
        Quirk::ReasoningEffort => chat.effort = Effort::ReasoningEffort,
        Quirk::ReasoningObject => chat.effort = Effort::ReasoningObject,
        Quirk::ThinkingSwitch if chat.effort == Effort::ReasoningEffort => chat.effort = Effort::ThinkingAndEffort,
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
        Quirk::StringContent => chat.string_content = true,
        Quirk::PlainSchemas => {
            chat.plain_schemas = true;
            anthropic.plain_schemas = true;
        }
        Quirk::ThoughtSignatures => chat.thought_signatures = true,
        Quirk::ThinkingBudget => anthropic.thinking = Thinking::Budget,
        Quirk::ThinkingAdaptive => anthropic.thinking = Thinking::Adaptive,
        Quirk::UnsignedThinking => anthropic.unsigned_thinking = true,
        Quirk::OutputFormat => anthropic.json_schema = true,
        Quirk::NoPromptCache => anthropic.cache = false,
        Quirk::InterleavedThinking => anthropic.betas.push(INTERLEAVED_THINKING.to_owned()),
        Quirk::Prefill => anthropic.prefill = true,
        Quirk::WebSearch => anthropic.web_search = true,
        Quirk::ToolsMax128 => chat.tools_max = Some(128),
    }
}

/// Changes the dialect in use as a refusal asks for; `false` if that would change nothing in the request.
pub(crate) fn repair(target: &mut Target, protocol: Protocol, repair: &Repair) -> bool {
    match protocol {
        Protocol::ChatCompletions | Protocol::AnthropicMessages if *repair == Repair::NoImages => {
            std::mem::replace(&mut target.images, false)
        }
        Protocol::ChatCompletions => target.chat.apply(repair),
        Protocol::AnthropicMessages => target.anthropic.apply(repair),
        Protocol::Responses => target.native.apply(repair),
    }
}

#[cfg(test)]
mod tests {
    use codex_control::endpoint::{model_facts, resolve};
    use codex_control::settings::Settings;
    use codex_control::tables::Tables;

    use super::*;

    #[test]
    fn state_belongs_to_an_address_whatever_the_preset() {
        let tables = Tables::embedded();
        let origin = |lines: &str| {
            let text = format!("[[endpoint]]\nid = \"e\"\n{lines}\n");
            let settings = Settings::parse(std::path::Path::new("s"), text.as_bytes()).unwrap();
            let endpoint = resolve(&settings, &tables, &settings.endpoint[0]).unwrap();
            let facts = model_facts(&endpoint, &tables, "glm-4.7");
            target(&endpoint, &facts, "me".to_owned(), [0; 32]).origin()
        };
        let preset = origin("preset = \"zai-coding\"");
        let address = "https://api.z.ai/api/coding/paas/v4";
        assert_ne!(preset, origin("preset = \"zai-coding\"\nbase_url = \"http://127.0.0.1:9/v1\""));
        assert_eq!(preset, origin(&format!("preset = \"zai-coding\"\nbase_url = \"{address}/\"")));
        assert_eq!(preset, origin(&format!("protocol = \"chat-completions\"\nbase_url = \"{address}\"")));
    }
}
