//! What ours is measured against: the optimum, an LRU, and S3-FIFO.
//!
//! Invariant: none of them shares code with the policy of the cache, and none ever holds more bytes
//! than it was given.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::{Object, Policy, Trace};

/// Knows the future: keeps what is used again soonest (Belady, 1966), and does not take what is used
/// again later than all that is resident.
pub(super) struct Optimum {
    /// For each use, when its object is used next.
    next: Vec<usize>,
    at: usize,
    capacity_bytes: u64,
    used_bytes: u64,
    /// Residents by next use.
    order: BTreeSet<(usize, u32)>,
    resident: HashMap<u32, (usize, u64)>,
    written: u64,
}

impl Optimum {
    pub(super) fn new(trace: &Trace) -> Self {
        let mut next = vec![usize::MAX; trace.uses.len()];
        let mut seen = HashMap::new();
        for (at, number) in trace.uses.iter().enumerate().rev() {
            if let Some(later) = seen.insert(*number, at) {
                next[at] = later;
            }
        }
        Self {
            next,
            at: 0,
            capacity_bytes: trace.capacity_bytes,
            used_bytes: 0,
            order: BTreeSet::new(),
            resident: HashMap::new(),
            written: 0,
        }
    }

    fn forget(&mut self, number: u32) {
        if let Some((next, bytes)) = self.resident.remove(&number) {
            self.order.remove(&(next, number));
            self.used_bytes -= bytes;
        }
    }
}

impl Policy for Optimum {
    fn hit(&mut self, number: u32, object: &Object) -> bool {
        let next = self.next[self.at];
        self.at += 1;
        let was = self.resident.contains_key(&number);
        self.forget(number);
        if next == usize::MAX || object.bytes > self.capacity_bytes {
            return was;
        }
        while self.used_bytes + object.bytes > self.capacity_bytes {
            let Some((last, victim)) = self.order.last().copied() else { return was };
            if last < next {
                return was;
            }
            self.forget(victim);
        }
        self.order.insert((next, number));
        self.resident.insert(number, (next, object.bytes));
        self.used_bytes += object.bytes;
        self.written += u64::from(!was);
        was
    }

    fn written(&self) -> u64 {
        self.written
    }
}

/// Evicts what was used longest ago.
pub(super) struct Lru {
    capacity_bytes: u64,
    used_bytes: u64,
    turn: u64,
    order: BTreeMap<u64, (u32, u64)>,
    resident: HashMap<u32, u64>,
    written: u64,
}

impl Lru {
    pub(super) fn new(capacity_bytes: u64) -> Self {
        Self {
            capacity_bytes,
            used_bytes: 0,
            turn: 0,
            order: BTreeMap::new(),
            resident: HashMap::new(),
            written: 0,
        }
    }
}

impl Policy for Lru {
    fn hit(&mut self, number: u32, object: &Object) -> bool {
        self.turn += 1;
        if let Some(turn) = self.resident.insert(number, self.turn) {
            self.order.remove(&turn);
            self.order.insert(self.turn, (number, object.bytes));
            return true;
        }
        if object.bytes > self.capacity_bytes {
            self.resident.remove(&number);
            return false;
        }
        while self.used_bytes + object.bytes > self.capacity_bytes {
            let Some((_, (victim, bytes))) = self.order.pop_first() else { break };
            self.resident.remove(&victim);
            self.used_bytes -= bytes;
        }
        self.order.insert(self.turn, (number, object.bytes));
        self.used_bytes += object.bytes;
        self.written += 1;
        false
    }

    fn written(&self) -> u64 {
        self.written
    }
}

/// S3-FIFO, from the description in Yang, Zhang, Qiu, Yue and Rashmi, "FIFO queues are all you need
/// for cache eviction" (SOSP 2023), algorithm 1: a small queue of 10 %, a main queue of 90 %, a ghost
/// queue of as many objects as fit into the main one, and two bits a object.
pub(super) struct S3Fifo {
    capacity_bytes: u64,
    small: VecDeque<u32>,
    small_bytes: u64,
    main: VecDeque<u32>,
    main_bytes: u64,
    /// Bytes and frequency of what is resident.
    resident: HashMap<u32, (u64, u8)>,
    ghost: VecDeque<(u32, u64, u64)>,
    ghosts: HashMap<u32, u64>,
    ghost_bytes: u64,
    turn: u64,
    written: u64,
}

impl S3Fifo {
    pub(super) fn new(capacity_bytes: u64) -> Self {
        Self {
            capacity_bytes,
            small: VecDeque::new(),
            small_bytes: 0,
            main: VecDeque::new(),
            main_bytes: 0,
            resident: HashMap::new(),
            ghost: VecDeque::new(),
            ghosts: HashMap::new(),
            ghost_bytes: 0,
            turn: 0,
            written: 0,
        }
    }

    fn evict(&mut self) {
        if self.small_bytes >= self.capacity_bytes / 10 || self.main.is_empty() {
            self.evict_small();
        } else {
            self.evict_main();
        }
    }

    fn evict_small(&mut self) {
        while let Some(tail) = self.small.pop_front() {
            let Some(entry) = self.resident.get_mut(&tail) else { continue };
            let bytes = entry.0;
            self.small_bytes -= bytes;
            if entry.1 > 1 {
                // "with its access bits cleared during the move"
                entry.1 = 0;
                self.main.push_back(tail);
                self.main_bytes += bytes;
                if self.main_bytes > self.capacity_bytes - self.capacity_bytes / 10 {
                    self.evict_main();
                }
            } else {
                self.resident.remove(&tail);
                self.remember(tail, bytes);
                return;
            }
        }
    }

    fn evict_main(&mut self) {
        while let Some(tail) = self.main.pop_front() {
            let Some(entry) = self.resident.get_mut(&tail) else { continue };
            if entry.1 > 0 {
                entry.1 -= 1;
                self.main.push_back(tail);
            } else {
                self.main_bytes -= entry.0;
                self.resident.remove(&tail);
                return;
            }
        }
    }

    fn remember(&mut self, number: u32, bytes: u64) {
        self.turn += 1;
        self.ghosts.insert(number, self.turn);
        self.ghost.push_back((number, self.turn, bytes));
        self.ghost_bytes += bytes;
        while self.ghost_bytes > self.capacity_bytes - self.capacity_bytes / 10 {
            let Some((old, turn, bytes)) = self.ghost.pop_front() else { break };
            self.ghost_bytes -= bytes;
            if self.ghosts.get(&old) == Some(&turn) {
                self.ghosts.remove(&old);
            }
        }
    }
}

impl Policy for S3Fifo {
    fn hit(&mut self, number: u32, object: &Object) -> bool {
        if let Some(entry) = self.resident.get_mut(&number) {
            entry.1 = (entry.1 + 1).min(3);
            return true;
        }
        if object.bytes > self.capacity_bytes {
            return false;
        }
        while self.small_bytes + self.main_bytes + object.bytes > self.capacity_bytes {
            self.evict();
        }
        if self.ghosts.remove(&number).is_some() {
            self.main.push_back(number);
            self.main_bytes += object.bytes;
        } else {
            self.small.push_back(number);
            self.small_bytes += object.bytes;
        }
        self.resident.insert(number, (object.bytes, 0));
        self.written += 1;
        false
    }

    fn written(&self) -> u64 {
        self.written
    }
}

#[cfg(test)]
mod tests {
    use super::super::generate::objects;
    use super::*;

    fn hits(policy: &mut dyn Policy, uses: &[u32]) -> Vec<bool> {
        let objects = objects(1, "set/", 10, |_| 1);
        uses.iter().map(|n| policy.hit(*n, &objects[*n as usize])).collect()
    }

    #[test]
    fn lru_evicts_what_was_used_longest_ago() {
        let got = hits(&mut Lru::new(2), &[0, 1, 0, 2, 0, 1]);
        assert_eq!(got, [false, false, true, false, true, false]);
    }

    #[test]
    fn the_optimum_knows_the_future() {
        let uses = vec![0, 1, 2, 0, 1, 2, 0];
        let trace = Trace {
            name: String::new(),
            objects: objects(1, "set/", 3, |_| 1),
            uses: uses.clone(),
            counted_from: 0,
            capacity_bytes: 2,
            jobs: Vec::new(),
        };
        // 2 is not taken; then 1 makes room for it after its last use.
        let got = hits(&mut Optimum::new(&trace), &uses);
        assert_eq!(got, [false, false, false, true, true, false, true]);
    }

    #[test]
    fn s3fifo_filters_what_is_used_once_and_remembers_ghosts() {
        let mut policy = S3Fifo::new(10);
        let objects = objects(1, "set/", 100, |_| 1);
        let mut hit = |n: u32| policy.hit(n, &objects[n as usize]);
        // Two uses after the first make 0 worth the main queue.
        assert_eq!([hit(0), hit(0), hit(0)], [false, true, true]);
        for n in 1..40 {
            assert!(!hit(n));
        }
        assert!(hit(0), "a scan does not evict what was used twice");
        assert!(!hit(35 - 5), "a scan's objects leave");
        assert!(policy.main.contains(&30), "a ghost comes back into the main queue");
        assert!(policy.small_bytes + policy.main_bytes <= 10);
    }
}
