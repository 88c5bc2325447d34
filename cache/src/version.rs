//! One version of one object, and the key of a block of it.
//!
//! Invariant: two versions are equal exactly when store, key and `ETag` are; hashes only speed that
//! up, so no collision can ever serve another object's bytes. Hashes are the same in every process.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use store::{ETag, ObjectKey, ObjectMeta};
use twox_hash::XxHash3_64;

/// One version of an object of one attached store.
#[derive(Debug, Clone)]
pub(crate) struct Version {
    /// Hash of the store's identity.
    pub(crate) store: u64,
    pub(crate) key: ObjectKey,
    pub(crate) meta: ObjectMeta,
    hash: u64,
}

impl Version {
    pub(crate) fn new(store: u64, key: ObjectKey, meta: ObjectMeta) -> Self {
        let hash = Self::id_of(store, key.as_str(), meta.etag.as_str());
        Self { store, key, meta, hash }
    }

    /// The [`Self::id`] of a version of this store, key and tag.
    pub(crate) fn id_of(store: u64, key: &str, etag: &str) -> u64 {
        let mut hasher = XxHash3_64::with_seed(store);
        hasher.write(key.as_bytes());
        // No tag contains a NUL that a key's end could be mistaken for: 0xff is in no UTF-8 text.
        hasher.write_u8(0xff);
        hasher.write(etag.as_bytes());
        hasher.finish()
    }

    pub(crate) fn etag(&self) -> &ETag {
        &self.meta.etag
    }

    /// A number for this version in this process and every other; two versions may share one.
    pub(crate) fn id(&self) -> u64 {
        self.hash
    }

    fn same(&self, other: &Self) -> bool {
        self.hash == other.hash
            && self.store == other.store
            && self.key == other.key
            && self.meta.etag == other.meta.etag
    }
}

/// Set in the index of a key that names a grain, a small piece of a block, and in no block's.
pub(crate) const GRAIN_BIT: u32 = 1 << 31;

/// A block of a version, or a grain of one: the other bits of the index number the grains of the
/// object. Which bytes that is, [`crate::span::Units`] knows.
#[derive(Debug, Clone)]
pub(crate) struct BlockKey {
    pub(crate) object: Arc<Version>,
    pub(crate) index: u32,
}

impl BlockKey {
    pub(crate) fn new(object: &Arc<Version>, index: u32) -> Self {
        Self { object: Arc::clone(object), index }
    }

    /// True for a grain: it lies inside a block, is only ever kept beside blocks, and is never asked
    /// for where its block is near. What numbers blocks by their index must leave it out.
    pub(crate) fn is_grain(&self) -> bool {
        // The highest index of all is that of metadata, which is neither.
        self.index & GRAIN_BIT != 0 && self.index != u32::MAX
    }

    /// What a block's checksum is seeded with, so that a block found under another key is bad.
    pub(crate) fn seal(&self) -> u64 {
        self.object.hash ^ u64::from(self.index).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

impl PartialEq for BlockKey {
    fn eq(&self, other: &Self) -> bool {
        self.index == other.index
            && (Arc::ptr_eq(&self.object, &other.object) || self.object.same(&other.object))
    }
}

impl Eq for BlockKey {}

impl Hash for BlockKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.object.hash);
        state.write_u32(self.index);
    }
}
