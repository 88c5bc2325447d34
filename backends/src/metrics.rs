//! What origins are asked, how they answer, and how long they take.
//!
//! Invariant: labels are names of backends, operations and kinds of errors, never keys. Counting
//! changes nothing else.

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry};
use store::{
    Body, Condition, CopyOptions, ETag, GetOptions, GetResult, ListPage, ListRequest, ObjectKey,
    ObjectMeta, PartEntry, PartList, PutOptions, Result, Store, UploadId, UploadList,
    UploadListRequest, Written,
};
use tokio::time::Instant;

/// Bounds of latencies in seconds: a local directory answers in microseconds, a bucket on another
/// continent in a second, a completion in minutes.
const SECONDS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    120.0,
];

/// The series of this crate. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    duration: HistogramVec,
    requests: IntCounterVec,
    errors: IntCounterVec,
    bytes_read: IntCounterVec,
    bytes_written: IntCounterVec,
    pub(crate) retries: IntCounterVec,
    pub(crate) fast_failures: IntCounterVec,
    pub(crate) breaker: IntGaugeVec,
    skipped: IntCounterVec,
}

impl Metrics {
    /// Makes the series and adds them to a registry.
    ///
    /// `warpdrive_backend_request_duration_seconds{backend,operation}` is the time to the head of
    /// an answer, retries included; bodies that are read are not in it.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, text: &str, labels: &[&str]| {
            let made =
                IntCounterVec::new(Opts::new(format!("warpdrive_backend_{name}"), text), labels)?;
            registry.register(Box::new(made.clone()))?;
            Ok::<_, prometheus::Error>(made)
        };
        let duration = HistogramVec::new(
            HistogramOpts::new(
                "warpdrive_backend_request_duration_seconds",
                "Time from a call to the head of its answer, retries included",
            )
            .buckets(SECONDS.to_vec()),
            &["backend", "operation"],
        )?;
        registry.register(Box::new(duration.clone()))?;
        let breaker = IntGaugeVec::new(
            Opts::new(
                "warpdrive_backend_breaker_state",
                "0: asked as usual, 1: one call tries it again, 2: left alone after failures",
            ),
            &["backend"],
        )?;
        registry.register(Box::new(breaker.clone()))?;
        Ok(Self {
            duration,
            breaker,
            requests: counter("requests_total", "Calls to origins", &["backend", "operation"])?,
            errors: counter("errors_total", "Calls that failed", &["backend", "error_type"])?,
            bytes_read: counter("bytes_read_total", "Bytes of bodies read", &["backend"])?,
            bytes_written: counter("bytes_written_total", "Bytes of bodies written", &["backend"])?,
            retries: counter("retries_total", "Calls sent again", &["backend", "operation"])?,
            fast_failures: counter(
                "fast_failures_total",
                "Calls refused because the origin is left alone",
                &["backend"],
            )?,
            skipped: counter(
                "skipped_keys_total",
                "Keys left out of listings because they are no valid names",
                &["backend"],
            )?,
        })
    }
}

/// The outermost decorator of an origin: counts and measures.
#[derive(Debug)]
pub(crate) struct MeteredStore {
    inner: Arc<dyn Store>,
    backend: String,
    metrics: Metrics,
}

impl MeteredStore {
    pub(crate) fn new(inner: Arc<dyn Store>, backend: &str, metrics: &Metrics) -> Self {
        // The series exist from the start, so that a rate over them sees the first error.
        metrics.bytes_read.with_label_values(&[backend]);
        metrics.bytes_written.with_label_values(&[backend]);
        Self { inner, backend: backend.to_owned(), metrics: metrics.clone() }
    }

    async fn count<T>(&self, operation: &str, call: impl Future<Output = Result<T>>) -> Result<T> {
        let labels = [self.backend.as_str(), operation];
        self.metrics.requests.with_label_values(&labels).inc();
        let begun = Instant::now();
        let result = call.await;
        let seconds = begun.elapsed().as_secs_f64();
        self.metrics.duration.with_label_values(&labels).observe(seconds);
        if let Err(error) = &result {
            let labels = [self.backend.as_str(), error.kind().name()];
            self.metrics.errors.with_label_values(&labels).inc();
        }
        result
    }

    /// The body, with its bytes counted as they pass.
    fn counted(&self, body: Body) -> Body {
        let counter = self.metrics.bytes_written.with_label_values(&[&self.backend]);
        let stream = body.stream.inspect(move |piece| {
            if let Ok(piece) = piece {
                counter.inc_by(piece.len() as u64);
            }
        });
        Body { size: body.size, stream: stream.boxed() }
    }
}

#[async_trait]
impl Store for MeteredStore {
    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        self.count("head", self.inner.head(key)).await
    }

    async fn stat(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        self.count("head", self.inner.stat(key)).await
    }

    async fn get(&self, key: &ObjectKey, options: GetOptions) -> Result<GetResult> {
        let got = self.count("get", self.inner.get(key, options)).await?;
        let bytes = self.metrics.bytes_read.with_label_values(&[&self.backend]);
        let (errors, backend) = (self.metrics.errors.clone(), self.backend.clone());
        let body = got.body.inspect(move |piece| match piece {
            Ok(piece) => bytes.inc_by(piece.len() as u64),
            Err(error) => errors.with_label_values(&[&*backend, error.kind().name()]).inc(),
        });
        Ok(GetResult { body: body.boxed(), ..got })
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        let page = self.count("list", self.inner.list(request)).await?;
        if page.skipped > 0 {
            self.metrics.skipped.with_label_values(&[&self.backend]).inc_by(page.skipped);
        }
        Ok(page)
    }

    async fn put(&self, key: &ObjectKey, body: Body, options: PutOptions) -> Result<Written> {
        let body = self.counted(body);
        self.count("put", self.inner.put(key, body, options)).await
    }

    async fn start_upload(&self, key: &ObjectKey, options: PutOptions) -> Result<UploadId> {
        self.count("start_upload", self.inner.start_upload(key, options)).await
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u16,
        body: Body,
    ) -> Result<PartEntry> {
        let body = self.counted(body);
        self.count("put_part", self.inner.put_part(key, upload, number, body)).await
    }

    async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[(u16, ETag)],
        condition: Condition,
    ) -> Result<Written> {
        let call = self.inner.complete_upload(key, upload, parts, condition);
        self.count("complete_upload", call).await
    }

    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        self.count("abort_upload", self.inner.abort_upload(key, upload)).await
    }

    async fn list_parts(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        after: Option<u16>,
        max_parts: usize,
    ) -> Result<PartList> {
        self.count("list_parts", self.inner.list_parts(key, upload, after, max_parts)).await
    }

    async fn list_uploads(&self, request: &UploadListRequest) -> Result<UploadList> {
        self.count("list_uploads", self.inner.list_uploads(request)).await
    }

    async fn copy(
        &self,
        from: &ObjectKey,
        to: &ObjectKey,
        options: CopyOptions,
    ) -> Result<Written> {
        self.count("copy", self.inner.copy(from, to, options)).await
    }

    async fn delete(&self, key: &ObjectKey, if_match: Option<&ETag>) -> Result<()> {
        self.count("delete", self.inner.delete(key, if_match)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::testing::{Fault, FaultyStore, MemoryStore, Operation};
    use store::{ByteRange, ErrorKind, StoreExt};

    #[tokio::test]
    async fn calls_bytes_and_errors_are_counted() {
        let faulty = FaultyStore::new(Arc::new(MemoryStore::new()));
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).unwrap();
        let store = MeteredStore::new(Arc::new(faulty.clone()), "b", &metrics);
        let key = ObjectKey::new("k").unwrap();
        store.put_bytes(&key, vec![1u8; 100]).await.unwrap();
        store.get_bytes(&key, ByteRange::Bounded(10, 40)).await.unwrap();
        faulty.inject(Operation::Head, Fault::Fail(ErrorKind::Throttled));
        store.head(&key).await.unwrap_err();
        faulty.inject(Operation::Get, Fault::CutAfter(5));
        store.get_bytes(&key, ByteRange::Full).await.unwrap_err();
        assert_eq!(metrics.bytes_written.with_label_values(&["b"]).get(), 100);
        assert_eq!(metrics.bytes_read.with_label_values(&["b"]).get(), 35);
        assert_eq!(metrics.requests.with_label_values(&["b", "get"]).get(), 2);
        assert_eq!(metrics.errors.with_label_values(&["b", "throttled"]).get(), 1);
        assert_eq!(metrics.errors.with_label_values(&["b", "unavailable"]).get(), 1);
        assert_eq!(metrics.duration.with_label_values(&["b", "head"]).get_sample_count(), 1);
        assert!(Metrics::register(&registry).is_err(), "registered twice");
    }
}
