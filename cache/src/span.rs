//! Byte ranges as blocks and grains: pure arithmetic.
//!
//! Invariant: the slices of a span's blocks, joined, are exactly the range, and so are those of its
//! grains. A span of an empty range has none. What is not part of a sequence is never rounded up to
//! more than [`Units::most_for`] says.

use std::ops::Range;

use crate::version::GRAIN_BIT;

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
    // Half of the numbers are those of grains.
    u32::try_from(size.div_ceil(block_bytes)).ok().filter(|n| *n < GRAIN_BIT)
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
}

/// How objects are cut: into blocks, and blocks into grains where they are large enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Units {
    pub(crate) block_bytes: u64,
    /// Divides a block; 0 where there are no grains.
    grain_bytes: u64,
}

impl Units {
    /// Blocks of `block_bytes`, cut into grains of `grain_bytes` where that divides them.
    pub(crate) fn new(block_bytes: u64, grain_bytes: u64) -> Self {
        let divides =
            grain_bytes > 0 && block_bytes > grain_bytes && block_bytes.is_multiple_of(grain_bytes);
        Self { block_bytes, grain_bytes: if divides { grain_bytes } else { 0 } }
    }

    /// The bytes of the object that a key's index stands for.
    pub(crate) fn range(&self, index: u32, size: u64) -> Range<u64> {
        if index & GRAIN_BIT == 0 {
            block_range(index, self.block_bytes, size)
        } else {
            block_range(index & !GRAIN_BIT, self.grain_bytes, size)
        }
    }

    /// Bytes of a grain; 0 where there are none.
    pub(crate) fn grain_bytes(&self) -> u64 {
        self.grain_bytes
    }

    /// The numbers of the units that `range`, which is cut where units are, consists of: of blocks
    /// where it is, else of grains. `None` where there are too many to number.
    pub(crate) fn numbers(&self, range: &Range<u64>, size: u64) -> Option<Range<u32>> {
        let blocks = BlockSpan::new(range.clone(), self.block_bytes).blocks();
        let whole = range.start.is_multiple_of(self.block_bytes)
            && (range.end == size || range.end.is_multiple_of(self.block_bytes));
        if whole || self.grain_bytes == 0 {
            return block_count(self.block_bytes, size).map(|_| blocks);
        }
        (size.div_ceil(self.grain_bytes) < u64::from(GRAIN_BIT - 1)).then(|| {
            self.number(range.start)..self.number(range.end.next_multiple_of(self.grain_bytes))
        })
    }

    /// The block that a grain lies in; a block is its own.
    pub(crate) fn block_of(&self, index: u32) -> u32 {
        if index & GRAIN_BIT == 0 {
            return index;
        }
        (u64::from(index & !GRAIN_BIT) * self.grain_bytes / self.block_bytes) as u32
    }

    /// The first grain of a block; `None` where an object of this size has no grains.
    pub(crate) fn first_grain(&self, block: u32, size: u64) -> Option<u32> {
        self.has_grains(size)
            .then(|| (u64::from(block) * (self.block_bytes / self.grain_bytes)) as u32 | GRAIN_BIT)
    }

    /// True where there may be grains of an object: it is larger than one look, and they can be numbered.
    pub(crate) fn has_grains(&self, size: u64) -> bool {
        self.grain_bytes > 0
            && size > 4 * self.grain_bytes
            // One number less than there are: the last stands for metadata.
            && size.div_ceil(self.grain_bytes) < u64::from(GRAIN_BIT - 1)
    }

    /// The most bytes that a read of `len` bytes may fetch that is not part of a sequence. However it
    /// lies, the grains around it exceed it by less than two, so this is always enough.
    pub(crate) fn most_for(&self, len: u64) -> u64 {
        (4 * self.grain_bytes).max(len.saturating_mul(2))
    }

    /// The grains of a read that is not part of a sequence, all of them with the bit set; `None` where
    /// it may as well have its whole blocks.
    pub(crate) fn grains(&self, range: &Range<u64>, size: u64) -> Option<Range<u32>> {
        let block = self.block_bytes;
        // What is not much larger than a block is fetched whole.
        if range.is_empty() || !self.has_grains(size) || size <= block.saturating_mul(2) {
            return None;
        }
        let whole = range.start / block * block..range.end.next_multiple_of(block).min(size);
        if whole.end - whole.start <= self.most_for(range.end - range.start) {
            return None;
        }
        let around = self.look(range);
        Some(
            self.number(around.start)
                ..self.number(around.end.min(size).next_multiple_of(self.grain_bytes)),
        )
    }

    /// The grains that hold `range`, where there may be any and they are at most `limit`.
    pub(crate) fn grains_of(
        &self,
        range: &Range<u64>,
        size: u64,
        limit: usize,
    ) -> Option<Range<u32>> {
        if range.is_empty() || !self.has_grains(size) {
            return None;
        }
        let grains =
            self.number(range.start)..self.number(range.end.next_multiple_of(self.grain_bytes));
        (grains.len() <= limit).then_some(grains)
    }

    /// The bytes around a small read of an object of which nothing is known: whole grains.
    pub(crate) fn look(&self, range: &Range<u64>) -> Range<u64> {
        // A read that fits into one aligned look gets all of it.
        let look = 4 * self.grain_bytes;
        let start = range.start / look * look;
        if range.end <= start.saturating_add(look) {
            return start..start.saturating_add(look);
        }
        let start = range.start / self.grain_bytes * self.grain_bytes;
        start..range.end.checked_next_multiple_of(self.grain_bytes).unwrap_or(range.end)
    }

    /// True where a first read of `len` bytes is too small to fetch a block for.
    pub(crate) fn is_small(&self, len: u64) -> bool {
        self.grain_bytes > 0 && self.block_bytes > self.most_for(len)
    }

    fn number(&self, at: u64) -> u32 {
        (at / self.grain_bytes) as u32 | GRAIN_BIT
    }

    /// Which bytes of a unit belong to `range`.
    pub(crate) fn within(&self, index: u32, range: &Range<u64>) -> Range<usize> {
        let held = self.range(index, u64::MAX);
        let start = range.start.clamp(held.start, held.end) - held.start;
        let end = range.end.clamp(held.start, held.end) - held.start;
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
            let units = Units::new(block, 0);
            let mut got = Vec::new();
            for index in span.blocks() {
                let held = block_range(index, block, size);
                let bytes = &object[held.start as usize..held.end as usize];
                let part = &bytes[units.within(index, &(start..end))];
                prop_assert!(!part.is_empty());
                got.extend_from_slice(part);
            }
            prop_assert_eq!(&got[..], &object[start as usize..end as usize]);
        }

        #[test]
        fn slices_of_grains_are_the_range_and_never_too_many(
            size in 1u64..50_000, a in 0u64..50_000, b in 0u64..50_000, grain in 1u64..300, times in 2u64..70,
        ) {
            let units = Units::new(grain * times, grain);
            let (start, end) = (a.min(b).min(size), a.max(b).min(size));
            let range = start..end;
            let Some(grains) = units.grains(&range, size) else {
                let block = units.block_bytes;
                let whole = end.next_multiple_of(block).min(size) - start / block * block;
                let small = size <= 2 * block || range.is_empty();
                prop_assert!(small || whole <= units.most_for(end - start));
                return Ok(());
            };
            let mut at = start;
            let mut bytes = 0;
            for index in grains {
                let held = units.range(index, size);
                prop_assert!(held.start < held.end);
                bytes += held.end - held.start;
                let block = units.range(units.block_of(index), size);
                prop_assert!(block.start <= held.start && held.end <= block.end);
                let within = units.within(index, &range);
                if !within.is_empty() {
                    prop_assert_eq!(held.start + within.start as u64, at);
                    at = held.start + within.end as u64;
                }
            }
            prop_assert_eq!(at, end);
            prop_assert!(bytes <= units.most_for(end - start), "{} bytes for {}", bytes, end - start);
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

    #[test]
    fn a_small_read_of_a_large_object_looks_around_a_little() {
        let units = Units::new(1 << 20, 16 << 10);
        let size = 2 << 30;
        let bytes = |range: Range<u64>| {
            let grains = units.grains(&range, size)?;
            Some(units.range(grains.start, size).start..units.range(grains.end - 1, size).end)
        };
        assert_eq!(bytes(0..8), Some(0..64 << 10));
        assert_eq!(bytes(size - 8..size), Some(size - (64 << 10)..size));
        // Across the end of a look: two grains, not two looks.
        assert_eq!(bytes(65_000..66_000), Some(48 << 10..80 << 10));
        assert_eq!(bytes(0..1 << 20), None, "a whole block is a whole block");
        assert_eq!(bytes(1000..9 << 20), None);
        assert_eq!(units.grains(&(0..8), 2 << 20), None, "small objects are fetched whole");
        assert_eq!(Units::new(1000, 300), Units::new(1000, 0), "grains must divide blocks");
        assert!(!Units::new(1000, 300).has_grains(1 << 40));
    }
}
