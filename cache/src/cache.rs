//! The cache of one process: its tiers, its fetcher, and the stores attached to it.
//!
//! Invariant: one cache directory has one process. Everything that can fail at run time and is not
//! that lock leaves a tier off, never the process.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use store::Store;
use tokio::sync::Semaphore;
use twox_hash::XxHash3_64;

use crate::blocks::{BlockCache, Refused, host_name};
use crate::fetch::{Fetcher, Gate, Origin};
use crate::files::FileTier;
use crate::governor::Governor;
use crate::lists::ListCache;
use crate::metadata::MetadataCache;
use crate::prefetch::Prefetcher;
use crate::simulate::Recorder;
use crate::stats::{FetchStats, PrefetchStats, Stats};
use crate::tiers::TieredBlocks;
use crate::{CacheConfig, CachedStore, Metrics, StorePolicy};

/// How often gauges are brought up to date: more often than anything scrapes.
const GAUGE_INTERVAL: Duration = Duration::from_secs(2);

/// Objects that are completed in the background at once; another is when it is opened the next time.
const COMPLETIONS: usize = 4;

/// Why a cache cannot be opened where going on would be unsafe or senseless.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Another process holds the cache directory. Stop it, or give this one a directory of its own.
    #[error("cache directory `{}` is used by {}: stop it or configure another directory", path.display(), holder(*pid, host.as_deref()))]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The process that holds it, where it could be read.
        pid: Option<u32>,
        /// The host that it called itself, which is its pod in Kubernetes.
        host: Option<String>,
    },
    /// The configuration cannot work; every problem is named.
    #[error("cache configuration: {0}")]
    Invalid(String),
}

fn holder(pid: Option<u32>, host: Option<&str>) -> String {
    let process = pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
    // Numbers of processes mean nothing across containers.
    match host.filter(|host| *host != host_name()) {
        Some(host) => format!("{process} of `{host}`"),
        None => process,
    }
}

/// What all attached stores share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: CacheConfig,
    pub(crate) blocks: Arc<dyn BlockCache>,
    /// Whole objects as files, where they are kept so.
    pub(crate) files: Option<Arc<FileTier>>,
    pub(crate) fetcher: Arc<Fetcher>,
    pub(crate) prefetcher: Prefetcher,
    /// Bytes that are in no tier.
    pub(crate) governor: Arc<Governor>,
    /// Where uses of objects are recorded.
    pub(crate) trace: Option<Recorder>,
    /// Objects that are completed in the background because they were opened again.
    pub(crate) completions: Semaphore,
    pub(crate) metrics: Metrics,
}

impl Shared {
    pub(crate) fn new(
        config: CacheConfig,
        blocks: Arc<dyn BlockCache>,
        files: Option<Arc<FileTier>>,
        metrics: Metrics,
    ) -> Arc<Self> {
        let governor = Governor::new(config.transit_bytes);
        let fetcher =
            Fetcher::new(&config, Arc::clone(&blocks), Arc::clone(&governor), metrics.clone());
        Arc::new(Self {
            prefetcher: Prefetcher::new(&config),
            governor,
            trace: config.trace.as_deref().and_then(record),
            completions: Semaphore::new(COMPLETIONS),
            config,
            blocks,
            files,
            fetcher,
            metrics,
        })
    }
}

/// Begins a trace. One that cannot be written is no reason not to serve.
fn record(path: &Path) -> Option<Recorder> {
    let recorder = Recorder::open(path, Recorder::MOST_BYTES);
    let recorder = recorder.inspect_err(|error| {
        tracing::warn!(path = %path.display(), %error, "uses of objects are not recorded");
    });
    recorder.ok()
}

/// The cache of this process. Give it to no second one: a cache directory has one owner.
#[derive(Debug)]
pub struct Cache {
    shared: Arc<Shared>,
    origins: Mutex<Vec<Weak<Origin>>>,
}

impl Cache {
    /// Opens the tiers. A disk tier that cannot be used is left off: one warning says why, and
    /// [`Cache::stats`] goes on saying it.
    ///
    /// Must be called within a tokio runtime.
    pub async fn open(config: CacheConfig, metrics: Metrics) -> Result<Arc<Self>, OpenError> {
        let config = config.checked().map_err(OpenError::Invalid)?;
        let blocks = TieredBlocks::open(&config, &metrics)
            .await
            .map_err(|Refused { path, pid, host }| OpenError::Locked { path, pid, host })?;
        let files = blocks.files().cloned();
        let cache = Self::with(config, Arc::new(blocks), files, metrics);
        let weak = Arc::downgrade(&cache);
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(GAUGE_INTERVAL);
            loop {
                tick.tick().await;
                let Some(cache) = weak.upgrade() else { break };
                cache.update_gauges();
            }
        });
        Ok(cache)
    }

    #[cfg(test)]
    pub(crate) fn over(
        config: CacheConfig,
        blocks: Arc<dyn BlockCache>,
        metrics: Metrics,
    ) -> Arc<Self> {
        Self::with(config, blocks, None, metrics)
    }

    fn with(
        config: CacheConfig,
        blocks: Arc<dyn BlockCache>,
        files: Option<Arc<FileTier>>,
        metrics: Metrics,
    ) -> Arc<Self> {
        let shared = Shared::new(config, blocks, files, metrics);
        Arc::new(Self { shared, origins: Mutex::default() })
    }

    /// A store in front of `origin` that keeps what it reads. `name` is for messages and metrics.
    /// `identity` says whose bytes they are (endpoint, bucket, prefix): blocks on disk are found
    /// again by it after a restart, and two stores of one identity share them.
    pub fn attach(
        self: &Arc<Self>,
        name: &str,
        identity: &str,
        origin: Arc<dyn Store>,
        policy: StorePolicy,
    ) -> Arc<CachedStore> {
        let id = XxHash3_64::oneshot(identity.as_bytes());
        if let Some(files) = &self.shared.files {
            files.pin(id, policy.retention);
        }
        let config = &self.shared.config;
        let origin = Arc::new(Origin {
            id,
            name: name.to_owned(),
            store: origin,
            gate: Gate::new(config.max_parallel_fetch),
            meta: MetadataCache::new(
                id,
                policy.clone(),
                config.metadata_entries,
                Arc::clone(&self.shared.blocks),
            ),
            policy,
        });
        let mut origins = self.origins.lock();
        origins.retain(|o| o.strong_count() > 0);
        origins.push(Arc::downgrade(&origin));
        let lists = ListCache::new(config.listed_entries);
        Arc::new(CachedStore::new(Arc::clone(&self.shared), origin, lists))
    }

    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// What the cache is doing now.
    pub fn stats(&self) -> Stats {
        self.update_gauges();
        let metrics = &self.shared.metrics;
        let origins: Vec<_> = self.origins.lock().iter().filter_map(Weak::upgrade).collect();
        Stats {
            memory: self.shared.blocks.memory(),
            disk: self.shared.blocks.disk(),
            disk_state: self.shared.blocks.disk_state(),
            files: self.shared.files.as_ref().map(|files| files.stats()),
            hits: metrics.hits.get(),
            misses: metrics.misses.get(),
            dropped: Metrics::by_label(&metrics.dropped),
            bad_blocks: metrics.bad_blocks.get(),
            disk_filled_bytes: metrics.disk_filled.get(),
            fetch: FetchStats {
                requests: metrics.fetches.get(),
                bytes: metrics.fetched_bytes.get(),
                retries: metrics.fetch_retries.get(),
                failures: Metrics::by_label(&metrics.fetch_failures).values().sum(),
                in_flight: metrics.fetching.get().max(0).cast_unsigned(),
                joins: metrics.joins.get(),
            },
            prefetch: PrefetchStats {
                bytes: metrics.prefetched_bytes.get(),
                hits: metrics.readahead_hits.get(),
                wasted: metrics.readahead_wasted.get(),
                in_flight_bytes: metrics.prefetch_in_flight.get().max(0).cast_unsigned(),
            },
            stale_served: metrics.stale_served.get(),
            revalidations: Metrics::by_label(&metrics.revalidations),
            metadata_entries: origins.iter().map(|o| o.meta.len() as u64).sum(),
        }
    }

    fn update_gauges(&self) {
        let metrics = &self.shared.metrics;
        let memory = self.shared.blocks.memory();
        let disk = self.shared.blocks.disk();
        metrics.tier_size.with_label_values(&["memory"]).set(memory.bytes.cast_signed());
        metrics.tier_up.with_label_values(&["memory"]).set(1);
        if let Some(state) = self.shared.blocks.disk_state() {
            metrics.tier_up.with_label_values(&["disk"]).set(i64::from(state.up));
        }
        if let Some(disk) = &disk {
            metrics.tier_size.with_label_values(&["disk"]).set(disk.bytes.cast_signed());
        }
        // Both disk tiers have one capacity, which files can use all of.
        let (mut bytes, mut capacity_bytes) = {
            let largest = disk.unwrap_or(memory);
            (largest.bytes, largest.capacity_bytes)
        };
        if let (Some(files), Some(configured)) = (&self.shared.files, &self.shared.config.disk) {
            files.update_gauges();
            let held = files.bytes();
            metrics.tier_size.with_label_values(&["files"]).set(held.cast_signed());
            metrics.tier_up.with_label_values(&["files"]).set(i64::from(files.state().up));
            bytes += held;
            capacity_bytes = configured.capacity_bytes;
        }
        metrics.size.set(bytes.cast_signed());
        metrics.utilization.set(bytes as f64 / capacity_bytes.max(1) as f64);
    }

    /// What bounds the bytes that are in no tier; uploads that pass by the cache share it.
    pub fn governor(&self) -> &Arc<Governor> {
        &self.shared.governor
    }

    /// Waits until everything that was fetched is on disk.
    pub async fn flush(&self) {
        self.shared.blocks.flush().await;
    }

    /// Flushes the disk tier and ends it. Readers go on being served from memory and origin.
    pub async fn close(&self) {
        self.shared.blocks.close().await;
    }
}
