//! The mount holder: a small process that has the mount, so that a worker can die without it.
//!
//! Invariant: while it runs, the mount is there, and at most one worker reads requests. It waits in
//! one `poll` and nowhere else, and nothing that a peer sends or fails to send ends it or keeps it
//! from another peer. It knows no origin, no key and no configuration, and it opens no file.

mod connection;
pub(crate) mod device;
pub(crate) mod registrations;
mod server;
mod system;
pub(crate) mod wire;

use std::fmt::Arguments;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use crate::config::HolderConfig;
use crate::mount::{MountError, clear_mount_point};
use connection::Connection;
use server::{Holder, MAX_PEERS};
pub(crate) use system::{install, peer};

/// Mounts, and serves workers until SIGTERM, SIGINT, a worker's request or somebody's `umount`
/// ends the mount; then the socket is removed. It handles those signals for the whole process.
///
/// An error is a sentence that says what to do; nothing is mounted then.
pub fn hold(config: HolderConfig) -> Result<(), MountError> {
    let ending = system::ending().map_err(|error| failed("handling signals", &error))?;
    if replace_dead_socket(&config.socket)? {
        let shown = config.socket.display();
        return Err(MountError::Refused(format!("a holder already listens on `{shown}`")));
    }
    let target = clear_mount_point(&config.mount_point, config.force, true)?;
    let connection = Connection::open(&target, &config)?;
    let listener = listen_at(&config)
        .map_err(|error| failed(&format!("listening on `{}`", config.socket.display()), &error))?;
    say(format_args!(
        "holding `{}` for workers on `{}`",
        target.display(),
        config.socket.display()
    ));
    let socket = config.socket.clone();
    let ended = Holder::new(config, target, connection).run(&listener, &ending);
    // Nobody may find a socket without a mount.
    let _ = std::fs::remove_file(&socket);
    ended.map_err(|error| failed("waiting", &error))
}

fn failed(what: &str, error: &io::Error) -> MountError {
    MountError::Refused(format!("{what} failed: {error}"))
}

/// A line for whoever reads what the holder says; it is all that it says.
fn say(line: Arguments<'_>) {
    let _ = writeln!(io::stderr(), "mountd: {line}");
}

/// Removes a socket that nobody listens on; true if somebody does.
fn replace_dead_socket(path: &Path) -> Result<bool, MountError> {
    let Ok(found) = path.symlink_metadata() else { return Ok(false) };
    let shown = path.display();
    if !found.file_type().is_socket() {
        return Err(MountError::Refused(format!("`{shown}` is not a socket; name another path")));
    }
    match connect_to(path) {
        Ok(_) => return Ok(true),
        Err(error) if error.raw_os_error() == Some(Errno::CONNREFUSED.raw_os_error()) => {}
        Err(error) => return Err(failed(&format!("looking at the socket `{shown}`"), &error)),
    }
    std::fs::remove_file(path).map_err(|error| failed(&format!("replacing `{shown}`"), &error))?;
    Ok(false)
}

/// A connection to the holder that listens at a path.
pub(crate) fn connect_to(path: &Path) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    connect(&socket, &address)?;
    Ok(socket)
}

fn listen_at(config: &HolderConfig) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(&config.socket)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    bind(&listener, &address)?;
    // Nobody can connect before `listen`. Who has several users lets all of them connect, and only
    // then looks who it is.
    let mode = if config.uids.len() > 1 { 0o666 } else { 0o600 };
    std::fs::set_permissions(&config.socket, std::fs::Permissions::from_mode(mode))?;
    if let [uid] = config.uids[..] {
        chown(&config.socket, Some(uid), None)?;
    }
    listen(&listener, i32::try_from(MAX_PEERS).unwrap_or(1))?;
    Ok(listener)
}
