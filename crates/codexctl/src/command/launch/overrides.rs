//! What Codex is told on its command line: `-c KEY=VALUE`, each value a piece of TOML.
//!
//! Given before the person's own arguments, all of Codex's commands take them (`exec`, `resume`, `review`, the TUI), the
//! person's own `-c` wins over them, and they win over every configuration file. They also keep Codex from going
//! through its background daemon, which would use the environment and configuration of its own first start.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;

use codex_control::EndpointId;
use codex_control::tables::Protocol;

/// The provider id all endpoints share. Codex binds each of its threads to the id, so it must never change.
const PROVIDER_ID: &str = "supervised";
/// Time Codex gives `codexctl token`, in milliseconds: its own limit is below, so that it always prints something.
const TOKEN_TIMEOUT_MS: u32 = 7_000;
/// Age at which Codex asks for the token again, in milliseconds: less than the 0.2 s after which it connects again when a
/// stream was cut, so that it asks, and wakes us, before every burst of reconnections. Measured with Codex 0.169 and
/// everything of ours killed: at 1000 it misses the first burst after a young token, and tries again only 8 s later.
const TOKEN_AGE_MAX_MS: u32 = 100;
/// Codex's own defaults, said here so that a reader sees them. The worker retries before it lets Codex see a failure.
const REQUEST_RETRIES_MAX: u32 = 4;
const STREAM_RETRIES_MAX: u32 = 5;
/// Silence after which Codex gives a stream up, in milliseconds. The worker's own limit for a provider is no longer,
/// and while it waits it sends Codex events.
const STREAM_IDLE_TIMEOUT_MS: u32 = 300_000;

/// One start of Codex.
#[derive(Debug)]
pub(super) struct Launch<'a> {
    pub(super) endpoint: &'a EndpointId,
    pub(super) name: &'a str,
    pub(super) address: SocketAddr,
    pub(super) protocol: Option<Protocol>,
    pub(super) model: Option<&'a str>,
    /// Absolute path of this program.
    pub(super) codexctl: &'a str,
}

impl Launch<'_> {
    /// The `KEY=VALUE` texts. `log_folder`: where Codex is to write its log; it writes none otherwise.
    pub(super) fn overrides(&self, log_folder: Option<&Path>) -> Vec<String> {
        let base_url = format!("http://{}/v1", self.address);
        let auth = format!(
            "{{command={},args=[\"token\",{}],timeout_ms={TOKEN_TIMEOUT_MS},refresh_interval_ms={TOKEN_AGE_MAX_MS}}}",
            quoted(self.codexctl),
            quoted(self.endpoint.as_str()),
        );
        let provider = [
            // Never "OpenAI" alone: Codex treats a provider of that name as the real one.
            format!("name={}", quoted(&format!("{} (supervised)", self.name))),
            format!("base_url={}", quoted(&base_url)),
            "wire_api=\"responses\"".to_owned(),
            format!("model_catalog_url={}", quoted(&format!("{base_url}/models"))),
            format!("auth={auth}"),
            "requires_openai_auth=false".to_owned(),
            "supports_websockets=false".to_owned(),
            format!("request_max_retries={REQUEST_RETRIES_MAX}"),
            format!("stream_max_retries={STREAM_RETRIES_MAX}"),
            format!("stream_idle_timeout_ms={STREAM_IDLE_TIMEOUT_MS}"),
            // Codex then compacts by an ordinary request, which every provider can answer.
            "capabilities={remote_compaction=\"unsupported\"}".to_owned(),
        ];
        let mut overrides = vec![
            format!("model_provider={}", quoted(PROVIDER_ID)),
            format!("model_providers.{PROVIDER_ID}={{{}}}", provider.join(",")),
        ];
        if let Some(model) = self.model.filter(|model| !model.is_empty()) {
            overrides.push(format!("model={}", quoted(model)));
        }
        // Codex offers the hosted search tool by default. Only a provider that speaks the Responses API may have it;
        // elsewhere it is dropped on the way, and the model is better not promised it.
        if self.protocol != Some(Protocol::Responses) {
            overrides.push("web_search=\"disabled\"".to_owned());
        }
        // A path that is not text is one that Codex cannot be told.
        if let Some(folder) = log_folder.and_then(Path::to_str) {
            overrides.push(format!("log_dir={}", quoted(folder)));
        }
        overrides
    }
}

/// Hosts that are reached without a proxy: `present` and loopback. Codex applies `HTTP_PROXY` to loopback, too.
pub(super) fn without_proxy(present: Option<&str>) -> String {
    let mut hosts: Vec<&str> =
        present.unwrap_or_default().split(',').map(str::trim).filter(|host| !host.is_empty()).collect();
    if !hosts.contains(&"*") {
        for host in ["127.0.0.1", "localhost"] {
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
    }
    hosts.join(",")
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

    fn parsed(launch: &Launch<'_>) -> toml::Table {
        // Codex reads `KEY=VALUE` as one line of TOML each.
        toml::from_str(&launch.overrides(None).join("\n")).unwrap()
    }

    fn launch<'a>(endpoint: &'a EndpointId, codexctl: &'a str) -> Launch<'a> {
        Launch {
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
            auth = { command = "/usr/bin/codexctl", args = ["token", "zai"], timeout_ms = 7000, refresh_interval_ms = 100 }
            capabilities = { remote_compaction = "unsupported" }
            "#,
        )
        .unwrap();
        assert_eq!(parsed(&launch(&zai, "/usr/bin/codexctl")), expected);
    }

    #[test]
    fn a_model_is_never_empty_and_hosted_search_stays_where_it_may_exist() {
        let zai = "zai".parse().unwrap();
        for model in [None, Some("")] {
            let table = parsed(&Launch { model, ..launch(&zai, "/c") });
            assert!(!table.contains_key("model"));
        }
        let table = parsed(&Launch { protocol: Some(Protocol::Responses), ..launch(&zai, "/c") });
        assert!(!table.contains_key("web_search"));
        let table = parsed(&Launch { protocol: None, ..launch(&zai, "/c") });
        assert!(table.contains_key("web_search"));
    }

    #[test]
    fn any_text_survives_the_quoting() {
        let zai = "zai".parse().unwrap();
        for path in ["/a b/codexctl", "/it's/c", "/\"q\"/\\back/c", "/tab\t/new\nline/c", "/ünï/\u{7f}/{x=1},]/c"] {
            let table = parsed(&launch(&zai, path));
            assert_eq!(table["model_providers"]["supervised"]["auth"]["command"].as_str(), Some(path));
        }
    }

    #[test]
    fn loopback_is_reached_without_a_proxy() {
        for (present, expected) in [
            (None, "127.0.0.1,localhost"),
            (Some(""), "127.0.0.1,localhost"),
            (Some("internal, .corp"), "internal,.corp,127.0.0.1,localhost"),
            (Some("localhost"), "localhost,127.0.0.1"),
            (Some("*"), "*"),
        ] {
            assert_eq!(without_proxy(present), expected, "{present:?}");
        }
    }
}
