//! Where the key of an endpoint comes from when a person gives one: hidden input, a pipe, a file, a variable, or a
//! program that is asked each time. A key never stands in an argument, an answer or a message.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use codex_control::Secret;
use codex_control::credentials::{self, CREDENTIAL_BYTES_MAX};
use codex_control::files;
use codex_control::report;

use rustix::fs::FlockOperation;

use crate::Context;
use crate::failure::Failure;

/// A key that is read now and stored.
#[derive(Args, Clone, Debug, Default)]
#[group(id = "stored_key", multiple = false)]
pub(crate) struct StoredKeyArguments {
    /// Read the key from FILE now and store it
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Read the key from the environment variable VAR now and store it
    #[arg(long, value_name = "VAR")]
    key_env: Option<String>,
}

/// What the person is asked for.
pub(crate) struct Question<'a> {
    /// Whose key it is.
    pub(crate) provider: &'a str,
    /// The variable in which people usually keep it.
    pub(crate) usual_variable: Option<&'a str>,
}

impl StoredKeyArguments {
    /// Whether a source is named.
    pub(crate) fn is_given(&self) -> bool {
        self.key_file.is_some() || self.key_env.is_some()
    }

    /// Reads the key from the named source, else asks for it, else takes it from the pipe that stdin is.
    pub(crate) fn read(&self, ctx: &Context, question: &Question<'_>) -> Result<Secret, Failure> {
        match (&self.key_file, &self.key_env) {
            (Some(path), _) => from_file(path),
            (None, Some(name)) => from_variable(ctx, name),
            (None, None) if io::stdin().is_terminal() => from_person(ctx, question),
            (None, None) => from_pipe(question),
        }
    }
}

fn from_file(path: &Path) -> Result<Secret, Failure> {
    match credentials::load_file(path) {
        Ok(Some(key)) => Ok(key),
        Ok(None) => Err(Failure::new(format!("the key file `{}` does not exist", path.display()))),
        Err(error) => {
            Err(Failure::new(format!("the key file `{}` cannot be used: {}", path.display(), report::chain(&error))))
        }
    }
}

fn from_variable(ctx: &Context, name: &str) -> Result<Secret, Failure> {
    let value = ctx.environment.get(name).ok_or_else(|| {
        Failure::new(format!("the variable `{name}` is not set")).hint(format!("export `{name}` first"))
    })?;
    let value = value.to_str().ok_or_else(|| Failure::new(format!("the variable `{name}` is not UTF-8 text")))?;
    checked(&Secret::new(value.to_owned()), || format!("the variable `{name}` cannot be used"))
}

fn from_person(ctx: &Context, question: &Question<'_>) -> Result<Secret, Failure> {
    let variable = question.usual_variable.filter(|name| ctx.environment.get(name).is_some());
    let offer = variable.map(|name| format!(", empty for the one in ${name}")).unwrap_or_default();
    let typed = rpassword::prompt_password(format!("key for {} (not shown{offer}): ", question.provider))
        .map(Secret::new)
        .map_err(|error| Failure::new(format!("the key cannot be asked for: {error}")))?;
    match variable {
        Some(name) if typed.expose().trim().is_empty() => from_variable(ctx, name),
        _ => checked(&typed, || "the key cannot be used".to_owned())
            .map_err(|failure| failure.hint(no_key_hint(question))),
    }
}

fn from_pipe(question: &Question<'_>) -> Result<Secret, Failure> {
    let mut text = String::new();
    let limit = CREDENTIAL_BYTES_MAX as u64 + 2; // the key, its line break, and one byte that is too much
    let result = io::stdin().lock().take(limit).read_to_string(&mut text);
    let text = Secret::new(text);
    result.map_err(|error| Failure::new(format!("no key can be read from stdin: {error}")))?;
    checked(&text, || "no key can be taken from stdin".to_owned())
        .map_err(|failure| failure.hint(no_key_hint(question)))
}

fn no_key_hint(question: &Question<'_>) -> String {
    let variable = question.usual_variable.unwrap_or("VAR");
    format!("type or pipe the key, or name its place: `--key-file FILE`, `--key-env {variable}`")
}

fn checked(key: &Secret, what: impl Fn() -> String) -> Result<Secret, Failure> {
    match credentials::validated(key.expose()) {
        Ok(trimmed) => Ok(Secret::new(trimmed.to_owned())),
        Err(error) => Err(Failure::new(format!("{}: {}", what(), report::chain(&error)))),
    }
}

/// Holds the credentials store for one command that changes it; released when dropped.
pub(crate) fn lock_store(ctx: &Context) -> Result<File, Failure> {
    let folder: PathBuf = ctx.paths.credentials_folder();
    let made =
        files::create_private_folder(ctx.paths.config_folder()).and_then(|()| files::create_private_folder(&folder));
    made.map_err(|error| Failure::from_error(&error))?;
    let failed = |reason: String| Failure::new(format!("the credentials store `{}` {reason}", folder.display()));
    let handle = File::open(&folder).map_err(|error| failed(format!("cannot be opened: {error}")))?;
    match rustix::fs::flock(&handle, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(handle),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(failed("is in use by another `codexctl`".to_owned()).hint("try again when that has ended"))
        }
        Err(error) => Err(failed(format!("cannot be locked: {error}"))),
    }
}
