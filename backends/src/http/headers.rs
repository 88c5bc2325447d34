//! Headers to metadata and back.
//!
//! Invariant: what a writer attached, a reader gets back. User metadata that is not printable
//! ASCII travels as RFC 2047 words, as S3 itself returns it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::SystemTime;

use ::http::header::{
    CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH,
    CONTENT_RANGE, CONTENT_TYPE, ETAG, EXPIRES, LAST_MODIFIED,
};
use ::http::{HeaderMap, HeaderName, HeaderValue};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use store::{Attributes, ETag, Error, ErrorKind, Result};

/// The `ETag` header.
pub(crate) fn etag(headers: &HeaderMap) -> Option<ETag> {
    text(headers, &ETAG).filter(|t| !t.is_empty()).map(|t| ETag::parse(&t))
}

/// The `Last-Modified` header.
pub(crate) fn last_modified(headers: &HeaderMap) -> Option<SystemTime> {
    httpdate::parse_http_date(&text(headers, &LAST_MODIFIED)?).ok()
}

/// The `Content-Length` header.
pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    text(headers, &CONTENT_LENGTH)?.parse().ok()
}

/// A `Content-Range` header: the bytes that follow (none with a 416) and the object's size (none
/// when the origin writes `*`).
pub(crate) fn content_range(headers: &HeaderMap) -> Option<(Option<Range<u64>>, Option<u64>)> {
    let value = text(headers, &CONTENT_RANGE)?;
    let (range, size) = value.strip_prefix("bytes ")?.trim().split_once('/')?;
    let size = if size == "*" { None } else { Some(size.parse().ok()?) };
    if range == "*" {
        return Some((None, size));
    }
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((Some(first..last + 1), size))
}

/// A header as text; `None` where there is none or it is not UTF-8.
pub(crate) fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    std::str::from_utf8(headers.get(name)?.as_bytes()).ok().map(str::to_owned)
}

/// The attributes that an answer carries; user metadata is under `user_prefix`, such as
/// `x-amz-meta-`.
pub(crate) fn attributes(headers: &HeaderMap, user_prefix: &str) -> Attributes {
    let mut user = BTreeMap::new();
    for (name, value) in headers {
        let Some(name) = name.as_str().strip_prefix(user_prefix) else { continue };
        if let (false, Ok(value)) = (name.is_empty(), std::str::from_utf8(value.as_bytes())) {
            user.insert(name.to_owned(), decode_words(value));
        }
    }
    Attributes {
        content_type: text(headers, &CONTENT_TYPE),
        cache_control: text(headers, &CACHE_CONTROL),
        content_disposition: text(headers, &CONTENT_DISPOSITION),
        content_encoding: text(headers, &CONTENT_ENCODING).filter(|e| !e.is_empty()),
        content_language: text(headers, &CONTENT_LANGUAGE),
        expires: text(headers, &EXPIRES),
        user,
    }
}

/// Adds the headers of attributes under their standard names and `user_prefix`.
/// [`ErrorKind::InvalidInput`] where a value cannot be a header.
pub(crate) fn set_attributes(
    headers: &mut HeaderMap,
    attributes: &Attributes,
    user_prefix: &str,
) -> Result<()> {
    for (name, value) in standard(attributes) {
        if let Some(value) = value {
            headers.insert(name, header_value(value)?);
        }
    }
    for (name, value) in &attributes.user {
        let name = HeaderName::try_from(format!("{user_prefix}{name}")).map_err(|_| {
            let context = format!("user metadata name `{name}` is not a header name");
            Error::new(ErrorKind::InvalidInput, context)
        })?;
        headers.insert(name, header_value(&encode_words(value))?);
    }
    Ok(())
}

/// The standard headers of attributes by name.
pub(crate) fn standard(attributes: &Attributes) -> [(HeaderName, Option<&str>); 6] {
    [
        (CONTENT_TYPE, attributes.content_type.as_deref()),
        (CACHE_CONTROL, attributes.cache_control.as_deref()),
        (CONTENT_DISPOSITION, attributes.content_disposition.as_deref()),
        (CONTENT_ENCODING, attributes.content_encoding.as_deref()),
        (CONTENT_LANGUAGE, attributes.content_language.as_deref()),
        (EXPIRES, attributes.expires.as_deref()),
    ]
}

/// A header's value. [`ErrorKind::InvalidInput`] for control characters.
pub(crate) fn header_value(text: &str) -> Result<HeaderValue> {
    HeaderValue::from_bytes(text.as_bytes()).map_err(|_| {
        Error::new(
            ErrorKind::InvalidInput,
            format!("`{}` is not a header value", text.escape_debug()),
        )
    })
}

/// `text` as it is where it is printable ASCII that no reader takes for an encoded word, else one
/// RFC 2047 word of base64. Spaces at the edges would be trimmed on the way, so they count too.
pub(crate) fn encode_words(text: &str) -> String {
    let printable = text.bytes().all(|b| (b' '..=b'~').contains(&b));
    if printable && !text.contains("=?") && text.trim() == text {
        text.to_owned()
    } else {
        format!("=?UTF-8?B?{}?=", STANDARD.encode(text))
    }
}

/// The reverse, for words in base64 and quoted-printable; what is no such word stays as it is.
pub(crate) fn decode_words(text: &str) -> String {
    let mut decoded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("=?") {
        let (before, word) = rest.split_at(at);
        let Some((value, length)) = decode_word(word) else {
            decoded.push_str(before);
            decoded.push_str("=?");
            rest = &word[2..];
            continue;
        };
        // White space between two words is not part of the text.
        if decoded.is_empty() || !before.trim().is_empty() {
            decoded.push_str(before);
        }
        decoded.push_str(&value);
        rest = &word[length..];
    }
    decoded.push_str(rest);
    decoded
}

/// The text and length of the word that `text` begins with.
fn decode_word(text: &str) -> Option<(String, usize)> {
    let mut fields = text.strip_prefix("=?")?.splitn(3, '?');
    let (charset, encoding, rest) = (fields.next()?, fields.next()?, fields.next()?);
    if !charset.eq_ignore_ascii_case("utf-8") {
        return None;
    }
    let (payload, _) = rest.split_once("?=")?;
    let bytes = match encoding {
        "B" | "b" => STANDARD.decode(payload).ok()?,
        "Q" | "q" => decode_quoted(payload)?,
        _ => return None,
    };
    let length = 2 + charset.len() + 1 + encoding.len() + 1 + payload.len() + 2;
    Some((String::from_utf8(bytes).ok()?, length))
}

fn decode_quoted(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'_' => b' ',
            b'=' => {
                let digits = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            other => other,
        });
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn content_ranges() {
        let parse = |text: &'static str| {
            content_range(&HeaderMap::from_iter([(CONTENT_RANGE, HeaderValue::from_static(text))]))
        };
        assert_eq!(parse("bytes 2-4/10"), Some((Some(2..5), Some(10))));
        assert_eq!(parse("bytes 2-4/*"), Some((Some(2..5), None)));
        assert_eq!(parse("bytes */10"), Some((None, Some(10))));
        assert_eq!(parse("bytes 4-2/10"), None);
        assert_eq!(parse("items 1-2/3"), None);
    }

    #[test]
    fn words_of_other_writers() {
        assert_eq!(decode_words("=?UTF-8?Q?caf=C3=A9_x?="), "caf\u{e9} x");
        assert_eq!(decode_words("=?UTF-8?B?w6k=?= =?utf-8?b?w6k=?="), "\u{e9}\u{e9}");
        assert_eq!(decode_words("=?UTF-8?B?!!?="), "=?UTF-8?B?!!?=");
        assert_eq!(decode_words("a =? b"), "a =? b");
    }

    proptest! {
        #[test]
        fn metadata_comes_back(value in "\\PC{0,30}", name in "[a-z][a-z0-9-]{0,10}") {
            let mut given = Attributes::default();
            given.user.insert(name, value);
            let mut headers = HeaderMap::new();
            set_attributes(&mut headers, &given, "x-amz-meta-").unwrap();
            prop_assert_eq!(attributes(&headers, "x-amz-meta-"), given);
        }

        #[test]
        fn any_text_is_decoded_without_panic(text in "(\\PC|=\\?|\\?=|UTF-8\\?B\\?|\\?Q\\?){0,20}") {
            decode_words(&text);
        }
    }
}
