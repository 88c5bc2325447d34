//! Files on real directories: filling, restarts, kills, wrong bytes and full disks.

mod filling;
mod model;
mod outage;
mod restarts;
mod room;
mod wrong;

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use store::testing::{FaultyStore, MemoryStore};
use store::{
    ByteRange, CopyState, ETag, LocalCopy, NoCopy, ObjectKey, ObjectMeta, Residency, Store,
    StoreExt,
};

use crate::blocks::BlockCache;
use crate::span::block_range;
use crate::tiers::TieredBlocks;
use crate::version::{BlockKey, Version};
use crate::{
    Cache, CacheConfig, CachedStore, DiskConfig, FilesConfig, Metrics, Retention, StorePolicy,
};

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
    for _ in 0..6000 {
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
        for _ in 0..6000 {
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

/// The tiers without a store above them.
struct Tiers {
    blocks: Arc<TieredBlocks>,
    metrics: Metrics,
}

fn version(name: &str, etag: &str, size: u64) -> Arc<Version> {
    let (etag, last_modified) = (ETag::parse(etag), SystemTime::UNIX_EPOCH);
    let meta = ObjectMeta { size, etag, last_modified, attributes: None };
    Arc::new(Version::new(1, key(name), meta))
}

async fn tiers(config: &CacheConfig) -> Tiers {
    for _ in 0..6000 {
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        if let Ok(blocks) = TieredBlocks::open(config, &metrics).await {
            return Tiers { blocks: Arc::new(blocks), metrics };
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the directory stays locked")
}

impl Tiers {
    fn files(&self) -> &Arc<super::FileTier> {
        self.blocks.files().unwrap()
    }

    /// Inserts blocks of an object as a fetch would.
    async fn put(&self, object: &Arc<Version>, bytes: &Bytes, blocks: std::ops::Range<u32>) {
        for index in blocks {
            let range = block_range(index, BLOCK, object.meta.size);
            let data = bytes.slice(range.start as usize..range.end as usize);
            let long = Duration::from_mins(5);
            if let Some(spill) = self.blocks.insert(BlockKey::new(object, index), data, long) {
                spill.await;
            }
        }
    }

    async fn put_all(&self, object: &Arc<Version>, bytes: &Bytes) {
        self.put(object, bytes, 0..bytes.len().div_ceil(BLOCK as usize) as u32).await;
        self.blocks.flush().await;
    }

    /// A block from disk; what comes must be right.
    async fn load(&self, object: &Arc<Version>, bytes: &Bytes, index: u32) -> bool {
        let range = block_range(index, BLOCK, object.meta.size);
        let at = BlockKey::new(object, index);
        let data = self.blocks.load(&at, (range.end - range.start) as usize).await;
        if let Some(data) = &data {
            assert!(*data == bytes[range.start as usize..range.end as usize], "block {index}");
        }
        data.is_some()
    }

    fn is_file(&self, object: &Arc<Version>) -> bool {
        self.blocks.whole(object).is_some()
    }
}

/// Waits for something that happens in the background.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: not within a minute");
}

/// The one published file of a cache directory.
fn only_file(dir: &Path) -> PathBuf {
    let mut files = published(dir);
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

fn published(dir: &Path) -> Vec<PathBuf> {
    let all = files_below(&dir.join("files")).into_iter();
    all.filter(|f| f.parent().unwrap().file_name().unwrap().len() == 2).collect()
}

fn flip(path: &Path, at: u64) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

/// Copies a cache directory as a kill at this instant would leave it.
fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    let mut entries: Vec<_> = std::fs::read_dir(from).into_iter().flatten().flatten().collect();
    // The journal first: files that are copied later hold at least what it says.
    entries.sort_by_key(|entry| entry.path().is_dir());
    for entry in entries {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_tree(&path, &target);
        } else {
            // What goes away meanwhile is gone.
            _ = std::fs::copy(&path, &target);
        }
    }
}
