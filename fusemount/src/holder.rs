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

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};

use crate::config::HolderConfig;
use crate::mount::{MountError, clear_mount_point};
use connection::Connection;
use server::{Holder, MAX_PEERS};
pub(crate) use system::{install, peer};
use wire::connect_to;

/// Mounts, and serves workers until SIGTERM, SIGINT, SIGHUP, a worker's request or an `umount`
/// ends the mount; then the socket is removed. It handles those signals for the whole process.
///
/// An error is a sentence that says what to do; nothing is mounted then.
pub fn hold(config: HolderConfig) -> Result<(), MountError> {
    let ending = system::ending().map_err(|error| failed("handling signals", &error))?;
    make_room(&config.socket)?;
    let target = clear_mount_point(&config.mount_point, config.force, true)?;
    let connection = Connection::open(&target, &config)?;
    let listener = listen_at(&config)
        .map_err(|error| failed(&format!("listening on `{}`", config.socket.display()), &error))?;
    let socket = config.socket.clone();
    say(format_args!("holding `{}` for workers on `{}`", target.display(), socket.display()));
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

/// Removes a socket that nobody listens on.
fn make_room(path: &Path) -> Result<(), MountError> {
    let shown = path.display();
    let in_the_way =
        |what| Err(MountError::Refused(format!("{what} `{shown}`; name another path")));
    match path.symlink_metadata() {
        Ok(found) if found.file_type().is_socket() => {}
        Ok(_) => return in_the_way("there is something other than a socket at"),
        Err(_) => return Ok(()),
    }
    match connect_to(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|error| failed("replacing a dead socket", &error))
        }
        Err(error) => Err(failed("looking who listens on the socket", &error)),
        Ok(_) => in_the_way("a holder already listens on"),
    }
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
