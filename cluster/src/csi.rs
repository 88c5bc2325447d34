//! The node service of mode `csi`: a CSI driver that mounts for pods which may not.
//!
//! Invariant: what it mounted outlives it. A holder (`warpdrive mountd`) for each pod has the mount;
//! this service starts them, finds them again after its own end, and takes them away when kubelet says
//! so. It serves inline volumes only, reads no object and no configuration, and talks to nobody but
//! kubelet.

mod authority;
mod cgroup;
mod health;
mod holder;
mod metrics;
mod mounts;
mod node;
mod proto;
mod record;
mod request;
mod rpc;
mod sockets;
mod sweep;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::names::CSI_DRIVER;
pub use holder::{AskHolder, HolderAnswer};
pub use metrics::CsiMetrics;
use node::Node;
use rpc::{Facts, Rpc, Side};
use watch::Watch;

/// How the node service runs.
#[derive(Debug, Clone)]
pub struct CsiConfig {
    /// kubelet's directory, at the same path as kubelet sees it.
    pub kubelet_dir: PathBuf,
    /// Where `<kubelet_dir>/plugins/csi.warpdrive.io` is seen from here. Its path and 60 bytes have to
    /// fit the address of a socket, which is 107 bytes long.
    pub plugin_dir: PathBuf,
    /// Where the node's control groups are mounted, with write access.
    pub cgroup_root: PathBuf,
    /// Name of the node, as the API knows it.
    pub node_name: String,
    /// Whether a pod may ask for a worker that is root.
    pub allow_root_worker: bool,
    /// How long readers wait when a pod's worker is gone.
    pub patience: Duration,
    /// The program with the command `mountd`.
    pub program: PathBuf,
    /// How a holder is asked who it is.
    pub ask: AskHolder,
}

/// Serves until it is told to stop, and leaves every mount then.
///
/// Errors are sentences: a folder that cannot be used, control groups that are not there, a socket
/// that cannot be bound. It waits for as long as another node service has the folder.
pub async fn serve_csi(
    config: CsiConfig,
    metrics: CsiMetrics,
    stop: CancellationToken,
) -> Result<(), String> {
    let folder = |error| format!("`{}`: {error}", config.plugin_dir.display());
    std::fs::create_dir_all(&config.plugin_dir).map_err(folder)?;
    let Some(_lock) =
        sockets::lock(&config.plugin_dir.join("lock"), &stop).await.map_err(folder)?
    else {
        return Ok(());
    };
    let plugins = config.kubelet_dir.join("plugins_registry");
    std::fs::create_dir_all(&plugins).map_err(|e| format!("`{}`: {e}", plugins.display()))?;
    let hierarchies = cgroup::Hierarchies::find(&config.cgroup_root, &config.plugin_dir)?;
    let starter = holder::Starter {
        program: config.program,
        patience: config.patience,
        allow_root: config.allow_root_worker,
        ask: config.ask,
    };
    let (kubelet_dir, plugin_dir) = (config.kubelet_dir.clone(), config.plugin_dir.clone());
    let allow_root = config.allow_root_worker;
    let opening = move || Node::open(kubelet_dir, &plugin_dir, starter, hierarchies, metrics);
    let node = tokio::task::spawn_blocking(opening)
        .await
        .map_err(|error| format!("reading what is published failed: {error}"))?
        .map_err(folder)?;
    let node = Arc::new(node);
    let facts = Arc::new(Facts {
        node: Arc::clone(&node),
        node_name: config.node_name,
        allow_root,
        endpoint: config.kubelet_dir.join("plugins").join(CSI_DRIVER).join("csi.sock"),
    });
    // One that cannot go on ends the others.
    let all = stop.child_token();
    let side = |side| Rpc { facts: Arc::clone(&facts), side };
    let driver =
        sockets::serve(config.plugin_dir.join("csi.sock"), side(Side::Driver), all.clone());
    let registration = sockets::serve(
        plugins.join(format!("{CSI_DRIVER}-reg.sock")),
        side(Side::Registration),
        all.clone(),
    );
    let watching = tokio::spawn(watch_over(Watch::new(Arc::clone(&node)), all.clone()));
    let driver = async { driver.await.inspect_err(|_| all.cancel()) };
    let registration = async { registration.await.inspect_err(|_| all.cancel()) };
    let (driver, registration) = tokio::join!(driver, registration);
    all.cancel();
    let _ = watching.await;
    node.close();
    tracing::info!("stopped; what is mounted stays");
    driver.and(registration).map_err(|error| format!("serving kubelet failed: {error}"))
}

async fn watch_over(mut watch: Watch, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let turned = tokio::task::spawn_blocking(move || {
            watch.turn();
            watch
        });
        watch = match turned.await {
            Ok(watch) => watch,
            Err(error) => {
                tracing::error!(%error, "nobody looks after mounts any more");
                stop.cancelled().await;
                return;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(watch::LOOK_EVERY) => {}
        }
    }
}
