//! What Codex writes to stderr: to the person as it comes, and a copy to a file of bounded size.
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
use codex_control::session::STDERR_LOG;
use rustix::pipe::PipeFlags;
use rustix::pty::OpenptFlags;
use rustix::termios::{self, OptionalActions};

/// The copy is begun anew at this size; the one before is kept beside it.
const LOG_BYTES_MAX: u64 = 1024 * 1024;
/// Bytes passed on at once.
const CHUNK_BYTES: usize = 16 * 1024;
/// Time for the last bytes after Codex and what it left are gone. Only a spared process can still hold the other end.
const FINISH_WITHIN: Duration = Duration::from_secs(1);

/// The thread that passes on.
pub(super) struct Tee {
    finished: Receiver<()>,
}

impl Tee {
    /// Begins; what is returned with it becomes Codex's stderr. Without a `folder` there is no copy.
    pub(super) fn open(folder: Option<&Path>) -> io::Result<(Self, Stdio)> {
        let (source, end) = if io::stderr().is_terminal() { terminal().or_else(|_| pipe())? } else { pipe()? };
        let (done, finished) = mpsc::channel::<()>();
        let mut log = folder.map(|folder| Log { path: folder.join(STDERR_LOG), file: None, size: 0 });
        // Ends when nobody holds the other end any more, or with this process.
        std::thread::spawn(move || {
            pass_on(File::from(source), log.as_mut());
            drop(done);
        });
        Ok((Self { finished }, Stdio::from(end)))
    }

    /// Waits until everything was passed on.
    pub(super) fn finish(self) {
        // Nothing is ever sent: it ends when the thread does, or after the time.
        let _ = self.finished.recv_timeout(FINISH_WITHIN);
    }
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?)
}

/// A terminal that passes bytes through as they are, of the same size as ours. It is nobody's controlling terminal.
fn terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let source = rustix::pty::openpt(flags)?;
    rustix::pty::grantpt(&source)?;
    rustix::pty::unlockpt(&source)?;
    let end = rustix::pty::ioctl_tiocgptpeer(&source, flags)?;
    let mut settings = termios::tcgetattr(&end)?;
    settings.make_raw();
    termios::tcsetattr(&end, OptionalActions::Now, &settings)?;
    if let Ok(size) = termios::tcgetwinsize(io::stderr()) {
        termios::tcsetwinsize(&end, size)?;
    }
    Ok((source, end))
}

fn pass_on(mut source: File, mut log: Option<&mut Log>) {
    let mut chunk = [0; CHUNK_BYTES];
    loop {
        let n = match source.read(&mut chunk) {
            Ok(0) => return,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return, // how a terminal says that nobody holds its other end
        };
        // When our own stderr is closed, Codex is not to notice: it might end for it.
        let _ = io::stderr().lock().write_all(&chunk[..n]);
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
}

impl Log {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
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
        self.size += bytes.len() as u64;
        file.write_all(bytes)
    }
}
