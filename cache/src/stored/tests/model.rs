//! The cached store beside its origin, under random writes, changes behind its back, and faults.

use super::*;
use proptest::prelude::*;
use store::testing::{Fault, Operation};
use store::{ListRequest, StoreExt};

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u64, usize),
    Delete(u8),
    Behind(u8, u64, usize),
    Vanish(u8),
    Get(u8, u64, u64),
    Pinned(u8, u64, u64),
    Head(u8),
    List,
    Wait(u64),
    Break(u8),
    Evict,
}

fn step() -> impl Strategy<Value = Step> {
    let name = 0u8..3;
    prop_oneof![
        (name.clone(), 0u64..9, 0usize..5000).prop_map(|(k, s, n)| Step::Put(k, s, n)),
        name.clone().prop_map(Step::Delete),
        (name.clone(), 0u64..9, 0usize..5000).prop_map(|(k, s, n)| Step::Behind(k, s, n)),
        name.clone().prop_map(Step::Vanish),
        (name.clone(), 0u64..5200, 1u64..3000).prop_map(|(k, a, n)| Step::Get(k, a, n)),
        (name.clone(), 0u64..5200, 1u64..3000).prop_map(|(k, a, n)| Step::Get(k, a, n)),
        (name.clone(), 0u64..5200, 1u64..3000).prop_map(|(k, a, n)| Step::Pinned(k, a, n)),
        (name.clone(), 0u64..5200, 1u64..60).prop_map(|(k, a, n)| Step::Get(k, a, n)),
        name.prop_map(Step::Head),
        Just(Step::List),
        (0u64..40).prop_map(Step::Wait),
        (0u8..7).prop_map(Step::Break),
        Just(Step::Evict),
    ]
}

fn fault(which: u8) -> (Operation, Fault) {
    match which {
        0 => (Operation::Get, Fault::CutAfter(500)),
        1 => (Operation::Get, Fault::EndAfter(1200)),
        2 => (Operation::Get, Fault::Fail(ErrorKind::Unavailable)),
        3 => (Operation::Head, Fault::Fail(ErrorKind::Timeout)),
        4 => (Operation::Get, Fault::WrongETag(ETag::parse("wrong"))),
        5 => (Operation::List, Fault::Fail(ErrorKind::Throttled)),
        _ => (Operation::Put, Fault::Fail(ErrorKind::Timeout)),
    }
}

/// Every content that an object ever had, by its tag: what a reader may be given.
#[derive(Default)]
#[allow(clippy::option_option)] // Certain or not; there or not.
struct History {
    versions: std::collections::HashMap<(u8, String), Bytes>,
    /// What the cache must show at least: set by writes through it, unset by changes behind it.
    certain: [Option<Option<Bytes>>; 3],
}

async fn run(steps: Vec<Step>, grain_bytes: u64) {
    let (rig, blocks) = rig_over_map_with(CacheConfig { grain_bytes, ..small() });
    let mut history = History::default();
    let mut broken = false;
    for step in steps {
        match step {
            Step::Put(k, seed, len) => {
                let bytes = content(seed, len);
                history.certain[k as usize] = None;
                let name = key(&k.to_string());
                if let Ok(written) = rig.store.put_bytes(&name, bytes.clone()).await {
                    history.versions.insert((k, written.etag.to_string()), bytes.clone());
                    history.certain[k as usize] = Some(Some(bytes));
                }
            }
            Step::Delete(k) => {
                rig.store.delete(&key(&k.to_string()), None).await.unwrap();
                history.certain[k as usize] = Some(None);
            }
            Step::Behind(k, seed, len) => {
                let bytes = content(seed, len);
                let etag = rig.memory.insert(&k.to_string(), bytes.clone());
                history.versions.insert((k, etag.to_string()), bytes);
                history.certain[k as usize] = None;
            }
            Step::Vanish(k) => {
                rig.memory.remove(&k.to_string());
                history.certain[k as usize] = None;
            }
            Step::Get(k, at, len) => {
                let range = ByteRange::Bounded(at, at + len);
                let reader = ReaderId(at % 3);
                let options = GetOptions { range, reader, ..GetOptions::default() };
                check(&rig, &history, k, options, broken).await;
            }
            Step::Pinned(k, at, len) => {
                let Ok(meta) = rig.store.head(&key(&k.to_string())).await else { continue };
                let range = ByteRange::Bounded(at, at + len);
                let if_match = Some(meta.etag);
                let options = GetOptions { range, if_match, ..GetOptions::default() };
                check(&rig, &history, k, options, broken).await;
            }
            Step::Head(k) => {
                if let Ok(meta) = rig.store.head(&key(&k.to_string())).await {
                    // An origin that lies about a tag on the first GET cannot be found out.
                    if broken && meta.etag.as_str() == "wrong" {
                        continue;
                    }
                    let known = &history.versions.get(&(k, meta.etag.to_string()));
                    assert_eq!(known.expect("a version that was").len() as u64, meta.size);
                }
            }
            Step::List => {
                if let Ok(page) = rig.store.list(&ListRequest::default()).await {
                    for k in 0..3u8 {
                        let name = k.to_string();
                        let listed = page.entries.iter().find(|e| e.key.as_str() == name);
                        match &history.certain[k as usize] {
                            Some(Some(bytes)) => {
                                assert_eq!(listed.unwrap().meta.size, bytes.len() as u64);
                            }
                            Some(None) => assert!(listed.is_none()),
                            None => {}
                        }
                    }
                }
            }
            Step::Evict => blocks.forget_all(),
            Step::Wait(seconds) => tokio::time::advance(Duration::from_secs(seconds)).await,
            Step::Break(which) => {
                broken = true;
                let (operation, fault) = fault(which);
                rig.origin.inject(operation, fault);
            }
        }
    }
}

async fn check(rig: &Rig, history: &History, k: u8, options: GetOptions, broken: bool) {
    let range = options.range;
    let pinned = options.if_match.is_some();
    let result = rig.store.get(&key(&k.to_string()), options).await;
    let (tag, got) = match result {
        Err(error) => (None, Err(error)),
        Ok(got) => {
            let pieces: Result<Vec<Bytes>, Error> = got.body.try_collect().await;
            (Some(got.meta.etag.to_string()), pieces.map(|p| Bytes::from(p.concat())))
        }
    };
    match (&history.certain[k as usize], got) {
        (Some(Some(bytes)), Ok(got)) => {
            let r = range.resolve(bytes.len() as u64).unwrap();
            assert_eq!(got, bytes[r.start as usize..r.end as usize]);
        }
        (Some(None), Ok(_)) => panic!("bytes of an object that was deleted"),
        (None, Ok(got)) => {
            // One of the versions that there were, whole.
            let tag = tag.unwrap();
            if let Some(bytes) = history.versions.get(&(k, tag.clone())) {
                let r = range.resolve(bytes.len() as u64).unwrap();
                assert_eq!(got, bytes[r.start as usize..r.end as usize]);
            } else {
                assert_eq!(tag, "wrong", "a version that never was");
            }
        }
        (certain, Err(error)) => match error.kind() {
            ErrorKind::InvalidRange => {
                if let Some(Some(bytes)) = certain {
                    assert!(range.resolve(bytes.len() as u64).is_err());
                }
            }
            ErrorKind::NotFound => assert!(!matches!(certain, Some(Some(_))), "{error}"),
            ErrorKind::PreconditionFailed => {
                assert!(pinned || broken || certain.is_none(), "{error}");
            }
            ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Corrupted => {
                assert!(broken, "{error}");
            }
            kind => panic!("{kind}: {error}"),
        },
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn readers_get_one_version_that_was_and_the_last_one_written_here(
        steps in proptest::collection::vec(step(), 1..60),
        grain_bytes in prop_oneof![Just(0u64), Just(20), Just(125)],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(run(steps, grain_bytes));
    }
}
