//! From settings to parts that are wired to each other: registry, cache, origins, namespace.
//!
//! Invariant: one registry and one cache a process; each origin is behind the cache exactly once,
//! however many bucket names it has. No origin is contacted here, so one that is down does not
//! keep the others from being served.

mod later;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use cache::{Cache, CacheConfig, CachedStore, DiskConfig, Immutable, Retention, StorePolicy};
use prometheus::Registry;
use store::{Bucket, BucketName, Namespace};

use crate::config::{BackendSettings, CacheSettings, Freshness, Settings};
use crate::metrics::Metrics;
pub(crate) use later::OpenedOrigin;

/// What a sidecar is made of, below its front ends.
pub(crate) struct Assembly {
    /// Every series of this process.
    pub(crate) registry: Registry,
    /// The sidecar's own series.
    pub(crate) metrics: Metrics,
    /// The cache that all origins share.
    pub(crate) cache: Arc<Cache>,
    /// The origins, in the file's order.
    pub(crate) origins: Vec<Origin>,
    /// What both front ends show.
    pub(crate) namespace: Arc<Namespace>,
    /// Bucket names and the positions of their origins.
    pub(crate) buckets: BTreeMap<BucketName, usize>,
}

/// One origin behind the cache.
pub(crate) struct Origin {
    /// What the file says of it.
    pub(crate) settings: BackendSettings,
    /// The origin itself, for its health.
    pub(crate) opened: OpenedOrigin,
    /// The origin as everyone reads it.
    pub(crate) store: Arc<CachedStore>,
}

/// Why the parts could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AssemblyError {
    /// The cache cannot be opened.
    #[error("cache: {0}")]
    Cache(#[from] cache::OpenError),
    /// An origin's settings cannot be used.
    #[error("backend `{0}`: {1}")]
    Origin(BucketName, store::Error),
    /// Names or paths collide. Validation has excluded it.
    #[error(transparent)]
    Namespace(#[from] store::InvalidNamespace),
    /// A series was registered twice.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

impl Assembly {
    /// Opens everything below the front ends.
    pub(crate) async fn open(settings: &Settings) -> Result<Self, AssemblyError> {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry)?;
        let cache_metrics = cache::Metrics::register(&registry)?;
        let backend_metrics = backends::Metrics::register(&registry)?;
        let cache = Cache::open(cache_config(&settings.cache), cache_metrics).await?;
        let mut origins = Vec::with_capacity(settings.backends.len());
        for backend in &settings.backends {
            let name = &backend.name;
            let opened = OpenedOrigin::open(backend, &backend_metrics).await;
            let status = if opened.is_ok() { "success" } else { "failure" };
            metrics.auth_refresh.with_label_values(&[backend.kind, status]).inc();
            let opened = opened.map_err(|error| AssemblyError::Origin(name.clone(), error))?;
            let store = cache.attach(
                name.as_str(),
                opened.identity(),
                opened.store(),
                policy(&backend.freshness, backend.retention),
            );
            origins.push(Origin { settings: backend.clone(), opened, store });
        }
        let buckets = bucket_names(settings);
        let namespace = namespace(&origins, &buckets)?;
        Ok(Self { registry, metrics, cache, origins, namespace: Arc::new(namespace), buckets })
    }

    /// The buckets of the endpoint that show an origin, by its position.
    pub(crate) fn bucket_names(&self, index: usize) -> impl Iterator<Item = &str> {
        let names = self.buckets.iter().filter(move |(_, at)| **at == index);
        names.map(|(name, _)| name.as_str())
    }

    /// The origin that a bucket of the endpoint, or a backend of the file, names.
    pub(crate) fn origin(&self, name: &str) -> Option<&Origin> {
        let by_bucket = self.buckets.get(name).and_then(|index| self.origins.get(*index));
        by_bucket.or_else(|| self.origins.iter().find(|o| o.settings.name.as_str() == name))
    }
}

/// Aliases and names of the endpoint; the backends' own names where there is no endpoint.
fn bucket_names(settings: &Settings) -> BTreeMap<BucketName, usize> {
    let position = |name: &BucketName| settings.backends.iter().position(|b| b.name == *name);
    match &settings.s3 {
        Some(s3) => {
            let named = s3.buckets.iter();
            named.filter_map(|(alias, name)| Some((alias.clone(), position(name)?))).collect()
        }
        None => settings.backends.iter().enumerate().map(|(i, b)| (b.name.clone(), i)).collect(),
    }
}

fn namespace(
    origins: &[Origin],
    buckets: &BTreeMap<BucketName, usize>,
) -> Result<Namespace, store::InvalidNamespace> {
    let created = SystemTime::now();
    let mut builder = Namespace::builder();
    for (name, index) in buckets {
        let origin = &origins[*index];
        builder = builder.bucket(Bucket {
            name: name.clone(),
            store: origin.store.clone(),
            residency: Some(origin.store.clone()),
            read_only: origin.settings.read_only,
            created,
        })?;
    }
    for (index, origin) in origins.iter().enumerate() {
        // Any of its names will do: they are one store.
        let Some((name, _)) = buckets.iter().find(|(_, at)| **at == index) else { continue };
        builder = builder.mount(&origin.settings.mount_path, name, "")?;
    }
    Ok(builder.build())
}

/// What a process has besides its memory tier and what is on its way: code, tables of objects and names,
/// buffers of the block tier.
pub(crate) const BESIDE_TRANSIT_BYTES: u64 = 96 << 20;

fn cache_config(settings: &CacheSettings) -> CacheConfig {
    let default = CacheConfig::default();
    CacheConfig {
        memory_bytes: settings.memory_bytes,
        disk: settings.disk.as_ref().map(|(path, capacity)| DiskConfig {
            high_water: settings.evict_high_water,
            low_water: settings.evict_low_water,
            min_free_bytes: settings.min_free_bytes,
            block_share: block_share(settings, *capacity),
            files: settings.files.clone(),
            ..DiskConfig::new(path, *capacity)
        }),
        block_bytes: settings.block_bytes,
        max_parallel_fetch: settings.max_parallel_fetch,
        max_fetch_bytes: settings.max_fetch_bytes,
        readahead_blocks: settings.readahead_blocks as usize,
        trace: settings.trace.clone(),
        transit_bytes: settings.memory_limit_bytes.map_or(default.transit_bytes, |limit| {
            limit.saturating_sub(settings.memory_bytes).saturating_sub(BESIDE_TRANSIT_BYTES)
        }),
        ..default
    }
}

/// A share that the block tier can work with, also of a small cache: it writes groups of blocks, and
/// evicts them group by group.
fn block_share(settings: &CacheSettings, capacity_bytes: u64) -> f64 {
    /// Twice what the tier refuses to begin with.
    const LEAST_BLOCKS: u64 = 32;
    let least = settings.block_bytes.saturating_mul(LEAST_BLOCKS);
    (least as f64 / capacity_bytes.max(1) as f64).min(1.0).max(settings.block_share)
}

fn policy(freshness: &Freshness, retention: Retention) -> StorePolicy {
    StorePolicy {
        stale_ttl: freshness.stale_ttl,
        stale_if_error: freshness.stale_if_error,
        negative_ttl: freshness.negative_ttl,
        retention,
        immutable: if freshness.immutable {
            Immutable::All
        } else if freshness.immutable_prefixes.is_empty() {
            Immutable::No
        } else {
            Immutable::Prefixes(freshness.immutable_prefixes.clone())
        },
    }
}
