//! What an object is, asking the origin as little as possible.
//!
//! Invariant: within `stale_ttl` nothing is asked; past it one question per object is in flight, shared
//! by everyone; of an immutable object none. An origin that gives no answer is not asked again for a
//! moment, and what is known goes on being used for `stale_if_error`. Whoever has something usable in
//! hand waits for an answer for a moment only.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use store::{ETag, Error, ErrorKind, ObjectKey, ObjectMeta, Result};
use tokio::time::{Instant, timeout};

use super::{CachedStore, not_found};
use crate::fetch::{DISK_READ_LIMIT, Flight, Origin, Probe, STALL};
use crate::metadata::{Answer, Known, Peek};
use crate::version::{BlockKey, Version};
use crate::{Metrics, blocks};

/// How long an answer is waited for by those who hold something that may be used without it. Longer
/// than a slow origin takes, shorter than a kernel's or a client's patience.
pub(super) const STALE_PATIENCE: Duration = Duration::from_secs(3);

impl CachedStore {
    /// A version that is only a name: what its blocks are found under.
    pub(super) fn version_of(&self, key: &ObjectKey, etag: &ETag, size: u64) -> Arc<Version> {
        let meta = ObjectMeta {
            size,
            etag: etag.clone(),
            last_modified: SystemTime::UNIX_EPOCH,
            attributes: None,
        };
        Arc::new(Version::new(self.origin.id, key.clone(), meta))
    }

    /// The current version of an object, with attributes where they are wanted and can be had. Where
    /// nothing is known and `probe` is given, the first bytes are fetched along with the metadata.
    pub(super) async fn known(
        &self,
        key: &ObjectKey,
        attributes: bool,
        probe: Option<Probe>,
    ) -> Result<Arc<Version>> {
        let mut peek = self.origin.meta.peek(key);
        if peek.is_none() && self.recall(key).await {
            peek = self.origin.meta.peek(key);
        }
        let metrics = &self.shared.metrics;
        if let Some(Peek { known, fresh, usable, backing_off, .. }) = &peek {
            match known {
                Known::Absent if *fresh => {
                    metrics.metadata_hits.inc();
                    return Err(not_found(key));
                }
                Known::Present(object) => {
                    let complete = !attributes || object.meta.attributes.is_some();
                    if *fresh && complete {
                        metrics.metadata_hits.inc();
                        return Ok(Arc::clone(object));
                    }
                    if *backing_off && (*usable || *fresh) {
                        metrics.stale_served.inc();
                        return Ok(Arc::clone(object));
                    }
                }
                Known::Absent => {}
            }
        }
        metrics.metadata_misses.inc();
        let probe =
            probe.filter(|_| !matches!(&peek, Some(p) if matches!(p.known, Known::Present(_))));
        let probed = probe.is_some();
        let spare = matches!(
            &peek,
            Some(Peek { known: Known::Present(_), fresh, usable, .. }) if *fresh || *usable
        );
        let mut answer = self.ask_within(key, probe, spare).await;
        if let Ok(Known::Present(object)) = &answer
            && attributes
            && object.meta.attributes.is_none()
            && !probed
        {
            // This joined a question of someone who wanted only the bytes.
            let object = Arc::clone(object);
            answer = match self.ask_within(key, None, spare).await {
                // What has just been said is newer than anything held from before.
                Err(error) if spare && error.kind().is_outage() => Ok(Known::Present(object)),
                other => other,
            };
        }
        match (answer, peek) {
            (Ok(Known::Present(object)), _) => Ok(object),
            (Ok(Known::Absent), _) => Err(not_found(key)),
            (Err(error), Some(Peek { known: Known::Present(object), fresh, usable, .. }))
                if error.kind().is_outage() && (fresh || usable) =>
            {
                self.origin.meta.back_off(key);
                metrics.stale_served.inc();
                tracing::debug!(store = self.origin.name, %key, %error, "served from expired metadata");
                Ok(object)
            }
            (Err(error), _) => Err(error),
        }
    }

    /// What the origin says of an object now; where it gives no answer, what was `held`, which stays
    /// known to others.
    pub(super) async fn confirmed(
        &self,
        key: &ObjectKey,
        held: Arc<Version>,
    ) -> Result<Arc<Version>> {
        if self.origin.meta.peek(key).is_some_and(|peek| peek.backing_off) {
            return Ok(held);
        }
        match self.ask_within(key, None, true).await {
            Ok(Known::Present(object)) => Ok(object),
            Ok(Known::Absent) => Err(not_found(key)),
            Err(error) if error.kind().is_outage() => {
                self.origin.meta.back_off(key);
                Ok(held)
            }
            Err(error) => Err(error),
        }
    }

    /// As [`Self::ask`]; who has something to `spare` waits for a moment only. The question goes on, and
    /// its answer is remembered.
    async fn ask_within(&self, key: &ObjectKey, probe: Option<Probe>, spare: bool) -> Answer {
        if !spare {
            return self.ask(key, probe).await;
        }
        timeout(STALE_PATIENCE, self.ask(key, probe)).await.unwrap_or_else(|_| {
            let context = format!("origin did not say what `{key}` is within 3 s");
            Err(Error::new(ErrorKind::Timeout, context))
        })
    }

    /// Asks the origin, or joins who is asking.
    async fn ask(&self, key: &ObjectKey, probe: Option<Probe>) -> Answer {
        let flight = self.origin.meta.question(key, |ticket| {
            let (landing, flight) = Flight::take_off();
            let origin = Arc::clone(&self.origin);
            let fetcher = Arc::clone(&self.shared.fetcher);
            let metrics = self.shared.metrics.clone();
            let key = key.clone();
            tokio::spawn(async move {
                let answer = match probe {
                    None => head(&origin, &key, ticket, &metrics).await,
                    Some(probe) => match fetcher.probe(&origin, &key, probe, ticket).await {
                        // An empty object, or a range past the end: only a HEAD says which.
                        Err(error) if error.kind() == ErrorKind::InvalidRange => {
                            head(&origin, &key, ticket, &metrics).await
                        }
                        other => other,
                    },
                };
                origin.meta.answered(&key, ticket);
                landing.land(answer);
            });
            flight
        });
        flight.wait().await.unwrap_or_else(|| {
            Err(Error::new(ErrorKind::Internal, "the task that asked for metadata ended early"))
        })
    }

    /// Takes what an earlier process knew of an object from disk.
    async fn recall(&self, key: &ObjectKey) -> bool {
        let at = blocks::metadata_key(self.origin.id, key);
        if !self.shared.blocks.on_disk(&at) {
            return false;
        }
        let ticket = self.origin.meta.ticket();
        // A disk that hangs is no reason not to ask.
        let recalled = timeout(DISK_READ_LIMIT, self.shared.blocks.recall(&at)).await;
        let Ok(Some(kept)) = recalled else { return false };
        let age = SystemTime::now().duration_since(kept.confirmed).unwrap_or_default();
        // Whatever wrote since then, this process does not know of it: it is expired from the start.
        let age = age.max(self.origin.policy.stale_ttl);
        let immutable = self.origin.policy.immutable.holds(key.as_str());
        let now = Instant::now();
        let Some(asked) = now.checked_sub(age).or(immutable.then_some(now)) else { return false };
        self.origin.meta.recalled(key, ticket, asked, kept.meta);
        true
    }

    /// The first bytes to ask for of an object of which nothing is known: whole blocks around the
    /// range, or a look around where it is short, for the object may be large. `None` where the range
    /// does not say where it begins.
    pub(super) fn probe_for(&self, range: store::ByteRange) -> Option<Probe> {
        let block = self.shared.config.block_bytes;
        let most = self.shared.config.max_fetch_bytes / block * block;
        let (start, end) = match range {
            store::ByteRange::Full => (0, u64::MAX),
            store::ByteRange::Bounded(start, end) if start < end => (start, end),
            store::ByteRange::From(start) => (start, u64::MAX),
            store::ByteRange::Bounded(..) | store::ByteRange::Suffix(_) => return None,
        };
        let units = self.shared.fetcher.units();
        if units.is_small(end - start) {
            return Some(Probe { range: units.look(&(start..end)) });
        }
        let start = start / block * block;
        let end = end.min(start.checked_add(most)?);
        let end = end.checked_next_multiple_of(block)?;
        Some(Probe { range: start..end })
    }
}

async fn head(origin: &Origin, key: &ObjectKey, ticket: u64, metrics: &Metrics) -> Answer {
    let asked = Instant::now();
    let before = origin.meta.peek(key).map(|p| p.known);
    let answer = timeout(STALL, origin.store.head(key)).await.unwrap_or_else(|_| {
        let context = format!("origin did not answer a HEAD of `{key}` within 60 s");
        Err(Error::new(ErrorKind::Timeout, context))
    });
    let (result, answer) = match answer {
        Ok(meta) => {
            let same = matches!(&before, Some(Known::Present(v)) if *v.etag() == meta.etag);
            let etag = meta.etag.clone();
            let known = origin.meta.learn(key, ticket, asked, Some(meta));
            origin.meta.renew(key, &etag);
            (if same { "same" } else { "changed" }, Ok(known))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            ("gone", Ok(origin.meta.learn(key, ticket, asked, None)))
        }
        Err(error) if error.kind().is_outage() => ("outage", Err(error)),
        Err(error) => ("error", Err(error)),
    };
    if before.is_some() {
        metrics.revalidations.with_label_values(&[result]).inc();
    }
    answer
}

/// The blocks of a version, as keys.
pub(super) fn keys(
    object: &Arc<Version>,
    blocks: std::ops::Range<u32>,
) -> impl Iterator<Item = BlockKey> {
    blocks.map(|index| BlockKey::new(object, index))
}
