//! S3 origins that fail: right bytes or a clear error, always.

// What a test sets up must work; clippy knows only functions marked as tests as such.
#![allow(clippy::unwrap_used)]

#[path = "support/double.rs"]
mod double;

use std::sync::Arc;
use std::time::Duration;

use backends::{Metrics, Opened, OriginConfig, OriginKind, Policy, S3Config, S3Credential};
use bytes::Bytes;
use double::{Answer, Double, Seen};
use futures::TryStreamExt;
use store::{
    Body, ByteRange, CopyOptions, ErrorKind, GetOptions, ListRequest, ObjectKey, PutOptions, Store,
    StoreExt,
};
use testkit::{Fault, FaultyHttp, Origin, Rule, Running};

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

fn bytes(count: usize) -> Bytes {
    (0..count).map(|n| (n % 251) as u8).collect()
}

fn config(endpoint: String, access_key: &str, secret: &str) -> S3Config {
    S3Config {
        bucket: "bucket".into(),
        prefix: String::new(),
        region: "us-east-1".into(),
        endpoint: Some(endpoint),
        path_style: None,
        credential: S3Credential::Static {
            access_key_id: access_key.into(),
            secret_access_key: secret.to_owned().into(),
            session_token: None,
        },
    }
}

fn policy() -> Policy {
    let short = Duration::from_millis(700);
    Policy {
        first_byte_timeout: short,
        idle_timeout: short,
        backoff_base: Duration::from_millis(5),
        ..Policy::default()
    }
}

async fn open(config: S3Config, policy: Policy) -> Opened {
    let config = OriginConfig { kind: OriginKind::S3(config), policy };
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    backends::open("origin", &config, &metrics).await.unwrap()
}

/// A bucket of a real server behind a proxy that fails on demand.
async fn behind_proxy(server: &Running) -> (FaultyHttp, Opened) {
    server.create_bucket("bucket").await;
    let proxy = FaultyHttp::start(server.address());
    let endpoint = server.endpoint_at(proxy.address());
    let opened = open(config(endpoint, server.access_key(), server.secret_key()), policy()).await;
    (proxy, opened)
}

#[tokio::test]
async fn bodies_survive_cuts_stalls_and_refusals() {
    let server = testkit::start!(Origin::versitygw());
    let (proxy, opened) = behind_proxy(&server).await;
    let expected = bytes(3_000_000);
    opened.store.put_bytes(&key("k"), expected.clone()).await.unwrap();
    let faults = [
        Fault::CutBody { after_bytes: 1_000_000 },
        Fault::HangBody { after_bytes: 100_000 },
        Fault::Status(503),
        Fault::Status(500),
        Fault::Reset,
        Fault::Hang,
    ];
    for fault in faults {
        proxy.inject(Rule::every(fault.clone()).on("GET").times(1));
        let found = opened.store.get_bytes(&key("k"), ByteRange::From(7)).await;
        let found = found.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        assert!(found == expected[7..], "{fault:?}");
    }
    let resumed: Vec<_> = proxy.requests().into_iter().filter(|r| r.if_match.is_some()).collect();
    assert_eq!(resumed.len(), 2, "{resumed:?}");
    assert!(resumed.iter().all(|r| r.range.as_deref() != Some("bytes=7-2999999")), "{resumed:?}");
    assert!(opened.health.is_ok());
}

#[tokio::test]
async fn wrong_answers_are_errors_and_never_wrong_bytes() {
    // The proxy drops headers that are signed; moto does not look at signatures.
    let server = testkit::start!(Origin::moto());
    let (proxy, opened) = behind_proxy(&server).await;
    opened.store.put_bytes(&key("k"), bytes(2_000_000)).await.unwrap();
    let kind = async || {
        let range = ByteRange::Bounded(10, 1_500_000);
        opened.store.get_bytes(&key("k"), range).await.map(|b| b.len()).map_err(|e| e.kind())
    };
    proxy.inject(Rule::every(Fault::WholeObject).on("GET").times(1));
    assert_eq!(kind().await, Err(ErrorKind::Corrupted));
    proxy.inject(Rule::every(Fault::ShortBody { missing_bytes: 9 }).on("GET").times(1));
    assert_eq!(kind().await, Err(ErrorKind::Corrupted));
    proxy.inject(Rule::every(Fault::CutBody { after_bytes: 300_000 }).on("GET").times(1));
    proxy.inject(Rule::every(Fault::ChangedEtag("other".into())).on("GET").times(1));
    assert_eq!(kind().await, Err(ErrorKind::PreconditionFailed));
    assert_eq!(kind().await, Ok(1_500_000 - 10));
}

#[tokio::test]
async fn credentials_buckets_and_outages_are_told_apart() {
    let server = testkit::start!(Origin::versitygw());
    server.create_bucket("bucket").await;
    let (id, secret) = (server.access_key(), server.secret_key());
    let list = async |config: S3Config| {
        let opened = open(config, Policy { retries: 0, ..policy() }).await;
        let error = opened.store.list(&ListRequest::default()).await.unwrap_err();
        (error.kind(), error.to_string(), backends::probe(&opened, false).await)
    };
    let (kind, text, probe) = list(config(server.endpoint(), id, "wrong-secret-wrong")).await;
    assert_eq!(kind, ErrorKind::Unauthenticated, "{text}");
    assert!(text.contains("secret_access_key"), "{text}");
    assert!(probe.reach.is_ok() && !probe.credential.is_ok(), "{probe:?}");
    let (kind, text, _) = list(config(server.endpoint(), "nobody", secret)).await;
    assert_eq!(kind, ErrorKind::Unauthenticated, "{text}");
    let other = S3Config { bucket: "none".into(), ..config(server.endpoint(), id, secret) };
    let (kind, text, probe) = list(other).await;
    assert_eq!(kind, ErrorKind::NoSuchBucket, "{text}");
    assert!(probe.credential.is_ok() && !probe.list.is_ok(), "{probe:?}");

    let good = open(config(server.endpoint(), id, secret), policy()).await;
    let probe = backends::probe(&good, true).await;
    assert!(probe.is_ok() && probe.latency.is_some(), "{probe:?}");
    let listed = good.store.list(&ListRequest::default()).await.unwrap();
    assert!(listed.entries.is_empty(), "the probe left an object");
    server.stop();
    let (kind, text, probe) = list(config(server.endpoint(), id, secret)).await;
    assert_eq!(kind, ErrorKind::Unavailable, "{text}");
    assert!(!probe.reach.is_ok() && probe.write.is_ok(), "{probe:?}");
}

#[tokio::test]
async fn a_prefix_is_a_bucket_of_its_own() {
    let server = testkit::start!(Origin::versitygw());
    server.create_bucket("bucket").await;
    server.put("bucket", "outside", "1").await;
    let base = config(server.endpoint(), server.access_key(), server.secret_key());
    let opened = open(S3Config { prefix: "/a/b".into(), ..base }, policy()).await;
    opened.store.put_bytes(&key("k/1"), "2").await.unwrap();
    assert_eq!(server.get("bucket", "a/b/k/1").await.unwrap(), "2");
    let keys: Vec<_> =
        opened.store.walk("").map_ok(|e| e.key.to_string()).try_collect().await.unwrap();
    assert_eq!(keys, ["k/1"]);
    assert_eq!(opened.identity, format!("s3 {}/bucket/a/b/", server.endpoint()));
}

fn error(code: &str, rest: &str) -> String {
    format!("<Error><Code>{code}</Code><Message>m</Message>{rest}</Error>")
}

async fn doubled(
    answer: impl Fn(&Seen) -> Answer + Send + Sync + 'static,
) -> (Double, Arc<dyn Store>) {
    let double = Double::start(answer).await;
    let config = config(double.endpoint.clone(), "id", "secret");
    let opened = open(config, Policy { retries: 2, ..policy() }).await;
    (double, opened.store)
}

/// A service that wants signatures for another region, and says so.
fn elsewhere(seen: &Seen) -> Answer {
    let signed = seen.header("authorization").unwrap_or_default().contains("/eu-west-3/s3/");
    let region = ("x-amz-bucket-region", "eu-west-3".to_owned());
    match (signed, seen.method.as_str()) {
        (false, "HEAD") => (400, vec![region], String::new()),
        (false, _) => {
            let text = error("AuthorizationHeaderMalformed", "<Region>eu-west-3</Region>");
            (400, Vec::new(), text)
        }
        (true, _) => {
            let headers = vec![
                ("etag", "\"e\"".to_owned()),
                ("last-modified", "Fri, 02 Jan 2026 03:04:05 GMT".to_owned()),
            ];
            (200, headers, String::new())
        }
    }
}

#[tokio::test]
async fn the_region_is_learnt() {
    let (double, store) = doubled(elsewhere).await;
    store.head(&key("k")).await.unwrap();
    store.head(&key("k")).await.unwrap();
    assert_eq!(double.seen().len(), 3, "asked once too often, then right at once");

    let (double, store) = doubled(elsewhere).await;
    let put = store.put_bytes(&key("k"), "body").await.unwrap_err();
    assert_eq!(put.kind(), ErrorKind::Unavailable);
    assert!(put.to_string().contains("is in region eu-west-3"), "{put}");
    store.put_bytes(&key("k"), "body").await.unwrap();
    let seen = double.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[1].target, "/bucket/k");
    // Without TLS the chunks are signed.
    let body = String::from_utf8_lossy(&seen[1].body).into_owned();
    assert!(body.starts_with("4;chunk-signature=") && body.contains("\r\nbody\r\n0;"), "{body}");
    assert_eq!(seen[1].header("x-amz-decoded-content-length"), Some("4"));
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let (double, store) = doubled(|_| {
        let location = ("location", "http://127.0.0.1:1/elsewhere".to_owned());
        (307, vec![location], error("TemporaryRedirect", ""))
    })
    .await;
    let got = store.get(&key("k"), GetOptions::default()).await.unwrap_err();
    assert_eq!(got.kind(), ErrorKind::InvalidInput);
    assert!(got.to_string().contains("check endpoint and region"), "{got}");
    assert_eq!(double.seen().len(), 1);
}

#[tokio::test]
async fn an_error_inside_a_success_is_an_error() {
    let (_double, store) = doubled(|seen| {
        let headers = vec![
            ("etag", "\"e\"".to_owned()),
            ("last-modified", "Fri, 02 Jan 2026 03:04:05 GMT".to_owned()),
        ];
        match seen.method.as_str() {
            "PUT" => (200, Vec::new(), error("InternalError", "")),
            _ => (200, headers, String::new()),
        }
    })
    .await;
    let copied = store.copy(&key("a"), &key("b"), CopyOptions::default()).await.unwrap_err();
    assert_eq!(copied.kind(), ErrorKind::Unavailable);
    assert!(copied.to_string().contains("answered 200 and then InternalError"), "{copied}");
}

#[tokio::test]
async fn a_failing_body_keeps_its_error_and_sends_no_end() {
    let (double, store) =
        doubled(|_| (200, vec![("etag", "\"e\"".to_owned())], String::new())).await;
    let pieces =
        [Ok(bytes(100_000)), Err(store::Error::new(ErrorKind::BadDigest, "crc32 differs"))];
    let body = Body::new(100_000, Box::pin(futures::stream::iter(pieces)));
    let put = store.put(&key("k"), body, PutOptions::default()).await.unwrap_err();
    assert_eq!((put.kind(), put.context()), (ErrorKind::BadDigest, "crc32 differs"));
    let whole =
        |seen: &Seen| seen.body.windows(20).any(|w| w.starts_with(b"\r\n0;chunk-signature="));
    assert!(!double.seen().iter().any(whole), "the body was ended");
}
