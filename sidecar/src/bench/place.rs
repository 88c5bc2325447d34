//! The folder that a bench works in, and everything that must be gone when it ends.
//!
//! Invariant: however the bench ends, short of being killed, its processes have ended, its mounts are
//! unmounted and its folder is removed, in this order. It removes nothing while something is mounted
//! below the folder: a removal would walk through a mount.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use super::halt::{During, Trouble};
use super::usage;

/// For a process that is asked to end, before it is killed; a sidecar drains meanwhile.
const END_WITHIN: Duration = Duration::from_secs(15);
/// How much of a log is shown when a process fails.
const TAIL_BYTES: usize = 2000;

type Children = Arc<Mutex<Vec<Arc<Mutex<Child>>>>>;

/// The work folder. Dropping it cleans up.
#[derive(Debug)]
pub(crate) struct Place {
    root: PathBuf,
    children: Children,
}

/// Ends the processes of a place from another thread, so that whoever waits for them goes on.
#[derive(Debug, Clone)]
pub(crate) struct Killer(Children);

impl Killer {
    /// SIGKILL to every process of the place.
    pub(crate) fn kill_all(&self) {
        for child in lock(&self.0).iter() {
            // Already ended is what is wanted.
            let _ = lock(child).kill();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Place {
    /// Makes a folder of its own below `parent`.
    pub(crate) fn new(parent: &Path) -> Result<Self, Trouble> {
        let made = tempfile::Builder::new().prefix("warpdrive-bench-").tempdir_in(parent);
        let root = made.during(format_args!("a folder in {}", parent.display()))?.keep();
        // Paths of mounts are compared with what the kernel says, which knows no symbolic links.
        let root = root.canonicalize().during("the work folder")?;
        Ok(Self { root, children: Children::default() })
    }

    /// The folder.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Ends what runs here, for another thread.
    pub(crate) fn killer(&self) -> Killer {
        Killer(Arc::clone(&self.children))
    }

    /// A new folder below, with a number where the name is taken.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf, Trouble> {
        for number in 0_u32.. {
            let name = if number == 0 { name.to_owned() } else { format!("{name}.{number}") };
            let path = self.root.join(name);
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(path),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).during(path.display()),
            }
        }
        unreachable!("numbers do not end")
    }

    /// Starts a program whose output goes to `folder/log`, marked as working there.
    pub(crate) fn spawn(&self, mut command: Command, folder: &Path) -> Result<Process, Trouble> {
        use std::os::unix::process::CommandExt;
        let name = command.get_program().to_string_lossy().into_owned();
        let log_path = folder.join("log");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&log_path);
        let log = log.during(log_path.display())?;
        let again = log.try_clone().during(log_path.display())?;
        command.stdin(Stdio::null()).stdout(log).stderr(again).env(usage::MARK, folder);
        // Ctrl-C is for the bench, which ends its processes in order.
        command.process_group(0);
        let child = Arc::new(Mutex::new(command.spawn().during(&name)?));
        lock(&self.children).push(Arc::clone(&child));
        Ok(Process { child, children: Arc::clone(&self.children), name, log: log_path })
    }

    /// Ends every process that works in `folder`, unmounts what is mounted there, removes it.
    pub(crate) fn clear(folder: &Path) -> Result<(), Trouble> {
        end_all(&usage::members(folder, &[]), END_WITHIN);
        unmount_below(folder);
        let left = mounts_below(folder);
        if !left.is_empty() {
            return Err(Trouble::Failed(format!(
                "still mounted, so {} is left: {}",
                folder.display(),
                left.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
            )));
        }
        match std::fs::remove_dir_all(folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).during(folder.display())
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // A hundred thousand files take a while to remove.
        eprintln!("removing {}", self.root.display());
        self.killer().kill_all();
        if let Err(trouble) = Self::clear(&self.root) {
            eprintln!("warpdrive: {trouble}");
        }
    }
}

/// SIGTERM to each, and SIGKILL to those that are there after `within`.
fn end_all(pids: &[u32], within: Duration) {
    let pids: Vec<Pid> = pids.iter().filter_map(|p| Pid::from_raw(p.cast_signed())).collect();
    for pid in &pids {
        let _ = kill_process(*pid, Signal::TERM);
    }
    let until = Instant::now() + within;
    let there = |pid: &Pid| {
        // A zombie has ended; whoever started it will notice.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
        stat.is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").starts_with(" Z"))
    };
    while pids.iter().any(there) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    for pid in pids.iter().filter(|pid| there(pid)) {
        let _ = kill_process(*pid, Signal::KILL);
    }
    let until = Instant::now() + Duration::from_secs(2);
    while pids.iter().any(there) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Detaches every mount at or below a folder, the deepest first.
pub(crate) fn unmount_below(folder: &Path) {
    for _ in 0..10 {
        let mut mounts = mounts_below(folder);
        if mounts.is_empty() {
            return;
        }
        mounts.sort_by_key(|path| std::cmp::Reverse(path.as_os_str().len()));
        for path in mounts {
            if unmount(&path, UnmountFlags::DETACH).is_err() {
                for program in ["fusermount3", "fusermount"] {
                    let mut command = Command::new(program);
                    command.args(["-u", "-z"]).arg(&path).stderr(Stdio::null());
                    if command.status().is_ok_and(|status| status.success()) {
                        break;
                    }
                }
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What is mounted at or below a folder.
pub(crate) fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(1));
    // The kernel writes a space as \040; names of this bench have none, a parent's may.
    let points = points.map(|point| PathBuf::from(point.replace("\\040", " ")));
    points.filter(|point| point.starts_with(folder)).collect()
}

/// Whether something is mounted exactly here.
pub(crate) fn is_mounted(point: &Path) -> bool {
    mounts_below(point).iter().any(|found| found == point)
}

/// A program of ours. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Process {
    child: Arc<Mutex<Child>>,
    children: Children,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        lock(&self.child).id()
    }

    /// An error with the end of its log when it has ended.
    pub(crate) fn check(&self) -> Result<(), Trouble> {
        match lock(&self.child).try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                Err(Trouble::Failed(format!("{} ended ({status}): {}", self.name, self.tail())))
            }
            Err(error) => Err(Trouble::Failed(format!("{}: {error}", self.name))),
        }
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&self) -> Option<std::process::ExitStatus> {
        lock(&self.child).try_wait().ok().flatten()
    }

    /// The end of what it printed, in one line.
    pub(crate) fn tail(&self) -> String {
        let mut text = Vec::new();
        if let Ok(mut log) = std::fs::File::open(&self.log) {
            let _ = log.read_to_end(&mut text);
        }
        let tail = &text[text.len().saturating_sub(TAIL_BYTES)..];
        String::from_utf8_lossy(tail).trim().replace('\n', " | ")
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(&self) {
        let mut child = lock(&self.child);
        let _ = child.kill();
        let _ = child.wait();
    }

    /// SIGTERM, then SIGKILL where that is not enough.
    pub(crate) fn end(&self) {
        let until = Instant::now() + END_WITHIN;
        let ended = || !matches!(lock(&self.child).try_wait(), Ok(None));
        if !ended() {
            if let Some(pid) = Pid::from_raw(self.pid().cast_signed()) {
                let _ = kill_process(pid, Signal::TERM);
            }
            while !ended() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        self.kill();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
        lock(&self.children).retain(|child| !Arc::ptr_eq(child, &self.child));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_of_a_place() {
        let parent = tempfile::tempdir().unwrap();
        let place = Place::new(parent.path()).unwrap();
        let folder = place.folder("one").unwrap();
        assert_eq!(place.folder("one").unwrap(), place.root().join("one.1"));
        let mut command = Command::new("sh");
        command.args(["-c", "echo started; sleep 60 & exec sleep 60"]);
        let process = place.spawn(command, &folder).unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        while usage::members(&folder, &[]).len() < 2 || !process.tail().contains("started") {
            assert!(Instant::now() < until, "{}", process.tail());
            std::thread::sleep(Duration::from_millis(5));
        }
        process.check().unwrap();
        // A child that nobody waits for is ended with the place.
        drop(process);
        drop(place);
        assert!(usage::members(parent.path(), &[]).is_empty());
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_process_that_ended_says_what_it_printed() {
        let parent = tempfile::tempdir().unwrap();
        let place = Place::new(parent.path()).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo it broke; exit 3"]);
        let process = place.spawn(command, place.root()).unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        let trouble = loop {
            if let Err(trouble) = process.check() {
                break trouble.to_string();
            }
            assert!(Instant::now() < until);
            std::thread::sleep(Duration::from_millis(5));
        };
        assert!(trouble.contains("exit status: 3") && trouble.contains("it broke"), "{trouble}");
    }
}
