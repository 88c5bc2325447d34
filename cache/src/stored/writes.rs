//! Writes: through to the origin, then everyone here knows.
//!
//! Invariant: when a write ends, in whatever way, nothing that was known of the object before is
//! believed any more; a write that is dropped halfway counts as ended with an unknown outcome.

use std::cell::Cell;

use store::{Body, ObjectKey, ObjectMeta, PutOptions, Result, Written};

use super::CachedStore;
use crate::fetch::Origin;
use crate::metadata::Outcome;

/// A write in progress. Dropping it tells the metadata cache.
pub(super) struct Changing<'a> {
    origin: &'a Origin,
    key: &'a ObjectKey,
    since: u64,
    now: Cell<Outcome>,
}

impl Changing<'_> {
    pub(super) fn is_gone(&self) {
        self.now.set(Outcome::Gone);
    }

    fn is(&self, meta: ObjectMeta) {
        self.now.set(Outcome::Is(meta));
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.origin.meta.wrote(self.key, self.since, self.now.take());
    }
}

impl CachedStore {
    pub(super) fn changing<'a>(&'a self, key: &'a ObjectKey) -> Changing<'a> {
        let since = self.origin.meta.ticket();
        Changing { origin: &self.origin, key, since, now: Cell::default() }
    }

    pub(super) async fn write_object(
        &self,
        key: &ObjectKey,
        body: Body,
        options: PutOptions,
    ) -> Result<Written> {
        let mut changing = Some(self.changing(key));
        let size = body.size;
        let written = self.origin.store.put(key, body, options).await?;
        // Attributes are left for the origin to say: some add to what they are given. A size without a
        // time would be half of the truth, so such an origin is asked again.
        if let (Some(changing), Some(last_modified)) = (changing.take(), written.last_modified) {
            let etag = written.etag.clone();
            changing.is(ObjectMeta { size, etag, last_modified, attributes: None });
        }
        Ok(written)
    }
}
