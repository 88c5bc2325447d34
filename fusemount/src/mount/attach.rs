//! Attaching a FUSE file system: with `mount(2)` where that is allowed, else by `fusermount3`.
//!
//! Invariant: on success the descriptor is connected to a mount at the target; on failure nothing
//! is mounted. It does not speak FUSE.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{getegid, geteuid};

use super::{MountError, Privilege};
use crate::config::MountConfig;
use crate::holder::device::{self, DEVICE};

/// The source and the type's second half in the mount table: `warpdrive on /data type fuse.warpdrive`.
const NAME: &str = "warpdrive";

/// In the order of preference; the second is what FUSE 2 installs.
const HELPERS: [&str; 2] = ["fusermount3", "fusermount"];

/// A mount that waits for its session.
#[derive(Debug)]
pub(crate) struct Attached {
    /// `/dev/fuse`, connected.
    pub(crate) device: OwnedFd,
    /// How it was attached.
    pub(crate) privilege: Privilege,
    /// What was lost on the way.
    pub(crate) note: Option<String>,
}

/// Mounts at an existing directory.
pub(crate) fn attach(target: &Path, config: &MountConfig) -> Result<Attached, MountError> {
    let first = match attach_alone(target, config.allow_other)? {
        Ok(device) => {
            return Ok(Attached { device: device.into(), privilege: Privilege::Own, note: None });
        }
        Err(first) => first,
    };
    let device = ask_helper(target, config, first)?;
    let note = format!("mounted through fusermount3, because {first}");
    Ok(Attached { device, privilege: Privilege::Borrowed, note: Some(note) })
}

/// Mounts at an existing directory with `mount(2)`, or not at all.
pub(crate) fn attach_own(target: &Path, allow_other: bool) -> Result<File, MountError> {
    attach_alone(target, allow_other)?.map_err(|lacking| {
        MountError::NoFuse(format!(
            "{lacking}; run as root, or give the container \
             `--device {DEVICE} --cap-add SYS_ADMIN`, or `privileged: true` in Kubernetes"
        ))
    })
}

/// Mounts with `mount(2)`; the words are the privilege that is lacking.
fn attach_alone(
    target: &Path,
    allow_other: bool,
) -> Result<Result<File, &'static str>, MountError> {
    match device::open() {
        Ok(device) => match mount_device(&device, target, allow_other) {
            Ok(()) => Ok(Ok(device)),
            Err(Errno::PERM) => Ok(Err("this process may not call mount(2)")),
            Err(Errno::NODEV) => {
                Err(MountError::NoFuse("the kernel has no FUSE; run `modprobe fuse`".to_owned()))
            }
            Err(error) => {
                let shown = target.display();
                Err(MountError::Refused(format!("mounting on `{shown}` failed: {error}")))
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(MountError::NoFuse(format!(
            "`{DEVICE}` does not exist; run `modprobe fuse`, \
             or give the container the device (`--device {DEVICE}`)"
        ))),
        Err(_) => Ok(Err("this process may not open /dev/fuse")),
    }
}

fn mount_device(device: &File, target: &Path, allow_other: bool) -> Result<(), Errno> {
    let allow_other = if allow_other { ",allow_other" } else { "" };
    let options = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions{allow_other}",
        device.as_raw_fd(),
        geteuid().as_raw(),
        getegid().as_raw(),
    );
    let options = CString::new(options).expect("numbers and words hold no NUL");
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    mount(NAME, target, format!("fuse.{NAME}"), flags, options.as_c_str())
}

/// Has `fusermount3` mount, and receives the descriptor that it sends.
fn ask_helper(target: &Path, config: &MountConfig, first: &str) -> Result<OwnedFd, MountError> {
    let refused = |reason: &str| {
        MountError::Refused(format!("{first}, and fusermount3 failed: {}", reason.trim()))
    };
    let (ours, theirs) = UnixStream::pair().map_err(|error| refused(&error.to_string()))?;
    let allow_other = if config.allow_other { ",allow_other" } else { "" };
    let options =
        format!("ro,nosuid,nodev,fsname={NAME},subtype={NAME},default_permissions{allow_other}");
    let spawned = HELPERS.iter().find_map(|helper| {
        let theirs = theirs.try_clone().ok()?;
        Command::new(helper)
            .args(["-o", &options, "--"])
            .arg(target)
            // The socket as standard input: a descriptor that a child has without further ado.
            .env("_FUSE_COMMFD", "0")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .ok()
    });
    drop(theirs);
    let Some(child) = spawned else {
        return Err(MountError::NoFuse(format!(
            "{first}, and there is no fusermount3; \
             install the package `fuse3`, or run as root"
        )));
    };
    let received = receive_descriptor(&ours);
    let output = child.wait_with_output().map_err(|error| refused(&error.to_string()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    match received {
        Ok(Some(device)) => Ok(device),
        Ok(None) if said.contains("user_allow_other") => Err(MountError::Refused(
            "allow_other through fusermount3 needs the line `user_allow_other` in /etc/fuse.conf; \
             add it, or set `allow_other: false`, or run as root"
                .to_owned(),
        )),
        // What the kernel refuses a set-user-id program is refused to the whole container.
        Ok(None) if ["not permitted", "failed to open"].iter().any(|word| said.contains(word)) => {
            Err(MountError::NoFuse(format!(
                "{first}, nor may fusermount3 ({}); run as root, \
                 or give the container `--device {DEVICE} --cap-add SYS_ADMIN`",
                said.trim()
            )))
        }
        Ok(None) => Err(refused(&said)),
        Err(error) => Err(refused(&error.to_string())),
    }
}

/// The descriptor that comes over the socket; `None` when it is closed without one.
fn receive_descriptor(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    rustix::io::retry_on_intr(|| {
        recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut messages = control.drain();
    Ok(messages.find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }))
}

/// Has `fusermount3` unmount. An error is what it said.
pub(crate) fn fusermount_detach(target: &Path, lazy: bool) -> Result<(), String> {
    let how = if lazy { "-uz" } else { "-u" };
    let output = HELPERS.iter().find_map(|helper| {
        Command::new(helper).args([how, "--"]).arg(target).stdin(Stdio::null()).output().ok()
    });
    match output {
        Some(output) if output.status.success() => Ok(()),
        Some(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        None => Err("there is no fusermount3".to_owned()),
    }
}
