//! How the endpoint behaves towards clients: hosts, connections, memory, the end.

use std::time::Duration;

use s3gw::Unfinished;
use store::testing::{Fault, Operation};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::client::{anonymous, config, metric, start};

#[tokio::test]
async fn rebinding_is_refused() {
    let mut config = config(s3gw::Access::Anonymous);
    config.allowed_hosts = vec!["warp.test".into()];
    let endpoint = start(config).await;
    endpoint.memory.insert("k", "x");
    for (host, status) in [
        ("localhost", 200),
        ("warp.test:9000", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
    ] {
        let answer = endpoint.ask("GET", "/b/k", &[("host", host)]).await;
        assert_eq!(answer.status, status, "{host}");
    }
    let hosted = endpoint.ask("GET", "/k", &[("host", "b.localhost:9000")]).await;
    assert_eq!(hosted.text(), "x");
    let listed = endpoint.ask("GET", "/?list-type=2", &[("host", "b.warp.test")]).await;
    assert_eq!(listed.element("Key"), "k");
}

#[tokio::test]
async fn every_answer_has_an_id_of_its_own() {
    let endpoint = anonymous().await;
    let mut ids = std::collections::HashSet::new();
    for (method, target) in [("GET", "/"), ("GET", "/b/none"), ("HEAD", "/b/x"), ("GET", "/?x=%FF")]
    {
        let answer = endpoint.ask(method, target, &[]).await;
        assert!(ids.insert(answer.header("x-amz-request-id").unwrap().to_owned()));
        assert!(answer.header("x-amz-id-2").unwrap().starts_with("warpdrive-"));
    }
    let foreign = endpoint.ask("GET", "/", &[("host", "evil.example")]).await;
    assert!(foreign.header("x-amz-request-id").is_some());
}

#[tokio::test]
async fn connections_are_kept_and_pipelined() {
    let endpoint = anonymous().await;
    endpoint.memory.insert("k", "hello");
    let mut stream = endpoint.connect().await;
    let request = "GET /b/k HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let last = "GET /b/none HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(format!("{request}{request}{last}").as_bytes()).await.unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).await.unwrap();
    assert_eq!(all.matches("200 OK").count(), 2);
    assert_eq!(all.matches("404 Not Found").count(), 1);
    assert_eq!(metric(&endpoint.registry, "warpdrive_s3_connections", &[]), 0.0);
}

#[tokio::test]
async fn slow_heads_are_cut() {
    let mut config = config(s3gw::Access::Anonymous);
    config.header_timeout = Duration::from_millis(200);
    let endpoint = start(config).await;
    let mut stream = endpoint.connect().await;
    stream.write_all(b"GET /b/k HTTP/1.1\r\nhost: loc").await.unwrap();
    let mut all = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut all)).await;
    assert!(end.is_ok(), "the connection is still open");
}

#[tokio::test]
async fn connections_are_bounded() {
    let mut config = config(s3gw::Access::Anonymous);
    config.max_connections = 2;
    let endpoint = start(config).await;
    let (first, _second) = (endpoint.connect().await, endpoint.connect().await);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(metric(&endpoint.registry, "warpdrive_s3_connections", &[]), 2.0);
    let third = tokio::time::timeout(Duration::from_millis(200), endpoint.get("/")).await;
    assert!(third.is_err(), "a third connection was served");
    drop(first);
    assert_eq!(endpoint.get("/").await.status, 200);
}

#[tokio::test]
async fn requests_in_flight_may_finish() {
    let endpoint = anonymous().await;
    endpoint.memory.insert("k", "hello");
    endpoint.faulty.inject(Operation::Get, Fault::Delay(Duration::from_millis(200)));
    endpoint.faulty.inject(Operation::Get, Fault::Hang);
    let (address, stop) = (endpoint.address, endpoint.stop.clone());
    let ask = |delay: u64| async move {
        tokio::time::sleep(Duration::from_millis(delay)).await;
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /b/k HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut all = String::new();
        let _ = stream.read_to_string(&mut all).await;
        all
    };
    let (slow, hanging) = (tokio::spawn(ask(0)), tokio::spawn(ask(50)));
    tokio::time::sleep(Duration::from_millis(100)).await;
    stop.cancel();
    let drained = tokio::time::timeout(Duration::from_secs(5), endpoint.served).await;
    let drained = drained.expect("the end is bounded").unwrap();
    assert_eq!((drained.in_flight, drained.cut), (2, 1));
    assert!(slow.await.unwrap().ends_with("hello"));
    assert_eq!(hanging.await.unwrap(), "");
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn requests_are_counted_without_names() {
    let endpoint = anonymous().await;
    endpoint.put("/b/secret-key", b"hello").await;
    endpoint.get("/b/secret-key").await;
    endpoint.get("/b/none").await;
    let count = |operation, status| {
        let labels = [("operation", operation), ("status", status)];
        metric(&endpoint.registry, "warpdrive_s3_requests_total", &labels)
    };
    assert_eq!(count("PutObject", "2xx"), 1.0);
    assert_eq!(count("GetObject", "2xx"), 1.0);
    assert_eq!(count("GetObject", "4xx"), 1.0);
    let bytes = |direction| {
        metric(&endpoint.registry, "warpdrive_s3_bytes_total", &[("direction", direction)])
    };
    assert_eq!(bytes("in"), 5.0);
    assert!(bytes("out") > 5.0);
    let mut text = String::new();
    let encoder = prometheus::TextEncoder::new();
    encoder.encode_utf8(&endpoint.registry.gather(), &mut text).unwrap();
    assert!(!text.contains("secret-key"));
}

/// Uploads beyond the memory for bodies wait for their turn, and all of them succeed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_share_the_memory_for_bodies() {
    let mut config = config(s3gw::Access::Anonymous);
    config.body_memory_bytes = 2 << 20;
    let endpoint = std::sync::Arc::new(start(config).await);
    let uploads: Vec<_> = (0..12u8)
        .map(|i| {
            let endpoint = endpoint.clone();
            tokio::spawn(
                async move { endpoint.put(&format!("/b/{i}"), &vec![i; 3 << 20]).await.status },
            )
        })
        .collect();
    for upload in uploads {
        assert_eq!(upload.await.unwrap(), 200);
    }
    for i in 0..12u8 {
        let body = endpoint.get(&format!("/b/{i}")).await.body;
        assert!(body.len() == 3 << 20 && body.iter().all(|b| *b == i), "{i}");
    }
}

/// A page that a browser shows can send these without asking first.
#[tokio::test]
async fn web_pages_only_read_without_keys() {
    let endpoint = anonymous().await;
    endpoint.memory.insert("k", "x");
    let batch = b"<Delete><Object><Key>k</Key></Object></Delete>";
    for origin in ["https://evil.example", "null"] {
        let headers = &[("origin", origin)];
        for (method, target) in
            [("POST", "/b?delete"), ("POST", "/b/k?uploads"), ("PUT", "/b/n"), ("DELETE", "/b/k")]
        {
            let refused = endpoint.send(method, target, headers, batch).await;
            assert_eq!((refused.status, refused.code()), (403, "AccessDenied"), "{method}");
        }
        assert_eq!(endpoint.ask("GET", "/b/k", headers).await.text(), "x");
        assert_eq!(endpoint.ask("HEAD", "/b/k", headers).await.status, 200);
    }
    assert_eq!(endpoint.get("/b/n").await.status, 404);
    let name = "warpdrive_s3_auth_failures_total";
    assert_eq!(metric(&endpoint.registry, name, &[("reason", "cross_site")]), 8.0);
}

#[tokio::test]
async fn the_end_names_what_clients_did_not_finish() {
    let endpoint = anonymous().await;
    let mut ids = Vec::new();
    for key in ["left", "aborted", "completed"] {
        let begun = endpoint.ask("POST", &format!("/b/{key}?uploads"), &[]).await;
        ids.push(begun.element("UploadId").to_owned());
    }
    let aborted = endpoint.ask("DELETE", &format!("/b/aborted?uploadId={}", ids[1]), &[]).await;
    assert_eq!(aborted.status, 204);
    let completed = format!("/b/completed?uploadId={}", ids[2]);
    let part = endpoint.put(&format!("{completed}&partNumber=1"), b"hello").await;
    let document = format!(
        "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{}</ETag></Part>\
         </CompleteMultipartUpload>",
        part.header("etag").unwrap()
    );
    let answer = endpoint.send("POST", &completed, &[], document.as_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    // A client that never sends the rest.
    let mut slow = endpoint.connect().await;
    slow.write_all(b"PUT /b/slow HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\r\nabc")
        .await
        .unwrap();
    let is_writing = || metric(&endpoint.registry, "warpdrive_s3_requests_in_flight", &[]) > 0.0;
    while !is_writing() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    endpoint.stop.cancel();
    let memory = endpoint.memory.clone();
    let drained = tokio::time::timeout(Duration::from_secs(5), endpoint.served).await;
    let drained = drained.expect("the end is bounded").unwrap();
    assert_eq!(drained.cut, 1);
    let own = str::to_owned;
    assert_eq!(
        drained.unfinished,
        [
            Unfinished::Write { operation: "PutObject", bucket: own("b"), key: own("slow") },
            Unfinished::Upload { bucket: own("b"), key: own("left"), upload: ids[0].clone() },
        ]
    );
    // It hears that nothing was written, and nothing was.
    let mut heard = Vec::new();
    let _ = slow.read_to_end(&mut heard).await;
    assert!(!heard.starts_with(b"HTTP/1.1 200"), "{heard:?}");
    assert!(!memory.remove("slow"));
}
