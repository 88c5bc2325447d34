//! System calls that rustix does not have: signal handlers, and who is behind a socket.
//!
//! Invariant: a signal that ends a holder is never lost, whichever thread it reaches. It handles
//! SIGTERM, SIGINT and SIGHUP of the whole process, so it is for a process that does nothing but hold.

#![allow(unsafe_code)] // That is what such calls take.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

/// Where the handler writes; a handler has nothing but statics.
static OUT: AtomicI32 = AtomicI32::new(-1);

extern "C" fn note(_: libc::c_int) {
    let byte = 0_u8;
    // SAFETY: `write` may be called in a handler, and the byte outlives the call. A full pipe has
    // been noted already; errno is only changed when it fails, which a poll loop does not look at.
    unsafe { libc::write(OUT.load(Ordering::Relaxed), (&raw const byte).cast(), 1) };
}

/// A descriptor that becomes readable with the first SIGTERM, SIGINT or SIGHUP.
pub(crate) fn ending() -> io::Result<OwnedFd> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    // Kept open for good: the handler stays.
    OUT.store(write.as_raw_fd(), Ordering::Relaxed);
    let _ = write.into_raw_fd();
    // The last comes when a terminal is closed.
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        install(signal, note, libc::SA_RESTART)?;
    }
    Ok(read)
}

/// Installs a handler that does nothing which a handler must not.
pub(crate) fn install(
    signal: libc::c_int,
    handler: extern "C" fn(libc::c_int),
    flags: libc::c_int,
) -> io::Result<()> {
    // SAFETY: a zeroed `sigaction` is a valid one, and the handler lives as long as the program.
    let code = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        action.sa_flags = flags;
        libc::sigaction(signal, &raw const action, std::ptr::null_mut())
    };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Process and user behind a local socket. The process is 0 when it is in a process namespace that
/// this one does not see, as the other containers of a pod are.
pub(crate) fn peer(socket: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    let unknown = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let found = option(socket, libc::SO_PEERCRED, unknown)?;
    Ok((u32::try_from(found.pid).unwrap_or(0), found.uid))
}

/// A descriptor of the process behind a local socket, which is never that of another with the same
/// number. It needs Linux 6.5 (ENOPROTOOPT), and a process that has not been reaped.
pub(super) fn peer_process(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    /// `SO_PEERPIDFD` of `asm-generic/socket.h`.
    const PEER_PIDFD: libc::c_int = 77;
    let found: libc::c_int = option(socket, PEER_PIDFD, -1)?;
    if found < 0 {
        return Err(Errno::SRCH.into());
    }
    // SAFETY: the kernel made it for this call, and nothing else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(found) })
}

/// Structures of C that any bytes are valid for.
trait Plain: Copy {}
impl Plain for libc::ucred {}
impl Plain for libc::c_int {}

/// What the kernel says of a socket.
fn option<T: Plain>(socket: BorrowedFd<'_>, name: libc::c_int, mut found: T) -> io::Result<T> {
    let mut length = libc::socklen_t::try_from(size_of::<T>()).expect("a few bytes");
    let (at, length) = ((&raw mut found).cast(), &raw mut length);
    // SAFETY: the kernel writes at most `length` bytes to `found`, which any bytes are valid for.
    match unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, at, length) } {
        0 => Ok(found),
        _ => Err(io::Error::last_os_error()),
    }
}
