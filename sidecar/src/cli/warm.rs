//! `warpdrive warm`: in the running sidecar where there is one, by itself otherwise.
//!
//! Invariant: exactly one process writes a cache directory; its lock decides, not a guess. What is
//! printed as resident was looked up at the end.

mod display;

use std::io::BufRead;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::client::{self, Client, NoAnswer};
use super::{Stop, WarmArgs, put, small_runtime};
use crate::assembly::{Assembly, AssemblyError};
use crate::config::{Settings, about};
use crate::warm::{JobState, JobStatus, Plan, Progress, Report, WarmRequest, warm as fetch};
use display::Display;

/// Often enough for a bar that moves.
const LOOK_EVERY: Duration = Duration::from_millis(150);

/// A pod's start waits for it.
const READY_EVERY: Duration = Duration::from_millis(50);

/// Longest list that is read: what one request to the admin endpoint takes.
const MAX_LIST_BYTES: u64 = 48 << 20;

pub(super) fn warm(args: &WarmArgs) -> Result<(), Stop> {
    let (client, settings) = client::find(&args.place)?;
    let request = request(args)?;
    let runtime = small_runtime()?;
    let report = runtime.block_on(async {
        let stop = CancellationToken::new();
        let interrupted = stop.clone();
        // The first process of a container has to ask for it; there is no default.
        let mut end = signal(SignalKind::terminate())
            .map_err(|error| Stop::Failed(format!("signals: {error}")))?;
        tokio::spawn(async move {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = end.recv() => {}
            }
            interrupted.cancel();
        });
        if let Some(client) = &client {
            tokio::select! {
                () = ready(client, args.wait, args.json) => {}
                () = stop.cancelled() => return Err(Stop::Interrupted),
            }
        }
        let report = dispatch(args, client, settings, request, stop.clone()).await?;
        Ok::<_, Stop>((report, stop.is_cancelled()))
    });
    // What still reads from an origin is not waited for.
    runtime.shutdown_background();
    let (report, interrupted) = report?;
    if args.json {
        let text = serde_json::to_string(&report).expect("a report is plain data");
        put(&format!("{text}\n"));
    } else {
        put(&summary(&report));
    }
    match (interrupted, report.is_complete()) {
        (true, _) => Err(Stop::Interrupted),
        (false, true) => Ok(()),
        (false, false) => Err(Stop::Silent),
    }
}

/// Returns when the sidecar takes work, or `limit` has passed; what is wrong then is said by who asks.
async fn ready(client: &Client, limit: Duration, silent: bool) {
    let begun = tokio::time::Instant::now();
    let mut said = false;
    while begun.elapsed() < limit {
        let status = client.get::<Value>("/status").await;
        if status.is_ok_and(|status| status["ready"] == true) {
            return;
        }
        if !said && !silent {
            eprintln!("waiting for the sidecar at {}, at most {limit:?}", client.address());
            said = true;
        }
        tokio::time::sleep(READY_EVERY).await;
    }
}

async fn dispatch(
    args: &WarmArgs,
    client: Option<Client>,
    settings: Option<Settings>,
    request: WarmRequest,
    stop: CancellationToken,
) -> Result<Report, Stop> {
    let display = Display::new(args.json);
    if let Some(client) = &client {
        match client.get::<Value>("/status").await {
            Ok(status) => {
                if let Some(settings) = &settings {
                    same_cache(client, settings, &status)?;
                }
                display.say(&format!("warming in the sidecar at {}", client.address()));
                return remote(client, request, &display, &stop).await;
            }
            Err(NoAnswer::Absent(_)) if settings.is_some() => {}
            Err(NoAnswer::Absent(what)) => {
                let what = format!("{what}; with -c FILE it works without one");
                return Err(Stop::Failed(what));
            }
            Err(NoAnswer::Refused(what)) => return Err(Stop::Failed(what)),
        }
    }
    let Some(settings) = settings else {
        return Err(Stop::Unusable("name a sidecar with --admin, or a file with -c".to_owned()));
    };
    if settings.cache.disk.is_none() {
        let what = "cache.path is not set: nothing would stay in a cache that ends with this \
                    command; set it, or start `warpdrive run` first";
        return Err(Stop::Failed(what.to_owned()));
    }
    display.say("no sidecar runs: warming the cache directory itself");
    alone(&settings, request, &display, stop).await
}

/// The sidecar that answers must be the one that the file describes.
fn same_cache(client: &Client, settings: &Settings, status: &Value) -> Result<(), Stop> {
    let ours = settings.cache.disk.as_ref().map(|(path, _)| path.display().to_string());
    let theirs = status["cache_path"].as_str().map(str::to_owned);
    if ours == theirs {
        return Ok(());
    }
    let shown = |path: Option<String>| path.unwrap_or_else(|| "memory only".to_owned());
    Err(Stop::Failed(format!(
        "the sidecar at {} has another cache ({}) than the file ({}); name its own file with -c",
        client.address(),
        shown(theirs),
        shown(ours),
    )))
}

async fn remote(
    client: &Client,
    request: WarmRequest,
    display: &Display,
    stop: &CancellationToken,
) -> Result<Report, Stop> {
    let body = serde_json::to_vec(&request).expect("a request is plain data");
    let mut job: JobStatus = client.post("/warm", Bytes::from(body)).await?;
    let path = format!("/warm/{}", job.id);
    let mut told = false;
    loop {
        display.show(&job.progress);
        if let (JobState::Done, Some(report)) = (job.state, job.report) {
            display.finish();
            return Ok(report);
        }
        if stop.is_cancelled() && !told {
            // The job belongs to this command: it ends with it, and what it fetched stays.
            told = true;
            client.delete::<JobStatus>(&path).await?;
        }
        tokio::time::sleep(LOOK_EVERY).await;
        job = client.get(&path).await?;
    }
}

async fn alone(
    settings: &Settings,
    request: WarmRequest,
    display: &Display,
    stop: CancellationToken,
) -> Result<Report, Stop> {
    let assembly = Assembly::open(settings).await.map_err(|error| match error {
        AssemblyError::Cache(error @ cache::OpenError::Locked { .. }) => Stop::Failed(format!(
            "{error}; if that is a sidecar, name its admin endpoint with --admin"
        )),
        other => Stop::Failed(other.to_string()),
    })?;
    // A tier that is left off would make every object "not resident" without a reason.
    if let Some(state) = assembly.cache.stats().disk_state
        && !state.up
    {
        let reason = state.reason.unwrap_or_else(|| "it is not in use".to_owned());
        return Err(Stop::Failed(format!("the cache's disk tier cannot be used: {reason}")));
    }
    let all: Vec<String> = assembly.origins.iter().map(|o| o.settings.name.to_string()).collect();
    let find = |name: &str| assembly.origin(name).map(|origin| Arc::clone(&origin.store));
    let plan = Plan::new(request, &all, find).map_err(|e| Stop::Unusable(e.to_string()))?;
    let progress = Arc::new(Progress::default());
    let job = tokio::spawn(fetch(plan, Arc::clone(&progress), stop));
    while !job.is_finished() {
        display.show(&progress.now());
        tokio::time::sleep(LOOK_EVERY).await;
    }
    display.show(&progress.now());
    display.finish();
    let report = job.await.map_err(|e| Stop::Failed(e.to_string()))?;
    assembly.cache.close().await;
    Ok(report)
}

fn request(args: &WarmArgs) -> Result<WarmRequest, Stop> {
    let objects = args.list.as_deref().map(|path| list(path, &args.bucket)).transpose()?;
    Ok(WarmRequest {
        buckets: args.bucket.clone(),
        prefix: args.prefix.clone(),
        glob: args.glob.clone(),
        objects,
        max_size_bytes: args.max_size.map(|size| size.0),
        rate_bytes_per_second: args.rate.map(|size| size.0),
        parallel: Some(args.parallel),
    })
}

/// The objects that a file names, one a line; empty lines and those that begin with `#` are not.
fn list(path: &Path, buckets: &[String]) -> Result<Vec<(String, String)>, Stop> {
    use std::io::Read;
    let unreadable =
        |error: std::io::Error| Stop::Unusable(format!("--list {}: {error}", path.display()));
    let bucket = match buckets {
        [] => None,
        [one] => Some(one.as_str()),
        _ => return Err(Stop::Unusable("--list takes one --bucket, or none".to_owned())),
    };
    let source: Box<dyn Read> = if path == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(path).map_err(unreadable)?)
    };
    let mut objects = Vec::new();
    let mut left = MAX_LIST_BYTES;
    for (number, line) in std::io::BufReader::new(source).lines().enumerate() {
        let line = line.map_err(unreadable)?;
        left = left.checked_sub(line.len() as u64 + 1).ok_or_else(|| {
            let what = format!("--list has more than {}; split it", about(MAX_LIST_BYTES));
            Stop::Unusable(what)
        })?;
        let text = line.trim_end_matches('\r');
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        objects.push(object(text, bucket).ok_or_else(|| {
            let what = format!("--list line {}: `{text}` is not bucket/key", number + 1);
            Stop::Unusable(what)
        })?);
    }
    Ok(objects)
}

fn object(line: &str, bucket: Option<&str>) -> Option<(String, String)> {
    let (bucket, key) = match (line.strip_prefix("s3://"), bucket) {
        (Some(rest), _) => rest.split_once('/')?,
        (None, Some(bucket)) => (bucket, line),
        (None, None) => line.split_once('/')?,
    };
    (!bucket.is_empty() && !key.is_empty()).then(|| (bucket.to_owned(), key.to_owned()))
}

fn summary(report: &Report) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "verified resident: {} of {} objects, {} of {} ({} were there before), in {:.1} s",
        report.resident_objects,
        report.objects,
        about(report.resident_bytes),
        about(report.bytes),
        about(report.already_resident_bytes),
        report.seconds,
    );
    if report.left_out_objects > 0 {
        let _ = writeln!(out, "left out by --max-size: {} objects", report.left_out_objects);
    }
    if report.not_resident_objects > 0 {
        let _ = writeln!(out, "not resident: {} objects", report.not_resident_objects);
        for object in &report.not_resident {
            let _ = writeln!(out, "  {}/{}: {}", object.bucket, object.key, object.why);
        }
        let named = report.not_resident.len() as u64;
        if report.not_resident_objects > named {
            let _ = writeln!(out, "  and {} more", report.not_resident_objects - named);
        }
    }
    for what in &report.incomplete {
        let _ = writeln!(out, "not everything was seen: {what}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_name_objects() {
        let own = |b: &str, k: &str| Some((b.to_owned(), k.to_owned()));
        assert_eq!(object("train/a/b", None), own("train", "a/b"));
        assert_eq!(object("s3://train/a/b", None), own("train", "a/b"));
        assert_eq!(object("a/b", Some("train")), own("train", "a/b"));
        assert_eq!(object("s3://other/a", Some("train")), own("other", "a"));
        assert_eq!(object(" a ", Some("train")), own("train", " a "));
        assert_eq!(object("a", None), None);
        assert_eq!(object("/a", None), None);
    }

    #[test]
    fn a_report_says_what_is_missing() {
        let report = Report {
            objects: 3,
            not_resident_objects: 2,
            not_resident: vec![crate::warm::NotResident {
                bucket: "b".into(),
                key: "k".into(),
                why: "no room".into(),
            }],
            ..Report::default()
        };
        let text = summary(&report);
        assert!(text.contains("  b/k: no room\n  and 1 more\n"), "{text}");
        assert!(!report.is_complete());
    }
}
