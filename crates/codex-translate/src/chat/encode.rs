//! A Responses request as a Chat Completions body.
//!
//! One pass over the turns of the [history](crate::history), straight into the body; text is spliced in its escaped
//! form. Everything that a provider may want otherwise is read from the [`Profile`]. What Codex says about itself and
//! its machine (`client_metadata`, `prompt_cache_key`, `include`, `store`) has no way into the body.
//!
//! Every body obeys what strict providers check: at most one system message, and it is the first; each call is
//! answered once, directly behind it, before anything else; call ids are unique; names are function names; arguments
//! are a JSON object; no message is empty.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::{Effort, EmptyContent, MaxTokens, Profile, Replay};
use crate::anthropic::Effort as Level;
use crate::effort;
use crate::history::call_ids::{CallIds, Form};
use crate::history::stand_in::{
    AUDIO_NOTE, DEVELOPER_LABEL, EMPTY_RESULT, IMAGE_NOTE, INVALID_ARGUMENTS, MISSING_RESULT, USER_FILLER, file_note,
};
use crate::history::{Assistant, Edits, History, Turn, stand_in};
use crate::json::{self, Kind, Str};
use crate::responses::request::{Content, Format, Message, Part, Payload, Request, ToolOutput, ToolResult};
use crate::sealed::{self, Opened, Origin};
use crate::tools::offer::{self, Choice, alias};
use crate::tools::{self, CUSTOM_ARGUMENT, Definition, ToolTable, schema};
use crate::{Call, EncodeError, Framing, Target};

/// Room for what is written around the content of a request of no great size, in bytes.
const BODY_OVERHEAD_BYTES: usize = 4 * 1024;

/// What stands between two texts that become one, escaped.
const PARAGRAPH: &str = r"\n\n";
/// What stands between two parts of a tool's output, escaped.
const LINE: &str = r"\n";

/// The result of a call that returned only images.
const IMAGE_RESULT: &str = "[the output is an image; it follows in the next user message]";
/// Keeps `user` from following `tool` where that is refused.
const ASSISTANT_FILLER: &str = "OK.";
/// Google's documented stand-in for a thought signature that is lost.
const THOUGHT_SIGNATURE_PLACEHOLDER: &str = r#"{"google":{"thought_signature":"skip_thought_signature_validator"}}"#;

/// Writes `request` for `target`.
///
/// # Errors
/// [`EncodeError::Invalid`] if nothing is left to be said: no instructions, no message, no call.
pub fn encode(request: &Request<'_>, target: &Target) -> Result<Call, EncodeError> {
    let definitions = tools::offered(request);
    let table = ToolTable::from_definitions(&definitions);
    Ok(Call {
        path: "/chat/completions".to_owned(),
        query: None,
        headers: vec![("content-type", "application/json".to_owned()), ("accept", "text/event-stream".to_owned())],
        body: body(request, target, &definitions, &table)?,
        framing: Framing::Sse,
    })
}

fn body(
    request: &Request<'_>,
    target: &Target,
    definitions: &[&Definition<'_>],
    table: &ToolTable,
) -> Result<Vec<u8>, EncodeError> {
    let profile = &target.chat;
    let mut out = Vec::with_capacity(request.body_bytes + request.body_bytes / 8 + BODY_OVERHEAD_BYTES);
    out.extend_from_slice(br#"{"model":"#);
    json::write_string(&mut out, &target.model);
    out.extend_from_slice(br#","messages":["#);

    let edits = Edits::new(request, target, definitions, profile.replay != Replay::Never);
    let items = edits.apply(&request.input);
    let history = History::new(&items);
    let mut messages = Messages {
        out,
        profile,
        table,
        images: target.images && !profile.string_content,
        target,
        origin: target.origin(),
        last: None,
        user: Vec::new(),
        call_ids: CallIds::new(if profile.short_call_ids { Form::Short } else { Form::Portable }),
        scratch: String::new(),
    };
    messages.system(request, &history);
    for turn in history.turns() {
        match turn {
            Turn::User(message) => messages.user(message.content),
            Turn::Developer(message) => messages.developer(message),
            Turn::Agent(message) => messages.user(message.content),
            Turn::Assistant(turn) => messages.assistant(turn),
        }
    }
    messages.flush_user();
    if messages.last.is_none() {
        let detail = "there is no message in it that the provider could answer".to_owned();
        return Err(EncodeError::Invalid { what: "input".to_owned(), detail });
    }

    let mut out = messages.out;
    out.push(b']');
    write_tools(&mut out, request, profile, definitions, table);
    write_options(&mut out, request, profile);
    out.extend_from_slice(br#","stream":true}"#);
    Ok(out)
}

/// Who wrote a message of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    System,
    User,
    Assistant,
    Tool,
}

/// A piece of a user message.
enum Piece<'a> {
    Text(Str<'a>),
    Note(Cow<'static, str>),
    Image { url: Str<'a>, detail: Option<Str<'a>> },
}

/// The `messages` array while it is written.
struct Messages<'r, 'a> {
    out: Vec<u8>,
    profile: &'r Profile,
    table: &'r ToolTable,
    images: bool,
    target: &'r Target,
    origin: Origin,
    last: Option<Role>,
    /// The user message that is being collected. Under strict alternation it grows until someone else speaks.
    user: Vec<Piece<'a>>,
    call_ids: CallIds<'r>,
    scratch: String,
}

impl<'r, 'a> Messages<'r, 'a> {
    /// Writes the beginning of a message, up to its content.
    fn start(&mut self, role: Role) {
        if self.last.is_some() {
            self.out.push(b',');
        }
        self.last = Some(role);
        let name = match role {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        };
        self.out.extend_from_slice(br#"{"role":""#);
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(br#"","content":"#);
    }

    fn filler(&mut self, role: Role, text: &str) {
        self.start(role);
        json::write_string(&mut self.out, text);
        self.out.push(b'}');
    }

    /// The one system message: instructions, leading developer messages, and the form of the answer where the provider
    /// has no parameter for it.
    fn system(&mut self, request: &Request<'a>, history: &History<'_, 'a>) {
        let instructions = request.instructions.filter(|text| !text.is_empty());
        let leading = history.leading().flat_map(|message| message.content.texts());
        let mut texts = instructions.into_iter().chain(leading).peekable();
        let format = request.text.format.filter(|_| !self.profile.json_schema);
        if texts.peek().is_none() && format.is_none() {
            return;
        }
        self.start(Role::System);
        self.out.push(b'"');
        let mut separator = "";
        for text in texts {
            separator = splice(&mut self.out, separator, text, PARAGRAPH);
        }
        if let Some(format) = format {
            self.out.extend_from_slice(separator.as_bytes());
            json::write_escaped(&mut self.out, &stand_in::format_instruction(format));
        }
        self.out.extend_from_slice(br#""}"#);
    }

    fn user(&mut self, content: Content<'a>) {
        for part in content.parts() {
            let piece = match part {
                Part::Text(text) if text.is_empty() => continue,
                Part::Text(text) => Piece::Text(text),
                Part::Image { url: Some(url), detail } if self.images => Piece::Image { url, detail },
                Part::Image { .. } => Piece::Note(IMAGE_NOTE.into()),
                Part::File { name } => Piece::Note(file_note(name)),
                Part::Audio => Piece::Note(AUDIO_NOTE.into()),
                // A part of a type that is new to this program; no words could stand for it.
                Part::Unknown(_) => continue,
            };
            self.user.push(piece);
        }
        self.end_user();
    }

    fn developer(&mut self, message: &Message<'a>) {
        let mut texts = message.content.texts().peekable();
        if texts.peek().is_some() {
            self.user.push(Piece::Note(DEVELOPER_LABEL.into()));
            self.user.extend(texts.map(Piece::Text));
        }
        self.end_user();
    }

    /// The user has said all; under strict alternation more may be added by whoever is shown as `user` next.
    fn end_user(&mut self) {
        if !self.profile.strict_alternation {
            self.flush_user();
        }
    }

    fn flush_user(&mut self) {
        if self.user.is_empty() {
            return;
        }
        if self.profile.strict_alternation && self.last == Some(Role::Tool) {
            self.filler(Role::Assistant, ASSISTANT_FILLER);
        }
        self.start(Role::User);
        let pieces = std::mem::take(&mut self.user);
        if pieces.iter().any(|piece| matches!(piece, Piece::Image { .. })) {
            for (index, piece) in pieces.iter().enumerate() {
                self.out.push(if index == 0 { b'[' } else { b',' });
                self.part(piece);
            }
            self.out.extend_from_slice(b"]}");
        } else {
            self.out.push(b'"');
            let mut separator = "";
            for piece in &pieces {
                self.out.extend_from_slice(separator.as_bytes());
                separator = self.text(piece);
            }
            self.out.extend_from_slice(br#""}"#);
        }
        self.user = pieces;
        self.user.clear();
    }

    fn part(&mut self, piece: &Piece<'_>) {
        let Piece::Image { url, detail } = piece else {
            self.out.extend_from_slice(br#"{"type":"text","text":""#);
            let _separator = self.text(piece);
            self.out.extend_from_slice(br#""}"#);
            return;
        };
        self.out.extend_from_slice(br#"{"type":"image_url","image_url":{"url":""#);
        self.out.extend_from_slice(url.escaped().as_bytes());
        self.out.push(b'"');
        let known = detail.map(Str::escaped).filter(|detail| matches!(*detail, "auto" | "low" | "high"));
        if let Some(detail) = known.filter(|_| self.profile.allows("detail")) {
            self.out.extend_from_slice(br#","detail":""#);
            self.out.extend_from_slice(detail.as_bytes());
            self.out.push(b'"');
        }
        self.out.extend_from_slice(b"}}");
    }

    /// Writes the inside of a string; returns what has to stand between this text and another.
    fn text(&mut self, piece: &Piece<'_>) -> &'static str {
        match piece {
            Piece::Text(text) => splice(&mut self.out, "", *text, PARAGRAPH),
            Piece::Note(note) => {
                json::write_escaped(&mut self.out, note);
                PARAGRAPH
            }
            Piece::Image { .. } => "",
        }
    }

    fn assistant(&mut self, turn: Assistant<'r, 'a>) {
        let state = State::open(turn, self.target, &self.origin);
        let mut texts = turn.texts().peekable();
        let mut calls = turn.calls().peekable();
        if texts.peek().is_none() && calls.peek().is_none() {
            // Reasoning alone is no message.
            return;
        }
        let has_calls = calls.peek().is_some();

        self.flush_user();
        if self.profile.strict_alternation && !matches!(self.last, Some(Role::User | Role::Tool)) {
            self.filler(Role::User, USER_FILLER);
        }
        self.start(Role::Assistant);
        let think =
            Some(&state.reasoning).filter(|text| self.profile.replay == Replay::InlineThink && !text.is_empty());
        if think.is_none() && texts.peek().is_none() {
            self.out.extend_from_slice(match self.profile.empty_content {
                EmptyContent::Null => b"null",
                EmptyContent::EmptyString => br#""""#,
            });
        } else {
            self.out.push(b'"');
            let mut separator = "";
            if let Some(think) = think {
                self.out.extend_from_slice(b"<think>");
                json::write_escaped(&mut self.out, think);
                self.out.extend_from_slice(b"</think>");
                separator = PARAGRAPH;
            }
            for text in texts {
                separator = splice(&mut self.out, separator, text, PARAGRAPH);
            }
            self.out.push(b'"');
        }
        self.reasoning(&state, has_calls);

        let mut ids: Vec<Cow<'r, str>> = Vec::new();
        if has_calls {
            self.out.extend_from_slice(br#","tool_calls":["#);
            for (index, (call, _)) in calls.enumerate() {
                if index > 0 {
                    self.out.push(b',');
                }
                let id = self.call_ids.assign(&call.call_id, state.upstream_id(&call.call_id));
                self.out.extend_from_slice(br#"{"id":"#);
                json::write_string(&mut self.out, &id);
                ids.push(id);
                self.out.extend_from_slice(br#","type":"function","function":{"name":""#);
                let alias = alias(self.table, call.namespace.as_deref(), &call.name);
                self.out.extend_from_slice(alias.as_bytes());
                self.out.extend_from_slice(br#"","arguments":""#);
                self.payload(call.payload);
                self.out.extend_from_slice(br#""}"#);
                let placeholder =
                    || (index == 0 && self.profile.thought_signatures).then_some(THOUGHT_SIGNATURE_PLACEHOLDER);
                if let Some(extra) = state.extra_content(&call.call_id).or_else(placeholder) {
                    self.out.extend_from_slice(br#","extra_content":"#);
                    self.out.extend_from_slice(extra.as_bytes());
                }
                self.out.push(b'}');
            }
            self.out.push(b']');
        }
        self.out.push(b'}');
        self.results(turn, &ids);
    }

    fn reasoning(&mut self, state: &State, has_calls: bool) {
        match self.profile.replay {
            Replay::ReasoningContent if has_calls || !state.reasoning.is_empty() => {
                // DeepSeek and Kimi refuse a call without; a space is the stand-in they accept.
                let text = if state.reasoning.is_empty() { " " } else { &state.reasoning };
                self.out.extend_from_slice(br#","reasoning_content":"#);
                json::write_string(&mut self.out, text);
            }
            Replay::ReasoningDetails if !state.details.is_empty() => {
                self.out.extend_from_slice(br#","reasoning_details":["#);
                self.out.extend_from_slice(state.details.as_bytes());
                self.out.push(b']');
            }
            Replay::ReasoningContent | Replay::ReasoningDetails | Replay::InlineThink | Replay::Never => {}
        }
    }

    /// What a call was given, as the inside of a string that holds a JSON object.
    fn payload(&mut self, payload: Payload<'_>) {
        match payload {
            Payload::Arguments(arguments) => {
                self.scratch.clear();
                arguments.decode_into(&mut self.scratch);
                if json::parse(&self.scratch).is_ok_and(|value| value.kind() == Kind::Object) {
                    self.out.extend_from_slice(arguments.escaped().as_bytes());
                } else if self.scratch.trim().is_empty() {
                    self.out.extend_from_slice(b"{}");
                } else {
                    self.one_string(INVALID_ARGUMENTS, arguments);
                }
            }
            Payload::Input(input) => self.one_string(CUSTOM_ARGUMENT, input),
            Payload::Search(arguments) if arguments.kind() == Kind::Object => {
                json::write_escaped(&mut self.out, arguments.text());
            }
            Payload::Search(_) => self.out.extend_from_slice(b"{}"),
            Payload::Shell(action) => {
                self.out.push(b'{');
                let members = ["command", "working_directory", "timeout_ms"];
                let given =
                    members.iter().filter_map(|name| Some((name, action.get(name).filter(|value| !value.is_null())?)));
                for (index, (name, value)) in given.enumerate() {
                    if index > 0 {
                        self.out.push(b',');
                    }
                    self.out.extend_from_slice(br#"\""#);
                    self.out.extend_from_slice(name.as_bytes());
                    self.out.extend_from_slice(br#"\":"#);
                    json::write_escaped(&mut self.out, value.text());
                }
                self.out.push(b'}');
            }
        }
    }

    /// A JSON object with one member, a string, as the inside of a string. The value is escaped already, so escaping
    /// its escaped form gives what it must be here.
    fn one_string(&mut self, name: &str, value: Str<'_>) {
        self.out.extend_from_slice(br#"{\""#);
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(br#"\":\""#);
        json::write_escaped(&mut self.out, value.escaped());
        self.out.extend_from_slice(br#"\"}"#);
    }

    /// One tool message for each call, then the images of all of them, which no tool message can hold.
    fn results(&mut self, turn: Assistant<'r, 'a>, ids: &[Cow<'r, str>]) {
        for ((call, output), id) in turn.calls().zip(ids) {
            self.start(Role::Tool);
            self.out.push(b'"');
            match output {
                None => json::write_escaped(&mut self.out, MISSING_RESULT),
                Some(ToolOutput { result: ToolResult::Tools(found), .. }) => {
                    json::write_escaped(&mut self.out, &offer::found(found, self.table));
                }
                Some(ToolOutput { result: ToolResult::Content(Content::Text(text)), .. }) if !text.is_empty() => {
                    self.out.extend_from_slice(text.escaped().as_bytes());
                }
                Some(ToolOutput { result: ToolResult::Content(content), .. }) => {
                    let label = || {
                        let name = alias(self.table, call.namespace.as_deref(), &call.name);
                        format!("[image in the output of `{name}`, call {id}]")
                    };
                    result_content(&mut self.out, &mut self.user, *content, self.images, label);
                }
            }
            self.out.extend_from_slice(br#"","tool_call_id":"#);
            json::write_string(&mut self.out, id);
            self.out.push(b'}');
        }
        self.end_user();
    }
}

/// Writes the parts of a result as the inside of a string; images go to `user`, behind one label.
fn result_content<'a>(
    out: &mut Vec<u8>,
    user: &mut Vec<Piece<'a>>,
    content: Content<'a>,
    images: bool,
    label: impl FnOnce() -> String,
) {
    let start = out.len();
    let mut separator = "";
    let mut label = Some(label);
    for part in content.parts() {
        let note = match part {
            Part::Text(text) if !text.is_empty() => {
                separator = splice(out, separator, text, LINE);
                continue;
            }
            Part::Image { url: Some(url), detail } if images => {
                if let Some(label) = label.take() {
                    user.push(Piece::Note(label().into()));
                }
                user.push(Piece::Image { url, detail });
                continue;
            }
            Part::Image { .. } => IMAGE_NOTE.into(),
            Part::File { name } => file_note(name),
            Part::Audio => AUDIO_NOTE.into(),
            Part::Text(_) | Part::Unknown(_) => continue,
        };
        out.extend_from_slice(separator.as_bytes());
        json::write_escaped(out, &note);
        separator = LINE;
    }
    if out.len() == start {
        json::write_escaped(out, if label.is_none() { IMAGE_RESULT } else { EMPTY_RESULT });
    }
}

/// Writes `separator` and `text`; returns what has to stand before the next text: `between`, or nothing where this one
/// ends its line by itself, as the parts of a text that was cut in pieces do.
fn splice(out: &mut Vec<u8>, separator: &str, text: Str<'_>, between: &'static str) -> &'static str {
    out.extend_from_slice(separator.as_bytes());
    out.extend_from_slice(text.escaped().as_bytes());
    if text.ends_line() { "" } else { between }
}

/// What a turn's reasoning items carry for this very provider and model.
#[derive(Default)]
struct State {
    reasoning: String,
    /// The elements of all `reasoning_details`, without brackets.
    details: String,
    /// Call id and extra content.
    extras: Vec<(String, String)>,
    /// Call id and upstream id.
    upstream_ids: Vec<(String, String)>,
}

impl State {
    fn open(turn: Assistant<'_, '_>, target: &Target, origin: &Origin) -> Self {
        let mut state = Self::default();
        for sealed in turn.reasoning().filter_map(|reasoning| reasoning.encrypted_content) {
            // Another product's state, and that of another model, is of no use to this one.
            let Opened::Ours(parts) = target.open(origin, &sealed.decode()) else {
                continue;
            };
            for part in parts {
                match part {
                    // A provider that changed its ways since still gets its model's own words, in the form it wants now.
                    sealed::Part::ReasoningContent(text) | sealed::Part::InlineThink(text) => {
                        if target.chat.replay != Replay::Never {
                            state.reasoning.push_str(&text);
                        }
                    }
                    sealed::Part::ReasoningDetails(details) => {
                        let Ok(details) = json::parse(&details) else { continue };
                        for detail in details.elements() {
                            if !state.details.is_empty() {
                                state.details.push(',');
                            }
                            state.details.push_str(detail.text());
                        }
                    }
                    sealed::Part::ToolExtra { call_id, extra_content } => {
                        if json::parse(&extra_content).is_ok_and(|extra| extra.kind() == Kind::Object) {
                            state.extras.push((call_id, extra_content));
                        }
                    }
                    sealed::Part::UpstreamId { call_id, upstream_id } => {
                        state.upstream_ids.push((call_id, upstream_id));
                    }
                    // Signed, and of use only where they can be given back as they are; the other is no reasoning.
                    sealed::Part::ThinkingBlocks(_) | sealed::Part::Summary(_) => {}
                }
            }
        }
        state
    }

    fn extra_content(&self, call_id: &str) -> Option<&str> {
        self.extras.iter().find(|(id, _)| id == call_id).map(|(_, extra)| extra.as_str())
    }

    fn upstream_id(&self, call_id: &str) -> Option<&str> {
        self.upstream_ids.iter().find(|(id, _)| id == call_id).map(|(_, id)| id.as_str())
    }
}

fn write_tools(
    out: &mut Vec<u8>,
    request: &Request<'_>,
    profile: &Profile,
    definitions: &[&Definition<'_>],
    table: &ToolTable,
) {
    let choice = offer::choice(request.tool_choice, table);
    // Where only `auto` is understood, not offering any is the way to forbid them.
    if definitions.is_empty() || (profile.tool_choice_auto_only && choice == Choice::None) {
        return;
    }
    let keywords = if profile.plain_schemas { schema::Keywords::Plain } else { schema::Keywords::Standard };
    out.extend_from_slice(br#","tools":"#);
    let is_kept = offer::fitting(definitions, request, profile.tools_max);
    let kept = definitions.iter().zip(table.tools()).zip(is_kept).filter_map(|(tool, is_kept)| is_kept.then_some(tool));
    for (index, (definition, tool)) in kept.enumerate() {
        out.push(if index == 0 { b'[' } else { b',' });
        out.extend_from_slice(br#"{"type":"function","function":{"name":""#);
        out.extend_from_slice(tool.alias.as_bytes());
        out.push(b'"');
        offer::write_description(out, definition);
        out.extend_from_slice(br#","parameters":"#);
        offer::write_parameters(out, definition, keywords);
        if profile.strict_tools && definition.strict {
            out.extend_from_slice(br#","strict":true"#);
        }
        out.extend_from_slice(b"}}");
    }
    out.push(b']');

    if profile.allows("tool_choice") {
        out.extend_from_slice(br#","tool_choice":"#);
        match choice {
            _ if profile.tool_choice_auto_only => out.extend_from_slice(br#""auto""#),
            Choice::Auto => out.extend_from_slice(br#""auto""#),
            Choice::None => out.extend_from_slice(br#""none""#),
            Choice::Required => out.extend_from_slice(br#""required""#),
            Choice::Tool(alias) => {
                out.extend_from_slice(br#"{"type":"function","function":{"name":""#);
                out.extend_from_slice(alias.as_bytes());
                out.extend_from_slice(br#""}}"#);
            }
        }
    }
    if let Some(parallel) = request.parallel_tool_calls
        && profile.parallel_tool_calls
        && profile.allows("parallel_tool_calls")
    {
        write!(Text(out), r#","parallel_tool_calls":{parallel}"#).expect("writing to a Vec cannot fail");
    }
}

fn write_options(out: &mut Vec<u8>, request: &Request<'_>, profile: &Profile) {
    let limit = match profile.max_tokens {
        MaxTokens::Classic => "max_tokens",
        MaxTokens::Completion => "max_completion_tokens",
    };
    if let Some(tokens) = request.max_output_tokens {
        let tokens = profile.output_tokens_max.map_or(tokens, |max| tokens.min(max));
        member(out, profile, limit, &tokens.to_string());
    }
    if let Some(temperature) = request.temperature {
        member(out, profile, "temperature", temperature.text());
    }
    if let Some(top_p) = request.top_p {
        member(out, profile, "top_p", top_p.text());
    }
    if let Some(format) = request.text.format.filter(|_| profile.json_schema) {
        write_format(out, format);
    }
    write_effort(out, profile, request.reasoning.effort.as_deref());
    if profile.stream_options {
        member(out, profile, "stream_options", r#"{"include_usage":true}"#);
    }
}

/// Writes `name` with a value that is JSON already, unless the provider has refused it.
fn member(out: &mut Vec<u8>, profile: &Profile, name: &str, value: &str) {
    if profile.allows(name) {
        write!(Text(out), r#","{name}":{value}"#).expect("writing to a Vec cannot fail");
    }
}

fn write_format(out: &mut Vec<u8>, format: Format<'_>) {
    match format {
        Format::JsonObject => out.extend_from_slice(br#","response_format":{"type":"json_object"}"#),
        Format::JsonSchema { name, description, strict, schema } => {
            out.extend_from_slice(br#","response_format":{"type":"json_schema","json_schema":{"name":""#);
            out.extend_from_slice(name.escaped().as_bytes());
            out.push(b'"');
            if let Some(description) = description {
                out.extend_from_slice(br#","description":""#);
                out.extend_from_slice(description.escaped().as_bytes());
                out.push(b'"');
            }
            if let Some(strict) = strict {
                out.extend_from_slice(if strict { br#","strict":true"# } else { br#","strict":false"# });
            }
            out.extend_from_slice(br#","schema":"#);
            schema::write(out, schema, schema::Keywords::Standard);
            out.extend_from_slice(b"}}");
        }
    }
}

/// Codex passes on whatever word it is configured with; only the known ones mean something elsewhere.
fn write_effort(out: &mut Vec<u8>, profile: &Profile, effort: Option<&str>) {
    if profile.effort == Effort::ReasoningSplit {
        // Not a matter of effort: it moves the thoughts out of the content.
        member(out, profile, "reasoning_split", "true");
        return;
    }
    let wanted = effort.unwrap_or_default();
    let (thinks, level) = match effort {
        Some("none" | "minimal") => (false, "low"),
        Some("low") => (true, "low"),
        Some("medium") => (true, "medium"),
        Some("high" | "xhigh" | "max" | "ultra") => (true, "high"),
        _ => return,
    };
    // A model with levels of its own is asked for the nearest of them.
    let own = effort.and_then(Level::parse).and_then(|effort| Level::nearest(Some(effort), &profile.levels));
    let own = own.or_else(|| Level::nearest(None, &profile.levels));
    let mut level = own.map_or(level, Level::as_str);
    if !profile.effort_words.is_empty() {
        // What the provider itself has listed counts for more, also where it knows a word for not thinking at all.
        let taken = effort::nearest(wanted, &profile.effort_words);
        let Some(taken) = taken else { return };
        level = taken;
    }
    match profile.effort {
        Effort::None | Effort::ReasoningSplit => {}
        Effort::ReasoningEffort => member(out, profile, "reasoning_effort", &format!(r#""{level}""#)),
        Effort::ReasoningObject if thinks => member(out, profile, "reasoning", &format!(r#"{{"effort":"{level}"}}"#)),
        Effort::ReasoningObject => member(out, profile, "reasoning", r#"{"enabled":false}"#),
        Effort::ThinkingAndEffort if thinks => {
            member(out, profile, "thinking", r#"{"type":"enabled"}"#);
            member(out, profile, "reasoning_effort", &format!(r#""{level}""#));
        }
        Effort::Thinking if thinks => member(out, profile, "thinking", r#"{"type":"enabled"}"#),
        Effort::Thinking | Effort::ThinkingAndEffort => member(out, profile, "thinking", r#"{"type":"disabled"}"#),
        Effort::EnableThinking => member(out, profile, "enable_thinking", if thinks { "true" } else { "false" }),
    }
}

/// Lets `write!` append to the body.
struct Text<'o>(&'o mut Vec<u8>);

impl std::fmt::Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
