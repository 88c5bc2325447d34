//! What is remembered of objects that are not files: who reads them how.
//!
//! Invariant: bounded, the oldest are forgotten; being forgotten costs an object another look, never
//! bytes. Does no I/O and knows no time.

use std::collections::{HashMap, VecDeque};

/// Objects whose runs are followed: as many as are read from their middle at once, with room to spare.
const MAX_RUNS: usize = 1024;

/// Objects that were opened or refused: some 40 bytes each.
const MAX_SEEN: usize = 65_536;

/// Blocks that a sequential reader may have in flight out of order.
const REACH_BLOCKS: u32 = 64;

/// A map that forgets the oldest.
#[derive(Debug)]
struct Recent<V> {
    of: HashMap<u64, V>,
    order: VecDeque<u64>,
    limit: usize,
}

impl<V> Recent<V> {
    fn new(limit: usize) -> Self {
        Self { of: HashMap::new(), order: VecDeque::new(), limit }
    }

    fn entry(&mut self, id: u64, new: impl FnOnce() -> V) -> &mut V {
        if !self.of.contains_key(&id) {
            self.order.push_back(id);
            while self.order.len() > self.limit {
                let Some(oldest) = self.order.pop_front() else { break };
                self.of.remove(&oldest);
            }
        }
        self.of.entry(id).or_insert_with(new)
    }

    fn forget(&mut self, id: u64) {
        if self.of.remove(&id).is_some() {
            self.order.retain(|held| *held != id);
        }
    }
}

/// Blocks of an object that came one after another.
#[derive(Debug)]
struct Run {
    low: u32,
    high: u32,
    bytes: u64,
}

#[derive(Debug)]
pub(super) struct Homes {
    runs: Recent<Run>,
    opened: Recent<u32>,
    refused: Recent<()>,
    never: Recent<()>,
}

impl Default for Homes {
    fn default() -> Self {
        Self {
            runs: Recent::new(MAX_RUNS),
            opened: Recent::new(MAX_SEEN),
            refused: Recent::new(MAX_SEEN),
            never: Recent::new(MAX_SEEN),
        }
    }
}

impl Homes {
    /// A block of an object without a file was brought. Returns the first block of the run that it
    /// belongs to and the bytes of it.
    pub(super) fn brought(&mut self, id: u64, index: u32, bytes: u64) -> (u32, u64) {
        let run = self.runs.entry(id, || Run { low: index, high: index, bytes: 0 });
        if index < run.low || index > run.high.saturating_add(REACH_BLOCKS) {
            *run = Run { low: index, high: index, bytes: 0 };
        }
        run.high = run.high.max(index);
        run.bytes += bytes;
        (run.low, run.bytes)
    }

    /// An object was opened. Returns how often, of late.
    pub(super) fn opened(&mut self, id: u64) -> u32 {
        let times = self.opened.entry(id, || 0);
        *times = times.saturating_add(1);
        *times
    }

    /// An object was not admitted.
    pub(super) fn refuse(&mut self, id: u64) {
        self.refused.entry(id, || ());
    }

    pub(super) fn is_refused(&self, id: u64) -> bool {
        self.refused.of.contains_key(&id)
    }

    /// An object is not to be tried again.
    pub(super) fn refuse_for_good(&mut self, id: u64) {
        self.never.entry(id, || ());
    }

    pub(super) fn is_never(&self, id: u64) -> bool {
        self.never.of.contains_key(&id)
    }

    /// An object has a part now.
    pub(super) fn settled(&mut self, id: u64) {
        self.runs.forget(id);
        if self.is_refused(id) {
            self.refused.forget(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_grow_in_sequence_and_begin_anew_after_a_jump() {
        let mut homes = Homes::default();
        assert_eq!(homes.brought(1, 100, 10), (100, 10));
        assert_eq!(homes.brought(1, 102, 10), (100, 20), "GETs in flight come in any order");
        assert_eq!(homes.brought(1, 101, 10), (100, 30));
        assert_eq!(homes.brought(1, 5000, 10), (5000, 10));
        assert_eq!(homes.brought(1, 7, 10), (7, 10));
        homes.settled(1);
        assert_eq!(homes.brought(1, 8, 10), (8, 10));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut homes = Homes::default();
        for id in 0..200_000 {
            homes.opened(id);
            homes.refuse(id);
            homes.brought(id, 3, 1);
        }
        assert!(homes.opened.of.len() <= MAX_SEEN && homes.opened.order.len() <= MAX_SEEN);
        assert!(homes.runs.of.len() <= MAX_RUNS);
        assert!(homes.is_refused(199_999) && !homes.is_refused(0));
        assert_eq!(homes.opened(199_999), 2);
        assert_eq!(homes.opened(0), 1, "forgotten");
    }
}
