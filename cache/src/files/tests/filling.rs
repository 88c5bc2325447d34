//! How objects become files, and that every byte is written once.

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
