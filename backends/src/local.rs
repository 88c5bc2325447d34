//! Skeleton.
use std::sync::Arc;

use store::{Error, ErrorKind, Result, Store};

pub(crate) fn open(config: &crate::LocalConfig) -> Result<(Arc<dyn Store>, String)> {
    let _ = config;
    Err(Error::new(ErrorKind::Unsupported, "skeleton"))
}
