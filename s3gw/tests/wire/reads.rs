//! `GetObject` and `HeadObject`: ranges, conditions, headers, keys.

use store::ErrorKind;
use store::testing::{Fault, Operation};

use crate::client::anonymous;

#[tokio::test]
async fn ranges() {
    let endpoint = anonymous().await;
    endpoint.memory.insert("k", "0123456789");
    endpoint.memory.insert("empty", "");
    for (range, status, body, content_range) in [
        ("bytes=0-0", 206, "0", Some("bytes 0-0/10")),
        ("bytes=2-4", 206, "234", Some("bytes 2-4/10")),
        ("bytes=8-99", 206, "89", Some("bytes 8-9/10")),
        ("bytes=0-", 206, "0123456789", Some("bytes 0-9/10")),
        ("bytes=-3", 206, "789", Some("bytes 7-9/10")),
        ("bytes=-99", 206, "0123456789", Some("bytes 0-9/10")),
        ("bytes=0-1,4-5", 200, "0123456789", None),
        ("chapters=1-2", 200, "0123456789", None),
        ("bytes=4-2", 200, "0123456789", None),
    ] {
        let answer = endpoint.ask("GET", "/b/k", &[("range", range)]).await;
        assert_eq!((answer.status, answer.text()), (status, body), "{range}");
        assert_eq!(answer.header("content-range"), content_range, "{range}");
        assert_eq!(answer.header("accept-ranges"), Some("bytes"));
        let head = endpoint.ask("HEAD", "/b/k", &[("range", range)]).await;
        assert_eq!(head.status, status, "{range}");
        assert_eq!(head.header("content-length"), answer.header("content-length"), "{range}");
        assert_eq!(head.header("content-range"), content_range, "{range}");
        assert!(head.body.is_empty());
    }
    for (target, range, size) in [
        ("/b/k", "bytes=10-", 10),
        ("/b/k", "bytes=99-100", 10),
        ("/b/k", "bytes=-0", 10),
        ("/b/empty", "bytes=0-", 0),
    ] {
        let answer = endpoint.ask("GET", target, &[("range", range)]).await;
        assert_eq!((answer.status, answer.code()), (416, "InvalidRange"), "{range}");
        assert_eq!(answer.header("content-range"), Some(&*format!("bytes */{size}")));
        assert_eq!(endpoint.ask("HEAD", target, &[("range", range)]).await.status, 416);
    }
    let empty = endpoint.get("/b/empty").await;
    assert_eq!((empty.status, empty.header("content-length")), (200, Some("0")));
}

#[tokio::test]
async fn conditions() {
    let endpoint = anonymous().await;
    let tag = endpoint.memory.insert("k", "0123456789").quoted();
    let now = endpoint.get("/b/k").await.header("last-modified").unwrap().to_owned();
    let past = "Thu, 01 Jan 1970 00:00:00 GMT";
    let cases: &[(&[(&str, &str)], u16)] = &[
        (&[("if-match", &tag)], 200),
        (&[("if-match", "\"no\"")], 412),
        (&[("if-match", "*")], 200),
        (&[("if-match", "\"no\", \"never\"")], 412),
        (&[("if-match", "\"\"")], 412),
        (&[("if-none-match", &tag)], 304),
        (&[("if-none-match", "*")], 304),
        (&[("if-none-match", "\"no\"")], 200),
        (&[("if-modified-since", &now)], 304),
        (&[("if-modified-since", past)], 200),
        (&[("if-unmodified-since", past)], 412),
        (&[("if-unmodified-since", &now)], 200),
        (&[("if-match", &tag), ("if-unmodified-since", past)], 200),
        (&[("if-none-match", "\"no\""), ("if-modified-since", &now)], 200),
        // A condition is decided before the range.
        (&[("if-none-match", &tag), ("range", "bytes=99-")], 304),
        (&[("if-match", "\"no\""), ("range", "bytes=99-")], 412),
        (&[("if-range", &tag), ("range", "bytes=0-1")], 206),
        (&[("if-range", "\"no\""), ("range", "bytes=0-1")], 200),
        (&[("if-range", &now), ("range", "bytes=0-1")], 206),
    ];
    for (headers, status) in cases {
        for method in ["GET", "HEAD"] {
            let answer = endpoint.ask(method, "/b/k", headers).await;
            assert_eq!(answer.status, *status, "{method} {headers:?}");
            if *status == 304 {
                assert!(answer.body.is_empty());
                assert_eq!(answer.header("etag"), Some(tag.as_str()));
            }
        }
    }
}

#[tokio::test]
async fn keys_are_raw() {
    let endpoint = anonymous().await;
    for (target, key) in [
        ("/b/a//b", "a//b"),
        ("/b//lead", "/lead"),
        ("/b/dir/", "dir/"),
        ("/b/./x/../y", "./x/../y"),
        ("/b/a+b", "a+b"),
        ("/b/a%2Bb", "a+b"),
        ("/b/100%25", "100%"),
        ("/b/%252F", "%2F"),
        ("/b/%01%7F%C3%A9", "\u{1}\u{7f}\u{e9}"),
        ("/b/q%3Fa%3Db", "q?a=b"),
    ] {
        let put = endpoint.put(target, key.as_bytes()).await;
        assert_eq!(put.status, 200, "{target}");
        assert_eq!(endpoint.get(target).await.text(), key, "{target}");
        assert!(endpoint.memory.remove(key), "{target} is not the key {key:?}");
    }
    let long = format!("/b/{}", "k".repeat(1025));
    assert_eq!(endpoint.get(&long).await.code(), "KeyTooLongError");
    assert_eq!(endpoint.get("/b/%FF").await.code(), "InvalidURI");
}

#[tokio::test]
async fn attributes_and_overrides() {
    let endpoint = anonymous().await;
    let headers = &[
        ("content-type", "image/png"),
        ("content-encoding", "gzip"),
        ("content-disposition", "attachment"),
        ("content-language", "de"),
        ("cache-control", "no-cache"),
        ("expires", "Thu, 01 Jan 2037 00:00:00 GMT"),
        ("x-amz-meta-Mixed", "Value"),
    ];
    assert_eq!(endpoint.send("PUT", "/b/k", headers, b"x").await.status, 200);
    let got = endpoint.get("/b/k").await;
    for (name, value) in headers {
        assert_eq!(got.header(&name.to_ascii_lowercase()), Some(*value), "{name}");
    }
    let head = endpoint.ask("HEAD", "/b/k", &[]).await;
    let kept = |answer: &crate::client::Answer| {
        let mut headers = answer.headers.clone();
        headers.retain(|(name, _)| !matches!(name.as_str(), "date" | "x-amz-request-id"));
        headers
    };
    assert_eq!(kept(&head), kept(&got));
    let other = endpoint
        .get("/b/k?response-content-type=text%2Fx&response-content-disposition=inline&response-expires=0")
        .await;
    assert_eq!(other.header("content-type"), Some("text/x"));
    assert_eq!(other.header("content-disposition"), Some("inline"));
    assert_eq!(other.header("expires"), Some("0"));
    endpoint.memory.insert("plain", "x");
    let plain = endpoint.get("/b/plain").await;
    assert_eq!(plain.header("content-type"), Some("binary/octet-stream"));
    assert_eq!(plain.header("etag"), Some("\"9dd4e461268c8034f5c8564e155c67a6\""));
}

#[tokio::test]
async fn part_numbers_and_versions() {
    let endpoint = anonymous().await;
    endpoint.memory.insert("k", "0123456789");
    assert_eq!(endpoint.get("/b/k?partNumber=1").await.text(), "0123456789");
    assert_eq!(endpoint.get("/b/k?partNumber=2").await.status, 416);
    let both = endpoint.ask("GET", "/b/k?partNumber=1", &[("range", "bytes=0-1")]).await;
    assert_eq!(both.code(), "InvalidRequest");
    assert_eq!(endpoint.get("/b/k?versionId=null").await.status, 200);
    assert_eq!(endpoint.get("/b/k?versionId=v1").await.code(), "NoSuchVersion");
}

#[tokio::test]
async fn errors_of_the_origin() {
    let endpoint = anonymous().await;
    endpoint.memory.insert("k", "x".repeat(1 << 20));
    for (kind, status, code) in [
        (ErrorKind::Unavailable, 503, "ServiceUnavailable"),
        (ErrorKind::Throttled, 503, "SlowDown"),
        (ErrorKind::PermissionDenied, 403, "AccessDenied"),
        (ErrorKind::UnsupportedKey, 400, "InvalidArgument"),
        (ErrorKind::Internal, 500, "InternalError"),
    ] {
        endpoint.faulty.inject(Operation::Get, Fault::Fail(kind));
        let answer = endpoint.get("/b/k").await;
        assert_eq!((answer.status, answer.code()), (status, code));
        assert_eq!(answer.element("Resource"), "/b/k");
        assert_eq!(Some(answer.element("RequestId")), answer.header("x-amz-request-id"));
    }
    let missing = endpoint.get("/b/none").await;
    assert_eq!((missing.status, missing.code()), (404, "NoSuchKey"));
    let head = endpoint.ask("HEAD", "/b/none", &[]).await;
    assert_eq!((head.status, head.body.len()), (404, 0));
    assert_eq!(endpoint.get("/nobucket/k").await.code(), "NoSuchBucket");
}

/// A body that the origin cuts never looks whole to the client.
#[tokio::test]
async fn a_cut_body_cuts_the_connection() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let endpoint = anonymous().await;
    endpoint.memory.insert("k", "x".repeat(1 << 20));
    for fault in [Fault::CutAfter(300_000), Fault::EndAfter(300_000)] {
        endpoint.faulty.inject(Operation::Get, fault);
        let mut stream = endpoint.connect().await;
        stream.write_all(b"GET /b/k HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all).await;
        // Nothing at all, or the head with the whole length and too little behind it.
        let head = String::from_utf8_lossy(&all[..all.len().min(500)]).into_owned();
        assert!(all.is_empty() || head.contains("content-length: 1048576"), "{head}");
        assert!(all.len() < 1 << 20);
    }
}

#[tokio::test]
async fn what_is_asked_about_objects() {
    let endpoint = anonymous().await;
    endpoint.memory.insert("k", "0123456789");
    let headers = &[("x-amz-object-attributes", "ObjectSize,ETag")];
    let attributes = endpoint.ask("GET", "/b/k?attributes", headers).await;
    assert_eq!(attributes.element("ObjectSize"), "10");
    let acl = endpoint.get("/b/k?acl").await;
    assert_eq!(acl.element("Permission"), "FULL_CONTROL");
    assert_eq!(endpoint.get("/b/k?tagging").await.status, 200);
    for target in ["/b/none?acl", "/b/none?tagging"] {
        assert_eq!(endpoint.get(target).await.code(), "NoSuchKey");
    }
    let refused = endpoint.put("/b/k?tagging", b"<Tagging/>").await;
    assert_eq!((refused.status, refused.code()), (501, "NotImplemented"));
    assert!(refused.element("Message").contains("PutObjectTagging"));
}

/// The validator was right when it was looked at, and the object replaced before it was read.
#[tokio::test]
async fn if_range_never_joins_two_versions() {
    let endpoint = anonymous().await;
    let old = endpoint.memory.insert("k", "0123456789");
    endpoint.memory.insert("k", "abcd");
    for range in ["bytes=2-3", "bytes=8-9"] {
        for method in ["GET", "HEAD"] {
            endpoint.faulty.inject(Operation::Head, Fault::WrongETag(old.clone()));
            let headers = &[("if-range", &*old.quoted()), ("range", range)];
            let answer = endpoint.ask(method, "/b/k", headers).await;
            assert_eq!(answer.status, 200, "{method} {range}");
            assert_eq!(answer.header("content-length"), Some("4"), "{method} {range}");
            assert_eq!(answer.text(), if method == "GET" { "abcd" } else { "" });
        }
    }
}

/// Only a client that made a condition is told that one failed.
#[tokio::test]
async fn an_object_that_keeps_changing_is_tried_again() {
    let endpoint = anonymous().await;
    let tag = endpoint.memory.insert("k", "x").quoted();
    for (headers, status, code) in [
        (None, 503, "ServiceUnavailable"),
        (Some(("if-none-match", "\"no\"")), 503, "ServiceUnavailable"),
        (Some(("if-match", &*tag)), 412, "PreconditionFailed"),
    ] {
        endpoint.faulty.inject(Operation::Get, Fault::Fail(ErrorKind::PreconditionFailed));
        let headers: Vec<_> = headers.into_iter().collect();
        let answer = endpoint.ask("GET", "/b/k", &headers).await;
        assert_eq!((answer.status, answer.code()), (status, code), "{headers:?}");
        assert_eq!(answer.header("retry-after").is_some(), status == 503);
    }
    for (to, operation) in [("/b/c", Operation::Copy), ("/other/c", Operation::Get)] {
        for (condition, status) in [(None, 503), (Some(("x-amz-copy-source-if-match", &*tag)), 412)]
        {
            endpoint.faulty.inject(operation, Fault::Fail(ErrorKind::PreconditionFailed));
            let mut headers = vec![("x-amz-copy-source", "/b/k")];
            headers.extend(condition);
            let answer = endpoint.ask("PUT", to, &headers).await;
            assert_eq!(answer.status, status, "{to} {condition:?}");
        }
    }
}
