//! The `Store` trait: one bucket, whatever holds its bytes, and the words of its calls.
//!
//! Invariant: every implementation passes `testing::contract`. Nothing here has a default method;
//! conveniences live in [`crate::StoreExt`].

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};

use crate::{Attributes, ByteRange, ETag, Error, ObjectKey, ObjectMeta, Result};

/// The bytes of an object in order, in pieces of any size. After an error there is nothing more.
pub type ByteStream = BoxStream<'static, Result<Bytes>>;

/// Who reads: one open file, one client connection. Readers of one object that share an id are
/// one access pattern to the prefetcher; the id means nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ReaderId(pub u64);

impl ReaderId {
    /// A reader without a pattern: nothing is prefetched for it.
    pub const NONE: Self = Self(0);
}

/// What to read.
#[derive(Debug, Clone, Default)]
pub struct GetOptions {
    /// Which bytes.
    pub range: ByteRange,
    /// Only this version; any other is [`crate::ErrorKind::PreconditionFailed`].
    pub if_match: Option<ETag>,
    /// Who reads.
    pub reader: ReaderId,
}

/// What was read.
pub struct GetResult {
    /// The version that the bytes belong to.
    pub meta: ObjectMeta,
    /// The bytes that follow, as offsets in the object.
    pub range: Range<u64>,
    /// Exactly `range.end - range.start` bytes, or an error.
    pub body: ByteStream,
}

impl fmt::Debug for GetResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GetResult")
            .field("meta", &self.meta)
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ListRequest {
    /// Only keys that begin with this; may be empty, need not end at a delimiter.
    pub prefix: String,
    /// Keys that contain this (never empty) after the prefix are rolled up into a common prefix
    /// that ends with it.
    pub delimiter: Option<String>,
    /// Only keys, and common prefixes of keys, after this key in byte order; exclusive. Ignored
    /// when `token` is given.
    pub start_after: Option<String>,
    /// Continues a listing: [`ListPage::next`] of the page before, with the same other fields.
    pub token: Option<String>,
    /// Most entries and common prefixes together, 1 to 1,000; an origin may return fewer.
    pub max_keys: usize,
}

impl Default for ListRequest {
    fn default() -> Self {
        Self {
            prefix: String::new(),
            delimiter: None,
            start_after: None,
            token: None,
            max_keys: 1000,
        }
    }
}

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListEntry {
    /// Its key.
    pub key: ObjectKey,
    /// Its metadata, as a rule without attributes.
    pub meta: ObjectMeta,
}

/// One page of a listing. Entries are in UTF-8 byte order, common prefixes likewise, and every
/// key of a later page is after every key of this one.
#[derive(Debug, Clone, Default)]
pub struct ListPage {
    /// The objects.
    pub entries: Vec<ListEntry>,
    /// The common prefixes, each ending with the delimiter, each once in the whole listing.
    pub common_prefixes: Vec<String>,
    /// Present when there is more: an opaque token for [`ListRequest::token`]. A page may be
    /// empty and still have one.
    pub next: Option<String>,
    /// Keys of the origin that cannot be expressed as an [`ObjectKey`] and were left out.
    pub skipped: u64,
}

/// A body to write: its length is promised, its bytes come as a stream.
pub struct Body {
    /// Bytes that `stream` will yield.
    pub size: u64,
    /// The bytes. An error in it (a checksum that does not match, a client that left) makes the
    /// write fail with that same error, and changes nothing at the origin.
    pub stream: ByteStream,
}

impl Body {
    /// A body of `size` bytes from a stream.
    pub fn new(size: u64, stream: ByteStream) -> Self {
        Self { size, stream }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self { size: bytes.len() as u64, stream: stream::iter([Ok(bytes)]).boxed() }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} bytes)", self.size)
    }
}

/// When a write may happen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Condition {
    /// Always.
    #[default]
    None,
    /// Only over this version.
    IfMatch(ETag),
    /// Only where no object is.
    IfAbsent,
}

/// What to attach to a new object, and when to write it.
#[derive(Debug, Clone, Default)]
pub struct PutOptions {
    /// Headers and user metadata.
    pub attributes: Attributes,
    /// The condition; a failed one is [`crate::ErrorKind::PreconditionFailed`].
    pub condition: Condition,
}

/// How to copy.
#[derive(Debug, Clone, Default)]
pub struct CopyOptions {
    /// `Some` replaces all attributes, `None` keeps those of the source.
    pub attributes: Option<Attributes>,
    /// Copy only this version of the source.
    pub source_if_match: Option<ETag>,
    /// The condition on the destination.
    pub condition: Condition,
}

/// A version that was just written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Its tag, equal to what `head` now says.
    pub etag: ETag,
    /// When, where the origin says so.
    pub last_modified: Option<SystemTime>,
}

/// The origin's name for a multi-part upload. Opaque; still valid after this process restarts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UploadId(pub Arc<str>);

/// One uploaded part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartEntry {
    /// Its number, 1 to 10,000.
    pub number: u16,
    /// Its tag.
    pub etag: ETag,
    /// Its size in bytes.
    pub size: u64,
    /// When it was uploaded, where the origin says so.
    pub last_modified: Option<SystemTime>,
}

/// One page of an upload's parts, by number.
#[derive(Debug, Clone, Default)]
pub struct PartList {
    /// The parts.
    pub parts: Vec<PartEntry>,
    /// The last number of this page, when there is more.
    pub next: Option<u16>,
}

/// One page of uploads in progress.
#[derive(Debug, Clone, Default)]
pub struct UploadListRequest {
    /// Only keys that begin with this.
    pub prefix: String,
    /// Only uploads after this key, or of this key with an id after the given one.
    pub after: Option<(String, Option<String>)>,
    /// Most uploads, 1 to 1,000.
    pub max_uploads: usize,
}

/// An upload in progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadEntry {
    /// The key that it will write.
    pub key: ObjectKey,
    /// Its id.
    pub upload: UploadId,
    /// When it was begun, where the origin says so.
    pub initiated: Option<SystemTime>,
}

/// One page of uploads in progress, by key, then by id.
#[derive(Debug, Clone, Default)]
pub struct UploadList {
    /// The uploads.
    pub uploads: Vec<UploadEntry>,
    /// True when there is more after the last of them.
    pub truncated: bool,
}

/// One bucket.
///
/// Guarantees of every implementation, checked by `testing::contract`:
/// - An object is visible whole or not at all; a failed or cancelled write changes nothing.
/// - `head`, `get` and `list` give the same `ETag`, size and time for the same version.
/// - `get` delivers bytes of one version, exactly as many as its range says, or ends in an error.
/// - Dropping a future or a body cancels the call, leaks nothing and disturbs no other call.
///
/// Errors carry the kind that says what to do; a missing bucket is told from a missing key.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Metadata with attributes.
    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta>;

    /// Metadata, with attributes only where they cost no request: what a file system asks. A store
    /// that knows none without asking answers as [`Store::head`] does.
    async fn stat(&self, key: &ObjectKey) -> Result<ObjectMeta>;

    /// Bytes. `meta` carries attributes where the origin's answer did.
    async fn get(&self, key: &ObjectKey, options: GetOptions) -> Result<GetResult>;

    /// One page of keys.
    async fn list(&self, request: &ListRequest) -> Result<ListPage>;

    /// Writes an object from a stream, holding at most a bounded window of it in memory.
    async fn put(&self, key: &ObjectKey, body: Body, options: PutOptions) -> Result<Written>;

    /// Begins a multi-part upload. The condition of `options` is not looked at; give it to
    /// [`Store::complete_upload`].
    async fn start_upload(&self, key: &ObjectKey, options: PutOptions) -> Result<UploadId>;

    /// Uploads or replaces one part; numbers run from 1 to 10,000 and may come in any order.
    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u16,
        body: Body,
    ) -> Result<PartEntry>;

    /// Makes the object of the named parts, given in ascending order of number: the object is then
    /// their concatenation. Parts that are not named are discarded.
    async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[(u16, ETag)],
        condition: Condition,
    ) -> Result<Written>;

    /// Discards an upload. One that is not there is [`crate::ErrorKind::NoSuchUpload`] where the
    /// origin can tell.
    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()>;

    /// The uploaded parts with numbers after `after`, at most `max_parts` of them.
    async fn list_parts(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        after: Option<u16>,
        max_parts: usize,
    ) -> Result<PartList>;

    /// Uploads in progress.
    async fn list_uploads(&self, request: &UploadListRequest) -> Result<UploadList>;

    /// Copies within this bucket, at the origin where it can.
    async fn copy(&self, from: &ObjectKey, to: &ObjectKey, options: CopyOptions)
    -> Result<Written>;

    /// Deletes an object; one that is not there is no error, unless `if_match` names a version.
    async fn delete(&self, key: &ObjectKey, if_match: Option<&ETag>) -> Result<()>;
}

/// Turns a body stream into one that fails unless it yields exactly `size` bytes.
pub(crate) fn exactly(size: u64, stream: ByteStream, what: &'static str) -> ByteStream {
    let checked =
        stream::unfold((stream, 0u64, false), move |(mut stream, seen, done)| async move {
            if done {
                return None;
            }
            match stream.next().await {
                Some(Ok(piece)) => {
                    let seen = seen + piece.len() as u64;
                    if seen > size {
                        let error = wrong_length(what, seen, size);
                        return Some((Err(error), (stream, seen, true)));
                    }
                    Some((Ok(piece), (stream, seen, false)))
                }
                Some(Err(error)) => Some((Err(error), (stream, seen, true))),
                None if seen == size => None,
                None => Some((Err(wrong_length(what, seen, size)), (stream, seen, true))),
            }
        });
    checked.boxed()
}

fn wrong_length(what: &'static str, seen: u64, size: u64) -> Error {
    let more = if seen > size { "at least " } else { "" };
    Error::new(
        crate::ErrorKind::IncompleteBody,
        format!("{what} has {more}{seen} bytes, expected {size}"),
    )
}
