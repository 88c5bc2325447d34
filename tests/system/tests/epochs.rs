//! Shuffled epochs through a cache that holds half of the data: what is resident stays, through both
//! front ends, counted at the origin.

// The functions that the tests share are tests too; the lint sees only the marked ones.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustix::fs::{Advice, fadvise};
use system_tests::{DataSet, Home, s3_backend};
use testkit::{FaultyHttp, Origin};

const OBJECTS: u64 = 160;
const SIZE: u64 = 1 << 20;
const EPOCHS: usize = 4;
/// Of the optimum, which is the share of the data that the cache may hold; `warpdrive bench` holds the
/// goal of 0.97 with more objects, where one more or less says less.
const GOAL: f64 = 0.93;

/// An order that is another one each time and the same in each run.
fn shuffle<T>(items: &mut [T], dice: &mut u64) {
    for last in (1..items.len()).rev() {
        *dice ^= *dice << 13;
        *dice ^= *dice >> 7;
        *dice ^= *dice << 17;
        items.swap(last, (*dice % (last as u64 + 1)) as usize);
    }
}

fn read_and_forget(path: &Path) -> Vec<u8> {
    let mut file = File::open(path).unwrap();
    let mut read = Vec::with_capacity(SIZE as usize);
    file.read_to_end(&mut read).unwrap();
    // The kernel's pages would make the cache larger than it is.
    fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    read
}

/// Reads all of the data set some times over, each time in another order, with what reads one object.
async fn epochs(is_mount: bool) {
    let origin = testkit::start!(Origin::versitygw());
    origin.create_bucket("bucket").await;
    let data = DataSet::new("train", OBJECTS, &[SIZE], 1);
    data.put_into(&origin, "bucket").await;
    let proxy = FaultyHttp::start(origin.address());
    let backend = s3_backend("origin", &origin, "bucket", &proxy.endpoint());
    let home = Home::new(&[backend], |config| {
        config["cache"]["max_size"] = (OBJECTS * SIZE / 2).into();
        config["cache"]["memory"] = "16MiB".into();
        config["cache"]["evict_high_water"] = 0.99.into();
        config["cache"]["evict_low_water"] = 0.95.into();
    });
    let sidecar = home.start().await;
    let folder = sidecar.mounted("origin");
    if is_mount && folder.is_none() {
        system_tests::no_mount().unwrap().say();
        return;
    }
    let (mut order, mut dice) = (data.objects.clone(), 0x9e37_79b9_7f4a_7c15);
    for epoch in 0..EPOCHS {
        shuffle(&mut order, &mut dice);
        proxy.reset_counts();
        for object in &order {
            let folder = folder.as_ref().filter(|_| is_mount);
            let read = if let Some(folder) = folder {
                read_and_forget(&folder.join(&object.key)).into()
            } else {
                sidecar.get(&format!("origin/{}", object.key), None).await.unwrap().1
            };
            object.verify(0, &read);
            // All of it, or a short read would pass.
            assert_eq!(read.len() as u64, object.bytes);
        }
        let missed = proxy.body_bytes() as f64 / data.bytes() as f64;
        let share = (1.0 - missed) / 0.5;
        println!("epoch {epoch}: hit rate / optimum = {share:.3}");
        assert!(epoch == 0 || share >= GOAL, "epoch {epoch}: {share:.3} of the optimum");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shuffled_epochs_through_the_mount_keep_what_is_there() {
    epochs(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shuffled_epochs_through_s3_keep_what_is_there() {
    epochs(false).await;
}
