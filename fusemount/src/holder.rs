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
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, chownat, fstat, open};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};
use rustix::process::Uid;

use crate::config::HolderConfig;
use crate::mount::{MountError, clear_mount_point, make_mount_point};
use connection::Connection;
use server::{Holder, MAX_PEERS};
pub(crate) use system::{ending, install, peer};
use wire::connect_to;

/// Mounts, and serves workers until SIGTERM, SIGINT, SIGHUP, a worker's request or an `umount`
/// ends the mount; then the socket is removed. It handles those signals for the whole process.
///
/// An error is a sentence that says what to do; nothing is mounted then.
pub fn hold(config: HolderConfig) -> Result<(), MountError> {
    let ending = ending().map_err(|error| failed("handling signals", &error))?;
    make_room(&config.socket)?;
    make_mount_point(&config.mount_point)?;
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

pub(crate) fn failed(what: &str, error: &io::Error) -> MountError {
    MountError::Refused(format!("{what} failed: {error}"))
}

/// A line for whoever reads what the holder says; it is all that it says.
pub(crate) fn say(line: Arguments<'_>) {
    let _ = writeln!(io::stderr(), "mountd: {line}");
}

/// How long it is looked whether somebody listens on a socket, which is a system call unless that
/// one hangs.
const LOOK_WITHIN: Duration = Duration::from_secs(1);

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
    match connect_to(path, LOOK_WITHIN) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
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
    // Nobody can connect before `listen`.
    allow(&config.socket, &config.uids)?;
    listen(&listener, i32::try_from(MAX_PEERS).unwrap_or(1))?;
    Ok(listener)
}

/// Lets users connect to a socket. Who may write to its directory may have put something else at
/// its path by now, so the path is followed once, and no link.
fn allow(path: &Path, uids: &[u32]) -> io::Result<()> {
    let socket = open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&socket)?.st_mode) != FileType::Socket {
        return Err(Errno::NOTSOCK.into());
    }
    // Who has several users lets all of them connect, and only then looks who it is.
    let mode = std::fs::Permissions::from_mode(if uids.len() > 1 { 0o666 } else { 0o600 });
    std::fs::set_permissions(format!("/proc/self/fd/{}", socket.as_raw_fd()), mode)?;
    if let [uid] = *uids {
        chownat(&socket, "", Some(Uid::from_raw(uid)), None, AtFlags::EMPTY_PATH)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn what_took_the_place_of_the_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let mode = |name: &str| std::fs::metadata(at(name)).unwrap().mode() & 0o7777;
        let _listener = UnixListener::bind(at("socket")).unwrap();
        let uid = std::fs::metadata(at("socket")).unwrap().uid();
        allow(&at("socket"), &[uid]).unwrap();
        assert_eq!(mode("socket"), 0o600);
        allow(&at("socket"), &[uid, uid + 1]).unwrap();
        assert_eq!(mode("socket"), 0o666);

        std::fs::write(at("secret"), "bytes").unwrap();
        std::fs::set_permissions(at("secret"), std::fs::Permissions::from_mode(0o400)).unwrap();
        std::os::unix::fs::symlink(at("secret"), at("to_secret")).unwrap();
        std::os::unix::fs::symlink(at("socket"), at("to_socket")).unwrap();
        for other in ["secret", "to_secret", "to_socket"] {
            assert!(allow(&at(other), &[uid]).is_err(), "{other}");
        }
        assert_eq!((mode("secret"), mode("socket")), (0o400, 0o666));
    }
}
