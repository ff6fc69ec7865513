//! What a process has started, however far it has moved away, and how that is ended.
//!
//! A process belongs to a tree if its chain of parents leads to the root *now*, link by link proven with both ends held
//! by their pidfds ([`below`]), or if it stands in a control group of ours ([`in_cgroup`]). Neither its name nor its
//! arguments nor its process group count: a bystander may have the same ones.
//!
//! What leaves its parent (a double fork) goes to the nearest *subreaper* above it or, without one, to init and out of
//! reach. So whoever starts a tree that has to be ended as a whole makes itself its subreaper first, or puts it into a
//! control group.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::process::{self, Identity, Process, Stat};

/// Most processes held at a time: each costs a descriptor. Of a larger tree some are dealt with, then the next.
pub const MEMBERS_MAX: usize = 512;
/// Nested control groups looked into; we make none, and who makes deeper ones hides from himself only.
const CGROUP_DEPTH_MAX: usize = 4;
/// Time between two looks at a tree that is ending, at most: what it starts meanwhile is to be asked, too.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Processes that are left alone, with everything below them, though they stand in the tree: they serve others, too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spared {
    /// Program files, or folders of such.
    pub programs: Vec<PathBuf>,
}

impl Spared {
    /// Whether `process` runs one of them; not if it has ended.
    pub fn covers(&self, process: &Process) -> bool {
        // Unreadable: it has ended, or belongs to somebody whom we could not signal either.
        let Ok(program) = fs::read_link(format!("/proc/{}/exe", process.identity().pid)) else { return false };
        // After an upgrade the file it runs is no longer in its folder; the kernel says so behind its name.
        let text = program.to_string_lossy();
        let program = Path::new(text.strip_suffix(" (deleted)").unwrap_or(&text));
        self.programs.iter().any(|spared| program.starts_with(spared)) && !process.has_ended()
    }
}

/// Who had which parent, a moment ago.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Numbers of all processes by that of their parent.
    children: HashMap<u32, Vec<u32>>,
}

impl Snapshot {
    /// Looks at all processes of the machine.
    pub fn take() -> Self {
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
            if let Some((pid, stat)) = pid.and_then(|pid| Some((pid, Stat::read(pid).ok()?))) {
                children.entry(stat.parent).or_default().push(pid);
            }
        }
        Self { children }
    }

    /// Everything below `root`, parents first, at most [`MEMBERS_MAX`].
    ///
    /// `root` itself is not among them. A process whose parent ended while it was looked at is missed; it stands
    /// elsewhere in the tree a moment later. Zombies are not listed.
    pub fn below(&self, root: &Process, spared: &Spared) -> Vec<Process> {
        let mut found: Vec<Process> = Vec::new();
        let mut n_looked_at = 0;
        loop {
            let parent = match n_looked_at {
                0 => root,
                n if n <= found.len() => &found[n - 1],
                _ => return found,
            };
            let parent_pid = parent.identity().pid;
            let candidates = self.children.get(&parent_pid).map_or(&[][..], Vec::as_slice);
            let proven: Vec<Process> = candidates
                .iter()
                .filter_map(|pid| Process::open(*pid).ok())
                // The child says who its parent is, and that number was the parent's own all the time.
                .filter(|child| child.parent() == Some(parent_pid) && !parent.has_ended())
                .filter(|child| !spared.covers(child))
                .take(MEMBERS_MAX - found.len())
                .collect();
            found.extend(proven);
            n_looked_at += 1;
        }
    }
}

/// [`Snapshot::below`], of now.
pub fn below(root: &Process, spared: &Spared) -> Vec<Process> {
    Snapshot::take().below(root, spared)
}

/// A process and everything in the process group it leads, at most [`MEMBERS_MAX`]; nothing if it has ended, and only
/// itself if it leads none.
pub fn in_group(leader: &Process) -> Vec<Process> {
    let pid = leader.identity().pid;
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut members: Vec<Process> = pids
        .filter(|other| *other == pid || Stat::read(*other).is_ok_and(|stat| stat.group == pid))
        .filter_map(|other| Process::open(other).ok())
        .filter(|other| {
            other.identity() == leader.identity()
                || Stat::read(other.identity().pid).is_ok_and(|stat| stat.group == pid)
        })
        .filter(|other| !other.has_ended())
        .take(MEMBERS_MAX)
        .collect();
    // While its leader lives, the group's number is its own.
    if leader.has_ended() {
        members.clear();
    }
    members
}

/// Everything in the control group at `folder` (below `/sys/fs/cgroup`) and in those below it, at most
/// [`MEMBERS_MAX`]. None if there is no such group any more.
pub fn in_cgroup(folder: &Path, spared: &Spared) -> Vec<Process> {
    let mut found = Vec::new();
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let procs = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        for pid in procs.lines().filter_map(|line| line.parse::<u32>().ok()) {
            let Ok(process) = Process::open(pid) else { continue };
            // Read after it is held: a number that was given to another process meanwhile says another group.
            let stands_there = cgroup_of(pid).is_some_and(|group| folder.ends_with(group));
            if found.len() < MEMBERS_MAX && stands_there && !process.has_ended() && !spared.covers(&process) {
                found.push(process);
            }
        }
        if depth < CGROUP_DEPTH_MAX {
            let inner = fs::read_dir(&folder).into_iter().flatten().flatten();
            let inner = inner.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            folders.extend(inner.map(|entry| (entry.path(), depth + 1)));
        }
    }
    found
}

/// The control group of a process below its mount, without the leading slash (cgroup v2).
fn cgroup_of(pid: u32) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("0::/")).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// What [`end`] has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Processes that were asked to end, by TERM.
    pub n_asked: usize,
    /// Processes that did not, or were started too late to be asked, and were ended by KILL.
    pub n_killed: usize,
    /// Processes that are still there.
    pub left: Vec<Identity>,
}

/// How long a tree may take to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Time from TERM to KILL.
    pub term: Duration,
    /// Time from KILL until it is given up.
    pub kill: Duration,
}

/// Ends what `members` lists, which is asked again until it lists nothing: TERM, after a while KILL, each through the
/// pidfd. Blocks for at most the two spans of `patience`, and a little.
pub fn end(mut members: impl FnMut() -> Vec<Process>, patience: Patience) -> Ended {
    let mut asked: HashSet<Identity> = HashSet::new();
    let mut killed: HashSet<Identity> = HashSet::new();
    // From the first look that finds somebody: however late we come to it, nobody is killed who was not asked.
    let mut kill_at = None;
    let mut was_empty = false;
    let left = loop {
        let present = members();
        if present.is_empty() {
            // A process that changed its parent under our eyes is missed once, not twice.
            if was_empty {
                break Vec::new();
            }
            was_empty = true;
            continue;
        }
        was_empty = false;
        let now = Instant::now();
        let kill_at = *kill_at.get_or_insert(now + patience.term);
        let give_up_at = kill_at + patience.kill;
        if now >= give_up_at {
            break present.iter().map(|process| process.identity().clone()).collect();
        }
        for process in &present {
            let (signal, done) = if now < kill_at { (Signal::TERM, &mut asked) } else { (Signal::KILL, &mut killed) };
            // Not sent: it has ended meanwhile, or is not ours to end (setuid); both show at the next look.
            if !done.contains(process.identity()) && process.signal(signal).unwrap_or(false) {
                done.insert(process.identity().clone());
            }
        }
        let next = if now < kill_at { kill_at } else { give_up_at };
        process::any_ends_within(&present, LOOK_AGAIN.min(next.saturating_duration_since(now)));
    };
    Ended { n_asked: asked.len(), n_killed: killed.len(), left }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};
    use std::thread;

    use super::*;

    /// Longest wait for what comes in the end.
    const DEADLINE: Duration = Duration::from_mins(1);
    /// For those who would wait for ever.
    const SHORT: Patience = Patience { term: Duration::from_millis(200), kill: DEADLINE };
    /// For those who end when they are asked, however slow the machine is.
    const LONG: Patience = Patience { term: DEADLINE, kill: DEADLINE };

    /// A shell that has started what `script` says once it has printed a line.
    fn started(script: &str) -> (Child, Process) {
        let mut child = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        (child, process)
    }

    #[test]
    fn children_and_their_children_are_found_and_bystanders_are_not() {
        let mut bystander = Command::new("sleep").arg("1000").spawn().unwrap();
        let (mut shell, root) = started("(sleep 1000 & sleep 1000 & echo; wait) & wait");
        let found = below(&root, &Spared::default());
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].parent(), Some(shell.id()));
        assert!(found[1..].iter().all(|child| child.parent() == Some(found[0].identity().pid)));
        let ended = end(|| below(&root, &Spared::default()), LONG);
        assert_eq!((ended.n_killed, ended.left), (0, Vec::new()));
        shell.wait().unwrap();
        assert!(bystander.try_wait().unwrap().is_none(), "it was nobody's child there");
        bystander.kill().unwrap();
        bystander.wait().unwrap();
    }

    #[test]
    fn who_ignores_term_is_killed() {
        let (mut shell, root) = started("(trap '' TERM; sleep 1000 & echo; wait) & wait");
        // Busy for longer than the patience before it has found anybody.
        let mut is_late = true;
        let members = || {
            let begun_at = Instant::now();
            while is_late && begun_at.elapsed() < SHORT.term {
                thread::park_timeout(SHORT.term);
            }
            is_late = false;
            below(&root, &Spared::default())
        };
        let ended = end(members, SHORT);
        assert_eq!(ended, Ended { n_asked: 2, n_killed: 2, left: Vec::new() });
        shell.wait().unwrap();
    }

    #[test]
    fn spared_programs_are_left_with_what_is_below_them() {
        let (mut shell, root) = started("sleep 1000 & sh -c 'sleep 1000 & echo; wait' & wait");
        let shell_program = fs::canonicalize("/proc/self/exe").unwrap();
        assert_eq!(below(&root, &Spared { programs: vec![shell_program] }).len(), 3, "not this one");
        let sh = fs::read_link(format!("/proc/{}/exe", shell.id())).unwrap();
        let spared = Spared { programs: vec![sh] };
        // A child is the shell's program, too, until it has become its own.
        let deadline = Instant::now() + DEADLINE;
        while below(&root, &spared).len() != 1 {
            assert!(Instant::now() < deadline, "{:?}", below(&root, &spared));
            thread::yield_now();
        }
        assert_eq!(end(|| below(&root, &spared), LONG).n_asked, 1);
        end(|| below(&root, &Spared::default()), LONG);
        shell.wait().unwrap();
    }

    #[test]
    fn a_control_group_that_is_gone_has_nobody() {
        assert!(in_cgroup(Path::new("/sys/fs/cgroup/nothing.scope"), &Spared::default()).is_empty());
        assert!(in_cgroup(Path::new("/nowhere"), &Spared::default()).is_empty());
    }
}
