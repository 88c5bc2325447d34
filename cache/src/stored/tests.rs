//! The cached store against a faulty origin, a paused clock and a model.

mod faults;
mod freshness;
mod grains;
mod link;
mod model;
mod speed;
mod traffic;
mod vast;
mod whole;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use store::testing::{FaultyStore, MemoryStore};
use store::{ByteRange, ETag, Error, ErrorKind, GetOptions, ObjectKey, ReaderId, Store};

use crate::blocks::map::MapBlocks;
use crate::{Cache, CacheConfig, CachedStore, Metrics, Stats, StorePolicy};

/// Small, so that few bytes make many blocks.
const BLOCK: u64 = 1000;

struct Rig {
    memory: MemoryStore,
    origin: FaultyStore,
    cache: Arc<Cache>,
    store: Arc<CachedStore>,
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new(name).unwrap()
}

/// Bytes that differ at every offset of every object.
fn content(seed: u64, len: usize) -> Bytes {
    (0..len as u64).map(|i| ((i * 31 + i / 251 + seed * 7) % 256) as u8).collect::<Vec<_>>().into()
}

fn small() -> CacheConfig {
    CacheConfig {
        memory_bytes: 4 << 20,
        block_bytes: BLOCK,
        max_fetch_bytes: 4 * BLOCK,
        max_parallel_fetch: 4,
        prefetch_budget_bytes: 64 * BLOCK,
        readahead_blocks: 2,
        ..CacheConfig::default()
    }
}

async fn rig_with(config: CacheConfig, policy: StorePolicy) -> Rig {
    let memory = MemoryStore::new();
    let origin = FaultyStore::new(Arc::new(memory.clone()));
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    let cache = Cache::open(config, metrics).await.unwrap();
    let store = cache.attach("test", "memory://test", Arc::new(origin.clone()), policy);
    Rig { memory, origin, cache, store }
}

/// Over a map of blocks, which forgets when told to and never by itself.
fn rig_over_map() -> (Rig, Arc<MapBlocks>) {
    rig_over_map_with(small())
}

fn rig_over_map_with(config: CacheConfig) -> (Rig, Arc<MapBlocks>) {
    let memory = MemoryStore::new();
    let origin = FaultyStore::new(Arc::new(memory.clone()));
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    let blocks = Arc::<MapBlocks>::default();
    let cache = Cache::over(config, blocks.clone(), metrics);
    let policy = StorePolicy::default();
    let store = cache.attach("test", "memory://test", Arc::new(origin.clone()), policy);
    (Rig { memory, origin, cache, store }, blocks)
}

async fn rig() -> Rig {
    rig_with(small(), StorePolicy::default()).await
}

impl Rig {
    fn stats(&self) -> Stats {
        self.cache.stats()
    }

    /// Calls of the origin since the last time.
    fn calls(&self) -> u64 {
        let calls = self.origin.calls().total();
        self.origin.calls().reset();
        calls
    }

    async fn read(&self, name: &str, range: ByteRange) -> Result<Bytes, Error> {
        read(&self.store, name, GetOptions { range, ..GetOptions::default() }).await
    }

    async fn full(&self, name: &str) -> Result<Bytes, Error> {
        self.read(name, ByteRange::Full).await
    }

    async fn pinned(&self, name: &str, etag: &ETag) -> Result<Bytes, Error> {
        let if_match = Some(etag.clone());
        read(&self.store, name, GetOptions { if_match, ..GetOptions::default() }).await
    }
}

async fn read(store: &CachedStore, name: &str, options: GetOptions) -> Result<Bytes, Error> {
    let got = store.get(&key(name), options).await?;
    let pieces: Vec<Bytes> = got.body.try_collect().await?;
    let all: Bytes = pieces.concat().into();
    assert_eq!(all.len() as u64, got.range.end - got.range.start, "as many bytes as promised");
    Ok(all)
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), what).await.expect("bounded in time")
}

#[tokio::test]
async fn it_keeps_the_contract() {
    let rig = rig().await;
    let differences = store::testing::contract::Differences::default();
    store::testing::contract::run(rig.store.clone(), differences).await.assert();
}

#[tokio::test]
async fn every_range_of_an_object_cold_and_warm() {
    let rig = rig().await;
    for len in [0usize, 1, 999, 1000, 1001, 3500, 9000] {
        let name = format!("o{len}");
        let bytes = content(len as u64, len);
        rig.memory.insert(&name, bytes.clone());
        for (start, end) in
            [(0, 1), (0, 1000), (999, 1001), (1500, 1600), (2000, 1 << 40), (8999, 9000)]
        {
            for range in [
                ByteRange::Bounded(start, end),
                ByteRange::From(start),
                ByteRange::Suffix(end),
                ByteRange::Full,
            ] {
                let expected = range.resolve(len as u64);
                match (rig.read(&name, range).await, expected) {
                    (Ok(got), Ok(r)) => assert_eq!(got, bytes[r.start as usize..r.end as usize]),
                    (Err(e), Err(_)) => assert_eq!(e.kind(), ErrorKind::InvalidRange, "{e}"),
                    (got, expected) => panic!("{name} {range:?}: {got:?}, expected {expected:?}"),
                }
            }
        }
    }
}

#[tokio::test]
async fn the_first_get_asks_once_and_a_warm_one_asks_nothing() {
    let rig = rig().await;
    rig.memory.insert("k", content(1, 3500));
    assert_eq!(rig.full("k").await.unwrap(), content(1, 3500));
    assert_eq!(rig.calls(), 1, "one GET brings metadata, attributes and bytes");
    for _ in 0..5 {
        assert_eq!(rig.full("k").await.unwrap(), content(1, 3500));
        rig.store.head(&key("k")).await.unwrap();
    }
    assert_eq!(rig.calls(), 0);
    assert_eq!(rig.stats().misses, 4);
    assert_eq!(rig.stats().memory.hits, 20);
}

#[tokio::test]
async fn bodies_longer_than_any_window_arrive_whole() {
    let config = CacheConfig { transit_bytes: 3 * BLOCK, ..small() };
    let rig = rig_with(config, StorePolicy::default()).await;
    let bytes = content(3, 300_000);
    rig.memory.insert("k", bytes.clone());
    assert_eq!(rig.full("k").await.unwrap(), bytes);
    let unique = rig.origin.calls().bytes_read();
    assert_eq!(unique, 300_000);
    assert_eq!(rig.full("k").await.unwrap(), bytes);
    assert_eq!(rig.origin.calls().bytes_read(), unique);
}

#[tokio::test]
async fn a_get_that_names_no_version_has_attributes_at_the_price_of_one_head() {
    let rig = rig().await;
    rig.memory.insert("d/k", content(1, 100));
    rig.store.list(&store::ListRequest::default()).await.unwrap();
    let etag = rig.memory.head(&key("d/k")).await.unwrap().etag;
    rig.pinned("d/k", &etag).await.unwrap();
    assert_eq!(rig.calls(), 2, "the list, the GET");
    // The GET brought attributes along.
    let got = rig.store.get(&key("d/k"), GetOptions::default()).await.unwrap();
    assert!(got.meta.attributes.is_some());
    assert_eq!(rig.calls(), 0);
    // Warm blocks under metadata that came from a listing.
    rig.store.origin.meta.forget(&key("d/k"), &etag);
    rig.store.list(&store::ListRequest { prefix: "d".into(), ..Default::default() }).await.unwrap();
    rig.calls();
    rig.pinned("d/k", &etag).await.unwrap();
    assert_eq!(rig.calls(), 0, "a pinned reader asks for no attributes");
    for _ in 0..3 {
        let got = rig.store.get(&key("d/k"), GetOptions::default()).await.unwrap();
        assert!(got.meta.attributes.is_some());
    }
    assert_eq!(rig.calls(), 1);
}

#[tokio::test]
async fn warm_says_what_is_resident() {
    let rig = rig().await;
    rig.memory.insert("k", content(1, 9500));
    rig.read("k", ByteRange::Bounded(2000, 3000)).await.unwrap();
    let warmed = rig.store.warm(&key("k"), None).await.unwrap();
    let expected = crate::Warmed {
        size: 9500,
        fetched_bytes: 8500,
        resident_bytes: 9500,
        reason_if_not: None,
    };
    assert_eq!(warmed, expected);
    let again = rig.store.warm(&key("k"), None).await.unwrap();
    assert_eq!(again.fetched_bytes, 0);
    let etag = rig.memory.head(&key("k")).await.unwrap().etag;
    let resident = store::Residency::residency(&*rig.store, &key("k"), &etag, 9500).await;
    assert_eq!((resident.bytes, resident.of), (9500, 9500));
    let other = store::Residency::residency(&*rig.store, &key("k"), &ETag::parse("z"), 9500).await;
    assert_eq!(other.bytes, 0);
    assert!(rig.store.warm(&key("none"), None).await.is_err());
}

#[tokio::test]
async fn warming_more_than_fits_says_so() {
    let config = CacheConfig { memory_bytes: 20 * BLOCK, ..small() };
    let rig = rig_with(config, StorePolicy::default()).await;
    rig.memory.insert("k", content(1, 60_000));
    let warmed = rig.store.warm(&key("k"), None).await.unwrap();
    assert!(warmed.resident_bytes < 60_000);
    assert!(warmed.reason_if_not.unwrap().contains("larger than the cache"));
    assert_eq!(rig.full("k").await.unwrap(), content(1, 60_000));
    assert!(rig.stats().memory.evictions > 0);
}

#[tokio::test]
async fn a_reader_without_an_id_prefetches_nothing() {
    let rig = rig().await;
    rig.memory.insert("k", content(1, 100_000));
    for n in 0..20 {
        rig.read("k", ByteRange::Bounded(n * 100, n * 100 + 100)).await.unwrap();
    }
    assert_eq!(rig.stats().prefetch.bytes, 0);
    assert_eq!(rig.stats().fetch.bytes, 2000);
}

#[tokio::test]
async fn uses_are_recorded_for_the_simulator() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace");
    let config = CacheConfig { trace: Some(path.clone()), ..small() };
    let rig = rig_with(config, StorePolicy::default()).await;
    rig.memory.insert("a b", content(1, 3000));
    rig.memory.insert("c", content(2, 100));
    for name in ["a b", "c", "a b"] {
        rig.full(name).await.unwrap();
    }
    rig.cache.shared().trace.as_ref().unwrap().close();
    let lines = std::io::BufReader::new(std::fs::File::open(&path).unwrap());
    let trace = crate::simulate::recorded("t", lines, 10_000).unwrap();
    let outcome = crate::simulate::run(&trace);
    assert_eq!(
        std::fs::read_to_string(&path).unwrap().lines().filter(|l| !l.starts_with('#')).count(),
        3
    );
    assert!(format!("{outcome:?}").contains('3'), "{outcome:?}");
}
