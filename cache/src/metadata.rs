//! What is known of a store's objects: sizes, versions, and what is not there.
//!
//! Invariant: an answer of the origin that was asked for before a write through this store ended is
//! never remembered after it. A ticket taken before asking says which writes the answer may have
//! missed. Bounded: the entry that was not looked at for longest (by a clock) gives way.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use store::{ETag, Error, ObjectKey, ObjectMeta};
use tokio::time::Instant;

use crate::StorePolicy;
use crate::blocks::{BlockCache, Remembered, metadata_key};
use crate::fetch::Flight;
use crate::version::Version;

/// Locks that the objects are spread over: more than any machine has threads.
const SHARDS: usize = 64;

/// After the origin gave no answer, how long expired metadata is served without asking again, so
/// that readers in an outage do not each wait for a timeout.
pub(crate) const OUTAGE_BACKOFF: Duration = Duration::from_secs(5);

/// Longest time after which a record on disk is written anew when its version was confirmed again. A
/// quarter of `stale_if_error` where that is less: no restart then shortens it by more.
const RENEW_AFTER: Duration = Duration::from_mins(5);

/// What an origin said about a key.
#[derive(Debug, Clone)]
pub(crate) enum Known {
    Present(Arc<Version>),
    Absent,
}

/// The result of asking an origin about a key, shared by everyone who asked.
pub(crate) type Answer = Result<Known, Error>;

/// What an object is after a write.
#[derive(Debug, Clone, Default)]
pub(crate) enum Outcome {
    /// Nobody knows: the write failed, was dropped, or its answer does not say.
    #[default]
    Unknown,
    Gone,
    Is(ObjectMeta),
}

/// What the cache has to say about a key.
#[derive(Debug, Clone)]
pub(crate) struct Peek {
    pub(crate) known: Known,
    /// It may be used without asking.
    pub(crate) fresh: bool,
    /// It may be used where the origin gives no answer.
    pub(crate) usable: bool,
    /// The origin gave no answer a moment ago.
    pub(crate) backing_off: bool,
    /// Since the origin was asked.
    pub(crate) age: Duration,
}

#[derive(Debug)]
struct Slot {
    known: Known,
    asked: Instant,
    retry_at: Option<Instant>,
    touched: bool,
    /// When the record of this version on disk, if there is one, was last confirmed.
    kept: Option<Instant>,
}

#[derive(Debug, Default)]
struct Shard {
    slots: HashMap<ObjectKey, Slot>,
    /// The clock: every key of `slots` once, and keys that have left.
    clock: VecDeque<ObjectKey>,
    /// The epoch of the last write to a key of this shard.
    last_write: u64,
    /// Questions in flight, with the epoch in which each was asked.
    pending: HashMap<ObjectKey, (u64, Flight<Answer>)>,
}

#[derive(Debug)]
pub(crate) struct MetadataCache {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    /// Counts the writes through this store that have ended.
    epoch: AtomicU64,
    per_shard: usize,
    policy: StorePolicy,
    store: u64,
    /// Where records outlive this process.
    blocks: Arc<dyn BlockCache>,
}

impl MetadataCache {
    pub(crate) fn new(
        store: u64,
        policy: StorePolicy,
        entries: usize,
        blocks: Arc<dyn BlockCache>,
    ) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            epoch: AtomicU64::new(0),
            per_shard: entries.div_ceil(SHARDS).max(1),
            policy,
            store,
            blocks,
        }
    }

    fn shard(&self, key: &ObjectKey) -> &Mutex<Shard> {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }

    /// Objects known to exist or not to.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|s| s.lock().slots.len()).sum()
    }

    /// Taken before asking the origin; given back with its answer.
    pub(crate) fn ticket(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    pub(crate) fn peek(&self, key: &ObjectKey) -> Option<Peek> {
        let mut shard = self.shard(key).lock();
        let slot = shard.slots.get_mut(key)?;
        slot.touched = true;
        let now = Instant::now();
        let age = now.saturating_duration_since(slot.asked);
        let (fresh, usable) = match &slot.known {
            Known::Absent => (age < self.policy.negative_ttl, false),
            Known::Present(_) => {
                let fresh =
                    age < self.policy.stale_ttl || self.policy.immutable.holds(key.as_str());
                let limit = self.policy.stale_ttl.saturating_add(self.policy.stale_if_error);
                (fresh, !self.policy.stale_if_error.is_zero() && age < limit)
            }
        };
        Some(Peek {
            known: slot.known.clone(),
            fresh,
            usable,
            backing_off: slot.retry_at.is_some_and(|at| now < at),
            age,
        })
    }

    /// Remembers an answer that was asked for at `asked` with `ticket`, unless a write or a later
    /// question has overtaken it. Returns what is now to be used for this answer: the same version,
    /// with attributes if they were already known.
    pub(crate) fn learn(
        &self,
        key: &ObjectKey,
        ticket: u64,
        asked: Instant,
        meta: Option<ObjectMeta>,
    ) -> Known {
        let mut shard = self.shard(key).lock();
        let overtaken = shard.last_write > ticket;
        let before = shard.slots.get(key);
        let newer = before.is_some_and(|slot| slot.asked > asked);
        let known = match meta {
            None => Known::Absent,
            Some(mut meta) => match before.map(|slot| &slot.known) {
                Some(Known::Present(old)) if old.meta.etag == meta.etag => {
                    if meta.attributes.is_none() {
                        meta.attributes.clone_from(&old.meta.attributes);
                    }
                    if meta == old.meta {
                        Known::Present(Arc::clone(old))
                    } else {
                        Known::Present(Arc::new(Version::new(self.store, key.clone(), meta)))
                    }
                }
                _ => Known::Present(Arc::new(Version::new(self.store, key.clone(), meta))),
            },
        };
        if !overtaken && !newer {
            let gone = matches!(known, Known::Absent);
            let other = shard.set(key, known.clone(), asked, self.per_shard);
            if other || gone {
                self.unremember(key, other);
            }
        }
        known
    }

    /// A write through this store has ended; `since` is the ticket taken when it began. Where another
    /// write ended meanwhile, nobody knows which came last, and the outcome counts as unknown.
    pub(crate) fn wrote(&self, key: &ObjectKey, since: u64, outcome: Outcome) {
        let mut shard = self.shard(key).lock();
        let overlapped = shard.last_write > since;
        shard.last_write = self.epoch.fetch_add(1, Ordering::AcqRel) + 1;
        shard.pending.remove(key);
        let kept = shard.slots.remove(key).is_some_and(|slot| slot.kept.is_some());
        self.unremember(key, kept);
        let known = match outcome {
            Outcome::Is(meta) if !overlapped => {
                Known::Present(Arc::new(Version::new(self.store, key.clone(), meta)))
            }
            Outcome::Gone if !overlapped => Known::Absent,
            _ => return,
        };
        shard.set(key, known, Instant::now(), self.per_shard);
    }

    /// Takes back what the disk remembers of an object. Called under the lock of its shard, so that no
    /// record of what was known before can follow. `kept` says that there is one for certain: one that
    /// was written just now is not found yet.
    fn unremember(&self, key: &ObjectKey, kept: bool) {
        let at = metadata_key(self.store, key);
        if kept || self.blocks.on_disk(&at) {
            self.blocks.unremember(at);
        }
    }

    fn renew_after(&self) -> Duration {
        match self.policy.stale_if_error / 4 {
            Duration::ZERO => RENEW_AFTER,
            quarter => quarter.min(RENEW_AFTER),
        }
    }

    /// Leaves word on disk of a version whose blocks go there, unless it was left lately or something
    /// else is known of the object by now.
    pub(crate) fn keep(&self, object: &Version) {
        self.write_record(&object.key, object.etag(), false);
    }

    /// The origin has confirmed a version: its record on disk, where it has one, is to say so.
    pub(crate) fn renew(&self, key: &ObjectKey, etag: &ETag) {
        self.write_record(key, etag, true);
    }

    fn write_record(&self, key: &ObjectKey, etag: &ETag, only_renew: bool) {
        let mut shard = self.shard(key).lock();
        let Some(slot) = shard.slots.get_mut(key) else { return };
        let Known::Present(now) = &slot.known else { return };
        if now.etag() != etag {
            return;
        }
        let at = metadata_key(self.store, key);
        let due = match slot.kept {
            None => !only_renew,
            Some(kept) => {
                slot.asked.saturating_duration_since(kept) >= self.renew_after()
                    || (!only_renew && !self.blocks.on_disk(&at))
            }
        };
        if due {
            let clock = SystemTime::now();
            let confirmed = clock.checked_sub(slot.asked.elapsed()).unwrap_or(clock);
            self.blocks.remember(at, &Remembered { meta: now.meta.clone(), confirmed });
            slot.kept = Some(slot.asked);
        }
    }

    /// Takes over what was found on disk.
    pub(crate) fn recalled(&self, key: &ObjectKey, ticket: u64, asked: Instant, meta: ObjectMeta) {
        let etag = meta.etag.clone();
        self.learn(key, ticket, asked, Some(meta));
        if let Some(slot) = self.shard(key).lock().slots.get_mut(key)
            && matches!(&slot.known, Known::Present(v) if *v.etag() == etag)
        {
            slot.kept.get_or_insert(asked);
        }
    }

    /// Forgets a version that the origin no longer has; anything newer stays.
    pub(crate) fn forget(&self, key: &ObjectKey, etag: &ETag) {
        let mut shard = self.shard(key).lock();
        let held = shard.slots.get(key).map(|slot| (&slot.known, slot.kept.is_some()));
        if let Some((Known::Present(v), kept)) = held
            && v.etag() == etag
        {
            shard.slots.remove(key);
            self.unremember(key, kept);
            // A question asked before may still be answered with the version that is gone.
            shard.pending.remove(key);
        }
    }

    /// The origin gave no answer about this key: do not ask again for a moment.
    pub(crate) fn back_off(&self, key: &ObjectKey) {
        if let Some(slot) = self.shard(key).lock().slots.get_mut(key) {
            slot.retry_at = Some(Instant::now() + OUTAGE_BACKOFF);
        }
    }

    /// Joins the question about this key that is in flight, or asks it. `ask` gets the ticket.
    pub(crate) fn question(
        &self,
        key: &ObjectKey,
        ask: impl FnOnce(u64) -> Flight<Answer>,
    ) -> Flight<Answer> {
        let mut shard = self.shard(key).lock();
        if let Some((ticket, flight)) = shard.pending.get(key)
            && shard.last_write <= *ticket
            && !flight.has_landed()
        {
            return flight.clone();
        }
        let ticket = self.ticket();
        let flight = ask(ticket);
        shard.pending.insert(key.clone(), (ticket, flight.clone()));
        flight
    }

    /// Takes a landed question off the table.
    pub(crate) fn answered(&self, key: &ObjectKey, ticket: u64) {
        let mut shard = self.shard(key).lock();
        if shard.pending.get(key).is_some_and(|(asked, _)| *asked == ticket) {
            shard.pending.remove(key);
        }
    }
}

impl Shard {
    /// True where this took the place of another version that has a record on disk.
    fn set(&mut self, key: &ObjectKey, known: Known, asked: Instant, limit: usize) -> bool {
        let slot = Slot { known, asked, retry_at: None, touched: false, kept: None };
        if let Some(held) = self.slots.get_mut(key) {
            let touched = held.touched;
            let same = match (&held.known, &slot.known) {
                (Known::Present(old), Known::Present(new)) => old.etag() == new.etag(),
                _ => false,
            };
            let kept = held.kept.filter(|_| same);
            let other = held.kept.is_some() && !same;
            *held = Slot { touched, kept, ..slot };
            return other;
        }
        while self.slots.len() >= limit {
            let Some(oldest) = self.clock.pop_front() else { break };
            match self.slots.get_mut(&oldest) {
                Some(slot) if slot.touched => {
                    slot.touched = false;
                    self.clock.push_back(oldest);
                }
                _ => {
                    self.slots.remove(&oldest);
                }
            }
        }
        // Keys that left otherwise (deleted, invalidated) are swept out before they can pile up.
        if self.clock.len() > 2 * limit + 16 {
            let slots = &self.slots;
            let mut seen = std::collections::HashSet::new();
            self.clock.retain(|key| slots.contains_key(key) && seen.insert(key.clone()));
        }
        self.slots.insert(key.clone(), slot);
        self.clock.push_back(key.clone());
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    fn meta(etag: &str) -> ObjectMeta {
        ObjectMeta {
            size: 1,
            etag: ETag::parse(etag),
            last_modified: SystemTime::UNIX_EPOCH,
            attributes: None,
        }
    }

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new(name).unwrap()
    }

    fn etag_of(cache: &MetadataCache, name: &str) -> Option<String> {
        match cache.peek(&key(name))?.known {
            Known::Present(v) => Some(v.etag().to_string()),
            Known::Absent => Some("absent".into()),
        }
    }

    fn cache(entries: usize) -> MetadataCache {
        MetadataCache::new(
            1,
            StorePolicy::default(),
            entries,
            Arc::<crate::blocks::map::MapBlocks>::default(),
        )
    }

    #[tokio::test(start_paused = true)]
    async fn writes_win_over_answers_asked_for_before() {
        let cache = cache(1000);
        let (ticket, asked) = (cache.ticket(), Instant::now());
        cache.wrote(&key("k"), cache.ticket(), Outcome::Is(meta("new")));
        cache.learn(&key("k"), ticket, asked, Some(meta("old")));
        assert_eq!(etag_of(&cache, "k").as_deref(), Some("new"));
        cache.learn(&key("k"), cache.ticket(), Instant::now(), Some(meta("newer")));
        assert_eq!(etag_of(&cache, "k").as_deref(), Some("newer"));
    }

    #[tokio::test(start_paused = true)]
    async fn overlapping_writes_leave_nothing_to_believe() {
        let cache = cache(1000);
        let (a, b) = (cache.ticket(), cache.ticket());
        cache.wrote(&key("k"), b, Outcome::Is(meta("b")));
        assert_eq!(etag_of(&cache, "k").as_deref(), Some("b"));
        cache.wrote(&key("k"), a, Outcome::Is(meta("a")));
        assert_eq!(etag_of(&cache, "k"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_write_forgets() {
        let cache = cache(1000);
        cache.learn(&key("k"), cache.ticket(), Instant::now(), Some(meta("old")));
        cache.wrote(&key("k"), cache.ticket(), Outcome::Unknown);
        assert_eq!(etag_of(&cache, "k"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn later_questions_win_and_attributes_stay() {
        let cache = cache(1000);
        let early = Instant::now();
        tokio::time::advance(Duration::from_secs(1)).await;
        let attributes = Some(Arc::default());
        let with = ObjectMeta { attributes, ..meta("x") };
        cache.learn(&key("k"), cache.ticket(), Instant::now(), Some(with));
        cache.learn(&key("k"), cache.ticket(), early, Some(meta("older")));
        cache.learn(&key("k"), cache.ticket(), Instant::now(), Some(meta("x")));
        let Known::Present(v) = cache.peek(&key("k")).unwrap().known else { panic!() };
        assert_eq!(v.etag().as_str(), "x");
        assert!(v.meta.attributes.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn bounded_and_fair() {
        let cache = cache(640);
        cache.learn(&key("hot"), 0, Instant::now(), Some(meta("x")));
        for n in 0..20_000 {
            cache.learn(&key(&format!("k{n}")), 0, Instant::now(), Some(meta("x")));
            assert!(cache.peek(&key("hot")).is_some(), "a key in use stays, gone after {n}");
        }
        assert!(cache.len() <= 640);
        for n in 0..20_000 {
            let name = key(&format!("d{}", n % 7));
            cache.learn(&name, cache.ticket(), Instant::now(), Some(meta("x")));
            cache.wrote(&name, cache.ticket(), Outcome::Unknown);
        }
        let clocks: usize = cache.shards.iter().map(|s| s.lock().clock.len()).sum();
        assert!(clocks <= SHARDS * (2 * 10 + 17), "{clocks}");
    }

    #[tokio::test(start_paused = true)]
    async fn times_to_live() {
        let cache = cache(100);
        cache.learn(&key("k"), 0, Instant::now(), Some(meta("x")));
        cache.learn(&key("no"), 0, Instant::now(), None);
        tokio::time::advance(Duration::from_secs(6)).await;
        assert!(cache.peek(&key("k")).unwrap().fresh);
        assert!(!cache.peek(&key("no")).unwrap().fresh);
        tokio::time::advance(Duration::from_mins(1)).await;
        let peek = cache.peek(&key("k")).unwrap();
        assert!(!peek.fresh && peek.usable);
        tokio::time::advance(Duration::from_hours(1)).await;
        assert!(!cache.peek(&key("k")).unwrap().usable);
    }
}
