//! How much the origin is asked: single flight, merging, prefetching.

use super::*;
use store::testing::{Fault, Operation};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_readers_of_one_cold_object_fetch_it_once() {
    let config = CacheConfig {
        block_bytes: 16 << 10,
        max_fetch_bytes: 64 << 10,
        memory_bytes: 64 << 20,
        ..small()
    };
    let rig = Arc::new(rig_with(config, StorePolicy::default()).await);
    let len = 5_000_000;
    let bytes = content(1, len);
    rig.memory.insert("k", bytes.clone());
    // So that all of them come while the first bytes are on their way.
    for _ in 0..4 {
        rig.origin.inject(Operation::Get, Fault::Delay(Duration::from_millis(100)));
    }
    let readers = (0..16u64).map(|n| {
        let (rig, bytes) = (Arc::clone(&rig), bytes.clone());
        tokio::spawn(async move {
            if n % 2 == 0 {
                assert_eq!(rig.full("k").await.unwrap(), bytes);
                return;
            }
            // As FUSE reads: a piece at a time, each reader from another place.
            let step = 40_000;
            for i in 0..len / step {
                let at = (i + n as usize * 7) % (len / step) * step;
                let range = ByteRange::Bounded(at as u64, (at + step) as u64);
                let options = GetOptions { range, reader: ReaderId(n), ..GetOptions::default() };
                let got = read(&rig.store, "k", options).await.unwrap();
                assert_eq!(got, bytes[at..at + step]);
            }
        })
    });
    for reader in soon(futures::future::join_all(readers)).await {
        reader.unwrap();
    }
    let fetched = rig.origin.calls().bytes_read();
    assert!(fetched as f64 <= 1.02 * len as f64, "{fetched} bytes for {len}");
    assert_eq!(rig.origin.calls().of(Operation::Head), 0);
    assert!(rig.stats().fetch.joins > 0);
}

#[tokio::test]
async fn neighbouring_misses_are_one_get() {
    let rig = rig().await;
    rig.memory.insert("k", content(1, 16_000));
    rig.store.head(&key("k")).await.unwrap();
    rig.calls();
    rig.read("k", ByteRange::Bounded(0, 4000)).await.unwrap();
    assert_eq!(rig.calls(), 1, "four blocks, one GET");
    rig.read("k", ByteRange::Bounded(6000, 7000)).await.unwrap();
    rig.calls();
    rig.full("k").await.unwrap();
    // 4..6, then 7..16 in runs of at most four within chunks of four.
    assert!(rig.calls() <= 4);
}

#[tokio::test(start_paused = true)]
async fn cold_reads_keep_several_gets_in_flight() {
    let rig = rig().await;
    rig.memory.insert("k", content(1, 100_000));
    rig.store.head(&key("k")).await.unwrap();
    for _ in 0..4 {
        rig.origin.inject(Operation::Get, Fault::Delay(Duration::from_millis(200)));
    }
    let started = tokio::time::Instant::now();
    rig.read("k", ByteRange::Bounded(0, 16_000)).await.unwrap();
    assert!(started.elapsed() < Duration::from_millis(390), "{:?}", started.elapsed());
}

async fn sequential(rig: &Rig, name: &str, reader: u64, len: u64, step: u64) {
    for n in 0..len / step {
        let range = ByteRange::Bounded(n * step, (n + 1) * step);
        let options = GetOptions { range, reader: ReaderId(reader), ..GetOptions::default() };
        read(&rig.store, name, options).await.unwrap();
    }
}

#[tokio::test]
async fn a_sequential_reader_is_read_ahead_for_and_nothing_is_fetched_twice() {
    let rig = rig().await;
    rig.memory.insert("k", content(1, 200_000));
    sequential(&rig, "k", 1, 100_000, 500).await;
    let stats = rig.stats();
    assert!(stats.prefetch.hits > 60, "{:?}", stats.prefetch);
    let ahead = rig.origin.calls().bytes_read();
    assert!(ahead <= 100_000 + 48 * BLOCK, "{ahead}");
    assert!(rig.origin.calls().of(Operation::Get) < 50);
}

#[tokio::test]
async fn random_reads_fetch_their_blocks_only() {
    let rig = rig().await;
    rig.memory.insert("k", content(1, 1_000_000));
    rig.store.head(&key("k")).await.unwrap();
    let mut blocks = std::collections::HashSet::new();
    for n in 0..50u64 {
        let at = n * n * 7919 % 990 * 1000 + 3;
        blocks.insert(at / BLOCK);
        let range = ByteRange::Bounded(at, at + 40);
        let options = GetOptions { range, reader: ReaderId(9), ..GetOptions::default() };
        read(&rig.store, "k", options).await.unwrap();
    }
    assert_eq!(rig.stats().prefetch.bytes, 0);
    assert_eq!(rig.origin.calls().bytes_read(), blocks.len() as u64 * BLOCK);
}

#[tokio::test]
async fn the_next_shard_is_begun_when_a_reader_of_shards_in_order_nears_the_end() {
    let rig = rig().await;
    for n in 0..5 {
        rig.memory.insert(&format!("d/{n}.tar"), content(n, 20_000));
    }
    rig.store.list(&store::ListRequest::default()).await.unwrap();
    for n in 0..3 {
        sequential(&rig, &format!("d/{n}.tar"), n + 1, 20_000, 500).await;
        soon(async {
            while rig.stats().prefetch.in_flight_bytes > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }
    rig.calls();
    let got = rig.read("d/3.tar", ByteRange::Bounded(0, 2000)).await.unwrap();
    assert_eq!(got, content(3, 20_000)[..2000]);
    assert_eq!(rig.origin.calls().of(Operation::Get), 0, "three in a row are an order");
    rig.read("d/4.tar", ByteRange::Bounded(0, 2000)).await.unwrap();
    assert_eq!(rig.origin.calls().of(Operation::Get), 1, "one shard ahead is enough");
}

#[tokio::test(start_paused = true)]
async fn demand_does_not_wait_for_prefetches() {
    let rig = rig().await;
    rig.memory.insert("a", content(1, 400_000));
    rig.memory.insert("b", content(2, 1000));
    rig.store.head(&key("a")).await.unwrap();
    rig.store.head(&key("b")).await.unwrap();
    let warm = tokio::spawn({
        let store = rig.store.clone();
        for _ in 0..100 {
            rig.origin.inject(Operation::Get, Fault::SlowBody(Duration::from_millis(300)));
        }
        async move { store.warm(&key("a"), None).await }
    });
    tokio::time::sleep(Duration::from_millis(30)).await;
    let started = tokio::time::Instant::now();
    rig.full("b").await.unwrap();
    // Its own body is slow once; it queued behind none of the others.
    assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
    warm.abort();
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_hangs_takes_no_turns_from_another() {
    let rig = rig().await;
    let other = MemoryStore::new();
    other.insert("k", content(9, 3000));
    let policy = StorePolicy::default();
    let store = rig.cache.attach("other", "memory://other", Arc::new(other), policy);
    for n in 0..8 {
        let name = format!("h{n}");
        rig.memory.insert(&name, content(n, 3000));
        rig.origin.inject(Operation::Get, Fault::Hang);
        let store = rig.store.clone();
        tokio::spawn(async move { read(&store, &name, GetOptions::default()).await });
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let since = tokio::time::Instant::now();
    assert_eq!(read(&store, "k", GetOptions::default()).await.unwrap(), content(9, 3000));
    assert!(since.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn bodies_that_stand_still_leave_room_for_whole_requests_of_others() {
    let config = CacheConfig { transit_bytes: BLOCK, ..small() };
    let rig = rig_with(config, StorePolicy::default()).await;
    rig.memory.insert("a", content(1, 100_000));
    rig.store.head(&key("a")).await.unwrap();
    rig.calls();
    assert_eq!(rig.full("a").await.unwrap(), content(1, 100_000));
    let gets = rig.calls();
    assert!(gets < 50, "{gets} GETs for 100 blocks, merged up to four");
}
