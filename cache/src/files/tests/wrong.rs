//! Bytes that are not what they should be: on disk, and from the origin.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_is_a_miss_and_another_file_takes_the_place() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig(&on(dir.path(), 2 * MIB, 256 * MIB), &MemoryStore::new()).await;
    let bytes = content(1, 8 * MIB);
    rig.memory.insert("k", bytes.clone());
    rig.full("k").await;
    rig.cache.flush().await;
    let copy = rig.copy("k").await.unwrap();
    let before = copy.file.metadata().unwrap().ino();
    flip(&only_file(dir.path()), 5 * MIB + 3);
    // Somebody doubts it.
    let meta = rig.memory.head(&key("k")).await.unwrap();
    let object =
        Arc::new(Version::new(twox_hash::XxHash3_64::oneshot(b"memory://test"), key("k"), meta));
    rig.cache.shared().blocks.suspect(&object);
    assert!(matches!(rig.copy("k").await, Err(NoCopy::Suspect | NoCopy::Incomplete)));
    rig.cache.flush().await;
    assert_eq!(copy.fate.state(), CopyState::Bad);
    assert_eq!(rig.metrics().file_bad.get(), 1);
    assert_eq!(rig.full("k").await, bytes);
    rig.cache.flush().await;
    let again = rig.copy("k").await.unwrap();
    assert_eq!(all_of(&again.file), bytes);
    assert_ne!(again.file.metadata().unwrap().ino(), before, "never patched");
    assert_eq!(again.fate.state(), CopyState::Good);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_doubt_without_reason_costs_a_look() {
    let dir = tempfile::tempdir().unwrap();
    let tiers = tiers(&on(dir.path(), 2 * MIB, 256 * MIB)).await;
    let (object, bytes) = (version("k", "v1", 3 * MIB), content(1, 3 * MIB));
    tiers.put_all(&object, &bytes).await;
    let held = tiers.blocks.whole(&object).unwrap();
    tiers.blocks.suspect(&object);
    tiers.blocks.flush().await;
    assert!(tiers.is_file(&object));
    assert_eq!(held.fate.state(), CopyState::Good);
    assert_eq!((tiers.metrics.file_suspects.get(), tiers.metrics.file_bad.get()), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_scrubber_finds_what_nobody_reads() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = on(dir.path(), 2 * MIB, 256 * MIB);
    config.disk.as_mut().unwrap().files.scrub_bytes_per_second = 100 * MIB;
    let tiers = tiers(&config).await;
    let objects: Vec<_> = (0..4).map(|n| version(&format!("k{n}"), "v1", 3 * MIB)).collect();
    for object in &objects {
        tiers.put_all(object, &content(1, 3 * MIB)).await;
    }
    let paths = published(dir.path());
    assert_eq!(paths.len(), 4);
    flip(&paths[0], 70_000);
    std::fs::OpenOptions::new().write(true).open(&paths[1]).unwrap().set_len(MIB).unwrap();
    std::fs::remove_file(&paths[2]).unwrap();
    until("three bad files", || tiers.metrics.file_bad.get() == 3).await;
    assert_eq!(published(dir.path()), [paths[3].clone()]);
    assert_eq!(objects.iter().filter(|object| tiers.is_file(object)).count(), 1);
    assert!(tiers.metrics.file_scrubbed.get() >= 3 * MIB);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_gone_or_short_is_noticed_when_it_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let config = on(dir.path(), 2 * MIB, 256 * MIB);
    let (object, bytes) = (version("k", "v1", 3 * MIB), content(1, 3 * MIB));
    for short in [false, true] {
        let tiers = tiers(&config).await;
        tiers.put_all(&object, &bytes).await;
        tiers.blocks.close().await;
        drop(tiers);
        let path = only_file(dir.path());
        if short {
            std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100).unwrap();
        } else {
            std::fs::remove_file(&path).unwrap();
        }
        let tiers = super::tiers(&config).await;
        assert!(!tiers.is_file(&object));
        assert!(!tiers.load(&object, &bytes, 1).await);
        tiers.blocks.flush().await;
        assert_eq!(tiers.metrics.file_bad.get(), 1);
        assert!(!tiers.blocks.on_disk(&BlockKey::new(&object, 1)));
        tiers.blocks.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_md5_that_is_not_that_of_the_bytes_makes_no_file() {
    use md5::{Digest, Md5};
    let dir = tempfile::tempdir().unwrap();
    let tiers = tiers(&on(dir.path(), 2 * MIB, 256 * MIB)).await;
    let bytes = content(1, 2 * MIB);
    let md5: Vec<String> = Md5::digest(&bytes).iter().map(|b| format!("{b:02X}")).collect();
    let right = version("right", &md5.concat(), 2 * MIB);
    tiers.put_all(&right, &bytes).await;
    assert!(tiers.is_file(&right));
    let wrong = |n: u32| version(&format!("wrong{n}"), "0123456789abcdef0123456789abcdef", 2 * MIB);
    for n in 0..8 {
        tiers.put_all(&wrong(n), &bytes).await;
        assert!(!tiers.is_file(&wrong(n)), "one tag was right: they mean something");
    }
    assert_eq!(tiers.metrics.file_bad.get(), 8);
    assert_eq!(published(dir.path()).len(), 1);
    assert_eq!(files_below(&dir.path().join("files/parts")), Vec::<PathBuf>::new());
    // It is not tried again, and stays blocks.
    let before = tiers.metrics.file_written.get();
    tiers.put_all(&wrong(0), &bytes).await;
    assert_eq!(tiers.metrics.file_written.get(), before);
    assert!(tiers.load(&wrong(0), &bytes, 3).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tags_that_only_look_like_md5s_are_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let tiers = tiers(&on(dir.path(), 2 * MIB, 256 * MIB)).await;
    let bytes = content(1, MIB);
    // As the tags of objects that the origin encrypts.
    for n in 0..8u32 {
        let object = version(&format!("k{n}"), &format!("{n:032x}"), MIB);
        tiers.put_all(&object, &bytes).await;
        assert_eq!(tiers.is_file(&object), n >= 3, "{n}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_with_a_bad_block_is_given_up_before_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let config = on(dir.path(), 2 * MIB, 256 * MIB);
    let (object, bytes) = (version("k", "v1", 4 * MIB), content(1, 4 * MIB));
    let first = tiers(&config).await;
    first.put(&object, &bytes, 0..32).await;
    first.blocks.flush().await;
    let files = Arc::clone(first.files());
    tokio::task::spawn_blocking(move || files.record_parts(1)).await.unwrap();
    flip(&files_below(&dir.path().join("files/parts"))[0], 3 * BLOCK + 7);
    assert!(first.load(&object, &bytes, 2).await);
    assert!(!first.load(&object, &bytes, 3).await);
    assert_eq!(first.files().stats().parts, 0);
    assert_eq!(files_below(&dir.path().join("files/parts")), Vec::<PathBuf>::new());
    first.blocks.close().await;
    drop(first);
    let second = tiers(&config).await;
    second.put_all(&object, &bytes).await;
    assert!(all_of(&second.blocks.whole(&object).unwrap().file) == bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_cannot_be_opened_just_now_is_as_good_as_before() {
    let dir = tempfile::tempdir().unwrap();
    let tiers = tiers(&on(dir.path(), 2 * MIB, 256 * MIB)).await;
    let (object, bytes) = (version("k", "v1", 4 * MIB), content(1, 4 * MIB));
    tiers.put(&object, &bytes, 0..32).await;
    tiers.blocks.flush().await;
    let part = files_below(&dir.path().join("files/parts")).remove(0);
    let aside = dir.path().join("aside");
    std::fs::rename(&part, &aside).unwrap();
    assert!(!tiers.load(&object, &bytes, 3).await);
    std::fs::rename(&aside, &part).unwrap();
    assert!(tiers.load(&object, &bytes, 3).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_somebody_removed_is_not_filled_up_with_holes() {
    let dir = tempfile::tempdir().unwrap();
    let tiers = tiers(&on(dir.path(), 2 * MIB, 256 * MIB)).await;
    let (object, bytes) = (version("k", "v1", 4 * MIB), content(1, 4 * MIB));
    tiers.put(&object, &bytes, 0..32).await;
    tiers.blocks.flush().await;
    std::fs::remove_file(&files_below(&dir.path().join("files/parts"))[0]).unwrap();
    tiers.put_all(&object, &bytes).await;
    assert!(!tiers.is_file(&object));
    assert_eq!(published(dir.path()), Vec::<PathBuf>::new());
}
