//! Multi-part uploads over the XML interface.
//!
//! Invariant: the service holds all state of an upload. It documents no condition for completing
//! one, so that of a completion is checked by a HEAD right before it: a write in between is not
//! noticed.

use std::fmt::Write;

use ::http::Method;
use store::{
    Attributes, Body, Condition, ETag, Error, ErrorKind, ObjectKey, PartEntry, PartList, Result,
    Store, UploadEntry, UploadId, UploadList, UploadListRequest, Written,
};

use super::listing::{name, time};
use super::{GENERATION, GcsStore, generation, other_version, set_attributes};
use crate::cloud::xml::{Node, escape};
use crate::cloud::{self, What};
use crate::http::{Call, CallBody, document, headers};

/// Largest part number.
const MAX_PART: u16 = 10_000;

fn unreadable(what: &str) -> Error {
    Error::new(ErrorKind::Corrupted, format!("answer of the origin has no readable {what}"))
}

impl GcsStore {
    pub(super) async fn begin(&self, key: &ObjectKey, attributes: &Attributes) -> Result<UploadId> {
        let mut call = Call::new(Method::POST, self.client.object(key, &[("uploads", "")])?);
        set_attributes(&mut call.headers, attributes)?;
        let answer = self.client.send(call, What::of("start of an upload", key)).await?;
        let root = Node::parse(&document(answer).await?)?;
        let id = root.text_of("UploadId").map(str::trim).filter(|id| !id.is_empty());
        Ok(UploadId(id.ok_or_else(|| unreadable("upload id"))?.into()))
    }

    pub(super) async fn send_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u16,
        body: Body,
    ) -> Result<PartEntry> {
        if !(1..=MAX_PART).contains(&number) {
            let context = format!("part number {number} is not within 1 to {MAX_PART}");
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        let text = number.to_string();
        let url = self.client.object(key, &[("partNumber", &text), ("uploadId", &upload.0)])?;
        let size = body.size;
        let call = Call { body: CallBody::Stream(body), ..Call::new(Method::PUT, url) };
        let answer = self.client.send(call, What::of("part", key)).await?;
        let etag = headers::etag(answer.headers()).ok_or_else(|| unreadable("ETag"))?;
        let last_modified = headers::last_modified(answer.headers());
        Ok(PartEntry { number, etag, size, last_modified })
    }

    pub(super) async fn complete(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[(u16, ETag)],
        condition: Condition,
    ) -> Result<Written> {
        if parts.is_empty() || !parts.is_sorted_by(|(one, _), (other, _)| one < other) {
            let context = "parts are not given in ascending order of number";
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        self.check(key, &condition).await?;
        let mut list = String::from("<CompleteMultipartUpload>");
        for (number, etag) in parts {
            let etag = escape(&etag.quoted()).replace("&quot;", "\"");
            write!(list, "<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>")
                .expect("writing to a string does not fail");
        }
        list.push_str("</CompleteMultipartUpload>");
        let url = self.client.object(key, &[("uploadId", &upload.0)])?;
        let call = Call { body: CallBody::Bytes(list.into()), ..Call::new(Method::POST, url) };
        let answer = self.client.send(call, What::of("completion", key)).await?;
        let generation = headers::text(answer.headers(), &GENERATION);
        // The answer may be an error although its status is 200: the service sends the status
        // before it is done.
        let root = Node::parse(&document(answer).await?)?;
        if root.name == "Error" {
            let text = |name| root.text_of(name).unwrap_or_default().to_owned();
            let context = format!("completion of `{key}`: {}: {}", text("Code"), text("Message"));
            return Err(Error::new(ErrorKind::Unavailable, context));
        }
        if let Some(generation) = generation {
            return Ok(Written { etag: cloud::opaque(&generation), last_modified: None });
        }
        let meta = self.head(key).await?;
        Ok(Written { etag: meta.etag, last_modified: Some(meta.last_modified) })
    }

    /// Fails when a condition does not hold now.
    async fn check(&self, key: &ObjectKey, condition: &Condition) -> Result<()> {
        if *condition == Condition::None {
            return Ok(());
        }
        let found = match self.head(key).await {
            Ok(meta) => Some(meta.etag),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let holds = match condition {
            Condition::None => true,
            Condition::IfAbsent => found.is_none(),
            Condition::IfMatch(etag) => generation(etag).is_some() && found.as_ref() == Some(etag),
        };
        if holds { Ok(()) } else { Err(other_version(key)) }
    }

    pub(super) async fn abort(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        let url = self.client.object(key, &[("uploadId", &upload.0)])?;
        let call = Call::new(Method::DELETE, url);
        self.client.send(call, What::of("abort of an upload", key)).await.map(drop)
    }

    pub(super) async fn parts(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        after: Option<u16>,
        max_parts: usize,
    ) -> Result<PartList> {
        let (marker, limit) = (after.unwrap_or(0).to_string(), max_parts.to_string());
        let mut pairs = vec![("max-parts", limit.as_str()), ("uploadId", &upload.0)];
        if after.is_some() {
            pairs.push(("part-number-marker", &marker));
        }
        let call = Call::new(Method::GET, self.client.object(key, &pairs)?);
        let answer = self.client.send(call, What::of("parts", key)).await?;
        let root = Node::parse(&document(answer).await?)?;
        let mut parts = Vec::new();
        for part in root.all("Part") {
            let number = part.text_of("PartNumber").and_then(|text| text.trim().parse().ok());
            let size = part.text_of("Size").and_then(|text| text.trim().parse().ok());
            let (Some(number), Some(size), Some(etag)) = (number, size, part.text_of("ETag"))
            else {
                return Err(unreadable("part"));
            };
            let last_modified = part.text_of("LastModified").and_then(time);
            parts.push(PartEntry { number, etag: ETag::parse(etag), size, last_modified });
        }
        // Not every server of this protocol looks at the marker and the limit.
        parts.retain(|part| after.is_none_or(|after| part.number > after));
        parts.sort_by_key(|part| part.number);
        let more = parts.len() > max_parts || root.text_of("IsTruncated") == Some("true");
        parts.truncate(max_parts);
        let next = parts.last().filter(|_| more).map(|part| part.number);
        Ok(PartList { parts, next })
    }

    pub(super) async fn uploads(&self, request: &UploadListRequest) -> Result<UploadList> {
        let limit = request.max_uploads.to_string();
        let mut pairs = vec![("uploads", ""), ("max-uploads", &limit)];
        if !request.prefix.is_empty() {
            pairs.push(("prefix", &request.prefix));
        }
        if let Some((key, id)) = &request.after {
            pairs.push(("key-marker", key));
            if let Some(id) = id {
                pairs.push(("upload-id-marker", id));
            }
        }
        let call = Call::new(Method::GET, self.client.bucket(&pairs)?);
        let answer = self.client.send(call, What::LISTING).await?;
        let root = Node::parse(&document(answer).await?)?;
        let mut uploads = Vec::new();
        for upload in root.all("Upload") {
            let Ok(key) = ObjectKey::new(name(upload.text_of("Key"))?) else { continue };
            let id = upload.text_of("UploadId").map(str::trim).ok_or_else(|| unreadable("id"))?;
            let initiated = upload.text_of("Initiated").and_then(time);
            uploads.push(UploadEntry { key, upload: UploadId(id.into()), initiated });
        }
        uploads.retain(|entry| match &request.after {
            None => true,
            Some((key, None)) => entry.key.as_str() > key.as_str(),
            Some((key, Some(id))) => (entry.key.as_str(), &*entry.upload.0) > (key, id),
        });
        uploads.sort_by(|one, other| (&one.key, &one.upload).cmp(&(&other.key, &other.upload)));
        let truncated =
            uploads.len() > request.max_uploads || root.text_of("IsTruncated") == Some("true");
        uploads.truncate(request.max_uploads);
        Ok(UploadList { uploads, truncated })
    }
}
