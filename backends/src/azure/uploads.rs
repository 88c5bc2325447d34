//! Multi-part uploads as staged blocks.
//!
//! Invariant: an upload's id says what it will write, so it needs no state here; its blocks at the
//! origin say that it was begun, whether it was aborted, and what its parts are. What this process
//! remembers besides only answers sooner, and is bounded.
//!
//! The service keeps one set of staged blocks a blob: whoever commits or overwrites the blob first
//! discards the blocks of every other upload of that key, which then is
//! [`ErrorKind::NoSuchUpload`]. Blocks cannot be deleted; those of aborted uploads vanish a week
//! after the last of them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use ::http::header::CONTENT_TYPE;
use ::http::{HeaderValue, Method};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use store::{
    Attributes, Body, Condition, ETag, Error, ErrorKind, ObjectKey, PartEntry, PartList,
    PutOptions, Result, UploadEntry, UploadId, UploadList, UploadListRequest, Written,
};

use super::blocks::{BlockName, Cut, Role};
use super::upload_ids::{decode_id, encode_id};
use super::{AzureStore, metadata, set_condition, written};
use crate::cloud::What;
use crate::cloud::xml::Node;
use crate::http::{Call, CallBody, document};

/// Largest block that the service takes: 4,000 MiB.
const MAX_BLOCK_BYTES: u64 = 4000 * 1024 * 1024;

/// Blocks of a body that is put in several: large enough that their number never matters for
/// bodies under 3 TiB, small enough that a connection's loss costs seconds.
const PUT_BLOCK_BYTES: u64 = 64 * 1024 * 1024;

/// Blobs without content that are asked for their blocks at once while uploads are listed.
const LOOK_UPS: usize = 16;

/// Most blocks of one blob.
const MAX_BLOCKS: u64 = 50_000;

/// Largest part number of the S3 protocol.
const MAX_PART: u16 = 10_000;

/// An upload as its staged blocks show it.
#[derive(Debug, Default)]
struct Staged {
    start: Option<BlockName>,
    aborted: bool,
    /// For each part the block that was staged last, and its size in bytes.
    parts: BTreeMap<u16, (BlockName, u64)>,
    /// Its blocks of which the blob is made now.
    committed: Vec<BlockName>,
}

impl Staged {
    fn is_open(&self) -> bool {
        self.start.is_some() && !self.aborted
    }

    /// True when the blob is what completing with these parts made of it.
    fn is_made_of(&self, parts: &[(u16, ETag)]) -> bool {
        let named = |name: &BlockName| {
            let part = parts.iter().find(|(number, _)| u32::from(*number) == name.number);
            part.is_some_and(|(_, etag)| name.etag() == *etag)
        };
        !self.committed.is_empty() && self.committed.iter().all(named)
    }
}

fn no_such_upload(key: &ObjectKey) -> Error {
    Error::new(
        ErrorKind::NoSuchUpload,
        format!("no such upload of `{key}`: never begun, ended, or discarded by another write"),
    )
}

impl AzureStore {
    /// Cuts a large body into blocks and commits them.
    pub(super) async fn put_in_blocks(
        &self,
        key: &ObjectKey,
        body: Body,
        options: PutOptions,
    ) -> Result<Written> {
        let size = body.size;
        let block_bytes = PUT_BLOCK_BYTES.min(self.one_put_bytes).max(size.div_ceil(MAX_BLOCKS));
        if block_bytes > MAX_BLOCK_BYTES {
            let context = format!("body has {size} bytes, more than Azure takes");
            return Err(Error::new(ErrorKind::TooLarge, context));
        }
        let upload = rand::random();
        let (mut cut, mut staged, mut sent) = (Cut::new(body), Vec::new(), 0);
        while let Some(block) = cut.next(block_bytes).await {
            sent += block.size;
            let name = BlockName::new(upload, Role::Part, staged.len() as u32);
            self.stage(key, &name, CallBody::Stream(block)).await?;
            staged.push(name);
        }
        if sent != size {
            let context = format!("{sent} of {size} bytes were sent");
            return Err(Error::new(ErrorKind::Internal, context));
        }
        let done = self.commit_blocks(key, &staged, &options.attributes, options.condition).await;
        done.map_err(|error| match error.kind() {
            ErrorKind::InvalidPart => Error::new(
                ErrorKind::Conflict,
                format!("another write of `{key}` discarded the blocks of this one"),
            ),
            _ => error,
        })
    }

    /// Stages one block.
    async fn stage(&self, key: &ObjectKey, name: &BlockName, body: CallBody) -> Result<()> {
        let name = name.encode();
        let url = self.client.blob(key, &[("comp", "block"), ("blockid", &name)])?;
        let call = Call { body, ..Call::new(Method::PUT, url) };
        self.client.send(call, What::of("block", key)).await.map(drop)
    }

    /// Stages a block of one byte that says something about an upload.
    async fn stage_mark(&self, key: &ObjectKey, name: &BlockName) -> Result<()> {
        self.stage(key, name, CallBody::Bytes(Bytes::from_static(b"-"))).await
    }

    /// Makes the blob of staged blocks.
    async fn commit_blocks(
        &self,
        key: &ObjectKey,
        names: &[BlockName],
        attributes: &Attributes,
        condition: Condition,
    ) -> Result<Written> {
        let mut list = String::from("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>");
        for name in names {
            list.push_str("<Uncommitted>");
            list.push_str(&name.encode());
            list.push_str("</Uncommitted>");
        }
        list.push_str("</BlockList>");
        let mut call = Call::new(Method::PUT, self.client.blob(key, &[("comp", "blocklist")])?);
        call.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
        metadata::set_attributes(&mut call.headers, attributes)?;
        set_condition(&mut call.headers, &condition)?;
        call.body = CallBody::Bytes(list.into());
        written(&self.client.send(call, What::of("commit", key)).await?)
    }

    /// The uploads of a key, by number.
    async fn staged(&self, key: &ObjectKey) -> Result<HashMap<u64, Staged>> {
        let pairs = [("comp", "blocklist"), ("blocklisttype", "all")];
        let call = Call::new(Method::GET, self.client.blob(key, &pairs)?);
        let answer = match self.client.send(call, What::of("blocks", key)).await {
            Ok(answer) => answer,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(HashMap::new()),
            Err(error) => return Err(error),
        };
        let root = Node::parse(&document(answer).await?)?;
        let mut uploads: HashMap<u64, Staged> = HashMap::new();
        let committed =
            root.child("CommittedBlocks").into_iter().flat_map(|list| list.all("Block"));
        for name in committed.filter_map(|block| block.text_of("Name")) {
            let Some(name) = BlockName::decode(name.trim()) else { continue };
            uploads.entry(name.upload).or_default().committed.push(name);
        }
        let blocks = root.child("UncommittedBlocks").into_iter().flat_map(|list| list.all("Block"));
        for block in blocks {
            let name = block.text_of("Name").and_then(|name| BlockName::decode(name.trim()));
            let size = block.text_of("Size").and_then(|size| size.trim().parse().ok());
            let (Some(name), Some(size)) = (name, size) else { continue };
            let upload = uploads.entry(name.upload).or_default();
            match name.role {
                Role::Start => upload.start = Some(name),
                Role::Abort => upload.aborted = true,
                Role::Part | Role::EmptyPart => {
                    let size = if name.role == Role::EmptyPart { 0 } else { size };
                    let Ok(number) = u16::try_from(name.number) else { continue };
                    let newer = |(known, _): &(BlockName, u64)| known.stamp < name.stamp;
                    if upload.parts.get(&number).is_none_or(newer) {
                        upload.parts.insert(number, (name, size));
                    }
                }
            }
        }
        Ok(uploads)
    }

    /// An upload that is in progress.
    async fn in_progress(&self, key: &ObjectKey, upload: u64) -> Result<Staged> {
        if self.uploads.has_ended(upload) {
            return Err(no_such_upload(key));
        }
        let staged = self.staged(key).await?.remove(&upload);
        staged.filter(Staged::is_open).ok_or_else(|| no_such_upload(key))
    }

    pub(super) async fn begin(&self, key: &ObjectKey, attributes: &Attributes) -> Result<UploadId> {
        // What cannot be written must be said now, not when all parts are there.
        metadata::set_attributes(&mut ::http::HeaderMap::new(), attributes)?;
        let upload = rand::random();
        let start = BlockName::new(upload, Role::Start, 0);
        self.stage_mark(key, &start).await?;
        let id = encode_id(upload, Some(attributes));
        self.uploads.begin(upload, key.clone(), id.clone(), start);
        Ok(id)
    }

    pub(super) async fn stage_part(
        &self,
        key: &ObjectKey,
        id: &UploadId,
        number: u16,
        body: Body,
    ) -> Result<PartEntry> {
        if !(1..=MAX_PART).contains(&number) {
            let context = format!("part number {number} is not within 1 to {MAX_PART}");
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        let (upload, _) = decode_id(id).ok_or_else(|| no_such_upload(key))?;
        if self.uploads.has_ended(upload) {
            return Err(no_such_upload(key));
        }
        let size = body.size;
        if size > MAX_BLOCK_BYTES {
            let context = format!("part has {size} bytes, Azure takes {MAX_BLOCK_BYTES}");
            return Err(Error::new(ErrorKind::TooLarge, context));
        }
        let name = if size == 0 {
            body.collect(0).await?;
            let name = BlockName::new(upload, Role::EmptyPart, number.into());
            self.stage_mark(key, &name).await?;
            name
        } else {
            let name = BlockName::new(upload, Role::Part, number.into());
            self.stage(key, &name, CallBody::Stream(body)).await?;
            name
        };
        Ok(PartEntry { number, etag: name.etag(), size, last_modified: Some(name.time()) })
    }

    pub(super) async fn commit(
        &self,
        key: &ObjectKey,
        id: &UploadId,
        parts: &[(u16, ETag)],
        condition: Condition,
    ) -> Result<Written> {
        if parts.is_empty() || !parts.is_sorted_by(|(one, _), (other, _)| one < other) {
            let context = "parts are not given in ascending order of number";
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        let (upload, attributes) = decode_id(id).ok_or_else(|| no_such_upload(key))?;
        let Some(attributes) = attributes else {
            let context = "an upload that was found in a listing can be aborted, not completed: \
                           Azure does not keep the attributes that it was begun with";
            return Err(Error::new(ErrorKind::Unsupported, context));
        };
        if self.uploads.has_ended(upload) {
            return Err(no_such_upload(key));
        }
        let staged = self.staged(key).await?.remove(&upload).unwrap_or_default();
        if !staged.is_open() {
            // The answer to a completion may have been lost.
            if staged.is_made_of(parts) {
                let meta = store::Store::head(self, key).await?;
                self.uploads.end(upload);
                return Ok(Written { etag: meta.etag, last_modified: Some(meta.last_modified) });
            }
            return Err(no_such_upload(key));
        }
        let mut names = Vec::with_capacity(parts.len());
        for (number, etag) in parts {
            let found = staged.parts.get(number).filter(|(name, _)| name.etag() == *etag);
            let Some((name, _)) = found else {
                let context = format!("part {number} with tag {etag} of `{key}` was not uploaded");
                return Err(Error::new(ErrorKind::InvalidPart, context));
            };
            if name.role == Role::Part {
                names.push(*name);
            }
        }
        let done = self.commit_blocks(key, &names, &attributes, condition).await?;
        self.uploads.end(upload);
        Ok(done)
    }

    pub(super) async fn abort(&self, key: &ObjectKey, id: &UploadId) -> Result<()> {
        let (upload, _) = decode_id(id).ok_or_else(|| no_such_upload(key))?;
        self.in_progress(key, upload).await?;
        self.stage_mark(key, &BlockName::new(upload, Role::Abort, 0)).await?;
        self.uploads.end(upload);
        Ok(())
    }

    pub(super) async fn staged_parts(
        &self,
        key: &ObjectKey,
        id: &UploadId,
        after: Option<u16>,
        max_parts: usize,
    ) -> Result<PartList> {
        let (upload, _) = decode_id(id).ok_or_else(|| no_such_upload(key))?;
        let staged = self.in_progress(key, upload).await?;
        let mut rest = staged.parts.iter().filter(|(number, _)| after.is_none_or(|a| **number > a));
        let parts: Vec<_> = rest
            .by_ref()
            .take(max_parts)
            .map(|(number, (name, size))| PartEntry {
                number: *number,
                etag: name.etag(),
                size: *size,
                last_modified: Some(name.time()),
            })
            .collect();
        let next = rest.next().and_then(|_| parts.last().map(|part| part.number));
        Ok(PartList { parts, next })
    }

    /// Uploads that this process began, and those of other processes for keys that have no object
    /// yet: the service tells of no others.
    pub(super) async fn open_uploads(&self, request: &UploadListRequest) -> Result<UploadList> {
        let mut all = self.uploads.below(&request.prefix);
        let known: HashSet<Arc<str>> =
            all.iter().map(|entry| Arc::clone(&entry.upload.0)).collect();
        let mut marker = String::new();
        loop {
            let page = self.client.uncommitted(&request.prefix, &marker).await?;
            let keys = page.names.into_iter().filter_map(|name| ObjectKey::new(name).ok());
            let mut found = futures::stream::iter(keys)
                .map(|key| async move { self.staged(&key).await.map(|uploads| (key, uploads)) })
                .buffered(LOOK_UPS);
            while let Some((key, uploads)) = found.try_next().await? {
                for (upload, staged) in uploads {
                    let Some(start) = staged.start.filter(|_| staged.is_open()) else { continue };
                    let id = self.uploads.id_of(upload).unwrap_or_else(|| encode_id(upload, None));
                    if known.contains(&id.0) || self.uploads.has_ended(upload) {
                        continue;
                    }
                    let initiated = Some(start.time());
                    all.push(UploadEntry { key: key.clone(), upload: id, initiated });
                }
            }
            match page.next {
                Some(next) => marker = next,
                None => break,
            }
        }
        all.retain(|entry| match &request.after {
            None => true,
            Some((key, None)) => entry.key.as_str() > key.as_str(),
            Some((key, Some(id))) => (entry.key.as_str(), &*entry.upload.0) > (key, id),
        });
        all.sort_by(|one, other| (&one.key, &one.upload).cmp(&(&other.key, &other.upload)));
        let truncated = all.len() > request.max_uploads;
        all.truncate(request.max_uploads);
        Ok(UploadList { uploads: all, truncated })
    }
}
