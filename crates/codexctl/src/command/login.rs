//! `codexctl login ENDPOINT`

use codex_control::credentials;
use codex_control::endpoint::CredentialSource;
use codex_control::rpc::{EndpointDetail, EndpointParams, EndpointState};
use codex_control::tables::Tables;
use serde_json::{Value, json};

use crate::client::CALL_TIMEOUT;
use crate::failure::Failure;
use crate::key::{Question, StoredKeyArguments};
use crate::{Context, daemon, probe, text};

/// Stores another key for an endpoint and tries it out
///
/// The key is asked for without echo, or read from stdin when that is a pipe.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:
  codexctl login zai --key-env ZAI_API_KEY")]
pub(crate) struct Arguments {
    #[command(flatten)]
    endpoint: super::EndpointArgument,
    #[command(flatten)]
    key: StoredKeyArguments,
}

pub(crate) fn run(ctx: &Context, arguments: &Arguments) -> Result<(), Failure> {
    let id = &arguments.endpoint.id;
    let mut client = daemon::connect_or_start(ctx, daemon::START_TIMEOUT)?;
    let detail: EndpointDetail =
        client.call("endpoint.show", EndpointParams { id: id.clone() }, CALL_TIMEOUT).map_err(Failure::from)?;
    let elsewhere = |place: String| {
        Err(Failure::new(format!("endpoint `{id}` does not use a stored key: {place}"))
            .hint(format!("`codexctl endpoint edit {id}` opens its settings; without `auth` it uses a stored key")))
    };
    match detail.endpoint.as_ref().map(|endpoint| &endpoint.credential) {
        None | Some(CredentialSource::Store) => {}
        Some(CredentialSource::None) => return elsewhere("its provider wants none".to_owned()),
        Some(CredentialSource::Env(name)) => return elsewhere(format!("it takes the one in `{name}`")),
        Some(CredentialSource::File(path)) => return elsewhere(format!("it takes the one in `{}`", path.display())),
        Some(CredentialSource::Command(command)) => {
            let program = command.first().map_or("", String::as_str);
            return elsewhere(format!("it asks `{program}`"));
        }
    }
    let (tables, _) = Tables::load(&ctx.paths);
    let usual_variable = tables.provider(&detail.status.provider).and_then(|provider| provider.auth.env.as_deref());
    let key = arguments.key.read(ctx, &Question { provider: &detail.status.name, usual_variable })?;
    credentials::store(&ctx.paths, id, key.expose()).map_err(|error| Failure::from_error(&error))?;
    drop(key);
    if !matches!(detail.status.state, EndpointState::Stopped | EndpointState::Disabled) {
        // The new worker reads the new key; running answers end on the old one.
        let restarted: Result<Value, _> =
            client.call("endpoint.restart", EndpointParams { id: id.clone() }, CALL_TIMEOUT);
        restarted.map_err(Failure::from)?;
    }
    let models_are_listed = detail.endpoint.is_some_and(|endpoint| !endpoint.models.is_empty());
    let (_, probe) = probe::probe(ctx, &mut client, id, models_are_listed);
    let path = ctx.paths.credential(id);
    ctx.output.show(&json!({ "endpoint": id, "credential": path, "probe": probe }), || {
        let [worker, provider] = probe.lines(true);
        let lines = text::fields(&[("  key", Some(format!("stored in {} (0600)", path.display()))), worker, provider]);
        format!("{id} has another key\n{lines}")
    })?;
    probe.warn(ctx);
    Ok(())
}
