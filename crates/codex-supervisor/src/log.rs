//! Log files that cannot grow without end.
//!
//! The supervisor's own file is put aside when the next line would not fit any more. A worker writes to its file
//! through the descriptor it was started with, so that file cannot be renamed away under it: it is copied aside and
//! emptied instead. What is written between the two steps is lost, a line or two at worst.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use codex_control::files::PRIVATE_FILE_MODE;
use codex_control::settings::DaemonSettings;

/// Old files looked for beyond the number kept, after that number was lowered; the settings allow 100.
const FILES_LOOKED_FOR_MAX: u32 = 100;

/// How large a log may grow and how many old ones are kept; shared, since settings change while logs are open.
#[derive(Debug, Default)]
pub(crate) struct LogLimits {
    bytes_max: AtomicU64,
    files_max: AtomicU32,
}

impl LogLimits {
    /// Takes the limits over from the settings.
    pub(crate) fn set(&self, settings: &DaemonSettings) {
        self.bytes_max.store(settings.log_bytes_max, Ordering::Relaxed);
        self.files_max.store(settings.log_files_max, Ordering::Relaxed);
    }

    fn bytes_max(&self) -> u64 {
        self.bytes_max.load(Ordering::Relaxed)
    }

    fn files_max(&self) -> u32 {
        self.files_max.load(Ordering::Relaxed)
    }
}

/// The supervisor's own log. Each `write` is one whole line.
#[derive(Debug)]
pub(crate) struct RotatingFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    limits: Arc<LogLimits>,
}

impl RotatingFile {
    /// Opens `path` for appending, making it if needed.
    pub(crate) fn open(path: &Path, limits: Arc<LogLimits>) -> io::Result<Self> {
        let file = open_to_append(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, bytes, limits })
    }

    fn rotate(&mut self) -> io::Result<()> {
        make_room(&self.path, self.limits.files_max())?;
        match self.limits.files_max() {
            0 => fs::remove_file(&self.path)?,
            _ => fs::rename(&self.path, numbered(&self.path, 1))?,
        }
        self.file = open_to_append(&self.path)?;
        self.bytes = 0;
        Ok(())
    }
}

impl Write for RotatingFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let grown = self.bytes + line.len() as u64;
        if self.bytes > 0 && grown > self.limits.bytes_max() && self.rotate().is_err() {
            // The disk may be full or the folder gone: a log that is too long is better than none. The next try comes
            // after another full length, not with the next line.
            self.bytes = 0;
        }
        let written = self.file.write(line)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Opens a log for appending, private, making it if needed.
pub(crate) fn open_to_append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(PRIVATE_FILE_MODE).open(path)
}

/// Copies the log at `path` aside and empties it, if it has reached its limit; somebody else may have it open.
pub(crate) fn rotate_shared(path: &Path, limits: &LogLimits) -> io::Result<()> {
    let bytes_max = limits.bytes_max();
    let length = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if length < bytes_max {
        return Ok(());
    }
    make_room(path, limits.files_max())?;
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    if limits.files_max() > 0 {
        // A program gone wild may have written far more since the last look: its latest lines are what tells.
        file.seek(SeekFrom::Start(length.saturating_sub(bytes_max)))?;
        let mut aside = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(PRIVATE_FILE_MODE)
            .open(numbered(path, 1))?;
        io::copy(&mut Read::by_ref(&mut file).take(bytes_max), &mut aside)?;
    }
    file.set_len(0)
}

/// Moves `log.1` to `log.2` and so on, so that `log.1` is free; removes those beyond `files_max`.
fn make_room(path: &Path, files_max: u32) -> io::Result<()> {
    for number in files_max.max(1)..=FILES_LOOKED_FOR_MAX {
        match fs::remove_file(numbered(path, number)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && number > files_max => break,
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    for number in (1..files_max).rev() {
        match fs::rename(numbered(path, number), numbered(path, number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(bytes_max: u64, files_max: u32) -> Arc<LogLimits> {
        let limits = LogLimits::default();
        limits.set(&DaemonSettings { log_bytes_max: bytes_max, log_files_max: files_max, ..DaemonSettings::default() });
        Arc::new(limits)
    }

    fn content(folder: &Path) -> Vec<(String, String)> {
        let mut content: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&path).unwrap()))
            .collect();
        content.sort();
        content
    }

    fn named(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn the_oldest_file_goes() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = RotatingFile::open(&folder.path().join("log"), limits(8, 2)).unwrap();
        for line in ["one\n", "two\n", "three\n", "four\n", "five\n"] {
            log.write_all(line.as_bytes()).unwrap();
        }
        let expected = [("log", "five\n"), ("log.1", "four\n"), ("log.2", "three\n")];
        assert_eq!(content(folder.path()), named(&expected));
        drop(log);
        let mut reopened = RotatingFile::open(&folder.path().join("log"), limits(8, 2)).unwrap();
        reopened.write_all(b"six\n").unwrap();
        assert_eq!(content(folder.path())[0].1, "six\n", "what stands in the file already counts");
    }

    #[test]
    fn fewer_old_files_can_be_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let limits = limits(4, 3);
        let mut log = RotatingFile::open(&folder.path().join("log"), limits.clone()).unwrap();
        for line in ["1111", "2222", "3333", "4444"] {
            log.write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(content(folder.path()).len(), 4);
        limits.set(&DaemonSettings { log_bytes_max: 4, log_files_max: 0, ..DaemonSettings::default() });
        log.write_all(b"5555").unwrap();
        assert_eq!(content(folder.path()), named(&[("log", "5555")]));
    }

    #[test]
    fn a_log_that_cannot_be_put_aside_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("log.1")).unwrap();
        let path = folder.path().join("log");
        let mut log = RotatingFile::open(&path, limits(4, 1)).unwrap();
        log.write_all(b"1111").unwrap();
        log.write_all(b"2222").unwrap();
        assert_eq!(fs::read_to_string(path).unwrap(), "11112222");
    }

    #[test]
    fn a_shared_log_is_emptied_under_its_writer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let limits = limits(8, 2);
        rotate_shared(&path, &limits).unwrap();
        let mut writer = open_to_append(&path).unwrap();
        writer.write_all(b"0123456789").unwrap();
        rotate_shared(&path, &limits).unwrap();
        writer.write_all(b"next").unwrap();
        rotate_shared(&path, &limits).unwrap();
        assert_eq!(
            content(folder.path()),
            named(&[("log", "next"), ("log.1", "23456789")]),
            "the latest bytes are kept"
        );
    }
}
