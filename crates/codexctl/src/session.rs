//! Running Codex: this process is its parent until the end, in the same terminal.
//!
//! ```text
//!  begin ──► start, as our child ──► attach ──► wait ──► end what is left ──► end
//! ```
//!
//! Codex has the terminal: standard input and output are the person's own, it stands in our process group, so that the
//! keyboard's signals reach it, and its exit code becomes ours. What it writes to stderr passes through us
//! ([`stderr`]), to the person as it is and to a file that the supervisor follows.
//!
//! Codex Desktop is often started by a script that ends at once; then the session lasts as long as what the script has
//! left running. It has a window of its own and needs no terminal: it stands in a session of the kernel's of its own and
//! holds none, and closing the terminal ends neither it nor us. Only the keyboard's Ctrl-C still means it.
//!
//! We are the subreaper of everything below us: what leaves its parent, an MCP server that forks twice say, comes to us,
//! and is ended when Codex has ended. Nothing else is. The supervisor is told ([`codex_control::session`]), and not
//! needed: without it Codex runs unwatched.

mod stderr;

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use codex_control::EndpointId;
use codex_control::environment;
use codex_control::process::{Identity, Process};
use codex_control::session::{ATTACH_INTERVAL, Begin, Begun, End, Kind, PATIENCE, Session};
use codex_control::tree::{self, Ended, Spared};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use rustix::termios::{self, OptionalActions};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use crate::client::{CALL_TIMEOUT, CallError, Client, readable, wait_readable};
use crate::failure::Failure;
use crate::session::stderr::{Tee, To};
use crate::{Context, daemon, program, text};

/// First argument that makes this program the one in between of [`apart`].
pub(crate) const APART: &str = "__apart";
/// Time for a supervisor to begin a session that needs nothing else of it.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for a call whose answer nobody waits for.
const TELL_TIMEOUT: Duration = Duration::from_secs(1);
/// A program of a desktop that ends well within this time was only a starter of what it has left running.
const STARTER_ENDS_WITHIN: Duration = Duration::from_secs(10);
/// Time between two looks whether what a starter has left still runs.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// What a shell adds to the number of the signal that ended a program.
const SIGNAL_EXIT: i32 = 128;

/// What is to run.
pub(crate) struct Plan {
    pub(crate) kind: Kind,
    /// The endpoint it uses; none for Codex's own login.
    pub(crate) endpoint: Option<EndpointId>,
    /// A log that Codex writes anyway; `None`: it may be told to write one into the session's folder.
    pub(crate) codex_log: Option<PathBuf>,
}

/// Runs `make`'s command to its end, and ends what it leaves behind. Returns the exit code: the program's own, or 128
/// and the number of the signal that ended it.
///
/// `make` is told what the supervisor answered; nothing if it does not run, or does not know sessions. `started` is told
/// each process that the session lasts as long as.
pub(crate) fn run(
    ctx: &Context,
    client: Option<Client>,
    plan: &Plan,
    make: impl FnOnce(Option<&Begun>) -> Command,
    mut started: impl FnMut(&Identity),
) -> Result<ExitCode, Failure> {
    let failed = |what: &str, error: io::Error| Failure::new(format!("{what}: {error}"));
    let own = Process::open(std::process::id()).map_err(|error| failed("this process cannot be identified", error))?;
    let begun = client.and_then(|client| begin(ctx, client, plan, &own));
    let command = make(begun.as_ref());
    // Before anything is started below us. If it fails, what leaves its parent is out of our reach, as ever.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    // Before there is a child whose end could be missed.
    let (wakes_us, waking) = UnixStream::pair().map_err(|error| failed("no pair of sockets", error))?;
    let signals = [SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM];
    let mut signals = SignalDelivery::with_pipe(wakes_us, waking, SignalOnly, signals)
        .map_err(|error| failed("signals cannot be waited for", error))?;
    let terminal = Terminal::save();
    let (mut child, tees) = start(command, plan.kind, begun.as_ref())?;
    started(child.identity());
    let started_at = Instant::now();
    let mut session = begun.map(|begun| Watched::new(ctx, plan, begun, &own, &child));
    let spared = spared(ctx);
    let mut ended = None;
    let mut outlasting: Option<Vec<Process>> = None;
    let exit = loop {
        let until_told = session.as_mut().map_or(ATTACH_INTERVAL, |session| session.keep_attached(ctx));
        ended = reap(child.identity().pid).or(ended);
        if let Some(exit) = ended {
            let is_starter = plan.kind == Kind::Desktop
                && exit.exit_status() == Some(0)
                && (outlasting.is_some() || started_at.elapsed() < STARTER_ENDS_WITHIN);
            if !is_starter {
                break exit;
            }
            let left = outlasting.get_or_insert_with(|| {
                let left = tree::below(&own, &spared);
                for process in &left {
                    started(process.identity());
                }
                left
            });
            if left.iter().all(Process::has_ended) {
                break exit;
            }
        }
        let until_look = if outlasting.is_some() { LOOK_INTERVAL.min(until_told) } else { until_told };
        wait_readable(&mut [readable(signals.get_read())], until_look);
        for signal in signals.pending() {
            pass_on(signal, plan.kind, &mut child);
            for process in outlasting.iter_mut().flatten() {
                pass_on(signal, plan.kind, process);
            }
        }
    };
    terminal.restore_after(exit);
    let ended = tree::end(|| tree::below(&own, &spared), PATIENCE);
    reap_all();
    for tee in tees {
        tee.finish();
    }
    if let Some(session) = session {
        session.end(ctx, &describe(exit), &ended);
    }
    if !ended.left.is_empty() {
        let pids: Vec<String> = ended.left.iter().map(|identity| identity.pid.to_string()).collect();
        ctx.output.warn(
            &format!("Codex has left processes that cannot be ended: {}", pids.join(", ")),
            Some("they wait for a device, or run as another user: `kill` says which"),
        );
    }
    let code = exit.exit_status().or_else(|| exit.terminating_signal().map(|signal| SIGNAL_EXIT + signal));
    Ok(code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Registers with the supervisor. Codex is not kept from running by a supervisor that cannot watch it.
fn begin(ctx: &Context, mut client: Client, plan: &Plan, own: &Process) -> Option<Begun> {
    let params = Begin { kind: plan.kind, endpoint: plan.endpoint.clone(), launcher: own.identity().clone() };
    // Codex's own login does not wait for a supervisor that hangs.
    let timeout = if plan.endpoint.is_some() { CALL_TIMEOUT } else { BEGIN_TIMEOUT };
    match client.call("session.begin", params, timeout) {
        Ok(begun) => Some(begun),
        Err(error) => {
            let (message, _) = Failure::from(error).into_parts();
            ctx.output.warn(&format!("Codex runs unwatched: {message}"), Some("`codexctl restart` may help"));
            None
        }
    }
}

fn start(command: Command, kind: Kind, begun: Option<&Begun>) -> Result<(Process, Vec<Tee>), Failure> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |error: io::Error| Failure::new(format!("Codex (`{program}`) cannot be started: {error}"));
    let (tee, end) = Tee::open(To::Stderr, begun.map(|begun| begun.folder.as_path())).map_err(failed)?;
    let mut tees = vec![tee];
    let mut command = match kind {
        Kind::Cli => command,
        Kind::Desktop => {
            let mut command = apart(&command).map_err(failed)?;
            // A terminal that is closed fails whoever writes to it, and what is typed is meant for others.
            if io::stdin().is_terminal() {
                command.stdin(Stdio::null());
            }
            if io::stdout().is_terminal() {
                let (tee, end) = Tee::open(To::Stdout, None).map_err(failed)?;
                tees.push(tee);
                command.stdout(end);
            }
            command
        }
    };
    command.stderr(end);
    let child = command.spawn().map_err(failed)?;
    // It is ours and not waited for yet, so it has its number, be it that it has ended already.
    let process = Process::open(child.id()).map_err(failed)?;
    // Holds the writing ends of what it writes to; only Codex is to hold them.
    drop(command);
    Ok((process, tees))
}

/// The same command in a session of its own. A program in between makes it and becomes the program: only a process itself
/// can.
fn apart(command: &Command) -> io::Result<Command> {
    let mut apart = Command::new(program::own_path()?);
    apart.arg(APART).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => apart.env(name, value),
            None => apart.env_remove(name),
        };
    }
    Ok(apart)
}

/// Makes a session and becomes the program that `words` name.
pub(crate) fn become_apart(mut words: impl Iterator<Item = OsString>) -> Failure {
    let Some(program) = words.next() else { return Failure::usage("there is no program to become") };
    if let Err(error) = rustix::process::setsid() {
        return Failure::new(format!("a session of its own cannot be made: {error}"));
    }
    let error = Command::new(&program).args(words).exec();
    Failure::new(format!("Codex (`{}`) cannot be started: {error}", program.to_string_lossy()))
}

/// A session that the supervisor knows.
struct Watched {
    session: Session,
    attach_at: Instant,
}

impl Watched {
    fn new(ctx: &Context, plan: &Plan, begun: Begun, own: &Process, child: &Process) -> Self {
        let codex_log = match (&plan.codex_log, begun.takes_codex_log) {
            (Some(path), _) => Some(path.clone()),
            (None, true) => Some(begun.folder.join(codex_control::session::CODEX_LOG)),
            (None, false) => None,
        };
        let logs = [begun.folder.join(codex_control::session::STDERR_LOG)].into_iter().chain(codex_log);
        let session = Session {
            id: begun.id,
            kind: plan.kind,
            endpoint: plan.endpoint.clone(),
            started_at_ms: text::now_ms(),
            launcher: own.identity().clone(),
            program: Some(child.identity().clone()),
            scope: begun.scope,
            logs: logs.collect(),
            spared: spared(ctx).programs,
        };
        Self { session, attach_at: Instant::now() }
    }

    /// Says what runs if it is time to; returns the time until the next one.
    fn keep_attached(&mut self, ctx: &Context) -> Duration {
        let now = Instant::now();
        if now >= self.attach_at {
            self.attach_at = now + ATTACH_INTERVAL;
            tell(ctx, "session.attach", &self.session);
        }
        self.attach_at.saturating_duration_since(now)
    }

    fn end(self, ctx: &Context, exit: &str, ended: &Ended) {
        let n_left = ended.left.len();
        let n_ended = ended.n_asked.max(ended.n_killed).saturating_sub(n_left);
        tell(ctx, "session.end", &End { id: self.session.id, exit: exit.to_owned(), n_ended, n_left });
    }
}

/// Tells the supervisor, if it runs. One that does not, or does not understand, sees for itself what happened.
fn tell(ctx: &Context, method: &str, params: &impl serde::Serialize) {
    if let Ok(Some(mut client)) = daemon::find(ctx) {
        let _: Result<serde_json::Value, CallError> = client.call_raw(method, params, TELL_TIMEOUT);
    }
}

/// What stands below us and serves others, too: our own daemon, which Codex's own call for a token may have started,
/// and Codex's, which outlives it by design.
fn spared(ctx: &Context) -> Spared {
    let own = program::own_path().ok().and_then(|own| Some(own.parent()?.to_owned()));
    let ours = own.into_iter().flat_map(|folder| environment::DAEMONS.map(|name| folder.join(name)));
    let programs = ours.chain([ctx.paths.codex_daemon_folder()]).collect();
    Spared { programs }
}

/// Waits for whoever has ended; how Codex (`pid`) did, if it is among them.
fn reap(pid: u32) -> Option<WaitStatus> {
    let mut exit = None;
    // Fails only when there is no child at all, and Codex is one until it was waited for.
    while let Ok(Some((ended, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        if u32::try_from(ended.as_raw_pid()) == Ok(pid) {
            exit = Some(status);
        }
    }
    exit
}

fn reap_all() {
    reap(0); // nobody has this number
}

/// A signal that came to us is meant for Codex.
fn pass_on(signal: i32, kind: Kind, child: &mut Process) {
    let signal = match signal {
        // The terminal was closed: to a window that is nothing.
        SIGHUP if kind == Kind::Desktop => return,
        SIGHUP => Signal::HUP,
        SIGTERM => Signal::TERM,
        SIGINT if kind == Kind::Desktop => Signal::INT,
        SIGQUIT if kind == Kind::Desktop => Signal::QUIT,
        // The keyboard's signals go to the whole foreground group, of which Codex is part. Twice would mean "at once".
        SIGINT if !is_foreground() => Signal::INT,
        SIGQUIT if !is_foreground() => Signal::QUIT,
        _ => return,
    };
    let _ = child.signal(signal); // it may have ended just now
}

/// Whether our process group has the terminal.
fn is_foreground() -> bool {
    let terminal = std::fs::File::open("/dev/tty");
    let group = terminal.ok().and_then(|terminal| termios::tcgetpgrp(terminal).ok());
    group.is_some_and(|group: Pid| group == rustix::process::getpgrp())
}

/// The terminal's settings before Codex had it.
struct Terminal(Option<termios::Termios>);

impl Terminal {
    fn save() -> Self {
        Self(termios::tcgetattr(io::stdin()).ok())
    }

    /// A Codex that was killed could not put the terminal in order itself.
    fn restore_after(&self, exit: WaitStatus) {
        if let Some(settings) = self.0.as_ref().filter(|_| exit.terminating_signal().is_some() && is_foreground()) {
            let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, settings); // the terminal may be gone, too
        }
    }
}

/// How a process ended, for a person.
fn describe(exit: WaitStatus) -> String {
    match (exit.exit_status(), exit.terminating_signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown".to_owned(),
    }
}
