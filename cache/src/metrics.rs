//! Every number that the cache counts.
//!
//! Invariant: registered once and handed in, no statics; labels are tiers, reasons and results,
//! never keys. The statistics that people read are these same counters.

use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

/// The cache's metrics; its clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(crate) hits: IntCounter,
    pub(crate) misses: IntCounter,
    pub(crate) memory_hits: IntCounter,
    pub(crate) disk_hits: IntCounter,
    pub(crate) file_hits: IntCounter,
    pub(crate) file_fallbacks: IntCounter,
    pub(crate) size: IntGauge,
    pub(crate) utilization: Gauge,
    pub(crate) evictions: IntCounter,
    pub(crate) memory_evictions: IntCounter,
    pub(crate) disk_evictions: IntCounter,
    pub(crate) tier_size: IntGaugeVec,
    pub(crate) tier_up: IntGaugeVec,
    pub(crate) dropped: IntCounterVec,
    pub(crate) disk_filled: IntCounter,
    pub(crate) bad_blocks: IntCounter,
    pub(crate) fetches: IntCounter,
    pub(crate) fetched_bytes: IntCounter,
    pub(crate) fetch_failures: IntCounterVec,
    pub(crate) fetch_retries: IntCounter,
    pub(crate) fetching: IntGauge,
    pub(crate) joins: IntCounter,
    pub(crate) waited: Histogram,
    pub(crate) prefetched_bytes: IntCounter,
    pub(crate) readahead_hits: IntCounter,
    pub(crate) readahead_wasted: IntCounter,
    pub(crate) prefetch_in_flight: IntGauge,
    pub(crate) stale_served: IntCounter,
    pub(crate) revalidations: IntCounterVec,
    pub(crate) metadata_hits: IntCounter,
    pub(crate) metadata_misses: IntCounter,
    pub(crate) list_hits: IntCounter,
    pub(crate) list_misses: IntCounter,
    pub(crate) file_size: IntGauge,
    pub(crate) file_capacity: IntGauge,
    pub(crate) files: IntGauge,
    pub(crate) file_parts: IntGauge,
    pub(crate) file_published: IntCounter,
    pub(crate) file_written: IntCounter,
    pub(crate) file_promoted: IntCounter,
    pub(crate) file_evictions: IntCounter,
    pub(crate) file_refused: IntCounterVec,
    pub(crate) file_bad: IntCounter,
    pub(crate) file_suspects: IntCounter,
    pub(crate) file_scrubbed: IntCounter,
    pub(crate) file_opens: IntCounter,
    pub(crate) file_swept: IntCounter,
    pub(crate) file_compactions: IntCounter,
}

impl Metrics {
    /// Registers every series. An error means that a name is already taken in this registry.
    #[allow(clippy::too_many_lines)] // A table of names and help texts.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let gauge = |name: &str, help: &str| -> Result<IntGauge, prometheus::Error> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let counters = |name: &str, help: &str, label: &str| {
            let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(counters.clone()))?;
            Ok::<_, prometheus::Error>(counters)
        };
        let gauges = |name: &str, help: &str, label: &str| {
            let gauges = IntGaugeVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(gauges.clone()))?;
            Ok::<_, prometheus::Error>(gauges)
        };
        let tier_hits = counters(
            "warpdrive_cache_tier_hit_total",
            "Blocks that readers found in each tier",
            "tier",
        )?;
        let tier_evictions = counters(
            "warpdrive_cache_tier_evictions_total",
            "Evictions of each tier: blocks from memory, groups of blocks from disk",
            "tier",
        )?;
        let utilization = Gauge::new(
            "warpdrive_cache_utilization_ratio",
            "Size over capacity of the largest tier that is in use",
        )?;
        registry.register(Box::new(utilization.clone()))?;
        let waited = Histogram::with_opts(
            HistogramOpts::new(
                "warpdrive_cache_wait_seconds",
                "Time that readers waited for a block that was not in memory",
            )
            // From a read of a local disk to an origin that hangs.
            .buckets(vec![0.0002, 0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0]),
        )?;
        registry.register(Box::new(waited.clone()))?;
        Ok(Self {
            hits: counter("warpdrive_cache_hit_total", "Blocks that readers found in the cache")?,
            misses: counter(
                "warpdrive_cache_miss_total",
                "Blocks that readers needed from the origin",
            )?,
            memory_hits: tier_hits.with_label_values(&["memory"]),
            disk_hits: tier_hits.with_label_values(&["disk"]),
            file_hits: tier_hits.with_label_values(&["files"]),
            file_fallbacks: counter(
                "warpdrive_cache_file_fallbacks_total",
                "Bodies that went on without the file that they were read from",
            )?,
            size: gauge("warpdrive_cache_size_bytes", "Bytes in the largest tier that is in use")?,
            utilization,
            evictions: counter("warpdrive_cache_evictions_total", "Evictions of all tiers")?,
            memory_evictions: tier_evictions.with_label_values(&["memory"]),
            disk_evictions: tier_evictions.with_label_values(&["disk"]),
            tier_size: gauges("warpdrive_cache_tier_size_bytes", "Bytes in each tier", "tier")?,
            tier_up: gauges(
                "warpdrive_cache_tier_up",
                "1 where a tier takes and serves blocks, 0 where it is configured and does not",
                "tier",
            )?,
            dropped: counters(
                "warpdrive_cache_dropped_total",
                "Blocks that could not be written to the disk tier",
                "reason",
            )?,
            disk_filled: counter(
                "warpdrive_cache_disk_fill_bytes_total",
                "Bytes written to the disk tier and found there afterwards",
            )?,
            bad_blocks: counter(
                "warpdrive_cache_bad_blocks_total",
                "Blocks of the disk tier that could not be read or had a wrong checksum",
            )?,
            fetches: counter("warpdrive_cache_fetch_total", "Ranged GETs sent to origins")?,
            fetched_bytes: counter(
                "warpdrive_cache_fetch_bytes_total",
                "Bytes of blocks received from origins",
            )?,
            fetch_failures: counters(
                "warpdrive_cache_fetch_errors_total",
                "Fetches that failed for good",
                "kind",
            )?,
            fetch_retries: counter(
                "warpdrive_cache_fetch_retries_total",
                "Ranged GETs sent again because a body was cut, too short, too long or wrong",
            )?,
            fetching: gauge("warpdrive_cache_fetch_in_flight", "Ranged GETs in flight")?,
            joins: counter(
                "warpdrive_cache_single_flight_joins_total",
                "Blocks that a reader got from a fetch that another had begun",
            )?,
            waited,
            prefetched_bytes: counter(
                "warpdrive_readahead_bytes_total",
                "Bytes that were fetched before a reader asked for them",
            )?,
            readahead_hits: counter(
                "warpdrive_readahead_hit_total",
                "Prefetched blocks that a reader then read",
            )?,
            readahead_wasted: counter(
                "warpdrive_readahead_wasted_total",
                "Prefetched blocks that no reader read before they were forgotten",
            )?,
            prefetch_in_flight: gauge(
                "warpdrive_readahead_in_flight_bytes",
                "Bytes of prefetches in flight",
            )?,
            stale_served: counter(
                "warpdrive_cache_stale_served_total",
                "Answers given from expired metadata because the origin gave none",
            )?,
            revalidations: counters(
                "warpdrive_cache_revalidations_total",
                "HEAD requests for expired metadata",
                "result",
            )?,
            metadata_hits: counter(
                "warpdrive_cache_metadata_hit_total",
                "Look-ups of metadata that asked the origin nothing",
            )?,
            metadata_misses: counter(
                "warpdrive_cache_metadata_miss_total",
                "Look-ups of metadata that waited for the origin",
            )?,
            list_hits: counter("warpdrive_cache_list_hit_total", "Listing pages from the cache")?,
            list_misses: counter(
                "warpdrive_cache_list_miss_total",
                "Listing pages from the origin",
            )?,
            file_size: gauge("warpdrive_cache_file_bytes", "Bytes of files and parts on disk")?,
            file_capacity: gauge(
                "warpdrive_cache_file_capacity_bytes",
                "Bytes that files may take now: the high water less what blocks take",
            )?,
            files: gauge("warpdrive_cache_files", "Objects that lie whole as files")?,
            file_parts: gauge("warpdrive_cache_file_parts", "Objects that are becoming files")?,
            file_published: counter(
                "warpdrive_cache_file_published_total",
                "Objects that became files",
            )?,
            file_written: counter(
                "warpdrive_cache_file_written_bytes_total",
                "Bytes written to files",
            )?,
            file_promoted: counter(
                "warpdrive_cache_file_promoted_bytes_total",
                "Bytes copied into files from blocks that were here already",
            )?,
            file_evictions: tier_evictions.with_label_values(&["files"]),
            file_refused: counters(
                "warpdrive_cache_file_refused_total",
                "Objects that did not become files",
                "reason",
            )?,
            file_bad: counter(
                "warpdrive_cache_file_bad_total",
                "Files that did not hold what they should and were removed",
            )?,
            file_suspects: counter(
                "warpdrive_cache_file_suspect_total",
                "Files that were verified because of a doubt",
            )?,
            file_scrubbed: counter(
                "warpdrive_cache_file_scrubbed_bytes_total",
                "Bytes of files that the scrubber verified",
            )?,
            file_opens: counter(
                "warpdrive_cache_file_opens_total",
                "Files and parts opened by the cache",
            )?,
            file_swept: counter(
                "warpdrive_cache_file_swept_total",
                "Files removed because the journal did not name them",
            )?,
            file_compactions: counter(
                "warpdrive_cache_file_journal_compactions_total",
                "Times that the journal of files was written anew",
            )?,
        })
    }

    /// A labelled family as people read it.
    pub(crate) fn by_label(family: &IntCounterVec) -> std::collections::BTreeMap<String, u64> {
        use prometheus::core::Collector;
        let mut out = std::collections::BTreeMap::new();
        for family in family.collect() {
            for metric in family.get_metric() {
                let label = metric.get_label().first().map(|l| l.value().to_owned());
                #[allow(clippy::cast_sign_loss)] // Counters do not go down.
                out.insert(label.unwrap_or_default(), metric.get_counter().get_value() as u64);
            }
        }
        out
    }
}
