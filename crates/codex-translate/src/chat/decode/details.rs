//! `reasoning_details`: the array that `OpenRouter` and `MiniMax` stream in fragments and want back whole.

use serde_json::{Map, Value};

use crate::json::Raw;

/// Fields whose fragments are joined; any other field is set by the first fragment that has it.
const JOINED: [&str; 2] = ["text", "summary"];

/// The array as merged so far.
#[derive(Debug, Default)]
pub(super) struct Details {
    entries: Vec<Map<String, Value>>,
}

impl Details {
    /// Adds the fragments of one chunk and gives their readable text.
    pub(super) fn add(&mut self, fragments: Raw<'_>) -> String {
        let mut text = String::new();
        for fragment in fragments.elements() {
            let Ok(Value::Object(fragment)) = serde_json::from_str(fragment.text()) else { continue };
            for name in JOINED {
                text.push_str(fragment.get(name).and_then(Value::as_str).unwrap_or_default());
            }
            match self.entries.iter_mut().rev().find(|entry| is_continued(entry, &fragment)) {
                Some(entry) => merge(entry, fragment),
                None => self.entries.push(fragment),
            }
        }
        text
    }

    /// The merged array as JSON text, leaving nothing behind; `None` when there was nothing.
    pub(super) fn take(&mut self) -> Option<String> {
        if self.entries.is_empty() {
            return None;
        }
        let entries = std::mem::take(&mut self.entries).into_iter().map(Value::Object).collect();
        Some(Value::Array(entries).to_string())
    }
}

/// Whether `fragment` goes on with `entry`: the same kind at the same place, and neither is complete by itself.
fn is_continued(entry: &Map<String, Value>, fragment: &Map<String, Value>) -> bool {
    let agree = |name: &str| match (entry.get(name), fragment.get(name)) {
        (Some(Value::Null) | None, _) | (_, Some(Value::Null) | None) => true,
        (Some(one), Some(other)) => one == other,
    };
    // Encrypted entries come whole: two of them at one index are two.
    let is_whole = entry.contains_key("data") && fragment.contains_key("data");
    entry.get("type") == fragment.get("type") && agree("index") && agree("id") && !is_whole
}

fn merge(entry: &mut Map<String, Value>, fragment: Map<String, Value>) {
    for (name, value) in fragment {
        match (entry.get_mut(&name), value) {
            (Some(Value::String(text)), Value::String(more)) if JOINED.contains(&name.as_str()) => text.push_str(&more),
            (Some(Value::Null) | None, value) => {
                entry.insert(name, value);
            }
            (Some(_), _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(chunks: &[&str], text: &str, merged: &str) {
        let mut details = Details::default();
        let read: String = chunks.iter().map(|chunk| details.add(crate::json::parse(chunk).unwrap())).collect();
        assert_eq!(read, text);
        assert_eq!(details.take().as_deref(), Some(merged).filter(|merged| !merged.is_empty()));
        assert_eq!(details.take(), None);
    }

    #[test]
    fn fragments_merge_by_kind_and_place() {
        check(
            &[
                r#"[{"type":"reasoning.text","text":"a","index":0,"signature":null}]"#,
                r#"[{"type":"reasoning.text","text":"b","index":0}]"#,
                r#"[{"type":"reasoning.text","signature":"S","index":0}]"#,
            ],
            "ab",
            r#"[{"type":"reasoning.text","text":"ab","index":0,"signature":"S"}]"#,
        );
        check(
            &[
                r#"[{"type":"reasoning.summary","summary":"s","index":0},{"type":"reasoning.encrypted","data":"x","index":0}]"#,
                r#"[{"type":"reasoning.encrypted","data":"y","index":0},{"type":"reasoning.summary","summary":"t","index":1}]"#,
            ],
            "st",
            concat!(
                r#"[{"type":"reasoning.summary","summary":"s","index":0},{"type":"reasoning.encrypted","data":"x","index":0},"#,
                r#"{"type":"reasoning.encrypted","data":"y","index":0},{"type":"reasoning.summary","summary":"t","index":1}]"#
            ),
        );
        check(&["[7]", "{}", "null"], "", "");
    }
}
