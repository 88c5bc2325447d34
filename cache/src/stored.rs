//! The cached store: an origin behind metadata, blocks, fetching and prefetching.
//!
//! Invariant: it is a [`Store`] that passes the same contract as its origin. What was written through
//! it is seen at once by everyone who reads through it; what others write at the origin is seen after
//! `stale_ttl` at the latest. One body is one version.

mod lookup;
mod read;
#[cfg(test)]
mod tests;
mod warm;
mod writes;

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use futures::StreamExt;
use store::{
    Body, Condition, CopyOptions, ETag, Error, ErrorKind, GetOptions, GetResult, ListPage,
    ListRequest, LocalCopy, NoCopy, ObjectKey, ObjectMeta, PartEntry, PartList, PutOptions,
    Residency, Resident, Result, Store, UploadId, UploadList, UploadListRequest, Written,
};
use tokio::time::{Instant, timeout};

use crate::cache::Shared;
use crate::fetch::{Origin, STALL};
use crate::lists::ListCache;
use lookup::STALE_PATIENCE;
pub use warm::Warmed;

/// A bucket, cached. Made by [`crate::Cache::attach`].
///
/// `get` without `if_match` returns attributes, at the price of at most one HEAD per version where
/// nothing else has brought them. `get` with `if_match` returns what attributes are known and asks for
/// none: whoever names a version has asked about it before.
#[derive(Clone)]
pub struct CachedStore {
    shared: Arc<Shared>,
    origin: Arc<Origin>,
    lists: Arc<ListCache>,
}

impl fmt::Debug for CachedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedStore").field("name", &self.origin.name).finish_non_exhaustive()
    }
}

/// How tokens of pages begin that were made of whole files; then comes the last name.
const OF_FILES: &str = "held-by-the-cache:";

/// No key that a person would write has this after a common prefix.
const LAST_CHARACTER: char = '\u{10ffff}';

fn not_found(key: &ObjectKey) -> Error {
    Error::new(ErrorKind::NotFound, format!("no object `{key}`"))
}

impl CachedStore {
    pub(crate) fn new(shared: Arc<Shared>, origin: Arc<Origin>, lists: ListCache) -> Self {
        Self { shared, origin, lists: Arc::new(lists) }
    }

    /// The number under which reports of the cache name it.
    pub fn id(&self) -> u64 {
        self.origin.id
    }

    /// Writes a use of an object into the trace, where there is one. An open on the mount and the read
    /// that follows are two lines; the simulator takes them for one use, as the tier does.
    fn record_use(&self, key: &ObjectKey, size: u64) {
        if let Some(trace) = &self.shared.trace {
            trace.record(&self.origin.name, key.as_str(), size);
        }
    }

    /// While the origin gives no answer: what of a listing is here as whole files, of which the origin was
    /// heard within `stale_if_error` past `stale_ttl`. `None` where nothing is: that nothing is there is
    /// not known.
    fn page_of_files(&self, request: &ListRequest) -> Option<ListPage> {
        let policy = &self.origin.policy;
        let limit = Some(policy.stale_if_error).filter(|limit| !limit.is_zero())?;
        if request.token.is_some() {
            return None;
        }
        let since = SystemTime::now().checked_sub(policy.stale_ttl.saturating_add(limit));
        let since = since.unwrap_or(SystemTime::UNIX_EPOCH);
        let (mut page, last) = self.shared.files.as_ref()?.page(self.origin.id, request, since);
        if page.entries.is_empty() && page.common_prefixes.is_empty() {
            return None;
        }
        page.next = last.map(|last| format!("{OF_FILES}{last}"));
        self.shared.metrics.stale_served.inc();
        tracing::debug!(store = self.origin.name, prefix = request.prefix, "listed what is here");
        Some(page)
    }

    /// The name that it was attached under.
    pub fn name(&self) -> &str {
        &self.origin.name
    }
}

#[async_trait]
impl Store for CachedStore {
    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        let object = self.known(key, true, None).await?;
        Ok(object.meta.clone())
    }

    async fn stat(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        let object = self.known(key, false, None).await?;
        Ok(object.meta.clone())
    }

    async fn get(&self, key: &ObjectKey, options: GetOptions) -> Result<GetResult> {
        self.read(key, &options).await
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        let resumed = resumed(request);
        let request = resumed.as_ref().unwrap_or(request);
        let ttl = self.origin.policy.stale_ttl;
        let epoch = self.origin.meta.ticket();
        let held = self.lists.get(request, epoch);
        if let Some(held) = &held
            && held.age < ttl
        {
            self.shared.metrics.list_hits.inc();
            return Ok((*held.page).clone());
        }
        self.shared.metrics.list_misses.inc();
        let limit = self.origin.policy.stale_if_error;
        let spare = held.filter(|held| !limit.is_zero() && held.age < ttl.saturating_add(limit));
        let asking = ask_page(&self.origin, &self.lists, request, epoch);
        let Some(held) = spare else {
            let answer = asking.await;
            let Err(error) = answer else { return answer };
            let files = Some(request).filter(|_| error.kind().is_outage());
            return files.and_then(|request| self.page_of_files(request)).ok_or(error);
        };
        let answer = if held.backing_off {
            None
        } else {
            // In a task, so that an answer that comes too late for this caller is not lost.
            timeout(STALE_PATIENCE, tokio::spawn(asking)).await.ok().and_then(Result::ok)
        };
        match answer {
            Some(Err(error)) if !error.kind().is_outage() => Err(error),
            Some(Ok(page)) => Ok(page),
            silent => {
                if !held.backing_off {
                    self.lists.back_off(request);
                    tracing::debug!(store = self.origin.name, ?silent, "served an expired listing");
                }
                self.shared.metrics.stale_served.inc();
                Ok((*held.page).clone())
            }
        }
    }

    async fn put(&self, key: &ObjectKey, body: Body, options: PutOptions) -> Result<Written> {
        self.write_object(key, body, options).await
    }

    async fn start_upload(&self, key: &ObjectKey, options: PutOptions) -> Result<UploadId> {
        self.origin.store.start_upload(key, options).await
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u16,
        body: Body,
    ) -> Result<PartEntry> {
        self.origin.store.put_part(key, upload, number, body).await
    }

    async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[(u16, ETag)],
        condition: Condition,
    ) -> Result<Written> {
        let _changed = self.changing(key);
        self.origin.store.complete_upload(key, upload, parts, condition).await
    }

    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        self.origin.store.abort_upload(key, upload).await
    }

    async fn list_parts(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        after: Option<u16>,
        max_parts: usize,
    ) -> Result<PartList> {
        self.origin.store.list_parts(key, upload, after, max_parts).await
    }

    async fn list_uploads(&self, request: &UploadListRequest) -> Result<UploadList> {
        self.origin.store.list_uploads(request).await
    }

    async fn copy(
        &self,
        from: &ObjectKey,
        to: &ObjectKey,
        options: CopyOptions,
    ) -> Result<Written> {
        let _changed = self.changing(to);
        self.origin.store.copy(from, to, options).await
    }

    async fn delete(&self, key: &ObjectKey, if_match: Option<&ETag>) -> Result<()> {
        let changing = self.changing(key);
        self.origin.store.delete(key, if_match).await?;
        changing.is_gone();
        Ok(())
    }
}

#[async_trait]
impl Residency for CachedStore {
    async fn residency(&self, key: &ObjectKey, etag: &ETag, size: u64) -> Resident {
        let object = self.version_of(key, etag, size);
        Resident { bytes: self.resident_bytes(&object, false).await, of: size }
    }

    async fn local_copy(
        &self,
        key: &ObjectKey,
        etag: &ETag,
        size: u64,
    ) -> std::result::Result<LocalCopy, NoCopy> {
        self.record_use(key, size);
        let Some(files) = &self.shared.files else { return Err(NoCopy::Off) };
        let object = self.version_of(key, etag, size);
        files.copy(&object).map_err(|(reason, again)| {
            if again {
                self.complete(object);
            }
            reason
        })
    }
}

/// What follows a page of files, with whoever answers by then.
fn resumed(request: &ListRequest) -> Option<ListRequest> {
    let last = request.token.as_deref()?.strip_prefix(OF_FILES)?;
    // Of a common prefix everything has been listed.
    let delimiter = request.delimiter.as_deref();
    let rolled = delimiter.is_some_and(|delimiter| {
        last.strip_prefix(request.prefix.as_str()).is_some_and(|rest| rest.ends_with(delimiter))
    });
    let after = if rolled { format!("{last}{LAST_CHARACTER}") } else { last.to_owned() };
    Some(ListRequest { start_after: Some(after), token: None, ..request.clone() })
}

/// Asks for a page and remembers it and what is on it.
fn ask_page(
    origin: &Arc<Origin>,
    lists: &Arc<ListCache>,
    request: &ListRequest,
    epoch: u64,
) -> impl Future<Output = Result<ListPage>> + Send + 'static {
    let (origin, lists, request) = (Arc::clone(origin), Arc::clone(lists), request.clone());
    async move {
        let asked = Instant::now();
        let answer = timeout(STALL, origin.store.list(&request)).await.unwrap_or_else(|_| {
            let context =
                format!("origin did not answer a LIST of `{}` within 60 s", request.prefix);
            Err(Error::new(ErrorKind::Timeout, context))
        });
        let page = answer?;
        for entry in &page.entries {
            origin.meta.learn(&entry.key, epoch, asked, Some(entry.meta.clone()));
        }
        lists.put(&request, epoch, asked, Arc::new(page.clone()));
        Ok(page)
    }
}

/// A body of pieces that are all here.
fn ready(pieces: Vec<bytes::Bytes>) -> store::ByteStream {
    futures::stream::iter(pieces.into_iter().map(Ok)).boxed()
}
