//! A mount, from the mount point that is looked at first to the unmounting.
//!
//! Invariant: what [`Mount::open`] mounted is unmounted when the [`Mount`] is gone, and nothing
//! else ever is, but a dead mount that `force` names. It refuses a mount point where a live FUSE
//! file system is.

mod attach;
mod point;
mod readahead;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fuser::{Config, Session, SessionACL};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use store::Namespace;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::Metrics;
use crate::adapter::Adapter;
use crate::config::MountConfig;
use crate::registrar::{Direct, Registrar, Unavailable};
use attach::Attached;
use point::MountEntry;
pub use point::{MountPointState, check_mount_point};

/// Event loops for requests. What is in memory is answered in the loop, copying included; eight
/// loops copy faster than memory gives.
const MAX_EVENT_LOOPS: usize = 8;

/// How long a mount that was detached is waited for, and again after its connection was cut.
const DETACHED_GRACE: Duration = Duration::from_secs(1);

/// How often a busy mount is tried again.
const RETRY_EVERY: Duration = Duration::from_millis(50);

/// Why there is no mount, in one sentence with what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MountError {
    /// This machine or container has no usable FUSE: everything but the mount can still work.
    #[error("{0}")]
    NoFuse(String),
    /// The mount point cannot be used as it is.
    #[error("{0}")]
    MountPoint(String),
    /// The kernel or `fusermount3` refused.
    #[error("{0}")]
    Refused(String),
}

/// How the mount came to be, and so how it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Privilege {
    /// `mount(2)` and `umount2(2)`.
    Own,
    /// `fusermount3`, set-user-id.
    Borrowed,
}

/// A mounted namespace. Dropping it detaches the mount at once; [`Mount::unmount`] is gentler.
#[derive(Debug)]
pub struct Mount {
    target: PathBuf,
    /// Its line in the kernel's table; none when it could not be read.
    line: Option<MountEntry>,
    privilege: Privilege,
    notes: Vec<String>,
    ended: watch::Receiver<bool>,
    attached: bool,
}

impl Mount {
    /// Mounts a namespace, and returns when the kernel has accepted it. It blocks for
    /// milliseconds; operations run as tasks on `runtime`.
    ///
    /// As root `mount(2)` is called; otherwise `fusermount3` is asked. An error is a sentence that
    /// says what to do.
    #[allow(clippy::needless_pass_by_value)] // The configuration is handed over with the rest.
    pub fn open(
        namespace: Arc<Namespace>,
        config: MountConfig,
        metrics: Metrics,
        runtime: Handle,
    ) -> Result<Self, MountError> {
        let target = clear_mount_point(&config)?;
        let mut notes = Vec::new();
        if std::fs::read_dir(&target).is_ok_and(|mut entries| entries.next().is_some()) {
            notes.push(format!(
                "`{}` is not empty: what it holds is hidden while the mount is there",
                target.display()
            ));
        }
        let Attached { device: fd, privilege, note } = attach::attach(&target, &config)?;
        notes.extend(note);
        let (ending, ended) = watch::channel(false);
        // From here on dropping `mount` detaches what was attached.
        let mut mount = Self { target, line: None, privilege, notes, ended, attached: true };
        mount.line = mount.entry();

        let mut options = Config::default();
        let cores = || std::thread::available_parallelism().map_or(2, usize::from);
        let loops = config.threads.unwrap_or_else(|| cores().clamp(2, MAX_EVENT_LOOPS));
        options.n_threads = Some(loops.max(1));
        // A loop with its own descriptor has its own queue; that takes opening the device again.
        options.clone_fd = attach::can_open_device();
        let acl = if config.allow_other { SessionACL::All } else { SessionACL::Owner };
        let refused = |error: std::io::Error| {
            MountError::Refused(format!("the kernel did not begin a FUSE session: {error}"))
        };
        let registrar: Arc<dyn Registrar> = match privilege {
            Privilege::Own => Arc::new(Direct::new(fd.try_clone().map_err(refused)?)),
            Privilege::Borrowed => Arc::new(Unavailable::new(
                "reads go through this process: only `warpdrive mountd`, or root, can give the kernel \
                 local files",
            )),
        };
        mount.notes.extend(registrar.unavailable().map(str::to_owned));
        let adapter = Adapter::new(namespace, &config, metrics, runtime, registrar);
        let session = Session::from_fd(adapter, fd, acl, options).map_err(refused)?;
        let run = move || {
            if let Err(error) = session.run() {
                tracing::warn!(%error, "the FUSE session ended with an error");
            }
            // Nobody need be listening.
            let _ = ending.send(true);
        };
        let thread = std::thread::Builder::new().name("fuse-session".into());
        thread.spawn(run).map_err(refused)?;

        if config.read_ahead_kib > 0 {
            let raised = readahead::raise(mount.device(), config.read_ahead_kib);
            mount.notes.extend(raised.err());
        }
        Ok(mount)
    }

    /// Where the mount is, without symbolic links.
    pub fn mount_point(&self) -> &Path {
        &self.target
    }

    /// What works less well than it could, and what would change that; one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Waits until the mount is gone, by whomever: an administrator may unmount it too.
    pub async fn ended(&self) {
        // An error means that the session thread is gone.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }

    /// Unmounts. While programs use the mount it is tried again until `deadline` has passed; then
    /// the mount is detached, and programs that still use it get ENOTCONN.
    pub async fn unmount(mut self, deadline: Duration) -> Result<(), MountError> {
        let until = Instant::now() + deadline;
        loop {
            match self.detach_once(false).await {
                Ok(()) => break,
                Err(reason) if Instant::now() >= until => {
                    tracing::warn!(mount_point = %self.target.display(), reason, "detaching a busy mount");
                    self.detach_once(true).await.map_err(|reason| {
                        MountError::Refused(format!(
                            "cannot unmount `{0}`: {reason}; run `umount -l {0}`",
                            self.target.display()
                        ))
                    })?;
                    break;
                }
                Err(_) => sleep(RETRY_EVERY).await,
            }
        }
        self.attached = false;
        if timeout(DETACHED_GRACE, self.ended()).await.is_err() {
            // `fusermount3` cannot cut a connection, but its owner can, where `/sys` shows it.
            readahead::abort(self.device());
            let _ = timeout(DETACHED_GRACE, self.ended()).await;
        }
        Ok(())
    }

    fn device(&self) -> Option<&str> {
        self.line.as_ref().map(|line| line.device.as_str())
    }

    /// The mount's own line in the kernel's table, while it is the topmost at its place.
    fn entry(&self) -> Option<MountEntry> {
        // The kernel gives the numbers of a mount that is gone to the next one.
        if *self.ended.borrow() {
            return None;
        }
        let entry = point::mounted_at(&self.target)?;
        let ours = self.line.as_ref().is_none_or(|line| *line == entry);
        (ours && entry.is_fuse()).then_some(entry)
    }

    async fn detach_once(&self, lazy: bool) -> Result<(), String> {
        if self.entry().is_none() {
            return Ok(());
        }
        let (target, privilege) = (self.target.clone(), self.privilege);
        let detached = tokio::task::spawn_blocking(move || detach(&target, privilege, lazy));
        detached.await.unwrap_or_else(|error| Err(error.to_string()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.attached
            && self.entry().is_some()
            && let Err(reason) = detach(&self.target, self.privilege, true)
        {
            tracing::warn!(mount_point = %self.target.display(), reason, "cannot unmount");
        }
    }
}

/// Takes a mount away: only if nobody uses it, or (lazily) in any case.
fn detach(target: &Path, privilege: Privilege, lazy: bool) -> Result<(), String> {
    // FORCE cuts the connection, so that those who still use it get ENOTCONN and do not wait.
    let lazily = UnmountFlags::DETACH | UnmountFlags::FORCE;
    let flags = if lazy { lazily } else { UnmountFlags::empty() };
    if privilege == Privilege::Own {
        return match unmount(target, flags | UnmountFlags::NOFOLLOW) {
            // Not mounted any more.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
            Err(error) => Err(error.to_string()),
        };
    }
    attach::fusermount_detach(target, lazy)
}

/// The mount point, ready to be mounted on.
fn clear_mount_point(config: &MountConfig) -> Result<PathBuf, MountError> {
    let shown = config.mount_point.display();
    let mut detached = 0;
    loop {
        let problem = match check_mount_point(&config.mount_point) {
            MountPointState::Free => {
                return point::resolve(&config.mount_point).map_err(|error| {
                    MountError::MountPoint(format!("mount point `{shown}`: {error}"))
                });
            }
            MountPointState::Missing => {
                format!("mount point `{shown}` does not exist; create it with `mkdir -p {shown}`")
            }
            MountPointState::NotDirectory => format!(
                "mount point `{shown}` is not a directory that can be read; name another one"
            ),
            MountPointState::Busy(what) => format!(
                "mount point `{shown}` is in use by {what}; stop that, or name another mount point"
            ),
            MountPointState::Stale if !config.force => format!(
                "a mount whose process has died is at `{shown}`; \
                 start with `--force`, or run `umount -l {shown}`"
            ),
            MountPointState::Stale => {
                // Mounts can lie on each other; more than a few are not left by crashes.
                detached += 1;
                let target = point::resolve(&config.mount_point).unwrap_or_default();
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
