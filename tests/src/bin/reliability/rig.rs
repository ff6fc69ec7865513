//! The product as a person has it: its programs in a folder, `codexctl` to command it, with systemd or without.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use codex_control::environment::Environment;
use codex_control::paths::Paths;
use codex_control::process::Process;
use codex_control::rpc::{DaemonStatus, EndpointState, EndpointStatus};
use codex_control::{EndpointId, credentials, token};
use e2e::home::{PROVIDER_KEY, SandboxHome, binaries, call};
use e2e::leftovers;
use rustix::process::Signal;
use serde_json::Value;

use crate::accepting::{Handover, Watch};
use crate::clients::{PATIENCE, healthy, wait};

/// The endpoint that everything happens to.
pub(crate) const ENDPOINT: &str = "scripted";
const PROGRAMS: [&str; 3] = ["codex-supervisor", "codex-worker", "codexctl"];

/// Words of the first line that a supervisor writes.
const STARTS: &str = "codex-supervisor starts";

/// See the module.
pub(crate) struct Rig {
    home: Option<SandboxHome>,
    environment: Vec<(String, String)>,
    paths: Paths,
    programs: PathBuf,
}

/// After a failure: what happened is told, not what that leaves.
impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.ctl(&["stop"]); // fails when it has stopped already
    }
}

impl Rig {
    /// In a throw-away home, without systemd.
    pub(crate) fn alone(settings: &str) -> anyhow::Result<Self> {
        let home = SandboxHome::new();
        let programs = home.path("programs");
        fs::create_dir(&programs)?;
        for name in PROGRAMS {
            fs::copy(binaries().join(name), programs.join(name))?;
        }
        let environment = home.environment().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Self::start(Some(home), environment, programs, settings)
    }

    /// The user's service, installed already: only for a sandbox, since it writes into the real home.
    pub(crate) fn service(settings: &str) -> anyhow::Result<Self> {
        let environment: Vec<(String, String)> = std::env::vars().collect();
        let home = environment.iter().find(|(name, _)| name == "HOME").context("there is no HOME")?.1.clone();
        Self::start(None, environment, Path::new(&home).join(".local/bin"), settings)
    }

    fn start(
        home: Option<SandboxHome>,
        environment: Vec<(String, String)>,
        programs: PathBuf,
        settings: &str,
    ) -> anyhow::Result<Self> {
        let paths =
            Paths::from_environment(&environment.iter().map(|(name, value)| (name, value)).collect::<Environment>())?;
        fs::create_dir_all(paths.config_folder())?;
        fs::write(paths.settings(), settings)?;
        credentials::store(&paths, &endpoint_id(), PROVIDER_KEY)?;
        let rig = Self { home, environment, paths, programs };
        rig.ctl(&["start"])?;
        rig.wait_running()?;
        Ok(rig)
    }

    /// The home, where it is a throw-away one.
    pub(crate) fn home(&self) -> anyhow::Result<&SandboxHome> {
        self.home.as_ref().context("this part needs a throw-away home")
    }

    fn codexctl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join("codexctl"));
        command.args(arguments).env_clear().envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null());
        command
    }

    /// Starts `codexctl` and does not wait for it.
    pub(crate) fn begin_ctl(&self, arguments: &[&str]) -> anyhow::Result<Child> {
        let mut command = self.codexctl(arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("codexctl cannot be run")
    }

    /// Runs `codexctl`.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let output = self.codexctl(arguments).output().context("codexctl cannot be run")?;
        ensure!(output.status.success(), "codexctl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// The supervisor's status; `None` while there is none.
    pub(crate) fn status(&self) -> Option<DaemonStatus> {
        serde_json::from_value(call(&self.paths, "daemon.status", Value::Null).ok()?).ok()
    }

    fn endpoint(&self) -> Option<EndpointStatus> {
        self.status()?.endpoints.into_iter().find(|endpoint| endpoint.id.as_str() == ENDPOINT)
    }

    /// Waits until the endpoint runs; gives its status.
    pub(crate) fn wait_running(&self) -> anyhow::Result<EndpointStatus> {
        self.wait_for("the endpoint to run", |_| true)
    }

    /// Waits until the endpoint runs and is as wanted.
    pub(crate) fn wait_for(
        &self,
        what: &str,
        is_wanted: impl Fn(&EndpointStatus) -> bool,
    ) -> anyhow::Result<EndpointStatus> {
        let is_running = |endpoint: &EndpointStatus| endpoint.state == EndpointState::Running && is_wanted(endpoint);
        wait(what, || self.endpoint().filter(is_running)).with_context(|| format!("it is {:?}", self.endpoint()))
    }

    pub(crate) fn address(&self) -> anyhow::Result<SocketAddr> {
        self.wait_running()?.address.context("a running endpoint has an address")
    }

    pub(crate) fn token(&self) -> anyhow::Result<String> {
        let token = token::read_token(&self.paths.token(&endpoint_id()))?.context("the endpoint has no token")?;
        Ok(token.expose().to_owned())
    }

    /// The serving worker.
    pub(crate) fn worker(&self) -> anyhow::Result<Process> {
        Ok(Process::open(self.wait_running()?.worker_pid.context("a running endpoint has a worker")?)?)
    }

    /// The supervisor.
    pub(crate) fn supervisor(&self) -> anyhow::Result<Process> {
        let status = wait("the supervisor", || self.status())?;
        Ok(Process::open(status.pid)?)
    }

    /// After the supervisor was killed: it is started again, by the manager or by `codexctl`; waits for the endpoint.
    pub(crate) fn come_back(&self) -> anyhow::Result<EndpointStatus> {
        self.forgive()?;
        self.ctl(&["start"])?;
        self.wait_running()
    }

    /// Has systemd forget how often the supervisor has ended: it would stop trying after fifty times in ten minutes.
    pub(crate) fn forgive(&self) -> anyhow::Result<()> {
        if self.home.is_none() {
            let mut command = Command::new("systemctl");
            let status = command.args(["--user", "reset-failed", "codex-supervisor.service"]).status()?;
            ensure!(status.success(), "systemctl reset-failed: {status}");
        }
        Ok(())
    }

    /// Watches who accepts, until the watch is finished.
    pub(crate) fn watch(&self, allowed: Handover) -> Watch {
        Watch::start(&self.programs.join("codex-worker"), ENDPOINT, allowed)
    }

    /// Puts other program files in the place of the present ones, as an installation does.
    pub(crate) fn replace_programs(&self) -> anyhow::Result<()> {
        for name in PROGRAMS {
            let (program, new) = (self.programs.join(name), self.programs.join(format!("{name}.new")));
            fs::copy(&program, &new)?;
            fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
            fs::rename(&new, &program)?;
        }
        Ok(())
    }

    /// Waits until there is one supervisor with one worker. A worker that was being started when its supervisor was
    /// killed finds nobody who knows it and ends, before it has served anything.
    pub(crate) fn wait_single(&self) -> anyhow::Result<()> {
        wait("one supervisor and one worker", || (self.processes() == (1, 1)).then_some(()))
            .with_context(|| format!("there are {:?} supervisors and workers", self.processes()))
    }

    /// How many supervisors and workers there are.
    fn processes(&self) -> (usize, usize) {
        let home = self.environment.iter().find(|(name, _)| name == "HOME").map(|(_, value)| value.clone());
        let processes = leftovers::processes(Path::new(&home.unwrap_or_default()));
        let count = |name: &str| {
            let program = self.programs.join(name);
            let program = program.to_string_lossy();
            processes.iter().filter(|left| left.command.split(' ').next() == Some(&program)).count()
        };
        (count("codex-supervisor"), count("codex-worker"))
    }

    /// Time from the last start of a supervisor to its last word about a worker that it took over, by its log.
    pub(crate) fn adoption(&self) -> anyhow::Result<Duration> {
        let path = self.paths.supervisor_log();
        // The log may just have been put aside, and be another one while it is read.
        let log = wait("a start in the log", || {
            let earlier = fs::read_to_string(path.with_extension("log.1")).unwrap_or_default();
            let log = earlier + &fs::read_to_string(&path).ok()?;
            log.contains(STARTS).then_some(log)
        })?;
        let start = log.rfind(STARTS).context("no start in the log")?;
        let line = |at: usize| log[..at].rfind('\n').map_or(0, |end| end + 1);
        let adopted = log[start..].rfind("adopted a worker").context("no worker was taken over")? + start;
        let (start, adopted) = (time_of_day(&log[line(start)..])?, time_of_day(&log[line(adopted)..])?);
        // One that is earlier than the other has seen midnight.
        Ok(adopted.checked_sub(start).unwrap_or_default())
    }

    /// Stops everything and looks whether something is left.
    pub(crate) fn stop(&self) -> anyhow::Result<()> {
        self.ctl(&["stop"])?;
        wait("all processes to end", || (self.processes() == (0, 0)).then_some(()))
    }
}

fn endpoint_id() -> EndpointId {
    ENDPOINT.parse().expect("the name is a good one")
}

/// The time of a log line, `2026-11-23T07:35:44.490479Z …`, since midnight.
fn time_of_day(line: &str) -> anyhow::Result<Duration> {
    let time = line.get(11..26).context("a log line has a time")?;
    let parts: Vec<f64> = time.split(':').map(str::parse).collect::<Result<_, _>>()?;
    let [hours, minutes, seconds] = parts[..] else { bail!("`{time}` is no time") };
    Ok(Duration::from_secs_f64((hours * 60.0 + minutes) * 60.0 + seconds))
}

/// Kills a process and waits until it is dead; gives the moment of the signal.
pub(crate) fn kill(process: &Process) -> anyhow::Result<Instant> {
    let at = Instant::now();
    ensure!(process.signal(Signal::KILL)?, "the process had ended before");
    ensure!(process.ends_within(PATIENCE), "a killed process does not end");
    Ok(at)
}

/// Waits until the endpoint answers; gives the time since `at`.
pub(crate) fn answers_after(address: SocketAddr, at: Instant) -> anyhow::Result<Duration> {
    healthy(address)?;
    Ok(at.elapsed())
}
