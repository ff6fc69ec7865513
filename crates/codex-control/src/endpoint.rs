//! An endpoint resolved from the person's settings and the tables: everything a worker has to know.
//!
//! Holds no secret: only where the credential is to be read from ([`CredentialSource`]).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::EndpointId;
use crate::report::{self, Hinted};
use crate::settings::{AuthSettings, EndpointSettings, Settings, WorkerSettings, list};
use crate::tables::{AuthKind, Modality, Model, Protocol, Provider, Quirk, Tables};

/// A resolved endpoint. Crosses the worker socket: plain fields only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its id.
    pub id: EndpointId,
    /// Name for people.
    pub name: String,
    /// Id of its preset, or `custom`.
    pub provider: String,
    /// Wire protocol.
    pub protocol: Protocol,
    /// Base URL, normal form: no trailing slash, none of the protocols' own paths.
    pub base_url: String,
    /// How the credential goes into a request.
    pub auth: AuthKind,
    /// Where the credential is read from.
    pub credential: CredentialSource,
    /// Model when a request names none.
    pub default_model: Option<String>,
    /// Models in the order they are offered; empty: asked from the provider.
    pub models: Vec<String>,
    /// `(alias, model)`
    pub aliases: Vec<(String, String)>,
    /// Headers sent with each request, lower-case names.
    pub headers: Vec<(String, String)>,
    /// Headers of a client's request that are passed on, lower-case names.
    #[serde(default)]
    pub forward_headers: Vec<String>,
    /// Departures from the portable request.
    pub quirks: Vec<Quirk>,
    /// Facts about this endpoint's models, before those of the table.
    pub model_facts: Vec<ModelFacts>,
    /// Limits.
    pub limits: WorkerSettings,
}

/// Where a credential is read from. The worker reads it; nobody else does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CredentialSource {
    /// None is needed.
    None,
    /// The credentials store.
    Store,
    /// A variable of the worker's environment.
    Env(String),
    /// A file that holds the key alone.
    File(PathBuf),
    /// A program that prints the key.
    Command(Vec<String>),
}

/// What is known about one model. Every fact has a value: defaults are filled in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// The model's id, or a pattern with a trailing `*`.
    pub id: String,
    /// Name for people.
    pub name: String,
    /// Context window in tokens.
    pub context_window: u64,
    /// The longest answer it can give, in tokens, where that is known.
    pub output_tokens: Option<u64>,
    /// Whether it takes images.
    pub images: bool,
    /// Efforts, weakest first.
    pub reasoning_levels: Vec<String>,
    /// The level chosen when the person chooses none.
    pub default_reasoning_level: Option<String>,
    /// Whether Codex offers its freeform `apply_patch`.
    pub freeform_patch: bool,
    /// Added to the endpoint's quirks.
    pub quirks: Vec<Quirk>,
}

/// Context window assumed for an unknown model: what nearly every current coding model has at least.
pub const CONTEXT_WINDOW_DEFAULT: u64 = 128_000;

/// Longest base URL.
const BASE_URL_BYTES_MAX: usize = 2_048;

/// Paths of the protocols that people paste along with the base URL.
const PASTED_SUFFIXES: [&str; 4] = ["/chat/completions", "/completions", "/responses", "/messages"];

/// Why an endpoint cannot run. Only this endpoint is affected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// Its preset is not in the table.
    #[error("endpoint `{id}` names the preset `{preset}`, which does not exist")]
    UnknownPreset {
        /// The endpoint.
        id: EndpointId,
        /// What was written.
        preset: String,
        /// The nearest known one.
        near: Option<String>,
    },
    /// It has no base URL.
    #[error("endpoint `{id}` has no `base_url`")]
    NoBaseUrl {
        /// The endpoint.
        id: EndpointId,
    },
    /// Its base URL is not one.
    #[error("endpoint `{id}` has a `base_url` that cannot be used: {reason}")]
    BaseUrl {
        /// The endpoint.
        id: EndpointId,
        /// Why.
        reason: String,
    },
    /// It has no protocol.
    #[error("endpoint `{id}` has no `protocol`")]
    NoProtocol {
        /// The endpoint.
        id: EndpointId,
    },
    /// It names more than one source for its credential.
    #[error("endpoint `{id}` names more than one source for its key: {sources}")]
    CredentialSources {
        /// The endpoint.
        id: EndpointId,
        /// The sources.
        sources: String,
    },
    /// A header must not be passed on.
    #[error("endpoint `{id}` cannot pass on the header `{name}`")]
    ForwardHeader {
        /// The endpoint.
        id: EndpointId,
        /// Its name.
        name: String,
    },
    /// A header cannot be sent.
    #[error("endpoint `{id}` has a header `{name}` that cannot be sent")]
    Header {
        /// The endpoint.
        id: EndpointId,
        /// Its name.
        name: String,
    },
}

impl Hinted for ResolveError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::UnknownPreset { near: Some(near), .. } => format!("did you mean `{near}`?"),
            Self::UnknownPreset { near: None, .. } => "`codexctl presets` lists them".to_owned(),
            Self::NoBaseUrl { id } => format!("`codexctl endpoint set {id} base_url URL`, or give it a `preset`"),
            Self::BaseUrl { id, .. } => format!("`codexctl endpoint set {id} base_url https://HOST/PATH`"),
            Self::NoProtocol { id } => {
                format!(
                    "`codexctl endpoint set {id} protocol chat-completions` (or `responses`), or give it a `preset`"
                )
            }
            Self::CredentialSources { id, .. } => {
                format!("keep one of `env`, `file`, `command` in `auth`; `codexctl endpoint edit {id}` opens the file")
            }
            Self::ForwardHeader { .. } => {
                "leave it out of `forward_headers`: it belongs to the connection, to authorization, or to Codex itself"
                    .to_owned()
            }
            Self::Header { .. } => "names are letters, digits and hyphens; values are one line of ASCII".to_owned(),
        })
    }
}

/// Resolves one endpoint.
///
/// # Errors
/// [`ResolveError`], which concerns this endpoint alone.
pub fn resolve(settings: &Settings, tables: &Tables, endpoint: &EndpointSettings) -> Result<Endpoint, ResolveError> {
    let id = endpoint.id.clone();
    let preset = match &endpoint.preset {
        Some(preset) => Some(tables.provider(preset).ok_or_else(|| {
            ResolveError::UnknownPreset {
                id: id.clone(),
                preset: preset.clone(),
                near: report::nearest(preset, tables.providers().iter().map(|provider| provider.id.as_str()))
                    .map(str::to_owned),
            }
        })?),
        None => None,
    };
    let base_url = endpoint
        .base_url
        .as_deref()
        .or(preset.map(|preset| preset.base_url.as_str()))
        .ok_or_else(|| ResolveError::NoBaseUrl { id: id.clone() })?;
    let mut normal = normalize_base_url(base_url).map_err(|reason| ResolveError::BaseUrl { id: id.clone(), reason })?;
    let protocol = endpoint
        .protocol
        .or(preset.map(|preset| preset.protocol))
        .ok_or_else(|| ResolveError::NoProtocol { id: id.clone() })?;
    if protocol == Protocol::AnthropicMessages && is_for_an_sdk(base_url, &normal) {
        normal.push_str("/v1");
    }
    let base_url = normal;
    let (auth, credential) = resolve_auth(&id, endpoint.auth.as_ref(), preset)?;
    let mut quirks: Vec<Quirk> = preset.map(|preset| preset.quirks.clone()).unwrap_or_default();
    quirks.extend(&endpoint.quirks);
    quirks.sort_unstable();
    quirks.dedup();
    Ok(Endpoint {
        name: endpoint.name.clone().or(preset.map(|preset| preset.name.clone())).unwrap_or_else(|| id.to_string()),
        provider: preset.map_or_else(|| "custom".to_owned(), |preset| preset.id.clone()),
        default_model: endpoint
            .default_model
            .clone()
            .or_else(|| preset.and_then(|preset| preset.default_model.clone())),
        models: endpoint.models.clone().or_else(|| preset.map(|preset| preset.models.clone())).unwrap_or_default(),
        aliases: endpoint.aliases.iter().map(|(alias, model)| (alias.clone(), model.clone())).collect(),
        headers: resolve_headers(&id, endpoint, preset)?,
        forward_headers: resolve_forwarded(&id, endpoint)?,
        model_facts: endpoint.model.iter().map(|model| facts(&model.id, Some(model))).collect(),
        limits: settings.worker.clone(),
        id,
        protocol,
        base_url,
        auth,
        credential,
        quirks,
    })
}

/// Whether a base URL of Anthropic Messages, given and in its normal form, is one as Anthropic's own clients take it
/// (`ANTHROPIC_BASE_URL`): without the `/v1` that they add by themselves. Who gives the whole path means it.
fn is_for_an_sdk(given: &str, normal: &str) -> bool {
    let is_version =
        |step: &str| step.strip_prefix('v').is_some_and(|rest| rest.starts_with(|digit: char| digit.is_ascii_digit()));
    let path = normal.split_once("://").map_or(normal, |(_, rest)| rest);
    !path.split('/').skip(1).any(is_version) && !given.trim().trim_end_matches('/').ends_with("/messages")
}

fn resolve_auth(
    id: &EndpointId,
    auth: Option<&AuthSettings>,
    preset: Option<&Provider>,
) -> Result<(AuthKind, CredentialSource), ResolveError> {
    let auth = auth.cloned().unwrap_or_default();
    let kind = auth.kind.or(preset.map(|preset| preset.auth.kind)).unwrap_or_default();
    let mut sources = Vec::new();
    sources.extend(auth.env.map(|name| ("env", CredentialSource::Env(name))));
    sources.extend(auth.file.map(|path| ("file", CredentialSource::File(path))));
    sources.extend(auth.command.map(|command| ("command", CredentialSource::Command(command))));
    if sources.len() > 1 {
        let names: Vec<&str> = sources.iter().map(|(name, _)| *name).collect();
        return Err(ResolveError::CredentialSources { id: id.clone(), sources: list(&names) });
    }
    let credential = match (kind, sources.pop()) {
        (AuthKind::None, _) => CredentialSource::None,
        (_, Some((_, source))) => source,
        (_, None) => CredentialSource::Store,
    };
    Ok((kind, credential))
}

/// Headers that are never passed on: those of one connection (RFC 9110, section 7.6.1), of the body, which is another
/// one upstream, and those that authorize.
const NEVER_FORWARDED: [&str; 18] = [
    "accept",
    "accept-encoding",
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-api-key",
];

/// Beginnings of the headers by which Codex tells of this machine, its user and its turns.
const NEVER_FORWARDED_PREFIXES: [&str; 7] =
    ["chatgpt-", "originator", "proxy-", "session", "thread", "x-client-request-id", "x-codex-"];

fn resolve_forwarded(id: &EndpointId, endpoint: &EndpointSettings) -> Result<Vec<String>, ResolveError> {
    let checked = endpoint.forward_headers.iter().map(|name| {
        let lower = name.to_ascii_lowercase();
        let is_sound = http::HeaderName::try_from(&lower).is_ok();
        let is_private = NEVER_FORWARDED_PREFIXES.iter().any(|prefix| lower.starts_with(prefix));
        if is_sound && !is_private && !NEVER_FORWARDED.contains(&lower.as_str()) {
            Ok(lower)
        } else {
            Err(ResolveError::ForwardHeader { id: id.clone(), name: name.clone() })
        }
    });
    checked.collect()
}

fn resolve_headers(
    id: &EndpointId,
    endpoint: &EndpointSettings,
    preset: Option<&Provider>,
) -> Result<Vec<(String, String)>, ResolveError> {
    let mut headers = preset.map(|preset| preset.headers.clone()).unwrap_or_default();
    headers.extend(endpoint.headers.clone());
    headers
        .into_iter()
        .map(|(name, value)| {
            let sound = http::HeaderName::try_from(&name).is_ok() && http::HeaderValue::try_from(&value).is_ok();
            if sound {
                Ok((name.to_ascii_lowercase(), value))
            } else {
                Err(ResolveError::Header { id: id.clone(), name })
            }
        })
        .collect()
}

/// What is known about `model` at `endpoint`: its own facts, else the table's, else defaults.
pub fn model_facts(endpoint: &Endpoint, tables: &Tables, model: &str) -> ModelFacts {
    match own_facts(endpoint, model) {
        Some(own) => ModelFacts { id: model.to_owned(), ..own.clone() },
        None => facts(model, tables.model(model)),
    }
}

/// What the settings of `endpoint` say about `model`, by its name or by the beginning of it (`glm-*`).
pub fn own_facts<'e>(endpoint: &'e Endpoint, model: &str) -> Option<&'e ModelFacts> {
    endpoint.model_facts.iter().find(|facts| match facts.id.strip_suffix('*') {
        Some(stem) => model.starts_with(stem),
        None => facts.id == model,
    })
}

fn facts(slug: &str, row: Option<&Model>) -> ModelFacts {
    ModelFacts {
        id: slug.to_owned(),
        name: row.and_then(|row| row.name.clone()).unwrap_or_else(|| slug.to_owned()),
        context_window: row.and_then(|row| row.context_window).unwrap_or(CONTEXT_WINDOW_DEFAULT),
        output_tokens: row.and_then(|row| row.output_tokens),
        images: row.and_then(|row| row.input.as_ref()).is_some_and(|input| input.contains(&Modality::Image)),
        reasoning_levels: row.and_then(|row| row.reasoning_levels.clone()).unwrap_or_default(),
        default_reasoning_level: row.and_then(|row| row.default_reasoning_level.clone()),
        freeform_patch: row.and_then(|row| row.freeform_patch).unwrap_or(true),
        quirks: row.map(|row| row.quirks.clone()).unwrap_or_default(),
    }
}

/// Brings a base URL into its normal form: pasted protocol paths and trailing slashes go, nothing is added.
///
/// # Errors
/// A reason for a person, when it is not an `http` or `https` URL with a host, carries credentials, or has a query.
pub fn normalize_base_url(url: &str) -> Result<String, String> {
    let url = url.trim();
    if url.len() > BASE_URL_BYTES_MAX {
        return Err(format!("it is longer than {BASE_URL_BYTES_MAX} bytes"));
    }
    match url.split_once("://") {
        Some(("http" | "https", _)) => {}
        Some((other, _)) => return Err(format!("its scheme is `{other}`; use `http` or `https`")),
        None => return Err("it does not begin with `https://` or `http://`".to_owned()),
    }
    let uri: http::Uri = url.parse().map_err(|error| format!("it is not a URL ({error})"))?;
    let authority = uri.authority().ok_or("it has no host")?;
    if authority.as_str().contains('@') {
        return Err("it holds a user name or password; keep the key in the credentials store".to_owned());
    }
    if authority.host().is_empty() {
        return Err("it has no host".to_owned());
    }
    if uri.query().is_some() {
        return Err("it has a query (`?…`)".to_owned());
    }
    let mut path = uri.path().trim_end_matches('/');
    if let Some(stem) = PASTED_SUFFIXES.iter().find_map(|suffix| path.strip_suffix(suffix)) {
        path = stem.trim_end_matches('/');
    }
    Ok(format!("{}://{}{path}", uri.scheme_str().unwrap_or("https"), authority.as_str().to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(text: &str) -> Result<Endpoint, ResolveError> {
        let settings = Settings::parse(std::path::Path::new("s"), text.as_bytes()).unwrap();
        resolve(&settings, &Tables::embedded(), &settings.endpoint[0])
    }

    #[test]
    fn base_urls_are_normalised() {
        for (given, expected) in [
            ("https://host/v1", "https://host/v1"),
            ("https://host/v1/", "https://host/v1"),
            (" https://HOST/v1/chat/completions ", "https://host/v1"),
            ("https://api.z.ai/api/coding/paas/v4/chat/completions/", "https://api.z.ai/api/coding/paas/v4"),
            ("http://localhost:11434", "http://localhost:11434"),
            ("http://[::1]:8000/v1/responses", "http://[::1]:8000/v1"),
        ] {
            assert_eq!(normalize_base_url(given).as_deref(), Ok(expected), "{given}");
        }
        for (bad, reason) in [
            ("host/v1", "does not begin"),
            ("ftp://host", "scheme is `ftp`"),
            ("https://u:p@host", "password"),
            ("https://host/v1?key=1", "query"),
            ("https://", "not a URL"),
            ("", "does not begin"),
        ] {
            let error = normalize_base_url(bad).unwrap_err();
            assert!(error.contains(reason), "{bad}: {error}");
        }
    }

    #[test]
    fn anthropic_is_found_by_the_url_that_its_own_clients_take() {
        for (protocol, given, expected) in [
            ("anthropic-messages", "https://api.anthropic.com", "https://api.anthropic.com/v1"),
            ("anthropic-messages", "https://api.z.ai/api/anthropic/", "https://api.z.ai/api/anthropic/v1"),
            ("anthropic-messages", "https://host/v1/", "https://host/v1"),
            ("anthropic-messages", "https://host/v1beta/anthropic", "https://host/v1beta/anthropic"),
            ("anthropic-messages", "https://host/v1/messages", "https://host/v1"),
            ("anthropic-messages", "https://host/own/messages", "https://host/own"),
            ("anthropic-messages", "https://v1.host", "https://v1.host/v1"),
            ("chat-completions", "https://host/api", "https://host/api"),
        ] {
            let endpoint =
                resolved(&format!("[[endpoint]]\nid = \"e\"\nprotocol = \"{protocol}\"\nbase_url = \"{given}\"\n"))
                    .unwrap();
            assert_eq!(endpoint.base_url, expected, "{protocol} {given}");
        }
    }

    #[test]
    fn a_preset_fills_in_and_the_person_overrides() {
        let plain = resolved("[[endpoint]]\nid = \"z\"\npreset = \"zai-coding\"\n").unwrap();
        assert_eq!(plain.base_url, "https://api.z.ai/api/coding/paas/v4");
        assert_eq!(plain.credential, CredentialSource::Store);
        let own = resolved(
            "[[endpoint]]\nid = \"z\"\npreset = \"zai-coding\"\nbase_url = \"http://127.0.0.1:9/v1/\"\nauth = { env = \"K\" }\nheaders = { X-A = \"1\" }\nquirks = [\"strict-tools\"]\n",
        )
        .unwrap();
        assert_eq!(own.base_url, "http://127.0.0.1:9/v1");
        assert_eq!(own.credential, CredentialSource::Env("K".to_owned()));
        assert_eq!(own.headers, [("x-a".to_owned(), "1".to_owned())]);
        assert!(own.quirks.contains(&Quirk::StrictTools) && own.quirks.len() == plain.quirks.len() + 1);
    }

    #[test]
    fn what_cannot_run_says_why_and_what_to_do() {
        for (text, message, hint) in [
            ("preset = \"zai-codign\"", "preset `zai-codign`", "did you mean `zai-coding`?"),
            ("protocol = \"responses\"", "no `base_url`", "`codexctl endpoint set e base_url URL`"),
            ("base_url = \"http://h\"", "no `protocol`", "`codexctl endpoint set e protocol"),
            ("base_url = \"h\"\nprotocol = \"responses\"", "does not begin", "https://HOST/PATH"),
            ("preset = \"deepseek\"\nauth = { env = \"A\", file = \"/b\" }", "`env`, `file`", "keep one"),
            ("preset = \"deepseek\"\nheaders = { \"a b\" = \"c\" }", "header `a b`", "names are letters"),
            ("preset = \"deepseek\"\nforward_headers = [\"Cookie\"]", "header `Cookie`", "leave it out"),
            (
                "preset = \"deepseek\"\nforward_headers = [\"x-codex-turn-metadata\"]",
                "`x-codex-turn-metadata`",
                "leave it out",
            ),
        ] {
            let error = resolved(&format!("[[endpoint]]\nid = \"e\"\n{text}\n")).unwrap_err();
            assert!(error.to_string().contains(message), "{error}");
            assert!(error.hint().unwrap().contains(hint), "{:?}", error.hint());
        }
    }

    #[test]
    fn model_facts_come_from_the_person_then_the_table_then_defaults() {
        let tables = Tables::embedded();
        let endpoint = resolved(
            "[[endpoint]]\nid = \"z\"\npreset = \"zai-coding\"\n[[endpoint.model]]\nid = \"glm-4.7\"\ncontext_window = 1000\ninput = [\"text\", \"image\"]\n",
        )
        .unwrap();
        let own = model_facts(&endpoint, &tables, "glm-4.7");
        assert_eq!((own.context_window, own.images), (1000, true));
        assert_eq!(model_facts(&endpoint, &tables, "unheard-of").context_window, CONTEXT_WINDOW_DEFAULT);
        assert!(model_facts(&endpoint, &tables, "glm-4.6").context_window > CONTEXT_WINDOW_DEFAULT);
    }
}
