//! `warpdrive webhook`: serves admission reviews to the API server.
//!
//! Invariant: one thread and some MiB; nothing of a worker is started. It refuses a command line that
//! names two sources of its certificate, or none.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum, ValueHint};
use cluster::webhook::{Options, Own, Source, Webhook};

use super::{Stop, duration};
use crate::config::{LogFormat, LogSettings};
use crate::signals::Signals;

/// How the webhook serves.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Pods with the label `warpdrive.io/inject: \"true\"`, and those of namespaces with it, are sent here by a
MutatingWebhookConfiguration (the chart makes it) and come back with WarpDrive in them. A pod that asks
for something that cannot be is denied with one sentence. `warpdrive inject -f pod.yaml` shows the same
without a cluster.

The certificate, one of:
  --secret      an authority of its own, kept in that Secret, which replicas share. Its certificate is
                written into the `caBundle` of --webhook-configuration, and put back there when
                somebody resets it. Everything is renewed at two thirds of its life, with an overlap
                in which both authorities are trusted.
  --tls-cert    files of somebody else's (cert-manager, a mounted Secret), read again when they change.

Rights for --secret: get and update on that Secret, get and patch on that configuration; create on
Secrets only where nobody made an empty one before.

Endpoints: POST /mutate, GET /healthz and /readyz over TLS; GET /metrics, /healthz, /readyz in the clear.

Examples:
  warpdrive webhook --secret warpdrive/webhook-tls --service warpdrive-webhook --namespace warpdrive \\
      --webhook-configuration warpdrive --settings /etc/warpdrive/settings.yaml
  warpdrive webhook --tls-cert /tls/tls.crt --tls-key /tls/tls.key --metrics none")]
pub(super) struct WebhookArgs {
    /// Where the API server calls, over TLS.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8443", value_parser = address)]
    listen: SocketAddr,
    /// Metrics and health in the clear; `none` for neither.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8080", value_parser = metrics)]
    metrics: Metrics,
    /// What injection does where a pod does not say otherwise (YAML); read again when it changes.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    settings: Option<PathBuf>,
    /// The Secret that keeps the authority and the certificate.
    #[arg(
        long,
        value_name = "NAMESPACE/NAME",
        value_parser = secret,
        required_unless_present = "tls_cert",
        conflicts_with_all = ["tls_cert", "tls_key"]
    )]
    secret: Option<(String, String)>,
    /// The `MutatingWebhookConfiguration` whose `caBundle` is looked after; may be given more than once.
    #[arg(long, value_name = "NAME", requires = "secret", required_unless_present = "tls_cert")]
    webhook_configuration: Vec<String>,
    /// The Service by which the API server calls; with --namespace, the names in the certificate.
    #[arg(long, value_name = "NAME", requires = "namespace")]
    service: Option<String>,
    /// The Service's namespace.
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// A further name or address in the certificate, for calls by URL; may be given more than once.
    #[arg(long, value_name = "NAME", requires = "secret")]
    dns_name: Vec<String>,
    /// Life of the authority.
    #[arg(long, value_name = "TIME", default_value = "365d", value_parser = duration)]
    ca_lifetime: Duration,
    /// Life of a certificate.
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = duration)]
    certificate_lifetime: Duration,
    /// How long a new authority is trusted everywhere before it issues.
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = duration)]
    settle: Duration,
    /// How often Secret and configuration are looked at: how soon a `caBundle` that was reset is back.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    resync: Duration,
    /// How the API server is reached, instead of `KUBECONFIG` or what a pod is given.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "secret")]
    kubeconfig: Option<PathBuf>,
    /// The certificate's chain (PEM), when somebody else looks after it.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// After SIGTERM: how long it still serves, not ready any more, so that callers go elsewhere.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    shutdown_delay: Duration,
    /// What is logged, such as `info` or `info,cluster=debug`; `WARPDRIVE_LOG` takes precedence.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,
    /// How a line of the log looks.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Text)]
    log_format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// An address or none; not an `Option`, which clap takes for an argument that may be missing.
#[derive(Debug, Clone, Copy)]
struct Metrics(Option<SocketAddr>);

fn metrics(text: &str) -> Result<Metrics, String> {
    if text == "none" { Ok(Metrics(None)) } else { address(text).map(|at| Metrics(Some(at))) }
}

/// `:8443` is every address of the machine.
fn address(text: &str) -> Result<SocketAddr, String> {
    let whole = if text.starts_with(':') { format!("0.0.0.0{text}") } else { text.to_owned() };
    whole
        .parse()
        .map_err(|_| format!("`{text}` is no address: write 0.0.0.0:8443, [::]:8443 or :8443"))
}

fn secret(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name))
            if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
        {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err(format!("`{text}`: write NAMESPACE/NAME")),
    }
}

impl WebhookArgs {
    fn source(&self) -> Result<Source, Stop> {
        if let (Some(certificate), Some(key)) = (&self.tls_cert, &self.tls_key) {
            return Ok(Source::Files { certificate: certificate.clone(), key: key.clone() });
        }
        let (namespace, secret) = self.secret.clone().expect("clap asks for one of the two");
        let mut names = self.dns_name.clone();
        if let (Some(service), Some(namespace)) = (&self.service, &self.namespace) {
            names.push(format!("{service}.{namespace}.svc"));
            names.push(format!("{service}.{namespace}.svc.cluster.local"));
        }
        if names.is_empty() {
            let what = "--service and --namespace, or --dns-name: the certificate needs a name";
            return Err(Stop::Unusable(what.to_owned()));
        }
        if self.resync.is_zero() || self.certificate_lifetime < Duration::from_secs(1) {
            let what = "--resync must not be zero, --certificate-lifetime at least 1s";
            return Err(Stop::Unusable(what.to_owned()));
        }
        Ok(Source::Own(Own {
            namespace,
            secret,
            configurations: self.webhook_configuration.clone(),
            names,
            authority: self.ca_lifetime,
            certificate: self.certificate_lifetime,
            settle: self.settle,
            resync: self.resync,
            kubeconfig: self.kubeconfig.clone(),
        }))
    }
}

pub(super) fn webhook(args: WebhookArgs) -> Result<(), Stop> {
    let source = args.source()?;
    let format = match args.log_format {
        Format::Text => LogFormat::Text,
        Format::Json => LogFormat::Json,
    };
    crate::trace::start(&LogSettings { level: args.log_level, format });
    let options = Options {
        listen: args.listen,
        metrics: args.metrics.0,
        settings: args.settings,
        source,
        shutdown_delay: args.shutdown_delay,
    };
    // One thread: a review takes a fraction of a millisecond, and a second one is a second heap.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .map_err(|e| Stop::Failed(format!("threads cannot be started: {e}")))?;
    runtime.block_on(async {
        let failed = |e: std::io::Error| Stop::Failed(e.to_string());
        let signals = Signals::install().map_err(failed)?;
        let webhook = Webhook::open(options).await.map_err(Stop::Unusable)?;
        let plain = webhook.metrics_address().map(|at| format!("http://{at}/metrics"));
        tracing::info!(
            listen = %webhook.address().map_err(failed)?,
            metrics = plain.as_deref().unwrap_or("none"),
            "webhook listens"
        );
        webhook.run(signals.stop, signals.now).await.map_err(Stop::Failed)
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parsed(line: &str) -> Result<WebhookArgs, String> {
        let words = ["warpdrive", "webhook"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(words).map_err(|error| error.to_string())?.command {
            Command::Webhook(args) => Ok(*args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_charts_command_lines_are_understood() {
        let own = "--listen 0.0.0.0:8443 --metrics 0.0.0.0:8080 --settings /etc/warpdrive/settings.yaml \
                   --secret system/tls --service hook --namespace system --webhook-configuration warpdrive \
                   --ca-lifetime 8760h --certificate-lifetime 720h --settle 2m --resync 10s \
                   --shutdown-delay 5s --log-level info --log-format json";
        let args = parsed(own).unwrap();
        let Source::Own(own) = args.source().unwrap() else { panic!("not the own authority") };
        assert_eq!((own.namespace.as_str(), own.secret.as_str()), ("system", "tls"));
        assert_eq!(own.names, ["hook.system.svc", "hook.system.svc.cluster.local"]);
        assert_eq!(own.configurations, ["warpdrive"]);
        assert_eq!(own.authority, Duration::from_hours(8760));
        let files =
            parsed("--tls-cert /tls/tls.crt --tls-key /tls/tls.key --metrics none").unwrap();
        assert!(matches!(files.source(), Ok(Source::Files { .. })));
        assert!(files.metrics.0.is_none());
        assert_eq!(files.listen, "0.0.0.0:8443".parse().unwrap());
        assert_eq!(address(":9"), Ok("0.0.0.0:9".parse().unwrap()));
    }

    #[test]
    fn one_source_of_the_certificate_is_asked_for() {
        for (line, part) in [
            ("", "--secret"),
            ("--tls-cert a", "--tls-key"),
            ("--secret a/b", "--webhook-configuration"),
            ("--secret a --webhook-configuration c", "NAMESPACE/NAME"),
            (
                "--secret a/b --webhook-configuration c --tls-cert x --tls-key y",
                "cannot be used with",
            ),
            ("--secret a/b --webhook-configuration c --service s", "--namespace"),
            ("--tls-cert a --tls-key b --listen here", "0.0.0.0:8443"),
            ("--tls-cert a --tls-key b --shutdown-delay 5", "write 500ms"),
        ] {
            let error = parsed(line).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
        for line in [
            "--secret a/b --webhook-configuration c",
            "--secret a/b --webhook-configuration c --dns-name d --resync 0",
            "--secret a/b --webhook-configuration c --dns-name d --certificate-lifetime 10ms",
        ] {
            assert!(matches!(parsed(line).unwrap().source(), Err(Stop::Unusable(_))), "{line}");
        }
    }
}
