//! The command line.
//!
//! Invariant: exit codes mean the same in every command: 0 done, 1 something asked for did not
//! work, 2 the command line or the configuration cannot be used, 130 interrupted.

mod bench;
mod check;
mod client;
mod csi;
mod inject;
mod mountd;
mod probe;
mod run;
mod simulate;
mod stats;
mod warm;
mod webhook;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueHint};
use clap_complete::Shell;

use crate::config::{self, Environment, Invalid, Settings};

const AFTER_HELP: &str = "\
Examples:
  warpdrive demo                               a federation with data in it, to play with
  warpdrive check -c warpdrive.yaml            is the file right, and can each origin be reached?
  warpdrive run -c warpdrive.yaml              mount, serve S3, until Ctrl-C
  warpdrive warm -c warpdrive.yaml --bucket train --prefix imagenet/
  warpdrive stats --watch                      what the running sidecar is doing

Exit codes: 0 done, 1 something asked for did not work, 2 the command line or the configuration
cannot be used, 130 interrupted. Every key of the file: docs/configuration.md";

/// Shows object stores of several clouds as files and as one S3 endpoint, through one cache.
#[derive(Debug, Parser)]
#[command(name = "warpdrive", version, about, after_help = AFTER_HELP, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Mount, serve S3, and stay until SIGTERM or Ctrl-C.
    ///
    /// Prints each address and path and how to use it. The first SIGTERM or Ctrl-C stops new
    /// requests, lets those in flight end, unmounts and exits 0; the second exits at once.
    Run(run::RunArgs),
    /// Hold a mount for workers that come and go: the small privileged part of `run`.
    ///
    /// Mounts, keeps the mount while its worker (`warpdrive run --holder SOCKET`) crashes, restarts
    /// or is upgraded, and registers the files that the kernel reads by itself. A few MiB; no
    /// network, no configuration, no credentials. SIGTERM unmounts and ends it.
    Mountd(mountd::MountdArgs),
    /// Whether a sidecar lives, is ready, and can be seen from here: what a pod's probes run.
    ///
    /// Starts in milliseconds, reads no configuration, and always ends. With --wait it returns as
    /// soon as everything holds, so that a start is not held up until a probe's next turn.
    Probe(probe::ProbeArgs),
    /// Validate a configuration and contact each of its origins.
    ///
    /// Prints a table: is the credential accepted, can the origin be reached and how fast, may it
    /// be listed and read, and with --write, written.
    Check(CheckArgs),
    /// Fetch objects into the cache ahead of their readers.
    ///
    /// Works in the running sidecar where there is one, by itself otherwise. What is cached already
    /// is not fetched again, so an interrupted warm goes on where it was. Ends with what is verified
    /// to be in the cache, and exits 1 when something asked for is not.
    Warm(WarmArgs),
    /// What a running sidecar is doing.
    Stats(StatsArgs),
    /// Measure this machine: mount and S3 endpoint beside plain files, the origin, nginx and peers.
    ///
    /// Starts everything itself, on loopback, in a folder that is removed at the end. Prints tables
    /// with the goals of the design; --json and --html keep them.
    Bench(Box<bench::BenchArgs>),
    /// What the cache's admission policy does with a trace, beside an optimum, LRU and S3-FIFO.
    Simulate(simulate::SimulateArgs),
    /// Serve a small data set that is made on the spot; everything is removed at the end.
    Demo(DemoArgs),
    /// Serve admission reviews: pods with a label get WarpDrive when they are made.
    ///
    /// What the chart runs in a cluster; one thread and some MiB. Keeps and renews its own certificate,
    /// or uses one that is given.
    Webhook(Box<webhook::WebhookArgs>),
    /// Put WarpDrive into the pods of manifests, as the webhook would, and print them.
    Inject(inject::InjectArgs),
    /// Mount for pods that may not: the CSI driver csi.warpdrive.io on a Kubernetes node.
    ///
    /// Serves inline volumes: for each pod that has them it runs a mount holder (`warpdrive mountd`),
    /// which outlives this service. The chart runs it as a `DaemonSet`.
    Csi(csi::CsiArgs),
    /// Print a completion script: `warpdrive completions bash > /etc/bash_completion.d/warpdrive`.
    Completions {
        /// The shell to write it for.
        shell: Shell,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  warpdrive check -c warpdrive.yaml
  warpdrive check -c warpdrive.yaml --write            writes and deletes a small object each
  warpdrive check -c warpdrive.yaml --set backends[0].config.bucket=other
  warpdrive check -c warpdrive.yaml --json | jq .")]
struct CheckArgs {
    /// The YAML file.
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: PathBuf,
    #[command(flatten)]
    overrides: Overrides,
    /// Also write a small object to each origin that may be written, and delete it.
    #[arg(long)]
    write: bool,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Values in place of those of the file.
#[derive(Debug, Clone, Default, Args)]
struct Overrides {
    /// Sets a key of the file, as if it stood there: `cache.max_size=20GiB`, `s3.enabled=false`,
    /// `backends[0].name=x`, `s3.allowed_hosts=[a, b]`; nothing after `=` unsets it. May be given
    /// more than once; the last one counts.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<config::Override>,
}

/// Which sidecar a command talks to.
#[derive(Debug, Clone, Args)]
struct Where {
    /// The YAML file: its `admin.listen` is asked.
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
    /// The admin endpoint of a running sidecar: `http://127.0.0.1:9091` or `unix:/path`.
    #[arg(long, value_name = "URL", env = "WARPDRIVE_ADMIN")]
    admin: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  warpdrive warm -c warpdrive.yaml --bucket train                       the whole bucket
  warpdrive warm -c warpdrive.yaml --bucket train --prefix imagenet/val/
  warpdrive warm -c warpdrive.yaml --bucket train --glob '**/*.tar' --max-size 2GiB
  warpdrive warm -c warpdrive.yaml --list epoch1.txt --rate 200MB       lines: bucket/key
  generate-keys | warpdrive warm --bucket train --list -                lines: key
  warpdrive warm --admin http://127.0.0.1:9091 --wait 60s --bucket train    an init container")]
struct WarmArgs {
    #[command(flatten)]
    place: Where,
    /// Wait this long for the sidecar to be there and ready; it may be a container that starts
    /// beside this one.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = duration)]
    wait: std::time::Duration,
    /// Only this bucket of the endpoint or backend of the file; may be given more than once.
    #[arg(long, visible_alias = "backend", value_name = "NAME")]
    bucket: Vec<String>,
    /// Only keys that begin with this.
    #[arg(long, value_name = "TEXT", conflicts_with = "list")]
    prefix: Option<String>,
    /// Only keys that match: `*` within a part, `**` across parts, `?`, `[a-z]`, `{a,b}`.
    #[arg(long, value_name = "PATTERN", conflicts_with = "list")]
    glob: Option<String>,
    /// Exactly the keys of a file, one a line (`-` for standard input): `key` with one --bucket,
    /// else `bucket/key` or `s3://bucket/key`.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    list: Option<PathBuf>,
    /// Leave out objects that are larger, such as `2GiB`.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_size: Option<config::ByteSize>,
    /// Fetch at most this much a second, such as `200MB`.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    rate: Option<config::ByteSize>,
    /// Objects that are fetched at once.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    parallel: u16,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  warpdrive stats
  warpdrive stats --watch                  again each second, with rates
  warpdrive stats --json | jq .cache")]
struct StatsArgs {
    #[command(flatten)]
    place: Where,
    /// Print again each second until Ctrl-C.
    #[arg(long)]
    watch: bool,
    /// Print what the sidecar answers, as JSON.
    #[arg(long)]
    json: bool,
}

/// What `demo` makes.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  warpdrive demo
  warpdrive demo --dir /tmp/warpdrive-demo     keep everything there")]
struct DemoArgs {
    /// Make it here and keep it; without, a temporary directory that is removed at the end.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    dir: Option<PathBuf>,
    /// Stop by itself after this many seconds.
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// Serve S3 only.
    #[arg(long)]
    no_mount: bool,
}

fn size(text: &str) -> Result<config::ByteSize, String> {
    text.parse::<config::ByteSize>().map_err(|what| format!("{what}: write 200MB or 4MiB"))
}

fn duration(text: &str) -> Result<std::time::Duration, String> {
    config::duration(text).map_err(|what| format!("{what}: write 500ms, 5s or 1m30s"))
}

/// Why a command ends with another code than 0.
#[derive(Debug)]
pub(crate) enum Stop {
    /// What went wrong, for the user; exit code 1.
    Failed(String),
    /// Everything was said already; exit code 1.
    Silent,
    /// The command line or the configuration cannot be used; exit code 2.
    Unusable(String),
    /// Ctrl-C; exit code 130.
    Interrupted,
    /// Everything was said already by another process, which ended with this exit code.
    Code(u8),
}

impl From<Invalid> for Stop {
    fn from(invalid: Invalid) -> Self {
        Self::Unusable(invalid.to_string())
    }
}

/// Parses the command line, does what it says, and answers with the exit code.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => run::run(args),
        Command::Mountd(args) => mountd::mountd(args),
        Command::Probe(args) => probe::probe(&args),
        Command::Csi(args) => csi::csi(args),
        Command::Check(args) => check::check(&args),
        Command::Warm(args) => warm::warm(&args),
        Command::Stats(args) => stats::stats(&args),
        Command::Bench(args) => bench::bench(*args),
        Command::Simulate(args) => simulate::simulate(&args),
        Command::Demo(args) => crate::demo::demo(args.dir.as_deref(), args.seconds, args.no_mount),
        Command::Webhook(args) => webhook::webhook(*args),
        Command::Inject(args) => inject::inject(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "warpdrive", &mut script);
            put(&String::from_utf8_lossy(&script));
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stop::Failed(what)) => {
            eprintln!("warpdrive: {what}");
            ExitCode::from(1)
        }
        Err(Stop::Silent) => ExitCode::from(1),
        Err(Stop::Unusable(what)) => {
            eprintln!("warpdrive: {what}");
            ExitCode::from(2)
        }
        Err(Stop::Interrupted) => ExitCode::from(130),
        Err(Stop::Code(code)) => ExitCode::from(code),
    }
}

/// Prints to standard output. A reader that went away (`| head`) is no error.
pub(crate) fn put(text: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// The settings of a file, with the values of the command line and the variables of this process.
fn load(path: &std::path::Path, overrides: &Overrides) -> Result<Settings, Stop> {
    Ok(config::load_with(path, &overrides.set, &Environment::of_process())?)
}

/// A runtime for commands that are clients.
fn small_runtime() -> Result<tokio::runtime::Runtime, Stop> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Stop::Failed(format!("threads cannot be started: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_teaches_with_examples() {
        for command in Cli::command().get_subcommands() {
            if command.get_name() == "completions" {
                continue;
            }
            let help = command.clone().render_long_help().to_string();
            assert!(help.contains("Examples:"), "{}", command.get_name());
        }
    }
}
