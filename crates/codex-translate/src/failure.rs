//! What went wrong upstream, in one type that the retry policy, Codex's answer and the incident engine all read.
//!
//! Providers say the same thing in a dozen shapes; [`Failure::from_response`] and [`Failure::from_error_value`]
//! read them all. Sources: each shape stands as a fixture in `tests/fixtures`.
//!
//! A failure is sorted by what can be done about it. The HTTP status alone misleads (a 429 may be an empty account,
//! a 400 a full context window), so the provider's codes and words are asked first, the status last.

mod classify;
mod facts;
mod refused;
mod wait;
mod words;

use std::time::Duration;

use serde_json::Value;

use facts::Facts;
pub use words::redact;

/// An upstream failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What kind of failure.
    pub class: FailureClass,
    /// The provider's own words: tags, control characters and secrets removed, at most [`MESSAGE_BYTES_MAX`] bytes.
    pub message: String,
    /// The HTTP status, or `None` when the failure came inside a stream or without an answer.
    pub http_status: Option<u16>,
    /// How long the provider asks to wait, at most [`RETRY_AFTER_MAX`].
    pub retry_after: Option<Duration>,
    /// One change of the request that is worth a second attempt.
    pub repair: Option<Repair>,
    /// What happened to the connection, where that is what failed.
    pub trouble: Option<Trouble>,
}

/// What happened to a connection. What is done for the request is the same; what is told about the provider is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trouble {
    /// The provider's name could not be resolved.
    NameNotFound,
    /// There is no TLS with the provider: most often its certificate is not accepted.
    Untrusted,
    /// No connection, or no answer, in time.
    TimedOut,
    /// The connection broke.
    Broke,
    /// The answer had begun, and then nothing came for the whole idle time.
    Silent,
    /// We ended it ourselves: the provider has done nothing wrong.
    EndedByUs,
}

/// The kinds of failure that are told apart, each with its own answer to Codex.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureClass {
    /// The key is missing, wrong, expired, or not allowed.
    Auth,
    /// Money or plan is used up; waiting does not help.
    Quota,
    /// Too many requests; waiting helps.
    RateLimit,
    /// The request does not fit the model's context window.
    ContextLength,
    /// The model does not exist there.
    ModelNotFound,
    /// The provider refused the request's content or shape.
    InvalidRequest,
    /// The provider refuses for policy reasons; final.
    Refused,
    /// The client's version is too old for the provider.
    UpgradeRequired,
    /// The provider is at capacity.
    Overloaded,
    /// An error of the provider.
    Server,
    /// The connection failed, was reset or timed out.
    Network,
    /// The stream ended before the answer did.
    Truncated,
    /// The answer was empty or made no sense.
    Malformed,
}

/// A correction of the request that may make the provider accept it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Leave out this parameter: its name, or its path as the provider writes it (`tools[0].function.strict`).
    Drop(String),
    /// One system message only, first.
    MergeSystem,
    /// Simplify tool schemas.
    CleanSchema,
    /// Content as plain strings.
    StringContent,
    /// Send `reasoning_content` with historical calls.
    ReasoningContentRequired,
    /// No images: notes in their place.
    NoImages,
    /// Ask for one of these efforts, as the provider spells them.
    Efforts(Vec<String>),
    /// Ask for so many output tokens at most.
    OutputTokens(u64),
    /// Ask for thinking as adaptive, not with a budget.
    ThinkAdaptively,
    /// Ask for thinking with a budget, not as adaptive.
    ThinkByBudget,
    /// Leave out what the model thought earlier: the provider does not know it as its own. A matter of one conversation,
    /// nothing to be learned for others.
    ForgetThinking,
    /// Get a new access token.
    RefreshToken,
    /// Make a new session first.
    CreateSession,
    /// Start a new agent run first.
    StartNewRun,
}

/// Longest message kept from a provider.
pub const MESSAGE_BYTES_MAX: usize = 2_000;

/// Longest wait that is believed. Weekly plan windows are the longest that providers have.
pub const RETRY_AFTER_MAX: Duration = Duration::from_hours(8 * 24);

/// Longest error body that is looked at; an error that says anything says it early.
pub const BODY_BYTES_MAX: usize = 256 * 1024;

impl Failure {
    /// A failure of the connection itself.
    pub fn of_connection(trouble: Trouble, message: impl Into<String>) -> Self {
        Self { trouble: Some(trouble), ..Self::new(FailureClass::Network, message) }
    }

    /// A failure that no provider has worded.
    pub fn new(class: FailureClass, message: impl Into<String>) -> Self {
        Self { class, message: message.into(), http_status: None, retry_after: None, repair: None, trouble: None }
    }

    /// Reads an HTTP answer that is not a success, or a success whose body is an error.
    ///
    /// `headers` are pairs of name and value, in any case. Of `body` the first [`BODY_BYTES_MAX`] bytes count.
    /// `now_unix_ms` is needed for dates.
    pub fn from_response(status: u16, headers: &[(&str, &str)], body: &[u8], now_unix_ms: u64) -> Self {
        let body = String::from_utf8_lossy(&body[..body.len().min(BODY_BYTES_MAX)]);
        let mut facts = Facts::default();
        match serde_json::from_str::<Value>(&body) {
            Ok(value) => facts.read(&value),
            Err(_) => facts.read_text(&body),
        }
        let class = classify::class(&facts, Some(status));
        let retry_after = wait::from_headers(headers, now_unix_ms).or_else(|| facts.wait()).or_else(|| {
            if class == FailureClass::RateLimit { wait::from_reset_headers(headers, now_unix_ms) } else { None }
        });
        let message = facts.message().unwrap_or_else(|| {
            format!("the provider answered HTTP {status}{} without a message", words::reason_phrase(status))
        });
        Self {
            class,
            message,
            http_status: Some(status),
            retry_after: retry_after.map(|wait| wait.min(RETRY_AFTER_MAX)),
            repair: classify::repair(&facts, class),
            trouble: None,
        }
    }

    /// As [`from_error_value`](Self::from_error_value), for the text that came, be it JSON or not. Its first
    /// [`BODY_BYTES_MAX`] bytes count.
    pub fn from_error_text(text: &str) -> Self {
        let text = &text[..text.floor_char_boundary(BODY_BYTES_MAX)];
        Self::from_error_value(&Value::String(text.to_owned()))
    }

    /// Reads an error that came inside a stream: the error object, or an object that has it under a usual name.
    pub fn from_error_value(value: &Value) -> Self {
        let mut facts = Facts::default();
        facts.read(value);
        let class = classify::class(&facts, None);
        Self {
            class,
            message: facts.message().unwrap_or_else(|| "the provider reported an error without a message".to_owned()),
            http_status: None,
            retry_after: facts.wait().map(|wait| wait.min(RETRY_AFTER_MAX)),
            repair: classify::repair(&facts, class),
            trouble: None,
        }
    }
}

impl FailureClass {
    /// Whether asking again, unchanged, can help.
    pub fn is_retryable(self) -> bool {
        match self {
            Self::RateLimit | Self::Overloaded | Self::Server | Self::Network | Self::Truncated | Self::Malformed => {
                true
            }
            Self::Auth
            | Self::Quota
            | Self::ContextLength
            | Self::ModelNotFound
            | Self::InvalidRequest
            | Self::Refused
            | Self::UpgradeRequired => false,
        }
    }

    /// The `response.failed` code that makes Codex do the right thing when nothing of the answer was shown yet.
    ///
    /// Permanent failures carry `invalid_prompt`, the only code whose message Codex shows as it is.
    /// `server_is_overloaded` stops Codex, which is right once our own retries are spent; an answer that breaks off in
    /// the middle is worth Codex's retry, so there the emitter says `server_error` instead.
    pub fn responses_code(self) -> &'static str {
        match self {
            Self::ContextLength => "context_length_exceeded",
            Self::RateLimit => "rate_limit_exceeded",
            Self::Overloaded => "server_is_overloaded",
            Self::Server | Self::Network | Self::Truncated | Self::Malformed => "server_error",
            Self::Auth
            | Self::Quota
            | Self::ModelNotFound
            | Self::InvalidRequest
            | Self::Refused
            | Self::UpgradeRequired => "invalid_prompt",
        }
    }
}

impl std::fmt::Display for Repair {
    /// The name used in tables and logs, e.g. `drop:stream_options`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Drop(parameter) => write!(f, "drop:{parameter}"),
            Self::MergeSystem => f.write_str("merge_system"),
            Self::CleanSchema => f.write_str("clean_schema"),
            Self::StringContent => f.write_str("string_content"),
            Self::ReasoningContentRequired => f.write_str("reasoning_content_required"),
            Self::NoImages => f.write_str("no_images"),
            Self::Efforts(words) => write!(f, "efforts:{}", words.join(",")),
            Self::OutputTokens(tokens) => write!(f, "output_tokens:{tokens}"),
            Self::ThinkAdaptively => f.write_str("think_adaptively"),
            Self::ThinkByBudget => f.write_str("think_by_budget"),
            Self::ForgetThinking => f.write_str("forget_thinking"),
            Self::RefreshToken => f.write_str("refresh_token"),
            Self::CreateSession => f.write_str("create_session"),
            Self::StartNewRun => f.write_str("start_new_run"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const NOW: u64 = 1_760_000_000_000;

    fn response(status: u16, body: &Value) -> Failure {
        Failure::from_response(status, &[], body.to_string().as_bytes(), NOW)
    }

    #[test]
    fn codes_and_words_go_before_the_status() {
        use FailureClass as C;
        let rows = [
            (
                400,
                json!({"error": {"message": "API key not valid. Please pass a valid API key.", "code": 400}}),
                C::Auth,
            ),
            (401, json!({"error": {"message": "no", "type": "authentication_error"}}), C::Auth),
            (403, json!({"message": "forbidden"}), C::Auth),
            (401, json!({"error": {"code": "1002", "message": "token expired"}}), C::Auth),
            (402, json!({}), C::Quota),
            (
                429,
                json!({"error": {"message": "{\"error\":{\"type\":\"exceeded_current_quota_error\",\"message\":\"m\"}}"}}),
                C::Quota,
            ),
            (400, json!({"error": {"message": "Your credit balance is too low to access the API"}}), C::Quota),
            (403, json!({"error": {"message": "This request requires more credits, or fewer max_tokens."}}), C::Quota),
            (429, json!({"error": {"code": "1308", "message": "Usage limit reached for 5 hour."}}), C::RateLimit),
            (429, json!({"error": {"message": "m", "type": "engine_overloaded_error"}}), C::Overloaded),
            (
                529,
                json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
                C::Overloaded,
            ),
            (
                503,
                json!({"error": {"message": "No capacity available for model x", "status": "UNAVAILABLE"}}),
                C::Overloaded,
            ),
            (503, json!({"error": {"code": 503, "message": "Loading model"}}), C::Server),
            (
                429,
                json!({"error": {"message": "Limit on tokens per min. Reduce the length of the messages."}}),
                C::RateLimit,
            ),
            (413, json!({"error": {"message": "too large"}}), C::ContextLength),
            (422, json!({"message": "exceeded model token limit: 131072 (requested: 140000)"}), C::ContextLength),
            (
                500,
                json!({"error": {"message": "The input token count (40) exceeds the maximum number of tokens allowed (32)."}}),
                C::ContextLength,
            ),
            (400, json!({"error": {"code": "1261", "message": "Prompt too long"}}), C::ContextLength),
            (400, json!({"message": "Range of input length should be [1, 98304]"}), C::ContextLength),
            (
                404,
                json!({"error": {"message": "The model `x` does not exist", "code": "model_not_found"}}),
                C::ModelNotFound,
            ),
            (400, json!({"error": {"code": "1211", "message": "Unknown Model"}}), C::ModelNotFound),
            (404, json!({"detail": "Not Found"}), C::InvalidRequest),
            (400, json!({"error": {"code": "1301", "message": "m"}}), C::Refused),
            (403, json!({"error": "account_suspended", "message": "Your account has been suspended."}), C::Refused),
            (
                403,
                json!({"error": {"code": "FORBIDDEN", "message": "upgrade_required: please upgrade"}}),
                C::UpgradeRequired,
            ),
            (426, json!({}), C::UpgradeRequired),
            (400, json!({"error": {"message": "m", "code": "tool_use_failed"}}), C::Malformed),
            (408, json!({}), C::Server),
            (500, json!({"error": "boom"}), C::Server),
            (418, json!({}), C::InvalidRequest),
            (302, json!({}), C::InvalidRequest),
            (200, json!({"base_resp": {"status_code": 1002, "status_msg": "rate limit"}}), C::RateLimit),
            (200, json!({"base_resp": {"status_code": 1004, "status_msg": "login fail"}}), C::Auth),
            (200, json!({"base_resp": {"status_code": 2013, "status_msg": "invalid params"}}), C::InvalidRequest),
            (200, json!({"base_resp": {"status_code": 1027, "status_msg": "output"}}), C::Refused),
        ];
        for (status, body, expected) in rows {
            assert_eq!(response(status, &body).class, expected, "{status} {body}");
        }
    }

    #[test]
    fn in_band_errors_without_a_status_are_sorted_by_their_code() {
        use FailureClass as C;
        let rows = [
            (json!({"error": {"code": 502, "message": "Provider disconnected"}}), C::Server),
            (json!({"error": {"code": 429, "message": "m"}}), C::RateLimit),
            (json!({"error": {"code": 402, "message": "m"}}), C::Quota),
            (json!({"error": {"code": "401", "message": "m"}}), C::Auth),
            (json!({"error": "something broke"}), C::Server),
            (json!({"error": {"message": "m", "type": "invalid_request_error"}}), C::InvalidRequest),
            (json!({"error": {}}), C::Server),
            (json!("plain words"), C::Server),
            (json!(null), C::Server),
        ];
        for (value, expected) in rows {
            let failure = Failure::from_error_value(&value);
            assert_eq!(failure.class, expected, "{value}");
            assert!(!failure.message.is_empty());
            assert_eq!(failure.http_status, None);
        }
    }

    #[test]
    fn the_message_is_the_providers_own() {
        let rows = [
            (json!({"error": {"message": "first", "metadata": {"raw": "second"}}, "message": "third"}), "first"),
            (json!({"error": {"message": "Provider returned error", "metadata": {"raw": "the reason"}}}), "the reason"),
            (json!({"error": {"message": "Provider returned error"}}), "Provider returned error"),
            (json!({"error": "some text"}), "some text"),
            (json!({"error": "a_code", "message": "some text"}), "some text"),
            (json!({"error": "a_code"}), "a_code"),
            (json!({"detail": "some text"}), "some text"),
            (json!({"title": "Bad Request", "status": 400, "detail": "some text"}), "some text"),
            (
                json!({"detail": [{"loc": ["body", "tools", 0, "name"], "msg": "Field required"}]}),
                "tools.0.name: Field required",
            ),
            (json!([{"error": {"message": "in an array"}}]), "in an array"),
            (json!({"errors": [{"message": "in a list"}]}), "in a list"),
            (json!({"error": {"message": "{\"error\":{\"message\":\"nested text\"}}"}}), "nested text"),
            (json!({"error": {"message": "line one\nline\u{7} two"}}), "line one line two"),
            (json!({"error": {"message": "<b>bold</b> &amp; 3 < 4 and 5 > 4"}}), "bold & 3 < 4 and 5 > 4"),
            (json!({"error": {"message": "bad key sk-1234567890abcdef used"}}), "bad key sk-… used"),
            (json!({}), "the provider answered HTTP 400 Bad Request without a message"),
            (json!({"error": {"message": ""}}), "the provider answered HTTP 400 Bad Request without a message"),
        ];
        for (body, expected) in rows {
            assert_eq!(response(400, &body).message, expected, "{body}");
        }
    }

    #[test]
    fn bodies_that_are_not_json() {
        let text = |body: &str| Failure::from_response(502, &[], body.as_bytes(), NOW).message;
        assert_eq!(text("error code: 1010"), "error code: 1010");
        assert_eq!(
            text(
                "<html><head><title>t</title><style>a{}</style></head><body><h1>502 Bad Gateway</h1><script>x()</script>nginx</body>"
            ),
            "502 Bad Gateway nginx"
        );
        assert_eq!(text("  "), "the provider answered HTTP 502 Bad Gateway without a message");
        let long = text(&"ü".repeat(MESSAGE_BYTES_MAX));
        assert!(long.len() <= MESSAGE_BYTES_MAX && long.ends_with('…'), "{}", long.len());
    }

    #[test]
    fn repairs() {
        let rows = [
            (
                json!({"error": {"message": "Unrecognized request argument supplied: parallel_tool_calls"}}),
                Some("drop:parallel_tool_calls"),
            ),
            (
                json!({"error": {"message": "Unsupported parameter: 'max_tokens' is not supported with this model.", "param": "max_tokens", "code": "unsupported_parameter"}}),
                Some("drop:max_tokens"),
            ),
            (
                json!({"error": {"message": "Invalid JSON payload received. Unknown name \"stream_options\": Cannot find field."}}),
                Some("drop:stream_options"),
            ),
            (json!({"error": {"message": "property 'service_tier' is unsupported"}}), Some("drop:service_tier")),
            (
                json!({"detail": [{"type": "extra_forbidden", "loc": ["body", "messages", 0, "name"], "msg": "Extra inputs are not permitted"}]}),
                Some("drop:messages.0.name"),
            ),
            (
                json!({"error": {"message": "Unknown parameter: 'tools[0].function.strict'."}}),
                Some("drop:tools[0].function.strict"),
            ),
            (json!({"error": {"message": "Unknown parameter: 'messages'."}}), None),
            (json!({"error": {"message": "System message must be at the beginning."}}), Some("merge_system")),
            (json!({"error": {"message": "Unexpected message role."}}), Some("merge_system")),
            (json!({"error": {"message": "Invalid schema for function 'x': bad"}}), Some("clean_schema")),
            (
                json!({"error": {"message": "Invalid input: expected string, received array at params.messages[0].content"}}),
                Some("string_content"),
            ),
            (
                json!({"error": {"message": "thinking is enabled but reasoning_content is missing in assistant tool call message at index 2"}}),
                Some("reasoning_content_required"),
            ),
            (
                json!({"type": "error", "error": {"type": "invalid_request_error", "message": "tools.0.custom.strict: Extra inputs are not permitted"}}),
                Some("drop:tools.0.custom.strict"),
            ),
            (
                json!({"error": {"message": "messages.1.content.0: Invalid `signature` in `thinking` block"}}),
                Some("forget_thinking"),
            ),
            (
                json!({"error": {"message": "messages.5.content.0: `thinking` or `redacted_thinking` blocks in the latest assistant message cannot be modified."}}),
                Some("forget_thinking"),
            ),
            (
                json!({"error": {"message": "messages.3.content.0.type: Expected `thinking` or `redacted_thinking`, but found `tool_use`."}}),
                Some("forget_thinking"),
            ),
            (
                json!({"error": {"message": "messages.1.content.0.thinking.signature: Field required"}}),
                Some("forget_thinking"),
            ),
            (
                json!({"error": {"message": "output_config: Extra inputs are not permitted"}}),
                Some("drop:output_config"),
            ),
            (json!({"error": {"message": "`temperature` is deprecated for this model."}}), Some("drop:temperature")),
            (
                json!({"error": {"message": "Unsupported value: 'temperature' does not support 0.2 with this model.", "param": "temperature", "code": "unsupported_value"}}),
                Some("drop:temperature"),
            ),
            (
                json!({"error": {"message": "Unsupported value: 'low' is not supported with the 'm' model. Supported values are: 'medium'.", "param": "text.verbosity", "code": "unsupported_value"}}),
                Some("drop:text.verbosity"),
            ),
            (
                json!({"error": {"message": "`reasoning_effort` is not supported with this model"}}),
                Some("drop:reasoning_effort"),
            ),
            (
                json!({"error": "Model grok-4 does not support parameter reasoningEffort."}),
                Some("drop:reasoning_effort"),
            ),
            (
                json!({"type": "error", "error": {"type": "invalid_request_error", "message": "This model does not support the effort parameter."}}),
                Some("drop:effort"),
            ),
            (
                json!({"error": {"message": "\"thinking.type.enabled\" is not supported for this model. Use \"thinking.type.adaptive\" and \"output_config.effort\" to control thinking behavior."}}),
                Some("think_adaptively"),
            ),
            (
                json!({"error": {"message": "Only 'enabled' and 'disabled' are supported for thinking; 'adaptive' is not supported."}}),
                Some("think_by_budget"),
            ),
            (
                json!({"detail": [{"type": "literal_error", "loc": ["body", "thinking", "type"], "msg": "Input should be 'enabled' or 'disabled'"}]}),
                Some("think_by_budget"),
            ),
            (
                json!({"error": {"message": "adaptive thinking is not supported on this model"}}),
                Some("think_by_budget"),
            ),
            (json!({"error": {"message": "\"gemma\" does not support thinking"}}), Some("efforts:")),
            (json!({"error": {"message": "thinking: Extra inputs are not permitted"}}), Some("drop:thinking")),
            (json!({"error": {"message": "model: Extra inputs are not permitted"}}), None),
            (json!({"error": {"message": ": Extra inputs are not permitted"}}), None),
            (json!({"error": {"message": "Temperature must be 1."}}), None),
        ];
        for (body, expected) in rows {
            let failure = response(400, &body);
            assert_eq!(failure.repair.map(|repair| repair.to_string()).as_deref(), expected, "{body}");
        }
        assert_eq!(response(500, &json!({"error": {"message": "Unexpected message role."}})).repair, None);
    }

    #[test]
    fn answers_that_are_too_long_name_the_longest() {
        let error = |message: &str| json!({"error": {"message": message}});
        let rows = [
            (
                json!({"type": "error", "error": {"type": "invalid_request_error", "message": "max_tokens: 64000 > 32000, which is the maximum allowed number of output tokens for claude-opus-4-20250514"}}),
                Some(32_000),
            ),
            (
                json!({"error": {"message": "max_tokens is too large: 32000. This model supports at most 16384 completion tokens, whereas you provided 32000.", "param": "max_tokens", "code": "invalid_value"}}),
                Some(16_384),
            ),
            (error("Invalid max_tokens value, the valid range of max_tokens is [1, 8192]"), Some(8_192)),
            (
                error("<400> InternalError.Algo.InvalidParameter: Range of max_tokens should be [1, 65536]"),
                Some(65_536),
            ),
            (
                error(
                    "`max_tokens` must be less than or equal to `8192`, the maximum value for `max_tokens` is less than the `context_window` for this model",
                ),
                Some(8_192),
            ),
            (
                error(
                    "The maximum tokens you requested exceeds the model limit of 4096. Try again with a maximum tokens value that is lower than 4096.",
                ),
                Some(4_096),
            ),
            (error("max_tokens ≤32000, which is the maximum allowed number of output tokens"), Some(32_000)),
            (error("max_tokens ≤, which is the maximum allowed number of output tokens"), None),
            (error("max_tokens must be at least 1"), None),
            (error("max_tokens: must be less than or equal to 16"), None),
            (error("`max_tokens` must be greater than `thinking.budget_tokens`"), None),
            (error("Temperature must be less than or equal to 1024"), None),
            (error("max_tokens: less than or equal to 99999999999999999999999"), None),
        ];
        for (body, expected) in rows {
            assert_eq!(response(400, &body).repair, expected.map(Repair::OutputTokens), "{body}");
        }
        let together = error(
            "input length and `max_tokens` exceed context limit: 188240 + 32000 > 200000, decrease input length or `max_tokens` and try again",
        );
        let failure = response(400, &together);
        assert_eq!((failure.class, failure.repair), (FailureClass::ContextLength, None));
    }

    #[test]
    fn refused_efforts_name_those_that_are_taken() {
        let error = |message: &str| json!({"error": {"message": message}});
        let rows = [
            (
                json!({"error": {"message": "Unsupported value: 'xhigh' is not supported with the 'gpt-5' model. Supported values are: 'minimal', 'low', 'medium', and 'high'.", "param": "reasoning.effort", "code": "unsupported_value"}}),
                "minimal,low,medium,high",
            ),
            (
                error(
                    "Unsupported value: 'reasoning_effort' does not support 'none' with this model. Supported values are: 'minimal', 'low', 'medium', and 'high'.",
                ),
                "minimal,low,medium,high",
            ),
            (error("level \"max\" not supported, valid levels: low, medium, high, xhigh"), "low,medium,high,xhigh"),
            (
                error(
                    "Validation error for `reasoning_effort`: expected one of `'low' | 'medium' | 'high'`, received `'xhigh'`.",
                ),
                "low,medium,high",
            ),
            (error("reasoning_effort must be one of none or default"), "none,default"),
            (
                json!({"detail": [{"type": "literal_error", "loc": ["body", "reasoning_effort"], "msg": "Input should be 'low', 'medium' or 'high'"}]}),
                "low,medium,high",
            ),
            (
                error(
                    "reasoning_effort: unknown variant `xhigh`, expected one of `low`, `medium`, `high`, `max` at line 1",
                ),
                "low,medium,high,max",
            ),
            (
                error("invalid reasoning value: 'xhigh' (must be \"high\", \"medium\", \"low\", or \"none\")"),
                "high,medium,low,none",
            ),
            (
                error(
                    "output_config.effort 'xhigh' is not supported when thinking is disabled on this model. Use effort 'high' or below, or enable thinking.",
                ),
                "high",
            ),
            (error("output_config.effort: Input should be 'low', 'medium', 'high' or 'max'"), "low,medium,high,max"),
        ];
        for (body, expected) in rows {
            let words = expected.split(',').map(str::to_owned).collect();
            assert_eq!(response(400, &body).repair, Some(Repair::Efforts(words)), "{body}");
        }
    }

    #[test]
    fn refused_images_are_told_from_images_that_are_wrong() {
        let rows = [
            (404, "No endpoints found that support image input", true),
            (400, "Model do not support image input.", true),
            (400, "this model does not support image input (ref: 1)", true),
            (
                400,
                "Failed to deserialize the JSON body into the target type: messages[9]: unknown variant `image_url`, expected `text`",
                true,
            ),
            (400, "Invalid content type. image_url is only supported by certain models.", true),
            (500, "Qwen/Qwen3-8B is not a multimodal model", true),
            (400, "At most 0 image(s) may be provided in one request.", true),
            (500, "image input is not supported - hint: you may need to provide the mmproj", true),
            (400, "Image input modality is not enabled for models/x", true),
            (422, "This model doesn't support the image content block that you provided.", true),
            (400, "Could not process image", false),
            (400, "This model does not support image format `image/tiff`", false),
            (400, "The model does not support image generation", false),
            (400, "messages.3.content.1.image: image exceeds 5 MB maximum", false),
        ];
        for (status, message, expected) in rows {
            let failure = response(status, &json!({"error": {"message": message}}));
            assert_eq!(failure.repair == Some(Repair::NoImages), expected, "{message}");
            assert!(!expected || failure.class == FailureClass::InvalidRequest, "{message}");
        }
    }

    #[test]
    fn the_wait_is_bounded() {
        let failure = Failure::from_response(429, &[("Retry-After", "99999999999999999999")], b"", NOW);
        assert_eq!(failure.retry_after, Some(RETRY_AFTER_MAX));
        let failure = Failure::from_response(429, &[("Retry-After", "-5")], b"", NOW);
        assert_eq!(failure.retry_after, None);
    }

    proptest! {
        #[test]
        fn any_bytes_make_a_bounded_message(
            status in any::<u16>(),
            body in proptest::collection::vec(any::<u8>(), 0..300),
            text in "(\\{\"error\":)?[ -~<>&;\u{80}-\u{fff}]{0,80}",
            header in "[ -~]{0,20}",
        ) {
            for body in [&body[..], text.as_bytes()] {
                let headers = [("retry-after", header.as_str()), ("x-ratelimit-reset-tokens", header.as_str())];
                let failure = Failure::from_response(status, &headers, body, NOW);
                prop_assert!(!failure.message.is_empty() && failure.message.len() <= MESSAGE_BYTES_MAX);
                prop_assert!(!failure.message.chars().any(char::is_control));
                prop_assert!(failure.retry_after.is_none_or(|wait| wait <= RETRY_AFTER_MAX));
            }
        }
    }
}
