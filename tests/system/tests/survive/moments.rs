//! Kills at chosen moments: while a worker starts, while files are published, while the journal of
//! nodes is written anew.

use std::time::{Duration, Instant};

use serde_json::json;
use system_tests::load::{Kind, Reader};
use system_tests::{DataSet, Object, processes};

use crate::setting::{
    KIB, MIB, SUPERVISED, assert_clean, home_over, kill_worker, need_holder, one_of_each,
    readable_bytes, tail,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_moment_of_a_start_only_delays() {
    const STARTS: u64 = 24;
    need_holder!();
    let folder = tempfile::tempdir().unwrap();
    let set = DataSet::new("set", 40, &[30 * KIB, 300 * KIB, 2 * MIB], 1);
    let home = home_over(&set, folder.path(), |_| {});
    let sidecar = home.start_with(SUPERVISED).await;
    let readers = one_of_each(&set, &home);
    kill_worker(&sidecar, &home);
    for start in 0..STARTS {
        // Each worker lives a little longer than the one before: they end in every part of a start.
        let begun = Instant::now();
        while sidecar.worker().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(20), "no worker\n{}", tail(&home));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(start * 12)).await;
        kill_worker(&sidecar, &home);
        if start % 4 == 3 {
            // A supervisor pauses between starts that fail, so one succeeds now and then.
            sidecar.ready().await;
        }
    }
    sidecar.ready().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_clean(&Reader::end_all(readers), &home);
    assert_eq!(sidecar.stop(), Some(0), "{}", tail(&home));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_while_files_are_published_leaves_only_right_files() {
    const KILLS: u32 = 15;
    need_holder!();
    let folder = tempfile::tempdir().unwrap();
    let set = DataSet::new("set", 300, &[300 * KIB, 800 * KIB], 1);
    let home = home_over(&set, folder.path(), |_| {});
    let sidecar = home.start_with(SUPERVISED).await;
    let root = home.mount_point().join("origin");
    let readers = vec![
        Reader::start(Kind::Sequential, &set, &root, home.path()),
        Reader::start(Kind::Sequential, &set, &root, home.path()),
    ];
    for kill in 0..KILLS {
        sidecar.ready().await;
        tokio::time::sleep(Duration::from_millis(u64::from(kill) * 17 % 200 + 20)).await;
        kill_worker(&sidecar, &home);
    }
    sidecar.ready().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_clean(&Reader::end_all(readers), &home);
    // What is published by now is right, looked at past everything that would check it.
    kill_worker(&sidecar, &home);
    let mut published = 0;
    for shard in std::fs::read_dir(home.path().join("cache/files")).unwrap().flatten() {
        let name = shard.file_name();
        // Parts are in a directory of their own, and not whole.
        if name.len() != 2 || !shard.path().is_dir() {
            continue;
        }
        for file in std::fs::read_dir(shard.path()).unwrap().flatten() {
            let Ok(found) = std::fs::read(file.path()) else { continue };
            let of = |object: &&Object| {
                object.bytes == found.len() as u64 && object.difference(0, &found[..64]).is_none()
            };
            let object = set.objects.iter().find(of).expect("a file holds an object");
            object.verify(0, &found);
            published += 1;
        }
    }
    println!("{published} of {} objects were published", set.objects.len());
    assert!(published > 20, "only {published} were published: nothing was tested");
    sidecar.ready().await;
    assert_eq!(readable_bytes(&set, &home), set.bytes());
    assert_eq!(sidecar.stop(), Some(0), "{}", tail(&home));
}

/// Many names are looked up between kills, so that the journal grows past whatever makes it be
/// written anew; a walk over all of them goes on all the while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_while_many_names_come_and_go_lose_none() {
    const KILLS: u32 = 12;
    need_holder!();
    let folder = tempfile::tempdir().unwrap();
    let set = DataSet::new("set", 4000, &[500], 1);
    let home = home_over(&set, folder.path(), |config| {
        config["fuse"]["threads"] = json!(2);
    });
    let sidecar = home.start_with(SUPERVISED).await;
    let root = home.mount_point().join("origin");
    let readers = vec![
        Reader::start(Kind::Walk, &set, &root, home.path()),
        Reader::start(Kind::Sequential, &set, &root, home.path()),
        Reader::start(Kind::Mapped, &set, &root, home.path()),
    ];
    for kill in 0..KILLS {
        sidecar.ready().await;
        tokio::time::sleep(Duration::from_millis(u64::from(kill) * 67 % 300 + 150)).await;
        kill_worker(&sidecar, &home);
    }
    sidecar.ready().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_clean(&Reader::end_all(readers), &home);
    let journal: u64 = std::fs::read_dir(home.path().join("state"))
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len()))
        .sum();
    println!("state on disk: {} KiB for {} names", journal >> 10, set.objects.len());
    // A record is a hundred bytes; what grows without end shows after a dozen passes and kills.
    assert!(journal < 64 << 20, "{journal} bytes");
    let worker = sidecar.worker().unwrap();
    assert!(processes::state(worker).is_some());
    assert_eq!(sidecar.stop(), Some(0), "{}", tail(&home));
}
