//! `warpdrive bench` and `warpdrive bench compare`, from the command line to the bench.
//!
//! Invariant: what cannot be measured as asked is refused here, before anything is started.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, Subcommand, ValueHint};

use super::{Cli, Stop, put, size};
use crate::bench;
use crate::config;

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "\
Examples:
  warpdrive bench                                      everything that this machine has
  warpdrive bench --quick                              does it work? small sizes, under a minute
  warpdrive bench --only seq-warm,s3-8m --repetitions 5
  warpdrive bench --json a.json --html a.html
  warpdrive bench --list                               workloads, targets, what is installed
  warpdrive bench compare a.json b.json --fail-above 10%"
)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    command: Option<BenchCommand>,
    /// Say what there is to measure and what is installed, and measure nothing.
    #[arg(long)]
    list: bool,
    /// Only these workloads, such as `seq-warm,s3-8m`.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,
    /// Only these targets, such as `mount,s3,rclone`.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    targets: Vec<String>,
    /// Small sizes, one repetition, `mount` and `s3` only unless --targets names more: does it work?
    #[arg(long)]
    quick: bool,
    /// Stop measuring after this time, and report what was measured until then.
    #[arg(long, value_name = "TIME", default_value = "30m", value_parser = time)]
    time: Duration,
    /// Use at most this much disk, all together (10GiB without; never more than half of what is free).
    #[arg(long, value_name = "SIZE", value_parser = size, conflicts_with = "quick")]
    size: Option<config::ByteSize>,
    /// Repetitions of each measurement.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=99))]
    repetitions: u16,
    /// Work in a folder below this one; it is removed at the end.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    dir: Option<PathBuf>,
    /// Look for programs here first.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    tools: Option<PathBuf>,
    /// Write everything that was found, with all samples.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    json: Option<PathBuf>,
    /// Write one page with plots that needs nothing else.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    html: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Say what moved between two JSON reports, beyond what repetitions differ by.
    Compare {
        /// The earlier report.
        before: PathBuf,
        /// The later report.
        after: PathBuf,
        /// Exit with 1 when a figure got worse by more than this, such as `10%`.
        #[arg(long, value_name = "SHARE", value_parser = share)]
        fail_above: Option<f64>,
    },
}

fn time(text: &str) -> Result<Duration, String> {
    let time = config::parse_span(text).map_err(|what| format!("{what}: write 90s or 10m"))?;
    // Less does not even start the programs; a day is a mistake.
    if !(Duration::from_secs(10)..=Duration::from_hours(24)).contains(&time) {
        return Err("write a time from 10s to 24h".to_owned());
    }
    Ok(time)
}

fn share(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').map_or_else(
        || text.parse::<f64>(),
        |percent| percent.trim().parse::<f64>().map(|percent| percent / 100.0),
    );
    match number {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("write a share such as 10% or 0.1".to_owned()),
    }
}

pub(super) fn bench(args: BenchArgs) -> Result<(), Stop> {
    if let Some(BenchCommand::Compare { before, after, fail_above }) = args.command {
        return bench::compare_files(&before, &after, fail_above);
    }
    if args.list {
        put(&bench::list(args.tools.as_deref()));
        return Ok(());
    }
    let supervisor = Cli::command().find_subcommand("run").is_some_and(|run| {
        run.get_arguments().any(|argument| argument.get_long() == Some("supervise"))
    });
    bench::bench(&bench::Options {
        only: args.only,
        targets: args.targets,
        quick: args.quick,
        time: args.time,
        size_bytes: args.size.map(|size| size.0),
        repetitions: usize::from(args.repetitions),
        folder: args.dir.unwrap_or_else(std::env::temp_dir),
        tools: args.tools,
        json: args.json,
        html: args.html,
        supervisor,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_percent_or_fractions() {
        assert_eq!(share("10%"), Ok(0.1));
        assert_eq!(share("0.25"), Ok(0.25));
        for wrong in ["", "ten", "200%", "-1", "nan"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_have_bounds() {
        assert_eq!(time("10m"), Ok(Duration::from_mins(10)));
        for wrong in ["1s", "2d", "soon"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }
}
