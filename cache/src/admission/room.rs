//! Who makes room for whom: what is worth being written, and what goes instead.
//!
//! Invariant: whatever is named is resident, and something is named as long as anything is. Sets that are
//! not read any more go first, then what did not return, then the largest of those that are read side
//! by side.

use super::lists::{Place, Queue};
use super::sets::{Activity, Mode};
use super::{Admission, Party, SMALL_ONE_IN, VICTIMS_PER_LOOK};
use crate::Retention;

impl Admission {
    pub(super) fn is_worth_it(&mut self, number: u16, bytes: u64, free_bytes: u64) -> bool {
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

    pub(super) fn pin_of(&self, number: u16) -> Retention {
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
    pub(super) fn stale_place(&self, number: u16) -> Option<Place> {
        let set = self.sets.get(number);
        let place = set.kept.oldest()?;
        let used_at = self.all.at(place).used_at.max(set.merged_at);
        let is_past = |limit: u64| set.clock.saturating_sub(used_at) > limit;
        let is_stale = set.mode == Mode::Keep
            && (set.reuse.stale_after().is_some_and(is_past)
                || set.reuse.shifted_at().is_some_and(|at| used_at < at));
        is_stale.then_some(place)
    }

    pub(super) fn spare_place(&mut self) -> Option<Place> {
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

    pub(super) fn forced_place(&mut self) -> Option<Place> {
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
    pub(super) fn ghosts(&self) -> usize {
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
}
