//! What every operation of one mount uses: the file system, how files look, and what is counted.
//!
//! Invariant: an operation that failed for a reason that an operator should know is logged, at most
//! once in [`WARN_EVERY`], and always counted. It answers nothing itself.

use std::time::Duration;

use fuser::{FileAttr, FileType, INodeNo};
use parking_lot::Mutex;
use rustix::io::Errno;
use tokio::time::Instant;

use super::STATFS_BLOCK_BYTES;
use super::seat::Asker;
use crate::Metrics;
use crate::errno::{Failure, errno_name};
use crate::fs::{Attributes, FileSystem};

/// `st_blksize`: programs such as `cp` read in pieces of this size, which is one request.
const PREFERRED_READ_BYTES: u32 = 1 << 20;

/// `st_blocks` counts these.
const BLOCK_BYTES: u64 = 512;

/// At most one warning in this time; an outage fails thousands of operations in a second.
const WARN_EVERY: Duration = Duration::from_secs(1);

/// How files look besides what the file system says.
#[derive(Debug, Clone, Copy)]
pub(super) struct View {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) file_mode: u16,
    pub(super) dir_mode: u16,
    /// How long the kernel may believe an answer.
    pub(super) ttl: Duration,
}

/// The warnings of the last moment.
#[derive(Debug, Default)]
pub(super) struct Warnings {
    pub(super) last: Option<Instant>,
    pub(super) suppressed: u64,
}

/// What every operation of one mount uses.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) fs: FileSystem,
    pub(super) view: View,
    pub(super) metrics: Metrics,
    pub(super) timeout: Duration,
    pub(super) debug: bool,
    pub(super) warnings: Mutex<Warnings>,
    pub(super) asker: Asker,
}

impl Shared {
    pub(super) fn succeeded(&self, operation: &'static str, began: Instant) {
        self.metrics.answered(operation, began.elapsed());
        if self.debug {
            tracing::debug!(operation, seconds = began.elapsed().as_secs_f64(), "fuse operation");
        }
    }

    pub(super) fn failed(&self, operation: &'static str, began: Instant, failure: &Failure) {
        let errno = errno_name(failure.errno);
        self.metrics.answered(operation, began.elapsed());
        self.metrics.failed(operation, errno);
        if failure.errno == Errno::INTR {
            self.metrics.interrupted.inc();
        }
        let cause = failure.cause.as_ref().map_or_else(String::new, ToString::to_string);
        if failure.is_ordinary() {
            if self.debug {
                tracing::debug!(operation, errno, cause, "fuse operation refused");
            }
            return;
        }
        let suppressed = {
            let mut warnings = self.warnings.lock();
            if warnings.last.is_some_and(|last| last.elapsed() < WARN_EVERY) {
                warnings.suppressed += 1;
                return;
            }
            warnings.last = Some(Instant::now());
            std::mem::take(&mut warnings.suppressed)
        };
        tracing::warn!(operation, errno, cause, suppressed, "fuse operation failed");
    }

    pub(super) fn attr(&self, attributes: &Attributes) -> FileAttr {
        let view = &self.view;
        let (kind, perm, size) = if attributes.directory {
            (FileType::Directory, view.dir_mode, u64::from(STATFS_BLOCK_BYTES))
        } else {
            (FileType::RegularFile, view.file_mode, attributes.size)
        };
        FileAttr {
            ino: INodeNo(attributes.id.0),
            size,
            blocks: size.div_ceil(BLOCK_BYTES),
            atime: attributes.modified,
            mtime: attributes.modified,
            ctime: attributes.modified,
            crtime: attributes.modified,
            kind,
            perm,
            // For a directory: the number of subdirectories is not known.
            nlink: 1,
            uid: view.uid,
            gid: view.gid,
            rdev: 0,
            blksize: PREFERRED_READ_BYTES,
            flags: 0,
        }
    }

    pub(super) fn count_nodes(&self) {
        self.metrics.nodes.set(self.fs.node_count().try_into().unwrap_or(i64::MAX));
    }
}
