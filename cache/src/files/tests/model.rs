//! Arbitrary use against the truth: whatever is read is right, whatever was done before.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    /// Blocks of an object come, from one on.
    Put {
        object: usize,
        from: u32,
        count: u32,
    },
    Load {
        object: usize,
        index: u32,
    },
    Whole {
        object: usize,
    },
    Suspect {
        object: usize,
    },
    Flip {
        nth: usize,
        at: u64,
    },
    Flush,
    Compact,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let object = 0..OBJECTS;
    prop_oneof![
        8 => (object.clone(), 0u32..30, 1u32..40).prop_map(|(object, from, count)| Step::Put { object, from, count }),
        4 => (object.clone(), 0u32..40).prop_map(|(object, index)| Step::Load { object, index }),
        4 => object.clone().prop_map(|object| Step::Whole { object }),
        1 => object.prop_map(|object| Step::Suspect { object }),
        1 => (0usize..8, 0u64..MIB).prop_map(|(nth, at)| Step::Flip { nth, at }),
        2 => Just(Step::Flush),
        1 => Just(Step::Compact),
        1 => Just(Step::Restart),
    ]
}

/// More than fit, so that some are evicted.
const OBJECTS: usize = 24;

async fn run(steps: Vec<Step>) {
    let dir = tempfile::tempdir().unwrap();
    let mut config = on(dir.path(), MIB, 24 * MIB);
    config.disk.as_mut().unwrap().files.scrub_bytes_per_second = 0;
    let objects: Vec<_> = (0..OBJECTS as u64)
        .map(|n| {
            let size = n * 99_991 % (2 * MIB) + 60_000;
            (version(&format!("k{n}"), "v1", size), content(n, size))
        })
        .collect();
    let mut held = tiers(&config).await;
    // A flipped bit is only found by those who verify.
    let mut flipped = false;
    for step in steps {
        match step {
            Step::Put { object, from, count } => {
                let (object, bytes) = &objects[object];
                let blocks = object.meta.size.div_ceil(BLOCK) as u32;
                held.put(object, bytes, from.min(blocks)..(from + count).min(blocks)).await;
            }
            Step::Load { object, index } => {
                let (object, bytes) = &objects[object];
                if u64::from(index) < object.meta.size.div_ceil(BLOCK) {
                    held.load(object, bytes, index).await;
                }
            }
            Step::Whole { object } => {
                let (object, bytes) = &objects[object];
                if let Some(whole) = held.blocks.whole(object)
                    && !flipped
                {
                    assert!(all_of(&whole.file) == *bytes, "{}", object.key);
                }
            }
            Step::Suspect { object } => held.blocks.suspect(&objects[object].0),
            Step::Flip { nth, at } => {
                let files = published(dir.path());
                if let Some(path) = files.get(nth)
                    && at < std::fs::metadata(path).unwrap().len()
                {
                    flip(path, at);
                    flipped = true;
                }
            }
            Step::Flush => held.blocks.flush().await,
            Step::Compact => held.files().compact(),
            Step::Restart => {
                drop(held);
                held = tiers(&config).await;
            }
        }
    }
    held.blocks.flush().await;
    let stats = held.files().stats();
    assert!(stats.bytes <= 24 * MIB, "{stats:?}");
    for (object, bytes) in &objects {
        for index in 0..object.meta.size.div_ceil(BLOCK) as u32 {
            held.load(object, bytes, index).await;
        }
    }
}

proptest! {
    // Each opens a cache a few times.
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 50, ..ProptestConfig::default() })]
    #[test]
    fn nothing_wrong_is_ever_read(steps in proptest::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(run(steps));
    }
}
