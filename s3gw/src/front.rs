//! One request: who, what, and the answer.
//!
//! Invariant: an operation runs only after host, signature and names were found good; every
//! answer, also the refusals, carries a request id. Expected failures (404, 304, 412) are `debug`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use http::header::{EXPECT, HOST, HeaderName, HeaderValue, SERVER};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use s3s::S3ErrorCode;
use store::{Bucket, Namespace, ObjectKey, ReaderId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::auth::{Authenticator, Payload, Signed};
use crate::body::checksum::Covers;
use crate::body::{Plan, SharedVerdict};
use crate::config::{GatewayConfig, UploadMemory};
use crate::failure::{Failure, Outcome};
use crate::gateway::READ_BUFFER_BYTES;
use crate::hosts::Hosts;
use crate::ledger::Ledger;
use crate::metrics::{Metrics, RequestGuard};
use crate::operation::{Operation, Route};
use crate::ops;
use crate::reply::{GuardedBody, Reply, render};
use crate::target::{Query, Target};
use crate::unread::Unread;

/// Memory that an upload may hold: a piece on its way and a piece held back.
const UPLOAD_WINDOW_BYTES: u64 = 2 * READ_BUFFER_BYTES as u64;

/// How long an upload waits for its window before the client is asked to come back.
const WINDOW_WAIT: Duration = Duration::from_secs(30);

/// Memory that an upload may use, until it is dropped.
#[derive(Debug)]
pub(crate) struct Window {
    _own: OwnedSemaphorePermit,
    _shared: Option<Box<dyn std::any::Any + Send + Sync>>,
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-amz-request-id");
const HOST_ID: HeaderName = HeaderName::from_static("x-amz-id-2");

/// What all requests share.
#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) namespace: Arc<Namespace>,
    pub(crate) region: String,
    pub(crate) patience: Duration,
    body_timeout: Duration,
    windows: Arc<Semaphore>,
    all_windows: u32,
    upload_memory: Option<Arc<dyn UploadMemory>>,
    authenticator: Authenticator,
    hosts: Hosts,
    metrics: Metrics,
    ledger: Ledger,
    /// Names this process in request ids.
    instance: HeaderValue,
    seed: u64,
    counter: AtomicU64,
}

/// A request that may be carried out.
pub(crate) struct Call {
    pub(crate) front: Arc<Front>,
    pub(crate) target: Target,
    pub(crate) query: Query,
    pub(crate) headers: HeaderMap,
    pub(crate) reader: ReaderId,
    pub(crate) request_id: String,
    body: Option<(Unread, Payload)>,
}

impl Front {
    pub(crate) fn new(
        config: GatewayConfig,
        bound: std::net::SocketAddr,
        namespace: Arc<Namespace>,
        metrics: Metrics,
    ) -> Self {
        let windows = (config.body_memory_bytes / UPLOAD_WINDOW_BYTES).clamp(1, 1 << 20) as u32;
        let instance = format!("warpdrive-{:016x}", rand::random::<u64>());
        Self {
            namespace,
            region: config.region,
            patience: config.patience,
            body_timeout: config.body_timeout,
            windows: Arc::new(Semaphore::new(windows as usize)),
            all_windows: windows,
            upload_memory: config.upload_memory,
            authenticator: Authenticator::new(config.access),
            hosts: Hosts::new(bound, &config.allowed_hosts),
            metrics,
            ledger: Ledger::default(),
            instance: HeaderValue::from_str(&instance).expect("hex is a header value"),
            seed: rand::random(),
            counter: AtomicU64::new(0),
        }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// What clients are writing.
    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Answers a request; failures are answers too.
    pub(crate) async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        reader: ReaderId,
    ) -> Response<GuardedBody> {
        let mut guard = self.metrics.request();
        let head = request.method() == Method::HEAD;
        // An odd multiplier makes the ids of one process all different and unlike each other.
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        let id = self.seed.wrapping_add(number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let request_id = format!("{id:016X}");
        let resource = request.uri().path().to_owned();
        let outcome = self.clone().serve(request, reader, &request_id, &mut guard).await;
        let mut reply = match outcome {
            Ok(reply) => reply,
            Err(failure) => refusal(&failure, &resource, &request_id),
        };
        if let Ok(value) = HeaderValue::from_str(&request_id) {
            reply.headers.insert(REQUEST_ID, value);
        }
        reply.headers.insert(HOST_ID, self.instance.clone());
        reply.headers.insert(SERVER, HeaderValue::from_static("WarpDrive"));
        guard.status = reply.status;
        reply.into_response(guard, head)
    }

    async fn serve(
        self: Arc<Self>,
        request: Request<Incoming>,
        reader: ReaderId,
        request_id: &str,
        guard: &mut RequestGuard,
    ) -> Outcome<Reply> {
        let (parts, incoming) = request.into_parts();
        let incoming = Unread::new(incoming, parts.headers.contains_key(EXPECT));
        let host = match parts.headers.get(HOST) {
            Some(value) => value.to_str().unwrap_or_default(),
            None => parts.uri.authority().map_or("", http::uri::Authority::as_str),
        };
        let host_bucket = self.hosts.check(host)?;
        let raw_query = parts.uri.query().unwrap_or_default();
        let target = Target::parse(parts.uri.path(), host_bucket)?;
        let query = Query::parse(raw_query)?;
        let route = Route::of(&parts.method, &target, &query, &parts.headers);
        if let Route::Served(operation) = route {
            guard.operation = Some(operation);
        }
        let checked = self.authenticator.check(&Signed {
            method: &parts.method,
            path: parts.uri.path(),
            raw_query,
            query: &query,
            headers: &parts.headers,
            host_bucket,
            now: SystemTime::now(),
        });
        let payload = checked.map_err(|refused| {
            self.metrics.refused(refused.0);
            Failure::from(refused)
        })?;
        let operation = match route {
            Route::Served(operation) => operation,
            Route::Unserved(name) => return Err(Failure::not_implemented(name)),
        };
        refuse_what_would_be_dropped(operation, &parts.headers, &query)?;
        guard.writing = self.ledger.write(operation, &target.bucket, &target.key);
        let call = Call {
            front: self,
            target,
            query,
            headers: parts.headers,
            reader,
            request_id: request_id.to_owned(),
            body: Some((incoming, payload)),
        };
        ops::run(operation, call).await
    }
}

/// Features that a client would believe in and that are not there are refused, not ignored.
fn refuse_what_would_be_dropped(
    operation: Operation,
    headers: &HeaderMap,
    query: &Query,
) -> Outcome<()> {
    if let Some(version) = query.non_empty("versionId").filter(|version| *version != "null") {
        return Err(Failure::new(
            S3ErrorCode::NoSuchVersion,
            format!("the bucket is not versioned, there is no version `{version}`"),
        ));
    }
    let writes = matches!(
        operation,
        Operation::PutObject
            | Operation::CopyObject
            | Operation::CreateMultipartUpload
            | Operation::UploadPart
            | Operation::UploadPartCopy
    );
    for (name, value) in headers {
        let name = name.as_str();
        if !name.starts_with("x-amz-") {
            continue;
        }
        let value = value.as_bytes();
        if name.contains("server-side-encryption-customer") {
            return Err(Failure::not_implemented("encryption with keys of the client (SSE-C)"));
        }
        if !writes {
            continue;
        }
        match name {
            "x-amz-server-side-encryption" if value != b"AES256" => {
                return Err(Failure::not_implemented("server-side encryption other than AES256"));
            }
            "x-amz-tagging" if !value.is_empty() => {
                return Err(Failure::not_implemented("object tags (x-amz-tagging)"));
            }
            "x-amz-website-redirect-location" => {
                return Err(Failure::not_implemented("website redirects"));
            }
            "x-amz-write-offset-bytes" => return Err(Failure::not_implemented("AppendObject")),
            "x-amz-storage-class" if value != b"STANDARD" => {
                return Err(Failure::new(
                    S3ErrorCode::InvalidStorageClass,
                    "objects have the storage class that their origin is configured for",
                ));
            }
            "x-amz-acl"
                if !matches!(
                    value,
                    b"private" | b"bucket-owner-full-control" | b"bucket-owner-read"
                ) =>
            {
                return Err(acl_refused());
            }
            _ if name.starts_with("x-amz-grant-") => return Err(acl_refused()),
            _ if name.starts_with("x-amz-object-lock-") => {
                return Err(Failure::not_implemented("object lock"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn acl_refused() -> Failure {
    Failure::new(
        S3ErrorCode::AccessControlListNotSupported,
        "objects belong to the bucket's owner; other access lists are not kept",
    )
}

fn refusal(failure: &Failure, resource: &str, request_id: &str) -> Reply {
    tracing::debug!(
        code = failure.code().as_str(),
        status = failure.status().as_u16(),
        message = failure.message(),
        "request refused"
    );
    let mut reply = if failure.status() == StatusCode::NOT_MODIFIED {
        Reply::empty(failure.status())
    } else {
        let document = render(&failure.document(resource, request_id));
        Reply::xml(failure.status(), &document.unwrap_or_default())
    };
    reply.headers.extend(failure.headers().clone());
    reply
}

impl Call {
    /// The bucket of the request.
    pub(crate) fn bucket(&self) -> Outcome<Bucket> {
        self.named_bucket(&self.target.bucket)
    }

    /// A bucket by name.
    pub(crate) fn named_bucket(&self, name: &str) -> Outcome<Bucket> {
        self.front.namespace.bucket(name).cloned().ok_or_else(|| {
            Failure::new(
                S3ErrorCode::NoSuchBucket,
                format!("The specified bucket does not exist: `{name}`"),
            )
        })
    }

    /// The bucket of a request that writes.
    pub(crate) fn writable_bucket(&self) -> Outcome<Bucket> {
        let bucket = self.bucket()?;
        if bucket.read_only {
            return Err(Failure::new(
                S3ErrorCode::AccessDenied,
                format!("bucket `{}` is served read-only", bucket.name),
            ));
        }
        Ok(bucket)
    }

    /// The key of the request.
    pub(crate) fn key(&self) -> Outcome<ObjectKey> {
        key(&self.target.key)
    }

    /// A header as text.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        self.headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
    }

    /// What the request's body must be.
    pub(crate) fn plan(&mut self, covers: Covers) -> Outcome<(Plan, Unread)> {
        let (incoming, payload) = self.body.take().ok_or_else(|| {
            Failure::new(S3ErrorCode::InternalError, "the body was taken already")
        })?;
        Ok((Plan::new(&self.headers, payload, covers)?, incoming))
    }

    /// The request's body as a verified stream, once there is memory for its window. A client that
    /// waits for `100 Continue` gets it when the stream is first read.
    pub(crate) async fn body(
        &self,
        (plan, incoming): (Plan, Unread),
    ) -> Outcome<(store::Body, SharedVerdict)> {
        let window = self.window(UPLOAD_WINDOW_BYTES).await?;
        let front = &self.front;
        Ok(plan.open(incoming, front.body_timeout, front.metrics.clone(), window))
    }

    /// The request's body as a document of at most `limit` bytes.
    pub(crate) async fn document(&mut self, limit: u64, covers: Covers) -> Outcome<bytes::Bytes> {
        let (plan, incoming) = self.plan(covers)?;
        // The whole document is held, besides the window through which it comes.
        let window = self.window(plan.size().min(limit) + UPLOAD_WINDOW_BYTES).await?;
        let front = &self.front;
        plan.collect(incoming, front.body_timeout, front.metrics.clone(), window, limit).await
    }

    async fn window(&self, bytes: u64) -> Outcome<Window> {
        let windows = bytes.div_ceil(UPLOAD_WINDOW_BYTES).min(self.front.all_windows.into());
        let own = Arc::clone(&self.front.windows).acquire_many_owned(windows as u32);
        let shared = self.front.upload_memory.as_ref();
        let wait = async {
            let own = own.await.ok()?;
            let shared = match shared {
                Some(memory) => Some(memory.lease(windows * UPLOAD_WINDOW_BYTES).await),
                None => None,
            };
            Some(Window { _own: own, _shared: shared })
        };
        match tokio::time::timeout(WINDOW_WAIT, wait).await {
            Ok(Some(window)) => Ok(window),
            Ok(None) | Err(_) => Err(Failure::new(
                S3ErrorCode::SlowDown,
                "the memory for request bodies is in use; try again",
            )),
        }
    }

    /// Renders the error of an operation whose answer has begun already.
    pub(crate) fn late_error(&self) -> impl FnOnce(Failure) -> bytes::Bytes + Send + 'static {
        let (resource, request_id) =
            (format!("/{}/{}", self.target.bucket, self.target.key), self.request_id.clone());
        move |failure| render(&failure.document(&resource, &request_id)).unwrap_or_default()
    }
}

/// A key, or S3's error for one that is too long.
pub(crate) fn key(text: &str) -> Outcome<ObjectKey> {
    ObjectKey::new(text).map_err(|error| {
        if text.len() > 1024 {
            Failure::new(S3ErrorCode::KeyTooLongError, error.to_string())
        } else {
            Failure::invalid_argument(error.to_string())
        }
    })
}
