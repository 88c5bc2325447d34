//! Requests that are no reviews, and senders that are slow, large or many.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request};
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::*;

async fn ready() -> (Authority, Serving, Caller) {
    let authority = Authority::new();
    let serving = Serving::of(&authority).await;
    let caller = Caller::trusting(&authority.bundle());
    (authority, serving, caller)
}

#[tokio::test]
async fn what_is_no_review_is_refused_with_a_reason_and_does_no_harm() {
    let (_authority, serving, caller) = ready().await;
    let whole = review(&training_pod("resnet"));
    let without = |pointer: &str, key: &str| {
        let mut review = whole.clone();
        review.pointer_mut(pointer).unwrap().as_object_mut().unwrap().remove(key);
        review.to_string()
    };
    let with = |pointer: &str, value: Value| {
        let mut review = whole.clone();
        *review.pointer_mut(pointer).unwrap() = value;
        review.to_string()
    };
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let cut = whole.to_string()[..2000].to_owned();
    let bodies = [
        String::new(),
        "null".to_owned(),
        "[]".to_owned(),
        "7".to_owned(),
        "{}".to_owned(),
        "\u{0}".to_owned(),
        "apiVersion: admission.k8s.io/v1".to_owned(),
        deep,
        cut,
        without("", "request"),
        without("", "kind"),
        without("", "apiVersion"),
        without("/request", "uid"),
        with("/request", Value::Null),
        with("/request", json!("request")),
        with("/request", json!([1])),
        with("/request/uid", json!("")),
        with("/request/uid", json!(7)),
        with("/apiVersion", json!("admission.k8s.io/v1beta1")),
        with("/kind", json!("ConversionReview")),
    ];
    let count = bodies.len();
    for body in bodies {
        let shown: String = body.chars().take(60).collect();
        let (status, text) = caller.send(serving.address, body).await;
        assert_eq!(status, 400, "{shown}");
        assert!(text.len() > 10 && text.ends_with(b"\n"), "{shown}: {text:?}");
    }
    let (status, _) = caller.send(serving.address, vec![0xff, 0xfe, 0x00]).await;
    assert_eq!(status, 400);
    let refused = serving.metric("warpdrive_webhook_requests_total{outcome=\"refused\"}").await;
    assert!((refused - count as f64 - 1.0).abs() < 0.5, "{refused}");
    assert_eq!(caller.review(serving.address, &training_pod("next")).await["allowed"], true);
}

#[tokio::test]
async fn method_and_type_are_asked_for() {
    let (_authority, serving, caller) = ready().await;
    let body = review(&training_pod("resnet")).to_string();
    for (method, kind, expected) in [
        (Method::GET, "application/json", 405),
        (Method::PUT, "application/json", 405),
        (Method::POST, "application/yaml", 415),
        (Method::POST, "", 415),
        (Method::POST, "Application/JSON; charset=utf-8", 200),
    ] {
        let mut sender = caller.open(serving.address).await.unwrap();
        let request = Request::builder()
            .method(method.clone())
            .uri("/mutate")
            .header("host", "x")
            .header("content-type", kind)
            .body(Full::new(Bytes::from(body.clone())))
            .unwrap();
        let (status, _) = collected(sender.send_request(request).await.unwrap()).await;
        assert_eq!(status, expected, "{method} {kind}");
    }
}

/// A pod whose JSON nobody expects: every part of it may be anything.
fn odd_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[ -~]{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{1,6}", inner, 0..4)
                .prop_map(|map| map.into_iter().collect::<serde_json::Map<_, _>>().into()),
        ]
    })
}

/// Parts of a review that injection looks at.
const PLACES: &[&str] = &[
    "/request",
    "/request/kind",
    "/request/namespace",
    "/request/object",
    "/request/dryRun",
    "/request/object/metadata",
    "/request/object/metadata/labels",
    "/request/object/metadata/annotations",
    "/request/object/spec",
    "/request/object/spec/containers",
    "/request/object/spec/containers/0",
    "/request/object/spec/containers/0/env",
    "/request/object/spec/volumes",
    "/request/object/spec/initContainers",
    "/request/object/spec/containers/0/volumeMounts",
    "/request/object/spec/securityContext",
];

#[test]
fn odd_values_anywhere_in_a_review_are_answered() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (_authority, serving, caller) = runtime.block_on(ready());
    proptest!(ProptestConfig::with_cases(150), |(pointer in prop::sample::select(PLACES), odd in odd_json())| {
        let mut review = review(&training_pod("resnet"));
        *review.pointer_mut(pointer).unwrap() = odd;
        let (status, body) = runtime.block_on(caller.send(serving.address, review.to_string()));
        prop_assert!(status == 200 || status == 400, "{status}");
        if status == 200 {
            let answer: Value = serde_json::from_slice(&body).unwrap();
            prop_assert_eq!(&answer["response"]["uid"], UID);
            prop_assert!(answer["response"]["allowed"].is_boolean());
        }
    });
}

#[tokio::test]
async fn a_huge_body_is_refused_before_it_is_read() {
    let (_authority, serving, caller) = ready().await;
    let mut stream = caller.connect(serving.address).await.unwrap();
    let head = "POST /mutate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                content-length: 1000000000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let answer = read_some(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

#[tokio::test]
async fn a_body_without_a_length_ends_at_the_same_limit() {
    let (_authority, serving, caller) = ready().await;
    let stream = caller.connect(serving.address).await.unwrap();
    let (mut from, mut to) = tokio::io::split(stream);
    let send = tokio::spawn(async move {
        let head = "POST /mutate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                    transfer-encoding: chunked\r\n\r\n";
        to.write_all(head.as_bytes()).await?;
        let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
        for _ in 0..160 {
            to.write_all(chunk.as_bytes()).await?;
        }
        to.flush().await?;
        std::io::Result::Ok(to)
    });
    let answer = read_some(&mut from).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    // It may be cut off while it still sends: that is what the limit is for.
    let _ = send.await.unwrap();
}

#[tokio::test]
async fn a_large_pod_is_served() {
    let (_authority, serving, caller) = ready().await;
    let mut pod = training_pod("resnet");
    pod["metadata"]["annotations"]["team.example/notes"] = json!("x".repeat(200 << 10));
    for index in 0..2000 {
        let variable = json!({"name": format!("V{index}"), "value": "y".repeat(500)});
        pod["spec"]["containers"][0]["env"].as_array_mut().unwrap().push(variable);
    }
    assert!(pod.to_string().len() > 1 << 20);
    let injected = patched(&pod, &caller.review(serving.address, &pod).await);
    assert_eq!(injected["spec"]["containers"][0]["env"][2023]["name"], "V1999");
}

#[tokio::test]
async fn slow_senders_are_let_go_and_keep_nobody_waiting() {
    let (_authority, serving, caller) = ready().await;
    let body = review(&training_pod("resnet")).to_string();
    let head = format!(
        "POST /mutate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    // No TLS, TLS and no head, half of a head, a head and half of a body.
    let mut silent = tokio::net::TcpStream::connect(serving.address).await.unwrap();
    let mut slow = Vec::new();
    for part in [String::new(), head[..30].to_owned(), format!("{head}{}", &body[..1000])] {
        for _ in 0..20 {
            let mut stream = caller.connect(serving.address).await.unwrap();
            stream.write_all(part.as_bytes()).await.unwrap();
            slow.push(stream);
        }
    }
    let begun = Instant::now();
    for _ in 0..20 {
        assert_eq!(caller.review(serving.address, &training_pod("next")).await["allowed"], true);
    }
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    let mut rest = Vec::new();
    assert_eq!(silent.read_to_end(&mut rest).await.unwrap_or(0), 0);
    for mut stream in slow {
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(LIMIT, stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "a slow sender keeps its connection");
        let answer = String::from_utf8_lossy(&rest);
        assert!(rest.is_empty() || answer.starts_with("HTTP/1.1 408 "), "{answer}");
    }
}

#[tokio::test]
async fn what_is_announced_and_idle_connections_keep_nobody_waiting() {
    let (_authority, serving, caller) = ready().await;
    let mut slow = Vec::new();
    for length in [4 << 20, 4 << 20, 4 << 20] {
        let mut stream = caller.connect(serving.address).await.unwrap();
        let head = format!(
            "POST /mutate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n{{"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        slow.push(stream);
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    // A body that is announced is let go after 10 s.
    let begun = Instant::now();
    assert_eq!(caller.review(serving.address, &training_pod("next")).await["allowed"], true);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    // Connections that have asked may be idle for two minutes, as long as there is room.
    let mut idle = Vec::new();
    for _ in 0..256 {
        let opened = tokio::time::timeout(Duration::from_secs(5), caller.open(serving.address));
        let mut sender = opened.await.expect("an old one makes room").unwrap();
        let request = Request::get("/healthz").header("host", "x").body(Full::default()).unwrap();
        let (status, _) = collected(sender.send_request(request).await.unwrap()).await;
        assert_eq!(status, 200);
        idle.push(sender);
    }
    let begun = Instant::now();
    for _ in 0..3 {
        assert_eq!(caller.review(serving.address, &training_pod("next")).await["allowed"], true);
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(idle.last().is_some_and(|sender| !sender.is_closed()), "the newest stays");
    drop(slow);
}

async fn read_some(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut answer = vec![0; 4096];
    let read =
        tokio::time::timeout(LIMIT, stream.read(&mut answer)).await.expect("an answer comes");
    String::from_utf8_lossy(&answer[..read.unwrap()]).into_owned()
}
