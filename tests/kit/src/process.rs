//! A child process that cannot outlive the test.
//!
//! Invariant: a child is ended with its process group when its handle is dropped, at the normal exit
//! of the test program (statics are never dropped), and by the kernel if the test program is killed.
//! Only processes that were started here are ever signalled, and only before they are reaped, so a
//! recycled process id cannot be hit.

use rustix::process::{Pid, Signal, kill_process_group};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

/// How long a child may take to end after SIGTERM before it is killed. Servers of the tests hold
/// nothing that must be saved, so this is short.
const TERM_GRACE: Duration = Duration::from_secs(3);

/// A running child with its own process group and its output in a file.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Mutex<Child>,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with both outputs appended to `log`.
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> io::Result<Process> {
        let output = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = spawn_from_lasting_thread(command)?;
        remember(child.id());
        Ok(Process { name: name.to_owned(), child: Mutex::new(child), log: log.to_owned() })
    }

    /// The child's process id, which is also its group.
    pub fn pid(&self) -> u32 {
        self.lock().id()
    }

    /// Whether the child has not ended.
    pub fn is_running(&self) -> bool {
        matches!(self.lock().try_wait(), Ok(None))
    }

    /// Sends a signal to the child's group; nothing happens when the child has ended.
    pub fn signal(&self, signal: Signal) {
        let mut child = self.lock();
        if matches!(child.try_wait(), Ok(None)) {
            signal_group(child.id(), signal);
        }
    }

    /// Waits for the child to end by itself; `None` when it has not after `limit`.
    pub fn wait(&self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Ok(Some(status)) = self.lock().try_wait() {
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the child: SIGTERM, three seconds of grace, SIGKILL. Returns once it is reaped.
    pub fn stop(&self) {
        // A stopped process does not see SIGTERM before it is continued.
        self.signal(Signal::CONT);
        self.signal(Signal::TERM);
        if self.wait(TERM_GRACE).is_none() {
            self.kill();
        }
        forget(self.pid());
    }

    /// Kills the child's group with SIGKILL and reaps it.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
        self.wait(TERM_GRACE);
        forget(self.pid());
    }

    /// The end of what the child printed, for messages about a failure.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let from = text.len().saturating_sub(4000);
        format!(
            "--- {} ({})\n{}",
            self.name,
            self.log.display(),
            String::from_utf8_lossy(&text[from..])
        )
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

fn signal_group(pid: u32, signal: Signal) {
    if let Some(group) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have ended since it was looked at; that is what was wanted.
        let _ = kill_process_group(group, signal);
    }
}

type Order = (Command, Sender<io::Result<Child>>);

/// Forks from one thread that lives as long as the program: the kernel sends the parent-death signal
/// when the *thread* that forked ends, and the harness runs each test in a thread of its own.
fn spawn_from_lasting_thread(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, incoming) = channel::<Order>();
        std::thread::Builder::new()
            .name("testkit-spawner".to_owned())
            .spawn(move || {
                for (mut command, answer) in incoming {
                    tie_to_parent(&mut command);
                    let _ = answer.send(command.spawn());
                }
            })
            .expect("threads can be started");
        at_exit();
        orders
    });
    let (answer, answered) = channel();
    spawner.send((command, answer)).expect("the spawner thread never ends");
    answered.recv().expect("the spawner thread answers every order")
}

#[allow(unsafe_code)]
fn tie_to_parent(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    let parent = std::process::id();
    command.process_group(0);
    // SAFETY: the closure runs between fork and exec and makes two plain system calls; it takes no
    // lock and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the line above; then nobody will signal.
            let now = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
            if i64::from(now) == i64::from(parent) {
                Ok(())
            } else {
                Err(io::Error::from_raw_os_error(libc::ESRCH))
            }
        });
    }
}

/// What must go when the program exits: statics are not dropped then.
#[derive(Debug, Default)]
struct Leftovers {
    pids: Vec<u32>,
    folders: Vec<PathBuf>,
}

fn leftovers() -> std::sync::MutexGuard<'static, Leftovers> {
    static LEFTOVERS: OnceLock<Mutex<Leftovers>> = OnceLock::new();
    LEFTOVERS.get_or_init(Mutex::default).lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn remember(pid: u32) {
    leftovers().pids.push(pid);
}

fn forget(pid: u32) {
    leftovers().pids.retain(|&other| other != pid);
}

/// Has `folder` removed at the exit of the program unless it is gone by then.
pub(crate) fn remember_folder(folder: &Path) {
    leftovers().folders.push(folder.to_owned());
}

/// A folder that its owner has removed itself.
pub(crate) fn forget_folder(folder: &Path) {
    leftovers().folders.retain(|other| other != folder);
}

#[allow(unsafe_code)]
fn at_exit() {
    extern "C" fn clean() {
        let mut left = leftovers();
        for pid in left.pids.drain(..) {
            signal_group(pid, Signal::KILL);
        }
        for folder in left.folders.drain(..) {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
    // SAFETY: `clean` is a plain function without unwinding paths of its own; the standard library
    // is still usable in handlers that run on the exiting thread.
    unsafe {
        libc::atexit(clean);
    }
}
