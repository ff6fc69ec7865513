//! A profile: the person's settings, their overrides of tables and, where wanted, their keys, in one JSON file.
//!
//! ```json
//! {
//!   "format": "codex-supervisor-profile",
//!   "version": 1,
//!   "made_by": "0.1.0",
//!   "files": { "supervisor.toml": "…", "models.toml": "…" },
//!   "secrets": { "zai": "…" }
//! }
//! ```
//!
//! Files are kept as they are written, comments included. Ports, local tokens, logs and statistics belong to a machine
//! and are not part of it.

use std::collections::BTreeMap;
use std::path::Path;

use codex_control::settings::edit::{self, Edit};
use codex_control::settings::{Settings, SettingsError};
use codex_control::tables::incident;
use codex_control::{EndpointId, Secret, credentials, redact};
use serde::Deserialize;
use serde_json::{Value, json};

/// The `format` member.
pub(crate) const FORMAT: &str = "codex-supervisor-profile";
/// Grows with every change that an older version could not read.
const VERSION: u64 = 1;
/// Name of the settings among the files.
pub(crate) const SETTINGS: &str = "supervisor.toml";
/// Tables that a person may override, by the name that [`codex_control::paths::Paths::table_override`] takes.
pub(crate) fn tables() -> impl Iterator<Item = &'static str> {
    ["providers", "models"].into_iter().chain(incident::TABLES.iter().copied())
}

/// See the [module](self).
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Profile {
    /// By name, with their content.
    pub(crate) files: BTreeMap<String, String>,
    /// Keys of the credentials store.
    pub(crate) secrets: BTreeMap<EndpointId, Secret>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    #[serde(rename = "format")]
    _format: String,
    #[serde(rename = "version")]
    _version: u64,
    #[serde(rename = "made_by", default)]
    _made_by: String,
    files: BTreeMap<String, String>,
    #[serde(default)]
    secrets: BTreeMap<EndpointId, String>,
}

impl Profile {
    /// Whether `file` says that it is one, of whatever version.
    pub(crate) fn is_one(file: &Value) -> bool {
        file["format"] == FORMAT
    }

    /// Reads a profile.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub(crate) fn read(file: Value) -> Result<Self, String> {
        let version = &file["version"];
        if version.as_u64() != Some(VERSION) {
            return Err(format!("it is a profile of version {version}, and this program knows version {VERSION}"));
        }
        let form: Form = serde_json::from_value(file).map_err(|error| format!("it is a damaged profile: {error}"))?;
        for name in form.files.keys() {
            let is_known = name == SETTINGS
                || name.strip_suffix(".toml").is_some_and(|table| tables().any(|known| known == table));
            if !is_known {
                return Err(format!("it is a damaged profile: no file of ours is called `{name}`"));
            }
        }
        let mut secrets = BTreeMap::new();
        for (id, key) in form.secrets {
            let key = Secret::new(key);
            let valid = credentials::validated(key.expose());
            let valid = valid.map_err(|error| format!("its key for `{id}` cannot be used: {error}"))?;
            secrets.insert(id, Secret::new(valid.to_owned()));
        }
        Ok(Self { files: form.files, secrets })
    }

    /// The file's content, secrets included.
    pub(crate) fn write(&self) -> Secret {
        let secrets: BTreeMap<&str, &str> =
            self.secrets.iter().map(|(id, key)| (id.as_str(), key.expose().as_str())).collect();
        let mut file = json!({
            "format": FORMAT, "version": VERSION, "made_by": env!("CARGO_PKG_VERSION"), "files": self.files,
        });
        if !secrets.is_empty() {
            file["secrets"] = json!(secrets);
        }
        Secret::new(format!("{file:#}\n"))
    }
}

/// Takes what holds secrets out of settings: headers, and what a base URL has beside a host and a path. Gives the new text
/// and what was taken out, as `endpoint.header` and `endpoint.base_url`.
///
/// # Errors
/// When the settings are not valid, or something stands where it cannot be taken out.
pub(crate) fn without_secrets(text: &str) -> Result<(String, Vec<String>), SettingsError> {
    let settings = Settings::parse(Path::new(SETTINGS), text.as_bytes())?;
    let mut text = text.to_owned();
    let mut taken_out = Vec::new();
    for endpoint in &settings.endpoint {
        if let Some(plain) = endpoint.base_url.as_deref().and_then(without_secrets_in_url) {
            text = replaced(&text, &endpoint.id, "base_url", Some(json!(plain).to_string()))?;
            taken_out.push(format!("{}.base_url", endpoint.id));
        }
        let kept: BTreeMap<&String, &String> =
            endpoint.headers.iter().filter(|(name, value)| !redact::is_secret_header(name, value)).collect();
        if kept.len() == endpoint.headers.len() {
            continue;
        }
        let names = endpoint.headers.keys().filter(|name| !kept.contains_key(name));
        taken_out.extend(names.map(|name| format!("{}.{name}", endpoint.id)));
        // The table as a whole: a header's name may have dots, which would be taken for a path.
        let pairs: Vec<String> =
            kept.iter().map(|(name, value)| format!("{} = {}", json!(name), json!(value))).collect();
        let value = (!kept.is_empty()).then(|| format!("{{ {} }}", pairs.join(", ")));
        text = replaced(&text, &endpoint.id, "headers", value)?;
    }
    Ok((text, taken_out))
}

/// The settings with another value, a TOML expression, or none.
fn replaced(text: &str, id: &EndpointId, key: &str, value: Option<String>) -> Result<String, SettingsError> {
    let path = Path::new(SETTINGS);
    let edit = Edit::Set { id: id.clone(), key: key.to_owned(), value };
    edit::apply(path, text, &edit).map_err(|error| SettingsError::Invalid {
        path: path.to_owned(),
        line: 1,
        column: 1,
        message: format!("the `{key}` of `{id}` cannot be taken out: {error}"),
        hint: None,
    })
}

/// The URL without user name, password and query, where it has any. Such a URL is of no use here; a person may have
/// typed it into the file all the same.
fn without_secrets_in_url(url: &str) -> Option<String> {
    let (url_without_query, query) = url.split_once(['?', '#']).map_or((url, None), |(url, query)| (url, Some(query)));
    let (scheme, rest) = url_without_query.split_once("://").unwrap_or(("https", url_without_query));
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    (query.is_some() || host != authority).then(|| format!("{scheme}://{host}{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile() -> Profile {
        let id: EndpointId = "zai".parse().unwrap();
        Profile {
            files: [(SETTINGS.to_owned(), "# mine\n[[endpoint]]\nid = \"zai\"\n".to_owned())].into(),
            secrets: [(id, Secret::new("key-1".to_owned()))].into(),
        }
    }

    #[test]
    fn what_was_written_is_read() {
        let profile = profile();
        let file: Value = serde_json::from_str(profile.write().expose()).unwrap();
        assert!(Profile::is_one(&file));
        assert_eq!(Profile::read(file).unwrap(), profile);
        assert!(!format!("{profile:?}").contains("key-1"));
        assert!(!Profile { secrets: BTreeMap::new(), ..profile }.write().expose().contains("secrets"));
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        let changed = |key: &str, value: Value| {
            let mut file: Value = serde_json::from_str(profile().write().expose()).unwrap();
            file[key] = value;
            Profile::read(file).unwrap_err()
        };
        for (key, value, message) in [
            ("version", json!(2), "it is a profile of version 2, and this program knows version 1"),
            ("version", json!(null), "it is a profile of version null"),
            ("more", json!(1), "it is a damaged profile: unknown field `more`"),
            ("files", json!({ "../x.toml": "" }), "no file of ours is called `../x.toml`"),
            ("files", json!({ "supervisor.toml": 1 }), "it is a damaged profile: invalid type"),
            ("secrets", json!({ "zai": "a\nb" }), "its key for `zai` cannot be used"),
            ("secrets", json!({ "../zai": "a" }), "is not an endpoint id"),
        ] {
            let error = changed(key, value);
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn what_holds_secrets_is_taken_out_and_nothing_else() {
        let text = "\
# mine
[[endpoint]]
id = \"a\"
headers = { x-title = \"codex\", \"X-Api-Key\" = \"k\", x-plain = \"Bearer sk-abcdefghijklmnop1234567890\" } # note
[[endpoint]]
id = \"b\"
headers = { cookie = \"c\" }
[[endpoint]]
id = \"c\"
headers = { x-title = \"codex\" }
base_url = \"https://me:word@host:8443/v1?key=k\"
";
        let (kept, taken_out) = without_secrets(text).unwrap();
        assert_eq!(taken_out, ["a.X-Api-Key", "a.x-plain", "b.cookie", "c.base_url"]);
        let settings = Settings::parse(Path::new("s"), kept.as_bytes()).unwrap();
        assert_eq!(settings.endpoint[2].base_url.as_deref(), Some("https://host:8443/v1"));
        let headers: Vec<Vec<&str>> =
            settings.endpoint.iter().map(|endpoint| endpoint.headers.keys().map(String::as_str).collect()).collect();
        assert_eq!(headers, [vec!["x-title"], vec![], vec!["x-title"]]);
        assert!(kept.starts_with("# mine\n"));
        let untouched =
            "# mine\n[[endpoint]]\nid = \"c\"\nheaders = { x-title = \"codex\" }\nbase_url = \"https://h/v1\"\n";
        assert_eq!(without_secrets(untouched).unwrap(), (untouched.to_owned(), vec![]));
    }
}
