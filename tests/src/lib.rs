//! What the end-to-end tests are made of: a private home with real processes in it, a scripted provider that checks
//! what it is sent, and the real Codex CLI.
//!
//! ```text
//! codex exec ──► codexctl launch cli ──► worker ──► FakeProvider (validates, records, plays its script)
//!                      │                    ▲
//!                      └──► supervisor ─────┘        all of it inside one SandboxHome
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`home`] | a throw-away home: settings, processes, and the proof that nothing of them is left |
//! | [`provider`] | a provider of any wire protocol that follows a script and refuses malformed requests |
//! | [`codex`] | runs the pinned Codex CLI and reads what it did |
//! | [`http`] | a plain blocking HTTP client, to say wrong things on purpose |
//! | [`requests`] | reads requests for providers that are written for a measurement |
//! | [`leftovers`] | finds processes by the home they were started in |
//! | [`strangers`] | processes that look like ours and are none |
//! | [`until`] | waits for a condition with a deadline |

pub mod codex;
pub mod home;
pub mod http;
pub mod leftovers;
pub mod provider;
pub mod requests;
pub mod strangers;
pub mod until;
