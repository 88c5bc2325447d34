//! Skeleton.

use std::sync::Arc;

use store::{Error, ErrorKind, Result, Store};

use crate::Policy;

/// A raw store: no retries, no timeouts beyond connecting, no metrics, no prefix (decorators add
/// all four). Keys are the origin's own.
pub(crate) async fn open(config: &crate::GcsConfig, policy: &Policy) -> Result<Arc<dyn Store>> {
    let _ = (config, policy);
    Err(Error::new(ErrorKind::Unsupported, "skeleton"))
}
