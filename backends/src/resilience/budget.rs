//! How many retries an origin can be owed.
//!
//! Invariant: over any time, retries are at most the capacity plus a tenth of the successes, so
//! that an outage is not met with a multiple of the usual load.

use std::sync::atomic::{AtomicU64, Ordering};

/// Tenths of a retry that one retry takes; a success gives back one.
const TENTHS: u64 = 10;

#[derive(Debug)]
pub(super) struct Budget {
    tenths: AtomicU64,
    capacity: u64,
}

impl Budget {
    /// A full budget of so many retries.
    pub(super) fn new(retries: u32) -> Self {
        let capacity = u64::from(retries) * TENTHS;
        Self { tenths: AtomicU64::new(capacity), capacity }
    }

    /// Takes one retry; false when none is left.
    pub(super) fn spend(&self) -> bool {
        let take = |now: u64| now.checked_sub(TENTHS);
        self.tenths.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// Gives back a tenth, up to the capacity.
    pub(super) fn refund(&self) {
        let give = |now: u64| (now < self.capacity).then_some(now + 1);
        let _ = self.tenths.fetch_update(Ordering::Relaxed, Ordering::Relaxed, give);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_successes_buy_one_retry() {
        let budget = Budget::new(2);
        assert!(budget.spend() && budget.spend() && !budget.spend());
        (0..9).for_each(|_| budget.refund());
        assert!(!budget.spend());
        budget.refund();
        assert!(budget.spend() && !budget.spend());
        (0..1000).for_each(|_| budget.refund());
        assert!(budget.spend() && budget.spend() && !budget.spend());
    }
}
