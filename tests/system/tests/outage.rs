//! The origin goes away: what is cached is served, the rest fails soon and clearly, `ls` returns,
//! and everything works again when it is back.

// The functions that the tests share are tests too; the lint sees only the marked ones.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};
use system_tests::{Home, content, s3_backend};
use testkit::{Link, Origin, Switch, Throttle};

/// A call gives up after five seconds (the configuration of these tests); the machine may be busy.
const SOON: Duration = Duration::from_secs(15);

/// `down` makes the origin unreachable, `up` makes it reachable again.
async fn outage(down: impl Fn(&Throttle), up: impl Fn(&Throttle)) {
    let origin = testkit::start!(Origin::versitygw());
    origin.create_bucket("bucket").await;
    let (warm, cold) = (content(3_000_000, 1), content(3_000_000, 2));
    origin.put("bucket", "dir/warm", warm.clone()).await;
    origin.put("bucket", "dir/cold", cold.clone()).await;
    let link = Throttle::start(origin.address(), Link::default());
    let home = Home::new(&[s3_backend("origin", &origin, "bucket", &link.endpoint())], |config| {
        // Metadata must be asked for again during the outage for `stale_if_error` to matter.
        config["cache"]["stale_ttl"] = "1s".into();
    });
    let sidecar = home.start().await;
    assert!(sidecar.get("origin/dir/warm", None).await.unwrap().1 == warm);
    if let Some(path) = sidecar.mounted("origin/dir/warm") {
        assert!(std::fs::read(path).unwrap() == warm);
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;

    down(&link);
    for _ in 0..3 {
        let started = Instant::now();
        let (status, body) = sidecar.get("origin/dir/warm", None).await.unwrap();
        assert!(status.is_success(), "{status} {body:?}\n{}", home.log());
        assert!(body == warm, "wrong bytes from the cache");
        assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    }
    if let Some(path) = sidecar.mounted("origin/dir/warm") {
        let started = Instant::now();
        let read = tokio::task::spawn_blocking(move || std::fs::read(path)).await.unwrap();
        assert!(read.unwrap() == warm, "wrong bytes from the cache through the mount");
        assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    }

    let started = Instant::now();
    if let Ok((status, body)) = sidecar.get("origin/dir/cold", None).await {
        let text = String::from_utf8_lossy(&body[..body.len().min(500)]).into_owned();
        assert!(status.is_server_error(), "{status} {text}");
        assert!(text.contains("<Code>"), "{text}");
    }
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());

    if let Some(path) = sidecar.mounted("origin/dir") {
        let started = Instant::now();
        // Served from what is known, or refused: never a hang.
        let listed =
            tokio::task::spawn_blocking(move || std::fs::read_dir(path).map(Iterator::count));
        let _ = tokio::time::timeout(SOON, listed).await.expect("ls returns");
        assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    } else {
        system_tests::no_mount().unwrap().say();
    }

    up(&link);
    let deadline = Instant::now() + SOON;
    loop {
        match sidecar.get("origin/dir/cold", None).await {
            Ok((status, body)) if status.is_success() => {
                assert!(body == cold, "wrong bytes after the outage");
                break;
            }
            other => assert!(Instant::now() < deadline, "not back: {other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_that_refuses_connections() {
    outage(|link| link.switch(Switch::Refuse), Throttle::heal).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_that_hangs() {
    outage(|link| link.switch(Switch::Hang), Throttle::heal).await;
}
