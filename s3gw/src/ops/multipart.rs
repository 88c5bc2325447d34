//! Multi-part uploads.
//!
//! Invariant: an upload's id is the store's own, so it outlives this process; parts of a completed
//! upload were each verified when they came in. The checksums of parts are not kept: those that a
//! completion repeats, for the object or for its parts, are not compared again. The size that it
//! repeats is.

use std::sync::Arc;

use http::StatusCode;
use http::header::ETAG;
use s3s::{S3ErrorCode, dto};
use store::{
    Bucket, ETag, ErrorKind, ObjectKey, PutOptions, UploadEntry, UploadId, UploadListRequest,
};

use super::list::{Encoding, rolled_up};
use super::write::add_checksums;
use super::{attributes, owner, parse, tag};
use crate::body::checksum::Covers;
use crate::conditions;
use crate::dates::timestamp;
use crate::failure::{Failure, Outcome};
use crate::front::Call;
use crate::reply::{Reply, render};

/// Highest number of a part, as in S3.
const MAX_PART_NUMBER: u32 = 10_000;

/// Largest completion document: 10,000 parts with a tag and a checksum each.
const MAX_DOCUMENT_BYTES: u64 = 4 << 20;

/// Most parts or uploads in a page, as in S3.
const MAX_PAGE: u32 = 1000;

/// `CreateMultipartUpload`.
pub(super) async fn create(call: &Call) -> Outcome<Reply> {
    let bucket = call.writable_bucket()?;
    let key = call.key()?;
    let options =
        PutOptions { attributes: attributes::read(&call.headers)?, ..PutOptions::default() };
    let upload = bucket.store.start_upload(&key, options).await?;
    call.front.ledger().began(bucket.name.as_str(), key.as_str(), &upload.0);
    Reply::document(&dto::CreateMultipartUploadOutput {
        bucket: Some(bucket.name.to_string()),
        key: Some(key.to_string()),
        upload_id: Some(upload.0.to_string()),
        ..dto::CreateMultipartUploadOutput::default()
    })
}

/// The upload that the request names.
pub(super) fn upload_id(call: &Call) -> Outcome<UploadId> {
    match call.query.non_empty("uploadId") {
        Some(id) => Ok(UploadId(Arc::from(id))),
        None => Err(Failure::invalid_argument("uploadId is missing")),
    }
}

/// The number of the part that the request names.
pub(super) fn part_number(call: &Call) -> Outcome<u16> {
    match call.query.number("partNumber") {
        Ok(Some(number)) if (1..=MAX_PART_NUMBER).contains(&number) => Ok(number as u16),
        _ => Err(Failure::invalid_argument(
            "Part number must be an integer between 1 and 10000, inclusive",
        )),
    }
}

/// `UploadPart`.
pub(super) async fn part(mut call: Call) -> Outcome<Reply> {
    let bucket = call.writable_bucket()?;
    let key = call.key()?;
    let (upload, number) = (upload_id(&call)?, part_number(&call)?);
    let plan = call.plan(Covers::Body)?;
    let (body, verdict) = call.body(plan).await?;
    let part = bucket
        .store
        .put_part(&key, &upload, number, body)
        .await
        .map_err(|error| verdict.failure(error))?;
    let mut reply = Reply::empty(StatusCode::OK);
    reply.set(ETAG, &part.etag.quoted());
    add_checksums(&mut reply, &verdict);
    Ok(reply)
}

/// `CompleteMultipartUpload`.
pub(super) async fn complete(mut call: Call) -> Outcome<Reply> {
    let bucket = call.writable_bucket()?;
    let key = call.key()?;
    let upload = upload_id(&call)?;
    let condition = conditions::of_write(&call.headers)?;
    let document = call.document(MAX_DOCUMENT_BYTES, Covers::Object).await?;
    let parts = listed_parts(&document)?;
    let location = format!(
        "http://{}/{}/{}",
        call.header("host").unwrap_or_default(),
        bucket.name,
        Encoding::Url.text(key.as_str())
    );
    let announced = announced_size(&call)?;
    let late_error = call.late_error();
    let front = Arc::clone(&call.front);
    let completion = async move {
        if let Some(size) = announced {
            check_size(&bucket, &key, &upload, &parts, size).await?;
        }
        let written = bucket.store.complete_upload(&key, &upload, &parts, condition).await?;
        front.ledger().ended(bucket.name.as_str(), key.as_str(), &upload.0);
        render(&dto::CompleteMultipartUploadOutput {
            bucket: Some(bucket.name.to_string()),
            key: Some(key.to_string()),
            location: Some(location),
            e_tag: Some(tag(&written.etag)),
            ..dto::CompleteMultipartUploadOutput::default()
        })
    };
    Reply::patient(call.front.patience, completion, late_error).await
}

/// The size of the whole object, where the client repeats it.
fn announced_size(call: &Call) -> Outcome<Option<u64>> {
    let Some(text) = call.header("x-amz-mp-object-size") else { return Ok(None) };
    match text.trim().parse() {
        Ok(size) => Ok(Some(size)),
        Err(_) => Err(Failure::invalid_request("x-amz-mp-object-size is not a number of bytes")),
    }
}

/// Refuses a completion whose parts are not as long together as the client believes. What a store
/// cannot list cannot be compared; a part or an upload that is not there is for the completion
/// itself to refuse.
async fn check_size(
    bucket: &Bucket,
    key: &ObjectKey,
    upload: &UploadId,
    parts: &[(u16, ETag)],
    announced: u64,
) -> Outcome<()> {
    let (mut sum, mut found, mut after) = (0u64, 0, None);
    loop {
        let list = match bucket.store.list_parts(key, upload, after, MAX_PAGE as usize).await {
            Ok(list) => list,
            Err(error)
                if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::NoSuchUpload) =>
            {
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        for part in &list.parts {
            if parts.binary_search_by_key(&part.number, |(number, _)| *number).is_ok() {
                sum = sum.saturating_add(part.size);
                found += 1;
            }
        }
        // A marker that does not advance would be asked for again for ever.
        match list.next.filter(|next| after.is_none_or(|after| *next > after)) {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    if found == parts.len() && sum != announced {
        return Err(Failure::invalid_request(format!(
            "the parts have {sum} bytes together, x-amz-mp-object-size says {announced}"
        )));
    }
    Ok(())
}

fn listed_parts(document: &[u8]) -> Outcome<Vec<(u16, ETag)>> {
    let malformed = |what: &str| Failure::new(S3ErrorCode::MalformedXML, what);
    let list: dto::CompletedMultipartUpload = parse(document)?;
    let list = list.parts.unwrap_or_default();
    if list.is_empty() {
        return Err(malformed("a completion names at least one part"));
    }
    let mut parts = Vec::with_capacity(list.len());
    for part in list {
        let (Some(number), Some(tag)) = (part.part_number, part.e_tag) else {
            return Err(malformed("a part has no PartNumber or no ETag"));
        };
        let number = u16::try_from(number)
            .ok()
            .filter(|number| (1..=MAX_PART_NUMBER).contains(&u32::from(*number)))
            .ok_or_else(|| {
                Failure::new(
                    S3ErrorCode::InvalidPart,
                    format!("part number {number} is not within 1 to {MAX_PART_NUMBER}"),
                )
            })?;
        parts.push((number, ETag::parse(tag.value())));
    }
    if !parts.is_sorted_by(|(a, _), (b, _)| a < b) {
        return Err(Failure::new(
            S3ErrorCode::InvalidPartOrder,
            "The list of parts was not in ascending order. Parts must be ordered by part number.",
        ));
    }
    Ok(parts)
}

/// `AbortMultipartUpload`.
pub(super) async fn abort(call: &Call) -> Outcome<Reply> {
    let bucket = call.writable_bucket()?;
    let (key, upload) = (call.key()?, upload_id(call)?);
    bucket.store.abort_upload(&key, &upload).await?;
    call.front.ledger().ended(bucket.name.as_str(), key.as_str(), &upload.0);
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

/// `ListParts`.
pub(super) async fn list_parts(call: &Call) -> Outcome<Reply> {
    let bucket = call.bucket()?;
    let key = call.key()?;
    let upload = upload_id(call)?;
    let most = call.query.number("max-parts")?.unwrap_or(MAX_PAGE).min(MAX_PAGE);
    let marker = call.query.number("part-number-marker")?.unwrap_or(0).min(MAX_PART_NUMBER);
    let after = (marker > 0).then_some(marker as u16);
    let list = bucket.store.list_parts(&key, &upload, after, most.max(1) as usize).await?;
    let parts: Vec<dto::Part> = list
        .parts
        .iter()
        .take(most as usize)
        .map(|part| dto::Part {
            e_tag: Some(tag(&part.etag)),
            last_modified: part.last_modified.map(timestamp),
            part_number: Some(part.number.into()),
            size: Some(part.size.cast_signed()),
            ..dto::Part::default()
        })
        .collect();
    Reply::document(&dto::ListPartsOutput {
        bucket: Some(bucket.name.to_string()),
        key: Some(key.to_string()),
        upload_id: Some(upload.0.to_string()),
        max_parts: Some(most.cast_signed()),
        part_number_marker: Some(marker.cast_signed()),
        next_part_number_marker: list.next.filter(|_| most > 0).map(i32::from),
        is_truncated: Some(list.next.is_some() && most > 0),
        parts: Some(parts),
        owner: Some(owner()),
        initiator: Some(initiator()),
        storage_class: Some(dto::StorageClass::from_static(dto::StorageClass::STANDARD)),
        ..dto::ListPartsOutput::default()
    })
}

/// Where a listing of uploads goes on, and what it rolls up.
struct AskedUploads<'q> {
    prefix: &'q str,
    delimiter: Option<&'q str>,
    key_marker: Option<&'q str>,
    id_marker: Option<&'q str>,
    max_uploads: u32,
}

#[derive(Default)]
struct UploadsPage {
    uploads: Vec<UploadEntry>,
    prefixes: Vec<String>,
    truncated: bool,
}

impl UploadsPage {
    /// Takes an upload, unless the page is full or what it rolls up into is there already.
    fn take(&mut self, asked: &AskedUploads<'_>, entry: UploadEntry) {
        let rolled = rolled_up(entry.key.as_str(), asked.prefix, asked.delimiter);
        let listed = rolled.is_some()
            && (rolled.as_deref() == asked.key_marker || self.prefixes.last() == rolled.as_ref());
        if listed {
            return;
        }
        if self.uploads.len() + self.prefixes.len() == asked.max_uploads as usize {
            self.truncated = true;
            return;
        }
        match rolled {
            Some(rolled) => self.prefixes.push(rolled),
            None => self.uploads.push(entry),
        }
    }

    /// The markers of the next page.
    fn next(&self) -> Option<(String, Option<String>)> {
        let upload = self.uploads.last().map(|u| (u.key.to_string(), Some(u.upload.0.to_string())));
        let prefix = self.prefixes.last().map(|p| (p.clone(), None));
        upload.max(prefix).filter(|_| self.truncated)
    }
}

async fn fill(bucket: &Bucket, asked: &AskedUploads<'_>) -> Outcome<UploadsPage> {
    let mut page = UploadsPage::default();
    if asked.max_uploads == 0 {
        return Ok(page);
    }
    let id = asked.id_marker.map(str::to_owned);
    let mut after = asked.key_marker.map(|key| (key.to_owned(), id));
    // A page of the store may roll up into fewer entries than were asked for.
    loop {
        let request = UploadListRequest {
            prefix: asked.prefix.to_owned(),
            after,
            max_uploads: MAX_PAGE as usize,
        };
        let list = bucket.store.list_uploads(&request).await?;
        after = list.uploads.last().map(|u| (u.key.to_string(), Some(u.upload.0.to_string())));
        for entry in list.uploads {
            page.take(asked, entry);
        }
        if page.truncated || !list.truncated || after.is_none() {
            return Ok(page);
        }
    }
}

/// `ListMultipartUploads`.
pub(super) async fn list_uploads(call: &Call) -> Outcome<Reply> {
    let bucket = call.bucket()?;
    let query = &call.query;
    let encoding = Encoding::of(query)?;
    let key_marker = query.non_empty("key-marker");
    let asked = AskedUploads {
        prefix: query.get("prefix").unwrap_or_default(),
        delimiter: query.non_empty("delimiter"),
        key_marker,
        id_marker: key_marker.and_then(|_| query.non_empty("upload-id-marker")),
        max_uploads: query.number("max-uploads")?.unwrap_or(MAX_PAGE).min(MAX_PAGE),
    };
    let page = fill(&bucket, &asked).await?;
    let next = page.next();
    let uploads = page.uploads.iter().map(|upload| dto::MultipartUpload {
        key: Some(encoding.text(upload.key.as_str())),
        upload_id: Some(upload.upload.0.to_string()),
        initiated: upload.initiated.map(timestamp),
        owner: Some(owner()),
        initiator: Some(initiator()),
        storage_class: Some(dto::StorageClass::from_static(dto::StorageClass::STANDARD)),
        ..dto::MultipartUpload::default()
    });
    Reply::document(&dto::ListMultipartUploadsOutput {
        bucket: Some(bucket.name.to_string()),
        prefix: Some(encoding.text(asked.prefix)),
        delimiter: asked.delimiter.map(|d| encoding.text(d)),
        encoding_type: encoding.echo(),
        key_marker: Some(encoding.text(key_marker.unwrap_or_default())),
        upload_id_marker: Some(asked.id_marker.unwrap_or_default().to_owned()),
        max_uploads: Some(asked.max_uploads.cast_signed()),
        is_truncated: Some(page.truncated),
        next_key_marker: next.as_ref().map(|(key, _)| encoding.text(key)),
        next_upload_id_marker: next.and_then(|(_, id)| id),
        common_prefixes: Some(encoding.prefixes(&page.prefixes)),
        uploads: Some(uploads.collect()),
        request_charged: None,
    })
}

fn initiator() -> dto::Initiator {
    dto::Initiator { display_name: owner().display_name, id: owner().id }
}
