//! A parent for the holder where nothing else would take its mount away: the first process of a container.
//!
//! Invariant: when this returns the mount of a holder that was killed is gone. A pod whose containers
//! are not started again would keep it on its node for ever otherwise, and its volume with it. It
//! serves nothing, starts nothing again, and is as helpless as the holder when it is killed itself.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, wait};

use crate::holder::{ending, failed, say};
use crate::mount::{MountError, Privilege, detach, is_own_mount};

/// How often orphans are reaped while nothing happens: a probe leaves one at most.
const REAP_EVERY: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };
/// Mounts that can lie on each other: a holder makes one, and what crashes leave is few.
const MOST_MOUNTS: usize = 16;

/// Runs `holder`, a command that ends up in [`crate::hold`] for `mount_point`, passes signals on to
/// it, and takes away the mount if it does not end by itself.
pub fn guard(mount_point: &Path, mut holder: Command) -> Result<(), MountError> {
    let ending = ending().map_err(|error| failed("handling signals", &error))?;
    let child = holder.spawn().map_err(|error| failed("starting the holder", &error))?;
    let status =
        watch(&child, &ending).map_err(|error| failed("waiting for the holder", &error))?;
    if status.code() == Some(0) {
        return Ok(());
    }
    let mut left = 0;
    while is_own_mount(mount_point) && left < MOST_MOUNTS {
        left += 1;
        if let Err(reason) = detach(mount_point, Privilege::Own, true) {
            say(format_args!("the mount at `{}` stays: {reason}", mount_point.display()));
            break;
        }
    }
    let how = match status.code() {
        // It has said why.
        Some(code) => format!("the holder ended with {code}"),
        None => format!("the holder was killed by signal {}", status.signal().unwrap_or_default()),
    };
    let gone = if left > 0 { "; its mount was taken away" } else { "" };
    Err(MountError::Refused(format!("{how}{gone}")))
}

/// Until the child has ended: each signal that ends a holder goes to it, and orphans are reaped.
fn watch(child: &Child, ending: &std::os::fd::OwnedFd) -> io::Result<ExitStatus> {
    let pid = Pid::from_child(child);
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    loop {
        let mut polled = [PollFd::new(ending, PollFlags::IN), PollFd::new(&process, PollFlags::IN)];
        match poll(&mut polled, Some(&REAP_EVERY)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut noted = [0_u8; 64];
        while rustix::io::read(ending, &mut noted).is_ok_and(|count| count > 0) {
            // One that has ended is found out below.
            let _ = kill_process(pid, Signal::TERM);
        }
        while let Ok(Some((ended, status))) = wait(WaitOptions::NOHANG) {
            if ended == pid {
                return Ok(ExitStatus::from_raw(status.as_raw()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_holder_came_to_is_told() {
        let shell = |text: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", text]);
            command
        };
        let nowhere = Path::new("/nonexistent");
        assert!(guard(nowhere, shell("exit 0")).is_ok());
        let ended = guard(nowhere, shell("exit 3")).unwrap_err().to_string();
        assert!(ended.contains("ended with 3") && !ended.contains("taken away"), "{ended}");
        let killed = guard(nowhere, shell("kill -9 $$")).unwrap_err().to_string();
        assert!(killed.contains("killed by signal 9"), "{killed}");
    }
}
