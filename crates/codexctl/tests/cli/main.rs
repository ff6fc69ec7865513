//! `codexctl` as a process, against stand-ins for the supervisor, a worker, Codex, systemd and an editor.

mod home;
mod supervisor;
mod worker;

mod add;
mod daemon;
mod edit;
mod endpoint;
mod errors;
mod launch;
mod logs;
mod models;
mod rpc;
mod status;
mod terminal;
mod token;
