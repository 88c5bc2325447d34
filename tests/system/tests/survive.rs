//! The mount survives the worker: what readers see while it is killed, stopped, replaced, and while
//! it does not come back.
//!
//! The readers are processes of their own that verify every byte (`system_tests::load`). Pauses are
//! printed and bounded only by a limit for hangs: how long a start takes is the machine's affair.

// The functions that the tests share are tests too; the lint sees only the marked ones.
#![allow(clippy::unwrap_used)]

#[path = "survive/absence.rs"]
mod absence;
#[path = "survive/clients.rs"]
mod clients;
#[path = "survive/moments.rs"]
mod moments;
#[path = "survive/setting.rs"]
mod setting;

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use setting::{
    KIB, MIB, Numbers, SUPERVISED, asked_below, assert_clean, home_over, kill_worker, need_holder,
    one_of_each, readable_bytes, tail,
};
use system_tests::load::{Kind, Reader};
use system_tests::{DataSet, Home, no_mount, processes, s3_backend};
use testkit::{FaultyHttp, Origin};

/// The proof: a hundred kills under every kind of load, over a real origin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_kills_of_the_worker_cost_no_reader_a_byte() {
    const KILLS: u32 = 100;
    need_holder!();
    let origin = testkit::start!(Origin::versitygw());
    origin.create_bucket("bucket").await;
    // Files that the kernel reads for itself; objects that stay blocks; and enough that nobody has
    // read before for every moment of the test to have cold reads.
    let warm = DataSet::new("warm", 32, &[300 * KIB, MIB, 3 * MIB, 8 * MIB], 1);
    let small = DataSet::new("small", 200, &[20 * KIB], 1000);
    let cold = DataSet::new("cold", 240, &[700 * KIB, 2 * MIB], 2000);
    let all = warm.and(&small).and(&cold);
    all.put_into(&origin, "bucket").await;
    let proxy = FaultyHttp::start(origin.address());
    let home = Home::new(&[s3_backend("origin", &origin, "bucket", &proxy.endpoint())], |config| {
        // Small, so that blocks have few groups: restarts must not use them up.
        config["cache"]["max_size"] = json!("2GiB");
        config["cache"]["min_free"] = json!("64MiB");
        config["cache"]["stale_ttl"] = json!("30m");
    });
    let sidecar = home.start_with(SUPERVISED).await;
    sidecar.warm("origin", "warm/").await;
    sidecar.warm("origin", "small/").await;
    proxy.reset_counts();

    let root = home.mount_point().join("origin");
    let start = |kind, set: &DataSet| Reader::start(kind, set, &root, home.path());
    let readers = vec![
        start(Kind::Sequential, &warm),
        start(Kind::Sequential, &small),
        start(Kind::Sequential, &cold),
        start(Kind::Random, &warm.and(&cold)),
        start(Kind::Mapped, &warm.and(&small)),
        start(Kind::Mapped, &warm.and(&cold)),
        start(Kind::Walk, &all),
    ];
    let begun = Instant::now();
    let mut numbers = Numbers(4);
    let mut longest_start = Duration::ZERO;
    for kill in 0..KILLS {
        // Every other kill waits until the worker serves: the readers have to get on, and a killing
        // of what only begins is not the only kind that there is.
        if kill % 2 == 0 {
            longest_start = longest_start.max(sidecar.ready().await);
        }
        tokio::time::sleep(Duration::from_millis(numbers.between(20, 300))).await;
        kill_worker(&sidecar, &home);
    }
    let took = begun.elapsed();
    longest_start = longest_start.max(sidecar.ready().await);
    // What was waiting has to be answered, too.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let asked = [asked_below(&proxy, "/warm/", &warm), asked_below(&proxy, "/small/", &small)];
    let seen = Reader::end_all(readers);
    println!("{KILLS} kills in {took:.1?}, longest until ready {longest_start:.1?}");
    assert_clean(&seen, &home);

    // What was warm before the first kill was not asked for again after any.
    let held = warm.bytes() + small.bytes();
    println!("asked again of what was warm: {asked:?} of {held} bytes");
    let what = || {
        let warm = |target: &str| target.contains("/warm/") || target.contains("/small/");
        let again = proxy.requests().into_iter().filter(|r| r.method == "GET" && warm(&r.target));
        again.take(20).map(|r| format!("{} {:?}", r.target, r.range)).collect::<Vec<_>>()
    };
    let all_asked = asked.iter().sum::<u64>();
    assert!(all_asked * 100 <= held, "{asked:?} of {held} bytes\n{:#?}\n{}", what(), tail(&home));

    // And it is served after one more, with the origin gone.
    kill_worker(&sidecar, &home);
    origin.stop();
    sidecar.ready().await;
    let served = readable_bytes(&warm, &home) + readable_bytes(&small, &home);
    println!("served without the origin: {served} of {held} bytes");
    assert!(served * 100 >= held * 99, "{served} of {held} bytes\n{}", tail(&home));
    assert_eq!(sidecar.stop(), Some(0), "{}", tail(&home));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_stopped_for_ten_seconds_only_delays() {
    need_holder!();
    let folder = tempfile::tempdir().unwrap();
    let set = DataSet::new("set", 40, &[100 * KIB, 2 * MIB], 1);
    let home = home_over(&set, folder.path(), |_| {});
    let sidecar = home.start_with(SUPERVISED).await;
    let readers = one_of_each(&set, &home);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let worker = sidecar.worker().unwrap();
    assert!(processes::signal(worker, Signal::STOP));
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(sidecar.worker(), Some(worker), "a worker that stands still was replaced");
    assert!(processes::signal(worker, Signal::CONT));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let seen = Reader::end_all(readers);
    assert_clean(&seen, &home);
    assert_eq!(sidecar.worker(), Some(worker), "{}", tail(&home));
}

/// The instrument itself, over a plain directory: right bytes are passed, wrong ones are seen.
#[test]
fn readers_notice_what_is_wrong() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("root");
    let set = DataSet::new("set", 24, &[100 * KIB, 700 * KIB], 1);
    set.write_into(&root);
    let kinds = [Kind::Sequential, Kind::Random, Kind::Mapped, Kind::Walk, Kind::Many];
    let read = || {
        let readers = kinds.map(|kind| Reader::start(kind, &set, &root, scratch.path()));
        std::thread::sleep(Duration::from_millis(500));
        Reader::end_all(readers.into())
    };
    for (kind, seen) in read() {
        assert!(seen.is_clean() && seen.operations > 20, "{kind:?}: {}", seen.summary());
    }
    // Every object has wrong bytes, and every third is missing.
    for object in &set.objects {
        let mut body = object.body().to_vec();
        for byte in body.iter_mut().step_by(4096) {
            *byte ^= 1;
        }
        std::fs::write(root.join(&object.key), body).unwrap();
    }
    for object in set.objects.iter().step_by(3) {
        std::fs::remove_file(root.join(&object.key)).unwrap();
    }
    for (kind, seen) in read() {
        assert!(seen.wrong > 0, "{kind:?}: {}", seen.summary());
        let missed = seen.errors_of(rustix::io::Errno::NOENT.raw_os_error()) > 0;
        assert!(missed || kind == Kind::Walk, "{kind:?}: {}", seen.summary());
    }
}

/// The same load without a kill: what a failure of the others is to be compared with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_every_kind_agree_with_the_origin() {
    if let Some(skipped) = no_mount() {
        skipped.say();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let set = DataSet::new("set", 60, &[30 * KIB, 300 * KIB, 2 * MIB], 1);
    let home = home_over(&set, folder.path(), |_| {});
    let sidecar = home.start().await;
    let readers = one_of_each(&set, &home);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_clean(&Reader::end_all(readers), &home);
    assert_eq!(sidecar.stop(), Some(0), "{}", tail(&home));
}
