//! Where whole versions are kept: one plain file each, at true offsets.
//!
//! Invariant: a published file holds exactly the bytes of one version and never changes; what is wrong
//! with it is said beside it, and another file takes its place.

use std::fs::File;
use std::sync::Arc;

use store::CopyFate;

/// A complete version that lies on a local disk, open for reading.
#[derive(Debug)]
pub(crate) struct WholeFile {
    /// Its position means nothing: it is read at offsets.
    pub(crate) file: Arc<File>,
    /// Bytes of the version, and of the file.
    pub(crate) size: u64,
    /// What becomes of it. An evicted file still reads right; a bad one must not be read any more.
    pub(crate) fate: Arc<CopyFate>,
}
