//! What files know of their objects: which version the origin said that they are.
//!
//! Invariant: a hint, as all metadata on disk is. A version that was replaced through this process is not
//! recalled, neither here nor, once the journal has it, by the next process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use store::{ListEntry, ListPage, ListRequest};

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

    /// A page of the objects of a store that are files, and that the origin has said to be so since
    /// `since`: names in order, rolled up as asked for. Goes through all files, which only an outage is
    /// worth. The last name where there are more.
    pub(crate) fn page(
        &self,
        store: u64,
        request: &ListRequest,
        since: SystemTime,
    ) -> (ListPage, Option<String>) {
        let since = since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let (prefix, after) = (request.prefix.as_str(), request.start_after.as_deref());
        let mut found: BTreeMap<String, Option<ListEntry>> = BTreeMap::new();
        let ledger = self.ledger.lock();
        for (_, entry) in ledger.index.iter() {
            let (identity, key) = (&entry.identity, entry.identity.key());
            let Some(rest) = key.strip_prefix(prefix) else { continue };
            if identity.store != store || after.is_some_and(|after| key <= after) {
                continue;
            }
            // Of an object's versions, the one that it is.
            let current = ledger.index.current(store, key);
            if !current.is_some_and(|(now, at)| now == identity && at >= since) {
                continue;
            }
            let rolled = request.delimiter.as_deref().and_then(|delimiter| {
                let end = rest.find(delimiter)? + delimiter.len();
                Some(&key[..prefix.len() + end])
            });
            let name = rolled.unwrap_or(key);
            if found.len() > request.max_keys
                && found.keys().next_back().is_some_and(|l| **l < *name)
            {
                continue;
            }
            let listed = match (rolled, identity.version()) {
                (Some(_), _) => None,
                (None, Some(version)) => {
                    Some(ListEntry { key: version.key.clone(), meta: version.meta.clone() })
                }
                (None, None) => continue,
            };
            found.insert(name.to_owned(), listed);
            if found.len() > request.max_keys + 1 {
                found.pop_last();
            }
        }
        drop(ledger);
        let more = found.len() > request.max_keys;
        if more {
            found.pop_last();
        }
        let last = found.keys().next_back().filter(|_| more).cloned();
        let mut page = ListPage::default();
        for (name, listed) in found {
            match listed {
                Some(entry) => page.entries.push(entry),
                None => page.common_prefixes.push(name),
            }
        }
        (page, last)
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
