//! Series of the node service.
//!
//! Invariant: labels are enums, never a pod or a path.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::health::Health;

/// What the node service counts, and how it is.
#[derive(Debug, Clone)]
pub struct CsiMetrics {
    pub(super) health: Health,
    pub(super) holders: IntGauge,
    pub(super) registered: IntGauge,
    calls: IntCounterVec,
    pub(super) holder_deaths: IntCounter,
    pub(super) swept: IntCounter,
}

/// A call of kubelet.
#[derive(Debug, Clone, Copy)]
pub(super) enum Call {
    Publish,
    Unpublish,
}

impl Call {
    fn label(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Unpublish => "unpublish",
        }
    }
}

/// What became of a call.
#[derive(Debug, Clone, Copy)]
pub(super) enum Outcome {
    Done,
    /// The caller has to ask for something else.
    Refused,
    /// This node could not do it; kubelet tries again.
    Failed,
}

impl Outcome {
    fn label(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

impl CsiMetrics {
    /// Registers every series of the node service.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, what: &str| {
            let gauge = IntGauge::new(name, what)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let counter = |name: &str, what: &str| {
            let counter = IntCounter::new(name, what)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let calls = IntCounterVec::new(
            Opts::new("warpdrive_csi_calls_total", "Calls of kubelet, by what became of them"),
            &["call", "outcome"],
        )?;
        registry.register(Box::new(calls.clone()))?;
        let metrics = Self {
            health: Health::default(),
            holders: gauge("warpdrive_csi_holders", "Mount holders that run")?,
            registered: gauge("warpdrive_csi_registered", "1 when kubelet has taken the driver")?,
            calls,
            holder_deaths: counter(
                "warpdrive_csi_holder_deaths_total",
                "Mount holders that ended before their pod did",
            )?,
            swept: counter(
                "warpdrive_csi_swept_mounts_total",
                "Dead mounts of pods that have ended, detached so that the pods can go",
            )?,
        };
        // A rate is known from the first call on.
        for call in [Call::Publish, Call::Unpublish] {
            for outcome in [Outcome::Done, Outcome::Refused, Outcome::Failed] {
                metrics.calls.with_label_values(&[call.label(), outcome.label()]);
            }
        }
        Ok(metrics)
    }

    /// Whether it has the folder's lock, is registered with kubelet and looks after mounts. An error
    /// says in a sentence what is missing.
    pub fn ready(&self) -> Result<(), &'static str> {
        self.health.ready(self.registered.get() != 0)
    }

    /// Whether starting it again would not help. An error says in a sentence what is wrong.
    pub fn live(&self) -> Result<(), &'static str> {
        self.health.live()
    }

    pub(super) fn count(&self, call: Call, outcome: Outcome) {
        self.calls.with_label_values(&[call.label(), outcome.label()]).inc();
    }
}
