//! Which group of blocks the disk tier evicts: one that holds next to nothing, or else the one that was
//! filled first. Counts as it goes.
//!
//! The end of a process leaves the group that it was writing to partly filled, and foyer goes on with
//! another one; and foyer tells of recovered groups in no order. So the file system is asked when a
//! group was written and how much of it, or many restarts would push out what is full.
//! Invariant: `groups` in use never exceeds what the engine has; the counts are what foyer does not
//! tell otherwise.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use foyer::{EvictionInfo, EvictionPicker};

use super::directory::GroupFile;
use crate::Metrics;

/// A group that is filled to less than one part in this many is evicted before all others.
const THIN_PART: u64 = 4;

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

/// Whether a group is full enough to be kept, and since when it is full: the least goes first.
type Worth = (bool, SystemTime);

#[derive(Debug)]
pub(crate) struct OldestFirst {
    /// In the order of eviction; as many as there are groups at most.
    queue: Vec<(Worth, u32)>,
    /// Where the files of groups lie. The directory itself is not held: its lock would go when foyer
    /// lets go of this, which is at no certain time.
    blocks: PathBuf,
    group_bytes: u64,
    occupancy: Arc<Occupancy>,
    metrics: Metrics,
}

impl OldestFirst {
    pub(crate) fn new(
        blocks: PathBuf,
        group_bytes: u64,
        occupancy: Arc<Occupancy>,
        metrics: Metrics,
    ) -> Self {
        Self { queue: Vec::new(), blocks, group_bytes, occupancy, metrics }
    }

    fn worth(&self, group: u32) -> Worth {
        GroupFile::of(&self.blocks, group).map_or_else(
            // Without an answer it is one that was filled now.
            || (true, SystemTime::now()),
            |file| (file.allocated_bytes >= self.group_bytes / THIN_PART, file.written),
        )
    }
}

impl EvictionPicker for OldestFirst {
    fn init(&mut self, blocks: &[u32], _: usize) {
        self.occupancy.groups.store(blocks.len() as u64, Ordering::Relaxed);
        self.occupancy.clean.store(blocks.len() as u64, Ordering::Relaxed);
    }

    fn pick(&mut self, info: EvictionInfo<'_>) -> Option<u32> {
        self.occupancy.note(&info);
        self.queue.first().map(|(_, block)| *block)
    }

    fn on_block_evictable(&mut self, info: EvictionInfo<'_>, block: u32) {
        self.occupancy.note(&info);
        let worth = self.worth(block);
        let at = self.queue.partition_point(|(other, _)| *other <= worth);
        self.queue.insert(at, (worth, block));
    }

    fn on_block_evict(&mut self, info: EvictionInfo<'_>, block: u32) {
        self.occupancy.note(&info);
        self.occupancy.evicted.fetch_add(1, Ordering::Relaxed);
        self.metrics.disk_evictions.inc();
        self.metrics.evictions.inc();
        self.queue.retain(|(_, held)| *held != block);
    }
}
