//! Reaching the supervisor, waking it when it sleeps, and ending it.
//!
//! A command that needs the supervisor starts it: by the service manager where our unit is installed, else as a process
//! of its own session that no terminal and no caller can take along.

use std::io;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use codex_control::environment::Environment;
use codex_control::process::Process;
use codex_control::rpc::DaemonStatus;
use codex_control::settings::Settings;
use codex_control::single;

use crate::Context;
use crate::client::{CALL_TIMEOUT, CallError, Client, pause, readable, wait_readable};
use crate::failure::Failure;
use crate::service::Service;
use crate::{output, program};

/// Argument that makes this program the one in between of [`start`].
pub(crate) const DETACH: &str = "__detach";
/// Time for a started supervisor to answer. It needs a fraction of a second; a busy machine needs patience.
pub(crate) const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two looks for the socket of a supervisor that starts.
const START_PAUSE: Duration = Duration::from_millis(10);
/// Further time after the process we started has ended: another command may have started one at the same moment, and
/// ours found the place taken.
const RIVAL_TIMEOUT: Duration = Duration::from_secs(1);
/// Time for a stopping supervisor beyond the time it gives its workers.
const STOP_MARGIN: Duration = Duration::from_secs(10);

/// Connects to the supervisor, without starting it.
///
/// # Errors
/// Exit code 3 when it does not run.
pub(crate) fn connect(ctx: &Context) -> Result<Client, Failure> {
    find(ctx)?
        .ok_or_else(|| Failure::unreachable("the supervisor is not running").hint("start it with `codexctl start`"))
}

/// Connects to the supervisor if it runs; starts nothing.
pub(crate) fn find(ctx: &Context) -> Result<Option<Client>, Failure> {
    if would_be_woken(ctx) { Ok(None) } else { Client::connect(&ctx.paths.control_socket()) }
}

/// Connects to the supervisor if it runs and answers; starts nothing.
pub(crate) fn find_alive(ctx: &Context) -> Result<Option<Client>, Failure> {
    if would_be_woken(ctx) { Ok(None) } else { answering(ctx, START_TIMEOUT) }
}

/// Connects to the supervisor if somebody answers there within `timeout`.
///
/// A connection alone proves nothing: where a supervisor was killed while it started a worker, the child has its socket
/// for a moment, accepts, and closes all when it becomes the worker.
fn answering(ctx: &Context, timeout: Duration) -> Result<Option<Client>, Failure> {
    let Some(mut client) = Client::connect(&ctx.paths.control_socket())? else { return Ok(None) };
    match client.is_answered(timeout) {
        Ok(()) => Ok(Some(client)),
        // Whoever only is silent still has the socket.
        Err(failure) => match Client::connect(&ctx.paths.control_socket())? {
            Some(_) => Err(failure),
            None => Ok(None),
        },
    }
}

/// Connects to the supervisor, starting it when it does not run.
pub(crate) fn connect_or_start(ctx: &Context, timeout: Duration) -> Result<Client, Failure> {
    if let Some(client) = Client::connect(&ctx.paths.control_socket())? {
        return Ok(client);
    }
    output::note("the supervisor is not running: starting it");
    start(ctx, timeout)
}

/// Starts the supervisor and waits until it answers.
///
/// # Errors
/// Exit code 3, with what is known about the reason.
pub(crate) fn start(ctx: &Context, timeout: Duration) -> Result<Client, Failure> {
    let deadline = Instant::now() + timeout;
    let started = match Service::find(&ctx.paths, &ctx.environment) {
        Some(service) => {
            service.control("start", timeout)?;
            None
        }
        None => Some(spawn(timeout)?),
    };
    let mut watched = started.as_ref().and_then(Option::as_ref);
    let mut ended_at = (started.is_some() && watched.is_none()).then(Instant::now);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if let Some(client) = answering(ctx, left)? {
            return Ok(client);
        }
        // A rival that is slow has the lock all the while.
        let is_alone = || single::holder(&ctx.paths.lock()).is_none();
        let what = if Instant::now() >= deadline {
            Some(format!("the supervisor does not answer {} s after its start", timeout.as_secs()))
        } else if ended_at.is_some_and(|at| at.elapsed() >= RIVAL_TIMEOUT) && is_alone() {
            Some("the supervisor ended right after its start".to_owned())
        } else {
            None
        };
        if let Some(what) = what {
            let hint = "`codex-supervisor --foreground` shows why; `codexctl logs` shows what it did last";
            return Err(Failure::unreachable(what).hint(hint));
        }
        match watched {
            Some(process) if wait_readable(&mut [readable(process)], START_PAUSE) => {
                watched = None;
                ended_at = Some(Instant::now());
            }
            Some(_) => {}
            None => pause(START_PAUSE),
        }
    }
}

/// Starts a supervisor that belongs to nobody, and holds it until it answers. `None`: it has ended already, like one
/// that finds another there.
///
/// A program in between makes the session ([`detach`]) and ends at once, so that the supervisor is no child of ours:
/// `launch` stays as long as Codex does, and ends what its children leave behind.
fn spawn(timeout: Duration) -> Result<Option<Process>, Failure> {
    let failed = |reason: String| Failure::unreachable(format!("the supervisor cannot be started: {reason}"));
    let own = program::own_path().map_err(|error| failed(error.to_string()))?;
    let output =
        program::output_within(Command::new(own).arg(DETACH), timeout).map_err(|error| failed(error.to_string()))?;
    let printed = String::from_utf8_lossy(&output.stdout);
    match printed.trim().parse().ok().filter(|_| output.status.success()).map(Process::open) {
        Some(Ok(process)) => Ok(Some(process)),
        Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Some(Err(error)) => Err(failed(format!("it cannot be watched: {error}"))),
        None => {
            let said = program::first_line(&output.stderr);
            let hint = "install it beside `codexctl`: `scripts/install.sh` does";
            Err(failed(said.trim_start_matches("error: ").to_owned()).hint(hint))
        }
    }
}

/// Starts `codex-supervisor` in a session of its own and prints its process id.
pub(crate) fn detach(environment: &Environment) -> Result<(), Failure> {
    let program = program::find_own(environment, "codex-supervisor")
        .ok_or_else(|| Failure::new("there is no `codex-supervisor` beside this program or on the `PATH`"))?;
    rustix::process::setsid().map_err(|error| Failure::new(format!("a session of its own cannot be made: {error}")))?;
    let child = Command::new(&program)
        .arg("--foreground")
        // It keeps no folder busy, and no terminal; it writes its own log.
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| Failure::new(format!("`{}` cannot be started: {error}", program.display())))?;
    output::plain(&child.id().to_string())
}

/// Time for a supervisor to end with everything it runs.
fn stop_timeout(ctx: &Context) -> Duration {
    // The person's own limit for workers counts; settings that do not load leave the default in force.
    let settings = Settings::load(&ctx.paths.settings()).unwrap_or_default();
    Duration::from_secs(settings.daemon.stop_timeout_s) + STOP_MARGIN
}

/// Ends the supervisor with everything it runs, and waits until it is gone; says whether there was one.
pub(crate) fn stop(ctx: &Context) -> Result<bool, Failure> {
    let timeout = stop_timeout(ctx);
    if let Some(service) = Service::find(&ctx.paths, &ctx.environment)
        && service.is_active()
    {
        service.control("stop", timeout)?;
        return Ok(true);
    }
    end(ctx, "daemon.stop", timeout)
}

/// Asks the supervisor to end in one way or the other, and waits until it is gone; says whether there was one.
fn end(ctx: &Context, method: &str, timeout: Duration) -> Result<bool, Failure> {
    let Some(mut client) = find_alive(ctx)? else {
        return Ok(false);
    };
    let status: DaemonStatus = client.call("daemon.status", (), CALL_TIMEOUT).map_err(Failure::from)?;
    // Held before it is asked to end: afterwards the number may be somebody else's.
    let process = Process::open(status.pid);
    match client.call_raw(method, (), timeout) {
        // It may be gone before it has said so.
        Ok(_) | Err(CallError::Lost(_)) => {}
        Err(CallError::Refused(error)) => return Err(error.into()),
    }
    drop(client);
    match process {
        Ok(process) if !wait_readable(&mut [readable(&process)], timeout) => Err(Failure::new(format!(
            "the supervisor (pid {}) was asked to stop and still runs after {} s",
            status.pid,
            timeout.as_secs()
        ))
        .hint("`codexctl logs` shows what it waits for")),
        _ => Ok(true),
    }
}

/// Ends the supervisor, if it runs, and starts it. Its workers go on and are taken over.
pub(crate) fn restart(ctx: &Context) -> Result<Client, Failure> {
    if let Some(service) = Service::find(&ctx.paths, &ctx.environment)
        && service.is_active()
    {
        service.control("restart", stop_timeout(ctx) + START_TIMEOUT)?;
    } else {
        end(ctx, "daemon.restart", stop_timeout(ctx))?;
    }
    match Client::connect(&ctx.paths.control_socket())? {
        Some(client) => Ok(client),
        None => start(ctx, START_TIMEOUT),
    }
}

/// Whether the control socket is systemd's at the moment, so that connecting to it would start the supervisor.
fn would_be_woken(ctx: &Context) -> bool {
    let is_activated_by_socket =
        || Service::find(&ctx.paths, &ctx.environment).is_some_and(|service| service.has_socket_unit());
    single::holder(&ctx.paths.lock()).is_none() && is_activated_by_socket()
}
