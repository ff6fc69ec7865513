//! The tables, and how older files become of the present form.

use rusqlite::Connection;

/// Steps from an empty file to the present form; `user_version` counts those that were made. A step that was released
/// is never changed: what has to be different is a further step.
const STEPS: &[&str] = &[
    // One row a request. No content and no secret: see `usage::Row`.
    "CREATE TABLE request (
        id INTEGER PRIMARY KEY,
        at_ms INTEGER NOT NULL,
        endpoint TEXT NOT NULL,
        model TEXT NOT NULL,
        outcome TEXT NOT NULL,
        status INTEGER NOT NULL,
        failure TEXT,
        attempts INTEGER NOT NULL,
        input_tokens INTEGER,
        output_tokens INTEGER,
        cached_tokens INTEGER,
        reasoning_tokens INTEGER,
        first_event_ms INTEGER,
        elapsed_ms INTEGER NOT NULL
     );
     CREATE INDEX request_at ON request (at_ms);
     -- Written to and rolled back when the file is opened: can it be written?
     CREATE TABLE opened (at_ms INTEGER NOT NULL);",
];

/// The present form: the number of steps.
pub(super) const VERSION: i64 = 1;

/// The form of the file at hand.
pub(super) fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Makes the steps that `found` lacks, each whole or not at all.
pub(super) fn migrate(connection: &mut Connection, found: i64) -> rusqlite::Result<()> {
    for (version, step) in (1_i64..).zip(STEPS.iter().copied()).filter(|(version, _)| *version > found) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "user_version", version)?;
        transaction.commit()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_makes_a_version_and_is_made_once() {
        assert_eq!(i64::try_from(STEPS.len()), Ok(VERSION));
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, 0).unwrap();
        assert_eq!(version(&connection).unwrap(), VERSION);
        migrate(&mut connection, VERSION).unwrap();
        migrate(&mut connection, 0).unwrap_err();
        assert_eq!(version(&connection).unwrap(), VERSION, "a step that fails leaves nothing behind");
    }
}
