//! What Anthropic checks before it takes a request.
//!
//! For tests: every body this crate writes must pass, and the fake provider of the end-to-end tests answers 400 with
//! the first complaint.

use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::chat::validate::{check_name, check_schema};

/// Members a body may have. Anything else is refused: "Extra inputs are not permitted".
const MEMBERS: [&str; 14] = [
    "model",
    "max_tokens",
    "system",
    "messages",
    "tools",
    "tool_choice",
    "thinking",
    "output_config",
    "temperature",
    "top_p",
    "top_k",
    "stop_sequences",
    "metadata",
    "stream",
];

/// Most marks for the cache in one request.
const CACHE_MARKS_MAX: usize = 4;

/// Checks a request body as Anthropic would.
///
/// # Errors
/// The first thing it would refuse, with its place.
pub fn check(body: &[u8]) -> Result<(), String> {
    let body: Value = serde_json::from_slice(body).map_err(|error| format!("body is not JSON: {error}"))?;
    let members = body.as_object().ok_or("body is not an object")?;
    if let Some(name) = members.keys().find(|name| !MEMBERS.contains(&name.as_str())) {
        return Err(format!("{name}: Extra inputs are not permitted"));
    }
    if body["model"].as_str().unwrap_or_default().is_empty() {
        return Err("model: Field required".into());
    }
    let max_tokens = body["max_tokens"].as_u64().filter(|tokens| *tokens > 0).ok_or("max_tokens: Field required")?;
    if members.contains_key("system") {
        check_system(&body["system"])?;
    }
    let thinks = check_thinking(members, max_tokens)?;
    check_tools(members, thinks)?;
    check_messages(members, thinks)?;
    match count_marks(&body) {
        0..=CACHE_MARKS_MAX => Ok(()),
        more => Err(format!("A maximum of 4 blocks with cache_control may be provided. Found {more}.")),
    }
}

/// Whether the model is asked to think, and how strictly that is held against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Thinks {
    /// It is not said.
    Unasked,
    Not,
    /// With a budget: its history must show that it did.
    Strictly,
    Freely,
}

fn check_thinking(body: &Map<String, Value>, max_tokens: u64) -> Result<Thinks, String> {
    let Some(thinking) = body.get("thinking") else { return Ok(Thinks::Unasked) };
    let only = |allowed: &[&str]| match thinking
        .as_object()
        .and_then(|members| members.keys().find(|name| !allowed.contains(&name.as_str())))
    {
        Some(name) => Err(format!("thinking.{name}: Extra inputs are not permitted")),
        None => Ok(()),
    };
    let thinks = match thinking["type"].as_str() {
        Some("disabled") => {
            only(&["type"])?;
            return Ok(Thinks::Not);
        }
        Some("enabled") => {
            only(&["type", "budget_tokens"])?;
            match thinking["budget_tokens"].as_u64() {
                Some(budget) if budget < 1024 => {
                    return Err("thinking.enabled.budget_tokens: must be at least 1024".into());
                }
                Some(budget) if budget >= max_tokens => {
                    return Err("`max_tokens` must be greater than `thinking.budget_tokens`".into());
                }
                Some(_) => Thinks::Strictly,
                None => return Err("thinking.enabled.budget_tokens: Field required".into()),
            }
        }
        Some("adaptive") => {
            only(&["type", "display"])?;
            match thinking.get("display").map(Value::as_str) {
                None | Some(Some("summarized" | "omitted")) => Thinks::Freely,
                Some(_) => return Err("thinking.adaptive.display: not valid".into()),
            }
        }
        _ => return Err("thinking: Input tag is not one of the expected tags".into()),
    };
    if body.get("temperature").is_some_and(|temperature| temperature.as_f64() != Some(1.0)) {
        return Err("`temperature` may only be set to 1 when thinking is enabled".into());
    }
    if body.contains_key("top_k") {
        return Err("`top_k` must be unset when thinking is enabled".into());
    }
    Ok(thinks)
}

fn check_system(system: &Value) -> Result<(), String> {
    match system {
        Value::String(text) if !text.trim().is_empty() => Ok(()),
        Value::Array(blocks) if !blocks.is_empty() => blocks.iter().try_for_each(|block| {
            if block["type"] != "text" {
                return Err(format!("system: only text blocks: {block}"));
            }
            check_text(block).map_err(|what| format!("system: {what}"))
        }),
        _ => Err("system: text content blocks must be non-empty".into()),
    }
}

fn check_tools(body: &Map<String, Value>, thinks: Thinks) -> Result<(), String> {
    let Some(tools) = body.get("tools") else {
        return if body.contains_key("tool_choice") {
            Err("tool_choice: may only be specified while providing tools".into())
        } else {
            Ok(())
        };
    };
    let tools = tools.as_array().filter(|tools| !tools.is_empty()).ok_or("tools: must be a list, not empty")?;
    let mut names = HashSet::new();
    for (index, tool) in tools.iter().enumerate() {
        let complain = |what: &str| format!("tools.{index}: {what}: {tool}");
        if tool["type"] == "web_search_20250305" && tool["name"] == "web_search" && names.insert("web_search") {
            continue;
        }
        let known = ["name", "description", "input_schema", "cache_control", "strict"];
        let members = tool.as_object().ok_or_else(|| complain("not an object"))?;
        if let Some(name) = members.keys().find(|name| !known.contains(&name.as_str())) {
            return Err(complain(&format!("{name}: Extra inputs are not permitted")));
        }
        if !names.insert(check_name(&tool["name"]).map_err(|what| complain(&what))?) {
            return Err(complain("Tool names must be unique"));
        }
        let schema = &tool["input_schema"];
        if schema["type"] != "object" {
            return Err(complain("input_schema.type: Input should be 'object'"));
        }
        if ["anyOf", "oneOf", "allOf"].iter().any(|name| schema.get(name).is_some()) {
            return Err(complain("input_schema does not support oneOf, allOf, or anyOf at the top level"));
        }
        check_schema(schema).map_err(|what| complain(&what))?;
    }
    let Some(choice) = body.get("tool_choice") else { return Ok(()) };
    match choice["type"].as_str() {
        Some("any" | "tool") if matches!(thinks, Thinks::Strictly | Thinks::Freely) => {
            return Err("Thinking may not be enabled when tool_choice forces tool use.".into());
        }
        Some("auto" | "none" | "any") => {}
        Some("tool") if choice["name"].as_str().is_some_and(|name| names.contains(name)) => {}
        _ => return Err(format!("tool_choice: not valid: {choice}")),
    }
    if choice["type"] == "none" && choice.get("disable_parallel_tool_use").is_some() {
        return Err("tool_choice.none.disable_parallel_tool_use: Extra inputs are not permitted".into());
    }
    Ok(())
}

fn check_messages(body: &Map<String, Value>, thinks: Thinks) -> Result<(), String> {
    let messages = body.get("messages").and_then(Value::as_array).ok_or("messages: Field required")?;
    if messages.first().is_none_or(|first| first["role"] != "user") {
        return Err("messages: first message must use the \"user\" role".into());
    }
    let mut ids = HashSet::new();
    let mut open: Vec<&str> = Vec::new();
    let mut last_role = "";
    for (index, message) in messages.iter().enumerate() {
        let complain = |what: &str| format!("messages.{index}: {what}: {message}");
        let role = message["role"].as_str().unwrap_or_default();
        if role == last_role {
            return Err(complain("roles must alternate between \"user\" and \"assistant\""));
        }
        last_role = role;
        let blocks = message["content"].as_array().filter(|blocks| !blocks.is_empty());
        let blocks = blocks.ok_or_else(|| complain("content must be a list of blocks, not empty"))?;
        match role {
            "user" => check_user(blocks, &mut open).map_err(|what| complain(&what))?,
            "assistant" => {
                for block in blocks {
                    if let Some(id) = check_assistant_block(block, thinks).map_err(|what| complain(&what))? {
                        if !ids.insert(id) {
                            return Err(complain("`tool_use` ids must be unique"));
                        }
                        open.push(id);
                    }
                }
                if blocks.last().is_some_and(is_thought) {
                    return Err(complain("The final block in an assistant message cannot be `thinking`"));
                }
            }
            _ => return Err(complain("role: Input should be 'user' or 'assistant'")),
        }
    }
    if !open.is_empty() {
        return Err(format!("`tool_use` ids were found without `tool_result` blocks immediately after: {open:?}"));
    }
    if !ids.is_empty() && !body.contains_key("tools") {
        return Err("Requests which include `tool_use` or `tool_result` blocks must define tools".into());
    }
    check_end(messages, thinks)?;
    if thinks == Thinks::Strictly { check_loop(messages) } else { Ok(()) }
}

/// A conversation that ends with the assistant asks the model to go on with its words.
fn check_end(messages: &[Value], thinks: Thinks) -> Result<(), String> {
    let Some(last) = messages.last().filter(|last| last["role"] == "assistant") else { return Ok(()) };
    if matches!(thinks, Thinks::Strictly | Thinks::Freely) {
        return Err("This model does not support assistant message prefill with thinking".into());
    }
    let text = last["content"].as_array().and_then(|blocks| blocks.last()).and_then(|block| block["text"].as_str());
    match text {
        Some(text) if text.trim_end() != text => {
            Err("final assistant content cannot end with trailing whitespace".into())
        }
        _ => Ok(()),
    }
}

/// The calls that the request continues must have begun with a thought.
fn check_loop(messages: &[Value]) -> Result<(), String> {
    let blocks = |message: &Value| message["content"].as_array().cloned().unwrap_or_default();
    let is_result = |block: &Value| block["type"] == "tool_result";
    let start =
        messages.iter().rposition(|message| message["role"] == "user" && !blocks(message).iter().any(is_result));
    let Some(start) = start else { return Ok(()) };
    for pair in messages[start..].windows(2) {
        let [before, message] = pair else { continue };
        // Words of the user begin a loop.
        let begins = before["role"] == "user" && !blocks(before).iter().all(is_result);
        let blocks = blocks(message);
        let calls = blocks.iter().any(|block| block["type"] == "tool_use");
        if message["role"] == "assistant" && begins && calls && !blocks.first().is_some_and(is_thought) {
            return Err(format!(
                "Expected `thinking` or `redacted_thinking`, but found `{}`. When `thinking` is enabled, a final \
                 `assistant` message must start with a thinking block: {message}",
                blocks[0]["type"].as_str().unwrap_or_default()
            ));
        }
    }
    Ok(())
}

fn is_thought(block: &Value) -> bool {
    matches!(block["type"].as_str(), Some("thinking" | "redacted_thinking"))
}

fn check_user(blocks: &[Value], open: &mut Vec<&str>) -> Result<(), String> {
    let mut is_past_results = false;
    for block in blocks {
        match block["type"].as_str() {
            Some("tool_result") => {
                if is_past_results {
                    return Err("`tool_result` blocks must come before everything else".into());
                }
                let id = block["tool_use_id"].as_str().unwrap_or_default();
                let place = open.iter().position(|open| *open == id);
                open.remove(
                    place.ok_or_else(|| format!("unexpected `tool_use_id` found in `tool_result` blocks: {id}"))?,
                );
                check_result(&block["content"])?;
            }
            Some("text") => {
                is_past_results = true;
                check_text(block)?;
            }
            Some("image") => {
                is_past_results = true;
                check_image(block)?;
            }
            _ => return Err(format!("a user cannot say {block}")),
        }
    }
    if open.is_empty() {
        Ok(())
    } else {
        Err(format!("`tool_use` ids were found without `tool_result` blocks immediately after: {open:?}"))
    }
}

fn check_result(content: &Value) -> Result<(), String> {
    match content {
        Value::String(text) if !text.trim().is_empty() => Ok(()),
        Value::Array(blocks) if !blocks.is_empty() => {
            blocks.iter().try_for_each(|block| match block["type"].as_str() {
                Some("text") => check_text(block),
                Some("image") => check_image(block),
                _ => Err(format!("a result cannot hold {block}")),
            })
        }
        _ => Err("an empty result".into()),
    }
}

fn check_assistant_block(block: &Value, thinks: Thinks) -> Result<Option<&str>, String> {
    match block["type"].as_str() {
        Some("text") => check_text(block).map(|()| None),
        Some("thinking" | "redacted_thinking") => {
            if thinks == Thinks::Not {
                return Err("When `thinking` is disabled, an `assistant` message cannot contain `thinking`".into());
            }
            if block.get("cache_control").is_some() {
                return Err("cache_control: not on thinking".into());
            }
            let is_whole = match block["type"].as_str() {
                Some("thinking") => {
                    block["thinking"].is_string() && !block["signature"].as_str().unwrap_or_default().is_empty()
                }
                _ => !block["data"].as_str().unwrap_or_default().is_empty(),
            };
            if is_whole { Ok(None) } else { Err("thinking.signature: Field required".into()) }
        }
        Some("tool_use") => {
            check_name(&block["name"])?;
            if !block["input"].is_object() {
                return Err("tool_use.input: Input should be a valid dictionary".into());
            }
            let id = block["id"].as_str().unwrap_or_default();
            let is_id =
                !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
            if is_id { Ok(Some(id)) } else { Err("tool_use.id: String should match pattern '^[a-zA-Z0-9_-]+$'".into()) }
        }
        _ => Err(format!("an assistant cannot say {block}")),
    }
}

fn check_text(block: &Value) -> Result<(), String> {
    if block["text"].as_str().unwrap_or_default().trim().is_empty() {
        return Err("text content blocks must contain non-whitespace text".into());
    }
    Ok(())
}

fn check_image(block: &Value) -> Result<(), String> {
    let source = &block["source"];
    let is_filled = |name: &str| !source[name].as_str().unwrap_or_default().is_empty();
    match source["type"].as_str() {
        Some("base64") => {
            let known = ["image/png", "image/jpeg", "image/gif", "image/webp"];
            let is_known = source["media_type"].as_str().is_some_and(|kind| known.contains(&kind));
            if is_known && is_filled("data") { Ok(()) } else { Err(format!("image.source: not valid: {source}")) }
        }
        Some("url") if is_filled("url") => Ok(()),
        _ => Err(format!("image.source: not valid: {source}")),
    }
}

fn count_marks(value: &Value) -> usize {
    match value {
        Value::Object(members) => members
            .iter()
            .map(|(name, value)| match name.as_str() {
                "cache_control" => usize::from(value["type"] == "ephemeral"),
                // What a model was given is its own business.
                "input" | "input_schema" => 0,
                _ => count_marks(value),
            })
            .sum(),
        Value::Array(elements) => elements.iter().map(count_marks).sum(),
        _ => 0,
    }
}
