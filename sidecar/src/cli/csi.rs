//! `warpdrive csi`: the node service that mounts for pods which may not.
//!
//! Invariant: it passes on what was said on the command line; the work is in `cluster`, and what a
//! holder is asked is in `fusemount`. It reads no configuration file.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum, ValueHint};
use cluster::csi::{CsiConfig, CsiMetrics, HolderAnswer, serve_csi};
use prometheus::Registry;

use super::{Stop, duration, small_runtime};
use crate::admin;
use crate::config::{LogFormat, LogSettings};
use crate::signals::Signals;

/// Where the node service finds what is the node's.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
What it needs: root, `privileged: true`, `hostPID: true` and, from the node,
  kubelet's directory         at the same path, with `mountPropagation: Bidirectional`
  .../plugins/csi.warpdrive.io  anywhere, given as --plugin-dir
  /sys/fs/cgroup              anywhere but there, given as --cgroup-root
It needs no right at the API server, no other container (it registers with kubelet itself) and no
network but --metrics.

Volumes that it serves, inline in a pod:
  csi: {driver: csi.warpdrive.io, volumeAttributes: {role: mount, workerUid: \"65534\"}}
  csi: {driver: csi.warpdrive.io, volumeAttributes: {role: socket}}
The first is the mount, for the containers that read; the second has `mount.sock`, for the worker:
`warpdrive run --holder /run/warpdrive-holder/mount.sock`.

Mounts survive this service: each has a holder (`warpdrive mountd`) in a session and a control group
of its own. SIGTERM stops serving and leaves them; kill -9 and an upgrade leave them too.

Examples:
  warpdrive csi --node-name worker-1
  warpdrive csi --kubelet-dir /var/lib/kubelet --plugin-dir /csi --cgroup-root /host/cgroup \\
    --node-name worker-1 --metrics :9092")]
pub(super) struct CsiArgs {
    /// kubelet's --root-dir, at the same path as on the node.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet", value_hint = ValueHint::DirPath)]
    kubelet_dir: PathBuf,
    /// Where the node's `KUBELET_DIR/plugins/csi.warpdrive.io` is: sockets, records and logs of holders
    /// lie there [default: that path]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    plugin_dir: Option<PathBuf>,
    /// Where the node's control groups are: holders get their own there.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/cgroup", value_hint = ValueHint::DirPath)]
    cgroup_root: PathBuf,
    /// The node's name at the API server.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_name: String,
    /// How long a pod's readers wait when its worker is gone; then they get EIO until there is one.
    /// Longer than kubelet's longest back-off, five minutes.
    #[arg(long, value_name = "TIME", default_value = "6m", value_parser = duration)]
    patience: Duration,
    /// Let pods ask for a worker that is root (`workerUid: "0"`).
    #[arg(long)]
    allow_root_worker: bool,
    /// Serve /metrics, /readyz (the service does its work) and /livez here, such as `:9092`.
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    metrics: Option<SocketAddr>,
    /// What is logged: error, warn, info, debug, trace, or a filter such as `info,cluster=debug`.
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log_level: String,
    /// How a line of the log looks.
    #[arg(long, value_enum, default_value_t = Lines::Text)]
    log_format: Lines,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Lines {
    /// For people.
    Text,
    /// For machines.
    Json,
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let port = text.strip_prefix(':').and_then(|port| port.parse().ok());
    let any = port.map(|port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)));
    any.map_or_else(|| text.parse(), Ok).map_err(|_| "write :9092 or 127.0.0.1:9092".to_owned())
}

pub(super) fn csi(args: CsiArgs) -> Result<(), Stop> {
    let whole = |path: PathBuf| {
        std::path::absolute(&path).map_err(|e| Stop::Unusable(format!("{}: {e}", path.display())))
    };
    let kubelet_dir = whole(args.kubelet_dir)?;
    let plugin_dir = match args.plugin_dir {
        Some(dir) => whole(dir)?,
        None => kubelet_dir.join("plugins").join(cluster::names::CSI_DRIVER),
    };
    let program = std::env::current_exe()
        .map_err(|e| Stop::Failed(format!("this program cannot be found again: {e}")))?;
    let config = CsiConfig {
        kubelet_dir,
        plugin_dir,
        cgroup_root: whole(args.cgroup_root)?,
        node_name: args.node_name,
        allow_root_worker: args.allow_root_worker,
        patience: args.patience,
        program,
        ask,
    };
    let format = match args.log_format {
        Lines::Text => LogFormat::Text,
        Lines::Json => LogFormat::Json,
    };
    crate::trace::start(&LogSettings { level: args.log_level, format });
    small_runtime()?.block_on(serve(config, args.metrics))
}

async fn serve(config: CsiConfig, address: Option<SocketAddr>) -> Result<(), Stop> {
    let failed = |what: String| Stop::Failed(what);
    let signals = Signals::install().map_err(|e| failed(format!("signals: {e}")))?;
    let registry = Registry::new();
    let metrics = crate::metrics::Metrics::register(&registry)
        .and_then(|_| CsiMetrics::register(&registry))
        .map_err(|e| failed(format!("metrics: {e}")))?;
    if let Some(address) = address {
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .map_err(|e| failed(format!("--metrics {address}: {e}")))?;
        let of = metrics.clone();
        let health = move |path: &str| match path {
            "/readyz" => Some(of.ready()),
            "/livez" => Some(of.live()),
            _ => None,
        };
        let stop = signals.stop.clone();
        tokio::spawn(admin::serve_metrics_and(listener, registry, health, stop));
    }
    let serving = serve_csi(config, metrics, signals.stop.clone());
    tokio::select! {
        done = serving => done.map_err(failed),
        () = signals.now.cancelled() => Ok(()),
    }
}

/// Asks a holder who it is.
fn ask(socket: &Path) -> Option<HolderAnswer> {
    let status = fusemount::holder_status(socket)?;
    Some(HolderAnswer { pid: status.pid, mount_point: status.mount_point })
}
