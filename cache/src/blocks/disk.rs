//! Opens foyer over a cache directory, sized for our blocks.
//!
//! Invariant: foyer's buffer, queue and groups are larger than what [`super::writer`] ever gives it,
//! so that nothing is dropped for want of room.

use std::sync::Arc;

use foyer::{
    BlockEngineConfig, DefaultHasher, DeviceBuilder, FsDeviceBuilder, HybridCacheBuilder,
    HybridCacheBuilderPhaseStorage, HybridCachePolicy, LruConfig, PsyncIoEngineConfig, RecoverMode,
    Spawner,
};

use super::codec::Block;
use super::directory::Directory;
use super::picker::{Occupancy, OldestFirst};
use super::writer::{Engine, PAGE_BYTES};
use crate::version::BlockKey;
use crate::{CacheConfig, DiskConfig, Metrics};

/// Blocks in a group, foyer's unit of eviction: few enough that an eviction takes little, many enough
/// that groups need few files and their tails waste under 2 %.
const GROUP_BLOCKS: u64 = 64;

/// Smallest group: small objects take a page each, and a group of them should not be evicted for
/// nothing.
const MIN_GROUP_BYTES: u64 = 1 << 20;

/// Largest group: offsets within one have 32 bits.
const MAX_GROUP_BYTES: u64 = 2 << 30;

/// Groups that a small capacity is divided into where they still hold [`FEW_BLOCKS`]: each end of the
/// process leaves one partly filled, and each eviction takes a whole one.
const MANY_GROUPS: u64 = 128;

/// Blocks in the smallest group that is made only to have more of them: with two, one small entry could
/// waste half of a group.
const FEW_BLOCKS: u64 = 4;

/// Fewest groups: foyer holds one for writing and one clean, and evicts the others one by one.
const MIN_GROUPS: u64 = 8;

/// Most groups: each is a file that stays open, and a soft limit of 1,024 files is common.
const MAX_GROUPS: u64 = 512;

/// foyer's flush buffer; it has two of them. Enough to keep an NVMe busy.
const BUFFER_BYTES: u64 = 32 << 20;

/// Room for header, checksum and the longest key beside a block.
const ENTRY_EXTRA_BYTES: u64 = PAGE_BYTES;

/// The index that foyer writes before entries: 4 KiB for each 170 of them.
const INDEX_BYTES: u64 = PAGE_BYTES;

/// Entries count as this many bytes more than their data in memory: keys, lists, hash table.
const MEMORY_EXTRA_BYTES: usize = 256;

/// Memory shards hold at least this many blocks, so that no shard thrashes while others are empty.
const SHARD_BLOCKS: u64 = 32;

/// Most memory shards: more than a few readers at once gain nothing from more locks.
const MAX_SHARDS: u64 = 16;

/// Threads that run foyer's flusher and reclaimer, away from the threads that serve readers.
const ENGINE_THREADS: usize = 2;

/// Sizes that follow from the block size and the capacity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) entry_bytes: u64,
    pub(crate) group_bytes: u64,
    pub(crate) groups: u64,
    pub(crate) buffer_bytes: u64,
}

impl Layout {
    /// The layout for a capacity, or why there is none.
    pub(crate) fn new(block_bytes: u64, capacity_bytes: u64) -> Result<Self, String> {
        let entry_bytes = block_bytes.next_multiple_of(PAGE_BYTES) + ENTRY_EXTRA_BYTES;
        let smallest = (entry_bytes + INDEX_BYTES).max(PAGE_BYTES * 4);
        let mut group_bytes = GROUP_BLOCKS * entry_bytes + INDEX_BYTES;
        group_bytes = group_bytes.clamp(MIN_GROUP_BYTES, MAX_GROUP_BYTES);
        // Halved and doubled, so that most changes of the capacity keep the groups and their content.
        let few = (FEW_BLOCKS * entry_bytes + INDEX_BYTES).max(MIN_GROUP_BYTES);
        let halved = |bytes: u64| (bytes / 2).next_multiple_of(PAGE_BYTES);
        while capacity_bytes / group_bytes < MANY_GROUPS && halved(group_bytes) >= few {
            group_bytes = halved(group_bytes);
        }
        while capacity_bytes / group_bytes < MIN_GROUPS && group_bytes / 2 >= smallest {
            group_bytes = halved(group_bytes);
        }
        while capacity_bytes / group_bytes > MAX_GROUPS && group_bytes * 2 <= MAX_GROUP_BYTES {
            group_bytes *= 2;
        }
        if capacity_bytes / group_bytes < MIN_GROUPS {
            return Err(format!(
                "{capacity_bytes} bytes are too few for blocks of {block_bytes} bytes: at least {} are needed",
                smallest * 2 * MIN_GROUPS
            ));
        }
        Ok(Self {
            entry_bytes,
            group_bytes,
            groups: capacity_bytes / group_bytes,
            // One flush should not need more groups than there are.
            buffer_bytes: BUFFER_BYTES.min(2 * group_bytes).max(4 * entry_bytes),
        })
    }

    /// What must be equal for the files to be read.
    pub(crate) fn describe(&self, block_bytes: u64) -> String {
        format!("block_bytes={block_bytes} group_bytes={}", self.group_bytes)
    }
}

/// The memory tier with its builder left open for a disk tier.
fn memory(
    config: &CacheConfig,
    listener: Arc<super::hybrid::Departures>,
) -> HybridCacheBuilderPhaseStorage<BlockKey, Block, DefaultHasher> {
    let shards = config.memory_bytes / (SHARD_BLOCKS * config.block_bytes);
    HybridCacheBuilder::new()
        .with_name("blocks")
        // Entries go to disk when we say so, not when memory evicts them, and not at the end.
        .with_policy(HybridCachePolicy::WriteOnInsertion)
        .with_flush_on_close(false)
        .with_event_listener(listener)
        .memory(config.memory_bytes as usize)
        .with_shards(shards.clamp(1, MAX_SHARDS) as usize)
        .with_eviction_config(LruConfig::default())
        .with_weighter(|_: &BlockKey, block: &Block| block.data.len() + MEMORY_EXTRA_BYTES)
        .storage()
}

/// A cache without a disk tier.
pub(crate) async fn open_memory(
    config: &CacheConfig,
    listener: Arc<super::hybrid::Departures>,
) -> Result<Engine, String> {
    memory(config, listener).build().await.map_err(|e| e.to_string())
}

/// An opened disk tier.
pub(crate) struct Opened {
    pub(crate) engine: Engine,
    pub(crate) layout: Layout,
    pub(crate) occupancy: Arc<Occupancy>,
    pub(crate) directory: Arc<Directory>,
}

/// Recovers what the directory holds, or says why it cannot be used. `spare_bytes` of the file system are
/// taken by what gives way to blocks.
pub(crate) async fn open(
    config: &CacheConfig,
    disk: &DiskConfig,
    directory: Arc<Directory>,
    spare_bytes: u64,
    listener: Arc<super::hybrid::Departures>,
    metrics: &Metrics,
) -> Result<Opened, String> {
    let available = directory.available_bytes().saturating_add(spare_bytes);
    let capacity = disk.capacity_bytes.min(available);
    if capacity < disk.capacity_bytes {
        tracing::warn!(
            path = %disk.path.display(),
            configured = disk.capacity_bytes,
            available,
            "the cache's disk tier is smaller than configured: the file system has no more room"
        );
    }
    // The capacity that was configured decides about groups, so that a fuller disk does not change
    // the layout and with it discard the content.
    let mut layout = Layout::new(config.block_bytes, disk.capacity_bytes)?;
    layout.groups = capacity / layout.group_bytes;
    if layout.groups < MIN_GROUPS / 2 {
        return Err(format!("only {available} bytes are free in `{}`", disk.path.display()));
    }
    if let Some(found) = directory.prepare(&layout.describe(config.block_bytes))? {
        tracing::warn!(
            path = %disk.path.display(),
            found,
            "the cache directory was written with another layout; its content is discarded"
        );
    }
    directory.trim(layout.groups);
    directory.empty_clean();
    let occupancy = Arc::<Occupancy>::default();
    let unusable = |what: &str, error: &dyn std::fmt::Display| {
        format!("{what} `{}`: {error}", disk.path.display())
    };
    let device = FsDeviceBuilder::new(directory.blocks())
        .with_capacity((layout.groups * layout.group_bytes) as usize)
        .with_direct(directory.takes_direct_io())
        .build()
        .map_err(|e| unusable("cannot open", &e))?;
    // Clean groups are capacity that is kept empty: what lies above the high water.
    #[allow(clippy::cast_sign_loss)] // The high water was checked to be at most 1.
    let spare = (layout.groups as f64 * (1.0 - disk.high_water)).floor() as u64;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(ENGINE_THREADS)
        .thread_name("cache-disk")
        .enable_all()
        .build()
        .map_err(|e| unusable("cannot start threads for", &e))?;
    let picker = OldestFirst::new(
        directory.blocks(),
        layout.group_bytes,
        Arc::clone(&occupancy),
        metrics.clone(),
    );
    let engine_config = BlockEngineConfig::new(device)
        .with_block_size(layout.group_bytes as usize)
        .with_blob_index_size(INDEX_BYTES as usize)
        .with_buffer_pool_size(layout.buffer_bytes as usize)
        .with_submit_queue_size_threshold(2 * layout.buffer_bytes as usize)
        .with_clean_block_threshold(spare.clamp(1, layout.groups / 2) as usize)
        .with_eviction_pickers(vec![Box::new(picker)]);
    let engine = memory(config, listener)
        .with_io_engine_config(PsyncIoEngineConfig::new())
        .with_engine_config(engine_config)
        .with_recover_mode(RecoverMode::Quiet)
        .with_spawner(Spawner::from(runtime))
        .build()
        .await
        .map_err(|e| unusable("cannot open", &e))?;
    Ok(Opened { engine, layout, occupancy, directory })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_capacities_have_many_groups_too() {
        for (block, capacity) in [(1 << 20, 512 << 20), (4 << 20, 2 << 30), (64 << 10, 128 << 20)] {
            let layout = Layout::new(block, capacity).unwrap();
            assert!(layout.groups >= 64, "{layout:?}");
            // Full groups waste next to nothing.
            let held = (layout.group_bytes - INDEX_BYTES) / layout.entry_bytes;
            let used = held * layout.entry_bytes;
            assert!(held >= FEW_BLOCKS && used * 10 >= layout.group_bytes * 9, "{layout:?}");
        }
        // What is large keeps the groups it had.
        let large = Layout::new(4 << 20, 1 << 40).unwrap();
        assert!(large.group_bytes >= 64 * large.entry_bytes && large.groups >= MANY_GROUPS);
    }

    #[test]
    fn layouts_fit() {
        for block in [512, 4096, 65536, 1 << 20, 4 << 20, 64 << 20] {
            for capacity in [1u64 << 20, 64 << 20, 1 << 30, 50 << 30, 1 << 40] {
                let Ok(layout) = Layout::new(block, capacity) else {
                    assert!(capacity < 17 * block + (1 << 20), "{block} {capacity}");
                    continue;
                };
                assert!(layout.groups >= MIN_GROUPS);
                assert!(layout.groups * layout.group_bytes <= capacity);
                assert!(layout.entry_bytes + INDEX_BYTES <= layout.group_bytes);
                assert_eq!(layout.group_bytes % PAGE_BYTES, 0);
                assert!(layout.buffer_bytes >= 4 * layout.entry_bytes);
                assert!(layout.group_bytes < 1 << 32, "foyer's offsets have 32 bits");
            }
        }
    }
}
