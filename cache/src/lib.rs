//! The cache: a [`Cache`] holds blocks in memory and on NVMe, and turns an origin into a
//! [`CachedStore`] that asks it as little as possible.
//!
//! Invariant: a reader never sees bytes of two versions in one body, nor an error of the cache
//! itself: a tier that fails is a miss, a counter and one warning. The version is part of every
//! block's key, so only metadata ever goes stale. The crate refuses to know any protocol.

mod admission;
mod blocks;
mod buffers;
mod cache;
mod config;
mod fetch;
mod files;
mod governor;
mod lists;
mod metadata;
mod metrics;
mod prefetch;
pub mod simulate;
mod span;
mod stats;
mod stored;
#[cfg(test)]
mod testing;
mod tiers;
mod version;

pub use admission::{Activity, Mode, SetReport, Why};
pub use cache::{Cache, OpenError};
pub use config::{CacheConfig, DiskConfig, FilesConfig, Immutable, Retention, StorePolicy};
pub use governor::{Governor, Lease};
pub use metrics::Metrics;
pub use stats::{FetchStats, FileTierStats, PrefetchStats, Stats, TierState, TierStats};
pub use stored::{CachedStore, Warmed};
