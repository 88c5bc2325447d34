//! Whole versions that lie near as plain files, for those who can hand a file on.
//!
//! Invariant: a copy holds exactly the bytes of one version at their offsets, and never changes: what
//! is wrong with a copy is said beside it, and another copy takes its place. Nothing here opens files.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// What has become of a copy since it was handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyState {
    /// It may be handed on.
    Good,
    /// It was evicted: what is open goes on reading it, and holds its space until it is closed.
    Evicted,
    /// Its bytes were found to be wrong: nobody may be given it any more.
    Bad,
}

/// The state of a copy, shared by all who hold it. Only ever moves away from [`CopyState::Good`].
#[derive(Debug, Default)]
pub struct CopyFate(AtomicU8);

impl CopyFate {
    /// What has become of the copy.
    pub fn state(&self) -> CopyState {
        match self.0.load(Ordering::Acquire) {
            0 => CopyState::Good,
            1 => CopyState::Evicted,
            _ => CopyState::Bad,
        }
    }

    /// The copy was evicted. A bad one stays bad.
    pub fn evict(&self) {
        self.0.fetch_max(1, Ordering::AcqRel);
    }

    /// The copy is bad, also where it was evicted before.
    pub fn condemn(&self) {
        self.0.fetch_max(2, Ordering::AcqRel);
    }
}

/// A whole version as a local file.
#[derive(Debug, Clone)]
pub struct LocalCopy {
    /// Open for reading, on a file system of its own kind (not on FUSE). Its position means nothing.
    pub file: Arc<File>,
    /// What becomes of it.
    pub fate: Arc<CopyFate>,
}

/// Why there is no copy to hand out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NoCopy {
    /// The cache keeps no files: no disk tier, or it is off.
    Off,
    /// Objects of this size are kept otherwise.
    Small,
    /// Not all of it is here (yet).
    Incomplete,
    /// It is here, and has to be verified before it is handed out.
    Suspect,
}

impl NoCopy {
    /// Every reason, for those who count them.
    pub const ALL: [Self; 4] = [Self::Off, Self::Small, Self::Incomplete, Self::Suspect];

    /// A word for a metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "no_file_tier",
            Self::Small => "small",
            Self::Incomplete => "incomplete",
            Self::Suspect => "suspect",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fate_only_gets_worse() {
        let fate = CopyFate::default();
        assert_eq!(fate.state(), CopyState::Good);
        fate.evict();
        assert_eq!(fate.state(), CopyState::Evicted);
        fate.condemn();
        fate.evict();
        assert_eq!(fate.state(), CopyState::Bad);
    }
}
