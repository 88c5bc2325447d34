//! What is known of an object besides its bytes.
//!
//! Invariant: size and `ETag` of one [`ObjectMeta`] belong to the same version. Listings do not
//! carry attributes; `None` says so, it never means "there are none".

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use crate::ETag;

/// Metadata of one version of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Size in bytes.
    pub size: u64,
    /// The version.
    pub etag: ETag,
    /// When this version was written, by the origin's clock.
    pub last_modified: SystemTime,
    /// Headers and user metadata; `None` where the origin was not asked for them (a listing).
    pub attributes: Option<Arc<Attributes>>,
}

/// Headers that a writer attached to an object and every reader gets back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `Content-Type`.
    pub content_type: Option<String>,
    /// `Cache-Control`.
    pub cache_control: Option<String>,
    /// `Content-Disposition`.
    pub content_disposition: Option<String>,
    /// `Content-Encoding`, less `aws-chunked`.
    pub content_encoding: Option<String>,
    /// `Content-Language`.
    pub content_language: Option<String>,
    /// `Expires`, as it was written.
    pub expires: Option<String>,
    /// User metadata, keys in lower case without the `x-amz-meta-` prefix.
    pub user: BTreeMap<String, String>,
}

impl Attributes {
    /// True when nothing was attached.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
