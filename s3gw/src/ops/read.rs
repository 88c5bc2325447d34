//! `GetObject`, `HeadObject` and what can be asked about an object.
//!
//! Invariant: conditions are decided on the version whose bytes are sent; headers and bytes of an
//! answer belong to one version. A range that names no byte is 416 with the object's size.

use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderValue, IF_RANGE, RANGE};
use s3s::{S3ErrorCode, dto};
use store::{Bucket, ByteRange, ETag, ErrorKind, GetOptions, ObjectKey, ObjectMeta};

use super::{attributes, grants, owner, tag};
use crate::conditions::{self, Conditions, Decision, Of};
use crate::dates::http_date;
use crate::failure::{Failure, Outcome};
use crate::front::Call;
use crate::range_header;
use crate::reply::{Reply, ReplyBody};

/// Sends an object or a range of it.
pub(super) async fn get(call: &Call) -> Outcome<Reply> {
    let bucket = call.bucket()?;
    let key = call.key()?;
    let conditions = Conditions::read(&call.headers, Of::Object);
    let (mut range, accepted) = wanted(call, &bucket, &key).await?;
    let fetch = |range| {
        let options = GetOptions { range, if_match: conditions.pinned(), reader: call.reader };
        bucket.store.get(&key, options)
    };
    let mut got = fetch(range).await;
    if let Some(accepted) = accepted {
        let version = got.as_ref().map(|got| got.meta.etag.clone()).map_err(store::Error::kind);
        if found(&bucket, &key, version).await?.is_some_and(|found| found != accepted) {
            // Another version than the client has a part of: it needs all of it.
            range = ByteRange::Full;
            got = fetch(range).await;
        }
    }
    let got = match got {
        Ok(got) => got,
        Err(error) if error.kind() == ErrorKind::InvalidRange => {
            // The other conditions come first, and the answer names the object's size.
            let meta = bucket.store.head(&key).await?;
            check(&conditions, &meta)?;
            return Err(unsatisfiable(meta.size));
        }
        Err(error) if error.kind() == ErrorKind::PreconditionFailed => {
            // Without a tag of the client's this is the layers below, losing sight of a version.
            let pinned = conditions.pinned().is_some();
            return Err(if pinned { conditions::failed() } else { Failure::changing() });
        }
        Err(error) => return Err(error.into()),
    };
    let mut meta = got.meta;
    check(&conditions, &meta)?;
    if meta.attributes.is_none() {
        // The origin's answer had none; without them the answer would hide what was attached.
        let head = bucket.store.head(&key).await?;
        if head.etag == meta.etag {
            meta.attributes = head.attributes;
        }
    }
    let mut reply = answer(call, &meta, range, &got.range);
    let length = got.range.end - got.range.start;
    reply.body = ReplyBody::Stream(got.body, length);
    Ok(reply)
}

/// Sends what `get` would send, less the bytes.
pub(super) async fn head(call: &Call) -> Outcome<Reply> {
    let bucket = call.bucket()?;
    let key = call.key()?;
    let (mut range, accepted) = wanted(call, &bucket, &key).await?;
    let meta = bucket.store.head(&key).await?;
    if accepted.is_some_and(|accepted| accepted != meta.etag) {
        range = ByteRange::Full;
    }
    check(&Conditions::read(&call.headers, Of::Object), &meta)?;
    let sent = range.resolve(meta.size).map_err(|none| unsatisfiable(none.size))?;
    Ok(answer(call, &meta, range, &sent))
}

fn answer(call: &Call, meta: &ObjectMeta, range: ByteRange, sent: &std::ops::Range<u64>) -> Reply {
    let partial = range != ByteRange::Full;
    let mut reply =
        Reply::empty(if partial { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK });
    attributes::describe(&mut reply.headers, meta, &call.query);
    reply.headers.insert(CONTENT_LENGTH, (sent.end - sent.start).into());
    if partial {
        let last = sent.end.saturating_sub(1);
        reply.set(CONTENT_RANGE, &format!("bytes {}-{last}/{}", sent.start, meta.size));
    }
    reply
}

/// The version that was found, where that is known. A range that names no byte has to be looked up.
async fn found(
    bucket: &Bucket,
    key: &ObjectKey,
    got: Result<ETag, ErrorKind>,
) -> Outcome<Option<ETag>> {
    match got {
        Ok(etag) => Ok(Some(etag)),
        Err(ErrorKind::InvalidRange) => Ok(Some(bucket.store.head(key).await?.etag)),
        Err(_) => Ok(None),
    }
}

/// The range that the request asks for and, where `If-Range` allows it, the only version of which
/// it may be sent.
async fn wanted(
    call: &Call,
    bucket: &Bucket,
    key: &ObjectKey,
) -> Outcome<(ByteRange, Option<ETag>)> {
    let header = call.header(RANGE.as_str());
    if let Some(part) = call.query.number("partNumber")? {
        if header.is_some() {
            return Err(Failure::invalid_request("Range and partNumber cannot be used together"));
        }
        // How an object was uploaded is not kept: it is one part, which is all of it.
        if part == 1 {
            return Ok((ByteRange::Full, None));
        }
        return Err(Failure::with_status(
            StatusCode::RANGE_NOT_SATISFIABLE,
            S3ErrorCode::Custom("InvalidPartNumber".into()),
            "The requested partnumber is not satisfiable",
        ));
    }
    let Some(range) = header.as_deref().and_then(range_header::parse) else {
        return Ok((ByteRange::Full, None));
    };
    let Some(validator) = call.header(IF_RANGE.as_str()) else { return Ok((range, None)) };
    let meta = bucket.store.head(key).await?;
    let same = match httpdate::parse_http_date(&validator) {
        Ok(_) => http_date(meta.last_modified) == validator.trim(),
        Err(_) => ETag::parse(&validator) == meta.etag,
    };
    Ok(if same { (range, Some(meta.etag)) } else { (ByteRange::Full, None) })
}

fn check(conditions: &Conditions, meta: &ObjectMeta) -> Outcome<()> {
    if conditions.is_empty() {
        return Ok(());
    }
    match conditions.decide(meta) {
        Decision::Proceed => Ok(()),
        Decision::Failed => Err(conditions::failed()),
        Decision::NotModified => {
            let mut headers = http::HeaderMap::new();
            attributes::validators(&mut headers, meta);
            Err(Failure::not_modified(headers))
        }
    }
}

fn unsatisfiable(size: u64) -> Failure {
    let failure = Failure::new(S3ErrorCode::InvalidRange, "The requested range is not satisfiable");
    match HeaderValue::try_from(format!("bytes */{size}")) {
        Ok(value) => failure.header(CONTENT_RANGE, value),
        Err(_) => failure,
    }
}

/// `GetObjectAttributes`: those that are asked for and known.
pub(super) async fn attributes(call: &Call) -> Outcome<Reply> {
    let meta = call.bucket()?.store.head(&call.key()?).await?;
    let asked = call.header("x-amz-object-attributes").unwrap_or_default();
    let wants = |name: &str| asked.split(',').any(|a| a.trim() == name);
    if asked.trim().is_empty() {
        return Err(Failure::invalid_argument("x-amz-object-attributes names no attribute"));
    }
    let mut reply = Reply::document(&dto::GetObjectAttributesOutput {
        e_tag: wants("ETag").then(|| tag(&meta.etag)),
        object_size: wants("ObjectSize").then(|| meta.size.cast_signed()),
        storage_class: wants("StorageClass")
            .then(|| dto::StorageClass::from_static(dto::StorageClass::STANDARD)),
        ..dto::GetObjectAttributesOutput::default()
    })?;
    reply.set(http::header::LAST_MODIFIED, &http_date(meta.last_modified));
    Ok(reply)
}

/// `GetObjectAcl`: the owner may do everything.
pub(super) async fn acl(call: &Call) -> Outcome<Reply> {
    call.bucket()?.store.head(&call.key()?).await?;
    Reply::document(&dto::GetObjectAclOutput {
        grants: Some(grants()),
        owner: Some(owner()),
        ..dto::GetObjectAclOutput::default()
    })
}

/// `GetObjectTagging`: there are no tags.
pub(super) async fn tagging(call: &Call) -> Outcome<Reply> {
    call.bucket()?.store.head(&call.key()?).await?;
    Reply::document(&dto::GetObjectTaggingOutput { tag_set: Vec::new(), version_id: None })
}
