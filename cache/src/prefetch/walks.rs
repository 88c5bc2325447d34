//! Objects that are read one after the other, as they are listed.
//!
//! Invariant: of a directory that is read in any other order next to nothing is asked for, however many of
//! its objects are read and however few it has. An object of a proven walk is asked for once. Bounded: a
//! few walks, each with a few dozen objects ahead; the longest unused is forgotten.
//!
//! What is proof depends on how often chance does the same: among the 400 shuffled objects of a small
//! directory somebody is always near some place where somebody was. So each walk sums up evidence, in bits:
//! how much likelier its next step is for a reader in listing order than for one that draws from the whole
//! directory (a CUSUM test, Page 1954).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use store::{ObjectKey, ObjectMeta};

use crate::lists::ListCache;

/// Walks at once: workers of a loader that each read a part of a directory in order.
const MAX_WALKS: usize = 32;

/// Objects that may be left out, or come in another order: several are open at once.
const SKIP: usize = 4;

/// Steps before a walk is one, however unlikely they are by chance.
const PROOF_STEPS: u32 = 2;

/// Evidence that a walk is one: a thousandth of those that chance begins get so far.
const PROOF_BITS: f64 = 10.0;

/// Most objects that are asked for ahead.
const MAX_OBJECTS: usize = 64;

/// Fewest, once a walk is proven.
const FIRST_OBJECTS: usize = 4;

/// The walks through all stores.
#[derive(Debug, Default)]
pub(crate) struct Walks {
    walks: Mutex<Held>,
    /// How many there are, so that warm reads take no lock where there is none.
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct Held {
    walks: Vec<Walk>,
    clock: u64,
}

#[derive(Debug)]
struct Walk {
    store: u64,
    at: ObjectKey,
    /// What follows in the listing.
    next: VecDeque<(ObjectKey, ObjectMeta)>,
    /// How many of `next` have been asked for.
    asked: usize,
    /// Objects of the directory, as far as one page of a listing tells: what chance draws from. Known
    /// from the first step on.
    objects: usize,
    evidence_bits: f64,
    /// Objects that were read in their place, and those of them since the walk was proven.
    steps: u32,
    proven_steps: u32,
    /// When it was used last, and the arrivals from the step before to the last one.
    used: u64,
    gap: u64,
}

/// An object to fetch ahead: so many bytes from its start on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Upcoming {
    pub(crate) key: ObjectKey,
    pub(crate) meta: ObjectMeta,
    pub(crate) bytes: u64,
}

impl Walks {
    /// A reader begins an object. `missed` says that it was not near: only such reads are worth a walk
    /// of their own, but every read carries one on.
    pub(crate) fn arrive(&self, store: u64, key: &ObjectKey, missed: bool, lists: &ListCache) {
        if !missed && self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut held = self.walks.lock();
        held.clock += 1;
        let used = held.clock;
        for walk in held.walks.iter_mut().filter(|walk| walk.store == store) {
            if walk.at == *key {
                walk.used = used;
                return;
            }
            let place = walk.next.iter().take(SKIP).position(|(next, _)| next == key);
            if let Some(place) = place {
                // Most walks never get here: what only these need is looked up now.
                if walk.steps == 0 {
                    walk.objects = lists.siblings(key);
                }
                walk.next.drain(..=place);
                walk.asked = walk.asked.saturating_sub(place + 1);
                walk.step(place, used);
                walk.at = key.clone();
                let wanted = walk.window().max(SKIP);
                if walk.next.len() < wanted.div_ceil(2).max(SKIP) {
                    let from = walk.next.back().map_or(key, |(last, _)| last).clone();
                    walk.next.extend(lists.following(&from, wanted - walk.next.len()));
                }
                return;
            }
        }
        if !missed {
            return;
        }
        let next: VecDeque<_> = lists.following(key, SKIP).into();
        if next.is_empty() {
            return;
        }
        if held.walks.len() >= MAX_WALKS
            && let Some(oldest) = (0..held.walks.len()).min_by_key(|n| held.walks[*n].used)
        {
            held.walks.swap_remove(oldest);
        }
        held.walks.push(Walk {
            store,
            at: key.clone(),
            next,
            asked: 0,
            objects: 0,
            evidence_bits: 0.0,
            steps: 0,
            proven_steps: 0,
            used,
            gap: 1,
        });
        self.count.store(held.walks.len(), Ordering::Release);
    }

    /// What to fetch while the last bytes of `key` are read: up to `most` bytes, of each object its
    /// first `step` bytes. Objects that were asked for before are not named again.
    pub(crate) fn upcoming(
        &self,
        store: u64,
        key: &ObjectKey,
        step: u64,
        most: u64,
    ) -> Vec<Upcoming> {
        if self.count.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        let mut held = self.walks.lock();
        let Some(walk) = held.walks.iter_mut().find(|w| w.store == store && w.at == *key) else {
            return Vec::new();
        };
        let window = walk.window();
        // Half a window at a time, so that the few that are left are not asked for one by one.
        if walk.asked > window / 2 {
            return Vec::new();
        }
        let asked = walk.next.iter().take(walk.asked);
        // What comes after a large object is far away.
        if asked.clone().any(|(_, meta)| meta.size > step) {
            return Vec::new();
        }
        let mut bytes: u64 = asked.map(|(_, meta)| meta.size).sum();
        let mut out = Vec::new();
        for (key, meta) in walk.next.iter().take(window).skip(walk.asked) {
            let first = meta.size.min(step);
            if bytes > 0 && bytes + first > most {
                break;
            }
            bytes += first;
            out.push(Upcoming { key: key.clone(), meta: meta.clone(), bytes: first });
            if meta.size > step {
                break;
            }
        }
        walk.asked += out.len();
        out
    }
}

impl Walk {
    /// Weighs a step: the object in `place` of those that follow, at the arrival `now`.
    #[allow(clippy::cast_precision_loss)] // Of small numbers, and evidence is no exact thing.
    fn step(&mut self, place: usize, now: u64) {
        let gap = now.saturating_sub(self.used).max(1);
        // A reader that goes on after as many others as the last time is half of what is expected of
        // workers side by side; else the more came between, the less likely it is still the same.
        let near = self.gap / 4;
        let ways = if gap.abs_diff(self.gap) <= near { 2 * near + 1 } else { gap * (gap + 1) };
        let by_chance = (self.objects.max(1) as f64).log2();
        let cost = 2.0 + place as f64 + (ways as f64).log2();
        let needed = self.needed_bits();
        self.evidence_bits = (self.evidence_bits + by_chance - cost).clamp(0.0, 2.0 * needed);
        (self.used, self.gap) = (now, gap);
        self.steps = self.steps.saturating_add(1);
        let proven = self.steps >= PROOF_STEPS && self.evidence_bits >= needed;
        self.proven_steps = if proven { self.proven_steps.saturating_add(1) } else { 0 };
    }

    /// In a directory of few objects, what two steps in a row give: little is lost there.
    #[allow(clippy::cast_precision_loss)]
    fn needed_bits(&self) -> f64 {
        let one_step = (self.objects.max(1) as f64).log2() - 2.0;
        (f64::from(PROOF_STEPS) * one_step).clamp(0.0, PROOF_BITS)
    }

    /// Objects to have asked for ahead.
    fn window(&self) -> usize {
        match self.proven_steps.checked_sub(1) {
            None => 0,
            Some(more) => (FIRST_OBJECTS << more.min(8)).min(MAX_OBJECTS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::SystemTime;
    use store::{ETag, ListEntry, ListPage, ListRequest};
    use tokio::time::Instant;

    fn key(n: usize) -> ObjectKey {
        ObjectKey::new(format!("d/{n:05}.jpg")).unwrap()
    }

    fn listed(count: usize, size: u64) -> ListCache {
        let lists = ListCache::new(100_000);
        let all: Vec<_> = (0..count).collect();
        for (page, keys) in all.chunks(1000).enumerate() {
            let entries = keys.iter().map(|n| ListEntry {
                key: key(*n),
                meta: ObjectMeta {
                    size,
                    etag: ETag::parse("x"),
                    last_modified: SystemTime::UNIX_EPOCH,
                    attributes: None,
                },
            });
            let page_of = ListPage { entries: entries.collect(), ..ListPage::default() };
            let request = ListRequest { prefix: page.to_string(), ..ListRequest::default() };
            lists.put(&request, 0, Instant::now(), Arc::new(page_of));
        }
        lists
    }

    fn walk(order: impl IntoIterator<Item = usize>, lists: &ListCache) -> Vec<ObjectKey> {
        let walks = Walks::default();
        let mut asked = Vec::new();
        for n in order {
            let missed = !asked.contains(&key(n));
            walks.arrive(1, &key(n), missed, lists);
            let next = walks.upcoming(1, &key(n), 8 << 20, 64 << 20);
            asked.extend(next.into_iter().map(|u| u.key));
        }
        asked
    }

    #[tokio::test]
    async fn small_objects_in_listing_order_are_asked_for_once_each() {
        let lists = listed(3000, 100 << 10);
        let asked = walk(0..2500, &lists);
        assert_eq!(asked[0], key(3), "after three in a row");
        assert!(asked.windows(2).all(|w| w[0] < w[1]), "in order, nothing twice");
        assert!(asked.len() >= 2490 && asked.len() <= 2500 + MAX_OBJECTS, "{}", asked.len());
    }

    #[tokio::test]
    async fn workers_that_each_read_a_part_walk_on_their_own() {
        let lists = listed(1000, 100 << 10);
        let order = (0..200).flat_map(|n| [n, 250 + n, 500 + n, 750 + n]);
        assert!(walk(order, &lists).len() >= 4 * 190);
    }

    #[tokio::test]
    async fn shuffled_objects_ask_for_nothing() {
        let lists = listed(10_000, 100 << 10);
        // A full permutation: 7,919 and 10,000 have no common factor.
        let asked = walk((0..10_000).map(|n| n * 7919 % 10_000), &lists);
        assert_eq!(asked, []);
    }

    #[tokio::test]
    async fn shuffled_objects_of_small_directories_ask_for_next_to_nothing() {
        for count in [64, 128, 400, 1000] {
            let lists = listed(count, 1 << 20);
            let mut dice = crate::simulate::Random(1);
            let mut order: Vec<usize> = (0..count).collect();
            let epochs = 40_000 / count;
            let mut read = Vec::new();
            for _ in 0..epochs {
                dice.shuffle(&mut order);
                read.extend_from_slice(&order);
            }
            // Half of them are never near: a cache that holds the other half.
            let walks = Walks::default();
            let mut asked = 0;
            for n in &read {
                walks.arrive(1, &key(*n), n % 2 == 0, &lists);
                asked += walks.upcoming(1, &key(*n), 8 << 20, 64 << 20).len();
            }
            assert!(asked * 100 <= read.len(), "{asked} ahead of {} reads of {count}", read.len());
        }
    }

    #[tokio::test]
    async fn many_workers_in_order_are_found_out() {
        let lists = listed(10_000, 100 << 10);
        let order = (0..200).flat_map(|n| (0..16).map(move |worker| worker * 600 + n));
        assert!(walk(order, &lists).len() >= 16 * 180);
    }

    #[tokio::test]
    async fn of_large_objects_the_beginning_of_the_next_one() {
        let lists = listed(10, 1 << 30);
        let walks = Walks::default();
        for n in 0..3 {
            walks.arrive(1, &key(n), true, &lists);
        }
        let next = walks.upcoming(1, &key(2), 8 << 20, 64 << 20);
        assert_eq!(next.len(), 1);
        assert_eq!((&next[0].key, next[0].bytes), (&key(3), 8 << 20));
        assert_eq!(walks.upcoming(1, &key(2), 8 << 20, 64 << 20), [], "once");
        assert_eq!(walks.upcoming(1, &key(9), 8 << 20, 64 << 20), []);
    }

    #[tokio::test]
    async fn walks_are_bounded() {
        let lists = listed(10_000, 1);
        let walks = Walks::default();
        for n in 0..1000 {
            walks.arrive(1, &key(n * 10), true, &lists);
        }
        let held = walks.walks.lock();
        assert!(held.walks.len() <= MAX_WALKS);
        assert!(held.walks.iter().all(|w| w.next.len() <= MAX_OBJECTS));
    }
}
