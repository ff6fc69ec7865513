//! The life of one request, read top to bottom in [`exchange`].
//!
//! ```text
//!            ┌── refused: no provider is asked
//! exchange ──┤
//!            └─► attempt ──► something visible ──► the answer flows (`stream.rs`)
//!                 ▲    │
//!                 └────┴── failed: nothing of it was sent, so it costs time and nothing else
//! ```
//!
//! The head of the answer waits for the first visible event: Codex has no limit there. When that takes longer than
//! [`OPEN_AFTER`], the stream is opened and kept alive with events, and what is waited for is said in it.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use codex_control::tables::Protocol as WireProtocol;
use codex_control::{Secret, redact};
use codex_translate::anthropic::Anthropic;
use codex_translate::chat::Chat;
use codex_translate::history::{earlier, fit};
use codex_translate::mark::{self, Mark};
use codex_translate::native::Sniffer;
use codex_translate::reply::{Outcome, ReplyConfig};
use codex_translate::tools::ToolTable;
use codex_translate::{
    Call, Decode, EncodeError, EndCause, Failure, FailureClass, Framing, Protocol, Repair, Reply, ReplySeed, Target,
    Trouble, native, responses,
};
use http::{HeaderMap, HeaderName, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio::time::error::Elapsed;

use crate::account::{Account, Conversation};
use crate::answer::{self, Body, Telling};
use crate::exhausted::Fingerprint;
use crate::models::UnknownModel;
use crate::serve::Drain;
use crate::stream::{Relay, TurnStream, read_tail};
use crate::upstream::{Answer, Patience};
use crate::worker::{Worker, now_unix_ms};
use crate::{body, target, upstream};

/// Time after which the head of the answer is sent although nothing of the answer is there yet: a person who sees
/// nothing for longer thinks that it hangs.
const OPEN_AFTER: Duration = Duration::from_secs(10);
/// Attempts of one request that may fail for reasons other than a rate limit, the first included.
const ATTEMPTS_MAX: u32 = 5;
/// Attempts of one request that may fail because of a rate limit, the first included: more than [`WAITS_MAX`] leaves
/// time for where a provider asks for real waits, and the bound where it asks for none.
const LIMITED_ATTEMPTS_MAX: u32 = 20;
/// Pause before the second attempt; doubled before each further one, up to [`RETRY_PAUSE_MAX`].
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause chosen by us.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(15);
/// Longest single wait a provider may ask for that is waited here; a longer one is told to Codex.
const RETRY_AFTER_MAX: Duration = Duration::from_mins(1);
/// All waits of one request together.
const WAITS_MAX: Duration = Duration::from_mins(5);
/// Changes of a refused request, each followed by another attempt.
const REPAIRS_MAX: usize = 2;
/// Time more for the first byte for each item of the conversation: long ones are read slowly.
const FIRST_BYTE_PER_ITEM: Duration = Duration::from_millis(500);
/// Time more for the first byte when there are tools.
const FIRST_BYTE_WITH_TOOLS: Duration = Duration::from_mins(1);
/// Longest time for the first byte, whatever the conversation.
const FIRST_BYTE_MAX: Duration = Duration::from_mins(5);
/// Most bytes of a native stream that are held back until something visible comes. The head repeats the instructions and
/// tools of the request, twice.
const NATIVE_HEAD_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Largest answer put together for a client that wants no stream.
const WHOLE_ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How often the rest of an answer is asked for that has reached the provider's output limit.
const CONTINUATIONS_MAX: u32 = 4;
/// Longest request of which the rest of an answer is asked for: it is kept as long as the answer flows.
const CONTINUED_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The header that tells Codex that the model list has changed.
static MODELS_ETAG: HeaderName = HeaderName::from_static("x-models-etag");

/// Answers `POST /responses`.
pub(crate) async fn answer(worker: &Arc<Worker>, request: Request<Incoming>, drain: Drain) -> Response<Body> {
    let desk = Desk::new(Account::new(worker));
    // A request is answered while this worker drains, too: it came on a connection that no other can answer.
    desk.lock().forwarded = forwarded(&worker.endpoint.forward_headers, request.headers());
    let body = match body::read(request, worker.endpoint.limits.body_bytes_max).await {
        Ok(body) => body,
        Err(refusal) => return refusal.into_response(&desk),
    };
    let mut exchange: Exchange = Box::pin(exchange(Arc::clone(worker), body, desk.clone()));
    // What the client wants is known once the exchange has run for the first time: it is asked when the time has come,
    // not before.
    let open_at = Instant::now() + OPEN_AFTER;
    let mut may_open = true;
    let ended = loop {
        tokio::select! {
            ended = &mut exchange => break ended,
            () = tokio::time::sleep_until(open_at), if may_open => {
                if desk.wants_stream() {
                    desk.lock().open();
                    let stream = TurnStream::waiting(Arc::clone(worker), exchange, desk, drain);
                    return with_etag(worker, answer::event_stream(Body::Stream(Box::new(stream))));
                }
                may_open = false;
            }
            () = drain.expired() => break Err(Ended::Failed(being_replaced())),
        }
    };
    match ended {
        Ok(begun) if desk.wants_stream() => {
            let stream = TurnStream::flowing(Arc::clone(worker), begun, desk, drain);
            with_etag(worker, answer::event_stream(Body::Stream(Box::new(stream))))
        }
        Ok(begun) => whole(worker, &desk, begun).await,
        Err(Ended::Refused(refusal)) => refusal.into_response(&desk),
        Err(Ended::Failed(failure)) => failed(worker, &desk, &failure),
    }
}

/// The headers that the settings let through, unless the client means them for this connection alone (RFC 9110, section
/// 7.6.1).
fn forwarded(wanted: &[String], headers: &HeaderMap) -> HeaderMap {
    let for_this_connection = headers.get_all(header::CONNECTION);
    let for_this_connection: Vec<&str> = for_this_connection
        .iter()
        .filter_map(|names| names.to_str().ok())
        .flat_map(|names| names.split(','))
        .map(str::trim)
        .collect();
    let is_passed_on = |name: &&String| !for_this_connection.iter().any(|own| own.eq_ignore_ascii_case(name));
    let passed_on = wanted.iter().filter(is_passed_on);
    passed_on.filter_map(|name| Some((name.parse().ok()?, headers.get(name)?.clone()))).collect()
}

/// What a stream is told when its worker goes.
pub(crate) fn being_replaced() -> Failure {
    let trouble = Some(Trouble::EndedByUs);
    Failure { trouble, ..Failure::new(FailureClass::Server, "the endpoint is being stopped or replaced") }
}

fn with_etag(worker: &Worker, mut response: Response<Body>) -> Response<Body> {
    if let Some(etag) = worker.models.etag() {
        response.headers_mut().insert(MODELS_ETAG.clone(), etag);
    }
    response
}

/// A request that never reaches the provider.
pub(crate) struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
    /// The parameter it is about, for clients that act on it.
    parameter: Option<&'static str>,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), parameter: None }
    }

    /// The request continues an answer that is not kept (any more).
    fn unknown_previous(id: &str) -> Self {
        let message = format!(
            "Previous response with id '{id}' not found. It is kept for {} minutes; send the whole conversation instead.",
            earlier::LIFE_MS / 60_000
        );
        Self {
            parameter: Some("previous_response_id"),
            ..Self::new(StatusCode::BAD_REQUEST, "previous_response_not_found", message)
        }
    }

    fn into_response(self, desk: &Desk) -> Response<Body> {
        desk.lock().account.refused(self.status, &self.message);
        // Codex shows the body of a 400 as it is: a sentence reads better there than JSON.
        if self.status == StatusCode::BAD_REQUEST && self.parameter.is_none() {
            answer::text(self.status, &self.message)
        } else {
            answer::error_about(self.status, self.code, &self.message, self.parameter)
        }
    }

    /// The refusal as a failure, for a stream that is open already.
    pub(crate) fn into_failure(self) -> Failure {
        Failure::new(FailureClass::InvalidRequest, self.message)
    }
}

impl From<UnknownModel> for Refusal {
    fn from(unknown: UnknownModel) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "model_not_found", unknown.message)
    }
}

impl From<responses::ParseError> for Refusal {
    fn from(error: responses::ParseError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", error.to_string())
    }
}

impl From<EncodeError> for Refusal {
    fn from(error: EncodeError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", error.to_string())
    }
}

/// What the exchange with the provider and the stream to Codex both write to. They run in one task, by turns.
#[derive(Clone)]
pub(crate) struct Desk(Arc<Mutex<Sheet>>);

pub(crate) struct Sheet {
    pub(crate) account: Account,
    /// Speaks to Codex; absent until the request is understood, and when the answer has taken it along.
    pub(crate) reply: Option<Box<Reply>>,
    /// Bytes for Codex, not sent yet.
    pub(crate) ready: Vec<u8>,
    /// The present attempt at a native provider: its bytes are for Codex only if it begins well.
    native: Option<(Box<Sniffer>, Vec<u8>)>,
    /// Headers of the client's that the provider gets.
    forwarded: HeaderMap,
    /// What the rest of the answer would be asked for with.
    basis: Option<Basis>,
    wants_stream: bool,
    is_open: bool,
    /// Why the answer takes long, said once the stream is open.
    notice: Option<String>,
}

impl Desk {
    fn new(account: Account) -> Self {
        let sheet = Sheet {
            account,
            reply: None,
            ready: Vec::new(),
            native: None,
            forwarded: HeaderMap::new(),
            basis: None,
            wants_stream: false,
            is_open: false,
            notice: None,
        };
        Self(Arc::new(Mutex::new(sheet)))
    }

    /// The sheet; never held across an await.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Sheet> {
        // A panic of the other side ends the request; what it left is still fit to be reported.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn wants_stream(&self) -> bool {
        self.lock().wants_stream
    }
}

impl Sheet {
    /// Begins the stream although nothing of the answer is there yet.
    fn open(&mut self) {
        self.is_open = true;
        if let Some(reply) = &mut self.reply {
            reply.open(&mut self.ready);
            if let Some(notice) = self.notice.take() {
                reply.notice(&notice, &mut self.ready);
            }
        }
    }

    fn say(&mut self, notice: String) {
        match &mut self.reply {
            Some(reply) if self.is_open => reply.notice(&notice, &mut self.ready),
            _ => self.notice = Some(notice),
        }
    }

    /// Forgets the attempt before.
    fn start_attempt(&mut self, plan: &Plan<'_, '_>) {
        match (plan.protocol, &mut self.reply) {
            (Some(protocol), Some(reply)) => {
                let decoder = protocol.decoder(plan.request, &plan.target);
                reply.restart(decoder, plan.call.framing, plan.target.origin());
            }
            _ => self.native = Some((Box::new(Sniffer::new(plan.target.account.clone())), Vec::new())),
        }
    }

    /// Reads what has arrived: something visible, a failure, or neither yet.
    fn feed(&mut self, data: &[u8]) -> Option<Result<Relay, Failure>> {
        if let Some((sniffer, head)) = &mut self.native {
            head.extend_from_slice(data);
            let progress = sniffer.feed(data);
            if !progress.visible && !progress.finished {
                if sniffer.is_body() {
                    return (head.len() > WHOLE_ANSWER_BYTES_MAX).then(|| Err(too_large()));
                }
                // Nothing but signs of life, for ever.
                let message = || format!("more than {NATIVE_HEAD_BYTES_MAX} bytes came before the answer began");
                let is_endless = head.len() > NATIVE_HEAD_BYTES_MAX;
                return is_endless.then(|| Err(Failure::new(FailureClass::Malformed, message())));
            }
            if let (false, Some(failure)) = (progress.visible, sniffer.failure()) {
                return Some(Err(failure.clone()));
            }
            let (sniffer, head) = self.native.take()?;
            self.ready.extend_from_slice(&head);
            return Some(Ok(Relay::Native(sniffer)));
        }
        let reply = self.reply.as_mut()?;
        let progress = reply.feed(data, &mut self.ready);
        if let Some(failure) = reply.pending_failure() {
            return Some(Err(failure.clone()));
        }
        if !progress.visible && !progress.finished {
            return None;
        }
        self.reply.take().map(|reply| Ok(Relay::Translated(reply)))
    }

    /// Events so far that say more than that the provider is alive.
    fn n_events(&self) -> u64 {
        match (&self.native, &self.reply) {
            (Some((sniffer, _)), _) => sniffer.n_events(),
            (None, Some(reply)) => reply.n_events(),
            (None, None) => 0,
        }
    }

    /// The body has ended with nothing visible: empty, or so short that it is complete only with its end.
    fn end_attempt(&mut self) -> Result<Relay, Failure> {
        if let Some((sniffer, head)) = self.native.take() {
            if sniffer.is_body() {
                let (summary, bytes) = sniffer.whole(&head, self.wants_stream)?;
                self.ready.extend_from_slice(&bytes);
                return Ok(Relay::Ended(Box::new(summary)));
            }
            let summary = sniffer.end(EndCause::Eof);
            if let Outcome::Failed(failure) = summary.outcome {
                return Err(failure);
            }
            self.ready.extend_from_slice(&head);
            return Ok(Relay::Ended(Box::new(summary)));
        }
        let no_answer = || Failure::new(FailureClass::Malformed, "the provider gave no answer");
        let reply = self.reply.as_mut().ok_or_else(no_answer)?;
        let summary = reply.end_of_attempt(&mut self.ready);
        if reply.wants_more() {
            return self.reply.take().map(Relay::Translated).ok_or_else(no_answer);
        }
        match summary {
            Some(summary) => Ok(Relay::Ended(Box::new(summary))),
            None => Err(reply.pending_failure().cloned().unwrap_or_else(no_answer)),
        }
    }
}

/// The exchange with the provider up to the first visible event.
pub(crate) type Exchange = std::pin::Pin<Box<dyn Future<Output = Result<Begun, Ended>> + Send>>;

/// An answer that has begun well; what was written of it lies on the desk.
pub(crate) struct Begun {
    pub(crate) relay: Relay,
    pub(crate) upstream: Answer,
}

/// Why there is no answer.
pub(crate) enum Ended {
    Refused(Refusal),
    Failed(Failure),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl<E: Into<Refusal>> From<E> for Ended {
    fn from(refusal: E) -> Self {
        Self::Refused(refusal.into())
    }
}

async fn exchange(worker: Arc<Worker>, body: Bytes, desk: Desk) -> Result<Begun, Ended> {
    let n_bytes = body.len() as u64;
    let mut request = responses::Request::parse(&body)?;
    let mut body = &body;
    let whole;
    if let Some(expanded) = continued(&worker, &request, body)? {
        whole = Bytes::from(expanded);
        body = &whole;
        request = responses::Request::parse(body)?;
    }
    let model = worker.models.resolve(&worker.endpoint, &request.model)?;
    {
        let mut sheet = desk.lock();
        sheet.wants_stream = request.stream;
        sheet.account.report.request_bytes = n_bytes;
        if request.store && worker.endpoint.protocol != WireProtocol::Responses {
            sheet.account.conversation = conversation(&worker, body)?;
        }
        sheet.account.report.model = request.model.clone().into_owned();
        sheet.account.report.upstream_model.clone_from(&model);
    }
    let mut target = target_for(&worker, &model);
    target.refused = worker.states.all_refused();
    let learned = worker.learned.repairs(&model);
    for repair in &learned {
        target::repair(&mut target, worker.endpoint.protocol, repair);
    }
    let mut plan = Plan::new(&worker, &request, body, target)?;
    {
        let mut sheet = desk.lock();
        let reply = plan.reply(&sheet.account);
        sheet.reply = Some(Box::new(reply));
    }
    let begun = attempts(&worker, &desk, &mut plan, !learned.is_empty()).await?;
    if matches!(&begun.relay, Relay::Translated(_))
        && plan.continuations_max() > 0
        && let Some(room) = worker.keep(body.len())
    {
        desk.lock().basis = Some(Basis { raw: body.clone(), target: plan.target, room });
    }
    Ok(begun)
}

/// Everything that is known of the provider before it has refused anything.
fn target_for(worker: &Worker, model: &str) -> Target {
    let facts = worker.models.facts(worker, model);
    target::target(&worker.endpoint, &facts, worker.credential.account(), worker.seal_key)
}

/// The conversation of a request, for the answer to be continued by a later one; `None` where there is no room for it:
/// then the client is told that the answer is not kept when it wants to continue it.
fn conversation(worker: &Worker, body: &[u8]) -> Result<Option<Conversation>, responses::ParseError> {
    if body.len() > earlier::CONVERSATION_BYTES_MAX {
        return Ok(None);
    }
    let Some(room) = worker.keep(body.len()) else { return Ok(None) };
    Ok(Some(Conversation { items: earlier::items(body)?, _room: room }))
}

/// A request whose answer flows, for the rest of that answer.
struct Basis {
    raw: Bytes,
    target: Target,
    /// Among all that is kept for answers.
    room: OwnedSemaphorePermit,
}

/// The rest of an answer, about to arrive.
pub(crate) struct Rest {
    pub(crate) decoder: Box<dyn Decode + Send>,
    pub(crate) framing: Framing,
    pub(crate) upstream: Answer,
}

/// Asks for the rest of an answer that has reached the provider's output limit, with `so_far` behind the conversation.
/// Once: where it fails, Codex asks by itself.
pub(crate) async fn rest(worker: Arc<Worker>, desk: Desk, so_far: Vec<u8>) -> Result<Rest, Failure> {
    let malformed = |error: String| Failure::new(FailureClass::InvalidRequest, error);
    let basis = desk.lock().basis.take().ok_or_else(|| malformed("the request is not kept".to_owned()))?;
    let key = worker.credential.get().await.map_err(|error| Failure::new(FailureClass::Auth, error.to_string()))?;
    desk.lock().account.report.attempts += 1;
    let body = earlier::extend(&basis.raw, &so_far).map_err(|error| malformed(error.to_string()))?;
    let request = responses::Request::parse(&body).map_err(|error| malformed(error.to_string()))?;
    let plan =
        Plan::new(&worker, &request, &body, basis.target).map_err(|error| Refusal::from(error).into_failure())?;
    let protocol = plan.protocol.ok_or_else(|| malformed("a native answer is not gone on with".to_owned()))?;
    let (deadline, late) = plan.deadline(&worker);
    let upstream = answered(&worker, &desk, &plan, key.as_ref(), deadline).await.map_err(|_| late())??;
    let rest = Rest { decoder: protocol.decoder(&request, &plan.target), framing: plan.call.framing, upstream };
    desk.lock().basis = Some(Basis { raw: basis.raw, target: plan.target, room: basis.room });
    Ok(rest)
}

/// The body with the whole conversation in it, where the request continues an earlier answer of ours. A native provider
/// keeps its answers itself.
fn continued(worker: &Worker, request: &responses::Request<'_>, body: &[u8]) -> Result<Option<Vec<u8>>, Refusal> {
    let id = request.previous_response_id.as_deref();
    let Some(id) = id.filter(|_| worker.endpoint.protocol != WireProtocol::Responses) else { return Ok(None) };
    let (mut earlier, now_ms) = worker.earlier();
    let conversation = earlier.get(now_ms, id).ok_or_else(|| Refusal::unknown_previous(id))?;
    Ok(Some(earlier::expand(body, conversation)?))
}

/// Everything an attempt needs.
struct Plan<'r, 'a> {
    request: &'r responses::Request<'a>,
    /// The request's bytes.
    raw: &'r [u8],
    target: Target,
    protocol: Option<&'static (dyn Protocol + Sync)>,
    call: Call,
    /// The call's body, shared between attempts.
    body: Bytes,
    first_byte_timeout: Duration,
    /// Marks of the state that a refusal has made us leave out.
    left_out: Vec<Mark>,
}

impl<'r, 'a> Plan<'r, 'a> {
    fn new(
        worker: &Worker,
        request: &'r responses::Request<'a>,
        raw: &'r [u8],
        target: Target,
    ) -> Result<Self, EncodeOrParse> {
        let protocol: Option<&'static (dyn Protocol + Sync)> = match worker.endpoint.protocol {
            WireProtocol::ChatCompletions => Some(&Chat),
            WireProtocol::AnthropicMessages => Some(&Anthropic),
            WireProtocol::Responses => None,
        };
        let mut call = match protocol {
            Some(protocol) => protocol.encode(request, &target)?,
            None => native::encode(raw, &target)?,
        };
        let body = Bytes::from(std::mem::take(&mut call.body));
        let mut first_byte_timeout = first_byte_timeout(worker.endpoint.limits.first_byte_timeout_s, request);
        if protocol.is_none() && !request.stream {
            // The first byte comes when the answer is whole.
            first_byte_timeout = first_byte_timeout.max(FIRST_BYTE_MAX);
        }
        Ok(Self { request, raw, target, protocol, call, body, first_byte_timeout, left_out: Vec::new() })
    }

    /// How often the rest of the answer may be asked for: never where the client has set the limit, or waits for all of
    /// the answer anyway, or the provider's stream is relayed.
    fn continuations_max(&self) -> u32 {
        let is_possible = self.request.stream
            && self.request.max_output_tokens.is_none()
            && self.protocol.is_some()
            && self.raw.len() <= CONTINUED_BYTES_MAX;
        if is_possible { CONTINUATIONS_MAX } else { 0 }
    }

    /// When the answer has to begin, and what to say when it does not.
    fn deadline(&self, worker: &Worker) -> (Instant, impl Fn() -> Failure + use<>) {
        let connect_timeout = Duration::from_secs(worker.endpoint.limits.connect_timeout_s);
        let (seconds, base_url) = (self.first_byte_timeout.as_secs(), worker.endpoint.base_url.clone());
        let late = move || {
            upstream::broken(
                Trouble::TimedOut,
                &format!("the provider at {base_url} did not begin to answer within {seconds} s"),
            )
        };
        (Instant::now() + connect_timeout + self.first_byte_timeout, late)
    }

    /// Changes the request as a refusal asks for; `false` if that changes nothing.
    fn repair(&mut self, worker: &Worker, repair: &Repair) -> bool {
        *repair == Repair::ForgetThinking && self.leave_state_out(worker)
            || target::repair(&mut self.target, worker.endpoint.protocol, repair) && self.encode_again()
    }

    /// Leaves out the state that may be what the provider refuses; `false` if there is none.
    fn leave_state_out(&mut self, worker: &Worker) -> bool {
        let marks = mark::marks(self.request, &self.target.account);
        loop {
            let suspects = worker.states.suspects(&marks, &self.target.refused);
            if suspects.is_empty() {
                return false;
            }
            Arc::make_mut(&mut self.target.refused).extend(&suspects);
            self.left_out.extend(suspects);
            // State of ours is not sent to a native provider anyway.
            if self.encode_again() {
                return true;
            }
        }
    }

    /// Writes the call for a changed target; `false` if that cannot be done or gives the same call.
    fn encode_again(&mut self) -> bool {
        let call = match self.protocol {
            Some(protocol) => protocol.encode(self.request, &self.target).ok(),
            None => native::encode(self.raw, &self.target).ok(),
        };
        call.is_some_and(|call| self.replace(call))
    }

    fn replace(&mut self, mut call: Call) -> bool {
        let body = Bytes::from(std::mem::take(&mut call.body));
        let is_changed = body != self.body;
        self.body = body;
        self.call = call;
        is_changed
    }

    fn reply(&self, account: &Account) -> Reply {
        let config = ReplyConfig {
            seed: ReplySeed {
                response_id: account.response_id(),
                created_at: now_unix_ms() / 1_000,
                model: account.report.model.clone(),
            },
            tools: ToolTable::from_request(self.request),
            origin: self.target.origin(),
            seal_key: self.target.seal_key,
            show_reasoning: self.request.reasoning.summary.as_deref() != Some("none"),
            compaction: self.request.is_compaction(),
            keep_output: account.conversation.is_some(),
            continuations_max: self.continuations_max(),
            known_call_ids: self.request.call_ids().map(str::to_owned).collect(),
        };
        // A native stream needs no reply of ours, except to tell a failure.
        let protocol = self.protocol.unwrap_or(&Chat);
        Reply::new(protocol.decoder(self.request, &self.target), self.call.framing, config)
    }

    /// Makes the request that of another account: what the one before was given to keep is not for this one.
    fn change_account(&mut self, account: String) {
        if self.target.account != account {
            self.target.account = account;
            self.encode_again();
        }
    }
}

/// Either way of not understanding a request.
enum EncodeOrParse {
    Encode(EncodeError),
    Parse(responses::ParseError),
}

impl From<EncodeError> for EncodeOrParse {
    fn from(error: EncodeError) -> Self {
        Self::Encode(error)
    }
}

impl From<responses::ParseError> for EncodeOrParse {
    fn from(error: responses::ParseError) -> Self {
        Self::Parse(error)
    }
}

impl From<EncodeOrParse> for Refusal {
    fn from(error: EncodeOrParse) -> Self {
        match error {
            EncodeOrParse::Encode(error) => error.into(),
            EncodeOrParse::Parse(error) => error.into(),
        }
    }
}

/// How long the provider may take to begin its answer: longer for long conversations and for tools.
fn first_byte_timeout(base_s: u64, request: &responses::Request<'_>) -> Duration {
    let n_items = u32::try_from(request.input.len()).unwrap_or(u32::MAX);
    let for_tools = if request.tools.is_empty() { Duration::ZERO } else { FIRST_BYTE_WITH_TOOLS };
    let base = Duration::from_secs(base_s);
    (base + for_tools).saturating_add(FIRST_BYTE_PER_ITEM.saturating_mul(n_items)).min(FIRST_BYTE_MAX.max(base))
}

/// Asks the provider until an answer begins well, within the budget of this request.
async fn attempts(
    worker: &Worker,
    desk: &Desk,
    plan: &mut Plan<'_, '_>,
    mut uses_learned: bool,
) -> Result<Begun, Ended> {
    let request = Fingerprint::of(plan.request);
    let was_exhausted = worker.exhausted.contains(Instant::now(), request);
    let mut budget = if was_exhausted { Budget::spent() } else { Budget::default() };
    let mut key_was_renewed = false;
    let mut repairs: Vec<(Repair, String)> = Vec::new();
    let mut n_repairs = 0;
    let mut was_shortened = false;
    loop {
        let key = worker.credential.get().await.map_err(|error| {
            let problem = error.problem(worker.credential.source());
            let message = format!("{}; {}", problem.message, problem.hint.as_deref().unwrap_or_default());
            worker.set_problem(Some(problem));
            Failure::new(FailureClass::Auth, message)
        })?;
        worker.set_problem(None);
        plan.change_account(worker.credential.account());
        desk.lock().account.report.attempts += 1;
        let failure = match attempt(worker, desk, plan, key.as_ref()).await {
            Ok(begun) => {
                for (repair, evidence) in &repairs {
                    worker.learned.keep(&plan.target.model, repair, evidence);
                }
                worker.states.refused(&plan.left_out);
                worker.exhausted.forget(request);
                return Ok(begun);
            }
            Err(failure) => failure,
        };
        note(desk, &failure);
        worker.attempt_failed(&plan.target.model, &failure);
        if failure.class == FailureClass::Auth && !key_was_renewed && worker.credential.has_changed(key.as_ref()).await
        {
            key_was_renewed = true;
            continue;
        }
        if let Some(repair) = &failure.repair
            && n_repairs < REPAIRS_MAX
            && plan.repair(worker, repair)
        {
            n_repairs += 1;
            repairs.push((repair.clone(), redact::redact(&failure.message).into_owned()));
            continue;
        }
        if failure.class == FailureClass::ContextLength && !std::mem::replace(&mut was_shortened, true) {
            // Outside of a compaction Codex would end the turn here. Our estimate was too low for this model: leave
            // more of the old history out, once.
            plan.target.context_window = fit::estimated_tokens(plan.request) / 4 * 3;
            if plan.encode_again() {
                continue;
            }
        }
        if failure.class == FailureClass::InvalidRequest && uses_learned {
            // What was learned may be what is refused now: try once as if nothing had been.
            uses_learned = false;
            worker.learned.forget(Some(&plan.target.model));
            repairs.clear();
            let refused = std::mem::take(&mut plan.target.refused);
            plan.target = Target { refused, ..target_for(worker, &plan.target.model) };
            if plan.encode_again() {
                continue;
            }
        }
        let Some(pause) = budget.pause(&failure, jitter()) else {
            if failure.class.is_retryable() {
                worker.exhausted.note(Instant::now(), request);
            }
            return Err(failure.into());
        };
        worker.metrics.retried();
        desk.lock().say(waiting(worker, plan, &failure, pause));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = worker.retry_now.notified() => {}
        }
    }
}

/// What may still be spent on one request.
#[derive(Default)]
struct Budget {
    failed: u32,
    limited: u32,
    waited: Duration,
    /// All of it was spent on the same request before: Codex has asked again, and does so a few times more.
    is_spent: bool,
}

impl Budget {
    /// What is left when Codex repeats a request whose attempts are spent: one, and a closed connection is no attempt.
    fn spent() -> Self {
        Self { is_spent: true, ..Self::default() }
    }

    /// How long to wait before asking again; `None` when that cannot help or the budget is spent.
    ///
    /// `jitter` is from 0 to 1: attempts of many requests that failed together must not come back together.
    fn pause(&mut self, failure: &Failure, jitter: f64) -> Option<Duration> {
        if !failure.class.is_retryable() {
            return None;
        }
        let count = if failure.class == FailureClass::RateLimit { &mut self.limited } else { &mut self.failed };
        *count += 1;
        let is_limited = failure.class == FailureClass::RateLimit;
        if self.failed >= ATTEMPTS_MAX || self.limited >= LIMITED_ATTEMPTS_MAX {
            return None;
        }
        let first = if is_limited { RETRY_PAUSE * 5 } else { RETRY_PAUSE };
        let n_before = if is_limited { self.limited } else { self.failed } - 1;
        let backoff = first.saturating_mul(2_u32.saturating_pow(n_before)).min(RETRY_PAUSE_MAX);
        if failure.class == FailureClass::Network && self.failed == 1 {
            // Most often a kept connection that the provider had closed already: a new one will do.
            return Some(Duration::ZERO);
        }
        if self.is_spent {
            return None;
        }
        let backoff = backoff.mul_f64(0.8 + 0.4 * jitter);
        // A provider may ask for more, not for less: one that always says "now" would be asked without an end.
        let pause = failure.retry_after.map_or(backoff, |asked| asked.max(backoff));
        if pause > RETRY_AFTER_MAX || self.waited + pause > WAITS_MAX {
            return None;
        }
        self.waited += pause;
        Some(pause)
    }
}

fn jitter() -> f64 {
    f64::from(getrandom::u32().unwrap_or(u32::MAX / 2)) / f64::from(u32::MAX)
}

/// A sentence for the person who waits.
fn waiting(worker: &Worker, plan: &Plan<'_, '_>, failure: &Failure, pause: Duration) -> String {
    let reason = answer::sentence(worker, &plan.target.model, failure);
    format!("{reason} Trying again in {} s.", pause.as_secs().max(1))
}

fn note(desk: &Desk, failure: &Failure) {
    let sheet = desk.lock();
    tracing::info!(
        request = %sheet.account.report.request,
        attempt = sheet.account.report.attempts,
        status = failure.http_status,
        fault = answer::class_name(failure.class),
        cause = %redact::redact(&failure.message),
        "an attempt failed"
    );
}

/// Asks the provider once and reads until something can be shown, or the answer has failed.
///
/// The answer has to begin in the plan's time. After its first bytes the [`Patience`] of a stream that is shown counts: a
/// call is held until it is whole and thinking may be hidden, and either may take minutes.
async fn attempt(worker: &Worker, desk: &Desk, plan: &Plan<'_, '_>, key: Option<&Secret>) -> Result<Begun, Failure> {
    let (deadline, late) = plan.deadline(worker);
    let mut body = answered(worker, desk, plan, key, deadline).await.map_err(|_| late())??;
    desk.lock().start_attempt(plan);
    let idle_timeout = Duration::from_secs(worker.endpoint.limits.idle_timeout_s);
    let mut patience: Option<Patience> = None;
    loop {
        let ends_at = patience.as_ref().map_or(deadline, Patience::ends_at);
        let frame = tokio::time::timeout_at(ends_at, body.frame()).await;
        let frame = frame.map_err(|_| patience.as_ref().map_or_else(&late, Patience::failure))?;
        let relay = match frame {
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else { continue };
                let mut sheet = desk.lock();
                let patience = patience.get_or_insert_with(|| Patience::new(idle_timeout, sheet.n_events()));
                let Some(begun) = sheet.feed(&data) else {
                    patience.heard(Instant::now(), sheet.n_events());
                    continue;
                };
                begun?
            }
            Some(Err(error)) => {
                return Err(upstream::broken(Trouble::Broke, &format!("the connection broke: {error}")));
            }
            None => desk.lock().end_attempt()?,
        };
        return Ok(Begun { relay, upstream: body });
    }
}

/// Sends the request and waits for the head of an answer that is none of failure.
async fn answered(
    worker: &Worker,
    desk: &Desk,
    plan: &Plan<'_, '_>,
    key: Option<&Secret>,
    deadline: Instant,
) -> Result<Result<Answer, Failure>, Elapsed> {
    let forwarded = desk.lock().forwarded.clone();
    let response =
        match tokio::time::timeout_at(deadline, worker.upstream.post(&plan.call, plan.body.clone(), key, &forwarded))
            .await?
        {
            Ok(response) => response,
            Err(failure) => return Ok(Err(failure)),
        };
    let (head, body) = response.into_parts();
    if head.status.is_success() {
        return Ok(Ok(body));
    }
    let bytes = upstream::error_body(body).await;
    let headers: Vec<(&str, &str)> =
        head.headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?))).collect();
    Ok(Err(Failure::from_response(head.status.as_u16(), &headers, &bytes, now_unix_ms())))
}

/// The answer for a client that asked for no stream: the `response` object of the terminal event.
async fn whole(worker: &Worker, desk: &Desk, begun: Begun) -> Response<Body> {
    let Begun { mut relay, mut upstream } = begun;
    let idle_timeout = Duration::from_secs(worker.endpoint.limits.idle_timeout_s);
    let mut stream = std::mem::take(&mut desk.lock().ready);
    desk.lock().account.first_event();
    let mut patience = Patience::new(idle_timeout, relay.n_events());
    let summary = loop {
        if relay.is_finished() {
            break relay.end(EndCause::Eof, &mut stream);
        }
        let frame = tokio::time::timeout_at(patience.ends_at(), upstream.frame()).await;
        let cause = match frame {
            Ok(Some(Ok(frame))) => {
                let Ok(data) = frame.into_data() else { continue };
                if stream.len() > WHOLE_ANSWER_BYTES_MAX {
                    EndCause::Failed(too_large())
                } else {
                    relay.feed(&data, &mut stream);
                    patience.heard(Instant::now(), relay.n_events());
                    continue;
                }
            }
            Ok(Some(Err(error))) => {
                EndCause::Failed(upstream::broken(Trouble::Broke, &format!("the connection broke: {error}")))
            }
            Ok(None) => EndCause::Eof,
            Err(_) => EndCause::Failed(patience.failure()),
        };
        break relay.end(cause, &mut stream);
    };
    read_tail(upstream);
    let failure = match &summary.outcome {
        Outcome::Failed(failure) => Some(failure.clone()),
        Outcome::Completed | Outcome::Incomplete => None,
    };
    desk.lock().account.ended(&summary);
    match (failure, terminal_response(stream)) {
        (None, Some(response)) => answer::with_type(StatusCode::OK, "application/json", response),
        (failure, _) => {
            let failure = failure.unwrap_or_else(|| Failure::new(FailureClass::Malformed, "the answer has no end"));
            let sentence = answer::sentence(worker, &desk.lock().account.report.model, &failure);
            answer::error(StatusCode::BAD_GATEWAY, failure.class.responses_code(), &sentence)
        }
    }
}

/// The `response` member of the last event of `stream`, behind which an end mark may stand. A native provider that was
/// asked for no stream has answered with that object itself.
fn terminal_response(stream: Vec<u8>) -> Option<Vec<u8>> {
    #[derive(serde::Deserialize)]
    struct Terminal<'a> {
        #[serde(borrow)]
        response: &'a serde_json::value::RawValue,
    }
    let text = stream.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&stream);
    if text.trim_ascii_start().starts_with(b"{") {
        return Some(stream);
    }
    let mut events = text.split(|byte| *byte == b'\n').rev().filter_map(|line| line.strip_prefix(b"data:"));
    events.find_map(|data| {
        let terminal: Terminal<'_> = serde_json::from_slice(data).ok()?;
        Some(terminal.response.get().as_bytes().to_vec())
    })
}

fn too_large() -> Failure {
    Failure::new(FailureClass::Malformed, "the answer is too large")
}

/// Tells Codex that every attempt failed, in an answer that has not begun.
fn failed(worker: &Worker, desk: &Desk, failure: &Failure) -> Response<Body> {
    let mut sheet = desk.lock();
    let sheet = &mut *sheet;
    let response = match answer::telling(worker, &sheet.account.report.upstream_model, failure) {
        Telling::Answer(response) => response,
        Telling::Stream(told) => match &mut sheet.reply {
            Some(reply) if sheet.wants_stream => {
                reply.end(EndCause::Failed(told), &mut sheet.ready);
                answer::event_stream(Body::Whole(Some(Bytes::from(std::mem::take(&mut sheet.ready)))))
            }
            _ => answer::error(StatusCode::BAD_GATEWAY, told.class.responses_code(), &told.message),
        },
    };
    sheet.account.report.status = response.status().as_u16();
    sheet.account.failed(failure);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(class: FailureClass, retry_after_s: Option<u64>) -> Failure {
        Failure { retry_after: retry_after_s.map(Duration::from_secs), ..Failure::new(class, "") }
    }

    fn pauses(failures: impl IntoIterator<Item = Failure>) -> Vec<Option<u128>> {
        let mut budget = Budget::default();
        failures.into_iter().map(|failure| budget.pause(&failure, 0.5).map(|pause| pause.as_millis())).collect()
    }

    #[test]
    fn what_may_pass_is_tried_again_a_few_times() {
        let server = std::iter::repeat_with(|| failure(FailureClass::Server, None)).take(5);
        assert_eq!(pauses(server), [Some(200), Some(400), Some(800), Some(1_600), None]);
    }

    #[test]
    fn a_broken_connection_is_replaced_at_once() {
        let network = std::iter::repeat_with(|| failure(FailureClass::Network, None)).take(3);
        assert_eq!(pauses(network), [Some(0), Some(400), Some(800)]);
    }

    #[test]
    fn what_cannot_pass_is_not_tried_again() {
        for class in [FailureClass::Auth, FailureClass::Quota, FailureClass::Refused, FailureClass::ContextLength] {
            assert_eq!(pauses([failure(class, Some(1))]), [None], "{class:?}");
        }
    }

    #[test]
    fn a_provider_is_obeyed_within_bounds() {
        assert_eq!(pauses([failure(FailureClass::RateLimit, Some(2))]), [Some(2_000)]);
        assert_eq!(pauses([failure(FailureClass::RateLimit, Some(61))]), [None], "a longer wait is told to Codex");
        let minutes = std::iter::repeat_with(|| failure(FailureClass::RateLimit, Some(60))).take(6);
        assert_eq!(pauses(minutes).iter().flatten().count(), 5, "all waits together are bounded");
        let now = std::iter::repeat_with(|| failure(FailureClass::RateLimit, Some(0))).take(100);
        let pauses = pauses(now);
        assert_eq!(pauses[..5], [Some(1_000), Some(2_000), Some(4_000), Some(8_000), Some(15_000)]);
        let n_attempts = pauses.iter().flatten().count() + 1;
        assert_eq!(n_attempts, LIMITED_ATTEMPTS_MAX as usize, "who always says \"now\" is not asked for ever");
    }

    #[test]
    fn what_codex_repeats_gets_one_more_attempt() {
        let mut budget = Budget::spent();
        assert_eq!(budget.pause(&failure(FailureClass::Server, None), 0.5), None);
        let mut budget = Budget::spent();
        assert_eq!(budget.pause(&failure(FailureClass::Network, None), 0.5), Some(Duration::ZERO));
        assert_eq!(budget.pause(&failure(FailureClass::Network, None), 0.5), None);
        assert_eq!(Budget::spent().pause(&failure(FailureClass::RateLimit, Some(1)), 0.5), None);
    }

    #[test]
    fn jitter_spreads_the_pauses() {
        let pause = |jitter| Budget::default().pause(&failure(FailureClass::Server, None), jitter).unwrap();
        assert_eq!(pause(0.0).as_millis(), 160);
        assert_eq!(pause(1.0).as_millis(), 240);
    }

    #[test]
    fn the_first_byte_may_take_longer_for_long_conversations() {
        let request = |n: usize, tools: &str| {
            let items = vec![r#"{"type":"message","role":"user","content":"x"}"#; n].join(",");
            format!(r#"{{"model":"m","input":[{items}],"tools":{tools}}}"#)
        };
        let timeout = |body: String| {
            let parsed = responses::Request::parse(body.as_bytes()).unwrap();
            first_byte_timeout(120, &parsed).as_secs()
        };
        assert_eq!(timeout(request(2, "[]")), 121);
        assert_eq!(timeout(request(2, r#"[{"type":"function","name":"f","parameters":{}}]"#)), 181);
        assert_eq!(timeout(request(2_000, "[]")), 300);
    }

    #[test]
    fn a_header_for_this_connection_alone_is_not_passed_on() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("x-a", "1"), ("x-b", "2"), ("x-c", "3"), ("connection", "close, X-B")] {
            headers.append(name, value.parse().unwrap());
        }
        let passed_on = forwarded(&["x-a".to_owned(), "x-b".to_owned(), "x-d".to_owned()], &headers);
        assert_eq!(passed_on, HeaderMap::from_iter([("x-a".parse().unwrap(), "1".parse().unwrap())]));
    }

    #[test]
    fn the_terminal_event_holds_the_whole_answer() {
        let stream = concat!(
            "event: a\ndata: {\"type\":\"a\"}\n\n",
            "data:{\"type\":\"response.completed\",\"response\":{\"id\":\"r\"}}\r\n\r\n",
            "data: [DONE]\n\n",
        );
        let terminal = |stream: &str| terminal_response(stream.into()).map(|body| String::from_utf8(body).unwrap());
        assert_eq!(terminal(stream).as_deref(), Some(r#"{"id":"r"}"#));
        let body = "\u{feff}\n{\n \"id\": \"r\" }\n";
        assert_eq!(terminal(body).as_deref(), Some(body));
        assert_eq!(terminal(""), None);
    }
}
