//! What the supervisor asks of the kernel: a worker, signals as messages, and a socket.
//!
//! Invariant: the signals of [`PASSED_ON`] are blocked in the supervisor from [`Inbox::open`] on, so
//! none is lost between two waits, and a worker begins with none blocked. Nothing here decides.

#![allow(unsafe_code)] // signalfd, signal masks and what happens between fork and exec have no safe form.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::FdFlags;
use rustix::process::{Pid, Signal};

use super::sockets::Kept;
use super::{link, sockets};

/// What is passed on to the worker.
const PASSED_ON: [Signal; 6] =
    [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2];
/// Lines that are heard in one turn: a worker says four in its life.
const MAX_LINES: usize = 16;

/// What a wait found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    /// A child may have ended.
    Child,
    /// A signal came.
    Signal(Signal),
    /// The worker told something.
    Told(String),
}

/// Signals as messages.
#[derive(Debug)]
pub(super) struct Inbox {
    signals: File,
}

impl Inbox {
    /// Blocks the signals, and listens for them. For a process of one thread.
    pub(super) fn open() -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set; the other calls are given an initialised one and
        // signals that exist.
        let descriptor = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
            for signal in PASSED_ON {
                libc::sigaddset(set.as_mut_ptr(), signal.as_raw());
            }
            if libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was made just now and has no other owner.
        Ok(Self { signals: unsafe { File::from_raw_fd(descriptor) } })
    }

    /// Waits until something came, or `limit` has passed.
    pub(super) fn wait(&self, worker: Option<&Worker>, limit: Option<Duration>) -> Vec<Seen> {
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let mut all = vec![PollFd::new(&self.signals, PollFlags::IN)];
        // A pipe that is closed at its other end would end every wait at once.
        let open = worker.filter(|worker| !worker.closed.get());
        all.extend(open.map(|worker| PollFd::new(&worker.pipe, PollFlags::IN)));
        // A signal that is not ours can interrupt it; the caller waits again.
        if poll(&mut all, limit.as_ref()).is_err() {
            return Vec::new();
        }
        let mut seen = Vec::new();
        // What a worker told comes before its end, also where both are there.
        seen.extend(worker.into_iter().flat_map(Worker::told));
        seen.extend(self.signals());
        seen
    }

    fn signals(&self) -> Vec<Seen> {
        let mut seen = Vec::new();
        let mut record = [0_u8; size_of::<libc::signalfd_siginfo>()];
        while let Ok(count) = (&self.signals).read(&mut record)
            && count == record.len()
        {
            // The number is the first field, 32 bits wide: signalfd(2).
            let number = i32::from_ne_bytes([record[0], record[1], record[2], record[3]]);
            let passed_on = PASSED_ON.iter().find(|signal| signal.as_raw() == number);
            match passed_on {
                Some(signal) => seen.push(Seen::Signal(*signal)),
                None => seen.push(Seen::Child),
            }
        }
        seen
    }
}

/// A worker that runs, or has run.
#[derive(Debug)]
pub(super) struct Worker {
    /// Its process.
    pub(super) pid: Pid,
    /// What it tells.
    pipe: OwnedFd,
    /// It can tell nothing more.
    closed: Cell<bool>,
    /// What is to be open also when it has ended.
    kept: RefCell<Kept>,
}

impl Worker {
    /// Starts this program again with the same arguments, as a worker that inherits `kept`, and has
    /// it from then on. On failure it is left with the caller.
    pub(super) fn spawn(restarts: u32, kept: &mut Kept) -> io::Result<Self> {
        // By its path, so that lists of processes show the name and a program that was replaced is
        // used; else by what runs now, which is there also when the file is not.
        let path = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
        let started = Self::start(&path, restarts, kept)
            .or_else(|_| Self::start(Path::new("/proc/self/exe"), restarts, kept));
        let (pid, pipe) = started?;
        let mut kept = std::mem::take(kept);
        kept.begin();
        let kept = RefCell::new(kept);
        Ok(Self { pid, pipe, closed: Cell::new(false), kept })
    }

    fn start(program: &Path, restarts: u32, kept: &Kept) -> io::Result<(Pid, OwnedFd)> {
        let (ours, theirs) = sockets::pair()?;
        // Nothing else is started here meanwhile that could inherit it: there is one thread.
        rustix::io::fcntl_setfd(&theirs, FdFlags::empty())?;
        let this = rustix::process::getpid();
        let value = format!("{}:{}:{restarts}", this.as_raw_nonzero(), theirs.as_raw_fd());
        let mut command = Command::new(program);
        command.args(std::env::args_os().skip(1)).env(link::VARIABLE, value);
        let (inherited, said) = kept.for_worker()?;
        command.env(sockets::VARIABLE, said);
        // A Ctrl-C of the terminal would reach the worker twice, and twice means at once.
        command.process_group(0);
        // SAFETY: only system calls that may be made between fork and exec; nothing is allocated.
        unsafe {
            command.pre_exec(move || begin(this));
        }
        let child = command.spawn()?;
        drop((theirs, inherited));
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("a process without an id"))?;
        Ok((pid, ours))
    }

    /// What the next worker inherits.
    pub(super) fn into_kept(self) -> Kept {
        self.kept.into_inner()
    }

    /// The lines that came; a socket that came beside one is kept.
    fn told(&self) -> Vec<Seen> {
        let mut seen = Vec::new();
        for _ in 0..MAX_LINES {
            let (line, socket) = match sockets::receive(self.pipe.as_fd()) {
                Ok((line, _)) if line.is_empty() => {
                    self.closed.set(true);
                    break;
                }
                Ok(received) => received,
                // Nothing is there yet.
                Err(_) => break,
            };
            match (line.strip_prefix(link::LISTEN), socket) {
                (Some(role), Some(socket)) => self.kept.borrow_mut().keep(role, socket),
                (Some(_), None) => {}
                (None, _) => {
                    match &*line {
                        // It has stopped to accept: who comes now is to be told at once.
                        link::STOPPING => self.kept.borrow_mut().clear(),
                        link::READY => self.kept.borrow_mut().settle(),
                        _ => {}
                    }
                    seen.push(Seen::Told(line));
                }
            }
        }
        seen
    }
}

/// In the worker, before it becomes this program.
fn begin(supervisor: Pid) -> io::Result<()> {
    let mut none = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set that sigprocmask reads.
    unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        if libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
    // It may have died before it could be watched.
    if rustix::process::getppid() == Some(supervisor) {
        Ok(())
    } else {
        Err(io::Error::from(rustix::io::Errno::SRCH))
    }
}

/// The worker's end of the way to its supervisor; `None` where the number is not that of a socket,
/// or was taken before.
pub(super) fn take_socket(descriptor: i32) -> Option<OwnedFd> {
    static TAKEN: Mutex<bool> = Mutex::new(false);
    let mut taken = TAKEN.lock().ok()?;
    if *taken {
        return None;
    }
    let socket = take(descriptor)?;
    *taken = true;
    Some(socket)
}

/// A listening socket that the supervisor kept. To be called once for each that it names, by whoever
/// took the socket of the supervisor.
pub(super) fn take_listener(descriptor: i32) -> Option<TcpListener> {
    let listener = TcpListener::from(take(descriptor)?);
    listener.set_nonblocking(true).ok()?;
    Some(listener)
}

/// Any socket that whoever started this process opened for it. To be called once for each.
pub(super) fn take(descriptor: i32) -> Option<OwnedFd> {
    let kind = std::fs::metadata(format!("/proc/self/fd/{descriptor}")).ok()?.file_type();
    if descriptor <= 2 || !kind.is_socket() {
        return None;
    }
    // SAFETY: the supervisor, or the service manager, opened it for this process, which takes it once;
    // nothing else knows its number.
    let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
    rustix::io::fcntl_setfd(socket.as_fd(), FdFlags::CLOEXEC).ok()?;
    Some(socket)
}
