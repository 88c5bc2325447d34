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
