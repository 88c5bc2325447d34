//! Where blocks are kept.
//!
//! Invariant: what comes out under a key is what went in under it, checked where it came from disk.
//! Nothing here fails towards a reader: whatever goes wrong is a miss and a number.

mod codec;
mod directory;
mod disk;
mod hybrid;
#[cfg(test)]
pub(crate) mod map;
mod picker;
mod remembered;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use store::{ETag, ObjectKey, ObjectMeta};

use crate::files::WholeFile;
use crate::stats::{TierState, TierStats};
use crate::version::{BlockKey, Version};

pub(crate) use directory::{Directory, Refused, Trouble, host_name};
pub(crate) use hybrid::HybridBlocks;
pub(crate) use remembered::{METADATA_INDEX, Remembered};

/// What an object's metadata is remembered under: a version without a tag.
pub(crate) fn metadata_key(store: u64, key: &ObjectKey) -> BlockKey {
    let meta = ObjectMeta {
        size: 0,
        etag: ETag::parse(""),
        last_modified: SystemTime::UNIX_EPOCH,
        attributes: None,
    };
    BlockKey::new(&Arc::new(Version::new(store, key.clone(), meta)), METADATA_INDEX)
}

/// Keeps blocks; range logic and fetching need nothing else.
#[async_trait]
pub(crate) trait BlockCache: fmt::Debug + Send + Sync + 'static {
    /// A block in memory. Costs well below a microsecond and never waits.
    fn get(&self, key: &BlockKey) -> Option<Bytes>;

    /// True where [`Self::get`] would answer; does not count as a use.
    fn in_memory(&self, key: &BlockKey) -> bool;

    /// True where the disk tier most likely has the block. Costs no I/O.
    fn on_disk(&self, key: &BlockKey) -> bool;

    /// Reads a block of exactly `len` bytes from the disk tier into memory.
    async fn load(&self, key: &BlockKey, len: usize) -> Option<Bytes>;

    /// The whole version as a local file, where it lies complete as one. May open it, which is the only
    /// I/O; costs well below a microsecond where there are no files. Counts as a use of the object.
    fn whole(&self, object: &Arc<Version>) -> Option<Arc<WholeFile>>;

    /// A read of the object's file failed, was short or gave wrong bytes: it is verified at once, in the
    /// background, and not handed out before.
    fn suspect(&self, object: &Arc<Version>);

    /// Keeps a block in memory at once. The future, where there is a disk tier, ends when that has
    /// taken the block over or, after `patience`, refused it: waiting for it is what keeps a fill from
    /// outrunning the disk.
    fn insert(
        &self,
        key: BlockKey,
        data: Bytes,
        patience: Duration,
    ) -> Option<BoxFuture<'static, ()>>;

    /// What was remembered under a key without a block (see [`Remembered`]).
    async fn recall(&self, key: &BlockKey) -> Option<Remembered>;

    /// Remembers something small on disk only; lost where there is no disk tier.
    fn remember(&self, key: BlockKey, what: &Remembered);

    /// What was remembered under a key is not so any more: it is not recalled again, neither in this
    /// process nor, where the disk takes the word of it, in the next.
    fn unremember(&self, key: BlockKey);

    /// Waits until everything inserted so far is on disk or was refused.
    async fn flush(&self);

    /// Flushes and ends the disk tier; what is in memory stays.
    async fn close(&self);

    /// The memory tier's numbers.
    fn memory(&self) -> TierStats;

    /// The disk tier's numbers; `None` where none is configured.
    fn disk(&self) -> Option<TierStats>;

    /// Whether the disk tier takes blocks now.
    fn disk_state(&self) -> Option<TierState>;
}
