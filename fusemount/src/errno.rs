//! The errno of every kind of error, and the failure that operations return.
//!
//! Invariant: every [`ErrorKind`] is matched by name, so that a new kind does not compile until
//! someone has decided what a POSIX program should see.

use rustix::io::Errno;
use store::{Error, ErrorKind};

/// Why an operation failed: what the caller sees, and what happened for the log.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    /// What the caller sees.
    pub(crate) errno: Errno,
    /// What the store said, where it was the store.
    pub(crate) cause: Option<Error>,
}

/// The result of an operation of the file system.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// What a program sees for each kind.
///
/// Programs know few errnos: EIO where a retry or an operator helps, and a specific one only where
/// the caller can do something else because of it.
pub(crate) fn errno_of(kind: ErrorKind) -> Errno {
    match kind {
        ErrorKind::NotFound => Errno::NOENT,
        // Not ENOENT: an absent bucket is a mistake in the configuration, not an absent file.
        ErrorKind::NoSuchBucket => Errno::NXIO,
        ErrorKind::PreconditionFailed => Errno::STALE,
        ErrorKind::InvalidInput | ErrorKind::UnsupportedKey => Errno::INVAL,
        ErrorKind::Unsupported => Errno::OPNOTSUPP,
        ErrorKind::TooLarge => Errno::FBIG,
        ErrorKind::PermissionDenied | ErrorKind::Unauthenticated => Errno::ACCESS,
        ErrorKind::ReadOnly => Errno::ROFS,
        ErrorKind::Conflict => Errno::BUSY,
        ErrorKind::Timeout => Errno::TIMEDOUT,
        ErrorKind::StorageFull => Errno::NOSPC,
        ErrorKind::Cancelled => Errno::INTR,
        // EAGAIN would send programs into polling a regular file.
        ErrorKind::Throttled
        | ErrorKind::Unavailable
        | ErrorKind::InvalidRange
        | ErrorKind::NoSuchUpload
        | ErrorKind::BadDigest
        | ErrorKind::IncompleteBody
        | ErrorKind::PartTooSmall
        | ErrorKind::InvalidPart
        | ErrorKind::Corrupted
        | ErrorKind::Internal => Errno::IO,
    }
}

/// The name of an errno as a metric label; the few that this crate returns.
pub(crate) fn errno_name(errno: Errno) -> &'static str {
    match errno {
        Errno::NOENT => "ENOENT",
        Errno::NXIO => "ENXIO",
        Errno::STALE => "ESTALE",
        Errno::INVAL => "EINVAL",
        Errno::OPNOTSUPP => "EOPNOTSUPP",
        Errno::FBIG => "EFBIG",
        Errno::ACCESS => "EACCES",
        Errno::ROFS => "EROFS",
        Errno::BUSY => "EBUSY",
        Errno::TIMEDOUT => "ETIMEDOUT",
        Errno::NOSPC => "ENOSPC",
        Errno::INTR => "EINTR",
        Errno::IO => "EIO",
        Errno::NOTDIR => "ENOTDIR",
        Errno::ISDIR => "EISDIR",
        Errno::NAMETOOLONG => "ENAMETOOLONG",
        Errno::NODATA => "ENODATA",
        Errno::RANGE => "ERANGE",
        _ => "other",
    }
}

impl Failure {
    /// True for answers that are part of a program's normal life, which nobody need be told of.
    pub(crate) fn is_ordinary(&self) -> bool {
        !matches!(self.errno, Errno::IO | Errno::TIMEDOUT | Errno::NXIO | Errno::ACCESS)
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self { errno, cause: None }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { errno: errno_of(error.kind()), cause: Some(error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_estale_and_an_outage_is_not_silent() {
        let stale = Failure::from(Error::new(ErrorKind::PreconditionFailed, "changed"));
        assert_eq!(stale.errno, Errno::STALE);
        assert!(stale.is_ordinary());
        let down = Failure::from(Error::new(ErrorKind::Unavailable, "down"));
        assert_eq!(errno_name(down.errno), "EIO");
        assert!(!down.is_ordinary());
    }
}
