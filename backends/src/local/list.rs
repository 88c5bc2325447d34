//! Listing a directory tree as a bucket is listed: in byte order of whole keys, page by page.
//!
//! Invariant: the order is that of keys, not of a directory walk: a directory sorts as its name
//! with a slash (`a!`, `a/x`, `a0`), and is that key where it is empty. Nothing before the start of
//! a page and nothing outside of its prefix is visited. A walk that has more pages to give keeps its
//! place for a while, so that a directory is read once and not once a page.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{Dir, FileType};
use rustix::io::Errno;
use store::{ListEntry, ListPage, ListRequest, ObjectKey, ObjectMeta, Result};
use tokio::time::Instant;

use super::tree::{Tree, Version, readable};
use super::{Shared, failed};

/// Walks that wait for their next page: more than there are listings at once.
const MAX_WAITING: usize = 16;

/// Most names that all waiting walks hold together, about 100 MiB of them. A walk with more is
/// forgotten, and its next page begins by reading directories again.
const MAX_WAITING_NAMES: usize = 1_000_000;

/// A walk that nobody continues is forgotten; what it remembers of names is older by then than a
/// listing should be.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// Walks between two pages, newest last.
#[derive(Default)]
pub(super) struct Suspended(Mutex<VecDeque<(Instant, Walk)>>);

impl Suspended {
    fn take(&self, request: &ListRequest) -> Option<Walk> {
        let token = request.token.as_ref()?;
        let mut walks = self.0.lock();
        walks.retain(|(since, _)| since.elapsed() < MAX_WAIT);
        let at = walks.iter().position(|(_, walk)| {
            walk.token.as_ref() == Some(token)
                && walk.prefix == request.prefix
                && walk.delimiter == request.delimiter
        })?;
        walks.remove(at).map(|(_, walk)| walk)
    }

    fn keep(&self, walk: Walk) {
        let mut walks = self.0.lock();
        walks.push_back((Instant::now(), walk));
        let mut names: usize = walks.iter().map(|(_, walk)| walk.names()).sum();
        while walks.len() > MAX_WAITING || names > MAX_WAITING_NAMES {
            let Some((_, dropped)) = walks.pop_front() else { break };
            names -= dropped.names();
        }
    }
}

/// Where a page begins.
#[derive(Debug, Clone)]
enum After {
    Start,
    /// After this key.
    Key(String),
    /// After everything that begins with this.
    Below(String),
}

impl After {
    fn of(request: &ListRequest) -> Self {
        // A token says what the page before ended with: `k` a key, `p` a common prefix.
        if let Some(token) = &request.token {
            return match token.split_at_checked(1) {
                Some(("p", prefix)) => Self::Below(prefix.to_owned()),
                Some((_, key)) => Self::Key(key.to_owned()),
                None => Self::Start,
            };
        }
        request.start_after.clone().map_or(Self::Start, Self::Key)
    }

    fn admits(&self, key: &str) -> bool {
        match self {
            Self::Start => true,
            Self::Key(after) => key > after.as_str(),
            Self::Below(prefix) => key > prefix.as_str() && !key.starts_with(prefix.as_str()),
        }
    }

    /// True where a directory (with its slash) may hold keys that are admitted.
    fn admits_some_below(&self, directory: &str) -> bool {
        match self {
            Self::Start => true,
            Self::Key(after) => directory > after.as_str() || after.starts_with(directory),
            Self::Below(prefix) => {
                !directory.starts_with(prefix.as_str())
                    && (directory > prefix.as_str() || prefix.starts_with(directory))
            }
        }
    }
}

/// A directory that is being walked.
struct Level {
    /// Its keys begin with this: empty, or with a slash at the end.
    prefix: String,
    /// What is left, last first. Directories have a slash at the end.
    names: Vec<Box<str>>,
    /// Opened when it is needed; only the deepest level keeps it.
    directory: Option<OwnedFd>,
}

/// A listing under way.
struct Walk {
    prefix: String,
    delimiter: Option<String>,
    after: After,
    levels: Vec<Level>,
    /// Found, and belongs to the next page.
    pushed_back: Option<Item>,
    /// What its next page will be asked for with.
    token: Option<String>,
    skipped: u64,
}

enum Item {
    Object(String, Version),
    /// All keys that begin with this.
    Common(String),
}

impl Shared {
    pub(super) fn list(&self, request: &ListRequest) -> Result<ListPage> {
        let waiting = self.walks.take(request);
        let mut walk = match waiting {
            Some(walk) => walk,
            None => Walk::begin(self, request)?,
        };
        let mut page = ListPage::default();
        let most = request.max_keys.max(1);
        let mut token = None;
        while let Some(item) = walk.next(self)? {
            if page.entries.len() + page.common_prefixes.len() == most {
                walk.pushed_back = Some(item);
                walk.token.clone_from(&token);
                page.next = token;
                break;
            }
            match item {
                Item::Object(name, version) => {
                    token = Some(format!("k{name}"));
                    let Ok(key) = ObjectKey::new(name) else {
                        walk.skipped += 1;
                        continue;
                    };
                    let meta = ObjectMeta {
                        size: version.size,
                        etag: version.etag(),
                        last_modified: version.last_modified(),
                        attributes: None,
                    };
                    page.entries.push(ListEntry { key, meta });
                }
                Item::Common(name) => {
                    token = Some(format!("p{name}"));
                    page.common_prefixes.push(name);
                }
            }
        }
        page.skipped = std::mem::take(&mut walk.skipped);
        if page.next.is_some() {
            walk.rest();
            self.walks.keep(walk);
        }
        Ok(page)
    }
}

impl Walk {
    fn begin(shared: &Shared, request: &ListRequest) -> Result<Self> {
        let mut walk = Self {
            prefix: request.prefix.clone(),
            delimiter: request.delimiter.clone().filter(|d| !d.is_empty()),
            after: After::of(request),
            levels: Vec::new(),
            pushed_back: None,
            token: None,
            skipped: 0,
        };
        // Only the directory that the prefix names; its own last segment may be cut short.
        let directory = request.prefix.rfind('/').map_or("", |at| &request.prefix[..=at]);
        let named = directory.strip_suffix('/');
        if named.is_none_or(|path| readable(path).is_some()) {
            walk.pushed_back = walk.enter(shared, directory.to_owned())?;
        }
        Ok(walk)
    }

    fn names(&self) -> usize {
        self.levels.iter().map(|level| level.names.len()).sum()
    }

    /// Gives up what should not be held while nobody listens.
    fn rest(&mut self) {
        for level in &mut self.levels {
            level.directory = None;
        }
    }

    /// Reads a directory, keeps what can be part of the listing, and goes on there. Returns the
    /// directory itself where it is empty and part of the listing.
    fn enter(&mut self, shared: &Shared, prefix: String) -> Result<Option<Item>> {
        let directory = match shared.tree.directory(&prefix) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(Errno::ACCESS | Errno::PERM) => {
                tracing::debug!("a directory may not be read and is left out of a listing");
                self.skipped += 1;
                return Ok(None);
            }
            Err(errno) => return Err(failed("list", &prefix, errno)),
        };
        let mut names = Vec::new();
        let mut skipped = 0;
        let seen =
            each_name(&shared.tree, &directory, &prefix, &mut skipped, |name, is_directory| {
                let mut name = name.to_owned();
                if is_directory {
                    name.push('/');
                }
                let full = format!("{prefix}{name}");
                let wanted = if is_directory {
                    (full.starts_with(&self.prefix) || self.prefix.starts_with(&full))
                        && self.after.admits_some_below(&full)
                } else {
                    full.starts_with(&self.prefix) && self.after.admits(&full)
                };
                if wanted {
                    names.push(name.into_boxed_str());
                }
                false
            })
            .map_err(|errno| failed("list", &prefix, errno))?;
        self.skipped += skipped;
        names.sort_unstable_by(|a, b| b.cmp(a));
        if let Some(above) = self.levels.last_mut() {
            above.directory = None;
        }
        if seen == Seen::Nothing {
            if !self.wants(&prefix) {
                return Ok(None);
            }
            let version = shared.lasting_empty(&prefix)?;
            return Ok(version.map(|version| Item::Object(prefix, version)));
        }
        self.levels.push(Level { prefix, names, directory: Some(directory) });
        Ok(None)
    }

    /// True for a directory (with its slash) that is part of the listing where it is empty. The
    /// root is no key.
    fn wants(&self, directory: &str) -> bool {
        !directory.is_empty() && directory.starts_with(&self.prefix) && self.after.admits(directory)
    }

    /// The next object or common prefix in order.
    fn next(&mut self, shared: &Shared) -> Result<Option<Item>> {
        if let Some(item) = self.pushed_back.take() {
            return Ok(Some(item));
        }
        loop {
            let Some(level) = self.levels.last_mut() else { return Ok(None) };
            let Some(name) = level.names.pop() else {
                self.levels.pop();
                continue;
            };
            let full = format!("{}{name}", level.prefix);
            // A common prefix that was given covers what follows it.
            let is_directory = name.ends_with('/');
            let covered = match &self.after {
                After::Below(_) if is_directory => !self.after.admits_some_below(&full),
                After::Below(_) => !self.after.admits(&full),
                _ => false,
            };
            if covered {
                continue;
            }
            let rolled = self.rolled(&full);
            if is_directory {
                match rolled {
                    // Everything below it is one common prefix, if there is anything.
                    Some(common) if self.has_object_below(shared, &full)? => {
                        self.after = After::Below(common.clone());
                        return Ok(Some(Item::Common(common)));
                    }
                    Some(_) => {}
                    None => {
                        let empty = self.enter(shared, full)?;
                        if empty.is_some() {
                            return Ok(empty);
                        }
                    }
                }
                continue;
            }
            let Some(version) = self.version(shared, &name, &full)? else { continue };
            let Some(common) = rolled else { return Ok(Some(Item::Object(full, version))) };
            self.after = After::Below(common.clone());
            return Ok(Some(Item::Common(common)));
        }
    }

    /// The common prefix that a key, or every key of a directory, belongs to.
    fn rolled(&self, full: &str) -> Option<String> {
        let delimiter = self.delimiter.as_deref()?;
        let rest = full.strip_prefix(self.prefix.as_str())?;
        let at = rest.find(delimiter)?;
        Some(full[..self.prefix.len() + at + delimiter.len()].to_owned())
    }

    /// Size and version of a name in the deepest level; `None` where it is no object (any more).
    fn version(&mut self, shared: &Shared, name: &str, full: &str) -> Result<Option<Version>> {
        let Some(level) = self.levels.last_mut() else { return Ok(None) };
        if level.directory.is_none() {
            level.directory = match shared.tree.directory(&level.prefix) {
                Ok(directory) => Some(directory),
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
                Err(errno) => return Err(failed("list", &level.prefix, errno)),
            };
        }
        let Some(directory) = &level.directory else { return Ok(None) };
        let found = shared.tree.version_at(directory.as_fd(), name, full);
        found.map_err(|errno| failed("list", full, errno))
    }

    /// True where a directory (with its slash), if it is empty, or some object below it is after
    /// the start of the page.
    /// Reads only as far as the first one.
    fn has_object_below(&self, shared: &Shared, top: &str) -> Result<bool> {
        let mut left = vec![top.to_owned()];
        while let Some(prefix) = left.pop() {
            let directory = match shared.tree.directory(&prefix) {
                Ok(directory) => directory,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS | Errno::PERM) => {
                    continue;
                }
                Err(errno) => return Err(failed("list", &prefix, errno)),
            };
            let found =
                each_name(&shared.tree, &directory, &prefix, &mut 0, |name, is_directory| {
                    let full = format!("{prefix}{name}");
                    if is_directory {
                        let below = format!("{full}/");
                        if self.after.admits_some_below(&below) {
                            left.push(below);
                        }
                        return false;
                    }
                    self.after.admits(&full)
                        && matches!(
                            shared.tree.version_at(directory.as_fd(), name, &full),
                            Ok(Some(_))
                        )
                });
            match found.map_err(|errno| failed("list", &prefix, errno))? {
                Seen::Wanted => return Ok(true),
                Seen::Nothing if self.wants(&prefix) && ObjectKey::new(&*prefix).is_ok() => {
                    if shared.lasting_empty(&prefix)?.is_some() {
                        return Ok(true);
                    }
                }
                Seen::Nothing | Seen::Others => {}
            }
        }
        Ok(false)
    }
}

/// What a directory holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// No names at all, not even ones that are never listed.
    Nothing,
    /// Names, none of which was answered with true.
    Others,
    /// A name that was answered with true; it is the last that was looked at.
    Wanted,
}

/// Calls `visit` with each name and whether it is a directory, until it answers true. Names that
/// are no UTF-8, or with which a key would be too long, are counted instead.
fn each_name(
    tree: &Tree,
    directory: &OwnedFd,
    prefix: &str,
    skipped: &mut u64,
    mut visit: impl FnMut(&str, bool) -> bool,
) -> Result<Seen, Errno> {
    let mut seen = Seen::Nothing;
    for entry in Dir::read_from(directory)? {
        let entry = match entry {
            Err(Errno::NOENT) => break,
            other => other?,
        };
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        seen = Seen::Others;
        let is_directory = match entry.file_type() {
            FileType::Directory => true,
            FileType::RegularFile | FileType::Symlink => false,
            FileType::Unknown => {
                let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
                let Ok(stat) = rustix::fs::statat(directory, name, flags) else { continue };
                FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            }
            // Devices, sockets and pipes are no objects.
            _ => continue,
        };
        let Ok(text) = name.to_str() else {
            *skipped += 1;
            continue;
        };
        if tree.hides(prefix, text) {
            continue;
        }
        if !is_directory && ObjectKey::new(format!("{prefix}{text}")).is_err() {
            *skipped += 1;
            continue;
        }
        if visit(text, is_directory) {
            return Ok(Seen::Wanted);
        }
    }
    Ok(seen)
}
