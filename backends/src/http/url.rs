//! Keys in URLs.
//!
//! Invariant: the path that is sent is, byte for byte, the path that was meant. URL parsers remove
//! `.` and `..` segments, percent-encoded or not; a key with such a segment is refused with
//! [`ErrorKind::UnsupportedKey`] instead of becoming another key.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use store::{Error, ErrorKind, Result};
use url::Url;

/// Everything but what RFC 3986 calls unreserved: for query values, and for single segments.
pub(crate) const STRICT: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The same and slashes: for keys as paths.
pub(crate) const PATH: &AsciiSet = &STRICT.remove(b'/');

/// A key as the path of a URL, without a leading slash.
pub(crate) fn encode_path(key: &str) -> String {
    utf8_percent_encode(key, PATH).to_string()
}

/// A query value or a single path segment.
pub(crate) fn encode_strict(text: &str) -> String {
    utf8_percent_encode(text, STRICT).to_string()
}

/// Percent-decoded text; `None` where it is not UTF-8. A plus stays a plus.
pub(crate) fn decode(text: &str) -> Option<String> {
    percent_decode_str(text).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

/// Pairs as a query string, encoded strictly and in the order given; a pair without a value is
/// written `name=`.
pub(crate) fn query<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let pairs: Vec<String> = pairs
        .into_iter()
        .map(|(name, value)| format!("{}={}", encode_strict(name), encode_strict(value)))
        .collect();
    pairs.join("&")
}

/// `base` with `encoded_path` (absolute, percent-encoded) after its own path, and `query` (encoded,
/// may be empty). [`ErrorKind::UnsupportedKey`] where the path would be sent in another form.
pub(crate) fn join(base: &Url, encoded_path: &str, query: &str) -> Result<Url> {
    let path = format!("{}{encoded_path}", base.path().trim_end_matches('/'));
    let mut url = base.clone();
    url.set_path(&path);
    url.set_query((!query.is_empty()).then_some(query));
    if url.path() != path {
        let shown = decode(encoded_path).unwrap_or_else(|| encoded_path.to_owned());
        return Err(Error::new(
            ErrorKind::UnsupportedKey,
            format!("`{shown}` has a `.` or `..` segment, which HTTP clients remove from paths"),
        ));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn joined(key: &str) -> Result<String> {
        let base = Url::parse("http://127.0.0.1:9/base/").unwrap();
        join(&base, &format!("/{}", encode_path(key)), "").map(|u| u.to_string())
    }

    #[test]
    fn odd_keys_are_sent_as_they_are() {
        let at = |key: &str| joined(key).unwrap();
        assert_eq!(at("a//b"), "http://127.0.0.1:9/base/a//b");
        assert_eq!(at("/a/"), "http://127.0.0.1:9/base//a/");
        assert_eq!(at("a b+c%?#\u{1}"), "http://127.0.0.1:9/base/a%20b%2Bc%25%3F%23%01");
        assert_eq!(at("\u{e9}\\|"), "http://127.0.0.1:9/base/%C3%A9%5C%7C");
        assert_eq!(at("..a/.b/..."), "http://127.0.0.1:9/base/..a/.b/...");
    }

    #[test]
    fn dot_segments_are_refused() {
        for key in [".", "..", "a/./b", "a/../b", "./a", "a/.."] {
            assert_eq!(joined(key).unwrap_err().kind(), ErrorKind::UnsupportedKey, "{key}");
        }
    }

    proptest! {
        #[test]
        fn what_is_sent_decodes_to_the_key(key in "[ -~\u{e9}\u{1}\u{7f}]{1,40}") {
            if let Ok(url) = joined(&key) {
                let path = url.strip_prefix("http://127.0.0.1:9/base/").unwrap();
                let decoded = decode(path);
                prop_assert_eq!(decoded.as_deref(), Some(key.as_str()));
            } else {
                prop_assert!(key.split('/').any(|s| s == "." || s == ".."));
            }
        }
    }
}
