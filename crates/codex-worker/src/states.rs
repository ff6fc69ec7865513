//! What is known of the state that conversations carry for their provider.
//!
//! A native answer is relayed byte for byte, so what it carries does not say whose it is. When a thread goes on at
//! another provider, that one refuses what it did not make itself. Then all state goes that was not seen to come from
//! there; what has helped is kept, so that the conversation pays for it with one refused request, and not with each. The
//! same holds for state that we have sealed and its own provider refuses after all.
//!
//! On disk is what must not be forgotten with the process: what was refused, and the compacted histories that the provider
//! has made. A thought that is left out for no reason costs little; a history is all that is known of a conversation.

use std::collections::{HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use codex_control::files;
use codex_translate::mark::{Mark, Marks};
use serde::{Deserialize, Serialize};

/// Most states known to be the provider's own: those of some hundred long threads.
const OWN_MAX: usize = 16 * 1024;
/// Most compacted histories known to be the provider's own.
const HISTORIES_MAX: usize = 1024;
/// Most states known to be refused.
const REFUSED_MAX: usize = 8 * 1024;
/// Largest file that is read: all of them, twenty digits each.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The states of one endpoint.
pub(crate) struct States {
    file: PathBuf,
    /// The lock protects three sets of numbers; nothing is awaited under it.
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    own: Recent,
    histories: Recent,
    refused: Recent,
}

/// As it is on disk.
#[derive(Default, Serialize, Deserialize)]
struct Kept {
    histories: VecDeque<Mark>,
    refused: VecDeque<Mark>,
}

/// Marks, of which the oldest go first.
#[derive(Default)]
struct Recent {
    marks: Marks,
    order: VecDeque<Mark>,
}

impl Recent {
    fn add(&mut self, marks: impl IntoIterator<Item = Mark>, max: usize) {
        let known = Arc::make_mut(&mut self.marks);
        for mark in marks {
            if known.insert(mark) {
                self.order.push_back(mark);
            }
        }
        while self.order.len() > max {
            if let Some(oldest) = self.order.pop_front() {
                known.remove(&oldest);
            }
        }
    }
}

impl States {
    /// Reads what is on disk. A file that cannot be read counts as empty: it costs one refused request in a conversation.
    pub(crate) fn load(file: PathBuf) -> Self {
        let mut known = Known::default();
        let Kept { histories, refused } = read(&file).unwrap_or_default();
        known.histories.add(histories, HISTORIES_MAX);
        known.refused.add(refused, REFUSED_MAX);
        Self { file, known: Mutex::new(known) }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The provider has given these out, in an answer that `is_compacted` or is not.
    pub(crate) fn made(&self, marks: &[Mark], is_compacted: bool) {
        if marks.is_empty() {
            return;
        }
        if is_compacted {
            self.lock().histories.add(marks.iter().copied(), HISTORIES_MAX);
            self.save();
        } else {
            self.lock().own.add(marks.iter().copied(), OWN_MAX);
        }
    }

    /// Without these it has answered, and not with them.
    pub(crate) fn refused(&self, marks: &[Mark]) {
        if !marks.is_empty() {
            self.lock().refused.add(marks.iter().copied(), REFUSED_MAX);
            self.save();
        }
    }

    /// Forgets what it was seen to refuse; says how much that was.
    pub(crate) fn forget_refused(&self) -> usize {
        let n_forgotten = std::mem::take(&mut self.lock().refused).order.len();
        if n_forgotten > 0 {
            self.save();
        }
        n_forgotten
    }

    /// Everything that it is known to refuse.
    pub(crate) fn all_refused(&self) -> Marks {
        Arc::clone(&self.lock().refused.marks)
    }

    /// Those of `marks` that may be what it refuses now: the ones that it was not seen to make, if there are any that were
    /// not left out already; otherwise all of them.
    pub(crate) fn suspects(&self, marks: &[Mark], left_out: &HashSet<Mark>) -> Vec<Mark> {
        let known = self.lock();
        let is_own = |mark: &Mark| known.own.marks.contains(mark) || known.histories.marks.contains(mark);
        let (own, foreign): (Vec<Mark>, Vec<Mark>) =
            marks.iter().copied().filter(|mark| !left_out.contains(mark)).partition(is_own);
        if foreign.is_empty() { own } else { foreign }
    }

    fn save(&self) {
        let kept = {
            let known = self.lock();
            Kept { histories: known.histories.order.clone(), refused: known.refused.order.clone() }
        };
        let bytes = serde_json::to_vec(&kept).unwrap_or_default();
        let written = files::create_missing_folders(files::folder_of(&self.file))
            .and_then(|()| files::write_atomically(&self.file, &bytes, files::PRIVATE_FILE_MODE));
        if let Err(error) = written {
            // It is learned again after the next start, at the cost of one refused request.
            tracing::debug!(%error, "what is known of carried state is not kept on disk");
        }
    }
}

fn read(file: &Path) -> Option<Kept> {
    serde_json::from_slice(&files::read_bounded(file, FILE_BYTES_MAX).ok()??).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(n: usize) -> Mark {
        Mark::of("me", &n.to_string())
    }

    #[test]
    fn what_is_its_own_is_suspected_last() {
        let folder = tempfile::tempdir().unwrap();
        let states = States::load(folder.path().join("e.json"));
        states.made(&[mark(1)], false);
        states.made(&[mark(3)], true);
        let all = [mark(0), mark(1), mark(2), mark(3)];
        let mut left_out = HashSet::new();
        for expected in [vec![mark(0), mark(2)], vec![mark(1), mark(3)], vec![]] {
            let suspects = states.suspects(&all, &left_out);
            assert_eq!(suspects, expected);
            left_out.extend(suspects);
        }
    }

    #[test]
    fn refusals_and_histories_outlive_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("states/e.json");
        let states = States::load(file.clone());
        states.refused(&[mark(0)]);
        states.made(&[mark(1)], true);
        states.made(&[mark(2)], false);
        let again = States::load(file.clone());
        assert_eq!(*again.all_refused(), HashSet::from([mark(0)]));
        assert_eq!(again.suspects(&[mark(1), mark(2)], &HashSet::new()), [mark(2)]);
        assert_eq!((again.forget_refused(), again.forget_refused()), (1, 0));
        let anew = States::load(file.clone());
        assert!(anew.all_refused().is_empty());
        assert_eq!(anew.suspects(&[mark(1), mark(2)], &HashSet::new()), [mark(2)], "a history is still its own");
        std::fs::write(&file, "{").unwrap();
        assert!(States::load(file).all_refused().is_empty());
    }

    #[test]
    fn the_oldest_marks_go_first() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("e.json");
        let states = States::load(file.clone());
        let marks: Vec<Mark> = (0..=REFUSED_MAX).map(mark).collect();
        states.refused(&marks);
        states.refused(&marks[..1]);
        for states in [states, States::load(file.clone())] {
            let refused = states.all_refused();
            assert!(refused.len() == REFUSED_MAX && refused.contains(&marks[0]) && !refused.contains(&marks[1]));
        }
        assert!(std::fs::metadata(file).unwrap().len() < FILE_BYTES_MAX / 2);
    }
}
