//! The body of a write on its way to a store: unframed, counted, verified.
//!
//! Invariant: the last piece is held back until length, chunk signatures, trailers and every
//! announced checksum were found right; a body that is wrong ends in an error instead, so that the
//! store's write fails and changes nothing. At most two pieces are held at a time. It refuses
//! bodies without a length.

pub(crate) mod checksum;
pub(crate) mod chunked;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures::StreamExt;
use http::HeaderMap;
use parking_lot::Mutex;
use s3s::S3ErrorCode;
use store::{Body, Error, ErrorKind};

use crate::auth::{ChunkSigner, Payload, PayloadHash, Streaming};
use crate::failure::{Failure, Outcome};
use crate::front::Window;
use crate::metrics::Metrics;
use crate::unread::Unread;
use checksum::{Algorithm, Covers, Hasher};
use chunked::{ChunkDecoder, Event};

/// What a body must be, known before its first byte.
pub(crate) struct Plan {
    /// Bytes after decoding.
    size: u64,
    chunked: bool,
    signer: Option<ChunkSigner>,
    trailer_signature: bool,
    hashers: Vec<Hasher>,
}

/// What was found out about a body when it was over.
#[derive(Default)]
pub(crate) struct Verdict {
    failure: Option<Failure>,
    /// Checksums that were announced and are right, for the answer.
    verified: Vec<(Algorithm, Vec<u8>)>,
}

/// The verdict on a body that somebody else is reading.
#[derive(Clone, Default)]
pub(crate) struct SharedVerdict(Arc<Mutex<Verdict>>);

impl SharedVerdict {
    /// What was wrong with the body, if it was the body; else what the store said.
    pub(crate) fn failure(&self, error: Error) -> Failure {
        self.0.lock().failure.take().unwrap_or_else(|| error.into())
    }

    /// Checksums to repeat in the answer, as header name and value.
    pub(crate) fn checksums(&self) -> Vec<(&'static str, String)> {
        let verdict = self.0.lock();
        verdict
            .verified
            .iter()
            .filter(|(algorithm, _)| !matches!(algorithm, Algorithm::Md5 | Algorithm::Payload))
            .map(|(algorithm, value)| (algorithm.header(), checksum::text(value)))
            .collect()
    }
}

impl Plan {
    /// Reads the head of a request. The errors of bodies that can be told from it are told here,
    /// before the client was asked to send.
    pub(crate) fn new(headers: &HeaderMap, payload: Payload, covers: Covers) -> Outcome<Self> {
        let mut hashers = checksum::announced(headers, covers)?;
        let (chunks, signed) = match payload.hash {
            PayloadHash::Chunks { signed, .. } => (true, signed),
            PayloadHash::Exact(digest) => {
                hashers.push(Hasher::new(Algorithm::Payload, Some(digest.to_vec())));
                (false, false)
            }
            PayloadHash::Unsigned => (false, false),
        };
        let chunked = chunks || is_chunked(headers);
        let length = number(headers, "content-length")?;
        let size = if chunked { number(headers, "x-amz-decoded-content-length")? } else { length };
        let Some(size) = size else {
            return Err(Failure::new(
                S3ErrorCode::MissingContentLength,
                "You must provide the Content-Length HTTP header.",
            ));
        };
        let trailer_signature = signed
            && payload.signer.is_some()
            && matches!(payload.hash, PayloadHash::Chunks { trailer: true, .. });
        Ok(Self { size, chunked, signer: payload.signer, trailer_signature, hashers })
    }

    /// Bytes after decoding.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The verified body. `window` is its share of the memory for bodies, `stall` how long to wait
    /// for the next bytes.
    pub(crate) fn open(
        self,
        incoming: Unread,
        stall: Duration,
        metrics: Metrics,
        window: Window,
    ) -> (Body, SharedVerdict) {
        let verdict = SharedVerdict::default();
        let size = self.size;
        let reader = Reader {
            incoming,
            stall,
            metrics,
            input: Bytes::new(),
            decoder: self.chunked.then(ChunkDecoder::default),
            chunk: None,
            signer: self.signer,
            trailer_signature: self.trailer_signature,
            trailers: Vec::new(),
            hashers: self.hashers,
            seen: 0,
            size,
            verdict: verdict.clone(),
            _window: window,
        };
        let stream = futures::stream::unfold(Some((reader, None)), |state| async move {
            let (mut reader, mut held): (Reader, Option<Bytes>) = state?;
            loop {
                match reader.piece().await {
                    Ok(Some(piece)) => {
                        if let Some(ready) = held.replace(piece) {
                            return Some((Ok(ready), Some((reader, held))));
                        }
                    }
                    Ok(None) => return held.map(|last| (Ok(last), None)),
                    Err(failure) => return Some((Err(reader.fail(failure)), None)),
                }
            }
        });
        (Body::new(size, stream.boxed()), verdict)
    }

    /// The whole verified body, for documents of at most `limit` bytes.
    pub(crate) async fn collect(
        self,
        incoming: Unread,
        stall: Duration,
        metrics: Metrics,
        window: Window,
        limit: u64,
    ) -> Outcome<Bytes> {
        if self.size > limit {
            return Err(Failure::new(
                S3ErrorCode::MaxMessageLengthExceeded,
                format!("the document has {} bytes, at most {limit} are taken", self.size),
            ));
        }
        let (body, verdict) = self.open(incoming, stall, metrics, window);
        body.collect(limit).await.map_err(|error| verdict.failure(error))
    }
}

fn is_chunked(headers: &HeaderMap) -> bool {
    let encodings = headers.get_all(http::header::CONTENT_ENCODING);
    encodings
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|encoding| encoding.trim().eq_ignore_ascii_case("aws-chunked"))
}

fn number(headers: &HeaderMap, name: &str) -> Outcome<Option<u64>> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let digits = value.to_str().ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    match digits.and_then(|text| text.parse().ok()) {
        Some(number) => Ok(Some(number)),
        None => Err(Failure::invalid_argument(format!("{name} is not a number of bytes"))),
    }
}

/// A chunk whose data is coming in.
struct OpenChunk {
    signature: Option<String>,
    digest: Option<Streaming>,
}

struct Reader {
    incoming: Unread,
    stall: Duration,
    metrics: Metrics,
    input: Bytes,
    decoder: Option<ChunkDecoder>,
    chunk: Option<OpenChunk>,
    signer: Option<ChunkSigner>,
    trailer_signature: bool,
    trailers: Vec<(String, String)>,
    hashers: Vec<Hasher>,
    seen: u64,
    size: u64,
    verdict: SharedVerdict,
    _window: Window,
}

impl Reader {
    /// The next piece of decoded data; `None` once all of it was verified.
    async fn piece(&mut self) -> Outcome<Option<Bytes>> {
        loop {
            if self.decoder.is_some() {
                if let Some(data) = self.decode()? {
                    return self.take(data).map(Some);
                }
            } else if self.input.has_remaining() {
                let data = std::mem::take(&mut self.input);
                return self.take(data).map(Some);
            }
            let Some(bytes) = self.receive().await? else {
                self.finish()?;
                return Ok(None);
            };
            self.input = bytes;
        }
    }

    async fn receive(&mut self) -> Outcome<Option<Bytes>> {
        loop {
            let frame = tokio::time::timeout(self.stall, self.incoming.frame()).await;
            let Ok(frame) = frame else {
                return Err(Failure::new(
                    S3ErrorCode::RequestTimeout,
                    "Your socket connection to the server was not read from or written to within \
                     the timeout period.",
                ));
            };
            match frame {
                None => return Ok(None),
                Some(Err(error)) => {
                    tracing::debug!(%error, "request body ended early");
                    return Err(incomplete(self.seen, self.size));
                }
                // HTTP trailers have no meaning in S3.
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data()
                        && !data.is_empty()
                    {
                        self.metrics.received(data.len());
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    fn decode(&mut self) -> Outcome<Option<Bytes>> {
        let Some(decoder) = &mut self.decoder else { return Ok(None) };
        while let Some(event) = decoder.next(&mut self.input).map_err(broken)? {
            match event {
                Event::Data(data) => {
                    if let Some(digest) = self.chunk.as_mut().and_then(|c| c.digest.as_mut()) {
                        digest.update(&data);
                    }
                    return Ok(Some(data));
                }
                Event::Chunk { signature, .. } => {
                    let digest = self.signer.is_some().then(Streaming::default);
                    self.chunk = Some(OpenChunk { signature, digest });
                }
                Event::ChunkEnd => {
                    let chunk = self.chunk.take();
                    if let (Some(signer), Some(chunk)) = (&mut self.signer, chunk) {
                        let signature = chunk.signature.unwrap_or_default();
                        if !signer.chunk(chunk.digest.unwrap_or_default(), &signature) {
                            return Err(wrong_chunk_signature());
                        }
                    }
                }
                Event::Trailer(name, value) => self.trailers.push((name, value)),
                Event::End => {}
            }
        }
        Ok(None)
    }

    fn take(&mut self, data: Bytes) -> Outcome<Bytes> {
        self.seen += data.len() as u64;
        if self.seen > self.size {
            return Err(incomplete(self.seen, self.size));
        }
        for hasher in &mut self.hashers {
            hasher.update(&data);
        }
        Ok(data)
    }

    fn finish(&mut self) -> Outcome<()> {
        if let Some(decoder) = &mut self.decoder {
            while let Some(event) = decoder.finish().map_err(broken)? {
                if let Event::Trailer(name, value) = event {
                    self.trailers.push((name, value));
                }
            }
        }
        if self.seen != self.size {
            return Err(incomplete(self.seen, self.size));
        }
        self.check_trailers()?;
        for hasher in std::mem::take(&mut self.hashers) {
            let algorithm = hasher.algorithm;
            let Some(expected) = hasher.expected.clone() else {
                return Err(malformed_trailer(format!(
                    "the trailer {} was announced and did not come",
                    algorithm.header()
                )));
            };
            let found = hasher.finish();
            if found != expected {
                self.metrics.wrong_checksum(algorithm);
                return Err(differs(algorithm, &expected, &found));
            }
            self.verdict.0.lock().verified.push((algorithm, found));
        }
        Ok(())
    }

    fn check_trailers(&mut self) -> Outcome<()> {
        let mut signature = None;
        let mut signed = Vec::new();
        for (name, value) in std::mem::take(&mut self.trailers) {
            if name == "x-amz-trailer-signature" {
                signature = Some(value);
                continue;
            }
            if let Some(algorithm) = Algorithm::of_header(&name) {
                let expected = algorithm.read(&value)?;
                match self.hashers.iter_mut().find(|h| h.algorithm == algorithm) {
                    Some(hasher) => hasher.expected = Some(expected),
                    // The bytes are gone by: what was not announced cannot be verified.
                    None => {
                        return Err(malformed_trailer(format!(
                            "the trailer {name} was not announced in x-amz-trailer"
                        )));
                    }
                }
            }
            signed.push((name, value));
        }
        if let (Some(signer), true) = (&mut self.signer, self.trailer_signature)
            && !signer.trailer(&signed, &signature.unwrap_or_default())
        {
            return Err(wrong_chunk_signature());
        }
        Ok(())
    }

    /// Remembers the verdict and turns it into the error that the store's write fails with.
    fn fail(&mut self, failure: Failure) -> Error {
        let kind = match *failure.code() {
            S3ErrorCode::IncompleteBody | S3ErrorCode::RequestTimeout => ErrorKind::IncompleteBody,
            _ => ErrorKind::BadDigest,
        };
        let error = Error::new(kind, failure.message());
        self.verdict.0.lock().failure.get_or_insert(failure);
        error
    }
}

fn incomplete(seen: u64, size: u64) -> Failure {
    Failure::new(
        S3ErrorCode::IncompleteBody,
        format!("the body has {seen} bytes where {size} were announced"),
    )
}

fn broken(error: impl std::fmt::Display) -> Failure {
    Failure::new(S3ErrorCode::IncompleteBody, format!("{error}"))
}

fn malformed_trailer(message: String) -> Failure {
    Failure::new(S3ErrorCode::Custom("MalformedTrailerError".into()), message).into_bad_request()
}

fn wrong_chunk_signature() -> Failure {
    Failure::new(
        S3ErrorCode::SignatureDoesNotMatch,
        "the signature of a chunk is not the one calculated here",
    )
}

fn differs(algorithm: Algorithm, expected: &[u8], found: &[u8]) -> Failure {
    match algorithm {
        Algorithm::Payload => Failure::new(
            S3ErrorCode::Custom("XAmzContentSHA256Mismatch".into()),
            "The provided 'x-amz-content-sha256' header does not match what was computed.",
        ),
        _ => Failure::new(
            S3ErrorCode::BadDigest,
            format!(
                "the {} of the body is {}, and {} was sent",
                algorithm.name(),
                checksum::text(found),
                checksum::text(expected)
            ),
        ),
    }
    .into_bad_request()
}
