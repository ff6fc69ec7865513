//! `codexctl incidents import FILE`

use std::path::PathBuf;

use codex_control::files;
use codex_control::rpc::{Imported, LINE_BYTES_MAX};
use serde_json::Value;

use crate::client::CALL_TIMEOUT;
use crate::failure::Failure;
use crate::text::{self, told};
use crate::{Context, daemon};

/// Takes over what the original launcher has learned: its incident-store.json
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:
  codexctl incidents import ~/.cache/codex-proxy/incident-store.json")]
pub(super) struct Arguments {
    /// The file
    file: PathBuf,
}

pub(super) fn run(ctx: &Context, arguments: &Arguments) -> Result<(), Failure> {
    let path = arguments.file.display();
    let bytes = files::read_bounded(&arguments.file, LINE_BYTES_MAX as u64)
        .map_err(|error| Failure::from_error(&error))?
        .ok_or_else(|| Failure::new(format!("there is no file `{path}`")))?;
    let store: Value =
        serde_json::from_slice(&bytes).map_err(|error| Failure::new(format!("`{path}` is not JSON: {error}")))?;
    let imported: Imported = daemon::connect(ctx)?.call("incident.import", store, CALL_TIMEOUT)?;
    ctx.output.show(&imported, || {
        let n_patterns = usize::try_from(imported.patterns).unwrap_or(usize::MAX);
        let mut text = format!("{} taken over\n", text::count(n_patterns, "learned fix").replace("fixs", "fixes"));
        for reason in &imported.left_out {
            text += &told(&format!("left out: {reason}"), None);
        }
        text
    })
}
