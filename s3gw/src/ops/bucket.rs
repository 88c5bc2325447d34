//! Operations on buckets themselves.
//!
//! Invariant: buckets come from the configuration and from nowhere else; creating one that is
//! there succeeds, creating another says where buckets come from. Answers about versions, tags and
//! access say what this endpoint does, not what the origin might.

use http::StatusCode;
use http::header::{HeaderName, LOCATION};
use s3s::{S3ErrorCode, dto};

use super::{grants, owner};
use crate::dates::timestamp;
use crate::failure::{Failure, Outcome};
use crate::front::Call;
use crate::reply::Reply;

/// The region whose buckets S3 reports with an empty location.
const UNNAMED_REGION: &str = "us-east-1";

/// `ListBuckets`.
pub(super) fn list(call: &Call) -> Outcome<Reply> {
    let prefix = call.query.non_empty("prefix").unwrap_or_default();
    let after = call.query.non_empty("continuation-token");
    let most = call.query.number("max-buckets")?.unwrap_or(u32::MAX) as usize;
    let mut rest = call
        .front
        .namespace
        .buckets()
        .filter(|bucket| bucket.name.as_str().starts_with(prefix))
        .filter(|bucket| after.is_none_or(|after| bucket.name.as_str() > after));
    let buckets: Vec<dto::Bucket> = rest
        .by_ref()
        .take(most.max(1))
        .map(|bucket| dto::Bucket {
            bucket_region: Some(call.front.region.clone()),
            creation_date: Some(timestamp(bucket.created)),
            name: Some(bucket.name.to_string()),
        })
        .collect();
    let more = rest.next().is_some();
    Reply::document(&dto::ListBucketsOutput {
        continuation_token: buckets.last().filter(|_| more).and_then(|b| b.name.clone()),
        buckets: Some(buckets),
        owner: Some(owner()),
        prefix: call.query.get("prefix").map(str::to_owned),
    })
}

/// `HeadBucket`.
pub(super) fn head(call: &Call) -> Outcome<Reply> {
    call.bucket()?;
    let mut reply = Reply::empty(StatusCode::OK);
    reply.set(HeaderName::from_static("x-amz-bucket-region"), &call.front.region);
    Ok(reply)
}

/// `CreateBucket`.
pub(super) fn create(call: &Call) -> Outcome<Reply> {
    let name = &call.target.bucket;
    if call.front.namespace.bucket(name).is_none() {
        return Err(Failure::new(
            S3ErrorCode::AccessDenied,
            format!(
                "bucket `{name}` is not configured: buckets are the backends of this sidecar's \
                 configuration and cannot be created over S3"
            ),
        ));
    }
    let mut reply = Reply::empty(StatusCode::OK);
    reply.set(LOCATION, &format!("/{name}"));
    Ok(reply)
}

/// `GetBucketLocation`.
pub(super) fn location(call: &Call) -> Outcome<Reply> {
    call.bucket()?;
    let region = &call.front.region;
    Reply::document(&dto::GetBucketLocationOutput {
        location_constraint: (region != UNNAMED_REGION).then(|| region.clone().into()),
    })
}

/// `GetBucketVersioning`: never enabled.
pub(super) fn versioning(call: &Call) -> Outcome<Reply> {
    call.bucket()?;
    Reply::document(&dto::GetBucketVersioningOutput::default())
}

/// `GetBucketTagging`: there are none, which S3 reports as an error.
pub(super) fn tagging(call: &Call) -> Outcome<Reply> {
    call.bucket()?;
    Err(Failure::new(S3ErrorCode::NoSuchTagSet, "The TagSet does not exist"))
}

/// `GetBucketAcl`: the owner may do everything.
pub(super) fn acl(call: &Call) -> Outcome<Reply> {
    call.bucket()?;
    Reply::document(&dto::GetBucketAclOutput { grants: Some(grants()), owner: Some(owner()) })
}

/// `GetBucketPolicyStatus`: nothing is public.
pub(super) fn policy_status(call: &Call) -> Outcome<Reply> {
    call.bucket()?;
    Reply::document(&dto::PolicyStatus { is_public: Some(false) })
}
