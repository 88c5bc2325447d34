//! The service's errors as kinds, from its XML documents and its JSON documents.
//!
//! Invariant: a code decides before its status does. A status without a document (an answer to
//! HEAD) means what the status means.

use ::http::{HeaderMap, StatusCode};
use serde::Deserialize;
use store::{Error, ErrorKind};

use crate::cloud::xml::Node;
use crate::http::{RetryAfter, kind_of_status};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct JsonAnswer {
    error: JsonError,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct JsonError {
    message: String,
    errors: Vec<JsonReason>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct JsonReason {
    reason: String,
}

/// The error of an answer.
pub(super) fn of_answer(status: StatusCode, answer: &HeaderMap, document: &[u8]) -> Error {
    let (code, message) = if let Ok(root) = Node::parse(document) {
        let text = |name| root.text_of(name).unwrap_or_default().trim().to_owned();
        (text("Code"), text("Message"))
    } else if let Ok(JsonAnswer { error }) = serde_json::from_slice(document) {
        let reason = error.errors.into_iter().next().unwrap_or_default().reason;
        (reason, error.message)
    } else {
        Default::default()
    };
    let mut kind = kind_of(&code, status);
    // The JSON interface has one reason for both, and tells them apart in prose only.
    if code == "notFound" && message.contains("bucket does not exist") {
        kind = ErrorKind::NoSuchBucket;
    }
    let message = message.lines().next().unwrap_or_default().trim_end_matches('.');
    let context = match (code.as_str(), message) {
        ("", "") => format!("the origin answered {status}"),
        ("", message) => format!("the origin answered {}: {message}", status.as_u16()),
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
        "NoSuchKey" | "notFound" => ErrorKind::NotFound,
        "NoSuchBucket" => ErrorKind::NoSuchBucket,
        "NoSuchUpload" => ErrorKind::NoSuchUpload,
        "PreconditionFailed" | "conditionNotMet" => ErrorKind::PreconditionFailed,
        "InvalidRange" | "requestedRangeNotSatisfiable" => ErrorKind::InvalidRange,
        "AuthenticationRequired"
        | "ExpiredToken"
        | "InvalidSecurity"
        | "InvalidToken"
        | "SignatureDoesNotMatch"
        | "authError"
        | "required" => ErrorKind::Unauthenticated,
        "AccessDenied"
        | "AccountProblem"
        | "RetentionPolicyNotMet"
        | "ObjectUnderActiveHold"
        | "UserAccountProblem"
        | "UserProjectMissing"
        | "accountDisabled"
        | "forbidden"
        | "insufficientPermissions" => ErrorKind::PermissionDenied,
        "SlowDown"
        | "RateLimitExceeded"
        | "rateLimitExceeded"
        | "userRateLimitExceeded"
        | "quotaExceeded" => ErrorKind::Throttled,
        "RequestTimeout" => ErrorKind::Timeout,
        "InternalError" | "ServiceUnavailable" | "backendError" | "internalError" => {
            ErrorKind::Unavailable
        }
        "BadDigest" | "InvalidDigest" => ErrorKind::BadDigest,
        "IncompleteBody" => ErrorKind::IncompleteBody,
        "EntityTooLarge" | "uploadTooLarge" => ErrorKind::TooLarge,
        "EntityTooSmall" => ErrorKind::PartTooSmall,
        "InvalidPart" => ErrorKind::InvalidPart,
        "InvalidPartOrder" => ErrorKind::InvalidInput,
        "InvalidObjectName" | "KeyTooLongError" => ErrorKind::UnsupportedKey,
        _ => kind_of_status(status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(status: u16, document: &str) -> ErrorKind {
        let status = StatusCode::from_u16(status).unwrap();
        of_answer(status, &HeaderMap::new(), document.as_bytes()).kind()
    }

    #[test]
    fn xml_codes() {
        for (code, status, expected) in [
            ("NoSuchKey", 404, ErrorKind::NotFound),
            ("NoSuchBucket", 404, ErrorKind::NoSuchBucket),
            ("NoSuchUpload", 404, ErrorKind::NoSuchUpload),
            ("AuthenticationRequired", 401, ErrorKind::Unauthenticated),
            ("ExpiredToken", 400, ErrorKind::Unauthenticated),
            ("AccessDenied", 403, ErrorKind::PermissionDenied),
            ("EntityTooSmall", 400, ErrorKind::PartTooSmall),
            ("SlowDown", 503, ErrorKind::Throttled),
            ("ServiceUnavailable", 503, ErrorKind::Unavailable),
            ("Anything", 429, ErrorKind::Throttled),
            ("InvalidRange", 416, ErrorKind::InvalidRange),
        ] {
            let document = format!(
                "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code>\
                 <Message>It failed.</Message></Error>"
            );
            assert_eq!(kind(status, &document), expected, "{code}");
        }
    }

    #[test]
    fn json_reasons() {
        let document = |reason: &str, message: &str| {
            format!(
                "{{\"error\":{{\"code\":0,\"message\":\"{message}\",\"errors\":[{{\"reason\":\
                 \"{reason}\"}}]}}}}"
            )
        };
        let missing = document("notFound", "No such object: b/k");
        assert_eq!(kind(404, &missing), ErrorKind::NotFound);
        let missing = document("notFound", "The specified bucket does not exist.");
        assert_eq!(kind(404, &missing), ErrorKind::NoSuchBucket);
        let denied = document("conditionNotMet", "x");
        assert_eq!(kind(412, &denied), ErrorKind::PreconditionFailed);
        assert_eq!(kind(503, &document("backendError", "x")), ErrorKind::Unavailable);
    }

    #[test]
    fn without_a_document_the_status_decides() {
        assert_eq!(kind(404, ""), ErrorKind::NotFound);
        assert_eq!(kind(429, "try later"), ErrorKind::Throttled);
    }
}
