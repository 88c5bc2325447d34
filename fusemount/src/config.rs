//! What a mount, and what a mount holder can be told.
//!
//! Invariant: plain values; every default works for one user on one machine. Nothing is read from
//! the environment here.

use std::path::PathBuf;
use std::time::Duration;

/// How to mount, and how files look.
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools)] // Each is a setting of its own.
pub struct MountConfig {
    /// An existing directory.
    pub mount_point: PathBuf,
    /// True when users other than the one that mounts may enter. Through `fusermount3` this needs
    /// `user_allow_other` in `/etc/fuse.conf`.
    pub allow_other: bool,
    /// Owner of every file; the effective user of this process when absent.
    pub uid: Option<u32>,
    /// Group of every file; the effective group of this process when absent.
    pub gid: Option<u32>,
    /// Permission bits of files.
    pub file_mode: u16,
    /// Permission bits of directories.
    pub dir_mode: u16,
    /// How long a name that was seen needs no listing to find it again: until then a directory is
    /// believed, and a file costs one question for its version to the cache below. At most the
    /// `stale_ttl` of that cache, or names outlive what it would say. The kernel itself answers
    /// from what it was told for as long, at most 1 s.
    pub metadata_ttl: Duration,
    /// How far the kernel reads ahead of a sequential reader, in KiB; 0 leaves its own default of
    /// 128. Raised where `/sys` may be written.
    pub read_ahead_kib: u32,
    /// Event loops, 1 to 64; as many as the machine has cores, 2 to 8, when absent.
    pub threads: Option<usize>,
    /// True where the kernel may read objects that are whole in the cache from their files; false has
    /// this process answer every read.
    pub passthrough: bool,
    /// True to log every operation at `debug`.
    pub debug: bool,
    /// The longest that one operation may take; then it fails with ETIMEDOUT.
    pub operation_timeout: Duration,
    /// True to detach a dead FUSE mount that is found at the mount point.
    pub force: bool,
    /// The socket of a mount holder that has the mount; without one this process mounts by itself.
    pub holder: Option<PathBuf>,
    /// True to have the worker that the holder serves leave, and to go on in its place.
    pub take_over: bool,
    /// A directory for what the kernel knows of nodes, so that the next worker knows it too. Only of
    /// use with a holder.
    pub journal: Option<PathBuf>,
}

impl MountConfig {
    /// The defaults, at a mount point.
    pub fn new(mount_point: impl Into<PathBuf>) -> Self {
        Self {
            mount_point: mount_point.into(),
            allow_other: false,
            uid: None,
            gid: None,
            // Readable by all whom `allow_other` lets in, writable by none: writes are refused.
            file_mode: 0o444,
            dir_mode: 0o555,
            // The default `stale_ttl` of the cache.
            metadata_ttl: Duration::from_mins(1),
            // More gains nothing (measured), and it is the largest request that the kernel sends
            // unless `fs.fuse.max_pages_limit` is raised.
            read_ahead_kib: 1024,
            threads: None,
            passthrough: true,
            debug: false,
            // Longer than the retries of one request to an origin, shorter than the two minutes
            // after which the kernel reports a hung task.
            operation_timeout: Duration::from_mins(1),
            force: false,
            holder: None,
            take_over: false,
            journal: None,
        }
    }
}

/// How a mount holder mounts, and whom it serves.
#[derive(Debug, Clone)]
pub struct HolderConfig {
    /// An existing directory.
    pub mount_point: PathBuf,
    /// Where workers connect. A socket there that nobody listens on is replaced.
    pub socket: PathBuf,
    /// True when users other than the one that mounts may enter.
    pub allow_other: bool,
    /// How far the kernel reads ahead of a sequential reader, in KiB; 0 leaves its own default.
    pub read_ahead_kib: u32,
    /// Event loops that a worker can have, 1 to 16.
    pub loops: usize,
    /// Users that may be workers, besides the one of this process and root.
    pub uids: Vec<u32>,
    /// True when the user of this process and root may not be workers either, unless they are among
    /// `uids`; they may ask how it is.
    pub only_uids: bool,
    /// How long requests wait for a worker; then they fail with EIO until there is one.
    pub patience: Duration,
    /// How long programs may go on using the mount after SIGTERM.
    pub grace: Duration,
    /// True to detach a dead FUSE mount of any kind that is found at the mount point; one of ours
    /// is detached in any case.
    pub force: bool,
}

impl HolderConfig {
    /// The defaults, at a mount point and a socket.
    pub fn new(mount_point: impl Into<PathBuf>, socket: impl Into<PathBuf>) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            mount_point: mount_point.into(),
            socket: socket.into(),
            allow_other: false,
            read_ahead_kib: 1024,
            // As many as a worker takes by default.
            loops: cores.clamp(2, 8),
            uids: Vec::new(),
            only_uids: false,
            // Half of the time after which the kernel reports a hung task.
            patience: Duration::from_mins(1),
            grace: Duration::from_secs(5),
            force: false,
        }
    }
}
