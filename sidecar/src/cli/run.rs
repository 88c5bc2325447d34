//! `warpdrive run`: from the command line to settings, and to a supervisor where one is wanted.
//!
//! Invariant: a supervisor reads no configuration; the worker that it starts does, from the same
//! command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueHint};

use super::{Overrides, Stop, duration, load};
use crate::supervise::{self, Link, MAX_CRASHES};
use crate::termination::TerminationLog;

/// How `run` runs.
#[allow(clippy::struct_excessive_bools)] // Each is a flag of the command line.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  warpdrive run -c warpdrive.yaml
  warpdrive run -c warpdrive.yaml --no-mount           S3 only, needs no /dev/fuse
  warpdrive run -c warpdrive.yaml --mount-point /mnt/x --force
  warpdrive run -c warpdrive.yaml --set cache.max_size=20GiB --set log.level=debug
  warpdrive run -c warpdrive.yaml --supervise          started again when it crashes
  warpdrive run -c warpdrive.yaml --take-over          replaces the running one; readers only wait
  warpdrive run -c warpdrive.yaml --holder /run/warpdrive/mount.sock     serves a `mountd`")]
pub(super) struct RunArgs {
    /// The YAML file.
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: PathBuf,
    #[command(flatten)]
    overrides: Overrides,
    /// Mount here instead of at the file's `mount_point`.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    mount_point: Option<PathBuf>,
    /// Detach a dead mount that an earlier sidecar left at the mount point.
    #[arg(long)]
    force: bool,
    /// Serve S3 only.
    #[arg(long, conflicts_with_all = ["mount_point", "force", "holder", "take_over"])]
    no_mount: bool,
    /// Who holds the mount, instead of the file's `fuse.holder`: the socket of a `warpdrive mountd`,
    /// `auto` (a process of its own, where this one may mount) or `none` (this process).
    #[arg(long, value_name = "SOCKET", value_hint = ValueHint::FilePath)]
    holder: Option<String>,
    /// How long a given holder that is not there yet is waited for: containers start side by side.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    holder_wait: Duration,
    /// Replace the worker that serves the mount now, which is told to finish and leave; a newer
    /// program upgrades a mount so. Programs that read it wait meanwhile, and go on.
    #[arg(long)]
    take_over: bool,
    /// Stay as a small parent that starts the sidecar again, within milliseconds, when it crashes.
    /// The default for the first process of a container.
    #[arg(long, overrides_with = "no_supervise")]
    supervise: bool,
    /// No parent, also as the first process of a container.
    #[arg(long, overrides_with = "supervise")]
    no_supervise: bool,
    /// Where to write what could not be finished, and why a start failed: at most 4096 bytes. In a
    /// container /dev/termination-log, where it is there.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    termination_log: Option<PathBuf>,
    /// Crashes within a minute after which the parent gives up and exits 1.
    #[arg(long, value_name = "N", default_value_t = MAX_CRASHES, value_parser = clap::value_parser!(u16).range(1..))]
    max_crashes: u16,
}

impl RunArgs {
    fn is_supervised(&self) -> bool {
        self.supervise || (supervise::is_first_process() && !self.no_supervise)
    }
}

pub(super) fn run(args: RunArgs) -> Result<(), Stop> {
    let termination = TerminationLog::find(args.termination_log.as_deref());
    let outcome = start(args, &termination);
    termination.write_failure(&outcome);
    outcome
}

fn start(args: RunArgs, termination: &TerminationLog) -> Result<(), Stop> {
    let supervisor = Link::of_process();
    if supervisor.is_none() && args.is_supervised() {
        return supervise::supervise(args.max_crashes, termination);
    }
    let mut settings = load(&args.config, &args.overrides)?;
    if args.no_mount {
        settings.mount = None;
        if settings.s3.is_none() {
            let what = "--no-mount, and the file has `s3.enabled: false`: nothing would be served";
            return Err(Stop::Unusable(what.to_owned()));
        }
    }
    if let Some(point) = args.mount_point {
        let point = std::path::absolute(&point)
            .map_err(|e| Stop::Unusable(format!("--mount-point {}: {e}", point.display())))?;
        let Some(mount) = &mut settings.mount else {
            let what = "--mount-point, and the file has `fuse.enabled: false`";
            return Err(Stop::Unusable(what.to_owned()));
        };
        mount.point = point;
    }
    if let Some(holder) = args.holder {
        let Some(mount) = &mut settings.mount else {
            let what = "--holder, and the file has `fuse.enabled: false`";
            return Err(Stop::Unusable(what.to_owned()));
        };
        mount.holder = match &*holder {
            "auto" | "none" => holder,
            socket => std::path::absolute(socket)
                .map_err(|e| Stop::Unusable(format!("--holder {socket}: {e}")))?
                .display()
                .to_string(),
        }
        .parse()
        .map_err(|what| Stop::Unusable(format!("--holder: {what}")))?;
    }
    settings.notes.extend(crate::cgroup::note(&settings));
    crate::trace::start(&settings.log);
    let options = crate::run::Options {
        force: args.force,
        take_over: args.take_over,
        holder_wait: args.holder_wait,
        termination: termination.clone(),
        supervisor,
        ..Default::default()
    };
    crate::run::run(&settings, &options)
}
