//! The event loops of a mount: threads that read requests from the kernel, and how they are stopped.
//!
//! Invariant: every loop has a descriptor of its own, whose number is this module's until the last
//! loop has ended and the [`Loops`] are gone. No loop reads before [`Prepared::run`], and none after
//! [`Loops::stop`] has returned true. It does not mount, and nothing of the protocol but INIT
//! passes through it.

#![allow(unsafe_code)] // Replaces a descriptor that fuser owns, and sends a signal to threads.

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fuser::{Config, Notifier, Session, SessionACL};
use rustix::io::{DupFlags, Errno, dup3, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use tokio::sync::watch;

use crate::adapter::Adapter;
use crate::holder::install;

/// `FUSE_MIN_READ_BUFFER`: the kernel writes INIT into no less.
const INIT_BUFFER_BYTES: usize = 8192;

/// An answer to INIT is a header and 64 bytes.
const ANSWER_BUFFER_BYTES: usize = 1024;

/// How long loops may take to notice that they are to stop. They answer what they have in memory
/// before they look.
const STOP_WITHIN: Duration = Duration::from_secs(2);

/// How often a loop that did not notice is woken again: it may have been just about to read.
const WAKE_EVERY: Duration = Duration::from_millis(1);

/// The name of fuser's threads, with a number behind it.
const THREAD_NAME: &[u8] = b"fuser-";

/// Loops that have heard INIT and do not read yet.
pub(super) struct Prepared {
    sessions: Vec<Session<Adapter>>,
    /// What the file system answers to INIT.
    pub(super) answer: Vec<u8>,
}

impl Prepared {
    /// A loop for each descriptor of one connection. The kernel's INIT was read by someone else,
    /// who also sends the answer.
    pub(super) fn new(
        adapter: &Adapter,
        init: &[u8],
        devices: Vec<OwnedFd>,
        acl: SessionACL,
    ) -> io::Result<Self> {
        let mut prepared = Self { sessions: Vec::new(), answer: Vec::new() };
        for device in devices {
            // fuser reads INIT from the descriptor that it is given, so it is given one that says
            // INIT, which then becomes the device.
            let (ours, theirs) =
                socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
            send(&ours, init, SendFlags::NOSIGNAL)?;
            let mut options = Config::default();
            options.n_threads = Some(1);
            let session = Session::from_fd(adapter.clone(), theirs, acl, options)?;
            let mut answer = vec![0; ANSWER_BUFFER_BYTES];
            let (length, _) = recv(&ours, &mut answer[..], RecvFlags::DONTWAIT)?;
            answer.truncate(length);
            prepared.answer = answer;
            replace(session.as_fd().as_raw_fd(), &device)?;
            prepared.sessions.push(session);
        }
        Ok(prepared)
    }

    /// Begins to read.
    pub(super) fn run(self) -> io::Result<Arc<Loops>> {
        install(wake_signal(), woken, 0)?;
        let (ending, ended) = watch::channel(false);
        let shared = Arc::new(Shared {
            left: AtomicUsize::new(self.sessions.len()),
            stopping: AtomicBool::new(false),
            ending,
        });
        let mut numbers = Vec::new();
        let mut notifiers = Vec::new();
        for session in &self.sessions {
            numbers.push(session.as_fd().as_raw_fd());
            notifiers.push(session.notifier());
        }
        let loops = Loops {
            numbers,
            notifiers,
            nothing: File::options().read(true).write(true).open("/dev/null")?,
            shared: Arc::clone(&shared),
            ended,
        };
        for session in self.sessions {
            let ends = Ends(Arc::clone(&shared));
            std::thread::Builder::new().name("fuse-session".into()).spawn(move || {
                // Also when it panics.
                let ends = ends;
                if let Err(error) = session.run()
                    && !ends.0.stopping.load(Ordering::Acquire)
                {
                    tracing::warn!(%error, "a FUSE event loop ended with an error");
                }
            })?;
        }
        Ok(Arc::new(loops))
    }
}

#[derive(Debug)]
struct Shared {
    left: AtomicUsize,
    stopping: AtomicBool,
    ending: watch::Sender<bool>,
}

/// Counts a loop that ends.
struct Ends(Arc<Shared>);

impl Drop for Ends {
    fn drop(&mut self) {
        if self.0.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.ending.send_replace(true);
        }
    }
}

/// Loops that read.
#[derive(Debug)]
pub(super) struct Loops {
    numbers: Vec<RawFd>,
    /// Each keeps the descriptor of its session open, so that its number is nobody else's.
    notifiers: Vec<Notifier>,
    nothing: File,
    shared: Arc<Shared>,
    ended: watch::Receiver<bool>,
}

impl Loops {
    /// True once the last loop has ended.
    pub(super) fn ended(&self) -> watch::Receiver<bool> {
        self.ended.clone()
    }

    /// Stops reading, and lets go of the connection; what was read is not answered any more. It
    /// blocks, two seconds at most; false if a loop still runs then.
    pub(super) fn stop(&self) -> bool {
        self.shared.stopping.store(true, Ordering::Release);
        for number in &self.numbers {
            // What reads from nothing ends, and what is written there is gone.
            if let Err(error) = replace(*number, &self.nothing) {
                tracing::warn!(%error, "a FUSE event loop cannot be stopped");
                return false;
            }
        }
        let until = Instant::now() + STOP_WITHIN;
        while !*self.ended.borrow() {
            if Instant::now() >= until {
                return false;
            }
            // A loop that waits in the kernel waits on the device, wherever the number points now.
            wake();
            std::thread::sleep(WAKE_EVERY);
        }
        true
    }
}

impl Drop for Loops {
    fn drop(&mut self) {
        // Nothing else may get these numbers while a loop reads from them.
        if !self.stop() {
            for notifier in self.notifiers.drain(..) {
                std::mem::forget(notifier);
            }
        }
    }
}

/// Makes a descriptor number point to another file.
fn replace(number: RawFd, file: impl AsFd) -> io::Result<()> {
    // SAFETY: the number belongs to a session that is alive, or is kept by a notifier of it; it is
    // not closed here.
    let mut target = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
    retry_on_intr(|| dup3(&file, &mut target, DupFlags::CLOEXEC))?;
    Ok(())
}

/// Reads the kernel's INIT from a device that was just mounted.
pub(super) fn read_init(device: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut init = vec![0; INIT_BUFFER_BYTES];
    let length = loop {
        match rustix::io::read(device, &mut init) {
            Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => {}
            read => break read?,
        }
    };
    init.truncate(length);
    Ok(init)
}

extern "C" fn woken(_: libc::c_int) {}

/// A signal that nobody else uses: its handler does nothing, it only interrupts `read`.
fn wake_signal() -> libc::c_int {
    libc::SIGRTMIN() + 7
}

/// Interrupts what fuser's threads wait for. Those of another mount in this process wait on.
fn wake() {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return };
    for task in tasks.flatten() {
        let is_loop =
            std::fs::read(task.path().join("comm")).is_ok_and(|name| name.starts_with(THREAD_NAME));
        let number = task.file_name().to_str().and_then(|name| name.parse::<libc::pid_t>().ok());
        if let Some(thread) = number.filter(|_| is_loop) {
            // SAFETY: a system call on numbers; a thread that has ended is an error.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, wake_signal()) };
        }
    }
}
