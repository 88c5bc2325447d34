//! Verifying what readers do not see: a file that somebody doubts.
//!
//! Invariant: a bad file is condemned before it is unlinked, so that whoever was handed it can hear of
//! it; it is never patched. A suspect file is handed to nobody until it was verified.

use std::fs::{self, File};
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::index::State;
use super::journal::Record;
use super::{FileTier, Version, check};
use crate::admission::Item;
use crate::version::BlockKey;

/// How often the scrubber reads a piece: often enough to be no burst.
const SCRUBS_PER_SECOND: u64 = 2;

const SCRUB_PAUSE: Duration = Duration::from_millis(1000 / SCRUBS_PER_SECOND);

/// What a look at a file found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Good,
    Bad,
    /// It could not be read just now; it stays suspect.
    Unread,
}

impl FileTier {
    /// Somebody doubts a file: nobody is handed it until it was verified, which begins now.
    pub(crate) fn suspect(self: &Arc<Self>, object: &Arc<Version>) {
        let id = object.id();
        let (unique, sums) = {
            let mut ledger = self.ledger.lock();
            let Some(entry) = ledger.index.get(object) else { return };
            let unique = entry.unique;
            if !ledger.checking.insert((id, unique)) {
                return;
            }
            let Some(whole) = ledger.index.whole_mut(id, unique) else {
                ledger.checking.remove(&(id, unique));
                return;
            };
            whole.suspect = true;
            (unique, Arc::clone(&whole.sums))
        };
        self.metrics.file_suspects.inc();
        let job = self.busy.begin();
        let (tier, object) = (Arc::clone(self), Arc::clone(object));
        tokio::spawn(async move {
            let looking = {
                let (tier, object) = (Arc::clone(&tier), Arc::clone(&object));
                move || tier.verify(&object, unique, &sums)
            };
            let found = tier.checkers.run(looking).await.unwrap_or(Found::Unread);
            let settling = Arc::clone(&tier);
            let settled = move || settling.settle(id, unique, found);
            _ = tokio::task::spawn_blocking(settled).await;
            drop(job);
        });
    }

    fn verify(&self, object: &Arc<Version>, unique: u64, sums: &[u64]) -> Found {
        match self.try_verify(object, unique, sums) {
            Ok(true) => Found::Good,
            Err(error)
                if error.raw_os_error().is_some_and(super::kernel::is_short_of_descriptors) =>
            {
                Found::Unread
            }
            // What cannot be read is as good as gone: it is fetched again.
            Ok(false) | Err(_) => Found::Bad,
        }
    }

    fn try_verify(&self, object: &Arc<Version>, unique: u64, sums: &[u64]) -> io::Result<bool> {
        let file = File::open(self.whole_path(object.id(), unique))?;
        self.metrics.file_opens.inc();
        let size = object.meta.size;
        if file.metadata()?.len() != size {
            return Ok(false);
        }
        for (index, sum) in (0..).zip(sums) {
            let range = crate::span::block_range(index, self.terms.block_bytes, size);
            if !check::block_is_good(&file, range, BlockKey::new(object, index).seal(), *sum)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn settle(&self, id: u64, unique: u64, found: Found) {
        self.ledger.lock().checking.remove(&(id, unique));
        match found {
            Found::Unread => {}
            Found::Good => {
                let mut journal = self.journal.lock();
                if let Some(whole) = self.ledger.lock().index.whole_mut(id, unique) {
                    whole.suspect = false;
                }
                _ = journal.append(&Record::Verified { id, unique });
                self.is_unsynced();
            }
            Found::Bad => self.condemn(id, unique),
        }
    }

    /// Takes a bad file away.
    pub(super) fn condemn(&self, id: u64, unique: u64) {
        {
            let mut journal = self.journal.lock();
            let mut ledger = self.ledger.lock();
            let Some(entry) = ledger.index.remove(id, unique) else { return };
            ledger.admission.removed(Item(id));
            drop(ledger);
            if let State::Whole(whole) = &entry.state {
                whole.fate.condemn();
            }
            _ = journal.append(&Record::Gone { id, unique });
            tracing::warn!(
                key = entry.identity.key(),
                "a file of the cache did not hold what it should: it is removed and fetched again"
            );
        }
        self.metrics.file_bad.inc();
        _ = fs::remove_file(self.whole_path(id, unique));
    }
}

/// Where the scrubber is.
#[derive(Default)]
struct Round {
    files: Vec<(u64, u64)>,
    /// The next block of the last of them.
    block: u32,
    /// That file was in doubt when its first block was read: a doubt that came later is not settled by
    /// what was read before.
    began_suspect: bool,
}

/// Reads what lies there, a little at a time, for as long as the tier is there.
pub(super) async fn scrub(tier: Weak<FileTier>) {
    let mut round = Round::default();
    loop {
        tokio::time::sleep(SCRUB_PAUSE).await;
        let Some(tier) = tier.upgrade() else { return };
        let rate = tier.terms.scrub_bytes_per_second;
        if rate == 0 {
            return;
        }
        let share = rate / SCRUBS_PER_SECOND;
        let looking = Arc::clone(&tier);
        let looked = tier.checkers.run(move || {
            let bad = looking.scrub_some(&mut round, share);
            (round, bad)
        });
        let Some((next, found)) = looked.await else { return };
        round = next;
        let settling = move || {
            for (id, unique, found) in found {
                tier.settle(id, unique, found);
            }
        };
        if tokio::task::spawn_blocking(settling).await.is_err() {
            return;
        }
    }
}

impl FileTier {
    /// Verifies blocks of `bytes` or a little more. Returns what there is to say of files.
    fn scrub_some(&self, round: &mut Round, bytes: u64) -> Vec<(u64, u64, Found)> {
        let mut settled = Vec::new();
        let mut left = bytes;
        if round.files.is_empty() {
            let ledger = self.ledger.lock();
            let whole = ledger.index.iter().filter(|(_, e)| matches!(e.state, State::Whole(_)));
            round.files = whole.map(|(id, entry)| (id, entry.unique)).collect();
        }
        while left > 0 {
            let Some((id, unique)) = round.files.last().copied() else { break };
            let held = {
                let mut ledger = self.ledger.lock();
                let version = ledger.index.by_id(id).and_then(|entry| entry.identity.version());
                let whole = ledger.index.whole_mut(id, unique);
                whole.map(|w| (Arc::clone(&w.sums), w.suspect)).zip(version)
            };
            let Some(((sums, suspect), object)) = held else {
                round.next_file();
                continue;
            };
            let path = self.whole_path(id, unique);
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) => {
                    if error.kind() == io::ErrorKind::NotFound {
                        settled.push((id, unique, Found::Bad));
                    }
                    round.next_file();
                    continue;
                }
            };
            self.metrics.file_opens.inc();
            if round.block == 0 {
                round.began_suspect = suspect;
            }
            while left > 0 {
                let Some(sum) = sums.get(round.block as usize) else { break };
                let range =
                    crate::span::block_range(round.block, self.terms.block_bytes, object.meta.size);
                let read = range.end - range.start;
                let seal = BlockKey::new(&object, round.block).seal();
                let good = check::cold_block_is_good(&file, range, seal, *sum);
                self.metrics.file_scrubbed.inc_by(read);
                left = left.saturating_sub(read);
                round.block += 1;
                if !good.unwrap_or(false) {
                    settled.push((id, unique, Found::Bad));
                    round.block = u32::MAX;
                }
            }
            if round.block as usize >= sums.len() {
                if suspect && round.began_suspect && round.block != u32::MAX {
                    settled.push((id, unique, Found::Good));
                }
                round.next_file();
            }
        }
        settled
    }
}

impl Round {
    fn next_file(&mut self) {
        self.files.pop();
        self.block = 0;
    }
}
