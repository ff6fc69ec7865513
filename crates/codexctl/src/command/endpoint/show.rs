//! `codexctl endpoint show ENDPOINT`

use codex_control::endpoint::{CredentialSource, Endpoint};
use codex_control::redact;
use codex_control::rpc::{EndpointDetail, EndpointParams};
use codex_control::tables::Quirk;

use crate::client::CALL_TIMEOUT;
use crate::command::EndpointArgument;
use crate::command::status::state_line;
use crate::failure::Failure;
use crate::{Context, daemon, text};

/// Shows the settings of an endpoint as they are in force, without secrets
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:
  codexctl endpoint show zai")]
pub(crate) struct Arguments {
    #[command(flatten)]
    endpoint: EndpointArgument,
}

pub(crate) fn run(ctx: &Context, arguments: &Arguments) -> Result<(), Failure> {
    let params = EndpointParams { id: arguments.endpoint.id.clone() };
    let mut client = daemon::connect_or_start(ctx, daemon::START_TIMEOUT)?;
    let mut detail: EndpointDetail = client.call("endpoint.show", params, CALL_TIMEOUT)?;
    if let Some(endpoint) = &mut detail.endpoint {
        for (name, value) in &mut endpoint.headers {
            if redact::is_secret_header(name, value) {
                "…".clone_into(value);
            }
        }
    }
    ctx.output.show(&detail, || shown(ctx, &detail))
}

fn shown(ctx: &Context, detail: &EndpointDetail) -> String {
    let status = &detail.status;
    let mut lines = vec![
        ("id", Some(format!("{}{}", status.id, if status.is_default { " (default)" } else { "" }))),
        ("name", Some(status.name.clone())),
        ("provider", Some(status.provider.clone())),
        ("state", Some(state_line(status, text::now_ms()))),
        ("address", status.address.map(|address| format!("http://{address}/v1"))),
    ];
    if let Some(endpoint) = &detail.endpoint {
        lines.extend(settings(ctx, endpoint));
    }
    let mut shown = text::fields(&lines);
    if let Some(problem) = &status.problem {
        shown.push('\n');
        shown.push_str(&text::told(&format!("problem: {}", problem.message), problem.hint.as_deref()));
    }
    shown
}

fn settings(ctx: &Context, endpoint: &Endpoint) -> Vec<(&'static str, Option<String>)> {
    let pairs = |pairs: &[(String, String)], between: &str| {
        let all = pairs.iter().map(|(name, value)| format!("{name}{between}{value}")).collect::<Vec<_>>().join(", ");
        (!pairs.is_empty()).then_some(all)
    };
    let quirks: Vec<String> = endpoint.quirks.iter().copied().filter_map(quirk_name).collect();
    vec![
        ("protocol", Some(endpoint.protocol.name().to_owned())),
        ("base_url", Some(endpoint.base_url.clone())),
        ("key", Some(key_place(ctx, endpoint))),
        (
            "default_model",
            Some(endpoint.default_model.clone().unwrap_or_else(|| "none: the first of the list".to_owned())),
        ),
        (
            "models",
            Some(if endpoint.models.is_empty() {
                "as the provider lists them".to_owned()
            } else {
                endpoint.models.join(", ")
            }),
        ),
        ("aliases", pairs(&endpoint.aliases, " = ")),
        ("headers", pairs(&endpoint.headers, ": ")),
        ("quirks", (!quirks.is_empty()).then(|| quirks.join(", "))),
    ]
}

/// Where the key comes from; never the key.
fn key_place(ctx: &Context, endpoint: &Endpoint) -> String {
    match &endpoint.credential {
        CredentialSource::None => "none is needed".to_owned(),
        CredentialSource::Store => {
            let path = ctx.paths.credential(&endpoint.id);
            if path.exists() {
                format!("stored in {}", path.display())
            } else {
                format!("missing: `codexctl login {}` stores one", endpoint.id)
            }
        }
        CredentialSource::Env(name) => format!("${name} of the supervisor's environment"),
        CredentialSource::File(path) => format!("the file {}", path.display()),
        // Arguments may name an account or hold a secret of their own.
        CredentialSource::Command(command) => {
            format!("printed by `{}`", command.first().map_or("", String::as_str))
        }
    }
}

fn quirk_name(quirk: Quirk) -> Option<String> {
    serde_json::to_value(quirk).ok()?.as_str().map(str::to_owned)
}
