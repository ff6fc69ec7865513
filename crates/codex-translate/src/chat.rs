//! Chat Completions: OpenAI's older protocol, which most providers speak, each in its own dialect.

pub mod decode;
pub mod encode;
#[cfg(any(test, feature = "testing"))]
pub mod validate;

use crate::anthropic::Effort as Level;
use crate::failure::Repair;
use crate::tools::ToolTable;
use crate::{Call, Decode, EncodeError, Protocol, Request, Target};

/// The protocol.
#[derive(Clone, Copy, Debug, Default)]
pub struct Chat;

impl Protocol for Chat {
    fn encode(&self, request: &Request<'_>, target: &Target) -> Result<Call, EncodeError> {
        encode::encode(request, target)
    }

    fn decoder(&self, request: &Request<'_>, _target: &Target) -> Box<dyn Decode + Send> {
        Box::new(decode::Decoder::new(ToolTable::from_request(request)))
    }
}

/// The dialect of a provider or model: which parameters it knows, which it refuses, where its reasoning lives.
///
/// The default is the portable body that every known host accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is one independent fact about a provider")]
pub struct Profile {
    /// Send `stream_options: {include_usage: true}`.
    pub stream_options: bool,
    /// Send `strict` with functions.
    pub strict_tools: bool,
    /// Send `parallel_tool_calls`.
    pub parallel_tool_calls: bool,
    /// Send `response_format` of type `json_schema`; otherwise the schema becomes an instruction.
    pub json_schema: bool,
    /// Name of the output limit parameter.
    pub max_tokens: MaxTokens,
    /// Most that is asked for with it, in tokens; `None`: what the request says.
    pub output_tokens_max: Option<u64>,
    /// How a reasoning effort is asked for.
    pub effort: Effort,
    /// The levels that `reasoning_effort` may name, in no order; others become the nearest below. Empty: low, medium,
    /// high.
    pub levels: Vec<Level>,
    /// Most tools that are taken; those least needed are left out (`tools::offer`).
    pub tools_max: Option<usize>,
    /// How old reasoning goes back.
    pub replay: Replay,
    /// Content of an assistant message that has only calls.
    pub empty_content: EmptyContent,
    /// Tool call ids must be exactly nine of `[a-zA-Z0-9]`.
    pub short_call_ids: bool,
    /// Join neighbours of one role and keep `user` from following `tool` directly.
    pub strict_alternation: bool,
    /// Keep `tool_choice` away from anything but auto.
    pub tool_choice_auto_only: bool,
    /// Content is always a string; images become notes.
    pub string_content: bool,
    /// Reduce the schemas of tools to what every provider knows.
    pub plain_schemas: bool,
    /// Gemini behind a Chat Completions door: the first call of each turn needs a thought signature, a placeholder
    /// where the real one is lost.
    pub thought_signatures: bool,
    /// The words that the effort may be, as the provider has listed them when it refused another. Empty: not known, and
    /// `levels` count.
    pub effort_words: Vec<String>,
    /// Body members that are never sent, by name; learned from refusals.
    pub omit: Vec<String>,
}

/// Name of the output limit parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxTokens {
    /// `max_tokens`
    Classic,
    /// `max_completion_tokens`
    Completion,
}

/// How a provider is asked to think more or less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Nothing is sent.
    None,
    /// `reasoning_effort: "…"`, clamped to low, medium, high.
    ReasoningEffort,
    /// `reasoning: {"effort": "…"}` (OpenRouter, Kilo).
    ReasoningObject,
    /// `thinking: {"type": "enabled" | "disabled"}` (GLM, Kimi, DeepSeek).
    Thinking,
    /// That, and `reasoning_effort` where it is enabled (DeepSeek V4).
    ThinkingAndEffort,
    /// `enable_thinking: bool` (Qwen).
    EnableThinking,
    /// `reasoning_split: true` (MiniMax).
    ReasoningSplit,
}

/// In which form a provider wants its own reasoning back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// It does not.
    Never,
    /// `reasoning_content` on the assistant message; a space where it is lost and the message has calls.
    ReasoningContent,
    /// `reasoning_details`, unchanged and in order.
    ReasoningDetails,
    /// A think block at the head of the content.
    InlineThink,
}

/// What stands in `content` when an assistant message has only calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmptyContent {
    /// `null`
    Null,
    /// `""`
    EmptyString,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            stream_options: true,
            strict_tools: false,
            parallel_tool_calls: false,
            json_schema: true,
            max_tokens: MaxTokens::Classic,
            output_tokens_max: None,
            effort: Effort::None,
            levels: Vec::new(),
            tools_max: None,
            replay: Replay::Never,
            empty_content: EmptyContent::Null,
            short_call_ids: false,
            strict_alternation: false,
            tool_choice_auto_only: false,
            string_content: false,
            plain_schemas: false,
            thought_signatures: false,
            effort_words: Vec::new(),
            omit: Vec::new(),
        }
    }
}

/// What a body can do without, and [`Profile::omit`] may therefore name.
const OPTIONAL_MEMBERS: [&str; 13] = [
    "tool_choice",
    "parallel_tool_calls",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "reasoning_effort",
    "reasoning",
    "thinking",
    "enable_thinking",
    "reasoning_split",
    "stream_options",
    "detail",
];

impl Profile {
    /// Whether the body may have this member.
    pub fn allows(&self, member: &str) -> bool {
        !self.omit.iter().any(|omitted| omitted == member)
    }

    /// Changes the dialect as a refusal asks for. `false` if that would not change anything in the request, so that
    /// another attempt would be refused as well.
    pub fn apply(&mut self, repair: &Repair) -> bool {
        let before = self.clone();
        match repair {
            Repair::Drop(parameter) => self.drop_parameter(parameter),
            Repair::CleanSchema => self.plain_schemas = true,
            Repair::StringContent => self.string_content = true,
            Repair::ReasoningContentRequired => self.replay = Replay::ReasoningContent,
            Repair::Efforts(words) if words.is_empty() => self.effort = Effort::None,
            Repair::Efforts(words) => self.effort_words.clone_from(words),
            Repair::OutputTokens(tokens) => {
                self.output_tokens_max = Some(self.output_tokens_max.map_or(*tokens, |known| known.min(*tokens)));
            }
            // There never is more than one system message, and it is the first. Whether the model takes images is a
            // matter of the target, how it is asked to think one of another protocol. The others are no matter of form.
            Repair::MergeSystem
            | Repair::NoImages
            | Repair::ThinkAdaptively
            | Repair::ThinkByBudget
            | Repair::ForgetThinking
            | Repair::RefreshToken
            | Repair::CreateSession
            | Repair::StartNewRun => {}
        }
        *self != before
    }

    /// Providers name the parameter bare or with its path: `stream_options`, `tools.0.function.strict`,
    /// `messages[3].reasoning_content`.
    fn drop_parameter(&mut self, parameter: &str) {
        let is_name = |step: &&str| !step.is_empty() && *step != "body";
        let mut steps = parameter.split(['.', '[', ']']).filter(is_name);
        let first = steps.next().unwrap_or_default();
        let last = steps.next_back().unwrap_or(first);
        match last {
            "strict" => self.strict_tools = false,
            "json_schema" | "response_format" => self.json_schema = false,
            "reasoning_content" | "reasoning_details" => self.replay = Replay::Never,
            // OpenAI's reasoning models know only the new name, most others only the old one.
            "max_tokens" if self.max_tokens == MaxTokens::Classic && self.allows("max_completion_tokens") => {
                self.omit.push(last.to_owned());
                self.max_tokens = MaxTokens::Completion;
            }
            "max_completion_tokens" if self.max_tokens == MaxTokens::Completion && self.allows("max_tokens") => {
                self.omit.push(last.to_owned());
                self.max_tokens = MaxTokens::Classic;
            }
            _ => {
                let member = if OPTIONAL_MEMBERS.contains(&last) { last } else { first };
                if OPTIONAL_MEMBERS.contains(&member) && self.allows(member) {
                    self.omit.push(member.to_owned());
                }
            }
        }
    }
}
