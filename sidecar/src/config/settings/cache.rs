//! The `cache` section.
//!
//! Invariant: every number here is one that the cache can be opened with.

use std::path::PathBuf;
use std::time::Duration;

use cache::{FilesConfig, Retention};

use crate::config::problem::Problems;
use crate::config::size::ByteSize;
use crate::config::typed::{TypedCache, TypedFiles};
use crate::config::yaml::At;

/// Memory, disk and fetching.
#[derive(Debug, Clone, PartialEq)]
pub struct CacheSettings {
    /// The memory tier.
    pub memory_bytes: u64,
    /// The disk tier's directory and capacity; `None` keeps everything in memory.
    pub disk: Option<(PathBuf, u64)>,
    /// Size of a block.
    pub block_bytes: u64,
    /// Blocks that sequential readers are kept ahead of at first.
    pub readahead_blocks: u64,
    /// Requests to all origins together that fill the cache at once.
    pub max_parallel_fetch: usize,
    /// Largest request that neighbouring misses are merged into.
    pub max_fetch_bytes: u64,
    /// How long metadata is believed without asking the origin.
    pub stale_ttl: Duration,
    /// How long it is believed that an object is not there.
    pub negative_ttl: Duration,
    /// How long past `stale_ttl` cached data is served while the origin cannot be reached.
    pub stale_if_error: Duration,
    /// Share of the disk's capacity at which eviction begins.
    pub evict_high_water: f64,
    /// Share of the disk's capacity at which eviction ends.
    pub evict_low_water: f64,
    /// What stays free of the file system under the disk tier.
    pub min_free_bytes: u64,
    /// Largest share of the capacity that blocks take.
    pub block_share: f64,
    /// Which objects become plain files.
    pub files: FilesConfig,
    /// Whether what is resident makes room, for origins that do not say it themselves.
    pub retention: Retention,
    /// Where accesses are recorded for `warpdrive simulate`; `None` records nothing.
    pub trace: Option<PathBuf>,
    /// Bound on the memory of the tier and of everything in flight together; `None` leaves it to
    /// the cache.
    pub memory_limit_bytes: Option<u64>,
}

/// Enough for the working set of one node's metadata, footers and read-ahead; small beside a trainer.
const DEFAULT_MEMORY: ByteSize = ByteSize::mib(256);
/// What a training node can spare as a rule; every example sets it.
const DEFAULT_DISK: ByteSize = ByteSize(50_000_000_000);
/// Small enough that a footer read fetches little, large enough that NVMe runs at full speed.
const DEFAULT_BLOCK: ByteSize = ByteSize::mib(1);
/// Eight blocks: a request that a cloud answers at full speed of a connection.
const DEFAULT_FETCH: ByteSize = ByteSize::mib(8);
/// What fetches and bodies in flight need at the least beside the memory tier.
const BESIDE_MEMORY: ByteSize = ByteSize::mib(160);
/// Short: a missing object is often one that is about to be written.
const DEFAULT_NEGATIVE_TTL: Duration = Duration::from_secs(5);

pub(crate) fn validate(
    typed: TypedCache,
    notes: &mut Vec<String>,
    problems: &mut Problems,
) -> CacheSettings {
    let at = At::root().key("cache");
    if let (Some(path), Some(dir)) = (&typed.path, &typed.dir)
        && path != dir
    {
        problems.add(at.key("dir"), "is another name of cache.path", "keep one of the two");
    }
    let path = typed.path.or(typed.dir).map(PathBuf::from);
    if let Some(path) = &path
        && !path.is_absolute()
    {
        let what = format!("`{}` is not an absolute path", path.display());
        problems.add(at.key("path"), what, "write the whole path, such as /var/cache/warpdrive");
    }
    if path.is_none() && typed.max_size.is_some() {
        notes.push(
            "cache.max_size: has no effect without cache.path; the cache is in memory".into(),
        );
    }
    let between = |name: &str, value: u64, low: u64, high: u64, problems: &mut Problems| {
        if !(low..=high).contains(&value) {
            let (low, high) = (ByteSize(low), ByteSize(high));
            problems.add(
                at.key(name),
                format!("{} is out of range", ByteSize(value)),
                format!("write a size from {low} to {high}"),
            );
        }
        value
    };
    let mib = |n: u64| ByteSize::mib(n).0;
    let block_bytes = typed.block_size.unwrap_or(DEFAULT_BLOCK).0;
    // Below 64 KiB the index outweighs the blocks; above 64 MiB a footer read costs seconds.
    between("block_size", block_bytes, 64 << 10, mib(64), problems);
    if !block_bytes.is_multiple_of(4096) {
        problems.add(
            at.key("block_size"),
            format!("{} is not a multiple of 4 KiB", ByteSize(block_bytes)),
            "write a binary size such as 1MiB or 4MiB",
        );
    }
    let memory_bytes = typed.memory.unwrap_or(DEFAULT_MEMORY).0;
    // Sixteen of the default blocks: less cannot even hold what is on its way to readers.
    between("memory", memory_bytes, mib(16).max(block_bytes.saturating_mul(4)), 1 << 46, problems);
    let capacity = typed.max_size.unwrap_or(DEFAULT_DISK).0;
    between("max_size", capacity, mib(64).max(block_bytes.saturating_mul(16)), 1 << 50, problems);
    let max_fetch_bytes = typed.max_fetch_size.map_or(DEFAULT_FETCH.0.max(block_bytes), |s| s.0);
    between("max_fetch_size", max_fetch_bytes, block_bytes, mib(256), problems);
    let max_parallel_fetch = typed.max_parallel_fetch.unwrap_or(16);
    if !(1..=1024).contains(&max_parallel_fetch) {
        let what = format!("{max_parallel_fetch} is out of range");
        problems.add(at.key("max_parallel_fetch"), what, "write 1 to 1024");
    }
    let readahead_blocks = typed.readahead_blocks.unwrap_or(4);
    if readahead_blocks > 1024 {
        let what = format!("{readahead_blocks} is out of range");
        problems.add(at.key("readahead_blocks"), what, "write 0 (none) to 1024");
    }
    let high = typed.evict_high_water.unwrap_or(0.90);
    let low = typed.evict_low_water.unwrap_or(0.80);
    for (name, mark) in [("evict_high_water", high), ("evict_low_water", low)] {
        if !(mark > 0.0 && mark <= 1.0) {
            problems.add(at.key(name), format!("{mark} is not a share"), "write 0.01 to 1.0");
        }
    }
    if low >= high {
        problems.add(
            at.key("evict_low_water"),
            format!("{low} is not below evict_high_water {high}"),
            "write a lower one, such as 0.80 below 0.90",
        );
    }
    let disk = cache::DiskConfig::new("", 0);
    let min_free_bytes = typed.min_free.map_or(disk.min_free_bytes, |size| size.0);
    let block_share = typed.block_share.unwrap_or(disk.block_share);
    if !(0.01..=1.0).contains(&block_share) {
        let what = format!("{block_share} is not a share");
        problems.add(at.key("block_share"), what, "write 0.01 to 1.0");
    }
    let retention = typed.retention.as_deref();
    let retention = self::retention(retention, &at.key("retention"), problems);
    let trace = trace(typed.trace, &at, problems);
    let memory_limit_bytes = memory_limit(typed.memory_limit, memory_bytes, &at, problems);
    CacheSettings {
        memory_bytes,
        disk: path.map(|path| (path, capacity)),
        block_bytes,
        readahead_blocks,
        max_parallel_fetch: max_parallel_fetch as usize,
        max_fetch_bytes,
        stale_ttl: typed.stale_ttl.unwrap_or(Duration::from_mins(1)),
        negative_ttl: typed.negative_ttl.unwrap_or(DEFAULT_NEGATIVE_TTL),
        stale_if_error: typed.stale_if_error.unwrap_or(Duration::from_hours(1)),
        evict_high_water: high,
        evict_low_water: low,
        min_free_bytes,
        block_share,
        files: files(&typed.files.unwrap_or_default()),
        retention: retention.unwrap_or_default(),
        trace,
        memory_limit_bytes,
    }
}

fn trace(typed: Option<String>, at: &At, problems: &mut Problems) -> Option<PathBuf> {
    let trace = PathBuf::from(typed?);
    if !trace.is_absolute() {
        let what = format!("`{}` is not an absolute path", trace.display());
        problems.add(at.key("trace"), what, "write the whole path of a file, such as /tmp/trace");
    }
    Some(trace)
}

/// A bound that leaves room beside the memory tier.
fn memory_limit(
    typed: Option<ByteSize>,
    memory_bytes: u64,
    at: &At,
    problems: &mut Problems,
) -> Option<u64> {
    let limit = typed?.0;
    let least = memory_bytes.saturating_add(BESIDE_MEMORY.0);
    if limit < least {
        let what = format!("leaves less than {BESIDE_MEMORY} beside cache.memory");
        let fix = format!("write {} or more, or a smaller cache.memory", ByteSize(least));
        problems.add(at.key("memory_limit"), what, fix);
    }
    Some(limit)
}

/// Every size is one that a file tier can have.
fn files(typed: &TypedFiles) -> FilesConfig {
    let default = FilesConfig::default();
    let bytes = |given: Option<ByteSize>, default: u64| given.map_or(default, |size| size.0);
    FilesConfig {
        enabled: typed.enabled.unwrap_or(default.enabled),
        min_object_bytes: bytes(typed.min_size, default.min_object_bytes),
        sequential_bytes: bytes(typed.sequential_after, default.sequential_bytes),
        direct_writes: typed.direct_writes.unwrap_or(default.direct_writes),
        scrub_bytes_per_second: bytes(typed.scrub_rate, default.scrub_bytes_per_second),
    }
}

/// What `auto`, `keep` and `evict` mean; `None` where nothing was said, or nothing usable.
pub(super) fn retention(
    typed: Option<&str>,
    at: &At,
    problems: &mut Problems,
) -> Option<Retention> {
    match typed? {
        "auto" => Some(Retention::Auto),
        "keep" => Some(Retention::Keep),
        "evict" => Some(Retention::Evict),
        other => {
            let what = format!("`{other}` is not a way to keep objects");
            problems.add(at, what, "write auto, keep or evict");
            None
        }
    }
}
