//! Signature version 4: header, presigned URL, and the chunks of a signed stream.
//!
//! Invariant: what is compared was computed from the request as received; the canonical form
//! follows the S3 rules (path encoded once, payload hash as the header says). Vectors of AWS's
//! documentation run in the tests.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use hmac::{Hmac, KeyInit, Mac};
use http::HeaderMap;
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;
use s3s::S3ErrorCode;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{
    Checked, Payload, Refusal, Signed, check_skew, malformed, parse_amz_date, parse_date,
    payload_hash, refuse, secret, wrong_signature,
};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// Longest life of a presigned URL in seconds: seven days, as in S3.
const MAX_EXPIRES_SECONDS: u64 = 7 * 24 * 3600;

/// Most signing keys that are remembered: one per access key, day and region in use.
const MAX_SIGNING_KEYS: usize = 64;

/// The SHA-256 of nothing, in hex.
const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// What `x-amz-content-sha256` promises of the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PayloadHash {
    /// Nothing.
    Unsigned,
    /// Its SHA-256.
    Exact([u8; 32]),
    /// It comes in chunks (`aws-chunked`), each signed or not, with trailing headers or not.
    Chunks {
        /// Each chunk carries a signature.
        signed: bool,
        /// Headers follow the last chunk.
        trailer: bool,
    },
}

impl PayloadHash {
    /// Reads the header's value; `None` for anything unknown.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "UNSIGNED-PAYLOAD" => Self::Unsigned,
            "STREAMING-UNSIGNED-PAYLOAD-TRAILER" => Self::Chunks { signed: false, trailer: true },
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD" => Self::Chunks { signed: true, trailer: false },
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER" => {
                Self::Chunks { signed: true, trailer: true }
            }
            _ => {
                let mut digest = [0; 32];
                hex::decode_to_slice(text, &mut digest).ok()?;
                Self::Exact(digest)
            }
        })
    }
}

/// The `Authorization` header of version 4, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization<'a> {
    /// The access key id.
    pub key_id: &'a str,
    /// Day of the scope, `YYYYMMDD`.
    pub date: &'a str,
    /// Region of the scope.
    pub region: &'a str,
    /// Service of the scope.
    pub service: &'a str,
    /// Names of the signed headers, in lower case, as sent.
    pub signed_headers: Vec<&'a str>,
    /// The signature in hex.
    pub signature: &'a str,
}

impl<'a> Authorization<'a> {
    /// Takes apart a header value; the error names what is wrong with it.
    pub fn parse(header: &'a str) -> Result<Self, &'static str> {
        let fields = header.strip_prefix(ALGORITHM).ok_or("the algorithm is not supported")?;
        if !fields.starts_with([' ', '\t']) {
            return Err("the algorithm is not supported");
        }
        let (mut credential, mut headers, mut signature) = (None, None, None);
        for field in fields.split(',') {
            let (name, value) = field.trim().split_once('=').ok_or("a field has no value")?;
            let slot = match name {
                "Credential" => &mut credential,
                "SignedHeaders" => &mut headers,
                "Signature" => &mut signature,
                _ => return Err("a field is unknown"),
            };
            if slot.replace(value).is_some() {
                return Err("a field is there twice");
            }
        }
        Self::assemble(
            credential.ok_or("Credential is missing")?,
            headers.ok_or("SignedHeaders is missing")?,
            signature.ok_or("Signature is missing")?,
        )
    }

    fn assemble(
        credential: &'a str,
        headers: &'a str,
        signature: &'a str,
    ) -> Result<Self, &'static str> {
        // The id may hold slashes, the scope has exactly four fields behind it.
        let mut fields = credential.rsplitn(5, '/');
        let mut next = || fields.next().filter(|field| !field.is_empty());
        let wrong = "Credential is not id/date/region/service/aws4_request";
        if next() != Some("aws4_request") {
            return Err(wrong);
        }
        let service = next().ok_or(wrong)?;
        let region = next().ok_or(wrong)?;
        let date = next().ok_or(wrong)?;
        let key_id = next().ok_or(wrong)?;
        if date.len() != 8 || !date.bytes().all(|b| b.is_ascii_digit()) {
            return Err("the date of Credential is not YYYYMMDD");
        }
        let signed_headers: Vec<&str> = headers.split(';').collect();
        if signed_headers.iter().any(|name| name.is_empty()) {
            return Err("SignedHeaders has an empty name");
        }
        Ok(Self { key_id, date, region, service, signed_headers, signature })
    }

    fn scope(&self) -> String {
        format!("{}/{}/{}/aws4_request", self.date, self.region, self.service)
    }
}

/// Signing keys that were derived before: four HMACs less per request.
#[derive(Debug, Default)]
pub(super) struct SigningKeys(Mutex<HashMap<(String, String, String), [u8; 32]>>);

impl SigningKeys {
    fn get(&self, authorization: &Authorization<'_>, secret: &SecretString) -> [u8; 32] {
        let name = (
            authorization.key_id.to_owned(),
            authorization.date.to_owned(),
            authorization.region.to_owned(),
        );
        let mut known = self.0.lock();
        if let Some(key) = known.get(&name) {
            return *key;
        }
        let key = signing_key(secret, authorization.date, authorization.region, "s3");
        if known.len() >= MAX_SIGNING_KEYS {
            known.clear();
        }
        known.insert(name, key);
        key
    }
}

pub(super) fn signing_key(
    secret: &SecretString,
    date: &str,
    region: &str,
    service: &str,
) -> [u8; 32] {
    let first = format!("AWS4{}", secret.expose_secret());
    let day = hmac(first.as_bytes(), date.as_bytes());
    let region = hmac(&day, region.as_bytes());
    let service = hmac(&region, service.as_bytes());
    hmac(&service, b"aws4_request")
}

fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(message);
    mac.finalize().into_bytes().into()
}

fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn same(ours: &str, theirs: &str) -> bool {
    ours.as_bytes().ct_eq(theirs.as_bytes()).into()
}

/// Verifies a request that is signed in its `Authorization` header.
pub(super) fn check_header(
    keys: &HashMap<String, SecretString>,
    signing_keys: &SigningKeys,
    request: &Signed<'_>,
    header: &str,
) -> Checked<Payload> {
    let authorization = match Authorization::parse(header) {
        Ok(authorization) => authorization,
        Err(wrong) => return malformed(format!("the authorization header is malformed: {wrong}")),
    };
    let Some((date_text, time)) = header_date(request.headers) else {
        return refuse(
            Refusal::Malformed,
            S3ErrorCode::AccessDenied,
            "a signed request needs a valid Date or x-amz-date header",
        );
    };
    let Some(hash) = payload_hash(request.headers)? else {
        return refuse(
            Refusal::Malformed,
            S3ErrorCode::InvalidRequest,
            "missing required header for this request: x-amz-content-sha256",
        );
    };
    let secret = secret(keys, authorization.key_id)?;
    check_scope(&authorization, &date_text)?;
    check_skew(time, request.now)?;
    check_signed_headers(&authorization, request.headers, &[])?;
    let words = header_text(request.headers, "x-amz-content-sha256");
    let key = signing_keys.get(&authorization, secret);
    verify(request, &authorization, &key, &date_text, &words)?;
    let signer = matches!(hash, PayloadHash::Chunks { signed: true, .. }).then(|| ChunkSigner {
        key,
        date: date_text.into_owned(),
        scope: authorization.scope(),
        previous: authorization.signature.to_owned(),
    });
    Ok(Payload { hash, signer })
}

/// Verifies a presigned URL.
pub(super) fn check_presigned(
    keys: &HashMap<String, SecretString>,
    signing_keys: &SigningKeys,
    request: &Signed<'_>,
) -> Checked<Payload> {
    let wrong = |message: String| {
        refuse(Refusal::Malformed, S3ErrorCode::AuthorizationQueryParametersError, message)
    };
    let get = |name: &str| request.query.get(name).unwrap_or_default();
    if get("X-Amz-Algorithm") != ALGORITHM {
        return wrong(format!("X-Amz-Algorithm only supports {ALGORITHM}"));
    }
    let authorization = match Authorization::assemble(
        get("X-Amz-Credential"),
        get("X-Amz-SignedHeaders"),
        get("X-Amz-Signature"),
    ) {
        Ok(authorization) => authorization,
        Err(error) => return wrong(error.to_owned()),
    };
    let date_text = get("X-Amz-Date");
    let Some(time) = parse_amz_date(date_text) else {
        return wrong("X-Amz-Date is not YYYYMMDDTHHMMSSZ".into());
    };
    let expires = match get("X-Amz-Expires").parse::<u64>() {
        Ok(seconds) if (1..=MAX_EXPIRES_SECONDS).contains(&seconds) => Duration::from_secs(seconds),
        _ => return wrong(format!("X-Amz-Expires is not within 1 to {MAX_EXPIRES_SECONDS}")),
    };
    let secret = secret(keys, authorization.key_id)?;
    check_scope(&authorization, date_text)?;
    check_lifetime(time, expires, request.now)?;
    // Clients of presigned URLs add this one by themselves.
    check_signed_headers(&authorization, request.headers, &["x-amz-content-sha256"])?;
    let hash = payload_hash(request.headers)?.unwrap_or(PayloadHash::Unsigned);
    if matches!(hash, PayloadHash::Chunks { signed: true, .. }) {
        return wrong("the body of a presigned request cannot be signed in chunks".into());
    }
    let key = signing_keys.get(&authorization, secret);
    let words = request.query.get("X-Amz-Content-Sha256").unwrap_or("UNSIGNED-PAYLOAD");
    let first = verify(request, &authorization, &key, date_text, words);
    if first.is_err() && request.headers.contains_key("x-amz-content-sha256") {
        // A signer may also have put the header's value into the canonical request.
        let words = header_text(request.headers, "x-amz-content-sha256");
        verify(request, &authorization, &key, date_text, &words)?;
    } else {
        first?;
    }
    Ok(Payload { hash, signer: None })
}

fn check_lifetime(time: SystemTime, expires: Duration, now: SystemTime) -> Checked<()> {
    if time.duration_since(now).is_ok_and(|ahead| ahead > super::MAX_SKEW) {
        return refuse(
            Refusal::ClockSkew,
            S3ErrorCode::AccessDenied,
            "Request is not valid yet: its date is in the future",
        );
    }
    if now.duration_since(time).is_ok_and(|age| age > expires) {
        return refuse(Refusal::Expired, S3ErrorCode::AccessDenied, "Request has expired");
    }
    Ok(())
}

fn check_scope(authorization: &Authorization<'_>, date_text: &str) -> Checked<()> {
    if authorization.service != "s3" {
        return malformed(format!(
            "the service `{}` of Credential is not s3",
            authorization.service
        ));
    }
    if !date_text.starts_with(authorization.date) {
        return malformed("the date of Credential is not the date of the request");
    }
    Ok(())
}

/// `host` and every `x-amz-` header must be signed: others could be added on the way.
fn check_signed_headers(
    authorization: &Authorization<'_>,
    headers: &HeaderMap,
    exempt: &[&str],
) -> Checked<()> {
    let signed = |name: &str| authorization.signed_headers.contains(&name);
    let open = headers
        .keys()
        .map(http::HeaderName::as_str)
        .filter(|name| name.starts_with("x-amz-") && !exempt.contains(name))
        .find(|name| !signed(name));
    let open = if signed("host") { open } else { Some("host") };
    match open {
        None => Ok(()),
        Some(name) => refuse(
            Refusal::Malformed,
            S3ErrorCode::AccessDenied,
            format!("There were headers present in the request which were not signed: {name}"),
        ),
    }
}

/// The request's date as text in `x-amz-date` form, and as time.
fn header_date(headers: &HeaderMap) -> Option<(Cow<'_, str>, SystemTime)> {
    if let Some(value) = headers.get("x-amz-date") {
        let text = value.to_str().ok()?;
        return Some((Cow::Borrowed(text), parse_amz_date(text)?));
    }
    let time = parse_date(headers.get(http::header::DATE)?.to_str().ok()?)?;
    let utc = time::OffsetDateTime::from(time);
    let text = format!(
        "{:04}{:02}{:02}T{:02}{:02}{:02}Z",
        utc.year(),
        u8::from(utc.month()),
        utc.day(),
        utc.hour(),
        utc.minute(),
        utc.second()
    );
    Some((Cow::Owned(text), time))
}

fn header_text<'h>(headers: &'h HeaderMap, name: &str) -> Cow<'h, str> {
    headers.get(name).map_or(Cow::Borrowed(""), |v| String::from_utf8_lossy(v.as_bytes()))
}

fn verify(
    request: &Signed<'_>,
    authorization: &Authorization<'_>,
    key: &[u8; 32],
    date_text: &str,
    payload: &str,
) -> Checked<()> {
    let path = canonical_path(request.path);
    let query = canonical_query(request.raw_query);
    let matches = |path: &str| {
        let canonical = canonical_request(request, authorization, path, &query, payload);
        let signature = sign(key, date_text, &authorization.scope(), &canonical);
        same(&signature, authorization.signature)
    };
    // Some clients sign the path as they send it, with characters left plain that S3 encodes.
    if matches(&path) || (path != request.path && matches(request.path)) {
        return Ok(());
    }
    wrong_signature()
}

fn sign(key: &[u8; 32], date_text: &str, scope: &str, canonical: &str) -> String {
    let digest = sha256_hex(canonical.as_bytes());
    hex::encode(hmac(key, format!("{ALGORITHM}\n{date_text}\n{scope}\n{digest}").as_bytes()))
}

fn canonical_request(
    request: &Signed<'_>,
    authorization: &Authorization<'_>,
    path: &str,
    query: &str,
    payload: &str,
) -> String {
    let mut text = String::with_capacity(512);
    let _ = writeln!(text, "{}\n{path}\n{query}", request.method);
    for name in &authorization.signed_headers {
        text.push_str(name);
        text.push(':');
        for (i, value) in request.headers.get_all(*name).iter().enumerate() {
            if i > 0 {
                text.push(',');
            }
            push_trimmed(&mut text, &String::from_utf8_lossy(value.as_bytes()));
        }
        text.push('\n');
    }
    text.push('\n');
    text.push_str(&authorization.signed_headers.join(";"));
    text.push('\n');
    text.push_str(payload);
    text
}

/// Outer spaces go, inner runs of spaces become one.
fn push_trimmed(text: &mut String, value: &str) {
    let mut space = false;
    for c in value.trim().chars() {
        if c == ' ' && space {
            continue;
        }
        space = c == ' ';
        text.push(c);
    }
}

fn canonical_path(raw: &str) -> String {
    let decoded: Vec<u8> = percent_decode_str(raw).collect();
    let mut out = String::with_capacity(raw.len() + 8);
    encode_into(&mut out, &decoded, true);
    if out.is_empty() { "/".to_owned() } else { out }
}

pub(super) fn canonical_query(raw: &str) -> String {
    if raw.is_empty() {
        return String::new();
    }
    let encode = |text: &str| {
        let decoded: Vec<u8> = percent_decode_str(&text.replace('+', " ")).collect();
        let mut out = String::with_capacity(text.len() + 8);
        encode_into(&mut out, &decoded, false);
        out
    };
    let mut pairs: Vec<(String, String)> = raw
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (encode(name), encode(value))
        })
        // A signature cannot cover itself.
        .filter(|(name, _)| name != "X-Amz-Signature")
        .collect();
    pairs.sort();
    let pairs: Vec<String> = pairs.into_iter().map(|(n, v)| format!("{n}={v}")).collect();
    pairs.join("&")
}

/// The encoding of S3: everything but unreserved characters, in upper case hex.
pub(crate) fn encode_into(out: &mut String, bytes: &[u8], keep_slash: bool) {
    for &byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(byte as char);
            }
            b'/' if keep_slash => out.push('/'),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
}

/// Verifies the chunks of a signed stream; each signature covers the one before it.
pub(crate) struct ChunkSigner {
    key: [u8; 32],
    date: String,
    scope: String,
    previous: String,
}

impl std::fmt::Debug for ChunkSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkSigner").field("scope", &self.scope).finish_non_exhaustive()
    }
}

/// The SHA-256 of a chunk while it streams by.
#[derive(Default)]
pub(crate) struct Streaming(Sha256);

impl Streaming {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
}

impl ChunkSigner {
    /// True when the signature of a chunk is right; the next one builds on it.
    pub(crate) fn chunk(&mut self, digest: Streaming, signature: &str) -> bool {
        let digest = hex::encode(digest.0.finalize());
        let text = format!(
            "{ALGORITHM}-PAYLOAD\n{}\n{}\n{}\n{EMPTY_SHA256}\n{digest}",
            self.date, self.scope, self.previous
        );
        self.step(&text, signature)
    }

    /// True when the signature of the trailing headers is right.
    pub(crate) fn trailer(&mut self, headers: &[(String, String)], signature: &str) -> bool {
        let mut lines = String::new();
        for (name, value) in headers {
            let _ = writeln!(lines, "{name}:{value}");
        }
        let digest = sha256_hex(lines.as_bytes());
        let text = format!(
            "{ALGORITHM}-TRAILER\n{}\n{}\n{}\n{digest}",
            self.date, self.scope, self.previous
        );
        self.step(&text, signature)
    }

    fn step(&mut self, text: &str, signature: &str) -> bool {
        let ours = hex::encode(hmac(&self.key, text.as_bytes()));
        let right = same(&ours, signature);
        self.previous = ours;
        right
    }
}
