//! How one reader moves through one object.
//!
//! Invariant: nothing is asked for twice while the reader stays its course, nothing past the object's
//! end, and never more than the window. Pure; it knows no time.

use std::ops::Range;

use super::Plan;

/// Advancing reads before a reader counts as sequential: the first read may be a header.
const SEQUENTIAL_AFTER: u32 = 1;

/// Equal distances before a reader counts as strided.
const STRIDED_AFTER: u32 = 2;

/// Most reads that are foreseen of a strided reader.
const MAX_STRIDES: u32 = 8;

/// All in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// The window of a reader that has just been found sequential.
    pub(super) first: u64,
    /// The window of one that has long been.
    pub(super) most: u64,
    /// How much is asked for at a time once the window is large: one GET. Asking for half a window
    /// at once would leave the link idle while the reader works through the other half.
    pub(super) step: u64,
    /// How far from the expected place a read may begin and still continue.
    pub(super) slack: u64,
}

#[derive(Debug)]
pub(super) struct Pattern {
    last: Range<u64>,
    /// The highest byte read on this course.
    frontier: u64,
    streak: u32,
    window: u64,
    /// Up to where bytes were asked for.
    ahead: u64,
    stride: i64,
    strides: u32,
    next_hinted: bool,
}

impl Pattern {
    pub(super) fn begin(read: &Range<u64>) -> Self {
        Self {
            last: read.clone(),
            frontier: read.end,
            streak: 0,
            window: 0,
            ahead: read.end,
            stride: 0,
            strides: 0,
            next_hinted: false,
        }
    }

    pub(super) fn observe(&mut self, read: &Range<u64>, size: u64, limits: Limits) -> Plan {
        let near = read.start.abs_diff(self.frontier) <= limits.slack;
        let previous = std::mem::replace(&mut self.last, read.clone());
        if near {
            self.strides = 0;
            if read.end <= self.frontier {
                // Bytes that were read before: nothing is to be learned from them.
                return Plan::default();
            }
            self.frontier = read.end;
            self.ahead = self.ahead.max(read.end);
            self.streak += 1;
            return if self.streak >= SEQUENTIAL_AFTER {
                self.sequential(size, limits)
            } else {
                Plan::default()
            };
        }
        let distance = read.start.cast_signed().wrapping_sub(previous.start.cast_signed());
        let strides = if distance == self.stride { self.strides + 1 } else { 0 };
        *self = Self { stride: distance, strides, ..Self::begin(read) };
        if strides >= STRIDED_AFTER { self.strided(size, limits) } else { Plan::default() }
    }

    fn sequential(&mut self, size: u64, limits: Limits) -> Plan {
        let mut plan = Plan::default();
        if self.window == 0 {
            self.window = limits.first.min(limits.most);
        } else if self.ahead - self.frontier + self.step(limits) > self.window {
            // Most of the window is still ahead: ask later, and for more at once.
            return self.next_object(size, limits, plan);
        } else {
            self.window = self.window.saturating_mul(2).min(limits.most);
        }
        let end = self.frontier.saturating_add(self.window).min(size);
        if end > self.ahead {
            plan.ranges.push(self.ahead..end);
            self.ahead = end;
        }
        self.next_object(size, limits, plan)
    }

    /// How much of the window must have been read before more is asked for.
    fn step(&self, limits: Limits) -> u64 {
        self.window.div_ceil(2).min(limits.step)
    }

    fn next_object(&mut self, size: u64, limits: Limits, mut plan: Plan) -> Plan {
        // One read may be a header and a second its continuation: look further from the third on.
        if !self.next_hinted && self.streak > 1 && self.ahead >= size {
            self.next_hinted = true;
            plan.next_object_bytes = Some(self.window.max(limits.first));
        }
        plan
    }

    fn strided(&mut self, size: u64, limits: Limits) -> Plan {
        let len = self.last.end - self.last.start;
        let reads = 1 << (self.strides - STRIDED_AFTER).min(MAX_STRIDES.ilog2());
        let mut ranges = Vec::new();
        let mut start = self.last.start.cast_signed();
        let mut bytes = 0;
        for _ in 0..reads {
            bytes += len;
            let Some(next) = start.checked_add(self.stride).filter(|s| *s >= 0) else { break };
            start = next;
            let begin = start.cast_unsigned();
            if begin >= size || bytes > limits.most {
                break;
            }
            ranges.push(begin..begin.saturating_add(len).min(size));
        }
        Plan { ranges, next_object_bytes: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { first: 400, most: 3200, step: 800, slack: 200 };
    const SIZE: u64 = 100_000;

    fn run(reads: impl IntoIterator<Item = Range<u64>>) -> Vec<Plan> {
        let mut reads = reads.into_iter();
        let mut pattern = Pattern::begin(&reads.next().unwrap());
        reads.map(|read| pattern.observe(&read, SIZE, LIMITS)).collect()
    }

    #[test]
    fn a_sequential_reader_gets_a_window_that_doubles() {
        let plans = run((0..400).map(|n| n * 100..n * 100 + 100));
        let asked: Vec<_> = plans.iter().flat_map(|p| p.ranges.clone()).collect();
        assert_eq!(asked[0], 200..600);
        assert!(asked.windows(2).all(|w| w[0].end == w[1].start), "no gap, nothing twice");
        let largest = asked.iter().map(|r| r.end - r.start).max().unwrap();
        assert!((1600..=3200).contains(&largest), "{largest}");
        let whole: u64 = asked.iter().map(|r| r.end - r.start).sum();
        assert!(whole <= 40_000 + 3200);
    }

    #[test]
    fn reads_in_any_order_within_the_slack_stay_sequential() {
        let order = [0, 2, 1, 3, 5, 4, 7, 6, 8, 9];
        let plans = run(order.map(|n| n * 100..n * 100 + 100));
        assert!(plans.iter().any(|p| !p.ranges.is_empty()));
    }

    #[test]
    fn a_jump_collapses_the_window() {
        let mut pattern = Pattern::begin(&(0..100));
        for n in 1..50 {
            pattern.observe(&(n * 100..n * 100 + 100), SIZE, LIMITS);
        }
        assert_eq!(pattern.observe(&(50_000..50_100), SIZE, LIMITS), Plan::default());
        let plan = pattern.observe(&(50_100..50_200), SIZE, LIMITS);
        assert_eq!(plan.ranges, vec![50_200..50_600], "it begins small again");
    }

    #[test]
    fn random_reads_and_reading_again_ask_for_nothing() {
        let at = [7, 900, 33, 512, 76, 300, 981, 4, 650, 211u64];
        assert!(run(at.map(|n| n * 100..n * 100 + 4)).iter().all(|p| *p == Plan::default()));
        assert!(run((0..20).map(|_| 500..504)).iter().all(|p| *p == Plan::default()));
    }

    #[test]
    fn strides_are_foreseen_in_both_directions() {
        let plans = run((0..6).map(|n| n * 5000..n * 5000 + 100));
        assert_eq!(plans[2].ranges, vec![20_000..20_100]);
        assert_eq!(plans[3].ranges.len(), 2);
        let plans = run((0..6).map(|n| 90_000 - n * 5000..90_100 - n * 5000));
        assert_eq!(plans[2].ranges, vec![70_000..70_100]);
    }

    #[test]
    fn nearing_the_end_looks_at_the_next_object_once() {
        let plans = run((0..1000).map(|n| n * 100..n * 100 + 100));
        let hints: Vec<_> =
            plans.iter().enumerate().filter(|(_, p)| p.next_object_bytes.is_some()).collect();
        assert_eq!(hints.len(), 1);
        assert!(hints[0].0 > 900);
    }

    proptest! {
        #[test]
        fn nothing_past_the_end_or_beyond_the_window(
            reads in proptest::collection::vec((0u64..2000, 1u64..300), 2..60),
        ) {
            let size = 2300;
            let mut pattern = Pattern::begin(&(reads[0].0..reads[0].0 + reads[0].1));
            for (start, len) in reads {
                let plan = pattern.observe(&(start..start + len), size, LIMITS);
                let bytes: u64 = plan.ranges.iter().map(|r| r.end - r.start).sum();
                prop_assert!(bytes <= LIMITS.most);
                for range in plan.ranges {
                    prop_assert!(range.start < range.end && range.end <= size);
                }
            }
        }
    }
}
