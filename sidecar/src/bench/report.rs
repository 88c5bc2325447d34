//! What a run found, as it is written to JSON and read again by `compare`.
//!
//! Invariant: every figure carries its samples, what it was measured against, and the settings of
//! both sides; what could not be measured stands in `skipped` with its reason.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::reads::PLAUSIBLE_BYTES_PER_SECOND;
use super::scale::MIB;
use super::spread::Spread;

/// The layout of the JSON; a later layout gets a higher number and `compare` says so.
pub(crate) const LAYOUT: u32 = 1;

/// One run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) layout: u32,
    pub(crate) version: String,
    /// UTC, ISO 8601.
    pub(crate) began: String,
    pub(crate) seconds: f64,
    /// Ended by Ctrl-C or the end of its time.
    pub(crate) cut_short: Option<String>,
    pub(crate) repetitions: usize,
    /// Name and value, for people.
    pub(crate) machine: Vec<(String, String)>,
    /// What the words of the report mean in this run: sizes, priming, the origin.
    pub(crate) conditions: Vec<(String, String)>,
    pub(crate) targets: Vec<TargetFacts>,
    pub(crate) rows: Vec<Row>,
    pub(crate) goals: Vec<GoalOutcome>,
    pub(crate) skipped: Vec<Skipped>,
}

/// What was measured.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct TargetFacts {
    pub(crate) name: String,
    pub(crate) about: String,
    pub(crate) version: String,
    /// Configuration and command lines, as they were used.
    pub(crate) settings: Vec<String>,
    pub(crate) notes: Vec<String>,
}

/// One workload on one target.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub(crate) struct Row {
    pub(crate) workload: String,
    pub(crate) target: String,
    pub(crate) unit: String,
    pub(crate) higher_is_better: bool,
    pub(crate) value: Spread,
    /// The target that it was interleaved with.
    pub(crate) against: Option<String>,
    pub(crate) reference: Option<Spread>,
    /// Value over reference; above 1 is better where higher is better.
    pub(crate) ratio: Option<Spread>,
    /// Further figures by name and unit, such as `cpu s/GiB`.
    pub(crate) more: BTreeMap<String, Spread>,
    pub(crate) note: String,
}

impl Row {
    /// A row without a reference.
    pub(crate) fn new(workload: &str, target: &str, unit: &str, value: Spread) -> Self {
        Self {
            workload: workload.to_owned(),
            target: target.to_owned(),
            unit: unit.to_owned(),
            higher_is_better: true,
            value,
            against: None,
            reference: None,
            ratio: None,
            more: BTreeMap::new(),
            note: String::new(),
        }
    }

    /// A row of two interleaved series; `None` where one of them has no figure.
    pub(crate) fn paired(
        workload: &str,
        target: &str,
        unit: &str,
        samples: &[f64],
        against: (&str, &[f64]),
    ) -> Option<Self> {
        let mut row = Self::new(workload, target, unit, Spread::of(samples)?);
        row.against = Some(against.0.to_owned());
        row.reference = Spread::of(against.1);
        row.ratio = Spread::ratio(samples, against.1);
        Some(row)
    }

    /// The same figure where less is better.
    pub(crate) fn lower_is_better(mut self) -> Self {
        self.higher_is_better = false;
        self
    }

    /// Adds a figure; a series without one is left out.
    pub(crate) fn with(mut self, name: &str, samples: &[f64]) -> Self {
        if let Some(spread) = Spread::of(samples) {
            self.more.insert(name.to_owned(), spread);
        }
        self
    }

    /// Adds what a reader of the figure should know.
    pub(crate) fn noted(mut self, note: impl Into<String>) -> Self {
        let note = note.into();
        if !note.is_empty() {
            let gap = if self.note.is_empty() { "" } else { "; " };
            self.note = format!("{}{gap}{note}", self.note);
        }
        self
    }

    /// Whether the figure and what it is compared with are of something that was moved.
    pub(crate) fn is_plausible(&self) -> bool {
        let most = PLAUSIBLE_BYTES_PER_SECOND / MIB as f64;
        let mut both = std::iter::once(&self.value).chain(&self.reference);
        self.unit != "MiB/s" || both.all(|spread| spread.max <= most)
    }

    /// A figure by name: `ratio`, `value`, or one of `more`.
    pub(crate) fn figure(&self, name: &str) -> Option<&Spread> {
        match name {
            "value" => Some(&self.value),
            "ratio" => self.ratio.as_ref(),
            name => self.more.get(name),
        }
    }
}

/// A goal with what was measured.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub(crate) struct GoalOutcome {
    pub(crate) what: String,
    pub(crate) workload: String,
    pub(crate) target: String,
    pub(crate) goal: String,
    pub(crate) measured: Spread,
    pub(crate) held: bool,
}

/// What was not measured.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Skipped {
    pub(crate) what: String,
    pub(crate) why: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_that_nothing_has_are_not_plausible() {
        let row = |unit: &str, here, there| {
            Row::paired("mmap-seq", "mount", unit, &[here], ("plain", &[there])).unwrap()
        };
        assert!(row("MiB/s", 9_000.0, 12_000.0).is_plausible());
        assert!(!row("MiB/s", 15_063_571.0, 12_000.0).is_plausible());
        assert!(!row("MiB/s", 9_000.0, 15_063_571.0).is_plausible());
        assert!(row("reads/s", 9_000.0, 15_063_571.0).is_plausible());
    }
}
