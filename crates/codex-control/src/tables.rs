//! Data tables: embedded in the binary, each row overridable by the person's file of the same name.
//!
//! A row of the person's file with an id of ours replaces ours whole; a new id adds a row. A file of theirs that does
//! not parse is reported and left out, the embedded rows stay.

pub mod incident;

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::files;
use crate::paths::{self, Paths};
use crate::settings::SettingsError;

/// Largest table file that is read.
pub const TABLE_BYTES_MAX: u64 = 1024 * 1024;

const PROVIDERS: &str = include_str!("../../../config/providers.toml");
const MODELS: &str = include_str!("../../../config/models.toml");

/// The wire protocols an endpoint can speak to its provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// OpenAI's own: relayed as it is.
    Responses,
    /// Chat Completions.
    ChatCompletions,
    /// Anthropic Messages.
    AnthropicMessages,
}

impl Protocol {
    /// The name used in every file and answer.
    pub fn name(self) -> &'static str {
        match self {
            Self::Responses => "responses",
            Self::ChatCompletions => "chat-completions",
            Self::AnthropicMessages => "anthropic-messages",
        }
    }
}

/// Departures from the portable body of a protocol, by name. A row lists those that apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quirk {
    /// Refuses `stream_options`.
    NoStreamOptions,
    /// Takes `strict` with functions.
    StrictTools,
    /// Takes `parallel_tool_calls`.
    ParallelToolCalls,
    /// Refuses `response_format` of type `json_schema`.
    NoJsonSchema,
    /// Wants `max_completion_tokens` instead of `max_tokens`.
    MaxCompletionTokens,
    /// Takes `reasoning_effort`.
    ReasoningEffort,
    /// Takes `reasoning: {effort}`.
    ReasoningObject,
    /// Takes `thinking: {type}`.
    ThinkingSwitch,
    /// Takes `enable_thinking`.
    EnableThinking,
    /// Takes `reasoning_split`.
    ReasoningSplit,
    /// Wants its `reasoning_content` back.
    ReplayReasoningContent,
    /// Wants its `reasoning_details` back.
    ReplayReasoningDetails,
    /// Wants its think block back inside the content.
    ReplayInlineThink,
    /// Wants `""` where a message has only calls.
    EmptyContentString,
    /// Tool call ids are exactly nine letters and digits.
    ShortCallIds,
    /// No two messages of one role in a row, no `user` directly after `tool`.
    StrictAlternation,
    /// Refuses any `tool_choice` but `auto`.
    ToolChoiceAutoOnly,
    /// Wants content as plain strings; images become notes.
    StringContent,
    /// Knows only simple JSON Schema in tools.
    PlainSchemas,
    /// Wants thought signatures back with calls (Gemini behind Chat Completions).
    ThoughtSignatures,
    /// Anthropic Messages: thinking is asked for with a budget of tokens.
    ThinkingBudget,
    /// Anthropic Messages: thinking is asked for as adaptive, with an effort.
    ThinkingAdaptive,
    /// Anthropic Messages: takes thinking back that carries no signature.
    UnsignedThinking,
    /// Anthropic Messages: takes `output_config.format` with a JSON schema.
    OutputFormat,
    /// Anthropic Messages: refuses `cache_control`.
    NoPromptCache,
    /// Anthropic Messages: thinks between calls only when it is asked to by the beta of that name.
    InterleavedThinking,
    /// Anthropic Messages: goes on with words of the assistant at the end of the conversation.
    Prefill,
    /// Anthropic Messages: searches the web by itself, where Codex offers that.
    WebSearch,
    /// Takes 128 tools at most; those least needed are left out.
    #[serde(rename = "tools-max-128")]
    ToolsMax128,
}

/// How a credential goes into a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuthKind {
    /// `Authorization: Bearer KEY`
    #[default]
    Bearer,
    /// `x-api-key: KEY`
    XApiKey,
    /// None is sent; local servers.
    None,
}

/// How a provider authenticates, as its row says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderAuth {
    /// How the key goes into a request.
    #[serde(default)]
    pub kind: AuthKind,
    /// The variable in which people usually keep this key; `codexctl endpoint add` offers to take it from there.
    pub env: Option<String>,
}

/// One row of `providers.toml`: a preset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    /// Stable kebab-case id.
    pub id: String,
    /// Name for people.
    pub name: String,
    /// Wire protocol.
    pub protocol: Protocol,
    /// Base URL, without the protocol's own path.
    pub base_url: String,
    /// Authentication.
    #[serde(default)]
    pub auth: ProviderAuth,
    /// Models in the order they are offered; empty: asked from the provider.
    #[serde(default)]
    pub models: Vec<String>,
    /// Model of a new endpoint.
    pub default_model: Option<String>,
    /// What this provider does differently.
    #[serde(default)]
    pub quirks: Vec<Quirk>,
    /// Headers sent with each request.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// What a person should know before choosing it.
    pub note: Option<String>,
    /// Where the facts come from.
    pub source: String,
}

/// A kind of input a model takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Modality {
    /// Text.
    Text,
    /// Images.
    Image,
}

/// One row of `models.toml`: facts about a model or a family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Model id; a trailing `*` matches any ending. Compared without case with the slug and with its last `/` part.
    pub id: String,
    /// Name for people; the slug itself where absent.
    pub name: Option<String>,
    /// Context window in tokens.
    pub context_window: Option<u64>,
    /// The longest answer it can give, in tokens, where that has to be asked for (Anthropic Messages).
    pub output_tokens: Option<u64>,
    /// Kinds of input; default text only.
    pub input: Option<Vec<Modality>>,
    /// Reasoning efforts that can be chosen, weakest first; empty: none.
    pub reasoning_levels: Option<Vec<String>>,
    /// The level chosen when the person chooses none.
    pub default_reasoning_level: Option<String>,
    /// Whether the model handles Codex's freeform `apply_patch` well; default true.
    pub freeform_patch: Option<bool>,
    /// What this model does differently, added to its provider's.
    #[serde(default)]
    pub quirks: Vec<Quirk>,
    /// Where the facts come from.
    pub source: Option<String>,
}

/// The tables in force.
#[derive(Clone, Debug)]
pub struct Tables {
    providers: Vec<Provider>,
    models: Vec<Model>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProvidersFile {
    #[serde(default)]
    provider: Vec<Provider>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelsFile {
    #[serde(default)]
    model: Vec<Model>,
}

impl Tables {
    /// The embedded tables alone.
    pub fn embedded() -> Self {
        let providers: ProvidersFile = toml::from_str(PROVIDERS).expect("the embedded table, loaded by a test");
        let models: ModelsFile = toml::from_str(MODELS).expect("the embedded table, loaded by a test");
        Self { providers: providers.provider, models: models.model }
    }

    /// The embedded tables with the person's overrides, and what was wrong with those, if anything.
    pub fn load(paths: &Paths) -> (Self, Vec<SettingsError>) {
        Self::load_from(paths.config_folder())
    }

    /// As [`Self::load`], with the overrides in `config_folder`.
    pub fn load_from(config_folder: &Path) -> (Self, Vec<SettingsError>) {
        let mut tables = Self::embedded();
        let mut problems = Vec::new();
        match load_override::<ProvidersFile>(config_folder, "providers") {
            Ok(rows) => {
                merge(&mut tables.providers, rows.map_or_else(Vec::new, |file| file.provider), |row| row.id.clone());
            }
            Err(problem) => problems.push(problem),
        }
        match load_override::<ModelsFile>(config_folder, "models") {
            Ok(rows) => merge(&mut tables.models, rows.map_or_else(Vec::new, |file| file.model), |row| row.id.clone()),
            Err(problem) => problems.push(problem),
        }
        (tables, problems)
    }

    /// All presets, in the order of the table.
    pub fn providers(&self) -> &[Provider] {
        &self.providers
    }

    /// The preset called `id`.
    pub fn provider(&self, id: &str) -> Option<&Provider> {
        self.providers.iter().find(|provider| provider.id == id)
    }

    /// What is known about the model `slug`: the row with the longest matching id, merged over nothing else.
    pub fn model(&self, slug: &str) -> Option<&Model> {
        let slug = slug.to_ascii_lowercase();
        let last = slug.rsplit_once('/').map_or(slug.as_str(), |(_, last)| last);
        self.models
            .iter()
            .filter(|model| {
                let id = model.id.to_ascii_lowercase();
                match id.strip_suffix('*') {
                    Some(stem) => slug.starts_with(stem) || last.starts_with(stem),
                    None => slug == id || last == id,
                }
            })
            .max_by_key(|model| (model.id.trim_end_matches('*').len(), !model.id.ends_with('*')))
    }
}

fn load_override<T: DeserializeOwned>(config_folder: &Path, table: &str) -> Result<Option<T>, SettingsError> {
    let path = paths::table_override(config_folder, table);
    let Some(bytes) = files::read_bounded(&path, TABLE_BYTES_MAX).map_err(SettingsError::File)? else {
        return Ok(None);
    };
    crate::settings::parse_toml(&path, &bytes).map(Some)
}

fn merge<T, I: PartialEq>(rows: &mut Vec<T>, overrides: Vec<T>, id: impl Fn(&T) -> I) {
    for row in overrides {
        match rows.iter_mut().find(|existing| id(existing) == id(&row)) {
            Some(existing) => *existing = row,
            None => rows.push(row),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_embedded_tables_are_sound() {
        let tables = Tables::embedded();
        let mut ids = BTreeSet::new();
        for provider in tables.providers() {
            assert!(ids.insert(&provider.id), "`{}` stands twice", provider.id);
            assert!(provider.id.parse::<crate::EndpointId>().is_ok(), "`{}` cannot name an endpoint", provider.id);
            let url = crate::endpoint::normalize_base_url(&provider.base_url).unwrap();
            assert_eq!(url, provider.base_url, "`{}` is not in its normal form", provider.id);
            if let Some(model) = &provider.default_model {
                assert!(provider.models.is_empty() || provider.models.contains(model), "{}", provider.id);
            }
        }
        let mut ids = BTreeSet::new();
        for model in &tables.models {
            assert!(ids.insert(&model.id), "`{}` stands twice", model.id);
            if let Some(level) = &model.default_reasoning_level {
                assert!(model.reasoning_levels.as_ref().is_some_and(|levels| levels.contains(level)), "{}", model.id);
            }
        }
    }

    #[test]
    fn the_most_specific_model_row_wins() {
        let tables = Tables::embedded();
        for (slug, id) in
            [("glm-4.7", "glm-4.7*"), ("z-ai/GLM-4.7:free", "glm-4.7*"), ("glm-4.5v", "glm-4.5v"), ("glm-3", "glm-*")]
        {
            assert_eq!(tables.model(slug).map(|model| model.id.as_str()), Some(id), "{slug}");
        }
        assert!(tables.model("something-unheard-of").is_none());
    }

    #[test]
    fn the_persons_rows_replace_and_add() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        let paths =
            Paths::from_environment(&[("HOME", home), ("XDG_RUNTIME_DIR", home)].into_iter().collect()).unwrap();
        std::fs::create_dir_all(paths.config_folder()).unwrap();
        let n_embedded = Tables::embedded().providers().len();
        std::fs::write(
            paths.table_override("providers"),
            r#"
            [[provider]]
            id = "deepseek"
            name = "Mine"
            protocol = "chat-completions"
            base_url = "http://127.0.0.1:1/v1"
            source = "me"
            [[provider]]
            id = "new"
            name = "New"
            protocol = "responses"
            base_url = "http://127.0.0.1:2/v1"
            source = "me"
            "#,
        )
        .unwrap();
        std::fs::write(paths.table_override("models"), "[[model]]\nid = \"x\"\ncontext_windwo = 1\n").unwrap();
        let (tables, problems) = Tables::load(&paths);
        assert_eq!(tables.provider("deepseek").unwrap().name, "Mine");
        assert_eq!(tables.providers().len(), n_embedded + 1);
        let [problem] = &problems[..] else { panic!("{problems:?}") };
        let text = problem.to_string();
        assert!(text.contains("models.toml:3:1") && text.contains("context_windwo"), "{text}");
        assert_eq!(crate::report::Hinted::hint(problem).as_deref(), Some("did you mean `context_window`?"));
    }
}
