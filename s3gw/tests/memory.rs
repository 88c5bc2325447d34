//! How much memory many large uploads take: a process of its own, because it is measured.
//!
//! Invariant: 32 uploads of 64 MiB at once, 2 GiB in all, stay under 256 MiB of resident memory, and
//! under what whoever bounds the process gives them.
//! The store behind counts and throws away, so that what is measured is the endpoint.

#![allow(clippy::unwrap_used)] // Helpers of tests fail like tests.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use s3gw::{Access, Gateway, GatewayConfig, Metrics, UploadMemory};
use store::testing::MemoryStore;
use store::{
    Body, Bucket, BucketName, Condition, CopyOptions, ETag, GetOptions, GetResult, ListPage,
    ListRequest, Namespace, ObjectKey, ObjectMeta, PartEntry, PartList, PutOptions, Result, Store,
    UploadId, UploadList, UploadListRequest, Written,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

const UPLOADS: usize = 32;
const UPLOAD_BYTES: usize = 64 << 20;
const LIMIT_BYTES: u64 = 256 << 20;

/// Takes bodies and keeps only their length; slowly enough that they all are there at once.
#[derive(Debug)]
struct Sink(MemoryStore);

#[async_trait::async_trait]
impl Store for Sink {
    async fn put(&self, key: &ObjectKey, mut body: Body, options: PutOptions) -> Result<Written> {
        use futures::TryStreamExt;
        let mut seen = 0u64;
        while let Some(piece) = body.stream.try_next().await? {
            seen += piece.len() as u64;
            tokio::task::yield_now().await;
        }
        self.0.put(key, bytes::Bytes::from(seen.to_string()).into(), options).await
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        self.0.head(key).await
    }
    async fn stat(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        self.0.stat(key).await
    }

    async fn get(&self, key: &ObjectKey, options: GetOptions) -> Result<GetResult> {
        self.0.get(key, options).await
    }
    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        self.0.list(request).await
    }
    async fn start_upload(&self, key: &ObjectKey, options: PutOptions) -> Result<UploadId> {
        self.0.start_upload(key, options).await
    }
    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u16,
        body: Body,
    ) -> Result<PartEntry> {
        self.0.put_part(key, upload, number, body).await
    }
    async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[(u16, ETag)],
        condition: Condition,
    ) -> Result<Written> {
        self.0.complete_upload(key, upload, parts, condition).await
    }
    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        self.0.abort_upload(key, upload).await
    }
    async fn list_parts(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        after: Option<u16>,
        max_parts: usize,
    ) -> Result<PartList> {
        self.0.list_parts(key, upload, after, max_parts).await
    }
    async fn list_uploads(&self, request: &UploadListRequest) -> Result<UploadList> {
        self.0.list_uploads(request).await
    }
    async fn copy(
        &self,
        from: &ObjectKey,
        to: &ObjectKey,
        options: CopyOptions,
    ) -> Result<Written> {
        self.0.copy(from, to, options).await
    }
    async fn delete(&self, key: &ObjectKey, if_match: Option<&ETag>) -> Result<()> {
        self.0.delete(key, if_match).await
    }
}

/// Gives uploads so much between them, and counts.
#[derive(Debug)]
struct Bound {
    mib: Arc<Semaphore>,
    leases: AtomicU64,
}

impl UploadMemory for Bound {
    fn lease(&self, bytes: u64) -> BoxFuture<'static, Box<dyn Any + Send + Sync>> {
        self.leases.fetch_add(1, Ordering::Relaxed);
        let wait = Arc::clone(&self.mib).acquire_many_owned(bytes.div_ceil(1 << 20) as u32);
        Box::pin(async move { Box::new(wait.await.unwrap()) as Box<dyn Any + Send + Sync> })
    }
}

/// The highest resident memory of this process so far.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_large_uploads_take_little_memory() {
    let sink = MemoryStore::new();
    let namespace = Namespace::builder()
        .bucket(Bucket {
            name: BucketName::new("b").unwrap(),
            store: Arc::new(Sink(sink.clone())),
            residency: None,
            read_only: false,
            created: SystemTime::now(),
        })
        .unwrap()
        .build();
    // Fewer than there are uploads: the others wait for their turn.
    let bound = Arc::new(Bound { mib: Arc::new(Semaphore::new(8)), leases: AtomicU64::new(0) });
    let config = GatewayConfig {
        upload_memory: Some(Arc::<Bound>::clone(&bound)),
        ..GatewayConfig::new("127.0.0.1:0".parse().unwrap(), Access::Anonymous)
    };
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    let gateway = Gateway::bind(config, Arc::new(namespace), metrics).await.unwrap();
    let address = gateway.local_addr();
    let stop = CancellationToken::new();
    let served = tokio::spawn(gateway.serve(stop.clone(), Duration::from_secs(1)));
    let uploads: Vec<_> = (0..UPLOADS)
        .map(|i| {
            tokio::spawn(async move {
                let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
                let head = format!(
                    "PUT /b/{i} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
                     content-length: {UPLOAD_BYTES}\r\n\r\n"
                );
                stream.write_all(head.as_bytes()).await.unwrap();
                let piece = vec![i as u8; 128 * 1024];
                for _ in 0..UPLOAD_BYTES / piece.len() {
                    stream.write_all(&piece).await.unwrap();
                }
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await.unwrap();
                answer
            })
        })
        .collect();
    for upload in uploads {
        assert!(upload.await.unwrap().starts_with("HTTP/1.1 200"));
    }
    for i in 0..UPLOADS {
        let key = ObjectKey::new(i.to_string()).unwrap();
        let meta = sink.head(&key).await.unwrap();
        assert_eq!(meta.size, UPLOAD_BYTES.to_string().len() as u64);
    }
    assert_eq!(bound.leases.load(Ordering::Relaxed), UPLOADS as u64, "each upload asked once");
    assert_eq!(bound.mib.available_permits(), 8, "and gave back what it got");
    let peak = peak_bytes();
    println!("peak resident memory: {} MiB", peak >> 20);
    assert!(peak < LIMIT_BYTES, "peak resident memory is {} MiB", peak >> 20);
    stop.cancel();
    served.await.unwrap();
}
