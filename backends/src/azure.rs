//! A container of Azure Blob Storage as a store.
//!
//! Invariant: every request is our own and only its signature comes from `object_store`, so that
//! a key is sent as it is or refused with [`ErrorKind::UnsupportedKey`], never changed. Block
//! blobs only. The credential is the configured one; there is no other to fall back to.

mod blocks;
mod copy;
mod errors;
mod listing;
mod metadata;
mod request;
mod upload_ids;
mod uploads;

use std::fmt;
use std::sync::Arc;

use ::http::header::{IF_MATCH, IF_NONE_MATCH, RANGE};
use ::http::{HeaderMap, HeaderName, HeaderValue, Method};
use async_trait::async_trait;
use reqwest::Response;
use store::{
    Body, ByteRange, Condition, CopyOptions, ETag, Error, ErrorKind, GetOptions, GetResult,
    ListPage, ListRequest, ObjectKey, ObjectMeta, PartEntry, PartList, PutOptions, Result, Store,
    UploadId, UploadList, UploadListRequest, Written,
};

use crate::cloud::{self, What, reading};
use crate::http::{Call, CallBody, headers};
use crate::{AzureConfig, Policy};
use request::Client;

/// Largest body that goes as one Put Blob, which is atomic and leaves nothing behind when it
/// fails. The service takes 5,000 MiB; 256 MiB is where the vendor's own clients change to blocks.
const ONE_PUT_BYTES: u64 = 256 * 1024 * 1024;

/// A raw store: no retries, no timeouts beyond connecting, no metrics, no prefix (decorators add
/// all four). Keys are the origin's own.
#[allow(clippy::unused_async)] // Every origin is opened by an async function.
pub(crate) async fn open(config: &AzureConfig, policy: &Policy) -> Result<Arc<dyn Store>> {
    Ok(Arc::new(AzureStore::new(config, policy)?))
}

/// A container.
pub(crate) struct AzureStore {
    client: Client,
    uploads: upload_ids::Known,
    /// [`ONE_PUT_BYTES`]; smaller in tests.
    one_put_bytes: u64,
}

impl fmt::Debug for AzureStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AzureStore({})", self.client)
    }
}

impl AzureStore {
    fn new(config: &AzureConfig, policy: &Policy) -> Result<Self> {
        let client = Client::new(config, policy)?;
        Ok(Self { client, uploads: upload_ids::Known::default(), one_put_bytes: ONE_PUT_BYTES })
    }
}

/// Adds the headers of a condition on the blob that is written.
fn set_condition(headers: &mut HeaderMap, condition: &Condition) -> Result<()> {
    match condition {
        Condition::None => {}
        Condition::IfAbsent => {
            headers.insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
        }
        Condition::IfMatch(etag) => set_tag(headers, IF_MATCH, etag)?,
    }
    Ok(())
}

/// Adds a header that names a version.
fn set_tag(headers: &mut HeaderMap, name: HeaderName, etag: &ETag) -> Result<()> {
    let quoted = format!("\"{}\"", cloud::origin_tag(etag));
    headers.insert(name, request::ascii_value(&quoted)?);
    Ok(())
}

/// What an answer says of the blob's version. Directories of accounts with a hierarchical
/// namespace look like blobs, and are none.
fn meta(key: &ObjectKey, headers: &HeaderMap, size: u64) -> Result<ObjectMeta> {
    if headers.get("x-ms-resource-type").is_some_and(|kind| kind == "directory") {
        return Err(Error::new(ErrorKind::NotFound, format!("`{key}` is a directory")));
    }
    Ok(ObjectMeta {
        size,
        etag: tag(headers)?,
        last_modified: headers::last_modified(headers).ok_or_else(|| absent("Last-Modified"))?,
        attributes: Some(Arc::new(metadata::attributes(headers))),
    })
}

fn tag(headers: &HeaderMap) -> Result<ETag> {
    headers::etag(headers).map(|t| cloud::opaque(t.as_str())).ok_or_else(|| absent("ETag"))
}

fn absent(what: &str) -> Error {
    Error::new(ErrorKind::Corrupted, format!("answer of the origin has no {what}"))
}

/// The version that an answer to a write names.
fn written(answer: &Response) -> Result<Written> {
    let headers = answer.headers();
    Ok(Written { etag: tag(headers)?, last_modified: headers::last_modified(headers) })
}

#[async_trait]
impl Store for AzureStore {
    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        let call = Call::new(Method::HEAD, self.client.blob(key, &[])?);
        let answer = self.client.send(call, What::of("head", key)).await?;
        let headers = answer.headers();
        let size = headers::content_length(headers).ok_or_else(|| absent("Content-Length"))?;
        meta(key, headers, size)
    }

    async fn stat(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        self.head(key).await
    }

    async fn get(&self, key: &ObjectKey, options: GetOptions) -> Result<GetResult> {
        let GetOptions { mut range, mut if_match, .. } = options;
        if reading::is_empty(range) || matches!(range, ByteRange::Suffix(_)) {
            // The service has no suffix ranges, and HTTP no empty ones.
            let meta = self.head(key).await?;
            if if_match.as_ref().is_some_and(|wanted| *wanted != meta.etag) {
                let context = format!("`{key}` is not in the expected version");
                return Err(Error::new(ErrorKind::PreconditionFailed, context));
            }
            range = range.resolve(meta.size)?.into();
            if_match = Some(meta.etag);
        }
        let mut call = Call::new(Method::GET, self.client.blob(key, &[])?);
        if let Some(header) = range.header() {
            call.headers.insert(RANGE, request::ascii_value(&header)?);
        }
        if let Some(etag) = &if_match {
            set_tag(&mut call.headers, IF_MATCH, etag)?;
        }
        let answer = self.client.send(call, What::of("get", key)).await?;
        let headers = answer.headers().clone();
        let got = reading::result(answer, range, |size| meta(key, &headers, size))?;
        if if_match.is_some_and(|wanted| wanted != got.meta.etag) {
            let context = format!("`{key}` is not in the expected version");
            return Err(Error::new(ErrorKind::PreconditionFailed, context));
        }
        Ok(got)
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        cloud::listing::page(&self.client, request).await
    }

    async fn put(&self, key: &ObjectKey, body: Body, options: PutOptions) -> Result<Written> {
        if body.size > self.one_put_bytes {
            return self.put_in_blocks(key, body, options).await;
        }
        let mut call = Call::new(Method::PUT, self.client.blob(key, &[])?);
        call.headers.insert("x-ms-blob-type", HeaderValue::from_static("BlockBlob"));
        metadata::set_attributes(&mut call.headers, &options.attributes)?;
        set_condition(&mut call.headers, &options.condition)?;
        call.body = CallBody::Stream(body);
        written(&self.client.send(call, What::of("put", key)).await?)
    }

    async fn start_upload(&self, key: &ObjectKey, options: PutOptions) -> Result<UploadId> {
        self.begin(key, &options.attributes).await
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u16,
        body: Body,
    ) -> Result<PartEntry> {
        self.stage_part(key, upload, number, body).await
    }

    async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[(u16, ETag)],
        condition: Condition,
    ) -> Result<Written> {
        self.commit(key, upload, parts, condition).await
    }

    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        self.abort(key, upload).await
    }

    async fn list_parts(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        after: Option<u16>,
        max_parts: usize,
    ) -> Result<PartList> {
        self.staged_parts(key, upload, after, max_parts).await
    }

    async fn list_uploads(&self, request: &UploadListRequest) -> Result<UploadList> {
        self.open_uploads(request).await
    }

    async fn copy(
        &self,
        from: &ObjectKey,
        to: &ObjectKey,
        options: CopyOptions,
    ) -> Result<Written> {
        self.copy_blob(from, to, options).await
    }

    async fn delete(&self, key: &ObjectKey, if_match: Option<&ETag>) -> Result<()> {
        let mut call = Call::new(Method::DELETE, self.client.blob(key, &[])?);
        if let Some(etag) = if_match {
            set_tag(&mut call.headers, IF_MATCH, etag)?;
        }
        match self.client.send(call, What::of("delete", key)).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => match if_match {
                None => Ok(()),
                Some(_) => Err(Error::new(
                    ErrorKind::PreconditionFailed,
                    format!("`{key}` is not in the expected version: it is not there"),
                )),
            },
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
