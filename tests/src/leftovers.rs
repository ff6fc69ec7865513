//! Finds what is left of a home: processes started in it, by their environment; sockets and temporary files.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use codex_control::process::Process;

/// A process that was started in a home.
#[derive(Debug)]
pub struct Leftover {
    /// Held, so that the number cannot come to mean another process.
    pub process: Process,
    /// Its command line.
    pub command: String,
}

/// The live processes whose `HOME` is `home`.
///
/// A process keeps the environment it was started with, and everything we start passes `HOME` on, so this also finds
/// what has left its parent, its session or its process group.
pub fn processes(home: &Path) -> Vec<Leftover> {
    let mut wanted = b"HOME=".to_vec();
    wanted.extend_from_slice(home.as_os_str().as_bytes());
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        // Held first and read after: what is read belongs to what is held, or the process is gone.
        let process = Process::open(pid).ok()?;
        // Unreadable: another user's, or gone. Empty: a zombie or a kernel thread.
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        if !environment.split(|byte| *byte == 0).any(|variable| variable == wanted) {
            return None;
        }
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some(Leftover { process, command: String::from_utf8_lossy(&command).replace('\0', " ") })
    })
    .collect()
}

/// Sockets and temporary files below `folder`.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_socket() || entry.path().extension().is_some_and(|extension| extension == "tmp") {
                found.push(entry.path());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::home::DEADLINE;
    use crate::until::until;

    #[test]
    fn a_process_is_found_by_its_home_until_it_ends() {
        let home = tempfile::tempdir().unwrap();
        let mut child = Command::new("cat").env("HOME", home.path()).stdin(Stdio::piped()).spawn().unwrap();
        // Between its old program and its new one a process shows no environment.
        let found =
            until("it to be found", DEADLINE, || Some(processes(home.path())).filter(|found| !found.is_empty()));
        assert_eq!(found.iter().map(|left| left.process.identity().pid).collect::<Vec<_>>(), [child.id()]);
        assert!(!found[0].process.has_ended());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(processes(home.path()).is_empty());
        assert!(found[0].process.has_ended());
    }

    #[test]
    fn sockets_and_temporaries_are_found() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("a")).unwrap();
        for name in ["a/kept.toml", "a/.kept.toml.0000.tmp"] {
            fs::write(home.path().join(name), "").unwrap();
        }
        let _socket = std::os::unix::net::UnixListener::bind(home.path().join("s")).unwrap();
        let mut found = files(home.path());
        found.sort();
        assert_eq!(found, [home.path().join("a/.kept.toml.0000.tmp"), home.path().join("s")]);
    }
}
