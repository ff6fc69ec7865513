//! Reasoning that stands inside the content, between `<think>` and `</think>`.
//!
//! ```text
//!             <think>                </think>
//!  Opening ───────────► Thinking ───────────────┐
//!     │  text                                   ▼
//!     └────────► Answering ◄──────────────── Opening (white space is dropped)
//!                    │   ▲ text
//!                    └───┘ </think> alone on its line: what this piece said before it was reasoning
//! ```
//!
//! A tag means something only where a model puts it: at the head of the content. A closing tag without an opening one
//! (chat templates that put the opening tag into the prompt) means something only alone on its line. Everywhere else
//! tags are text, since answers about parsers exist. Text that was shown already stays shown.

use crate::textcalls::prose::Prose;

/// Names of the tag; Gemini's compatible interface uses the last.
const NAMES: [&str; 3] = ["think", "thinking", "thought"];

/// Longest text that is held back until a tag or white space can be told. Whoever sends more than this many spaces
/// in a row gets them shown.
const HELD_BYTES_MAX: usize = 1_024;

/// One piece of content, told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Visible text.
    Text(String),
    /// Reasoning, to be shown.
    Think(String),
    /// The end of a think block; what stood in it, unchanged.
    ThinkEnd(String),
}

/// Splits content as it streams.
#[derive(Debug, Default)]
pub(super) struct Split {
    state: State,
    /// What cannot be told yet: white space, or what may become a tag.
    held: String,
    /// The block so far, unchanged.
    block: String,
    /// Something of the block was shown, so white space in it counts.
    has_shown: bool,
    /// Some of the content was given out as text.
    has_text: bool,
    prose: Prose,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Only white space so far; `true` after a think block, whose white space belongs to it.
    #[default]
    Start,
    AfterBlock,
    /// In a block opened by this name.
    Thinking(&'static str),
    Answering,
}

/// What a text that begins with `<` may be.
enum Tag {
    No,
    /// The text ends before it can be told.
    Maybe,
    /// A tag of this name and length.
    Yes(&'static str, usize),
}

impl Split {
    /// Whether all of `text` is visible text, as nearly all is; if so it is behind us, otherwise it is to be pushed.
    pub(super) fn passes(&mut self, text: &str) -> bool {
        let is_plain = self.state == State::Answering && self.held.is_empty() && !text.contains('<');
        if is_plain {
            self.prose.advance(text);
        }
        is_plain
    }

    /// Tells the parts of `text` apart, as far as they can be.
    pub(super) fn push(&mut self, text: &str, out: &mut Vec<Piece>) {
        self.held.push_str(text);
        while self.step(out) {}
    }

    /// Gives out what was held; nothing follows.
    pub(super) fn end(&mut self, out: &mut Vec<Piece>) {
        let held = std::mem::take(&mut self.held);
        match self.state {
            State::Start | State::Answering => {
                // A closing tag that the stream leaves alone on its line closes nothing that is worth showing.
                if !matches!(tag(held.trim(), "</"), Tag::Yes(_, length) if length == held.trim().len())
                    && !held.is_empty()
                {
                    out.push(Piece::Text(held));
                }
            }
            State::AfterBlock => {
                if !held.trim().is_empty() {
                    out.push(Piece::Text(held));
                }
            }
            State::Thinking(_) => {
                self.block.push_str(&held);
                if !held.trim().is_empty() {
                    out.push(Piece::Think(held.trim_end().to_owned()));
                }
                out.push(Piece::ThinkEnd(std::mem::take(&mut self.block)));
            }
        }
        self.state = State::Answering;
    }

    /// How much is being kept, in bytes.
    pub(super) fn held_bytes(&self) -> usize {
        self.held.len() + self.block.len()
    }

    /// What is allocated, for tests of what is held.
    #[cfg(test)]
    pub(super) fn allocated_bytes(&self) -> usize {
        let Self { state: _, held, block, has_shown: _, has_text: _, prose: _ } = self;
        held.capacity() + block.capacity()
    }

    /// Decides the next thing about `held`; `false` when more text is needed, or none is left.
    fn step(&mut self, out: &mut Vec<Piece>) -> bool {
        match self.state {
            State::Start | State::AfterBlock => self.step_start(),
            State::Thinking(name) => self.step_thinking(name, out),
            State::Answering => self.step_answering(out),
        }
    }

    fn step_start(&mut self) -> bool {
        if self.state == State::AfterBlock {
            let space = self.held.len() - self.held.trim_start().len();
            self.held.drain(..space);
        }
        let content = self.held.trim_start();
        if content.is_empty() && self.held.len() <= HELD_BYTES_MAX {
            return false;
        }
        match tag(content, "<") {
            _ if content.is_empty() => {
                self.state = State::Answering;
                true
            }
            Tag::Maybe => false,
            Tag::Yes(name, length) => {
                let start = self.held.len() - content.len() + length;
                self.held.drain(..start);
                self.has_shown = false;
                self.state = State::Thinking(name);
                true
            }
            // A closing tag is looked at by the rule for answers, once it is whole.
            Tag::No if matches!(tag(content, "</"), Tag::Maybe) => false,
            Tag::No => {
                self.state = State::Answering;
                true
            }
        }
    }

    fn step_thinking(&mut self, name: &str, out: &mut Vec<Piece>) -> bool {
        // The block's first line end belongs to its tag.
        let mut has_shown = self.has_shown;
        let mut give = |thought: &str| {
            let shown = if has_shown { thought } else { thought.trim_start() };
            if !shown.is_empty() {
                has_shown = true;
                out.push(Piece::Think(shown.to_owned()));
            }
        };
        let close = format!("</{name}>");
        if let Some(at) = self.held.find(&close) {
            give(self.held[..at].trim_end());
            self.block.push_str(&self.held[..at]);
            self.held.drain(..at + close.len());
            out.push(Piece::ThinkEnd(std::mem::take(&mut self.block)));
            self.state = State::AfterBlock;
            self.prose = Prose::default();
            return true;
        }
        // White space before the closing tag belongs to it, so it waits too.
        let mut certain = self.held.len() - partial_suffix(&self.held, &close);
        if self.held.len() <= HELD_BYTES_MAX {
            certain = self.held[..certain].trim_end().len();
        }
        give(&self.held[..certain]);
        self.has_shown = has_shown;
        self.block.push_str(&self.held[..certain]);
        self.held.drain(..certain);
        false
    }

    fn step_answering(&mut self, out: &mut Vec<Piece>) -> bool {
        let mut from = 0;
        let mut prose = self.prose.clone();
        let may_hold = |start: usize, all: &str| all.len() - start <= HELD_BYTES_MAX;
        while let Some(found) = self.held[from..].find('<') {
            let at = from + found;
            prose.advance(&self.held[from..at]);
            if prose.is_line_start() && !prose.is_code() {
                let line_start = self.held[..at].rfind('\n').map_or(0, |end| end + 1);
                match tag(&self.held[at..], "</") {
                    Tag::Maybe if may_hold(line_start, &self.held) => return self.hold_from(line_start, out),
                    Tag::Yes(_, length) => {
                        let after = &self.held[at + length..];
                        match after.trim_start_matches([' ', '\t', '\r']).chars().next() {
                            None if may_hold(line_start, &self.held) => return self.hold_from(line_start, out),
                            Some('\n') => {
                                self.close_unopened(line_start, at + length, out);
                                return true;
                            }
                            None | Some(_) => {}
                        }
                    }
                    Tag::Maybe | Tag::No => {}
                }
            }
            prose.advance("<");
            from = at + 1;
        }
        let all = self.held.len();
        self.hold_from(all, out)
    }

    /// Gives out what stands before `at` as text and keeps the rest. Nothing more can be decided then.
    fn hold_from(&mut self, at: usize, out: &mut Vec<Piece>) -> bool {
        if at > 0 {
            let text: String = self.held.drain(..at).collect();
            self.prose.advance(&text);
            self.has_text = true;
            out.push(Piece::Text(text));
        }
        false
    }

    /// A closing tag alone on its line: `..line_start` was reasoning, unless text went before it already.
    fn close_unopened(&mut self, line_start: usize, tag_end: usize, out: &mut Vec<Piece>) {
        let before = self.held[..line_start].to_owned();
        self.held.drain(..tag_end);
        if self.has_text {
            if !before.is_empty() {
                out.push(Piece::Text(before));
            }
        } else {
            if !before.trim().is_empty() {
                out.push(Piece::Think(before.trim().to_owned()));
            }
            out.push(Piece::ThinkEnd(before));
        }
        self.state = State::AfterBlock;
        self.prose = Prose::default();
    }
}

/// Whether `text` begins with `open` (`<` or `</`), a name and `>`.
fn tag(text: &str, open: &str) -> Tag {
    let mut may_become = false;
    for name in NAMES {
        let whole = [open, name, ">"].concat();
        if text.starts_with(&whole) {
            return Tag::Yes(name, whole.len());
        }
        may_become |= whole.starts_with(text);
    }
    if may_become { Tag::Maybe } else { Tag::No }
}

/// Length of the longest end of `text` with which `whole` may begin.
fn partial_suffix(text: &str, whole: &str) -> usize {
    (1..whole.len()).rev().find(|length| text.ends_with(&whole[..*length])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text and reasoning of `pieces`, and the blocks for replay.
    fn split(pieces: &[&str]) -> (String, String, Vec<String>) {
        let mut split = Split::default();
        let mut out = Vec::new();
        for piece in pieces {
            split.push(piece, &mut out);
        }
        split.end(&mut out);
        let (mut text, mut think, mut blocks) = (String::new(), String::new(), Vec::new());
        for piece in out {
            match piece {
                Piece::Text(more) => text.push_str(&more),
                Piece::Think(more) => think.push_str(&more),
                Piece::ThinkEnd(block) => blocks.push(block),
            }
        }
        (text, think, blocks)
    }

    fn by_characters(text: &str) -> Vec<String> {
        text.chars().map(String::from).collect()
    }

    #[test]
    fn an_opening_tag_at_the_head_starts_reasoning() {
        let rows = [
            ("<think>a</think>b", "b", "a", "a"),
            (" \n<think>\na\n</think>\n\nb", "b", "a", "\na\n"),
            ("<thinking>a < b\n\nc</thinking>d", "d", "a < b\n\nc", "a < b\n\nc"),
            ("<thought>a</think>b</thought>c", "c", "a</think>b", "a</think>b"),
            ("<think></think>b", "b", "", ""),
            ("<think>never closed ", "", "never closed", "never closed "),
            ("<think>a</think>\n<think>b</think>c", "c", "ab", "a|b"),
        ];
        for (content, text, think, blocks) in rows {
            for pieces in [vec![content.to_owned()], by_characters(content)] {
                let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
                let (found_text, found_think, found_blocks) = split(&pieces);
                assert_eq!((found_text.as_str(), found_think.as_str()), (text, think), "{content:?}");
                assert_eq!(found_blocks.join("|"), blocks, "{content:?}");
            }
        }
    }

    #[test]
    fn a_tag_elsewhere_is_text() {
        for content in [
            "The parser strips `<think>` tags.\nUse `</think>` to close.",
            "a <think> b </think> c",
            "```\n</think>\n```\n",
            "</think> opens this line",
            "<thin",
            "<thinker>",
            "\n\n",
            "a < b",
            "x\n</think> and more",
        ] {
            for pieces in [vec![content.to_owned()], by_characters(content)] {
                let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
                assert_eq!(split(&pieces), (content.to_owned(), String::new(), vec![]), "{content:?}");
            }
        }
    }

    #[test]
    fn a_closing_tag_alone_on_its_line_ends_unopened_reasoning() {
        assert_eq!(split(&["Think.\n</think>\n\nYes."]), ("Yes.".into(), "Think.".into(), vec!["Think.\n".into()]));
        assert_eq!(split(&["</think>\nYes."]), ("Yes.".into(), String::new(), vec![String::new()]));
        assert_eq!(split(&["Th", "ink.\n</thi", "nk>\n", "\nYes."]), ("Think.\nYes.".into(), String::new(), vec![]));
        assert_eq!(split(&["Done.\n</think>"]), ("Done.\n".into(), String::new(), vec![]));
        assert_eq!(split(&["</think>"]), (String::new(), String::new(), vec![]));
    }

    #[test]
    fn plain_text_passes_at_once() {
        let mut split = Split::default();
        let mut out = Vec::new();
        split.push("Hello", &mut out);
        assert_eq!(out, [Piece::Text("Hello".into())]);
        assert!(split.passes(", world"));
        assert!(!split.passes(" `x < y`"));
        split.push(" `x < y`", &mut out);
        assert_eq!(out[1..], [Piece::Text(" `x < y`".into())]);
        assert_eq!(split.held_bytes(), 0);
    }
}
