//! The admission webhook: pods that ask for it are injected when they are made.
//!
//! Invariant: a pod is answered from its review and the settings file alone, so replicas answer alike
//! and nothing has to be written before a pod exists. It refuses to serve without a certificate, and reads nothing
//! of the cluster but its own Secret and configuration.

mod bodies;
mod health;
mod metrics;
mod review;
mod seats;
mod server;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prometheus::Registry;
use rustls::server::{NoServerSessionStorage, ServerConfig};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::certificates::{self, Files, Keeper, Place, Plan, Shown};
use crate::settings::Defaults;
pub(crate) use health::Health;
use metrics::Metrics;
use server::Site;

/// How often files are looked at. kubelet itself takes up to a minute to bring a change.
const FILES_PAUSE: Duration = Duration::from_secs(2);
/// The API server is given this long for an answer.
const API_TIMEOUT: Duration = Duration::from_secs(10);

/// How the webhook serves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the API server calls, over TLS.
    pub listen: SocketAddr,
    /// Metrics and health in the clear.
    pub metrics: Option<SocketAddr>,
    /// YAML of [`Defaults`]; without, all defaults.
    pub settings: Option<PathBuf>,
    /// Where the certificate comes from.
    pub source: Source,
    /// How long it still serves, not ready, once it is told to stop: until no caller comes any more.
    pub shutdown_delay: Duration,
}

/// Where the certificate comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// Two PEM files that somebody else renews; they are read again when they change.
    Files {
        /// The chain, leaf first.
        certificate: PathBuf,
        /// Its key.
        key: PathBuf,
    },
    /// An authority of our own, kept in a Secret.
    Own(Own),
}

/// An authority of our own.
#[derive(Debug, Clone)]
pub struct Own {
    /// Namespace of the Secret.
    pub namespace: String,
    /// Name of the Secret.
    pub secret: String,
    /// `MutatingWebhookConfiguration`s whose `caBundle` is looked after.
    pub configurations: Vec<String>,
    /// Names and addresses by which the API server calls.
    pub names: Vec<String>,
    /// Life of an authority: at least three times those of a certificate and of `settle` together.
    pub authority: Duration,
    /// Life of a certificate; it is renewed at two thirds of it.
    pub certificate: Duration,
    /// How long a new authority is in every `caBundle` before it issues.
    pub settle: Duration,
    /// How often Secret and configurations are looked at.
    pub resync: Duration,
    /// How the API server is reached; without, `KUBECONFIG` or what a pod is given.
    pub kubeconfig: Option<PathBuf>,
}

/// A webhook that listens.
pub struct Webhook {
    listener: TcpListener,
    metrics: Option<TcpListener>,
    options: Options,
    site: Arc<Site>,
    shown: Arc<Shown>,
    tls: TlsAcceptor,
}

impl Webhook {
    /// Reads the settings and binds. Nothing is answered before [`Webhook::run`].
    ///
    /// # Errors
    /// One sentence: what of the options cannot be used.
    pub async fn open(options: Options) -> Result<Self, String> {
        let settings = match &options.settings {
            Some(path) => read_settings(path)?,
            None => Defaults::default(),
        };
        let own = match &options.source {
            Source::Own(own) => Some(own),
            Source::Files { .. } => None,
        };
        if own.is_some_and(|own| own.authority < 3 * (own.certificate + own.settle)) {
            return Err(
                "an authority must live at least three times as long as a certificate and the \
                        time to settle together"
                    .to_owned(),
            );
        }
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).map_err(|error| error.to_string())?;
        metrics.settings_valid.set(1);
        let shown = Arc::new(Shown::default());
        let health = Arc::new(Health::new(metrics, Arc::clone(&shown), own.is_some()));
        let tls = acceptor(Arc::clone(&shown))?;
        let listener = bind(options.listen).await?;
        let metrics = match options.metrics {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let site = Arc::new(Site::new(settings, health, registry));
        Ok(Self { listener, metrics, options, site, shown, tls })
    }

    /// Where the API server calls, with the port that was taken.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Where metrics are, with the port that was taken.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Serves until `stop` is cancelled, and then as long as it takes to leave without a caller
    /// noticing; `now` ends it at once.
    ///
    /// # Errors
    /// One sentence: why the cluster cannot be reached at all.
    pub async fn run(self, stop: CancellationToken, now: CancellationToken) -> Result<(), String> {
        let Self { listener, metrics, options, site, shown, tls } = self;
        let (health, end) = (Arc::clone(&site.health), CancellationToken::new());
        let tasks = TaskTracker::new();
        match options.source {
            Source::Files { certificate, key } => {
                let files = Files { certificate, key };
                tasks.spawn(watch_files(files, shown, Arc::clone(&health), end.clone()));
            }
            Source::Own(own) => {
                let keeper = keeper(own, shown, Arc::clone(&health)).await?;
                tasks.spawn(keeper.run(end.clone()));
            }
        }
        if let Some(path) = options.settings {
            tasks.spawn(watch_settings(path, Arc::clone(&site), end.clone()));
        }
        if let Some(listener) = metrics {
            tasks.spawn(server::serve_plain(listener, Arc::clone(&site), end.clone()));
        }
        tasks.spawn(server::serve(listener, tls, site, end.clone()));
        tasks.close();
        let leave = async {
            stop.cancelled().await;
            health.stop();
            tokio::time::sleep(options.shutdown_delay).await;
            end.cancel();
            tasks.wait().await;
        };
        tokio::select! {
            () = leave => {}
            () = now.cancelled() => {}
        }
        Ok(())
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address)
        .await
        .map_err(|error| format!("{address} cannot be listened on: {error}"))
}

fn acceptor(shown: Arc<Shown>) -> Result<TlsAcceptor, String> {
    let mut config = ServerConfig::builder_with_provider(certificates::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_cert_resolver(shown);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // API servers resume nothing; a session that is kept for them is memory.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn keeper(own: Own, shown: Arc<Shown>, health: Arc<Health>) -> Result<Keeper, String> {
    let mut config = match &own.kubeconfig {
        Some(path) => given(path).await,
        None => kube::Config::infer().await.map_err(|error| error.to_string()),
    }
    .map_err(|error| format!("no way to the API server is configured: {error}"))?;
    config.connect_timeout = Some(API_TIMEOUT);
    config.read_timeout = Some(API_TIMEOUT);
    config.write_timeout = Some(API_TIMEOUT);
    let client = kube::Client::try_from(config)
        .map_err(|error| format!("the API server cannot be asked: {error}"))?;
    let place = Place {
        namespace: own.namespace,
        secret: own.secret,
        configurations: own.configurations,
        resync: own.resync,
    };
    let plan = Plan {
        names: own.names,
        authority: own.authority,
        certificate: own.certificate,
        settle: own.settle,
    };
    Ok(Keeper::new(&client, place, plan, shown, health))
}

async fn given(path: &Path) -> Result<kube::Config, String> {
    let file = kube::config::Kubeconfig::read_from(path).map_err(|error| error.to_string())?;
    let options = kube::config::KubeConfigOptions::default();
    kube::Config::from_custom_kubeconfig(file, &options).await.map_err(|error| error.to_string())
}

/// Shows what the files hold, now and whenever they change.
async fn watch_files(
    files: Files,
    shown: Arc<Shown>,
    health: Arc<Health>,
    stop: CancellationToken,
) {
    loop {
        let now = certificates::unix_seconds(SystemTime::now());
        match files.read() {
            Ok(pair) if !pair.is_valid(now) && shown.valid_until(now).is_ok() => {
                let until = certificates::date(pair.not_after);
                let what =
                    format!("the new one (until {until}) is not valid now: the old one is shown");
                health.files.tell(Some(what));
            }
            Ok(pair) => {
                let ends = pair.not_after;
                if shown.show(pair) {
                    health.metrics.shows(ends);
                    let until = certificates::date(ends);
                    tracing::info!(valid_until = %until, "certificate of the files is shown");
                }
                health.files.tell(None);
            }
            Err(what) => health.files.tell(Some(what)),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(FILES_PAUSE) => {}
        }
    }
}

fn read_settings(path: &Path) -> Result<Defaults, String> {
    let about = |what: String| format!("{}: {what}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| about(error.to_string()))?;
    Defaults::from_yaml(&text).map_err(about)
}

/// Uses what the settings file says, whenever it changes to something that can be used.
async fn watch_settings(path: PathBuf, site: Arc<Site>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(FILES_PAUSE) => {}
        }
        let read = read_settings(&path);
        let health = &site.health;
        health.metrics.settings_valid.set(i64::from(read.is_ok()));
        match read {
            Ok(settings) => {
                if **site.settings.read() != settings {
                    *site.settings.write() = Arc::new(settings);
                    tracing::info!(file = %path.display(), "settings changed");
                }
                health.settings.tell(None);
            }
            Err(what) => health.settings.tell(Some(what)),
        }
    }
}
