//! Where in a model's prose we are: in a code fence, in inline code, at the start of a line.
//!
//! Markup that a model *quotes* is text; only markup that it *means* is acted upon. This is the small part of
//! Markdown that tells the two apart, kept while the text streams by.

use memchr::memchr2;

/// Backticks at the start of a line that open or close a fence.
const FENCE_TICKS: usize = 3;

/// The state at the end of the text seen so far.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is one independent fact about the text before")]
pub(crate) struct Prose {
    in_fence: bool,
    in_inline: bool,
    /// Nothing but spaces since the last line end.
    is_blank: bool,
    /// Backticks directly before this point.
    n_ticks: usize,
    /// Whether those backticks began their line.
    ticks_began_line: bool,
}

impl Default for Prose {
    fn default() -> Self {
        Self { in_fence: false, in_inline: false, is_blank: true, n_ticks: 0, ticks_began_line: false }
    }
}

impl Prose {
    /// Moves over `text`. The result does not depend on how the text is cut.
    pub(crate) fn advance(&mut self, text: &str) {
        let bytes = text.as_bytes();
        if self.n_ticks == 0 && memchr2(b'\n', b'`', bytes).is_none() {
            self.is_blank &= bytes.iter().all(|&byte| is_space(byte));
            return;
        }
        for &byte in bytes {
            if byte == b'`' {
                if self.n_ticks == 0 {
                    self.ticks_began_line = self.is_blank;
                }
                self.n_ticks += 1;
                self.is_blank = false;
                if self.ticks_began_line && self.n_ticks == FENCE_TICKS {
                    self.in_fence = !self.in_fence;
                    self.in_inline = false;
                }
                continue;
            }
            self.end_ticks();
            if byte == b'\n' {
                // Inline code may span lines in Markdown, but a model's stray backtick must not hide the rest.
                self.in_inline = false;
                self.is_blank = true;
            } else {
                self.is_blank &= is_space(byte);
            }
        }
    }

    /// Whether what comes next is quoted code.
    pub(crate) fn is_code(&self) -> bool {
        let opens_inline = self.n_ticks > 0 && !self.ticks_are_fence() && !self.in_fence;
        self.in_fence || self.in_inline != opens_inline
    }

    /// Whether only spaces stand between the last line end and this point.
    pub(crate) fn is_line_start(&self) -> bool {
        self.is_blank
    }

    fn end_ticks(&mut self) {
        if self.n_ticks > 0 && !self.ticks_are_fence() && !self.in_fence {
            self.in_inline = !self.in_inline;
        }
        self.n_ticks = 0;
    }

    fn ticks_are_fence(&self) -> bool {
        self.ticks_began_line && self.n_ticks >= FENCE_TICKS
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Marks each `<` of `text`: `C` where it is code, `L` where it begins a line, `.` elsewhere.
    fn marks(text: &str) -> String {
        let mut prose = Prose::default();
        let mut marks = String::new();
        for character in text.chars() {
            if character == '<' {
                marks.push(match (prose.is_code(), prose.is_line_start()) {
                    (true, _) => 'C',
                    (false, true) => 'L',
                    (false, false) => '.',
                });
            }
            prose.advance(character.encode_utf8(&mut [0; 4]));
        }

        let mut at_once = Prose::default();
        at_once.advance(text);
        assert_eq!(format!("{at_once:?}"), format!("{prose:?}"), "{text:?}");
        marks
    }

    #[test]
    fn code_and_line_starts() {
        assert_eq!(marks("<a\n  <b c<"), "LL.");
        assert_eq!(marks("say `<a>` or <b>"), "C.");
        assert_eq!(marks("`` <a `` <b"), "C.");
        assert_eq!(marks("a stray ` tick <a\n<b"), "CL");
        assert_eq!(marks("```xml\n<a>\n```\n<b>"), "CL");
        assert_eq!(marks("  ```\n<a `<b`\n  ```\n<c"), "CCL");
        assert_eq!(marks("text ```<a>``` <b"), "C.");
        assert_eq!(marks("```\n<never closed"), "C");
    }
}
