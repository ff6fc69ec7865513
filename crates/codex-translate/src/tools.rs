//! The tools of a request, and the names under which an upstream knows them.
//!
//! Codex has four kinds of tools and groups some in namespaces; most upstreams have plain functions with a narrow
//! idea of a name. Each tool gets an *alias*: the only name that goes upstream, valid everywhere
//! (`^[a-zA-Z_][a-zA-Z0-9_-]{0,63}$`), unique within the request, the same for the same set of tools. The table
//! leads back, since Codex refuses a call whose name and namespace are not split as it offered them.

pub(crate) mod offer;
pub mod schema;

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use crate::Request;
use crate::json::{self, Kind, Raw, Reader, Str};
use crate::responses::request::Item;

/// Longest alias. OpenAI and most others refuse longer function names.
pub const ALIAS_CHARS_MAX: usize = 64;

/// Hexadecimal digits of the hash that tells two tools apart whose names look the same upstream.
const HASH_CHARS: usize = 8;

/// What separates a namespace from a name in an alias.
const SEPARATOR: &str = "__";

/// Every tool that was offered, by alias and by name.
#[derive(Clone, Debug, Default)]
pub struct ToolTable {
    tools: Vec<Tool>,
    /// Indices into `tools`, sorted by alias.
    by_alias: Vec<usize>,
    /// Indices into `tools`, sorted by namespace and name.
    by_name: Vec<usize>,
}

/// One tool as Codex and as the upstream know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tool {
    /// The upstream's name for it.
    pub alias: String,
    /// Codex's name for it.
    pub name: String,
    /// The namespace it belongs to, to be given back beside the name.
    pub namespace: Option<String>,
    /// Which item a call of it becomes.
    pub kind: ToolKind,
}

/// How a tool is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ToolKind {
    /// JSON arguments: `function_call`.
    Function,
    /// One free text: `custom_tool_call`. Upstream a function with the one string argument [`CUSTOM_ARGUMENT`].
    Custom,
    /// Codex's own search over tools it has not offered yet: `tool_search_call`.
    ToolSearch,
    /// The shell of old models: `local_shell_call`.
    LocalShell,
}

/// Name of the one argument of a [`ToolKind::Custom`] tool upstream.
pub const CUSTOM_ARGUMENT: &str = "input";

/// A tool as the request describes it.
#[derive(Clone, Debug)]
pub struct Definition<'a> {
    /// Which item a call of it becomes.
    pub kind: ToolKind,
    /// The namespace it stands in.
    pub namespace: Option<Cow<'a, str>>,
    /// Its name, never empty.
    pub name: Cow<'a, str>,
    /// What it is for, in words for the model.
    pub description: Option<Str<'a>>,
    /// What it takes; `None` if that is not said, or is no schema.
    pub parameters: Option<Parameters<'a>>,
    /// Whether the arguments were asked to match the schema exactly.
    pub strict: bool,
    /// The grammar of a custom tool's text.
    pub grammar: Option<Grammar<'a>>,
}

/// The parameters of a function.
#[derive(Clone, Copy, Debug)]
pub struct Parameters<'a> {
    /// Their JSON schema, an object.
    pub schema: Raw<'a>,
    /// Whether the schema has a `type`.
    pub has_type: bool,
    /// Whether the schema has `properties`.
    pub has_properties: bool,
}

/// What the text of a [`ToolKind::Custom`] tool looks like.
#[derive(Clone, Copy, Debug)]
pub struct Grammar<'a> {
    /// The language of the definition, e.g. `lark`.
    pub syntax: Option<Str<'a>>,
    /// The definition itself.
    pub definition: Str<'a>,
}

/// Reads the next value of `reader`, one entry of a `tools` list, and appends what it defines: one tool, those of a
/// namespace, or none.
///
/// Left out are hosted tools (`web_search`, `image_generation`, `code_interpreter`, `mcp`, …), which only OpenAI's own
/// servers can run, and entries without a usable name.
///
/// # Errors
/// Only what is wrong with the JSON itself.
pub fn read<'a>(reader: &mut Reader<'a>, out: &mut Vec<Definition<'a>>) -> Result<(), json::Error> {
    read_within(None, reader, out)
}

fn read_within<'a>(
    namespace: Option<&Cow<'a, str>>,
    reader: &mut Reader<'a>,
    out: &mut Vec<Definition<'a>>,
) -> Result<(), json::Error> {
    let [mut kind, mut name, mut description, mut strict, mut format, mut tools, mut execution] = [None; 7];
    let mut parameters = None;
    if reader.kind()? != Kind::Object {
        reader.value()?;
        return Ok(());
    }
    reader.enter_object()?;
    while let Some(key) = reader.next_key()? {
        let slot = match &*key.decode() {
            "parameters" => {
                parameters = Parameters::read(reader)?;
                continue;
            }
            "type" => &mut kind,
            "name" => &mut name,
            "description" => &mut description,
            "strict" => &mut strict,
            "format" => &mut format,
            "tools" => &mut tools,
            "execution" => &mut execution,
            _ => {
                reader.value()?;
                continue;
            }
        };
        *slot = Some(reader.value()?);
    }
    let string = |raw: Option<Raw<'a>>| raw.and_then(Raw::as_str);
    let name = string(name).map(Str::decode).filter(|name| !name.is_empty() && name != "null");

    let (kind, name) = match (&*string(kind).map(Str::decode).unwrap_or_default(), name) {
        ("function", Some(name)) => (ToolKind::Function, name),
        ("custom", Some(name)) => (ToolKind::Custom, name),
        ("namespace", Some(name)) if namespace.is_none() => {
            // Read a second time, since only now it is known that they stand in a namespace, and in which.
            if let Some(tools) = tools.filter(|tools| tools.kind() == Kind::Array) {
                let mut reader = Reader::new(tools.text());
                reader.enter_array()?;
                while reader.next_element()? {
                    read_within(Some(&name), &mut reader, out)?;
                }
            }
            return Ok(());
        }
        ("tool_search", _) if string(execution).is_some_and(|execution| execution.is("client")) => {
            (ToolKind::ToolSearch, Cow::Borrowed(TOOL_SEARCH))
        }
        ("local_shell", _) => (ToolKind::LocalShell, Cow::Borrowed(LOCAL_SHELL)),
        _ => return Ok(()),
    };
    out.push(Definition {
        kind,
        namespace: namespace.cloned(),
        name,
        description: string(description),
        parameters,
        strict: strict.and_then(Raw::as_bool) == Some(true),
        grammar: format.and_then(|format| {
            Some(Grammar { syntax: string(format.get("syntax")), definition: format.get("definition")?.as_str()? })
        }),
    });
    Ok(())
}

impl<'a> Parameters<'a> {
    /// Takes the next value, which is a schema if it is an object.
    fn read(reader: &mut Reader<'a>) -> Result<Option<Self>, json::Error> {
        if reader.kind()? != Kind::Object {
            reader.value()?;
            return Ok(None);
        }
        let start = reader.position();
        let [mut has_type, mut has_properties] = [false; 2];
        reader.enter_object()?;
        while let Some(key) = reader.next_key()? {
            has_type |= key.is("type");
            has_properties |= key.is("properties");
            reader.value()?;
        }
        Ok(Some(Self { schema: reader.since(start), has_type, has_properties }))
    }
}

/// Name of the tool of kind [`ToolKind::ToolSearch`].
pub const TOOL_SEARCH: &str = "tool_search";

/// Name of the tool of kind [`ToolKind::LocalShell`].
pub const LOCAL_SHELL: &str = "local_shell";

/// The tools a request offers, each once: those of `tools`, of `additional_tools` items, and those that an earlier
/// tool search has found. A later definition replaces an earlier one of the same name, in its place, so that the
/// order, and with it the upstream's prompt cache, stays as it is over a session.
///
/// Whoever is to write a summary is offered none.
pub fn offered<'r, 'a>(request: &'r Request<'a>) -> Vec<&'r Definition<'a>> {
    if request.is_compaction() {
        return Vec::new();
    }
    let all = request.tools.iter().chain(request.input.iter().flat_map(Item::tools));
    let mut offered: Vec<&Definition<'a>> = Vec::with_capacity(request.tools.len());
    let mut places = HashMap::with_capacity(request.tools.len());
    for definition in all {
        let place = *places.entry((definition.namespace.as_deref(), &*definition.name)).or_insert(offered.len());
        if place < offered.len() {
            offered[place] = definition;
        } else {
            offered.push(definition);
        }
    }
    offered
}

impl ToolTable {
    /// The tools of `request`, in the order of [`offered`].
    pub fn from_request(request: &Request<'_>) -> Self {
        Self::from_definitions(&offered(request))
    }

    /// The tools of `definitions`, which must be what [`offered`] gave.
    pub fn from_definitions(definitions: &[&Definition<'_>]) -> Self {
        let named =
            definitions.iter().map(|definition| (definition.namespace.as_deref(), &*definition.name, definition.kind));
        Self::new(named)
    }

    /// A table of plain functions, for tests and for protocols that know no others.
    pub fn from_names(names: &[&str]) -> Self {
        Self::new(names.iter().map(|name| (None, *name, ToolKind::Function)))
    }

    /// A table of `(namespace, name, kind)`, in order of preference: where two would get the same alias, the later
    /// one is given another.
    fn new<'n>(offered: impl IntoIterator<Item = (Option<&'n str>, &'n str, ToolKind)>) -> Self {
        let mut tools: Vec<Tool> = offered
            .into_iter()
            .map(|(namespace, name, kind)| Tool {
                alias: String::new(),
                name: name.to_owned(),
                namespace: namespace.map(str::to_owned),
                kind,
            })
            .collect();

        // A plain function keeps its own name, whichever order they come in; flattened names make way.
        let mut by_alias: Vec<usize> = Vec::with_capacity(tools.len());
        for namespaced in [false, true] {
            for index in 0..tools.len() {
                if tools[index].namespace.is_some() != namespaced {
                    continue;
                }
                let find = |alias: &str| by_alias.binary_search_by(|&other| tools[other].alias.as_str().cmp(alias));
                let (namespace, name) = tools[index].key();
                let mut alias = preferred_alias(namespace, name);
                let mut found = find(&alias);
                let mut attempt = 0;
                while found.is_ok() {
                    alias = hashed_alias(namespace, name, attempt);
                    found = find(&alias);
                    attempt += 1;
                }
                let (Ok(place) | Err(place)) = found;
                tools[index].alias = alias;
                by_alias.insert(place, index);
            }
        }

        let mut by_name: Vec<usize> = (0..tools.len()).collect();
        by_name.sort_by(|&a, &b| tools[a].key().cmp(&tools[b].key()));
        Self { tools, by_alias, by_name }
    }

    /// The tool that the upstream calls `upstream_name`.
    pub fn resolve(&self, upstream_name: &str) -> Option<&Tool> {
        let place =
            self.by_alias.binary_search_by(|&index| self.tools[index].alias.as_str().cmp(upstream_name)).ok()?;
        Some(&self.tools[self.by_alias[place]])
    }

    /// All tools, in the order in which they were offered.
    pub fn tools(&self) -> &[Tool] {
        &self.tools
    }

    /// The alias of a tool, for a call of the history. `None` for a tool that is not offered any more; see
    /// [`preferred_alias`] for those.
    pub fn alias_of(&self, namespace: Option<&str>, name: &str) -> Option<&str> {
        let place = self.by_name.binary_search_by(|&index| self.tools[index].key().cmp(&(namespace, name))).ok()?;
        Some(&self.tools[self.by_name[place]].alias)
    }
}

impl Tool {
    fn key(&self) -> (Option<&str>, &str) {
        (self.namespace.as_deref(), &self.name)
    }
}

/// The alias a tool gets when no other tool is in its way.
pub fn preferred_alias(namespace: Option<&str>, name: &str) -> String {
    let joined = joined(namespace, name);
    let clean = sanitize(&joined);
    if clean.len() > ALIAS_CHARS_MAX { hashed_alias(namespace, name, 0) } else { clean }
}

/// The alias with a hash of the full name at its end, `attempt` being there for the case of a second collision.
fn hashed_alias(namespace: Option<&str>, name: &str, attempt: u32) -> String {
    let mut hash = Sha256::new();
    hash.update(namespace.unwrap_or_default());
    hash.update([0]);
    hash.update(name);
    hash.update(attempt.to_le_bytes());
    let digest = hash.finalize();

    let mut alias = sanitize(&joined(namespace, name));
    // Sanitized names are ASCII, so every byte is a boundary.
    alias.truncate(ALIAS_CHARS_MAX - HASH_CHARS - 1);
    alias.push('_');
    for byte in &digest[..HASH_CHARS / 2] {
        write!(alias, "{byte:02x}").expect("writing to a String cannot fail");
    }
    alias
}

fn joined(namespace: Option<&str>, name: &str) -> String {
    match namespace {
        Some(namespace) => format!("{namespace}{SEPARATOR}{name}"),
        None => name.to_owned(),
    }
}

/// Replaces what a function name may not contain; the result is ASCII, not empty, and not yet bounded.
fn sanitize(name: &str) -> String {
    let mut clean = String::with_capacity(name.len() + 1);
    // Gemini also refuses a digit or a dash at the start.
    if !name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_') {
        clean.push('_');
    }
    clean.extend(name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '_' }));
    clean
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn is_function_name(name: &str) -> bool {
        let mut chars = name.chars();
        chars.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
            && name.len() <= ALIAS_CHARS_MAX
            && chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
    }

    fn aliases(table: &ToolTable) -> Vec<&str> {
        table.tools().iter().map(|tool| tool.alias.as_str()).collect()
    }

    fn request_with(tools: &str, input: &str) -> String {
        format!(r#"{{"model":"m","tools":{tools},"input":{input}}}"#)
    }

    fn table(tools: &str, input: &str) -> ToolTable {
        let body = request_with(tools, input);
        ToolTable::from_request(&Request::parse(body.as_bytes()).unwrap())
    }

    #[test]
    fn ordinary_names_stay_and_namespaces_are_joined() {
        let table = table(
            r#"[{"type":"function","name":"exec_command"},{"type":"custom","name":"apply_patch"},
                {"type":"namespace","name":"mcp__lab","tools":[{"type":"function","name":"echo_it"}]},
                {"type":"tool_search","execution":"client"},{"type":"local_shell"}]"#,
            "[]",
        );
        let tool = |alias: &str, name: &str, namespace: Option<&str>, kind| Tool {
            alias: alias.into(),
            name: name.into(),
            namespace: namespace.map(Into::into),
            kind,
        };
        assert_eq!(
            table.tools(),
            [
                tool("exec_command", "exec_command", None, ToolKind::Function),
                tool("apply_patch", "apply_patch", None, ToolKind::Custom),
                tool("mcp__lab__echo_it", "echo_it", Some("mcp__lab"), ToolKind::Function),
                tool("tool_search", "tool_search", None, ToolKind::ToolSearch),
                tool("local_shell", "local_shell", None, ToolKind::LocalShell),
            ]
        );
        for tool in table.tools() {
            assert_eq!(table.resolve(&tool.alias), Some(tool));
            assert_eq!(table.alias_of(tool.namespace.as_deref(), &tool.name), Some(&*tool.alias));
        }
        assert_eq!(table.resolve("echo_it"), None);
        assert_eq!(table.alias_of(None, "echo_it"), None);
    }

    #[test]
    fn what_nobody_here_can_run_is_left_out() {
        let table = table(
            r#"[{"type":"web_search","external_web_access":true},{"type":"image_generation"},
                {"type":"code_interpreter","container":{}},{"type":"mcp","server_label":"x"},{"type":"file_search"},
                {"type":"tool_search"},{"type":"tool_search","execution":"server"},{"type":"something_new","name":"x"},
                {"type":"function"},{"type":"function","name":""},{"type":"function","name":"null"},
                {"type":"function","name":null},{"type":"function","name":7},{"type":"custom"},{"name":"no_type"},
                {"type":"namespace","tools":[{"type":"function","name":"lost"}]},
                {"type":"namespace","name":"n","tools":[{"type":"namespace","name":"m","tools":[
                    {"type":"function","name":"f"}]}]},
                null,1,"x",[],{}]"#,
            "[]",
        );
        assert!(table.tools().is_empty(), "{table:?}");
    }

    #[test]
    fn tools_of_the_history_are_offered_too() {
        let table = table(
            r#"[{"type":"function","name":"a"}]"#,
            r#"[{"type":"additional_tools","role":"developer","tools":[
                    {"type":"namespace","name":"functions","tools":[{"type":"function","name":"b"}]}]},
                {"type":"tool_search_output","call_id":"c","tools":[{"type":"function","name":"c"}]},
                {"type":"tool_search_output","call_id":"d","tools":[{"type":"custom","name":"c"}]}]"#,
        );
        assert_eq!(aliases(&table), ["a", "functions__b", "c"]);
        assert_eq!(table.resolve("c").unwrap().kind, ToolKind::Custom, "the later definition counts");
    }

    #[test]
    fn names_that_look_the_same_upstream_are_told_apart() {
        // The plain function keeps its name although it comes later.
        let first = table(
            r#"[{"type":"namespace","name":"a","tools":[{"type":"function","name":"b"}]},
                {"type":"function","name":"a__b"},{"type":"function","name":"x.y"},{"type":"function","name":"x y"}]"#,
            "[]",
        );
        assert_eq!(first.alias_of(None, "a__b"), Some("a__b"));
        assert_eq!(first.alias_of(None, "x.y"), Some("x_y"));
        for (namespace, name, start) in [(Some("a"), "b", "a__b_"), (None, "x y", "x_y_")] {
            let alias = first.alias_of(namespace, name).unwrap();
            assert!(alias.starts_with(start) && alias.len() == start.len() + HASH_CHARS, "{alias}");
        }
        let names: HashSet<&str> = aliases(&first).into_iter().collect();
        assert_eq!(names.len(), 4);
    }

    #[test]
    fn long_and_odd_names() {
        let long = "n".repeat(70);
        let table = ToolTable::from_names(&[&long, "7zip", "-dash", "größe", ".", &"n".repeat(64)]);
        let hashed = format!("{}_", "n".repeat(55));
        assert!(table.tools()[0].alias.starts_with(&hashed), "{:?}", table.tools()[0]);
        assert_eq!(aliases(&table)[1..5], ["_7zip", "_-dash", "gr__e", "__"]);
        assert_eq!(table.tools()[5].alias, "n".repeat(64));
        assert!(aliases(&table).into_iter().all(is_function_name), "{table:?}");
        assert_eq!(preferred_alias(None, &long), table.tools()[0].alias);
    }

    proptest! {
        #[test]
        fn every_set_of_tools_has_valid_unique_aliases_that_lead_back(
            names in prop::collection::hash_set(("[a-c_.]{0,3}|\\PC{0,70}", "[a-c_.]{1,3}|\\PC{1,70}"), 0..40)
        ) {
            let named = names.iter().map(|(namespace, name)| {
                (Some(namespace.as_str()).filter(|namespace| !namespace.is_empty()), name.as_str(), ToolKind::Function)
            });
            let table = ToolTable::new(named.clone());
            let unique: HashSet<&str> = aliases(&table).into_iter().collect();
            prop_assert_eq!(unique.len(), names.len());
            for (namespace, name, _) in named.clone() {
                let alias = table.alias_of(namespace, name).unwrap();
                prop_assert!(is_function_name(alias), "{}", alias);
                let tool = table.resolve(alias).unwrap();
                prop_assert_eq!((tool.namespace.as_deref(), tool.name.as_str()), (namespace, name));
            }
            let again = ToolTable::new(named);
            prop_assert_eq!(again.tools(), table.tools());
        }
    }
}
