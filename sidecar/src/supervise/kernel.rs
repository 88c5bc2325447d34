//! What the supervisor asks of the kernel: a worker, signals as messages, and a pipe.
//!
//! Invariant: the signals of [`PASSED_ON`] are blocked in the supervisor from [`Inbox::open`] on, so
//! none is lost between two waits, and a worker begins with none blocked. Nothing here decides.

#![allow(unsafe_code)] // signalfd, signal masks and what happens between fork and exec have no safe form.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
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

use super::link;

/// What is passed on to the worker.
const PASSED_ON: [Signal; 6] =
    [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2];
/// A worker says two lines of ten bytes in its life.
const LINE_BYTES: usize = 256;

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
    pipe: File,
    /// It can tell nothing more.
    closed: Cell<bool>,
}

impl Worker {
    /// Starts this program again with the same arguments, as a worker.
    pub(super) fn spawn(restarts: u32) -> io::Result<Self> {
        // By its path, so that lists of processes show the name and a program that was replaced is
        // used; else by what runs now, which is there also when the file is not.
        let path = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
        Self::start(&path, restarts).or_else(|_| Self::start(Path::new("/proc/self/exe"), restarts))
    }

    fn start(program: &Path, restarts: u32) -> io::Result<Self> {
        let (ours, theirs) = rustix::pipe::pipe_with(
            rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK,
        )?;
        // Nothing else is started here meanwhile that could inherit it: there is one thread.
        rustix::io::fcntl_setfd(&theirs, FdFlags::empty())?;
        let this = rustix::process::getpid();
        let value = format!("{}:{}:{restarts}", this.as_raw_nonzero(), theirs.as_raw_fd());
        let mut command = Command::new(program);
        command.args(std::env::args_os().skip(1)).env(link::VARIABLE, value);
        // A Ctrl-C of the terminal would reach the worker twice, and twice means at once.
        command.process_group(0);
        // SAFETY: only system calls that may be made between fork and exec; nothing is allocated.
        unsafe {
            command.pre_exec(move || begin(this));
        }
        let child = command.spawn()?;
        drop(theirs);
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("a process without an id"))?;
        Ok(Self { pid, pipe: File::from(ours), closed: Cell::new(false) })
    }

    /// The lines that came.
    fn told(&self) -> Vec<Seen> {
        let mut buffer = [0; LINE_BYTES];
        let count = match (&self.pipe).read(&mut buffer) {
            Ok(0) => {
                self.closed.set(true);
                0
            }
            Ok(count) => count,
            // Nothing is there yet.
            Err(_) => 0,
        };
        let text = String::from_utf8_lossy(&buffer[..count]);
        text.lines().map(|line| Seen::Told(line.to_owned())).collect()
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

/// The writing end of the pipe that a supervisor gave to this process; `None` where the number is
/// not that of a pipe, or was taken before.
pub(super) fn take_pipe(descriptor: i32) -> Option<File> {
    static TAKEN: Mutex<bool> = Mutex::new(false);
    let mut taken = TAKEN.lock().ok()?;
    let kind = std::fs::metadata(format!("/proc/self/fd/{descriptor}")).ok()?.file_type();
    if *taken || descriptor <= 2 || !kind.is_fifo() {
        return None;
    }
    *taken = true;
    // SAFETY: the supervisor opened it for this process, which takes it once; nothing else knows
    // its number.
    let pipe = unsafe { OwnedFd::from_raw_fd(descriptor) };
    rustix::io::fcntl_setfd(pipe.as_fd(), FdFlags::CLOEXEC).ok()?;
    Some(File::from(pipe))
}
