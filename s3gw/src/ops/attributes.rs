//! Headers of an object: from a write's head to attributes, and from metadata to an answer's head.
//!
//! Invariant: what a client wrote comes back as it was written; what a header cannot carry is
//! encoded (RFC 2047) or counted in `x-amz-missing-meta`, never bent.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE,
    CONTENT_TYPE, ETAG, EXPIRES, HeaderName, HeaderValue, LAST_MODIFIED,
};
use s3s::S3ErrorCode;
use store::{Attributes, ObjectMeta};

use crate::dates::http_date;
use crate::failure::{Failure, Outcome};
use crate::target::Query;

const USER_PREFIX: &str = "x-amz-meta-";

/// Most bytes of user metadata, names and values together, as in S3.
const MAX_USER_BYTES: usize = 2048;

/// The type of objects that were written without one, as S3 gives it.
const DEFAULT_TYPE: HeaderValue = HeaderValue::from_static("binary/octet-stream");

/// What a write attaches to its object.
pub(super) fn read(headers: &HeaderMap) -> Outcome<Attributes> {
    let text = |name: HeaderName| {
        let value = headers.get(name)?;
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        (!value.is_empty()).then_some(value)
    };
    let mut attributes = Attributes {
        content_type: text(CONTENT_TYPE),
        cache_control: text(CACHE_CONTROL),
        content_disposition: text(CONTENT_DISPOSITION),
        content_encoding: content_encoding(headers),
        content_language: text(CONTENT_LANGUAGE),
        expires: text(EXPIRES),
        user: std::collections::BTreeMap::new(),
    };
    let mut size = 0;
    for (name, value) in headers {
        let Some(name) = name.as_str().strip_prefix(USER_PREFIX) else { continue };
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        size += name.len() + value.len();
        // Several headers of one name are one value, as everywhere in HTTP.
        let joined = attributes.user.entry(name.to_owned()).or_default();
        if !joined.is_empty() {
            joined.push(',');
        }
        joined.push_str(&value);
    }
    if size > MAX_USER_BYTES {
        return Err(Failure::new(
            S3ErrorCode::MetadataTooLarge,
            format!("user metadata has {size} bytes, at most {MAX_USER_BYTES} are kept"),
        ));
    }
    Ok(attributes)
}

/// `Content-Encoding` less `aws-chunked`, which is of the request and not of the object.
fn content_encoding(headers: &HeaderMap) -> Option<String> {
    let kept: Vec<&str> = headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|encoding| !encoding.is_empty() && !encoding.eq_ignore_ascii_case("aws-chunked"))
        .collect();
    (!kept.is_empty()).then(|| kept.join(","))
}

/// The headers that tell a version: what every answer about an object has, also a 304.
pub(super) fn validators(headers: &mut HeaderMap, meta: &ObjectMeta) {
    set(headers, ETAG, &meta.etag.quoted());
    set(headers, LAST_MODIFIED, &http_date(meta.last_modified));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
}

/// The headers of a whole answer about an object.
pub(super) fn describe(headers: &mut HeaderMap, meta: &ObjectMeta, overrides: &Query) {
    validators(headers, meta);
    headers.insert(CONTENT_TYPE, DEFAULT_TYPE);
    if let Some(attributes) = &meta.attributes {
        let known = [
            (CONTENT_TYPE, &attributes.content_type),
            (CACHE_CONTROL, &attributes.cache_control),
            (CONTENT_DISPOSITION, &attributes.content_disposition),
            (CONTENT_ENCODING, &attributes.content_encoding),
            (CONTENT_LANGUAGE, &attributes.content_language),
            (EXPIRES, &attributes.expires),
        ];
        for (name, value) in known {
            if let Some(value) = value {
                set(headers, name, value);
            }
        }
        describe_user(headers, attributes);
    }
    if overrides.pairs().is_empty() {
        return;
    }
    let overridden = [
        ("response-content-type", CONTENT_TYPE),
        ("response-cache-control", CACHE_CONTROL),
        ("response-content-disposition", CONTENT_DISPOSITION),
        ("response-content-encoding", CONTENT_ENCODING),
        ("response-content-language", CONTENT_LANGUAGE),
        ("response-expires", EXPIRES),
    ];
    for (parameter, name) in overridden {
        if let Some(value) = overrides.non_empty(parameter) {
            set(headers, name, value);
        }
    }
}

fn describe_user(headers: &mut HeaderMap, attributes: &Attributes) {
    let mut missing = 0u32;
    for (name, value) in &attributes.user {
        let name = HeaderName::try_from(format!("{USER_PREFIX}{name}"));
        let value = HeaderValue::try_from(encode_text(value));
        match (name, value) {
            (Ok(name), Ok(value)) => {
                headers.insert(name, value);
            }
            _ => missing += 1,
        }
    }
    if missing > 0 {
        headers.insert("x-amz-missing-meta", missing.into());
    }
}

/// Plain ASCII as it is, anything else as an encoded word of RFC 2047, as S3 does.
fn encode_text(value: &str) -> String {
    if value.bytes().all(|b| (0x20..0x7f).contains(&b) || b == b'\t') {
        return value.to_owned();
    }
    format!("=?UTF-8?B?{}?=", STANDARD.encode(value))
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;
    use store::ETag;

    #[test]
    fn attributes_come_back() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("content-type", "image/png"),
            ("content-encoding", "gzip, aws-chunked"),
            ("expires", "0"),
            ("x-amz-meta-mtime", "1.5"),
            ("x-amz-meta-name", "a b"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        let attributes = read(&headers).unwrap();
        assert_eq!(attributes.content_encoding.as_deref(), Some("gzip"));
        let meta = ObjectMeta {
            size: 0,
            etag: ETag::parse("t-1"),
            last_modified: SystemTime::UNIX_EPOCH,
            attributes: Some(attributes.into()),
        };
        let mut out = HeaderMap::new();
        let overrides = Query::parse("response-content-type=text%2Fplain").unwrap();
        describe(&mut out, &meta, &overrides);
        let get = |name: &str| out.get(name).map(|v| v.to_str().unwrap());
        assert_eq!(get("content-type"), Some("text/plain"));
        assert_eq!(get("content-encoding"), Some("gzip"));
        assert_eq!(get("expires"), Some("0"));
        assert_eq!(get("x-amz-meta-mtime"), Some("1.5"));
        assert_eq!(get("etag"), Some("\"t-1\""));
        assert_eq!(get("last-modified"), Some("Thu, 01 Jan 1970 00:00:00 GMT"));
    }

    #[test]
    fn what_headers_cannot_carry() {
        let mut attributes = Attributes::default();
        attributes.user.insert("name".into(), "\u{e9}".into());
        attributes.user.insert("no header".into(), "x".into());
        let mut out = HeaderMap::new();
        describe_user(&mut out, &attributes);
        assert_eq!(out.get("x-amz-meta-name").unwrap(), "=?UTF-8?B?w6k=?=");
        assert_eq!(out.get("x-amz-missing-meta").unwrap(), "1");
    }

    #[test]
    fn too_much_metadata_is_refused() {
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-meta-x", "v".repeat(2048).parse().unwrap());
        assert_eq!(read(&headers).unwrap_err().code().as_str(), "MetadataTooLarge");
    }
}
