//! What a holder and its worker say to each other, each message one packet of a local socket.
//!
//! Invariant: any bytes decode to a message or to nothing, and what is encoded decodes to itself.
//! Numbers are little-endian. Descriptors travel beside a message, never in it.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg,
    sendmsg, socket_with,
};

/// The first bytes of every message; another version of the protocol begins with others.
const MAGIC: [u8; 4] = *b"wdh1";

/// Magic, kind, flag, two zeros, number, `small` and `large`.
const HEADER_BYTES: usize = 24;

/// The longest message: [`PAGE_ENTRIES`] registrations, or a path or INIT message and more.
pub(crate) const MAX_MESSAGE_BYTES: usize = 16 << 10;

/// Registrations in one message.
pub(crate) const PAGE_ENTRIES: usize = 1024;

/// A registration in a message: node and number.
const ENTRY_BYTES: usize = 12;

/// Descriptors beside one message: one for each event loop.
pub(crate) const MAX_DESCRIPTORS: usize = 16;

/// What is said. A worker asks, and the holder answers with the number of the question; only
/// [`Kind::Leave`] is not asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Worker: let me serve this mount. `flag`: the present worker has to leave.
    Attach = 1,
    /// Worker: I am about to read requests; `body` is my answer to INIT.
    Ready,
    /// Worker: the file beside this message is that of the node `large`.
    Register,
    /// Worker: the number `small` is not needed any more.
    Release,
    /// Worker: what is registered, from the node `large` on?
    Inherited,
    /// Worker: unmount, only if nobody uses the mount or else (`flag`) in any case.
    Unmount,
    /// Anyone: who are you?
    Ping,
    /// Holder: no. `small` is an errno for a program, and `body` words for a person.
    Refused,
    /// Holder: serve. `body` is the id of the mount (16 bytes) and the kernel's INIT. `flag`: an
    /// earlier worker has begun, so the kernel knows nodes. Beside it are descriptors of the
    /// device, one for each event loop.
    Attached,
    /// Holder: begin to read. `flag`: the kernel goes by this worker's answer to INIT. `body` is a
    /// note for a person, or empty.
    Begin,
    /// Holder: the node has the number `small`.
    Registered,
    /// Holder: `body` is registrations; fewer than [`PAGE_ENTRIES`] are the last.
    Page,
    /// Holder: done.
    Done,
    /// Holder: `body` is the mount point that I have, and `small` the process that serves it, 0 for
    /// none.
    Pong,
    /// Holder, unasked: another worker takes over; stop reading, then close this socket.
    Leave,
}

impl Kind {
    const ALL: [Self; 15] = [
        Self::Attach,
        Self::Ready,
        Self::Register,
        Self::Release,
        Self::Inherited,
        Self::Unmount,
        Self::Ping,
        Self::Refused,
        Self::Attached,
        Self::Begin,
        Self::Registered,
        Self::Page,
        Self::Done,
        Self::Pong,
        Self::Leave,
    ];
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) kind: Kind,
    pub(crate) flag: bool,
    pub(crate) small: u32,
    pub(crate) large: u64,
    pub(crate) body: Vec<u8>,
}

impl Message {
    /// A message of which only the kind matters.
    pub(crate) fn of(kind: Kind) -> Self {
        Self { kind, flag: false, small: 0, large: 0, body: Vec::new() }
    }

    /// A message that carries bytes; what is too long to send is cut.
    pub(crate) fn with(kind: Kind, body: &[u8]) -> Self {
        let length = body.len().min(MAX_MESSAGE_BYTES - HEADER_BYTES);
        Self { body: body[..length].to_vec(), ..Self::of(kind) }
    }

    /// A [`Kind::Page`].
    pub(crate) fn page(entries: impl Iterator<Item = (u64, u32)>) -> Self {
        let mut body = Vec::new();
        for (node, backing) in entries.take(PAGE_ENTRIES) {
            body.extend(node.to_le_bytes());
            body.extend(backing.to_le_bytes());
        }
        Self { body, ..Self::of(Kind::Page) }
    }

    /// The registrations of a [`Kind::Page`].
    pub(crate) fn entries(&self) -> impl Iterator<Item = (u64, u32)> {
        self.body.chunks_exact(ENTRY_BYTES).filter_map(|entry| {
            let (node, backing) = entry.split_first_chunk()?;
            Some((u64::from_le_bytes(*node), u32::from_le_bytes(backing.try_into().ok()?)))
        })
    }

    /// The packet, with the number that an answer repeats.
    pub(crate) fn encode(&self, number: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES + self.body.len());
        out.extend(MAGIC);
        out.extend([self.kind as u8, u8::from(self.flag), 0, 0]);
        out.extend(number.to_le_bytes());
        out.extend(self.small.to_le_bytes());
        out.extend(self.large.to_le_bytes());
        out.extend(&self.body);
        out
    }

    /// The number and the message of a packet.
    pub(crate) fn decode(packet: &[u8]) -> Option<(u32, Self)> {
        let (header, body) = packet.split_first_chunk::<HEADER_BYTES>()?;
        let [_, _, _, _, kind, flag @ 0..=1, 0, 0, ..] = *header else { return None };
        let kind = Kind::ALL.into_iter().find(|known| *known as u8 == kind)?;
        let word = |at: usize| header.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
        let large = u64::from_le_bytes(header[16..].try_into().ok()?);
        let message = Self { kind, flag: flag == 1, small: word(12)?, large, body: body.to_vec() };
        header.starts_with(&MAGIC).then_some((word(8)?, message))
    }
}

/// A connection to the holder that listens at a path. Where as many wait as it lets, it is given up
/// in time (EAGAIN): one that is stopped accepts nobody.
pub(crate) fn connect_to(path: &Path, within: Duration) -> io::Result<OwnedFd> {
    /// A time of 0 would mean for ever.
    const LEAST: Duration = Duration::from_millis(1);
    let address = SocketAddrUnix::new(path)?;
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let until = Instant::now() + within;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // It is for connecting only; sending never waits.
        set_socket_timeout(&socket, Timeout::Send, Some(left.max(LEAST)))?;
        match connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            Err(Errno::INTR) if !left.is_zero() => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sends a packet with descriptors beside it; it never waits (EAGAIN).
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    packet: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    // The space is rounded up, so that it may take more than the receiver has room for.
    if descriptors.len() > MAX_DESCRIPTORS
        || !(descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(descriptors)))
    {
        return Err(Errno::TOOBIG.into());
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    retry_on_intr(|| sendmsg(socket, &[IoSlice::new(packet)], &mut control, flags))?;
    Ok(())
}

/// Receives a packet and what is beside it. An empty packet is the end. It waits only if the
/// socket does.
pub(crate) fn receive(socket: impl AsFd, flags: RecvFlags) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut packet = vec![0; MAX_MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let received = retry_on_intr(|| {
        recvmsg(&socket, &mut [IoSliceMut::new(&mut packet)], &mut control, flags)
    })?;
    packet.truncate(received.bytes);
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    Ok((packet, descriptors))
}

#[cfg(test)]
mod tests;
