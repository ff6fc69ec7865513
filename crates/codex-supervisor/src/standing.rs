//! Changes to endpoints that an action has made and that stand until they are taken back: another provider, longer
//! timeouts. The person's settings stay as they are; these lie over them, and are remembered over restarts.

use std::collections::BTreeMap;
use std::path::Path;

use codex_control::EndpointId;
use codex_control::endpoint::Endpoint;
use codex_control::files::FileError;
use codex_control::incident::{ActionId, Millis};
use codex_control::ipc::Problem;
use codex_control::rpc::StandingChange;
use codex_control::settings::WorkerSettings;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::configuration::Planned;
use crate::remembered::Remembered;

/// Largest memory file that is read.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// Each raise doubles an endpoint's timeouts; more than this would be waiting for nothing.
pub(crate) const TIMEOUT_RAISES_MAX: u32 = 2;
/// Longest timeout that raises lead to, in seconds; a longer one of the person's own stays.
const TIMEOUT_S_MAX: u64 = 900;

/// What stands for one endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Change {
    /// Whose provider and key it uses.
    pub(crate) route: Option<EndpointId>,
    /// The action that switched it; `None` in files of earlier versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    routed_by: Option<ActionId>,
    /// How often its timeouts were doubled.
    pub(crate) timeout_raises: u32,
    /// The action of each doubling; fewer than there are in files of earlier versions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    raised_by: Vec<ActionId>,
    /// The actions that did it.
    pub(crate) actions: Vec<ActionId>,
    /// Since when.
    pub(crate) since_ms: Millis,
}

impl Change {
    /// Undoes what `action` has done, and nothing else. What nobody knows who did it goes with the first of those who may
    /// have.
    fn take_back(&mut self, action: ActionId) {
        let is_known = self.routed_by == Some(action) || self.raised_by.contains(&action);
        if self.routed_by == is_known.then_some(action) {
            (self.route, self.routed_by) = (None, None);
        }
        let n_known = self.raised_by.len();
        if is_known {
            self.raised_by.retain(|by| *by != action);
            let n_undone = u32::try_from(n_known - self.raised_by.len()).unwrap_or(u32::MAX);
            self.timeout_raises = self.timeout_raises.saturating_sub(n_undone);
            self.actions.retain(|by| *by != action);
        } else {
            self.timeout_raises = u32::try_from(n_known).unwrap_or(u32::MAX);
            let (routed_by, raised_by) = (self.routed_by, &self.raised_by);
            self.actions.retain(|by| routed_by == Some(*by) || raised_by.contains(by));
        }
    }

    fn is_nothing(&self) -> bool {
        self.route.is_none() && self.timeout_raises == 0
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Standing {
    changes: Remembered<BTreeMap<EndpointId, Change>>,
}

impl Standing {
    /// Reads what was remembered. A file that cannot be used counts as empty: everything is as the settings say.
    pub(crate) fn load(path: &Path) -> Self {
        Self { changes: Remembered::load(path, FILE_BYTES_MAX, "the settings hold") }
    }

    /// What stands for `id`.
    pub(crate) fn of(&self, id: &EndpointId) -> Option<&Change> {
        self.changes.get(id)
    }

    /// The same for a person, if anything stands.
    pub(crate) fn shown(&self, id: &EndpointId) -> Option<StandingChange> {
        self.of(id).map(|change| StandingChange {
            route: change.route.clone(),
            timeout_raises: change.timeout_raises,
            actions: change.actions.clone(),
            since_ms: change.since_ms,
        })
    }

    /// Every action whose change stands.
    pub(crate) fn actions(&self) -> Vec<ActionId> {
        self.changes.values().flat_map(|change| change.actions.iter().copied()).collect()
    }

    /// Lets `id` use the provider of `route`, because of `action`.
    pub(crate) fn switch(
        &mut self,
        id: &EndpointId,
        route: &EndpointId,
        action: ActionId,
        now_ms: Millis,
    ) -> Result<(), FileError> {
        let change = self.changed(id, action, now_ms);
        let earlier = change.routed_by.replace(action).filter(|earlier| *earlier != action);
        change.route = Some(route.clone());
        // Of an earlier switch nothing stands any more.
        if let Some(earlier) = earlier.filter(|earlier| !change.raised_by.contains(earlier)) {
            change.actions.retain(|by| *by != earlier);
        }
        self.changes.write()
    }

    /// Doubles the timeouts of `id`; says whether that was still possible.
    pub(crate) fn raise_timeouts(
        &mut self,
        id: &EndpointId,
        action: ActionId,
        now_ms: Millis,
    ) -> Result<bool, FileError> {
        if self.of(id).is_some_and(|change| change.timeout_raises >= TIMEOUT_RAISES_MAX) {
            return Ok(false);
        }
        let change = self.changed(id, action, now_ms);
        change.timeout_raises += 1;
        change.raised_by.push(action);
        self.changes.write().map(|()| true)
    }

    /// Takes back what `action` has done; says for which endpoint, if it still stood. What other actions have done to
    /// it goes on standing.
    pub(crate) fn take_back(&mut self, action: ActionId) -> Result<Option<EndpointId>, FileError> {
        let Some((id, change)) =
            self.changes.value_mut().iter_mut().find(|(_, change)| change.actions.contains(&action))
        else {
            return Ok(None);
        };
        let id = id.clone();
        change.take_back(action);
        if change.is_nothing() {
            self.changes.value_mut().remove(&id);
        }
        self.changes.write()?;
        Ok(Some(id))
    }

    /// Forgets endpoints that the settings do not name any more.
    pub(crate) fn keep_only(&mut self, plan: &[Planned]) {
        let n_before = self.changes.len();
        self.changes.value_mut().retain(|id, _| plan.iter().any(|planned| planned.settings.id == *id));
        if self.changes.len() != n_before
            && let Err(error) = self.changes.write()
        {
            warn!(%error, "standing changes of removed endpoints cannot be forgotten");
        }
    }

    /// Lays what stands over `plan`.
    pub(crate) fn apply(&self, plan: &mut [Planned]) {
        let own: BTreeMap<EndpointId, Result<Endpoint, Problem>> =
            plan.iter().map(|planned| (planned.settings.id.clone(), planned.resolved.clone())).collect();
        for planned in plan {
            let Some(change) = self.changes.get(&planned.settings.id) else { continue };
            if let Some(route) = &change.route {
                // A backup that is gone or broken helps nobody: the endpoint's own provider it is.
                if let (Some(Ok(backup)), Ok(mine)) = (own.get(route), &planned.resolved) {
                    planned.resolved = Ok(rerouted(mine, backup));
                    planned.route = Some(route.clone());
                }
            }
            if let Ok(endpoint) = &mut planned.resolved {
                raise(&mut endpoint.limits, change.timeout_raises);
            }
        }
    }

    fn changed(&mut self, id: &EndpointId, action: ActionId, now_ms: Millis) -> &mut Change {
        let change = self.changes.value_mut().entry(id.clone()).or_default();
        if change.actions.is_empty() {
            change.since_ms = now_ms;
        }
        if !change.actions.contains(&action) {
            change.actions.push(action);
        }
        change
    }
}

/// `mine` as Codex knows it, with the provider of `backup`. The models Codex may ask for are answered by the backup's
/// default model, where it has one.
fn rerouted(mine: &Endpoint, backup: &Endpoint) -> Endpoint {
    let mut endpoint = Endpoint { id: mine.id.clone(), limits: mine.limits.clone(), ..backup.clone() };
    if let Some(default) = &backup.default_model {
        let asked = mine.models.iter().chain(&mine.default_model).chain(mine.aliases.iter().map(|(alias, _)| alias));
        for model in asked {
            let is_known = backup.models.contains(model) || endpoint.aliases.iter().any(|(alias, _)| alias == model);
            if !is_known && model != default {
                endpoint.aliases.push((model.clone(), default.clone()));
            }
        }
    }
    endpoint
}

fn raise(limits: &mut WorkerSettings, times: u32) {
    let longer = |seconds: u64| {
        let doubled = seconds.saturating_mul(1 << times.min(TIMEOUT_RAISES_MAX));
        doubled.min(TIMEOUT_S_MAX).max(seconds)
    };
    limits.connect_timeout_s = longer(limits.connect_timeout_s);
    limits.first_byte_timeout_s = longer(limits.first_byte_timeout_s);
    limits.idle_timeout_s = longer(limits.idle_timeout_s);
}

#[cfg(test)]
mod tests {
    use codex_control::settings::{EndpointSettings, Settings};
    use codex_control::tables::Tables;

    use super::*;

    fn plan() -> Vec<Planned> {
        let text = "[[endpoint]]\nid = \"a\"\npreset = \"zai-coding\"\ndefault_model = \"glm-4.7\"\nbackup = \"b\"\n\
             [[endpoint]]\nid = \"b\"\nbase_url = \"http://127.0.0.1:1/v1\"\nprotocol = \"chat-completions\"\n\
             default_model = \"local\"\nauth = { env = \"B_KEY\" }\n";
        let settings = Settings::parse(Path::new("s"), text.as_bytes()).unwrap();
        let tables = Tables::embedded();
        let planned = |own: &EndpointSettings| Planned {
            settings: own.clone(),
            resolved: Ok(codex_control::endpoint::resolve(&settings, &tables, own).unwrap()),
            tables: String::new(),
            route: None,
        };
        settings.endpoint.iter().map(planned).collect()
    }

    fn id(text: &str) -> EndpointId {
        text.parse().unwrap()
    }

    #[test]
    fn another_provider_stands_until_it_is_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("standing.json");
        let mut standing = Standing::load(&path);
        standing.switch(&id("a"), &id("b"), ActionId(7), 1_000).unwrap();

        let standing_again = Standing::load(&path);
        let mut changed = plan();
        standing_again.apply(&mut changed);
        let (own, [a, b]) = (plan(), &changed[..]) else { panic!("two endpoints") };
        let endpoint = a.resolved.as_ref().unwrap();
        let backup = own[1].resolved.as_ref().unwrap();
        assert_eq!((&endpoint.base_url, &endpoint.credential), (&backup.base_url, &backup.credential));
        assert_eq!((&endpoint.id, &a.route, &a.settings), (&id("a"), &Some(id("b")), &own[0].settings));
        assert!(endpoint.aliases.contains(&("glm-4.7".to_owned(), "local".to_owned())), "{:?}", endpoint.aliases);
        assert_eq!(b, &own[1], "the backup itself is as it was");

        assert_eq!(standing.take_back(ActionId(8)).unwrap(), None);
        assert_eq!(standing.take_back(ActionId(7)).unwrap(), Some(id("a")));
        let mut restored = plan();
        Standing::load(&path).apply(&mut restored);
        assert_eq!(restored, own);
    }

    #[test]
    fn each_action_takes_back_its_own_change_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("standing.json");
        let changed = || {
            let mut standing = Standing::load(&path);
            standing.switch(&id("a"), &id("b"), ActionId(1), 1_000).unwrap();
            standing.raise_timeouts(&id("a"), ActionId(2), 2_000).unwrap();
            standing.raise_timeouts(&id("a"), ActionId(3), 3_000).unwrap();
            Standing::load(&path)
        };
        let what = |standing: &Standing| {
            let shown = standing.shown(&id("a"))?;
            Some((shown.route.is_some(), shown.timeout_raises, shown.actions.iter().map(|by| by.0).collect::<Vec<_>>()))
        };
        for (taken_back, expected) in [
            (vec![1], Some((false, 2, vec![2, 3]))),
            (vec![2], Some((true, 1, vec![1, 3]))),
            (vec![3, 2], Some((true, 0, vec![1]))),
            (vec![1, 2, 3], None),
        ] {
            let mut standing = changed();
            for by in &taken_back {
                assert_eq!(standing.take_back(ActionId(*by)).unwrap(), Some(id("a")));
                assert_eq!(standing.take_back(ActionId(*by)).unwrap(), None, "once is enough");
            }
            assert_eq!(what(&standing), expected, "{taken_back:?}");
            assert_eq!(what(&Standing::load(&path)), expected, "{taken_back:?}, read again");
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn of_an_earlier_version_it_is_not_known_which_action_did_what() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("standing.json");
        let earlier = r#"{"a": {"route": "b", "timeout_raises": 1, "actions": [4, 5], "since_ms": 1000}}"#;
        std::fs::write(&path, earlier).unwrap();
        let mut standing = Standing::load(&path);
        assert_eq!(standing.actions(), [ActionId(4), ActionId(5)]);
        standing.raise_timeouts(&id("a"), ActionId(6), 2_000).unwrap();
        assert_eq!(standing.take_back(ActionId(5)).unwrap(), Some(id("a")));
        let standing_still = standing.shown(&id("a")).unwrap();
        assert_eq!((standing_still.route, standing_still.timeout_raises), (None, 1), "all that may be its own is gone");
        assert_eq!((standing_still.actions, standing.take_back(ActionId(4)).unwrap()), (vec![ActionId(6)], None));
        assert_eq!(standing.take_back(ActionId(6)).unwrap(), Some(id("a")));
        assert!(Standing::load(&path).of(&id("a")).is_none());
    }

    #[test]
    fn timeouts_are_doubled_within_a_bound() {
        let folder = tempfile::tempdir().unwrap();
        let mut standing = Standing::load(&folder.path().join("standing.json"));
        let raised: Vec<bool> =
            (0..4).map(|n| standing.raise_timeouts(&id("a"), ActionId(n), 1_000).unwrap()).collect();
        assert_eq!(raised, [true, true, false, false]);
        let mut changed = plan();
        standing.apply(&mut changed);
        let limits = &changed[0].resolved.as_ref().unwrap().limits;
        assert_eq!((limits.connect_timeout_s, limits.first_byte_timeout_s, limits.idle_timeout_s), (60, 480, 900));
        assert_eq!(changed[1], plan()[1]);
        let mut own = WorkerSettings { idle_timeout_s: 3_600, ..WorkerSettings::default() };
        raise(&mut own, 1);
        assert_eq!(own.idle_timeout_s, 3_600, "a longer one of the person's own stays");
    }

    #[test]
    fn what_cannot_be_used_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("standing.json");
        std::fs::write(&path, "{").unwrap();
        let mut standing = Standing::load(&path);
        standing.switch(&id("a"), &id("gone"), ActionId(1), 1).unwrap();
        let mut changed = plan();
        standing.apply(&mut changed);
        assert_eq!(changed, plan(), "a backup that is gone helps nobody");
        standing.keep_only(&changed[1..]);
        assert!(Standing::load(&path).of(&id("a")).is_none());
    }
}
