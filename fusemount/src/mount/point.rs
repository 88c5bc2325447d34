//! What is at a mount point.
//!
//! Invariant: looking takes at most [`LOOK`], also at a FUSE file system that does not answer. It
//! changes nothing.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use rustix::io::Errno;

/// How long a mounted file system has to answer before it counts as one that hangs.
const LOOK: Duration = Duration::from_secs(2);

/// What is at a mount point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountPointState {
    /// A directory without a FUSE file system on it.
    Free,
    /// A FUSE file system whose process has died.
    Stale,
    /// A live FUSE file system; the text says which.
    Busy(String),
    /// Nothing.
    Missing,
    /// Not a directory, or one that cannot be looked at.
    NotDirectory,
}

/// One line of the kernel's mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountEntry {
    /// The kernel's number for this mount.
    pub(crate) id: String,
    /// `major:minor`.
    pub(crate) device: String,
    target: PathBuf,
    kind: String,
    source: String,
}

impl MountEntry {
    /// True for a mount of this program.
    pub(crate) fn is_own(&self) -> bool {
        self.kind == "fuse.warpdrive"
    }

    /// True for a FUSE file system of any kind.
    pub(crate) fn is_fuse(&self) -> bool {
        self.kind == "fuse" || self.kind == "fuseblk" || self.kind.starts_with("fuse.")
    }
}

/// What is at a path. A file system of another kind that is mounted there, as a container's volume
/// is, does not hinder.
pub fn check_mount_point(path: &Path) -> MountPointState {
    let owned = path.to_owned();
    let (answer, answered) = mpsc::channel();
    // A thread of its own: it may hang with the file system that it looks at.
    std::thread::spawn(move || {
        // The receiver may have given up.
        let _ = answer.send(look(&owned));
    });
    answered.recv_timeout(LOOK).unwrap_or_else(|_| {
        MountPointState::Busy(format!("a file system that does not answer within {LOOK:?}"))
    })
}

fn look(path: &Path) -> MountPointState {
    let Ok(target) = resolve(path) else { return MountPointState::Missing };
    if let Some(entry) = mounted_at(&target).filter(MountEntry::is_fuse) {
        // Asks the process behind it; `stat` would be answered from what the kernel remembers.
        return match rustix::fs::statvfs(&target) {
            Err(Errno::NOTCONN) => MountPointState::Stale,
            _ => MountPointState::Busy(format!("`{}` ({})", entry.source, entry.kind)),
        };
    }
    match std::fs::metadata(&target) {
        Ok(seen) if seen.is_dir() => MountPointState::Free,
        Err(error) if error.kind() == io::ErrorKind::NotFound => MountPointState::Missing,
        _ => MountPointState::NotDirectory,
    }
}

/// The path without symbolic links. The last name need not answer, only be there.
pub(crate) fn resolve(path: &Path) -> io::Result<PathBuf> {
    if let Ok(resolved) = path.canonicalize() {
        return Ok(resolved);
    }
    let path = std::path::absolute(path)?;
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
        _ => Ok(path),
    }
}

/// The path without symbolic links before its last name, which is not looked at: what is mounted
/// there may not answer yet.
pub(crate) fn resolve_unseen(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (path.parent().and_then(|parent| parent.canonicalize().ok()), path.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => path,
    }
}

/// Whether the topmost mount at a path, as this process sees it, is one of this program. Only the
/// mount table is read: it is answered at once, also when the mount is dead or hangs.
pub fn is_own_mount(path: &Path) -> bool {
    mounted_at(&resolve_unseen(path)).is_some_and(|entry| entry.is_own())
}

/// Whether a mount is there still, also where another one lies on it.
pub(crate) fn is_mounted(entry: &MountEntry) -> bool {
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    table.split(|byte| *byte == b'\n').filter_map(parse).any(|line| line == *entry)
}

/// The topmost mount at exactly this path.
pub(crate) fn mounted_at(target: &Path) -> Option<MountEntry> {
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    let lines = table.split(|byte| *byte == b'\n').rev();
    lines.filter_map(parse).find(|entry| entry.target == target)
}

/// One line of `/proc/self/mountinfo`, proc(5).
fn parse(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = fields.next()?;
    let device = fields.nth(1)?;
    let target = fields.nth(1)?;
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let text = |bytes: &[u8]| String::from_utf8_lossy(&unescape(bytes)).into_owned();
    Some(MountEntry {
        id: text(id),
        device: text(device),
        target: OsString::from_vec(unescape(target)).into(),
        kind: text(rest.next()?),
        source: text(rest.next()?),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_mount_table() {
        let line =
            br"36 35 0:52 / /mnt/a\040b\134c rw,nosuid shared:7 - fuse.warpdrive warp\040d rw";
        let entry = parse(line).unwrap();
        assert_eq!((entry.id.as_str(), entry.device.as_str()), ("36", "0:52"));
        assert_eq!(entry.target, Path::new("/mnt/a b\\c"));
        assert_eq!(entry.source, "warp d");
        assert!(entry.is_fuse());
        let plain = parse(b"22 1 254:1 / / rw - ext4 /dev/root rw").unwrap();
        assert!(!plain.is_fuse());
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"1 2 3"), None);
    }

    #[test]
    fn places_that_are_no_mounts() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(check_mount_point(dir.path()), MountPointState::Free);
        assert_eq!(check_mount_point(&dir.path().join("no")), MountPointState::Missing);
        assert_eq!(check_mount_point(&dir.path().join("no/deeper")), MountPointState::Missing);
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert_eq!(check_mount_point(&file), MountPointState::NotDirectory);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert_eq!(check_mount_point(&link), MountPointState::Free);
        assert_eq!(check_mount_point(Path::new("/proc")), MountPointState::Free);
    }
}
