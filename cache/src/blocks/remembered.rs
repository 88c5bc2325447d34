//! Metadata on disk: how a warm cache knows after a restart what it holds, and can say so while the
//! origin is down.
//!
//! Invariant: it is a hint. It is older than anything learned since, and is asked about again before
//! it is believed, unless the object is immutable or the origin gives no answer.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use store::{ETag, ObjectMeta};

/// The block number that metadata is kept under; no block has it.
pub(crate) const METADATA_INDEX: u32 = u32::MAX;

/// Metadata of a version and when the origin last confirmed it, by this machine's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub(crate) meta: ObjectMeta,
    pub(crate) confirmed: SystemTime,
}

fn nanos(time: SystemTime) -> i128 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => since.as_nanos().cast_signed(),
        Err(before) => -(before.duration().as_nanos().cast_signed()),
    }
}

fn time(nanos: i128) -> Option<SystemTime> {
    let distance = Duration::new(
        u64::try_from(nanos.unsigned_abs() / 1_000_000_000).ok()?,
        (nanos.unsigned_abs() % 1_000_000_000) as u32,
    );
    if nanos < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    }
}

impl Remembered {
    /// Size, modification time, confirmation time, then the tag. Attributes are not kept: they are
    /// asked for when someone wants them.
    pub(crate) fn encode(&self) -> Bytes {
        let mut raw = Vec::with_capacity(64);
        raw.extend_from_slice(&self.meta.size.to_le_bytes());
        raw.extend_from_slice(&nanos(self.meta.last_modified).to_le_bytes());
        raw.extend_from_slice(&nanos(self.confirmed).to_le_bytes());
        raw.extend_from_slice(self.meta.etag.as_str().as_bytes());
        raw.into()
    }

    pub(crate) fn decode(raw: &[u8]) -> Option<Self> {
        let (size, rest) = raw.split_first_chunk()?;
        let (modified, rest) = rest.split_first_chunk()?;
        let (confirmed, etag) = rest.split_first_chunk()?;
        let meta = ObjectMeta {
            size: u64::from_le_bytes(*size),
            etag: ETag::parse(std::str::from_utf8(etag).ok()?),
            last_modified: time(i128::from_le_bytes(*modified))?,
            attributes: None,
        };
        Some(Self { meta, confirmed: time(i128::from_le_bytes(*confirmed))? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trip(size: u64, etag in "[!#-~]{0,40}", at in -1_000_000_000i64..9_000_000_000, nanos in 0u32..1_000_000_000) {
            let last_modified = time(i128::from(at) * 1_000_000_000 + i128::from(nanos)).unwrap();
            let meta = ObjectMeta { size, etag: ETag::parse(&etag), last_modified, attributes: None };
            let kept = Remembered { meta, confirmed: SystemTime::now() };
            prop_assert_eq!(Remembered::decode(&kept.encode()), Some(kept));
        }

        #[test]
        fn garbage_never_panics(raw: Vec<u8>) {
            _ = Remembered::decode(&raw);
        }
    }
}
