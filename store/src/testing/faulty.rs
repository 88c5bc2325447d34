//! A store that fails on demand, and counts what it is asked.
//!
//! Invariant: without a fault it is its inner store. Faults are taken in the order in which they
//! were queued, one per matching call.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;

use crate::{
    Body, Condition, CopyOptions, ETag, Error, ErrorKind, GetOptions, GetResult, ListPage,
    ListRequest, ObjectKey, ObjectMeta, PartEntry, PartList, PutOptions, Result, Store, UploadId,
    UploadList, UploadListRequest, Written,
};

/// The calls that can be counted and failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // They are named as in `Store`.
pub enum Operation {
    Head,
    Get,
    List,
    Put,
    StartUpload,
    PutPart,
    CompleteUpload,
    AbortUpload,
    ListParts,
    ListUploads,
    Copy,
    Delete,
}

/// What goes wrong with one call.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The call starts after this time.
    Delay(Duration),
    /// The call fails at once.
    Fail(ErrorKind),
    /// The call never returns; dropping it is the only way out.
    Hang,
    /// `get` only: the body fails with [`ErrorKind::Unavailable`] after so many bytes.
    CutAfter(usize),
    /// `get` only: the body ends without an error after so many bytes.
    EndAfter(usize),
    /// `get` only: the body stops for ever after so many bytes.
    HangAfter(usize),
    /// `get` and `head`: the metadata carries this tag instead of the true one.
    WrongETag(ETag),
    /// `get` only: each piece of the body comes after this time.
    SlowBody(Duration),
}

/// How often each operation was called, and how many bytes `get` delivered.
#[derive(Debug, Default)]
pub struct Calls {
    counts: Mutex<HashMap<Operation, u64>>,
    bytes: AtomicU64,
}

impl Calls {
    /// Calls of one operation so far.
    pub fn of(&self, operation: Operation) -> u64 {
        self.counts.lock().get(&operation).copied().unwrap_or(0)
    }

    /// Calls of all operations so far.
    pub fn total(&self) -> u64 {
        self.counts.lock().values().sum()
    }

    /// Bytes that bodies of `get` have yielded so far.
    pub fn bytes_read(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Forgets everything.
    pub fn reset(&self) {
        self.counts.lock().clear();
        self.bytes.store(0, Ordering::Relaxed);
    }
}

/// A decorator that counts, and fails on demand. Its clones share counts and faults.
#[derive(Debug, Clone)]
pub struct FaultyStore {
    inner: Arc<dyn Store>,
    calls: Arc<Calls>,
    queued: Arc<Mutex<HashMap<Operation, VecDeque<Fault>>>>,
    down: Arc<AtomicBool>,
}

impl FaultyStore {
    /// A decorator without faults.
    pub fn new(inner: Arc<dyn Store>) -> Self {
        let (calls, queued, down) = <(_, _, Arc<AtomicBool>)>::default();
        Self { inner, calls, queued, down }
    }

    /// What was called so far.
    pub fn calls(&self) -> &Calls {
        &self.calls
    }

    /// Queues a fault for the next call of an operation that has none queued before it.
    pub fn inject(&self, operation: Operation, fault: Fault) {
        self.queued.lock().entry(operation).or_default().push_back(fault);
    }

    /// Drops every fault that no call has taken yet.
    pub fn clear(&self) {
        self.queued.lock().clear();
    }

    /// From now on (until set back) every call fails with [`ErrorKind::Unavailable`].
    pub fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::Relaxed);
    }

    /// Counts a call and applies the faults that come before the inner store is asked. Returns the
    /// fault that changes an answer, if one is queued.
    async fn enter(&self, operation: Operation) -> Result<Option<Fault>> {
        *self.calls.counts.lock().entry(operation).or_default() += 1;
        if self.down.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Unavailable, "origin is down (injected)"));
        }
        let fault = self.queued.lock().get_mut(&operation).and_then(VecDeque::pop_front);
        match fault {
            Some(Fault::Delay(time)) => {
                tokio::time::sleep(time).await;
                Ok(None)
            }
            Some(Fault::Fail(kind)) => Err(Error::new(kind, "injected fault")),
            Some(Fault::Hang) => std::future::pending().await,
            other => Ok(other),
        }
    }
}

fn bend(fault: Option<Fault>, mut got: GetResult) -> GetResult {
    let limited = |got: GetResult, limit: usize, then: Option<Fault>| {
        let mut left = limit;
        let body = got.body.scan((), move |(), piece| {
            let kept = piece.map(|bytes: Bytes| bytes.slice(..bytes.len().min(left)));
            left -= kept.as_ref().map_or(0, Bytes::len);
            std::future::ready(kept.as_ref().map_or(true, |b| !b.is_empty()).then_some(kept))
        });
        let ends_here = matches!(then, Some(Fault::EndAfter(_)));
        let tail = futures::stream::once(async move {
            match then {
                Some(Fault::Hang) => std::future::pending().await,
                _ => Err(Error::new(ErrorKind::Unavailable, "connection cut (injected)")),
            }
        });
        let body = if ends_here { body.boxed() } else { body.chain(tail).boxed() };
        GetResult { body, ..got }
    };
    match fault {
        Some(Fault::CutAfter(limit)) => limited(got, limit, None),
        Some(Fault::HangAfter(limit)) => limited(got, limit, Some(Fault::Hang)),
        Some(Fault::EndAfter(limit)) => limited(got, limit, Some(Fault::EndAfter(limit))),
        Some(Fault::WrongETag(etag)) => {
            got.meta.etag = etag;
            got
        }
        Some(Fault::SlowBody(time)) => {
            let body = got.body.then(move |piece| async move {
                tokio::time::sleep(time).await;
                piece
            });
            GetResult { body: body.boxed(), ..got }
        }
        Some(Fault::Delay(_) | Fault::Fail(_) | Fault::Hang) | None => got,
    }
}

#[async_trait]
impl Store for FaultyStore {
    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        let fault = self.enter(Operation::Head).await?;
        let mut meta = self.inner.head(key).await?;
        if let Some(Fault::WrongETag(etag)) = fault {
            meta.etag = etag;
        }
        Ok(meta)
    }

    async fn stat(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        self.head(key).await
    }

    async fn get(&self, key: &ObjectKey, options: GetOptions) -> Result<GetResult> {
        let fault = self.enter(Operation::Get).await?;
        let mut got = bend(fault, self.inner.get(key, options).await?);
        let calls = Arc::clone(&self.calls);
        let count = move |bytes: &Bytes| {
            calls.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        };
        got.body = got.body.inspect(move |piece| _ = piece.as_ref().map(&count)).boxed();
        Ok(got)
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        self.enter(Operation::List).await?;
        self.inner.list(request).await
    }

    async fn put(&self, key: &ObjectKey, body: Body, options: PutOptions) -> Result<Written> {
        self.enter(Operation::Put).await?;
        self.inner.put(key, body, options).await
    }

    async fn start_upload(&self, key: &ObjectKey, options: PutOptions) -> Result<UploadId> {
        self.enter(Operation::StartUpload).await?;
        self.inner.start_upload(key, options).await
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u16,
        body: Body,
    ) -> Result<PartEntry> {
        self.enter(Operation::PutPart).await?;
        self.inner.put_part(key, upload, number, body).await
    }

    async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[(u16, ETag)],
        condition: Condition,
    ) -> Result<Written> {
        self.enter(Operation::CompleteUpload).await?;
        self.inner.complete_upload(key, upload, parts, condition).await
    }

    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        self.enter(Operation::AbortUpload).await?;
        self.inner.abort_upload(key, upload).await
    }

    async fn list_parts(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        after: Option<u16>,
        max_parts: usize,
    ) -> Result<PartList> {
        self.enter(Operation::ListParts).await?;
        self.inner.list_parts(key, upload, after, max_parts).await
    }

    async fn list_uploads(&self, request: &UploadListRequest) -> Result<UploadList> {
        self.enter(Operation::ListUploads).await?;
        self.inner.list_uploads(request).await
    }

    async fn copy(
        &self,
        from: &ObjectKey,
        to: &ObjectKey,
        options: CopyOptions,
    ) -> Result<Written> {
        self.enter(Operation::Copy).await?;
        self.inner.copy(from, to, options).await
    }

    async fn delete(&self, key: &ObjectKey, if_match: Option<&ETag>) -> Result<()> {
        self.enter(Operation::Delete).await?;
        self.inner.delete(key, if_match).await
    }
}
