//! A worker's part of a mount that a holder has.
//!
//! Invariant: nothing is read from the device before the holder says so, and when the holder is gone
//! the loops are stopped before anyone is told. It never unmounts by itself.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::io::Errno;

use super::MountError;
use super::link::Link;
use super::loops::{Loops, Prepared};
use crate::holder::wire::{Message, PAGE_ENTRIES};
use crate::registrar::Registrar;

/// How long the holder may take for anything that is only a system call.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// How long attaching may take: longer than the holder gives a worker to leave and to be killed.
const ATTACH_WITHIN: Duration = Duration::from_secs(15);

/// How long `umount2(2)` may take.
const UNMOUNT_WITHIN: Duration = Duration::from_secs(10);

/// What a holder offers to a worker.
pub(super) struct Offer {
    /// Where the holder has mounted.
    pub(super) target: PathBuf,
    /// The kernel's first message.
    pub(super) init: Vec<u8>,
    /// One descriptor for each event loop.
    pub(super) devices: Vec<OwnedFd>,
}

/// The worker that a holder lets serve its mount.
#[derive(Debug)]
pub(super) struct Joined {
    link: Arc<Link>,
    loops: Arc<OnceLock<Arc<Loops>>>,
    identity: MountIdentity,
}

/// Which mount of which holder this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MountIdentity {
    /// Another for each mount, for good.
    pub(crate) id: [u8; 16],
    /// True when an earlier worker has served this mount, so that the kernel knows nodes.
    pub(crate) later: bool,
}

impl Joined {
    /// Asks the holder behind a socket for its mount.
    pub(super) fn attach(socket: &Path, take_over: bool) -> Result<(Self, Offer), MountError> {
        let loops = Arc::new(OnceLock::<Arc<Loops>>::new());
        let stopped = Arc::clone(&loops);
        let lost = move || {
            // A worker that goes on without its holder would hide that nobody can follow it.
            if let Some(loops) = stopped.get() {
                loops.stop();
            }
        };
        let link = Link::open(socket, lost).map_err(|error| {
            let shown = socket.display();
            let unheard =
                matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::CONNREFUSED));
            let what = if unheard {
                format!("no mount holder listens on `{shown}`; start `warpdrive mountd` first")
            } else {
                format!("connecting to the mount holder on `{shown}` failed: {error}")
            };
            MountError::Refused(what)
        })?;
        match link.ask(&Message::Attach { take_over }, &[], ATTACH_WITHIN) {
            Ok((Message::Attached { mount, later, target, init }, devices)) => {
                let identity = MountIdentity { id: mount, later };
                let target = OsString::from_vec(target).into();
                Ok((Self { link, loops, identity }, Offer { target, init, devices }))
            }
            answer => {
                link.close();
                Err(refused(answer.map(|(message, _)| message)))
            }
        }
    }

    pub(super) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Which mount this is.
    #[allow(dead_code)]
    pub(super) fn identity(&self) -> MountIdentity {
        self.identity
    }

    /// Registers files by the holder.
    pub(super) fn registrar(&self) -> Arc<dyn Registrar> {
        Arc::new(ByHolder { link: Arc::clone(&self.link) })
    }

    /// Tells the holder what was answered to INIT, and returns when requests may be read; with what
    /// it has to say to a person.
    pub(super) fn ready(&self, answer: &[u8]) -> Result<Option<String>, MountError> {
        let ready = Message::Ready { answer: answer.to_vec() };
        match self.link.ask(&ready, &[], ANSWER_WITHIN * 5) {
            Ok((Message::Begin { same: _, note }, _)) => Ok(Some(note).filter(|n| !n.is_empty())),
            answer => Err(refused(answer.map(|(message, _)| message))),
        }
    }

    /// Begins to read.
    pub(super) fn run(&self, prepared: Prepared) -> Result<Arc<Loops>, MountError> {
        let loops = prepared.run().map_err(failed)?;
        let _ = self.loops.set(Arc::clone(&loops));
        if self.link.state().borrow().lost {
            loops.stop();
        }
        Ok(loops)
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        // Of a mount that never came to be. Otherwise the loops decide when.
        if self.loops.get().is_none() {
            self.link.close();
        }
    }
}

/// Has the holder unmount.
pub(super) fn unmount(link: &Link, lazily: bool) -> Result<(), String> {
    match link.ask(&Message::Unmount { lazily }, &[], UNMOUNT_WITHIN) {
        Ok((Message::Done, _)) => Ok(()),
        Ok((Message::Refused { errno, .. }, _)) => Err(os_error(errno).to_string()),
        Ok(_) => Err("the mount holder answered something else".to_owned()),
        Err(error) => Err(format!("the mount holder does not answer: {error}")),
    }
}

fn refused(answer: io::Result<Message>) -> MountError {
    MountError::Refused(match answer {
        Ok(Message::Refused { why, .. }) if !why.is_empty() => why,
        Ok(_) => {
            "the mount holder speaks another language; use the same version of both".to_owned()
        }
        Err(error) => format!("the mount holder does not answer: {error}"),
    })
}

/// A failure between being attached and reading.
pub(super) fn failed(error: io::Error) -> MountError {
    MountError::Refused(format!("the session of the mount holder cannot be resumed: {error}"))
}

fn os_error(errno: u32) -> io::Error {
    io::Error::from_raw_os_error(i32::try_from(errno).unwrap_or(0))
}

/// Registers by the holder, who has the privilege.
#[derive(Debug)]
struct ByHolder {
    link: Arc<Link>,
}

impl ByHolder {
    fn ask(&self, question: &Message, beside: &[BorrowedFd<'_>]) -> io::Result<Message> {
        match self.link.ask(question, beside, ANSWER_WITHIN)? {
            (Message::Refused { errno, .. }, _) => Err(os_error(errno)),
            (answer, _) => Ok(answer),
        }
    }
}

impl Registrar for ByHolder {
    fn register(&self, node: u64, file: BorrowedFd<'_>) -> io::Result<u32> {
        match self.ask(&Message::Register { node }, &[file.as_fd()])? {
            Message::Registered { backing } => Ok(backing),
            _ => Err(Errno::PROTO.into()),
        }
    }

    fn release(&self, backing: u32) {
        if let Err(error) = self.ask(&Message::Release { backing }, &[]) {
            tracing::debug!(%error, backing, "a backing file was not released");
        }
    }

    fn inherited(&self) -> Vec<(u64, u32)> {
        let mut all = Vec::new();
        let mut from = 0;
        loop {
            let page = match self.ask(&Message::Inherited { from }, &[]) {
                Ok(Message::Page { entries }) => entries,
                Ok(_) => return all,
                Err(error) => {
                    tracing::warn!(%error, "the holder did not say what is registered");
                    return all;
                }
            };
            let whole = page.len() < PAGE_ENTRIES;
            let last = page.last().map(|(node, _)| *node);
            all.extend(page);
            match last.and_then(|last| last.checked_add(1)) {
                // A holder that repeats itself is not asked for ever.
                Some(next) if !whole && next > from => from = next,
                _ => return all,
            }
        }
    }

    fn unavailable(&self) -> Option<&str> {
        None
    }
}
