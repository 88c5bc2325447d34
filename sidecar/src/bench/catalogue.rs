//! What can be measured: workloads, targets, and the goals of the design.
//!
//! Invariant: a name means the same in the command line, the table, the JSON and the page; a goal
//! says nothing that is not measured in the same run.

use super::report::{GoalOutcome, Row};

/// Which side of the sidecar a workload goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Through {
    Mount,
    S3,
}

/// Something to measure.
#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) through: Through,
    pub(crate) about: &'static str,
}

const fn mount(name: &'static str, about: &'static str) -> Workload {
    Workload { name, through: Through::Mount, about }
}

const fn s3(name: &'static str, about: &'static str) -> Workload {
    Workload { name, through: Through::S3, about }
}

/// All workloads, in the order of the report.
pub(crate) static WORKLOADS: &[Workload] = &[
    mount("seq-warm", "one reader of one large file in 1 MiB reads, the cache full"),
    mount("rand-4k", "random reads of 4 KiB, warm"),
    mount("rand-128k", "random reads of 128 KiB, warm"),
    mount("rand-1m", "random reads of 1 MiB, warm"),
    mount("readers-16", "16 readers of 16 files at once, warm"),
    mount("small-warm", "open, read and close of files of 128 KiB by one reader, warm"),
    mount("mmap-seq", "a mapped file copied from its beginning to its end, warm"),
    mount("mmap-rand", "random 4 KiB of a mapped file, warm"),
    mount("seq-cold-slow", "first read of a large file, origin behind 20 ms and 500 MiB/s"),
    mount("seq-cold", "first read of a large file, origin unthrottled on the same cores"),
    mount("small-cold", "first open, read and close of files of 128 KiB, requests counted"),
    mount("rand-cold", "first random 4 KiB reads of a large file, bytes counted at the origin"),
    mount("shared-cold", "8 readers of one cold file, bytes counted at the origin"),
    mount("restart", "everything read again after a restart, bytes counted at the origin"),
    mount("walk", "a cold tree walked as `ls -lR` does"),
    mount("epochs", "shuffled epochs through a cache that holds half of the data"),
    mount("kill", "kill -9 of the worker while readers verify what they read"),
    s3("s3-1k", "GETs of 1 KiB over 16 connections, warm"),
    s3("s3-128k", "GETs of 128 KiB over 16 connections, warm"),
    s3("s3-1m", "GETs of 1 MiB over 16 connections, warm"),
    s3("s3-8m", "GETs of 8 MiB over 16 connections, warm"),
    s3("s3-cold-slow", "first read in parallel ranges, origin behind 20 ms and 500 MiB/s"),
    s3("s3-cold", "first read in parallel ranges, origin unthrottled on the same cores"),
    s3("s3-epochs", "shuffled epochs through a cache that holds half of the data"),
    s3("write", "a checkpoint written in parts (the mount is read-only: not built)"),
];

/// Targets of this program with a line each; peers come from their recipes.
pub(crate) static OWN_TARGETS: &[(&str, &str)] = &[
    ("mount", "this program's mount as it comes (passthrough where the machine allows it)"),
    ("s3", "this program's S3 endpoint"),
    ("mount-cached", "this program's mount with `fuse.passthrough: off`"),
    ("mount-alone", "this program's mount with `fuse.holder: none`; only where it is named"),
];

/// What everything is compared with.
pub(crate) static REFERENCES: &[(&str, &str)] = &[
    ("plain", "the same files on the same file system, written in large sequential writes"),
    ("origin", "the origin read directly, 8 ranges of 8 MiB at once"),
    ("nginx", "nginx serving the plain files, the better of `sendfile` on and off"),
];

/// Which way a figure should go.
#[derive(Debug, Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// A number to hold, on rows of this program.
#[derive(Debug)]
struct Goal {
    workload: &'static str,
    targets: &'static [&'static str],
    figure: &'static str,
    bound: Bound,
}

const fn goal(
    workload: &'static str,
    targets: &'static [&'static str],
    figure: &'static str,
    bound: Bound,
) -> Goal {
    Goal { workload, targets, figure, bound }
}

/// Figures that rows carry beside their value.
pub(crate) const CPU_PER_GIB: &str = "cpu s/GiB";
pub(crate) const CPU_RATIO: &str = "cpu per byte / nginx";
pub(crate) const CPU_PER_REQUEST: &str = "cpu us/request";
pub(crate) const P99: &str = "p99 ms";
pub(crate) const REQUESTS_PER_FILE: &str = "origin requests/file";
pub(crate) const ERRORS: &str = "errors";
pub(crate) const WRONG: &str = "wrong bytes";
pub(crate) const KEPT: &str = "share of the cache kept";
pub(crate) const MEMORY_SHARE: &str = "of tier + 256 MiB";

const MOUNT: &[&str] = &["mount"];
const S3: &[&str] = &["s3"];
const BOTH: &[&str] = &["mount", "s3"];
use Bound::{AtLeast, AtMost};

/// The numbers to hold of the design.
static GOALS: &[Goal] = &[
    goal("seq-warm", MOUNT, "ratio", AtLeast(0.9)),
    goal("seq-warm", MOUNT, CPU_PER_GIB, AtMost(0.01)),
    goal("rand-4k", MOUNT, "ratio", AtLeast(0.85)),
    goal("rand-128k", MOUNT, "ratio", AtLeast(0.9)),
    goal("readers-16", MOUNT, "ratio", AtLeast(0.85)),
    goal("small-warm", MOUNT, "ratio", AtLeast(0.6)),
    goal("mmap-seq", MOUNT, "ratio", AtLeast(0.9)),
    goal("mmap-rand", MOUNT, "ratio", AtLeast(0.9)),
    goal("seq-cold-slow", MOUNT, "ratio", AtLeast(0.9)),
    goal("seq-cold", MOUNT, "ratio", AtLeast(0.5)),
    // One for each file, and the listings of their directory.
    goal("small-cold", MOUNT, REQUESTS_PER_FILE, AtMost(1.05)),
    // 64 KiB of data; what the heads of answers add is below 1 KiB each.
    goal("rand-cold", MOUNT, "value", AtMost(65.0)),
    goal("shared-cold", MOUNT, "value", AtMost(1.02)),
    // Listings and revalidations are no bytes of objects.
    goal("restart", MOUNT, "value", AtMost(0.01)),
    goal("walk", MOUNT, "ratio", AtMost(1.3)),
    goal("epochs", MOUNT, "value", AtLeast(0.97)),
    goal("s3-epochs", S3, "value", AtLeast(0.97)),
    goal("kill", MOUNT, ERRORS, AtMost(0.0)),
    goal("kill", MOUNT, WRONG, AtMost(0.0)),
    goal("kill", MOUNT, "value", AtMost(1.0)),
    goal("kill", MOUNT, KEPT, AtLeast(0.99)),
    goal("s3-8m", S3, "ratio", AtLeast(1.0)),
    goal("s3-8m", S3, CPU_RATIO, AtMost(1.5)),
    goal("s3-128k", S3, "ratio", AtLeast(0.7)),
    goal("s3-1k", S3, "ratio", AtLeast(0.5)),
    goal("s3-cold-slow", S3, "ratio", AtLeast(0.9)),
    goal("s3-cold", S3, "ratio", AtLeast(0.5)),
    goal("memory", BOTH, MEMORY_SHARE, AtMost(1.0)),
];

/// What became of the goals whose figures were measured.
pub(crate) fn outcomes(rows: &[Row]) -> Vec<GoalOutcome> {
    let mut out = Vec::new();
    for goal in GOALS {
        for row in rows.iter().filter(|row| row.workload == goal.workload) {
            if !goal.targets.contains(&row.target.as_str()) {
                continue;
            }
            let Some(measured) = row.figure(goal.figure) else { continue };
            let (text, held) = match goal.bound {
                AtLeast(bound) => (format!(">= {bound}"), measured.median >= bound),
                AtMost(bound) => (format!("<= {bound}"), measured.median <= bound),
            };
            let figure = match (goal.figure, &row.against) {
                ("ratio", Some(against)) => format!("/ {against}"),
                ("value", _) => row.unit.clone(),
                (name, _) => name.to_owned(),
            };
            out.push(GoalOutcome {
                what: figure,
                workload: row.workload.clone(),
                target: row.target.clone(),
                goal: text,
                measured: measured.clone(),
                held,
            });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::spread::Spread;
    use super::*;

    #[test]
    fn goals_speak_of_workloads_and_targets_that_there_are() {
        for goal in GOALS {
            let there = |name| name == "memory" || WORKLOADS.iter().any(|w| w.name == name);
            assert!(there(goal.workload), "{}", goal.workload);
            for target in goal.targets {
                assert!(OWN_TARGETS.iter().any(|(name, _)| name == target), "{target}");
            }
        }
    }

    #[test]
    fn a_goal_is_held_or_missed_by_its_median() {
        let row = |target: &str, over: &[f64]| {
            Row::paired("seq-warm", target, "MiB/s", over, ("plain", &[100.0; 3])).unwrap()
        };
        let rows = [row("mount", &[80.0, 91.0, 99.0]), row("rclone", &[1.0; 3])];
        let [outcome] = outcomes(&rows).try_into().unwrap();
        assert!(outcome.held && outcome.goal == ">= 0.9" && outcome.what == "/ plain");
        assert!((outcome.measured.median - 0.91).abs() < 1e-9);
        let missed = outcomes(&[row("mount", &[80.0, 89.0, 99.0])]);
        assert!(!missed[0].held);
    }

    #[test]
    fn figures_beside_the_value_have_goals_too() {
        let mut row = Row::new("kill", "mount", "longest pause s", Spread::of(&[0.2]).unwrap());
        row = row.with(ERRORS, &[1.0]).with(WRONG, &[0.0]);
        let held: Vec<_> = outcomes(&[row]).into_iter().map(|o| (o.what, o.held)).collect();
        let expected = [(ERRORS, false), (WRONG, true), ("longest pause s", true)];
        assert_eq!(held, expected.map(|(what, held)| (what.to_owned(), held)));
    }
}
