//! A file in the making: which of its blocks are there, and which wait to be written.
//!
//! Invariant: a block is either missing, waiting (its bytes are held here) or written (its checksum is
//! known); it moves one way. Only one thread at a time writes a part. Does no I/O.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::span::{block_count, block_range};
use crate::version::{BlockKey, Version};

/// How far beyond the last block that it took a part takes another: what several GETs and a prefetch
/// window have in flight at once. Further away somebody reads at random.
const REACH_BYTES: u64 = 128 << 20;

/// A part of at most this takes every block, in whatever order: it is worth completing anyway.
pub(super) const SMALL_BYTES: u64 = 16 << 20;

/// A block that waits to be written.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) index: u32,
    pub(super) data: Bytes,
    /// Its place in the queue of all parts.
    _room: Option<OwnedSemaphorePermit>,
}

/// What a thread that writes is to do next.
#[derive(Debug)]
pub(super) enum Step {
    /// Write these blocks, which are in order.
    Write(Vec<Waiting>),
    /// Nothing waits; whoever adds a block starts a thread again.
    Rest,
}

#[derive(Debug)]
struct State {
    sums: Vec<u64>,
    written: Bits,
    taken: Bits,
    missing: u32,
    queue: VecDeque<Waiting>,
    /// Blocks being written, which can still be read only from memory.
    writing: Vec<(u32, Bytes)>,
    busy: bool,
    /// The furthest block that was taken.
    top: u32,
    whole: bool,
    unrecorded: Vec<(u32, u64)>,
    touched: Instant,
    dropped: bool,
}

/// A version that is on its way to be a file.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) object: Arc<Version>,
    /// The second half of its file's name.
    pub(super) unique: u64,
    pub(super) block_bytes: u64,
    pub(super) count: u32,
    /// It outlived a crash of the machine: its bytes are verified before they are believed.
    pub(super) suspect: bool,
    recorded: AtomicBool,
    finishing: AtomicBool,
    promoting: AtomicBool,
    /// When the origin last confirmed the version, in seconds since 1970; 0 where it is replaced.
    confirmed: AtomicU64,
    state: Mutex<State>,
}

/// A set of small numbers.
#[derive(Debug, Clone, Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(count: u32) -> Self {
        Self(vec![0; (count as usize).div_ceil(64)])
    }

    fn has(&self, at: u32) -> bool {
        self.0.get(at as usize / 64).is_some_and(|word| word >> (at % 64) & 1 == 1)
    }

    fn set(&mut self, at: u32) {
        if let Some(word) = self.0.get_mut(at as usize / 64) {
            *word |= 1 << (at % 64);
        }
    }
}

impl Part {
    /// A part without a block. `None` for an object with too many blocks to number.
    pub(super) fn new(
        object: Arc<Version>,
        unique: u64,
        block_bytes: u64,
        suspect: bool,
    ) -> Option<Self> {
        let count = block_count(block_bytes, object.meta.size)?;
        let state = State {
            sums: vec![0; count as usize],
            written: Bits::new(count),
            taken: Bits::new(count),
            missing: count,
            queue: VecDeque::new(),
            writing: Vec::new(),
            busy: false,
            top: 0,
            whole: false,
            unrecorded: Vec::new(),
            touched: Instant::now(),
            dropped: false,
        };
        Some(Self {
            object,
            unique,
            block_bytes,
            count,
            suspect,
            recorded: AtomicBool::new(false),
            finishing: AtomicBool::new(false),
            promoting: AtomicBool::new(false),
            confirmed: AtomicU64::new(0),
            state: Mutex::new(state),
        })
    }

    /// Blocks that the journal knows to be there.
    pub(super) fn recovered(&self, blocks: &[(u32, u64)]) {
        self.wrote(blocks);
        self.state.lock().unrecorded.clear();
        self.recorded.store(true, Ordering::Release);
    }

    /// The origin has confirmed the version at this time, or, with 0, has another.
    pub(super) fn confirm(&self, seconds: u64) {
        self.confirmed.store(seconds, Ordering::Release);
    }

    pub(super) fn confirmed(&self) -> u64 {
        self.confirmed.load(Ordering::Acquire)
    }

    /// The journal is told of this part. True the first time.
    pub(super) fn begins_record(&self) -> bool {
        !self.recorded.swap(true, Ordering::AcqRel)
    }

    /// The part is about to be published. True the first time.
    pub(super) fn finishes_now(&self) -> bool {
        !self.finishing.swap(true, Ordering::AcqRel)
    }

    pub(super) fn key(&self, index: u32) -> BlockKey {
        BlockKey::new(&self.object, index)
    }

    pub(super) fn range(&self, index: u32) -> std::ops::Range<u64> {
        block_range(index, self.block_bytes, self.object.meta.size)
    }

    /// True where a block is taken here, if it is not here yet: it goes on where the others are, or the
    /// part is to be completed.
    pub(super) fn takes(&self, index: u32) -> bool {
        let state = self.state.lock();
        let reach = (REACH_BYTES / self.block_bytes).max(16);
        index < self.count
            && !state.dropped
            && (state.whole
                || self.object.meta.size <= SMALL_BYTES
                || u64::from(index) <= u64::from(state.top) + reach
                || state.missing <= self.count / 2)
    }

    /// All of it is wanted, in whatever order.
    pub(super) fn want_whole(&self) {
        self.state.lock().whole = true;
    }

    /// Begins in the middle: blocks near `index` are taken.
    pub(super) fn begin_at(&self, index: u32) {
        self.state.lock().top = index;
    }

    /// True where the block is written or waits.
    pub(super) fn has(&self, index: u32) -> bool {
        self.state.lock().taken.has(index)
    }

    /// The checksum of a written block.
    pub(super) fn written(&self, index: u32) -> Option<u64> {
        let state = self.state.lock();
        state.written.has(index).then(|| state.sums.get(index as usize).copied())?
    }

    /// A block that is not written yet.
    pub(super) fn waiting(&self, index: u32) -> Option<Bytes> {
        let state = self.state.lock();
        let queued = state.queue.iter().find(|w| w.index == index).map(|w| w.data.clone());
        queued.or_else(|| {
            state.writing.iter().find(|(at, _)| *at == index).map(|(_, data)| data.clone())
        })
    }

    /// Adds a block. True where the caller is to start a thread that writes.
    pub(super) fn add(&self, index: u32, data: Bytes, room: Option<OwnedSemaphorePermit>) -> bool {
        let held = self.range(index);
        let mut state = self.state.lock();
        if state.dropped
            || index >= self.count
            || state.taken.has(index)
            || held.end - held.start != data.len() as u64
        {
            return false;
        }
        state.taken.set(index);
        state.top = state.top.max(index);
        state.touched = Instant::now();
        state.queue.push_back(Waiting { index, data, _room: room });
        !std::mem::replace(&mut state.busy, true)
    }

    /// The next blocks to write.
    pub(super) fn step(&self) -> Step {
        let mut state = self.state.lock();
        state.writing.clear();
        if state.queue.is_empty() || state.dropped {
            state.busy = false;
            return Step::Rest;
        }
        let mut batch: Vec<Waiting> = state.queue.drain(..).collect();
        batch.sort_by_key(|waiting| waiting.index);
        state.writing = batch.iter().map(|w| (w.index, w.data.clone())).collect();
        Step::Write(batch)
    }

    /// Blocks were written. True where none is missing any more.
    pub(super) fn wrote(&self, blocks: &[(u32, u64)]) -> bool {
        let mut state = self.state.lock();
        for (index, sum) in blocks {
            if *index >= self.count {
                continue;
            }
            if let Some(slot) = state.sums.get_mut(*index as usize) {
                *slot = *sum;
            }
            if !state.written.has(*index) {
                state.missing = state.missing.saturating_sub(1);
            }
            state.written.set(*index);
            state.taken.set(*index);
            state.top = state.top.max(*index);
        }
        state.unrecorded.extend_from_slice(blocks);
        state.missing == 0
    }

    /// What was written and not recorded, once that is worth a record.
    pub(super) fn unrecorded(&self, at_least: usize) -> Option<Vec<(u32, u64)>> {
        let mut state = self.state.lock();
        let due = !state.unrecorded.is_empty() && state.unrecorded.len() >= at_least;
        due.then(|| std::mem::take(&mut state.unrecorded))
    }

    /// Everything that is written, with checksums.
    pub(super) fn blocks(&self) -> Vec<(u32, u64)> {
        let state = self.state.lock();
        let written = (0..self.count).filter(|at| state.written.has(*at));
        written.map(|at| (at, state.sums[at as usize])).collect()
    }

    /// The checksums, where no block is missing.
    pub(super) fn sums(&self) -> Option<Box<[u64]>> {
        let state = self.state.lock();
        (state.missing == 0 && !state.dropped).then(|| state.sums.as_slice().into())
    }

    /// Numbers of the blocks that are neither written nor waiting.
    pub(super) fn absent(&self) -> Vec<u32> {
        let state = self.state.lock();
        (0..self.count).filter(|at| !state.taken.has(*at)).collect()
    }

    /// The last of them.
    pub(super) fn last_absent(&self) -> Option<u32> {
        let state = self.state.lock();
        (0..self.count).rev().find(|at| !state.taken.has(*at))
    }

    /// Somebody begins, or ends, to copy blocks in. False where somebody does already.
    pub(super) fn begins_promotion(&self) -> bool {
        !self.promoting.swap(true, Ordering::AcqRel)
    }

    pub(super) fn ends_promotion(&self) {
        self.promoting.store(false, Ordering::Release);
    }

    /// How many blocks are not written.
    pub(super) fn missing(&self) -> u32 {
        self.state.lock().missing
    }

    /// Nothing is taken any more, and what waits is let go.
    pub(super) fn drop_all(&self) {
        let mut state = self.state.lock();
        state.dropped = true;
        state.queue.clear();
        state.unrecorded.clear();
    }

    pub(super) fn is_dropped(&self) -> bool {
        self.state.lock().dropped
    }

    /// When a block was last added, unless one waits or is being written.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let state = self.state.lock();
        (!state.busy).then_some(state.touched)
    }
}
