//! What can be wrong with a cache directory, and that no reader notices.

use super::*;
use crate::testing::Mounted;
use std::os::unix::fs::FileExt;

/// Readers get right bytes through this configuration, cold and again; returns the cache's state.
async fn serves(config: &CacheConfig) -> (Option<crate::TierState>, crate::Stats) {
    let rig = rig(config, StorePolicy::default(), &MemoryStore::new()).await;
    for n in 0..40u32 {
        rig.memory.insert(&format!("k{n}"), block(n, 300_000));
    }
    for _ in 0..2 {
        for n in 0..40u32 {
            let name = format!("k{n}");
            let got = tokio::time::timeout(Duration::from_mins(1), rig.full(&name));
            assert_eq!(got.await.unwrap().unwrap(), block(n, 300_000));
        }
    }
    rig.cache.flush().await;
    let stats = rig.cache.stats();
    rig.cache.close().await;
    (stats.disk_state.clone(), stats)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_cannot_be_a_directory() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let config = on(&file.path().join("cache"), 64 << 10, MIB, 64 * MIB);
    let (tier, stats) = serves(&config).await;
    let tier = tier.unwrap();
    assert!(!tier.up && tier.reason.unwrap().contains("cannot create"));
    assert!(stats.disk.is_none() && stats.fetch.bytes > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_file_system() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_mounted) = Mounted::new(&["-t", "tmpfs", "-o", "ro,size=1m", "tmpfs"], dir.path())
    else {
        return;
    };
    let config = on(dir.path(), 64 << 10, MIB, 64 * MIB);
    let state = serves(&config).await.0.unwrap();
    assert!(!state.up && state.reason.unwrap().contains("cannot write"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_system_without_room() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_mounted) = Mounted::new(&["-t", "tmpfs", "-o", "size=200k", "tmpfs"], dir.path())
    else {
        return;
    };
    let config = on(dir.path(), 64 << 10, MIB, 64 * MIB);
    let state = serves(&config).await.0.unwrap();
    assert!(!state.up && state.reason.unwrap().contains("are free"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_system_that_fills_up_while_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_mounted) = Mounted::new(&["-t", "tmpfs", "-o", "size=64m", "tmpfs"], dir.path())
    else {
        return;
    };
    let config = on(dir.path(), 64 << 10, MIB, 60 * MIB);
    let rig = rig(&config, StorePolicy::default(), &MemoryStore::new()).await;
    // Someone else takes the room.
    _ = std::fs::write(dir.path().join("hog"), vec![1; 62 << 20]);
    for n in 0..60u32 {
        rig.memory.insert(&format!("k{n}"), block(n, 300_000));
    }
    for _ in 0..2 {
        for n in 0..60u32 {
            let name = format!("k{n}");
            let got = tokio::time::timeout(Duration::from_mins(1), rig.full(&name));
            assert_eq!(got.await.unwrap().unwrap(), block(n, 300_000));
        }
        tokio::time::timeout(Duration::from_secs(90), rig.cache.flush()).await.unwrap();
    }
    let stats = rig.cache.stats();
    assert!(stats.dropped.values().sum::<u64>() > 0, "what was not written is counted");
    let tier = stats.disk_state.unwrap();
    assert!(!tier.up && tier.reason.unwrap().contains("fail"), "and said");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_layout_is_discarded() {
    let dir = tempfile::tempdir().unwrap();
    let config = on(dir.path(), 64 << 10, MIB, 64 * MIB);
    let object = version("big", 1 << 30);
    let blocks = HybridBlocks::open(&config, &metrics()).await.unwrap();
    fill(&blocks, &object, 50, 64 << 10).await;
    blocks.close().await;
    drop(blocks);
    let layout = dir.path().join("layout");
    let text = std::fs::read_to_string(&layout).unwrap();
    std::fs::write(&layout, text.replace("warpdrive-cache 1", "warpdrive-cache 0")).unwrap();
    let blocks = reopen(&config).await;
    assert_eq!(resident(&blocks, &object, 50), 0);
    fill(&blocks, &object, 50, 64 << 10).await;
    assert_eq!(resident(&blocks, &object, 50), 50);
    drop(blocks);
    // Another block size is another layout; another capacity of the same is not.
    let larger = on(dir.path(), 32 << 10, MIB, 64 * MIB);
    assert_eq!(resident(&reopen(&larger).await, &object, 50), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_smaller_capacity_gives_room_back_and_keeps_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let config = on(dir.path(), 64 << 10, MIB, 128 * MIB);
    let object = version("big", 1 << 30);
    let blocks = HybridBlocks::open(&config, &metrics()).await.unwrap();
    fill(&blocks, &object, 1200, 64 << 10).await;
    blocks.close().await;
    drop(blocks);
    let blocks = reopen(&on(dir.path(), 64 << 10, MIB, 64 * MIB)).await;
    let held = resident(&blocks, &object, 1200);
    assert!((400..1000).contains(&held), "{held}");
    let files = std::fs::read_dir(dir.path().join("blocks")).unwrap();
    let bytes: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes <= 64 * MIB, "{bytes}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flipped_bits_and_garbage_are_misses() {
    let dir = tempfile::tempdir().unwrap();
    let config = on(dir.path(), 64 << 10, MIB, 64 * MIB);
    let memory = MemoryStore::new();
    for n in 0..40u32 {
        memory.insert(&format!("k{n}"), block(n, 300_000));
    }
    let first = rig(&config, StorePolicy::default(), &memory).await;
    for n in 0..40u32 {
        first.full(&format!("k{n}")).await.unwrap();
    }
    first.cache.flush().await;
    // While it runs: one bit in every 100 KiB of every file.
    let files: Vec<_> =
        std::fs::read_dir(dir.path().join("blocks")).unwrap().map(|e| e.unwrap().path()).collect();
    for path in &files {
        let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        for at in (50_000..file.metadata().unwrap().len()).step_by(100_000) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 4], at).unwrap();
        }
    }
    for n in 0..40u32 {
        assert_eq!(first.full(&format!("k{n}")).await.unwrap(), block(n, 300_000));
    }
    let stats = first.cache.stats();
    assert!(stats.bad_blocks > 20, "{}", stats.bad_blocks);
    first.cache.close().await;
    drop(first);
    // While it is down: whole files of garbage, a file cut short, one that is a directory.
    for (n, path) in files.iter().enumerate() {
        match n % 4 {
            0 => std::fs::write(path, block(3, 4 << 20)).unwrap(),
            1 => std::fs::write(path, b"short").unwrap(),
            _ => {}
        }
    }
    let second = rig(&config, StorePolicy::default(), &memory).await;
    for n in 0..40u32 {
        assert_eq!(second.full(&format!("k{n}")).await.unwrap(), block(n, 300_000));
    }
    second.cache.close().await;
    drop(second);
    std::fs::remove_file(&files[0]).unwrap();
    std::fs::create_dir(&files[0]).unwrap();
    let (tier, _) = serves(&config).await;
    assert!(!tier.unwrap().up);
}
