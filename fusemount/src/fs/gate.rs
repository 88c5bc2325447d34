//! The one gate that whatever would change an origin through the mount has to pass.
//!
//! Invariant: it is closed until a worker serves the mount, and for good from the moment that the
//! worker is told to end: kubelet deletes what it finds in a pod's volumes when the pod's containers
//! are gone, and a mount that is still there must not pass that on. It never decides what a mutation
//! does, only whether there may be one.

use std::sync::atomic::{AtomicU8, Ordering};

use rustix::io::Errno;

use crate::Metrics;
use crate::errno::Result;

/// Everything that FUSE can ask for and that is no reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutation {
    SetAttr,
    Mknod,
    Mkdir,
    Unlink,
    Rmdir,
    Symlink,
    Rename,
    Link,
    OpenToWrite,
    Write,
    SetXattr,
    RemoveXattr,
    Create,
    Fallocate,
    CopyFileRange,
}

impl Mutation {
    /// Its name in metrics, as other operations are named there.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::SetAttr => "setattr",
            Self::Mknod => "mknod",
            Self::Mkdir => "mkdir",
            Self::Unlink => "unlink",
            Self::Rmdir => "rmdir",
            Self::Symlink => "symlink",
            Self::Rename => "rename",
            Self::Link => "link",
            Self::OpenToWrite => "open",
            Self::Write => "write",
            Self::SetXattr => "setxattr",
            Self::RemoveXattr => "removexattr",
            Self::Create => "create",
            Self::Fallocate => "fallocate",
            Self::CopyFileRange => "copy_file_range",
        }
    }
}

/// Proof that a mutation has passed.
#[derive(Debug)]
pub(crate) struct Passed(());

/// No worker serves the mount yet.
const WAITING: u8 = 0;
/// Mutations may pass.
const OPEN: u8 = 1;
/// None passes any more.
const CLOSED: u8 = 2;

/// The gate of one mount.
#[derive(Debug)]
pub(crate) struct Gate {
    state: AtomicU8,
    metrics: Metrics,
}

impl Gate {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self { state: AtomicU8::new(WAITING), metrics }
    }

    /// A worker serves the mount. A gate that was closed stays closed.
    pub(crate) fn open(&self) {
        let _ = self.state.compare_exchange(WAITING, OPEN, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Nothing passes any more.
    pub(crate) fn close(&self) {
        self.state.store(CLOSED, Ordering::SeqCst);
    }

    /// Lets a mutation pass, or refuses it with EROFS; counted either way.
    pub(crate) fn pass(&self, mutation: Mutation) -> Result<Passed> {
        let open = self.state.load(Ordering::SeqCst) == OPEN;
        self.metrics.mutation(mutation.name(), open);
        if open { Ok(Passed(())) } else { Err(Errno::ROFS.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_opens_once_and_closes_for_good() {
        let gate = Gate::new(Metrics::register(&prometheus::Registry::new()).unwrap());
        let passes = || gate.pass(Mutation::Unlink).is_ok();
        assert!(!passes(), "before a worker serves");
        gate.open();
        assert!(passes());
        gate.close();
        assert!(!passes());
        gate.open();
        assert!(!passes(), "closed is closed");
        let early = Gate::new(Metrics::register(&prometheus::Registry::new()).unwrap());
        early.close();
        early.open();
        assert!(early.pass(Mutation::Write).is_err());
    }
}
