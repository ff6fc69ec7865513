//! One JSON object a line, cut out of a byte stream that may break anywhere.
//!
//! Blank lines are skipped. A `data:` prefix, comments and other fields of server-sent events are tolerated, because
//! some hosts put the same objects into either form.

use memchr::memchr;

use crate::Frame;
use crate::sse::{FRAME_BYTES_MAX, FrameTooLong};

/// Cuts chunks into lines; holds at most one unfinished line.
#[derive(Debug, Default)]
pub struct Framer {
    /// The unfinished line at the end of the last chunk.
    line: Vec<u8>,
    /// A payload with invalid UTF-8 replaced.
    replaced: String,
    /// `line` was handed out and is to be cleared before going on.
    is_given: bool,
    /// A limit was reached.
    is_broken: bool,
}

impl Framer {
    /// A framer at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next line with a payload from the front of `chunk`; `None` when the chunk is used up.
    ///
    /// # Errors
    /// [`FrameTooLong`], now and on every later call.
    pub fn next<'f, 'c: 'f>(&'f mut self, chunk: &mut &'c [u8]) -> Result<Option<Frame<'f>>, FrameTooLong> {
        self.clear_given()?;
        loop {
            let Some(end) = memchr(b'\n', chunk) else {
                self.bounded(self.line.len() + chunk.len())?;
                self.line.extend_from_slice(chunk);
                *chunk = &[];
                return Ok(None);
            };
            let head: &'c [u8] = &chunk[..end];
            *chunk = &chunk[end + 1..];
            self.bounded(self.line.len() + head.len())?;
            if self.line.is_empty() {
                let payload = payload(head);
                if !payload.is_empty() {
                    return Ok(Some(frame(payload, &mut self.replaced)));
                }
            } else {
                self.line.extend_from_slice(head);
                if payload(&self.line).is_empty() {
                    self.line.clear();
                } else {
                    self.is_given = true;
                    return Ok(Some(frame(payload(&self.line), &mut self.replaced)));
                }
            }
        }
    }

    /// The line that the end of the stream leaves without its line end, if there is one.
    ///
    /// # Errors
    /// [`FrameTooLong`] as in [`Framer::next`].
    pub fn end(&mut self) -> Result<Option<Frame<'_>>, FrameTooLong> {
        self.clear_given()?;
        if payload(&self.line).is_empty() {
            return Ok(None);
        }
        self.is_given = true;
        Ok(Some(frame(payload(&self.line), &mut self.replaced)))
    }

    fn clear_given(&mut self) -> Result<(), FrameTooLong> {
        if self.is_broken {
            return Err(FrameTooLong);
        }
        if self.is_given {
            self.is_given = false;
            self.line.clear();
        }
        Ok(())
    }

    fn bounded(&mut self, n_bytes: usize) -> Result<(), FrameTooLong> {
        if n_bytes > FRAME_BYTES_MAX {
            self.is_broken = true;
            self.line = Vec::new();
            return Err(FrameTooLong);
        }
        Ok(())
    }
}

/// The part of a line that is a payload; empty for a line that has none.
fn payload(line: &[u8]) -> &[u8] {
    let line = line.trim_ascii();
    if let Some(data) = line.strip_prefix(b"data:") {
        return data.trim_ascii();
    }
    let is_other_field = [b":".as_slice(), b"event:", b"id:", b"retry:"].iter().any(|field| line.starts_with(field));
    if is_other_field { &[] } else { line }
}

fn frame<'f>(data: &'f [u8], replaced: &'f mut String) -> Frame<'f> {
    let data = simdutf8::basic::from_utf8(data).unwrap_or_else(|_| {
        replaced.clear();
        replaced.push_str(&String::from_utf8_lossy(data));
        replaced
    });
    Frame { event: "", data }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(chunks: &[&[u8]]) -> Result<Vec<String>, FrameTooLong> {
        let mut framer = Framer::new();
        let mut found = Vec::new();
        for mut chunk in chunks.iter().copied() {
            while let Some(frame) = framer.next(&mut chunk)? {
                found.push(frame.data.to_owned());
            }
        }
        while let Some(frame) = framer.end()? {
            found.push(frame.data.to_owned());
        }
        Ok(found)
    }

    fn check(input: &[u8], expected: &[&str]) {
        assert_eq!(frames(&[input]).unwrap(), expected, "whole");
        let single: Vec<&[u8]> = input.chunks(1).collect();
        assert_eq!(frames(&single).unwrap(), expected, "byte by byte");
    }

    #[test]
    fn lines() {
        check(b"{\"a\":1}\n{\"b\":2}\n", &["{\"a\":1}", "{\"b\":2}"]);
        check(b"{}\r\n\r\n \n{\"b\":2}", &["{}", "{\"b\":2}"]);
        check(b": ping\nevent: x\nid: 7\nretry: 1\ndata: {}\n\n", &["{}"]);
        check(b"\"\xff\"\n", &["\"\u{fffd}\""]);
        check(b"", &[]);
    }

    #[test]
    fn the_bound_holds_however_the_line_arrives() {
        let long = vec![b'x'; FRAME_BYTES_MAX + 1];
        assert_eq!(frames(&[&long]), Err(FrameTooLong));
        let pieces: Vec<&[u8]> = long.chunks(65_536).collect();
        assert_eq!(frames(&pieces), Err(FrameTooLong));
    }
}
