//! Names that callers use: buckets, keys and entity tags.
//!
//! Invariant: a value of these types is valid, and prints exactly as it was given. They refuse
//! normalisation of any kind: `a//b`, `./a` and `a/` are three different keys.

use std::fmt;
use std::sync::Arc;

/// Longest key in bytes that S3, GCS and Azure all accept.
const MAX_KEY_BYTES: usize = 1024;

/// Longest bucket name in bytes: the limit of S3, and of a DNS label.
const MAX_BUCKET_BYTES: usize = 63;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidName(String);

/// The name of a bucket as clients see it: 1 to 63 bytes of `a-z A-Z 0-9 . _ -`, beginning and
/// ending in a letter or digit, so that it is a valid path segment and URL segment as it stands.
///
/// Shorter names and capitals than S3 allows for new buckets are accepted, because a backend's
/// `name` is a bucket here and existing configurations have such names.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BucketName(Arc<str>);

impl BucketName {
    /// Checks `name` and wraps it. Errors say which rule it breaks.
    pub fn new(name: &str) -> Result<Self, InvalidName> {
        if name.is_empty() || name.len() > MAX_BUCKET_BYTES {
            return Err(InvalidName(format!(
                "bucket name `{name}` has {} bytes, expected 1 to {MAX_BUCKET_BYTES}",
                name.len()
            )));
        }
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if !name.bytes().all(allowed) {
            return Err(InvalidName(format!(
                "bucket name `{name}` has characters other than letters, digits, `.`, `_` and `-`"
            )));
        }
        let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
        if !edge(name.bytes().next()) || !edge(name.bytes().next_back()) {
            return Err(InvalidName(format!(
                "bucket name `{name}` must begin and end with a letter or a digit"
            )));
        }
        Ok(Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The key of an object: raw UTF-8, 1 to 1,024 bytes, never normalised.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey(Arc<str>);

impl ObjectKey {
    /// Checks the length of `key` and wraps it.
    pub fn new(key: impl Into<Arc<str>>) -> Result<Self, InvalidName> {
        let key = key.into();
        if key.is_empty() {
            return Err(InvalidName("object key is empty".into()));
        }
        if key.len() > MAX_KEY_BYTES {
            return Err(InvalidName(format!(
                "object key has {} bytes, at most {MAX_KEY_BYTES} are allowed",
                key.len()
            )));
        }
        Ok(Self(key))
    }

    /// The key.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True when a file system path can name this key: no empty, `.` or `..` segment, no NUL, no
    /// trailing slash, and no segment over 255 bytes. Other keys are reachable over S3 only.
    pub fn is_path(&self) -> bool {
        self.0.split('/').all(|segment| {
            !matches!(segment, "" | "." | "..") && segment.len() <= 255 && !segment.contains('\0')
        })
    }
}

/// An object's address in the federation.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ObjectPath {
    /// The bucket.
    pub bucket: BucketName,
    /// The key within it.
    pub key: ObjectKey,
}

impl fmt::Display for ObjectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.bucket, self.key)
    }
}

/// The version of an object: an opaque text, held without its quotes and without a weak prefix.
///
/// Two objects with equal key and equal `ETag` have equal bytes; nothing else may be read from it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ETag(Arc<str>);

impl ETag {
    /// Takes a tag as any origin or client writes it: `"x"`, `x` and `W/"x"` are one tag.
    pub fn parse(text: &str) -> Self {
        let text = text.trim();
        let text = text.strip_prefix("W/").unwrap_or(text);
        let text = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(text);
        Self(text.into())
    }

    /// The tag without quotes.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The tag in quotes, as HTTP headers and S3 documents write it.
    pub fn quoted(&self) -> String {
        format!("\"{}\"", self.0)
    }

    /// The MD5 of the whole object in hex, where this tag is one: 32 hex digits.
    pub fn md5_hex(&self) -> Option<&str> {
        (self.0.len() == 32 && self.0.bytes().all(|b| b.is_ascii_hexdigit())).then_some(&*self.0)
    }
}

macro_rules! prints_as_text {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, "{:?}", &*self.0) }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str { &self.0 }
        }
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str { &self.0 }
        }
    )*};
}
prints_as_text!(BucketName, ObjectKey, ETag);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bucket_names_are_path_segments() {
        for good in ["a", "train-data", "My_Bucket.v2", &"x".repeat(63)] {
            assert!(BucketName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "a/b", "..", "-a", "a-", "b\u{e9}", "a b", &"x".repeat(64)] {
            assert!(BucketName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn path_keys() {
        for good in ["a", "a/b c/\u{e9}+%.bin"] {
            assert!(ObjectKey::new(good).unwrap().is_path(), "{good}");
        }
        for bad in ["a//b", "a/", "/a", ".", "a/../b", "a/./b", "a\0b", &"s".repeat(256)] {
            assert!(!ObjectKey::new(bad).unwrap().is_path(), "{bad}");
        }
    }

    #[test]
    fn etags_lose_their_wrapping() {
        for text in ["\"abc-1\"", "abc-1", "W/\"abc-1\"", " \"abc-1\" "] {
            assert_eq!(ETag::parse(text).as_str(), "abc-1");
        }
        assert_eq!(ETag::parse("abc-1").quoted(), "\"abc-1\"");
        assert_eq!(ETag::parse("abc-1").md5_hex(), None);
        assert!(ETag::parse("d41d8cd98f00b204e9800998ecf8427e").md5_hex().is_some());
    }

    proptest! {
        #[test]
        fn keys_come_out_as_they_went_in(text in "\\PC{1,200}") {
            prop_assume!(text.len() <= 1024);
            let key = ObjectKey::new(text.clone()).unwrap();
            prop_assert_eq!(key.as_str(), &text);
        }

        #[test]
        fn long_keys_are_refused(extra in 1usize..100) {
            prop_assert!(ObjectKey::new("k".repeat(1024 + extra)).is_err());
        }
    }
}
