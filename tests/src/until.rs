//! Waiting for a condition, with a deadline, instead of for a time.

use std::thread;
use std::time::{Duration, Instant};

/// Pause between two looks at a condition: short beside everything that is waited for, long beside a look.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Looks until `look` gives something, and returns it.
///
/// # Panics
/// When `deadline` has passed; the message names `what` was waited for.
pub fn until<T>(what: &str, deadline: Duration, look: impl FnMut() -> Option<T>) -> T {
    try_until(deadline, look).unwrap_or_else(|| panic!("waited {deadline:?} in vain for {what}"))
}

/// Looks until `look` gives something; `None` when `deadline` has passed.
pub fn try_until<T>(deadline: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        // Waking up early is harmless: the condition is looked at again.
        thread::park_timeout(POLL_INTERVAL);
    }
}
