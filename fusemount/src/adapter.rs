//! FUSE requests as calls on [`FileSystem`], and its answers as FUSE replies.
//!
//! Invariant: a FUSE thread never waits; what cannot be answered from memory moves into a task
//! with its reply, and is answered within the operation timeout. At most the kernel's background
//! requests and one request for each waiting thread are in flight, which bounds the tasks.

mod deadline;
mod dispatch;
mod passthrough;
mod replies;
mod seat;
mod shared;

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags,
    PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use rustix::io::Errno;
use tokio::runtime::Handle;

use crate::backing::Mode;
use crate::fs::{FileSystem, Gate, Mutation};
use crate::journal::Unique;
use crate::nodes::{EntryKind, NodeId};
use deadline::Heed;
use replies::{Refuse, answer_xattr};
pub use seat::unbind_thread;
use seat::{Kind, Seat};
use shared::Shared;

/// The largest request that the kernel sends by default (256 pages); fuser asks for as many pages
/// as the larger of this and the readahead need.
const MAX_REQUEST_BYTES: u32 = 1 << 20;

/// Readahead requests in flight in the whole mount: 16 readers with four requests each.
const MAX_BACKGROUND: u16 = 64;

/// `statfs` counts these.
const STATFS_BLOCK_BYTES: u32 = 4096;

/// A bucket has no size: 1 PiB, all of it free, so that no alert about a full disk fires.
const STATFS_BLOCKS: u64 = (1 << 50) / STATFS_BLOCK_BYTES as u64;

/// More objects than a mount will ever show.
const STATFS_FILES: u64 = 1 << 40;

/// The longest name in bytes.
const MAX_NAME_BYTES: u32 = 255;

/// Ids are unique among living nodes, so every node is of the first generation.
const GENERATION: Generation = Generation(0);

/// The file system as fuser wants it. Each event loop has a clone; they share everything.
#[derive(Debug, Clone)]
pub(crate) struct Adapter {
    shared: Arc<Shared>,
    runtime: Handle,
    max_readahead: u32,
    seat: Seat,
}

impl Adapter {
    /// What mutations have to pass.
    pub(crate) fn gate(&self) -> Arc<Gate> {
        Arc::clone(self.shared.fs.gate())
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
            // A listing has the metadata anyway: give it to all, since `ls -l` reads a directory to
            // its end before it asks for the first, which the kernel's own guess (`AUTO`) misses.
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_ASYNC_DIO,
        ] {
            // What an old kernel lacks, it does without.
            let _ = config.add_capabilities(wanted);
        }
        let backing = self.shared.fs.backing();
        let passthrough = backing.wants_passthrough() && passthrough::negotiate(config);
        backing.negotiated(passthrough);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        let unique = Unique::new(request.unique().0);
        self.spawn(
            "lookup",
            Heed::Handled,
            request,
            reply,
            |shared| async move { shared.fs.lookup(NodeId(parent.0), &name, unique).await },
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
        if flags.acc_mode() != OpenAccMode::O_RDONLY || flags.0 & libc::O_TRUNC != 0 {
            return self.mutate(Mutation::OpenToWrite, reply);
        }
        let unique = Unique::new(request.unique().0);
        self.spawn(
            "open",
            Heed::Handled,
            request,
            reply,
            |shared| async move { shared.fs.open(NodeId(node.0), unique).await },
            |_, reply, (handle, mode)| {
                // Nothing is written, so there is nothing to flush at close.
                let flags = FopenFlags::FOPEN_NOFLUSH;
                match mode {
                    // Another version is another node, so cached pages are always the right ones.
                    Mode::Cached => {
                        reply.opened(FileHandle(handle), flags | FopenFlags::FOPEN_KEEP_CACHE);
                    }
                    // The kernel refuses passthrough together with any word about its own pages.
                    Mode::Passthrough(id) => passthrough::opened(reply, handle, flags, id),
                }
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
            Heed::Fatal,
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
        request: &Request,
        node: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let unique = Unique::new(request.unique().0);
        self.sit(request, Kind::Short);
        self.answer(
            "release",
            reply,
            |shared| {
                shared.fs.release(NodeId(node.0), unique);
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
            Heed::Handled,
            request,
            reply,
            |shared| async move { shared.fs.entries(NodeId(node.0), handle.0, offset).await },
            |_, mut reply, (_, entries)| {
                for entry in entries {
                    let kind = match entry.kind {
                        EntryKind::Directory => FileType::Directory,
                        EntryKind::File(_) => FileType::RegularFile,
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
        let unique = Unique::new(request.unique().0);
        self.spawn(
            "readdirplus",
            Heed::Handled,
            request,
            reply,
            |shared| async move { shared.fs.entries(NodeId(node.0), handle.0, offset).await },
            move |shared, mut reply, (directory, entries)| {
                for entry in entries {
                    let attributes = if entry.special {
                        shared.fs.directory_attributes(entry.id)
                    } else {
                        shared.fs.remember(&directory, &entry.name, &entry.kind, unique)
                    };
                    let full = reply.add(
                        INodeNo(attributes.id.0),
                        entry.next,
                        &*entry.name,
                        // What was listed a while ago is looked up before it is believed.
                        &shared.view.ttl.saturating_sub(entry.asked.elapsed()),
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
                shared.fs.remembered(unique);
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
            Heed::Handled,
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
        self.mutate(Mutation::SetAttr, reply);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        self.mutate(Mutation::Mknod, reply);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        self.mutate(Mutation::Mkdir, reply);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        self.mutate(Mutation::Unlink, reply);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        self.mutate(Mutation::Rmdir, reply);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        self.mutate(Mutation::Symlink, reply);
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
        self.mutate(Mutation::Rename, reply);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        self.mutate(Mutation::Link, reply);
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
        self.mutate(Mutation::Write, reply);
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
        self.mutate(Mutation::SetXattr, reply);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        self.mutate(Mutation::RemoveXattr, reply);
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
        self.mutate(Mutation::Create, reply);
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
        self.mutate(Mutation::Fallocate, reply);
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
        self.mutate(Mutation::CopyFileRange, reply);
    }
}

#[cfg(test)]
mod tests;
