//! A provider's words, made fit for a person and for a log.

use super::MESSAGE_BYTES_MAX;

/// Longest run between `<` and `>` that is taken for a tag.
const TAG_BYTES_MAX: usize = 1_024;

/// What stands in the place of a secret.
const HIDDEN: &str = "…";

/// Beginnings of keys and tokens; what follows is replaced.
///
/// `OpenAI` and its imitators, Stripe style, Groq, xAI, NVIDIA, Cerebras, Google keys and tokens, GitHub, GitLab,
/// Hugging Face, Replicate, Together, Fireworks, AWS, Slack.
const KEY_PREFIXES: [&str; 25] = [
    "sk-",
    "sk_",
    "pk-",
    "pk_",
    "rk-",
    "rk_",
    "ak-",
    "gsk_",
    "xai-",
    "nvapi-",
    "csk-",
    "AIza",
    "ya29.",
    "GOCSPX-",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "github_pat_",
    "glpat-",
    "hf_",
    "r8_",
    "fw_",
    "AKIA",
    "xoxb-",
];

/// Shortest word with a prefix of [`KEY_PREFIXES`] that is a key; `sk-learn` is none.
const KEY_BYTES_MIN: usize = 10;

/// Shortest run of hexadecimal digits that may be a key. A shorter one is a commit or a request id.
const HEX_BYTES_MIN: usize = 32;

/// Shortest word of mixed letters and digits that no person has written.
const RANDOM_BYTES_MIN: usize = 40;

/// Shortest JSON web token.
const JWT_BYTES_MIN: usize = 20;

/// One line without tags, control characters and secrets, cut at [`MESSAGE_BYTES_MAX`].
pub(super) fn clean(text: &str) -> String {
    let text = strip_markup(text);
    let mut line = String::with_capacity(text.len().min(MESSAGE_BYTES_MAX));
    for word in text.split(|character: char| character.is_whitespace() || character.is_control()) {
        if !word.is_empty() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    cut(redact(&line), MESSAGE_BYTES_MAX)
}

/// Replaces whatever looks like a key, a token or another secret by `…`.
///
/// Works by shape, as the last net at the edge: secrets that are ours are kept apart by type.
pub fn redact(text: &str) -> String {
    let is_word =
        |character: char| character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.' | '*' | '~');
    let mut redacted = String::with_capacity(text.len());
    let mut rest = text;
    let mut after_bearer = false;
    while let Some(start) = rest.find(is_word) {
        redacted.push_str(&rest[..start]);
        rest = &rest[start..];
        let end = rest.find(|character| !is_word(character)).unwrap_or(rest.len());
        let word = rest[..end].trim_end_matches('.');
        match secret(word) {
            Some(shown) => {
                redacted.push_str(shown);
                redacted.push_str(HIDDEN);
            }
            None if after_bearer && word.len() >= KEY_BYTES_MIN => redacted.push_str(HIDDEN),
            None => redacted.push_str(word),
        }
        redacted.push_str(&rest[word.len()..end]);
        after_bearer = word.eq_ignore_ascii_case("bearer");
        rest = &rest[end..];
    }
    redacted.push_str(rest);
    redacted
}

/// The part of `word` that may be shown if it is a secret, otherwise `None`.
fn secret(word: &str) -> Option<&'static str> {
    if word.len() >= KEY_BYTES_MIN
        && let Some(prefix) = KEY_PREFIXES.iter().find(|prefix| word.starts_with(**prefix))
    {
        return Some(prefix);
    }
    if word.len() >= JWT_BYTES_MIN && word.starts_with("eyJ") {
        return Some("eyJ");
    }
    let has = |test: fn(&u8) -> bool| word.as_bytes().iter().any(test);
    let is_hex = word.len() >= HEX_BYTES_MIN && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_random = word.len() >= RANDOM_BYTES_MIN
        && has(u8::is_ascii_digit)
        && has(u8::is_ascii_uppercase)
        && has(u8::is_ascii_lowercase);
    (is_hex || is_random).then_some("")
}

/// Removes tags, and with them what is not meant to be read; decodes the entities that servers use.
fn strip_markup(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    // The body of a page; its head repeats the title.
    let mut at = lower.find("<body").filter(|_| lower.trim_start().starts_with('<')).unwrap_or(0);
    let mut plain = String::with_capacity(text.len() - at);
    while let Some(found) = text[at..].find('<') {
        plain.push_str(&text[at..at + found]);
        at += found;
        let rest = &text[at..];
        let is_tag = rest[1..].starts_with(|next: char| next.is_ascii_alphabetic() || next == '/' || next == '!');
        let end = rest.find('>').filter(|end| is_tag && *end <= TAG_BYTES_MAX);
        let Some(end) = end else {
            plain.push('<');
            at += 1;
            continue;
        };
        plain.push(' ');
        at += end + 1;
        for hidden in ["script", "style"] {
            if lower[at - end..].starts_with(hidden) {
                let close = format!("</{hidden}");
                at += lower[at..].find(&close).unwrap_or(lower.len() - at);
            }
        }
    }
    plain.push_str(&text[at..]);
    for (entity, character) in
        [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&nbsp;", " "), ("&amp;", "&")]
    {
        if plain.contains(entity) {
            plain = plain.replace(entity, character);
        }
    }
    plain
}

/// At most `bytes_max` bytes of `text`, with a mark where something is missing.
pub(crate) fn cut(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        text.truncate(text.floor_char_boundary(bytes_max - HIDDEN.len()));
        text.push_str(HIDDEN);
    }
    text
}

/// The standard phrase of a status with a space before it; empty for one without.
pub(super) fn reason_phrase(status: u16) -> &'static str {
    match status {
        400 => " Bad Request",
        401 => " Unauthorized",
        402 => " Payment Required",
        403 => " Forbidden",
        404 => " Not Found",
        408 => " Request Timeout",
        413 => " Content Too Large",
        422 => " Unprocessable Content",
        426 => " Upgrade Required",
        429 => " Too Many Requests",
        500 => " Internal Server Error",
        502 => " Bad Gateway",
        503 => " Service Unavailable",
        504 => " Gateway Timeout",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_every_shape_are_hidden() {
        let rows = [
            ("Incorrect API key provided: sk-abc***xyz.", "Incorrect API key provided: sk-…."),
            ("key=AIzaSyA1234567890abcdefghijklmnopqrstu&alt=sse", "key=AIza…&alt=sse"),
            ("token ya29.a0AfH6SMBx-abc_def", "token ya29.…"),
            ("Authorization: Bearer abcdefghijkl", "Authorization: Bearer …"),
            ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc_def-g", "jwt eyJ…"),
            ("hash 0123456789abcdef0123456789abcdef!", "hash …!"),
            ("gsk_aaaaaaaaaaaaaaaaaaaa", "gsk_…"),
            ("(Zm9vYmFyMTIzNDU2Nzg5MEFCQ0RFRkdISUpLTE1OT1A)", "(…)"),
            (
                "commit 0123abcd, sk-learn, /usr/lib/x86_64, request req_01ABCdef",
                "commit 0123abcd, sk-learn, /usr/lib/x86_64, request req_01ABCdef",
            ),
            ("a bearer of bad news", "a bearer of bad news"),
            ("", ""),
        ];
        for (text, expected) in rows {
            assert_eq!(redact(text), expected, "{text:?}");
        }
    }

    #[test]
    fn markup_is_removed_and_prose_is_not() {
        let rows = [
            ("a < b and c > d", "a < b and c > d"),
            ("expected <string>, got 1", "expected , got 1"),
            (
                "<!doctype html><html><title>x</title><body class='a'>Sorry &lt;you&gt;<br/>&nbsp;no</body></html>",
                "Sorry <you> no",
            ),
            ("<script>evil()</script>text", "text"),
            ("<script>never closed", ""),
            ("<p unclosed", "<p unclosed"),
            ("ends with <", "ends with <"),
        ];
        for (text, expected) in rows {
            assert_eq!(clean(text), expected, "{text:?}");
        }
    }
}
