//! What a holder and its worker say to each other, each message one packet of a local socket.
//!
//! Invariant: any bytes decode to a message or to nothing, and what is encoded decodes to itself.
//! Numbers are little-endian. Descriptors travel beside a message, never in it.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// The first bytes of every message; another version of the protocol begins with others.
const MAGIC: [u8; 4] = *b"wdh1";

/// The longest message: [`PAGE_ENTRIES`] registrations, or a mount point with an INIT message.
pub(crate) const MAX_MESSAGE_BYTES: usize = 16 << 10;

/// Registrations in one message.
pub(crate) const PAGE_ENTRIES: usize = 1024;

/// Descriptors in one message: one for each event loop.
pub(crate) const MAX_DESCRIPTORS: usize = 16;

/// One message. The worker asks, and the holder answers with the number of the question; only
/// [`Message::Leave`] is not asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    /// Worker: let me serve this mount. `take_over` makes the present worker leave.
    Attach { take_over: bool },
    /// Worker: I am about to read requests; this is my answer to INIT.
    Ready { answer: Vec<u8> },
    /// Worker: the file beside this message is the one of a node.
    Register { node: u64 },
    /// Worker: a number is not needed any more.
    Release { backing: u32 },
    /// Worker: what is registered, from this node on?
    Inherited { from: u64 },
    /// Worker: unmount, only if nobody uses the mount or else in any case.
    Unmount { lazily: bool },
    /// Anyone: who are you?
    Ping,

    /// Holder: no. `errno` says it to a program and `why` to a person.
    Refused { errno: u32, why: String },
    /// Holder: serve. Beside it are descriptors of the device, one for each event loop. `later` is
    /// false for the first worker of this mount, to whom the kernel has not said anything yet.
    Attached { mount: [u8; 16], later: bool, target: Vec<u8>, init: Vec<u8> },
    /// Holder: begin to read. `same` is false when the kernel goes on with an earlier answer.
    Begin { same: bool, note: String },
    /// Holder: the number of the node.
    Registered { backing: u32 },
    /// Holder: registrations as (node, number); fewer than [`PAGE_ENTRIES`] are the last.
    Page { entries: Vec<(u64, u32)> },
    /// Holder: done.
    Done,
    /// Holder: the mount that it has, and the process that serves it; 0 is none.
    Pong { worker: u32, target: Vec<u8> },
    /// Holder, unasked: another worker takes over; stop reading, then close this socket.
    Leave,
}

impl Message {
    /// The packet, with the number that an answer repeats.
    pub(crate) fn encode(&self, number: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&number.to_le_bytes());
        let text = |out: &mut Vec<u8>, bytes: &[u8]| {
            // Longer texts are cut: they are only for a person, or refused by their length.
            let cut = &bytes[..bytes.len().min(MAX_MESSAGE_BYTES / 4)];
            out.extend_from_slice(&u32::try_from(cut.len()).unwrap_or(0).to_le_bytes());
            out.extend_from_slice(cut);
        };
        match self {
            Self::Attach { take_over } => out.extend([1, u8::from(*take_over)]),
            Self::Ready { answer } => {
                out.push(2);
                text(&mut out, answer);
            }
            Self::Register { node } => {
                out.push(3);
                out.extend(node.to_le_bytes());
            }
            Self::Release { backing } => {
                out.push(4);
                out.extend(backing.to_le_bytes());
            }
            Self::Inherited { from } => {
                out.push(5);
                out.extend(from.to_le_bytes());
            }
            Self::Unmount { lazily } => out.extend([6, u8::from(*lazily)]),
            Self::Ping => out.push(7),
            Self::Refused { errno, why } => {
                out.push(64);
                out.extend(errno.to_le_bytes());
                text(&mut out, why.as_bytes());
            }
            Self::Attached { mount, later, target, init } => {
                out.push(65);
                out.extend(mount);
                out.push(u8::from(*later));
                text(&mut out, target);
                text(&mut out, init);
            }
            Self::Begin { same, note } => {
                out.extend([66, u8::from(*same)]);
                text(&mut out, note.as_bytes());
            }
            Self::Registered { backing } => {
                out.push(67);
                out.extend(backing.to_le_bytes());
            }
            Self::Page { entries } => {
                out.push(68);
                for (node, backing) in entries.iter().take(PAGE_ENTRIES) {
                    out.extend(node.to_le_bytes());
                    out.extend(backing.to_le_bytes());
                }
            }
            Self::Done => out.push(69),
            Self::Pong { worker, target } => {
                out.push(70);
                out.extend(worker.to_le_bytes());
                text(&mut out, target);
            }
            Self::Leave => out.push(71),
        }
        out
    }

    /// The number and the message of a packet. The number is there for any packet of this protocol,
    /// the message only if it is whole and nothing follows it.
    pub(crate) fn decode(packet: &[u8]) -> Option<(u32, Option<Self>)> {
        let mut rest = Rest(packet.strip_prefix(&MAGIC)?);
        let number = rest.u32()?;
        Some((number, Self::body(&mut rest).filter(|_| rest.0.is_empty())))
    }

    fn body(rest: &mut Rest<'_>) -> Option<Self> {
        Some(match rest.u8()? {
            1 => Self::Attach { take_over: rest.flag()? },
            2 => Self::Ready { answer: rest.text()?.to_vec() },
            3 => Self::Register { node: rest.u64()? },
            4 => Self::Release { backing: rest.u32()? },
            5 => Self::Inherited { from: rest.u64()? },
            6 => Self::Unmount { lazily: rest.flag()? },
            7 => Self::Ping,
            64 => Self::Refused { errno: rest.u32()?, why: rest.words()? },
            65 => Self::Attached {
                mount: rest.take()?,
                later: rest.flag()?,
                target: rest.text()?.to_vec(),
                init: rest.text()?.to_vec(),
            },
            66 => Self::Begin { same: rest.flag()?, note: rest.words()? },
            67 => Self::Registered { backing: rest.u32()? },
            68 => {
                let mut entries = Vec::new();
                while !rest.0.is_empty() && entries.len() < PAGE_ENTRIES {
                    entries.push((rest.u64()?, rest.u32()?));
                }
                Self::Page { entries }
            }
            69 => Self::Done,
            70 => Self::Pong { worker: rest.u32()?, target: rest.text()?.to_vec() },
            71 => Self::Leave,
            _ => return None,
        })
    }
}

/// What is not decoded yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn flag(&mut self) -> Option<bool> {
        self.u8().filter(|byte| *byte < 2).map(|byte| byte == 1)
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u32()?).ok()?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(text)
    }

    fn words(&mut self) -> Option<String> {
        String::from_utf8(self.text()?.to_vec()).ok()
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
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
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
