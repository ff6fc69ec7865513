//! `codexctl endpoint add`: from nothing to a tried-out endpoint in one command.
//!
//! Everything is checked before anything is written. Then the key is stored, the endpoint is added through the
//! supervisor, and if that fails the credentials store is put back as it was: nothing is ever half added.

use std::collections::BTreeMap;

use clap::ValueEnum;
use codex_control::credentials;
use codex_control::endpoint::{self, CredentialSource, Endpoint, ResolveError, normalize_base_url};
use codex_control::files;
use codex_control::ids::InvalidEndpointId;
use codex_control::report::{self, Hinted};
use codex_control::rpc::EndpointStatus;
use codex_control::settings::edit::{self, Edit, EditError};
use codex_control::settings::{AuthSettings, EndpointSettings, Port, SETTINGS_BYTES_MAX, Settings};
use codex_control::tables::{AuthKind, Protocol, Provider, Tables};
use codex_control::{EndpointId, Secret};
use serde_json::json;

use crate::client::{CALL_TIMEOUT, Client};
use crate::command::presets;
use crate::failure::Failure;
use crate::key::{self, Question, StoredKeyArguments};
use crate::{Context, daemon, output, probe, program, text};

/// Adds an endpoint, stores its key, and tries it out
///
/// The key is asked for without echo, or read from stdin when that is a pipe; it never stands in the command line.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  codexctl endpoint add --preset zai-coding
  pass show openrouter | codexctl endpoint add work --preset openrouter --model z-ai/glm-4.7
  codexctl endpoint add local --base-url http://127.0.0.1:8000/v1 --protocol chat-completions --no-key
  codexctl endpoint add vault --preset zai --key-command pass show zai")]
pub(crate) struct Arguments {
    /// Id of the endpoint; default: the preset's
    #[arg(value_name = "ID", required_unless_present = "preset")]
    id: Option<EndpointId>,
    /// A row of `codexctl presets`, which fills in everything but the key
    #[arg(long, value_name = "PRESET", required_unless_present = "base_url")]
    preset: Option<String>,
    /// Base URL of the provider, without the protocol's own path
    #[arg(long, value_name = "URL")]
    base_url: Option<String>,
    /// Wire protocol of the provider
    #[arg(long, value_enum, required_unless_present = "preset")]
    protocol: Option<ProtocolName>,
    /// Model when Codex names none
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Name for people
    #[arg(long)]
    name: Option<String>,
    /// Local port; default: a free one, chosen once
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    #[command(flatten)]
    key: KeyArguments,
}

#[derive(Clone, Debug, clap::Args)]
#[group(multiple = false)]
struct KeyArguments {
    #[command(flatten)]
    stored: StoredKeyArguments,
    /// Ask this program for the key each time; takes the rest of the line
    #[arg(long, value_name = "CMD", num_args = 1.., allow_hyphen_values = true, conflicts_with = "stored_key")]
    key_command: Option<Vec<String>>,
    /// The provider wants no key
    #[arg(long, conflicts_with_all = ["stored_key", "key_command"])]
    no_key: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ProtocolName {
    Responses,
    ChatCompletions,
    AnthropicMessages,
}

impl From<ProtocolName> for Protocol {
    fn from(name: ProtocolName) -> Self {
        match name {
            ProtocolName::Responses => Self::Responses,
            ProtocolName::ChatCompletions => Self::ChatCompletions,
            ProtocolName::AnthropicMessages => Self::AnthropicMessages,
        }
    }
}

pub(crate) fn run(ctx: &Context, arguments: &Arguments) -> Result<(), Failure> {
    let tables = presets::tables(ctx);
    let preset = arguments.preset.as_deref().map(|id| find_preset(&tables, id)).transpose()?;
    let settings = settings(arguments, preset)?;
    let resolved = check(ctx, &tables, &settings)?;
    let key = match &resolved.credential {
        CredentialSource::Store => Some(arguments.key.stored.read(
            ctx,
            &Question {
                provider: &resolved.name,
                usual_variable: preset.and_then(|preset| preset.auth.env.as_deref()),
            },
        )?),
        CredentialSource::Command(command) => {
            check_command(ctx, command)?;
            None
        }
        CredentialSource::None | CredentialSource::Env(_) | CredentialSource::File(_) => None,
    };
    let mut client = daemon::connect_or_start(ctx, daemon::START_TIMEOUT)?;
    add(ctx, &tables, &mut client, &settings, key.as_ref())?;
    let has_key = resolved.credential != CredentialSource::None;
    drop(key);
    let (woken, probe) = probe::probe(ctx, &mut client, &settings.id, !resolved.models.is_empty());
    let address = woken.as_ref().and_then(|status| status.address);
    ctx.output.show(&json!({ "endpoint": resolved, "address": address, "probe": probe }), || {
        let [worker, provider] = probe.lines(has_key);
        let lines = text::fields(&[
            ("  base URL", Some(format!("{} ({})", resolved.base_url, resolved.protocol.name()))),
            ("  key", Some(key_place(ctx, &resolved))),
            ("  address", address.map(|address| format!("http://{address}/v1"))),
            worker,
            provider,
        ]);
        let id = &resolved.id;
        format!("added {id}: {}\n{lines}start Codex on it: codexctl launch cli --endpoint {id}", resolved.name)
    })?;
    probe.warn(ctx);
    if let Some(note) = preset.and_then(|preset| preset.note.as_deref()) {
        output::note(&format!("note: {note}"));
    }
    Ok(())
}

fn find_preset<'a>(tables: &'a Tables, id: &str) -> Result<&'a Provider, Failure> {
    tables.provider(id).ok_or_else(|| {
        let near = report::nearest(id, tables.providers().iter().map(|provider| provider.id.as_str()));
        Failure::new(format!("there is no preset `{id}`")).hint(match near {
            Some(near) => format!("did you mean `{near}`?"),
            None => "`codexctl presets` lists them".to_owned(),
        })
    })
}

/// The endpoint as it will stand in the file.
fn settings(arguments: &Arguments, preset: Option<&Provider>) -> Result<EndpointSettings, Failure> {
    let id = match (&arguments.id, preset) {
        (Some(id), _) => id.clone(),
        (None, Some(preset)) => preset.id.parse().map_err(|error: InvalidEndpointId| {
            Failure::from_error(&error).hint(format!("name it: `codexctl endpoint add ID --preset {}`", preset.id))
        })?,
        (None, None) => return Err(Failure::usage("an endpoint without a preset needs an ID")),
    };
    let base_url = arguments.base_url.as_deref().map(normalize_base_url).transpose().map_err(|reason| {
        Failure::new(format!("the base URL cannot be used: {reason}")).hint("write it like `https://HOST/PATH`")
    })?;
    let preset_kind = preset.map(|preset| preset.auth.kind).unwrap_or_default();
    let KeyArguments { stored, key_command, no_key } = &arguments.key;
    let kind = match (preset_kind, *no_key, stored.is_given() || key_command.is_some()) {
        (AuthKind::None, false, true) => Some(AuthKind::Bearer),
        (AuthKind::Bearer | AuthKind::XApiKey, true, _) => Some(AuthKind::None),
        _ => None,
    };
    let auth = AuthSettings { kind, command: key_command.clone(), ..AuthSettings::default() };
    Ok(EndpointSettings {
        id,
        preset: preset.map(|preset| preset.id.clone()),
        name: arguments.name.clone(),
        enabled: true,
        protocol: arguments.protocol.map(Protocol::from),
        base_url,
        auth: (auth != AuthSettings::default()).then_some(auth),
        backup: None,
        default_model: arguments.model.clone(),
        models: None,
        aliases: BTreeMap::new(),
        port: arguments.port.map_or(Port::Auto, Port::Fixed),
        headers: BTreeMap::new(),
        forward_headers: Vec::new(),
        quirks: Vec::new(),
        model: Vec::new(),
    })
}

/// Checks with the reader's own code that the endpoint can be added and can run. Writes nothing.
fn check(ctx: &Context, tables: &Tables, endpoint: &EndpointSettings) -> Result<Endpoint, Failure> {
    let path = ctx.paths.settings();
    let bytes = files::read_bounded(&path, SETTINGS_BYTES_MAX).map_err(|error| Failure::from_error(&error))?;
    let bytes = bytes.unwrap_or_default();
    let hinted = |error: &EditError| Failure::from_hinted(error);
    let text = String::from_utf8(bytes).map_err(|error| {
        let broken = Settings::parse(&path, error.as_bytes()).err().map(EditError::Broken);
        broken.as_ref().map_or_else(|| Failure::new(format!("`{}` is not UTF-8 text", path.display())), hinted)
    })?;
    let changed = edit::apply(&path, &text, &Edit::Add(Box::new(endpoint.clone()))).map_err(|error| match error {
        // The id came from the preset or was typed; both are easier to change here than afterwards.
        EditError::Exists(id) => Failure::new(format!("there is an endpoint `{id}` already")).hint(format!(
            "choose another id: `codexctl endpoint add ID …`; `codexctl login {id}` only changes its key"
        )),
        error => hinted(&error),
    })?;
    let settings = Settings::parse(&path, changed.as_bytes()).map_err(|error| Failure::from_hinted(&error))?;
    endpoint::resolve(&settings, tables, endpoint).map_err(|error| match &error {
        // Its remedies name an endpoint that does not exist yet.
        ResolveError::BaseUrl { reason, .. } => Failure::new(format!("the base URL cannot be used: {reason}")),
        _ => Failure::new(error.to_string()).hint_if(error.hint()),
    })
}

fn check_command(ctx: &Context, command: &[String]) -> Result<(), Failure> {
    let program = command.first().map_or("", String::as_str);
    match program::find(&ctx.environment, program.as_ref()) {
        Some(_) => Ok(()),
        None => Err(Failure::new(format!("there is no program `{program}` to ask for the key"))
            .hint("name a program on the `PATH`, or its whole path")),
    }
}

/// Stores the key and adds the endpoint, both or neither.
fn add(
    ctx: &Context,
    tables: &Tables,
    client: &mut Client,
    settings: &EndpointSettings,
    key: Option<&Secret>,
) -> Result<(), Failure> {
    let id = &settings.id;
    // Two commands that add the same id at once must not store and remove each other's key.
    let _guard = key::lock_store(ctx)?;
    check(ctx, tables, settings)?;
    let failed = |error: credentials::CredentialError| Failure::from_error(&error);
    let before = match key {
        Some(key) => {
            // A file without an endpoint may be left from earlier; what it holds need not be a usable key.
            let before = credentials::load(&ctx.paths, id).ok().flatten();
            credentials::store(&ctx.paths, id, key.expose()).map_err(failed)?;
            before
        }
        None => None,
    };
    let added: Result<EndpointStatus, _> = client.call("endpoint.add", settings, CALL_TIMEOUT);
    let Err(error) = added else { return Ok(()) };
    if key.is_some() {
        match &before {
            Some(before) => credentials::store(&ctx.paths, id, before.expose()).map_err(failed)?,
            None => credentials::remove(&ctx.paths, id).map(|_| ()).map_err(failed)?,
        }
    }
    Err(error.into())
}

fn key_place(ctx: &Context, endpoint: &Endpoint) -> String {
    match &endpoint.credential {
        CredentialSource::None => "none is needed".to_owned(),
        CredentialSource::Command(command) => {
            format!("asked from `{}` each time", command.first().map_or("", String::as_str))
        }
        CredentialSource::Store | CredentialSource::Env(_) | CredentialSource::File(_) => {
            format!("stored in {} (0600)", ctx.paths.credential(&endpoint.id).display())
        }
    }
}
