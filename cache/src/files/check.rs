//! Looking whether a file holds what it should.
//!
//! Invariant: a file is good only where every block has the checksum that was taken of the bytes that
//! came from the origin, and where an MD5 is known all of them have that too. Runs on threads that
//! let everything else go first: hashing takes longer than fetching.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use md5::{Digest, Md5};
use parking_lot::Mutex;
use std::sync::{Arc, mpsc};
use tokio::sync::oneshot;
use twox_hash::XxHash3_64;

use super::kernel;

/// Bytes that are hashed at once: what stays in a core's own cache between reading and hashing.
const PIECE_BYTES: usize = 256 << 10;

/// Fewest and most threads; a quarter of the cores in between.
const THREADS: std::ops::RangeInclusive<usize> = 1..=4;

/// A block's checksum.
pub(super) fn checksum(seal: u64, data: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(seal, data)
}

/// The MD5 of a file of `size` bytes in hex, as an origin's tag has it.
pub(super) fn md5_hex(file: &File, size: u64) -> io::Result<String> {
    use std::fmt::Write;
    let mut hash = Md5::new();
    let mut buffer = vec![0; PIECE_BYTES];
    let mut at = 0;
    while at < size {
        let len = (size - at).min(PIECE_BYTES as u64) as usize;
        file.read_exact_at(&mut buffer[..len], at)?;
        hash.update(&buffer[..len]);
        at += len as u64;
    }
    let mut hex = String::with_capacity(32);
    for byte in hash.finalize() {
        _ = write!(hex, "{byte:02x}");
    }
    Ok(hex)
}

/// True where a block of a file has this checksum.
pub(super) fn block_is_good(
    file: &File,
    range: std::ops::Range<u64>,
    seal: u64,
    sum: u64,
) -> io::Result<bool> {
    let mut hash = XxHash3_64::with_seed(seal);
    let mut buffer = vec![0; PIECE_BYTES];
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(PIECE_BYTES as u64) as usize;
        match file.read_exact_at(&mut buffer[..len], at) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
        std::hash::Hasher::write(&mut hash, &buffer[..len]);
        at += len as u64;
    }
    Ok(std::hash::Hasher::finish(&hash) == sum)
}

/// As [`block_is_good`], leaving the page cache as it was: what was not in it is not kept there.
pub(super) fn cold_block_is_good(
    file: &File,
    range: std::ops::Range<u64>,
    seal: u64,
    sum: u64,
) -> io::Result<bool> {
    let mut byte = [0];
    let hot = rustix::io::preadv2(
        file,
        &mut [io::IoSliceMut::new(&mut byte)],
        range.start,
        rustix::io::ReadWriteFlags::NOWAIT,
    );
    let good = block_is_good(file, range.clone(), seal, sum);
    if hot.is_err()
        && let Some(len) = std::num::NonZeroU64::new(range.end - range.start)
    {
        // A hint: where it is not taken, pages stay a little longer.
        _ = rustix::fs::fadvise(file, range.start, Some(len), rustix::fs::Advice::DontNeed);
    }
    good
}

type Job = Box<dyn FnOnce() + Send>;

/// Threads that compute when nobody else wants to.
pub(super) struct Checkers {
    jobs: mpsc::Sender<Job>,
}

impl std::fmt::Debug for Checkers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkers").finish_non_exhaustive()
    }
}

impl Checkers {
    /// Starts the threads; they end when this is dropped.
    pub(super) fn start() -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        for _ in 0..(cores / 4).clamp(*THREADS.start(), *THREADS.end()) {
            let queue = Arc::clone(&queue);
            let work = move || {
                kernel::step_back();
                loop {
                    let job = queue.lock().recv();
                    let Ok(job) = job else { break };
                    job();
                }
            };
            // Without a thread every job is dropped, and whoever waits for one hears so.
            _ = std::thread::Builder::new().name("cache-check".to_owned()).spawn(work);
        }
        Self { jobs }
    }

    /// Runs `work`; `None` where there is nobody to do it.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (done, result) = oneshot::channel();
        let job: Job = Box::new(move || _ = done.send(work()));
        self.jobs.send(job).ok()?;
        result.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn hashes_are_those_of_the_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let bytes: Vec<u8> = (0..600_001u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let file = File::open(&path).unwrap();
        let md5 = md5_hex(&file, bytes.len() as u64).unwrap();
        let mut expected = Md5::new();
        expected.update(&bytes);
        let expected: Vec<String> =
            expected.finalize().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(md5, expected.concat());
        assert!(md5_hex(&file, bytes.len() as u64 + 1).is_err(), "too short");
        let sum = checksum(7, &bytes[1000..500_000]);
        assert!(block_is_good(&file, 1000..500_000, 7, sum).unwrap());
        assert!(!block_is_good(&file, 1000..500_000, 8, sum).unwrap());
        assert!(!block_is_good(&file, 1000..600_002, 7, sum).unwrap());
        assert!(cold_block_is_good(&file, 1000..500_000, 7, sum).unwrap());
        assert!(!cold_block_is_good(&file, 1000..600_002, 7, sum).unwrap());
        let checkers = Checkers::start();
        assert_eq!(checkers.run(|| 7).await, Some(7));
    }
}
