//! The original launcher's `endpoints.json`, read as settings of ours. Pure: bytes and tables in, a [`Reading`] out.
//!
//! Two forms exist. The launcher writes `{"default": NAME, "endpoints": [{"name": …}, …]}`; some of its tools write
//! `{NAME: {…}, …}`. Nothing in either is trusted: what does not fit is left out, with the reason.

use std::collections::BTreeSet;

use codex_control::credentials;
use codex_control::endpoint::normalize_base_url;
use codex_control::ids::ENDPOINT_ID_BYTES_MAX;
use codex_control::settings::EndpointSettings;
use codex_control::tables::{AuthKind, Protocol, Tables};
use codex_control::{EndpointId, Secret};
use serde_json::{Map, Value, json};

use crate::command::models::split_names;

/// Most models of one endpoint that are taken over.
const MODELS_MAX: usize = 1_000;

/// What the original calls its backends, and our name for the protocol of each.
const BACKENDS: [(&str, &str); 12] = [
    ("openai-compat", "chat-completions"),
    ("openai", "chat-completions"),
    ("anthropic", "anthropic-messages"),
    ("native", "responses"),
    ("command-code", "command-code"),
    ("codebuff", "codebuff"),
    ("freebuff", "codebuff"),
    ("gemini-oauth", "gemini-code-assist"),
    ("gemini-oauth-cli", "gemini-code-assist"),
    ("gemini-oauth-antigravity", "antigravity"),
    ("antigravity", "antigravity"),
    ("bgp", "pool"),
];

/// Settings of its AI monitoring that are on or off, and have the same names here.
const SWITCHES: [&str; 6] =
    ["enabled", "tier1_enabled", "tier2_enabled", "tier3_enabled", "auto_restart_proxy", "auto_switch_provider"];

/// What a file of the original holds.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    /// What we can serve.
    pub(crate) endpoints: Vec<Found>,
    /// What we cannot, and why.
    pub(crate) left_out: Vec<LeftOut>,
    /// The one it uses when none is named, if that is among the endpoints.
    pub(crate) default: Option<EndpointId>,
    /// The settings of its AI monitoring.
    pub(crate) monitoring: Vec<Setting>,
}

/// One setting of a section of the supervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) section: &'static str,
    pub(crate) key: &'static str,
    pub(crate) value: Value,
}

/// One endpoint.
#[derive(Debug)]
pub(crate) struct Found {
    /// Its name there.
    pub(crate) name: String,
    /// As it would stand in our file.
    pub(crate) settings: EndpointSettings,
    /// Its key, for the credentials store.
    pub(crate) key: Option<Secret>,
    /// What the person should know about it.
    pub(crate) notes: Vec<String>,
}

/// Something that stays behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeftOut {
    pub(crate) name: String,
    pub(crate) reason: String,
}

/// Reads `file`.
///
/// # Errors
/// What is wrong, for a person, when it is in neither form.
pub(crate) fn read(file: &Value, tables: &Tables) -> Result<Reading, String> {
    let root = file.as_object().ok_or("it is no JSON object")?;
    let rows: Vec<(String, &Map<String, Value>)> = match root.get("endpoints") {
        Some(Value::Array(rows)) => rows
            .iter()
            .filter_map(Value::as_object)
            .map(|row| (text(row, "name").unwrap_or_default().to_owned(), row))
            .collect(),
        Some(_) => return Err("its `endpoints` are no list".to_owned()),
        None => root
            .iter()
            .filter_map(|(name, row)| row.as_object().map(|row| (name.clone(), row)))
            .filter(|(_, row)| row.contains_key("backend_type") || row.contains_key("base_url"))
            .collect(),
    };
    let monitoring = root.get("ai_monitoring");
    if rows.is_empty() && !root.contains_key("endpoints") && monitoring.is_none() {
        return Err("it holds neither endpoints of the original launcher nor a profile of ours".to_owned());
    }
    let mut reading = Reading::default();
    let mut taken = BTreeSet::new();
    for (name, row) in rows {
        match endpoint(&name, row, tables) {
            Ok(mut found) => {
                found.settings.id = unused(&id_of(&name), &mut taken);
                if text(root, "default") == Some(&found.name) {
                    reading.default = Some(found.settings.id.clone());
                }
                reading.endpoints.push(found);
            }
            Err(reason) => reading.left_out.push(LeftOut { name, reason }),
        }
    }
    if let Some(monitoring) = monitoring.and_then(Value::as_object) {
        read_monitoring(monitoring, tables, &mut taken, &mut reading);
    }
    Ok(reading)
}

/// The settings of its AI monitoring by their names here. Its AI is a URL with a key; here it is an endpoint: the one
/// that leads there, or another one of its own.
fn read_monitoring(row: &Map<String, Value>, tables: &Tables, taken: &mut BTreeSet<String>, reading: &mut Reading) {
    const NAME: &str = "AI monitoring";
    for key in SWITCHES {
        if let Some(value @ Value::Bool(_)) = row.get(key) {
            reading.monitoring.push(Setting { section: "monitor", key, value: value.clone() });
        }
    }
    let number = |key: &str| row.get(key).and_then(Value::as_u64);
    let bytes = number("max_memory_mb").and_then(|mebibytes| mebibytes.checked_mul(1024 * 1024));
    for (key, value) in [("health_interval_s", number("health_check_interval_s")), ("worker_memory_bytes_max", bytes)] {
        if let Some(value) = value {
            reading.monitoring.push(Setting { section: "daemon", key, value: json!(value) });
        }
    }
    if let Some(level) = text(row, "notification_level") {
        reading.monitoring.push(Setting { section: "monitor", key: "notification_level", value: json!(level) });
    }
    let Some(url) = text(row, "provider_url") else { return };
    let leads_there = |found: &&Found| {
        let preset = found.settings.preset.as_ref();
        let preset = preset.and_then(|id| tables.providers().iter().find(|preset| preset.id == *id));
        let base_url = found.settings.base_url.as_ref().or(preset.map(|preset| &preset.base_url));
        base_url.is_some_and(|base_url| normalize_base_url(base_url) == normalize_base_url(url))
    };
    let id = if let Some(found) = reading.endpoints.iter().find(leads_there) {
        found.settings.id.clone()
    } else {
        let mut its = Map::new();
        its.insert("base_url".to_owned(), json!(url));
        its.extend(["api_key"].into_iter().filter_map(|key| Some((key.to_owned(), row.get(key)?.clone()))));
        match endpoint(NAME, &its, tables) {
            Ok(mut found) => {
                found.settings.id = unused(&id_of(NAME), taken);
                let id = found.settings.id.clone();
                reading.endpoints.push(found);
                id
            }
            Err(reason) => return reading.left_out.push(LeftOut { name: NAME.to_owned(), reason }),
        }
    };
    reading.monitoring.push(Setting { section: "monitor", key: "ai_endpoint", value: json!(id) });
    if let Some(model) = text(row, "model") {
        reading.monitoring.push(Setting { section: "monitor", key: "ai_model", value: json!(model) });
    }
}

/// Reads one endpoint; its id is still to be chosen.
fn endpoint(name: &str, row: &Map<String, Value>, tables: &Tables) -> Result<Found, String> {
    let backend = text(row, "backend_type").unwrap_or("openai-compat");
    let protocol = BACKENDS
        .iter()
        .find(|(theirs, _)| *theirs == backend)
        .map(|(_, ours)| *ours)
        .ok_or_else(|| format!("its backend `{backend}` is unknown"))?;
    let protocol: Protocol = serde_json::from_value(json!(protocol))
        .map_err(|_| format!("it speaks `{protocol}`, which this version does not"))?;
    let base_url = text(row, "base_url").ok_or("it has no base URL")?;
    let base_url = normalize_base_url(base_url).map_err(|reason| format!("its base URL cannot be used: {reason}"))?;
    let preset = tables
        .providers()
        .iter()
        .find(|preset| preset.protocol == protocol && normalize_base_url(&preset.base_url).as_ref() == Ok(&base_url));
    let mut notes = Vec::new();
    let mut settings = json!({ "id": "unnamed" });
    if let Some(preset) = preset {
        settings["preset"] = json!(preset.id);
    } else {
        settings["protocol"] = json!(protocol);
        settings["base_url"] = json!(base_url);
    }
    if !name.is_empty() && preset.is_none_or(|preset| preset.name != name) {
        settings["name"] = json!(name);
    }
    let models = models(row);
    if !models.is_empty() {
        settings["models"] = json!(models);
    }
    if let Some(model) = text(row, "default_model") {
        settings["default_model"] = json!(model);
    }
    let wants_key = preset.is_none_or(|preset| preset.auth.kind != AuthKind::None);
    let key = match key_of(row) {
        Key::Variable(variable) if wants_key => {
            settings["auth"] = json!({ "env": variable });
            None
        }
        Key::Stored { first, more } if wants_key => {
            if more > 0 {
                notes.push(format!("only the first of its {} keys is taken over", more + 1));
            }
            credentials::validated(first)
                .map(|key| Secret::new(key.to_owned()))
                .map_err(|error| notes.push(format!("its key is left out: {error}")))
                .ok()
        }
        Key::None if wants_key => {
            if preset.is_none() && is_local(&base_url) {
                settings["auth"] = json!({ "kind": "none" });
            } else {
                notes.push("it has no key".to_owned());
            }
            None
        }
        Key::None | Key::Variable(_) | Key::Stored { .. } => None,
    };
    if protocol == Protocol::AnthropicMessages && preset.is_none() {
        settings["auth"]["kind"] = json!("x-api-key");
    }
    let settings = serde_json::from_value(settings).map_err(|error| format!("it cannot be read: {error}"))?;
    Ok(Found { name: name.to_owned(), settings, key, notes })
}

enum Key<'a> {
    None,
    Stored { first: &'a str, more: usize },
    Variable(&'a str),
}

/// `KEY`, `KEY,KEY`, or `${ENV:NAME}`.
fn key_of(row: &Map<String, Value>) -> Key<'_> {
    let text = text(row, "api_key").unwrap_or_default();
    if let Some(variable) = text.strip_prefix("${ENV:").and_then(|rest| rest.strip_suffix('}')) {
        return Key::Variable(variable);
    }
    let mut keys = text.split(',').map(str::trim).filter(|key| !key.is_empty());
    match keys.next() {
        Some(first) => Key::Stored { first, more: keys.count() },
        None => Key::None,
    }
}

/// Its models, each once, in its order: names, or objects with an `id`; or all of them in one text.
fn models(row: &Map<String, Value>) -> Vec<String> {
    let mut names: Vec<String> = match row.get("models") {
        Some(Value::Array(models)) => {
            let name = |model: &Value| model.as_str().or_else(|| model["id"].as_str()).map(str::to_owned);
            models.iter().filter_map(name).flat_map(|name| split_names(&name)).collect()
        }
        Some(Value::String(models)) => split_names(models),
        _ => Vec::new(),
    };
    names.truncate(MODELS_MAX);
    let mut seen = BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

fn is_local(base_url: &str) -> bool {
    let host = base_url.split_once("://").map_or("", |(_, rest)| rest);
    ["localhost", "127.", "[::1]"].iter().any(|local| host.starts_with(local))
}

/// The text at `key`, without the white space around it; `None` if there is none.
fn text<'a>(row: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    row.get(key).and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty())
}

/// `name` in kebab-case: `Z.AI Coding (2)` becomes `z-ai-coding-2`.
fn id_of(name: &str) -> String {
    let words = name.to_ascii_lowercase();
    let words = words.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let mut id = words.collect::<Vec<_>>().join("-");
    if !id.starts_with(|c: char| c.is_ascii_lowercase()) {
        id = if id.is_empty() { "endpoint".to_owned() } else { format!("endpoint-{id}") };
    }
    id.truncate(ENDPOINT_ID_BYTES_MAX);
    id.trim_end_matches('-').to_owned()
}

/// `id`, or with a number where that is taken.
fn unused(id: &str, taken: &mut BTreeSet<String>) -> EndpointId {
    let mut candidate = id.to_owned();
    for number in 2_u32.. {
        if taken.insert(candidate.clone()) {
            break;
        }
        let suffix = format!("-{number}");
        let stem = &id[..id.len().min(ENDPOINT_ID_BYTES_MAX - suffix.len())];
        candidate = format!("{}{suffix}", stem.trim_end_matches('-'));
    }
    candidate.parse().expect("it is made of lower-case letters, digits and single hyphens, and begins with a letter")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(file: &Value) -> Reading {
        read(file, &Tables::embedded()).unwrap()
    }

    /// The only endpoint that `row` becomes: its settings, its key, its notes.
    fn one(row: &Value) -> (Value, Option<String>, Vec<String>) {
        let mut reading = reading(&json!({ "endpoints": [row] }));
        assert_eq!(reading.left_out, []);
        let found = reading.endpoints.remove(0);
        let key = found.key.map(|key| key.expose().clone());
        (serde_json::to_value(found.settings).unwrap(), key, found.notes)
    }

    #[test]
    fn a_known_provider_becomes_its_preset() {
        let (settings, key, notes) = one(&json!({
            "name": "Z.ai Coding", "backend_type": "openai-compat", "provider_preset": "Z.ai Coding",
            "base_url": "https://api.z.ai/api/coding/paas/v4/chat/completions/", "api_key": " key-1 ",
            "default_model": "glm-5.1", "models": ["glm-5.1", {"id": "glm-5"}, "glm-5.1"], "reasoning_effort": "high",
        }));
        let expected = json!({
            "id": "z-ai-coding", "preset": "zai-coding", "name": "Z.ai Coding", "default_model": "glm-5.1",
            "models": ["glm-5.1", "glm-5"],
        });
        assert_eq!((settings, key.as_deref(), notes), (expected, Some("key-1"), vec![]));
    }

    #[test]
    fn any_other_provider_keeps_its_address() {
        let row = |more: Value| {
            let mut row =
                json!({ "name": "Mine", "backend_type": "anthropic", "base_url": "https://mine/v1/messages" });
            row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            row
        };
        let settings = |auth: Value| json!({ "id": "mine", "name": "Mine", "protocol": "anthropic-messages", "base_url": "https://mine/v1", "auth": auth });
        let x_api_key = || settings(json!({ "kind": "x-api-key" }));
        assert_eq!(one(&row(json!({}))), (x_api_key(), None, vec!["it has no key".to_owned()]));
        assert_eq!(
            one(&row(json!({ "api_key": "${ENV:MINE_KEY}" }))),
            (settings(json!({ "env": "MINE_KEY", "kind": "x-api-key" })), None, vec![])
        );
        assert_eq!(
            one(&row(json!({ "api_key": "a, b,,c" }))),
            (x_api_key(), Some("a".to_owned()), vec!["only the first of its 3 keys is taken over".to_owned()])
        );
        let (_, key, notes) = one(&row(json!({ "api_key": "schlüssel" })));
        assert!(key.is_none() && notes[0].starts_with("its key is left out: "), "{notes:?}");
    }

    #[test]
    fn what_runs_on_this_machine_needs_no_key() {
        let (settings, key, notes) = one(&json!({ "name": "box", "base_url": "http://127.0.0.1:9/v1", "api_key": "" }));
        assert_eq!((settings["auth"]["kind"].as_str(), key, notes), (Some("none"), None, vec![]));
        let (settings, key, notes) =
            one(&json!({ "name": "o", "base_url": "http://localhost:11434/v1", "api_key": "ollama" }));
        assert_eq!((settings["preset"].as_str(), key, notes), (Some("ollama"), None, vec![]));
    }

    #[test]
    fn both_forms_are_read_and_the_default_is_found() {
        let row = json!({ "backend_type": "native", "base_url": "https://mine/v1" });
        let mut named = row.clone();
        named["name"] = json!("My One");
        for file in [
            json!({ "default": "My One", "endpoints": [named], "ai_monitoring": {} }),
            json!({ "default": "My One", "My One": row, "ai_monitoring": { "enabled": true } }),
        ] {
            let reading = reading(&file);
            assert_eq!(reading.endpoints.len(), 1, "{file}");
            assert_eq!(reading.default, Some("my-one".parse().unwrap()));
            let n_settings = usize::from(file["ai_monitoring"]["enabled"] == true);
            assert_eq!(reading.monitoring.len(), n_settings);
        }
    }

    #[test]
    fn the_ai_that_is_asked_is_an_endpoint() {
        let file = |url: &str| {
            json!({
                "endpoints": [{ "name": "Mine", "base_url": "https://mine/v1", "api_key": "a" }],
                "ai_monitoring": {
                    "enabled": true, "tier2_enabled": "yes", "provider_url": url, "model": "m", "api_key": "b",
                    "health_check_interval_s": 7, "max_memory_mb": 512, "notification_level": "all",
                },
            })
        };
        let ai = |reading: &Reading| reading.monitoring.iter().find(|one| one.key == "ai_endpoint").cloned();
        let there = reading(&file("https://mine/v1/chat/completions"));
        assert_eq!((there.endpoints.len(), ai(&there).unwrap().value), (1, json!("mine")));
        let taken: Vec<String> =
            there.monitoring.iter().map(|one| format!("{}.{} = {}", one.section, one.key, one.value)).collect();
        let expected = [
            "monitor.enabled = true",
            "daemon.health_interval_s = 7",
            "daemon.worker_memory_bytes_max = 536870912",
            "monitor.notification_level = \"all\"",
            "monitor.ai_endpoint = \"mine\"",
            "monitor.ai_model = \"m\"",
        ];
        assert_eq!(taken, expected);
        let elsewhere = reading(&file("https://other/v1/chat/completions"));
        assert_eq!(ai(&elsewhere).unwrap().value, json!("ai-monitoring"));
        let its = &elsewhere.endpoints[1];
        assert_eq!(its.settings.base_url.as_deref(), Some("https://other/v1"));
        assert_eq!(its.key.as_ref().unwrap().expose(), "b");
        let nowhere = reading(&file("nowhere"));
        assert!(ai(&nowhere).is_none() && nowhere.left_out[0].name == "AI monitoring", "{nowhere:?}");
    }

    #[test]
    fn names_become_ids_and_each_is_there_once() {
        for (name, expected) in [
            ("Z.AI", "z-ai"),
            ("OpenCode Zen (Anthropic)", "opencode-zen-anthropic"),
            ("  --x--  ", "x"),
            ("9router", "endpoint-9router"),
            ("智谱", "endpoint"),
            ("", "endpoint"),
        ] {
            assert_eq!(id_of(name), expected, "{name}");
        }
        let long = "a-".repeat(40);
        let mut taken = BTreeSet::new();
        let ids: Vec<String> =
            ["Z.AI", "z ai", "Z-AI", &long, &long].map(|name| unused(&id_of(name), &mut taken).to_string()).into();
        assert_eq!(ids[..3], ["z-ai", "z-ai-2", "z-ai-3"]);
        assert_eq!(ids[3].len(), 39);
        assert!(ids[4].ends_with("-2") && ids[4] != ids[3]);
    }

    #[test]
    fn what_cannot_be_served_is_told() {
        let reading = reading(&json!({ "endpoints": [
            { "name": "cloud", "backend_type": "kiro-oauth", "base_url": "https://x" },
            { "name": "nowhere", "backend_type": "openai-compat", "base_url": "" },
            { "name": "bad", "backend_type": "openai-compat", "base_url": "ftp://x" },
            { "name": 7, "backend_type": "pony", "base_url": "https://x" },
            "no object",
        ] }));
        let reasons: Vec<&str> = reading.left_out.iter().map(|left| left.reason.as_str()).collect();
        assert_eq!(
            reasons,
            [
                "its backend `kiro-oauth` is unknown",
                "it has no base URL",
                "its base URL cannot be used: its scheme is `ftp`; use `http` or `https`",
                "its backend `pony` is unknown",
            ]
        );
        for (file, message) in [
            (json!([]), "it is no JSON object"),
            (json!({ "endpoints": 1 }), "its `endpoints` are no list"),
            (json!({}), "it holds neither"),
            (json!({ "a": { "b": 1 } }), "it holds neither"),
        ] {
            let error = read(&file, &Tables::embedded()).unwrap_err();
            assert!(error.starts_with(message), "{error}");
        }
    }
}
