//! What a provider's refusals have taught: changes of the request that turned a 400 into an answer.
//!
//! A change is kept only after it was seen to help: the changed request was answered. It is kept per model, with the
//! words that led to it, for [`LIFE`]. When requests with learned changes are refused all the same, what was learned is
//! in doubt and dropped: one misread error must not disable a parameter for good.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use codex_control::{files, report};
use codex_translate::Repair;
use serde::{Deserialize, Serialize};

use crate::worker::now_unix_ms;

/// How long a learned change is used before it is tried without again.
const LIFE: Duration = Duration::from_hours(24);
/// Most changes kept for one model; the dialect has fewer things to change.
const CHANGES_MAX: usize = 16;
/// Most models with learned changes.
const MODELS_MAX: usize = 256;
/// Longest evidence kept.
const EVIDENCE_BYTES_MAX: usize = 300;
/// Largest file that is read.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// One learned change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Change {
    /// What is done, by name, e.g. `drop:stream_options`.
    pub(crate) repair: String,
    /// The provider's words that led to it, redacted.
    pub(crate) evidence: String,
    /// Unix milliseconds.
    pub(crate) learned_at_ms: u64,
}

/// Everything learned by one endpoint.
pub(crate) struct Learned {
    file: PathBuf,
    /// By upstream model. The lock protects a small map; nothing is awaited under it.
    changes: Mutex<BTreeMap<String, Vec<Change>>>,
    /// What was wrong with the file when it was read.
    damage: Mutex<Option<String>>,
}

/// What stands in `file`, or what is wrong with it.
fn read(file: &Path) -> Result<BTreeMap<String, Vec<Change>>, String> {
    let Some(bytes) = files::read_bounded(file, FILE_BYTES_MAX).map_err(|error| report::chain(&error))? else {
        return Ok(BTreeMap::new());
    };
    let changes: BTreeMap<String, Vec<Change>> =
        serde_json::from_slice(&bytes).map_err(|error| format!("`{}` does not parse: {error}", file.display()))?;
    let unknown = changes.values().flatten().find(|change| parse(&change.repair).is_none());
    match unknown {
        Some(change) => Err(format!("`{}` holds `{}`, which is no change of a request", file.display(), change.repair)),
        None => Ok(changes),
    }
}

impl Learned {
    /// Reads what is on disk. A damaged file counts as empty, and [`Self::damage`] says so: it will be learned again.
    pub(crate) fn load(file: PathBuf) -> Self {
        let (changes, damage) = match read(&file) {
            Ok(changes) => (changes, None),
            Err(damage) => (BTreeMap::new(), Some(damage)),
        };
        Self { file, changes: Mutex::new(changes), damage: Mutex::new(damage) }
    }

    /// What is wrong with the file, until it is written anew.
    pub(crate) fn damage(&self) -> Option<String> {
        self.damage.lock().expect("nothing panics while it is held").clone()
    }

    /// Forgets everything, and looks at the file again: somebody has mended or removed it.
    pub(crate) fn begin_anew(&self) -> usize {
        let n_forgotten = self.forget(None);
        *self.damage.lock().expect("nothing panics while it is held") = read(&self.file).err();
        n_forgotten
    }

    /// The changes to make for `model` now.
    pub(crate) fn repairs(&self, model: &str) -> Vec<Repair> {
        let mut changes = self.changes.lock().expect("nothing panics while it is held");
        let Some(of_model) = changes.get_mut(model) else { return Vec::new() };
        let oldest = now_unix_ms().saturating_sub(LIFE.as_millis().try_into().unwrap_or(u64::MAX));
        of_model.retain(|change| change.learned_at_ms >= oldest);
        of_model.iter().filter_map(|change| parse(&change.repair)).collect()
    }

    /// Keeps `repair`, which was seen to help.
    pub(crate) fn keep(&self, model: &str, repair: &Repair, evidence: &str) {
        let Some(name) = name(repair) else { return };
        {
            let mut changes = self.changes.lock().expect("nothing panics while it is held");
            if changes.len() >= MODELS_MAX && !changes.contains_key(model) {
                changes.pop_first();
            }
            let of_model = changes.entry(model.to_owned()).or_default();
            of_model.retain(|change| change.repair != name);
            if of_model.len() >= CHANGES_MAX {
                of_model.remove(0);
            }
            let evidence = evidence[..evidence.floor_char_boundary(EVIDENCE_BYTES_MAX)].to_owned();
            of_model.push(Change { repair: name, evidence, learned_at_ms: now_unix_ms() });
        }
        self.save();
    }

    /// Drops what was learned about `model`, or everything; says how many changes that were.
    pub(crate) fn forget(&self, model: Option<&str>) -> usize {
        let n_forgotten = {
            let mut changes = self.changes.lock().expect("nothing panics while it is held");
            match model {
                Some(model) => changes.remove(model).map_or(0, |changes| changes.len()),
                None => std::mem::take(&mut *changes).values().map(Vec::len).sum(),
            }
        };
        if n_forgotten > 0 {
            self.save();
        }
        n_forgotten
    }

    /// Everything, for people.
    pub(crate) fn all(&self) -> BTreeMap<String, Vec<Change>> {
        self.changes.lock().expect("nothing panics while it is held").clone()
    }

    fn save(&self) {
        let bytes = serde_json::to_vec_pretty(&self.all()).unwrap_or_default();
        let written = files::create_missing_folders(files::folder_of(&self.file))
            .and_then(|()| files::write_atomically(&self.file, &bytes, files::PRIVATE_FILE_MODE));
        if let Err(error) = written {
            // It is learned again after the next start, at the cost of one refused request.
            tracing::debug!(%error, "what was learned is not kept on disk");
        }
    }
}

/// The name of a repair that concerns the form of requests; others are not learned.
fn name(repair: &Repair) -> Option<String> {
    match repair {
        Repair::Drop(parameter) => Some(format!("drop:{parameter}")),
        Repair::CleanSchema => Some("clean-schema".to_owned()),
        Repair::StringContent => Some("string-content".to_owned()),
        Repair::ReasoningContentRequired => Some("reasoning-content-required".to_owned()),
        Repair::NoImages => Some("no-images".to_owned()),
        Repair::MergeSystem => Some("merge-system".to_owned()),
        Repair::Efforts(words) => Some(format!("efforts:{}", words.join(","))),
        Repair::OutputTokens(tokens) => Some(format!("{OUTPUT_TOKENS}{tokens}")),
        Repair::ThinkAdaptively => Some("think-adaptively".to_owned()),
        Repair::ThinkByBudget => Some("think-by-budget".to_owned()),
        Repair::ForgetThinking | Repair::RefreshToken | Repair::CreateSession | Repair::StartNewRun => None,
    }
}

/// Before the words for an effort that are taken; none behind it: no effort is sent.
const EFFORTS: &str = "efforts:";
/// Before the longest answer that is asked for, in tokens.
const OUTPUT_TOKENS: &str = "output-tokens:";

fn parse(name: &str) -> Option<Repair> {
    Some(match name {
        "clean-schema" => Repair::CleanSchema,
        "string-content" => Repair::StringContent,
        "reasoning-content-required" => Repair::ReasoningContentRequired,
        "no-images" => Repair::NoImages,
        "merge-system" => Repair::MergeSystem,
        "think-adaptively" => Repair::ThinkAdaptively,
        "think-by-budget" => Repair::ThinkByBudget,
        _ if name.starts_with(EFFORTS) => {
            let words = name[EFFORTS.len()..].split(',').filter(|word| !word.is_empty());
            Repair::Efforts(words.map(str::to_owned).collect())
        }
        _ if name.starts_with(OUTPUT_TOKENS) => Repair::OutputTokens(name[OUTPUT_TOKENS.len()..].parse().ok()?),
        _ => Repair::Drop(name.strip_prefix("drop:").filter(|parameter| !parameter.is_empty())?.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_helped_is_remembered_over_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("learned/e.json");
        let learned = Learned::load(file.clone());
        let drop = Repair::Drop("stream_options".to_owned());
        learned.keep("m", &drop, "unknown parameter: stream_options");
        learned.keep("m", &Repair::CleanSchema, "bad schema");
        learned.keep("m", &drop, "again");
        let again = Learned::load(file);
        assert_eq!(again.repairs("m"), [Repair::CleanSchema, drop]);
        assert!(again.repairs("other").is_empty());
        assert_eq!(again.forget(Some("m")), 2);
        assert_eq!(again.forget(None), 0);
    }

    #[test]
    fn every_change_is_read_as_it_was_written() {
        let changes = [
            Repair::Drop("reasoning.summary".to_owned()),
            Repair::CleanSchema,
            Repair::StringContent,
            Repair::ReasoningContentRequired,
            Repair::NoImages,
            Repair::MergeSystem,
            Repair::Efforts(vec!["low".to_owned(), "high".to_owned()]),
            Repair::Efforts(Vec::new()),
            Repair::OutputTokens(8_192),
            Repair::ThinkAdaptively,
            Repair::ThinkByBudget,
        ];
        for change in changes {
            assert_eq!(name(&change).and_then(|name| parse(&name)), Some(change));
        }
        assert_eq!(name(&Repair::ForgetThinking), None, "a matter of one conversation");
    }

    #[test]
    fn a_damaged_file_is_told_and_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("e.json");
        for text in [
            "{",
            r#"{"m": "array"}"#,
            r#"{"m": [{"repair": "content_type: array", "evidence": "", "learned_at_ms": 1}]}"#,
        ] {
            std::fs::write(&file, text).unwrap();
            let learned = Learned::load(file.clone());
            assert!(learned.damage().is_some_and(|damage| damage.contains("e.json")), "{text}");
            assert!(learned.repairs("m").is_empty());
            std::fs::remove_file(&file).unwrap();
            learned.begin_anew();
            assert_eq!(learned.damage(), None);
        }
    }

    #[test]
    fn what_is_old_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("e.json");
        let old = Change { repair: "drop:x".to_owned(), evidence: String::new(), learned_at_ms: 1 };
        std::fs::write(&file, serde_json::to_vec(&BTreeMap::from([("m", vec![old])])).unwrap()).unwrap();
        assert!(Learned::load(file).repairs("m").is_empty());
    }

    #[test]
    fn a_damaged_file_counts_as_empty() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("e.json");
        std::fs::write(&file, "{").unwrap();
        assert!(Learned::load(file).all().is_empty());
    }

    #[test]
    fn a_long_evidence_is_cut_at_a_character() {
        let folder = tempfile::tempdir().unwrap();
        let learned = Learned::load(folder.path().join("e.json"));
        learned.keep("m", &Repair::CleanSchema, &"é".repeat(EVIDENCE_BYTES_MAX));
        assert!(learned.all()["m"][0].evidence.len() <= EVIDENCE_BYTES_MAX);
    }
}
