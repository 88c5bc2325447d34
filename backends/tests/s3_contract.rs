//! The contract on real servers that speak S3, each with the differences that it is known for.

// What a test sets up must work; clippy knows only functions marked as tests as such.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use backends::{Metrics, OriginConfig, OriginKind, Policy, S3Config, S3Credential};
use futures::StreamExt;
use store::testing::contract::{self, Differences};
use store::{ByteRange, ErrorKind, GetOptions, ObjectKey, StoreExt};
use testkit::{Origin, Running};

/// An origin over a fresh bucket of a running server.
async fn opened(server: &Running, prefix: &str) -> backends::Opened {
    server.create_bucket("bucket").await;
    let config = OriginConfig { kind: OriginKind::S3(config(server, prefix)), policy: policy() };
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    backends::open("origin", &config, &metrics).await.unwrap()
}

fn config(server: &Running, prefix: &str) -> S3Config {
    S3Config {
        bucket: "bucket".into(),
        prefix: prefix.into(),
        region: server.region().into(),
        endpoint: Some(server.endpoint()),
        path_style: None,
        credential: S3Credential::Static {
            access_key_id: server.access_key().into(),
            secret_access_key: server.secret_key().to_owned().into(),
            session_token: None,
        },
    }
}

fn policy() -> Policy {
    Policy { retries: 1, ..Policy::default() }
}

async fn contract(server: &Running, differences: Differences) {
    let opened = opened(server, "").await;
    contract::run(Arc::clone(&opened.store), differences).await.assert();
}

/// True for keys with a `.` or `..` segment, which no URL can carry.
fn has_dot_segment(key: &str) -> bool {
    key.split('/').any(|segment| matches!(segment, "." | ".."))
}

/// Smallest part of S3, moto, MinIO and versitygw.
const MIN_PART_BYTES: usize = 5 << 20;

#[tokio::test]
async fn moto_keeps_the_contract() {
    let server = testkit::start!(Origin::moto());
    let differences = Differences {
        refused_keys: Some(|key| has_dot_segment(key) || key.contains('\n')),
        min_part_bytes: MIN_PART_BYTES,
        // It answers 500 to a part of an upload that was aborted.
        forgets_aborts: true,
        ..Differences::default()
    };
    contract(&server, differences).await;
}

#[tokio::test]
async fn objects_without_a_tag_are_versions_by_size_and_time() {
    let server = testkit::start!(Origin::versitygw());
    let store = opened(&server, "").await.store;
    // A file that the server did not write: it knows no tag for it.
    let folder = server.folder().join("stored/bucket/d");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("f"), b"found").unwrap();
    let key = ObjectKey::new("d/f").unwrap();
    let listed = store.walk("d/").next().await.unwrap().unwrap();
    let head = store.head(&key).await.unwrap();
    assert_eq!((listed.key, &listed.meta.etag), (key.clone(), &head.etag));
    let pinned = || GetOptions { if_match: Some(head.etag.clone()), ..GetOptions::default() };
    let got = store.get(&key, pinned()).await.unwrap();
    assert_eq!((got.meta.etag, got.range), (head.etag.clone(), 0..5));
    assert_eq!(store.get_bytes(&key, ByteRange::Full).await.unwrap(), "found");
    std::fs::write(folder.join("f"), b"changed").unwrap();
    let changed = store.get(&key, pinned()).await.unwrap_err();
    assert_eq!(changed.kind(), ErrorKind::PreconditionFailed);
}

#[tokio::test]
async fn versitygw_keeps_the_contract() {
    let server = testkit::start!(Origin::versitygw());
    let differences = Differences {
        refused_keys: Some(|key| {
            let segment = |s: &str| matches!(s, "" | "." | "..") || s.len() > 255;
            key.split('/').any(segment) || key.contains(|c: char| c < ' ' && c != '\t' && c != '\n')
        }),
        file_hides_directory: true,
        copy_keeps_headers: true,
        min_part_bytes: MIN_PART_BYTES,
        ..Differences::default()
    };
    contract(&server, differences).await;
}

#[tokio::test]
async fn minio_keeps_the_contract() {
    let server = testkit::start!(Origin::minio());
    let differences = Differences {
        refused_keys: Some(|key| {
            key.contains("//") || has_dot_segment(key) || key.split('/').any(|s| s.len() > 255)
        }),
        min_part_bytes: MIN_PART_BYTES,
        file_hides_listing: true,
        lists_uploads_by_key: true,
        // Aborting twice is no error.
        forgets_aborts: true,
        ..Differences::default()
    };
    contract(&server, differences).await;
}
