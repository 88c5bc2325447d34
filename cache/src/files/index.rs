//! Which versions are files, which are becoming some, and what they take.
//!
//! Invariant: at most one file or part for a version, under its hash; of two versions with one hash the
//! first is kept. `bytes` is what all of them take on disk. Descriptors of hot files are kept open up to a
//! bound, the least recently used go. Does no I/O.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use store::CopyFate;

use super::WholeFile;
use super::identity::Identity;
use super::journal::Record;
use super::part::Part;
use crate::version::Version;

/// Bytes of the records of a file with a few blocks and a key of ordinary length.
const RECORD_BYTES: u64 = 256;

/// A file or a part.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) identity: Identity,
    /// The second half of its name.
    pub(super) unique: u64,
    /// Bytes that it takes on disk.
    pub(super) allocated: u64,
    pub(super) state: State,
}

impl Entry {
    /// When the origin last said that a file is the object; 0 where it is not, and for parts.
    fn confirmed(&self) -> u64 {
        match &self.state {
            State::Whole(whole) => whole.confirmed,
            State::Part(_) => 0,
        }
    }
}

#[derive(Debug)]
pub(super) enum State {
    Part(Arc<Part>),
    Whole(Whole),
}

/// A complete file.
#[derive(Debug)]
pub(super) struct Whole {
    /// Of its blocks.
    pub(super) sums: Arc<[u64]>,
    /// To be verified before it is used.
    pub(super) suspect: bool,
    /// Written back, so that a crash of the machine leaves it as it is.
    pub(super) durable: bool,
    /// When the origin last said that this is the object; 0 where it is not any more.
    pub(super) confirmed: u64,
    pub(super) fate: Arc<CopyFate>,
    open: Option<Arc<WholeFile>>,
    /// Used since the descriptors were last looked through.
    used: bool,
}

impl Whole {
    pub(super) fn new(sums: Arc<[u64]>, suspect: bool, durable: bool, confirmed: u64) -> Self {
        let fate = Arc::default();
        Self { sums, suspect, durable, confirmed, fate, open: None, used: false }
    }
}

/// What [`Index::open_file`] has to say.
#[derive(Debug)]
pub(super) enum Lookup {
    /// It is open.
    Open(Arc<WholeFile>),
    /// It is there, under this name, and has to be opened.
    Closed { unique: u64, fate: Arc<CopyFate> },
    /// It has to be verified first.
    Suspect,
    /// There is none, or a part.
    Absent,
}

#[derive(Debug, Default)]
pub(super) struct Index {
    entries: HashMap<u64, Entry>,
    /// Which version an object is, as far as the origin has said, by the hash of store and key alone.
    names: HashMap<u64, u64>,
    files: u64,
    bytes: u64,
    /// Files that are open, in the order in which they were opened or last spared.
    open: VecDeque<u64>,
    open_limit: usize,
}

impl Index {
    pub(super) fn new(open_limit: usize) -> Self {
        Self { open_limit: open_limit.max(1), ..Self::default() }
    }

    /// The entry of a version.
    pub(super) fn get(&self, version: &Version) -> Option<&Entry> {
        self.entries.get(&version.id()).filter(|entry| entry.identity.is(version))
    }

    pub(super) fn by_id(&self, id: u64) -> Option<&Entry> {
        self.entries.get(&id)
    }

    /// Adds an entry in a place that is free.
    pub(super) fn insert(&mut self, id: u64, entry: Entry) {
        let confirmed = entry.confirmed();
        if confirmed > 0 {
            let name = name_of(entry.identity.store, entry.identity.key());
            // Of several versions the one that was confirmed last, within a second the newest.
            let held = self.names.get(&name).and_then(|held| self.entries.get(held));
            if held.is_none_or(|held| (held.confirmed(), held.unique) <= (confirmed, entry.unique))
            {
                self.names.insert(name, id);
            }
        }
        self.bytes += entry.allocated;
        self.files += u64::from(matches!(entry.state, State::Whole(_)));
        if let Some(old) = self.entries.insert(id, entry) {
            self.bytes = self.bytes.saturating_sub(old.allocated);
            self.files -= u64::from(matches!(old.state, State::Whole(_)));
        }
    }

    /// Takes an entry out, if it still is the one with this `unique`.
    pub(super) fn remove(&mut self, id: u64, unique: u64) -> Option<Entry> {
        if self.entries.get(&id)?.unique != unique {
            return None;
        }
        let entry = self.entries.remove(&id)?;
        let name = name_of(entry.identity.store, entry.identity.key());
        if self.names.get(&name) == Some(&id) {
            self.names.remove(&name);
        }
        self.bytes = self.bytes.saturating_sub(entry.allocated);
        self.files -= u64::from(matches!(entry.state, State::Whole(_)));
        Some(entry)
    }

    /// An entry takes `allocated` bytes now. False where it is gone.
    pub(super) fn resize(&mut self, id: u64, unique: u64, allocated: u64) -> bool {
        let Some(entry) = self.entries.get_mut(&id).filter(|e| e.unique == unique) else {
            return false;
        };
        self.bytes = self.bytes.saturating_sub(entry.allocated) + allocated;
        entry.allocated = allocated;
        true
    }

    /// A part is complete. False where it is gone.
    pub(super) fn complete(&mut self, id: u64, unique: u64, whole: Whole) -> bool {
        let Some(entry) = self.entries.get_mut(&id).filter(|e| e.unique == unique) else {
            return false;
        };
        if matches!(entry.state, State::Part(_)) {
            self.files += 1;
        }
        entry.state = State::Whole(whole);
        true
    }

    /// Changes a complete file's entry.
    pub(super) fn whole_mut(&mut self, id: u64, unique: u64) -> Option<&mut Whole> {
        let entry = self.entries.get_mut(&id).filter(|e| e.unique == unique)?;
        match &mut entry.state {
            State::Whole(whole) => Some(whole),
            State::Part(_) => None,
        }
    }

    /// How a version's file can be had.
    pub(super) fn look_up(&mut self, version: &Version) -> Lookup {
        let entry = self.entries.get_mut(&version.id()).filter(|e| e.identity.is(version));
        let Some(entry) = entry else { return Lookup::Absent };
        match &mut entry.state {
            State::Part(_) => Lookup::Absent,
            State::Whole(whole) if whole.suspect => Lookup::Suspect,
            State::Whole(whole) => {
                whole.used = true;
                match &whole.open {
                    Some(open) => Lookup::Open(Arc::clone(open)),
                    None => Lookup::Closed { unique: entry.unique, fate: Arc::clone(&whole.fate) },
                }
            }
        }
    }

    /// Keeps a file open. Returns those that are closed for it, to be dropped outside of any lock.
    pub(super) fn keep_open(
        &mut self,
        id: u64,
        unique: u64,
        file: &Arc<WholeFile>,
    ) -> Vec<Arc<WholeFile>> {
        let mut closed = Vec::new();
        let Some(whole) = self.whole_mut(id, unique) else { return closed };
        if whole.open.is_some() {
            return closed;
        }
        whole.open = Some(Arc::clone(file));
        self.open.push_back(id);
        let mut looks = 2 * self.open.len();
        while self.open.len() > self.open_limit && looks > 0 {
            looks -= 1;
            let Some(oldest) = self.open.pop_front() else { break };
            let Some(entry) = self.entries.get_mut(&oldest) else { continue };
            let State::Whole(whole) = &mut entry.state else { continue };
            if std::mem::take(&mut whole.used) && oldest != id {
                self.open.push_back(oldest);
            } else if let Some(file) = whole.open.take() {
                closed.push(file);
            }
        }
        closed
    }

    /// The origin has confirmed, so many seconds after 1970, that an object is this version.
    pub(super) fn confirm(&mut self, store: u64, key: &str, etag: &str, confirmed: u64) {
        let id = Version::id_of(store, key, etag);
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let same = |i: &Identity| i.store == store && i.key() == key && i.etag() == etag;
        if !same(&entry.identity) {
            return;
        }
        match &mut entry.state {
            State::Part(part) => part.confirm(confirmed),
            State::Whole(whole) => whole.confirmed = confirmed,
        }
        self.names.insert(name_of(store, key), id);
    }

    /// An object is not known to be any version any more. Returns the file that was it.
    pub(super) fn unconfirm(&mut self, store: u64, key: &str) -> Option<(u64, u64)> {
        let id = self.names.remove(&name_of(store, key))?;
        let entry = self.entries.get_mut(&id)?;
        match &mut entry.state {
            State::Part(part) => {
                part.confirm(0);
                None
            }
            State::Whole(whole) => {
                whole.confirmed = 0;
                Some((id, entry.unique))
            }
        }
    }

    /// Which version an object is, and when the origin said so.
    pub(super) fn current(&self, store: u64, key: &str) -> Option<(&Identity, u64)> {
        let entry = self.entries.get(self.names.get(&name_of(store, key))?)?;
        let State::Whole(whole) = &entry.state else { return None };
        let identity = &entry.identity;
        let is_it = identity.store == store && identity.key() == key && whole.confirmed > 0;
        is_it.then_some((identity, whole.confirmed))
    }

    /// Files that are complete.
    pub(super) fn files(&self) -> u64 {
        self.files
    }

    /// Parts.
    pub(super) fn parts(&self) -> u64 {
        self.entries.len() as u64 - self.files
    }

    /// Bytes that files and parts take on disk.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Entry)> {
        self.entries.iter().map(|(id, entry)| (*id, entry))
    }

    /// Bytes of a journal that says no more than it must, about.
    pub(super) fn recorded_bytes(&self) -> u64 {
        self.entries.len() as u64 * RECORD_BYTES
    }

    /// What a new journal has to say, an entry at a time.
    pub(super) fn records(&self) -> impl Iterator<Item = Record> + '_ {
        self.iter().flat_map(|(id, entry)| {
            let (unique, identity) = (entry.unique, entry.identity.clone());
            match &entry.state {
                State::Part(part) => {
                    let begin = Record::Begin { unique, identity, suspect: part.suspect };
                    [Some(begin), blocks(id, part), None]
                }
                State::Whole(whole) => {
                    let allocated = entry.allocated;
                    let (durable, suspect) = (whole.durable, whole.suspect);
                    let sums = (*whole.sums).into();
                    let file =
                        Record::Whole { unique, identity, allocated, durable, suspect, sums };
                    let confirmed = whole.confirmed;
                    [Some(file), Some(Record::Current { id, unique, confirmed }), None]
                }
            }
            .into_iter()
            .flatten()
        })
    }
}

/// What all versions of an object have in common.
fn name_of(store: u64, key: &str) -> u64 {
    Version::id_of(store, key, "")
}

fn blocks(id: u64, part: &Part) -> Option<Record> {
    let blocks = part.blocks();
    (!blocks.is_empty()).then_some(Record::Blocks { id, unique: part.unique, blocks })
}
