//! State that Codex carries for us in the `encrypted_content` of `reasoning` and `compaction` items.
//!
//! Codex is stateless towards us and echoes that field byte for byte, so whatever an upstream wants back on the next
//! turn travels there: `cxp1:` + base64url(tag + JSON). The tag (HMAC-SHA256) proves that we wrote it, so that a
//! client cannot make us speak for a provider; the origin inside says which provider, model and account it belongs to,
//! because state of one is noise, or an error, to another.
//!
//! It hides nothing: the parts are what the model said to its own user. Damaged, forged and foreign state is ignored,
//! never an error, since Codex may drop or shorten old reasoning at any time.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// What every sealed text starts with; the digit is the version of the outer form.
pub const PREFIX: &str = "cxp1:";

/// Longest sealed text that is written or read.
///
/// Codex was seen to carry 200 kB in this field without loss; a reasoning trace of this size is beyond any model's
/// output limit, and everything in it is sent again with each request.
pub const SEALED_BYTES_MAX: usize = 1 << 20;

/// Version of the JSON inside. Version 1 knew no account: what it sealed is of use only where foreign state is.
const VERSION: u8 = 2;
/// The oldest version that is still read.
const VERSION_MIN: u8 = 1;

/// Bytes of an HMAC-SHA256 tag.
const TAG_BYTES: usize = 32;

/// One piece of upstream state.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// The text of `reasoning_content`, to go back as that field.
    ReasoningContent(String),
    /// The merged `reasoning_details` array, as JSON text.
    ReasoningDetails(String),
    /// The text of a think block that stood inside the content.
    InlineThink(String),
    /// Anthropic's blocks of thinking, signed or redacted: a JSON array, as text.
    ThinkingBlocks(String),
    /// The summary that a history was compacted to.
    Summary(String),
    /// Extra fields of a tool call (Gemini's thought signatures), as JSON text.
    ToolExtra {
        /// The call it belongs to, by the id Codex knows.
        call_id: String,
        /// The JSON object.
        extra_content: String,
    },
    /// The id a call had upstream, where Codex had to be given another.
    UpstreamId {
        /// The id Codex knows.
        call_id: String,
        /// The id the upstream knows.
        upstream_id: String,
    },
}

/// Where state came from, and the only place it may go back to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Provider id, as in [`crate::Target::provider`].
    pub provider: String,
    /// The upstream's name of the model, as in [`crate::Target::model`].
    pub model: String,
    /// The account there, as in [`crate::Target::account`].
    pub account: String,
}

/// A name for the account that `secret` opens, by which accounts are told apart and nothing else is told: without `key`,
/// which never leaves this machine, it cannot be tried whether a guessed secret fits.
pub fn account(key: &[u8; 32], secret: &[u8]) -> String {
    /// Enough to tell a person's accounts apart.
    const BYTES: usize = 8;
    let tag = mac(key, secret).finalize().into_bytes();
    tag[..BYTES].iter().fold(String::with_capacity(2 * BYTES), |text, byte| text + &format!("{byte:02x}"))
}

/// What a sealed text turned out to be.
#[derive(Clone, Debug, PartialEq)]
pub enum Opened {
    /// Ours, and for this very origin.
    Ours(Vec<Part>),
    /// Ours, but made by another provider, model or account, or by an earlier version: at most its readable text is of
    /// use.
    Foreign(Vec<Part>),
    /// Not ours: another product's state, damaged, forged, of a later version, or too long.
    Unknown,
}

#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    v: u8,
    provider: Cow<'a, str>,
    model: Cow<'a, str>,
    #[serde(default)]
    account: Cow<'a, str>,
    parts: Vec<Packed<'a>>,
}

/// A [`Part`] as it is written. The names are a promise: sessions outlive releases.
#[derive(Serialize, Deserialize)]
#[serde(tag = "k", rename_all = "snake_case")]
enum Packed<'a> {
    ReasoningContent { text: Cow<'a, str> },
    ReasoningDetails { v: Cow<'a, str> },
    ThinkInline { text: Cow<'a, str> },
    Anthropic { blocks: Cow<'a, str> },
    Summary { text: Cow<'a, str> },
    ToolExtra { call_id: Cow<'a, str>, extra_content: Cow<'a, str> },
    UpstreamId { call_id: Cow<'a, str>, id: Cow<'a, str> },
}

/// Writes `parts` so that [`open`] recognizes them.
///
/// A part that would make the text longer than [`SEALED_BYTES_MAX`] is left out whole: half a reasoning would be
/// a false one, and a missing one is something every reader has to cope with anyway. Without any part that fits, the
/// text still opens, to nothing.
pub fn seal(key: &[u8; 32], origin: &Origin, parts: &[Part]) -> String {
    // The longest part is what breaks the bound; ids and signatures are short and matter more.
    let mut by_length: Vec<usize> = (0..parts.len()).collect();
    by_length.sort_by_key(|index| parts[*index].bytes());
    let mut n_bytes: usize = parts.iter().map(Part::bytes).sum();
    loop {
        // Sealed they are a third longer at least: what cannot fit is not tried, since each try costs a pass over all.
        while n_bytes > SEALED_BYTES_MAX / 4 * 3
            && let Some(longest) = by_length.pop()
        {
            n_bytes -= parts[longest].bytes();
        }
        let mut kept = by_length.clone();
        kept.sort_unstable();
        let kept: Vec<&Part> = kept.into_iter().map(|index| &parts[index]).collect();
        let sealed = seal_all(key, origin, &kept);
        if sealed.len() <= SEALED_BYTES_MAX {
            return sealed;
        }
        let Some(longest) = by_length.pop() else { return sealed };
        n_bytes -= parts[longest].bytes();
    }
}

fn seal_all(key: &[u8; 32], origin: &Origin, parts: &[&Part]) -> String {
    let envelope = Envelope {
        v: VERSION,
        provider: Cow::Borrowed(&origin.provider),
        model: Cow::Borrowed(&origin.model),
        account: Cow::Borrowed(&origin.account),
        parts: parts.iter().map(|part| Packed::from(*part)).collect(),
    };
    let mut bytes = vec![0; TAG_BYTES];
    serde_json::to_writer(&mut bytes, &envelope).expect("strings and integers always have a JSON form");
    let (tag, json) = bytes.split_at_mut(TAG_BYTES);
    tag.copy_from_slice(&mac(key, json).finalize().into_bytes());

    let mut text = String::with_capacity(PREFIX.len() + bytes.len().div_ceil(3) * 4);
    text.push_str(PREFIX);
    URL_SAFE_NO_PAD.encode_string(&bytes, &mut text);
    text
}

/// Reads what [`seal`] wrote, for a request that goes to `origin`.
///
/// The tag is compared in constant time before anything inside is looked at.
pub fn open(key: &[u8; 32], origin: &Origin, text: &str) -> Opened {
    try_open(key, origin, text).unwrap_or(Opened::Unknown)
}

fn try_open(key: &[u8; 32], origin: &Origin, text: &str) -> Option<Opened> {
    if text.len() > SEALED_BYTES_MAX {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix(PREFIX)?).ok()?;
    let (tag, json) = bytes.split_at_checked(TAG_BYTES)?;
    mac(key, json).verify_slice(tag).ok()?;
    let envelope: Envelope<'_> = serde_json::from_slice(json).ok()?;
    if !(VERSION_MIN..=VERSION).contains(&envelope.v) {
        return None;
    }
    let Origin { provider, model, account } = origin;
    let ours = envelope.v == VERSION
        && envelope.provider == *provider
        && envelope.model == *model
        && envelope.account == *account;
    let parts = envelope.parts.into_iter().map(Part::from).collect();
    Some(if ours { Opened::Ours(parts) } else { Opened::Foreign(parts) })
}

fn mac(key: &[u8; 32], bytes: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(bytes);
    mac
}

impl Part {
    /// Bytes of its texts.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::ReasoningContent(text)
            | Self::ReasoningDetails(text)
            | Self::InlineThink(text)
            | Self::ThinkingBlocks(text)
            | Self::Summary(text) => text.len(),
            Self::ToolExtra { call_id, extra_content } => call_id.len() + extra_content.len(),
            Self::UpstreamId { call_id, upstream_id } => call_id.len() + upstream_id.len(),
        }
    }
}

impl<'a> From<&'a Part> for Packed<'a> {
    fn from(part: &'a Part) -> Self {
        match part {
            Part::ReasoningContent(text) => Self::ReasoningContent { text: text.into() },
            Part::ReasoningDetails(text) => Self::ReasoningDetails { v: text.into() },
            Part::InlineThink(text) => Self::ThinkInline { text: text.into() },
            Part::ThinkingBlocks(blocks) => Self::Anthropic { blocks: blocks.into() },
            Part::Summary(text) => Self::Summary { text: text.into() },
            Part::ToolExtra { call_id, extra_content } => {
                Self::ToolExtra { call_id: call_id.into(), extra_content: extra_content.into() }
            }
            Part::UpstreamId { call_id, upstream_id } => {
                Self::UpstreamId { call_id: call_id.into(), id: upstream_id.into() }
            }
        }
    }
}

impl From<Packed<'_>> for Part {
    fn from(packed: Packed<'_>) -> Self {
        match packed {
            Packed::ReasoningContent { text } => Self::ReasoningContent(text.into_owned()),
            Packed::ReasoningDetails { v } => Self::ReasoningDetails(v.into_owned()),
            Packed::ThinkInline { text } => Self::InlineThink(text.into_owned()),
            Packed::Anthropic { blocks } => Self::ThinkingBlocks(blocks.into_owned()),
            Packed::Summary { text } => Self::Summary(text.into_owned()),
            Packed::ToolExtra { call_id, extra_content } => {
                Self::ToolExtra { call_id: call_id.into_owned(), extra_content: extra_content.into_owned() }
            }
            Packed::UpstreamId { call_id, id } => {
                Self::UpstreamId { call_id: call_id.into_owned(), upstream_id: id.into_owned() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [7; 32];

    fn origin() -> Origin {
        Origin { provider: "zai".into(), model: "glm-4.7".into(), account: "3f2a".into() }
    }

    fn parts() -> Vec<Part> {
        vec![
            Part::ReasoningContent("Let me \"look\".\n".into()),
            Part::ReasoningDetails(r#"[{"type":"reasoning.text","text":"a"}]"#.into()),
            Part::InlineThink("hm, ünïcode 🦀".into()),
            Part::ThinkingBlocks(r#"[{"type":"thinking","thinking":"a","signature":"S"}]"#.into()),
            Part::Summary("what was \"done\"\n".into()),
            Part::ToolExtra { call_id: "call_1".into(), extra_content: r#"{"google":{}}"#.into() },
            Part::UpstreamId { call_id: "call_2".into(), upstream_id: "functions.x:0".into() },
        ]
    }

    #[test]
    fn round_trip() {
        let sealed = seal(&KEY, &origin(), &parts());
        assert_eq!(open(&KEY, &origin(), &sealed), Opened::Ours(parts()));
    }

    #[test]
    fn state_of_another_model_provider_or_account_is_foreign() {
        let sealed = seal(&KEY, &origin(), &parts());
        for other in [
            Origin { model: "glm-5".into(), ..origin() },
            Origin { provider: "openrouter".into(), ..origin() },
            Origin { account: String::new(), ..origin() },
        ] {
            assert_eq!(open(&KEY, &other, &sealed), Opened::Foreign(parts()), "{other:?}");
        }
    }

    #[test]
    fn accounts_are_told_apart_and_their_secrets_are_not_told() {
        let names = [account(&KEY, b"sk-one"), account(&KEY, b"sk-two"), account(&[8; 32], b"sk-one")];
        assert!(names.iter().all(|name| name.len() == 16 && !name.contains("one")), "{names:?}");
        assert!(names[0] != names[1] && names[0] != names[2], "{names:?}");
        assert_eq!(names[0], account(&KEY, b"sk-one"));
    }

    #[test]
    fn anything_else_is_unknown() {
        let sealed = seal(&KEY, &origin(), &parts());
        assert_eq!(open(&[8; 32], &origin(), &sealed), Opened::Unknown, "another key");
        for text in ["", "cxp1:", "cxp1:AAAA", "cxp1:%%%", "cxp2:AAAA", "opaque-provider-state==", "gAAAAAB"] {
            assert_eq!(open(&KEY, &origin(), text), Opened::Unknown, "{text:?}");
        }
        // Nothing is wrong with it but its length, which costs time before anything else is known.
        let long = Part::ReasoningContent("x".repeat(SEALED_BYTES_MAX));
        assert_eq!(open(&KEY, &origin(), &seal_all(&KEY, &origin(), &[&long])), Opened::Unknown);
    }

    #[test]
    fn every_single_changed_byte_is_noticed() {
        let sealed = seal(&KEY, &origin(), &parts()[..1]);
        for at in 0..sealed.len() {
            let mut bytes = sealed.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).expect("ASCII was replaced by ASCII");
            assert_eq!(open(&KEY, &origin(), &changed), Opened::Unknown, "byte {at}");
        }
    }

    fn sealed_as(json: &str) -> String {
        let mut bytes = mac(&KEY, json.as_bytes()).finalize().into_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    #[test]
    fn a_later_version_is_unknown() {
        let text = sealed_as(r#"{"v":3,"provider":"zai","model":"glm-4.7","account":"3f2a","parts":[]}"#);
        assert_eq!(open(&KEY, &origin(), &text), Opened::Unknown);
    }

    /// Sessions outlive releases: what an earlier one sealed is still read, as state from elsewhere.
    #[test]
    fn state_of_the_first_version_is_foreign_even_where_there_is_no_account() {
        let text = sealed_as(r#"{"v":1,"provider":"zai","model":"glm-4.7","parts":[{"k":"summary","text":"s"}]}"#);
        for account in ["3f2a", ""] {
            let origin = Origin { account: account.into(), ..origin() };
            assert_eq!(open(&KEY, &origin, &text), Opened::Foreign(vec![Part::Summary("s".into())]));
        }
    }

    #[test]
    fn what_does_not_fit_is_left_out_whole() {
        let id = Part::UpstreamId { call_id: "a".into(), upstream_id: "b".into() };
        let long = Part::ReasoningContent("x".repeat(SEALED_BYTES_MAX));
        let sealed = seal(&KEY, &origin(), &[long.clone(), id.clone()]);
        assert!(sealed.len() <= SEALED_BYTES_MAX);
        assert_eq!(open(&KEY, &origin(), &sealed), Opened::Ours(vec![id]));
        assert_eq!(open(&KEY, &origin(), &seal(&KEY, &origin(), &[long])), Opened::Ours(vec![]));
    }
}
