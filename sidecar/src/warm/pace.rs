//! A pace in bytes a second, shared by the tasks of a job.
//!
//! Invariant: over any stretch the bytes that were let through are at most the rate times its
//! length, plus one object. A job without a rate is never held back.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// When the next bytes may be asked for.
pub(super) struct Pace {
    bytes_per_second: Option<u64>,
    next: Mutex<Instant>,
}

impl Pace {
    pub(super) fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second, next: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` may be asked for, in the order of the calls.
    pub(super) async fn wait(&self, bytes: u64) {
        let Some(rate) = self.bytes_per_second else { return };
        let at = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let at = (*next).max(Instant::now());
            let seconds = bytes as f64 / rate as f64;
            // A century at most: the sum must stay an instant that can be told.
            *next = at + Duration::from_secs_f64(seconds.min(3.0e9));
            at
        };
        tokio::time::sleep_until(at).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_kept() {
        let begun = Instant::now();
        let pace = Pace::new(Some(1000));
        for _ in 0..5 {
            pace.wait(500).await;
        }
        assert_eq!(begun.elapsed(), Duration::from_secs(2));
        let free = Pace::new(None);
        free.wait(u64::MAX).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(2));
    }
}
