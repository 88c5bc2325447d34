//! What this crate counts.
//!
//! Invariant: labels are names of operations and errnos, never keys. Cheap to clone; nothing is
//! static.

use std::time::Duration;

use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

/// From a node answered out of memory (20 us) to an operation that ran into its timeout.
const BUCKETS_SECONDS: [f64; 12] =
    [0.000_05, 0.000_1, 0.000_25, 0.001, 0.005, 0.02, 0.05, 0.1, 0.5, 2.0, 10.0, 60.0];

/// The counters of every mount of a process.
#[derive(Debug, Clone)]
pub struct Metrics {
    operations: IntCounterVec,
    durations: HistogramVec,
    errors: IntCounterVec,
    opens: IntCounterVec,
    mutations: IntCounterVec,
    /// Bytes that reads returned.
    pub(crate) read_bytes: IntCounter,
    /// Files that are open now.
    pub(crate) open_files: IntGauge,
    /// Directories that are open now.
    pub(crate) open_directories: IntGauge,
    /// Nodes that the kernel knows.
    pub(crate) nodes: IntGauge,
    /// Operations given up because their caller was about to end.
    pub(crate) interrupted: IntCounter,
}

impl Metrics {
    /// Creates the metrics and registers them. An error says which name is taken.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let operations = IntCounterVec::new(
            Opts::new("warpdrive_fuse_operations_total", "FUSE operations"),
            &["operation"],
        )?;
        let durations = HistogramVec::new(
            HistogramOpts::new(
                "warpdrive_fuse_operation_duration_seconds",
                "time from a FUSE request to its reply",
            )
            .buckets(BUCKETS_SECONDS.to_vec()),
            &["operation"],
        )?;
        let errors = IntCounterVec::new(
            Opts::new("warpdrive_fuse_errors_total", "FUSE operations that failed, by errno"),
            &["operation", "errno"],
        )?;
        let opens = IntCounterVec::new(
            Opts::new(
                "warpdrive_fuse_opens_total",
                "files opened, by how the kernel gets their bytes, and why",
            ),
            &["mode", "reason"],
        )?;
        let mutations = IntCounterVec::new(
            Opts::new(
                "warpdrive_fuse_mutations_total",
                "operations that would change something, by whether a worker may pass them on",
            ),
            &["operation", "gate"],
        )?;
        let read_bytes =
            IntCounter::new("warpdrive_fuse_read_bytes_total", "bytes returned by FUSE reads")?;
        let open_files = IntGauge::new("warpdrive_fuse_open_files", "files open now")?;
        let open_directories =
            IntGauge::new("warpdrive_fuse_open_directories", "directories open now")?;
        let nodes = IntGauge::new("warpdrive_fuse_nodes", "nodes that the kernel knows")?;
        let interrupted = IntCounter::new(
            "warpdrive_fuse_interrupted_total",
            "FUSE operations given up because a signal was ending their caller",
        )?;
        registry.register(Box::new(operations.clone()))?;
        registry.register(Box::new(durations.clone()))?;
        registry.register(Box::new(errors.clone()))?;
        registry.register(Box::new(opens.clone()))?;
        registry.register(Box::new(mutations.clone()))?;
        registry.register(Box::new(read_bytes.clone()))?;
        registry.register(Box::new(open_files.clone()))?;
        registry.register(Box::new(open_directories.clone()))?;
        registry.register(Box::new(nodes.clone()))?;
        registry.register(Box::new(interrupted.clone()))?;
        Ok(Self {
            operations,
            durations,
            errors,
            opens,
            mutations,
            read_bytes,
            open_files,
            open_directories,
            nodes,
            interrupted,
        })
    }

    /// Counts an operation that was answered.
    pub(crate) fn answered(&self, operation: &'static str, time: Duration) {
        self.operations.with_label_values(&[operation]).inc();
        self.durations.with_label_values(&[operation]).observe(time.as_secs_f64());
    }

    /// Counts the error that an operation was answered with.
    pub(crate) fn failed(&self, operation: &'static str, errno: &'static str) {
        self.errors.with_label_values(&[operation, errno]).inc();
    }

    /// Counts what would change something.
    pub(crate) fn mutation(&self, operation: &'static str, open: bool) {
        let gate = if open { "open" } else { "closed" };
        self.mutations.with_label_values(&[operation, gate]).inc();
    }

    /// Counts an open that was answered.
    pub(crate) fn opened(&self, mode: &'static str, reason: &'static str) {
        self.opens.with_label_values(&[mode, reason]).inc();
    }
}
