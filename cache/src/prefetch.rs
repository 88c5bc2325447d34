//! What to fetch before anyone asks.
//!
//! Invariant: it only decides; the fetcher fetches, demand first. Bytes in flight never exceed the
//! budget. A reader that jumps loses its window at once. Bounded: objects, streams and unread blocks are
//! remembered up to a limit, the oldest are forgotten.

mod streams;
mod walks;

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use store::ReaderId;

use crate::governor::{Governor, Lease};
use crate::version::{BlockKey, Version};
use crate::{CacheConfig, Metrics};
use streams::{Limits, Streams};
use walks::Walks;

/// Objects whose streams are remembered: those that are read at once, with plenty to spare.
const MAX_OBJECTS: usize = 4096;

/// Most prefetched blocks that are watched for being read.
const MAX_UNREAD: usize = 65_536;

/// What follows from a read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Bytes of the same object to fetch ahead, clipped to it.
    pub(crate) ranges: Vec<Range<u64>>,
    /// The read is part of a sequence, or close to one: what lies around it will be read too.
    pub(crate) dense: bool,
    /// All of the object is asked for: its readers will soon want another.
    pub(crate) ending: bool,
}

/// Streams of objects, each with the number of its last read.
#[derive(Debug, Default)]
struct Objects {
    of: HashMap<u64, (Streams, u64)>,
    /// Objects and the number of a read: the last one where it is still in `of`, else outdated.
    order: VecDeque<(u64, u64)>,
    reads: u64,
}

/// Watches readers.
#[derive(Debug)]
pub(crate) struct Prefetcher {
    objects: Mutex<Objects>,
    /// Readers that go from object to object.
    pub(crate) walks: Walks,
    limits: Limits,
}

impl Prefetcher {
    pub(crate) fn new(config: &CacheConfig) -> Self {
        let first = config.readahead_blocks as u64 * config.block_bytes;
        let limits = Limits {
            first: first.min(config.prefetch_budget_bytes),
            // Merged GETs share the link and so end together: some must wait for their turn while
            // others are answered, or the link stands idle for a round trip each time. No reader may
            // have three quarters of the budget or a quarter of the memory ahead of it.
            most: (12 * config.max_fetch_bytes)
                .min(config.prefetch_budget_bytes / 4 * 3)
                .min(config.memory_bytes / 4),
            step: config.max_fetch_bytes,
            block: config.block_bytes,
        };
        Self { objects: Mutex::default(), walks: Walks::default(), limits }
    }

    /// The most bytes to have ahead of one reader.
    pub(crate) fn most(&self) -> u64 {
        self.limits.most
    }

    /// Notes a read and says what to fetch next.
    pub(crate) fn observe(&self, reader: ReaderId, object: &Version, read: &Range<u64>) -> Plan {
        if reader == ReaderId::NONE || self.limits.first == 0 || read.is_empty() {
            return Plan::default();
        }
        let size = object.meta.size;
        if size <= self.limits.block {
            // One fetch brings all of it.
            return Plan { ending: true, ..Plan::default() };
        }
        let mut objects = self.objects.lock();
        objects.reads += 1;
        let now = objects.reads;
        let id = object.id();
        if let Some((streams, last)) = objects.of.get_mut(&id) {
            *last = now;
            return streams.observe(reader.0, read, size, self.limits);
        }
        while objects.of.len() >= MAX_OBJECTS {
            let Some((oldest, read)) = objects.order.pop_front() else { break };
            match objects.of.get(&oldest) {
                // It was read since: it goes to the end, at most once for each object that came.
                Some((_, last)) if *last > read => {
                    let last = *last;
                    objects.order.push_back((oldest, last));
                }
                _ => {
                    objects.of.remove(&oldest);
                }
            }
        }
        objects.order.push_back((id, now));
        let (streams, _) = objects.of.entry(id).or_insert((Streams::default(), now));
        streams.observe(reader.0, read, size, self.limits)
    }
}

#[derive(Debug, Default)]
struct Unread {
    since: HashMap<BlockKey, u64>,
    order: VecDeque<(u64, BlockKey)>,
    next: u64,
}

/// What was fetched ahead: the budget, and what became of it.
#[derive(Debug)]
pub(crate) struct Ahead {
    in_flight: Arc<AtomicU64>,
    budget: u64,
    governor: Arc<Governor>,
    unread: Mutex<Unread>,
    /// Length of `unread`, so that the warm path takes no lock where nothing was prefetched.
    watched: AtomicUsize,
    limit: usize,
    metrics: Metrics,
}

/// Bytes of the budget, given back when dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    in_flight: Arc<AtomicU64>,
    bytes: u64,
    _lease: Lease,
    metrics: Metrics,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.in_flight.fetch_sub(self.bytes, Ordering::AcqRel);
        self.metrics.prefetch_in_flight.sub(self.bytes.cast_signed());
    }
}

impl Ahead {
    pub(crate) fn new(config: &CacheConfig, governor: Arc<Governor>, metrics: Metrics) -> Self {
        // What was pushed out of the cache unread was wasted, and is forgotten here at that time: the
        // cache evicts by age, so after as many bytes as it holds.
        let capacity = config.memory_bytes + config.disk.as_ref().map_or(0, |d| d.capacity_bytes);
        let limit = ((capacity / config.block_bytes) as usize).clamp(1, MAX_UNREAD);
        Self {
            in_flight: Arc::default(),
            budget: config.prefetch_budget_bytes,
            governor,
            unread: Mutex::default(),
            watched: AtomicUsize::new(0),
            limit,
            metrics,
        }
    }

    /// Takes `bytes` of the budget for a block that nobody asked for; `None` when it is spent, or
    /// memory is.
    pub(crate) fn charge(&self, key: &BlockKey, bytes: u64) -> Option<Charge> {
        let lease = self.governor.extra(bytes)?;
        let within = |held: u64| held.checked_add(bytes).filter(|sum| *sum <= self.budget);
        self.in_flight.fetch_update(Ordering::AcqRel, Ordering::Acquire, within).ok()?;
        self.metrics.prefetch_in_flight.add(bytes.cast_signed());
        self.metrics.prefetched_bytes.inc_by(bytes);
        let mut unread = self.unread.lock();
        let number = unread.next;
        unread.next += 1;
        unread.since.insert(key.clone(), number);
        unread.order.push_back((number, key.clone()));
        // The order also holds blocks that were read since; it is bounded all the same.
        while unread.order.len() > self.limit {
            let Some((number, oldest)) = unread.order.pop_front() else { break };
            if unread.since.get(&oldest) == Some(&number) {
                unread.since.remove(&oldest);
                self.metrics.readahead_wasted.inc();
            }
        }
        self.watched.store(unread.since.len(), Ordering::Release);
        let in_flight = Arc::clone(&self.in_flight);
        Some(Charge { in_flight, bytes, _lease: lease, metrics: self.metrics.clone() })
    }

    /// A reader read a block.
    pub(crate) fn used(&self, key: &BlockKey) {
        if self.watched.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut unread = self.unread.lock();
        if unread.since.remove(key).is_some() {
            self.watched.store(unread.since.len(), Ordering::Release);
            self.metrics.readahead_hits.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::{ETag, ObjectKey, ObjectMeta};

    fn block(index: u32) -> BlockKey {
        let meta = ObjectMeta {
            size: 1 << 40,
            etag: ETag::parse("x"),
            last_modified: std::time::SystemTime::UNIX_EPOCH,
            attributes: None,
        };
        BlockKey::new(&Arc::new(Version::new(1, ObjectKey::new("k").unwrap(), meta)), index)
    }

    #[test]
    fn the_budget_holds_and_waste_is_counted() {
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let config = CacheConfig {
            memory_bytes: 10 << 20,
            prefetch_budget_bytes: 4 << 20,
            ..CacheConfig::default()
        };
        let governor = Governor::new(16 << 20);
        let ahead = Ahead::new(&config, Arc::clone(&governor), metrics.clone());
        let held: Vec<_> = (0..8).filter_map(|n| ahead.charge(&block(n), 1 << 20)).collect();
        assert_eq!((held.len(), governor.leased_bytes()), (4, 4 << 20));
        drop(held);
        assert_eq!(governor.leased_bytes(), 0);
        assert_eq!(metrics.prefetch_in_flight.get(), 0);
        ahead.used(&block(1));
        ahead.used(&block(1));
        assert_eq!(metrics.readahead_hits.get(), 1);
        for n in 10..20 {
            drop(ahead.charge(&block(n), 1 << 20).unwrap());
        }
        assert_eq!(metrics.readahead_wasted.get(), 3, "blocks 0, 2 and 3");
    }

    fn object(n: u64, size: u64) -> Version {
        let meta = ObjectMeta { size, ..block(0).object.meta.clone() };
        Version::new(n, ObjectKey::new("k").unwrap(), meta)
    }

    #[test]
    fn objects_are_bounded_and_the_one_that_is_read_stays() {
        let prefetcher = Prefetcher::new(&CacheConfig::default());
        let long = object(0, 1 << 40);
        let mut asked = 0;
        for n in 1..20_000 {
            prefetcher.observe(ReaderId(n), &object(n, 1 << 40), &(0..10));
            if n % 100 == 0 {
                let at = (n / 100) << 20;
                let plan = prefetcher.observe(ReaderId(n), &long, &(at..at + (1 << 20)));
                asked += plan.ranges.len();
            }
        }
        assert!(asked > 10, "{asked}");
        let objects = prefetcher.objects.lock();
        assert!(objects.of.len() <= MAX_OBJECTS && objects.order.len() <= MAX_OBJECTS);
    }

    #[test]
    fn small_objects_are_not_watched() {
        let prefetcher = Prefetcher::new(&CacheConfig::default());
        let plan = prefetcher.observe(ReaderId(1), &object(1, 100 << 10), &(0..10));
        assert!(plan.ending && plan.ranges.is_empty());
        assert_eq!(prefetcher.objects.lock().of.len(), 0);
        assert_eq!(prefetcher.observe(ReaderId::NONE, &object(1, 1), &(0..1)), Plan::default());
    }
}
