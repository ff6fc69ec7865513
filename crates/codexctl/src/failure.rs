//! Why a command did not do what it was asked to, for a person and for a script.

use std::error::Error;

use codex_control::report::{self, Hinted};
use codex_control::rpc::RpcError;

/// What the shell is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The command failed.
    Failure = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// The supervisor cannot be reached.
    Unreachable = 3,
}

/// A failed command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Something a person must be told.
    Told {
        /// What the shell is told.
        exit: Exit,
        /// What happened, to what: one line, lower case.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// Whoever read our output (`head`, a pager) has enough. Not worth a word.
    OutputClosed,
}

impl Failure {
    /// A failure with exit code 1 and no hint.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self::Told { exit: Exit::Failure, message: message.into(), hint: None }
    }

    /// A command line that makes no sense.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Told { exit: Exit::Usage, message: message.into(), hint: None }
    }

    /// The supervisor cannot be reached.
    pub(crate) fn unreachable(message: impl Into<String>) -> Self {
        Self::Told { exit: Exit::Unreachable, message: message.into(), hint: None }
    }

    /// `error` and its causes.
    pub(crate) fn from_error(error: &(dyn Error + 'static)) -> Self {
        Self::new(report::chain(error))
    }

    /// `error`, its causes and its remedy.
    pub(crate) fn from_hinted<E: Hinted + 'static>(error: &E) -> Self {
        Self::new(report::chain(error)).hint_if(error.hint())
    }

    /// The same with a remedy.
    pub(crate) fn hint(self, remedy: impl Into<String>) -> Self {
        self.hint_if(Some(remedy.into()))
    }

    /// The same with a remedy, if there is one.
    pub(crate) fn hint_if(mut self, remedy: Option<String>) -> Self {
        if let (Self::Told { hint, .. }, Some(remedy)) = (&mut self, remedy) {
            *hint = Some(remedy);
        }
        self
    }

    /// `message` and `hint` as one sentence each, for a warning.
    pub(crate) fn into_parts(self) -> (String, Option<String>) {
        match self {
            Self::Told { message, hint, .. } => (message, hint),
            Self::OutputClosed => ("the output was closed".to_owned(), None),
        }
    }
}

impl From<RpcError> for Failure {
    fn from(error: RpcError) -> Self {
        let hint = error.hint().map(str::to_owned);
        Self::new(error.message).hint_if(hint)
    }
}
