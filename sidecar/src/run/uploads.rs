//! The memory of uploads, out of what the cache bounds for the whole process.
//!
//! Invariant: it only passes on; who may hold how much is decided by the cache's governor.

use std::any::Any;
use std::sync::Arc;

use cache::Governor;
use futures::FutureExt;
use futures::future::BoxFuture;
use s3gw::UploadMemory;

/// Uploads of the S3 endpoint, as the governor sees them.
#[derive(Debug)]
pub(super) struct Uploads(pub(super) Arc<Governor>);

impl UploadMemory for Uploads {
    fn lease(&self, bytes: u64) -> BoxFuture<'static, Box<dyn Any + Send + Sync>> {
        let governor = Arc::clone(&self.0);
        async move { Box::new(governor.upload(bytes).await) as Box<dyn Any + Send + Sync> }.boxed()
    }
}
