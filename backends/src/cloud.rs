//! What the stores of Azure Blob Storage and Google Cloud Storage share.
//!
//! Invariant: a version's tag is the origin's own with `-1` behind it, the same in every answer,
//! and comes back to the origin without it. (S3 clients take a tag without a dash for the MD5 of
//! the bytes and compare it.) Nothing here knows either protocol.

pub(crate) mod listing;
pub(crate) mod reading;
pub(crate) mod xml;

use std::fmt;

use store::{ETag, ObjectKey};

/// What a request was for: the beginning of its error.
#[derive(Debug, Clone, Copy)]
pub(crate) struct What<'a> {
    act: &'static str,
    key: Option<&'a ObjectKey>,
}

impl<'a> What<'a> {
    /// A listing, of objects or uploads.
    pub(crate) const LISTING: What<'static> = What { act: "listing", key: None };

    /// Something done to an object.
    pub(crate) fn of(act: &'static str, key: &'a ObjectKey) -> Self {
        Self { act, key: Some(key) }
    }
}

impl fmt::Display for What<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key {
            Some(key) => write!(f, "{} of `{key}`", self.act),
            None => f.write_str(self.act),
        }
    }
}

/// What marks a tag as no MD5.
const OPAQUE: &str = "-1";

/// The tag that callers see for a version that the origin calls `text`, quoted or not.
pub(crate) fn opaque(text: &str) -> ETag {
    ETag::parse(&format!("{}{OPAQUE}", ETag::parse(text)))
}

/// The origin's own name of a version. A tag that was never ours comes out as it is, and matches
/// nothing there.
pub(crate) fn origin_tag(etag: &ETag) -> &str {
    etag.as_str().strip_suffix(OPAQUE).unwrap_or(etag.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_go_out_marked_and_come_back_bare() {
        for text in ["\"0x8DC\"", "0x8DC", "W/\"0x8DC\""] {
            assert_eq!(opaque(text).as_str(), "0x8DC-1");
            assert_eq!(origin_tag(&opaque(text)), "0x8DC");
        }
        assert_eq!(origin_tag(&ETag::parse("d41d8")), "d41d8");
    }
}
