//! How files are read: the loops that are the same for the plain copy and for every mount.
//!
//! Invariant: a short file is an error, never a fast read. Loops ask [`Halt`] between operations.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};

use super::data::{Dice, Item};
use super::halt::{During, Halt, Trouble};
use super::mapping::Mapping;
use super::origin::joined;
use super::scale::{GIB, MIB};

/// Of a sequential reader, and of one that fills a cache.
const READ_BYTES: usize = 1 << 20;
/// Operations between two looks at the clock, for the fastest of them.
const BATCH: usize = 64;
/// No machine copies this much a second for one process: sixteen cores in their own caches stay below.
/// A figure above it is of a loop that did nothing.
pub(crate) const PLAUSIBLE_BYTES_PER_SECOND: f64 = (200 * GIB) as f64;

/// What was read and how long it took.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Taken {
    pub(crate) operations: u64,
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
}

impl Taken {
    pub(crate) fn mib_per_second(self) -> f64 {
        self.bytes as f64 / MIB as f64 / self.seconds
    }

    pub(crate) fn per_second(self) -> f64 {
        self.operations as f64 / self.seconds
    }

    /// Refuses what was read faster than anything can be read.
    pub(crate) fn plausible(self) -> Result<Self, Trouble> {
        let rate = self.bytes as f64 / self.seconds;
        // Not a number is no figure either.
        if rate <= PLAUSIBLE_BYTES_PER_SECOND {
            return Ok(self);
        }
        let (bytes, seconds) = (self.bytes, self.seconds);
        Err(Trouble::Failed(format!("{bytes} bytes in {seconds} s cannot have been read")))
    }
}

/// A directory with the data set in it.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    pub(crate) root: PathBuf,
    /// Whether the kernel keeps pages of these files that have to be dropped before a warm read: those
    /// of a mount, whose program is to be measured and not the kernel's memory.
    pub(crate) is_mount: bool,
}

impl Files {
    pub(crate) fn path(&self, item: &Item) -> PathBuf {
        self.root.join(&item.key)
    }

    /// Drops what the kernel keeps of a mount's files. What the program behind it reads from stays.
    pub(crate) fn forget(&self, items: &[Item]) -> Result<(), Trouble> {
        if self.is_mount {
            for item in items {
                let path = self.path(item);
                let file = File::open(&path).during(path.display())?;
                fadvise(&file, 0, None, Advice::DontNeed).during(path.display())?;
            }
        }
        Ok(())
    }

    /// One reader, from the beginning to the end.
    pub(crate) fn sequential(&self, item: &Item, halt: &Halt) -> Result<Taken, Trouble> {
        let path = self.path(item);
        let mut buffer = vec![0; READ_BYTES];
        let begun = Instant::now();
        let mut file = File::open(&path).during(path.display())?;
        let mut taken = Taken::default();
        loop {
            let read = file.read(&mut buffer).during(path.display())?;
            if read == 0 {
                break;
            }
            taken.bytes += read as u64;
            taken.operations += 1;
            if taken.operations.is_multiple_of(BATCH as u64) {
                halt.check()?;
            }
        }
        taken.seconds = begun.elapsed().as_secs_f64();
        whole(&path, taken.bytes, item.size)?;
        Ok(taken)
    }

    /// Aligned reads of `block` bytes in a random order, no place twice, for about `time` or `most` of
    /// them: a page that the kernel kept from an earlier read would be none of the program's work.
    pub(crate) fn random(
        &self,
        item: &Item,
        block: usize,
        (time, most): (Duration, u64),
        seed: u64,
        halt: &Halt,
    ) -> Result<Taken, Trouble> {
        let path = self.path(item);
        let order = order(item.size, block, most, seed);
        let file = File::open(&path).during(path.display())?;
        let mut buffer = vec![0; block];
        let begun = Instant::now();
        timed(&order, (time, begun), halt, |offset| {
            file.read_exact_at(&mut buffer, offset).during(path.display())
        })
        .map(|taken| Taken { bytes: taken.operations * block as u64, ..taken })
    }

    /// One reader for each file, all at once.
    pub(crate) fn together(&self, items: &[Item], halt: &Halt) -> Result<Taken, Trouble> {
        let begun = Instant::now();
        let all = std::thread::scope(|scope| {
            let read = |item| scope.spawn(move || self.sequential(item, halt));
            let readers: Vec<_> = items.iter().map(read).collect();
            readers.into_iter().map(|r| joined(r.join())).collect::<Result<Vec<Taken>, Trouble>>()
        })?;
        let mut taken = Taken { seconds: begun.elapsed().as_secs_f64(), ..Taken::default() };
        for one in all {
            taken.operations += one.operations;
            taken.bytes += one.bytes;
        }
        Ok(taken)
    }

    /// Opens, reads and closes each file, one after the other; an operation is a file.
    pub(crate) fn each(&self, items: &[Item], halt: &Halt) -> Result<Taken, Trouble> {
        let paths: Vec<(PathBuf, u64)> = items.iter().map(|i| (self.path(i), i.size)).collect();
        let largest = paths.iter().map(|(_, size)| *size).max().unwrap_or(0);
        // One more than there is, so that one read shows the end too.
        let mut buffer = vec![0; largest as usize + 1];
        let mut taken = Taken::default();
        let begun = Instant::now();
        for (path, size) in &paths {
            let mut file = File::open(path).during(path.display())?;
            let mut got = 0;
            loop {
                let read = file.read(&mut buffer[got..]).during(path.display())?;
                got += read;
                if read == 0 || got as u64 >= *size {
                    break;
                }
            }
            whole(path, got as u64, *size)?;
            taken.operations += 1;
            taken.bytes += got as u64;
            if taken.operations.is_multiple_of(8) {
                halt.check()?;
            }
        }
        taken.seconds = begun.elapsed().as_secs_f64();
        Ok(taken)
    }

    /// Copies a mapped file out of the mapping, from the beginning to the end.
    pub(crate) fn mapped(&self, item: &Item, halt: &Halt) -> Result<Taken, Trouble> {
        let path = self.path(item);
        let mut buffer = vec![0; READ_BYTES];
        let begun = Instant::now();
        let mapping = Mapping::open(&path).during(path.display())?;
        let mut taken = Taken::default();
        while let Some(read) = mapping.copy(taken.bytes, &mut buffer) {
            taken.bytes += read as u64;
            taken.operations += 1;
            halt.check()?;
        }
        drop(mapping);
        taken.seconds = begun.elapsed().as_secs_f64();
        whole(&path, taken.bytes, item.size)?;
        Ok(taken)
    }

    /// Copies 4 KiB at random places out of a new mapping, no place twice, for about `time`.
    pub(crate) fn mapped_random(
        &self,
        item: &Item,
        time: Duration,
        seed: u64,
        halt: &Halt,
    ) -> Result<Taken, Trouble> {
        let path = self.path(item);
        let order = order(item.size, 4096, u64::MAX, seed);
        let mut buffer = vec![0; 4096];
        let begun = Instant::now();
        let mapping = Mapping::open(&path).during(path.display())?;
        timed(&order, (time, begun), halt, |offset| {
            whole(&path, mapping.copy(offset, &mut buffer).unwrap_or(0) as u64, 4096)
        })
        .map(|taken| Taken { bytes: taken.operations * 4096, ..taken })
    }

    /// Walks a tree as `ls -lR` does; an operation is a file.
    pub(crate) fn walk(&self, below: &str, halt: &Halt) -> Result<Taken, Trouble> {
        let begun = Instant::now();
        let mut taken = Taken::default();
        let mut folders = vec![self.root.join(below)];
        while let Some(folder) = folders.pop() {
            halt.check()?;
            for entry in std::fs::read_dir(&folder).during(folder.display())? {
                let entry = entry.during(folder.display())?;
                let meta = entry.metadata().during(entry.path().display())?;
                if meta.is_dir() {
                    folders.push(entry.path());
                } else {
                    taken.operations += 1;
                    taken.bytes += meta.len();
                }
            }
        }
        taken.seconds = begun.elapsed().as_secs_f64();
        Ok(taken)
    }

    /// Reads files and compares each byte with the plain copy; the bytes read.
    pub(crate) fn verify(
        &self,
        plain: &Files,
        items: &[Item],
        halt: &Halt,
    ) -> Result<u64, Trouble> {
        let (mut here, mut there) = (vec![0; READ_BYTES], vec![0; READ_BYTES]);
        let mut bytes = 0;
        for item in items {
            let paths = (self.path(item), plain.path(item));
            let mut file = File::open(&paths.0).during(paths.0.display())?;
            let mut copy = File::open(&paths.1).during(paths.1.display())?;
            let mut got = 0;
            loop {
                halt.check()?;
                let read = file.read(&mut here).during(paths.0.display())?;
                if read == 0 {
                    break;
                }
                copy.read_exact(&mut there[..read]).during(paths.1.display())?;
                if here[..read] != there[..read] {
                    let what = format!("{}: wrong bytes after {got}", paths.0.display());
                    return Err(Trouble::Failed(what));
                }
                got += read as u64;
            }
            whole(&paths.0, got, item.size)?;
            whole(&paths.1, copy.stream_position().during(paths.1.display())?, item.size)?;
            bytes += got;
        }
        Ok(bytes)
    }
}

/// Offsets of whole blocks in a random order, at most `most`.
fn order(size: u64, block: usize, most: u64, seed: u64) -> Vec<u64> {
    let mut order: Vec<u64> = (0..size / block as u64).map(|n| n * block as u64).collect();
    Dice::new(seed).shuffle(&mut order);
    order.truncate(usize::try_from(most).unwrap_or(usize::MAX));
    order
}

/// Reads at each offset until the time since `begun` is over.
fn timed(
    order: &[u64],
    (time, begun): (Duration, Instant),
    halt: &Halt,
    mut read: impl FnMut(u64) -> Result<(), Trouble>,
) -> Result<Taken, Trouble> {
    let mut taken = Taken::default();
    for batch in order.chunks(BATCH) {
        halt.check()?;
        for offset in batch {
            read(*offset)?;
            taken.operations += 1;
            // A mount that takes long for each must not overrun its time by a whole batch.
            if taken.operations.is_multiple_of(8) && begun.elapsed() > time {
                break;
            }
        }
        if begun.elapsed() > time {
            break;
        }
    }
    taken.seconds = begun.elapsed().as_secs_f64();
    Ok(taken)
}

fn whole(path: &Path, got: u64, expected: u64) -> Result<(), Trouble> {
    if got == expected {
        return Ok(());
    }
    Err(Trouble::Failed(format!("{}: {got} bytes of {expected}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::super::data::{items, write_plain};
    use super::*;

    fn halt() -> Halt {
        Halt::new(Duration::from_mins(1))
    }

    fn home(count: usize, size: u64) -> (tempfile::TempDir, Files, Vec<Item>) {
        let folder = tempfile::tempdir().unwrap();
        let all = items("t", count, size);
        write_plain(folder.path(), &all, &halt()).unwrap();
        let files = Files { root: folder.path().to_owned(), is_mount: true };
        (folder, files, all)
    }

    #[test]
    fn every_way_of_reading_reads_what_it_says() {
        let (_folder, files, all) = home(3, 5_000_000);
        let (size, time) = (all[0].size, Duration::from_millis(10));
        files.forget(&all).unwrap();
        assert_eq!(files.sequential(&all[0], &halt()).unwrap().bytes, size);
        assert_eq!(files.mapped(&all[0], &halt()).unwrap().bytes, size);
        assert_eq!(files.together(&all, &halt()).unwrap().bytes, 3 * size);
        let each = files.each(&all, &halt()).unwrap();
        assert_eq!((each.operations, each.bytes), (3, 3 * size));
        let random = files.random(&all[1], 4096, (time, 100), 1, &halt()).unwrap();
        assert!((1..=100).contains(&random.operations));
        assert!(files.mapped_random(&all[1], time, 1, &halt()).unwrap().operations > 0);
        let walked = files.walk("", &halt()).unwrap();
        assert_eq!((walked.operations, walked.bytes), (3, 3 * size));
        assert_eq!(files.verify(&files, &all, &halt()).unwrap(), 3 * size);
    }

    #[test]
    fn what_nothing_can_read_is_refused() {
        let taken = |seconds| Taken { operations: 1, bytes: GIB, seconds };
        assert!(taken(0.1).plausible().is_ok() && taken(0.0051).plausible().is_ok());
        for seconds in [0.0049, 0.0, f64::NAN] {
            let refused = taken(seconds).plausible().unwrap_err().to_string();
            assert!(refused.contains("cannot have been read"), "{refused}");
        }
        assert!(Taken::default().plausible().is_err());
    }

    #[test]
    fn short_and_wrong_files_are_errors() {
        let (folder, files, mut all) = home(2, 100_000);
        let plain = tempfile::tempdir().unwrap();
        write_plain(plain.path(), &all, &halt()).unwrap();
        let plain = Files { root: plain.path().to_owned(), is_mount: false };
        let path = folder.path().join("t/o00001");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[77_777] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let wrong = files.verify(&plain, &all, &halt()).unwrap_err();
        assert!(wrong.to_string().contains("o00001: wrong bytes"), "{wrong}");
        all[0].size += 1;
        assert!(files.sequential(&all[0], &halt()).is_err());
        assert!(files.mapped(&all[0], &halt()).is_err());
        assert!(files.each(&all, &halt()).is_err());
    }
}
