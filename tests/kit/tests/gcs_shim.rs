//! The shim speaks the XML interface as documented for GCS, over the real fake-gcs-server.

// The functions that the tests share are tests too; the lint sees only the marked ones.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioExecutor;
use testkit::{Origin, Running};

async fn ask(
    origin: &Running,
    method: Method,
    target: &str,
    headers: &[(&str, &str)],
    body: &'static str,
) -> Response<Bytes> {
    let client: hyper_util::client::legacy::Client<_, Full<Bytes>> =
        hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http();
    let mut request =
        Request::builder().method(method).uri(format!("{}{target}", origin.endpoint()));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = client.request(request.body(Full::new(Bytes::from(body))).unwrap()).await.unwrap();
    let (parts, body) = answer.into_parts();
    Response::from_parts(parts, body.collect().await.unwrap().to_bytes())
}

fn between<'a>(text: &'a str, open: &str, close: &str) -> Vec<&'a str> {
    text.split(open).skip(1).filter_map(|rest| rest.split(close).next()).collect()
}

#[tokio::test]
async fn objects_conditions_and_metadata() {
    let origin = testkit::start!(Origin::fake_gcs());
    origin.create_bucket("bucket").await;
    let created = ask(
        &origin,
        Method::PUT,
        "/bucket/a%2F%2Fkey",
        &[
            ("x-goog-meta-color", "red"),
            ("content-type", "text/x"),
            ("x-goog-if-generation-match", "0"),
        ],
        "0123456789",
    )
    .await;
    assert_eq!(created.status(), StatusCode::OK);
    let etag = created.headers()["etag"].to_str().unwrap().to_owned();
    let generation = created.headers()["x-goog-generation"].to_str().unwrap().to_owned();

    let again = ask(
        &origin,
        Method::PUT,
        "/bucket/a%2F%2Fkey",
        &[("x-goog-if-generation-match", "0")],
        "x",
    )
    .await;
    assert_eq!(again.status(), StatusCode::PRECONDITION_FAILED);

    let head = ask(&origin, Method::HEAD, "/bucket/a%2F%2Fkey", &[], "").await;
    assert_eq!(head.headers()["etag"], etag);
    assert_eq!(head.headers()["x-goog-generation"], generation);
    assert_eq!(head.headers()["content-length"], "10");
    assert_eq!(head.headers()["content-type"], "text/x");
    assert_eq!(head.headers()["x-goog-meta-color"], "red");

    let part = ask(
        &origin,
        Method::GET,
        "/bucket/a%2F%2Fkey",
        &[("range", "bytes=2-4"), ("if-match", &etag)],
        "",
    )
    .await;
    assert_eq!((part.status(), part.body().as_ref()), (StatusCode::PARTIAL_CONTENT, &b"234"[..]));
    assert_eq!(part.headers()["content-range"], "bytes 2-4/10");

    for (headers, status) in [
        ([("if-match", "\"other\"")], 412),
        ([("if-none-match", etag.as_str())], 304),
        ([("if-modified-since", "Fri, 01 Jan 2100 00:00:00 GMT")], 304),
        ([("if-unmodified-since", "Fri, 01 Jan 2010 00:00:00 GMT")], 412),
        ([("range", "bytes=10-")], 416),
    ] {
        let answer = ask(&origin, Method::GET, "/bucket/a%2F%2Fkey", &headers, "").await;
        assert_eq!(answer.status().as_u16(), status, "{headers:?}");
    }

    let copied = ask(
        &origin,
        Method::PUT,
        "/bucket/copy",
        &[("x-goog-copy-source", "bucket/a%2F%2Fkey")],
        "",
    )
    .await;
    assert_eq!(copied.status(), StatusCode::OK);
    assert_eq!(origin.get("bucket", "copy").await, Some(Bytes::from("0123456789")));
    let onto = [("x-goog-copy-source", "bucket/copy"), ("x-goog-if-generation-match", "0")];
    let refused = ask(&origin, Method::PUT, "/bucket/a%2F%2Fkey", &onto, "").await;
    assert_eq!(refused.status(), StatusCode::PRECONDITION_FAILED);

    assert_eq!(ask(&origin, Method::DELETE, "/bucket/copy", &[], "").await.status(), 204);
    assert_eq!(ask(&origin, Method::DELETE, "/bucket/copy", &[], "").await.status(), 404);
    let nowhere = ask(&origin, Method::GET, "/nowhere?list-type=2", &[], "").await;
    assert_eq!(nowhere.status(), 404);
}

#[tokio::test]
async fn listings_are_paged_in_byte_order() {
    let origin = testkit::start!(Origin::fake_gcs());
    origin.create_bucket("bucket").await;
    for key in ["b", "a/2", "a/1", "a//x", "c&d<", "\u{e9}", "z"] {
        origin.put("bucket", key, "x").await;
    }
    let mut seen = Vec::new();
    let mut token = String::new();
    for _ in 0..10 {
        let target =
            format!("/bucket?list-type=2&delimiter=%2F&max-keys=2&continuation-token={token}");
        let page = ask(&origin, Method::GET, &target, &[], "").await;
        let text = String::from_utf8(page.into_body().to_vec()).unwrap();
        seen.extend(between(&text, "<CommonPrefixes><Prefix>", "<").into_iter().map(str::to_owned));
        seen.extend(between(&text, "<Key>", "</Key>").into_iter().map(str::to_owned));
        match between(&text, "<NextContinuationToken>", "<").first() {
            Some(next) => token = next.replace("&amp;", "%26").replace("&lt;", "%3C"),
            None => break,
        }
    }
    assert_eq!(seen, ["a/", "b", "c&amp;d&lt;", "z", "\u{e9}"]);
    let flat =
        ask(&origin, Method::GET, "/bucket?list-type=2&prefix=a%2F&start-after=a%2F%2Fx", &[], "")
            .await;
    let text = String::from_utf8(flat.into_body().to_vec()).unwrap();
    assert_eq!(between(&text, "<Key>", "<"), ["a/1", "a/2"]);
}

#[tokio::test]
async fn uploads_in_parts() {
    let origin = testkit::start!(Origin::fake_gcs());
    origin.create_bucket("bucket").await;
    let started =
        ask(&origin, Method::POST, "/bucket/big?uploads=", &[("x-goog-meta-a", "b")], "").await;
    let text = String::from_utf8(started.into_body().to_vec()).unwrap();
    let id = between(&text, "<UploadId>", "<")[0].to_owned();
    let mut etags = Vec::new();
    for (number, body) in [(2, "world"), (1, "hello ")] {
        let target = format!("/bucket/big?partNumber={number}&uploadId={id}");
        let stored = ask(&origin, Method::PUT, &target, &[], body).await;
        etags.push(stored.headers()["etag"].to_str().unwrap().to_owned());
    }
    assert_eq!(origin.get("bucket", "big").await, None, "invisible before it is complete");
    let target = format!("/bucket/big?uploadId={id}");
    let wrong = "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>\"0\"</ETag></Part></CompleteMultipartUpload>";
    assert_eq!(ask(&origin, Method::POST, &target, &[], wrong).await.status(), 400);
    let body: &'static str = Box::leak(
        format!(
            "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{}</ETag></Part>\
             <Part><PartNumber>2</PartNumber><ETag>{}</ETag></Part></CompleteMultipartUpload>",
            etags[1], etags[0]
        )
        .into_boxed_str(),
    );
    let completed = ask(&origin, Method::POST, &target, &[], body).await;
    assert_eq!(completed.status(), StatusCode::OK, "{completed:?}");
    assert_eq!(origin.get("bucket", "big").await, Some(Bytes::from("hello world")));
    let head = ask(&origin, Method::HEAD, "/bucket/big", &[], "").await;
    assert_eq!(head.headers()["x-goog-meta-a"], "b");
    assert_eq!(ask(&origin, Method::DELETE, &target, &[], "").await.status(), 404);
}
