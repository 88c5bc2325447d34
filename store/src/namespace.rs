//! The federation: which buckets there are, and where each appears as a path.
//!
//! Invariant: both front ends hold one `Namespace` and nothing below it; a path belongs to the
//! longest mount path that contains it. It does not look at origins.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;

use crate::{BucketName, ETag, InvalidName, LocalCopy, NoCopy, ObjectKey, Store};

/// How much of an object is held near.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resident {
    /// Bytes of this version in the memory tier or on local disk.
    pub bytes: u64,
    /// Bytes of this version in all.
    pub of: u64,
}

/// Something that knows what it holds near. A cache does; an origin has nothing to say.
#[async_trait]
pub trait Residency: fmt::Debug + Send + Sync {
    /// How much of a version is held. Costs no request to the origin.
    async fn residency(&self, key: &ObjectKey, etag: &ETag, size: u64) -> Resident;

    /// The whole version as a local file, where there is one. It counts as a use of the object: one that
    /// is opened again and again is worth completing. Costs no request to the origin.
    async fn local_copy(
        &self,
        key: &ObjectKey,
        etag: &ETag,
        size: u64,
    ) -> Result<LocalCopy, NoCopy>;
}

/// A bucket of the federation.
#[derive(Debug, Clone)]
pub struct Bucket {
    /// Its name; an alias has its own.
    pub name: BucketName,
    /// What serves it.
    pub store: Arc<dyn Store>,
    /// What knows how much of it is near, if anything does.
    pub residency: Option<Arc<dyn Residency>>,
    /// True when writes are refused with [`crate::ErrorKind::ReadOnly`] before they reach the store.
    pub read_only: bool,
    /// When this process began to serve it; S3 wants a creation date.
    pub created: SystemTime,
}

/// Where a path lies in a bucket.
#[derive(Debug, Clone)]
pub struct Located<'a> {
    /// The bucket.
    pub bucket: &'a Bucket,
    /// The key that the path spells, without a leading or trailing slash; empty for the root of
    /// the mount when that has no prefix.
    pub key: String,
}

#[derive(Debug)]
struct Mount {
    segments: Vec<String>,
    bucket: BucketName,
    /// Empty, or ends with a slash.
    prefix: String,
}

/// Builds a [`Namespace`]; every refusal names what collides.
#[derive(Debug, Default)]
pub struct NamespaceBuilder {
    buckets: BTreeMap<BucketName, Bucket>,
    mounts: Vec<Mount>,
}

/// The federation of buckets.
#[derive(Debug, Default)]
pub struct Namespace {
    buckets: BTreeMap<BucketName, Bucket>,
    /// Longest first, so that the first match is the longest.
    mounts: Vec<Mount>,
}

impl NamespaceBuilder {
    /// Adds a bucket. A second one of the same name is refused.
    pub fn bucket(mut self, bucket: Bucket) -> Result<Self, InvalidNamespace> {
        let name = bucket.name.clone();
        if self.buckets.insert(name.clone(), bucket).is_some() {
            return Err(InvalidNamespace(format!("bucket `{name}` is named twice")));
        }
        Ok(self)
    }

    /// Shows the keys of `bucket` that begin with `prefix` (empty, or ending with a slash) below
    /// the absolute path `path`. Refused: unknown bucket, the same path twice, a path with empty,
    /// `.` or `..` segments.
    pub fn mount(
        mut self,
        path: &str,
        bucket: &BucketName,
        prefix: &str,
    ) -> Result<Self, InvalidNamespace> {
        let segments = segments(path)?;
        if !self.buckets.contains_key(bucket) {
            return Err(InvalidNamespace(format!(
                "mount path `{path}` names no bucket: `{bucket}`"
            )));
        }
        if !prefix.is_empty() && !prefix.ends_with('/') {
            return Err(InvalidNamespace(format!("prefix `{prefix}` must end with a slash")));
        }
        if let Some(other) = self.mounts.iter().find(|m| m.segments == segments) {
            return Err(InvalidNamespace(format!(
                "mount path `{path}` is used by both `{}` and `{bucket}`",
                other.bucket
            )));
        }
        self.mounts.push(Mount { segments, bucket: bucket.clone(), prefix: prefix.to_owned() });
        Ok(self)
    }

    /// The finished namespace.
    pub fn build(mut self) -> Namespace {
        self.mounts.sort_by_key(|m| std::cmp::Reverse(m.segments.len()));
        Namespace { buckets: self.buckets, mounts: self.mounts }
    }
}

/// Why a namespace cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidNamespace(String);

impl From<InvalidName> for InvalidNamespace {
    fn from(error: InvalidName) -> Self {
        Self(error.to_string())
    }
}

impl Namespace {
    /// Begins a namespace.
    pub fn builder() -> NamespaceBuilder {
        NamespaceBuilder::default()
    }

    /// The bucket of that name.
    pub fn bucket(&self, name: &str) -> Option<&Bucket> {
        self.buckets.get(name)
    }

    /// All buckets by name.
    pub fn buckets(&self) -> impl Iterator<Item = &Bucket> {
        self.buckets.values()
    }

    /// The bucket and key of an absolute path, by the longest mount path that contains it. `None`
    /// where only deeper mount paths, or nothing, can be found.
    pub fn locate(&self, path: &str) -> Option<Located<'_>> {
        let wanted: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
        let mount = self.mounts.iter().find(|m| {
            m.segments.len() <= wanted.len() && m.segments.iter().zip(&wanted).all(|(a, b)| a == b)
        })?;
        let rest = wanted[mount.segments.len()..].join("/");
        let key = format!("{}{rest}", mount.prefix);
        let key = key.strip_suffix('/').map_or_else(|| key.clone(), str::to_owned);
        Some(Located { bucket: self.bucket(mount.bucket.as_str())?, key })
    }

    /// Names directly below an absolute path that are mount paths or lead to one, in byte order.
    /// They are directories, and hide what a bucket has under the same name.
    pub fn mount_names(&self, path: &str) -> Vec<&str> {
        let wanted: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
        let below = self.mounts.iter().filter(|m| {
            m.segments.len() > wanted.len() && m.segments.iter().zip(&wanted).all(|(a, b)| a == b)
        });
        let names: BTreeSet<&str> = below.map(|m| m.segments[wanted.len()].as_str()).collect();
        names.into_iter().collect()
    }

    /// Every mount path with its bucket, longest first; for messages to people.
    pub fn mounts(&self) -> impl Iterator<Item = (String, &BucketName)> {
        self.mounts.iter().map(|m| (format!("/{}", m.segments.join("/")), &m.bucket))
    }
}

fn segments(path: &str) -> Result<Vec<String>, InvalidNamespace> {
    let Some(rest) = path.strip_prefix('/') else {
        return Err(InvalidNamespace(format!("mount path `{path}` must begin with a slash")));
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.is_empty() {
        return Ok(Vec::new());
    }
    rest.split('/')
        .map(|segment| match segment {
            "" | "." | ".." => Err(InvalidNamespace(format!(
                "mount path `{path}` has an empty, `.` or `..` segment"
            ))),
            _ => Ok(segment.to_owned()),
        })
        .collect()
}
