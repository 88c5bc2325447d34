//! `PutObject`, copies and deletions: what is announced is verified, what is wrong changes nothing.

use std::time::Duration;

use store::testing::{Fault, Operation};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::client::{anonymous, config, metric, parse, start};

/// Checksums of "hello".
const HELLO: [(&str, &str); 6] = [
    ("x-amz-checksum-crc32", "NhCmhg=="),
    ("x-amz-checksum-crc32c", "mnG7TA=="),
    ("x-amz-checksum-crc64nvme", "M3eFcAZSQlc="),
    ("x-amz-checksum-sha1", "qvTGHdzF6KLavt4PO0gs2a6pQ00="),
    ("x-amz-checksum-sha256", "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ="),
    ("content-md5", "XUFAKrxLKna5cZ2REBfFkg=="),
];

#[tokio::test]
async fn checksums_in_headers() {
    let endpoint = anonymous().await;
    for (name, value) in HELLO {
        let right = endpoint.send("PUT", "/b/k", &[(name, value)], b"hello").await;
        assert_eq!(right.status, 200, "{name} {}", right.text());
        if name != "content-md5" {
            assert_eq!(right.header(name), Some(value));
        }
        let wrong = endpoint.send("PUT", "/b/k", &[(name, value)], b"jello").await;
        assert_eq!((wrong.status, wrong.code()), (400, "BadDigest"), "{name}");
        assert_eq!(endpoint.get("/b/k").await.text(), "hello", "a bad body changed the object");
        let broken = endpoint.send("PUT", "/b/k", &[(name, "AA==")], b"hello").await;
        assert_eq!(broken.status, 400);
    }
    let failures = metric(&endpoint.registry, "warpdrive_s3_checksum_failures_total", &[]);
    assert_eq!(failures, 6.0);
}

/// What pyarrow sends, from a client without a key: 60 bytes on the wire, 11 of the object.
#[tokio::test]
async fn chunked_bodies_are_decoded_for_everyone() {
    let endpoint = anonymous().await;
    let body = |data: &str, sum: &str| {
        format!("{:x}\r\n{data}\r\n0\r\nx-amz-checksum-crc64nvme:{sum}\r\n\r\n", data.len())
    };
    let headers = &[
        ("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"),
        ("x-amz-decoded-content-length", "5"),
        ("x-amz-trailer", "x-amz-checksum-crc64nvme"),
        ("content-encoding", "aws-chunked"),
    ];
    let send = async |text: String| endpoint.send("PUT", "/b/k", headers, text.as_bytes()).await;
    let right = send(body("hello", "M3eFcAZSQlc=")).await;
    assert_eq!(right.status, 200, "{}", right.text());
    assert_eq!(right.header("x-amz-checksum-crc64nvme"), Some("M3eFcAZSQlc="));
    let got = endpoint.get("/b/k").await;
    assert_eq!((got.text(), got.header("content-encoding")), ("hello", None));
    for (wrong, code) in [
        (body("jello", "M3eFcAZSQlc="), "BadDigest"),
        (body("hello", "AA=="), "InvalidRequest"),
        (body("hello!", "M3eFcAZSQlc="), "IncompleteBody"),
        ("5\r\nhello\r\n0\r\n\r\n".to_owned(), "MalformedTrailerError"),
        ("5\r\nhello\r\n".to_owned(), "IncompleteBody"),
        ("zz\r\nhello\r\n".to_owned(), "IncompleteBody"),
    ] {
        let answer = send(wrong.clone()).await;
        assert_eq!((answer.status, answer.code()), (400, code), "{wrong:?}");
        assert_eq!(endpoint.get("/b/k").await.text(), "hello");
    }
}

#[tokio::test]
async fn lengths() {
    let endpoint = anonymous().await;
    // A client that leaves in the middle.
    let mut stream = endpoint.connect().await;
    let head = "PUT /b/cut HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![7; 400_000]).await.unwrap();
    drop(stream);
    // A client that does not say how much.
    let headers = &[("transfer-encoding", "chunked"), ("content-length-is", "unknown")];
    let mut stream = endpoint.connect().await;
    let mut head = "PUT /b/k HTTP/1.1\r\nconnection: close\r\nhost: localhost\r\n".to_owned();
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n5\r\nhello\r\n0\r\n\r\n").as_bytes()).await.unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    let answer = parse(&all, false);
    assert_eq!((answer.status, answer.code()), (411, "MissingContentLength"));
    assert_eq!(endpoint.put("/b/empty", b"").await.status, 200);
    assert_eq!(endpoint.get("/b/empty").await.body.len(), 0);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(endpoint.get("/b/cut").await.status, 404);
}

#[tokio::test(start_paused = false)]
async fn a_body_that_stops_is_given_up() {
    let mut config = config(s3gw::Access::Anonymous);
    config.body_timeout = Duration::from_millis(200);
    let endpoint = start(config).await;
    let mut stream = endpoint.connect().await;
    stream
        .write_all(b"PUT /b/k HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n12345")
        .await
        .unwrap();
    let mut all = vec![0; 4096];
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut all)).await;
    let length = read.expect("the endpoint gives up").unwrap();
    assert!(String::from_utf8_lossy(&all[..length]).contains("RequestTimeout"));
    assert_eq!(endpoint.get("/b/k").await.status, 404);
}

#[tokio::test]
async fn conditional_writes() {
    let endpoint = anonymous().await;
    let absent: &[(&str, &str)] = &[("if-none-match", "*")];
    assert_eq!(endpoint.send("PUT", "/b/k", absent, b"1").await.status, 200);
    let again = endpoint.send("PUT", "/b/k", absent, b"2").await;
    assert_eq!((again.status, again.code()), (412, "PreconditionFailed"));
    let tag = endpoint.get("/b/k").await.header("etag").unwrap().to_owned();
    assert_eq!(endpoint.send("PUT", "/b/k", &[("if-match", &tag)], b"3").await.status, 200);
    assert_eq!(endpoint.send("PUT", "/b/k", &[("if-match", &tag)], b"4").await.status, 412);
    assert_eq!(endpoint.get("/b/k").await.text(), "3");
}

/// A client that waits for `100 Continue` sends no body that would be thrown away.
#[tokio::test]
async fn expect_continue_comes_after_the_checks() {
    let endpoint = anonymous().await;
    endpoint.memory.insert("k", "x");
    let head = |key: &str, more: &str| {
        format!(
            "PUT /b/{key} HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\n\
             content-length: 5\r\n{more}connection: close\r\n\r\n"
        )
    };
    let mut stream = endpoint.connect().await;
    stream.write_all(head("k", "if-none-match: *\r\n").as_bytes()).await.unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    assert_eq!(parse(&all, false).status, 412);
    let mut stream = endpoint.connect().await;
    stream.write_all(head("new", "if-none-match: *\r\n").as_bytes()).await.unwrap();
    let mut line = [0; 25];
    stream.read_exact(&mut line).await.unwrap();
    assert_eq!(&line, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hello").await.unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    assert_eq!(parse(&all, false).status, 200);
}

#[tokio::test]
async fn read_only_buckets() {
    let endpoint = anonymous().await;
    assert_eq!(endpoint.get("/frozen/k").await.text(), "ice");
    for (method, target, headers) in [
        ("PUT", "/frozen/k", &[][..]),
        ("PUT", "/frozen/k", &[("x-amz-copy-source", "b/k")][..]),
        ("DELETE", "/frozen/k", &[][..]),
        ("POST", "/frozen/k?uploads", &[][..]),
        ("POST", "/frozen?delete", &[][..]),
    ] {
        let answer = endpoint.ask(method, target, headers).await;
        assert_eq!((answer.status, answer.code()), (403, "AccessDenied"), "{method} {target}");
        assert!(answer.element("Message").contains("read-only"));
    }
}

/// A client that sends everything before it looks can send everything, and sees the refusal
/// instead of a reset connection.
#[tokio::test]
async fn refusals_of_large_bodies_are_seen() {
    let endpoint = anonymous().await;
    for (target, header, status) in [
        ("/frozen/k", "", 403),
        ("/none/k", "", 404),
        ("/b?policy", "", 501),
        ("/b/k", "x-amz-checksum-crc32: AA==\r\n", 400),
        (
            "/b/k",
            "x-amz-content-sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER\r\n\
          x-amz-decoded-content-length: 7\r\n",
            400,
        ),
    ] {
        let mut stream = endpoint.connect().await;
        let body = vec![7; 6 << 20];
        let head = format!(
            "PUT {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{header}\
             content-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&body).await.expect("the endpoint takes what it does not want");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        assert_eq!(parse(&all, false).status, status, "{target}");
    }
}

#[tokio::test]
async fn what_would_be_dropped_in_silence_is_refused() {
    let endpoint = anonymous().await;
    for (name, value, code) in [
        ("x-amz-server-side-encryption-customer-algorithm", "AES256", "NotImplemented"),
        ("x-amz-server-side-encryption", "aws:kms", "NotImplemented"),
        ("x-amz-tagging", "a=b", "NotImplemented"),
        ("x-amz-object-lock-mode", "GOVERNANCE", "NotImplemented"),
        ("x-amz-storage-class", "GLACIER", "InvalidStorageClass"),
        ("x-amz-acl", "public-read", "AccessControlListNotSupported"),
        ("x-amz-grant-read", "id=x", "AccessControlListNotSupported"),
    ] {
        let answer = endpoint.send("PUT", "/b/k", &[(name, value)], b"x").await;
        assert_eq!(answer.code(), code, "{name}");
    }
    let fine = &[("x-amz-storage-class", "STANDARD"), ("x-amz-acl", "private")];
    assert_eq!(endpoint.send("PUT", "/b/k", fine, b"x").await.status, 200);
}

#[tokio::test]
async fn copies() {
    let endpoint = anonymous().await;
    let attached = &[("x-amz-meta-a", "1"), ("content-type", "t/x")];
    let put = endpoint.send("PUT", "/b/a%20b", attached, b"hello").await;
    let tag = put.header("etag").unwrap();
    let copy = async |to: &str, headers: &[(&str, &str)]| {
        let mut all = vec![("x-amz-copy-source", "/b/a%20b")];
        all.extend_from_slice(headers);
        endpoint.ask("PUT", to, &all).await
    };
    for to in ["/b/c", "/other/c"] {
        let answer = copy(to, &[]).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.element("ETag").replace("&quot;", "\""), tag);
        let got = endpoint.get(to).await;
        assert_eq!(got.text(), "hello");
        assert_eq!(
            (got.header("x-amz-meta-a"), got.header("content-type")),
            (Some("1"), Some("t/x"))
        );
        let replace = &[("x-amz-metadata-directive", "REPLACE"), ("x-amz-meta-b", "2")];
        assert_eq!(copy(to, replace).await.status, 200);
        let got = endpoint.get(to).await;
        assert_eq!((got.header("x-amz-meta-a"), got.header("x-amz-meta-b")), (None, Some("2")));
        for (headers, status) in [
            (("x-amz-copy-source-if-match", "\"no\""), 412),
            (("x-amz-copy-source-if-none-match", tag), 412),
            (("x-amz-copy-source-if-match", tag), 200),
            (("x-amz-copy-source-if-unmodified-since", "Thu, 01 Jan 1970 00:00:00 GMT"), 412),
            (("if-none-match", "*"), 412),
        ] {
            assert_eq!(copy(to, &[headers]).await.status, status, "{headers:?}");
        }
    }
    assert_eq!(copy("/b/a%20b", &[]).await.code(), "InvalidRequest");
    for (source, code) in [
        ("b/none", "NoSuchKey"),
        ("nobucket/k", "NoSuchBucket"),
        ("b", "InvalidArgument"),
        ("b/a%20b?versionId=7", "NoSuchVersion"),
    ] {
        let answer = endpoint.ask("PUT", "/b/x", &[("x-amz-copy-source", source)]).await;
        assert_eq!(answer.code(), code, "{source}");
    }
}

/// A copy that takes long keeps its connection alive, and says in the end how it went.
#[tokio::test]
async fn slow_copies_answer_early() {
    let mut config = config(s3gw::Access::Anonymous);
    config.patience = Duration::from_millis(100);
    let endpoint = start(config).await;
    endpoint.memory.insert("k", "hello");
    let headers = &[("x-amz-copy-source", "b/k")];
    let slow = Fault::Delay(Duration::from_millis(350));
    endpoint.faulty.inject(Operation::Copy, slow.clone());
    let answer = endpoint.ask("PUT", "/b/c", headers).await;
    assert_eq!(answer.status, 200);
    assert!(answer.text().starts_with("<?xml version=\"1.0\" encoding=\"UTF-8\"?>  "));
    assert!(answer.text().ends_with("</CopyObjectResult>"));
    endpoint.faulty.inject(Operation::Head, slow);
    endpoint.faulty.inject(Operation::Copy, Fault::Fail(store::ErrorKind::Unavailable));
    let answer = endpoint.ask("PUT", "/b/c", headers).await;
    assert_eq!((answer.status, answer.code()), (200, "ServiceUnavailable"));
}

#[tokio::test]
async fn deletions() {
    let endpoint = anonymous().await;
    endpoint.memory.insert("k", "x");
    let wrong = endpoint.ask("DELETE", "/b/k", &[("if-match", "\"no\"")]).await;
    assert_eq!(wrong.status, 412);
    assert_eq!(endpoint.ask("DELETE", "/b/k", &[("if-match", "*")]).await.status, 204);
    assert_eq!(endpoint.ask("DELETE", "/b/k", &[]).await.status, 204);
    for i in 0..40 {
        endpoint.memory.insert(&format!("d/{i}"), "x");
    }
    let list = |quiet: bool, keys: &[&str]| {
        let objects: String =
            keys.iter().map(|k| format!("<Object><Key>{k}</Key></Object>")).collect();
        format!("<Delete><Quiet>{quiet}</Quiet>{objects}</Delete>")
    };
    let keys: Vec<String> = (0..40).map(|i| format!("d/{i}")).collect();
    let mut keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    keys.push("never&amp;there");
    let batch = list(false, &keys);
    let answer = endpoint.send("POST", "/b?delete", &[], batch.as_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.elements("Key"), keys, "results come in the order of the request");
    assert_eq!(endpoint.get("/b?list-type=2").await.element("KeyCount"), "0");
    endpoint.memory.insert("q", "x");
    endpoint.faulty.inject(Operation::Delete, Fault::Fail(store::ErrorKind::PermissionDenied));
    let answer = endpoint.send("POST", "/b?delete", &[], list(true, &["q", "r"]).as_bytes()).await;
    assert_eq!((answer.elements("Key"), answer.code()), (vec!["q"], "AccessDenied"));
    for bad in ["", "<Delete></Delete>", "<Delete><Object>", "not xml"] {
        let answer = endpoint
            .send(
                "POST",
                "/b?delete",
                &[("content-length", &bad.len().to_string())],
                bad.as_bytes(),
            )
            .await;
        assert_eq!((answer.status, answer.code()), (400, "MalformedXML"), "{bad}");
    }
    let many: Vec<String> = (0..1001).map(|i| i.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let answer = endpoint.send("POST", "/b?delete", &[], list(true, &many).as_bytes()).await;
    assert_eq!(answer.code(), "MalformedXML");
    // The checksum of the document is the body's.
    let wrong = &[("x-amz-checksum-crc32", "NhCmhg==")];
    let answer = endpoint.send("POST", "/b?delete", wrong, list(true, &["q"]).as_bytes()).await;
    assert_eq!(answer.code(), "BadDigest");
}
