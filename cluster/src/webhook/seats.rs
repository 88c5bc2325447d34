//! Who is connected, and who goes when there is no room.
//!
//! Invariant: at most a given number of connections is served, and a new one waits for no idle one:
//! the one that has done nothing for longest goes. One that did something within [`QUIET`] stays.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// Shorter than this nobody is idle: a handshake, or a review on its way, takes milliseconds.
const QUIET: Duration = Duration::from_secs(1);

/// How often it is tried again when all are busy.
const TRY_EVERY: Duration = Duration::from_millis(50);

/// One connection's.
#[derive(Debug)]
struct Place {
    /// When it last did something.
    since: Instant,
    goes: CancellationToken,
}

/// The places of one endpoint.
#[derive(Debug)]
pub(super) struct Seats {
    permits: Arc<Semaphore>,
    /// As many as there are permits.
    taken: Mutex<Taken>,
    quiet: Duration,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    places: HashMap<u64, Place>,
}

/// A place that somebody has; it is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Arc<Seats>,
    number: u64,
    /// Told when another needs the place.
    pub(super) goes: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl Seats {
    pub(super) fn new(count: usize) -> Arc<Self> {
        Self::with(count, QUIET)
    }

    fn with(count: usize, quiet: Duration) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(count));
        Arc::new(Self { permits, taken: Mutex::default(), quiet })
    }

    /// Takes a place, which somebody else may have to leave.
    pub(super) async fn take(self: &Arc<Self>) -> Seat {
        let permit = loop {
            let permit = Arc::clone(&self.permits).acquire_owned();
            if self.permits.available_permits() == 0 {
                self.send_away();
            }
            if let Ok(permit) = tokio::time::timeout(TRY_EVERY, permit).await {
                break permit.expect("never closed");
            }
        };
        let goes = CancellationToken::new();
        let place = Place { since: Instant::now(), goes: goes.clone() };
        let number = {
            let mut taken = self.taken.lock();
            taken.next += 1;
            let number = taken.next;
            taken.places.insert(number, place);
            number
        };
        Seat { seats: Arc::clone(self), number, goes, _permit: permit }
    }

    /// Tells the one that has done nothing for longest to go.
    fn send_away(&self) {
        let taken = self.taken.lock();
        // Who was told before is about to go.
        if taken.places.values().any(|place| place.goes.is_cancelled()) {
            return;
        }
        let oldest = taken.places.values().min_by_key(|place| place.since);
        if let Some(place) = oldest.filter(|place| place.since.elapsed() >= self.quiet) {
            place.goes.cancel();
        }
    }
}

impl Seat {
    /// Notes that something was done.
    pub(super) fn touch(&self) {
        if let Some(place) = self.seats.taken.lock().places.get_mut(&self.number) {
            place.since = Instant::now();
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.taken.lock().places.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_did_nothing_for_longest_goes_first() {
        let seats = Seats::with(2, Duration::from_millis(100));
        let (one, two) = (seats.take().await, seats.take().await);
        tokio::time::sleep(Duration::from_millis(5)).await;
        one.touch();
        let third = tokio::spawn({
            let seats = Arc::clone(&seats);
            async move { seats.take().await }
        });
        let limit = Duration::from_secs(5);
        tokio::time::timeout(limit, two.goes.cancelled()).await.unwrap();
        assert!(!one.goes.is_cancelled());
        drop(two);
        let third = tokio::time::timeout(limit, third).await.unwrap().unwrap();
        drop((one, third));
        assert_eq!(seats.permits.available_permits(), 2);
        assert!(seats.taken.lock().places.is_empty());
    }

    #[tokio::test]
    async fn nobody_goes_while_all_are_busy() {
        let seats = Seats::with(1, Duration::from_mins(1));
        let one = seats.take().await;
        let waits = tokio::time::timeout(Duration::from_millis(120), seats.take()).await;
        assert!(waits.is_err());
        assert!(!one.goes.is_cancelled());
    }
}
