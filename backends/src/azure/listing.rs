//! List Blobs.
//!
//! Invariant: every name of a page comes out, those too that need percent-encoding in XML. The
//! service rolls up at single characters only as far as its emulators agree; longer delimiters
//! are left to [`crate::cloud::listing`].

use ::http::Method;
use async_trait::async_trait;
use store::{Error, ErrorKind, ObjectMeta, Result};

use super::request::Client;
use crate::cloud::What;
use crate::cloud::listing::{RawItem, RawPage, RawPages, RawRequest};
use crate::cloud::opaque;
use crate::cloud::xml::Node;
use crate::http::{Call, document, url};

/// Most blobs that the service returns at once.
const MAX_RESULTS: usize = 5000;

/// A blob without committed content, met while looking for uploads.
pub(super) struct Uncommitted {
    /// Names of blobs that have no content.
    pub(super) names: Vec<String>,
    /// Where the next page begins, if there is one.
    pub(super) next: Option<String>,
}

impl Client {
    async fn page(&self, pairs: &[(&str, &str)], limit: usize) -> Result<Node> {
        let limit = limit.to_string();
        let mut all = vec![("restype", "container"), ("comp", "list")];
        all.extend(pairs.iter().copied().filter(|(_, value)| !value.is_empty()));
        all.push(("maxresults", &limit));
        let call = Call::new(Method::GET, self.container(&all)?);
        let answer = self.send(call, What::LISTING).await.map_err(|error| {
            // An anonymous caller is told of a private container only that nothing is there.
            match error.kind() {
                ErrorKind::NotFound => Error::new(ErrorKind::NoSuchBucket, error.context()),
                _ => error,
            }
        })?;
        Node::parse(&document(answer).await?)
    }

    /// Blobs below `prefix` that have no content, those with nothing but staged blocks among them.
    pub(super) async fn uncommitted(&self, prefix: &str, marker: &str) -> Result<Uncommitted> {
        let pairs = [("include", "uncommittedblobs"), ("prefix", prefix), ("marker", marker)];
        let root = self.page(&pairs, MAX_RESULTS).await?;
        let mut names = Vec::new();
        for blob in root.child("Blobs").into_iter().flat_map(|blobs| blobs.all("Blob")) {
            let size = blob.child("Properties").and_then(|p| p.text_of("Content-Length"));
            if size.is_none_or(|size| size.trim().is_empty() || size.trim() == "0") {
                names.push(name(blob)?);
            }
        }
        Ok(Uncommitted { names, next: next(&root) })
    }
}

fn next(root: &Node) -> Option<String> {
    root.text_of("NextMarker").filter(|marker| !marker.is_empty()).map(str::to_owned)
}

fn name(node: &Node) -> Result<String> {
    let odd = || Error::new(ErrorKind::Corrupted, "a name in the listing cannot be read");
    let name = node.child("Name").ok_or_else(odd)?;
    if name.attribute("Encoded") == Some("true") {
        return url::decode(&name.text).ok_or_else(odd);
    }
    Ok(name.text.clone())
}

fn is_directory(blob: &Node) -> bool {
    blob.child("Properties").and_then(|p| p.text_of("ResourceType")) == Some("directory")
}

fn item(blob: &Node) -> Result<RawItem> {
    let name = name(blob)?;
    let properties = blob.child("Properties");
    let text = |what: &str| properties.and_then(|p| p.text_of(what)).map(str::trim);
    let size = text("Content-Length").and_then(|size| size.parse().ok());
    let modified = text("Last-Modified").and_then(|at| httpdate::parse_http_date(at).ok());
    let etag = text("Etag").or_else(|| text("ETag")).filter(|etag| !etag.is_empty());
    let (Some(size), Some(last_modified), Some(etag)) = (size, modified, etag) else {
        let context = format!("listing says no size, time or tag of `{name}`");
        return Err(Error::new(ErrorKind::Corrupted, context));
    };
    let meta = ObjectMeta { size, etag: opaque(etag), last_modified, attributes: None };
    Ok(RawItem { name, meta: Some(meta) })
}

#[async_trait]
impl RawPages for Client {
    async fn raw_page(&self, request: RawRequest<'_>) -> Result<RawPage> {
        let pairs = [
            ("prefix", request.prefix),
            ("delimiter", request.delimiter.unwrap_or_default()),
            ("marker", request.marker.unwrap_or_default()),
        ];
        let root = self.page(&pairs, request.limit).await?;
        let mut items = Vec::new();
        for node in root.child("Blobs").map(Node::children).unwrap_or_default() {
            match node.name.as_str() {
                // Accounts with a hierarchical namespace list their directories among the blobs.
                "Blob" if is_directory(node) => {}
                "Blob" => items.push(item(node)?),
                "BlobPrefix" => items.push(RawItem { name: name(node)?, meta: None }),
                _ => {}
            }
        }
        Ok(RawPage { items, next: next(&root) })
    }

    fn rolls_up(&self, delimiter: &str) -> bool {
        delimiter.len() == 1
    }
}
