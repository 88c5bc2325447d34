//! What the cache is doing, for people and for `warpdrive stats`.
//!
//! Invariant: a snapshot of the counters in [`crate::Metrics`] and of the tiers; reading it costs
//! nothing that a reader would notice. It names no key.

use std::collections::BTreeMap;

use serde::Serialize;

/// A snapshot of the cache.
#[derive(Debug, Clone, Serialize)]
pub struct Stats {
    /// The memory tier.
    pub memory: TierStats,
    /// The disk tier's numbers, where it runs.
    pub disk: Option<TierStats>,
    /// Whether the disk tier runs, where one is configured.
    pub disk_state: Option<TierState>,
    /// Whole objects as files, where they are kept so.
    pub files: Option<FileTierStats>,
    /// Blocks that readers found in any tier.
    pub hits: u64,
    /// Blocks that readers needed from an origin.
    pub misses: u64,
    /// Blocks not written to disk, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Blocks of the disk tier that could not be used.
    pub bad_blocks: u64,
    /// Bytes written to the disk tier and found there.
    pub disk_filled_bytes: u64,
    /// Fetching from origins.
    pub fetch: FetchStats,
    /// Prefetching.
    pub prefetch: PrefetchStats,
    /// Answers from expired metadata while an origin gave none.
    pub stale_served: u64,
    /// Revalidations by result: `same`, `changed`, `gone`, `outage`, `error`.
    pub revalidations: BTreeMap<String, u64>,
    /// Objects whose metadata is known, of all stores.
    pub metadata_entries: u64,
}

/// One tier.
#[derive(Debug, Clone, Default, Serialize)]
pub struct TierStats {
    /// Bytes in use. On disk a multiple of the group that is evicted at once.
    pub bytes: u64,
    /// Bytes that fit.
    pub capacity_bytes: u64,
    /// Blocks that readers found here.
    pub hits: u64,
    /// Evictions: blocks from memory, groups of blocks from disk.
    pub evictions: u64,
    /// Bytes waiting to be written.
    pub waiting_bytes: u64,
}

/// Whole objects as files.
#[derive(Debug, Clone, Serialize)]
pub struct FileTierStats {
    /// Whether the tier takes objects. What it has is served all the same.
    pub state: TierState,
    /// The file system below the cache, such as `ext4`.
    pub file_system: String,
    /// True where that is stacked on another one (an overlay): the kernel then refuses its files for
    /// passthrough.
    pub stacked: bool,
    /// Objects that lie whole.
    pub files: u64,
    /// Objects that are becoming files.
    pub parts: u64,
    /// Bytes on disk of both.
    pub bytes: u64,
    /// Bytes that they may take now: the high water less what blocks and indexes take, and less what
    /// the file system needs.
    pub capacity_bytes: u64,
    /// Objects that became files.
    pub published: u64,
    /// Bytes written to files.
    pub written_bytes: u64,
    /// Bytes of them that were copied from blocks that were here already.
    pub promoted_bytes: u64,
    /// Files that made room for others.
    pub evictions: u64,
    /// Objects that did not become files, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Files that are being verified because of a doubt.
    pub suspect: u64,
    /// Files that did not hold what they should, and were removed.
    pub bad: u64,
    /// Bytes that the scrubber verified.
    pub scrubbed_bytes: u64,
    /// What admission knows of each data set.
    pub sets: Vec<crate::SetReport>,
}

/// Whether a tier takes and serves blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TierState {
    /// True where it does.
    pub up: bool,
    /// Why not.
    pub reason: Option<String>,
}

/// Fetching from origins.
#[derive(Debug, Clone, Default, Serialize)]
pub struct FetchStats {
    /// Ranged GETs.
    pub requests: u64,
    /// Bytes received.
    pub bytes: u64,
    /// Requests sent again.
    pub retries: u64,
    /// Fetches that failed for good.
    pub failures: u64,
    /// Requests in flight.
    pub in_flight: u64,
    /// Blocks that a reader got from a fetch that another had begun.
    pub joins: u64,
}

/// Prefetching.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PrefetchStats {
    /// Bytes fetched before anyone asked.
    pub bytes: u64,
    /// Blocks of them that were then read.
    pub hits: u64,
    /// Blocks of them that were not.
    pub wasted: u64,
    /// Bytes in flight.
    pub in_flight_bytes: u64,
}
