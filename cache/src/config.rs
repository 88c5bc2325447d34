//! What a cache and an attached store can be told, as plain values with their defaults.
//!
//! Invariant: [`CacheConfig::checked`] is the only way in; it names every problem at once.

use std::path::PathBuf;
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// Smallest block: below this the per-block cost exceeds the bytes.
const MIN_BLOCK_BYTES: u64 = 512;

/// Largest block: a block is assembled in memory once for each fetch in flight.
const MAX_BLOCK_BYTES: u64 = 64 * MIB;

/// How large the cache is and how hard it may pull.
#[derive(Debug, Clone)]
pub struct CacheConfig {
    /// Bytes of blocks in memory.
    pub memory_bytes: u64,
    /// The NVMe tier; `None` keeps everything in memory.
    pub disk: Option<DiskConfig>,
    /// Bytes of a block, the unit of caching. A random read of a cold object costs one block; a
    /// sequential read merges blocks up to `max_fetch_bytes`, so small blocks cost it nothing.
    pub block_bytes: u64,
    /// Bytes of a grain, the unit of small reads that belong to no sequence: such a read fetches at most
    /// four grains or twice what it asks for. Must divide a block; where it does not, or is 0, every read
    /// fetches whole blocks.
    pub grain_bytes: u64,
    /// Ranged GETs in flight at once, of each store: one that hangs takes none from the others. Prefetching may never hold them all.
    pub max_parallel_fetch: usize,
    /// Largest ranged GET that neighbouring missing blocks are merged into.
    pub max_fetch_bytes: u64,
    /// Blocks that the first prefetch of a sequential reader asks for at least; the window grows to four
    /// times what has been read in sequence. `0` turns prefetching off.
    pub readahead_blocks: usize,
    /// Bytes that prefetching may have in flight, of all readers together.
    pub prefetch_budget_bytes: u64,
    /// Objects, known to exist or not to, whose metadata is kept for each store.
    pub metadata_entries: usize,
    /// Listed objects in cached pages of listings for each store.
    pub listed_entries: usize,
    /// How long a fetch that a reader waits for waits for a disk that is slower than the origin, before
    /// its block is kept in memory only and counted as dropped. Zero never slows a reader; the cache
    /// then fills at the disk's pace over several reads. What is warmed on purpose waits regardless.
    pub fill_patience: Duration,
    /// Bytes that may be in no tier at a time: fetches on their way, what is fetched ahead, bodies of
    /// answers that wait for their readers, bodies of uploads. A quarter is kept for what readers wait
    /// for. At least four times `max_fetch_bytes`, whatever is said here.
    pub transit_bytes: u64,
    /// A file that uses of objects are recorded in, for [`crate::simulate`]; one that is there is replaced.
    pub trace: Option<PathBuf>,
}

impl Default for CacheConfig {
    /// 512 MiB of memory, no disk, blocks of 1 MiB merged up to 8 MiB, 16 fetches at once.
    fn default() -> Self {
        Self {
            memory_bytes: 512 * MIB,
            disk: None,
            block_bytes: MIB,
            // Four of them cost an object store no more than one byte does.
            grain_bytes: 16 << 10,
            max_parallel_fetch: 16,
            max_fetch_bytes: 8 * MIB,
            readahead_blocks: 4,
            prefetch_budget_bytes: 128 * MIB,
            // About 400 bytes each: 80 MiB when full.
            metadata_entries: 200_000,
            // Pages share their keys with the metadata: about 100 bytes each.
            listed_entries: 100_000,
            // Long enough for any burst, short enough that a disk that hangs is not waited for twice.
            fill_patience: Duration::from_secs(5),
            // Twenty merged GETs: more than a fast link has in flight, with the read-ahead of a few readers.
            transit_bytes: 160 * MIB,
            trace: None,
        }
    }
}

/// The NVMe tier.
#[derive(Debug, Clone)]
pub struct DiskConfig {
    /// A directory of its own; created where missing.
    pub path: PathBuf,
    /// Bytes that the tier may occupy.
    pub capacity_bytes: u64,
    /// Fraction of the capacity at which eviction begins. Eviction is continuous and takes the
    /// oldest fill first, so it also ends here.
    pub high_water: f64,
    /// Fraction of the capacity at which an eviction of files ends. Blocks are evicted group by group
    /// at the high water.
    pub low_water: f64,
    /// Bytes of the file system that stay free, whatever `capacity_bytes` allows.
    pub min_free_bytes: u64,
    /// The largest fraction of the capacity that blocks may take; files get what blocks do not use.
    pub block_share: f64,
    /// Whole objects as plain files.
    pub files: FilesConfig,
}

impl DiskConfig {
    /// A tier in a directory, with water marks of 0.90 and 0.80, 1 GiB of the file system left free, at
    /// most a quarter for blocks, and files.
    pub fn new(path: impl Into<PathBuf>, capacity_bytes: u64) -> Self {
        Self {
            path: path.into(),
            capacity_bytes,
            high_water: 0.90,
            low_water: 0.80,
            // What a node needs to go on working: logs, image pulls.
            min_free_bytes: 1 << 30,
            // Footers, headers and random reads are a small part of what training reads.
            block_share: 0.25,
            files: FilesConfig::default(),
        }
    }
}

/// Which objects are kept as plain files, at their true offsets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesConfig {
    /// False keeps everything in blocks.
    pub enabled: bool,
    /// Objects below this stay blocks: a file of their own gains them nothing.
    pub min_object_bytes: u64,
    /// An object that was not read from its start on becomes a file once a reader has read this many
    /// bytes of it in sequence.
    pub sequential_bytes: u64,
    /// True writes whole blocks of large objects past the page cache: a cold read costs much less CPU
    /// where fresh pages are dear, and the first warm one comes from the disk, in smaller pages.
    pub direct_writes: bool,
    /// Bytes a second that the scrubber reads to verify what lies there; 0 turns it off.
    pub scrub_bytes_per_second: u64,
}

impl Default for FilesConfig {
    /// Objects of 64 KiB and more, after 8 MiB in sequence, verified at 16 MiB a second.
    fn default() -> Self {
        Self {
            enabled: true,
            min_object_bytes: 64 << 10,
            sequential_bytes: 8 * MIB,
            // Hot reads are up to three times as fast in the large pages that large writes leave.
            direct_writes: false,
            // A terabyte in 18 hours, at a hundredth of what an NVMe gives.
            scrub_bytes_per_second: 16 * MIB,
        }
    }
}

/// Whether what is resident makes room for what is new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Retention {
    /// Decided from the accesses, for each data set.
    #[default]
    Auto,
    /// What is resident stays; new objects are admitted into free space only.
    Keep,
    /// New objects displace those that are worth less.
    Evict,
}

/// Which objects never change once written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Immutable {
    /// None is known not to.
    #[default]
    No,
    /// All of them.
    All,
    /// Those whose keys begin with one of these.
    Prefixes(Vec<String>),
}

impl Immutable {
    /// True where this key's object never changes.
    pub(crate) fn holds(&self, key: &str) -> bool {
        match self {
            Self::No => false,
            Self::All => true,
            Self::Prefixes(prefixes) => prefixes.iter().any(|p| key.starts_with(p.as_str())),
        }
    }
}

/// How long what is known of one store's objects may be used.
#[derive(Debug, Clone)]
pub struct StorePolicy {
    /// Metadata and listings are used this long without asking the origin.
    pub stale_ttl: Duration,
    /// How long past `stale_ttl` they go on being used while the origin gives no answer. Zero
    /// refuses.
    pub stale_if_error: Duration,
    /// Which objects are never asked about again.
    pub immutable: Immutable,
    /// How long an object that was not there is taken not to be there.
    pub negative_ttl: Duration,
    /// Whether this store's objects make room for new ones.
    pub retention: Retention,
}

impl Default for StorePolicy {
    /// 60 s, one hour in an outage, 5 s for what is not there, nothing immutable.
    fn default() -> Self {
        Self {
            stale_ttl: Duration::from_mins(1),
            stale_if_error: Duration::from_hours(1),
            immutable: Immutable::No,
            negative_ttl: Duration::from_secs(5),
            retention: Retention::Auto,
        }
    }
}

impl CacheConfig {
    /// The same configuration, or every reason why it cannot work.
    pub(crate) fn checked(mut self) -> Result<Self, String> {
        let mut problems = Vec::new();
        if !(MIN_BLOCK_BYTES..=MAX_BLOCK_BYTES).contains(&self.block_bytes) {
            problems.push(format!(
                "block size of {} bytes is not within {MIN_BLOCK_BYTES} and {MAX_BLOCK_BYTES}",
                self.block_bytes
            ));
        }
        if self.max_parallel_fetch == 0 {
            problems.push("parallel fetches must be at least 1".to_owned());
        }
        if self.memory_bytes < self.block_bytes {
            problems.push(format!(
                "memory of {} bytes holds no block of {} bytes",
                self.memory_bytes, self.block_bytes
            ));
        }
        if let Some(disk) = &self.disk
            && !(disk.high_water > 0.0 && disk.high_water <= 1.0)
        {
            problems.push(format!("high water {} is not within 0 and 1", disk.high_water));
        }
        if let Some(disk) = &self.disk
            && !(0.0..=1.0).contains(&disk.block_share)
        {
            problems.push(format!("block share {} is not within 0 and 1", disk.block_share));
        }
        if !problems.is_empty() {
            return Err(problems.join("; "));
        }
        self.max_fetch_bytes = self.max_fetch_bytes.max(self.block_bytes);
        // One merged GET for those who wait, one for those who do not, one ahead, one for uploads.
        self.transit_bytes = self.transit_bytes.max(self.max_fetch_bytes.saturating_mul(4));
        self.metadata_entries = self.metadata_entries.max(1);
        Ok(self)
    }

    /// Blocks in the largest merged fetch.
    pub(crate) fn fetch_blocks(&self) -> u32 {
        (self.max_fetch_bytes / self.block_bytes).clamp(1, 1 << 16) as u32
    }
}
