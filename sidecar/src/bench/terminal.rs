//! The report as tables for a terminal.
//!
//! Invariant: everything that is in the JSON and that a reader needs to judge a figure is said: its
//! spread, what it was measured against, what was not measured and why.

use std::fmt::Write;

use super::catalogue::CPU_PER_GIB;
use super::report::{Report, Row};
use super::spread::{Spread, digits};

/// All tables. Writing to a String cannot fail.
pub(crate) fn tables(report: &Report) -> String {
    let mut out = String::new();
    let facts = report.machine.iter().chain(&report.conditions);
    for (name, value) in facts {
        let _ = writeln!(out, "{name}: {value}");
    }
    out.push('\n');
    let mut rows = vec![
        ["workload", "target", "measured", "unit", "ratio", "to", "cpu s/GiB", "and"]
            .map(str::to_owned),
    ];
    for row in &report.rows {
        rows.push([
            row.workload.clone(),
            row.target.clone(),
            row.value.text(),
            row.unit.clone(),
            row.ratio.as_ref().map_or(String::new(), Spread::text),
            row.against.clone().unwrap_or_default(),
            row.figure(CPU_PER_GIB).map_or(String::new(), Spread::text),
            also(row),
        ]);
    }
    if rows.len() > 1 {
        table(&mut out, &rows);
    }
    if !report.goals.is_empty() {
        let mut rows =
            vec![["goal", "target", "figure", "wanted", "measured", ""].map(str::to_owned)];
        for goal in &report.goals {
            rows.push([
                goal.workload.clone(),
                goal.target.clone(),
                goal.what.clone(),
                goal.goal.clone(),
                goal.measured.text(),
                if goal.held { "held" } else { "MISSED" }.to_owned(),
            ]);
        }
        out.push('\n');
        table(&mut out, &rows);
        let held = report.goals.iter().filter(|goal| goal.held).count();
        let _ = writeln!(out, "\n{held} goals held, {} missed", report.goals.len() - held);
    }
    if !report.skipped.is_empty() {
        out.push_str("\nnot measured:\n");
        for skipped in &report.skipped {
            let _ = writeln!(out, "  {}: {}", skipped.what, skipped.why);
        }
    }
    if let Some(why) = &report.cut_short {
        let _ = writeln!(out, "\nthe run was cut short: {why}");
    }
    out
}

/// Medians of what a row carries beside its value, and its note.
fn also(row: &Row) -> String {
    let more = row.more.iter().filter(|(name, _)| *name != CPU_PER_GIB);
    let mut all: Vec<String> = more.map(|(n, s)| format!("{n} {}", digits(s.median))).collect();
    if !row.note.is_empty() {
        all.push(row.note.clone());
    }
    all.join(", ")
}

/// Columns as wide as they must be.
pub(crate) fn table<const N: usize>(out: &mut String, rows: &[[String; N]]) {
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        let _ = writeln!(out, "{}", line.trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut out = String::new();
        table(&mut out, &[["a".into(), "b".into()], ["long".into(), "c".into()]]);
        assert_eq!(out, "a     b\nlong  c\n");
    }
}
