//! An origin that misbehaves: right bytes or a clear error, always, and in bounded time.

use super::*;
use store::testing::{Fault, Operation};

const SIZE: usize = 9500;

async fn faulty(fault: Fault) -> (Rig, Result<Bytes, Error>) {
    let rig = rig().await;
    rig.memory.insert("k", content(1, SIZE));
    rig.store.head(&key("k")).await.unwrap();
    rig.origin.inject(Operation::Get, fault);
    let got = soon(rig.full("k")).await;
    (rig, got)
}

#[tokio::test]
async fn bodies_that_break_off_are_continued() {
    for fault in [
        Fault::CutAfter(0),
        Fault::CutAfter(700),
        Fault::CutAfter(2500),
        Fault::EndAfter(0),
        Fault::EndAfter(1000),
        Fault::EndAfter(3999),
    ] {
        let (rig, got) = faulty(fault.clone()).await;
        assert_eq!(got.unwrap(), content(1, SIZE), "{fault:?}");
        assert_eq!(rig.stats().fetch.retries, 1);
        let wasted = rig.origin.calls().bytes_read() - SIZE as u64;
        assert!(wasted < BLOCK, "{wasted} bytes fetched twice after {fault:?}");
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_again_and_again_is_an_error_then_works() {
    let rig = rig().await;
    rig.memory.insert("k", content(1, 3000));
    rig.store.head(&key("k")).await.unwrap();
    for _ in 0..2 {
        rig.origin.inject(Operation::Get, Fault::EndAfter(10));
    }
    assert_eq!(soon(rig.full("k")).await.unwrap_err().kind(), ErrorKind::Corrupted);
    assert_eq!(soon(rig.full("k")).await.unwrap(), content(1, 3000));
    assert_eq!(rig.stats().fetch.failures, 1);
}

#[tokio::test]
async fn refusals_are_passed_on_and_not_repeated() {
    for kind in [ErrorKind::PermissionDenied, ErrorKind::Unavailable, ErrorKind::Throttled] {
        let rig = rig().await;
        rig.memory.insert("k", content(1, 900));
        rig.store.head(&key("k")).await.unwrap();
        rig.calls();
        rig.origin.inject(Operation::Get, Fault::Fail(kind));
        assert_eq!(soon(rig.full("k")).await.unwrap_err().kind(), kind);
        assert_eq!(rig.calls(), 1);
        assert_eq!(soon(rig.full("k")).await.unwrap(), content(1, 900));
    }
}

#[tokio::test]
async fn a_body_that_is_short_twice_leaves_nothing_behind() {
    let (rig, blocks) = rig_over_map();
    rig.memory.insert("k", content(1, 900));
    rig.store.head(&key("k")).await.unwrap();
    for fault in [Fault::EndAfter(899), Fault::CutAfter(899)] {
        rig.origin.inject(Operation::Get, fault);
    }
    soon(rig.full("k")).await.unwrap_err();
    assert_eq!(blocks.len(), 0);
    assert_eq!(rig.full("k").await.unwrap(), content(1, 900));
    assert_eq!(blocks.len(), 1);
}

#[tokio::test]
async fn another_version_is_never_admitted() {
    let (rig, got) = faulty(Fault::WrongETag(ETag::parse("other"))).await;
    assert_eq!(got.unwrap(), content(1, SIZE), "unpinned readers ask again");
    let etag = rig.memory.head(&key("k")).await.unwrap().etag;
    let other = store::Residency::residency(&*rig.store, &key("k"), &ETag::parse("other"), 1).await;
    assert_eq!(other.bytes, 0);
    assert_eq!(rig.pinned("k", &etag).await.unwrap(), content(1, SIZE));
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_hangs_is_given_up() {
    for fault in [Fault::Hang, Fault::HangAfter(1500)] {
        let rig = rig().await;
        rig.memory.insert("k", content(1, SIZE));
        rig.store.head(&key("k")).await.unwrap();
        rig.origin.inject(Operation::Get, fault.clone());
        rig.origin.inject(Operation::Get, fault.clone());
        let got = tokio::time::timeout(Duration::from_mins(5), rig.full("k")).await.unwrap();
        match got {
            Ok(bytes) => assert_eq!(bytes, content(1, SIZE)),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Timeout, "{error}"),
        }
        assert_eq!(rig.full("k").await.unwrap(), content(1, SIZE));
    }
    let rig = rig().await;
    rig.origin.inject(Operation::Head, Fault::Hang);
    let got = tokio::time::timeout(Duration::from_mins(5), rig.store.head(&key("k"))).await;
    assert_eq!(got.unwrap().unwrap_err().kind(), ErrorKind::Timeout);
}

#[tokio::test]
async fn a_reader_that_leaves_strands_nobody() {
    let rig = rig().await;
    rig.memory.insert("k", content(1, 3000));
    rig.store.head(&key("k")).await.unwrap();
    rig.origin.inject(Operation::Get, Fault::Delay(Duration::from_millis(200)));
    let first = tokio::spawn({
        let store = rig.store.clone();
        async move { read(&store, "k", GetOptions::default()).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let second = tokio::spawn({
        let store = rig.store.clone();
        async move { read(&store, "k", GetOptions::default()).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    first.abort();
    assert_eq!(soon(second).await.unwrap().unwrap(), content(1, 3000));
    assert_eq!(rig.origin.calls().of(Operation::Get), 1);
}

#[tokio::test]
async fn a_block_is_there_before_its_whole_get_is() {
    let rig = rig().await;
    rig.memory.insert("k", content(1, 4000));
    rig.store.head(&key("k")).await.unwrap();
    // The first three blocks arrive, the fourth never does.
    rig.origin.inject(Operation::Get, Fault::HangAfter(3100));
    let got = rig.store.get(&key("k"), GetOptions::default()).await.unwrap();
    let mut body = got.body;
    for n in 0..3usize {
        let piece = soon(body.try_next()).await.unwrap().unwrap();
        assert_eq!(piece, content(1, 4000).slice(n * 1000..n * 1000 + 1000));
    }
}

#[tokio::test]
async fn errors_are_not_remembered() {
    let rig = rig().await;
    rig.memory.insert("k", content(1, 3000));
    rig.origin.set_down(true);
    assert!(rig.full("k").await.is_err());
    assert!(rig.store.head(&key("k")).await.is_err());
    rig.origin.set_down(false);
    assert_eq!(rig.full("k").await.unwrap(), content(1, 3000));
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_hangs_is_a_miss() {
    let (rig, blocks) = rig_over_map();
    blocks.disk_hangs.store(true, std::sync::atomic::Ordering::Relaxed);
    rig.memory.insert("k", content(1, SIZE));
    let since = tokio::time::Instant::now();
    rig.store.stat(&key("k")).await.unwrap();
    assert!(since.elapsed() < Duration::from_secs(3), "{:?}", since.elapsed());
    let got = tokio::time::timeout(Duration::from_secs(10), rig.full("k")).await.unwrap();
    assert_eq!(got.unwrap(), content(1, SIZE));
}

#[tokio::test]
async fn memory_is_no_substitute_for_a_disk_that_takes_nothing() {
    let (rig, blocks) = rig_over_map();
    blocks.disk_paused.store(true, std::sync::atomic::Ordering::Relaxed);
    rig.memory.insert("k", content(1, SIZE));
    let warmed = rig.store.warm(&key("k"), None).await.unwrap();
    assert_eq!((warmed.fetched_bytes, warmed.resident_bytes), (SIZE as u64, 0));
    assert!(warmed.reason_if_not.unwrap().contains("paused"));
}

#[tokio::test(start_paused = true)]
async fn a_slow_disk_is_waited_for_once_in_a_fetch_that_a_reader_waits_for() {
    for warming in [false, true] {
        let (rig, blocks) = rig_over_map();
        blocks.disk_slow.store(true, std::sync::atomic::Ordering::Relaxed);
        rig.memory.insert("k", content(1, 4000));
        rig.store.head(&key("k")).await.unwrap();
        if warming {
            let store = rig.store.clone();
            tokio::spawn(async move { store.warm(&key("k"), None).await });
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let since = tokio::time::Instant::now();
        assert_eq!(rig.full("k").await.unwrap(), content(1, 4000));
        // Five seconds of `fill_patience`, whether for one block or for all.
        assert!(since.elapsed() < Duration::from_secs(6), "{warming}: {:?}", since.elapsed());
    }
}
