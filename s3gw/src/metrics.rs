//! What the endpoint counts.
//!
//! Invariant: labels are names of operations, classes of status, reasons and algorithms; never a
//! bucket or a key. The handles are looked up once, so that counting costs an atomic add.

use std::sync::Arc;
use std::time::Instant;

use http::StatusCode;
use prometheus::{
    Error, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts,
    Registry,
};

use crate::auth::Refusal;
use crate::body::checksum::Algorithm;
use crate::ledger::Entry;
use crate::operation::Operation;

/// The label of requests that are no served operation.
const OTHER: &str = "Other";

/// Classes of status, by the first digit less two.
const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

/// Upper bounds of request durations in seconds: from a warm small read to a long upload.
const DURATIONS: [f64; 14] =
    [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0];

#[derive(Debug)]
struct PerOperation {
    by_class: Vec<IntCounter>,
    duration: Histogram,
}

/// The endpoint's metrics. Clones share them.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// By `Operation as usize`, then one for all others.
    operations: Vec<PerOperation>,
    received: IntCounter,
    sent: IntCounter,
    in_flight: IntGauge,
    connections: IntGauge,
    refusals: Vec<(Refusal, IntCounter)>,
    checksums: Vec<(Algorithm, IntCounter)>,
}

impl Metrics {
    /// Makes the series and registers them. Fails when one is registered already.
    pub fn register(registry: &Registry) -> Result<Self, Error> {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let family = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, Error>(family)
        };
        let requests = counters(
            "warpdrive_s3_requests_total",
            "Requests to the S3 endpoint that were answered",
            &["operation", "status"],
        )?;
        let bytes = counters(
            "warpdrive_s3_bytes_total",
            "Bytes of bodies that came in and went out",
            &["direction"],
        )?;
        let refused = counters(
            "warpdrive_s3_auth_failures_total",
            "Requests that were not let in",
            &["reason"],
        )?;
        let checksums = counters(
            "warpdrive_s3_checksum_failures_total",
            "Bodies whose checksum was not the one sent",
            &["algorithm"],
        )?;
        let durations = HistogramVec::new(
            HistogramOpts::new(
                "warpdrive_s3_request_duration_seconds",
                "Time from a request's head to the end of its answer",
            )
            .buckets(DURATIONS.to_vec()),
            &["operation"],
        )?;
        registry.register(Box::new(durations.clone()))?;
        let in_flight =
            IntGauge::new("warpdrive_s3_requests_in_flight", "Requests that are being answered")?;
        registry.register(Box::new(in_flight.clone()))?;
        let connections = IntGauge::new("warpdrive_s3_connections", "Open client connections")?;
        registry.register(Box::new(connections.clone()))?;
        let names = Operation::ALL.iter().map(|operation| operation.name());
        let operations = names.chain([OTHER]).map(|name| PerOperation {
            by_class: CLASSES
                .iter()
                .map(|class| requests.with_label_values(&[name, *class]))
                .collect(),
            duration: durations.with_label_values(&[name]),
        });
        Ok(Self(Arc::new(Inner {
            operations: operations.collect(),
            received: bytes.with_label_values(&["in"]),
            sent: bytes.with_label_values(&["out"]),
            in_flight,
            connections,
            refusals: Refusal::ALL
                .into_iter()
                .map(|reason| (reason, refused.with_label_values(&[reason.name()])))
                .collect(),
            checksums: Algorithm::ALL
                .into_iter()
                .map(|algorithm| (algorithm, checksums.with_label_values(&[algorithm.name()])))
                .collect(),
        })))
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.0.received.inc_by(bytes as u64);
    }

    pub(crate) fn sent(&self, bytes: usize) {
        self.0.sent.inc_by(bytes as u64);
    }

    pub(crate) fn refused(&self, reason: Refusal) {
        if let Some((_, counter)) = self.0.refusals.iter().find(|(known, _)| *known == reason) {
            counter.inc();
        }
    }

    pub(crate) fn wrong_checksum(&self, algorithm: Algorithm) {
        if let Some((_, counter)) = self.0.checksums.iter().find(|(known, _)| *known == algorithm) {
            counter.inc();
        }
    }

    /// Requests that are being answered.
    pub(crate) fn in_flight(&self) -> u64 {
        u64::try_from(self.0.in_flight.get()).unwrap_or(0)
    }

    /// Counts a connection until the guard is dropped.
    pub(crate) fn connection(&self) -> ConnectionGuard {
        self.0.connections.inc();
        ConnectionGuard(self.clone())
    }

    /// Counts a request until the guard is dropped, with its answer's body.
    pub(crate) fn request(&self) -> RequestGuard {
        self.0.in_flight.inc();
        RequestGuard {
            metrics: self.clone(),
            operation: None,
            writing: None,
            status: StatusCode::OK,
            started: Instant::now(),
        }
    }
}

/// An open connection.
pub(crate) struct ConnectionGuard(Metrics);

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.0.connections.dec();
    }
}

/// A request that is being answered.
pub(crate) struct RequestGuard {
    metrics: Metrics,
    pub(crate) operation: Option<Operation>,
    /// Its place among what clients write.
    pub(crate) writing: Option<Entry>,
    pub(crate) status: StatusCode,
    started: Instant,
}

impl RequestGuard {
    pub(crate) fn sent(&self, bytes: usize) {
        self.metrics.sent(bytes);
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let inner = &self.metrics.0;
        inner.in_flight.dec();
        let index = self.operation.map_or(inner.operations.len() - 1, |o| o as usize);
        let series = &inner.operations[index];
        let class = usize::from(self.status.as_u16() / 100).saturating_sub(2);
        series.by_class[class.min(CLASSES.len() - 1)].inc();
        series.duration.observe(self.started.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_once_by_class() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).unwrap();
        assert!(Metrics::register(&registry).is_err());
        let mut guard = metrics.request();
        guard.operation = Some(Operation::GetObject);
        guard.status = StatusCode::NOT_FOUND;
        assert_eq!(metrics.in_flight(), 1);
        drop(guard);
        assert_eq!(metrics.in_flight(), 0);
        let get = &metrics.0.operations[Operation::GetObject as usize];
        assert_eq!(get.by_class.iter().map(IntCounter::get).collect::<Vec<_>>(), [0, 0, 1, 0]);
        assert_eq!(get.duration.get_sample_count(), 1);
    }
}
