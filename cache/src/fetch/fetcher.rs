//! The fetcher: which blocks are on their way, and the tasks that bring them.
//!
//! Invariant: at most one flight for each block. A block is in the cache before its flight leaves the
//! table, and the cache is looked at under the table's lock, so no block is fetched because it had
//! just arrived. A version, length or range other than asked for is never admitted. Errors are shared
//! by those who waited; the next who asks starts anew.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use store::{ByteRange, Error, ErrorKind, GetOptions, GetResult, ObjectKey, ReaderId, Store};
use tokio::time::{Instant, timeout};

use super::assembly::{Fetched, Run, STALL};
use super::flight::{Flight, Landing};
use super::gate::{Gate, Permit, Priority, Urgency};
use crate::blocks::BlockCache;
use crate::buffers::Buffers;
use crate::governor::Governor;
use crate::metadata::{Answer, Known, MetadataCache};
use crate::metrics::Metrics;
use crate::prefetch::Ahead;
use crate::span::Units;
use crate::version::{BlockKey, Version};
use crate::{CacheConfig, StorePolicy};

/// Reads of the disk tier at once: what keeps an NVMe busy; each holds two copies of a block.
const DISK_READS: usize = 16;

/// Bytes of a piece of a long body that comes from a local file: what fits into a processor's cache
/// beside what the kernel copies it to, so that memory is read once and not three times.
pub(crate) const PIECE_BYTES: usize = 256 << 10;

/// How long a read of the disk tier may take before the origin is asked instead: much longer than any
/// healthy disk, shorter than what readers bear.
pub(crate) const DISK_READ_LIMIT: Duration = Duration::from_secs(2);

/// How often a body that was cut, short, long or stuck is asked for again, from where it broke off,
/// before its readers get an error. Every block that arrives starts the count anew.
const RETRIES: u32 = 1;

/// Pause before asking again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// An attached store, as far as fetching needs it.
#[derive(Debug)]
pub(crate) struct Origin {
    /// Hash of its identity.
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) store: Arc<dyn Store>,
    /// Requests to it at once: one origin that hangs takes none from the others.
    pub(crate) gate: Arc<Gate>,
    pub(crate) meta: MetadataCache,
    pub(crate) policy: StorePolicy,
}

/// A block that is here, or on its way.
#[derive(Debug)]
pub(crate) enum Wanted {
    Ready(Bytes),
    Flight(Flight<Fetched>),
}

/// Blocks that someone wants.
#[derive(Debug)]
pub(crate) struct Want<'a> {
    pub(crate) origin: &'a Arc<Origin>,
    pub(crate) object: &'a Arc<Version>,
    /// Numbers of blocks, or of grains.
    pub(crate) blocks: Range<u32>,
    pub(crate) priority: Priority,
    /// Counts against the budget of prefetching, and is watched for being read.
    pub(crate) ahead: bool,
    /// Whatever is here by now came from the origin for this reader.
    pub(crate) cold: bool,
}

/// A first GET of an object of which nothing is known.
#[derive(Debug, Clone)]
pub(crate) struct Probe {
    /// Begins at a block or grain, and ends at one or past the object.
    pub(crate) range: Range<u64>,
}

#[derive(Debug)]
struct InFlight {
    flight: Flight<Fetched>,
    urgency: Urgency,
    /// Where its run waits for its turn.
    gate: Arc<Gate>,
    from_disk: bool,
}

impl InFlight {
    /// A reader waits for it now; where none did before, its gate is to look again.
    fn demand(&self, promoted: &mut Vec<Arc<Gate>>) {
        if self.urgency.demand() && !promoted.iter().any(|gate| Arc::ptr_eq(gate, &self.gate)) {
            promoted.push(Arc::clone(&self.gate));
        }
    }
}

#[derive(Debug)]
pub(crate) struct Fetcher {
    blocks: Arc<dyn BlockCache>,
    flights: Mutex<HashMap<BlockKey, InFlight>>,
    disk_reads: Arc<Gate>,
    ahead: Ahead,
    governor: Arc<Governor>,
    metrics: Metrics,
    units: Units,
    /// Where whole blocks are assembled.
    buffers: Arc<Buffers>,
    /// Where pieces of local files are read to.
    pieces: Arc<Buffers>,
    max_fetch_bytes: u64,
    fill_patience: Duration,
}

impl Fetcher {
    pub(crate) fn new(
        config: &CacheConfig,
        blocks: Arc<dyn BlockCache>,
        governor: Arc<Governor>,
        metrics: Metrics,
    ) -> Arc<Self> {
        Arc::new(Self {
            blocks,
            flights: Mutex::default(),
            disk_reads: Gate::new(DISK_READS),
            ahead: Ahead::new(config, Arc::clone(&governor), metrics.clone()),
            governor,
            metrics,
            units: Units::new(config.block_bytes, config.grain_bytes),
            buffers: Buffers::new(config.block_bytes as usize),
            pieces: Buffers::new(PIECE_BYTES),
            max_fetch_bytes: config.max_fetch_bytes,
            fill_patience: config.fill_patience,
        })
    }

    /// How objects are cut.
    pub(crate) fn units(&self) -> Units {
        self.units
    }

    pub(crate) fn pieces(&self) -> &Arc<Buffers> {
        &self.pieces
    }

    pub(crate) fn buffers(&self) -> &Arc<Buffers> {
        &self.buffers
    }

    /// A turn at the disk, for those who read from it without the block tier.
    pub(crate) async fn disk_turn(&self, urgency: &Urgency) -> Permit {
        self.disk_reads.enter(urgency).await
    }

    pub(crate) fn fill_patience(&self) -> Duration {
        self.fill_patience
    }

    pub(crate) fn blocks(&self) -> &Arc<dyn BlockCache> {
        &self.blocks
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// A block in memory, counted as a reader's.
    fn near(&self, key: &BlockKey, cold: bool) -> Option<Bytes> {
        let data = self.blocks.get(key)?;
        self.count_near(std::iter::once(key), cold);
        Some(data)
    }

    /// Counts blocks that a reader took from memory. `cold` says that it waited for the origin to say
    /// what the object is, and that the blocks may have come along with the answer.
    pub(crate) fn count_near<'a>(&self, keys: impl Iterator<Item = &'a BlockKey>, cold: bool) {
        for key in keys {
            if cold {
                self.metrics.misses.inc();
            } else {
                self.metrics.hits.inc();
                self.metrics.memory_hits.inc();
            }
            self.ahead.used(key);
        }
    }

    /// The blocks, each here or on its way, in order. Of blocks that are fetched ahead, those in memory
    /// are left out, and those past the budget. Not for grains.
    pub(crate) fn want(self: &Arc<Self>, want: &Want<'_>) -> Vec<Wanted> {
        self.seek(want).into_iter().map(|(_, wanted)| wanted).collect()
    }

    /// As [`Self::want`], with the index of what is here or comes: for a grain whose block is near, that
    /// is the block.
    pub(crate) fn seek(self: &Arc<Self>, want: &Want<'_>) -> Vec<(u32, Wanted)> {
        let demand = want.priority == Priority::Demand;
        let size = want.object.meta.size;
        let mut out = Vec::with_capacity(want.blocks.len());
        let mut runs: Vec<Run> = Vec::new();
        let mut open_bytes = 0;
        // A flight may be one of another store that has the same identity.
        let mut promoted: Vec<Arc<Gate>> = Vec::new();
        {
            let mut flights = self.flights.lock();
            for index in want.blocks.clone() {
                let mut key = BlockKey::new(want.object, index);
                if key.is_grain() {
                    let block = BlockKey::new(want.object, self.units.block_of(index));
                    if flights.contains_key(&block)
                        || self.blocks.in_memory(&block)
                        || self.blocks.on_disk(&block)
                    {
                        key = block;
                    }
                }
                let index = key.index;
                if let Some(found) = flights.get(&key) {
                    if demand {
                        found.demand(&mut promoted);
                        self.metrics.joins.inc();
                        self.count(found.from_disk);
                        self.ahead.used(&key);
                    }
                    out.push((index, Wanted::Flight(found.flight.clone())));
                    open_bytes = 0;
                    continue;
                }
                if want.ahead && self.blocks.in_memory(&key) {
                    open_bytes = 0;
                    continue;
                }
                let here = if demand { self.near(&key, want.cold) } else { self.blocks.get(&key) };
                if let Some(data) = here {
                    out.push((index, Wanted::Ready(data)));
                    open_bytes = 0;
                    continue;
                }
                let held = self.units.range(index, size);
                let len = held.end - held.start;
                let charge = if want.ahead {
                    let Some(charge) = self.ahead.charge(&key, len) else { break };
                    Some(charge)
                } else {
                    None
                };
                let from_disk = self.blocks.on_disk(&key);
                let (landing, flight) = Flight::take_off();
                if demand {
                    self.count(from_disk);
                }
                let joins =
                    !from_disk && open_bytes > 0 && open_bytes + len <= self.max_fetch_bytes;
                if !joins {
                    let urgency = Urgency::new(want.priority);
                    let mut run = Run::new(self, want.origin, want.object, urgency);
                    if !from_disk && !key.is_grain() {
                        run.lead = self.lead(&flights, &key, demand.then_some(&mut promoted));
                    }
                    runs.push(run);
                    open_bytes = 0;
                }
                let run = runs.last_mut().expect("one was pushed where none was joined");
                run.blocks.push_back((index, Some(landing)));
                run.charges.extend(charge);
                let urgency = run.urgency.clone();
                open_bytes = if from_disk { 0 } else { open_bytes + len };
                out.push((index, Wanted::Flight(flight.clone())));
                let gate = Arc::clone(&want.origin.gate);
                flights.insert(key, InFlight { flight, urgency, gate, from_disk });
            }
        }
        for run in runs {
            tokio::spawn(bring(run));
        }
        if !promoted.is_empty() {
            self.disk_reads.grant();
        }
        for gate in promoted {
            gate.grant();
        }
        out
    }

    /// The grains at the front of a block that need not be asked for again, short of all of them.
    fn lead(
        &self,
        flights: &HashMap<BlockKey, InFlight>,
        block: &BlockKey,
        mut promoted: Option<&mut Vec<Arc<Gate>>>,
    ) -> Vec<Wanted> {
        let size = block.object.meta.size;
        let Some(first) = self.units.first_grain(block.index, size) else { return Vec::new() };
        let end = self.units.range(block.index, size).end;
        let mut lead = Vec::new();
        for index in first.. {
            if self.units.range(index, size).end >= end {
                break;
            }
            let key = BlockKey::new(&block.object, index);
            if let Some(found) = flights.get(&key) {
                if let Some(promoted) = &mut promoted {
                    found.demand(promoted);
                }
                lead.push(Wanted::Flight(found.flight.clone()));
            } else if let Some(data) = self.blocks.get(&key) {
                lead.push(Wanted::Ready(data));
            } else {
                break;
            }
        }
        lead
    }

    fn count(&self, from_disk: bool) {
        if from_disk {
            self.metrics.hits.inc();
            self.metrics.disk_hits.inc();
        } else {
            self.metrics.misses.inc();
        }
    }

    /// Asks for the first bytes of an object of which nothing is known, and learns from the answer
    /// what it is. Its blocks are on their way before this returns.
    pub(crate) async fn probe(
        self: &Arc<Self>,
        origin: &Arc<Origin>,
        key: &ObjectKey,
        probe: Probe,
        ticket: u64,
    ) -> Answer {
        let urgency = Urgency::new(Priority::Demand);
        let permit = origin.gate.enter(&urgency).await;
        let lease = self.governor.demand(probe.range.end - probe.range.start).await;
        let asked = Instant::now();
        let got = match self.get(origin, key, probe.range.clone(), None).await {
            Ok(got) => got,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(origin.meta.learn(key, ticket, asked, None));
            }
            Err(error) => return Err(error),
        };
        let expected = probe.range.start..probe.range.end.min(got.meta.size);
        if got.range != expected {
            return Err(wrong_range(key, &got.range, &expected));
        }
        let known = origin.meta.learn(key, ticket, asked, Some(got.meta));
        let Known::Present(object) = &known else { return Ok(known) };
        let Some(numbers) = self.units.numbers(&expected, object.meta.size) else {
            return Ok(known);
        };
        let mut blocks = VecDeque::with_capacity(numbers.len());
        {
            let mut flights = self.flights.lock();
            for index in numbers {
                let key = BlockKey::new(object, index);
                if flights.contains_key(&key) {
                    blocks.push_back((index, None));
                    continue;
                }
                let (landing, flight) = Flight::take_off();
                let urgency = urgency.clone();
                let gate = Arc::clone(&origin.gate);
                flights.insert(key, InFlight { flight, urgency, gate, from_disk: false });
                blocks.push_back((index, Some(landing)));
            }
        }
        let mut run = Run::new(self, origin, object, urgency);
        run.blocks = blocks;
        run.opened = Some((permit, got.body));
        run.lease = Some(lease);
        tokio::spawn(bring(run));
        Ok(known)
    }

    async fn get(
        &self,
        origin: &Origin,
        key: &ObjectKey,
        range: Range<u64>,
        if_match: Option<store::ETag>,
    ) -> Result<GetResult, Error> {
        self.metrics.fetches.inc();
        let range = ByteRange::Bounded(range.start, range.end);
        let options = GetOptions { range, if_match, reader: ReaderId::NONE };
        timeout(STALL, origin.store.get(key, options)).await.unwrap_or_else(|_| {
            let context = format!("origin did not answer a GET of `{key}` within 60 s");
            Err(Error::new(ErrorKind::Timeout, context))
        })
    }

    /// Takes a block off the table and tells those who wait for it.
    pub(crate) fn land(&self, key: &BlockKey, landing: Landing<Fetched>, result: Fetched) {
        self.flights.lock().remove(key);
        landing.land(result);
    }
}

fn wrong_range(key: &ObjectKey, got: &Range<u64>, asked: &Range<u64>) -> Error {
    let context = format!("origin sent bytes {got:?} of `{key}`, expected {asked:?}");
    Error::new(ErrorKind::Corrupted, context)
}

/// Brings the blocks of a run from disk, or from the origin.
async fn bring(mut run: Run) {
    if run.opened.is_none() && run.blocks.len() == 1 {
        from_disk(&mut run).await;
    }
    if run.blocks.is_empty() {
        return;
    }
    let fetcher = Arc::clone(&run.fetcher);
    let (permit, mut opened) = match run.opened.take() {
        Some((permit, body)) => (permit, Some(body)),
        None => (run.origin.gate.enter(&run.urgency).await, None),
    };
    // What is fetched ahead has its share of memory already.
    if run.charges.is_empty()
        && run.lease.is_none()
        && let Some(missing) = run.range()
    {
        run.lease = Some(fetcher.governor.demand(missing.end - missing.start).await);
    }
    fetcher.metrics.fetching.inc();
    let mut tries = 0;
    while let Some(missing) = run.range() {
        let before = run.blocks.len();
        let result = match opened.take() {
            Some(body) => run.feed(body).await.map_err(|e| (e, true)),
            None => pull(&mut run, missing).await,
        };
        let Err((error, in_body)) = result else { break };
        if run.blocks.len() < before {
            tries = 0;
        }
        // What the origin refused, it will refuse again; the backend has retried what it may.
        if !in_body || tries >= RETRIES {
            fetcher.metrics.fetch_failures.with_label_values(&[error.kind().name()]).inc();
            tracing::debug!(key = %run.object.key, store = run.origin.name, %error, "fetch failed");
            run.fail(&error);
            break;
        }
        tries += 1;
        fetcher.metrics.fetch_retries.inc();
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    fetcher.metrics.fetching.dec();
    drop(permit);
}

async fn from_disk(run: &mut Run) {
    let fetcher = Arc::clone(&run.fetcher);
    let Some(&(index, _)) = run.blocks.front() else { return };
    let key = BlockKey::new(&run.object, index);
    if !fetcher.blocks.on_disk(&key) {
        return;
    }
    let held = fetcher.units.range(index, run.object.meta.size);
    let data = {
        let _permit = fetcher.disk_reads.enter(&run.urgency).await;
        let load = fetcher.blocks.load(&key, (held.end - held.start) as usize);
        timeout(DISK_READ_LIMIT, load).await.unwrap_or_else(|_| {
            tracing::debug!(key = %run.object.key, "the disk did not give a block within 2 s");
            None
        })
    };
    if let Some(data) = data
        && let Some((_, Some(landing))) = run.blocks.pop_front()
    {
        fetcher.land(&key, landing, Ok(data));
    }
}

/// Asks for what is missing of a run. The flag of an error says that it came within the body.
async fn pull(run: &mut Run, missing: Range<u64>) -> Result<(), (Error, bool)> {
    let fetcher = Arc::clone(&run.fetcher);
    let origin = Arc::clone(&run.origin);
    let key = run.object.key.clone();
    let (ticket, asked) = (origin.meta.ticket(), Instant::now());
    let etag = run.object.etag().clone();
    let got = fetcher
        .get(&origin, &key, missing.clone(), Some(etag.clone()))
        .await
        .map_err(|e| (e, false))?;
    if got.meta.etag != etag || got.meta.size != run.object.meta.size {
        let context = format!("`{key}` changed at the origin: it is {} now", got.meta.etag);
        return Err((Error::new(ErrorKind::PreconditionFailed, context), false));
    }
    if got.range != missing {
        return Err((wrong_range(&key, &got.range, &missing), true));
    }
    origin.meta.learn(&key, ticket, asked, Some(got.meta));
    run.feed(got.body).await.map_err(|e| (e, true))
}
