//! One HTTP client for every cloud: sending, body streams, and what went wrong in between.
//!
//! Invariant: a body goes out with its exact length, and its last byte only after its source has
//! ended without an error, so that a body that fails is never taken for a whole one. It refuses to
//! follow redirects, and to print a URL, since a URL may carry a signature.

pub(crate) mod headers;
mod outgoing;
pub(crate) mod url;

use std::time::Duration;

use ::http::header::{CONTENT_LENGTH, RETRY_AFTER};
use ::http::{HeaderMap, HeaderValue, Method, StatusCode};
use bytes::Bytes;
use futures::StreamExt;
use reqwest::Response;
use store::{Body, ByteStream, Error, ErrorKind, Result};

use crate::Policy;

/// Most bytes of an error's document that are read; real ones have less than 2 KiB.
const MAX_ERROR_BYTES: usize = 64 * 1024;

/// Most bytes of an answer that is read whole: a page of 1,000 keys of 1 KiB, every byte of them
/// percent-encoded and with its XML, has less than 4 MiB.
const MAX_DOCUMENT_BYTES: usize = 16 * 1024 * 1024;

/// Idle connections kept to one origin: as many as the largest fan-out that a cache is run with.
const MAX_IDLE_CONNECTIONS: usize = 128;

/// Idle connections are closed before the usual origin would close them under our hands (S3: 20 s
/// and more, Azure and GCS: minutes).
const IDLE_CONNECTION: Duration = Duration::from_secs(15);

/// How long a connection is silent before its other end is asked whether it is there: twice within
/// the default idle timeout.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// A request.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) url: ::url::Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: CallBody,
}

impl Call {
    /// A request without headers and body.
    pub(crate) fn new(method: Method, url: ::url::Url) -> Self {
        Self { method, url, headers: HeaderMap::new(), body: CallBody::Empty }
    }
}

/// What a request carries.
#[derive(Debug)]
pub(crate) enum CallBody {
    /// Nothing; `Content-Length: 0` is sent where the method usually has a body.
    Empty,
    /// A small document in memory.
    Bytes(Bytes),
    /// An object or a part.
    Stream(Body),
}

/// A client of one origin. Cheap to clone; its clones share their connections.
#[derive(Debug, Clone)]
pub(crate) struct Http {
    client: reqwest::Client,
}

impl Http {
    /// A client with the policy's connect timeout. Timeouts of answers are those of
    /// [`crate::resilience`]. Proxies are taken from the environment, except for loopback.
    pub(crate) fn new(policy: &Policy, endpoint: &::url::Url) -> Result<Self> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("warpdrive/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(policy.connect_timeout)
            // Ends connections to a machine that is gone, also while its answer is waited for.
            .tcp_keepalive(KEEPALIVE)
            .tcp_user_timeout(policy.idle_timeout)
            .redirect(reqwest::redirect::Policy::none())
            // Throughput over many connections; one HTTP/2 connection is a bottleneck.
            .http1_only()
            .pool_max_idle_per_host(MAX_IDLE_CONNECTIONS)
            .pool_idle_timeout(IDLE_CONNECTION);
        if is_loopback(endpoint) {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| {
            Error::new(ErrorKind::Internal, "no HTTP client could be made").with_source(error)
        })?;
        Ok(Self { client })
    }

    /// Sends a request and returns the head of its answer, whatever its status. An error inside
    /// the body is returned as it is, and the origin has not seen the whole body then.
    pub(crate) async fn send(&self, call: Call) -> Result<Response> {
        let Call { method, url, mut headers, body } = call;
        let may_have_body = method != Method::GET && method != Method::HEAD;
        let (body, failure) = match body {
            CallBody::Empty => {
                if may_have_body && method != Method::DELETE {
                    headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
                }
                (None, outgoing::Failure::default())
            }
            CallBody::Bytes(bytes) => {
                headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
                (Some(reqwest::Body::from(bytes)), outgoing::Failure::default())
            }
            CallBody::Stream(body) => {
                headers.insert(CONTENT_LENGTH, HeaderValue::from(body.size));
                if body.size == 0 {
                    // Nobody would poll the stream of an empty body, and it may hold an error.
                    body.collect(0).await?;
                    (Some(reqwest::Body::from(Bytes::new())), outgoing::Failure::default())
                } else {
                    let (stream, failure) = outgoing::hold_back(body);
                    (Some(reqwest::Body::wrap_stream(stream)), failure)
                }
            }
        };
        let mut request = self.client.request(method, url).headers(headers);
        if let Some(body) = body {
            request = request.body(body);
        }
        let answer = request.send().await;
        // An origin that answers before the body failed has refused the request by itself; one
        // that answers after it has seen a cut connection. Either way the body's error is the cause.
        if let Some(error) = failure.take() {
            return Err(error);
        }
        answer.map_err(transport_error)
    }
}

/// True for `localhost` and loopback addresses.
fn is_loopback(url: &::url::Url) -> bool {
    match url.host() {
        Some(::url::Host::Domain(name)) => name == "localhost",
        Some(::url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(::url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

/// What a failed exchange means, without its URL.
pub(crate) fn transport_error(error: reqwest::Error) -> Error {
    if let Some(found) = Error::find_in(&error) {
        return found.clone();
    }
    let error = error.without_url();
    let (kind, context) = if error.is_connect() && error.is_timeout() {
        (ErrorKind::Timeout, "no connection to the origin in time")
    } else if error.is_timeout() {
        (ErrorKind::Timeout, "no answer from the origin in time")
    } else if error.is_connect() {
        (ErrorKind::Unavailable, "no connection to the origin")
    } else {
        (ErrorKind::Unavailable, "connection to the origin failed")
    };
    Error::new(kind, context).with_source(error)
}

/// The body of an answer, exactly `size` bytes or an error: [`ErrorKind::Corrupted`] when the
/// origin ended it early or went on, [`ErrorKind::Unavailable`] when the connection broke.
pub(crate) fn incoming(response: Response, size: u64) -> ByteStream {
    let pieces = response.bytes_stream();
    futures::stream::unfold((pieces, 0u64, false), move |(mut pieces, seen, done)| async move {
        if done {
            return None;
        }
        match pieces.next().await {
            Some(Ok(piece)) => {
                let now = seen + piece.len() as u64;
                if now > size {
                    let error = wrong_length("more than ", size, size);
                    return Some((Err(error), (pieces, now, true)));
                }
                Some((Ok(piece), (pieces, now, false)))
            }
            Some(Err(error)) => {
                let error = transport_error(error)
                    .in_context(format_args!("body broke after {seen} of {size} bytes"));
                Some((Err(error), (pieces, seen, true)))
            }
            None if seen == size => None,
            None => Some((Err(wrong_length("", seen, size)), (pieces, seen, true))),
        }
    })
    .boxed()
}

fn wrong_length(more: &str, seen: u64, size: u64) -> Error {
    let context = format!("origin returned {more}{seen} bytes, expected {size}");
    Error::new(ErrorKind::Corrupted, context)
}

/// A small document, whole: a listing or the answer of a completed upload.
pub(crate) async fn document(response: Response) -> Result<Bytes> {
    let mut all = Vec::new();
    let mut pieces = response.bytes_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(transport_error)?;
        if all.len() + piece.len() > MAX_DOCUMENT_BYTES {
            let context = format!("answer of the origin has more than {MAX_DOCUMENT_BYTES} bytes");
            return Err(Error::new(ErrorKind::Corrupted, context));
        }
        all.extend_from_slice(&piece);
    }
    Ok(all.into())
}

/// The document of an error, as much of it as came; never fails.
pub(crate) async fn error_document(response: Response) -> Vec<u8> {
    let mut all = Vec::new();
    let mut pieces = response.bytes_stream();
    while let Some(Ok(piece)) = pieces.next().await {
        let room = MAX_ERROR_BYTES - all.len();
        all.extend_from_slice(&piece[..piece.len().min(room)]);
        if all.len() == MAX_ERROR_BYTES {
            break;
        }
    }
    all
}

/// The kind of a status that no document explains better.
pub(crate) fn kind_of_status(status: StatusCode) -> ErrorKind {
    match status.as_u16() {
        401 => ErrorKind::Unauthenticated,
        403 => ErrorKind::PermissionDenied,
        404 | 410 => ErrorKind::NotFound,
        405 | 501 => ErrorKind::Unsupported,
        408 | 504 => ErrorKind::Timeout,
        409 => ErrorKind::Conflict,
        412 | 304 => ErrorKind::PreconditionFailed,
        413 => ErrorKind::TooLarge,
        416 => ErrorKind::InvalidRange,
        429 => ErrorKind::Throttled,
        507 => ErrorKind::StorageFull,
        400..=499 => ErrorKind::InvalidInput,
        500..=599 => ErrorKind::Unavailable,
        _ => ErrorKind::Internal,
    }
}

/// The wait that an origin asked for; the source of the error that it came with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the origin asks to wait {} s", .0.as_secs())]
pub(crate) struct RetryAfter(pub(crate) Duration);

impl RetryAfter {
    /// From an answer's headers: whole seconds; dates are rare and not read.
    pub(crate) fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
        text.trim().parse().ok().map(Duration::from_secs).map(Self)
    }

    /// From an error's sources.
    pub(crate) fn find_in(error: &Error) -> Option<Self> {
        let mut source = std::error::Error::source(error);
        while let Some(inner) = source {
            if let Some(found) = inner.downcast_ref::<Self>() {
                return Some(*found);
            }
            source = inner.source();
        }
        None
    }
}

#[cfg(test)]
mod tests;
