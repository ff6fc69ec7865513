//! One look for the requests of all protocols.
//!
//! Conditions of scripts and assertions of tests read messages and tools in the shape of Chat Completions, whatever
//! was on the wire: [`view`] brings a body into it. What it does not know it leaves out; whether the body is sound is
//! for [`validate`](super::validate) to say.

use codex_control::tables::Protocol;
use serde_json::{Map, Value, json};

/// `body` in the shape of Chat Completions, as far as `model`, `messages`, `tools` and `response_format` go.
///
/// A tool of a namespace is named `NAMESPACE/NAME`; a freeform tool is a function of one string, `input`, that has the
/// member `freeform`.
pub(super) fn view(protocol: Protocol, body: &Value) -> Value {
    match protocol {
        Protocol::ChatCompletions => body.clone(),
        Protocol::AnthropicMessages => messages(body),
        Protocol::Responses => responses(body),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Puts a conversation together, its assistant's pieces one by one.
#[derive(Default)]
struct Conversation(Vec<Value>);

impl Conversation {
    /// The assistant's message to add to.
    fn assistant(&mut self) -> &mut Map<String, Value> {
        if self.0.last().is_none_or(|last| last["role"] != "assistant") {
            self.0.push(json!({ "role": "assistant", "content": null }));
        }
        self.0.last_mut().and_then(Value::as_object_mut).expect("the last message is an object")
    }

    fn say(&mut self, member: &str, text: &str) {
        let place = self.assistant().entry(member).or_insert(Value::Null);
        let before = place.as_str().unwrap_or_default();
        *place = Value::String(format!("{before}{text}"));
    }

    fn call(&mut self, id: &Value, name: &str, arguments: &str) {
        let call = json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } });
        let calls = self.assistant().entry("tool_calls").or_insert_with(|| json!([]));
        calls.as_array_mut().expect("it is ours").push(call);
    }

    fn result(&mut self, id: &Value, content: &Value) {
        self.0.push(json!({ "role": "tool", "tool_call_id": id, "content": content }));
    }
}

fn messages(body: &Value) -> Value {
    let mut conversation = Conversation::default();
    match &body["system"] {
        Value::Null => {}
        system => conversation.0.push(json!({ "role": "system", "content": system })),
    }
    for message in list(&body["messages"]) {
        let mut said = Vec::new();
        for block in list(&message["content"]) {
            match (message["role"].as_str().unwrap_or_default(), block["type"].as_str().unwrap_or_default()) {
                ("user", "text" | "image") => said.push(part(block)),
                ("user", "tool_result") => {
                    let content = match &block["content"] {
                        Value::Array(blocks) => blocks.iter().map(part).collect(),
                        content => content.clone(),
                    };
                    conversation.result(&block["tool_use_id"], &content);
                }
                ("assistant", "text") => conversation.say("content", block["text"].as_str().unwrap_or_default()),
                ("assistant", "thinking") => {
                    conversation.say("reasoning_content", block["thinking"].as_str().unwrap_or_default());
                }
                ("assistant", "tool_use") => conversation.call(
                    &block["id"],
                    block["name"].as_str().unwrap_or_default(),
                    &block["input"].to_string(),
                ),
                _ => {}
            }
        }
        if !said.is_empty() {
            conversation.0.push(json!({ "role": "user", "content": said }));
        }
    }
    let tools: Vec<Value> = list(&body["tools"])
        .iter()
        .map(|tool| json!({ "type": "function", "function": { "name": tool["name"], "parameters": tool["input_schema"] } }))
        .collect();
    assemble(body, conversation, tools, &body["output_config"]["format"]["schema"])
}

/// A content block of Anthropic's as a part of Chat Completions.
fn part(block: &Value) -> Value {
    let source = &block["source"];
    match source["type"].as_str() {
        Some("base64") => {
            let text = |name: &str| source[name].as_str().unwrap_or_default();
            let url = format!("data:{};base64,{}", text("media_type"), text("data"));
            json!({ "type": "image_url", "image_url": { "url": url } })
        }
        Some(_) => json!({ "type": "image_url", "image_url": { "url": source["url"] } }),
        None => json!({ "type": "text", "text": block["text"] }),
    }
}

fn responses(body: &Value) -> Value {
    let mut conversation = Conversation::default();
    let mut system: Vec<Value> =
        body["instructions"].as_str().map(|text| text_part(&json!(text))).into_iter().collect();
    for item in list(&body["input"]) {
        let kind = item["type"].as_str().unwrap_or("message");
        let parts: Vec<Value> = match &item["content"] {
            Value::String(text) => vec![text_part(&json!(text))],
            content => list(content).iter().map(input_part).collect(),
        };
        match (kind, item["role"].as_str().unwrap_or_default()) {
            ("message", "developer" | "system") if conversation.0.is_empty() => system.extend(parts),
            ("message", "assistant") => {
                for part in &parts {
                    conversation.say("content", part["text"].as_str().unwrap_or_default());
                }
            }
            ("message", role) => conversation.0.push(json!({ "role": role, "content": parts })),
            ("reasoning", _) => {
                for part in list(&item["summary"]) {
                    conversation.say("reasoning_content", part["text"].as_str().unwrap_or_default());
                }
            }
            ("function_call", _) => {
                let name = qualified(item["namespace"].as_str(), &item["name"]);
                conversation.call(&item["call_id"], &name, item["arguments"].as_str().unwrap_or_default());
            }
            ("custom_tool_call", _) => {
                let name = qualified(item["namespace"].as_str(), &item["name"]);
                conversation.call(&item["call_id"], &name, &json!({ "input": item["input"] }).to_string());
            }
            ("function_call_output" | "custom_tool_call_output", _) => {
                let content = match &item["output"] {
                    Value::Array(parts) => parts.iter().map(input_part).collect(),
                    output => output.clone(),
                };
                conversation.result(&item["call_id"], &content);
            }
            _ => {}
        }
    }
    if !system.is_empty() {
        conversation.0.insert(0, json!({ "role": "system", "content": system }));
    }
    let mut tools = Vec::new();
    for tool in list(&body["tools"]) {
        match tool["type"].as_str() {
            Some("namespace") => {
                tools.extend(list(&tool["tools"]).iter().filter_map(|inner| function(tool["name"].as_str(), inner)));
            }
            _ => tools.extend(function(None, tool)),
        }
    }
    assemble(body, conversation, tools, &body["text"]["format"]["schema"])
}

fn qualified(namespace: Option<&str>, name: &Value) -> String {
    let name = name.as_str().unwrap_or_default();
    namespace.map_or_else(|| name.to_owned(), |namespace| format!("{namespace}/{name}"))
}

/// A function or freeform tool of the Responses API; hosted tools are none.
fn function(namespace: Option<&str>, tool: &Value) -> Option<Value> {
    let name = qualified(namespace, &tool["name"]);
    let function = match tool["type"].as_str()? {
        "function" => json!({ "name": name, "parameters": tool["parameters"] }),
        "custom" => json!({
            "name": name,
            "parameters": { "type": "object", "properties": { "input": { "type": "string" } } },
            "freeform": true,
        }),
        _ => return None,
    };
    Some(json!({ "type": "function", "function": function }))
}

fn text_part(text: &Value) -> Value {
    json!({ "type": "text", "text": text })
}

fn input_part(part: &Value) -> Value {
    if part["type"] == "input_image" {
        return json!({ "type": "image_url", "image_url": { "url": part["image_url"] } });
    }
    text_part(&part["text"])
}

fn assemble(body: &Value, conversation: Conversation, tools: Vec<Value>, schema: &Value) -> Value {
    let Conversation(messages) = conversation;
    let mut view = json!({ "model": body["model"] });
    view["messages"] = Value::Array(messages);
    if !tools.is_empty() {
        view["tools"] = Value::Array(tools);
    }
    if !schema.is_null() {
        view["response_format"] = json!({ "type": "json_schema", "json_schema": { "schema": schema } });
    }
    view
}
