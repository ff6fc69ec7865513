//! Words that stand in a conversation for what a protocol cannot carry, the same in all of them.

use std::borrow::Cow;

use crate::json::Str;
use crate::responses::request::Format;
use crate::tools::schema;

/// Before instructions that come in the middle of a conversation, where only `user` is understood everywhere.
pub(crate) const DEVELOPER_LABEL: &str = "[instructions of the developer, not of the user; they apply from here on]";
/// The result of a call that has none.
pub(crate) const MISSING_RESULT: &str = "[no result was recorded for this call]";
/// The result of a call that returned nothing; some providers refuse empty content.
pub(crate) const EMPTY_RESULT: &str = "[no output]";
/// In place of an image for a model that takes none.
pub(crate) const IMAGE_NOTE: &str = "[image omitted: this model does not take images]";
/// In place of an image in an old result of a conversation that is too long.
pub(crate) const IMAGE_LEFT_OUT_NOTE: &str = "[image left out: the conversation is longer than this model can read]";
/// In place of turns of a conversation that is too long.
pub(crate) const LEFT_OUT_NOTE: &str =
    "[older parts of this conversation are left out here, since all of it is more than this model can read]";
/// Asks a model whose answer has reached its output limit for the rest of it.
pub(crate) const GO_ON_INSTRUCTION: &str = "\
[your answer was cut off because it reached the limit of one answer. Write on from exactly where it stops, in the middle \
of the word if need be: repeat nothing, say nothing about the interruption, begin with the very next character. If you \
were about to call a tool, call it now]";
/// Before the summary of a history that was compacted.
pub(crate) const SUMMARY_LABEL: &str =
    "[summary of the conversation up to here; it replaces what was said and done before, go on from it]";
/// In place of one that its provider alone can read, and the present one has refused.
pub(crate) const LOST_SUMMARY_NOTE: &str = "\
[the conversation up to here was summed up by another provider in a form that cannot be read here, and is lost. Where \
something is missing, look at the files, or ask]";
/// Asks for that summary, where Codex leaves the words to its provider.
pub(crate) const COMPACTION_INSTRUCTION: &str = "\
Stop working here and write a handoff summary of this conversation. It will replace everything above for whoever goes \
on with the work, so it must be enough to continue without asking. Say, in short sections: what the user wants, with \
all constraints and preferences that were stated; what has been done, and what came of it; the present state, with \
paths, names, commands and figures exact where they matter; decisions taken and why; what is left to do and the very \
next step; what did not work. Leave out what no longer matters. Call no tools. Answer with the summary alone.";
/// In place of an audio recording.
pub(crate) const AUDIO_NOTE: &str = "[audio omitted: this model does not take audio]";
/// Keeps the model from speaking first, or twice, where that is refused.
pub(crate) const USER_FILLER: &str = "[the conversation continues]";
/// Where arguments go that are no JSON object: the model made a mistake, was told so, and should still see what it was.
pub(crate) const INVALID_ARGUMENTS: &str = "invalid_arguments";

/// In place of a file.
pub(crate) fn file_note(name: Option<Str<'_>>) -> Cow<'static, str> {
    match name {
        Some(name) => format!("[file `{}` omitted: this model takes text and images only]", name.decode()).into(),
        None => "[file omitted: this model takes text and images only]".into(),
    }
}

/// Asks for a form of the answer where there is no parameter for it.
pub(crate) fn format_instruction(format: Format<'_>) -> Cow<'static, str> {
    const INSTRUCTION: &str =
        "When the work is done, answer with one JSON object and nothing else: no code fence, no words around it.";
    match format {
        Format::JsonObject => INSTRUCTION.into(),
        Format::JsonSchema { schema, .. } => {
            let mut cleaned = Vec::new();
            schema::write(&mut cleaned, schema, schema::Keywords::Standard);
            let cleaned = String::from_utf8_lossy(&cleaned);
            format!("{INSTRUCTION} It must match this JSON schema:\n{cleaned}").into()
        }
    }
}
