//! `state.db`: what outlives the supervisor and is asked for by time, endpoint or name.
//!
//! ```text
//!  supervisor's task ── jobs, bounded ──► one thread that owns the connection ──► state.db (SQLite, WAL)
//!                                                │
//!        a client of the control socket ◄────────┘ answers of queries go there directly
//! ```
//!
//! The supervisor's task never waits for a disk: it hands over a [`Job`] and goes on. What must be written before it is
//! acted upon (a call that costs money) is acted upon when the job itself says that it is done.
//!
//! A database that cannot be used stops nothing. A damaged one is put aside under another name, never deleted, and a new
//! one is begun; where no file can be used (read-only, locked, of a newer version), everything is kept in memory until
//! the supervisor ends. [`Database::status`] tells the person which it is.

pub(crate) mod incidents;
mod schema;
pub(crate) mod usage;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use codex_control::files;
use codex_control::ipc::Problem;
use codex_control::rpc::{DatabaseStatus, RpcError, code};
use rusqlite::{Connection, ErrorCode, OpenFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::oneshot;
use tracing::{debug, error, info, warn};

use crate::clock::unix_ms;

/// Jobs that may wait for the disk. When it is full, a job is refused: a row less, or an error for who has asked.
const JOBS_MAX: usize = 256;
/// Time a statement waits for another program that holds the file, e.g. a person's `sqlite3`.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Memory for pages of the file. The tables are small and asked rarely.
const CACHE_KIB: i64 = 256;
/// The write-ahead log is cut back to this after a checkpoint.
const LOG_BYTES_MAX: i64 = 1024 * 1024;
/// Time between two rounds of deleting what is older or more than it may be.
const PRUNE_INTERVAL: Duration = Duration::from_hours(1);
/// Time the last jobs get when the supervisor ends.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);
/// Stack of the thread. SQLite asks for little, `serde_json` a little more.
const STACK_BYTES: usize = 512 * 1024;

/// Something to be done with the database, on its own thread.
type Job = Box<dyn FnOnce(&mut Store) + Send>;

/// Why something could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DatabaseError {
    /// SQLite says so.
    #[error("the database refuses")]
    Sqlite(#[from] rusqlite::Error),
    /// A row does not hold what it should; somebody else has written it.
    #[error("a row of the database cannot be understood")]
    Row(#[from] serde_json::Error),
    /// What was named is not there.
    #[error("there is no {0}")]
    Absent(String),
}

impl DatabaseError {
    fn for_client(&self) -> RpcError {
        match self {
            Self::Absent(_) => RpcError::new(code::NOT_FOUND, self.to_string(), None),
            Self::Sqlite(_) | Self::Row(_) => {
                let hint = Some("`codexctl status` says how the database fares".to_owned());
                RpcError::new(code::INTERNAL, codex_control::report::chain(self), hint)
            }
        }
    }
}

/// What became of something that was to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// It will outlive us.
    Kept,
    /// It will not, and writing it again would change nothing: there is only memory.
    InMemory,
    /// It is nowhere.
    Refused,
}

/// What an earlier run has left for the engine.
#[derive(Debug)]
pub(crate) struct Earlier<T> {
    /// What it said to keep.
    pub(crate) saved: Option<T>,
    /// Why something of it is missing.
    pub(crate) problem: Option<String>,
    /// Whether nothing is lost when it is written over.
    pub(crate) is_ours: bool,
    /// The highest number of an incident; 0: none.
    pub(crate) last_incident: u64,
    /// The same of an action.
    pub(crate) last_action: u64,
}

/// The supervisor's end of the database.
pub(crate) struct Database {
    jobs: Option<SyncSender<Job>>,
    /// Hears the thread's end.
    ended: Receiver<()>,
    shared: Arc<Mutex<DatabaseStatus>>,
    usage: usage::Pending,
}

impl Database {
    /// Begins to open the database at `path`; until that is done, jobs wait.
    pub(crate) fn open(path: PathBuf) -> Self {
        let status = DatabaseStatus { path: path.display().to_string(), ..DatabaseStatus::default() };
        let shared = Arc::new(Mutex::new(status));
        let (jobs, received) = sync_channel::<Job>(JOBS_MAX);
        let (alive, ended) = sync_channel::<()>(0);
        let thread_shared = Arc::clone(&shared);
        let started =
            std::thread::Builder::new().name("state-db".to_owned()).stack_size(STACK_BYTES).spawn(move || {
                Store::open(path, thread_shared).run(&received);
                drop(alive);
            });
        let jobs = match started {
            // Ends when `jobs` is dropped; `ended` is how that is waited for.
            Ok(_) => Some(jobs),
            Err(error) => {
                error!(%error, "no thread for the database; nothing is kept");
                let message = format!("there is no thread for the database: {error}");
                lock(&shared).problem = Some(Problem { message, hint: None });
                None
            }
        };
        Self { jobs, ended, shared, usage: usage::Pending::default() }
    }

    /// How it fares.
    pub(crate) fn status(&self) -> DatabaseStatus {
        let mut status = lock(&self.shared).clone();
        status.rows_dropped_total += self.usage.n_dropped();
        status
    }

    /// Hands `job` over; gives it back if it cannot be taken: there is no thread, or it is [`JOBS_MAX`] jobs behind.
    fn hand_over(&self, job: Job) -> Result<(), Job> {
        let Some(jobs) = &self.jobs else { return Err(job) };
        jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(job) | TrySendError::Disconnected(job) => job,
        })
    }

    /// Writes something, later. `n_rows` are lost, and counted, if it cannot be written.
    pub(crate) fn write(
        &self,
        n_rows: u64,
        write: impl FnOnce(&mut Connection) -> Result<(), DatabaseError> + Send + 'static,
    ) {
        let job: Job = Box::new(move |store| {
            if let Err(error) = store.write(write) {
                lock(&store.shared).rows_dropped_total += n_rows;
                warn!(error = codex_control::report::chain(&error), "something was not written to the database");
            }
        });
        if self.hand_over(job).is_err() {
            lock(&self.shared).rows_dropped_total += n_rows;
            debug!("the database is behind, something was not written");
        }
    }

    /// The same, and calls `then` when it is done, on the database's thread. Nothing is counted as lost: whoever asks
    /// keeps what was refused, or says so with [`Database::lost`]. Returns whether the job could be handed over; if not,
    /// `then` is not called.
    pub(crate) fn write_then(
        &self,
        write: impl FnOnce(&mut Connection) -> Result<(), DatabaseError> + Send + 'static,
        then: impl FnOnce(Written) + Send + 'static,
    ) -> bool {
        let job: Job = Box::new(move |store| {
            let written = match store.write(write) {
                Err(error) => {
                    warn!(error = codex_control::report::chain(&error), "something was not written to the database");
                    Written::Refused
                }
                Ok(()) if lock(&store.shared).is_in_memory => Written::InMemory,
                Ok(()) => Written::Kept,
            };
            then(written);
        });
        self.hand_over(job).is_ok()
    }

    /// So many rows will never be written.
    pub(crate) fn lost(&self, n_rows: u64) {
        lock(&self.shared).rows_dropped_total += n_rows;
    }

    /// Reads what an earlier run has kept for the engine, and calls `then` with it, on the database's thread. `Err`,
    /// with the reason: it is not known what is there. When the job cannot even be handed over, `then` is not called:
    /// whoever waits needs a deadline of their own.
    pub(crate) fn load<T: DeserializeOwned>(&self, then: impl FnOnce(Result<Earlier<T>, String>) + Send + 'static) {
        let job: Job = Box::new(move |store| then(store.earlier()));
        if self.hand_over(job).is_err() {
            debug!("there is no database to read from");
        }
    }

    /// Reads something and answers a client with it, later.
    pub(crate) fn answer<T: Serialize>(
        &self,
        answer: oneshot::Sender<Result<Value, RpcError>>,
        read: impl FnOnce(&Connection) -> Result<T, DatabaseError> + Send + 'static,
    ) {
        // Taken apart, so that a client whose question cannot be handed over is told so.
        let answer = Arc::new(Mutex::new(Some(answer)));
        let kept = Arc::clone(&answer);
        let job: Job = Box::new(move |store| {
            let result = store
                .read(|connection| Ok(serde_json::to_value(read(connection)?)?))
                .map_err(|error| error.for_client());
            if let Some(answer) = lock(&answer).take() {
                let _ = answer.send(result); // fails only when the caller has gone
            }
        });
        if self.hand_over(job).is_err()
            && let Some(answer) = lock(&kept).take()
        {
            let hint = Some("try again in a moment; `codexctl status` says how the database fares".to_owned());
            let _ = answer.send(Err(RpcError::new(code::TIMEOUT, "the database is busy", hint)));
        }
    }

    /// A request has ended. Written with the next [`Database::flush`].
    pub(crate) fn request_ended(&mut self, row: usage::Row) {
        self.usage.push(row);
    }

    /// Writes what has gathered since the last time.
    pub(crate) fn flush(&mut self) {
        let rows = self.usage.take();
        if !rows.is_empty() {
            let n_rows = u64::try_from(rows.len()).unwrap_or(u64::MAX);
            self.write(n_rows, move |connection| usage::insert(connection, &rows));
        }
    }

    /// Writes what is left and waits for it, a bounded time: an end is not held up by a disk.
    pub(crate) fn close(self) {
        self.close_within(CLOSE_WITHIN);
    }

    fn close_within(mut self, within: Duration) {
        self.flush();
        drop(self.jobs.take());
        // Nothing is ever sent: the thread's end is the end of the channel.
        if self.ended.recv_timeout(within) == Err(RecvTimeoutError::Timeout) {
            warn!("the database does not come to an end, leaving it");
        }
    }
}

/// The thread's end.
pub(crate) struct Store {
    path: PathBuf,
    connection: Connection,
    shared: Arc<Mutex<DatabaseStatus>>,
    pruned_at: Option<Instant>,
    /// Whether the file was found damaged in this run.
    was_damaged: bool,
}

/// Where the rows are kept.
enum Opened {
    File {
        connection: Connection,
        /// Whether another one had to be put aside for it.
        was_damaged: bool,
    },
    /// The file cannot be used, and this is why.
    Memory(Problem),
}

impl Store {
    fn open(path: PathBuf, shared: Arc<Mutex<DatabaseStatus>>) -> Self {
        let opened = open_file(&path).unwrap_or_else(|error| Opened::Memory(unusable(&path, &error)));
        let mut found_damaged = false;
        let connection = match opened {
            Opened::File { connection, was_damaged } => {
                info!(path = %path.display(), "the database is open");
                found_damaged = was_damaged;
                connection
            }
            Opened::Memory(problem) => {
                error!(problem = problem.message, hint = problem.hint, "the database cannot be used, memory is");
                let mut status = lock(&shared);
                status.problem = Some(problem);
                status.is_in_memory = true;
                drop(status);
                in_memory()
            }
        };
        let mut store = Self { path, connection, shared, pruned_at: None, was_damaged: found_damaged };
        store.tell_aside();
        store
    }

    fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            if self.pruned_at.is_none_or(|at| at.elapsed() >= PRUNE_INTERVAL) {
                self.pruned_at = Some(Instant::now());
                self.prune();
            }
            match jobs.recv_timeout(PRUNE_INTERVAL) {
                Ok(job) => job(&mut self),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn prune(&mut self) {
        let now_ms = unix_ms();
        let pruned = self.write(|connection| {
            usage::prune(connection, now_ms)?;
            incidents::prune(connection, now_ms)
        });
        if let Err(error) = pruned {
            warn!(error = codex_control::report::chain(&error), "old rows were not deleted");
        }
    }

    /// Reads. A file found damaged here is put aside, as if it had been found so at the start.
    pub(crate) fn read<T>(
        &mut self,
        read: impl FnOnce(&Connection) -> Result<T, DatabaseError>,
    ) -> Result<T, DatabaseError> {
        let result = read(&self.connection);
        self.judge(result)
    }

    /// Writes.
    pub(crate) fn write<T>(
        &mut self,
        write: impl FnOnce(&mut Connection) -> Result<T, DatabaseError>,
    ) -> Result<T, DatabaseError> {
        let result = write(&mut self.connection);
        let is_written = result.is_ok();
        let result = self.judge(result);
        let mut status = lock(&self.shared);
        if is_written && !status.is_in_memory {
            status.problem = None; // it was locked, or full, and is no more
        }
        drop(status);
        result
    }

    /// What is there for the engine. A record that cannot be understood is put aside as a file.
    fn earlier<T: DeserializeOwned>(&mut self) -> Result<Earlier<T>, String> {
        // A file that is found damaged by the first look is another one at the second.
        let found = self.read(incidents::kept).or_else(|_| self.read(incidents::kept));
        let found = found.map_err(|error| codex_control::report::chain(&error))?;
        let status = lock(&self.shared).clone();
        let in_memory = status.problem.filter(|_| status.is_in_memory).map(|problem| problem.message);
        let damaged = self.was_damaged.then(|| "the database was damaged".to_owned());
        let mut earlier = Earlier {
            saved: None,
            problem: in_memory.or(damaged),
            is_ours: true,
            last_incident: found.last_incident,
            last_action: found.last_action,
        };
        let Some(record) = found.record else { return Ok(earlier) };
        match serde_json::from_str(&record) {
            Ok(saved) => earlier.saved = Some(saved),
            Err(error) => {
                let aside = with_end(&self.path, &format!("{ASIDE}{}{ENGINE_ASIDE}", unix_ms()));
                let written = files::write_atomically(&aside, record.as_bytes(), files::PRIVATE_FILE_MODE);
                let mut reason = format!("its record cannot be understood: {error}");
                if let Err(error) = written {
                    reason = format!("{reason}; it cannot be put aside: {}", codex_control::report::chain(&error));
                    earlier.is_ours = false;
                }
                earlier.problem = Some(reason);
                self.tell_aside();
            }
        }
        Ok(earlier)
    }

    /// Whether what has just happened goes on to be possible here.
    fn judge<T>(&mut self, result: Result<T, DatabaseError>) -> Result<T, DatabaseError> {
        let Err(DatabaseError::Sqlite(error)) = &result else { return result };
        if lock(&self.shared).is_in_memory {
            return result;
        }
        if is_damaged(error) {
            self.was_damaged = true;
            // Closed before it is renamed, or the new one would be entangled with the old one's log.
            self.connection = in_memory();
            match put_aside(&self.path).map_err(DatabaseErrorAtOpen::PutAside).and_then(|()| open_once(&self.path)) {
                Ok(connection) => {
                    self.connection = connection;
                    self.tell_aside();
                }
                Err(error) => {
                    let mut status = lock(&self.shared);
                    status.problem = Some(unusable(&self.path, &error));
                    status.is_in_memory = true;
                }
            }
        } else {
            let message = format!("the database `{}` cannot be written: {error}", self.path.display());
            let hint = "what happens meanwhile is not kept; look at the disk and at who holds the file";
            lock(&self.shared).problem = Some(Problem { message, hint: Some(hint.to_owned()) });
        }
        result
    }

    /// Tells the person about files that were put aside.
    fn tell_aside(&mut self) {
        lock(&self.shared).put_aside = files_aside(&self.path);
    }
}

/// Why the file could not be opened.
#[derive(Debug, thiserror::Error)]
enum DatabaseErrorAtOpen {
    #[error("it cannot be opened")]
    Sqlite(#[from] rusqlite::Error),
    #[error("it is damaged: {0}")]
    Damaged(String),
    #[error("it is damaged and cannot be put aside")]
    PutAside(#[source] std::io::Error),
    #[error("it is of version {0}, and this program knows versions up to {known}", known = schema::VERSION)]
    Newer(i64),
}

fn unusable(path: &Path, error: &DatabaseErrorAtOpen) -> Problem {
    let hint = match error {
        DatabaseErrorAtOpen::Newer(_) => {
            "install the newer version again, or move the file away and `codexctl restart`"
        }
        _ => "mend it and `codexctl restart`; until then incidents and usage are kept in memory",
    };
    Problem {
        message: format!("the database `{}` cannot be used: {}", path.display(), codex_control::report::chain(error)),
        hint: Some(hint.to_owned()),
    }
}

/// Opens the file; a damaged one is put aside once and begun anew.
fn open_file(path: &Path) -> Result<Opened, DatabaseErrorAtOpen> {
    let error = match open_once(path) {
        Ok(connection) => return Ok(Opened::File { connection, was_damaged: false }),
        Err(error) => error,
    };
    let damaged = match &error {
        DatabaseErrorAtOpen::Damaged(_) => true,
        DatabaseErrorAtOpen::Sqlite(error) => is_damaged(error),
        DatabaseErrorAtOpen::PutAside(_) | DatabaseErrorAtOpen::Newer(_) => false,
    };
    if !damaged {
        return Err(error);
    }
    warn!(path = %path.display(), error = codex_control::report::chain(&error), "the database is damaged, beginning a new one");
    put_aside(path).map_err(DatabaseErrorAtOpen::PutAside)?;
    open_once(path).map(|connection| Opened::File { connection, was_damaged: true })
}

fn open_once(path: &Path) -> Result<Connection, DatabaseErrorAtOpen> {
    // Without `SQLITE_OPEN_URI`: a path is a path.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
    connection.pragma_update_and_check(None, "journal_size_limit", LOG_BYTES_MAX, |_| Ok(()))?;
    // A guard that was written must hold after a power cut, too. There are few commits.
    connection.pragma_update(None, "synchronous", "full")?;
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Err(DatabaseErrorAtOpen::Damaged(verdict));
    }
    let found = schema::version(&connection)?;
    if found > schema::VERSION {
        return Err(DatabaseErrorAtOpen::Newer(found));
    }
    schema::migrate(&mut connection, found)?;
    // Whether it can be written is found now, not with the first row.
    connection.execute_batch("BEGIN IMMEDIATE; INSERT INTO opened (at_ms) VALUES (0); ROLLBACK;")?;
    Ok(connection)
}

fn in_memory() -> Connection {
    let connection = Connection::open_in_memory().and_then(|mut connection| {
        schema::migrate(&mut connection, 0)?;
        Ok(connection)
    });
    connection.expect("a database in memory needs nothing but memory")
}

fn is_damaged(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Ends of the files that belong to one database.
const FILE_ENDS: [&str; 3] = ["", "-wal", "-shm"];
/// Mark in the name of a file that was put aside.
const ASIDE: &str = ".damaged-";
/// How the name of a file ends that holds what the engine had kept, and could not be understood.
const ENGINE_ASIDE: &str = DatabaseStatus::ENGINE_ASIDE;

/// Renames the database and its log, so that nothing of them is lost.
fn put_aside(path: &Path) -> std::io::Result<()> {
    let at_ms = unix_ms();
    for end in FILE_ENDS {
        let from = with_end(path, end);
        match std::fs::rename(&from, with_end(path, &format!("{ASIDE}{at_ms}{end}"))) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

/// What was put aside, oldest first.
fn files_aside(path: &Path) -> Vec<String> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Vec::new();
    };
    let begin = format!("{name}{ASIDE}");
    let mut found: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(&begin) && !name.ends_with("-wal") && !name.ends_with("-shm"))
        .map(|name| folder.join(name).display().to_string())
        .collect();
    found.sort();
    found
}

fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// A whole number for SQLite, which has none beyond `i64`.
fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// What is behind the lock stays whole whoever panics: single values are replaced.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
