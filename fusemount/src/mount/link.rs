//! A worker's end of the socket to its mount holder.
//!
//! Invariant: one question is under way at a time, and an answer is given only to its own question,
//! also after one was given up. Losing the holder is told once and for good.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown, shutdown};
use tokio::sync::watch;

use crate::holder::peer;
use crate::holder::wire::{self, Kind, Message};

/// Answers that nobody has taken yet: one, and those that came too late.
const MAX_ANSWERS: usize = 4;

/// An answer and the descriptors beside it.
pub(crate) type Answer = (Message, Vec<OwnedFd>);

/// What the worker has to know of its holder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct State {
    /// The holder wants this worker to leave.
    pub(super) leave: bool,
    /// The holder is gone, or has dropped this worker.
    pub(super) lost: bool,
}

struct Turn {
    number: u32,
    answers: Receiver<(u32, Answer)>,
}

/// A socket to a holder.
pub(crate) struct Link {
    socket: OwnedFd,
    turn: Mutex<Turn>,
    state: watch::Sender<State>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("state", &*self.state.borrow()).finish_non_exhaustive()
    }
}

impl Link {
    /// Connects in time to the holder that listens at a path. `lost` is run once, in a thread of its
    /// own, when the holder is gone; also after [`Link::close`].
    pub(super) fn open(
        path: &Path,
        within: Duration,
        lost: impl FnOnce() + Send + 'static,
    ) -> io::Result<Arc<Self>> {
        let (answering, answers) = sync_channel(MAX_ANSWERS);
        let link = Arc::new(Self {
            socket: wire::connect_to(path, within)?,
            turn: Mutex::new(Turn { number: 0, answers }),
            state: watch::Sender::new(State::default()),
        });
        let listening = Arc::clone(&link);
        std::thread::Builder::new().name("mount-holder".into()).spawn(move || {
            listening.listen(&answering);
            // Whoever waits for an answer hears of it first.
            drop(answering);
            lost();
            listening.state.send_modify(|state| state.lost = true);
        })?;
        Ok(link)
    }

    fn listen(&self, answering: &SyncSender<(u32, Answer)>) {
        loop {
            let (packet, beside) = match wire::receive(&self.socket, RecvFlags::empty()) {
                Ok(received) => received,
                // Told once, when the holder closed without reading a question; what it said before
                // comes after it.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => continue,
                Err(_) => return,
            };
            if packet.is_empty() {
                return;
            }
            match Message::decode(&packet) {
                Some((_, message)) if message.kind == Kind::Leave => {
                    self.state.send_modify(|state| state.leave = true);
                }
                // One that finds no room belongs to a question that was given up.
                Some((number, message)) => {
                    let _ = answering.try_send((number, (message, beside)));
                }
                None => tracing::warn!("the mount holder said something that is not understood"),
            }
        }
    }

    /// The process that listens, where it can be seen from here.
    pub(super) fn peer(&self) -> Option<u32> {
        let (pid, _) = peer(self.socket.as_fd()).ok()?;
        Some(pid).filter(|pid| *pid != 0)
    }

    /// What became of the holder.
    pub(super) fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Asks, and waits for the answer. Errors: ETIMEDOUT, ENOTCONN, or what sending says.
    pub(crate) fn ask(
        &self,
        question: &Message,
        beside: &[BorrowedFd<'_>],
        within: Duration,
    ) -> io::Result<Answer> {
        let mut turn = self.turn.lock();
        // 0 is what was not asked for.
        turn.number = turn.number.checked_add(1).unwrap_or(1);
        let number = turn.number;
        match wire::send(self.socket.as_fd(), &question.encode(number), beside) {
            Ok(()) => {}
            // A holder that has gone may have said why.
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
        let until = Instant::now() + within;
        loop {
            match turn.answers.recv_timeout(until.saturating_duration_since(Instant::now())) {
                // A user who may not ask is told so before asking anything.
                Ok((0, answer)) => return Ok(answer),
                Ok((answered, answer)) if answered == number => return Ok(answer),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return Err(Errno::TIMEDOUT.into()),
                Err(RecvTimeoutError::Disconnected) => return Err(Errno::NOTCONN.into()),
            }
        }
    }

    /// Ends the connection, so that the holder may let another worker read.
    pub(super) fn close(&self) {
        // It fails when the holder was faster.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }
}

fn is_gone(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN))
}
