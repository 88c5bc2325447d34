//! Multi-part uploads: a directory each, below `.warpdrive/uploads/`, so that they survive.
//!
//! Invariant: an upload belongs to the key that it was begun for. Its parts are files, each written
//! whole; completing it joins them in a temporary file that is then renamed.

use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};

use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use store::{
    Attributes, Body, Condition, ETag, Error, ErrorKind, ObjectKey, PartEntry, PartList, Result,
    UploadEntry, UploadId, UploadList, UploadListRequest, Written,
};

use super::attributes::Stored;
use super::tree::{Tree, Version, writable};
use super::write::append;
use super::{LocalStore, Shared, failed, failed_io};

const DIRECTORY: &str = ".warpdrive/uploads";

/// What an upload is for; written last, so that an upload without it was never begun.
const ABOUT: &str = "about.json";

/// Longest such file: a key, attributes and their quoting.
const MAX_ABOUT_BYTES: u64 = 256 * 1024;

/// Highest part number, as everywhere.
const MAX_PART_NUMBER: u16 = 10_000;

#[derive(Debug, Serialize, Deserialize)]
struct About {
    key: String,
    begun_ms: u64,
    attributes: Stored,
}

/// An upload that exists.
struct Upload {
    directory: OwnedFd,
    about: About,
}

fn part_name(number: u16) -> String {
    format!("part-{number:05}")
}

fn no_upload(key: &str, upload: &UploadId) -> Error {
    let id = upload.0.escape_debug();
    Error::new(ErrorKind::NoSuchUpload, format!("no upload `{id}` of `{key}`"))
}

impl LocalStore {
    pub(super) async fn write_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u16,
        body: Body,
    ) -> Result<PartEntry> {
        if !(1..=MAX_PART_NUMBER).contains(&number) {
            let context = format!("part number {number} is not within 1 to 10000");
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        let (wanted, id) = (key.clone(), upload.clone());
        let known = move |shared: &Shared| shared.upload(&wanted, &id).map(|found| found.directory);
        let directory = self.blocking(known).await?;
        let temporary = self.receive(key, body).await?;
        let (key, id) = (key.clone(), upload.clone());
        self.blocking(move |_| {
            let because = |errno| match errno {
                // Aborted or completed while the body came.
                Errno::NOENT => no_upload(key.as_str(), &id),
                errno => failed("write a part of", key.as_str(), errno),
            };
            let version =
                temporary.publish_part(&directory, &part_name(number)).map_err(because)?;
            Ok(entry(number, &version))
        })
        .await
    }
}

fn entry(number: u16, version: &Version) -> PartEntry {
    PartEntry {
        number,
        etag: version.etag(),
        size: version.size,
        last_modified: Some(version.last_modified()),
    }
}

impl Shared {
    pub(super) fn begin_upload(&self, key: &ObjectKey, attributes: Attributes) -> Result<UploadId> {
        writable(key)?;
        let id = format!("{:032x}", rand::random::<u128>());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let about = About {
            key: key.to_string(),
            begun_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            attributes: attributes.into(),
        };
        let text = serde_json::to_vec(&about).expect("texts and numbers");
        let begin = || -> std::io::Result<()> {
            let directory = self.tree.make_directory(&format!("{DIRECTORY}/{id}"))?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = fs::openat(&directory, ABOUT, flags, Mode::from_raw_mode(0o666))?;
            let mut file = std::fs::File::from(file);
            std::io::Write::write_all(&mut file, &text)?;
            file.sync_all()?;
            Tree::sync_directory(&directory);
            Ok(())
        };
        begin().map_err(|error| failed_io("begin an upload of", key.as_str(), error))?;
        Ok(UploadId(id.into()))
    }

    /// An upload by its id, whatever its key.
    fn find_upload(&self, id: &str) -> Result<Option<Upload>> {
        let known = id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
        if !known {
            return Ok(None);
        }
        let path = format!("{DIRECTORY}/{id}");
        let directory = match self.tree.directory(&path) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(errno) => return Err(failed("open upload", id, errno)),
        };
        let file = match self.tree.open_file(&format!("{path}/{ABOUT}")) {
            Ok(file) => std::fs::File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(failed("open upload", id, errno)),
        };
        let mut text = Vec::new();
        let mut file = std::io::Read::take(file, MAX_ABOUT_BYTES);
        std::io::Read::read_to_end(&mut file, &mut text)
            .map_err(|error| failed_io("read upload", id, error))?;
        // One that cannot be read was cut short by a crash while it was begun.
        Ok(serde_json::from_slice(&text).ok().map(|about| Upload { directory, about }))
    }

    fn upload(&self, key: &ObjectKey, id: &UploadId) -> Result<Upload> {
        let found = self.find_upload(&id.0)?.filter(|upload| upload.about.key == key.as_str());
        found.ok_or_else(|| no_upload(key.as_str(), id))
    }

    fn part(&self, id: &UploadId, upload: &Upload, number: u16) -> Result<Option<Version>> {
        let name = part_name(number);
        let path = format!("{DIRECTORY}/{}/{name}", id.0);
        let found = self.tree.version_at(std::os::fd::AsFd::as_fd(&upload.directory), &name, &path);
        found.map_err(|errno| failed("look at a part of", &upload.about.key, errno))
    }

    pub(super) fn complete(
        &self,
        key: &ObjectKey,
        id: &UploadId,
        parts: &[(u16, ETag)],
        condition: &Condition,
    ) -> Result<Written> {
        let upload = self.upload(key, id)?;
        if parts.is_empty() || !parts.windows(2).all(|pair| pair[0].0 < pair[1].0) {
            let context = "parts are not given in ascending order";
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        let mut sizes = Vec::with_capacity(parts.len());
        for (number, etag) in parts {
            let found = self.part(id, &upload, *number)?.filter(|v| v.etag() == *etag);
            let Some(version) = found else {
                let context = format!("part {number} with tag {etag} was not uploaded");
                return Err(Error::new(ErrorKind::InvalidPart, context));
            };
            sizes.push(version.size);
        }
        let temporary = self.temporary()?;
        for ((number, _), size) in parts.iter().zip(sizes) {
            let path = format!("{DIRECTORY}/{}/{}", id.0, part_name(*number));
            let part = self.tree.open_file(&path).map_err(|errno| match errno {
                Errno::NOENT => no_upload(key.as_str(), id),
                errno => failed("read a part of", key.as_str(), errno),
            })?;
            append(&part.into(), size, &temporary.file)
                .map_err(|error| failed_io("join the parts of", key.as_str(), error))?;
        }
        let written = self.commit(temporary, key, upload.about.attributes.into(), condition)?;
        if let Err(error) = self.remove_upload(id) {
            tracing::warn!(%error, "a completed upload was not removed");
        }
        Ok(written)
    }

    pub(super) fn abort(&self, key: &ObjectKey, id: &UploadId) -> Result<()> {
        self.upload(key, id)?;
        self.remove_upload(id)
    }

    /// Removes an upload: first what makes it one, then its parts.
    fn remove_upload(&self, id: &UploadId) -> Result<()> {
        let remove = || -> Result<(), Errno> {
            let directory = self.tree.directory(&format!("{DIRECTORY}/{}", id.0))?;
            fs::unlinkat(&directory, ABOUT, AtFlags::empty())?;
            for entry in fs::Dir::read_from(&directory)? {
                let entry = entry?;
                let name = entry.file_name();
                if !matches!(name.to_bytes(), b"." | b"..") {
                    fs::unlinkat(&directory, name, AtFlags::empty())?;
                }
            }
            let above = self.tree.directory(DIRECTORY)?;
            fs::unlinkat(&above, &*id.0, AtFlags::REMOVEDIR)
        };
        remove().map_err(|errno| failed("remove upload", &id.0, errno))
    }

    pub(super) fn parts(
        &self,
        key: &ObjectKey,
        id: &UploadId,
        after: Option<u16>,
        max_parts: usize,
    ) -> Result<PartList> {
        let upload = self.upload(key, id)?;
        let because = |errno| failed("list parts of", key.as_str(), errno);
        let mut numbers = Vec::new();
        for entry in fs::Dir::read_from(&upload.directory).map_err(because)? {
            let entry = entry.map_err(because)?;
            let name = entry.file_name().to_str().unwrap_or_default();
            let number = name.strip_prefix("part-").and_then(|n| n.parse::<u16>().ok());
            numbers.extend(number.filter(|n| *n > after.unwrap_or(0)));
        }
        numbers.sort_unstable();
        let more = numbers.len() > max_parts;
        numbers.truncate(max_parts);
        let mut parts = Vec::with_capacity(numbers.len());
        for number in numbers {
            let found = self.part(id, &upload, number)?;
            parts.extend(found.map(|version| entry(number, &version)));
        }
        let last = parts.last().map(|part| part.number);
        Ok(PartList { parts, next: last.filter(|_| more) })
    }

    pub(super) fn uploads(&self, request: &UploadListRequest) -> Result<UploadList> {
        let because = |errno| failed("list uploads in", DIRECTORY, errno);
        let directory = match self.tree.directory(DIRECTORY) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => return Ok(UploadList::default()),
            Err(errno) => return Err(because(errno)),
        };
        let mut uploads = Vec::new();
        for entry in fs::Dir::read_from(&directory).map_err(because)? {
            let entry = entry.map_err(because)?;
            let id = entry.file_name().to_str().unwrap_or_default();
            let Some(Upload { about, .. }) = self.find_upload(id)? else { continue };
            let wanted = match &request.after {
                None => true,
                Some((key, None)) => about.key.as_str() > key.as_str(),
                Some((key, Some(after))) => {
                    (about.key.as_str(), id) > (key.as_str(), after.as_str())
                }
            };
            let Ok(key) = ObjectKey::new(about.key) else { continue };
            if wanted && key.as_str().starts_with(&request.prefix) {
                let initiated = crate::calendar::after_1970(Duration::from_millis(about.begun_ms));
                let upload = UploadId(id.into());
                uploads.push(UploadEntry { key, upload, initiated: Some(initiated) });
            }
        }
        uploads.sort_by(|a, b| (&a.key, &a.upload).cmp(&(&b.key, &b.upload)));
        let truncated = uploads.len() > request.max_uploads;
        uploads.truncate(request.max_uploads);
        Ok(UploadList { uploads, truncated })
    }
}
