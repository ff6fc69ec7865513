//! Everything about an endpoint that can be tried out, as a list of findings in the order in which one depends on the
//! one before.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use codex_control::ipc::Problem;
use codex_control::token;
use codex_control::{EndpointId, Secret};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::client::Client;
use crate::failure::Failure;
use crate::probe::Probe;
use crate::{Context, http, probe, text};

/// Time for one answer of the model in a round trip: the worker itself tries again and waits meanwhile.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(2);
/// Time for an answer that the worker gives by itself.
const WORKER_TIMEOUT: Duration = Duration::from_secs(5);
/// Most of a provider's words that are shown.
const WORDS_CHARS_MAX: usize = 120;
/// The tool of the round trip, and what it gives back.
const TOOL: (&str, &str) = ("read_checkword", "heliotrope");

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    /// It was tried and works.
    Good,
    /// Worth knowing; nothing has to be done.
    Note,
    /// It was not tried.
    Skipped,
    /// It does not work.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Finding {
    /// What was looked at, in a word or two.
    pub(crate) what: &'static str,
    pub(crate) state: State,
    /// What was found.
    pub(crate) message: String,
    /// What to do.
    pub(crate) hint: Option<String>,
    /// How long it took.
    pub(crate) elapsed_ms: Option<u64>,
}

impl Finding {
    pub(crate) fn new(what: &'static str, state: State, message: impl Into<String>) -> Self {
        Self { what, state, message: message.into(), hint: None, elapsed_ms: None }
    }

    pub(crate) fn bad(what: &'static str, problem: Problem) -> Self {
        Self { hint: problem.hint, ..Self::new(what, State::Bad, problem.message) }
    }

    pub(crate) fn failed(what: &'static str, failure: Failure) -> Self {
        let (message, hint) = failure.into_parts();
        Self::bad(what, Problem { message, hint })
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    fn took(self, since: Instant) -> Self {
        Self { elapsed_ms: Some(u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)), ..self }
    }

    /// One line, and one for the remedy of what does not work.
    fn line(&self, width: usize, indent: &str) -> String {
        let mark = match self.state {
            State::Good => "ok  ",
            State::Note => "note",
            State::Skipped => "-   ",
            State::Bad => "BAD ",
        };
        let took = self.elapsed_ms.map(|ms| format!(" ({})", text::duration(ms))).unwrap_or_default();
        let hint = self.hint.as_ref().map(|hint| format!("{indent}        hint: {hint}\n")).unwrap_or_default();
        format!("{indent}{mark}  {:width$}  {}{took}\n{hint}", self.what, self.message.replace('\n', " "))
    }
}

/// `findings` for a person, each line after `indent`.
pub(crate) fn lines(findings: &[Finding], indent: &str) -> String {
    let width = findings.iter().map(|finding| finding.what.len()).max().unwrap_or(0);
    findings.iter().map(|finding| finding.line(width, indent)).collect()
}

/// The first thing that does not work, as the failure of a command.
pub(crate) fn verdict<'f>(findings: impl IntoIterator<Item = &'f Finding>) -> Result<(), Failure> {
    let bad = findings.into_iter().find(|finding| finding.state == State::Bad);
    match bad {
        None => Ok(()),
        Some(bad) => Err(Failure::new(format!("{}: {}", bad.what, bad.message)).hint_if(bad.hint.clone())),
    }
}

/// What an endpoint's provider has taught its worker, by model.
pub(crate) type Learned = BTreeMap<String, Vec<Change>>;

/// One change of requests that has turned a refusal into an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Change {
    /// What is done, e.g. `drop:stream_options`.
    pub(crate) repair: String,
    /// The provider's words that led to it.
    pub(crate) evidence: String,
    /// Unix milliseconds.
    pub(crate) learned_at_ms: u64,
}

/// A worker that answers, and the right to ask it.
pub(crate) struct Worker {
    address: SocketAddr,
    token: Secret,
}

impl Worker {
    fn find(ctx: &Context, endpoint: &EndpointId, address: SocketAddr) -> Result<Self, Failure> {
        let path = ctx.paths.token(endpoint);
        let token = token::read_token(&path).map_err(|error| Failure::from_error(&error))?;
        let missing = || Failure::new(format!("endpoint `{endpoint}` has no local token in `{}`", path.display()));
        Ok(Self { address, token: token.ok_or_else(missing)? })
    }

    fn ask(&self, method: &str, path: &str, body: &[u8], timeout: Duration) -> Result<Vec<u8>, Failure> {
        let answer = http::ask(self.address, method, path, &self.token, body, timeout)
            .map_err(|error| Failure::new(format!("the worker does not answer: {error}")))?;
        if answer.status == 200 {
            return Ok(answer.body);
        }
        let said = serde_json::from_slice::<Value>(&answer.body).ok();
        let said = said.as_ref().and_then(|body| body["error"]["message"].as_str()).map(str::to_owned);
        Err(Failure::new(said.unwrap_or_else(|| String::from_utf8_lossy(&answer.body).trim().to_owned())))
    }

    fn ask_json(&self, method: &str, path: &str) -> Result<Value, Failure> {
        serde_json::from_slice(&self.ask(method, path, b"", WORKER_TIMEOUT)?)
            .map_err(|error| Failure::new(format!("the worker's answer is not JSON: {error}")))
    }

    /// What was learned.
    fn learned(&self) -> Result<Learned, Failure> {
        let monitoring = self.ask_json("GET", "/v1/monitoring")?;
        serde_json::from_value(monitoring["learned"].clone())
            .map_err(|error| Failure::new(format!("what was learned has an unknown form: {error}")))
    }

    /// Forgets it; says how many changes that were.
    fn forget_learned(&self) -> Result<usize, Failure> {
        let answer = self.ask_json("DELETE", "/v1/learned")?;
        Ok(answer["forgotten"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or_default())
    }

    /// Lets the model call a tool and read its result, as every turn of Codex does.
    fn round_trip(&self, model: &str) -> Result<(), Failure> {
        let (tool, word) = TOOL;
        let question =
            format!("Call the tool `{tool}` once, then answer with the word it gives you, and nothing else.");
        let mut body = json!({
            "model": model,
            "stream": true,
            "store": false,
            "input": [{ "type": "message", "role": "user", "content": [{ "type": "input_text", "text": question }] }],
            "tools": [{
                "type": "function", "name": tool, "description": "Gives the word of the day.", "strict": false,
                "parameters": { "type": "object", "properties": {}, "additionalProperties": false },
            }],
        });
        let mut output = self.answer(&body)?;
        let call = output.iter().find(|item| item["type"] == "function_call").cloned();
        let Some(call) = call else {
            return Err(Failure::new(format!(
                "the model `{model}` answered without calling the tool it was told to call"
            ))
            .hint("choose a model that can use tools: Codex does everything with them"));
        };
        let result = json!({ "type": "function_call_output", "call_id": call["call_id"], "output": word });
        let input = body["input"].as_array_mut().expect("`input` was just made");
        input.append(&mut output);
        input.push(result);
        let said: String = self
            .answer(&body)?
            .iter()
            .filter(|item| item["type"] == "message")
            .flat_map(|item| item["content"].as_array().cloned().unwrap_or_default())
            .filter_map(|part| part["text"].as_str().map(str::to_owned))
            .collect();
        if said.contains(word) {
            return Ok(());
        }
        Err(Failure::new(format!("the model `{model}` did not use what the tool gave it: {}", cut(&said))))
    }

    /// The finished items of an answer, read as Codex reads them.
    fn answer(&self, body: &Value) -> Result<Vec<Value>, Failure> {
        let stream = self.ask("POST", "/v1/responses", body.to_string().as_bytes(), ANSWER_TIMEOUT)?;
        finished_items(&String::from_utf8_lossy(&stream))
    }
}

fn finished_items(stream: &str) -> Result<Vec<Value>, Failure> {
    let mut items = Vec::new();
    let data = stream.lines().filter_map(|line| line.strip_prefix("data:"));
    for mut event in data.filter_map(|data| serde_json::from_str::<Value>(data.trim_start()).ok()) {
        match event["type"].as_str().unwrap_or_default() {
            "response.output_item.done" => items.push(event["item"].take()),
            "response.completed" => return Ok(items),
            "response.failed" => {
                let message = event["response"]["error"]["message"].as_str().unwrap_or("the answer failed");
                return Err(Failure::new(message));
            }
            "response.incomplete" => return Err(Failure::new("the answer was cut off by the provider")),
            _ => {}
        }
    }
    Err(Failure::new("the answer was cut off"))
}

fn cut(words: &str) -> String {
    let cut: String = words.chars().take(WORDS_CHARS_MAX).collect();
    if cut.len() < words.len() { format!("{cut}…") } else { cut }
}

/// What may be done to an endpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Let the model answer, which costs some tokens.
    pub(crate) asks_model: bool,
    /// Forget what was learned.
    pub(crate) clears_learned: bool,
}

/// Tries `endpoint` out.
pub(crate) fn endpoint(ctx: &Context, client: &mut Client, endpoint: &EndpointId, options: Options) -> Vec<Finding> {
    let (status, probe) = probe::probe(ctx, client, endpoint, false);
    let Probe { healthy_ms, models_ms, n_models, problem, .. } = probe;
    let mut findings = Vec::new();
    let Some(address) = status.as_ref().and_then(|status| status.address) else {
        let problem =
            problem.unwrap_or_else(|| Problem { message: format!("endpoint `{endpoint}` has no address"), hint: None });
        findings.push(Finding::bad("worker", problem));
        return findings;
    };
    findings.push(Finding {
        elapsed_ms: healthy_ms,
        ..Finding::new("worker", State::Good, format!("answers at {address}"))
    });
    findings.push(match (problem, n_models) {
        (Some(problem), _) => Finding { elapsed_ms: models_ms, ..Finding::bad("provider", problem) },
        (None, Some(n)) => {
            let models = text::count(n, "model");
            Finding {
                elapsed_ms: models_ms,
                ..Finding::new("provider", State::Good, format!("key not refused, {models}"))
            }
        }
        (None, None) => Finding::new("provider", State::Skipped, "it gives no list of models"),
    });
    let is_good = findings.iter().all(|finding| finding.state != State::Bad);
    let worker = match Worker::find(ctx, endpoint, address) {
        Ok(worker) => worker,
        Err(failure) => {
            findings.push(Finding::failed("token", failure));
            return findings;
        }
    };
    let model = status.and_then(|status| status.default_model);
    findings.push(match model {
        _ if !options.asks_model => Finding::new("tool call", State::Skipped, "not asked for"),
        _ if !is_good => Finding::new("tool call", State::Skipped, "the provider does not work"),
        None => Finding::new("tool call", State::Skipped, "the endpoint has no default model")
            .hint(format!("`codexctl endpoint set {endpoint} default_model MODEL`")),
        Some(model) => {
            let begin = Instant::now();
            match worker.round_trip(&model) {
                Ok(()) => {
                    Finding::new("tool call", State::Good, format!("`{model}` called a tool and used its result"))
                }
                Err(failure) => Finding::failed("tool call", failure),
            }
            .took(begin)
        }
    });
    // After the round trip, which may have taught something.
    if options.clears_learned {
        findings.push(match worker.forget_learned() {
            Ok(n) => Finding::new("learned", State::Note, format!("{} forgotten", text::count(n, "change"))),
            Err(failure) => Finding::failed("learned", failure),
        });
    } else {
        findings.extend(learned(endpoint, worker.learned(), text::now_ms()));
    }
    findings
}

fn learned(endpoint: &EndpointId, learned: Result<Learned, Failure>, now_ms: u64) -> Vec<Finding> {
    let learned = match learned {
        Ok(learned) => learned,
        Err(failure) => return vec![Finding::failed("learned", failure)],
    };
    let mut findings: Vec<Finding> = learned
        .iter()
        .flat_map(|(model, changes)| changes.iter().map(move |change| (model, change)))
        .map(|(model, Change { repair, evidence, learned_at_ms })| {
            let (age, words) = (text::ago(now_ms, *learned_at_ms), cut(evidence));
            Finding::new("learned", State::Note, format!("{repair} for `{model}`, {age}: \"{words}\""))
        })
        .collect();
    if let Some(last) = findings.last_mut() {
        last.hint =
            Some(format!("`codexctl doctor {endpoint} --clear-learned` makes it be tried anew; it is after a day"));
    } else {
        findings.push(Finding::new("learned", State::Good, "nothing had to be changed for this provider"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_read_at_a_glance() {
        let findings = [
            Finding { elapsed_ms: Some(12), ..Finding::new("worker", State::Good, "answers") },
            Finding::new("provider", State::Bad, "it\nis gone").hint("look for it"),
            Finding::new("tool call", State::Skipped, "the provider does not work"),
        ];
        let expected = "  ok    worker     answers (12 ms)\n  BAD   provider   it is gone\n          hint: look for it\n  -     tool call  the provider does not work\n";
        assert_eq!(lines(&findings, "  "), expected);
        let failure = verdict(&findings).unwrap_err();
        assert_eq!(failure, Failure::new("provider: it\nis gone").hint("look for it"));
        assert_eq!(verdict(&findings[..1]), Ok(()));
    }

    #[test]
    fn answers_are_read_as_codex_reads_them() {
        let done =
            "event: response.output_item.done\ndata: {\"type\":\"response.output_item.done\",\"item\":{\"n\":1}}\n\n";
        let completed = "data:{\"type\":\"response.completed\",\"response\":{}}\n\n";
        let failed = "data: {\"type\":\"response.failed\",\"response\":{\"error\":{\"message\":\"no\"}}}\n\n";
        assert_eq!(finished_items(&format!("{done}{completed}")), Ok(vec![json!({ "n": 1 })]));
        assert_eq!(finished_items(&format!("{done}{failed}")), Err(Failure::new("no")));
        assert_eq!(finished_items(done), Err(Failure::new("the answer was cut off")));
    }

    #[test]
    fn what_was_learned_is_shown_with_its_evidence_and_age() {
        let id: EndpointId = "e".parse().unwrap();
        let change = Change { repair: "drop:x".to_owned(), evidence: "no ".repeat(100), learned_at_ms: 1_000 };
        let all = Learned::from([("m".to_owned(), vec![change])]);
        let findings = learned(&id, Ok(all), 3_601_000);
        assert!(findings[0].message.starts_with("drop:x for `m`, 1 h 0 min ago: \"no no"), "{}", findings[0].message);
        assert!(findings[0].message.ends_with("…\"") && findings[0].message.len() < 200);
        assert!(findings[0].hint.as_deref().is_some_and(|hint| hint.contains("doctor e --clear-learned")));
        assert_eq!(learned(&id, Ok(Learned::new()), 0)[0].state, State::Good);
    }
}
