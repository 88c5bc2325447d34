//! How a data set is read: in full passes, or some objects far more often than others.
//!
//! Invariant: at most [`SAMPLED`] objects of a set are watched, whatever its size, chosen by hash
//! (every use of a chosen object is seen). Watching a use is one step, amortised.
//!
//! The test needs neither the size of the set nor that of the cache. Let `m` be the mean number of
//! uses of the set between two uses of one object. Of the repetitions, those that come before `m/4`
//! are at least `1 - exp(-1/4)` = 22 % when objects are drawn independently, whatever their
//! popularities (a mixture of exponentials has more mass near zero than the exponential of its mean);
//! 3 % in shuffled epochs (the distance is the sum of two uniform ones); none in sequential ones.

use super::Item;
use super::lists::{U64Map, mix};

/// Objects watched in a set: 3 % of early repetitions is told from 22 % by 64 of them.
const SAMPLED: usize = 256;

/// Repetitions before anything is concluded: a quarter of a pass at most.
const ENOUGH: f64 = 64.0;

/// Repetitions after which the old ones count half, so that a change shows within one more pass.
const WINDOW: f64 = 256.0;

/// Repetitions that only teach the mean.
const FIRST: f64 = 8.0;

/// Above this share of early repetitions, some objects are worth more than others. Several jobs in
/// passes of their own over one set reach 15 %, and keeping is better for those, too.
const EVICT_ABOVE: f64 = 0.175;

/// Below this share, it is passes. Between the two nothing changes.
const KEEP_BELOW: f64 = 0.12;

/// What is left of the longest distance with each repetition that is shorter: half after 1,400 of them, five
/// passes or more.
const LONGEST_DECAY: f64 = 1.0 - 1.0 / 2048.0;

/// Of the last 128 sampled uses, repetitions and first uses that alternate this often: passes change
/// from the ones to the others once, at the end of the first.
const ALTERNATIONS: u32 = 24;

/// Of the last 128 sampled uses, first uses below which the set is known whole.
const FEW_FRESH: u32 = 16;

/// A run of sampled objects never seen before, in a set that was read in passes, means that another
/// data set is read under the same prefix.
const SHIFT_RUN: u32 = 24;

/// What the sample says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pattern {
    /// Nothing was used twice, or too little.
    Unknown,
    /// Full passes.
    Passes,
    /// Some objects return long before the others.
    Skewed,
    /// Between the two.
    Unclear,
}

/// A count or a size, without its fraction. They are never negative.
#[allow(clippy::cast_sign_loss)]
pub(super) fn floor(value: f64) -> u64 {
    value as u64
}

/// The sample of one set.
#[derive(Debug)]
pub(super) struct Reuse {
    last: U64Map<u64, (u64, u64)>,
    /// Hashes up to this are watched.
    threshold: u64,
    weight: f64,
    early: f64,
    mean: f64,
    longest: f64,
    mean_bytes: f64,
    /// Bytes that the whole tier used between two uses of one object, on average.
    mean_gap_bytes: f64,
    /// Sampled first uses in a row, and the clock when the run began.
    run: u32,
    run_began: u64,
    needed_run: u32,
    /// The clock before which everything belongs to the data set before.
    shifted_at: Option<u64>,
    returns: u32,
    expired_at: u64,
    horizon: u64,
    /// The last 128 sampled uses, the latest in the lowest bit: set for a repetition.
    history: u128,
    /// Of those, repetitions after less than an eighth of all uses so far.
    short: u128,
    /// Sampled uses, up to 128.
    sampled: u32,
    /// Nearly all of its objects were seen.
    is_known_whole: bool,
    /// It was seen to be read in passes.
    is_settled: bool,
    /// Work done, in entries looked at.
    pub(super) steps: u64,
}

impl Default for Reuse {
    fn default() -> Self {
        Self {
            last: U64Map::default(),
            threshold: u64::MAX,
            weight: 0.0,
            early: 0.0,
            mean: 0.0,
            longest: 0.0,
            mean_bytes: 0.0,
            mean_gap_bytes: 0.0,
            run: 0,
            run_began: 0,
            needed_run: SHIFT_RUN,
            shifted_at: None,
            returns: 0,
            expired_at: 0,
            horizon: 0,
            history: 0,
            short: 0,
            sampled: 0,
            is_known_whole: false,
            is_settled: false,
            steps: 0,
        }
    }
}

impl Reuse {
    /// A use of an object at the set's clock (which counts uses) and the tier's (bytes). `horizon`: repetitions later than
    /// this are not waited for. Answers when the object was used before, where that is known.
    pub(super) fn observe(
        &mut self,
        item: Item,
        bytes: u64,
        clock: u64,
        now_bytes: u64,
        horizon: u64,
    ) -> Option<u64> {
        self.mean_bytes += (bytes as f64 - self.mean_bytes) / (clock.clamp(1, 1_000) as f64);
        let hash = mix(item.0.rotate_left(17) ^ 0x7f4a_7c15);
        if hash > self.threshold {
            return None;
        }
        self.steps += 1;
        self.horizon = horizon;
        let before = self.last.insert(hash, (clock, now_bytes));
        self.sampled = (self.sampled + 1).min(u128::BITS);
        self.history = self.history << 1 | u128::from(before.is_some());
        let is_short = before.is_some_and(|(at, _)| clock - at < clock / 8);
        self.short = self.short << 1 | u128::from(is_short);
        match before {
            Some(before) => self.repeated(before, bytes, clock, now_bytes),
            None => self.fresh(clock),
        }
        if !self.is_known_whole && self.sampled == u128::BITS && self.has_few_fresh() {
            // While objects were still new, distances grew: what counts begins here.
            self.is_known_whole = true;
            self.weight = 0.0;
            self.early = 0.0;
        }
        // An expiry looks at the whole sample, so it must be rare: twice a sample's worth of uses.
        if self.last.len() > SAMPLED || clock - self.expired_at > self.interval() {
            self.expire(clock);
        }
        before.map(|(at, _)| at)
    }

    fn interval(&self) -> u64 {
        (SAMPLED as u64 * 2).max(self.objects())
    }

    fn repeated(&mut self, last: (u64, u64), bytes: u64, clock: u64, now_bytes: u64) {
        let (before, before_bytes) = last;
        self.run = 0;
        if self.shifted_at.is_some_and(|at| before < at) {
            self.returns += 1;
            // Two of the old objects: it was a visit elsewhere, not a move. The next one has to last longer.
            if self.returns >= 2 {
                self.shifted_at = None;
                self.needed_run = self.needed_run.saturating_mul(2);
            }
        }
        let distance = (clock - before) as f64;
        // One tiny file that is read all the time says nothing of the set; one huge one not all.
        let weight = (bytes as f64 / self.mean_bytes.max(1.0)).clamp(0.01, 4.0);
        if self.weight >= FIRST && distance < self.mean / 4.0 {
            self.early += weight;
        }
        self.weight += weight;
        self.mean += (distance - self.mean) * weight / self.weight;
        let gap_bytes = now_bytes.saturating_sub(before_bytes) as f64;
        self.mean_gap_bytes += (gap_bytes - self.mean_gap_bytes) * weight / self.weight;
        self.longest = (self.longest * LONGEST_DECAY).max(distance);
        if self.weight > WINDOW {
            self.weight /= 2.0;
            self.early /= 2.0;
        }
    }

    fn fresh(&mut self, clock: u64) {
        if self.run == 0 {
            self.run_began = clock;
        }
        self.run += 1;
        if self.run == self.needed_run && self.is_settled {
            self.shifted_at = Some(self.run_began);
            self.returns = 0;
        }
    }

    /// Forgets what would return too late, and halves the share that is watched while there are too many.
    fn expire(&mut self, clock: u64) {
        self.expired_at = clock;
        self.steps += self.last.len() as u64;
        let horizon = self.horizon;
        self.last.retain(|_, (at, _)| clock - *at <= horizon);
        while self.last.len() > SAMPLED {
            self.threshold /= 2;
            let threshold = self.threshold;
            self.steps += self.last.len() as u64;
            self.last.retain(|hash, _| *hash <= threshold);
        }
        if self.last.len() < SAMPLED / 4 && self.threshold < u64::MAX {
            self.threshold = self.threshold.saturating_mul(2);
        }
    }

    /// About how many objects the set has.
    pub(super) fn objects(&self) -> u64 {
        let share = (self.threshold as f64 / u64::MAX as f64).max(1e-12);
        floor(self.last.len() as f64 / share)
    }

    /// Passes or not.
    pub(super) fn pattern(&self) -> Pattern {
        if !self.is_settled && self.is_interleaved() {
            return Pattern::Skewed;
        }
        if self.weight < ENOUGH {
            return Pattern::Unknown;
        }
        match self.early / self.weight {
            share if share > EVICT_ABOVE => Pattern::Skewed,
            share if share < KEEP_BELOW && self.is_known_whole => Pattern::Passes,
            _ => Pattern::Unclear,
        }
    }

    /// Remembers what was concluded: a set that was read in passes may meet new objects later on.
    pub(super) fn settle(&mut self, pattern: Pattern) {
        match pattern {
            Pattern::Passes => self.is_settled = true,
            Pattern::Skewed => self.is_settled = false,
            Pattern::Unknown | Pattern::Unclear => {}
        }
    }

    /// Objects are used again while others are still used for the first time: shows long before there
    /// is a mean that could be trusted, because until all are known the distances grow.
    fn is_interleaved(&self) -> bool {
        let alternations = (self.history ^ self.history >> 1) & (u128::MAX >> 1);
        // Of objects drawn independently, an eighth of the repetitions at least is as short as that;
        // passes over a growing set have nearly none.
        let are_short = self.short.count_ones() * 8 > self.history.count_ones();
        self.sampled == u128::BITS && alternations.count_ones() >= ALTERNATIONS && are_short
    }

    fn has_few_fresh(&self) -> bool {
        self.sampled - self.history.count_ones().min(self.sampled) < FEW_FRESH
    }

    /// Repetitions that came early, of all, in percent; `None` before there were enough.
    pub(super) fn early_percent(&self) -> Option<f64> {
        (self.weight >= ENOUGH).then(|| 100.0 * self.early / self.weight)
    }

    /// Bytes that the whole tier uses between two uses of one object, once objects returned: the shorter, the
    /// more each of them is worth.
    pub(super) fn gap_bytes(&self) -> Option<u64> {
        (self.mean_gap_bytes > 0.0).then(|| floor(self.mean_gap_bytes))
    }

    /// True once objects returned.
    pub(super) fn repeats(&self) -> bool {
        self.mean_gap_bytes > 0.0
    }

    /// Uses of the set after which an object that did not return will not: twice the mean is the longest
    /// distance in shuffled epochs. `None` where longer distances might not have been seen.
    pub(super) fn stale_after(&self) -> Option<u64> {
        let after = floor((self.mean * 2.25).max(self.longest * 1.1)) + 1;
        (self.weight >= ENOUGH && after <= self.horizon).then_some(after)
    }

    /// The clock before which everything belongs to a data set that is not read any more.
    pub(super) fn shifted_at(&self) -> Option<u64> {
        self.shifted_at
    }
}
