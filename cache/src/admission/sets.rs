//! The data sets that are told apart: stores and their first directories.
//!
//! Invariant: at most [`MOST_SETS`] are tracked, whatever keys are read. Where a directory has too
//! many, they become one set, and their objects belong to it without being touched. Finding the set
//! of a key is at most four steps.

use super::lists::{List, Residents, U64Map, mix};
use super::reuse::Reuse;

/// Sets tracked at once. Each takes up to 10 KiB, nearly all of it its sample: 2.5 MiB in all.
const MOST_SETS: usize = 256;

/// Directories of a key that tell sets apart: `datasets/imagenet/train`.
const DEPTH: usize = 3;

/// Directories of one directory that are sets of their own while several are read at once. More are
/// the parts of one data set, such as the classes of images.
const MOST_AT_ONCE: usize = 8;

/// Directories of one directory that are sets of their own at all.
const MOST_CHILDREN: usize = 32;

/// Bytes of a prefix that are kept for reports.
const NAME_BYTES: usize = 48;

/// The data set that a key belongs to, at every depth; cheap to copy and to make.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SetId {
    store_id: u64,
    hashes: [u64; DEPTH + 1],
    ends: [u8; DEPTH + 1],
    depth: u8,
    name: [u8; NAME_BYTES],
}

impl SetId {
    /// The set of a key of a store. Looks at the key's first directories only.
    pub(crate) fn of(store_id: u64, key: &str) -> Self {
        let mut id = Self {
            store_id,
            hashes: [mix(store_id ^ 0x05e7); DEPTH + 1],
            ends: [0; DEPTH + 1],
            depth: 0,
            name: [0; NAME_BYTES],
        };
        let mut hash = id.hashes[0];
        let mut depth = 0;
        for (at, byte) in key.bytes().enumerate() {
            if let Some(place) = id.name.get_mut(at) {
                *place = byte;
            }
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            if byte == b'/' {
                depth += 1;
                id.hashes[depth] = mix(hash);
                id.ends[depth] = (at + 1).min(NAME_BYTES) as u8;
                id.depth = depth as u8;
                if depth == DEPTH {
                    break;
                }
            }
        }
        id
    }

    /// The store's number.
    pub(crate) fn store_id(&self) -> u64 {
        self.store_id
    }

    fn name(&self, depth: usize) -> String {
        let bytes = &self.name[..usize::from(self.ends[depth])];
        String::from_utf8_lossy(bytes).trim_end_matches('\u{fffd}').to_owned()
    }
}

/// What the policy does with a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// What is resident stays; new objects only into free space.
    Keep,
    /// New objects displace those that are worth less.
    Evict,
}

/// Why a set is in its mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Too few objects were read twice: evicting would gain nothing that is known.
    NoRepeats,
    /// Objects return after all the others.
    FullPasses,
    /// Some objects return long before the others.
    SomeReturnEarly,
    /// The configuration says so.
    Pinned,
}

/// What a set's use says of what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activity {
    /// It is being read.
    Active,
    /// It is not being read just now and is expected back.
    Resting,
    /// It is not expected back: what it holds makes room for others.
    Idle,
}

/// Counted since the set was first seen.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Counts {
    pub(super) uses: u64,
    pub(super) hits: u64,
    pub(super) admitted: u64,
    pub(super) refused: u64,
    pub(super) evicted: u64,
    pub(super) mode_changes: u64,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.uses += other.uses;
        self.hits += other.hits;
        self.admitted += other.admitted;
        self.refused += other.refused;
        self.evicted += other.evicted;
        self.mode_changes += other.mode_changes;
    }
}

/// One tracked set.
#[derive(Debug)]
pub(super) struct Set {
    pub(super) store_id: u64,
    pub(super) name: String,
    hash: u64,
    parent: Option<u16>,
    /// The set that it became a part of.
    merged_into: Option<u16>,
    /// Its directories are not told apart.
    is_whole: bool,
    /// Resident objects that bear its number.
    pub(super) labelled: u64,
    /// What it holds, by last use, where it keeps.
    pub(super) kept: List,
    /// Its bytes and objects in the evicting pool.
    pub(super) pooled_bytes: u64,
    pub(super) pooled_objects: u64,
    pub(super) mode: Mode,
    pub(super) why: Why,
    pub(super) activity: Activity,
    /// Its uses.
    pub(super) clock: u64,
    /// Ages count from here: a merger joins sets with clocks of their own.
    pub(super) merged_at: u64,
    pub(super) mode_since: u64,
    /// The tier's byte clock at its last use.
    pub(super) used_at_bytes: u64,
    /// The same when it began to be read after its last pause.
    pub(super) active_since_bytes: u64,
    /// Its clock then.
    pub(super) active_since: u64,
    /// Objects were used twice since then.
    pub(super) repeated_since: bool,
    /// The longest pause that it came back from, on the same clock.
    pause_bytes: u64,
    /// The longest pause that a directory of it came back from.
    parts_pause_bytes: u64,
    pub(super) reuse: Reuse,
    pub(super) counts: Counts,
}

impl Set {
    /// Bytes that it holds.
    pub(super) fn resident_bytes(&self) -> u64 {
        self.kept.bytes + self.pooled_bytes
    }

    /// Objects that it holds.
    pub(super) fn resident_objects(&self) -> u64 {
        self.kept.len as u64 + self.pooled_objects
    }
}

/// All tracked sets.
#[derive(Debug, Default)]
pub(super) struct Sets {
    slots: Vec<Option<Set>>,
    by_hash: U64Map<u64, u16>,
    /// Work done, in sets looked at.
    pub(super) steps: u64,
}

impl Sets {
    /// The set that a number stands for now.
    pub(super) fn root(&self, number: u16) -> u16 {
        let mut number = number;
        while let Some(into) = self.slot(number).merged_into {
            number = into;
        }
        number
    }

    fn slot(&self, number: u16) -> &Set {
        self.slots[usize::from(number)].as_ref().expect("a numbered set is tracked")
    }

    /// A tracked set.
    pub(super) fn get(&self, number: u16) -> &Set {
        self.slot(number)
    }

    /// A tracked set, to change.
    pub(super) fn get_mut(&mut self, number: u16) -> &mut Set {
        self.slots[usize::from(number)].as_mut().expect("a numbered set is tracked")
    }

    /// The numbers of the sets that are not part of another.
    pub(super) fn roots(&self) -> impl Iterator<Item = u16> {
        (0u16..).zip(&self.slots).filter_map(|(number, slot)| {
            slot.as_ref().filter(|set| set.merged_into.is_none()).map(|_| number)
        })
    }

    /// The longest pause after which this set may be expected back.
    pub(super) fn pause_bytes(&self, number: u16) -> u64 {
        let set = self.slot(number);
        match (set.pause_bytes, set.parent) {
            // One that never came back is judged by its neighbours, so that parts that are read one
            // after the other are not taken for data sets that came and went.
            (0, Some(parent)) => self.slot(parent).parts_pause_bytes,
            (own, _) => own,
        }
    }

    /// A set came back after this many bytes of others.
    pub(super) fn came_back(&mut self, number: u16, pause_bytes: u64) {
        let set = self.get_mut(number);
        set.pause_bytes = set.pause_bytes.max(pause_bytes);
        if let Some(parent) = set.parent {
            let parent = self.get_mut(parent);
            parent.parts_pause_bytes = parent.parts_pause_bytes.max(pause_bytes);
        }
    }

    /// The set of an object, tracked from now on where there is room, else a coarser one. Sets that
    /// were used within `quiet_bytes` of `now_bytes` are being read.
    pub(super) fn find(
        &mut self,
        all: &mut Residents,
        id: &SetId,
        now_bytes: u64,
        quiet_bytes: u64,
    ) -> u16 {
        let mut parent = None;
        for depth in 0..=usize::from(id.depth) {
            self.steps += 1;
            let known = self.by_hash.get(&id.hashes[depth]).copied();
            let number = known.or_else(|| self.track(id, depth, parent, now_bytes, quiet_bytes));
            let Some(number) = number else {
                match parent {
                    Some(parent) => self.make_whole(all, parent),
                    // More stores than places: the first set of all stands for this one.
                    None => _ = self.by_hash.insert(id.hashes[0], 0),
                }
                break;
            };
            if self.slot(number).merged_into.is_some() {
                return self.root(number);
            }
            parent = Some(number);
            if self.slot(number).is_whole {
                break;
            }
        }
        self.root(parent.unwrap_or(0))
    }

    fn track(
        &mut self,
        id: &SetId,
        depth: usize,
        parent: Option<u16>,
        now_bytes: u64,
        quiet_bytes: u64,
    ) -> Option<u16> {
        if let Some(parent) = parent
            && self.is_crowded(parent, now_bytes, quiet_bytes)
        {
            return None;
        }
        let number = self.free_slot(parent, now_bytes, quiet_bytes)?;
        let hash = id.hashes[depth];
        self.by_hash.insert(hash, number);
        self.slots[usize::from(number)] = Some(Set {
            store_id: id.store_id,
            name: id.name(depth),
            hash,
            parent,
            merged_into: None,
            is_whole: false,
            labelled: 0,
            kept: List::default(),
            pooled_bytes: 0,
            pooled_objects: 0,
            mode: Mode::Keep,
            why: Why::NoRepeats,
            activity: Activity::Active,
            clock: 0,
            merged_at: 0,
            mode_since: 0,
            used_at_bytes: now_bytes,
            active_since_bytes: now_bytes,
            active_since: 0,
            repeated_since: false,
            pause_bytes: 0,
            parts_pause_bytes: 0,
            reuse: Reuse::default(),
            counts: Counts::default(),
        });
        Some(number)
    }

    fn is_crowded(&mut self, parent: u16, now_bytes: u64, quiet_bytes: u64) -> bool {
        self.steps += self.slots.len() as u64;
        let children = self.slots.iter().flatten().filter(|set| set.parent == Some(parent));
        let (mut all, mut at_once) = (0, 0);
        for set in children {
            all += 1;
            at_once += usize::from(now_bytes - set.used_at_bytes.min(now_bytes) <= quiet_bytes);
        }
        all >= MOST_CHILDREN || at_once >= MOST_AT_ONCE
    }

    /// A place for one more set: an unused one, or that of a set that holds nothing any more.
    fn free_slot(&mut self, parent: Option<u16>, now: u64, quiet_bytes: u64) -> Option<u16> {
        if self.slots.len() < MOST_SETS {
            self.slots.push(None);
            return Some((self.slots.len() - 1) as u16);
        }
        self.steps += 2 * self.slots.len() as u64;
        let mut has_children = vec![false; self.slots.len()];
        for set in self.slots.iter().flatten() {
            for above in [set.parent, set.merged_into].into_iter().flatten() {
                has_children[usize::from(above)] = true;
            }
        }
        let (number, _) = (0u16..)
            .zip(&self.slots)
            .filter_map(|(number, slot)| slot.as_ref().map(|set| (number, set)))
            .filter(|(number, set)| {
                set.labelled == 0
                    && !has_children[usize::from(*number)]
                    && Some(*number) != parent
                    && *number != 0
                    && (set.merged_into.is_some()
                        || now.saturating_sub(set.used_at_bytes) > quiet_bytes)
            })
            .min_by_key(|(_, set)| set.used_at_bytes)?;
        if let Some(set) = self.slots[usize::from(number)].take() {
            self.by_hash.remove(&set.hash);
        }
        Some(number)
    }

    /// From now on this directory is one set: its directories, and theirs, become part of it.
    fn make_whole(&mut self, all: &mut Residents, number: u16) {
        let numbers: Vec<u16> = self.roots().filter(|n| *n != number).collect();
        self.steps += numbers.len() as u64;
        let mut busiest: Option<(u64, Mode, Why)> = None;
        for below in numbers {
            if !self.is_below(below, number) {
                continue;
            }
            let set = self.get_mut(below);
            set.merged_into = Some(number);
            let kept = std::mem::take(&mut set.kept);
            let pooled =
                (std::mem::take(&mut set.pooled_bytes), std::mem::take(&mut set.pooled_objects));
            let (clock, counts, used) = (set.clock, set.counts, set.used_at_bytes);
            if busiest.is_none_or(|(uses, ..)| uses < counts.uses) {
                busiest = Some((counts.uses, set.mode, set.why));
            }
            set.reuse = Reuse::default();
            let whole = self.get_mut(number);
            all.join(&mut whole.kept, kept);
            whole.pooled_bytes += pooled.0;
            whole.pooled_objects += pooled.1;
            whole.clock = whole.clock.max(clock);
            whole.merged_at = whole.clock;
            whole.used_at_bytes = whole.used_at_bytes.max(used);
            whole.counts.add(counts);
        }
        let whole = self.get_mut(number);
        whole.is_whole = true;
        // The pauses of its parts were not its own.
        whole.pause_bytes = 0;
        if let Some((uses, mode, why)) = busiest
            && whole.why != Why::Pinned
            && uses > whole.counts.uses / 2
        {
            (whole.mode, whole.why) = (mode, why);
        }
    }

    fn is_below(&self, number: u16, above: u16) -> bool {
        let mut number = number;
        while let Some(parent) = self.slot(number).parent {
            if parent == above {
                return true;
            }
            number = parent;
        }
        false
    }
}
