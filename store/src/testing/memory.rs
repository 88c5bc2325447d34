//! The reference store: everything in one ordered map under one lock.
//!
//! Invariant: every call is atomic, so it is the model of the contract. It refuses nothing that
//! S3 accepts, and enforces no minimal part size.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use md5::{Digest, Md5};
use parking_lot::Mutex;

use crate::{
    Attributes, Body, Condition, CopyOptions, ETag, Error, ErrorKind, GetOptions, GetResult,
    ListEntry, ListPage, ListRequest, ObjectKey, ObjectMeta, PartEntry, PartList, PutOptions,
    Result, Store, UploadEntry, UploadId, UploadList, UploadListRequest, Written,
};

/// Bodies and reads move in pieces of this size, so that callers meet more than one piece.
const PIECE_BYTES: usize = 64 * 1024;

/// Largest body that a test may keep in memory: 1 GiB.
const MAX_BODY_BYTES: u64 = 1 << 30;

#[derive(Debug, Clone)]
struct Version {
    bytes: Bytes,
    meta: ObjectMeta,
}

#[derive(Debug)]
struct Upload {
    key: ObjectKey,
    attributes: Attributes,
    parts: BTreeMap<u16, (Bytes, PartEntry)>,
    initiated: SystemTime,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<ObjectKey, Version>,
    uploads: BTreeMap<UploadId, Upload>,
}

/// A bucket in memory. Its clones share one content.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
    next_upload: Arc<AtomicU64>,
}

impl MemoryStore {
    /// An empty bucket.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes an object at once, as another client of the origin would.
    pub fn insert(&self, key: &str, bytes: impl Into<Bytes>) -> ETag {
        let key = ObjectKey::new(key).expect("tests use valid keys");
        let mut state = self.state.lock();
        state.write(key, bytes.into(), Attributes::default(), None).etag
    }

    /// Removes an object at once.
    pub fn remove(&self, key: &str) -> bool {
        self.state.lock().objects.remove(key).is_some()
    }
}

impl State {
    fn check(&self, key: &ObjectKey, condition: &Condition) -> Result<()> {
        let found = self.objects.get(key).map(|v| &v.meta.etag);
        let holds = match condition {
            Condition::None => true,
            Condition::IfAbsent => found.is_none(),
            Condition::IfMatch(wanted) => found == Some(wanted),
        };
        if holds { Ok(()) } else { Err(failed_condition(key)) }
    }

    fn write(
        &mut self,
        key: ObjectKey,
        bytes: Bytes,
        attributes: Attributes,
        etag: Option<ETag>,
    ) -> Written {
        let etag = etag.unwrap_or_else(|| ETag::parse(&hex::encode(Md5::digest(&bytes))));
        let last_modified = SystemTime::now();
        let meta = ObjectMeta {
            size: bytes.len() as u64,
            etag: etag.clone(),
            last_modified,
            attributes: Some(Arc::new(attributes)),
        };
        self.objects.insert(key, Version { bytes, meta });
        Written { etag, last_modified: Some(last_modified) }
    }

    fn upload(&mut self, key: &ObjectKey, id: &UploadId) -> Result<&mut Upload> {
        self.uploads.get_mut(id).filter(|u| u.key == *key).ok_or_else(|| {
            Error::new(ErrorKind::NoSuchUpload, format!("no upload `{}` of `{key}`", id.0))
        })
    }
}

fn failed_condition(key: &ObjectKey) -> Error {
    Error::new(ErrorKind::PreconditionFailed, format!("`{key}` is not in the expected version"))
}

fn not_found(key: &ObjectKey) -> Error {
    Error::new(ErrorKind::NotFound, format!("no object `{key}`"))
}

fn pieces(bytes: Bytes) -> crate::ByteStream {
    futures::stream::unfold(bytes, |mut rest| async move {
        (!rest.is_empty()).then(|| {
            let piece = rest.split_to(rest.len().min(PIECE_BYTES));
            (Ok(piece), rest)
        })
    })
    .boxed()
}

#[async_trait]
impl Store for MemoryStore {
    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        let state = self.state.lock();
        state.objects.get(key).map(|v| v.meta.clone()).ok_or_else(|| not_found(key))
    }

    async fn stat(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        self.head(key).await
    }

    async fn get(&self, key: &ObjectKey, options: GetOptions) -> Result<GetResult> {
        let found = self.state.lock().objects.get(key).cloned();
        let version = found.ok_or_else(|| not_found(key))?;
        if options.if_match.is_some_and(|wanted| wanted != version.meta.etag) {
            return Err(failed_condition(key));
        }
        let range = options.range.resolve(version.meta.size)?;
        let bytes = version.bytes.slice(range.start as usize..range.end as usize);
        Ok(GetResult { meta: version.meta, range, body: pieces(bytes) })
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        let state = self.state.lock();
        let after = request.token.as_ref().or(request.start_after.as_ref());
        let mut page = ListPage::default();
        let mut last: Option<String> = None;
        let from: Bound<&str> = Bound::Included(request.prefix.as_str());
        for (key, version) in state.objects.range::<str, _>((from, Bound::Unbounded)) {
            let Some(rest) = key.as_str().strip_prefix(request.prefix.as_str()) else { break };
            let rolled = request.delimiter.as_deref().and_then(|d| {
                rest.find(d).map(|at| format!("{}{}", request.prefix, &rest[..at + d.len()]))
            });
            if let Some(after) = after {
                // A token that is a common prefix means: everything below it was listed.
                let listed = request.token.is_some() && rolled.as_ref() == Some(after);
                if key.as_str() <= after.as_str() || listed {
                    continue;
                }
            }
            if rolled.is_some() && page.common_prefixes.last() == rolled.as_ref() {
                continue;
            }
            if page.entries.len() + page.common_prefixes.len() == request.max_keys {
                page.next = last;
                break;
            }
            if let Some(rolled) = rolled {
                last = Some(rolled.clone());
                page.common_prefixes.push(rolled);
            } else {
                last = Some(key.to_string());
                let meta = ObjectMeta { attributes: None, ..version.meta.clone() };
                page.entries.push(ListEntry { key: key.clone(), meta });
            }
        }
        Ok(page)
    }

    async fn put(&self, key: &ObjectKey, body: Body, options: PutOptions) -> Result<Written> {
        let bytes = body.collect(MAX_BODY_BYTES).await?;
        let mut state = self.state.lock();
        state.check(key, &options.condition)?;
        Ok(state.write(key.clone(), bytes, options.attributes, None))
    }

    async fn start_upload(&self, key: &ObjectKey, options: PutOptions) -> Result<UploadId> {
        let number = self.next_upload.fetch_add(1, Ordering::Relaxed);
        let id = UploadId(format!("upload-{number:06}").into());
        let upload = Upload {
            key: key.clone(),
            attributes: options.attributes,
            parts: BTreeMap::new(),
            initiated: SystemTime::now(),
        };
        self.state.lock().uploads.insert(id.clone(), upload);
        Ok(id)
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u16,
        body: Body,
    ) -> Result<PartEntry> {
        if !(1..=10_000).contains(&number) {
            let context = format!("part number {number} is not within 1 to 10000");
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        self.state.lock().upload(key, upload)?;
        let bytes = body.collect(MAX_BODY_BYTES).await?;
        let part = PartEntry {
            number,
            etag: ETag::parse(&hex::encode(Md5::digest(&bytes))),
            size: bytes.len() as u64,
            last_modified: Some(SystemTime::now()),
        };
        let mut state = self.state.lock();
        state.upload(key, upload)?.parts.insert(number, (bytes, part.clone()));
        Ok(part)
    }

    async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[(u16, ETag)],
        condition: Condition,
    ) -> Result<Written> {
        let mut state = self.state.lock();
        state.check(key, &condition)?;
        let found = state.upload(key, upload)?;
        if parts.is_empty() || !parts.is_sorted_by_key(|(number, _)| *number) {
            let context = "parts are not given in ascending order".to_owned();
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        let (mut all, mut digests) = (Vec::new(), Md5::new());
        for (number, etag) in parts {
            let part = found.parts.get(number).filter(|(_, part)| part.etag == *etag);
            let Some((bytes, _)) = part else {
                let context = format!("part {number} with tag {etag} was not uploaded");
                return Err(Error::new(ErrorKind::InvalidPart, context));
            };
            digests.update(Md5::digest(bytes));
            all.extend_from_slice(bytes);
        }
        let etag = ETag::parse(&format!("{}-{}", hex::encode(digests.finalize()), parts.len()));
        let done = state.uploads.remove(upload).expect("looked up under the same lock");
        Ok(state.write(key.clone(), all.into(), done.attributes, Some(etag)))
    }

    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        let mut state = self.state.lock();
        state.upload(key, upload)?;
        state.uploads.remove(upload);
        Ok(())
    }

    async fn list_parts(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        after: Option<u16>,
        max_parts: usize,
    ) -> Result<PartList> {
        let mut state = self.state.lock();
        let all = &state.upload(key, upload)?.parts;
        let mut rest = all.range(after.map_or(0, |n| n + 1)..).map(|(_, (_, part))| part.clone());
        let parts: Vec<_> = rest.by_ref().take(max_parts).collect();
        let next = rest.next().and_then(|_| parts.last().map(|p| p.number));
        Ok(PartList { parts, next })
    }

    async fn list_uploads(&self, request: &UploadListRequest) -> Result<UploadList> {
        let state = self.state.lock();
        let mut all: Vec<UploadEntry> = state
            .uploads
            .iter()
            .filter(|(_, u)| u.key.as_str().starts_with(&request.prefix))
            .filter(|(id, u)| match &request.after {
                None => true,
                Some((key, None)) => u.key.as_str() > key.as_str(),
                Some((key, Some(after))) => {
                    (u.key.as_str(), &*id.0) > (key.as_str(), after.as_str())
                }
            })
            .map(|(id, u)| UploadEntry {
                key: u.key.clone(),
                upload: id.clone(),
                initiated: Some(u.initiated),
            })
            .collect();
        all.sort_by(|a, b| (&a.key, &a.upload).cmp(&(&b.key, &b.upload)));
        let truncated = all.len() > request.max_uploads;
        all.truncate(request.max_uploads);
        Ok(UploadList { uploads: all, truncated })
    }

    async fn copy(
        &self,
        from: &ObjectKey,
        to: &ObjectKey,
        options: CopyOptions,
    ) -> Result<Written> {
        let mut state = self.state.lock();
        let source = state.objects.get(from).cloned().ok_or_else(|| not_found(from))?;
        if options.source_if_match.is_some_and(|wanted| wanted != source.meta.etag) {
            return Err(failed_condition(from));
        }
        state.check(to, &options.condition)?;
        let kept = || source.meta.attributes.as_deref().cloned().unwrap_or_default();
        let attributes = options.attributes.unwrap_or_else(kept);
        Ok(state.write(to.clone(), source.bytes.clone(), attributes, None))
    }

    async fn delete(&self, key: &ObjectKey, if_match: Option<&ETag>) -> Result<()> {
        let mut state = self.state.lock();
        if let Some(wanted) = if_match {
            state.check(key, &Condition::IfMatch(wanted.clone()))?;
        }
        state.objects.remove(key);
        Ok(())
    }
}
