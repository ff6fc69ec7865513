//! Every environment variable the product reads, and a snapshot to read them from.
//!
//! Code takes an [`Environment`] instead of asking the process, so that tests run in parallel without changing it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

/// The person's home folder.
pub const HOME: &str = "HOME";
/// Base of configuration files; default `~/.config`.
pub const XDG_CONFIG_HOME: &str = "XDG_CONFIG_HOME";
/// Base of state that survives a reboot; default `~/.local/state`.
pub const XDG_STATE_HOME: &str = "XDG_STATE_HOME";
/// Base of disposable files; default `~/.cache`.
pub const XDG_CACHE_HOME: &str = "XDG_CACHE_HOME";
/// Base of programs' data; default `~/.local/share`.
pub const XDG_DATA_HOME: &str = "XDG_DATA_HOME";
/// Base of sockets and locks; default `/run/user/UID` where it exists, else a private folder below the state.
pub const XDG_RUNTIME_DIR: &str = "XDG_RUNTIME_DIR";
/// Codex's own folder; default `~/.codex`.
pub const CODEX_HOME: &str = "CODEX_HOME";
/// Log filter: a level, or `TARGET=LEVEL` separated by commas, as `tracing_subscriber::filter::Targets` reads them;
/// default `info`.
pub const LOG: &str = "CODEX_SUPERVISOR_LOG";
/// The Codex program that `codexctl launch cli` starts; default: `codex` on the `PATH`.
pub const CODEX: &str = "CODEX_SUPERVISOR_CODEX";
/// The program of Codex Desktop that `codexctl launch desktop` starts; default: what is found.
pub const DESKTOP: &str = "CODEX_SUPERVISOR_DESKTOP";
/// Bases of the machine's data; default `/usr/local/share:/usr/share`.
pub const XDG_DATA_DIRS: &str = "XDG_DATA_DIRS";
/// Where systemd wants readiness to be told.
pub const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
/// Where programs are looked up.
pub const PATH: &str = "PATH";
/// Hosts that are reached without a proxy.
pub const NO_PROXY: [&str; 2] = ["NO_PROXY", "no_proxy"];
/// The proxy through which providers are reached.
pub const HTTPS_PROXY: [&str; 2] = ["HTTPS_PROXY", "https_proxy"];
/// The person's editor, for `codexctl endpoint edit`.
pub const EDITOR: [&str; 2] = ["VISUAL", "EDITOR"];
/// Proxy, locale, time zone and certificate variables that a worker needs to reach a provider.
///
/// A worker's environment holds these, the paths above and the variable its credential is read from; nothing else.
pub const PASSED_TO_WORKER: [&str; 16] = [
    HOME,
    XDG_CONFIG_HOME,
    XDG_STATE_HOME,
    XDG_CACHE_HOME,
    XDG_RUNTIME_DIR,
    PATH,
    LOG,
    "LANG",
    "TZ",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    HTTPS_PROXY[0],
    HTTPS_PROXY[1],
    NO_PROXY[0],
    NO_PROXY[1],
    "RUST_BACKTRACE",
];

/// Names of our programs that run in the background, all in the folder of `codexctl`.
pub const DAEMONS: [&str; 2] = ["codex-supervisor", "codex-worker"];

/// Settings of the C library's allocator for a worker, which a program cannot make for itself without `unsafe`.
///
/// By default memory for a request of more than 128 KiB is returned to the system as soon as it is free, and fetched
/// anew, page by page, for the next one: a tenth of the processor time of a request of 60 KB. With these a worker keeps
/// up to 8 MiB for the next request.
///
/// Its caches of small pieces (`tcache`, `mxfast`) are off: a freed piece that lies in one counts as used, and a few of
/// them keep all that lies below from being returned. With them the memory of a thousand streams stayed with the worker
/// for good, and grew with each further thousand; without them a short stream takes a twentieth more processor time.
pub const WORKER_ALLOCATOR: [(&str, &str); 1] = [(
    "GLIBC_TUNABLES",
    "glibc.malloc.mmap_threshold=4194304:glibc.malloc.trim_threshold=8388608:glibc.malloc.top_pad=262144:\
     glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0",
)];

/// The environment at one moment.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// The environment this process was started with.
    pub fn from_process() -> Self {
        Self(std::env::vars_os().collect())
    }

    /// The value of `name`; an empty value counts as unset.
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.0.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    /// The value of `name` if it is set and UTF-8.
    pub fn get_str(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(OsStr::to_str)
    }
}

impl<K: Into<OsString>, V: Into<OsString>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}
