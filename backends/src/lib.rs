//! Origins as stores: S3, Azure Blob Storage, Google Cloud Storage, local and NFS directories.
//!
//! Invariant: what [`open()`] returns passes the contract of `store::testing`, except for the
//! differences that docs/origins.md names; nothing that is printed holds a secret. It refuses to
//! cache, and to fall back to any credential that was not configured.

mod azure;
mod calendar;
mod cloud;
mod config;
mod gcs;
mod http;
mod local;
mod metrics;
mod open;
mod prefixed;
mod probe;
mod resilience;
mod s3;

pub use config::{
    AzureConfig, AzureCredential, GcsConfig, GcsCredential, LocalConfig, OriginConfig, OriginKind,
    Policy, S3Config, S3Credential,
};
pub use metrics::Metrics;
pub use open::{Opened, open};
pub use probe::{ProbeReport, ProbeStep, probe};
pub use resilience::{BreakerState, Health};
