//! Attributes of files: in an extended attribute, or beside the file where there is none.
//!
//! Invariant: attributes belong to one version. In an extended attribute they move and vanish with
//! the inode; in a file of their own its name holds the version. A file that some other program
//! wrote has none.

use std::os::fd::BorrowedFd;

use md5::{Digest, Md5};
use rustix::fs::{self, AtFlags, Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use store::{Attributes, ObjectKey, Result};

use super::tree::{Tree, Version};
use super::{failed, failed_io};

/// The extended attribute: one, so that a version has all of its attributes or none.
const NAME: &str = "user.warpdrive.attributes";

/// Where attributes lie for which the file system has no room.
const DIRECTORY: &str = ".warpdrive/attributes";

/// Longest text of attributes: 64 KiB is what Linux allows an extended attribute. S3 allows 8 KiB.
const MAX_BYTES: usize = 64 * 1024;

/// How attributes are written down; the field names are a format.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub(super) struct Stored {
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_control: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_disposition: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_encoding: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_language: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    user: std::collections::BTreeMap<String, String>,
}

impl From<Attributes> for Stored {
    fn from(a: Attributes) -> Self {
        Self {
            content_type: a.content_type,
            cache_control: a.cache_control,
            content_disposition: a.content_disposition,
            content_encoding: a.content_encoding,
            content_language: a.content_language,
            expires: a.expires,
            user: a.user,
        }
    }
}

impl From<Stored> for Attributes {
    fn from(s: Stored) -> Self {
        Self {
            content_type: s.content_type,
            cache_control: s.cache_control,
            content_disposition: s.content_disposition,
            content_encoding: s.content_encoding,
            content_language: s.content_language,
            expires: s.expires,
            user: s.user,
        }
    }
}

/// The file of a version's attributes. Rename, which happens after it is written, changes neither
/// inode nor modification time.
fn file_name(key: &ObjectKey, version: &Version) -> String {
    let mut digest = Md5::new();
    digest.update(version.inode.to_be_bytes());
    digest.update(version.modified_ns.to_be_bytes());
    digest.update(version.size.to_be_bytes());
    digest.update(key.as_str());
    hex::encode(digest.finalize())
}

impl Tree {
    /// Attributes of an open file; none where nothing readable was attached.
    pub(super) fn read_attributes(
        &self,
        file: BorrowedFd<'_>,
        key: &ObjectKey,
        version: &Version,
    ) -> Attributes {
        let text = self.extended_attribute(file).or_else(|| self.attribute_file(key, version));
        let stored = text.and_then(|text| serde_json::from_slice::<Stored>(&text).ok());
        stored.unwrap_or_default().into()
    }

    fn extended_attribute(&self, file: BorrowedFd<'_>) -> Option<Vec<u8>> {
        if self.nfs {
            return None;
        }
        let mut small = [0; 1024];
        match fs::fgetxattr(file, NAME, &mut small) {
            Ok(length) => Some(small[..length].to_vec()),
            Err(Errno::RANGE) => {
                let mut large = vec![0; MAX_BYTES];
                let length = fs::fgetxattr(file, NAME, &mut large[..]).ok()?;
                large.truncate(length);
                Some(large)
            }
            Err(_) => None,
        }
    }

    fn attribute_file(&self, key: &ObjectKey, version: &Version) -> Option<Vec<u8>> {
        let path = format!("{DIRECTORY}/{}", file_name(key, version));
        let file = std::fs::File::from(self.open_file(&path).ok()?);
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut std::io::Read::take(file, MAX_BYTES as u64), &mut text)
            .ok()?;
        Some(text)
    }

    /// Attaches attributes to a file that has its final bytes and modification time, but not yet
    /// its name.
    pub(super) fn write_attributes(
        &self,
        file: BorrowedFd<'_>,
        key: &ObjectKey,
        attributes: Attributes,
    ) -> Result<()> {
        if attributes.is_empty() {
            return Ok(());
        }
        let text = serde_json::to_vec(&Stored::from(attributes))
            .expect("attributes are texts under texts");
        if text.len() > MAX_BYTES {
            let context =
                format!("attributes of `{key}` have {} bytes, at most {MAX_BYTES} fit", text.len());
            return Err(store::Error::new(store::ErrorKind::InvalidInput, context));
        }
        if !self.nfs {
            match fs::fsetxattr(file, NAME, &text, XattrFlags::empty()) {
                Ok(()) => return Ok(()),
                // No extended attributes here, or no room in them.
                Err(
                    Errno::OPNOTSUPP | Errno::NOSPC | Errno::TOOBIG | Errno::RANGE | Errno::PERM,
                ) => {}
                Err(errno) => return Err(failed("set attributes of", key.as_str(), errno)),
            }
        }
        let stat = fs::fstat(file).map_err(|errno| failed("stat", key.as_str(), errno))?;
        let name = file_name(key, &Version::of(&stat));
        let write = || -> std::io::Result<()> {
            let directory = self.make_directory(DIRECTORY)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
            let file = fs::openat(&directory, &*name, flags, Mode::from_raw_mode(0o666))?;
            let mut file = std::fs::File::from(file);
            std::io::Write::write_all(&mut file, &text)?;
            file.sync_all()
        };
        write().map_err(|error| failed_io("write attributes of", key.as_str(), error))
    }

    /// Removes the attribute file of a version that is gone. Best effort: one that is left
    /// belongs to no file.
    pub(super) fn forget_attributes(&self, key: &ObjectKey, version: &Version) {
        if let Ok(directory) = self.directory(DIRECTORY) {
            let _ = fs::unlinkat(&directory, file_name(key, version), AtFlags::empty());
        }
    }
}
