//! A conversation that is longer than the model's context window, shortened until it fits.
//!
//! Codex compacts by itself at nine tenths of the window it knows. What comes here is a request of a thread that was led
//! with a larger window before, or that grew by more than that tenth in one turn. Instead of having it refused:
//!
//! 1. results of tools are cut, the old ones short, the recent ones less: what they said was acted upon already;
//! 2. if that is not enough the oldest turns go, calls with their results, and one note stands in their place.
//!
//! Never left out are the instructions, the first message of the user (the environment), a summary of what was compacted
//! before, the user's latest message, and the turn that the model is to go on from. If even these do not fit, they are
//! sent all the same, and the provider has the last word.
//!
//! Sizes are estimated, by length. As long as a whole body is short enough nothing in it is looked at.

use super::edits::{self, Edit, Edits, quoted};
use super::{History, stand_in};
use crate::json::Str;
use crate::responses::request::{Content, Format, Item, Part, Payload, Role, ToolResult};
use crate::sealed;
use crate::tools::{self, Definition};
use crate::{Request, Target};

/// Bytes of JSON that count as one token. English has some more, program text and most other languages some less.
pub const TOKEN_BYTES: u64 = 4;

/// Most tokens that an image counts. It is what Anthropic makes of a large one; others make less of it.
pub const IMAGE_TOKENS: u64 = 1_600;

/// Tokens that are kept free for the answer, unless the request says how many.
pub const ANSWER_TOKENS: u64 = 8_000;

/// The part of the window that is kept free for the answer at most: one in this many. It has to stay below the tenth at
/// which Codex compacts, which does it better.
const ANSWER_SHARE: u64 = 16;

/// Turns are left out in steps of one in this many of the window, so that not each request of a long turn begins
/// differently from the one before, which no provider's cache would survive.
const STEP_SHARE: u64 = 8;

/// Results that count as recent.
pub const RECENT_OUTPUTS: usize = 6;

/// Most characters of a recent result.
pub const RECENT_OUTPUT_CHARS_MAX: usize = 20_000;

/// Most characters of an older result.
pub const OLD_OUTPUT_CHARS_MAX: usize = 3_000;

/// Bytes that are written around each item.
const ITEM_BYTES: u64 = 16;

/// Bytes that are written around each tool.
const TOOL_BYTES: u64 = 24;

/// Room for the marker in a text that was cut, in characters; the number in it has at most twenty.
const MARKER_CHARS_MAX: usize = 48;

/// Tokens of `request` as it came, roughly; never more than its length makes.
pub fn estimated_tokens(request: &Request<'_>) -> u64 {
    let measure = Measure { images: true, reasoning: true };
    let items: u64 = request.input.iter().map(|item| measure.item(item)).sum();
    fixed_tokens(request, &tools::offered(request)) + items
}

/// Tokens that a request may have in a window of `window` tokens.
fn tokens_max(window: u64, request: &Request<'_>) -> u64 {
    let answer = request.max_output_tokens.unwrap_or(ANSWER_TOKENS);
    window - answer.min(window / ANSWER_SHARE)
}

/// What has to change in `items`, which are those of `request`, one for one.
pub(super) fn edits(
    request: &Request<'_>,
    items: &[Item<'_>],
    target: &Target,
    definitions: &[&Definition<'_>],
    gives_reasoning_back: bool,
) -> Edits {
    let tokens_max = tokens_max(target.context_window, request);
    if target.context_window == 0 || request.body_bytes as u64 / TOKEN_BYTES <= tokens_max {
        return Edits::default();
    }
    let measure = Measure { images: target.images, reasoning: gives_reasoning_back };
    let mut fit = Fit::new(items, measure, fixed_tokens(request, definitions));
    if fit.tokens <= tokens_max {
        return Edits::default();
    }
    fit.cut_outputs();
    if fit.tokens > tokens_max {
        let excess = fit.tokens + tokens(stand_in::LEFT_OUT_NOTE.len() as u64 + ITEM_BYTES) - tokens_max;
        let step = (target.context_window / STEP_SHARE).max(1);
        let is_summary = |index: usize| matches!(request.input.get(index), Some(Item::Compaction(_)));
        fit.leave_out_turns(excess.next_multiple_of(step), is_summary);
    }
    fit.edits
}

/// A conversation while it is shortened.
struct Fit<'r, 'a> {
    items: &'r [Item<'a>],
    history: History<'r, 'a>,
    measure: Measure,
    /// Tokens of each item; none for what is not sent.
    sizes: Vec<u64>,
    /// Tokens of the whole request.
    tokens: u64,
    /// For each item, whether it is the result of a call. Other results are not sent.
    is_result: Vec<bool>,
    edits: Edits,
}

impl<'r, 'a> Fit<'r, 'a> {
    fn new(items: &'r [Item<'a>], measure: Measure, fixed_tokens: u64) -> Self {
        let history = History::new(items);
        let mut is_result = vec![false; items.len()];
        for call in 0..items.len() {
            if let Some(result) = history.result_of(call) {
                is_result[result] = true;
            }
        }
        let size = |(item, is_result): (&Item<'_>, &bool)| match item {
            Item::ToolOutput(_) if !is_result => 0,
            item => measure.item(item),
        };
        let sizes: Vec<u64> = items.iter().zip(&is_result).map(size).collect();
        let tokens = fixed_tokens + sizes.iter().sum::<u64>();
        Self { items, history, measure, sizes, tokens, is_result, edits: Edits::default() }
    }

    fn cut_outputs(&mut self) {
        let items = self.items;
        let results = (0..items.len()).rev().filter(|index| self.is_result[*index]).collect::<Vec<_>>();
        for (age, index) in results.into_iter().enumerate() {
            let Item::ToolOutput(output) = &items[index] else { continue };
            let ToolResult::Content(content) = output.result else { continue };
            let is_recent = age < RECENT_OUTPUTS;
            let chars_max = if is_recent { RECENT_OUTPUT_CHARS_MAX } else { OLD_OUTPUT_CHARS_MAX };
            let Some(short) = shortened(content, chars_max, is_recent) else { continue };
            self.resize(index, self.measure.content(edits::content(&short)));
            self.edits.0.insert(index, Edit::Return(short));
        }
    }

    /// Leaves out the oldest turns until they make `excess` tokens, or none is left that may go.
    fn leave_out_turns(&mut self, excess: u64, is_summary: impl Fn(usize) -> bool) {
        let is_user = |item: &Item<'_>| matches!(item, Item::Message(message) if message.role == Role::User);
        let speaks = |item: &Item<'_>| is_user(item) || matches!(item, Item::AgentMessage(_));
        let spans: Vec<_> = self.history.spans().collect();
        let first = spans.iter().position(|span| is_user(&self.items[span.start]));
        let latest = spans.iter().rposition(|span| speaks(&self.items[span.start]));
        // A thought at the very end, of an answer that was cut, is not what the model goes on from.
        let is_sent = |item: &Item<'_>| speaks(item) || matches!(item, Item::Message(_) | Item::ToolCall(_));
        // Where nothing is sent there is nothing to leave out, and a note would be all there is to answer.
        let last = spans.iter().rposition(|span| self.items[span.clone()].iter().any(is_sent)).unwrap_or(0);

        let goal = self.tokens.saturating_sub(excess);
        let mut note_at = None;
        for (number, span) in spans.into_iter().enumerate().take(last) {
            if self.tokens <= goal {
                break;
            }
            if [first, latest].contains(&Some(number)) || is_summary(span.start) {
                continue;
            }
            note_at.get_or_insert(span.start);
            for index in span {
                if matches!(self.items[index], Item::ToolOutput(_)) {
                    // It goes with its call, which may stand elsewhere.
                    continue;
                }
                self.leave_out(index);
                if let Some(result) = self.history.result_of(index) {
                    self.leave_out(result);
                }
            }
        }
        let Some(note_at) = note_at else { return };
        // Results that answer nothing might answer something once others are gone.
        for index in 0..self.items.len() {
            if matches!(self.items[index], Item::ToolOutput(_)) && !self.is_result[index] {
                self.leave_out(index);
            }
        }
        self.edits.0.insert(note_at, Edit::Say(quoted(stand_in::LEFT_OUT_NOTE)));
    }

    fn leave_out(&mut self, index: usize) {
        self.resize(index, 0);
        self.edits.0.insert(index, Edit::LeaveOut);
    }

    fn resize(&mut self, index: usize, size: u64) {
        let old = std::mem::replace(&mut self.sizes[index], size);
        self.tokens = (self.tokens + size).saturating_sub(old);
    }
}

/// How tokens are counted for a target.
#[derive(Clone, Copy)]
struct Measure {
    /// Images are sent.
    images: bool,
    /// Sealed reasoning is sent.
    reasoning: bool,
}

impl Measure {
    fn item(self, item: &Item<'_>) -> u64 {
        match item {
            Item::Message(message) => self.content(message.content),
            Item::AgentMessage(message) => self.content(message.content),
            Item::Reasoning(reasoning) => {
                let sealed = reasoning.encrypted_content.map_or("", Str::escaped);
                let is_sent = self.reasoning && sealed.starts_with(sealed::PREFIX);
                // Base64 makes four characters of three.
                if is_sent { tokens(sealed.len() as u64 / 4 * 3) } else { 0 }
            }
            Item::ToolCall(call) => {
                let payload = match call.payload {
                    Payload::Arguments(text) | Payload::Input(text) => text.escaped(),
                    Payload::Search(value) | Payload::Shell(value) => value.text(),
                };
                tokens(ITEM_BYTES + call.name.len() as u64 + payload.len() as u64)
            }
            Item::ToolOutput(output) => match &output.result {
                ToolResult::Content(content) => self.content(*content),
                // Named here, and described where tools are offered.
                ToolResult::Tools(found) => {
                    tokens(ITEM_BYTES + found.iter().map(|tool| tool.name.len() as u64).sum::<u64>())
                }
            },
            Item::AdditionalTools(_)
            | Item::WebSearchCall(_)
            | Item::Compaction(_)
            | Item::CompactionTrigger
            | Item::ItemReference(_)
            | Item::Unknown { .. } => 0,
        }
    }

    fn content(self, content: Content<'_>) -> u64 {
        let mut bytes = ITEM_BYTES;
        let mut images = 0;
        for part in content.parts() {
            match part {
                Part::Text(text) => bytes += text.escaped().len() as u64,
                Part::Image { url: Some(url), .. } if self.images => {
                    // A URL that is fetched says nothing about what is behind it; Codex sends none.
                    images += IMAGE_TOKENS.min(tokens(url.escaped().len() as u64));
                }
                // A note stands in its place.
                Part::Image { .. } | Part::File { .. } | Part::Audio => bytes += ITEM_BYTES,
                Part::Unknown(_) => {}
            }
        }
        tokens(bytes) + images
    }
}

fn tokens(bytes: u64) -> u64 {
    bytes / TOKEN_BYTES
}

/// Tokens of all that is no item: nothing of it can be left out.
fn fixed_tokens(request: &Request<'_>, definitions: &[&Definition<'_>]) -> u64 {
    let length = |text: Option<Str<'_>>| text.map_or(0, |text| text.escaped().len() as u64);
    let format = match request.text.format {
        Some(Format::JsonSchema { schema, .. }) => schema.text().len() as u64,
        Some(Format::JsonObject) | None => 0,
    };
    let tool = |tool: &&Definition<'_>| {
        let schema = tool.parameters.map_or(0, |parameters| parameters.schema.text().len() as u64);
        let grammar = length(tool.grammar.map(|grammar| grammar.definition));
        TOOL_BYTES + tool.name.len() as u64 + length(tool.description) + schema + grammar
    };
    tokens(length(request.instructions) + format + definitions.iter().map(tool).sum::<u64>())
}

/// A result in at most `chars_max` characters, images aside, as JSON; `None` if it is as short as that already.
///
/// All its texts become one. Images follow it, or are left out.
fn shortened(content: Content<'_>, chars_max: usize, keeps_images: bool) -> Option<String> {
    if let Content::Text(text) = content
        && text.escaped().len() <= chars_max
    {
        // Escapes only ever make a text longer.
        return None;
    }
    let mut text = String::new();
    let mut images = Vec::new();
    let mut loses_images = false;
    for part in content.parts() {
        let piece = match part {
            Part::Text(text) => text.decode(),
            Part::Image { url: Some(url), detail } if keeps_images => {
                images.push((url, detail));
                continue;
            }
            Part::Image { .. } => {
                loses_images = true;
                stand_in::IMAGE_LEFT_OUT_NOTE.into()
            }
            Part::File { name } => stand_in::file_note(name),
            Part::Audio => stand_in::AUDIO_NOTE.into(),
            Part::Unknown(_) => continue,
        };
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&piece);
    }
    let short = match cut(&text, chars_max) {
        Some(short) => short,
        None if loses_images => text,
        None => return None,
    };
    let short = quoted(&short);
    if images.is_empty() {
        return Some(short);
    }
    let mut parts = format!(r#"[{{"type":"input_text","text":{short}}}"#);
    for (url, detail) in images {
        parts.push_str(r#",{"type":"input_image","image_url":""#);
        parts.push_str(url.escaped());
        if let Some(detail) = detail {
            parts.push_str(r#"","detail":""#);
            parts.push_str(detail.escaped());
        }
        parts.push_str(r#""}"#);
    }
    parts.push(']');
    Some(parts)
}

/// The beginning and the end of `text`, in at most `chars_max` characters with the marker between; `None` if it is not
/// longer than that.
pub(crate) fn cut(text: &str, chars_max: usize) -> Option<String> {
    if text.len() <= chars_max {
        return None;
    }
    let count = text.chars().count();
    if count <= chars_max {
        return None;
    }
    let kept = chars_max.saturating_sub(MARKER_CHARS_MAX);
    let at = |number: usize| text.char_indices().nth(number).map_or(text.len(), |(at, _)| at);
    let head = at(kept / 2);
    let tail = at(count - (kept - kept / 2));
    Some(format!("{}\n[… {} characters left out …]\n{}", &text[..head], count - kept, &text[tail..]))
}

#[cfg(test)]
mod tests;
