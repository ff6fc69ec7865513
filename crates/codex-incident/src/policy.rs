//! What the person has set, and what is known about an endpoint.

use codex_control::EndpointId;
use codex_control::incident::Millis;
use serde::{Deserialize, Serialize};

/// What the person allows. The defaults are those of `[monitor]` in `supervisor.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "switches a person sets, each with a name")]
pub struct Policy {
    /// Whether anything is done at all. Off: incidents are still written down, nobody acts and nobody is told.
    pub enabled: bool,
    /// Whether rules act. Off: they count and pass on to what was learned.
    pub tier1_enabled: bool,
    /// Whether learned fixes are applied.
    pub tier2_enabled: bool,
    /// Whether an AI is asked. It also needs [`Policy::ai_model`].
    pub tier3_enabled: bool,
    /// Whether workers are restarted. Off: the person is told.
    pub auto_restart_proxy: bool,
    /// Whether an endpoint is routed to its backup. Off: the person is told.
    pub auto_switch_provider: bool,
    /// A learned fix is applied while its rate of success is above this; 0 to 1.
    pub success_rate_min: f64,
    /// An answer of the AI below this confidence is told to the person instead; 0 to 1.
    pub ai_confidence_min: f64,
    /// Dollars a calendar month (UTC) for questions to the AI.
    pub ai_monthly_usd_max: f64,
    /// The model that is asked; `None`: nobody is asked.
    pub ai_model: Option<String>,
    /// Whether the model runs on this machine and costs nothing.
    pub ai_is_local: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            enabled: true,
            tier1_enabled: true,
            tier2_enabled: true,
            tier3_enabled: true,
            auto_restart_proxy: true,
            auto_switch_provider: false,
            success_rate_min: 0.7,
            ai_confidence_min: 0.6,
            ai_monthly_usd_max: 2.0,
            ai_model: None,
            ai_is_local: false,
        }
    }
}

/// What is known about an endpoint and no signal says; for the AI's report and fingerprints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Facts {
    /// The wire protocol of its provider, e.g. `chat-completions`.
    pub backend: String,
    /// The id of its provider's preset, or `custom`.
    pub provider: String,
    /// The provider's base URL, without user, password and query.
    pub base_url: String,
    /// Its model.
    pub model: String,
    /// Its local port.
    pub port: Option<u16>,
    /// Since when its present worker runs.
    pub started_at_ms: Option<Millis>,
    /// The endpoint whose provider it may be routed to.
    pub backup: Option<EndpointId>,
    /// The endpoint whose provider it uses at present; `None`: its own.
    pub route: Option<EndpointId>,
    /// Codex sessions that use it, by their ids; a few are enough.
    pub sessions: Vec<String>,
}

impl Facts {
    /// Whether it has a backup that it does not use yet.
    pub fn has_backup(&self) -> bool {
        self.backup.is_some() && self.route.is_none()
    }
}
