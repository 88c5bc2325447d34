//! Directories as keys: `d/` is the directory `d`, an object without bytes.
//!
//! Invariant: only empty directories are made and removed, never what lies in one. A directory that
//! exists can be read as its key; it is listed only where it is empty, because everything else that
//! it holds is listed below it. It refuses bytes and keeps no attributes.

use std::os::fd::OwnedFd;

use rustix::fs::{self, AtFlags, Dir};
use rustix::io::Errno;
use store::{Attributes, Body, Condition, ETag, ErrorKind, ObjectKey, ObjectMeta, Result, Written};

use super::read::Object;
use super::tree::{Tree, Version, readable};
use super::write::DIRECTORY_RACES;
use super::{LocalStore, Shared, failed, failed_condition, not_found};

/// The path of the directory that a key stands for; `None` where it stands for none.
pub(super) fn directory_of(key: &ObjectKey) -> Option<&str> {
    key.as_str().strip_suffix('/').and_then(readable)
}

impl LocalStore {
    /// Makes the directory `path` that `key` stands for, once an empty body has come to its end.
    pub(super) async fn write_directory(
        &self,
        key: &ObjectKey,
        body: Body,
        condition: Condition,
    ) -> Result<Written> {
        body.collect(0).await?;
        let key = key.clone();
        self.blocking(move |shared| shared.make_marker(&key, &condition)).await
    }
}

impl Shared {
    fn make_marker(&self, key: &ObjectKey, condition: &Condition) -> Result<Written> {
        let because = |errno| failed("make directory", key.as_str(), errno);
        let path = directory_of(key).ok_or_else(|| not_found(key))?;
        let _committing = self.commit.lock();
        let before = match self.open_object(key) {
            Ok(object) => Some(object.version),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        match condition {
            Condition::IfMatch(wanted) if before.map(|v| v.etag()).as_ref() != Some(wanted) => {
                return Err(failed_condition(key));
            }
            Condition::IfAbsent if before.is_some() => return Err(failed_condition(key)),
            _ => {}
        }
        let mut tries = 0;
        let directory = loop {
            match self.tree.make_directory(path) {
                // Another program may have removed a directory on the way as empty.
                Err(Errno::NOENT) if tries < DIRECTORY_RACES => tries += 1,
                other => break other.map_err(because)?,
            }
        };
        Tree::sync_directory(&directory);
        let version = Version::of(&fs::fstat(&directory).map_err(because)?);
        Ok(Written { etag: version.etag(), last_modified: Some(version.last_modified()) })
    }

    /// The directory `path` as the object `key`.
    pub(super) fn open_marker(&self, key: &ObjectKey, path: &str) -> Result<Object> {
        let directory = match self.tree.directory(path) {
            Ok(directory) => directory,
            // Links to directories are not followed.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Err(not_found(key)),
            Err(errno) => return Err(failed("open", key.as_str(), errno)),
        };
        let stat = fs::fstat(&directory).map_err(|errno| failed("stat", key.as_str(), errno))?;
        let version = Version::of(&stat);
        let meta = ObjectMeta {
            size: version.size,
            etag: version.etag(),
            last_modified: version.last_modified(),
            attributes: Some(Attributes::default().into()),
        };
        Ok(Object { file: directory.into(), version, meta })
    }

    /// Removes the directory `path` where it is empty, and those above it that are empty then.
    pub(super) fn delete_marker(
        &self,
        key: &ObjectKey,
        path: &str,
        if_match: Option<&ETag>,
    ) -> Result<()> {
        let because = |errno| failed("delete", key.as_str(), errno);
        let _committing = self.commit.lock();
        let found = match self.open_marker(key, path) {
            Err(error) if error.kind() == ErrorKind::NotFound && if_match.is_none() => {
                return Ok(());
            }
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(failed_condition(key)),
            other => other?,
        };
        if if_match.is_some_and(|wanted| *wanted != found.meta.etag) {
            return Err(failed_condition(key));
        }
        let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
        let above = self.tree.directory(parent).map_err(because)?;
        match fs::unlinkat(&above, name, AtFlags::REMOVEDIR) {
            Ok(()) => self.remove_empty(above, parent),
            // What lies in it keeps it.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT) => {}
            Err(errno) => return Err(because(errno)),
        }
        Ok(())
    }

    /// After something in `directory` (at `path`) was deleted: makes that durable, and removes the
    /// directory and those above it as far as they are empty.
    pub(super) fn remove_empty(&self, mut directory: OwnedFd, mut path: &str) {
        while path != "." {
            let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
            let Ok(above) = self.tree.directory(parent) else { break };
            if fs::unlinkat(&above, name, AtFlags::REMOVEDIR).is_err() {
                break;
            }
            (directory, path) = (above, parent);
        }
        Tree::sync_directory(&directory);
    }

    /// The version of a directory (with its slash) that had no names in it, if it is still there
    /// and empty when no write of this process is half done.
    pub(super) fn lasting_empty(&self, prefix: &str) -> Result<Option<Version>> {
        let because = |errno| failed("list", prefix, errno);
        let _committing = self.commit.lock();
        let directory = match self.tree.directory(prefix) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS | Errno::PERM) => {
                return Ok(None);
            }
            other => other.map_err(because)?,
        };
        for entry in Dir::read_from(&directory).map_err(because)? {
            match entry {
                Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
                // Removed meanwhile.
                Ok(_) | Err(Errno::NOENT) => return Ok(None),
                Err(errno) => return Err(because(errno)),
            }
        }
        Ok(Some(Version::of(&fs::fstat(&directory).map_err(because)?)))
    }
}
