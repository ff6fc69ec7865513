//! `codexctl actions [list|cancel|approve]`

use clap::Subcommand;
use codex_control::incident::{ActionId, AttemptState};
use codex_control::rpc::{ActionLine, ActionParams};

use super::incidents::tier_name;
use crate::client::CALL_TIMEOUT;
use crate::failure::Failure;
use crate::{Context, daemon, text};

/// Shows what is being done by itself at the moment, stops it or lets it happen
///
/// Without a command, lists the actions that wait, are under way, or have changed something that stands.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  codexctl actions
  codexctl actions cancel 14     # stops it, or takes back what it has changed
  codexctl actions approve 15    # lets one happen that asks first")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Lists the actions that wait, are under way, or have changed something that stands
    #[command(after_help = "Example:
  codexctl actions list --json")]
    List,
    /// Stops an action that has not begun, or takes back what one has changed
    #[command(after_help = "Example:
  codexctl actions cancel 14")]
    Cancel(Action),
    /// Lets an action happen now that waits
    #[command(after_help = "Example:
  codexctl actions approve 14")]
    Approve(Action),
}

#[derive(Clone, Debug, clap::Args)]
struct Action {
    /// Number of the action, as in `codexctl actions`
    #[arg(value_name = "ID")]
    id: u64,
}

pub(crate) fn run(ctx: &Context, arguments: &Arguments) -> Result<(), Failure> {
    let mut client = daemon::connect(ctx)?;
    let (method, id) = match &arguments.command {
        None | Some(Command::List) => {
            let lines: Vec<ActionLine> = client.call("action.list", (), CALL_TIMEOUT)?;
            return ctx.output.show(&lines, || listed(&lines, text::now_ms()));
        }
        Some(Command::Cancel(Action { id })) => ("action.cancel", *id),
        Some(Command::Approve(Action { id })) => ("action.approve", *id),
    };
    let line: ActionLine = client.call(method, ActionParams { id: ActionId(id) }, CALL_TIMEOUT)?;
    ctx.output.show(&line, || {
        let on = line.endpoint.as_ref().map(|id| format!(" on `{id}`")).unwrap_or_default();
        let what = match (method, line.attempt.state) {
            ("action.approve", _) => "approved",
            (_, AttemptState::Cancelled) => "cancelled",
            _ => "taken back",
        };
        format!("{what}: {}{on}\n", line.attempt.action)
    })
}

fn listed(lines: &[ActionLine], now_ms: u64) -> String {
    if lines.is_empty() {
        return "nothing is being done, and nothing stands that was\n".to_owned();
    }
    let rows: Vec<[String; 7]> = lines
        .iter()
        .map(|line| {
            let attempt = &line.attempt;
            let then = attempt.then.map(|then| format!(", {then}")).unwrap_or_default();
            let state = match attempt.state {
                AttemptState::Planned { at_ms } => format!("in {}", text::duration(at_ms.saturating_sub(now_ms))),
                AttemptState::Asked => "waits for your yes".to_owned(),
                _ if line.stands => {
                    format!("stands, for {}", text::duration(now_ms.saturating_sub(attempt.decided_at_ms)))
                }
                state => state.name().to_owned(),
            };
            [
                attempt.id.to_string(),
                line.endpoint.as_ref().map(ToString::to_string).unwrap_or_default(),
                format!("{}{then}", attempt.action),
                tier_name(attempt.tier),
                attempt.because.clone(),
                state,
                line.incident.to_string(),
            ]
        })
        .collect();
    let table = text::table(["ID", "ENDPOINT", "ACTION", "BY", "BECAUSE", "STATE", "INCIDENT"], &rows);
    format!("{table}\n`codexctl actions cancel ID` stops one, or takes back what it has changed\n")
}
