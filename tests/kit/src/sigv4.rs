//! AWS Signature Version 4 for S3, in headers, with an unsigned payload: what the kit needs to make
//! buckets and objects behind the back of the program under test.
//!
//! Invariant: the key is encoded once, byte by byte, and never normalised.

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderValue, Method, Request};
use http_body_util::Full;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use time::OffsetDateTime;
use time::macros::format_description;

/// Everything but unreserved characters.
pub(crate) const STRICT: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// The same for a path, where `/` separates.
pub(crate) const PATH: &AsciiSet = &STRICT.remove(b'/');

/// The name and secret of a test account; never a real one.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The access key id.
    pub access_key: String,
    /// The secret key.
    pub secret_key: String,
    /// The region of the signature's scope.
    pub region: String,
}

/// Builds a signed S3 request. `path` is `/bucket/key`, unencoded; `query` is unencoded pairs.
pub fn sign(
    credentials: &Credentials,
    method: Method,
    endpoint: &str,
    path: &str,
    query: &[(&str, &str)],
    headers: &HeaderMap,
    body: Bytes,
) -> Request<Full<Bytes>> {
    let now = OffsetDateTime::now_utc();
    let stamp = now
        .format(format_description!("[year][month][day]T[hour][minute][second]Z"))
        .expect("the format names only what a date has");
    let host = endpoint.trim_start_matches("http://").trim_end_matches('/').to_owned();
    let encoded_path = utf8_percent_encode(path, PATH).to_string();
    let encoded_query = canonical_query(query);

    let mut signed = headers.clone();
    let mut set = |name: &'static str, value: &str| {
        signed.insert(name, HeaderValue::from_str(value).expect("made of printable ASCII"));
    };
    set("host", &host);
    set("x-amz-date", &stamp);
    set("x-amz-content-sha256", "UNSIGNED-PAYLOAD");

    let mut names: Vec<&str> = signed.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    names.dedup();
    let signed_names = names.join(";");
    let mut canonical = format!("{method}\n{encoded_path}\n{encoded_query}\n");
    for name in &names {
        let value = signed.get(*name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let _ = writeln!(canonical, "{name}:{}", value.trim());
    }
    let _ = write!(canonical, "\n{signed_names}\nUNSIGNED-PAYLOAD");

    let day = &stamp[..8];
    let scope = format!("{day}/{}/s3/aws4_request", credentials.region);
    let to_sign = format!(
        "AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{}",
        hex::encode(Sha256::digest(canonical.as_bytes()))
    );
    let key = [credentials.region.as_str(), "s3", "aws4_request"].iter().fold(
        hmac(format!("AWS4{}", credentials.secret_key).as_bytes(), day.as_bytes()),
        |key, part| hmac(&key, part.as_bytes()),
    );
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={signed_names}, Signature={}",
        credentials.access_key,
        hex::encode(hmac(&key, to_sign.as_bytes()))
    );

    let separator = if encoded_query.is_empty() { "" } else { "?" };
    let mut request = Request::builder()
        .method(method)
        .uri(format!("http://{host}{encoded_path}{separator}{encoded_query}"))
        .body(Full::new(body))
        .expect("every part was encoded");
    *request.headers_mut() = signed;
    request.headers_mut().insert(
        "authorization",
        HeaderValue::from_str(&authorization).expect("made of printable ASCII"),
    );
    request
}

fn canonical_query(query: &[(&str, &str)]) -> String {
    let mut pairs: Vec<String> = query
        .iter()
        .map(|(name, value)| {
            format!("{}={}", utf8_percent_encode(name, STRICT), utf8_percent_encode(value, STRICT))
        })
        .collect();
    pairs.sort_unstable();
    pairs.join("&")
}

/// HMAC-SHA-256 of one message.
pub(crate) fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any key length will do");
    mac.update(message);
    mac.finalize().into_bytes().to_vec()
}
