//! A proxy on loopback between a cache and its origin: it counts, and it can be slow.
//!
//! Invariant: bytes pass unchanged and in order. Latency is added once to every answer, bandwidth is
//! shared by all connections; without either it only counts. It knows of HTTP that a request begins
//! with its method, and no more.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::halt::{During, Trouble};

/// Read at once.
const CHUNK_BYTES: usize = 128 * 1024;
/// Chunks of a connection that are on their way: 32 MiB, three times what 500 MiB/s and 20 ms hold, so
/// that this bound is never what limits.
const ON_THE_WAY: usize = 256;
/// Timers are exact to a millisecond; a smaller lead is not slept for.
const SLACK: Duration = Duration::from_millis(2);

/// How the way to the origin is.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Road {
    /// From a request to the first byte of its answer, added to what the origin takes.
    pub(crate) latency: Duration,
    /// Of all connections together; `None` for as fast as it goes.
    pub(crate) bytes_per_second: Option<u64>,
}

#[derive(Debug)]
struct Shared {
    origin: SocketAddr,
    road: Road,
    /// When the road is free for the next byte.
    free_at: Mutex<Option<Instant>>,
    bytes: AtomicU64,
    requests: AtomicU64,
}

/// A running proxy. Dropping it closes its connections.
#[derive(Debug)]
pub(crate) struct Link {
    address: SocketAddr,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

impl Link {
    /// Listens on a free port of loopback.
    pub(crate) fn start(origin: SocketAddr, road: Road) -> Result<Self, Trouble> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            // One thread carries several GB a second; more would take the cores of what is measured.
            .worker_threads(1)
            .enable_all()
            .thread_name("bench-link")
            .build()
            .during("proxy")?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).during("proxy")?;
        let address = listener.local_addr().during("proxy")?;
        let shared = Arc::new(Shared {
            origin,
            road,
            free_at: Mutex::default(),
            bytes: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        });
        let accepting = Arc::clone(&shared);
        runtime.spawn(async move {
            loop {
                if let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(carry(client, Arc::clone(&accepting)));
                } else {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        });
        Ok(Self { address, shared, runtime: Some(runtime) })
    }

    /// Where to connect instead of the origin.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes that came from the origin, heads included.
    pub(crate) fn bytes(&self) -> u64 {
        self.shared.bytes.load(Relaxed)
    }

    /// GETs and HEADs that went to the origin.
    pub(crate) fn requests(&self) -> u64 {
        self.shared.requests.load(Relaxed)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn carry(client: TcpStream, shared: Arc<Shared>) {
    tokio::time::sleep(shared.road.latency).await;
    let Ok(origin) = TcpStream::connect(shared.origin).await else { return };
    // A failure here would cost some milliseconds and no byte.
    let _ = (client.set_nodelay(true), origin.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_origin, to_origin) = origin.into_split();
    let (queue, queued) = mpsc::channel(ON_THE_WAY);
    let up = tokio::spawn(upward(from_client, to_origin, Arc::clone(&shared)));
    let read = tokio::spawn(read(from_origin, queue, shared.road.latency));
    write(to_client, queued, &shared).await;
    up.abort();
    read.abort();
}

async fn upward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, shared: Arc<Shared>) {
    let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
    loop {
        buffer.clear();
        if !from.read_buf(&mut buffer).await.is_ok_and(|read| read > 0) {
            // The client may have closed its side only; the answer still goes to it.
            let _ = to.shutdown().await;
            return;
        }
        if buffer.starts_with(b"GET ") || buffer.starts_with(b"HEAD ") {
            shared.requests.fetch_add(1, Relaxed);
        }
        if to.write_all(&buffer).await.is_err() {
            return;
        }
    }
}

async fn read(mut from: OwnedReadHalf, queue: mpsc::Sender<(Instant, Bytes)>, latency: Duration) {
    loop {
        let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
        if !from.read_buf(&mut buffer).await.is_ok_and(|read| read > 0) {
            return;
        }
        if queue.send((Instant::now() + latency, buffer.freeze())).await.is_err() {
            return;
        }
    }
}

async fn write(
    mut to: OwnedWriteHalf,
    mut queued: mpsc::Receiver<(Instant, Bytes)>,
    shared: &Shared,
) {
    while let Some((due, chunk)) = queued.recv().await {
        if !shared.road.latency.is_zero() {
            tokio::time::sleep_until(due).await;
        }
        if let Some(free) = turn(shared, chunk.len()) {
            tokio::time::sleep_until(free).await;
        }
        shared.bytes.fetch_add(chunk.len() as u64, Relaxed);
        if to.write_all(&chunk).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

/// When a chunk has passed the road that all share; `None` for at once.
fn turn(shared: &Shared, bytes: usize) -> Option<Instant> {
    let rate = shared.road.bytes_per_second?;
    let now = Instant::now();
    let mut free_at = shared.free_at.lock().unwrap_or_else(PoisonError::into_inner);
    // A road that was idle does not save up its time.
    let start = free_at.map_or(now, |at| at.max(now - SLACK));
    let end = start + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
    *free_at = Some(end);
    (end > now + SLACK).then_some(end)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    /// Sends `bytes` zeros to everyone who sends something.
    fn zeros(bytes: usize) -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 100]).unwrap();
                stream.write_all(&vec![0; bytes]).unwrap();
            }
        });
        address
    }

    fn fetch(link: &Link) -> (usize, Duration) {
        let begun = std::time::Instant::now();
        let mut stream = std::net::TcpStream::connect(link.address()).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let mut body = Vec::new();
        stream.read_to_end(&mut body).unwrap();
        (body.len(), begun.elapsed())
    }

    #[test]
    fn bytes_and_requests_are_counted() {
        let link = Link::start(zeros(3_000_000), Road::default()).unwrap();
        assert_eq!(fetch(&link).0, 3_000_000);
        assert_eq!(fetch(&link).0, 3_000_000);
        assert_eq!((link.bytes(), link.requests()), (6_000_000, 2));
    }

    #[test]
    fn the_road_is_never_faster_than_it_should_be() {
        let latency = Duration::from_millis(30);
        let road = Road { latency, bytes_per_second: Some(10_000_000) };
        let link = Link::start(zeros(2_000_000), road).unwrap();
        // 0.2 s for the bytes, less what may pass unslept; latency for the connection and the answer.
        assert!(fetch(&link).1 > Duration::from_millis(190) + latency);
    }
}
