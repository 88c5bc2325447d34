//! Where that lies which outlives a worker: the holder's socket, the journal of the mount.
//!
//! Invariant: a mount point has the same directory in every start of every version, and no
//! directory is used that somebody else can write. It never looks into a mount: one without a
//! worker would not answer.

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

/// Follows this many links at a mount point; more are a loop.
const MAX_LINKS: usize = 8;

/// What the holder says.
const HOLDER_LOG: &str = "holder.log";
/// How the names of the journal begin: itself, and one that is being written.
const JOURNAL: &str = "nodes.journal";

/// The directory of one mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StateDir(PathBuf);

impl StateDir {
    /// Makes the directory, where it is not there: the configured one, or one of this mount point.
    pub(super) fn open(configured: Option<&Path>, mount_point: &Path) -> io::Result<Self> {
        let dir = match configured {
            Some(dir) => dir.to_owned(),
            None => base()?.join(format!("{:016x}", fnv1a(resolved(mount_point)))),
        };
        let said =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", dir.display()));
        if let Some(parent) = dir.parent() {
            std::fs::create_dir_all(parent).map_err(said)?;
        }
        own(&dir).map_err(said)?;
        Ok(Self(dir))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Where the holder that this sidecar starts listens.
    pub(super) fn socket(&self) -> PathBuf {
        self.0.join("holder.sock")
    }

    /// What the holder says.
    pub(super) fn holder_log(&self) -> PathBuf {
        self.0.join(HOLDER_LOG)
    }

    /// Removes the directory after an orderly end, when nothing is left that means anything; what
    /// somebody else put there stays.
    pub(super) fn remove(&self) {
        for entry in std::fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let ours = [HOLDER_LOG, JOURNAL].map(|ours| name.to_string_lossy().starts_with(ours));
            if ours.contains(&true) {
                // What cannot be removed is found by the next start, which uses it again.
                let _ = std::fs::remove_file(entry.path());
            }
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// The directory of this user's run-time files.
fn base() -> io::Result<PathBuf> {
    if geteuid().is_root() {
        let base = PathBuf::from("/run/warpdrive");
        own(&base)?;
        return Ok(base);
    }
    user_folder()
}

/// A directory of this user's, for files of running programs.
pub(super) fn user_folder() -> io::Result<PathBuf> {
    let base = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_dir());
    let folder = match base {
        Some(base) => base.join("warpdrive"),
        None => std::env::temp_dir().join(format!("warpdrive-{}", geteuid().as_raw())),
    };
    match own(&folder) {
        Ok(()) => Ok(folder),
        Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", folder.display()))),
    }
}

/// Makes a directory that only this user writes, or takes one that is so already: somebody else may
/// have made it first, to be handed what is put there.
fn own(dir: &Path) -> io::Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => return made,
    }
    let meta = std::fs::symlink_metadata(dir)?;
    if meta.is_dir() && meta.uid() == geteuid().as_raw() && meta.mode() & 0o022 == 0 {
        return Ok(());
    }
    let what = "is not a directory that only this user writes";
    Err(io::Error::new(io::ErrorKind::PermissionDenied, what))
}

/// The mount point without links. The directory itself is never looked at, only what leads there.
fn resolved(mount_point: &Path) -> PathBuf {
    let mut path = mount_point.to_owned();
    for _ in 0..MAX_LINKS {
        if let (Some(parent), Some(name)) = (path.parent(), path.file_name())
            && let Ok(parent) = parent.canonicalize()
        {
            path = parent.join(name);
        }
        // Of a directory the kernel says that it is no link without asking who serves it.
        let Ok(target) = std::fs::read_link(&path) else { break };
        path = path.parent().unwrap_or(Path::new("/")).join(target);
    }
    path
}

/// FNV-1a, 64 bits: the same in every version of every compiler.
fn fnv1a(path: PathBuf) -> u64 {
    use std::os::unix::ffi::OsStringExt;
    let bytes = path.into_os_string().into_vec();
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_mount_point_has_one_directory_whatever_it_is_called() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("a/mnt")).unwrap();
        symlink("a", root.join("b")).unwrap();
        symlink("b/mnt", root.join("c")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        for name in ["a/mnt", "b/mnt", "c", "a/../b/mnt"] {
            assert_eq!(resolved(&root.join(name)), root.join("a/mnt"), "{name}");
        }
        // No end, but an answer.
        resolved(&root.join("loop"));
        // The published test vector.
        assert_eq!(fnv1a("a".into()), 0xaf63_dc4c_8601_ec8c);
    }

    #[test]
    fn a_directory_of_somebody_else_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("x/state");
        let state = StateDir::open(Some(&dir), Path::new("/data")).unwrap();
        assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
        state.remove();
        assert!(!dir.exists());
        std::fs::create_dir(&dir).unwrap();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777)).unwrap();
        let refused = StateDir::open(Some(&dir), Path::new("/data")).unwrap_err();
        assert!(refused.to_string().contains("only this user writes"), "{refused}");
        let link = folder.path().join("link");
        symlink("/tmp", &link).unwrap();
        assert!(StateDir::open(Some(&link), Path::new("/data")).is_err());
    }
}
