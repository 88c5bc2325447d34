//! The file system: objects of a [`Namespace`] as directories and files. It knows no FUSE.
//!
//! Invariant: every answer about a file is about one version of one object; what is open stays in
//! the version that it was opened in, or fails. Handles hold nothing that the node does not know,
//! so that they outlive this value. It refuses to block: all that may wait is async.

mod gate;
mod known;
mod listing;
mod lookup;
mod survey;

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use rustix::io::Errno;
use store::{
    Bucket, ByteRange, Error, ErrorKind, GetOptions, Namespace, NoCopy, ObjectKey, ReaderId,
};

use crate::Metrics;
use crate::backing::{Backing, Condemned, Mode};
use crate::errno::{Failure, Result};
use crate::journal::{Journal, Past, Request, Resent, Unique};
use crate::nodes::{Directory, EntryKind, File, Node, NodeId, NodeTable, Version};
use crate::registrar::Registrar;
pub(crate) use gate::{Gate, Mutation};
use known::KnownNames;
pub(crate) use listing::DirectoryEntry;
use listing::OpenDirectories;

/// Handles of this crate as reader ids have this bit, so that they are never those of the other
/// front end, which counts from 1.
const READER_BIT: u64 = 1 << 63;

/// The extended attributes of a file, documented in docs/semantics.md.
const ETAG: &str = "user.warpdrive.etag";
const RESIDENCY: &str = "user.warpdrive.residency";
const CONTENT_TYPE: &str = "user.warpdrive.content_type";
const OBJECT: &str = "user.warpdrive.object";

/// How names are answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// How long a directory that was seen is believed, and a file that was seen is not suspected
    /// of being a directory.
    pub(crate) metadata_ttl: Duration,
    /// How long to wait for the second of two answers when the first one would do.
    pub(crate) patience: Duration,
    /// Entries asked for in one page of a listing.
    pub(crate) page_entries: usize,
}

/// What `stat` says, less owner and mode, which are the same for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// The node.
    pub(crate) id: NodeId,
    /// True for a directory.
    pub(crate) directory: bool,
    /// Size in bytes; 0 for a directory.
    pub(crate) size: u64,
    /// When the version was written; for a directory, when the mount began.
    pub(crate) modified: SystemTime,
}

/// The file system.
#[derive(Debug)]
pub(crate) struct FileSystem {
    nodes: NodeTable,
    known: KnownNames,
    directories: OpenDirectories,
    backing: Backing,
    gate: Arc<Gate>,
    journal: Option<Arc<Journal>>,
    resent: Resent,
    options: Options,
    began: SystemTime,
    next_handle: AtomicU64,
}

impl FileSystem {
    /// A file system over a namespace, for a kernel that may know things from a worker before.
    pub(crate) fn new(
        namespace: Arc<Namespace>,
        registrar: Arc<dyn Registrar>,
        journal: Option<(Journal, Past)>,
        metrics: Metrics,
        options: Options,
    ) -> Self {
        let (journal, Past { image, began, complete }) = match journal {
            Some((journal, past)) => (Some(Arc::new(journal)), past),
            None => (None, Past { complete: !registrar.has_begun(), ..Past::default() }),
        };
        let gate = Arc::new(Gate::new(metrics.clone()));
        let backing = Backing::new(registrar, journal.clone(), &image, complete, metrics);
        Self {
            nodes: NodeTable::new(namespace, journal.clone(), &image),
            known: KnownNames::new(options.metadata_ttl),
            directories: OpenDirectories::default(),
            backing,
            gate,
            journal,
            resent: Resent::new(image.done),
            options,
            began,
            next_handle: AtomicU64::new(first_handle()),
        }
    }

    /// What a mutation has to pass.
    pub(crate) fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Changes something: refused by the gate while it is closed, and behind it because the file
    /// system is read-only. What is to be changed one day takes the [`gate::Passed`] of this.
    pub(crate) fn mutate(&self, mutation: Mutation) -> Result<()> {
        let _passed = self.gate.pass(mutation)?;
        Err(Errno::ROFS.into())
    }

    /// Nodes that the kernel knows.
    pub(crate) fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// A name in a directory; counts one lookup of the node.
    pub(crate) async fn lookup(
        &self,
        parent: NodeId,
        name: &OsStr,
        unique: Unique,
    ) -> Result<Attributes> {
        let found = self.find(parent, name).await;
        let found = found.map(|(parent, name, kind)| self.remember(&parent, &name, &kind, unique));
        self.remembered(unique);
        found
    }

    async fn find(
        &self,
        parent: NodeId,
        name: &OsStr,
    ) -> Result<(Arc<Directory>, Arc<str>, EntryKind)> {
        let parent = self.directory(parent)?;
        // A key is UTF-8: other names cannot exist.
        let name = name.to_str().ok_or(Errno::NOENT)?;
        let kind = self.resolve(&parent, name).await?;
        Ok((parent, name.into(), kind))
    }

    /// Counts one lookup of an entry that was listed. Before the kernel is told of it comes
    /// [`Self::remembered`].
    pub(crate) fn remember(
        &self,
        parent: &Arc<Directory>,
        name: &Arc<str>,
        kind: &EntryKind,
        unique: Unique,
    ) -> Attributes {
        let is_done = |id| self.resent.take(Request::Lookup, id, unique);
        let id = self.nodes.remember(parent, name, kind, unique.number(), is_done);
        match kind {
            EntryKind::Directory => self.directory_attributes(id),
            EntryKind::File(version) => file_attributes(id, version),
        }
    }

    /// All lookups of a request are counted: makes sure that they survive this process.
    pub(crate) fn remembered(&self, unique: Unique) {
        let rest = self.resent.rest(unique);
        if !rest.is_empty() {
            self.forget(rest.into_iter().map(|id| (id, 1)));
        }
        self.flush();
    }

    /// Takes back lookups.
    pub(crate) fn forget(&self, forgets: impl IntoIterator<Item = (NodeId, u64)>) {
        self.nodes.forget(forgets, |id| {
            self.known.forget(id);
            self.backing.forget(id);
        });
    }

    fn flush(&self) {
        if let Some(journal) = &self.journal {
            journal.flush();
        }
    }

    /// The attributes of a node. Those of a file never change: another version is another node.
    pub(crate) fn attributes(&self, id: NodeId) -> Result<Attributes> {
        Ok(match self.node(id)? {
            Node::Directory(directory) => self.directory_attributes(directory.id),
            Node::File(file) => file_attributes(id, &file.version),
        })
    }

    /// Opens a file for reading: its handle, and how the kernel gets its bytes. ESTALE when the name
    /// stands for another version or another node by now; a new lookup then finds that.
    pub(crate) async fn open(&self, id: NodeId, unique: Unique) -> Result<(u64, Mode)> {
        let counted = self.resent.take(Request::Open, id, unique);
        let opened = self.open_in_mode(id, unique, counted).await;
        if counted && opened.is_err() {
            // What the worker before has counted, the kernel will not release.
            self.backing.release(id, 0);
        }
        Ok((self.handle(), opened?))
    }

    async fn open_in_mode(&self, id: NodeId, unique: Unique, counted: bool) -> Result<Mode> {
        let (file, bucket, key) = self.file(id)?;
        match bucket.store.stat(&key).await {
            Ok(meta) if meta.etag == file.version.etag => {}
            Ok(meta) => {
                let now = EntryKind::File(Version::from(&meta));
                self.known.learn(file.parent.id, &file.name, now);
                return Err(Errno::STALE.into());
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.known.unlearn(file.parent.id, &file.name);
                return Err(Errno::STALE.into());
            }
            Err(error) => return Err(error.into()),
        }
        let copy = match &bucket.residency {
            _ if self.nodes.is_condemned(id) => return Err(Errno::STALE.into()),
            None => Err(NoCopy::Off),
            Some(residency) => {
                let Version { etag, size, .. } = &file.version;
                residency.local_copy(&key, etag, *size).await
            }
        };
        // Nothing is waited for from here on: an open that is counted is answered.
        let opened = if counted {
            self.backing.repeat(id)
        } else {
            self.backing.open(id, copy, unique.number())
        };
        opened.map_err(|Condemned| {
            self.nodes.condemn(id);
            self.flush();
            Errno::STALE.into()
        })
    }

    /// Releases what was opened.
    pub(crate) fn release(&self, id: NodeId, unique: Unique) {
        if !self.resent.take(Request::Release, id, unique) {
            self.backing.release(id, unique.number());
        }
    }

    /// The modes of open files.
    pub(crate) fn backing(&self) -> &Backing {
        &self.backing
    }

    /// Bytes of the version that a node stands for: as many as asked for, fewer only at its end.
    /// ESTALE once the object has another version or is gone.
    pub(crate) async fn read(
        &self,
        id: NodeId,
        handle: u64,
        offset: u64,
        size: u32,
    ) -> Result<Bytes> {
        let (file, bucket, key) = self.file(id)?;
        let end = offset.saturating_add(u64::from(size)).min(file.version.size);
        if offset >= end {
            return Ok(Bytes::new());
        }
        let options = GetOptions {
            range: ByteRange::Bounded(offset, end),
            if_match: Some(file.version.etag.clone()),
            reader: ReaderId(handle | READER_BIT),
        };
        let got = bucket.store.get(&key, options).await.map_err(|error| match error.kind() {
            ErrorKind::NotFound => Failure { errno: Errno::STALE, cause: Some(error) },
            _ => error.into(),
        })?;
        if got.meta.etag != file.version.etag {
            return Err(Errno::STALE.into());
        }
        if got.range != (offset..end) {
            let wrong = format!("`{key}`: got bytes {:?}, asked for {:?}", got.range, offset..end);
            return Err(Error::new(ErrorKind::IncompleteBody, wrong).into());
        }
        Ok(collect((end - offset) as usize, got.body, &key).await?)
    }

    /// Where the next data (`hole` false) or hole is at or after an offset; ENXIO past the end.
    pub(crate) fn seek(&self, id: NodeId, offset: u64, hole: bool) -> Result<u64> {
        let (file, ..) = self.file(id)?;
        if offset >= file.version.size {
            return Err(Errno::NXIO.into());
        }
        Ok(if hole { file.version.size } else { offset })
    }

    /// Opens a directory.
    pub(crate) fn open_directory(&self, id: NodeId) -> Result<u64> {
        let directory = self.directory(id)?;
        let handle = self.handle();
        self.directories.open(handle, &directory);
        Ok(handle)
    }

    /// Entries of an open directory from an offset on: at least one, unless there are no more.
    /// Offset 0 begins anew with what is there now; others are [`DirectoryEntry::next`].
    pub(crate) async fn entries(
        &self,
        id: NodeId,
        handle: u64,
        offset: u64,
    ) -> Result<(Arc<Directory>, Vec<DirectoryEntry>)> {
        let directory = self.directory(id)?;
        let mut listing = self.directories.take(handle, &directory);
        let entries = listing.entries_at(offset, self).await?;
        Ok((directory, entries))
    }

    /// Closes a directory.
    pub(crate) fn release_directory(&self, handle: u64) {
        self.directories.close(handle);
    }

    /// Names of the extended attributes of a node.
    pub(crate) fn attribute_names(&self, id: NodeId) -> Result<Vec<&'static str>> {
        let Node::File(file) = self.node(id)? else { return Ok(Vec::new()) };
        let residency = file.parent.bucket.as_ref().and_then(|bucket| bucket.residency.as_ref());
        let mut names = vec![ETAG, OBJECT, CONTENT_TYPE];
        names.extend(residency.map(|_| RESIDENCY));
        Ok(names)
    }

    /// True for the names that [`Self::attribute`] may know; others need not be asked for.
    pub(crate) fn is_attribute(name: &OsStr) -> bool {
        name.to_str().is_some_and(|name| name.starts_with("user.warpdrive."))
    }

    /// The value of an extended attribute; ENODATA where there is none.
    pub(crate) async fn attribute(&self, id: NodeId, name: &OsStr) -> Result<String> {
        if matches!(self.node(id)?, Node::Directory(_)) {
            return Err(Errno::NODATA.into());
        }
        let (file, bucket, key) = self.file(id)?;
        match name.to_str() {
            Some(ETAG) => Ok(file.version.etag.to_string()),
            Some(OBJECT) => Ok(format!("{}/{key}", bucket.name)),
            Some(RESIDENCY) => {
                let residency = bucket.residency.as_ref().ok_or(Errno::NODATA)?;
                let Version { etag, size, .. } = &file.version;
                let held = residency.residency(&key, etag, *size).await;
                Ok(format!("{}/{}", held.bytes, held.of))
            }
            Some(CONTENT_TYPE) => {
                let meta = bucket.store.head(&key).await?;
                if meta.etag != file.version.etag {
                    return Err(Errno::STALE.into());
                }
                let attributes = meta.attributes.ok_or(Errno::NODATA)?;
                Ok(attributes.content_type.clone().ok_or(Errno::NODATA)?)
            }
            _ => Err(Errno::NODATA.into()),
        }
    }

    fn handle(&self) -> u64 {
        self.next_handle.fetch_add(1, Ordering::Relaxed)
    }

    fn node(&self, id: NodeId) -> Result<Node> {
        Ok(self.nodes.get(id).ok_or(Errno::STALE)?)
    }

    fn directory(&self, id: NodeId) -> Result<Arc<Directory>> {
        match self.node(id)? {
            Node::Directory(directory) => Ok(directory),
            Node::File(_) => Err(Errno::NOTDIR.into()),
        }
    }

    fn file(&self, id: NodeId) -> Result<(File, Bucket, ObjectKey)> {
        let Node::File(file) = self.node(id)? else { return Err(Errno::ISDIR.into()) };
        let bucket = file.parent.bucket.clone().ok_or(Errno::STALE)?;
        let key = key_of(&file.parent, &file.name)?;
        Ok((file, bucket, key))
    }

    /// The attributes that all directories have.
    pub(crate) fn directory_attributes(&self, id: NodeId) -> Attributes {
        Attributes { id, directory: true, size: 0, modified: self.began }
    }
}

fn file_attributes(id: NodeId, version: &Version) -> Attributes {
    Attributes { id, directory: false, size: version.size, modified: version.modified }
}

/// Handles of a worker before are in use, so none of them is given again: they begin with the time,
/// and leave room for a million in each millisecond.
fn first_handle() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (now.as_millis() as u64) << 20
}

/// The key that a name in a directory spells; ENAMETOOLONG where no key is that long.
fn key_of(parent: &Directory, name: &str) -> Result<ObjectKey> {
    let key = format!("{}{name}", parent.prefix);
    Ok(ObjectKey::new(key).map_err(|_| Errno::NAMETOOLONG)?)
}

/// Joins a body that must have exactly `size` bytes; a single piece is not copied.
async fn collect(
    size: usize,
    mut body: store::ByteStream,
    key: &ObjectKey,
) -> std::result::Result<Bytes, Error> {
    let wrong = |seen: usize| {
        let text = format!("`{key}`: body has {seen} bytes, expected {size}");
        Error::new(ErrorKind::IncompleteBody, text)
    };
    let Some(first) = body.try_next().await? else { return Err(wrong(0)) };
    if first.len() == size {
        return Ok(first);
    }
    let mut all = BytesMut::with_capacity(size);
    all.extend_from_slice(&first);
    while let Some(piece) = body.try_next().await? {
        if all.len() + piece.len() > size {
            return Err(wrong(all.len() + piece.len()));
        }
        all.extend_from_slice(&piece);
        if all.len() == size {
            return Ok(all.freeze());
        }
    }
    if all.len() == size { Ok(all.freeze()) } else { Err(wrong(all.len())) }
}

#[cfg(test)]
mod tests;
