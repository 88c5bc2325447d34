//! Which operation a request is.
//!
//! Invariant: every request has exactly one name, served or not; what is not served is named in
//! the answer. The names are S3's and are the only values of the metrics' `operation` label.

use http::{HeaderMap, Method};

use crate::target::{Query, Target};

macro_rules! operations {
    ($($name:ident),* $(,)?) => {
        /// An operation that is served.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub(crate) enum Operation { $($name),* }

        impl Operation {
            /// All of them.
            pub(crate) const ALL: &[Self] = &[$(Self::$name),*];

            /// Its name in S3.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),* }
            }
        }
    };
}

operations! {
    ListBuckets, HeadBucket, CreateBucket, GetBucketLocation, GetBucketVersioning, GetBucketTagging,
    GetBucketAcl, GetBucketPolicyStatus, ListObjects, ListObjectsV2, ListObjectVersions,
    ListMultipartUploads, DeleteObjects,
    GetObject, HeadObject, PutObject, CopyObject, DeleteObject, GetObjectAttributes, GetObjectAcl,
    GetObjectTagging, CreateMultipartUpload, UploadPart, UploadPartCopy, CompleteMultipartUpload,
    AbortMultipartUpload, ListParts,
}

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// To an operation.
    Served(Operation),
    /// Nowhere: the name of what was asked for.
    Unserved(String),
}

/// Sub-resources of a bucket that are not served, with the noun in S3's name for them.
const BUCKET_SUBRESOURCES: &[(&str, &str)] = &[
    ("accelerate", "BucketAccelerateConfiguration"),
    ("acl", "BucketAcl"),
    ("analytics", "BucketAnalyticsConfiguration"),
    ("cors", "BucketCors"),
    ("encryption", "BucketEncryption"),
    ("intelligent-tiering", "BucketIntelligentTieringConfiguration"),
    ("inventory", "BucketInventoryConfiguration"),
    ("lifecycle", "BucketLifecycleConfiguration"),
    ("logging", "BucketLogging"),
    ("metrics", "BucketMetricsConfiguration"),
    ("notification", "BucketNotificationConfiguration"),
    ("object-lock", "ObjectLockConfiguration"),
    ("ownershipControls", "BucketOwnershipControls"),
    ("policy", "BucketPolicy"),
    ("publicAccessBlock", "PublicAccessBlock"),
    ("replication", "BucketReplication"),
    ("requestPayment", "BucketRequestPayment"),
    ("tagging", "BucketTagging"),
    ("versioning", "BucketVersioning"),
    ("website", "BucketWebsite"),
];

/// The same for an object.
const OBJECT_SUBRESOURCES: &[(&str, &str)] = &[
    ("acl", "ObjectAcl"),
    ("legal-hold", "ObjectLegalHold"),
    ("retention", "ObjectRetention"),
    ("tagging", "ObjectTagging"),
    ("torrent", "ObjectTorrent"),
    ("renameObject", "RenameObject"),
    ("append", "AppendObject"),
];

impl Route {
    /// The route of a request.
    pub(crate) fn of(method: &Method, target: &Target, query: &Query, headers: &HeaderMap) -> Self {
        if target.bucket.is_empty() {
            return match *method {
                Method::GET if target.key.is_empty() => Self::Served(Operation::ListBuckets),
                _ => Self::Unserved(format!("{method} of the root")),
            };
        }
        if target.key.is_empty() {
            bucket(method, query, headers)
        } else {
            object(method, query, headers)
        }
    }
}

fn bucket(method: &Method, query: &Query, headers: &HeaderMap) -> Route {
    let served = match *method {
        Method::HEAD => Some(Operation::HeadBucket),
        Method::GET => [
            ("location", Operation::GetBucketLocation),
            ("versioning", Operation::GetBucketVersioning),
            ("tagging", Operation::GetBucketTagging),
            ("acl", Operation::GetBucketAcl),
            ("policyStatus", Operation::GetBucketPolicyStatus),
            ("uploads", Operation::ListMultipartUploads),
            ("versions", Operation::ListObjectVersions),
        ]
        .into_iter()
        .find(|(name, _)| query.has(name))
        .map(|(_, operation)| operation),
        Method::POST if query.has("delete") => Some(Operation::DeleteObjects),
        _ => None,
    };
    if let Some(operation) = served {
        return Route::Served(operation);
    }
    if let Some(name) = unserved(BUCKET_SUBRESOURCES, method, query) {
        return Route::Unserved(name);
    }
    match *method {
        Method::GET if query.get("list-type") == Some("2") => {
            Route::Served(Operation::ListObjectsV2)
        }
        Method::GET => Route::Served(Operation::ListObjects),
        Method::PUT => Route::Served(Operation::CreateBucket),
        Method::DELETE => Route::Unserved("DeleteBucket".into()),
        Method::POST if is_form(headers) => Route::Unserved("PostObject".into()),
        _ => Route::Unserved(format!("{method} of a bucket")),
    }
}

fn object(method: &Method, query: &Query, headers: &HeaderMap) -> Route {
    if *method == Method::GET {
        let asked = [
            ("acl", Operation::GetObjectAcl),
            ("tagging", Operation::GetObjectTagging),
            ("attributes", Operation::GetObjectAttributes),
            ("uploadId", Operation::ListParts),
        ];
        if let Some((_, operation)) = asked.into_iter().find(|(name, _)| query.has(name)) {
            return Route::Served(operation);
        }
    }
    if let Some(name) = unserved(OBJECT_SUBRESOURCES, method, query) {
        return Route::Unserved(name);
    }
    let copies = headers.contains_key("x-amz-copy-source");
    let part = query.has("uploadId");
    Route::Served(match *method {
        Method::GET => Operation::GetObject,
        Method::HEAD => Operation::HeadObject,
        Method::PUT if part && copies => Operation::UploadPartCopy,
        Method::PUT if part => Operation::UploadPart,
        Method::PUT if copies => Operation::CopyObject,
        Method::PUT => Operation::PutObject,
        Method::DELETE if part => Operation::AbortMultipartUpload,
        Method::DELETE => Operation::DeleteObject,
        Method::POST if query.has("uploads") => Operation::CreateMultipartUpload,
        Method::POST if part => Operation::CompleteMultipartUpload,
        Method::POST if query.has("select") => {
            return Route::Unserved("SelectObjectContent".into());
        }
        Method::POST if query.has("restore") => return Route::Unserved("RestoreObject".into()),
        _ => return Route::Unserved(format!("{method} of an object")),
    })
}

fn unserved(known: &[(&str, &str)], method: &Method, query: &Query) -> Option<String> {
    let verb = match *method {
        Method::GET => "Get",
        Method::PUT => "Put",
        Method::DELETE => "Delete",
        _ => return None,
    };
    let (_, noun) = known.iter().find(|(name, _)| query.has(name))?;
    // A few names are whole already.
    if noun.starts_with("Rename") || noun.starts_with("Append") {
        return Some((*noun).to_owned());
    }
    Some(format!("{verb}{noun}"))
}

fn is_form(headers: &HeaderMap) -> bool {
    headers
        .get(http::header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"multipart/form-data"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(method: &str, path: &str, query: &str, copies: bool) -> Route {
        let mut headers = HeaderMap::new();
        if copies {
            headers.insert("x-amz-copy-source", "b/k".parse().unwrap());
        }
        let method = method.parse().unwrap();
        let target = Target::parse(path, None).unwrap();
        Route::of(&method, &target, &Query::parse(query).unwrap(), &headers)
    }

    #[test]
    fn served() {
        for (method, path, query, copies, name) in [
            ("GET", "/", "", false, "ListBuckets"),
            ("HEAD", "/b/", "", false, "HeadBucket"),
            ("PUT", "/b", "", false, "CreateBucket"),
            ("GET", "/b", "", false, "ListObjects"),
            ("GET", "/b/", "list-type=2", false, "ListObjectsV2"),
            ("GET", "/b", "list-type=1", false, "ListObjects"),
            ("GET", "/b", "location", false, "GetBucketLocation"),
            ("GET", "/b", "uploads=", false, "ListMultipartUploads"),
            ("POST", "/b", "delete", false, "DeleteObjects"),
            ("GET", "/b/k", "x-id=GetObject", false, "GetObject"),
            ("GET", "/b/k", "uploadId=1", false, "ListParts"),
            ("PUT", "/b/k", "", true, "CopyObject"),
            ("PUT", "/b/k", "partNumber=1&uploadId=2", true, "UploadPartCopy"),
            ("PUT", "/b/k", "partNumber=1&uploadId=2", false, "UploadPart"),
            ("POST", "/b/k", "uploads", false, "CreateMultipartUpload"),
            ("POST", "/b/k", "uploadId=2", false, "CompleteMultipartUpload"),
            ("DELETE", "/b/k", "uploadId=2", false, "AbortMultipartUpload"),
            ("DELETE", "/b/k", "", false, "DeleteObject"),
        ] {
            let Route::Served(operation) = route(method, path, query, copies) else {
                panic!("{method} {path}?{query} is not served");
            };
            assert_eq!(operation.name(), name, "{method} {path}?{query}");
        }
    }

    #[test]
    fn unserved_operations_are_named() {
        for (method, path, query, name) in [
            ("PUT", "/b", "policy", "PutBucketPolicy"),
            ("GET", "/b", "lifecycle", "GetBucketLifecycleConfiguration"),
            ("DELETE", "/b", "", "DeleteBucket"),
            ("PUT", "/b/k", "tagging", "PutObjectTagging"),
            ("GET", "/b/k", "torrent", "GetObjectTorrent"),
            ("POST", "/b/k", "select&select-type=2", "SelectObjectContent"),
            ("POST", "/b/k", "restore", "RestoreObject"),
            ("PATCH", "/b/k", "", "PATCH of an object"),
        ] {
            assert_eq!(route(method, path, query, false), Route::Unserved(name.into()));
        }
    }
}
