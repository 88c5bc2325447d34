//! The calls of [`Store`] on one bucket: reading, writing, listing.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::http::header::{IF_MATCH, RANGE};
use ::http::{HeaderMap, Method, StatusCode};
use ::store::{
    Body, ByteRange, Condition, CopyOptions, ETag, Error, ErrorKind, GetOptions, GetResult,
    ListEntry, ListPage, ListRequest, ObjectKey, ObjectMeta, PartEntry, PartList, PutOptions,
    Result, Store, UploadId, UploadList, UploadListRequest, Written,
};
use async_trait::async_trait;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Ask, S3Store, USER_PREFIX, absent_fails, missing, tag, xml};
use crate::http::{CallBody, headers, incoming};

/// A time out of a document, in whole seconds: HTTP dates have no more, and the same version must
/// have the same time in a listing.
pub(super) fn document_time(text: &str) -> Option<SystemTime> {
    let parsed = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    let seconds = u64::try_from(parsed.unix_timestamp()).ok()?;
    Some(crate::calendar::after_1970(Duration::from_secs(seconds)))
}

/// How a tag begins that was made of size and time, because the origin has none: versitygw has none
/// for files that were not written through it.
const UNTAGGED: &str = "untagged-";

/// A version of an object without a tag. Seconds are all that a HEAD says, so two changes within one
/// second that keep the size are one version.
fn untagged(size: u64, modified: SystemTime) -> ETag {
    let since = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    ETag::parse(&format!("{UNTAGGED}{:x}-{size:x}-1", since.as_secs()))
}

/// A tag that the origin has given, and so can compare.
fn given(etag: &ETag) -> bool {
    !etag.as_str().starts_with(UNTAGGED)
}

fn meta(what: &str, head: &HeaderMap, size: u64) -> Result<ObjectMeta> {
    let last_modified =
        headers::last_modified(head).ok_or_else(|| missing(what, "Last-Modified"))?;
    let mut attributes = headers::attributes(head, USER_PREFIX);
    attributes.content_encoding = attributes.content_encoding.as_deref().and_then(without_chunking);
    Ok(ObjectMeta {
        size,
        etag: headers::etag(head).unwrap_or_else(|| untagged(size, last_modified)),
        last_modified,
        attributes: Some(Arc::new(attributes)),
    })
}

/// A content encoding without `aws-chunked`, which some origins store although it is a transfer.
fn without_chunking(encoding: &str) -> Option<String> {
    let kept: Vec<_> = encoding
        .split(',')
        .map(str::trim)
        .filter(|e| !e.is_empty() && !e.eq_ignore_ascii_case("aws-chunked"))
        .collect();
    (!kept.is_empty()).then(|| kept.join(","))
}

/// A PUT that finds nothing is one whose path the server could not match: moto, for a line feed.
fn unroutable(key: &ObjectKey, error: Error) -> Error {
    if error.kind() == ErrorKind::NotFound && key.as_str().contains(char::is_control) {
        let context = "this origin has no place for a key with a control character";
        return Error::new(ErrorKind::UnsupportedKey, context).with_source(error);
    }
    error
}

impl S3Store {
    /// An answer to a HEAD has no document. A 400 may be a bad key, an expired token or a skewed
    /// clock: a GET of one byte tells.
    async fn explain_head(&self, key: &ObjectKey, unexplained: Error) -> Error {
        let mut ask = Ask::new("head", Method::GET, Some(key.as_str()));
        ask.headers.insert(RANGE, ::http::HeaderValue::from_static("bytes=0-0"));
        match self.ask(ask).await {
            Ok(_) => unexplained,
            Err(explained) => explained,
        }
    }

    async fn listing(&self, request: &ListRequest) -> Result<xml::Listing> {
        let mut ask = Ask::new("list", Method::GET, None)
            .query("list-type", "2")
            .query("encoding-type", "url")
            .query("max-keys", request.max_keys.clamp(1, 1000).to_string())
            .query("prefix", request.prefix.as_str());
        if let Some(delimiter) = &request.delimiter {
            ask = ask.query("delimiter", delimiter.as_str());
        }
        if let Some(token) = &request.token {
            ask = ask.query("continuation-token", token.as_str());
        } else if let Some(after) = request.start_after.as_ref().filter(|a| !a.is_empty()) {
            ask = ask.query("start-after", after.as_str());
        }
        let document = self.document("list", self.ask(ask).await?).await?;
        xml::parse_root(&document, "ListBucketResult").ok_or_else(|| {
            let context = "answer to list is no ListBucketResult; is the endpoint one of S3?";
            Error::new(ErrorKind::Corrupted, context)
        })
    }

    /// One page as the origin gives it.
    async fn page(&self, request: &ListRequest) -> Result<ListPage> {
        let listing = self.listing(request).await?;
        let encoded = listing.encoding_type.as_deref() == Some("url");
        let mut page = ListPage {
            next: listing.next_continuation_token.filter(|_| listing.is_truncated),
            ..ListPage::default()
        };
        for listed in listing.contents {
            let key = xml::name(&listed.key, encoded).and_then(|name| ObjectKey::new(name).ok());
            let Some(key) = key else {
                page.skipped += 1;
                continue;
            };
            let modified = listed.last_modified.as_deref().and_then(document_time);
            let last_modified = modified.ok_or_else(|| missing("list", "LastModified"))?;
            let meta = ObjectMeta {
                size: listed.size,
                etag: tag("list", listed.etag.as_deref())
                    .unwrap_or_else(|_| untagged(listed.size, last_modified)),
                last_modified,
                attributes: None,
            };
            page.entries.push(ListEntry { key, meta });
        }
        for prefix in listing.common_prefixes {
            match xml::name(&prefix.prefix, encoded) {
                Some(name) => page.common_prefixes.push(name),
                None => page.skipped += 1,
            }
        }
        if listing.is_truncated && page.next.is_none() {
            return Err(missing("list", "NextContinuationToken"));
        }
        Ok(page)
    }
}

/// Our tokens: the origin's own, and one for a listing that has so far given only the common
/// prefix that `start_after` lies in.
const ORIGINS_TOKEN: char = 't';
const AFTER_TOKEN: char = 's';

/// No key that a person would write has this after a common prefix.
const LAST_CHARACTER: char = '\u{10ffff}';

/// True where a common prefix comes after all objects of its page.
fn ends_with(page: &ListPage, common: &str) -> bool {
    page.entries.last().is_none_or(|entry| entry.key.as_str() < common)
}

/// The common prefix that a listing begins in the middle of.
fn entered(request: &ListRequest) -> Option<String> {
    let (delimiter, after) = (request.delimiter.as_deref()?, request.start_after.as_deref()?);
    let rest = after.strip_prefix(request.prefix.as_str())?;
    let at = rest.find(delimiter)?;
    Some(after[..request.prefix.len() + at + delimiter.len()].to_owned())
}

#[async_trait]
impl Store for S3Store {
    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        let asked = self.ask(Ask::new("head", Method::HEAD, Some(key.as_str()))).await;
        let response = match asked {
            Ok(response) => response,
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                return Err(self.explain_head(key, error).await);
            }
            Err(error) => return Err(error),
        };
        let size = headers::content_length(response.headers())
            .ok_or_else(|| missing("head", "Content-Length"))?;
        meta("head", response.headers(), size)
    }

    async fn stat(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        self.head(key).await
    }

    async fn get(&self, key: &ObjectKey, options: GetOptions) -> Result<GetResult> {
        let range = options.range;
        let header = range.header();
        let empty =
            matches!(range, ByteRange::Suffix(0)) || (header.is_none() && range != ByteRange::Full);
        if empty {
            // HTTP cannot ask for no bytes; the answer is the same, or that there is no object.
            let size = self.head(key).await?.size;
            return Err(::store::Unsatisfiable { size }.into());
        }
        let mut ask = Ask::new("get", Method::GET, Some(key.as_str()));
        if let Some(header) = header {
            ask.headers.insert(RANGE, headers::header_value(&header)?);
        }
        if let Some(etag) = options.if_match.as_ref().filter(|etag| given(etag)) {
            ask.headers.insert(IF_MATCH, headers::header_value(&etag.quoted())?);
        }
        let response = self.ask(ask).await?;
        let head = response.headers();
        let length = headers::content_length(head).ok_or_else(|| missing("get", "Content-Length"));
        let (sent, size) = if response.status() == StatusCode::PARTIAL_CONTENT {
            match headers::content_range(head) {
                Some((Some(sent), Some(size))) => (sent, size),
                _ => return Err(missing("get", "Content-Range")),
            }
        } else {
            let size = length.clone()?;
            (0..size, size)
        };
        // An origin may ignore a range; only where that makes no difference is its answer used.
        let wanted = range.resolve(size)?;
        if wanted != sent || length.is_ok_and(|length| length != sent.end - sent.start) {
            let context = format!("get `{key}`: origin sent bytes {sent:?}, expected {wanted:?}");
            return Err(Error::new(ErrorKind::Corrupted, context));
        }
        let meta = meta("get", head, size)?;
        if options.if_match.as_ref().is_some_and(|wanted| *wanted != meta.etag) {
            let context =
                format!("get `{key}`: origin sent version {}, not the one asked for", meta.etag);
            return Err(Error::new(ErrorKind::PreconditionFailed, context));
        }
        let body = incoming(response, wanted.end - wanted.start);
        Ok(GetResult { meta, range: wanted, body })
    }

    /// Origins differ on a common prefix that `start_after` lies in: some leave it out, although
    /// keys of it follow. Whether they do is asked for by itself.
    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        let mut asked = request.clone();
        let mut common = entered(request).filter(|_| request.token.is_none());
        let mut given = None;
        match request.token.as_ref().and_then(|token| token.split_at_checked(1)) {
            Some(("t", token)) => asked.token = Some(token.to_owned()),
            Some(("s", after)) => {
                asked.token = None;
                asked.start_after = Some(after.to_owned());
                given = entered(&asked);
            }
            Some(_) => {
                return Err(Error::new(ErrorKind::InvalidInput, "continuation token is not ours"));
            }
            None => {}
        }
        if let Some(prefix) = &common {
            let prefix = prefix.clone();
            let inside = ListRequest { prefix, delimiter: None, max_keys: 1, ..asked.clone() };
            let page = self.page(&inside).await?;
            if page.entries.is_empty() {
                common = None;
            } else if request.max_keys <= 1 {
                let next = asked.start_after.map(|after| format!("{AFTER_TOKEN}{after}"));
                let common_prefixes = common.into_iter().collect();
                return Ok(ListPage { common_prefixes, next, ..ListPage::default() });
            } else {
                asked.max_keys = asked.max_keys.min(1000) - 1;
            }
        }
        let mut page = self.page(&asked).await?;
        page.common_prefixes.retain(|name| Some(name) != common.as_ref().or(given.as_ref()));
        // Everything else in the page is after `start_after`, and so after this.
        if let Some(common) = common {
            page.common_prefixes.insert(0, common);
        }
        page.next = page.next.take().map(|token| match page.common_prefixes.last() {
            // MinIO's own token leads to the same common prefix for ever, unless it is a slash
            // that ends it.
            Some(last) if asked.delimiter.as_deref() != Some("/") && ends_with(&page, last) => {
                format!("{AFTER_TOKEN}{last}{LAST_CHARACTER}")
            }
            _ => format!("{ORIGINS_TOKEN}{token}"),
        });
        Ok(page)
    }

    async fn put(&self, key: &ObjectKey, body: Body, options: PutOptions) -> Result<Written> {
        let ask = Ask::new("put", Method::PUT, Some(key.as_str()))
            .attributes(&options.attributes)?
            .condition(&options.condition)?
            .body(CallBody::Stream(body));
        let put = self.ask(ask).await.map_err(absent_fails(&options.condition));
        let response = put.map_err(|error| unroutable(key, error))?;
        let etag = headers::etag(response.headers()).ok_or_else(|| missing("put", "ETag"))?;
        Ok(Written { etag, last_modified: None })
    }

    async fn start_upload(&self, key: &ObjectKey, options: PutOptions) -> Result<UploadId> {
        self.begin(key, &options.attributes).await
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u16,
        body: Body,
    ) -> Result<PartEntry> {
        self.part(key, upload, number, body).await
    }

    async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[(u16, ETag)],
        condition: Condition,
    ) -> Result<Written> {
        self.complete(key, upload, parts, &condition).await
    }

    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        self.abort(key, upload).await
    }

    async fn list_parts(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        after: Option<u16>,
        max_parts: usize,
    ) -> Result<PartList> {
        self.parts(key, upload, after, max_parts).await
    }

    async fn list_uploads(&self, request: &UploadListRequest) -> Result<UploadList> {
        self.uploads(request).await
    }

    async fn copy(
        &self,
        from: &ObjectKey,
        to: &ObjectKey,
        options: CopyOptions,
    ) -> Result<Written> {
        self.copy_object(from, to, options).await
    }

    async fn delete(&self, key: &ObjectKey, if_match: Option<&ETag>) -> Result<()> {
        let condition = if_match.cloned().map_or(Condition::None, Condition::IfMatch);
        // Many origins do not look at this header. Asking first narrows the race that they leave.
        self.expect(key, &condition).await?;
        let ask = Ask::new("delete", Method::DELETE, Some(key.as_str())).condition(&condition)?;
        match self.ask(ask).await.map_err(absent_fails(&condition)) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_whole_seconds() {
        let at = |text| document_time(text).map(httpdate::fmt_http_date);
        let expected = Some("Fri, 02 Jan 2026 03:04:05 GMT".to_owned());
        assert_eq!(at("2026-01-02T03:04:05.678Z"), expected);
        assert_eq!(at("2026-01-02T03:04:05Z"), expected);
        assert_eq!(at("yesterday"), None);
        // West of Greenwich it is still the last year of four digits.
        let last = Some("Fri, 31 Dec 9999 23:59:59 GMT".to_owned());
        assert_eq!(at("9999-12-31T23:59:59-05:00"), last);
    }

    #[test]
    fn chunking_is_no_encoding() {
        assert_eq!(without_chunking("aws-chunked"), None);
        assert_eq!(without_chunking("gzip,aws-chunked"), Some("gzip".into()));
        assert_eq!(without_chunking("aws-chunked, br"), Some("br".into()));
    }
}
