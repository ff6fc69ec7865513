//! What breaks when processes are killed, replaced, stopped and starved: counted, with the times it took.
//!
//! Behind `scripts/reliability.sh`, which runs every part in full; the suite runs each with a small count. Counts must
//! be what they should be always; times are judged only with `--strict`, since they say as much about the machine.
//!
//! | module | what |
//! |---|---|
//! | [`rig`](mod@rig) | the product, with systemd or without |
//! | [`drip`] | a provider whose answers last as long as they are wanted |
//! | [`clients`] | open streams, connections, short requests: who notices |
//! | [`accepting`] | no two workers of an endpoint accept at once |
//! | [`peers`] | a worker under us and under other supervisors, for comparison |

mod accepting;
mod clients;
mod drip;
mod peers;
mod rig;

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::{Parser, ValueEnum};
use codex_control::descriptors;
use codex_control::process::Process;
use e2e::codex::Run;
use e2e::home::{PROVIDER_KEY, scripted_endpoint};
use e2e::provider::{FakeProvider, Script, Step, When};
use rustix::process::Signal;

use crate::accepting::Handover;
use crate::clients::{Knocker, Load, PATIENCE, Streams, healthy, wait};
use crate::drip::Drip;
use crate::rig::{Rig, answers_after, kill};

/// Counts what breaks when processes are killed, replaced, stopped and starved.
///
/// Example: reliability worker --count 100
#[derive(Parser)]
#[command(version)]
struct Options {
    /// What happens
    part: Part,
    /// How often
    #[arg(long, default_value_t = 3)]
    count: u32,
    /// Streams that are open meanwhile
    #[arg(long, default_value_t = 200)]
    streams: usize,
    /// Tasks that the real Codex does meanwhile
    #[arg(long, default_value_t = 0)]
    tasks: u32,
    /// Seconds of a freeze
    #[arg(long, default_value_t = 30)]
    frozen_s: u64,
    /// Seconds the machine is kept busy at once
    #[arg(long, default_value_t = 10)]
    busy_s: u64,
    /// The product runs as the user's service, installed already: only in scripts/systemd-sandbox
    #[arg(long)]
    service: bool,
    /// Times that are too long count as failures
    #[arg(long)]
    strict: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Part {
    /// The worker is killed, under load
    Worker,
    /// The worker is replaced: by `codexctl restart ENDPOINT`, by other settings, by other programs
    Replace,
    /// The supervisor is killed
    Supervisor,
    /// The supervisor is killed while it replaces the worker
    Halfway,
    /// Supervisor and worker are killed at the same moment
    Both,
    /// Everything is stopped with streams open
    Stop,
    /// The worker is stopped by SIGSTOP
    Stuck,
    /// Everything is frozen
    Freeze,
    /// Three times as many busy threads as processors
    Busy,
    /// Two workers share a listener, which the watch over the other parts must see
    Watch,
    /// The worker is killed under us, under s6 and under supervisord
    Peers,
}

/// Longest that any request may take when a worker is killed.
pub(crate) const HUNG: Duration = Duration::from_secs(1);
/// Kill to accepting: half of the kills, and all but one in a hundred.
const ACCEPTS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(30));
/// Start of a supervisor to its taking over of the worker.
const ADOPTS: Duration = Duration::from_millis(250);
/// Kill of both to an answer.
const SERVES: Duration = Duration::from_millis(500);
/// SIGSTOP to an answer of the next worker.
const REPLACES_STUCK: Duration = Duration::from_secs(2);
/// Stop to the terminal event of the last stream.
const STOPS: Duration = Duration::from_secs(5);
/// Streams opened anew before each event, so that each generation has some.
const STREAMS_MORE: usize = 5;
/// Time between two kills: about what one request of Codex takes, so that a few of them are hit and most are not.
const KILL_INTERVAL: Duration = Duration::from_millis(120);
/// Tasks of Codex at the same time.
const TASKS_AT_ONCE: usize = 2;
/// Two generations accept beside each other from the next one's being ready to the drain of the one before.
const HANDS_OVER: Duration = Duration::from_millis(250);
/// The same where the supervisor is killed in between, and the next one is waited for.
const HANDS_OVER_KILLED: Duration = Duration::from_secs(5);
/// Both where times are not judged: longer than that is for good.
const HANDS_OVER_BUSY: Duration = PATIENCE;
/// How much later after `codexctl restart` was started each kill comes; and after how many it is early again. The worker
/// is replaced within: program started 2 ms, next worker ready 5 ms, the one before told 1 ms later.
const HALFWAY_STEP: Duration = Duration::from_micros(500);
const HALFWAY_STEPS: u32 = 40;
/// Signals to two processes that lie further apart have not frozen or woken them at once: a third of the time after
/// which one that is silent hangs.
const APART_MAX: Duration = Duration::from_millis(500);
/// Times that the freezes are begun anew for that.
const FREEZES_ANEW_MAX: u32 = 10;
/// Busy threads for each processor.
const OVERSUBSCRIPTION: usize = 3;

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    // Each stream has three ends here: the client's, and both of the provider's connection.
    descriptors::raise_limit();
    match options.part {
        Part::Worker => kill_workers(&options),
        Part::Replace => replace(&options),
        Part::Supervisor => kill_supervisors(&options),
        Part::Halfway => kill_halfway(&options),
        Part::Both => kill_both(&options),
        Part::Stop => stop(&options),
        Part::Stuck => stick(&options),
        Part::Freeze => freeze(&options),
        Part::Busy => be_busy(&options),
        Part::Watch => accepting::show(),
        Part::Peers => peers::compare(options.count),
    }
}

/// Times, for a line of the report.
#[derive(Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn add(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// The time that `percent` of them do not exceed.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let mut times = self.0.clone();
        times.sort_unstable();
        times.get((times.len() * percent / 100).min(times.len().saturating_sub(1))).copied().unwrap_or_default()
    }

    fn judge(&self, what: &str, options: &Options, limits: &[(usize, Duration)]) -> anyhow::Result<()> {
        println!("  {what}: {self}");
        for (percent, limit) in limits {
            let time = self.percentile(*percent);
            ensure!(!options.strict || time <= *limit, "{what}: p{percent} is {time:?}, the limit is {limit:?}");
        }
        Ok(())
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |percent| self.percentile(percent).as_secs_f64() * 1_000.0;
        write!(f, "p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms ({})", ms(50), ms(99), ms(100), self.0.len())
    }
}

fn rig(options: &Options, base_url: &str) -> anyhow::Result<Rig> {
    let settings = scripted_endpoint(base_url);
    if options.service { Rig::service(&settings) } else { Rig::alone(&settings) }
}

/// `within` is judged with `--strict`.
fn handover(options: &Options, within: Duration) -> Handover {
    Handover::Within(if options.strict { within } else { HANDS_OVER_BUSY })
}

fn flowing(options: &Options, rig: &Rig) -> anyhow::Result<Streams> {
    let mut streams = Streams::new(rig.address()?, rig.token()?)?;
    streams.open(options.streams)?;
    Ok(streams)
}

/// All streams must end well, and nobody may have been refused.
fn judge_streams(streams: &Streams, drip: &Drip, knocker: Knocker, load: Load) -> anyhow::Result<()> {
    drip.enough();
    let events = streams.finish()?;
    let (knocks, asked) = (knocker.finish(), load.finish());
    println!(
        "  requests: {} answered, {} cut, {} refused, {} odd",
        asked.answered, asked.cut, asked.refused, asked.odd
    );
    ensure!(asked.cut + asked.refused + asked.odd == 0 && asked.answered > 0, "requests were not answered");
    println!("  streams: {} opened, {} broken, {events} events", streams.opened(), streams.broken());
    println!("  connections: {} made, {} refused", knocks.connected, knocks.refused);
    ensure!(streams.broken() == 0 && knocks.refused == 0, "streams were broken or connections refused");
    Ok(())
}

fn kill_workers(options: &Options) -> anyhow::Result<()> {
    println!("worker killed {} times under load, {} tasks of Codex meanwhile", options.count, options.tasks);
    let script = Script::new()
        .key(PROVIDER_KEY)
        .always(When::user("Load."), [Step::text("Loaded.")])
        .always(When::user("Task."), [Step::shell("echo ran-$((40+2))")])
        .always(When::tool("ran-42"), [Step::text("Task done.")]);
    let provider = FakeProvider::start(script);
    let rig = rig(options, &provider.base_url())?;
    let (address, token) = (rig.address()?, rig.token()?);
    let watch = rig.watch(Handover::Never);
    let knocker = Knocker::start(address);
    let load = Load::start(address, &token, 2);
    let mut tasks = Tasks { wanted: options.tasks, ..Tasks::default() };
    let mut times = Times::default();
    while times.0.len() < options.count as usize || !tasks.are_done() {
        let worker = rig.worker()?;
        times.add(answers_after(address, kill(&worker)?)?);
        let (next_at, n_before) = (Instant::now() + KILL_INTERVAL, load.n_answered());
        wait("the time between two kills to pass", || (Instant::now() >= next_at).then_some(()))?;
        // On a busy machine a request may take longer than that, and none would ever be answered.
        wait("an answer between two kills", || (load.n_answered() > n_before).then_some(()))?;
        tasks.go_on(&rig)?;
    }
    let (asked, knocks) = (load.finish(), knocker.finish());
    println!(
        "  requests: {} answered, {} cut with their worker, {} refused, {} odd, longest {:?}",
        asked.answered, asked.cut, asked.refused, asked.odd, asked.longest
    );
    println!(
        "  connections: {} made, {} refused; tasks of Codex: {} completed",
        knocks.connected, knocks.refused, tasks.completed
    );
    ensure!(asked.refused + asked.odd + knocks.refused == 0 && asked.answered > 0, "requests were refused");
    ensure!(!options.strict || asked.longest <= HUNG, "a request hung for {:?}", asked.longest);
    watch.finish()?;
    times.judge("kill to accepting", options, &[(50, ACCEPTS.0), (99, ACCEPTS.1)])?;
    rig.stop()
}

/// Tasks of the real Codex, a few at a time.
#[derive(Default)]
struct Tasks {
    wanted: u32,
    begun: u32,
    completed: u32,
    running: Vec<e2e::home::Running>,
}

impl Tasks {
    fn are_done(&self) -> bool {
        self.completed == self.wanted
    }

    fn go_on(&mut self, rig: &Rig) -> anyhow::Result<()> {
        while self.begun < self.wanted && self.running.len() < TASKS_AT_ONCE {
            self.running.push(rig.home()?.start_exec(&["Task."]));
            self.begun += 1;
        }
        let (ended, running): (Vec<_>, Vec<_>) =
            self.running.drain(..).map(|mut task| (task.has_ended(), task)).partition(|(has_ended, _)| *has_ended);
        self.running = running.into_iter().map(|(_, task)| task).collect();
        for (_, task) in ended {
            let run = Run::finish(task);
            ensure!(run.code == 0 && run.answer() == "Task done.", "a task of Codex failed: {}", run.shown());
            self.completed += 1;
        }
        Ok(())
    }
}

fn replace(options: &Options) -> anyhow::Result<()> {
    println!("worker replaced, settings changed, programs exchanged: {} times each", options.count);
    let drip = Drip::start()?;
    let rig = rig(options, &drip.base_url())?;
    let address = rig.address()?;
    let watch = rig.watch(handover(options, HANDS_OVER));
    let (knocker, load) = (Knocker::start(address), Load::start(address, &rig.token()?, 2));
    let mut streams = flowing(options, &rig)?;
    for (what, act) in [
        ("replaced", (|rig, _| rig.ctl(&["restart", rig::ENDPOINT])) as fn(&Rig, u32) -> anyhow::Result<()>),
        ("settings", |rig, n| rig.ctl(&["endpoint", "set", rig::ENDPOINT, "headers", &format!("{{ x-n = \"{n}\" }}")])),
        ("programs", |rig, _| rig.replace_programs().and_then(|()| rig.ctl(&["restart"]))),
    ] {
        let mut times = Times::default();
        for n in 0..options.count {
            streams.open(STREAMS_MORE)?;
            let before = rig.wait_running()?;
            let begin = Instant::now();
            act(&rig, n)?;
            rig.wait_for("the next worker", |now| now.generation == before.generation + 1)?;
            times.add(begin.elapsed());
            healthy(address)?;
            ensure!(streams.broken() == 0, "{what}, time {n}: {} streams are broken", streams.broken());
        }
        times.judge(&format!("{what}, until the next worker serves"), options, &[])?;
    }
    judge_streams(&streams, &drip, knocker, load)?;
    // With their streams the replaced workers end, too.
    rig.wait_single()?;
    watch.finish()?;
    rig.stop()
}

fn kill_supervisors(options: &Options) -> anyhow::Result<()> {
    println!("supervisor killed {} times", options.count);
    let drip = Drip::start()?;
    let rig = rig(options, &drip.base_url())?;
    let address = rig.address()?;
    let watch = rig.watch(Handover::Never);
    let (knocker, load) = (Knocker::start(address), Load::start(address, &rig.token()?, 2));
    let mut streams = flowing(options, &rig)?;
    let before = rig.wait_running()?;
    let (mut back, mut adopted) = (Times::default(), Times::default());
    for n in 0..options.count {
        streams.open(STREAMS_MORE)?;
        let at = kill(&rig.supervisor()?)?;
        let now = rig.come_back()?;
        back.add(at.elapsed());
        ensure!(
            now.worker_pid == before.worker_pid,
            "time {n}: {:?} serves instead of {:?}",
            now.worker_pid,
            before.worker_pid
        );
        rig.wait_single().with_context(|| format!("time {n}"))?;
        ensure!(streams.broken() == 0, "time {n}: {} streams are broken", streams.broken());
        adopted.add(rig.adoption()?);
    }
    judge_streams(&streams, &drip, knocker, load)?;
    watch.finish()?;
    back.judge("kill to a supervised worker", options, &[])?;
    adopted.judge("start of the next supervisor to adoption", options, &[(100, ADOPTS)])?;
    rig.stop()
}

fn kill_halfway(options: &Options) -> anyhow::Result<()> {
    println!("supervisor killed {} times while it replaces the worker", options.count);
    let drip = Drip::start()?;
    let rig = rig(options, &drip.base_url())?;
    let address = rig.address()?;
    // Whoever was killed between the next one's being ready and the drain of the one before is waited for.
    let watch = rig.watch(handover(options, HANDS_OVER_KILLED));
    let (knocker, load) = (Knocker::start(address), Load::start(address, &rig.token()?, 2));
    let mut streams = flowing(options, &rig)?;
    let (mut back, mut n_replaced) = (Times::default(), 0);
    for n in 0..options.count {
        streams.open(STREAMS_MORE)?;
        let before = rig.wait_running()?;
        let supervisor = rig.supervisor()?;
        let wait_for = HALFWAY_STEP * (n % HALFWAY_STEPS);
        let begin = Instant::now();
        let mut restart = rig.begin_ctl(&["restart", rig::ENDPOINT])?;
        while begin.elapsed() < wait_for {
            std::hint::spin_loop(); // finer than anything that waits
        }
        let at = kill(&supervisor)?;
        let now = rig.come_back()?;
        back.add(at.elapsed());
        restart.wait()?; // answered, by this one or the next, or told that nobody answers
        n_replaced += u32::from(now.worker_pid != before.worker_pid);
        healthy(address)?;
        ensure!(streams.broken() == 0, "killed {wait_for:?} on: {} streams are broken", streams.broken());
    }
    println!("  replaced all the same: {n_replaced}");
    judge_streams(&streams, &drip, knocker, load)?;
    // With their streams the replaced workers end, too.
    rig.wait_single()?;
    watch.finish()?;
    back.judge("kill to a supervised worker", options, &[])?;
    rig.stop()
}

fn kill_both(options: &Options) -> anyhow::Result<()> {
    println!("supervisor and worker killed {} times at the same moment", options.count);
    let drip = Drip::start()?;
    let rig = rig(options, &drip.base_url())?;
    let address = rig.address()?;
    // Without a service manager nobody holds the listener then: only after that is nobody to be refused.
    let knocker = options.service.then(|| Knocker::start(address));
    let watch = rig.watch(Handover::Never);
    let mut times = Times::default();
    for n in 0..options.count {
        let (supervisor, worker) = (rig.supervisor()?, rig.worker()?);
        ensure!(worker.signal(Signal::KILL)?, "the worker had ended before");
        let at = kill(&supervisor)?;
        rig.forgive()?;
        rig.ctl(&["start"])?;
        times.add(answers_after(address, at)?);
        rig.wait_running()?;
        rig.wait_single().with_context(|| format!("time {n}"))?;
    }
    if let Some(knocks) = knocker.map(Knocker::finish) {
        println!("  connections: {} made, {} refused", knocks.connected, knocks.refused);
        ensure!(knocks.refused == 0, "connections were refused");
    }
    watch.finish()?;
    times.judge("kill to serving", options, &[(99, SERVES)])?;
    rig.stop()
}

fn stop(options: &Options) -> anyhow::Result<()> {
    println!("stopped {} times with {} streams", options.count, options.streams);
    let drip = Drip::start()?;
    let (mut told, mut ended) = (Times::default(), Times::default());
    for n in 0..options.count {
        let rig = rig(options, &drip.base_url())?;
        let streams = flowing(options, &rig)?;
        let at = Instant::now();
        let all_told = std::thread::scope(|scope| -> anyhow::Result<Duration> {
            let watch = scope.spawn(|| streams.finish().map(|_| at.elapsed()));
            rig.stop()?;
            watch.join().expect("it does not panic")
        })?;
        told.add(all_told);
        ended.add(at.elapsed());
        ensure!(streams.cut() == 0, "time {n}: {} streams had no terminal event", streams.cut());
    }
    println!("  streams: each had its terminal event");
    ended.judge("stop to the end of everything", options, &[])?;
    told.judge("stop to the terminal event of the last stream", options, &[(100, STOPS)])
}

fn stick(options: &Options) -> anyhow::Result<()> {
    println!("worker stopped by SIGSTOP {} times", options.count);
    let drip = Drip::start()?;
    let rig = rig(options, &drip.base_url())?;
    let address = rig.address()?;
    let watch = rig.watch(handover(options, HANDS_OVER));
    let knocker = Knocker::start(address);
    let mut times = Times::default();
    for _ in 0..options.count {
        // A worker that hangs is at fault, and too many of those in a row would be a reason to be slow.
        let before = rig.wait_running()?;
        rig.ctl(&["restart", rig::ENDPOINT])?;
        rig.wait_for("the next worker", |now| now.generation > before.generation)?;
        // Nor does the one before answer any more.
        rig.wait_single()?;
        let worker = rig.worker()?;
        let at = Instant::now();
        ensure!(worker.signal(Signal::STOP)?, "the worker had ended before");
        times.add(answers_after(address, at)?);
        wait("the old worker to end", || worker.has_ended().then_some(()))?;
    }
    let knocks = knocker.finish();
    println!("  connections: {} made, {} refused", knocks.connected, knocks.refused);
    ensure!(knocks.refused == 0, "connections were refused");
    watch.finish()?;
    times.judge("SIGSTOP to an answer of the next worker", options, &[(100, REPLACES_STUCK)])?;
    rig.stop()
}

/// The same worker, never restarted, streams unbroken.
fn judge_calm(rig: &Rig, before: &Process, streams: &Streams) -> anyhow::Result<()> {
    let now = rig.wait_running()?;
    ensure!(rig.worker()?.identity() == before.identity(), "a worker was replaced: {:?}", now.last_exit);
    ensure!(
        now.restarts_total == 0 && streams.broken() == 0,
        "{} restarts, {} streams broken",
        now.restarts_total,
        streams.broken()
    );
    Ok(())
}

fn freeze(options: &Options) -> anyhow::Result<()> {
    println!("everything frozen {} times for {:?}", options.count, Duration::from_secs(options.frozen_s));
    let mut n_done = 0;
    for _ in 0..FREEZES_ANEW_MAX {
        n_done = freeze_from(options, n_done)?;
        if n_done == options.count {
            return Ok(());
        }
        println!("  time {n_done} anew: for {APART_MAX:?} or more only one of the two was frozen");
    }
    bail!("this machine is too busy to freeze two processes at once")
}

/// Freezes from the `first` time on. Gives the number of the time at which we did not freeze or wake both at once, since
/// one that is frozen alone hangs, and the other may act on it; else the number of all.
fn freeze_from(options: &Options, first: u32) -> anyhow::Result<u32> {
    let frozen = Duration::from_secs(options.frozen_s);
    let drip = Drip::start()?;
    let rig = rig(options, &drip.base_url())?;
    let streams = flowing(options, &rig)?;
    let worker = rig.worker()?;
    for n in first..options.count {
        let supervisor = rig.supervisor()?;
        // Every other time the supervisor wakes up first and finds its worker still asleep.
        let both = if n % 2 == 0 { [&supervisor, &worker] } else { [&worker, &supervisor] };
        let mut is_at_once = signal_both(both, Signal::STOP)?;
        if is_at_once {
            let until = Instant::now() + frozen;
            e2e::until::try_until(frozen * 2, || (Instant::now() >= until).then_some(()))
                .context("time stands still")?;
        }
        is_at_once &= signal_both(both, Signal::CONT)?;
        if !is_at_once {
            drip.enough();
            rig.stop()?;
            return Ok(n);
        }
        healthy(rig.address()?)?;
        judge_calm(&rig, &worker, &streams)?;
    }
    drip.enough();
    streams.finish()?;
    judge_calm(&rig, &worker, &streams)?;
    println!("  no false kill, {} streams unbroken", streams.opened());
    rig.stop()?;
    Ok(options.count)
}

/// Whether both got `signal` at once. Only where they did not may one of them have ended.
fn signal_both(processes: [&Process; 2], signal: Signal) -> anyhow::Result<bool> {
    let begin = Instant::now();
    let mut n_there = 0;
    for process in processes {
        n_there += usize::from(process.signal(signal)?);
    }
    let is_at_once = begin.elapsed() < APART_MAX;
    ensure!(n_there == processes.len() || !is_at_once, "a process had ended before");
    Ok(is_at_once)
}

fn be_busy(options: &Options) -> anyhow::Result<()> {
    let busy = Duration::from_secs(options.busy_s);
    let threads = std::thread::available_parallelism()?.get() * OVERSUBSCRIPTION;
    println!("{threads} busy threads for {} times {busy:?}", options.count);
    let drip = Drip::start()?;
    let rig = rig(options, &drip.base_url())?;
    let streams = flowing(options, &rig)?;
    let worker = rig.worker()?;
    for _ in 0..options.count {
        let until = Instant::now() + busy;
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| while Instant::now() < until {});
            }
        });
        judge_calm(&rig, &worker, &streams)?;
    }
    drip.enough();
    streams.finish()?;
    judge_calm(&rig, &worker, &streams)?;
    println!("  no false kill, {} streams unbroken", streams.opened());
    rig.stop()
}

/// What a peer is measured by, see [`peers`].
pub(crate) fn bail_if_missing(program: &str) -> anyhow::Result<()> {
    match std::process::Command::new(program).arg("--version").output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!("`{program}` is not installed"),
        _ => Ok(()),
    }
}
