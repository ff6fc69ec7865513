//! The incident engine: signals go in, directives come out.
//!
//! ```text
//! Signal ─► which fault? ─► tier 1: a rule of the table ─► tier 2: a fix that has helped before ─► tier 3: an AI ─► a person
//!                               │                              │                                      │
//!                               └──────────────► Act ◄─────────┴──────────────────────────────────────┘
//!                                                 │ carried out by somebody else: Engine::outcome
//!                                                 ▼
//!                                   watched: did it help? ─► only what was seen is remembered
//! ```
//!
//! Nothing here touches a socket, file, clock, environment or random number. Time comes in with each call, so a log of
//! what was said to an engine, said again to another one, gives the same directives to the byte ([`replay`]).
//!
//! Whoever drives an [`Engine`]
//! 1. calls [`Engine::observe`] for each signal,
//! 2. calls [`Engine::poll`] until it returns `None`, and again at [`Engine::deadline`],
//! 3. before it carries out an [`Act`] or a [`Diagnose`], keeps [`Engine::export`] where it survives
//!    ([`Engine::revision`] says whether it has changed): the guards are counted before the deed, so that no crash
//!    gives a restart or a question for free,
//! 4. says how it went: [`Engine::outcome`], [`Engine::diagnosis`].
//!
//! | module | what |
//! |---|---|
//! | `engine` | the life of an incident |
//! | `guards` | restarts, questions, money, cooldowns: what is never exceeded |
//! | `patterns` | which fix has helped how often |
//! | `prompt` | what the AI is asked, and what of its answer is believed |
//! | `trend` | memory that grows, answers that begin later and later |
//! | `replay` | the same again, from a log |

mod directive;
mod engine;
mod guards;
mod patterns;
mod policy;
mod prompt;
mod replay;
mod trend;

pub use directive::{Act, Diagnose, Directive, Notice};
pub use engine::{Engine, Renumbered, Saved, rule_of};
pub use guards::{
    AI_CALLS_PER_DAY_MAX, AI_INTERVAL_MS, AiRefusal, AiSpending, Guards, LADDER_MS, RESTARTS_MAX, RESTARTS_WINDOW_MS,
};
pub use patterns::{Fix, Known, PATTERNS_MAX, Patterns, Stated};
pub use policy::{Facts, Policy};
pub use prompt::{ANSWER_BYTES_MAX, Choice, PROMPT_BYTES_MAX, parse_answer};
pub use replay::{Entry, Input, replay, signals_only};

/// Time in which a person can cancel an automatic action.
pub const CANCEL_WITHIN_MS: u64 = 3_000;
