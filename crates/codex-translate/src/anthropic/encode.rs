//! A Responses request as an Anthropic Messages body.
//!
//! One pass over the turns of the [history](crate::history), straight into the body; text is spliced in its escaped
//! form. Everything that a provider may want otherwise is read from the [`Profile`]. What Codex says about itself and
//! its machine (`client_metadata`, `prompt_cache_key`, `include`, `store`) has no way into the body.
//!
//! Every body obeys what Anthropic checks: user and assistant take turns, the user first; each call is answered in the
//! next message, all of them before anything else; ids are unique; the input of a tool is an object; no text is blank;
//! thinking goes back as it came, in its place, before what it belongs to, or not at all.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::{Effort, Profile, Thinking};
use crate::history::call_ids::{CallIds, Form};
use crate::history::{Assistant, Edits, History, Piece, Turn, stand_in};
use crate::json::{self, Kind, Raw, Str};
use crate::responses::request::{Content, Format, Item, Message, Part, Payload, Request, ToolOutput, ToolResult};
use crate::sealed::{self, Opened, Origin};
use crate::tools::offer::{self, Choice, alias};
use crate::tools::{self, CUSTOM_ARGUMENT, Definition, ToolTable, schema};
use crate::{Call, EncodeError, Framing, Target};

/// The version of the API, which has stayed the same since it stopped being a beta.
pub const VERSION: &str = "2023-06-01";

/// Largest image, in bytes before base64. One that is larger is refused, and the whole request with it.
pub const IMAGE_BYTES_MAX: usize = 5 << 20;

/// Fewest tokens that can be given for thinking.
const BUDGET_TOKENS_MIN: u64 = 1_024;

/// Tokens of the output limit that thinking leaves for the answer, where there are so many; the limit counts both.
const ANSWER_TOKENS: u64 = 8_000;

/// Room for what is written around the content of a request of no great size, in bytes.
const BODY_OVERHEAD_BYTES: usize = 4 * 1024;

/// What stands between two parts of a tool's output that has no images, escaped.
const LINE: &str = r"\n";

/// The mark behind what repeats in the next request. At most four are allowed: tools, system, and the ends of the last
/// two user messages, of which one is where the next request begins to differ, and the other was that in this one.
const CACHE_MARK: &str = r#","cache_control":{"type":"ephemeral"}"#;

/// Anthropic's own web search.
const WEB_SEARCH_TYPE: &str = "web_search_20250305";
const WEB_SEARCH_NAME: &str = "web_search";

/// In place of an image of a type that is not known, or that cannot be fetched from where it is.
const IMAGE_TYPE_NOTE: &str = "[image omitted: only PNG, JPEG, GIF and WebP images can be shown to this model]";
/// In place of an image that is too large.
const IMAGE_SIZE_NOTE: &str = "[image omitted: it is larger than the 5 MB that this model takes]";

/// Writes `request` for `target`.
///
/// # Errors
/// [`EncodeError::Invalid`] if there is no message in it.
pub fn encode(request: &Request<'_>, target: &Target) -> Result<Call, EncodeError> {
    let mut headers = vec![
        ("content-type", "application/json".to_owned()),
        ("accept", "text/event-stream".to_owned()),
        ("anthropic-version", VERSION.to_owned()),
    ];
    if !target.anthropic.betas.is_empty() {
        headers.push(("anthropic-beta", target.anthropic.betas.join(",")));
    }
    let body = body(request, target)?;
    Ok(Call { path: "/messages".to_owned(), query: None, headers, body, framing: Framing::Sse })
}

fn body(request: &Request<'_>, target: &Target) -> Result<Vec<u8>, EncodeError> {
    let profile = &target.anthropic;
    let definitions = tools::offered(request);
    let table = ToolTable::from_definitions(&definitions);
    let edits = Edits::new(request, target, &definitions, profile.replay_thinking);
    let items = edits.apply(&request.input);
    let history = History::new(&items);
    let states: Vec<State> = history
        .turns()
        .filter_map(|turn| match turn {
            Turn::Assistant(turn) => Some(State::open(turn, target)),
            _ => None,
        })
        .collect();
    let plan = Plan::new(request, profile, &history, &states);

    let mut out = Vec::with_capacity(request.body_bytes + request.body_bytes / 8 + BODY_OVERHEAD_BYTES);
    out.extend_from_slice(br#"{"model":"#);
    json::write_string(&mut out, &target.model);
    write!(Text(&mut out), r#","max_tokens":{}"#, plan.output_tokens).expect("writing to a Vec cannot fail");
    write_system(&mut out, request, profile, &history);
    out.extend_from_slice(br#","messages":["#);

    let mut messages = Messages {
        out,
        table: &table,
        images: target.images,
        role: None,
        user_ends: [None; 2],
        thinking: Vec::new(),
        call_ids: CallIds::new(Form::Strict),
        scratch: String::new(),
    };
    let mut states = states.iter();
    for turn in history.turns() {
        match turn {
            Turn::User(message) => messages.user(message.content),
            Turn::Developer(message) => messages.developer(message),
            Turn::Agent(message) => messages.user(message.content),
            Turn::Assistant(turn) => {
                let state = states.next().expect("there is one for each turn of the assistant");
                messages.assistant(turn, state, plan.gives_thinking_back);
            }
        }
    }
    let may_prefill = profile.prefill && plan.thinking.is_none();
    let mut out = messages.finish(may_prefill, profile.cache)?;

    out.push(b']');
    write_tools(&mut out, request, profile, &definitions, &table, plan.is_thinking);
    write_options(&mut out, request, profile, &plan);
    out.extend_from_slice(br#","stream":true}"#);
    Ok(out)
}

/// The system text, one block for each, the last one marked: it is the same in each request of a conversation.
fn write_system(out: &mut Vec<u8>, request: &Request<'_>, profile: &Profile, history: &History<'_, '_>) {
    let instructions = request.instructions.into_iter();
    let leading = history.leading().flat_map(|message| message.content.texts());
    let mut texts = instructions.chain(leading).filter(|text| !text.is_blank()).peekable();
    let format = request.text.format.filter(|format| !is_parameter(*format, profile));
    if texts.peek().is_none() && format.is_none() {
        return;
    }
    out.extend_from_slice(br#","system":["#);
    let mut separator: &[u8] = b"";
    while let Some(text) = texts.next() {
        out.extend_from_slice(separator);
        write_text(out, text);
        if texts.peek().is_none() && profile.cache {
            insert_mark(out, None);
        }
        separator = b",";
    }
    if let Some(format) = format {
        // Behind the mark: the next request may want another form.
        out.extend_from_slice(separator);
        write_note(out, &stand_in::format_instruction(format));
    }
    out.push(b']');
}

/// Who wrote a message of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    User,
    Assistant,
}

/// The `messages` array while it is written.
struct Messages<'r> {
    out: Vec<u8>,
    table: &'r ToolTable,
    images: bool,
    /// Of the message that is open. Neighbours of one role are one message.
    role: Option<Role>,
    /// Where the last blocks of the last two user messages end, for the marks.
    user_ends: [Option<usize>; 2],
    /// Thinking of the turn that waits for what it belongs to: a message cannot end with it.
    thinking: Vec<&'r str>,
    call_ids: CallIds<'r>,
    scratch: String,
}

impl<'r> Messages<'r> {
    /// Makes room for a block of a message by `role`.
    fn block(&mut self, role: Role) {
        if self.role == Some(role) {
            self.out.push(b',');
            return;
        }
        if self.role.is_none() && role == Role::Assistant {
            self.note(Role::User, stand_in::USER_FILLER);
        }
        if self.role.is_some() {
            self.close();
            self.out.push(b',');
        }
        self.role = Some(role);
        self.out.extend_from_slice(match role {
            Role::User => br#"{"role":"user","content":["#,
            Role::Assistant => br#"{"role":"assistant","content":["#,
        });
    }

    fn close(&mut self) {
        if self.role == Some(Role::User) {
            self.user_ends = [self.user_ends[1], Some(self.out.len() - 1)];
        }
        self.out.extend_from_slice(b"]}");
    }

    /// Ends the array, but for its bracket.
    fn finish(mut self, may_prefill: bool, cache: bool) -> Result<Vec<u8>, EncodeError> {
        match self.role {
            None => {
                let detail = "there is no message in it that the provider could answer".to_owned();
                return Err(EncodeError::Invalid { what: "input".to_owned(), detail });
            }
            Some(Role::Assistant) if may_prefill => self.trim_last_text(),
            Some(Role::Assistant) => self.note(Role::User, stand_in::USER_FILLER),
            Some(Role::User) => {}
        }
        self.close();
        if cache {
            for end in self.user_ends.into_iter().rev() {
                if end.is_some() {
                    insert_mark(&mut self.out, end);
                }
            }
        }
        Ok(self.out)
    }

    /// Words of the assistant that the model is to go on with must not end in white space.
    fn trim_last_text(&mut self) {
        const START: &[u8] = br#""text":""#;
        // The last block is a text: calls have results behind them.
        let Some(start) = memchr::memmem::rfind(&self.out, START).map(|at| at + START.len()) else { return };
        let Ok(text) = json::parse_bytes(&self.out[start - 1..self.out.len() - 1]) else { return };
        let text = text.as_str().map(Str::decode).unwrap_or_default().trim_end().to_owned();
        self.out.truncate(start);
        json::write_escaped(&mut self.out, &text);
        self.out.extend_from_slice(br#""}"#);
    }

    fn text(&mut self, role: Role, text: Str<'_>) {
        if !text.is_blank() {
            self.block(role);
            write_text(&mut self.out, text);
        }
    }

    fn note(&mut self, role: Role, note: &str) {
        self.block(role);
        write_note(&mut self.out, note);
    }

    fn user(&mut self, content: Content<'_>) {
        for part in content.parts() {
            let note = match part {
                Part::Text(text) => {
                    self.text(Role::User, text);
                    continue;
                }
                Part::Image { url, .. } => {
                    match image(url, self.images) {
                        Ok(image) => {
                            self.block(Role::User);
                            image.write(&mut self.out);
                        }
                        Err(note) => self.note(Role::User, note),
                    }
                    continue;
                }
                Part::File { name } => stand_in::file_note(name),
                Part::Audio => stand_in::AUDIO_NOTE.into(),
                // A part of a type that is new to this program; no words could stand for it.
                Part::Unknown(_) => continue,
            };
            self.note(Role::User, &note);
        }
    }

    fn developer(&mut self, message: &Message<'_>) {
        let mut texts = message.content.texts().filter(|text| !text.is_blank()).peekable();
        if texts.peek().is_some() {
            self.note(Role::User, stand_in::DEVELOPER_LABEL);
            for text in texts {
                self.text(Role::User, text);
            }
        }
    }

    fn assistant(&mut self, turn: Assistant<'r, '_>, state: &'r State, gives_thinking_back: bool) {
        self.thinking.clear();
        let mut thoughts = state.thoughts.iter();
        let mut results: Vec<(Cow<'r, str>, Option<&ToolOutput<'_>>)> = Vec::new();
        for piece in turn.pieces() {
            match piece {
                Piece::Reasoning(_) => {
                    if let Some(Thought::Kept(blocks)) = thoughts.next()
                        && gives_thinking_back
                    {
                        self.thinking.push(blocks);
                    }
                }
                Piece::Text(text) if text.is_blank() => {}
                Piece::Text(text) => {
                    self.think();
                    self.text(Role::Assistant, text);
                }
                Piece::Call(call, output) => {
                    self.think();
                    let id = self.call_ids.assign(&call.call_id, state.upstream_id(&call.call_id));
                    self.block(Role::Assistant);
                    self.out.extend_from_slice(br#"{"type":"tool_use","id":"#);
                    json::write_string(&mut self.out, &id);
                    self.out.extend_from_slice(br#","name":""#);
                    self.out.extend_from_slice(alias(self.table, call.namespace.as_deref(), &call.name).as_bytes());
                    self.out.extend_from_slice(br#"","input":"#);
                    self.payload(call.payload);
                    self.out.push(b'}');
                    results.push((id, output));
                }
            }
        }
        for (id, output) in results {
            self.result(&id, output);
        }
    }

    /// Writes the thinking before what it belongs to.
    fn think(&mut self) {
        for blocks in std::mem::take(&mut self.thinking) {
            self.block(Role::Assistant);
            self.out.extend_from_slice(blocks.as_bytes());
        }
    }

    /// What a call was given, as a JSON object.
    fn payload(&mut self, payload: Payload<'_>) {
        match payload {
            Payload::Arguments(arguments) => {
                self.scratch.clear();
                arguments.decode_into(&mut self.scratch);
                match json::parse(&self.scratch) {
                    Ok(value) if value.kind() == Kind::Object => self.out.extend_from_slice(value.text().as_bytes()),
                    _ if self.scratch.trim().is_empty() => self.out.extend_from_slice(b"{}"),
                    _ => self.one_string(stand_in::INVALID_ARGUMENTS, arguments),
                }
            }
            Payload::Input(input) => self.one_string(CUSTOM_ARGUMENT, input),
            Payload::Search(arguments) if arguments.kind() == Kind::Object => {
                self.out.extend_from_slice(arguments.text().as_bytes());
            }
            Payload::Search(_) => self.out.extend_from_slice(b"{}"),
            Payload::Shell(action) => {
                self.out.push(b'{');
                let members = ["command", "working_directory", "timeout_ms"];
                let given =
                    members.iter().filter_map(|name| Some((name, action.get(name).filter(|value| !value.is_null())?)));
                for (index, (name, value)) in given.enumerate() {
                    let comma = if index > 0 { "," } else { "" };
                    write!(Text(&mut self.out), r#"{comma}"{name}":{}"#, value.text())
                        .expect("writing to a Vec cannot fail");
                }
                self.out.push(b'}');
            }
        }
    }

    /// A JSON object with one member, a string.
    fn one_string(&mut self, name: &str, value: Str<'_>) {
        write!(Text(&mut self.out), r#"{{"{name}":"{}"}}"#, value.escaped()).expect("writing to a Vec cannot fail");
    }

    fn result(&mut self, id: &str, output: Option<&ToolOutput<'_>>) {
        self.block(Role::User);
        self.out.extend_from_slice(br#"{"type":"tool_result","tool_use_id":"#);
        json::write_string(&mut self.out, id);
        self.out.extend_from_slice(br#","content":"#);
        match output.map(|output| &output.result) {
            None => {
                json::write_string(&mut self.out, stand_in::MISSING_RESULT);
                self.out.extend_from_slice(br#","is_error":true"#);
            }
            Some(ToolResult::Tools(found)) => json::write_string(&mut self.out, &offer::found(found, self.table)),
            Some(ToolResult::Content(content)) => write_result(&mut self.out, *content, self.images),
        }
        self.out.push(b'}');
    }
}

/// Writes the content of a result: a string, or where there are images a list of blocks.
fn write_result(out: &mut Vec<u8>, content: Content<'_>, images: bool) {
    let start = out.len();
    let has_image = content.parts().any(|part| matches!(part, Part::Image { url, .. } if image(url, images).is_ok()));
    out.push(if has_image { b'[' } else { b'"' });
    let mut separator = "";
    for part in content.parts() {
        let note: Cow<'_, str> = match part {
            Part::Text(text) if text.is_blank() => continue,
            Part::Text(text) => {
                out.extend_from_slice(separator.as_bytes());
                if has_image {
                    write_text(out, text);
                } else {
                    out.extend_from_slice(text.escaped().as_bytes());
                }
                separator = if has_image {
                    ","
                } else if text.ends_line() {
                    ""
                } else {
                    LINE
                };
                continue;
            }
            Part::Image { url, .. } => match image(url, images) {
                Ok(image) => {
                    out.extend_from_slice(separator.as_bytes());
                    image.write(out);
                    separator = ",";
                    continue;
                }
                Err(note) => note.into(),
            },
            Part::File { name } => stand_in::file_note(name),
            Part::Audio => stand_in::AUDIO_NOTE.into(),
            Part::Unknown(_) => continue,
        };
        out.extend_from_slice(separator.as_bytes());
        if has_image {
            write_note(out, &note);
        } else {
            json::write_escaped(out, &note);
        }
        separator = if has_image { "," } else { LINE };
    }
    if out.len() == start + 1 {
        json::write_escaped(out, stand_in::EMPTY_RESULT);
    }
    out.push(if has_image { b']' } else { b'"' });
}

/// An image in one of the two forms there are. What is borrowed is escaped.
enum Image<'a> {
    Base64 { media_type: &'static str, data: &'a str },
    Url(&'a str),
}

impl Image<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Base64 { media_type, data } => {
                out.extend_from_slice(br#"{"type":"image","source":{"type":"base64","media_type":""#);
                out.extend_from_slice(media_type.as_bytes());
                out.extend_from_slice(br#"","data":""#);
                out.extend_from_slice(data.as_bytes());
            }
            Self::Url(url) => {
                out.extend_from_slice(br#"{"type":"image","source":{"type":"url","url":""#);
                out.extend_from_slice(url.as_bytes());
            }
        }
        out.extend_from_slice(br#""}}"#);
    }
}

/// The image behind `url`, or what stands for it.
fn image(url: Option<Str<'_>>, images: bool) -> Result<Image<'_>, &'static str> {
    let url = url.filter(|_| images).ok_or(stand_in::IMAGE_NOTE)?.escaped();
    let Some(rest) = url.strip_prefix("data:") else {
        let is_web = ["https:", "http:"].iter().any(|scheme| url.starts_with(scheme));
        return if is_web { Ok(Image::Url(url)) } else { Err(IMAGE_TYPE_NOTE) };
    };
    // A comma is no part of an escape sequence, so what follows it is a string of its own.
    let (head, data) = rest.split_once(',').ok_or(IMAGE_TYPE_NOTE)?;
    let head = head.replace(r"\/", "/").to_ascii_lowercase();
    let kind = head.strip_suffix(";base64").ok_or(IMAGE_TYPE_NOTE)?;
    let media_type = match kind.split(';').next() {
        Some("image/png") => "image/png",
        Some("image/jpeg" | "image/jpg") => "image/jpeg",
        Some("image/gif") => "image/gif",
        Some("image/webp") => "image/webp",
        _ => return Err(IMAGE_TYPE_NOTE),
    };
    if data.is_empty() {
        return Err(IMAGE_TYPE_NOTE);
    }
    if data.len() / 4 * 3 > IMAGE_BYTES_MAX {
        return Err(IMAGE_SIZE_NOTE);
    }
    Ok(Image::Base64 { media_type, data })
}

fn write_text(out: &mut Vec<u8>, text: Str<'_>) {
    out.extend_from_slice(br#"{"type":"text","text":""#);
    out.extend_from_slice(text.escaped().as_bytes());
    out.extend_from_slice(br#""}"#);
}

fn write_note(out: &mut Vec<u8>, note: &str) {
    out.extend_from_slice(br#"{"type":"text","text":""#);
    json::write_escaped(out, note);
    out.extend_from_slice(br#""}"#);
}

/// Marks the object whose `}` stands at `at`, or last.
fn insert_mark(out: &mut Vec<u8>, at: Option<usize>) {
    let at = at.unwrap_or(out.len() - 1);
    out.splice(at..at, CACHE_MARK.bytes());
}

/// What the reasoning items of a turn carry for this very provider and model.
#[derive(Debug, Default)]
struct State {
    /// One for each reasoning item, in order.
    thoughts: Vec<Thought>,
    /// Call id and upstream id.
    upstream_ids: Vec<(String, String)>,
}

/// What is known of the thinking behind a reasoning item.
#[derive(Debug, PartialEq, Eq)]
enum Thought {
    /// There was none: a notice of ours, or state of another kind.
    None,
    /// Its blocks, as JSON, separated by commas.
    Kept(String),
    /// Made elsewhere, damaged, or not signed.
    Lost,
}

impl State {
    fn open(turn: Assistant<'_, '_>, target: &Target) -> Self {
        let mut state = Self::default();
        let origin = target.origin();
        for reasoning in turn.reasoning() {
            let thought = match reasoning.encrypted_content.filter(|sealed| !sealed.is_empty()) {
                None => Thought::None,
                Some(sealed) => state.open_one(&sealed.decode(), target, &origin),
            };
            state.thoughts.push(thought);
        }
        state
    }

    fn open_one(&mut self, sealed: &str, target: &Target, origin: &Origin) -> Thought {
        // Another product's state, and that of another model, is of no use to this one.
        let Opened::Ours(parts) = target.open(origin, sealed) else { return Thought::Lost };
        let mut kept = String::new();
        let mut is_lost = false;
        for part in parts {
            match part {
                sealed::Part::ThinkingBlocks(blocks) => {
                    let blocks = json::parse(&blocks).unwrap_or(Raw::NULL);
                    is_lost |= blocks.kind() != Kind::Array;
                    for block in blocks.elements() {
                        is_lost |= !is_usable(block, &target.anthropic);
                        if !kept.is_empty() {
                            kept.push(',');
                        }
                        kept.push_str(block.text());
                    }
                }
                sealed::Part::UpstreamId { call_id, upstream_id } => self.upstream_ids.push((call_id, upstream_id)),
                // Of other protocols that the provider speaks, or no reasoning.
                sealed::Part::ReasoningContent(_)
                | sealed::Part::ReasoningDetails(_)
                | sealed::Part::InlineThink(_)
                | sealed::Part::Summary(_)
                | sealed::Part::ToolExtra { .. } => {}
            }
        }
        match kept {
            // One block that is missing makes the others a thought that the model never had.
            _ if is_lost => Thought::Lost,
            kept if kept.is_empty() => Thought::None,
            kept => Thought::Kept(kept),
        }
    }

    fn upstream_id(&self, call_id: &str) -> Option<&str> {
        self.upstream_ids.iter().find(|(id, _)| id == call_id).map(|(_, id)| id.as_str())
    }
}

/// Whether a block of thinking can go back. One without a signature is refused by those who sign.
fn is_usable(block: Raw<'_>, profile: &Profile) -> bool {
    let string = |name| block.get(name).and_then(Raw::as_str);
    let is_signed = string("signature").is_some_and(|signature| !signature.is_empty());
    match string("type").map_or("", Str::escaped) {
        _ if !profile.replay_thinking => false,
        "thinking" => string("thinking").is_some() && (is_signed || profile.unsigned_thinking),
        "redacted_thinking" => string("data").is_some(),
        _ => false,
    }
}

/// What is decided before anything is written.
#[derive(Debug)]
struct Plan {
    output_tokens: u64,
    /// The `thinking` member; `None` to say nothing.
    thinking: Option<String>,
    /// The model was asked to think: it may not be forced to call a tool, nor given a temperature.
    is_thinking: bool,
    gives_thinking_back: bool,
    effort: Option<Effort>,
}

impl Plan {
    fn new(request: &Request<'_>, profile: &Profile, history: &History<'_, '_>, states: &[State]) -> Self {
        let output_tokens = request.max_output_tokens.filter(|tokens| *tokens > 0).unwrap_or(profile.output_tokens);
        let output_tokens = profile.output_tokens_max.map_or(output_tokens, |max| output_tokens.min(max));
        let mut plan =
            Self { output_tokens, thinking: None, is_thinking: false, gives_thinking_back: false, effort: None };
        // Codex passes on whatever word it is configured with; one that nobody knows says nothing.
        let word = request.reasoning.effort.as_deref().unwrap_or_default();
        let effort = Effort::parse(word);
        let is_unwanted = matches!(word, "none" | "minimal");
        let budget = effort.map(|effort| budget(effort, output_tokens)).filter(|budget| *budget >= BUDGET_TOKENS_MIN);
        match profile.thinking {
            Thinking::Unasked => plan.gives_thinking_back = true,
            _ if is_unwanted => plan.thinking = Some(r#"{"type":"disabled"}"#.to_owned()),
            Thinking::Budget => match budget {
                // A loop of calls that began without thinking, or whose thinking is lost, has to end without.
                Some(_) if !can_think(history, states) => plan.thinking = Some(r#"{"type":"disabled"}"#.to_owned()),
                Some(budget) => {
                    plan.think(format!(r#"{{"type":"enabled","budget_tokens":{budget}}}"#));
                }
                None => {}
            },
            Thinking::Adaptive if effort.is_some() => {
                plan.effort = Effort::nearest(effort, &profile.efforts);
                // What is not shown need not be sent; the state of it comes all the same.
                let display = match request.reasoning.summary.as_deref() {
                    _ if !profile.allows("display") => "",
                    Some("auto" | "concise" | "detailed") => r#","display":"summarized""#,
                    _ => r#","display":"omitted""#,
                };
                plan.think(format!(r#"{{"type":"adaptive"{display}}}"#));
            }
            Thinking::Adaptive => {}
        }
        plan
    }

    fn think(&mut self, member: String) {
        self.thinking = Some(member);
        self.is_thinking = true;
        self.gives_thinking_back = true;
    }
}

/// Tokens for thinking at an effort, below the output limit, which counts them too.
fn budget(effort: Effort, output_tokens: u64) -> u64 {
    let wanted = match effort {
        Effort::Low => 4_000,
        Effort::Medium => 10_000,
        Effort::High => 24_000,
        Effort::XHigh | Effort::Max => 32_000,
    };
    wanted.min(output_tokens - ANSWER_TOKENS.min(output_tokens / 2))
}

/// Whether the loop of calls and results that the request continues, if it does, may go on thinking.
///
/// A model that was asked to think begins each loop with a thought, and is refused its own history without it; further
/// thoughts within the loop are up to the model. Words of the user between results begin another loop, but whether they
/// end the one before is not known: only an answer without calls certainly does.
fn can_think(history: &History<'_, '_>, states: &[State]) -> bool {
    let mut states = states.iter();
    let mut can_think = true;
    let mut begins = true;
    // Turns with nothing between them are one message. Of the one that is open and has no call yet: whether it begins with
    // a thought, and what was known before it. A call that follows makes it part of the loop after all.
    let mut open: Option<(bool, bool, bool)> = None;
    for turn in history.turns() {
        let content = match turn {
            Turn::User(message) | Turn::Developer(message) => message.content,
            Turn::Agent(message) => message.content,
            Turn::Assistant(turn) => {
                let state = states.next().expect("there is one for each turn of the assistant");
                let mut spoken = turn.pieces().filter(|piece| !matches!(piece, Piece::Text(text) if text.is_blank()));
                let thinks_first = matches!(spoken.next(), Some(Piece::Reasoning(_)))
                    && matches!(state.thoughts.first(), Some(Thought::Kept(_)));
                if turn.calls().next().is_some() {
                    let mut thinks_first = thinks_first;
                    if let Some(before) = open.take() {
                        (thinks_first, can_think, begins) = before;
                    }
                    can_think &= !state.thoughts.contains(&Thought::Lost) && (thinks_first || !begins);
                    begins = false;
                } else if turn.texts().any(|text| !text.is_blank()) {
                    open.get_or_insert((thinks_first, can_think, begins));
                    can_think = true;
                    begins = true;
                }
                continue;
            }
        };
        let is_silent = |part: Part<'_>| match part {
            Part::Text(text) => text.is_blank(),
            Part::Unknown(_) => true,
            Part::Image { .. } | Part::File { .. } | Part::Audio => false,
        };
        if !content.parts().all(is_silent) {
            begins = true;
            open = None;
        }
    }
    can_think
}

fn write_tools(
    out: &mut Vec<u8>,
    request: &Request<'_>,
    profile: &Profile,
    definitions: &[&Definition<'_>],
    table: &ToolTable,
    is_thinking: bool,
) {
    let searches = profile.web_search
        && !request.is_compaction()
        && offer::wants_web_search(request.tools_list)
        && table.resolve(WEB_SEARCH_NAME).is_none();
    if definitions.is_empty() && !searches {
        write_tools_of_the_past(out, request, profile);
        return;
    }
    let choice = match offer::choice(request.tool_choice, table) {
        Choice::Required | Choice::Tool(_) if is_thinking => Choice::Auto,
        choice => choice,
    };
    if choice == Choice::None && !profile.allows("tool_choice") {
        return;
    }
    let keywords = if profile.plain_schemas { schema::Keywords::Plain } else { schema::Keywords::Standard };
    out.extend_from_slice(br#","tools":["#);
    if searches {
        write!(Text(out), r#"{{"type":"{WEB_SEARCH_TYPE}","name":"{WEB_SEARCH_NAME}"}}"#)
            .expect("writing to a Vec cannot fail");
    }
    for (index, (definition, tool)) in definitions.iter().zip(table.tools()).enumerate() {
        if index > 0 || searches {
            out.push(b',');
        }
        out.extend_from_slice(br#"{"name":""#);
        out.extend_from_slice(tool.alias.as_bytes());
        out.push(b'"');
        offer::write_description(out, definition);
        out.extend_from_slice(br#","input_schema":"#);
        write_schema(out, definition, keywords);
        if profile.strict_tools && definition.strict {
            out.extend_from_slice(br#","strict":true"#);
        }
        out.push(b'}');
    }
    if profile.cache {
        insert_mark(out, None);
    }
    out.push(b']');

    if !profile.allows("tool_choice") {
        return;
    }
    let only_one = request.parallel_tool_calls == Some(false) && profile.allows("disable_parallel_tool_use");
    let (kind, name) = match choice {
        // What happens anyway need not be said.
        Choice::Auto if !only_one => return,
        Choice::Auto => ("auto", None),
        Choice::None => ("none", None),
        Choice::Required => ("any", None),
        Choice::Tool(alias) => ("tool", Some(alias)),
    };
    write!(Text(out), r#","tool_choice":{{"type":"{kind}""#).expect("writing to a Vec cannot fail");
    if let Some(name) = name {
        write!(Text(out), r#","name":"{name}""#).expect("writing to a Vec cannot fail");
    }
    if only_one && choice != Choice::None {
        out.extend_from_slice(br#","disable_parallel_tool_use":true"#);
    }
    out.push(b'}');
}

/// A conversation with calls in it is refused without tools, which Codex leaves out where it wants none to be called.
fn write_tools_of_the_past(out: &mut Vec<u8>, request: &Request<'_>, profile: &Profile) {
    if !profile.allows("tool_choice") {
        return;
    }
    let table = ToolTable::default();
    let mut names: Vec<Cow<'_, str>> = Vec::new();
    for item in &request.input {
        if let Item::ToolCall(call) = item {
            let name = alias(&table, call.namespace.as_deref(), &call.name);
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    for (index, name) in names.iter().enumerate() {
        out.extend_from_slice(if index == 0 { br#","tools":["# } else { b"," });
        write!(Text(out), r#"{{"name":"{name}","input_schema":{{"type":"object"}}}}"#)
            .expect("writing to a Vec cannot fail");
    }
    if !names.is_empty() {
        out.extend_from_slice(br#"],"tool_choice":{"type":"none"}"#);
    }
}

/// Alternatives at the top of a tool's schema are refused.
fn write_schema(out: &mut Vec<u8>, definition: &Definition<'_>, keywords: schema::Keywords) {
    const REFUSED: [&str; 3] = ["anyOf", "oneOf", "allOf"];
    let start = out.len();
    offer::write_parameters(out, definition, keywords);
    let written = &out[start..];
    if !REFUSED.iter().any(|name| memchr::memmem::find(written, name.as_bytes()).is_some()) {
        return;
    }
    let written = written.to_vec();
    let Ok(schema) = json::parse_bytes(&written) else { return };
    if !schema.entries().any(|(key, _)| REFUSED.iter().any(|name| key.is(name))) {
        return;
    }
    out.truncate(start);
    let mut separator = b'{';
    for (key, value) in schema.entries().filter(|(key, _)| !REFUSED.iter().any(|name| key.is(name))) {
        out.push(std::mem::replace(&mut separator, b','));
        write!(Text(out), r#""{}":{}"#, key.escaped(), value.text()).expect("writing to a Vec cannot fail");
    }
    out.push(b'}');
}

fn write_options(out: &mut Vec<u8>, request: &Request<'_>, profile: &Profile, plan: &Plan) {
    if let Some(thinking) = &plan.thinking {
        write!(Text(out), r#","thinking":{thinking}"#).expect("writing to a Vec cannot fail");
    }
    let format = request.text.format.filter(|format| is_parameter(*format, profile));
    if plan.effort.is_some() || format.is_some() {
        out.extend_from_slice(br#","output_config":"#);
        let mut separator = b'{';
        if let Some(effort) = plan.effort {
            out.push(std::mem::replace(&mut separator, b','));
            write!(Text(out), r#""effort":"{}""#, effort.as_str()).expect("writing to a Vec cannot fail");
        }
        if let Some(Format::JsonSchema { schema, .. }) = format {
            out.push(separator);
            out.extend_from_slice(br#""format":{"type":"json_schema","schema":"#);
            schema::write(out, schema, schema::Keywords::Standard);
            out.push(b'}');
        }
        out.push(b'}');
    }
    if plan.is_thinking {
        return;
    }
    // Newer models take only one of the two.
    if let Some(temperature) = request.temperature.filter(|_| profile.allows("temperature")) {
        // Other protocols go up to 2.
        let is_too_high = temperature.text().parse::<f64>().is_ok_and(|temperature| temperature > 1.0);
        let temperature = if is_too_high { "1" } else { temperature.text() };
        write!(Text(out), r#","temperature":{temperature}"#).expect("writing to a Vec cannot fail");
    } else if let Some(top_p) = request.top_p.filter(|_| profile.allows("top_p")) {
        write!(Text(out), r#","top_p":{}"#, top_p.text()).expect("writing to a Vec cannot fail");
    }
}

/// Whether there is a parameter for this form of the answer.
fn is_parameter(format: Format<'_>, profile: &Profile) -> bool {
    match format {
        Format::JsonSchema { .. } => profile.json_schema,
        Format::JsonObject => false,
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
