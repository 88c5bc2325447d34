//! Writing parts and publishing them.
//!
//! Invariant: one thread writes a part at a time, in order, blocks that lie side by side in one call.
//! Hot reads are as fast as the page cache's folios are large, and those are as large as the writes;
//! where it is asked for, whole blocks of large objects go past the page cache, because filling fresh
//! pages can cost several times the processor time of all else that a fetch
//! does. Small objects go through it, and are hot at once. A part becomes a file by one rename, after its length, its checksums and, where the tag is one, its
//! MD5 were found right.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::index::{State, Whole};
use super::journal::Record;
use super::open::PARTS;
use super::part::{Part, Step, Waiting};
use super::{FileTier, Job, check, file_name, kernel, shard_name};
use crate::admission::{Item, SetId};

/// Written blocks are recorded when there are this many bytes of them: what a kill may lose.
const RECORD_BYTES: u64 = 4 << 20;

/// How long nothing is written after an error that is not a full disk.
const PAUSE: Duration = Duration::from_secs(30);

/// How long after a disk was found full in spite of the budget.
const FULL_PAUSE: Duration = Duration::from_secs(1);

/// Bytes that are given back, at most, when a disk is found full: enough for those who write now.
const FULL_BYTES: u64 = 64 << 20;

/// Objects below this are written through the page cache: they are read again before long, and whole,
/// and a direct write of a few blocks waits for the disk instead of handing over.
const DIRECT_BYTES: u64 = 8 << 20;

/// What every disk takes as a unit of direct writes.
const DIRECT_ALIGNMENT: usize = 4096;

/// Slices of one write: what Linux takes at once.
const MAX_SLICES: usize = 1024;

/// Objects of a store whose tags look like MD5s, and are none, before its tags are not believed to be
/// any: those of encrypted objects are random.
const WRONG_TAGS: u64 = 4;

/// A part that is being written.
struct Out {
    path: std::path::PathBuf,
    cached: File,
    direct: Option<File>,
    large: bool,
}

/// True for blocks that can be written past the page cache; their offsets are multiples of their length,
/// but for the last of an object, which rarely has such a length.
fn is_aligned(data: &[u8]) -> bool {
    (data.as_ptr() as usize).is_multiple_of(DIRECT_ALIGNMENT)
        && data.len().is_multiple_of(DIRECT_ALIGNMENT)
}

/// Writes what waits in a part, and publishes it when it is complete.
pub(super) async fn drive(tier: Arc<FileTier>, part: Arc<Part>, job: Job) {
    let Ok(turn) = tier.writers.acquire().await else { return };
    let work = {
        let (tier, part) = (Arc::clone(&tier), Arc::clone(&part));
        tokio::task::spawn_blocking(move || tier.write_out(&part))
    };
    let complete = work.await.unwrap_or(false);
    drop(turn);
    after(&tier, &part, complete).await;
    drop(job);
}

/// What follows when a thread has written what there was.
async fn after(tier: &Arc<FileTier>, part: &Arc<Part>, complete: bool) {
    if complete {
        tier.finish(part).await;
    } else {
        tier.promote(part).await;
    }
}

impl FileTier {
    /// Writes until nothing waits. True where the part is complete then. Blocking.
    fn write_out(&self, part: &Arc<Part>) -> bool {
        let mut out = None;
        while let Step::Write(batch) = part.step() {
            let result = self.write_batch(part, &mut out, &batch);
            if let Err(error) = result {
                self.write_failed(part, &error);
            }
        }
        part.missing() == 0 && part.finishes_now()
    }

    fn write_batch(
        &self,
        part: &Arc<Part>,
        out: &mut Option<Out>,
        batch: &[Waiting],
    ) -> io::Result<()> {
        let id = part.object.id();
        let bytes = batch.iter().map(|w| w.data.len() as u64).sum();
        if !self.make_room(bytes, id) {
            self.abandon(part, "no_room");
            return Ok(());
        }
        let out = match out {
            Some(out) => out,
            None => match self.open_part(part) {
                // Given up, and unlinked, meanwhile.
                Err(_) if part.is_dropped() => return Ok(()),
                opened => out.insert(opened?),
            },
        };
        let mut written = Vec::with_capacity(batch.len());
        for run in batch.chunk_by(|a, b| a.index + 1 == b.index) {
            let Some(first) = run.first() else { continue };
            let offset = part.range(first.index).start;
            let mut at = offset;
            let mut cached = 0;
            for same in run.chunk_by(|a, b| is_aligned(&a.data) == is_aligned(&b.data)) {
                for slices in same.chunks(MAX_SLICES) {
                    let direct = self.write_direct(out, slices, at)?;
                    let wrote = match direct {
                        Some(wrote) => wrote,
                        None => write_all(&out.cached, slices, at)?,
                    };
                    at += wrote;
                    cached += if direct.is_none() { wrote } else { 0 };
                }
            }
            // Small files are left to the kernel's own pace: starting each would cost more.
            if cached >= RECORD_BYTES / 4 {
                kernel::start_write_back(&out.cached, offset, at - offset);
            }
            let sums = run.iter().map(|waiting| {
                let sum = check::checksum(part.key(waiting.index).seal(), &waiting.data);
                (waiting.index, sum)
            });
            written.extend(sums);
        }
        let allocated = out.cached.metadata()?.blocks() * 512;
        part.wrote(&written);
        self.metrics.file_written.inc_by(bytes);
        {
            let mut ledger = self.ledger.lock();
            ledger.index.resize(id, part.unique, allocated);
            ledger.keep_promise(id, bytes);
        }
        let least = (RECORD_BYTES / part.block_bytes).max(1) as usize;
        if part.missing() > 0
            && let Some(blocks) = part.unrecorded(least)
        {
            self.record_blocks(part, blocks)?;
        }
        Ok(())
    }

    /// True where whole blocks go past the page cache.
    #[cfg(test)]
    pub(super) fn writes_direct(&self) -> bool {
        self.direct.load(Ordering::Relaxed)
    }

    /// Writes blocks past the page cache. `None` where they, or the file system, do not fit that.
    fn write_direct(&self, out: &mut Out, run: &[Waiting], at: u64) -> io::Result<Option<u64>> {
        let fits = out.large && run.iter().all(|waiting| is_aligned(&waiting.data));
        if !fits || !self.direct.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let file = match &mut out.direct {
            Some(file) => file,
            direct => {
                let mut options = OpenOptions::new();
                options.write(true).custom_flags(libc::O_DIRECT);
                direct.insert(options.open(&out.path)?)
            }
        };
        match write_all(file, run, at) {
            // What was written before this is written again, the same bytes.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.direct.store(false, Ordering::Relaxed);
                Ok(None)
            }
            written => written.map(Some),
        }
    }

    fn open_part(&self, part: &Part) -> io::Result<Out> {
        let path = self.part_path(part.object.id(), part.unique);
        self.metrics.file_opens.inc();
        let mut options = OpenOptions::new();
        // A file that is gone is not begun anew: what was written to it would be holes.
        let begins = part.missing() == part.count;
        options.read(true).write(true).create(begins).truncate(false).mode(0o600);
        let cached = options.open(&path)?;
        if cached.metadata()?.len() != part.object.meta.size {
            cached.set_len(part.object.meta.size)?;
        }
        let large = part.object.meta.size >= DIRECT_BYTES;
        Ok(Out { path, cached, direct: None, large })
    }

    fn record_blocks(&self, part: &Part, blocks: Vec<(u32, u64)>) -> io::Result<()> {
        let (id, unique) = (part.object.id(), part.unique);
        let mut journal = self.journal.lock();
        if part.is_dropped() {
            return Ok(());
        }
        if part.begins_record()
            && let Some(identity) = super::Identity::of(&part.object)
        {
            journal.append(&Record::Begin { unique, identity, suspect: part.suspect })?;
        }
        journal.append(&Record::Blocks { id, unique, blocks })
    }

    /// Records what parts hold of `at_least` blocks each and was not recorded yet.
    pub(super) fn record_parts(&self, at_least: usize) {
        let parts: Vec<Arc<Part>> = self.ledger.lock().parts.values().cloned().collect();
        for part in parts {
            if part.missing() > 0
                && let Some(blocks) = part.unrecorded(at_least)
                && let Err(error) = self.record_blocks(&part, blocks)
            {
                self.pause(PAUSE, &format!("the journal of the cache's files: {error}"));
                return;
            }
        }
    }

    /// A part could not be written.
    fn write_failed(&self, part: &Arc<Part>, error: &io::Error) {
        if kernel::is_full(error) {
            self.abandon(part, "disk_full");
            self.metrics.dropped.with_label_values(&["disk_full"]).inc();
            // Something else fills the disk: what can be given back is, and others go on at once.
            if !self.evict(part.object.meta.size.min(FULL_BYTES)) {
                self.pause(FULL_PAUSE, "the disk is full");
            }
        } else {
            self.abandon(part, "write_error");
            self.metrics.dropped.with_label_values(&["write_error"]).inc();
            self.pause(PAUSE, &format!("a file of the cache could not be written: {error}"));
        }
    }

    /// Writes nothing for a while.
    pub(super) fn pause(&self, how_long: Duration, why: &str) {
        let mut paused = self.paused.lock();
        if paused.is_none() {
            tracing::warn!(reason = why, "the file tier of the cache takes no objects");
        }
        *paused = Some((tokio::time::Instant::now() + how_long, why.to_owned()));
    }

    /// Gives a part up; a file that it has become stays.
    pub(super) fn abandon(&self, part: &Arc<Part>, reason: &str) {
        let (id, unique) = (part.object.id(), part.unique);
        part.drop_all();
        {
            let mut journal = self.journal.lock();
            let mut ledger = self.ledger.lock();
            let is_part = ledger.index.by_id(id).is_some_and(|entry| {
                entry.unique == unique && matches!(entry.state, State::Part(_))
            });
            if !is_part {
                return;
            }
            ledger.index.remove(id, unique);
            ledger.forget_part(id);
            drop(ledger);
            if !part.begins_record() {
                _ = journal.append(&Record::Gone { id, unique });
            }
        }
        self.metrics.file_refused.with_label_values(&[reason]).inc();
        _ = fs::remove_file(self.part_path(id, unique));
    }

    /// Verifies a complete part and publishes it.
    async fn finish(self: &Arc<Self>, part: &Arc<Part>) {
        let store = part.object.store;
        let md5 = part.object.etag().md5_hex().map(str::to_ascii_lowercase);
        let md5 =
            md5.filter(|_| !self.ledger.lock().tags.get(&store).is_some_and(|t| t.mean_nothing()));
        if md5.is_some() || part.suspect {
            let (tier, checked) = (Arc::clone(self), Arc::clone(part));
            let verdict = self.checkers.run(move || tier.check_part(&checked, md5.as_deref()));
            let verdict = verdict.await.unwrap_or(Ok(Verdict::Unknown));
            match verdict {
                Ok(Verdict::Good) => {}
                Ok(Verdict::WrongTag) if self.tag_was_wrong(store) => {}
                Ok(Verdict::Unknown) => return self.give_up(part, "not_verified").await,
                Ok(Verdict::WrongTag) => {
                    tracing::warn!(key = %part.object.key, "an object's bytes do not have the MD5 of its tag: it is not kept as a file");
                    self.metrics.file_bad.inc();
                    self.ledger.lock().homes.refuse_for_good(part.object.id());
                    return self.give_up(part, "wrong_md5").await;
                }
                Ok(Verdict::WrongBlocks) => {
                    self.metrics.file_bad.inc();
                    return self.give_up(part, "bad").await;
                }
                Err(error) => {
                    tracing::debug!(%error, "a part could not be verified");
                    return self.give_up(part, "read_error").await;
                }
            }
        }
        let (tier, part) = (Arc::clone(self), Arc::clone(part));
        let done = tokio::task::spawn_blocking(move || {
            if let Err(error) = tier.publish(&part) {
                tier.write_failed(&part, &error);
            }
        });
        _ = done.await;
    }

    pub(super) async fn give_up(self: &Arc<Self>, part: &Arc<Part>, reason: &'static str) {
        let (tier, part) = (Arc::clone(self), Arc::clone(part));
        _ = tokio::task::spawn_blocking(move || tier.abandon(&part, reason)).await;
    }

    /// Reads a part as it lies on disk. Blocking, on a thread that gives way.
    fn check_part(&self, part: &Part, md5: Option<&str>) -> io::Result<Verdict> {
        let file = File::open(self.part_path(part.object.id(), part.unique))?;
        self.metrics.file_opens.inc();
        if part.suspect {
            for (index, sum) in part.blocks() {
                if !check::block_is_good(&file, part.range(index), part.key(index).seal(), sum)? {
                    return Ok(Verdict::WrongBlocks);
                }
            }
        }
        let Some(md5) = md5 else { return Ok(Verdict::Good) };
        if check::md5_hex(&file, part.object.meta.size)? != md5 {
            return Ok(Verdict::WrongTag);
        }
        self.ledger.lock().tags.entry(part.object.store).or_default().right += 1;
        Ok(Verdict::Good)
    }

    /// Counts a tag that was no MD5. True where the store's tags mean nothing.
    fn tag_was_wrong(&self, store: u64) -> bool {
        let mut ledger = self.ledger.lock();
        let tags = ledger.tags.entry(store).or_default();
        tags.wrong += 1;
        let nothing = tags.mean_nothing();
        if nothing && tags.wrong == WRONG_TAGS {
            tracing::info!(
                "the tags of a store look like MD5s and are none: files are verified without them"
            );
        }
        nothing
    }

    /// Makes a part a file. Blocking.
    fn publish(&self, part: &Arc<Part>) -> io::Result<()> {
        let (id, unique, object) = (part.object.id(), part.unique, &part.object);
        let Some(sums) = part.sums() else { return Ok(()) };
        let Some(identity) = super::Identity::of(object) else { return Ok(()) };
        let metadata = fs::metadata(self.part_path(id, unique))?;
        if metadata.len() != object.meta.size {
            let context =
                format!("a part has {} bytes, expected {}", metadata.len(), object.meta.size);
            return Err(io::Error::other(context));
        }
        let allocated = metadata.blocks() * 512;
        let mut journal = self.journal.lock();
        if part.is_dropped() {
            return Ok(());
        }
        let confirmed = part.confirmed();
        // First the record: a file that was renamed and is not in the journal would be lost.
        journal.append(&Record::Whole {
            unique,
            identity,
            allocated,
            durable: false,
            suspect: false,
            sums: sums.clone(),
        })?;
        journal.append(&Record::Current { id, unique, confirmed })?;
        part.begins_record();
        // Nobody may begin another file under the name that this one leaves.
        part.drop_all();
        rename_into_shard(&self.root, id, &file_name(id, unique))?;
        let mut ledger = self.ledger.lock();
        // It may have been replaced meanwhile, and nobody else tells the journal of a part.
        let now = part.confirmed();
        let whole = Whole::new(sums.into(), false, false, now);
        if ledger.index.complete(id, unique, whole) {
            ledger.index.resize(id, unique, allocated);
            ledger.forget_part(id);
            let set = SetId::of(object.store, object.key.as_str());
            ledger.admission.inserted(set, Item(id), allocated);
            ledger.young.push((id, unique));
        }
        drop(ledger);
        if now != confirmed {
            _ = journal.append(&Record::Current { id, unique, confirmed: now });
        }
        self.is_unsynced();
        self.metrics.file_published.inc();
        Ok(())
    }

    /// Marks everything that was published before now as safe from a crash. Blocking, for as long as
    /// the disk takes.
    pub(super) fn write_back(&self) {
        if self.unsynced.swap(0, Ordering::AcqRel) == 0 {
            return;
        }
        let (upto, young) = {
            let journal = self.journal.lock();
            let mut ledger = self.ledger.lock();
            (journal.len(), std::mem::take(&mut ledger.young))
        };
        let synced = File::open(&self.root).and_then(|dir| Ok(rustix::fs::syncfs(dir)?));
        let mut journal = self.journal.lock();
        let mut ledger = self.ledger.lock();
        if let Err(error) = synced {
            drop(journal);
            ledger.young.extend(young);
            // Tried again next time, though nothing more is published.
            self.is_unsynced();
            tracing::debug!(%error, "the cache's files could not be written back");
            return;
        }
        for (id, unique) in young {
            if let Some(whole) = ledger.index.whole_mut(id, unique) {
                whole.durable = true;
            }
        }
        drop(ledger);
        _ = journal.append(&Record::Durable { upto });
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Good,
    WrongTag,
    WrongBlocks,
    /// There was nobody to look.
    Unknown,
}

impl super::Tags {
    fn mean_nothing(self) -> bool {
        self.right == 0 && self.wrong >= WRONG_TAGS
    }
}

impl super::Ledger {
    /// Bytes of a part were written that it had still to bring.
    fn keep_promise(&mut self, id: u64, bytes: u64) {
        if let Some(left) = self.promised.get_mut(&id) {
            let kept = bytes.min(*left);
            *left -= kept;
            self.promised_bytes -= kept;
        }
    }

    /// A part promises nothing any more.
    pub(super) fn break_promise(&mut self, id: u64) {
        if let Some(left) = self.promised.remove(&id) {
            self.promised_bytes -= left;
        }
    }

    pub(super) fn forget_part(&mut self, id: u64) {
        self.parts.remove(&id);
        self.break_promise(id);
    }
}

/// Moves a part to where files lie.
pub(super) fn rename_into_shard(root: &Path, id: u64, name: &str) -> io::Result<()> {
    let (from, shard) = (root.join(PARTS).join(name), root.join(shard_name(id)));
    match fs::rename(&from, shard.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(&shard)?;
            fs::rename(&from, shard.join(name))
        }
        done => done,
    }
}

/// Writes blocks that lie side by side. Returns their bytes.
fn write_all(file: &File, run: &[Waiting], offset: u64) -> io::Result<u64> {
    let mut slices: Vec<IoSlice<'_>> = run.iter().map(|w| IoSlice::new(&w.data)).collect();
    let mut left = &mut slices[..];
    let mut at = offset;
    while !left.is_empty() {
        let written = match rustix::io::pwritev(file, left, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => written,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        at += written as u64;
        IoSlice::advance_slices(&mut left, written);
    }
    Ok(at - offset)
}
