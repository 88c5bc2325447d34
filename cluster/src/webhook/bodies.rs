//! Receiving bodies in bounded memory.
//!
//! Invariant: what a sender announces reserves nothing, only what it has sent does; and who sends much,
//! or slowly, is waited for by nobody who sends less. The first part of each body needs no room, since
//! connections are bounded; for more it takes one of few places, and of fewer for a lot more. It refuses
//! a body above [`MAX_BYTES`].

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body;
use tokio::sync::Semaphore;

/// The API server takes no object above 3 MiB; the review around it is small.
pub(super) const MAX_BYTES: usize = 4 << 20;
/// As much as any body may have without a place; the review of a pod has a third of it.
const FREE_BYTES: usize = 64 << 10;
/// As much as a body may have with a place among the middling.
const MIDDLING_BYTES: usize = 256 << 10;
/// 4 MiB in all.
const MIDDLING: usize = 16;
/// 8 MiB in all.
const LARGE: usize = 2;

/// Why there is no body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It is larger than [`MAX_BYTES`].
    TooLarge,
    /// The connection ended before it did.
    EndedEarly,
}

/// The places for bodies that are not small.
#[derive(Debug)]
pub(super) struct Bodies {
    middling: Semaphore,
    large: Semaphore,
}

impl Default for Bodies {
    fn default() -> Self {
        Self { middling: Semaphore::new(MIDDLING), large: Semaphore::new(LARGE) }
    }
}

impl Bodies {
    /// Receives a body; it takes as long as its sender does, and its turn.
    pub(super) async fn receive<B>(&self, mut body: B) -> Result<Bytes, Failure>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        if body.size_hint().lower() > MAX_BYTES as u64 {
            return Err(Failure::TooLarge);
        }
        let mut whole = BytesMut::new();
        // Places are taken in one order, and who has a large one waits for no other.
        let (mut middling, mut large) = (None, None);
        while let Some(frame) = body.frame().await {
            let Ok(part) = frame.map_err(|_| Failure::EndedEarly)?.into_data() else { continue };
            let length = whole.len() + part.len();
            if length > MAX_BYTES {
                return Err(Failure::TooLarge);
            }
            if length > FREE_BYTES && middling.is_none() {
                middling = Some(self.middling.acquire().await.expect("never closed"));
            }
            if length > MIDDLING_BYTES && large.is_none() {
                large = Some(self.large.acquire().await.expect("never closed"));
            }
            whole.extend_from_slice(&part);
        }
        Ok(whole.freeze())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::time::Duration;

    use http_body_util::{Full, StreamBody};
    use hyper::body::Frame;
    use tokio::sync::mpsc;
    use tonic::codegen::tokio_stream::wrappers::ReceiverStream;

    use super::*;

    fn full(length: usize) -> Full<Bytes> {
        Full::new(Bytes::from(vec![b'x'; length]))
    }

    #[tokio::test]
    async fn senders_of_much_keep_nobody_waiting_who_sends_less() {
        let bodies = Arc::new(Bodies::default());
        let begin = |length: usize| {
            let (sender, parts) = mpsc::channel(1);
            let part = Frame::data(Bytes::from(vec![b'x'; length]));
            sender.try_send(Ok::<_, Infallible>(part)).unwrap();
            let (of, body) = (Arc::clone(&bodies), StreamBody::new(ReceiverStream::new(parts)));
            (sender, tokio::spawn(async move { of.receive(body).await }))
        };
        let mut sent: Vec<_> = (0..=LARGE).map(|_| begin(MIDDLING_BYTES + 1)).collect();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let limit = Duration::from_secs(5);
        for length in [0, FREE_BYTES, MIDDLING_BYTES] {
            let whole = tokio::time::timeout(limit, bodies.receive(full(length))).await;
            assert_eq!(whole.unwrap().unwrap().len(), length);
        }
        sent.extend((0..MIDDLING).map(|_| begin(FREE_BYTES + 1)));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(bodies.middling.available_permits(), 0);
        let whole = tokio::time::timeout(limit, bodies.receive(full(FREE_BYTES))).await;
        assert_eq!(whole.unwrap().unwrap().len(), FREE_BYTES);
        // All of them end, each in its turn.
        for (sender, receiving) in sent {
            drop(sender);
            let length = tokio::time::timeout(limit, receiving).await.unwrap().unwrap();
            assert!(length.unwrap().len() > FREE_BYTES);
        }
    }

    #[tokio::test]
    async fn what_is_too_large_is_refused() {
        let bodies = Bodies::default();
        assert_eq!(bodies.receive(full(MAX_BYTES + 1)).await, Err(Failure::TooLarge));
        assert_eq!(bodies.receive(full(MAX_BYTES)).await.unwrap().len(), MAX_BYTES);
    }
}
