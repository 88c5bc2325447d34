//! Where whole versions are kept: one plain file each, at true offsets.
//!
//! Invariant: a published file holds exactly the bytes of one version and never changes; what is wrong
//! with it is said beside it, and another file takes its place. A block that came from an origin is
//! written once: to the part that becomes the file, or to the block tier, which this refuses to know.
//! Nothing here fails towards a reader.
//!
//! Locks are taken in this order: the journal, the ledger, a part.

mod check;
mod current;
mod homes;
mod identity;
mod index;
mod journal;
mod kernel;
mod open;
mod part;
mod promotion;
mod room;
mod suspicion;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use store::{CopyFate, LocalCopy, NoCopy};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout};

use crate::Metrics;
use crate::admission::{Admission, Item, SetId, Verdict};
use crate::blocks::{BlockCache, Directory};
use crate::stats::{FileTierStats, TierState};
use crate::version::{BlockKey, Version};
use check::Checkers;
use homes::Homes;
use identity::Identity;
use index::{Entry, Index, Lookup, State};
use journal::Journal;
use part::{Part, SMALL_BYTES};
use room::Budget;

/// Parts at once: every object that is being read, with plenty to spare.
const MAX_PARTS: usize = 4096;

/// Threads that write parts at once: what keeps an NVMe busy.
const WRITERS: usize = 4;

/// Blocks that are read at once: more than the fetcher asks for while the disk answers. A disk that hangs
/// keeps no more threads than these; whoever comes then goes past it.
const READS: usize = 32;

/// A block within so many bytes of an object's start begins its part: what one reader has in flight when
/// it begins to read. Reads at random fetch no whole blocks.
const START_BYTES: u64 = 32 << 20;

/// The queue of blocks that wait to be written counts in this unit, because a semaphore counts in 32
/// bits.
const ROOM_UNIT_BYTES: u64 = 1024;

/// A complete version that lies on a local disk, open for reading.
#[derive(Debug)]
pub(crate) struct WholeFile {
    /// Its position means nothing: it is read at offsets.
    pub(crate) file: Arc<File>,
    /// What becomes of it. An evicted file still reads right; a bad one must not be read any more.
    pub(crate) fate: Arc<CopyFate>,
}

/// Where a block goes that an origin has just sent.
#[derive(Debug)]
pub(crate) enum Route {
    /// Nowhere but to memory: it is in a file already, or is not worth the disk.
    Memory,
    /// To the block tier.
    Blocks,
    /// To a part.
    Part(Place),
}

/// A place for a block in a part. Whoever flushes waits for it from now on.
#[derive(Debug)]
pub(crate) struct Place {
    part: Arc<Part>,
    index: u32,
    job: Job,
}

/// What one lock holds.
#[derive(Debug)]
struct Ledger {
    index: Index,
    parts: HashMap<u64, Arc<Part>>,
    /// Bytes that are still to come of parts that are being filled.
    promised: HashMap<u64, u64>,
    promised_bytes: u64,
    /// Files that are being verified.
    checking: HashSet<(u64, u64)>,
    admission: Admission,
    homes: Homes,
    /// Files published since everything was last written back.
    young: Vec<(u64, u64)>,
    /// How the MD5s of a store's tags agree with what it sends.
    tags: HashMap<u64, Tags>,
    budget: Budget,
}

/// Whether a store's tags that look like MD5s are some: those of encrypted objects are not.
#[derive(Debug, Default, Clone, Copy)]
struct Tags {
    right: u64,
    wrong: u64,
}

/// Work that is not done yet.
#[derive(Debug, Default)]
struct Busy {
    jobs: AtomicUsize,
    idle: Notify,
}

/// Counts as work until it is dropped.
#[derive(Debug)]
struct Job(Arc<Busy>);

impl Busy {
    fn begin(self: &Arc<Self>) -> Job {
        self.jobs.fetch_add(1, Ordering::AcqRel);
        Job(Arc::clone(self))
    }

    async fn wait(&self) {
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            if self.jobs.load(Ordering::Acquire) == 0 {
                return;
            }
            idle.await;
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if self.0.jobs.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

/// What does not change while the tier is open.
#[derive(Debug, Clone)]
struct Terms {
    block_bytes: u64,
    capacity_bytes: u64,
    high_water: f64,
    low_water: f64,
    min_free_bytes: u64,
    min_object_bytes: u64,
    sequential_bytes: u64,
    direct_writes: bool,
    scrub_bytes_per_second: u64,
    /// Where the block tier lies, for what it occupies.
    blocks: PathBuf,
}

/// The file tier.
#[derive(Debug)]
pub(crate) struct FileTier {
    root: PathBuf,
    terms: Terms,
    ledger: Mutex<Ledger>,
    journal: Mutex<Journal>,
    /// Held by who evicts.
    evicting: Mutex<()>,
    queue: Arc<Semaphore>,
    queue_units: u32,
    writers: Semaphore,
    reads: Arc<Semaphore>,
    checkers: Checkers,
    busy: Arc<Busy>,
    /// Until when nothing is written, and why.
    paused: Mutex<Option<(Instant, String)>>,
    closed: std::sync::atomic::AtomicBool,
    /// Where blocks may be that need not be fetched for a part.
    source: OnceLock<Weak<dyn BlockCache>>,
    unique: AtomicU64,
    /// Journal entries that a crash of the machine may lose.
    unsynced: AtomicU64,
    /// Bytes of the tier that are neither files nor parts, when last measured.
    others: AtomicU64,
    /// Bytes of the block tier, when last measured.
    blocks_before: AtomicU64,
    /// Bytes that the block tier had written by then.
    filled_before: AtomicU64,
    /// Bytes that both tiers had written at the last tick.
    written_before: AtomicU64,
    file_system: String,
    stacked: bool,
    /// Whole blocks are written past the page cache, as long as the file system takes that.
    direct: std::sync::atomic::AtomicBool,
    metrics: Metrics,
    /// Holds the lock as long as files may be written.
    _directory: Arc<Directory>,
}

impl FileTier {
    /// Where a block goes that an origin has sent, and why. Costs one lock.
    pub(crate) fn route(&self, key: &BlockKey, bytes: u64) -> Route {
        let (object, index) = (&key.object, key.index);
        let (id, size) = (object.id(), object.meta.size);
        if u64::from(index) >= size.div_ceil(self.terms.block_bytes) {
            return Route::Blocks;
        }
        let mut ledger = self.ledger.lock();
        if let Some(entry) = ledger.index.by_id(id) {
            return match &entry.state {
                _ if !entry.identity.is(object) => Route::Blocks,
                State::Whole(_) => Route::Memory,
                State::Part(part) if part.has(index) => Route::Memory,
                State::Part(part) if self.is_up() && part.takes(index) => {
                    Route::Part(self.place(Arc::clone(part), index))
                }
                State::Part(_) => Route::Blocks,
            };
        }
        if !self.qualifies(size, &ledger) || !self.is_up() || ledger.homes.is_never(id) {
            return Route::Blocks;
        }
        let (from, run) = ledger.homes.brought(id, index, bytes);
        // The GETs of one reader end in any order: whatever comes first of its first window begins it.
        let begins = u64::from(index) * self.terms.block_bytes < START_BYTES;
        if !begins && run < self.terms.sequential_bytes {
            let refused = ledger.homes.is_refused(id);
            return if refused { self.refuse("retained") } else { Route::Blocks };
        }
        match self.begin(&mut ledger, object) {
            Some(part) => {
                part.begin_at(from.max(index));
                Route::Part(self.place(part, index))
            }
            None if ledger.parts.len() >= MAX_PARTS => Route::Blocks,
            None => self.refuse("retained"),
        }
    }

    fn place(&self, part: Arc<Part>, index: u32) -> Place {
        Place { part, index, job: self.busy.begin() }
    }

    fn refuse(&self, reason: &str) -> Route {
        self.metrics.dropped.with_label_values(&[reason]).inc();
        Route::Memory
    }

    /// Begins a part, if the object is admitted.
    fn begin(&self, ledger: &mut Ledger, object: &Arc<Version>) -> Option<Arc<Part>> {
        let (id, size) = (object.id(), object.meta.size);
        let set = SetId::of(object.store, object.key.as_str());
        ledger.admission.access(set, Item(id), size);
        let taken = ledger.index.bytes() + ledger.promised_bytes;
        let free = ledger.budget.admitted_bytes().saturating_sub(taken);
        if ledger.admission.admit(set, Item(id), size, free) == Verdict::Refuse {
            ledger.homes.refuse(id);
            self.metrics.file_refused.with_label_values(&["not_admitted"]).inc();
            return None;
        }
        if ledger.parts.len() >= MAX_PARTS {
            self.metrics.file_refused.with_label_values(&["too_many_parts"]).inc();
            return None;
        }
        let identity = Identity::of(object)?;
        // Without the attributes, which the part has no use for.
        let object = identity.version()?;
        let unique = self.unique.fetch_add(1, Ordering::Relaxed);
        let part = Arc::new(Part::new(object, unique, self.terms.block_bytes, false)?);
        let state = State::Part(Arc::clone(&part));
        ledger.index.insert(id, Entry { identity, unique, allocated: 0, state });
        ledger.parts.insert(id, Arc::clone(&part));
        ledger.promised.insert(id, size);
        ledger.promised_bytes += size;
        ledger.homes.settled(id);
        Some(part)
    }

    /// True where an object of this size may be a file.
    fn qualifies(&self, size: u64, ledger: &Ledger) -> bool {
        size > 0
            && size >= self.terms.min_object_bytes
            // One object must not displace most of the others.
            && size <= ledger.budget.full_bytes / 2
    }

    /// Begins a part of which everything is wanted, or turns an existing one into such; a file stays one.
    /// False where the object is to stay blocks.
    pub(crate) fn want_whole(&self, object: &Arc<Version>) -> bool {
        let mut ledger = self.ledger.lock();
        if let Some(entry) = ledger.index.by_id(object.id()) {
            return match &entry.state {
                _ if !entry.identity.is(object) => false,
                State::Whole(_) => true,
                State::Part(part) => {
                    part.want_whole();
                    true
                }
            };
        }
        if !self.qualifies(object.meta.size, &ledger)
            || !self.is_up()
            || ledger.homes.is_never(object.id())
        {
            return false;
        }
        let part = self.begin(&mut ledger, object);
        part.inspect(|part| part.want_whole()).is_some()
    }

    /// Puts a block into its place. Ends when it is taken over or, after `patience`, refused.
    pub(crate) async fn put(self: Arc<Self>, place: Place, data: Bytes, patience: Duration) {
        let Place { part, index, job } = place;
        let units = (data.len() as u64).div_ceil(ROOM_UNIT_BYTES) as u32;
        let room = Arc::clone(&self.queue).acquire_many_owned(units.min(self.queue_units));
        match timeout(patience, room).await {
            Ok(Ok(room)) => self.add(&part, index, data, Some(room), job),
            Ok(Err(_)) => self.metrics.dropped.with_label_values(&["closed"]).inc(),
            Err(_) => self.metrics.dropped.with_label_values(&["slow_disk"]).inc(),
        }
    }

    fn add(
        self: &Arc<Self>,
        part: &Arc<Part>,
        index: u32,
        data: Bytes,
        room: Option<tokio::sync::OwnedSemaphorePermit>,
        job: Job,
    ) {
        if part.add(index, data, room) {
            tokio::spawn(writer::drive(Arc::clone(self), Arc::clone(part), job));
        }
    }

    /// True where a block is in a file or a part, or waits to be.
    pub(crate) fn has(&self, key: &BlockKey) -> bool {
        let ledger = self.ledger.lock();
        let Some(entry) = ledger.index.get(&key.object) else { return false };
        match &entry.state {
            State::Part(part) => part.has(key.index),
            State::Whole(whole) => (key.index as usize) < whole.sums.len(),
        }
    }

    /// True where all of a version is a file that may be read.
    pub(crate) fn is_whole(&self, object: &Version) -> bool {
        let ledger = self.ledger.lock();
        matches!(ledger.index.get(object).map(|e| &e.state), Some(State::Whole(_)))
    }

    /// Reads and verifies a block of a file or a part.
    pub(crate) async fn load(self: &Arc<Self>, key: &BlockKey, len: usize) -> Option<Bytes> {
        let (path, sum, part) = {
            let ledger = self.ledger.lock();
            let entry = ledger.index.get(&key.object)?;
            match &entry.state {
                State::Part(part) => {
                    if let Some(data) = part.waiting(key.index) {
                        return (data.len() == len).then_some(data);
                    }
                    let sum = part.written(key.index)?;
                    (self.part_path(key.object.id(), entry.unique), sum, Some(Arc::clone(part)))
                }
                State::Whole(whole) => {
                    let sum = *whole.sums.get(key.index as usize)?;
                    (self.whole_path(key.object.id(), entry.unique), sum, None)
                }
            }
        };
        let turn = Arc::clone(&self.reads).try_acquire_owned().ok()?;
        let offset = u64::from(key.index) * self.terms.block_bytes;
        let (seal, metrics) = (key.seal(), self.metrics.clone());
        let read = tokio::task::spawn_blocking(move || {
            // Held until the disk has answered, whoever still waits for it.
            let _turn = turn;
            metrics.file_opens.inc();
            let mut data = vec![0; len];
            File::open(path)?.read_exact_at(&mut data, offset)?;
            Ok::<_, io::Error>((check::checksum(seal, &data) == sum).then_some(data))
        });
        let (why, wrong) = match read.await {
            Ok(Ok(Some(data))) => return Some(data.into()),
            Ok(Ok(None)) => ("its checksum is wrong".to_owned(), true),
            Ok(Err(error)) => (error.to_string(), error.kind() == io::ErrorKind::UnexpectedEof),
            Err(error) => (error.to_string(), false),
        };
        tracing::debug!(key = %key.object.key, index = key.index, why, "a block of a file cannot be used");
        self.metrics.bad_blocks.inc();
        match part {
            // Never patched: the journal believes its blocks, and nobody knows of the others.
            Some(part) if wrong => {
                self.metrics.file_bad.inc();
                self.give_up(&part, "bad").await;
                // Where it is a file by now.
                self.suspect(&key.object);
            }
            // Descriptors run out for a moment, and what is published moves.
            Some(_) => {}
            None => self.suspect(&key.object),
        }
        None
    }

    /// The file of a version; opens it where it is not open. Counts as a use.
    pub(crate) fn whole(self: &Arc<Self>, object: &Arc<Version>) -> Option<Arc<WholeFile>> {
        self.look_up(object).ok()
    }

    fn look_up(self: &Arc<Self>, object: &Arc<Version>) -> Result<Arc<WholeFile>, NoCopy> {
        let id = object.id();
        let (unique, fate) = {
            let mut ledger = self.ledger.lock();
            let found = ledger.index.look_up(object);
            if matches!(found, Lookup::Open(_) | Lookup::Closed { .. }) {
                let set = SetId::of(object.store, object.key.as_str());
                ledger.admission.access(set, Item(id), object.meta.size);
            }
            match found {
                Lookup::Open(file) => return Ok(file),
                Lookup::Closed { unique, fate } => (unique, fate),
                Lookup::Suspect => {
                    drop(ledger);
                    self.suspect(object);
                    return Err(NoCopy::Suspect);
                }
                Lookup::Absent => return Err(NoCopy::Incomplete),
            }
        };
        self.metrics.file_opens.inc();
        let size = object.meta.size;
        let opened = File::open(self.whole_path(id, unique))
            .and_then(|file| Ok((file.metadata()?.len(), file)));
        match opened {
            Ok((len, file)) if len == size => {
                let file = Arc::new(WholeFile { file: Arc::new(file), fate });
                let closed = self.ledger.lock().index.keep_open(id, unique, &file);
                drop(closed);
                Ok(file)
            }
            // Descriptors run out for a moment; the file is as good as before.
            Err(error) if error.raw_os_error().is_some_and(kernel::is_short_of_descriptors) => {
                Err(NoCopy::Incomplete)
            }
            Ok(_) | Err(_) => {
                self.suspect(object);
                Err(NoCopy::Suspect)
            }
        }
    }

    /// The file of a version to hand on, or why there is none. Returns also whether somebody should
    /// complete it: it was opened again.
    pub(crate) fn copy(
        self: &Arc<Self>,
        object: &Arc<Version>,
    ) -> Result<LocalCopy, (NoCopy, bool)> {
        {
            let mut ledger = self.ledger.lock();
            if ledger.index.get(object).is_none() && !self.qualifies(object.meta.size, &ledger) {
                return Err((NoCopy::Small, false));
            }
            let whole =
                ledger.index.get(object).is_some_and(|e| matches!(e.state, State::Whole(_)));
            if !whole {
                let again = ledger.homes.opened(object.id()) > 1;
                return Err((NoCopy::Incomplete, again && self.is_up()));
            }
        }
        match self.look_up(object) {
            // It may be open here for long; who gets it now is past every other look at it.
            Ok(whole) if !whole.file.metadata().is_ok_and(|m| m.len() == object.meta.size) => {
                self.suspect(object);
                Err((NoCopy::Suspect, false))
            }
            Ok(whole) => {
                Ok(LocalCopy { file: Arc::clone(&whole.file), fate: Arc::clone(&whole.fate) })
            }
            Err(reason) => Err((reason, false)),
        }
    }

    /// True for objects that are completed when they are opened again, however little of them is here.
    pub(crate) fn is_small(size: u64) -> bool {
        size <= SMALL_BYTES
    }

    fn part_path(&self, id: u64, unique: u64) -> PathBuf {
        self.root.join(open::PARTS).join(file_name(id, unique))
    }

    fn whole_path(&self, id: u64, unique: u64) -> PathBuf {
        self.root.join(shard_name(id)).join(file_name(id, unique))
    }

    /// True where the tier writes.
    fn is_up(&self) -> bool {
        !self.closed.load(Ordering::Relaxed) && self.why_paused().is_none()
    }

    fn why_paused(&self) -> Option<String> {
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

    /// Whether the tier takes objects now.
    pub(crate) fn state(&self) -> TierState {
        let closed = self.closed.load(Ordering::Relaxed);
        let reason = if closed { Some("closed".to_owned()) } else { self.why_paused() };
        TierState { up: reason.is_none(), reason }
    }

    /// What the configuration says of a store's objects.
    pub(crate) fn pin(&self, store: u64, retention: crate::Retention) {
        self.ledger.lock().admission.pin(store, retention);
    }

    /// The tier's numbers. Brings its gauges up to date.
    pub(crate) fn stats(&self) -> FileTierStats {
        let (files, parts, bytes, capacity_bytes, suspect, sets) = {
            let ledger = self.ledger.lock();
            let index = &ledger.index;
            let high = ledger.budget.high_bytes;
            let sets = ledger.admission.report();
            (index.files(), index.parts(), index.bytes(), high, ledger.checking.len() as u64, sets)
        };
        let metrics = &self.metrics;
        FileTierStats {
            state: self.state(),
            file_system: self.file_system.clone(),
            stacked: self.stacked,
            files,
            parts,
            bytes,
            capacity_bytes,
            published: metrics.file_published.get(),
            written_bytes: metrics.file_written.get(),
            promoted_bytes: metrics.file_promoted.get(),
            evictions: metrics.file_evictions.get(),
            refused: Metrics::by_label(&metrics.file_refused),
            suspect,
            bad: metrics.file_bad.get(),
            scrubbed_bytes: metrics.file_scrubbed.get(),
            sets,
        }
    }

    /// Brings the tier's own gauges up to date. Costs no look at the data sets, unlike [`Self::stats`].
    pub(crate) fn update_gauges(&self) {
        let ledger = self.ledger.lock();
        let (index, metrics) = (&ledger.index, &self.metrics);
        metrics.files.set(index.files().cast_signed());
        metrics.file_parts.set(index.parts().cast_signed());
        metrics.file_size.set(index.bytes().cast_signed());
        metrics.file_capacity.set(ledger.budget.high_bytes.cast_signed());
    }

    /// Bytes that files and parts take on disk.
    pub(crate) fn bytes(&self) -> u64 {
        self.ledger.lock().index.bytes()
    }

    /// Waits until everything put in so far is written, verified and published, or was given up.
    pub(crate) async fn flush(&self) {
        self.busy.wait().await;
    }

    /// Flushes, records what is not, and takes nothing more. What is there can still be read.
    pub(crate) async fn close(self: &Arc<Self>) {
        self.flush().await;
        if self.closed.swap(true, Ordering::Relaxed) {
            return;
        }
        let tier = Arc::clone(self);
        // Not written back: the page cache outlives this process, and others may have much to write.
        _ = tokio::task::spawn_blocking(move || tier.record_parts(1)).await;
    }
}

/// Removes what a file tier left that is turned off now. In the background; the directory is held.
pub(crate) fn clear(cache: &Path) {
    let root = cache.join(open::FILES);
    drop(tokio::task::spawn_blocking(move || {
        if root.exists()
            && let Err(error) = std::fs::remove_dir_all(&root)
        {
            tracing::warn!(%error, "the files of an earlier cache could not be removed");
        }
    }));
}

/// The directory that a file lies in: one of 256, so that none grows too large.
fn shard_name(id: u64) -> String {
    format!("{:02x}", id >> 56)
}

fn file_name(id: u64, unique: u64) -> String {
    format!("{id:016x}-{unique:x}")
}

/// What a file's name says; `None` for a name that this tier does not give.
fn parse_name(name: &Path) -> Option<(u64, u64)> {
    let (id, unique) = name.to_str()?.split_once('-')?;
    let parsed = (u64::from_str_radix(id, 16).ok()?, u64::from_str_radix(unique, 16).ok()?);
    (file_name(parsed.0, parsed.1) == name.to_str()?).then_some(parsed)
}
