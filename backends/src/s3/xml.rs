//! The documents of S3.
//!
//! Invariant: names in listings are asked for percent-encoded, since XML cannot carry every
//! character; they are decoded only where the answer says that they are encoded.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::http::url;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct ErrorDocument {
    pub(super) code: Option<String>,
    pub(super) message: Option<String>,
    pub(super) region: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Listing {
    pub(super) encoding_type: Option<String>,
    pub(super) is_truncated: bool,
    pub(super) next_continuation_token: Option<String>,
    pub(super) contents: Vec<Listed>,
    pub(super) common_prefixes: Vec<Prefix>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Listed {
    pub(super) key: String,
    pub(super) size: u64,
    #[serde(rename = "ETag")]
    pub(super) etag: Option<String>,
    pub(super) last_modified: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Prefix {
    pub(super) prefix: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Begun {
    pub(super) upload_id: Option<String>,
}

/// The answer of a completion, a copy and a copied part.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Made {
    #[serde(rename = "ETag")]
    pub(super) etag: Option<String>,
    pub(super) last_modified: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Parts {
    pub(super) is_truncated: bool,
    #[serde(rename = "Part")]
    pub(super) parts: Vec<Part>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Part {
    #[serde(rename = "PartNumber")]
    pub(super) number: u16,
    pub(super) size: u64,
    #[serde(rename = "ETag")]
    pub(super) etag: Option<String>,
    pub(super) last_modified: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Uploads {
    pub(super) encoding_type: Option<String>,
    pub(super) is_truncated: bool,
    #[serde(rename = "Upload")]
    pub(super) list: Vec<Upload>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Upload {
    pub(super) key: String,
    #[serde(rename = "UploadId")]
    pub(super) id: String,
    pub(super) initiated: Option<String>,
}

/// A document as `T`, whatever its root is called.
pub(super) fn parse<T: DeserializeOwned>(document: &[u8]) -> Option<T> {
    quick_xml::de::from_reader(document).ok()
}

/// A document as `T` if its root is `root`.
pub(super) fn parse_root<T: DeserializeOwned>(document: &[u8], root: &str) -> Option<T> {
    let text = std::str::from_utf8(document).ok()?.trim_start();
    let text = match text.strip_prefix("<?xml") {
        Some(rest) => rest.split_once("?>")?.1.trim_start(),
        None => text,
    };
    let name = text.strip_prefix('<')?;
    let end = name.find(|c: char| c == '>' || c == '/' || c.is_whitespace())?;
    (name[..end] == *root).then(|| parse(document))?
}

/// A name out of a listing: decoded where `encoded`, `None` where it is then not UTF-8. Spaces are
/// written `+` by AWS, and a plus always `%2B`.
pub(super) fn name(text: &str, encoded: bool) -> Option<String> {
    if encoded { url::decode(&text.replace('+', " ")) } else { Some(text.to_owned()) }
}

/// A completion's document.
pub(super) fn completion(parts: &[(u16, ::store::ETag)]) -> String {
    use std::fmt::Write;
    let mut text =
        String::from("<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
    for (number, etag) in parts {
        let tag = quick_xml::escape::escape(etag.as_str());
        let written = write!(
            text,
            "<Part><PartNumber>{number}</PartNumber><ETag>&quot;{tag}&quot;</ETag></Part>"
        );
        written.expect("writing to a string cannot fail");
    }
    text += "</CompleteMultipartUpload>";
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing() {
        let text = br#"<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name>
<EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>
<NextContinuationToken>t/=+</NextContinuationToken>
<CommonPrefixes><Prefix>a%2F</Prefix></CommonPrefixes>
<Contents><Key>x%01+y%2B</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified>
<ETag>&quot;e-1&quot;</ETag><Size>12</Size><Owner><ID>o</ID></Owner></Contents>
<CommonPrefixes><Prefix>b%2F</Prefix></CommonPrefixes>
<Contents><Key>z</Key><ETag>"f"</ETag><Size>0</Size></Contents>
</ListBucketResult>"#;
        let listing: Listing = parse(text).unwrap();
        assert!(listing.is_truncated);
        assert_eq!(listing.next_continuation_token.as_deref(), Some("t/=+"));
        let prefixes: Vec<_> = listing.common_prefixes.iter().map(|p| p.prefix.as_str()).collect();
        assert_eq!(prefixes, ["a%2F", "b%2F"]);
        assert_eq!(name(&listing.contents[0].key, true).unwrap(), "x\u{1} y+");
        assert_eq!(listing.contents[0].etag.as_deref(), Some("\"e-1\""));
        assert_eq!(listing.contents[1].size, 0);
    }

    #[test]
    fn names_that_are_not_utf8_are_none() {
        assert_eq!(name("%ff", true), None);
        assert_eq!(name("%ff+", false).as_deref(), Some("%ff+"));
    }

    #[test]
    fn tags_are_escaped() {
        let text = completion(&[(2, ::store::ETag::parse("a<b"))]);
        assert!(text.contains("<ETag>&quot;a&lt;b&quot;</ETag>"), "{text}");
    }
}
