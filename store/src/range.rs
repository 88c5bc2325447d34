//! Byte ranges as callers ask for them, and as bytes of an object.
//!
//! Invariant: a resolved range is non-empty and lies within the object, except for the whole of an
//! empty object. Ranges are half-open.

use std::ops::Range;

/// The bytes that a caller asks for, before the object's size is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ByteRange {
    /// Every byte; the only request that an empty object can satisfy.
    #[default]
    Full,
    /// From the first to the second offset, exclusive; the end is clamped to the object's size.
    Bounded(u64, u64),
    /// From an offset to the end.
    From(u64),
    /// The last bytes; more than there are means all of them.
    Suffix(u64),
}

/// The range names no byte of the object (HTTP 416).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("range not satisfiable in an object of {size} bytes")]
pub struct Unsatisfiable {
    /// The object's size in bytes.
    pub size: u64,
}

impl ByteRange {
    /// The bytes meant in an object of `size` bytes, by the rules of RFC 9110 section 14.1.2: an
    /// end past the object is clamped; a start at or past the end, an empty range and a suffix of
    /// zero are not satisfiable.
    pub fn resolve(self, size: u64) -> Result<Range<u64>, Unsatisfiable> {
        let range = match self {
            Self::Full => return Ok(0..size),
            Self::Bounded(start, end) => start..end.min(size),
            Self::From(start) => start..size,
            Self::Suffix(length) => size.saturating_sub(length)..size,
        };
        if range.start < range.end { Ok(range) } else { Err(Unsatisfiable { size }) }
    }

    /// The value of an HTTP `Range` header that asks for these bytes; `None` for [`Self::Full`]
    /// and for an empty bounded range, which HTTP cannot express.
    pub fn header(self) -> Option<String> {
        match self {
            Self::Bounded(start, end) if start < end => Some(format!("bytes={start}-{}", end - 1)),
            Self::From(start) => Some(format!("bytes={start}-")),
            Self::Suffix(length) => Some(format!("bytes=-{length}")),
            Self::Full | Self::Bounded(..) => None,
        }
    }
}

impl From<Range<u64>> for ByteRange {
    fn from(range: Range<u64>) -> Self {
        Self::Bounded(range.start, range.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rfc_9110_rules() {
        assert_eq!(ByteRange::Full.resolve(0), Ok(0..0));
        assert_eq!(ByteRange::Bounded(2, 4).resolve(10), Ok(2..4));
        assert_eq!(ByteRange::Bounded(2, 400).resolve(10), Ok(2..10));
        assert_eq!(ByteRange::From(9).resolve(10), Ok(9..10));
        assert_eq!(ByteRange::Suffix(4).resolve(10), Ok(6..10));
        assert_eq!(ByteRange::Suffix(40).resolve(10), Ok(0..10));
        let none = Err(Unsatisfiable { size: 10 });
        assert_eq!(ByteRange::From(10).resolve(10), none);
        assert_eq!(ByteRange::Bounded(10, 12).resolve(10), none);
        assert_eq!(ByteRange::Bounded(4, 4).resolve(10), none);
        assert_eq!(ByteRange::Suffix(0).resolve(10), none);
        assert!(ByteRange::From(0).resolve(0).is_err());
    }

    proptest! {
        #[test]
        fn resolved_ranges_are_inside(start: u64, end: u64, size: u64) {
            for range in [ByteRange::Bounded(start, end), ByteRange::From(start), ByteRange::Suffix(end)] {
                if let Ok(r) = range.resolve(size) {
                    prop_assert!(r.start < r.end && r.end <= size);
                }
            }
        }
    }
}
