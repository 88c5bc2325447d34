//! Warming: objects into the cache ahead of their readers.
//!
//! Invariant: what a report calls resident was looked up in the cache after everything was fetched;
//! an object that is not resident is counted and, up to a bound, named with its reason. What is
//! resident already is not fetched again. It refuses to hold an unbounded list of keys.

mod jobs;
mod pace;
mod plan;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures::StreamExt;
use serde::{Deserialize, Serialize};
use store::{ETag, ErrorKind, ObjectKey, ObjectMeta, Residency, Store, StoreExt};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub(crate) use jobs::{JobState, JobStatus, Jobs};
pub(crate) use plan::Plan;
use plan::Target;

/// Most objects of one job: about 200 bytes each are held to verify them at the end, 1 GB in all.
const MAX_OBJECTS: u64 = 5_000_000;

/// Objects that a report names one by one; the others are counted.
const MAX_NAMED: usize = 100;

/// What to warm, as it is sent to a running sidecar.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct WarmRequest {
    /// Buckets of the endpoint or backends of the file; none means all.
    pub(crate) buckets: Vec<String>,
    /// Only keys that begin with this.
    pub(crate) prefix: Option<String>,
    /// Only keys that match this.
    pub(crate) glob: Option<String>,
    /// Exactly these objects: bucket and key.
    pub(crate) objects: Option<Vec<(String, String)>>,
    /// Leave out objects with more bytes.
    pub(crate) max_size_bytes: Option<u64>,
    /// Fetch at most this many bytes a second.
    pub(crate) rate_bytes_per_second: Option<u64>,
    /// Objects fetched at once, 1 to 256.
    pub(crate) parallel: Option<u16>,
}

/// How far a job is.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    listed_objects: AtomicU64,
    listed_bytes: AtomicU64,
    done_objects: AtomicU64,
    done_bytes: AtomicU64,
    found_bytes: AtomicU64,
    listing: AtomicU64,
}

/// How far a job is, at one moment.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct ProgressNow {
    /// Objects found so far that belong to the job.
    pub(crate) listed_objects: u64,
    /// Their bytes.
    pub(crate) listed_bytes: u64,
    /// Objects that were looked at.
    pub(crate) done_objects: u64,
    /// Their bytes.
    pub(crate) done_bytes: u64,
    /// Bytes of those that were in the cache already.
    pub(crate) already_resident_bytes: u64,
    /// True while there may be more objects.
    pub(crate) listing: bool,
}

impl Progress {
    /// Where it is now.
    pub(crate) fn now(&self) -> ProgressNow {
        ProgressNow {
            listed_objects: self.listed_objects.load(Relaxed),
            listed_bytes: self.listed_bytes.load(Relaxed),
            done_objects: self.done_objects.load(Relaxed),
            done_bytes: self.done_bytes.load(Relaxed),
            already_resident_bytes: self.found_bytes.load(Relaxed),
            listing: self.listing.load(Relaxed) > 0,
        }
    }
}

/// An object that is not resident, and why.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NotResident {
    /// Its bucket.
    pub(crate) bucket: String,
    /// Its key.
    pub(crate) key: String,
    /// Why.
    pub(crate) why: String,
}

/// What came of a job.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Objects that were asked for.
    pub(crate) objects: u64,
    /// Their bytes, as far as their sizes are known.
    pub(crate) bytes: u64,
    /// Objects that are in the cache whole, looked up at the end.
    pub(crate) resident_objects: u64,
    /// Their bytes.
    pub(crate) resident_bytes: u64,
    /// Bytes that were in the cache before.
    pub(crate) already_resident_bytes: u64,
    /// Objects that are not.
    pub(crate) not_resident_objects: u64,
    /// The first of them, by name.
    pub(crate) not_resident: Vec<NotResident>,
    /// Objects that `max_size` left out.
    pub(crate) left_out_objects: u64,
    /// What kept the job from seeing everything: a listing that failed, an interruption.
    pub(crate) incomplete: Vec<String>,
    /// How long it took, in seconds.
    pub(crate) seconds: f64,
}

impl Report {
    /// True when everything that was asked for is resident.
    pub(crate) fn is_complete(&self) -> bool {
        self.not_resident_objects == 0 && self.incomplete.is_empty()
    }
}

/// One object of a job, kept to be verified at the end.
struct Wanted {
    target: usize,
    key: ObjectKey,
    etag: ETag,
    size: u64,
}

/// What tasks of one job share.
struct Shared {
    progress: Arc<Progress>,
    stop: CancellationToken,
    outcome: Mutex<Outcome>,
}

#[derive(Default)]
struct Outcome {
    wanted: Vec<Wanted>,
    report: Report,
    /// Objects that could not be made resident, by target and key, as many as `wanted` has; the
    /// first [`MAX_NAMED`] with a reason.
    reasons: BTreeMap<(usize, ObjectKey), String>,
}

impl Shared {
    fn interrupted(&self) -> bool {
        self.stop.is_cancelled()
    }

    fn outcome(&self) -> std::sync::MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another version of an object is wanted.
    fn replace(&self, target: usize, key: &ObjectKey, meta: &ObjectMeta) {
        let mut outcome = self.outcome();
        // The latest entries are the likeliest.
        let mut found = outcome.wanted.iter_mut().rev();
        if let Some(wanted) = found.find(|w| w.target == target && w.key == *key) {
            wanted.etag = meta.etag.clone();
            wanted.size = meta.size;
        }
    }

    fn unknown(&self, target: &Target, key: &ObjectKey, why: String) {
        let report = &mut self.outcome().report;
        report.objects += 1;
        report.not_resident_objects += 1;
        if report.not_resident.len() < MAX_NAMED {
            report.not_resident.push(NotResident {
                bucket: target.name.to_string(),
                key: key.to_string(),
                why,
            });
        }
    }
}

/// Warms everything that a plan names, then looks what is resident. Ends early, with a report that
/// says so, when `stop` is cancelled.
pub(crate) async fn warm(plan: Plan, progress: Arc<Progress>, stop: CancellationToken) -> Report {
    let begun = Instant::now();
    let plan = Arc::new(plan);
    let shared = Arc::new(Shared { progress, stop: stop.clone(), outcome: Mutex::default() });
    let permits = Arc::new(Semaphore::new(plan.parallel));
    let mut tasks = JoinSet::new();
    shared.progress.listing.store(1, Relaxed);
    let mut finder =
        Finder { plan: &plan, shared: &shared, permits: &permits, stop: &stop, tasks: &mut tasks };
    match &plan.objects {
        Some(objects) => finder.named(objects).await,
        None => finder.listed().await,
    }
    shared.progress.listing.store(0, Relaxed);
    while tasks.join_next().await.is_some() {}
    if stop.is_cancelled() {
        shared.outcome().report.incomplete.push("interrupted".to_owned());
    }
    let mut report = verify(&plan, &shared).await;
    report.already_resident_bytes = shared.progress.found_bytes.load(Relaxed);
    report.seconds = begun.elapsed().as_secs_f64();
    report
}

/// The part of a job that finds objects and starts their fetches.
struct Finder<'a> {
    plan: &'a Arc<Plan>,
    shared: &'a Arc<Shared>,
    permits: &'a Arc<Semaphore>,
    stop: &'a CancellationToken,
    tasks: &'a mut JoinSet<()>,
}

impl Finder<'_> {
    async fn listed(&mut self) {
        for index in 0..self.plan.targets.len() {
            let target = self.plan.targets[index].clone();
            let mut entries = target.store.walk(&self.plan.prefix);
            loop {
                let next = tokio::select! {
                    () = self.stop.cancelled() => return,
                    next = entries.next() => next,
                };
                match next {
                    None => break,
                    Some(Ok(entry)) if self.plan.wants(&entry.key) => {
                        if !self.object(index, entry.key, entry.meta).await {
                            return;
                        }
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => {
                        let what = format!("listing of `{}`: {error}", target.name);
                        self.shared.outcome().report.incomplete.push(what);
                        break;
                    }
                }
            }
        }
    }

    async fn named(&mut self, objects: &[(usize, ObjectKey)]) {
        // Metadata of named objects is asked for side by side, as their bytes are.
        let plan = Arc::clone(self.plan);
        let stop = self.stop.clone();
        let mut heads = futures::stream::iter(objects.iter().cloned())
            .map(|(index, key)| {
                let store = Arc::clone(&plan.targets[index].store);
                async move {
                    let meta = store.stat(&key).await;
                    (index, key, meta)
                }
            })
            .buffer_unordered(self.plan.parallel);
        loop {
            let next = tokio::select! {
                () = stop.cancelled() => return,
                next = heads.next() => next,
            };
            match next {
                None => return,
                Some((index, key, Ok(meta))) => {
                    if !self.object(index, key, meta).await {
                        return;
                    }
                }
                Some((index, key, Err(error))) => {
                    self.shared.unknown(&self.plan.targets[index], &key, error.to_string());
                }
            }
        }
    }

    /// Starts one object; false when the job must end.
    async fn object(&mut self, target: usize, key: ObjectKey, meta: ObjectMeta) -> bool {
        let size = meta.size;
        {
            let mut outcome = self.shared.outcome();
            if size > self.plan.max_size_bytes {
                outcome.report.left_out_objects += 1;
                return true;
            }
            if outcome.wanted.len() as u64 >= MAX_OBJECTS {
                let what = format!("more than {MAX_OBJECTS} objects; warm by prefix, one by one");
                outcome.report.incomplete.push(what);
                return false;
            }
            let etag = meta.etag.clone();
            outcome.wanted.push(Wanted { target, key: key.clone(), etag, size });
        }
        let progress = &self.shared.progress;
        progress.listed_objects.fetch_add(1, Relaxed);
        progress.listed_bytes.fetch_add(size, Relaxed);
        let permit = tokio::select! {
            () = self.stop.cancelled() => return false,
            permit = Arc::clone(self.permits).acquire_owned() => permit,
        };
        // Finished tasks are taken out, so that the set stays as small as the permits.
        while self.tasks.try_join_next().is_some() {}
        let (plan, shared) = (Arc::clone(self.plan), Arc::clone(self.shared));
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let _permit = permit;
            tokio::select! {
                () = stop.cancelled() => {}
                () = one(&plan, &shared, target, key, meta) => {}
            }
        });
        true
    }
}

async fn one(plan: &Plan, shared: &Shared, target: usize, key: ObjectKey, meta: ObjectMeta) {
    let store = &plan.targets[target].store;
    let size = meta.size;
    let held = store.residency(&key, &meta.etag, size).await.bytes.min(size);
    plan.pace.wait(size - held).await;
    let mut warmed = store.warm(&key, Some(meta)).await;
    if warmed.as_ref().is_err_and(|e| e.kind() == ErrorKind::PreconditionFailed) {
        // It changed since it was listed: the version that is there now is the one to have.
        warmed = match store.stat(&key).await {
            Ok(meta) => {
                shared.replace(target, &key, &meta);
                store.warm(&key, Some(meta)).await
            }
            Err(error) => Err(error),
        };
    }
    let why = match warmed {
        Ok(warmed) => {
            let found = warmed.size.saturating_sub(warmed.fetched_bytes);
            shared.progress.found_bytes.fetch_add(found, Relaxed);
            warmed.reason_if_not
        }
        Err(error) => Some(error.to_string()),
    };
    if let Some(why) = why {
        let mut outcome = shared.outcome();
        // Named or not, it is counted.
        let why = if outcome.reasons.len() < MAX_NAMED { why } else { String::new() };
        outcome.reasons.insert((target, key), why);
    }
    shared.progress.done_objects.fetch_add(1, Relaxed);
    shared.progress.done_bytes.fetch_add(size, Relaxed);
}

/// Looks up each object once more: eviction may have taken what an earlier fetch brought.
async fn verify(plan: &Plan, shared: &Shared) -> Report {
    let (wanted, mut report, mut reasons) = {
        let mut outcome = shared.outcome();
        let outcome = &mut *outcome;
        (
            std::mem::take(&mut outcome.wanted),
            std::mem::take(&mut outcome.report),
            std::mem::take(&mut outcome.reasons),
        )
    };
    for Wanted { target, key, etag, size } in wanted {
        let bucket = &plan.targets[target];
        let held = bucket.store.residency(&key, &etag, size).await;
        report.objects += 1;
        report.bytes += size;
        let reason = reasons.remove(&(target, key.clone()));
        if held.bytes >= size && reason.is_none() {
            report.resident_objects += 1;
            report.resident_bytes += size;
            continue;
        }
        report.not_resident_objects += 1;
        if report.not_resident.len() < MAX_NAMED {
            let why = reason.filter(|why| !why.is_empty()).unwrap_or_else(|| {
                let held = held.bytes;
                if shared.interrupted() {
                    format!("interrupted; {held} of {size} bytes are in the cache")
                } else {
                    format!("evicted since by others: {held} of {size} bytes are in the cache")
                }
            });
            let (bucket, key) = (bucket.name.to_string(), key.to_string());
            report.not_resident.push(NotResident { bucket, key, why });
        }
    }
    report
}
