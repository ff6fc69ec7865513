//! A machine that has other things to do: a worker that gets no processor is not to blame for its silence.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use codex_control::process::Process;
use rustix::process::{Pid, setpriority_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::endpoint;
use crate::home::{Home, get};

/// Threads that compute beside the worker, on its processor.
const OTHERS: usize = 48;
/// How long they do: several times of what a worker may be silent for, and less than nobody waits for.
const BUSY_FOR: Duration = Duration::from_secs(5);
/// How nice they are to everybody else on the machine.
const NICE: i32 = 10;

#[test]
fn a_worker_that_gets_no_processor_is_not_killed() {
    let home = Home::new(&endpoint("a", ""));
    let supervisor = home.start();
    let address = supervisor.wake("a");
    let worker = supervisor.worker("a");
    let pid = pid_of(&worker);
    let all = sched_getaffinity(None).unwrap();
    let number = (0..CpuSet::MAX_CPU).find(|number| all.is_set(*number)).unwrap();
    let mut one = CpuSet::new();
    one.set(number);
    sched_setaffinity(Some(pid), &one).unwrap();
    // It gets what nobody else wants.
    let idle = ["--idle", "--pid", "0", &pid.as_raw_nonzero().to_string()].map(str::to_owned);
    assert!(Command::new("chrt").args(idle).status().unwrap().success());
    let is_over = AtomicBool::new(false);
    let before = worker.activity();
    let after = thread::scope(|scope| {
        for _ in 0..OTHERS {
            scope.spawn(|| {
                sched_setaffinity(None, &one).unwrap();
                setpriority_process(None, NICE).unwrap(); // on Linux that is the thread
                while !is_over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let busy_until = Instant::now() + BUSY_FOR;
        while Instant::now() < busy_until {
            thread::park_timeout(busy_until.saturating_duration_since(Instant::now()));
        }
        is_over.store(true, Ordering::Relaxed);
        worker.activity()
    });
    println!("in {BUSY_FOR:?} the worker went from {before:?} to {after:?}");
    assert!(get(address, "/health").is_ok());
    let status = supervisor.endpoint("a");
    assert_eq!((&status["restarts_total"], &status["worker_pid"]), (&0.into(), &worker.identity().pid.into()));
    supervisor.stop();
}

fn pid_of(process: &Process) -> Pid {
    i32::try_from(process.identity().pid).ok().and_then(Pid::from_raw).unwrap()
}
