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
    // Incidents and what was tried: `record` is the whole as JSON, the other columns are what is searched by.
    "CREATE TABLE incident (
        id INTEGER PRIMARY KEY,
        opened_at_ms INTEGER NOT NULL,
        changed_at_ms INTEGER NOT NULL,
        endpoint TEXT,
        fault TEXT,
        state TEXT NOT NULL,
        record TEXT NOT NULL
     );
     CREATE INDEX incident_changed ON incident (changed_at_ms);
     CREATE TABLE action (
        id INTEGER PRIMARY KEY,
        incident INTEGER NOT NULL,
        decided_at_ms INTEGER NOT NULL,
        action TEXT NOT NULL,
        tier TEXT NOT NULL,
        because TEXT NOT NULL,
        state TEXT NOT NULL
     );
     CREATE INDEX action_incident ON action (incident);
     -- What the engine must not forget, whole: guards, budget, learned fixes. There is one row at most.
     CREATE TABLE engine (id INTEGER PRIMARY KEY CHECK (id = 1), record TEXT NOT NULL);",
];

/// The present form: the number of steps.
pub(super) const VERSION: i64 = 2;

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
