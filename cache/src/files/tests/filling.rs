//! How objects become files, and that every byte is written once.

use store::{Condition, PutOptions};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_whole_becomes_a_file_and_each_byte_is_written_once() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig(&on(dir.path(), 4 * MIB, 256 * MIB), &MemoryStore::new()).await;
    let bytes = content(1, 20 * MIB + 12_345);
    rig.memory.insert("k", bytes.clone());
    assert_eq!(rig.copy("k").await.unwrap_err(), NoCopy::Incomplete);
    assert_eq!(rig.full("k").await, bytes);
    rig.cache.flush().await;
    println!(
        "{:?} refused {:?} dropped {:?} written {}",
        rig.copy("k").await.err(),
        Metrics::by_label(&rig.metrics().file_refused),
        Metrics::by_label(&rig.metrics().dropped),
        rig.metrics().file_written.get()
    );
    let copy = rig.copy("k").await.unwrap();
    assert_eq!(all_of(&copy.file), bytes);
    assert_eq!(rig.metrics().file_published.get(), 1);
    assert_eq!(rig.metrics().file_written.get(), bytes.len() as u64);
    assert_eq!(rig.metrics().disk_filled.get(), 0, "nothing of it went to the block tier");
    // Another reader, long after memory has let go of it, asks nobody.
    rig.origin.set_down(true);
    assert_eq!(rig.full("k").await, bytes);
    let kept = rig.cache.stats();
    assert_eq!(kept.fetch.bytes, bytes.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_finds_files_and_parts() {
    let dir = tempfile::tempdir().unwrap();
    let config = on(dir.path(), 8 * MIB, 256 * MIB);
    let memory = MemoryStore::new();
    let (whole, half) = (content(1, 3 * MIB), content(2, 40 * MIB));
    memory.insert("whole", whole.clone());
    memory.insert("half", half.clone());
    let first = rig(&config, &memory).await;
    assert_eq!(first.full("whole").await, whole);
    assert_eq!(first.range("half", 0, 20 * MIB).await, half.slice(..20 << 20));
    first.cache.close().await;
    drop(first);
    let second = rig(&config, &memory).await;
    assert_eq!(all_of(&second.copy("whole").await.unwrap().file), whole);
    assert_eq!(second.copy("half").await.unwrap_err(), NoCopy::Incomplete);
    assert_eq!(second.full("half").await, half);
    assert_eq!(second.cache.stats().fetch.bytes, 20 * MIB, "only what was missing");
    second.cache.flush().await;
    assert_eq!(all_of(&second.copy("half").await.unwrap().file), half);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_warmed_becomes_a_file_and_each_byte_is_written_once() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig(&on(dir.path(), 4 * MIB, 256 * MIB), &MemoryStore::new()).await;
    let bytes = content(1, 40 * MIB + 7);
    rig.memory.insert("k", bytes.clone());
    let warmed = rig.store.warm(&key("k"), None).await.unwrap();
    assert_eq!((warmed.fetched_bytes, warmed.resident_bytes), (warmed.size, warmed.size));
    assert_eq!(warmed.reason_if_not, None);
    assert_eq!(all_of(&rig.copy("k").await.unwrap().file), bytes);
    assert_eq!(rig.metrics().file_written.get(), bytes.len() as u64);
    assert_eq!(rig.metrics().disk_filled.get(), 0);
    let meta = rig.memory.head(&key("k")).await.unwrap();
    let held = rig.store.residency(&key("k"), &meta.etag, meta.size).await;
    assert_eq!((held.bytes, held.of), (meta.size, meta.size));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_of_the_end_makes_a_file_past_the_threshold_and_copies_what_is_here() {
    let dir = tempfile::tempdir().unwrap();
    let tiers = tiers(&on(dir.path(), 64 * MIB, 512 * MIB)).await;
    let bytes = content(1, 60 * MIB);
    let object = version("k", "v1", 60 * MIB);
    // From 40 MiB on: blocks, until 8 MiB have come in sequence.
    tiers.put(&object, &bytes, 640..960).await;
    tiers.blocks.flush().await;
    assert!(!tiers.is_file(&object));
    let (first, written) = (tiers.metrics.disk_filled.get(), tiers.metrics.file_written.get());
    assert!((7 * MIB..9 * MIB).contains(&first), "{first}");
    assert_eq!(first + written, 20 * MIB, "each byte once");
    // The rest completes it, with what lies in blocks.
    tiers.put(&object, &bytes, 0..640).await;
    tiers.blocks.flush().await;
    assert!(tiers.is_file(&object));
    assert_eq!(tiers.metrics.file_promoted.get(), first);
    assert_eq!(tiers.metrics.file_written.get(), 60 * MIB);
    assert!(tiers.load(&object, &bytes, 0).await && tiers.load(&object, &bytes, 700).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_is_opened_again_is_completed() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig(&on(dir.path(), 8 * MIB, 256 * MIB), &MemoryStore::new()).await;
    let (small, large) = (content(1, 3 * MIB), content(2, 60 * MIB));
    rig.memory.insert("small", small.clone());
    rig.memory.insert("large", large.clone());
    for name in ["small", "large"] {
        rig.range(name, 10, 200).await;
        assert_eq!(rig.copy(name).await.unwrap_err(), NoCopy::Incomplete, "opened once");
    }
    assert_eq!(rig.copy("small").await.unwrap_err(), NoCopy::Incomplete, "and again");
    assert_eq!(all_of(&rig.copy_soon("small").await.file), small);
    let before = rig.cache.stats().fetch.bytes;
    assert_eq!(rig.copy("large").await.unwrap_err(), NoCopy::Incomplete);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(rig.cache.stats().fetch.bytes, before, "little of a large one is here");
    assert_eq!(rig.range("large", 0, 40 * MIB).await, large.slice(..40 << 20));
    rig.copy("large").await.unwrap_err();
    assert_eq!(all_of(&rig.copy_soon("large").await.file), large);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_objects_and_those_that_would_displace_the_others_stay_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig(&on(dir.path(), 4 * MIB, 64 * MIB), &MemoryStore::new()).await;
    for (name, size) in [("small", 64 * KIB - 1), ("line", 64 * KIB), ("huge", 40 * MIB)] {
        rig.memory.insert(name, content(size, size));
        assert_eq!(rig.full(name).await, content(size, size));
    }
    rig.cache.flush().await;
    assert_eq!(rig.copy("small").await.unwrap_err(), NoCopy::Small);
    assert_eq!(rig.copy("huge").await.unwrap_err(), NoCopy::Small);
    assert_eq!(all_of(&rig.copy("line").await.unwrap().file), content(64 * KIB, 64 * KIB));
    assert_eq!(rig.metrics().file_written.get(), 64 * KIB);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_files_there_is_no_copy() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = on(dir.path(), 4 * MIB, 64 * MIB);
    let off = FilesConfig { enabled: false, ..FilesConfig::default() };
    config.disk.as_mut().unwrap().files = off;
    let rig = rig(&config, &MemoryStore::new()).await;
    rig.memory.insert("k", content(1, MIB));
    rig.full("k").await;
    rig.cache.flush().await;
    assert_eq!(rig.copy("k").await.unwrap_err(), NoCopy::Off);
    assert!(rig.cache.stats().files.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tier_that_is_turned_off_gives_its_room_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = on(dir.path(), 4 * MIB, 64 * MIB);
    let first = rig(&config, &MemoryStore::new()).await;
    first.memory.insert("k", content(1, MIB));
    first.full("k").await;
    first.cache.close().await;
    assert_eq!(published(dir.path()).len(), 1);
    drop(first);
    config.disk.as_mut().unwrap().files.enabled = false;
    let _second = rig(&config, &MemoryStore::new()).await;
    until("files are removed", || !dir.path().join("files").exists()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_object_passes_by_the_page_cache_and_a_small_one_does_not() {
    // tmpfs has no other place than memory; a directory of the build is on a disk.
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR").to_owned() + "/../target").unwrap();
    let memory = MemoryStore::new();
    let large = content(7, 12 * MIB + 123);
    let small = content(8, 300 * KIB);
    // In parts, so that its tag is no MD5, for which the file would be read.
    let upload = memory.start_upload(&key("large"), PutOptions::default()).await.unwrap();
    let part = memory.put_part(&key("large"), &upload, 1, large.clone().into()).await.unwrap();
    let parts = [(1, part.etag)];
    memory.complete_upload(&key("large"), &upload, &parts, Condition::None).await.unwrap();
    memory.insert("small", small.clone());
    let mut config = on(dir.path(), 32 * MIB, 256 * MIB);
    config.disk.as_mut().unwrap().files.direct_writes = true;
    let rig = rig(&config, &memory).await;
    for (name, bytes) in [("large", &large), ("small", &small)] {
        assert!(rig.full(name).await == *bytes);
        let copy = rig.copy_soon(name).await;
        let pages = pages_in_memory(&copy.file, bytes.len());
        assert!(all_of(&copy.file) == *bytes, "{name}");
        let all = bytes.len().div_ceil(4096);
        if name == "small" {
            assert_eq!(pages, all, "a small file is hot");
        } else if rig.cache.shared().files.as_ref().unwrap().writes_direct() {
            assert!(pages < all / 4, "{pages} of {all} pages of a large file are in memory");
        }
    }
}

/// Pages of a file that are in the page cache.
#[allow(unsafe_code)]
fn pages_in_memory(file: &File, len: usize) -> usize {
    use std::os::fd::AsRawFd;
    let mut seen = vec![0u8; len.div_ceil(4096)];
    // SAFETY: a fresh read-only mapping of `len` bytes, asked about and taken away again; `seen` has a
    // byte for each of its pages.
    unsafe {
        let at = libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        assert_ne!(at, libc::MAP_FAILED);
        assert_eq!(libc::mincore(at, len, seen.as_mut_ptr()), 0);
        libc::munmap(at, len);
    }
    seen.iter().filter(|page| **page & 1 == 1).count()
}
