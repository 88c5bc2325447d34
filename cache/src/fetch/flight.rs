//! A result that many wait for.
//!
//! Invariant: it lands at most once; when the task that would land it is gone, waiters hear so.

use tokio::sync::watch;

/// The side that waits. Cheap to clone; leaving costs the others nothing.
#[derive(Debug, Clone)]
pub(crate) struct Flight<T>(watch::Receiver<Option<T>>);

/// The side that lands.
#[derive(Debug)]
pub(crate) struct Landing<T>(watch::Sender<Option<T>>);

impl<T: Clone> Flight<T> {
    pub(crate) fn take_off() -> (Landing<T>, Self) {
        let (tx, rx) = watch::channel(None);
        (Landing(tx), Self(rx))
    }

    /// The result; `None` when the task that would bring it is gone.
    pub(crate) async fn wait(mut self) -> Option<T> {
        match self.0.wait_for(Option::is_some).await {
            Ok(landed) => landed.clone(),
            Err(_) => None,
        }
    }

    /// True once there is nothing to wait for any more.
    pub(crate) fn has_landed(&self) -> bool {
        self.0.has_changed().is_err() || self.0.borrow().is_some()
    }
}

impl<T> Landing<T> {
    pub(crate) fn land(self, result: T) {
        self.0.send_replace(Some(result));
    }
}
