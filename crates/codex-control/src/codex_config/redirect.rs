//! What Codex must be told to work on one of our endpoints: a few keys, each with a piece of TOML as its value.
//!
//! The same keys are given as `-c KEY=VALUE` to a Codex that is started for one session, and written into its
//! `config.toml` where there is no command line to give them to.

use std::fmt::Write;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::EndpointId;
use crate::tables::Protocol;

/// The provider id all endpoints share. Codex binds each of its threads to the id, so it must never change.
pub const PROVIDER_ID: &str = "supervised";
/// The key that chooses the provider.
pub(super) const PROVIDER_KEY: &str = "model_provider";
/// The key that chooses the model.
pub(super) const MODEL_KEY: &str = "model";
/// The table that holds the providers.
pub(super) const PROVIDERS_TABLE: &str = "model_providers";
/// The key that says how Codex searches the web.
pub(super) const SEARCH_KEY: &str = "web_search";
/// End of the provider's name, by which a person and we recognise it.
pub(super) const NAME_SUFFIX: &str = " (supervised)";
/// Command of `codexctl` that prints the token.
pub(super) const TOKEN_COMMAND: &str = "token";

/// Time Codex gives `codexctl token`, in milliseconds: its own limit is below, so that it always prints something.
const TOKEN_TIMEOUT_MS: u32 = 7_000;
/// Age at which Codex asks for the token again, in milliseconds: the least it takes (0 would turn it off), so that it
/// asks, and wakes us, before every request and every burst of reconnections. Measured with Codex 0.169 and everything of
/// ours killed: with a token younger than this it spends the first burst on a closed port, and tries again only 8 s later;
/// a command that runs tool calls asks anew within 60 ms. Asking takes 3 ms while we run.
const TOKEN_AGE_MAX_MS: u32 = 1;
/// Codex's own defaults, said here so that a reader sees them. The worker retries before it lets Codex see a failure.
const REQUEST_RETRIES_MAX: u32 = 4;
const STREAM_RETRIES_MAX: u32 = 5;
/// Silence after which Codex gives a stream up, in milliseconds. The worker's own limit for a provider is no longer,
/// and while it waits it sends Codex events.
const STREAM_IDLE_TIMEOUT_MS: u32 = 300_000;

/// An endpoint as Codex has to know it.
#[derive(Clone, Copy, Debug)]
pub struct Redirect<'a> {
    /// The endpoint.
    pub endpoint: &'a EndpointId,
    /// Its name for people.
    pub name: &'a str,
    /// Where its worker listens.
    pub address: SocketAddr,
    /// What its provider speaks, where that is known.
    pub protocol: Option<Protocol>,
    /// The model; without one, Codex takes the first of the catalog.
    pub model: Option<&'a str>,
    /// Absolute path of `codexctl`.
    pub codexctl: &'a str,
}

/// One key of Codex's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// Dotted, as on Codex's command line.
    pub name: String,
    /// Its value, a piece of TOML on one line.
    pub value: String,
}

impl Redirect<'_> {
    /// The keys, in the order in which a person likes to read them. None of them is ever empty: Codex would look for a
    /// provider or a model of that name.
    pub fn keys(&self) -> Vec<Key> {
        let base_url = base_url(self.address);
        let auth = format!(
            "{{ command = {}, args = [\"{TOKEN_COMMAND}\", {}], timeout_ms = {TOKEN_TIMEOUT_MS}, refresh_interval_ms = {TOKEN_AGE_MAX_MS} }}",
            quoted(self.codexctl),
            quoted(self.endpoint.as_str()),
        );
        let provider = [
            // Never "OpenAI" alone: Codex treats a provider of that name as the real one.
            format!("name = {}", quoted(&format!("{}{NAME_SUFFIX}", self.name))),
            format!("base_url = {}", quoted(&base_url)),
            "wire_api = \"responses\"".to_owned(),
            format!("model_catalog_url = {}", quoted(&format!("{base_url}/models"))),
            format!("auth = {auth}"),
            "requires_openai_auth = false".to_owned(),
            "supports_websockets = false".to_owned(),
            format!("request_max_retries = {REQUEST_RETRIES_MAX}"),
            format!("stream_max_retries = {STREAM_RETRIES_MAX}"),
            format!("stream_idle_timeout_ms = {STREAM_IDLE_TIMEOUT_MS}"),
            // Codex then compacts by an ordinary request, which every provider can answer.
            "capabilities = { remote_compaction = \"unsupported\" }".to_owned(),
        ];
        let mut keys = vec![Key::text(PROVIDER_KEY, PROVIDER_ID)];
        if let Some(model) = self.model.filter(|model| !model.is_empty()) {
            keys.push(Key::text(MODEL_KEY, model));
        }
        // Codex offers the hosted search tool by default. Only a provider that speaks the Responses API may have it;
        // elsewhere it is dropped on the way, and the model is better not promised it.
        if self.protocol != Some(Protocol::Responses) {
            keys.push(Key::text(SEARCH_KEY, "disabled"));
        }
        let table = format!("{{ {} }}", provider.join(", "));
        keys.push(Key { name: format!("{PROVIDERS_TABLE}.{PROVIDER_ID}"), value: table });
        keys
    }
}

/// Where Codex reaches an endpoint.
fn base_url(address: SocketAddr) -> String {
    format!("http://{address}/v1")
}

impl Key {
    /// The same key for an endpoint that listens at `address` now, and the base URL that it has had; `None` if it has
    /// none, or this one already.
    pub(super) fn readdressed(&self, address: SocketAddr) -> Option<(Self, String)> {
        #[derive(Deserialize)]
        struct Provider {
            base_url: String,
        }
        let Provider { base_url: former } =
            Provider::deserialize(toml::de::ValueDeserializer::parse(&self.value).ok()?).ok()?;
        let present = base_url(address);
        let key = Self {
            name: self.name.clone(),
            value: self.value.replace(&quoted_start(&former), &quoted_start(&present)),
        };
        (former != present).then_some((key, former))
    }

    /// The key `name` with a text as its value.
    pub fn text(name: &str, text: &str) -> Self {
        Self { name: name.to_owned(), value: quoted(text) }
    }

    /// As Codex takes it after `-c`.
    pub fn argument(&self) -> String {
        format!("{}={}", self.name, self.value)
    }
}

/// The beginning of a TOML basic string that begins with `text`.
fn quoted_start(text: &str) -> String {
    let mut start = quoted(text);
    start.pop();
    start
}

/// Where a provider of ours leads: the endpoint that it asks a token for, and the address.
pub(super) fn destination(provider: &toml::Value) -> Option<(EndpointId, SocketAddr)> {
    let base_url = provider.get("base_url")?.as_str()?;
    let address = base_url.strip_prefix("http://")?.split('/').next()?.parse().ok()?;
    let arguments = provider.get("auth")?.get("args")?;
    Some((arguments.get(1)?.as_str()?.parse().ok()?, address))
}

/// `text` as a TOML basic string.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(c)); // writing to a String cannot fail
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(redirect: &Redirect<'_>) -> toml::Table {
        // Codex reads `KEY=VALUE` as one line of TOML each.
        let arguments: Vec<String> = redirect.keys().iter().map(Key::argument).collect();
        toml::from_str(&arguments.join("\n")).unwrap()
    }

    fn redirect<'a>(endpoint: &'a EndpointId, codexctl: &'a str) -> Redirect<'a> {
        Redirect {
            endpoint,
            name: "Z.AI",
            address: ([127, 0, 0, 1], 41017).into(),
            protocol: Some(Protocol::ChatCompletions),
            model: Some("glm-4.7"),
            codexctl,
        }
    }

    #[test]
    fn codex_is_told_everything_it_needs() {
        let zai = "zai".parse().unwrap();
        let expected: toml::Table = toml::from_str(
            r#"
            model_provider = "supervised"
            model = "glm-4.7"
            web_search = "disabled"
            [model_providers.supervised]
            name = "Z.AI (supervised)"
            base_url = "http://127.0.0.1:41017/v1"
            wire_api = "responses"
            model_catalog_url = "http://127.0.0.1:41017/v1/models"
            requires_openai_auth = false
            supports_websockets = false
            request_max_retries = 4
            stream_max_retries = 5
            stream_idle_timeout_ms = 300000
            auth = { command = "/usr/bin/codexctl", args = ["token", "zai"], timeout_ms = 7000, refresh_interval_ms = 1 }
            capabilities = { remote_compaction = "unsupported" }
            "#,
        )
        .unwrap();
        assert_eq!(parsed(&redirect(&zai, "/usr/bin/codexctl")), expected);
    }

    #[test]
    fn a_model_is_never_empty_and_hosted_search_stays_where_it_may_exist() {
        let zai = "zai".parse().unwrap();
        for model in [None, Some("")] {
            let table = parsed(&Redirect { model, ..redirect(&zai, "/c") });
            assert!(!table.contains_key("model"));
        }
        let table = parsed(&Redirect { protocol: Some(Protocol::Responses), ..redirect(&zai, "/c") });
        assert!(!table.contains_key("web_search"));
        let table = parsed(&Redirect { protocol: None, ..redirect(&zai, "/c") });
        assert!(table.contains_key("web_search"));
    }

    #[test]
    fn an_endpoint_that_moves_is_found_again() {
        let zai = "zai".parse().unwrap();
        let (here, there) = (redirect(&zai, "/c"), ([127, 0, 0, 1], 4101).into());
        let moved: Vec<Key> = here
            .keys()
            .iter()
            .map(|key| match key.readdressed(there) {
                Some((moved, former)) => {
                    assert_eq!(former, "http://127.0.0.1:41017/v1");
                    moved
                }
                None => key.clone(),
            })
            .collect();
        assert_eq!(moved, Redirect { address: there, ..here }.keys());
        assert!(moved.iter().all(|key| key.readdressed(there).is_none()));
    }

    #[test]
    fn any_text_survives_the_quoting() {
        let zai = "zai".parse().unwrap();
        for path in ["/a b/codexctl", "/it's/c", "/\"q\"/\\back/c", "/tab\t/new\nline/c", "/ünï/\u{7f}/{x=1},]/c"] {
            let table = parsed(&redirect(&zai, path));
            assert_eq!(table["model_providers"]["supervised"]["auth"]["command"].as_str(), Some(path));
        }
    }
}
