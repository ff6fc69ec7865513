//! What a scripted provider answers to what.
//!
//! A [`Script`] is a list of [`Turn`]s. A request is answered by the first turn that is still unused and whose
//! [`When`] fits; a request that no turn expects is an error of the test. Scripts are Rust values or TOML files.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use codex_control::tables::Protocol;
use serde::Deserialize;
use serde_json::Value;

/// A whole scenario.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// What it speaks.
    #[serde(default = "default_protocol")]
    pub protocol: Protocol,
    /// Models it offers; the first stands in answers.
    #[serde(default = "default_models")]
    pub models: Vec<String>,
    /// The key it wants as a bearer, or for Anthropic Messages as `x-api-key`; `None` takes any request.
    #[serde(default)]
    pub key: Option<String>,
    /// Top-level members allowed beside those of the portable body.
    #[serde(default)]
    pub allow: Vec<String>,
    /// It refuses a call that comes back without what was thought before it; Chat Completions only, the others always
    /// do.
    #[serde(default)]
    pub replay_reasoning: bool,
    /// How bytes are put on the wire.
    #[serde(default)]
    pub wire: Wire,
    /// What it answers.
    #[serde(default)]
    pub turn: Vec<Turn>,
}

fn default_protocol() -> Protocol {
    Protocol::ChatCompletions
}

fn default_models() -> Vec<String> {
    vec!["scripted".to_owned()]
}

impl Default for Script {
    fn default() -> Self {
        Self::new()
    }
}

impl Script {
    /// A script that offers the model `scripted` by Chat Completions and answers nothing yet.
    pub fn new() -> Self {
        Self::speaking(default_protocol())
    }

    /// The same by Anthropic Messages.
    pub fn anthropic() -> Self {
        Self::speaking(Protocol::AnthropicMessages)
    }

    /// The same by the Responses API itself.
    pub fn responses() -> Self {
        Self::speaking(Protocol::Responses)
    }

    /// The same by any protocol.
    pub fn speaking(protocol: Protocol) -> Self {
        Self {
            protocol,
            models: default_models(),
            key: None,
            allow: Vec::new(),
            replay_reasoning: false,
            wire: Wire::default(),
            turn: Vec::new(),
        }
    }

    /// Refuses calls that come back without what was thought before them.
    #[must_use]
    pub fn replaying_reasoning(mut self) -> Self {
        self.replay_reasoning = true;
        self
    }

    /// Adds a turn that is used once.
    #[must_use]
    pub fn turn(mut self, when: When, answer: impl Into<Vec<Step>>) -> Self {
        self.turn.push(Turn { when, answer: answer.into(), repeat: false });
        self
    }

    /// Adds a turn that may be used any number of times, or never.
    #[must_use]
    pub fn always(mut self, when: When, answer: impl Into<Vec<Step>>) -> Self {
        self.turn.push(Turn { when, answer: answer.into(), repeat: true });
        self
    }

    /// Asks for `key` as the bearer.
    #[must_use]
    pub fn key(mut self, key: &str) -> Self {
        self.key = Some(key.to_owned());
        self
    }

    /// Allows one more top-level member of the request.
    #[must_use]
    pub fn allow(mut self, member: &str) -> Self {
        self.allow.push(member.to_owned());
        self
    }

    /// Reads a script from a TOML file.
    ///
    /// # Errors
    /// When it cannot be read or makes no sense.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        use anyhow::Context as _;
        let text = std::fs::read_to_string(path).with_context(|| format!("`{}` cannot be read", path.display()))?;
        toml::from_str(&text).with_context(|| format!("`{}` is no script", path.display()))
    }
}

/// One answer and the request it belongs to.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Turn {
    /// Which request it answers.
    #[serde(default)]
    pub when: When,
    /// The answer.
    pub answer: Vec<Step>,
    /// Whether it may be used more than once.
    #[serde(default)]
    pub repeat: bool,
}

/// Which requests a turn answers. Every condition that is set must hold.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct When {
    /// Role of the last message.
    pub last_role: Option<String>,
    /// The text of the last message contains this.
    pub last_contains: Option<String>,
    /// Each stands somewhere in the messages.
    pub contains: Vec<String>,
    /// None stands anywhere in the messages.
    pub lacks: Vec<String>,
}

impl When {
    /// Any request.
    pub fn any() -> Self {
        Self::default()
    }

    /// The last message is the user's and contains `text`.
    pub fn user(text: &str) -> Self {
        Self { last_role: Some("user".to_owned()), last_contains: Some(text.to_owned()), ..Self::default() }
    }

    /// The last message is a tool's result that contains `text`.
    pub fn tool(text: &str) -> Self {
        Self { last_role: Some("tool".to_owned()), last_contains: Some(text.to_owned()), ..Self::default() }
    }

    /// `text` stands somewhere in the messages.
    #[must_use]
    pub fn and(mut self, text: &str) -> Self {
        self.contains.push(text.to_owned());
        self
    }

    /// `text` stands nowhere in the messages.
    #[must_use]
    pub fn without(mut self, text: &str) -> Self {
        self.lacks.push(text.to_owned());
        self
    }

    /// Whether the request is meant whose body looks like this in the shape of Chat Completions.
    pub fn fits(&self, body: &Value) -> bool {
        let messages = body["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
        let last = messages.last();
        let anywhere = |text: &String| messages.iter().any(|message| message_text(message).contains(text.as_str()));
        self.last_role.as_deref().is_none_or(|role| last.is_some_and(|last| last["role"] == role))
            && self
                .last_contains
                .as_deref()
                .is_none_or(|text| last.is_some_and(|last| message_text(last).contains(text)))
            && self.contains.iter().all(anywhere)
            && !self.lacks.iter().any(anywhere)
    }
}

/// Everything readable in a message, its parts one a line: text and the arguments of calls, not images.
pub fn message_text(message: &Value) -> String {
    let mut lines = Vec::new();
    match &message["content"] {
        Value::String(text) => lines.push(text.as_str()),
        Value::Array(parts) => lines.extend(parts.iter().filter_map(|part| part["text"].as_str())),
        _ => {}
    }
    for call in message["tool_calls"].as_array().into_iter().flatten() {
        lines.extend([&call["function"]["name"], &call["function"]["arguments"]].into_iter().filter_map(Value::as_str));
    }
    lines.join("\n")
}

/// One step of an answer.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Visible text, sent word by word.
    Text(String),
    /// Thinking, sent word by word and signed where the protocol knows that.
    Reasoning(String),
    /// A tool call, its arguments in fragments.
    Call(Call),
    /// Several calls at once, their fragments interleaved.
    Calls(Vec<Call>),
    /// A call of Codex's freeform `apply_patch` with this patch.
    Patch(String),
    /// Sent as it is, between whatever else is sent.
    Raw(String),
    /// The token counts at the end; made up from the sizes where absent.
    Usage {
        /// Tokens of the request.
        prompt_tokens: u64,
        /// Tokens of the answer.
        completion_tokens: u64,
    },
    /// The finish reason; `stop` or `tool_calls` where absent.
    Finish(String),
    /// Writes what there is, then waits until the test releases this gate.
    Hold(String),
    /// Writes what there is, then lets this many milliseconds pass.
    PauseMs(u64),
    /// Answers with this status instead of a stream.
    Status(Status),
    /// Resets the connection.
    Reset,
    /// Closes the connection without ending the stream.
    Close,
    /// Says nothing more until the client has gone.
    Silence,
    /// Steps that depend on the request; not in files.
    #[serde(skip)]
    Computed(Computed),
}

/// A tool call.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// The tool: words that stand in its offered name in this order, separated by `/`. `notes/keep` is
    /// `mcp__notes__keep`, however that is spelled upstream. A tool of exactly this name is preferred.
    pub tool: String,
    /// Its arguments.
    pub arguments: Value,
}

impl Call {
    /// A call of `exec_command`.
    ///
    /// Codex reads what a command has written for only 50 ms after its end: on a busy machine the result of one that
    /// ends at once may be empty. So its shell stays a little longer.
    pub fn shell(command: &str) -> Self {
        let command = format!("trap 'sleep 0.2' EXIT; {command}");
        Self { tool: "exec_command".to_owned(), arguments: serde_json::json!({ "cmd": command }) }
    }
}

/// An answer that is no stream.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// HTTP status.
    pub code: u16,
    /// Headers beside the usual ones.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Body.
    #[serde(default)]
    pub body: String,
}

/// Makes steps from the body of a request in the shape of Chat Completions.
#[derive(Clone)]
pub struct Computed(Arc<Compute>);

type Compute = dyn Fn(&Value) -> Vec<Step> + Send + Sync;

impl Computed {
    pub(crate) fn steps(&self, body: &Value) -> Vec<Step> {
        (self.0)(body)
    }
}

impl fmt::Debug for Computed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Computed(…)")
    }
}

impl Step {
    /// Visible text.
    pub fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    /// Thinking.
    pub fn reasoning(text: &str) -> Self {
        Self::Reasoning(text.to_owned())
    }

    /// A tool call; see [`Call::tool`].
    pub fn call(tool: &str, arguments: Value) -> Self {
        Self::Call(Call { tool: tool.to_owned(), arguments })
    }

    /// A call of `exec_command`; see [`Call::shell`].
    pub fn shell(command: &str) -> Self {
        Self::Call(Call::shell(command))
    }

    /// A gate; see [`super::FakeProvider::release`].
    pub fn hold(gate: &str) -> Self {
        Self::Hold(gate.to_owned())
    }

    /// Token counts.
    pub fn usage(prompt_tokens: u64, completion_tokens: u64) -> Self {
        Self::Usage { prompt_tokens, completion_tokens }
    }

    /// An HTTP status with a JSON body.
    pub fn status(code: u16, body: &Value) -> Self {
        Self::Status(Status { code, headers: BTreeMap::new(), body: body.to_string() })
    }

    /// Steps that depend on the request.
    pub fn computed(steps: impl Fn(&Value) -> Vec<Self> + Send + Sync + 'static) -> Self {
        Self::Computed(Computed(Arc::new(steps)))
    }
}

/// How bytes are put on the wire.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Wire {
    /// Sizes of the writes, used in turn: events, lines and code points are cut anywhere. Empty: one write an event.
    pub write_bytes: Vec<usize>,
    /// Pause between two writes, in microseconds.
    pub pause_us: u64,
    /// Ends lines with CRLF.
    pub crlf: bool,
    /// Ends the body by closing the connection instead of with chunked encoding.
    pub close_delimited: bool,
}

impl Default for Wire {
    fn default() -> Self {
        Self { write_bytes: vec![1, 5, 17, 3, 64, 2, 128, 7, 1_400], pause_us: 0, crlf: false, close_delimited: false }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn scripts_are_read_from_toml() {
        let script: Script = toml::from_str(
            r#"
            key = "k"
            wire = { crlf = true }
            [[turn]]
            when = { last_role = "user", contains = ["hello"] }
            answer = [
                { text = "Hi" },
                { call = { tool = "exec_command", arguments = { cmd = "ls" } } },
                { calls = [{ tool = "a", arguments = {} }, { tool = "b", arguments = {} }] },
                { usage = { prompt_tokens = 1, completion_tokens = 2 } },
                { status = { code = 500 } },
                { hold = "gate" },
                "reset",
            ]
            "#,
        )
        .unwrap();
        assert_eq!(script.models, ["scripted"]);
        assert_eq!(script.turn[0].answer.len(), 7);
        assert!(matches!(script.turn[0].answer[6], Step::Reset));
    }

    #[test]
    fn a_turn_knows_its_request() {
        let body = json!({ "messages": [
            { "role": "system", "content": "be kind" },
            { "role": "user", "content": [{ "type": "text", "text": "hello there" }] },
            { "role": "assistant", "content": null, "tool_calls": [{ "id": "1", "function": { "name": "ls", "arguments": "{}" } }] },
            { "role": "tool", "tool_call_id": "1", "content": "a b" },
        ] });
        for (when, fits) in [
            (When::any(), true),
            (When::tool("b"), true),
            (When::tool("c"), false),
            (When::user("a"), false),
            (When::any().and("hello").and("ls"), true),
            (When::any().and("good bye"), false),
            (When::any().without("kind"), false),
            (When::any().without("good bye"), true),
        ] {
            assert_eq!(when.fits(&body), fits, "{when:?}");
        }
    }
}
