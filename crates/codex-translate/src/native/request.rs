//! The request side of a native Responses provider: the body goes out as it came, less what is nobody's business.

use crate::json::{self, Kind, Raw, Reader};
use crate::responses::ParseError;
use crate::{Call, Framing, sealed};

/// Members that hold local paths, git commits and ids of this installation.
const PRIVATE_MEMBERS: [&str; 1] = ["client_metadata"];

/// Which reasoning of the history goes along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thoughts {
    /// What is not ours: this provider's own, as far as can be told.
    NotOurs,
    /// None, after the provider has refused some that it did not make itself.
    None,
}

/// Writes `body`, a Responses request, for a provider that speaks Responses itself.
///
/// Everything is carried byte for byte, except that `model` becomes the target's name for it, and that the private
/// members and the reasoning that `thoughts` rules out are not there.
///
/// # Errors
/// [`ParseError::Json`] for a body that is not a JSON object.
pub fn encode(body: &[u8], model: &str, thoughts: Thoughts) -> Result<Call, ParseError> {
    let mut reader = Reader::new(json::utf8(body)?);
    let mut out = Vec::with_capacity(body.len() + model.len());
    out.push(b'{');
    reader.enter_object()?;
    while let Some(name) = reader.next_key()? {
        let value = reader.value()?;
        if PRIVATE_MEMBERS.iter().any(|private| name.is(private)) {
            continue;
        }
        if out.len() > 1 {
            out.push(b',');
        }
        out.push(b'"');
        out.extend_from_slice(name.escaped().as_bytes());
        out.extend_from_slice(b"\":");
        if name.is("model") {
            json::write_string(&mut out, model);
        } else if name.is("input")
            && value.kind() == Kind::Array
            && (thoughts == Thoughts::None || value.text().contains(sealed::PREFIX))
        {
            write_input(&mut out, value, thoughts);
        } else {
            out.extend_from_slice(value.text().as_bytes());
        }
    }
    reader.finish()?;
    out.push(b'}');
    Ok(Call { path: "/responses".to_owned(), query: None, headers: Vec::new(), body: out, framing: Framing::Sse })
}

/// Writes the items less the reasoning that is not for this provider: it refuses state it cannot decrypt. Ours comes from
/// a time when the thread was at an endpoint with another protocol. Nothing else is lost: what Codex shows of it is no
/// part of the history.
fn write_input(out: &mut Vec<u8>, input: Raw<'_>, thoughts: Thoughts) {
    out.push(b'[');
    let mut separator: &[u8] = b"";
    for item in input.elements().filter(|item| !is_left_out(*item, thoughts)) {
        out.extend_from_slice(separator);
        out.extend_from_slice(item.text().as_bytes());
        separator = b",";
    }
    out.push(b']');
}

fn is_left_out(item: Raw<'_>, thoughts: Thoughts) -> bool {
    let text = |name: &str| item.get(name).and_then(Raw::as_str);
    let is_ours = || text("encrypted_content").is_some_and(|state| state.escaped().starts_with(sealed::PREFIX));
    text("type").is_some_and(|kind| kind.is("reasoning")) && (thoughts == Thoughts::None || is_ours())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(body: &str) -> String {
        String::from_utf8(encode(body.as_bytes(), "gpt-x", Thoughts::NotOurs).unwrap().body).unwrap()
    }

    #[test]
    fn only_the_model_and_private_members_change() {
        assert_eq!(
            encoded(
                r#"{"model":"a","input":[ {"type":"message","x":1.50} ],"client_metadata":{"cwd":"/home"},"stream":true}"#
            ),
            r#"{"model":"gpt-x","input":[ {"type":"message","x":1.50} ],"stream":true}"#
        );
        assert_eq!(encoded(r#"{"client_metadata":{},"b":"\u00e9"}"#), r#"{"b":"\u00e9"}"#);
        assert_eq!(encoded("{}"), "{}");
    }

    #[test]
    fn reasoning_of_other_protocols_is_left_out() {
        assert_eq!(
            encoded(
                r#"{"input":[ {"type":"message","x":"cxp1:"}, {"type":"reasoning","summary":[],"encrypted_content":"cxp1:AA"},{"type":"reasoning","encrypted_content":"gAAA"} ]}"#
            ),
            r#"{"input":[{"type":"message","x":"cxp1:"},{"type":"reasoning","encrypted_content":"gAAA"}]}"#
        );
        assert_eq!(encoded(r#"{"input":"cxp1:"}"#), r#"{"input":"cxp1:"}"#);
        let foreign = r#"{"input":[{"type":"reasoning","encrypted_content":"gAAA"},{"type":"message"}]}"#;
        let without = encode(foreign.as_bytes(), "m", Thoughts::None).unwrap().body;
        assert_eq!(without, br#"{"input":[{"type":"message"}]}"#);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for body in ["", "[]", "{", "{}x", "\u{fffd}"] {
            assert!(encode(body.as_bytes(), "m", Thoughts::NotOurs).is_err(), "{body}");
        }
    }
}
