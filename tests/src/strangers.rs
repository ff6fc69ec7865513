//! Processes that look like ours and are none: whatever ends or adopts one of them has been deceived.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use codex_control::process::Process;

/// A process with the name and the arguments of `process`, not started yet. It lasts as long as its stdin, a pipe.
///
/// # Errors
/// When `process` has ended.
pub fn look_alike(process: &Process) -> io::Result<Command> {
    let line = std::fs::read(format!("/proc/{}/cmdline", process.identity().pid))?;
    let words: Vec<String> =
        line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    if process.has_ended() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let mut command = Command::new("sh");
    // What stands behind the script are its own arguments, which it does not look at.
    command.arg0(&words[0]).args(["-c", "read -r line"]).args(words).stdin(Stdio::piped());
    Ok(command)
}
