//! `codexctl monitor [show|on|off|set KEY VALUE]`

use clap::Subcommand;
use codex_control::rpc::{MonitorSetParams, MonitorStatus};
use serde_json::Value;

use crate::client::CALL_TIMEOUT;
use crate::failure::Failure;
use crate::text::{self, told};
use crate::{Context, daemon};

/// Shows and changes what may be done about failures by itself, and what the AI has cost
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  codexctl monitor
  codexctl monitor off
  codexctl monitor set ai_endpoint ollama
  codexctl monitor set auto_switch_provider true")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Shows the settings, what the AI has cost this month, and how much was learned
    #[command(after_help = "Example:
  codexctl monitor show --json")]
    Show,
    /// Acts on failures by itself
    #[command(after_help = "Example:
  codexctl monitor on")]
    On,
    /// Only writes down what goes wrong; workers that end are started again all the same
    #[command(after_help = "Example:
  codexctl monitor off")]
    Off,
    /// Changes a setting in supervisor.toml; comments stay
    #[command(after_help = "Examples:
  codexctl monitor set tier3_enabled false
  codexctl monitor set ai_budget_cents 500
  codexctl monitor set ai_model              # removes it: the default holds")]
    Set {
        /// The setting, as in `codexctl monitor`
        key: String,
        /// Its value; without one, the setting is removed
        value: Option<String>,
    },
}

pub(crate) fn run(ctx: &Context, arguments: &Arguments) -> Result<(), Failure> {
    let mut client = daemon::connect(ctx)?;
    let enabled = |value: &str| Some(("enabled".to_owned(), Some(value.to_owned())));
    let set = match &arguments.command {
        None | Some(Command::Show) => None,
        Some(Command::On) => enabled("true"),
        Some(Command::Off) => enabled("false"),
        Some(Command::Set { key, value }) => Some((key.clone(), value.clone())),
    };
    let status: MonitorStatus = match set {
        None => client.call("monitor.show", (), CALL_TIMEOUT)?,
        Some((key, value)) => client.call("monitor.set", MonitorSetParams { key, value }, CALL_TIMEOUT)?,
    };
    ctx.output.show(&status, || shown(&status))
}

fn shown(status: &MonitorStatus) -> String {
    let settings = &status.settings;
    let count = |n: u64, noun: &str| text::count(usize::try_from(n).unwrap_or(usize::MAX), noun);
    let head = if settings.enabled { "monitoring is ON" } else { "monitoring is OFF: failures are only written down" };
    let mut text = format!("{head}, {} open\n", count(status.incidents_open, "incident"));
    let asks = match (&settings.ai_endpoint, &status.ai_model) {
        _ if !settings.tier3_enabled => "nobody: `tier3_enabled` is off".to_owned(),
        (None, _) => "nobody: `codexctl monitor set ai_endpoint ENDPOINT` names one".to_owned(),
        (Some(id), Some(model)) => format!("{model} on `{id}`"),
        (Some(id), None) => format!("nobody at present (`{id}`)"),
    };
    text += &text::fields(&[
        ("AI that is asked", Some(asks)),
        (
            "cost this month",
            Some(format!(
                "${:.2} of ${}.{:02} ({}, {} within 24 hours)",
                status.ai_usd,
                settings.ai_budget_cents / 100,
                settings.ai_budget_cents % 100,
                count(status.ai_calls_month, "question"),
                status.ai_calls_day
            )),
        ),
        (
            "tokens this month",
            Some(format!("{} in, {} out", text::amount(status.ai_input_tokens), text::amount(status.ai_output_tokens))),
        ),
        ("learned fixes", Some(status.patterns.to_string())),
        ("signals left out", Some(status.signals_dropped_total).filter(|n| *n > 0).map(|n| n.to_string())),
    ]);
    if let Some(problem) = &status.ai_problem {
        text += &told(&format!("the AI is not asked: {problem}"), None);
    }
    let mut rows: Vec<[String; 2]> = serde_json::to_value(settings)
        .ok()
        .and_then(|value| value.as_object().cloned())
        .into_iter()
        .flatten()
        .map(|(key, value)| {
            let value = match value {
                Value::Null => String::new(),
                Value::String(word) => word,
                other => other.to_string(),
            };
            [key, value]
        })
        .collect();
    rows.push(["health_check_interval_s".to_owned(), status.health_check_interval_s.to_string()]);
    rows.push(["max_memory_mb".to_owned(), status.max_memory_mb.to_string()]);
    format!("{text}\n{}", text::table(["SETTING", "VALUE"], &rows))
}
