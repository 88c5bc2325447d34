//! One error type. Its kind says what a caller can do; its context says what happened.
//!
//! Invariant: every front end translates every kind by name, so that a new kind breaks their
//! builds until someone has decided what it means there. Text never carries a secret.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// The result of every fallible call on a store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// There is no such object. Look elsewhere.
    NotFound,
    /// There is no such bucket or container at the origin. Fix the configuration.
    NoSuchBucket,
    /// There is no such multi-part upload: never begun, completed or aborted. Begin a new one.
    NoSuchUpload,
    /// The object is not in the version that the caller named, or exists where it must not.
    PreconditionFailed,
    /// The range names no byte of the object. Ask for another.
    InvalidRange,
    /// The request contradicts itself or the protocol. Fix the request; nothing was changed.
    InvalidInput,
    /// This origin cannot express this key. Use another key or another origin.
    UnsupportedKey,
    /// This origin cannot do this at all. Do without.
    Unsupported,
    /// The body does not have the checksum that the caller sent. Send it again; nothing was changed.
    BadDigest,
    /// The body ended before its declared length or went past it. Send it again.
    IncompleteBody,
    /// The body or part is larger than the origin takes. Split it.
    TooLarge,
    /// A part other than the last is smaller than the origin takes. Use larger parts.
    PartTooSmall,
    /// A listed part was never uploaded, or has another `ETag`. Upload it.
    InvalidPart,
    /// The origin knows our credential and denies this operation. Grant the permission.
    PermissionDenied,
    /// The origin does not accept our credential. Renew or fix it.
    Unauthenticated,
    /// This bucket is served read-only. Write elsewhere.
    ReadOnly,
    /// Another object or operation is in the way (a file where a directory must be). Resolve it.
    Conflict,
    /// The origin asks for less. Try again later, slower.
    Throttled,
    /// The origin did not answer in time. Try again.
    Timeout,
    /// The origin cannot be reached, or failed and may recover. Try again later.
    Unavailable,
    /// The origin's bytes are not those that it promised. Do not use them.
    Corrupted,
    /// There is no room for the bytes. Free some.
    StorageFull,
    /// The caller gave up. Nothing to do.
    Cancelled,
    /// A defect of ours or an answer that no rule explains. Report it.
    Internal,
}

impl ErrorKind {
    /// True where the same call may succeed later without anyone changing anything.
    pub fn is_transient(self) -> bool {
        matches!(self, Self::Throttled | Self::Timeout | Self::Unavailable | Self::Corrupted)
    }

    /// True where the origin gave no answer about the object, so that what is cached may still be
    /// served under `stale_if_error`.
    pub fn is_outage(self) -> bool {
        matches!(self, Self::Throttled | Self::Timeout | Self::Unavailable)
    }

    /// A stable name in `snake_case` for logs and metric labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::NoSuchBucket => "no_such_bucket",
            Self::NoSuchUpload => "no_such_upload",
            Self::PreconditionFailed => "precondition_failed",
            Self::InvalidRange => "invalid_range",
            Self::InvalidInput => "invalid_input",
            Self::UnsupportedKey => "unsupported_key",
            Self::Unsupported => "unsupported",
            Self::BadDigest => "bad_digest",
            Self::IncompleteBody => "incomplete_body",
            Self::TooLarge => "too_large",
            Self::PartTooSmall => "part_too_small",
            Self::InvalidPart => "invalid_part",
            Self::PermissionDenied => "permission_denied",
            Self::Unauthenticated => "unauthenticated",
            Self::ReadOnly => "read_only",
            Self::Conflict => "conflict",
            Self::Throttled => "throttled",
            Self::Timeout => "timeout",
            Self::Unavailable => "unavailable",
            Self::Corrupted => "corrupted",
            Self::StorageFull => "storage_full",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An error of a store. Cheap to clone: callers that share one fetch share its error.
#[derive(Clone)]
pub struct Error {
    kind: ErrorKind,
    context: Arc<str>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error with its kind and what happened: lower case, nouns and values, no secret.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into().into(), source: None }
    }

    /// The same error with the error that caused it.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    /// The same error with `prefix: ` before its context.
    #[must_use]
    pub fn in_context(self, prefix: impl fmt::Display) -> Self {
        let context = format!("{prefix}: {}", self.context).into();
        Self { context, ..self }
    }

    /// What a caller can do.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What happened, without the sources.
    pub fn context(&self) -> &str {
        &self.context
    }

    /// Finds a store error anywhere in a chain of sources, so that an error raised inside a body
    /// survives its way through an HTTP client.
    pub fn find_in<'a>(mut error: &'a (dyn StdError + 'static)) -> Option<&'a Error> {
        loop {
            if let Some(found) = error.downcast_ref::<Error>() {
                return Some(found);
            }
            // `io::Error` hides its custom payload from `source()`.
            if let Some(found) = error
                .downcast_ref::<std::io::Error>()
                .and_then(std::io::Error::get_ref)
                .and_then(|inner| inner.downcast_ref::<Error>())
            {
                return Some(found);
            }
            error = error.source()?;
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.context)?;
        let mut source = self.source.as_deref().map(|s| s as &(dyn StdError + 'static));
        while let Some(error) = source {
            write!(f, ": {error}")?;
            // A store error prints its own sources.
            source = if error.is::<Error>() { None } else { error.source() };
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {self}", self.kind)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|s| s as &(dyn StdError + 'static))
    }
}

impl From<crate::InvalidName> for Error {
    fn from(error: crate::InvalidName) -> Self {
        Self::new(ErrorKind::InvalidInput, error.to_string())
    }
}

impl From<crate::Unsatisfiable> for Error {
    fn from(error: crate::Unsatisfiable) -> Self {
        Self::new(ErrorKind::InvalidRange, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_print_once_and_can_be_searched() {
        let inner = Error::new(ErrorKind::BadDigest, "crc32 differs");
        let io = std::io::Error::other(inner);
        let outer = Error::new(ErrorKind::Unavailable, "put failed").with_source(io);
        assert_eq!(outer.to_string(), "put failed: crc32 differs");
        let found = Error::find_in(outer.source().unwrap()).unwrap();
        assert_eq!(found.kind(), ErrorKind::BadDigest);
    }
}
