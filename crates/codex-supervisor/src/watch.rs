//! Notices that the person has changed a settings file.
//!
//! The folder is watched, not the files: editors replace a file by renaming another over it. What this misses (a link
//! into another folder, a network file system, a folder that was moved away) is found by a look at the files now and
//! then, see [`crate::configuration::Configuration::is_outdated`].

use std::path::Path;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};

use crate::event::{Event, Queue};

/// Watches `folder` until dropped.
///
/// # Errors
/// Of inotify, e.g. when the user's watches are used up.
pub(crate) fn watch(folder: &Path, queue: Queue) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| is_change(&event)) {
            // A full queue loses this one; the regular look at the files finds what has changed.
            let _ = queue.try_send(Event::SettingsTouched);
        }
    })?;
    watcher.watch(folder, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

/// Whether the content of a table or settings file may be another now. Our own reading of one is an event, too.
fn is_change(event: &notify::Event) -> bool {
    let is_written = match event.kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) | EventKind::Other => true,
    };
    let is_table = |path: &std::path::PathBuf| path.extension().is_some_and(|extension| extension == "toml");
    event.need_rescan() || (is_written && event.paths.iter().any(is_table))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_file_renamed_into_place_is_noticed_and_a_reader_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (queue, mut events) = mpsc::channel(64);
        let _watcher = watch(folder.path(), queue).unwrap();
        let temporary = folder.path().join(".new.tmp");
        std::fs::write(&temporary, "a = 1").unwrap();
        std::fs::rename(&temporary, folder.path().join("supervisor.toml")).unwrap();
        let event = tokio::time::timeout(Duration::from_mins(1), events.recv()).await.unwrap();
        assert!(matches!(event, Some(Event::SettingsTouched)));
        let read = notify::Event::new(EventKind::Access(AccessKind::Open(AccessMode::Any)))
            .add_path(folder.path().join("supervisor.toml"));
        assert!(!is_change(&read));
        let other = notify::Event::new(EventKind::Remove(notify::event::RemoveKind::File))
            .add_path(folder.path().join("x.swp"));
        assert!(!is_change(&other));
    }
}
