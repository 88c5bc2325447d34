//! Filling on purpose, and saying truthfully what is held.
//!
//! Invariant: an object counts as warm only where its blocks were looked for afterwards and found in
//! the tier that is meant to keep them.

use std::sync::Arc;

use serde::Serialize;
use store::{Error, ErrorKind, ObjectKey, ObjectMeta, Result};

use super::CachedStore;
use super::lookup::keys;
use crate::cache::Shared;
use crate::fetch::{FILL_PATIENCE, Origin, Priority, Want, Wanted};
use crate::files::FileTier;
use crate::span::{block_count, block_range};
use crate::version::Version;

/// Merged GETs that one object has in flight while it is warmed.
const WARM_FETCHES: u32 = 4;

/// How often blocks that are missing after the flush are asked for again.
const ROUNDS: usize = 2;

/// Blocks that are looked up before other tasks get their turn.
const LOOKUP_BATCH: u32 = 2048;

/// What became of an object that was to be warmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Warmed {
    /// Bytes of the object.
    pub size: u64,
    /// Bytes that had to be fetched from the origin.
    pub fetched_bytes: u64,
    /// Bytes found afterwards: on disk where there is a disk tier, else in memory.
    pub resident_bytes: u64,
    /// Why not all of them, if so.
    pub reason_if_not: Option<String>,
}

impl CachedStore {
    /// Brings what is missing of an object with the priority of a prefetch, waits until it is on disk
    /// (in memory where there is no disk tier) and looks whether it is. `meta`, where given, saves
    /// asking; a version that the origin no longer has is [`ErrorKind::PreconditionFailed`].
    pub async fn warm(&self, key: &ObjectKey, meta: Option<ObjectMeta>) -> Result<Warmed> {
        let object = match meta {
            Some(meta) => Arc::new(Version::new(self.origin.id, key.clone(), meta)),
            None => self.known(key, false, None).await?,
        };
        let size = object.meta.size;
        let block_bytes = self.shared.config.block_bytes;
        let count = block_count(block_bytes, size).ok_or_else(|| {
            let context = format!("`{key}` has too many blocks of {block_bytes} bytes");
            Error::new(ErrorKind::Unsupported, context)
        })?;
        let mut fetched_bytes = 0;
        if let Some(files) = &self.shared.files {
            files.want_whole(&object);
        }
        let mut resident_bytes = self.resident_bytes(&object, true).await;
        if let Some(files) = self.shared.files.as_ref().filter(|_| resident_bytes == size) {
            // All of it is here, some of it perhaps as blocks.
            files.gather(&object).await;
            files.flush().await;
        }
        for _ in 0..ROUNDS {
            if resident_bytes == size {
                break;
            }
            fetched_bytes += fill(&self.shared, &self.origin, &object, count).await?;
            if let Some(files) = &self.shared.files {
                files.gather(&object).await;
            }
            self.shared.blocks.flush().await;
            resident_bytes = self.resident_bytes(&object, true).await;
        }
        let reason_if_not = (resident_bytes < size).then(|| self.why_not(size));
        Ok(Warmed { size, fetched_bytes, resident_bytes, reason_if_not })
    }

    fn why_not(&self, size: u64) -> String {
        let blocks = &self.shared.blocks;
        if let Some(state) = blocks.disk_state()
            && let Some(reason) = state.reason
        {
            return format!("the disk tier is off: {reason}");
        }
        let tier = blocks.disk().unwrap_or_else(|| blocks.memory());
        if size > tier.capacity_bytes {
            return format!("larger than the cache of {} bytes", tier.capacity_bytes);
        }
        "evicted by other blocks while it was being filled: the cache is full".to_owned()
    }

    /// Completes an object that was opened again, in the background, where that is worth it: it is
    /// small, or most of it is here.
    pub(super) fn complete(&self, object: Arc<Version>) {
        let Some(count) = block_count(self.shared.config.block_bytes, object.meta.size) else {
            return;
        };
        let store = self.clone();
        tokio::spawn(async move {
            // Whoever comes while enough are being completed comes again.
            let Ok(_turn) = store.shared.completions.try_acquire() else { return };
            let Some(files) = &store.shared.files else { return };
            let held = || store.resident_bytes(&object, false);
            if !FileTier::is_small(object.meta.size) && held().await < object.meta.size / 2 {
                return;
            }
            if !files.want_whole(&object) {
                return;
            }
            if let Err(error) = fill(&store.shared, &store.origin, &object, count).await {
                tracing::debug!(key = %object.key, %error, "an object was not completed");
                return;
            }
            files.gather(&object).await;
        });
    }

    /// Bytes of a version that are held: in any tier, or only in the one that keeps them.
    pub(super) async fn resident_bytes(&self, object: &Arc<Version>, kept: bool) -> u64 {
        let block_bytes = self.shared.config.block_bytes;
        let size = object.meta.size;
        if self.shared.files.as_ref().is_some_and(|files| files.is_whole(object)) {
            return size;
        }
        let blocks = &self.shared.blocks;
        // A disk tier that takes nothing now is still the one that was meant to keep them.
        let disk = blocks.disk_state().is_some();
        let mut held = 0;
        for key in keys(object, 0..block_count(block_bytes, size).unwrap_or(0)) {
            let here = match (kept, disk) {
                (true, true) => blocks.on_disk(&key),
                (true, false) => blocks.in_memory(&key),
                (false, _) => blocks.in_memory(&key) || blocks.on_disk(&key),
            };
            if here {
                let range = block_range(key.index, block_bytes, size);
                held += range.end - range.start;
            }
            if key.index % LOOKUP_BATCH == LOOKUP_BATCH - 1 {
                tokio::task::yield_now().await;
            }
        }
        held
    }
}

/// Fetches what is missing, a few merged GETs at a time. Returns the bytes that were missing
/// everywhere.
async fn fill(
    shared: &Arc<Shared>,
    origin: &Arc<Origin>,
    object: &Arc<Version>,
    count: u32,
) -> Result<u64> {
    let step = shared.config.fetch_blocks().saturating_mul(WARM_FETCHES);
    let blocks = &shared.blocks;
    let disk = blocks.disk_state().is_some_and(|s| s.up);
    let mut fetched = 0;
    let mut start = 0;
    while start < count {
        let end = start.saturating_add(step).min(count);
        // Runs of blocks that the tier lacks; what it has is not even read.
        let missing: Vec<u32> = keys(object, start..end)
            // What a disk that takes nothing still has is not fetched either.
            .filter(|key| !blocks.on_disk(key) && (disk || !blocks.in_memory(key)))
            .map(|key| key.index)
            .collect();
        start = end;
        for run in missing.chunk_by(|a, b| a + 1 == *b) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
            let (origin, priority) = (origin, Priority::Prefetch);
            let range = *first..*last + 1;
            let blocks_of = range.clone();
            let want =
                Want { origin, object, blocks: blocks_of, priority, ahead: false, cold: false };
            for (key, wanted) in keys(object, range).zip(shared.fetcher.want(&want)) {
                match wanted {
                    // In memory and not on disk: it was dropped once, and is written again.
                    Wanted::Ready(data) => {
                        if let Some(spill) = blocks.insert(key, data, FILL_PATIENCE) {
                            spill.await;
                        }
                    }
                    Wanted::Flight(flight) => {
                        let ended = "the task that fetched a block ended early";
                        let landed = flight
                            .wait()
                            .await
                            .unwrap_or_else(|| Err(Error::new(ErrorKind::Internal, ended)));
                        if let Err(error) = &landed
                            && error.kind() == ErrorKind::PreconditionFailed
                        {
                            origin.meta.forget(&object.key, object.etag());
                        }
                        fetched += landed?.len() as u64;
                    }
                }
            }
        }
    }
    Ok(fetched)
}
