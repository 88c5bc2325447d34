//! Whether the webhook can be called, and what is wrong with it.
//!
//! Invariant: ready means that a caller which trusts the configured bundle gets an answer; a problem
//! that leaves that true (a bad settings file beside a good old one, an API server that is away) is told
//! in the same text and does not take readiness away. A problem is logged once, until it changes.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;

use super::metrics::Metrics;
use crate::certificates::{Shown, date, unix_seconds};

/// One thing that can be wrong.
#[derive(Debug)]
pub(crate) struct Part {
    name: &'static str,
    problem: Mutex<Option<String>>,
}

impl Part {
    fn new(name: &'static str) -> Self {
        Self { name, problem: Mutex::new(None) }
    }

    /// What is wrong now, if anything.
    pub(crate) fn tell(&self, problem: Option<String>) {
        let mut known = self.problem.lock();
        if *known == problem {
            return;
        }
        if let Some(what) = &problem {
            tracing::warn!(part = self.name, "{what}");
        } else {
            tracing::info!(part = self.name, "in order again");
        }
        *known = problem;
    }
}

/// What `/readyz` says.
#[derive(Debug)]
pub(crate) struct Health {
    pub(crate) metrics: Metrics,
    /// The settings file.
    pub(crate) settings: Part,
    /// The certificate's files.
    pub(crate) files: Part,
    /// The Secret and the configurations.
    pub(crate) kubernetes: Part,
    shown: Arc<Shown>,
    /// Whether callers have been given our bundle; given from the start where it is not ours.
    is_trusted: AtomicBool,
    is_stopping: AtomicBool,
}

impl Health {
    pub(super) fn new(metrics: Metrics, shown: Arc<Shown>, own_authority: bool) -> Self {
        Self {
            metrics,
            settings: Part::new("settings"),
            files: Part::new("certificate"),
            kubernetes: Part::new("kubernetes"),
            shown,
            is_trusted: AtomicBool::new(!own_authority),
            is_stopping: AtomicBool::new(false),
        }
    }

    /// The configurations hold our bundle. Whether they still do is looked after by the keeper; taking
    /// readiness away would help no caller.
    pub(crate) fn trusted(&self) {
        self.is_trusted.store(true, Ordering::Relaxed);
    }

    /// From now on not ready.
    pub(super) fn stop(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
    }

    /// Whether connections are to be let go after their next answer.
    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Relaxed)
    }

    /// Whether it is ready, and a text for people: one line a fact.
    pub(super) fn report(&self) -> (bool, String) {
        let valid = self.shown.valid_until(unix_seconds(SystemTime::now()));
        let is_trusted = self.is_trusted.load(Ordering::Relaxed);
        let reason = match &valid {
            _ if self.is_stopping() => Some("stopping"),
            Err(what) => Some(*what),
            Ok(_) if !is_trusted => Some("no configuration holds our caBundle yet"),
            Ok(_) => None,
        };
        let mut text = match reason {
            None => "ready\n".to_owned(),
            Some(reason) => format!("not ready: {reason}\n"),
        };
        if let Ok(until) = valid {
            let _ = writeln!(text, "certificate: valid until {}", date(until));
        }
        for part in [&self.settings, &self.files, &self.kubernetes] {
            if let Some(problem) = &*part.problem.lock() {
                let _ = writeln!(text, "{}: {problem}", part.name);
            }
        }
        (reason.is_none(), text)
    }
}
