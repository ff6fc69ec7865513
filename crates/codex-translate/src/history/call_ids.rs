//! Call ids as an upstream sees them: its own where they are known, else Codex's, else derived from Codex's; never the
//! same twice.

use std::borrow::Cow;
use std::collections::HashSet;

use sha2::{Digest as _, Sha256};

/// Longest id of Codex's that goes upstream as it is; OpenAI refuses longer ones here.
pub const CALL_ID_CHARS_MAX: usize = 40;

/// What an upstream takes for an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Anything it made itself; otherwise letters, digits, `_` and `-`.
    Portable,
    /// Exactly nine letters or digits (Mistral).
    Short,
    /// Letters, digits, `_` and `-`, also in what it made itself (Anthropic).
    Strict,
}

/// Length of an id of [`Form::Short`].
const SHORT_CHARS: usize = 9;

/// Random-looking characters of a derived id.
const DERIVED_CHARS: usize = 24;

/// The ids of one request.
#[derive(Debug)]
pub(crate) struct CallIds<'r> {
    used: HashSet<Cow<'r, str>>,
    form: Form,
}

impl<'r> CallIds<'r> {
    pub(crate) fn new(form: Form) -> Self {
        Self { used: HashSet::new(), form }
    }

    /// The id for the next call, which Codex calls `call_id` and the upstream once called `upstream`, if that is known.
    pub(crate) fn assign(&mut self, call_id: &'r str, upstream: Option<&str>) -> Cow<'r, str> {
        if let Some(upstream) = upstream
            && self.is_own(upstream)
            && self.used.insert(Cow::Owned(upstream.to_owned()))
        {
            return Cow::Owned(upstream.to_owned());
        }
        let mut id = if self.is_portable(call_id) { Cow::Borrowed(call_id) } else { self.derived(call_id, 0) };
        let mut attempt = 0;
        while !self.used.insert(id.clone()) {
            attempt += 1;
            id = self.derived(call_id, attempt);
        }
        id
    }

    /// Whether an id that the upstream made is taken back.
    fn is_own(&self, id: &str) -> bool {
        match self.form {
            Form::Portable => !id.is_empty(),
            Form::Short => self.is_portable(id),
            Form::Strict => !id.is_empty() && id.bytes().all(is_id_byte),
        }
    }

    fn is_portable(&self, id: &str) -> bool {
        match self.form {
            Form::Short => id.len() == SHORT_CHARS && id.bytes().all(|byte| byte.is_ascii_alphanumeric()),
            Form::Portable | Form::Strict => (1..=CALL_ID_CHARS_MAX).contains(&id.len()) && id.bytes().all(is_id_byte),
        }
    }

    fn derived(&self, call_id: &str, attempt: u32) -> Cow<'static, str> {
        const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
        let digest = Sha256::new().chain_update(attempt.to_le_bytes()).chain_update(call_id).finalize();
        let (prefix, chars) = match self.form {
            Form::Portable => ("call_", DERIVED_CHARS),
            Form::Short => ("", SHORT_CHARS),
            Form::Strict => ("toolu_", DERIVED_CHARS),
        };
        let mut id = String::with_capacity(CALL_ID_CHARS_MAX);
        id.push_str(prefix);
        id.extend(digest.iter().take(chars).map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()])));
        Cow::Owned(id)
    }
}

fn is_id_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}
