//! Whether a mount of this program is at a place, and answers.
//!
//! Invariant: this process never touches the mount. A child does, and is left behind where the mount
//! does not answer: a process with a thread that waits for a file system cannot end.

#![allow(unsafe_code)] // fork and what may be done after it have no safe form.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, waitpid};

/// How often the child is looked after; a `stat` that the kernel answers takes microseconds.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// A mount point that is looked at again and again.
#[derive(Debug)]
pub(super) struct Root {
    path: PathBuf,
    /// The child that has not answered yet. There is one at most.
    asked: Option<Pid>,
}

impl Root {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), asked: None }
    }

    /// Holds when the mount table of this process has a mount of this program there and its root
    /// answers by then.
    pub(super) fn look(&mut self, by: Instant) -> Result<(), String> {
        let shown = self.path.display();
        if !fusemount::is_own_mount(&self.path) {
            return Err(format!("no mount of warpdrive is at `{shown}`, as seen from here"));
        }
        let child = match self.asked {
            Some(child) => child,
            None => *self.asked.insert(ask(&self.path)?),
        };
        loop {
            match waitpid(Some(child), WaitOptions::NOHANG) {
                Ok(None) if Instant::now() < by => std::thread::sleep(LOOK_EVERY),
                Ok(None) => return Err(format!("the mount at `{shown}` does not answer")),
                Ok(Some((_, status))) => {
                    self.asked = None;
                    return match status.exit_status() {
                        Some(0) => Ok(()),
                        Some(code) => {
                            let error = std::io::Error::from_raw_os_error(code);
                            Err(format!("the mount at `{shown}` answers: {error}"))
                        }
                        None => Err(format!("asking the mount at `{shown}` was interrupted")),
                    };
                }
                Err(Errno::INTR) => {}
                Err(error) => {
                    self.asked = None;
                    return Err(format!("asking the mount at `{shown}` failed: {error}"));
                }
            }
        }
    }
}

/// Starts a child whose exit code is the `errno` of a `stat` of the path's root.
fn ask(path: &Path) -> Result<Pid, String> {
    let path = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| "--mount: a path has no zero byte".to_owned())?;
    // SAFETY: all zeroes are a valid `statvfs`, which is only written to.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: between fork and `_exit` the child makes system calls only and allocates nothing, so
    // that it does not matter what other threads held; the string and `found` are its own copies.
    let child = unsafe {
        match libc::fork() {
            0 => {
                // Whoever reads what this program prints waits until nobody has it open.
                for descriptor in 0..3 {
                    libc::close(descriptor);
                }
                // Unlike `stat`, never answered from what the kernel remembers.
                let code = if libc::statvfs(path.as_ptr(), &raw mut found) == 0 {
                    0
                } else {
                    *libc::__errno_location()
                };
                libc::_exit(code)
            }
            child => child,
        }
    };
    let failed = || format!("no process can be started: {}", std::io::Error::last_os_error());
    if child < 0 { Err(failed()) } else { Pid::from_raw(child).ok_or_else(failed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_no_mount_of_this_program() {
        let by = Instant::now() + Duration::from_secs(20);
        for path in ["/", "/proc", "/no/such/place"] {
            let found = Root::new(Path::new(path)).look(by).unwrap_err();
            assert!(found.starts_with("no mount of warpdrive is at"), "{found}");
        }
    }

    #[test]
    fn the_child_answers_with_the_error() {
        for (path, wanted) in [("/", 0), ("/no/such/place", libc::ENOENT)] {
            let child = ask(Path::new(path)).unwrap();
            let (_, status) = waitpid(Some(child), WaitOptions::empty()).unwrap().unwrap();
            assert_eq!(status.exit_status(), Some(wanted), "{path}");
        }
    }
}
