//! A TCP proxy on loopback with the properties of a network: latency, bandwidth, and ways to fail.
//!
//! Invariant: bytes are passed on unchanged and in order; a fault only ends or stalls a connection.
//! Latency is added once a round trip, to what the origin sends; bandwidth is shared by all
//! connections. It knows no protocol; faults of HTTP are in [`crate::FaultyHttp`].

use crate::runtime;
use bytes::{Bytes, BytesMut};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How much is read from the origin at once.
const CHUNK_BYTES: usize = 128 * 1024;
/// Chunks that a connection may have in flight: 32 MiB, three times the bandwidth-delay product of
/// 500 MiB/s and 20 ms, so that this bound never is what limits.
const IN_FLIGHT_CHUNKS: usize = 256;
/// Timers have a granularity of a millisecond; a lead smaller than this is not slept for.
const PACING_SLACK: Duration = Duration::from_millis(2);

/// The properties of the path to the origin.
#[derive(Debug, Clone, Copy, Default)]
pub struct Link {
    /// Added to every answer, and to the opening of a connection.
    pub latency: Duration,
    /// What the origin can send in a second over all connections; `None` is as fast as it goes.
    pub bytes_per_second: Option<u64>,
}

/// What the proxy does with connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    /// Pass everything on.
    Pass,
    /// Close new connections at once and cut the existing ones.
    Refuse,
    /// Accept, and pass nothing on: what a lost network looks like.
    Hang,
}

#[derive(Debug)]
struct Shared {
    origin: SocketAddr,
    link: Mutex<Link>,
    /// When the link is free again, for pacing.
    free_at: Mutex<Option<Instant>>,
    switch: watch::Sender<Switch>,
    /// Bytes that may still come from the origin before every connection is cut; `u64::MAX` is off.
    cut_after: AtomicU64,
    from_origin: AtomicU64,
    to_origin: AtomicU64,
    connections: AtomicU64,
}

/// A running proxy; dropping it closes everything.
#[derive(Debug)]
pub struct Throttle {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl Throttle {
    /// Listens on a free port and passes connections on to `origin`.
    pub fn start(origin: SocketAddr, link: Link) -> Throttle {
        let (listener, address) = runtime::listen();
        let shared = Arc::new(Shared {
            origin,
            link: Mutex::new(link),
            free_at: Mutex::new(None),
            switch: watch::channel(Switch::Pass).0,
            cut_after: AtomicU64::new(u64::MAX),
            from_origin: AtomicU64::new(0),
            to_origin: AtomicU64::new(0),
            connections: AtomicU64::new(0),
        });
        let accepting = runtime::spawn(accept(listener, shared.clone()));
        Throttle { address, shared, accepting }
    }

    /// Where to connect instead of the origin.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same as a URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes latency and bandwidth from the next chunk on.
    pub fn set_link(&self, link: Link) {
        *lock(&self.shared.link) = link;
    }

    /// Changes what happens to connections, existing ones included.
    pub fn switch(&self, to: Switch) {
        self.shared.switch.send_replace(to);
    }

    /// Ends every connection once this many more bytes have come from the origin; the bytes before
    /// are delivered. Connections opened afterwards are cut too, until [`Throttle::heal`].
    pub fn cut_after(&self, bytes: u64) {
        self.shared.cut_after.store(bytes, Ordering::SeqCst);
    }

    /// Takes back [`Throttle::cut_after`] and [`Throttle::switch`].
    pub fn heal(&self) {
        self.shared.cut_after.store(u64::MAX, Ordering::SeqCst);
        self.switch(Switch::Pass);
    }

    /// Bytes that came from the origin, protocol overhead included.
    pub fn bytes_from_origin(&self) -> u64 {
        self.shared.from_origin.load(Ordering::SeqCst)
    }

    /// Bytes that went to the origin, protocol overhead included.
    pub fn bytes_to_origin(&self) -> u64 {
        self.shared.to_origin.load(Ordering::SeqCst)
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.accepting.abort();
        self.switch(Switch::Refuse);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        shared.connections.fetch_add(1, Ordering::SeqCst);
        if *shared.switch.borrow() == Switch::Refuse {
            reset(&client);
            continue;
        }
        let shared = shared.clone();
        runtime::spawn(async move {
            let mut switch = shared.switch.subscribe();
            let refused = async move {
                // The sender lives in `shared`, so this ends only by the switch.
                let _ = switch.wait_for(|now| *now == Switch::Refuse).await;
            };
            tokio::pin!(refused);
            let mut client = client;
            let carried = tokio::select! {
                carried = carry(&mut client, &shared) => carried,
                () = &mut refused => false,
            };
            if !carried {
                reset(&client);
            }
        });
    }
}

/// Makes the coming close a reset, which is what a client sees of a crashed server.
fn reset(stream: &TcpStream) {
    // Zero never blocks a thread at close, which is why a lingering socket is otherwise avoided.
    let _ = stream.set_zero_linger();
}

/// Passes on both directions; `false` when the connection was cut rather than ended.
async fn carry(client: &mut TcpStream, shared: &Arc<Shared>) -> bool {
    let latency = lock(&shared.link).latency;
    tokio::time::sleep(latency).await;
    passing(shared).await;
    let Ok(mut origin) = TcpStream::connect(shared.origin).await else { return false };
    let _ = (client.set_nodelay(true), origin.set_nodelay(true));
    let (client_read, mut client_write) = client.split();
    let (mut origin_read, mut origin_write) = origin.split();

    let upward = async {
        let mut from = client_read;
        let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
        loop {
            buffer.clear();
            match from.read_buf(&mut buffer).await {
                Ok(0) => break,
                Ok(count) => {
                    passing(shared).await;
                    shared.to_origin.fetch_add(count as u64, Ordering::SeqCst);
                    if origin_write.write_all(&buffer).await.is_err() {
                        return false;
                    }
                }
                Err(_) => return false,
            }
        }
        origin_write.shutdown().await.is_ok()
    };

    let (queue, mut queued) = mpsc::channel::<(Instant, Bytes)>(IN_FLIGHT_CHUNKS);
    // The queue must end with the reading, so the reading owns its sender.
    let reading = async move {
        loop {
            let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
            match origin_read.read_buf(&mut buffer).await {
                Ok(0) => break true,
                Ok(_) => {
                    let due = Instant::now() + lock(&shared.link).latency;
                    if queue.send((due, buffer.freeze())).await.is_err() {
                        break false;
                    }
                }
                Err(_) => break false,
            }
        }
    };
    let writing = async {
        while let Some((due, chunk)) = queued.recv().await {
            tokio::time::sleep_until(due).await;
            pace(shared, chunk.len() as u64).await;
            passing(shared).await;
            let allowed = take_allowance(shared, chunk.len() as u64);
            let sent = &chunk[..allowed as usize];
            shared.from_origin.fetch_add(allowed, Ordering::SeqCst);
            if client_write.write_all(sent).await.is_err() {
                return false;
            }
            if allowed < chunk.len() as u64 || shared.cut_after.load(Ordering::SeqCst) == 0 {
                // An orderly end, not a reset: that would throw away what is still on its way.
                return client_write.shutdown().await.is_ok();
            }
        }
        client_write.shutdown().await.is_ok()
    };
    let downward = async {
        let (read, written) = tokio::join!(reading, writing);
        read && written
    };
    // A client that has shut its side may still be reading; an origin that has ended the answer has
    // ended the connection.
    tokio::pin!(upward);
    tokio::pin!(downward);
    tokio::select! {
        ended = &mut downward => ended,
        ended = &mut upward => if ended { downward.await } else { false },
    }
}

/// Waits for as long as the proxy hangs.
async fn passing(shared: &Shared) {
    let mut switch = shared.switch.subscribe();
    let _ = switch.wait_for(|now| *now != Switch::Hang).await;
}

/// Waits for this chunk's turn on the shared link.
async fn pace(shared: &Shared, bytes: u64) {
    let Some(rate) = lock(&shared.link).bytes_per_second else { return };
    let now = Instant::now();
    let due = {
        let mut free_at = lock(&shared.free_at);
        let start = free_at.map_or(now, |at| at.max(now - PACING_SLACK));
        let end = start + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        *free_at = Some(end);
        end
    };
    if due > now + PACING_SLACK {
        tokio::time::sleep_until(due).await;
    }
}

/// How many of `wanted` bytes may still pass.
fn take_allowance(shared: &Shared, wanted: u64) -> u64 {
    let mut allowed = wanted;
    let _ = shared.cut_after.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
        if left == u64::MAX {
            allowed = wanted;
            return None;
        }
        allowed = wanted.min(left);
        Some(left - allowed)
    });
    allowed
}
