//! Series of the process itself; each crate has its own.
//!
//! Invariant: reading them costs a few files of /proc and no lock. No label holds a key or a path.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    Encoder, Gauge, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

/// Series that the sidecar itself counts.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    /// Credentials that were taken or renewed: `provider` is the backend's type, `status` is
    /// `success` or `failure`.
    pub(crate) auth_refresh: IntCounterVec,
    /// Objects that warm jobs found or made resident, and those that they could not.
    pub(crate) warmed: IntCounterVec,
}

impl Metrics {
    /// Registers every series of the sidecar and of the process.
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        registry.register(Box::new(Process::new()?))?;
        let build = IntGaugeVec::new(
            Opts::new("warpdrive_build_info", "1, with the version as a label"),
            &["version"],
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        registry.register(Box::new(build))?;
        let auth_refresh = IntCounterVec::new(
            Opts::new("warpdrive_auth_refresh_total", "Credentials taken or renewed"),
            &["provider", "status"],
        )?;
        registry.register(Box::new(auth_refresh.clone()))?;
        let warmed = IntCounterVec::new(
            Opts::new("warpdrive_warm_objects_total", "Objects that warm jobs looked at"),
            &["result"],
        )?;
        registry.register(Box::new(warmed.clone()))?;
        Ok(Self { auth_refresh, warmed })
    }
}

/// Every series of a registry in Prometheus' text format.
pub(crate) fn text(registry: &Registry) -> String {
    let mut out = Vec::new();
    if let Err(error) = TextEncoder::new().encode(&registry.gather(), &mut out) {
        tracing::warn!(%error, "metrics cannot be encoded");
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The counts of one series of counters, with their labels.
pub(crate) fn counts(registry: &Registry, name: &str) -> Vec<(Vec<(String, String)>, u64)> {
    let families = registry.gather();
    let family = families.iter().find(|family| family.name() == name);
    let metrics = family.map_or(&[][..], MetricFamily::get_metric);
    let one = |metric: &prometheus::proto::Metric| {
        let labels = metric.get_label().iter();
        let labels = labels.map(|l| (l.name().to_owned(), l.value().to_owned())).collect();
        let count = metric.get_counter().get_value().max(0.0).round();
        #[allow(clippy::cast_sign_loss)] // not below zero
        (labels, count as u64)
    };
    metrics.iter().map(one).collect()
}

/// The standard names, so that existing dashboards find them.
struct Process {
    resident: IntGauge,
    cpu: Gauge,
    fds: IntGauge,
    threads: IntGauge,
    start: Arc<Gauge>,
}

impl Process {
    fn new() -> Result<Self, prometheus::Error> {
        let start = Gauge::new("process_start_time_seconds", "Start, in seconds since 1970")?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        start.set(now.as_secs_f64());
        Ok(Self {
            resident: IntGauge::new("process_resident_memory_bytes", "Memory in use, in bytes")?,
            cpu: Gauge::new("process_cpu_seconds_total", "Processor time used, in seconds")?,
            fds: IntGauge::new("process_open_fds", "Open file descriptors")?,
            threads: IntGauge::new("process_threads", "Threads")?,
            start: Arc::new(start),
        })
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        let mut all = self.resident.desc();
        all.extend(self.cpu.desc());
        all.extend(self.fds.desc());
        all.extend(self.threads.desc());
        all.extend(self.start.desc());
        all
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.resident.set(resident_bytes().unwrap_or(0).cast_signed());
        self.cpu.set(cpu_seconds());
        let entries =
            |path: &str| std::fs::read_dir(path).map_or(0, Iterator::count).cast_signed() as i64;
        self.fds.set(entries("/proc/self/fd"));
        self.threads.set(entries("/proc/self/task"));
        let mut all = self.resident.collect();
        all.extend(self.cpu.collect());
        all.extend(self.fds.collect());
        all.extend(self.threads.collect());
        all.extend(self.start.collect());
        all
    }
}

/// Memory of this process that is in RAM; `None` where /proc does not say.
pub(crate) fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn cpu_seconds() -> f64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_with_their_labels() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).unwrap();
        metrics.warmed.with_label_values(&["resident"]).inc_by(3);
        let found = counts(&registry, "warpdrive_warm_objects_total");
        assert_eq!(found, [(vec![("result".to_owned(), "resident".to_owned())], 3)]);
        assert_eq!(counts(&registry, "no_such_series"), []);
    }

    #[test]
    fn the_process_is_measured() {
        let registry = Registry::new();
        Metrics::register(&registry).unwrap();
        let text = text(&registry);
        let value = |name: &str| -> f64 {
            let line =
                text.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("{name}"));
            line.rsplit(' ').next().unwrap().parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes ") > 1e6);
        assert!(value("process_open_fds ") >= 3.0);
        assert!(value("process_threads ") >= 1.0);
        assert!(value("process_start_time_seconds ") > 1.7e9);
        assert!(text.contains("warpdrive_build_info{version="));
    }
}
