//! One cache below both front ends: what one reader fetched, all have; what is warm asks nothing;
//! a restart keeps it.

// The functions that the tests share are tests too; the lint sees only the marked ones.
#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::time::Duration;
use system_tests::{Home, content, s3_backend};
use testkit::{FaultyHttp, Origin};

const SIZE: usize = 24 << 20;
/// Bytes asked of the origin over unique bytes read.
const GOAL: f64 = 1.02;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_of_both_kinds_share_one_fetch() {
    let origin = testkit::start!(Origin::versitygw());
    origin.create_bucket("bucket").await;
    let body = content(SIZE, 3);
    origin.put("bucket", "shared", body.clone()).await;
    let proxy = FaultyHttp::start(origin.address());
    let home = Home::new(&[s3_backend("origin", &origin, "bucket", &proxy.endpoint())], |_| {});
    let sidecar = home.start().await;
    proxy.reset_counts();

    let mounted = sidecar.mounted("origin/shared");
    if mounted.is_none() {
        system_tests::no_mount().unwrap().say();
    }
    let mut readers = tokio::task::JoinSet::new();
    for number in 0..8 {
        let wanted = body.clone();
        match &mounted {
            Some(path) if number % 2 == 0 => {
                let path = path.clone();
                readers.spawn_blocking(move || {
                    let mut file = std::fs::File::open(path).unwrap();
                    let mut read = Vec::with_capacity(SIZE);
                    file.read_to_end(&mut read).unwrap();
                    assert!(read == wanted, "wrong bytes through the mount");
                });
            }
            _ => {
                let url = format!("{}/origin/shared", sidecar.endpoint());
                readers.spawn(async move {
                    let answer = reqwest::Client::builder().no_proxy().build().unwrap();
                    let read = answer.get(url).send().await.unwrap().bytes().await.unwrap();
                    assert!(read == wanted, "wrong bytes through S3");
                });
            }
        }
    }
    let all = async {
        while let Some(done) = readers.join_next().await {
            done.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_mins(1), all).await.expect("the readers end");

    let ratio = proxy.body_bytes() as f64 / SIZE as f64;
    assert!(ratio <= GOAL, "asked {ratio:.3} times the object: {:?}", proxy.requests());
    assert!(ratio >= 1.0, "the object came from somewhere: {ratio:.3}");
    println!("origin bytes / unique bytes = {ratio:.4}");

    // Warm: neither front end asks the origin anything.
    proxy.reset_counts();
    assert!(sidecar.get("origin/shared", None).await.unwrap().1 == body);
    let part = sidecar.get("origin/shared", Some("bytes=5000000-5000099")).await.unwrap();
    assert_eq!(part.1, body.slice(5_000_000..5_000_100));
    if let Some(path) = mounted {
        assert!(std::fs::read(path).unwrap() == body);
    }
    assert_eq!(proxy.requests(), [], "a warm read asked the origin");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_spares_a_head_for_each_file() {
    let origin = testkit::start!(Origin::versitygw());
    origin.create_bucket("bucket").await;
    for number in 0..100 {
        origin.put("bucket", &format!("many/{number:03}"), content(1000 + number, 4)).await;
    }
    let proxy = FaultyHttp::start(origin.address());
    let home = Home::new(&[s3_backend("origin", &origin, "bucket", &proxy.endpoint())], |_| {});
    let sidecar = home.start().await;
    let Some(folder) = sidecar.mounted("origin/many") else {
        system_tests::no_mount().unwrap().say();
        return;
    };
    let names: Vec<_> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(names.len(), 100);
    proxy.reset_counts();
    for (number, path) in std::collections::BTreeSet::from_iter(names).into_iter().enumerate() {
        assert!(std::fs::read(path).unwrap() == content(1000 + number, 4));
    }
    assert_eq!(proxy.count("HEAD"), 0, "the listing told what a HEAD would");
    assert!(proxy.count("GET") <= 102, "{} GETs for 100 files", proxy.count("GET"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_keeps_the_warm_cache() {
    let origin = testkit::start!(Origin::versitygw());
    origin.create_bucket("bucket").await;
    let bodies: Vec<_> = (0..4).map(|seed| content(6 << 20, seed)).collect();
    for (number, body) in bodies.iter().enumerate() {
        origin.put("bucket", &number.to_string(), body.clone()).await;
    }
    let proxy = FaultyHttp::start(origin.address());
    let home = Home::new(&[s3_backend("origin", &origin, "bucket", &proxy.endpoint())], |_| {});
    let sidecar = home.start().await;
    for (number, body) in bodies.iter().enumerate() {
        assert!(sidecar.get(&format!("origin/{number}"), None).await.unwrap().1 == *body);
    }
    assert_eq!(sidecar.stop(), Some(0), "an orderly end\n{}", home.log());

    let sidecar = home.start().await;
    proxy.reset_counts();
    for (number, body) in bodies.iter().enumerate() {
        assert!(sidecar.get(&format!("origin/{number}"), None).await.unwrap().1 == *body);
    }
    let total: u64 = bodies.iter().map(|body| body.len() as u64).sum();
    let again = proxy.body_bytes();
    assert!(again * 100 <= total, "{again} of {total} bytes were fetched again\n{}", home.log());
    println!("fetched again after the restart: {again} of {total} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_at_the_origin_is_seen_after_the_time_to_live() {
    let origin = testkit::start!(Origin::versitygw());
    origin.create_bucket("bucket").await;
    let (old, new) = (content(3 << 20, 5), content(3 << 20, 6));
    origin.put("bucket", "key", old.clone()).await;
    let home =
        Home::new(&[s3_backend("origin", &origin, "bucket", &origin.endpoint())], |config| {
            config["cache"]["stale_ttl"] = "1s".into();
        });
    let sidecar = home.start().await;
    assert!(sidecar.get("origin/key", None).await.unwrap().1 == old);
    origin.put("bucket", "key", new.clone()).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(sidecar.get("origin/key", None).await.unwrap().1 == new);
    if let Some(path) = sidecar.mounted("origin/key") {
        assert!(std::fs::read(path).unwrap() == new);
    }
}
