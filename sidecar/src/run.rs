//! `warpdrive run`: open, bind, mount, announce, wait for a signal, drain.
//!
//! Invariant: what was mounted is unmounted, or left to another worker on purpose, and what was bound
//! is given back on every way out of here, also when a later step fails; the cache is closed last,
//! when nobody reads it any more.
//! It refuses to go on without a mount that the configuration asks for, unless its caller can.

mod credentials;
mod listeners;
mod mounting;
mod state;
mod uploads;

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use fusemount::MountError;
use s3gw::{Drained, Unfinished};
use sd_notify::NotifyState;
use store::ListRequest;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Admin, Readiness};
use crate::announce::{self, Announcement};
use crate::assembly::{Assembly, AssemblyError};
use crate::cli::{Stop, put};
use crate::config::Settings;
use crate::signals::Signals;
use crate::supervise::Link;
use crate::termination::TerminationLog;
use crate::warm::Jobs;
use credentials::{Keeping, Place};
pub(crate) use mounting::MountView;
use mounting::{Mounted, Plan};

/// Text that depends on what the addresses became.
type Epilogue = Box<dyn Fn(&Announcement) -> String + Send>;

/// What a caller may change.
#[allow(clippy::struct_excessive_bools)] // Each is a flag of the command line.
#[derive(Default)]
pub(crate) struct Options {
    /// Detach a dead mount at the mount point.
    pub(crate) force: bool,
    /// Go on without a mount where this machine has no FUSE; said in a note.
    pub(crate) mount_if_possible: bool,
    /// Take free ports where the configured ones of S3 and admin endpoint are taken.
    pub(crate) ports_may_move: bool,
    /// Stop by itself after this time.
    pub(crate) stop_after: Option<Duration>,
    /// Printed after the addresses, with what they became.
    pub(crate) epilogue: Option<Epilogue>,
    /// Replace the worker that serves the mount now.
    pub(crate) take_over: bool,
    /// How long somebody else's holder that is not there yet is waited for.
    pub(crate) holder_wait: Duration,
    /// Takes what could not be finished.
    pub(crate) termination: TerminationLog,
    /// The parent that starts this process again, where there is one.
    pub(crate) supervisor: Option<Link>,
}

/// Part of the drain's time that the unmounting may take: programs that still use the mount are
/// waited for, and what is left must do for the gateway.
const UNMOUNT_SHARE: u32 = 2;
/// How long a worker that leaves for another goes on with requests of S3: the mount's readers wait.
const LEAVE_GRACE: Duration = Duration::from_secs(5);
/// How long a directory or a port that a predecessor has is waited for: what it takes to leave.
const PREDECESSOR_ENDS_WITHIN: Duration = Duration::from_secs(30);
/// How often it is tried.
const TRY_EVERY: Duration = Duration::from_millis(20);

/// How long the cache may take to write what it holds; a dead disk would take forever. What is not
/// written is fetched again.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

/// What an end may take beyond `drain_timeout`: kubelet promises a sidecar two seconds when the time
/// of its pod is over. The first step may take as much as the drain and one share more, each further
/// one another share; half a second is left for threads that are blocked.
const STEP: Duration = Duration::from_millis(500);

/// Runs a sidecar until it is told to stop.
pub(crate) fn run(settings: &Settings, options: &Options) -> Result<(), Stop> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .on_thread_start(fusemount::unbind_thread)
        .enable_all()
        .thread_name("warpdrive")
        .build()
        .map_err(|e| Stop::Failed(format!("threads cannot be started: {e}")))?;
    let outcome = runtime.block_on(async {
        let signals = Signals::install().map_err(|e| Stop::Failed(format!("signals: {e}")))?;
        if let Some(after) = options.stop_after {
            let stop = signals.stop.clone();
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                stop.cancel();
            });
        }
        let now = signals.now.clone();
        tokio::select! {
            outcome = sidecar(settings, options, &signals) => outcome,
            // Dropping the sidecar detaches its mount.
            () = now.cancelled() => Err(Stop::Interrupted),
        }
    });
    // A blocking read of a dead disk must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(500));
    outcome
}

async fn sidecar(settings: &Settings, options: &Options, signals: &Signals) -> Result<(), Stop> {
    for note in &settings.notes {
        tracing::warn!("{note}");
    }
    if let Some(mount) = &settings.mount {
        let waiting = mounting::await_holder(&mount.holder, options.holder_wait);
        if unless_stopped(&signals.stop, waiting).await.is_none() {
            tracing::info!("stopped before the holder of the mount was there");
            return Ok(());
        }
    }
    // Looking at a holder takes milliseconds; a worker that is told to leave, seconds.
    let plan = settings.mount.as_ref().map(|mount| {
        tokio::task::block_in_place(|| {
            Plan::make(settings, mount, options.force, options.take_over)
        })
    });
    let plan = plan.transpose()?;
    if options.take_over && plan.is_none() {
        let what = "--take-over: there is no mount to take over";
        return Err(Stop::Unusable(what.to_owned()));
    }
    let goes_on = options.supervisor.as_ref().is_some_and(|link| link.restarts() > 0)
        || plan.as_ref().is_some_and(Plan::resumes);
    let opening = open_assembly(settings, goes_on);
    let Some(opened) = unless_stopped(&signals.stop, opening).await else {
        tracing::info!("stopped before everything was open");
        return Ok(());
    };
    let assembly = Arc::new(opened.map_err(|e| Stop::Failed(said_more(&e)))?);
    let drained_by = OnceLock::new();
    let start =
        Start { settings, options, signals, assembly: &assembly, goes_on, drained_by: &drained_by };
    let served = start.serve(plan).await;
    let now = tokio::time::Instant::now();
    let left = drained_by.get().map(|by| (*by + STEP).saturating_duration_since(now));
    let limit = left.map_or(CLOSE_LIMIT, |left| left.clamp(STEP, CLOSE_LIMIT));
    if !within(limit, assembly.cache.close()).await {
        tracing::warn!(?limit, "the cache is not closed in time; it is left as it is");
    }
    served
}

/// An error of the start, with what a pod would do about it.
fn said_more(error: &AssemblyError) -> String {
    let in_a_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    match error {
        AssemblyError::Cache(cache::OpenError::Locked { .. }) if in_a_pod => format!(
            "{error}; pods cannot share a cache: name another `hostPath` for each, or let \
             `warpdrive.io/cache` be `emptyDir` or `ephemeral:CLASS`"
        ),
        _ => error.to_string(),
    }
}

/// Opens everything below the front ends. A cache that a predecessor is closing is waited for.
async fn open_assembly(settings: &Settings, goes_on: bool) -> Result<Assembly, AssemblyError> {
    let until = tokio::time::Instant::now() + PREDECESSOR_ENDS_WITHIN;
    loop {
        match Assembly::open(settings).await {
            Err(AssemblyError::Cache(cache::OpenError::Locked { .. }))
                if goes_on && tokio::time::Instant::now() < until =>
            {
                tokio::time::sleep(TRY_EVERY).await;
            }
            opened => return opened,
        }
    }
}

/// What `work` comes to, or `None` where the stop came first: a directory of a dead server, or a
/// large cache, may take minutes to open.
async fn unless_stopped<T>(stop: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        done = work => Some(done),
        () = stop.cancelled() => None,
    }
}

/// Whether `work` ended in time; it is abandoned where it did not.
async fn within(limit: Duration, work: impl Future<Output = ()>) -> bool {
    tokio::time::timeout(limit, work).await.is_ok()
}

/// Everything that listens.
#[derive(Default)]
struct Fronts {
    gateway: Option<JoinHandle<Drained>>,
    mount: Option<Mounted>,
    others: Vec<JoinHandle<()>>,
    gateway_stop: CancellationToken,
    others_stop: CancellationToken,
}

impl Fronts {
    /// Logs what is going on whenever SIGUSR1 asks for it.
    fn report(&mut self, admin: &Arc<Admin>, signals: &Signals) {
        let (admin, asked) = (Arc::clone(admin), Arc::clone(&signals.report));
        let stop = self.others_stop.clone();
        self.others.push(tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = asked.notified() => tracing::info!(status = %admin.status(), "asked by SIGUSR1"),
                    () = stop.cancelled() => return,
                }
            }
        }));
    }
}

fn announced_backends(assembly: &Assembly) -> Vec<announce::Backend> {
    let origins = assembly.origins.iter().enumerate();
    origins
        .map(|(index, origin)| announce::Backend {
            name: origin.settings.name.to_string(),
            identity: origin.opened.identity().to_owned(),
            mount_path: origin.settings.mount_path.clone(),
            buckets: assembly.bucket_names(index).map(str::to_owned).collect(),
        })
        .collect()
}

/// What a start is made from.
struct Start<'a> {
    settings: &'a Settings,
    options: &'a Options,
    signals: &'a Signals,
    assembly: &'a Arc<Assembly>,
    /// This process goes on for another: ports and directories may be given back a moment later.
    goes_on: bool,
    /// By when everything but the cache has ended, once this process was told to end.
    drained_by: &'a OnceLock<tokio::time::Instant>,
}

impl Start<'_> {
    async fn serve(&self, plan: Option<Plan>) -> Result<(), Stop> {
        let Self { settings, options, signals, assembly, goes_on, .. } = *self;
        let link = options.supervisor.as_ref();
        let folder = plan.as_ref().and_then(Plan::folder).map(Path::to_owned);
        let own_process = || Place::OfProcess(link.map_or_else(std::process::id, Link::supervisor));
        let keeping = Keeping { file: folder.map_or_else(own_process, Place::In), goes_on };
        let readiness = Readiness::default();
        let mut notes = settings.notes.clone();
        let mut fronts = Fronts::default();
        // Readers of a mount that a holder has wait for this process; a new mount comes last, when
        // nothing can fail any more.
        let resumes = plan.as_ref().is_some_and(Plan::resumes);
        let (mut first, mut last) = if resumes { (plan, None) } else { (None, plan) };
        notes.extend(self.mount(&mut fronts, first.take()).await?);
        let admin_listener = match &settings.admin {
            Some(address) => Some(self.bind_admin(address).await?),
            None => None,
        };
        let admin_address = admin_listener.as_ref().map(admin::Listener::address).transpose();
        let admin_address = admin_address.map_err(|e| Stop::Failed(format!("admin: {e}")))?;
        let gateway = match &settings.s3 {
            Some(s3) => Some(self.bind_gateway(s3, admin_address.as_ref(), &keeping).await?),
            None => None,
        };
        let metrics = match settings.metrics {
            Some(address) => Some(self.bind_metrics(&mut fronts, address).await?),
            None => None,
        };
        notes.extend(self.mount(&mut fronts, last.take()).await?);
        notes.extend(fronts.mount.iter().flat_map(Mounted::notes));
        let mount_point = fronts.mount.as_ref().and_then(Mounted::point).map(Path::to_owned);
        let announcement = Announcement {
            backends: announced_backends(assembly),
            mount: mount_point,
            s3: gateway.as_ref().map(|g| g.announced.clone()),
            admin: admin_address,
            metrics,
            cache: settings.cache.disk.clone(),
            notes: notes.clone(),
        };

        let admin = Arc::new(Admin {
            assembly: Arc::clone(assembly),
            readiness: readiness.clone(),
            started: Instant::now(),
            jobs: Jobs::new(fronts.others_stop.child_token(), assembly.metrics.clone()),
            warm_requests: Semaphore::new(Admin::WARM_REQUESTS),
            credentials: gateway.as_ref().and_then(|g| g.credentials.clone()),
            mount: announcement.mount.as_ref().map(|p| p.display().to_string()),
            s3: announcement.s3.as_ref().map(|s3| s3.url.clone()),
            cache_path: settings.cache.disk.as_ref().map(|(path, _)| path.clone()),
            free: settings.cache.disk.as_ref().map(|(path, _)| admin::Free::below(path)),
            min_free_bytes: settings.cache.min_free_bytes,
            notes,
            view: fronts.mount.as_ref().map(|mount| Arc::clone(mount.view())),
            restarts: link.map(Link::restarts),
        });
        let standing = admin::Standing::register(&admin, settings.cache.memory_bytes);
        standing.map_err(|e| Stop::Failed(format!("metrics: {e}")))?;
        fronts.report(&admin, signals);
        if let Some(listener) = admin_listener {
            let stop = fronts.others_stop.clone();
            fronts.others.push(tokio::spawn(admin::serve(listener, admin, stop)));
        }
        let mut key_file = None;
        if let Some(bound) = gateway {
            key_file = bound.written;
            let (stop, grace) = (fronts.gateway_stop.clone(), settings.drain_timeout);
            fronts.gateway = Some(tokio::spawn(async move {
                let drained = bound.gateway.serve(stop, grace).await;
                let Drained { in_flight, cut, .. } = drained;
                tracing::info!(in_flight, cut, "S3 endpoint drained");
                drained
            }));
        }

        readiness.set(true);
        notify(link, NotifyState::Ready);
        put(&announcement.to_string());
        if let Some(epilogue) = &options.epilogue {
            put(&epilogue(&announcement));
        }
        let look = look_at_origins(Arc::clone(assembly));
        let stop = fronts.others_stop.clone();
        fronts.others.push(tokio::spawn(async move {
            tokio::select! {
                () = look => {}
                () = stop.cancelled() => {}
            }
        }));

        let end = wait(&mut fronts, signals).await;
        readiness.set(false);
        self.end(fronts, end, key_file).await
    }

    /// Ends what listens, and says what it leaves unfinished.
    async fn end(
        &self,
        fronts: Fronts,
        end: End,
        key_file: Option<credentials::KeyFile>,
    ) -> Result<(), Stop> {
        if let Some(mount) = &fronts.mount {
            mount.refuse_mutations();
        }
        notify(self.options.supervisor.as_ref(), NotifyState::Stopping);
        let limit = match end {
            End::Stop => self.settings.drain_timeout,
            End::Leave => self.settings.drain_timeout.min(LEAVE_GRACE),
        };
        let _ = self.drained_by.set(tokio::time::Instant::now() + limit + 2 * STEP);
        let state = fronts.mount.as_ref().and_then(Mounted::own_state);
        let (drained, unfinished) = drain(fronts, end, limit).await;
        self.tell(&unfinished);
        if end == End::Leave {
            // The next worker goes on with the key.
            if let Some(file) = key_file {
                file.keep();
            }
            return drained;
        }
        drop(key_file);
        if let (Ok(()), Some(state)) = (&drained, state) {
            state.remove();
        }
        drained
    }

    /// Says what clients had begun and did not finish, where somebody looks when a container has
    /// ended. A failure is added by whoever hears of it.
    fn tell(&self, unfinished: &[Unfinished]) {
        let lines: Vec<String> = unfinished.iter().map(ToString::to_string).collect();
        for line in &lines {
            tracing::warn!("{line}");
        }
        self.options.termination.write_unfinished(lines);
    }

    /// Mounts, where that is planned. A note says why not, where the caller can do without.
    async fn mount(&self, fronts: &mut Fronts, plan: Option<Plan>) -> Result<Option<String>, Stop> {
        let Some(plan) = plan else { return Ok(None) };
        let metrics = fusemount::Metrics::register(&self.assembly.registry);
        let metrics = metrics.map_err(|e| Stop::Failed(format!("metrics: {e}")))?;
        let namespace = Arc::clone(&self.assembly.namespace);
        match plan.open(namespace, metrics, self.signals.now.clone()).await {
            Ok(mounted) => {
                fronts.mount = Some(mounted);
                Ok(None)
            }
            Err(MountError::NoFuse(why)) if self.options.mount_if_possible => {
                Ok(Some(format!("no mount, S3 only: {why}")))
            }
            Err(error) => {
                let way_out = match error {
                    MountError::NoFuse(_) if self.settings.s3.is_some() => {
                        "; `--no-mount` serves S3 without it"
                    }
                    _ => "",
                };
                Err(Stop::Failed(format!("{error}{way_out}")))
            }
        }
    }
}

/// Asks each origin for one key, so that one that is down is said at the start and not only when
/// somebody reads. Nothing waits for it.
async fn look_at_origins(assembly: Arc<Assembly>) {
    let request = ListRequest { max_keys: 1, ..ListRequest::default() };
    let looks = assembly.origins.iter().map(|origin| async {
        if let Err(error) = origin.opened.store().list(&request).await {
            let backend = origin.settings.name.as_str();
            tracing::warn!(
                backend,
                %error,
                "this origin cannot be listed now; what is cached is served, and the origin itself \
                 as soon as it answers"
            );
        }
    });
    futures::future::join_all(looks).await;
}

/// Why serving ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Somebody asked this process to stop.
    Stop,
    /// Another worker takes over.
    Leave,
}

/// Returns when it is time to end. A mount that is lost is said, and S3 goes on.
async fn wait(fronts: &mut Fronts, signals: &Signals) -> End {
    let left = async {
        match &mut fronts.mount {
            Some(mount) => mount.serve().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = signals.stop.cancelled() => End::Stop,
        () = left => {
            tracing::info!("another worker takes over the mount; leaving it");
            End::Leave
        }
    }
}

/// Ends everything that listens; what clients had begun and could not finish.
async fn drain(fronts: Fronts, end: End, limit: Duration) -> (Result<(), Stop>, Vec<Unfinished>) {
    let begun = Instant::now();
    fronts.gateway_stop.cancel();
    let gateway = async {
        let task = fronts.gateway?;
        // It keeps its own grace; this is for the case that it does not.
        let ended = tokio::time::timeout(limit + STEP, task).await;
        ended.ok()?.ok()
    };
    let unmount = async {
        match (fronts.mount, end) {
            (Some(mount), End::Stop) => mount.end(limit / UNMOUNT_SHARE).await,
            (Some(mount), End::Leave) => {
                mount.leave().await;
                Ok(())
            }
            (None, _) => Ok(()),
        }
    };
    let unmount = async {
        let ended = tokio::time::timeout(limit + STEP, unmount).await;
        let late = || MountError::Refused("the mount does not end in time; it is left".to_owned());
        ended.unwrap_or_else(|_| Err(late()))
    };
    let (unmounted, drained) = tokio::join!(unmount, gateway);
    fronts.others_stop.cancel();
    let aborted: Vec<_> = fronts.others.iter().map(JoinHandle::abort_handle).collect();
    if !within(STEP, async { drop(futures::future::join_all(fronts.others).await) }).await {
        aborted.iter().for_each(tokio::task::AbortHandle::abort);
    }
    tracing::info!(seconds = begun.elapsed().as_secs_f64(), "drained");
    let unfinished = drained.map(|drained| drained.unfinished).unwrap_or_default();
    (unmounted.map_err(|error| Stop::Failed(error.to_string())), unfinished)
}

/// Tells the supervisor, or the service manager that asked to be told.
fn notify(supervisor: Option<&Link>, state: NotifyState<'_>) {
    match (supervisor, &state) {
        (Some(link), NotifyState::Ready) => link.ready(),
        (Some(link), _) => link.stopping(),
        (None, _) => {
            if let Err(error) = sd_notify::notify(&[state]) {
                tracing::debug!(%error, "the service manager cannot be notified");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_what_does_not_end_by_itself() {
        let stop = CancellationToken::new();
        assert_eq!(unless_stopped(&stop, async { 7 }).await, Some(7));
        let later = stop.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(5)).await;
            later.cancel();
        });
        let begun = tokio::time::Instant::now();
        assert_eq!(unless_stopped(&stop, std::future::pending::<()>()).await, None);
        assert_eq!(begun.elapsed(), Duration::from_secs(5));
        assert!(within(CLOSE_LIMIT, async {}).await);
        assert!(!within(CLOSE_LIMIT, std::future::pending()).await);
        assert_eq!(begun.elapsed(), Duration::from_secs(5) + CLOSE_LIMIT);
    }
}
