//! systemd's descriptor store: what it keeps for a unit over a restart (`FileDescriptorStoreMax=`).
//!
//! Invariant: there is one socket for each role at most. Without a service manager, or where it keeps
//! nothing, nothing happens; nothing here waits, and no failure is anybody's trouble: clients are then
//! refused for as long as a restart takes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use super::{kernel, sockets};

/// Has the manager keep a socket in place of the one before it in its role.
pub(super) fn put(role: &str, socket: BorrowedFd<'_>) {
    forget(role);
    tell(&format!("FDSTORE=1\nFDNAME={role}"), Some(socket));
}

/// Has it keep none.
pub(super) fn forget(role: &str) {
    tell(&format!("FDSTOREREMOVE=1\nFDNAME={role}"), None);
}

/// What it kept. To be called once, by the unit's main process, before it opens anything.
pub(super) fn take() -> Vec<(String, OwnedFd)> {
    let Ok(kept) = sd_notify::listen_fds_with_names() else { return Vec::new() };
    kept.filter_map(|(descriptor, role)| Some((role, kernel::take(descriptor)?))).collect()
}

fn tell(text: &str, beside: Option<BorrowedFd<'_>>) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    // sd_notify sends descriptors only with one more dependency.
    let _ = UnixDatagram::unbound().and_then(|manager| {
        manager.connect(path)?;
        sockets::send(manager.as_fd(), text, beside)
    });
}
