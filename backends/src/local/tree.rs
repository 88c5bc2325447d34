//! Paths beneath the root, and what tells one version of a file from another.
//!
//! Invariant: every path is resolved by the kernel beneath the root, so that neither a key nor a
//! link nor a race can lead out of it. Directories on the way are never symbolic links.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, SystemTime};

use md5::{Digest, Md5};
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use store::{ETag, Error, ErrorKind, ObjectKey, Result};

use crate::calendar::after_1970;

/// What this store keeps for itself, below the root. No key begins with it.
pub(super) const OWN: &str = ".warpdrive";

/// Bodies on their way. A crash leaves them here.
pub(super) const TEMPORARY: &str = ".warpdrive/tmp";

/// Age at which what a crash left is removed: no body takes a day.
const OLD: Duration = Duration::from_hours(24);

/// How often an NFS handle that went stale is opened again.
const STALE_RETRIES: usize = 3;

/// Names that NFS clients give to files that were removed while open.
const SILLY_PREFIX: &str = ".nfs";

const NO_LINKS: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_SYMLINKS);
const LAST_LINK: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);

/// The root.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    pub(super) nfs: bool,
}

/// What tells versions apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) size: u64,
    pub(super) inode: u64,
    pub(super) modified_ns: i128,
    changed_ns: i128,
    links: u64,
    is_directory: bool,
}

impl Version {
    pub(super) fn of(stat: &Stat) -> Self {
        let nanoseconds = |s: i128, ns: i128| s * 1_000_000_000 + ns;
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        // Types differ by platform; sizes are never negative.
        #[allow(clippy::useless_conversion, clippy::unnecessary_cast, clippy::cast_sign_loss)]
        Self {
            size: if is_directory { 0 } else { stat.st_size as u64 },
            inode: stat.st_ino,
            modified_ns: nanoseconds(stat.st_mtime.into(), stat.st_mtime_nsec.into()),
            changed_ns: nanoseconds(stat.st_ctime.into(), stat.st_ctime_nsec.into()),
            links: stat.st_nlink as u64,
            is_directory,
        }
    }

    /// A tag that changes whenever the kernel has noted a change: content, times, identity. The
    /// `-1` keeps clients from taking it for the MD5 of the bytes. A directory's bytes, which are
    /// none, stay the same whatever is done in it, so its identity is enough.
    pub(super) fn etag(&self) -> ETag {
        let mut digest = Md5::new();
        if self.is_directory {
            digest.update("directory");
            digest.update(self.inode.to_be_bytes());
            return ETag::parse(&format!("{}-1", hex::encode(digest.finalize())));
        }
        digest.update(self.size.to_be_bytes());
        digest.update(self.inode.to_be_bytes());
        digest.update(self.modified_ns.to_be_bytes());
        digest.update(self.changed_ns.to_be_bytes());
        ETag::parse(&format!("{}-1", hex::encode(digest.finalize())))
    }

    /// Whole seconds, as HTTP has them, so that every answer has the same time.
    pub(super) fn last_modified(&self) -> SystemTime {
        let seconds = u64::try_from(self.modified_ns / 1_000_000_000).unwrap_or(0);
        after_1970(Duration::from_secs(seconds))
    }

    /// True when an open file that had version `self` now has other bytes. Being unlinked, as by
    /// an overwriting rename, changes the inode and none of its bytes.
    pub(super) fn has_other_bytes_in(&self, now: &Self) -> bool {
        let touched = now.changed_ns != self.changed_ns && now.links >= self.links;
        now.size != self.size || now.modified_ns != self.modified_ns || touched
    }
}

/// The key as a path, for reading: `None` where no file can have it.
pub(super) fn readable(key: &str) -> Option<&str> {
    let first = key.split('/').next().unwrap_or_default();
    let valid = ObjectKey::new(key).is_ok_and(|key| key.is_path());
    (valid && first != OWN).then_some(key)
}

/// The key as a path, for writing.
pub(super) fn writable(key: &ObjectKey) -> Result<&str> {
    readable(key.as_str()).ok_or_else(|| {
        let context = format!(
            "`{}` cannot be a file: empty, `.` and `..` segments, bytes behind a slash at the end, \
             NUL, segments over 255 bytes and `{OWN}` are not possible in a directory",
            key.as_str().escape_debug()
        );
        Error::new(ErrorKind::UnsupportedKey, context)
    })
}

impl Tree {
    pub(super) fn open(root: &Path, nfs: bool) -> Result<Self> {
        let shown = root.display().to_string();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = fs::open(root, flags, Mode::empty())
            .map_err(|errno| super::failed("open directory", &shown, errno))?;
        match fs::openat2(&root, ".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), NO_LINKS) {
            Ok(_) => Ok(Self { root, nfs }),
            Err(errno) => {
                let context = "the kernel does not let openat2 resolve paths beneath a directory; \
                               Linux 5.6 or a newer seccomp profile is needed";
                Err(Error::new(ErrorKind::Unsupported, context).with_source(errno))
            }
        }
    }

    /// Opens a file. A symbolic link is followed where it is the last segment.
    pub(super) fn open_file(&self, path: &str) -> Result<OwnedFd, Errno> {
        // Not blocking: a FIFO would keep the thread until somebody writes to it.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        self.unless_stale(|| match fs::openat2(&self.root, path, flags, Mode::empty(), NO_LINKS) {
            Err(Errno::LOOP) => {
                let (parent, _) = path.rsplit_once('/').unwrap_or((".", path));
                self.directory(parent)?;
                fs::openat2(&self.root, path, flags, Mode::empty(), LAST_LINK)
            }
            other => other,
        })
    }

    /// Opens a directory; `.` and the empty path are the root.
    pub(super) fn directory(&self, path: &str) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { "." } else { path.trim_end_matches('/') };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        self.unless_stale(|| fs::openat2(&self.root, path, flags, Mode::empty(), NO_LINKS))
    }

    /// Opens a directory, making it and those above it where they are absent.
    pub(super) fn make_directory(&self, path: &str) -> Result<OwnedFd, Errno> {
        match self.directory(path) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        let mut at = self.directory(".")?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        for segment in path.split('/').filter(|s| !s.is_empty()) {
            match fs::mkdirat(&at, segment, Mode::from_raw_mode(0o777)) {
                Ok(()) => Self::sync_directory(&at),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
            at = fs::openat(&at, segment, flags, Mode::empty())?;
        }
        Ok(at)
    }

    /// The version of a regular file by path; `None` for anything else.
    pub(super) fn version(&self, path: &str) -> Result<Option<Version>, Errno> {
        let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
        let parent = match self.directory(parent) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            other => other?,
        };
        self.version_at(parent.as_fd(), name, path)
    }

    /// The same in a directory at hand; `path` is the whole path, for links.
    pub(super) fn version_at(
        &self,
        parent: BorrowedFd<'_>,
        name: &str,
        path: &str,
    ) -> Result<Option<Version>, Errno> {
        let stat = match fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            other => other?,
        };
        let stat = if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            match fs::openat2(&self.root, path, flags, Mode::empty(), LAST_LINK) {
                // A link that leads nowhere, out of the root or around in circles is no object.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::XDEV | Errno::LOOP) => return Ok(None),
                other => fs::fstat(other?)?,
            }
        } else {
            stat
        };
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        Ok(regular.then(|| Version::of(&stat)))
    }

    /// Makes changes of a directory's names durable. Best effort: some file systems refuse it.
    pub(super) fn sync_directory(directory: &OwnedFd) {
        if let Err(error) = fs::fsync(directory)
            && !matches!(error, Errno::INVAL | Errno::BADF | Errno::OPNOTSUPP)
        {
            tracing::warn!(%error, "a directory could not be synchronised");
        }
    }

    /// True for names that are no objects: this store's own, and those of NFS clients.
    pub(super) fn hides(&self, directory: &str, name: &str) -> bool {
        (directory.is_empty() && name == OWN) || (self.nfs && name.starts_with(SILLY_PREFIX))
    }

    /// Removes what crashes left. Best effort.
    pub(super) fn remove_old_temporaries(&self) {
        let Ok(directory) = self.directory(TEMPORARY) else { return };
        let Ok(entries) = fs::Dir::read_from(&directory) else { return };
        let now = SystemTime::now();
        for entry in entries.flatten() {
            let Ok(stat) = fs::statat(&directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)
            else {
                continue;
            };
            let age = now.duration_since(Version::of(&stat).last_modified()).unwrap_or_default();
            let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
            if regular && age > OLD {
                let _ = fs::unlinkat(&directory, entry.file_name(), AtFlags::empty());
            }
        }
    }

    fn unless_stale<T>(&self, call: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
        let mut result = call();
        for _ in 0..STALE_RETRIES {
            if !self.nfs || !matches!(result, Err(Errno::STALE)) {
                break;
            }
            result = call();
        }
        result
    }
}
