//! Conditional headers, in the order of RFC 9110 section 13.2.2.
//!
//! Invariant: `If-Match` beats `If-Unmodified-Since`, `If-None-Match` beats `If-Modified-Since`;
//! dates that cannot be read are ignored. Tags are opaque and compared as they are.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use s3s::S3ErrorCode;
use store::{Condition, ETag, ObjectMeta};

use crate::failure::{Failure, Outcome};

/// Tags of one header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Tags {
    /// `*`: any version.
    Any,
    /// These versions.
    These(Vec<ETag>),
}

impl Tags {
    fn parse(text: &str) -> Self {
        if text.trim() == "*" {
            return Self::Any;
        }
        let (mut tags, mut quoted, mut from) = (Vec::new(), false, 0);
        for (at, c) in text.char_indices() {
            match c {
                '"' => quoted = !quoted,
                ',' if !quoted => {
                    tags.push(ETag::parse(&text[from..at]));
                    from = at + 1;
                }
                _ => {}
            }
        }
        tags.push(ETag::parse(&text[from..]));
        Self::These(tags)
    }

    fn has(&self, tag: &ETag) -> bool {
        match self {
            Self::Any => true,
            Self::These(tags) => tags.contains(tag),
        }
    }
}

/// Which headers: those of the request's object or those of a copy's source.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Of {
    Object,
    CopySource,
}

impl Of {
    fn names(self) -> [&'static str; 4] {
        match self {
            Self::Object => {
                ["if-match", "if-none-match", "if-modified-since", "if-unmodified-since"]
            }
            Self::CopySource => [
                "x-amz-copy-source-if-match",
                "x-amz-copy-source-if-none-match",
                "x-amz-copy-source-if-modified-since",
                "x-amz-copy-source-if-unmodified-since",
            ],
        }
    }
}

/// The conditions of a read.
#[derive(Debug, Default)]
pub(crate) struct Conditions {
    matches: Option<Tags>,
    differs: Option<Tags>,
    modified_since: Option<SystemTime>,
    unmodified_since: Option<SystemTime>,
}

/// What the conditions say of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    Proceed,
    NotModified,
    Failed,
}

impl Conditions {
    /// Reads the headers.
    pub(crate) fn read(headers: &HeaderMap, of: Of) -> Self {
        let [matches, differs, modified, unmodified] = of.names();
        let text = |name: &str| headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()));
        let date = |name: &str| text(name).and_then(|t| httpdate::parse_http_date(&t).ok());
        Self {
            matches: text(matches).map(|t| Tags::parse(&t)),
            differs: text(differs).map(|t| Tags::parse(&t)),
            modified_since: date(modified),
            unmodified_since: date(unmodified),
        }
    }

    /// True when there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.matches.is_none()
            && self.differs.is_none()
            && self.modified_since.is_none()
            && self.unmodified_since.is_none()
    }

    /// The one version that a read may return, where the headers name exactly one.
    pub(crate) fn pinned(&self) -> Option<ETag> {
        match &self.matches {
            Some(Tags::These(tags)) if tags.len() == 1 => Some(tags[0].clone()),
            _ => None,
        }
    }

    /// Decides about a version.
    pub(crate) fn decide(&self, meta: &ObjectMeta) -> Decision {
        // Headers carry whole seconds, so the fraction of a version's time is no change.
        let modified = whole_seconds(meta.last_modified);
        match (&self.matches, self.unmodified_since) {
            (Some(tags), _) if !tags.has(&meta.etag) => return Decision::Failed,
            (None, Some(since)) if modified > since => return Decision::Failed,
            _ => {}
        }
        match (&self.differs, self.modified_since) {
            (Some(tags), _) if tags.has(&meta.etag) => Decision::NotModified,
            (None, Some(since)) if modified <= since => Decision::NotModified,
            _ => Decision::Proceed,
        }
    }
}

fn whole_seconds(time: SystemTime) -> SystemTime {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs()),
        Err(_) => time,
    }
}

/// The failure of a condition.
pub(crate) fn failed() -> Failure {
    Failure::new(
        S3ErrorCode::PreconditionFailed,
        "At least one of the pre-conditions you specified did not hold",
    )
}

/// The condition of a write. S3 knows `If-None-Match: *` and `If-Match` with one tag.
pub(crate) fn of_write(headers: &HeaderMap) -> Outcome<Condition> {
    let text = |name: &str| headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()));
    let differs = text("if-none-match").map(|t| Tags::parse(&t));
    let matches = text("if-match").map(|t| Tags::parse(&t));
    match (matches, differs) {
        (None, None) => Ok(Condition::None),
        (None, Some(Tags::Any)) => Ok(Condition::IfAbsent),
        (Some(Tags::These(mut tags)), None) if tags.len() == 1 => {
            Ok(Condition::IfMatch(tags.remove(0)))
        }
        (Some(_), Some(_)) => Err(Failure::invalid_request(
            "If-Match and If-None-Match cannot be used together in a write",
        )),
        (None, Some(Tags::These(_))) => {
            Err(Failure::not_implemented("If-None-Match other than * in a write"))
        }
        (Some(_), None) => Err(Failure::not_implemented("If-Match other than one tag in a write")),
    }
}

/// The condition of a deletion: `If-Match` with `*` or one tag.
pub(crate) fn of_delete(headers: &HeaderMap) -> Outcome<Option<Tags>> {
    let Some(value) = headers.get("if-match") else { return Ok(None) };
    match Tags::parse(&String::from_utf8_lossy(value.as_bytes())) {
        Tags::These(tags) if tags.len() != 1 => {
            Err(Failure::not_implemented("If-Match with several tags in a deletion"))
        }
        tags => Ok(Some(tags)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: u64 = 1_700_000_000;

    fn decide(pairs: &[(&'static str, &str)]) -> Decision {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(*name, value.parse().unwrap());
        }
        let meta = ObjectMeta {
            size: 1,
            etag: ETag::parse("a"),
            last_modified: SystemTime::UNIX_EPOCH + Duration::from_millis(T * 1000 + 700),
            attributes: None,
        };
        Conditions::read(&headers, Of::Object).decide(&meta)
    }

    fn date(offset: i64) -> String {
        httpdate::fmt_http_date(
            SystemTime::UNIX_EPOCH + Duration::from_secs(T.checked_add_signed(offset).unwrap()),
        )
    }

    #[test]
    fn rfc_9110_precedence() {
        use Decision::{Failed, NotModified, Proceed};
        let (before, at, after) = (date(-1), date(0), date(1));
        assert_eq!(decide(&[]), Proceed);
        assert_eq!(decide(&[("if-match", "\"a\"")]), Proceed);
        assert_eq!(decide(&[("if-match", "a")]), Proceed);
        assert_eq!(decide(&[("if-match", "\"x\", \"a\"")]), Proceed);
        assert_eq!(decide(&[("if-match", "*")]), Proceed);
        assert_eq!(decide(&[("if-match", "\"x\"")]), Failed);
        assert_eq!(decide(&[("if-match", "\"\"")]), Failed);
        assert_eq!(decide(&[("if-none-match", "W/\"a\"")]), NotModified);
        assert_eq!(decide(&[("if-none-match", "\"x,\", \"a\"")]), NotModified);
        assert_eq!(decide(&[("if-none-match", "\"x\"")]), Proceed);
        assert_eq!(decide(&[("if-modified-since", &at)]), NotModified);
        assert_eq!(decide(&[("if-modified-since", &before)]), Proceed);
        assert_eq!(decide(&[("if-modified-since", "yesterday")]), Proceed);
        assert_eq!(decide(&[("if-unmodified-since", &at)]), Proceed);
        assert_eq!(decide(&[("if-unmodified-since", &before)]), Failed);
        assert_eq!(decide(&[("if-match", "a"), ("if-unmodified-since", &before)]), Proceed);
        assert_eq!(decide(&[("if-none-match", "x"), ("if-modified-since", &after)]), Proceed);
        assert_eq!(decide(&[("if-match", "x"), ("if-none-match", "a")]), Failed);
    }

    #[test]
    fn writes() {
        let of = |pairs: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(*name, value.parse().unwrap());
            }
            of_write(&headers)
        };
        assert_eq!(of(&[]).unwrap(), Condition::None);
        assert_eq!(of(&[("if-none-match", "*")]).unwrap(), Condition::IfAbsent);
        assert_eq!(of(&[("if-match", "\"t\"")]).unwrap(), Condition::IfMatch(ETag::parse("t")));
        assert_eq!(of(&[("if-none-match", "\"t\"")]).unwrap_err().status(), 501);
        assert_eq!(of(&[("if-match", "t"), ("if-none-match", "*")]).unwrap_err().status(), 400);
    }
}
