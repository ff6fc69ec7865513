//! Refusals of what a model cannot take: images, answers of a length, ways and efforts of thinking.
//!
//! Sources: what providers were seen to answer; each form stands in the tests of [`Failure`](super::Failure).

use super::Repair;
use super::facts::Facts;
use crate::effort;

/// How providers say that a model takes no images.
const NO_IMAGES: [&str; 19] = [
    "not support image",
    "n't support image",
    "not support vision",
    "not support multimodal",
    "no endpoints found that support image", // OpenRouter
    "unknown variant `image_url`",           // DeepSeek, and others that are written in Rust
    "unknown variant `input_image`",
    "image_url is only supported by",
    "not a multimodal model", // vLLM
    "at most 0 image",
    "image input is not supported", // llama.cpp
    "image inputs are not supported",
    "images are not supported",
    "image input is not enabled",
    "image input modality is not enabled", // Gemini
    "not accept image",
    "invalid value: 'image_url'",
    "invalid value: 'input_image'",
    "n't support the image", // Bedrock
];

/// What such a sentence may be about instead: an image that is wrong, or one that is to be made.
const OTHER_MATTERS: [&str; 9] = [
    "image format",
    "image type",
    "image size",
    "image url",
    "image media",
    "image mime",
    "image generation",
    "image output",
    "image edit",
];

/// Whether the model is said to take no images.
pub(super) fn images(facts: &Facts) -> bool {
    facts.says(&NO_IMAGES) && !facts.says(&OTHER_MATTERS)
}

/// How a refusal speaks of the length of an answer.
const OUTPUT_LIMIT: [&str; 4] =
    ["max_tokens", "max_completion_tokens", "max_output_tokens", "maximum tokens you requested"];

/// Directly before the longest answer that a model gives.
const LONGEST: [&str; 12] = [
    "supports at most", // OpenAI
    "less than or equal to",
    "<=",
    "range of max_tokens is [1,",        // DeepSeek
    "range of max_tokens should be [1,", // DashScope
    "not be greater than",
    "not exceed",
    "cannot exceed",
    "exceeds the maximum of",
    "exceeds the limit of",
    "maximum value is",
    "exceeds the model limit of", // Bedrock
];

/// Directly after it. Anthropic: `max_tokens: 64000 > 32000, which is the maximum allowed number of output tokens for …`.
const IS_LONGEST: &str = ", which is the maximum allowed number of output tokens";

/// Fewest tokens that are believed to be such a limit: with less no model would be of use, and the number is another one.
const OUTPUT_TOKENS_MIN: u64 = 512;

/// What to do about an answer that would be too long.
pub(super) fn output_tokens(facts: &Facts) -> Option<Repair> {
    let is_about = match &facts.parameter {
        Some(parameter) => OUTPUT_LIMIT.iter().any(|name| parameter.ends_with(name)),
        None => facts.says(&OUTPUT_LIMIT),
    };
    if !is_about {
        return None;
    }
    let text = &facts.text;
    let is_other = |character: char| !character.is_ascii_digit();
    let before = text.split_once(IS_LONGEST).map(|(before, _)| {
        let start = before.trim_end_matches(|character: char| character.is_ascii_digit()).len();
        &before[start..]
    });
    let after = || {
        let (_, rest) = LONGEST.iter().find_map(|phrase| text.split_once(phrase))?;
        let rest = rest.trim_start_matches([' ', '`', '\'', '"']);
        Some(&rest[..rest.find(is_other).unwrap_or(rest.len())])
    };
    let tokens = before.or_else(after)?.parse().ok()?;
    (tokens >= OUTPUT_TOKENS_MIN).then_some(Repair::OutputTokens(tokens))
}

/// After what the words that are taken are listed.
const LISTS: [&str; 13] = [
    "supported values are",
    "supported values:",
    "valid values are",
    "valid values:",
    "valid levels:",
    "allowed values are",
    "allowed values:",
    "must be one of",
    "expected one of",
    "input should be",
    "must be",
    "use effort",
    "expected",
];

/// How a refusal speaks of the effort.
const EFFORT: [&str; 7] =
    ["reasoning_effort", "reasoning.effort", "reasoningeffort", "output_config.effort", "effort", "think", "level \""];

/// What to do about a refused effort.
pub(super) fn effort(facts: &Facts) -> Option<Repair> {
    let is_about = match &facts.parameter {
        Some(parameter) => parameter.contains("effort"),
        None => facts.says(&EFFORT) || facts.says(&["reasoning value"]),
    };
    if !is_about {
        return None;
    }
    let taken = LISTS.iter().filter_map(|phrase| facts.text.split_once(phrase)).map(|(_, list)| words(list));
    taken.into_iter().find(|words| !words.is_empty()).map(Repair::Efforts)
}

/// What to do about a way of thinking that an Anthropic model does not know.
pub(super) fn thinking(facts: &Facts) -> Option<Repair> {
    let is_refused = facts.says(&["not supported", "not support", "input should be", "must be", "does not match"]);
    if !is_refused || !facts.says(&["thinking"]) {
        return None;
    }
    if facts.says(&["use \"thinking.type.adaptive\"", "thinking.type.enabled\" is not supported"]) {
        return Some(Repair::ThinkAdaptively);
    }
    let knows_budgets_only = facts.says(&["enabled"]) && facts.says(&["disabled"])
        || facts.says(&["adaptive thinking is not supported", "not support adaptive thinking"]);
    let is_about_form = facts.says(&["thinking.type", "adaptive", "supported for thinking"]);
    (knows_budgets_only && is_about_form).then_some(Repair::ThinkByBudget)
}

/// The words of effort with which `list` begins, in whatever punctuation.
fn words(list: &str) -> Vec<String> {
    const AND: [&str; 3] = ["and", "or", "either"];
    let words = list.split(|character: char| !character.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let is_effort = |word: &&str| effort::SCALE.contains(word) || *word == effort::DEFAULT;
    let listed = words.take_while(|word| is_effort(word) || AND.contains(word)).filter(is_effort);
    let mut found: Vec<String> = Vec::new();
    for word in listed {
        if !found.iter().any(|known| known == word) {
            found.push(word.to_owned());
        }
    }
    found
}
