//! The endpoint's models: which there are, which one a request means, and how Codex is told.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use codex_control::endpoint::{Endpoint, ModelFacts, model_facts, own_facts};
use codex_control::tables::Tables;
use codex_control::{files, report};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::answer::{self, Body};
use crate::upstream;
use crate::worker::Worker;

/// How long a fetched list is used before the provider is asked again.
const LIST_AGE_MAX: Duration = Duration::from_hours(1);
/// Time for the provider to give its list. Codex waits 5 s for ours, twice.
const FETCH_TIMEOUT: Duration = Duration::from_secs(3);
/// Largest list that is read: an aggregator's, with prices and descriptions, is about one megabyte.
const LIST_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Most models kept from a list, and told to Codex.
const MODELS_MAX: usize = 1_000;
/// Longest model id that is kept.
const MODEL_ID_BYTES_MAX: usize = 200;
/// Pause after a failed fetch before the next one: a provider that is down is not asked with every request.
const FETCH_PAUSE: Duration = Duration::from_secs(10);

/// What the first developer message says when Codex has no other instructions for a model.
const INSTRUCTIONS: &str = include_str!("../../../config/instructions.md");
/// Tokens of tool output Codex keeps for the model.
const TOOL_OUTPUT_TOKENS: u64 = 10_000;

/// Names of OpenAI's own models, which Codex uses in side calls whatever the configuration says. At another provider
/// they mean the endpoint's default model.
const INTERNAL_NAMES: [&str; 6] = ["gpt-", "codex-", "o1", "o3", "o4", "chatgpt-"];

/// The models of one endpoint.
pub(crate) struct Models {
    /// From the settings or the preset; when there are some, the provider is not asked.
    listed: Vec<String>,
    cache_file: PathBuf,
    fetched: Mutex<Fetched>,
    /// Held while a fetch runs, so that concurrent requests ask once.
    fetching: tokio::sync::Mutex<()>,
    etag: Mutex<Option<HeaderValue>>,
}

#[derive(Default)]
struct Fetched {
    models: Vec<Fetchable>,
    /// When the list was last asked for, with or without success.
    asked_at: Option<Instant>,
    /// Whether `models` is younger than [`LIST_AGE_MAX`].
    fresh_until: Option<Instant>,
}

/// One model as a provider lists it; only what is of use.
#[derive(Clone, Debug, PartialEq, Deserialize, serde::Serialize)]
pub(crate) struct Fetchable {
    id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    context_window: Option<u64>,
}

/// A request for a model this endpoint does not have.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UnknownModel {
    pub(crate) message: String,
}

impl Models {
    pub(crate) fn new(endpoint: &Endpoint, cache_file: PathBuf) -> Self {
        let mut fetched = Fetched::default();
        if endpoint.models.is_empty()
            && let Some((models, age)) = read_cache(&cache_file)
        {
            fetched.models = models;
            fetched.fresh_until = LIST_AGE_MAX.checked_sub(age).map(|left| Instant::now() + left);
        }
        Self {
            listed: endpoint.models.clone(),
            cache_file,
            fetched: Mutex::new(fetched),
            fetching: tokio::sync::Mutex::new(()),
            etag: Mutex::new(None),
        }
    }

    /// Ids known now, without asking anybody; the default model first.
    pub(crate) fn known(&self, endpoint: &Endpoint) -> Vec<String> {
        let mut known = if self.listed.is_empty() {
            self.fetched().models.iter().map(|model| model.id.clone()).collect()
        } else {
            self.listed.clone()
        };
        if let Some(default) = &endpoint.default_model {
            known.retain(|id| id != default);
            known.insert(0, default.clone());
        }
        known
    }

    /// The model a request means by `requested`.
    ///
    /// # Errors
    /// [`UnknownModel`] when it is certain that the provider has no such model, or there is nothing to choose.
    pub(crate) fn resolve(&self, endpoint: &Endpoint, requested: &str) -> Result<String, UnknownModel> {
        if let Some((_, model)) = endpoint.aliases.iter().find(|(alias, _)| alias == requested) {
            return Ok(model.clone());
        }
        let known = self.known(endpoint);
        let default = endpoint.default_model.as_ref().or(known.first());
        let id = &endpoint.id;
        if requested.is_empty() {
            return default.cloned().ok_or_else(|| UnknownModel {
                message: format!(
                    "the request names no model and endpoint `{id}` has no default one. Choose one with `codexctl endpoint set {id} default_model MODEL`."
                ),
            });
        }
        if known.iter().any(|model| model == requested) {
            return Ok(requested.to_owned());
        }
        let is_internal = INTERNAL_NAMES.iter().any(|name| requested.starts_with(name));
        match default {
            Some(default) if is_internal && endpoint.provider != "openai" => Ok(default.clone()),
            // A fetched list may be incomplete or old: the provider itself says whether it has the model.
            _ if self.listed.is_empty() => Ok(requested.to_owned()),
            _ => {
                let near = report::nearest(requested, known.iter().map(String::as_str));
                let near = near.map(|near| format!(" Did you mean `{near}`?")).unwrap_or_default();
                Err(UnknownModel {
                    message: format!(
                        "endpoint `{id}` has no model `{requested}`.{near} It offers: {}.",
                        known.iter().map(|model| format!("`{model}`")).collect::<Vec<_>>().join(", ")
                    ),
                })
            }
        }
    }

    /// What is known about `model`: the tables first, then what the provider's list says.
    pub(crate) fn facts(&self, worker: &Worker, model: &str) -> ModelFacts {
        let mut facts = model_facts(&worker.endpoint, &worker.tables, model);
        if !is_described(&worker.endpoint, &worker.tables, model)
            && let Some(window) = self
                .fetched()
                .models
                .iter()
                .find(|fetched| fetched.id == model)
                .and_then(|fetched| fetched.context_window)
        {
            facts.context_window = window;
        }
        facts
    }

    /// `ETag` of the catalog last told, for `X-Models-Etag`.
    pub(crate) fn etag(&self) -> Option<HeaderValue> {
        self.etag.lock().expect("nothing panics while it is held").clone()
    }

    fn fetched(&self) -> std::sync::MutexGuard<'_, Fetched> {
        self.fetched.lock().expect("nothing panics while it is held")
    }

    /// Asks the provider for its list, unless ours is fresh. A failure keeps the old list.
    pub(crate) async fn refresh(&self, worker: &Worker, even_if_fresh: bool) -> Result<(), String> {
        if !self.listed.is_empty() {
            return Ok(());
        }
        let _fetching = self.fetching.lock().await;
        {
            let mut fetched = self.fetched();
            let is_fresh = fetched.fresh_until.is_some_and(|until| until > Instant::now());
            let was_just_asked = fetched.asked_at.is_some_and(|at| at.elapsed() < FETCH_PAUSE);
            if !even_if_fresh && (is_fresh || was_just_asked) {
                return Ok(());
            }
            fetched.asked_at = Some(Instant::now());
        }
        let models = tokio::time::timeout(FETCH_TIMEOUT, fetch(worker))
            .await
            .map_err(|_| format!("the provider gave no model list within {} s", FETCH_TIMEOUT.as_secs()))??;
        write_cache(&self.cache_file, &models);
        let mut fetched = self.fetched();
        fetched.models = models;
        fetched.fresh_until = Some(Instant::now() + LIST_AGE_MAX);
        Ok(())
    }
}

/// `GET /models`: OpenAI's list and Codex's catalog in one body.
pub(crate) async fn answer(worker: &Worker, request: &Request<Incoming>) -> Response<Body> {
    let asked_anew = request.uri().query().is_some_and(|query| query.split('&').any(|pair| pair == "refresh=1"));
    let problem = worker.models.refresh(worker, asked_anew).await.err();
    if let Some(problem) = &problem {
        tracing::warn!(endpoint = %worker.endpoint.id, problem, "no model list");
    }
    let known = worker.models.known(&worker.endpoint);
    let catalog: Vec<Value> = known
        .iter()
        .enumerate()
        .map(|(priority, id)| catalog_entry(&worker.models.facts(worker, id), priority))
        .collect();
    let etag = etag(&catalog);
    let mut body = json!({
        "object": "list",
        "data": known.iter().map(|id| json!({"id": id, "object": "model", "created": 0, "owned_by": worker.endpoint.provider})).collect::<Vec<_>>(),
        "models": catalog,
    });
    if let Some(problem) = problem {
        body["problem"] = json!(problem);
    }
    let mut response = answer::json(StatusCode::OK, &body);
    if let Some(etag) = etag {
        *worker.models.etag.lock().expect("nothing panics while it is held") = Some(etag.clone());
        response.headers_mut().insert(header::ETAG, etag);
    }
    response
}

/// One entry of Codex's catalog. Fields and their effects: `ARCHITECTURE.md`, *Model catalog*.
fn catalog_entry(facts: &ModelFacts, priority: usize) -> Value {
    let levels: Vec<Value> = facts
        .reasoning_levels
        .iter()
        .map(|level| json!({"effort": level, "description": level_description(level)}))
        .collect();
    json!({
        "slug": facts.id,
        "model": facts.id,
        "display_name": facts.name,
        "description": null,
        "default_reasoning_level": facts.default_reasoning_level,
        "supported_reasoning_levels": levels,
        "shell_type": "unified_exec",
        "visibility": "list",
        "supported_in_api": true,
        "priority": priority,
        "support_verbosity": false,
        "default_verbosity": null,
        "default_reasoning_summary": "auto",
        "apply_patch_tool_type": if facts.freeform_patch { json!("freeform") } else { Value::Null },
        "web_search_tool_type": "text",
        "truncation_policy": {"mode": "tokens", "limit": TOOL_OUTPUT_TOKENS},
        "context_window": facts.context_window,
        "max_context_window": facts.context_window,
        "effective_context_window_percent": 95,
        "experimental_supported_tools": [],
        "input_modalities": if facts.images { json!(["text", "image"]) } else { json!(["text"]) },
        "supports_search_tool": false,
        "multi_agent_version": "v1",
        "use_responses_lite": false,
        "base_instructions": INSTRUCTIONS,
    })
}

fn level_description(level: &str) -> &'static str {
    match level {
        "none" => "No thinking",
        "minimal" => "Least thinking",
        "low" => "Faster",
        "medium" => "Balanced",
        "high" => "Deeper",
        _ => "As the provider defines it",
    }
}

fn etag(catalog: &[Value]) -> Option<HeaderValue> {
    let mut hash = Sha256::new();
    for entry in catalog {
        hash.update(entry.to_string());
    }
    let digest = hash.finalize();
    let short = digest.iter().take(8).fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    HeaderValue::try_from(format!("\"{short}\"")).ok()
}

async fn fetch(worker: &Worker) -> Result<Vec<Fetchable>, String> {
    let mut key = worker.credential.get().await.map_err(|error| report::chain(&error))?;
    let mut response = worker.upstream.get("/models", key.as_ref()).await.map_err(|failure| failure.message)?;
    if response.status() == StatusCode::UNAUTHORIZED && worker.credential.has_changed(key.as_ref()).await {
        key = worker.credential.get().await.map_err(|error| report::chain(&error))?;
        response = worker.upstream.get("/models", key.as_ref()).await.map_err(|failure| failure.message)?;
    }
    let status = response.status();
    if !status.is_success() {
        let body = upstream::error_body(response.into_body()).await;
        let failure = codex_translate::Failure::from_response(status.as_u16(), &[], &body, 0);
        return Err(format!(
            "the provider answered HTTP {} to the request for its models: {}",
            status.as_u16(),
            failure.message
        ));
    }
    let body = Limited::new(response.into_body(), LIST_BYTES_MAX)
        .collect()
        .await
        .map_err(|error| format!("the provider's model list could not be read: {error}"))?;
    parse_list(&body.to_bytes()).ok_or_else(|| "the provider's model list has no form we know".to_owned())
}

/// Reads `{"data": […]}`, `{"models": […]}` or a bare array, of objects with `id` or `name`, or of strings.
fn parse_list(body: &[u8]) -> Option<Vec<Fetchable>> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let rows = match &value {
        Value::Array(rows) => rows,
        Value::Object(object) => object.get("data").or_else(|| object.get("models"))?.as_array()?,
        _ => return None,
    };
    let text = |row: &Value, key: &str| row.get(key).and_then(Value::as_str).map(str::to_owned);
    let models = rows
        .iter()
        .filter_map(|row| {
            let id = row.as_str().map(str::to_owned).or_else(|| text(row, "id")).or_else(|| text(row, "name"))?;
            let id = id.strip_prefix("models/").map(str::to_owned).unwrap_or(id);
            let context_window = ["context_length", "context_window", "max_model_len", "max_context_length"]
                .iter()
                .find_map(|key| row.get(key).and_then(Value::as_u64))
                .filter(|window| *window > 0);
            (!id.is_empty() && id.len() <= MODEL_ID_BYTES_MAX).then_some(Fetchable { id, context_window })
        })
        .take(MODELS_MAX)
        .collect();
    Some(models)
}

fn read_cache(path: &std::path::Path) -> Option<(Vec<Fetchable>, Duration)> {
    let modified = std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok()?;
    let bytes = files::read_bounded(path, LIST_BYTES_MAX as u64).ok()??;
    let age = SystemTime::now().duration_since(modified).unwrap_or_default();
    Some((serde_json::from_slice(&bytes).ok()?, age))
}

fn write_cache(path: &std::path::Path, models: &[Fetchable]) {
    let Some(folder) = path.parent() else { return };
    let written = files::create_missing_folders(folder)
        .and_then(|()| files::write_atomically(path, json!(models).to_string().as_bytes(), files::PRIVATE_FILE_MODE));
    if let Err(error) = written {
        // The cache only spares a request after the next start.
        tracing::debug!(%error, "the model list is not cached");
    }
}

/// Whether the settings or the tables speak of `model`: then the provider's list has no say.
fn is_described(endpoint: &Endpoint, tables: &Tables, model: &str) -> bool {
    tables.model(model).is_some_and(|row| row.context_window.is_some()) || own_facts(endpoint, model).is_some()
}

#[cfg(test)]
mod tests {
    use codex_control::settings::Settings;

    use super::*;

    fn endpoint(more: &str) -> Endpoint {
        let text = format!(
            "[[endpoint]]\nid = \"e\"\nbase_url = \"http://127.0.0.1:1\"\nprotocol = \"chat-completions\"\n{more}"
        );
        let settings = Settings::parse(std::path::Path::new("s"), text.as_bytes()).unwrap();
        codex_control::endpoint::resolve(&settings, &Tables::embedded(), &settings.endpoint[0]).unwrap()
    }

    fn resolve(more: &str, requested: &str) -> Result<String, String> {
        let endpoint = endpoint(more);
        let models = Models::new(&endpoint, "/nonexistent/cache".into());
        models.resolve(&endpoint, requested).map_err(|unknown| unknown.message)
    }

    #[test]
    fn a_request_gets_the_model_it_means() {
        let listed = "models = [\"big\", \"small\"]\ndefault_model = \"small\"\naliases = { fast = \"small\" }\n";
        assert_eq!(resolve(listed, "big"), Ok("big".into()));
        assert_eq!(resolve(listed, "fast"), Ok("small".into()));
        assert_eq!(resolve(listed, ""), Ok("small".into()));
        assert_eq!(resolve(listed, "gpt-5.1-codex-mini"), Ok("small".into()), "Codex's side calls never fail");
        assert_eq!(
            resolve(listed, "bgi"),
            Err("endpoint `e` has no model `bgi`. Did you mean `big`? It offers: `small`, `big`.".into())
        );
        assert_eq!(resolve("", "anything"), Ok("anything".into()), "the provider knows its models best");
        assert!(resolve("", "").unwrap_err().contains("default_model"));
    }

    #[test]
    fn what_the_settings_say_of_models_by_the_beginning_of_their_name_counts() {
        let own = endpoint("[[endpoint.model]]\nid = \"house-*\"\ncontext_window = 5000\n");
        let tables = Tables::embedded();
        for (model, expected) in [("house-7b", true), ("house-", true), ("glm-4.7", true), ("other", false)] {
            assert_eq!(is_described(&own, &tables, model), expected, "{model}");
        }
    }

    #[test]
    fn lists_are_read_in_every_shape() {
        let one = |id: &str, context_window| Some(vec![Fetchable { id: id.into(), context_window }]);
        for (body, expected) in [
            (r#"{"object":"list","data":[{"id":"a","object":"model"}]}"#, one("a", None)),
            (r#"{"data":[{"id":"a","context_length":4096}]}"#, one("a", Some(4096))),
            (r#"{"models":[{"name":"models/gemini-x"}]}"#, one("gemini-x", None)),
            (r#"["a"]"#, one("a", None)),
            (r#"{"data":[{"id":""},{"nothing":1},{"id":"a","max_model_len":1}]}"#, one("a", Some(1))),
            (r#"{"data":[]}"#, Some(vec![])),
            (r#"{"error":"no"}"#, None),
            ("<html>", None),
        ] {
            assert_eq!(parse_list(body.as_bytes()), expected, "{body}");
        }
    }

    #[test]
    fn a_changed_catalog_has_another_etag() {
        let facts = model_facts(&endpoint(""), &Tables::embedded(), "glm-4.7");
        let entry = |facts: &ModelFacts| vec![catalog_entry(facts, 0)];
        assert_eq!(etag(&entry(&facts)), etag(&entry(&facts)));
        let wider = ModelFacts { context_window: 1, ..facts.clone() };
        assert_ne!(etag(&entry(&facts)), etag(&entry(&wider)));
    }
}
