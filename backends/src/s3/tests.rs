//! Where requests go.

use super::*;
use crate::S3Credential;

fn config(bucket: &str, endpoint: Option<&str>, path_style: Option<bool>) -> S3Config {
    S3Config {
        bucket: bucket.into(),
        prefix: String::new(),
        region: "eu-west-1".into(),
        endpoint: endpoint.map(str::to_owned),
        path_style,
        credential: S3Credential::Anonymous,
    }
}

#[test]
fn buckets_have_places() {
    let base =
        |config: &S3Config| Place::new(config).unwrap().base("eu-west-1").unwrap().to_string();
    let aws = "https://b.s3.eu-west-1.amazonaws.com/";
    assert_eq!(base(&config("b", None, None)), aws);
    let dotted = "https://s3.eu-west-1.amazonaws.com/b.c";
    assert_eq!(base(&config("b.c", None, None)), dotted);
    let own = Some("http://minio:9000/");
    assert_eq!(base(&config("b", own, None)), "http://minio:9000/b");
    assert_eq!(base(&config("b", own, Some(false))), "http://b.minio:9000/");
    let china = Place::new(&config("b", None, None)).unwrap().base("cn-north-1").unwrap();
    assert_eq!(china.host_str(), Some("b.s3.cn-north-1.amazonaws.com.cn"));
}

#[test]
fn what_cannot_be_a_place_is_refused() {
    for bucket in ["", "a/b", "..", "a b", "a?b"] {
        assert!(Place::new(&config(bucket, None, None)).is_err(), "{bucket}");
    }
    for endpoint in ["minio:9000", "ftp://x", "http://", "http://u:p@host", "http://host?x=y"] {
        assert!(Place::new(&config("b", Some(endpoint), None)).is_err(), "{endpoint}");
    }
}

#[test]
fn nothing_printed_is_secret() {
    let credential = S3Credential::Static {
        access_key_id: "AKIA".into(),
        secret_access_key: "hush".to_owned().into(),
        session_token: Some("quiet".to_owned().into()),
    };
    let config = S3Config { credential, ..config("b", None, None) };
    let store = S3Store::new(&config, &Policy::default()).unwrap();
    let printed = format!("{config:?} {store:?} {}", identity(&config).unwrap());
    assert!(!printed.contains("hush") && !printed.contains("quiet"), "{printed}");
}

#[tokio::test]
async fn large_objects_are_copied_part_by_part() {
    use ::store::{Body, ByteRange, CopyOptions, ObjectKey, PutOptions, StoreExt};
    let server = testkit::start!(testkit::Origin::minio());
    server.create_bucket("bucket").await;
    let credential = S3Credential::Static {
        access_key_id: server.access_key().into(),
        secret_access_key: server.secret_key().to_owned().into(),
        session_token: None,
    };
    let endpoint = server.endpoint();
    let base = config("bucket", Some(&endpoint), None);
    let config = S3Config { credential, region: server.region().into(), ..base };
    let mut store = S3Store::new(&config, &Policy::default()).unwrap();
    // As if `CopyObject` took 6 MiB; parts are of 5 MiB, the least that S3 allows.
    store.copy_limits = (6 << 20, 5 << 20);
    let bytes: Bytes = (0..11_000_000u32).map(|n| (n % 249) as u8).collect();
    let [from, to] = ["a b+\u{e9}", "to"].map(|k| ObjectKey::new(k).unwrap());
    let mut options = PutOptions::default();
    options.attributes.content_type = Some("image/png".into());
    options.attributes.user.insert("owner".into(), "t\u{e9}am".into());
    let written = store.put(&from, Body::from(bytes.clone()), options.clone()).await.unwrap();
    let pinned = CopyOptions { source_if_match: Some(written.etag), ..CopyOptions::default() };
    let copied = store.copy(&from, &to, pinned).await.unwrap();
    assert!(copied.etag.as_str().ends_with("-3"), "{}", copied.etag);
    let meta = store.head(&to).await.unwrap();
    assert_eq!((meta.etag, meta.size), (copied.etag, 11_000_000));
    let found = meta.attributes.unwrap();
    assert_eq!(found.content_type.as_deref(), Some("image/png"));
    assert_eq!(found.user, options.attributes.user);
    assert!(store.get_bytes(&to, ByteRange::Full).await.unwrap() == bytes);
}
