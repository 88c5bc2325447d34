//! The service's error codes as kinds.
//!
//! Invariant: a code decides before its status does, since one status has many meanings; what the
//! service says in prose is kept to its first line, which holds no signature.

use ::http::{HeaderMap, StatusCode};
use store::{Error, ErrorKind};

use crate::cloud::xml::Node;
use crate::http::{RetryAfter, headers, kind_of_status};

/// The error of an answer: its code is in a header, since answers to HEAD have no document.
pub(super) fn of_answer(status: StatusCode, answer: &HeaderMap, document: &[u8]) -> Error {
    let root = Node::parse(document).ok();
    let in_document = |name| root.as_ref().and_then(|root| root.text_of(name)).map(str::to_owned);
    let code = headers::text(answer, &"x-ms-error-code".parse().expect("a header name"))
        .or_else(|| in_document("Code"))
        .unwrap_or_default();
    let kind = kind_of(&code, status);
    let message = in_document("Message").unwrap_or_default();
    let message = message.lines().next().unwrap_or_default().trim_end_matches('.');
    let context = match (code.as_str(), message) {
        ("", _) => format!("the origin answered {status}"),
        (code, "") => format!("the origin answered {} {code}", status.as_u16()),
        (code, message) => format!("the origin answered {} {code}: {message}", status.as_u16()),
    };
    let error = Error::new(kind, context);
    match RetryAfter::from_headers(answer) {
        Some(wait) => error.with_source(wait),
        None => error,
    }
}

/// What a code means. Codes that are not listed mean what their status means.
fn kind_of(code: &str, status: StatusCode) -> ErrorKind {
    match code {
        "BlobNotFound" | "ResourceNotFound" => ErrorKind::NotFound,
        "ContainerNotFound" | "ContainerBeingDeleted" => ErrorKind::NoSuchBucket,
        "ConditionNotMet"
        | "TargetConditionNotMet"
        | "SourceConditionNotMet"
        | "BlobAlreadyExists" => ErrorKind::PreconditionFailed,
        "InvalidRange" => ErrorKind::InvalidRange,
        "AuthenticationFailed" | "InvalidAuthenticationInfo" | "NoAuthenticationInformation" => {
            ErrorKind::Unauthenticated
        }
        "AuthorizationFailure"
        | "AuthorizationPermissionMismatch"
        | "AuthorizationProtocolMismatch"
        | "AuthorizationResourceTypeMismatch"
        | "AuthorizationServiceMismatch"
        | "AuthorizationSourceIPMismatch"
        | "AccountIsDisabled"
        | "InsufficientAccountPermissions"
        | "KeyBasedAuthenticationNotPermitted"
        | "PublicAccessNotPermitted"
        | "UnauthorizedBlobOverwrite" => ErrorKind::PermissionDenied,
        "ServerBusy" => ErrorKind::Throttled,
        "OperationTimedOut" => ErrorKind::Timeout,
        "InternalError" => ErrorKind::Unavailable,
        "Md5Mismatch" | "Crc64Mismatch" => ErrorKind::BadDigest,
        "RequestBodyTooLarge" | "BlockCountExceedsLimit" | "BlockListTooLong" => {
            ErrorKind::TooLarge
        }
        "InvalidBlockList" | "InvalidBlockId" => ErrorKind::InvalidPart,
        "InvalidUri" | "InvalidResourceName" => ErrorKind::UnsupportedKey,
        "InvalidBlobType" => ErrorKind::Unsupported,
        "BlobArchived"
        | "BlobBeingRehydrated"
        | "BlobImmutableDueToPolicy"
        | "InvalidBlobOrBlock"
        | "LeaseAlreadyPresent"
        | "LeaseIdMissing"
        | "LeaseIdMismatchWithBlobOperation"
        | "LeaseLost"
        | "PendingCopyOperation"
        | "SnapshotsPresent" => ErrorKind::Conflict,
        _ => kind_of_status(status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_decide_before_statuses() {
        let cases = [
            ("BlobNotFound", 404, ErrorKind::NotFound),
            ("ContainerNotFound", 404, ErrorKind::NoSuchBucket),
            ("AuthenticationFailed", 403, ErrorKind::Unauthenticated),
            ("NoAuthenticationInformation", 401, ErrorKind::Unauthenticated),
            ("AuthorizationPermissionMismatch", 403, ErrorKind::PermissionDenied),
            ("PublicAccessNotPermitted", 409, ErrorKind::PermissionDenied),
            ("InvalidRange", 416, ErrorKind::InvalidRange),
            ("ConditionNotMet", 412, ErrorKind::PreconditionFailed),
            ("BlobAlreadyExists", 409, ErrorKind::PreconditionFailed),
            ("LeaseIdMissing", 412, ErrorKind::Conflict),
            ("ServerBusy", 503, ErrorKind::Throttled),
            ("OperationTimedOut", 500, ErrorKind::Timeout),
            ("InvalidBlockList", 400, ErrorKind::InvalidPart),
            ("CannotVerifyCopySource", 404, ErrorKind::NotFound),
            ("CannotVerifyCopySource", 403, ErrorKind::PermissionDenied),
            ("SomethingNew", 503, ErrorKind::Unavailable),
            ("", 404, ErrorKind::NotFound),
        ];
        for (code, status, kind) in cases {
            let status = StatusCode::from_u16(status).unwrap();
            let document = format!(
                "\u{feff}<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>It failed.\n\
                 RequestId:1\nTime:2</Message><AuthenticationErrorDetail>x</AuthenticationErrorDetail>\
                 </Error>"
            );
            let error = of_answer(status, &HeaderMap::new(), document.as_bytes());
            assert_eq!(error.kind(), kind, "{code} {status}");
            assert!(!error.to_string().contains("RequestId"), "{error}");
            let mut headers = HeaderMap::new();
            headers.insert("x-ms-error-code", code.parse().unwrap());
            assert_eq!(of_answer(status, &headers, b"").kind(), kind, "{code} in a header");
        }
    }

    #[test]
    fn a_wait_is_kept() {
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", "3".parse().unwrap());
        let error = of_answer(StatusCode::SERVICE_UNAVAILABLE, &headers, b"");
        assert!(RetryAfter::find_in(&error).is_some());
    }
}
