//! Retries, resumed bodies, timeouts and the breaker over a store that fails on demand. The clock
//! is paused: it moves to the next deadline when everything waits.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use prometheus::Registry;
use store::testing::{Fault, FaultyStore, MemoryStore, Operation, contract};
use store::{ByteRange, StoreExt};

use super::*;

struct Fixture {
    memory: MemoryStore,
    faulty: FaultyStore,
    store: Resilient,
    metrics: Metrics,
}

fn policy() -> Policy {
    Policy { retries: 3, breaker_failures: 5, ..Policy::default() }
}

fn fixture(policy: &Policy) -> Fixture {
    let memory = MemoryStore::new();
    let faulty = FaultyStore::new(Arc::new(memory.clone()));
    let metrics = Metrics::register(&Registry::new()).unwrap();
    let store = Resilient::new(Arc::new(faulty.clone()), "origin", policy, &metrics);
    Fixture { memory, faulty, store, metrics }
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

fn bytes(count: usize) -> Bytes {
    (0..count).map(|n| (n % 251) as u8).collect()
}

#[tokio::test]
async fn the_contract_is_kept() {
    let f = fixture(&policy());
    contract::run(Arc::new(f.store), contract::Differences::default()).await.assert();
}

#[tokio::test(start_paused = true)]
async fn outages_are_retried_and_mistakes_are_not() {
    let f = fixture(&policy());
    f.memory.insert("k", "bytes");
    for kind in [ErrorKind::Unavailable, ErrorKind::Throttled, ErrorKind::Timeout] {
        f.faulty.inject(Operation::Head, Fault::Fail(kind));
    }
    f.store.head(&key("k")).await.unwrap();
    assert_eq!(f.faulty.calls().of(Operation::Head), 4);
    assert_eq!(f.metrics.retries.with_label_values(&["origin", "head"]).get(), 3);
    f.faulty.calls().reset();
    for kind in [ErrorKind::NotFound, ErrorKind::PermissionDenied, ErrorKind::Unauthenticated] {
        f.faulty.inject(Operation::Head, Fault::Fail(kind));
        assert_eq!(f.store.head(&key("k")).await.unwrap_err().kind(), kind);
    }
    assert_eq!(f.faulty.calls().of(Operation::Head), 3);
}

#[tokio::test(start_paused = true)]
async fn a_hanging_call_ends_in_time() {
    let f = fixture(&Policy { retries: 10, ..policy() });
    f.memory.insert("k", "bytes");
    for _ in 0..11 {
        f.faulty.inject(Operation::Head, Fault::Hang);
    }
    let begun = Instant::now();
    assert_eq!(f.store.head(&key("k")).await.unwrap_err().kind(), ErrorKind::Timeout);
    assert!(begun.elapsed() <= Duration::from_secs(61), "{:?}", begun.elapsed());
    assert!(f.faulty.calls().of(Operation::Head) >= 2);
}

#[tokio::test(start_paused = true)]
async fn a_cut_body_goes_on_where_it_broke() {
    let f = fixture(&policy());
    let expected = bytes(300_000);
    f.memory.insert("k", expected.clone());
    f.faulty.inject(Operation::Get, Fault::CutAfter(70_001));
    f.faulty.inject(Operation::Get, Fault::EndAfter(50_000));
    f.faulty.inject(Operation::Get, Fault::HangAfter(10));
    let found = f.store.get_bytes(&key("k"), ByteRange::Bounded(5, 299_000)).await.unwrap();
    assert!(found == expected[5..299_000]);
    assert_eq!(f.faulty.calls().of(Operation::Get), 4);
    // What was delivered was asked for once.
    assert_eq!(f.faulty.calls().bytes_read(), 299_000 - 5);
}

#[tokio::test(start_paused = true)]
async fn a_body_is_never_a_mixture_of_versions() {
    let f = fixture(&policy());
    f.memory.insert("k", bytes(300_000));
    f.faulty.inject(Operation::Get, Fault::CutAfter(100_000));
    let mut got = f.store.get(&key("k"), GetOptions::default()).await.unwrap();
    got.body.next().await.unwrap().unwrap();
    f.memory.insert("k", vec![7; 300_000]);
    let rest: Vec<_> = got.body.collect().await;
    let error = rest.last().unwrap().as_ref().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PreconditionFailed);
}

#[tokio::test(start_paused = true)]
async fn a_body_is_resumed_only_so_often() {
    let f = fixture(&policy());
    f.memory.insert("k", bytes(300_000));
    for _ in 0..4 {
        f.faulty.inject(Operation::Get, Fault::CutAfter(100));
    }
    let error = f.store.get_bytes(&key("k"), ByteRange::Full).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(f.faulty.calls().of(Operation::Get), 4);
}

#[tokio::test(start_paused = true)]
async fn the_budget_ends_retries_before_the_policy_does() {
    let f = fixture(&Policy { retry_budget: 5, breaker_failures: 0, ..policy() });
    f.faulty.set_down(true);
    for _ in 0..20 {
        f.store.head(&key("k")).await.unwrap_err();
    }
    assert_eq!(f.faulty.calls().of(Operation::Head), 25);
}

#[tokio::test(start_paused = true)]
async fn the_breaker_opens_tries_and_closes() {
    let f = fixture(&Policy { retries: 0, ..policy() });
    let health = f.store.health();
    f.faulty.set_down(true);
    // Answers in between that name a mistake of the caller begin the count again.
    for _ in 0..4 {
        f.store.head(&key("k")).await.unwrap_err();
    }
    f.faulty.set_down(false);
    assert_eq!(f.store.head(&key("k")).await.unwrap_err().kind(), ErrorKind::NotFound);
    f.faulty.set_down(true);
    for _ in 0..4 {
        f.store.head(&key("k")).await.unwrap_err();
        assert_eq!(health.state(), BreakerState::Closed);
    }
    f.store.head(&key("k")).await.unwrap_err();
    assert_eq!(health.state(), BreakerState::Open);
    assert_eq!(f.metrics.breaker.with_label_values(&["origin"]).get(), 2);
    f.faulty.calls().reset();
    let refused = f.store.head(&key("k")).await.unwrap_err();
    assert_eq!((refused.kind(), f.faulty.calls().total()), (ErrorKind::Unavailable, 0));
    assert!(refused.to_string().contains("`origin` failed 5 times"), "{refused}");
    assert!(refused.to_string().contains("tried again in 5.0 s"), "{refused}");

    tokio::time::advance(Duration::from_secs(6)).await;
    assert_eq!(health.state(), BreakerState::HalfOpen);
    f.store.head(&key("k")).await.unwrap_err();
    assert_eq!((health.state(), f.faulty.calls().total()), (BreakerState::Open, 1));

    f.faulty.set_down(false);
    tokio::time::advance(Duration::from_secs(6)).await;
    assert_eq!(f.store.head(&key("k")).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(health.state(), BreakerState::Closed);
    assert_eq!((health.describe().as_str(), health.is_ok()), ("ok", true));
    assert_eq!(f.metrics.breaker.with_label_values(&["origin"]).get(), 0);
}

#[tokio::test(start_paused = true)]
async fn half_open_lets_one_through_even_when_that_one_is_dropped() {
    let f = fixture(&Policy { retries: 0, ..policy() });
    f.memory.insert("k", "x");
    f.faulty.set_down(true);
    for _ in 0..5 {
        f.store.head(&key("k")).await.unwrap_err();
    }
    f.faulty.set_down(false);
    tokio::time::advance(Duration::from_secs(6)).await;
    f.faulty.inject(Operation::Head, Fault::Hang);
    let name = key("k");
    let mut trial = f.store.head(&name);
    assert!(futures::poll!(&mut trial).is_pending());
    f.store.head(&key("k")).await.unwrap_err();
    drop(trial);
    f.store.head(&key("k")).await.unwrap();
    assert_eq!(f.store.health().state(), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_body_is_sent_again_only_when_nobody_touched_it() {
    let f = fixture(&policy());
    f.faulty.inject(Operation::Put, Fault::Fail(ErrorKind::Unavailable));
    f.store.put_bytes(&key("k"), bytes(1000)).await.unwrap();
    assert_eq!(f.faulty.calls().of(Operation::Put), 2);
    assert_eq!(f.store.get_bytes(&key("k"), ByteRange::Full).await.unwrap(), bytes(1000));
    // This error comes out of the body, so the body was touched, and the origin is not to blame.
    let failing = futures::stream::iter([Err(Error::new(ErrorKind::Unavailable, "client left"))]);
    let body = Body::new(10, failing.boxed());
    let put = f.store.put(&key("k"), body, PutOptions::default()).await;
    assert_eq!(put.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(f.faulty.calls().of(Operation::Put), 3);
    assert_eq!(f.store.health().failures().0, 0);
}

#[tokio::test(start_paused = true)]
async fn a_put_that_the_origin_does_not_answer_ends() {
    let f = fixture(&Policy { retries: 0, ..policy() });
    f.faulty.inject(Operation::Put, Fault::Hang);
    let begun = Instant::now();
    let put = f.store.put_bytes(&key("k"), bytes(1000)).await;
    assert_eq!(put.unwrap_err().kind(), ErrorKind::Timeout);
    assert!(begun.elapsed() < Duration::from_secs(35), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_is_not_a_slow_origin() {
    let f = fixture(&policy());
    let slow = futures::stream::iter(0..3).then(|_| async {
        tokio::time::sleep(Duration::from_mins(5)).await;
        Ok(bytes(10))
    });
    let body = Body::new(30, slow.boxed());
    f.store.put(&key("k"), body, PutOptions::default()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_has_the_whole_body_may_take_long_to_commit_it() {
    let f = fixture(&policy());
    let commits_for = |time| {
        let sent = move |body: Body| async move {
            body.collect(1000).await?;
            tokio::time::sleep(time).await;
            Ok(())
        };
        f.store.send("put", Body::from(bytes(1000)), sent)
    };
    commits_for(Duration::from_mins(14)).await.unwrap();
    let begun = Instant::now();
    let late = commits_for(Duration::from_mins(20)).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Timeout);
    assert_eq!(begun.elapsed().as_secs(), Duration::from_mins(15).as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_bad_body_says_nothing_of_the_origin() {
    let f = fixture(&Policy { retry_budget: 1, retries: 0, ..policy() });
    f.faulty.set_down(true);
    for _ in 0..4 {
        f.store.head(&key("k")).await.unwrap_err();
    }
    assert!(f.store.shared.budget.spend());
    let left = || Err(Error::new(ErrorKind::IncompleteBody, "client left"));
    for _ in 0..20 {
        for pieces in [vec![left()], vec![Ok(bytes(5))], vec![Ok(bytes(11))]] {
            let body = Body::new(10, futures::stream::iter(pieces).boxed());
            let taken = |body: Body| async move { body.collect(1000).await };
            f.store.send("put", body, taken).await.unwrap_err();
        }
    }
    assert_eq!(f.store.health().failures().0, 4, "the row of failures goes on");
    assert!(!f.store.shared.budget.spend(), "nothing was given back");
}

#[tokio::test(start_paused = true)]
async fn a_trial_with_a_bad_body_leaves_the_next_call_to_try() {
    let f = fixture(&Policy { retries: 0, ..policy() });
    f.memory.insert("k", "x");
    f.faulty.set_down(true);
    for _ in 0..5 {
        f.store.head(&key("k")).await.unwrap_err();
    }
    f.faulty.set_down(false);
    tokio::time::advance(Duration::from_secs(6)).await;
    let left = [Err(Error::new(ErrorKind::IncompleteBody, "client left"))];
    let body = Body::new(10, futures::stream::iter(left).boxed());
    f.store.put(&key("k"), body, PutOptions::default()).await.unwrap_err();
    assert_eq!(f.store.health().state(), BreakerState::HalfOpen);
    f.store.head(&key("k")).await.unwrap();
    assert_eq!(f.store.health().state(), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn what_must_not_happen_twice_is_not_repeated() {
    let f = fixture(&policy());
    f.faulty.inject(Operation::StartUpload, Fault::Fail(ErrorKind::Timeout));
    f.store.start_upload(&key("k"), PutOptions::default()).await.unwrap_err();
    assert_eq!(f.faulty.calls().of(Operation::StartUpload), 1);
    f.faulty.inject(Operation::StartUpload, Fault::Fail(ErrorKind::Throttled));
    f.store.start_upload(&key("k"), PutOptions::default()).await.unwrap();
    assert_eq!(f.faulty.calls().of(Operation::StartUpload), 3);
}

#[tokio::test(start_paused = true)]
async fn many_bodies_at_once_survive_a_flaky_origin() {
    let f = fixture(&Policy { retries: 4, retry_budget: 100, breaker_failures: 0, ..policy() });
    let expected = bytes(200_000);
    f.memory.insert("k", expected.clone());
    for n in 0..30 {
        f.faulty.inject(Operation::Get, Fault::CutAfter(n * 1000));
    }
    let reads = futures::stream::iter(0..20)
        .map(|_| async { f.store.get_bytes(&key("k"), ByteRange::Full).await });
    let all: Vec<Bytes> = reads.buffer_unordered(20).try_collect().await.unwrap();
    assert!(all.iter().all(|found| *found == expected));
}
