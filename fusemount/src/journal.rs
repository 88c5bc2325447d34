//! What the kernel knows of this mount, on disk, so that the next worker knows it too.
//!
//! Invariant: what an answer reveals (a node, an open, its mode) is written before it is sent, in the
//! order in which it happened; written means `write(2)`, which a killed process survives and a
//! power cut need not: then the mount is gone as well. A journal belongs to one mount, and every
//! other begins anew. A cut or broken record costs what it says and nothing else.
//!
//! Counts may err, and must do so on the safe side. A lookup or open that is counted and not known to
//! the kernel keeps an entry for too long; one that is not counted would be ESTALE or EIO in a
//! program. Therefore lookups, opens and releases are written before their answer, and only what the
//! kernel takes back may be written later. A request whose answer died with the worker comes again
//! with its old number and bit 63 set; the last numbers are in the journal, so that it is not
//! counted twice.
//!
//! It refuses to stop the mount: what cannot be written is kept in memory, up to
//! [`MAX_PENDING_BYTES`], and tried again; beyond that the mount goes on without surviving.

mod image;
mod record;
mod resent;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use twox_hash::XxHash3_64;

pub(crate) use image::{Image, Named, NodeImage};
use record::Decoder;
pub(crate) use record::{Record, Request};
pub(crate) use resent::{Resent, Unique};

/// The name of the file in the journal's directory.
const NAME: &str = "nodes.journal";

/// Format and its version; another one is begun anew.
const MAGIC: [u8; 8] = *b"wdnodes1";

/// The same of a journal that does not say all that happened on its mount.
const PARTIAL_MAGIC: [u8; 8] = *b"wdnodep1";

/// Magic, mount id, when the mount began in nanoseconds since 1970, checksum of these.
const HEADER_BYTES: usize = 8 + 16 + 8 + 8;

/// Below this size a journal is not worth shortening: some 50,000 opens.
const SHORTEN_BYTES: u64 = 4 << 20;

/// A journal of this many times its shortest form is shortened.
const SHORTEN_FACTOR: u64 = 3;

/// What is kept while the disk takes nothing: some 100,000 lookups.
const MAX_PENDING_BYTES: usize = 8 << 20;

/// What is noted is written at this size at the latest.
const MAX_DEFERRED_BYTES: usize = 64 << 10;

/// How long a disk that took nothing is left alone.
const RETRY_EVERY: Duration = Duration::from_millis(200);

/// How long the worker before may take to end: the kernel closes its files one by one. After that it
/// is left behind with its file, which is as safe, and costs writing another one.
const LOCK_PATIENCE: Duration = Duration::from_millis(50);

/// Pieces in which a journal is read and copied.
const PIECE_BYTES: usize = 1 << 20;

/// What may be copied while answers wait: some 20 us.
const CATCH_UP_BYTES: u64 = 64 << 10;

#[derive(Debug)]
struct Writer {
    file: File,
    /// Bytes in the file.
    size: u64,
    /// Records that are not in the file, in order.
    pending: Vec<u8>,
    /// No use in trying before.
    retry: Option<Instant>,
    /// True once records were thrown away: the file is of no use to anybody.
    given_up: bool,
    /// Size at which it is shortened.
    shorten_at: u64,
}

/// The journal of a mount, open for writing.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    header: [u8; HEADER_BYTES],
    writer: Mutex<Writer>,
    /// Held by the one who shortens.
    shortening: Mutex<()>,
}

/// What [`Journal::open`] found.
#[derive(Debug, Clone)]
pub(crate) struct Past {
    /// What the worker before left, empty for a new mount.
    pub(crate) image: Image,
    /// When the mount began.
    pub(crate) began: SystemTime,
    /// False where something may be open of which `image` does not know, until the mount ends.
    pub(crate) complete: bool,
}

impl Default for Past {
    fn default() -> Self {
        Self { image: Image::default(), began: SystemTime::now(), complete: true }
    }
}

impl Journal {
    /// Opens the journal of a mount in a directory, which is made if need be. That of another mount
    /// is replaced. It may wait a moment for the worker before to end. `served` where there was one
    /// that the kernel has asked, so that a journal is missed if there is none.
    ///
    /// Errors are those of the file system: a mount can do without a journal.
    pub(crate) fn open(directory: &Path, mount: u128, served: bool) -> io::Result<(Self, Past)> {
        std::fs::create_dir_all(directory)?;
        remove_leftovers(directory);
        let path = directory.join(NAME);
        let (image, found) = match read(&path, mount) {
            Ok(Some((image, found))) => (image, Some(found)),
            Ok(None) => (Image::default(), None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (Image::default(), None),
            Err(error) => return Err(error),
        };
        let began = found.as_ref().map_or_else(SystemTime::now, |found| found.began);
        let complete = !served || found.as_ref().is_some_and(|found| found.complete);
        let header = header(mount, began, complete);
        // A file that lacks something and does not say so is replaced by one that does.
        let says_so = |found: &Found| complete || found.header == header;
        let own = found.as_ref().filter(|found| found.locked && says_so(found));
        let (file, size) = if let Some(found) = own {
            found.file.set_len(found.end)?;
            (found.file.try_clone()?, found.end)
        } else {
            // Of another mount, or the worker before hangs: it writes on into a file without a name.
            begin(&path, &header, &image)?
        };
        let shorten_at = SHORTEN_BYTES.max(size.saturating_mul(2));
        let writer =
            Writer { file, size, pending: Vec::new(), retry: None, given_up: false, shorten_at };
        let (writer, shortening) = (Mutex::new(writer), Mutex::default());
        Ok((Self { path, header, writer, shortening }, Past { image, began, complete }))
    }

    /// Notes records, in the order of the calls; those of one call stay together. They are written by
    /// the next [`Self::flush`].
    pub(crate) fn note(&self, records: &[Record]) {
        let mut writer = self.writer.lock();
        if writer.add(records) && writer.pending.len() > MAX_DEFERRED_BYTES {
            writer.flush();
        }
    }

    /// Writes what is noted: to be called before the answer that reveals it.
    pub(crate) fn flush(&self) {
        self.writer.lock().flush();
    }

    /// Writes what waits, and shortens the journal when most of it says nothing any more: to be
    /// called each second, where waiting for the disk does no harm.
    pub(crate) fn maintain(&self) {
        let due = {
            let mut writer = self.writer.lock();
            writer.flush();
            !writer.given_up && writer.pending.is_empty() && writer.size >= writer.shorten_at
        };
        if due && let Err(error) = self.shorten() {
            let mut writer = self.writer.lock();
            writer.shorten_at = writer.size.saturating_mul(2);
            tracing::warn!(%error, path = %self.path.display(), bytes = writer.size, "cannot shorten the journal of nodes; it goes on growing");
        }
    }

    /// Writes the journal's image into a new file while the old one goes on, then what came in the
    /// meantime, and renames.
    fn shorten(&self) -> io::Result<()> {
        let _turn = self.shortening.lock();
        let (old, end) = {
            let mut writer = self.writer.lock();
            writer.flush();
            if !writer.pending.is_empty() {
                // What is written may end within what belongs together.
                return Err(io::ErrorKind::StorageFull.into());
            }
            (writer.file.try_clone()?, writer.size)
        };
        let mut image = Image::default();
        read_records(&old, end, |record| image.apply(record))?;
        image.prune();
        let temporary = temporary(&self.path);
        let swapped = (|| {
            let mut new = write_image(&temporary, &self.header, &image)?;
            let shortest = new.metadata()?.len();
            let mut copied = end;
            loop {
                let now = self.writer.lock().size;
                if now - copied <= CATCH_UP_BYTES {
                    break;
                }
                copied = copy(&old, &mut new, copied..now)?;
            }
            let mut writer = self.writer.lock();
            copy(&old, &mut new, copied..writer.size)?;
            if writer.given_up || !is_at(&old, &self.path) {
                return Err(io::Error::other("another worker has replaced it, or it was given up"));
            }
            std::fs::rename(&temporary, &self.path)?;
            writer.size = new.metadata()?.len();
            writer.file = new;
            writer.shorten_at = SHORTEN_BYTES.max(shortest.saturating_mul(SHORTEN_FACTOR));
            Ok(())
        })();
        if swapped.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        swapped
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.writer.lock().flush();
    }
}

impl Writer {
    /// Adds records to what waits. False when nothing is written any more.
    fn add(&mut self, records: &[Record]) -> bool {
        if !self.given_up {
            for record in records {
                record.encode(&mut self.pending);
            }
        }
        !self.given_up
    }

    fn flush(&mut self) {
        if self.pending.is_empty() || self.retry.is_some_and(|retry| Instant::now() < retry) {
            return self.bound();
        }
        let mut written = 0;
        let outcome = loop {
            match self.file.write(&self.pending[written..]) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => written += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
            if written == self.pending.len() {
                break Ok(());
            }
        };
        self.size += written as u64;
        self.pending.drain(..written);
        match outcome {
            Ok(()) => {
                if self.retry.take().is_some() {
                    tracing::info!("the journal of nodes is written again");
                }
            }
            Err(error) => {
                if self.retry.is_none() {
                    tracing::warn!(%error, "cannot write the journal of nodes: what is open now would not survive this process");
                }
                self.retry = Some(Instant::now() + RETRY_EVERY);
                self.bound();
            }
        }
    }

    /// Gives up when too much waits.
    fn bound(&mut self) {
        if self.pending.len() > MAX_PENDING_BYTES {
            tracing::warn!("gave up the journal of nodes: make room on its disk, and mount anew");
            self.given_up = true;
            // So that the next worker does not take it for all that is open.
            let _ = self.file.set_len(0);
            self.pending = Vec::new();
        }
    }
}

/// A journal that was found.
struct Found {
    file: File,
    began: SystemTime,
    /// Where its last right record ends.
    end: u64,
    /// False when the worker before is still there.
    locked: bool,
    header: [u8; HEADER_BYTES],
    /// It says all that happened on its mount.
    complete: bool,
}

fn header(mount: u128, began: SystemTime, complete: bool) -> [u8; HEADER_BYTES] {
    let began = began.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let nanos = u64::try_from(began.as_nanos()).unwrap_or(0);
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(if complete { &MAGIC } else { &PARTIAL_MAGIC });
    header[8..24].copy_from_slice(&mount.to_le_bytes());
    header[24..32].copy_from_slice(&nanos.to_le_bytes());
    let sum = XxHash3_64::oneshot(&header[..32]);
    header[32..].copy_from_slice(&sum.to_le_bytes());
    header
}

/// The journal of a mount; `None` when it is of another one, or none at all.
fn read(path: &Path, mount: u128) -> io::Result<Option<(Image, Found)>> {
    let file = OpenOptions::new().read(true).append(true).open(path)?;
    let mut start = [0; HEADER_BYTES];
    match file.read_exact_at(&mut start, 0) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let nanos = u64::from_le_bytes([
        start[24], start[25], start[26], start[27], start[28], start[29], start[30], start[31],
    ]);
    let began = SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos);
    let complete = start.starts_with(&MAGIC);
    if start != header(mount, began, complete) {
        return Ok(None);
    }
    let until = Instant::now() + LOCK_PATIENCE;
    let locked = loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break true,
            Err(_) if Instant::now() >= until => break false,
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    // Another worker may have replaced it meanwhile, and nobody would read what is written here.
    let locked = locked && is_at(&file, path);
    let size = file.metadata()?.len();
    let mut image = Image::default();
    let (end, skipped) = read_records(&file, size, |record| image.apply(record))?;
    if skipped > 0 {
        tracing::warn!(path = %path.display(), bytes = skipped, "the journal of nodes is damaged: what these bytes said is lost");
    }
    image.prune();
    Ok(Some((
        image,
        Found { file, began, end, locked, header: start, complete: complete && skipped == 0 },
    )))
}

/// Feeds the records of a journal's first `size` bytes to `each`. Returns where the last one ends,
/// and how many bytes before it are none.
fn read_records(file: &File, size: u64, mut each: impl FnMut(Record)) -> io::Result<(u64, u64)> {
    let mut decoder = Decoder::default();
    let mut piece = vec![0; PIECE_BYTES];
    let mut at = HEADER_BYTES as u64;
    // What follows the last record is a record that was cut.
    let mut skipped = 0;
    let mut drain = |decoder: &mut Decoder, last: bool| {
        while let Some(record) = decoder.next(last) {
            skipped = decoder.skipped();
            each(record);
        }
    };
    while at < size {
        let wanted = usize::try_from(size - at).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
        let bytes = file.read_at(&mut piece[..wanted], at)?;
        if bytes == 0 {
            break;
        }
        decoder.push(&piece[..bytes]);
        at += bytes as u64;
        drain(&mut decoder, false);
    }
    drain(&mut decoder, true);
    Ok((HEADER_BYTES as u64 + decoder.end(), skipped))
}

/// A new journal that says what an image says, in the place of whatever is there.
fn begin(path: &Path, header: &[u8; HEADER_BYTES], image: &Image) -> io::Result<(File, u64)> {
    let temporary = temporary(path);
    let file = write_image(&temporary, header, image)?;
    let size = file.metadata()?.len();
    std::fs::rename(&temporary, path)?;
    Ok((file, size))
}

/// A locked file that says what an image says.
fn write_image(path: &Path, header: &[u8; HEADER_BYTES], image: &Image) -> io::Result<File> {
    let _ = std::fs::remove_file(path);
    let mut file = OpenOptions::new().read(true).append(true).create_new(true).open(path)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    let mut bytes = header.to_vec();
    for record in image.records() {
        record.encode(&mut bytes);
        if bytes.len() >= PIECE_BYTES {
            file.write_all(&bytes)?;
            bytes.clear();
        }
    }
    file.write_all(&bytes)?;
    Ok(file)
}

/// Appends a part of a file to another, and returns its end.
fn copy(from: &File, to: &mut File, part: std::ops::Range<u64>) -> io::Result<u64> {
    let mut piece = vec![0; PIECE_BYTES];
    let mut at = part.start;
    while at < part.end {
        let wanted = usize::try_from(part.end - at).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
        from.read_exact_at(&mut piece[..wanted], at)?;
        to.write_all(&piece[..wanted])?;
        at += wanted as u64;
    }
    Ok(at)
}

fn is_at(file: &File, path: &Path) -> bool {
    let same = || {
        let (ours, there) = (file.metadata().ok()?, std::fs::symlink_metadata(path).ok()?);
        Some(ours.ino() == there.ino() && ours.dev() == there.dev())
    };
    same().unwrap_or(false)
}

/// Where a journal is written before it takes the place of another. Each process has its own.
fn temporary(path: &Path) -> PathBuf {
    path.with_extension(format!("new.{}", std::process::id()))
}

/// Removes what a worker left that died while it wrote a new journal.
fn remove_leftovers(directory: &Path) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with("nodes.new.") {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests;
