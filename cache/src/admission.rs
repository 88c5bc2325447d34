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
mod sets;

#[cfg(test)]
mod tests;

use crate::Retention;
use ghost::Ghost;
use lists::{List, NewNode, Place, Queue, Residents, U64Map};
use recent::Recent;
use reuse::Pattern;
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
        let waited_bytes = match set.repeated_since {
            true => pause_bytes.min(self.capacity_bytes.saturating_mul(PATIENCE)),
            false => pause_bytes,
        };
        if pause_bytes > quiet_bytes {
            set.active_since_bytes = self.now_bytes;
            set.active_since = set.clock + 1;
            set.repeated_since = false;
        }
        // As many objects as would fit.
        let fit = (self.capacity_bytes as f64 / self.mean_bytes.max(1.0)) as u64;
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
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.all.bytes()
    }

    /// Objects that are resident.
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
        let objects = 8 * self.mean_bytes as u64;
        (self.capacity_bytes / 32).max(objects.min(self.capacity_bytes / 4)).max(1)
    }

    fn is_worth_it(&mut self, number: u16, bytes: u64, free_bytes: u64) -> bool {
        let me = self.party_of(number);
        let needy = self.smaller_than_largest(number, bytes);
        let now = self.now_bytes;
        let giver = self.giver.filter(|(_, until)| now <= *until).map(|(who, _)| who);
        let until = now + self.quiet_bytes();
        if bytes <= free_bytes {
            // Room that was made for a smaller set is not for the one that made it, as long as the
            // smaller one goes on filling it.
            if giver.is_some() && giver == needy {
                self.giver = needy.map(|who| (who, until));
            }
            return giver != Some(me);
        }
        if self.pin_of(number) == Retention::Keep {
            return false;
        }
        if self.has_spare(bytes) {
            self.promised_bytes += bytes;
            return true;
        }
        if let Some(who) = needy.or_else(|| self.worth_less(number)) {
            self.giver = Some((who, until));
            self.owed_bytes = self.owed_bytes.saturating_add(bytes).min(self.capacity_bytes);
            return true;
        }
        me == Party::Pool && self.small.len + self.main.len > 0
    }

    fn pin_of(&self, number: u16) -> Retention {
        self.pins.get(&self.sets.get(number).store_id).copied().unwrap_or_default()
    }

    fn party_of(&self, number: u16) -> Party {
        match self.sets.get(number).mode {
            Mode::Keep => Party::Set(number),
            Mode::Evict => Party::Pool,
        }
    }

    /// Bytes that a party holds, for each set of it.
    fn held(&self, party: Party) -> u64 {
        match party {
            Party::Pool => (self.small.bytes + self.main.bytes) / self.pool_weight.max(1),
            Party::Set(number) => self.sets.get(number).resident_bytes(),
        }
    }

    /// The largest party, where this set is so much smaller that it should grow at its expense. A
    /// set that was never seen twice has shown no use for room.
    fn smaller_than_largest(&mut self, number: u16, bytes: u64) -> Option<Party> {
        let me = self.party_of(number);
        let (largest, held) = self.largest()?;
        let set = self.sets.get(number);
        let deserves = set.mode == Mode::Evict || set.reuse.repeats();
        // An eighth of a quiet period of slack, or two sets of one size would trade for ever.
        let quiet_bytes = self.quiet_bytes();
        let slack = quiet_bytes / 8 + bytes;
        // Both must be read at the same time: what the one read before the other began will be read
        // again before anything of the other is.
        let largest_used_at_bytes = match largest {
            Party::Pool => self.pool_used_at_bytes,
            Party::Set(number) => self.sets.get(number).used_at_bytes,
        };
        let side_by_side = largest_used_at_bytes > set.active_since_bytes + quiet_bytes / 4;
        (deserves && side_by_side && largest != me && self.held(me) + slack < held)
            .then_some(largest)
    }

    /// A set that is not being read now and of which every object is used less than half as often as
    /// those of this one, in bytes of everybody.
    fn worth_less(&self, number: u16) -> Option<Party> {
        let (least, its_gap_bytes) = self.least?;
        let set = self.sets.get(number);
        let gap_bytes = set.reuse.gap_bytes()?;
        let is_away = self.sets.get(least).used_at_bytes <= set.active_since_bytes;
        let holds = self.sets.get(least).kept.len > 0;
        (holds && is_away && least != number && gap_bytes < its_gap_bytes / 2)
            .then_some(Party::Set(least))
    }

    fn largest(&mut self) -> Option<(Party, u64)> {
        if self.largest_for == 0 {
            self.largest_for = VICTIMS_PER_LOOK;
            self.largest = self.look_for_largest();
        }
        self.largest_for -= 1;
        let (party, _) = self.largest?;
        Some((party, self.held(party)))
    }

    fn look_for_largest(&mut self) -> Option<(Party, u64)> {
        let mut largest = None;
        let mut looked = 1;
        if self.pool_weight > 0 && self.small.len + self.main.len > 0 {
            largest = Some((Party::Pool, self.held(Party::Pool)));
        }
        for number in self.sets.roots() {
            looked += 1;
            let set = self.sets.get(number);
            let held = set.resident_bytes();
            if set.mode == Mode::Keep
                && set.activity == Activity::Active
                && held > 0
                && self.pin_of(number) != Retention::Keep
                && largest.is_none_or(|(_, most)| held > most)
            {
                largest = Some((Party::Set(number), held));
            }
        }
        self.steps += looked;
        largest
    }

    fn has_spare(&self, bytes: u64) -> bool {
        let stock = self.idle_bytes.saturating_sub(self.promised_bytes);
        stock > 0 && stock >= bytes.min(self.idle_bytes)
            || self.stale.iter().any(|number| self.stale_place(*number).is_some())
    }

    /// The oldest object of a set, if it did not return when it should have.
    fn stale_place(&self, number: u16) -> Option<Place> {
        let set = self.sets.get(number);
        let place = set.kept.oldest()?;
        let used_at = self.all.at(place).used_at.max(set.merged_at);
        let is_past = |limit: u64| set.clock.saturating_sub(used_at) > limit;
        let is_stale = set.mode == Mode::Keep
            && (set.reuse.stale_after().is_some_and(is_past)
                || set.reuse.shifted_at().is_some_and(|at| used_at < at));
        is_stale.then_some(place)
    }

    fn spare_place(&mut self) -> Option<Place> {
        while let Some(number) = self.idle.last().copied() {
            self.steps += 1;
            if let Some(place) = self.sets.get(number).kept.oldest() {
                let bytes = self.all.at(place).bytes;
                self.idle_bytes = self.idle_bytes.saturating_sub(bytes);
                return Some(place);
            }
            self.idle.pop();
        }
        if self.pool_is_idle
            && let Some(place) = self.pool_place()
        {
            self.idle_bytes = self.idle_bytes.saturating_sub(self.all.at(place).bytes);
            return Some(place);
        }
        while let Some(number) = self.stale.last().copied() {
            self.steps += 1;
            if let Some(place) = self.stale_place(number) {
                return Some(place);
            }
            self.stale.pop();
        }
        None
    }

    fn forced_place(&mut self) -> Option<Place> {
        if let Some((giver, _)) = self.giver.filter(|_| self.owed_bytes > 0)
            && let Some(place) = self.place_of(giver)
        {
            self.owed_bytes = self.owed_bytes.saturating_sub(self.all.at(place).bytes.max(1));
            return Some(place);
        }
        let party = self.largest().map(|(party, _)| party);
        let first = party.and_then(|party| self.place_of(party));
        first.or_else(|| self.pool_place()).or_else(|| self.any_place())
    }

    fn place_of(&mut self, party: Party) -> Option<Place> {
        match party {
            Party::Pool => self.pool_place(),
            // Its newest: what was just used returns last, whether passes are shuffled or not.
            Party::Set(number) => self.sets.get(number).kept.newest(),
        }
    }

    /// An object of the largest set, whatever it is; those that are pinned come last.
    fn any_place(&mut self) -> Option<Place> {
        let mut best: Option<(bool, u64, u16)> = None;
        let mut looked = 0;
        for number in self.sets.roots() {
            looked += 1;
            let kept = self.sets.get(number).kept;
            let key = (self.pin_of(number) != Retention::Keep, kept.bytes, number);
            if kept.len > 0 && best.is_none_or(|best| key > best) {
                best = Some(key);
            }
        }
        self.steps += looked;
        best.and_then(|(_, _, number)| self.sets.get(number).kept.newest())
    }

    /// How many evicted objects are remembered: as many as the main queue should hold.
    fn ghosts(&self) -> usize {
        let pooled = self.small.len + self.main.len;
        pooled - pooled / SMALL_ONE_IN as usize
    }

    /// S3-FIFO's choice, among the sets that evict. Objects of sets that began to keep meanwhile leave
    /// the pool here, once each.
    fn pool_place(&mut self) -> Option<Place> {
        loop {
            self.steps += 1;
            let pool_bytes = self.small.bytes + self.main.bytes;
            let from_small = self.small.bytes * SMALL_ONE_IN >= pool_bytes || self.main.len == 0;
            let oldest = if from_small { self.small.oldest() } else { self.main.oldest() };
            let place = oldest.or_else(|| self.small.oldest())?;
            let set = self.sets.get(self.sets.root(self.all.at(place).set));
            if set.mode == Mode::Keep {
                if set.activity == Activity::Idle {
                    return Some(place);
                }
                self.move_to(place, Queue::Kept);
                continue;
            }
            let node = self.all.at_mut(place);
            match node.queue {
                Queue::Small if node.uses > 1 => {
                    node.uses = 0;
                    self.move_to(place, Queue::Main);
                }
                Queue::Small => {
                    let item = node.item;
                    let ghosts = self.ghosts();
                    self.ghost.remember(item, ghosts);
                    return Some(place);
                }
                Queue::Main if node.uses > 0 => {
                    node.uses -= 1;
                    self.move_to(place, Queue::Main);
                }
                Queue::Main | Queue::Kept => return Some(place),
            }
        }
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

    /// Looks at every set: its mode, whether it is read, and what of it nobody will miss.
    fn review(&mut self) {
        let quiet_bytes = self.quiet_bytes();
        self.review_at = (self.uses + REVIEW_EVERY, self.now_bytes + quiet_bytes / 2);
        self.largest_for = 0;
        // Of what was admitted, some is never written; the rest is inserted before it is forgotten here.
        self.promised_bytes /= 2;
        self.idle.clear();
        self.stale.clear();
        self.idle_bytes = 0;
        self.pool_weight = 0;
        self.least = None;
        self.owed_bytes /= 2;
        let numbers: Vec<u16> = self.sets.roots().collect();
        self.steps += numbers.len() as u64;
        for number in numbers {
            let pin = self.pin_of(number);
            self.judge(number, pin);
            let activity = self.activity(number, quiet_bytes);
            self.sets.get_mut(number).activity = activity;
            let set = self.sets.get(number);
            if set.mode == Mode::Evict && activity != Activity::Idle {
                self.pool_weight += 1;
            }
            if pin == Retention::Keep || set.kept.len == 0 {
                continue;
            }
            if activity == Activity::Idle {
                self.idle_bytes += set.kept.bytes;
                self.idle.push(number);
                continue;
            }
            if self.stale_place(number).is_some() {
                self.stale.push(number);
            }
            // One that is away longer than usual is used less often than it was.
            let pause_bytes = self.now_bytes.saturating_sub(set.used_at_bytes);
            let gap_bytes = set.reuse.gap_bytes().unwrap_or(0).max(pause_bytes);
            if activity == Activity::Resting && self.least.is_none_or(|(_, most)| gap_bytes > most)
            {
                self.least = Some((number, gap_bytes));
            }
        }
        let sets = &self.sets;
        self.idle.sort_by_key(|number| std::cmp::Reverse(sets.get(*number).used_at_bytes));
        self.pool_is_idle = self.pool_weight == 0;
        if self.pool_is_idle {
            self.idle_bytes += self.small.bytes + self.main.bytes;
        }
    }

    fn activity(&self, number: u16, quiet_bytes: u64) -> Activity {
        let pause = self.now_bytes.saturating_sub(self.sets.get(number).used_at_bytes);
        // Half as much again as the longest pause so far.
        let expected = self.sets.pause_bytes(number);
        let patience = (expected + expected / 2).min(self.capacity_bytes.saturating_mul(HORIZON));
        match pause {
            pause if pause <= quiet_bytes => Activity::Active,
            pause if pause <= patience.max(quiet_bytes) => Activity::Resting,
            _ => Activity::Idle,
        }
    }

    fn judge(&mut self, number: u16, pin: Retention) {
        let set = self.sets.get_mut(number);
        let pattern = set.reuse.pattern();
        set.reuse.settle(pattern);
        let (mode, why) = match (pin, pattern) {
            (Retention::Keep, _) => (Mode::Keep, Why::Pinned),
            (Retention::Evict, _) => (Mode::Evict, Why::Pinned),
            (Retention::Auto, Pattern::Passes) => (Mode::Keep, Why::FullPasses),
            (Retention::Auto, Pattern::Skewed) => (Mode::Evict, Why::SomeReturnEarly),
            (Retention::Auto, Pattern::Unclear) => (set.mode, set.why),
            (Retention::Auto, Pattern::Unknown) if set.why == Why::Pinned => {
                (Mode::Keep, Why::NoRepeats)
            }
            (Retention::Auto, Pattern::Unknown) => (set.mode, set.why),
        };
        if mode == set.mode {
            set.why = why;
            return;
        }
        // A change moves every object of the set once, so each must be paid for by uses.
        let objects = set.resident_objects();
        let rest = (objects / MOVED_PER_USE as u64).max(REVIEW_EVERY * 4);
        if why == Why::Pinned || set.counts.mode_changes == 0 || set.clock - set.mode_since >= rest
        {
            (set.mode, set.why) = (mode, why);
            set.mode_since = set.clock;
            set.counts.mode_changes += 1;
        }
    }
}
