//! `codexctl accounts ENDPOINT`

use serde_json::Value;

use crate::failure::Failure;
use crate::{Context, daemon, probe, text};

/// Shows whose key an endpoint uses, where it comes from and until when it is valid, never the key
///
/// An endpoint has one account at most. Its name tells it from others and says nothing else; requests, costs and what a
/// provider wants back are kept apart by it.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:
  codexctl accounts zai")]
pub(crate) struct Arguments {
    #[command(flatten)]
    endpoint: super::EndpointArgument,
}

pub(crate) fn run(ctx: &Context, arguments: &Arguments) -> Result<(), Failure> {
    let id = &arguments.endpoint.id;
    let mut client = daemon::connect_or_start(ctx, daemon::START_TIMEOUT)?;
    let status = probe::wake(&mut client, Some(id), probe::WAKE_TIMEOUT, probe::WAKE_MARGIN)?;
    let address = status.address.ok_or_else(|| Failure::new(format!("endpoint `{id}` has no address")))?;
    let body = probe::accounts(ctx, id, address)?;
    let accounts = body["accounts"].as_array().map_or(&[][..], Vec::as_slice);
    ctx.output.show(&body, || {
        if accounts.is_empty() {
            return format!("{id} needs no key");
        }
        let rows: Vec<[String; 3]> = accounts.iter().map(|account| row(account, text::now_ms())).collect();
        text::table(["ACCOUNT", "KEY", "STATE"], &rows)
    })?;
    for problem in accounts.iter().map(|account| &account["problem"]).filter(|problem| problem.is_object()) {
        ctx.output.warn(problem["message"].as_str().unwrap_or_default(), problem["hint"].as_str());
    }
    Ok(())
}

fn row(account: &Value, now_ms: u64) -> [String; 3] {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let from = &account["key_from"];
    let place = match from["kind"].as_str() {
        Some("store") => "the credentials store".to_owned(),
        Some("env") => format!("${} of the supervisor's environment", word(&from["name"])),
        Some("file") => format!("the file {}", word(&from["path"])),
        Some("command") => format!("printed by `{}`", word(&from["program"])),
        _ => "unknown".to_owned(),
    };
    let state = match account["expires_at_ms"].as_u64() {
        _ if account["has_key"] == false => "no key".to_owned(),
        Some(at_ms) if at_ms <= now_ms => format!("expired {} ago", text::duration(now_ms - at_ms)),
        Some(at_ms) => format!("valid for {}", text::duration(at_ms - now_ms)),
        None => "there; says nothing about its end".to_owned(),
    };
    let name = account["account"].as_str().unwrap_or("unknown");
    [name.to_owned(), place, state]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_account_becomes_a_row() {
        for (account, expected) in [
            (
                json!({ "account": "a1", "key_from": { "kind": "store" }, "has_key": true, "expires_at_ms": null }),
                ["a1", "the credentials store", "there; says nothing about its end"],
            ),
            (
                json!({ "account": "a1", "key_from": { "kind": "env", "name": "K" }, "has_key": true, "expires_at_ms": 61_000 }),
                ["a1", "$K of the supervisor's environment", "valid for 1 min"],
            ),
            (
                json!({ "account": "a1", "key_from": { "kind": "command", "program": "pass" }, "has_key": true, "expires_at_ms": 0 }),
                ["a1", "printed by `pass`", "expired 1.0 s ago"],
            ),
            (
                json!({ "account": null, "key_from": { "kind": "file", "path": "/k" }, "has_key": false }),
                ["unknown", "the file /k", "no key"],
            ),
        ] {
            assert_eq!(row(&account, 1_000), expected);
        }
    }
}
