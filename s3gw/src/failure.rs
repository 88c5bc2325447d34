//! Errors as S3 clients know them: a code, a status and a sentence.
//!
//! Invariant: every [`ErrorKind`] is translated by name, so that a new kind breaks this build
//! until someone has decided what a client should see. It refuses to pass on sources of errors:
//! they are logged here and stay here.

use http::header::{HeaderName, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use s3s::S3ErrorCode;
use s3s::xml::{SerResult, Serialize, SerializeContent, Serializer};
use store::{Error, ErrorKind};

/// What a client gets instead of a result. Boxed: results are moved far more often than they fail.
#[derive(Debug, Clone)]
pub(crate) struct Failure(Box<Details>);

#[derive(Debug, Clone)]
struct Details {
    code: S3ErrorCode,
    status: StatusCode,
    message: String,
    headers: HeaderMap,
}

/// One second: the SDKs back off by themselves, this only keeps others from spinning.
const RETRY_SOON: HeaderValue = HeaderValue::from_static("1");

/// The result of everything between a request and its answer.
pub(crate) type Outcome<T> = Result<T, Failure>;

impl Failure {
    /// A failure with the status that S3 gives the code.
    pub(crate) fn new(code: S3ErrorCode, message: impl Into<String>) -> Self {
        let status = code.status_code().unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self(Box::new(Details { code, status, message: message.into(), headers: HeaderMap::new() }))
    }

    /// A failure with a status of its own.
    pub(crate) fn with_status(
        status: StatusCode,
        code: S3ErrorCode,
        message: impl Into<String>,
    ) -> Self {
        let mut failure = Self::new(code, message);
        failure.0.status = status;
        failure
    }

    /// The answer to a condition that says "you have it already": headers and no body.
    pub(crate) fn not_modified(headers: HeaderMap) -> Self {
        let mut failure = Self::new(S3ErrorCode::NotModified, "not modified");
        failure.0.headers = headers;
        failure
    }

    /// What is not served, by the name that S3 gives it.
    pub(crate) fn not_implemented(what: impl AsRef<str>) -> Self {
        let what = what.as_ref();
        let message = format!("{what} is not served by this endpoint");
        Self::new(S3ErrorCode::NotImplemented, message)
    }

    /// A header, query parameter or document that cannot be understood.
    pub(crate) fn invalid_argument(message: impl Into<String>) -> Self {
        Self::new(S3ErrorCode::InvalidArgument, message)
    }

    /// A request that contradicts itself.
    pub(crate) fn invalid_request(message: impl Into<String>) -> Self {
        Self::new(S3ErrorCode::InvalidRequest, message)
    }

    /// An object that keeps changing while it is read for a client that made no conditions.
    pub(crate) fn changing() -> Self {
        Self::new(S3ErrorCode::ServiceUnavailable, "the object is changing; try again")
            .header(RETRY_AFTER, RETRY_SOON)
    }

    /// The same failure with one more header.
    #[must_use]
    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.insert(name, value);
        self
    }

    /// The same failure as the client's fault, where S3's table has no status for the code.
    #[must_use]
    pub(crate) fn into_bad_request(mut self) -> Self {
        self.0.status = StatusCode::BAD_REQUEST;
        self
    }

    /// The HTTP status.
    pub(crate) fn status(&self) -> StatusCode {
        self.0.status
    }

    /// The S3 code.
    pub(crate) fn code(&self) -> &S3ErrorCode {
        &self.0.code
    }

    /// The sentence.
    pub(crate) fn message(&self) -> &str {
        &self.0.message
    }

    /// Headers that go with it.
    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.0.headers
    }

    /// The `Error` document.
    pub(crate) fn document<'a>(&'a self, resource: &'a str, request: &'a str) -> ErrorDocument<'a> {
        ErrorDocument { failure: self, resource, request }
    }
}

/// The code and status of a kind. 4xx where the client must change something, 5xx where trying
/// again may help: the SDKs retry on exactly that.
fn translate(kind: ErrorKind) -> (S3ErrorCode, StatusCode) {
    use S3ErrorCode as Code;
    let code = match kind {
        ErrorKind::NotFound => Code::NoSuchKey,
        ErrorKind::NoSuchBucket => Code::NoSuchBucket,
        ErrorKind::NoSuchUpload => Code::NoSuchUpload,
        ErrorKind::PreconditionFailed => Code::PreconditionFailed,
        ErrorKind::InvalidRange => Code::InvalidRange,
        ErrorKind::InvalidInput | ErrorKind::UnsupportedKey => Code::InvalidArgument,
        ErrorKind::Unsupported => Code::NotImplemented,
        ErrorKind::BadDigest => Code::BadDigest,
        ErrorKind::IncompleteBody => Code::IncompleteBody,
        ErrorKind::TooLarge => Code::EntityTooLarge,
        ErrorKind::PartTooSmall => Code::EntityTooSmall,
        ErrorKind::InvalidPart => Code::InvalidPart,
        // The origin's refusal of our credential is no news for the client's own key: it may not
        // do this here, and trying again does not help.
        ErrorKind::PermissionDenied | ErrorKind::Unauthenticated | ErrorKind::ReadOnly => {
            Code::AccessDenied
        }
        ErrorKind::Conflict => Code::OperationAborted,
        ErrorKind::Throttled => Code::SlowDown,
        ErrorKind::Timeout | ErrorKind::Unavailable => Code::ServiceUnavailable,
        ErrorKind::StorageFull => {
            return (Code::Custom("InsufficientStorage".into()), StatusCode::INSUFFICIENT_STORAGE);
        }
        ErrorKind::Corrupted | ErrorKind::Cancelled | ErrorKind::Internal => Code::InternalError,
    };
    let status = code.status_code().unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (code, status)
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (code, status) = translate(error.kind());
        if status.is_server_error() {
            tracing::warn!(kind = %error.kind(), %error, "origin failed");
        } else {
            tracing::debug!(kind = %error.kind(), %error, "refused");
        }
        let failure = Self::with_status(status, code, error.context());
        if status == StatusCode::SERVICE_UNAVAILABLE {
            return failure.header(RETRY_AFTER, RETRY_SOON);
        }
        failure
    }
}

/// The `Error` document of a failure.
pub(crate) struct ErrorDocument<'a> {
    failure: &'a Failure,
    resource: &'a str,
    request: &'a str,
}

impl Serialize for ErrorDocument<'_> {
    fn serialize<W: std::io::Write>(&self, s: &mut Serializer<W>) -> SerResult {
        s.content("Error", self)
    }
}

impl SerializeContent for ErrorDocument<'_> {
    fn serialize_content<W: std::io::Write>(&self, s: &mut Serializer<W>) -> SerResult {
        s.content("Code", self.failure.code().as_str())?;
        s.content("Message", self.failure.message())?;
        s.content("Resource", self.resource)?;
        s.content("RequestId", self.request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_become_what_sdks_know() {
        let of = |kind| {
            let failure = Failure::from(Error::new(kind, "x"));
            (failure.code().as_str().to_owned(), failure.status().as_u16())
        };
        assert_eq!(of(ErrorKind::NotFound), ("NoSuchKey".into(), 404));
        assert_eq!(of(ErrorKind::InvalidRange), ("InvalidRange".into(), 416));
        assert_eq!(of(ErrorKind::PreconditionFailed), ("PreconditionFailed".into(), 412));
        assert_eq!(of(ErrorKind::ReadOnly), ("AccessDenied".into(), 403));
        assert_eq!(of(ErrorKind::Throttled), ("SlowDown".into(), 503));
        assert_eq!(of(ErrorKind::Unavailable), ("ServiceUnavailable".into(), 503));
        assert_eq!(of(ErrorKind::Conflict), ("OperationAborted".into(), 409));
        assert_eq!(of(ErrorKind::StorageFull), ("InsufficientStorage".into(), 507));
        assert_eq!(of(ErrorKind::BadDigest), ("BadDigest".into(), 400));
    }

    #[test]
    fn transient_kinds_are_retried_by_sdks_and_others_are_not() {
        use ErrorKind as K;
        for kind in [K::Throttled, K::Timeout, K::Unavailable, K::Corrupted] {
            assert!(Failure::from(Error::new(kind, "x")).status().is_server_error(), "{kind}");
        }
        for kind in [K::PermissionDenied, K::Unauthenticated, K::InvalidInput, K::TooLarge] {
            assert!(Failure::from(Error::new(kind, "x")).status().is_client_error(), "{kind}");
        }
    }
}
