//! Making a mount point, making it free, and taking a mount away from it.
//!
//! Invariant: only dead mounts are detached, and only those that the caller gives up, and its own
//! with what lies on it. It mounts nothing.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::point::{self, MountEntry, MountPointState, check_mount_point, is_mounted, mounted_at};
use super::{MountError, Privilege, detach};

/// Mounts that lie on each other at one place: more than a few are not left by crashes, and are made
/// as fast as they are taken away.
const MOST_STACKED: usize = 16;

/// The mount point, ready to be mounted on.
///
/// A dead mount there is detached if `force` says so, or if it is one of this program and
/// `force_own` says so.
pub(crate) fn clear_mount_point(
    mount_point: &Path,
    force: bool,
    force_own: bool,
) -> Result<PathBuf, MountError> {
    let shown = mount_point.display();
    let mut detached = 0;
    loop {
        let problem = match check_mount_point(mount_point) {
            MountPointState::Free => {
                return point::resolve(mount_point).map_err(|error| {
                    MountError::MountPoint(format!("mount point `{shown}`: {error}"))
                });
            }
            MountPointState::Missing => return Err(missing(mount_point)),
            MountPointState::NotDirectory => format!(
                "mount point `{shown}` is not a directory that can be read; name another one"
            ),
            MountPointState::Busy(what) => format!(
                "mount point `{shown}` is in use by {what}; stop that, or name another mount point"
            ),
            MountPointState::Stale if !(force || (force_own && is_own(mount_point))) => format!(
                "a mount whose process has died is at `{shown}`; \
                 start with `--force`, or run `umount -l {shown}`"
            ),
            MountPointState::Stale => {
                detached += 1;
                let target = point::resolve(mount_point).unwrap_or_default();
                let gone = detach(&target, Privilege::Own, true)
                    .or_else(|_| detach(&target, Privilege::Borrowed, true));
                match gone {
                    Ok(()) if detached < MOST_STACKED => continue,
                    Ok(()) => format!("mounts keep appearing at `{shown}`; stop what makes them"),
                    Err(reason) => format!(
                        "the dead mount at `{shown}` cannot be detached ({reason}); \
                         run `umount -l {shown}` as root"
                    ),
                }
            }
        };
        return Err(MountError::MountPoint(problem));
    }
}

/// There is no directory to mount over.
pub(super) fn missing(mount_point: &Path) -> MountError {
    let shown = mount_point.display();
    MountError::MountPoint(format!(
        "mount point `{shown}` does not exist; create it with `mkdir -p {shown}`"
    ))
}

fn is_own(mount_point: &Path) -> bool {
    let target = point::resolve(mount_point).unwrap_or_default();
    point::mounted_at(&target).is_some_and(|entry| entry.is_own())
}

/// Makes the directory that is to be mounted over, in one that is there: a volume comes empty.
pub(crate) fn make_mount_point(point: &Path) -> Result<(), MountError> {
    match std::fs::create_dir(point) {
        // What is wrong with one that is there, or with its parent, is found out next.
        Err(error) if !matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::NotFound) => {
            // A dead mount, and one on a file system that cannot be written, are there as well.
            match point.symlink_metadata() {
                Err(seen) if seen.kind() == ErrorKind::NotFound => {
                    let shown = point.display();
                    Err(MountError::MountPoint(format!("mount point `{shown}`: {error}")))
                }
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

/// Takes a mount away: only if nobody uses it, or in any case, with what lies on it. Without an entry,
/// which is where the mount table could not be read, whatever is on top.
pub(crate) fn take_away(target: &Path, entry: Option<&MountEntry>, lazily: bool) -> io::Result<()> {
    let Some(entry) = entry else { return take_topmost(target, lazily, true) };
    for _ in 0..MOST_STACKED {
        // Someone else may have unmounted it, and mounted another there.
        if !is_mounted(entry) {
            return Ok(());
        }
        let is_topmost = mounted_at(target).as_ref() == Some(entry);
        if !lazily && !is_topmost {
            return Err(Errno::BUSY.into());
        }
        take_topmost(target, lazily, is_topmost)?;
    }
    if is_mounted(entry) { Err(Errno::BUSY.into()) } else { Ok(()) }
}

fn take_topmost(target: &Path, lazily: bool, own: bool) -> io::Result<()> {
    // FORCE cuts the connection, so that those who still use it get ENOTCONN and do not wait.
    let force = if own { UnmountFlags::FORCE } else { UnmountFlags::empty() };
    let flags = if lazily { UnmountFlags::DETACH | force } else { UnmountFlags::empty() };
    match unmount(target, flags | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
