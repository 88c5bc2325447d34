//! Runs the admission policy of the file tier on traces, beside an optimum, an LRU and an S3-FIFO.
//!
//! Invariant: what runs is the policy that the file tier asks, not a model of it. It refuses to do
//! I/O on an origin or a cache: a trace is names and sizes.

mod generate;
mod recorded;
mod recorder;
mod reference;

#[cfg(test)]
pub(crate) use generate::Random;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use crate::admission::{Admission, Item, SetId, SetReport, Verdict};
use crate::config::Retention;

pub use generate::generated;
pub use recorded::{TraceError, recorded};
pub use recorder::Recorder;

/// One object of a trace.
#[derive(Debug, Clone, Copy)]
struct Object {
    set: SetId,
    item: Item,
    bytes: u64,
    /// Whose hits are counted together: a job.
    job: u8,
}

/// Which objects are used, in order, and the cache that it is tried on.
#[derive(Debug, Clone)]
pub struct Trace {
    name: String,
    objects: Vec<Object>,
    uses: Vec<u32>,
    /// Hits are counted from this use on.
    counted_from: usize,
    capacity_bytes: u64,
    jobs: Vec<&'static str>,
}

impl Trace {
    /// What the trace is.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of the cache.
    pub fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    /// The same trace on another cache.
    #[must_use]
    pub fn with_capacity(self, bytes: u64) -> Self {
        Self { capacity_bytes: bytes, ..self }
    }

    /// How many different objects it has.
    pub fn objects(&self) -> usize {
        self.objects.len()
    }

    /// Bytes of all of them.
    pub fn bytes(&self) -> u64 {
        self.objects.iter().map(|object| object.bytes).sum()
    }

    /// How many uses it has.
    pub fn uses(&self) -> usize {
        self.uses.len()
    }
}

/// Hits of uses.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct HitRate {
    /// Uses of a resident object.
    pub hits: u64,
    /// Uses.
    pub uses: u64,
    /// Bytes of the hits.
    pub hit_bytes: u64,
    /// Bytes of the uses.
    pub bytes: u64,
}

impl HitRate {
    fn count(&mut self, is_hit: bool, bytes: u64) {
        self.hits += u64::from(is_hit);
        self.hit_bytes += if is_hit { bytes } else { 0 };
        self.uses += 1;
        self.bytes += bytes;
    }

    /// The share of the uses that were hits, 0 to 1.
    pub fn of_uses(&self) -> f64 {
        if self.uses == 0 { 0.0 } else { self.hits as f64 / self.uses as f64 }
    }

    /// The share of the bytes that were hits, 0 to 1.
    pub fn of_bytes(&self) -> f64 {
        if self.bytes == 0 { 0.0 } else { self.hit_bytes as f64 / self.bytes as f64 }
    }
}

/// What a policy reached on a trace.
#[derive(Debug, Clone, Default)]
pub struct Reached {
    /// All jobs.
    pub all: HitRate,
    /// Each job.
    pub jobs: Vec<(&'static str, HitRate)>,
    /// Objects written to the cache, of all uses.
    pub written_objects: u64,
}

/// Four policies on one trace.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What the trace is.
    pub trace: String,
    /// Different objects.
    pub objects: usize,
    /// Uses, of which the first ones may only warm the cache.
    pub uses: usize,
    /// The cache, as a share of the bytes of all objects.
    pub cache_share: f64,
    /// Evicts what is used last in the future and takes nothing that is used later still (Belady). With
    /// objects of several sizes, the best known approximation.
    pub optimum: Reached,
    /// Least recently used.
    pub lru: Reached,
    /// S3-FIFO as published.
    pub s3fifo: Reached,
    /// The policy of this cache.
    pub ours: Reached,
    /// What our policy thought of each set at the end.
    pub sets: Vec<SetReport>,
    /// Nodes, sets and samples that our policy looked at, for each use.
    pub steps_per_use: f64,
}

/// A policy that is asked for one object after another.
trait Policy {
    /// Uses an object; true where it was resident.
    fn hit(&mut self, number: u32, object: &Object) -> bool;
    /// Objects that were made resident so far.
    fn written(&self) -> u64;
}

/// Tries all four on a trace.
pub fn run(trace: &Trace) -> Outcome {
    run_pinned(trace, Retention::Auto)
}

/// The same, with every store pinned.
pub fn run_pinned(trace: &Trace, retention: Retention) -> Outcome {
    let mut ours = Ours::new(trace, retention);
    let reached = play(trace, &mut ours);
    Outcome {
        trace: trace.name.clone(),
        objects: trace.objects(),
        uses: trace.uses(),
        cache_share: trace.capacity_bytes as f64 / trace.bytes().max(1) as f64,
        optimum: play(trace, &mut reference::Optimum::new(trace)),
        lru: play(trace, &mut reference::Lru::new(trace.capacity_bytes)),
        s3fifo: play(trace, &mut reference::S3Fifo::new(trace.capacity_bytes)),
        ours: reached,
        sets: ours.policy.report(),
        steps_per_use: ours.policy.steps() as f64 / trace.uses().max(1) as f64,
    }
}

fn play(trace: &Trace, policy: &mut dyn Policy) -> Reached {
    let mut reached = Reached {
        jobs: trace.jobs.iter().map(|name| (*name, HitRate::default())).collect(),
        ..Reached::default()
    };
    for (at, number) in trace.uses.iter().enumerate() {
        let object = &trace.objects[*number as usize];
        let is_hit = policy.hit(*number, object);
        if at >= trace.counted_from {
            reached.all.count(is_hit, object.bytes);
            if let Some((_, rate)) = reached.jobs.get_mut(usize::from(object.job)) {
                rate.count(is_hit, object.bytes);
            }
        }
    }
    reached.written_objects = policy.written();
    reached
}

/// The policy of this cache behind a tier that writes at once.
struct Ours {
    policy: Admission,
    capacity_bytes: u64,
    resident: HashMap<Item, u64>,
    used_bytes: u64,
    written: u64,
}

impl Ours {
    fn new(trace: &Trace, retention: Retention) -> Self {
        let mut policy = Admission::new(trace.capacity_bytes);
        let mut pinned = std::collections::HashSet::new();
        for object in &trace.objects {
            if retention != Retention::Auto && pinned.insert(object.set.store_id()) {
                policy.pin(object.set.store_id(), retention);
            }
        }
        Self {
            policy,
            capacity_bytes: trace.capacity_bytes,
            resident: HashMap::new(),
            used_bytes: 0,
            written: 0,
        }
    }

    fn gone(&mut self, item: Item) {
        if let Some(bytes) = self.resident.remove(&item) {
            self.used_bytes -= bytes;
        }
    }
}

impl Policy for Ours {
    fn hit(&mut self, _number: u32, object: &Object) -> bool {
        self.policy.access(object.set, object.item, object.bytes);
        if self.resident.contains_key(&object.item) {
            return true;
        }
        let free_bytes = self.capacity_bytes.saturating_sub(self.used_bytes);
        let verdict = self.policy.admit(object.set, object.item, object.bytes, free_bytes);
        if verdict == Verdict::Refuse {
            return false;
        }
        while self.used_bytes + object.bytes > self.capacity_bytes {
            let Some(victim) = self.policy.victim() else { return false };
            self.gone(victim);
        }
        self.policy.inserted(object.set, object.item, object.bytes);
        self.resident.insert(object.item, object.bytes);
        self.used_bytes += object.bytes;
        self.written += 1;
        false
    }

    fn written(&self) -> u64 {
        self.written
    }
}
