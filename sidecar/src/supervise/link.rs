//! What a worker tells its supervisor.
//!
//! Invariant: telling never fails and never waits: a supervisor that does not listen is the
//! supervisor's trouble. A process that a supervisor did not start has no link.

use std::fs::File;
use std::io::Write;

use super::kernel;

/// How the supervisor names itself to the worker: its process id, the descriptor of the pipe, and
/// how often it has started a worker again.
pub(super) const VARIABLE: &str = "WARPDRIVE_SUPERVISOR";
/// The worker serves. The words are those of sd_notify(3).
pub(super) const READY: &str = "READY=1";
/// The worker was asked to stop.
pub(super) const STOPPING: &str = "STOPPING=1";

/// A worker's way to its supervisor.
#[derive(Debug)]
pub(crate) struct Link {
    pipe: File,
    supervisor: u32,
    restarts: u32,
}

impl Link {
    /// The link of this process; `None` where no supervisor is its parent. Only the first call can
    /// answer with one.
    pub(crate) fn of_process() -> Option<Self> {
        let value = std::env::var(VARIABLE).ok()?;
        let (parent, descriptor, restarts) = parse(&value)?;
        // The variable is inherited by what the worker starts; its parent is another.
        let is_ours = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
        if is_ours != Some(parent) {
            return None;
        }
        let supervisor = parent.unsigned_abs();
        Some(Self { pipe: kernel::take_pipe(descriptor)?, supervisor, restarts })
    }

    /// The process that stays the same over restarts.
    pub(crate) fn supervisor(&self) -> u32 {
        self.supervisor
    }

    /// How often this worker's supervisor has started one again.
    pub(crate) fn restarts(&self) -> u32 {
        self.restarts
    }

    /// The worker serves.
    pub(crate) fn ready(&self) {
        self.tell(READY);
    }

    /// The worker was asked to stop.
    pub(crate) fn stopping(&self) {
        self.tell(STOPPING);
    }

    fn tell(&self, line: &str) {
        let _ = (&self.pipe).write_all(format!("{line}\n").as_bytes());
    }
}

fn parse(value: &str) -> Option<(i32, i32, u32)> {
    let mut parts = value.split(':');
    let parsed =
        (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next().is_none().then_some(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_values_are_read() {
        assert_eq!(parse("1:4:17"), Some((1, 4, 17)));
        for bad in ["", "1", "1:4", "1:4:-1", "1:4:1:1", "x:4:1", "99999999999:4:1"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
