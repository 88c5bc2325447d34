//! Who gives the kernel the files that reads go to past this process.
//!
//! Invariant: as long as a node's registration is kept, every registration of that node for that
//! file is the same number, and one for another file ends it: the kernel refuses two for one inode
//! (EIO). It does not decide which file serves which node, nor for how long.

use std::fmt::Debug;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use parking_lot::Mutex;

use crate::holder::device;
use crate::holder::registrations::Registrations;

/// Registers files with the kernel, so that an `open` can be answered with them.
pub(crate) trait Registrar: Debug + Send + Sync {
    /// The number with which opens of a node are answered. A node that is registered for
    /// this file keeps its number; one for another file is ended. It may wait, at most about a
    /// second.
    ///
    /// Errors: EPERM without the privilege or without passthrough in this session; ELOOP or EINVAL
    /// for a file on a stacked file system; ENOSPC when too many are registered; ETIMEDOUT and
    /// ENOTCONN when who registers does not answer.
    fn register(&self, node: u64, file: BorrowedFd<'_>) -> io::Result<u32>;

    /// Ends a registration. Opens that were answered with it go on; the next registration of its
    /// node gets a new number, which the kernel refuses while such an open is left. It may wait, at most
    /// about a second.
    ///
    /// Errors: ETIMEDOUT and ENOTCONN when who registers does not answer; the registration may be
    /// left then. One that is not there is no error.
    fn release(&self, backing: u32) -> io::Result<()>;

    /// Registrations that an earlier worker left on this mount, as (node, number). Each is kept
    /// until it is released.
    fn inherited(&self) -> Vec<(u64, u32)>;

    /// True where an earlier worker has served this mount, so that programs may have files open.
    fn has_begun(&self) -> bool {
        false
    }

    /// Why nothing can be registered here, in words for a person; `None` where it is worth trying.
    fn unavailable(&self) -> Option<&str>;
}

/// Registers by itself, which takes `CAP_SYS_ADMIN`.
#[derive(Debug)]
pub(crate) struct Direct {
    device: OwnedFd,
    kept: Mutex<Registrations>,
}

impl Direct {
    /// Registers through a descriptor of the mount's own connection.
    pub(crate) fn new(device: OwnedFd) -> Self {
        Self { device, kept: Mutex::default() }
    }
}

impl Registrar for Direct {
    fn register(&self, node: u64, file: BorrowedFd<'_>) -> io::Result<u32> {
        self.kept.lock().register(node, self.device.as_fd(), file)
    }

    fn release(&self, backing: u32) -> io::Result<()> {
        let mut kept = self.kept.lock();
        if !kept.release(backing) {
            return Ok(());
        }
        // Under the lock, because the kernel may give the number out again at once.
        if let Err(error) = device::close_backing(self.device.as_fd(), backing) {
            tracing::debug!(%error, backing, "a backing file was not released");
        }
        Ok(())
    }

    fn inherited(&self) -> Vec<(u64, u32)> {
        Vec::new()
    }

    fn unavailable(&self) -> Option<&str> {
        None
    }
}

/// Registers nothing.
#[derive(Debug)]
pub(crate) struct Unavailable {
    reason: String,
}

impl Unavailable {
    /// The reason is for a person: what is missing, and where to get it.
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into() }
    }
}

impl Registrar for Unavailable {
    fn register(&self, _: u64, _: BorrowedFd<'_>) -> io::Result<u32> {
        Err(io::Error::from(rustix::io::Errno::PERM))
    }

    fn release(&self, _: u32) -> io::Result<()> {
        Ok(())
    }

    fn inherited(&self) -> Vec<(u64, u32)> {
        Vec::new()
    }

    fn unavailable(&self) -> Option<&str> {
        Some(&self.reason)
    }
}
