//! `PutObject`.
//!
//! Invariant: 200 means that the store has the whole object and every announced checksum was
//! right. A condition that fails already is told before a waiting client sends its body.

use http::StatusCode;
use http::header::{ETAG, EXPECT, HeaderName};
use store::{Bucket, Condition, ErrorKind, ObjectKey, PutOptions};

use super::attributes;
use crate::body::SharedVerdict;
use crate::body::checksum::Covers;
use crate::conditions;
use crate::failure::Outcome;
use crate::front::Call;
use crate::reply::Reply;

/// Writes an object.
pub(super) async fn put(mut call: Call) -> Outcome<Reply> {
    let bucket = call.writable_bucket()?;
    let key = call.key()?;
    let condition = conditions::of_write(&call.headers)?;
    let attributes = attributes::read(&call.headers)?;
    let plan = call.plan(Covers::Body)?;
    if call.headers.contains_key(EXPECT) {
        check_before_the_body(&bucket, &key, &condition).await?;
    }
    let (body, verdict) = call.body(plan).await?;
    let options = PutOptions { attributes, condition };
    let written =
        bucket.store.put(&key, body, options).await.map_err(|error| verdict.failure(error))?;
    let mut reply = Reply::empty(StatusCode::OK);
    reply.set(ETAG, &written.etag.quoted());
    add_checksums(&mut reply, &verdict);
    Ok(reply)
}

/// Repeats the checksums that were verified, as S3 does.
pub(super) fn add_checksums(reply: &mut Reply, verdict: &SharedVerdict) {
    for (name, value) in verdict.checksums() {
        reply.set(HeaderName::from_static(name), &value);
    }
}

/// Saves a client that waits for `100 Continue` a body that would be thrown away.
async fn check_before_the_body(
    bucket: &Bucket,
    key: &ObjectKey,
    condition: &Condition,
) -> Outcome<()> {
    if *condition == Condition::None {
        return Ok(());
    }
    let found = match bucket.store.head(key).await {
        Ok(meta) => Some(meta.etag),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    let holds = match condition {
        Condition::None => true,
        Condition::IfAbsent => found.is_none(),
        Condition::IfMatch(wanted) => found.as_ref() == Some(wanted),
    };
    if holds { Ok(()) } else { Err(conditions::failed()) }
}
