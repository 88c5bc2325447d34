//! Byte ranges as blocks: pure arithmetic.
//!
//! Invariant: the slices of a span's blocks, joined, are exactly the range. A span of an empty
//! range has no blocks.

use std::ops::Range;

/// The blocks that hold a range of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BlockSpan {
    range: Range<u64>,
    block_bytes: u64,
}

/// Bytes of an object that block `index` holds: a whole block, or the object's tail.
pub(crate) fn block_range(index: u32, block_bytes: u64, size: u64) -> Range<u64> {
    let start = u64::from(index) * block_bytes;
    start.min(size)..(start + block_bytes).min(size)
}

/// Blocks of an object of `size` bytes; `None` for an object that has too many to number.
pub(crate) fn block_count(block_bytes: u64, size: u64) -> Option<u32> {
    // The last number is kept for metadata.
    u32::try_from(size.div_ceil(block_bytes)).ok().filter(|n| *n < u32::MAX)
}

impl BlockSpan {
    /// The blocks of `range`, which lies within an object that [`block_count`] can number.
    pub(crate) fn new(range: Range<u64>, block_bytes: u64) -> Self {
        Self { range, block_bytes }
    }

    /// Their numbers.
    pub(crate) fn blocks(&self) -> Range<u32> {
        if self.range.is_empty() {
            return 0..0;
        }
        let first = self.range.start / self.block_bytes;
        let end = self.range.end.div_ceil(self.block_bytes);
        first as u32..end as u32
    }

    /// Which bytes of block `index` belong to the range.
    pub(crate) fn within(&self, index: u32) -> Range<usize> {
        let base = u64::from(index) * self.block_bytes;
        let start = self.range.start.max(base) - base;
        let end = self.range.end.min(base + self.block_bytes) - base;
        start as usize..end as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn slices_of_blocks_are_the_range(size in 0u64..5000, a in 0u64..5000, b in 0u64..5000, block in 1u64..700) {
            let (start, end) = (a.min(b).min(size), a.max(b).min(size));
            let object: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            let span = BlockSpan::new(start..end, block);
            let mut got = Vec::new();
            for index in span.blocks() {
                let held = block_range(index, block, size);
                let bytes = &object[held.start as usize..held.end as usize];
                let part = &bytes[span.within(index)];
                prop_assert!(!part.is_empty());
                got.extend_from_slice(part);
            }
            prop_assert_eq!(&got[..], &object[start as usize..end as usize]);
        }

        #[test]
        fn blocks_tile_the_object(size in 0u64..5000, block in 1u64..700) {
            let count = block_count(block, size).unwrap();
            let mut at = 0;
            for index in 0..count {
                let held = block_range(index, block, size);
                prop_assert_eq!(held.start, at);
                prop_assert!(held.end > held.start);
                at = held.end;
            }
            prop_assert_eq!(at, size);
        }
    }

    #[test]
    fn objects_with_too_many_blocks_are_told() {
        assert_eq!(block_count(1, u64::MAX), None);
        assert_eq!(block_count(1 << 20, 5 << 40), Some(5 << 20));
    }
}
