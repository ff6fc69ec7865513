//! Finding Codex Desktop.
//!
//! There is no official one for Linux: what is installed is a port of somebody's. So the person's own word comes first,
//! then the names and places that the known ports use.

use std::fs;
use std::path::PathBuf;

use codex_control::environment;
use codex_control::paths;

use crate::failure::Failure;
use crate::{Context, program};

/// Name of the program, on the `PATH` and in its folder.
const PROGRAM: &str = "codex-desktop";
/// Names of its entry among the desktop's applications.
const ENTRIES: [&str; 3] = ["codex-desktop.desktop", "codex.desktop", "com.openai.codex.desktop"];
/// Largest entry that is read.
const ENTRY_BYTES_MAX: usize = 64 * 1024;

/// A program with the arguments it is always given.
pub(super) type Command = (PathBuf, Vec<String>);

/// Finds Codex Desktop: what the person names, else the program, else the applications' entry, else its folder.
pub(super) fn find(ctx: &Context) -> Result<Command, Failure> {
    if let Some(name) = ctx.environment.get(environment::DESKTOP) {
        let found = program::find(&ctx.environment, name).map(|path| (path, Vec::new()));
        return found.ok_or_else(|| {
            Failure::new(format!("`{}` names `{}`, which is no program", environment::DESKTOP, name.to_string_lossy()))
                .hint(format!("name the path of Codex Desktop there, or unset `{}`", environment::DESKTOP))
        });
    }
    let on_path = || program::find(&ctx.environment, PROGRAM.as_ref()).map(|path| (path, Vec::new()));
    let in_folder = || {
        let folder = paths::DESKTOP_FOLDER;
        let candidates =
            [format!("{folder}/{PROGRAM}"), format!("{folder}/bin/{PROGRAM}"), format!("{folder}/start.sh")];
        candidates.iter().find_map(|path| program::find(&ctx.environment, path.as_ref())).map(|path| (path, Vec::new()))
    };
    on_path().or_else(|| by_entry(ctx)).or_else(in_folder).ok_or_else(|| {
        Failure::new("Codex Desktop was not found: no `codex-desktop` on the `PATH`, no entry among the applications")
            .hint(format!("name its program in `{}`, or use `codexctl launch cli`", environment::DESKTOP))
    })
}

fn by_entry(ctx: &Context) -> Option<Command> {
    let folders = paths::applications_folders(&ctx.environment);
    let files = folders.iter().flat_map(|folder| ENTRIES.map(|name| folder.join(name)));
    let texts = files.filter_map(|path| fs::read_to_string(path).ok()).filter(|text| text.len() <= ENTRY_BYTES_MAX);
    texts.filter_map(|text| exec_of(&text)).find_map(|words| {
        let (name, arguments) = words.split_first()?;
        Some((program::find(&ctx.environment, name.as_ref())?, arguments.to_vec()))
    })
}

/// The words of the `Exec` line in the main section of an entry, without the places for files and names.
///
/// Source: Desktop Entry Specification 1.5, "The Exec key".
fn exec_of(entry: &str) -> Option<Vec<String>> {
    let mut lines = entry.lines().map(str::trim).skip_while(|line| *line != "[Desktop Entry]").skip(1);
    let line = lines.by_ref().take_while(|line| !line.starts_with('[')).find_map(|line| {
        let (key, value) = line.split_once('=')?;
        (key.trim_end() == "Exec").then(|| value.trim_start().to_owned())
    })?;
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut is_quoted = false;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                is_quoted = !is_quoted;
                word.get_or_insert_default();
            }
            '\\' if is_quoted => word.get_or_insert_default().extend(chars.next()),
            // `%%` is a percent sign, anything else behind one is a place for something that we have not.
            '%' if !is_quoted => {
                if chars.next() == Some('%') {
                    word.get_or_insert_default().push('%');
                }
            }
            c if c.is_whitespace() && !is_quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Some(words).filter(|words| !words.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_tells_how_its_program_is_started() {
        #[track_caller]
        fn check(entry: &str, expected: &[&str]) {
            assert_eq!(exec_of(entry).unwrap_or_default(), expected);
        }
        check("[Desktop Entry]\nName=Codex\nExec=/opt/x/codex --flag %U\n", &["/opt/x/codex", "--flag"]);
        check("[Desktop Entry]\nExec = \"/opt/with space/a\\\"b\" 50%% %f x\n", &["/opt/with space/a\"b", "50%", "x"]);
        check("# c\n[Desktop Action new]\nExec=other\n[Desktop Entry]\nTryExec=t\nExec=codex\n", &["codex"]);
        check("[Desktop Entry]\nName=x\n[Desktop Action new]\nExec=other\n", &[]);
        check("Exec=codex\n", &[]);
        check("[Desktop Entry]\nExec=\n", &[]);
    }
}
