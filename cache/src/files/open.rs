//! Opening the tier: what an earlier process left, found again without looking at a file.
//!
//! Invariant: what the journal says is believed after this process's or the last one's end, however it
//! ended; after a crash of the machine only what was written back before is, and the rest is verified
//! before it is used. Files that the journal does not name are removed, in the background.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::check::Checkers;
use super::homes::Homes;
use super::identity::Identity;
use super::index::{Entry, Index, State, Whole};
use super::journal::{JOURNAL, Journal, Record, replay};
use super::part::Part;
use super::room::{self, Budget};
use super::{
    FileTier, Ledger, READS, ROOM_UNIT_BYTES, Terms, WRITERS, kernel, parse_name, suspicion, writer,
};
use crate::admission::{Admission, Item, SetId};
use crate::blocks::Directory;
use crate::{CacheConfig, DiskConfig, Metrics};

/// Where parts lie.
pub(super) const PARTS: &str = "parts";

/// Where the tier lies in the cache directory.
pub(super) const FILES: &str = "files";

/// Bytes of blocks that wait to be written, of all parts: a burst of several GETs.
const QUEUE_BYTES: u64 = 64 << 20;

/// Most files that are kept open; each takes a few hundred bytes here and in the kernel.
const MAX_OPEN: u64 = 4096;

/// What the journal says of one file.
enum Found {
    Part {
        identity: Identity,
        suspect: bool,
        blocks: Vec<(u32, u64)>,
    },
    Whole {
        identity: Identity,
        allocated: u64,
        at: u64,
        durable: bool,
        suspect: bool,
        sums: Box<[u64]>,
    },
}

#[derive(Default)]
struct Replayed {
    files: HashMap<u64, (u64, Found)>,
    /// When the origin last confirmed a file's version.
    confirmed: HashMap<u64, u64>,
    durable_upto: u64,
    records: u64,
}

/// What an earlier process left, put together.
struct Recovered {
    index: Index,
    admission: Admission,
    parts: HashMap<u64, Arc<Part>>,
    /// Files that a crash of the machine may lose still.
    young: Vec<(u64, u64)>,
    /// Parts that only have to be published.
    complete: Vec<Arc<Part>>,
    records: u64,
}

impl Replayed {
    fn take(&mut self, at: u64, record: Record) {
        self.records += 1;
        match record {
            Record::Begin { unique, identity, suspect } => {
                if let Some(version) = identity.version() {
                    let found = Found::Part { identity, suspect, blocks: Vec::new() };
                    self.files.insert(version.id(), (unique, found));
                }
            }
            Record::Blocks { id, unique, blocks: more } => {
                if let Some((held, Found::Part { blocks, .. })) = self.files.get_mut(&id)
                    && *held == unique
                {
                    blocks.extend(more);
                }
            }
            Record::Whole { unique, identity, allocated, durable, suspect, sums } => {
                if let Some(version) = identity.version() {
                    let whole = Found::Whole { identity, allocated, at, durable, suspect, sums };
                    self.files.insert(version.id(), (unique, whole));
                    self.confirmed.remove(&version.id());
                }
            }
            Record::Gone { id, unique } => {
                if self.files.get(&id).is_some_and(|(held, _)| *held == unique) {
                    self.files.remove(&id);
                }
            }
            Record::Durable { upto } => self.durable_upto = upto,
            Record::Verified { id, unique } => {
                if let Some((held, Found::Whole { suspect, .. })) = self.files.get_mut(&id)
                    && *held == unique
                {
                    // What was read may have been in memory alone: it is not safe from a crash by this.
                    *suspect = false;
                }
            }
            Record::Current { id, unique, confirmed } => {
                if self.files.get(&id).is_some_and(|(held, _)| *held == unique) {
                    self.confirmed.insert(id, confirmed);
                }
            }
        }
    }

    /// The files that are there, as far as the journal knows. Only parts are looked at.
    fn recover(
        self,
        root: &Path,
        block_bytes: u64,
        budget: Budget,
        crashed: bool,
    ) -> io::Result<Recovered> {
        let parts_on_disk = names(&root.join(PARTS));
        let mut index = Index::new((kernel::descriptor_limit() / 4).min(MAX_OPEN) as usize);
        let mut admission = Admission::new(budget.high_bytes);
        let (mut parts, mut young, mut complete) = (HashMap::new(), Vec::new(), Vec::new());
        for (id, (unique, found_file)) in self.files {
            let (identity, allocated, state) = match found_file {
                Found::Part { identity, suspect, blocks } => {
                    if !parts_on_disk.contains(&(id, unique)) {
                        continue;
                    }
                    let Some(object) = identity.version() else { continue };
                    let suspect = suspect || crashed;
                    let Some(part) = Part::new(object, unique, block_bytes, suspect) else {
                        continue;
                    };
                    let part = Arc::new(part);
                    part.recovered(&blocks);
                    let path = root.join(PARTS).join(super::file_name(id, unique));
                    parts.insert(id, Arc::clone(&part));
                    if part.missing() == 0 {
                        complete.push(Arc::clone(&part));
                    }
                    (identity, room::allocated(&path), State::Part(part))
                }
                Found::Whole { identity, allocated, at, durable, suspect, sums } => {
                    // It was recorded, and not renamed any more.
                    if parts_on_disk.contains(&(id, unique)) {
                        let name = super::file_name(id, unique);
                        writer::rename_into_shard(root, id, &name)?;
                    }
                    let durable = durable || at <= self.durable_upto;
                    let suspect = suspect || (crashed && !durable);
                    if !durable {
                        young.push((id, unique));
                    }
                    let set = SetId::of(identity.store, identity.key());
                    admission.inserted(set, Item(id), allocated);
                    let confirmed = self.confirmed.get(&id).copied().unwrap_or(0);
                    let whole = Whole::new(sums.into(), suspect, durable, confirmed);
                    (identity, allocated, State::Whole(whole))
                }
            };
            index.insert(id, Entry { identity, unique, allocated, state });
        }
        Ok(Recovered { index, admission, parts, young, complete, records: self.records })
    }
}

impl FileTier {
    /// Opens the tier in a cache directory. Must be called within a tokio runtime.
    pub(crate) async fn open(
        config: &CacheConfig,
        disk: &DiskConfig,
        directory: Arc<Directory>,
        metrics: &Metrics,
    ) -> Result<Arc<Self>, String> {
        let (terms, metrics) = (Terms::new(config, disk), metrics.clone());
        let path = disk.path.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let root = path.join(FILES);
            let fail = |e: io::Error| format!("cannot use `{}`: {e}", root.display());
            fs::create_dir_all(root.join(PARTS)).map_err(fail)?;
            // All at once, so that what they take is known before the first file is admitted.
            for shard in 0..=u8::MAX {
                let path = root.join(format!("{shard:02x}"));
                if let Err(error) = fs::create_dir(path)
                    && error.kind() != io::ErrorKind::AlreadyExists
                {
                    return Err(fail(error));
                }
            }
            Self::take(&root, terms, directory, metrics).map_err(fail)
        });
        let (tier, complete) = opened.await.map_err(|e| e.to_string())??;
        let tier = Arc::new(tier);
        for part in complete {
            let job = tier.busy.begin();
            tokio::spawn(writer::drive(Arc::clone(&tier), part, job));
        }
        tokio::spawn(room::keep_house(Arc::downgrade(&tier)));
        tokio::spawn(suspicion::scrub(Arc::downgrade(&tier)));
        let sweeping = Arc::downgrade(&tier);
        // Nobody waits for it: names that are nobody's are never given out.
        drop(tokio::task::spawn_blocking(move || {
            if let Some(tier) = sweeping.upgrade() {
                tier.sweep();
            }
        }));
        Ok(tier)
    }

    /// Reads the journal. Returns also the parts that only have to be published.
    fn take(
        root: &Path,
        terms: Terms,
        directory: Arc<Directory>,
        metrics: Metrics,
    ) -> io::Result<(Self, Vec<Arc<Part>>)> {
        let boot = kernel::boot_id();
        let mut found = Replayed::default();
        let written = replay(root, terms.block_bytes, |at, record| found.take(at, record))?;
        if written.is_none() && root.join(JOURNAL).exists() {
            tracing::warn!(
                path = %root.display(),
                "the files of the cache were written with another block size or format and are discarded"
            );
        }
        let crashed = written.is_some_and(|(before, _)| before == 0 || before != boot);
        let budget = Budget::new(&terms);
        let Recovered { index, admission, parts, young, complete, records } =
            found.recover(root, terms.block_bytes, budget, crashed)?;
        // A journal that nothing is wrong with is written on; every other one is written anew.
        let live = index.files() + 2 * index.parts();
        let mostly_dead = records > 4 * live + 1024;
        let journal = match written {
            Some((_, len)) if !crashed && !mostly_dead => {
                Journal::reopen(root, terms.block_bytes, boot, len)?
            }
            _ => Journal::rewrite(root, terms.block_bytes, boot, index.records())?,
        };
        let direct = AtomicBool::new(terms.direct_writes && directory.takes_direct_io());
        let (file_system, stacked) = kernel::file_system(root);
        // A queue must not outgrow the tier, nor be too short for two blocks.
        let queue = QUEUE_BYTES.min(terms.capacity_bytes / 32).max(2 * terms.block_bytes);
        let queue_units = (queue / ROOM_UNIT_BYTES).max(1) as u32;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let tier = Self {
            root: root.to_owned(),
            ledger: Mutex::new(Ledger {
                index,
                parts,
                promised: HashMap::new(),
                promised_bytes: 0,
                checking: HashSet::new(),
                admission,
                homes: Homes::default(),
                young,
                tags: HashMap::new(),
                budget,
            }),
            terms,
            journal: Mutex::new(journal),
            evicting: Mutex::default(),
            queue: Arc::new(Semaphore::new(queue_units as usize)),
            queue_units,
            writers: Semaphore::new(WRITERS),
            reads: Arc::new(Semaphore::new(READS)),
            checkers: Checkers::start(),
            busy: Arc::default(),
            paused: Mutex::default(),
            closed: AtomicBool::new(false),
            source: OnceLock::new(),
            // No process has given out a name that this one gives out, whatever the clock does: with
            // the version's hash before it, and the nanosecond of the start in it.
            unique: AtomicU64::new(now.as_nanos() as u64),
            unsynced: AtomicU64::new(1),
            others: AtomicU64::new(0),
            blocks_before: AtomicU64::new(0),
            filled_before: AtomicU64::new(0),
            written_before: AtomicU64::new(0),
            file_system,
            stacked,
            direct,
            metrics,
            _directory: directory,
        };
        tier.measure();
        Ok((tier, complete))
    }

    /// Removes what the journal does not name.
    fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.root) else { return };
        for entry in entries.flatten() {
            let path = entry.path();
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let name = entry.file_name();
            let shard = name.to_str().is_some_and(|name| {
                name == PARTS || (name.len() == 2 && u8::from_str_radix(name, 16).is_ok())
            });
            if is_dir && shard {
                self.sweep_directory(&path);
            } else if name != JOURNAL && name != super::journal::JOURNAL_NEW {
                remove(&path, is_dir);
            }
        }
    }

    fn sweep_directory(&self, path: &Path) {
        let Ok(entries) = fs::read_dir(path) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let known = parse_name(Path::new(&name)).is_some_and(|(id, unique)| {
                self.ledger.lock().index.by_id(id).is_some_and(|held| held.unique == unique)
            });
            if !known {
                let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
                // Between the look and now it may have been evicted, never begun: names are new.
                remove(&entry.path(), is_dir);
                self.metrics.file_swept.inc();
            }
        }
    }

    /// Marks the journal as having something that a crash of the machine would lose.
    pub(super) fn is_unsynced(&self) {
        self.unsynced.store(1, Ordering::Release);
    }
}

fn remove(path: &Path, is_dir: bool) {
    _ = if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}

fn names(dir: &Path) -> HashSet<(u64, u64)> {
    let Ok(entries) = fs::read_dir(dir) else { return HashSet::new() };
    entries.flatten().filter_map(|entry| parse_name(Path::new(&entry.file_name()))).collect()
}

impl Terms {
    fn new(config: &CacheConfig, disk: &DiskConfig) -> Self {
        Self {
            block_bytes: config.block_bytes,
            capacity_bytes: disk.capacity_bytes,
            high_water: disk.high_water,
            low_water: disk.low_water.min(disk.high_water),
            min_free_bytes: disk.min_free_bytes,
            min_object_bytes: disk.files.min_object_bytes,
            sequential_bytes: disk.files.sequential_bytes,
            direct_writes: disk.files.direct_writes,
            scrub_bytes_per_second: disk.files.scrub_bytes_per_second,
            blocks: disk.path.join("blocks"),
        }
    }
}
