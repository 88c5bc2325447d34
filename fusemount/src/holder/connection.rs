//! The connection to the kernel that a holder keeps: one mount, from `mount(2)` to `umount2(2)`.
//!
//! Invariant: the holder's own descriptor never waits and is given to nobody; each that a worker
//! reads from is kept here too, so what a dead worker had taken is not lost with its descriptors.
//! INIT is read once and answered once.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::registrations::Registrations;
use super::wire::MAX_DESCRIPTORS;
use super::{device, say};
use crate::config::HolderConfig;
use crate::mount::{MountEntry, MountError, attach_own, mounted_at, raise_read_ahead, take_away};

/// `FUSE_MIN_READ_BUFFER`, the least that the kernel reads a request into.
const LEAST_BUFFER_BYTES: usize = 8192;

/// More than any worker asks for, so that its answer cannot make the holder grow: the kernel's own
/// bound is 32 MiB with 16 KiB pages.
const MOST_BUFFER_BYTES: usize = 33 << 20;

/// The kernel sends INIT with `mount(2)`.
const INIT_WITHIN: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// Requests refused before the holder looks at its sockets again.
const REFUSALS_AT_ONCE: usize = 64;

/// `fuse_in_header`: length, opcode, unique, node, uid, gid, pid and padding.
const IN_HEADER_BYTES: usize = 40;

/// `FUSE_NOTIFY_RESEND` in `fuse_notify_code`.
const NOTIFY_RESEND: i32 = 7;

/// `FORGET`, `INTERRUPT` and `BATCH_FORGET` have no answer.
const UNANSWERED: [u32; 3] = [2, 36, 42];

/// A mount of this process.
#[derive(Debug)]
pub(super) struct Connection {
    /// Readable when a request waits, an error when the mount is gone.
    pub(super) device: OwnedFd,
    /// For the event loops of workers.
    pub(super) loops: Vec<OwnedFd>,
    /// The kernel's first message.
    pub(super) init: Vec<u8>,
    /// What the first worker answered to it.
    answer: Option<Vec<u8>>,
    /// Another for each mount, so that nobody takes one for another.
    pub(super) id: [u8; 16],
    target: PathBuf,
    entry: Option<MountEntry>,
    read_ahead_kib: u32,
    pub(super) registrations: Registrations,
}

impl Connection {
    /// Mounts at an existing directory.
    pub(super) fn open(target: &Path, config: &HolderConfig) -> Result<Self, MountError> {
        let refused = |error: io::Error| {
            MountError::Refused(format!("holding `{}` failed: {error}", target.display()))
        };
        let mut connection = Self {
            device: attach_own(target, config.allow_other)?.into(),
            loops: Vec::new(),
            init: vec![0; LEAST_BUFFER_BYTES],
            answer: None,
            id: [0; 16],
            target: target.to_owned(),
            entry: mounted_at(target),
            read_ahead_kib: config.read_ahead_kib,
            registrations: Registrations::default(),
        };
        // From here on dropping `connection` unmounts.
        connection.begin(config.loops).map_err(refused)?;
        Ok(connection)
    }

    fn begin(&mut self, loops: usize) -> io::Result<()> {
        rustix::rand::getrandom(&mut self.id, rustix::rand::GetRandomFlags::empty())?;
        rustix::io::ioctl_fionbio(&self.device, true)?;
        poll(&mut [PollFd::new(&self.device, PollFlags::IN)], Some(&INIT_WITHIN))?;
        let length = rustix::io::read(&self.device, &mut self.init)?;
        self.init.truncate(length);
        self.loops = self.clones(loops)?;
        Ok(())
    }

    fn clones(&self, count: usize) -> io::Result<Vec<OwnedFd>> {
        let count = count.clamp(1, MAX_DESCRIPTORS);
        (0..count).map(|_| device::clone(self.device.as_fd())).collect()
    }

    /// True once the kernel has an answer to INIT, and so knows nodes.
    pub(super) fn is_begun(&self) -> bool {
        self.answer.is_some()
    }

    /// Gives the kernel the first worker's answer to INIT, or compares a later one's. True when the
    /// kernel goes by this answer; the words are for a person.
    pub(super) fn answer(&mut self, answer: Vec<u8>) -> io::Result<(bool, String)> {
        if let Some(first) = &self.answer {
            let note = "other settings than the first worker's take effect with the next mount";
            let same = *first == answer;
            return Ok((same, if same { String::new() } else { note.to_owned() }));
        }
        if answer.get(8..16) != self.init.get(8..16) {
            return Err(Errno::INVAL.into());
        }
        rustix::io::write(&self.device, &answer)?;
        self.answer = Some(answer);
        // Only now, because the kernel sets its own when it hears the answer.
        let device = self.entry.as_ref().map(|entry| entry.device.as_str());
        let raised = raise_read_ahead(device, self.read_ahead_kib);
        Ok((true, raised.err().unwrap_or_default()))
    }

    /// Has the kernel send again what a worker had taken and not answered. Nobody may be reading.
    pub(super) fn resend(&mut self) {
        // INIT itself is not answered before, and would be sent again.
        if !self.is_begun() {
            return;
        }
        let message = out_header(NOTIFY_RESEND, [0; 8]);
        let Err(error) = rustix::io::write(&self.device, &message) else { return };
        // Before Linux 6.9. Closing the descriptors that they were read from ends those requests
        // with ECONNABORTED, which is better than never.
        say(format_args!("requests cannot be sent again ({error}); those in flight have failed"));
        match self.clones(self.loops.len()) {
            Ok(loops) => self.loops = loops,
            Err(error) => say(format_args!("new descriptors of the device: {error}")),
        }
    }

    /// Answers waiting requests with EIO; not all when there are many.
    pub(super) fn refuse_requests(&self) -> io::Result<()> {
        let most = self.answer.as_ref().and_then(|answer| answer.get(36..40)?.try_into().ok());
        let max_write = most.map_or(0, u32::from_ne_bytes) as usize;
        // Memory that is not written to is not used: these requests carry a name at most.
        let size = max_write.saturating_add(4096).clamp(LEAST_BUFFER_BYTES, MOST_BUFFER_BYTES);
        let mut buffer = vec![0; size];
        for _ in 0..REFUSALS_AT_ONCE {
            let length = match rustix::io::read(&self.device, &mut buffer) {
                Ok(length) => length,
                // Interrupted; also by the end of the caller before the request was read.
                Err(Errno::INTR | Errno::NOENT) => continue,
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let Some(refusal) = refusal(&buffer[..length]) else { continue };
            // It fails for a request whose caller has gone.
            let _ = rustix::io::write(&self.device, &refusal);
        }
        Ok(())
    }

    /// Takes the mount away: only if nobody uses it, or in any case, with what lies on it.
    pub(super) fn unmount(&self, lazily: bool) -> io::Result<()> {
        take_away(&self.target, self.entry.as_ref(), lazily)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Err(error) = self.unmount(true) {
            say(format_args!("`{}` cannot be unmounted: {error}", self.target.display()));
        }
    }
}

/// The answer EIO to a request; none to those that want none, and to what is no request.
fn refusal(request: &[u8]) -> Option<[u8; 16]> {
    let opcode = u32::from_ne_bytes(request.get(4..8)?.try_into().ok()?);
    if request.len() < IN_HEADER_BYTES || UNANSWERED.contains(&opcode) {
        return None;
    }
    Some(out_header(-Errno::IO.raw_os_error(), request.get(8..16)?.try_into().ok()?))
}

/// A `fuse_out_header`: length, error, unique.
fn out_header(error: i32, unique: [u8; 8]) -> [u8; 16] {
    let mut out = [0; 16];
    out[..4].copy_from_slice(&16_u32.to_ne_bytes());
    out[4..8].copy_from_slice(&error.to_ne_bytes());
    out[8..].copy_from_slice(&unique);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wants_an_answer_is_refused() {
        let mut request = [7; 80];
        request[4..8].copy_from_slice(&15_u32.to_ne_bytes());
        let answer = refusal(&request).unwrap();
        assert_eq!(answer[..4], 16_u32.to_ne_bytes());
        assert_eq!(answer[4..8], (-5_i32).to_ne_bytes());
        assert_eq!(answer[8..], [7; 8]);
        for opcode in UNANSWERED {
            request[4..8].copy_from_slice(&opcode.to_ne_bytes());
            assert_eq!(refusal(&request), None);
        }
        for length in 0..IN_HEADER_BYTES {
            assert_eq!(refusal(&[7; IN_HEADER_BYTES][..length]), None);
        }
    }
}
