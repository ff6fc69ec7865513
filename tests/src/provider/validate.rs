//! What a strict provider demands of a request.
//!
//! For Chat Completions the rules are the union of what real providers refuse (system message first, calls answered at once, portable
//! members only, …) and of what must never leave the machine (Codex's metadata). Whoever passes here passes anywhere.

use std::collections::HashSet;

use base64::Engine as _;
use codex_control::tables::Protocol;
use codex_translate::anthropic;
use serde_json::{Map, Value};

/// Members that every provider takes.
const PORTABLE: [&str; 7] =
    ["model", "messages", "stream", "stream_options", "tools", "tool_choice", "response_format"];
/// Longest function name anywhere.
const NAME_CHARS_MAX: usize = 64;
/// Longest tool call id that no provider refuses.
const CALL_ID_CHARS_MAX: usize = 64;
/// Most functions that `OpenAI` and others take.
const TOOLS_MAX: usize = 128;
/// Names of things that Codex sends to its provider and that are nobody else's business.
const PRIVATE_WORDS: [&str; 6] = [
    "client_metadata",
    "prompt_cache_key",
    "x-codex-turn-metadata",
    "installation_id",
    "\"encrypted_content\"",
    "\"encrypted\":true",
];
/// Headers of Codex's that must not be forwarded; a name that begins so.
const PRIVATE_HEADERS: [&str; 8] = [
    "x-codex-",
    "session-id",
    "session_id",
    "thread-id",
    "originator",
    "x-openai-",
    "x-client-request-id",
    "chatgpt-account-id",
];

/// The complaints about the request's headers, given as lower-case name and value.
pub fn headers(headers: &[(String, String)]) -> Vec<String> {
    let mut complaints = Vec::new();
    let get = |name: &str| headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    if !get("content-type").is_some_and(|value| value.starts_with("application/json")) {
        complaints.push(format!("content-type is {:?}, not application/json", get("content-type")));
    }
    if !get("accept").is_some_and(|value| value.contains("text/event-stream")) {
        complaints.push(format!("accept is {:?}, not text/event-stream", get("accept")));
    }
    if get("user-agent").is_none() {
        complaints.push("there is no user-agent; Cloudflare refuses such requests".to_owned());
    }
    for (name, _) in headers {
        if PRIVATE_HEADERS.iter().any(|private| name.starts_with(private)) {
            complaints.push(format!("the header `{name}` must not leave the machine"));
        }
    }
    complaints
}

/// The headers that a protocol wants beside those of every request.
pub fn protocol_headers(protocol: Protocol, headers: &[(String, String)]) -> Vec<String> {
    let get = |name: &str| headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let version = get("anthropic-version");
    match protocol {
        Protocol::AnthropicMessages if version != Some(anthropic::encode::VERSION) => {
            vec![format!("anthropic-version is {version:?}")]
        }
        Protocol::Responses | Protocol::ChatCompletions if version.is_some() => {
            vec!["anthropic-version is for another protocol".to_owned()]
        }
        _ => Vec::new(),
    }
}

/// The complaints about the body of a request for Anthropic Messages.
pub fn messages_body(raw: &[u8], body: &Value, models: &[String]) -> Vec<String> {
    let mut complaints: Vec<String> = anthropic::validate::check(raw).err().into_iter().collect();
    complaints.extend(private(body, &PRIVATE_WORDS));
    complaints.extend(model_and_stream(body, models));
    for tool in body["tools"].as_array().into_iter().flatten() {
        if let Some(schema) = tool.get("input_schema")
            && let Err(error) = jsonschema::meta::validate(schema)
        {
            complaints.push(format!("the input of {} is no JSON schema: {error}", tool["name"]));
        }
    }
    complaints
}

/// The complaints about the body of a request for the Responses API itself: it is Codex's own, less what is private.
pub fn responses_body(body: &Value, models: &[String]) -> Vec<String> {
    let mut complaints = private(body, &["client_metadata", "x-codex-turn-metadata", "installation_id"]);
    complaints.extend(model_and_stream(body, models));
    let Some(items) = body["input"].as_array() else {
        complaints.push("`input` is no list".to_owned());
        return complaints;
    };
    let mut open: Vec<&Value> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        match item["type"].as_str().unwrap_or("message") {
            "function_call" | "custom_tool_call" => open.push(&item["call_id"]),
            "function_call_output" | "custom_tool_call_output" => {
                match open.iter().position(|id| **id == item["call_id"]) {
                    Some(place) => _ = open.remove(place),
                    None => complaints.push(format!("input[{index}]: no tool call found for {}", item["call_id"])),
                }
            }
            _ => {}
        }
    }
    if !open.is_empty() {
        complaints.push(format!("no tool output found for the calls {open:?}"));
    }
    complaints
}

fn private(body: &Value, words: &[&str]) -> Vec<String> {
    let text = body.to_string();
    words
        .iter()
        .filter(|word| text.contains(*word))
        .map(|word| format!("`{word}` must not leave the machine"))
        .collect()
}

fn model_and_stream(body: &Value, models: &[String]) -> Vec<String> {
    let mut complaints = Vec::new();
    if !models.iter().any(|model| body["model"] == *model) {
        complaints.push(format!("there is no model {}", body["model"]));
    }
    if body["stream"] != Value::Bool(true) {
        complaints.push("`stream` is not true".to_owned());
    }
    complaints
}

/// The complaints about the body of a request for Chat Completions; `allow` names further top-level members that this provider takes.
pub fn body(body: &Value, allow: &[String]) -> Vec<String> {
    let mut complaints = Vec::new();
    let Some(members) = body.as_object() else {
        return vec!["the body is not a JSON object".to_owned()];
    };
    complaints.extend(private(body, &PRIVATE_WORDS));
    for member in members.keys() {
        if !PORTABLE.contains(&member.as_str()) && !allow.contains(member) {
            complaints.push(format!("unknown member `{member}`"));
        }
    }
    if body["model"].as_str().is_none_or(str::is_empty) {
        complaints.push("`model` is no name".to_owned());
    }
    if body["stream"] != Value::Bool(true) {
        complaints.push("`stream` is not true".to_owned());
    }
    if let Some(options) = members.get("stream_options")
        && *options != serde_json::json!({ "include_usage": true })
    {
        complaints.push(format!("`stream_options` is {options}"));
    }
    let offered = tools(members, &mut complaints);
    if let Some(choice) = members.get("tool_choice") {
        if choice != "auto" {
            complaints.push(format!("`tool_choice` is {choice}, and only \"auto\" is portable"));
        }
        if offered.is_empty() {
            complaints.push("`tool_choice` without tools".to_owned());
        }
    }
    if let Some(format) = members.get("response_format") {
        response_format(format, &mut complaints);
    }
    match body["messages"].as_array() {
        Some(list) => messages(list, &mut complaints),
        None => complaints.push("`messages` is no list".to_owned()),
    }
    complaints
}

/// Checks the offered functions and returns their names.
fn tools<'a>(members: &'a Map<String, Value>, complaints: &mut Vec<String>) -> HashSet<&'a str> {
    let mut names = HashSet::new();
    let Some(tools) = members.get("tools") else {
        return names;
    };
    let Some(tools) = tools.as_array().filter(|tools| !tools.is_empty()) else {
        complaints.push("`tools` must be left out when there are none".to_owned());
        return names;
    };
    if tools.len() > TOOLS_MAX {
        complaints.push(format!("{} tools, more than {TOOLS_MAX}", tools.len()));
    }
    for (index, tool) in tools.iter().enumerate() {
        let function = &tool["function"];
        if tool["type"] != "function" || !function.is_object() || !has_only(tool, &["type", "function"]) {
            complaints.push(format!("tools[{index}] is no function: {tool}"));
            continue;
        }
        let name = function["name"].as_str().unwrap_or_default();
        if !is_name(name) {
            complaints.push(format!("tools[{index}] has the name `{name}`"));
        }
        if !names.insert(name) {
            complaints.push(format!("two tools have the name `{name}`"));
        }
        if !has_only(function, &["name", "description", "parameters"]) {
            complaints.push(format!("the function `{name}` has unknown members: {:?}", keys(function)));
        }
        if !function["description"].is_string() && !function["description"].is_null() {
            complaints.push(format!("the description of `{name}` is no text"));
        }
        let parameters = &function["parameters"];
        if parameters["type"] != "object" {
            complaints.push(format!("the parameters of `{name}` are no object schema: {parameters}"));
        } else if let Err(error) = jsonschema::meta::validate(parameters) {
            complaints.push(format!("the parameters of `{name}` are no JSON schema: {error}"));
        }
    }
    names
}

fn response_format(format: &Value, complaints: &mut Vec<String>) {
    let inner = &format["json_schema"];
    let well_formed = match format["type"].as_str() {
        Some("json_object") => has_only(format, &["type"]),
        Some("json_schema") => {
            has_only(format, &["type", "json_schema"])
                && has_only(inner, &["name", "description", "schema", "strict"])
                && inner["name"].as_str().is_some_and(is_name)
                && inner["schema"].is_object()
                && jsonschema::meta::is_valid(&inner["schema"])
        }
        _ => false,
    };
    if !well_formed {
        complaints.push(format!("`response_format` is {format}"));
    }
}

/// Reads the conversation as a strict template does.
fn messages(list: &[Value], complaints: &mut Vec<String>) {
    let mut ids = HashSet::new();
    // Calls of the last assistant message that have no result yet.
    let mut open: Vec<&str> = Vec::new();
    for (index, message) in list.iter().enumerate() {
        let role = message["role"].as_str().unwrap_or_default();
        if role != "tool" && !open.is_empty() {
            complaints.push(format!("messages[{index}] stands before the results of {open:?}"));
            open.clear();
        }
        let content = &message["content"];
        let mut fields = vec!["role", "content"];
        match role {
            "system" if index == 0 => text_content(index, content, complaints),
            "system" => complaints.push(format!("messages[{index}] is a system message that is not the first")),
            "user" => user_content(index, content, complaints),
            "assistant" => {
                fields.extend(["tool_calls", "reasoning_content", "reasoning_details"]);
                let calls = message["tool_calls"].as_array().map(Vec::as_slice).unwrap_or_default();
                if message.get("tool_calls").is_some() && calls.is_empty() {
                    complaints.push(format!("messages[{index}] has an empty list of calls"));
                }
                match content {
                    Value::Null if !calls.is_empty() => {}
                    Value::String(text) if text.is_empty() && !calls.is_empty() => {}
                    _ => text_content(index, content, complaints),
                }
                for call in calls {
                    if let Some(id) = self::call(index, call, complaints) {
                        if !ids.insert(id) {
                            complaints.push(format!("messages[{index}] uses the call id `{id}` again"));
                        }
                        open.push(id);
                    }
                }
            }
            "tool" => {
                fields.push("tool_call_id");
                let id = message["tool_call_id"].as_str().unwrap_or_default();
                match open.iter().position(|open| *open == id) {
                    Some(place) => _ = open.remove(place),
                    None => complaints
                        .push(format!("messages[{index}] is the result of `{id}`, which was not called just before")),
                }
                if !content.is_string() {
                    complaints.push(format!("messages[{index}] is a tool result that is no text: {content}"));
                }
            }
            other => complaints.push(format!("messages[{index}] has the role `{other}`")),
        }
        if !has_only(message, &fields) {
            complaints.push(format!("messages[{index}] ({role}) has unknown members: {:?}", keys(message)));
        }
    }
    if !open.is_empty() {
        complaints.push(format!("the calls {open:?} have no results"));
    }
    match list.last().and_then(|last| last["role"].as_str()) {
        Some("user" | "tool") => {}
        other => complaints.push(format!("the last message is {other:?}, so there is nothing to answer")),
    }
}

fn call<'a>(index: usize, call: &'a Value, complaints: &mut Vec<String>) -> Option<&'a str> {
    let function = &call["function"];
    if call["type"] != "function"
        || !has_only(call, &["id", "type", "function"])
        || !has_only(function, &["name", "arguments"])
    {
        complaints.push(format!("messages[{index}] has a malformed call: {call}"));
    }
    if !function["name"].as_str().is_some_and(is_name) {
        complaints.push(format!("messages[{index}] calls `{}`", function["name"]));
    }
    let arguments = function["arguments"].as_str().map(serde_json::from_str::<Value>);
    if !matches!(arguments, Some(Ok(Value::Object(_)))) {
        complaints.push(format!(
            "messages[{index}] has arguments that are no JSON object in a string: {}",
            function["arguments"]
        ));
    }
    let id = call["id"].as_str().filter(|id| !id.is_empty() && id.len() <= CALL_ID_CHARS_MAX && id.is_ascii());
    if id.is_none() {
        complaints.push(format!("messages[{index}] has the call id {}", call["id"]));
    }
    id
}

fn text_content(index: usize, content: &Value, complaints: &mut Vec<String>) {
    let text = match content {
        Value::String(text) => !text.is_empty(),
        Value::Array(parts) => !parts.is_empty() && parts.iter().all(is_text_part),
        _ => false,
    };
    if !text {
        complaints.push(format!("messages[{index}] has the content {content}"));
    }
}

fn user_content(index: usize, content: &Value, complaints: &mut Vec<String>) {
    let sound = match content {
        Value::String(text) => !text.is_empty(),
        Value::Array(parts) => !parts.is_empty() && parts.iter().all(|part| is_text_part(part) || is_image_part(part)),
        _ => false,
    };
    if !sound {
        let mut shown = content.to_string();
        shown.truncate(shown.floor_char_boundary(200));
        complaints.push(format!("messages[{index}] has the content {shown}"));
    }
}

fn is_text_part(part: &Value) -> bool {
    part["type"] == "text"
        && part["text"].as_str().is_some_and(|text| !text.is_empty())
        && has_only(part, &["type", "text"])
}

fn is_image_part(part: &Value) -> bool {
    let image = &part["image_url"];
    let url = image["url"].as_str().unwrap_or_default();
    let readable = match url.strip_prefix("data:image/") {
        Some(rest) => rest.split_once(";base64,").is_some_and(|(_, data)| {
            base64::engine::general_purpose::STANDARD.decode(data).is_ok_and(|bytes| !bytes.is_empty())
        }),
        None => url.starts_with("https://") || url.starts_with("http://"),
    };
    let detail = image.get("detail").is_none_or(|detail| ["auto", "low", "high"].iter().any(|known| detail == known));
    part["type"] == "image_url"
        && readable
        && detail
        && has_only(part, &["type", "image_url"])
        && has_only(image, &["url", "detail"])
}

fn is_name(name: &str) -> bool {
    (1..=NAME_CHARS_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

fn has_only(value: &Value, known: &[&str]) -> bool {
    value.as_object().is_some_and(|members| members.keys().all(|key| known.contains(&key.as_str())))
}

fn keys(value: &Value) -> Vec<&String> {
    value.as_object().map(|members| members.keys().collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn good() -> Value {
        json!({
            "model": "m",
            "stream": true,
            "stream_options": { "include_usage": true },
            "tools": [{ "type": "function", "function": { "name": "ls", "description": "lists", "parameters": { "type": "object", "properties": { "p": { "type": "string" } } } } }],
            "tool_choice": "auto",
            "messages": [
                { "role": "system", "content": "s" },
                { "role": "user", "content": [{ "type": "text", "text": "u" }, { "type": "image_url", "image_url": { "url": "data:image/png;base64,AAAA", "detail": "high" } }] },
                { "role": "assistant", "content": null, "tool_calls": [
                    { "id": "a", "type": "function", "function": { "name": "ls", "arguments": "{}" } },
                    { "id": "b", "type": "function", "function": { "name": "ls", "arguments": "{\"p\":\".\"}" } },
                ] },
                { "role": "tool", "tool_call_id": "b", "content": "" },
                { "role": "tool", "tool_call_id": "a", "content": "x" },
            ],
        })
    }

    #[test]
    fn a_sound_request_passes() {
        assert_eq!(body(&good(), &[]), Vec::<String>::new());
    }

    #[test]
    fn every_rule_is_enforced() {
        /// Spoils a good request.
        type Spoil = fn(&mut Value);
        let rows: &[(Spoil, &str)] = &[
            (|b| b["store"] = json!(false), "unknown member `store`"),
            (|b| b["client_metadata"] = json!({}), "`client_metadata` must not leave"),
            (|b| b["model"] = json!(""), "`model`"),
            (|b| b["stream"] = json!(false), "`stream`"),
            (|b| b["stream_options"] = json!({}), "`stream_options`"),
            (|b| b["tools"] = json!([]), "left out when there are none"),
            (|b| b["tool_choice"] = json!("required"), "only \"auto\""),
            (|b| b["tools"][0]["function"]["name"] = json!("a.b"), "name `a.b`"),
            (|b| b["tools"][0]["function"]["name"] = json!("x".repeat(65)), "name `xxx"),
            (|b| b["tools"][0]["function"]["strict"] = json!(false), "unknown members"),
            (|b| b["tools"][0]["function"]["parameters"] = json!({}), "no object schema"),
            (|b| b["tools"][0]["function"]["parameters"]["properties"]["p"]["type"] = json!("text"), "no JSON schema"),
            (
                |b| b["tools"][0]["function"]["parameters"]["properties"]["p"]["encrypted"] = json!(true),
                "\"encrypted\":true",
            ),
            (|b| b["tools"] = json!([b["tools"][0], b["tools"][0]]), "two tools"),
            (|b| b["messages"][0]["role"] = json!("developer"), "role `developer`"),
            (|b| b["messages"][1] = json!({ "role": "system", "content": "t" }), "not the first"),
            (|b| b["messages"][1]["content"] = json!(""), "messages[1] has the content"),
            (
                |b| b["messages"][1]["content"][1]["image_url"]["url"] = json!("data:image/png;base64,?"),
                "messages[1] has the content",
            ),
            (|b| b["messages"][1]["id"] = json!("msg_1"), "unknown members"),
            (|b| b["messages"][2]["tool_calls"][1]["id"] = json!("a"), "call id `a` again"),
            (|b| b["messages"][2]["tool_calls"][0]["function"]["arguments"] = json!("{"), "no JSON object"),
            (|b| b["messages"][2]["tool_calls"][0]["function"]["arguments"] = json!({}), "no JSON object"),
            (
                |b| b["messages"][3] = json!({ "role": "user", "content": "u" }),
                "stands before the results of [\"a\", \"b\"]",
            ),
            (|b| b["messages"][3]["tool_call_id"] = json!("c"), "not called just before"),
            (|b| b["messages"][3]["content"] = json!([]), "no text"),
            (|b| _ = b["messages"].as_array_mut().unwrap().pop(), "[\"a\"] have no results"),
            (|b| b["messages"].as_array_mut().unwrap().truncate(1), "nothing to answer"),
            (|b| b["response_format"] = json!({ "type": "json_schema" }), "`response_format`"),
        ];
        for (spoil, complaint) in rows {
            let mut request = good();
            spoil(&mut request);
            let complaints = body(&request, &[]);
            assert!(complaints.iter().any(|text| text.contains(complaint)), "{complaint}: {complaints:?}");
        }
    }

    #[test]
    fn headers_are_checked() {
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let good = [
            header("content-type", "application/json"),
            header("accept", "text/event-stream"),
            header("user-agent", "x"),
        ];
        assert!(headers(&good).is_empty());
        assert_eq!(headers(&[]).len(), 3);
        let leak = [&good[..], &[header("x-codex-turn-metadata", "{}")]].concat();
        assert_eq!(headers(&leak), ["the header `x-codex-turn-metadata` must not leave the machine"]);
    }
}
