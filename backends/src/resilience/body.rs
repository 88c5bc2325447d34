//! Bodies under way: those that are read go on after a cut, those that are sent are watched.
//!
//! Invariant: a resumed body continues at the byte where it broke, in the same version, and ends
//! exactly at the end of its range; otherwise it ends in an error.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use store::{
    Body, ByteRange, ByteStream, Error, ErrorKind, GetOptions, GetResult, ObjectKey, ReaderId,
    Result,
};
use tokio::time::Instant;

use super::{Shared, Verdict, said_tries};
use crate::Policy;

/// A body of a `get`, resumed after failures as often as the policy says.
pub(super) fn resuming(
    shared: Arc<Shared>,
    key: ObjectKey,
    reader: ReaderId,
    got: GetResult,
) -> GetResult {
    let GetResult { meta, range, body } = got;
    let reading = Reading {
        shared,
        key,
        options: GetOptions { range: ByteRange::Full, if_match: Some(meta.etag.clone()), reader },
        body: Some(body),
        next: range.start,
        end: range.end,
        resumed: 0,
    };
    let stream = futures::stream::unfold(Some(reading), |reading| async move {
        let mut reading = reading?;
        match reading.piece().await {
            Ok(Some(piece)) => Some((Ok(piece), Some(reading))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    });
    GetResult { meta, range, body: stream.boxed() }
}

struct Reading {
    shared: Arc<Shared>,
    key: ObjectKey,
    /// For the requests that resume.
    options: GetOptions,
    /// `None` after a failure.
    body: Option<ByteStream>,
    next: u64,
    end: u64,
    resumed: u32,
}

impl Reading {
    async fn piece(&mut self) -> Result<Option<Bytes>> {
        loop {
            match self.step().await {
                Ok(Some(piece)) if piece.is_empty() => {}
                Ok(Some(piece)) => {
                    self.next += piece.len() as u64;
                    if self.next > self.end {
                        let context = format!("body of `{}` went past its range", self.key);
                        return Err(Error::new(ErrorKind::Corrupted, context));
                    }
                    return Ok(Some(piece));
                }
                Ok(None) => return Ok(None),
                Err(error) => self.recover(error).await?,
            }
        }
    }

    /// The next piece of the body at hand; a body that ends early is an error.
    async fn step(&mut self) -> Result<Option<Bytes>> {
        let idle = self.shared.policy.idle_timeout;
        let Some(body) = &mut self.body else {
            return Err(Error::new(ErrorKind::Unavailable, "body was not resumed"));
        };
        match tokio::time::timeout(idle, body.next()).await {
            Ok(Some(piece)) => piece.map(Some),
            Ok(None) if self.next == self.end => Ok(None),
            Ok(None) => {
                let left = self.end - self.next;
                let context = format!("body of `{}` ended {left} bytes early", self.key);
                Err(Error::new(ErrorKind::Corrupted, context))
            }
            Err(_) => {
                let context = format!("body of `{}` stalled for {idle:?}", self.key);
                Err(Error::new(ErrorKind::Timeout, context))
            }
        }
    }

    /// Asks for the rest, or gives back the error.
    async fn recover(&mut self, error: Error) -> Result<()> {
        self.body = None;
        if !error.kind().is_transient() {
            return Err(error);
        }
        if self.next == self.end {
            // Everything came; only the end of the connection went wrong.
            self.body = Some(futures::stream::empty().boxed());
            return Ok(());
        }
        let no_limit = Duration::MAX;
        let Some(wait) = self.shared.wait_before_retry(&error, self.resumed, no_limit) else {
            return Err(said_tries(error, self.resumed));
        };
        tokio::time::sleep(wait).await;
        self.resumed += 1;
        self.shared.metrics.retries.with_label_values(&[&self.shared.backend, "resume"]).inc();
        tracing::debug!(
            backend = self.shared.backend, at = self.next, end = self.end, %error, "resuming a body"
        );
        self.options.range = (self.next..self.end).into();
        let (limits, options) = (
            (self.shared.policy.first_byte_timeout, self.shared.policy.call_timeout),
            &self.options,
        );
        let ask = || self.shared.inner.get(&self.key, options.clone());
        let judge = |error: &Error| Verdict::again_if(error.kind().is_outage());
        let got = self.shared.repeated("get", limits, judge, ask).await.map_err(|again| {
            let context =
                format!("body of `{}` broke at byte {} and cannot go on", self.key, self.next);
            again.in_context(context)
        })?;
        if Some(&got.meta.etag) != options.if_match.as_ref() || got.range != (self.next..self.end) {
            let context = format!("`{}` changed while it was read", self.key);
            return Err(Error::new(ErrorKind::PreconditionFailed, context));
        }
        self.body = Some(got.body);
        Ok(())
    }
}

/// A body to send, lent to one attempt after another until one of them asks it for a byte.
pub(super) struct Kept {
    size: u64,
    stream: Arc<Mutex<Option<ByteStream>>>,
    /// Set when the body itself has failed or has another length than it promised: that says
    /// nothing of the origin.
    failed: Arc<AtomicBool>,
}

impl Kept {
    pub(super) fn new(body: Body) -> Self {
        let stream = Arc::new(Mutex::new(Some(body.stream)));
        Self { size: body.size, stream, failed: Arc::default() }
    }

    /// True when the body has yielded an error, or fewer or more bytes than it promised.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// True as long as no attempt has asked for a byte.
    pub(super) fn is_untouched(&self) -> bool {
        self.stream.lock().is_some()
    }

    /// The body for one attempt, and how far the origin is with it.
    pub(super) fn lend(&self) -> (Body, Progress) {
        let progress = Progress(Arc::new(Mutex::new(Turn::Answer(Instant::now()))));
        let (kept, turn) = (Arc::clone(&self.stream), progress.clone());
        let failed = Arc::clone(&self.failed);
        let (size, mut given) = (self.size, 0u64);
        let mut taken: Option<ByteStream> = None;
        let stream = futures::stream::poll_fn(move |context| {
            let stream = match &mut taken {
                Some(stream) => stream,
                None => match kept.lock().take() {
                    Some(stream) => taken.insert(stream),
                    None => return Poll::Ready(None),
                },
            };
            let polled = stream.poll_next_unpin(context);
            let bad = match &polled {
                Poll::Pending => false,
                Poll::Ready(Some(Ok(piece))) => {
                    given = given.saturating_add(piece.len() as u64);
                    given > size
                }
                Poll::Ready(Some(Err(_))) => true,
                Poll::Ready(None) => given != size,
            };
            if bad {
                failed.store(true, Ordering::Relaxed);
            }
            *turn.0.lock() = match &polled {
                Poll::Pending => Turn::Source,
                Poll::Ready(Some(_)) => Turn::Bytes(Instant::now()),
                Poll::Ready(None) => Turn::Commit(Instant::now()),
            };
            polled
        });
        // Fused: whoever asks after the end gets the end again.
        (Body::new(self.size, stream.fuse().boxed()), progress)
    }
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy)]
enum Turn {
    /// The caller's: it has not produced the next piece. No time is counted.
    Source,
    /// The origin's, since then: it has a piece and has not asked for another.
    Bytes(Instant),
    /// The origin's, since then: it has not begun with the body.
    Answer(Instant),
    /// The origin's, since then: it has everything, and makes it durable before it answers.
    Commit(Instant),
}

#[derive(Debug, Clone)]
pub(super) struct Progress(Arc<Mutex<Turn>>);

impl Progress {
    /// Ends when the origin has kept the caller waiting for too long.
    pub(super) async fn stalled(&self, policy: &Policy) -> Error {
        let idle = policy.idle_timeout;
        loop {
            let turn = *self.0.lock();
            let (since, limit, what) = match turn {
                Turn::Source => (Instant::now(), idle, ""),
                Turn::Bytes(since) => (since, idle, "took no more bytes of the body"),
                Turn::Answer(since) => (since, policy.first_byte_timeout, "did not answer"),
                Turn::Commit(since) => {
                    (since, policy.completion_timeout, "has the whole body and did not answer")
                }
            };
            let deadline = since + limit;
            if deadline <= Instant::now() && !what.is_empty() {
                let context = format!("origin {what} for {limit:?}");
                return Error::new(ErrorKind::Timeout, context);
            }
            // The turn may change meanwhile to one with a nearer deadline, at most so near.
            tokio::time::sleep_until(deadline.min(Instant::now() + idle)).await;
        }
    }
}
