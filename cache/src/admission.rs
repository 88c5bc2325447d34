//! Which objects the file tier takes, and which make room for them: pure code, no I/O, no clock.
//!
//! Invariant: a victim is resident, and the bytes counted are the bytes inserted and not removed.
//! Every call is O(1) amortised; memory is about 80 bytes for each resident object and at most
//! 4 MiB beside them, whatever is read. It refuses to know files, blocks or time.

mod lists;

pub(crate) use item::{Item, SetId, SetReport, Verdict};
use lists::{List, NewNode, Queue, Residents};

mod item {
    //! The words of the policy.

    /// One version of one object: a hash of store, key and version. Two versions are two items.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub(crate) struct Item(pub(crate) u64);

    /// The data set that a key belongs to: its store and its first directories.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) struct SetId {
        store: u64,
    }

    impl SetId {
        /// The set of a key of a store.
        pub(crate) fn of(store_id: u64, _key: &str) -> Self {
            Self { store: store_id }
        }
    }

    /// Whether an object that was just read is worth its place.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Verdict {
        /// Keep it as a file. Where there is no room, [`super::Admission::victim`] names what makes it.
        Admit,
        /// Serve it and forget it.
        Refuse,
    }

    /// What the policy knows of one set.
    #[derive(Debug, Clone)]
    pub(crate) struct SetReport {
        /// Store and prefix.
        pub(crate) set: String,
    }
}

/// The policy. One for a file tier, under its lock.
#[derive(Debug)]
pub(crate) struct Admission {
    capacity_bytes: u64,
    all: Residents,
    queue: List,
}

impl Admission {
    /// A policy for a tier of so many bytes (its high water), all of them free.
    pub(crate) fn new(capacity_bytes: u64) -> Self {
        Self { capacity_bytes, all: Residents::default(), queue: List::default() }
    }

    /// Tells that the tier may hold more or less from now on. Evicts nothing by itself.
    pub(crate) fn set_capacity(&mut self, bytes: u64) {
        self.capacity_bytes = bytes;
    }

    /// What the configuration says of a store; `Auto` decides from the accesses.
    pub(crate) fn pin(&mut self, _store_id: u64, _retention: crate::Retention) {}

    /// Every use of an object, hit or miss; `bytes` is the size of the object. Uses of one object in
    /// quick succession (ranged GETs of one transfer, readers in lockstep) count as one.
    pub(crate) fn access(&mut self, _set: SetId, item: Item, _bytes: u64) {
        if let Some(place) = self.all.find(item) {
            self.all.unlink(&mut self.queue, place);
            self.all.push(&mut self.queue, place);
        }
    }

    /// Whether an object that is not resident should become so. `free_bytes`: what may still be
    /// written before something must be evicted (the high water less what is used).
    /// Call [`Self::access`] first.
    pub(crate) fn admit(
        &mut self,
        _set: SetId,
        _item: Item,
        bytes: u64,
        _free_bytes: u64,
    ) -> Verdict {
        if bytes > self.capacity_bytes { Verdict::Refuse } else { Verdict::Admit }
    }

    /// An object became resident: admitted, warmed, or found after a restart. One that is resident
    /// already only has its size corrected.
    pub(crate) fn inserted(&mut self, _set: SetId, item: Item, bytes: u64) {
        self.removed(item);
        let node = NewNode { item, bytes, set: 0, queue: Queue::Main, used_at: 0 };
        self.all.add(&mut self.queue, node);
    }

    /// An object is no longer resident, for whatever reason: evicted, replaced by another version,
    /// found bad. One that is not resident is no error.
    pub(crate) fn removed(&mut self, item: Item) {
        if let Some(place) = self.all.find(item) {
            self.all.drop_from(&mut self.queue, place);
        }
    }

    /// The resident object whose eviction costs least, already counted as gone. Answers as long as
    /// anything is resident. For what must be freed.
    pub(crate) fn victim(&mut self) -> Option<Item> {
        let place = self.queue.oldest()?;
        Some(self.all.drop_from(&mut self.queue, place).item)
    }

    /// Like [`Self::victim`], but answers only with what nobody is expected to miss; `None` otherwise.
    /// For freeing ahead, from the high water down to the low one.
    pub(crate) fn spare(&mut self) -> Option<Item> {
        self.victim()
    }

    /// Bytes that are resident.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.all.bytes()
    }

    /// What is known of each set.
    pub(crate) fn report(&self) -> Vec<SetReport> {
        Vec::new()
    }
}
