//! Which objects the file tier takes, and which make room for them: pure code, no I/O, no clock.
//!
//! Invariant: a victim is resident, and the bytes counted are the bytes inserted and not removed.
//! Every call is O(1) amortised; memory is about 80 bytes for each resident object and at most
//! 5 MiB beside them, whatever is read. It refuses to know files, blocks or time: its clock is the
//! bytes that were used.
//!
//! Accesses are told apart by data set ([`SetId`]). A set that is read in full passes *keeps*: what
//! is resident stays, new objects go into free space only, because each of them returns after all the
//! others and swapping one for another gains nothing. A set of which some objects return early
//! *evicts*: its objects live in a pool that is an S3-FIFO (Yang et al., SOSP 2023). A set that is not
//! read any more makes room for all others. Where several are read at once, the largest makes room
//! until all hold the same. `docs/decisions/admission.md` has the reasons and figures.

mod ghost;
mod lists;
mod recent;
mod reuse;
mod review;
mod room;
mod sets;

#[cfg(test)]
mod tests;

use crate::Retention;
use ghost::Ghost;
use lists::{List, NewNode, Place, Queue, Residents, U64Map};
use recent::Recent;
use reuse::floor;
pub(crate) use sets::SetId;
use sets::Sets;
pub use sets::{Activity, Mode, Why};

/// One version of one object: a hash of store, key and version. Two versions are two items.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Item(pub(crate) u64);

/// Whether an object that is about to be written is worth its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Keep it. Where there is no room, [`Admission::victim`] names what makes it.
    Admit,
    /// Serve it and forget it.
    Refuse,
}

/// What the policy knows of one set, and did.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct SetReport {
    /// The store's number.
    pub store_id: u64,
    /// The first directories of its keys, with a slash at the end; empty is the whole store. At most
    /// 48 bytes are kept.
    pub prefix: String,
    /// Whether its objects make room for others of it.
    pub mode: Mode,
    /// Why it is in that mode.
    pub why: Why,
    /// Whether it is being read.
    pub activity: Activity,
    /// Of its repetitions, the percentage that came before a quarter of their mean distance; `None`
    /// before there were enough.
    pub early_percent: Option<f64>,
    /// About how many objects of it were seen lately.
    pub objects: u64,
    /// Objects that are resident.
    pub resident_objects: u64,
    /// Their bytes.
    pub resident_bytes: u64,
    /// Uses, quick repetitions counted once.
    pub uses: u64,
    /// Uses of an object that was resident.
    pub hits: u64,
    /// Objects that were admitted.
    pub admitted: u64,
    /// Objects that were refused.
    pub refused: u64,
    /// Objects that were named as victims.
    pub evicted: u64,
    /// How often the mode changed.
    pub mode_changes: u64,
}

/// Uses between two looks at all sets; with 256 of them, four steps a use at most.
const REVIEW_EVERY: u64 = 64;

/// The small queue's share of the pool is one in this many (S3-FIFO's 10 %).
const SMALL_ONE_IN: u64 = 10;

/// Objects that one use moves into the pool after a set began to evict.
const MOVED_PER_USE: usize = 4;

/// Victims after which it is looked again which set is the largest.
const VICTIMS_PER_LOOK: u32 = 16;

/// Cache sizes of other bytes that a set which is read several times in a row may be waited for: longer
/// than an evaluation between two epochs, shorter than a job.
const PATIENCE: u64 = 4;

/// Cache sizes beyond which nothing is waited for: a cache that holds less than a thirtieth of what is
/// read between two uses of an object is of no use to it.
const HORIZON: u64 = 64;

/// Who can be asked to make room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Party {
    /// The pool of all sets that evict.
    Pool,
    /// One set that keeps.
    Set(u16),
}

/// The policy. One for a file tier, under its lock.
#[derive(Debug)]
pub(crate) struct Admission {
    capacity_bytes: u64,
    all: Residents,
    sets: Sets,
    small: List,
    main: List,
    ghost: Ghost,
    recent: Recent,
    pins: U64Map<u64, Retention>,
    /// Bytes used so far: the clock.
    now_bytes: u64,
    uses: u64,
    mean_bytes: f64,
    review_at: (u64, u64),
    /// Sets that hold something and are not read any more, the longest idle last.
    idle: Vec<u16>,
    /// Sets whose oldest objects did not return when they should have.
    stale: Vec<u16>,
    idle_bytes: u64,
    pool_is_idle: bool,
    pool_used_at_bytes: u64,
    /// Evicting sets that are read.
    pool_weight: u64,
    /// Admitted at the expense of idle sets and not inserted yet.
    promised_bytes: u64,
    largest: Option<(Party, u64)>,
    largest_for: u32,
    /// Of the sets that rest, the one whose objects are used least often, and the bytes between two uses.
    least: Option<(u16, u64)>,
    /// Who gives up room to another set, and until when.
    giver: Option<(Party, u64)>,
    /// Bytes that it was asked for and that were not evicted yet.
    owed_bytes: u64,
    steps: u64,
}

impl Admission {
    /// A policy for a tier that holds so many bytes when it is full (its high water).
    pub(crate) fn new(capacity_bytes: u64) -> Self {
        Self {
            capacity_bytes,
            all: Residents::default(),
            sets: Sets::default(),
            small: List::default(),
            main: List::default(),
            ghost: Ghost::new(),
            recent: Recent::new(),
            pins: U64Map::default(),
            now_bytes: 0,
            uses: 0,
            mean_bytes: 0.0,
            review_at: (0, 0),
            idle: Vec::new(),
            stale: Vec::new(),
            idle_bytes: 0,
            pool_is_idle: false,
            pool_used_at_bytes: 0,
            pool_weight: 0,
            promised_bytes: 0,
            largest: None,
            largest_for: 0,
            least: None,
            giver: None,
            owed_bytes: 0,
            steps: 0,
        }
    }

    /// Tells that the tier holds more or less when it is full. Evicts nothing by itself.
    pub(crate) fn set_capacity(&mut self, bytes: u64) {
        self.capacity_bytes = bytes;
    }

    /// What the configuration says of a store. `Auto` decides from the accesses; `Keep` is evicted only
    /// where nothing else is left, and takes free space only; `Evict` always displaces.
    pub(crate) fn pin(&mut self, store_id: u64, retention: Retention) {
        self.pins.insert(store_id, retention);
        self.review();
    }

    /// Every use of an object, hit or miss; `bytes` is the object's size. Uses of one object in
    /// quick succession (ranged GETs of one transfer, readers in lockstep) count as one.
    pub(crate) fn access(&mut self, id: SetId, item: Item, bytes: u64) {
        let quiet_bytes = self.quiet_bytes();
        let number = self.sets.find(&mut self.all, &id, self.now_bytes, quiet_bytes);
        let set = self.sets.get_mut(number);
        let pause_bytes = self.now_bytes.saturating_sub(set.used_at_bytes);
        set.used_at_bytes = self.now_bytes;
        // One that was read again and again earns its room anew, however long it was away. One that was read
        // once is part of a longer pass, and worth waiting for.
        let waited_bytes = if set.repeated_since {
            pause_bytes.min(self.capacity_bytes.saturating_mul(PATIENCE))
        } else {
            pause_bytes
        };
        if pause_bytes > quiet_bytes {
            set.active_since_bytes = self.now_bytes;
            set.active_since = set.clock + 1;
            set.repeated_since = false;
        }
        // As many objects as would fit.
        let fit = floor(self.capacity_bytes as f64 / self.mean_bytes.max(1.0));
        if self.recent.is_same_use(item, set.reuse.objects(), fit) {
            return;
        }
        if set.mode == Mode::Evict {
            self.pool_used_at_bytes = self.now_bytes;
        }
        let came_back = pause_bytes > quiet_bytes && set.clock > 0;
        self.uses += 1;
        self.now_bytes = self.now_bytes.saturating_add(bytes.max(1));
        self.mean_bytes += (bytes as f64 - self.mean_bytes) / (self.uses.min(1_000) as f64);
        set.used_at_bytes = self.now_bytes;
        set.clock += 1;
        set.counts.uses += 1;
        let horizon = fit.saturating_mul(HORIZON).max(1_024);
        let before = set.reuse.observe(item, bytes, set.clock, self.now_bytes, horizon);
        set.repeated_since |= before.is_some_and(|before| before >= set.active_since);
        if came_back {
            self.sets.came_back(number, waited_bytes);
            // What was taken for abandoned may not be: look before anything of it makes room.
            self.review_at.0 = self.uses;
        }
        if let Some(place) = self.all.find(item) {
            self.used(place);
        }
        self.move_into_pool(number);
        if self.uses >= self.review_at.0 || self.now_bytes >= self.review_at.1 {
            self.review();
        }
    }

    /// Whether an object that is not resident should become so. `free_bytes`: what may still be
    /// written before something must be evicted (the high water less what is used and what was admitted
    /// and is still being written). Call [`Self::access`] first.
    pub(crate) fn admit(&mut self, id: SetId, item: Item, bytes: u64, free_bytes: u64) -> Verdict {
        let quiet_bytes = self.quiet_bytes();
        let number = self.sets.find(&mut self.all, &id, self.now_bytes, quiet_bytes);
        let admit = self.all.find(item).is_some()
            || (bytes <= self.capacity_bytes && self.is_worth_it(number, bytes, free_bytes));
        let counts = &mut self.sets.get_mut(number).counts;
        if admit {
            counts.admitted += 1;
            Verdict::Admit
        } else {
            counts.refused += 1;
            Verdict::Refuse
        }
    }

    /// An object became resident: admitted, warmed, or found after a restart. For one that is
    /// resident already, its size is corrected.
    pub(crate) fn inserted(&mut self, id: SetId, item: Item, bytes: u64) {
        self.removed(item);
        let quiet_bytes = self.quiet_bytes();
        let number = self.sets.find(&mut self.all, &id, self.now_bytes, quiet_bytes);
        self.promised_bytes = self.promised_bytes.saturating_sub(bytes);
        let returned = self.ghost.take(item, self.ghosts());
        let set = self.sets.get_mut(number);
        let (queue, list) = match set.mode {
            Mode::Keep => (Queue::Kept, &mut set.kept),
            Mode::Evict if returned => (Queue::Main, &mut self.main),
            Mode::Evict => (Queue::Small, &mut self.small),
        };
        let node = NewNode { item, bytes, set: number, queue, used_at: set.clock };
        if self.all.add(list, node).is_some() {
            set.labelled += 1;
            if queue != Queue::Kept {
                set.pooled_bytes += bytes;
                set.pooled_objects += 1;
            }
        }
    }

    /// An object is no longer resident, for whatever reason: evicted, replaced by another version,
    /// found bad. One that is not resident is no error.
    pub(crate) fn removed(&mut self, item: Item) {
        if let Some(place) = self.all.find(item) {
            self.forget(place);
        }
    }

    /// The resident object whose eviction costs least; from now on it counts as removed (telling so
    /// again does no harm). Answers as long as anything is resident: for what *must* be freed.
    pub(crate) fn victim(&mut self) -> Option<Item> {
        let place = self.spare_place().or_else(|| self.forced_place())?;
        Some(self.evict(place))
    }

    /// Like [`Self::victim`], but answers only with what nobody is expected to miss, and `None` where
    /// there is no such thing: for freeing ahead, from the high water down to the low one.
    pub(crate) fn spare(&mut self) -> Option<Item> {
        let place = self.spare_place()?;
        Some(self.evict(place))
    }

    /// Bytes that are resident.
    #[cfg(test)]
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.all.bytes()
    }

    /// Objects that are resident.
    #[cfg(test)]
    pub(crate) fn resident_objects(&self) -> usize {
        self.all.len()
    }

    /// Work done so far, in nodes, sets and samples looked at.
    pub(crate) fn steps(&self) -> u64 {
        self.steps + self.sets.steps
    }

    /// What is known of each set that was used or holds something, by store and prefix.
    pub(crate) fn report(&self) -> Vec<SetReport> {
        let mut reports: Vec<_> = self
            .sets
            .roots()
            .map(|number| self.sets.get(number))
            .filter(|set| set.counts.uses > 0 || set.resident_objects() > 0)
            .map(|set| SetReport {
                store_id: set.store_id,
                prefix: set.name.clone(),
                mode: set.mode,
                why: set.why,
                activity: set.activity,
                early_percent: set.reuse.early_percent(),
                objects: set.reuse.objects(),
                resident_objects: set.resident_objects(),
                resident_bytes: set.resident_bytes(),
                uses: set.counts.uses,
                hits: set.counts.hits,
                admitted: set.counts.admitted,
                refused: set.counts.refused,
                evicted: set.counts.evicted,
                mode_changes: set.counts.mode_changes,
            })
            .collect();
        reports.sort_by(|a, b| (a.store_id, &a.prefix).cmp(&(b.store_id, &b.prefix)));
        reports
    }

    /// A set that was not used while so many bytes of others were is not being read just now. Long
    /// against a gap between two uses, short against a pass.
    fn quiet_bytes(&self) -> u64 {
        let objects = floor(8.0 * self.mean_bytes);
        (self.capacity_bytes / 32).max(objects.min(self.capacity_bytes / 4)).max(1)
    }

    /// An object that is resident was used.
    fn used(&mut self, place: Place) {
        let node = self.all.at_mut(place);
        node.uses = (node.uses + 1).min(3);
        let number = self.sets.root(node.set);
        let set = self.sets.get_mut(number);
        set.counts.hits += 1;
        node.used_at = set.clock;
        match (set.mode, node.queue) {
            (Mode::Keep, _) => self.move_to(place, Queue::Kept),
            (Mode::Evict, Queue::Kept) => self.move_to(place, Queue::Main),
            (Mode::Evict, _) => {}
        }
    }

    /// A set that began to evict hands over what it kept, a few objects with each use.
    fn move_into_pool(&mut self, number: u16) {
        if self.sets.get(number).mode == Mode::Keep {
            return;
        }
        for _ in 0..MOVED_PER_USE {
            let Some(place) = self.sets.get(number).kept.oldest() else { return };
            self.steps += 1;
            self.all.at_mut(place).uses = 0;
            self.move_to(place, Queue::Main);
        }
    }

    /// Makes a node the newest of a list.
    fn move_to(&mut self, place: Place, queue: Queue) {
        self.take_out(place);
        let node = self.all.at_mut(place);
        node.queue = queue;
        let (number, bytes) = (node.set, node.bytes);
        let set = self.sets.get_mut(number);
        let list = match queue {
            Queue::Kept => &mut set.kept,
            Queue::Small => &mut self.small,
            Queue::Main => &mut self.main,
        };
        if queue != Queue::Kept {
            set.pooled_bytes += bytes;
            set.pooled_objects += 1;
        }
        self.all.push(list, place);
    }

    /// Takes a node out of its list, and labels it with the set that it belongs to by now.
    fn take_out(&mut self, place: Place) {
        let (label, queue, bytes) = {
            let node = self.all.at(place);
            (node.set, node.queue, node.bytes)
        };
        let number = self.sets.root(label);
        if number != label {
            self.sets.get_mut(label).labelled -= 1;
            self.sets.get_mut(number).labelled += 1;
            self.all.at_mut(place).set = number;
        }
        let set = self.sets.get_mut(number);
        let list = match queue {
            Queue::Kept => &mut set.kept,
            Queue::Small => &mut self.small,
            Queue::Main => &mut self.main,
        };
        if queue != Queue::Kept {
            set.pooled_bytes -= bytes;
            set.pooled_objects -= 1;
        }
        self.all.unlink(list, place);
    }

    fn forget(&mut self, place: Place) -> Item {
        self.take_out(place);
        let node = self.all.remove(place);
        self.sets.get_mut(node.set).labelled -= 1;
        node.item
    }

    fn evict(&mut self, place: Place) -> Item {
        let number = self.sets.root(self.all.at(place).set);
        self.sets.get_mut(number).counts.evicted += 1;
        self.forget(place)
    }
}
