//! `codexctl endpoint edit`: the settings file in the person's editor, without a moment in which it is broken.

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;
use std::process::Command;

use codex_control::endpoint;
use codex_control::environment;
use codex_control::files::{self, PRIVATE_FILE_MODE};
use codex_control::report::{self, Hinted};
use codex_control::rpc::DaemonStatus;
use codex_control::settings::{SETTINGS_BYTES_MAX, Settings, SettingsError};
use codex_control::{EndpointId, report::nearest};
use serde_json::json;

use crate::client::CALL_TIMEOUT;
use crate::command::presets;
use crate::failure::Failure;
use crate::{Context, daemon, program};

/// What a new file begins as: every setting at its default, explained.
const TEMPLATE: &str = include_str!("../../../../../config/supervisor.toml");
/// Editors tried when none is named.
const EDITORS: [&str; 4] = ["editor", "nano", "vim", "vi"];
/// Editors known to open a file at `+LINE`.
const EDITORS_WITH_LINE: [&str; 7] = ["editor", "emacs", "micro", "nano", "nvim", "vi", "vim"];

/// Opens the settings in your editor; they take effect only if they are valid
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:
  EDITOR=nano codexctl endpoint edit zai")]
pub(crate) struct Arguments {
    /// The endpoint to open the file at
    endpoint: Option<EndpointId>,
}

pub(crate) fn run(ctx: &Context, arguments: &Arguments) -> Result<(), Failure> {
    let path = ctx.paths.settings();
    let failed = |error: files::FileError| Failure::from_error(&error);
    let before = files::read_bounded(&path, SETTINGS_BYTES_MAX).map_err(failed)?;
    let text = before.clone().unwrap_or_else(|| TEMPLATE.into());
    let line = arguments.endpoint.as_ref().map(|id| line_of(&text, id)).transpose()?;
    let draft = ctx.paths.settings_draft(std::process::id());
    files::create_private_folder(ctx.paths.state_folder()).map_err(failed)?;
    files::write_atomically(&draft, &text, PRIVATE_FILE_MODE).map_err(failed)?;
    let edited = edit(ctx, &path, &draft, line)?;
    if Some(&edited) == before.as_ref() || (before.is_none() && edited == TEMPLATE.as_bytes()) {
        remove(&draft);
        return ctx.output.show(&json!({ "changed": false, "path": path }), || "nothing was changed".to_owned());
    }
    let kept = |failure: Failure| failure.hint(format!("your version is in `{}`", draft.display()));
    if files::read_bounded(&path, SETTINGS_BYTES_MAX).map_err(|error| kept(failed(error)))? != before {
        return Err(kept(Failure::new(format!("`{}` was changed by somebody else meanwhile", path.display()))));
    }
    let written = files::create_private_folder(ctx.paths.config_folder())
        .and_then(|()| files::write_atomically(&path, &edited, PRIVATE_FILE_MODE));
    written.map_err(|error| kept(failed(error)))?;
    remove(&draft);
    warn_unresolved(ctx, &path, &edited);
    let reloaded = reload(ctx)?;
    ctx.output.show(&json!({ "changed": true, "path": path, "reloaded": reloaded }), || {
        if reloaded {
            "the new settings are in force".to_owned()
        } else {
            "the new settings are saved; the supervisor is not running and takes them when it starts".to_owned()
        }
    })
}

/// Lets the person edit `draft` until it is valid, and returns it.
fn edit(ctx: &Context, path: &Path, draft: &Path, mut line: Option<usize>) -> Result<Vec<u8>, Failure> {
    let editor = editor(ctx)?;
    loop {
        open(&editor, draft, line)?;
        let kept = |failure: Failure| failure.hint(format!("your version is in `{}`", draft.display()));
        let bytes = files::read_bounded(draft, SETTINGS_BYTES_MAX)
            .map_err(|error| kept(Failure::from_error(&error)))?
            .ok_or_else(|| Failure::new(format!("the editor removed `{}`; nothing was changed", draft.display())))?;
        // Its messages name the file the person means, not the draft.
        let Err(error) = Settings::parse(path, &bytes) else {
            return Ok(bytes);
        };
        let message = format!("these settings are not valid, and nothing was changed: {}", report::chain(&error));
        if !io::stdin().is_terminal() {
            let hint = error.hint().map(|hint| format!("{hint}; ")).unwrap_or_default();
            return Err(Failure::new(message).hint(format!("{hint}your version is in `{}`", draft.display())));
        }
        ctx.output.warn(&message, error.hint().as_deref());
        if !wants_to_go_on()? {
            return Err(kept(Failure::new("nothing was changed")));
        }
        line = match error {
            SettingsError::Invalid { line, .. } => Some(line),
            SettingsError::File(_) => None,
        };
    }
}

fn wants_to_go_on() -> Result<bool, Failure> {
    let mut answer = String::new();
    let _ = write!(io::stderr(), "open the editor again? [Y/n] "); // without the question there is still the answer
    let read = io::stdin().lock().read_line(&mut answer);
    let n_bytes = read.map_err(|error| Failure::new(format!("no answer can be read: {error}")))?;
    Ok(n_bytes > 0 && !matches!(answer.trim(), "n" | "N" | "no"))
}

/// The person's editor, as a shell would read it: it may have arguments.
fn editor(ctx: &Context) -> Result<OsString, Failure> {
    let named = environment::EDITOR.iter().find_map(|name| ctx.environment.get(name)).map(OsString::from);
    named
        .or_else(|| {
            EDITORS.iter().find(|name| program::find(&ctx.environment, name.as_ref()).is_some()).map(OsString::from)
        })
        .ok_or_else(|| {
            Failure::new("no editor was found").hint("set `EDITOR`, e.g. `EDITOR=nano codexctl endpoint edit`")
        })
}

fn open(editor: &OsString, draft: &Path, line: Option<usize>) -> Result<(), Failure> {
    let mut script = editor.clone();
    script.push(" \"$@\"");
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).arg(editor);
    let name = Path::new(editor).file_name().unwrap_or_default().to_string_lossy();
    if let Some(line) = line
        && EDITORS_WITH_LINE.contains(&name.as_ref())
    {
        command.arg(format!("+{line}"));
    }
    let failed = |what: String| {
        Failure::new(format!("the editor `{}` {what}; nothing was changed", editor.to_string_lossy()))
            .hint(format!("your version is in `{}`; `EDITOR` names another editor", draft.display()))
    };
    let status = command.arg(draft).status().map_err(|error| failed(format!("cannot be started: {error}")))?;
    if status.success() { Ok(()) } else { Err(failed(format!("ended with {status}"))) }
}

/// The line, from 1, at which `id` stands.
fn line_of(text: &[u8], id: &EndpointId) -> Result<usize, Failure> {
    let text = String::from_utf8_lossy(text);
    let ids: Vec<(usize, &str)> = text
        .lines()
        .enumerate()
        .filter_map(|(index, line)| {
            let value = line.trim_start().strip_prefix("id")?.trim_start().strip_prefix('=')?.trim_start();
            let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''))?;
            Some((index + 1, value[1..].split(quote).next()?))
        })
        .collect();
    ids.iter().find(|(_, known)| *known == id.as_str()).map(|(line, _)| *line).ok_or_else(|| {
        let near =
            nearest(id.as_str(), ids.iter().map(|(_, known)| *known)).map(|near| format!("did you mean `{near}`?"));
        Failure::new(format!("there is no endpoint `{id}` in the settings")).hint_if(near)
    })
}

/// An endpoint that cannot run concerns itself alone: it is told, not refused.
fn warn_unresolved(ctx: &Context, path: &Path, bytes: &[u8]) {
    let Ok(settings) = Settings::parse(path, bytes) else {
        return;
    };
    let tables = presets::tables(ctx);
    for endpoint in &settings.endpoint {
        if let Err(error) = endpoint::resolve(&settings, &tables, endpoint) {
            ctx.output.warn(&error.to_string(), error.hint().as_deref());
        }
    }
}

/// Tells a running supervisor; says whether there is one.
pub(crate) fn reload(ctx: &Context) -> Result<bool, Failure> {
    let Some(mut client) = daemon::find(ctx)? else {
        return Ok(false);
    };
    let status: DaemonStatus = client.call("daemon.reload", (), CALL_TIMEOUT)?;
    match status.settings.problem {
        Some(problem) => Err(Failure::new(problem.message).hint_if(problem.hint)),
        None => Ok(true),
    }
}

fn remove(draft: &Path) {
    // A draft that stays is litter in a private folder, and no reason to fail.
    let _ = fs::remove_file(draft);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_found_by_its_line() {
        let text = b"# id = \"no\"\n[[endpoint]]\n  id=\"zai\" # mine\n[[endpoint]]\nid = 'work'\nidle = \"x\"\n";
        let find = |id: &str| line_of(text, &id.parse().unwrap());
        assert_eq!(find("zai"), Ok(3));
        assert_eq!(find("work"), Ok(5));
        let expected = Failure::new("there is no endpoint `wrok` in the settings").hint("did you mean `work`?");
        assert_eq!(find("wrok"), Err(expected));
    }
}
