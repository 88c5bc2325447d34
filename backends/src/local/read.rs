//! Reading a file as an object.
//!
//! Invariant: bytes that are yielded were read before the file changed: its version is checked
//! after each piece is read and before it is given away.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use rustix::fs::{self, FileType};
use rustix::io::Errno;
use store::{ByteStream, Error, ErrorKind, ObjectKey, ObjectMeta, Result};

use super::marker::directory_of;
use super::tree::{Version, readable};
use super::{Shared, blocking, failed, failed_io, not_found};

/// Bytes of one read: large enough that the way to a blocking thread costs nothing beside it.
const PIECE_BYTES: u64 = 1024 * 1024;

/// An open object.
pub(super) struct Object {
    pub(super) file: File,
    pub(super) version: Version,
    pub(super) meta: ObjectMeta,
}

impl Shared {
    pub(super) fn open_object(&self, key: &ObjectKey) -> Result<Object> {
        if let Some(path) = directory_of(key) {
            return self.open_marker(key, path);
        }
        let path = readable(key.as_str()).ok_or_else(|| not_found(key))?;
        let file = match self.tree.open_file(path) {
            Ok(file) => file,
            // A file where a directory would have to be: there is no such object either.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::NXIO) => return Err(not_found(key)),
            Err(errno) => return Err(failed("open", key.as_str(), errno)),
        };
        let stat = fs::fstat(&file).map_err(|errno| failed("stat", key.as_str(), errno))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(not_found(key));
        }
        let version = Version::of(&stat);
        let attributes = self.tree.read_attributes(file.as_fd(), key, &version);
        let meta = ObjectMeta {
            size: version.size,
            etag: version.etag(),
            last_modified: version.last_modified(),
            attributes: Some(Arc::new(attributes)),
        };
        Ok(Object { file: file.into(), version, meta })
    }
}

/// The bytes of a range, in pieces.
pub(super) fn body(object: Object, key: ObjectKey, range: Range<u64>) -> ByteStream {
    let state = (Arc::new(object), key, range);
    futures::stream::try_unfold(state, |(object, key, range)| async move {
        if range.is_empty() {
            return Ok(None);
        }
        let piece = range.start..range.end.min(range.start + PIECE_BYTES);
        let (file, name, wanted) = (Arc::clone(&object), key.clone(), piece.clone());
        let bytes = blocking(move || read_piece(&file, &name, wanted)).await?;
        Ok(Some((bytes, (object, key, piece.end..range.end))))
    })
    .boxed()
}

fn read_piece(object: &Object, key: &ObjectKey, piece: Range<u64>) -> Result<Bytes> {
    let changed = || {
        let context = format!("`{key}` changed while it was read");
        Error::new(ErrorKind::PreconditionFailed, context)
    };
    let mut bytes = BytesMut::zeroed((piece.end - piece.start) as usize);
    object.file.read_exact_at(&mut bytes, piece.start).map_err(|error| {
        // The file is shorter than it was.
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            return changed();
        }
        failed_io("read", key.as_str(), error)
    })?;
    let now = fs::fstat(&object.file).map_err(|errno| failed("stat", key.as_str(), errno))?;
    if object.version.has_other_bytes_in(&Version::of(&now)) {
        return Err(changed());
    }
    Ok(bytes.freeze())
}
