//! What a model has thought before its calls, and whether that comes back unchanged.
//!
//! Providers that sign what their models think refuse a request in which it was changed, and one that continues calls
//! without the thought they began with. Here that is remembered answer by answer.

use std::collections::HashMap;

use codex_control::tables::Protocol;
use serde_json::Value;

use super::script::Script;
use super::speak::Thought;

/// Everything a provider has thought.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    thoughts: Vec<Thought>,
    /// By the id of a call: the thought before it.
    before: HashMap<String, Thought>,
}

impl Ledger {
    /// Thoughts have been sent.
    pub(super) fn thought(&mut self, thoughts: Vec<Thought>) {
        self.thoughts.extend(thoughts);
    }

    /// Calls have been sent behind a thought.
    pub(super) fn called(&mut self, ids: impl Iterator<Item = String>, thought: Option<&Thought>) {
        if let Some(thought) = thought {
            self.thoughts.push(thought.clone());
            self.before.extend(ids.map(|id| (id, thought.clone())));
        }
    }

    /// The complaints about what a request says was thought.
    pub(super) fn complaints(&self, script: &Script, body: &Value) -> Vec<String> {
        match script.protocol {
            Protocol::ChatCompletions if script.replay_reasoning => self.chat(body),
            Protocol::ChatCompletions => Vec::new(),
            Protocol::AnthropicMessages => self.anthropic(body),
            Protocol::Responses => self.responses(body),
        }
    }

    /// Each call must come back with the words before it.
    fn chat(&self, body: &Value) -> Vec<String> {
        let mut complaints = Vec::new();
        for (index, message) in list(&body["messages"]).iter().enumerate() {
            for call in list(&message["tool_calls"]) {
                if let Some(thought) = self.before(&call["id"])
                    && message["reasoning_content"] != thought.text
                {
                    complaints.push(format!(
                        "messages[{index}]: the `reasoning_content` in the thinking mode must be passed back to the \
                         API, not {}",
                        message["reasoning_content"]
                    ));
                }
            }
        }
        complaints
    }

    /// Thinking must be unchanged everywhere, and stand before the calls that the request continues.
    fn anthropic(&self, body: &Value) -> Vec<String> {
        let mut complaints = Vec::new();
        let messages = list(&body["messages"]);
        let is_asked = |message: &Value| {
            message["role"] == "user" && list(&message["content"]).iter().all(|block| block["type"] != "tool_result")
        };
        let asked_at = messages.iter().rposition(is_asked).unwrap_or(0);
        // Without thinking the history need not show any.
        let is_off = body["thinking"]["type"] == "disabled";
        for (index, message) in messages.iter().enumerate() {
            let mut thought_before: Option<&Value> = None;
            for block in list(&message["content"]) {
                match block["type"].as_str() {
                    Some("thinking") => {
                        thought_before = Some(block);
                        if !self.thoughts.iter().any(|thought| is_same(block, thought)) {
                            complaints
                                .push(format!("messages.{index}: Invalid `signature` in `thinking` block: {block}"));
                        }
                    }
                    Some("redacted_thinking") => {
                        complaints
                            .push(format!("messages.{index}: Invalid `data` in `redacted_thinking` block: {block}"));
                    }
                    Some("tool_use") if index > asked_at && !is_off => {
                        if let Some(thought) = self.before(&block["id"])
                            && !thought_before.is_some_and(|block| is_same(block, thought))
                        {
                            complaints.push(format!(
                                "messages.{index}: Expected `thinking` or `redacted_thinking`, but found `tool_use`: {message}"
                            ));
                        }
                    }
                    _ => {}
                }
            }
        }
        complaints
    }

    /// Reasoning of another origin cannot be read, and the calls that the request continues need theirs.
    fn responses(&self, body: &Value) -> Vec<String> {
        let mut complaints = Vec::new();
        let items = list(&body["input"]);
        let asked_at = items.iter().rposition(|item| item["role"] == "user").unwrap_or(0);
        let mut given: Vec<&str> = Vec::new();
        for (index, item) in items.iter().enumerate() {
            if let Some(content) = item["encrypted_content"].as_str() {
                given.push(content);
                if !self.thoughts.iter().any(|thought| thought.signature == content) {
                    complaints.push(format!("input[{index}]: The encrypted content could not be verified: {item}"));
                }
            }
            if let Some(thought) = self.before(&item["call_id"]).filter(|_| index > asked_at)
                && !given.contains(&thought.signature.as_str())
            {
                complaints.push(format!("input[{index}] was provided without its required `reasoning` item: {item}"));
            }
        }
        complaints
    }

    fn before(&self, call_id: &Value) -> Option<&Thought> {
        self.before.get(call_id.as_str()?)
    }
}

fn is_same(block: &Value, thought: &Thought) -> bool {
    block["thinking"] == thought.text && block["signature"] == thought.signature
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}
