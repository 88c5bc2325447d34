//! How much is measured: sizes and times that fit the machine and the limits the user gave.
//!
//! Invariant: what is written never passes `--size`, half of the free disk, or what the page cache can
//! hold of it; only lengths shrink, never what is compared with what. It refuses machines where the
//! rest would say nothing.

use std::path::Path;
use std::time::Duration;

use super::data::{Item, items};
use super::halt::{During, Trouble};

pub(crate) const KIB: u64 = 1024;
pub(crate) const MIB: u64 = 1024 * KIB;
pub(crate) const GIB: u64 = 1024 * MIB;

/// Disk that a full run takes at most: the data at the origin, the plain copy, one cache, an upload.
pub(crate) const FULL_BYTES: u64 = 10 * GIB;
/// Below this many thousandths of a full run a sequential read lasts milliseconds and says nothing.
const SMALLEST_PERMILLE: u64 = 50;

/// Lengths and times of one run.
#[derive(Debug, Clone)]
pub(crate) struct Scale {
    /// Read sequentially and at random.
    pub(crate) big: Item,
    /// One for each of sixteen readers.
    pub(crate) many: Vec<Item>,
    /// Of 128 KiB.
    pub(crate) small: Vec<Item>,
    /// Of 1 KiB, 1 MiB and 8 MiB, for GETs.
    pub(crate) tiny: Vec<Item>,
    pub(crate) middle: Vec<Item>,
    pub(crate) large: Vec<Item>,
    /// Folders, and empty-looking files in each.
    pub(crate) tree: (usize, usize),
    /// Read in shuffled epochs.
    pub(crate) shuffled: Vec<Item>,
    pub(crate) epochs: usize,
    /// Written in parts.
    pub(crate) upload_bytes: u64,
    /// Reads of 4 KiB of a cold object.
    pub(crate) cold_reads: usize,
    /// One repetition of what is measured by time.
    pub(crate) slice: Duration,
    pub(crate) repetitions: usize,
    /// Kills of the worker.
    pub(crate) kills: usize,
    /// The sidecar's memory tier; peers get what they have by default.
    pub(crate) memory_bytes: u64,
}

impl Scale {
    /// Small sizes and one repetition: does everything work?
    pub(crate) fn quick() -> Self {
        Self::of(0, 1, Duration::from_millis(100))
    }

    /// The largest that fits.
    pub(crate) fn fitting(
        folder: &Path,
        limit_bytes: Option<u64>,
        repetitions: usize,
    ) -> Result<Self, Trouble> {
        let free = free_bytes(folder)?;
        let memory = available_memory();
        // The plain copy, a cache and the origin's files are to stay in the page cache together, with
        // as much again for everything else.
        let bounds = [limit_bytes.unwrap_or(FULL_BYTES), free / 2, memory.saturating_mul(2) / 3];
        let bytes = bounds.into_iter().min().unwrap_or(0);
        let permille = (bytes / (FULL_BYTES / 1000)).min(1000);
        if permille < SMALLEST_PERMILLE {
            let (need, mib) = (FULL_BYTES / 1000 * SMALLEST_PERMILLE / MIB, bytes / MIB);
            return Err(Trouble::Failed(format!(
                "{mib} MiB may be used ({} MiB free in {}, {} MiB of memory available); figures of less \
                 than {need} MiB say nothing; give --size, --dir or --quick",
                free / MIB,
                folder.display(),
                memory / MIB
            )));
        }
        Ok(Self::of(permille, repetitions, Duration::from_millis(700)))
    }

    fn of(permille: u64, repetitions: usize, slice: Duration) -> Self {
        let quick = permille == 0;
        // Whole MiB, so that blocks and parts are whole.
        let mib = |full: u64, least: u64| {
            (full * permille / 1000).max(if quick { least } else { full / 16 }) * MIB
        };
        let count = |full: usize, least: usize| {
            (full * permille as usize / 1000).max(if quick { least } else { full / 8 })
        };
        Self {
            big: Item { key: "big.bin".to_owned(), size: mib(1024, 16) },
            many: items("many", 16, mib(64, 1)),
            small: items("small", count(2000, 40), 128 * KIB),
            tiny: items("tiny", count(512, 32), KIB),
            middle: items("middle", count(128, 8), MIB),
            large: items("large", count(64, 2), 8 * MIB),
            tree: if quick { (5, 20) } else { (count(100, 5), 1000) },
            // Half of it must be a size that a cache may have.
            shuffled: items("shuffled", count(400, 128).max(128), MIB),
            epochs: if quick { 2 } else { 5 },
            upload_bytes: mib(1024, 24),
            cold_reads: if quick { 20 } else { 100 },
            slice,
            repetitions: repetitions.max(1),
            kills: if quick { 1 } else { 5 },
            memory_bytes: mib(768, 64).max(64 * MIB),
        }
    }

    /// What a mount is filled with before it is measured warm.
    pub(crate) fn files(&self) -> Vec<Item> {
        let big = std::iter::once(self.big.clone());
        big.chain(self.many.iter().cloned()).chain(self.small.iter().cloned()).collect()
    }

    /// What an endpoint is filled with.
    pub(crate) fn gets(&self) -> Vec<Item> {
        [&self.tiny, &self.small, &self.middle, &self.large]
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }

    /// Everything that the origin is given as objects; the small ones stand in two lists.
    pub(crate) fn objects(&self) -> Vec<Item> {
        let mut all = self.files();
        all.extend(self.gets().into_iter().filter(|item| !self.small.contains(item)));
        all.extend(self.shuffled.iter().cloned());
        all
    }

    /// For the report.
    pub(crate) fn facts(&self) -> Vec<(String, String)> {
        let size = |list: &[Item]| {
            let each = list.first().map_or(0, |item| item.size);
            format!("{} of {}", list.len(), size_text(each))
        };
        let fact = |name: &str, value: String| (name.to_owned(), value);
        vec![
            fact("big object", size_text(self.big.size)),
            fact("files of the readers", size(&self.many)),
            fact("small files", size(&self.small)),
            fact("objects of S3 GETs", {
                format!("{}; {}; {}", size(&self.tiny), size(&self.middle), size(&self.large))
            }),
            fact("tree", format!("{} folders of {} files", self.tree.0, self.tree.1)),
            fact("shuffled epochs", format!("{} of {}", self.epochs, size(&self.shuffled))),
            fact("memory tier of the sidecar", size_text(self.memory_bytes)),
        ]
    }
}

/// Bytes in the largest binary unit that leaves a whole number.
pub(crate) fn size_text(bytes: u64) -> String {
    for (unit, name) in [(GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")] {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{} {name}", bytes / unit);
        }
    }
    format!("{bytes} bytes")
}

/// What this user may still write where the folder is.
pub(crate) fn free_bytes(folder: &Path) -> Result<u64, Trouble> {
    let stat = rustix::fs::statvfs(folder).during(folder.display())?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// What the kernel would give without swapping; everything where it does not say.
fn available_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.map_or(u64::MAX, |kib| kib * KIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_run_stays_within_its_size() {
        let scale = Scale::of(1000, 3, Duration::from_secs(1));
        let total = |list: &[Item]| list.iter().map(|item| item.size).sum::<u64>();
        let origin = total(&scale.objects());
        let cache = total(&scale.files()).max(total(&scale.gets()));
        assert!(2 * origin + cache + scale.upload_bytes <= FULL_BYTES, "{}", origin / MIB);
    }

    #[test]
    fn sizes_shrink_with_the_share() {
        let half = Scale::of(500, 1, Duration::ZERO);
        assert_eq!((half.big.size, half.many[0].size), (512 * MIB, 32 * MIB));
        assert_eq!((half.many.len(), half.small.len()), (16, 1000));
        let quick = Scale::quick();
        let bytes: u64 = quick.objects().iter().map(|item| item.size).sum();
        assert!(bytes < 256 * MIB, "{}", bytes / MIB);
    }

    #[test]
    fn too_little_room_is_refused_with_the_reason() {
        let folder = std::env::temp_dir();
        let refused = Scale::fitting(&folder, Some(10 * MIB), 3).unwrap_err().to_string();
        assert!(refused.contains("10 MiB may be used") && refused.contains("--quick"), "{refused}");
    }

    #[test]
    fn sizes_are_written_in_whole_units() {
        let shown = [0, 1000, 4096, MIB + KIB, 3 * GIB].map(size_text);
        assert_eq!(shown, ["0 bytes", "1000 bytes", "4 KiB", "1025 KiB", "3 GiB"]);
    }
}
