//! `CopyObject` and `UploadPartCopy`.
//!
//! Invariant: a copy is of one version of its source, the one that the conditions were decided on.
//! Within a bucket the store copies; between buckets bytes stream from one to the other and are
//! never held whole.

use bytes::Bytes;
use percent_encoding::percent_decode_str;
use s3s::{S3ErrorCode, dto};
use store::{
    Body, Bucket, ByteRange, Condition, CopyOptions, Error, ErrorKind, GetOptions, ObjectKey,
    ObjectMeta, PutOptions, Written,
};

use super::{attributes, multipart, tag};
use crate::conditions::{self, Conditions, Decision, Of};
use crate::dates::timestamp;
use crate::failure::{Failure, Outcome};
use crate::front::{Call, key};
use crate::range_header;
use crate::reply::{Reply, render};

struct Source {
    bucket: Bucket,
    key: ObjectKey,
}

/// `x-amz-copy-source`: `bucket/key`, encoded once, perhaps with a slash before it and a version
/// behind it.
fn source(call: &Call) -> Outcome<Source> {
    let text = call.header("x-amz-copy-source").unwrap_or_default();
    let wrong = || Failure::invalid_argument("x-amz-copy-source is not bucket/key");
    let (path, version) = match text.split_once("?versionId=") {
        Some((path, version)) => (path, Some(version)),
        None => (text.as_str(), None),
    };
    if version.is_some_and(|version| version != "null") {
        return Err(Failure::new(S3ErrorCode::NoSuchVersion, "the bucket is not versioned"));
    }
    let path = percent_decode_str(path).decode_utf8().map_err(|_| wrong())?;
    let path = path.strip_prefix('/').unwrap_or(&path);
    let (bucket, name) = path.split_once('/').ok_or_else(wrong)?;
    if bucket.is_empty() || name.is_empty() {
        return Err(wrong());
    }
    Ok(Source { bucket: call.named_bucket(bucket)?, key: key(name)? })
}

/// The source's metadata, where its conditions hold.
async fn checked(call: &Call, source: &Source) -> Outcome<ObjectMeta> {
    let meta = source.bucket.store.head(&source.key).await?;
    match Conditions::read(&call.headers, Of::CopySource).decide(&meta) {
        Decision::Proceed => Ok(meta),
        Decision::NotModified | Decision::Failed => Err(conditions::failed()),
    }
}

/// Copies an object.
pub(super) async fn object(call: Call) -> Outcome<Reply> {
    let bucket = call.writable_bucket()?;
    let to = call.key()?;
    let source = source(&call)?;
    let replace = match call.header("x-amz-metadata-directive").as_deref() {
        None | Some("" | "COPY") => false,
        Some("REPLACE") => true,
        Some(_) => {
            return Err(Failure::invalid_argument(
                "x-amz-metadata-directive is not COPY or REPLACE",
            ));
        }
    };
    let same_bucket = source.bucket.name == bucket.name;
    if same_bucket && source.key == to && !replace {
        return Err(Failure::invalid_request(
            "This copy request is illegal because it is trying to copy an object to itself \
             without changing the object's metadata.",
        ));
    }
    let condition = conditions::of_write(&call.headers)?;
    let replaced = if replace { Some(attributes::read(&call.headers)?) } else { None };
    let late_error = call.late_error();
    let patience = call.front.patience;
    let copy = async move {
        let meta = checked(&call, &source).await?;
        let written = if same_bucket {
            let options = CopyOptions {
                attributes: replaced,
                source_if_match: Some(meta.etag.clone()),
                condition,
            };
            let unconditional = options.condition == Condition::None;
            let copied = bucket.store.copy(&source.key, &to, options).await;
            copied.map_err(|e| if unconditional { moved_on(&call, e) } else { e.into() })?
        } else {
            let kept = || meta.attributes.as_deref().cloned().unwrap_or_default();
            let attributes = replaced.unwrap_or_else(kept);
            let body = stream(&call, &source, &meta, ByteRange::Full).await?;
            bucket.store.put(&to, body, PutOptions { attributes, condition }).await?
        };
        result(&written)
    };
    Reply::patient(patience, copy, late_error).await
}

/// The bytes of one version of the source.
async fn stream(
    call: &Call,
    source: &Source,
    meta: &ObjectMeta,
    range: ByteRange,
) -> Outcome<Body> {
    let options = GetOptions { range, if_match: Some(meta.etag.clone()), reader: call.reader };
    let got = source.bucket.store.get(&source.key, options).await;
    let got = got.map_err(|error| moved_on(call, error))?;
    Ok(Body::new(got.range.end - got.range.start, got.body))
}

/// A source that is no longer in the version that was decided on. Only a client that made
/// conditions is told that one failed; for the others the same request succeeds in a while.
fn moved_on(call: &Call, error: Error) -> Failure {
    if error.kind() == ErrorKind::PreconditionFailed
        && Conditions::read(&call.headers, Of::CopySource).is_empty()
    {
        return Failure::changing();
    }
    error.into()
}

fn result(written: &Written) -> Outcome<Bytes> {
    render(&dto::CopyObjectResult {
        e_tag: Some(tag(&written.etag)),
        last_modified: Some(timestamp(
            written.last_modified.unwrap_or_else(std::time::SystemTime::now),
        )),
        ..dto::CopyObjectResult::default()
    })
}

/// Copies a range of an object into a part of an upload.
pub(super) async fn part(call: Call) -> Outcome<Reply> {
    let bucket = call.writable_bucket()?;
    let to = call.key()?;
    let (upload, number) = (multipart::upload_id(&call)?, multipart::part_number(&call)?);
    let source = source(&call)?;
    let range = match call.header("x-amz-copy-source-range") {
        None => ByteRange::Full,
        Some(text) => match range_header::parse_strict(&text) {
            Some((start, end)) => ByteRange::Bounded(start, end),
            None => {
                return Err(Failure::invalid_argument(
                    "The x-amz-copy-source-range value must be of the form bytes=first-last where \
                     first and last are the zero-based offsets of the first and last bytes to copy",
                ));
            }
        },
    };
    let late_error = call.late_error();
    let patience = call.front.patience;
    let copy = async move {
        let meta = checked(&call, &source).await?;
        if let ByteRange::Bounded(_, end) = range
            && end > meta.size
        {
            return Err(Failure::invalid_argument(format!(
                "Range specified is not valid for source object of size: {}",
                meta.size
            )));
        }
        let body = stream(&call, &source, &meta, range).await?;
        let part = bucket.store.put_part(&to, &upload, number, body).await?;
        render(&dto::CopyPartResult {
            e_tag: Some(tag(&part.etag)),
            last_modified: Some(timestamp(
                part.last_modified.unwrap_or_else(std::time::SystemTime::now),
            )),
            ..dto::CopyPartResult::default()
        })
    };
    Reply::patient(patience, copy, late_error).await
}
