//! `codexctl import [FILE]`: a profile of ours, or what the original launcher has left.
//!
//! What would change is shown first. Then keys, overrides of tables and settings are written, all or none; nothing of
//! the file that was read, or of the original launcher, is ever changed.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use codex_control::files::{self, PRIVATE_FILE_MODE};
use codex_control::settings::edit::{self, Edit};
use codex_control::settings::{EndpointSettings, SETTINGS_BYTES_MAX, Settings};
use codex_control::tables::TABLE_BYTES_MAX;
use codex_control::{EndpointId, Secret, credentials};
use serde::Serialize;
use serde_json::{Value, json};

use crate::command::endpoint::edit::reload;
use crate::command::presets;
use crate::failure::Failure;
use crate::key;
use crate::original::{self, LeftOut};
use crate::profile::{self, Profile};
use crate::{Context, output, text};

/// Largest file that is read.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Most files of the original's cache that are looked at.
const LEFTOVERS_MAX: usize = 10_000;

/// Takes over a profile written by `codexctl export`, or the original launcher's endpoints
///
/// Without FILE it reads the original launcher's `~/.codex/endpoints.json`. What would change is shown first. Keys go
/// into the credentials store (0600) and are never shown; what is read is not changed.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  codexctl import --dry-run        # what the original launcher has, and what would become of it
  codexctl import --yes
  codexctl import my-profile.json --replace")]
pub(crate) struct Arguments {
    /// A profile, or an `endpoints.json`
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Only show what would change
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Replace what is here already and differs; without it, that is kept
    #[arg(long)]
    replace: bool,
}

/// What is to be taken over.
#[derive(Default)]
struct Incoming {
    endpoints: Vec<original::Found>,
    default: Option<EndpointId>,
    /// Settings of the supervisor, where they come from the original.
    monitoring: Vec<original::Setting>,
    /// The whole settings, where they come from a profile.
    settings: Option<String>,
    /// Overrides of tables, by the table's name.
    tables: Vec<(String, String)>,
    left_out: Vec<LeftOut>,
}

/// What becomes of one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Fate {
    New,
    Same,
    Replaced,
    Kept,
}

impl Fate {
    fn of(is_here: bool, is_same: bool, replace: bool) -> Self {
        match (is_here, is_same, replace) {
            (false, ..) => Self::New,
            (true, true, _) => Self::Same,
            (true, false, true) => Self::Replaced,
            (true, false, false) => Self::Kept,
        }
    }

    fn is_written(self) -> bool {
        matches!(self, Self::New | Self::Replaced)
    }

    fn words(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Same => "here already",
            Self::Replaced => "replaces the one here",
            Self::Kept => "the one here differs and is kept",
        }
    }
}

/// Everything that will be written, worked out before anything is.
struct Plan {
    before: Option<Vec<u8>>,
    settings: String,
    endpoints: Vec<Fate>,
    tables: Vec<Fate>,
    keys: Vec<(EndpointId, Secret)>,
    notes: Vec<String>,
}

pub(crate) fn run(ctx: &Context, arguments: &Arguments) -> Result<(), Failure> {
    let path = arguments.file.clone().unwrap_or_else(|| ctx.paths.original_endpoints());
    let mut incoming = read(ctx, &path)?;
    if arguments.file.is_none() {
        incoming.left_out.extend(leftovers(ctx));
    }
    let may_ask = io::stdin().is_terminal() && !ctx.output.json && !arguments.yes && !arguments.dry_run;
    let mut plan = plan(ctx, &incoming, arguments.replace)?;
    if !ctx.output.json {
        output::plain(&shown(&path, &incoming, &plan))?;
    }
    let differing = plan.endpoints.iter().chain(&plan.tables).filter(|fate| **fate == Fate::Kept).count();
    if differing > 0 && may_ask && output::ask(&format!("replace the {differing} that differ?"))? {
        plan = self::plan(ctx, &incoming, true)?;
    }
    let is_change = plan.before.as_deref().unwrap_or_default() != plan.settings.as_bytes()
        || plan.tables.iter().any(|fate| fate.is_written())
        || !plan.keys.is_empty();
    let told = |imported: bool| {
        let endpoints = incoming.endpoints.iter().zip(&plan.endpoints).map(|(found, fate)| {
            let takes_key = plan.keys.iter().any(|(id, _)| *id == found.settings.id);
            json!({ "name": found.name, "id": found.settings.id, "fate": fate, "takes_key": takes_key, "notes": found.notes })
        });
        let tables =
            incoming.tables.iter().zip(&plan.tables).map(|((name, _), fate)| json!({ "table": name, "fate": fate }));
        let left_out = incoming.left_out.iter().map(|left| json!({ "name": left.name, "reason": left.reason }));
        json!({
            "file": path, "imported": imported, "endpoints": endpoints.collect::<Vec<_>>(),
            "tables": tables.collect::<Vec<_>>(), "left_out": left_out.collect::<Vec<_>>(), "notes": plan.notes,
        })
    };
    if arguments.dry_run {
        return ctx.output.show(&told(false), || "nothing was changed".to_owned());
    }
    if !is_change {
        return ctx.output.show(&told(false), || "there is nothing to change".to_owned());
    }
    if !arguments.yes {
        if !may_ask {
            return Err(Failure::new("nothing was changed: there is nobody to ask").hint("add `--yes`, or `--dry-run`"));
        }
        if !output::ask("import this?")? {
            return Err(Failure::new("nothing was changed"));
        }
    }
    write(ctx, &incoming, &plan)?;
    let reloaded = reload(ctx)?;
    ctx.output.show(&told(true), || {
        let words = if reloaded {
            "imported; it is in force"
        } else {
            "imported; the supervisor is not running and takes it when it starts"
        };
        words.to_owned()
    })
}

/// Reads the file, whichever of the two it is.
fn read(ctx: &Context, path: &Path) -> Result<Incoming, Failure> {
    let unusable = |reason: String| Failure::new(format!("`{}` cannot be imported: {reason}", path.display()));
    let bytes = files::read_bounded(path, FILE_BYTES_MAX).map_err(|error| Failure::from_error(&error))?;
    let bytes = bytes.ok_or_else(|| {
        Failure::new(format!("there is no file `{}`", path.display()))
            .hint("name a profile made by `codexctl export`, or an `endpoints.json` of the original launcher")
    })?;
    // A Windows editor may have put a mark before it.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let value: Value = serde_json::from_slice(bytes).map_err(|error| unusable(format!("it is not JSON: {error}")))?;
    if !Profile::is_one(&value) {
        let reading = original::read(&value, &presets::tables(ctx)).map_err(unusable)?;
        return Ok(Incoming {
            endpoints: reading.endpoints,
            default: reading.default,
            monitoring: reading.monitoring,
            left_out: reading.left_out,
            ..Incoming::default()
        });
    }
    let Profile { mut files, mut secrets } = Profile::read(value).map_err(unusable)?;
    let text = files.remove(profile::SETTINGS);
    let settings = text.as_deref().map(|text| Settings::parse(Path::new(profile::SETTINGS), text.as_bytes()));
    let settings = settings.transpose().map_err(|error| unusable(format!("its {error}")))?.unwrap_or_default();
    let endpoints = settings.endpoint.iter().map(|endpoint| original::Found {
        name: endpoint.name.clone().unwrap_or_else(|| endpoint.id.to_string()),
        key: secrets.remove(&endpoint.id),
        settings: endpoint.clone(),
        notes: Vec::new(),
    });
    Ok(Incoming {
        endpoints: endpoints.collect(),
        default: settings.default_endpoint.clone(),
        settings: text,
        tables: files.into_iter().map(|(name, text)| (name.trim_end_matches(".toml").to_owned(), text)).collect(),
        ..Incoming::default()
    })
}

fn plan(ctx: &Context, incoming: &Incoming, replace: bool) -> Result<Plan, Failure> {
    let path = ctx.paths.settings();
    let before = files::read_bounded(&path, SETTINGS_BYTES_MAX).map_err(|error| Failure::from_error(&error))?;
    let current = Settings::parse(&path, before.as_deref().unwrap_or_default())
        .map_err(|error| Failure::from_hinted(&edit::EditError::Broken(error)))?;
    let fates: Vec<Fate> = incoming
        .endpoints
        .iter()
        .map(|found| {
            let here = current.endpoint(&found.settings.id);
            Fate::of(here.is_some(), here == Some(&found.settings), replace)
        })
        .collect();
    let mut notes = Vec::new();
    let settings = settings_text(&path, before.as_deref(), &current, incoming, &fates, &mut notes)?;
    let settings = with_monitoring(&path, settings, &current, incoming, replace, &mut notes);
    let mut keys = Vec::new();
    for (found, fate) in incoming.endpoints.iter().zip(&fates) {
        let Some(key) = &found.key else { continue };
        let id = &found.settings.id;
        // What is stored may be no usable key; then the one that comes is better.
        let stored = credentials::load(&ctx.paths, id).ok().flatten();
        if stored.as_ref() != Some(key) && (fate.is_written() || stored.is_none() || replace) {
            keys.push((id.clone(), key.clone()));
        }
    }
    let mut tables = Vec::new();
    for (name, text) in &incoming.tables {
        let here = files::read_bounded(&ctx.paths.table_override(name), TABLE_BYTES_MAX)
            .map_err(|error| Failure::from_error(&error))?;
        tables.push(Fate::of(here.is_some(), here.as_deref() == Some(text.as_bytes()), replace));
    }
    Ok(Plan { before, settings, endpoints: fates, tables, keys, notes })
}

/// The settings as they will be.
fn settings_text(
    path: &Path,
    before: Option<&[u8]>,
    current: &Settings,
    incoming: &Incoming,
    fates: &[Fate],
    notes: &mut Vec<String>,
) -> Result<String, Failure> {
    let before = String::from_utf8_lossy(before.unwrap_or_default()).into_owned();
    let failed = |error: edit::EditError| Failure::from_hinted(&error);
    if let Some(whole) = &incoming.settings {
        let is_within =
            |endpoint: &EndpointSettings| incoming.endpoints.iter().any(|found| found.settings.id == endpoint.id);
        let all_are_replaced = !fates.contains(&Fate::Kept) && current.endpoint.iter().all(is_within);
        // Nothing of the person's would be lost: the file comes as it was written, comments included.
        if before.trim().is_empty() || (all_are_replaced && fates.contains(&Fate::Replaced)) {
            return Ok(whole.clone());
        }
        let theirs = Settings::parse(path, whole.as_bytes()).map_err(|error| Failure::from_hinted(&error))?;
        if (&theirs.daemon, &theirs.worker) != (&current.daemon, &current.worker) {
            notes.push("the sections for all endpoints differ from those here, which are kept".to_owned());
        }
    }
    let mut text = before;
    for (found, fate) in incoming.endpoints.iter().zip(fates) {
        let id = &found.settings.id;
        if *fate == Fate::Replaced {
            text = edit::apply(path, &text, &Edit::Remove(id.clone())).map_err(failed)?;
        }
        if fate.is_written() {
            text = edit::apply(path, &text, &Edit::Add(Box::new(found.settings.clone()))).map_err(failed)?;
        }
    }
    // The only endpoint is the default one without a word; it stays that when others come.
    let default = current.default_endpoint().or(incoming.default.as_ref());
    if let Some(id) = default
        && Settings::parse(path, text.as_bytes()).is_ok_and(|settings| settings.default_endpoint.as_ref() != Some(id))
        && (current.endpoint(id).is_some() || incoming.endpoints.iter().any(|found| found.settings.id == *id))
    {
        text = edit::apply(path, &text, &Edit::Default(id.clone())).map_err(failed)?;
    }
    Ok(text)
}

/// The settings with those of the original's AI monitoring: what the person has set here stays, unless `replace`.
fn with_monitoring(
    path: &Path,
    mut settings: String,
    current: &Settings,
    incoming: &Incoming,
    replace: bool,
    notes: &mut Vec<String>,
) -> String {
    let sections = |of: &Settings| json!({ "daemon": of.daemon, "monitor": of.monitor });
    let (here, default) = (sections(current), sections(&Settings::default()));
    for original::Setting { section, key, value } in &incoming.monitoring {
        let is_here = &here[section][key];
        if is_here == value {
            continue;
        }
        if *is_here != default[section][key] && !replace {
            notes.push(format!("{section}.{key}: {is_here} is kept, it was {value} there"));
            continue;
        }
        let edit = Edit::SetIn { section, key: (*key).to_owned(), value: Some(value.to_string()) };
        match edit::apply(path, &settings, &edit) {
            Ok(text) => {
                notes.push(format!("{section}.{key} = {value}"));
                settings = text;
            }
            Err(error) => notes.push(format!("{section}.{key} is not taken over: {error}")),
        }
    }
    settings
}

/// What was there before a file or key was written.
enum Before {
    Key(EndpointId, Option<Secret>),
    File(PathBuf, Option<Vec<u8>>),
}

/// Writes all of it, or nothing.
fn write(ctx: &Context, incoming: &Incoming, plan: &Plan) -> Result<(), Failure> {
    let _guard = key::lock_store(ctx)?;
    let path = ctx.paths.settings();
    let now = files::read_bounded(&path, SETTINGS_BYTES_MAX).map_err(|error| Failure::from_error(&error))?;
    if now != plan.before {
        return Err(Failure::new(format!("`{}` was changed meanwhile, and nothing was imported", path.display()))
            .hint("try again"));
    }
    let mut undo = Vec::new();
    let written = write_all(ctx, incoming, plan, &mut undo);
    if written.is_err() {
        for before in undo.into_iter().rev() {
            put_back(ctx, before);
        }
    }
    written
}

fn write_all(ctx: &Context, incoming: &Incoming, plan: &Plan, undo: &mut Vec<Before>) -> Result<(), Failure> {
    for (id, key) in &plan.keys {
        undo.push(Before::Key(id.clone(), credentials::load(&ctx.paths, id).ok().flatten()));
        credentials::store(&ctx.paths, id, key.expose()).map_err(|error| Failure::from_error(&error))?;
    }
    let tables = incoming.tables.iter().zip(&plan.tables).filter(|(_, fate)| fate.is_written());
    let tables = tables.map(|((name, text), _)| (ctx.paths.table_override(name), TABLE_BYTES_MAX, text));
    for (path, bytes_max, text) in tables.chain([(ctx.paths.settings(), SETTINGS_BYTES_MAX, &plan.settings)]) {
        let failed = |error: files::FileError| Failure::from_error(&error);
        undo.push(Before::File(path.clone(), files::read_bounded(&path, bytes_max).map_err(failed)?));
        files::write_atomically(&path, text.as_bytes(), PRIVATE_FILE_MODE).map_err(failed)?;
    }
    Ok(())
}

/// Puts one thing back. What cannot be put back is told: the person has to know.
fn put_back(ctx: &Context, before: Before) {
    let failure = match before {
        Before::Key(id, Some(key)) => credentials::store(&ctx.paths, &id, key.expose()).err().map(|e| e.to_string()),
        Before::Key(id, None) => credentials::remove(&ctx.paths, &id).err().map(|e| e.to_string()),
        Before::File(path, Some(bytes)) => {
            files::write_atomically(&path, &bytes, PRIVATE_FILE_MODE).err().map(|e| e.to_string())
        }
        Before::File(path, None) => match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Some(format!("{}: {error}", path.display())),
            _ => None,
        },
    };
    if let Some(failure) = failure {
        ctx.output.warn(&format!("something that was written could not be put back: {failure}"), None);
    }
}

fn shown(path: &Path, incoming: &Incoming, plan: &Plan) -> String {
    let mut lines = format!("from {}\n", path.display());
    let key = |id: &EndpointId| if plan.keys.iter().any(|(known, _)| known == id) { "taken over" } else { "" };
    let rows: Vec<[String; 4]> = incoming
        .endpoints
        .iter()
        .zip(&plan.endpoints)
        .map(|(found, fate)| {
            let id = &found.settings.id;
            [id.to_string(), found.name.clone(), fate.words().to_owned(), key(id).to_owned()]
        })
        .collect();
    if !rows.is_empty() {
        lines.push_str(&text::table(["ENDPOINT", "NAME", "WHAT", "KEY"], &rows));
    }
    for ((name, _), fate) in incoming.tables.iter().zip(&plan.tables) {
        let _ = writeln!(lines, "{name}.toml: {}", fate.words()); // writing to a String cannot fail
    }
    let notes = incoming.endpoints.iter().flat_map(|found| found.notes.iter().map(|note| (found.name.as_str(), note)));
    for (name, note) in notes {
        let _ = writeln!(lines, "{name}: {note}"); // writing to a String cannot fail
    }
    for note in &plan.notes {
        let _ = writeln!(lines, "{note}"); // writing to a String cannot fail
    }
    if !incoming.left_out.is_empty() {
        lines.push_str("left out:\n");
        for LeftOut { name, reason } in &incoming.left_out {
            let _ = writeln!(lines, "  {name}: {reason}"); // writing to a String cannot fail
        }
    }
    lines
}

/// What else the original launcher has left on this machine. Nothing of it is read or changed.
fn leftovers(ctx: &Context) -> Vec<LeftOut> {
    let mut left = Vec::new();
    let mut tell = |path: &Path, reason: String| left.push(LeftOut { name: path.display().to_string(), reason });
    let pools = ctx.paths.original_pools();
    if pools.exists() {
        tell(&pools, "pools of several providers are not taken over".to_owned());
    }
    let folder = ctx.paths.original_cache();
    let names: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .take(LEFTOVERS_MAX)
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    let count = |is_one: &dyn Fn(&str) -> bool| names.iter().filter(|name| is_one(name)).count();
    let tokens = count(&|name| name.starts_with("google-") && name.contains("oauth-token"));
    if tokens > 0 {
        tell(folder, format!("{} of Google accounts: log in anew instead", text::count(tokens, "token file")));
    }
    let configs = count(&|name| name.starts_with("proxy-"));
    if configs > 0 {
        let what = text::count(configs, "file");
        tell(
            folder,
            format!("{what} of its proxies; they hold keys in plain text, remove them when you no longer need them"),
        );
    }
    if count(&|name| name == "incident-store.json") > 0 {
        let path = folder.join("incident-store.json");
        let reason = format!("`codexctl incidents import {}` takes over what it has learned", path.display());
        tell(&path, reason);
    }
    left
}
