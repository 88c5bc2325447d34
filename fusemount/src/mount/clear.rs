//! Making a mount point free.
//!
//! Invariant: only dead mounts are detached, and only those that the caller gives up. It mounts
//! nothing.

use std::path::{Path, PathBuf};

use super::point::{self, MountPointState, check_mount_point};
use super::{MountError, Privilege, detach};

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
                // Mounts can lie on each other; more than a few are not left by crashes.
                detached += 1;
                let target = point::resolve(mount_point).unwrap_or_default();
                let gone = detach(&target, Privilege::Own, true)
                    .or_else(|_| detach(&target, Privilege::Borrowed, true));
                match gone {
                    Ok(()) if detached < 16 => continue,
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
