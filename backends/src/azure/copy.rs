//! Copies at the origin.
//!
//! Invariant: a copy returns when it is whole. The service copies content headers with the bytes
//! and cannot replace them in the same request: where attributes are replaced, the copy has the
//! source's content headers for a moment, and keeps them if the second request fails.

use std::time::Duration;

use ::http::Method;
use ::http::header::{HeaderName, IF_MATCH};
use store::{
    Attributes, Condition, CopyOptions, ETag, Error, ErrorKind, ObjectKey, Result, Written,
};

use super::{AzureStore, metadata, set_condition, set_tag, tag, written};
use crate::cloud::What;
use crate::http::{Call, headers};

/// First wait for a copy that is not done at once; it doubles up to the longest. The service is
/// asked with HEAD, and copies within one account are nearly always done in their first answer.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

const COPY_STATUS: HeaderName = HeaderName::from_static("x-ms-copy-status");

impl AzureStore {
    pub(super) async fn copy_blob(
        &self,
        from: &ObjectKey,
        to: &ObjectKey,
        options: CopyOptions,
    ) -> Result<Written> {
        let CopyOptions { attributes, source_if_match, condition } = options;
        if from == to
            && let Some(attributes) = &attributes
        {
            let version = self.same_version(from, source_if_match, condition).await?;
            return self.describe(to, attributes, version).await;
        }
        let mut call = Call::new(Method::PUT, self.client.blob(to, &[])?);
        call.headers.insert("x-ms-copy-source", self.client.source(from)?);
        if let Some(etag) = &source_if_match {
            set_tag(&mut call.headers, HeaderName::from_static("x-ms-source-if-match"), etag)?;
        }
        set_condition(&mut call.headers, &condition)?;
        let what = What::of("copy", from);
        let answer = self.client.send(call, what).await?;
        let pending = headers::text(answer.headers(), &COPY_STATUS).is_some_and(|s| s == "pending");
        let done = if pending { self.wait(to).await? } else { written(&answer)? };
        match attributes {
            Some(attributes) => self.describe(to, &attributes, Some(done.etag)).await,
            None => Ok(done),
        }
    }

    /// The version that both conditions of a copy onto itself allow; `None` for any.
    async fn same_version(
        &self,
        key: &ObjectKey,
        source: Option<ETag>,
        condition: Condition,
    ) -> Result<Option<ETag>> {
        let failed = || {
            let context = format!("`{key}` is not in the expected version");
            Error::new(ErrorKind::PreconditionFailed, context)
        };
        match (source, condition) {
            (source, Condition::None) => Ok(source),
            (Some(source), Condition::IfMatch(wanted)) if source != wanted => Err(failed()),
            (_, Condition::IfMatch(wanted)) => Ok(Some(wanted)),
            (_, Condition::IfAbsent) => {
                // What is absent cannot be copied: one of two errors it is.
                let call = Call::new(Method::HEAD, self.client.blob(key, &[])?);
                self.client.send(call, What::of("head", key)).await?;
                Err(failed())
            }
        }
    }

    /// Replaces all attributes of one version.
    async fn describe(
        &self,
        key: &ObjectKey,
        attributes: &Attributes,
        version: Option<ETag>,
    ) -> Result<Written> {
        let mut call = Call::new(Method::PUT, self.client.blob(key, &[("comp", "metadata")])?);
        metadata::set_metadata(&mut call.headers, attributes)?;
        if let Some(etag) = &version {
            set_tag(&mut call.headers, IF_MATCH, etag)?;
        }
        let answer = self.client.send(call, What::of("metadata", key)).await?;
        let between = tag(answer.headers())?;
        let mut call = Call::new(Method::PUT, self.client.blob(key, &[("comp", "properties")])?);
        metadata::set_content_headers(&mut call.headers, attributes)?;
        set_tag(&mut call.headers, IF_MATCH, &between)?;
        written(&self.client.send(call, What::of("content headers", key)).await?)
    }

    /// Waits until a copy is done. The caller's timeout is the only bound.
    async fn wait(&self, key: &ObjectKey) -> Result<Written> {
        let mut wait = FIRST_WAIT;
        loop {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
            let call = Call::new(Method::HEAD, self.client.blob(key, &[])?);
            let answer = self.client.send(call, What::of("head", key)).await?;
            match headers::text(answer.headers(), &COPY_STATUS).as_deref() {
                Some("pending") => {}
                Some("failed" | "aborted") => {
                    let context = format!("the origin gave up the copy to `{key}`");
                    return Err(Error::new(ErrorKind::Unavailable, context));
                }
                // A blob without a status was overwritten by somebody else meanwhile.
                _ => return written(&answer),
            }
        }
    }
}
