//! The listener: connections in, requests to the front, and the end.
//!
//! Invariant: at most `max_connections` are open; after the stop signal nothing new is accepted,
//! what is being answered may finish until the grace is over, and what was cut is counted.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use store::{Namespace, ReaderId};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::GatewayConfig;
use crate::front::Front;
use crate::ledger::Unfinished;
use crate::metrics::Metrics;
use crate::socket::ClientSocket;

/// Bytes that hyper reads ahead of a request, and so the largest piece of a body. Half of an
/// upload's window: one piece on its way and one held back.
pub(crate) const READ_BUFFER_BYTES: usize = 512 * 1024;

/// Most bytes of a request's head. S3 allows 8 KiB of headers and 8 KiB of presigned query.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// Most headers of a request: user metadata is at most 2 KiB, in the shortest case 150 headers.
const MAX_HEADERS: usize = 256;

/// Pause after a failed accept. It fails when descriptors run out, and at once again without it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound endpoint that does not answer yet.
#[derive(Debug)]
pub struct Gateway {
    listener: TcpListener,
    address: SocketAddr,
    front: Arc<Front>,
    max_connections: usize,
    header_timeout: Duration,
    send_timeout: Duration,
}

/// How serving ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drained {
    /// Requests that were being answered when the stop signal came.
    pub in_flight: u64,
    /// Requests that had to be cut because the grace was over.
    pub cut: u64,
    /// Writes that were cut, and multi-part uploads that clients left.
    pub unfinished: Vec<Unfinished>,
}

impl Gateway {
    /// Binds the address. Connections wait in the backlog until [`Gateway::serve`].
    pub async fn bind(
        config: GatewayConfig,
        namespace: Arc<Namespace>,
        metrics: Metrics,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(config.listen).await?;
        Self::on(listener, config, namespace, metrics)
    }

    /// Takes a socket that listens already, in place of the configured address.
    pub fn on(
        listener: TcpListener,
        config: GatewayConfig,
        namespace: Arc<Namespace>,
        metrics: Metrics,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (max_connections, header_timeout, send_timeout) =
            (config.max_connections, config.header_timeout, config.send_timeout);
        let front = Arc::new(Front::new(config, address, namespace, metrics));
        Ok(Self { listener, address, front, max_connections, header_timeout, send_timeout })
    }

    /// The bound address, with the port that was taken.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`, then lets requests in flight finish for at most `grace`.
    pub async fn serve(self, stop: CancellationToken, grace: Duration) -> Drained {
        let connections = TaskTracker::new();
        let slots = Arc::new(Semaphore::new(self.max_connections));
        let cut = CancellationToken::new();
        let mut next_reader = 0u64;
        let front = Arc::clone(&self.front);
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = accept(&self.listener, &slots) => accepted,
            };
            let (stream, slot) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            next_reader += 1;
            let connection = self.connection(stream, reader_id(next_reader), stop.clone());
            let cut = cut.clone();
            connections.spawn(async move {
                tokio::select! {
                    () = connection => {}
                    () = cut.cancelled() => {}
                }
                drop(slot);
            });
        }
        drop(self.listener);
        let metrics = front.metrics().clone();
        let in_flight = metrics.in_flight();
        connections.close();
        let finished = tokio::time::timeout(grace, connections.wait()).await;
        let left = if finished.is_ok() { 0 } else { metrics.in_flight() };
        let unfinished = front.ledger().unfinished();
        cut.cancel();
        connections.wait().await;
        Drained { in_flight, cut: left, unfinished }
    }

    fn connection(
        &self,
        stream: TcpStream,
        reader: ReaderId,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send + 'static {
        let front = Arc::clone(&self.front);
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(self.header_timeout)
            .max_headers(MAX_HEADERS)
            .max_header_size(MAX_HEAD_BYTES)
            // Not `pipeline_flush`: with it hyper copies every body into one buffer before it sends it.
            .max_buf_size(READ_BUFFER_BYTES);
        let send_timeout = self.send_timeout;
        async move {
            let _counted = front.metrics().connection();
            // Answers are written whole; waiting for an ACK would only delay the last segment.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "client socket does not take TCP_NODELAY");
            }
            let service = service_fn(|request| {
                let front = Arc::clone(&front);
                async move { Ok::<_, std::convert::Infallible>(front.answer(request, reader).await) }
            });
            let socket = TokioIo::new(ClientSocket::new(stream, send_timeout));
            let mut connection = std::pin::pin!(http.serve_connection(socket, service));
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "connection ended");
            }
        }
    }
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, slot))
}

/// A reader id of a connection: spread over 64 bits, so that it meets no id of the other front end,
/// and never the one that means "no pattern".
fn reader_id(connection: u64) -> ReaderId {
    // The finaliser of SplitMix64, a bijection.
    let mut z = connection.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ReaderId((z ^ (z >> 31)).max(1))
}
