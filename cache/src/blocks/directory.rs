//! The cache directory: whose it is, and what its content is worth.
//!
//! Invariant: at most one process has it open, by a lock that the kernel drops when that process
//! ends however it ends. Content of another layout is discarded, never read.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};

/// What writes the files: raised whenever a key, a value or foyer's format changes.
const FORMAT: u32 = 1;

const LOCK: &str = "lock";
const LAYOUT: &str = "layout";
const BLOCKS: &str = "blocks";
const PROBE: &str = "probe";

/// How foyer names the file of a group, before its number of eight digits.
const GROUP: &str = "foyer-storage-direct-fs-";

/// foyer's mark of a group that holds nothing is that this much at its beginning is zero.
const MARK_BYTES: usize = 4096;

/// What the file system says of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GroupFile {
    /// When it was last written to.
    pub(crate) written: SystemTime,
    /// Bytes that were ever written to it since it was emptied by [`Directory::empty_clean`].
    pub(crate) allocated_bytes: u64,
}

/// Why the directory cannot be used.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// Another process has it; going on would destroy what that one keeps.
    Locked(Refused),
    /// It cannot be used; going on without it is safe.
    Unusable(String),
}

/// The directory belongs to another process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) path: PathBuf,
    /// The process, where it could be read.
    pub(crate) pid: Option<u32>,
    /// The host that it calls itself: its pod, in Kubernetes.
    pub(crate) host: Option<String>,
}

impl GroupFile {
    /// That of the group of this number in [`Directory::blocks`], if it has a file.
    pub(crate) fn of(blocks: &Path, number: u32) -> Option<Self> {
        let meta = fs::metadata(blocks.join(format!("{GROUP}{number:08}"))).ok()?;
        Some(Self { written: meta.modified().ok()?, allocated_bytes: meta.blocks() * 512 })
    }
}

/// What this machine, or container, calls itself.
pub(crate) fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.split_whitespace().next().unwrap_or("-").to_owned()
}

/// A directory that this process holds.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    /// Closing it gives the lock back.
    _lock: File,
}

impl Directory {
    /// Takes the directory, creating it where missing. Blocking: a few file operations.
    pub(crate) fn open(path: &Path) -> Result<Self, Trouble> {
        let unusable = |what: &str, error: &std::io::Error| {
            let shown = path.display();
            let hint = if error.kind() == std::io::ErrorKind::PermissionDenied {
                let user = rustix::process::geteuid().as_raw();
                format!(
                    "; give user {user} the directory (`chown {user} {shown}`, or `fsGroup: {user}` \
                     for a volume of a pod)"
                )
            } else {
                String::new()
            };
            Trouble::Unusable(format!("{what} `{shown}`: {error}{hint}"))
        };
        fs::create_dir_all(path).map_err(|e| unusable("cannot create", &e))?;
        let file = path.join(LOCK);
        let mut lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&file)
            .map_err(|e| unusable("cannot write to", &e))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                _ = lock.read_to_string(&mut text);
                let mut words = text.split_whitespace();
                let pid = words.next().and_then(|pid| pid.parse().ok());
                let host = words.next().map(str::to_owned);
                return Err(Trouble::Locked(Refused { path: path.to_owned(), pid, host }));
            }
            Err(error) => return Err(unusable("cannot lock", &error.into())),
        }
        let written = lock
            .set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{} {}", std::process::id(), host_name()));
        written.map_err(|e| unusable("cannot write to", &e))?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// True where files can be written past the page cache. Blocks then cost one copy less, and the
    /// page cache is left to those who need it; the memory tier does the same work for blocks.
    pub(crate) fn takes_direct_io(&self) -> bool {
        let probe = self.path.join(PROBE);
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
        let opened = open(&probe, flags, Mode::RUSR | Mode::WUSR);
        _ = fs::remove_file(&probe);
        opened.is_ok()
    }

    /// Where the blocks lie.
    pub(crate) fn blocks(&self) -> PathBuf {
        self.path.join(BLOCKS)
    }

    /// Bytes that are free for the tier: free on the file system, plus what the tier has already.
    pub(crate) fn available_bytes(&self) -> u64 {
        let free = rustix::fs::statvfs(&self.path).map_or(0, |s| s.f_bavail * s.f_frsize);
        let held = fs::read_dir(self.blocks()).map_or(0, |entries| {
            entries.flatten().filter_map(|e| e.metadata().ok()).map(|m| m.blocks() * 512).sum()
        });
        free + held
    }

    /// Makes the content fit `layout`: content of another layout is removed. Returns the layout that
    /// was found, if it was another one.
    pub(crate) fn prepare(&self, layout: &str) -> Result<Option<String>, String> {
        let wanted = format!("warpdrive-cache {FORMAT} {layout}\n");
        let file = self.path.join(LAYOUT);
        let found = fs::read(&file).ok().map(|raw| String::from_utf8_lossy(&raw).into_owned());
        let fail = |e: std::io::Error| format!("cannot prepare `{}`: {e}", self.path.display());
        if found.as_ref() == Some(&wanted) {
            return Ok(None);
        }
        let blocks = self.blocks();
        let had_blocks = blocks.exists();
        if had_blocks {
            fs::remove_dir_all(&blocks).map_err(fail)?;
        }
        fs::write(&file, &wanted).map_err(fail)?;
        Ok(had_blocks.then(|| found.unwrap_or_default().trim().to_owned()))
    }

    /// Removes files of groups beyond the first `groups`, left by a larger capacity.
    pub(crate) fn trim(&self, groups: u64) {
        let Ok(entries) = fs::read_dir(self.blocks()) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let number = name.to_str().and_then(|n| n.rsplit('-').next()?.parse::<u64>().ok());
            if number.is_some_and(|n| n >= groups) {
                _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Gives the room of groups that hold nothing back, so that [`GroupFile`] tells of those that are
    /// written from now on how much. What cannot be emptied only seems fuller than it is.
    pub(crate) fn empty_clean(&self) {
        let Ok(entries) = fs::read_dir(self.blocks()) else { return };
        let mut mark = [0; MARK_BYTES];
        for entry in entries.flatten() {
            let Ok(mut file) = OpenOptions::new().read(true).write(true).open(entry.path()) else {
                continue;
            };
            if file.read_exact(&mut mark).is_ok() && mark.iter().all(|byte| *byte == 0) {
                _ = file.set_len(0);
            }
        }
    }
}
