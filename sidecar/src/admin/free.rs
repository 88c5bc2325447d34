//! What the file system of the cache has left, asked so that a dead one stops nobody.
//!
//! Invariant: asking takes at most [`ANSWER_WITHIN`], and while one question is not answered no other
//! one is asked: a probe of liveness runs on the same threads.

use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A local file system answers in microseconds.
const ANSWER_WITHIN: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
struct Known {
    asking: bool,
    last: Option<u64>,
}

/// The room below a directory.
#[derive(Debug)]
pub(crate) struct Free {
    path: PathBuf,
    known: Arc<Mutex<Known>>,
}

impl Free {
    pub(crate) fn below(path: &Path) -> Self {
        Self { path: path.to_owned(), known: Arc::default() }
    }

    /// Bytes that are left for this user, as far as is known; `None` where the file system does not
    /// answer.
    pub(crate) fn bytes(&self) -> Option<u64> {
        {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if known.asking {
                return known.last;
            }
            known.asking = true;
        }
        let (answer, answered) = sync_channel(1);
        let (path, known) = (self.path.clone(), Arc::clone(&self.known));
        // Not a thread of the runtime: it may never come back.
        let asked = std::thread::Builder::new().name("disk-free".into()).spawn(move || {
            let found = rustix::fs::statvfs(&path).ok();
            let free = found.and_then(|found| found.f_bavail.checked_mul(found.f_frsize));
            *known.lock().unwrap_or_else(PoisonError::into_inner) =
                Known { asking: false, last: free };
            // Who asked may have gone on.
            let _ = answer.send(free);
        });
        let started = asked.is_ok();
        let answered = answered.recv_timeout(if started { ANSWER_WITHIN } else { Duration::ZERO });
        let answered = answered.ok();
        if answered.is_none() {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            (known.last, known.asking) = (None, known.asking && started);
        }
        answered.flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_room_and_one_that_is_not_there_has_none() {
        let folder = tempfile::tempdir().unwrap();
        let free = Free::below(folder.path());
        assert!(free.bytes().is_some_and(|bytes| bytes > 0));
        assert_eq!(Free::below(&folder.path().join("no")).bytes(), None);
    }
}
