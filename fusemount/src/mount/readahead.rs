//! What the kernel lets root set for one mount, in `/sys`.
//!
//! Invariant: only files of the given device are written. Failing is never fatal.

use std::fs;
use std::io::{self, ErrorKind};

use rustix::mount::{MountFlags, mount_remount};

/// Where the kernel's settings are.
const SYS: &str = "/sys";
/// What container runtimes mount it with besides, and what stays.
const KEPT: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
/// The kernel's own readahead for a new mount, in KiB.
const DEFAULT_KIB: u32 = 128;

/// Sets how far the kernel reads ahead; 0 leaves it alone. An error is a sentence for a person.
pub(crate) fn raise(device: Option<&str>, kib: u32) -> Result<(), String> {
    if kib == 0 {
        return Ok(());
    }
    let Some(device) = device else {
        return Err("read-ahead was not raised: the mount is not in the mount table".to_owned());
    };
    let file = format!("/sys/class/bdi/{device}/read_ahead_kb");
    let write = || fs::write(&file, kib.to_string());
    let written = match write() {
        // A privileged container may write what it sees, but sees it through a mount that is read-only.
        Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => {
            writable_sys().and_then(|_guard| write())
        }
        written => written,
    };
    written.map_err(|error| {
        format!(
            "read-ahead stays at {DEFAULT_KIB} KiB, which makes sequential reads slower: \
             `{file}` cannot be written ({error}); as root, write {kib} to it"
        )
    })
}

/// Has `/sys` writable in this mount namespace for as long as the result lives.
fn writable_sys() -> io::Result<impl Drop> {
    struct ReadOnlyAgain;
    impl Drop for ReadOnlyAgain {
        fn drop(&mut self) {
            let flags = MountFlags::BIND | MountFlags::RDONLY | KEPT;
            let _ = mount_remount(SYS, flags, c"");
        }
    }
    mount_remount(SYS, KEPT, c"")?;
    Ok(ReadOnlyAgain)
}

/// Cuts the connection of a mount that is detached and still in use.
pub(crate) fn abort(device: Option<&str>) {
    let Some((_, minor)) = device.and_then(|device| device.split_once(':')) else { return };
    let file = format!("/sys/fs/fuse/connections/{minor}/abort");
    if let Err(error) = fs::write(&file, "1") {
        tracing::debug!(%error, file, "the connection of a detached mount was not cut");
    }
}
