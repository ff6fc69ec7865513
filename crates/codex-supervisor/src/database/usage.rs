//! Requests that have ended: one row each, gathered for a few seconds, written together.

use std::collections::VecDeque;

use codex_control::EndpointId;
use codex_control::ipc::RequestReport;
use codex_control::rpc::{Usage, UsageLine};
use rusqlite::{Connection, params};

use super::{DatabaseError, number};

/// Rows that may wait to be written; beyond it the oldest are dropped and counted. Twenty times what a busy person's
/// endpoints end in one interval.
const PENDING_ROWS_MAX: usize = 4096;
/// Rows kept, about 100 bytes each.
const ROWS_MAX: u64 = 200_000;
/// Days a row is kept.
const DAYS_MAX: u64 = 92;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// One request that has ended. Neither its content nor a provider's words are kept.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// The endpoint that was asked.
    pub(crate) endpoint: EndpointId,
    /// What its worker has reported.
    pub(crate) report: RequestReport,
}

/// Rows that wait to be written.
#[derive(Debug, Default)]
pub(super) struct Pending {
    rows: VecDeque<Row>,
    n_dropped: u64,
}

impl Pending {
    pub(super) fn push(&mut self, row: Row) {
        if self.rows.len() >= PENDING_ROWS_MAX {
            self.rows.pop_front();
            self.n_dropped += 1;
        }
        self.rows.push_back(row);
    }

    pub(super) fn take(&mut self) -> Vec<Row> {
        std::mem::take(&mut self.rows).into()
    }

    pub(super) fn n_dropped(&self) -> u64 {
        self.n_dropped
    }
}

/// Writes `rows`, all or none.
pub(super) fn insert(connection: &mut Connection, rows: &[Row]) -> Result<(), DatabaseError> {
    let transaction = connection.transaction()?;
    let mut statement = transaction.prepare(
        "INSERT INTO request (at_ms, endpoint, model, outcome, status, failure, attempts, input_tokens, output_tokens,
            cached_tokens, reasoning_tokens, first_event_ms, elapsed_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
    )?;
    for Row { endpoint, report } in rows {
        statement.execute(params![
            number(report.ended_at_ms),
            endpoint.as_str(),
            report.upstream_model,
            report.outcome.name(),
            report.status,
            report.failure,
            report.attempts,
            report.input_tokens.map(number),
            report.output_tokens.map(number),
            report.cached_tokens.map(number),
            report.reasoning_tokens.map(number),
            report.first_event_ms.map(number),
            number(report.elapsed_ms),
        ])?;
    }
    drop(statement);
    transaction.commit()?;
    Ok(())
}

/// Deletes what is older than [`DAYS_MAX`] days or more than [`ROWS_MAX`] rows.
pub(super) fn prune(connection: &Connection, now_ms: u64) -> Result<(), DatabaseError> {
    connection.execute("DELETE FROM request WHERE at_ms < ?1", [number(now_ms.saturating_sub(DAYS_MAX * DAY_MS))])?;
    connection.execute("DELETE FROM request WHERE id <= (SELECT max(id) FROM request) - ?1", [number(ROWS_MAX)])?;
    Ok(())
}

/// What was used from `since_ms` on, a line for each endpoint and model, most requests first.
pub(crate) fn summary(connection: &Connection, since_ms: u64) -> Result<Usage, DatabaseError> {
    let mut statement = connection.prepare(
        "SELECT endpoint, model, count(*), sum(outcome IN ('failed', 'refused')), sum(outcome = 'cancelled'),
            sum(attempts > 1), total(input_tokens), total(output_tokens), total(cached_tokens),
            total(reasoning_tokens), avg(first_event_ms), avg(elapsed_ms), max(at_ms)
         FROM request WHERE at_ms >= ?1 GROUP BY endpoint, model ORDER BY count(*) DESC, endpoint, model",
    )?;
    let lines = statement.query_map([number(since_ms)], |row| {
        // Sums and means come as floating point; tokens of all time stay far below where that is inexact.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "sums of whole positive numbers")]
        let whole = |column| row.get::<_, Option<f64>>(column).map(|value| value.map(|value| value.round() as u64));
        Ok(UsageLine {
            endpoint: row.get(0)?,
            model: row.get(1)?,
            requests: whole(2)?.unwrap_or_default(),
            failed: whole(3)?.unwrap_or_default(),
            cancelled: whole(4)?.unwrap_or_default(),
            retried: whole(5)?.unwrap_or_default(),
            input_tokens: whole(6)?.unwrap_or_default(),
            output_tokens: whole(7)?.unwrap_or_default(),
            cached_tokens: whole(8)?.unwrap_or_default(),
            reasoning_tokens: whole(9)?.unwrap_or_default(),
            first_event_mean_ms: whole(10)?,
            elapsed_mean_ms: whole(11)?,
            last_at_ms: whole(12)?.unwrap_or_default(),
        })
    })?;
    let lines = lines.collect::<rusqlite::Result<_>>()?;
    let mut statement = connection.prepare(
        "SELECT failure, count(*) FROM request WHERE at_ms >= ?1 AND failure IS NOT NULL
         GROUP BY failure ORDER BY count(*) DESC, failure",
    )?;
    let failures = statement.query_map([number(since_ms)], |row| Ok((row.get(0)?, row.get::<_, u32>(1)?.into())))?;
    Ok(Usage { since_ms, lines, failures: failures.collect::<rusqlite::Result<_>>()? })
}
