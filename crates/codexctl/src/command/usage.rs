//! `codexctl usage [--since SPAN]`

use codex_control::rpc::{Usage, UsageLine, UsageParams};

use crate::client::CALL_TIMEOUT;
use crate::failure::Failure;
use crate::since::Since;
use crate::text;
use crate::{Context, daemon};

/// Shows requests, tokens and times for each endpoint and model
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  codexctl usage
  codexctl usage --since 24h")]
pub(crate) struct Arguments {
    /// How far back: 30m, 24h, 7d, 4w, or `all`
    #[arg(long, value_name = "SPAN", default_value = "30d")]
    since: Since,
}

pub(crate) fn run(ctx: &Context, arguments: &Arguments) -> Result<(), Failure> {
    let now_ms = text::now_ms();
    let params = UsageParams { since_ms: arguments.since.at_ms(now_ms) };
    let usage: Usage = daemon::connect(ctx)?.call("usage.show", params, CALL_TIMEOUT)?;
    ctx.output.show(&usage, || shown(&usage, arguments.since, now_ms))
}

fn shown(usage: &Usage, since: Since, now_ms: u64) -> String {
    let words = since.words();
    let [first, rest @ ..] = &usage.lines[..] else {
        return format!("no request {words}\n");
    };
    let mut total = first.clone();
    for line in rest {
        add(&mut total, line);
    }
    let mut parts = vec![format!(
        "{} {words}, {} failed, {} tokens in and {} out\n",
        text::count(usize::try_from(total.requests).unwrap_or(usize::MAX), "request"),
        total.failed,
        text::amount(total.input_tokens),
        text::amount(total.output_tokens)
    )];
    let header =
        ["ENDPOINT", "MODEL", "REQUESTS", "FAILED", "RETRIED", "IN", "CACHED", "OUT", "REASONING", "FIRST", "LAST"];
    let rows: Vec<[String; 11]> = usage.lines.iter().map(|line| row(line, now_ms)).collect();
    parts.push(text::table(header, &rows));
    if !usage.failures.is_empty() {
        let failures: Vec<String> = usage.failures.iter().map(|(class, n)| format!("{class} {n}")).collect();
        parts.push(format!("failures: {}\n", failures.join(", ")));
    }
    parts.join("\n")
}

fn add(total: &mut UsageLine, line: &UsageLine) {
    total.requests += line.requests;
    total.failed += line.failed;
    total.input_tokens += line.input_tokens;
    total.output_tokens += line.output_tokens;
}

fn row(line: &UsageLine, now_ms: u64) -> [String; 11] {
    [
        line.endpoint.clone(),
        line.model.clone(),
        line.requests.to_string(),
        line.failed.to_string(),
        line.retried.to_string(),
        text::amount(line.input_tokens),
        text::amount(line.cached_tokens),
        text::amount(line.output_tokens),
        text::amount(line.reasoning_tokens),
        line.first_event_mean_ms.map(text::duration).unwrap_or_default(),
        text::ago(now_ms, line.last_at_ms),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_sees_the_total_first() {
        let line = UsageLine {
            endpoint: "zai".to_owned(),
            model: "glm-4.7".to_owned(),
            requests: 120,
            failed: 3,
            cancelled: 1,
            retried: 7,
            input_tokens: 4_210_000,
            output_tokens: 31_400,
            cached_tokens: 3_900_000,
            reasoning_tokens: 0,
            first_event_mean_ms: Some(840),
            elapsed_mean_ms: Some(9_000),
            last_at_ms: 1_000,
        };
        let other = UsageLine { model: "glm-4.5-air".to_owned(), requests: 1, failed: 0, retried: 0, ..line.clone() };
        let usage = Usage { since_ms: 0, lines: vec![line, other], failures: vec![("rate-limit".to_owned(), 3)] };
        assert_eq!(
            shown(&usage, Since::Ms(86_400_000), 61_000),
            "121 requests in the last 24 hours, 3 failed, 8.42 M tokens in and 62.8 k out\n\n\
             ENDPOINT  MODEL        REQUESTS  FAILED  RETRIED  IN      CACHED  OUT     REASONING  FIRST   LAST\n\
             zai       glm-4.7      120       3       7        4.21 M  3.90 M  31.4 k  0          840 ms  1 min ago\n\
             zai       glm-4.5-air  1         0       0        4.21 M  3.90 M  31.4 k  0          840 ms  1 min ago\n\
             \n\
             failures: rate-limit 3\n"
        );
        let nothing = Usage { since_ms: 0, lines: Vec::new(), failures: Vec::new() };
        assert_eq!(shown(&nothing, Since::All, 0), "no request in all the time that is kept\n");
    }
}
