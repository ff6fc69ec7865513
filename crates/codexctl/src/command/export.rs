//! `codexctl export FILE`

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use codex_control::credentials;
use codex_control::files;
use codex_control::settings::{SETTINGS_BYTES_MAX, Settings};
use codex_control::tables::TABLE_BYTES_MAX;
use serde_json::json;

use crate::failure::Failure;
use crate::profile::{self, Profile};
use crate::{Context, text};

/// Writes your settings into one file, for a backup or another machine
///
/// Settings and overrides of tables, as you wrote them. Keys only with `--with-secrets`; the file is for you alone
/// (0600) in either case.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  codexctl export my-profile.json
  codexctl export --with-secrets ~/safe/profile.json")]
pub(crate) struct Arguments {
    /// Where to write it
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Add the stored keys, and what looks like secrets in the settings: in headers and in base URLs
    #[arg(long)]
    with_secrets: bool,
    /// Replace FILE if it exists
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(ctx: &Context, arguments: &Arguments) -> Result<(), Failure> {
    let (profile, taken_out) = collect(ctx, arguments.with_secrets)?;
    if profile.files.is_empty() {
        return Err(Failure::new("there are no settings to export").hint("`codexctl endpoint add` makes some"));
    }
    let file = &arguments.file;
    write(file, profile.write().expose().as_bytes(), arguments.force)?;
    let (names, keys): (Vec<&String>, Vec<_>) = (profile.files.keys().collect(), profile.secrets.keys().collect());
    let done = json!({ "file": file, "files": names, "secrets_of": keys, "left_out": taken_out });
    ctx.output.show(&done, || {
        let keys = match (arguments.with_secrets, profile.secrets.len()) {
            (true, n) => text::count(n, "key"),
            (false, _) => "no keys; `--with-secrets` adds them".to_owned(),
        };
        let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
        format!("wrote {} (0600): {}; {keys}", file.display(), names.join(", "))
    })?;
    if !taken_out.is_empty() {
        let message = format!("what looks like secrets is left out: {}", taken_out.join(", "));
        ctx.output.warn(&message, Some("`--with-secrets` adds them"));
    }
    Ok(())
}

/// Writes the profile for its owner alone. What `force` replaces stays as it was if that fails.
fn write(file: &Path, bytes: &[u8], force: bool) -> Result<(), Failure> {
    let failed = |error: files::FileError| Failure::from_error(&error);
    if force {
        // What is replaced would keep its mode.
        match fs::set_permissions(file, fs::Permissions::from_mode(files::PRIVATE_FILE_MODE)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Failure::new(format!("`{}` cannot be replaced: {error}", file.display())));
            }
            _ => return files::write_atomically(file, bytes, files::PRIVATE_FILE_MODE).map_err(failed),
        }
    }
    if !files::create_private_once(file, bytes).map_err(failed)? {
        return Err(Failure::new(format!("there is a file `{}` already", file.display()))
            .hint("choose another name, or add `--force`"));
    }
    Ok(())
}

/// What is to be written, and what of the settings is not.
fn collect(ctx: &Context, with_secrets: bool) -> Result<(Profile, Vec<String>), Failure> {
    let mut profile = Profile::default();
    let mut taken_out = Vec::new();
    let failed = |error: files::FileError| Failure::from_error(&error);
    let path = ctx.paths.settings();
    if let Some(bytes) = files::read_bounded(&path, SETTINGS_BYTES_MAX).map_err(failed)? {
        // What does not load here would load nowhere else.
        let settings = Settings::parse(&path, &bytes).map_err(|error| Failure::from_hinted(&error))?;
        let text =
            String::from_utf8(bytes).map_err(|_| Failure::new(format!("`{}` is not UTF-8 text", path.display())))?;
        let text = if with_secrets {
            profile.secrets = stored_keys(ctx, &settings)?;
            text
        } else {
            let (text, names) = profile::without_secrets(&text).map_err(|error| Failure::from_hinted(&error))?;
            taken_out = names;
            text
        };
        profile.files.insert(profile::SETTINGS.to_owned(), text);
    }
    for table in profile::tables() {
        let path = ctx.paths.table_override(table);
        if let Some(bytes) = files::read_bounded(&path, TABLE_BYTES_MAX).map_err(failed)? {
            let text = String::from_utf8(bytes)
                .map_err(|_| Failure::new(format!("`{}` is not UTF-8 text", path.display())))?;
            profile.files.insert(format!("{table}.toml"), text);
        }
    }
    Ok((profile, taken_out))
}

fn stored_keys(
    ctx: &Context,
    settings: &Settings,
) -> Result<BTreeMap<codex_control::EndpointId, codex_control::Secret>, Failure> {
    let mut keys = BTreeMap::new();
    for endpoint in &settings.endpoint {
        let key = credentials::load(&ctx.paths, &endpoint.id).map_err(|error| Failure::from_error(&error))?;
        if let Some(key) = key {
            keys.insert(endpoint.id.clone(), key);
        }
    }
    Ok(keys)
}
