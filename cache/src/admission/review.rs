//! The look at all sets that is taken now and then: which mode each is in, whether it is read, and what
//! of it nobody will miss.
//!
//! Invariant: a mode lasts for at least a quarter as many uses as the set has objects, so that what a change
//! moves is paid for by uses.

use super::reuse::Pattern;
use super::sets::{Activity, Mode, Why};
use super::{Admission, HORIZON, MOVED_PER_USE, REVIEW_EVERY};
use crate::Retention;

impl Admission {
    /// Looks at every set: its mode, whether it is read, and what of it nobody will miss.
    pub(super) fn review(&mut self) {
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
            (Retention::Auto, Pattern::Unknown) if set.why == Why::Pinned => {
                (Mode::Keep, Why::NoRepeats)
            }
            (Retention::Auto, Pattern::Unknown | Pattern::Unclear) => (set.mode, set.why),
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
