//! How long an operation may take: until its timeout, or until its caller is about to end.
//!
//! Invariant: [`bounded`] returns within its limit whatever the work does; work that is given up
//! is dropped. fuser answers `FUSE_INTERRUPT` itself with ENOSYS, after which the kernel waits for
//! every reply without listening to signals, even SIGKILL. Therefore a slow operation looks for
//! signals itself, in `/proc`; where the caller is in another PID namespace and has no number
//! here, only the timeout bounds it. (The kernel numbers callers as the process that mounted sees
//! them, which is this one.)

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use store::{Error, ErrorKind};
use tokio::time::{Instant, timeout_at};

use crate::errno::{Failure, Result};

/// How often a slow operation looks for signals of its caller: soon enough for a person who
/// pressed Ctrl-C, and never in an operation of normal length.
const CHECK_EVERY: Duration = Duration::from_millis(250);

/// How long work goes on for a caller that is gone: a read-ahead may outlive its reader by a
/// little, but its pages are locked, and others who want them wait.
const GONE_GRACE: Duration = Duration::from_secs(2);

/// Signals that a person or a supervisor sends to end a program, as bits of the masks in `/proc`:
/// SIGHUP, SIGINT, SIGQUIT, SIGTERM.
const ENDING: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 14;

/// SIGKILL; the kernel also sets it when any other signal is going to end the process.
const KILL: u64 = 1 << 8;

/// Which waiting signals make an operation give up.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Heed {
    /// Those that end the thread or ask it to, also where a handler takes them: EINTR is what a
    /// program with a handler expects.
    Handled,
    /// Only those that certainly end it. For reads of pages: a program that maps a file would get
    /// SIGBUS, one that reads an error that no local file gives, for a signal that it survives.
    Fatal,
}

/// The outcome of `work`, or ETIMEDOUT after `limit`, or EINTR when a signal that is heeded is
/// ending the thread `pid` (0 when it cannot be known).
pub(crate) async fn bounded<T>(
    pid: u32,
    heed: Heed,
    limit: Duration,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let began = Instant::now();
    let deadline = began + limit;
    let mut work = pin!(work);
    loop {
        let check = deadline.min(Instant::now() + CHECK_EVERY);
        if let Ok(outcome) = timeout_at(check, &mut work).await {
            return outcome;
        }
        if Instant::now() >= deadline {
            let text = format!("no answer within {} s", limit.as_secs_f64());
            return Err(Error::new(ErrorKind::Timeout, text).into());
        }
        if is_ending(pid, heed) || (began.elapsed() >= GONE_GRACE && is_gone(pid)) {
            return Err(Failure::from(Errno::INTR));
        }
    }
}

/// True when a signal that is heeded waits for the thread.
fn is_ending(pid: u32, heed: Heed) -> bool {
    if pid == 0 {
        return false;
    }
    std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| heed.ends(&status))
}

/// True when there is no such thread any more. Not asked of `/proc`, which may hide others'.
fn is_gone(pid: u32) -> bool {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return false };
    test_kill_process(pid) == Err(Errno::SRCH)
}

impl Heed {
    /// True when the thread of this `/proc/PID/status` is about to end.
    fn ends(self, status: &str) -> bool {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map_or("", str::trim)
        };
        let mask = |name: &str| u64::from_str_radix(field(name), 16).unwrap_or(0);
        let pending = mask("SigPnd") | mask("ShdPnd");
        let heard = !(mask("SigBlk") | mask("SigIgn"));
        let ending = pending & ENDING & heard;
        pending & KILL != 0
            || match self {
                Self::Handled => ending != 0,
                // SIGQUIT dumps core, which the kernel does not announce as SIGKILL. A debugger
                // may keep a signal from the program that it traces.
                Self::Fatal => ending & !mask("SigCgt") != 0 && field("TracerPid") == "0",
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pending: u64, shared: u64, blocked: u64, caught: u64) -> String {
        format!(
            "Name:\tcat\nState:\tD (disk sleep)\nTracerPid:\t0\nSigPnd:\t{pending:016x}\n\
             ShdPnd:\t{shared:016x}\nSigBlk:\t{blocked:016x}\nSigIgn:\t{:016x}\n\
             SigCgt:\t{caught:016x}\n",
            0
        )
    }

    #[test]
    fn signals_that_end_are_told_from_others() {
        const INT: u64 = 1 << 1;
        for heed in [Heed::Handled, Heed::Fatal] {
            assert!(heed.ends(&status(KILL, 0, 0, 0)));
            assert!(heed.ends(&status(0, INT, 0, 0)));
            assert!(!heed.ends(&status(0, INT, INT, 0)), "blocked");
            assert!(!heed.ends(&status(0, 1 << 13, 0, 0)), "SIGALRM");
            assert!(!heed.ends(&status(0, 0, 0, 0)));
            assert!(!heed.ends(""));
            assert!(!is_ending(std::process::id(), heed));
        }
        let caught = status(INT, 0, 0, INT);
        assert!(Heed::Handled.ends(&caught));
        assert!(!Heed::Fatal.ends(&caught), "a handler runs, and the program goes on");
        let traced = status(INT, 0, 0, 0).replace("TracerPid:\t0", "TracerPid:\t77");
        assert!(!Heed::Fatal.ends(&traced), "a debugger may keep it");
        assert!(
            Heed::Fatal.ends(&traced.replace("ShdPnd:\t00000000000000", "ShdPnd:\t00000000000001"))
        );
        assert!(!is_gone(std::process::id()) && !is_gone(1) && !is_gone(0));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert!(is_gone(child.id()));
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_hangs_is_given_up_in_time() {
        let began = Instant::now();
        let hang = std::future::pending::<Result<()>>();
        let failure = bounded(0, Heed::Handled, Duration::from_secs(3), hang).await.unwrap_err();
        assert_eq!(failure.errno, Errno::TIMEDOUT);
        assert_eq!(began.elapsed(), Duration::from_secs(3));
        assert!(bounded(0, Heed::Handled, Duration::from_secs(3), async { Ok(()) }).await.is_ok());
    }
}
