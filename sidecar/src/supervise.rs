//! The supervisor: a small parent that starts the worker again when it crashes.
//!
//! Invariant: at most one worker at a time, and none after the supervisor has ended: the kernel
//! tells the worker when its supervisor dies. It has no runtime, reads no configuration, and never
//! starts a worker again that ended because it was told to or because it cannot work.

mod crashes;
mod kernel;
mod link;
mod sockets;
mod store;

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use sd_notify::NotifyState;

use crate::cli::Stop;
use crate::termination::TerminationLog;
use crashes::{Crashes, Verdict};
use kernel::{Inbox, Seen, Worker};
pub(crate) use link::Link;
use sockets::Kept;

/// Crashes within a minute after which a supervisor gives up, where nothing else is said: far more
/// than any accident, and over within seconds where every start fails.
pub(crate) const MAX_CRASHES: u16 = 20;

/// True where the process is the first of its container: nobody else would start a worker again
/// within milliseconds, and nobody else reaps orphans.
pub(crate) fn is_first_process() -> bool {
    std::process::id() == 1
}

/// How a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Code(i32),
    Signal(i32),
}

impl Ended {
    fn of(status: WaitStatus) -> Option<Self> {
        let code = status.exit_status().map(Self::Code);
        code.or_else(|| status.terminating_signal().map(Self::Signal))
    }

    /// The code that a shell would give it.
    fn code(self) -> u8 {
        let code = match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        };
        u8::try_from(code).unwrap_or(u8::MAX)
    }

    /// False where the next worker would end the same way, or is not wanted. A worker that was
    /// ready once may fail for a moment: its predecessor's lock, a port that is not free yet.
    fn is_crash(self, ever_ready: bool) -> bool {
        match self {
            Self::Code(0 | 2 | 130) => false,
            Self::Code(1) => ever_ready,
            Self::Code(_) | Self::Signal(_) => true,
        }
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "ended with exit code {code}"),
            Self::Signal(signal) => {
                let name = match *signal {
                    6 => " (SIGABRT)",
                    7 => " (SIGBUS)",
                    9 => " (SIGKILL)",
                    11 => " (SIGSEGV)",
                    15 => " (SIGTERM)",
                    _ => "",
                };
                write!(f, "was killed by signal {signal}{name}")
            }
        }
    }
}

/// Runs this program again as a worker, and again whenever it crashes. Ends as the worker ends when
/// that was no crash; fails when there were `most` crashes within a minute.
pub(crate) fn supervise(most: u16, termination: &TerminationLog) -> Result<(), Stop> {
    let failed = |what: &str, error: std::io::Error| Stop::Failed(format!("{what}: {error}"));
    let mut kept = Kept::of_manager();
    let inbox = Inbox::open().map_err(|e| failed("signals", e))?;
    let mut crashes = Crashes::new(most);
    let mut state = State::default();
    let mut ended = Ended::Code(0);
    for restarts in 0_u32.. {
        state.worker_ready = false;
        let what = match Worker::spawn(restarts, &mut kept) {
            Ok(worker) => {
                ended = watch(&worker, &inbox, &mut state);
                if state.stopping && matches!(ended, Ended::Signal(_)) {
                    // It cannot say so itself any more.
                    termination.write(&[format!(
                        "the worker {ended} while it ended; what it was writing is not known"
                    )]);
                }
                if state.stopping || !ended.is_crash(state.ever_ready) {
                    return end(ended);
                }
                let pid = worker.pid.as_raw_nonzero();
                kept = worker.into_kept();
                format!("the worker (pid {pid}) {ended}")
            }
            // It did start here before, so the machine is short of something, for a moment perhaps.
            Err(error) if restarts > 0 => format!("the worker cannot be started ({error})"),
            Err(error) => return Err(failed("the worker", error)),
        };
        let again = match crashes.add(Instant::now(), state.worker_ready) {
            Verdict::Again(again) => again,
            Verdict::GiveUp(count) => {
                return Err(Stop::Failed(format!(
                    "{what}, its crash number {count} within a minute: \
                     giving up; see its log above, and start again when the cause is gone"
                )));
            }
        };
        let when = if again.is_zero() { "at once".to_owned() } else { format!("in {again:?}") };
        eprintln!("warpdrive: {what}; it is started again {when}");
        if pause(again, &inbox) {
            return end(ended);
        }
    }
    Ok(())
}

fn end(ended: Ended) -> Result<(), Stop> {
    match ended.code() {
        0 => Ok(()),
        code => Err(Stop::Code(code)),
    }
}

/// What outlives a worker.
#[derive(Debug, Default)]
struct State {
    /// The present worker has served.
    worker_ready: bool,
    /// Any worker has.
    ever_ready: bool,
    /// A signal that asks to stop was passed on.
    stopping: bool,
}

/// Passes on signals and notifications until the worker has ended.
fn watch(worker: &Worker, inbox: &Inbox, state: &mut State) -> Ended {
    loop {
        let mut ended = None;
        // To the end also when the worker has ended: who asks to stop then asks nobody else.
        for seen in inbox.wait(Some(worker), None) {
            match seen {
                Seen::Child => ended = ended.or(reap(worker.pid)),
                Seen::Signal(signal) => {
                    state.stopping |= stops(signal);
                    if ended.is_none() {
                        // It may have ended this moment; that is seen next.
                        let _ = rustix::process::kill_process(worker.pid, signal);
                    }
                }
                Seen::Told(line) => pass_on(&line, state),
            }
        }
        if let Some(ended) = ended {
            return ended;
        }
    }
}

fn stops(signal: Signal) -> bool {
    [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT].contains(&signal)
}

/// The service manager listens to its main process, which is this one.
fn pass_on(line: &str, state: &mut State) {
    let said = match line {
        link::READY => {
            state.worker_ready = true;
            state.ever_ready = true;
            NotifyState::Ready
        }
        link::STOPPING => NotifyState::Stopping,
        _ => return,
    };
    // Without a service manager there is nobody to tell.
    let _ = sd_notify::notify(&[said]);
}

/// Reaps every child that has ended, orphans of the container among them; how the worker ended,
/// where it did.
fn reap(worker: Pid) -> Option<Ended> {
    let mut found = None;
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        if pid == worker {
            found = Ended::of(status).or(found);
        }
    }
    found
}

/// Waits; true where somebody asks to stop meanwhile.
fn pause(time: Duration, inbox: &Inbox) -> bool {
    let until = Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        for seen in inbox.wait(None, Some(left)) {
            match seen {
                Seen::Signal(signal) if stops(signal) => return true,
                Seen::Child => drop(reap(Pid::INIT)),
                Seen::Signal(_) | Seen::Told(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_started_again() {
        for (ended, first, later) in [
            (Ended::Code(0), false, false),
            (Ended::Code(1), false, true),
            (Ended::Code(2), false, false),
            (Ended::Code(101), true, true),
            (Ended::Code(130), false, false),
            (Ended::Signal(9), true, true),
        ] {
            assert_eq!((ended.is_crash(false), ended.is_crash(true)), (first, later), "{ended}");
        }
        assert_eq!(Ended::Signal(9).code(), 137);
        assert_eq!(Ended::Signal(11).to_string(), "was killed by signal 11 (SIGSEGV)");
    }
}
