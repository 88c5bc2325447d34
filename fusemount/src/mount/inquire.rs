//! What can be asked of a holder without serving its mount.
//!
//! Invariant: every question ends within seconds, also when the holder does not answer. Nothing here
//! reads requests of the kernel.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::MountError;
use super::joined::{self, Joined};
use super::link::Link;
use crate::holder::wire::{Kind, Message};

/// How long a holder may take to say who it is.
const PONG_WITHIN: Duration = Duration::from_secs(1);

/// What a holder says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HolderStatus {
    /// Its process; `None` where it is in a process namespace that this one does not see.
    pub pid: Option<u32>,
    /// Where it has mounted, as it sees it.
    pub mount_point: PathBuf,
    /// The process that serves the mount; 1 where it cannot be seen from the holder.
    pub worker: Option<u32>,
}

/// Asks the holder behind a socket who it is; `None` where none answers within a second, or this
/// user may not ask.
pub fn holder_status(socket: &Path) -> Option<HolderStatus> {
    holder_status_within(socket, PONG_WITHIN)
}

/// The same with another time for connecting and the answer together.
pub fn holder_status_within(socket: &Path, within: Duration) -> Option<HolderStatus> {
    let until = Instant::now() + within;
    let link = Link::open(socket, within, || {}).ok()?;
    let pid = link.peer();
    let left = until.saturating_duration_since(Instant::now());
    let answer = link.ask(&Message::of(Kind::Ping), &[], left);
    link.close();
    let (pong, _) = answer.ok().filter(|(answer, _)| answer.kind == Kind::Pong)?;
    Some(HolderStatus {
        pid,
        mount_point: OsString::from_vec(pong.body).into(),
        worker: Some(pong.small).filter(|worker| *worker != 0),
    })
}

/// Makes the worker of a holder leave, so that its successor can have what it holds besides the
/// mount: a cache directory, ports. On return it reads no requests any more; those that come wait
/// for the next worker.
pub fn dismiss_worker(socket: &Path) -> Result<(), MountError> {
    Joined::attach(socket, true).map(drop)
}

/// Ends a holder and its mount, whoever uses it: programs that do get ENOTCONN.
pub fn end_holder(socket: &Path) -> Result<(), MountError> {
    let (joined, _devices) = Joined::attach(socket, true)?;
    joined::unmount(joined.link(), true).map_err(MountError::Refused)
}
