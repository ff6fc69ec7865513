//! Errors as a person reads them: what happened, to what, and what to do.

use std::error::Error;
use std::fmt::Write;

/// An error that knows its remedy.
pub trait Hinted: Error {
    /// What the person can do about it: one sentence, lower case, commands in backticks.
    fn hint(&self) -> Option<String> {
        None
    }
}

/// Joins an error and its causes into one line: `this: its cause: the cause's cause`.
///
/// A cause whose text the level above already repeats is left out.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            let _ = write!(text, ": {cause_text}"); // writing to a String cannot fail
        }
        source = cause.source();
    }
    text
}

/// The nearest of `known` to what was typed, if it is near enough to be meant.
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// One slip for every so many letters of what was typed; a transposition counts as one.
    const LETTERS_PER_SLIP: usize = 3;
    let slips_max = (typed.chars().count() / LETTERS_PER_SLIP).max(1);
    known
        .into_iter()
        .map(|candidate| {
            let is_beginning = candidate.starts_with(typed) && !typed.is_empty();
            (if is_beginning { 1 } else { strsim::damerau_levenshtein(typed, candidate) }, candidate)
        })
        .filter(|(slips, _)| *slips <= slips_max)
        .min_by_key(|(slips, _)| *slips)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("`a` cannot be read")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn causes_are_joined_once() {
        let error = Outer(std::io::Error::other("disk on fire"));
        assert_eq!(chain(&error), "`a` cannot be read: disk on fire");
    }

    #[test]
    fn only_near_words_are_suggested() {
        let known = ["base_url", "default_model", "preset"];
        assert_eq!(nearest("base_ulr", known), Some("base_url"));
        assert_eq!(nearest("defualt_model", known), Some("default_model"));
        assert_eq!(nearest("base", known), Some("base_url"));
        assert_eq!(nearest("zzz", known), None);
        assert_eq!(nearest("", known), None);
    }
}
