//! The mount of a sidecar: who holds it, how it is opened, and what becomes of it.
//!
//! Invariant: what a holder of this sidecar's own mounted is unmounted on an orderly end and left to
//! the next worker on any other; what somebody else's holder mounted is always left. Nothing is
//! opened here before it is clear that no other worker serves the mount, or that it was told to
//! leave.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fusemount::{Mount, MountConfig, MountError, MountPointState};
use serde_json::{Value, json};
use store::Namespace;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::state::StateDir;
use crate::cli::Stop;
use crate::config::{HolderSettings, MountSettings, Settings};

/// How often a holder that is not there yet is looked for: a start waits for it.
const AWAIT_EVERY: Duration = Duration::from_millis(20);
/// The mount's own default; enough for a sequential reader of a fast cache.
const DEFAULT_READAHEAD_KIB: u32 = 1024;
/// How often a holder that is gone is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a holder may take to end after it has unmounted.
const HOLDER_ENDS_WITHIN: Duration = Duration::from_secs(2);

/// Who holds the mount.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Holder {
    /// This process.
    None,
    /// A process that this sidecar starts where it is not there, at this socket.
    Own(PathBuf),
    /// Somebody else's, at this socket.
    Given(PathBuf),
}

impl Holder {
    fn socket(&self) -> Option<&Path> {
        match self {
            Self::None => None,
            Self::Own(socket) | Self::Given(socket) => Some(socket),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Own(_) => "own",
            Self::Given(_) => "given",
        }
    }
}

/// What is known of the mount, for the admin endpoint.
#[derive(Debug, Default)]
pub(crate) struct MountView(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    holder: &'static str,
    socket: Option<PathBuf>,
    /// Process of the holder, where it can be seen from here.
    pid: Option<u32>,
    /// A holder had the mount before this worker came.
    resumed: bool,
    /// How often a mount was made again after its holder had died.
    remounts: u32,
    /// Why the mount is not served.
    lost: Option<String>,
}

impl MountView {
    fn change(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Why the mount is not served, where it is not although it should be.
    pub(crate) fn lost(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).lost.clone()
    }

    /// Whether a holder had the mount before this worker came.
    pub(crate) fn resumed(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).resumed
    }

    /// How often a mount was made again after its holder had died.
    pub(crate) fn remounts(&self) -> u32 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remounts
    }

    /// What `/status` says of the holder.
    pub(crate) fn holder(&self) -> Value {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        json!({
            "kind": seen.holder,
            "socket": seen.socket,
            "pid": seen.pid,
            "resumed": seen.resumed,
            "remounts": seen.remounts,
        })
    }
}

/// How the mount is to be made, and where what outlives this process lies.
pub(super) struct Plan {
    holder: Holder,
    state: Option<StateDir>,
    config: MountConfig,
    notes: Vec<String>,
    resumes: bool,
    patience: Duration,
}

impl Plan {
    /// Decides who holds the mount, and makes sure that no other worker serves it: with
    /// `take_over` it is told to leave, and has stopped reading requests on return.
    pub(super) fn make(
        settings: &Settings,
        mount: &MountSettings,
        force: bool,
        take_over: bool,
    ) -> Result<Self, Stop> {
        let mut notes = Vec::new();
        let (holder, state) = choose(settings, mount, &mut notes)?;
        if take_over && holder == Holder::None {
            let what = "--take-over: this mount has no holder (see `fuse.holder`): stop the old \
                        process, then start this one";
            return Err(Stop::Unusable(what.to_owned()));
        }
        let resumes = match holder.socket() {
            Some(socket) => find(socket, &mount.point, take_over)?,
            None => false,
        };
        let config = MountConfig { force, ..config(settings, mount) };
        let patience = mount.holder_patience;
        Ok(Self { holder, state, config, notes, resumes, patience })
    }

    /// True where a holder has the mount already: its readers wait for this process.
    pub(super) fn resumes(&self) -> bool {
        self.resumes
    }

    /// A directory of this mount's own, where there is one.
    pub(super) fn folder(&self) -> Option<&Path> {
        self.state.as_ref().map(StateDir::path)
    }

    /// Mounts, or goes on with the mount of a holder.
    pub(super) async fn open(
        self,
        namespace: Arc<Namespace>,
        metrics: fusemount::Metrics,
        now: CancellationToken,
    ) -> Result<Mounted, MountError> {
        let view = Arc::new(MountView::default());
        view.change(|seen| {
            seen.holder = self.holder.name();
            seen.socket = self.holder.socket().map(Path::to_owned);
            seen.resumed = self.resumes;
        });
        let plan = Arc::new(self);
        let mount = open(&plan, &namespace, &metrics, &view).await?;
        Ok(Mounted { plan, namespace, metrics, view, mount: Some(mount), now, in_order: false })
    }

    /// The command that becomes a holder, as `warpdrive mountd` is started.
    fn command(&self, socket: &Path) -> Command {
        let program = std::env::current_exe();
        let mut command = Command::new(program.unwrap_or_else(|_| "/proc/self/exe".into()));
        // It needs nothing of what a worker is told, credentials least of all.
        command.env_clear().arg("mountd");
        command.arg("--mount-point").arg(&self.config.mount_point).arg("--socket").arg(socket);
        command.arg("--patience").arg(format!("{}ms", self.patience.as_millis()));
        command.arg("--read-ahead").arg(format!("{}KiB", self.config.read_ahead_kib));
        for (wanted, flag) in
            [(self.config.allow_other, "--allow-other"), (self.config.force, "--force")]
        {
            if wanted {
                command.arg(flag);
            }
        }
        command
    }
}

/// Who holds the mount, and where what outlives this process lies.
fn choose(
    settings: &Settings,
    mount: &MountSettings,
    notes: &mut Vec<String>,
) -> Result<(Holder, Option<StateDir>), Stop> {
    let state = || StateDir::open(settings.state_dir.as_deref(), &mount.point);
    match &mount.holder {
        HolderSettings::None => Ok((Holder::None, None)),
        HolderSettings::Socket(socket) => {
            let state = state().map_err(|e| {
                Stop::Failed(format!("{e}; set `state_dir` to a directory of this user's own"))
            })?;
            Ok((Holder::Given(socket.clone()), Some(state)))
        }
        HolderSettings::Auto => {
            let lacking = if may_mount() {
                match state() {
                    Ok(state) => return Ok((Holder::Own(state.socket()), Some(state))),
                    Err(error) => format!("{error} (see `state_dir`)"),
                }
            } else {
                "this process may not mount (no CAP_SYS_ADMIN)".to_owned()
            };
            notes.push(format!(
                "the mount has no holder: {lacking}. A crash of this process ends the mount, and \
                 the kernel cannot read cached files by itself; `warpdrive mountd --help` says \
                 what would change that"
            ));
            Ok((Holder::None, None))
        }
    }
}

/// Whether this process has `CAP_SYS_ADMIN`, which mount(2) takes.
fn may_mount() -> bool {
    /// Its number in linux/capability.h.
    const SYS_ADMIN: u32 = 21;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> SYS_ADMIN & 1 == 1)
}

/// Returns when somebody else's holder answers, or `limit` has passed: it may be a container that
/// starts beside this one. What is wrong then is said by whoever needs it.
pub(super) async fn await_holder(holder: &HolderSettings, limit: Duration) {
    let HolderSettings::Socket(socket) = holder else { return };
    let begun = tokio::time::Instant::now();
    let mut said = false;
    loop {
        let asked = socket.clone();
        let look = tokio::task::spawn_blocking(move || fusemount::holder_status(&asked));
        let waited = begun.elapsed();
        if matches!(look.await, Ok(Some(_))) {
            if said {
                tracing::info!(socket = %socket.display(), ?waited, "the holder of the mount is there");
            }
            return;
        }
        if waited >= limit {
            return;
        }
        if !said {
            let socket = socket.display();
            tracing::info!(%socket, ?limit, "waiting for the holder of the mount");
            said = true;
        }
        tokio::time::sleep(AWAIT_EVERY).await;
    }
}

/// Whether a holder listens at a socket. Its worker is told to leave, or named in an error.
fn find(socket: &Path, point: &Path, take_over: bool) -> Result<bool, Stop> {
    let Some(found) = fusemount::holder_status(socket) else { return Ok(false) };
    let Some(worker) = found.worker else { return Ok(true) };
    if !take_over {
        return Err(Stop::Failed(format!(
            "process {worker} serves `{}` already (its holder listens on `{}`): stop it, or start \
             with `--take-over` to replace it while the mount stays",
            point.display(),
            socket.display(),
        )));
    }
    tracing::info!(worker, "taking over the mount; its worker is told to leave");
    fusemount::dismiss_worker(socket).map_err(|error| Stop::Failed(error.to_string()))?;
    Ok(true)
}

fn config(settings: &Settings, wanted: &MountSettings) -> MountConfig {
    // Names must not outlive what the cache would say of them; the shortest origin decides.
    let ttl = settings.backends.iter().map(|b| b.freshness.stale_ttl).min();
    let readahead = wanted.readahead_bytes.map(|bytes| bytes.div_ceil(1024));
    MountConfig {
        allow_other: wanted.allow_other,
        uid: wanted.uid,
        gid: wanted.gid,
        file_mode: wanted.file_mode,
        dir_mode: wanted.dir_mode,
        metadata_ttl: ttl.unwrap_or(settings.cache.stale_ttl),
        read_ahead_kib: readahead
            .map_or(DEFAULT_READAHEAD_KIB, |kib| u32::try_from(kib).unwrap_or(u32::MAX)),
        threads: wanted.threads.map(|n| n as usize),
        passthrough: wanted.passthrough,
        debug: wanted.debug,
        ..MountConfig::new(&wanted.point)
    }
}

async fn open(
    plan: &Arc<Plan>,
    namespace: &Arc<Namespace>,
    metrics: &fusemount::Metrics,
    view: &Arc<MountView>,
) -> Result<Mount, MountError> {
    let (plan, namespace, metrics) = (Arc::clone(plan), Arc::clone(namespace), metrics.clone());
    let (view, runtime) = (Arc::clone(view), Handle::current());
    let opened = tokio::task::spawn_blocking(move || {
        if let Holder::Own(socket) = &plan.holder {
            let log = plan.state.as_ref().map(StateDir::holder_log);
            let command = plan.command(socket);
            let point = &plan.config.mount_point;
            fusemount::spawn_holder(command, point, socket, log.as_deref())
                .map_err(|error| said_more(error, log.as_deref()))?;
        }
        let config = MountConfig {
            holder: plan.holder.socket().map(Path::to_owned),
            journal: plan.state.as_ref().map(|state| state.path().to_owned()),
            ..plan.config.clone()
        };
        let mount = Mount::open(namespace, config, metrics, runtime)?;
        let status = plan.holder.socket().and_then(fusemount::holder_status);
        view.change(|seen| {
            seen.pid = status.and_then(|status| status.pid);
            seen.lost = None;
        });
        Ok(mount)
    });
    opened.await.unwrap_or_else(|error| Err(MountError::Refused(error.to_string())))
}

/// Whether nothing is mounted at a place, not even something dead.
async fn is_unmounted(point: PathBuf) -> bool {
    let look = move || fusemount::check_mount_point(&point);
    let found = tokio::task::spawn_blocking(look).await;
    matches!(found, Ok(MountPointState::Free | MountPointState::Missing))
}

/// An error of a holder that ended, with what it said last.
fn said_more(error: MountError, log: Option<&Path>) -> MountError {
    let said = log.and_then(|log| std::fs::read_to_string(log).ok()).unwrap_or_default();
    match said.lines().rfind(|line| !line.trim().is_empty()) {
        Some(last) => MountError::Refused(format!("{error}: {}", last.trim())),
        None => error,
    }
}

/// A mount that is served.
pub(super) struct Mounted {
    plan: Arc<Plan>,
    namespace: Arc<Namespace>,
    metrics: fusemount::Metrics,
    view: Arc<MountView>,
    /// `None` while it is lost.
    mount: Option<Mount>,
    /// Cancelled where nobody is to be waited for.
    now: CancellationToken,
    /// It has ended as it should, or was left to another worker.
    in_order: bool,
}

impl Drop for Mounted {
    /// On the ways out that are not in order: a second signal, and a start that failed after it had
    /// mounted, end what is this sidecar's own; readers of a mount that was there before a start
    /// that failed go on waiting for the next one.
    fn drop(&mut self) {
        drop(self.mount.take());
        if let Holder::Own(socket) = &self.plan.holder
            && !self.in_order
            && (self.now.is_cancelled() || !self.plan.resumes)
            && let Err(error) = fusemount::end_holder(socket)
        {
            tracing::warn!(%error, "the holder of the mount is left");
        }
    }
}

impl Mounted {
    pub(super) fn view(&self) -> &Arc<MountView> {
        &self.view
    }

    pub(super) fn point(&self) -> Option<&Path> {
        self.mount.as_ref().map(Mount::mount_point)
    }

    /// What works less well than it could, and what would change that; one sentence each.
    pub(super) fn notes(&self) -> Vec<String> {
        let of_mount = self.mount.iter().flat_map(|mount| mount.notes().iter().cloned());
        self.plan.notes.iter().cloned().chain(of_mount).collect()
    }

    /// The directory that means nothing any more when this mount has ended in order.
    pub(super) fn own_state(&self) -> Option<StateDir> {
        self.plan.state.clone().filter(|_| matches!(self.plan.holder, Holder::Own(_)))
    }

    /// Returns when another worker takes over. A mount whose holder died is made again, for as
    /// long as that takes.
    pub(super) async fn serve(&mut self) {
        loop {
            let Some(mount) = &self.mount else { return std::future::pending().await };
            tokio::select! {
                biased;
                () = mount.leave_requested() => return,
                () = mount.holder_lost() => {}
                () = mount.ended() => {}
            }
            // It is dead; what is left of it would keep a new one from being made.
            if let Some(mount) = self.mount.take() {
                mount.abandon().await;
            }
            self.again().await;
        }
    }

    /// Says that the mount is lost, and mounts again where that is this sidecar's affair.
    async fn again(&mut self) {
        let point = &self.plan.config.mount_point;
        let unmounted = is_unmounted(point.clone()).await;
        let (why, again) = match &self.plan.holder {
            Holder::None => ("the mount is gone although nobody asked this sidecar", false),
            Holder::Own(_) if unmounted => {
                ("the mount was unmounted although nobody asked this sidecar", false)
            }
            Holder::Own(_) => ("the holder of the mount has died", true),
            Holder::Given(_) => ("the holder of the mount is gone", true),
        };
        self.view.change(|seen| seen.lost = Some(why.to_owned()));
        tracing::warn!(mounts_again = again, "{why}; S3 is still served");
        if !again {
            return;
        }
        let mut last = String::new();
        loop {
            match open(&self.plan, &self.namespace, &self.metrics, &self.view).await {
                Ok(mount) => {
                    tracing::info!(mount_point = %mount.mount_point().display(), "mounted again");
                    self.view.change(|seen| seen.remounts += 1);
                    self.mount = Some(mount);
                    return;
                }
                Err(error) => {
                    let error = error.to_string();
                    // Once for each reason, however long it lasts.
                    if error != last {
                        tracing::warn!(error, every = ?LOOK_EVERY, "cannot mount again yet");
                        self.view.change(|seen| seen.lost = Some(format!("{why}: {error}")));
                        last = error;
                    }
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            }
        }
    }

    /// The programs that the mount is for have ended: nothing is changed any more.
    pub(super) fn refuse_mutations(&self) {
        if let Some(mount) = &self.mount {
            mount.refuse_mutations();
        }
    }

    /// Leaves the mount to the worker that takes over.
    pub(super) async fn leave(mut self) {
        self.in_order = true;
        if let Some(mount) = self.mount.take() {
            mount.abandon().await;
        }
    }

    /// Ends in order: what is this sidecar's own is unmounted, what is somebody else's is left.
    pub(super) async fn end(mut self, limit: Duration) -> Result<(), MountError> {
        let Some(mount) = self.mount.take() else { return Ok(()) };
        match &self.plan.holder {
            Holder::None => mount.unmount(limit).await,
            Holder::Own(socket) => {
                mount.unmount(limit).await?;
                self.in_order = true;
                // It removes its socket last.
                let gone = async {
                    while socket.exists() {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                };
                if tokio::time::timeout(HOLDER_ENDS_WITHIN, gone).await.is_err() {
                    tracing::warn!(socket = %socket.display(), "the holder does not end");
                }
                Ok(())
            }
            Holder::Given(_) => {
                mount.abandon().await;
                Ok(())
            }
        }
    }
}
