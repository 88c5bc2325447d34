//! A program that reads a mount in one way, verifies every byte, and says at its end what it saw.
//!
//! `system-reader KIND LIST FOLDER UNTIL [--stop-at-error]`: reads the objects of LIST (see
//! `system_tests::DataSet`) below FOLDER until a file UNTIL exists, then prints one line of JSON.
//! It ends with 0 whatever it saw: judging is the test's part. (A signal would disturb what is tested.)

#![allow(clippy::unwrap_used)] // A part of tests: what cannot be is a panic, which the test sees.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::json;
use system_tests::{DataSet, Object};

/// Errors and wrong bytes that are shown; all are counted.
const SHOWN: usize = 4;
/// After an error, so that a mount that is gone is not asked a million times.
const AFTER_ERROR: Duration = Duration::from_millis(20);
/// How often it is looked whether to stop.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What a sequential reader reads at once.
const PIECE_BYTES: usize = 256 << 10;
/// Files that the random reader holds open, and mappings that the mapping reader holds.
const HELD: usize = 6;
/// Reads of one file before the random reader opens another instead.
const READS_OF_ONE: usize = 24;

static STOP: AtomicBool = AtomicBool::new(false);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kind, list, folder, until, rest @ ..] = &arguments[..] else {
        eprintln!("usage: system-reader KIND LIST FOLDER UNTIL [--stop-at-error]");
        std::process::exit(2);
    };
    let until = PathBuf::from(until);
    std::thread::spawn(move || {
        while !until.exists() {
            std::thread::sleep(LOOK_EVERY);
        }
        STOP.store(true, Relaxed);
    });
    let mut reader = Reader {
        set: DataSet::read_list(Path::new(list)).objects,
        folder: PathBuf::from(folder),
        stop_at_error: rest.iter().any(|a| a == "--stop-at-error"),
        random: Random(u64::from(std::process::id())),
        seen: Seen::default(),
    };
    match &**kind {
        "sequential" => reader.sequential(),
        "random" => reader.random(),
        "mapped" => reader.mapped(),
        "walk" => reader.walk(),
        "many" => reader.many(),
        _ => {
            eprintln!("kinds: sequential, random, mapped, walk, many");
            std::process::exit(2);
        }
    }
    println!("{}", reader.seen.report(kind));
}

/// A generator of numbers (xorshift64*): another sequence in each process.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.max(1);
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % bound.max(1)
    }
}

/// What came of the operations.
#[derive(Default)]
struct Seen {
    operations: u64,
    bytes: u64,
    passes: u64,
    since_error: u64,
    errors: BTreeMap<String, u64>,
    wrong: u64,
    short: u64,
    shown: Vec<String>,
    longest: Duration,
    longest_what: String,
}

impl Seen {
    /// Runs one operation, timed.
    fn operation<T>(
        &mut self,
        what: &str,
        name: &str,
        run: impl FnOnce() -> io::Result<T>,
    ) -> Option<T> {
        let begun = Instant::now();
        let outcome = run();
        self.took(begun.elapsed(), what);
        self.operations += 1;
        match outcome {
            Ok(value) => {
                self.since_error += 1;
                Some(value)
            }
            Err(error) => {
                self.failed(what, name, &error);
                None
            }
        }
    }

    fn took(&mut self, time: Duration, what: &str) {
        if time > self.longest {
            self.longest = time;
            what.clone_into(&mut self.longest_what);
        }
    }

    fn failed(&mut self, what: &str, name: &str, error: &io::Error) {
        self.since_error = 0;
        let number = error.raw_os_error().map_or_else(|| error.to_string(), |n| n.to_string());
        *self.errors.entry(number).or_default() += 1;
        self.show(format!("{what} of {name}: {error}"));
    }

    fn wrong(&mut self, text: String) {
        self.wrong += 1;
        self.show(text);
    }

    fn show(&mut self, text: String) {
        if self.shown.len() < SHOWN {
            self.shown.push(text);
        }
    }

    fn verify(&mut self, object: &Object, at: u64, found: &[u8]) {
        self.bytes += found.len() as u64;
        if let Some(offset) = object.difference(at, found) {
            self.wrong(format!("{}: {}", object.key, object.describe(at, offset, found)));
        }
    }

    fn report(&self, kind: &str) -> serde_json::Value {
        json!({
            "kind": kind,
            "operations": self.operations,
            "bytes": self.bytes,
            "passes": self.passes,
            "since_error": self.since_error,
            "errors": self.errors,
            "wrong": self.wrong,
            "short": self.short,
            "shown": self.shown,
            "longest_ms": self.longest.as_secs_f64() * 1000.0,
            "longest_what": self.longest_what,
        })
    }
}

/// Has the kernel forget the pages of a file, so that the next read asks whoever has the bytes.
/// Pages of a file that the kernel reads for itself (passthrough) stay.
#[allow(unsafe_code)]
fn forget_pages(file: &File) {
    // SAFETY: a system call on numbers.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

/// A shared mapping of a whole file, unmapped when it is dropped.
struct Mapping {
    at: *const u8,
    bytes: usize,
}

#[allow(unsafe_code)]
impl Mapping {
    fn of(file: &File, bytes: u64) -> io::Result<Mapping> {
        let bytes = bytes as usize;
        let (kind, descriptor) = (libc::MAP_SHARED, file.as_raw_fd());
        // SAFETY: a new read-only mapping at an address that the kernel chooses.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ, kind, descriptor, 0)
        };
        if at == libc::MAP_FAILED {
            Err(io::Error::last_os_error())
        } else {
            Ok(Mapping { at: at.cast(), bytes })
        }
    }

    /// A copy of some bytes: a page that cannot be had ends this process with SIGBUS, which the test
    /// sees.
    fn copy(&self, from: usize, into: &mut [u8]) {
        assert!(from + into.len() <= self.bytes);
        // SAFETY: within the mapping, which lives as long as `self`.
        unsafe { std::ptr::copy_nonoverlapping(self.at.add(from), into.as_mut_ptr(), into.len()) };
    }
}

#[allow(unsafe_code)]
impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `of`, and nobody holds a reference into it.
        unsafe { libc::munmap(self.at.cast_mut().cast(), self.bytes) };
    }
}

struct Reader {
    set: Vec<Object>,
    folder: PathBuf,
    stop_at_error: bool,
    random: Random,
    seen: Seen,
}

impl Reader {
    fn goes_on(&self) -> bool {
        !STOP.load(Relaxed) && (!self.stop_at_error || self.seen.errors.is_empty())
    }

    fn any(&mut self) -> Object {
        let index = self.random.below(self.set.len() as u64) as usize;
        self.set[index].clone()
    }

    fn open(&mut self, object: &Object) -> Option<File> {
        let path = self.folder.join(&object.key);
        let file = self.seen.operation("open", &object.key, || File::open(path));
        if file.is_none() {
            std::thread::sleep(AFTER_ERROR);
        }
        let file = file?;
        if self.random.below(3) > 0 {
            forget_pages(&file);
        }
        Some(file)
    }

    /// Whole files, one after the other, in another order in each pass.
    fn sequential(&mut self) {
        let mut piece = vec![0; PIECE_BYTES];
        while self.goes_on() {
            for last in (1..self.set.len()).rev() {
                let other = self.random.below(last as u64 + 1) as usize;
                self.set.swap(last, other);
            }
            for index in 0..self.set.len() {
                if !self.goes_on() {
                    return;
                }
                let object = self.set[index].clone();
                let Some(file) = self.open(&object) else { continue };
                read_whole(&mut self.seen, &object, &file, &mut piece);
            }
            self.seen.passes += 1;
        }
    }

    /// Pieces of 4, 64 and 128 KiB from anywhere in a few files that stay open for a while.
    fn random(&mut self) {
        let mut held: Vec<(Object, File)> = Vec::new();
        let mut piece = vec![0; 128 << 10];
        while self.goes_on() {
            let object = self.any();
            if let Some(file) = self.open(&object) {
                if held.len() >= HELD {
                    let out = self.random.below(HELD as u64) as usize;
                    held.swap_remove(out);
                }
                held.push((object, file));
            }
            for _ in 0..READS_OF_ONE {
                if held.is_empty() || !self.goes_on() {
                    break;
                }
                let which = self.random.below(held.len() as u64) as usize;
                let (object, file) = &held[which];
                let wanted = [4 << 10, 64 << 10, 128 << 10][self.random.below(3) as usize];
                let at = self.random.below(object.bytes);
                let read = self
                    .seen
                    .operation("pread", &object.key, || file.read_at(&mut piece[..wanted], at));
                let Some(count) = read else {
                    std::thread::sleep(AFTER_ERROR);
                    continue;
                };
                let expected = (object.bytes - at).min(wanted as u64);
                if count as u64 != expected {
                    self.seen.short += 1;
                    let what =
                        format!("{}: {count} bytes at {at}, expected {expected}", object.key);
                    self.seen.show(what);
                }
                self.seen.verify(object, at, &piece[..count]);
            }
        }
    }

    /// Single pages of shared mappings, of which a few stay while their file is closed.
    fn mapped(&mut self) {
        let mut held: Vec<(Object, Mapping)> = Vec::new();
        let mut page = vec![0; 4096];
        while self.goes_on() {
            let object = self.any();
            let Some(file) = self.open(&object) else { continue };
            let mapping =
                self.seen.operation("mmap", &object.key, || Mapping::of(&file, object.bytes));
            drop(file);
            if let Some(mapping) = mapping {
                if held.len() >= HELD {
                    let out = self.random.below(HELD as u64) as usize;
                    held.swap_remove(out);
                }
                held.push((object, mapping));
            }
            for _ in 0..READS_OF_ONE {
                let Some(last) = held.len().checked_sub(1) else { break };
                if !self.goes_on() {
                    break;
                }
                let which = self.random.below(last as u64 + 1) as usize;
                let (object, mapping) = &held[which];
                let at = self.random.below(object.bytes) & !4095;
                let count = (object.bytes - at).min(4096) as usize;
                self.seen.operation("page fault", &object.key, || {
                    mapping.copy(at as usize, &mut page[..count]);
                    Ok(())
                });
                self.seen.verify(object, at, &page[..count]);
            }
        }
    }

    /// Listings of every directory and the attributes of every file: the tree is that of the list.
    fn walk(&mut self) {
        let expected: BTreeMap<PathBuf, u64> =
            self.set.iter().map(|o| (self.folder.join(&o.key), o.bytes)).collect();
        // Only what belongs to the list is walked: other sets may lie beside it.
        let tops: BTreeSet<PathBuf> = self
            .set
            .iter()
            .filter_map(|o| Some(self.folder.join(o.key.split_once('/')?.0)))
            .collect();
        while self.goes_on() {
            let mut left = expected.clone();
            let mut folders: Vec<PathBuf> = tops.iter().cloned().collect();
            let mut complete = true;
            while let Some(folder) = folders.pop() {
                if !self.goes_on() {
                    return;
                }
                let name = folder.display().to_string();
                let entries = self.seen.operation("readdir", &name, || {
                    std::fs::read_dir(&folder)?.collect::<io::Result<Vec<_>>>()
                });
                let Some(entries) = entries else {
                    std::thread::sleep(AFTER_ERROR);
                    complete = false;
                    continue;
                };
                for entry in entries {
                    let path = entry.path();
                    let name = path.display().to_string();
                    let stat = self.seen.operation("stat", &name, || path.symlink_metadata());
                    let Some(stat) = stat else {
                        complete = false;
                        continue;
                    };
                    if stat.is_dir() {
                        folders.push(path);
                    } else if left.remove(&path) != Some(stat.size()) {
                        self.seen.wrong(format!("{name}: {} bytes, or not expected", stat.size()));
                    }
                }
            }
            if complete && let Some((path, _)) = left.first_key_value() {
                let text = format!(
                    "{} of {} not listed, the first {}",
                    left.len(),
                    expected.len(),
                    path.display()
                );
                self.seen.wrong(text);
            }
            self.seen.passes += 1;
        }
    }

    /// All files at once, each read by a thread of its own from start to end, again and again.
    fn many(&mut self) {
        let begin = std::sync::Barrier::new(self.set.len());
        let (begin, stop_at_error) = (&begin, self.stop_at_error);
        let all = std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .set
                .iter()
                .map(|object| {
                    let path = self.folder.join(&object.key);
                    let read = move || {
                        let mut seen = Seen::default();
                        let mut piece = vec![0; PIECE_BYTES / 4];
                        let mut file = seen.operation("open", &object.key, || File::open(&path));
                        // All are open before any is read.
                        begin.wait();
                        loop {
                            if let Some(file) = &file {
                                read_whole(&mut seen, object, file, &mut piece);
                                forget_pages(file);
                            } else {
                                std::thread::sleep(AFTER_ERROR);
                            }
                            seen.passes += 1;
                            let failed = stop_at_error && !seen.errors.is_empty();
                            if failed || STOP.load(Relaxed) {
                                return seen;
                            }
                            file = seen.operation("open", &object.key, || File::open(&path));
                        }
                    };
                    // A thousand threads with the usual stacks of 2 MiB are 2 GiB of addresses.
                    std::thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, read)
                })
                .collect();
            threads.into_iter().map(|thread| thread.unwrap().join().unwrap()).collect::<Vec<_>>()
        });
        self.seen.passes = u64::MAX;
        for seen in all {
            self.seen.operations += seen.operations;
            self.seen.bytes += seen.bytes;
            self.seen.passes = self.seen.passes.min(seen.passes);
            self.seen.wrong += seen.wrong;
            for (number, count) in seen.errors {
                *self.seen.errors.entry(number).or_default() += count;
            }
            self.seen.took(seen.longest, &seen.longest_what);
            seen.shown.into_iter().for_each(|text| self.seen.show(text));
        }
    }
}

/// Reads a file from its start to its end.
fn read_whole(seen: &mut Seen, object: &Object, file: &File, piece: &mut [u8]) {
    let mut at = 0;
    loop {
        if STOP.load(Relaxed) && seen.passes > 0 {
            return;
        }
        let Some(count) = seen.operation("read", &object.key, || file.read_at(piece, at)) else {
            std::thread::sleep(AFTER_ERROR);
            return;
        };
        if count == 0 {
            break;
        }
        seen.verify(object, at, &piece[..count]);
        at += count as u64;
    }
    if at != object.bytes {
        seen.wrong(format!("{}: ends after {at} of {} bytes", object.key, object.bytes));
    }
}
