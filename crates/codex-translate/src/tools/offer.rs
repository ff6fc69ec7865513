//! How tools are described, chosen and named for an upstream that knows only functions.

use std::borrow::Cow;
use std::collections::HashSet;

use super::{CUSTOM_ARGUMENT, Definition, LOCAL_SHELL, TOOL_SEARCH, ToolKind, ToolTable, preferred_alias, schema};
use crate::Request;
use crate::json::{Raw, Str};
use crate::responses::request::Item;

/// The local shell of old models is described by its type alone; this is the action it takes.
pub(crate) const LOCAL_SHELL_PARAMETERS: &str = r#"{"type":"object","properties":{"command":{"type":"array","items":{"type":"string"},"description":"The program and its arguments."},"working_directory":{"type":"string"},"timeout_ms":{"type":"number"}},"required":["command"]}"#;

/// Appends `,"description":"…"`, or nothing where there is nothing to say.
pub(crate) fn write_description(out: &mut Vec<u8>, definition: &Definition<'_>) {
    let description = definition.description.filter(|text| !text.is_empty());
    let fallback = if definition.kind == ToolKind::LocalShell { "Runs a command on the user's machine." } else { "" };
    if description.is_none() && fallback.is_empty() && definition.kind != ToolKind::Custom {
        return;
    }
    out.extend_from_slice(br#","description":""#);
    out.extend_from_slice(description.map_or(fallback, Str::escaped).as_bytes());
    if definition.kind == ToolKind::Custom {
        if description.is_some() {
            out.extend_from_slice(br"\n\n");
        }
        // The descriptions of such tools forbid JSON, which here can only be meant of the text itself.
        out.extend_from_slice(br"Call it with one argument, `input`: a string that holds the complete text.");
        if let Some(grammar) = definition.grammar {
            out.extend_from_slice(br" The text must match this ");
            out.extend_from_slice(grammar.syntax.map_or("", Str::escaped).as_bytes());
            out.extend_from_slice(br" grammar:\n");
            out.extend_from_slice(grammar.definition.escaped().as_bytes());
        }
    }
    out.push(b'"');
}

/// Appends the schema of the one object that a call of the tool holds.
pub(crate) fn write_parameters(out: &mut Vec<u8>, definition: &Definition<'_>, keywords: schema::Keywords) {
    match definition.kind {
        ToolKind::Function | ToolKind::ToolSearch => schema::write_parameters(out, definition.parameters, keywords),
        ToolKind::Custom => {
            out.extend_from_slice(br#"{"type":"object","properties":{""#);
            out.extend_from_slice(CUSTOM_ARGUMENT.as_bytes());
            out.extend_from_slice(br#"":{"type":"string","description":"The complete text, exactly as the tool expects it."}},"required":[""#);
            out.extend_from_slice(CUSTOM_ARGUMENT.as_bytes());
            out.extend_from_slice(br#""]}"#);
        }
        ToolKind::LocalShell => out.extend_from_slice(LOCAL_SHELL_PARAMETERS.as_bytes()),
    }
}

/// Whether the provider is asked to search the web by itself, and may: under a sandbox Codex offers a search that must
/// not leave the provider's own index, which only OpenAI has.
pub(crate) fn wants_web_search(tools_list: Raw<'_>) -> bool {
    tools_list.elements().any(|tool| {
        let is_search = tool.get("type").and_then(Raw::as_str).is_some_and(|kind| kind.is("web_search"));
        is_search && tool.get("external_web_access").and_then(Raw::as_bool) != Some(false)
    })
}

/// Which of `definitions` fit into `tools_max`: Codex's own tools and those that the conversation has called go first,
/// then the others in their order, so that what is left out are the last tools of MCP servers that nobody has used.
pub(crate) fn fitting(definitions: &[&Definition<'_>], request: &Request<'_>, tools_max: Option<usize>) -> Vec<bool> {
    let n_left_out = definitions.len().saturating_sub(tools_max.unwrap_or(usize::MAX));
    if n_left_out == 0 {
        return vec![true; definitions.len()];
    }
    let called: HashSet<(Option<&str>, &str)> = request
        .input
        .iter()
        .filter_map(|item| match item {
            Item::ToolCall(call) => Some((call.namespace.as_deref(), &*call.name)),
            _ => None,
        })
        .collect();
    let is_spare = |definition: &Definition<'_>| {
        definition.namespace.is_some() && !called.contains(&(definition.namespace.as_deref(), &*definition.name))
    };
    let (spare, needed): (Vec<usize>, Vec<usize>) =
        (0..definitions.len()).partition(|index| is_spare(definitions[*index]));
    let mut is_kept = vec![true; definitions.len()];
    for index in needed.into_iter().chain(spare).rev().take(n_left_out) {
        is_kept[index] = false;
    }
    is_kept
}

/// Which tools the model may, or must, call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice<'t> {
    Auto,
    None,
    Required,
    /// The one with this alias.
    Tool(&'t str),
}

/// What the `tool_choice` of a request means. A tool that is not offered cannot be demanded.
pub(crate) fn choice<'t>(choice: Option<Raw<'_>>, table: &'t ToolTable) -> Choice<'t> {
    let Some(choice) = choice else { return Choice::Auto };
    let member = |name| choice.get(name).and_then(Raw::as_str).map(Str::decode);
    // `"required"`, or `{"type": "allowed_tools", "mode": "required", …}`.
    let mode = choice.as_str().map(Str::decode).or_else(|| member("mode"));
    match mode.as_deref() {
        Some("none") => return Choice::None,
        Some("required") => return Choice::Required,
        Some(_) => return Choice::Auto,
        None => {}
    }
    let name = match member("type").as_deref() {
        Some("function" | "custom") => member("name").unwrap_or_default(),
        Some(kind @ (TOOL_SEARCH | LOCAL_SHELL)) => Cow::Owned(kind.to_owned()),
        // A hosted tool, which is not offered.
        _ => return Choice::Auto,
    };
    table.alias_of(member("namespace").as_deref(), &name).map_or(Choice::Auto, Choice::Tool)
}

/// The alias of a tool that was called, whether it is still offered or not.
pub(crate) fn alias<'t>(table: &'t ToolTable, namespace: Option<&str>, name: &str) -> Cow<'t, str> {
    match table.alias_of(namespace, name) {
        Some(alias) => Cow::Borrowed(alias),
        None => Cow::Owned(preferred_alias(namespace, name)),
    }
}

/// What a tool search found, in words for the model.
pub(crate) fn found(tools: &[Definition<'_>], table: &ToolTable) -> String {
    if tools.is_empty() {
        return "No tools found.".to_owned();
    }
    let aliases: Vec<Cow<'_, str>> =
        tools.iter().map(|tool| alias(table, tool.namespace.as_deref(), &tool.name)).collect();
    format!("Tools that can be called from now on: {}", aliases.join(", "))
}
