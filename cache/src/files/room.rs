//! One budget for both tiers: what files may take, and what goes when there is more.
//!
//! Invariant: files, parts and journal take no more than the high water of the capacity less what the
//! block tier really occupies, and no byte of the file system's reserve. Room is made before it is
//! used. An evicted file is unlinked; whoever has it open goes on reading.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

use super::index::{Entry, State};
use super::journal::Record;
use super::part::Part;
use super::{FileTier, Ledger, MAX_PARTS, Terms, kernel};
use crate::admission::Item;

/// How often what is measured is measured again, and what was written is recorded.
const TICK: Duration = Duration::from_secs(1);

/// Ticks between writing everything back: what a crash of the machine may cost is a verification.
const WRITE_BACK_TICKS: u64 = 30;

/// A part to which nothing was added for this long is given up before a file is evicted, and no longer
/// counts on the room that it would take.
const IDLE: Duration = Duration::from_mins(1);

/// Dead bytes that are not worth writing the journal anew.
const DEAD_BYTES: u64 = 4 << 20;

/// Bytes of a file's directory entry and of its record in the journal, about: what is not measured yet.
const NAME_BYTES: u64 = 320;

/// What admission leaves of the budget, as one part in this many: journal and directories grow beside
/// the files, and a set that keeps must not lose one to that.
const SLACK: u64 = 256;

/// How many bytes files may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::struct_field_names)] // Numbers carry their unit.
pub(super) struct Budget {
    /// With blocks that occupy nothing: what decides which objects are too large.
    pub(super) full_bytes: u64,
    /// Where eviction begins now.
    pub(super) high_bytes: u64,
    /// Where it ends.
    pub(super) low_bytes: u64,
}

#[allow(clippy::cast_sign_loss, clippy::cast_precision_loss)] // A fraction of a size is a size.
fn share(bytes: u64, of: f64) -> u64 {
    (bytes as f64 * of) as u64
}

impl Budget {
    pub(super) fn new(terms: &Terms) -> Self {
        let high = share(terms.capacity_bytes, terms.high_water);
        Self {
            full_bytes: high,
            high_bytes: high,
            low_bytes: share(terms.capacity_bytes, terms.low_water),
        }
    }

    /// The budget while `others` bytes of the capacity are taken by everything else, `held` by files,
    /// and `free` are left in the file system.
    fn now(terms: &Terms, others: u64, held: u64, free: u64) -> Self {
        let mut budget = Self::new(terms);
        // What the file system has left to give beyond its reserve, or has given too much.
        let reserve = terms.min_free_bytes;
        let most = held
            .saturating_add(free.saturating_sub(reserve))
            .saturating_sub(reserve.saturating_sub(free));
        budget.high_bytes = budget.high_bytes.saturating_sub(others).min(most);
        budget.low_bytes = budget.low_bytes.saturating_sub(others).min(budget.high_bytes);
        budget
    }

    /// What admission may fill.
    pub(super) fn admitted_bytes(&self) -> u64 {
        self.high_bytes - self.high_bytes / SLACK
    }
}

/// Bytes that a file takes on disk.
pub(super) fn allocated(path: &Path) -> u64 {
    fs::symlink_metadata(path).map_or(0, |m| m.blocks() * 512)
}

/// Something that was taken out of the ledger and lies on the disk still.
struct Leaving {
    id: u64,
    unique: u64,
    path: PathBuf,
    bytes: u64,
}

impl Leaving {
    fn unlink(&self) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::debug!(%error, "an evicted file could not be removed");
        }
    }
}

impl FileTier {
    /// Looks how much everything but files takes. Blocking: some hundred calls of `stat`.
    pub(super) fn measure(&self) {
        let within = |dir: &Path| {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries.map(|entry| allocated(&entry.path())).sum::<u64>() + allocated(dir)
        };
        // Before it is looked at: what is written meanwhile counts twice until the next look.
        let filled = self.metrics.disk_filled.get();
        let blocks = within(&self.terms.blocks);
        let shards = fs::read_dir(&self.root).into_iter().flatten().flatten();
        // Journals and directories, with the entries that they hold.
        let own: u64 =
            shards.map(|entry| allocated(&entry.path())).sum::<u64>() + allocated(&self.root);
        self.others.store(own, Ordering::Relaxed);
        self.blocks_before.store(blocks, Ordering::Relaxed);
        self.filled_before.store(filled, Ordering::Relaxed);
        self.review();
    }

    /// Brings the budget up to date with what was measured and what is free.
    fn review(&self) {
        let free = kernel::free_bytes(&self.root);
        let blocks = self.blocks_now();
        let mut ledger = self.ledger.lock();
        let names = (ledger.index.files() + ledger.index.parts()) * NAME_BYTES;
        let others = self.others.load(Ordering::Relaxed) + names + blocks;
        let held = ledger.index.bytes();
        let before = ledger.budget.high_bytes;
        ledger.budget = Budget::now(&self.terms, others, held, free);
        if ledger.budget.high_bytes != before {
            let fills = ledger.budget.admitted_bytes();
            ledger.admission.set_capacity(fills);
        }
    }

    /// What the block tier takes: what was measured, and what it has written or will since.
    fn blocks_now(&self) -> u64 {
        let measured = self.blocks_before.load(Ordering::Relaxed);
        let disk = self.source.get().and_then(std::sync::Weak::upgrade).and_then(|s| s.disk());
        let Some(disk) = disk else { return measured };
        let since = self.filled_before.load(Ordering::Relaxed);
        let filled = self.metrics.disk_filled.get().saturating_sub(since);
        // An eighth for what lies around small entries. What it writes over counts twice until the next
        // look, and never beyond what it may have.
        let grown = measured + filled + filled / 8 + disk.waiting_bytes;
        grown.min(disk.capacity_bytes.max(measured))
    }

    /// Makes room for `bytes` more of the part of object `id`. False where there is none. Blocking.
    pub(super) fn make_room(&self, bytes: u64, id: u64) -> bool {
        self.review();
        if self.has_room(bytes) {
            return true;
        }
        let _one = self.evicting.lock();
        self.review();
        let mut first = true;
        loop {
            let leaving = {
                let mut journal = self.journal.lock();
                let mut ledger = self.ledger.lock();
                let held = ledger.index.bytes().saturating_add(bytes);
                if held <= ledger.budget.high_bytes && (first || held <= ledger.budget.low_bytes) {
                    return true;
                }
                let must = held > ledger.budget.high_bytes;
                let Some(leaving) = self.pick(&mut ledger, must, id) else { return !must };
                drop(ledger);
                _ = journal.append(&Record::Gone { id: leaving.id, unique: leaving.unique });
                leaving
            };
            first = false;
            leaving.unlink();
        }
    }

    fn has_room(&self, bytes: u64) -> bool {
        let ledger = self.ledger.lock();
        ledger.index.bytes().saturating_add(bytes) <= ledger.budget.high_bytes
    }

    /// Gives back at least `bytes`. False where there is not that much. Blocking.
    pub(super) fn evict(&self, bytes: u64) -> bool {
        let _one = self.evicting.lock();
        let mut given = 0;
        while given < bytes {
            let leaving = {
                let mut journal = self.journal.lock();
                let mut ledger = self.ledger.lock();
                let Some(leaving) = self.pick(&mut ledger, true, 0) else { return false };
                drop(ledger);
                _ = journal.append(&Record::Gone { id: leaving.id, unique: leaving.unique });
                leaving
            };
            given += leaving.bytes;
            leaving.unlink();
        }
        true
    }

    /// Takes the next to go out of the ledger: parts that nobody goes on with, then files, then any
    /// part that nobody writes. Where nothing `must` go, only what nobody is expected to miss.
    fn pick(&self, ledger: &mut Ledger, must: bool, except: u64) -> Option<Leaving> {
        let now = Instant::now();
        let stalest = |parts: &mut dyn Iterator<Item = (&u64, &Arc<Part>)>| {
            parts
                .filter(|(id, _)| **id != except)
                .filter_map(|(id, part)| Some((part.idle_since()?, *id)))
                .min()
        };
        if let Some((since, id)) = stalest(&mut ledger.parts.iter())
            && now.saturating_duration_since(since) >= IDLE
        {
            return self.take_part(ledger, id);
        }
        loop {
            let next = if must { ledger.admission.victim() } else { ledger.admission.spare() };
            let Some(Item(id)) = next else { break };
            let Some(entry) = ledger.index.by_id(id) else { continue };
            // Never a part: those were not inserted.
            if matches!(entry.state, State::Whole(_)) {
                let unique = entry.unique;
                let entry = ledger.index.remove(id, unique)?;
                if let State::Whole(whole) = &entry.state {
                    whole.fate.evict();
                }
                self.metrics.file_evictions.inc();
                self.metrics.evictions.inc();
                return Some(Leaving {
                    id,
                    unique,
                    path: self.whole_path(id, unique),
                    bytes: entry.allocated,
                });
            }
        }
        if !must {
            return None;
        }
        let (_, id) = stalest(&mut ledger.parts.iter())?;
        self.take_part(ledger, id)
    }

    fn take_part(&self, ledger: &mut Ledger, id: u64) -> Option<Leaving> {
        let part = Arc::clone(ledger.parts.get(&id)?);
        part.drop_all();
        ledger.forget_part(id);
        let Entry { unique, allocated, .. } = ledger.index.remove(id, part.unique)?;
        self.metrics.file_refused.with_label_values(&["given_up"]).inc();
        Some(Leaving { id, unique, path: self.part_path(id, unique), bytes: allocated })
    }

    /// What is done now and then. Blocking.
    pub(super) fn tick(&self, number: u64) {
        // A cache that nobody fills costs a machine nothing.
        let written = self.metrics.disk_filled.get() + self.metrics.file_written.get();
        let still = self.written_before.swap(written, Ordering::Relaxed) == written;
        if !still || number.is_multiple_of(WRITE_BACK_TICKS) {
            self.measure();
        }
        // Not for anyone in particular: the block tier may have grown, or the disk filled up.
        self.make_room(0, 0);
        if !self.closed.load(Ordering::Relaxed) {
            self.record_parts(1);
            self.forget_promises();
        }
        self.thin_out();
        if number.is_multiple_of(WRITE_BACK_TICKS) {
            self.write_back();
        }
        self.compact();
    }

    /// Gives up parts that nobody goes on with where there are many, so that others may begin.
    fn thin_out(&self) {
        if self.ledger.lock().parts.len() <= MAX_PARTS / 2 {
            return;
        }
        let now = Instant::now();
        let leaving: Vec<Leaving> = {
            let mut journal = self.journal.lock();
            let mut ledger = self.ledger.lock();
            let over = ledger.parts.len().saturating_sub(MAX_PARTS / 2);
            let idle = ledger.parts.iter().filter_map(|(id, part)| Some((part.idle_since()?, *id)));
            let mut idle: Vec<_> =
                idle.filter(|(since, _)| now.saturating_duration_since(*since) >= IDLE).collect();
            idle.sort_unstable();
            idle.truncate(over);
            let taken = idle.into_iter().filter_map(|(_, id)| self.take_part(&mut ledger, id));
            let leaving: Vec<Leaving> = taken.collect();
            drop(ledger);
            for part in &leaving {
                _ = journal.append(&Record::Gone { id: part.id, unique: part.unique });
            }
            leaving
        };
        for part in leaving {
            part.unlink();
        }
    }

    fn forget_promises(&self) {
        let now = Instant::now();
        let mut ledger = self.ledger.lock();
        let idle = |part: &Arc<Part>| {
            part.idle_since().is_some_and(|since| now.saturating_duration_since(since) >= IDLE)
        };
        let ids: Vec<u64> =
            ledger.parts.iter().filter(|(_, p)| idle(p)).map(|(id, _)| *id).collect();
        for id in ids {
            ledger.break_promise(id);
        }
    }

    /// Writes the journal anew where most of it says what is not so any more. Blocking.
    pub(super) fn compact(&self) {
        let mut journal = self.journal.lock();
        let ledger = self.ledger.lock();
        if journal.len() < DEAD_BYTES + 2 * ledger.index.recorded_bytes() {
            return;
        }
        // Collected first: no lock that readers take is held while the disk writes.
        let records: Vec<Record> = ledger.index.records().collect();
        drop(ledger);
        if let Err(error) = journal.compact(records.into_iter()) {
            tracing::debug!(%error, "the journal of the cache's files could not be compacted");
        } else {
            self.metrics.file_compactions.inc();
        }
    }
}

/// Ticks as long as the tier is there.
pub(super) async fn keep_house(tier: Weak<FileTier>) {
    let mut ticks = tokio::time::interval(TICK);
    // A disk that is slow is not asked more often for it.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut number = 0;
    loop {
        ticks.tick().await;
        let Some(tier) = tier.upgrade() else { break };
        number += 1;
        if tokio::task::spawn_blocking(move || tier.tick(number)).await.is_err() {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_what_others_leave_and_the_disk_gives() {
        let terms = Terms {
            block_bytes: 1000,
            capacity_bytes: 1000,
            high_water: 0.9,
            low_water: 0.8,
            min_free_bytes: 100,
            min_object_bytes: 1,
            sequential_bytes: 1,
            direct_writes: false,
            scrub_bytes_per_second: 0,
            blocks: PathBuf::new(),
        };
        let budget = |others, held, free| {
            let budget = Budget::now(&terms, others, held, free);
            assert_eq!(budget.full_bytes, 900);
            (budget.high_bytes, budget.low_bytes)
        };
        assert_eq!(budget(0, 0, 10_000), (900, 800));
        assert_eq!(budget(250, 300, 10_000), (650, 550));
        assert_eq!(budget(2000, 300, 10_000), (0, 0));
        // 50 bytes above the reserve are left, or 40 of it are gone.
        assert_eq!(budget(0, 300, 150), (350, 350));
        assert_eq!(budget(0, 300, 60), (260, 260));
        assert_eq!(budget(0, 10, 60), (0, 0));
    }
}
