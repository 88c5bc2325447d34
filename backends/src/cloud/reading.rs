//! From the head of a GET's answer to a [`GetResult`].
//!
//! Invariant: the range and size that are reported are those that the answer states, and they
//! satisfy the request; an origin that answers with other bytes is [`ErrorKind::Corrupted`].

use ::http::StatusCode;
use ::http::header::CONTENT_RANGE;
use reqwest::Response;
use store::{ByteRange, Error, ErrorKind, GetResult, ObjectMeta, Result};

use crate::http::{headers, incoming};

/// Takes the answer to a request for `asked`. `meta` is called with the object's size.
pub(crate) fn result(
    response: Response,
    asked: ByteRange,
    meta: impl FnOnce(u64) -> Result<ObjectMeta>,
) -> Result<GetResult> {
    let odd = |what: &str| Error::new(ErrorKind::Corrupted, format!("answer of the origin {what}"));
    let length = headers::content_length(response.headers());
    let (range, size) = if response.status() == StatusCode::PARTIAL_CONTENT {
        if let Some((Some(range), Some(size))) = headers::content_range(response.headers()) {
            (range, size)
        } else {
            // Azurite says `bytes 10-9/10` where there is nothing to send.
            if let Some(size) = stated_size(&response) {
                asked.resolve(size)?;
            }
            return Err(odd("has no readable Content-Range"));
        }
    } else {
        let size = length.ok_or_else(|| odd("has no Content-Length"))?;
        (0..size, size)
    };
    let wanted = asked.resolve(size)?;
    if range != wanted {
        let what = format!("has bytes {range:?} of {size}, expected {wanted:?}");
        return Err(odd(&what));
    }
    let bytes = range.end - range.start;
    if length.is_some_and(|length| length != bytes) {
        return Err(odd(&format!("has another length than its range of {bytes} bytes")));
    }
    Ok(GetResult { meta: meta(size)?, range, body: incoming(response, bytes) })
}

/// The object's size as a Content-Range says it, whatever its range is.
fn stated_size(response: &Response) -> Option<u64> {
    let text = headers::text(response.headers(), &CONTENT_RANGE)?;
    text.rsplit_once('/')?.1.trim().parse().ok()
}

/// True for ranges that HTTP cannot ask for: empty ones, and a suffix of nothing. They are
/// resolved against the object's size instead.
pub(crate) fn is_empty(range: ByteRange) -> bool {
    matches!(range, ByteRange::Suffix(0))
        || matches!(range, ByteRange::Bounded(start, end) if start >= end)
}
