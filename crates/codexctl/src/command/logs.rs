//! `codexctl logs [ENDPOINT] [-f]`: files, so that they can be read while nothing runs.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use codex_control::EndpointId;
use codex_control::report::nearest;
use codex_control::settings::Settings;
use rustix::fs::inotify;
use serde_json::json;

use crate::client::{readable, wait_readable};
use crate::failure::Failure;
use crate::{Context, output};

/// Bytes looked at from the end of a file for its last lines. A file is put aside at about a megabyte.
const TAIL_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Bytes read at once.
const READ_BYTES: usize = 64 * 1024;
/// Longest line that is kept together; a longer one is shown in pieces.
const LINE_BYTES_MAX: usize = 256 * 1024;
/// Longest time without a look at a followed file: on some file systems changes are not announced.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Shows the log of the supervisor, or of the worker of an endpoint
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  codexctl logs
  codexctl logs zai -f")]
pub(crate) struct Arguments {
    /// The endpoint; without it, the supervisor
    endpoint: Option<EndpointId>,
    /// Go on with what is written from now on
    #[arg(long, short)]
    follow: bool,
    /// Lines shown at first
    #[arg(long, short = 'n', value_name = "N", default_value_t = 100)]
    lines: usize,
}

pub(crate) fn run(ctx: &Context, arguments: &Arguments) -> Result<(), Failure> {
    let path = match &arguments.endpoint {
        Some(id) => ctx.paths.worker_log(id),
        None => ctx.paths.supervisor_log(),
    };
    let mut log = Log { ctx, path: path.clone(), file: None, begun: Vec::new() };
    if !log.open().map_err(|error| cannot_read(&path, &error))? {
        if let Some(id) = &arguments.endpoint {
            is_known(ctx, id)?;
        }
        if !arguments.follow {
            return Err(Failure::new(format!("there is no log `{}` yet", path.display()))
                .hint("it is written from the first start on: `codexctl start`"));
        }
    }
    // Watched before the first look, so that nothing between them is missed.
    let watch = arguments.follow.then(|| watch(ctx)).transpose()?;
    log.last_lines(arguments.lines)?;
    match watch {
        Some(watch) => loop {
            log.news()?;
            wait(&watch);
        },
        None => log.rest(),
    }
}

/// An endpoint without a log is one that never ran, or one that was mistyped.
fn is_known(ctx: &Context, id: &EndpointId) -> Result<(), Failure> {
    let Ok(settings) = Settings::load(&ctx.paths.settings()) else {
        return Ok(());
    };
    if settings.endpoint(id).is_some() {
        return Ok(());
    }
    let near = nearest(id.as_str(), settings.endpoint.iter().map(|endpoint| endpoint.id.as_str()));
    Err(Failure::new(format!("there is no endpoint `{id}`"))
        .hint_if(near.map(|near| format!("did you mean `{near}`?"))))
}

/// A log that is read while it is written, and put aside while it is read.
struct Log<'a> {
    ctx: &'a Context,
    path: PathBuf,
    file: Option<File>,
    /// A line whose end is not written yet.
    begun: Vec<u8>,
}

impl Log<'_> {
    /// Opens the file; says whether there is one.
    fn open(&mut self) -> io::Result<bool> {
        self.file = match File::open(&self.path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(self.file.is_some())
    }

    /// Shows the last `n_lines` lines there are.
    fn last_lines(&mut self, n_lines: usize) -> Result<(), Failure> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut bytes = Vec::new();
        let read = file
            .metadata()
            .and_then(|metadata| file.seek(SeekFrom::Start(metadata.len().saturating_sub(TAIL_BYTES_MAX))))
            .and_then(|_| file.read_to_end(&mut bytes));
        read.map_err(|error| cannot_read(&self.path, &error))?;
        let is_whole = bytes.last().is_none_or(|byte| *byte == b'\n');
        let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let mut starts = text.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
        let start = match n_lines {
            0 => bytes.len(),
            n => starts.nth(n - 1).unwrap_or(0),
        };
        self.begun = bytes.split_off(start);
        if is_whole { self.rest() } else { self.whole_lines() }
    }

    /// Shows what was written since the last look, across a change of files.
    fn news(&mut self) -> Result<(), Failure> {
        let path = self.path.clone();
        let failed = |error: io::Error| cannot_read(&path, &error);
        loop {
            self.drain().map_err(failed)?;
            self.whole_lines()?;
            let now = match fs::metadata(&self.path) {
                Ok(metadata) => metadata,
                // Between the renaming of the old file and the making of the new one.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(failed(error)),
            };
            let Some(file) = &mut self.file else {
                self.open().map_err(failed)?;
                continue;
            };
            let held = file.metadata().map_err(failed)?;
            if (held.dev(), held.ino()) != (now.dev(), now.ino()) {
                // The last lines of the old one may have been written between the two looks.
                self.drain().map_err(failed)?;
                self.rest()?;
                self.open().map_err(failed)?;
            } else if file.stream_position().map_err(failed)? > held.len() {
                file.seek(SeekFrom::Start(0)).map_err(failed)?;
            } else {
                return Ok(());
            }
        }
    }

    fn drain(&mut self) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut chunk = vec![0; READ_BYTES];
        loop {
            match file.read(&mut chunk)? {
                0 => return Ok(()),
                n => self.begun.extend_from_slice(&chunk[..n]),
            }
            if self.begun.len() > LINE_BYTES_MAX {
                return Ok(());
            }
        }
    }

    /// Shows the lines that are whole, and keeps the rest.
    fn whole_lines(&mut self) -> Result<(), Failure> {
        let end = match self.begun.iter().rposition(|byte| *byte == b'\n') {
            Some(at) => at + 1,
            None if self.begun.len() > LINE_BYTES_MAX => self.begun.len(),
            None => return Ok(()),
        };
        let rest = self.begun.split_off(end);
        let whole = std::mem::replace(&mut self.begun, rest);
        self.show(&whole)
    }

    /// Shows everything that was read.
    fn rest(&mut self) -> Result<(), Failure> {
        let all = std::mem::take(&mut self.begun);
        self.show(&all)
    }

    fn show(&self, bytes: &[u8]) -> Result<(), Failure> {
        let text = String::from_utf8_lossy(bytes);
        if !self.ctx.output.json {
            return output::plain(&text);
        }
        text.lines().try_for_each(|line| output::json_line(&json!({ "line": line })))
    }
}

fn cannot_read(path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("the log `{}` cannot be read: {error}", path.display()))
}

/// Watches the folder of the logs: a followed file is written, put aside, made anew.
fn watch(ctx: &Context) -> Result<OwnedFd, Failure> {
    let folder = ctx.paths.logs_folder();
    codex_control::files::create_private_folder(&folder).map_err(|error| Failure::from_error(&error))?;
    let failed = |error: rustix::io::Errno| Failure::new(format!("`{}` cannot be watched: {error}", folder.display()));
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).map_err(failed)?;
    let events = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&watch, &folder, events).map_err(failed)?;
    Ok(watch)
}

/// Waits until something happens in the folder, and forgets what it was.
fn wait(watch: &OwnedFd) {
    if wait_readable(&mut [readable(watch)], LOOK_INTERVAL) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(watch, &mut buffer);
        while events.next().is_ok() {}
    }
}
