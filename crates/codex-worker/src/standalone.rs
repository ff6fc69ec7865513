//! Running without a supervisor: the endpoint comes from a file, the end from a signal.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use codex_control::endpoint;
use codex_control::environment::Environment;
use codex_control::ipc::Assignment;
use codex_control::paths::Paths;
use codex_control::report::Hinted;
use codex_control::settings::Settings;
use codex_control::tables::Tables;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::arguments::Arguments;
use crate::serve::{self, Drain};
use crate::worker::Worker;

/// Time open streams get after a signal.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) async fn run(arguments: Arguments, environment: &Environment) -> anyhow::Result<()> {
    let file = arguments.endpoint.as_deref().unwrap_or(Path::new(""));
    if !file.is_file() {
        bail!("there is no file `{}`", file.display());
    }
    let settings = Settings::load(file).map_err(with_hint)?;
    let chosen = match &arguments.endpoint_id {
        Some(id) => settings.endpoint(id).with_context(|| format!("`{}` has no endpoint `{id}`", file.display()))?,
        None => match &settings.endpoint[..] {
            [only] => only,
            [] => bail!("`{}` describes no endpoint", file.display()),
            _ => bail!("`{}` describes several endpoints; choose one with `--endpoint-id`", file.display()),
        },
    };
    let paths = Paths::from_environment(environment)?;
    let (tables, problems) = Tables::load(&paths);
    for problem in problems {
        tracing::warn!(error = %problem, "a table was left out");
    }
    let endpoint = endpoint::resolve(&settings, &tables, chosen).map_err(with_hint)?;
    let assignment = Assignment {
        token_file: arguments.token_file.unwrap_or_else(|| paths.token(&endpoint.id)),
        credential_file: paths.credential(&endpoint.id),
        seal_key_file: paths.seal_key(),
        models_cache_file: paths.models_cache(&endpoint.id),
        learned_file: paths.learned(&endpoint.id),
        config_folder: paths.config_folder().to_owned(),
        endpoint,
    };
    let listener = serve::listener(arguments.listen)?;
    let address = listener.local_addr()?;
    let (reports, mut discarded) = mpsc::channel(1);
    let worker = Worker::new(assignment, tables, address, reports)?;
    println!("listening on http://{address}/v1");
    let drain = Drain::new();
    let serving = tokio::spawn(serve::run(worker, TcpListener::from_std(listener)?, drain.clone()));
    let reports = tokio::spawn(async move { while discarded.recv().await.is_some() {} });
    serve::until_served(serving, serve::on_stop_signals(|| drain.begin(STOP_TIMEOUT))).await?;
    reports.abort();
    Ok(())
}

fn with_hint<E: Hinted + Send + Sync + 'static>(error: E) -> anyhow::Error {
    match error.hint() {
        Some(hint) => anyhow::anyhow!("{error}\n  hint: {hint}"),
        None => error.into(),
    }
}
