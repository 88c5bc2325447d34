//! The tiers together: memory and blocks in foyer, whole objects as files beside them.
//!
//! Invariant: a block that an origin sent goes to the disk once, to the block tier or to the part of a
//! file, and is found in whichever has it. Where the file tier is off this is the block tier.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::blocks::{
    BlockCache, Directory, HybridBlocks, METADATA_INDEX, Refused, Remembered, Trouble,
};
use crate::files::{self, FileTier, Route, WholeFile};
use crate::stats::{TierState, TierStats};
use crate::version::{BlockKey, Version};
use crate::{CacheConfig, Metrics};

/// Both tiers of one cache.
#[derive(Debug)]
pub(crate) struct TieredBlocks {
    blocks: Arc<HybridBlocks>,
    files: Option<Arc<FileTier>>,
}

impl TieredBlocks {
    /// Opens what is configured. A tier that cannot be used is left off and says why; only a directory
    /// of another process is an error.
    pub(crate) async fn open(config: &CacheConfig, metrics: &Metrics) -> Result<Self, Refused> {
        let Some(disk) = config.disk.as_ref().filter(|disk| disk.files.enabled) else {
            let blocks = Arc::new(HybridBlocks::open(config, metrics).await?);
            if let Some(disk) = config.disk.as_ref().filter(|_| blocks.disk().is_some()) {
                files::clear(&disk.path);
            }
            return Ok(Self { blocks, files: None });
        };
        let path = disk.path.clone();
        let directory = tokio::task::spawn_blocking(move || Directory::open(&path)).await;
        let directory = match directory {
            Ok(Ok(directory)) => Arc::new(directory),
            Ok(Err(Trouble::Locked(refused))) => return Err(refused),
            Ok(Err(Trouble::Unusable(reason))) => {
                let blocks = Arc::new(HybridBlocks::without_disk(config, metrics, reason).await);
                return Ok(Self { blocks, files: None });
            }
            Err(error) => {
                let reason = error.to_string();
                let blocks = Arc::new(HybridBlocks::without_disk(config, metrics, reason).await);
                return Ok(Self { blocks, files: None });
            }
        };
        let opened = FileTier::open(config, disk, Arc::clone(&directory), metrics).await;
        let files = opened.inspect_err(|reason| {
            tracing::warn!(reason, "the cache runs without its file tier");
        });
        let files = files.ok();
        let mut config = config.clone();
        let held = files.as_ref().map_or(0, |files| files.bytes());
        if let Some(disk) = config.disk.as_mut().filter(|_| files.is_some()) {
            #[allow(clippy::cast_sign_loss)] // The share was checked to be within 0 and 1.
            let share = (disk.capacity_bytes as f64 * disk.block_share) as u64;
            disk.capacity_bytes = share;
        }
        let blocks = HybridBlocks::open_in(&config, metrics, directory, held).await;
        let blocks = Arc::new(blocks);
        if let Some(files) = &files {
            let source: Weak<HybridBlocks> = Arc::downgrade(&blocks);
            files.set_source(source);
        }
        Ok(Self { blocks, files })
    }

    /// The file tier, where it runs.
    pub(crate) fn files(&self) -> Option<&Arc<FileTier>> {
        self.files.as_ref()
    }
}

#[async_trait]
impl BlockCache for TieredBlocks {
    fn get(&self, key: &BlockKey) -> Option<Bytes> {
        self.blocks.get(key)
    }

    fn in_memory(&self, key: &BlockKey) -> bool {
        self.blocks.in_memory(key)
    }

    fn on_disk(&self, key: &BlockKey) -> bool {
        let in_files = self.files.as_ref().is_some_and(|files| {
            if key.index == METADATA_INDEX { files.recalls(key) } else { files.has(key) }
        });
        in_files || self.blocks.on_disk(key)
    }

    async fn load(&self, key: &BlockKey, len: usize) -> Option<Bytes> {
        if let Some(files) = &self.files
            && let Some(data) = files.load(key, len).await
        {
            self.blocks.keep(key, data.clone());
            return Some(data);
        }
        self.blocks.load(key, len).await
    }

    fn whole(&self, object: &Arc<Version>) -> Option<Arc<WholeFile>> {
        self.files.as_ref()?.whole(object)
    }

    fn suspect(&self, object: &Arc<Version>) {
        if let Some(files) = &self.files {
            files.suspect(object);
        }
    }

    fn insert(
        &self,
        key: BlockKey,
        data: Bytes,
        patience: Duration,
    ) -> Option<BoxFuture<'static, ()>> {
        let Some(files) = &self.files else { return self.blocks.insert(key, data, patience) };
        match files.route(&key, data.len() as u64) {
            Route::Blocks => self.blocks.insert(key, data, patience),
            Route::Memory => {
                self.blocks.keep(&key, data);
                Some(std::future::ready(()).boxed())
            }
            Route::Part(place) => {
                self.blocks.keep(&key, data.clone());
                Some(Arc::clone(files).put(place, data, patience).boxed())
            }
        }
    }

    async fn recall(&self, key: &BlockKey) -> Option<Remembered> {
        let of_file = self.files.as_ref().and_then(|files| files.recall(key));
        let of_blocks = self.blocks.recall(key).await;
        // Both are hints; the younger one is worth more.
        of_file.into_iter().chain(of_blocks).max_by_key(|held| held.confirmed)
    }

    fn remember(&self, key: BlockKey, what: &Remembered) {
        if let Some(files) = &self.files {
            files.confirm(&key, what);
        }
        self.blocks.remember(key, what);
    }

    fn unremember(&self, key: BlockKey) {
        if let Some(files) = &self.files {
            files.unconfirm(&key);
        }
        self.blocks.unremember(key);
    }

    async fn flush(&self) {
        if let Some(files) = &self.files {
            files.flush().await;
        }
        self.blocks.flush().await;
    }

    async fn close(&self) {
        if let Some(files) = &self.files {
            files.close().await;
        }
        self.blocks.close().await;
    }

    fn memory(&self) -> TierStats {
        self.blocks.memory()
    }

    fn disk(&self) -> Option<TierStats> {
        self.blocks.disk()
    }

    fn disk_state(&self) -> Option<TierState> {
        self.blocks.disk_state()
    }
}
