//! Copies at the origin, whole or part by part.
//!
//! Invariant: a copy is of one version of its source: parts are pinned to the version that was
//! found first. A copy that fails half way leaves no upload behind, as far as the origin lets it.

use ::http::Method;
use ::store::{
    Attributes, Condition, CopyOptions, ETag, Error, ErrorKind, ObjectKey, Result, Store, UploadId,
    Written,
};

use super::objects::document_time;
use super::{Ask, S3Store, absent_fails, missing, tag, xml};
use crate::http::url;

impl S3Store {
    pub(super) async fn copy_object(
        &self,
        from: &ObjectKey,
        to: &ObjectKey,
        options: CopyOptions,
    ) -> Result<Written> {
        let source = self.head(from).await?;
        if options.source_if_match.as_ref().is_some_and(|wanted| *wanted != source.etag) {
            let context = format!("copy `{from}`: source is not in the expected version");
            return Err(Error::new(ErrorKind::PreconditionFailed, context));
        }
        self.expect(to, &options.condition).await?;
        if source.size > self.copy_limits.0 {
            let kept = || source.attributes.as_deref().cloned().unwrap_or_default();
            let attributes = options.attributes.unwrap_or_else(kept);
            let pinned = (from, &source.etag, source.size);
            return self.copy_parts(pinned, to, &attributes, &options.condition).await;
        }
        let directive = if options.attributes.is_some() { "REPLACE" } else { "COPY" };
        let mut ask = Ask::new("copy to", Method::PUT, Some(to.as_str()))
            .header("x-amz-copy-source", &self.source(from))?
            .header("x-amz-metadata-directive", directive)?
            .condition(&options.condition)?;
        if let Some(attributes) = &options.attributes {
            ask = ask.attributes(attributes)?;
        }
        if let Some(etag) = &options.source_if_match {
            ask = ask.header("x-amz-copy-source-if-match", &etag.quoted())?;
        }
        let response = self.ask(ask).await.map_err(absent_fails(&options.condition))?;
        let document = self.document("copy", response).await?;
        let made = xml::parse_root::<xml::Made>(&document, "CopyObjectResult")
            .ok_or_else(|| missing("copy", "CopyObjectResult"))?;
        Ok(Written {
            etag: tag("copy", made.etag.as_deref())?,
            last_modified: made.last_modified.as_deref().and_then(document_time),
        })
    }

    fn source(&self, key: &ObjectKey) -> String {
        format!("/{}/{}", self.place.bucket, url::encode_path(key.as_str()))
    }

    async fn copy_parts(
        &self,
        source: (&ObjectKey, &ETag, u64),
        to: &ObjectKey,
        attributes: &Attributes,
        condition: &Condition,
    ) -> Result<Written> {
        let upload = self.begin(to, attributes).await?;
        let copied = async {
            let mut parts = Vec::new();
            let (size, step) = (source.2, self.copy_limits.1);
            for (number, start) in (1u16..).zip((0..size).step_by(step as usize)) {
                let range = start..size.min(start + step);
                parts.push((number, self.copy_part(source, to, &upload, number, range).await?));
            }
            self.complete(to, &upload, &parts, condition).await
        };
        match copied.await {
            Ok(written) => Ok(written),
            Err(error) => {
                if let Err(left) = self.abort(to, &upload).await {
                    tracing::warn!(error = %left, "an upload of a failed copy was left at the origin");
                }
                Err(error)
            }
        }
    }

    async fn copy_part(
        &self,
        (from, etag, _): (&ObjectKey, &ETag, u64),
        to: &ObjectKey,
        upload: &UploadId,
        number: u16,
        range: std::ops::Range<u64>,
    ) -> Result<ETag> {
        let bytes = format!("bytes={}-{}", range.start, range.end - 1);
        let ask = Ask::new("copy part to", Method::PUT, Some(to.as_str()))
            .query("partNumber", number.to_string())
            .query("uploadId", &*upload.0)
            .header("x-amz-copy-source", &self.source(from))?
            .header("x-amz-copy-source-range", &bytes)?
            .header("x-amz-copy-source-if-match", &etag.quoted())?;
        let document = self.document("copy part", self.ask(ask).await?).await?;
        let made = xml::parse_root::<xml::Made>(&document, "CopyPartResult")
            .ok_or_else(|| missing("copy part", "CopyPartResult"))?;
        tag("copy part", made.etag.as_deref())
    }
}
