//! Every real origin starts, takes a bucket and an object, and is gone afterwards.

use bytes::Bytes;
use std::net::TcpStream;
use std::time::{Duration, Instant};
use testkit::{Origin, OriginKind};

async fn round_trip(kind: OriginKind) {
    let origin = testkit::start!(Origin::start(kind));
    origin.create_bucket("bucket").await;
    for key in ["plain", "with space+plus%25", "dir/ünï.bin"] {
        origin.put("bucket", key, Bytes::from(format!("bytes of {key}"))).await;
        let read = origin.get("bucket", key).await;
        assert_eq!(read, Some(Bytes::from(format!("bytes of {key}"))), "{key}");
    }
    origin.put("bucket", "empty", Bytes::new()).await;
    assert_eq!(origin.get("bucket", "empty").await, Some(Bytes::new()));
    assert_eq!(origin.get("bucket", "absent").await, None);
    origin.delete("bucket", "plain").await;
    assert_eq!(origin.get("bucket", "plain").await, None);

    let folder = origin.folder().to_owned();
    let address = origin.address();
    drop(origin);
    assert!(!folder.exists(), "the folder is removed");
    assert!(ends(address), "nothing listens any more");
}

/// Whether the address refuses connections, at once or after the moment that a task needs to end.
fn ends(address: std::net::SocketAddr) -> bool {
    let deadline = Instant::now() + Duration::from_secs(5);
    while TcpStream::connect(address).is_ok() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

#[tokio::test]
async fn versitygw_serves() {
    round_trip(OriginKind::Versitygw).await;
}

#[tokio::test]
async fn minio_serves() {
    round_trip(OriginKind::Minio).await;
}

#[tokio::test]
async fn moto_serves() {
    round_trip(OriginKind::Moto).await;
}

#[tokio::test]
async fn azurite_serves() {
    round_trip(OriginKind::Azurite).await;
}

#[tokio::test]
async fn fake_gcs_serves_through_the_shim() {
    round_trip(OriginKind::FakeGcs).await;
}

#[tokio::test]
async fn a_stopped_origin_comes_back_with_its_objects() {
    let origin = testkit::start!(Origin::versitygw());
    origin.create_bucket("bucket").await;
    origin.put("bucket", "key", "kept").await;
    origin.stop();
    assert!(TcpStream::connect(origin.address()).is_err());
    origin.restart().await;
    assert_eq!(origin.get("bucket", "key").await, Some(Bytes::from("kept")));
}

#[tokio::test]
async fn a_paused_origin_answers_after_it_is_resumed() {
    let origin = testkit::start!(Origin::versitygw());
    origin.create_bucket("bucket").await;
    origin.put("bucket", "key", "late").await;
    origin.pause();
    let started = Instant::now();
    let (read, ()) = tokio::join!(origin.get("bucket", "key"), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        origin.resume();
    });
    assert_eq!(read, Some(Bytes::from("late")));
    assert!(started.elapsed() >= Duration::from_millis(300));
}
