//! Objects and listings of the shim.
//!
//! Invariant: one object has one ETag in GET, HEAD, PUT and listings.

use super::json::{FIELDS, Resource};
use super::{Answer, Asked, State, decode, empty, set, xml, xml_error};
use bytes::Bytes;
use http::StatusCode;
use http_body_util::Full;
use quick_xml::escape::escape;
use serde_json::{Map, Value, json};
use std::fmt::Write;
use std::ops::Range;
use std::time::SystemTime;

/// Page size where none is asked for, as GCS has it.
const DEFAULT_PAGE: usize = 1_000;

pub(super) async fn head_bucket(state: &State, asked: &Asked) -> Result<Answer, Answer> {
    state.json.bucket(&asked.bucket).await?;
    Ok(empty(StatusCode::OK))
}

pub(super) async fn get(state: &State, asked: &Asked) -> Result<Answer, Answer> {
    let found = state.json.stat(&asked.bucket, &asked.key, asked.query("generation")).await?;
    if let Some(status) = precondition(asked, &found) {
        let mut answer = if status == StatusCode::NOT_MODIFIED {
            empty(status)
        } else {
            xml_error(status, "PreconditionFailed", "a condition on the ETag or date does not hold")
        };
        describe(&mut answer, &found);
        return Ok(answer);
    }
    let range = match asked.header("range").map(|range| parse_range(range, found.size)) {
        None | Some(Wanted::Everything) => None,
        Some(Wanted::Part(range)) => Some(range),
        Some(Wanted::Nothing) => {
            let mut answer =
                xml_error(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange", "beyond the object");
            set(&mut answer, "content-range", &format!("bytes */{}", found.size));
            return Ok(answer);
        }
    };
    let mut answer = empty(StatusCode::OK);
    describe(&mut answer, &found);
    let length = range.as_ref().map_or(found.size, |range| range.end - range.start);
    if let Some(range) = &range {
        *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
        let text = format!("bytes {}-{}/{}", range.start, range.end - 1, found.size);
        set(&mut answer, "content-range", &text);
    }
    set(&mut answer, "content-length", &length.to_string());
    if asked.method == http::Method::GET {
        let whole = state.json.read(&asked.bucket, &asked.key).await?;
        let range = range.unwrap_or(0..whole.len() as u64);
        if range.end > whole.len() as u64 {
            return Err(xml_error(
                StatusCode::SERVICE_UNAVAILABLE,
                "SlowDown",
                "changed meanwhile",
            ));
        }
        *answer.body_mut() = Full::new(whole.slice(range.start as usize..range.end as usize));
    }
    Ok(answer)
}

pub(super) async fn put(state: &State, asked: &Asked) -> Result<Answer, Answer> {
    let body = asked.body.clone();
    store(state, asked, description(asked), &body).await.map(|stored| stored_answer(&stored))
}

/// Writes an object if the condition on its generation holds.
pub(super) async fn store(
    state: &State,
    asked: &Asked,
    description: Value,
    body: &Bytes,
) -> Result<Resource, Answer> {
    let _alone = state.writing.lock().await;
    check_generation(state, asked).await?;
    match state.json.write(&asked.bucket, &asked.key, description, body).await {
        Err(answer) if answer.status() == StatusCode::NOT_FOUND => {
            Err(xml_error(StatusCode::NOT_FOUND, "NoSuchBucket", &asked.bucket))
        }
        other => other,
    }
}

pub(super) async fn copy(state: &State, asked: &Asked) -> Result<Answer, Answer> {
    let source = asked.header("x-goog-copy-source").unwrap_or_default();
    let (bucket, key) = source.trim_start_matches('/').split_once('/').unwrap_or((source, ""));
    let (Some(bucket), Some(key)) = (decode(bucket), decode(key)) else {
        return Err(xml_error(StatusCode::BAD_REQUEST, "InvalidArgument", "the source's name"));
    };
    let _alone = state.writing.lock().await;
    check_generation(state, asked).await?;
    let copied = state.json.copy((&bucket, &key), (&asked.bucket, &asked.key)).await?;
    let mut answer = xml(&format!(
        "<CopyObjectResult><LastModified>{}</LastModified><ETag>{}</ETag></CopyObjectResult>",
        copied.updated,
        escape(&copied.etag)
    ));
    set(&mut answer, "x-goog-generation", &copied.generation);
    Ok(answer)
}

pub(super) async fn delete(state: &State, asked: &Asked) -> Result<Answer, Answer> {
    let _alone = state.writing.lock().await;
    check_generation(state, asked).await?;
    state.json.delete(&asked.bucket, &asked.key).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// `ListObjects`, version 2 (and 1 by `marker`).
pub(super) async fn list(state: &State, asked: &Asked) -> Result<Answer, Answer> {
    let prefix = asked.query("prefix").unwrap_or_default();
    let delimiter = asked.query("delimiter").filter(|delimiter| !delimiter.is_empty());
    let limit = asked.query("max-keys").and_then(|keys| keys.parse().ok()).unwrap_or(DEFAULT_PAGE);
    let after = ["continuation-token", "start-after", "marker"]
        .into_iter()
        .find_map(|name| asked.query(name))
        .unwrap_or_default();
    let mut entries: Vec<(String, Option<Resource>)> = Vec::new();
    for resource in state.json.all(&asked.bucket, prefix).await? {
        let rest = &resource.name[prefix.len()..];
        let common = delimiter
            .and_then(|delimiter| Some(rest.find(delimiter)? + delimiter.len()))
            .map(|end| format!("{prefix}{}", &rest[..end]));
        match common {
            Some(common) => {
                if entries.last().is_none_or(|(name, _)| *name != common) {
                    entries.push((common, None));
                }
            }
            None => entries.push((resource.name.clone(), Some(resource))),
        }
    }
    let mut left = entries.iter().filter(|(name, _)| name.as_bytes() > after.as_bytes()).peekable();
    let page: Vec<_> = left.by_ref().take(limit).collect();
    let more = limit > 0 && left.peek().is_some();
    let mut text = format!(
        "<ListBucketResult xmlns='http://doc.s3.amazonaws.com/2006-03-01'><Name>{}</Name>\
         <Prefix>{}</Prefix><KeyCount>{}</KeyCount><IsTruncated>{more}</IsTruncated>",
        escape(&asked.bucket),
        escape(prefix),
        page.len()
    );
    if let (true, Some((last, _))) = (more, page.last()) {
        let _ = write!(text, "<NextContinuationToken>{0}</NextContinuationToken>", escape(last));
    }
    for (name, resource) in &page {
        let name = escape(name);
        let _ = match resource {
            Some(resource) => write!(
                text,
                "<Contents><Key>{name}</Key><Generation>{}</Generation><LastModified>{}</LastModified>\
                 <ETag>{}</ETag><Size>{}</Size></Contents>",
                resource.generation,
                resource.updated,
                escape(&resource.etag),
                resource.size
            ),
            None => write!(text, "<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>"),
        };
    }
    text.push_str("</ListBucketResult>");
    Ok(xml(&text))
}

/// What a PUT says about the object besides its bytes.
pub(super) fn description(asked: &Asked) -> Value {
    let mut description = Map::new();
    for (header, field) in FIELDS {
        if let Some(value) = asked.header(header) {
            description.insert(field.to_owned(), value.into());
        }
    }
    let metadata: Map<String, Value> = asked
        .headers
        .iter()
        .filter_map(|(name, value)| {
            let name = name.as_str().strip_prefix("x-goog-meta-")?;
            Some((name.to_owned(), value.to_str().ok()?.into()))
        })
        .collect();
    description.insert("metadata".to_owned(), json!(metadata));
    Value::Object(description)
}

pub(super) fn stored_answer(stored: &Resource) -> Answer {
    let mut answer = empty(StatusCode::OK);
    set(&mut answer, "etag", &stored.etag);
    set(&mut answer, "x-goog-generation", &stored.generation);
    answer
}

/// `x-goog-if-generation-match`; zero means that the object must not exist.
async fn check_generation(state: &State, asked: &Asked) -> Result<(), Answer> {
    let Some(wanted) = asked.header("x-goog-if-generation-match") else { return Ok(()) };
    let actual = match state.json.stat(&asked.bucket, &asked.key, None).await {
        Ok(found) => found.generation,
        Err(answer) if answer.status() == StatusCode::NOT_FOUND => "0".to_owned(),
        Err(answer) => return Err(answer),
    };
    if actual == wanted {
        return Ok(());
    }
    Err(xml_error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed", "another generation"))
}

fn describe(answer: &mut Answer, found: &Resource) {
    set(answer, "etag", &found.etag);
    set(answer, "last-modified", &httpdate::fmt_http_date(found.modified()));
    set(answer, "x-goog-generation", &found.generation);
    set(answer, "x-goog-stored-content-length", &found.size.to_string());
    set(answer, "accept-ranges", "bytes");
    for (header, field) in FIELDS {
        if let Some(value) = found.fields.get(field) {
            set(answer, header, value);
        }
    }
    for (name, value) in &found.metadata {
        let name = http::HeaderName::from_bytes(format!("x-goog-meta-{name}").as_bytes());
        if let (Ok(name), Ok(value)) = (name, http::HeaderValue::from_str(value)) {
            answer.headers_mut().insert(name, value);
        }
    }
}

/// The order of RFC 9110: If-Match before If-Unmodified-Since, If-None-Match before If-Modified-Since.
fn precondition(asked: &Asked, found: &Resource) -> Option<StatusCode> {
    let names = |list: &str| {
        list.split(',')
            .map(str::trim)
            .any(|one| one == "*" || one.trim_start_matches("W/") == found.etag)
    };
    let date = |name: &str| asked.header(name).and_then(|at| httpdate::parse_http_date(at).ok());
    let newer = |than: SystemTime| found.modified() > than;
    if let Some(list) = asked.header("if-match") {
        if !names(list) {
            return Some(StatusCode::PRECONDITION_FAILED);
        }
    } else if date("if-unmodified-since").is_some_and(newer) {
        return Some(StatusCode::PRECONDITION_FAILED);
    }
    if let Some(list) = asked.header("if-none-match") {
        return names(list).then_some(StatusCode::NOT_MODIFIED);
    }
    date("if-modified-since").filter(|at| !newer(*at)).map(|_| StatusCode::NOT_MODIFIED)
}

#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Everything,
    Part(Range<u64>),
    Nothing,
}

/// One range of bytes, clamped to the object. What cannot be read is ignored, as HTTP says.
fn parse_range(text: &str, size: u64) -> Wanted {
    let Some((from, to)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-'))
    else {
        return Wanted::Everything;
    };
    let (from, to) = (from.trim().parse::<u64>().ok(), to.trim().parse::<u64>().ok());
    let range = match (from, to) {
        (Some(from), Some(to)) if to < from => return Wanted::Everything,
        (Some(from), Some(to)) => from..to.saturating_add(1).min(size),
        (Some(from), None) => from..size,
        (None, Some(last)) => size.saturating_sub(last)..size,
        (None, None) => return Wanted::Everything,
    };
    if range.start >= range.end { Wanted::Nothing } else { Wanted::Part(range) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_clamped_and_nonsense_is_ignored() {
        assert_eq!(parse_range("bytes=0-3", 10), Wanted::Part(0..4));
        assert_eq!(parse_range("bytes=8-99", 10), Wanted::Part(8..10));
        assert_eq!(parse_range("bytes=-3", 10), Wanted::Part(7..10));
        assert_eq!(parse_range("bytes=-30", 10), Wanted::Part(0..10));
        assert_eq!(parse_range("bytes=4-", 10), Wanted::Part(4..10));
        assert_eq!(parse_range("bytes=10-", 10), Wanted::Nothing);
        assert_eq!(parse_range("bytes=-0", 10), Wanted::Nothing);
        assert_eq!(parse_range("bytes=5-4", 10), Wanted::Everything);
        assert_eq!(parse_range("lines=5-4", 10), Wanted::Everything);
    }
}
