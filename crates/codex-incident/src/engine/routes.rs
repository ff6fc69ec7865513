//! Whether an endpoint has a provider left: its own, or its backup's.

use codex_control::EndpointId;
use codex_control::incident::{Millis, Observation, Signal};

use super::Engine;

/// How long a provider is taken to be out that did not say for how long.
const COOLING_MS: u64 = 60_000;
/// One mishap says little about a provider that does not speak of its own state; so many in a row do.
const FAILURES_IN_A_ROW: u32 = 3;
/// An endpoint whose providers are all back sooner only waits.
const DOWN_MIN_MS: u64 = 5_000;

/// What is known about one provider, from the endpoints that use it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cooling {
    /// When it may be of use again; 0: it is of use.
    until: Millis,
    /// Failures since it answered.
    failures: u32,
}

impl Cooling {
    /// Takes notice of a signal; says whether it has answered after it was out.
    fn note(&mut self, now: Millis, signal: &Signal) -> bool {
        use Observation as O;
        let wait_ms = match signal.what {
            O::UpstreamGood => return std::mem::take(self).until > 0,
            O::UpstreamRateLimited => signal.value.unwrap_or(COOLING_MS),
            O::UpstreamOverloaded
            | O::UpstreamUnauthorized
            | O::UpstreamQuotaSpent
            | O::UpstreamUpgradeRequired
            | O::UpstreamBlocked => COOLING_MS,
            O::UpstreamServerError
            | O::UpstreamTimedOut
            | O::UpstreamReset
            | O::UpstreamDnsFailed
            | O::UpstreamTlsFailed => {
                self.failures += 1;
                if self.failures < FAILURES_IN_A_ROW {
                    return false;
                }
                COOLING_MS
            }
            _ => return false,
        };
        self.until = self.until.max(now.saturating_add(wait_ms));
        false
    }
}

impl Engine {
    /// Takes notice of what a signal says about the provider it came from; returns what follows for endpoints that have
    /// no other, or have one again.
    pub(super) fn note_route(&mut self, signal: &Signal) -> Vec<Signal> {
        let now = self.now;
        let Some(endpoint) = &signal.endpoint else { return Vec::new() };
        let route = self.route_of(endpoint);
        let cooling = &mut self.about_mut(Some(&route)).cooling;
        let is_back = cooling.note(now, signal);
        let is_out = !signal.is_good() && cooling.until > now;
        if !is_back && !is_out {
            return Vec::new();
        }
        let until = |route: &EndpointId| self.about.get(&Some(route.clone())).map_or(0, |about| about.cooling.until);
        let follows = |(id, about): (&Option<EndpointId>, &super::About)| {
            let (id, backup) = (id.as_ref()?, about.facts.backup.as_ref()?);
            if *id != route && *backup != route {
                return None;
            }
            if is_back {
                return Some(Signal::of(Observation::RouteFree, id).value(1));
            }
            let left_ms = until(id).min(until(backup)).saturating_sub(now);
            (left_ms >= DOWN_MIN_MS).then(|| {
                let detail =
                    format!("it and its backup `{backup}` are out, the first of them for {} s more", left_ms / 1000);
                Signal::of(Observation::RoutesCooling, id).value(2).detail(detail)
            })
        };
        self.about.iter().filter_map(follows).collect()
    }

    /// Whose provider `endpoint` uses.
    fn route_of(&self, endpoint: &EndpointId) -> EndpointId {
        let about = self.about.get(&Some(endpoint.clone()));
        about.and_then(|about| about.facts.route.clone()).unwrap_or_else(|| endpoint.clone())
    }
}
