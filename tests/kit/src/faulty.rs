//! An HTTP proxy in front of a real origin that injects the faults of real origins, request by
//! request, and keeps a list of what was asked.
//!
//! Invariant: a request that no rule matches is passed on untouched, `Host` and signature included,
//! so that the origin's own checks still hold.

use crate::runtime;
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body::Frame;
use http_body_util::{BodyExt, BodyStream, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;

/// Requests remembered at most; a test that makes more has its counts but not the oldest entries.
const REMEMBERED: usize = 100_000;

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// One way in which an origin fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The answer comes late, and is right.
    Delay(Duration),
    /// An S3 error instead of an answer; the origin is not asked. 503 is `SlowDown`.
    Status(u16),
    /// The connection ends inside the body, after this many of its bytes.
    CutBody {
        /// Body bytes that still arrive.
        after_bytes: u64,
    },
    /// A complete, well-formed answer whose body lacks its last bytes and whose `Content-Length`
    /// agrees with the short body.
    ShortBody {
        /// Bytes that are missing at the end.
        missing_bytes: u64,
    },
    /// `Content-Length` says this many bytes more than the body has; the connection then ends.
    LongContentLength {
        /// Bytes that are announced and never come.
        extra_bytes: u64,
    },
    /// The answer carries this ETag instead of the origin's, and `If-Match` is not passed on.
    ChangedEtag(String),
    /// The range asked for is ignored: 200 and the whole object.
    WholeObject,
    /// No answer, for as long as the proxy lives.
    Hang,
    /// Headers and this many bytes of the body, and then nothing.
    HangBody {
        /// Body bytes that still arrive.
        after_bytes: u64,
    },
    /// The connection ends without an answer.
    Reset,
}

/// When a fault happens.
#[derive(Debug, Clone)]
pub struct Rule {
    fault: Fault,
    method: Option<String>,
    target_contains: Option<String>,
    skip: u64,
    times: u64,
}

impl Rule {
    /// Every request suffers `fault`.
    pub fn every(fault: Fault) -> Rule {
        Rule { fault, method: None, target_contains: None, skip: 0, times: u64::MAX }
    }

    /// Only requests of this method.
    #[must_use]
    pub fn on(mut self, method: &str) -> Rule {
        self.method = Some(method.to_owned());
        self
    }

    /// Only requests whose target (path and query as sent) contains this.
    #[must_use]
    pub fn target_contains(mut self, text: &str) -> Rule {
        self.target_contains = Some(text.to_owned());
        self
    }

    /// Lets this many matching requests pass first.
    #[must_use]
    pub fn after(mut self, requests: u64) -> Rule {
        self.skip = requests;
        self
    }

    /// Stops after this many faults.
    #[must_use]
    pub fn times(mut self, faults: u64) -> Rule {
        self.times = faults;
        self
    }

    fn matches(&self, request: &SeenRequest) -> bool {
        self.method.as_ref().is_none_or(|method| *method == request.method)
            && self.target_contains.as_ref().is_none_or(|text| request.target.contains(text))
    }
}

/// What the proxy saw of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenRequest {
    /// The method.
    pub method: String,
    /// Path and query as sent.
    pub target: String,
    /// The `Range` header.
    pub range: Option<String>,
    /// The `If-Match` header.
    pub if_match: Option<String>,
    /// The `If-None-Match` header.
    pub if_none_match: Option<String>,
}

#[derive(Debug)]
struct Shared {
    origin: SocketAddr,
    rules: Mutex<Vec<Rule>>,
    seen: Mutex<Vec<SeenRequest>>,
    body_bytes: AtomicU64,
    client: Client<HttpConnector, Body>,
}

/// A running proxy; dropping it ends the listening and every hanging request.
#[derive(Debug)]
pub struct FaultyHttp {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl FaultyHttp {
    /// Listens on a free port and passes requests on to the origin at `origin`.
    pub fn start(origin: SocketAddr) -> FaultyHttp {
        let (listener, address) = runtime::listen();
        let shared = Arc::new(Shared {
            origin,
            rules: Mutex::default(),
            seen: Mutex::default(),
            body_bytes: AtomicU64::new(0),
            client: Client::builder(TokioExecutor::new())
                // An origin is stopped and started again behind the proxy: keep no connection that
                // could be dead, or the proxy would inject faults that nobody asked for.
                .pool_max_idle_per_host(0)
                .build_http(),
        });
        let accepting = runtime::spawn(accept(listener, shared.clone()));
        FaultyHttp { address, shared, accepting }
    }

    /// Where to connect instead of the origin.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same as a URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Adds a rule. The first rule that matches a request and is not used up decides.
    pub fn inject(&self, rule: Rule) {
        lock(&self.shared.rules).push(rule);
    }

    /// Takes all rules back; hanging requests go on hanging.
    pub fn heal(&self) {
        lock(&self.shared.rules).clear();
    }

    /// The requests so far, oldest first (the first 100,000).
    pub fn requests(&self) -> Vec<SeenRequest> {
        lock(&self.shared.seen).clone()
    }

    /// How many requests of this method were made.
    pub fn count(&self, method: &str) -> usize {
        lock(&self.shared.seen).iter().filter(|request| request.method == method).count()
    }

    /// How many requests were made.
    pub fn total(&self) -> usize {
        lock(&self.shared.seen).len()
    }

    /// Bytes of bodies that were sent to clients.
    pub fn body_bytes(&self) -> u64 {
        self.shared.body_bytes.load(Ordering::SeqCst)
    }

    /// Forgets requests and bytes, keeps the rules.
    pub fn reset_counts(&self) {
        lock(&self.shared.seen).clear();
        self.shared.body_bytes.store(0, Ordering::SeqCst);
    }
}

impl Drop for FaultyHttp {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: tokio::net::TcpListener, shared: Arc<Shared>) {
    // Connections belong to the listener: aborting this task aborts them.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { return };
                let _ = stream.set_nodelay(true);
                let shared = shared.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| answer(shared.clone(), request));
                    // An error here is a fault that was asked for, or a client that left.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// `Err` makes hyper end the connection without an answer.
async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Body>, io::Error> {
    let seen = SeenRequest {
        method: request.method().to_string(),
        target: request.uri().path_and_query().map(ToString::to_string).unwrap_or_default(),
        range: text(request.headers(), &header::RANGE),
        if_match: text(request.headers(), &header::IF_MATCH),
        if_none_match: text(request.headers(), &header::IF_NONE_MATCH),
    };
    let fault = choose(&shared, &seen);
    {
        let mut list = lock(&shared.seen);
        if list.len() < REMEMBERED {
            list.push(seen);
        }
    }
    let mut request = request;
    match &fault {
        Some(Fault::Delay(time)) => tokio::time::sleep(*time).await,
        Some(Fault::Status(status)) => return Ok(s3_error(*status)),
        Some(Fault::Hang) => return std::future::pending().await,
        Some(Fault::Reset) => return Err(io::ErrorKind::ConnectionReset.into()),
        Some(Fault::WholeObject) => drop(request.headers_mut().remove(header::RANGE)),
        Some(Fault::ChangedEtag(_)) => drop(request.headers_mut().remove(header::IF_MATCH)),
        _ => {}
    }
    let response = match pass_on(&shared, request).await {
        Ok(response) => response,
        // The origin refused the connection: so does the proxy.
        Err(error) => return Err(io::Error::other(error)),
    };
    Ok(spoil(&shared, response, fault))
}

fn text(headers: &HeaderMap, name: &header::HeaderName) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

fn choose(shared: &Shared, request: &SeenRequest) -> Option<Fault> {
    let mut rules = lock(&shared.rules);
    for rule in rules.iter_mut().filter(|rule| rule.times > 0) {
        if rule.matches(request) {
            if rule.skip > 0 {
                rule.skip -= 1;
                continue;
            }
            rule.times = rule.times.saturating_sub(1);
            return Some(rule.fault.clone());
        }
    }
    None
}

async fn pass_on(
    shared: &Shared,
    request: Request<Incoming>,
) -> Result<Response<Incoming>, String> {
    let (mut parts, body) = request.into_parts();
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    parts.uri = Uri::try_from(format!("http://{}{target}", shared.origin))
        .map_err(|error| error.to_string())?;
    let body = body.map_err(io::Error::other).boxed_unsync();
    shared
        .client
        .request(Request::from_parts(parts, body))
        .await
        .map_err(|error| format!("{error:?}"))
}

/// Turns the origin's answer into the faulty one.
fn spoil(
    shared: &Arc<Shared>,
    response: Response<Incoming>,
    fault: Option<Fault>,
) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    let length: Option<u64> =
        text(&parts.headers, &header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
    let mut announce = |length: u64| {
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    };
    let end = match fault {
        Some(Fault::CutBody { after_bytes }) => End::Cut(after_bytes),
        Some(Fault::HangBody { after_bytes }) => End::Hang(after_bytes),
        Some(Fault::ShortBody { missing_bytes }) => {
            let kept = length.unwrap_or(0).saturating_sub(missing_bytes);
            announce(kept);
            End::Short(kept)
        }
        Some(Fault::LongContentLength { extra_bytes }) => {
            let actual = length.unwrap_or(0);
            announce(actual + extra_bytes);
            End::Cut(actual)
        }
        Some(Fault::ChangedEtag(etag)) => {
            if let Ok(value) = HeaderValue::from_str(&etag) {
                parts.headers.insert(header::ETAG, value);
            }
            End::Whole
        }
        _ => End::Whole,
    };
    Response::from_parts(parts, limited(shared.clone(), body, end))
}

/// How a body ends.
#[derive(Debug, Clone, Copy)]
enum End {
    Whole,
    Short(u64),
    Cut(u64),
    Hang(u64),
}

fn limited(shared: Arc<Shared>, body: Incoming, end: End) -> Body {
    let limit = match end {
        End::Whole => u64::MAX,
        End::Short(bytes) | End::Cut(bytes) | End::Hang(bytes) => bytes,
    };
    let mut left = limit;
    let kept = BodyStream::new(body)
        .map(|frame| frame.map_err(io::Error::other))
        .scan((), move |(), frame| {
            let frame = match frame.map(Frame::into_data) {
                Ok(Ok(mut data)) => {
                    data.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                    left -= (data.len() as u64).min(left);
                    shared.body_bytes.fetch_add(data.len() as u64, Ordering::SeqCst);
                    Ok(Frame::data(data))
                }
                // Trailers come after the last byte that is wanted.
                Ok(Err(other)) => Ok(other),
                Err(error) => Err(error),
            };
            std::future::ready(Some((frame, left)))
        })
        // `take_while` alone would wait for one frame more before it ends.
        .flat_map(move |(frame, left)| {
            let ends = left == 0 && limit != u64::MAX;
            futures::stream::iter(
                [Some(frame), (ends).then(|| Err(end_marker()))].into_iter().flatten(),
            )
        })
        .take_while(|frame| {
            std::future::ready(!matches!(frame, Err(error) if is_end_marker(error)))
        });
    let tail = match end {
        End::Whole | End::Short(_) => futures::stream::empty().boxed(),
        End::Cut(_) => {
            let cut: io::Error = io::ErrorKind::ConnectionReset.into();
            // A moment for what was sent to leave: hyper drops unflushed bytes on an error.
            futures::stream::once(async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Err(cut)
            })
            .boxed()
        }
        End::Hang(_) => futures::stream::pending().boxed(),
    };
    // A limit of nothing must not wait for the first frame of the origin.
    let kept = if limit == 0 { futures::stream::empty().boxed() } else { kept.boxed() };
    StreamBody::new(kept.chain(tail)).boxed_unsync()
}

fn end_marker() -> io::Error {
    io::ErrorKind::WouldBlock.into()
}

fn is_end_marker(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

fn s3_error(status: u16) -> Response<Body> {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let code = match status.as_u16() {
        403 => "AccessDenied",
        404 => "NoSuchKey",
        412 => "PreconditionFailed",
        429 | 503 => "SlowDown",
        _ => "InternalError",
    };
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code>\
         <Message>injected by the test kit</Message><RequestId>kit</RequestId></Error>"
    );
    let body = Full::new(Bytes::from(text)).map_err(|never: Infallible| match never {});
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    response
}
