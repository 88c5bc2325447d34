//! What a warm read costs. Run with `--ignored --nocapture`; a number, not a limit.

use super::*;

#[tokio::test]
#[ignore = "a measurement"]
async fn cost_of_a_warm_get() {
    let config = CacheConfig { memory_bytes: 256 << 20, ..CacheConfig::default() };
    let rig = rig_with(config, StorePolicy::default()).await;
    rig.memory.insert("k", vec![7u8; 16 << 20]);
    rig.full("k").await.unwrap();
    for (what, len) in [("1 KiB", 1024u64), ("128 KiB", 128 << 10), ("8 MiB", 8 << 20)] {
        let calls = 200_000u32;
        let started = std::time::Instant::now();
        for n in 0..u64::from(calls) {
            let at = n * len % (8 << 20);
            let range = ByteRange::Bounded(at, at + len);
            let options = GetOptions { range, reader: ReaderId(1), ..GetOptions::default() };
            let mut got = rig.store.get(&key("k"), options).await.unwrap();
            while let Some(piece) = got.body.try_next().await.unwrap() {
                std::hint::black_box(piece.len());
            }
        }
        println!("warm get of {what}: {:?} a call", started.elapsed() / calls);
    }
}

/// Cold and warm sequential reads of one object, as S3 (one body) and as FUSE (pieces) read it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn sequential_reads() {
    const LEN: u64 = 512 << 20;
    let dir = tempfile::tempdir().unwrap();
    let disk = crate::DiskConfig::new(dir.path(), 4 << 30);
    for (what, memory_bytes, disk) in
        [("memory", 1 << 30, None), ("disk, 64 MiB of memory", 64 << 20, Some(disk))]
    {
        let config = CacheConfig { memory_bytes, disk, ..CacheConfig::default() };
        let rig = rig_with(config, StorePolicy::default()).await;
        rig.memory.insert("body", vec![7u8; LEN as usize]);
        rig.memory.insert("pieces", vec![8u8; LEN as usize]);
        let rate =
            |started: std::time::Instant| (LEN >> 20) as f64 / started.elapsed().as_secs_f64();
        let drain = |mut body: store::ByteStream| async move {
            while let Some(piece) = body.try_next().await.unwrap() {
                std::hint::black_box(piece.len());
            }
        };
        let started = std::time::Instant::now();
        drain(rig.memory.get(&key("body"), GetOptions::default()).await.unwrap().body).await;
        println!("{what}: origin {:.0} MiB/s", rate(started));
        for pass in ["cold", "warm"] {
            let started = std::time::Instant::now();
            drain(rig.store.get(&key("body"), GetOptions::default()).await.unwrap().body).await;
            println!("{what}: {pass} body {:.0} MiB/s", rate(started));
            rig.cache.flush().await;
            let started = std::time::Instant::now();
            for n in 0..LEN >> 20 {
                let range = ByteRange::Bounded(n << 20, (n + 1) << 20);
                let options = GetOptions { range, reader: ReaderId(3), ..GetOptions::default() };
                drain(rig.store.get(&key("pieces"), options).await.unwrap().body).await;
            }
            println!("{what}: {pass} pieces of 1 MiB {:.0} MiB/s", rate(started));
            let waited = &rig.cache.shared().metrics.waited;
            println!("waits {} {:.3} s", waited.get_sample_count(), waited.get_sample_sum());
            println!("fetch {:?}", rig.stats().fetch);
            rig.cache.flush().await;
        }
        println!("{:?}", rig.stats().prefetch);
        rig.cache.close().await;
    }
}
