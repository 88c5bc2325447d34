//! Warm jobs of a running sidecar.
//!
//! Invariant: at most [`MAX_RUNNING`] run at once and at most [`MAX_KEPT`] are remembered. A job is
//! a task of its own: who asked for it may leave.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{Plan, Progress, ProgressNow, Report, warm};
use crate::metrics::Metrics;

/// More jobs than this would only take each other's permits.
const MAX_RUNNING: usize = 4;
/// Ended jobs whose reports can still be read.
const MAX_KEPT: usize = 32;

/// What a job is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum JobState {
    /// It looks for objects and fetches them.
    Running,
    /// It ended; its report says how.
    Done,
}

/// A job as its asker sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct JobStatus {
    /// Its number.
    pub(crate) id: u64,
    /// Whether it ended.
    pub(crate) state: JobState,
    /// How far it is.
    pub(crate) progress: ProgressNow,
    /// What came of it, once it ended.
    pub(crate) report: Option<Report>,
}

struct Job {
    progress: Arc<Progress>,
    stop: CancellationToken,
    report: Option<Report>,
}

#[derive(Default)]
struct Table {
    next: u64,
    jobs: BTreeMap<u64, Job>,
}

/// The jobs of a sidecar. Clones are the same jobs.
#[derive(Clone)]
pub(crate) struct Jobs {
    table: Arc<Mutex<Table>>,
    stop: CancellationToken,
    metrics: Metrics,
}

impl Jobs {
    /// No jobs; all of them end when `stop` is cancelled.
    pub(crate) fn new(stop: CancellationToken, metrics: Metrics) -> Self {
        Self { table: Arc::default(), stop, metrics }
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a job; `None` when as many run as may.
    pub(crate) fn start(&self, plan: Plan) -> Option<u64> {
        let progress = Arc::new(Progress::default());
        let stop = self.stop.child_token();
        let id = {
            let mut table = self.table();
            let running = table.jobs.values().filter(|job| job.report.is_none()).count();
            if running >= MAX_RUNNING {
                return None;
            }
            while table.jobs.len() >= MAX_KEPT {
                let oldest = table.jobs.iter().find(|(_, j)| j.report.is_some()).map(|(id, _)| *id);
                let Some(oldest) = oldest else { break };
                table.jobs.remove(&oldest);
            }
            table.next += 1;
            let id = table.next;
            let job = Job { progress: Arc::clone(&progress), stop: stop.clone(), report: None };
            table.jobs.insert(id, job);
            id
        };
        let jobs = self.clone();
        tokio::spawn(async move {
            let report = warm(plan, progress, stop).await;
            tracing::info!(
                job = id,
                objects = report.objects,
                resident = report.resident_objects,
                not_resident = report.not_resident_objects,
                seconds = report.seconds,
                "warm job ended"
            );
            let count = |result: &str, n: u64| {
                jobs.metrics.warmed.with_label_values(&[result]).inc_by(n);
            };
            count("resident", report.resident_objects);
            count("not_resident", report.not_resident_objects);
            if let Some(job) = jobs.table().jobs.get_mut(&id) {
                job.report = Some(report);
            }
        });
        Some(id)
    }

    /// A job by its number.
    pub(crate) fn status(&self, id: u64) -> Option<JobStatus> {
        self.table().jobs.get(&id).map(|job| status(id, job))
    }

    /// Every job that is remembered, oldest first.
    pub(crate) fn all(&self) -> Vec<JobStatus> {
        self.table().jobs.iter().map(|(id, job)| status(*id, job)).collect()
    }

    /// Ends a job early; false where there is none of that number.
    pub(crate) fn cancel(&self, id: u64) -> bool {
        self.table().jobs.get(&id).map(|job| job.stop.cancel()).is_some()
    }
}

fn status(id: u64, job: &Job) -> JobStatus {
    let state = if job.report.is_some() { JobState::Done } else { JobState::Running };
    JobStatus { id, state, progress: job.progress.now(), report: job.report.clone() }
}
