//! What a worker tells its supervisor.
//!
//! Invariant: telling never fails and never waits: a supervisor that does not listen is the
//! supervisor's trouble. A process that a supervisor did not start has no link.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use super::{kernel, sockets};

/// How the supervisor names itself to the worker: its process id, the descriptor of the socket, and
/// how often it has started a worker again.
pub(super) const VARIABLE: &str = "WARPDRIVE_SUPERVISOR";
/// The worker serves. The words are those of `sd_notify(3)`.
pub(super) const READY: &str = "READY=1";
/// The worker was asked to stop.
pub(super) const STOPPING: &str = "STOPPING=1";
/// The worker listens at the socket beside this line, which ends with what for.
pub(super) const LISTEN: &str = "LISTEN=";

/// A worker's way to its supervisor.
#[derive(Debug)]
pub(crate) struct Link {
    pipe: OwnedFd,
    supervisor: u32,
    restarts: u32,
    /// What an earlier worker listened at, and nobody has asked for yet.
    listeners: Mutex<Vec<(String, TcpListener)>>,
}

impl Link {
    /// The link of this process; `None` where no supervisor is its parent. Only the first call can
    /// answer with one.
    pub(crate) fn of_process() -> Option<Self> {
        let value = std::env::var(VARIABLE).ok()?;
        let (parent, descriptor, restarts) = parse(&value)?;
        // The variable is inherited by what the worker starts; its parent is another.
        let is_ours = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
        if is_ours != Some(parent) {
            return None;
        }
        let supervisor = parent.unsigned_abs();
        let pipe = kernel::take_socket(descriptor)?;
        let inherited = std::env::var(sockets::VARIABLE).unwrap_or_default();
        let inherited = sockets::parse(&inherited).into_iter();
        let listeners = inherited
            .filter_map(|(role, descriptor)| Some((role, kernel::take_listener(descriptor)?)));
        let listeners = Mutex::new(listeners.collect());
        Some(Self { pipe, supervisor, restarts, listeners })
    }

    /// The socket at which the worker before this one listened, where that is the address that is
    /// wanted now. Clients that came in between wait in its backlog.
    pub(crate) fn listener(&self, role: &str, address: SocketAddr) -> Option<TcpListener> {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let index = listeners.iter().position(|(kept, _)| kept == role)?;
        let (_, listener) = listeners.swap_remove(index);
        let bound = listener.local_addr().ok()?;
        let same_port = address.port() == 0 || address.port() == bound.port();
        (same_port && address.ip() == bound.ip()).then_some(listener)
    }

    /// Has the supervisor keep a listening socket open for the next worker.
    pub(crate) fn keep(&self, role: &str, listener: BorrowedFd<'_>) {
        // Without it clients are refused for as long as a start takes.
        let _ = sockets::send(self.pipe.as_fd(), &format!("{LISTEN}{role}"), Some(listener));
    }

    /// The process that stays the same over restarts.
    pub(crate) fn supervisor(&self) -> u32 {
        self.supervisor
    }

    /// How often this worker's supervisor has started one again.
    pub(crate) fn restarts(&self) -> u32 {
        self.restarts
    }

    /// The worker serves.
    pub(crate) fn ready(&self) {
        self.tell(READY);
    }

    /// The worker was asked to stop.
    pub(crate) fn stopping(&self) {
        self.tell(STOPPING);
    }

    fn tell(&self, line: &str) {
        let _ = sockets::send(self.pipe.as_fd(), line, None);
    }
}

fn parse(value: &str) -> Option<(i32, i32, u32)> {
    let mut parts = value.split(':');
    let parsed =
        (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next().is_none().then_some(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_values_are_read() {
        assert_eq!(parse("1:4:17"), Some((1, 4, 17)));
        for bad in ["", "1", "1:4", "1:4:-1", "1:4:1:1", "x:4:1", "99999999999:4:1"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
