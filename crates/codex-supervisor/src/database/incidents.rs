//! Incidents, what was tried about them, and what the engine must not forget.

use std::collections::BTreeMap;

use codex_control::EndpointId;
use codex_control::incident::{ActionId, Attempt, Fault, Incident, IncidentId, Step, Tier};
use codex_control::rpc::{ActionLine, IncidentCounts, IncidentListParams, RuleCount};
use codex_incident::rule_of;
use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;

use super::{DatabaseError, number};

/// Incidents that are kept; of more, those that changed longest ago go.
const INCIDENTS_MAX: u64 = 5_000;
/// Days an incident is kept.
const DAYS_MAX: u64 = 92;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// Most incidents in one answer, of their timelines only when the person was told: an answer must fit a line of the
/// control socket.
const LIST_MAX: u32 = 200;
/// The same with their whole timelines.
const LIST_WHOLE_MAX: u32 = 50;

/// Writes each incident in the place of what was kept of it.
fn put_all(connection: &Connection, incidents: &[Incident]) -> Result<(), DatabaseError> {
    for incident in incidents {
        connection.execute(
            "INSERT OR REPLACE INTO incident (id, opened_at_ms, changed_at_ms, endpoint, fault, state, record)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                number(incident.id.0),
                number(incident.opened_at_ms),
                number(incident.changed_at_ms),
                incident.endpoint.as_ref().map(EndpointId::as_str),
                incident.fault.map(Fault::name),
                incident.state.name(),
                serde_json::to_string(incident)?,
            ],
        )?;
        for attempt in &incident.attempts {
            connection.execute(
                "INSERT OR REPLACE INTO action (id, incident, decided_at_ms, action, tier, because, state)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![
                    number(attempt.id.0),
                    number(incident.id.0),
                    number(attempt.decided_at_ms),
                    attempt.action.name(),
                    attempt.tier.name(),
                    attempt.because,
                    attempt.state.name(),
                ],
            )?;
        }
    }
    Ok(())
}

/// Deletes what is older than [`DAYS_MAX`] days or more than [`INCIDENTS_MAX`].
pub(super) fn prune(connection: &Connection, now_ms: u64) -> Result<(), DatabaseError> {
    connection
        .execute("DELETE FROM incident WHERE changed_at_ms < ?1", [number(now_ms.saturating_sub(DAYS_MAX * DAY_MS))])?;
    connection.execute(
        "DELETE FROM incident WHERE id IN (SELECT id FROM incident ORDER BY changed_at_ms DESC LIMIT -1 OFFSET ?1)",
        [number(INCIDENTS_MAX)],
    )?;
    connection.execute("DELETE FROM action WHERE incident NOT IN (SELECT id FROM incident)", [])?;
    Ok(())
}

/// Incidents as asked for, those that changed last first.
pub(crate) fn list(connection: &Connection, asked: &IncidentListParams) -> Result<Vec<Incident>, DatabaseError> {
    let most = if asked.whole { LIST_WHOLE_MAX } else { LIST_MAX };
    let mut statement = connection.prepare(
        "SELECT record FROM incident
         WHERE changed_at_ms >= ?1 AND (?2 IS NULL OR endpoint = ?2) AND (?3 IS NULL OR id < ?3)
         ORDER BY id DESC LIMIT ?4",
    )?;
    let records = statement.query_map(
        params![
            number(asked.since_ms.unwrap_or_default()),
            asked.endpoint.as_ref().map(EndpointId::as_str),
            asked.before.map(|id| number(id.0)),
            asked.limit.map_or(most, |limit| limit.min(most)),
        ],
        |row| row.get::<_, String>(0),
    )?;
    let mut incidents = Vec::new();
    for record in records {
        let mut incident: Incident = serde_json::from_str(&record?)?;
        if !asked.whole {
            // What a list says of it.
            let told_at_ms = incident.told_at_ms();
            let told = |at_ms| Step { at_ms, text: Incident::TOLD.to_owned() };
            incident.timeline = told_at_ms.map(told).into_iter().collect();
        }
        incidents.push(incident);
    }
    Ok(incidents)
}

/// One incident, whole.
///
/// # Errors
/// [`DatabaseError::Absent`], besides what can go wrong.
pub(crate) fn show(connection: &Connection, id: IncidentId) -> Result<Incident, DatabaseError> {
    let record: Option<String> = connection
        .query_row("SELECT record FROM incident WHERE id = ?1", [number(id.0)], |row| row.get(0))
        .optional()?;
    let record = record.ok_or_else(|| DatabaseError::Absent(format!("incident {id}")))?;
    Ok(serde_json::from_str(&record)?)
}

/// Actions that are under way or wait for a yes, and those that stand although they are over; oldest first.
pub(crate) fn actions(connection: &Connection, standing: &[ActionId]) -> Result<Vec<ActionLine>, DatabaseError> {
    let mut statement = connection.prepare(
        "SELECT DISTINCT incident.record FROM incident JOIN action ON action.incident = incident.id
         WHERE action.state IN ('planned', 'asked', 'running', 'watched') OR action.id = ?1",
    )?;
    let mut incidents: BTreeMap<IncidentId, Incident> = BTreeMap::new();
    // Without any that stands, a number that no action has.
    let mut ids: Vec<i64> = standing.iter().map(|id| number(id.0)).collect();
    if ids.is_empty() {
        ids.push(-1);
    }
    for id in ids {
        for record in statement.query_map([id], |row| row.get::<_, String>(0))? {
            let incident: Incident = serde_json::from_str(&record?)?;
            incidents.insert(incident.id, incident);
        }
    }
    let mut lines: Vec<ActionLine> = incidents
        .values()
        .flat_map(|incident| incident.attempts.iter().map(|attempt| line(incident, attempt, standing)))
        .collect();
    lines.retain(|line| line.stands || !line.attempt.state.is_over());
    lines.sort_by_key(|line| line.attempt.id);
    Ok(lines)
}

/// One action.
///
/// # Errors
/// [`DatabaseError::Absent`], besides what can go wrong.
pub(crate) fn action(
    connection: &Connection,
    id: ActionId,
    standing: &[ActionId],
) -> Result<ActionLine, DatabaseError> {
    let absent = || DatabaseError::Absent(format!("action {id}"));
    let incident: Option<i64> = connection
        .query_row("SELECT incident FROM action WHERE id = ?1", [number(id.0)], |row| row.get(0))
        .optional()?;
    let incident = incident.and_then(|incident| u64::try_from(incident).ok()).ok_or_else(absent)?;
    let incident = show(connection, IncidentId(incident))?;
    let attempt = incident.attempts.iter().find(|attempt| attempt.id == id).ok_or_else(absent)?;
    Ok(line(&incident, attempt, standing))
}

fn line(incident: &Incident, attempt: &Attempt, standing: &[ActionId]) -> ActionLine {
    ActionLine {
        incident: incident.id,
        endpoint: incident.endpoint.clone(),
        fault: incident.fault,
        attempt: attempt.clone(),
        stands: standing.contains(&attempt.id),
    }
}

/// How often each fault was seen and what became of each rule's actions, since `since_ms`.
pub(crate) fn counts(connection: &Connection, since_ms: u64) -> Result<IncidentCounts, DatabaseError> {
    let mut statement = connection.prepare(
        "SELECT fault, count(*) FROM incident WHERE changed_at_ms >= ?1 AND fault IS NOT NULL GROUP BY fault",
    )?;
    let faults = statement.query_map([number(since_ms)], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let faults = faults.collect::<rusqlite::Result<BTreeMap<String, u32>>>()?;
    let mut statement = connection.prepare(
        "SELECT because, state, count(*) FROM action WHERE decided_at_ms >= ?1 AND tier = ?2 GROUP BY because, state",
    )?;
    let mut rules: BTreeMap<String, RuleCount> = BTreeMap::new();
    let mut rows = statement.query(params![number(since_ms), Tier::Rule.name()])?;
    while let Some(row) = rows.next()? {
        let (because, state, n): (String, String, u32) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let Some(rule) = rule_of(&because) else { continue };
        let count = rules.entry(rule.to_owned()).or_default();
        count.acted += n;
        match state.as_str() {
            "helped" => count.helped += n,
            "failed" => count.failed += n,
            _ => {}
        }
    }
    Ok(IncidentCounts { faults, rules })
}

/// Writes incidents, and what the engine must not forget in the place of what was written before.
pub(crate) fn keep(
    connection: &mut Connection,
    saved: Option<&impl Serialize>,
    incidents: &[Incident],
) -> Result<(), DatabaseError> {
    let transaction = connection.transaction()?;
    if let Some(saved) = saved {
        let record = serde_json::to_string(saved)?;
        transaction.execute("INSERT OR REPLACE INTO engine (id, record) VALUES (1, ?1)", [record])?;
    }
    put_all(&transaction, incidents)?;
    transaction.commit()?;
    Ok(())
}

/// What stands there for the engine.
pub(super) struct Found {
    /// What it has said to keep, unread.
    pub(super) record: Option<String>,
    /// The highest number of an incident; 0: none.
    pub(super) last_incident: u64,
    /// The same of an action.
    pub(super) last_action: u64,
}

/// What was kept for the engine, if anything was, and the numbers in use.
pub(super) fn kept(connection: &Connection) -> Result<Found, DatabaseError> {
    let last = |question: &str| -> rusqlite::Result<u64> {
        let highest: Option<i64> = connection.query_row(question, [], |row| row.get(0))?;
        Ok(highest.and_then(|highest| u64::try_from(highest).ok()).unwrap_or_default())
    };
    Ok(Found {
        record: connection.query_row("SELECT record FROM engine WHERE id = 1", [], |row| row.get(0)).optional()?,
        last_incident: last("SELECT max(id) FROM incident")?,
        last_action: last("SELECT max(id) FROM action")?,
    })
}
