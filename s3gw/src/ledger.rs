//! What clients are writing, and the multi-part uploads that they began here.
//!
//! Invariant: a write is in it from before its operation begins until its answer was sent or its
//! connection is gone; an upload, until this endpoint completed or aborted it. At most
//! [`MOST_UPLOADS`] uploads are remembered. It changes nothing at an origin.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::operation::Operation;

/// Far more than a trainer leaves open; what is beyond is not remembered, and not listed at the end.
const MOST_UPLOADS: usize = 4096;

/// Something that a client began and that was not finished when the endpoint ended.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unfinished {
    /// A write whose client got no whole answer.
    Write {
        /// The S3 operation.
        operation: &'static str,
        /// Name of the bucket.
        bucket: String,
        /// The key.
        key: String,
    },
    /// A multi-part upload that nobody has completed or aborted through this endpoint. Its parts
    /// are at the origin.
    Upload {
        /// Name of the bucket.
        bucket: String,
        /// The key that it would write.
        key: String,
        /// Its id, which outlives this process.
        upload: String,
    },
}

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { operation, bucket, key } => {
                write!(f, "cut off: {operation} of s3://{bucket}/{}", key.escape_debug())
            }
            Self::Upload { bucket, key, upload } => write!(
                f,
                "multi-part upload neither completed nor aborted: s3://{bucket}/{}, id {}",
                key.escape_debug(),
                upload.escape_debug()
            ),
        }
    }
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    /// As many as there are connections at most.
    writes: BTreeMap<u64, Unfinished>,
    uploads: BTreeSet<Unfinished>,
}

/// The list. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger(Arc<Mutex<Open>>);

impl Ledger {
    /// Notes a request that writes until the entry is dropped; `None` for one that does not.
    pub(crate) fn write(&self, operation: Operation, bucket: &str, key: &str) -> Option<Entry> {
        let writes = matches!(
            operation,
            Operation::PutObject
                | Operation::CopyObject
                | Operation::UploadPart
                | Operation::UploadPartCopy
                | Operation::CompleteMultipartUpload
                | Operation::DeleteObject
                | Operation::DeleteObjects
        );
        if !writes {
            return None;
        }
        let (bucket, key) = (bucket.to_owned(), key.to_owned());
        let write = Unfinished::Write { operation: operation.name(), bucket, key };
        let mut open = self.0.lock();
        open.next += 1;
        let number = open.next;
        open.writes.insert(number, write);
        Some(Entry { ledger: self.clone(), number })
    }

    /// An upload was begun.
    pub(crate) fn began(&self, bucket: &str, key: &str, upload: &str) {
        let mut open = self.0.lock();
        if open.uploads.len() < MOST_UPLOADS {
            open.uploads.insert(upload_of(bucket, key, upload));
        }
    }

    /// An upload was completed or aborted.
    pub(crate) fn ended(&self, bucket: &str, key: &str, upload: &str) {
        self.0.lock().uploads.remove(&upload_of(bucket, key, upload));
    }

    /// Everything that is open now, writes first.
    pub(crate) fn unfinished(&self) -> Vec<Unfinished> {
        let open = self.0.lock();
        open.writes.values().chain(&open.uploads).cloned().collect()
    }
}

fn upload_of(bucket: &str, key: &str, upload: &str) -> Unfinished {
    Unfinished::Upload { bucket: bucket.to_owned(), key: key.to_owned(), upload: upload.to_owned() }
}

/// A write that goes on.
#[derive(Debug)]
pub(crate) struct Entry {
    ledger: Ledger,
    number: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.ledger.0.lock().writes.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_is_listed_until_it_ends() {
        let ledger = Ledger::default();
        assert!(ledger.write(Operation::GetObject, "b", "k").is_none());
        let put = ledger.write(Operation::PutObject, "b", "new\nline").unwrap();
        ledger.began("b", "k", "7");
        ledger.began("b", "k", "8");
        ledger.ended("b", "k", "7");
        let said: Vec<String> = ledger.unfinished().iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "cut off: PutObject of s3://b/new\\nline",
                "multi-part upload neither completed nor aborted: s3://b/k, id 8",
            ]
        );
        drop(put);
        assert_eq!(ledger.unfinished().len(), 1);
    }

    #[test]
    fn uploads_that_nobody_ends_are_bounded() {
        let ledger = Ledger::default();
        for number in 0..MOST_UPLOADS + 10 {
            ledger.began("b", "k", &number.to_string());
        }
        assert_eq!(ledger.unfinished().len(), MOST_UPLOADS);
    }
}
