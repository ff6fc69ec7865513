//! The request side of a native Responses provider: the body goes out as it came, less what is nobody's business.

use super::{EFFORT, Profile};
use crate::effort;
use crate::history::{compaction, stand_in};
use crate::json::{self, Kind, Raw, Reader, Str};
use crate::responses::ParseError;
use crate::{Call, Framing, Target, mark, sealed};

/// The type of a part that is an image.
const IMAGE_TYPE: &str = "input_image";

/// Members that hold local paths, git commits and ids of this installation.
const PRIVATE_MEMBERS: [&str; 1] = ["client_metadata"];

/// Writes `body`, a Responses request, for a provider that speaks Responses itself.
///
/// Everything is carried byte for byte, except that `model` becomes the target's name for it, that the private members,
/// what the target's [`Profile`] rules out and reasoning that is ours are not there, and that a history which we have
/// compacted becomes the words that it is. State that the provider has refused ([`Target::refused`]) is left out; where
/// it was a compacted history, a note says so.
///
/// # Errors
/// [`ParseError::Json`] for a body that is not a JSON object.
pub fn encode(body: &[u8], target: &Target) -> Result<Call, ParseError> {
    let mut reader = Reader::new(json::utf8(body)?);
    let mut out = Vec::with_capacity(body.len() + target.model.len());
    let profile = &target.native;
    let mut object = Members::open(&mut out);
    reader.enter_object()?;
    while let Some(name) = reader.next_key()? {
        let value = reader.value()?;
        if PRIVATE_MEMBERS.iter().any(|private| name.is(private)) || profile.omits(&name.decode()) {
            continue;
        }
        let out = object.member(name);
        if name.is("model") {
            json::write_string(out, &target.model);
        } else if name.is("input")
            && value.kind() == Kind::Array
            && (profile.changes_items() || !target.refused.is_empty() || value.text().contains(sealed::PREFIX))
        {
            write_input(out, value, target);
        } else if name.is("tools") && value.kind() == Kind::Array && profile.omits_inside("tools") {
            write_tools(out, value, profile);
        } else if value.kind() == Kind::Object
            && (profile.omits_inside(&name.decode()) || name.is("reasoning") && !profile.effort_words.is_empty())
        {
            write_object(out, &name.decode(), value, profile);
        } else {
            out.extend_from_slice(value.text().as_bytes());
        }
    }
    reader.finish()?;
    object.close();
    Ok(Call { path: "/responses".to_owned(), query: None, headers: Vec::new(), body: out, framing: Framing::Sse })
}

/// An object that is written member by member.
struct Members<'o> {
    out: &'o mut Vec<u8>,
    is_empty: bool,
}

impl<'o> Members<'o> {
    fn open(out: &'o mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, is_empty: true }
    }

    /// Writes the name; the value goes to what is returned.
    fn member(&mut self, name: Str<'_>) -> &mut Vec<u8> {
        if !std::mem::take(&mut self.is_empty) {
            self.out.push(b',');
        }
        self.out.push(b'"');
        self.out.extend_from_slice(name.escaped().as_bytes());
        self.out.extend_from_slice(b"\":");
        self.out
    }

    fn close(self) {
        self.out.push(b'}');
    }
}

/// Writes a member that is an object, less what the profile omits of it.
fn write_object(out: &mut Vec<u8>, path: &str, object: Raw<'_>, profile: &Profile) {
    let mut members = Members::open(out);
    for (name, value) in object.entries() {
        let path = format!("{path}.{}", name.decode());
        if profile.omits(&path) {
            continue;
        }
        if path == EFFORT
            && let Some(wanted) = value.as_str()
            && !profile.effort_words.is_empty()
        {
            if let Some(taken) = effort::nearest(&wanted.decode(), &profile.effort_words) {
                json::write_string(members.member(name), taken);
            }
            continue;
        }
        members.member(name).extend_from_slice(value.text().as_bytes());
    }
    members.close();
}

/// Writes the tools less what the profile omits of each, also of those inside of a namespace.
fn write_tools(out: &mut Vec<u8>, tools: Raw<'_>, profile: &Profile) {
    out.push(b'[');
    for (place, tool) in tools.elements().enumerate() {
        if place > 0 {
            out.push(b',');
        }
        let mut members = Members::open(out);
        for (name, value) in tool.entries() {
            if name.is("tools") && value.kind() == Kind::Array {
                write_tools(members.member(name), value, profile);
            } else if !profile.omits(&format!("tools.{}", name.decode())) {
                members.member(name).extend_from_slice(value.text().as_bytes());
            }
        }
        members.close();
    }
    out.push(b']');
}

/// Writes the items less the state that is not for this provider, which it refuses or has refused. Ours comes from a time
/// when the thread was at an endpoint with another protocol. Of reasoning nothing else is lost: what Codex shows of it is
/// no part of the history. A summary of ours is said in words.
fn write_input(out: &mut Vec<u8>, input: Raw<'_>, target: &Target) {
    out.push(b'[');
    let mut separator: &[u8] = b"";
    for item in input.elements() {
        let said = match read(item, target) {
            Carried::AsItIs => None,
            Carried::InWords(words) => Some(words),
            Carried::Not => continue,
        };
        out.extend_from_slice(separator);
        separator = b",";
        match said {
            Some(words) => {
                out.extend_from_slice(br#"{"type":"message","role":"user","content":[{"type":"input_text","text":"#);
                json::write_string(out, &words);
                out.extend_from_slice(b"}]}");
            }
            None => write_item(out, item, &target.native),
        }
    }
    out.push(b']');
}

/// Writes an item as it is, but for what the profile rules out.
fn write_item(out: &mut Vec<u8>, item: Raw<'_>, profile: &Profile) {
    let is_developer = item.get("role").and_then(Raw::as_str).is_some_and(|role| role.is("developer"));
    let relabels = profile.omit_developer && is_developer;
    let has_image = profile.omit_images && item.text().contains(IMAGE_TYPE);
    if !relabels && !has_image {
        out.extend_from_slice(item.text().as_bytes());
        return;
    }
    let mut members = Members::open(out);
    for (name, value) in item.entries() {
        let is_content = name.is("content") || name.is("output");
        let out = members.member(name);
        if relabels && name.is("role") {
            out.extend_from_slice(br#""user""#);
        } else if is_content && value.kind() == Kind::Array {
            let label = (relabels && name.is("content")).then_some(stand_in::DEVELOPER_LABEL);
            write_parts(out, value, label, has_image);
        } else if relabels && let (true, Some(text)) = (name.is("content"), value.as_str()) {
            json::write_string(out, &[stand_in::DEVELOPER_LABEL, "\n", &text.decode()].concat());
        } else {
            out.extend_from_slice(value.text().as_bytes());
        }
    }
    members.close();
}

/// Writes the parts of a content behind a label, with notes in place of images.
fn write_parts(out: &mut Vec<u8>, parts: Raw<'_>, label: Option<&str>, omits_images: bool) {
    let write_text = |out: &mut Vec<u8>, text: &str| {
        out.extend_from_slice(br#"{"type":"input_text","text":"#);
        json::write_string(out, text);
        out.push(b'}');
    };
    out.push(b'[');
    let mut is_first = true;
    if let Some(label) = label {
        write_text(out, label);
        is_first = false;
    }
    for part in parts.elements() {
        if !std::mem::take(&mut is_first) {
            out.push(b',');
        }
        if omits_images && part.get("type").and_then(Raw::as_str).is_some_and(|kind| kind.is(IMAGE_TYPE)) {
            write_text(out, stand_in::IMAGE_NOTE);
        } else {
            out.extend_from_slice(part.text().as_bytes());
        }
    }
    out.push(b']');
}

/// How an item goes to the provider.
enum Carried {
    AsItIs,
    /// As a message of the user's.
    InWords(String),
    Not,
}

fn read(item: Raw<'_>, target: &Target) -> Carried {
    let Some(state) = mark::state(item) else { return Carried::AsItIs };
    let kind = item.get("type").and_then(Raw::as_str).unwrap_or(Str::EMPTY);
    let is_compaction = mark::is_compacted(kind);
    if state.escaped().starts_with(sealed::PREFIX) {
        if is_compaction {
            // A summary that does not open is as unreadable to this provider as it is to us.
            let summary = compaction::summary(item, target);
            return summary.map_or(Carried::Not, |summary| Carried::InWords(compaction::labelled(&summary)));
        }
        return if kind.is("reasoning") { Carried::Not } else { Carried::AsItIs };
    }
    match target.refuses(&state.decode()) {
        true if is_compaction => Carried::InWords(stand_in::LOST_SUMMARY_NOTE.to_owned()),
        true => Carried::Not,
        false => Carried::AsItIs,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::failure::Repair;
    use crate::mark::Mark;
    use crate::sealed::{Origin, Part};

    fn target(profile: Profile) -> Target {
        Target { native: profile, ..Target::new("p", "gpt-x") }
    }

    fn encoded_for(target: &Target, body: &str) -> String {
        String::from_utf8(encode(body.as_bytes(), target).unwrap().body).unwrap()
    }

    fn encoded(body: &str) -> String {
        encoded_for(&target(Profile::default()), body)
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
    }

    #[test]
    fn state_that_was_refused_is_left_out_and_no_other() {
        let body = r#"{"input":[ {"type":"compaction","encrypted_content":"C"},{"type":"reasoning","encrypted_content":"g\/A"}, {"type":"reasoning","encrypted_content":"gB"},{"type":"new","encrypted_content":"N"},{"type":"message","x":"g/A"} ]}"#;
        let refused = ["g/A", "C", "N"].map(|state| Mark::of("me", state));
        let mut target =
            Target { account: "me".into(), refused: HashSet::from(refused).into(), ..target(Profile::default()) };
        let note = serde_json::json!(stand_in::LOST_SUMMARY_NOTE).to_string();
        assert_eq!(
            encoded_for(&target, body),
            format!(
                r#"{{"input":[{{"type":"message","role":"user","content":[{{"type":"input_text","text":{note}}}]}},{{"type":"reasoning","encrypted_content":"gB"}},{{"type":"message","x":"g/A"}}]}}"#
            )
        );
        target.account = "another".into();
        let all = body.replace("[ ", "[").replace(", {", ",{").replace(" ]", "]");
        assert_eq!(encoded_for(&target, body), all, "what one account cannot read is another's");
    }

    #[test]
    fn a_history_that_we_have_compacted_is_said_in_words() {
        let target = target(Profile::default());
        // Plain words are good for every model, wherever they come from.
        let origin = Origin { provider: "other".into(), model: "m".into(), ..target.origin() };
        let sealed = sealed::seal(&target.seal_key, &origin, &[Part::Summary("it \"works\"\n".into())]);
        let body = format!(r#"{{"input":[{{"type":"compaction","encrypted_content":"{sealed}"}},{{"a":1}}]}}"#);
        let value: serde_json::Value = serde_json::from_str(&encoded_for(&target, &body)).unwrap();
        let text = compaction::labelled("it \"works\"\n");
        let said = serde_json::json!({
            "type": "message", "role": "user", "content": [{ "type": "input_text", "text": text }],
        });
        assert_eq!(value, serde_json::json!({ "input": [said, { "a": 1 }] }));
        let damaged = r#"{"input":[{"type":"compaction","encrypted_content":"cxp1:AA"},{"a":1}]}"#;
        assert_eq!(encoded_for(&target, damaged), r#"{"input":[{"a":1}]}"#);
        let its_own = r#"{"input":[{"type":"compaction","encrypted_content":"gAAA"}]}"#;
        assert_eq!(encoded_for(&target, its_own), its_own);
    }

    #[test]
    fn what_was_refused_is_left_out() {
        let body = r#"{"model":"m","reasoning":{"effort":"high","summary":"auto"},"store":false,"tools":[]}"#;
        let rows = [
            ("store", r#"{"model":"gpt-x","reasoning":{"effort":"high","summary":"auto"},"tools":[]}"#),
            ("body.store", r#"{"model":"gpt-x","reasoning":{"effort":"high","summary":"auto"},"tools":[]}"#),
            ("reasoning.summary", r#"{"model":"gpt-x","reasoning":{"effort":"high"},"store":false,"tools":[]}"#),
            ("reasoning", r#"{"model":"gpt-x","store":false,"tools":[]}"#),
            ("reasoning_effort", r#"{"model":"gpt-x","reasoning":{"summary":"auto"},"store":false,"tools":[]}"#),
        ];
        for (parameter, expected) in rows {
            let mut profile = Profile::default();
            assert!(profile.apply(&Repair::Drop(parameter.to_owned())), "{parameter}");
            assert!(!profile.apply(&Repair::Drop(parameter.to_owned())), "once is enough: {parameter}");
            assert_eq!(encoded_for(&target(profile), body), expected, "{parameter}");
        }
        for essential in ["input", "model", "tools[0].name", "nonsense", "reasoning.a.b", ""] {
            assert!(!Profile::default().apply(&Repair::Drop(essential.to_owned())), "{essential}");
        }
    }

    #[test]
    fn strict_is_left_out_of_each_tool() {
        let mut profile = Profile::default();
        assert!(profile.apply(&Repair::Drop("tools[3].strict".to_owned())));
        assert!(!profile.apply(&Repair::Drop("tools.0.function.strict".to_owned())));
        assert_eq!(
            encoded_for(
                &target(profile),
                r#"{"tools":[{"type":"function","strict":false,"name":"a"},{"type":"namespace","tools":[{"strict":true,"name":"b"}]}]}"#
            ),
            r#"{"tools":[{"type":"function","name":"a"},{"type":"namespace","tools":[{"name":"b"}]}]}"#
        );
    }

    #[test]
    fn an_effort_becomes_the_nearest_that_is_taken() {
        let efforts = |words: &[&str]| Repair::Efforts(words.iter().map(|word| (*word).to_owned()).collect());
        let rows = [
            (efforts(&["low", "high"]), r#"{"reasoning":{"effort":"high","summary":"auto"}}"#),
            (efforts(&["none", "low"]), r#"{"reasoning":{"effort":"low","summary":"auto"}}"#),
            (efforts(&["none"]), r#"{"reasoning":{"summary":"auto"}}"#),
            (efforts(&[]), r#"{"reasoning":{"summary":"auto"}}"#),
        ];
        for (repair, expected) in rows {
            let mut profile = Profile::default();
            assert!(profile.apply(&repair) && !profile.apply(&repair), "{repair}");
            let body = r#"{"reasoning":{"effort":"xhigh","summary":"auto"}}"#;
            assert_eq!(encoded_for(&target(profile), body), expected, "{repair}");
        }
    }

    #[test]
    fn images_become_notes_and_developers_users() {
        let body = r#"{"input":[{"type":"message","role":"developer","content":[{"type":"input_text","text":"a"}]},{"type":"message","role":"user","content":[{"type":"input_text","text":"b"},{"type":"input_image","image_url":"data:"}]},{"type":"function_call_output","call_id":"c","output":[{"type":"input_image","image_url":"data:"}]},{"role":"developer","content":"d"}]}"#;
        let changed = |repair: Repair| {
            let mut profile = Profile::default();
            assert!(profile.apply(&repair) && !profile.apply(&repair));
            encoded_for(&target(profile), body)
        };
        let note = format!(r#"{{"type":"input_text","text":"{}"}}"#, stand_in::IMAGE_NOTE);
        assert_eq!(changed(Repair::NoImages), body.replace(r#"{"type":"input_image","image_url":"data:"}"#, &note));
        let label = stand_in::DEVELOPER_LABEL;
        let expected = body
            .replace("developer", "user")
            .replacen(r#""content":["#, &format!(r#""content":[{{"type":"input_text","text":"{label}"}},"#), 1)
            .replace(r#""content":"d""#, &format!(r#""content":"{label}\nd""#));
        assert_eq!(changed(Repair::MergeSystem), expected);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for body in ["", "[]", "{", "{}x", "\u{fffd}"] {
            assert!(encode(body.as_bytes(), &target(Profile::default())).is_err(), "{body}");
        }
    }
}
