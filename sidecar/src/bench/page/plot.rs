//! Bars with whiskers as SVG, made here.
//!
//! Invariant: a bar's length is its median on the axis that is drawn; what passes the end of the axis is
//! cut there and says its number.

use std::fmt::Write;

use super::super::report::{GoalOutcome, Row};
use super::super::spread::{Spread, digits};
use super::escape;

/// A workload with the figures of its targets.
#[derive(Debug)]
pub(super) struct Group<'a> {
    pub(super) name: &'a str,
    pub(super) bars: Vec<(&'a Row, &'a Spread)>,
}

// In units of the drawing, which the page scales to its width.
const WIDTH: f64 = 1100.0;
const LEFT: f64 = 210.0;
const RIGHT: f64 = 150.0;
const BAR: f64 = 15.0;
const BETWEEN_BARS: f64 = 4.0;
const BETWEEN_GROUPS: f64 = 14.0;
const TOP: f64 = 24.0;

/// Past this ratio an axis would hide everything else.
const LARGEST_RATIO: f64 = 1.5;

/// This program first and in one hue, references grey, peers in hues that differ for most eyes.
const COLOURS: &[(&str, &str)] = &[
    ("mount", "#1f6feb"),
    ("mount-cached", "#79b0ff"),
    ("mount-alone", "#4f8ef0"),
    ("s3", "#0b3d91"),
    ("nginx-sendfile", "#8c959f"),
    ("nginx-read", "#b6bdc6"),
    ("rclone", "#d9822b"),
    ("mount-s3", "#c2185b"),
    ("s3fs", "#2e8b57"),
    ("geesefs", "#8e44ad"),
    ("gcsfuse", "#c0a000"),
    ("juicefs", "#00838f"),
    ("goofys", "#795548"),
];

fn colour(target: &str) -> &'static str {
    COLOURS.iter().find(|(name, _)| *name == target).map_or("#607d8b", |(_, colour)| colour)
}

/// A line that says which colour is which target.
pub(super) fn legend<'a>(rows: impl Iterator<Item = &'a Row>) -> String {
    let mut names: Vec<&str> = rows.map(|row| row.target.as_str()).collect();
    let place = |name: &str| COLOURS.iter().position(|(n, _)| *n == name).unwrap_or(COLOURS.len());
    names.sort_by_key(|name| (place(name), *name));
    names.dedup();
    if names.is_empty() {
        return String::new();
    }
    let entries = names.iter().map(|name| {
        format!("<span><i style=\"background:{}\"></i>{}</span>", colour(name), escape(name))
    });
    format!("<p class=legend>{}</p>", entries.collect::<String>())
}

struct Axis {
    low: f64,
    high: f64,
    log: bool,
}

impl Axis {
    fn of(groups: &[Group<'_>], log: bool) -> Self {
        let all = || groups.iter().flat_map(|group| &group.bars).map(|(_, spread)| *spread);
        if log {
            let positive = all().map(|s| s.median).filter(|m| *m > 0.0);
            let low = positive.clone().fold(f64::INFINITY, f64::min).min(1.0);
            let high = all().map(|s| s.max).fold(0.0, f64::max).max(low * 10.0);
            // Whole decades, so that the lines of the grid mean something.
            return Self { low: 10_f64.powf(low.log10().floor()), high, log };
        }
        let high = all().map(|s| s.max).fold(1.0, f64::max);
        Self { low: 0.0, high: (high * 1.05).min(LARGEST_RATIO), log }
    }

    fn x(&self, value: f64) -> f64 {
        let value = value.clamp(self.low, self.high);
        let share = if self.log {
            (value / self.low).log10() / (self.high / self.low).log10()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        LEFT + share * (WIDTH - LEFT - RIGHT)
    }

    fn lines(&self) -> Vec<f64> {
        if self.log {
            let mut at = self.low;
            let mut lines = Vec::new();
            while at <= self.high && lines.len() < 20 {
                lines.push(at);
                at *= 10.0;
            }
            return lines;
        }
        let quarters = (0..=100_u32).map(|n| f64::from(n) * 0.25);
        quarters.take_while(|at| *at <= self.high).collect()
    }
}

/// The drawing, or nothing of nothing.
pub(super) fn bars(groups: &[Group<'_>], goals: &[GoalOutcome], log: bool) -> String {
    if groups.is_empty() {
        return String::new();
    }
    let axis = Axis::of(groups, log);
    let rows: usize = groups.iter().map(|group| group.bars.len()).sum();
    let height = TOP
        + rows as f64 * (BAR + BETWEEN_BARS)
        + groups.len() as f64 * BETWEEN_GROUPS
        + BETWEEN_GROUPS;
    let mut out = format!(
        "<svg viewBox=\"0 0 {WIDTH:.0} {height:.0}\" role=img><title>figures by workload</title>"
    );
    for at in axis.lines() {
        let x = axis.x(at);
        let class = if !log && (at - 1.0).abs() < 1e-9 { "one" } else { "grid" };
        // Decades and quarters are short, but for what floating point adds.
        let label = (at * 1e6).round() / 1e6;
        let _ = write!(
            out,
            "<line class={class} x1={x:.1} x2={x:.1} y1={TOP} y2={height:.0} />\
             <text class=soft x={x:.1} y={:.0} text-anchor=middle>{label}</text>",
            TOP - 8.0
        );
    }
    let mut y = TOP + BETWEEN_GROUPS / 2.0;
    for group in groups {
        let middle =
            y + (group.bars.len() as f64 * (BAR + BETWEEN_BARS) - BETWEEN_BARS) / 2.0 + 4.0;
        let _ =
            write!(out, "<text x=8 y={middle:.1} font-weight=600>{}</text>", escape(group.name));
        for (row, spread) in &group.bars {
            bar(&mut out, &axis, row, spread, y);
            let here = |goal: &&GoalOutcome| {
                let same = goal.workload == row.workload && goal.target == row.target;
                same && goal.measured == **spread
            };
            let bound = goals.iter().find(here).and_then(|goal| goal.goal.get(3..)?.parse().ok());
            if let Some(bound) = bound.filter(|bound: &f64| *bound > 0.0) {
                let (x, below) = (axis.x(bound), y + BAR);
                let _ = write!(
                    out,
                    "<path class=goal d=\"M{x:.1} {:.1}l-4 7h8z\"><title>goal {bound}</title></path>",
                    below - 6.0
                );
            }
            y += BAR + BETWEEN_BARS;
        }
        y += BETWEEN_GROUPS;
    }
    out.push_str("</svg>");
    out
}

fn bar(out: &mut String, axis: &Axis, row: &Row, spread: &Spread, y: f64) {
    let (from, to) = (axis.x(axis.low), axis.x(spread.median));
    let (low, high) = (axis.x(spread.min), axis.x(spread.max));
    let middle = y + BAR / 2.0;
    let unit = if axis.log && !row.higher_is_better { row.unit.as_str() } else { "" };
    let says = format!(
        "{} {}: {} {}; {} {}",
        row.workload,
        row.target,
        spread.text(),
        unit,
        row.value.text(),
        row.unit
    );
    let _ = write!(
        out,
        "<g><title>{}</title><text class=soft x={:.1} y={:.1} text-anchor=end>{}</text>\
         <rect x={from:.1} y={y:.1} width={:.1} height={BAR} rx=2 fill=\"{}\"/>",
        escape(&says),
        LEFT - 8.0,
        middle + 4.0,
        escape(&row.target),
        (to - from).max(1.0),
        colour(&row.target)
    );
    if spread.samples.len() > 1 {
        let _ = write!(
            out,
            "<path class=whisker fill=none d=\"M{low:.1} {middle:.1}H{high:.1}M{low:.1} {:.1}v6M{high:.1} {:.1}v6\"/>",
            middle - 3.0,
            middle - 3.0
        );
    }
    let cut = if spread.median > axis.high { " &#8594;" } else { "" };
    let _ = write!(
        out,
        "<text x={:.1} y={:.1}>{} {}{cut}</text></g>",
        high.max(to) + 7.0,
        middle + 4.0,
        digits(spread.median),
        escape(unit)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_ends_at_its_median_and_never_beyond_the_axis() {
        let row =
            Row::paired("seq-warm", "mount", "x", &[0.5, 9.0], ("plain", &[1.0, 1.0])).unwrap();
        let spread = row.ratio.clone().unwrap();
        let groups = [Group { name: "seq-warm", bars: vec![(&row, &spread)] }];
        let axis = Axis::of(&groups, false);
        assert_eq!((axis.low, axis.high), (0.0, LARGEST_RATIO));
        assert!((axis.x(0.0) - LEFT).abs() < 1e-9);
        assert!((axis.x(100.0) - (WIDTH - RIGHT)).abs() < 1e-9);
        assert!(bars(&groups, &[], false).contains("&#8594;"));
        assert_eq!(bars(&[], &[], false), "");
    }

    #[test]
    fn a_logarithmic_axis_begins_at_a_decade_and_takes_zero() {
        let value = Spread::of(&[0.0, 0.03, 20.0]).unwrap();
        let row = Row::new("kill", "mount", "s", value).lower_is_better();
        let axis = Axis::of(&[Group { name: "kill", bars: vec![(&row, &row.value)] }], true);
        assert!((axis.low - 0.01).abs() < 1e-12);
        assert!((axis.x(0.0) - LEFT).abs() < 1e-9);
        assert!(axis.lines().len() >= 4);
    }
}
