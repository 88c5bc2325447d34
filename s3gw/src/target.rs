//! What a request names: bucket, key and query, decoded exactly once.
//!
//! Invariant: a key is the percent-decoded path and nothing else; `a//b`, `dir/`, `./x` and `..`
//! stay what they are. It refuses paths that are not UTF-8 after decoding.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use s3s::S3ErrorCode;

use crate::failure::{Failure, Outcome};

/// The bucket and key of a request; both empty for the root.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Target {
    pub(crate) bucket: String,
    pub(crate) key: String,
}

impl Target {
    /// Takes apart the raw path of a URI. With a bucket from the host name all of the path is key.
    pub(crate) fn parse(path: &str, host_bucket: Option<&str>) -> Outcome<Self> {
        let path = path.strip_prefix('/').unwrap_or(path);
        let (bucket, key) = match host_bucket {
            Some(bucket) => (bucket, path),
            None => path.split_once('/').unwrap_or((path, "")),
        };
        Ok(Self { bucket: decode(bucket)?.into_owned(), key: decode(key)?.into_owned() })
    }
}

fn decode(text: &str) -> Outcome<Cow<'_, str>> {
    percent_decode_str(text)
        .decode_utf8()
        .map_err(|_| Failure::new(S3ErrorCode::InvalidURI, "path is not UTF-8"))
}

/// The query of a request, decoded, in the order in which it was sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes a raw query. A `+` is a space, as everywhere in queries of S3.
    pub(crate) fn parse(raw: &str) -> Outcome<Self> {
        if raw.is_empty() {
            return Ok(Self::default());
        }
        let decode = |text: &str| -> Outcome<String> {
            let spaced = if text.contains('+') {
                Cow::Owned(text.replace('+', " "))
            } else {
                Cow::Borrowed(text)
            };
            percent_decode_str(&spaced)
                .decode_utf8()
                .map(Cow::into_owned)
                .map_err(|_| Failure::new(S3ErrorCode::InvalidURI, "query is not UTF-8"))
        };
        raw.split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                Ok((decode(name)?, decode(value)?))
            })
            .collect::<Outcome<_>>()
            .map(Self)
    }

    /// The first value of a name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The first value of a name, unless it is empty.
    pub(crate) fn non_empty(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|v| !v.is_empty())
    }

    /// True when the name is there, with or without a value.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(n, _)| n == name)
    }

    /// A non-negative number; one that is too large for its type is its type's largest.
    pub(crate) fn number(&self, name: &str) -> Outcome<Option<u32>> {
        let Some(text) = self.non_empty(name) else { return Ok(None) };
        if text.bytes().all(|b| b.is_ascii_digit()) {
            return Ok(Some(text.parse().unwrap_or(u32::MAX)));
        }
        Err(Failure::invalid_argument(format!("{name} is not a non-negative integer")))
    }

    /// All pairs.
    pub(crate) fn pairs(&self) -> &[(String, String)] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(path: &str) -> (String, String) {
        let target = Target::parse(path, None).unwrap();
        (target.bucket, target.key)
    }

    #[test]
    fn keys_are_decoded_once_and_never_normalised() {
        for (path, bucket, key) in [
            ("/", "", ""),
            ("/b", "b", ""),
            ("/b/", "b", ""),
            ("/b/a//c", "b", "a//c"),
            ("/b//x", "b", "/x"),
            ("/b/dir/", "b", "dir/"),
            ("/b/./x/../y", "b", "./x/../y"),
            ("/b/%252F", "b", "%2F"),
            ("/b/a+b%2Bc%20d", "b", "a+b+c d"),
            ("/b/%01%C3%A9%F0%9F%98%80", "b", "\u{1}\u{e9}\u{1f600}"),
        ] {
            assert_eq!(target(path), (bucket.to_owned(), key.to_owned()), "{path}");
        }
        assert!(Target::parse("/b/%ff", None).is_err());
        let hosted = Target::parse("/x/y", Some("b")).unwrap();
        assert_eq!((hosted.bucket.as_str(), hosted.key.as_str()), ("b", "x/y"));
    }

    #[test]
    fn queries() {
        let query = Query::parse("list-type=2&prefix=a%2Bb+c&&uploads&delimiter=").unwrap();
        assert_eq!(query.get("prefix"), Some("a+b c"));
        assert!(query.has("uploads") && query.get("uploads") == Some(""));
        assert_eq!(query.get("delimiter"), Some(""));
        assert_eq!(query.non_empty("delimiter"), None);
        assert_eq!(
            Query::parse("max-keys=99999999999").unwrap().number("max-keys").unwrap(),
            Some(u32::MAX)
        );
        assert!(Query::parse("max-keys=-1").unwrap().number("max-keys").is_err());
    }
}
