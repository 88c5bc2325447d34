//! What files know of their objects: which version the origin said that they are.
//!
//! Invariant: a hint, as all metadata on disk is. A version that was replaced through this process is not
//! recalled, neither here nor, once the journal has it, by the next process.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::FileTier;
use super::journal::Record;
use crate::blocks::Remembered;
use crate::version::BlockKey;

impl FileTier {
    /// What an object was when the origin was last asked, where it is a file. `key` is that of its
    /// metadata.
    pub(crate) fn recall(&self, key: &BlockKey) -> Option<Remembered> {
        let ledger = self.ledger.lock();
        let (identity, confirmed) =
            ledger.index.current(key.object.store, key.object.key.as_str())?;
        let confirmed = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(confirmed))?;
        Some(Remembered { meta: identity.version()?.meta.clone(), confirmed })
    }

    /// True where [`Self::recall`] has something to say.
    pub(crate) fn recalls(&self, key: &BlockKey) -> bool {
        let ledger = self.ledger.lock();
        ledger.index.current(key.object.store, key.object.key.as_str()).is_some()
    }

    /// The origin has said what an object is.
    pub(crate) fn confirm(&self, key: &BlockKey, what: &Remembered) {
        let since = what.confirmed.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (store, name) = (key.object.store, key.object.key.as_str());
        self.ledger.lock().index.confirm(store, name, what.meta.etag.as_str(), since.as_secs());
    }

    /// An object is something else now. The journal is told by another thread.
    pub(crate) fn unconfirm(self: &Arc<Self>, key: &BlockKey) {
        let (store, name) = (key.object.store, key.object.key.as_str());
        let Some((id, unique)) = self.ledger.lock().index.unconfirm(store, name) else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (tier, job) = (Arc::clone(self), self.busy.begin());
        drop(runtime.spawn_blocking(move || {
            let record = Record::Current { id, unique, confirmed: 0 };
            if let Err(error) = tier.journal.lock().append(&record) {
                tracing::debug!(%error, "a replaced object could not be noted in the journal");
            }
            drop(job);
        }));
    }
}
