//! Whose bytes a file holds, in as few bytes as it takes.
//!
//! Invariant: the same as [`Version`], which it stands for: two are equal exactly when store, key, tag
//! and size are. Refuses tags and keys that a version cannot have.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use store::{ETag, ObjectKey, ObjectMeta};

use crate::version::Version;

/// A version without its attributes: some 48 bytes beside its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) store: u64,
    pub(super) size: u64,
    /// Nanoseconds since 1970 at the origin's clock, clipped to what fits.
    modified_nanos: i64,
    key_bytes: u16,
    /// The key, then the tag.
    text: Box<str>,
}

impl Identity {
    /// `None` for a version whose key is too long to be one.
    pub(super) fn of(version: &Version) -> Option<Self> {
        let (key, etag) = (version.key.as_str(), version.etag().as_str());
        let modified_nanos = match version.meta.last_modified.duration_since(SystemTime::UNIX_EPOCH)
        {
            Ok(since) => i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |n| -n),
        };
        Some(Self {
            store: version.store,
            size: version.meta.size,
            modified_nanos,
            key_bytes: u16::try_from(key.len()).ok()?,
            text: format!("{key}{etag}").into(),
        })
    }

    pub(super) fn key(&self) -> &str {
        &self.text[..usize::from(self.key_bytes)]
    }

    pub(super) fn etag(&self) -> &str {
        &self.text[usize::from(self.key_bytes)..]
    }

    /// True where this stands for `version`.
    pub(super) fn is(&self, version: &Version) -> bool {
        self.store == version.store
            && self.size == version.meta.size
            && self.key() == version.key.as_str()
            && self.etag() == version.etag().as_str()
    }

    /// The version that this stands for.
    pub(super) fn version(&self) -> Option<Arc<Version>> {
        let distance = Duration::from_nanos(self.modified_nanos.unsigned_abs());
        let epoch = SystemTime::UNIX_EPOCH;
        let last_modified = if self.modified_nanos < 0 {
            epoch.checked_sub(distance)?
        } else {
            epoch.checked_add(distance)?
        };
        let key = ObjectKey::new(self.key()).ok()?;
        let etag = ETag::parse(self.etag());
        let meta = ObjectMeta { size: self.size, etag, last_modified, attributes: None };
        Some(Arc::new(Version::new(self.store, key, meta)))
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.store.to_le_bytes());
        out.extend_from_slice(&self.size.to_le_bytes());
        out.extend_from_slice(&self.modified_nanos.to_le_bytes());
        out.extend_from_slice(&self.key_bytes.to_le_bytes());
        out.extend_from_slice(&(self.text.len() as u32).to_le_bytes());
        out.extend_from_slice(self.text.as_bytes());
    }

    /// Takes one off the front of `raw`.
    pub(super) fn decode(raw: &mut &[u8]) -> Option<Self> {
        let store = take_u64(raw)?;
        let size = take_u64(raw)?;
        let modified_nanos = take_u64(raw)?.cast_signed();
        let (key_bytes, rest) = raw.split_first_chunk()?;
        let (text_bytes, rest) = rest.split_first_chunk()?;
        let text = rest.get(..u32::from_le_bytes(*text_bytes) as usize)?;
        *raw = &rest[text.len()..];
        let text = std::str::from_utf8(text).ok()?;
        let key_bytes = u16::from_le_bytes(*key_bytes);
        if !text.is_char_boundary(usize::from(key_bytes)) {
            return None;
        }
        Some(Self { store, size, modified_nanos, key_bytes, text: text.into() })
    }
}

/// Takes a number off the front of `raw`.
pub(super) fn take_u64(raw: &mut &[u8]) -> Option<u64> {
    let (number, rest) = raw.split_first_chunk()?;
    *raw = rest;
    Some(u64::from_le_bytes(*number))
}

/// Takes a number off the front of `raw`.
pub(super) fn take_u32(raw: &mut &[u8]) -> Option<u32> {
    let (number, rest) = raw.split_first_chunk()?;
    *raw = rest;
    Some(u32::from_le_bytes(*number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trip(name in ".{1,60}", etag in "[!#-~]{0,40}", size: u64, seconds in -9_000_000_000i64..9_000_000_000) {
            let distance = Duration::from_secs(seconds.unsigned_abs());
            let last_modified = if seconds < 0 { SystemTime::UNIX_EPOCH - distance } else { SystemTime::UNIX_EPOCH + distance };
            let meta = ObjectMeta { size, etag: ETag::parse(&etag), last_modified, attributes: None };
            let version = Version::new(7, ObjectKey::new(name).unwrap(), meta);
            let identity = Identity::of(&version).unwrap();
            prop_assert!(identity.is(&version));
            let mut raw = Vec::new();
            identity.encode(&mut raw);
            raw.extend_from_slice(b"rest");
            let mut at = &raw[..];
            let back = Identity::decode(&mut at).unwrap();
            prop_assert_eq!(at, b"rest");
            prop_assert_eq!(&back, &identity);
            let again = back.version().unwrap();
            prop_assert_eq!(again.id(), version.id());
            prop_assert_eq!(&again.meta, &version.meta);
        }

        #[test]
        fn garbage_never_panics(raw: Vec<u8>) {
            _ = Identity::decode(&mut &raw[..]);
        }
    }
}
