//! A mount, from the mount point that is looked at first to the unmounting.
//!
//! Invariant: what [`Mount::open`] mounted by itself is unmounted when the [`Mount`] is gone, what a
//! holder mounted is left to the holder, and nothing else is ever unmounted, but a dead mount that
//! `force` names. It refuses a mount point where a live FUSE file system is.

mod attach;
mod clear;
mod inquire;
mod joined;
mod link;
mod loops;
mod point;
mod readahead;
mod spawn;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fuser::SessionACL;
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use store::Namespace;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::Metrics;
use crate::adapter::Adapter;
use crate::config::MountConfig;
use crate::fs::Gate;
use crate::holder::device;
use crate::registrar::{Direct, Registrar, Unavailable};
pub(crate) use attach::attach_own;
use attach::{Attached, attach};
pub(crate) use clear::{clear_mount_point, make_mount_point, take_away};
pub use inquire::{HolderStatus, dismiss_worker, end_holder, holder_status, holder_status_within};
use joined::Joined;
use loops::{Loops, Prepared};
pub(crate) use point::{MountEntry, mounted_at};
pub use point::{MountPointState, check_mount_point, is_own_mount};
pub(crate) use readahead::raise as raise_read_ahead;
pub use spawn::spawn_holder;

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
    /// The kernel, `fusermount3` or the mount holder refused.
    #[error("{0}")]
    Refused(String),
}

/// How the mount came to be, and so how it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Privilege {
    /// `mount(2)` and `umount2(2)`.
    Own,
    /// `fusermount3`, set-user-id.
    Borrowed,
}

/// A mounted namespace.
///
/// Without a holder, dropping it detaches the mount at once; [`Mount::unmount`] is gentler. With a
/// holder, dropping it leaves the mount to the next worker, as a crash does, and only
/// [`Mount::unmount`] ends it.
#[derive(Debug)]
pub struct Mount {
    target: PathBuf,
    notes: Vec<String>,
    loops: Arc<Loops>,
    gate: Arc<Gate>,
    base: Base,
}

/// What a mount rests on.
#[derive(Debug)]
enum Base {
    Own(Owned),
    Held(Joined),
}

impl Mount {
    /// Mounts a namespace, or begins to serve the mount of a holder, and returns when the kernel has
    /// accepted it. It blocks for milliseconds, or until the worker that it takes over from has
    /// left; operations run as tasks on `runtime`.
    ///
    /// With a holder nothing is mounted here. Without one, as root `mount(2)` is called; otherwise
    /// `fusermount3` is asked. An error is a sentence that says what to do.
    #[allow(clippy::needless_pass_by_value)] // The configuration is handed over with the rest.
    pub fn open(
        namespace: Arc<Namespace>,
        config: MountConfig,
        metrics: Metrics,
        runtime: Handle,
    ) -> Result<Self, MountError> {
        match &config.holder {
            Some(socket) => Self::join(namespace, socket, &config, metrics, runtime),
            None => Self::own(namespace, &config, metrics, runtime),
        }
    }

    fn own(
        namespace: Arc<Namespace>,
        config: &MountConfig,
        metrics: Metrics,
        runtime: Handle,
    ) -> Result<Self, MountError> {
        let target = clear_mount_point(&config.mount_point, config.force, false)?;
        let mut notes = Vec::new();
        if std::fs::read_dir(&target).is_ok_and(|mut entries| entries.next().is_some()) {
            notes.push(format!(
                "`{}` is not empty: what it holds is hidden while the mount is there",
                target.display()
            ));
        }
        let Attached { device, privilege, note } = attach(&target, config)?;
        notes.extend(note);
        // From here on dropping `owned` detaches what was attached.
        let line = mounted_at(&target).filter(MountEntry::is_fuse);
        let mut owned = Owned { target: target.clone(), line, privilege, ended: None };
        let refused = |error: io::Error| {
            MountError::Refused(format!("the kernel did not begin a FUSE session: {error}"))
        };
        let registrar: Arc<dyn Registrar> = match privilege {
            Privilege::Own => Arc::new(Direct::new(device.try_clone().map_err(refused)?)),
            Privilege::Borrowed => Arc::new(Unavailable::new(
                "reads go through this process: \
                 only `warpdrive mountd`, or root, can give the kernel local files",
            )),
        };
        notes.extend(registrar.unavailable().map(str::to_owned));
        let adapter = Adapter::new(namespace, config, metrics, runtime, registrar);
        let acl = if config.allow_other { SessionACL::All } else { SessionACL::Owner };
        let loops = begin(&adapter, device, config, acl).map_err(refused)?;
        owned.ended = Some(loops.ended());
        notes.extend(raise_read_ahead(owned.device(), config.read_ahead_kib).err());
        let gate = adapter.gate();
        gate.open();
        Ok(Self { target, notes, loops, gate, base: Base::Own(owned) })
    }

    fn join(
        namespace: Arc<Namespace>,
        socket: &Path,
        config: &MountConfig,
        metrics: Metrics,
        runtime: Handle,
    ) -> Result<Self, MountError> {
        let (joined, offer) = Joined::attach(socket, config.take_over)?;
        let mut notes = Vec::new();
        let wanted = point::resolve_unseen(&config.mount_point);
        if wanted != offer.target {
            let has = offer.target.display();
            notes.push(format!("the holder has the mount `{has}`, not `{}`", wanted.display()));
        }
        let (registrar, mount) = (joined.registrar(), joined.mount_id());
        let (adapter, note) =
            Adapter::resume(namespace, config, metrics, runtime, registrar, mount);
        notes.extend(note);
        let devices = for_each_loop(offer.devices, config.threads).map_err(joined::failed)?;
        // Who may enter is the kernel's business, by how the holder mounted.
        let prepared = Prepared::new(&adapter, &offer.init, devices, SessionACL::All)
            .map_err(joined::failed)?;
        notes.extend(joined.ready(&prepared.answer)?);
        let loops = joined.run(prepared)?;
        let gate = adapter.gate();
        gate.open();
        Ok(Self { target: offer.target, notes, loops, gate, base: Base::Held(joined) })
    }

    /// Where the mount is, without symbolic links. With a holder: where the holder sees it.
    pub fn mount_point(&self) -> &Path {
        &self.target
    }

    /// What works less well than it could, and what would change that; one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// From now on whatever would change something is refused with EROFS, for good; reading goes on.
    /// To be called when the programs that the mount is for have ended: who then deletes what is
    /// below the mount point means the directory, not the objects.
    pub fn refuse_mutations(&self) {
        self.gate.close();
    }

    /// Waits until this process does not serve the mount any more: because it is gone, by whomever
    /// (an administrator may unmount it too), or because the holder is. When a holder dies, the
    /// worker closes the connection at once, so that readers get ENOTCONN and do not wait.
    pub async fn ended(&self) {
        // An error means that the loops are gone.
        let _ = self.loops.ended().wait_for(|ended| *ended).await;
    }

    /// Waits until the holder asks this worker to leave for another; then [`Mount::abandon`] it
    /// within five seconds, since readers wait for as long, and a worker that stays is killed.
    /// Without a holder it waits for ever.
    pub async fn leave_requested(&self) {
        self.state(|state| state.leave).await;
    }

    /// Waits until the holder has died, or has dropped this worker. Then the mount is dead: this
    /// process has closed its connection, and programs get ENOTCONN until a holder mounts again.
    /// Without a holder it waits for ever.
    pub async fn holder_lost(&self) {
        self.state(|state| state.lost).await;
    }

    async fn state(&self, is_so: impl Fn(&link::State) -> bool) {
        match &self.base {
            // The sender lives in the link.
            Base::Held(joined) => _ = joined.link().state().wait_for(is_so).await,
            Base::Own(_) => std::future::pending().await,
        }
    }

    /// Stops serving, and leaves the mount as it is: with a holder for the next worker, to whom
    /// requests that are not answered yet are sent again; without one it is dead, with ENOTCONN.
    /// When it returns, nothing here reads requests any more.
    pub async fn abandon(mut self) {
        if let Base::Own(owned) = &mut self.base {
            owned.ended = Some(watch::channel(true).1);
        }
        // Dropping it stops the loops, which takes a moment.
        let dropped = tokio::task::spawn_blocking(move || drop(self)).await;
        if let Err(error) = dropped {
            tracing::warn!(%error, "abandoning the mount failed");
        }
    }

    /// Unmounts. While programs use the mount it is tried again until `deadline` has passed; then
    /// the mount is detached, and programs that still use it get ENOTCONN. A holder ends with it.
    pub async fn unmount(self, deadline: Duration) -> Result<(), MountError> {
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
        if timeout(DETACHED_GRACE, self.ended()).await.is_err() {
            // `fusermount3` cannot cut a connection, but its owner can, where `/sys` shows it.
            if let Base::Own(owned) = &self.base {
                readahead::abort(owned.device());
            }
            let _ = timeout(DETACHED_GRACE, self.ended()).await;
        }
        Ok(())
    }

    async fn detach_once(&self, lazy: bool) -> Result<(), String> {
        let detached = match &self.base {
            Base::Own(owned) if owned.entry().is_none() => return Ok(()),
            Base::Own(owned) => {
                let (target, privilege) = (owned.target.clone(), owned.privilege);
                tokio::task::spawn_blocking(move || detach(&target, privilege, lazy))
            }
            // A mount that is gone took the holder with it.
            Base::Held(_) if *self.loops.ended().borrow() => return Ok(()),
            Base::Held(joined) => {
                let link = Arc::clone(joined.link());
                tokio::task::spawn_blocking(move || joined::unmount(&link, lazy))
            }
        };
        detached.await.unwrap_or_else(|error| Err(error.to_string()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.gate.close();
        // A mount of our own is detached first, or those who use it would see it dying.
        match &mut self.base {
            Base::Own(owned) => owned.detach(),
            // Only when nobody reads any more may the holder hear that we are gone. Otherwise it
            // hears it when this process is.
            Base::Held(joined) => {
                if self.loops.stop() {
                    joined.link().close();
                }
            }
        }
    }
}

/// A mount of this process.
#[derive(Debug)]
struct Owned {
    target: PathBuf,
    /// Its line in the kernel's table; none when it could not be read.
    line: Option<MountEntry>,
    privilege: Privilege,
    /// True once the mount is gone; none while it was never served.
    ended: Option<watch::Receiver<bool>>,
}

impl Owned {
    fn device(&self) -> Option<&str> {
        self.line.as_ref().map(|line| line.device.as_str())
    }

    /// The mount's own line in the kernel's table, while it is the topmost at its place.
    fn entry(&self) -> Option<MountEntry> {
        // The kernel gives the numbers of a mount that is gone to the next one.
        if self.ended.as_ref().is_some_and(|ended| *ended.borrow()) {
            return None;
        }
        let entry = mounted_at(&self.target)?;
        let ours = self.line.as_ref().is_none_or(|line| *line == entry);
        (ours && entry.is_fuse()).then_some(entry)
    }

    fn detach(&mut self) {
        if self.entry().is_some()
            && let Err(reason) = detach(&self.target, self.privilege, true)
        {
            tracing::warn!(mount_point = %self.target.display(), reason, "cannot unmount");
        }
        self.ended = Some(watch::channel(true).1);
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.detach();
    }
}

/// Begins a session on a device that was just mounted.
fn begin(
    adapter: &Adapter,
    device: OwnedFd,
    config: &MountConfig,
    acl: SessionACL,
) -> io::Result<Arc<Loops>> {
    let init = loops::read_init(&device)?;
    let cores = || std::thread::available_parallelism().map_or(2, usize::from);
    let count = config.threads.unwrap_or_else(|| cores().clamp(2, MAX_EVENT_LOOPS)).max(1);
    // A loop with its own descriptor has its own queue; that takes opening the device again.
    let mut devices = Vec::new();
    for _ in 1..count {
        use std::os::fd::AsFd;
        devices.extend(device::clone(device.as_fd()));
    }
    let answering = device.try_clone()?;
    devices.push(device);
    let devices = for_each_loop(devices, Some(count))?;
    let prepared = Prepared::new(adapter, &init, devices, acl)?;
    rustix::io::write(&answering, &prepared.answer)?;
    prepared.run()
}

/// A descriptor for each event loop; loops that have none of their own share.
fn for_each_loop(mut devices: Vec<OwnedFd>, count: Option<usize>) -> io::Result<Vec<OwnedFd>> {
    let count = count.unwrap_or(devices.len()).max(1);
    let own = devices.len();
    for index in own..count {
        let shared = devices.get(index % own.max(1)).ok_or(Errno::BADF)?;
        devices.push(shared.try_clone()?);
    }
    devices.truncate(count);
    Ok(devices)
}

/// Takes a mount away: only if nobody uses it, or (lazily) in any case.
pub(crate) fn detach(target: &Path, privilege: Privilege, lazy: bool) -> Result<(), String> {
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
