//! What the file tier asks of the kernel beyond reading and writing.
//!
//! Invariant: every question has an answer that is safe where the kernel gives none. Refuses to fail:
//! what is asked here makes things faster or says more, and nothing depends on it.

use std::fs::{self, File};
use std::path::Path;

use rustix::fs::{StatVfs, statfs, statvfs};
use rustix::process::{Resource, getrlimit};

/// Magic numbers of file systems that people meet, as `statfs(2)` lists them.
const KNOWN: [(u64, &str); 9] = [
    (0xef53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0xf2f5_2010, "f2fs"),
    (0x2fc1_2fc1, "zfs"),
    (0x0102_1994, "tmpfs"),
    (OVERLAY, "overlay"),
    (0x6573_5546, "fuse"),
    (0x6969, "nfs"),
];

/// What container images are mounted as: stacked on other file systems.
const OVERLAY: u64 = 0x794c_7630;

/// Starts writing back what was just written, and waits for nothing: dirty pages then never pile up
/// until the kernel stops every writer for them.
#[allow(unsafe_code)]
pub(super) fn start_write_back(file: &File, offset: u64, len: u64) {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and the call takes no pointers.
    // A failure means that pages are written back later.
    unsafe {
        libc::sync_file_range(
            file.as_raw_fd(),
            offset.cast_signed(),
            len.cast_signed(),
            libc::SYNC_FILE_RANGE_WRITE,
        );
    }
}

/// A number that is another one after each start of the kernel; 0 where there is none, which equals no
/// other start.
pub(super) fn boot_id() -> u128 {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    u128::from_str_radix(&text.trim().replace('-', ""), 16).unwrap_or(0)
}

/// The name of the file system below `path`, and whether it is stacked on another: the kernel then
/// takes no file of it for passthrough.
pub(super) fn file_system(path: &Path) -> (String, bool) {
    let Ok(stat) = statfs(path) else { return ("unknown".to_owned(), false) };
    #[allow(clippy::unnecessary_cast, clippy::cast_sign_loss)] // Its type differs between targets.
    let magic = stat.f_type as u64;
    let name = KNOWN.iter().find(|(known, _)| *known == magic);
    let name = name.map_or_else(|| format!("{magic:#x}"), |(_, name)| (*name).to_owned());
    (name, magic == OVERLAY)
}

/// Bytes that an unprivileged process may still write; all there are where the kernel does not say.
pub(super) fn free_bytes(path: &Path) -> u64 {
    statvfs(path).map_or(u64::MAX, |s: StatVfs| s.f_bavail.saturating_mul(s.f_frsize))
}

/// Descriptors that this process may have open.
pub(super) fn descriptor_limit() -> u64 {
    // The kernel's own default where there is no limit.
    getrlimit(Resource::Nofile).current.unwrap_or(1024)
}

/// True for the errors of a process or a machine that has too many files open.
pub(super) fn is_short_of_descriptors(errno: i32) -> bool {
    errno == libc::EMFILE || errno == libc::ENFILE
}

/// True for the errors of a full disk.
pub(super) fn is_full(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

/// Lets every other thread go first, where there is anything else to do.
pub(super) fn step_back() {
    // Half-way down: still a tenth of a core beside a thread that computes all the time.
    _ = rustix::process::setpriority_process(None, 10);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_answers() {
        assert_ne!(boot_id(), 0);
        assert_eq!(boot_id(), boot_id());
        let dir = tempfile::tempdir().unwrap();
        assert!(free_bytes(dir.path()) > 0);
        assert!(!file_system(dir.path()).0.is_empty());
        assert!(descriptor_limit() > 16);
        assert_eq!(file_system(Path::new("/nowhere/at/all")), ("unknown".to_owned(), false));
    }
}
