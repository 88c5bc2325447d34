//! `warpdrive simulate`: what the cache's admission policy does with a trace, before a cache is bought.
//!
//! Invariant: it runs the policy of the file tier itself, in memory; nothing is fetched or written.

use std::fmt::Write;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use cache::simulate::{self, Outcome, Reached, Trace, TraceError};
use cache::{Activity, Mode, SetReport, Why};
use clap::{Args, ValueHint};
use serde_json::{Value, json};

use super::{Stop, put, size};
use crate::config::{ByteSize, about};

/// Sizes of the cache that are tried where none is given, as shares of the bytes of all objects.
const SHARES: [f64; 4] = [0.25, 0.5, 0.75, 0.9];

/// Sets shown below a recorded trace; `--json` has all.
const SETS_SHOWN: usize = 20;

/// What is simulated.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  warpdrive simulate                                     generated traces of how training reads
  warpdrive simulate --only Zipf                         those whose names contain this
  warpdrive simulate --trace epoch.txt                   a recorded one, on caches of four sizes
  warpdrive simulate --trace epoch.txt --cache-size 100GB
  warpdrive simulate --json | jq '.[] | {trace, ours: .ours.hit_rate}'

The columns are shares of uses that were hits: the optimum knows the future; LRU and S3-FIFO (Yang et
al., SOSP 2023) are what other caches do; ours is the policy of the file tier, the code that runs in
the sidecar. Generated traces count from the second pass on (Zipf and recorded ones from the start).

A recorded trace is text, a line for each use of an object: `bucket key bytes`, where bytes is the
size of the object, and %, CR and LF in the key are written %25, %0D and %0A. Lines that begin with #
say nothing. The sidecar writes one where `cache.trace` names a file; an access log of another server
makes one with a line of awk.")]
pub(super) struct SimulateArgs {
    /// A recorded trace (`-` for standard input) instead of the generated ones.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    trace: Option<PathBuf>,
    /// The cache that the trace is tried on, such as `100GB`; without, a quarter to nine tenths of its bytes.
    #[arg(long, value_name = "SIZE", value_parser = size, requires = "trace")]
    cache_size: Option<ByteSize>,
    /// Only generated traces whose names contain this, in any case.
    #[arg(long, value_name = "TEXT", conflicts_with = "trace")]
    only: Option<String>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

pub(super) fn simulate(args: &SimulateArgs) -> Result<(), Stop> {
    let traces = traces(args)?;
    if args.json {
        let outcomes: Vec<Value> =
            traces.iter().map(|trace| document(&simulate::run(trace))).collect();
        put(&format!("{}\n", Value::Array(outcomes)));
        return Ok(());
    }
    put(&heading());
    for trace in &traces {
        let outcome = simulate::run(trace);
        put(&lines(&outcome, args.trace.is_some()));
    }
    Ok(())
}

fn traces(args: &SimulateArgs) -> Result<Vec<Trace>, Stop> {
    let Some(path) = &args.trace else {
        let wanted = args.only.as_deref().unwrap_or_default().to_lowercase();
        let mut traces = simulate::generated();
        traces.retain(|trace| trace.name().to_lowercase().contains(&wanted));
        if traces.is_empty() {
            return Err(Stop::Unusable(format!(
                "--only {wanted}: no generated trace is called so"
            )));
        }
        return Ok(traces);
    };
    let trace = read(path)?;
    Ok(match args.cache_size {
        Some(size) => vec![trace.with_capacity(size.0)],
        None => SHARES.iter().map(|share| part(&trace, *share)).collect(),
    })
}

#[allow(clippy::cast_sign_loss)] // A share of a size is a size.
fn part(trace: &Trace, share: f64) -> Trace {
    trace.clone().with_capacity((trace.bytes() as f64 * share) as u64)
}

fn read(path: &Path) -> Result<Trace, Stop> {
    let wrong = |error: TraceError| Stop::Unusable(format!("--trace {}: {error}", path.display()));
    let source: Box<dyn Read> = if path == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(File::open(path).map_err(|error| wrong(error.into()))?)
    };
    let name = path.file_name().map_or_else(|| "-".into(), |name| name.to_string_lossy());
    simulate::recorded(&name, BufReader::new(source), 0).map_err(wrong)
}

fn heading() -> String {
    format!(
        "{:<38}{:>7} {:>8} {:>8} {:>8} {:>8} {:>9}\n",
        "trace", "cache", "optimum", "LRU", "S3-FIFO", "ours", "written"
    )
}

/// Writing to a String cannot fail.
fn lines(outcome: &Outcome, with_sets: bool) -> String {
    let mut out = String::new();
    let of = |reached: &Reached| reached.all.of_uses();
    let _ = writeln!(
        out,
        "{:<38}{:>6.1}% {:>8.3} {:>8.3} {:>8.3} {:>8.3} {:>9}",
        outcome.trace,
        100.0 * outcome.cache_share,
        of(&outcome.optimum),
        of(&outcome.lru),
        of(&outcome.s3fifo),
        of(&outcome.ours),
        outcome.ours.written_objects,
    );
    for (at, (job, ours)) in outcome.ours.jobs.iter().enumerate() {
        let of = |reached: &Reached| reached.jobs.get(at).map_or(0.0, |(_, rate)| rate.of_uses());
        let _ = writeln!(
            out,
            "    {:<34}{:>7} {:>8.3} {:>8.3} {:>8.3} {:>8.3}",
            job,
            "",
            of(&outcome.optimum),
            of(&outcome.lru),
            of(&outcome.s3fifo),
            ours.of_uses(),
        );
    }
    if with_sets {
        for set in outcome.sets.iter().take(SETS_SHOWN) {
            let _ = writeln!(out, "    {}", sentence(set));
        }
        if outcome.sets.len() > SETS_SHOWN {
            let _ = writeln!(out, "    and {} more sets", outcome.sets.len() - SETS_SHOWN);
        }
    }
    out
}

fn sentence(set: &SetReport) -> String {
    let prefix = if set.prefix.is_empty() { "(whole bucket)" } else { &set.prefix };
    format!(
        "{prefix}: {}, {}; {} uses, {} hits, holds {} in {} objects",
        mode(set.mode),
        why(set.why),
        set.uses,
        set.hits,
        about(set.resident_bytes),
        set.resident_objects,
    )
}

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Keep => "keep",
        Mode::Evict => "evict",
    }
}

fn why(why: Why) -> &'static str {
    match why {
        Why::NoRepeats => "no repeats seen",
        Why::FullPasses => "read in full passes",
        Why::SomeReturnEarly => "some objects return early",
        Why::Pinned => "pinned",
    }
}

fn activity(activity: Activity) -> &'static str {
    match activity {
        Activity::Active => "active",
        Activity::Resting => "resting",
        Activity::Idle => "idle",
    }
}

fn document(outcome: &Outcome) -> Value {
    let reached = |reached: &Reached| {
        let jobs: Vec<Value> = reached
            .jobs
            .iter()
            .map(|(job, rate)| json!({"job": job, "hit_rate": rate.of_uses(), "uses": rate.uses}))
            .collect();
        json!({
            "hit_rate": reached.all.of_uses(),
            "byte_hit_rate": reached.all.of_bytes(),
            "hits": reached.all.hits,
            "uses": reached.all.uses,
            "written_objects": reached.written_objects,
            "jobs": jobs,
        })
    };
    let sets: Vec<Value> = outcome.sets.iter().map(set).collect();
    json!({
        "trace": outcome.trace,
        "objects": outcome.objects,
        "uses": outcome.uses,
        "cache_share": outcome.cache_share,
        "optimum": reached(&outcome.optimum),
        "lru": reached(&outcome.lru),
        "s3fifo": reached(&outcome.s3fifo),
        "ours": reached(&outcome.ours),
        "sets": sets,
        "steps_per_use": outcome.steps_per_use,
    })
}

fn set(set: &SetReport) -> Value {
    json!({
        "prefix": set.prefix,
        "mode": mode(set.mode),
        "why": why(set.why),
        "activity": activity(set.activity),
        "early_percent": set.early_percent,
        "objects": set.objects,
        "resident_objects": set.resident_objects,
        "resident_bytes": set.resident_bytes,
        "uses": set.uses,
        "hits": set.hits,
        "admitted": set.admitted,
        "refused": set.refused,
        "evicted": set.evicted,
        "mode_changes": set.mode_changes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(trace: Option<&Path>, only: Option<&str>) -> SimulateArgs {
        SimulateArgs {
            trace: trace.map(Path::to_owned),
            cache_size: None,
            only: only.map(str::to_owned),
            json: false,
        }
    }

    #[test]
    fn a_recorded_trace_is_tried_on_several_sizes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut text = String::from("# three passes\n");
        for _ in 0..3 {
            for n in 0..400 {
                let _ = writeln!(text, "train a dir/{n} 1000");
            }
        }
        std::fs::write(file.path(), text).unwrap();
        let traces = traces(&args(Some(file.path()), None)).unwrap();
        assert_eq!(traces.len(), SHARES.len());
        let outcome = simulate::run(&traces[1]);
        let document = document(&outcome);
        // Two of three passes, half of each.
        assert_eq!(document["ours"]["hits"], 400);
        assert_eq!(document["lru"]["hits"], 0);
        assert_eq!(document["sets"][0]["prefix"], "a dir/");
        let text = lines(&outcome, true);
        assert!(text.contains("a dir/: keep, "), "{text}");
    }

    #[test]
    fn what_cannot_be_read_says_where() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "train key 1000\ntrain key\n").unwrap();
        let stop = traces(&args(Some(file.path()), None)).unwrap_err();
        assert!(
            matches!(&stop, Stop::Unusable(what) if what.ends_with("line 2 is not `bucket key bytes`"))
        );
        let stop = traces(&args(None, Some("no such name"))).unwrap_err();
        assert!(matches!(stop, Stop::Unusable(_)));
    }

    #[test]
    fn generated_traces_are_chosen_by_name() {
        let names: Vec<String> = traces(&args(None, Some("zipf 0.7")))
            .unwrap()
            .iter()
            .map(|t| t.name().to_owned())
            .collect();
        assert_eq!(names, ["Zipf 0.7, c = 0.1"]);
    }
}
