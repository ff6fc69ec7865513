//! The request side of a native Responses provider: the body goes out as it came, less what is nobody's business.

use crate::json::{self, Reader};
use crate::responses::ParseError;
use crate::{Call, Framing};

/// Members that hold local paths, git commits and ids of this installation.
const PRIVATE_MEMBERS: [&str; 1] = ["client_metadata"];

/// Writes `body`, a Responses request, for a provider that speaks Responses itself.
///
/// Everything is carried byte for byte, except that `model` becomes the target's name for it and the private members
/// are left out.
///
/// # Errors
/// [`ParseError::Json`] for a body that is not a JSON object.
pub fn encode(body: &[u8], model: &str) -> Result<Call, ParseError> {
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
        } else {
            out.extend_from_slice(value.text().as_bytes());
        }
    }
    reader.finish()?;
    out.push(b'}');
    Ok(Call { path: "/responses".to_owned(), query: None, headers: Vec::new(), body: out, framing: Framing::Sse })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(body: &str) -> String {
        String::from_utf8(encode(body.as_bytes(), "gpt-x").unwrap().body).unwrap()
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
    fn what_is_no_object_is_refused() {
        for body in ["", "[]", "{", "{}x", "\u{fffd}"] {
            assert!(encode(body.as_bytes(), "m").is_err(), "{body}");
        }
    }
}
