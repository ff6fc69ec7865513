use codex_control::ipc::{RequestOutcome, RequestReport};
use codex_control::rpc::Usage;

use super::*;

/// Longest wait for the database's thread; the longest it takes by itself is [`BUSY_TIMEOUT`].
const PATIENCE: Duration = Duration::from_mins(1);

fn row(endpoint: &str, outcome: RequestOutcome, at_ms: u64) -> usage::Row {
    let failed = outcome == RequestOutcome::Failed;
    usage::Row {
        endpoint: endpoint.parse().unwrap(),
        report: RequestReport {
            request: "r".to_owned(),
            model: "asked".to_owned(),
            upstream_model: "m".to_owned(),
            status: 200,
            outcome,
            failure: failed.then(|| "rate-limit".to_owned()),
            message: failed.then(|| "not kept".to_owned()),
            attempts: if failed { 5 } else { 1 },
            request_bytes: 10,
            first_event_ms: (!failed).then_some(30),
            elapsed_ms: 100,
            ended_at_ms: at_ms,
            input_tokens: Some(1_000),
            output_tokens: Some(100),
            cached_tokens: Some(500),
            reasoning_tokens: Some(10),
        },
    }
}

/// Asks as a client does, again while it is told that too many wait, and waits for the answer.
fn summary(database: &Database, since_ms: u64) -> Usage {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (answer, result) = oneshot::channel();
        database.answer(answer, move |connection| usage::summary(connection, since_ms));
        match result.blocking_recv().expect("an answer") {
            Err(busy) if busy.code == code::TIMEOUT && Instant::now() < deadline => std::thread::yield_now(),
            value => return serde_json::from_value(value.expect("a good one")).unwrap(),
        }
    }
}

/// Waits until the thread has opened something, and returns what the person is told.
fn opened(database: &Database) -> DatabaseStatus {
    summary(database, 0);
    database.status()
}

fn contents(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_was_used_is_kept_over_an_end_and_added_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let mut database = Database::open(path.clone());
    let now_ms = unix_ms();
    for (endpoint, outcome, after_ms) in [
        ("zai", RequestOutcome::Completed, 0),
        ("zai", RequestOutcome::Failed, 1_000),
        ("pool", RequestOutcome::Cancelled, 2_000),
    ] {
        database.request_ended(row(endpoint, outcome, now_ms + after_ms));
    }
    database.close_within(PATIENCE);

    let database = Database::open(path);
    let all = summary(&database, 0);
    assert_eq!(all.failures, [("rate-limit".to_owned(), 1)]);
    let [zai, pool] = &all.lines[..] else { panic!("{all:?}") };
    assert_eq!(
        (zai.endpoint.as_str(), zai.requests, zai.failed, zai.retried, zai.input_tokens, zai.reasoning_tokens),
        ("zai", 2, 1, 1, 2_000, 20)
    );
    assert_eq!((zai.first_event_mean_ms, zai.elapsed_mean_ms, zai.last_at_ms), (Some(30), Some(100), now_ms + 1_000));
    assert_eq!((pool.endpoint.as_str(), pool.requests, pool.cancelled), ("pool", 1, 1));
    assert_eq!(summary(&database, now_ms + 1_500).lines.len(), 1, "what is older was not asked for");
    assert_eq!(database.status().problem, None);
}

#[test]
fn neither_content_nor_a_providers_words_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let mut database = Database::open(path.clone());
    database.request_ended(row("zai", RequestOutcome::Failed, unix_ms()));
    database.close_within(PATIENCE);
    let bytes = std::fs::read(path).unwrap();
    assert!(!bytes.windows(8).any(|window| window == b"not kept"));
}

#[test]
fn old_rows_and_too_many_rows_are_deleted() {
    let mut connection = in_memory();
    let day_ms = 24 * 60 * 60 * 1000;
    let rows = [row("zai", RequestOutcome::Completed, day_ms), row("zai", RequestOutcome::Completed, 100 * day_ms)];
    usage::insert(&mut connection, &rows).unwrap();
    usage::prune(&connection, 101 * day_ms).unwrap();
    assert_eq!(usage::summary(&connection, 0).unwrap().lines[0].requests, 1);
}

#[test]
fn a_damaged_file_is_put_aside_and_a_new_one_begun() {
    for damage in [
        |bytes: &mut Vec<u8>| bytes[..16].copy_from_slice(b"not a database!!"),
        |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() / 2),
        |bytes: &mut Vec<u8>| bytes[4096..8192].fill(0xff),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let mut database = Database::open(path.clone());
        database.request_ended(row("zai", RequestOutcome::Completed, unix_ms()));
        database.close_within(PATIENCE);
        let mut bytes = std::fs::read(&path).unwrap();
        damage(&mut bytes);
        std::fs::write(&path, &bytes).unwrap();

        let mut database = Database::open(path.clone());
        let status = opened(&database);
        let [aside] = &status.put_aside[..] else { panic!("{status:?}: {:?}", contents(folder.path())) };
        assert_eq!(std::fs::read(aside).unwrap(), bytes, "as it was found");
        assert!(!status.is_in_memory && status.problem.is_none(), "{status:?}");
        database.request_ended(row("zai", RequestOutcome::Completed, unix_ms()));
        database.close_within(PATIENCE);
        let again = Database::open(path);
        assert_eq!(summary(&again, 0).lines[0].requests, 1);
        assert_eq!(again.status().put_aside.len(), 1, "told until the person has taken it away");
    }
}

#[test]
fn a_file_that_becomes_damaged_is_put_aside_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let database = Database::open(path);
    opened(&database);
    let (answer, result) = oneshot::channel();
    database.answer::<()>(answer, |_| {
        let damaged = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        Err(DatabaseError::Sqlite(rusqlite::Error::SqliteFailure(damaged, None)))
    });
    assert!(result.blocking_recv().unwrap().is_err());
    let status = opened(&database);
    assert_eq!((status.put_aside.len(), status.is_in_memory, status.problem), (1, false, None));
}

#[test]
fn where_no_file_can_be_used_memory_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    std::fs::create_dir(&path).unwrap();
    for path in [path, "/proc/no/state.db".into()] {
        let mut database = Database::open(path);
        let status = opened(&database);
        assert!(status.is_in_memory, "{status:?}");
        let problem = status.problem.unwrap();
        assert!(problem.message.contains("cannot be used") && problem.hint.is_some(), "{problem:?}");
        database.request_ended(row("zai", RequestOutcome::Completed, unix_ms()));
        database.flush();
        assert_eq!(summary(&database, 0).lines.len(), 1, "until the end all is as usual");
        assert!(database.status().is_in_memory, "a write into memory does not mend a file");
    }
}

#[test]
fn a_newer_file_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let connection = Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", schema::VERSION + 1).unwrap();
    drop(connection);
    let database = Database::open(path.clone());
    let status = opened(&database);
    assert!(status.problem.unwrap().message.contains("of version"), "the person is told");
    drop(database);
    let connection = Connection::open(&path).unwrap();
    assert_eq!(schema::version(&connection).unwrap(), schema::VERSION + 1);
}

#[test]
fn a_locked_file_costs_rows_and_nobodys_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let mut database = Database::open(path.clone());
    opened(&database);
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    // The thread stays at this job, so whoever waited for it would wait for ever.
    let (gate, opened) = oneshot::channel::<()>();
    database.write(0, |_| {
        let _ = opened.blocking_recv();
        Ok(())
    });
    for _ in 0..2 * JOBS_MAX {
        database.request_ended(row("zai", RequestOutcome::Completed, unix_ms()));
        database.flush();
    }
    drop(gate);
    assert!(database.status().rows_dropped_total > 0, "a full queue refuses, and that is counted");
    let deadline = Instant::now() + PATIENCE;
    while database.status().problem.is_none() {
        assert!(Instant::now() < deadline, "nobody was told");
        std::thread::park_timeout(Duration::from_millis(20));
    }
    other.execute_batch("ROLLBACK").unwrap();
    assert!(summary(&database, 0).lines.len() <= 1);
    database.request_ended(row("pool", RequestOutcome::Completed, unix_ms()));
    database.flush();
    assert!(summary(&database, 0).lines.iter().any(|line| line.endpoint == "pool"));
    assert_eq!(database.status().problem, None, "it is mended, and told so");
}
