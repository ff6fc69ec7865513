//! Changes to a person's `supervisor.toml` that keep their comments, order and spelling.

use std::path::Path;

use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, Value};

use super::{EndpointSettings, Settings, SettingsError};
use crate::EndpointId;
use crate::report::{self, Hinted};

/// One change.
#[derive(Clone, Debug, PartialEq)]
pub enum Edit {
    /// A new endpoint, at the end of the file.
    Add(Box<EndpointSettings>),
    /// Gives one key of an endpoint a value. `key` may be dotted (`auth.env`); `value` is TOML, or a bare word.
    Set {
        /// The endpoint.
        id: EndpointId,
        /// The key.
        key: String,
        /// The value, or `None` to remove the key.
        value: Option<String>,
    },
    /// Gives one key of a section of the supervisor (`daemon`, `worker`, `monitor`) a value, as in [`Edit::Set`].
    SetIn {
        /// The section.
        section: &'static str,
        /// The key.
        key: String,
        /// The value, or `None` to remove the key.
        value: Option<String>,
    },
    /// Removes an endpoint, and where others name it.
    Remove(EndpointId),
    /// Chooses the default endpoint.
    Default(EndpointId),
}

/// Why a change was not made. The file is as it was.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The file is not valid as it stands; it is not touched until it is.
    #[error("the settings are not valid as they stand, so nothing was changed: {0}")]
    Broken(#[source] SettingsError),
    /// The result would not be valid.
    #[error("that would make the settings invalid: {message}")]
    WouldBreak {
        /// What would be wrong.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// There is no such endpoint.
    #[error("there is no endpoint `{id}`")]
    Unknown {
        /// What was asked for.
        id: EndpointId,
        /// What there is.
        known: Vec<String>,
    },
    /// There is one already.
    #[error("there is an endpoint `{0}` already")]
    Exists(EndpointId),
}

impl Hinted for EditError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Broken(error) => error.hint().or_else(|| Some("mend that line, then try again".to_owned())),
            Self::WouldBreak { hint, .. } => hint.clone(),
            Self::Unknown { id, known } => {
                let known: Vec<&str> = known.iter().map(String::as_str).collect();
                Some(match report::nearest(id.as_str(), known.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None if known.is_empty() => "add one with `codexctl endpoint add`".to_owned(),
                    None => format!("known endpoints: {}", super::list(&known)),
                })
            }
            Self::Exists(id) => {
                Some(format!("change it with `codexctl endpoint set {id} KEY VALUE`, or choose another id"))
            }
        }
    }
}

/// Applies `edit` to the file content `text` and returns the new content. `path` is only for messages.
///
/// # Errors
/// [`EditError`]; in particular the result is read with the reader's own code first, so that a change can never leave
/// a file that does not load.
pub fn apply(path: &Path, text: &str, edit: &Edit) -> Result<String, EditError> {
    let settings = Settings::parse(path, text.as_bytes()).map_err(EditError::Broken)?;
    let mut document: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| EditError::WouldBreak {
        message: error.message().to_owned(),
        hint: None,
    })?;
    match edit {
        Edit::Add(endpoint) => {
            if settings.endpoint(&endpoint.id).is_some() {
                return Err(EditError::Exists(endpoint.id.clone()));
            }
            let rendered = toml_edit::ser::to_document(endpoint.as_ref())
                .map_err(|error| EditError::WouldBreak { message: error.to_string(), hint: None })?;
            let mut table = rendered.into_table();
            for (_, item) in table.iter_mut() {
                inline(item);
            }
            table.set_implicit(false);
            if !text.is_empty() {
                table.decor_mut().set_prefix("\n");
            }
            endpoints(&mut document)?.push(table);
        }
        Edit::Set { id, key, value } => {
            let table = endpoint_table(&mut document, &settings, id)?;
            set(table, key, value.as_deref())?;
        }
        Edit::SetIn { section, key, value } => {
            let table = document.entry(section).or_insert_with(toml_edit::table).as_table_mut().ok_or_else(|| {
                EditError::WouldBreak {
                    message: format!("`{section}` is written as an inline table"),
                    hint: Some(format!("write it as a `[{section}]` section")),
                }
            })?;
            set(table, key, value.as_deref())?;
        }
        Edit::Remove(id) => {
            let index = index_of(&settings, id)?;
            let tables = endpoints(&mut document)?;
            for (other, table) in settings.endpoint.iter().zip(tables.iter_mut()) {
                if other.backup.as_ref() == Some(id) {
                    table.remove("backup");
                }
            }
            tables.remove(index);
            if settings.monitor.ai_endpoint.as_ref() == Some(id)
                && let Some(monitor) = document.get_mut("monitor").and_then(Item::as_table_like_mut)
            {
                monitor.remove("ai_endpoint");
            }
            if settings.default_endpoint.as_ref() == Some(id) {
                document.remove("default_endpoint");
            }
        }
        Edit::Default(id) => {
            index_of(&settings, id)?;
            document.insert("default_endpoint", toml_edit::value(id.as_str()));
        }
    }
    let changed = document.to_string();
    match Settings::parse(path, changed.as_bytes()) {
        Ok(_) => Ok(changed),
        Err(error) => Err(EditError::WouldBreak {
            hint: error.hint(),
            message: match error {
                SettingsError::Invalid { message, .. } => message,
                SettingsError::File(error) => error.to_string(),
            },
        }),
    }
}

fn index_of(settings: &Settings, id: &EndpointId) -> Result<usize, EditError> {
    settings.endpoint.iter().position(|endpoint| endpoint.id == *id).ok_or_else(|| EditError::Unknown {
        id: id.clone(),
        known: settings.endpoint.iter().map(|endpoint| endpoint.id.to_string()).collect(),
    })
}

fn endpoints(document: &mut DocumentMut) -> Result<&mut ArrayOfTables, EditError> {
    document.entry("endpoint").or_insert(Item::ArrayOfTables(ArrayOfTables::new())).as_array_of_tables_mut().ok_or_else(
        || EditError::WouldBreak {
            message: "`endpoint` is written as an inline array".to_owned(),
            hint: Some("write each endpoint as a `[[endpoint]]` section".to_owned()),
        },
    )
}

fn endpoint_table<'a>(
    document: &'a mut DocumentMut,
    settings: &Settings,
    id: &EndpointId,
) -> Result<&'a mut Table, EditError> {
    let index = index_of(settings, id)?;
    endpoints(document)?.get_mut(index).ok_or_else(|| EditError::Unknown { id: id.clone(), known: Vec::new() })
}

/// Writes `value` (TOML, or a bare word taken as a string) at the dotted `key`; `None` removes it.
fn set(table: &mut Table, key: &str, value: Option<&str>) -> Result<(), EditError> {
    let (parents, last) = match key.rsplit_once('.') {
        Some((parents, last)) => (parents.split('.').collect(), last),
        None => (Vec::new(), key),
    };
    if last.is_empty() || parents.contains(&"") {
        return Err(EditError::WouldBreak { message: format!("`{key}` is not a key"), hint: None });
    }
    let mut place: &mut dyn toml_edit::TableLike = table;
    for parent in parents {
        place = place
            .entry(parent)
            .or_insert_with(|| Item::Value(Value::InlineTable(toml_edit::InlineTable::new())))
            .as_table_like_mut()
            .ok_or_else(|| EditError::WouldBreak {
                message: format!("`{parent}` has no keys of its own"),
                hint: None,
            })?;
    }
    match value {
        None => {
            place.remove(last);
        }
        Some(text) => {
            let mut value = text.parse::<Value>().unwrap_or_else(|_| Value::from(text));
            if let Some(old) = place.get(last).and_then(Item::as_value) {
                *value.decor_mut() = old.decor().clone(); // keeps the comment behind the old value
            } else {
                value.decor_mut().clear();
            }
            place.insert(last, Item::Value(value));
        }
    }
    Ok(())
}

/// Sub-tables of a new endpoint are written inline, so that they cannot swallow what follows.
fn inline(item: &mut Item) {
    if let Item::Table(table) = item {
        let table = std::mem::take(table);
        *item = Item::Value(Value::InlineTable(table.into_inline_table()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# my endpoints\ndefault_endpoint = \"b\" # the good one\n\n[[endpoint]]\nid = \"a\" # first\npreset = \"zai-coding\"\n\n# keep this\n[[endpoint]]\nid = \"b\"\nbase_url = \"http://127.0.0.1:1/v1\"   # local\nprotocol = \"chat-completions\"\n";

    fn id(text: &str) -> EndpointId {
        text.parse().unwrap()
    }

    fn edited(text: &str, edit: &Edit) -> Result<String, EditError> {
        apply(Path::new("s.toml"), text, edit)
    }

    fn set_edit(endpoint: &str, key: &str, value: Option<&str>) -> Edit {
        Edit::Set { id: id(endpoint), key: key.to_owned(), value: value.map(str::to_owned) }
    }

    #[test]
    fn a_change_touches_only_its_own_line() {
        let changed = edited(FILE, &set_edit("b", "base_url", Some("http://127.0.0.1:2/v1"))).unwrap();
        assert_eq!(changed, FILE.replace("127.0.0.1:1", "127.0.0.1:2"));
        let changed = edited(FILE, &set_edit("a", "auth.env", Some("ZAI_API_KEY"))).unwrap();
        assert_eq!(changed, FILE.replace("\"zai-coding\"\n", "\"zai-coding\"\nauth = { env = \"ZAI_API_KEY\" }\n"));
        assert_eq!(edited(&changed, &set_edit("a", "auth", None)).unwrap(), FILE);
        let changed = edited(FILE, &set_edit("a", "enabled", Some("false"))).unwrap();
        assert!(changed.contains("enabled = false\n"));
    }

    #[test]
    fn endpoints_come_and_go() {
        let new: EndpointSettings = toml::from_str(
            "id = \"c\"\npreset = \"openrouter\"\nauth = { file = \"/k\" }\nheaders = { x-title = \"t\" }",
        )
        .unwrap();
        let added = edited(FILE, &Edit::Add(Box::new(new.clone()))).unwrap();
        assert!(added.starts_with(FILE), "{added}");
        assert_eq!(Settings::parse(Path::new("s"), added.as_bytes()).unwrap().endpoint(&id("c")), Some(&new));
        assert_eq!(edited(&added, &Edit::Remove(id("c"))).unwrap(), FILE);
        assert!(matches!(edited(&added, &Edit::Add(Box::new(new.clone()))), Err(EditError::Exists(_))));
        let first = edited("", &Edit::Add(Box::new(new))).unwrap();
        assert!(first.starts_with("[[endpoint]]\nid = \"c\"\n"), "{first}");
        let without_default = edited(FILE, &Edit::Remove(id("b"))).unwrap();
        assert!(!without_default.contains("default_endpoint"), "{without_default}");
    }

    #[test]
    fn what_names_a_removed_endpoint_goes_with_it() {
        let file = FILE.replace("id = \"a\" # first\n", "id = \"a\" # first\nbackup = \"b\"\n")
            + "\n[monitor]\nai_endpoint = \"b\"\ntier3_enabled = false\n";
        let changed = edited(&file, &Edit::Remove(id("b"))).unwrap();
        assert!(!changed.contains("\"b\""), "{changed}");
        assert!(changed.contains("tier3_enabled = false") && changed.contains("# first"), "{changed}");
    }

    #[test]
    fn a_section_of_the_supervisor_is_changed_or_made() {
        let set_in = |text: &str, key: &str, value: Option<&str>| {
            let (key, value) = (key.to_owned(), value.map(str::to_owned));
            edited(text, &Edit::SetIn { section: "monitor", key, value })
        };
        let made = set_in(FILE, "enabled", Some("false")).unwrap();
        assert_eq!(made, format!("{FILE}\n[monitor]\nenabled = false\n"));
        let commented = made.replace("enabled = false", "enabled = false # for now");
        assert_eq!(set_in(&commented, "enabled", Some("true")).unwrap(), commented.replace("false #", "true #"));
        let error = set_in(FILE, "enabeld", Some("false")).unwrap_err();
        assert_eq!(error.hint().as_deref(), Some("did you mean `enabled`?"));
        assert!(set_in(FILE, "ai_endpoint", Some("a")).is_ok() && set_in(FILE, "ai_endpoint", Some("z")).is_err());
    }

    #[test]
    fn the_default_keeps_its_comment() {
        let changed = edited(FILE, &Edit::Default(id("a"))).unwrap();
        assert!(changed.contains("default_endpoint = \"a\""), "{changed}");
        let unset = FILE.replace("default_endpoint = \"b\" # the good one\n", "");
        let changed = edited(&unset, &Edit::Default(id("a"))).unwrap();
        assert!(Settings::parse(Path::new("s"), changed.as_bytes()).unwrap().default_endpoint == Some(id("a")));
    }

    #[test]
    fn a_change_that_would_not_load_is_refused() {
        let error = edited(FILE, &set_edit("a", "base_ulr", Some("x"))).unwrap_err();
        assert_eq!(error.hint().as_deref(), Some("did you mean `base_url`?"));
        assert!(matches!(edited(FILE, &set_edit("a", "port", Some("0"))), Err(EditError::WouldBreak { .. })));
        let error = edited(FILE, &set_edit("zz", "port", Some("1"))).unwrap_err();
        assert_eq!(error.hint().as_deref(), Some("known endpoints: `a`, `b`"));
        let error = edited("x = \n", &Edit::Default(id("a"))).unwrap_err();
        assert!(matches!(error, EditError::Broken(_)));
        assert!(edited(FILE, &Edit::Default(id("c"))).is_err());
    }
}
