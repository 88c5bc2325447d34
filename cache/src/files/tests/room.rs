//! The budget, as `du` counts it, and disks that are fuller than they should be.

use super::*;
use crate::testing::Mounted;

fn megabyte(n: u32) -> (Arc<Version>, Bytes) {
    (version(&format!("k{n}"), "v1", MIB), content(u64::from(n), MIB))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_tiers_stay_within_one_budget_as_du_counts() {
    let dir = tempfile::tempdir().unwrap();
    let capacity = 128 * MIB;
    let tiers = tiers(&on(dir.path(), 2 * MIB, capacity)).await;
    tiers.files().pin(1, Retention::Evict);
    let huge = version("huge", "v1", 1 << 40);
    let mut most = 0;
    for n in 0..400u32 {
        let (object, bytes) = megabyte(n);
        tiers.put(&object, &bytes, 0..16).await;
        // What is read at random goes to blocks, and takes its share.
        let noise = content(u64::from(n), BLOCK);
        let at = BlockKey::new(&huge, 5_000_000 + n * 1000);
        if let Some(spill) = tiers.blocks.insert(at, noise, Duration::from_mins(1)) {
            spill.await;
        }
        if n % 20 == 0 {
            most = most.max(du(dir.path()));
        }
    }
    tiers.blocks.flush().await;
    most = most.max(du(dir.path()));
    let now = (du(&dir.path().join("blocks")), du(&dir.path().join("files")));
    assert!(most <= capacity / 100 * 101, "{most} of {capacity}, at the end {now:?}");
    // What files may take is measured each second, and files go after that.
    let within = || {
        let stats = tiers.files().stats();
        stats.bytes <= stats.capacity_bytes
    };
    until("files are within what they may take", within).await;
    let stats = tiers.files().stats();
    assert!(stats.bytes > 70 * MIB, "{stats:?}");
    assert!(stats.evictions > 200, "{}", stats.evictions);
    let lying: u64 = files_below(&dir.path().join("files"))
        .iter()
        .map(|f| {
            let name = f.file_name().unwrap().to_str().unwrap();
            if name.starts_with("journal") {
                0
            } else {
                std::fs::metadata(f).unwrap().blocks() * 512
            }
        })
        .sum();
    assert_eq!(lying, stats.bytes, "the books are right");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_evicted_file_reads_on_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let tiers = tiers(&on(dir.path(), 2 * MIB, 64 * MIB)).await;
    tiers.files().pin(1, Retention::Evict);
    let mut held = Vec::new();
    for n in 0..200 {
        let (object, bytes) = megabyte(n);
        tiers.put_all(&object, &bytes).await;
        if let Some(whole) = tiers.blocks.whole(&object) {
            held.push((object, bytes, whole));
        }
    }
    assert!(held.len() > 100, "{}", held.len());
    let mut evicted = 0;
    for (object, bytes, whole) in &held {
        let gone = !tiers.is_file(object);
        let expected = if gone { CopyState::Evicted } else { CopyState::Good };
        assert_eq!(whole.fate.state(), expected, "{}", object.key);
        assert!(all_of(&whole.file) == *bytes, "{}", object.key);
        evicted += u64::from(gone);
    }
    assert!(evicted > 50 && evicted <= tiers.metrics.file_evictions.get(), "{evicted}");
    assert!(tiers.metrics.evictions.get() >= tiers.metrics.file_evictions.get());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_keeps_refuses_what_does_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let policy = StorePolicy { retention: Retention::Keep, ..StorePolicy::default() };
    let rig = rig_with(&on(dir.path(), 2 * MIB, 64 * MIB), &MemoryStore::new(), policy).await;
    for n in 0..120u64 {
        rig.memory.insert(&format!("k{n}"), content(n, MIB));
        assert_eq!(rig.full(&format!("k{n}")).await, content(n, MIB));
        rig.cache.flush().await;
    }
    let stats = rig.cache.stats();
    let files = stats.files.unwrap();
    assert_eq!(files.evictions, 0);
    assert!(files.files > 40 && files.refused["not_admitted"] > 40, "{files:?}");
    assert!(stats.dropped["retained"] > 40 * 16, "nor does it churn the block tier");
    assert_eq!(stats.disk_filled_bytes, 0);
    assert!(rig.copy("k0").await.is_ok(), "what is resident stays");
    assert_eq!(files.sets.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reserve_of_the_file_system_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_mounted) = Mounted::new(&["-t", "tmpfs", "-o", "size=96m", "tmpfs"], dir.path())
    else {
        return;
    };
    let mut config = on(&dir.path().join("cache"), 2 * MIB, 200 * MIB);
    config.disk.as_mut().unwrap().min_free_bytes = 40 * MIB;
    let tiers = tiers(&config).await;
    for n in 0..100 {
        let (object, bytes) = megabyte(n);
        tiers.put_all(&object, &bytes).await;
        assert!(super::super::kernel::free_bytes(dir.path()) >= 40 * MIB, "after {n}");
    }
    let held = tiers.files().stats().files;
    assert!(held > 20, "{held}");
    // Somebody else takes room: files give way, down to the reserve.
    std::fs::write(dir.path().join("hog"), vec![1; 30 << 20]).unwrap();
    until("room is given back", || super::super::kernel::free_bytes(dir.path()) >= 40 * MIB).await;
    assert!(tiers.files().stats().files < held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_costs_parts_and_no_reader() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_mounted) = Mounted::new(&["-t", "tmpfs", "-o", "size=64m", "tmpfs"], dir.path())
    else {
        return;
    };
    let mut config = on(&dir.path().join("cache"), 2 * MIB, 200 * MIB);
    // Nothing is known of the disk's size beforehand, and somebody else fills it.
    config.disk.as_mut().unwrap().min_free_bytes = 0;
    let rig = rig(&config, &MemoryStore::new()).await;
    let hog = dir.path().join("hog");
    _ = std::fs::write(&hog, vec![1; 62 << 20]);
    for n in 0..30u64 {
        rig.memory.insert(&format!("k{n}"), content(n, MIB));
        assert_eq!(rig.full(&format!("k{n}")).await, content(n, MIB));
    }
    rig.cache.flush().await;
    assert!(rig.cache.stats().files.unwrap().files < 10);
    std::fs::remove_file(&hog).unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    for n in 0..30u64 {
        assert_eq!(rig.full(&format!("k{n}")).await, content(n, MIB));
    }
    rig.cache.flush().await;
    let files = rig.cache.stats().files.unwrap();
    assert!(files.state.up && files.files > 15, "{files:?}");
}

#[tokio::test]
async fn parts_that_nobody_goes_on_with_do_not_keep_others_out() {
    use super::super::{MAX_PARTS, Route};
    let dir = tempfile::tempdir().unwrap();
    let tiers = tiers(&on(dir.path(), 2 * MIB, 100 << 30)).await;
    tokio::time::pause();
    let route = |n: usize| {
        let object = version(&format!("k{n}"), "v1", 2 * BLOCK);
        tiers.files().route(&BlockKey::new(&object, 0), BLOCK)
    };
    for n in 0..MAX_PARTS {
        assert!(matches!(route(n), Route::Part(_)), "{n}");
    }
    assert!(matches!(route(MAX_PARTS), Route::Blocks), "kept, if not as a file");
    tokio::time::advance(Duration::from_mins(2)).await;
    tiers.files().tick(1);
    assert_eq!(tiers.files().stats().parts, MAX_PARTS as u64 / 2);
    assert!(matches!(route(MAX_PARTS), Route::Part(_)));
}
