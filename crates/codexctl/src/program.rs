//! Finding other programs and running them for a moment.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use codex_control::environment::{self, Environment};
use codex_control::process::Process;

use crate::client::{readable, wait_readable};

/// Most bytes kept of what a program prints: a message for a person. A pipe holds as much without a reader.
const OUTPUT_BYTES_MAX: u64 = 64 * 1024;

/// Finds `name` like a shell does: a path as it is, anything else on the `PATH`.
pub(crate) fn find(environment: &Environment, name: &OsStr) -> Option<PathBuf> {
    let path = Path::new(name);
    if path.components().count() > 1 {
        return is_executable(path).then(|| path.to_owned());
    }
    let folders = environment.get(environment::PATH)?;
    std::env::split_paths(folders)
        .filter(|folder| !folder.as_os_str().is_empty())
        .map(|folder| folder.join(name))
        .find(|candidate| is_executable(candidate))
}

/// Finds a program of ours: beside this one, where an installation and a build put it, else on the `PATH`.
pub(crate) fn find_own(environment: &Environment, name: &str) -> Option<PathBuf> {
    let beside = own_path().ok().and_then(|own| Some(own.parent()?.join(name)));
    beside.filter(|path| is_executable(path)).or_else(|| find(environment, name.as_ref()))
}

/// The absolute path of this program.
pub(crate) fn own_path() -> io::Result<PathBuf> {
    std::env::current_exe()
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Runs `command` without input and returns what it printed; kills it when it takes longer than `timeout`.
///
/// # Errors
/// `TimedOut` in that case, or the reason why it could not be started.
pub(crate) fn output_within(command: &mut Command, timeout: Duration) -> io::Result<Output> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    // The child is ours and not yet waited for, so its pid is its own.
    let process = Process::open(child.id())?;
    if !wait_readable(&mut [readable(&process)], timeout) {
        child.kill()?;
        child.wait()?;
        return Err(io::Error::new(io::ErrorKind::TimedOut, "it took too long"));
    }
    let status = child.wait()?;
    let mut output = Output { status, stdout: Vec::new(), stderr: Vec::new() };
    if let Some(stdout) = child.stdout.take() {
        stdout.take(OUTPUT_BYTES_MAX).read_to_end(&mut output.stdout)?;
    }
    if let Some(stderr) = child.stderr.take() {
        stderr.take(OUTPUT_BYTES_MAX).read_to_end(&mut output.stderr)?;
    }
    Ok(output)
}

/// The first line a program wrote to stderr, for a message.
pub(crate) fn first_line(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(path: &Path) -> Environment {
        [("PATH", path.as_os_str())].into_iter().collect()
    }

    #[test]
    fn programs_are_found_like_a_shell_finds_them() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("codex");
        std::fs::write(&program, "#!/bin/sh\n").unwrap();
        let environment = environment(folder.path());
        assert_eq!(find(&environment, OsStr::new("codex")), None, "it may not be executed");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find(&environment, OsStr::new("codex")), Some(program.clone()));
        assert_eq!(find(&Environment::default(), program.as_os_str()), Some(program));
        assert_eq!(find(&Environment::default(), OsStr::new("codex")), None);
        assert_eq!(find(&environment, folder.path().as_os_str()), None, "a folder is no program");
    }

    #[test]
    fn a_program_that_hangs_is_ended() {
        let mut quick = Command::new("sh");
        let output =
            output_within(quick.args(["-c", "echo out; echo err >&2; exit 3"]), Duration::from_secs(20)).unwrap();
        assert_eq!(
            (output.status.code(), &output.stdout[..], first_line(&output.stderr)),
            (Some(3), &b"out\n"[..], "err".into())
        );
        let error = output_within(Command::new("sleep").arg("600"), Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
