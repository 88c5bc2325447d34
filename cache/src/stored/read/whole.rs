//! A body that is read from a whole file on a local disk.
//!
//! Invariant: every byte comes from the one version that the file holds, or from blocks of the same
//! version once the file fails: what goes wrong with a file is a number and slower, never an error.
//! Pages in memory are copied on the thread that sends them; a thread that may wait for a disk is one
//! of those that may. Holds one piece at a time. Refuses to map files: one that is cut short under a
//! mapping would end the process.

use std::fs::File;
use std::io::IoSliceMut;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, stream};
use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use store::{ByteStream, CopyState, Result};
use tokio::time::timeout;

use super::super::ready;
use super::Reading;
use crate::buffers::Buffer;
use crate::cache::Shared;
use crate::fetch::{DISK_READ_LIMIT, Origin, PIECE_BYTES, Priority, Urgency};
use crate::files::WholeFile;
use crate::version::Version;

/// Pieces up to this are not worth a buffer that is kept.
const SMALL_BYTES: usize = 32 << 10;

/// Pieces of all bodies together, before they become small: readers that stand still hold one or two
/// each, and a thousand of them are no reason to run out of memory.
const HELD_BYTES: usize = 64 << 20;

/// Ranges up to this come in one piece: a kernel that asks for so much wants it in one.
const ONE_PIECE_BYTES: u64 = 1 << 20;

/// What the kernel is asked to read beyond a piece that was not in memory: enough to keep an NVMe busy.
const AHEAD_BYTES: u64 = 4 << 20;

/// A range of a whole file.
pub(super) struct Whole {
    shared: Arc<Shared>,
    origin: Arc<Origin>,
    object: Arc<Version>,
    file: Arc<WholeFile>,
    left: Range<u64>,
    piece_bytes: usize,
    /// Up to where the kernel was asked to read ahead.
    advised: u64,
}

/// Where a body stands.
enum Body {
    File(Whole),
    Blocks(Reading),
}

/// What came of reading a piece.
enum Piece {
    Read(Bytes),
    /// The file is no good.
    Bad,
    /// The disk takes too long.
    Slow,
}

/// What came of one call of the kernel.
enum Got {
    /// So many bytes: all, or as many as are in memory.
    Bytes(usize),
    /// It would have to be waited for.
    Wait,
    /// The file ends early, or cannot be read.
    Nothing,
}

impl Whole {
    /// The bytes `range` of the version `object`, which `file` holds.
    pub(super) fn new(
        shared: &Arc<Shared>,
        origin: &Arc<Origin>,
        object: &Arc<Version>,
        file: Arc<WholeFile>,
        range: Range<u64>,
    ) -> Self {
        let len = range.end - range.start;
        let one = len <= ONE_PIECE_BYTES;
        Self {
            shared: Arc::clone(shared),
            origin: Arc::clone(origin),
            object: Arc::clone(object),
            file,
            advised: range.start,
            left: range,
            piece_bytes: if one { len as usize } else { PIECE_BYTES },
        }
    }

    /// The body, with its first piece in hand.
    pub(super) async fn body(mut self) -> Result<ByteStream> {
        let blocks = self.left.end.div_ceil(self.shared.config.block_bytes)
            - self.left.start / self.shared.config.block_bytes;
        self.shared.metrics.hits.inc_by(blocks);
        self.shared.metrics.file_hits.inc_by(blocks);
        if self.left.is_empty() {
            return Ok(ready(Vec::new()));
        }
        let first = self.piece().await;
        if let (Piece::Read(bytes), true) = (&first, self.left.is_empty()) {
            return Ok(ready(vec![bytes.clone()]));
        }
        let (first, rest) = match first {
            Piece::Read(bytes) => (bytes, Body::File(self)),
            Piece::Bad | Piece::Slow => {
                let mut reading = self.fetch();
                // An error before the first byte is one of the call.
                let first = reading.next().await.transpose()?.unwrap_or_default();
                (first, Body::Blocks(reading))
            }
        };
        let rest = stream::unfold(rest, |mut body| async move {
            let piece = body.next().await?;
            Some((piece, body))
        });
        Ok(stream::iter([Ok(first)]).chain(rest).boxed())
    }

    /// The next piece.
    async fn piece(&mut self) -> Piece {
        if self.file.fate.state() == CopyState::Bad {
            return Piece::Bad;
        }
        let crowded = self.shared.fetcher.pieces().held_bytes() >= HELD_BYTES;
        let most = if crowded { self.piece_bytes.min(SMALL_BYTES) } else { self.piece_bytes };
        let len = (self.left.end - self.left.start).min(most as u64) as usize;
        let mut buffer = self.buffer(len);
        let piece = match read_now(&self.file.file, &mut buffer[..len], self.left.start) {
            Got::Bytes(got) if got == len => Piece::Read(buffer.freeze(len)),
            Got::Bytes(got) => self.wait(buffer, got..len).await,
            Got::Wait => self.wait(buffer, 0..len).await,
            Got::Nothing => Piece::Bad,
        };
        match &piece {
            Piece::Read(bytes) => self.left.start += bytes.len() as u64,
            Piece::Bad => {
                tracing::warn!(
                    store = self.origin.name, key = %self.object.key,
                    "the file of a cached object could not be read as it was written"
                );
                self.shared.blocks.suspect(&self.object);
            }
            Piece::Slow => {
                tracing::debug!(key = %self.object.key, "the disk did not give a piece within 2 s");
            }
        }
        piece
    }

    fn buffer(&self, len: usize) -> Buffer {
        // Small ones are cheap to make; the larger of the two sizes is that of blocks.
        if len <= SMALL_BYTES {
            return self.shared.fetcher.pieces().take(len);
        }
        let blocks = self.shared.fetcher.buffers();
        match (self.shared.fetcher.pieces().bytes(), blocks.bytes()) {
            (pieces, _) if len <= pieces => self.shared.fetcher.pieces().take(pieces),
            (_, blocks_bytes) if len <= blocks_bytes => blocks.take(blocks_bytes),
            _ => blocks.take(len),
        }
    }

    /// Reads the bytes `missing` of a piece on a thread that may wait for a disk.
    async fn wait(&mut self, mut buffer: Buffer, missing: Range<usize>) -> Piece {
        let (file, at) = (Arc::clone(&self.file), self.left.start);
        let beyond = at + missing.end as u64;
        let ahead = beyond.saturating_add(AHEAD_BYTES).min(self.left.end);
        // As soon as half of what it reads ahead is used up, so that it is never idle.
        let advice = (beyond + AHEAD_BYTES / 2 >= self.advised && ahead > self.advised)
            .then(|| self.advised.max(at)..ahead);
        if let Some(advice) = &advice {
            self.advised = advice.end;
        }
        let fetcher = Arc::clone(&self.shared.fetcher);
        let read = async move {
            let turn = fetcher.disk_turn(&Urgency::new(Priority::Demand)).await;
            let work = move || {
                // Held by the thread: a disk that hangs keeps no more of them than there are turns.
                let _turn = turn;
                let len = missing.end;
                if let Some(Range { start, end }) = advice {
                    _ = fadvise(&file.file, start, NonZeroU64::new(end - start), Advice::WillNeed);
                }
                read_all(&file.file, &mut buffer[missing.clone()], at + missing.start as u64)
                    .then(|| buffer.freeze(len))
            };
            tokio::task::spawn_blocking(work).await
        };
        match timeout(DISK_READ_LIMIT, read).await {
            Ok(Ok(Some(bytes))) => Piece::Read(bytes),
            Ok(_) => Piece::Bad,
            Err(_) => Piece::Slow,
        }
    }

    /// What is left, from the blocks of the same version.
    fn fetch(&self) -> Reading {
        self.shared.metrics.file_fallbacks.inc();
        Reading::new(&self.shared, &self.origin, &self.object, self.left.clone(), false)
    }
}

impl Body {
    async fn next(&mut self) -> Option<Result<Bytes>> {
        if let Self::File(whole) = self {
            if whole.left.is_empty() {
                return None;
            }
            if let Piece::Read(bytes) = whole.piece().await {
                return Some(Ok(bytes));
            }
            *self = Self::Blocks(whole.fetch());
        }
        let Self::Blocks(reading) = self else { return None };
        let piece = reading.next().await?;
        if piece.is_err() {
            reading.end();
        }
        Some(piece)
    }
}

/// Reads what is in memory, at most the length of `into`.
fn read_now(file: &File, into: &mut [u8], at: u64) -> Got {
    match preadv2(file, &mut [IoSliceMut::new(into)], at, ReadWriteFlags::NOWAIT) {
        Ok(0) => Got::Nothing,
        Ok(got) => Got::Bytes(got),
        // Not there, interrupted, or on a file system that cannot say.
        Err(Errno::AGAIN | Errno::INTR | Errno::OPNOTSUPP | Errno::NOSYS) => Got::Wait,
        Err(_) => Got::Nothing,
    }
}

/// Fills `into`, waiting for the disk; false where the file has fewer bytes or cannot be read.
fn read_all(file: &File, into: &mut [u8], at: u64) -> bool {
    std::os::unix::fs::FileExt::read_exact_at(file, into, at).is_ok()
}
