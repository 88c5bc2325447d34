//! Attributes as the service keeps them.
//!
//! Invariant: what a writer attached, a reader gets back, and nothing else is made of it. Metadata
//! names are C# identifiers there: a name of lower-case letters, digits and underscores that
//! begins with a letter is kept as it is; any other becomes `wd__` and its bytes, those that are
//! not letters or digits as `_` and two hex digits. Values that are not printable ASCII are kept
//! as RFC 2047 words. `Expires`, which the service does not know, is metadata of its own.

use std::collections::BTreeMap;
use std::fmt::Write;

use ::http::{HeaderMap, HeaderName};
use store::{Attributes, Error, ErrorKind, Result};

use super::request::ascii_value;
use crate::http::headers;

/// Where metadata is in requests and answers.
const PREFIX: &str = "x-ms-meta-";

/// How encoded names begin. A name that begins with it by itself is encoded too.
const ENCODED: &str = "wd__";

/// Under which name `Expires` is kept. No encoded name is like it: `_ex` has no two hex digits.
const EXPIRES: &str = "wd__expires_";

/// Adds the headers that set content headers; the service takes all of them, or clears them.
pub(super) fn set_content_headers(to: &mut HeaderMap, attributes: &Attributes) -> Result<()> {
    let known = [
        ("x-ms-blob-content-type", &attributes.content_type),
        ("x-ms-blob-cache-control", &attributes.cache_control),
        ("x-ms-blob-content-disposition", &attributes.content_disposition),
        ("x-ms-blob-content-encoding", &attributes.content_encoding),
        ("x-ms-blob-content-language", &attributes.content_language),
    ];
    for (name, value) in known {
        if let Some(value) = value {
            to.insert(HeaderName::from_static(name), ascii_value(value)?);
        }
    }
    Ok(())
}

/// Adds the headers that set metadata.
pub(super) fn set_metadata(to: &mut HeaderMap, attributes: &Attributes) -> Result<()> {
    let mut set = |name: &str, value: &str| {
        let header = HeaderName::try_from(format!("{PREFIX}{name}")).map_err(|_| {
            let context = format!("user metadata name `{name}` is too long for a header");
            Error::new(ErrorKind::InvalidInput, context)
        })?;
        let value = if value.is_empty() { EMPTY.to_owned() } else { headers::encode_words(value) };
        to.insert(header, ascii_value(&value)?);
        Ok::<_, Error>(())
    };
    for (name, value) in &attributes.user {
        set(&encode_name(name), value)?;
    }
    match &attributes.expires {
        Some(expires) => set(EXPIRES, expires),
        None => Ok(()),
    }
}

/// An empty value as an encoded word: the service refuses empty ones.
const EMPTY: &str = "=?UTF-8?B??=";

/// Adds the headers of both.
pub(super) fn set_attributes(to: &mut HeaderMap, attributes: &Attributes) -> Result<()> {
    set_content_headers(to, attributes)?;
    set_metadata(to, attributes)
}

/// The attributes that an answer carries.
pub(super) fn attributes(answer: &HeaderMap) -> Attributes {
    let mut found = headers::attributes(answer, PREFIX);
    let stored = std::mem::take(&mut found.user);
    found.expires = stored.get(EXPIRES).cloned();
    found.user = stored
        .into_iter()
        .filter(|(name, _)| name != EXPIRES)
        .map(|(name, value)| (decode_name(&name).unwrap_or(name), value))
        .collect::<BTreeMap<_, _>>();
    found
}

fn encode_name(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    let begins = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    if begins && name.bytes().all(plain) && !name.starts_with(ENCODED) {
        return name.to_owned();
    }
    let mut encoded = ENCODED.to_owned();
    for byte in name.bytes() {
        if byte.is_ascii_lowercase() || byte.is_ascii_digit() {
            encoded.push(byte.into());
        } else {
            write!(encoded, "_{byte:02x}").expect("writing to a string does not fail");
        }
    }
    encoded
}

/// The reverse; `None` for a name that was not encoded here.
fn decode_name(stored: &str) -> Option<String> {
    let mut rest = stored.strip_prefix(ENCODED)?.bytes();
    let mut name = Vec::new();
    while let Some(byte) = rest.next() {
        name.push(if byte == b'_' {
            let digits = [rest.next()?, rest.next()?];
            u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
        } else {
            byte
        });
    }
    String::from_utf8(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_identifiers() {
        assert_eq!(encode_name("mtime"), "mtime");
        assert_eq!(encode_name("a_b1"), "a_b1");
        assert_eq!(encode_name("my-key.x"), "wd__my_2dkey_2ex");
        assert_eq!(encode_name("1st"), "wd__1st");
        assert_eq!(encode_name("wd__x"), "wd__wd_5f_5fx");
        assert_eq!(decode_name("wd__xyz_"), None);
        assert_eq!(decode_name("plain"), None);
        assert_eq!(decode_name(EXPIRES), None);
    }

    #[test]
    fn what_is_not_ascii_in_a_content_header_is_refused() {
        let given = Attributes { content_type: Some("\u{e9}".into()), ..Attributes::default() };
        let error = set_attributes(&mut HeaderMap::new(), &given).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }

    proptest! {
        #[test]
        fn metadata_comes_back(
            user in prop::collection::btree_map("[a-z0-9_.-]{1,12}", "\\PC{0,20}", 0..5),
            expires in prop::option::of("[ -~]{1,20}"),
        ) {
            let expires = expires.map(|e| e.trim().to_owned());
            let given = Attributes { user, expires, ..Attributes::default() };
            let mut headers = HeaderMap::new();
            set_attributes(&mut headers, &given).unwrap();
            for name in headers.keys() {
                let name = name.as_str().strip_prefix(PREFIX).unwrap();
                let identifier = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
                prop_assert!(name.bytes().all(identifier) && !name.as_bytes()[0].is_ascii_digit());
            }
            prop_assert_eq!(attributes(&headers), given);
        }
    }
}
