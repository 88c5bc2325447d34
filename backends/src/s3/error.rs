//! What an origin's refusal means.
//!
//! Invariant: the code of the document decides, the status only where there is none (the answer to
//! a HEAD has no body). Of a document only code and message are shown: its other fields echo the
//! request's signature.

use ::http::StatusCode;
use ::store::{Error, ErrorKind};
use reqwest::Response;

use super::xml;
use crate::http::{RetryAfter, error_document, headers, kind_of_status};

/// An answer that is no success.
pub(super) struct Failed {
    pub(super) error: Error,
    /// The region that the bucket is in, where the origin names one.
    pub(super) region: Option<String>,
}

impl Failed {
    pub(super) async fn read(response: Response, shown: &str, bucket: &str) -> Self {
        let (status, head) = (response.status(), response.headers().clone());
        let document = error_document(response).await;
        let document = xml::parse::<xml::ErrorDocument>(&document).unwrap_or_default();
        let named = head.get("x-amz-bucket-region").and_then(|v| v.to_str().ok());
        let moved = status.is_redirection()
            || matches!(
                document.code.as_deref(),
                Some("AuthorizationHeaderMalformed" | "PermanentRedirect" | "IncorrectEndpoint")
            )
            // HEAD has no document; AWS answers 400 when the signature is for another region.
            || (document.code.is_none() && status == StatusCode::BAD_REQUEST);
        let region = named.map(str::to_owned).or(document.region.clone()).filter(|_| moved);
        let (kind, text) = meaning(status, &document);
        let hint = match (&region, advice(document.code.as_deref().unwrap_or_default())) {
            (Some(region), _) => format!("; bucket `{bucket}` is in region {region}, set it"),
            (None, Some(advice)) => format!(" ({advice})"),
            (None, None) => String::new(),
        };
        let context = format!("{shown}: origin answered {} {text}{hint}", status.as_u16());
        let mut error = Error::new(kind, context);
        if kind == ErrorKind::InvalidRange {
            if let Some((None, Some(size))) = headers::content_range(&head) {
                error = error.with_source(::store::Unsatisfiable { size });
            }
        } else if let Some(wait) = RetryAfter::from_headers(&head) {
            error = error.with_source(wait);
        }
        Self { error, region }
    }
}

/// The error that the document of a successful status holds: copies and completions fail so.
pub(super) fn inside_success(document: &[u8], shown: &str) -> Option<Error> {
    let found = xml::parse_root::<xml::ErrorDocument>(document, "Error")?;
    let (kind, text) = meaning(StatusCode::INTERNAL_SERVER_ERROR, &found);
    Some(Error::new(kind, format!("{shown}: origin answered 200 and then {text}")))
}

fn meaning(status: StatusCode, document: &xml::ErrorDocument) -> (ErrorKind, String) {
    let Some(code) = document.code.as_deref().filter(|c| !c.is_empty()) else {
        let reason = status.canonical_reason().unwrap_or("an unknown status");
        return (kind_of_status(status), reason.to_owned());
    };
    let kind = kind_of_code(code).unwrap_or_else(|| kind_of_status(status));
    match document.message.as_deref().map(str::trim).filter(|m| !m.is_empty()) {
        Some(message) => (kind, format!("{code}: {}", message.trim_end_matches('.'))),
        None => (kind, code.to_owned()),
    }
}

fn kind_of_code(code: &str) -> Option<ErrorKind> {
    Some(match code {
        "NoSuchKey" | "NoSuchVersion" => ErrorKind::NotFound,
        "NoSuchBucket" | "InvalidBucketName" => ErrorKind::NoSuchBucket,
        "NoSuchUpload" => ErrorKind::NoSuchUpload,
        "PreconditionFailed" => ErrorKind::PreconditionFailed,
        "InvalidRange" | "RequestedRangeNotSatisfiable" => ErrorKind::InvalidRange,
        "KeyTooLongError"
        | "KeyTooLong"
        | "XMinioInvalidObjectName"
        | "XMinioInvalidResourceName"
        | "InvalidObjectName"
        | "InvalidURI"
        | "DirectoryObjectContainsData" => ErrorKind::UnsupportedKey,
        "XMinioParentIsObject"
        | "ObjectParentIsFile"
        | "ExistingObjectIsDirectory"
        | "ObjectExistsAsDirectory"
        | "XMinioObjectExistsAsDirectory"
        | "ConditionalRequestConflict"
        | "OperationAborted"
        | "BucketNotEmpty" => ErrorKind::Conflict,
        "BadDigest"
        | "InvalidDigest"
        | "XAmzContentSHA256Mismatch"
        | "XAmzContentChecksumMismatch" => ErrorKind::BadDigest,
        "IncompleteBody" | "MissingContentLength" => ErrorKind::IncompleteBody,
        "EntityTooLarge" | "MaxMessageLengthExceeded" => ErrorKind::TooLarge,
        "EntityTooSmall" => ErrorKind::PartTooSmall,
        "InvalidPart" => ErrorKind::InvalidPart,
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" | "InvalidPayer" => {
            ErrorKind::PermissionDenied
        }
        "ExpiredToken"
        | "InvalidToken"
        | "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "TokenRefreshRequired"
        | "RequestTimeTooSkewed"
        | "InvalidSecurity"
        | "MissingSecurityHeader"
        | "AuthorizationHeaderMalformed"
        | "NotSignedUp"
        | "RequestExpired"
        | "XAdminUserNotFound"
        | "AuthFailure" => ErrorKind::Unauthenticated,
        "SlowDown"
        | "SlowDownRead"
        | "SlowDownWrite"
        | "Throttling"
        | "ThrottlingException"
        | "RequestLimitExceeded"
        | "TooManyRequests"
        | "BandwidthLimitExceeded"
        | "ProvisionedThroughputExceededException" => ErrorKind::Throttled,
        "RequestTimeout" | "XMinioRequestTimeout" => ErrorKind::Timeout,
        "InternalError" | "ServiceUnavailable" | "XMinioServerNotInitialized" | "Busy" => {
            ErrorKind::Unavailable
        }
        "PermanentRedirect" | "TemporaryRedirect" | "Redirect" | "InvalidPartOrder"
        | "InvalidArgument" | "InvalidRequest" | "MalformedXML" | "MetadataTooLarge" => {
            ErrorKind::InvalidInput
        }
        "NotImplemented" | "MethodNotAllowed" | "InvalidObjectState" => ErrorKind::Unsupported,
        "QuotaExceeded"
        | "XMinioStorageFull"
        | "XMinioAdminBucketQuotaExceeded"
        | "StorageFull" => ErrorKind::StorageFull,
        _ => return None,
    })
}

/// What to do about codes whose message does not say it.
fn advice(code: &str) -> Option<&'static str> {
    Some(match code {
        "RequestTimeTooSkewed" => "set this machine's clock",
        "InvalidAccessKeyId" | "XAdminUserNotFound" => {
            "check access_key_id; the origin does not know it"
        }
        "SignatureDoesNotMatch" => "check secret_access_key and region",
        "ExpiredToken" | "TokenRefreshRequired" => "renew the temporary credential",
        "InvalidObjectState" => "the object is archived; restore it first",
        "PermanentRedirect" | "TemporaryRedirect" => "check endpoint and region",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_win_over_statuses() {
        let document = |code: &str| {
            let text = format!("<Error><Code>{code}</Code><Message>m.</Message></Error>");
            xml::parse::<xml::ErrorDocument>(text.as_bytes()).unwrap()
        };
        let kind = |status: u16, code: &str| {
            meaning(StatusCode::from_u16(status).unwrap(), &document(code)).0
        };
        assert_eq!(kind(404, "NoSuchBucket"), ErrorKind::NoSuchBucket);
        assert_eq!(kind(400, "ExpiredToken"), ErrorKind::Unauthenticated);
        assert_eq!(kind(400, "RequestTimeout"), ErrorKind::Timeout);
        assert_eq!(kind(503, "SlowDown"), ErrorKind::Throttled);
        assert_eq!(kind(503, "SomethingNew"), ErrorKind::Unavailable);
        assert_eq!(kind(403, "SomethingNew"), ErrorKind::PermissionDenied);
    }

    #[test]
    fn errors_inside_a_success() {
        let bad = b"<?xml version=\"1.0\"?>\n<Error><Code>InternalError</Code></Error>";
        assert_eq!(inside_success(bad, "copy").unwrap().kind(), ErrorKind::Unavailable);
        let good = b"<CopyObjectResult><ETag>\"x\"</ETag></CopyObjectResult>";
        assert!(inside_success(good, "copy").is_none());
    }
}
