//! How many connections may be open, and what happens to one more.
//!
//! ```text
//! accepted ─► guest ── shows the token ─► seated ── the connection ends
//!               │                  └─ no seat free: waits for one, in turn
//!               └── too many guests: the one that has waited longest is closed
//! ```
//!
//! Nothing is ever left waiting in the kernel's queue: a health probe, and a Codex with the token, get in however many
//! connections say nothing. Codex waits for the head of an answer without a limit of its own, so one that has the token
//! and finds no seat is better off waiting here than with an error.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use codex_control::guests::{self, Guests};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};

/// Connections that have not shown the token. A client of ours shows it within milliseconds; one beyond this number
/// takes the place of the one that has waited longest. Each can make us keep a head of `serve::HEAD_BYTES_MAX`.
const GUESTS_MAX: usize = 512;
/// From this many guests on, those who came are heard before one more is let in: otherwise a rush of silent ones could
/// push a client out between its arrival and our first look at what it sent.
const GUESTS_MANY: usize = GUESTS_MAX / 4;
/// Requests with the token that wait for a seat. Further ones are refused: their senders do not stop by themselves.
const WAITING_MAX: usize = 256;
/// Descriptors that are neither a connection from Codex nor one to the provider: files, the supervisor's socket, DNS.
const DESCRIPTORS_KEPT: u64 = 64;
/// Descriptors of a request: the connection from Codex and the one to the provider.
const DESCRIPTORS_PER_SEAT: u64 = 2;
/// Fewest seats, however few descriptors the system allows.
const SEATS_MIN: u64 = 8;

/// See the [module](self).
pub(crate) struct Door {
    guests: Guests,
    guests_max: usize,
    seats: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// One connection.
pub(crate) struct Visitor<'a> {
    door: &'a Door,
    guest: guests::Guest,
    seat: OnceCell<OwnedSemaphorePermit>,
}

/// Too many requests wait for a seat already.
#[derive(Debug)]
pub(crate) struct Full;

impl Door {
    /// Room for `connections_max` connections with the token, or as many as `descriptors_max` allow.
    pub(crate) fn new(connections_max: u32, descriptors_max: u64) -> Self {
        let guests_max = GUESTS_MAX.min(usize::try_from(descriptors_max / 4).unwrap_or(usize::MAX)).max(1);
        let left = descriptors_max.saturating_sub(DESCRIPTORS_KEPT + guests_max as u64);
        let seats = u64::from(connections_max).min((left / DESCRIPTORS_PER_SEAT).max(SEATS_MIN));
        if seats < u64::from(connections_max) {
            tracing::warn!(seats, connections_max, descriptors_max, "the system allows fewer connections than set");
        }
        let seats = Arc::new(Semaphore::new(usize::try_from(seats).unwrap_or(Semaphore::MAX_PERMITS)));
        Self { guests: Guests::default(), guests_max, seats, waiting: AtomicUsize::new(0) }
    }

    /// Lets a connection in, at the cost of the guest that has waited longest when there are too many.
    pub(crate) fn admit(&self) -> Visitor<'_> {
        let guest = self.guests.admit();
        while self.guests.count() > self.guests_max {
            self.guests.send_longest_away();
        }
        Visitor { door: self, guest, seat: OnceCell::new() }
    }

    /// Frees a descriptor, when the process has none left.
    pub(crate) fn make_room(&self) {
        self.guests.send_longest_away();
    }

    /// Whether those who came should be heard before one more is let in.
    pub(crate) fn is_crowded(&self) -> bool {
        self.guests.count() > GUESTS_MANY.min(self.guests_max / 2)
    }
}

impl Visitor<'_> {
    /// The connection has shown the token: it is not sent away any more. Waits for a seat, which it keeps.
    ///
    /// May be dropped, e.g. because the client has gone: it then has no seat.
    pub(crate) async fn take_seat(&self) -> Result<(), Full> {
        self.guest.engage();
        self.seat
            .get_or_try_init(|| async {
                if let Ok(seat) = Arc::clone(&self.door.seats).try_acquire_owned() {
                    return Ok(seat);
                }
                let waiting = Waiting::new(&self.door.waiting);
                if waiting.count > WAITING_MAX {
                    return Err(Full);
                }
                Arc::clone(&self.door.seats).acquire_owned().await.map_err(|_| Full)
            })
            .await
            .map(|_| ())
    }

    /// Waits until it has to go.
    pub(crate) async fn sent_away(&self) {
        self.guest.sent_away().await;
    }
}

/// Counts one that waits until it is dropped.
struct Waiting<'a> {
    counter: &'a AtomicUsize,
    count: usize,
}

impl<'a> Waiting<'a> {
    fn new(counter: &'a AtomicUsize) -> Self {
        Self { counter, count: counter.fetch_add(1, Relaxed) + 1 }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.counter.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    fn is_ready<F: Future>(future: F) -> Option<F::Output> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }

    #[test]
    fn silent_guests_make_room_and_who_has_the_token_stays() {
        let door = Door::new(8, u64::MAX);
        let ours = door.admit();
        assert!(is_ready(ours.take_seat()).is_some());
        let silent: Vec<_> = (0..2 * GUESTS_MAX).map(|_| door.admit()).collect();
        assert!(is_ready(ours.sent_away()).is_none());
        let gone: Vec<bool> = silent.iter().map(|guest| is_ready(guest.sent_away()).is_some()).collect();
        assert_eq!(gone, [vec![true; GUESTS_MAX], vec![false; GUESTS_MAX]].concat());
        assert!(door.is_crowded());
        drop(silent);
        assert!(!door.is_crowded());
    }

    #[test]
    fn without_a_seat_one_waits_in_turn() {
        let door = Door::new(8, u64::MAX);
        let mut seated: Vec<_> = (0..8).map(|_| door.admit()).collect();
        for visitor in &seated {
            is_ready(visitor.take_seat()).unwrap().unwrap();
            is_ready(visitor.take_seat()).unwrap().unwrap();
        }
        let (first, second) = (door.admit(), door.admit());
        let (mut first_seat, mut second_seat) = (pin!(first.take_seat()), pin!(second.take_seat()));
        assert!(is_ready(first_seat.as_mut()).is_none() && is_ready(second_seat.as_mut()).is_none());
        seated.pop();
        assert!(is_ready(second_seat.as_mut()).is_none(), "it is not its turn");
        assert!(is_ready(first_seat.as_mut()).unwrap().is_ok());
    }

    #[test]
    fn too_many_that_wait_are_told() {
        let door = Door::new(8, u64::MAX);
        let visitors: Vec<_> = (0..WAITING_MAX + 9).map(|_| door.admit()).collect();
        let mut seats: Vec<_> = visitors.iter().map(|visitor| Box::pin(visitor.take_seat())).collect();
        let full: Vec<bool> = seats.iter_mut().map(|seat| matches!(is_ready(seat.as_mut()), Some(Err(Full)))).collect();
        assert_eq!(full.iter().filter(|full| **full).count(), 1);
        assert!(full[8 + WAITING_MAX]);
        drop(seats);
        assert_eq!(door.waiting.load(Relaxed), 0);
    }

    #[test]
    fn seats_are_as_many_as_there_are_descriptors_for() {
        for (connections_max, descriptors_max, expected) in [
            (1024, u64::MAX, 1024),
            (1024, 20_000, 1024),
            (1024, 1024, (1024 - 64 - 256) / 2),
            (1024, 64, 8),
            (65_536, 524_288, 65_536),
        ] {
            let door = Door::new(connections_max, descriptors_max);
            assert_eq!(door.seats.available_permits(), expected, "{connections_max} {descriptors_max}");
        }
    }
}
