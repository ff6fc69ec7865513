//! Who accepts: at no moment two workers of the same endpoint, but while one takes over from the other.
//!
//! A worker accepts while its runtime waits for connections: the kernel tells which files a process waits for
//! (`/proc/PID/fdinfo`, epoll), and the listener is a worker's standard input. One that starts has the listener and does
//! not wait for it yet, one that drains no longer does. One that is stopped by a signal takes nothing either.
//!
//! Looks are not made at one moment. So the first workers of a look are looked at again after the last: a worker that
//! accepts before and after another one was seen to accept did so beside it, since none begins twice.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use codex_control::process::Process;
use codex_control::{credentials, token};
use e2e::home::{PROVIDER_KEY, SandboxHome, binaries, scripted_endpoint};
use rustix::process::Signal;

use crate::clients::{PATIENCE, Streams, wait};
use crate::drip::Drip;
use crate::rig::ENDPOINT;

/// Pause between two looks: a worker needs longer than that from its start to its first connection.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);
/// A process may become another program for this long after it was first seen.
const BECOMES_WITHIN: Duration = Duration::from_secs(2);

/// How long two generations may accept beside each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handover {
    /// Nothing is replaced.
    Never,
    /// The next one says that it is ready, and the one before is told to drain.
    Within(Duration),
}

/// Looks all the time.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
    allowed: Handover,
}

/// What was seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    n_looks: usize,
    generations: BTreeSet<u64>,
    longest_handover: Duration,
    /// Two at once that may never be: both of the same generation, or three.
    doubles: Vec<String>,
}

impl Watch {
    /// Begins to watch the workers that run `program` for `endpoint`.
    pub(crate) fn start(program: &Path, endpoint: &str, allowed: Handover) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut looker = Looker::new(program, endpoint);
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let (mut seen, mut since) = (Seen::default(), None);
                while !stop.load(Relaxed) {
                    seen.add(&looker.look(), &mut since);
                    thread::park_timeout(LOOK_INTERVAL);
                }
                seen
            }
        });
        Self { stop, thread, allowed }
    }

    /// Ends; fails if two have accepted at once that were not to.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        self.stop.store(true, Relaxed);
        let seen = self.thread.join().ok().context("the watch has panicked")?;
        seen.judge(self.allowed)
    }
}

impl Seen {
    /// Fails if two have accepted at once that were not to.
    fn judge(&self, allowed: Handover) -> anyhow::Result<()> {
        println!(
            "  accepting: {} generations, {} doubles, longest handover {:.1} ms ({} looks)",
            self.generations.len(),
            self.doubles.len(),
            self.longest_handover.as_secs_f64() * 1_000.0,
            self.n_looks
        );
        ensure!(!self.generations.is_empty(), "no worker was ever seen to accept: the watch sees nothing");
        ensure!(self.doubles.is_empty(), "two workers have accepted at once: {}", self.doubles.join("; "));
        let longest = self.longest_handover;
        match allowed {
            Handover::Never => {
                ensure!(longest.is_zero(), "two generations have accepted at once for {longest:?}");
            }
            Handover::Within(limit) => {
                ensure!(longest <= limit, "two generations have accepted at once for {longest:?}");
            }
        }
        Ok(())
    }

    /// `since`: when two generations were first seen to accept beside each other, as long as they do.
    fn add(&mut self, accepting: &[Accepts], since: &mut Option<Instant>) {
        let now = Instant::now();
        self.n_looks += 1;
        self.generations.extend(accepting.iter().map(|worker| worker.generation));
        let distinct: BTreeSet<u64> = accepting.iter().map(|worker| worker.generation).collect();
        if accepting.len() < 2 {
            *since = None;
        } else if accepting.len() == 2 && distinct.len() == 2 {
            // At least one look long, however short it was.
            let began = *since.get_or_insert_with(|| now.checked_sub(LOOK_INTERVAL).unwrap_or(now));
            self.longest_handover = self.longest_handover.max(now - began);
        } else {
            self.doubles.push(format!("{accepting:?}"));
        }
    }
}

/// A worker that accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Accepts {
    pid: u32,
    generation: u64,
}

/// What is known about processes.
struct Looker {
    program: PathBuf,
    endpoint: String,
    known: HashMap<u32, Known>,
}

enum Known {
    /// It may become a worker.
    Other { first_seen: Instant },
    /// A worker of the endpoint.
    Worker(Worker),
}

struct Worker {
    generation: u64,
    /// The listener's inode, and where its epoll tells about itself; empty as long as it has none.
    listener: String,
    epolls: Vec<PathBuf>,
}

impl Looker {
    fn new(program: &Path, endpoint: &str) -> Self {
        Self { program: program.to_owned(), endpoint: endpoint.to_owned(), known: HashMap::new() }
    }

    /// The workers that accept now, all at the same moment.
    fn look(&mut self) -> Vec<Accepts> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids: BTreeSet<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).collect();
        self.known.retain(|pid, _| pids.contains(pid));
        for pid in pids {
            let known = self.known.entry(pid).or_insert_with(|| Known::Other { first_seen: Instant::now() });
            if let Known::Other { first_seen } = known
                && first_seen.elapsed() < BECOMES_WITHIN
                && let Some(generation) = generation(pid, &self.program, &self.endpoint)
            {
                *known = Known::Worker(Worker { generation, listener: String::new(), epolls: Vec::new() });
            }
        }
        let accepts = |(pid, known): (&u32, &mut Known)| match known {
            Known::Worker(worker) => {
                worker.accepts(*pid).then_some(Accepts { pid: *pid, generation: worker.generation })
            }
            Known::Other { .. } => None,
        };
        let mut accepting: Vec<Accepts> = self.known.iter_mut().filter_map(accepts).collect();
        if accepting.len() > 1 {
            // The last one was seen after the others; which of them still accept did so then.
            let last = accepting.pop();
            accepting.retain(|seen| match self.known.get_mut(&seen.pid) {
                Some(Known::Worker(worker)) => worker.accepts(seen.pid),
                _ => false,
            });
            accepting.extend(last);
        }
        accepting
    }
}

impl Worker {
    fn accepts(&mut self, pid: u32) -> bool {
        let process = PathBuf::from(format!("/proc/{pid}"));
        if self.listener.is_empty() {
            let Ok(link) = fs::read_link(process.join("fd/0")) else { return false };
            let link = link.to_string_lossy().into_owned();
            let inode = link.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
            let Some(inode) = inode.and_then(|inode| inode.parse::<u64>().ok()) else { return false };
            self.listener = format!("ino:{inode:x}");
        }
        if self.epolls.is_empty() {
            let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
            let is_epoll =
                |path: &PathBuf| fs::read_link(path).is_ok_and(|link| link.as_os_str() == "anon_inode:[eventpoll]");
            let epolls = files.map(|file| file.path()).filter(is_epoll);
            self.epolls = epolls.filter_map(|path| Some(process.join("fdinfo").join(path.file_name()?))).collect();
        }
        if is_stopped(&process) {
            return false;
        }
        // `tfd:        9 events: 80000019 data:  1000001  pos:0 ino:3039 sdev:8`
        let waits_for_listener = |path: &PathBuf| {
            let told = fs::read_to_string(path).unwrap_or_default();
            told.split_ascii_whitespace().any(|word| word == self.listener)
        };
        self.epolls.iter().any(waits_for_listener)
    }
}

/// Whether a process was stopped by a signal: it waits for connections, and takes none.
fn is_stopped(process: &Path) -> bool {
    // The state stands behind the name, which may hold anything: `5120 (codex-worker) T 1 …`.
    let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['T', 't']))
}

/// The generation of a process, if it runs `program` for `endpoint`.
fn generation(pid: u32, program: &Path, endpoint: &str) -> Option<u64> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let line = String::from_utf8_lossy(&line);
    let mut words = line.split('\0');
    if Path::new(words.next()?) != program {
        return None;
    }
    let words: Vec<&str> = words.collect();
    let value = |name: &str| words.iter().position(|word| *word == name).and_then(|at| words.get(at + 1)).copied();
    value("--generation").filter(|_| value("--endpoint-id") == Some(endpoint))?.parse().ok()
}

/// Shows the watch what it is for: workers that share a listener, started by hand.
pub(crate) fn show() -> anyhow::Result<()> {
    println!("two workers that share a listener, and the watch");
    let drip = Drip::start()?;
    let home = SandboxHome::new();
    home.write("endpoint.toml", &scripted_endpoint(&drip.base_url()));
    let id = ENDPOINT.parse().expect("the name is a good one");
    credentials::store(&home.paths(), &id, PROVIDER_KEY)?;
    // A program of its own: others may run the built one at this moment.
    let program = home.path("codex-worker");
    fs::copy(binaries().join("codex-worker"), &program)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let start = |generation: &str| -> anyhow::Result<Child> {
        let mut command = home.command(&program);
        command.arg("--endpoint").arg(home.path("endpoint.toml"));
        command.args(["--endpoint-id", ENDPOINT, "--generation", generation]);
        command.stdin(OwnedFd::from(listener.try_clone()?)).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(command.spawn()?)
    };
    let mut looker = Looker::new(&program, ENDPOINT);
    let mut see = |what: &str, generations: &[u64]| {
        wait(what, || {
            let accepting = looker.look();
            (accepting.iter().map(|worker| worker.generation).collect::<BTreeSet<_>>()
                == generations.iter().copied().collect()
                && accepting.len() == generations.len())
            .then_some(accepting)
        })
    };
    let mut first = start("1")?;
    see("the first worker", &[1])?;
    let token = wait("the token", || token::read_token(&home.paths().token(&id)).ok().flatten())?;
    let mut streams = Streams::new(address, token.expose().to_owned())?;
    streams.open(1)?;

    let mut same = start("1")?;
    let (mut seen, mut since) = (Seen::default(), None);
    seen.add(&see("two of one generation", &[1, 1])?, &mut since);
    ensure!(seen.judge(Handover::Within(PATIENCE)).is_err(), "two of one generation are never right");
    same.kill()?;
    same.wait()?;

    let mut next = start("2")?;
    let (mut seen, mut since) = (Seen::default(), None);
    seen.add(&see("two generations", &[1, 2])?, &mut since);
    ensure!(seen.judge(Handover::Never).is_err(), "two generations are not right where nothing is replaced");
    seen.judge(Handover::Within(PATIENCE)).context("a handover is right where something is")?;

    // One that drains has the listener still, and does not accept.
    let draining = Process::open(first.id())?;
    ensure!(draining.signal(Signal::TERM)?, "the first worker had ended before");
    seen.add(&see("the next generation alone", &[2])?, &mut since);
    ensure!(since.is_none() && !draining.has_ended(), "the first worker has ended before it was seen to drain");
    drip.enough();
    streams.finish()?;
    ensure!(streams.broken() == 0, "the stream of the worker that drained is broken");
    for worker in [&mut first, &mut next] {
        let _ = worker.kill(); // the first one has ended by now, or does so
        worker.wait()?;
    }
    println!("  it has seen what it is for");
    Ok(())
}
