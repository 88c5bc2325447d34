//! `DeleteObject` and `DeleteObjects`.
//!
//! Invariant: what was not there counts as deleted; in a batch every key has its own result, and
//! one key's error is no other's.

use futures::StreamExt;
use http::StatusCode;
use s3s::{S3ErrorCode, dto};
use store::{Bucket, ETag, Error, ErrorKind};

use super::parse;
use crate::body::checksum::Covers;
use crate::conditions::{self, Tags};
use crate::failure::{Failure, Outcome};
use crate::front::{Call, key};
use crate::reply::Reply;

/// Most keys in a batch, as in S3.
const MAX_KEYS: usize = 1000;

/// Largest batch document: 1,000 keys of 1,024 bytes, each byte escaped at worst as six.
const MAX_DOCUMENT_BYTES: u64 = 8 << 20;

/// Deletions of one batch that run at a time.
const CONCURRENCY: usize = 16;

/// Deletes an object.
pub(super) async fn one(call: &Call) -> Outcome<Reply> {
    let bucket = call.writable_bucket()?;
    let key = call.key()?;
    let if_match = conditions::of_delete(&call.headers)?;
    match if_match {
        // Any version will do, but there must be one.
        Some(Tags::Any) => {
            let meta = bucket.store.head(&key).await.map_err(absent_is_failed)?;
            bucket.store.delete(&key, Some(&meta.etag)).await?;
        }
        Some(Tags::These(tags)) => bucket.store.delete(&key, tags.first()).await?,
        None => bucket.store.delete(&key, None).await?,
    }
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

fn absent_is_failed(error: Error) -> Failure {
    if error.kind() == ErrorKind::NotFound { conditions::failed() } else { error.into() }
}

/// Deletes up to 1,000 objects.
pub(super) async fn many(mut call: Call) -> Outcome<Reply> {
    let bucket = call.writable_bucket()?;
    let document = call.document(MAX_DOCUMENT_BYTES, Covers::Body).await?;
    let batch: dto::Delete = parse(&document)?;
    if batch.objects.is_empty() || batch.objects.len() > MAX_KEYS {
        return Err(Failure::new(
            S3ErrorCode::MalformedXML,
            format!("a batch names 1 to {MAX_KEYS} objects, not {}", batch.objects.len()),
        ));
    }
    let quiet = batch.quiet.unwrap_or(false);
    let results: Vec<_> = futures::stream::iter(batch.objects)
        .map(|object| delete(&bucket, object))
        .buffered(CONCURRENCY)
        .collect()
        .await;
    let (mut deleted, mut errors) = (Vec::new(), Vec::new());
    for (key, result) in results {
        match result {
            Ok(()) if quiet => {}
            Ok(()) => {
                deleted
                    .push(dto::DeletedObject { key: Some(key), ..dto::DeletedObject::default() });
            }
            Err(failure) => errors.push(dto::Error {
                code: Some(failure.code().as_str().to_owned()),
                key: Some(key),
                message: Some(failure.message().to_owned()),
                version_id: None,
            }),
        }
    }
    Reply::document(&dto::DeleteObjectsOutput {
        deleted: Some(deleted),
        errors: Some(errors),
        request_charged: None,
    })
}

async fn delete(bucket: &Bucket, object: dto::ObjectIdentifier) -> (String, Outcome<()>) {
    let result = async {
        if object.version_id.as_deref().is_some_and(|v| !v.is_empty() && v != "null") {
            return Err(Failure::new(S3ErrorCode::NoSuchVersion, "the bucket is not versioned"));
        }
        let tag = object.e_tag.as_ref().map(|tag| ETag::parse(tag.value()));
        Ok(bucket.store.delete(&key(&object.key)?, tag.as_ref()).await?)
    };
    let result = result.await;
    (object.key, result)
}
