//! Multi-part uploads from begin to end.

use crate::client::{Answer, Endpoint, anonymous};

async fn begin(endpoint: &Endpoint, key: &str) -> String {
    let answer = endpoint.ask("POST", &format!("/b/{key}?uploads"), &[]).await;
    assert_eq!(answer.status, 200);
    answer.element("UploadId").to_owned()
}

async fn part(endpoint: &Endpoint, key: &str, id: &str, number: u32, body: &[u8]) -> Answer {
    endpoint.put(&format!("/b/{key}?partNumber={number}&uploadId={id}"), body).await
}

fn completion(parts: &[(u32, &str)]) -> String {
    let parts: String = parts
        .iter()
        .map(|(n, t)| format!("<Part><PartNumber>{n}</PartNumber><ETag>{t}</ETag></Part>"))
        .collect();
    format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>")
}

#[tokio::test]
async fn from_begin_to_end() {
    let endpoint = anonymous().await;
    let headers = &[("content-type", "t/x"), ("x-amz-meta-a", "1")];
    let id = endpoint.ask("POST", "/b/a%20b?uploads", headers).await;
    assert_eq!(id.element("Key"), "a b");
    let id = id.element("UploadId").to_owned();
    let mut tags = Vec::new();
    for number in [3, 1, 2] {
        let answer =
            part(&endpoint, "a%20b", &id, number, format!("part{number}").as_bytes()).await;
        assert_eq!(answer.status, 200);
        tags.push((number, answer.header("etag").unwrap().to_owned()));
    }
    tags.sort();
    let listed = endpoint.get(&format!("/b/a%20b?uploadId={id}&max-parts=2")).await;
    assert_eq!(listed.elements("PartNumber"), ["1", "2"]);
    assert_eq!(listed.elements("Size"), ["5", "5"]);
    assert_eq!(listed.element("IsTruncated"), "true");
    assert_eq!(listed.element("NextPartNumberMarker"), "2");
    let rest = endpoint.get(&format!("/b/a%20b?uploadId={id}&part-number-marker=2")).await;
    assert_eq!(rest.elements("PartNumber"), ["3"]);
    assert_eq!(rest.element("IsTruncated"), "false");

    let target = format!("/b/a%20b?uploadId={id}");
    let complete = async |parts: &[(u32, &str)]| {
        endpoint.send("POST", &target, &[], completion(parts).as_bytes()).await
    };
    let [one, two, three] = [&tags[0].1, &tags[1].1, &tags[2].1];
    assert_eq!(complete(&[(2, two), (1, one)]).await.code(), "InvalidPartOrder");
    assert_eq!(complete(&[(1, one), (1, one)]).await.code(), "InvalidPartOrder");
    assert_eq!(complete(&[(1, "\"no\"")]).await.code(), "InvalidPart");
    assert_eq!(complete(&[(4, one)]).await.code(), "InvalidPart");
    assert_eq!(complete(&[(0, one)]).await.code(), "InvalidPart");
    assert_eq!(complete(&[]).await.code(), "MalformedXML");
    let done = complete(&[(1, one), (2, two.trim_matches('"')), (3, three)]).await;
    assert_eq!(done.status, 200, "{}", done.text());
    assert_eq!((done.element("Bucket"), done.element("Key")), ("b", "a b"));
    assert!(done.element("Location").ends_with("/b/a%20b"));
    let got = endpoint.get("/b/a%20b").await;
    assert_eq!(got.text(), "part1part2part3");
    assert_eq!(got.header("etag").unwrap(), done.element("ETag").replace("&quot;", "\""));
    assert_eq!((got.header("content-type"), got.header("x-amz-meta-a")), (Some("t/x"), Some("1")));
}

#[tokio::test]
async fn unknown_uploads_and_bad_numbers() {
    let endpoint = anonymous().await;
    for answer in [
        part(&endpoint, "k", "none", 1, b"x").await,
        endpoint.ask("DELETE", "/b/k?uploadId=none", &[]).await,
        endpoint.get("/b/k?uploadId=none").await,
        endpoint.send("POST", "/b/k?uploadId=none", &[], completion(&[(1, "t")]).as_bytes()).await,
    ] {
        assert_eq!((answer.status, answer.code()), (404, "NoSuchUpload"));
    }
    let id = begin(&endpoint, "k").await;
    for number in [0, 10_001, 99_999] {
        assert_eq!(part(&endpoint, "k", &id, number, b"x").await.code(), "InvalidArgument");
    }
    assert_eq!(endpoint.ask("DELETE", &format!("/b/k?uploadId={id}"), &[]).await.status, 204);
    assert_eq!(part(&endpoint, "k", &id, 1, b"x").await.code(), "NoSuchUpload");
}

#[tokio::test]
async fn a_bad_part_is_no_part() {
    let endpoint = anonymous().await;
    let id = begin(&endpoint, "k").await;
    let target = format!("/b/k?partNumber=1&uploadId={id}");
    let headers = &[("x-amz-checksum-crc32", "NhCmhg==")];
    let right = endpoint.send("PUT", &target, headers, b"hello").await;
    assert_eq!(right.header("x-amz-checksum-crc32"), Some("NhCmhg=="));
    assert_eq!(endpoint.send("PUT", &target, headers, b"jello").await.code(), "BadDigest");
    let tag = right.header("etag").unwrap();
    // The checksum at completion is the object's, not the document's.
    let done = endpoint
        .send(
            "POST",
            &format!("/b/k?uploadId={id}"),
            &[("x-amz-checksum-crc32", "NhCmhg=="), ("x-amz-checksum-type", "FULL_OBJECT")],
            completion(&[(1, tag)]).as_bytes(),
        )
        .await;
    assert_eq!(done.status, 200, "{}", done.text());
    assert_eq!(endpoint.get("/b/k").await.text(), "hello");
}

#[tokio::test]
async fn conditional_completion() {
    let endpoint = anonymous().await;
    endpoint.memory.insert("k", "old");
    let id = begin(&endpoint, "k").await;
    let tag = part(&endpoint, "k", &id, 1, b"new").await.header("etag").unwrap().to_owned();
    let target = format!("/b/k?uploadId={id}");
    let body = completion(&[(1, &tag)]);
    let refused = endpoint.send("POST", &target, &[("if-none-match", "*")], body.as_bytes()).await;
    assert_eq!((refused.status, refused.code()), (412, "PreconditionFailed"));
    assert_eq!(endpoint.get("/b/k").await.text(), "old");
    assert_eq!(endpoint.send("POST", &target, &[], body.as_bytes()).await.status, 200);
    assert_eq!(endpoint.get("/b/k").await.text(), "new");
}

#[tokio::test]
async fn parts_from_copies() {
    let endpoint = anonymous().await;
    endpoint.memory.insert("source", "0123456789");
    let id = begin(&endpoint, "k").await;
    let copy = async |number: u32, range: Option<&str>| {
        let mut headers = vec![("x-amz-copy-source", "b/source")];
        headers.extend(range.map(|range| ("x-amz-copy-source-range", range)));
        let target = format!("/b/k?partNumber={number}&uploadId={id}");
        endpoint.ask("PUT", &target, &headers).await
    };
    let first = copy(1, Some("bytes=2-4")).await;
    let second = copy(2, None).await;
    assert_eq!((first.status, second.status), (200, 200), "{}", first.text());
    for bad in ["bytes=8-10", "bytes=5-", "bytes=-5", "bytes=4-2"] {
        assert_eq!(copy(3, Some(bad)).await.code(), "InvalidArgument", "{bad}");
    }
    let body = completion(&[(1, first.element("ETag")), (2, second.element("ETag"))]);
    let done = endpoint.send("POST", &format!("/b/k?uploadId={id}"), &[], body.as_bytes()).await;
    assert_eq!(done.status, 200, "{}", done.text());
    assert_eq!(endpoint.get("/b/k").await.text(), "2340123456789");
}

#[tokio::test]
async fn uploads_in_progress() {
    let endpoint = anonymous().await;
    for key in ["a", "d/1", "d/2", "e%20f", "z"] {
        begin(&endpoint, key).await;
    }
    begin(&endpoint, "a").await;
    let all = endpoint.get("/b?uploads").await;
    assert_eq!(all.elements("Key"), ["a", "a", "d/1", "d/2", "e f", "z"]);
    assert_eq!(all.element("IsTruncated"), "false");
    // Page by page, with a delimiter and encoded names, nothing is lost or repeated.
    let (mut seen, mut marker) = (Vec::new(), String::new());
    for _ in 0..10 {
        let page = endpoint
            .get(&format!("/b?uploads&max-uploads=1&delimiter=%2F&encoding-type=url{marker}"))
            .await;
        seen.extend(page.elements("Key").into_iter().map(str::to_owned));
        if let Some(prefix) = page.element("CommonPrefixes").strip_prefix("<Prefix>") {
            seen.push(prefix.trim_end_matches("</Prefix>").to_owned());
        }
        if page.element("IsTruncated") == "false" {
            break;
        }
        marker = format!("&key-marker={}", page.element("NextKeyMarker"));
        if !page.element("NextUploadIdMarker").is_empty() {
            marker += &format!("&upload-id-marker={}", page.element("NextUploadIdMarker"));
        }
    }
    assert_eq!(seen, ["a", "a", "d/", "e%20f", "z"]);
}

#[tokio::test]
async fn the_announced_size_of_the_object_is_checked() {
    let endpoint = anonymous().await;
    let id = begin(&endpoint, "k").await;
    let mut tags = Vec::new();
    for (number, body) in [(1, "hello"), (2, "unused"), (3, "world")] {
        let answer = part(&endpoint, "k", &id, number, body.as_bytes()).await;
        tags.push(answer.header("etag").unwrap().to_owned());
    }
    let body = completion(&[(1, &tags[0]), (3, &tags[2])]);
    let complete = async |size: &str| {
        let target = format!("/b/k?uploadId={id}");
        endpoint.send("POST", &target, &[("x-amz-mp-object-size", size)], body.as_bytes()).await
    };
    for wrong in ["9", "11", "16", "0", "x", "-1"] {
        let refused = complete(wrong).await;
        assert_eq!((refused.status, refused.code()), (400, "InvalidRequest"), "{wrong}");
        assert_eq!(endpoint.get("/b/k").await.status, 404);
    }
    assert_eq!(complete("10").await.status, 200);
    assert_eq!(endpoint.get("/b/k").await.text(), "helloworld");
    // A store that cannot list parts is believed.
    let id = begin(&endpoint, "u").await;
    let tag = part(&endpoint, "u", &id, 1, b"hello").await.header("etag").unwrap().to_owned();
    let fault = store::testing::Fault::Fail(store::ErrorKind::Unsupported);
    endpoint.faulty.inject(store::testing::Operation::ListParts, fault);
    let target = format!("/b/u?uploadId={id}");
    let (headers, body) = (&[("x-amz-mp-object-size", "5")], completion(&[(1, &tag)]));
    assert_eq!(endpoint.send("POST", &target, headers, body.as_bytes()).await.status, 200);
}
