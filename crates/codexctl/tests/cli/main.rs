//! `codexctl` as a process, against stand-ins for the supervisor, a worker, Codex, systemd and an editor.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on ends there")]

mod home;
mod supervisor;
mod worker;

mod add;
mod cleanup;
mod daemon;
mod edit;
mod endpoint;
mod errors;
mod import;
mod install;
mod launch;
mod logs;
mod models;
mod rpc;
mod status;
mod terminal;
mod token;
