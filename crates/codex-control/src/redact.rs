//! Removes what looks like a secret from text we did not write: provider errors, logs of other programs.
//!
//! Our own secrets are kept out by type ([`crate::Secret`]); this is the second net, at the edges.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex_lite::Regex;

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
    r"|\b[a-f0-9]{32}\.[A-Za-z0-9]{8,}",                       // Z.AI
    r"|\b[A-Fa-f0-9]{40,}\b",                                  // long hexadecimal, our own tokens included
    r")",
);

/// A name, a separator, a value: the value goes, the name stays.
const NAMED: &str = concat!(
    r#"(?i)((?:api[_-]?key|x-api-key|x-goog-api-key|authorization|proxy-authorization|access[_-]?token|refresh[_-]?token|id[_-]?token|client[_-]?secret|secret|password|passwd|set-cookie|cookie|session[_-]?token)["']?\s*[:=]\s*["']?)"#,
    r#"((?:bearer\s+|basic\s+)?[^\s"',;&}]{4,})"#,
);

/// `Bearer …` on its own.
const BEARER: &str = r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/\-]{8,}=*";

/// `user:password@` in a URL.
const USERINFO: &str = r"(://)[^/\s:@]+:[^/\s@]+@";

static SHAPES_RE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(SHAPES).expect("a constant pattern, compiled by a test"));
static NAMED_RE: LazyLock<Regex> = LazyLock::new(|| Regex::new(NAMED).expect("a constant pattern, compiled by a test"));
static BEARER_RE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(BEARER).expect("a constant pattern, compiled by a test"));
static USERINFO_RE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(USERINFO).expect("a constant pattern, compiled by a test"));

/// Replaces everything in `text` that looks like a secret by [`REDACTED`].
pub fn redact(text: &str) -> Cow<'_, str> {
    let mut text = Cow::Borrowed(text);
    for (pattern, replacement) in [
        (&NAMED_RE, "${1}[redacted]"),
        (&BEARER_RE, "${1} [redacted]"),
        (&USERINFO_RE, "${1}[redacted]@"),
        (&SHAPES_RE, REDACTED),
    ] {
        if let Cow::Owned(changed) = pattern.replace_all(&text, replacement) {
            text = Cow::Owned(changed);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

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
        ] {
            assert_eq!(redact(text), expected);
        }
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
