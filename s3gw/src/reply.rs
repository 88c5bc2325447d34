//! Answers: status, headers and a body that streams.
//!
//! Invariant: bytes of a store leave as the store yielded them, uncopied; a store's error in the
//! middle of a body cuts the connection, so that no client takes a short body for a whole one.
//! Documents never carry a raw control character.

use std::future::Future;
use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use s3s::S3ErrorCode;
use s3s::xml::{Serialize, Serializer};
use store::{ByteStream, Error};
use tokio::time::{Instant, Sleep};

use crate::failure::{Failure, Outcome};
use crate::metrics::RequestGuard;

/// The first line of every document.
const DECLARATION: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>";

/// An answer that is not yet on its way.
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: ReplyBody,
}

/// Where the bytes of an answer come from.
pub(crate) enum ReplyBody {
    /// Nowhere.
    Empty,
    /// Memory.
    Full(Bytes),
    /// A store; so many bytes are to come.
    Stream(ByteStream, u64),
    /// An operation that takes its time; white space keeps the connection alive until then.
    Patient(Box<Patient>),
}

/// The future of an answer's document, without its declaration.
pub(crate) type Document = Pin<Box<dyn Future<Output = Bytes> + Send>>;

pub(crate) struct Patient {
    document: Option<Document>,
    interval: Duration,
    timer: Pin<Box<Sleep>>,
    declared: bool,
}

impl Reply {
    /// An answer without a body.
    pub(crate) fn empty(status: StatusCode) -> Self {
        Self { status, headers: HeaderMap::new(), body: ReplyBody::Empty }
    }

    /// A document with status 200.
    pub(crate) fn document<T: Serialize>(value: &T) -> Outcome<Self> {
        Ok(Self::xml(StatusCode::OK, &render(value)?))
    }

    /// A rendered document, less its declaration.
    pub(crate) fn xml(status: StatusCode, document: &[u8]) -> Self {
        let mut whole = Vec::with_capacity(DECLARATION.len() + document.len());
        whole.extend_from_slice(DECLARATION.as_bytes());
        whole.extend_from_slice(document);
        let mut reply = Self { body: ReplyBody::Full(whole.into()), ..Self::empty(status) };
        reply.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
        reply
    }

    /// The document of an operation that may take longer than clients wait: when it is not there
    /// after `patience`, the answer begins with 200 and white space, and ends with the document or
    /// with an `Error` document, as S3 does. Dropping the answer cancels the operation.
    pub(crate) async fn patient(
        patience: Duration,
        operation: impl Future<Output = Outcome<Bytes>> + Send + 'static,
        render_error: impl FnOnce(Failure) -> Bytes + Send + 'static,
    ) -> Outcome<Self> {
        let mut operation = Box::pin(operation);
        if let Ok(done) = tokio::time::timeout(patience, &mut operation).await {
            return done.map(|document| Self::xml(StatusCode::OK, &document));
        }
        let document = operation.map(|done| done.unwrap_or_else(render_error)).boxed();
        let mut reply = Self::empty(StatusCode::OK);
        reply.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
        reply.body = ReplyBody::Patient(Box::new(Patient {
            document: Some(document),
            interval: patience,
            timer: Box::pin(tokio::time::sleep(patience)),
            declared: false,
        }));
        Ok(reply)
    }

    /// Adds a header; a value that no header can carry is left out.
    pub(crate) fn set(&mut self, name: HeaderName, value: &str) {
        if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
            self.headers.insert(name, value);
        }
    }

    /// The answer as hyper wants it. `without_body` keeps the length and drops the bytes (HEAD).
    pub(crate) fn into_response(
        self,
        guard: RequestGuard,
        without_body: bool,
    ) -> Response<GuardedBody> {
        let Self { status, mut headers, body } = self;
        let length = match &body {
            ReplyBody::Empty | ReplyBody::Patient(_) => None,
            ReplyBody::Full(bytes) => Some(bytes.len() as u64),
            ReplyBody::Stream(_, left) => Some(*left),
        };
        if let Some(length) = length.filter(|_| !headers.contains_key(CONTENT_LENGTH)) {
            headers.insert(CONTENT_LENGTH, length.into());
        }
        let body = if without_body { ReplyBody::Empty } else { body };
        let mut response = Response::new(GuardedBody { body, guard });
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }
}

/// Renders a document without its declaration.
pub(crate) fn render<T: Serialize>(value: &T) -> Outcome<Bytes> {
    let mut out = Vec::with_capacity(512);
    let rendered = value.serialize(&mut Serializer::new(&mut out));
    if let Err(error) =
        rendered.map_err(|e| e.to_string()).and_then(|()| out.flush().map_err(|e| e.to_string()))
    {
        tracing::warn!(%error, "a document could not be written");
        return Err(Failure::new(S3ErrorCode::InternalError, "the answer could not be written"));
    }
    Ok(escape_controls(out).into())
}

/// Writes control characters as references. XML 1.0 has no place for most of them and parsers
/// change the others; S3 writes them like this too, and clients that care ask for `encoding-type`.
fn escape_controls(document: Vec<u8>) -> Vec<u8> {
    if !document.iter().any(|b| *b < 0x20) {
        return document;
    }
    let mut out = Vec::with_capacity(document.len() + 32);
    for byte in document {
        if byte < 0x20 {
            out.extend_from_slice(format!("&#{byte};").as_bytes());
        } else {
            out.push(byte);
        }
    }
    out
}

/// The body of an answer, with what must happen when it is over.
pub(crate) struct GuardedBody {
    body: ReplyBody,
    guard: RequestGuard,
}

impl Body for GuardedBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        let next = match &mut this.body {
            ReplyBody::Empty => return Poll::Ready(None),
            ReplyBody::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                this.body = ReplyBody::Empty;
                if bytes.is_empty() {
                    return Poll::Ready(None);
                }
                Ok(bytes)
            }
            ReplyBody::Stream(stream, left) => {
                match std::task::ready!(stream.poll_next_unpin(cx)) {
                    None => return Poll::Ready(None),
                    Some(Ok(bytes)) => {
                        *left = left.saturating_sub(bytes.len() as u64);
                        Ok(bytes)
                    }
                    Some(Err(error)) => {
                        tracing::warn!(kind = %error.kind(), %error, "answer cut in the middle");
                        Err(error)
                    }
                }
            }
            ReplyBody::Patient(patient) => {
                match std::task::ready!(Pin::new(&mut **patient).poll_next(cx)) {
                    None => return Poll::Ready(None),
                    Some(bytes) => Ok(bytes),
                }
            }
        };
        if let Ok(bytes) = &next {
            this.guard.sent(bytes.len());
        }
        Poll::Ready(Some(next.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            ReplyBody::Empty => true,
            ReplyBody::Full(bytes) => bytes.is_empty(),
            ReplyBody::Stream(_, left) => *left == 0,
            ReplyBody::Patient(patient) => patient.document.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            ReplyBody::Empty => SizeHint::with_exact(0),
            ReplyBody::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            ReplyBody::Stream(_, left) => SizeHint::with_exact(*left),
            ReplyBody::Patient(_) => SizeHint::default(),
        }
    }
}

impl Stream for Patient {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if !self.declared {
            self.declared = true;
            return Poll::Ready(Some(Bytes::from_static(DECLARATION.as_bytes())));
        }
        let Some(document) = &mut self.document else { return Poll::Ready(None) };
        if let Poll::Ready(document) = document.as_mut().poll(cx) {
            self.document = None;
            return Poll::Ready(Some(document));
        }
        std::task::ready!(self.timer.as_mut().poll(cx));
        let next = Instant::now() + self.interval;
        self.timer.as_mut().reset(next);
        // Polled so that the reset timer wakes this task again.
        let _ = self.timer.as_mut().poll(cx);
        Poll::Ready(Some(Bytes::from_static(b" ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_become_references() {
        assert_eq!(escape_controls(b"<K>a\x01\nb</K>".to_vec()), b"<K>a&#1;&#10;b</K>");
        assert_eq!(escape_controls(b"<K>\xc3\xa9</K>".to_vec()), b"<K>\xc3\xa9</K>");
    }

    #[tokio::test(start_paused = true)]
    async fn slow_operations_keep_the_connection_alive() {
        let slow = async {
            tokio::time::sleep(Duration::from_secs(35)).await;
            Ok(Bytes::from_static(b"<Done/>"))
        };
        let reply = Reply::patient(Duration::from_secs(10), slow, |_| Bytes::new()).await;
        let Ok(Reply { body: ReplyBody::Patient(patient), .. }) = reply else {
            panic!("the answer has not begun");
        };
        let pieces: Vec<Bytes> = patient.collect().await;
        assert_eq!(pieces.concat(), format!("{DECLARATION}  <Done/>").as_bytes());
    }

    #[tokio::test(start_paused = true)]
    async fn fast_failures_keep_their_status() {
        let fails = async { Err(Failure::invalid_request("no")) };
        let reply = Reply::patient(Duration::from_secs(10), fails, |_| Bytes::new()).await;
        assert_eq!(reply.err().unwrap().status(), 400);
    }
}
