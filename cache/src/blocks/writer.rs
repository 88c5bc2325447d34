//! Fills the disk tier without losing anything in silence.
//!
//! foyer throws an entry away when its queue or its buffer is full, and says so only in a counter of
//! its own. Here no more than its buffer holds is ever with foyer, and every entry is looked up
//! after its flush. Invariant: an entry that went in is found afterwards, or is counted as dropped
//! with a reason. Bounded: `queue_bytes` wait here, `buffer_bytes` are with foyer.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use foyer::{HybridCache, HybridCacheEntry};
use futures::FutureExt;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::METADATA_INDEX;
use super::codec::Block;
use crate::Metrics;
use crate::version::BlockKey;

pub(crate) type Engine = HybridCache<BlockKey, Block>;

/// foyer's unit of disk space, and of our permits.
pub(crate) const PAGE_BYTES: u64 = 4096;

/// Bytes that foyer puts before each entry.
const ENTRY_HEADER_BYTES: u64 = 36;

/// Pages of records that may wait to be written, besides blocks: 4 MiB. They are never waited for, and
/// what says that a record holds no longer must not be lost because blocks fill the queue.
const RECORD_PAGES: usize = 1024;

/// How long a flush may take before the disk counts as stuck.
const FLUSH_LIMIT: Duration = Duration::from_mins(1);

/// Flushes in a row that must lose everything before writing pauses: one may be bad luck.
const LOST_FLUSHES: u32 = 2;

/// How long writing pauses then.
const PAUSE: Duration = Duration::from_secs(30);
/// Why nothing is written after a flush that does not end.
const STUCK: &str = "a flush to the cache directory did not end within 60 s";
/// Why nothing is written after foyer 0.22 asserted something over a write that failed: its locks are
/// poisoned, and it can only be opened anew.
const BROKEN: &str =
    "the disk tier broke over writes that failed, until a restart: is the disk full?";

/// An entry on its way. It holds the bytes without pinning them in the memory tier.
struct Entry {
    key: BlockKey,
    pages: u32,
    bytes: u64,
    enqueue: Box<dyn FnOnce(&Engine) + Send>,
    /// Room in the queue, given back after the flush.
    room: OwnedSemaphorePermit,
}

enum Job {
    Write(Entry),
    Flush(oneshot::Sender<()>),
}

/// Whether the disk takes blocks.
#[derive(Debug, Default)]
struct Health {
    lost_in_a_row: AtomicU32,
    paused: Mutex<Option<(Instant, String)>>,
}

#[derive(Debug)]
pub(crate) struct Writer {
    jobs: mpsc::UnboundedSender<Job>,
    room: Arc<Semaphore>,
    record_room: Arc<Semaphore>,
    queue_pages: u32,
    entry_limit: u64,
    health: Arc<Health>,
    metrics: Metrics,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Write(_) => "Write",
            Self::Flush(_) => "Flush",
        })
    }
}

/// Pages that an entry takes on disk.
fn pages(entry: &HybridCacheEntry<BlockKey, Block>) -> u32 {
    use foyer::Code;
    let bytes =
        ENTRY_HEADER_BYTES as usize + entry.key().estimated_size() + entry.value().estimated_size();
    (bytes as u64).div_ceil(PAGE_BYTES) as u32
}

impl Entry {
    fn new(entry: &HybridCacheEntry<BlockKey, Block>, room: OwnedSemaphorePermit) -> Self {
        let piece = entry.piece();
        Self {
            key: entry.key().clone(),
            pages: pages(entry),
            bytes: entry.value().data.len() as u64,
            enqueue: Box::new(move |engine| engine.storage().enqueue(piece, true)),
            room,
        }
    }
}

impl Writer {
    /// A writer into `engine`, whose flush buffer has `buffer_bytes` and whose groups take entries up
    /// to `entry_limit`.
    pub(crate) fn start(
        engine: Engine,
        buffer_bytes: u64,
        queue_bytes: u64,
        entry_limit: u64,
        metrics: Metrics,
    ) -> Self {
        let (jobs, queue) = mpsc::unbounded_channel();
        let queue_pages = (queue_bytes / PAGE_BYTES) as u32;
        let health = Arc::<Health>::default();
        let pump = Pump {
            engine,
            with_foyer: Arc::new(Semaphore::new((buffer_bytes / PAGE_BYTES) as usize)),
            buffer_pages: (buffer_bytes / PAGE_BYTES) as u32,
            health: Arc::clone(&health),
            metrics: metrics.clone(),
        };
        tokio::spawn(pump.run(queue));
        Self {
            jobs,
            room: Arc::new(Semaphore::new(queue_pages as usize)),
            record_room: Arc::new(Semaphore::new(RECORD_PAGES)),
            queue_pages,
            entry_limit,
            health,
            metrics,
        }
    }

    /// Why nothing is written now, if so.
    pub(crate) fn paused(&self) -> Option<String> {
        self.health.paused()
    }

    /// Hands an entry over if there is room at once, so that whoever flushes from now on waits for it.
    /// Gives it back where there is none.
    pub(crate) fn offer(
        &self,
        entry: HybridCacheEntry<BlockKey, Block>,
    ) -> Option<HybridCacheEntry<BlockKey, Block>> {
        if self.health.paused().is_some() {
            self.drop_one("paused");
            return None;
        }
        let wanted = pages(&entry);
        if u64::from(wanted) * PAGE_BYTES > self.entry_limit || wanted > self.queue_pages {
            self.drop_one("too_large");
            return None;
        }
        let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(wanted) else {
            return Some(entry);
        };
        if self.jobs.send(Job::Write(Entry::new(&entry, room))).is_err() {
            self.drop_one("closed");
        }
        None
    }

    /// Hands an entry over, waiting for room as long as `patience` lasts.
    pub(crate) async fn write(&self, entry: HybridCacheEntry<BlockKey, Block>, patience: Duration) {
        let wanted = pages(&entry);
        let room = Arc::clone(&self.room).acquire_many_owned(wanted);
        match timeout(patience, room).await {
            Ok(Ok(room)) => {
                if self.jobs.send(Job::Write(Entry::new(&entry, room))).is_err() {
                    self.drop_one("closed");
                }
            }
            Ok(Err(_)) => self.drop_one("closed"),
            Err(_) => self.drop_one("slow_disk"),
        }
    }

    /// Hands a record over if there is room at once, and says whether there was.
    pub(crate) fn try_write(&self, entry: &HybridCacheEntry<BlockKey, Block>) -> bool {
        if self.health.paused().is_some() {
            return false;
        }
        match Arc::clone(&self.record_room).try_acquire_many_owned(pages(entry)) {
            Ok(room) => self.jobs.send(Job::Write(Entry::new(entry, room))).is_ok(),
            Err(_) => false,
        }
    }

    /// Waits until everything handed over before is on disk or counted as dropped.
    pub(crate) async fn flush(&self) {
        let (done, wait) = oneshot::channel();
        if self.jobs.send(Job::Flush(done)).is_ok() {
            _ = wait.await;
        }
    }

    fn drop_one(&self, reason: &str) {
        self.metrics.dropped.with_label_values(&[reason]).inc();
    }

    /// Bytes that wait to be written.
    pub(crate) fn waiting_bytes(&self) -> u64 {
        let free = self.room.available_permits() as u64;
        u64::from(self.queue_pages).saturating_sub(free) * PAGE_BYTES
    }
}

impl Health {
    fn paused(&self) -> Option<String> {
        let mut paused = self.paused.lock();
        match &*paused {
            Some((until, _)) if Instant::now() >= *until => {
                *paused = None;
                None
            }
            Some((_, why)) => Some(why.clone()),
            None => None,
        }
    }

    fn pause(&self, until: Instant, why: &str) {
        let mut paused = self.paused.lock();
        if paused.is_none() {
            tracing::warn!(reason = why, "the disk tier of the cache takes no blocks");
        }
        *paused = Some((until, why.to_owned()));
    }
}

struct Pump {
    engine: Engine,
    /// Pages of foyer's buffer that are free.
    with_foyer: Arc<Semaphore>,
    buffer_pages: u32,
    health: Arc<Health>,
    metrics: Metrics,
}

impl Pump {
    async fn run(self, mut queue: mpsc::UnboundedReceiver<Job>) {
        while let Some(job) = queue.recv().await {
            let mut batch = Batch::default();
            let mut next = Some(job);
            let mut flush = None;
            while let Some(job) = next.take() {
                match job {
                    Job::Write(entry) => self.hand_over(entry, &mut batch).await,
                    Job::Flush(done) => {
                        flush = Some(done);
                        break;
                    }
                }
                // A quarter of the buffer, so that batches are filled, flushed and verified at once.
                if batch.pages < self.buffer_pages / 4 {
                    next = queue.try_recv().ok();
                }
            }
            self.verify(batch);
            if let Some(done) = flush {
                // Every page free means every batch verified.
                _ = self.with_foyer.acquire_many(self.buffer_pages).await;
                _ = done.send(());
            }
        }
    }

    async fn hand_over(&self, entry: Entry, batch: &mut Batch) {
        let permit = Arc::clone(&self.with_foyer).try_acquire_many_owned(entry.pages);
        let permit = if let Ok(permit) = permit {
            permit
        } else {
            // The buffer is full: let what is in this batch be verified, or nothing comes back.
            self.verify(std::mem::take(batch));
            let free = Arc::clone(&self.with_foyer).acquire_many_owned(entry.pages).await;
            free.expect("the semaphore is never closed")
        };
        if self.health.paused().is_some() {
            self.metrics.dropped.with_label_values(&["paused"]).inc();
            return;
        }
        (entry.enqueue)(&self.engine);
        batch.pages += entry.pages;
        // Records are hints, and one may have been taken back by now: only blocks are looked for.
        if entry.key.index != METADATA_INDEX {
            batch.bytes += entry.bytes;
            batch.keys.push(entry.key);
        }
        batch.permits.push((permit, entry.room));
    }

    /// Waits for the flush of a batch and looks for its entries, in a task of its own.
    fn verify(&self, batch: Batch) {
        if batch.permits.is_empty() {
            return;
        }
        let engine = self.engine.clone();
        let (health, metrics) = (Arc::clone(&self.health), self.metrics.clone());
        tokio::spawn(async move {
            // All of it moves in here: the permits must outlive the flush.
            let batch = batch;
            let flush = AssertUnwindSafe(async { engine.storage().wait().await }).catch_unwind();
            let failed = match timeout(FLUSH_LIMIT, flush).await {
                Ok(Ok(())) => None,
                Err(_) => Some(("stuck_disk", STUCK)),
                Ok(Err(_)) => Some(("not_written", BROKEN)),
            };
            if let Some((reason, why)) = failed {
                health.pause(Instant::now() + PAUSE, why);
                let lost = batch.keys.len() as u64;
                metrics.dropped.with_label_values(&[reason]).inc_by(lost);
                return;
            }
            let all = batch.keys.len();
            if all == 0 {
                return;
            }
            let lost = batch.keys.iter().filter(|k| !engine.storage().may_contains(*k)).count();
            if lost == 0 {
                metrics.disk_filled.inc_by(batch.bytes);
                health.lost_in_a_row.store(0, Ordering::Relaxed);
                return;
            }
            metrics.disk_filled.inc_by(batch.bytes / all as u64 * (all - lost) as u64);
            metrics.dropped.with_label_values(&["not_written"]).inc_by(lost as u64);
            if lost == all
                && health.lost_in_a_row.fetch_add(1, Ordering::Relaxed) + 1 >= LOST_FLUSHES
            {
                let why = "writes to the cache directory fail: is it full or read-only?";
                health.pause(Instant::now() + PAUSE, why);
            }
        });
    }
}

#[derive(Default)]
struct Batch {
    keys: Vec<BlockKey>,
    permits: Vec<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
    pages: u32,
    bytes: u64,
}
