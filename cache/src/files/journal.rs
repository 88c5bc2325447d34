//! What the file tier knows, written down as it comes to know it.
//!
//! Invariant: what [`Journal::append`] took is found by the next process, up to the first byte that did
//! not reach the file; a record is found whole or not at all. Compaction writes a new journal beside the
//! old one and renames it, so that at every instant one of them is complete. It refuses a journal of
//! another format or block size, and believes nothing that a checksum does not confirm.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use twox_hash::XxHash3_64;

use super::identity::{Identity, take_u32, take_u64};

/// What writes the journal; raised whenever a record, a checksum or a file's name changes.
const MAGIC: u64 = u64::from_le_bytes(*b"WDFILES\x01");

/// Seed of the records' checksums, so that bytes of something else are no records.
const SEED: u64 = MAGIC;

const HEADER_BYTES: u64 = 48;

/// Length and checksum before each record.
const FRAME_BYTES: usize = 12;

/// No record is longer: checksums of a file of 16 million blocks. A length beyond it is garbage, not a
/// reason to allocate.
const MAX_RECORD_BYTES: u32 = 160 << 20;

/// Bytes that are read or written at once.
const BUFFER_BYTES: usize = 1 << 20;

/// The journal's name in the tier's directory.
pub(super) const JOURNAL: &str = "journal";

/// The name under which the next journal is written.
pub(super) const JOURNAL_NEW: &str = "journal.new";

/// One thing to remember. `unique` is the second half of a file's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    /// A part was begun. `suspect` where it outlived a crash of the machine: what it held then is to be
    /// verified before it is believed.
    Begin { unique: u64, identity: Identity, suspect: bool },
    /// Blocks of a part were written: numbers and checksums.
    Blocks { id: u64, unique: u64, blocks: Vec<(u32, u64)> },
    /// A file is complete: its checksums, and the bytes that it takes on disk. `durable` where it had
    /// been written back before this was, `suspect` where it is to be verified before it is used.
    Whole {
        unique: u64,
        identity: Identity,
        allocated: u64,
        durable: bool,
        suspect: bool,
        sums: Box<[u64]>,
    },
    /// A file or a part is no more.
    Gone { id: u64, unique: u64 },
    /// Everything that was recorded below this offset of this journal survives a crash of the machine.
    Durable { upto: u64 },
    /// A suspect file was verified.
    Verified { id: u64, unique: u64 },
    /// The origin has, or has no more, the version of which there is a file: whether it may be used as
    /// what an object is. The time is that of the last confirmation, in seconds since 1970.
    Current { id: u64, unique: u64, confirmed: u64 },
}

impl Record {
    fn encode(&self, out: &mut Vec<u8>) {
        let mut named = |kind: u8, id: u64, unique: u64| {
            out.push(kind);
            out.extend_from_slice(&id.to_le_bytes());
            out.extend_from_slice(&unique.to_le_bytes());
        };
        match self {
            Self::Begin { unique, identity, suspect } => {
                named(1, u64::from(*suspect), *unique);
                identity.encode(out);
            }
            Self::Blocks { id, unique, blocks } => {
                named(2, *id, *unique);
                for (index, sum) in blocks {
                    out.extend_from_slice(&index.to_le_bytes());
                    out.extend_from_slice(&sum.to_le_bytes());
                }
            }
            Self::Whole { unique, identity, allocated, durable, suspect, sums } => {
                named(3, u64::from(*durable) | u64::from(*suspect) << 1, *unique);
                identity.encode(out);
                out.extend_from_slice(&allocated.to_le_bytes());
                for sum in sums {
                    out.extend_from_slice(&sum.to_le_bytes());
                }
            }
            Self::Gone { id, unique } => named(4, *id, *unique),
            Self::Durable { upto } => named(5, *upto, 0),
            Self::Verified { id, unique } => named(6, *id, *unique),
            Self::Current { id, unique, confirmed } => {
                named(7, *id, *unique);
                out.extend_from_slice(&confirmed.to_le_bytes());
            }
        }
    }

    fn decode(mut raw: &[u8]) -> Option<Self> {
        let (kind, rest) = raw.split_first()?;
        raw = rest;
        let (id, unique) = (take_u64(&mut raw)?, take_u64(&mut raw)?);
        let record = match kind {
            1 => {
                let identity = Identity::decode(&mut raw)?;
                Self::Begin { unique, identity, suspect: id & 1 != 0 }
            }
            2 => {
                let mut blocks = Vec::with_capacity(raw.len() / 12);
                while !raw.is_empty() {
                    blocks.push((take_u32(&mut raw)?, take_u64(&mut raw)?));
                }
                Self::Blocks { id, unique, blocks }
            }
            3 => {
                let identity = Identity::decode(&mut raw)?;
                let allocated = take_u64(&mut raw)?;
                let mut sums = Vec::with_capacity(raw.len() / 8);
                while !raw.is_empty() {
                    sums.push(take_u64(&mut raw)?);
                }
                let (durable, suspect) = (id & 1 != 0, id & 2 != 0);
                Self::Whole { unique, identity, allocated, durable, suspect, sums: sums.into() }
            }
            4 => Self::Gone { id, unique },
            5 => Self::Durable { upto: id },
            6 => Self::Verified { id, unique },
            7 => Self::Current { id, unique, confirmed: take_u64(&mut raw)? },
            _ => return None,
        };
        raw.is_empty().then_some(record)
    }

    fn frame(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; FRAME_BYTES]);
        self.encode(out);
        let (head, body) = out[start..].split_at_mut(FRAME_BYTES);
        head[..4].copy_from_slice(&(body.len() as u32).to_le_bytes());
        head[4..].copy_from_slice(&XxHash3_64::oneshot_with_seed(SEED, body).to_le_bytes());
    }
}

/// A journal that is written.
#[derive(Debug)]
pub(super) struct Journal {
    dir: PathBuf,
    file: File,
    len: u64,
    block_bytes: u64,
    boot: u128,
}

fn header(block_bytes: u64, boot: u128) -> [u8; HEADER_BYTES as usize] {
    let mut raw = [0; HEADER_BYTES as usize];
    raw[..8].copy_from_slice(&MAGIC.to_le_bytes());
    raw[8..16].copy_from_slice(&block_bytes.to_le_bytes());
    raw[16..32].copy_from_slice(&boot.to_le_bytes());
    let sum = XxHash3_64::oneshot_with_seed(SEED, &raw[..32]);
    raw[32..40].copy_from_slice(&sum.to_le_bytes());
    raw
}

/// Reads what a journal holds, in order, each record with the offset after it. Returns the boot that it
/// was written under and the offset after its last record, or `None` where it is no journal of this
/// format and block size.
pub(super) fn replay(
    dir: &Path,
    block_bytes: u64,
    mut each: impl FnMut(u64, Record),
) -> io::Result<Option<(u128, u64)>> {
    let mut file = match File::open(dir.join(JOURNAL)) {
        Ok(file) => BufReader::with_capacity(BUFFER_BYTES, file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut head = [0; HEADER_BYTES as usize];
    if !fill(&mut file, &mut head)? {
        return Ok(None);
    }
    let boot = u128::from_le_bytes(head[16..32].try_into().expect("16 bytes"));
    if head != header(block_bytes, boot) {
        return Ok(None);
    }
    let mut at = HEADER_BYTES;
    let mut frame = [0; FRAME_BYTES];
    let mut body = Vec::new();
    while fill(&mut file, &mut frame)? {
        let len = u32::from_le_bytes(frame[..4].try_into().expect("4 bytes"));
        let sum = u64::from_le_bytes(frame[4..].try_into().expect("8 bytes"));
        if len == 0 || len > MAX_RECORD_BYTES {
            break;
        }
        body.clear();
        (&mut file).take(u64::from(len)).read_to_end(&mut body)?;
        if body.len() < len as usize {
            break;
        }
        at += FRAME_BYTES as u64 + u64::from(len);
        // A record that rotted is left out. What follows it counts: at worst a file is missed, which is
        // found when it is opened, or is nobody's, and removed.
        if XxHash3_64::oneshot_with_seed(SEED, &body) == sum
            && let Some(record) = Record::decode(&body)
        {
            each(at, record);
        }
    }
    Ok(Some((boot, at)))
}

/// False where fewer bytes are left.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

impl Journal {
    /// Writes a new journal of `records` and puts it in the place of the old one.
    pub(super) fn rewrite(
        dir: &Path,
        block_bytes: u64,
        boot: u128,
        records: impl Iterator<Item = Record>,
    ) -> io::Result<Self> {
        let path = dir.join(JOURNAL_NEW);
        let mut options = OpenOptions::new();
        let mut file = options.create(true).truncate(true).read(true).write(true).open(&path)?;
        let mut buffer = header(block_bytes, boot).to_vec();
        let mut len = 0;
        for record in records {
            record.frame(&mut buffer);
            if buffer.len() >= BUFFER_BYTES {
                file.write_all(&buffer)?;
                len += buffer.len() as u64;
                buffer.clear();
            }
        }
        file.write_all(&buffer)?;
        len += buffer.len() as u64;
        // The rename must never become durable before the bytes.
        file.sync_data()?;
        fs::rename(&path, dir.join(JOURNAL))?;
        Ok(Self { dir: dir.to_owned(), file, len, block_bytes, boot })
    }

    /// Goes on with the journal that [`replay`] has read, from behind its last record.
    pub(super) fn reopen(dir: &Path, block_bytes: u64, boot: u128, len: u64) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(dir.join(JOURNAL))?;
        // What is torn is cut off, so that nothing of it is ever read as a part of what follows.
        file.set_len(len)?;
        Ok(Self { dir: dir.to_owned(), file, len, block_bytes, boot })
    }

    /// Adds a record. After an error the journal is as it was before.
    pub(super) fn append(&mut self, record: &Record) -> io::Result<()> {
        let mut raw = Vec::with_capacity(256);
        record.frame(&mut raw);
        // At an offset, so that what a failed write left is written over by the next.
        self.file.write_all_at(&raw, self.len)?;
        self.len += raw.len() as u64;
        Ok(())
    }

    /// As [`Self::rewrite`], in place of this journal.
    pub(super) fn compact(&mut self, records: impl Iterator<Item = Record>) -> io::Result<()> {
        *self = Self::rewrite(&self.dir, self.block_bytes, self.boot, records)?;
        Ok(())
    }

    /// Bytes written, which is also the offset after the last record.
    pub(super) fn len(&self) -> u64 {
        self.len
    }
}

#[cfg(test)]
mod tests;
