//! What tests of several modules need.
//!
//! Invariant: what is made here ends with the test. Refuses to know the cache.

use std::path::{Path, PathBuf};

/// A mount that ends with the test.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    /// `None` where this process may not mount (tests run as root in CI).
    pub(crate) fn new(args: &[&str], at: &Path) -> Option<Self> {
        let done = std::process::Command::new("mount").args(args).arg(at).output().ok()?;
        if !done.status.success() {
            println!("cannot mount here: {}", String::from_utf8_lossy(&done.stderr));
        }
        done.status.success().then(|| Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
