//! The tiers on real directories: fills, restarts, kills, and everything that can be wrong with one.

mod directories;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use store::testing::{Fault, FaultyStore, MemoryStore, Operation};
use store::{ByteRange, ETag, ErrorKind, ObjectKey, ObjectMeta, StoreExt};

use super::{BlockCache, HybridBlocks};
use crate::version::{BlockKey, Version};
use crate::{
    Cache, CacheConfig, CachedStore, DiskConfig, FilesConfig, Metrics, OpenError, StorePolicy,
};

const MIB: u64 = 1 << 20;

/// Nothing here may be given up for want of time.
const LONG: Duration = Duration::from_mins(5);

pub(super) fn metrics() -> Metrics {
    Metrics::register(&prometheus::Registry::new()).unwrap()
}

fn version(name: &str, size: u64) -> Arc<Version> {
    let meta = ObjectMeta {
        size,
        etag: ETag::parse("v1"),
        last_modified: SystemTime::UNIX_EPOCH,
        attributes: None,
    };
    Arc::new(Version::new(1, ObjectKey::new(name).unwrap(), meta))
}

pub(super) fn on(path: &Path, block: u64, memory: u64, disk: u64) -> CacheConfig {
    CacheConfig {
        block_bytes: block,
        memory_bytes: memory,
        max_fetch_bytes: 4 * block,
        // What is tested here is what blocks do.
        disk: Some(DiskConfig {
            files: FilesConfig { enabled: false, ..FilesConfig::default() },
            ..DiskConfig::new(path, disk)
        }),
        ..CacheConfig::default()
    }
}

/// Bytes that say which block they are.
fn block(index: u32, len: usize) -> Bytes {
    let mut bytes = vec![(index % 251) as u8; len];
    bytes[..4].copy_from_slice(&index.to_le_bytes());
    bytes.into()
}

async fn fill(blocks: &HybridBlocks, object: &Arc<Version>, count: u32, len: usize) {
    for index in 0..count {
        if let Some(spill) = blocks.insert(BlockKey::new(object, index), block(index, len), LONG) {
            spill.await;
        }
    }
    blocks.flush().await;
}

fn resident(blocks: &HybridBlocks, object: &Arc<Version>, count: u32) -> usize {
    (0..count).filter(|i| blocks.on_disk(&BlockKey::new(object, *i))).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gigabytes_as_fast_as_they_come_are_all_resident() {
    let dir = tempfile::tempdir().unwrap();
    let (count, len) = (512, 4 * MIB as usize);
    let metrics = metrics();
    let config = on(dir.path(), 4 * MIB, 64 * MIB, 3072 * MIB);
    let blocks = HybridBlocks::open(&config, &metrics).await.unwrap();
    let object = version("big", u64::from(count) * len as u64);
    let started = Instant::now();
    fill(&blocks, &object, count, len).await;
    println!("512 blocks of 4 MiB in {:?}", started.elapsed());
    assert_eq!(resident(&blocks, &object, count), 512);
    assert_eq!(Metrics::by_label(&metrics.dropped).values().sum::<u64>(), 0);
    assert_eq!(metrics.disk_filled.get(), u64::from(count) * len as u64);
    for index in [0, 1, 100, 255, 511] {
        let data = blocks.load(&BlockKey::new(&object, index), len).await.unwrap();
        assert_eq!(data, block(index, len));
    }
    assert_eq!(metrics.bad_blocks.get(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_blocks_from_many_tasks_are_all_resident() {
    let dir = tempfile::tempdir().unwrap();
    let metrics = metrics();
    let config = on(dir.path(), 64 << 10, 8 * MIB, 1024 * MIB);
    let blocks = Arc::new(HybridBlocks::open(&config, &metrics).await.unwrap());
    let tasks = (0..16).map(|n| {
        let blocks = Arc::clone(&blocks);
        tokio::spawn(async move {
            let object = version(&format!("o{n}"), 1 << 40);
            // Lengths of every kind, as small objects have.
            for index in 0..200u32 {
                let len = 5 + (index as usize * 7919 + n * 13) % (64 << 10);
                let spill = blocks.insert(BlockKey::new(&object, index), block(index, len), LONG);
                spill.unwrap().await;
            }
            object
        })
    });
    let objects = futures::future::join_all(tasks).await;
    blocks.flush().await;
    for (n, object) in objects.into_iter().enumerate() {
        let object = object.unwrap();
        assert_eq!(resident(&blocks, &object, 200), 200);
        for index in (0..200).step_by(37) {
            let len = 5 + (index as usize * 7919 + n * 13) % (64 << 10);
            let data = blocks.load(&BlockKey::new(&object, index), len).await;
            assert_eq!(data.unwrap(), block(index, len));
        }
    }
    assert_eq!(Metrics::by_label(&metrics.dropped).values().sum::<u64>(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_patience_what_outruns_the_disk_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let metrics = metrics();
    let config = on(dir.path(), 4 * MIB, 64 * MIB, 2048 * MIB);
    let blocks = HybridBlocks::open(&config, &metrics).await.unwrap();
    let object = version("big", 1 << 40);
    let data = block(0, 4 * MIB as usize);
    for index in 0..300 {
        let spill = blocks.insert(BlockKey::new(&object, index), data.clone(), Duration::ZERO);
        spill.unwrap().await;
    }
    blocks.flush().await;
    let held = resident(&blocks, &object, 300) as u64;
    let dropped = Metrics::by_label(&metrics.dropped);
    assert_eq!(held + dropped["slow_disk"], 300, "{dropped:?}");
    assert!(held >= 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_tier_evicts_the_oldest_and_counts() {
    let dir = tempfile::tempdir().unwrap();
    let metrics = metrics();
    let config = on(dir.path(), 64 << 10, 2 * MIB, 32 * MIB);
    let blocks = HybridBlocks::open(&config, &metrics).await.unwrap();
    let object = version("big", 1 << 40);
    fill(&blocks, &object, 2000, 64 << 10).await;
    let held = resident(&blocks, &object, 2000);
    assert!((300..=512).contains(&held), "{held} of 2000 blocks of 64 KiB in 32 MiB");
    let newest = (1950..2000).filter(|i| blocks.on_disk(&BlockKey::new(&object, *i))).count();
    assert_eq!(newest, 50, "dropped: {:?}", Metrics::by_label(&metrics.dropped));
    assert!(!blocks.on_disk(&BlockKey::new(&object, 0)));
    let disk = blocks.disk().unwrap();
    assert!(disk.evictions > 0 && disk.bytes <= disk.capacity_bytes, "{disk:?}");
    assert_eq!(disk.waiting_bytes, 0);
    assert!(metrics.evictions.get() >= disk.evictions);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_keeps_the_warm_cache() {
    let dir = tempfile::tempdir().unwrap();
    let config = on(dir.path(), 64 << 10, 2 * MIB, 64 * MIB);
    let object = version("big", 300 * (64 << 10));
    let blocks = HybridBlocks::open(&config, &metrics()).await.unwrap();
    fill(&blocks, &object, 300, 64 << 10).await;
    blocks.close().await;
    assert!(!blocks.disk_state().unwrap().up);
    drop(blocks);
    let blocks = reopen(&config).await;
    assert_eq!(resident(&blocks, &object, 300), 300);
    // Another version of the name, of the hash, is another object.
    for index in 0..300 {
        let data = blocks.load(&BlockKey::new(&object, index), 64 << 10).await.unwrap();
        assert_eq!(data, block(index, 64 << 10));
    }
    // The sequence goes on: what is written now is newer than what was recovered.
    fill(&blocks, &version("more", 1 << 30), 100, 64 << 10).await;
    assert!(blocks.disk().unwrap().bytes > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_restarts_push_nothing_out() {
    const FULL: u32 = 200;
    let dir = tempfile::tempdir().unwrap();
    // Some 16 groups, of which 13 are full: more restarts than there are groups.
    let config = on(dir.path(), 64 << 10, 2 * MIB, 16 * MIB);
    let (object, small) = (version("big", 1 << 30), version("small", 1 << 30));
    let blocks = HybridBlocks::open(&config, &metrics()).await.unwrap();
    fill(&blocks, &object, FULL, 64 << 10).await;
    assert_eq!(resident(&blocks, &object, FULL), FULL as usize);
    blocks.close().await;
    drop(blocks);
    for restart in 0..30 {
        let blocks = reopen(&config).await;
        let held = resident(&blocks, &object, FULL);
        assert_eq!(held, FULL as usize, "after {restart} restarts");
        let key = BlockKey::new(&small, restart);
        blocks.insert(key.clone(), block(restart, 1000), LONG).unwrap().await;
        blocks.flush().await;
        assert!(blocks.on_disk(&key));
        blocks.close().await;
    }
    let blocks = reopen(&config).await;
    assert!(blocks.on_disk(&BlockKey::new(&small, 29)), "the newest goes last");
    for index in 0..FULL {
        let data = blocks.load(&BlockKey::new(&object, index), 64 << 10).await.unwrap();
        assert_eq!(data, block(index, 64 << 10));
    }
}

/// The lock goes with the last task that holds the tier; those end at once, but not this instant.
async fn reopen(config: &CacheConfig) -> HybridBlocks {
    for _ in 0..6000 {
        if let Ok(blocks) = HybridBlocks::open(config, &metrics()).await {
            return blocks;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the directory stays locked")
}

struct Rig {
    memory: MemoryStore,
    origin: FaultyStore,
    cache: Arc<Cache>,
    store: Arc<CachedStore>,
}

async fn rig(config: &CacheConfig, policy: StorePolicy, memory: &MemoryStore) -> Rig {
    let origin = FaultyStore::new(Arc::new(memory.clone()));
    let mut opened = None;
    for _ in 0..6000 {
        if let Ok(cache) = Cache::open(config.clone(), metrics()).await {
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
    async fn full(&self, name: &str) -> store::Result<Bytes> {
        self.store.get_bytes(&ObjectKey::new(name).unwrap(), ByteRange::Full).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_holds_with_a_disk_tier() {
    let dir = tempfile::tempdir().unwrap();
    let config = on(dir.path(), 4096, MIB, 64 * MIB);
    let rig = rig(&config, StorePolicy::default(), &MemoryStore::new()).await;
    let differences = store::testing::contract::Differences::default();
    store::testing::contract::run(rig.store.clone(), differences).await.assert();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_one_head_is_all_and_none_where_immutable_or_down() {
    let dir = tempfile::tempdir().unwrap();
    let config = on(dir.path(), 64 << 10, 2 * MIB, 64 * MIB);
    let memory = MemoryStore::new();
    let bytes = block(7, 1_000_000);
    memory.insert("a/k", bytes.clone());
    memory.insert("b/k", bytes.clone());
    let policy = StorePolicy {
        immutable: crate::Immutable::Prefixes(vec!["b/".into()]),
        ..StorePolicy::default()
    };
    let first = rig(&config, policy.clone(), &memory).await;
    first.full("a/k").await.unwrap();
    first.full("b/k").await.unwrap();
    first.cache.close().await;
    drop(first);

    let second = rig(&config, policy.clone(), &memory).await;
    assert_eq!(second.full("a/k").await.unwrap(), bytes);
    let calls = second.origin.calls();
    // One HEAD says that it is still current; it brings attributes too.
    assert_eq!((calls.of(Operation::Head), calls.of(Operation::Get)), (1, 0));
    let key = ObjectKey::new("b/k").unwrap();
    let etag = store::Store::head(&second.memory, &key).await.unwrap().etag;
    let options = store::GetOptions { if_match: Some(etag), ..Default::default() };
    let got = store::Store::get(&*second.store, &key, options).await.unwrap();
    assert_eq!(got.meta.size, bytes.len() as u64);
    assert_eq!(calls.total(), 1, "an immutable object is not asked about");
    assert_eq!(second.cache.stats().fetch.bytes, 0);
    second.cache.close().await;
    drop((second, got));

    let third = rig(&config, policy, &memory).await;
    third.origin.set_down(true);
    assert_eq!(third.full("a/k").await.unwrap(), bytes, "served although nobody answers");
    assert!(third.cache.stats().stale_served > 0);
    // A change while the cache was down is noticed.
    third.origin.set_down(false);
    third.cache.close().await;
    drop(third);
    memory.insert("a/k", block(9, 500_000));
    let fourth = rig(&config, StorePolicy::default(), &memory).await;
    assert_eq!(fourth.full("a/k").await.unwrap(), block(9, 500_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_write_replaced_is_not_recalled_even_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let config = on(dir.path(), 64 << 10, 2 * MIB, 64 * MIB);
    let memory = MemoryStore::new();
    let policy = StorePolicy { stale_ttl: Duration::from_millis(10), ..StorePolicy::default() };
    let (old, new) = (block(1, 200_000), block(2, 200_000));
    let first = rig(&config, policy.clone(), &memory).await;
    let key = |name: &str| ObjectKey::new(name).unwrap();
    for name in ["put", "deleted", "changed", "kept"] {
        memory.insert(name, old.clone());
        assert_eq!(first.full(name).await.unwrap(), old);
    }
    first.cache.flush().await;
    // The put may have happened or not; nobody heard of it.
    first.origin.inject(Operation::Put, Fault::Fail(ErrorKind::Timeout));
    first.store.put_bytes(&key("put"), new.clone()).await.unwrap_err();
    store::Store::delete(&*first.store, &key("deleted"), None).await.unwrap();
    memory.insert("changed", new.clone());
    tokio::time::sleep(Duration::from_millis(50)).await;
    store::Store::stat(&*first.store, &key("changed")).await.unwrap();
    first.origin.set_down(true);
    assert!(first.full("put").await.unwrap_err().kind().is_outage(), "not the old bytes");
    assert_eq!(first.full("kept").await.unwrap(), old);
    first.cache.close().await;
    drop(first);

    let second = rig(&config, policy, &memory).await;
    second.origin.set_down(true);
    for name in ["put", "deleted", "changed"] {
        assert!(second.full(name).await.unwrap_err().kind().is_outage(), "{name}");
    }
    assert_eq!(second.full("kept").await.unwrap(), old);
    // A word that a record is gone does not keep the next from being written.
    second.origin.set_down(false);
    assert_eq!(second.full("changed").await.unwrap(), new);
    second.cache.flush().await;
    let at = super::metadata_key(twox_hash::XxHash3_64::oneshot(b"memory://test"), &key("changed"));
    assert!(second.cache.shared().blocks.recall(&at).await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_confirms_a_version_is_remembered_too() {
    let dir = tempfile::tempdir().unwrap();
    let config = on(dir.path(), 64 << 10, 2 * MIB, 64 * MIB);
    let policy = StorePolicy {
        stale_ttl: Duration::from_millis(10),
        stale_if_error: Duration::from_millis(400),
        ..StorePolicy::default()
    };
    let rig = rig(&config, policy, &MemoryStore::new()).await;
    rig.memory.insert("k", block(1, 200_000));
    rig.full("k").await.unwrap();
    rig.cache.flush().await;
    let key = ObjectKey::new("k").unwrap();
    let at = super::metadata_key(twox_hash::XxHash3_64::oneshot(b"memory://test"), &key);
    let blocks = &rig.cache.shared().blocks;
    let first = blocks.recall(&at).await.unwrap().confirmed;
    tokio::time::sleep(Duration::from_millis(200)).await;
    store::Store::stat(&*rig.store, &key).await.unwrap();
    rig.cache.flush().await;
    let second = blocks.recall(&at).await.unwrap().confirmed;
    assert!(second.duration_since(first).unwrap() >= Duration::from_millis(100));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn warm_means_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let config = on(dir.path(), 64 << 10, 2 * MIB, 64 * MIB);
    let rig = rig(&config, StorePolicy::default(), &MemoryStore::new()).await;
    let bytes = block(3, 20_000_000);
    rig.memory.insert("k", bytes.clone());
    let key = ObjectKey::new("k").unwrap();
    let warmed = rig.store.warm(&key, None).await.unwrap();
    assert_eq!((warmed.fetched_bytes, warmed.resident_bytes), (20_000_000, 20_000_000));
    assert_eq!(warmed.reason_if_not, None);
    rig.origin.set_down(true);
    assert_eq!(rig.full("k").await.unwrap(), bytes, "2 MiB of memory, the rest from disk");
    let stats = rig.cache.stats();
    assert!(stats.disk.unwrap().hits > 250);
    rig.origin.set_down(false);
    rig.memory.insert("large", block(1, 100_000_000));
    let warmed = rig.store.warm(&ObjectKey::new("large").unwrap(), None).await.unwrap();
    assert!(warmed.reason_if_not.unwrap().contains("larger than the cache"));
}

const CHILD: &str = "WARPDRIVE_TEST_CACHE_CHILD";

/// Not a test: the process that is killed by the test below.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_fills_until_killed() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let config = on(Path::new(&dir), 64 << 10, 2 * MIB, 64 * MIB);
    let blocks = HybridBlocks::open(&config, &metrics()).await.unwrap();
    let object = version("big", 1 << 30);
    fill(&blocks, &object, 300, 64 << 10).await;
    std::fs::write(PathBuf::from(dir).join("filled"), b"").unwrap();
    // Goes on writing, so that the kill comes in the middle of it.
    for index in 300.. {
        if let Some(spill) =
            blocks.insert(BlockKey::new(&object, index % 900), block(index % 900, 64 << 10), LONG)
        {
            spill.await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_keeps_what_was_flushed_and_gives_the_lock_back() {
    let dir = tempfile::tempdir().unwrap();
    let name = "blocks::tests::child_that_fills_until_killed";
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, dir.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !dir.path().join("filled").exists() {
        assert!(started.elapsed() < Duration::from_mins(1), "the child does not fill");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let config = on(dir.path(), 64 << 10, 2 * MIB, 64 * MIB);
    // While it lives, the directory is its own.
    let refused = Cache::open(config.clone(), metrics()).await.unwrap_err();
    let host = Some(super::host_name());
    let locked = OpenError::Locked { path: dir.path().to_owned(), pid: Some(child.id()), host };
    assert_eq!(refused, locked);
    assert!(!refused.to_string().contains(" of `"), "the host is this one: {refused}");
    assert!(refused.to_string().contains(&format!("process {}", child.id())), "{refused}");
    child.kill().unwrap();
    child.wait().unwrap();
    let blocks = HybridBlocks::open(&config, &metrics()).await.unwrap();
    let object = version("big", 1 << 30);
    let mut kept = 0;
    for index in 0..900 {
        if let Some(data) = blocks.load(&BlockKey::new(&object, index), 64 << 10).await {
            assert_eq!(data, block(index, 64 << 10), "what is served is right");
            kept += 1;
        }
    }
    // The tier holds some 850 blocks and the child was going round; nearly all of it must be there.
    assert!(kept >= 290, "{kept} blocks kept");
}
