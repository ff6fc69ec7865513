//! Whether the sign-in is valid, as far as the key itself says: a JSON web token names its end.
//!
//! One that has expired is got anew from where it comes from; only when that brings no better one the incident engine is
//! told. Keys that say nothing about their end are the provider's to refuse.

use std::time::Duration;

use codex_control::endpoint::CredentialSource;
use codex_control::incident::{Observation, Outcome, Signal};
use codex_control::report;
use tokio::time::Instant;

use crate::credential::Renewed;
use crate::worker::{Worker, now_unix_ms};

/// How often it is looked whether the key has expired. A look costs nothing: the key is not read for it.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Pause between two tries to get an expired key anew, where that means to read a file.
const READ_INTERVAL: Duration = Duration::from_secs(5);
/// The same where a program is run, which may ask a person or a slow vault.
const RUN_INTERVAL: Duration = Duration::from_mins(1);

impl Worker {
    /// Looks after the sign-in until it is dropped.
    pub(crate) async fn watch_sign_in(&self) {
        let is_program = matches!(self.credential.source(), CredentialSource::Command(_));
        let pause = if is_program { RUN_INTERVAL } else { READ_INTERVAL };
        let mut was_good = None;
        let mut renewed_at: Option<Instant> = None;
        loop {
            match self.credential.expired_for_ms(now_unix_ms()) {
                Some(0) if was_good != Some(true) => {
                    was_good = Some(true);
                    self.see(Signal::of(Observation::SignInGood, &self.endpoint.id));
                }
                Some(ms) if ms > 0 && renewed_at.is_none_or(|at| at.elapsed() >= pause) => {
                    renewed_at = Some(Instant::now());
                    match self.credential.renew().await {
                        Ok(Renewed::Expired) => self.sign_in_expired("the one that is there now has expired, too"),
                        Err(error) => self.sign_in_expired(&report::chain(&error)),
                        Ok(Renewed::None | Renewed::Valid | Renewed::Another | Renewed::Same) => {}
                    }
                    was_good = None;
                }
                // A key that says nothing has taken the place of one that had expired.
                None if was_good.is_none() && renewed_at.take().is_some() => {
                    self.see(Signal::of(Observation::SignInGood, &self.endpoint.id));
                }
                _ => {}
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    fn sign_in_expired(&self, why: &str) {
        let ms = self.credential.expired_for_ms(now_unix_ms()).unwrap_or_default();
        self.see(Signal::of(Observation::SignInExpired, &self.endpoint.id).value(ms).detail(why));
    }

    /// Gets the key anew because the incident engine wants it, and says what that has come to.
    pub(crate) async fn renew_key(&self) -> Outcome {
        let renewed = self.credential.renew().await;
        self.set_problem(renewed.as_ref().err().map(|error| error.problem(self.credential.source())));
        let in_vain =
            |why: &str| Outcome::DidNotHelp(format!("{why}; `codexctl login {}` asks for one", self.endpoint.id));
        match renewed {
            Ok(Renewed::Valid | Renewed::Another) => {
                self.see(Signal::of(Observation::SignInGood, &self.endpoint.id));
                Outcome::Done
            }
            Ok(Renewed::None) => Outcome::Failed("its provider wants no key".to_owned()),
            Ok(Renewed::Expired) => in_vain("the key that is there has expired"),
            Ok(Renewed::Same) => in_vain("the same key is there as before"),
            Err(error) => in_vain(&report::chain(&error)),
        }
    }
}
