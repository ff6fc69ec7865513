//! From the start of the process to its end, in order.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use codex_control::descriptors;
use codex_control::environment::Environment;
use codex_control::files;
use codex_control::paths::Paths;
use codex_control::process;
use codex_control::single::{self, Purpose};
use codex_control::telemetry;
use rustix::fs::Mode;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::clock::unix_ms;
use crate::configuration::Configuration;
use crate::event::{EVENTS_MAX, Event, Farewell, Queue, Signal};
use crate::log::{LogLimits, RotatingFile};
use crate::supervisor::{Start, Supervisor};
use crate::{control, scope, systemd, watch, worker_socket};
use codex_control::registry::SupervisorEntry;

/// Time clients have to take their last answers.
const FAREWELL_WITHIN: Duration = Duration::from_millis(500);
/// Time for what still runs beside the owner task at the end: a change of a file is safe wherever it is cut off.
const THREADS_END_WITHIN: Duration = Duration::from_secs(1);
/// Age of a temporary file that nobody is writing any more; writing one takes milliseconds.
const TEMPORARY_LEFT_AFTER: Duration = Duration::from_mins(1);
/// Name of the worker program; it stands beside ours.
const WORKER_PROGRAM: &str = "codex-worker";

/// Runs until told to end.
///
/// The workers live on where that was asked for.
pub(crate) fn run() -> anyhow::Result<Farewell> {
    // Whatever we make is for nobody else, sockets included.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    descriptors::raise_limit();
    let environment = Environment::from_process();
    let paths = Paths::from_environment(&environment)?;
    let worker_program = worker_program()?;
    for folder in [
        paths.config_folder(),
        paths.state_folder(),
        paths.runtime_folder(),
        paths.cache_folder(),
        &paths.logs_folder(),
    ] {
        files::create_private_folder(folder)?;
    }
    let _lock = single::take(&paths.lock(), Purpose::Supervise)?;
    remove_left_temporaries(&paths);
    // A daemon that stays in the folder it was started from keeps that folder from being unmounted.
    std::env::set_current_dir("/").context("cannot go to `/`")?;

    let configuration = Configuration::load(&paths);
    let log_limits = Arc::new(LogLimits::default());
    log_limits.set(&configuration.settings.daemon);
    let log = RotatingFile::open(&paths.supervisor_log(), log_limits.clone())
        .with_context(|| format!("cannot open the log `{}`", paths.supervisor_log().display()))?;
    telemetry::start(&environment, Some(Box::new(log)));
    info!(version = env!("CARGO_PKG_VERSION"), pid = std::process::id(), "codex-supervisor starts");

    // One thread: there is little to do, and nothing to be done at the same time.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let own = SupervisorEntry {
        identity: process::own_identity().context("cannot tell who we are")?,
        build: env!("CARGO_PKG_VERSION").to_owned(),
        started_at_ms: unix_ms(),
    };
    let (queue, events) = mpsc::channel(EVENTS_MAX);
    let start = Start { paths, environment, worker_program, own, configuration, log_limits, queue, manager: None };
    let farewell = runtime.block_on(supervise(start, events));
    // Dropping it would wait for threads that wait for a disk, say, without any limit.
    runtime.shutdown_timeout(THREADS_END_WITHIN);
    farewell
}

/// Removes what writers have left that were killed in the middle, an earlier supervisor among them.
fn remove_left_temporaries(paths: &Paths) {
    // Here only a supervisor writes, and that is us; workers and `codexctl` may be writing elsewhere just now.
    files::remove_left_temporaries(paths.runtime_folder(), Duration::ZERO);
    for folder in paths.folders_of_small_files() {
        files::remove_left_temporaries(&folder, TEMPORARY_LEFT_AFTER);
    }
}

async fn supervise(mut start: Start, events: mpsc::Receiver<Event>) -> anyhow::Result<Farewell> {
    let mut inherited = systemd::inherited().context("cannot take over the service manager's sockets")?;
    let (paths, queue) = (start.paths.clone(), start.queue.clone());
    start.manager = scope::Manager::find(&start.environment, &paths, queue.clone());
    forward_signals(&queue, start.manager.as_ref()).context("cannot wait for signals")?;
    let control_path = paths.control_socket();
    let (control_listener, control_is_ours) = match inherited.control.take() {
        Some(listener) => (listener, false),
        None => (control::bind(&control_path).with_context(|| cannot_bind(&control_path))?, true),
    };
    let worker_listener =
        worker_socket::bind(&paths.worker_socket()).with_context(|| cannot_bind(&paths.worker_socket()))?;
    // Serves until the runtime ends with this function.
    tokio::spawn(worker_socket::serve(worker_listener, queue.clone()));
    let supervisor = Supervisor::start(start, inherited);
    let (control_stop, control_stopped) = tokio::sync::watch::channel(());
    let clients = tokio::spawn(control::serve(
        control_listener,
        queue.clone(),
        supervisor.event_lines(),
        control_stopped,
        control::WRITE_TIMEOUT,
    ));
    // Without it changes are found a few seconds later, by a look at the files.
    let _watcher = watch::watch(paths.config_folder(), queue)
        .inspect_err(|error| warn!(%error, "the settings folder cannot be watched"))
        .ok();
    systemd::notify(&[NotifyState::Ready]);
    info!("ready");
    let farewell = supervisor.run(events).await;
    // The owner is gone, and whoever waited for it has been answered; the answers still have to be written.
    drop(control_stop);
    if tokio::time::timeout(FAREWELL_WITHIN, clients).await.is_err() {
        warn!("a client does not take its last answer");
    }
    let control_socket = control_is_ours.then_some(control_path);
    for path in control_socket.into_iter().chain([paths.worker_socket()]) {
        if let Err(error) = std::fs::remove_file(&path) {
            warn!(path = %path.display(), %error, "a socket cannot be removed");
        }
    }
    Ok(farewell)
}

fn cannot_bind(path: &Path) -> String {
    format!("cannot listen on `{}`", path.display())
}

fn worker_program() -> anyhow::Result<PathBuf> {
    // Asked once: after an upgrade our own file has another name, but its folder is still the place to look.
    let own = std::env::current_exe().context("cannot find our own program file")?;
    Ok(own.with_file_name(WORKER_PROGRAM))
}

fn forward_signals(queue: &Queue, manager: Option<&scope::Manager>) -> io::Result<()> {
    for (kind, meaning) in [
        (SignalKind::terminate(), Signal::Stop),
        (SignalKind::interrupt(), Signal::Stop),
        (SignalKind::hangup(), Signal::Reload),
    ] {
        let mut signals = signal(kind)?;
        let queue = queue.clone();
        // TERM is how a service manager ends us, whatever it means by that.
        let manager = manager.filter(|_| kind == SignalKind::terminate()).cloned();
        // Ends with the runtime.
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                let meaning = match &manager {
                    Some(manager) if manager.is_restarting().await => Signal::Leave,
                    _ => meaning,
                };
                if queue.send(Event::Signal(meaning)).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(())
}
