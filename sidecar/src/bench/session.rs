//! What all measurements of one run share: the place, the data, the limits, the report.
//!
//! Invariant: a measurement that fails is written down with its reason and the next one goes on; only
//! the user's wish to stop ends the run early.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::catalogue::MEMORY_SHARE;
use super::halt::{Halt, Trouble};
use super::origin::Origin;
use super::own::Wish;
use super::place::Place;
use super::reads::Files;
use super::report::{Report, Row, Skipped, TargetFacts};
use super::scale::{GIB, MIB, Scale};
use super::spread::Spread;
use super::target::{Running, Target};
use super::tools::Tools;
use super::wire::Endpoint;

/// What a sidecar may hold beyond its memory tier.
const MEMORY_BESIDE_TIER: u64 = 256 * MIB;

/// A run. Fields are dropped in order: the origin ends before the place is cleared.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) origin: Origin,
    pub(crate) plain: Files,
    pub(crate) scale: Scale,
    pub(crate) tools: Tools,
    pub(crate) halt: Halt,
    pub(crate) only: Vec<String>,
    pub(crate) targets: Vec<String>,
    pub(crate) quick: bool,
    pub(crate) began: Instant,
    pub(crate) report: Mutex<Report>,
    pub(crate) peaks: Mutex<Vec<(String, f64)>>,
    pub(crate) place: Place,
}

impl Session {
    /// Whether a workload is to be measured.
    pub(crate) fn wants(&self, workload: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == workload)
    }

    /// Whether a target is to be measured; `usual` ones are unless others are named.
    pub(crate) fn wants_target(&self, target: &str, usual: bool) -> bool {
        if self.targets.is_empty() { usual } else { self.targets.iter().any(|t| t == target) }
    }

    /// Progress, for people.
    pub(crate) fn say(&self, what: &str) {
        eprintln!("[{:4.0} s] {what}", self.began.elapsed().as_secs_f64());
    }

    /// Runs a measurement; what goes wrong is written down.
    pub(crate) fn attempt(
        &self,
        what: &str,
        measure: impl FnOnce() -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        match self.halt.check().and_then(|()| measure()) {
            Ok(()) => Ok(()),
            Err(Trouble::Interrupted) => Err(Trouble::Interrupted),
            // A program that was ended by Ctrl-C fails in its own words.
            Err(_) if self.halt.interrupted() => Err(Trouble::Interrupted),
            Err(trouble) => {
                self.skip(what, trouble.to_string());
                Ok(())
            }
        }
    }

    /// Writes down what is not measured.
    pub(crate) fn skip(&self, what: &str, why: impl Into<String>) {
        let why = why.into();
        self.say(&format!("{what}: not measured: {why}"));
        self.with_report(|report| {
            report.skipped.push(Skipped { what: what.to_owned(), why });
        });
    }

    /// Writes down a figure.
    pub(crate) fn record(&self, row: Option<Row>) {
        let Some(row) = row else { return };
        if !row.is_plausible() {
            let why = format!("{} {} is more than any machine moves", row.value.text(), row.unit);
            self.skip(&format!("{} {}", row.workload, row.target), why);
            return;
        }
        let ratio = row.ratio.as_ref().zip(row.against.as_ref());
        let ratio = ratio.map_or(String::new(), |(r, to)| format!(", {} of {to}", r.text()));
        let more: Vec<String> =
            row.more.iter().map(|(n, s)| format!(", {n} {}", s.text())).collect();
        let (value, more) = (row.value.text(), more.concat());
        self.say(&format!("{} {}: {value} {}{ratio}{more}", row.workload, row.target, row.unit));
        self.with_report(|report| report.rows.push(row));
    }

    /// Changes the report.
    pub(crate) fn with_report(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Writes down what a target is, once.
    pub(crate) fn describe(&self, facts: TargetFacts) {
        self.with_report(|report| {
            if !report.targets.iter().any(|known| known.name == facts.name) {
                report.targets.push(facts);
            }
        });
    }

    /// The same for a mount.
    pub(crate) fn describe_mount(&self, target: &Target, running: &Running<'_>) {
        let root = self.place.root().display().to_string();
        let settings = running.settings.iter().map(|line| line.replace(&root, "WORK")).collect();
        let about = match &target.kind {
            super::target::Kind::Own(_) => {
                let known = super::catalogue::OWN_TARGETS.iter();
                known.clone().find(|(name, _)| *name == target.name).map_or("", |(_, about)| about)
            }
            super::target::Kind::Peer(recipe, _) => recipe.about,
        };
        self.describe(TargetFacts {
            name: target.name.to_owned(),
            about: about.to_owned(),
            version: target.version(),
            settings,
            notes: Vec::new(),
        });
    }

    /// Adds to what is said of a target.
    pub(crate) fn note(&self, target: &str, note: String) {
        self.with_report(|report| {
            if let Some(facts) = report.targets.iter_mut().find(|facts| facts.name == target)
                && !facts.notes.contains(&note)
            {
                facts.notes.push(note);
            }
        });
    }

    /// Remembers the peak memory of a target that is about to end.
    pub(crate) fn peak(&self, target: &str, bytes: u64) {
        if bytes > 0 {
            let mut peaks = self.peaks.lock().unwrap_or_else(PoisonError::into_inner);
            peaks.push((target.to_owned(), bytes as f64 / MIB as f64));
        }
    }

    /// Turns the peaks into figures.
    pub(crate) fn record_peaks(&self) {
        let peaks = std::mem::take(&mut *self.peaks.lock().unwrap_or_else(PoisonError::into_inner));
        let mut names: Vec<&String> = peaks.iter().map(|(name, _)| name).collect();
        names.sort();
        names.dedup();
        let bound = (self.scale.memory_bytes + MEMORY_BESIDE_TIER) as f64 / MIB as f64;
        for name in names {
            let all: Vec<f64> = peaks.iter().filter(|(n, _)| n == name).map(|(_, p)| *p).collect();
            // The highest is what a limit must hold.
            let highest = all.iter().copied().fold(0.0, f64::max);
            let mut row = Spread::of(&[highest])
                .map(|value| Row::new("memory", name, "MiB peak", value).lower_is_better());
            if name.starts_with("mount") || name == "s3" {
                row = row.map(|row| row.with(MEMORY_SHARE, &[highest / bound]));
            }
            let note = format!("the highest of {} starts, all processes together", all.len());
            self.record(row.map(|row| row.noted(note)));
        }
    }

    /// A cache that holds everything, in front of an endpoint.
    pub(crate) fn wish(&self, origin: &Endpoint) -> Wish {
        let bytes: u64 = self.scale.objects().iter().map(|item| item.size).sum();
        Wish {
            origin: origin.clone(),
            // Room beyond the data, so that nothing is evicted.
            cache_bytes: bytes * 2 + GIB / 4,
            memory_bytes: self.scale.memory_bytes,
        }
    }

    /// The origin behind another address.
    pub(crate) fn origin_at(&self, address: std::net::SocketAddr) -> Endpoint {
        Endpoint { address, ..self.origin.endpoint.clone() }
    }

    /// Starts a target with an empty cache in front of an endpoint.
    pub(crate) fn start(&self, target: &Target, origin: &Endpoint) -> Result<Running<'_>, Trouble> {
        let plain: &Path = &self.plain.root;
        let running = target.start(&self.place, &self.wish(origin), plain, &self.halt)?;
        self.describe_mount(target, &running);
        Ok(running)
    }
}
