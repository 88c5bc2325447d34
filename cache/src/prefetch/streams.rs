//! How one object is read: as a few streams, whoever reads them.
//!
//! Invariant: nothing is asked for twice while a stream stays its course, nothing past the object's
//! end, and never more than the window. Bounded: a few streams and readers an object, the longest
//! unused is forgotten. Pure; it knows no time.
//!
//! A stream is a stretch of bytes that has been read without a gap, by any number of readers in any
//! order: reads that come in disorder begin stretches of their own, which become one when they touch.

use std::ops::Range;

use super::Plan;

/// Streams of one object: processes that read different parts of it at once, and reads of a burst
/// that the kernel sent in disorder.
const MAX_STREAMS: usize = 16;

/// Readers whose distances are compared.
const MAX_READERS: usize = 16;

/// Reads that touch before a stream counts as sequential: the first may be a header and the second its
/// continuation.
const PROOF_READS: u32 = 3;

/// A read may begin this much past the end of a stream and still continue it: readers skip padding.
const MAX_SKIP_BYTES: u64 = 128 << 10;

/// How many times what was read in sequence is asked for ahead. Five times as much after each round
/// trip: a link of 500 MiB/s and 20 ms is full after the second.
const GROWTH: u64 = 4;

/// Equal distances before a reader counts as strided.
const STRIDED_AFTER: u32 = 2;

/// Most reads that are foreseen of a strided reader.
const MAX_STRIDES: u32 = 8;

/// A strided reader that reads at least one byte in this many will have read all blocks.
const DENSE: u64 = 4;

/// All in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// The window of a stream that has just been found sequential.
    pub(super) first: u64,
    /// The window of one that has long been.
    pub(super) most: u64,
    /// How much is asked for at a time once the window is large: one GET. Asking for half a window
    /// at once would leave the link idle while the reader works through the other half.
    pub(super) step: u64,
    /// Two reads that touch and are as long as this together are no header.
    pub(super) block: u64,
}

/// What has been read of one object.
#[derive(Debug, Default)]
pub(super) struct Streams {
    held: Vec<Stream>,
    /// How far each reader went last.
    strides: Vec<Stride>,
    clock: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Stream {
    start: u64,
    /// The end of what has been read.
    frontier: u64,
    reads: u32,
    /// What a strided reader leaves out each time.
    gap: u64,
    window: u64,
    /// Up to where bytes were asked for.
    ahead: u64,
    /// The end of the object has been reported.
    ended: bool,
    used: u64,
}

#[derive(Debug)]
struct Stride {
    reader: u64,
    last: Range<u64>,
    distance: i64,
    count: u32,
    used: u64,
}

impl Stream {
    fn begin(read: &Range<u64>) -> Self {
        Self {
            start: read.start,
            frontier: read.end,
            reads: 1,
            gap: 0,
            window: 0,
            ahead: read.end,
            ended: false,
            used: 0,
        }
    }

    /// True where a read continues this stream, falls into its last part, or leads up to it.
    fn touches(&self, read: &Range<u64>, limits: Limits) -> bool {
        let len = read.end - read.start;
        let skip = len.min(MAX_SKIP_BYTES).max(self.gap);
        // Further behind it is somebody else, or the same once more.
        let back = len.saturating_mul(8).max(2 * limits.block).min(limits.step.max(2 * len));
        let from = self.start.saturating_sub(skip).max(self.frontier.saturating_sub(back));
        let continues = (from..=self.frontier.saturating_add(skip)).contains(&read.start);
        let leads_up = read.start < self.start
            && read.end >= self.start.saturating_sub(skip)
            && read.end <= self.frontier;
        continues || leads_up
    }

    fn join(&mut self, other: &Self) {
        self.start = self.start.min(other.start);
        self.frontier = self.frontier.max(other.frontier);
        self.reads = self.reads.saturating_add(other.reads);
        self.gap = self.gap.max(other.gap);
        self.window = self.window.max(other.window);
        self.ahead = self.ahead.max(other.ahead);
        self.ended |= other.ended;
    }

    fn covers(&self, read: &Range<u64>) -> bool {
        self.start <= read.start && read.end <= self.frontier
    }

    fn is_sequential(&self, limits: Limits) -> bool {
        let long = self.reads > 1 && self.frontier - self.start >= 2 * limits.block;
        self.reads >= PROOF_READS || long
    }

    /// What to ask for after this stream has grown.
    fn go_on(&mut self, size: u64, limits: Limits, plan: &mut Plan) {
        let evidence = (self.frontier - self.start).saturating_mul(GROWTH);
        let window = evidence.max(limits.first).min(limits.most);
        self.window = self.window.max(window);
        self.ahead = self.ahead.max(self.frontier);
        let step = self.window.div_ceil(2).min(limits.step);
        // Where most of the window is still ahead, ask later, and for more at once.
        if self.ahead - self.frontier + step <= self.window {
            let end = self.frontier.saturating_add(self.window).min(size);
            if end > self.ahead {
                plan.ranges.push(self.ahead..end);
                self.ahead = end;
            }
        }
        if self.ahead >= size && !self.ended {
            self.ended = true;
            plan.ending = true;
        }
    }
}

impl Streams {
    /// Notes a read of an object of `size` bytes.
    pub(super) fn observe(
        &mut self,
        reader: u64,
        read: &Range<u64>,
        size: u64,
        limits: Limits,
    ) -> Plan {
        self.clock += 1;
        let mut plan = Plan::default();
        let mut known = false;
        let mut touched: Option<Stream> = None;
        self.held.retain(|stream| {
            if !stream.touches(read, limits) {
                return true;
            }
            known |= stream.covers(read);
            match &mut touched {
                Some(all) => all.join(stream),
                None => touched = Some(stream.clone()),
            }
            false
        });
        let strided = self.stride(reader, read);
        let mut stream = if let Some(mut stream) = touched {
            let before = stream.frontier;
            if !known {
                stream.join(&Stream::begin(read));
            }
            // Bytes that were read before teach nothing, and bytes before the stream ask for none
            // after it.
            if stream.is_sequential(limits) {
                plan.dense = true;
                if stream.frontier > before || stream.window == 0 {
                    stream.go_on(size, limits, &mut plan);
                }
            }
            stream
        } else {
            let mut stream = Stream::begin(read);
            match strided {
                Some((stride, _)) if is_dense(stride, read) => {
                    let gap = stride.unsigned_abs() - (read.end - read.start);
                    stream.gap = gap.min(limits.block);
                    stream.reads = PROOF_READS;
                    plan.dense = true;
                    stream.go_on(size, limits, &mut plan);
                }
                Some((stride, times)) => strides(read, stride, times, size, limits, &mut plan),
                None => {}
            }
            // Where a window has been asked for already, only its end is asked beyond, and what is
            // read there is part of that sequence.
            let under = self.held.iter().filter(|s| {
                s.window > 0 && (s.frontier..s.ahead + limits.block).contains(&read.start)
            });
            let ahead = under.map(|s| s.ahead).max();
            plan.dense |= ahead.is_some();
            stream.ahead = stream.ahead.max(ahead.unwrap_or(0));
            stream
        };
        stream.used = self.clock;
        if self.held.len() >= MAX_STREAMS
            && let Some(oldest) = (0..self.held.len()).min_by_key(|n| self.held[*n].used)
        {
            self.held.swap_remove(oldest);
        }
        self.held.push(stream);
        plan
    }

    /// The distance that a reader has now gone several times, and how often more than that.
    fn stride(&mut self, reader: u64, read: &Range<u64>) -> Option<(i64, u32)> {
        let used = self.clock;
        if let Some(held) = self.strides.iter_mut().find(|s| s.reader == reader) {
            let stride = read.start.cast_signed().wrapping_sub(held.last.start.cast_signed());
            held.count = if stride == held.distance { held.count.saturating_add(1) } else { 0 };
            (held.last, held.distance, held.used) = (read.clone(), stride, used);
            return held.count.checked_sub(STRIDED_AFTER).map(|more| (stride, more));
        }
        if self.strides.len() >= MAX_READERS
            && let Some(oldest) = (0..self.strides.len()).min_by_key(|n| self.strides[*n].used)
        {
            self.strides.swap_remove(oldest);
        }
        self.strides.push(Stride { reader, last: read.clone(), distance: 0, count: 0, used });
        None
    }
}

fn is_dense(stride: i64, read: &Range<u64>) -> bool {
    let len = read.end - read.start;
    stride > 0 && (len..=len.saturating_mul(DENSE)).contains(&stride.unsigned_abs())
}

/// The next reads of a reader that goes equal distances; `more` of them have come true before.
fn strides(read: &Range<u64>, stride: i64, more: u32, size: u64, limits: Limits, plan: &mut Plan) {
    let len = read.end - read.start;
    let mut start = read.start.cast_signed();
    let mut bytes = 0;
    for _ in 0..1 << more.min(MAX_STRIDES.ilog2()) {
        bytes += len;
        let Some(next) = start.checked_add(stride).filter(|s| *s >= 0) else { break };
        start = next;
        let begin = start.cast_unsigned();
        if begin >= size || bytes > limits.most {
            break;
        }
        plan.ranges.push(begin..begin.saturating_add(len).min(size));
    }
}

#[cfg(test)]
mod tests;
