//! What the webhook counts.
//!
//! Invariant: labels are outcomes; never a name of a pod or of a namespace.

use prometheus::{
    Error, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

/// Upper bounds in seconds. The API server waits for every one of these before a pod exists, and gives
/// up after `timeoutSeconds` (5 in the chart).
const DURATIONS: [f64; 10] = [0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0];

/// What became of a review.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The pod was changed.
    Injected,
    /// The object was allowed as it is.
    Unchanged,
    /// The pod was denied with a reason.
    Denied,
    /// What came was no review that can be answered.
    Refused,
}

impl Outcome {
    const ALL: [Self; 4] = [Self::Injected, Self::Unchanged, Self::Denied, Self::Refused];

    fn label(self) -> &'static str {
        match self {
            Self::Injected => "injected",
            Self::Unchanged => "unchanged",
            Self::Denied => "denied",
            Self::Refused => "refused",
        }
    }
}

/// The webhook's metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// By `Outcome as usize`.
    outcomes: Vec<IntCounter>,
    /// From the head of a request until its answer is ready.
    pub(super) duration: Histogram,
    pub(super) connections: IntGauge,
    certificate_expiry: IntGauge,
    certificate_changes: IntCounter,
    /// End of our own authority, 0 where the certificate is somebody else's.
    pub(crate) authority_expiry: IntGauge,
    pub(super) settings_valid: IntGauge,
    /// Whether every configuration holds our bundle.
    pub(crate) configuration_valid: IntGauge,
    pub(crate) kubernetes_errors: IntCounter,
}

impl Metrics {
    /// Makes the series and registers them. Fails when one is registered already.
    pub(crate) fn register(registry: &Registry) -> Result<Self, Error> {
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, Error>(gauge)
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, Error>(counter)
        };
        let requests = IntCounterVec::new(
            Opts::new(
                "warpdrive_webhook_requests_total",
                "Admission reviews by what became of them",
            ),
            &["outcome"],
        )?;
        registry.register(Box::new(requests.clone()))?;
        let duration = Histogram::with_opts(
            HistogramOpts::new(
                "warpdrive_webhook_request_duration_seconds",
                "From the head of a review until its answer is ready",
            )
            .buckets(DURATIONS.to_vec()),
        )?;
        registry.register(Box::new(duration.clone()))?;
        Ok(Self {
            outcomes: Outcome::ALL
                .iter()
                .map(|outcome| requests.with_label_values(&[outcome.label()]))
                .collect(),
            duration,
            connections: gauge("warpdrive_webhook_connections", "TLS connections that are open")?,
            certificate_expiry: gauge(
                "warpdrive_webhook_certificate_expiry_timestamp_seconds",
                "When the certificate that is shown expires, 0 without one",
            )?,
            certificate_changes: counter(
                "warpdrive_webhook_certificate_changes_total",
                "Certificates that were shown for the first time",
            )?,
            authority_expiry: gauge(
                "warpdrive_webhook_authority_expiry_timestamp_seconds",
                "When the webhook's own authority expires, 0 where the certificate is given",
            )?,
            settings_valid: gauge(
                "warpdrive_webhook_settings_valid",
                "1 when the newest settings file is in use, 0 when it is bad and an older one is",
            )?,
            configuration_valid: gauge(
                "warpdrive_webhook_configuration_valid",
                "1 when every configuration held the caBundle at the last look",
            )?,
            kubernetes_errors: counter(
                "warpdrive_webhook_kubernetes_errors_total",
                "Rounds of looking after certificates that the API server made fail",
            )?,
        })
    }

    pub(super) fn count(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].inc();
    }

    /// A certificate is shown that was not before; `until` in seconds since 1970.
    pub(crate) fn shows(&self, until: u64) {
        self.certificate_expiry.set(i64::try_from(until).unwrap_or(i64::MAX));
        self.certificate_changes.inc();
    }
}
