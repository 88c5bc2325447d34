//! A request's body that may never be read.
//!
//! Invariant: when an answer was decided without it, the rest is read and thrown away, up to a
//! bound. Closing a socket with unread bytes resets the connection, and a client that is still
//! sending would see the reset instead of the answer. A client that waits for `100 Continue` is
//! never asked for bytes that nobody wants.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};

/// Most bytes to throw away; larger bodies are cut. Clients ask with `Expect` before they send more.
const MAX_BYTES: usize = 8 << 20;

/// Longest time to spend on it.
const MAX_TIME: Duration = Duration::from_secs(5);

/// A body, and whether its rest may be read for nothing.
pub(crate) struct Unread {
    incoming: Option<Incoming>,
    awaited: bool,
}

impl Unread {
    /// `awaited` is true when the client sends nothing before it is told to.
    pub(crate) fn new(incoming: Incoming, awaited: bool) -> Self {
        Self { incoming: Some(incoming), awaited }
    }

    /// The next frame.
    pub(crate) async fn frame(&mut self) -> Option<Result<Frame<bytes::Bytes>, hyper::Error>> {
        // From here on the client has been told to send.
        self.awaited = false;
        let frame = self.incoming.as_mut()?.frame().await;
        if !matches!(frame, Some(Ok(_))) {
            self.incoming = None;
        }
        frame
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let Some(mut rest) = self.incoming.take() else { return };
        let over = http_body::Body::is_end_stream(&rest);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.awaited || over {
            return;
        }
        runtime.spawn(async move {
            let drain = async {
                let mut seen = 0;
                while let Some(Ok(frame)) = rest.frame().await {
                    seen += frame.data_ref().map_or(0, bytes::Bytes::len);
                    if seen > MAX_BYTES {
                        return;
                    }
                }
            };
            // What is not through by then is cut.
            let _ = tokio::time::timeout(MAX_TIME, drain).await;
        });
    }
}
