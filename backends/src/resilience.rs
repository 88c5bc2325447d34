//! What every origin gets in front: timeouts, retries with a budget, resumed bodies, a breaker.
//!
//! Invariant: a call is sent again only where that cannot change what it means, and a body that is
//! read continues only in the version that it began with. It refuses to buffer bodies, so a body
//! that was touched is never sent twice.

mod body;
mod breaker;
mod budget;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rand::RngExt;
use store::{
    Body, Condition, CopyOptions, ETag, Error, ErrorKind, GetOptions, GetResult, ListPage,
    ListRequest, ObjectKey, ObjectMeta, PartEntry, PartList, PutOptions, Result, Store, UploadId,
    UploadList, UploadListRequest, Written,
};
use tokio::time::Instant;

pub use breaker::{BreakerState, Health};

use crate::http::RetryAfter;
use crate::{Metrics, Policy};
use budget::Budget;

/// Longest wait that an origin may ask for; longer ones end the retries instead.
const MAX_ASKED_WAIT: Duration = Duration::from_secs(20);

/// The decorator. Its clones share the origin's state.
#[derive(Debug, Clone)]
pub(crate) struct Resilient {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    inner: Arc<dyn Store>,
    backend: String,
    policy: Policy,
    budget: Budget,
    health: Arc<Health>,
    metrics: Metrics,
}

/// Which errors a call may be sent again after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repeat {
    /// Sending it twice is as good as once.
    Always,
    /// It must not happen twice: only where the origin has said that it did nothing.
    Refused,
}

impl Repeat {
    fn judge(self, error: &Error) -> Verdict {
        Verdict::again_if(match self {
            Self::Always => error.kind().is_outage(),
            Self::Refused => error.kind() == ErrorKind::Throttled,
        })
    }
}

/// What an error of an attempt means for the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Another attempt may be made.
    Again,
    /// The call has ended.
    Ended,
    /// The call has ended by what the caller sent, which says nothing of the origin.
    Caller,
}

impl Verdict {
    fn again_if(again: bool) -> Self {
        if again { Self::Again } else { Self::Ended }
    }
}

impl Resilient {
    pub(crate) fn new(
        inner: Arc<dyn Store>,
        backend: &str,
        policy: &Policy,
        metrics: &Metrics,
    ) -> Self {
        let gauge = metrics.breaker.with_label_values(&[backend]);
        let shared = Shared {
            inner,
            backend: backend.to_owned(),
            policy: policy.clone(),
            budget: Budget::new(policy.retry_budget),
            health: Arc::new(Health::new(backend, policy, gauge)),
            metrics: metrics.clone(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The state of the breaker.
    pub(crate) fn health(&self) -> Arc<Health> {
        Arc::clone(&self.shared.health)
    }

    /// A call without a body: repeated, each attempt limited, and all together.
    async fn call<T, F>(
        &self,
        operation: &str,
        repeat: Repeat,
        attempt: impl Fn() -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let policy = &self.shared.policy;
        let limits = (policy.first_byte_timeout, policy.call_timeout);
        self.shared.repeated(operation, limits, |error| repeat.judge(error), attempt).await
    }

    /// The same for calls during which the origin moves bytes.
    async fn long_call<T, F>(
        &self,
        operation: &str,
        repeat: Repeat,
        attempt: impl Fn() -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let limit = self.shared.policy.completion_timeout;
        let judge = |error: &Error| repeat.judge(error);
        self.shared.repeated(operation, (limit, limit), judge, attempt).await
    }

    /// A call that sends a body: repeated only while nobody has asked the body for a byte, and
    /// given up when the origin neither takes bytes nor answers. One that has the whole body may
    /// take as long as a completion: it goes on to commit when nobody waits any more, and the
    /// caller would be told of a failure that there was not.
    async fn send<T, F>(
        &self,
        operation: &str,
        body: Body,
        attempt: impl Fn(Body) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let policy = &self.shared.policy;
        let kept = body::Kept::new(body);
        let limits = (Duration::MAX, Duration::MAX);
        let judge = |error: &Error| match error.kind() {
            // Whatever kind of error the body ended with.
            _ if kept.has_failed() => Verdict::Caller,
            kind => Verdict::again_if(kind.is_outage() && kept.is_untouched()),
        };
        let lend = || async {
            let (body, progress) = kept.lend();
            tokio::select! {
                sent = attempt(body) => sent,
                late = progress.stalled(policy) => Err(late),
            }
        };
        self.shared.repeated(operation, limits, judge, lend).await
    }
}

impl Shared {
    /// Runs attempts until one succeeds, may not be repeated, or is one too many. `limits` are
    /// those of one attempt and of all.
    async fn repeated<T, F>(
        &self,
        operation: &str,
        (each, all): (Duration, Duration),
        judge: impl Fn(&Error) -> Verdict,
        attempt: impl Fn() -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let begun = Instant::now();
        let mut retries = 0;
        loop {
            let left = all.saturating_sub(begun.elapsed());
            let error = match self.guarded(each.min(left), &judge, attempt()).await {
                Ok(value) => return Ok(value),
                Err((error, Verdict::Again)) => error,
                Err((error, Verdict::Ended | Verdict::Caller)) => return Err(error),
            };
            let Some(wait) =
                self.wait_before_retry(&error, retries, all.saturating_sub(begun.elapsed()))
            else {
                return Err(said_tries(error, retries));
            };
            tokio::time::sleep(wait).await;
            // Another call may have opened the breaker meanwhile; the true error says more.
            if self.health.is_open() {
                return Err(said_tries(error, retries));
            }
            retries += 1;
            self.metrics.retries.with_label_values(&[&self.backend, operation]).inc();
            tracing::debug!(backend = self.backend, operation, retries, %error, "trying again");
        }
    }

    /// One attempt: let through by the breaker, limited in time, its outcome noted where it is the
    /// origin's.
    async fn guarded<T>(
        &self,
        limit: Duration,
        judge: impl Fn(&Error) -> Verdict,
        attempt: impl Future<Output = Result<T>>,
    ) -> Result<T, (Error, Verdict)> {
        let permit = self.health.permit().map_err(|error| {
            self.metrics.fast_failures.with_label_values(&[&self.backend]).inc();
            (error, Verdict::Ended)
        })?;
        match within(limit, attempt).await {
            Ok(value) => {
                permit.succeeded();
                self.budget.refund();
                Ok(value)
            }
            Err(error) => {
                let verdict = judge(&error);
                if verdict != Verdict::Caller {
                    permit.failed(&error);
                }
                Err((error, verdict))
            }
        }
    }

    /// A random time up to a bound that doubles (full jitter), or what the origin asked for; `None`
    /// where another attempt is not allowed or would be too late.
    fn wait_before_retry(&self, error: &Error, retries: u32, left: Duration) -> Option<Duration> {
        if retries >= self.policy.retries {
            return None;
        }
        let bound = self.policy.backoff_base.saturating_mul(1 << retries.min(16));
        let bound = bound.min(self.policy.backoff_max);
        let random = bound.mul_f64(rand::rng().random::<f64>());
        let wait = match RetryAfter::find_in(error) {
            Some(RetryAfter(asked)) if asked > MAX_ASKED_WAIT => return None,
            Some(RetryAfter(asked)) => asked + random,
            None => random,
        };
        (wait < left && self.budget.spend()).then_some(wait)
    }
}

async fn within<T>(limit: Duration, call: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(limit, call).await.unwrap_or_else(|_| {
        let context = format!("no answer from the origin within {limit:?}");
        Err(Error::new(ErrorKind::Timeout, context))
    })
}

fn said_tries(error: Error, retries: u32) -> Error {
    if retries == 0 { error } else { error.in_context(format_args!("after {retries} retries")) }
}

#[async_trait]
impl Store for Resilient {
    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        let inner = &self.shared.inner;
        self.call("head", Repeat::Always, || inner.head(key)).await
    }

    async fn stat(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        let inner = &self.shared.inner;
        self.call("head", Repeat::Always, || inner.stat(key)).await
    }

    async fn get(&self, key: &ObjectKey, options: GetOptions) -> Result<GetResult> {
        let policy = &self.shared.policy;
        let limits = (policy.first_byte_timeout, policy.call_timeout);
        let judge = |error: &Error| Verdict::again_if(error.kind().is_outage());
        let ask = || self.shared.inner.get(key, options.clone());
        let got = self.shared.repeated("get", limits, judge, ask).await?;
        Ok(body::resuming(Arc::clone(&self.shared), key.clone(), options.reader, got))
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        let inner = &self.shared.inner;
        self.call("list", Repeat::Always, || inner.list(request)).await
    }

    async fn put(&self, key: &ObjectKey, body: Body, options: PutOptions) -> Result<Written> {
        let inner = &self.shared.inner;
        self.send("put", body, |body| inner.put(key, body, options.clone())).await
    }

    async fn start_upload(&self, key: &ObjectKey, options: PutOptions) -> Result<UploadId> {
        // A second upload that nobody knows of would be left at the origin, and be paid for.
        let inner = &self.shared.inner;
        let attempt = || inner.start_upload(key, options.clone());
        self.call("start_upload", Repeat::Refused, attempt).await
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u16,
        body: Body,
    ) -> Result<PartEntry> {
        let inner = &self.shared.inner;
        self.send("put_part", body, |body| inner.put_part(key, upload, number, body)).await
    }

    async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[(u16, ETag)],
        condition: Condition,
    ) -> Result<Written> {
        let inner = &self.shared.inner;
        let attempt = || inner.complete_upload(key, upload, parts, condition.clone());
        self.long_call("complete_upload", Repeat::Refused, attempt).await
    }

    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        let inner = &self.shared.inner;
        let tried = std::sync::atomic::AtomicBool::new(false);
        let attempt = || async {
            let again = tried.swap(true, std::sync::atomic::Ordering::Relaxed);
            match inner.abort_upload(key, upload).await {
                // The attempt before this one did it, and its answer was lost.
                Err(error) if again && error.kind() == ErrorKind::NoSuchUpload => Ok(()),
                other => other,
            }
        };
        self.call("abort_upload", Repeat::Always, attempt).await
    }

    async fn list_parts(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        after: Option<u16>,
        max_parts: usize,
    ) -> Result<PartList> {
        let inner = &self.shared.inner;
        let attempt = || inner.list_parts(key, upload, after, max_parts);
        self.call("list_parts", Repeat::Always, attempt).await
    }

    async fn list_uploads(&self, request: &UploadListRequest) -> Result<UploadList> {
        let inner = &self.shared.inner;
        self.call("list_uploads", Repeat::Always, || inner.list_uploads(request)).await
    }

    async fn copy(
        &self,
        from: &ObjectKey,
        to: &ObjectKey,
        options: CopyOptions,
    ) -> Result<Written> {
        // Under a condition, a repeated copy would be refused by what the first one did.
        let bound = options.condition != Condition::None || from == to;
        let repeat = if bound { Repeat::Refused } else { Repeat::Always };
        let inner = &self.shared.inner;
        self.long_call("copy", repeat, || inner.copy(from, to, options.clone())).await
    }

    async fn delete(&self, key: &ObjectKey, if_match: Option<&ETag>) -> Result<()> {
        let repeat = if if_match.is_some() { Repeat::Refused } else { Repeat::Always };
        let inner = &self.shared.inner;
        self.call("delete", repeat, || inner.delete(key, if_match)).await
    }
}

#[cfg(test)]
mod tests;
