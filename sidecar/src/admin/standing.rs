//! Series of how the sidecar stands: ready, mounted, restarted, within its memory and its disk.
//!
//! Invariant: read when they are asked for, from what `/status` reads too, so that the two never
//! differ. They hold nothing open: after the admin endpoint is gone there are none. No label.

use std::sync::{Arc, Weak};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, IntCounter, IntGauge};

use super::Admin;
use crate::assembly::BESIDE_TRANSIT_BYTES;

/// A collector over a running sidecar.
pub(crate) struct Standing {
    admin: Weak<Admin>,
    memory_tier_bytes: u64,
    ready: IntGauge,
    mount: IntGauge,
    resumed: IntGauge,
    memory_bound: IntGauge,
    leased: IntGauge,
    lease_bound: IntGauge,
    disk_free: Gauge,
    disk_min_free: Gauge,
    descriptions: Vec<Desc>,
}

impl Standing {
    /// Adds the series of a sidecar, with a memory tier of so many bytes, to its registry.
    pub(crate) fn register(
        admin: &Arc<Admin>,
        memory_tier_bytes: u64,
    ) -> Result<(), prometheus::Error> {
        let series = Self {
            admin: Arc::downgrade(admin),
            memory_tier_bytes,
            ready: IntGauge::new(
                "warpdrive_ready",
                "1 where the sidecar takes work, 0 while it starts or drains",
            )?,
            mount: IntGauge::new(
                "warpdrive_mount_up",
                "1 where the mount is served, 0 where it was lost; absent without a mount",
            )?,
            resumed: IntGauge::new(
                "warpdrive_mount_resumed",
                "1 where this worker went on with a mount that a holder had kept",
            )?,
            memory_bound: IntGauge::new(
                "warpdrive_memory_bound_bytes",
                "What the configuration lets this process hold in memory",
            )?,
            leased: IntGauge::new(
                "warpdrive_memory_leased_bytes",
                "Bytes in no tier: fetches, read-ahead, bodies of answers and uploads",
            )?,
            lease_bound: IntGauge::new(
                "warpdrive_memory_lease_bound_bytes",
                "Most that warpdrive_memory_leased_bytes can be; what wants more waits",
            )?,
            disk_free: Gauge::new(
                "warpdrive_cache_disk_free_bytes",
                "Bytes that the file system of the disk tier has left",
            )?,
            disk_min_free: Gauge::new(
                "warpdrive_cache_disk_min_free_bytes",
                "Bytes of that file system that the cache leaves free",
            )?,
            descriptions: Vec::new(),
        };
        let counted = [remounts()?, restarts()?];
        let described: Vec<Desc> =
            series.gauges().into_iter().flat_map(Collector::desc).cloned().collect();
        let counted = counted.iter().flat_map(Collector::desc).cloned();
        let descriptions = described.into_iter().chain(counted).collect();
        admin.registry().register(Box::new(Self { descriptions, ..series }))
    }

    fn gauges(&self) -> [&dyn Collector; 8] {
        [
            &self.ready,
            &self.mount,
            &self.resumed,
            &self.memory_bound,
            &self.leased,
            &self.lease_bound,
            &self.disk_free,
            &self.disk_min_free,
        ]
    }
}

fn remounts() -> Result<IntCounter, prometheus::Error> {
    IntCounter::new("warpdrive_mount_remounts_total", "Mounts made again after their holder died")
}

fn restarts() -> Result<IntCounter, prometheus::Error> {
    IntCounter::new(
        "warpdrive_worker_restarts_total",
        "How often the supervisor has started the worker again",
    )
}

/// A count that is kept elsewhere; made anew each time, for a counter is never set.
fn counted(made: Result<IntCounter, prometheus::Error>, count: u32) -> Vec<MetricFamily> {
    let Ok(counter) = made else { return Vec::new() };
    counter.inc_by(u64::from(count));
    counter.collect()
}

impl Collector for Standing {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Some(admin) = self.admin.upgrade() else { return Vec::new() };
        let governor = admin.assembly.cache.governor();
        let beside = governor.total_bytes().saturating_add(BESIDE_TRANSIT_BYTES);
        let bound = self.memory_tier_bytes.saturating_add(beside);
        self.ready.set(admin.readiness.is_ready().into());
        self.memory_bound.set(bound.cast_signed());
        self.leased.set(governor.leased_bytes().cast_signed());
        self.lease_bound.set(governor.total_bytes().cast_signed());
        let mut all = self.ready.collect();
        for gauge in [&self.memory_bound, &self.leased, &self.lease_bound] {
            all.extend(gauge.collect());
        }
        if let Some(view) = &admin.view {
            self.mount.set(view.lost().is_none().into());
            self.resumed.set(view.resumed().into());
            all.extend(self.mount.collect());
            all.extend(self.resumed.collect());
            all.extend(counted(remounts(), view.remounts()));
        }
        if let Some(count) = admin.restarts {
            all.extend(counted(restarts(), count));
        }
        if let Some(free) = admin.disk_free() {
            self.disk_free.set(free as f64);
            self.disk_min_free.set(admin.min_free_bytes as f64);
            all.extend(self.disk_free.collect());
            all.extend(self.disk_min_free.collect());
        }
        all
    }
}
