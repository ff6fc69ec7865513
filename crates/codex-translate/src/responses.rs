//! The Responses API: what Codex sends, and the events it understands.

pub mod emitter;
mod event;
pub mod request;

pub use emitter::Emitter;
pub use request::{ParseError, Request};
