//! A real API server on a real etcd, on loopback: enough of a cluster to call webhooks.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use testkit::{Process, Skipped, free_port};

use crate::support::Authority;

/// The start of an API server on a busy machine; an idle one takes 4 s.
const START: Duration = Duration::from_secs(90);

/// Who may do everything, and who may do what the chart gives the webhook.
const USERS: &str = "admin-token,admin,1,system:masters\nwebhook-token,webhook,2,webhooks\n";

/// One for all tests of this program; its processes end with the program.
pub struct Cluster {
    folder: PathBuf,
    /// Its folder holds everything, and goes with it.
    _authority: Authority,
    server: Process,
    _etcd: Process,
}

/// The cluster, started on first use, or why there is none.
pub fn cluster() -> Result<&'static Cluster, Skipped> {
    static CLUSTER: OnceLock<Result<Cluster, Skipped>> = OnceLock::new();
    CLUSTER.get_or_init(start).as_ref().map_err(Clone::clone)
}

fn start() -> Result<Cluster, Skipped> {
    let server = program("kube-apiserver")?;
    let etcd = program("etcd")?;
    let authority = Authority::new();
    let folder = authority.folder.path().to_owned();
    let (client, peer, port) = (free_port(), free_port(), free_port());
    let etcd = {
        let mut command = Command::new(etcd);
        let (client, peer) =
            (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        command.arg("--data-dir").arg(folder.join("etcd"));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("default={peer}")]);
        Process::spawn("etcd", command, &folder.join("etcd.log")).unwrap()
    };
    wait("etcd listens", &etcd, || TcpStream::connect(("127.0.0.1", client)).is_ok());
    std::fs::write(folder.join("users.csv"), USERS).unwrap();
    let server = {
        let mut command = Command::new(server);
        let file = |flag: &str, name: &str| format!("--{flag}={}", folder.join(name).display());
        command.args([
            format!("--etcd-servers=http://127.0.0.1:{client}"),
            format!("--secure-port={port}"),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=127.0.0.1".to_owned(),
            "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
            "--allow-privileged=true".to_owned(),
            // There is no controller that makes service accounts, and no kubelet.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            "--endpoint-reconciler-type=none".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            file("tls-cert-file", "tls.crt"),
            file("tls-private-key-file", "tls.key"),
            file("service-account-key-file", "tls.crt"),
            file("service-account-signing-key-file", "tls.key"),
            file("token-auth-file", "users.csv"),
            file("cert-dir", "certificates"),
        ]);
        Process::spawn("kube-apiserver", command, &folder.join("server.log")).unwrap()
    };
    std::fs::write(folder.join("ca.crt"), authority.bundle()).unwrap();
    for user in ["admin", "webhook"] {
        std::fs::write(folder.join(user), kubeconfig(&folder, port, user)).unwrap();
    }
    let cluster = Cluster { folder, _authority: authority, server, _etcd: etcd };
    wait("the API server is ready", &cluster.server, || cluster.is_ready());
    Ok(cluster)
}

/// From the folder of `tests/k8s`, or of the machine: etcd is a package.
fn program(name: &str) -> Result<PathBuf, Skipped> {
    let folder = std::env::var_os("WARPDRIVE_K8S");
    let folder = folder.map_or_else(|| testkit::tools_folder().join("k8s"), PathBuf::from);
    let mut places = vec![folder.join("bin")];
    if name == "etcd" {
        places.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    }
    let found = places.into_iter().map(|place| place.join(name)).find(|path| path.exists());
    found.ok_or_else(|| Skipped::new(name, "not installed (tests/k8s/install installs it)"))
}

fn wait(what: &str, process: &Process, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(process.is_running(), "{what}: it ended\n{}", process.log_tail());
        assert!(begun.elapsed() < START, "{what}\n{}", process.log_tail());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn kubeconfig(folder: &Path, port: u16, user: &str) -> String {
    let authority = folder.join("ca.crt").display().to_string();
    serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {
            "server": format!("https://127.0.0.1:{port}"), "certificate-authority": authority,
        }}],
        "users": [{"name": user, "user": {"token": format!("{user}-token")}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
        "current-context": "test",
    })
    .to_string()
}

impl Cluster {
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.folder.join(user)
    }

    pub async fn client(&self, user: &str) -> Client {
        let file = Kubeconfig::read_from(self.kubeconfig(user)).unwrap();
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(file, &options).await.unwrap();
        Client::try_from(config).unwrap()
    }

    fn is_ready(&self) -> bool {
        let asked = async {
            let request = http_request("/readyz");
            tokio::time::timeout(Duration::from_secs(5), async {
                self.client("admin").await.request_text(request).await.is_ok()
            })
            .await
            .unwrap_or(false)
        };
        // The caller may be in a runtime of its own, which must not be blocked from within.
        std::thread::scope(|scope| {
            let runtime = || {
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap()
                    .block_on(asked)
            };
            scope.spawn(runtime).join().unwrap()
        })
    }
}

fn http_request(path: &str) -> hyper::Request<Vec<u8>> {
    hyper::Request::get(path).body(Vec::new()).unwrap()
}
