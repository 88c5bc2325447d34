//! The holder's one loop: who is connected, who may read requests, and what time is it.
//!
//! Invariant: at most one peer has the device, and whoever had it is gone before the next gets it.
//! Each turn hears every peer once, waits for none, and drops who does not keep to the protocol.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketFlags, accept_with};
use rustix::process::{Pid, PidfdFlags, Signal, geteuid, pidfd_open, pidfd_send_signal};

use super::connection::{Connection, timespec};
use super::wire::{Message, PAGE_ENTRIES, receive, send};
use super::{HolderConfig, device, say, system};

/// Sockets at once: one worker, one newcomer, and some who ask. When there is no room, the one who
/// asks for longest goes.
pub(super) const MAX_PEERS: usize = 16;

/// How long a peer may be connected without being a worker, and how long a worker may take from
/// being attached to being ready.
const SETTLE_WITHIN: Duration = Duration::from_secs(10);

/// How long a worker has to leave when another takes over; then it is killed. Readers wait for as
/// long.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);

/// How long a worker that was killed may take to be gone.
const KILLED_WITHIN: Duration = Duration::from_secs(2);

/// How often a busy mount is tried again.
const RETRY_EVERY: Duration = Duration::from_millis(50);

/// What a peer is to the holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// It may ask.
    Stranger,
    /// It waits for the worker to leave, with the number of its question.
    Newcomer { question: u32 },
    /// It has the device.
    Attached,
    /// It reads requests.
    Worker,
    /// It reads requests, and was told to leave, and then perhaps killed.
    Leaving { killed: bool },
}

/// One connection.
#[derive(Debug)]
struct Peer {
    socket: OwnedFd,
    /// 0 when it cannot be seen from here.
    pid: u32,
    role: Role,
    /// When it got its role.
    since: Instant,
}

impl Peer {
    fn turn(&mut self, role: Role) {
        self.role = role;
        self.since = Instant::now();
    }

    fn has_device(&self) -> bool {
        !matches!(self.role, Role::Stranger | Role::Newcomer { .. })
    }

    /// When its time is over.
    fn deadline(&self) -> Option<Instant> {
        let within = match self.role {
            Role::Stranger | Role::Attached => SETTLE_WITHIN,
            Role::Leaving { killed: false } => LEAVE_WITHIN,
            Role::Leaving { killed: true } => KILLED_WITHIN,
            Role::Newcomer { .. } | Role::Worker => return None,
        };
        Some(self.since + within)
    }

    fn tell(&self, number: u32, message: &Message, beside: &[BorrowedFd<'_>]) -> Next {
        match send(self.socket.as_fd(), &message.encode(number), beside) {
            Ok(()) => Next::Keep,
            // Who has the device has it until it closes its end.
            Err(_) if self.has_device() => Next::Keep,
            // Also who does not read what it asked for.
            Err(_) => Next::Drop,
        }
    }

    fn refuse(&self, number: u32, errno: Errno, why: &str) -> Next {
        let errno = errno.raw_os_error().unsigned_abs();
        self.tell(number, &Message::Refused { errno, why: why.to_owned() }, &[])
    }
}

/// What to do with a peer after it was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Keep,
    Drop,
    /// Keep it, and end the holder.
    End,
}

/// What one wait brought.
struct Heard {
    ending: bool,
    newcomer: bool,
    device: PollFlags,
    /// Places in the list of peers.
    peers: Vec<usize>,
}

/// A holder at work.
pub(super) struct Holder {
    config: HolderConfig,
    target: PathBuf,
    /// None after nobody came for a mount that no worker had begun to serve.
    connection: Option<Connection>,
    /// At most [`MAX_PEERS`].
    peers: Vec<Peer>,
    /// Since when no worker reads requests.
    alone_since: Option<Instant>,
    /// True once it was said that requests are refused.
    refusing: bool,
    /// Until when the mount is unmounted only if nobody uses it.
    ending: Option<Instant>,
}

impl Holder {
    pub(super) fn new(config: HolderConfig, target: PathBuf, connection: Connection) -> Self {
        Self {
            config,
            target,
            connection: Some(connection),
            peers: Vec::new(),
            alone_since: Some(Instant::now()),
            refusing: false,
            ending: None,
        }
    }

    /// Serves until the mount is gone, which it is on return.
    pub(super) fn run(&mut self, listener: &OwnedFd, ending: &OwnedFd) -> io::Result<()> {
        loop {
            let heard = self.wait(listener, ending)?;
            if heard.device.contains(PollFlags::ERR) {
                say(format_args!("`{}` was unmounted", self.target.display()));
                return Ok(());
            }
            if heard.device.contains(PollFlags::IN)
                && let Some(Err(error)) = self.connection.as_ref().map(Connection::refuse_requests)
            {
                say(format_args!("refusing requests: {error}"));
            }
            // Backwards, since a peer may go.
            for index in heard.peers.into_iter().rev() {
                match self.hear(index) {
                    Next::Keep => {}
                    Next::Drop => self.lose(index),
                    Next::End => return Ok(()),
                }
            }
            if heard.newcomer {
                self.accept(listener);
            }
            self.keep_time();
            self.say_when_refusing();
            if heard.ending && self.ending.is_none() {
                self.ending = Some(Instant::now() + self.config.grace);
            }
            if let Some(until) = self.ending
                && self.unmount(Instant::now() >= until).is_ok()
            {
                return Ok(());
            }
        }
    }

    /// Waits for whatever comes first, a time included.
    fn wait(&self, listener: &OwnedFd, ending: &OwnedFd) -> io::Result<Heard> {
        // A signal that was heard stays readable.
        let signals = if self.ending.is_none() { PollFlags::IN } else { PollFlags::empty() };
        let mut sockets = vec![PollFd::new(ending, signals), PollFd::new(listener, PollFlags::IN)];
        sockets.extend(self.peers.iter().map(|peer| PollFd::new(&peer.socket, PollFlags::IN)));
        // While a worker reads, waiting here as well would wake this process for each request.
        let alone = !self.peers.iter().any(Peer::has_device);
        if let Some(connection) = self.connection.as_ref().filter(|_| alone) {
            let wanted = if self.refuses() { PollFlags::IN } else { PollFlags::empty() };
            sockets.push(PollFd::new(&connection.device, wanted));
        }
        let now = Instant::now();
        let deadlines = self.peers.iter().filter_map(Peer::deadline);
        let retry = self.ending.map(|_| now + RETRY_EVERY);
        let next = deadlines.chain(self.patience_ends()).chain(retry).min();
        let wait = next.map(|next| timespec(next.saturating_duration_since(now)));
        match poll(&mut sockets, wait.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let came = |socket: &PollFd<'_>| !socket.revents().is_empty();
        let peers = sockets.iter().skip(2).take(self.peers.len()).map(came);
        Ok(Heard {
            ending: came(&sockets[0]),
            newcomer: came(&sockets[1]),
            device: sockets.get(2 + self.peers.len()).map_or(PollFlags::empty(), PollFd::revents),
            peers: peers.enumerate().filter_map(|(at, came)| came.then_some(at)).collect(),
        })
    }

    /// When requests will no longer be kept waiting; none once that is so, or while it cannot be.
    fn patience_ends(&self) -> Option<Instant> {
        let waits = self.connection.is_some() && !self.refuses();
        let alone = !self.peers.iter().any(Peer::has_device);
        self.alone_since.filter(|_| waits && alone).map(|since| since + self.config.patience)
    }

    /// True while requests are answered with EIO, for want of a worker.
    fn refuses(&self) -> bool {
        self.connection.as_ref().is_some_and(Connection::is_begun)
            && !self.peers.iter().any(Peer::has_device)
            && self.alone_since.is_some_and(|since| since.elapsed() >= self.config.patience)
    }

    fn accept(&mut self, listener: &OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(socket) = accept_with(listener, flags) else { return };
        let Ok((pid, uid)) = system::peer(socket.as_fd()) else { return };
        let peer = Peer { socket, pid, role: Role::Stranger, since: Instant::now() };
        let known = [0, geteuid().as_raw()];
        if !known.contains(&uid) && !self.config.uids.contains(&uid) {
            say(format_args!("refused process {pid} of user {uid}"));
            peer.refuse(0, Errno::ACCESS, "this user may not be a worker of this mount holder");
            return;
        }
        if self.peers.len() >= MAX_PEERS {
            let strangers = self.peers.iter().enumerate().filter(|(_, p)| p.role == Role::Stranger);
            match strangers.min_by_key(|(_, peer)| peer.since).map(|(index, _)| index) {
                Some(oldest) => self.lose(oldest),
                None => return,
            }
        }
        self.peers.push(peer);
    }

    /// Reads one message of a peer and does what it says.
    fn hear(&mut self, index: usize) -> Next {
        let peer = &self.peers[index];
        let (packet, mut beside) = match receive(&peer.socket, RecvFlags::DONTWAIT) {
            Ok((packet, _)) if packet.is_empty() => return Next::Drop,
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Next::Keep,
            Err(_) => return Next::Drop,
        };
        let serves = peer.has_device();
        let (number, message) = match Message::decode(&packet) {
            Some(decoded) => decoded,
            None if serves => return peer.refuse(0, Errno::PROTO, "this is no message"),
            None => return Next::Drop,
        };
        match (message, self.connection.as_mut()) {
            (Some(Message::Ping), _) => {
                let worker = self.peers.iter().find(|peer| peer.has_device());
                let pong = Message::Pong {
                    worker: worker.map_or(0, |worker| worker.pid.max(1)),
                    target: self.target.as_os_str().as_bytes().to_vec(),
                };
                peer.tell(number, &pong, &[])
            }
            (Some(Message::Attach { take_over }), _) => self.attach(index, number, take_over),
            (Some(Message::Ready { answer }), Some(connection)) if peer.role == Role::Attached => {
                match connection.answer(answer) {
                    Ok((same, note)) => self.begin(index, number, same, note),
                    Err(error) => {
                        let why = format!("the kernel refused the answer to INIT: {error}");
                        peer.refuse(number, Errno::INVAL, &why)
                    }
                }
            }
            (Some(Message::Register { node }), Some(connection)) if serves => {
                let kept = &mut connection.registrations;
                let registered = match beside.pop() {
                    Some(file) => {
                        let device = connection.device.as_fd();
                        kept.register(node, || device::open_backing(device, file.as_fd()))
                    }
                    None => Err(Errno::BADF.into()),
                };
                match registered {
                    Ok(backing) => peer.tell(number, &Message::Registered { backing }, &[]),
                    Err(error) => peer.refuse(number, errno(&error), ""),
                }
            }
            (Some(Message::Release { backing }), Some(connection)) if serves => {
                if connection.registrations.release(backing) {
                    // It fails only for a number that the kernel does not know.
                    let _ = device::close_backing(connection.device.as_fd(), backing);
                }
                peer.tell(number, &Message::Done, &[])
            }
            (Some(Message::Inherited { from }), Some(connection)) if serves => {
                let entries = connection.registrations.from(from, PAGE_ENTRIES).collect();
                peer.tell(number, &Message::Page { entries }, &[])
            }
            (Some(Message::Unmount { lazily }), Some(connection)) if serves => {
                match connection.unmount(lazily) {
                    Ok(()) => {
                        // It ends in any case.
                        let _ = peer.tell(number, &Message::Done, &[]);
                        Next::End
                    }
                    Err(error) => peer.refuse(number, errno(&error), ""),
                }
            }
            _ => peer.refuse(number, Errno::INVAL, "this is not for this holder now"),
        }
    }

    /// Lets a peer serve the mount, or makes it wait for the one that does.
    fn attach(&mut self, index: usize, number: u32, take_over: bool) -> Next {
        let waits = self.peers.iter().any(|peer| matches!(peer.role, Role::Newcomer { .. }));
        let server = self.peers.iter().position(Peer::has_device);
        let Some(server) = server else { return self.serve(index, number) };
        let pid = self.peers[server].pid;
        if server == index || waits {
            let why = "another worker is about to take over this mount; try again later";
            return self.peers[index].refuse(number, Errno::BUSY, why);
        }
        if !take_over {
            let why = format!(
                "process {pid} serves this mount already; end it, or start with `--take-over`"
            );
            return self.peers[index].refuse(number, Errno::BUSY, &why);
        }
        say(format_args!("process {pid} leaves for process {}", self.peers[index].pid));
        self.peers[index].turn(Role::Newcomer { question: number });
        let leaving = &mut self.peers[server];
        // If it cannot be told, it does not read, and will be killed.
        let _ = leaving.tell(0, &Message::Leave, &[]);
        leaving.turn(Role::Leaving { killed: false });
        Next::Keep
    }

    /// Gives the device to a peer, which nobody else has.
    fn serve(&mut self, index: usize, number: u32) -> Next {
        if self.connection.is_none() {
            match Connection::open(&self.target, &self.config) {
                Ok(connection) => self.connection = Some(connection),
                Err(error) => {
                    return self.peers[index].refuse(number, Errno::IO, &error.to_string());
                }
            }
        }
        let connection = self.connection.as_ref().expect("it was made if there was none");
        let attached = Message::Attached {
            mount: connection.id,
            later: connection.is_begun(),
            target: self.target.as_os_str().as_bytes().to_vec(),
            init: connection.init.clone(),
        };
        let loops: Vec<_> = connection.loops.iter().map(AsFd::as_fd).collect();
        let told = self.peers[index].tell(number, &attached, &loops);
        if told == Next::Keep {
            self.peers[index].turn(Role::Attached);
        }
        told
    }

    /// Lets a worker read.
    fn begin(&mut self, index: usize, number: u32, same: bool, note: String) -> Next {
        let peer = &mut self.peers[index];
        peer.turn(Role::Worker);
        self.alone_since = None;
        if !note.is_empty() {
            say(format_args!("{note}"));
        }
        say(format_args!("process {} serves `{}`", peer.pid, self.target.display()));
        // What was sent again when the last worker ended waits in the queue; this is for what a
        // process that came from that worker may have taken since.
        if let Some(connection) = &mut self.connection {
            connection.resend();
        }
        peer.tell(number, &Message::Begin { same, note }, &[])
    }

    /// Drops a peer. If it had the device, what it had taken is sent again, and who waits for it to
    /// leave is served.
    fn lose(&mut self, index: usize) {
        let peer = self.peers.remove(index);
        if !peer.has_device() {
            return;
        }
        if peer.role != Role::Attached {
            say(format_args!("process {} no longer serves", peer.pid));
            self.alone_since = Some(Instant::now());
        }
        // At once, not when the next is there: who waits for a request that somebody has taken
        // cannot even be killed.
        if let Some(connection) = self.connection.as_mut().filter(|c| c.is_begun()) {
            connection.resend();
        }
        self.serve_newcomer();
    }

    fn serve_newcomer(&mut self) {
        let newcomer = self.peers.iter().enumerate().find_map(|(index, peer)| match peer.role {
            Role::Newcomer { question } => Some((index, question)),
            _ => None,
        });
        if let Some((index, question)) = newcomer
            && self.serve(index, question) != Next::Keep
        {
            self.peers.remove(index);
        }
    }

    /// Does what is due.
    fn keep_time(&mut self) {
        let now = Instant::now();
        for index in (0..self.peers.len()).rev() {
            // Losing one may serve another, so places are looked up again.
            let Some(peer) = self.peers.get_mut(index) else { continue };
            if peer.deadline().is_none_or(|deadline| now < deadline) {
                continue;
            }
            match peer.role {
                Role::Leaving { killed: false } => {
                    say(format_args!("process {} does not leave; killing it", peer.pid));
                    if let Err(error) = kill(peer.pid) {
                        say(format_args!("killing process {}: {error}", peer.pid));
                    }
                    peer.turn(Role::Leaving { killed: true });
                }
                Role::Leaving { killed: true } => {
                    // Two that read would both answer.
                    let why = format!("process {} does not leave; end it first", peer.pid);
                    peer.turn(Role::Worker);
                    for peer in &mut self.peers {
                        if let Role::Newcomer { question } = peer.role {
                            peer.turn(Role::Stranger);
                            let _ = peer.refuse(question, Errno::BUSY, &why);
                        }
                    }
                }
                _ => self.lose(index),
            }
        }
        if self.patience_ends().is_some_and(|end| now >= end) {
            // A connection that no worker has begun cannot refuse either: those who wait for it
            // are let go by unmounting, and it is mounted again for the worker that comes.
            say(format_args!("no worker came in time; `{}` is let go", self.target.display()));
            self.connection = None;
        }
    }

    fn say_when_refusing(&mut self) {
        let refuses = self.refuses();
        if refuses && !self.refusing {
            let patience = self.config.patience;
            say(format_args!("no worker for {patience:?}; requests fail with EIO until one comes"));
        }
        self.refusing = refuses;
    }

    fn unmount(&self, lazily: bool) -> io::Result<()> {
        self.connection.as_ref().map_or(Ok(()), |connection| connection.unmount(lazily))
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// Ends a process for certain. It is connected, so its number is its own.
fn kill(pid: u32) -> io::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    Ok(pidfd_send_signal(process, Signal::KILL)?)
}
