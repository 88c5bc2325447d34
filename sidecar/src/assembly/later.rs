//! An origin that is opened, or that will be as soon as it can.
//!
//! Invariant: only an NFS directory may come later: its server can be away when a sidecar starts,
//! and looking at it can block for minutes. Until then its calls fail as those of an origin that is
//! away, so what is cached is served. Every other origin opens without being contacted, or never.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use backends::{Metrics, Opened, OriginConfig, OriginKind};
use store::{
    Body, Condition, CopyOptions, ETag, Error, ErrorKind, GetOptions, GetResult, ListPage,
    ListRequest, ObjectKey, ObjectMeta, PartEntry, PartList, PutOptions, Result, Store, UploadId,
    UploadList, UploadListRequest, Written,
};

use crate::config::BackendSettings;

/// A server that is there answers in milliseconds.
const WAIT_AT_START: Duration = Duration::from_secs(3);
/// How often an origin that could not be opened is tried again.
const TRY_EVERY: Duration = Duration::from_secs(5);

/// An origin of this sidecar.
#[derive(Debug)]
pub(crate) struct OpenedOrigin {
    identity: String,
    state: State,
}

#[derive(Debug)]
enum State {
    Now(Opened),
    Later(Arc<LaterStore>),
}

impl OpenedOrigin {
    /// Opens an origin, or begins to.
    pub(crate) async fn open(settings: &BackendSettings, metrics: &Metrics) -> Result<Self> {
        let name = settings.name.as_str().to_owned();
        let OriginKind::Local(local) = &settings.origin.kind else {
            return backends::open(&name, &settings.origin, metrics).await.map(Self::now);
        };
        if !local.nfs {
            return backends::open(&name, &settings.origin, metrics).await.map(Self::now);
        }
        // What an opened one is called too, where no link is in the path.
        let identity = format!("local {}", local.root.display());
        let (config, metrics) = (settings.origin.clone(), metrics.clone());
        let first = tokio::spawn({
            let (name, config, metrics) = (name.clone(), config.clone(), metrics.clone());
            async move { backends::open(&name, &config, &metrics).await }
        });
        let why = match tokio::time::timeout(WAIT_AT_START, first).await {
            Ok(Ok(Ok(opened))) => return Ok(Self::now(opened)),
            Ok(Ok(Err(error))) => error.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {WAIT_AT_START:?}"),
        };
        tracing::warn!(backend = name, why, "cannot be opened now; it is tried again");
        let later = Arc::new(LaterStore {
            name: name.clone(),
            opened: OnceLock::new(),
            why: Mutex::new(why),
        });
        tokio::spawn(try_again(Arc::downgrade(&later), name, config, metrics));
        Ok(Self { identity, state: State::Later(later) })
    }

    fn now(opened: Opened) -> Self {
        Self { identity: opened.identity.clone(), state: State::Now(opened) }
    }

    /// Whose bytes they are.
    pub(crate) fn identity(&self) -> &str {
        &self.identity
    }

    /// The origin as a store.
    pub(crate) fn store(&self) -> Arc<dyn Store> {
        match &self.state {
            State::Now(opened) => Arc::clone(&opened.store),
            State::Later(later) => Arc::clone(later) as Arc<dyn Store>,
        }
    }

    /// Why the origin does not answer, where its latest calls found that it does not.
    pub(crate) fn problem(&self) -> Option<String> {
        let opened = match &self.state {
            State::Now(opened) => opened,
            State::Later(later) => match later.opened.get() {
                Some(opened) => opened,
                None => return Some(format!("not opened yet: {}", later.why())),
            },
        };
        if !opened.health.is_ok() {
            return Some(opened.health.describe());
        }
        let (failures, last) = opened.health.failures();
        let last = last.filter(|_| failures > 0)?;
        Some(format!("{failures} failures in a row: {last}"))
    }

    /// `closed`, `half_open` or `open`; an origin that is not opened yet counts as left alone.
    pub(crate) fn breaker(&self) -> &'static str {
        let opened = match &self.state {
            State::Now(opened) => Some(opened),
            State::Later(later) => later.opened.get(),
        };
        opened.map_or("open", |opened| opened.health.state().name())
    }
}

async fn try_again(later: Weak<LaterStore>, name: String, config: OriginConfig, metrics: Metrics) {
    loop {
        tokio::time::sleep(TRY_EVERY).await;
        let Some(later) = later.upgrade() else { return };
        match backends::open(&name, &config, &metrics).await {
            Ok(opened) => {
                tracing::info!(backend = name, "opened");
                // Nobody else sets it.
                let _ = later.opened.set(opened);
                return;
            }
            Err(error) => later.set_why(error.to_string()),
        }
    }
}

/// A store that is not there yet.
#[derive(Debug)]
struct LaterStore {
    name: String,
    opened: OnceLock<Opened>,
    why: Mutex<String>,
}

impl LaterStore {
    fn why(&self) -> String {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_why(&self, why: String) {
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    fn get_store(&self) -> Result<&dyn Store> {
        self.opened.get().map(|opened| &*opened.store).ok_or_else(|| {
            let context = format!("backend `{}` is not opened yet: {}", self.name, self.why());
            Error::new(ErrorKind::Unavailable, context)
        })
    }
}

#[async_trait]
impl Store for LaterStore {
    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        self.get_store()?.head(key).await
    }

    async fn stat(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        self.get_store()?.stat(key).await
    }

    async fn get(&self, key: &ObjectKey, options: GetOptions) -> Result<GetResult> {
        self.get_store()?.get(key, options).await
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        self.get_store()?.list(request).await
    }

    async fn put(&self, key: &ObjectKey, body: Body, options: PutOptions) -> Result<Written> {
        self.get_store()?.put(key, body, options).await
    }

    async fn start_upload(&self, key: &ObjectKey, options: PutOptions) -> Result<UploadId> {
        self.get_store()?.start_upload(key, options).await
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u16,
        body: Body,
    ) -> Result<PartEntry> {
        self.get_store()?.put_part(key, upload, number, body).await
    }

    async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[(u16, ETag)],
        condition: Condition,
    ) -> Result<Written> {
        self.get_store()?.complete_upload(key, upload, parts, condition).await
    }

    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        self.get_store()?.abort_upload(key, upload).await
    }

    async fn list_parts(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        after: Option<u16>,
        max_parts: usize,
    ) -> Result<PartList> {
        self.get_store()?.list_parts(key, upload, after, max_parts).await
    }

    async fn list_uploads(&self, request: &UploadListRequest) -> Result<UploadList> {
        self.get_store()?.list_uploads(request).await
    }

    async fn copy(
        &self,
        from: &ObjectKey,
        to: &ObjectKey,
        options: CopyOptions,
    ) -> Result<Written> {
        self.get_store()?.copy(from, to, options).await
    }

    async fn delete(&self, key: &ObjectKey, if_match: Option<&ETag>) -> Result<()> {
        self.get_store()?.delete(key, if_match).await
    }
}
