//! JSON schemas of tools, made fit for upstreams that refuse what they do not know.
//!
//! A schema is spliced as it came unless it holds something that has to go. Then it is walked as a schema, not as
//! text: a *property* that is called `encrypted` is none of our business, a *keyword* is.

use std::sync::LazyLock;

use memchr::memmem::Finder;

use super::Parameters;
use crate::json::{self, Kind, Raw};

/// How much of JSON schema an upstream takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keywords {
    /// Everything but non-standard keywords: Codex's `encrypted` and vendors' `x-…`.
    Standard,
    /// Only what every provider knows: types, descriptions, enums, properties, items and alternatives. References are
    /// put in place. For upstreams that have refused the schema.
    Plain,
}

/// Deepest chain of references that is put in place; deeper, and in a circle, any object will do.
const REFERENCE_DEPTH_MAX: u32 = 8;

/// Longest schema written for one tool. Nested references multiply; the result must stay in proportion.
const SCHEMA_BYTES_MAX: usize = 64 * 1024;

/// What a function without parameters takes.
const NO_PARAMETERS: &[u8] = br#"{"type":"object","properties":{}}"#;

/// Appends the parameters of a function. Missing ones become the empty object's schema; an object's schema always has
/// `properties`, which OpenAI and others demand.
pub fn write_parameters(out: &mut Vec<u8>, parameters: Option<Parameters<'_>>, keywords: Keywords) {
    let Some(Parameters { schema, has_type, has_properties }) = parameters else {
        out.extend_from_slice(NO_PARAMETERS);
        return;
    };
    if keywords == Keywords::Plain {
        // What is missing is known once it is rewritten.
        let mut plain = Vec::new();
        write(&mut plain, schema, keywords);
        let has = |name| json::parse_bytes(&plain).is_ok_and(|schema| schema.get(name).is_some());
        complete(out, &plain, has("type"), has("properties"));
    } else if has_type && has_properties {
        write(out, schema, keywords);
    } else {
        let mut written = Vec::new();
        write(&mut written, schema, keywords);
        complete(out, &written, has_type, has_properties);
    }
}

/// Appends an object's schema with what it lacks in front.
fn complete(out: &mut Vec<u8>, schema: &[u8], has_type: bool, has_properties: bool) {
    out.push(b'{');
    if !has_type {
        out.extend_from_slice(br#""type":"object","#);
    }
    if !has_properties {
        out.extend_from_slice(br#""properties":{},"#);
    }
    let rest = schema.strip_prefix(b"{").unwrap_or(b"}").trim_ascii_start();
    if rest == b"}" && !(has_type && has_properties) {
        out.pop();
    }
    out.extend_from_slice(rest);
}

/// Appends a schema.
pub fn write(out: &mut Vec<u8>, schema: Raw<'_>, keywords: Keywords) {
    let text = schema.text().as_bytes();
    if keywords == Keywords::Standard && MARKS.iter().all(|mark| mark.find(text).is_none()) {
        out.extend_from_slice(text);
        return;
    }
    let start = out.len();
    let mut walk = Walk { root: schema, keywords, references: 0, end_max: start + SCHEMA_BYTES_MAX.max(text.len()) };
    walk.schema(out, schema);
}

/// What a schema without any non-standard keyword does not contain.
static MARKS: LazyLock<[Finder<'static>; 2]> =
    LazyLock::new(|| [Finder::new(br#""encrypted""#), Finder::new(br#""x-"#)]);

struct Walk<'a> {
    root: Raw<'a>,
    keywords: Keywords,
    references: u32,
    end_max: usize,
}

/// What a keyword's value consists of.
enum Shape {
    Schema,
    SchemaList,
    SchemaMap,
    Data,
}

impl<'a> Walk<'a> {
    fn schema(&mut self, out: &mut Vec<u8>, schema: Raw<'a>) {
        if schema.kind() == Kind::Array {
            // `items` used to be a list; where a schema is expected, a list of schemas is walked as one.
            self.list(out, schema);
        } else if schema.kind() != Kind::Object {
            out.extend_from_slice(schema.text().as_bytes());
        } else if self.keywords == Keywords::Plain {
            self.plain(out, schema);
        } else {
            self.standard(out, schema);
        }
    }

    fn standard(&mut self, out: &mut Vec<u8>, schema: Raw<'a>) {
        let mut separator = b'{';
        for (key, value) in schema.entries() {
            let name = &*key.decode();
            if name == "encrypted" || name.starts_with("x-") {
                continue;
            }
            out.push(std::mem::replace(&mut separator, b','));
            json::write_string(out, name);
            out.push(b':');
            self.value(out, shape(name), value);
        }
        if separator == b'{' {
            out.push(b'{');
        }
        out.push(b'}');
    }

    fn plain(&mut self, out: &mut Vec<u8>, schema: Raw<'a>) {
        if let Some(target) = schema.get("$ref").and_then(|reference| self.resolve(reference)) {
            if self.references == REFERENCE_DEPTH_MAX || out.len() > self.end_max {
                out.extend_from_slice(br#"{"type":"object"}"#);
            } else {
                self.references += 1;
                self.schema(out, target);
                self.references -= 1;
            }
            return;
        }

        let mut separator = b'{';
        let mut member = |out: &mut Vec<u8>, name: &str| {
            out.push(std::mem::replace(&mut separator, b','));
            json::write_string(out, name);
            out.push(b':');
        };
        let mut typed = false;
        for (key, value) in schema.entries() {
            match &*key.decode() {
                "type" => {
                    typed = true;
                    member(out, "type");
                    // One of several types: the first that is a value at all.
                    let single = value.elements().find(|kind| kind.as_str().is_some_and(|kind| !kind.is("null")));
                    out.extend_from_slice(single.unwrap_or(value).text().as_bytes());
                }
                "const" => {
                    member(out, "enum");
                    out.push(b'[');
                    out.extend_from_slice(value.text().as_bytes());
                    out.push(b']');
                }
                "oneOf" | "anyOf" => {
                    typed = true;
                    member(out, "anyOf");
                    self.list(out, value);
                }
                name @ ("description" | "enum" | "required" | "items" | "properties") => {
                    member(out, name);
                    self.value(out, shape(name), value);
                }
                _ => {}
            }
        }
        if !typed {
            member(out, "type");
            let is_root = std::ptr::eq(schema.text(), self.root.text());
            let is_object = is_root || schema.get("properties").is_some();
            out.extend_from_slice(if is_object { br#""object""# } else { br#""string""# });
        }
        out.push(b'}');
    }

    fn value(&mut self, out: &mut Vec<u8>, shape: Shape, value: Raw<'a>) {
        match (shape, value.kind()) {
            (Shape::Schema, _) => self.schema(out, value),
            (Shape::SchemaList, Kind::Array) => self.list(out, value),
            (Shape::SchemaMap, Kind::Object) => {
                out.push(b'{');
                for (index, (name, schema)) in value.entries().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    json::write_string(out, &name.decode());
                    out.push(b':');
                    self.schema(out, schema);
                }
                out.push(b'}');
            }
            _ => out.extend_from_slice(value.text().as_bytes()),
        }
    }

    fn list(&mut self, out: &mut Vec<u8>, list: Raw<'a>) {
        out.push(b'[');
        for (index, schema) in list.elements().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            self.schema(out, schema);
        }
        out.push(b']');
    }

    /// The schema that `#/$defs/Name` points at.
    fn resolve(&self, reference: Raw<'a>) -> Option<Raw<'a>> {
        let path = reference.as_str()?.decode();
        let steps = path.strip_prefix('#')?;
        steps
            .split('/')
            .skip(1)
            .try_fold(self.root, |schema, step| schema.get(&step.replace("~1", "/").replace("~0", "~")))
    }
}

fn shape(keyword: &str) -> Shape {
    match keyword {
        "properties" | "patternProperties" | "$defs" | "definitions" | "dependentSchemas" => Shape::SchemaMap,
        "anyOf" | "oneOf" | "allOf" | "prefixItems" => Shape::SchemaList,
        "items"
        | "additionalProperties"
        | "unevaluatedProperties"
        | "additionalItems"
        | "unevaluatedItems"
        | "contains"
        | "propertyNames"
        | "not"
        | "if"
        | "then"
        | "else" => Shape::Schema,
        _ => Shape::Data,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn rewritten(schema: &str, keywords: Keywords) -> String {
        let mut out = b"before".to_vec();
        let parameters = Parameters::read(&mut json::Reader::new(schema)).unwrap();
        write_parameters(&mut out, parameters, keywords);
        String::from_utf8(out).unwrap().strip_prefix("before").unwrap().to_owned()
    }

    #[track_caller]
    fn check(keywords: Keywords, schema: &Value, expected: &Value) {
        let actual: Value = serde_json::from_str(&rewritten(&schema.to_string(), keywords)).unwrap();
        assert_eq!(actual, *expected, "{schema}");
    }

    #[test]
    fn a_clean_schema_goes_as_it_came() {
        let schema = r#"{"type" : "object", "properties": { "a" : {"type":"string"} },"required":["a"]}"#;
        assert_eq!(rewritten(schema, Keywords::Standard), schema);
    }

    #[test]
    fn parameters_are_always_an_object_with_properties() {
        let empty = json!({"type": "object", "properties": {}});
        for keywords in [Keywords::Standard, Keywords::Plain] {
            for schema in [json!(null), json!(1), json!([]), json!("x"), json!({}), json!({"type": "object"})] {
                check(keywords, &schema, &empty);
            }
            check(keywords, &json!({"properties": {}}), &empty);
            check(
                keywords,
                &json!({"type": "object", "required": []}),
                &json!({"type": "object", "properties": {}, "required": []}),
            );
        }
        let spaced = rewritten("{ \"type\" : \"object\" }", Keywords::Standard);
        assert_eq!(spaced, r#"{"properties":{},"type" : "object" }"#);
    }

    #[test]
    fn non_standard_keywords_go_and_properties_of_that_name_stay() {
        check(
            Keywords::Standard,
            &json!({
                "type": "object", "encrypted": true, "x-order": 1,
                "properties": {
                    "encrypted": {"type": "string", "encrypted": true},
                    "x-mas": {"type": "array", "x-a": {}, "items": {"type": "string", "encrypted": false}},
                    "data": {"enum": [{"encrypted": 1}], "default": {"x-y": 2}, "const": {"encrypted": 3}},
                    "any": {"anyOf": [{"encrypted": true, "type": "null"}, true]},
                    "map": {"additionalProperties": {"type": "string", "encrypted": true}}
                },
                "$defs": {"encrypted": {"encrypted": true, "not": {"x-z": 1}}},
                "required": ["encrypted"]
            }),
            &json!({
                "type": "object",
                "properties": {
                    "encrypted": {"type": "string"},
                    "x-mas": {"type": "array", "items": {"type": "string"}},
                    "data": {"enum": [{"encrypted": 1}], "default": {"x-y": 2}, "const": {"encrypted": 3}},
                    "any": {"anyOf": [{"type": "null"}, true]},
                    "map": {"additionalProperties": {"type": "string"}}
                },
                "$defs": {"encrypted": {"not": {}}},
                "required": ["encrypted"]
            }),
        );
    }

    #[test]
    fn plain_schemas_hold_what_everyone_knows() {
        check(
            Keywords::Plain,
            &json!({
                "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "T", "type": "object",
                "additionalProperties": false,
                "properties": {
                    "a": {"type": ["null", "integer"], "minimum": 1, "description": "A."},
                    "b": {"const": "x"},
                    "c": {"oneOf": [{"type": "string", "format": "uri"}, {"$ref": "#/$defs/N~1m"}]},
                    "d": {"$ref": "#/$defs/N~1m", "description": "beside a reference"},
                    "e": {"$ref": "#/nowhere"},
                    "f": {"properties": {"g": {}}}
                },
                "required": ["a"],
                "$defs": {"N/m": {"type": "array", "items": {"type": "number", "multipleOf": 2}}}
            }),
            &json!({
                "type": "object",
                "properties": {
                    "a": {"type": "integer", "description": "A."},
                    "b": {"enum": ["x"], "type": "string"},
                    "c": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "number"}}]},
                    "d": {"type": "array", "items": {"type": "number"}},
                    "e": {"type": "string"},
                    "f": {"properties": {"g": {"type": "string"}}, "type": "object"}
                },
                "required": ["a"]
            }),
        );
    }

    #[test]
    fn circles_of_references_end() {
        let node = json!({"type": "object", "properties": {"left": {"$ref": "#/$defs/node"}, "right": {"$ref": "#/$defs/node"}}});
        let schema =
            json!({"type": "object", "properties": {"tree": {"$ref": "#/$defs/node"}}, "$defs": {"node": node}});
        let written = rewritten(&schema.to_string(), Keywords::Plain);
        assert!(json::parse(&written).is_ok());

        // Each level doubles; the bound on the length holds before the bound on the depth does.
        let wide: serde_json::Map<String, Value> =
            (0..12).map(|index| (format!("p{index}"), json!({"$ref": "#/$defs/node"}))).collect();
        let schema =
            json!({"type": "object", "properties": wide, "$defs": {"node": {"type": "object", "properties": wide}}});
        let written = rewritten(&schema.to_string(), Keywords::Plain);
        assert!(json::parse(&written).is_ok());
        assert!(written.len() < 2 * SCHEMA_BYTES_MAX, "{}", written.len());
        check(Keywords::Plain, &json!({"$ref": "#"}), &json!({"type": "object", "properties": {}}));
    }
}
