//! A faulty origin, through both front ends: the right bytes or a clear error, always, and in
//! bounded time.

// The functions that the tests share are tests too; the lint sees only the marked ones.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use std::time::{Duration, Instant};
use system_tests::{Home, Sidecar, content, s3_backend};
use testkit::{Fault, FaultyHttp, Origin, Rule, Running};

const SIZE: usize = 5 << 20;
/// Three retries of two seconds each, waits between them, and a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

fn faults() -> Vec<Fault> {
    vec![
        Fault::Status(500),
        Fault::Status(503),
        Fault::Status(429),
        Fault::CutBody { after_bytes: 0 },
        Fault::CutBody { after_bytes: 100_000 },
        Fault::ShortBody { missing_bytes: 1 },
        Fault::ShortBody { missing_bytes: 700_000 },
        Fault::LongContentLength { extra_bytes: 10 },
        Fault::ChangedEtag("\"another\"".to_owned()),
        Fault::WholeObject,
        Fault::Reset,
        Fault::Delay(Duration::from_millis(300)),
        Fault::Hang,
        Fault::HangBody { after_bytes: 100_000 },
    ]
}

/// Faults after which a retry must lead to the right bytes: the origin is merely unwell. After the
/// others, which contradict themselves, a clear error is enough.
fn passes(fault: &Fault) -> bool {
    !matches!(
        fault,
        Fault::ChangedEtag(_)
            | Fault::WholeObject
            | Fault::ShortBody { .. }
            | Fault::LongContentLength { .. }
    )
}

async fn put_all(origin: &Running, prefix: &str) -> Vec<(Fault, String, Bytes)> {
    let mut objects = Vec::new();
    for (number, fault) in faults().into_iter().enumerate() {
        let (key, body) = (format!("{prefix}{number}"), content(SIZE + number, number as u64));
        origin.put("bucket", &key, body.clone()).await;
        objects.push((fault, key, body));
    }
    objects
}

/// Reads a file of the mount on a thread of its own, so that a stall is a failure and no hang.
async fn read_file(path: std::path::PathBuf) -> std::io::Result<Vec<u8>> {
    let reading = tokio::task::spawn_blocking(move || std::fs::read(path));
    tokio::time::timeout(LIMIT, reading).await.expect("a read ends in bounded time").unwrap()
}

async fn get(sidecar: &Sidecar<'_>, key: &str) -> Result<Bytes, String> {
    let path = format!("origin/{key}");
    let answer = tokio::time::timeout(LIMIT, sidecar.get(&path, None)).await;
    match answer.expect("a GET ends in bounded time") {
        Ok((status, body)) if status.is_success() => Ok(body),
        Ok((status, body)) => {
            let text = String::from_utf8_lossy(&body).into_owned();
            assert!(text.contains("<Code>"), "an error without a code: {status} {text}");
            Err(format!("{status} {text}"))
        }
        Err(error) => Err(error),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_fault_is_mended() {
    let origin = testkit::start!(Origin::versitygw());
    origin.create_bucket("bucket").await;
    let proxy = FaultyHttp::start(origin.address());
    let home = Home::new(&[s3_backend("origin", &origin, "bucket", &proxy.endpoint())], |_| {});
    let sidecar = home.start().await;

    for (fault, key, body) in put_all(&origin, "s3-").await {
        proxy.inject(Rule::every(fault.clone()).on("GET").target_contains(&key).times(1));
        match get(&sidecar, &key).await {
            Ok(read) => assert!(read == body, "{fault:?}: wrong bytes"),
            Err(error) => assert!(!passes(&fault), "{fault:?}: {error}\n{}", home.log()),
        }
        proxy.heal();
        // What was kept of the faulty answer, if anything, is right.
        assert!(get(&sidecar, &key).await.unwrap() == body, "{fault:?}: wrong bytes afterwards");
    }

    if sidecar.mounted("").is_none() {
        system_tests::no_mount().unwrap().say();
        return;
    }
    for (fault, key, body) in put_all(&origin, "file-").await {
        proxy.inject(Rule::every(fault.clone()).on("GET").target_contains(&key).times(1));
        let path = sidecar.mounted(&format!("origin/{key}")).unwrap();
        match read_file(path.clone()).await {
            Ok(read) => assert!(read == body, "{fault:?}: wrong bytes"),
            Err(error) => assert!(!passes(&fault), "{fault:?}: {error}\n{}", home.log()),
        }
        proxy.heal();
        assert!(read_file(path).await.unwrap() == body, "{fault:?}: wrong bytes afterwards");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lasting_fault_is_a_clear_error_and_no_wrong_byte() {
    let origin = testkit::start!(Origin::versitygw());
    origin.create_bucket("bucket").await;
    let proxy = FaultyHttp::start(origin.address());
    let home = Home::new(&[s3_backend("origin", &origin, "bucket", &proxy.endpoint())], |_| {});
    let sidecar = home.start().await;
    let bounded = |fault: &Fault| !matches!(fault, Fault::Delay(_));

    for (fault, key, body) in put_all(&origin, "s3-").await.into_iter().filter(|o| bounded(&o.0)) {
        proxy.inject(Rule::every(fault.clone()).on("GET").target_contains(&key));
        let started = Instant::now();
        // An answer that was whole in spite of the fault is welcome: it must be right.
        if let Ok(read) = get(&sidecar, &key).await {
            assert!(read == body, "{fault:?}: wrong bytes");
        }
        assert!(started.elapsed() < LIMIT, "{fault:?}: {:?}", started.elapsed());
        proxy.heal();
        let healed = get(&sidecar, &key).await;
        assert!(healed.as_ref() == Ok(&body), "{fault:?}: not mended: {:?}", healed.err());
    }

    if sidecar.mounted("").is_none() {
        system_tests::no_mount().unwrap().say();
        return;
    }
    for (fault, key, body) in put_all(&origin, "file-").await.into_iter().filter(|o| bounded(&o.0))
    {
        proxy.inject(Rule::every(fault.clone()).on("GET").target_contains(&key));
        let path = sidecar.mounted(&format!("origin/{key}")).unwrap();
        if let Ok(read) = read_file(path.clone()).await {
            assert!(read == body, "{fault:?}: wrong bytes");
        }
        proxy.heal();
        assert!(read_file(path).await.unwrap() == body, "{fault:?}: not mended");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_through_a_faulty_origin_are_whole_or_absent() {
    let origin = testkit::start!(Origin::versitygw());
    origin.create_bucket("bucket").await;
    let proxy = FaultyHttp::start(origin.address());
    let home = Home::new(&[s3_backend("origin", &origin, "bucket", &proxy.endpoint())], |_| {});
    let sidecar = home.start().await;
    for (number, fault) in
        [Fault::Status(503), Fault::Reset, Fault::Status(500), Fault::Hang].into_iter().enumerate()
    {
        let (key, body) = (format!("up{number}"), content(SIZE, number as u64));
        proxy.inject(Rule::every(fault.clone()).on("PUT").times(1));
        let path = format!("origin/{key}");
        let put = sidecar.put(&path, body.clone());
        let answer = tokio::time::timeout(LIMIT, put).await.expect("a PUT ends in bounded time");
        proxy.heal();
        match answer {
            Ok(status) if status.is_success() => {
                assert!(origin.get("bucket", &key).await == Some(body.clone()), "{fault:?}");
                assert!(get(&sidecar, &key).await.unwrap() == body, "{fault:?}");
            }
            refused => {
                let held = origin.get("bucket", &key).await;
                assert!(held.is_none() || held == Some(body), "{fault:?}: {refused:?}: a part");
            }
        }
    }
}
