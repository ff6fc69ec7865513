//! `codexctl models ENDPOINT [--refresh | --add MODELS]`

use std::collections::BTreeSet;

use codex_control::rpc::{EndpointStatus, SetParams};
use serde_json::Value;

use crate::client::{CALL_TIMEOUT, Client};
use crate::failure::Failure;
use crate::{Context, daemon, probe, text};

/// Lists the models of an endpoint, as Codex sees them
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  codexctl models zai --refresh
  codexctl models zai --add glm-5,glm-5-air
  codexctl models zai --add \"$(cat my-models.txt)\"")]
pub(crate) struct Arguments {
    #[command(flatten)]
    endpoint: super::EndpointArgument,
    /// Ask the provider anew instead of using the list of the last hour
    #[arg(long)]
    refresh: bool,
    /// Offer these models, too: names with commas or line breaks between them
    #[arg(long, value_name = "MODELS", conflicts_with = "refresh")]
    add: Option<String>,
}

pub(crate) fn run(ctx: &Context, arguments: &Arguments) -> Result<(), Failure> {
    let id = &arguments.endpoint.id;
    let mut client = daemon::connect_or_start(ctx, daemon::START_TIMEOUT)?;
    let mut status = probe::wake(&mut client, Some(id), probe::WAKE_TIMEOUT, probe::WAKE_MARGIN)?;
    if let Some(added) = &arguments.add {
        add(ctx, &mut client, &status, &split_names(added))?;
        status = probe::wake(&mut client, Some(id), probe::WAKE_TIMEOUT, probe::WAKE_MARGIN)?;
    }
    let address = status.address.ok_or_else(|| Failure::new(format!("endpoint `{id}` has no address")))?;
    let list = probe::models(ctx, id, address, arguments.refresh)?;
    if let Some(problem) = list.problem() {
        ctx.output.warn(
            &format!("this list is not the provider's present one: {}", problem.message),
            problem.hint.as_deref(),
        );
    }
    ctx.output.show(&list.body, || shown(&status, list.entries()))
}

/// Makes the endpoint's list of models what it offers now and `names`.
fn add(ctx: &Context, client: &mut Client, status: &EndpointStatus, names: &[String]) -> Result<(), Failure> {
    if names.is_empty() {
        return Err(Failure::usage("`--add` names no model"));
    }
    let address = status.address.ok_or_else(|| Failure::new(format!("endpoint `{}` has no address", status.id)))?;
    // From now on the list stands in the settings: what the provider lists has to stand there, too, or it is gone.
    let offered = probe::models(ctx, &status.id, address, false)?;
    let offered = offered.entries().iter().filter_map(|entry| entry["slug"].as_str().map(str::to_owned));
    let mut seen = BTreeSet::new();
    let all = offered.chain(names.iter().cloned()).filter(|name| seen.insert(name.clone())).collect::<Vec<_>>();
    // A list of texts looks the same in JSON and TOML.
    let value = serde_json::to_string(&all).map_err(|error| Failure::from_error(&error))?;
    let params = SetParams { id: status.id.clone(), key: "models".to_owned(), value: Some(value) };
    client.call::<Value>("endpoint.set", params, CALL_TIMEOUT)?;
    Ok(())
}

/// Names with commas or line breaks between them.
pub(crate) fn split_names(text: &str) -> Vec<String> {
    text.split([',', '\n', '\r']).map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn shown(status: &EndpointStatus, entries: &[Value]) -> String {
    if entries.is_empty() {
        return format!("{} offers no models", status.id);
    }
    let rows: Vec<[String; 5]> = entries.iter().map(|entry| row(status, entry)).collect();
    text::table(["MODEL", "NAME", "CONTEXT", "INPUT", "REASONING"], &rows)
}

fn row(status: &EndpointStatus, entry: &Value) -> [String; 5] {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let words = |values: &Value, key: Option<&str>| {
        let values = values.as_array().map_or(&[][..], Vec::as_slice);
        values.iter().map(|value| word(key.map_or(value, |key| &value[key]))).collect::<Vec<_>>().join(", ")
    };
    let slug = word(&entry["slug"]);
    let is_default = status.default_model.as_deref() == Some(slug.as_str());
    [
        if is_default { format!("{slug} (default)") } else { slug },
        word(&entry["display_name"]),
        entry["context_window"].as_u64().map(|tokens| format!("{} k", tokens / 1_000)).unwrap_or_default(),
        words(&entry["input_modalities"], None),
        words(&entry["supported_reasoning_levels"], Some("effort")),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_catalog_entry_becomes_a_row() {
        let status: EndpointStatus = serde_json::from_value(json!({
            "id": "zai", "name": "Z.AI", "provider": "zai", "protocol": "chat-completions", "base_url": null,
            "default_model": "glm-4.7", "is_default": true, "state": "running", "address": null, "worker_pid": null,
            "generation": 1, "restarts_total": 0, "last_exit": null, "healthy_at_ms": null, "memory_bytes": null,
            "problem": null, "counters": serde_json::to_value(codex_control::ipc::Counters::default()).unwrap(),
        }))
        .unwrap();
        let entry = json!({
            "slug": "glm-4.7", "display_name": "GLM 4.7", "context_window": 200_000, "input_modalities": ["text", "image"],
            "supported_reasoning_levels": [{"effort": "low"}, {"effort": "high"}],
        });
        assert_eq!(row(&status, &entry), ["glm-4.7 (default)", "GLM 4.7", "200 k", "text, image", "low, high"]);
        assert_eq!(row(&status, &json!({"slug": "x"})), ["x", "", "", "", ""]);
        assert_eq!(shown(&status, &[]), "zai offers no models");
    }
}
