//! Every failure of a provider, at every place of its answer, through real workers over TCP.
//!
//! A case is a good answer, a [`Fault`] and a place. The provider's first answer fails there in that way, its second one
//! is good. What must hold, whatever the case:
//! - the stream is well-formed, with exactly one terminal event, last; a native one is what the provider sent, or a
//!   beginning of it;
//! - no call is there in part or twice;
//! - a failure before anything is shown is invisible: the answer is the second one, whole, and the provider was asked
//!   twice;
//! - a failure after that ends the answer as failed, in a way that makes Codex ask again, unless the answer was whole.

mod samples;
pub(crate) mod upstream;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use codex_control::tables::Protocol;
use codex_translate::checker::{self, Transcript};
use e2e::home::SandboxHome;
use e2e::http::Answer;
use serde_json::json;

use crate::load::from_environment;
use crate::standalone::{PROTOCOLS, Worker};
use samples::{Said, Sample};
use upstream::{CASE_DIGITS, CASE_MARK, Case, Fault, Form, Words};

/// Requests at a time.
const CONCURRENT: usize = 64;
/// Random places for each answer and fault, beside the boundaries of its events.
const RANDOM_PLACES: usize = 60;
/// Places for each answer where the provider stalls: each costs seconds.
const STALLS: usize = 6;
/// Times that each answer is preceded by each status.
const STATUS_TIMES: usize = 4;
/// Cases that the sweep must have at least for each protocol.
const CASES_MIN: usize = 5_000;
/// Of wrong cases, so many are shown.
const SHOWN_MAX: usize = 10;
/// Start of the random places where the environment does not say otherwise: the same ones each time.
const SEED: (&str, u64) = ("E2E_SWEEP_SEED", 0x5EED_0F5E_EDED_CA5E);

#[test]
fn no_failure_of_a_provider_breaks_an_answer() {
    let seed = from_environment(SEED);
    let cases = Arc::new(cases(seed));
    for protocol in PROTOCOLS {
        let n_cases = cases.iter().filter(|case| case.sample.protocol == protocol).count();
        assert!(n_cases >= CASES_MIN, "{n_cases} cases of {}", protocol.name());
    }
    let provider = upstream::start(Arc::clone(&cases)).expect("a loopback port is to be had");
    let home = SandboxHome::new();
    let workers = Workers::start(&home, provider);
    let begin = Instant::now();
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Results::default());
    thread::scope(|scope| {
        for _ in 0..CONCURRENT {
            scope.spawn(|| {
                while let Some((number, case)) = {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    cases.get(number).map(|case| (number, case))
                } {
                    let verdict = workers.ask(number, case).and_then(|answer| judge(case, &answer));
                    results.lock().unwrap_or_else(PoisonError::into_inner).add(number, case, verdict);
                }
            });
        }
    });
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("{} cases of seed {seed} in {:.1} s", cases.len(), begin.elapsed().as_secs_f64());
    for protocol in PROTOCOLS.map(Protocol::name) {
        let of_protocol = || results.counts.iter().filter(|((name, _), _)| *name == protocol);
        let verdicts: Vec<String> = of_protocol().map(|((_, verdict), n)| format!("{n} {verdict:?}")).collect();
        println!("{protocol}: {} right: {}", of_protocol().map(|(_, n)| n).sum::<usize>(), verdicts.join(", "));
    }
    assert!(results.wrong.is_empty(), "{} wrong cases\n{}", results.wrong.len(), results.shown());
    for protocol in PROTOCOLS.map(Protocol::name) {
        for verdict in [Verdict::Invisible, Verdict::Whole, Verdict::Failed, Verdict::Told] {
            assert!(results.counts.contains_key(&(protocol, verdict)), "no case of {protocol} was {verdict:?}");
        }
    }
}

/// What came of the cases.
#[derive(Default)]
struct Results {
    counts: BTreeMap<(&'static str, Verdict), usize>,
    wrong: Vec<String>,
}

impl Results {
    fn add(&mut self, number: usize, case: &Case, verdict: Result<Verdict, String>) {
        match verdict {
            Ok(verdict) => *self.counts.entry((case.sample.protocol.name(), verdict)).or_default() += 1,
            Err(problem) => {
                let Sample { name, protocol, bytes, .. } = &*case.sample;
                let asked = case.asked.load(Ordering::SeqCst);
                let (fault, at, length) = (case.fault, case.at, bytes.len());
                self.wrong.push(format!(
                    "case {number}: {fault:?} after {at} of {length} bytes of {} {name}, asked {asked} times: {problem}",
                    protocol.name()
                ));
            }
        }
    }

    fn shown(&self) -> String {
        self.wrong.iter().take(SHOWN_MAX).fold(String::new(), |mut text, problem| {
            let _ = writeln!(text, "{problem}\n"); // writing to a String cannot fail
            text
        })
    }
}

/// How a case went, well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    /// The second answer came in place of the first.
    Invisible,
    /// The first answer was whole before it failed.
    Whole,
    /// The answer ended as failed.
    Failed,
    /// What asking again cannot help was told before anything was shown.
    Told,
}

/// All cases, in an order that mixes slow and quick ones.
fn cases(seed: u64) -> Vec<Case> {
    let mut random = Random(seed);
    let mut cases = Vec::new();
    for sample in samples::all().into_iter().map(Arc::new) {
        let mut add =
            |fault, at| cases.push(Case { sample: Arc::clone(&sample), fault, at, asked: AtomicUsize::new(0) });
        let boundaries = sample.boundaries();
        let broken = [Fault::Close, Fault::Cut, Fault::Reset].into_iter();
        let faults = broken.chain(Words::ALL.map(Fault::Said)).chain(Form::ALL.map(Fault::Odd));
        for fault in faults {
            for at in &boundaries {
                add(fault, *at);
            }
            for _ in 0..RANDOM_PLACES {
                add(fault, random.below(sample.bytes.len()));
            }
        }
        for n in 0..STALLS {
            let is_boundary = n % 2 == 0;
            let at = random.below(sample.bytes.len());
            add(Fault::Stall, if is_boundary { boundaries[random.below(boundaries.len())] } else { at });
        }
        for status in [400, 401, 402, 403, 404, 408, 413, 429, 500, 502, 503, 504, 529] {
            for _ in 0..STATUS_TIMES {
                add(Fault::Status(status), 0);
            }
        }
    }
    for n in (1..cases.len()).rev() {
        cases.swap(n, random.below(n + 1));
    }
    cases
}

/// `SplitMix64`.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let bound = u64::try_from(bound.max(1)).unwrap_or(u64::MAX);
        usize::try_from((mixed ^ (mixed >> 31)) % bound).unwrap_or(0)
    }
}

/// Two workers for each protocol: one with the usual timeouts, and one with short ones, for stalls.
///
/// The short ones are as long as can be: ten seconds after the request Codex is told of the first failure, and by then
/// the second answer must have begun.
struct Workers {
    usual: Vec<Worker>,
    hasty: Vec<Worker>,
}

impl Workers {
    fn start(home: &SandboxHome, provider: SocketAddr) -> Self {
        let start = |name: &str, limits: &str| Worker::start_all(home, provider, name, limits);
        Self {
            usual: start("usual", ""),
            hasty: start("hasty", "[worker]\nconnect_timeout_s = 2\nfirst_byte_timeout_s = 3\nidle_timeout_s = 5\n"),
        }
    }

    fn ask(&self, number: usize, case: &Case) -> Result<Answer, String> {
        let is_stall = case.fault == Fault::Stall;
        let workers = if is_stall { &self.hasty } else { &self.usual };
        let worker = workers.iter().find(|worker| worker.protocol == case.sample.protocol).ok_or("no worker")?;
        let text = format!("{CASE_MARK}{number:0CASE_DIGITS$}.");
        let mut body = json!({
            "model": "scripted",
            "stream": true,
            "input": [{ "type": "message", "role": "user", "content": text }],
        });
        if !is_stall {
            // With tools the worker waits a minute longer for the first byte.
            body["tools"] = json!([{ "type": "function", "name": "exec_command", "description": "runs", "strict": false, "parameters": { "type": "object", "properties": { "cmd": { "type": "string" } } } }]);
        }
        worker.ask(&body.to_string())
    }
}

/// Says how a case went, or what is wrong with it.
fn judge(case: &Case, answer: &Answer) -> Result<Verdict, String> {
    let verdict = if answer.status == 200 {
        let is_stream = answer.header("content-type") == Some("text/event-stream");
        let verdict = match case.sample.protocol {
            _ if !is_stream => Err(format!("the content type is {:?}", answer.header("content-type"))),
            Protocol::Responses => judge_native(case, answer),
            Protocol::ChatCompletions | Protocol::AnthropicMessages => judge_translated(case, answer),
        };
        verdict.and_then(|verdict| is_possible(case, verdict))
    } else {
        judge_refusal(case, answer)
    };
    verdict.map_err(|problem| format!("{problem}\n{} {}", answer.status, answer.text()))
}

/// Whether what happened can happen at this place.
fn is_possible(case: &Case, verdict: Verdict) -> Result<Verdict, String> {
    let Case { sample, at, fault, .. } = case;
    let asked = case.asked.load(Ordering::SeqCst);
    let is_shown = *at >= sample.shown.end && !matches!(fault, Fault::Status(_));
    // In between it depends: an event without its empty line counts at the end of a body, and not elsewhere.
    let is_hidden = *at <= sample.shown.start;
    // Among short timeouts a busy machine may stall once more.
    let asked_max = if *fault == Fault::Stall { 3 } else { 2 };
    let problem = match verdict {
        Verdict::Invisible if asked < 2 || asked > asked_max => {
            "one answer has taken more, or fewer, than two attempts"
        }
        Verdict::Invisible if is_shown => "it should have been shown",
        Verdict::Whole | Verdict::Failed if asked != 1 => "after something was shown the provider was asked again",
        Verdict::Whole if *at <= sample.whole_from => "it was not whole",
        Verdict::Failed if is_hidden => "a failure before anything was shown is seen",
        Verdict::Failed if *at >= sample.whole_by && !fault.is_told() => "it was whole",
        _ => return Ok(verdict),
    };
    Err(format!("{verdict:?}: {problem}"))
}

fn judge_translated(case: &Case, answer: &Answer) -> Result<Verdict, String> {
    let transcript = checker::check(&answer.body)?;
    let terminal = transcript.terminal.clone().ok_or("no terminal event")?;
    let said = said(&transcript)?;
    match terminal.status.as_str() {
        "completed" if said != case.sample.said => Err(format!("completed, but it says {said:?}")),
        "completed" if case.asked.load(Ordering::SeqCst) == 1 => Ok(Verdict::Whole),
        "completed" => Ok(Verdict::Invisible),
        "failed" if !said.begins(&case.sample.said) => Err(format!("it failed, but it says {said:?}")),
        "failed" => {
            let code = terminal.error_code.unwrap_or_default();
            let may_pass = matches!(code.as_str(), "server_error" | "rate_limit_exceeded");
            if case.fault.may_pass() && !may_pass {
                return Err(format!("`{code}` keeps Codex from asking again"));
            }
            Ok(Verdict::Failed)
        }
        other => Err(format!("it ended as {other}")),
    }
}

/// The finished items; of an item that stays open, text counts and a call does not.
fn said(transcript: &Transcript) -> Result<Said, String> {
    let calls = transcript.calls().into_iter().map(|call| {
        let name = call["name"].as_str().ok_or("a call without a name")?;
        let arguments = call["arguments"].as_str().ok_or("a call without arguments")?;
        let arguments = serde_json::from_str(arguments).map_err(|error| format!("a call in part: {error}"))?;
        Ok((name.to_owned(), arguments))
    });
    let calls = calls.collect::<Result<_, String>>()?;
    Ok(Said { text: transcript.text.clone(), reasoning: transcript.reasoning.clone(), calls })
}

fn judge_native(case: &Case, answer: &Answer) -> Result<Verdict, String> {
    let whole = &case.sample.bytes;
    if case.asked.load(Ordering::SeqCst) > 1 {
        if answer.body != *whole {
            return Err("it is not what the second answer was".to_owned());
        }
        let said = said(&checker::check(&answer.body)?)?;
        return if said == case.sample.said { Ok(Verdict::Invisible) } else { Err(format!("it says {said:?}")) };
    }
    let sent = case.bad_body();
    if !sent.starts_with(&answer.body) {
        return Err("it is not a beginning of what the provider sent".to_owned());
    }
    if answer.body.starts_with(&whole[..case.sample.whole_by]) {
        return Ok(Verdict::Whole);
    }
    // What was sent before the failure has arrived, and the provider's own words, too.
    if answer.body.len() < sent.len() { Err("bytes are missing".to_owned()) } else { Ok(Verdict::Failed) }
}

/// An answer that is no stream: right for what asking again cannot help, as long as nothing was shown.
fn judge_refusal(case: &Case, answer: &Answer) -> Result<Verdict, String> {
    let is_final = !case.fault.may_pass();
    let is_told = answer.status == 400 && !answer.body.is_empty();
    let is_hidden = case.at < case.sample.shown.end;
    if is_final && is_told && is_hidden { Ok(Verdict::Told) } else { Err("it was refused".to_owned()) }
}
