//! When a worker that crashed is started again.
//!
//! Invariant: a worker that served before it crashed is started again at once; one that never gets
//! there, after pauses that grow; and none when there were too many crashes within a minute.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Crashes that count together.
const WINDOW: Duration = Duration::from_mins(1);
/// Failed starts in a row that are tried again at once: a lock or a port may need a moment.
const AT_ONCE: u32 = 2;
/// The first pause; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause: a machine that is short of something for seconds is tried again soon.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What to do after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Start it again after this time.
    Again(Duration),
    /// There were this many crashes within a minute.
    GiveUp(usize),
}

/// The crashes of the last minute.
#[derive(Debug)]
pub(super) struct Crashes {
    /// As many as this end it; also the bound of `recent`.
    most: usize,
    recent: VecDeque<Instant>,
    /// Workers in a row that never served.
    failed_starts: u32,
}

impl Crashes {
    pub(super) fn new(most: u16) -> Self {
        Self { most: usize::from(most).max(1), recent: VecDeque::new(), failed_starts: 0 }
    }

    /// A worker crashed; `was_ready` where it had served.
    pub(super) fn add(&mut self, now: Instant, was_ready: bool) -> Verdict {
        self.recent.push_back(now);
        self.recent.retain(|then| now.saturating_duration_since(*then) < WINDOW);
        if self.recent.len() >= self.most {
            return Verdict::GiveUp(self.recent.len());
        }
        self.failed_starts = if was_ready { 0 } else { self.failed_starts.saturating_add(1) };
        let doublings = match self.failed_starts.checked_sub(AT_ONCE + 1) {
            Some(doublings) => doublings.min(16),
            None => return Verdict::Again(Duration::ZERO),
        };
        Verdict::Again((FIRST_PAUSE * (1 << doublings)).min(LONGEST_PAUSE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pauses(crashes: &mut Crashes, count: usize, was_ready: bool) -> Vec<u128> {
        let now = Instant::now();
        (0..count)
            .map(|_| match crashes.add(now, was_ready) {
                Verdict::Again(pause) => pause.as_millis(),
                Verdict::GiveUp(_) => u128::MAX,
            })
            .collect()
    }

    #[test]
    fn failed_starts_are_slowed_and_given_up() {
        let mut crashes = Crashes::new(9);
        let wanted = [0, 0, 100, 200, 400, 800, 1600, 2000, u128::MAX];
        assert_eq!(pauses(&mut crashes, 9, false), wanted);
    }

    #[test]
    fn a_worker_that_served_is_started_again_at_once() {
        let mut crashes = Crashes::new(200);
        assert_eq!(pauses(&mut crashes, 150, true), [0; 150]);
        // A start that worked forgives those before it.
        pauses(&mut crashes, 5, false);
        assert_eq!(pauses(&mut crashes, 1, true), [0]);
        assert_eq!(pauses(&mut crashes, 3, false), [0, 0, 100]);
    }

    #[test]
    fn crashes_are_forgotten_after_a_minute() {
        let mut crashes = Crashes::new(3);
        let start = Instant::now();
        for minute in 0..20 {
            for second in [0, 1] {
                let at = start + WINDOW * minute + Duration::from_secs(second);
                assert_ne!(crashes.add(at, true), Verdict::GiveUp(3), "minute {minute}");
            }
        }
        let at = start + WINDOW * 19 + Duration::from_secs(2);
        assert_eq!(crashes.add(at, true), Verdict::GiveUp(3));
        assert_eq!(Crashes::new(1).add(start, true), Verdict::GiveUp(1));
    }
}
