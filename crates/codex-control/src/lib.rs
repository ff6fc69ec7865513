//! What the processes of codex-supervisor agree on: configuration, data tables, messages, paths, files, secrets.
//!
//! A type that crosses a process border lives here and nowhere else. Nothing here decides anything about a running
//! system, and nothing here talks to a provider.
//!
//! | module | what |
//! |---|---|
//! | [`settings`] | `supervisor.toml`, the person's own file, and its format-preserving editor |
//! | [`tables`] | `providers.toml`, `models.toml` and those of the incident engine: data embedded in the binary, overridable per id |
//! | [`endpoint`] | an endpoint resolved from both: everything a worker has to know |
//! | [`codex_config`] | Codex's own `config.toml`: which keys it needs, and how they are put in and taken out safely |
//! | [`ipc`] | supervisor ⇄ worker: length-delimited binary frames over a Unix socket |
//! | [`incident`] | the words of the incident engine: signals, faults, actions, incidents |
//! | [`rpc`] | JSON-RPC 2.0 between the supervisor and its clients |
//! | [`paths`], [`environment`] | every path and every environment variable, each built in one place |
//! | [`files`], [`credentials`], [`token`], [`secret`] | private files and what may never be printed |
//! | [`process`], [`tree`] | who a process is, proven; what it has started |
//! | [`registry`], [`cleanup`] | which processes are ours, and what of them is ended when nobody needs it any more |
//! | [`single`] | the lock of the one supervisor |
//! | [`session`] | one start of Codex, as its launcher and the supervisor talk about it |
//! | [`guests`], [`descriptors`] | how many may come in, and who goes when there are too many |
//! | [`redact`], [`telemetry`] | what reaches a log, and how |

pub mod cleanup;
pub mod codex_config;
pub mod credentials;
pub mod descriptors;
pub mod endpoint;
pub mod environment;
pub mod files;
pub mod guests;
pub mod ids;
pub mod incident;
pub mod ipc;
pub mod paths;
pub mod process;
pub mod redact;
pub mod registry;
pub mod report;
pub mod rpc;
pub mod secret;
pub mod session;
pub mod settings;
pub mod single;
pub mod tables;
pub mod telemetry;
pub mod token;
pub mod tree;

pub use ids::EndpointId;
pub use secret::Secret;
