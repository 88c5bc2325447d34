//! An origin of objects that no memory would hold, behind a link with a rate and a round trip.
//!
//! Invariant: every byte follows from its offset; what is asked and sent is counted. Nothing can be
//! written to it. With a paused clock its times are exact.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use async_trait::async_trait;
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use store::{
    Body, Condition, CopyOptions, GetResult, ListEntry, ListPage, ListRequest, ObjectMeta,
    PartEntry, PartList, PutOptions, Result, UploadId, UploadList, UploadListRequest, Written,
};
use tokio::time::Instant;

use super::*;

/// Bytes repeat after so many: a prime, so that no block and no grain looks like another.
const PERIOD: u64 = 65_521;

const PIECE: u64 = 64 << 10;

static BYTES: LazyLock<Bytes> = LazyLock::new(|| {
    (0..PERIOD + PIECE).map(|n| (n % PERIOD * 31 % 251) as u8).collect::<Vec<_>>().into()
});

/// The bytes of every object.
pub(super) fn expected(range: Range<u64>) -> Bytes {
    let mut out = Vec::with_capacity((range.end - range.start) as usize);
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(PIECE);
        let from = (at % PERIOD) as usize;
        out.extend_from_slice(&BYTES[from..from + len as usize]);
        at += len;
    }
    out.into()
}

#[derive(Debug, Default)]
pub(super) struct Vast {
    objects: BTreeMap<String, u64>,
    round_trip: Duration,
    /// Zero for no limit.
    bytes_per_second: u64,
    link_free: Mutex<Option<Instant>>,
    pub(super) heads: AtomicU64,
    pub(super) gets: Mutex<Vec<(String, Range<u64>)>>,
    pub(super) sent: AtomicU64,
}

impl Vast {
    pub(super) fn new(objects: impl IntoIterator<Item = (String, u64)>) -> Self {
        Self { objects: objects.into_iter().collect(), ..Self::default() }
    }

    pub(super) fn behind(mut self, round_trip: Duration, bytes_per_second: u64) -> Self {
        (self.round_trip, self.bytes_per_second) = (round_trip, bytes_per_second);
        self
    }

    /// Bytes that were asked for, whether or not they were taken.
    pub(super) fn asked_bytes(&self) -> u64 {
        self.gets.lock().iter().map(|(_, r)| r.end - r.start).sum()
    }

    pub(super) fn requests(&self) -> usize {
        self.gets.lock().len()
    }

    fn meta(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        let size = self.objects.get(key.as_str()).copied();
        let size = size.ok_or_else(|| Error::new(ErrorKind::NotFound, "no such object"))?;
        Ok(ObjectMeta {
            size,
            etag: ETag::parse("v"),
            last_modified: SystemTime::UNIX_EPOCH,
            attributes: Some(Arc::default()),
        })
    }

    /// Waits for a piece's turn on the link that all bodies share.
    fn turn(&self, bytes: u64) -> Option<Instant> {
        if self.bytes_per_second == 0 {
            return None;
        }
        let mut free = self.link_free.lock();
        let begin = free.unwrap_or_else(Instant::now).max(Instant::now());
        let end = begin + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        *free = Some(end);
        Some(end)
    }
}

fn refused<T>() -> Result<T> {
    Err(Error::new(ErrorKind::ReadOnly, "nothing can be written here"))
}

/// Shared with the test that counts.
#[derive(Debug, Clone)]
pub(super) struct Shown(pub(super) Arc<Vast>);

#[async_trait]
impl Store for Shown {
    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        self.0.heads.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(self.0.round_trip).await;
        self.0.meta(key)
    }

    async fn stat(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        self.head(key).await
    }

    async fn get(&self, key: &ObjectKey, options: GetOptions) -> Result<GetResult> {
        let meta = self.0.meta(key)?;
        let range = options.range.resolve(meta.size)?;
        self.0.gets.lock().push((key.to_string(), range.clone()));
        tokio::time::sleep(self.0.round_trip).await;
        if options.if_match.as_ref().is_some_and(|pin| *pin != meta.etag) {
            return Err(Error::new(ErrorKind::PreconditionFailed, "another version"));
        }
        let vast = Arc::clone(&self.0);
        let body = stream::unfold(range.clone(), move |left| {
            let vast = Arc::clone(&vast);
            async move {
                let len = (left.end - left.start).min(PIECE);
                if len == 0 {
                    return None;
                }
                if let Some(turn) = vast.turn(len) {
                    tokio::time::sleep_until(turn).await;
                }
                vast.sent.fetch_add(len, Ordering::Relaxed);
                let from = (left.start % PERIOD) as usize;
                let piece = BYTES.slice(from..from + len as usize);
                Some((Ok(piece), left.start + len..left.end))
            }
        });
        Ok(GetResult { meta, range, body: body.boxed() })
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        let keys = self.0.objects.keys().filter(|key| key.starts_with(&request.prefix));
        let entries = keys.map(|key| {
            let key = ObjectKey::new(key.as_str()).unwrap();
            ListEntry { meta: self.0.meta(&key).unwrap(), key }
        });
        Ok(ListPage { entries: entries.collect(), ..ListPage::default() })
    }

    async fn put(&self, _: &ObjectKey, _: Body, _: PutOptions) -> Result<Written> {
        refused()
    }

    async fn start_upload(&self, _: &ObjectKey, _: PutOptions) -> Result<UploadId> {
        refused()
    }

    async fn put_part(&self, _: &ObjectKey, _: &UploadId, _: u16, _: Body) -> Result<PartEntry> {
        refused()
    }

    async fn complete_upload(
        &self,
        _: &ObjectKey,
        _: &UploadId,
        _: &[(u16, ETag)],
        _: Condition,
    ) -> Result<Written> {
        refused()
    }

    async fn abort_upload(&self, _: &ObjectKey, _: &UploadId) -> Result<()> {
        refused()
    }

    async fn list_parts(
        &self,
        _: &ObjectKey,
        _: &UploadId,
        _: Option<u16>,
        _: usize,
    ) -> Result<PartList> {
        refused()
    }

    async fn list_uploads(&self, _: &UploadListRequest) -> Result<UploadList> {
        refused()
    }

    async fn copy(&self, _: &ObjectKey, _: &ObjectKey, _: CopyOptions) -> Result<Written> {
        refused()
    }

    async fn delete(&self, _: &ObjectKey, _: Option<&ETag>) -> Result<()> {
        refused()
    }
}

/// A cached store in front of vast objects.
pub(super) struct Front {
    pub(super) vast: Arc<Vast>,
    pub(super) store: Arc<CachedStore>,
    pub(super) cache: Arc<Cache>,
}

impl Front {
    pub(super) async fn new(vast: Vast, config: CacheConfig) -> Self {
        let vast = Arc::new(vast);
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let cache = Cache::open(config, metrics).await.unwrap();
        let origin = Arc::new(Shown(Arc::clone(&vast)));
        let store = cache.attach("vast", "memory://vast", origin, StorePolicy::default());
        Self { vast, store, cache }
    }

    /// Reads as a reader of this number, and looks at every byte.
    pub(super) async fn read(&self, name: &str, reader: u64, range: Range<u64>) {
        let options = GetOptions {
            range: ByteRange::Bounded(range.start, range.end),
            reader: ReaderId(reader),
            ..GetOptions::default()
        };
        let got = read(&self.store, name, options).await.unwrap();
        assert!(got == expected(range.clone()), "wrong bytes of {name} at {range:?}");
    }

    /// Waits until nothing is fetched ahead any more.
    pub(super) async fn settle(&self) {
        soon(async {
            while self.cache.stats().prefetch.in_flight_bytes > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }
}
