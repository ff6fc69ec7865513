//! The real supervisor in a throw-away home, with a stand-in for the worker program (`examples/stand-in-worker.rs`).

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]
#![expect(clippy::needless_pass_by_value, reason = "calls read better with their parameters written in place")]

mod control;
mod home;
mod incidents;
mod notifications;
mod recovery;
mod service;
mod settings;
mod starving;
mod supervision;

/// An endpoint section with the given id; `more` are further keys.
fn endpoint(id: &str, more: &str) -> String {
    format!(
        "[[endpoint]]\nid = \"{id}\"\nprotocol = \"chat-completions\"\nbase_url = \"http://127.0.0.1:9/v1\"\nauth = {{ kind = \"none\" }}\n{more}\n"
    )
}
