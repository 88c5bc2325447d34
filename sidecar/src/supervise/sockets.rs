//! Packets between a worker and its supervisor, and the listening sockets that travel beside them.
//!
//! Invariant: a socket that a worker had kept stays open until a worker has it again, says that it
//! stops, or the supervisor ends: clients that connect meanwhile wait in the backlog and are not
//! refused. The service manager keeps it over a restart of the supervisor. A worker that serves without
//! having asked for a socket ends it: nobody waits for nobody. Nothing here waits, and nobody accepts a
//! connection in the supervisor.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::retry_on_intr;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::store;

/// Sockets that are kept at most; there is one endpoint whose clients should not notice a restart.
const MAX_KEPT: usize = 4;
/// Longest packet: a word and the name of a role.
const PACKET_BYTES: usize = 256;
/// Tells the worker which descriptors it got: `ROLE:DESCRIPTOR`, with commas between.
pub(super) const VARIABLE: &str = "WARPDRIVE_LISTENERS";

/// Two ends of a way for packets; neither waits.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Sends a packet, with a descriptor beside it where there is one.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    text: &str,
    beside: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let beside = beside.as_slice();
    if !beside.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(beside));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    retry_on_intr(|| sendmsg(socket, &[IoSlice::new(text.as_bytes())], &mut control, flags))?;
    Ok(())
}

/// Receives a packet; an empty one is the end.
pub(super) fn receive(socket: BorrowedFd<'_>) -> io::Result<(String, Option<OwnedFd>)> {
    let mut packet = [0; PACKET_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = retry_on_intr(|| {
        recvmsg(socket, &mut [IoSliceMut::new(&mut packet)], &mut control, flags)
    })?;
    let beside = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut received) => received.next(),
        _ => None,
    });
    Ok((String::from_utf8_lossy(&packet[..received.bytes]).into_owned(), beside))
}

/// Listening sockets by what they are for.
#[derive(Debug, Default)]
pub(super) struct Kept(Vec<Listening>);

#[derive(Debug)]
struct Listening {
    role: String,
    socket: OwnedFd,
    /// The present worker listens at it.
    in_use: bool,
}

impl Kept {
    /// What the service manager kept over a restart of the unit.
    pub(super) fn of_manager() -> Self {
        let mut kept = Self::default();
        for (role, socket) in store::take() {
            kept.add(&role, socket, false);
        }
        kept
    }

    /// Keeps a socket in place of the one before it in its role.
    pub(super) fn keep(&mut self, role: &str, socket: OwnedFd) {
        if let Some(kept) = self.add(role, socket, true) {
            store::put(role, kept.socket.as_fd());
        }
    }

    fn add(&mut self, role: &str, socket: OwnedFd, in_use: bool) -> Option<&Listening> {
        self.0.retain(|kept| kept.role != role);
        // A role is a word of the command line, and no separator of the variable.
        let is_word = role.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if self.0.len() >= MAX_KEPT || !is_word {
            return None;
        }
        self.0.push(Listening { role: role.to_owned(), socket, in_use });
        self.0.last()
    }

    /// Another worker has begun: it has to say again what it listens at.
    pub(super) fn begin(&mut self) {
        self.0.iter_mut().for_each(|kept| kept.in_use = false);
    }

    /// The worker serves: what it did not ask for is not kept any more.
    pub(super) fn settle(&mut self) {
        self.0.retain(|kept| {
            if !kept.in_use {
                store::forget(&kept.role);
            }
            kept.in_use
        });
    }

    /// Nothing is kept any more: whoever connects is refused, unless the service manager starts this
    /// again.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Copies that the next worker inherits, and what its variable says of them.
    pub(super) fn for_worker(&self) -> io::Result<(Vec<OwnedFd>, String)> {
        // `dup` leaves out close-on-exec.
        let copies = self.0.iter().map(|kept| Ok(rustix::io::dup(kept.socket.as_fd())?));
        let copies = copies.collect::<io::Result<Vec<_>>>()?;
        let said = self.0.iter().zip(&copies);
        let said = said.map(|(kept, copy)| format!("{}:{}", kept.role, copy.as_raw_fd()));
        let said = said.collect::<Vec<_>>().join(",");
        Ok((copies, said))
    }
}

/// Roles and descriptors of a variable that [`Kept::for_worker`] wrote.
pub(super) fn parse(value: &str) -> Vec<(String, i32)> {
    let pairs = value.split(',').filter_map(|pair| {
        let (role, descriptor) = pair.split_once(':')?;
        Some((role.to_owned(), descriptor.parse().ok()?))
    });
    pairs.take(MAX_KEPT).collect()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_socket_travels_and_is_kept_open() {
        let (ours, theirs) = pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        send(theirs.as_fd(), "LISTEN=s3", Some(listener.as_fd())).unwrap();
        send(theirs.as_fd(), "READY=1", None).unwrap();
        drop((theirs, listener));
        let (text, socket) = receive(ours.as_fd()).unwrap();
        let mut kept = Kept::default();
        kept.keep(text.strip_prefix("LISTEN=").unwrap(), socket.unwrap());
        let (text, socket) = receive(ours.as_fd()).unwrap();
        assert_eq!((&*text, socket.is_none()), ("READY=1", true));
        assert_eq!(receive(ours.as_fd()).unwrap().0, "", "the end");
        // Nobody accepts, and nobody is refused.
        TcpStream::connect(address).unwrap();
        let (copies, said) = kept.for_worker().unwrap();
        assert_eq!(parse(&said), [("s3".to_owned(), copies[0].as_raw_fd())]);
        drop(copies);
        kept.settle();
        TcpStream::connect(address).unwrap();
        // The next worker serves, and does not ask for it.
        kept.begin();
        TcpStream::connect(address).unwrap();
        kept.settle();
        assert!(TcpStream::connect(address).is_err());
    }

    #[test]
    fn what_is_no_list_of_descriptors_is_nothing() {
        for bad in ["", "s3", "s3:", ":x", "s3:-", ",,"] {
            assert!(parse(bad).is_empty(), "{bad}");
        }
    }

    #[test]
    fn roles_are_few_and_words() {
        let mut kept = Kept::default();
        for role in ["a", "a", "b c", "d,", "", "e", "f", "g", "h"] {
            kept.keep(role, pair().unwrap().0);
        }
        assert!(kept.0.len() <= MAX_KEPT);
        assert_eq!(kept.0.iter().filter(|kept| kept.role == "a").count(), 1);
        kept.clear();
        assert!(kept.0.is_empty());
    }
}
