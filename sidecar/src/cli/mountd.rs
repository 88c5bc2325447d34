//! `warpdrive mountd`: holds a mount for workers that come and go.
//!
//! Invariant: it starts no runtime and no thread and reads no configuration; what it does with the
//! kernel is all in `fusemount`.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use clap::{Args, ValueHint};
use fusemount::HolderConfig;

use super::{Stop, duration, size};
use crate::config;

/// How `mountd` mounts.
#[allow(clippy::struct_excessive_bools)] // Each is a flag of the command line.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
What it needs: root, or CAP_SYS_ADMIN, and /dev/fuse; in a container, `privileged: true` with
`mountPropagation: Bidirectional` where other containers are to see the mount. The worker needs none
of that: it gets the open device over the socket, and this process registers the files that the kernel
reads by itself (passthrough; that takes CAP_SYS_ADMIN in the initial user namespace).

Who may be the worker: the user of this process, root, and each --allow-uid; with --only-allowed the
latter alone. The kernel says who asks.

Examples:
  warpdrive mountd --mount-point /data --socket /run/warpdrive/mount.sock --allow-uid 65534 &
  warpdrive run -c warpdrive.yaml --holder /run/warpdrive/mount.sock

  kill -9 the worker, and start it again: programs that read /data wait meanwhile, and go on.
  warpdrive run -c warpdrive.yaml --holder /run/warpdrive/mount.sock --take-over     upgrade it

`warpdrive run` starts such a holder by itself where it may mount; this command is for those who keep
the privilege out of the worker's container.")]
pub(super) struct MountdArgs {
    /// The directory that is mounted over; the same as the worker's. Made where it is missing and the
    /// one above it is there.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    mount_point: PathBuf,
    /// Where workers connect: a path of at most 107 bytes.
    #[arg(long, value_name = "SOCKET", value_hint = ValueHint::FilePath)]
    socket: PathBuf,
    /// Let users other than root read the mount.
    #[arg(long)]
    allow_other: bool,
    /// A user that may be the worker, besides root and the user of this process; may be given more
    /// than once.
    #[arg(long, value_name = "N")]
    allow_uid: Vec<u32>,
    /// Let nobody be the worker but --allow-uid: root and the user of this process may only ask how
    /// the holder is.
    #[arg(long, requires = "allow_uid")]
    only_allowed: bool,
    /// How long readers wait when there is no worker; then they get EIO until there is one.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    patience: Duration,
    /// How long programs may go on using the mount after SIGTERM; then it is detached, whatever they
    /// do and whatever lies on it.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    grace: Duration,
    /// What the kernel reads ahead of a sequential reader; 0 leaves its own 128KiB.
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = size)]
    read_ahead: config::ByteSize,
    /// Run the holder as a child, and take its mount away when it is killed; the first process of a
    /// container does that in any case. For pods with `shareProcessNamespace`, where it is not the first.
    #[arg(long)]
    guard: bool,
    /// Detach a dead mount of any kind at the mount point; one of ours is detached in any case.
    #[arg(long)]
    force: bool,
}

pub(super) fn mountd(args: MountdArgs) -> Result<(), Stop> {
    let whole = |path: PathBuf| {
        std::path::absolute(&path).map_err(|e| Stop::Unusable(format!("{}: {e}", path.display())))
    };
    if args.guard || crate::supervise::is_first_process() {
        // The same arguments but this one: what starts there is not the first process any more.
        let mut holder = Command::new("/proc/self/exe");
        holder.args(std::env::args_os().skip(1).filter(|argument| argument != "--guard"));
        let point = whole(args.mount_point)?;
        return fusemount::guard(&point, holder).map_err(|error| Stop::Failed(error.to_string()));
    }
    let config = HolderConfig {
        allow_other: args.allow_other,
        read_ahead_kib: u32::try_from(args.read_ahead.0.div_ceil(1024)).unwrap_or(u32::MAX),
        uids: args.allow_uid,
        only_uids: args.only_allowed,
        patience: args.patience,
        grace: args.grace,
        force: args.force,
        ..HolderConfig::new(whole(args.mount_point)?, whole(args.socket)?)
    };
    fusemount::hold(config).map_err(|error| Stop::Failed(error.to_string()))
}
