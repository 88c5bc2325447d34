//! How long things are believed, and what an outage changes.

use super::*;
use store::testing::{Fault, Operation};
use store::{Body, Condition, CopyOptions, ListRequest, PutOptions, StoreExt};

use crate::Immutable;

async fn advance(seconds: u64) {
    tokio::time::advance(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn past_the_ttl_one_head_is_shared_by_all_readers() {
    let rig = rig().await;
    rig.memory.insert("k", content(1, 3000));
    rig.full("k").await.unwrap();
    advance(59).await;
    rig.calls();
    rig.full("k").await.unwrap();
    assert_eq!(rig.calls(), 0);
    advance(2).await;
    rig.origin.inject(Operation::Head, Fault::Delay(Duration::from_millis(50)));
    let reads = futures::future::join_all((0..20).map(|_| rig.full("k"))).await;
    assert!(reads.into_iter().all(|r| r.unwrap() == content(1, 3000)));
    assert_eq!(rig.origin.calls().of(Operation::Head), 1);
    assert_eq!(rig.calls(), 1);
    assert_eq!(rig.stats().revalidations["same"], 1);
}

#[tokio::test(start_paused = true)]
async fn an_immutable_object_is_never_asked_about_again() {
    let immutable = Immutable::Prefixes(vec!["v1/".into()]);
    let rig = rig_with(small(), StorePolicy { immutable, ..StorePolicy::default() }).await;
    rig.memory.insert("v1/k", content(1, 3000));
    rig.memory.insert("v2/k", content(1, 3000));
    rig.full("v1/k").await.unwrap();
    rig.full("v2/k").await.unwrap();
    rig.calls();
    advance(1_000_000).await;
    rig.full("v1/k").await.unwrap();
    assert_eq!(rig.calls(), 0);
    rig.full("v2/k").await.unwrap();
    assert_eq!(rig.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_change_at_the_origin_is_seen_past_the_ttl_and_a_pin_refuses_it() {
    let rig = rig().await;
    let old = rig.memory.insert("k", content(1, 3000));
    rig.full("k").await.unwrap();
    let new = rig.memory.insert("k", content(2, 2500));
    assert_eq!(rig.full("k").await.unwrap(), content(1, 3000), "within the TTL");
    advance(61).await;
    assert_eq!(rig.pinned("k", &old).await.unwrap_err().kind(), ErrorKind::PreconditionFailed);
    assert_eq!(rig.full("k").await.unwrap(), content(2, 2500));
    assert_eq!(rig.pinned("k", &new).await.unwrap(), content(2, 2500));
}

#[tokio::test(start_paused = true)]
async fn a_pin_newer_than_what_is_known_is_checked() {
    let rig = rig().await;
    rig.memory.insert("k", content(1, 3000));
    rig.full("k").await.unwrap();
    advance(2).await;
    let new = rig.memory.insert("k", content(2, 2500));
    assert_eq!(rig.pinned("k", &new).await.unwrap(), content(2, 2500));
}

#[tokio::test(start_paused = true)]
async fn a_miss_of_a_changed_object_follows_it_before_the_first_byte() {
    let rig = rig().await;
    let old = rig.memory.insert("k", content(1, 9000));
    rig.store.head(&key("k")).await.unwrap();
    rig.memory.insert("k", content(2, 8000));
    assert_eq!(rig.pinned("k", &old).await.unwrap_err().kind(), ErrorKind::PreconditionFailed);
    assert_eq!(rig.full("k").await.unwrap(), content(2, 8000));
    rig.store.head(&key("k")).await.unwrap();
    rig.memory.remove("k");
    rig.store.origin.meta.learn(
        &key("k"),
        u64::MAX,
        tokio::time::Instant::now(),
        Some(rig.store.version_of(&key("k"), &old, 9000).meta.clone()),
    );
    assert_eq!(rig.full("k").await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_bridged_counted_and_bounded() {
    let rig = rig().await;
    rig.memory.insert("d/k", content(1, 3000));
    let request = ListRequest { prefix: "d/".into(), ..ListRequest::default() };
    let page = rig.store.list(&request).await.unwrap();
    rig.full("d/k").await.unwrap();
    advance(61).await;
    rig.origin.set_down(true);
    rig.calls();
    for _ in 0..10 {
        assert_eq!(rig.full("d/k").await.unwrap(), content(1, 3000));
    }
    assert_eq!(rig.calls(), 1, "asked once, then left alone for a moment");
    assert!(rig.stats().stale_served >= 10);
    assert_eq!(rig.store.list(&request).await.unwrap().entries, page.entries);
    assert!(rig.read("d/none", ByteRange::Full).await.unwrap_err().kind().is_outage());
    advance(3600).await;
    assert!(rig.full("d/k").await.unwrap_err().kind().is_outage());
    assert!(rig.store.list(&request).await.is_err());
    rig.origin.set_down(false);
    assert_eq!(rig.full("d/k").await.unwrap(), content(1, 3000));
}

#[tokio::test(start_paused = true)]
async fn stale_if_error_of_zero_refuses() {
    let policy = StorePolicy { stale_if_error: Duration::ZERO, ..StorePolicy::default() };
    let rig = rig_with(small(), policy).await;
    rig.memory.insert("k", content(1, 3000));
    rig.full("k").await.unwrap();
    rig.origin.set_down(true);
    assert!(rig.full("k").await.is_ok(), "fresh");
    advance(61).await;
    assert!(rig.full("k").await.unwrap_err().kind().is_outage());
}

#[tokio::test(start_paused = true)]
async fn what_is_not_there_is_remembered_for_a_moment() {
    let rig = rig().await;
    assert_eq!(rig.full("k").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(rig.store.head(&key("k")).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(rig.calls(), 1);
    rig.memory.insert("k", content(1, 10));
    advance(6).await;
    assert_eq!(rig.full("k").await.unwrap(), content(1, 10));
}

#[tokio::test(start_paused = true)]
async fn a_listing_spares_the_heads() {
    let rig = rig().await;
    for n in 0..300 {
        rig.memory.insert(&format!("d/{n:03}"), content(n, 100));
    }
    rig.store.list(&ListRequest::default()).await.unwrap();
    rig.calls();
    for n in 0..300 {
        let name = format!("d/{n:03}");
        assert_eq!(rig.full(&name).await.unwrap(), content(n, 100));
    }
    assert_eq!(rig.origin.calls().of(Operation::Head), 0);
    assert_eq!(rig.calls(), 300);
    rig.store.list(&ListRequest::default()).await.unwrap();
    assert_eq!(rig.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn writes_are_seen_at_once() {
    let rig = rig().await;
    rig.memory.insert("k", content(1, 3000));
    rig.memory.insert("from", content(5, 400));
    rig.full("k").await.unwrap();
    let before = rig.store.list(&ListRequest::default()).await.unwrap().entries.len();
    rig.store.put_bytes(&key("k"), content(2, 2000)).await.unwrap();
    rig.store.put_bytes(&key("new"), content(3, 20)).await.unwrap();
    assert_eq!(rig.full("k").await.unwrap(), content(2, 2000));
    assert_eq!(rig.full("new").await.unwrap(), content(3, 20));
    assert_eq!(rig.store.list(&ListRequest::default()).await.unwrap().entries.len(), before + 1);
    rig.store.copy(&key("from"), &key("k"), CopyOptions::default()).await.unwrap();
    assert_eq!(rig.full("k").await.unwrap(), content(5, 400));
    rig.store.delete(&key("k"), None).await.unwrap();
    assert_eq!(rig.full("k").await.unwrap_err().kind(), ErrorKind::NotFound);
    let upload = rig.store.start_upload(&key("k"), PutOptions::default()).await.unwrap();
    let part =
        rig.store.put_part(&key("k"), &upload, 1, Body::from(content(6, 1500))).await.unwrap();
    let parts = [(1, part.etag)];
    rig.store.complete_upload(&key("k"), &upload, &parts, Condition::None).await.unwrap();
    assert_eq!(rig.full("k").await.unwrap(), content(6, 1500));
}

#[tokio::test(start_paused = true)]
async fn answers_in_flight_lose_against_a_write() {
    let rig = rig().await;
    rig.memory.insert("k", content(1, 3000));
    rig.full("k").await.unwrap();
    advance(61).await;
    // The HEAD is asked, then the write happens, then the HEAD is answered with the old version.
    rig.origin.inject(Operation::Head, Fault::WrongETag(ETag::parse("old")));
    let store = rig.store.clone();
    let slow = rig.origin.clone();
    slow.inject(Operation::List, Fault::Delay(Duration::from_secs(1)));
    let listing = tokio::spawn(async move { store.list(&ListRequest::default()).await });
    tokio::task::yield_now().await;
    rig.store.put_bytes(&key("k"), content(2, 2000)).await.unwrap();
    listing.await.unwrap().unwrap();
    assert_eq!(rig.full("k").await.unwrap(), content(2, 2000));
    // A write that is dropped halfway leaves nothing believed.
    rig.origin.inject(Operation::Put, Fault::Hang);
    let (body, k) = (content(3, 10), key("k"));
    let hung = tokio::time::timeout(Duration::from_secs(1), rig.store.put_bytes(&k, body));
    assert!(hung.await.is_err());
    rig.memory.insert("k", content(3, 10));
    assert_eq!(rig.full("k").await.unwrap(), content(3, 10));
    // So does one that fails.
    rig.origin.inject(Operation::Put, Fault::Fail(ErrorKind::Timeout));
    rig.store.put_bytes(&key("k"), content(4, 10)).await.unwrap_err();
    rig.memory.insert("k", content(4, 11));
    assert_eq!(rig.full("k").await.unwrap(), content(4, 11));
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_hangs_is_waited_for_a_moment_where_something_usable_is_held() {
    let rig = rig().await;
    rig.memory.insert("d/k", content(1, 3000));
    let request = ListRequest { prefix: "d/".into(), ..ListRequest::default() };
    let page = rig.store.list(&request).await.unwrap();
    rig.full("d/k").await.unwrap();
    advance(61).await;
    rig.origin.inject(Operation::Head, Fault::Hang);
    rig.origin.inject(Operation::List, Fault::Hang);
    rig.calls();
    let since = tokio::time::Instant::now();
    assert_eq!(rig.full("d/k").await.unwrap(), content(1, 3000));
    assert!(since.elapsed() < Duration::from_secs(4), "{:?}", since.elapsed());
    assert_eq!(rig.full("d/k").await.unwrap(), content(1, 3000));
    assert!(since.elapsed() < Duration::from_secs(4), "not waited for again");
    for _ in 0..5 {
        assert_eq!(rig.store.list(&request).await.unwrap().entries, page.entries);
    }
    assert!(since.elapsed() < Duration::from_secs(7), "{:?}", since.elapsed());
    assert_eq!(rig.calls(), 2);
    // An answer that only comes late is kept.
    advance(100).await;
    rig.origin.clear();
    rig.memory.insert("d/k", content(2, 3000));
    rig.origin.inject(Operation::Head, Fault::Delay(Duration::from_secs(10)));
    rig.origin.inject(Operation::List, Fault::Delay(Duration::from_secs(10)));
    assert_eq!(rig.full("d/k").await.unwrap(), content(1, 3000));
    assert_eq!(rig.store.list(&request).await.unwrap().entries, page.entries);
    tokio::time::sleep(Duration::from_secs(11)).await;
    rig.calls();
    assert_eq!(rig.full("d/k").await.unwrap(), content(2, 3000));
    assert_ne!(rig.store.list(&request).await.unwrap().entries, page.entries);
    assert_eq!(rig.origin.calls().of(Operation::Head), 0);
    assert_eq!(rig.origin.calls().of(Operation::List), 0);
}

#[tokio::test(start_paused = true)]
async fn a_pin_that_does_not_match_takes_nothing_from_others_in_an_outage() {
    let rig = rig().await;
    rig.memory.insert("k", content(1, 3000));
    rig.full("k").await.unwrap();
    advance(2).await;
    rig.origin.set_down(true);
    rig.pinned("k", &ETag::parse("stale")).await.unwrap_err();
    assert_eq!(rig.full("k").await.unwrap(), content(1, 3000));
    advance(60).await;
    rig.pinned("k", &ETag::parse("stale")).await.unwrap_err();
    assert_eq!(rig.full("k").await.unwrap(), content(1, 3000));
}

#[tokio::test(start_paused = true)]
async fn a_pin_that_does_not_match_an_immutable_object_asks_nothing() {
    let policy = StorePolicy { immutable: Immutable::All, ..StorePolicy::default() };
    let rig = rig_with(small(), policy).await;
    rig.memory.insert("k", content(1, 3000));
    rig.full("k").await.unwrap();
    advance(100).await;
    rig.calls();
    let refused = rig.pinned("k", &ETag::parse("other")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PreconditionFailed);
    assert_eq!(rig.calls(), 0);
}
