//! Connections and HTTP: the endpoint that the API server calls, and the plain one for metrics.
//!
//! Invariant: connections, the time that each may take and the bytes of bodies in memory are bounded;
//! a slow or huge request costs its sender, not the reviews beside it. HTTP/1.1 only: it is what the API
//! server speaks with webhooks, so that its calls spread over replicas.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::RwLock;
use prometheus::{Registry, TextEncoder};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::bodies::{Bodies, Failure, MAX_BYTES};
use super::health::Health;
use super::metrics::Outcome;
use super::review::{self, Answer};
use super::seats::{Seat, Seats};
use crate::settings::Defaults;

/// Each API server keeps at most 25 idle connections to a webhook, and opens more under load.
const MAX_CONNECTIONS: usize = 256;
/// A scraper and some probes.
const MAX_PLAIN_CONNECTIONS: usize = 32;
/// From accepting until TLS stands.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// From a connection until the head of its first request.
const FIRST_HEAD: Duration = Duration::from_secs(10);
/// Between a head and its whole body; API servers wait at most 30 s for all of it.
const BODY: Duration = Duration::from_secs(10);
/// The API server lets go of idle connections after 90 s. This must be longer: a review that is sent
/// into a connection that we just closed fails.
const IDLE: Duration = Duration::from_mins(2);
/// A head of the API server is below 1 KiB; buffers stay small for it.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// How long answers may take to leave when the program ends.
const LAST_ANSWERS: Duration = Duration::from_secs(10);

/// What the endpoints answer from.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) settings: RwLock<Arc<Defaults>>,
    pub(super) health: Arc<Health>,
    pub(super) registry: Registry,
    bodies: Bodies,
}

impl Site {
    pub(super) fn new(settings: Defaults, health: Arc<Health>, registry: Registry) -> Self {
        Self {
            settings: RwLock::new(Arc::new(settings)),
            health,
            registry,
            bodies: Bodies::default(),
        }
    }
}

/// Serves reviews over TLS until `stop`; then lets what is being answered end.
pub(super) async fn serve(
    listener: TcpListener,
    tls: TlsAcceptor,
    site: Arc<Site>,
    stop: CancellationToken,
) {
    let accept = |stream: TcpStream, site: Arc<Site>, stop: CancellationToken, seat: Arc<Seat>| {
        let tls = tls.clone();
        async move {
            // A handshake that fails is a client that does not trust us yet, or a port scan.
            let handshake = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await;
            match handshake {
                Ok(Ok(stream)) => {
                    site.health.metrics.connections.inc();
                    connection(stream, Arc::clone(&site), stop, seat, reviews).await;
                    site.health.metrics.connections.dec();
                }
                Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
                Err(_) => tracing::debug!("TLS handshake took too long"),
            }
        }
    };
    accepting(listener, MAX_CONNECTIONS, site, stop, accept).await;
}

/// Serves metrics and health in the clear until `stop`.
pub(super) async fn serve_plain(listener: TcpListener, site: Arc<Site>, stop: CancellationToken) {
    let accept = |stream: TcpStream, site: Arc<Site>, stop: CancellationToken, seat: Arc<Seat>| {
        connection(stream, site, stop, seat, plain)
    };
    accepting(listener, MAX_PLAIN_CONNECTIONS, site, stop, accept).await;
}

async fn accepting<A, F>(
    listener: TcpListener,
    limit: usize,
    site: Arc<Site>,
    stop: CancellationToken,
    serve: A,
) where
    A: Fn(TcpStream, Arc<Site>, CancellationToken, Arc<Seat>) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let seats = Seats::new(limit);
    let tasks = TaskTracker::new();
    loop {
        let next = async {
            let accepted = listener.accept().await;
            (seats.take().await, accepted)
        };
        let (seat, accepted) = tokio::select! {
            () = stop.cancelled() => break,
            next = next => next,
        };
        let Ok((stream, _)) = accepted else {
            // Too many open files is the usual reason; an immediate retry would burn a core.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        // Small answers that nothing follows.
        let _ = stream.set_nodelay(true);
        let seat = Arc::new(seat);
        let served = serve(stream, Arc::clone(&site), stop.clone(), Arc::clone(&seat));
        tasks.spawn(async move {
            tokio::select! {
                () = served => {}
                () = seat.goes.cancelled() => tracing::debug!("too many connections; an idle one is closed"),
            }
        });
    }
    drop(listener);
    tasks.close();
    let _ = tokio::time::timeout(LAST_ANSWERS, tasks.wait()).await;
}

async fn connection<S, A, F>(
    stream: S,
    site: Arc<Site>,
    stop: CancellationToken,
    seat: Arc<Seat>,
    answer: A,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Fn(Request<Incoming>, Arc<Site>) -> F + Send + Copy + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send,
{
    let has_asked = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&has_asked);
    let service = service_fn(move |request| {
        asked.store(true, Ordering::Relaxed);
        let (site, seat) = (Arc::clone(&site), Arc::clone(&seat));
        async move {
            seat.touch();
            let mut response = answer(request, Arc::clone(&site)).await;
            seat.touch();
            if site.health.is_stopping() {
                // The client opens its next connection to another replica.
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    let silent = async {
        tokio::time::sleep(FIRST_HEAD).await;
        if has_asked.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        // What a client does to its own connection is no news.
        _ = served.as_mut() => {}
        () = silent => {}
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(LAST_ANSWERS, served).await;
        }
    }
}

/// The endpoint that the API server calls.
async fn reviews(request: Request<Incoming>, site: Arc<Site>) -> Response<Full<Bytes>> {
    if request.uri().path() != "/mutate" {
        return health(&request, &site);
    }
    let begun = Instant::now();
    let metrics = &site.health.metrics;
    let answer = match admitted(request, &site).await {
        // No point of waiting from here on: one review is in memory as JSON at a time.
        Ok(body) => {
            let settings = Arc::clone(&site.settings.read());
            review::answer(&body, &settings)
        }
        Err(answer) => answer,
    };
    metrics.count(answer.outcome);
    metrics.duration.observe(begun.elapsed().as_secs_f64());
    if answer.outcome == Outcome::Refused {
        let what = String::from_utf8_lossy(&answer.body);
        tracing::debug!(status = answer.status.as_u16(), "refused: {}", what.trim_end());
    }
    let is_review = answer.status == StatusCode::OK;
    let mut response = reply(answer.status, answer.body, if is_review { JSON } else { TEXT });
    if answer.status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
    }
    response
}

/// The body of a request that may be a review.
async fn admitted(request: Request<Incoming>, site: &Site) -> Result<Bytes, Answer> {
    if request.method() != Method::POST {
        return Err(Answer::refusal(StatusCode::METHOD_NOT_ALLOWED, "reviews are sent with POST"));
    }
    let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        let what = "reviews are sent as application/json";
        return Err(Answer::refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, what));
    }
    match tokio::time::timeout(BODY, site.bodies.receive(request.into_body())).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(Failure::TooLarge)) => {
            let what = format!("a review is at most {} MiB", MAX_BYTES >> 20);
            Err(Answer::refusal(StatusCode::PAYLOAD_TOO_LARGE, &what))
        }
        Ok(Err(Failure::EndedEarly)) => {
            Err(Answer::refusal(StatusCode::BAD_REQUEST, "the body ended early"))
        }
        Err(_) => {
            let what = format!("no whole review within {} s", BODY.as_secs());
            Err(Answer::refusal(StatusCode::REQUEST_TIMEOUT, &what))
        }
    }
}

/// The endpoint for metrics.
async fn plain(request: Request<Incoming>, site: Arc<Site>) -> Response<Full<Bytes>> {
    if request.uri().path() != "/metrics" {
        return health(&request, &site);
    }
    match TextEncoder::new().encode_to_string(&site.registry.gather()) {
        Ok(text) => reply(StatusCode::OK, Bytes::from(text), METRICS),
        Err(error) => {
            reply(StatusCode::INTERNAL_SERVER_ERROR, Bytes::from(error.to_string()), TEXT)
        }
    }
}

fn health(request: &Request<Incoming>, site: &Site) -> Response<Full<Bytes>> {
    let (status, text) = match request.uri().path() {
        "/healthz" => (StatusCode::OK, "alive\n".to_owned()),
        "/readyz" => match site.health.report() {
            (true, text) => (StatusCode::OK, text),
            (false, text) => (StatusCode::SERVICE_UNAVAILABLE, text),
        },
        _ => (StatusCode::NOT_FOUND, "there is /mutate, /healthz and /readyz\n".to_owned()),
    };
    reply(status, Bytes::from(text), TEXT)
}

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

fn reply(status: StatusCode, body: Bytes, kind: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
