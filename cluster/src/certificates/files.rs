//! A certificate that somebody else makes, as two files.
//!
//! Invariant: both files are of one version. A Secret that is mounted is replaced by one rename,
//! between our two reads at worst, so files that do not fit are read again before that is told.

use std::path::PathBuf;

use super::Pair;

/// Attempts at a pair that fits, in one look.
const ATTEMPTS: usize = 3;

/// Where the files are.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    /// PEM, the leaf first.
    pub(crate) certificate: PathBuf,
    /// PEM.
    pub(crate) key: PathBuf,
}

impl Files {
    /// Reads both. The error names the file.
    pub(crate) fn read(&self) -> Result<Pair, String> {
        let file = |path: &PathBuf| {
            std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
        };
        let mut outcome = Err(String::new());
        for _ in 0..ATTEMPTS {
            outcome = Pair::from_pem(&file(&self.certificate)?, &file(&self.key)?)
                .map_err(|what| format!("{}: {what}", self.certificate.display()));
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }
}
