use proptest::prelude::*;

use super::*;
use crate::backoff::{CRASHES_MAX, JITTER_SHARE, PAUSE_FIRST, RESTARTS_IN_ROW_MAX, WINDOW};

const LIMITS: Limits = Limits {
    restart_pause_max: Duration::from_secs(30),
    health_interval: Duration::from_secs(5),
    health_failures_max: 3,
};
const REST: Wanted = Wanted::Rest { within: Duration::from_secs(5) };
const MS: Duration = Duration::from_millis(1);

/// A lifecycle with a clock of its own.
struct Bench {
    now: Instant,
    lifecycle: Lifecycle,
    /// Whether silent workers get no processor.
    is_starved: bool,
}

impl Bench {
    fn new() -> Self {
        Self { now: Instant::now(), lifecycle: Lifecycle::new(LIMITS, 1), is_starved: false }
    }

    /// One that serves with worker 1.
    fn serving() -> Self {
        let mut bench = Self::new();
        bench.lifecycle.want(Wanted::Serve);
        assert_eq!(bench.commands(), [Command::Spawn { generation: 1 }]);
        bench.ready(1);
        assert_eq!(bench.commands(), [Command::Probe { generation: 1 }]);
        bench
    }

    fn ready(&mut self, generation: u64) {
        self.lifecycle.ready(self.now, generation);
    }

    /// What is to be done, but for a look at a silent worker, which is done.
    fn commands(&mut self) -> Vec<Command> {
        let mut commands: Vec<Command> = std::iter::from_fn(|| {
            let command = self.lifecycle.poll(self.now)?;
            if let Command::Examine { generation } = command {
                self.lifecycle.examined(self.now, generation, self.is_starved);
            }
            Some(command)
        })
        .take(100)
        .collect();
        commands.retain(|command| !matches!(command, Command::Examine { .. }));
        commands
    }

    /// Lets time pass until a worker is started; returns its number.
    fn pass_to_spawn(&mut self, alive: &[u64]) -> u64 {
        let end = self.now + LIMITS.restart_pause_max;
        while self.now <= end {
            let commands = self.pass(PAUSE_FIRST / 2, alive);
            if let Some(generation) = commands.iter().find_map(|command| match command {
                Command::Spawn { generation } => Some(*generation),
                _ => None,
            }) {
                return generation;
            }
        }
        panic!("no worker is started within the longest pause");
    }

    /// Lets `span` pass while the workers given send their heartbeats; returns all commands.
    fn pass(&mut self, span: Duration, alive: &[u64]) -> Vec<Command> {
        let end = self.now + span;
        let mut commands = Vec::new();
        let mut heartbeat_at = self.now;
        while self.now < end {
            for &generation in alive {
                self.lifecycle.heard(self.now, generation);
            }
            heartbeat_at += HEARTBEAT_INTERVAL;
            let next = self.lifecycle.deadline().unwrap_or(end).max(self.now + MS);
            self.now = next.min(heartbeat_at).min(end);
            commands.extend(self.commands());
        }
        commands
    }
}

#[test]
fn the_first_worker_starts_at_once_and_rest_drains_it() {
    let mut bench = Bench::new();
    assert_eq!(bench.commands(), []);
    assert_eq!(bench.lifecycle.phase(), Phase::Resting);
    bench.lifecycle.want(Wanted::Serve);
    assert_eq!(bench.commands(), [Command::Spawn { generation: 1 }]);
    assert_eq!(bench.lifecycle.phase(), Phase::Starting);
    bench.ready(1);
    assert_eq!(bench.lifecycle.phase(), Phase::Serving(1));
    bench.lifecycle.want(REST);
    assert_eq!(bench.commands(), [Command::Drain { generation: 1, within: Duration::from_secs(5) }]);
    assert!(bench.lifecycle.is_leaving(1) && !bench.lifecycle.is_empty());
    assert!(!bench.lifecycle.ended(bench.now, 1, End::Itself), "an asked-for end is expected");
    assert!(bench.lifecycle.is_empty());
    assert_eq!(bench.commands(), []);
}

#[test]
fn a_worker_that_will_not_end_gets_term_and_then_kill() {
    let mut bench = Bench::serving();
    bench.lifecycle.want(REST);
    bench.commands();
    assert_eq!(bench.pass(Duration::from_secs(5), &[1]), []);
    assert_eq!(bench.pass(DRAIN_SLACK, &[1]), [Command::Terminate { generation: 1 }]);
    let kill = Command::Kill { generation: 1, because: KillReason::Lingering };
    assert_eq!(bench.pass(TERMINATE_WITHIN, &[1]), [kill]);
    assert_eq!(bench.pass(Duration::from_mins(1), &[]), [], "nothing is left to try");
}

#[test]
fn a_worker_that_ends_can_be_hurried_once() {
    let mut bench = Bench::serving();
    let within = Duration::from_secs(5);
    assert!(!bench.lifecycle.hurry(bench.now, 1, within), "it is not to end");
    bench.lifecycle.change();
    bench.commands();
    bench.ready(2);
    bench.commands();
    bench.pass(Duration::from_mins(1), &[1, 2]);
    assert!(bench.lifecycle.hurry(bench.now, 1, within));
    assert!(!bench.lifecycle.hurry(bench.now, 1, within));
    assert!(!bench.lifecycle.hurry(bench.now, 2, within));
    let commands = bench.pass(within + DRAIN_SLACK, &[1, 2]);
    assert!(commands.contains(&Command::Terminate { generation: 1 }), "{commands:?}");
    assert_eq!(bench.lifecycle.serving(), Some(2));
}

#[test]
fn a_shorter_rest_shortens_a_drain_that_runs() {
    let mut bench = Bench::serving();
    bench.lifecycle.change();
    bench.commands();
    bench.ready(2);
    let commands = bench.commands();
    assert!(commands.contains(&Command::Drain { generation: 1, within: HANDOVER_WITHIN }), "{commands:?}");
    bench.lifecycle.want(REST);
    let within = Duration::from_secs(5);
    assert_eq!(bench.commands(), [Command::Drain { generation: 1, within }, Command::Drain { generation: 2, within }]);
    assert_eq!(bench.commands(), [], "each is told once");
}

#[test]
fn a_crash_is_answered_at_once_and_then_ever_later() {
    let mut bench = Bench::serving();
    assert!(bench.lifecycle.ended(bench.now, 1, End::Itself));
    assert_eq!(bench.commands(), [Command::Spawn { generation: 2 }]);
    assert!(bench.lifecycle.ended(bench.now, 2, End::Itself));
    assert_eq!(bench.commands(), [], "the second waits");
    assert_eq!(bench.lifecycle.phase(), Phase::Waiting);
    assert_eq!(bench.pass(PAUSE_FIRST, &[]), [Command::Spawn { generation: 3 }]);
    assert_eq!(bench.lifecycle.restarts_total(), 2);
    let mut generation = 3;
    for n in 3..=RESTARTS_IN_ROW_MAX {
        bench.lifecycle.ended(bench.now, generation, End::Itself);
        let is_tripped = n > u32::try_from(CRASHES_MAX).unwrap();
        assert_eq!(bench.lifecycle.phase(), if is_tripped { Phase::Tripped } else { Phase::Waiting });
        let ended_at = bench.now;
        generation = bench.pass_to_spawn(&[]);
        assert!(!is_tripped || bench.now - ended_at >= LIMITS.restart_pause_max.mul_f64(1.0 - JITTER_SHARE));
    }
    assert_eq!(bench.lifecycle.phase(), Phase::Tripped, "a try alone is no health");
    bench.lifecycle.ended(bench.now, generation, End::Itself);
    assert_eq!(bench.lifecycle.phase(), Phase::Exhausted);
    assert_eq!(bench.lifecycle.deadline(), None, "nothing to wait for");
    bench.lifecycle.revive();
    assert!(matches!(bench.commands()[..], [Command::Spawn { .. }]));
}

#[test]
fn a_kill_of_one_that_served_is_answered_at_once_however_often() {
    let mut bench = Bench::serving();
    for generation in 1..1_000 {
        assert!(bench.lifecycle.ended(bench.now, generation, End::Killed));
        assert_eq!(bench.commands(), [Command::Spawn { generation: generation + 1 }]);
        bench.ready(generation + 1);
        bench.commands();
    }
    assert!(!bench.lifecycle.is_recovering());
    assert_eq!(bench.lifecycle.restarts_total(), 999);
    // One that is killed before it serves may be killed for what it does.
    bench.lifecycle.ended(bench.now, 1_000, End::Killed);
    let mut generation = bench.pass_to_spawn(&[]);
    for _ in 0..=CRASHES_MAX {
        bench.lifecycle.ended(bench.now, generation, End::Killed);
        generation = bench.pass_to_spawn(&[]);
    }
    assert!(bench.lifecycle.is_tripped());
}

#[test]
fn only_a_minute_of_health_makes_restarts_forgotten() {
    let mut bench = Bench::serving();
    bench.lifecycle.ended(bench.now, 1, End::Itself);
    bench.commands();
    bench.ready(2);
    bench.commands();
    bench.lifecycle.probed(bench.now, 2, true);
    assert!(bench.lifecycle.is_recovering(), "a start and one good probe are no health");
    for _ in 0..HEALTHY_FOR.as_secs() / LIMITS.health_interval.as_secs() {
        let commands = bench.pass(LIMITS.health_interval, &[2]);
        assert_eq!(commands, [Command::Probe { generation: 2 }]);
        bench.lifecycle.probed(bench.now, 2, true);
    }
    assert!(!bench.lifecycle.is_recovering());
}

#[test]
fn a_tripped_endpoint_serves_when_it_can_and_is_well_after_a_minute_of_health() {
    let mut bench = Bench::serving();
    let mut generation = 1;
    while !bench.lifecycle.is_tripped() {
        bench.lifecycle.ended(bench.now, generation, End::Itself);
        generation = bench.pass_to_spawn(&[]);
    }
    bench.ready(generation);
    assert_eq!(bench.lifecycle.phase(), Phase::Serving(generation));
    bench.commands();
    for second in 0..=HEALTHY_FOR.as_secs() {
        assert!(bench.lifecycle.is_tripped(), "after {second} s");
        bench.lifecycle.probed(bench.now, generation, true);
        bench.pass(Duration::from_secs(1), &[generation]);
    }
    assert!(!bench.lifecycle.is_tripped());
    bench.pass(WINDOW, &[generation]);
    bench.lifecycle.ended(bench.now, generation, End::Itself);
    assert_eq!(bench.commands(), [Command::Spawn { generation: generation + 1 }], "at once again");
}

#[test]
fn a_silent_worker_is_killed_and_replaced_within_two_seconds() {
    let mut bench = Bench::serving();
    bench.lifecycle.probed(bench.now, 1, true);
    assert_eq!(bench.pass(Duration::from_secs(3), &[1]), []);
    let commands = bench.pass(STUCK_AFTER, &[]);
    let kill = Command::Kill { generation: 1, because: KillReason::Stuck };
    assert_eq!(commands, [kill, Command::Spawn { generation: 2 }]);
    assert!(!bench.lifecycle.ended(bench.now, 1, End::Itself), "it was counted when it was killed");
    assert_eq!(bench.lifecycle.restarts_total(), 1);
}

#[test]
fn a_worker_that_gets_no_processor_is_given_time_and_not_for_ever() {
    let kill = Command::Kill { generation: 1, because: KillReason::Stuck };
    let mut bench = Bench::serving();
    bench.lifecycle.probed(bench.now, 1, true);
    bench.is_starved = true;
    let (most, rest) = (STUCK_AFTER + EXCUSED_FOR, EXCUSED_MAX.saturating_sub(EXCUSED_FOR));
    let killed = |commands: &[Command]| commands.contains(&kill);
    assert!(!killed(&bench.pass(most, &[])));
    bench.lifecycle.heard(bench.now, 1);
    assert!(!killed(&bench.pass(most, &[])), "all is forgotten when it is heard");
    assert!(killed(&bench.pass(rest, &[])), "nobody waits for ever");
    // It got one, and says nothing all the same.
    let mut bench = Bench::serving();
    bench.is_starved = true;
    assert!(!killed(&bench.pass(STUCK_AFTER + MS, &[])));
    bench.is_starved = false;
    assert!(killed(&bench.pass(EXCUSED_FOR, &[])));
}

/// What it did before it was looked at for the first time is not known.
#[test]
fn a_silent_worker_is_looked_at_twice() {
    let mut bench = Bench::serving();
    bench.lifecycle.probed(bench.now, 1, true);
    let examine = Command::Examine { generation: 1 };
    bench.now += SUSPECT_AFTER;
    assert_eq!(bench.lifecycle.poll(bench.now), Some(examine));
    assert!(!bench.lifecycle.examined(bench.now, 1, true));
    assert_eq!(bench.lifecycle.poll(bench.now), None);
    bench.now += HEARTBEAT_INTERVAL * 2;
    assert_eq!(bench.lifecycle.deadline(), Some(bench.now));
    assert_eq!(bench.lifecycle.poll(bench.now), Some(examine));
    assert!(bench.lifecycle.examined(bench.now, 1, true));
    assert_eq!(bench.lifecycle.poll(bench.now), None);
    bench.now += EXCUSED_FOR;
    assert_eq!(bench.lifecycle.poll(bench.now), Some(examine));
    assert!(!bench.lifecycle.examined(bench.now, 1, true), "that was told");
    assert_eq!(bench.lifecycle.poll(bench.now), None);
    bench.now += EXCUSED_FOR;
    assert_eq!(bench.lifecycle.poll(bench.now), Some(examine));
    assert!(!bench.lifecycle.examined(bench.now, 1, false));
    assert_eq!(bench.lifecycle.poll(bench.now), Some(Command::Kill { generation: 1, because: KillReason::Stuck }));
}

#[test]
fn our_own_absence_kills_nobody() {
    let mut bench = Bench::serving();
    let away = Duration::from_secs(30);
    bench.now += away;
    bench.lifecycle.late(bench.now, away);
    assert!(!bench.commands().iter().any(|command| matches!(command, Command::Kill { .. })));
}

/// We get the processor for a moment every second: silence counts only as far as we could have heard.
#[test]
fn short_absences_are_forgiven_as_far_as_they_went() {
    let mut bench = Bench::serving();
    let (late, tick) = (Duration::from_millis(400), Duration::from_millis(250));
    let mut heard = Duration::ZERO;
    while heard + tick < STUCK_AFTER {
        bench.now += tick + late;
        heard += tick;
        bench.lifecycle.late(bench.now, late);
        let commands = bench.commands();
        assert!(!commands.iter().any(|command| matches!(command, Command::Kill { .. })), "{heard:?}: {commands:?}");
    }
    bench.now += tick;
    assert_eq!(bench.commands()[0], Command::Kill { generation: 1, because: KillReason::Stuck });
}

#[test]
fn a_change_serves_all_the_time() {
    let mut bench = Bench::serving();
    bench.lifecycle.change();
    assert_eq!(bench.commands(), [Command::Spawn { generation: 2 }]);
    assert_eq!(bench.lifecycle.phase(), Phase::Serving(1), "the old one serves until the new one is ready");
    assert!(bench.lifecycle.is_replacing());
    bench.ready(2);
    assert!(!bench.lifecycle.is_replacing());
    let commands = bench.commands();
    assert_eq!(commands, [Command::Drain { generation: 1, within: HANDOVER_WITHIN }, Command::Probe { generation: 2 }]);
    assert_eq!(bench.lifecycle.phase(), Phase::Serving(2));
    let long_answer = HANDOVER_WITHIN / 2;
    let commands = bench.pass(long_answer, &[1, 2]);
    assert!(!commands.iter().any(|c| matches!(c, Command::Kill { .. } | Command::Terminate { .. })), "{commands:?}");
}

#[test]
fn a_change_that_does_not_start_leaves_the_old_one_serving() {
    let mut bench = Bench::serving();
    bench.lifecycle.change();
    bench.commands();
    for generation in 2..10 {
        bench.lifecycle.ended(bench.now, generation, End::Itself);
        assert_eq!(bench.lifecycle.phase(), Phase::Serving(1));
        assert_eq!(bench.pass_to_spawn(&[1]), generation + 1);
    }
}

#[test]
fn a_change_during_a_change_drains_the_one_nobody_needs() {
    let mut bench = Bench::serving();
    bench.lifecycle.change();
    bench.commands();
    bench.lifecycle.change();
    let commands = bench.commands();
    assert_eq!(commands, [Command::Drain { generation: 2, within: HANDOVER_WITHIN }, Command::Spawn { generation: 3 }]);
}

#[test]
fn an_unhealthy_worker_is_replaced_by_hand_over() {
    let mut bench = Bench::serving();
    for failure in 1..=LIMITS.health_failures_max {
        let replaced = bench.lifecycle.probed(bench.now, 1, false);
        assert_eq!(replaced, failure == LIMITS.health_failures_max);
        let commands = bench.pass(LIMITS.health_interval, &[1]);
        if replaced {
            assert!(commands.contains(&Command::Spawn { generation: 2 }), "{commands:?}");
            assert_eq!(bench.lifecycle.phase(), Phase::Serving(1));
        } else {
            assert_eq!(commands, [Command::Probe { generation: 1 }]);
        }
    }
    assert!(!bench.lifecycle.probed(bench.now, 7, false), "a probe of a stranger means nothing");
}

#[test]
fn a_worker_that_cannot_be_started_is_no_crash() {
    let mut bench = Bench::new();
    bench.lifecycle.want(Wanted::Serve);
    bench.commands();
    let retry_at = bench.now + Duration::from_secs(3);
    bench.lifecycle.unspawned(1, retry_at);
    assert_eq!(bench.commands(), []);
    assert_eq!(bench.lifecycle.deadline(), Some(retry_at));
    assert_eq!(bench.pass(Duration::from_secs(3), &[]), [Command::Spawn { generation: 2 }]);
    assert_eq!(bench.lifecycle.restarts_total(), 0);
}

#[test]
fn an_orphan_is_adopted_or_ended_before_anything_is_started() {
    let mut bench = Bench::new();
    bench.lifecycle.orphan(bench.now, 7, false);
    bench.lifecycle.want(Wanted::Serve);
    assert_eq!(bench.commands(), []);
    assert_eq!(bench.lifecycle.phase(), Phase::Starting);
    bench.lifecycle.adopted(bench.now, 7, Fit::Fits);
    assert_eq!(bench.commands(), [Command::Probe { generation: 7 }]);
    assert_eq!(bench.lifecycle.phase(), Phase::Serving(7));

    let mut bench = Bench::new();
    bench.lifecycle.orphan(bench.now, 7, false);
    bench.lifecycle.want(Wanted::Serve);
    assert_eq!(bench.pass(ADOPT_WITHIN, &[]), [Command::Terminate { generation: 7 }]);
    let kill = Command::Kill { generation: 7, because: KillReason::Lingering };
    assert_eq!(bench.pass(TERMINATE_WITHIN, &[]), [kill], "nothing starts beside it");
    bench.lifecycle.ended(bench.now, 7, End::Itself);
    assert_eq!(bench.commands(), [Command::Spawn { generation: 8 }]);
}

#[test]
fn an_orphan_with_other_settings_serves_until_its_successor_does() {
    let mut bench = Bench::new();
    bench.lifecycle.orphan(bench.now, 7, false);
    bench.lifecycle.orphan(bench.now, 6, true);
    bench.lifecycle.want(Wanted::Serve);
    bench.lifecycle.adopted(bench.now, 7, Fit::Outdated);
    assert_eq!(bench.commands()[0], Command::Spawn { generation: 8 });
    assert_eq!(bench.lifecycle.phase(), Phase::Serving(7));
    bench.ready(8);
    assert!(bench.commands().contains(&Command::Drain { generation: 7, within: HANDOVER_WITHIN }));
    assert!(bench.lifecycle.is_leaving(6));
    let commands = bench.pass(HANDOVER_WITHIN / 2, &[7, 8]);
    assert!(!commands.iter().any(|c| matches!(c, Command::Kill { .. } | Command::Terminate { .. })), "{commands:?}");
}

/// Their supervisor was killed when the next worker was ready and the one before had not been told to drain.
#[test]
fn of_two_orphans_that_both_fit_the_newer_goes_on() {
    for order in [[7, 8], [8, 7]] {
        let mut bench = Bench::new();
        bench.lifecycle.orphan(bench.now, 7, false);
        bench.lifecycle.orphan(bench.now, 8, false);
        bench.lifecycle.want(Wanted::Serve);
        let mut commands = Vec::new();
        for generation in order {
            bench.lifecycle.adopted(bench.now, generation, Fit::Fits);
            commands.extend(bench.commands());
        }
        assert!(commands.contains(&Command::Drain { generation: 7, within: HANDOVER_WITHIN }), "{commands:?}");
        assert!(!commands.iter().any(|c| matches!(c, Command::Drain { generation: 8, .. } | Command::Spawn { .. })));
        assert_eq!(bench.lifecycle.phase(), Phase::Serving(8));
    }
}

/// What can happen to an endpoint, for random schedules.
#[derive(Clone, Debug)]
enum Happening {
    Serve,
    Rest,
    Change,
    Ready,
    Crash(u8),
    Kill(u8),
    Hang(u8),
    Probed(bool),
    Late,
    Unspawned,
    Pass(u16),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        1 => Just(Happening::Serve),
        1 => Just(Happening::Rest),
        1 => Just(Happening::Change),
        4 => Just(Happening::Ready),
        2 => any::<u8>().prop_map(Happening::Crash),
        1 => any::<u8>().prop_map(Happening::Kill),
        1 => any::<u8>().prop_map(Happening::Hang),
        1 => any::<bool>().prop_map(Happening::Probed),
        1 => Just(Happening::Late),
        1 => Just(Happening::Unspawned),
        4 => (1_u16..5_000).prop_map(Happening::Pass),
    ]
}

/// Real processes as the lifecycle's commands make them.
#[derive(Default)]
struct World {
    alive: BTreeMap<u64, State>,
    last_spawned: u64,
    spawned_at: Option<Instant>,
    /// Starts since the person or other settings made all forgotten.
    spawns: u32,
    /// Of those, the ones that no crash has to answer for.
    granted: u32,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Starting,
    Serving,
    Leaving,
    Hanging,
}

impl World {
    fn carry_out(&mut self, bench: &mut Bench, commands: Vec<Command>) {
        for command in commands {
            match command {
                Command::Spawn { generation } => {
                    assert!(generation > self.last_spawned, "a number is used once");
                    let since = self.spawned_at.map(|at| bench.now - at);
                    let is_slow =
                        since.is_none_or(|since| since >= LIMITS.restart_pause_max.mul_f64(1.0 - JITTER_SHARE));
                    assert!(
                        is_slow || !bench.lifecycle.is_tripped() || self.granted > 0,
                        "a tripped one is started after {since:?}"
                    );
                    self.last_spawned = generation;
                    self.spawned_at = Some(bench.now);
                    self.spawns += 1;
                    assert!(self.spawns <= self.granted + RESTARTS_IN_ROW_MAX + 1, "{} starts", self.spawns);
                    self.alive.insert(generation, State::Starting);
                }
                Command::Drain { generation, .. } | Command::Terminate { generation } => {
                    if let Some(state) = self.alive.get_mut(&generation).filter(|state| **state != State::Hanging) {
                        *state = State::Leaving;
                    }
                }
                Command::Kill { generation, .. } => {
                    assert!(self.alive.remove(&generation).is_some(), "only the living are killed");
                    bench.lifecycle.ended(bench.now, generation, End::Itself);
                }
                Command::Probe { .. } | Command::Examine { .. } => {}
            }
        }
        // A hanging one accepts nothing, and whoever leaves has been told so before this.
        let n_accepting = self.alive.values().filter(|state| **state == State::Serving).count();
        assert!(n_accepting <= 1, "{n_accepting} accept");
        let n_wanted = self.alive.values().filter(|state| matches!(state, State::Starting | State::Serving)).count();
        assert!(n_wanted <= 2, "one that serves and one that is to follow it");
    }

    fn nth(&self, n: u8) -> Option<u64> {
        self.alive.keys().nth(usize::from(n) % self.alive.len().max(1)).copied()
    }

    fn run(&mut self, bench: &mut Bench, span: Duration) {
        let end = bench.now + span;
        while bench.now < end {
            let alive: Vec<u64> = self
                .alive
                .iter()
                .filter(|(_, state)| **state != State::Hanging)
                .map(|(generation, _)| *generation)
                .collect();
            let commands = bench.pass(HEARTBEAT_INTERVAL.min(end - bench.now), &alive);
            self.carry_out(bench, commands);
        }
    }

    fn settle(&mut self, bench: &mut Bench, span: Duration) {
        let end = bench.now + span;
        while bench.now < end {
            let ready: Vec<u64> = self.alive.iter().filter(|(_, s)| **s == State::Starting).map(|(g, _)| *g).collect();
            for generation in ready {
                self.alive.insert(generation, State::Serving);
                bench.ready(generation);
            }
            let gone: Vec<u64> = self.alive.iter().filter(|(_, s)| **s == State::Leaving).map(|(g, _)| *g).collect();
            for generation in gone {
                self.alive.remove(&generation);
                bench.lifecycle.ended(bench.now, generation, End::Itself);
            }
            self.run(bench, HEARTBEAT_INTERVAL);
        }
    }
}

fn schedules() -> u32 {
    std::env::var("LIFECYCLE_SCHEDULES").ok().and_then(|count| count.parse().ok()).unwrap_or(2_000)
}

proptest! {
    // `LIFECYCLE_SCHEDULES` makes it more; `scripts/reliability.sh` runs a hundred thousand.
    #![proptest_config(ProptestConfig { cases: schedules(), ..ProptestConfig::default() })]
    #[test]
    fn any_schedule_ends_in_what_is_wanted(happenings in prop::collection::vec(happening(), 1..60), serve: bool) {
        let mut bench = Bench::new();
        let mut world = World::default();
        for happening in happenings {
            match happening {
                Happening::Serve => {
                    bench.lifecycle.want(Wanted::Serve);
                    world.granted += 1; // the first one after a rest
                }
                Happening::Rest => bench.lifecycle.want(REST),
                Happening::Change => {
                    bench.lifecycle.change();
                    (world.spawns, world.granted) = (0, 0);
                }
                Happening::Ready => {
                    if let Some((generation, state)) = world.alive.iter_mut().find(|(_, state)| **state == State::Starting) {
                        *state = State::Serving;
                        bench.lifecycle.ready(bench.now, *generation);
                    }
                }
                Happening::Crash(n) => if let Some(generation) = world.nth(n) {
                    world.alive.remove(&generation);
                    bench.lifecycle.ended(bench.now, generation, End::Itself);
                },
                Happening::Kill(n) => if let Some(generation) = world.nth(n) {
                    world.alive.remove(&generation);
                    world.granted += 1;
                    bench.lifecycle.ended(bench.now, generation, End::Killed);
                },
                Happening::Hang(n) => if let Some(generation) = world.nth(n) {
                    world.alive.insert(generation, State::Hanging);
                },
                Happening::Probed(passed) => if let Some(generation) = bench.lifecycle.serving() {
                    bench.lifecycle.probed(bench.now, generation, passed);
                },
                Happening::Late => {
                    bench.now += Duration::from_secs(20);
                    bench.lifecycle.late(bench.now, Duration::from_secs(20));
                }
                Happening::Unspawned => if let Some((&generation, State::Starting)) = world.alive.last_key_value() {
                    world.alive.remove(&generation);
                    world.granted += 1;
                    bench.lifecycle.unspawned(generation, bench.now + Duration::from_secs(3));
                },
                Happening::Pass(ms) => world.run(&mut bench, Duration::from_millis(ms.into())),
            }
            let commands = bench.commands();
            world.carry_out(&mut bench, commands);
        }
        bench.lifecycle.want(if serve { Wanted::Serve } else { REST });
        bench.lifecycle.revive();
        (world.spawns, world.granted) = (0, 1);
        world.settle(&mut bench, Duration::from_mins(2));
        let expected: Vec<u64> = if serve { vec![bench.lifecycle.generation()] } else { vec![] };
        prop_assert_eq!(world.alive.keys().copied().collect::<Vec<_>>(), expected);
        prop_assert_eq!(bench.lifecycle.serving().is_some(), serve);
    }
}
