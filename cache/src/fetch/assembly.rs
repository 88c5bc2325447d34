//! A run of neighbouring blocks that one GET brings, cut out of its body.
//!
//! Invariant: a block is passed on when all of its bytes are there and not before; the last one waits
//! for the body to end, so that a body of the wrong length leaves nothing of a short run behind.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use store::{ByteStream, Error, ErrorKind};
use tokio::time::{Instant, timeout};

use super::flight::Landing;
use super::gate::{Permit, Urgency};
use super::{Fetcher, Origin, Wanted};
use crate::buffers::Buffer;
use crate::governor::Lease;
use crate::prefetch::Charge;
use crate::version::{BlockKey, Version};

/// How long an origin may send nothing. Backends have time limits of their own, which are shorter;
/// this one keeps a store without them from holding readers for ever.
pub(crate) const STALL: Duration = Duration::from_mins(1);

/// How long a fetch that no reader waits for waits for the disk.
pub(crate) const FILL_PATIENCE: Duration = Duration::from_mins(1);

/// How often a fetch that waits for the disk looks whether a reader has come.
const READER_LOOK: Duration = Duration::from_millis(100);

/// How long a block that has all of its other bytes waits for grains that others are fetching, before
/// it is fetched without them. They were asked for earlier; only a gate of one permit keeps them longer.
const LEAD_PATIENCE: Duration = Duration::from_secs(1);

/// What a fetch of one block ends in.
pub(crate) type Fetched = Result<Bytes, Error>;

/// Blocks that one task brings. Whatever is left when it is dropped lands as an error.
pub(crate) struct Run {
    pub(crate) fetcher: Arc<Fetcher>,
    pub(crate) origin: Arc<Origin>,
    pub(crate) object: Arc<Version>,
    /// Consecutive blocks; `None` for one that another flight brings.
    pub(crate) blocks: VecDeque<(u32, Option<Landing<Fetched>>)>,
    pub(crate) urgency: Urgency,
    /// A GET that was already answered, with the permit it runs under.
    pub(crate) opened: Option<(Permit, ByteStream)>,
    /// What of it counts as fetched ahead; held for the budget.
    pub(crate) charges: Vec<Charge>,
    /// Memory for what readers wait for.
    pub(crate) lease: Option<Lease>,
    /// Grains at the front of the first block, which are here or come of themselves: short of all of
    /// them, so that there is something to ask for.
    pub(crate) lead: Vec<Wanted>,
    /// How long the disk was waited for while a reader waited.
    waited: Duration,
}

impl Run {
    /// A run of no blocks yet.
    pub(crate) fn new(
        fetcher: &Arc<Fetcher>,
        origin: &Arc<Origin>,
        object: &Arc<Version>,
        urgency: Urgency,
    ) -> Self {
        Self {
            fetcher: Arc::clone(fetcher),
            origin: Arc::clone(origin),
            object: Arc::clone(object),
            blocks: VecDeque::new(),
            urgency,
            opened: None,
            charges: Vec::new(),
            lease: None,
            lead: Vec::new(),
            waited: Duration::ZERO,
        }
    }

    fn len_of(&self, index: u32) -> usize {
        let held = self.fetcher.units().range(index, self.object.meta.size);
        (held.end - held.start) as usize
    }

    /// Bytes of the first block that are not asked for.
    fn lead_bytes(&self) -> usize {
        self.lead.len() * self.fetcher.units().grain_bytes() as usize
    }

    /// The bytes that are still missing.
    pub(crate) fn range(&self) -> Option<std::ops::Range<u64>> {
        let (first, last) = (self.blocks.front()?.0, self.blocks.back()?.0);
        let of = |index| self.fetcher.units().range(index, self.object.meta.size);
        Some(of(first).start + self.lead_bytes() as u64..of(last).end)
    }

    /// Keeps the next block, tells those who wait, then waits for the disk to take it.
    async fn pass_on(&mut self, data: Bytes) {
        let Some((index, landing)) = self.blocks.pop_front() else { return };
        let Some(landing) = landing else { return };
        let key = BlockKey::new(&self.object, index);
        let blocks = self.fetcher.blocks();
        let hurried = self.urgency.is_demand();
        let patience = if hurried { self.patience() } else { FILL_PATIENCE };
        let bytes = data.len() as u64;
        let spill = blocks.insert(key.clone(), data.clone(), patience);
        if spill.is_some() {
            self.origin.meta.keep(&self.object);
        }
        self.fetcher.land(&key, landing, Ok(data));
        if let Some(spill) = spill {
            self.wait_for_disk(spill, hurried).await;
        }
        // It is in a tier now, or with those who asked for it.
        if let Some(lease) = &mut self.lease {
            lease.shrink(bytes);
        }
    }

    /// What is left of the time that a reader of this run may be kept waiting for the disk.
    fn patience(&self) -> Duration {
        self.fetcher.fill_patience().saturating_sub(self.waited)
    }

    /// `hurried` says that the spill itself ends in time for a reader.
    async fn wait_for_disk(&mut self, mut spill: BoxFuture<'static, ()>, hurried: bool) {
        let mut since = Instant::now();
        if hurried {
            spill.await;
        } else {
            while timeout(READER_LOOK, &mut spill).await.is_err() {
                if self.urgency.is_demand() {
                    since = Instant::now();
                    if timeout(self.patience(), spill).await.is_err() {
                        self.fetcher.metrics().dropped.with_label_values(&["slow_disk"]).inc();
                    }
                    break;
                }
            }
        }
        if self.urgency.is_demand() {
            self.waited += since.elapsed();
        }
    }

    /// Takes blocks from a body that has exactly the bytes of [`Self::range`].
    pub(crate) async fn feed(&mut self, mut body: ByteStream) -> Result<(), Error> {
        let mut partial: Option<Buffer> = None;
        let mut filled = 0;
        let mut last: Option<Bytes> = None;
        loop {
            let next = timeout(STALL, body.next()).await.map_err(|_| {
                let context = format!("origin sent nothing of `{}` for 60 s", self.object.key);
                Error::new(ErrorKind::Timeout, context)
            })?;
            let Some(piece) = next else { break };
            let mut piece = piece?;
            while !piece.is_empty() {
                let Some(&(index, _)) = self.blocks.front().filter(|_| last.is_none()) else {
                    return Err(self.wrong_length("more"));
                };
                let wanted = self.len_of(index);
                let buffer = partial.get_or_insert_with(|| {
                    filled = self.lead_bytes();
                    self.fetcher.buffers().take(wanted)
                });
                let part = piece.split_to(piece.len().min(wanted - filled));
                buffer[filled..filled + part.len()].copy_from_slice(&part);
                filled += part.len();
                if filled == wanted
                    && let Some(mut buffer) = partial.take()
                {
                    let led = self.lead_bytes();
                    self.follow_lead(&mut buffer).await?;
                    self.fetcher.metrics().fetched_bytes.inc_by((wanted - led) as u64);
                    let data = buffer.freeze(wanted);
                    if self.blocks.len() == 1 {
                        last = Some(data);
                    } else {
                        self.pass_on(data).await;
                    }
                }
            }
        }
        match last {
            Some(data) => {
                self.pass_on(data).await;
                Ok(())
            }
            None => Err(self.wrong_length("fewer")),
        }
    }

    /// Fills the front of the first block from its grains. An error means that it is to be fetched
    /// without them.
    async fn follow_lead(&mut self, block: &mut [u8]) -> Result<(), Error> {
        let mut at = 0;
        for wanted in std::mem::take(&mut self.lead) {
            let data = match wanted {
                Wanted::Ready(data) => Some(data),
                Wanted::Flight(flight) => match timeout(LEAD_PATIENCE, flight.wait()).await {
                    Ok(Some(Ok(data))) => Some(data),
                    _ => None,
                },
            };
            let end = at + self.fetcher.units().grain_bytes() as usize;
            let Some(data) = data.filter(|data| data.len() == end - at) else {
                let context = format!("a piece of a block of `{}` did not come", self.object.key);
                return Err(Error::new(ErrorKind::Unavailable, context));
            };
            block[at..end].copy_from_slice(&data);
            at = end;
        }
        Ok(())
    }

    fn wrong_length(&self, which: &str) -> Error {
        let context = format!("origin sent {which} bytes of `{}` than asked for", self.object.key);
        Error::new(ErrorKind::Corrupted, context)
    }

    /// Tells everyone who still waits.
    pub(crate) fn fail(&mut self, error: &Error) {
        while let Some((index, landing)) = self.blocks.pop_front() {
            if let Some(landing) = landing {
                let key = BlockKey::new(&self.object, index);
                self.fetcher.land(&key, landing, Err(error.clone()));
            }
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.blocks.is_empty() {
            self.fail(&Error::new(
                ErrorKind::Internal,
                "the task that fetched a block ended early",
            ));
        }
    }
}
