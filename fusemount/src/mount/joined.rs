//! A worker's part of a mount that a holder has.
//!
//! Invariant: nothing is read from the device before the holder says so, and when the holder is gone
//! the loops are stopped before anyone is told. It never unmounts by itself.

use std::ffi::OsString;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::io::Errno;

use super::MountError;
use super::link::{Answer, Link};
use super::loops::{Loops, Prepared};
use crate::holder::wire::{Kind, Message, PAGE_ENTRIES};
use crate::registrar::Registrar;

/// How long the holder may take for anything that is only a system call.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// How long the holder may take to give the kernel the answer to INIT and to set its readahead.
const READY_WITHIN: Duration = Duration::from_secs(5);

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
    /// An earlier worker has served it.
    begun: bool,
}

/// The worker that a holder lets serve its mount.
#[derive(Debug)]
pub(super) struct Joined {
    link: Arc<Link>,
    loops: Arc<OnceLock<Arc<Loops>>>,
    mount_id: [u8; 16],
    begun: bool,
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
        let link = Link::open(socket, ANSWER_WITHIN, lost).map_err(|error| {
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
        let joined = |mount_id, begun| Self { link: Arc::clone(&link), loops, mount_id, begun };
        offer(&link, take_over)
            .map(|(mount_id, offer)| (joined(mount_id, offer.begun), offer))
            .inspect_err(|_| link.close())
    }

    pub(super) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Which mount this is: another for each that any holder makes.
    pub(super) fn mount_id(&self) -> [u8; 16] {
        self.mount_id
    }

    /// Registers files by the holder.
    pub(super) fn registrar(&self) -> Arc<dyn Registrar> {
        Arc::new(ByHolder { link: Arc::clone(&self.link), begun: self.begun })
    }

    /// Tells the holder what was answered to INIT, and returns when requests may be read; with what
    /// it has to say to a person.
    pub(super) fn ready(&self, answer: &[u8]) -> Result<Option<String>, MountError> {
        let ready = Message::with(Kind::Ready, answer);
        let (begin, _) = asked(&self.link, &ready, Kind::Begin, READY_WITHIN)?;
        Ok(Some(words(&begin)).filter(|note| !note.is_empty()))
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

/// Asks to serve, and takes what is offered.
fn offer(link: &Link, take_over: bool) -> Result<([u8; 16], Offer), MountError> {
    let (pong, _) = asked(link, &Message::of(Kind::Ping), Kind::Pong, ANSWER_WITHIN)?;
    let (serving, target) = (pong.small, OsString::from_vec(pong.body).into());
    let attach = Message { flag: take_over, ..Message::of(Kind::Attach) };
    let attached = asked(link, &attach, Kind::Attached, ATTACH_WITHIN);
    let (attached, devices) = attached.map_err(|error| {
        if take_over && serving != 0 {
            return MountError::Refused(format!("taking over from process {serving}: {error}"));
        }
        error
    })?;
    let (id, init) =
        attached.body.split_first_chunk().ok_or_else(|| failed(Errno::PROTO.into()))?;
    Ok((*id, Offer { target, init: init.to_vec(), devices, begun: attached.flag }))
}

/// Has the holder unmount.
pub(super) fn unmount(link: &Link, lazily: bool) -> Result<(), String> {
    let unmount = Message { flag: lazily, ..Message::of(Kind::Unmount) };
    match link.ask(&unmount, &[], UNMOUNT_WITHIN) {
        Ok((answer, _)) if answer.kind == Kind::Done => Ok(()),
        Ok((answer, _)) => Err(os_error(&answer).to_string()),
        Err(error) => Err(format!("the mount holder does not answer: {error}")),
    }
}

/// Asks, and takes one kind of answer.
fn asked(
    link: &Link,
    question: &Message,
    wanted: Kind,
    within: Duration,
) -> Result<Answer, MountError> {
    Err(MountError::Refused(match link.ask(question, &[], within) {
        Ok(answer) if answer.0.kind == wanted => return Ok(answer),
        Ok((refused, _)) if refused.kind == Kind::Refused && !refused.body.is_empty() => {
            words(&refused)
        }
        Ok(_) => {
            "the mount holder speaks another language; use the same version of both".to_owned()
        }
        Err(error) => format!("the mount holder does not answer: {error}"),
    }))
}

fn words(message: &Message) -> String {
    String::from_utf8_lossy(&message.body).into_owned()
}

/// A failure between being attached and reading.
#[allow(clippy::needless_pass_by_value)] // For `map_err`.
pub(super) fn failed(error: io::Error) -> MountError {
    MountError::Refused(format!("the session of the mount holder cannot be resumed: {error}"))
}

/// Why a holder refused.
fn os_error(refused: &Message) -> io::Error {
    let errno = i32::try_from(refused.small).unwrap_or(0);
    let known = refused.kind == Kind::Refused && errno != 0;
    if known { io::Error::from_raw_os_error(errno) } else { Errno::PROTO.into() }
}

/// Registers by the holder, who has the privilege.
#[derive(Debug)]
struct ByHolder {
    link: Arc<Link>,
    begun: bool,
}

impl ByHolder {
    fn ask(
        &self,
        question: &Message,
        beside: &[BorrowedFd<'_>],
        wanted: Kind,
    ) -> io::Result<Message> {
        let (answer, _) = self.link.ask(question, beside, ANSWER_WITHIN)?;
        if answer.kind == wanted { Ok(answer) } else { Err(os_error(&answer)) }
    }
}

impl Registrar for ByHolder {
    fn register(&self, node: u64, file: BorrowedFd<'_>) -> io::Result<u32> {
        let register = Message { large: node, ..Message::of(Kind::Register) };
        self.ask(&register, &[file], Kind::Registered).map(|registered| registered.small)
    }

    fn release(&self, backing: u32) -> io::Result<()> {
        let release = Message { small: backing, ..Message::of(Kind::Release) };
        self.ask(&release, &[], Kind::Done).map(drop)
    }

    fn inherited(&self) -> Vec<(u64, u32)> {
        let mut all: Vec<(u64, u32)> = Vec::new();
        let mut from = 0;
        loop {
            let inherited = Message { large: from, ..Message::of(Kind::Inherited) };
            let page = match self.ask(&inherited, &[], Kind::Page) {
                Ok(page) => page,
                Err(error) => {
                    tracing::warn!(%error, "the holder did not say what is registered");
                    return all;
                }
            };
            let before = all.len();
            all.extend(page.entries());
            let next = all.last().and_then(|(node, _)| node.checked_add(1));
            match next {
                // A holder that repeats itself is not asked for ever.
                Some(next) if all.len() - before == PAGE_ENTRIES && next > from => from = next,
                _ => return all,
            }
        }
    }

    fn has_begun(&self) -> bool {
        self.begun
    }

    fn unavailable(&self) -> Option<&str> {
        None
    }
}
