//! Multi-part uploads of S3: ids, part numbers and tags are the origin's own.

use ::http::Method;
use ::store::{
    Attributes, Body, Condition, ETag, Error, ErrorKind, ObjectKey, PartEntry, PartList, Result,
    UploadEntry, UploadId, UploadList, UploadListRequest, Written,
};

use super::objects::document_time;
use super::{Ask, S3Store, absent_fails, invalid, missing, tag, xml};
use crate::http::{CallBody, headers};

/// Highest part number of S3.
const MAX_PART_NUMBER: u16 = 10_000;

impl S3Store {
    pub(super) async fn begin(&self, key: &ObjectKey, attributes: &Attributes) -> Result<UploadId> {
        let ask = Ask::new("start upload of", Method::POST, Some(key.as_str()))
            .query("uploads", "")
            .attributes(attributes)?;
        let document = self.document("start upload", self.ask(ask).await?).await?;
        let begun = xml::parse::<xml::Begun>(&document).unwrap_or_default();
        let id = begun.upload_id.filter(|id| !id.is_empty());
        id.map(|id| UploadId(id.into())).ok_or_else(|| missing("start upload", "UploadId"))
    }

    pub(super) async fn part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u16,
        body: Body,
    ) -> Result<PartEntry> {
        if !(1..=MAX_PART_NUMBER).contains(&number) {
            return Err(invalid(format!("part number {number} is not within 1 to 10000")));
        }
        let size = body.size;
        let ask = Ask::new("put part of", Method::PUT, Some(key.as_str()))
            .query("partNumber", number.to_string())
            .query("uploadId", &*upload.0)
            .body(CallBody::Stream(body));
        let response = self.ask(ask).await?;
        let etag = headers::etag(response.headers()).ok_or_else(|| missing("put part", "ETag"))?;
        Ok(PartEntry { number, etag, size, last_modified: None })
    }

    pub(super) async fn complete(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[(u16, ETag)],
        condition: &Condition,
    ) -> Result<Written> {
        if parts.is_empty() || !parts.windows(2).all(|pair| pair[0].0 < pair[1].0) {
            return Err(invalid("parts are not given in ascending order"));
        }
        let ask = Ask::new("complete upload of", Method::POST, Some(key.as_str()))
            .query("uploadId", &*upload.0)
            .condition(condition)?
            .header("content-type", "application/xml")?
            .body(CallBody::Bytes(xml::completion(parts).into()));
        let response = self.ask(ask).await.map_err(absent_fails(condition))?;
        let document = self.document("complete upload", response).await?;
        let made = xml::parse_root::<xml::Made>(&document, "CompleteMultipartUploadResult")
            .ok_or_else(|| missing("complete upload", "CompleteMultipartUploadResult"))?;
        let etag = tag("complete upload", made.etag.as_deref())?;
        Ok(Written { etag, last_modified: None })
    }

    pub(super) async fn abort(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        let ask = Ask::new("abort upload of", Method::DELETE, Some(key.as_str()))
            .query("uploadId", &*upload.0);
        self.ask(ask).await.map(drop)
    }

    pub(super) async fn parts(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        after: Option<u16>,
        max_parts: usize,
    ) -> Result<PartList> {
        let mut ask = Ask::new("list parts of", Method::GET, Some(key.as_str()))
            .query("uploadId", &*upload.0)
            .query("max-parts", max_parts.clamp(1, 1000).to_string());
        if let Some(after) = after {
            ask = ask.query("part-number-marker", after.to_string());
        }
        let document = self.document("list parts", self.ask(ask).await?).await?;
        // moto calls its root `ListPartsResponse`.
        let listed = xml::parse_root::<xml::Parts>(&document, "ListPartsResult")
            .or_else(|| xml::parse_root(&document, "ListPartsResponse"))
            .ok_or_else(|| missing("list parts", "ListPartsResult"))?;
        let parts = listed.parts.into_iter().map(|part| {
            Ok(PartEntry {
                number: part.number,
                etag: tag("list parts", part.etag.as_deref())?,
                size: part.size,
                last_modified: part.last_modified.as_deref().and_then(document_time),
            })
        });
        let parts = parts.collect::<Result<Vec<_>>>()?;
        // The marker of the answer says the same, where an origin writes one.
        let next = parts.last().map(|part| part.number).filter(|_| listed.is_truncated);
        Ok(PartList { parts, next })
    }

    pub(super) async fn uploads(&self, request: &UploadListRequest) -> Result<UploadList> {
        let mut ask = Ask::new("list uploads", Method::GET, None)
            .query("uploads", "")
            .query("encoding-type", "url")
            .query("max-uploads", request.max_uploads.clamp(1, 1000).to_string())
            .query("prefix", request.prefix.as_str());
        if let Some((key, upload)) = &request.after {
            ask = ask.query("key-marker", key.as_str());
            if let Some(upload) = upload {
                ask = ask.query("upload-id-marker", upload.as_str());
            }
        }
        let document = self.document("list uploads", self.ask(ask).await?).await?;
        let listed = xml::parse_root::<xml::Uploads>(&document, "ListMultipartUploadsResult")
            .ok_or_else(|| missing("list uploads", "ListMultipartUploadsResult"))?;
        let encoded = listed.encoding_type.as_deref() == Some("url");
        let mut uploads = Vec::with_capacity(listed.list.len());
        for upload in listed.list {
            let name = xml::name(&upload.key, encoded).and_then(|name| ObjectKey::new(name).ok());
            let Some(key) = name else {
                tracing::debug!(
                    bucket = self.place.bucket,
                    "upload of an inexpressible key skipped"
                );
                continue;
            };
            uploads.push(UploadEntry {
                key,
                upload: UploadId(upload.id.into()),
                initiated: upload.initiated.as_deref().and_then(document_time),
            });
        }
        Ok(UploadList { uploads, truncated: listed.is_truncated })
    }

    /// Fails unless the condition holds now. For operations whose condition many origins do not
    /// look at: the header is sent all the same, and this narrows the race where it is ignored.
    pub(super) async fn expect(&self, key: &ObjectKey, condition: &Condition) -> Result<()> {
        if *condition == Condition::None {
            return Ok(());
        }
        let found = match ::store::Store::head(self, key).await {
            Ok(meta) => Some(meta.etag),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let holds = match condition {
            Condition::None => true,
            Condition::IfAbsent => found.is_none(),
            Condition::IfMatch(wanted) => found.as_ref() == Some(wanted),
        };
        if holds {
            return Ok(());
        }
        let context = format!("`{key}` is not in the expected version");
        Err(Error::new(ErrorKind::PreconditionFailed, context))
    }
}
