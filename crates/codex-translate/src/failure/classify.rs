//! Sorting a failure by what can be done about it.

use super::facts::Facts;
use super::{FailureClass, Repair, refused};

/// Statuses that a number inside a body may stand for.
const ERROR_STATUSES: std::ops::RangeInclusive<i64> = 400..=599;

const CONTEXT_CODES: [&str; 7] = [
    "context_length_exceeded",
    "exceed_context_size_error",
    "context_window_exceeded",
    "model_context_window_exceeded",
    "request_too_large",
    "prompt_too_long",
    "1261", // GLM
];
const CONTEXT_WORDS: [&str; 15] = [
    "maximum context length",
    "exceed context limit", // Anthropic, of input and `max_tokens` together
    "context length exceeded",
    "exceeds the context",
    "exceeds the available context size",
    "exceeds the model's context",
    "exceeds the maximum number of tokens",
    "exceeded model token limit",
    "maximum prompt length",
    "prompt is too long",
    "prompt too long",
    "input is too long",
    "input length should be",
    "reduce the length of the messages",
    "reduce the length of the input",
];
const QUOTA_CODES: [&str; 13] = [
    "insufficient_quota",
    "exceeded_current_quota_error",
    "insufficient_balance",
    "insufficient_credits",
    "billing_hard_limit_reached",
    "billing_not_active",
    "payment_required",
    "quota_exhausted",
    "usage_exceeded",
    "usage_not_included",
    "billing_error",
    "organization_spend_limit_exceeded",
    "1113", // GLM
];
const QUOTA_WORDS: [&str; 9] = [
    "insufficient balance",
    "insufficient credit",
    "requires more credits",
    "credit balance is too low",
    "out of credits",
    "credits exhausted",
    "no resource package",
    "please recharge",
    "spend limit",
];
const REFUSED_CODES: [&str; 10] = [
    "content_filter",
    "content_policy_violation",
    "data_inspection_failed",
    "responsibleaipolicyviolation",
    "tos_violation",
    "account_suspended",
    "account_deactivated",
    "unsupported_country_region_territory",
    "policy_violation",
    "1301", // GLM
];
const REFUSED_WORDS: [&str; 4] =
    ["terms of service", "account has been suspended", "account has been deactivated", "violates our usage policies"];
const OVERLOADED_CODES: [&str; 6] = [
    "overloaded_error",
    "model_overloaded",
    "server_is_overloaded",
    "engine_overloaded",
    "engine_overloaded_error",
    "model_capacity_exhausted",
];
const OVERLOADED_WORDS: [&str; 5] =
    ["overloaded", "at capacity", "over capacity", "no capacity", "insufficient system resource"];
const AUTH_CODES: [&str; 14] = [
    "invalid_api_key",
    "authentication_error",
    "invalid_authentication_error",
    "invalid_authentication",
    "unauthenticated",
    "unauthorized",
    "permission_denied",
    "permission_error",
    "invalid_token",
    "token_expired",
    // GLM
    "1000",
    "1001",
    "1003",
    "1004",
];
const AUTH_WORDS: [&str; 4] = ["api key not valid", "invalid api key", "incorrect api key", "invalid authentication"];
const MODEL_CODES: [&str; 5] = ["model_not_found", "model_not_exist", "model_not_supported", "unknown_model", "1211"];
const MODEL_WORDS: [&str; 7] = [
    "model not found",
    "model not exist",
    "no such model",
    "unknown model",
    "not a valid model",
    "is not found for api version",
    "not supported model",
];
const RATE_CODES: [&str; 15] = [
    "rate_limit_exceeded",
    "rate_limit_error",
    "rate_limit_reached_error",
    "rate_limited",
    "rate_limit",
    "too_many_requests",
    "resource_exhausted",
    "throttling",
    "throttling.ratequota",
    // GLM: requests, concurrency, traffic; then the windows of a plan, which open again by themselves.
    "1302",
    "1303",
    "1305",
    "1308",
    "1309",
    "1310",
];
const RATE_WORDS: [&str; 4] = ["rate limit", "rate-limit", "too many requests", "requests per minute"];

/// The class of a failure. `http_status` is the status of the answer, or `None` inside a stream.
pub(super) fn class(facts: &Facts, http_status: Option<u16>) -> FailureClass {
    use FailureClass as C;
    let inner = facts.numbers.iter().copied().chain(facts.codes.iter().filter_map(|code| code.parse().ok()));
    let inner =
        inner.into_iter().find(|number| ERROR_STATUSES.contains(number)).and_then(|status| u16::try_from(status).ok());
    // A success that carries an error says its true status inside, if anywhere.
    let status = http_status.filter(|status| *status >= 300).or(inner);

    if let Some(code) = facts.minimax_code
        && let Some(class) = minimax_class(code)
    {
        return class;
    }
    if facts.has_code(&["tool_use_failed"]) {
        // The model wrote a call that its host could not parse: a matter of luck, not of the request.
        return C::Malformed;
    }
    if refused::images(facts) {
        // Some say so with a 404 or a 500.
        return C::InvalidRequest;
    }
    // "Tokens per minute" limits speak of lengths too, so a 429 is never about the window.
    let is_context = facts.has_code(&CONTEXT_CODES) || facts.says(&CONTEXT_WORDS) || status == Some(413);
    if is_context && status != Some(429) {
        return C::ContextLength;
    }
    if status == Some(426) || facts.has_code(&["upgrade_required"]) || facts.says(&["upgrade_required"]) {
        return C::UpgradeRequired;
    }
    if facts.has_code(&QUOTA_CODES) || facts.says(&QUOTA_WORDS) || status == Some(402) {
        return C::Quota;
    }
    if facts.has_code(&REFUSED_CODES) || facts.says(&REFUSED_WORDS) {
        return C::Refused;
    }
    let is_client_error = matches!(status, Some(400..=428 | 430..=499));
    if facts.has_code(&OVERLOADED_CODES) || status == Some(529) || !is_client_error && facts.says(&OVERLOADED_WORDS) {
        return C::Overloaded;
    }
    if facts.has_code(&AUTH_CODES) || facts.says(&AUTH_WORDS) || matches!(status, Some(401 | 403)) {
        return C::Auth;
    }
    let names_missing_model = facts.says(&MODEL_WORDS) || facts.says(&["model"]) && facts.says(&["does not exist"]);
    // Anthropic: `not_found_error`, "model: claude-9".
    let is_missing_model = facts.has_code(&["not_found_error"]) && facts.says(&["model:"]);
    if facts.has_code(&MODEL_CODES) || is_missing_model || matches!(status, Some(400 | 404)) && names_missing_model {
        return C::ModelNotFound;
    }
    if status == Some(429) || facts.has_code(&RATE_CODES) || facts.says(&RATE_WORDS) {
        return C::RateLimit;
    }
    match status {
        Some(408 | 409 | 425 | 500..) => C::Server,
        Some(_) => C::InvalidRequest,
        None if facts.has_code(&["invalid_request_error", "invalid_argument", "bad_request"]) => C::InvalidRequest,
        None => C::Server,
    }
}

/// `MiniMax` numbers its errors by itself and sends them with HTTP 200.
///
/// Source: <https://platform.minimax.io/docs/api-reference/errorcode>.
fn minimax_class(code: i64) -> Option<FailureClass> {
    use FailureClass as C;
    match code {
        1002 | 1039 | 1041 => Some(C::RateLimit),
        1004 | 2049 => Some(C::Auth),
        1008 => Some(C::Quota),
        1026 | 1027 => Some(C::Refused),
        2013 => Some(C::InvalidRequest),
        1000 | 1001 | 1013 | 1024 | 1033 => Some(C::Server),
        _ => None,
    }
}

/// Parameters without which a request would be another one.
const ESSENTIAL: [&str; 5] = ["model", "messages", "stream", "tools", "input"];

/// The phrases after which a provider names a parameter it does not know.
const UNKNOWN_PARAMETER: [&str; 11] = [
    "unsupported parameter(s):",
    "unsupported parameter:",
    "unrecognized request argument supplied:",
    "unrecognized request arguments supplied:",
    "unknown parameter:",
    "unknown field",
    "unknown name",
    "unexpected keyword argument",
    "does not support parameter",
    "does not support the",
    "property",
];

/// The one correction that is worth trying.
pub(super) fn repair(facts: &Facts, class: FailureClass) -> Option<Repair> {
    if class != FailureClass::InvalidRequest {
        return None;
    }
    if facts.says(&["`thinking` block", "`thinking` or `redacted_thinking`", ".thinking.signature"]) {
        return Some(Repair::ForgetThinking);
    }
    // OpenAI, for reasoning that another account or provider has encrypted.
    if facts.says(&["encrypted content", "encrypted_content"]) && facts.says(&["verified", "decrypted", "invalid"]) {
        return Some(Repair::ForgetThinking);
    }
    if facts.says(&["reasoning_content"]) && facts.says(&["passed back", "missing", "required"]) {
        return Some(Repair::ReasoningContentRequired);
    }
    if let Some(repair) = refused::thinking(facts).or_else(|| refused::effort(facts)) {
        return Some(repair);
    }
    if refused::images(facts) {
        return Some(Repair::NoImages);
    }
    if let Some(repair) = refused::output_tokens(facts) {
        return Some(repair);
    }
    if facts.says(&["system message must be", "unexpected message role", "only one system message", "multiple system"])
    {
        return Some(Repair::MergeSystem);
    }
    if facts.says(&["expected string, received array", "content must be a string", "content should be a string"]) {
        return Some(Repair::StringContent);
    }
    if facts.says(&["invalid schema for function", "invalid function parameters", "invalid tool schema"]) {
        return Some(Repair::CleanSchema);
    }
    if let Some(parameter) = unknown_parameter(facts) {
        return Some(Repair::Drop(parameter));
    }
    // Ollama, of its models that only answer.
    facts.says(&["does not support thinking"]).then(|| Repair::Efforts(Vec::new()))
}

fn unknown_parameter(facts: &Facts) -> Option<String> {
    if let Some(path) = path_before(&facts.text, EXTRA_INPUT) {
        return Some(path.to_owned());
    }
    let is_named =
        facts.has_code(&["unsupported_parameter", "unsupported_value", "unknown_parameter", "extra_forbidden"])
            || facts.says(&["extra inputs are not permitted"]);
    let named = facts.parameter.as_deref().filter(|_| is_named);
    let found = named.or_else(|| {
        UNKNOWN_PARAMETER.iter().find_map(|phrase| {
            let (_, rest) = facts.text.split_once(phrase)?;
            // Ordinary words; only these sentences count.
            let is_sentence = match *phrase {
                "property" => rest.contains("is unsupported"),
                "does not support the" => {
                    rest.split_whitespace().nth(1).is_some_and(|word| word.starts_with("parameter"))
                }
                _ => true,
            };
            is_sentence.then(|| first_word(rest))
        })
    })?;
    // xAI names it as its own SDK does.
    let found = if found == "reasoningeffort" { "reasoning_effort" } else { found };
    let is_name = found.starts_with(|first: char| first.is_ascii_alphabetic()) && found.chars().all(is_in_path);
    (is_name && !ESSENTIAL.contains(&found)).then(|| found.to_owned())
}

/// Whether a character belongs to a parameter's name or path: `stream_options`, `tools[0].function.strict`.
fn is_in_path(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '_' | '.' | '[' | ']')
}

/// How Anthropic names what it does not know, or no longer, by its path: `tools.0.custom.strict: Extra inputs are not
/// permitted`, `temperature` is deprecated for this model.
const EXTRA_INPUT: [&str; 4] = [
    ": extra inputs are not permitted",
    "` is deprecated for this model",
    "` is not supported for this model",
    "` is not supported with this model",
];

/// The path of names and numbers that stands directly before one of `phrases`.
fn path_before<'t>(text: &'t str, phrases: [&str; 4]) -> Option<&'t str> {
    let (before, _) = phrases.iter().find_map(|phrase| text.split_once(phrase))?;
    let is_step = |character: char| character.is_ascii_alphanumeric() || matches!(character, '_' | '.');
    let path = &before[before.trim_end_matches(is_step).len()..];
    (path.starts_with(|first: char| first.is_ascii_alphabetic()) && !ESSENTIAL.contains(&path)).then_some(path)
}

/// The first word of `text`, out of its quotes.
fn first_word(text: &str) -> &str {
    let text = text.trim_start_matches(|character: char| character.is_whitespace() || "\"'`:".contains(character));
    let end = text.find(|character: char| !is_in_path(character)).unwrap_or(text.len());
    text[..end].trim_end_matches('.')
}
