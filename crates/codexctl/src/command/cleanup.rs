//! `codexctl cleanup`

use codex_control::cleanup::{self, Fate, Hindrance, Item};
use serde_json::json;

use crate::Context;
use crate::failure::Failure;

/// Ends processes that earlier runs have left, and removes stale sockets and pid files
///
/// Only processes that the supervisor has written down and that are proven to be the same ones are ended; only files
/// that nobody uses are removed. What is kept is told with the reason. Beside a supervisor that runs, and looks after its
/// processes itself, only files are looked at; one that starts meanwhile waits.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  codexctl cleanup --dry-run
  codexctl cleanup")]
pub(crate) struct Arguments {
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn run(ctx: &Context, arguments: &Arguments) -> Result<(), Failure> {
    let cleaned = cleanup::clean_up(&ctx.paths, arguments.dry_run);
    let is_hindered = matches!(cleaned.hindrance, Some(Hindrance::NoLock(_)));
    match cleaned.hindrance {
        Some(Hindrance::Damaged(reason)) => ctx.output.warn(
            &format!("the registry is damaged ({reason}), so no process can be proven to be ours"),
            Some("`codexctl start` looks for workers and writes it anew"),
        ),
        Some(Hindrance::NoLock(reason)) => {
            ctx.output.warn(&format!("processes are left alone: {reason}"), Some("try again in a moment"));
        }
        None => {}
    }
    let items = cleaned.items;
    let has_failed = is_hindered || items.iter().any(|item| matches!(item.fate, Fate::Failed(_)));
    ctx.output.show(&json!({ "dry_run": arguments.dry_run, "items": items }), || shown(&items, arguments.dry_run))?;
    if has_failed { Err(Failure::new("not everything could be cleaned up")) } else { Ok(()) }
}

fn shown(items: &[Item], dry_run: bool) -> String {
    if items.is_empty() {
        return "nothing is left of earlier runs\n".to_owned();
    }
    let line = |item: &Item| {
        let what = &item.what;
        match (&item.fate, dry_run) {
            (Fate::Done, false) => format!("cleaned up  {what}\n"),
            (Fate::Done, true) => format!("would go    {what}\n"),
            (Fate::Kept(why), _) => format!("kept        {what}: {why}\n"),
            (Fate::Failed(why), _) => format!("FAILED      {what}: {why}\n"),
        }
    };
    items.iter().map(line).collect()
}
