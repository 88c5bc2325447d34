//! Who sends a request: signatures of both versions, in headers and in presigned URLs.
//!
//! Invariant: with keys configured, a request reaches an operation only after its signature was
//! verified against one of them, in constant time. Regions are not compared: the endpoint is one
//! region whatever a client's default is. It refuses to guess: a request that carries two
//! signatures is an error.

mod keys;
mod v2;
mod v4;

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, Method};
use s3s::S3ErrorCode;
use secrecy::SecretString;

pub use keys::AccessKey;
pub use v4::{Authorization, PayloadHash};
pub(crate) use v4::{ChunkSigner, Streaming};

use crate::dates::is_writable;
use crate::failure::Failure;
use crate::target::Query;

/// How far a client's clock may be off, as in S3.
const MAX_SKEW: Duration = Duration::from_mins(15);

/// Who may use the endpoint.
#[derive(Debug, Clone)]
pub enum Access {
    /// Requests signed with one of these keys.
    Signed(Vec<AccessKey>),
    /// Everyone who reaches the socket; signatures are not looked at. Web pages may only read.
    Anonymous,
}

/// What a signature covers, as it came over the wire.
pub(crate) struct Signed<'a> {
    pub(crate) method: &'a Method,
    pub(crate) path: &'a str,
    pub(crate) raw_query: &'a str,
    pub(crate) query: &'a Query,
    pub(crate) headers: &'a HeaderMap,
    /// The bucket of a virtual-host style request, which version 2 puts before the path.
    pub(crate) host_bucket: Option<&'a str>,
    pub(crate) now: SystemTime,
}

/// What is known of the payload after the request's head was verified.
#[derive(Debug)]
pub(crate) struct Payload {
    /// What `x-amz-content-sha256` says.
    pub(crate) hash: PayloadHash,
    /// Verifies the chunks of a signed stream.
    pub(crate) signer: Option<ChunkSigner>,
}

/// Why a request was not let in; label of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    Unsigned,
    CrossSite,
    UnknownKey,
    WrongSignature,
    ClockSkew,
    Expired,
    Malformed,
}

impl Refusal {
    pub(crate) const ALL: [Self; 7] = [
        Self::Unsigned,
        Self::CrossSite,
        Self::UnknownKey,
        Self::WrongSignature,
        Self::ClockSkew,
        Self::Expired,
        Self::Malformed,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unsigned => "unsigned",
            Self::CrossSite => "cross_site",
            Self::UnknownKey => "unknown_key",
            Self::WrongSignature => "wrong_signature",
            Self::ClockSkew => "clock_skew",
            Self::Expired => "expired",
            Self::Malformed => "malformed",
        }
    }
}

/// A refusal and what the client is told.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) Refusal, pub(crate) Failure);

type Checked<T> = Result<T, Refused>;

fn refuse<T>(reason: Refusal, code: S3ErrorCode, message: impl Into<String>) -> Checked<T> {
    Err(Refused(reason, Failure::new(code, message)))
}

fn malformed<T>(message: impl Into<String>) -> Checked<T> {
    refuse(Refusal::Malformed, S3ErrorCode::AuthorizationHeaderMalformed, message)
}

fn wrong_signature<T>() -> Checked<T> {
    refuse(
        Refusal::WrongSignature,
        S3ErrorCode::SignatureDoesNotMatch,
        "the signature calculated here is not the one sent; check the secret key",
    )
}

fn check_skew(time: SystemTime, now: SystemTime) -> Checked<()> {
    let apart = now.duration_since(time).unwrap_or_else(|early| early.duration());
    if apart <= MAX_SKEW {
        return Ok(());
    }
    refuse(
        Refusal::ClockSkew,
        S3ErrorCode::RequestTimeTooSkewed,
        format!("the request's time is {} s from this endpoint's", apart.as_secs()),
    )
}

/// Verifies requests.
#[derive(Debug)]
pub(crate) struct Authenticator {
    /// `None` lets everyone in.
    keys: Option<HashMap<String, SecretString>>,
    signing_keys: v4::SigningKeys,
}

impl Authenticator {
    pub(crate) fn new(access: Access) -> Self {
        let keys = match access {
            Access::Anonymous => None,
            Access::Signed(keys) => {
                Some(keys.into_iter().map(|key| (key.id, key.secret)).collect())
            }
        };
        Self { keys, signing_keys: v4::SigningKeys::default() }
    }

    /// Lets a request in or says why not.
    pub(crate) fn check(&self, request: &Signed<'_>) -> Checked<Payload> {
        let Some(keys) = &self.keys else {
            // A browser sends such a request for any page that its user has open, and says so.
            let reads = matches!(*request.method, Method::GET | Method::HEAD | Method::OPTIONS);
            if !reads && request.headers.contains_key(http::header::ORIGIN) {
                return refuse(
                    Refusal::CrossSite,
                    S3ErrorCode::AccessDenied,
                    "without keys, web pages (requests with an Origin header) may only read",
                );
            }
            let hash = payload_hash(request.headers)?.unwrap_or(PayloadHash::Unsigned);
            return Ok(Payload { hash, signer: None });
        };
        let header = match request.headers.get(http::header::AUTHORIZATION) {
            None => None,
            Some(value) => match value.to_str() {
                Ok(text) => Some(text),
                Err(_) => return malformed("the authorization header is not text"),
            },
        };
        let presigned_v4 = request.query.has("X-Amz-Signature");
        let presigned_v2 = request.query.has("Signature") && request.query.has("AWSAccessKeyId");
        match (header, presigned_v4, presigned_v2) {
            (Some(text), false, false) if text.starts_with("AWS ") => {
                v2::check_header(keys, request, text)
            }
            (Some(text), false, false) => v4::check_header(keys, &self.signing_keys, request, text),
            (None, true, false) => v4::check_presigned(keys, &self.signing_keys, request),
            (None, false, true) => v2::check_presigned(keys, request),
            (None, false, false) => refuse(
                Refusal::Unsigned,
                S3ErrorCode::AccessDenied,
                "the request is not signed, and this endpoint wants signed requests",
            ),
            _ => refuse(
                Refusal::Malformed,
                S3ErrorCode::InvalidArgument,
                "only one authentication mechanism is allowed",
            ),
        }
    }
}

fn secret<'k>(keys: &'k HashMap<String, SecretString>, id: &str) -> Checked<&'k SecretString> {
    match keys.get(id) {
        Some(secret) => Ok(secret),
        None => refuse(
            Refusal::UnknownKey,
            S3ErrorCode::InvalidAccessKeyId,
            "the access key id is not one of this endpoint's",
        ),
    }
}

/// What `x-amz-content-sha256` says, if it is there.
fn payload_hash(headers: &HeaderMap) -> Checked<Option<PayloadHash>> {
    let Some(value) = headers.get("x-amz-content-sha256") else { return Ok(None) };
    match value.to_str().ok().and_then(PayloadHash::parse) {
        Some(hash) => Ok(Some(hash)),
        None => refuse(
            Refusal::Malformed,
            S3ErrorCode::InvalidArgument,
            "x-amz-content-sha256 is neither a known word nor 64 hex digits",
        ),
    }
}

/// The time in `Date`, in either form that clients use.
fn parse_date(text: &str) -> Option<SystemTime> {
    if let Ok(time) = httpdate::parse_http_date(text) {
        return Some(time);
    }
    let format = &time::format_description::well_known::Rfc2822;
    let time = time::OffsetDateTime::parse(text, format).ok().map(SystemTime::from);
    // The zone can carry a date of the year 9999 into one that cannot be written.
    time.filter(|time| is_writable(*time))
}

/// `x-amz-date`: `20130524T000000Z`.
fn parse_amz_date(text: &str) -> Option<SystemTime> {
    let bytes = text.as_bytes();
    if bytes.len() != 16 || bytes[8] != b'T' || bytes[15] != b'Z' {
        return None;
    }
    let number = |range: std::ops::Range<usize>| -> Option<u32> {
        let digits = text.get(range)?;
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
    };
    let month = time::Month::try_from(u8::try_from(number(4..6)?).ok()?).ok()?;
    let year = i32::try_from(number(0..4)?).ok()?;
    let date = time::Date::from_calendar_date(year, month, number(6..8)? as u8).ok()?;
    let clock =
        date.with_hms(number(9..11)? as u8, number(11..13)? as u8, number(13..15)? as u8).ok()?;
    Some(clock.assume_utc().into())
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        refused.1
    }
}

#[cfg(test)]
mod tests;
