//! `warpdrive run`: open, bind, mount, announce, wait for a signal, drain.
//!
//! Invariant: what was mounted is unmounted and what was bound is given back on every way out of
//! here, also when a later step fails; the cache is closed last, when nobody reads it any more.
//! It refuses to go on without a mount that the configuration asks for, unless its caller can.

mod credentials;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use fusemount::{Mount, MountConfig, MountError};
use s3gw::{Gateway, GatewayConfig};
use sd_notify::NotifyState;
use store::ListRequest;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Admin, Readiness};
use crate::announce::{self, Announcement};
use crate::assembly::Assembly;
use crate::cli::{Stop, put};
use crate::config::{AdminAddress, MountSettings, S3Settings, Settings};
use crate::signals::Signals;
use crate::warm::Jobs;

/// Text that depends on what the addresses became.
type Epilogue = Box<dyn Fn(&Announcement) -> String + Send>;

/// What a caller may change.
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
}

/// Part of the drain's time that the unmounting may take: programs that still use the mount are
/// waited for, and what is left must do for the gateway.
const UNMOUNT_SHARE: u32 = 2;
/// The mount's own default; enough for a sequential reader of a fast cache.
const DEFAULT_READAHEAD_KIB: u32 = 1024;

/// How long the cache may take to write what it holds; a dead disk would take forever. What is not
/// written is fetched again.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

/// Runs a sidecar until it is told to stop.
pub(crate) fn run(settings: &Settings, options: &Options) -> Result<(), Stop> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
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
    let opening = Assembly::open(settings);
    let Some(opened) = unless_stopped(&signals.stop, opening).await else {
        tracing::info!("stopped before everything was open");
        return Ok(());
    };
    let assembly = Arc::new(opened.map_err(|e| Stop::Failed(e.to_string()))?);
    let served = serve(settings, options, signals, &assembly).await;
    if !within(CLOSE_LIMIT, assembly.cache.close()).await {
        tracing::warn!(limit = ?CLOSE_LIMIT, "the cache is not closed in time; it is left as it is");
    }
    served
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
    gateway: Option<JoinHandle<()>>,
    mount: Option<Mount>,
    others: Vec<JoinHandle<()>>,
    gateway_stop: CancellationToken,
    others_stop: CancellationToken,
}

impl Fronts {
    async fn bind_metrics(
        &mut self,
        address: SocketAddr,
        assembly: &Assembly,
    ) -> Result<SocketAddr, Stop> {
        let listener = TcpListener::bind(address).await.map_err(|e| taken(&address, &e))?;
        let bound = listener.local_addr().unwrap_or(address);
        let (registry, stop) = (assembly.registry.clone(), self.others_stop.clone());
        self.others.push(tokio::spawn(admin::serve_metrics(listener, registry, stop)));
        Ok(bound)
    }

    /// Mounts, where that is configured. A note says why not, where the caller can do without.
    async fn mount(
        &mut self,
        settings: &Settings,
        options: &Options,
        assembly: &Arc<Assembly>,
    ) -> Result<Option<String>, Stop> {
        let Some(wanted) = &settings.mount else { return Ok(None) };
        match open_mount(wanted, settings, options.force, assembly).await {
            Ok(mount) => {
                self.mount = Some(mount);
                Ok(None)
            }
            Err(MountError::NoFuse(why)) if options.mount_if_possible => {
                Ok(Some(format!("no mount, S3 only: {why}")))
            }
            Err(error) => {
                let way_out = match error {
                    MountError::NoFuse(_) if settings.s3.is_some() => {
                        "; `--no-mount` serves S3 without it"
                    }
                    _ => "",
                };
                Err(Stop::Failed(format!("{error}{way_out}")))
            }
        }
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

async fn serve(
    settings: &Settings,
    options: &Options,
    signals: &Signals,
    assembly: &Arc<Assembly>,
) -> Result<(), Stop> {
    let readiness = Readiness::default();
    let mut notes = settings.notes.clone();
    let mut fronts = Fronts::default();
    let admin_listener = match &settings.admin {
        Some(address) => Some(bind_admin(address, options.ports_may_move).await?),
        None => None,
    };
    let admin_address = admin_listener.as_ref().map(admin::Listener::address).transpose();
    let admin_address = admin_address.map_err(|e| Stop::Failed(format!("admin: {e}")))?;
    let gateway = match &settings.s3 {
        Some(s3) => {
            Some(bind_gateway(s3, admin_address.as_ref(), options.ports_may_move, assembly).await?)
        }
        None => None,
    };
    let metrics = match settings.metrics {
        Some(address) => Some(fronts.bind_metrics(address, assembly).await?),
        None => None,
    };
    if let Some(note) = fronts.mount(settings, options, assembly).await? {
        notes.push(note);
    }
    notes.extend(fronts.mount.iter().flat_map(|mount| mount.notes().iter().cloned()));
    let announcement = Announcement {
        backends: announced_backends(assembly),
        mount: fronts.mount.as_ref().map(|mount| mount.mount_point().to_owned()),
        s3: gateway.as_ref().map(|g| g.announced.clone()),
        admin: admin_address,
        metrics,
        cache: settings.cache.disk.clone(),
        notes: notes.clone(),
    };

    let mount_lost = Arc::new(AtomicBool::new(false));
    if let Some(listener) = admin_listener {
        let admin = Arc::new(Admin {
            assembly: Arc::clone(assembly),
            readiness: readiness.clone(),
            started: Instant::now(),
            jobs: Jobs::new(fronts.others_stop.child_token(), assembly.metrics.clone()),
            warm_requests: Semaphore::new(Admin::WARM_REQUESTS),
            credentials: gateway.as_ref().and_then(|g| g.credentials.clone()),
            mount: announcement.mount.as_ref().map(|p| p.display().to_string()),
            s3: announcement.s3.as_ref().map(|s3| s3.url.clone()),
            cache_path: settings.cache.disk.as_ref().map(|(path, _)| path.display().to_string()),
            notes,
            mount_lost: Arc::clone(&mount_lost),
        });
        let stop = fronts.others_stop.clone();
        fronts.others.push(tokio::spawn(admin::serve(listener, admin, stop)));
    }
    let mut _key_file = None;
    if let Some(bound) = gateway {
        _key_file = bound.written;
        let (stop, grace) = (fronts.gateway_stop.clone(), settings.drain_timeout);
        fronts.gateway = Some(tokio::spawn(async move {
            let drained = bound.gateway.serve(stop, grace).await;
            tracing::info!(?drained, "S3 endpoint drained");
        }));
    }

    readiness.set(true);
    notify(&[NotifyState::Ready]);
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

    wait(&fronts, signals, &mount_lost).await;

    readiness.set(false);
    notify(&[NotifyState::Stopping]);
    drain(fronts, settings.drain_timeout).await
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

/// Returns when it is time to stop. An unmounting by somebody else is said, and S3 goes on.
async fn wait(fronts: &Fronts, signals: &Signals, mount_lost: &AtomicBool) {
    let gone = async {
        match &fronts.mount {
            Some(mount) => mount.ended().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = signals.stop.cancelled() => return,
        () = gone => {}
    }
    mount_lost.store(true, Relaxed);
    tracing::warn!("the mount is gone although nobody asked this sidecar; S3 is still served");
    signals.stop.cancelled().await;
}

async fn drain(fronts: Fronts, limit: Duration) -> Result<(), Stop> {
    let begun = Instant::now();
    fronts.gateway_stop.cancel();
    let gateway = async {
        if let Some(task) = fronts.gateway {
            // It keeps its own grace; this is for the case that it does not.
            let _ = tokio::time::timeout(limit + Duration::from_secs(1), task).await;
        }
    };
    let unmount = async {
        match fronts.mount {
            Some(mount) => mount.unmount(limit / UNMOUNT_SHARE).await,
            None => Ok(()),
        }
    };
    let (unmounted, ()) = tokio::join!(unmount, gateway);
    fronts.others_stop.cancel();
    for mut task in fronts.others {
        if tokio::time::timeout(Duration::from_secs(1), &mut task).await.is_err() {
            task.abort();
        }
    }
    tracing::info!(seconds = begun.elapsed().as_secs_f64(), "drained");
    unmounted.map_err(|error| Stop::Failed(error.to_string()))
}

/// A gateway that is bound, and what its clients need.
struct BoundGateway {
    gateway: Gateway,
    announced: announce::Endpoint,
    credentials: Option<admin::Credentials>,
    written: Option<credentials::KeyFile>,
}

async fn bind_gateway(
    s3: &S3Settings,
    admin: Option<&AdminAddress>,
    port_may_move: bool,
    assembly: &Arc<Assembly>,
) -> Result<BoundGateway, Stop> {
    let access = credentials::prepare(s3, admin)?;
    let metrics = s3gw::Metrics::register(&assembly.registry);
    let metrics = metrics.map_err(|e| Stop::Failed(format!("metrics: {e}")))?;
    let config = GatewayConfig {
        allowed_hosts: s3.allowed_hosts.clone(),
        region: s3.region.clone(),
        body_memory_bytes: s3.body_memory_bytes,
        ..GatewayConfig::new(s3.listen, access.access)
    };
    let any_port = GatewayConfig { listen: free_port(s3.listen), ..config.clone() };
    let namespace = || Arc::clone(&assembly.namespace);
    let mut gateway = Gateway::bind(config, namespace(), metrics.clone()).await;
    if port_may_move && gateway.as_ref().is_err_and(is_taken) {
        gateway = Gateway::bind(any_port, namespace(), metrics).await;
    }
    let gateway = gateway.map_err(|e| Stop::Failed(format!("s3.listen {}: {e}", s3.listen)))?;
    let address = gateway.local_addr();
    let announced = announce::Endpoint {
        url: format!("http://{}", reachable(address)),
        listen: address,
        region: s3.region.clone(),
        access: access.announced,
    };
    Ok(BoundGateway {
        gateway,
        announced,
        credentials: access.credentials,
        written: access.written,
    })
}

async fn bind_admin(address: &AdminAddress, port_may_move: bool) -> Result<admin::Listener, Stop> {
    let mut bound = admin::Listener::bind(address).await;
    if let AdminAddress::Tcp(tcp) = address
        && port_may_move
        && bound.as_ref().is_err_and(is_taken)
    {
        bound = admin::Listener::bind(&AdminAddress::Tcp(free_port(*tcp))).await;
    }
    bound.map_err(|error| taken(address, &error))
}

fn is_taken(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::AddrInUse
}

/// The same interface, at a port that the system chooses.
fn free_port(mut address: SocketAddr) -> SocketAddr {
    address.set_port(0);
    address
}

/// The address that a client on this machine uses.
fn reachable(address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        let loopback: std::net::IpAddr = if address.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        };
        return SocketAddr::new(loopback, address.port());
    }
    address
}

async fn open_mount(
    wanted: &MountSettings,
    settings: &Settings,
    force: bool,
    assembly: &Arc<Assembly>,
) -> Result<Mount, MountError> {
    let metrics = fusemount::Metrics::register(&assembly.registry);
    let metrics = metrics.map_err(|e| MountError::Refused(format!("metrics: {e}")))?;
    // Names must not outlive what the cache would say of them; the shortest origin decides.
    let ttl = settings.backends.iter().map(|b| b.freshness.stale_ttl).min();
    let readahead = wanted.readahead_bytes.map(|bytes| bytes.div_ceil(1024));
    let config = MountConfig {
        allow_other: wanted.allow_other,
        uid: wanted.uid,
        gid: wanted.gid,
        file_mode: wanted.file_mode,
        dir_mode: wanted.dir_mode,
        metadata_ttl: ttl.unwrap_or(settings.cache.stale_ttl),
        read_ahead_kib: readahead
            .map_or(DEFAULT_READAHEAD_KIB, |kib| u32::try_from(kib).unwrap_or(u32::MAX)),
        threads: wanted.threads.map(|n| n as usize),
        debug: wanted.debug,
        force,
        ..MountConfig::new(&wanted.point)
    };
    let namespace = Arc::clone(&assembly.namespace);
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || Mount::open(namespace, config, metrics, runtime))
        .await
        .unwrap_or_else(|error| Err(MountError::Refused(error.to_string())))
}

fn taken(address: &dyn std::fmt::Display, error: &std::io::Error) -> Stop {
    Stop::Failed(format!("{address}: {error}; is another sidecar running? port 0 takes a free one"))
}

/// Tells systemd, where it asked to be told.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager cannot be notified");
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
