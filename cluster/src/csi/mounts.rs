//! What is mounted below kubelet's directory, and taking it away.
//!
//! Invariant: nothing here looks into a mounted file system, so nothing waits for one; and a
//! directory goes by `rmdir` alone, which no live mount and no file lets happen. It never walks a tree.

#![allow(unsafe_code)] // `mount_setattr` has no safe form.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};

/// The file system type that every mount of this program shows.
const KIND: &str = "fuse.warpdrive";

/// Mounts can lie on each other; more than a few are not left by crashes.
const MAX_LAYERS: usize = 16;

/// One line of `/proc/self/mountinfo`, proc(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// The kernel's number for this mount.
    pub(super) id: u64,
    /// `major:minor`.
    pub(super) device: String,
    /// What of the file system is mounted.
    pub(super) root: PathBuf,
    /// Where.
    pub(super) target: PathBuf,
    /// The type of the file system.
    pub(super) kind: String,
    /// Options of the file system, not of this mount of it.
    pub(super) options: String,
}

impl Entry {
    /// True for a mount of this program.
    pub(super) fn is_own(&self) -> bool {
        self.kind == KIND
    }
}

/// Every mount that this process sees, the topmost of a place last.
pub(super) fn table() -> io::Result<Vec<Entry>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(table.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

/// The topmost mount at exactly this path.
pub(super) fn at(target: &Path) -> io::Result<Option<Entry>> {
    Ok(table()?.into_iter().rev().find(|entry| entry.target == target))
}

fn parse(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = fields.nth(1)?;
    let (root, target) = (fields.next()?, fields.next()?);
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let text = |bytes: &[u8]| String::from_utf8_lossy(&unescape(bytes)).into_owned();
    let kind = text(rest.next()?);
    let _source = rest.next()?;
    Some(Entry {
        id,
        device: text(device),
        root: OsString::from_vec(unescape(root)).into(),
        target: OsString::from_vec(unescape(target)).into(),
        kind,
        options: text(rest.next()?),
    })
}

/// Undoes the kernel's `\040` for a space, and the like.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = (byte == b'\\').then(|| tail.get(..3)).flatten();
        let octal = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(code) = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            out.push(code);
            rest = &tail[3..];
        } else {
            out.push(byte);
            rest = tail;
        }
    }
    out
}

/// Shows a folder at another place, where nothing can be written through it, whoever asks: the flags
/// are set before anybody sees the mount, and so are those of each copy in another namespace.
///
/// It needs `CAP_SYS_ADMIN` and Linux 5.12.
pub(super) fn bind_read_only(folder: &Path, target: &Path) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree: OwnedFd = open_tree(rustix::fs::CWD, folder, flags)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY
            | libc::MOUNT_ATTR_NOSUID
            | libc::MOUNT_ATTR_NODEV
            | libc::MOUNT_ATTR_NOEXEC,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is an empty C string, and the kernel reads as many bytes as `size_of` says of
    // a structure that outlives the call.
    let code = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if code != 0 {
        return Err(io::Error::last_os_error());
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(&tree, "", rustix::fs::CWD, target, flags)?)
}

/// Takes every mount at a path away, if all of them are ours by `is_ours`; the number that were. One
/// that is not is an error, and stays.
///
/// A FUSE connection is cut with its mount: who waits for it gets ENOTCONN, and its holder ends.
pub(super) fn clear(target: &Path, is_ours: impl Fn(&Entry) -> bool) -> io::Result<usize> {
    for cleared in 0..MAX_LAYERS {
        let Some(entry) = at(target)? else { return Ok(cleared) };
        if !is_ours(&entry) {
            let what = format!("a {} that is not WarpDrive's is mounted there", entry.kind);
            return Err(io::Error::other(what));
        }
        // A bind mount of a folder has no connection.
        detach(&entry, entry.is_own())?;
    }
    Err(io::Error::other("mounts keep appearing there"))
}

/// Detaches the topmost mount at an entry's place, and with `cut` ends the connection of a FUSE mount
/// for those who have it elsewhere too.
pub(super) fn detach(entry: &Entry, cut: bool) -> io::Result<()> {
    let lazily = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    let flags = if cut { lazily | UnmountFlags::FORCE } else { lazily };
    match unmount(&entry.target, flags) {
        // Someone else was faster.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes an empty directory; true when there was one. What is not there is no error, and what is
/// not empty, or has a mount on it, is one and stays.
pub(super) fn remove_directory(path: &Path) -> io::Result<bool> {
    match rustix::fs::rmdir(path) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_mount_table() {
        let line =
            br"36 35 0:52 /a\040b /mnt/c\134d rw,nosuid shared:7 - fuse.warpdrive warp\040d rw,user_id=0";
        let entry = parse(line).unwrap();
        assert_eq!((entry.id, &*entry.device), (36, "0:52"));
        assert_eq!((&*entry.root, &*entry.target), (Path::new("/a b"), Path::new("/mnt/c\\d")));
        assert_eq!(entry.options, "rw,user_id=0");
        assert!(entry.is_own());
        let plain = parse(b"22 1 254:1 / / rw - ext4 /dev/root rw").unwrap();
        assert!(!plain.is_own());
        for bad in [
            &b""[..],
            b"1 2 3",
            b"x 1 254:1 / / rw - ext4 /dev/root rw",
            b"22 1 254:1 / / rw - ext4",
        ] {
            assert_eq!(parse(bad), None);
        }
    }

    #[test]
    fn only_an_empty_directory_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("target");
        assert!(!remove_directory(&path).unwrap());
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("file"), "x").unwrap();
        assert!(remove_directory(&path).is_err());
        assert_eq!(std::fs::read(path.join("file")).unwrap(), b"x");
        std::fs::remove_file(path.join("file")).unwrap();
        assert!(remove_directory(&path).unwrap());
    }

    #[test]
    fn nothing_is_unmounted_where_nothing_is_mounted() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(clear(dir.path(), |_| true).unwrap(), 0);
        let proc = at(Path::new("/proc")).unwrap().unwrap();
        assert_eq!(proc.kind, "proc");
        assert!(clear(Path::new("/proc"), Entry::is_own).is_err());
    }
}
