//! `ListObjects`, `ListObjectsV2` and `ListObjectVersions`.
//!
//! Invariant: keys and common prefixes come in byte order, each once over all pages; a page is
//! filled as far as there are keys, however small the store's pages are. With `encoding-type=url`
//! every name is really encoded.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use s3s::dto;
use store::{Bucket, ListEntry, ListRequest};

use super::{owner, tag};
use crate::dates::timestamp;
use crate::failure::{Failure, Outcome};
use crate::front::Call;
use crate::reply::Reply;
use crate::target::Query;

/// Most keys and prefixes in a page, as in S3; more is clamped.
const MAX_KEYS: u32 = 1000;

/// How names are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Plain,
    Url,
}

impl Encoding {
    pub(super) fn of(query: &Query) -> Outcome<Self> {
        match query.non_empty("encoding-type") {
            None => Ok(Self::Plain),
            Some("url") => Ok(Self::Url),
            Some(_) => {
                Err(Failure::invalid_argument("Invalid Encoding Method specified in Request"))
            }
        }
    }

    pub(super) fn echo(self) -> Option<dto::EncodingType> {
        (self == Self::Url).then(|| dto::EncodingType::from_static(dto::EncodingType::URL))
    }

    /// A name. Spaces and plus signs are both written in hex, so that decoders that take a plus
    /// for a space and decoders that do not read the same.
    pub(super) fn text(self, name: &str) -> String {
        if self == Self::Plain {
            return name.to_owned();
        }
        let mut out = String::with_capacity(name.len() + 8);
        for byte in name.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                    out.push(byte as char);
                }
                _ => {
                    let _ = write!(out, "%{byte:02X}");
                }
            }
        }
        out
    }

    pub(super) fn prefixes(self, prefixes: &[String]) -> Vec<dto::CommonPrefix> {
        prefixes.iter().map(|p| dto::CommonPrefix { prefix: Some(self.text(p)) }).collect()
    }
}

/// The common prefix that a key rolls up into.
pub(super) fn rolled_up(key: &str, prefix: &str, delimiter: Option<&str>) -> Option<String> {
    let delimiter = delimiter?;
    let at = key.strip_prefix(prefix)?.find(delimiter)?;
    Some(key[..prefix.len() + at + delimiter.len()].to_owned())
}

/// What all listings are asked for.
struct Asked<'q> {
    prefix: &'q str,
    delimiter: Option<&'q str>,
    encoding: Encoding,
    max_keys: u32,
}

impl<'q> Asked<'q> {
    fn of(query: &'q Query) -> Outcome<Self> {
        Ok(Self {
            prefix: query.get("prefix").unwrap_or_default(),
            // An empty delimiter is none.
            delimiter: query.non_empty("delimiter"),
            encoding: Encoding::of(query)?,
            max_keys: query.number("max-keys")?.unwrap_or(MAX_KEYS).min(MAX_KEYS),
        })
    }
}

#[derive(Default)]
struct Page {
    entries: Vec<ListEntry>,
    prefixes: Vec<String>,
    next: Option<String>,
}

impl Page {
    fn len(&self) -> usize {
        self.entries.len() + self.prefixes.len()
    }

    /// The last name of the page, in the order in which both kinds are listed together.
    fn last(&self) -> Option<&str> {
        let entry = self.entries.last().map(|entry| entry.key.as_str());
        entry.max(self.prefixes.last().map(String::as_str))
    }
}

/// Fills a page. `listed` is a common prefix that an earlier page ended with: what rolls up into
/// it was listed.
async fn fill(
    bucket: &Bucket,
    asked: &Asked<'_>,
    start_after: Option<String>,
    token: Option<String>,
    listed: Option<&str>,
) -> Outcome<Page> {
    let mut page = Page::default();
    let most = asked.max_keys as usize;
    let mut request = ListRequest {
        prefix: asked.prefix.to_owned(),
        delimiter: asked.delimiter.map(str::to_owned),
        start_after,
        token,
        max_keys: most,
    };
    while page.len() < most {
        request.max_keys = most - page.len();
        let part = bucket.store.list(&request).await?;
        if part.skipped > 0 {
            tracing::debug!(
                bucket = %bucket.name,
                skipped = part.skipped,
                "keys of the origin that cannot be served were left out of a listing"
            );
        }
        page.entries.extend(part.entries);
        page.prefixes.extend(part.common_prefixes.into_iter().filter(|p| Some(&**p) != listed));
        page.next = part.next;
        if page.next.is_none() {
            break;
        }
        request.token.clone_from(&page.next);
        request.start_after = None;
    }
    Ok(page)
}

fn objects(page: &Page, encoding: Encoding, with_owner: bool) -> Vec<dto::Object> {
    page.entries
        .iter()
        .map(|entry| dto::Object {
            key: Some(encoding.text(entry.key.as_str())),
            e_tag: Some(tag(&entry.meta.etag)),
            last_modified: Some(timestamp(entry.meta.last_modified)),
            size: Some(entry.meta.size.cast_signed()),
            storage_class: Some(dto::ObjectStorageClass::from_static(
                dto::ObjectStorageClass::STANDARD,
            )),
            owner: with_owner.then(owner),
            ..dto::Object::default()
        })
        .collect()
}

/// `ListObjects`.
pub(super) async fn v1(call: &Call) -> Outcome<Reply> {
    let bucket = call.bucket()?;
    let asked = Asked::of(&call.query)?;
    let marker = call.query.non_empty("marker");
    let page = fill(&bucket, &asked, marker.map(str::to_owned), None, marker).await?;
    let truncated = page.next.is_some();
    let encoding = asked.encoding;
    Reply::document(&dto::ListObjectsOutput {
        name: Some(bucket.name.to_string()),
        prefix: Some(encoding.text(asked.prefix)),
        marker: Some(encoding.text(marker.unwrap_or_default())),
        max_keys: Some(asked.max_keys.cast_signed()),
        is_truncated: Some(truncated),
        delimiter: asked.delimiter.map(|d| encoding.text(d)),
        next_marker: page.last().filter(|_| truncated).map(|last| encoding.text(last)),
        encoding_type: encoding.echo(),
        contents: Some(objects(&page, encoding, true)),
        common_prefixes: Some(encoding.prefixes(&page.prefixes)),
        request_charged: None,
    })
}

/// `ListObjectsV2`.
pub(super) async fn v2(call: &Call) -> Outcome<Reply> {
    let bucket = call.bucket()?;
    let query = &call.query;
    let asked = Asked::of(query)?;
    let start_after = query.non_empty("start-after");
    let continuation = query.get("continuation-token");
    let token = continuation.map(read_token).transpose()?;
    let with_owner = query.get("fetch-owner") == Some("true");
    let page = fill(&bucket, &asked, start_after.map(str::to_owned), token, None).await?;
    let encoding = asked.encoding;
    Reply::document(&dto::ListObjectsV2Output {
        name: Some(bucket.name.to_string()),
        prefix: Some(encoding.text(asked.prefix)),
        max_keys: Some(asked.max_keys.cast_signed()),
        key_count: Some((page.len() as u32).cast_signed()),
        continuation_token: continuation.map(str::to_owned),
        is_truncated: Some(page.next.is_some()),
        next_continuation_token: page.next.as_ref().map(|next| URL_SAFE_NO_PAD.encode(next)),
        contents: Some(objects(&page, encoding, with_owner)),
        common_prefixes: Some(encoding.prefixes(&page.prefixes)),
        delimiter: asked.delimiter.map(|d| encoding.text(d)),
        encoding_type: encoding.echo(),
        start_after: start_after.map(|s| encoding.text(s)),
        request_charged: None,
    })
}

/// A store's token travels encoded: it may hold any character, and clients may not read it.
fn read_token(text: &str) -> Outcome<String> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok();
    bytes
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .filter(|token| !token.is_empty())
        .ok_or_else(|| Failure::invalid_argument("The continuation token provided is incorrect"))
}

/// `ListObjectVersions`: of each object the one version that there is.
pub(super) async fn versions(call: &Call) -> Outcome<Reply> {
    let bucket = call.bucket()?;
    let asked = Asked::of(&call.query)?;
    let marker = call.query.non_empty("key-marker");
    let page = fill(&bucket, &asked, marker.map(str::to_owned), None, marker).await?;
    let truncated = page.next.is_some();
    let encoding = asked.encoding;
    let versions = page.entries.iter().map(|entry| dto::ObjectVersion {
        key: Some(encoding.text(entry.key.as_str())),
        e_tag: Some(tag(&entry.meta.etag)),
        is_latest: Some(true),
        last_modified: Some(timestamp(entry.meta.last_modified)),
        owner: Some(owner()),
        size: Some(entry.meta.size.cast_signed()),
        storage_class: Some(dto::ObjectVersionStorageClass::from_static(
            dto::ObjectVersionStorageClass::STANDARD,
        )),
        version_id: Some("null".to_owned()),
        ..dto::ObjectVersion::default()
    });
    Reply::document(&dto::ListObjectVersionsOutput {
        name: Some(bucket.name.to_string()),
        prefix: Some(encoding.text(asked.prefix)),
        key_marker: Some(encoding.text(marker.unwrap_or_default())),
        version_id_marker: Some(String::new()),
        max_keys: Some(asked.max_keys.cast_signed()),
        is_truncated: Some(truncated),
        delimiter: asked.delimiter.map(|d| encoding.text(d)),
        encoding_type: encoding.echo(),
        next_key_marker: page.last().filter(|_| truncated).map(|last| encoding.text(last)),
        next_version_id_marker: truncated.then(|| "null".to_owned()),
        versions: Some(versions.collect()),
        common_prefixes: Some(encoding.prefixes(&page.prefixes)),
        ..dto::ListObjectVersionsOutput::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn roll_up() {
        assert_eq!(rolled_up("a/b/c", "", Some("/")).as_deref(), Some("a/"));
        assert_eq!(rolled_up("a/b/c", "a/", Some("/")).as_deref(), Some("a/b/"));
        assert_eq!(rolled_up("a/b", "a/", Some("/")), None);
        assert_eq!(rolled_up("a//b", "a/", Some("/")).as_deref(), Some("a//"));
        assert_eq!(rolled_up("ab--c", "a", Some("--")).as_deref(), Some("ab--"));
        assert_eq!(rolled_up("a/b", "", None), None);
    }

    #[test]
    fn tokens_are_opaque_and_checked() {
        assert_eq!(read_token(&URL_SAFE_NO_PAD.encode("a/b\n")).unwrap(), "a/b\n");
        for bad in ["", "!", "_w"] {
            assert!(read_token(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn encoded_names_decode_either_way(name in "\\PC{0,40}") {
            let encoded = Encoding::Url.text(&name);
            prop_assert!(encoded.is_ascii() && !encoded.contains('+'));
            let decoded = percent_encoding::percent_decode_str(&encoded).decode_utf8().unwrap();
            prop_assert_eq!(decoded, name);
        }
    }
}
