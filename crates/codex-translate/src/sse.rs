//! Server-sent events, cut out of a byte stream that may break anywhere.
//!
//! Lines end with `\n`, `\r\n` or `\r`; an event ends with an empty line or with the stream. Only `data` and `event`
//! mean something here: comments, `id` and `retry` are skipped (they have done their work by arriving). An event
//! whose one data line lies whole in the chunk, which is nearly every event, is handed out without a copy.
//!
//! Two departures from the standard, which would have these lines skipped and half an answer taken for a whole one:
//! - `error: {…}`, by which llama.cpp and its wrappers say that a stream has failed, is data of an event `error`;
//! - a line that is bare JSON, as gateways write it when they fail in the middle of a stream, is data. No field's name
//!   begins with a bracket.
//!
//! Deliberately absent: the meaning of a payload. `[DONE]`, empty objects and broken JSON are a decoder's business.
//!
//! Source: WHATWG HTML, section 9.2.6 "Interpreting an event stream"; <https://github.com/ggml-org/llama.cpp/issues/14566>
//! and `server_sent_event` in its server, read 2026-11.

use memchr::memchr2;

use crate::Frame;

/// Longest line, and longest payload of one event, in bytes.
///
/// A whole answer in one event (a gateway that does not stream) stays far below: 128 000 output tokens are some
/// 500 kB of text. It also bounds what a hostile upstream can make us hold.
pub const FRAME_BYTES_MAX: usize = 8 << 20;

/// A line or an event longer than [`FRAME_BYTES_MAX`]; nothing after it can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of the stream is longer than {FRAME_BYTES_MAX} bytes")]
pub struct FrameTooLong;

/// Cuts chunks into frames; holds at most one unfinished event.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is one independent fact about the bytes before")]
pub struct Framer {
    /// The unfinished line at the end of the last chunk.
    line: Vec<u8>,
    /// The data lines of the unfinished event, joined by newlines.
    data: Vec<u8>,
    /// Whether the unfinished event has a data line in `data`, be it an empty one.
    has_data: bool,
    /// The name of the unfinished event.
    event: String,
    /// A payload with invalid UTF-8 replaced.
    replaced: String,
    /// The last line ended with `\r`: a `\n` that follows belongs to it.
    after_cr: bool,
    /// The first line, which may carry a byte order mark, is behind us.
    past_first_line: bool,
    /// A frame was handed out: its parts are to be cleared before going on.
    is_given: bool,
    /// A limit was reached.
    is_broken: bool,
}

/// What one line says.
enum Line<'a> {
    Blank,
    Data(&'a [u8]),
    Event(&'a [u8]),
    Skipped,
}

impl Framer {
    /// A framer at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next event from the front of `chunk`; `None` when the chunk is used up.
    ///
    /// Call it with the same `chunk` variable until it gives `None`, then with the next chunk. Invalid UTF-8 in
    /// a payload is replaced by U+FFFD. Events without data are skipped.
    ///
    /// # Errors
    /// [`FrameTooLong`], now and on every later call.
    pub fn next<'f, 'c: 'f>(&'f mut self, chunk: &mut &'c [u8]) -> Result<Option<Frame<'f>>, FrameTooLong> {
        if self.is_broken {
            return Err(FrameTooLong);
        }
        self.clear_given();
        // The event's only data line so far, as long as it needs no copy.
        let mut whole: Option<&'c [u8]> = None;
        loop {
            if self.after_cr && !chunk.is_empty() {
                self.after_cr = false;
                *chunk = chunk.strip_prefix(b"\n").unwrap_or(chunk);
            }
            let Some(end) = memchr2(b'\n', b'\r', chunk) else {
                self.bounded(self.line.len() + chunk.len())?;
                self.line.extend_from_slice(chunk);
                *chunk = &[];
                if let Some(data) = whole {
                    self.add_data(data)?;
                }
                return Ok(None);
            };
            let head = &chunk[..end];
            self.after_cr = chunk[end] == b'\r';
            *chunk = &chunk[end + 1..];
            self.bounded(self.line.len() + head.len())?;

            if !self.line.is_empty() {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(head);
                self.take_line(&line)?;
                line.clear();
                self.line = line;
                continue;
            }
            match self.read(head) {
                Line::Data(data) if !self.has_data && whole.is_none() => whole = Some(data),
                Line::Data(data) => {
                    if let Some(first) = whole.take() {
                        self.add_data(first)?;
                    }
                    self.add_data(data)?;
                }
                Line::Event(name) => self.set_event(name),
                Line::Skipped => {}
                Line::Blank => {
                    if let Some(data) = whole {
                        if !data.is_empty() {
                            self.is_given = true;
                            return Ok(Some(frame(&self.event, data, &mut self.replaced)));
                        }
                    } else if !self.data.is_empty() {
                        self.is_given = true;
                        return Ok(Some(frame(&self.event, &self.data, &mut self.replaced)));
                    }
                    whole = None;
                    self.clear_event();
                }
            }
        }
    }

    /// The event that the end of the stream leaves without its empty line, if there is one.
    ///
    /// # Errors
    /// [`FrameTooLong`] as in [`Framer::next`].
    pub fn end(&mut self) -> Result<Option<Frame<'_>>, FrameTooLong> {
        if self.is_broken {
            return Err(FrameTooLong);
        }
        self.clear_given();
        let line = std::mem::take(&mut self.line);
        self.take_line(&line)?;
        if self.data.is_empty() {
            return Ok(None);
        }
        self.is_given = true;
        Ok(Some(frame(&self.event, &self.data, &mut self.replaced)))
    }

    /// Applies a line that had to be put together.
    fn take_line(&mut self, line: &[u8]) -> Result<(), FrameTooLong> {
        match self.read(line) {
            Line::Data(data) => self.add_data(data)?,
            Line::Event(name) => self.set_event(name),
            // It has bytes in it, so it is blank only if they are a byte order mark: nothing came before that.
            Line::Blank | Line::Skipped => {}
        }
        Ok(())
    }

    fn read<'l>(&mut self, mut line: &'l [u8]) -> Line<'l> {
        if !self.past_first_line {
            self.past_first_line = true;
            line = line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line);
        }
        if let Some(rest) = line.strip_prefix(b"data") {
            if let Some(value) = rest.strip_prefix(b":") {
                return Line::Data(value.strip_prefix(b" ").unwrap_or(value));
            }
            if rest.is_empty() {
                return Line::Data(rest);
            }
        } else if let Some(value) = line.strip_prefix(b"event:") {
            return Line::Event(value.strip_prefix(b" ").unwrap_or(value));
        } else if let Some(value) = line.strip_prefix(b"error:") {
            self.set_event(b"error");
            return Line::Data(value.strip_prefix(b" ").unwrap_or(value));
        }
        match line.first() {
            None => Line::Blank,
            Some(b'{' | b'[') => Line::Data(line),
            Some(_) => Line::Skipped,
        }
    }

    fn add_data(&mut self, data: &[u8]) -> Result<(), FrameTooLong> {
        self.bounded(self.data.len() + usize::from(self.has_data) + data.len())?;
        if self.has_data {
            self.data.push(b'\n');
        }
        self.has_data = true;
        self.data.extend_from_slice(data);
        Ok(())
    }

    fn set_event(&mut self, name: &[u8]) {
        self.event.clear();
        self.event.push_str(&String::from_utf8_lossy(name));
    }

    fn clear_given(&mut self) {
        if self.is_given {
            self.is_given = false;
            self.clear_event();
        }
    }

    fn clear_event(&mut self) {
        self.data.clear();
        self.has_data = false;
        self.event.clear();
    }

    fn bounded(&mut self, n_bytes: usize) -> Result<(), FrameTooLong> {
        if n_bytes > FRAME_BYTES_MAX {
            self.is_broken = true;
            // A broken framer is never used again: what it holds is only in the way.
            self.line = Vec::new();
            self.data = Vec::new();
            return Err(FrameTooLong);
        }
        Ok(())
    }
}

fn frame<'f>(event: &'f str, data: &'f [u8], replaced: &'f mut String) -> Frame<'f> {
    let data = simdutf8::basic::from_utf8(data).unwrap_or_else(|_| {
        replaced.clear();
        replaced.push_str(&String::from_utf8_lossy(data));
        replaced
    });
    Frame { event, data }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames(chunks: &[&[u8]]) -> Result<Vec<(String, String)>, FrameTooLong> {
        let mut framer = Framer::new();
        let mut found = Vec::new();
        for mut chunk in chunks.iter().copied() {
            while let Some(frame) = framer.next(&mut chunk)? {
                found.push((frame.event.to_owned(), frame.data.to_owned()));
            }
        }
        while let Some(frame) = framer.end()? {
            found.push((frame.event.to_owned(), frame.data.to_owned()));
        }
        Ok(found)
    }

    fn check(input: &str, expected: &[(&str, &str)]) {
        let expected: Vec<_> = expected.iter().map(|(event, data)| ((*event).to_owned(), (*data).to_owned())).collect();
        assert_eq!(frames(&[input.as_bytes()]).unwrap(), expected, "whole: {input:?}");
        let single: Vec<&[u8]> = input.as_bytes().chunks(1).collect();
        assert_eq!(frames(&single).unwrap(), expected, "byte by byte: {input:?}");
    }

    #[test]
    fn lines_and_fields() {
        check("data: a\n\ndata: b\n\n", &[("", "a"), ("", "b")]);
        check("data:a\r\n\r\ndata:b\r\rdata:c\n\n", &[("", "a"), ("", "b"), ("", "c")]);
        check("event: e\r\ndata: one\r\ndata: two\r\n\r\n", &[("e", "one\ntwo")]);
        check("\u{feff}data: a\n\n\u{feff}data: b\n\n", &[("", "a")]);
        check("data:  two spaces\n\n", &[("", " two spaces")]);
        check("data: one\ndata: two\ndata:\n\n", &[("", "one\ntwo\n")]);
        check("event: error\ndata: x\n\ndata: y\n\n", &[("error", "x"), ("", "y")]);
        check("event: a\nevent: b\ndata: x\n\n", &[("b", "x")]);
        check(": comment\nid: 1\nretry: 5\ndatum: no\ndata: x\n\n", &[("", "x")]);
        check("data\n\ndata:\n\nevent: lost\n\ndata: x\n\n", &[("", "x")]);
        check("data: no blank line at the end\ndata: [DONE]", &[("", "no blank line at the end\n[DONE]")]);
        check("\n\n\r\n\r\ndata: x\r\n\r\n\r\n", &[("", "x")]);
        check("data: \u{1f980}\n\n", &[("", "\u{1f980}")]);
        check("data: a\n\nerror: {\"code\":500}\n\ndata: b\n\n", &[("", "a"), ("error", "{\"code\":500}"), ("", "b")]);
        check("error:{}", &[("error", "{}")]);
        check("errors: no\n\ndata: a\nerror: {}\n\n", &[("error", "a\n{}")]);
        check("data: a\n\n{\"error\":1}\n\n[{}]", &[("", "a"), ("", "{\"error\":1}"), ("", "[{}]")]);
        check("", &[]);
    }

    #[test]
    fn invalid_utf8_is_replaced_in_its_frame_only() {
        let found = frames(&[b"data: a\xffb\n\ndata: c\n\n"]).unwrap();
        assert_eq!(found, [(String::new(), "a\u{fffd}b".to_owned()), (String::new(), "c".to_owned())]);
    }

    #[test]
    fn a_frame_in_one_chunk_is_not_copied() {
        let input = b"data: borrowed\n\n";
        let mut chunk = &input[..];
        let mut framer = Framer::new();
        let frame = framer.next(&mut chunk).unwrap().unwrap();
        assert!(input.as_ptr_range().contains(&frame.data.as_ptr()));
    }

    #[test]
    fn the_bound_holds_for_lines_events_and_comments_however_they_arrive() {
        let at_limit = [b"data: ".as_slice(), &vec![b'x'; FRAME_BYTES_MAX - 6], b"\n\n"].concat();
        assert_eq!(frames(&[&at_limit]).unwrap().len(), 1);

        let long_line = [b"data: ok\n\ndata: ".as_slice(), &vec![b'x'; FRAME_BYTES_MAX]].concat();
        let long_comment = [b": ".as_slice(), &vec![b'x'; FRAME_BYTES_MAX], b"\n\n"].concat();
        let many_lines = [b"data: ".as_slice(), &vec![b'x'; 1 << 20], b"\n"].concat().repeat(9);
        for input in [long_line, long_comment, many_lines] {
            assert_eq!(frames(&[&input]), Err(FrameTooLong));
            let pieces: Vec<&[u8]> = input.chunks(65_536).collect();
            assert_eq!(frames(&pieces), Err(FrameTooLong));
        }
    }

    #[test]
    fn a_broken_framer_stays_broken() {
        let mut framer = Framer::new();
        let long = vec![b'x'; FRAME_BYTES_MAX + 1];
        assert_eq!(framer.next(&mut long.as_slice()).unwrap_err(), FrameTooLong);
        assert_eq!(framer.next(&mut b"data: x\n\n".as_slice()).unwrap_err(), FrameTooLong);
        assert_eq!(framer.end().unwrap_err(), FrameTooLong);
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_frames(
            input in proptest::collection::vec(
                prop_oneof![Just(b'\n'), Just(b'\r'), Just(b':'), Just(b' '), Just(b'd'), Just(b'{'), any::<u8>()], 0..80),
            prefix in any::<bool>(),
            cuts in proptest::collection::vec(0usize..100, 0..6),
        ) {
            let input = if prefix { [b"data: {}\n\ndata:x\r\ndata:".as_slice(), &input].concat() } else { input };
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(input.len())).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([input.len()]) {
                pieces.push(&input[from..cut]);
                from = cut;
            }
            prop_assert_eq!(frames(&pieces), frames(&[&input]));
        }
    }
}
