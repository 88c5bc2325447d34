//! What a pod asks for: annotations, made into settings that can be built without a further question.
//!
//! Invariant: settings that exist are possible together. A value, name or combination that is not is
//! one sentence that names the annotation and says what is allowed; nothing is ignored or guessed.

pub(crate) mod annotations;
mod defaults;
pub(crate) mod quantity;
mod read;

use std::fmt;

pub use annotations::{ANNOTATIONS, Annotation};
pub use defaults::{Defaults, Quantities, ResourceOverrides};
pub(crate) use read::{quoted, within};

/// Why a pod is not admitted: one sentence for its author.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial(String);

impl Denial {
    pub(crate) fn new(sentence: impl Into<String>) -> Self {
        Self(sentence.into())
    }

    /// A denial for what an annotation says.
    pub(crate) fn of(annotation: &str, what: impl fmt::Display) -> Self {
        Self(format!("annotation {}{annotation}: {what}", crate::names::ANNOTATION_PREFIX))
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Denial {}

/// Who makes the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A privileged container of the pod.
    Sidecar,
    /// The node service, as an inline CSI volume.
    Csi,
    /// Nobody: S3 only.
    S3,
}

impl Mode {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::Csi => "csi",
            Self::S3 => "s3",
        }
    }
}

/// A `ConfigMap` or a `Secret` of the pod's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Object {
    ConfigMap(String),
    Secret(String),
}

/// Where the disk tier is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cache {
    /// Nowhere.
    Memory,
    EmptyDir,
    /// A claim that lives as long as the pod, of this storage class or of the default one.
    Ephemeral(Option<String>),
    Claim(String),
    HostPath(String),
}

/// What is fetched ahead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Warm {
    All,
    /// Buckets with a prefix, empty for the whole bucket.
    These(Vec<(String, String)>),
}

/// The S3 endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum S3 {
    On,
    Off,
    Anonymous,
}

/// Everything that decides how a pod is injected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) mode: Mode,
    pub(crate) config: Object,
    pub(crate) config_key: String,
    pub(crate) env_from: Vec<Object>,
    /// Absolute, without a trailing slash, none within another.
    pub(crate) mounts: Vec<String>,
    /// `None` for all.
    pub(crate) containers: Option<Vec<String>>,
    pub(crate) read_only: bool,
    pub(crate) cache: Cache,
    pub(crate) cache_bytes: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) warm: Option<Warm>,
    pub(crate) s3: S3,
    pub(crate) s3_port: Option<u16>,
    pub(crate) admin_port: Option<u16>,
    /// `None` where nobody said.
    pub(crate) metrics: Option<bool>,
    pub(crate) flush_seconds: u32,
    /// Audience and file name.
    pub(crate) tokens: Vec<(String, String)>,
    pub(crate) cpu_milli: u64,
    pub(crate) log_level: Option<String>,
}

#[cfg(test)]
mod tests;
