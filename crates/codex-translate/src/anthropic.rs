//! Anthropic Messages: the protocol of Claude, which several other providers offer beside Chat Completions.
//!
//! Source: <https://docs.anthropic.com/en/api/messages>, read 2026-11, and the servers that imitate it.

pub mod decode;
pub mod encode;
#[cfg(any(test, feature = "testing"))]
pub mod validate;

use crate::failure::Repair;
use crate::tools::ToolTable;
use crate::{Call, Decode, EncodeError, Protocol, Request, Target};

/// The protocol.
#[derive(Clone, Copy, Debug, Default)]
pub struct Anthropic;

impl Protocol for Anthropic {
    fn encode(&self, request: &Request<'_>, target: &Target) -> Result<Call, EncodeError> {
        encode::encode(request, target)
    }

    fn decoder(&self, request: &Request<'_>, _target: &Target) -> Box<dyn Decode + Send> {
        Box::new(decode::Decoder::new(ToolTable::from_request(request)))
    }
}

/// Output limit that is asked for when neither the request nor the profile says another, in tokens. The API demands one,
/// and refuses one beyond the model's own: this is what the smallest model of Claude 4 can do.
pub const OUTPUT_TOKENS_DEFAULT: u64 = 32_000;

/// The dialect of a provider or model: what it can do beyond what every server of this protocol takes, which is the
/// default.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is one independent fact about a provider")]
pub struct Profile {
    /// Output limit that is asked for when the request sets none, in tokens.
    pub output_tokens: u64,
    /// Most that is asked for, whatever the request sets, in tokens; `None`: as much as is wanted.
    pub output_tokens_max: Option<u64>,
    /// How thinking is asked for.
    pub thinking: Thinking,
    /// The efforts that `output_config.effort` may name, used with [`Thinking::Adaptive`]. Others become the nearest
    /// below. Empty: none is sent.
    pub efforts: Vec<Effort>,
    /// Give back what the model thought.
    pub replay_thinking: bool,
    /// Give back thinking that carries no signature. Anthropic signs all of it and refuses what is not.
    pub unsigned_thinking: bool,
    /// Send `output_config.format` with a JSON schema; otherwise the schema becomes an instruction.
    pub json_schema: bool,
    /// Send `strict` with tools.
    pub strict_tools: bool,
    /// Mark what repeats with each request (`cache_control`), so that it is paid for once.
    pub cache: bool,
    /// The conversation may end with words of the assistant, which the model then goes on with.
    pub prefill: bool,
    /// Where Codex offers its hosted web search, offer Anthropic's, which runs at Anthropic and is paid for by the search.
    pub web_search: bool,
    /// Reduce the schemas of tools to what every provider knows.
    pub plain_schemas: bool,
    /// Values of the `anthropic-beta` header.
    pub betas: Vec<String>,
    /// Body members that are never sent, by name; learned from refusals.
    pub omit: Vec<String>,
}

/// How thinking is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thinking {
    /// It is not: the server decides by itself, and takes back what its model thought.
    Unasked,
    /// With a number of tokens: `{"type": "enabled", "budget_tokens": …}` (Claude 3.7 to 4.5, most imitations).
    Budget,
    /// As the model likes: `{"type": "adaptive"}`, with `output_config.effort` (Claude 4.6 and later).
    Adaptive,
}

/// A level of effort, from the least to the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effort {
    /// `low`
    Low,
    /// `medium`
    Medium,
    /// `high`
    High,
    /// `xhigh`
    XHigh,
    /// `max`
    Max,
}

impl Effort {
    /// The level that Codex means by `word`; `None` for `none`, `minimal` and words nobody knows.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "low" => Some(Self::Low),
            "medium" => Some(Self::Medium),
            "high" => Some(Self::High),
            "xhigh" => Some(Self::XHigh),
            "max" | "ultra" => Some(Self::Max),
            _ => None,
        }
    }

    /// The greatest of `levels` that is not above `effort`; the least of them for none, and where all are above.
    pub fn nearest(effort: Option<Self>, levels: &[Self]) -> Option<Self> {
        let below = levels.iter().filter(|level| Some(**level) <= effort).max();
        below.or_else(|| levels.iter().min()).copied()
    }

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::XHigh => "xhigh",
            Self::Max => "max",
        }
    }
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            output_tokens: OUTPUT_TOKENS_DEFAULT,
            output_tokens_max: None,
            thinking: Thinking::Unasked,
            efforts: vec![Effort::Low, Effort::Medium, Effort::High],
            replay_thinking: true,
            unsigned_thinking: false,
            json_schema: false,
            strict_tools: false,
            cache: true,
            prefill: false,
            web_search: false,
            plain_schemas: false,
            betas: Vec::new(),
            omit: Vec::new(),
        }
    }
}

/// What a body can do without, and [`Profile::omit`] may therefore name.
const OPTIONAL_MEMBERS: [&str; 5] = ["tool_choice", "disable_parallel_tool_use", "display", "temperature", "top_p"];

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
            Repair::ForgetThinking => self.replay_thinking = false,
            Repair::Efforts(words) if words.is_empty() => self.thinking = Thinking::Unasked,
            Repair::Efforts(words) => self.efforts = words.iter().filter_map(|word| Effort::parse(word)).collect(),
            Repair::OutputTokens(tokens) => {
                self.output_tokens_max = Some(self.output_tokens_max.map_or(*tokens, |known| known.min(*tokens)));
            }
            // Where there are efforts they are named with it.
            Repair::ThinkAdaptively => self.thinking = Thinking::Adaptive,
            Repair::ThinkByBudget => self.thinking = Thinking::Budget,
            // Content is a list of blocks everywhere, there is one system text, and thinking has a form of its own. Whether
            // the model takes images is a matter of the target. The others are no matter of form.
            Repair::StringContent
            | Repair::NoImages
            | Repair::ReasoningContentRequired
            | Repair::MergeSystem
            | Repair::RefreshToken
            | Repair::CreateSession
            | Repair::StartNewRun => {}
        }
        *self != before
    }

    /// Providers name the parameter with its path: `output_config.effort`, `tools.0.custom.strict`,
    /// `system.1.cache_control`, `thinking.adaptive.display`.
    fn drop_parameter(&mut self, parameter: &str) {
        let mut steps = parameter.split(['.', '[', ']']).filter(|step| {
            !step.is_empty() && !step.bytes().all(|byte| byte.is_ascii_digit()) && !matches!(*step, "body" | "custom")
        });
        let first = steps.next().unwrap_or_default();
        let last = steps.next_back().unwrap_or(first);
        let member = if OPTIONAL_MEMBERS.contains(&last) { last } else { first };
        if OPTIONAL_MEMBERS.contains(&member) {
            if self.allows(member) {
                self.omit.push(member.to_owned());
            }
            return;
        }
        match (first, last) {
            (_, "strict") => self.strict_tools = false,
            ("tools", "web_search_20250305") => self.web_search = false,
            (_, "cache_control" | "ttl") => self.cache = false,
            ("output_config", "effort") | ("effort" | "reasoning_effort", _) => self.efforts.clear(),
            ("output_config", "format" | "schema") | ("output_format", _) => self.json_schema = false,
            ("output_config", _) => {
                self.efforts.clear();
                self.json_schema = false;
            }
            ("thinking", _) => self.thinking = Thinking::Unasked,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
