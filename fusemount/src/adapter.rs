//! FUSE requests as calls on [`FileSystem`], and its answers as FUSE replies.
//!
//! Invariant: a FUSE thread never waits; what cannot be answered from memory moves into a task
//! with its reply, and is answered within the operation timeout. At most the kernel's background requests
//! and one request for each waiting thread are in flight, which bounds the tasks.

mod deadline;

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenAccMode,
    OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;
use rustix::io::Errno;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::Metrics;
use crate::config::MountConfig;
use crate::errno::{Failure, Result, errno_name};
use crate::fs::{Attributes, FileSystem, Options};
use crate::nodes::NodeId;
use deadline::bounded;

/// The largest request that the kernel sends by default (256 pages); fuser asks for as many pages
/// as the larger of this and the readahead need.
const MAX_REQUEST_BYTES: u32 = 1 << 20;

/// Readahead requests in flight in the whole mount: 16 readers with four requests each.
const MAX_BACKGROUND: u16 = 64;

/// `st_blksize`: programs such as `cp` read in pieces of this size, which is one request.
const PREFERRED_READ_BYTES: u32 = 1 << 20;

/// `st_blocks` counts these.
const BLOCK_BYTES: u64 = 512;

/// `statfs` counts these.
const STATFS_BLOCK_BYTES: u32 = 4096;

/// A bucket has no size: 1 PiB, all of it free, so that no alert about a full disk fires.
const STATFS_BLOCKS: u64 = (1 << 50) / STATFS_BLOCK_BYTES as u64;

/// More objects than a mount will ever show.
const STATFS_FILES: u64 = 1 << 40;

/// The longest name in bytes.
const MAX_NAME_BYTES: u32 = 255;

/// At most one warning in this time; an outage fails thousands of operations in a second.
const WARN_EVERY: Duration = Duration::from_secs(1);

/// How long to wait for an origin to say what is below a name once the rest is known. A listing of
/// one key takes milliseconds; while the origin hangs, what is cached is reached after this time.
const MAX_PATIENCE: Duration = Duration::from_secs(5);

/// The most that origins give in one page of a listing.
const PAGE_ENTRIES: usize = 1000;

/// Ids are unique among living nodes, so every node is of the first generation.
const GENERATION: Generation = Generation(0);

/// How files look besides what the file system says.
#[derive(Debug, Clone, Copy)]
struct View {
    uid: u32,
    gid: u32,
    file_mode: u16,
    dir_mode: u16,
    ttl: Duration,
}

#[derive(Debug, Default)]
struct Warnings {
    last: Option<Instant>,
    suppressed: u64,
}

#[derive(Debug)]
struct Shared {
    fs: FileSystem,
    view: View,
    metrics: Metrics,
    timeout: Duration,
    debug: bool,
    warnings: Mutex<Warnings>,
}

/// The file system as fuser wants it.
#[derive(Debug)]
pub(crate) struct Adapter {
    shared: Arc<Shared>,
    runtime: Handle,
    max_readahead: u32,
}

impl Adapter {
    /// An adapter that runs its tasks on a runtime.
    pub(crate) fn new(
        namespace: Arc<store::Namespace>,
        config: &MountConfig,
        metrics: Metrics,
        runtime: Handle,
    ) -> Self {
        let options = Options {
            metadata_ttl: config.metadata_ttl,
            patience: (config.operation_timeout / 4).min(MAX_PATIENCE),
            page_entries: PAGE_ENTRIES,
        };
        let view = View {
            uid: config.uid.unwrap_or_else(|| rustix::process::geteuid().as_raw()),
            gid: config.gid.unwrap_or_else(|| rustix::process::getegid().as_raw()),
            file_mode: config.file_mode,
            dir_mode: config.dir_mode,
            ttl: config.metadata_ttl,
        };
        let shared = Shared {
            fs: FileSystem::new(namespace, options),
            view,
            metrics,
            timeout: config.operation_timeout,
            debug: config.debug,
            warnings: Mutex::default(),
        };
        let max_readahead = config.read_ahead_kib.saturating_mul(1024).max(128 * 1024);
        Self { shared: Arc::new(shared), runtime, max_readahead }
    }

    /// Runs `work` within the operation timeout and then `answer`: here as long as nothing has to
    /// be waited for, then in a task.
    fn spawn<R: Refuse, T: Send + 'static, F: Future<Output = Result<T>> + Send + 'static>(
        &self,
        operation: &'static str,
        request: &Request,
        reply: R,
        work: impl FnOnce(Arc<Shared>) -> F,
        answer: impl FnOnce(&Shared, R, T) + Send + 'static,
    ) {
        let began = Instant::now();
        let pid = request.pid();
        let shared = Arc::clone(&self.shared);
        let work = work(Arc::clone(&shared));
        let mut task = Box::pin(async move {
            match bounded(pid, shared.timeout, work).await {
                Ok(value) => {
                    answer(&shared, reply, value);
                    shared.succeeded(operation, began);
                }
                Err(failure) => {
                    reply.refuse(failure.errno);
                    shared.failed(operation, began, &failure);
                }
            }
        });
        // What is in memory is answered here, which saves waking another thread; a task that has
        // to wait moves to the runtime and is polled again there.
        let _entered = self.runtime.enter();
        if task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            self.runtime.spawn(task);
        }
    }

    /// Answers at once.
    fn answer<R: Refuse, T>(
        &self,
        operation: &'static str,
        reply: R,
        work: impl FnOnce(&Shared) -> Result<T>,
        answer: impl FnOnce(&Shared, R, T),
    ) {
        let began = Instant::now();
        match work(&self.shared) {
            Ok(value) => {
                answer(&self.shared, reply, value);
                self.shared.succeeded(operation, began);
            }
            Err(failure) => {
                reply.refuse(failure.errno);
                self.shared.failed(operation, began, &failure);
            }
        }
    }

    fn refuse_write<R: Refuse>(&self, operation: &'static str, reply: R) {
        self.answer(operation, reply, |_| Err::<(), _>(Errno::ROFS.into()), |_, _, ()| {});
    }
}

impl Shared {
    fn succeeded(&self, operation: &'static str, began: Instant) {
        self.metrics.answered(operation, began.elapsed());
        if self.debug {
            tracing::debug!(operation, seconds = began.elapsed().as_secs_f64(), "fuse operation");
        }
    }

    fn failed(&self, operation: &'static str, began: Instant, failure: &Failure) {
        let errno = errno_name(failure.errno);
        self.metrics.answered(operation, began.elapsed());
        self.metrics.failed(operation, errno);
        if failure.errno == Errno::INTR {
            self.metrics.interrupted.inc();
        }
        let cause = failure.cause.as_ref().map_or_else(String::new, ToString::to_string);
        if failure.is_ordinary() {
            if self.debug {
                tracing::debug!(operation, errno, cause, "fuse operation refused");
            }
            return;
        }
        let suppressed = {
            let mut warnings = self.warnings.lock();
            if warnings.last.is_some_and(|last| last.elapsed() < WARN_EVERY) {
                warnings.suppressed += 1;
                return;
            }
            warnings.last = Some(Instant::now());
            std::mem::take(&mut warnings.suppressed)
        };
        tracing::warn!(operation, errno, cause, suppressed, "fuse operation failed");
    }

    fn attr(&self, attributes: &Attributes) -> FileAttr {
        let view = &self.view;
        let (kind, perm, size) = if attributes.directory {
            (FileType::Directory, view.dir_mode, u64::from(STATFS_BLOCK_BYTES))
        } else {
            (FileType::RegularFile, view.file_mode, attributes.size)
        };
        FileAttr {
            ino: INodeNo(attributes.id.0),
            size,
            blocks: size.div_ceil(BLOCK_BYTES),
            atime: attributes.modified,
            mtime: attributes.modified,
            ctime: attributes.modified,
            crtime: attributes.modified,
            kind,
            perm,
            // For a directory: the number of subdirectories is not known.
            nlink: 1,
            uid: view.uid,
            gid: view.gid,
            rdev: 0,
            blksize: PREFERRED_READ_BYTES,
            flags: 0,
        }
    }

    fn count_nodes(&self) {
        self.metrics.nodes.set(self.fs.node_count().try_into().unwrap_or(i64::MAX));
    }
}

/// A reply that can be an error.
trait Refuse: Send + 'static {
    fn refuse(self, errno: Errno);
}

macro_rules! refuse {
    ($($reply:ty),*) => {$(
        impl Refuse for $reply {
            fn refuse(self, errno: Errno) {
                self.error(fuser::Errno::from_i32(errno.raw_os_error()));
            }
        }
    )*};
}
refuse!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyIoctl,
    ReplyLseek,
    ReplyOpen,
    ReplyPoll,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr
);

/// Gives a value the way extended attributes are asked for: its size first, then itself.
fn answer_xattr(reply: ReplyXattr, size: u32, value: &[u8]) {
    if size == 0 {
        reply.size(value.len() as u32);
    } else if value.len() <= size as usize {
        reply.data(value);
    } else {
        reply.refuse(Errno::RANGE);
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Each of these answers an impossible value with the nearest possible one.
        let _ = config.set_max_write(MAX_REQUEST_BYTES);
        if let Err(most) = config.set_max_readahead(self.max_readahead) {
            let _ = config.set_max_readahead(most);
        }
        let _ = config.set_max_background(MAX_BACKGROUND);
        for wanted in [
            InitFlags::FUSE_PARALLEL_DIROPS,
            // A listing has the metadata anyway: give it to those who will ask for it.
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_ASYNC_DIO,
        ] {
            // What an old kernel lacks, it does without.
            let _ = config.add_capabilities(wanted);
        }
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.spawn(
            "lookup",
            request,
            reply,
            |shared| async move { shared.fs.lookup(NodeId(parent.0), &name).await },
            |shared, reply, attributes| {
                reply.entry(&shared.view.ttl, &shared.attr(&attributes), GENERATION);
                shared.count_nodes();
            },
        );
    }

    fn forget(&self, _: &Request, node: INodeNo, lookups: u64) {
        self.shared.fs.forget([(NodeId(node.0), lookups)]);
        self.shared.count_nodes();
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.answer(
            "getattr",
            reply,
            |shared| shared.fs.attributes(NodeId(node.0)),
            |shared, reply, attributes| reply.attr(&shared.view.ttl, &shared.attr(&attributes)),
        );
    }

    fn access(&self, _: &Request, node: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        self.answer(
            "access",
            reply,
            |shared| {
                let attributes = shared.fs.attributes(NodeId(node.0))?;
                if mask.contains(AccessFlags::W_OK) {
                    return Err(Errno::ROFS.into());
                }
                let executable = attributes.directory || shared.view.file_mode & 0o111 != 0;
                if mask.contains(AccessFlags::X_OK) && !executable {
                    return Err(Errno::ACCESS.into());
                }
                Ok(())
            },
            |_, reply, ()| reply.ok(),
        );
    }

    fn open(&self, request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return self.refuse_write("open", reply);
        }
        self.spawn(
            "open",
            request,
            reply,
            |shared| async move { shared.fs.open(NodeId(node.0)).await },
            |shared, reply, handle| {
                shared.metrics.open_files.inc();
                // Another version is another node, so cached pages are always the right ones.
                // Nothing is written, so there is nothing to flush at close.
                let flags = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
                reply.opened(FileHandle(handle), flags);
            },
        );
    }

    fn read(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.spawn(
            "read",
            request,
            reply,
            |shared| async move { shared.fs.read(NodeId(node.0), handle.0, offset, size).await },
            |shared, reply, bytes| {
                shared.metrics.read_bytes.inc_by(bytes.len() as u64);
                reply.data(&bytes);
            },
        );
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.answer(
            "release",
            reply,
            |shared| {
                shared.metrics.open_files.dec();
                Ok(())
            },
            |_, reply, ()| reply.ok(),
        );
    }

    fn opendir(&self, _: &Request, node: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.answer(
            "opendir",
            reply,
            |shared| shared.fs.open_directory(NodeId(node.0)),
            |shared, reply, handle| {
                shared.metrics.open_directories.inc();
                reply.opened(FileHandle(handle), FopenFlags::empty());
            },
        );
    }

    fn readdir(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        self.spawn(
            "readdir",
            request,
            reply,
            |shared| async move { shared.fs.entries(NodeId(node.0), handle.0, offset).await },
            |_, mut reply, (_, entries)| {
                for entry in entries {
                    let kind = match entry.kind {
                        crate::nodes::EntryKind::Directory => FileType::Directory,
                        crate::nodes::EntryKind::File(_) => FileType::RegularFile,
                    };
                    if reply.add(INodeNo(entry.id.0), entry.next, kind, &*entry.name) {
                        break;
                    }
                }
                reply.ok();
            },
        );
    }

    fn readdirplus(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.spawn(
            "readdirplus",
            request,
            reply,
            |shared| async move { shared.fs.entries(NodeId(node.0), handle.0, offset).await },
            |shared, mut reply, (directory, entries)| {
                for entry in entries {
                    let attributes = if entry.special {
                        shared.fs.directory_attributes(entry.id)
                    } else {
                        shared.fs.remember(&directory, &entry.name, &entry.kind)
                    };
                    let full = reply.add(
                        INodeNo(attributes.id.0),
                        entry.next,
                        &*entry.name,
                        &shared.view.ttl,
                        &shared.attr(&attributes),
                        GENERATION,
                    );
                    if full {
                        if !entry.special {
                            shared.fs.forget([(attributes.id, 1)]);
                        }
                        break;
                    }
                }
                reply.ok();
                shared.count_nodes();
            },
        );
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.answer(
            "releasedir",
            reply,
            |shared| {
                shared.fs.release_directory(handle.0);
                shared.metrics.open_directories.dec();
                Ok(())
            },
            |_, reply, ()| reply.ok(),
        );
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.answer(
            "statfs",
            reply,
            |_| Ok(()),
            |_, reply, ()| {
                reply.statfs(
                    STATFS_BLOCKS,
                    STATFS_BLOCKS,
                    STATFS_BLOCKS,
                    STATFS_FILES,
                    STATFS_FILES,
                    STATFS_BLOCK_BYTES,
                    MAX_NAME_BYTES,
                    STATFS_BLOCK_BYTES,
                );
            },
        );
    }

    fn getxattr(
        &self,
        request: &Request,
        node: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        if !FileSystem::is_attribute(name) {
            // `ls -l` asks for labels and access lists of every file, until it hears that there
            // can be none.
            let user = name.as_encoded_bytes().starts_with(b"user.");
            let errno = if user { Errno::NODATA } else { Errno::OPNOTSUPP };
            let refuse = |_: &Shared| Err::<(), _>(errno.into());
            return self.answer("getxattr", reply, refuse, |_, _, ()| {});
        }
        let name = name.to_owned();
        self.spawn(
            "getxattr",
            request,
            reply,
            |shared| async move { shared.fs.attribute(NodeId(node.0), &name).await },
            move |_, reply, value| answer_xattr(reply, size, value.as_bytes()),
        );
    }

    fn listxattr(&self, _: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        self.answer(
            "listxattr",
            reply,
            |shared| shared.fs.attribute_names(NodeId(node.0)),
            |_, reply, names| {
                let list: String = names.iter().flat_map(|name| [*name, "\0"]).collect();
                answer_xattr(reply, size, list.as_bytes());
            },
        );
    }

    fn lseek(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        /// From `linux/fs.h`.
        const SEEK_DATA: i32 = 3;
        const SEEK_HOLE: i32 = 4;
        self.answer(
            "lseek",
            reply,
            |shared| {
                let offset = u64::try_from(offset).map_err(|_| Errno::NXIO)?;
                if !matches!(whence, SEEK_DATA | SEEK_HOLE) {
                    return Err(Errno::INVAL.into());
                }
                shared.fs.seek(NodeId(node.0), offset, whence == SEEK_HOLE)
            },
            |_, reply, offset| reply.offset(offset.cast_signed()),
        );
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn readlink(&self, _: &Request, _: INodeNo, reply: ReplyData) {
        reply.refuse(Errno::INVAL);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.refuse(Errno::NOTTY);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        // The kernel then treats files as always readable, and does not ask again.
        reply.refuse(Errno::NOSYS);
    }

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.refuse_write("setattr", reply);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        self.refuse_write("mknod", reply);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        self.refuse_write("mkdir", reply);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        self.refuse_write("unlink", reply);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        self.refuse_write("rmdir", reply);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        self.refuse_write("symlink", reply);
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.refuse_write("rename", reply);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        self.refuse_write("link", reply);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.refuse_write("write", reply);
    }

    fn setxattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: &[u8],
        _: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        self.refuse_write("setxattr", reply);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        self.refuse_write("removexattr", reply);
    }

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        self.refuse_write("create", reply);
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        self.refuse_write("fallocate", reply);
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.refuse_write("copy_file_range", reply);
    }
}
