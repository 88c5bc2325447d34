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
    let base = |config: &S3Config| Place::new(config).unwrap().base("eu-west-1").unwrap().to_string();
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
