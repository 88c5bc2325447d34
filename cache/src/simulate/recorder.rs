//! Writes traces: each use of an object, as [`super::recorded`] reads it.
//!
//! Invariant: a use never waits for the disk: what the writer cannot take is counted and left out.
//! The file never grows past its bound. It holds keys: whoever may read it may read those.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::recorded::escaped;

/// Lines on their way to the writer, about 100 bytes each.
const WAITING: usize = 1 << 14;

/// A quiet recorder writes what it has this often.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// Writes a trace in the background.
#[derive(Debug)]
pub struct Recorder {
    lines: Mutex<Option<SyncSender<String>>>,
    left_out: Arc<AtomicU64>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Recorder {
    /// A bound for [`Self::open`]: 1 GiB, some ten million uses.
    pub const MOST_BYTES: u64 = 1 << 30;

    /// Begins a trace, readable by its owner only. A file that is there is replaced. It ends by
    /// itself after `bound_bytes`.
    pub fn open(path: &Path, bound_bytes: u64) -> std::io::Result<Self> {
        let file =
            File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let (sender, receiver) = sync_channel(WAITING);
        let left_out = Arc::new(AtomicU64::new(0));
        let mut writing = Writing {
            out: BufWriter::with_capacity(64 << 10, file),
            left_bytes: bound_bytes,
            left_out: Arc::clone(&left_out),
            path: path.to_owned(),
        };
        let writer = std::thread::Builder::new()
            .name("warpdrive-trace".to_owned())
            .spawn(move || writing.run(&receiver))?;
        Ok(Self { lines: Mutex::new(Some(sender)), left_out, writer: Mutex::new(Some(writer)) })
    }

    /// Writes down one use of an object of so many bytes, or counts it as left out.
    pub fn record(&self, bucket: &str, key: &str, bytes: u64) {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(lines) = lines.as_ref() else { return };
        // A name with a space could not be read back; buckets have none.
        let bucket = bucket.replace([' ', '\n', '\r'], "_");
        let line = format!("{bucket} {} {bytes}\n", escaped(key));
        if lines.try_send(line).is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Uses that are not in the trace, because the disk was too slow, failed, or the bound was reached.
    pub fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }

    /// Ends the trace and waits until all of it is written.
    pub fn close(&self) {
        drop(self.lines.lock().unwrap_or_else(PoisonError::into_inner).take());
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            // A writer that panicked has nothing left to write.
            let _ = writer.join();
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.close();
    }
}

struct Writing {
    out: BufWriter<File>,
    left_bytes: u64,
    left_out: Arc<AtomicU64>,
    path: PathBuf,
}

impl Writing {
    fn run(&mut self, lines: &Receiver<String>) {
        use std::sync::mpsc::RecvTimeoutError;
        let mut outcome = self.write("# warpdrive trace: bucket key bytes\n");
        while outcome.is_ok() {
            outcome = match lines.recv_timeout(FLUSH_EVERY) {
                Ok(line) => self.write(&line),
                Err(RecvTimeoutError::Timeout) => self.out.flush(),
                Err(RecvTimeoutError::Disconnected) => {
                    let left_out = self.left_out.load(Ordering::Relaxed);
                    if left_out > 0 {
                        let _ = writeln!(self.out, "# {left_out} uses were left out");
                    }
                    break;
                }
            };
        }
        if let Err(error) = outcome.and_then(|()| self.out.flush()) {
            let path = self.path.display();
            tracing::warn!(%path, %error, "the trace ends here");
        }
        // A recorder that is still asked counts what is left out: its channel is closed.
    }

    fn write(&mut self, line: &str) -> std::io::Result<()> {
        let Some(left) = self.left_bytes.checked_sub(line.len() as u64) else {
            return Err(std::io::Error::other("the trace is as long as it may be"));
        };
        self.left_bytes = left;
        self.out.write_all(line.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::recorded;

    #[test]
    fn what_is_recorded_can_be_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trace.txt");
        let recorder = Recorder::open(&path, Recorder::MOST_BYTES).unwrap();
        for n in 0..1_000 {
            recorder.record("train", &format!("a dir/%{}\n", n % 100), 10 + n % 100);
        }
        recorder.close();
        assert_eq!(recorder.left_out(), 0);
        recorder.record("train", "after the end", 1);
        let file = std::io::BufReader::new(File::open(&path).unwrap());
        let trace = recorded("t", file, 1).unwrap();
        assert_eq!((trace.objects(), trace.uses()), (100, 1_000));
    }

    #[test]
    fn a_trace_ends_at_its_bound() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trace.txt");
        let recorder = Recorder::open(&path, 1_000).unwrap();
        for _ in 0..1_000 {
            recorder.record("train", "key", 1);
        }
        recorder.close();
        let length = std::fs::metadata(&path).unwrap().len();
        assert!((900..=1_000).contains(&length), "{length}");
        let file = std::io::BufReader::new(File::open(&path).unwrap());
        assert!(recorded("t", file, 1).is_ok());
    }
}
