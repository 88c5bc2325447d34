//! How little is fetched for reads that belong to no sequence, and how soon that ends where they do.

use std::sync::atomic::Ordering;

use super::vast::{Front, Vast};
use super::*;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

async fn front(size: u64) -> Front {
    let front = Front::new(Vast::new([("k".to_owned(), size)]), CacheConfig::default()).await;
    // As a mount does: it knows what an object is before it reads it.
    front.store.head(&key("k")).await.unwrap();
    front
}

/// Numbers that look random and are the same each time.
fn scattered(count: u64, below: u64) -> impl Iterator<Item = u64> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..count).map(move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    })
}

#[tokio::test]
async fn random_small_reads_fetch_at_most_64_kib_each() {
    let front = front(2 * GIB).await;
    for at in scattered(100, 2 * GIB - 4 * KIB) {
        front.read("k", 1, at..at + 4 * KIB).await;
    }
    assert!(front.vast.asked_bytes() <= 100 * 64 * KIB, "{}", front.vast.asked_bytes());
    assert!(front.vast.requests() <= 100);
    assert_eq!(front.cache.stats().prefetch.bytes, 0);
}

#[tokio::test]
async fn random_larger_reads_fetch_at_most_twice_what_they_ask() {
    for len in [40 * KIB, 100 * KIB, 128 * KIB, 300 * KIB, 700 * KIB] {
        let front = front(2 * GIB).await;
        for at in scattered(20, 2 * GIB - len) {
            front.read("k", 1, at..at + len).await;
        }
        assert!(front.vast.asked_bytes() <= 20 * 2 * len, "{len}: {}", front.vast.asked_bytes());
    }
}

#[tokio::test]
async fn headers_and_footers_cost_a_look_and_are_kept() {
    let front = front(GIB).await;
    for _ in 0..3 {
        front.read("k", 1, 0..8).await;
        front.read("k", 1, GIB - 8..GIB).await;
        front.read("k", 1, GIB - 40 * KIB..GIB - 8).await;
    }
    assert_eq!(front.vast.requests(), 2);
    assert_eq!(front.vast.asked_bytes(), 128 * KIB);
    assert!(front.cache.stats().memory.hits >= 7);
}

#[tokio::test]
async fn a_small_first_read_of_an_unknown_object_is_one_small_request() {
    let objects = [("large".to_owned(), GIB), ("small".to_owned(), 50 * KIB)];
    let front = Front::new(Vast::new(objects), CacheConfig::default()).await;
    front.read("large", 1, 100..200).await;
    assert_eq!((front.vast.requests(), front.vast.asked_bytes()), (1, 64 * KIB));
    front.read("small", 1, 100..200).await;
    assert_eq!((front.vast.requests(), front.vast.asked_bytes()), (2, 114 * KIB));
    assert_eq!(front.vast.heads.load(Ordering::Relaxed), 0);
    front.read("small", 1, 0..50 * KIB).await;
    assert_eq!(front.vast.requests(), 2, "it came along");
}

#[tokio::test]
async fn small_objects_are_fetched_whole_by_one_request() {
    let objects = (0..50).map(|n| (format!("d/{n}"), 100 * KIB + n));
    let front = Front::new(Vast::new(objects), CacheConfig::default()).await;
    for n in 0..50 {
        let options = GetOptions { reader: ReaderId(n), ..GetOptions::default() };
        let got = read(&front.store, &format!("d/{n}"), options).await.unwrap();
        assert_eq!(got, vast::expected(0..100 * KIB + n));
    }
    assert_eq!(front.vast.requests(), 50);
    assert_eq!(front.vast.heads.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_sequence_turns_to_blocks_and_fetches_nothing_twice() {
    for step in [4 * KIB, 60 * KIB, 128 * KIB, MIB] {
        let size = 40 * MIB + 77;
        let front = front(size).await;
        let mut at = 0;
        while at < size {
            let end = (at + step).min(size);
            front.read("k", 1, at..end).await;
            at = end;
        }
        front.settle().await;
        assert_eq!(front.vast.asked_bytes(), size, "in steps of {step}");
        assert!(front.vast.requests() < 20, "{} requests", front.vast.requests());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_reads_in_disorder_is_one_sequence() {
    // As the kernel sends them after posix_fadvise(WILLNEED).
    let size = 64 * MIB;
    let front = Arc::new(front(size).await);
    let mut order: Vec<u64> = (0..size / (128 * KIB)).collect();
    for chunk in order.chunks_mut(7) {
        chunk.reverse();
    }
    for burst in order.chunks(64) {
        let reads = burst.iter().map(|n| {
            let (front, at) = (Arc::clone(&front), n * 128 * KIB);
            tokio::spawn(async move { front.read("k", 1, at..at + 128 * KIB).await })
        });
        for read in futures::future::join_all(reads).await {
            read.unwrap();
        }
    }
    front.settle().await;
    let asked = front.vast.asked_bytes();
    assert!(asked <= size + 4 * MIB, "{asked}");
    assert!(front.vast.requests() < 60, "{}", front.vast.requests());
}

#[tokio::test]
async fn grains_are_superseded_by_their_block() {
    let front = front(GIB).await;
    let at = 500 * MIB;
    front.read("k", 1, at + 300 * KIB..at + 301 * KIB).await;
    assert_eq!(front.vast.asked_bytes(), 64 * KIB);
    front.read("k", 1, at..at + MIB).await;
    assert_eq!(front.vast.asked_bytes(), 64 * KIB + MIB);
    for n in scattered(50, MIB - 5000) {
        front.read("k", 1, at + n..at + n + 5000).await;
    }
    assert_eq!(front.vast.asked_bytes(), 64 * KIB + MIB, "the block has all");
}

#[tokio::test]
async fn a_read_over_the_end_of_a_block_takes_what_is_near_on_both_sides() {
    let front = front(GIB).await;
    front.read("k", 1, 0..MIB).await;
    front.read("k", 1, MIB - 3000..MIB + 3000).await;
    assert_eq!(front.vast.asked_bytes(), MIB + 16 * KIB);
    front.read("k", 1, MIB - 3000..MIB + 3000).await;
    assert_eq!(front.vast.requests(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_the_same_grains_and_blocks_at_once_get_the_same_bytes() {
    let size = 8 * MIB;
    let front = Arc::new(front(size).await);
    let readers = (0..16u64).map(|reader| {
        let front = Arc::clone(&front);
        tokio::spawn(async move {
            for (n, at) in scattered(200, size - 200 * KIB).enumerate() {
                let at = (at + reader * 97) % (size - 200 * KIB);
                let len = [10, 5 * KIB, 70 * KIB, 200 * KIB][(n + reader as usize) % 4];
                front.read("k", reader + 1, at..at + len).await;
            }
        })
    });
    for reader in soon(futures::future::join_all(readers)).await {
        reader.unwrap();
    }
    // Each block at most once, and before that each of its grains.
    assert!(front.vast.asked_bytes() <= 2 * size + 4 * MIB, "{}", front.vast.asked_bytes());
}

#[tokio::test]
async fn grains_outlive_a_restart_beside_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let config = || CacheConfig {
        disk: Some(crate::DiskConfig {
            min_free_bytes: 0,
            ..crate::DiskConfig::new(dir.path(), GIB)
        }),
        ..CacheConfig::default()
    };
    for restarted in [false, true] {
        let front = Front::new(Vast::new([("k".to_owned(), GIB)]), config()).await;
        front.store.head(&key("k")).await.unwrap();
        for at in scattered(30, GIB - 4 * KIB) {
            front.read("k", 1, at..at + 4 * KIB).await;
        }
        if restarted {
            assert_eq!(front.vast.requests(), 0);
        }
        front.cache.close().await;
    }
}

#[tokio::test]
async fn shuffled_small_files_are_prefetched_never_and_those_in_order_always() {
    let objects = || (0..2000).map(|n| (format!("d/{n:05}.jpg"), 100 * KIB));
    let front = Front::new(Vast::new(objects()), CacheConfig::default()).await;
    front.store.list(&store::ListRequest::default()).await.unwrap();
    for n in (0..1000).map(|n| n * 1009 % 2000) {
        front.read(&format!("d/{n:05}.jpg"), n + 1, 0..100 * KIB).await;
    }
    assert_eq!(front.cache.stats().prefetch.bytes, 0);
    assert_eq!(front.vast.requests(), 1000);

    let front = Front::new(Vast::new(objects()), CacheConfig::default()).await;
    front.store.list(&store::ListRequest::default()).await.unwrap();
    for n in 0..2000 {
        front.read(&format!("d/{n:05}.jpg"), n + 1, 0..100 * KIB).await;
    }
    front.settle().await;
    let stats = front.cache.stats();
    assert!(stats.prefetch.hits > 1900, "{:?}", stats.prefetch);
    assert_eq!(front.vast.requests(), 2000, "each once");
}

#[tokio::test(start_paused = true)]
async fn a_block_waits_only_so_long_for_grains_at_its_front() {
    use store::testing::{Fault, Operation};
    for fault in [Fault::Hang, Fault::HangAfter(10), Fault::Fail(ErrorKind::Unavailable)] {
        let rig =
            rig_with(CacheConfig { grain_bytes: 125, ..small() }, StorePolicy::default()).await;
        rig.memory.insert("k", content(1, 9000));
        rig.store.head(&key("k")).await.unwrap();
        rig.origin.inject(Operation::Get, fault.clone());
        rig.origin.inject(Operation::Get, Fault::Delay(Duration::from_millis(100)));
        let store = rig.store.clone();
        let first = tokio::spawn(async move {
            let range = ByteRange::Bounded(0, 10);
            read(&store, "k", GetOptions { range, ..GetOptions::default() }).await
        });
        tokio::task::yield_now().await;
        let since = tokio::time::Instant::now();
        assert_eq!(rig.full("k").await.unwrap(), content(1, 9000), "{fault:?}");
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
        first.abort();
    }
}

#[tokio::test]
async fn grains_of_another_version_are_never_part_of_a_block() {
    let rig = rig_with(CacheConfig { grain_bytes: 125, ..small() }, StorePolicy::default()).await;
    rig.memory.insert("k", content(1, 9000));
    rig.store.head(&key("k")).await.unwrap();
    rig.read("k", ByteRange::Bounded(0, 10)).await.unwrap();
    rig.memory.insert("k", content(2, 9000));
    // The block asks for what follows its grains, under their version's tag, and is refused.
    assert_eq!(rig.full("k").await.unwrap(), content(2, 9000));
    assert_eq!(rig.read("k", ByteRange::Bounded(0, 10)).await.unwrap(), content(2, 9000)[..10]);
}
