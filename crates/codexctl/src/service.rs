//! The supervisor as a unit of the person's service manager (systemd), where there is one.

use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use codex_control::environment::Environment;
use codex_control::paths::Paths;

use crate::failure::Failure;
use crate::program;

/// The unit that `scripts/install.sh` and packages install.
const SERVICE: &str = "codex-supervisor.service";
/// The unit that starts it at the first connection.
const SOCKET: &str = "codex-supervisor.socket";
/// Time to ask systemd a question.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);

/// The unit, installed, with a service manager to talk to.
pub(crate) struct Service {
    systemctl: std::path::PathBuf,
    has_socket_unit: bool,
}

impl Service {
    /// Finds the unit. Costs some system calls, no process.
    pub(crate) fn find(paths: &Paths, environment: &Environment) -> Option<Self> {
        let folders = paths.unit_folders();
        folders.iter().find(|folder| folder.join(SERVICE).is_file())?;
        // A manager that has gone may have left its socket behind: only a connection shows that it lives.
        UnixStream::connect(paths.service_manager_socket()).ok()?;
        Some(Self {
            systemctl: program::find(environment, "systemctl".as_ref())?,
            has_socket_unit: folders.iter().any(|folder| folder.join(SOCKET).is_file()),
        })
    }

    /// Whether a mere connection to the control socket may start the supervisor.
    pub(crate) fn has_socket_unit(&self) -> bool {
        self.has_socket_unit
    }

    /// Whether the supervisor that runs is this unit.
    pub(crate) fn is_active(&self) -> bool {
        let mut command = self.command("is-active");
        program::output_within(command.arg("--quiet"), QUESTION_TIMEOUT).is_ok_and(|output| output.status.success())
    }

    /// Starts, stops or restarts the unit, and waits until that is done.
    pub(crate) fn control(&self, verb: &str, timeout: Duration) -> Result<(), Failure> {
        let failed = |reason: String| {
            Failure::unreachable(format!("`systemctl --user {verb} {SERVICE}` failed: {reason}"))
                .hint(format!("`journalctl --user -u {SERVICE}` says more"))
        };
        let output =
            program::output_within(&mut self.command(verb), timeout).map_err(|error| failed(error.to_string()))?;
        if output.status.success() {
            return Ok(());
        }
        let said = program::first_line(&output.stderr);
        Err(failed(if said.is_empty() { output.status.to_string() } else { said }))
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.systemctl);
        command.args(["--user", verb, SERVICE]);
        command
    }
}
