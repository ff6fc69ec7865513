//! Reads what another program appends to its log files, line by line.
//!
//! The files are theirs: they may not be there yet, grow as they like, be renamed and begun anew, or be cut. Nothing is
//! kept in memory but the beginning of an unfinished line; what has not been read yet waits in the file. When more waits
//! than [`BACKLOG_BYTES_MAX`], the oldest is passed over and its lines are counted.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use codex_control::files;
use codex_control::session::SessionId;
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tracing::warn;

use crate::event::{Event, Queue};

/// Longest line that is looked at; the rest of a longer one is passed over.
const LINE_BYTES_MAX: usize = 8 * 1024;
/// Bytes of a file that may wait to be read.
const BACKLOG_BYTES_MAX: u64 = 1024 * 1024;
/// Bytes read from a file at one look, so that nobody else has to wait long.
const LOOK_BYTES_MAX: u64 = 256 * 1024;
/// Bytes read at once.
const CHUNK_BYTES: usize = 16 * 1024;

/// The logs of one session.
pub(crate) struct Follower {
    files: Vec<Followed>,
    /// Whether the owner has been told that there is something, and has not looked since.
    told: Arc<AtomicBool>,
    /// Without it, the regular look finds what was written.
    _watcher: Option<RecommendedWatcher>,
    n_lines: u64,
    n_lines_lost: u64,
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follower").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Follower {
    /// Follows `paths` for `session`, and tells `queue` when there is something to read. Files that are there already
    /// are followed from their beginning if `from_start`, else from their end.
    pub(crate) fn start(session: &SessionId, paths: &[PathBuf], from_start: bool, queue: Queue) -> Self {
        let told = Arc::new(AtomicBool::new(false));
        let watcher = watch(session, paths, told.clone(), queue)
            .inspect_err(|error| warn!(%session, %error, "logs cannot be watched, they are looked at now and then"))
            .ok();
        let files = paths.iter().map(|path| Followed::new(path.clone(), from_start)).collect();
        Self { files, told, _watcher: watcher, n_lines: 0, n_lines_lost: 0 }
    }

    /// Gives the lines that were written since, whole, without their ends, to `each`. Says whether more wait.
    pub(crate) fn look(&mut self, mut each: impl FnMut(&str)) -> bool {
        // Before anything is read: what is written from here on is told again.
        self.told.store(false, Ordering::Release);
        let mut more = false;
        for file in &mut self.files {
            let (mut n, mut lost) = (0, 0);
            let looked = file.look(&mut lost, |line| {
                n += 1;
                each(&String::from_utf8_lossy(line));
            });
            self.n_lines += n;
            self.n_lines_lost += lost;
            // A file that cannot be read at the moment is tried again at the next look.
            more |= looked.unwrap_or(false);
        }
        more
    }

    /// Lines given so far.
    pub(crate) fn n_lines(&self) -> u64 {
        self.n_lines
    }

    /// Lines passed over so far.
    pub(crate) fn n_lines_lost(&self) -> u64 {
        self.n_lines_lost
    }

    /// Empties those files in `folder` that are longer than `bytes_max` and have been read. Whoever writes them appends.
    pub(crate) fn trim(&mut self, folder: &Path, bytes_max: u64) {
        for file in self.files.iter_mut().filter(|file| file.path.starts_with(folder)) {
            if file.offset <= bytes_max {
                continue;
            }
            match OpenOptions::new().write(true).open(&file.path).and_then(|opened| opened.set_len(0)) {
                Ok(()) => file.begin_anew(),
                Err(error) => warn!(path = %file.path.display(), %error, "a log cannot be emptied"),
            }
        }
    }
}

fn watch(
    session: &SessionId,
    paths: &[PathBuf],
    told: Arc<AtomicBool>,
    queue: Queue,
) -> notify::Result<RecommendedWatcher> {
    let followed = paths.to_vec();
    let session = session.clone();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let concerns = |event: &notify::Event| {
            let is_written = !matches!(event.kind, EventKind::Access(_));
            event.need_rescan() || (is_written && event.paths.iter().any(|path| followed.contains(path)))
        };
        if event.is_ok_and(|event| concerns(&event)) && !told.swap(true, Ordering::AcqRel) {
            // A full queue loses this one; the regular look finds what was written.
            if queue.try_send(Event::SessionWrote { session: session.clone() }).is_err() {
                told.store(false, Ordering::Release);
            }
        }
    })?;
    let mut folders: Vec<&Path> = paths.iter().map(|path| files::folder_of(path)).collect();
    folders.dedup();
    for folder in folders {
        // The folder, not the file: that may be another one in a moment.
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}

#[derive(Debug)]
struct Followed {
    path: PathBuf,
    file: Option<File>,
    offset: u64,
    from_start: bool,
    /// The beginning of a line whose end has not been written yet.
    begun: Vec<u8>,
    /// Whether the line being read is too long, or began before us, and its rest is passed over.
    passes_over: bool,
}

impl Followed {
    fn new(path: PathBuf, from_start: bool) -> Self {
        let mut followed = Self { path, file: None, offset: 0, from_start, begun: Vec::new(), passes_over: false };
        if !from_start {
            // Its end is where it ends now, not where it ends at the first look.
            let _ = followed.open();
            followed.from_start = true;
        }
        followed
    }

    /// Reads on; says whether more waits.
    fn look(&mut self, n_lost: &mut u64, mut each: impl FnMut(&[u8])) -> io::Result<bool> {
        let mut left = LOOK_BYTES_MAX;
        loop {
            if !self.open()? {
                return Ok(false);
            }
            let Some(file) = &self.file else { return Ok(false) };
            let length = file.metadata()?.len();
            if length < self.offset {
                self.begin_anew();
            }
            if length - self.offset > BACKLOG_BYTES_MAX {
                *n_lost += self.pass_over(length - LOOK_BYTES_MAX)?;
            }
            let mut chunk = [0; CHUNK_BYTES];
            loop {
                let Some(file) = &self.file else { return Ok(false) };
                let n = file.read_at(&mut chunk, self.offset)?;
                if n == 0 {
                    break;
                }
                self.offset += n as u64;
                self.split(&chunk[..n], &mut each);
                left = left.saturating_sub(n as u64);
                if left == 0 {
                    return Ok(true);
                }
            }
            if self.is_current() {
                return Ok(false);
            }
            // Put aside and read to its end: what it ended with is a line, and the next file is another one.
            if !self.begun.is_empty() {
                each(&std::mem::take(&mut self.begun));
            }
            self.file = None;
        }
    }

    /// Opens the file if it is not; says whether there is one.
    fn open(&mut self) -> io::Result<bool> {
        if self.file.is_some() {
            return Ok(true);
        }
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        self.offset = if self.from_start { 0 } else { file.metadata()?.len() };
        self.passes_over = false;
        self.file = Some(file);
        Ok(true)
    }

    /// The file was cut.
    fn begin_anew(&mut self) {
        self.offset = 0;
        self.begun.clear();
        self.passes_over = false;
    }

    /// Whether the path still leads to the open file.
    fn is_current(&self) -> bool {
        let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        let open = self.file.as_ref().and_then(|file| file.metadata().ok()).map(identity);
        let there = std::fs::metadata(&self.path).ok().map(identity);
        open == there
    }

    /// Goes on at `offset`, and at the next line there; returns the number of lines passed over.
    fn pass_over(&mut self, offset: u64) -> io::Result<u64> {
        let mut n_lost = 0;
        let mut chunk = [0; CHUNK_BYTES];
        while self.offset < offset {
            let Some(file) = &self.file else { break };
            let wanted = usize::try_from(offset - self.offset).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));
            let n = file.read_at(&mut chunk[..wanted], self.offset)?;
            if n == 0 {
                break;
            }
            n_lost += memchr::memchr_iter(b'\n', &chunk[..n]).count() as u64;
            self.offset += n as u64;
        }
        self.begun.clear();
        self.passes_over = true; // most likely in the middle of a line, which is lost as well
        Ok(n_lost + 1)
    }

    fn split(&mut self, mut bytes: &[u8], each: &mut impl FnMut(&[u8])) {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            self.take(&bytes[..end]);
            bytes = &bytes[end + 1..];
            let line = std::mem::take(&mut self.begun);
            if !std::mem::take(&mut self.passes_over) || !line.is_empty() {
                let line = line.strip_suffix(b"\r").unwrap_or(&line);
                if !line.is_empty() {
                    each(line);
                }
            }
        }
        self.take(bytes);
    }

    /// Adds to the line that has begun, as long as it is not too long.
    fn take(&mut self, bytes: &[u8]) {
        if self.passes_over {
            return;
        }
        let room = LINE_BYTES_MAX - self.begun.len();
        self.begun.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.passes_over = bytes.len() > room;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use tokio::sync::mpsc;

    use super::*;

    /// Lines of a flood: more than may wait.
    const N_FLOOD: usize = 200_000;

    struct Log {
        folder: tempfile::TempDir,
        follower: Follower,
        events: mpsc::Receiver<Event>,
    }

    impl Log {
        fn path(&self) -> PathBuf {
            self.folder.path().join("a.log")
        }

        fn append(&self, text: &str) {
            let mut file = OpenOptions::new().append(true).create(true).open(self.path()).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }

        fn lines(&mut self) -> Vec<String> {
            let mut lines = Vec::new();
            while self.follower.look(|line| lines.push(line.to_owned())) {}
            lines
        }
    }

    fn log(before: Option<&str>, from_start: bool) -> Log {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log");
        if let Some(text) = before {
            std::fs::write(&path, text).unwrap();
        }
        let (queue, events) = mpsc::channel(16);
        let follower = Follower::start(&"cli-1".parse().unwrap(), &[path], from_start, queue);
        Log { folder, follower, events }
    }

    #[test]
    fn lines_are_given_once_and_whole() {
        let mut log = log(None, true);
        assert_eq!(log.lines(), [""; 0]);
        log.append("one\ntw");
        assert_eq!(log.lines(), ["one"]);
        log.append("o\r\n\nthr\u{e4}\u{e4}\n");
        assert_eq!(log.lines(), ["two", "thr\u{e4}\u{e4}"]);
        std::fs::write(log.path(), b"\xff\n").unwrap();
        assert_eq!(log.lines(), ["\u{fffd}"], "cut and begun anew");
        assert_eq!(log.follower.n_lines(), 4);
    }

    #[test]
    fn what_was_there_before_is_given_if_asked_for() {
        assert_eq!(log(Some("old\n"), true).lines(), ["old"]);
        let mut log = log(Some("old\n"), false);
        log.append("new\n");
        assert_eq!(log.lines(), ["new"]);
    }

    #[test]
    fn a_file_put_aside_is_read_to_its_end_and_then_the_next_one() {
        let mut log = log(Some("one\n"), true);
        assert_eq!(log.lines(), ["one"]);
        log.append("two\nunfinished");
        std::fs::rename(log.path(), log.folder.path().join("a.log.1")).unwrap();
        assert_eq!(log.lines(), ["two", "unfinished"], "and there is no next one yet");
        log.append("three\n");
        assert_eq!(log.lines(), ["three"]);
        std::fs::remove_file(log.path()).unwrap();
        log.append("four\n");
        assert_eq!(log.lines(), ["four"]);
    }

    #[test]
    fn a_long_line_is_cut_and_a_flood_loses_its_oldest_lines() {
        let mut log = log(None, true);
        log.append(&format!("{}\nshort\n", "x".repeat(3 * LINE_BYTES_MAX)));
        let lines = log.lines();
        assert_eq!((lines[0].len(), &*lines[1]), (LINE_BYTES_MAX, "short"));
        log.append(&"a line\n".repeat(N_FLOOD));
        let lines = log.lines();
        assert!(lines.iter().all(|line| line == "a line"));
        assert_eq!(lines.len() as u64 + log.follower.n_lines_lost(), N_FLOOD as u64);
        assert!(log.follower.n_lines_lost() > 0);
    }

    #[test]
    fn a_long_log_is_emptied_and_followed_on() {
        let mut log = log(None, true);
        log.append("one\ntwo\n");
        assert_eq!(log.lines().len(), 2);
        log.follower.trim(Path::new("/elsewhere"), 4);
        log.follower.trim(log.folder.path(), 8);
        assert_eq!(std::fs::metadata(log.path()).unwrap().len(), 8, "not longer than that");
        log.follower.trim(log.folder.path(), 4);
        log.append("three\n");
        assert_eq!(log.lines(), ["three"]);
    }

    #[tokio::test]
    async fn the_owner_is_told_once_until_it_looks() {
        let mut log = log(None, true);
        for _ in 0..2 {
            log.append("one\n");
            let told = tokio::time::timeout(Duration::from_secs(20), log.events.recv()).await.unwrap();
            assert!(matches!(told, Some(Event::SessionWrote { .. })));
            log.append("two\n");
            // A reader of ours is no writer.
            log.lines();
        }
        assert!(log.events.len() <= 2);
    }
}
