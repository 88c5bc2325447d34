//! List Objects, version 2 of the XML interface.
//!
//! Invariant: every name of a page comes out as it is; tags are generations and times whole
//! seconds, as other answers have them. Names are not asked for encoded: whether a plus then is a
//! plus or a space is written nowhere, and our reader of XML takes control characters as they are.

use std::time::{Duration, SystemTime};

use ::http::Method;
use async_trait::async_trait;
use store::{Error, ErrorKind, ObjectMeta, Result};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::request::Client;
use crate::cloud::What;
use crate::cloud::listing::{RawItem, RawPage, RawPages, RawRequest};
use crate::cloud::opaque;
use crate::cloud::xml::Node;
use crate::http::{Call, document};

/// A time of the XML interface, to the second: that is all that `Last-Modified` says.
pub(super) fn time(text: &str) -> Option<SystemTime> {
    let at = OffsetDateTime::parse(text.trim(), &Rfc3339).ok()?;
    let seconds = u64::try_from(at.unix_timestamp()).ok()?;
    Some(crate::calendar::after_1970(Duration::from_secs(seconds)))
}

/// A name in an answer.
pub(super) fn name(text: Option<&str>) -> Result<String> {
    let odd = || Error::new(ErrorKind::Corrupted, "a listing has an entry without a name");
    text.map(str::to_owned).ok_or_else(odd)
}

fn item(contents: &Node) -> Result<RawItem> {
    let name = name(contents.text_of("Key"))?;
    let size = contents.text_of("Size").and_then(|size| size.trim().parse().ok());
    let generation = contents.text_of("Generation").map(str::trim).filter(|g| !g.is_empty());
    let modified = contents.text_of("LastModified").and_then(time);
    let (Some(size), Some(generation), Some(last_modified)) = (size, generation, modified) else {
        let context = format!("listing says no size, generation or time of `{name}`");
        return Err(Error::new(ErrorKind::Corrupted, context));
    };
    let meta = ObjectMeta { size, etag: opaque(generation), last_modified, attributes: None };
    Ok(RawItem { name, meta: Some(meta) })
}

#[async_trait]
impl RawPages for Client {
    async fn raw_page(&self, request: RawRequest<'_>) -> Result<RawPage> {
        let limit = request.limit.to_string();
        let mut pairs = vec![("list-type", "2"), ("max-keys", &limit)];
        let after = if request.marker.is_some() { None } else { request.after };
        for (name, value) in [
            ("prefix", Some(request.prefix)),
            ("delimiter", request.delimiter),
            ("start-after", after),
            ("continuation-token", request.marker),
        ] {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                pairs.push((name, value));
            }
        }
        let call = Call::new(Method::GET, self.bucket(&pairs)?);
        let answer = self.send(call, What::LISTING).await?;
        let root = Node::parse(&document(answer).await?)?;
        let mut items = Vec::new();
        for contents in root.all("Contents") {
            items.push(item(contents)?);
        }
        for common in root.all("CommonPrefixes") {
            for prefix in common.all("Prefix") {
                items.push(RawItem { name: name(Some(&prefix.text))?, meta: None });
            }
        }
        let next = root.text_of("NextContinuationToken").filter(|token| !token.is_empty());
        Ok(RawPage { items, next: next.map(str::to_owned) })
    }

    fn rolls_up(&self, _: &str) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_as_they_stand() {
        let text = "<Contents><Key>a+b%2B &amp;\u{1}&#2;</Key><Size>3</Size>\
                    <Generation>7</Generation><LastModified>2023-11-14T22:13:20.987Z</LastModified>\
                    </Contents>";
        let item = item(&Node::parse(text.as_bytes()).unwrap()).unwrap();
        assert_eq!(item.name, "a+b%2B &\u{1}\u{2}");
        assert_eq!(item.meta.unwrap().etag.as_str(), "7-1");
    }

    #[test]
    fn times_are_whole_seconds() {
        let expected = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        assert_eq!(time("2023-11-14T22:13:20.987Z"), Some(expected));
        assert_eq!(time("yesterday"), None);
    }
}
