//! Requests to the provider: over kept connections, over TLS where the URL says so, `TCP_NODELAY` set, redirects never
//! followed.

mod connections;

use std::error::Error as StdError;
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use codex_control::endpoint::Endpoint;
use codex_control::environment::{self, Environment};
use codex_control::tables::{AuthKind, Protocol};
use codex_control::{Secret, redact};
use codex_translate::{Call, Failure, FailureClass, Trouble};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use tokio::sync::OnceCell;
use tokio::time::Instant;

pub(crate) use self::connections::Answer;
use self::connections::{Connections, Connector, SendError};

/// Largest error body that is read.
const ERROR_BODY_BYTES_MAX: usize = 256 * 1024;
/// Time for an error body to arrive.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(10);

const USER_AGENT: &str = concat!("codex-supervisor/", env!("CARGO_PKG_VERSION"));

/// The provider of one endpoint.
pub(crate) struct Upstream {
    base_url: String,
    auth: AuthKind,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Between us and the provider, where the environment says so, as far as it can be understood.
    proxy: Result<Option<Intercept>, UnreadableProxy>,
    connect_timeout: Duration,
    connections: OnceCell<Arc<Connections>>,
}

impl Upstream {
    pub(crate) fn new(endpoint: &Endpoint, environment: &Environment) -> Self {
        let version = (endpoint.protocol == Protocol::AnthropicMessages).then(|| {
            // The translator's own calls carry it; the model list wants it, too.
            (HeaderName::from_static("anthropic-version"), HeaderValue::from_static("2023-06-01"))
        });
        for (_, value) in endpoint.headers.iter().filter(|(name, value)| redact::is_secret_header(name, value)) {
            redact::never_show(&Secret::new(value.clone()));
        }
        let headers = endpoint
            .headers
            .iter()
            // Both were checked when the endpoint was resolved.
            .filter_map(|(name, value)| Some((name.parse().ok()?, HeaderValue::try_from(value).ok()?)))
            .chain(version)
            .collect();
        Self {
            base_url: endpoint.base_url.clone(),
            auth: endpoint.auth,
            proxy: proxy(&endpoint.base_url, environment),
            headers,
            connect_timeout: Duration::from_secs(endpoint.limits.connect_timeout_s),
            connections: OnceCell::new(),
        }
    }

    /// Sends `call` with `body` and waits for the head of the answer, however long that takes: the caller sets the deadline.
    ///
    /// # Errors
    /// A [`Failure`] of class `Network` when there was no answer.
    pub(crate) async fn post(
        &self,
        call: &Call,
        body: Bytes,
        key: Option<&Secret>,
        forwarded: &HeaderMap,
    ) -> Result<Response<Answer>, Failure> {
        let mut request = self.request(Method::POST, &call.path, call.query.as_deref(), key)?;
        let headers = request.headers_mut();
        for (name, value) in forwarded {
            // What the settings or the protocol say themselves goes first.
            headers.entry(name).or_insert_with(|| value.clone());
        }
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::ACCEPT, HeaderValue::from_static("text/event-stream"));
        for (name, value) in &call.headers {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        *request.body_mut() = Full::new(body);
        self.send(request).await
    }

    /// Asks for `path` below the base URL.
    pub(crate) async fn get(&self, path: &str, key: Option<&Secret>) -> Result<Response<Answer>, Failure> {
        let mut request = self.request(Method::GET, path, None, key)?;
        request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        self.send(request).await
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        query: Option<&str>,
        key: Option<&Secret>,
    ) -> Result<Request<Full<Bytes>>, Failure> {
        let mut url = String::with_capacity(self.base_url.len() + path.len() + 64);
        url.push_str(&self.base_url);
        url.push_str(path);
        if let Some(query) = query {
            let _ = write!(url, "?{query}"); // writing to a String cannot fail
        }
        let uri: Uri = url.parse().map_err(|error| network(&format!("`{url}` is not a URL: {error}")))?;
        let mut request = Request::new(Full::default());
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        for (name, value) in &self.headers {
            headers.insert(name.clone(), value.clone());
        }
        if let Some(key) = key {
            let (name, text) = match self.auth {
                AuthKind::Bearer => (header::AUTHORIZATION, format!("Bearer {}", key.expose())),
                AuthKind::XApiKey => (HeaderName::from_static("x-api-key"), key.expose().clone()),
                AuthKind::None => return Ok(request),
            };
            // Keys are checked for characters a header cannot hold when they are read.
            if let Ok(mut value) = HeaderValue::try_from(text) {
                value.set_sensitive(true);
                headers.insert(name, value);
            }
        }
        Ok(request)
    }

    async fn send(&self, mut request: Request<Full<Bytes>>) -> Result<Response<Answer>, Failure> {
        let connections = self.connections.get_or_try_init(|| self.prepared()).await?;
        let uri = std::mem::take(request.uri_mut());
        *request.uri_mut() = uri.path_and_query().cloned().map(Uri::from).unwrap_or_default();
        if let Some(host) = host(&uri) {
            request.headers_mut().insert(header::HOST, host);
        }
        connections.send(&uri, request).await.map_err(|error| self.unreachable(&error))
    }

    /// Gets ready ahead of the first request, so that it does not wait for certificates to be read.
    pub(crate) async fn prepare(&self) {
        // A failure is told to the request that needs it.
        let _ = self.connections.get_or_try_init(|| self.prepared()).await;
    }

    async fn prepared(&self) -> Result<Arc<Connections>, Failure> {
        let mut http = HttpConnector::new();
        http.set_nodelay(true);
        http.set_connect_timeout(Some(self.connect_timeout));
        http.set_keepalive(Some(Duration::from_mins(1)));
        if self.base_url.starts_with("http://") {
            return Ok(Connections::new(Connector::Plain(http)));
        }
        http.enforce_http(false);
        let config = tokio::task::spawn_blocking(tls_config).await.map_err(|error| network(&error.to_string()))??;
        let https = HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_http1();
        let proxy = self.proxy.as_ref().map_err(|UnreadableProxy| {
            network("HTTPS_PROXY holds no address of a proxy; say `http://HOST:PORT` there, or unset it")
        })?;
        let Some(proxy) = proxy else { return Ok(Connections::new(Connector::Tls(https.wrap_connector(http)))) };
        if proxy.uri().scheme_str() != Some("http") {
            // Anything else would be shown its password in the clear, and not understand it.
            let (scheme, name) = (proxy.uri().scheme_str().unwrap_or_default(), proxy_name(proxy));
            return Err(network(&format!(
                "HTTPS_PROXY names `{scheme}://{name}`, and only http:// proxies can be used"
            )));
        }
        let tunnel = Tunnel::new(proxy.uri().clone(), http);
        let tunnel = match proxy.basic_auth() {
            Some(auth) => tunnel.with_auth(auth.clone()),
            None => tunnel,
        };
        Ok(Connections::new(Connector::Tunnel(https.wrap_connector(tunnel))))
    }

    fn unreachable(&self, error: &SendError) -> Failure {
        let (what, error, otherwise): (_, &(dyn StdError + 'static), _) = match error {
            SendError::Connect(error) => ("cannot be reached", &**error, Trouble::TimedOut),
            SendError::Broken(error) => ("closed the connection", error, Trouble::Broke),
        };
        let trouble = trouble(error).unwrap_or(otherwise);
        let mut causes = String::new();
        let mut next = Some(error);
        while let Some(cause) = next {
            let text = cause.to_string();
            if !causes.contains(&text) {
                let _ = write!(causes, ": {text}");
            }
            next = cause.source();
        }
        let proxy = self.proxy.as_ref().ok().and_then(Option::as_ref);
        let through = proxy.map(|proxy| format!(" through the proxy `{}`", proxy_name(proxy)));
        let through = through.unwrap_or_default();
        broken(trouble, &format!("the provider at {} {what}{through}{causes}", self.base_url))
    }
}

/// The `Host` of a request: with its port, unless it is that of the scheme.
fn host(uri: &Uri) -> Option<HeaderValue> {
    let host = uri.host()?;
    let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    let host = match uri.port_u16() {
        Some(port) if port != default => HeaderValue::try_from(format!("{host}:{port}")),
        _ => HeaderValue::try_from(host),
    };
    host.ok()
}

/// `HTTPS_PROXY` holds something that is no URL of a proxy. It is not kept: a password may be in it.
#[derive(Debug)]
struct UnreadableProxy;

/// The proxy to the provider at `base_url`: `HTTPS_PROXY`, unless `NO_PROXY` names the provider or it is on this machine.
fn proxy(base_url: &str, environment: &Environment) -> Result<Option<Intercept>, UnreadableProxy> {
    let Ok(uri) = base_url.parse::<Uri>() else { return Ok(None) };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    if is_here || uri.scheme_str() != Some("https") {
        return Ok(None);
    }
    let first = |names: [&str; 2]| names.into_iter().find_map(|name| environment.get_str(name)).unwrap_or_default();
    let (named, spared) = (first(environment::HTTPS_PROXY).trim(), first(environment::NO_PROXY));
    let matcher = |spared: &str| Matcher::builder().https(named).no(spared).build();
    // The matcher passes over what it cannot read as if nothing had been said.
    if !named.is_empty() && matcher("").intercept(&uri).is_none() {
        return Err(UnreadableProxy);
    }
    Ok(matcher(spared).intercept(&uri))
}

/// The host and the port of a proxy. Not the authority of its URL: behind a stray `@` that holds a part of its password.
fn proxy_name(proxy: &Intercept) -> String {
    let host = proxy.uri().host().unwrap_or_default();
    proxy.uri().port_u16().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Reads the body of an error answer, as much of it as is of use.
pub(crate) async fn error_body(body: Answer) -> Bytes {
    let limited = Limited::new(body, ERROR_BODY_BYTES_MAX).collect();
    match tokio::time::timeout(ERROR_BODY_TIMEOUT, limited).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) | Err(_) => Bytes::new(),
    }
}

/// What happened to the connection, where its error says more than that there is none.
fn trouble(error: &(dyn StdError + 'static)) -> Option<Trouble> {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            if is_of_tls(io) {
                return Some(Trouble::Untrusted);
            }
            if io.kind() == std::io::ErrorKind::TimedOut {
                return Some(Trouble::TimedOut);
            }
        }
        // The connector's own error has no public type; this is how it names itself.
        if cause.to_string().starts_with("dns error") {
            return Some(Trouble::NameNotFound);
        }
        next = cause.source();
    }
    None
}

/// Whether TLS itself is what failed; its errors come wrapped, once or twice.
fn is_of_tls(error: &std::io::Error) -> bool {
    error.get_ref().is_some_and(|inner| {
        inner.is::<rustls::Error>() || inner.downcast_ref::<std::io::Error>().is_some_and(is_of_tls)
    })
}

/// A failure without an answer.
pub(crate) fn network(message: &str) -> Failure {
    Failure::new(FailureClass::Network, redact::redact(message).into_owned())
}

/// A failure of the connection.
pub(crate) fn broken(trouble: Trouble, message: &str) -> Failure {
    Failure::of_connection(trouble, redact::redact(message).into_owned())
}

/// Idle timeouts for which a provider may say no more than that it is alive.
const ALIVE_IDLE_TIMEOUTS: u32 = 2;

/// How long an answer that has begun is waited for: an idle timeout where nothing comes at all, and
/// [`ALIVE_IDLE_TIMEOUTS`] of them where only comments and pings do. Gateways send those while a provider has their
/// request in its queue, or has lost it.
#[derive(Debug)]
pub(crate) struct Patience {
    idle_timeout: Duration,
    n_events: u64,
    event_at: Instant,
    heard_at: Instant,
}

impl Patience {
    /// The answer begins now, after `n_events` of attempts before it.
    pub(crate) fn new(idle_timeout: Duration, n_events: u64) -> Self {
        let now = Instant::now();
        Self { idle_timeout, n_events, event_at: now, heard_at: now }
    }

    /// Something came at `now`, with which there are `n_events`.
    pub(crate) fn heard(&mut self, now: Instant, n_events: u64) {
        self.heard_at = now;
        if n_events != self.n_events {
            (self.n_events, self.event_at) = (n_events, now);
        }
    }

    /// When it ends, if nothing more comes.
    pub(crate) fn ends_at(&self) -> Instant {
        (self.heard_at + self.idle_timeout).min(self.event_at + self.alive_timeout())
    }

    /// Why it has ended.
    pub(crate) fn failure(&self) -> Failure {
        let is_silent = self.heard_at + self.idle_timeout <= self.event_at + self.alive_timeout();
        broken(
            Trouble::Silent,
            &if is_silent {
                format!("the provider was silent for {} s", self.idle_timeout.as_secs())
            } else {
                format!("the provider said no more than that it is alive for {} s", self.alive_timeout().as_secs())
            },
        )
    }

    fn alive_timeout(&self) -> Duration {
        self.idle_timeout * ALIVE_IDLE_TIMEOUTS
    }
}

/// The roots that Mozilla trusts and those that this machine trusts: company proxies bring their own.
fn tls_config() -> Result<rustls::ClientConfig, Failure> {
    let mut roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::debug!(%error, "a certificate of this machine was left out");
    }
    roots.add_parsable_certificates(native.certs);
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| network(&format!("TLS cannot be set up: {error}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_ends_patience_and_signs_of_life_alone_do_a_while_later() {
        let idle = Duration::from_secs(10);
        let mut patience = Patience::new(idle, 3);
        let start = patience.event_at;
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(patience.ends_at(), at(10));
        assert!(patience.failure().message.contains("was silent for 10 s"));
        patience.heard(at(9), 3);
        assert_eq!(patience.ends_at(), at(19));
        patience.heard(at(18), 3);
        assert_eq!(patience.ends_at(), at(20), "nothing but signs of life");
        assert!(patience.failure().message.contains("alive for 20 s"), "{:?}", patience.failure());
        patience.heard(at(19), 4);
        assert_eq!(patience.ends_at(), at(29));
    }

    #[test]
    fn the_environment_says_which_providers_are_behind_a_proxy() {
        let environment: Environment =
            [("HTTPS_PROXY", "http://user:pass@proxy.lan:3128"), ("NO_PROXY", "inner.lan,10.0.0.0/8")]
                .into_iter()
                .collect();
        for (base_url, is_proxied) in [
            ("https://api.example.com/v1", true),
            ("http://api.example.com/v1", false),
            ("https://llm.inner.lan/v1", false),
            ("https://10.1.2.3/v1", false),
            ("https://127.0.0.1:8443/v1", false),
            ("https://localhost/v1", false),
            ("https://[::1]:9/v1", false),
        ] {
            let proxy = proxy(base_url, &environment).unwrap();
            assert_eq!(proxy.is_some(), is_proxied, "{base_url}");
            if let Some(proxy) = proxy {
                assert_eq!(proxy.uri().host(), Some("proxy.lan"));
                assert!(proxy.basic_auth().is_some());
            }
        }
        let far = "https://api.example.com/v1";
        assert!(proxy(far, &Environment::default()).unwrap().is_none());
        for unreadable in ["proxy lan", "http://", "http://user:pass@"] {
            let environment: Environment = [("HTTPS_PROXY", unreadable)].into_iter().collect();
            assert!(proxy(far, &environment).is_err(), "{unreadable}");
            assert!(proxy("https://localhost/v1", &environment).is_ok());
        }
        let empty: Environment = [("HTTPS_PROXY", " ")].into_iter().collect();
        assert!(proxy(far, &empty).unwrap().is_none());
    }
}
