//! `codexctl presets`

use codex_control::report::{self, Hinted};
use codex_control::tables::{AuthKind, Tables};

use crate::Context;
use crate::failure::Failure;
use crate::text;

/// Lists the providers that need nothing but a key
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:
  codexctl presets")]
pub(crate) struct Arguments {}

pub(crate) fn run(ctx: &Context) -> Result<(), Failure> {
    let tables = tables(ctx);
    ctx.output.show(tables.providers(), || {
        let rows: Vec<[String; 5]> = tables
            .providers()
            .iter()
            .map(|provider| {
                let key = match (&provider.auth.kind, &provider.auth.env) {
                    (AuthKind::None, _) => "not needed".to_owned(),
                    (_, Some(name)) => format!("${name}"),
                    (_, None) => "needed".to_owned(),
                };
                [
                    provider.id.clone(),
                    provider.name.clone(),
                    provider.protocol.name().to_owned(),
                    key,
                    provider.base_url.clone(),
                ]
            })
            .collect();
        let notes = tables
            .providers()
            .iter()
            .filter_map(|provider| provider.note.as_ref().map(|note| format!("\n{}: {note}", provider.id)));
        let table = text::table(["PRESET", "NAME", "PROTOCOL", "USUAL KEY", "BASE URL"], &rows);
        table + &notes.collect::<String>()
    })
}

/// The tables in force; an override that does not load is told and left out.
pub(crate) fn tables(ctx: &Context) -> Tables {
    let (tables, problems) = Tables::load(&ctx.paths);
    for problem in &problems {
        ctx.output.warn(&report::chain(problem), problem.hint().as_deref());
    }
    tables
}
