//! JSON that is read once, borrowed, and passed on as it came.
//!
//! A Codex request is a megabyte of history of which a translation changes a few hundred bytes. So values are
//! validated spans of the input ([`Raw`]), strings are kept in their escaped form ([`Str`]), and what is carried is
//! spliced: copied, never unescaped and escaped again.
//!
//! [`Reader`] accepts exactly what `serde_json` accepts into a `Value`, up to the same depth: strict grammar, no
//! trailing commas, no control characters in strings, no lone surrogates, no number beyond `f64`. Of two members with
//! one name the last counts, wherever this crate looks one up. Deliberately absent: numbers as numbers, and a tree.

use std::borrow::Cow;
use std::fmt;

use memchr::memchr;
use wide::u8x16;

/// Deepest nesting of arrays and objects; `serde_json` stops at the same depth. A tool's schema needs about ten.
pub const DEPTH_MAX: u32 = 127;

/// A JSON value as it stands in the text: valid, complete, without white space around it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Raw<'a>(&'a str);

/// A JSON string in its escaped form, without its quotes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Str<'a>(&'a str);

/// The type of a JSON value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `null`
    Null,
    /// `true` or `false`
    Bool,
    /// A number.
    Number,
    /// A string.
    String,
    /// An array.
    Array,
    /// An object.
    Object,
}

/// Why a text is not JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {at}")]
pub struct Error {
    /// Offset into the text, in bytes.
    pub at: usize,
    /// What is wrong there.
    pub what: &'static str,
}

/// Reads a text that must be one JSON value with nothing but white space around it.
pub fn parse(text: &str) -> Result<Raw<'_>, Error> {
    let mut reader = Reader::new(text);
    let value = reader.value()?;
    reader.finish()?;
    Ok(value)
}

/// Reads bytes that must be one JSON value in UTF-8.
pub fn parse_bytes(bytes: &[u8]) -> Result<Raw<'_>, Error> {
    parse(utf8(bytes)?)
}

/// The bytes as text, checked once for everything that is read from them.
pub fn utf8(bytes: &[u8]) -> Result<&str, Error> {
    simdutf8::compat::from_utf8(bytes).map_err(|error| Error { at: error.valid_up_to(), what: "invalid UTF-8" })
}

/// Walks through a JSON text from left to right, validating as it goes.
///
/// [`value`](Self::value) takes a whole value; [`enter_object`](Self::enter_object) and
/// [`enter_array`](Self::enter_array) step into one:
///
/// ```
/// # use codex_translate::json::{Error, Reader};
/// # fn main() -> Result<(), Error> {
/// let mut reader = Reader::new(r#"{"a": [1, {"deep": true}]}"#);
/// reader.enter_object()?;
/// while let Some(key) = reader.next_key()? {
///     let value = reader.value()?;
///     assert_eq!((key.escaped(), value.text()), ("a", r#"[1, {"deep": true}]"#));
/// }
/// reader.finish()
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    text: &'a str,
    at: usize,
    /// Arrays and objects entered and not yet left.
    depth: u32,
    /// An array or object was entered and nothing read from it yet, so no comma is due.
    fresh: bool,
    /// The block of the text that `specials` is about, counted from 0.
    block: usize,
    /// A bit for each byte of that block that may not stand in a string as it is.
    specials: u64,
}

impl<'a> Reader<'a> {
    /// Starts at the beginning of `text`.
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0, depth: 0, fresh: false, block: usize::MAX, specials: 0 }
    }

    /// The type of the value that comes next, judged by its first character.
    pub fn kind(&mut self) -> Result<Kind, Error> {
        self.white_space();
        match self.byte() {
            Some(b'"') => Ok(Kind::String),
            Some(b'{') => Ok(Kind::Object),
            Some(b'[') => Ok(Kind::Array),
            Some(b't' | b'f') => Ok(Kind::Bool),
            Some(b'n') => Ok(Kind::Null),
            Some(b'-' | b'0'..=b'9') => Ok(Kind::Number),
            _ => Err(self.error("expected a value")),
        }
    }

    /// Takes the next value whole.
    pub fn value(&mut self) -> Result<Raw<'a>, Error> {
        self.white_space();
        let start = self.at;
        self.skip_value()?;
        self.fresh = false;
        Ok(Raw(&self.text[start..self.at]))
    }

    /// Steps into an object; [`next_key`](Self::next_key) reads it.
    pub fn enter_object(&mut self) -> Result<(), Error> {
        self.enter(b'{', "expected an object")
    }

    /// Steps into an array; [`next_element`](Self::next_element) reads it.
    pub fn enter_array(&mut self) -> Result<(), Error> {
        self.enter(b'[', "expected an array")
    }

    /// The next member's name, after which its value must be taken or entered; `None` at the end of the object.
    pub fn next_key(&mut self) -> Result<Option<Str<'a>>, Error> {
        if self.leave(b'}', "expected `,` or `}`")? {
            return Ok(None);
        }
        self.key().map(Some)
    }

    /// Whether another element follows, which must then be taken or entered.
    pub fn next_element(&mut self) -> Result<bool, Error> {
        Ok(!self.leave(b']', "expected `,` or `]`")?)
    }

    /// Where the next value starts, in bytes.
    pub fn position(&mut self) -> usize {
        self.white_space();
        self.at
    }

    /// The value that began at `start`, a [`position`](Self::position) of this reader, and has just been left.
    pub fn since(&self, start: usize) -> Raw<'a> {
        Raw(&self.text[start..self.at])
    }

    /// Makes sure that nothing but white space is left.
    pub fn finish(mut self) -> Result<(), Error> {
        self.white_space();
        if self.at == self.text.len() { Ok(()) } else { Err(self.error("unexpected text after the value")) }
    }

    fn enter(&mut self, open: u8, what: &'static str) -> Result<(), Error> {
        self.white_space();
        if self.byte() != Some(open) {
            return Err(self.error(what));
        }
        if self.depth == DEPTH_MAX {
            return Err(self.error("nested too deeply"));
        }
        self.at += 1;
        self.depth += 1;
        self.fresh = true;
        Ok(())
    }

    /// Whether the container ends here; otherwise takes the comma that is due.
    fn leave(&mut self, close: u8, what: &'static str) -> Result<bool, Error> {
        self.white_space();
        match self.byte() {
            Some(byte) if byte == close => {
                self.at += 1;
                self.depth = self.depth.saturating_sub(1);
                self.fresh = false;
                Ok(true)
            }
            _ if self.fresh => {
                self.fresh = false;
                Ok(false)
            }
            Some(b',') => {
                self.at += 1;
                Ok(false)
            }
            _ => Err(self.error(what)),
        }
    }

    fn key(&mut self) -> Result<Str<'a>, Error> {
        self.white_space();
        if self.byte() != Some(b'"') {
            return Err(self.error("expected a member name in quotes"));
        }
        let start = self.at + 1;
        self.string()?;
        let key = Str(&self.text[start..self.at - 1]);
        self.white_space();
        if self.byte() != Some(b':') {
            return Err(self.error("expected `:`"));
        }
        self.at += 1;
        Ok(key)
    }

    /// Moves over one value, without recursion: a bit for each open container says whether it is an object.
    fn skip_value(&mut self) -> Result<(), Error> {
        let depth_max = DEPTH_MAX - self.depth;
        let mut depth = 0;
        let mut objects: u128 = 0;
        loop {
            self.white_space();
            match self.byte() {
                Some(b'"') => self.string()?,
                Some(open @ (b'{' | b'[')) => {
                    if depth == depth_max {
                        return Err(self.error("nested too deeply"));
                    }
                    let is_object = open == b'{';
                    self.at += 1;
                    self.white_space();
                    if self.byte() == Some(if is_object { b'}' } else { b']' }) {
                        self.at += 1;
                    } else {
                        depth += 1;
                        objects = objects << 1 | u128::from(is_object);
                        if is_object {
                            self.key()?;
                        }
                        continue;
                    }
                }
                Some(b'-' | b'0'..=b'9') => self.number()?,
                Some(b't') => self.word("true")?,
                Some(b'f') => self.word("false")?,
                Some(b'n') => self.word("null")?,
                _ => return Err(self.error("expected a value")),
            }
            // A value is complete: close what it closes, up to the next comma.
            loop {
                if depth == 0 {
                    return Ok(());
                }
                self.white_space();
                let in_object = objects & 1 == 1;
                match self.byte() {
                    Some(b',') => {
                        self.at += 1;
                        if in_object {
                            self.key()?;
                        }
                        break;
                    }
                    Some(b'}') if in_object => {}
                    Some(b']') if !in_object => {}
                    _ if in_object => return Err(self.error("expected `,` or `}`")),
                    _ => return Err(self.error("expected `,` or `]`")),
                }
                self.at += 1;
                depth -= 1;
                objects >>= 1;
            }
        }
    }

    /// Moves over a string; stands on its opening quote.
    fn string(&mut self) -> Result<(), Error> {
        let bytes = self.text.as_bytes();
        let mut at = self.at + 1;
        loop {
            at = self.next_special(at);
            match bytes.get(at) {
                Some(b'"') => break,
                Some(b'\\') => match bytes.get(at + 1) {
                    Some(b'n' | b'"' | b'\\') => at += 2,
                    _ => at += escape_length(bytes, at)?,
                },
                Some(_) => {
                    return Err(Error { at, what: "control character in a string" });
                }
                None => {
                    return Err(Error { at, what: "unterminated string" });
                }
            }
        }
        self.at = at + 1;
        Ok(())
    }

    /// Position of the next quote, backslash or control character at `at` or behind it; the end if there is none.
    #[inline]
    fn next_special(&mut self, at: usize) -> usize {
        let mut block = at / BLOCK_BYTES;
        if block != self.block {
            self.load(block);
        }
        let mut specials = self.specials & (u64::MAX << (at % BLOCK_BYTES));
        while specials == 0 {
            block += 1;
            if block * BLOCK_BYTES >= self.text.len() {
                return self.text.len();
            }
            self.load(block);
            specials = self.specials;
        }
        block * BLOCK_BYTES + specials.trailing_zeros() as usize
    }

    #[inline]
    fn load(&mut self, block: usize) {
        self.block = block;
        self.specials = specials(self.text.as_bytes().get(block * BLOCK_BYTES..).unwrap_or_default());
    }

    fn number(&mut self) -> Result<(), Error> {
        let start = self.at;
        if self.byte() == Some(b'-') {
            self.at += 1;
        }
        if self.byte() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        let mut may_overflow = self.at - start > F64_DIGITS_SAFE;
        if self.byte() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.byte() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.byte() {
                self.at += 1;
            }
            self.digits()?;
            may_overflow = true;
        }
        if may_overflow && !self.text[start..self.at].parse::<f64>().is_ok_and(f64::is_finite) {
            return Err(Error { at: start, what: "number out of range" });
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Error> {
        let rest = &self.text.as_bytes()[self.at..];
        let count = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
        self.at += count;
        if count == 0 { Err(self.error("expected a digit")) } else { Ok(()) }
    }

    fn word(&mut self, word: &str) -> Result<(), Error> {
        if self.text.as_bytes()[self.at..].starts_with(word.as_bytes()) {
            self.at += word.len();
            Ok(())
        } else {
            Err(self.error("expected a value"))
        }
    }

    #[inline]
    fn white_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.byte() {
            self.at += 1;
        }
    }

    #[inline]
    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn error(&self, what: &'static str) -> Error {
        Error { at: self.at, what }
    }
}

/// Bytes that are looked at together.
const BLOCK_BYTES: usize = 64;

/// A bit for each of the first [`BLOCK_BYTES`] bytes that a JSON string must escape: a quote, a backslash, a control
/// character.
///
/// Nearly all time spent on a request is spent here. On a history full of short lines `memchr2` for each of them takes
/// twice as long in all, and arithmetic on words of eight bytes 1.7 times.
#[inline]
fn specials(bytes: &[u8]) -> u64 {
    let Some(block) = bytes.first_chunk::<BLOCK_BYTES>() else {
        let mut block = [b' '; BLOCK_BYTES];
        block[..bytes.len()].copy_from_slice(bytes);
        return specials(&block);
    };
    let (lanes, _) = block.as_chunks::<16>();
    lanes.iter().rev().fold(0, |bits, lane| {
        let lane = u8x16::new(*lane);
        let is_control = lane.min(u8x16::splat(0x1F)).simd_eq(lane);
        let special = is_control | lane.simd_eq(u8x16::splat(b'"')) | lane.simd_eq(u8x16::splat(b'\\'));
        bits << 16 | u64::from(special.to_bitmask())
    })
}

/// A number with fewer digits before its point, and no exponent, cannot leave the range of `f64`.
const F64_DIGITS_SAFE: usize = 300;

/// Length of the escape sequence whose backslash stands at `at`. Surrogates count as one sequence, in pairs.
fn escape_length(bytes: &[u8], at: usize) -> Result<usize, Error> {
    let error = |what| Error { at, what };
    match bytes.get(at + 1) {
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(2),
        Some(b'u') => match hex4(bytes, at + 2).ok_or(error("invalid escape sequence"))? {
            0xD800..=0xDBFF => match (bytes.get(at + 6..at + 8), hex4(bytes, at + 8)) {
                (Some(br"\u"), Some(0xDC00..=0xDFFF)) => Ok(12),
                _ => Err(error("lone surrogate in a string")),
            },
            0xDC00..=0xDFFF => Err(error("lone surrogate in a string")),
            _ => Ok(6),
        },
        _ => Err(error("invalid escape sequence")),
    }
}

fn hex4(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.iter().try_fold(0, |value, byte| Some(value << 4 | char::from(*byte).to_digit(16)?))
}

impl<'a> Raw<'a> {
    /// `null`, for members that are not there.
    pub const NULL: Raw<'static> = Raw("null");

    /// The text of the value, as it came.
    pub fn text(self) -> &'a str {
        self.0
    }

    /// The type of the value.
    pub fn kind(self) -> Kind {
        match self.0.as_bytes().first() {
            Some(b'"') => Kind::String,
            Some(b'{') => Kind::Object,
            Some(b'[') => Kind::Array,
            Some(b't' | b'f') => Kind::Bool,
            Some(b'n') | None => Kind::Null,
            Some(_) => Kind::Number,
        }
    }

    /// Whether the value is `null`.
    pub fn is_null(self) -> bool {
        self.kind() == Kind::Null
    }

    /// The string, if the value is one.
    pub fn as_str(self) -> Option<Str<'a>> {
        self.0.strip_prefix('"')?.strip_suffix('"').map(Str)
    }

    /// The truth value, if the value is one.
    pub fn as_bool(self) -> Option<bool> {
        match self.0 {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        }
    }

    /// The number, if the value is a whole one that is not negative and fits.
    pub fn as_u64(self) -> Option<u64> {
        if self.kind() == Kind::Number { self.0.parse().ok() } else { None }
    }

    /// The members of an object, in order, repeated names included; nothing for any other value.
    pub fn entries(self) -> Entries<'a> {
        Entries(self.inside(Kind::Object))
    }

    /// The elements of an array, in order; nothing for any other value.
    pub fn elements(self) -> Elements<'a> {
        Elements(self.inside(Kind::Array))
    }

    /// The member `name` of an object, the last one if there are several; `None` also for any other value.
    pub fn get(self, name: &str) -> Option<Raw<'a>> {
        self.entries().filter(|(key, _)| key.is(name)).last().map(|(_, value)| value)
    }

    fn inside(self, kind: Kind) -> Reader<'a> {
        let mut reader = Reader::new(self.0);
        // For any other kind the reader stays before the value, where neither iterator finds anything.
        let _entered = self.kind() == kind
            && match kind {
                Kind::Object => reader.enter_object().is_ok(),
                _ => reader.enter_array().is_ok(),
            };
        reader
    }
}

impl fmt::Debug for Raw<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// The members of an object; see [`Raw::entries`].
#[derive(Clone, Debug)]
pub struct Entries<'a>(Reader<'a>);

impl<'a> Iterator for Entries<'a> {
    type Item = (Str<'a>, Raw<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        // Errors cannot happen inside a `Raw`, which is valid by construction; depth 0 means "left, or never entered".
        if self.0.depth == 0 {
            return None;
        }
        let key = self.0.next_key().ok()??;
        Some((key, self.0.value().ok()?))
    }
}

/// The elements of an array; see [`Raw::elements`].
#[derive(Clone, Debug)]
pub struct Elements<'a>(Reader<'a>);

impl<'a> Iterator for Elements<'a> {
    type Item = Raw<'a>;

    fn next(&mut self) -> Option<Raw<'a>> {
        // As in `Entries`.
        if self.0.depth == 0 || !self.0.next_element().ok()? {
            return None;
        }
        self.0.value().ok()
    }
}

impl<'a> Str<'a> {
    /// The empty string.
    pub const EMPTY: Str<'static> = Str("");

    /// A string of the program's own; `text` must need no escapes, which the test of each caller shows.
    pub(crate) const fn literal(text: &'static str) -> Str<'static> {
        Str(text)
    }

    /// The string in its escaped form, to be spliced between two quotes.
    pub fn escaped(self) -> &'a str {
        self.0
    }

    /// Whether the string has no characters.
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// Whether the string ends with a line feed, as JSON writers escape it.
    pub fn ends_line(self) -> bool {
        let Some(before) = self.0.strip_suffix('n') else {
            return false;
        };
        // An even number of backslashes are escaped ones, before a plain `n`.
        (before.len() - before.trim_end_matches('\\').len()) % 2 == 1
    }

    /// Whether the string has nothing but white space in it.
    pub fn is_blank(self) -> bool {
        // Nearly every string shows by its first character that it is not; the others need a closer look.
        match self.0.as_bytes() {
            [b'\\', b'n' | b'r' | b't' | b'f' | b'u', ..] => self.decode().trim().is_empty(),
            [b'\\', ..] => false,
            [first, ..] if first.is_ascii_graphic() => false,
            _ => self.decode().trim().is_empty(),
        }
    }

    /// Whether the string is `text`.
    pub fn is(self, text: &str) -> bool {
        // Escapes only ever make a string longer.
        self.0 == text && !text.contains('\\') || self.0.len() > text.len() && self.decode() == text
    }

    /// The string itself; borrowed when it has no escapes.
    pub fn decode(self) -> Cow<'a, str> {
        if memchr(b'\\', self.0.as_bytes()).is_none() {
            return Cow::Borrowed(self.0);
        }
        let mut text = String::with_capacity(self.0.len());
        self.decode_into(&mut text);
        Cow::Owned(text)
    }

    /// Appends the string itself to `out`.
    pub fn decode_into(self, out: &mut String) {
        let mut rest = self.0;
        while let Some(at) = memchr(b'\\', rest.as_bytes()) {
            out.push_str(&rest[..at]);
            let bytes = rest.as_bytes();
            // A `Str` is valid by construction, so the length is never refused; stopping is the safe answer if it were.
            let Ok(length) = escape_length(bytes, at) else { return };
            out.push(match bytes[at + 1] {
                b'b' => '\u{8}',
                b'f' => '\u{c}',
                b'n' => '\n',
                b'r' => '\r',
                b't' => '\t',
                b'u' => unescape_unicode(bytes, at),
                other => char::from(other),
            });
            rest = &rest[at + length..];
        }
        out.push_str(rest);
    }
}

/// The character of a `\uXXXX` or `\uXXXX\uXXXX` at `at`.
fn unescape_unicode(bytes: &[u8], at: usize) -> char {
    let first = hex4(bytes, at + 2).unwrap_or_default();
    let code = match hex4(bytes, at + 8) {
        Some(second) if (0xD800..0xDC00).contains(&first) => 0x10000 + ((first & 0x3FF) << 10) + (second & 0x3FF),
        _ => first,
    };
    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
}

impl fmt::Debug for Str<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0)
    }
}

/// Appends `text` as a JSON string, with its quotes.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    write_escaped(out, text);
    out.push(b'"');
}

/// Appends `text` as the inside of a JSON string.
///
/// For the escaped form of a string this writes it escaped twice, which is what JSON inside a JSON string needs.
pub fn write_escaped(out: &mut Vec<u8>, text: &str) {
    for block in text.as_bytes().chunks(BLOCK_BYTES) {
        let mut specials = specials(block);
        let mut start = 0;
        while specials != 0 {
            let at = specials.trailing_zeros() as usize;
            specials &= specials - 1;
            out.extend_from_slice(&block[start..at]);
            start = at + 1;
            match block[at] {
                b'"' => out.extend_from_slice(br#"\""#),
                b'\\' => out.extend_from_slice(br"\\"),
                b'\n' => out.extend_from_slice(br"\n"),
                b'\r' => out.extend_from_slice(br"\r"),
                b'\t' => out.extend_from_slice(br"\t"),
                0x08 => out.extend_from_slice(br"\b"),
                0x0C => out.extend_from_slice(br"\f"),
                control => {
                    out.extend_from_slice(br"\u00");
                    out.push(HEX[usize::from(control >> 4)]);
                    out.push(HEX[usize::from(control & 15)]);
                }
            }
        }
        out.extend_from_slice(&block[start..]);
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// The payload with each surrogate that lacks its other half replaced, if it has any.
///
/// Hosts that cut JavaScript strings by length cut pairs in two, and escape the halves: correct JSON by its grammar,
/// but no text.
pub(crate) fn without_lone_surrogates(payload: &str) -> Option<String> {
    const REPLACEMENT: &str = "\\ufffd";
    let hex4 = |at: usize| {
        let digits = payload.get(at..at + 4)?;
        digits.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| u16::from_str_radix(digits, 16).ok())?
    };
    let bytes = payload.as_bytes();
    let mut repaired = String::new();
    let (mut kept, mut at) = (0, 0);
    while let Some(found) = memchr(b'\\', &bytes[at..]) {
        at += found;
        let unit = if bytes.get(at + 1) == Some(&b'u') { hex4(at + 2) } else { None };
        let Some(unit) = unit else {
            at += 2;
            if at >= bytes.len() {
                break;
            }
            continue;
        };
        let low = (bytes.get(at + 6..at + 8) == Some(br"\u")).then(|| hex4(at + 8)).flatten();
        match unit {
            0xD800..=0xDBFF if matches!(low, Some(0xDC00..=0xDFFF)) => at += 12,
            0xD800..=0xDFFF => {
                repaired.push_str(&payload[kept..at]);
                repaired.push_str(REPLACEMENT);
                at += 6;
                kept = at;
            }
            _ => at += 6,
        }
    }
    if kept == 0 {
        return None;
    }
    repaired.push_str(&payload[kept..]);
    Some(repaired)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    /// This reader and `serde_json` must agree on every byte string.
    fn agrees_with_serde_json(bytes: &[u8]) {
        let theirs = serde_json::from_slice::<Value>(bytes);
        match parse_bytes(bytes) {
            Ok(raw) => {
                let theirs = theirs.unwrap_or_else(|error| panic!("accepted {:?}: {error}", raw.text()));
                assert_eq!(value(raw), theirs);
            }
            Err(error) => assert!(theirs.is_err(), "refused {:?}: {error}", String::from_utf8_lossy(bytes)),
        }
    }

    /// Rebuilds a tree through the accessors alone.
    fn value(raw: Raw<'_>) -> Value {
        match raw.kind() {
            Kind::Null => Value::Null,
            Kind::Bool => raw.as_bool().expect("a Bool is one").into(),
            Kind::Number => raw.text().parse::<serde_json::Number>().expect("a Number is one").into(),
            Kind::String => raw.as_str().expect("a String is one").decode().into(),
            Kind::Array => raw.elements().map(value).collect(),
            Kind::Object => raw.entries().map(|(key, member)| (key.decode().into_owned(), value(member))).collect(),
        }
    }

    #[test]
    fn grammar() {
        for text in [
            "",
            " ",
            "null",
            " null ",
            "nul",
            "nulll",
            "true",
            "tru",
            "false",
            "fals",
            "truefalse",
            "1 2",
            "[]",
            "[ ]",
            "[1]",
            "[1,2]",
            "[1,]",
            "[,1]",
            "[1 2]",
            "[",
            "]",
            "[1",
            "[1,",
            "{}",
            "{ }",
            r#"{"a":1}"#,
            r#"{"a":1,}"#,
            r#"{"a" : 1 , "b":2}"#,
            r#"{"a"}"#,
            r#"{"a":}"#,
            r"{a:1}",
            r#"{"a":1 "b":2}"#,
            "{,}",
            "{",
            "}",
            r#"{"a""#,
            r#"{"a":1]"#,
            "[1}",
            r#"[{"a":[{}]}]"#,
            "0",
            "-0",
            "-",
            "01",
            "00",
            "1.",
            ".5",
            "1.5",
            "1e5",
            "1E+5",
            "1e-5",
            "1e",
            "1e+",
            "-1.25e-10",
            "1e400",
            "-1e400",
            "0e400",
            "1e-400",
            "1e99999999999999999999",
            "+1",
            "0x10",
            "18446744073709551616",
            "Infinity",
            "NaN",
            r#""""#,
            r#"""#,
            r#""a"#,
            r#""\""#,
            r#""\\""#,
            r#""\n\/\b\f\r\t""#,
            r#""\x""#,
            r#""\u0041""#,
            r#""\u00""#,
            r#""\u00zz""#,
            r#""\ud83e\udd80""#,
            r#""\ud83e""#,
            r#""\ud83ea""#,
            r#""\ud83e\u0041""#,
            r#""\udd80""#,
            r#""\uD83E\uDD80 x""#,
            "\"\u{1f}\"",
            "\"\t\"",
            "\"\u{7f}\"",
            "\"🦀\"",
            "\u{feff}1",
            "\u{a0}1",
            "1\u{0}",
            "[1]x",
            r#"{"a":1,"a":2}"#,
            r#"{"a\u0062":1}"#,
            "\n\r\t 1 \n\r\t",
            "\u{c}1",
        ] {
            agrees_with_serde_json(text.as_bytes());
        }
        for bytes in [&b"\xff"[..], b"\"\xff\"", b"\"\xf0\x9f\xa6\"", b"\xef\xbb\xbf1"] {
            agrees_with_serde_json(bytes);
        }
        agrees_with_serde_json(format!("{}1", "9".repeat(400)).as_bytes());
        agrees_with_serde_json(format!("{}.5", "9".repeat(200)).as_bytes());
    }

    #[test]
    fn depth_ends_where_serde_json_ends() {
        for depth in [DEPTH_MAX, DEPTH_MAX + 1] {
            let depth = depth as usize;
            for (open, close) in [("[", "]"), (r#"{"a":"#, "}"), (r#"[{"a":"#, "}]")] {
                let levels = depth / open.matches(['[', '{']).count();
                agrees_with_serde_json(format!("{}1{}", open.repeat(levels), close.repeat(levels)).as_bytes());
            }
            agrees_with_serde_json(format!("{}{}", "[".repeat(depth), "]".repeat(depth)).as_bytes());
        }
        let too_deep = "[".repeat(DEPTH_MAX as usize + 1);
        assert_eq!(parse(&too_deep), Err(Error { at: DEPTH_MAX as usize, what: "nested too deeply" }));

        let mut reader = Reader::new(&too_deep);
        let entered = std::iter::repeat_with(|| reader.enter_array().is_ok()).take_while(|entered| *entered).count();
        assert_eq!(entered, DEPTH_MAX as usize);

        // Entering counts like skipping.
        let nested = format!("{}{}", "[".repeat(DEPTH_MAX as usize), "]".repeat(DEPTH_MAX as usize));
        let text = format!("[{nested}]");
        let mut reader = Reader::new(&text);
        reader.enter_array().unwrap();
        assert_eq!(reader.next_element(), Ok(true));
        assert_eq!(reader.value().unwrap_err().what, "nested too deeply");
    }

    #[test]
    fn errors_name_the_place() {
        for (text, at, what) in [
            (r#"{"a":1"#, 6, "expected `,` or `}`"),
            (r#"{"a" 1}"#, 5, "expected `:`"),
            (r#"["a\q"]"#, 3, "invalid escape sequence"),
            ("[\"a\nb\"]", 3, "control character in a string"),
            ("[1] x", 4, "unexpected text after the value"),
            (r#"["abc"#, 5, "unterminated string"),
        ] {
            assert_eq!(parse(text), Err(Error { at, what }), "{text}");
        }
        assert_eq!(parse_bytes(b"\"a\xff\""), Err(Error { at: 2, what: "invalid UTF-8" }));
    }

    #[test]
    fn of_two_members_the_last_counts() {
        let raw = parse(r#"{"a":1,"b":2,"\u0061":3}"#).unwrap();
        assert_eq!(raw.get("a").map(Raw::text), Some("3"));
        assert_eq!(raw.get("c"), None);
        assert_eq!(parse("[1]").unwrap().get("a"), None);
    }

    #[test]
    fn accessors_refuse_other_kinds() {
        let number = parse("1").unwrap();
        assert_eq!((number.as_str(), number.as_bool(), number.as_u64()), (None, None, Some(1)));
        assert_eq!(number.elements().count() + number.entries().count(), 0);
        let string = parse(r#""[1]""#).unwrap();
        assert_eq!((string.as_u64(), string.elements().count()), (None, 0));
        for text in ["-1", "1.5", "1e3", "18446744073709551616", "\"1\""] {
            assert_eq!(parse(text).unwrap().as_u64(), None, "{text}");
        }
        assert_eq!(parse("{}").unwrap().elements().count(), 0);
        assert_eq!(parse("[]").unwrap().entries().count(), 0);
    }

    #[test]
    fn strings_compare_by_what_they_mean() {
        let str = |text| parse(text).unwrap().as_str().unwrap();
        assert!(str(r#""type""#).is("type"));
        assert!(str(r#""t\u0079pe""#).is("type"));
        assert!(!str(r#""type ""#).is("type"));
        assert!(str(r#""a\\b""#).is(r"a\b"));
        assert!(!str(r#""a\nb""#).is(r"a\nb"));
        assert!(matches!(str(r#""plain""#).decode(), Cow::Borrowed("plain")));
    }

    #[test]
    fn the_end_of_a_line_is_seen() {
        for text in [r#""""#, r#""a""#, r#""n""#, r#""\\n""#, r#""\n""#, r#""a\\\n""#, r#""a\n ""#, r#""\u000a""#] {
            let str = parse(text).unwrap().as_str().unwrap();
            let written_short = !text.contains('u');
            assert_eq!(str.ends_line(), written_short && str.decode().ends_with('\n'), "{text}");
        }
    }

    /// Pieces of JSON, so that random sequences come near enough to valid texts to be of interest.
    fn token() -> impl Strategy<Value = String> {
        prop_oneof![
            prop::sample::select(vec![
                "{", "}", "[", "]", ",", ":", "\"", "\\", "\\u", "d83e", "\\ud83e", "\\udd80", "null", "true", "false",
                "-", "0", "1", ".", "e", "E+", " ", "\n", "\"a\"", "\"a\":", "{}", "[]", "\u{1}", "é", "\\n", "1e400",
            ])
            .prop_map(str::to_owned),
            "\\PC{0,3}",
        ]
    }

    /// A valid value of moderate size.
    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_filter_map("finite", |number| serde_json::Number::from_f64(number).map(Value::from)),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 64, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::hash_map(any::<String>(), inner, 0..6)
                    .prop_map(|members| members.into_iter().collect::<Value>()),
            ]
        })
    }

    #[test]
    fn lone_surrogates_are_replaced_and_pairs_kept() {
        let rows = [
            (r#""a\ud83e""#, Some(r#""a\ufffd""#)),
            (r#""\udd80b\u0041""#, Some(r#""\ufffdb\u0041""#)),
            (r#""\ud83e\ud83e\udd80""#, Some(r#""\ufffd\ud83e\udd80""#)),
            (r#""\ud83e\udd80 \\ud83e \n""#, None),
            (r#""plain \"#, None),
            (r#""\u12"#, None),
            (r#""\ud8é""#, None),
        ];
        for (payload, expected) in rows {
            assert_eq!(without_lone_surrogates(payload).as_deref(), expected, "{payload}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            agrees_with_serde_json(&bytes);
        }

        #[test]
        fn any_tokens(tokens in prop::collection::vec(token(), 0..24)) {
            agrees_with_serde_json(tokens.concat().as_bytes());
        }

        #[test]
        fn trees_survive(tree in tree(), pretty: bool) {
            let text = if pretty { serde_json::to_string_pretty(&tree) } else { serde_json::to_string(&tree) };
            agrees_with_serde_json(text.unwrap().as_bytes());
        }

        #[test]
        fn mutated_trees(tree in tree(), at in any::<prop::sample::Index>(), byte: u8, cut: bool) {
            let mut bytes = serde_json::to_vec(&tree).unwrap();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] = byte }
            agrees_with_serde_json(&bytes);
        }

        #[test]
        fn written_strings_are_read_back(text: String) {
            let mut out = Vec::new();
            write_string(&mut out, &text);
            prop_assert_eq!(&out, &serde_json::to_vec(&text).unwrap());
            let raw = parse_bytes(&out).unwrap().as_str().unwrap();
            prop_assert_eq!(raw.decode(), text.as_str());

            // Escaped twice: a string in a string.
            let mut twice = vec![b'"'];
            write_escaped(&mut twice, std::str::from_utf8(&out).unwrap());
            twice.push(b'"');
            let once = parse_bytes(&twice).unwrap().as_str().unwrap().decode();
            prop_assert_eq!(once.as_bytes(), &out[..]);
        }
    }
}
