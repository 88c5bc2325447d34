//! Requests that come again, because the worker that had taken them died before it answered.
//!
//! Invariant: what that worker had written of a request is taken here at most once, and only by a
//! request that the kernel says to have sent before.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::image::Done;
use super::record::Request;
use crate::nodes::NodeId;

/// The number that the kernel gives to a request, and keeps when it sends it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unique(u64);

impl Unique {
    /// `FUSE_UNIQUE_RESEND` of `linux/fuse.h`.
    const RESENT: u64 = 1 << 63;

    /// As the kernel wrote it.
    pub(crate) const fn new(unique: u64) -> Self {
        Self(unique)
    }

    /// The same for all times that it is sent; 0 for no request of the kernel.
    pub(crate) fn number(self) -> u64 {
        self.0 & !Self::RESENT
    }

    fn is_resent(self) -> bool {
        self.0 & Self::RESENT != 0
    }
}

/// What a worker before had done of its last requests: at most as many as a journal remembers.
#[derive(Debug, Default)]
pub(crate) struct Resent {
    done: Mutex<HashMap<u64, Vec<(Request, NodeId)>>>,
}

impl Resent {
    /// Of what a journal says.
    pub(crate) fn new(all: impl IntoIterator<Item = Done>) -> Self {
        let mut done: HashMap<u64, Vec<_>> = HashMap::new();
        for (request, id, unique) in all {
            done.entry(unique).or_default().push((request, id));
        }
        Self { done: Mutex::new(done) }
    }

    /// True when this has been accounted for already.
    pub(crate) fn take(&self, request: Request, id: NodeId, unique: Unique) -> bool {
        if !unique.is_resent() {
            return false;
        }
        let mut done = self.done.lock();
        let Some(parts) = done.get_mut(&unique.number()) else { return false };
        let found = parts.iter().position(|part| *part == (request, id));
        found.map(|at| parts.swap_remove(at)).is_some()
    }

    /// Lookups that were accounted for, and that the answer does not tell the kernel of this time.
    pub(crate) fn rest(&self, unique: Unique) -> Vec<NodeId> {
        if !unique.is_resent() {
            return Vec::new();
        }
        let rest = self.done.lock().remove(&unique.number()).unwrap_or_default();
        let lookups = rest.into_iter().filter(|(request, _)| *request == Request::Lookup);
        lookups.map(|(_, id)| id).collect()
    }
}
