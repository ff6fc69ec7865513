//! `codexctl models ENDPOINT [--refresh]`

use codex_control::rpc::EndpointStatus;
use serde_json::Value;

use crate::failure::Failure;
use crate::{Context, daemon, probe, text};

/// Lists the models of an endpoint, as Codex sees them
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:
  codexctl models zai --refresh")]
pub(crate) struct Arguments {
    #[command(flatten)]
    endpoint: super::EndpointArgument,
    /// Ask the provider anew instead of using the list of the last hour
    #[arg(long)]
    refresh: bool,
}

pub(crate) fn run(ctx: &Context, arguments: &Arguments) -> Result<(), Failure> {
    let id = &arguments.endpoint.id;
    let mut client = daemon::connect_or_start(ctx, daemon::START_TIMEOUT)?;
    let status = probe::wake(&mut client, Some(id), probe::WAKE_TIMEOUT, probe::WAKE_MARGIN)?;
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
