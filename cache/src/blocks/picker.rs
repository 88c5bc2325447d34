//! Which group of blocks the disk tier evicts: the one that was filled first. Counts as it goes.
//!
//! Invariant: `groups` in use never exceeds what the engine has; the counts are what foyer does not
//! tell otherwise.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use foyer::{EvictionInfo, EvictionPicker};

use crate::Metrics;

/// How full the disk tier is, in groups of blocks (foyer's engine blocks).
#[derive(Debug, Default)]
pub(crate) struct Occupancy {
    pub(crate) groups: AtomicU64,
    pub(crate) clean: AtomicU64,
    pub(crate) evicted: AtomicU64,
}

impl Occupancy {
    fn note(&self, info: &EvictionInfo<'_>) {
        self.groups.store(info.blocks.len() as u64, Ordering::Relaxed);
        self.clean.store(info.clean as u64, Ordering::Relaxed);
    }
}

#[derive(Debug)]
pub(crate) struct OldestFirst {
    queue: VecDeque<u32>,
    occupancy: Arc<Occupancy>,
    metrics: Metrics,
}

impl OldestFirst {
    pub(crate) fn new(occupancy: Arc<Occupancy>, metrics: Metrics) -> Self {
        Self { queue: VecDeque::new(), occupancy, metrics }
    }
}

impl EvictionPicker for OldestFirst {
    fn init(&mut self, blocks: &[u32], _: usize) {
        self.occupancy.groups.store(blocks.len() as u64, Ordering::Relaxed);
        self.occupancy.clean.store(blocks.len() as u64, Ordering::Relaxed);
    }

    fn pick(&mut self, info: EvictionInfo<'_>) -> Option<u32> {
        self.occupancy.note(&info);
        self.queue.front().copied()
    }

    fn on_block_evictable(&mut self, info: EvictionInfo<'_>, block: u32) {
        self.occupancy.note(&info);
        self.queue.push_back(block);
    }

    fn on_block_evict(&mut self, info: EvictionInfo<'_>, block: u32) {
        self.occupancy.note(&info);
        self.occupancy.evicted.fetch_add(1, Ordering::Relaxed);
        self.metrics.disk_evictions.inc();
        self.metrics.evictions.inc();
        self.queue.retain(|held| *held != block);
    }
}
