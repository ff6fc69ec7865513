//! Removes what looks like a secret from text we did not write: provider errors, logs of other programs.
//!
//! Our own secrets are kept out by type ([`crate::Secret`]); this is the second net, at the edges.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::{LazyLock, PoisonError, RwLock};

use regex_lite::Regex;

use crate::Secret;

/// What takes the place of a secret.
pub const REDACTED: &str = "[redacted]";

/// Shapes of secrets, each with the vendors that use it. Alternatives are ordered from specific to general.
const SHAPES: &str = concat!(
    r"(?:\bsk-[A-Za-z0-9_\-]{8,}", // OpenAI, Anthropic, OpenRouter, DeepSeek, …
    r"|\b(?:gsk|xai|pk|rk|ghp|gho|ghs|github_pat|hf|nvapi|csk|fw|pplx|r8)[_-][A-Za-z0-9_\-]{12,}", // Groq, xAI, GitHub, Hugging Face, NVIDIA, …
    r"|\bAIza[A-Za-z0-9_\-]{20,}",                                                                 // Google API keys
    r"|\bya29\.[A-Za-z0-9_\-.]{10,}|\b1//[A-Za-z0-9_\-]{20,}", // Google OAuth access and refresh tokens
    r"|\beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{4,}(?:\.[A-Za-z0-9_\-]*)?", // JSON web tokens
    r"|\bAKIA[A-Z0-9]{12,}",                                   // AWS
    r"|\bxox[a-z]-[A-Za-z0-9\-]{10,}|\bglpat-[A-Za-z0-9_\-]{12,}|\bGOCSPX-[A-Za-z0-9_\-]{12,}", // Slack, GitLab, Google OAuth clients
    r"|\b[sr]k_(?:live|test)_[A-Za-z0-9]{8,}",                                                  // Stripe
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[A-Za-z0-9+/=\s\\]*(?:-----END [A-Z ]*PRIVATE KEY-----)?", // PEM
    r"|\b[a-f0-9]{32}\.[A-Za-z0-9]{8,}",                                                        // Z.AI
    r"|\b[A-Fa-f0-9]{40,}\b", // long hexadecimal, our own tokens included
    r")",
);

/// A name, a separator, a value: the value goes, the name stays.
const NAMED: &str = concat!(
    r#"(?i)((?:api[_-]?key|x-api-key|x-goog-api-key|authorization|proxy-authorization|access[_-]?token|refresh[_-]?token|id[_-]?token|client[_-]?secret|secret|password|passwd|set-cookie|cookie|session[_-]?token)["']?\s*[:=]\s*["']?)"#,
    r#"((?:bearer\s+|basic\s+)?[^\s"',;&}]{4,})"#,
);

/// A key in the query of a URL.
const QUERY: &str = r"(?i)([?&](?:key|token|sig|signature)=)[^\s&\x22'#]{4,}";

/// `Bearer …` on its own.
const BEARER: &str = r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/\-]{8,}=*";

/// `user:password@` in a URL.
const USERINFO: &str = r"(://)[^/\s:@]+:[^/\s@]+@";

static SHAPES_RE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(SHAPES).expect("a constant pattern, compiled by a test"));
static NAMED_RE: LazyLock<Regex> = LazyLock::new(|| Regex::new(NAMED).expect("a constant pattern, compiled by a test"));
static QUERY_RE: LazyLock<Regex> = LazyLock::new(|| Regex::new(QUERY).expect("a constant pattern, compiled by a test"));
static BEARER_RE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(BEARER).expect("a constant pattern, compiled by a test"));
static USERINFO_RE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(USERINFO).expect("a constant pattern, compiled by a test"));

/// A shape, and what tells at a glance that it is not there: most text holds no secret, and the engine for patterns is a
/// small one that takes its time.
struct Pattern {
    regex: &'static LazyLock<Regex>,
    replacement: &'static str,
    /// Never `false` where the pattern matches.
    may_match: fn(&[u8]) -> bool,
}

/// In the order in which they are looked for.
static PATTERNS: [Pattern; 5] = [
    Pattern { regex: &NAMED_RE, replacement: "${1}[redacted]", may_match: may_be_named },
    Pattern { regex: &QUERY_RE, replacement: "${1}[redacted]", may_match: may_be_in_query },
    Pattern { regex: &BEARER_RE, replacement: "${1} [redacted]", may_match: may_be_bearer },
    Pattern { regex: &USERINFO_RE, replacement: "${1}[redacted]@", may_match: may_be_userinfo },
    Pattern { regex: &SHAPES_RE, replacement: REDACTED, may_match: has_shape },
];

/// What `\s` matches.
fn is_space(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | b' ')
}

/// Whether `text` ends with one of `words` (lower case), in any case.
fn ends_with(text: &[u8], words: &[&str]) -> bool {
    words.iter().any(|word| {
        text.len().checked_sub(word.len()).is_some_and(|at| text[at..].eq_ignore_ascii_case(word.as_bytes()))
    })
}

/// Whether a separator follows one of the names' ends.
fn may_be_named(text: &[u8]) -> bool {
    const ENDS: [&str; 7] = ["key", "authorization", "token", "secret", "password", "passwd", "cookie"];
    let mut separators = text.iter().enumerate().filter(|(_, byte)| matches!(byte, b':' | b'='));
    separators.any(|(at, _)| {
        let before = text[..at].iter().rposition(|byte| !is_space(*byte)).map_or(&[][..], |last| &text[..=last]);
        let before = before.strip_suffix(b"\"").or_else(|| before.strip_suffix(b"'")).unwrap_or(before);
        ends_with(before, &ENDS)
    })
}

fn may_be_in_query(text: &[u8]) -> bool {
    let mut values = text.iter().enumerate().filter(|(_, byte)| **byte == b'=');
    values.any(|(at, _)| ends_with(&text[..at], &["key", "token", "sig", "signature"]))
}

fn may_be_bearer(text: &[u8]) -> bool {
    let mut spaces = text.iter().enumerate().filter(|(_, byte)| is_space(**byte));
    spaces.any(|(at, _)| ends_with(&text[..at], &["bearer", "basic"]))
}

fn may_be_userinfo(text: &[u8]) -> bool {
    text.contains(&b'@') && text.windows(3).any(|three| three == b"://")
}

/// Whether a word has the shape of a secret: all shapes but that of a key in armour are single words, of this alphabet.
fn has_shape(text: &[u8]) -> bool {
    /// Shorter ones have none.
    const WORD_BYTES_MIN: usize = 11;
    const ARMOUR: &[u8] = b"-----BEGIN ";
    let is_in_word = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'/');
    let mut words = text.split(|byte| !is_in_word(byte)).filter(|word| word.len() >= WORD_BYTES_MIN);
    words.any(|word| std::str::from_utf8(word).is_ok_and(|word| SHAPES_RE.is_match(word)))
        || text.windows(ARMOUR.len()).any(|start| start == ARMOUR)
}

/// Secrets of this process that [`redact`] knows by their value; of more, the oldest is forgotten.
const KNOWN_MAX: usize = 32;
/// What is shorter may stand in any text, and is no secret that lasts. The beginning of a known one goes from here on.
const KNOWN_BYTES_MIN: usize = 8;

static KNOWN: RwLock<VecDeque<Secret>> = RwLock::new(VecDeque::new());

/// From now on [`redact`] removes `secret` in this process, whatever its shape.
pub fn never_show(secret: &Secret) {
    if secret.expose().len() < KNOWN_BYTES_MIN {
        return;
    }
    let is_known = |known: &VecDeque<Secret>| known.contains(secret);
    if is_known(&KNOWN.read().unwrap_or_else(PoisonError::into_inner)) {
        return;
    }
    let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
    if known.len() == KNOWN_MAX {
        known.pop_front();
    }
    known.push_back(secret.clone());
}

/// Whether a header's name or its value's shape says that the value is a secret.
pub fn is_secret_header(name: &str, value: &str) -> bool {
    /// Parts of the names of such headers.
    const NAMES: [&str; 6] = ["auth", "cookie", "key", "secret", "session", "token"];
    let name = name.to_ascii_lowercase();
    NAMES.iter().any(|part| name.contains(part)) || redact(value) != value
}

/// Removes `secret`, and its beginning where the text was cut.
fn without<'a>(text: Cow<'a, str>, secret: &str) -> Cow<'a, str> {
    let beginning = secret.get(..KNOWN_BYTES_MIN).unwrap_or(secret);
    if !text.contains(beginning) {
        return text;
    }
    let mut rest = text.as_ref();
    let mut out = String::with_capacity(rest.len());
    while let Some(at) = rest.find(beginning) {
        let same = rest[at..].bytes().zip(secret.bytes()).take_while(|(one, other)| one == other).count();
        // Equal bytes of two texts can end within a character.
        let end = (at + same..=rest.len()).find(|end| rest.is_char_boundary(*end)).unwrap_or(rest.len());
        out.push_str(&rest[..at]);
        out.push_str(REDACTED);
        rest = &rest[end..];
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Replaces everything in `text` that looks like a secret, or that this process knows to be one ([`never_show`]), by
/// [`REDACTED`].
pub fn redact(text: &str) -> Cow<'_, str> {
    let mut text = Cow::Borrowed(text);
    for secret in KNOWN.read().unwrap_or_else(PoisonError::into_inner).iter() {
        text = without(text, secret.expose());
    }
    for pattern in &PATTERNS {
        if (pattern.may_match)(text.as_bytes())
            && let Cow::Owned(changed) = pattern.regex.replace_all(&text, pattern.replacement)
        {
            text = Cow::Owned(changed);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every pattern on everything.
    fn redact_without_a_glance(text: &str) -> String {
        PATTERNS
            .iter()
            .fold(text.to_owned(), |text, pattern| pattern.regex.replace_all(&text, pattern.replacement).into_owned())
    }

    /// Texts that a pattern matches, where the words around allow it.
    fn matched(pattern: &str) -> impl Strategy<Value = String> + use<> {
        proptest::string::string_regex(&pattern.replace(r"\b", "")).expect("it can be made up")
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3_000))]

        #[test]
        fn the_glance_overlooks_nothing(
            pieces in proptest::collection::vec(
                prop_oneof![
                    4 => matched(NAMED),
                    1 => matched(QUERY),
                    1 => matched(BEARER),
                    1 => matched(USERINFO),
                    6 => matched(SHAPES),
                    3 => proptest::sample::select(&[":", "=", "\"", "'", " ", "\n", ",", "-", "_", ".", "/", "ü", "word"][..])
                        .prop_map(str::to_owned),
                ],
                1..5,
            ),
            from in 0_usize..8,
        ) {
            let text = pieces.concat();
            // Also without its beginning.
            let text = &text[text.ceil_char_boundary(from.min(text.len()))..];
            prop_assert_eq!(redact(text).into_owned(), redact_without_a_glance(text));
        }
    }

    #[test]
    fn secrets_of_every_shape_go() {
        for secret in [
            "sk-proj-abcdefghijklmnop",
            "sk-ant-api03-AbCdEfGh_ijk",
            "gsk_abcdefghijklmnopqrstuvwx",
            "nvapi-abcdefghijklmnopqrst",
            "AIzaSyA1234567890abcdefghijklmn",
            "ya29.a0AfH6SMBxyzxyzxyz",
            "1//0gabcdefghijklmnopqrstuv",
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.sig",
            "AKIAIOSFODNN7EXAMPLE",
            "0123456789abcdef0123456789abcdef.AbCdEfGhIj",
            "0123456789abcdef0123456789abcdef01234567",
            "ghp_abcdefghijklmnopqrstuv",
            "xoxb-123456789012-abcdefghij",
            "glpat-abcdefghijklmnopqrst",
            "GOCSPX-abcdefghijklmnopqrst",
            "sk_live_abcdefghijklmnop",
            "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\n-----END RSA PRIVATE KEY-----",
        ] {
            let text = format!("before {secret} after");
            assert_eq!(redact(&text), "before [redacted] after", "{secret}");
        }
    }

    #[test]
    fn named_values_go_and_names_stay() {
        for (text, expected) in [
            ("api_key=hunter2hunter2", "api_key=[redacted]"),
            (r#"{"password": "hunter2"}"#, r#"{"password": "[redacted]"}"#),
            ("Authorization: Bearer abcdef", "Authorization: [redacted]"),
            ("sent Bearer abcdefghijkl to", "sent Bearer [redacted] to"),
            ("Cookie: session=abcd; other", "Cookie: [redacted]; other"),
            ("https://user:pass@host/x", "https://[redacted]@host/x"),
            ("GET https://host/x?alt=sse&key=hunter2hunter2&a=b", "GET https://host/x?alt=sse&key=[redacted]&a=b"),
        ] {
            assert_eq!(redact(text), expected);
        }
    }

    #[test]
    fn what_is_known_goes_whatever_its_shape() {
        let secret = "PlainWordsOfThirtyTwoLettersLong";
        let text = format!("no `{secret}`, nor {secret}; cut: {}", &secret[..9]);
        assert_eq!(redact(&text), text);
        never_show(&Secret::new(secret.to_owned()));
        never_show(&Secret::new("short".to_owned()));
        assert_eq!(redact(&text), "no `[redacted]`, nor [redacted]; cut: [redacted]");
        assert_eq!(redact("PlainWords are not short"), "[redacted] are not short", "a beginning of eight bytes goes");
        assert_eq!(redact("PlainWo"), "PlainWo");
        for n in 0..KNOWN_MAX {
            never_show(&Secret::new(format!("another-one-{n:04}")));
        }
        assert_eq!(redact(&text), text, "the oldest is forgotten");
    }

    #[test]
    fn headers_with_secrets_are_told_from_others() {
        assert!(is_secret_header("X-Api-Key", "plain"));
        assert!(is_secret_header("x-plain", "Bearer abcdefghijkl"));
        assert!(!is_secret_header("http-referer", "https://example.com"));
    }

    #[test]
    fn prose_stays() {
        for text in
            ["Insufficient balance (code 1113)", "try again in 7m59.56s", "the secret is out", "glm-4.7 not found", ""]
        {
            assert_eq!(redact(text), text);
        }
    }
}
