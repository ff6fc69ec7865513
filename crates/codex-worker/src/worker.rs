//! What all requests of a worker share.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use codex_control::endpoint::Endpoint;
use codex_control::environment::Environment;
use codex_control::ipc::{Assignment, FromWorker, Problem};
use codex_control::paths::Paths;
use codex_control::tables::Tables;
use codex_control::token::{self, SEAL_KEY_BYTES, TokenError};
use codex_translate::history::earlier::Earlier;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};

use crate::credential::Credential;
use crate::exhausted::Exhausted;
use crate::learned::Learned;
use crate::local_token::LocalToken;
use crate::metrics::Metrics;
use crate::models::Models;
use crate::states::States;
use crate::upstream::Upstream;

/// Most bytes of all requests together that are kept while their answers flow: some thirty of a megabyte. An answer
/// without room just cannot be continued.
const KEPT_BYTES_MAX: usize = 32 << 20;

/// One worker. Everything in it is either constant or guards itself.
pub(crate) struct Worker {
    pub(crate) endpoint: Endpoint,
    pub(crate) tables: Tables,
    pub(crate) token: LocalToken,
    pub(crate) seal_key: [u8; SEAL_KEY_BYTES],
    pub(crate) address: SocketAddr,
    pub(crate) credential: Credential,
    pub(crate) upstream: Upstream,
    pub(crate) models: Models,
    pub(crate) learned: Learned,
    pub(crate) exhausted: Exhausted,
    pub(crate) states: States,
    /// What requests may continue. The lock protects it alone; nothing is awaited under it.
    earlier: Mutex<Earlier>,
    /// A permit for each byte of [`KEPT_BYTES_MAX`] that is free.
    kept: Arc<Semaphore>,
    pub(crate) metrics: Metrics,
    pub(crate) started_at: Instant,
    /// Ends the pauses before further attempts.
    pub(crate) retry_now: Notify,
    reports: mpsc::Sender<FromWorker>,
    /// What keeps the endpoint from working, as last told. The lock protects this one value.
    problem: Mutex<Option<Problem>>,
}

impl Worker {
    /// Prepares a worker; nothing is connected yet.
    pub(crate) fn new(
        assignment: Assignment,
        tables: Tables,
        address: SocketAddr,
        reports: mpsc::Sender<FromWorker>,
    ) -> Result<Arc<Self>, TokenError> {
        let Assignment {
            endpoint,
            token_file,
            credential_file,
            seal_key_file,
            models_cache_file,
            learned_file,
            config_folder: _,
        } = assignment;
        let seal_key = token::ensure_seal_key(&seal_key_file)?;
        Ok(Arc::new(Self {
            token: LocalToken::load(token_file)?,
            seal_key,
            credential: Credential::new(&endpoint, credential_file, seal_key),
            upstream: Upstream::new(&endpoint, &Environment::from_process()),
            models: Models::new(&endpoint, models_cache_file),
            states: States::load(Paths::states_beside(&learned_file)),
            learned: Learned::load(learned_file),
            exhausted: Exhausted::default(),
            earlier: Mutex::default(),
            kept: Arc::new(Semaphore::new(KEPT_BYTES_MAX)),
            metrics: Metrics::default(),
            started_at: Instant::now(),
            retry_now: Notify::new(),
            endpoint,
            tables,
            address,
            reports,
            problem: Mutex::new(None),
        }))
    }

    /// The conversations of recent answers, and the moment by the clock they are kept by.
    pub(crate) fn earlier(&self) -> (MutexGuard<'_, Earlier>, u64) {
        let now_ms = u64::try_from(self.started_at.elapsed().as_millis()).unwrap_or(u64::MAX);
        (self.earlier.lock().unwrap_or_else(PoisonError::into_inner), now_ms)
    }

    /// Room for `n_bytes` of a request that is kept while its answer flows, until it is dropped; `None` when all
    /// [`KEPT_BYTES_MAX`] are taken.
    pub(crate) fn keep(&self, n_bytes: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.kept).try_acquire_many_owned(u32::try_from(n_bytes).ok()?).ok()
    }

    /// What keeps the endpoint from working, if anything.
    pub(crate) fn problem(&self) -> Option<Problem> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells the supervisor what keeps the endpoint from working, if that has changed.
    pub(crate) fn set_problem(&self, problem: Option<Problem>) {
        let mut told = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if *told != problem {
            told.clone_from(&problem);
            drop(told);
            self.report(FromWorker::Problem(problem));
        }
    }

    /// Tells the supervisor. When it is away for so long that the queue is full, the report is dropped and counted:
    /// reports are for people and statistics, requests are not delayed for them.
    pub(crate) fn report(&self, report: FromWorker) {
        if self.reports.try_send(report).is_err() {
            self.metrics.report_dropped();
        }
    }
}

/// Unix time in milliseconds.
pub(crate) fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
