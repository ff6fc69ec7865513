//! What comes out of the engine.

use codex_control::EndpointId;
use codex_control::incident::{Action, ActionId, Incident, IncidentId, Level, Tier, Verify};
use serde::{Deserialize, Serialize};

/// Something to be done by whoever drives the engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Directive {
    /// Carry this out, then call [`crate::Engine::outcome`].
    Act(Act),
    /// Ask the AI, then call [`crate::Engine::diagnosis`].
    Diagnose(Diagnose),
    /// Tell the person.
    Notify(Notice),
    /// An incident has changed: this is all of it now. It replaces what was kept under its id.
    Record(Box<Incident>),
}

/// An action that is due now: its guards were counted, its time for cancelling is over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Act {
    /// For [`crate::Engine::outcome`].
    pub id: ActionId,
    /// Because of which incident.
    pub incident: IncidentId,
    /// On which endpoint; `None`: on the installation.
    pub endpoint: Option<EndpointId>,
    /// What. Its actor is the supervisor.
    pub action: Action,
    /// What is done right after it; one outcome for both.
    pub then: Option<Action>,
    /// Who decided.
    pub tier: Tier,
    /// Why, in words.
    pub because: String,
    /// What will show that it has helped; the engine watches for it by itself.
    pub verify: Verify,
}

/// A question to the AI.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Diagnose {
    /// For [`crate::Engine::diagnosis`].
    pub incident: IncidentId,
    /// The model to ask.
    pub model: String,
    /// The system prompt.
    pub system: String,
    /// The report: redacted, at most [`crate::PROMPT_BYTES_MAX`] bytes.
    pub user: String,
    /// Most tokens of the answer.
    pub max_tokens: u32,
    /// Temperature.
    pub temperature: f64,
    /// Time for the answer. The engine waits a little longer before it gives up by itself.
    pub timeout_ms: u64,
}

/// Something a person should know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Notice {
    /// Of which incident.
    pub incident: IncidentId,
    /// Of which endpoint.
    pub endpoint: Option<EndpointId>,
    /// How much it matters.
    pub level: Level,
    /// What happened, one sentence.
    pub text: String,
    /// What the person can do.
    pub hint: Option<String>,
    /// What is advised, or waits for a yes.
    pub action: Option<Action>,
    /// The action that waits for a yes: `codexctl actions approve ID`.
    pub asks: Option<ActionId>,
}
