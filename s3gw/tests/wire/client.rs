//! An endpoint for a test, and a client that sends exactly what it is given.
//!
//! Invariant: nothing is normalised on the way: paths and headers go out as written.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prometheus::Registry;
use s3gw::{Access, Drained, Gateway, GatewayConfig, Metrics};
use store::testing::{FaultyStore, MemoryStore};
use store::{Bucket, BucketName, Namespace};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    /// Bucket `b`, under its faults.
    pub(crate) memory: MemoryStore,
    pub(crate) faulty: FaultyStore,
    pub(crate) registry: Registry,
    pub(crate) stop: CancellationToken,
    pub(crate) served: JoinHandle<Drained>,
}

pub(crate) fn config(access: Access) -> GatewayConfig {
    GatewayConfig::new("127.0.0.1:0".parse().unwrap(), access)
}

/// Buckets `b`, `other` (writable) and `frozen` (read-only, with the object `k`).
pub(crate) async fn start(config: GatewayConfig) -> Endpoint {
    let memory = MemoryStore::new();
    let faulty = FaultyStore::new(Arc::new(memory.clone()));
    let frozen = MemoryStore::new();
    frozen.insert("k", "ice");
    let bucket = |name: &str, store: Arc<dyn store::Store>, read_only| Bucket {
        name: BucketName::new(name).unwrap(),
        store,
        residency: None,
        read_only,
        created: SystemTime::now(),
    };
    let namespace = Namespace::builder()
        .bucket(bucket("b", Arc::new(faulty.clone()), false))
        .unwrap()
        .bucket(bucket("other", Arc::new(MemoryStore::new()), false))
        .unwrap()
        .bucket(bucket("frozen", Arc::new(frozen), true))
        .unwrap()
        .build();
    let registry = Registry::new();
    let metrics = Metrics::register(&registry).unwrap();
    let gateway = Gateway::bind(config, Arc::new(namespace), metrics).await.unwrap();
    let address = gateway.local_addr();
    let stop = CancellationToken::new();
    let served = tokio::spawn(gateway.serve(stop.clone(), Duration::from_millis(500)));
    Endpoint { address, memory, faulty, registry, stop, served }
}

pub(crate) async fn anonymous() -> Endpoint {
    start(config(Access::Anonymous)).await
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The code of an `Error` document.
    pub(crate) fn code(&self) -> &str {
        self.element("Code")
    }

    /// The text of the first element of that name.
    pub(crate) fn element(&self, name: &str) -> &str {
        self.elements(name).first().copied().unwrap_or_default()
    }

    /// The texts of all elements of that name.
    pub(crate) fn elements(&self, name: &str) -> Vec<&str> {
        let (open, close) = (format!("<{name}>"), format!("</{name}>"));
        self.text()
            .split(open.as_str())
            .skip(1)
            .map(|rest| rest.split(close.as_str()).next().unwrap())
            .collect()
    }
}

pub(crate) type Headers<'a> = &'a [(&'a str, &'a str)];

impl Endpoint {
    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends a request without a body.
    pub(crate) async fn ask(&self, method: &str, target: &str, headers: Headers<'_>) -> Answer {
        self.send(method, target, headers, b"").await
    }

    pub(crate) async fn get(&self, target: &str) -> Answer {
        self.ask("GET", target, &[]).await
    }

    pub(crate) async fn put(&self, target: &str, body: &[u8]) -> Answer {
        self.send("PUT", target, &[], body).await
    }

    /// Sends a request on a connection of its own.
    pub(crate) async fn send(
        &self,
        method: &str,
        target: &str,
        headers: Headers<'_>,
        body: &[u8],
    ) -> Answer {
        let has = |name: &str| headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
        let mut head = format!("{method} {target} HTTP/1.1\r\nconnection: close\r\n");
        if !has("host") {
            head += &format!("host: {}\r\n", self.address);
        }
        if !has("content-length") && (!body.is_empty() || method == "PUT") {
            head += &format!("content-length: {}\r\n", body.len());
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        let mut stream = self.connect().await;
        stream.write_all(head.as_bytes()).await.unwrap();
        // The endpoint may refuse before it has read everything.
        let _ = stream.write_all(body).await;
        let mut all = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut all));
        let _ = read.await.expect("an answer within 20 s");
        parse(&all, method == "HEAD")
    }
}

/// Takes apart an answer.
pub(crate) fn parse(all: &[u8], head: bool) -> Answer {
    let end = all
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .unwrap_or_else(|| panic!("no answer in {:?}", String::from_utf8_lossy(all)));
    let text = String::from_utf8_lossy(&all[..end]);
    let mut lines = text.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: Vec<(String, String)> = lines
        .map(|line| line.split_once(':').unwrap())
        .map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned()))
        .collect();
    let rest = &all[end + 4..];
    let find = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let body = if find("transfer-encoding") == Some("chunked") {
        dechunk(rest)
    } else {
        if let (Some(length), false) = (find("content-length"), head || status == 304) {
            assert_eq!(length.parse::<usize>().unwrap(), rest.len(), "{text}");
        }
        rest.to_vec()
    };
    Answer { status, headers, body }
}

fn dechunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|w| w == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 4 + size..];
    }
}

/// The sum of a metric over the series whose labels hold all of `labels`.
pub(crate) fn metric(registry: &Registry, name: &str, labels: &[(&str, &str)]) -> f64 {
    let families = registry.gather();
    let Some(family) = families.iter().find(|family| family.name() == name) else { return 0.0 };
    family
        .get_metric()
        .iter()
        .filter(|metric| {
            labels.iter().all(|(name, value)| {
                metric.get_label().iter().any(|l| l.name() == *name && l.value() == *value)
            })
        })
        .map(|metric| metric.get_counter().get_value() + metric.get_gauge().get_value())
        .sum()
}
