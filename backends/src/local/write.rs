//! Writing: into a temporary file, then by rename.
//!
//! Invariant: until the rename nothing is visible, and a write that fails or is cancelled leaves
//! nothing. What was acknowledged is on the medium: file and directory are synchronised first.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::time::SystemTime;

use bytes::Bytes;
use futures::StreamExt;
use rustix::fs::{self, AtFlags, Mode, OFlags, RenameFlags, Timespec, Timestamps};
use rustix::io::Errno;
use store::{
    Attributes, Body, Condition, CopyOptions, ETag, Error, ErrorKind, ObjectKey, PutOptions,
    Result, Written,
};

use super::marker::directory_of;
use super::tree::{TEMPORARY, Tree, Version, readable, writable};
use super::{LocalStore, Shared, blocking, failed, failed_condition, failed_io};

/// Pieces are gathered to this many bytes before a thread is asked to write them.
const WRITE_BYTES: usize = 1024 * 1024;

/// Most pieces that are gathered: each may keep a whole buffer of the network alive, however small
/// it is, and those of 16 KiB, which HTTP usually brings, still come to [`WRITE_BYTES`].
const WRITE_PIECES: usize = 64;

/// How often a commit is tried when another program removes the directory under it.
pub(super) const DIRECTORY_RACES: usize = 5;

/// A file without a name that anybody would look for; removed unless it gets one.
pub(super) struct Temporary {
    directory: OwnedFd,
    /// `None` once it was renamed.
    name: Option<String>,
    pub(super) file: File,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            let _ = fs::unlinkat(&self.directory, name.as_str(), AtFlags::empty());
        }
    }
}

impl Temporary {
    /// Gives the file a modification time of its own: the kernel's clock moves in ticks of some
    /// milliseconds, within which an inode could be freed, used again and look the same.
    fn stamp(&self) -> Result<(), Errno> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = Timespec {
            tv_sec: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: now.subsec_nanos().into(),
        };
        fs::futimens(&self.file, &Timestamps { last_access: now, last_modification: now })
    }
}

impl Temporary {
    /// Makes it a part of an upload: durable, then renamed over an older one.
    pub(super) fn publish_part(
        mut self,
        directory: &OwnedFd,
        name: &str,
    ) -> Result<Version, Errno> {
        self.stamp()?;
        fs::fsync(&self.file)?;
        name_it(&mut self, directory, name, false)?;
        Ok(Version::of(&fs::fstat(&self.file)?))
    }
}

impl LocalStore {
    pub(super) async fn write_object(
        &self,
        key: &ObjectKey,
        body: Body,
        options: PutOptions,
    ) -> Result<Written> {
        if body.size == 0 && directory_of(key).is_some() {
            return self.write_directory(key, body, options.condition).await;
        }
        writable(key)?;
        let temporary = self.receive(key, body).await?;
        let key = key.clone();
        self.blocking(move |shared| {
            shared.commit(temporary, &key, options.attributes, &options.condition)
        })
        .await
    }

    /// A temporary file with a body's bytes.
    pub(super) async fn receive(&self, key: &ObjectKey, body: Body) -> Result<Temporary> {
        let mut temporary = self.blocking(Shared::temporary).await?;
        let mut pieces = body.checked().stream.fuse();
        loop {
            let mut batch: Vec<Bytes> = Vec::new();
            let mut gathered = 0;
            while gathered < WRITE_BYTES
                && batch.len() < WRITE_PIECES
                && let Some(piece) = pieces.next().await.transpose()?
            {
                gathered += piece.len();
                batch.push(piece);
            }
            if batch.is_empty() {
                return Ok(temporary);
            }
            let name = key.clone();
            temporary = blocking(move || {
                for piece in batch {
                    temporary
                        .file
                        .write_all(&piece)
                        .map_err(|error| failed_io("write", name.as_str(), error))?;
                }
                Ok(temporary)
            })
            .await?;
        }
    }
}

impl Shared {
    pub(super) fn temporary(&self) -> Result<Temporary> {
        let make = || -> Result<Temporary, Errno> {
            let directory = self.tree.make_directory(TEMPORARY)?;
            let name = format!("{:032x}", rand::random::<u128>());
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = fs::openat(&directory, &*name, flags, Mode::from_raw_mode(0o666))?;
            Ok(Temporary { directory, name: Some(name), file: file.into() })
        };
        make().map_err(|errno| failed("make a file in", TEMPORARY, errno))
    }

    /// Makes a temporary file the object `key`, if the condition holds.
    pub(super) fn commit(
        &self,
        mut temporary: Temporary,
        key: &ObjectKey,
        attributes: Attributes,
        condition: &Condition,
    ) -> Result<Written> {
        let path = writable(key)?;
        let because = |errno| failed("write", key.as_str(), errno);
        temporary.stamp().map_err(because)?;
        self.tree.write_attributes(temporary.file.as_fd(), key, attributes)?;
        temporary.file.sync_all().map_err(|error| failed_io("write", key.as_str(), error))?;
        let renamed = self.rename(&mut temporary, key, path, condition);
        let version = fs::fstat(&temporary.file).map(|stat| Version::of(&stat)).map_err(because)?;
        if let Err(error) = renamed {
            self.tree.forget_attributes(key, &version);
            return Err(error);
        }
        Ok(Written { etag: version.etag(), last_modified: Some(version.last_modified()) })
    }

    fn rename(
        &self,
        temporary: &mut Temporary,
        key: &ObjectKey,
        path: &str,
        condition: &Condition,
    ) -> Result<()> {
        let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
        let because = |errno| failed("write", key.as_str(), errno);
        let _committing = self.commit.lock();
        let before = self.tree.version(path).map_err(because)?;
        match condition {
            Condition::IfMatch(wanted) if before.map(|v| v.etag()).as_ref() != Some(wanted) => {
                return Err(failed_condition(key));
            }
            Condition::IfAbsent if before.is_some() => return Err(failed_condition(key)),
            _ => {}
        }
        let mut tries = 0;
        let directory = loop {
            let directory = self.tree.make_directory(parent).map_err(because)?;
            match name_it(temporary, &directory, name, *condition == Condition::IfAbsent) {
                Ok(()) => break directory,
                Err(Errno::EXIST) if *condition == Condition::IfAbsent => {
                    return Err(failed_condition(key));
                }
                // Another program may have removed the directory as empty.
                Err(Errno::NOENT) if tries < DIRECTORY_RACES => tries += 1,
                // An empty directory holds no objects: it makes room.
                Err(Errno::ISDIR | Errno::EXIST | Errno::NOTEMPTY)
                    if tries < DIRECTORY_RACES
                        && fs::unlinkat(&directory, name, AtFlags::REMOVEDIR).is_ok() =>
                {
                    tries += 1;
                }
                Err(errno) => return Err(because(errno)),
            }
        };
        Tree::sync_directory(&directory);
        if let Some(before) = before {
            self.tree.forget_attributes(key, &before);
        }
        Ok(())
    }

    pub(super) fn copy(
        &self,
        from: &ObjectKey,
        to: &ObjectKey,
        options: CopyOptions,
    ) -> Result<Written> {
        writable(to)?;
        let source = self.open_object(from)?;
        if options.source_if_match.as_ref().is_some_and(|wanted| *wanted != source.meta.etag) {
            return Err(failed_condition(from));
        }
        let temporary = self.temporary()?;
        append(&source.file, source.meta.size, &temporary.file)
            .map_err(|error| failed_io("copy", from.as_str(), error))?;
        let now = fs::fstat(&source.file).map_err(|errno| failed("stat", from.as_str(), errno))?;
        if source.version.has_other_bytes_in(&Version::of(&now)) {
            let context = format!("`{from}` changed while it was copied");
            return Err(Error::new(ErrorKind::Unavailable, context));
        }
        let kept = || source.meta.attributes.as_deref().cloned().unwrap_or_default();
        let attributes = options.attributes.unwrap_or_else(kept);
        self.commit(temporary, to, attributes, &options.condition)
    }

    pub(super) fn delete(&self, key: &ObjectKey, if_match: Option<&ETag>) -> Result<()> {
        if let Some(path) = directory_of(key) {
            return self.delete_marker(key, path, if_match);
        }
        let because = |errno| failed("delete", key.as_str(), errno);
        let absent = || if if_match.is_some() { Err(failed_condition(key)) } else { Ok(()) };
        let Some(path) = readable(key.as_str()) else { return absent() };
        let _committing = self.commit.lock();
        let Some(version) = self.tree.version(path).map_err(because)? else { return absent() };
        if if_match.is_some_and(|wanted| *wanted != version.etag()) {
            return Err(failed_condition(key));
        }
        let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
        let directory = self.tree.directory(parent).map_err(because)?;
        match fs::unlinkat(&directory, name, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::NOENT) => return absent(),
            Err(errno) => return Err(because(errno)),
        }
        self.tree.forget_attributes(key, &version);
        // Prefixes without objects do not exist in a bucket.
        self.remove_empty(directory, parent);
        Ok(())
    }
}

/// Renames a temporary file; over nothing when `absent`.
fn name_it(
    temporary: &mut Temporary,
    directory: &OwnedFd,
    name: &str,
    absent: bool,
) -> Result<(), Errno> {
    let Some(old) = temporary.name.clone() else { return Err(Errno::NOENT) };
    let from = &temporary.directory;
    if absent {
        match fs::renameat_with(from, &*old, directory, name, RenameFlags::NOREPLACE) {
            // NFS and some others cannot; a second link is as exclusive.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                fs::linkat(from, &*old, directory, name, AtFlags::empty())?;
                fs::unlinkat(from, &*old, AtFlags::empty())?;
            }
            other => other?,
        }
    } else {
        fs::renameat(from, &*old, directory, name)?;
    }
    temporary.name = None;
    Ok(())
}

/// Appends a whole file to another, by sharing extents or within the kernel where that is possible.
pub(super) fn append(from: &File, size: u64, to: &File) -> std::io::Result<()> {
    let (mut read_at, mut left) = (0u64, size);
    while left > 0 {
        // At most 1 GiB at a time: the kernel takes no more than 2.
        let step = usize::try_from(left.min(1 << 30)).expect("1 GiB fits");
        match fs::copy_file_range(from, Some(&mut read_at), to, None, step) {
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(copied) => left -= copied as u64,
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::BADF) => {
                return append_bytes(from, read_at, left, to);
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn append_bytes(
    from: &File,
    mut read_at: u64,
    mut left: u64,
    mut to: &File,
) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; WRITE_BYTES];
    while left > 0 {
        let piece = &mut buffer[..WRITE_BYTES.min(usize::try_from(left).unwrap_or(WRITE_BYTES))];
        from.read_exact_at(piece, read_at)?;
        to.write_all(piece)?;
        read_at += piece.len() as u64;
        left -= piece.len() as u64;
    }
    Ok(())
}
