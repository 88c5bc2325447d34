//! A bucket of Google Cloud Storage as a store.
//!
//! Invariant: a version is its generation, in every answer and every condition, since conditions
//! work on generations only; the service's own `ETag` is not used. Requests are our own, over the
//! XML interface, which streams, lists in byte order and has S3's multi-part uploads; copies use
//! the JSON interface, whose rewrites have no size limit. Only the token comes from
//! `object_store`. The credential is the configured one; there is no other to fall back to.

mod copy;
mod errors;
mod listing;
mod request;
mod uploads;

use std::fmt;
use std::sync::Arc;

use ::http::header::{ACCEPT_ENCODING, RANGE};
use ::http::{HeaderMap, HeaderName, HeaderValue, Method};
use async_trait::async_trait;
use reqwest::Response;
use store::{
    Attributes, Body, Condition, CopyOptions, ETag, Error, ErrorKind, GetOptions, GetResult,
    ListPage, ListRequest, ObjectKey, ObjectMeta, PartEntry, PartList, PutOptions, Result, Store,
    UploadId, UploadList, UploadListRequest, Written,
};

use crate::cloud::{self, What, reading};
use crate::http::{Call, CallBody, headers};
use crate::{GcsConfig, Policy};
use request::Client;

/// Where user metadata is.
const USER_PREFIX: &str = "x-goog-meta-";

/// Under which metadata name `Expires` is kept, which the service does not know.
const EXPIRES: &str = "warpdrive-expires";

const GENERATION: HeaderName = HeaderName::from_static("x-goog-generation");

/// The condition on a generation; zero is for an object that is not there.
const IF_GENERATION: HeaderName = HeaderName::from_static("x-goog-if-generation-match");

/// A raw store: no retries, no timeouts beyond connecting, no metrics, no prefix (decorators add
/// all four). Keys are the origin's own.
pub(crate) async fn open(config: &GcsConfig, policy: &Policy) -> Result<Arc<dyn Store>> {
    Ok(Arc::new(GcsStore { client: Client::new(config, policy).await? }))
}

/// A bucket.
pub(crate) struct GcsStore {
    client: Client,
}

impl fmt::Debug for GcsStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GcsStore({})", self.client)
    }
}

/// The generation that a tag of ours names.
fn generation(etag: &ETag) -> Option<&str> {
    let text = cloud::origin_tag(etag);
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number && text.len() < etag.as_str().len()).then_some(text)
}

fn other_version(key: &ObjectKey) -> Error {
    Error::new(ErrorKind::PreconditionFailed, format!("`{key}` is not in the expected version"))
}

/// The generation that a condition asks for; an error for a tag that no generation has.
fn wanted<'a>(key: &ObjectKey, condition: &'a Condition) -> Result<Option<&'a str>> {
    match condition {
        Condition::None => Ok(None),
        Condition::IfAbsent => Ok(Some("0")),
        Condition::IfMatch(etag) => generation(etag).map(Some).ok_or_else(|| other_version(key)),
    }
}

/// Adds the header of a condition.
fn set_condition(headers: &mut HeaderMap, key: &ObjectKey, condition: &Condition) -> Result<()> {
    if let Some(generation) = wanted(key, condition)? {
        headers.insert(IF_GENERATION, headers::header_value(generation)?);
    }
    Ok(())
}

fn absent(what: &str) -> Error {
    Error::new(ErrorKind::Corrupted, format!("answer of the origin has no {what}"))
}

fn tag(headers: &HeaderMap) -> Result<ETag> {
    let generation = headers::text(headers, &GENERATION).ok_or_else(|| absent("generation"))?;
    Ok(cloud::opaque(&generation))
}

/// The object's size as it is stored.
fn stored_length(headers: &HeaderMap) -> Option<u64> {
    headers.get("x-goog-stored-content-length")?.to_str().ok()?.parse().ok()
}

/// What an answer says of the object's version.
fn meta(headers: &HeaderMap, size: u64) -> Result<ObjectMeta> {
    Ok(ObjectMeta {
        size,
        etag: tag(headers)?,
        last_modified: headers::last_modified(headers).ok_or_else(|| absent("Last-Modified"))?,
        attributes: Some(Arc::new(attributes(headers))),
    })
}

/// The attributes that an answer carries. The service sends an `Expires` of its own making.
fn attributes(answer: &HeaderMap) -> Attributes {
    let mut found = headers::attributes(answer, USER_PREFIX);
    found.expires = found.user.remove(EXPIRES);
    found
}

/// Attributes as the service keeps them: `Expires` is metadata.
fn kept(attributes: &Attributes) -> Attributes {
    let mut kept = attributes.clone();
    if let Some(expires) = kept.expires.take() {
        kept.user.insert(EXPIRES.into(), expires);
    }
    kept
}

fn set_attributes(to: &mut HeaderMap, attributes: &Attributes) -> Result<()> {
    headers::set_attributes(to, &kept(attributes), USER_PREFIX)
}

/// The version that an answer to a write names.
fn written(answer: &Response) -> Result<Written> {
    let headers = answer.headers();
    Ok(Written { etag: tag(headers)?, last_modified: headers::last_modified(headers) })
}

#[async_trait]
impl Store for GcsStore {
    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        let mut call = Call::new(Method::HEAD, self.client.object(key, &[])?);
        // Without this the service would describe what it sends to clients that cannot gunzip.
        call.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        let answer = self.client.send_to(call, What::of("head", key)).await?;
        let headers = answer.headers();
        let size = stored_length(headers).or_else(|| headers::content_length(headers));
        meta(headers, size.ok_or_else(|| absent("Content-Length"))?)
    }

    async fn stat(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        self.head(key).await
    }

    async fn get(&self, key: &ObjectKey, options: GetOptions) -> Result<GetResult> {
        let range = options.range;
        if reading::is_empty(range) {
            let meta = self.head(key).await?;
            // Resolving fails but for the whole of an empty object, which is no empty range.
            range.resolve(meta.size)?;
        }
        let mut call = Call::new(Method::GET, self.client.object(key, &[])?);
        // Objects stored with `Content-Encoding: gzip` come as they are, not decompressed.
        call.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        if let Some(header) = range.header() {
            call.headers.insert(RANGE, headers::header_value(&header)?);
        }
        if let Some(etag) = &options.if_match {
            let generation = generation(etag).ok_or_else(|| other_version(key))?;
            call.headers.insert(IF_GENERATION, headers::header_value(generation)?);
        }
        let answer = self.client.send_to(call, What::of("get", key)).await?;
        let headers = answer.headers().clone();
        // Before the range: another version may have another size. Not every server of this
        // protocol looks at conditions of a GET.
        if options.if_match.is_some_and(|wanted| tag(&headers).is_ok_and(|found| found != wanted)) {
            return Err(other_version(key));
        }
        let got = reading::result(answer, range, |size| meta(&headers, size))?;
        if stored_length(&headers).is_some_and(|stored| stored != got.meta.size) {
            let context = format!("the origin sends `{key}` in another encoding than it is stored");
            return Err(Error::new(ErrorKind::Corrupted, context));
        }
        Ok(got)
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        cloud::listing::page(&self.client, request).await
    }

    async fn put(&self, key: &ObjectKey, body: Body, options: PutOptions) -> Result<Written> {
        let mut call = Call::new(Method::PUT, self.client.object(key, &[])?);
        set_attributes(&mut call.headers, &options.attributes)?;
        set_condition(&mut call.headers, key, &options.condition)?;
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
        self.send_part(key, upload, number, body).await
    }

    async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[(u16, ETag)],
        condition: Condition,
    ) -> Result<Written> {
        self.complete(key, upload, parts, condition).await
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
        self.parts(key, upload, after, max_parts).await
    }

    async fn list_uploads(&self, request: &UploadListRequest) -> Result<UploadList> {
        self.uploads(request).await
    }

    async fn copy(
        &self,
        from: &ObjectKey,
        to: &ObjectKey,
        options: CopyOptions,
    ) -> Result<Written> {
        self.rewrite(from, to, options).await
    }

    async fn delete(&self, key: &ObjectKey, if_match: Option<&ETag>) -> Result<()> {
        let mut call = Call::new(Method::DELETE, self.client.object(key, &[])?);
        if let Some(etag) = if_match {
            let generation = generation(etag).ok_or_else(|| other_version(key))?;
            call.headers.insert(IF_GENERATION, headers::header_value(generation)?);
        }
        match self.client.send_to(call, What::of("delete", key)).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => match if_match {
                None => Ok(()),
                Some(_) => Err(other_version(key)),
            },
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_generations() {
        assert_eq!(generation(&cloud::opaque("1700")), Some("1700"));
        for foreign in ["1700", "-1", "d41d8cd98f00b204e9800998ecf8427e", "x-1", ""] {
            assert_eq!(generation(&ETag::parse(foreign)), None, "{foreign}");
        }
        let key = ObjectKey::new("k").unwrap();
        assert_eq!(wanted(&key, &Condition::IfAbsent).unwrap(), Some("0"));
        let foreign = Condition::IfMatch(ETag::parse("abc"));
        let error = wanted(&key, &foreign).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PreconditionFailed);
    }

    #[test]
    fn expires_is_metadata() {
        let given = Attributes { expires: Some("never".into()), ..Attributes::default() };
        let mut headers = HeaderMap::new();
        set_attributes(&mut headers, &given).unwrap();
        assert!(!headers.contains_key("expires"));
        headers.insert("expires", HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"));
        assert_eq!(attributes(&headers), given);
    }
}
