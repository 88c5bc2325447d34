//! Bodies in signed chunks (`aws-chunked`, `STREAMING-AWS4-HMAC-SHA256-PAYLOAD`).
//!
//! Invariant: an origin cannot take a part of such a body for all of it, nor changed bytes for
//! these: each chunk is signed, and the empty one that ends the body comes only after its source
//! has ended without an error. It is used where TLS does not protect the bytes. (versitygw stores
//! what it has got when the connection of an unsigned body breaks.)

use std::collections::VecDeque;

use ::store::{Body, ByteStream, Error};
use aws_sigv4::sign::v4::calculate_signature;
use bytes::Bytes;
use futures::StreamExt;
use sha2::{Digest, Sha256};

/// Bytes of a chunk but the last. S3 wants 8 KiB at least; at 64 KiB, a chunk's frame and
/// signature are a thousandth of it.
const CHUNK_BYTES: u64 = 64 * 1024;

/// `;chunk-signature=`, the signature, the end of the line, and the end of the chunk.
const FRAME_BYTES: u64 = 17 + 64 + 2 + 2;

/// What the first chunk is signed with.
pub(super) struct Seed {
    /// The signing key of the day, region and service.
    pub(super) key: Vec<u8>,
    /// As in `X-Amz-Date`.
    pub(super) date: String,
    /// `20260102/us-east-1/s3/aws4_request`.
    pub(super) scope: String,
    /// The signature of the request.
    pub(super) signature: String,
}

struct Encoder {
    seed: Seed,
    source: ByteStream,
    /// Read, and not yet in a chunk. More than a chunk, or the source has ended.
    pieces: VecDeque<Bytes>,
    gathered: u64,
    /// Encoded, and not yet given away.
    ready: VecDeque<Bytes>,
    ended: bool,
}

/// The length of `size` bytes in chunks.
fn encoded_bytes(size: u64) -> u64 {
    let frame = |length: u64| {
        u64::from(u64::BITS - length.leading_zeros()).div_ceil(4).max(1) + FRAME_BYTES
    };
    let (whole, rest) = (size / CHUNK_BYTES, size % CHUNK_BYTES);
    let last = if rest > 0 { frame(rest) + rest } else { 0 };
    whole * (frame(CHUNK_BYTES) + CHUNK_BYTES) + last + frame(0)
}

/// A body in signed chunks, with its encoded size. An error in it comes through as it is.
pub(super) fn encode(body: Body, seed: Seed) -> Body {
    let size = encoded_bytes(body.size);
    let encoder = Encoder {
        seed,
        source: body.checked().stream,
        pieces: VecDeque::new(),
        gathered: 0,
        ready: VecDeque::new(),
        ended: false,
    };
    let stream = futures::stream::try_unfold(encoder, |mut encoder| async move {
        let piece = encoder.next().await?;
        Ok::<_, Error>(piece.map(|piece| (piece, encoder)))
    });
    Body::new(size, stream.boxed())
}

impl Encoder {
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Ok(Some(piece));
            }
            if self.ended {
                return Ok(None);
            }
            // Strictly more than a chunk: the last byte is not sent before the source has ended.
            if self.gathered > CHUNK_BYTES {
                self.chunk(CHUNK_BYTES);
                continue;
            }
            match self.source.next().await.transpose()? {
                Some(piece) if piece.is_empty() => {}
                Some(piece) => {
                    self.gathered += piece.len() as u64;
                    self.pieces.push_back(piece);
                }
                None => {
                    if self.gathered > 0 {
                        self.chunk(self.gathered);
                    }
                    self.chunk(0);
                    self.ended = true;
                }
            }
        }
    }

    /// Moves so many gathered bytes into a signed chunk, without copying them.
    fn chunk(&mut self, length: u64) {
        let mut digest = Sha256::new();
        let mut taken = Vec::new();
        let mut left = length as usize;
        while left > 0 {
            let Some(mut piece) = self.pieces.pop_front() else { break };
            if piece.len() > left {
                self.pieces.push_front(piece.split_off(left));
            }
            left -= piece.len();
            digest.update(&piece);
            taken.push(piece);
        }
        self.gathered -= length;
        let nothing = hex::encode(Sha256::digest([]));
        let to_sign = format!(
            "AWS4-HMAC-SHA256-PAYLOAD\n{}\n{}\n{}\n{nothing}\n{}",
            self.seed.date,
            self.seed.scope,
            self.seed.signature,
            hex::encode(digest.finalize()),
        );
        self.seed.signature = calculate_signature(&self.seed.key, to_sign.as_bytes());
        let head = format!("{length:x};chunk-signature={}\r\n", self.seed.signature);
        self.ready.push_back(head.into());
        self.ready.extend(taken);
        self.ready.push_back(Bytes::from_static(b"\r\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::store::ErrorKind;
    use futures::TryStreamExt;
    use std::time::{Duration, SystemTime};

    fn seed() -> Seed {
        // 2013-05-24T00:00:00Z, of the example in the documentation of S3.
        let time = SystemTime::UNIX_EPOCH + Duration::from_hours(380_376);
        let secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
        let key = aws_sigv4::sign::v4::generate_signing_key(secret, time, "us-east-1", "s3");
        Seed {
            key: key.as_ref().to_vec(),
            date: "20130524T000000Z".into(),
            scope: "20130524/us-east-1/s3/aws4_request".into(),
            signature: "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9".into(),
        }
    }

    #[tokio::test]
    async fn the_documented_example() {
        let bytes = vec![b'a'; 66_560];
        let pieces = bytes.chunks(7001).map(|c| Ok(Bytes::copy_from_slice(c))).collect::<Vec<_>>();
        let body = encode(Body::new(66_560, futures::stream::iter(pieces).boxed()), seed());
        // The documentation's Content-Length.
        assert_eq!(body.size, 66_824);
        let sent = body.stream.try_collect::<Vec<_>>().await.unwrap().concat();
        assert_eq!(sent.len(), 66_824);
        let text = String::from_utf8(sent).unwrap();
        for expected in [
            "10000;chunk-signature=ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648\r\n",
            "\r\n400;chunk-signature=0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497\r\n",
            "\r\n0;chunk-signature=b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9\r\n\r\n",
        ] {
            assert!(text.contains(expected), "{expected}");
        }
    }

    #[tokio::test]
    async fn lengths_are_promised_exactly() {
        for size in [0u64, 1, 15, 16, 4096, 65_535, 65_536, 65_537, 131_072, 1_000_000] {
            let body = encode(Body::from(Bytes::from(vec![7; size as usize])), seed());
            let promised = body.size;
            let sent = body.stream.try_collect::<Vec<_>>().await.unwrap().concat();
            assert_eq!(sent.len() as u64, promised, "{size}");
        }
    }

    #[tokio::test]
    async fn a_failing_body_has_no_end() {
        let bad = Err(Error::new(ErrorKind::BadDigest, "crc32 differs"));
        let pieces = [Ok(Bytes::from(vec![1; 65_536])), bad];
        let body = encode(Body::new(65_536, futures::stream::iter(pieces).boxed()), seed());
        let sent: Vec<_> = body.stream.collect().await;
        assert_eq!(sent.len(), 1, "nothing is sent before the source has ended");
        assert_eq!(sent[0].as_ref().unwrap_err().kind(), ErrorKind::BadDigest);
    }
}
