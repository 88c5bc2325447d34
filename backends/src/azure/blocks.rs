//! Names of staged blocks, and bodies cut into blocks.
//!
//! Invariant: every block that is staged here has a name of one length, as the service asks, that
//! says to which upload it belongs, as what, and when it was staged. A blob's staged blocks are
//! the only state of an upload at the origin, and they vanish a week after the last of them, or as
//! soon as anybody commits or overwrites that blob.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt;
use store::{Body, ByteStream, ETag};
use tokio::sync::oneshot;

/// Behind every block's name; what does not end so was staged by somebody else.
const MARK: [u8; 3] = *b"wd1";

/// Bytes of a block's name. A multiple of three, so that base64 needs no padding.
const NAME_BYTES: usize = 24;

/// What a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// One byte that says that an upload was begun.
    Start,
    /// A part.
    Part,
    /// One byte that stands for a part without bytes, which the service would refuse.
    EmptyPart,
    /// One byte that says that an upload was aborted.
    Abort,
}

impl Role {
    const ALL: [(Self, u8); 4] =
        [(Self::Start, b'S'), (Self::Part, b'P'), (Self::EmptyPart, b'E'), (Self::Abort, b'A')];
}

/// A block's name, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockName {
    /// Which upload.
    pub(super) upload: u64,
    /// As what.
    pub(super) role: Role,
    /// Which part; of a body cut into blocks, which block.
    pub(super) number: u32,
    /// When it was staged: microseconds since 1970, never twice the same in one process. Of two
    /// blocks for one part the later one counts.
    pub(super) stamp: u64,
}

impl BlockName {
    /// A name that was never used before.
    pub(super) fn new(upload: u64, role: Role, number: u32) -> Self {
        Self { upload, role, number, stamp: stamp() }
    }

    /// As the service takes it: base64.
    pub(super) fn encode(&self) -> String {
        let mut bytes = Vec::with_capacity(NAME_BYTES);
        bytes.extend(self.upload.to_be_bytes());
        bytes.extend(self.number.to_be_bytes());
        bytes.extend(self.stamp.to_be_bytes());
        let role = Role::ALL.iter().find(|(role, _)| *role == self.role);
        bytes.push(role.expect("every role is listed").1);
        bytes.extend(MARK);
        STANDARD.encode(bytes)
    }

    /// The reverse; `None` for a block of somebody else.
    pub(super) fn decode(text: &str) -> Option<Self> {
        let bytes = STANDARD.decode(text).ok()?;
        let rest = bytes.strip_suffix(&MARK).filter(|_| bytes.len() == NAME_BYTES)?;
        let (upload, rest) = rest.split_first_chunk()?;
        let (number, rest) = rest.split_first_chunk()?;
        let (stamp, role) = rest.split_first_chunk()?;
        Some(Self {
            upload: u64::from_be_bytes(*upload),
            role: Role::ALL.iter().find(|(_, byte)| [*byte] == *role)?.0,
            number: u32::from_be_bytes(*number),
            stamp: u64::from_be_bytes(*stamp),
        })
    }

    /// The tag of the part: it changes with every time that the part is staged.
    pub(super) fn etag(&self) -> ETag {
        ETag::parse(&format!("{:016x}-1", self.stamp))
    }

    /// When it was staged.
    pub(super) fn time(&self) -> SystemTime {
        crate::calendar::after_1970(Duration::from_micros(self.stamp))
    }
}

/// Microseconds since 1970, each later than the one before.
fn stamp() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(now.as_micros()).unwrap_or(u64::MAX - 1);
    let before = LAST.fetch_max(now, Ordering::Relaxed);
    if before < now { now } else { LAST.fetch_add(1, Ordering::Relaxed) + 1 }
}

/// A body that is taken in blocks, one after the other, none of it held.
pub(super) struct Cut {
    left: u64,
    source: Source,
    back: Option<oneshot::Receiver<Source>>,
}

/// What of the body was not taken yet.
struct Source {
    stream: ByteStream,
    rest: Bytes,
}

impl Cut {
    pub(super) fn new(body: Body) -> Self {
        let body = body.checked();
        let source = Source { stream: body.stream, rest: Bytes::new() };
        Self { left: body.size, source, back: None }
    }

    /// The next block of at most `size` bytes; `None` at the end. The one before must have been
    /// read to its end. The last block ends only when the whole body did, without an error.
    pub(super) async fn next(&mut self, size: u64) -> Option<Body> {
        if let Some(back) = self.back.take() {
            self.source = back.await.ok()?;
        }
        let size = size.min(self.left);
        if size == 0 {
            return None;
        }
        self.left -= size;
        let last = self.left == 0;
        let (give_back, back) = oneshot::channel();
        self.back = Some(back);
        let none = Source { stream: futures::stream::empty().boxed(), rest: Bytes::new() };
        let source = std::mem::replace(&mut self.source, none);
        let state = Some((source, size, give_back));
        let stream = futures::stream::unfold(state, move |state| async move {
            let (mut source, left, give_back) = state?;
            if left == 0 {
                if !last {
                    // Nobody waits where the upload was given up.
                    _ = give_back.send(source);
                    return None;
                }
                return source.stream.next().await.map(|piece| (piece, None));
            }
            if source.rest.is_empty() {
                match source.stream.next().await {
                    Some(Ok(piece)) => source.rest = piece,
                    Some(Err(error)) => return Some((Err(error), None)),
                    None => return None,
                }
            }
            let take = source.rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let piece = source.rest.split_to(take);
            Some((Ok(piece), Some((source, left - take as u64, give_back))))
        });
        Some(Body::new(size, stream.boxed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;
    use store::{Error, ErrorKind};

    #[test]
    fn names_come_back_and_have_one_length() {
        for (role, _) in Role::ALL {
            let name = BlockName::new(u64::MAX - 7, role, 10_000);
            let text = name.encode();
            assert_eq!(text.len(), 32);
            assert_eq!(BlockName::decode(&text), Some(name));
        }
        for foreign in ["", "AAAA", "YmxvY2stMDAwMDAwMDAwMDAwMDAwMDAx", "!"] {
            assert_eq!(BlockName::decode(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_part_staged_again_has_another_tag() {
        let stamps: Vec<_> = (0..1000).map(|_| BlockName::new(1, Role::Part, 1).stamp).collect();
        assert!(stamps.is_sorted_by(|a, b| a < b));
        let (one, two) = (BlockName::new(1, Role::Part, 1), BlockName::new(1, Role::Part, 1));
        assert_ne!(one.etag(), two.etag());
        assert_eq!(one.etag().md5_hex(), None);
    }

    async fn blocks(
        size: u64,
        items: Vec<store::Result<Bytes>>,
        block: u64,
    ) -> Vec<Result<Bytes, ErrorKind>> {
        let mut cut = Cut::new(Body::new(size, stream::iter(items).boxed()));
        let mut all = Vec::new();
        while let Some(body) = cut.next(block).await {
            match body.collect(block).await {
                Ok(bytes) => all.push(Ok(bytes)),
                Err(error) => {
                    all.push(Err(error.kind()));
                    break;
                }
            }
        }
        all
    }

    #[tokio::test]
    async fn a_body_is_cut_at_any_boundary() {
        let items = || vec![Ok(Bytes::from("abc")), Ok(Bytes::from("de")), Ok(Bytes::from("fgh"))];
        for block in 1..10u64 {
            let found = blocks(8, items(), block).await;
            let lengths: Vec<_> = found.iter().map(|b| b.as_ref().unwrap().len() as u64).collect();
            assert!(lengths[..lengths.len() - 1].iter().all(|length| *length == block));
            let joined = found.into_iter().flat_map(Result::unwrap).collect::<Vec<u8>>();
            assert_eq!(joined, b"abcdefgh", "{block}");
        }
    }

    #[tokio::test]
    async fn what_is_wrong_with_the_whole_fails_the_last_block() {
        let bad = || Err(Error::new(ErrorKind::BadDigest, "crc32 differs"));
        let items = vec![Ok(Bytes::from("abcdef")), bad()];
        assert_eq!(blocks(6, items, 3).await, [Ok("abc".into()), Err(ErrorKind::BadDigest)]);
        let items = vec![Ok(Bytes::from("abcdefg"))];
        assert_eq!(blocks(6, items, 3).await, [Err(ErrorKind::IncompleteBody)]);
        let items = vec![Ok(Bytes::from("abcde"))];
        assert_eq!(blocks(6, items, 3).await, [Ok("abc".into()), Err(ErrorKind::IncompleteBody)]);
    }
}
