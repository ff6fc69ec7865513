//! Every path the product uses.

use std::path::{Path, PathBuf};

use crate::EndpointId;
use crate::environment::{self, Environment};
use crate::session::SessionId;

/// Name of our folder below each base.
const FOLDER: &str = "codex-supervisor";

/// Longest path of a Unix socket, terminating zero included (`sun_path`, unix(7)).
pub const SOCKET_PATH_BYTES_MAX: usize = 108;

/// The product's folders. Nothing is created by making this; see [`crate::files::create_private_folder`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    config: PathBuf,
    state: PathBuf,
    cache: PathBuf,
    runtime: PathBuf,
    codex_home: PathBuf,
    codex_desktop: [PathBuf; 2],
    original_cache: PathBuf,
}

/// Why no paths can be made.
#[derive(Debug, thiserror::Error)]
pub enum PathsError {
    /// No home folder is known.
    #[error("the variable `HOME` is not set, so there is no place for configuration and state")]
    NoHome,
    /// A path of a socket would be too long for the kernel.
    #[error("the socket path `{path}` is longer than the {SOCKET_PATH_BYTES_MAX} bytes the kernel allows")]
    SocketPathTooLong {
        /// The path in question.
        path: PathBuf,
    },
}

impl Paths {
    /// Finds the folders by the XDG rules.
    ///
    /// A base that is not absolute is ignored, as the XDG specification asks.
    ///
    /// # Errors
    /// [`PathsError::NoHome`] without `HOME`; [`PathsError::SocketPathTooLong`] if a socket could not be bound.
    pub fn from_environment(environment: &Environment) -> Result<Self, PathsError> {
        let absolute = |name| environment.get(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = absolute(environment::HOME).ok_or(PathsError::NoHome)?;
        let state = absolute(environment::XDG_STATE_HOME).unwrap_or_else(|| home.join(".local/state")).join(FOLDER);
        let runtime = absolute(environment::XDG_RUNTIME_DIR)
            .or_else(|| {
                Some(PathBuf::from(format!("/run/user/{}", nix::unistd::getuid()))).filter(|path| path.is_dir())
            })
            .map_or_else(|| state.join("run"), |base| base.join(FOLDER));
        let paths = Self {
            config: absolute(environment::XDG_CONFIG_HOME).unwrap_or_else(|| home.join(".config")).join(FOLDER),
            cache: absolute(environment::XDG_CACHE_HOME).unwrap_or_else(|| home.join(".cache")).join(FOLDER),
            codex_desktop: [
                absolute(environment::XDG_DATA_HOME).unwrap_or_else(|| home.join(".local/share")),
                absolute(environment::XDG_CACHE_HOME).unwrap_or_else(|| home.join(".cache")),
            ]
            .map(|base| base.join("codex-desktop")),
            codex_home: absolute(environment::CODEX_HOME).unwrap_or_else(|| home.join(".codex")),
            original_cache: home.join(".cache/codex-proxy"),
            state,
            runtime,
        };
        for path in [paths.control_socket(), paths.worker_socket()] {
            if path.as_os_str().len() >= SOCKET_PATH_BYTES_MAX {
                return Err(PathsError::SocketPathTooLong { path });
            }
        }
        Ok(paths)
    }

    /// Folder of the person's own files.
    pub fn config_folder(&self) -> &Path {
        &self.config
    }

    /// Folder of state that survives a reboot.
    pub fn state_folder(&self) -> &Path {
        &self.state
    }

    /// Folder of disposable files.
    pub fn cache_folder(&self) -> &Path {
        &self.cache
    }

    /// Folder of sockets, the lock and the registry.
    pub fn runtime_folder(&self) -> &Path {
        &self.runtime
    }

    /// Codex's own folder.
    pub fn codex_home(&self) -> &Path {
        &self.codex_home
    }

    /// Where Codex keeps the programs of its background daemon.
    pub fn codex_daemon_folder(&self) -> PathBuf {
        self.codex_home.join("packages/app-server-daemon")
    }

    /// Where Codex Desktop keeps its data and its disposable files.
    pub fn codex_desktop_folders(&self) -> [PathBuf; 2] {
        self.codex_desktop.clone()
    }

    /// Codex's own settings.
    pub fn codex_config(&self) -> PathBuf {
        self.codex_home.join("config.toml")
    }

    /// The endpoints of the original launcher, which only `codexctl import` reads.
    pub fn original_endpoints(&self) -> PathBuf {
        self.codex_home.join("endpoints.json")
    }

    /// Its pools of several providers.
    pub fn original_pools(&self) -> PathBuf {
        self.codex_home.join("bgp-pools.json")
    }

    /// Where it keeps everything else: logs, tokens, the files of its proxies.
    pub fn original_cache(&self) -> &Path {
        &self.original_cache
    }

    /// The person's settings and endpoints.
    pub fn settings(&self) -> PathBuf {
        self.config.join("supervisor.toml")
    }

    /// The person's override of an embedded table, e.g. `providers`.
    pub fn table_override(&self, table: &str) -> PathBuf {
        table_override(&self.config, table)
    }

    /// Folder of stored credentials, 0700.
    pub fn credentials_folder(&self) -> PathBuf {
        self.config.join("credentials")
    }

    /// The stored credential of one endpoint, 0600.
    pub fn credential(&self, endpoint: &EndpointId) -> PathBuf {
        self.credentials_folder().join(endpoint.as_str())
    }

    /// JSON-RPC socket.
    pub fn control_socket(&self) -> PathBuf {
        self.runtime.join("control.sock")
    }

    /// Socket that workers dial.
    pub fn worker_socket(&self) -> PathBuf {
        self.runtime.join("worker.sock")
    }

    /// Lock that makes the supervisor single.
    pub fn lock(&self) -> PathBuf {
        self.runtime.join("supervisor.lock")
    }

    /// PID registry, readable by a person.
    pub fn registry(&self) -> PathBuf {
        self.runtime.join("registry.json")
    }

    /// Port of each endpoint, remembered.
    pub fn ports(&self) -> PathBuf {
        self.state.join("ports.json")
    }

    /// Endpoints that the person has stopped by hand, remembered.
    pub fn stopped(&self) -> PathBuf {
        self.state.join("stopped.json")
    }

    /// Changes to endpoints that actions have made, remembered.
    pub fn standing(&self) -> PathBuf {
        self.state.join("standing.json")
    }

    /// Database of usage and incidents.
    pub fn database(&self) -> PathBuf {
        self.state.join("state.db")
    }

    /// Local bearer token of one endpoint, 0600.
    pub fn token(&self, endpoint: &EndpointId) -> PathBuf {
        self.state.join("tokens").join(endpoint.as_str())
    }

    /// Folder of what is remembered about each `config.toml` of Codex that was changed.
    pub fn config_transactions_folder(&self) -> PathBuf {
        self.state.join("codex-config")
    }

    /// Key that authenticates opaque state carried by Codex, 0600.
    pub fn seal_key(&self) -> PathBuf {
        self.state.join("seal.key")
    }

    /// Folder of log files.
    pub fn logs_folder(&self) -> PathBuf {
        self.state.join("logs")
    }

    /// Log file of the supervisor.
    pub fn supervisor_log(&self) -> PathBuf {
        self.logs_folder().join("supervisor.log")
    }

    /// Log file of one endpoint's worker.
    pub fn worker_log(&self, endpoint: &EndpointId) -> PathBuf {
        self.logs_folder().join(format!("{endpoint}.log"))
    }

    /// Sessions of Codex that went on when the supervisor was stopped, in the form of the registry.
    pub fn left_sessions(&self) -> PathBuf {
        self.state.join("sessions.json")
    }

    /// Folder of the folders of Codex's sessions.
    pub fn sessions_folder(&self) -> PathBuf {
        self.logs_folder().join("codex")
    }

    /// Folder of one session's logs.
    pub fn session_folder(&self, id: &SessionId) -> PathBuf {
        self.sessions_folder().join(id.as_str())
    }

    /// Copy of the settings that `codexctl endpoint edit` works on; one per editing process.
    pub fn settings_draft(&self, pid: u32) -> PathBuf {
        self.state.join(format!("supervisor.draft-{pid}.toml"))
    }

    /// Where systemd looks for a unit of the person's: their own folder, the administrator's, and those of packages.
    pub fn unit_folders(&self) -> [PathBuf; 4] {
        let own = self.config.parent().unwrap_or(Path::new("/")).join("systemd/user");
        [own, "/etc/systemd/user".into(), "/usr/local/lib/systemd/user".into(), "/usr/lib/systemd/user".into()]
    }

    /// Private socket of the person's service manager, present while one runs.
    pub fn service_manager_socket(&self) -> PathBuf {
        self.runtime.parent().unwrap_or(Path::new("/")).join("systemd/private")
    }

    /// The person's message bus, present in a session of systemd's.
    pub fn message_bus_socket(&self) -> PathBuf {
        self.runtime.parent().unwrap_or(Path::new("/")).join("bus")
    }

    /// What one endpoint's provider has taught by refusals.
    pub fn learned(&self, endpoint: &EndpointId) -> PathBuf {
        self.cache.join("learned").join(format!("{endpoint}.json"))
    }

    /// What is known of the state that conversations carry for one endpoint's provider: beside what its refusals have
    /// taught.
    pub fn states_beside(learned: &Path) -> PathBuf {
        learned.with_extension("states.json")
    }

    /// Folders of our own in which small files are replaced whole, besides [`Paths::runtime_folder`].
    pub fn folders_of_small_files(&self) -> [PathBuf; 6] {
        let (state, cache) = (&self.state, &self.cache);
        let [tokens, learned, models] = [state.join("tokens"), cache.join("learned"), cache.join("models")];
        [self.config.clone(), self.credentials_folder(), state.clone(), tokens, learned, models]
    }

    /// Model list of one endpoint as fetched from its provider.
    pub fn models_cache(&self, endpoint: &EndpointId) -> PathBuf {
        self.cache.join("models").join(format!("{endpoint}.json"))
    }
}

/// Folder of Codex Desktop where it is installed beside the system's own packages.
pub const DESKTOP_FOLDER: &str = "/opt/codex-desktop";

/// Folders of the desktop's applications' entries, the person's own first.
pub fn applications_folders(environment: &Environment) -> Vec<PathBuf> {
    let absolute = |path: &PathBuf| path.is_absolute();
    let own = environment.get(environment::XDG_DATA_HOME).map(PathBuf::from).filter(absolute);
    let own = own.or_else(|| Some(PathBuf::from(environment.get(environment::HOME)?).join(".local/share")));
    let machine = environment.get(environment::XDG_DATA_DIRS).unwrap_or("/usr/local/share:/usr/share".as_ref());
    let machine = std::env::split_paths(machine).filter(absolute);
    own.into_iter().chain(machine).map(|folder| folder.join("applications")).collect()
}

/// The person's override of an embedded table in `config_folder`.
pub fn table_override(config_folder: &Path, table: &str) -> PathBuf {
    config_folder.join(format!("{table}.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(pairs: &[(&str, &str)]) -> Result<Paths, PathsError> {
        Paths::from_environment(&pairs.iter().copied().collect())
    }

    #[test]
    fn xdg_folders_are_found() {
        let defaults = paths(&[("HOME", "/home/u"), ("XDG_RUNTIME_DIR", "/run/user/7")]).unwrap();
        assert_eq!(defaults.settings(), Path::new("/home/u/.config/codex-supervisor/supervisor.toml"));
        assert_eq!(defaults.ports(), Path::new("/home/u/.local/state/codex-supervisor/ports.json"));
        assert_eq!(defaults.control_socket(), Path::new("/run/user/7/codex-supervisor/control.sock"));
        assert_eq!(defaults.codex_home(), Path::new("/home/u/.codex"));
        assert_eq!(defaults.unit_folders()[0], Path::new("/home/u/.config/systemd/user"));
        assert_eq!(defaults.service_manager_socket(), Path::new("/run/user/7/systemd/private"));
        assert_eq!(defaults.message_bus_socket(), Path::new("/run/user/7/bus"));
        let moved = paths(&[("HOME", "/h"), ("XDG_CONFIG_HOME", "/c"), ("XDG_STATE_HOME", "relative")]).unwrap();
        assert_eq!(moved.config_folder(), Path::new("/c/codex-supervisor"));
        assert_eq!(moved.state_folder(), Path::new("/h/.local/state/codex-supervisor"));
    }

    #[test]
    fn impossible_places_are_refused() {
        assert!(matches!(paths(&[]), Err(PathsError::NoHome)));
        let long = format!("/{}", "x".repeat(120));
        assert!(matches!(
            paths(&[("HOME", "/h"), ("XDG_RUNTIME_DIR", &long)]),
            Err(PathsError::SocketPathTooLong { .. })
        ));
    }
}
