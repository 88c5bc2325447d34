//! Parts of tests that need a process of their own: this binary, started again for one of the
//! "tests" below, which do nothing without the variable that names their path.

#![allow(unsafe_code)] // System calls that the standard library does not have.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fusemount::{Metrics, Mount, MountConfig, MountError};
use store::testing::MemoryStore;
use store::{BucketName, Namespace};

use crate::harness::{bucket, pattern, runtime};

const PATH: &str = "FUSEMOUNT_TEST_CHILD_PATH";
/// Size of each file that is read under signals.
pub(crate) const SIGNALLED_BYTES: usize = 3 << 20;
const ALLOW_OTHER: &str = "FUSEMOUNT_TEST_CHILD_ALLOW_OTHER";

/// A child that runs one part; it is killed when this is dropped.
pub(crate) struct Part {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Part {
    pub(crate) fn start(part: &str, path: &Path) -> Self {
        let exe = std::env::current_exe().unwrap();
        Self::start_as(Command::new(exe), part, path)
    }

    pub(crate) fn start_as(mut command: Command, part: &str, path: &Path) -> Self {
        let mut child = command
            .args(["--exact", part, "--nocapture", "--test-threads=1"])
            .env(PATH, path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// The rest of the first line that begins with `word`.
    pub(crate) fn wait_for(&mut self, word: &str) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.lines.read_line(&mut line).unwrap(), 0, "no `{word}` from the child");
            // The test runner writes its own words before ours on the line.
            if let Some((_, rest)) = line.split_once(word) {
                return rest.trim().to_owned();
            }
        }
    }

    pub(crate) fn say(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn finish(mut self) {
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends SIGTERM to one thread of a process.
pub(crate) fn signal_thread(process: u32, thread: &str) {
    let thread: libc::pid_t = thread.parse().unwrap();
    // SAFETY: a system call on numbers.
    let code =
        unsafe { libc::syscall(libc::SYS_tgkill, process.cast_signed(), thread, libc::SIGTERM) };
    assert_eq!(code, 0, "{}", std::io::Error::last_os_error());
}

pub(crate) fn path() -> Option<PathBuf> {
    std::env::var_os(PATH).map(PathBuf::from)
}

pub(crate) fn hear() -> String {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    line.trim().to_owned()
}

fn namespace() -> Arc<Namespace> {
    let store = MemoryStore::new();
    store.insert("file", "from a child");
    let namespace = Namespace::builder()
        .bucket(bucket("main", Arc::new(store)))
        .unwrap()
        .mount("/", &BucketName::new("main").unwrap(), "")
        .unwrap();
    Arc::new(namespace.build())
}

/// Mounts, says what came of it, and unmounts when told to.
#[test]
fn mounts() {
    let Some(path) = path() else { return };
    let runtime = runtime();
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    let mut config = MountConfig::new(path);
    config.allow_other = std::env::var_os(ALLOW_OTHER) == Some(OsString::from("yes"));
    match Mount::open(namespace(), config, metrics, runtime.handle().clone()) {
        Ok(mount) => {
            println!("mounted: {}", mount.notes().join("; "));
            let content = std::fs::read_to_string(mount.mount_point().join("file")).unwrap();
            println!("content: {content}");
            hear();
            runtime.block_on(mount.unmount(Duration::from_secs(1))).unwrap();
            println!("unmounted");
        }
        Err(MountError::NoFuse(why)) => println!("no fuse: {why}"),
        Err(error) => println!("refused: {error}"),
    }
}

pub(crate) fn allow_other(command: &mut Command) {
    command.env(ALLOW_OTHER, "yes");
}

/// The bytes of a file as a shared mapping, which stays until the process ends.
fn mapping(path: &Path) -> &'static [u8] {
    let file = File::open(path).unwrap();
    let size = file.metadata().unwrap().len() as usize;
    // SAFETY: a new read-only mapping of an open file; the file does not change.
    unsafe {
        let at = libc::mmap(
            std::ptr::null_mut(),
            size,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        assert_ne!(at, libc::MAP_FAILED);
        std::slice::from_raw_parts(at.cast::<u8>(), size)
    }
}

/// Maps a file shared, and compares what it sees with the pattern of seed 5.
#[test]
fn maps() {
    let Some(path) = path() else { return };
    let mapped = mapping(&path);
    println!("ready");
    hear();
    assert!(mapped == &pattern(mapped.len(), 5)[..]);
    println!("compared");
}

static SIGNALS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count_signal(_: libc::c_int) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// Handles SIGTERM and goes on: maps one file of a directory, then reads another. Says the thread
/// to which signals must go, since any other would take them at once.
#[test]
fn goes_on_after_signals() {
    let Some(path) = path() else { return };
    // SAFETY: a handler that only touches an atomic; `gettid` has no preconditions.
    let thread = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = count_signal as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_RESTART;
        assert_eq!(libc::sigaction(libc::SIGTERM, &raw const action, std::ptr::null_mut()), 0);
        libc::gettid()
    };
    let mapped = mapping(&path.join("mapped"));
    let mut read = File::open(path.join("read")).unwrap();
    println!("thread: {thread}");
    hear();
    assert!(mapped == &pattern(mapped.len(), 5)[..]);
    println!("mapped: {}", SIGNALS.load(Ordering::Relaxed));
    hear();
    // Not `read_to_end`, which hides EINTR.
    let mut bytes = vec![0; SIGNALLED_BYTES];
    let mut filled = 0;
    while filled < bytes.len() {
        let got = std::io::Read::read(&mut read, &mut bytes[filled..]).unwrap();
        assert_ne!(got, 0, "cut after {filled} bytes");
        filled += got;
    }
    assert!(bytes == pattern(SIGNALLED_BYTES, 5));
    println!("read: {}", SIGNALS.load(Ordering::Relaxed));
}

/// Reads a file and says with which errno that ended.
#[test]
fn reads() {
    let Some(path) = path() else { return };
    println!("begins");
    let errno = std::fs::read(path).map_or_else(|error| error.raw_os_error().unwrap(), |_| 0);
    println!("errno: {errno}");
}
