//! Signature version 2: header and presigned URL (boto3's default for presigning).
//!
//! Invariant: the same as for version 4; the body is not covered, so its checksums are what
//! protects it. Only S3's own sub-resources take part in the signed resource.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use http::HeaderMap;
use s3s::S3ErrorCode;
use secrecy::{ExposeSecret, SecretString};
use sha1::Sha1;
use subtle::ConstantTimeEq;

use super::{
    Checked, Payload, PayloadHash, Refusal, Signed, check_skew, malformed, parse_amz_date,
    parse_date, payload_hash, refuse, secret, wrong_signature,
};

/// Query parameters that belong to the signed resource.
const SUBRESOURCES: &[&str] = &[
    "accelerate",
    "acl",
    "analytics",
    "cors",
    "defaultObjectAcl",
    "delete",
    "inventory",
    "lifecycle",
    "location",
    "logging",
    "metrics",
    "notification",
    "object-lock",
    "partNumber",
    "policy",
    "replication",
    "requestPayment",
    "response-cache-control",
    "response-content-disposition",
    "response-content-encoding",
    "response-content-language",
    "response-content-type",
    "response-expires",
    "restore",
    "select",
    "select-type",
    "storageClass",
    "tagging",
    "torrent",
    "uploadId",
    "uploads",
    "versionId",
    "versioning",
    "versions",
    "website",
];

/// Verifies a request that is signed in its `Authorization` header: `AWS id:signature`.
pub(super) fn check_header(
    keys: &HashMap<String, SecretString>,
    request: &Signed<'_>,
    header: &str,
) -> Checked<Payload> {
    let Some((id, signature)) = header.strip_prefix("AWS ").and_then(|t| t.trim().split_once(':'))
    else {
        return malformed("the authorization header is not `AWS id:signature`");
    };
    let amz_date = text(request.headers, "x-amz-date");
    let date = text(request.headers, "date");
    let time = match &amz_date {
        Some(value) => parse_date(value).or_else(|| parse_amz_date(value)),
        None => date.as_deref().and_then(parse_date),
    };
    let Some(time) = time else {
        return refuse(
            Refusal::Malformed,
            S3ErrorCode::AccessDenied,
            "a signed request needs a valid Date or x-amz-date header",
        );
    };
    let secret = secret(keys, id)?;
    check_skew(time, request.now)?;
    // With x-amz-date the date line is empty: the header is among the signed ones already.
    let date = if amz_date.is_some() { String::new() } else { date.unwrap_or_default() };
    verify(request, secret, &date, signature)?;
    payload(request.headers)
}

/// Verifies a presigned URL: `AWSAccessKeyId`, `Expires` in seconds of the epoch, `Signature`.
pub(super) fn check_presigned(
    keys: &HashMap<String, SecretString>,
    request: &Signed<'_>,
) -> Checked<Payload> {
    let get = |name: &str| request.query.get(name).unwrap_or_default();
    let Ok(expires) = get("Expires").parse::<u32>() else {
        return refuse(
            Refusal::Malformed,
            S3ErrorCode::AccessDenied,
            "Expires is not a number of seconds since 1970",
        );
    };
    let secret = secret(keys, get("AWSAccessKeyId"))?;
    let end = SystemTime::UNIX_EPOCH + Duration::from_secs(expires.into());
    if request.now > end {
        return refuse(Refusal::Expired, S3ErrorCode::AccessDenied, "Request has expired");
    }
    verify(request, secret, get("Expires"), get("Signature"))?;
    payload(request.headers)
}

fn payload(headers: &HeaderMap) -> Checked<Payload> {
    let hash = payload_hash(headers)?.unwrap_or(PayloadHash::Unsigned);
    if matches!(hash, PayloadHash::Chunks { signed: true, .. }) {
        return malformed("version 2 has no signed chunks");
    }
    Ok(Payload { hash, signer: None })
}

fn verify(request: &Signed<'_>, secret: &SecretString, date: &str, signature: &str) -> Checked<()> {
    let matches = |slash: &str| {
        let text = string_to_sign(request, date, slash);
        let mut mac = Hmac::<Sha1>::new_from_slice(secret.expose_secret().as_bytes())
            .expect("HMAC takes keys of any length");
        mac.update(text.as_bytes());
        let ours = STANDARD.encode(mac.finalize().into_bytes());
        bool::from(ours.as_bytes().ct_eq(signature.as_bytes()))
    };
    // botocore sends `/bucket` and signs `/bucket/`.
    let bare_bucket = request.host_bucket.is_none() && request.path.matches('/').count() == 1;
    if matches("") || (bare_bucket && matches("/")) { Ok(()) } else { wrong_signature() }
}

/// `slash` goes behind the path.
fn string_to_sign(request: &Signed<'_>, date: &str, slash: &str) -> String {
    let header = |name: &str| text(request.headers, name).unwrap_or_default();
    let mut out = format!(
        "{}\n{}\n{}\n{date}\n",
        request.method,
        header("content-md5"),
        header("content-type")
    );
    let mut amz: BTreeMap<&str, String> = BTreeMap::new();
    for (name, value) in request.headers {
        if name.as_str().starts_with("x-amz-") {
            let value = String::from_utf8_lossy(value.as_bytes());
            let joined = amz.entry(name.as_str()).or_default();
            if !joined.is_empty() {
                joined.push(',');
            }
            joined.push_str(value.trim());
        }
    }
    for (name, value) in amz {
        out.push_str(name);
        out.push(':');
        out.push_str(&value);
        out.push('\n');
    }
    if let Some(bucket) = request.host_bucket {
        out.push('/');
        out.push_str(bucket);
    }
    out.push_str(if request.path.is_empty() { "/" } else { request.path });
    out.push_str(slash);
    push_subresources(&mut out, request);
    out
}

fn push_subresources(out: &mut String, request: &Signed<'_>) {
    // Whether a parameter had an `=` is told from the raw query: `?uploads=` signs as `uploads`
    // and so does `?uploads`.
    let mut found: Vec<(&str, &str)> = request
        .query
        .pairs()
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .filter(|(name, _)| SUBRESOURCES.contains(name))
        .collect();
    found.sort_unstable();
    for (i, (name, value)) in found.into_iter().enumerate() {
        out.push(if i == 0 { '?' } else { '&' });
        out.push_str(name);
        if !value.is_empty() {
            out.push('=');
            out.push_str(value);
        }
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).trim().to_owned())
}
