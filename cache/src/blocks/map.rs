//! A block cache that is a map, for tests of what lies above it.
//!
//! Invariant: it forgets only when told to, and its disk, which has nothing, does what it is told.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::{BlockCache, Remembered};
use crate::files::WholeFile;
use crate::stats::{TierState, TierStats};
use crate::version::{BlockKey, Version};

#[derive(Debug, Default)]
pub(crate) struct MapBlocks {
    blocks: Mutex<HashMap<BlockKey, Bytes>>,
    /// The disk says that it has everything, and reads never end.
    pub(crate) disk_hangs: AtomicBool,
    /// Blocks wait for the disk until patience ends.
    pub(crate) disk_slow: AtomicBool,
    /// There is a disk tier, which takes nothing.
    pub(crate) disk_paused: AtomicBool,
    /// What lies whole as a file; one that was doubted lies there no more.
    pub(crate) files: Mutex<HashMap<u64, Arc<WholeFile>>>,
}

impl MapBlocks {
    pub(crate) fn forget_all(&self) {
        self.blocks.lock().clear();
    }

    pub(crate) fn len(&self) -> usize {
        self.blocks.lock().len()
    }
}

#[async_trait]
impl BlockCache for MapBlocks {
    fn get(&self, key: &BlockKey) -> Option<Bytes> {
        self.blocks.lock().get(key).cloned()
    }

    fn in_memory(&self, key: &BlockKey) -> bool {
        self.blocks.lock().contains_key(key)
    }

    fn on_disk(&self, _: &BlockKey) -> bool {
        self.disk_hangs.load(Ordering::Relaxed)
    }

    async fn load(&self, _: &BlockKey, _: usize) -> Option<Bytes> {
        if self.disk_hangs.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        None
    }

    fn whole(&self, object: &Arc<Version>) -> Option<Arc<WholeFile>> {
        self.files.lock().get(&object.id()).cloned()
    }

    fn suspect(&self, object: &Arc<Version>) {
        self.files.lock().remove(&object.id());
    }

    fn insert(
        &self,
        key: BlockKey,
        data: Bytes,
        patience: Duration,
    ) -> Option<BoxFuture<'static, ()>> {
        self.blocks.lock().insert(key, data);
        let slow = self.disk_slow.load(Ordering::Relaxed);
        slow.then(|| tokio::time::sleep(patience).boxed())
    }

    async fn recall(&self, _: &BlockKey) -> Option<Remembered> {
        if self.disk_hangs.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        None
    }

    fn remember(&self, _: BlockKey, _: &Remembered) {}

    fn unremember(&self, _: BlockKey) {}

    async fn flush(&self) {}

    async fn close(&self) {}

    fn memory(&self) -> TierStats {
        TierStats::default()
    }

    fn disk(&self) -> Option<TierStats> {
        None
    }

    fn disk_state(&self) -> Option<TierState> {
        let paused = self.disk_paused.load(Ordering::Relaxed);
        paused.then(|| TierState { up: false, reason: Some("paused".to_owned()) })
    }
}
