//! The user daemon.
mod backoff;
mod lifecycle;
fn main() {}
