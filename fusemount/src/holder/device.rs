//! `/dev/fuse` beyond reading and writing: what takes an `ioctl` or a message of its own.
//!
//! Invariant: nothing here waits. It speaks of descriptors and numbers, never of files or nodes.

#![allow(unsafe_code)] // `ioctl` has no safe form.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::Errno;
use rustix::ioctl::{Setter, Updater, ioctl, opcode};

/// The device of the FUSE module.
pub(crate) const DEVICE: &str = "/dev/fuse";

/// `FUSE_DEV_IOC_MAGIC` of `linux/fuse.h`.
const MAGIC: u8 = 229;

/// `struct fuse_backing_map` of `linux/fuse.h`.
#[repr(C)]
struct BackingMap {
    file: i32,
    flags: u32,
    padding: u64,
}

/// Opens the device; it is not connected to any mount yet.
pub(crate) fn open() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(DEVICE)
}

/// Another descriptor of the same connection, with a queue of its own for what it has read.
pub(crate) fn clone(device: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const CLONE: u32 = opcode::read::<u32>(MAGIC, 0);
    let another = open()?;
    let mut source = device.as_raw_fd().cast_unsigned();
    // SAFETY: FUSE_DEV_IOC_CLONE reads a u32, whatever its direction bits say.
    unsafe { ioctl(another.as_fd(), Updater::<CLONE, u32>::new(&mut source)) }?;
    Ok(another.into())
}

/// Has the kernel keep a file, so that an `open` can be answered with the number returned.
///
/// It needs `CAP_SYS_ADMIN` in the initial user namespace (EPERM), a session that has agreed on
/// passthrough (EPERM too), a regular file on a file system that is not stacked (EINVAL, ELOOP), and
/// a descriptor that can be read (EACCES): the kernel opens the file again with the rights of the
/// caller, and would read for whoever gave the descriptor what they may not read.
pub(crate) fn open_backing(device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<u32> {
    const OPEN: u32 = opcode::write::<BackingMap>(MAGIC, 1);
    let how = fcntl_getfl(file)?;
    if how.contains(OFlags::PATH) || how & OFlags::RWMODE == OFlags::WRONLY {
        return Err(Errno::ACCESS.into());
    }
    let map = BackingMap { file: file.as_raw_fd(), flags: 0, padding: 0 };
    // SAFETY: FUSE_DEV_IOC_BACKING_OPEN reads a `fuse_backing_map`, and answers with a number.
    unsafe { ioctl(device, Answer::<OPEN, BackingMap>(map)) }.map_err(io::Error::from)
}

/// Has the kernel forget a number. Files that are open with it stay open.
pub(crate) fn close_backing(device: BorrowedFd<'_>, backing: u32) -> io::Result<()> {
    const CLOSE: u32 = opcode::write::<u32>(MAGIC, 2);
    // SAFETY: FUSE_DEV_IOC_BACKING_CLOSE reads a u32.
    unsafe { ioctl(device, Setter::<CLOSE, u32>::new(backing)) }.map_err(io::Error::from)
}

/// An `ioctl` that reads a value and returns a number.
struct Answer<const OPCODE: u32, T>(T);

// SAFETY: the opcode is one that reads a `T` and keeps no pointer to it.
unsafe impl<const OPCODE: u32, T> rustix::ioctl::Ioctl for Answer<OPCODE, T> {
    type Output = u32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> u32 {
        OPCODE
    }

    fn as_ptr(&mut self) -> *mut rustix::ffi::c_void {
        (&raw mut self.0).cast()
    }

    unsafe fn output_from_ptr(
        output: rustix::ioctl::IoctlOutput,
        _: *mut rustix::ffi::c_void,
    ) -> rustix::io::Result<u32> {
        u32::try_from(output).map_err(|_| rustix::io::Errno::RANGE)
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{Mode, open};

    use super::*;

    #[test]
    fn only_what_can_be_read_is_registered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "bytes").unwrap();
        let register = |flags| {
            let file = open(&path, flags | OFlags::CLOEXEC, Mode::empty()).unwrap();
            // No device, so that what gets as far as the kernel is refused by it.
            let device = File::open("/dev/null").unwrap();
            open_backing(device.as_fd(), file.as_fd()).unwrap_err().raw_os_error()
        };
        for refused in [OFlags::PATH, OFlags::WRONLY, OFlags::PATH | OFlags::RDWR] {
            assert_eq!(register(refused), Some(libc::EACCES), "{refused:?}");
        }
        for passed in [OFlags::RDONLY, OFlags::RDWR] {
            assert_eq!(register(passed), Some(libc::ENOTTY), "{passed:?}");
        }
    }
}
