//! Listings over what an origin's own listing can do.
//!
//! Invariant: `start_after`, delimiters and page sizes mean what [`ListRequest`] says, whatever
//! the origin has of them: what it lacks is made of its flat pages. A key that cannot be an
//! [`ObjectKey`] is counted and left out, and never fails a page. Order is that of the origin's
//! pages; within a page it is byte order.

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use store::{Error, ErrorKind, ListEntry, ListPage, ListRequest, ObjectKey, ObjectMeta, Result};

/// Most pages of the origin that one call asks for. A call that found nothing by then returns an
/// empty page with a token, so that no call runs without bound.
const MAX_PAGES: usize = 20;

/// Entries asked for where most of them will be passed over.
const FULL_PAGE: usize = 1000;

/// A request for one page of an origin's own listing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RawRequest<'a> {
    /// Only names that begin with this.
    pub(crate) prefix: &'a str,
    /// Given only where [`RawPages::rolls_up`] said yes.
    pub(crate) delimiter: Option<&'a str>,
    /// Names up to this one are passed over by the caller; an origin that can skip them should.
    pub(crate) after: Option<&'a str>,
    /// [`RawPage::next`] of the page before.
    pub(crate) marker: Option<&'a str>,
    /// Most items, 1 to 1,000.
    pub(crate) limit: usize,
}

/// One page of an origin's own listing.
#[derive(Debug, Default)]
pub(crate) struct RawPage {
    /// What is in it.
    pub(crate) items: Vec<RawItem>,
    /// Where the next page begins, if there is one.
    pub(crate) next: Option<String>,
}

/// A name in a listing: an object with its metadata, or a common prefix without.
#[derive(Debug)]
pub(crate) struct RawItem {
    pub(crate) name: String,
    pub(crate) meta: Option<ObjectMeta>,
}

/// An origin that lists.
#[async_trait]
pub(crate) trait RawPages: Sync {
    /// One page.
    async fn raw_page(&self, request: RawRequest<'_>) -> Result<RawPage>;

    /// True where the origin rolls names up at this delimiter by itself.
    fn rolls_up(&self, delimiter: &str) -> bool;
}

/// Where a listing goes on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Token {
    /// The origin's page.
    #[serde(rename = "m", default, skip_serializing_if = "Option::is_none")]
    marker: Option<String>,
    /// The caller's `start_after`: nothing up to it is ever returned.
    #[serde(rename = "f", default, skip_serializing_if = "Option::is_none")]
    floor: Option<String>,
    /// Of the origin's page, what was returned already: everything up to this name.
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    seen: Option<String>,
    /// How many items that page was asked for; the next caller may ask for another number, and what
    /// was returned of the page must be found in it again.
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    extent: Option<usize>,
    /// The last common prefix returned; it and what is below it is not returned again.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    prefix: Option<String>,
}

impl Token {
    fn encode(&self) -> String {
        let text = serde_json::to_string(self).expect("strings are JSON");
        URL_SAFE_NO_PAD.encode(text)
    }

    fn decode(text: &str) -> Result<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok();
        bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).ok_or_else(|| {
            Error::new(ErrorKind::InvalidInput, "continuation token is not one of ours")
        })
    }
}

/// The common prefix that `name` is rolled up into.
fn rolled<'a>(name: &'a str, prefix: &str, delimiter: &str) -> Option<&'a str> {
    let at = name.strip_prefix(prefix)?.find(delimiter)?;
    Some(&name[..prefix.len() + at + delimiter.len()])
}

/// One page as the caller asked for it.
pub(crate) async fn page(origin: &impl RawPages, request: &ListRequest) -> Result<ListPage> {
    let limit = request.max_keys.clamp(1, FULL_PAGE);
    let delimiter = request.delimiter.as_deref().filter(|delimiter| !delimiter.is_empty());
    let native = delimiter.filter(|delimiter| origin.rolls_up(delimiter));
    let emulated = if native.is_some() { None } else { delimiter };
    let mut page = ListPage::default();
    let mut at = match &request.token {
        Some(token) => Token::decode(token)?,
        None => Token { floor: request.start_after.clone(), ..Token::default() },
    };
    if let (None, Some(delimiter), Some(floor)) = (&request.token, native, at.floor.clone())
        && let Some(common) = rolled(&floor, &request.prefix, delimiter)
    {
        // The origin decides about a common prefix by its own name, which is not after the floor.
        if any_after(origin, common, &floor).await? {
            page.common_prefixes.push(common.to_owned());
        }
        at.prefix = Some(common.to_owned());
    }
    for round in 0..MAX_PAGES {
        let wanted = if emulated.is_some() || round > 0 { FULL_PAGE } else { limit };
        let extent = *at.extent.get_or_insert(wanted);
        let raw = origin
            .raw_page(RawRequest {
                prefix: &request.prefix,
                delimiter: native,
                after: at.floor.as_deref(),
                marker: at.marker.as_deref(),
                limit: extent.clamp(1, FULL_PAGE),
            })
            .await?;
        if let Some(cut) = fill(&mut page, &mut at, raw.items, request, emulated, limit) {
            page.next = Some(cut.encode());
            return Ok(page);
        }
        (at.marker, at.seen, at.extent) = (raw.next, None, None);
        if at.marker.is_none() {
            return Ok(page);
        }
        let count = page.entries.len() + page.common_prefixes.len();
        if count == limit || (count > 0 && emulated.is_none()) {
            break;
        }
    }
    page.next = Some(at.encode());
    Ok(page)
}

/// Moves items into the page until it is full. Returns where to go on if items are left over.
fn fill(
    page: &mut ListPage,
    at: &mut Token,
    mut items: Vec<RawItem>,
    request: &ListRequest,
    emulated: Option<&str>,
    limit: usize,
) -> Option<Token> {
    items.sort_by(|one, other| one.name.cmp(&other.name));
    for item in items {
        let RawItem { name, meta } = item;
        let up_to = |bound: &Option<String>| bound.as_ref().is_some_and(|bound| name <= *bound);
        let below = |p: &Option<String>| p.as_ref().is_some_and(|p| name.starts_with(p.as_str()));
        if up_to(&at.floor) || up_to(&at.seen) || (below(&at.prefix)) {
            continue;
        }
        if page.entries.len() + page.common_prefixes.len() == limit {
            return Some(at.clone());
        }
        let common = match (&meta, emulated) {
            (None, _) => Some(name.as_str()),
            (Some(_), Some(delimiter)) => rolled(&name, &request.prefix, delimiter),
            (Some(_), None) => None,
        };
        if let Some(common) = common {
            page.common_prefixes.push(common.to_owned());
            at.prefix = Some(common.to_owned());
        } else if let Some(meta) = meta {
            match ObjectKey::new(name.as_str()) {
                Ok(key) => page.entries.push(ListEntry { key, meta }),
                Err(_) => page.skipped += 1,
            }
        }
        at.seen = Some(name);
    }
    None
}

/// True when a key below `prefix` is after `floor`, which is below it too.
async fn any_after(origin: &impl RawPages, prefix: &str, floor: &str) -> Result<bool> {
    let mut marker: Option<String> = None;
    loop {
        let request = RawRequest {
            prefix,
            delimiter: None,
            after: Some(floor),
            marker: marker.as_deref(),
            limit: FULL_PAGE,
        };
        let raw = origin.raw_page(request).await?;
        if raw.items.iter().any(|item| item.name.as_str() > floor) {
            return Ok(true);
        }
        marker = raw.next;
        if marker.is_none() {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests;
