//! What is written of nodes and opens, as bytes that can be cut anywhere.
//!
//! Invariant: what is read is what was written, or is left out: each record has a marker, a length
//! and a checksum, and after bytes that are none reading goes on at the next one that is right.

use std::time::{Duration, SystemTime};

use store::ETag;
use twox_hash::XxHash3_64;

use crate::backing::Mode;
use crate::nodes::{NodeId, Version};

/// What each record begins with, so that few places have to be tried after a broken one.
const MARKER: u8 = 0xa7;

/// Marker, kind, length of the body, checksum.
const HEAD_BYTES: usize = 8;

/// Which kind of request brought about a record. A worker that dies between writing and answering
/// is asked again, with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Request {
    /// A lookup, or a listing with the attributes of its entries.
    Lookup,
    /// An open of a file.
    Open,
    /// The release of one.
    Release,
}

/// One thing that has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Record {
    /// What the id of a directory stands for.
    Directory { id: NodeId, parent: NodeId, path: String },
    /// What the id of a file stands for.
    File { id: NodeId, parent: NodeId, name: String, version: Version },
    /// The kernel is told of a node.
    Looked { id: NodeId, lookups: u64, unique: u64 },
    /// The kernel has taken lookups back.
    Forgotten { id: NodeId, lookups: u64 },
    /// A node must not be opened again.
    Condemned { id: NodeId },
    /// The kernel is told that a file is open, in this mode.
    Opened { id: NodeId, mode: Mode, opens: u64, unique: u64 },
    /// The kernel has closed one open.
    Released { id: NodeId, unique: u64 },
    /// A request that has been accounted for in records that are no longer here.
    Done { request: Request, id: NodeId, unique: u64 },
}

impl Record {
    fn kind(&self) -> u8 {
        match self {
            Self::Directory { .. } => 1,
            Self::File { .. } => 2,
            Self::Looked { .. } => 3,
            Self::Forgotten { .. } => 4,
            Self::Condemned { .. } => 5,
            Self::Opened { .. } => 6,
            Self::Released { .. } => 7,
            Self::Done { .. } => 8,
        }
    }

    /// Appends the record. One with texts of more than 64 KiB is left out: no object has them.
    pub(crate) fn encode(&self, into: &mut Vec<u8>) {
        let start = into.len();
        into.extend_from_slice(&[MARKER, self.kind(), 0, 0, 0, 0, 0, 0]);
        let mut number = |number: u64| into.extend_from_slice(&number.to_le_bytes());
        match self {
            Self::Directory { id, parent, path } => {
                number(id.0);
                number(parent.0);
                into.extend_from_slice(path.as_bytes());
            }
            Self::File { id, parent, name, version } => {
                let since = version.modified.duration_since(SystemTime::UNIX_EPOCH);
                let (before, since) = match &since {
                    Ok(since) => (0, *since),
                    Err(error) => (1, error.duration()),
                };
                number(id.0);
                number(parent.0);
                number(version.size);
                number(since.as_secs());
                number(u64::from(since.subsec_nanos()) << 1 | before);
                number(name.len() as u64);
                into.extend_from_slice(name.as_bytes());
                into.extend_from_slice(version.etag.as_str().as_bytes());
            }
            Self::Looked { id, lookups, unique } => {
                number(id.0);
                number(*lookups);
                number(*unique);
            }
            Self::Forgotten { id, lookups } => {
                number(id.0);
                number(*lookups);
            }
            Self::Condemned { id } => number(id.0),
            Self::Opened { id, mode, opens, unique } => {
                number(id.0);
                number(match mode {
                    Mode::Cached => 0,
                    Mode::Passthrough(backing) => 1 << 32 | u64::from(*backing),
                });
                number(*opens);
                number(*unique);
            }
            Self::Released { id, unique } => {
                number(id.0);
                number(*unique);
            }
            Self::Done { request, id, unique } => {
                number(match request {
                    Request::Lookup => 0,
                    Request::Open => 1,
                    Request::Release => 2,
                });
                number(id.0);
                number(*unique);
            }
        }
        let body = into.len() - start - HEAD_BYTES;
        let Ok(length) = u16::try_from(body) else {
            into.truncate(start);
            return;
        };
        into[start + 2..start + 4].copy_from_slice(&length.to_le_bytes());
        let sum = checksum(into[start + 1], &into[start + HEAD_BYTES..]);
        into[start + 4..start + HEAD_BYTES].copy_from_slice(&sum.to_le_bytes());
    }

    fn decode(kind: u8, body: &[u8]) -> Option<Self> {
        let mut body = Body(body);
        let record = match kind {
            1 => Self::Directory { id: body.id()?, parent: body.id()?, path: body.text()? },
            2 => {
                let (id, parent, size) = (body.id()?, body.id()?, body.number()?);
                let (seconds, rest) = (body.number()?, body.number()?);
                let nanos = u32::try_from(rest >> 1).ok().filter(|nanos| *nanos < 1_000_000_000)?;
                let since = Duration::new(seconds, nanos);
                let epoch = SystemTime::UNIX_EPOCH;
                let before = rest & 1 == 1;
                let modified =
                    if before { epoch.checked_sub(since) } else { epoch.checked_add(since) }?;
                let name = body.number()?;
                let name = body.take(usize::try_from(name).ok()?)?;
                let name = String::from_utf8(name.to_vec()).ok()?;
                let etag = ETag::parse(&body.text()?);
                Self::File { id, parent, name, version: Version { size, etag, modified } }
            }
            3 => Self::Looked { id: body.id()?, lookups: body.number()?, unique: body.number()? },
            4 => Self::Forgotten { id: body.id()?, lookups: body.number()? },
            5 => Self::Condemned { id: body.id()? },
            6 => {
                let (id, mode) = (body.id()?, body.number()?);
                let mode = match mode >> 32 {
                    0 => Mode::Cached,
                    _ => Mode::Passthrough(mode as u32),
                };
                Self::Opened { id, mode, opens: body.number()?, unique: body.number()? }
            }
            7 => Self::Released { id: body.id()?, unique: body.number()? },
            8 => {
                let request = match body.number()? {
                    0 => Request::Lookup,
                    1 => Request::Open,
                    _ => Request::Release,
                };
                Self::Done { request, id: body.id()?, unique: body.number()? }
            }
            _ => return None,
        };
        Some(record)
    }
}

/// The rest of a body.
struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn id(&mut self) -> Option<NodeId> {
        self.number().map(NodeId)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(std::mem::take(&mut self.0).to_vec()).ok()
    }
}

fn checksum(kind: u8, body: &[u8]) -> u32 {
    XxHash3_64::oneshot_with_seed(u64::from(kind) | (body.len() as u64) << 8, body) as u32
}

/// Reads records out of bytes that come in pieces.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    rest: Vec<u8>,
    /// Bytes of `rest` that are done with.
    done: usize,
    taken: u64,
    end: u64,
    skipped: u64,
}

impl Decoder {
    /// Adds a piece.
    pub(crate) fn push(&mut self, piece: &[u8]) {
        self.rest.drain(..self.done);
        self.done = 0;
        self.rest.extend_from_slice(piece);
    }

    /// The next record in what was added. After the last piece `last` must be true: then what looks
    /// like the beginning of a record is not waited for.
    pub(crate) fn next(&mut self, last: bool) -> Option<Record> {
        loop {
            let rest = &self.rest[self.done..];
            let start = rest.iter().position(|byte| *byte == MARKER).unwrap_or(rest.len());
            let rest = &rest[start..];
            let skip = |decoder: &mut Self, bytes: usize| {
                decoder.done += bytes;
                decoder.taken += bytes as u64;
                decoder.skipped += bytes as u64;
            };
            let needed = match rest.first_chunk::<HEAD_BYTES>() {
                Some(head) => HEAD_BYTES + usize::from(u16::from_le_bytes([head[2], head[3]])),
                None => HEAD_BYTES,
            };
            if rest.len() < needed {
                if !last || rest.is_empty() {
                    skip(self, start);
                    return None;
                }
                skip(self, start + 1);
                continue;
            }
            let sum = u32::from_le_bytes([rest[4], rest[5], rest[6], rest[7]]);
            let (kind, body) = (rest[1], &rest[HEAD_BYTES..needed]);
            if checksum(kind, body) != sum {
                skip(self, start + 1);
                continue;
            }
            let record = Record::decode(kind, body);
            skip(self, start);
            self.done += needed;
            self.taken += needed as u64;
            self.end = self.taken;
            // A right one of a kind that is not known was written by a newer worker.
            if record.is_some() {
                return record;
            }
        }
    }

    /// Where the last right record ends, in bytes from the first piece.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Bytes that belong to no record.
    pub(crate) fn skipped(&self) -> u64 {
        self.skipped
    }
}
