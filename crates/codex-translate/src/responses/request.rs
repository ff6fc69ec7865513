//! A request as Codex sends it, read once and borrowed from its bytes.
//!
//! Typed is what a translation decides on; what it only carries stays a span of the body ([`Str`], [`Raw`]), ready to
//! be spliced. Types it does not know are kept as [`Item::Unknown`], unknown members are skipped: Codex gains both
//! with each release. Members that are known and of the wrong type are errors, with their path, for an HTTP 400.
//!
//! Source: requests recorded from Codex CLI 0.169.0 (`tests/fixtures/codex-requests`) and the public reference of the
//! Responses API.

use std::borrow::Cow;

use crate::json::{self, Kind, Raw, Reader, Str};
use crate::tools::{self, Definition};

/// Most items in one request. The longest sessions have some thousands; items cost more memory than their text.
pub const ITEMS_MAX: usize = 100_000;

/// Most tools in one request, those found by searches included. Most providers refuse more than 128.
pub const TOOLS_MAX: usize = 2_000;

/// A request to `POST /responses`.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The model, as Codex names it.
    pub model: Cow<'a, str>,
    /// Base instructions. Codex now sends them as the first developer message instead.
    pub instructions: Option<Str<'a>>,
    /// The whole conversation so far.
    pub input: Vec<Item<'a>>,
    /// The tools of the `tools` list. More may stand in [`Item::AdditionalTools`] and in search results;
    /// [`tools::offered`] gives all.
    pub tools: Vec<Definition<'a>>,
    /// The `tools` list as it came, with the tools that its provider is to run by itself.
    pub tools_list: Raw<'a>,
    /// `"auto"`, `"none"`, `"required"`, or an object that names a tool.
    pub tool_choice: Option<Raw<'a>>,
    /// Whether the model may call several tools at once.
    pub parallel_tool_calls: Option<bool>,
    /// How much to think, and how much of it to show.
    pub reasoning: ReasoningOptions<'a>,
    /// Form of the answer.
    pub text: TextOptions<'a>,
    /// Limit of the answer, in tokens.
    pub max_output_tokens: Option<u64>,
    /// Sampling temperature, a number.
    pub temperature: Option<Raw<'a>>,
    /// Nucleus sampling, a number.
    pub top_p: Option<Raw<'a>>,
    /// Whether the answer is wanted as a stream of events. Codex always wants that.
    pub stream: bool,
    /// Whether the answer is to be kept for [`previous_response_id`](Self::previous_response_id), as it is unless the
    /// client says no. Codex always does.
    pub store: bool,
    /// An earlier answer that this request continues. Codex sends the whole history instead.
    pub previous_response_id: Option<Cow<'a, str>>,
    /// Constant within a conversation; Codex sends its thread's id.
    pub prompt_cache_key: Option<Cow<'a, str>>,
    /// Whether encrypted reasoning is wanted back, which is the licence to put state of ours there.
    pub include_encrypted_reasoning: bool,
    /// The service tier that was configured.
    pub service_tier: Option<Cow<'a, str>>,
    /// Length of the body it was read from.
    pub body_bytes: usize,
}

/// The `reasoning` member.
#[derive(Clone, Debug, Default)]
pub struct ReasoningOptions<'a> {
    /// `none`, `minimal`, `low`, `medium`, `high`, `xhigh`, `max`; Codex passes on any word it is configured with.
    pub effort: Option<Cow<'a, str>>,
    /// `auto`, `concise`, `detailed`, `none`.
    pub summary: Option<Cow<'a, str>>,
}

/// The `text` member.
#[derive(Clone, Copy, Debug, Default)]
pub struct TextOptions<'a> {
    /// The form the answer must have; `None` for plain text.
    pub format: Option<Format<'a>>,
    /// `low`, `medium`, `high`.
    pub verbosity: Option<Str<'a>>,
}

/// A structured form of the answer.
#[derive(Clone, Copy, Debug)]
pub enum Format<'a> {
    /// Any JSON object.
    JsonObject,
    /// JSON that matches a schema.
    JsonSchema {
        /// Name of the schema.
        name: Str<'a>,
        /// What the answer is for.
        description: Option<Str<'a>>,
        /// Whether the schema must be matched exactly.
        strict: Option<bool>,
        /// The schema, an object.
        schema: Raw<'a>,
    },
}

/// One item of the conversation.
#[derive(Clone, Debug)]
pub enum Item<'a> {
    /// Something said by the developer, the user or the model.
    Message(Message<'a>),
    /// Something said by another agent.
    AgentMessage(AgentMessage<'a>),
    /// What the model thought before the items that follow.
    Reasoning(Reasoning<'a>),
    /// A call of a tool by the model.
    ToolCall(ToolCall<'a>),
    /// What came of a call.
    ToolOutput(ToolOutput<'a>),
    /// More tools, offered from here on.
    AdditionalTools(Vec<Definition<'a>>),
    /// A search that a provider ran by itself.
    WebSearchCall(Raw<'a>),
    /// A compacted history, readable only by who made it.
    Compaction(Raw<'a>),
    /// The request to compact the history before it.
    CompactionTrigger,
    /// A pointer to an item that a provider stored.
    ItemReference(Raw<'a>),
    /// An item of a type this program does not know.
    Unknown {
        /// Its type.
        kind: Cow<'a, str>,
        /// The whole item.
        raw: Raw<'a>,
    },
}

/// Who speaks in a [`Message`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `developer` or `system`: instructions.
    Developer,
    /// `user`
    User,
    /// `assistant`
    Assistant,
}

/// An item of type `message`.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: Content<'a>,
}

/// An item of type `agent_message`, by which the agents of a team talk. Its text says who writes to whom.
#[derive(Clone, Debug)]
pub struct AgentMessage<'a> {
    /// Path of the agent that wrote it.
    pub author: Cow<'a, str>,
    /// Path of the agent it is for.
    pub recipient: Cow<'a, str>,
    /// What is said.
    pub content: Content<'a>,
}

/// An item of type `reasoning`.
#[derive(Clone, Copy, Debug)]
pub struct Reasoning<'a> {
    /// The summary that was shown: an array of `summary_text` parts.
    pub summary: Content<'a>,
    /// The thoughts themselves: an array of `reasoning_text` parts.
    pub content: Content<'a>,
    /// State that only its maker can read; ours is opened by [`crate::sealed`].
    pub encrypted_content: Option<Str<'a>>,
}

/// A call of a tool: `function_call`, `custom_tool_call`, `local_shell_call` or `tool_search_call`.
#[derive(Clone, Debug)]
pub struct ToolCall<'a> {
    /// Links it to its [`ToolOutput`]. Unique in what Codex makes, not in everything it may be given.
    pub call_id: Cow<'a, str>,
    /// Namespace of the tool.
    pub namespace: Option<Cow<'a, str>>,
    /// Name of the tool.
    pub name: Cow<'a, str>,
    /// What the tool was given.
    pub payload: Payload<'a>,
}

/// What a tool was given.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    /// Arguments of a function: JSON text, if the model made no mistake.
    Arguments(Str<'a>),
    /// The text for a custom tool.
    Input(Str<'a>),
    /// Arguments of a tool search, any JSON value.
    Search(Raw<'a>),
    /// Action of the local shell: an object with `command`, an array of strings.
    Shell(Raw<'a>),
}

/// The result of a call: `function_call_output`, `custom_tool_call_output`, `local_shell_call_output` or
/// `tool_search_output`.
#[derive(Clone, Debug)]
pub struct ToolOutput<'a> {
    /// The call it answers.
    pub call_id: Cow<'a, str>,
    /// What came of it.
    pub result: ToolResult<'a>,
}

/// What came of a call.
#[derive(Clone, Debug)]
pub enum ToolResult<'a> {
    /// Text, or parts with text and images.
    Content(Content<'a>),
    /// The tools that a search has found, which are offered from here on.
    Tools(Vec<Definition<'a>>),
}

/// Text, or a list of parts.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// One text.
    Text(Str<'a>),
    /// An array of parts; empty when there was none.
    Parts(Raw<'a>),
}

/// One part of a [`Content`].
#[derive(Clone, Copy, Debug)]
pub enum Part<'a> {
    /// `input_text`, `output_text`, `summary_text`, `reasoning_text`, `refusal`, and the `encrypted_content` of agent
    /// messages, which is plain text here.
    Text(Str<'a>),
    /// `input_image`
    Image {
        /// A `data:` or `https:` URL; `None` for a file that was uploaded to OpenAI.
        url: Option<Str<'a>>,
        /// `auto`, `low`, `high`.
        detail: Option<Str<'a>>,
    },
    /// `input_file`
    File {
        /// Its name.
        name: Option<Str<'a>>,
    },
    /// `input_audio`
    Audio,
    /// A part of another type.
    Unknown(Raw<'a>),
}

/// A body that is no valid request. The message is for a person and names the place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The body is not JSON.
    #[error("the request body is not valid JSON: {0}")]
    Json(#[from] json::Error),
    /// A member is missing or has the wrong type.
    #[error("`{path}` {detail}")]
    Field {
        /// Where, e.g. `input[3].call_id`.
        path: String,
        /// What is wrong, e.g. `is missing`.
        detail: &'static str,
    },
    /// A bound of ours was reached.
    #[error("the request has more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The bound.
        limit: usize,
    },
}

impl<'a> Request<'a> {
    /// Reads a request body.
    ///
    /// # Errors
    /// [`ParseError::Json`] for text that is not JSON or not UTF-8, [`ParseError::Field`] for a member that is missing
    /// or of the wrong type, [`ParseError::TooMany`] beyond [`ITEMS_MAX`] or [`TOOLS_MAX`].
    pub fn parse(body: &'a [u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(json::utf8(body)?);
        if reader.kind()? != Kind::Object {
            return Err(field("request body", "must be a JSON object"));
        }
        let mut model = None;
        let mut request = Self {
            model: Cow::Borrowed(""),
            instructions: None,
            input: Vec::new(),
            tools: Vec::new(),
            tools_list: Raw::NULL,
            tool_choice: None,
            parallel_tool_calls: None,
            reasoning: ReasoningOptions::default(),
            text: TextOptions::default(),
            max_output_tokens: None,
            temperature: None,
            top_p: None,
            stream: false,
            store: true,
            previous_response_id: None,
            prompt_cache_key: None,
            include_encrypted_reasoning: false,
            service_tier: None,
            body_bytes: body.len(),
        };

        reader.enter_object()?;
        while let Some(key) = reader.next_key()? {
            // The two members that are long are read in place; all others are taken whole and looked into.
            if key.is("input") && reader.kind()? == Kind::Array {
                request.input = read_items(&mut reader)?;
                continue;
            }
            if key.is("tools") {
                let start = reader.position();
                request.tools = read_tools("tools", &mut reader)?;
                request.tools_list = reader.since(start);
                continue;
            }
            let value = reader.value()?;
            let name = &*key.decode();
            match name {
                "model" => model = string(name, value)?,
                "instructions" => request.instructions = string(name, value)?,
                "input" => request.input = read_plain_input(value)?,
                "tool_choice" => request.tool_choice = not_null(value),
                "parallel_tool_calls" => request.parallel_tool_calls = boolean(name, value)?,
                "reasoning" => request.reasoning = ReasoningOptions::read(value)?,
                "text" => request.text = TextOptions::read(value)?,
                "max_output_tokens" => request.max_output_tokens = whole_number(name, value)?,
                "temperature" => request.temperature = number(name, value)?,
                "top_p" => request.top_p = number(name, value)?,
                "stream" => request.stream = boolean(name, value)?.unwrap_or(false),
                "store" => request.store = boolean(name, value)?.unwrap_or(true),
                "previous_response_id" => request.previous_response_id = decoded(name, value)?,
                "prompt_cache_key" => request.prompt_cache_key = decoded(name, value)?,
                "include" => {
                    let is_reasoning = |element: Raw<'_>| {
                        element.as_str().is_some_and(|element| element.is("reasoning.encrypted_content"))
                    };
                    request.include_encrypted_reasoning = value.elements().any(is_reasoning);
                }
                "service_tier" => request.service_tier = decoded(name, value)?,
                // `client_metadata` and whatever else there is stays here.
                _ => {}
            }
        }
        reader.finish()?;

        request.model = model.filter(|model| !model.is_empty()).ok_or_else(|| field("model", "is missing"))?.decode();
        let tools = request.tools.len() + request.input.iter().map(|item| item.tools().len()).sum::<usize>();
        if tools > TOOLS_MAX {
            return Err(ParseError::TooMany { what: "tools", limit: TOOLS_MAX });
        }
        Ok(request)
    }

    /// Whether the answer is to be a compacted history, and nothing else.
    pub fn is_compaction(&self) -> bool {
        matches!(self.input.last(), Some(Item::CompactionTrigger))
    }

    /// The ids of all calls in the history, in order; an id may come twice.
    pub fn call_ids(&self) -> impl Iterator<Item = &str> {
        self.input.iter().filter_map(|item| match item {
            Item::ToolCall(call) => Some(&*call.call_id),
            _ => None,
        })
    }
}

impl<'a> Item<'a> {
    /// The tools this item offers, if it offers any.
    pub fn tools(&self) -> &[Definition<'a>] {
        match self {
            Self::AdditionalTools(tools) | Self::ToolOutput(ToolOutput { result: ToolResult::Tools(tools), .. }) => {
                tools
            }
            _ => &[],
        }
    }
}

impl<'a> Content<'a> {
    /// Nothing.
    const NONE: Content<'static> = Content::Parts(Raw::NULL);

    /// The parts, in order; a text is one part.
    pub fn parts(self) -> impl Iterator<Item = Part<'a>> {
        let (mut text, parts) = match self {
            Self::Text(text) => (Some(Part::Text(text)), Raw::NULL),
            Self::Parts(parts) => (None, parts),
        };
        let mut reader = Reader::new(parts.text());
        let mut is_open = parts.kind() == Kind::Array && reader.enter_array().is_ok();
        std::iter::from_fn(move || {
            if text.is_some() {
                return text.take();
            }
            // Errors cannot happen inside a `Raw`, which is valid by construction.
            is_open = is_open && reader.next_element().unwrap_or(false);
            if is_open { Part::read(&mut reader).ok() } else { None }
        })
    }

    /// The texts that are not empty, in order.
    pub fn texts(self) -> impl Iterator<Item = Str<'a>> {
        self.parts().filter_map(|part| match part {
            Part::Text(text) if !text.is_empty() => Some(text),
            _ => None,
        })
    }

    fn read(path: &dyn Fn() -> String, value: Option<Raw<'a>>) -> Result<Self, ParseError> {
        let Some(value) = value else { return Ok(Self::NONE) };
        match (value.kind(), value.as_str()) {
            (Kind::Null, _) => Ok(Self::NONE),
            (_, Some(text)) => Ok(Self::Text(text)),
            (Kind::Array, _) => Ok(Self::Parts(value)),
            _ => Err(ParseError::Field { path: path(), detail: "must be a string or an array" }),
        }
    }
}

impl<'a> Part<'a> {
    /// Takes the next value.
    fn read(reader: &mut Reader<'a>) -> Result<Self, json::Error> {
        if reader.kind()? != Kind::Object {
            return Ok(Self::Unknown(reader.value()?));
        }
        let start = reader.position();
        let [mut kind, mut text, mut refusal, mut encrypted] = [None; 4];
        let [mut image_url, mut detail, mut filename] = [None; 3];
        reader.enter_object()?;
        while let Some(key) = reader.next_key()? {
            let value = reader.value()?;
            let slot = match &*key.decode() {
                "type" => &mut kind,
                "text" => &mut text,
                "refusal" => &mut refusal,
                "encrypted_content" => &mut encrypted,
                "image_url" => &mut image_url,
                "detail" => &mut detail,
                "filename" => &mut filename,
                _ => continue,
            };
            *slot = Some(value);
        }
        let string = |value: Option<Raw<'a>>| value.and_then(Raw::as_str);
        let kind = string(kind).map_or("", Str::escaped);
        Ok(match (kind, string(text), string(refusal), string(encrypted)) {
            ("input_image", ..) => {
                // Some clients use the shape of Chat Completions here: an object with `url` and `detail`.
                let nested = image_url.filter(|url| url.kind() == Kind::Object);
                Self::Image {
                    url: string(image_url).or_else(|| nested?.get("url")?.as_str()),
                    detail: string(detail).or_else(|| nested?.get("detail")?.as_str()),
                }
            }
            ("input_file", ..) => Self::File { name: string(filename) },
            ("input_audio", ..) => Self::Audio,
            ("refusal", _, Some(text), _) | ("encrypted_content", _, _, Some(text)) => Self::Text(text),
            ("input_text" | "output_text" | "text" | "summary_text" | "reasoning_text", Some(text), ..) => {
                Self::Text(text)
            }
            _ => Self::Unknown(reader.since(start)),
        })
    }
}

impl<'a> ReasoningOptions<'a> {
    fn read(value: Raw<'a>) -> Result<Self, ParseError> {
        expect_object("reasoning", value)?;
        let mut options = Self::default();
        for (key, value) in value.entries() {
            match &*key.decode() {
                "effort" => options.effort = decoded("reasoning.effort", value)?,
                "summary" => options.summary = decoded("reasoning.summary", value)?,
                _ => {}
            }
        }
        Ok(options)
    }
}

impl<'a> TextOptions<'a> {
    fn read(value: Raw<'a>) -> Result<Self, ParseError> {
        expect_object("text", value)?;
        let mut options = Self::default();
        for (key, value) in value.entries() {
            match &*key.decode() {
                "format" => options.format = Format::read(value)?,
                "verbosity" => options.verbosity = string("text.verbosity", value)?,
                _ => {}
            }
        }
        Ok(options)
    }
}

impl<'a> Format<'a> {
    fn read(value: Raw<'a>) -> Result<Option<Self>, ParseError> {
        expect_object("text.format", value)?;
        let kind = value.get("type").and_then(Raw::as_str).map_or("", Str::escaped);
        match kind {
            "json_object" => Ok(Some(Self::JsonObject)),
            "json_schema" => {
                let schema = value.get("schema").filter(|schema| schema.kind() == Kind::Object);
                let member = |name| value.get(name).and_then(Raw::as_str).filter(|text| !text.is_empty());
                Ok(Some(Self::JsonSchema {
                    name: member("name").unwrap_or(const { Str::literal("output") }),
                    description: member("description"),
                    strict: value.get("strict").and_then(Raw::as_bool),
                    schema: schema.ok_or_else(|| field("text.format.schema", "must be an object"))?,
                }))
            }
            _ => Ok(None),
        }
    }
}

fn read_plain_input(value: Raw<'_>) -> Result<Vec<Item<'_>>, ParseError> {
    match (value.is_null(), value.as_str()) {
        (true, _) => Ok(Vec::new()),
        (_, Some(text)) => Ok(vec![Item::Message(Message { role: Role::User, content: Content::Text(text) })]),
        _ => Err(field("input", "must be a string or an array")),
    }
}

fn read_tools<'a>(path: &str, reader: &mut Reader<'a>) -> Result<Vec<Definition<'a>>, ParseError> {
    let mut definitions = Vec::new();
    match reader.kind()? {
        Kind::Null => {
            reader.value()?;
        }
        Kind::Array => {
            reader.enter_array()?;
            while reader.next_element()? {
                tools::read(reader, &mut definitions)?;
            }
        }
        _ => return Err(field(path, "must be an array")),
    }
    Ok(definitions)
}

fn read_items<'a>(reader: &mut Reader<'a>) -> Result<Vec<Item<'a>>, ParseError> {
    let mut items = Vec::new();
    reader.enter_array()?;
    while reader.next_element()? {
        if items.len() == ITEMS_MAX {
            return Err(ParseError::TooMany { what: "input items", limit: ITEMS_MAX });
        }
        items.push(read_item(reader, items.len())?);
    }
    Ok(items)
}

/// The members of an item that mean something in one type or another. Which ones do is known only at the end, since
/// `type` may come last.
#[derive(Default)]
struct Members<'a> {
    index: usize,
    kind: Option<Raw<'a>>,
    id: Option<Raw<'a>>,
    role: Option<Raw<'a>>,
    content: Option<Raw<'a>>,
    summary: Option<Raw<'a>>,
    encrypted_content: Option<Raw<'a>>,
    call_id: Option<Raw<'a>>,
    namespace: Option<Raw<'a>>,
    name: Option<Raw<'a>>,
    arguments: Option<Raw<'a>>,
    input: Option<Raw<'a>>,
    action: Option<Raw<'a>>,
    output: Option<Raw<'a>>,
    tools: Option<Raw<'a>>,
    author: Option<Raw<'a>>,
    recipient: Option<Raw<'a>>,
}

fn read_item<'a>(reader: &mut Reader<'a>, index: usize) -> Result<Item<'a>, ParseError> {
    if reader.kind()? != Kind::Object {
        return Err(ParseError::Field { path: format!("input[{index}]"), detail: "must be an object" });
    }
    let start = reader.position();
    let mut members = Members { index, ..Members::default() };
    reader.enter_object()?;
    while let Some(key) = reader.next_key()? {
        let value = reader.value()?;
        let slot = match &*key.decode() {
            "type" => &mut members.kind,
            "id" => &mut members.id,
            "role" => &mut members.role,
            "content" => &mut members.content,
            "summary" => &mut members.summary,
            "encrypted_content" => &mut members.encrypted_content,
            "call_id" => &mut members.call_id,
            "namespace" => &mut members.namespace,
            "name" => &mut members.name,
            "arguments" => &mut members.arguments,
            "input" => &mut members.input,
            "action" => &mut members.action,
            "output" => &mut members.output,
            "tools" => &mut members.tools,
            "author" => &mut members.author,
            "recipient" => &mut members.recipient,
            _ => continue,
        };
        *slot = Some(value);
    }
    members.into_item(reader.since(start))
}

impl<'a> Members<'a> {
    fn into_item(self, raw: Raw<'a>) -> Result<Item<'a>, ParseError> {
        let kind = match self.text("type", self.kind)? {
            Some(kind) => kind.decode(),
            // The API lets a plain message go without.
            None if self.role.is_some() => Cow::Borrowed("message"),
            None => return Err(self.error("type", "is missing")),
        };
        Ok(match &*kind {
            "message" => Item::Message(Message { role: self.role()?, content: self.content("content", self.content)? }),
            "agent_message" => Item::AgentMessage(AgentMessage {
                author: self.text("author", self.author)?.map(Str::decode).unwrap_or_default(),
                recipient: self.text("recipient", self.recipient)?.map(Str::decode).unwrap_or_default(),
                content: self.content("content", self.content)?,
            }),
            "reasoning" => Item::Reasoning(Reasoning {
                summary: self.content("summary", self.summary)?,
                content: self.content("content", self.content)?,
                encrypted_content: self.text("encrypted_content", self.encrypted_content)?,
            }),
            "function_call" => {
                let arguments = self.text("arguments", self.arguments)?.unwrap_or(Str::EMPTY);
                self.call(None, Payload::Arguments(arguments))?
            }
            "custom_tool_call" => {
                let input = self.text("input", self.input)?.unwrap_or(Str::EMPTY);
                self.call(None, Payload::Input(input))?
            }
            "tool_search_call" => {
                self.call(Some(tools::TOOL_SEARCH), Payload::Search(self.arguments.unwrap_or(Raw::NULL)))?
            }
            "local_shell_call" => {
                self.call(Some(tools::LOCAL_SHELL), Payload::Shell(self.action.unwrap_or(Raw::NULL)))?
            }
            "function_call_output" | "custom_tool_call_output" | "local_shell_call_output" => {
                Item::ToolOutput(ToolOutput {
                    call_id: self.call_id()?,
                    result: ToolResult::Content(self.content("output", self.output)?),
                })
            }
            "tool_search_output" => {
                Item::ToolOutput(ToolOutput { call_id: self.call_id()?, result: ToolResult::Tools(self.tools()?) })
            }
            "additional_tools" => Item::AdditionalTools(self.tools()?),
            "web_search_call" => Item::WebSearchCall(raw),
            "compaction" | "compaction_summary" => Item::Compaction(raw),
            "compaction_trigger" => Item::CompactionTrigger,
            "item_reference" => Item::ItemReference(raw),
            _ => Item::Unknown { kind, raw },
        })
    }

    fn call(&self, name: Option<&'static str>, payload: Payload<'a>) -> Result<Item<'a>, ParseError> {
        let name = match name {
            Some(name) => Cow::Borrowed(name),
            None => self.text("name", self.name)?.ok_or_else(|| self.error("name", "is missing"))?.decode(),
        };
        let namespace = self.text("namespace", self.namespace)?.filter(|namespace| !namespace.is_empty());
        Ok(Item::ToolCall(ToolCall { call_id: self.call_id()?, namespace: namespace.map(Str::decode), name, payload }))
    }

    /// Old local shell calls have only an `id`, which their output then refers to.
    fn call_id(&self) -> Result<Cow<'a, str>, ParseError> {
        let id = match self.text("call_id", self.call_id)? {
            Some(id) => Some(id),
            None => self.text("id", self.id)?,
        };
        id.map(Str::decode).ok_or_else(|| self.error("call_id", "is missing"))
    }

    fn role(&self) -> Result<Role, ParseError> {
        match self.text("role", self.role)?.map(Str::decode).as_deref() {
            Some("developer" | "system") => Ok(Role::Developer),
            Some("user") => Ok(Role::User),
            Some("assistant") => Ok(Role::Assistant),
            None => Err(self.error("role", "is missing")),
            Some(_) => Err(self.error("role", "must be `developer`, `system`, `user` or `assistant`")),
        }
    }

    fn tools(&self) -> Result<Vec<Definition<'a>>, ParseError> {
        read_tools(&self.path("tools"), &mut Reader::new(self.tools.unwrap_or(Raw::NULL).text()))
    }

    fn content(&self, name: &str, value: Option<Raw<'a>>) -> Result<Content<'a>, ParseError> {
        Content::read(&|| self.path(name), value)
    }

    fn text(&self, name: &str, value: Option<Raw<'a>>) -> Result<Option<Str<'a>>, ParseError> {
        match value.and_then(not_null) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| self.error(name, "must be a string")),
        }
    }

    fn path(&self, name: &str) -> String {
        format!("input[{}].{name}", self.index)
    }

    fn error(&self, name: &str, detail: &'static str) -> ParseError {
        ParseError::Field { path: self.path(name), detail }
    }
}

fn field(path: &str, detail: &'static str) -> ParseError {
    ParseError::Field { path: path.to_owned(), detail }
}

fn not_null(value: Raw<'_>) -> Option<Raw<'_>> {
    if value.is_null() { None } else { Some(value) }
}

fn string<'a>(path: &str, value: Raw<'a>) -> Result<Option<Str<'a>>, ParseError> {
    match not_null(value) {
        None => Ok(None),
        Some(value) => value.as_str().map(Some).ok_or_else(|| field(path, "must be a string")),
    }
}

fn decoded<'a>(path: &str, value: Raw<'a>) -> Result<Option<Cow<'a, str>>, ParseError> {
    Ok(string(path, value)?.map(Str::decode))
}

fn boolean(path: &str, value: Raw<'_>) -> Result<Option<bool>, ParseError> {
    match not_null(value) {
        None => Ok(None),
        Some(value) => value.as_bool().map(Some).ok_or_else(|| field(path, "must be true or false")),
    }
}

fn number<'a>(path: &str, value: Raw<'a>) -> Result<Option<Raw<'a>>, ParseError> {
    match value.kind() {
        Kind::Null => Ok(None),
        Kind::Number => Ok(Some(value)),
        _ => Err(field(path, "must be a number")),
    }
}

fn whole_number(path: &str, value: Raw<'_>) -> Result<Option<u64>, ParseError> {
    match not_null(value) {
        None => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or_else(|| field(path, "must be a whole number, not negative")),
    }
}

fn expect_object(path: &str, value: Raw<'_>) -> Result<(), ParseError> {
    match value.kind() {
        Kind::Object | Kind::Null => Ok(()),
        _ => Err(field(path, "must be an object")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn parse_error(body: &Value) -> String {
        Request::parse(body.to_string().as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn every_option_is_read() {
        let body = json!({
            "model": "m\u{e9}\"", "instructions": "be \"kind\"", "input": "hi", "tool_choice": {"type": "function"},
            "parallel_tool_calls": false, "reasoning": {"effort": "high", "summary": "auto", "context": "all_turns"},
            "text": {"verbosity": "low", "format": {"type": "json_schema", "name": "n", "strict": true, "schema": {"a": 1}}},
            "max_output_tokens": 7, "temperature": 0.5, "top_p": 1, "stream": true, "store": true,
            "previous_response_id": "resp_1", "prompt_cache_key": "key", "include": ["x", "reasoning.encrypted_content"],
            "service_tier": "flex", "client_metadata": {"a": "b"}, "unheard_of": [1]
        })
        .to_string();
        let request = Request::parse(body.as_bytes()).unwrap();
        assert_eq!(request.model, "m\u{e9}\"");
        assert_eq!(request.instructions.unwrap().decode(), "be \"kind\"");
        assert_eq!(request.tool_choice.unwrap().text(), r#"{"type":"function"}"#);
        assert_eq!(request.parallel_tool_calls, Some(false));
        assert_eq!(request.reasoning.effort.as_deref(), Some("high"));
        assert_eq!(request.reasoning.summary.as_deref(), Some("auto"));
        assert_eq!(request.text.verbosity.unwrap().escaped(), "low");
        let Some(Format::JsonSchema { name, strict, schema, .. }) = request.text.format else { panic!("{request:?}") };
        assert_eq!((name.escaped(), strict, schema.text()), ("n", Some(true), r#"{"a":1}"#));
        assert_eq!(request.max_output_tokens, Some(7));
        assert_eq!((request.temperature.unwrap().text(), request.top_p.unwrap().text()), ("0.5", "1"));
        assert!(request.stream && request.store && request.include_encrypted_reasoning);
        assert_eq!(request.previous_response_id.as_deref(), Some("resp_1"));
        assert_eq!(request.prompt_cache_key.as_deref(), Some("key"));
        assert_eq!(request.service_tier.as_deref(), Some("flex"));
        assert_eq!(request.body_bytes, body.len());
    }

    #[test]
    fn absent_and_null_are_the_same() {
        let names = [
            "instructions",
            "input",
            "tools",
            "tool_choice",
            "parallel_tool_calls",
            "reasoning",
            "text",
            "max_output_tokens",
            "temperature",
            "top_p",
            "stream",
            "store",
            "previous_response_id",
            "prompt_cache_key",
            "include",
            "service_tier",
        ];
        let mut body = json!({"model": "m"});
        for name in names {
            body[name] = Value::Null;
        }
        let (with_null, without) = (body.to_string(), r#"{"model":"m"}"#);
        let with_null = Request::parse(with_null.as_bytes()).unwrap();
        let without = Request::parse(without.as_bytes()).unwrap();
        let without = Request { body_bytes: with_null.body_bytes, ..without };
        assert_eq!(format!("{with_null:?}"), format!("{without:?}"));
    }

    #[test]
    fn every_type_of_item_is_known() {
        let body = json!({"model": "m", "input": [
            {"type": "message", "role": "system", "content": "x"},
            {"role": "assistant", "content": [{"type": "output_text", "text": "y"}]},
            {"type": "agent_message", "author": "/a", "recipient": "/b", "content": []},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}], "content": null, "encrypted_content": "e"},
            {"type": "function_call", "call_id": "1", "name": "n", "namespace": "s", "arguments": "{}"},
            {"type": "custom_tool_call", "call_id": "2", "name": "n", "input": "i"},
            {"type": "tool_search_call", "call_id": "3", "arguments": {"q": 1}},
            {"type": "local_shell_call", "id": "4", "action": {"command": ["ls"]}},
            {"type": "function_call_output", "call_id": "1", "output": "o"},
            {"type": "custom_tool_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "o"}]},
            {"type": "tool_search_output", "call_id": "3", "tools": [{"type": "function", "name": "t"}]},
            {"type": "local_shell_call_output", "id": "4", "output": "o"},
            {"type": "additional_tools", "tools": [{"type": "function", "name": "u"}]},
            {"type": "web_search_call", "id": "ws_1"},
            {"type": "compaction", "encrypted_content": "c"},
            {"type": "compaction_trigger"},
            {"type": "item_reference", "id": "x"},
            {"type": "image_generation_call", "id": "ig"}
        ]})
        .to_string();
        let request = Request::parse(body.as_bytes()).unwrap();
        let kinds: Vec<String> = request
            .input
            .iter()
            .map(|item| {
                let kind = format!("{item:?}");
                kind.split(['(', ' ', '{']).next().unwrap().to_owned()
            })
            .collect();
        assert_eq!(
            kinds,
            [
                "Message",
                "Message",
                "AgentMessage",
                "Reasoning",
                "ToolCall",
                "ToolCall",
                "ToolCall",
                "ToolCall",
                "ToolOutput",
                "ToolOutput",
                "ToolOutput",
                "ToolOutput",
                "AdditionalTools",
                "WebSearchCall",
                "Compaction",
                "CompactionTrigger",
                "ItemReference",
                "Unknown"
            ]
        );
        assert_eq!(request.call_ids().collect::<Vec<_>>(), ["1", "2", "3", "4"]);
        let Item::ToolCall(call) = &request.input[4] else { panic!("{:?}", request.input[4]) };
        assert_eq!((call.namespace.as_deref(), &*call.name), (Some("s"), "n"));
        let Item::Unknown { kind, raw } = &request.input[17] else { panic!("{:?}", request.input[17]) };
        assert_eq!((&**kind, raw.text()), ("image_generation_call", r#"{"type":"image_generation_call","id":"ig"}"#));
        let tools: Vec<&str> = tools::offered(&request).iter().map(|tool| &*tool.name).collect();
        assert_eq!(tools, ["t", "u"]);
    }

    #[test]
    fn the_type_may_come_last_and_members_twice() {
        let body = br#"{"model":"a","input":[{"call_id":"x","call_id":"y","name":"n","type":"custom_tool_call",
            "\u0074ype":"function_call"}],"model":"b"}"#;
        let request = Request::parse(body).unwrap();
        assert_eq!(request.model, "b");
        assert_eq!(request.call_ids().collect::<Vec<_>>(), ["y"]);
        assert!(matches!(&request.input[0], Item::ToolCall(ToolCall { payload: Payload::Arguments(_), .. })));
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let item = |item: Value| json!({"model": "m", "input": [{"role": "user"}, item]});
        for (body, expected) in [
            (json!([]), "`request body` must be a JSON object"),
            (json!({}), "`model` is missing"),
            (json!({"model": ""}), "`model` is missing"),
            (json!({"model": 7}), "`model` must be a string"),
            (json!({"model": "m", "input": 7}), "`input` must be a string or an array"),
            (json!({"model": "m", "input": ["x"]}), "`input[0]` must be an object"),
            (json!({"model": "m", "tools": {}}), "`tools` must be an array"),
            (json!({"model": "m", "stream": "yes"}), "`stream` must be true or false"),
            (json!({"model": "m", "reasoning": "high"}), "`reasoning` must be an object"),
            (json!({"model": "m", "reasoning": {"effort": 1}}), "`reasoning.effort` must be a string"),
            (json!({"model": "m", "text": []}), "`text` must be an object"),
            (json!({"model": "m", "text": {"format": "x"}}), "`text.format` must be an object"),
            (
                json!({"model": "m", "text": {"format": {"type": "json_schema", "schema": true}}}),
                "`text.format.schema` must be an object",
            ),
            (
                json!({"model": "m", "max_output_tokens": -1}),
                "`max_output_tokens` must be a whole number, not negative",
            ),
            (json!({"model": "m", "temperature": "0"}), "`temperature` must be a number"),
            (item(json!({})), "`input[1].type` is missing"),
            (item(json!({"type": 1})), "`input[1].type` must be a string"),
            (item(json!({"type": "message"})), "`input[1].role` is missing"),
            (
                item(json!({"type": "message", "role": "tool"})),
                "`input[1].role` must be `developer`, `system`, `user` or `assistant`",
            ),
            (item(json!({"role": "user", "content": 1})), "`input[1].content` must be a string or an array"),
            (item(json!({"type": "function_call", "call_id": "c"})), "`input[1].name` is missing"),
            (item(json!({"type": "function_call", "name": "n"})), "`input[1].call_id` is missing"),
            (
                item(json!({"type": "function_call", "name": "n", "call_id": "c", "arguments": {}})),
                "`input[1].arguments` must be a string",
            ),
            (item(json!({"type": "function_call_output"})), "`input[1].call_id` is missing"),
            (
                item(json!({"type": "function_call_output", "call_id": "c", "output": {}})),
                "`input[1].output` must be a string or an array",
            ),
            (item(json!({"type": "additional_tools", "tools": 1})), "`input[1].tools` must be an array"),
        ] {
            assert_eq!(parse_error(&body), expected, "{body}");
        }
        for (body, expected) in [
            (&b""[..], "the request body is not valid JSON: expected a value at byte 0"),
            (b"{\"model\":\"m\",}", "the request body is not valid JSON: expected a member name in quotes at byte 13"),
            (b"{\"model\":\"m\"} x", "the request body is not valid JSON: unexpected text after the value at byte 14"),
            (b"{\"model\":\"\xff\"}", "the request body is not valid JSON: invalid UTF-8 at byte 10"),
        ] {
            assert_eq!(Request::parse(body).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn items_and_tools_are_bounded() {
        let items = |count: usize| {
            let items = vec![r#"{"role":"user"}"#; count].join(",");
            Request::parse(format!(r#"{{"model":"m","input":[{items}]}}"#).as_bytes())
                .map(|request| request.input.len())
        };
        assert_eq!(items(ITEMS_MAX), Ok(ITEMS_MAX));
        assert_eq!(items(ITEMS_MAX + 1).unwrap_err().to_string(), "the request has more than 100000 input items");

        let tools = |count: usize| {
            let inner = vec![r#"{"type":"function","name":"f"}"#; count - 1].join(",");
            let body = format!(
                r#"{{"model":"m","tools":[{{"type":"custom","name":"c"}}],
                "input":[{{"type":"additional_tools","tools":[{{"type":"namespace","name":"n","tools":[{inner}]}}]}}]}}"#
            );
            Request::parse(body.as_bytes()).map(|_| ())
        };
        assert_eq!(tools(TOOLS_MAX), Ok(()));
        assert_eq!(tools(TOOLS_MAX + 1).unwrap_err().to_string(), "the request has more than 2000 tools");
    }

    /// What a default name stands for needs no escapes.
    #[test]
    fn a_schema_without_a_name_gets_one() {
        let body = json!({"model": "m", "text": {"format": {"type": "json_schema", "schema": {}}}}).to_string();
        let request = Request::parse(body.as_bytes()).unwrap();
        assert!(matches!(request.text.format, Some(Format::JsonSchema { name, .. }) if name.decode() == "output"));
    }

    proptest! {
        #[test]
        fn damaged_requests_never_panic(at in any::<prop::sample::Index>(), byte: u8, cut: bool) {
            let mut body = include_bytes!("../../../../tests/fixtures/codex-requests/28_tool_search_output.json").to_vec();
            // The fixture wraps the body; what is inside is wanted.
            let start = body.windows(8).position(|window| window == b"\"body\": ").unwrap() + 8;
            body.drain(..start);
            let end = body.iter().rposition(|byte| *byte == b'}').unwrap();
            body.truncate(end);
            prop_assert!(Request::parse(&body).is_ok());
            let at = at.index(body.len());
            if cut { body.truncate(at) } else { body[at] = byte }
            let _either = Request::parse(&body);
        }
    }
}
