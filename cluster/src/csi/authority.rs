//! Requests whose `:authority` is the path of a socket, as kubelet's registration sends them, made
//! acceptable to an HTTP/2 server that takes host names only.
//!
//! Invariant: bytes pass as they came, but for one value: that of a literal `:authority`, which
//! becomes `localhost`. It is shorter than any path of a socket, so that no reference into the
//! connection's table of headers changes its meaning. A connection with a frame that is too long, or
//! whose headers cannot be followed, is ended. It understands no request.

use std::io;

use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, copy, duplex, split,
};
use tokio::net::UnixStream;

/// What every HTTP/2 connection begins with: RFC 9113, section 3.4.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Length, type, flags, stream.
const HEAD_BYTES: usize = 9;

/// `SETTINGS_MAX_FRAME_SIZE` as long as nobody says otherwise.
const MAX_FRAME_BYTES: usize = 16 << 10;

/// Bytes under way in each direction.
const BUFFER_BYTES: usize = 64 << 10;

/// The type of a frame that has headers.
const HEADERS: u8 = 1;

/// Flags of such a frame: it has all headers, it is padded, it has a priority of [`PRIORITY_BYTES`].
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
const PRIORITY_BYTES: usize = 5;

/// `:authority` in the static table: RFC 7541, appendix A.
const AUTHORITY: usize = 1;

/// What takes the place of a path: a string of 9 plain bytes.
const LOCALHOST: &[u8; 10] = b"\x09localhost";

/// The connection as a server takes it. Both ends go when one does.
pub(super) fn accept(stream: UnixStream) -> DuplexStream {
    let (ours, theirs) = duplex(BUFFER_BYTES);
    tokio::spawn(async move {
        let (from_client, to_client) = stream.into_split();
        let (from_server, to_server) = split(ours);
        let asking = pass(from_client, to_server);
        let answering = async move {
            let (mut from_server, mut to_client) = (from_server, to_client);
            copy(&mut from_server, &mut to_client).await?;
            to_client.shutdown().await
        };
        // A client that has said all still waits for answers; the server ends the connection.
        let (asked, answered) = tokio::join!(asking, answering);
        if let Err(error) = asked.and(answered) {
            tracing::debug!(%error, "a connection of kubelet ended");
        }
    });
    theirs
}

/// Copies what a client says, frame by frame.
async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    let mut preface = [0; PREFACE.len()];
    from.read_exact(&mut preface).await?;
    if preface != *PREFACE {
        return Err(io::Error::other("no HTTP/2"));
    }
    to.write_all(&preface).await?;
    let mut head = [0; HEAD_BYTES];
    loop {
        match from.read_exact(&mut head).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return to.shutdown().await;
            }
            read => read?,
        };
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        if length > MAX_FRAME_BYTES {
            return Err(io::Error::other("a frame that is too long"));
        }
        let mut body = vec![0; length];
        from.read_exact(&mut body).await?;
        // Headers in several frames, or padded ones, no gRPC client sends; they pass as they are.
        if head[3] == HEADERS && head[4] & (END_HEADERS | PADDED) == END_HEADERS {
            let skipped = if head[4] & PRIORITY == 0 { 0 } else { PRIORITY_BYTES };
            let changed = body.get(skipped..).and_then(rewrite);
            let changed = changed.ok_or_else(|| io::Error::other("headers that are none"))?;
            body.truncate(skipped);
            body.extend(changed);
            // It has become shorter, if anything: three bytes of length suffice.
            head[..3].copy_from_slice(&u32::try_from(body.len()).unwrap_or(0).to_be_bytes()[1..]);
        }
        to.write_all(&head).await?;
        to.write_all(&body).await?;
    }
}

/// A block of headers (RFC 7541, section 6) with another `:authority`; `None` if it is no such block.
fn rewrite(block: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(block.len());
    let mut rest = block;
    while let Some(&first) = rest.first() {
        let begun = rest;
        // Which table entry names the field, and whether a value follows.
        let (entry, literal) = match first {
            0x80.. => (number(&mut rest, 7)?, false),
            0x40..0x80 => (number(&mut rest, 6)?, true),
            // A new size of the table.
            0x20..0x40 => (number(&mut rest, 5)?, false),
            0..0x20 => (number(&mut rest, 4)?, true),
        };
        if literal && entry == 0 {
            string(&mut rest)?;
        }
        let before_value = &begun[..begun.len() - rest.len()];
        out.extend(before_value);
        if literal {
            let value = rest;
            string(&mut rest)?;
            let value = &value[..value.len() - rest.len()];
            // One that is shorter already is a name.
            let is_path = entry == AUTHORITY && value.len() > LOCALHOST.len();
            out.extend(if is_path { &LOCALHOST[..] } else { value });
        }
    }
    Some(out)
}

/// Takes an integer whose first byte has this many bits for it: RFC 7541, section 5.1.
fn number(rest: &mut &[u8], bits: u32) -> Option<usize> {
    let mask = (1_usize << bits) - 1;
    let mut value = usize::from(*rest.split_off_first()?) & mask;
    if value < mask {
        return Some(value);
    }
    // No length or index here needs more than four bytes.
    for shift in [0, 7, 14, 21] {
        let byte = *rest.split_off_first()?;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Takes a string: RFC 7541, section 5.2. Whether it is compressed does not matter here.
fn string(rest: &mut &[u8]) -> Option<()> {
    let length = number(rest, 7)?;
    rest.split_off(..length).map(drop)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What grpc-go sends for `/var/lib/kubelet/...-reg.sock`: `:method POST`, `:scheme http`, a path,
    /// the authority, and more.
    fn block(authority: &[u8]) -> Vec<u8> {
        let mut block = vec![0x83, 0x86, 0x44, 2, b'/', b'x', 0x41];
        block.push(u8::try_from(authority.len()).unwrap());
        block.extend(authority);
        block.extend([0x40, 2, b't', b'e', 8]);
        block.extend(b"trailers");
        block
    }

    #[test]
    fn a_path_becomes_a_name() {
        let changed = rewrite(&block(b"%2Fvar%2Flib%2Fkubelet%2Fx.sock")).unwrap();
        assert_eq!(changed, block(b"localhost"));
        assert_eq!(rewrite(&changed), Some(changed.clone()));
        // The next request refers to the table.
        assert_eq!(rewrite(&[0x83, 0xbe, 0xbf, 0x3f, 0xe1, 0x1f]).unwrap().len(), 6);
        for cut in 8..30 {
            assert_eq!(rewrite(&block(b"%2Fvar%2Flib%2Fkubelet%2Fx.sock")[..cut]), None, "{cut}");
        }
    }

    proptest! {
        #[test]
        fn nothing_grows_or_panics(block in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(changed) = rewrite(&block) {
                prop_assert!(changed.len() <= block.len());
            }
        }
    }
}
