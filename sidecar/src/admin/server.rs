//! Listening and HTTP.
//!
//! Invariant: at most [`MAX_CONNECTIONS`] are served at once, and none for longer than
//! [`MAX_CONNECTION`] without an end.

use std::convert::Infallible;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::Registry;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use super::{Admin, Stop, answers};
use crate::config::AdminAddress;

/// Scrapers, probes and a few people.
const MAX_CONNECTIONS: usize = 64;
/// A kept connection is closed after this; clients open another.
const MAX_CONNECTION: Duration = Duration::from_mins(10);
/// A head that takes longer comes from no real client.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// A socket that listens, and goes away with its file.
pub(crate) enum Listener {
    /// TCP on loopback.
    Tcp(TcpListener),
    /// A Unix socket; the path is removed at the end.
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Binds an address. A dead socket of an earlier process is replaced, a live one is not.
    pub(crate) async fn bind(address: &AdminAddress) -> std::io::Result<Self> {
        match address {
            AdminAddress::Tcp(address) => Ok(Self::Tcp(TcpListener::bind(address).await?)),
            AdminAddress::Unix(path) => {
                let dead = std::fs::symlink_metadata(path)
                    .is_ok_and(|meta| meta.file_type().is_socket())
                    && tokio::net::UnixStream::connect(path).await.is_err();
                if dead {
                    std::fs::remove_file(path)?;
                }
                let listener = UnixListener::bind(path)?;
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
                Ok(Self::Unix(listener, path.clone()))
            }
        }
    }

    /// Where it listens, with the port that was taken.
    pub(crate) fn address(&self) -> std::io::Result<AdminAddress> {
        Ok(match self {
            Self::Tcp(listener) => AdminAddress::Tcp(listener.local_addr()?),
            Self::Unix(_, path) => AdminAddress::Unix(path.clone()),
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // It may have been removed already, which is what is wanted.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Answers until `stop` is cancelled.
pub(crate) async fn serve(listener: Listener, admin: Arc<Admin>, stop: Stop) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let admin = Arc::clone(&admin);
        let stop_one = stop.clone();
        match &listener {
            Listener::Tcp(tcp) => {
                let accepted = tokio::select! {
                    () = stop.cancelled() => return,
                    accepted = tcp.accept() => accepted,
                };
                let Ok((stream, _)) = accepted else {
                    pause_after_failure().await;
                    continue;
                };
                let port = stream.local_addr().map_or(0, |address| address.port());
                tokio::spawn(async move {
                    let _permit = permit;
                    let answer = move |request| {
                        let admin = Arc::clone(&admin);
                        async move { answers::answer(&admin, Some(port), request).await }
                    };
                    connection(stream, answer, stop_one).await;
                });
            }
            Listener::Unix(unix, _) => {
                let accepted = tokio::select! {
                    () = stop.cancelled() => return,
                    accepted = unix.accept() => accepted,
                };
                let Ok((stream, _)) = accepted else {
                    pause_after_failure().await;
                    continue;
                };
                tokio::spawn(async move {
                    let _permit = permit;
                    let answer = move |request| {
                        let admin = Arc::clone(&admin);
                        async move { answers::answer(&admin, None, request).await }
                    };
                    connection(stream, answer, stop_one).await;
                });
            }
        }
    }
}

/// Answers `/metrics` and nothing else, to everyone, until `stop` is cancelled.
pub(crate) async fn serve_metrics(listener: TcpListener, registry: Registry, stop: Stop) {
    serve_metrics_and(listener, registry, |_| None, stop).await;
}

/// Answers `/metrics` and the paths that `health` knows, to everyone, until `stop` is cancelled.
pub(crate) async fn serve_metrics_and<H>(
    listener: TcpListener,
    registry: Registry,
    health: H,
    stop: Stop,
) where
    H: Fn(&str) -> Option<Result<(), &'static str>> + Clone + Send + Sync + 'static,
{
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            pause_after_failure().await;
            continue;
        };
        let (registry, health, stop) = (registry.clone(), health.clone(), stop.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let answer = move |request: Request<Incoming>| {
                let response = match health(request.uri().path()) {
                    Some(known) => answers::health_only(known, &request),
                    None => answers::metrics_only(&registry, &request),
                };
                async move { response }
            };
            connection(stream, answer, stop).await;
        });
    }
}

/// Too many open files is the usual reason; an immediate retry would burn a core.
async fn pause_after_failure() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}

async fn connection<S, A, F>(stream: S, answer: A, stop: Stop)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Fn(Request<Incoming>) -> F + Send + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send,
{
    let service = service_fn(move |request| {
        let answered = answer(request);
        async move { Ok::<_, Infallible>(answered.await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    tokio::select! {
        // What a client does to its own connection is no news.
        _ = served.as_mut() => {}
        () = tokio::time::sleep(MAX_CONNECTION) => {}
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            // A last answer on its way may still go out.
            let _ = tokio::time::timeout(Duration::from_millis(200), served).await;
        }
    }
}
