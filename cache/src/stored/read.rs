//! One read: metadata, blocks that are here, blocks that are fetched, in order.
//!
//! Invariant: before the first byte an unpinned reader follows a changed object once; after it, or
//! with a pin, a change is an error. What is fetched ahead of a slow reader is bounded, for each body
//! and for all of them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use store::{Error, ErrorKind, GetOptions, GetResult, ObjectKey, Result};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::lookup::keys;
use super::{CachedStore, ready};
use crate::cache::{Shared, WINDOW_UNIT_BYTES};
use crate::fetch::{Origin, Priority, Want, Wanted};
use crate::metadata::Known;
use crate::prefetch::Plan;
use crate::span::{BlockSpan, block_count};
use crate::version::{BlockKey, Version};

/// Longest range that is answered with all of its blocks in hand; longer ones are streamed, so that a
/// slow client does not hold on to what the memory tier has evicted since.
const NEAR_BYTES: u64 = 16 << 20;

/// Most blocks of such a range.
const NEAR_BLOCKS: usize = 64;

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
        let span = BlockSpan::new(range.clone(), block_bytes);
        let body = if let Some(pieces) = self.near(object, &span, cold) {
            self.follow(object, options, &range);
            ready(pieces)
        } else {
            let mut reading = Reading::new(&self.shared, &self.origin, object, span, cold);
            reading.top_up();
            self.follow(object, options, &range);
            let first = reading.next().await;
            let first = first.transpose()?.unwrap_or_default();
            let rest = stream::unfold(reading, |mut reading| async move {
                let piece = reading.next().await?;
                if piece.is_err() {
                    reading.end();
                }
                Some((piece, reading))
            });
            stream::iter([Ok(first)]).chain(rest).boxed()
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

    /// The pieces of a range whose blocks are all in memory.
    fn near(&self, object: &Arc<Version>, span: &BlockSpan, cold: bool) -> Option<Vec<Bytes>> {
        let blocks = span.blocks();
        let bytes = blocks.len() as u64 * self.shared.config.block_bytes;
        if blocks.len() > NEAR_BLOCKS || (blocks.len() > 1 && bytes > NEAR_BYTES) {
            return None;
        }
        let cache = self.shared.fetcher.blocks();
        let mut pieces = Vec::with_capacity(blocks.len());
        let keys: Vec<_> = keys(object, blocks).collect();
        for key in &keys {
            pieces.push(cache.get(key)?.slice(span.within(key.index)));
        }
        self.shared.fetcher.count_near(keys.iter(), cold);
        Some(pieces)
    }

    /// Tells the prefetcher of a read and does what it says.
    fn follow(&self, object: &Arc<Version>, options: &GetOptions, range: &std::ops::Range<u64>) {
        let plan = self.shared.prefetcher.observe(options.reader, object, range);
        if plan == Plan::default() {
            return;
        }
        for range in plan.ranges {
            self.fetch_ahead(object, range);
        }
        if let Some(bytes) = plan.next_object_bytes
            && let Some((key, meta)) = self.lists.successor(&object.key)
        {
            let next = match self.origin.meta.peek(&key).map(|p| p.known) {
                Some(Known::Present(next)) => next,
                Some(Known::Absent) => return,
                None => Arc::new(Version::new(self.origin.id, key, meta)),
            };
            let end = bytes.min(next.meta.size);
            self.fetch_ahead(&next, 0..end);
        }
    }

    fn fetch_ahead(&self, object: &Arc<Version>, range: std::ops::Range<u64>) {
        let block_bytes = self.shared.config.block_bytes;
        if block_count(block_bytes, object.meta.size).is_none() {
            return;
        }
        let blocks = BlockSpan::new(range, block_bytes).blocks();
        let origin = &self.origin;
        let priority = Priority::Prefetch;
        self.shared.fetcher.want(&Want {
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
struct Reading {
    shared: Arc<Shared>,
    origin: Arc<Origin>,
    object: Arc<Version>,
    span: BlockSpan,
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
    index: u32,
    wanted: Wanted,
    /// This block's part of what all bodies may hold.
    _window: Option<OwnedSemaphorePermit>,
}

impl Reading {
    fn new(
        shared: &Arc<Shared>,
        origin: &Arc<Origin>,
        object: &Arc<Version>,
        span: BlockSpan,
        cold: bool,
    ) -> Self {
        let blocks = span.blocks();
        Self {
            shared: Arc::clone(shared),
            origin: Arc::clone(origin),
            object: Arc::clone(object),
            span,
            queue: VecDeque::new(),
            asked: blocks.start,
            end: blocks.end,
            chunk: shared.config.fetch_blocks(),
            cold,
        }
    }

    /// Asks for blocks in whole merged GETs as long as the window has room. The next block is always
    /// asked for, so that a body moves on however full the windows of others are.
    fn top_up(&mut self) {
        let units = self.shared.config.block_bytes.div_ceil(WINDOW_UNIT_BYTES) as u32;
        loop {
            let count = self.chunk.min(self.end - self.asked);
            if count == 0 || self.queue.len() as u32 + count > self.chunk * WINDOW_FETCHES {
                return;
            }
            // At most half of what is left, so that bodies that stand still leave something to those
            // that come. Less than a whole GET is asked for only where the reader would wait.
            let left = self.shared.window.available_permits() / 2 / units as usize;
            let share = count.min(u32::try_from(left).unwrap_or(u32::MAX));
            if share < count && !self.queue.is_empty() {
                return;
            }
            let window = Arc::clone(&self.shared.window)
                .try_acquire_many_owned(units.saturating_mul(share))
                .ok()
                .filter(|_| share > 0);
            let count = match &window {
                Some(_) => share,
                None if self.queue.is_empty() => 1,
                None => return,
            };
            self.want(count, window, units);
        }
    }

    fn want(&mut self, count: u32, mut window: Option<OwnedSemaphorePermit>, units: u32) {
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
            let part = window.as_mut().and_then(|w| w.split(units as usize));
            self.queue.push_back(Queued { index, wanted, _window: part });
        }
    }

    /// The next piece of the body.
    async fn next(&mut self) -> Option<Result<Bytes>> {
        self.top_up();
        let Queued { index, wanted, _window } = self.queue.pop_front()?;
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
        let within = self.span.within(index);
        if data.len() < within.end {
            let key = BlockKey::new(&self.object, index);
            let context = format!("block {index} of `{}` is too short", key.object.key);
            return Some(Err(Error::new(ErrorKind::Corrupted, context)));
        }
        Some(Ok(data.slice(within)))
    }

    /// There is nothing after an error.
    fn end(&mut self) {
        self.queue.clear();
        self.asked = self.end;
    }
}
