//! Bodies on their way out.
//!
//! Invariant: as long as the source may still fail, at least one byte of the promised length has
//! not been sent; an origin that counts bytes can therefore never take a failed body for a whole
//! one. (A checksum is often known to be wrong only after the last byte was read.)

use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use store::{Body, Error, Result};

/// The error that a body ended with, kept beside the HTTP client, which may wrap or lose it.
#[derive(Debug, Clone, Default)]
pub(super) struct Failure(Arc<Mutex<Option<Error>>>);

impl Failure {
    /// The error, if the body has failed.
    pub(super) fn take(&self) -> Option<Error> {
        self.0.lock().take()
    }
}

/// The body's pieces, each held back until the next one or the clean end is there, and exactly as
/// long as promised.
pub(super) fn hold_back(
    body: Body,
) -> (impl Stream<Item = Result<Bytes>> + Send + 'static, Failure) {
    let failure = Failure::default();
    let keep = failure.clone();
    let pieces = body.checked().stream;
    let state = (pieces, None::<Bytes>, keep, false);
    let stream = futures::stream::unfold(state, |(mut pieces, held, keep, done)| async move {
        if done {
            return None;
        }
        let mut held = held;
        loop {
            match pieces.next().await {
                Some(Ok(piece)) if piece.is_empty() => {}
                Some(Ok(piece)) => {
                    if let Some(ready) = held.replace(piece) {
                        return Some((Ok(ready), (pieces, held, keep, false)));
                    }
                }
                Some(Err(error)) => {
                    *keep.0.lock() = Some(error.clone());
                    return Some((Err(error), (pieces, None, keep, true)));
                }
                None => return held.map(|last| (Ok(last), (pieces, None, keep, true))),
            }
        }
    });
    (stream, failure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;
    use store::ErrorKind;

    async fn sent(size: u64, items: Vec<Result<Bytes>>) -> (Vec<Bytes>, Option<ErrorKind>) {
        let (stream, failure) = hold_back(Body::new(size, stream::iter(items).boxed()));
        let all: Vec<_> = stream.collect().await;
        let pieces = all.into_iter().filter_map(Result::ok).collect();
        (pieces, failure.take().map(|e| e.kind()))
    }

    #[tokio::test]
    async fn an_error_after_the_last_byte_keeps_that_byte_back() {
        let bad = || Err(Error::new(ErrorKind::BadDigest, "crc32 differs"));
        let items = vec![Ok(Bytes::from("abc")), Ok(Bytes::from("def")), bad()];
        assert_eq!(sent(6, items).await, (vec!["abc".into()], Some(ErrorKind::BadDigest)));
        let items = vec![Ok(Bytes::from("abc")), Ok(Bytes::new()), bad()];
        assert_eq!(sent(3, items).await, (vec![], Some(ErrorKind::BadDigest)));
    }

    #[tokio::test]
    async fn a_whole_body_passes() {
        let items = vec![Ok(Bytes::from("abc")), Ok(Bytes::new()), Ok(Bytes::from("def"))];
        assert_eq!(sent(6, items).await, (vec!["abc".into(), "def".into()], None));
    }

    #[tokio::test]
    async fn wrong_lengths_never_complete() {
        let long = vec![Ok(Bytes::from("abc")), Ok(Bytes::from("def"))];
        assert_eq!(sent(4, long).await, (vec![], Some(ErrorKind::IncompleteBody)));
        let short = vec![Ok(Bytes::from("abc"))];
        assert_eq!(sent(4, short).await, (vec![], Some(ErrorKind::IncompleteBody)));
    }
}
