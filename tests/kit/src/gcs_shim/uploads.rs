//! Multipart uploads of the shim, held in memory until they are completed.
//!
//! Invariant: an object appears only by a complete whose parts all exist with the ETags named.

use super::object::{description, store};
use super::{Answer, Asked, State, UPLOADS, empty, set, xml, xml_error};
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use md5::{Digest, Md5};
use quick_xml::escape::escape;
use quick_xml::events::Event;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// The largest part number of the protocol.
const LAST_PART: u32 = 10_000;

/// An upload that is neither completed nor aborted.
#[derive(Debug)]
pub(super) struct Upload {
    bucket: String,
    key: String,
    description: Value,
    parts: BTreeMap<u32, (String, Bytes)>,
}

pub(super) async fn start(state: &State, asked: &Asked) -> Result<Answer, Answer> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    state.json.bucket(&asked.bucket).await?;
    let id = format!("kit-upload-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let mut uploads = state.uploads.lock().await;
    if uploads.len() >= UPLOADS {
        return Err(xml_error(
            StatusCode::SERVICE_UNAVAILABLE,
            "SlowDown",
            "too many open uploads",
        ));
    }
    let upload = Upload {
        bucket: asked.bucket.clone(),
        key: asked.key.clone(),
        description: description(asked),
        parts: BTreeMap::new(),
    };
    uploads.insert(id.clone(), upload);
    Ok(xml(&format!(
        "<InitiateMultipartUploadResult><Bucket>{}</Bucket><Key>{}</Key><UploadId>{id}</UploadId>\
         </InitiateMultipartUploadResult>",
        escape(&asked.bucket),
        escape(&asked.key)
    )))
}

pub(super) async fn put_part(state: &State, asked: &Asked) -> Result<Answer, Answer> {
    let number = asked
        .query("partNumber")
        .and_then(|number| number.parse().ok())
        .filter(|number| (1..=LAST_PART).contains(number))
        .ok_or_else(|| xml_error(StatusCode::BAD_REQUEST, "InvalidArgument", "part number"))?;
    let etag = format!("\"{}\"", hex::encode(Md5::digest(&asked.body)));
    let mut uploads = state.uploads.lock().await;
    let upload = find(&mut uploads, asked)?;
    upload.parts.insert(number, (etag.clone(), asked.body.clone()));
    let mut answer = empty(StatusCode::OK);
    set(&mut answer, "etag", &etag);
    Ok(answer)
}

pub(super) async fn complete(state: &State, asked: &Asked) -> Result<Answer, Answer> {
    let named = parse_complete(&asked.body)
        .ok_or_else(|| xml_error(StatusCode::BAD_REQUEST, "MalformedXML", "list of parts"))?;
    let (body, description) = {
        let mut uploads = state.uploads.lock().await;
        let upload = find(&mut uploads, asked)?;
        if named.is_empty() || !named.windows(2).all(|pair| pair[0].0 < pair[1].0) {
            return Err(xml_error(StatusCode::BAD_REQUEST, "InvalidPartOrder", "order of parts"));
        }
        let mut body = BytesMut::new();
        for (number, etag) in &named {
            match upload.parts.get(number) {
                Some((actual, bytes)) if actual.trim_matches('"') == etag.trim_matches('"') => {
                    body.extend_from_slice(bytes);
                }
                _ => {
                    let message = format!("part {number}");
                    return Err(xml_error(StatusCode::BAD_REQUEST, "InvalidPart", &message));
                }
            }
        }
        (body.freeze(), upload.description.clone())
    };
    let stored = store(state, asked, description, &body).await?;
    state.uploads.lock().await.remove(asked.query("uploadId").unwrap_or_default());
    let mut answer = xml(&format!(
        "<CompleteMultipartUploadResult><Bucket>{}</Bucket><Key>{}</Key><ETag>{}</ETag>\
         </CompleteMultipartUploadResult>",
        escape(&asked.bucket),
        escape(&asked.key),
        escape(&stored.etag)
    ));
    set(&mut answer, "x-goog-generation", &stored.generation);
    Ok(answer)
}

pub(super) async fn abort(state: &State, asked: &Asked) -> Result<Answer, Answer> {
    let mut uploads = state.uploads.lock().await;
    find(&mut uploads, asked)?;
    uploads.remove(asked.query("uploadId").unwrap_or_default());
    Ok(empty(StatusCode::NO_CONTENT))
}

pub(super) async fn list_parts(state: &State, asked: &Asked) -> Result<Answer, Answer> {
    let mut uploads = state.uploads.lock().await;
    let upload = find(&mut uploads, asked)?;
    let mut text = format!(
        "<ListPartsResult><Bucket>{}</Bucket><Key>{}</Key><IsTruncated>false</IsTruncated>",
        escape(&asked.bucket),
        escape(&asked.key)
    );
    for (number, (etag, body)) in &upload.parts {
        let _ = write!(
            text,
            "<Part><PartNumber>{number}</PartNumber><ETag>{}</ETag><Size>{}</Size></Part>",
            escape(etag),
            body.len()
        );
    }
    text.push_str("</ListPartsResult>");
    Ok(xml(&text))
}

pub(super) async fn list(state: &State, asked: &Asked) -> Result<Answer, Answer> {
    state.json.bucket(&asked.bucket).await?;
    let uploads = state.uploads.lock().await;
    let prefix = asked.query("prefix").unwrap_or_default();
    let mut text = format!(
        "<ListMultipartUploadsResult><Bucket>{}</Bucket><IsTruncated>false</IsTruncated>",
        escape(&asked.bucket)
    );
    let mut open: Vec<_> = uploads
        .iter()
        .filter(|(_, upload)| upload.bucket == asked.bucket && upload.key.starts_with(prefix))
        .map(|(id, upload)| (&upload.key, id))
        .collect();
    open.sort_unstable();
    for (key, id) in open {
        let _ =
            write!(text, "<Upload><Key>{}</Key><UploadId>{id}</UploadId></Upload>", escape(key));
    }
    text.push_str("</ListMultipartUploadsResult>");
    Ok(xml(&text))
}

fn find<'a>(
    uploads: &'a mut BTreeMap<String, Upload>,
    asked: &Asked,
) -> Result<&'a mut Upload, Answer> {
    uploads
        .get_mut(asked.query("uploadId").unwrap_or_default())
        .filter(|upload| upload.bucket == asked.bucket && upload.key == asked.key)
        .ok_or_else(|| xml_error(StatusCode::NOT_FOUND, "NoSuchUpload", "no such upload"))
}

/// Numbers and ETags of `CompleteMultipartUpload`, in the order given.
fn parse_complete(body: &[u8]) -> Option<Vec<(u32, String)>> {
    let text = std::str::from_utf8(body).ok()?;
    let mut reader = quick_xml::Reader::from_str(text);
    let (mut parts, mut inside) = (Vec::new(), Vec::<u8>::new());
    let (mut number, mut etag) = (None, String::new());
    loop {
        match reader.read_event().ok()? {
            Event::Start(tag) => {
                inside = tag.local_name().as_ref().to_vec();
                if inside == b"Part" {
                    (number, etag) = (None, String::new());
                }
            }
            Event::Text(text) => match inside.as_slice() {
                b"PartNumber" => number = text.decode().ok()?.trim().parse().ok(),
                b"ETag" => etag.push_str(&text.decode().ok()?),
                _ => {}
            },
            Event::End(tag) => {
                if tag.local_name().as_ref() == b"Part" {
                    parts.push((number?, etag.trim().to_owned()));
                }
                inside.clear();
            }
            Event::Eof => return Some(parts),
            // Also `&quot;` around an ETag, a reference of its own: the quotes are not compared.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_with_quoted_and_escaped_etags() {
        let body = "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>\"a\"</ETag></Part>\
                    <Part><ETag>&quot;b&quot;</ETag><PartNumber>2</PartNumber></Part>\
                    </CompleteMultipartUpload>";
        let parts = parse_complete(body.as_bytes()).unwrap();
        assert_eq!(parts, [(1, "\"a\"".to_owned()), (2, "b".to_owned())]);
    }

    #[test]
    fn a_part_without_a_number_is_refused() {
        assert!(parse_complete(b"<C><Part><ETag>a</ETag></Part></C>").is_none());
    }
}
