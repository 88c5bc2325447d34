//! Open directories: a listing of the origin, page by page, as entries with stable offsets.
//!
//! Invariant: one page is held and one asked for ahead, whatever the size of the directory, and one
//! small record for each page that was seen, so that a reader can go back. A name is given once: where a key and a
//! directory share it, the directory is given. Keys that no path can name are left out.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use store::{Bucket, ListPage, ListRequest};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::FileSystem;
use crate::errno::Result;
use crate::nodes::{Directory, EntryKind, NodeId, NodeTable, Version};

/// The longest name of a file in bytes, on Linux.
const MAX_NAME_BYTES: usize = 255;

/// An entry as it is given to a reader.
#[derive(Debug, Clone)]
pub(crate) struct DirectoryEntry {
    /// The offset that continues after this entry.
    pub(crate) next: u64,
    /// Its name.
    pub(crate) name: Arc<str>,
    /// The node that it has or would have.
    pub(crate) id: NodeId,
    /// What it is.
    pub(crate) kind: EntryKind,
    /// When the page that it is from was asked for.
    pub(crate) asked: Instant,
    /// True for `.` and `..`, which are no lookups.
    pub(crate) special: bool,
}

/// A name of a listing.
#[derive(Debug, Clone)]
pub(super) struct Named {
    pub(super) name: Arc<str>,
    pub(super) kind: EntryKind,
}

#[derive(Debug, Clone)]
enum Source {
    /// `.`, `..` and mount paths.
    Heading,
    /// The first page of the origin.
    First,
    /// The page of this token.
    Page(String),
    /// No more.
    End,
}

/// Where a page begins.
#[derive(Debug)]
struct Start {
    /// Offset of its first entry.
    offset: u64,
    /// Where it comes from.
    source: Source,
    /// Files of earlier pages that may yet turn out to be directories: at most one for each
    /// prefix of the last key.
    held: Vec<Named>,
}

/// The page after the one that is held, already asked for: a reader works through a page in the
/// time that the origin takes for the next one.
#[derive(Debug)]
struct Ahead {
    token: String,
    asked: Instant,
    task: JoinHandle<store::Result<ListPage>>,
}

impl Ahead {
    fn new(bucket: &Bucket, request: ListRequest, token: &str) -> Self {
        let store = Arc::clone(&bucket.store);
        let request = ListRequest { token: Some(token.to_owned()), ..request };
        let task = tokio::spawn(async move { store.list(&request).await });
        Self { token: token.to_owned(), asked: Instant::now(), task }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One walk through a directory.
#[derive(Debug)]
struct Walk {
    starts: Vec<Start>,
    /// Index of the page that `entries` holds.
    page: usize,
    entries: Vec<Named>,
    /// When that page was asked for.
    asked: Instant,
    ahead: Option<Ahead>,
}

impl Walk {
    fn new(directory: &Directory) -> Self {
        let special = [".", ".."].map(Arc::from);
        let names = special.into_iter().chain(directory.mounts.iter().cloned());
        let entries: Vec<Named> =
            names.map(|name| Named { name, kind: EntryKind::Directory }).collect();
        let source = if directory.bucket.is_some() { Source::First } else { Source::End };
        let heading = Start { offset: 0, source: Source::Heading, held: Vec::new() };
        let first = Start { offset: entries.len() as u64, source, held: Vec::new() };
        Self { starts: vec![heading, first], page: 0, entries, asked: Instant::now(), ahead: None }
    }

    /// Makes `index` the page that is held, and learns where the next one begins. Changes nothing
    /// when it fails or is dropped.
    async fn load(&mut self, directory: &Directory, index: usize, fs: &FileSystem) -> Result<()> {
        let start = &self.starts[index];
        let (first, token) = match &start.source {
            Source::Heading | Source::End => {
                *self = Self::new(directory);
                return Ok(());
            }
            Source::First => (true, None),
            Source::Page(token) => (false, Some(token.clone())),
        };
        let Some(bucket) = &directory.bucket else { return Ok(()) };
        let request = ListRequest {
            prefix: directory.prefix.clone(),
            delimiter: Some("/".into()),
            start_after: None,
            token,
            max_keys: fs.options.page_entries,
        };
        let (asked, page) = self.fetch(bucket, &request).await?;
        self.ahead = page.next.as_deref().map(|token| Ahead::new(bucket, request, token));
        let source = page.next.clone().map_or(Source::End, Source::Page);
        let start = &self.starts[index];
        let (entries, held) = merge(directory, &page, &start.held);
        let learned = entries.iter().map(|named| (Arc::clone(&named.name), named.kind.clone()));
        fs.known.learn_page(directory.id, first, asked, learned);
        let offset = start.offset + entries.len() as u64;
        self.starts.truncate(index + 1);
        self.starts.push(Start { offset, source, held });
        self.page = index;
        self.entries = entries;
        self.asked = asked;
        Ok(())
    }

    /// The page that was asked for ahead, if it is this one; otherwise asks now. With the time at
    /// which it was asked for.
    async fn fetch(
        &mut self,
        bucket: &Bucket,
        request: &ListRequest,
    ) -> store::Result<(Instant, ListPage)> {
        if let Some(ahead) = &mut self.ahead
            && Some(&ahead.token) == request.token.as_ref()
        {
            let asked = ahead.asked;
            let joined = (&mut ahead.task).await;
            self.ahead = None;
            if let Ok(page) = joined {
                return Ok((asked, page?));
            }
        }
        let asked = Instant::now();
        Ok((asked, bucket.store.list(request).await?))
    }
}

/// The entries of a page, and the files that the next page decides about.
pub(super) fn merge(
    directory: &Directory,
    page: &ListPage,
    held: &[Named],
) -> (Vec<Named>, Vec<Named>) {
    let prefix = directory.prefix.as_str();
    let last_entry = page.entries.last().map_or("", |entry| entry.key.as_str());
    let last_prefix = page.common_prefixes.last().map_or("", String::as_str);
    // What of the directory has been seen: every later key is after this.
    let seen_to = last_entry.max(last_prefix);
    let seen_to = seen_to.strip_prefix(prefix).unwrap_or(seen_to).to_owned();
    let complete = page.next.is_none();

    let directories: HashSet<&str> = page
        .common_prefixes
        .iter()
        .filter_map(|key| key.strip_prefix(prefix)?.strip_suffix('/'))
        .filter(|name| is_name(name))
        .collect();
    let listed = page.entries.iter().filter_map(|entry| {
        let name = entry.key.as_str().strip_prefix(prefix).filter(|name| is_name(name))?;
        Some(Named { name: name.into(), kind: EntryKind::File(Version::from(&entry.meta)) })
    });
    let files = held.iter().cloned().chain(listed);
    let (undecided, mut entries): (Vec<Named>, Vec<Named>) = files
        .filter(|file| !directories.contains(&*file.name))
        .partition(|file| !complete && !is_before_or_at(&file.name, &seen_to));
    entries.extend(
        directories.iter().map(|name| Named { name: (*name).into(), kind: EntryKind::Directory }),
    );
    entries.retain(|named| !directory.is_mount(&named.name));
    entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    (entries, undecided)
}

/// True when the directory of this name would have been listed by now: `name/` <= `seen_to`.
fn is_before_or_at(name: &str, seen_to: &str) -> bool {
    name.bytes().chain([b'/']).cmp(seen_to.bytes()) != Ordering::Greater
}

/// True for what can be the name of a file.
fn is_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..")
        && name.len() <= MAX_NAME_BYTES
        && !name.bytes().any(|byte| byte == b'/' || byte == 0)
}

/// Every open directory.
#[derive(Debug, Default)]
pub(crate) struct OpenDirectories {
    /// `None` while an operation uses the walk. As many as the programs keep open.
    walks: Mutex<HashMap<u64, Option<Walk>>>,
}

/// A walk that is taken out, and goes back when it is dropped.
#[derive(Debug)]
pub(crate) struct Listing<'a> {
    open: &'a OpenDirectories,
    handle: u64,
    directory: Arc<Directory>,
    walk: Option<Walk>,
}

impl OpenDirectories {
    /// Begins a walk.
    pub(crate) fn open(&self, handle: u64, directory: &Directory) {
        self.walks.lock().insert(handle, Some(Walk::new(directory)));
    }

    /// Ends a walk.
    pub(crate) fn close(&self, handle: u64) {
        self.walks.lock().remove(&handle);
    }

    /// Takes a walk out. A handle that is not known (or busy: one that is read by two at once)
    /// gets a new one, which finds its place by its offset.
    pub(crate) fn take(&self, handle: u64, directory: &Arc<Directory>) -> Listing<'_> {
        let walk = self.walks.lock().get_mut(&handle).and_then(Option::take);
        let walk = walk.unwrap_or_else(|| Walk::new(directory));
        Listing { open: self, handle, directory: Arc::clone(directory), walk: Some(walk) }
    }
}

impl Listing<'_> {
    /// The entries from an offset to the end of its page; none at the end of the directory.
    pub(crate) async fn entries_at(
        &mut self,
        offset: u64,
        fs: &FileSystem,
    ) -> Result<Vec<DirectoryEntry>> {
        let directory = &self.directory;
        let walk = self.walk.as_mut().expect("a walk is taken out until it is dropped");
        if offset == 0 {
            // `rewinddir` shows what is there now.
            *walk = Walk::new(directory);
        }
        loop {
            let start = walk.starts[walk.page].offset;
            if offset < start {
                let after = walk.starts.partition_point(|start| start.offset <= offset);
                walk.load(directory, after.saturating_sub(1), fs).await?;
                continue;
            }
            let skip = (offset - start) as usize;
            if skip < walk.entries.len() {
                return Ok(entries(directory, walk, skip, offset, &fs.nodes));
            }
            let next = walk.page + 1;
            if matches!(walk.starts[next].source, Source::End) {
                return Ok(Vec::new());
            }
            walk.load(directory, next, fs).await?;
        }
    }
}

impl Drop for Listing<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.open.walks.lock().get_mut(&self.handle) {
            *slot = self.walk.take();
        }
    }
}

fn entries(
    directory: &Directory,
    walk: &Walk,
    skip: usize,
    offset: u64,
    nodes: &NodeTable,
) -> Vec<DirectoryEntry> {
    let numbered = walk.entries[skip..].iter().zip(offset..);
    numbered
        .map(|(named, offset)| {
            let id = match &*named.name {
                "." => directory.id,
                ".." => directory.parent,
                name => nodes.id_of(directory, name, &named.kind),
            };
            DirectoryEntry {
                next: offset + 1,
                name: Arc::clone(&named.name),
                id,
                kind: named.kind.clone(),
                asked: walk.asked,
                special: matches!(&*named.name, "." | ".."),
            }
        })
        .collect()
}
