//! A look at an origin for `warpdrive check`: what works, how fast, and what to do where it fails.
//!
//! Invariant: without `write` nothing is changed at the origin; with it, one small object of a
//! unique name is written and deleted again. It never fails: it reports.

use std::time::Duration;

use bytes::Bytes;
use store::{
    Body, ByteRange, ErrorKind, ListRequest, ObjectKey, PutOptions, Result, Store, StoreExt,
};
use tokio::time::Instant;

use crate::Opened;

/// What one step of a probe found.
#[derive(Debug, Clone)]
pub enum ProbeStep {
    /// It works, and took so long.
    Ok(Duration),
    /// It does not; the text says why.
    Failed(ErrorKind, String),
    /// It was not tried; the text says why.
    Skipped(&'static str),
}

impl ProbeStep {
    /// True unless it failed.
    pub fn is_ok(&self) -> bool {
        !matches!(self, Self::Failed(..))
    }
}

/// What a probe found, in the order in which it was tried.
#[derive(Debug, Clone)]
pub struct ProbeReport {
    /// The origin answers at all, be it with a refusal. The time is that of a first request, a
    /// connection included.
    pub reach: ProbeStep,
    /// The origin accepts the credential.
    pub credential: ProbeStep,
    /// Keys may be listed.
    pub list: ProbeStep,
    /// An object may be read: one byte of the first one that is listed.
    pub read: ProbeStep,
    /// An object may be written and deleted.
    pub write: ProbeStep,
    /// Time of a second, warm request.
    pub latency: Option<Duration>,
}

impl ProbeReport {
    /// True when nothing failed.
    pub fn is_ok(&self) -> bool {
        self.steps().iter().all(|(_, step)| step.is_ok())
    }

    /// The steps with their names.
    pub fn steps(&self) -> [(&'static str, &ProbeStep); 5] {
        [
            ("reach", &self.reach),
            ("credential", &self.credential),
            ("list", &self.list),
            ("read", &self.read),
            ("write", &self.write),
        ]
    }
}

/// Asks an origin for one listing, one byte, and with `write` for one small write and delete.
pub async fn probe(opened: &Opened, write: bool) -> ProbeReport {
    let store = &*opened.store;
    let request = ListRequest { max_keys: 10, ..ListRequest::default() };
    let (listed, took) = timed(store.list(&request)).await;
    let absent = "the origin cannot be reached";
    let mut report = ProbeReport {
        reach: ProbeStep::Ok(took),
        credential: ProbeStep::Ok(took),
        list: step(&listed, took),
        read: ProbeStep::Skipped("no object to read was listed"),
        write: ProbeStep::Skipped("not asked for"),
        latency: None,
    };
    let mut listed = match listed {
        Ok(page) => page.entries,
        Err(error) if error.kind().is_outage() => {
            report.reach = ProbeStep::Failed(error.kind(), error.to_string());
            report.credential = ProbeStep::Skipped(absent);
            report.list = ProbeStep::Skipped(absent);
            report.read = ProbeStep::Skipped(absent);
            report.write = ProbeStep::Skipped(absent);
            return report;
        }
        Err(error) if error.kind() == ErrorKind::Unauthenticated => {
            report.credential = ProbeStep::Failed(error.kind(), error.to_string());
            let refused = "the credential is not accepted";
            report.list = ProbeStep::Skipped(refused);
            report.read = ProbeStep::Skipped(refused);
            report.write = ProbeStep::Skipped(refused);
            return report;
        }
        Err(_) => Vec::new(),
    };
    // An object with bytes says more about reading than an empty one.
    listed.sort_by_key(|entry| entry.meta.size == 0);
    if let Some(entry) = listed.first() {
        let range = if entry.meta.size == 0 { ByteRange::Full } else { ByteRange::Bounded(0, 1) };
        let (read, took) = timed(store.get_bytes(&entry.key, range)).await;
        report.read = step(&read, took);
    }
    let (again, took) = timed(store.list(&ListRequest { max_keys: 1, ..request })).await;
    report.latency = again.is_ok().then_some(took);
    if write {
        let (written, took) = timed(write_and_delete(store)).await;
        report.write = step(&written, took);
    }
    report
}

async fn write_and_delete(store: &dyn Store) -> Result<()> {
    let name = format!(".warpdrive-check-{:016x}", rand::random::<u64>());
    let key = ObjectKey::new(name)?;
    let body = Body::from(Bytes::from_static(b"written by `warpdrive check`, safe to delete\n"));
    let written = store.put(&key, body, PutOptions::default()).await?;
    let found = store.head(&key).await.map(|meta| meta.etag);
    store.delete(&key, None).await.map_err(|error| {
        error.in_context(format_args!("object `{key}` was written and could not be deleted"))
    })?;
    if found? == written.etag {
        return Ok(());
    }
    let context = "an object that was just written has another ETag";
    Err(store::Error::new(ErrorKind::Corrupted, context))
}

async fn timed<T>(call: impl Future<Output = T>) -> (T, Duration) {
    let begun = Instant::now();
    let result = call.await;
    (result, begun.elapsed())
}

fn step<T>(result: &Result<T>, took: Duration) -> ProbeStep {
    match result {
        Ok(_) => ProbeStep::Ok(took),
        Err(error) => ProbeStep::Failed(error.kind(), error.to_string()),
    }
}
