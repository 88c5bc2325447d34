//! Whether the node service does its work, for probes.
//!
//! Invariant: ready is who has the folder's lock, is registered with kubelet and looks after mounts; alive is
//! also who waits for the lock. Asking never waits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Nobody has looked after mounts for this long: the thread that does hangs, or is gone. It tells of
/// itself before each pod, and one takes 20 s at most.
const BEATS_WITHIN: Duration = Duration::from_mins(2);

/// What the node service says of itself; its copies say the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Health(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// When mounts were last looked after; `None` while another service has the lock.
    beat: Option<Instant>,
}

impl Health {
    /// Notes that mounts are looked after.
    pub(super) fn beat(&self) {
        self.0.lock().beat = Some(Instant::now());
    }

    /// An error is a sentence.
    pub(super) fn live(&self) -> Result<(), &'static str> {
        self.live_at(Instant::now())
    }

    /// An error is a sentence.
    pub(super) fn ready(&self, is_registered: bool) -> Result<(), &'static str> {
        if self.0.lock().beat.is_none() {
            return Err("another node service runs; waiting for its end");
        }
        self.live()?;
        if is_registered { Ok(()) } else { Err("kubelet has not registered the driver yet") }
    }

    fn live_at(&self, now: Instant) -> Result<(), &'static str> {
        match self.0.lock().beat {
            Some(beat) if now.saturating_duration_since(beat) > BEATS_WITHIN => {
                Err("nobody looks after mounts any more")
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_takes_the_lock_kubelet_and_a_living_watch() {
        let health = Health::default();
        assert_eq!(health.live(), Ok(()));
        assert!(health.ready(true).is_err());
        health.clone().beat();
        assert!(health.ready(false).is_err());
        assert_eq!(health.ready(true), Ok(()));
        assert!(health.live_at(Instant::now() + 2 * BEATS_WITHIN).is_err());
    }
}
