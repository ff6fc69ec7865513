//! Starting a worker's process, and noticing its end.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use codex_control::endpoint::CredentialSource;
use codex_control::environment::{Environment, PASSED_TO_WORKER, WORKER_ALLOCATOR};
use codex_control::process::Process;
use rustix::process::Signal;

use crate::ending;
use crate::event::{Event, Queue, WorkerId};
use crate::lifecycle::End;
use crate::log;

/// Everything a worker's process is started with. Nothing secret: every user of the machine can read arguments.
pub(crate) struct Launch<'a> {
    /// The worker program.
    pub(crate) program: &'a Path,
    /// Which worker it will be.
    pub(crate) worker: &'a WorkerId,
    /// The listener it inherits as standard input.
    pub(crate) listener: &'a TcpListener,
    /// Where its standard output and error go.
    pub(crate) log: &'a Path,
    /// The worker socket.
    pub(crate) socket: &'a Path,
    /// Our environment, of which it gets a part.
    pub(crate) environment: &'a Environment,
    /// Where it is to read its credential; a variable must be passed on.
    pub(crate) credential: &'a CredentialSource,
}

/// How a worker's process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    /// For a person, e.g. `exit code 3`.
    pub(crate) text: String,
    /// For the lifecycle, as long as it was not us who killed it.
    pub(crate) end: End,
    /// The code it exited with; `None`: it was ended by a signal, or nobody knows.
    pub(crate) code: Option<i32>,
}

impl Exit {
    fn unknown(reason: &dyn std::fmt::Display) -> Self {
        Self { text: format!("unknown: {reason}"), end: End::Itself, code: None }
    }
}

/// Starts a worker in a process group of its own, so that a Ctrl-C meant for us does not end it.
pub(crate) fn start(launch: &Launch<'_>) -> io::Result<(Child, Process)> {
    let log = log::open_to_append(launch.log)?;
    let mut command = Command::new(launch.program);
    command
        .arg("--endpoint-id")
        .arg(launch.worker.endpoint.as_str())
        .arg("--generation")
        .arg(launch.worker.generation.to_string())
        .arg("--supervisor")
        .arg(launch.socket)
        .stdin(Stdio::from(OwnedFd::from(launch.listener.try_clone()?)))
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .env_clear()
        .envs(WORKER_ALLOCATOR);
    let credential = match launch.credential {
        CredentialSource::Env(name) => Some(name.as_str()),
        CredentialSource::None | CredentialSource::Store | CredentialSource::File(_) | CredentialSource::Command(_) => {
            None
        }
    };
    for name in PASSED_TO_WORKER.into_iter().chain(credential) {
        if let Some(value) = launch.environment.get(name) {
            command.env(name, value);
        }
    }
    let mut child = command.spawn()?;
    match Process::open(child.id()) {
        Ok(process) => Ok((child, process)),
        Err(error) => {
            // Without a pidfd it could be neither watched nor signalled safely. It is our child and not yet waited
            // for, so its number cannot have been given to another process.
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

/// Processes that run `program` and were told to report to `socket`: workers of an earlier supervisor, presumably.
pub(crate) fn presumed(program: &Path, socket: &Path) -> Vec<(WorkerId, Process)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| presumed_at(pid, program, socket)).collect()
}

/// The same of one process.
pub(crate) fn presumed_at(pid: u32, program: &Path, socket: &Path) -> Option<(WorkerId, Process)> {
    let runs_it = || {
        let runs = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        // After an upgrade the file it runs is no longer in its folder; the kernel says so behind its name.
        (runs.to_string_lossy().trim_end_matches(" (deleted)") == program.to_string_lossy()).then_some(())
    };
    // Nearly all do not, which is cheap to see. What counts is what is read while it is held.
    runs_it()?;
    let process = Process::open(pid).ok()?;
    runs_it()?;
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    let value = |name: &str| {
        let at = words.iter().position(|word| *word == name.as_bytes())?;
        words.get(at + 1).copied()
    };
    if value("--supervisor")? != socket.as_os_str().as_bytes() || process.has_ended() {
        return None;
    }
    let text = |name| value(name).and_then(|value| std::str::from_utf8(value).ok());
    let worker =
        WorkerId { endpoint: text("--endpoint-id")?.parse().ok()?, generation: text("--generation")?.parse().ok()? };
    Some((worker, process))
}

/// Reports the end of a process, by its pidfd, within a moment. `child` is there when the process is ours to wait for.
///
/// # Errors
/// If it cannot be watched. A child of ours has been killed then, as nobody would notice its end; what an earlier
/// supervisor has started lives on.
pub(crate) fn watch(worker: WorkerId, process: &Process, mut child: Option<Child>, queue: Queue) -> io::Result<()> {
    let pidfd = match ending::watched(process) {
        Ok(pidfd) => pidfd,
        Err(error) => {
            if let Some(child) = &mut child {
                // It may have ended by itself, which does not matter any more.
                let _ = process.signal(Signal::KILL);
                let _ = child.wait();
            }
            return Err(error);
        }
    };
    let pid = process.identity().pid;
    // The task ends with the process; the owner signals that, not the task.
    tokio::spawn(async move {
        let oom_kills_before = oom_kills();
        let exit = match pidfd.readable().await {
            Ok(_) => match child.as_mut().map(Child::wait) {
                Some(Ok(status)) => describe(status, oom_kills() != oom_kills_before),
                Some(Err(error)) => Exit::unknown(&error),
                None => Exit::unknown(&"it was started by an earlier supervisor"),
            },
            Err(error) => Exit::unknown(&error),
        };
        let _ = queue.send(Event::WorkerEnded { worker, pid, exit }).await; // fails only when the owner has ended
    });
    Ok(())
}

fn describe(status: ExitStatus, is_short_of_memory: bool) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit { text: format!("exit code {code}"), end: End::Itself, code: Some(code) },
        (None, Some(number)) if number == Signal::KILL.as_raw() => {
            // The kernel kills for want of memory by the same signal. Its count is the machine's, so one that grew may
            // mean another process: then a kill is taken for a crash, which only makes us more careful.
            if is_short_of_memory {
                Exit {
                    text: format!("signal {number}, while the system was out of memory"),
                    end: End::Itself,
                    code: None,
                }
            } else {
                Exit { text: format!("signal {number}"), end: End::Killed, code: None }
            }
        }
        (None, Some(number)) => Exit { text: format!("signal {number}"), end: End::Itself, code: None },
        (None, None) => Exit { text: status.to_string(), end: End::Itself, code: None },
    }
}

/// Processes the kernel has killed for want of memory, in any group, since it started; `None` where it does not tell.
fn oom_kills() -> Option<u64> {
    let counters = std::fs::read_to_string("/proc/vmstat").ok()?;
    counters.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::{Mutex, mpsc};

    use super::*;

    /// Held while a program is written and started: a process that is started meanwhile would have it open for writing,
    /// and a program that is can not be started.
    static WRITES: Mutex<()> = Mutex::const_new(());

    fn worker() -> WorkerId {
        WorkerId { endpoint: "zai".parse().unwrap(), generation: 4 }
    }

    /// Starts `script` as a worker and returns what it wrote and how it ended.
    async fn run(script: &str, environment: &[(&str, &str)]) -> (String, Exit) {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("worker");
        let writes = WRITES.lock().await;
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let log = folder.path().join("log");
        let launch = Launch {
            program: &program,
            worker: &worker(),
            listener: &TcpListener::bind("127.0.0.1:0").unwrap(),
            log: &log,
            socket: Path::new("/run/worker.sock"),
            environment: &environment.iter().copied().collect(),
            credential: &CredentialSource::Env("MY_KEY".to_owned()),
        };
        let (child, process) = start(&launch).unwrap();
        drop(writes);
        let (queue, mut events) = mpsc::channel(1);
        watch(worker(), &process, Some(child), queue).unwrap();
        let event = tokio::time::timeout(Duration::from_mins(1), events.recv()).await.unwrap().unwrap();
        let Event::WorkerEnded { worker: ended, pid, exit } = event else { panic!("{event:?}") };
        assert_eq!((ended, pid), (worker(), process.identity().pid));
        (std::fs::read_to_string(log).unwrap(), exit)
    }

    #[tokio::test]
    async fn a_worker_gets_its_arguments_and_only_what_it_needs_of_the_environment() {
        let environment = [("HOME", "/h"), ("MY_KEY", "k"), ("OTHER_KEY", "o"), ("PATH", "/usr/bin:/bin")];
        // PWD, SHLVL, OLDPWD and `_` are the shell's own.
        let script = "echo \"$@\"; env | grep -vE '^(PWD|SHLVL|OLDPWD|_)=' | sort >&2; test -S /dev/stdin && echo socket; exit 3";
        let (log, exit) = run(script, &environment).await;
        let arguments = "--endpoint-id zai --generation 4 --supervisor /run/worker.sock";
        let given = [("HOME", "/h"), ("MY_KEY", "k"), ("PATH", "/usr/bin:/bin")];
        let mut lines: Vec<String> =
            given.iter().chain(&WORKER_ALLOCATOR).map(|(name, value)| format!("{name}={value}\n")).collect();
        lines.sort();
        assert_eq!(log, format!("{arguments}\n{}socket\n", lines.concat()));
        assert_eq!(exit, Exit { text: "exit code 3".to_owned(), end: End::Itself, code: Some(3) });
    }

    #[tokio::test]
    async fn a_signal_is_named_and_a_kill_is_told_from_a_fault() {
        let (_, exit) = run("kill -SEGV $$", &[]).await;
        assert_eq!(exit, Exit { text: "signal 11".to_owned(), end: End::Itself, code: None });
        let killed = ExitStatus::from_raw(9);
        assert_eq!(describe(killed, false), Exit { text: "signal 9".to_owned(), end: End::Killed, code: None });
        assert_eq!(describe(killed, true).end, End::Itself);
    }
}
