//! A holder of one's own, for a machine on which nobody else starts one.
//!
//! Invariant: on success a holder of that mount point answers on the socket, and it outlives this
//! process. A holder that is there already is used. It does not say what a worker may do there.

#![allow(unsafe_code)] // A new session for the child.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::inquire::{HolderStatus, holder_status};
use super::{MountError, point};

/// How long a new holder may take to answer. Looking at a mount point that hangs takes it 2 s.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// How often a new holder is asked.
const ASK_EVERY: Duration = Duration::from_millis(10);

/// As much as is shown of what a holder said before it gave up.
const SAID_BYTES: u64 = 2000;

/// Makes sure that a holder has the mount point and listens on the socket: one that is there is
/// used, or else `command` is started, which must call [`crate::hold`] with these two. It blocks
/// until the holder answers, some milliseconds, ten seconds at most.
///
/// The holder gets a session of its own and no standard streams of ours, and goes on when this
/// process ends. What it says goes to `log`, or nowhere.
pub fn spawn_holder(
    mut command: Command,
    mount_point: &Path,
    socket: &Path,
    log: Option<&Path>,
) -> Result<PathBuf, MountError> {
    let refused = |what: String| MountError::Refused(format!("starting a mount holder: {what}"));
    if is_holder_of(mount_point, socket)? {
        return Ok(socket.to_owned());
    }
    // A holder makes the directory where a volume comes empty; here a missing one is a mistake, such
    // as a name that was mistyped.
    if point::check_mount_point(mount_point) == point::MountPointState::Missing {
        return Err(super::clear::missing(mount_point));
    }
    let said = match log {
        Some(log) => std::fs::File::options()
            .create(true)
            .append(true)
            .open(log)
            .map(|file| Stdio::from(OwnedFd::from(file)))
            .map_err(|error| refused(format!("`{}`: {error}", log.display())))?,
        None => Stdio::piped(),
    };
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said).current_dir("/");
    // SAFETY: `setsid` is a system call, and touches nothing of this process.
    unsafe {
        command.pre_exec(|| {
            // It fails for the leader of a group, which a new process is not.
            rustix::process::setsid()?;
            Ok(())
        });
    }
    let mut child = command.spawn().map_err(|error| refused(error.to_string()))?;
    let until = Instant::now() + ANSWERS_WITHIN;
    loop {
        if is_holder_of(mount_point, socket)? {
            // What it says from now on is for nobody. It may end before this process.
            drop(child.stderr.take());
            let reap = move || _ = child.wait();
            let _ = std::thread::Builder::new().name("holder-reaper".into()).spawn(reap);
            return Ok(socket.to_owned());
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(refused(last_words(&mut child, status.to_string(), log)));
        }
        if Instant::now() >= until {
            let _ = child.kill();
            let _ = child.wait();
            return Err(refused(format!("it did not answer within {ANSWERS_WITHIN:?}")));
        }
        std::thread::sleep(ASK_EVERY);
    }
}

fn last_words(child: &mut Child, status: String, log: Option<&Path>) -> String {
    if let Some(log) = log {
        return format!("{status}; `{}` says why", log.display());
    }
    let mut said = String::new();
    if let Some(stderr) = child.stderr.take() {
        // What can be read is better than nothing.
        let _ = stderr.take(SAID_BYTES).read_to_string(&mut said);
    }
    let said = said.trim();
    if said.is_empty() { status } else { said.to_owned() }
}

/// True when a holder of this mount point answers on a socket; an error if another's does.
fn is_holder_of(mount_point: &Path, socket: &Path) -> Result<bool, MountError> {
    let Some(HolderStatus { mount_point: has, .. }) = holder_status(socket) else {
        return Ok(false);
    };
    if has == point::resolve_unseen(mount_point) {
        return Ok(true);
    }
    Err(MountError::Refused(format!(
        "the mount holder on `{}` has `{}`; name another socket",
        socket.display(),
        has.display()
    )))
}
