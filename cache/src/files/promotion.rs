//! Blocks that are here already and belong into a part.
//!
//! Invariant: nothing is fetched, and nothing is copied unless the part is complete with it: what the
//! block tier holds of an object that stays incomplete is not written twice.

use std::sync::{Arc, Weak};

use super::part::Part;
use super::{FileTier, Place, State};
use crate::blocks::BlockCache;
use crate::fetch::FILL_PATIENCE;
use crate::version::Version;

impl FileTier {
    /// Where else blocks may be.
    pub(crate) fn set_source(&self, source: Weak<dyn BlockCache>) {
        _ = self.source.set(source);
    }

    /// Completes an object's part from blocks that are here, if it can be. Ends when they are handed
    /// over to be written.
    pub(crate) async fn gather(self: &Arc<Self>, object: &Arc<Version>) {
        let part = {
            let ledger = self.ledger.lock();
            match ledger.index.get(object).map(|entry| &entry.state) {
                Some(State::Part(part)) => Arc::clone(part),
                _ => return,
            }
        };
        self.promote(&part).await;
    }

    pub(super) async fn promote(self: &Arc<Self>, part: &Arc<Part>) {
        let Some(source) = self.source.get().and_then(Weak::upgrade) else { return };
        // Of a sequential reader's object the end is missing, which one look tells.
        let Some(last) = part.last_absent() else { return };
        let here = |index| {
            let key = part.key(index);
            source.in_memory(&key) || source.on_disk(&key)
        };
        if part.is_dropped() || !here(last) || !part.begins_promotion() {
            return;
        }
        let absent = part.absent();
        if absent.iter().all(|index| here(*index)) {
            for index in absent {
                let key = part.key(index);
                let range = part.range(index);
                let data = match source.get(&key) {
                    Some(data) => Some(data),
                    None => source.load(&key, (range.end - range.start) as usize).await,
                };
                let Some(data) = data else { break };
                self.metrics.file_promoted.inc_by(data.len() as u64);
                let place = Place { part: Arc::clone(part), index, job: self.busy.begin() };
                Arc::clone(self).put(place, data, FILL_PATIENCE).await;
            }
        }
        part.ends_promotion();
    }
}
