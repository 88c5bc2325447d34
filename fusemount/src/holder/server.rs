//! The holder's one loop: who is connected, who may read requests, and whose time is over.
//!
//! Invariant: at most one peer has the device, and whoever had it is gone before the next gets it.
//! Each turn hears every peer once, waits for none, and drops who does not keep to the protocol.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketFlags, accept_with};
use rustix::process::{Signal, geteuid, pidfd_send_signal};

use super::connection::Connection;
use super::wire::{Kind, Message, receive, send};
use super::{device, say, system};
use crate::config::HolderConfig;

/// Sockets at once: one worker, one newcomer, and some who ask. When there is no room, the one who
/// asks for longest goes.
pub(super) const MAX_PEERS: usize = 16;

/// How long a peer may be connected without being a worker, and how long a worker may take from
/// being attached to being ready.
const SETTLE_WITHIN: Duration = Duration::from_secs(10);

/// How long a worker has to leave when another takes over; then it is killed. Readers wait for as
/// long.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);

/// How often a busy mount is tried again.
const RETRY_EVERY: Duration = Duration::from_millis(50);

/// What a process of another user is told.
const NO_WORKER: &str = "this user may not be a worker of this mount holder";

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
    /// It reads requests, and was told to leave.
    Leaving,
}

/// One connection.
struct Peer {
    socket: OwnedFd,
    /// 0 when it cannot be seen from here.
    pid: u32,
    /// None where the kernel does not say, or the process has ended: nobody is killed then.
    process: Option<OwnedFd>,
    /// False for one that may only ask how the holder is.
    may_work: bool,
    role: Role,
    /// When it got its role.
    since: Instant,
}

impl Peer {
    fn turn(&mut self, role: Role) {
        (self.role, self.since) = (role, Instant::now());
    }

    fn has_device(&self) -> bool {
        !matches!(self.role, Role::Stranger | Role::Newcomer { .. })
    }

    fn deadline(&self) -> Option<Instant> {
        match self.role {
            Role::Stranger | Role::Attached => Some(self.since + SETTLE_WITHIN),
            Role::Leaving => Some(self.since + LEAVE_WITHIN),
            Role::Newcomer { .. } | Role::Worker => None,
        }
    }

    /// An error means that it has to go, as who does not read what it asked for has.
    fn tell(&self, number: u32, message: &Message, beside: &[BorrowedFd<'_>]) -> io::Result<()> {
        let told = send(self.socket.as_fd(), &message.encode(number), beside);
        // Who has the device has it until it closes its end.
        if self.has_device() { Ok(()) } else { told }
    }

    fn refuse(&self, number: u32, error: &io::Error, why: &str) -> io::Result<()> {
        let small = error.raw_os_error().map_or(0, i32::unsigned_abs);
        self.tell(number, &Message { small, ..Message::with(Kind::Refused, why.as_bytes()) }, &[])
    }
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
    /// Until when the mount is unmounted only if nobody uses it.
    ending: Option<Instant>,
}

impl Holder {
    pub(super) fn new(config: HolderConfig, target: PathBuf, connection: Connection) -> Self {
        let (connection, alone_since) = (Some(connection), Some(Instant::now()));
        Self { config, target, connection, peers: Vec::new(), alone_since, ending: None }
    }

    /// Serves until the mount is gone, or to be given up.
    pub(super) fn run(&mut self, listener: &OwnedFd, signals: &OwnedFd) -> io::Result<()> {
        loop {
            let came = self.wait(listener, signals)?;
            let device = came.get(2 + self.peers.len()).copied().unwrap_or(PollFlags::empty());
            if device.contains(PollFlags::ERR) {
                say(format_args!("`{}` was unmounted", self.target.display()));
                return Ok(());
            }
            if let Some(connection) = &self.connection
                && device.contains(PollFlags::IN)
            {
                connection.refuse_requests()?;
            }
            // Backwards, since a peer may go.
            for index in (0..self.peers.len()).rev() {
                // With one, others may have gone.
                if came[2 + index].is_empty() || index >= self.peers.len() {
                    continue;
                }
                match self.hear(index) {
                    Ok(true) => return Ok(()),
                    Ok(false) => {}
                    Err(_) => self.lose(index),
                }
            }
            if !came[1].is_empty() {
                // It fails when the peer has gone.
                let _ = self.accept(listener);
            }
            self.keep_time();
            if !came[0].is_empty() {
                self.ending.get_or_insert(Instant::now() + self.config.grace);
            }
            if let Some(until) = self.ending {
                let unmounted = |c: &Connection| c.unmount(Instant::now() >= until).is_ok();
                if self.connection.as_ref().is_none_or(unmounted) {
                    return Ok(());
                }
            }
        }
    }

    /// Waits for whatever comes first, a time included: what came of the signals, the listener,
    /// each peer, and the device if it is looked at.
    fn wait(&self, listener: &OwnedFd, signals: &OwnedFd) -> io::Result<Vec<PollFlags>> {
        // A signal that was heard stays readable.
        let unheard = if self.ending.is_none() { PollFlags::IN } else { PollFlags::empty() };
        let mut sockets = vec![PollFd::new(signals, unheard), PollFd::new(listener, PollFlags::IN)];
        sockets.extend(self.peers.iter().map(|peer| PollFd::new(&peer.socket, PollFlags::IN)));
        // While a worker reads, waiting here as well would wake this process for each request.
        if let Some(connection) = self.connection.as_ref().filter(|_| self.is_alone()) {
            let refuses = connection.is_begun() && self.is_impatient();
            let wanted = if refuses { PollFlags::IN } else { PollFlags::empty() };
            sockets.push(PollFd::new(&connection.device, wanted));
        }
        let now = Instant::now();
        let deadlines = self.peers.iter().filter_map(Peer::deadline);
        let retry = self.ending.map(|_| now + RETRY_EVERY);
        let patience = self.patience_ends().filter(|end| *end > now);
        let next = deadlines.chain(patience).chain(retry).min();
        // Rounded up, or the last millisecond would be spent turning.
        let wait = next.map(|next| (next - now.min(next)).max(Duration::from_millis(1)));
        let wait = wait.and_then(|wait| Timespec::try_from(wait).ok());
        match poll(&mut sockets, wait.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(sockets.iter().map(PollFd::revents).collect()),
            Err(error) => Err(error.into()),
        }
    }

    fn is_alone(&self) -> bool {
        !self.peers.iter().any(Peer::has_device)
    }

    /// Until when requests are kept waiting for a worker.
    fn patience_ends(&self) -> Option<Instant> {
        self.alone_since.filter(|_| self.is_alone()).map(|since| since + self.config.patience)
    }

    fn is_impatient(&self) -> bool {
        self.patience_ends().is_some_and(|end| Instant::now() >= end)
    }

    fn accept(&mut self, listener: &OwnedFd) -> io::Result<()> {
        let socket = accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        let (pid, uid) = system::peer(socket.as_fd())?;
        let process = system::peer_process(socket.as_fd()).ok();
        let since = Instant::now();
        let may_ask = [0, geteuid().as_raw()].contains(&uid);
        let may_work = self.config.uids.contains(&uid) || (may_ask && !self.config.only_uids);
        let peer = Peer { socket, pid, process, may_work, role: Role::Stranger, since };
        if !may_ask && !may_work {
            say(format_args!("refused process {pid} of user {uid}"));
            return peer.refuse(0, &Errno::ACCESS.into(), NO_WORKER);
        }
        if self.peers.len() >= MAX_PEERS {
            // The latest are at the end.
            let oldest = self.peers.iter().position(|peer| peer.role == Role::Stranger);
            self.peers.remove(oldest.ok_or(Errno::BUSY)?);
        }
        self.peers.push(peer);
        Ok(())
    }

    /// Reads one message of a peer and does what it says. True when the mount is gone; an error
    /// when the peer is, or has to go.
    fn hear(&mut self, index: usize) -> io::Result<bool> {
        let peer = &mut self.peers[index];
        let (packet, beside) = match receive(&peer.socket, RecvFlags::DONTWAIT) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            received => received?,
        };
        let serves = peer.has_device();
        let (number, message) = match Message::decode(&packet) {
            Some(decoded) => decoded,
            None if serves && !packet.is_empty() => return Ok(false),
            None => return Err(Errno::PROTO.into()),
        };
        let kind = message.kind;
        let answer = match (kind, self.connection.as_mut().filter(|_| serves)) {
            (Kind::Ping, _) => {
                let worker = self.peers.iter().find(|peer| peer.has_device());
                let small = worker.map_or(0, |worker| worker.pid.max(1));
                Ok(Message {
                    small,
                    ..Message::with(Kind::Pong, self.target.as_os_str().as_bytes())
                })
            }
            (Kind::Attach, _) if !peer.may_work => {
                say(format_args!("refused process {}: its user may not be the worker", peer.pid));
                return peer.refuse(number, &Errno::ACCESS.into(), NO_WORKER).map(|()| false);
            }
            (Kind::Attach, _) => return self.attach(index, number, message.flag).map(|()| false),
            (Kind::Ready, Some(connection)) if peer.role == Role::Attached => {
                connection.answer(message.body).map(|(flag, note)| {
                    peer.turn(Role::Worker);
                    self.alone_since = None;
                    say(format_args!("process {} serves the mount {note}", peer.pid));
                    Message { flag, ..Message::with(Kind::Begin, note.as_bytes()) }
                })
            }
            (Kind::Register, Some(connection)) => {
                let device = connection.device.as_fd();
                let file = beside.first().map(AsFd::as_fd).ok_or_else(|| Errno::BADF.into());
                let registered = file.and_then(|file| {
                    connection.registrations.register(message.large, device, file)
                });
                registered.map(|small| Message { small, ..Message::of(Kind::Registered) })
            }
            (Kind::Release, Some(connection)) => {
                if connection.registrations.release(message.small) {
                    // It fails only for a number that the kernel does not know.
                    let _ = device::close_backing(connection.device.as_fd(), message.small);
                }
                Ok(Message::of(Kind::Done))
            }
            (Kind::Inherited, Some(connection)) => {
                Ok(Message::page(connection.registrations.from(message.large)))
            }
            (Kind::Unmount, Some(connection)) => {
                connection.unmount(message.flag).map(|()| Message::of(Kind::Done))
            }
            _ => Err(Errno::INVAL.into()),
        };
        let gone = kind == Kind::Unmount && answer.is_ok();
        let peer = &self.peers[index];
        match answer {
            Ok(answer) => peer.tell(number, &answer, &[])?,
            Err(error) => {
                peer.refuse(number, &error, &format!("refused by the holder: {error}"))?;
            }
        }
        Ok(gone)
    }

    /// Lets a peer serve the mount, or makes it wait for the one that does.
    fn attach(&mut self, index: usize, number: u32, take_over: bool) -> io::Result<()> {
        let Some(server) = self.peers.iter().position(Peer::has_device) else {
            return self.serve(index, number);
        };
        let (pid, newcomer) = (self.peers[server].pid, &mut self.peers[index]);
        if !take_over || server == index {
            let why = format!(
                "process {pid} serves this mount already; end it, or start with `--take-over`"
            );
            return newcomer.refuse(number, &Errno::BUSY.into(), &why);
        }
        say(format_args!("process {pid} leaves for process {}", newcomer.pid));
        // Of several, the first that finds the place free is served.
        newcomer.turn(Role::Newcomer { question: number });
        let leaving = &mut self.peers[server];
        if leaving.role != Role::Leaving {
            leaving.turn(Role::Leaving);
            // If it cannot be told, it does not read, and will be killed.
            leaving.tell(0, &Message::of(Kind::Leave), &[])?;
        }
        Ok(())
    }

    /// Gives the device to a peer, which nobody else has.
    fn serve(&mut self, index: usize, number: u32) -> io::Result<()> {
        let peer = &mut self.peers[index];
        if self.connection.is_none() {
            match Connection::open(&self.target, &self.config) {
                Ok(connection) => self.connection = Some(connection),
                Err(error) => {
                    peer.turn(Role::Stranger);
                    return peer.refuse(number, &Errno::IO.into(), &error.to_string());
                }
            }
        }
        let connection = self.connection.as_ref().expect("it was made if there was none");
        let mut attached = Message::with(Kind::Attached, &connection.id);
        attached.body.extend(&connection.init);
        attached.flag = connection.is_begun();
        let loops: Vec<_> = connection.loops.iter().map(AsFd::as_fd).collect();
        peer.tell(number, &attached, &loops)?;
        peer.turn(Role::Attached);
        Ok(())
    }

    /// Drops a peer. If it had the device, what it had taken is sent again, and who waits for it to
    /// leave is served.
    fn lose(&mut self, index: usize) {
        let peer = self.peers.remove(index);
        if !peer.has_device() {
            return;
        }
        if peer.role != Role::Attached {
            let patience = self.config.patience;
            say(format_args!(
                "process {} is gone; requests wait {patience:?} for another",
                peer.pid
            ));
            self.alone_since = Some(Instant::now());
        }
        // At once, not when the next is there: who waits for a request that somebody has taken
        // cannot even be killed.
        if let Some(connection) = &mut self.connection {
            connection.resend();
        }
        while self.is_alone() {
            let newcomer = self.peers.iter().enumerate().find_map(|(at, peer)| match peer.role {
                Role::Newcomer { question } => Some((at, question)),
                _ => None,
            });
            let Some((at, question)) = newcomer else { return };
            if self.serve(at, question).is_err() {
                self.peers.remove(at);
            }
        }
    }

    /// Does what is due.
    fn keep_time(&mut self) {
        let now = Instant::now();
        let awaited = self.peers.iter().any(|peer| matches!(peer.role, Role::Newcomer { .. }));
        for index in (0..self.peers.len()).rev() {
            // Losing one may lose others.
            let Some(peer) = self.peers.get_mut(index) else { continue };
            if peer.deadline().is_none_or(|deadline| now < deadline) {
                continue;
            }
            if peer.role != Role::Leaving {
                self.lose(index);
                continue;
            }
            if !awaited {
                // Whoever wanted its place has given up.
                peer.turn(Role::Worker);
                continue;
            }
            // If that fails, the newcomer waits until it gives up: two that read would both answer.
            let killed = kill(peer.process.as_ref());
            say(format_args!("process {} does not leave; killing it: {killed:?}", peer.pid));
            peer.turn(Role::Leaving);
        }
        if self.is_impatient() && self.connection.as_ref().is_some_and(|c| !c.is_begun()) {
            // A connection that no worker has begun cannot refuse either: those who wait for it
            // are let go by unmounting, and it is mounted again for the worker that comes.
            say(format_args!("no worker came in time; `{}` is let go", self.target.display()));
            self.connection = None;
        }
    }
}

/// Ends a process for certain. Its number would not do: a socket may outlive the process that made
/// it, and the number then be another's.
fn kill(process: Option<&OwnedFd>) -> io::Result<()> {
    Ok(pidfd_send_signal(process.ok_or(Errno::SRCH)?, Signal::KILL)?)
}
