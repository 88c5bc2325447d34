//! Files on real directories: filling, restarts, kills, wrong bytes and full disks.

mod filling;

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use store::testing::{FaultyStore, MemoryStore};
use store::{ByteRange, LocalCopy, NoCopy, ObjectKey, Residency, Store, StoreExt};

use crate::{Cache, CacheConfig, CachedStore, DiskConfig, Metrics, StorePolicy};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Blocks of 64 KiB, so that few bytes make many.
const BLOCK: u64 = 64 * KIB;

fn key(name: &str) -> ObjectKey {
    ObjectKey::new(name).unwrap()
}

/// Bytes that differ at every offset of every object.
fn content(seed: u64, len: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = (0..len.div_ceil(8)).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(len as usize).collect::<Vec<u8>>().into()
}

fn on(path: &Path, memory: u64, disk: u64) -> CacheConfig {
    CacheConfig {
        block_bytes: BLOCK,
        memory_bytes: memory,
        max_fetch_bytes: 4 * BLOCK,
        disk: Some(DiskConfig::new(path, disk)),
        ..CacheConfig::default()
    }
}

/// A cache over an origin that can fail.
struct Rig {
    memory: MemoryStore,
    origin: FaultyStore,
    cache: Arc<Cache>,
    store: Arc<CachedStore>,
}

async fn rig(config: &CacheConfig, memory: &MemoryStore) -> Rig {
    rig_with(config, memory, StorePolicy::default()).await
}

async fn rig_with(config: &CacheConfig, memory: &MemoryStore, policy: StorePolicy) -> Rig {
    let origin = FaultyStore::new(Arc::new(memory.clone()));
    let mut opened = None;
    // The lock goes with the last task of the cache before; those end at once, but not this instant.
    for _ in 0..500 {
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        if let Ok(cache) = Cache::open(config.clone(), metrics).await {
            opened = Some(cache);
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let cache = opened.expect("the directory stays locked");
    let store = cache.attach("test", "memory://test", Arc::new(origin.clone()), policy);
    Rig { memory: memory.clone(), origin, cache, store }
}

impl Rig {
    fn metrics(&self) -> &Metrics {
        &self.cache.shared().metrics
    }

    async fn full(&self, name: &str) -> Bytes {
        self.store.get_bytes(&key(name), ByteRange::Full).await.unwrap()
    }

    async fn range(&self, name: &str, start: u64, end: u64) -> Bytes {
        self.store.get_bytes(&key(name), ByteRange::Bounded(start, end)).await.unwrap()
    }

    async fn copy(&self, name: &str) -> Result<LocalCopy, NoCopy> {
        let meta = self.memory.head(&key(name)).await.unwrap();
        self.store.local_copy(&key(name), &meta.etag, meta.size).await
    }

    /// The copy of an object that is being completed.
    async fn copy_soon(&self, name: &str) -> LocalCopy {
        for _ in 0..500 {
            if let Ok(copy) = self.copy(name).await {
                return copy;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("`{name}` does not become a file")
    }
}

/// All that a file holds.
fn all_of(file: &File) -> Bytes {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes.into()
}

/// What `du` counts below a directory.
fn du(path: &Path) -> u64 {
    let own = std::fs::symlink_metadata(path).map_or(0, |m| m.blocks() * 512);
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    own + entries.map(|entry| du(&entry.path())).sum::<u64>()
}

/// Files below a directory.
fn files_below(path: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            out.extend(files_below(&path));
        } else {
            out.push(path);
        }
    }
    out
}
