//! A store whose local copies are not handed out: `fuse.passthrough: off`.
//!
//! Invariant: what is asked counts as it does otherwise, so that the cache completes the same
//! objects; only the file stays here.

use async_trait::async_trait;
use cache::CachedStore;
use std::sync::Arc;
use store::{ETag, LocalCopy, NoCopy, ObjectKey, Residency, Resident};

/// A store that answers every read itself.
#[derive(Debug)]
pub(super) struct ServedHere(pub(super) Arc<CachedStore>);

#[async_trait]
impl Residency for ServedHere {
    async fn residency(&self, key: &ObjectKey, etag: &ETag, size: u64) -> Resident {
        self.0.residency(key, etag, size).await
    }

    async fn local_copy(
        &self,
        key: &ObjectKey,
        etag: &ETag,
        size: u64,
    ) -> Result<LocalCopy, NoCopy> {
        self.0.local_copy(key, etag, size).await.and(Err(NoCopy::Off))
    }
}
