//! The proxies do what they say: latency, bandwidth, cuts, stalls, HTTP faults.

// The functions that the tests share are tests too; the lint sees only the marked ones.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use testkit::{Fault, FaultyHttp, Link, Rule, Switch, Throttle};

/// Larger than any socket buffer, so that a cut is seen in the middle.
const SIZE: usize = 4 << 20;

fn content() -> Bytes {
    (0..SIZE).map(|index| (index * 31 % 251) as u8).collect()
}

/// An origin that answers everything with the same object.
async fn origin() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let body = content();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let body = body.clone();
            tokio::spawn(async move {
                let service = hyper::service::service_fn(move |request: Request<_>| {
                    let answer = answer(&request, &body);
                    async move { Ok::<_, Infallible>(answer) }
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    address
}

fn answer(request: &Request<hyper::body::Incoming>, body: &Bytes) -> Response<Full<Bytes>> {
    let changed = request.headers().get("if-match").is_some_and(|etag| etag != "\"right\"");
    let mut answer = Response::new(Full::new(body.clone()));
    if changed {
        *answer.status_mut() = StatusCode::PRECONDITION_FAILED;
    } else if request.headers().contains_key("range") {
        *answer.body_mut() = Full::new(body.slice(..100));
        *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    answer.headers_mut().insert("etag", "\"right\"".parse().unwrap());
    answer
}

async fn fetch(address: SocketAddr, headers: &[(&str, &str)]) -> Result<Response<Bytes>, String> {
    let client: hyper_util::client::legacy::Client<_, Full<Bytes>> =
        hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http();
    let mut request = Request::get(format!("http://{address}/bucket/key?x=y"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let exchange = async {
        let answer = client
            .request(request.body(Full::default()).unwrap())
            .await
            .map_err(|error| format!("no answer: {error}"))?;
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.map_err(|error| format!("cut body: {error}"))?;
        Ok(Response::from_parts(parts, body.to_bytes()))
    };
    tokio::time::timeout(Duration::from_secs(5), exchange)
        .await
        .unwrap_or_else(|_| Err("timeout".to_owned()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn throttle_adds_latency_and_limits_bandwidth() {
    let link = Link { latency: Duration::from_millis(50), bytes_per_second: Some(16 << 20) };
    let throttle = Throttle::start(origin().await, link);
    let started = Instant::now();
    let answer = fetch(throttle.address(), &[]).await.unwrap();
    let took = started.elapsed();
    assert_eq!(answer.body(), &content());
    // 4 MiB at 16 MiB/s is 250 ms, and a connection and an answer wait 50 ms each.
    assert!(took >= Duration::from_millis(330), "{took:?}");
    assert!(took <= Duration::from_millis(1500), "{took:?}");
    assert_eq!(throttle.connections(), 1);
    assert!(throttle.bytes_from_origin() > SIZE as u64);
    assert!(throttle.bytes_to_origin() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn throttle_cuts_refuses_hangs_and_heals() {
    let throttle = Throttle::start(origin().await, Link::default());
    throttle.cut_after(1 << 20);
    assert!(fetch(throttle.address(), &[]).await.unwrap_err().starts_with("cut body"));
    assert_eq!(throttle.bytes_from_origin(), 1 << 20);

    throttle.heal();
    assert_eq!(fetch(throttle.address(), &[]).await.unwrap().body(), &content());

    throttle.switch(Switch::Refuse);
    assert!(fetch(throttle.address(), &[]).await.unwrap_err().starts_with("no answer"));

    throttle.switch(Switch::Hang);
    assert_eq!(fetch(throttle.address(), &[]).await.unwrap_err(), "timeout");

    throttle.heal();
    assert_eq!(fetch(throttle.address(), &[]).await.unwrap().body(), &content());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faulty_http_passes_everything_on_without_rules_and_counts() {
    let proxy = FaultyHttp::start(origin().await);
    let answer = fetch(proxy.address(), &[("range", "bytes=0-99")]).await.unwrap();
    assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(answer.body(), &content().slice(..100));
    let seen = proxy.requests();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].target, "/bucket/key?x=y");
    assert_eq!(seen[0].range.as_deref(), Some("bytes=0-99"));
    assert_eq!(proxy.body_bytes(), 100);
    assert_eq!((proxy.count("GET"), proxy.count("PUT")), (1, 0));
    proxy.reset_counts();
    assert_eq!((proxy.total(), proxy.body_bytes()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faulty_http_injects_each_fault() {
    let proxy = FaultyHttp::start(origin().await);
    let once = |fault| proxy.inject(Rule::every(fault).on("GET").target_contains("/key").times(1));
    let size = SIZE as u64;

    once(Fault::Status(503));
    let answer = fetch(proxy.address(), &[]).await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(String::from_utf8_lossy(answer.body()).contains("SlowDown"));

    once(Fault::CutBody { after_bytes: 1000 });
    assert!(fetch(proxy.address(), &[]).await.unwrap_err().starts_with("cut body"));

    once(Fault::ShortBody { missing_bytes: 10 });
    let answer = fetch(proxy.address(), &[]).await.unwrap();
    assert_eq!(answer.body(), &content().slice(..SIZE - 10));
    assert_eq!(answer.headers()["content-length"], (size - 10).to_string());

    once(Fault::LongContentLength { extra_bytes: 10 });
    assert!(fetch(proxy.address(), &[]).await.unwrap_err().starts_with("cut body"));

    once(Fault::ChangedEtag("\"other\"".to_owned()));
    let answer = fetch(proxy.address(), &[("if-match", "\"stale\"")]).await.unwrap();
    assert_eq!(
        (answer.status(), &answer.headers()["etag"]),
        (StatusCode::OK, &"\"other\"".parse().unwrap())
    );

    once(Fault::WholeObject);
    let answer = fetch(proxy.address(), &[("range", "bytes=0-99")]).await.unwrap();
    assert_eq!((answer.status(), answer.body().len()), (StatusCode::OK, SIZE));

    once(Fault::Reset);
    assert!(fetch(proxy.address(), &[]).await.unwrap_err().starts_with("no answer"));

    once(Fault::Delay(Duration::from_millis(200)));
    let started = Instant::now();
    assert!(fetch(proxy.address(), &[]).await.is_ok());
    assert!(started.elapsed() >= Duration::from_millis(200));

    once(Fault::HangBody { after_bytes: 1000 });
    assert_eq!(fetch(proxy.address(), &[]).await.unwrap_err(), "timeout");

    once(Fault::Hang);
    assert_eq!(fetch(proxy.address(), &[]).await.unwrap_err(), "timeout");

    // Each rule was used up by its one request.
    assert_eq!(fetch(proxy.address(), &[]).await.unwrap().body(), &content());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_waits_for_its_turn_and_is_used_up() {
    let proxy = FaultyHttp::start(origin().await);
    proxy.inject(Rule::every(Fault::Status(500)).after(1).times(2));
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(fetch(proxy.address(), &[]).await.unwrap().status().as_u16());
    }
    assert_eq!(statuses, [200, 500, 500, 200]);
}
