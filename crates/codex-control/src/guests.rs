//! Connections that have not yet shown what they want: there is room for the newest ones.
//!
//! A listener that only counts its connections can be filled by a program that connects and says nothing, and then
//! nobody else gets in. Here such a connection, a *guest*, keeps its place only while there is room: when there is
//! none, the guest that has waited longest is sent away for the one that comes. Who says what it wants, within
//! milliseconds as every client of ours does, is [engaged](Guest::engage) by then and stays.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// The guests of one listener. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Guests(Arc<Mutex<Waiting>>);

/// The lock around it protects plain data and is held for one change of the map.
#[derive(Debug, Default)]
struct Waiting {
    next_place: u64,
    /// By place, so that the first is the one that has waited longest.
    places: BTreeMap<u64, CancellationToken>,
}

/// One connection. Dropping it gives its place back.
#[derive(Debug)]
pub struct Guest {
    guests: Guests,
    sent_away: CancellationToken,
    /// `None` while it is engaged. The lock protects this one value.
    place: Mutex<Option<u64>>,
}

impl Guests {
    /// Gives a connection the newest place.
    pub fn admit(&self) -> Guest {
        let sent_away = CancellationToken::new();
        let place = self.waiting().take_place(&sent_away);
        Guest { guests: self.clone(), sent_away, place: Mutex::new(Some(place)) }
    }

    /// Sends the guest away that has waited longest; says whether there was one.
    pub fn send_longest_away(&self) -> bool {
        let first = self.waiting().places.pop_first();
        first.is_some_and(|(_, sent_away)| {
            sent_away.cancel();
            true
        })
    }

    /// How many are waiting; those who are engaged do not count.
    pub fn count(&self) -> usize {
        self.waiting().places.len()
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn take_place(&mut self, sent_away: &CancellationToken) -> u64 {
        let place = self.next_place;
        self.next_place += 1;
        self.places.insert(place, sent_away.clone());
        place
    }
}

impl Guest {
    /// It has shown what it wants: from now on it is not sent away. Says whether it was in time.
    pub fn engage(&self) -> bool {
        let mut place = self.place();
        if let Some(taken) = place.take() {
            self.guests.waiting().places.remove(&taken);
        }
        !self.sent_away.is_cancelled()
    }

    /// It has what it wanted, and waits again, at the newest place.
    pub fn disengage(&self) {
        let mut place = self.place();
        if place.is_none() && !self.sent_away.is_cancelled() {
            *place = Some(self.guests.waiting().take_place(&self.sent_away));
        }
    }

    /// Waits until it is sent away. Safe to drop and to call again.
    pub async fn sent_away(&self) {
        self.sent_away.cancelled().await;
    }

    fn place(&self) -> MutexGuard<'_, Option<u64>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.engage();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_sent_away(guest: &Guest) -> bool {
        guest.sent_away.is_cancelled()
    }

    #[test]
    fn the_guest_that_has_waited_longest_goes_first() {
        let guests = Guests::default();
        let [first, second, third] = std::array::from_fn(|_| guests.admit());
        assert!(first.engage(), "it was in time");
        assert!(guests.send_longest_away());
        assert_eq!([&first, &second, &third].map(is_sent_away), [false, true, false]);
        assert!(!second.engage(), "it was too late");
        first.disengage();
        assert!(guests.send_longest_away());
        assert_eq!([&first, &third].map(is_sent_away), [false, true], "who was engaged waits at the newest place");
        assert!(guests.send_longest_away());
        assert!(is_sent_away(&first) && !guests.send_longest_away());
    }

    #[test]
    fn a_place_is_given_back() {
        let guests = Guests::default();
        let [first, second] = std::array::from_fn(|_| guests.admit());
        assert_eq!(guests.count(), 2);
        drop(first);
        second.disengage();
        assert_eq!(guests.count(), 1, "one connection has one place");
        second.engage();
        second.engage();
        assert_eq!(guests.count(), 0);
        drop(second);
        assert!(!guests.send_longest_away());
    }
}
