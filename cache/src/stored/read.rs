//! One read: metadata, blocks that are here, files that are here, blocks that are fetched, in order.
//!
//! Invariant: before the first byte an unpinned reader follows a changed object once; after it, or
//! with a pin, a change is an error. What is fetched ahead of a slow reader is bounded, for each body
//! and for all of them.

mod whole;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use futures::{Stream, StreamExt};
use store::{Error, ErrorKind, GetOptions, GetResult, ObjectKey, ReaderId, Result};
use tokio::time::Instant;

use super::{CachedStore, ready};
use crate::cache::Shared;
use crate::fetch::{Origin, Priority, Want, Wanted};
use crate::governor::Lease;
use crate::metadata::Known;
use crate::prefetch::Plan;
use crate::span::{BlockSpan, Units, block_count};
use crate::version::{BlockKey, Version};
use whole::Whole;

/// Longest range that is answered with all of its blocks in hand; longer ones are streamed, so that a
/// slow client does not hold on to what the memory tier has evicted since.
const NEAR_BYTES: u64 = 16 << 20;

/// Most blocks of such a range.
const NEAR_BLOCKS: usize = 64;

/// Most grains of a range that is answered with all of them in hand: a read in a few pieces costs less
/// than a block.
const NEAR_GRAINS: usize = 16;

/// Merged GETs that one body may have ahead of its reader.
const WINDOW_FETCHES: u32 = 4;

/// A pin that does not match metadata older than this is checked with the origin before it is refused.
const PIN_DOUBT: Duration = Duration::from_secs(1);

impl CachedStore {
    pub(super) async fn read(&self, key: &ObjectKey, options: &GetOptions) -> Result<GetResult> {
        let mut followed = false;
        loop {
            let cold = self.origin.meta.peek(key).is_none();
            let mut object = self.known(key, false, self.probe_for(options.range)).await?;
            if let Some(pin) = &options.if_match
                && pin != object.etag()
            {
                let age = self.origin.meta.peek(key).map_or(Duration::ZERO, |p| p.age);
                let immutable = self.origin.policy.immutable.holds(key.as_str());
                if !followed && !immutable && age >= PIN_DOUBT {
                    followed = true;
                    object = self.confirmed(key, object).await?;
                }
                if pin != object.etag() {
                    let context = format!("`{key}` is {} now, not {pin}", object.etag());
                    return Err(Error::new(ErrorKind::PreconditionFailed, context));
                }
            }
            match self.serve(&object, options, cold).await {
                Err(error) if is_change(&error) => {
                    self.origin.meta.forget(key, object.etag());
                    if followed || options.if_match.is_some() {
                        return Err(error);
                    }
                    followed = true;
                }
                other => return other,
            }
        }
    }

    async fn serve(
        &self,
        object: &Arc<Version>,
        options: &GetOptions,
        cold: bool,
    ) -> Result<GetResult> {
        let size = object.meta.size;
        let range = options.range.resolve(size)?;
        let block_bytes = self.shared.config.block_bytes;
        if block_count(block_bytes, size).is_none() {
            let context = format!("`{}` has too many blocks of {block_bytes} bytes", object.key);
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        if range.start == 0 {
            self.record_use(&object.key, size);
        }
        let plan = self.shared.prefetcher.observe(options.reader, object, &range);
        let body = if let Some(pieces) = self.near(object, &range, cold) {
            self.follow(object, options, &range, plan, false);
            ready(pieces)
        } else if let Some(file) = self.shared.blocks.whole(object) {
            // The kernel reads files ahead by itself.
            let plan = Plan { ranges: Vec::new(), ..plan };
            self.follow(object, options, &range, plan, false);
            Whole::new(&self.shared, &self.origin, object, file, range.clone()).body().await?
        } else {
            let mut reading = Reading::new(&self.shared, &self.origin, object, range.clone(), cold);
            if plan.dense || !reading.want_grains() {
                reading.top_up();
            }
            self.follow(object, options, &range, plan, true);
            let first = reading.next().await;
            let first = first.transpose()?.unwrap_or_default();
            stream::iter([Ok(first)]).chain(reading.stream()).boxed()
        };
        let meta = match self.attributed(object, options).await? {
            Some(object) => object.meta.clone(),
            None => object.meta.clone(),
        };
        Ok(GetResult { meta, range, body })
    }

    /// The same version with attributes, where they are wanted and missing.
    async fn attributed(
        &self,
        object: &Arc<Version>,
        options: &GetOptions,
    ) -> Result<Option<Arc<Version>>> {
        if options.if_match.is_some() || object.meta.attributes.is_some() {
            return Ok(None);
        }
        // The GET that brought the first block may have brought them.
        let held = self.origin.meta.peek(&object.key).map(|p| p.known);
        if let Some(Known::Present(now)) = held
            && now.etag() == object.etag()
            && now.meta.attributes.is_some()
        {
            return Ok(Some(now));
        }
        match self.known(&object.key, true, None).await {
            Ok(now) if now.etag() == object.etag() => Ok(Some(now)),
            Ok(now) => {
                let context = format!("`{}` is {} now", object.key, now.etag());
                Err(Error::new(ErrorKind::PreconditionFailed, context))
            }
            // The bytes are here; headers are not worth failing for.
            Err(error) if error.kind().is_outage() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The pieces of a range of which all is in memory.
    fn near(&self, object: &Arc<Version>, range: &Range<u64>, cold: bool) -> Option<Vec<Bytes>> {
        let fetcher = &self.shared.fetcher;
        let units = fetcher.units();
        let blocks = BlockSpan::new(range.clone(), units.block_bytes).blocks();
        let bytes = blocks.len() as u64 * units.block_bytes;
        if blocks.len() > NEAR_BLOCKS || (blocks.len() > 1 && bytes > NEAR_BYTES) {
            return None;
        }
        let cache = fetcher.blocks();
        let mut keys = Vec::with_capacity(blocks.len());
        let mut pieces = Vec::with_capacity(blocks.len());
        for block in blocks {
            let key = BlockKey::new(object, block);
            if let Some(data) = cache.get(&key) {
                pieces.push(data.slice(units.within(block, range)));
                keys.push(key);
                continue;
            }
            // Every grain of this block that the range needs, or it is not here.
            let held = units.range(block, object.meta.size);
            let part = range.start.max(held.start)..range.end.min(held.end);
            for index in units.grains_of(&part, object.meta.size, NEAR_GRAINS)? {
                let key = BlockKey::new(object, index);
                pieces.push(cache.get(&key)?.slice(units.within(index, range)));
                keys.push(key);
            }
        }
        fetcher.count_near(keys.iter(), cold);
        Some(pieces)
    }

    /// Does what the prefetcher says after a read.
    fn follow(
        &self,
        object: &Arc<Version>,
        options: &GetOptions,
        range: &Range<u64>,
        plan: Plan,
        missed: bool,
    ) {
        let Plan { ranges, dense, ending } = plan;
        for range in ranges {
            self.fetch_ahead(object, &range, dense);
        }
        if options.reader == ReaderId::NONE || self.shared.prefetcher.most() == 0 {
            return;
        }
        if range.start == 0 {
            self.shared.prefetcher.walks.arrive(self.origin.id, &object.key, missed, &self.lists);
        }
        if !ending {
            return;
        }
        let (step, most) = (self.shared.config.max_fetch_bytes, self.shared.prefetcher.most());
        let walks = &self.shared.prefetcher.walks;
        for next in walks.upcoming(self.origin.id, &object.key, step, most) {
            let version = match self.origin.meta.peek(&next.key).map(|p| p.known) {
                Some(Known::Present(version)) => version,
                Some(Known::Absent) => continue,
                None => Arc::new(Version::new(self.origin.id, next.key, next.meta)),
            };
            // What lies on a local disk is near enough.
            if !self.shared.blocks.on_disk(&BlockKey::new(&version, 0)) {
                self.fetch_ahead(&version, &(0..next.bytes.min(version.meta.size)), true);
            }
        }
    }

    /// Fetches what nobody has asked for yet: whole blocks of what is read densely.
    fn fetch_ahead(&self, object: &Arc<Version>, range: &Range<u64>, dense: bool) {
        let units = self.shared.fetcher.units();
        if range.is_empty() || block_count(units.block_bytes, object.meta.size).is_none() {
            return;
        }
        let grains = if dense { None } else { units.grains(range, object.meta.size) };
        let blocks =
            grains.unwrap_or_else(|| BlockSpan::new(range.clone(), units.block_bytes).blocks());
        let origin = &self.origin;
        let priority = Priority::Prefetch;
        self.shared.fetcher.seek(&Want {
            origin,
            object,
            blocks,
            priority,
            ahead: true,
            cold: false,
        });
    }
}

/// The object is not what its metadata said.
fn is_change(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::PreconditionFailed | ErrorKind::NotFound)
}

/// A body that is being read.
pub(super) struct Reading {
    shared: Arc<Shared>,
    origin: Arc<Origin>,
    object: Arc<Version>,
    range: Range<u64>,
    units: Units,
    /// Blocks asked for and not yet read, in order.
    queue: VecDeque<Queued>,
    /// The first block that was not asked for.
    asked: u32,
    end: u32,
    /// Blocks of a merged GET.
    chunk: u32,
    cold: bool,
}

struct Queued {
    within: Range<usize>,
    wanted: Wanted,
    /// This block's part of what all bodies may hold.
    _window: Option<Lease>,
}

impl Reading {
    /// The body of a range of an object whose blocks can be numbered.
    pub(super) fn new(
        shared: &Arc<Shared>,
        origin: &Arc<Origin>,
        object: &Arc<Version>,
        range: Range<u64>,
        cold: bool,
    ) -> Self {
        let units = shared.fetcher.units();
        let blocks = BlockSpan::new(range.clone(), units.block_bytes).blocks();
        Self {
            shared: Arc::clone(shared),
            origin: Arc::clone(origin),
            object: Arc::clone(object),
            range,
            units,
            queue: VecDeque::new(),
            asked: blocks.start,
            end: blocks.end,
            chunk: shared.config.fetch_blocks(),
            cold,
        }
    }

    /// Asks for the grains of a read that is too small for blocks; false where it is not. That is less
    /// than two blocks, which any reader may have at once.
    fn want_grains(&mut self) -> bool {
        let Some(blocks) = self.units.grains(&self.range, self.object.meta.size) else {
            return false;
        };
        let (origin, object, priority) = (&self.origin, &self.object, Priority::Demand);
        let want = Want { origin, object, blocks, priority, ahead: false, cold: self.cold };
        let mut at = self.range.start;
        for (index, wanted) in self.shared.fetcher.seek(&want) {
            // Grains around the range come along; several of one block that is near are one piece.
            let held = self.units.range(index, self.object.meta.size);
            let part = at.max(held.start)..self.range.end.min(held.end);
            if part.is_empty() {
                continue;
            }
            at = part.end;
            let within = self.units.within(index, &part);
            self.queue.push_back(Queued { within, wanted, _window: None });
        }
        self.asked = self.end;
        true
    }

    /// The rest of the body. There is nothing after an error.
    pub(super) fn stream(self) -> impl Stream<Item = Result<Bytes>> + Send + 'static {
        stream::unfold(self, |mut reading| async move {
            let piece = reading.next().await?;
            if piece.is_err() {
                reading.end();
            }
            Some((piece, reading))
        })
    }

    /// Asks for blocks in whole merged GETs as long as the window has room. The next block is always
    /// asked for, so that a body moves on however full the windows of others are.
    fn top_up(&mut self) {
        let block_bytes = self.units.block_bytes;
        loop {
            let count = self.chunk.min(self.end - self.asked);
            if count == 0 || self.queue.len() as u32 + count > self.chunk * WINDOW_FETCHES {
                return;
            }
            // At most half of what is left, so that bodies that stand still leave something to those
            // that come. Less than a whole GET is asked for only where the reader would wait.
            let left = self.shared.governor.extra_bytes() / 2 / block_bytes;
            let share = count.min(u32::try_from(left).unwrap_or(u32::MAX));
            if share < count && !self.queue.is_empty() {
                return;
            }
            let window =
                (share > 0).then(|| self.shared.governor.extra(block_bytes * u64::from(share)));
            let window = window.flatten();
            let count = match &window {
                Some(_) => share,
                None if self.queue.is_empty() => 1,
                None => return,
            };
            self.want(count, window);
        }
    }

    fn want(&mut self, count: u32, mut window: Option<Lease>) {
        let blocks = self.asked..self.asked + count;
        self.asked = blocks.end;
        let (origin, object) = (&self.origin, &self.object);
        let priority = Priority::Demand;
        let want = Want {
            origin,
            object,
            blocks: blocks.clone(),
            priority,
            ahead: false,
            cold: self.cold,
        };
        let wanted = self.shared.fetcher.want(&want);
        for (index, wanted) in blocks.zip(wanted) {
            let part = window.as_mut().map(|w| w.split(self.units.block_bytes));
            let within = self.units.within(index, &self.range);
            self.queue.push_back(Queued { within, wanted, _window: part });
        }
    }

    /// The next piece of the body.
    pub(super) async fn next(&mut self) -> Option<Result<Bytes>> {
        self.top_up();
        let Queued { within, wanted, _window } = self.queue.pop_front()?;
        let data = match wanted {
            Wanted::Ready(data) => data,
            Wanted::Flight(flight) => {
                let since = Instant::now();
                let landed = flight.wait().await;
                self.shared.metrics.waited.observe(since.elapsed().as_secs_f64());
                match landed {
                    Some(Ok(data)) => data,
                    Some(Err(error)) => return Some(Err(error)),
                    None => {
                        let context = "the task that fetched a block ended early";
                        return Some(Err(Error::new(ErrorKind::Internal, context)));
                    }
                }
            }
        };
        if data.len() < within.end {
            let context = format!("a block of `{}` is too short", self.object.key);
            return Some(Err(Error::new(ErrorKind::Corrupted, context)));
        }
        Some(Ok(data.slice(within)))
    }

    /// There is nothing after an error.
    pub(super) fn end(&mut self) {
        self.queue.clear();
        self.asked = self.end;
    }
}
