//! What Codex writes to stderr: to the person as it comes, and a copy without secrets to a file of bounded size. Codex
//! Desktop's stdout goes the same way, without the copy, where it would else hold the person's terminal.
//!
//! Codex gets a terminal where ours is one (its colours depend on that), else a pipe. A thread passes on what arrives,
//! so that a reader of ours that does not read (`2>&1 | less`) stops Codex's writing, as it would without us, and not
//! our watching.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use codex_control::files::PRIVATE_FILE_MODE;
use codex_control::redact::redact;
use codex_control::session::STDERR_LOG;
use rustix::event::Timespec;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::pty::OpenptFlags;
use rustix::termios::{self, OptionalActions};

use crate::client::readable;

/// The copy is begun anew at this size; the one before is kept beside it.
const LOG_BYTES_MAX: u64 = 1024 * 1024;
/// Bytes passed on at once; a line that is longer is copied in pieces.
const CHUNK_BYTES: usize = 16 * 1024;
/// Silence after Codex and what it left are gone that is taken for the end: only a spared process can still hold the other
/// end. What was written before is there to be read.
const SILENT_FOR: Duration = Duration::from_secs(1);
/// Time for the last bytes in all, of a spared process that goes on writing, or to one who does not read.
const FINISH_WITHIN: Duration = Duration::from_secs(10);

/// Where to, of our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum To {
    Stdout,
    Stderr,
}

impl To {
    /// Of the terminal, if it is one.
    fn terminal_size(self) -> Option<termios::Winsize> {
        match self {
            Self::Stdout => termios::tcgetwinsize(io::stdout()),
            Self::Stderr => termios::tcgetwinsize(io::stderr()),
        }
        .ok()
    }

    fn is_terminal(self) -> bool {
        match self {
            Self::Stdout => io::stdout().is_terminal(),
            Self::Stderr => io::stderr().is_terminal(),
        }
    }

    fn write(self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(bytes)?;
                stdout.flush()
            }
            Self::Stderr => io::stderr().lock().write_all(bytes),
        }
    }
}

/// The thread that passes on.
pub(super) struct Tee {
    finished: Receiver<()>,
    /// Closed when it is to come to an end.
    going_on: OwnedFd,
}

impl Tee {
    /// Begins; what is returned with it becomes what Codex writes to. Without a `folder` there is no copy.
    pub(super) fn open(to: To, folder: Option<&Path>) -> io::Result<(Self, Stdio)> {
        let (source, end) = if to.is_terminal() { terminal(to).or_else(|_| pipe())? } else { pipe()? };
        let (ending, going_on) = pipe()?;
        let (done, finished) = mpsc::channel::<()>();
        let mut log = folder.map(|folder| Log::new(folder.join(STDERR_LOG)));
        // Ends when nobody holds the other end any more, or with this process.
        std::thread::spawn(move || {
            pass_on(File::from(source), &ending, to, log.as_mut());
            // The last line need not have an end; a copy that cannot be written is given up.
            let _ = log.as_mut().map(Log::flush);
            drop(done);
        });
        Ok((Self { finished, going_on }, Stdio::from(end)))
    }

    /// Waits until everything was passed on.
    pub(super) fn finish(self) {
        drop(self.going_on);
        // Nothing is ever sent: it ends when the thread does, or after the time.
        let _ = self.finished.recv_timeout(FINISH_WITHIN);
    }
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?)
}

/// A terminal that passes bytes through as they are, of the same size as ours. It is nobody's controlling terminal.
fn terminal(to: To) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let source = rustix::pty::openpt(flags)?;
    rustix::pty::grantpt(&source)?;
    rustix::pty::unlockpt(&source)?;
    let end = rustix::pty::ioctl_tiocgptpeer(&source, flags)?;
    let mut settings = termios::tcgetattr(&end)?;
    settings.make_raw();
    termios::tcsetattr(&end, OptionalActions::Now, &settings)?;
    if let Some(size) = to.terminal_size() {
        termios::tcsetwinsize(&end, size)?;
    }
    Ok((source, end))
}

/// Passes on until nobody holds the other end any more, or nothing comes after the other end of `ending` was closed.
fn pass_on(mut source: File, ending: &OwnedFd, to: To, mut log: Option<&mut Log>) {
    let silence = Timespec::try_from(SILENT_FOR).ok();
    let mut chunk = [0; CHUNK_BYTES];
    let mut is_ending = false;
    loop {
        let mut watched = [readable(&source), readable(ending)];
        let (n_watched, timeout) = if is_ending { (1, silence.as_ref()) } else { (2, None) };
        match rustix::event::poll(&mut watched[..n_watched], timeout) {
            Ok(0) => return,
            Err(Errno::INTR) => continue,
            Ok(_) => {}
            Err(_) => return, // the descriptors are ours and good
        }
        is_ending |= !watched[1].revents().is_empty();
        if watched[0].revents().is_empty() {
            continue;
        }
        let n = match source.read(&mut chunk) {
            Ok(0) => return,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return, // how a terminal says that nobody holds its other end
        };
        // When our own is closed, with its terminal say, Codex is not to notice: it might end for it.
        let _ = to.write(&chunk[..n]);
        // A copy that cannot be written is given up; what it is for is less than what it is a copy of.
        if log.as_mut().is_some_and(|log| log.append(&chunk[..n]).is_err()) {
            log = None;
        }
    }
}

struct Log {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    /// The line that is not whole yet: only a whole one shows where a secret ends.
    line: Vec<u8>,
}

impl Log {
    fn new(path: PathBuf) -> Self {
        Self { path, file: None, size: 0, line: Vec::new() }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.line.len() >= CHUNK_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return Ok(());
        }
        if self.size > LOG_BYTES_MAX {
            std::fs::rename(&self.path, self.path.with_extension("old.log"))?;
            self.file = None;
        }
        let file = if let Some(file) = &mut self.file {
            file
        } else {
            let mut options = OpenOptions::new();
            self.size = 0;
            self.file.insert(options.append(true).create(true).mode(PRIVATE_FILE_MODE).open(&self.path)?)
        };
        let text = String::from_utf8_lossy(&line);
        let text = redact(&text);
        self.size += text.len() as u64;
        file.write_all(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use codex_control::process::Process;
    use rustix::process::Signal;

    use super::*;

    #[test]
    fn whoever_keeps_the_other_end_open_keeps_nobody_waiting_and_nothing_is_lost() {
        let folder = tempfile::tempdir().expect("a folder");
        let (tee, end) = Tee::open(To::Stderr, Some(folder.path())).expect("there is a pipe");
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 > /dev/null & echo $!; echo one >&2; printf two >&2"]).stderr(end);
        let output = command.output().expect("it starts");
        drop(command); // it holds the other end, too
        let pid = String::from_utf8_lossy(&output.stdout).trim().parse().expect("it says its number");
        let left = Process::open(pid).expect("it lives");
        tee.finish();
        let copy = std::fs::read_to_string(folder.path().join(STDERR_LOG)).expect("there is a copy");
        assert_eq!(copy, "one\ntwo");
        assert!(left.signal(Signal::KILL).expect("it is ours"), "it went on holding it");
    }

    #[test]
    fn the_copy_holds_no_secret_and_loses_no_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(STDERR_LOG);
        let mut log = Log::new(path.clone());
        for piece in ["one sk-proj-abcdef", "ghijklmnop\ntwo \u{1b}[0m\nthr", "ee"] {
            log.append(piece.as_bytes()).expect("it is written");
        }
        log.flush().expect("it is written");
        assert_eq!(std::fs::read_to_string(&path).expect("there is a copy"), "one [redacted]\ntwo \u{1b}[0m\nthree");
        log.append(&vec![b'x'; 3 * CHUNK_BYTES]).expect("it is written");
        assert!(log.line.len() < CHUNK_BYTES, "a line without an end is not kept in memory");
    }
}
