//! Two reports side by side: what moved, beyond what repetitions differ by.
//!
//! Invariant: a figure has moved only when the ranges of the two series do not touch, or, where there
//! is one repetition each, when the medians are further apart than [`SINGLE`]. Ratios are compared
//! where both have one: absolute numbers of different days mean little.

use std::fmt::Write;

use super::catalogue::{CPU_PER_GIB, CPU_RATIO};
use super::report::{LAYOUT, Report, Row};
use super::spread::{Spread, digits};
use super::terminal::table;

/// What single measurements must differ by to be called different.
const SINGLE: f64 = 0.15;

/// How a figure stands in the second report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Better,
    Worse,
    Same,
}

/// A figure that both reports have.
#[derive(Debug)]
struct Moved {
    workload: String,
    target: String,
    figure: String,
    before: Spread,
    after: Spread,
    verdict: Verdict,
    /// Relative change of the median for the worse; negative where it got better.
    worse_by: f64,
}

/// What `compare` says, and the largest change for the worse beyond the spread.
#[derive(Debug)]
pub(crate) struct Comparison {
    pub(crate) text: String,
    pub(crate) worst: f64,
}

/// Compares `after` with `before`.
pub(crate) fn compare(before: &Report, after: &Report) -> Comparison {
    let mut out = String::new();
    for (name, report) in [("before", before), ("after", after)] {
        let (version, began) = (&report.version, &report.began);
        let _ = writeln!(
            out,
            "{name}: warpdrive {version}, {began}, {} repetitions",
            report.repetitions
        );
        if report.layout != LAYOUT {
            let _ = writeln!(out, "  its layout is {}, this program's {LAYOUT}", report.layout);
        }
    }
    let facts = |report: &Report| [report.machine.clone(), report.conditions.clone()].concat();
    let (old, new) = (facts(before), facts(after));
    for (name, value) in &new {
        let was = old.iter().find(|(n, _)| n == name).map(|(_, value)| value);
        if was.is_some_and(|was| was != value) && name != "load at the start" {
            let was = was.map_or("", String::as_str);
            let _ = writeln!(out, "differs: {name}: {was} before, {value} after");
        }
    }
    let moved = figures(before, after);
    let mut rows =
        vec![["workload", "target", "figure", "before", "after", "change", ""].map(str::to_owned)];
    for one in moved.iter().filter(|one| one.verdict != Verdict::Same) {
        rows.push([
            one.workload.clone(),
            one.target.clone(),
            one.figure.clone(),
            one.before.text(),
            one.after.text(),
            change(&one.before, &one.after),
            if one.verdict == Verdict::Better { "better" } else { "WORSE" }.to_owned(),
        ]);
    }
    out.push('\n');
    if rows.len() > 1 {
        table(&mut out, &rows);
    }
    let count = |verdict| moved.iter().filter(|one| one.verdict == verdict).count();
    let _ = writeln!(
        out,
        "{} better, {} worse, {} within the spread",
        count(Verdict::Better),
        count(Verdict::Worse),
        count(Verdict::Same)
    );
    for (what, here, there) in [("only before", before, after), ("only after", after, before)] {
        let names: Vec<String> = here
            .rows
            .iter()
            .filter(|row| find(there, row).is_none())
            .map(|row| format!("{} {}", row.workload, row.target))
            .collect();
        if !names.is_empty() {
            let _ = writeln!(out, "{what}: {}", names.join(", "));
        }
    }
    let losses = moved.iter().filter(|one| one.verdict == Verdict::Worse);
    let worst = losses.map(|one| one.worse_by).fold(0.0, f64::max);
    Comparison { text: out, worst }
}

fn find<'a>(report: &'a Report, wanted: &Row) -> Option<&'a Row> {
    let same = |row: &&Row| row.workload == wanted.workload && row.target == wanted.target;
    report.rows.iter().find(same)
}

fn figures(before: &Report, after: &Report) -> Vec<Moved> {
    let mut out = Vec::new();
    for new in &after.rows {
        let Some(old) = find(before, new) else { continue };
        let main = if old.ratio.is_some() && new.ratio.is_some() { "ratio" } else { "value" };
        // Of the figures beside the value, those that say what is good.
        let costs = [CPU_PER_GIB, CPU_RATIO].map(|name| (name, false));
        for (figure, higher) in std::iter::once((main, new.higher_is_better)).chain(costs) {
            let (Some(was), Some(is)) = (old.figure(figure), new.figure(figure)) else { continue };
            let worse_by = if higher {
                relative(is.median, was.median)
            } else {
                relative(was.median, is.median)
            };
            let verdict = match (differ(was, is), worse_by > 0.0) {
                (false, _) => Verdict::Same,
                (true, true) => Verdict::Worse,
                (true, false) => Verdict::Better,
            };
            let shown = match (figure, &new.against) {
                ("ratio", Some(against)) => format!("/ {against}"),
                ("value", _) => new.unit.clone(),
                (name, _) => name.to_owned(),
            };
            out.push(Moved {
                workload: new.workload.clone(),
                target: new.target.clone(),
                figure: shown,
                before: was.clone(),
                after: is.clone(),
                verdict,
                worse_by,
            });
        }
    }
    out
}

/// By how much of the larger `less` lies below `more`; 0 of two zeros.
fn relative(less: f64, more: f64) -> f64 {
    let scale = less.abs().max(more.abs());
    if scale == 0.0 { 0.0 } else { (more - less) / scale }
}

fn differ(a: &Spread, b: &Spread) -> bool {
    if a.samples.len() < 2 || b.samples.len() < 2 {
        return relative(a.median, b.median).abs() > SINGLE;
    }
    a.max < b.min || b.max < a.min
}

fn change(before: &Spread, after: &Spread) -> String {
    if before.median == 0.0 {
        return "from 0".to_owned();
    }
    let percent = (after.median / before.median - 1.0) * 100.0;
    let sign = if percent >= 0.0 { "+" } else { "" };
    format!("{sign}{}%", digits((percent * 10.0).round() / 10.0))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn report(rows: Vec<Row>) -> Report {
        Report {
            layout: LAYOUT,
            version: "0.1.0".to_owned(),
            began: "2026-01-02 03:04:05 UTC".to_owned(),
            seconds: 1.0,
            cut_short: None,
            repetitions: 3,
            machine: vec![("cores".to_owned(), "2".to_owned())],
            conditions: Vec::new(),
            targets: Vec::new(),
            rows,
            goals: Vec::new(),
            skipped: Vec::new(),
        }
    }

    fn row(workload: &str, samples: &[f64]) -> Row {
        Row::paired(workload, "mount", "MiB/s", samples, ("plain", &vec![1.0; samples.len()]))
            .unwrap()
    }

    #[test]
    fn only_what_lies_beyond_the_spread_has_moved() {
        let before = report(vec![row("a", &[0.8, 0.9, 1.0]), row("b", &[0.8, 0.9, 1.0])]);
        let after = report(vec![row("a", &[0.7, 0.75, 0.81]), row("b", &[0.4, 0.45, 0.5])]);
        let found = compare(&before, &after);
        assert!(found.text.contains("0 better, 1 worse, 1 within the spread"), "{}", found.text);
        assert!((found.worst - 0.5).abs() < 1e-9, "{}", found.worst);
        let back = compare(&after, &before);
        assert!(
            back.text.contains("1 better, 0 worse") && back.worst.abs() < 1e-9,
            "{}",
            back.text
        );
    }

    #[test]
    fn where_less_is_better_more_is_worse() {
        let cost = |at: f64| row("a", &[1.0, 1.0]).with(CPU_PER_GIB, &[at, at + 0.001]);
        let found = compare(&report(vec![cost(0.01)]), &report(vec![cost(0.04)]));
        assert!(found.text.contains("1 worse") && found.worst > 0.7, "{}", found.text);
        let walk = |at: f64| row("walk", &[at, at]).lower_is_better();
        let found = compare(&report(vec![walk(2.0)]), &report(vec![walk(1.0)]));
        assert!(found.text.contains("1 better, 0 worse"), "{}", found.text);
    }

    #[test]
    fn single_measurements_need_a_wide_gap_and_zero_is_no_trap() {
        let found = compare(&report(vec![row("a", &[1.0])]), &report(vec![row("a", &[0.9])]));
        assert!(found.text.contains("0 worse, 1 within"), "{}", found.text);
        let zero = compare(&report(vec![row("a", &[0.0])]), &report(vec![row("a", &[0.0])]));
        assert!(zero.worst.abs() < 1e-9);
        let risen = compare(&report(vec![row("a", &[0.0])]), &report(vec![row("a", &[1.0])]));
        assert!(risen.text.contains("from 0") && risen.text.contains("1 better"), "{}", risen.text);
    }

    #[test]
    fn other_machines_and_missing_rows_are_said() {
        let mut other = report(vec![row("new", &[1.0])]);
        other.machine[0].1 = "64".to_owned();
        let found = compare(&report(vec![row("old", &[1.0])]), &other);
        for part in [
            "differs: cores: 2 before, 64 after",
            "only before: old mount",
            "only after: new mount",
        ] {
            assert!(found.text.contains(part), "{}", found.text);
        }
    }
}
