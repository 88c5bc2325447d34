//! The block cache on foyer: memory, and NVMe where there is one.
//!
//! Invariant: memory is looked at without waiting; a disk read is verified before anyone sees it; a
//! disk tier that fails is off, and says why.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use foyer::{Event, EventListener, HybridCacheProperties, Load, Location};
use futures::FutureExt;
use futures::future::BoxFuture;

use super::codec::Block;
use super::directory::{Directory, Refused, Trouble};
use super::picker::Occupancy;
use super::writer::{Engine, Writer};
use super::{BlockCache, Remembered, disk};
use crate::files::WholeFile;
use crate::stats::{TierState, TierStats};
use crate::version::{BlockKey, Version};
use crate::{CacheConfig, Metrics};

/// Bytes of blocks that wait for the disk, beside those in foyer's buffers.
const QUEUE_BYTES: u64 = 48 << 20;

/// Counts what memory evicts.
#[derive(Debug)]
pub(crate) struct Departures {
    metrics: Metrics,
    /// Without a disk tier, leaving memory is leaving the cache.
    final_: AtomicBool,
}

impl EventListener for Departures {
    type Key = BlockKey;
    type Value = Block;

    fn on_leave(&self, reason: Event, _: &BlockKey, _: &Block) {
        if reason == Event::Evict {
            self.metrics.memory_evictions.inc();
            if self.final_.load(Ordering::Relaxed) {
                self.metrics.evictions.inc();
            }
        }
    }
}

#[derive(Debug)]
struct Disk {
    writer: Arc<Writer>,
    occupancy: Arc<Occupancy>,
    group_bytes: u64,
    capacity_bytes: u64,
    closed: AtomicBool,
    /// Holds the lock as long as files may be written.
    _directory: Arc<Directory>,
}

#[derive(Debug)]
pub(crate) struct HybridBlocks {
    engine: Engine,
    disk: Option<Disk>,
    /// Why a configured disk tier is off.
    off: Option<String>,
    metrics: Metrics,
}

impl HybridBlocks {
    /// Opens both tiers. A disk tier that cannot be used is left off, said once and kept in
    /// [`BlockCache::disk_state`]; only a directory of another process is an error.
    pub(crate) async fn open(config: &CacheConfig, metrics: &Metrics) -> Result<Self, Refused> {
        let Some(disk) = &config.disk else {
            return Ok(Self::in_memory_alone(config, metrics, None).await);
        };
        let path = disk.path.clone();
        let directory = tokio::task::spawn_blocking(move || Directory::open(&path)).await;
        match directory {
            Ok(Ok(directory)) => Ok(Self::open_in(config, metrics, Arc::new(directory), 0).await),
            Ok(Err(Trouble::Locked(refused))) => Err(refused),
            Ok(Err(Trouble::Unusable(reason))) => {
                Ok(Self::without_disk(config, metrics, reason).await)
            }
            Err(error) => Ok(Self::without_disk(config, metrics, error.to_string()).await),
        }
    }

    /// As [`Self::open`], in a directory that this process holds, where `spare_bytes` are taken by what
    /// gives way to blocks.
    pub(crate) async fn open_in(
        config: &CacheConfig,
        metrics: &Metrics,
        directory: Arc<Directory>,
        spare_bytes: u64,
    ) -> Self {
        let Some(disk) = &config.disk else {
            return Self::in_memory_alone(config, metrics, None).await;
        };
        let departures = Departures { metrics: metrics.clone(), final_: AtomicBool::new(false) };
        let opened =
            disk::open(config, disk, directory, spare_bytes, Arc::new(departures), metrics);
        match opened.await {
            Ok(opened) => Self::with_disk(opened, metrics),
            Err(reason) => Self::without_disk(config, metrics, reason).await,
        }
    }

    /// Memory alone, because of what is said here, once.
    pub(crate) async fn without_disk(
        config: &CacheConfig,
        metrics: &Metrics,
        reason: String,
    ) -> Self {
        tracing::warn!(reason, "the cache runs without its disk tier");
        Self::in_memory_alone(config, metrics, Some(reason)).await
    }

    async fn in_memory_alone(config: &CacheConfig, metrics: &Metrics, off: Option<String>) -> Self {
        let departures = Departures { metrics: metrics.clone(), final_: AtomicBool::new(true) };
        let departures = Arc::new(departures);
        let engine = disk::open_memory(config, departures)
            .await
            .expect("a memory tier does no I/O that could fail");
        Self { engine, disk: None, off, metrics: metrics.clone() }
    }

    fn with_disk(opened: disk::Opened, metrics: &Metrics) -> Self {
        let layout = opened.layout;
        let writer = Writer::start(
            opened.engine.clone(),
            layout.buffer_bytes,
            QUEUE_BYTES.max(2 * layout.entry_bytes),
            layout.entry_bytes,
            metrics.clone(),
        );
        let tier = Disk {
            writer: Arc::new(writer),
            occupancy: opened.occupancy,
            group_bytes: layout.group_bytes,
            capacity_bytes: layout.groups * layout.group_bytes,
            closed: AtomicBool::new(false),
            _directory: opened.directory,
        };
        let metrics = metrics.clone();
        Self { engine: opened.engine, disk: Some(tier), off: None, metrics }
    }

    /// Keeps a block in memory, and nowhere else.
    pub(crate) fn keep(&self, key: &BlockKey, data: Bytes) {
        let block = Block::new(key, data);
        let properties = HybridCacheProperties::default().with_location(Location::InMem);
        self.engine.memory().insert_with_properties(key.clone(), block, properties);
    }

    fn open_disk(&self) -> Option<&Disk> {
        self.disk.as_ref().filter(|disk| !disk.closed.load(Ordering::Relaxed))
    }

    /// Hands a record to the disk alone, if it takes it at once.
    fn write_record(&self, key: BlockKey, data: Bytes) -> bool {
        let Some(disk) = self.open_disk() else { return false };
        let block = Block::new(&key, data);
        // Through memory, as everything in foyer, and out of it at once.
        let entry = self.engine.memory().insert(key, block);
        let taken = disk.writer.try_write(&entry);
        let key = entry.key().clone();
        drop(entry);
        self.engine.memory().remove(&key);
        taken
    }

    /// Reads an entry from disk; what was there and could not be used is counted as bad.
    async fn read(&self, key: &BlockKey) -> Option<Block> {
        if !self.on_disk(key) {
            return None;
        }
        let block = match self.engine.storage().load(key).await {
            Ok(Load::Entry { value, .. }) => value.verified(key),
            Ok(Load::Piece { piece, .. }) => Some(piece.value().clone()),
            // foyer forgets an entry whose own checksum is wrong, and says that it has none.
            Ok(Load::Miss) => None,
            Ok(Load::Throttled) => return None,
            Err(error) => {
                tracing::debug!(%error, "a block could not be read from the cache directory");
                None
            }
        };
        if block.is_none() {
            self.metrics.bad_blocks.inc();
        }
        block
    }
}

#[async_trait]
impl BlockCache for HybridBlocks {
    fn get(&self, key: &BlockKey) -> Option<Bytes> {
        self.engine.memory().get(key).map(|entry| entry.value().data.clone())
    }

    fn in_memory(&self, key: &BlockKey) -> bool {
        self.engine.memory().contains(key)
    }

    fn on_disk(&self, key: &BlockKey) -> bool {
        self.open_disk().is_some() && self.engine.storage().may_contains(key)
    }

    async fn load(&self, key: &BlockKey, len: usize) -> Option<Bytes> {
        let block = self.read(key).await?;
        if block.data.len() != len {
            self.metrics.bad_blocks.inc();
            return None;
        }
        let data = block.data.clone();
        let properties = HybridCacheProperties::default().with_location(Location::InMem);
        self.engine.memory().insert_with_properties(key.clone(), block, properties);
        Some(data)
    }

    fn whole(&self, _: &Arc<Version>) -> Option<Arc<WholeFile>> {
        None
    }

    fn suspect(&self, _: &Arc<Version>) {}

    fn insert(
        &self,
        key: BlockKey,
        data: Bytes,
        patience: Duration,
    ) -> Option<BoxFuture<'static, ()>> {
        let block = Block::new(&key, data);
        let entry = self.engine.memory().insert(key, block);
        let disk = self.open_disk()?;
        let Some(entry) = disk.writer.offer(entry) else {
            return Some(std::future::ready(()).boxed());
        };
        let writer = Arc::clone(&disk.writer);
        Some(async move { writer.write(entry, patience).await }.boxed())
    }

    async fn recall(&self, key: &BlockKey) -> Option<Remembered> {
        let block = self.read(key).await?;
        // An empty one says that there is none.
        Remembered::decode(&block.data)
    }

    fn remember(&self, key: BlockKey, what: &Remembered) {
        _ = self.write_record(key, what.encode());
    }

    fn unremember(&self, key: BlockKey) {
        if self.open_disk().is_none() {
            return;
        }
        // At once for this process. foyer keeps no word of it on disk, where the record would be found
        // again by the next: an empty one takes its place there.
        self.engine.storage().delete(&key);
        if !self.write_record(key, Bytes::new()) {
            self.metrics.dropped.with_label_values(&["record"]).inc();
        }
    }

    async fn flush(&self) {
        if let Some(disk) = self.open_disk() {
            disk.writer.flush().await;
        }
    }

    async fn close(&self) {
        let Some(disk) = &self.disk else { return };
        disk.writer.flush().await;
        if disk.closed.swap(true, Ordering::Relaxed) {
            return;
        }
        // The engine may have broken over a write that failed: what it had not written is fetched again.
        let closing = AssertUnwindSafe(async { self.engine.storage().close().await });
        let why = match closing.catch_unwind().await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "its engine had broken".to_owned(),
        };
        tracing::warn!(why, "the cache directory was not closed cleanly");
    }

    fn memory(&self) -> TierStats {
        TierStats {
            bytes: self.engine.memory().usage() as u64,
            capacity_bytes: self.engine.memory().capacity() as u64,
            hits: self.metrics.memory_hits.get(),
            evictions: self.metrics.memory_evictions.get(),
            waiting_bytes: 0,
        }
    }

    fn disk(&self) -> Option<TierStats> {
        let disk = self.disk.as_ref()?;
        let groups = disk.occupancy.groups.load(Ordering::Relaxed);
        let clean = disk.occupancy.clean.load(Ordering::Relaxed);
        Some(TierStats {
            bytes: groups.saturating_sub(clean) * disk.group_bytes,
            capacity_bytes: disk.capacity_bytes,
            hits: self.metrics.disk_hits.get(),
            evictions: disk.occupancy.evicted.load(Ordering::Relaxed),
            waiting_bytes: disk.writer.waiting_bytes(),
        })
    }

    fn disk_state(&self) -> Option<TierState> {
        if let Some(reason) = &self.off {
            return Some(TierState { up: false, reason: Some(reason.clone()) });
        }
        let disk = self.disk.as_ref()?;
        let reason = if disk.closed.load(Ordering::Relaxed) {
            Some("closed".to_owned())
        } else {
            disk.writer.paused()
        };
        Some(TierState { up: reason.is_none(), reason })
    }
}
