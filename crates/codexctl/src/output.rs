//! What a command prints: data on stdout, everything else on stderr, each for a person or as JSON.

use std::io::{self, BufRead, Write};

use serde::Serialize;
use serde_json::json;

use crate::failure::{Exit, Failure};
use crate::text::printable;

/// Prints for a person, or for a program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    /// Whether `--json` was given.
    pub(crate) json: bool,
}

impl Output {
    /// Prints the command's result: `value` as JSON, or `text` as it is.
    pub(crate) fn show<T: Serialize + ?Sized>(self, value: &T, text: impl FnOnce() -> String) -> Result<(), Failure> {
        if self.json { json_line(value) } else { plain(&text()) }
    }

    /// Tells about something that did not stop the command.
    pub(crate) fn warn(self, message: &str, hint: Option<&str>) {
        self.told("warning", message, hint, None);
    }

    /// Tells why the command failed, and returns the exit code.
    pub(crate) fn failed(self, failure: &Failure) -> u8 {
        match failure {
            Failure::OutputClosed => 0,
            Failure::Told { exit, message, hint } => {
                self.told("error", message, hint.as_deref(), Some(*exit));
                *exit as u8
            }
        }
    }

    fn told(self, kind: &str, message: &str, hint: Option<&str>, exit: Option<Exit>) {
        if self.json {
            let mut body = json!({ "message": message, "hint": hint });
            if let Some(exit) = exit {
                body["exit"] = json!(exit as u8);
            }
            say(&json!({ kind: body }).to_string());
        } else {
            say(&printable(&format!("{kind}: {message}")));
            if let Some(hint) = hint {
                say(&printable(&format!("  hint: {hint}")));
            }
        }
    }
}

/// Asks the person a question that is answered by yes or no; everything but a yes is a no.
pub(crate) fn ask(question: &str) -> Result<bool, Failure> {
    let mut answer = String::new();
    let _ = write!(io::stderr(), "{question} [y/N] "); // without the question there is still the answer
    let read = io::stdin().lock().read_line(&mut answer);
    read.map_err(|error| Failure::new(format!("no answer can be read: {error}")))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Prints `text`, with a line break at its end if it has none.
pub(crate) fn plain(text: &str) -> Result<(), Failure> {
    let end = if text.ends_with('\n') || text.is_empty() { "" } else { "\n" };
    write(format_args!("{}{end}", printable(text)))
}

/// Prints `value` as one line of JSON.
pub(crate) fn json_line<T: Serialize + ?Sized>(value: &T) -> Result<(), Failure> {
    let line = serde_json::to_string(value).map_err(|error| Failure::from_error(&error))?;
    write(format_args!("{line}\n"))
}

/// Tells what is being done, in one line on stderr.
pub(crate) fn note(text: &str) {
    say(&printable(text));
}

/// Writes to stderr. When even that is closed, there is nobody left to tell.
fn say(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

fn write(text: std::fmt::Arguments<'_>) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_fmt(text).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::OutputClosed),
        Err(error) => Err(Failure::new(format!("the output cannot be written: {error}"))),
    }
}
