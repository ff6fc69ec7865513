//! What a strict Chat Completions provider checks before it takes a request.
//!
//! For tests: every body this crate writes must pass, and the fake provider of the end-to-end tests answers 400 with
//! the first complaint.

use std::collections::HashSet;

use serde_json::{Map, Value};

/// Members a body may have. Anything else is refused by one provider or another, or tells it what is not its business.
const MEMBERS: [&str; 17] = [
    "model",
    "messages",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "response_format",
    "reasoning_effort",
    "reasoning",
    "thinking",
    "enable_thinking",
    "reasoning_split",
    "stream_options",
    "stream",
];

/// Checks a request body as the strictest provider would.
///
/// # Errors
/// The first thing it would refuse, with its place.
pub fn check(body: &[u8]) -> Result<(), String> {
    let body: Value = serde_json::from_slice(body).map_err(|error| format!("body is not JSON: {error}"))?;
    let body = body.as_object().ok_or("body is not an object")?;
    if let Some(name) = body.keys().find(|name| !MEMBERS.contains(&name.as_str())) {
        return Err(format!("`{name}` is not supported"));
    }
    if body.get("model").and_then(Value::as_str).unwrap_or_default().is_empty() {
        return Err("`model` is missing".into());
    }
    check_tools(body)?;
    check_messages(body)
}

/// Checks the order that templates with strict alternation demand, on top of [`check`].
///
/// # Errors
/// The first message out of order.
pub fn check_alternation(body: &[u8]) -> Result<(), String> {
    let body: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let mut last = "system";
    for (index, message) in body["messages"].as_array().into_iter().flatten().enumerate() {
        let role = message["role"].as_str().unwrap_or_default();
        let allowed: &[&str] = match last {
            "system" => &["system", "user"],
            "user" => &["assistant"],
            "assistant" => &["user", "tool"],
            _ => &["tool", "assistant"],
        };
        if !allowed.contains(&role) {
            return Err(format!("messages[{index}]: unexpected role `{role}` after role `{last}`"));
        }
        last = role;
    }
    Ok(())
}

fn check_messages(body: &Map<String, Value>) -> Result<(), String> {
    let messages = body.get("messages").and_then(Value::as_array).ok_or("`messages` is missing")?;
    if messages.is_empty() {
        return Err("`messages` is empty".into());
    }
    let mut ids = HashSet::new();
    let mut open: Vec<&str> = Vec::new();
    for (index, message) in messages.iter().enumerate() {
        let complain = |what: &str| format!("messages[{index}]: {what}: {message}");
        let role = message["role"].as_str().ok_or_else(|| complain("no role"))?;
        if role == "tool" {
            let id = message["tool_call_id"].as_str().ok_or_else(|| complain("no tool_call_id"))?;
            let place = open.iter().position(|open| *open == id);
            open.remove(place.ok_or_else(|| complain("answers no open call"))?);
            if message["content"].as_str().unwrap_or_default().is_empty() {
                return Err(complain("a tool's content must be a string, not empty"));
            }
            continue;
        }
        if !open.is_empty() {
            return Err(complain(&format!("calls {open:?} are not answered")));
        }
        match role {
            "system" if index > 0 => return Err(complain("the system message must be at the beginning")),
            "system" if message["content"].as_str().unwrap_or_default().is_empty() => return Err(complain("empty")),
            "system" => {}
            "user" => check_user_content(&message["content"]).map_err(|what| complain(&what))?,
            "assistant" => {
                let calls = message.get("tool_calls").map(|calls| calls.as_array().filter(|calls| !calls.is_empty()));
                let calls = match calls {
                    Some(None) => return Err(complain("`tool_calls` must be an array, not empty")),
                    Some(Some(calls)) => calls.as_slice(),
                    None => &[],
                };
                match &message["content"] {
                    Value::String(text) if !text.is_empty() => {}
                    Value::Null | Value::String(_) if !calls.is_empty() => {}
                    _ => return Err(complain("neither text nor calls")),
                }
                for call in calls {
                    let id = check_call(call).map_err(|what| complain(&what))?;
                    if !ids.insert(id) {
                        return Err(complain("call id used twice"));
                    }
                    open.push(id);
                }
            }
            _ => return Err(complain("unexpected role")),
        }
    }
    if open.is_empty() { Ok(()) } else { Err(format!("calls {open:?} are not answered")) }
}

fn check_user_content(content: &Value) -> Result<(), String> {
    let parts = match content {
        Value::String(text) if !text.is_empty() => return Ok(()),
        Value::Array(parts) if !parts.is_empty() => parts,
        _ => return Err("empty content".into()),
    };
    for part in parts {
        let text = match part["type"].as_str() {
            Some("text") => &part["text"],
            Some("image_url") => &part["image_url"]["url"],
            _ => return Err("unknown part".into()),
        };
        if text.as_str().unwrap_or_default().is_empty() {
            return Err("empty part".into());
        }
    }
    Ok(())
}

fn check_call(call: &Value) -> Result<&str, String> {
    if call["type"] != "function" {
        return Err("a call must be of type `function`".into());
    }
    check_name(&call["function"]["name"])?;
    let arguments = call["function"]["arguments"].as_str().ok_or("`arguments` must be a string")?;
    serde_json::from_str::<Map<String, Value>>(arguments)
        .map_err(|error| format!("`arguments` must hold a JSON object: {error}"))?;
    call["id"].as_str().filter(|id| !id.is_empty()).ok_or_else(|| "a call must have an id".into())
}

pub(crate) fn check_name(name: &Value) -> Result<&str, String> {
    let name = name.as_str().unwrap_or_default();
    let is_valid = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.len() <= 64
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    if is_valid { Ok(name) } else { Err(format!("`{name}` is no function name")) }
}

fn check_tools(body: &Map<String, Value>) -> Result<(), String> {
    let Some(tools) = body.get("tools") else {
        let needs_tools = ["tool_choice", "parallel_tool_calls"].into_iter().find(|name| body.contains_key(*name));
        return needs_tools.map_or(Ok(()), |name| Err(format!("`{name}` is only allowed with `tools`")));
    };
    let tools = tools.as_array().filter(|tools| !tools.is_empty()).ok_or("`tools` must be an array, not empty")?;
    let mut names = HashSet::new();
    for (index, tool) in tools.iter().enumerate() {
        let complain = |what: &str| format!("tools[{index}]: {what}: {tool}");
        let function = tool["function"].as_object().ok_or_else(|| complain("no function"))?;
        if tool["type"] != "function" || tool.as_object().is_none_or(|tool| tool.len() != 2) {
            return Err(complain("must have `type` and `function` only"));
        }
        if !names.insert(check_name(&tool["function"]["name"]).map_err(|what| complain(&what))?) {
            return Err(complain("name used twice"));
        }
        let known = ["name", "description", "parameters", "strict"];
        if let Some(name) = function.keys().find(|name| !known.contains(&name.as_str())) {
            return Err(complain(&format!("`{name}` is not supported")));
        }
        let parameters = &tool["function"]["parameters"];
        if parameters["type"] != "object" || !parameters["properties"].is_object() {
            return Err(complain("`parameters` must be the schema of an object, with `properties`"));
        }
        check_schema(parameters).map_err(|what| complain(&what))?;
    }
    match &body.get("tool_choice") {
        None => Ok(()),
        Some(Value::String(choice)) if matches!(choice.as_str(), "auto" | "none" | "required") => Ok(()),
        Some(choice) if choice["function"]["name"].as_str().is_some_and(|name| names.contains(name)) => Ok(()),
        Some(choice) => Err(format!("`tool_choice` is not valid: {choice}")),
    }
}

/// Finds Codex's own keyword, which strict hosts refuse; a property may have that name.
pub(crate) fn check_schema(schema: &Value) -> Result<(), String> {
    let Some(members) = schema.as_object() else {
        return Ok(());
    };
    for (keyword, value) in members {
        match keyword.as_str() {
            "encrypted" => return Err("unknown keyword `encrypted`".into()),
            "properties" | "$defs" | "definitions" => {
                value.as_object().into_iter().flat_map(Map::values).try_for_each(check_schema)?;
            }
            "items" | "additionalProperties" => check_schema(value)?,
            "anyOf" | "oneOf" | "allOf" => value.as_array().into_iter().flatten().try_for_each(check_schema)?,
            _ => {}
        }
    }
    Ok(())
}
