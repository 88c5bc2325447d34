//! Takes the `aws-chunked` framing off a body, piece by piece.
//!
//! Invariant: it yields exactly the bytes between the frames, in order, without copying, however
//! the input is cut; what does not follow the grammar is an error and nothing after it is yielded.
//! It keeps at most one line of the framing in memory, and judges neither lengths nor signatures.

use bytes::{Buf, Bytes};

/// Longest line of the framing in bytes. A chunk's header with a signature has 102, a trailer's
/// longest known line (a signature) 95; more is no S3 client.
const MAX_LINE_BYTES: usize = 1024;

/// Most trailing headers. S3 knows of two at once: one checksum and the signature.
const MAX_TRAILERS: usize = 16;

/// What comes out of the framing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A chunk begins; the one of size 0 is the last.
    Chunk {
        /// Bytes of data in it.
        size: u64,
        /// Its signature, where it has one.
        signature: Option<String>,
    },
    /// Some bytes of the chunk's data.
    Data(Bytes),
    /// The chunk is over.
    ChunkEnd,
    /// A trailing header, with its name in lower case.
    Trailer(String, String),
    /// The framing is over; nothing may follow.
    End,
}

/// The framing is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("aws-chunked framing: {0}")]
pub struct ChunkError(&'static str);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Header,
    Data(u64),
    AfterData,
    AfterLast,
    Trailer,
    Ended,
    Failed,
}

/// Decodes `aws-chunked` without doing I/O.
#[derive(Debug)]
pub struct ChunkDecoder {
    state: State,
    line: Vec<u8>,
    trailers: usize,
}

impl Default for ChunkDecoder {
    fn default() -> Self {
        Self { state: State::Header, line: Vec::new(), trailers: 0 }
    }
}

impl ChunkDecoder {
    /// Takes what it can from the front of `input`; `None` when it needs more.
    pub fn next(&mut self, input: &mut Bytes) -> Result<Option<Event>, ChunkError> {
        let event = self.step(input);
        if event.is_err() {
            self.state = State::Failed;
        }
        event
    }

    /// Called when the input is over. The last line break may be missing, nothing else.
    pub fn finish(&mut self) -> Result<Option<Event>, ChunkError> {
        match self.state {
            State::Ended => Ok(None),
            State::Trailer if !self.line.is_empty() => {
                let line = std::mem::take(&mut self.line);
                let event = self.trailer(&line)?;
                Ok(Some(event))
            }
            State::AfterLast | State::Trailer => {
                self.state = State::Ended;
                Ok(Some(Event::End))
            }
            State::Failed => Err(ChunkError("it failed before")),
            State::Header | State::Data(_) | State::AfterData => {
                Err(ChunkError("the body ends before its last chunk"))
            }
        }
    }

    fn step(&mut self, input: &mut Bytes) -> Result<Option<Event>, ChunkError> {
        loop {
            match self.state {
                State::Data(0) => {
                    self.state = State::AfterData;
                    return Ok(Some(Event::ChunkEnd));
                }
                State::Data(left) => {
                    if input.is_empty() {
                        return Ok(None);
                    }
                    let take = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                    self.state = State::Data(left - take as u64);
                    return Ok(Some(Event::Data(input.split_to(take))));
                }
                State::AfterLast => {
                    // The empty last chunk counts as ended for its signature's sake.
                    self.state = State::Trailer;
                    return Ok(Some(Event::ChunkEnd));
                }
                State::Ended if input.is_empty() => return Ok(None),
                State::Ended => return Err(ChunkError("bytes follow the last chunk")),
                State::Failed => return Err(ChunkError("it failed before")),
                State::Header | State::AfterData | State::Trailer => {
                    let Some(line) = self.line(input)? else { return Ok(None) };
                    match self.state {
                        State::AfterData if line.is_empty() => self.state = State::Header,
                        State::AfterData => {
                            return Err(ChunkError("a chunk is longer than it says"));
                        }
                        State::Header => return self.header(&line).map(Some),
                        _ if line.is_empty() => {
                            self.state = State::Ended;
                            return Ok(Some(Event::End));
                        }
                        _ => return self.trailer(&line).map(Some),
                    }
                }
            }
        }
    }

    /// One line without its end, when there is a whole one.
    fn line(&mut self, input: &mut Bytes) -> Result<Option<Vec<u8>>, ChunkError> {
        let end = input.iter().position(|&b| b == b'\n');
        let take = end.unwrap_or(input.len());
        if self.line.len() + take > MAX_LINE_BYTES {
            return Err(ChunkError("a line is too long"));
        }
        self.line.extend_from_slice(&input[..take]);
        let Some(end) = end else {
            input.clear();
            return Ok(None);
        };
        input.advance(end + 1);
        let mut line = std::mem::take(&mut self.line);
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(Some(line))
    }

    fn header(&mut self, line: &[u8]) -> Result<Event, ChunkError> {
        let line = std::str::from_utf8(line).map_err(|_| ChunkError("a header is not text"))?;
        let (size, extension) = line.split_once(';').unwrap_or((line, ""));
        // Sixteen digits are all of u64; signs and blanks are not digits.
        let digits = !size.is_empty() && size.len() <= 16;
        if !digits || !size.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(ChunkError("a chunk's size is not hexadecimal"));
        }
        let size = u64::from_str_radix(size, 16).map_err(|_| ChunkError("a size overflows"))?;
        let signature = match extension {
            "" => None,
            _ => match extension.split_once('=') {
                Some(("chunk-signature", signature)) => Some(signature.to_owned()),
                _ => return Err(ChunkError("a chunk's extension is unknown")),
            },
        };
        self.state = if size == 0 { State::AfterLast } else { State::Data(size) };
        Ok(Event::Chunk { size, signature })
    }

    fn trailer(&mut self, line: &[u8]) -> Result<Event, ChunkError> {
        self.trailers += 1;
        if self.trailers > MAX_TRAILERS {
            return Err(ChunkError("there are too many trailing headers"));
        }
        let line = std::str::from_utf8(line).map_err(|_| ChunkError("a trailer is not text"))?;
        let (name, value) = line.split_once(':').ok_or(ChunkError("a trailer has no colon"))?;
        Ok(Event::Trailer(name.trim().to_ascii_lowercase(), value.trim().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Decoded = (Vec<u8>, Vec<(String, String)>, bool);

    fn decode(pieces: &[&[u8]]) -> Result<Decoded, ChunkError> {
        let mut decoder = ChunkDecoder::default();
        let (mut data, mut trailers, mut ended) = (Vec::new(), Vec::new(), false);
        let mut take = |event| match event {
            Event::Data(bytes) => data.extend_from_slice(&bytes),
            Event::Trailer(name, value) => trailers.push((name, value)),
            Event::End => ended = true,
            Event::Chunk { .. } | Event::ChunkEnd => {}
        };
        for piece in pieces {
            let mut input = Bytes::copy_from_slice(piece);
            while let Some(event) = decoder.next(&mut input)? {
                take(event);
            }
            assert!(input.is_empty());
        }
        while let Some(event) = decoder.finish()? {
            take(event);
        }
        Ok((data, trailers, ended))
    }

    #[test]
    fn documented_forms() {
        let signed = b"5;chunk-signature=ab\r\nhello\r\n0;chunk-signature=cd\r\n\r\n";
        assert_eq!(decode(&[signed]).unwrap(), (b"hello".to_vec(), vec![], true));
        let trailer = b"5\r\nhello\r\n0\r\nX-Amz-Checksum-Crc32: AAAA\r\n\r\n";
        let named = vec![("x-amz-checksum-crc32".to_owned(), "AAAA".to_owned())];
        assert_eq!(decode(&[trailer]).unwrap(), (b"hello".to_vec(), named.clone(), true));
        // Clients that end without the empty line, or with a bare line feed.
        for form in [
            &b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:AAAA\r\n"[..],
            b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:AAAA",
            b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:AAAA\n\r\n",
        ] {
            assert_eq!(decode(&[form]).unwrap(), (b"hello".to_vec(), named.clone(), true));
        }
        assert_eq!(decode(&[b"0\r\n\r\n"]).unwrap(), (vec![], vec![], true));
    }

    #[test]
    fn broken_framing_is_refused() {
        for bad in [
            &b""[..],
            b"5\r\nhell",
            b"5\r\nhello",
            b"5\r\nhello\r\n",
            b"5\r\nhelloX\r\n0\r\n\r\n",
            b"-1\r\n",
            b"+5\r\nhello\r\n0\r\n\r\n",
            b" 5\r\nhello\r\n0\r\n\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"10000000000000000\r\n",
            b"5;other=1\r\nhello\r\n0\r\n\r\n",
            b"0\r\nno colon\r\n\r\n",
            b"0\r\n\r\nmore",
        ] {
            assert!(decode(&[bad]).is_err(), "{}", String::from_utf8_lossy(bad));
        }
        assert!(decode(&[&[b'0'; 2000]]).is_err());
    }

    proptest! {
        #[test]
        fn any_cut_yields_the_same(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 0..6),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                wire.extend_from_slice(format!("{:x};chunk-signature=00\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\nx-amz-checksum-sha1:v\r\n\r\n");
            let mut at: Vec<usize> = cuts.iter().map(|c| c.index(wire.len() + 1)).collect();
            at.extend([0, wire.len()]);
            at.sort_unstable();
            let pieces: Vec<&[u8]> = at.windows(2).map(|w| &wire[w[0]..w[1]]).collect();
            let (data, trailers, ended) = decode(&pieces).unwrap();
            prop_assert_eq!(data, chunks.concat());
            prop_assert_eq!(trailers.len(), 1);
            prop_assert!(ended);
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&[&bytes]);
        }
    }
}
