//! The operations, a file for each family.
//!
//! Invariant: an operation turns a request into calls on one store (two for a copy between
//! buckets) and the result into an answer; it keeps nothing between requests.

mod attributes;
mod bucket;
mod copy;
mod delete;
mod list;
mod multipart;
mod read;
mod write;

use s3s::S3ErrorCode;
use s3s::dto;
use s3s::xml::{Deserialize, Deserializer};

use crate::failure::{Failure, Outcome};
use crate::front::Call;
use crate::operation::Operation;
use crate::reply::Reply;

/// The owner of everything: there is one, and it is this endpoint.
const OWNER: &str = "warpdrive";

/// Carries out an operation.
pub(crate) async fn run(operation: Operation, call: Call) -> Outcome<Reply> {
    match operation {
        Operation::GetObject => read::get(&call).await,
        Operation::HeadObject => read::head(&call).await,
        Operation::GetObjectAttributes => read::attributes(&call).await,
        Operation::GetObjectAcl => read::acl(&call).await,
        Operation::GetObjectTagging => read::tagging(&call).await,
        Operation::PutObject => write::put(call).await,
        Operation::CopyObject => copy::object(call).await,
        Operation::UploadPartCopy => copy::part(call).await,
        Operation::DeleteObject => delete::one(&call).await,
        Operation::DeleteObjects => delete::many(call).await,
        Operation::CreateMultipartUpload => multipart::create(&call).await,
        Operation::UploadPart => multipart::part(call).await,
        Operation::CompleteMultipartUpload => multipart::complete(call).await,
        Operation::AbortMultipartUpload => multipart::abort(&call).await,
        Operation::ListParts => multipart::list_parts(&call).await,
        Operation::ListMultipartUploads => multipart::list_uploads(&call).await,
        Operation::ListObjects => list::v1(&call).await,
        Operation::ListObjectsV2 => list::v2(&call).await,
        Operation::ListObjectVersions => list::versions(&call).await,
        Operation::ListBuckets => bucket::list(&call),
        Operation::HeadBucket => bucket::head(&call),
        Operation::CreateBucket => bucket::create(&call),
        Operation::GetBucketLocation => bucket::location(&call),
        Operation::GetBucketVersioning => bucket::versioning(&call),
        Operation::GetBucketTagging => bucket::tagging(&call),
        Operation::GetBucketAcl => bucket::acl(&call),
        Operation::GetBucketPolicyStatus => bucket::policy_status(&call),
    }
}

fn owner() -> dto::Owner {
    dto::Owner { display_name: Some(OWNER.to_owned()), id: Some(OWNER.to_owned()) }
}

/// Full control for the owner, and nobody else: the access that this endpoint has.
fn grants() -> dto::Grants {
    let grantee = dto::Grantee {
        display_name: Some(OWNER.to_owned()),
        email_address: None,
        id: Some(OWNER.to_owned()),
        type_: dto::Type::from_static(dto::Type::CANONICAL_USER),
        uri: None,
    };
    vec![dto::Grant {
        grantee: Some(grantee),
        permission: Some(dto::Permission::from_static(dto::Permission::FULL_CONTROL)),
    }]
}

fn tag(etag: &store::ETag) -> dto::ETag {
    dto::ETag::Strong(etag.as_str().to_owned())
}

/// Reads a document that a client sent.
fn parse<'d, T: Deserialize<'d>>(document: &'d [u8]) -> Outcome<T> {
    let mut reader = Deserializer::new(document);
    let parsed = T::deserialize(&mut reader).and_then(|value| reader.expect_eof().map(|()| value));
    parsed.map_err(|error| {
        Failure::new(S3ErrorCode::MalformedXML, format!("the document is not well formed: {error}"))
    })
}
