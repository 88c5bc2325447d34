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
