//! Starting, finding and ending the mount holders of pods.
//!
//! Invariant: a holder that was started depends on nothing of the node service: it has a session, a
//! control group, a network (of nothing) and a log of its own, and few of its rights. Whoever is signalled is the process
//! that was recorded, never another with its number.

#![allow(unsafe_code)] // What a new process does before it becomes the holder.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, WaitOptions, pidfd_open, pidfd_send_signal,
    setrlimit, setsid, waitpid,
};
use rustix::thread::{
    CapabilitySet, UnshareFlags, remove_capability_from_bounding_set, set_no_new_privs,
    unshare_unsafe,
};

use super::cgroup::Doors;
use super::record::Process;

/// What a holder says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HolderAnswer {
    /// Its process, where it can be seen from here.
    pub pid: Option<u32>,
    /// Where it has mounted.
    pub mount_point: PathBuf,
}

/// Asks the holder behind a socket who it is: within seconds, and `None` where none answers.
pub type AskHolder = fn(&Path) -> Option<HolderAnswer>;

/// How long a new holder may take to answer. Looking at a mount point that hangs takes it 2 s.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// How long a holder may take to end: it lets programs use the mount for [`GRACE`], then detaches it.
const ENDS_WITHIN: Duration = Duration::from_secs(5);

/// How long a killed process may take to be gone.
const DIES_WITHIN: Duration = Duration::from_secs(5);

/// How often a process or a socket is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// `--grace` of a holder: when it is told to end, its pod's containers are gone.
const GRACE: &str = "1s";

/// Ours is that of what a node cannot do without (kubelet has -999): the holder is small, and all
/// of its pod's reads hang on it.
const OOM_SCORE: &str = "-998";

/// What a holder may do besides what any root may to its own files: mount and register files, kill a
/// worker that does not leave, and give the socket to its user.
const CAPABILITIES: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::DAC_OVERRIDE);

/// As much as is shown of what a holder said before it ended.
const SAID_BYTES: u64 = 600;

/// A log that has grown beyond this begins again: whoever may connect can make a holder say things.
const LOG_BYTES: u64 = 256 << 10;

/// A log ends here while no node service runs; a holder writes no other file.
const MAX_LOG_BYTES: u64 = 4 * LOG_BYTES;

/// How holders are started.
#[derive(Debug, Clone)]
pub(super) struct Starter {
    /// The program with the command `mountd`.
    pub(super) program: PathBuf,
    pub(super) patience: Duration,
    /// Whether root may be the worker of any pod.
    pub(super) allow_root: bool,
    pub(super) ask: AskHolder,
}

impl Starter {
    /// Starts a holder; returns when it is a process, which has not mounted yet.
    pub(super) fn spawn(
        &self,
        target: &Path,
        socket: &Path,
        worker: u32,
        log: &Path,
        doors: Doors,
    ) -> io::Result<Process> {
        let log = File::options().create(true).append(true).open(log)?;
        let mut command = Command::new(&self.program);
        command
            .arg("mountd")
            .arg("--mount-point")
            .arg(target)
            .arg("--socket")
            .arg(socket)
            .arg("--allow-other")
            .args(["--allow-uid", &worker.to_string()])
            .args(["--patience", &format!("{}ms", self.patience.as_millis())])
            .args(["--grace", GRACE])
            .args((!self.allow_root).then_some("--only-allowed"))
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        // SAFETY: system calls only; nothing of the parent is touched, nothing allocated.
        unsafe {
            command.pre_exec(move || {
                for door in &doors.0 {
                    rustix::io::write(door, b"0")?;
                }
                setsid()?;
                // It talks through sockets in the file system, which need no network.
                let own = UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
                unshare_unsafe(own)?;
                for other in CapabilitySet::all().difference(CAPABILITIES).iter() {
                    // One that this kernel does not know, or that nobody here has.
                    let _ = remove_capability_from_bounding_set(other);
                }
                set_no_new_privs(true)?;
                limit_files(MAX_LOG_BYTES)?;
                Ok(())
            });
        }
        let child = command.spawn()?;
        let pid = child.id();
        let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE);
        Process::find(pid).ok_or_else(|| {
            reap(pid);
            io::Error::other("it ended at once")
        })
    }

    /// Waits until a holder has mounted and answers.
    pub(super) fn await_answer(
        &self,
        holder: Process,
        target: &Path,
        socket: &Path,
        log: &Path,
    ) -> Result<(), String> {
        let until = Instant::now() + ANSWERS_WITHIN;
        loop {
            if (self.ask)(socket).is_some_and(|answer| answer.mount_point == target) {
                return Ok(());
            }
            if !holder.is_alive() {
                reap(holder.pid);
                return Err(format!("the mount holder ended: {}", last_words(log)));
            }
            if Instant::now() >= until {
                return Err(format!("the mount holder did not answer within {ANSWERS_WITHIN:?}"));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// The process of the holder that has a target, by its socket.
    pub(super) fn find(&self, target: &Path, socket: &Path) -> Option<Process> {
        let answer = (self.ask)(socket).filter(|answer| answer.mount_point == target)?;
        Process::find(answer.pid?)
    }
}

/// The user that a holder was told to take as its worker.
pub(super) fn worker_of(holder: Process) -> Option<u32> {
    let command = std::fs::read(format!("/proc/{}/cmdline", holder.pid)).ok()?;
    let mut words = command.split(|byte| *byte == 0);
    words.find(|word| *word == b"--allow-uid")?;
    std::str::from_utf8(words.next()?).ok()?.parse().ok()
}

/// Ends a holder, gently first. True when it is gone.
pub(super) fn end(holder: Process) -> bool {
    end_within(holder, ENDS_WITHIN)
}

fn end_within(holder: Process, limit: Duration) -> bool {
    signal(holder, Signal::TERM);
    if is_gone_within(holder, limit) {
        return true;
    }
    tracing::warn!(pid = holder.pid, "the mount holder does not end; killing it");
    signal(holder, Signal::KILL);
    is_gone_within(holder, DIES_WITHIN)
}

/// Lets this process, and what it becomes, write no file beyond a length; more fails with EFBIG.
fn limit_files(bytes: u64) -> io::Result<()> {
    // SAFETY: ignoring a signal runs nothing. It would end the process, which is to go on.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    Ok(setrlimit(Resource::Fsize, Rlimit { current: Some(bytes), maximum: Some(bytes) })?)
}

fn signal(holder: Process, signal: Signal) {
    let Some(pid) = i32::try_from(holder.pid).ok().and_then(Pid::from_raw) else { return };
    signal_if(pid, signal, || holder.is_alive());
}

/// Signals a process if it is still the one that is meant.
pub(super) fn signal_if(pid: Pid, signal: Signal, is_meant: impl FnOnce() -> bool) {
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    // The descriptor is of whoever has the number now; from here on it cannot change.
    if is_meant() {
        let _ = pidfd_send_signal(process, signal);
    }
}

fn is_gone_within(holder: Process, limit: Duration) -> bool {
    let until = Instant::now() + limit;
    while holder.is_alive() {
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    reap(holder.pid);
    true
}

/// Forgets a child that has ended; it does nothing about one of another parent.
pub(super) fn reap(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let _ = pid.map(|pid| waitpid(Some(pid), WaitOptions::NOHANG));
}

/// The end of what a holder said.
pub(super) fn last_words(log: &Path) -> String {
    let read = || {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(SAID_BYTES)))?;
        let mut said = Vec::new();
        file.take(SAID_BYTES).read_to_end(&mut said)?;
        io::Result::Ok(String::from_utf8_lossy(&said).into_owned())
    };
    let said = read().unwrap_or_default();
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match &lines[lines.len().saturating_sub(3)..] {
        [] => "it said nothing".to_owned(),
        last => last.join("; "),
    }
}

/// Begins a log that has become too long again; its writer appends.
pub(super) fn trim(log: &Path) {
    if std::fs::metadata(log).is_ok_and(|file| file.len() > LOG_BYTES)
        && let Ok(file) = File::options().write(true).open(log)
    {
        let _ = file.set_len(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_few() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        assert_eq!(last_words(&log), "it said nothing");
        std::fs::write(&log, "one\ntwo\n\nthree\nfour\n").unwrap();
        assert_eq!(last_words(&log), "two; three; four");
        std::fs::write(&log, "x".repeat(5000)).unwrap();
        assert!(last_words(&log).len() <= 600);
        trim(&log);
        assert_eq!(std::fs::metadata(&log).unwrap().len(), 5000);
        std::fs::write(&log, "x".repeat(300 << 10)).unwrap();
        trim(&log);
        assert_eq!(std::fs::metadata(&log).unwrap().len(), 0);
    }

    #[test]
    fn who_says_too_much_goes_on_and_its_log_ends() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "for i in $(seq 100); do echo 0123456789 >&2; done 2>>$0; exit 7"])
            .arg(&log)
            .stderr(Stdio::null());
        // SAFETY: system calls only; nothing is allocated.
        unsafe { command.pre_exec(|| limit_files(300)) };
        assert_eq!(command.status().unwrap().code(), Some(7));
        assert_eq!(std::fs::metadata(&log).unwrap().len(), 300);
    }

    #[test]
    fn a_process_is_ended_gently_or_not() {
        for deaf in ["", "trap '' TERM; "] {
            let script = format!("{deaf}echo ready; while :; do sleep 0.05; done");
            let mut child = Command::new("/bin/sh")
                .args(["-c", &script])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdout.take().unwrap().read_exact(&mut [0; 6]).unwrap();
            let process = Process::find(child.id()).unwrap();
            let another = Process { start_ticks: process.start_ticks + 1, ..process };
            assert!(end(another));
            assert!(process.is_alive());
            let limit = Duration::from_millis(if deaf.is_empty() { 10_000 } else { 100 });
            assert!(end_within(process, limit));
            assert!(!process.is_alive());
            // It has been, by its number.
            let _ = child.wait();
        }
    }
}
