//! `warpdrive check`: is the file right, and does each origin do what is asked of it?
//!
//! Invariant: nothing is changed anywhere without `--write`, and with it one small object is
//! written and deleted for each origin that may be written. The cache is not touched.

use std::fmt::Write;

use backends::{Metrics, ProbeReport, ProbeStep};
use fusemount::MountPointState;
use prometheus::Registry;
use serde_json::{Value, json};

use super::{CheckArgs, Stop, load, put, small_runtime};
use crate::config::{BackendSettings, Settings};

/// What was found of one backend.
struct Row {
    name: String,
    kind: &'static str,
    credential: String,
    found: Result<ProbeReport, String>,
}

impl Row {
    fn is_ok(&self) -> bool {
        self.found.as_ref().is_ok_and(ProbeReport::is_ok)
    }
}

pub(super) fn check(args: &CheckArgs) -> Result<(), Stop> {
    let settings = load(&args.config, &args.overrides)?;
    let runtime = small_runtime()?;
    let rows = runtime.block_on(probe(&settings, args.write))?;
    let surroundings = surroundings(&settings);
    let good =
        rows.iter().all(Row::is_ok) && surroundings.iter().all(|(_, problem)| problem.is_none());
    if args.json {
        put(&format!("{}\n", document(&settings, &rows, &surroundings, good)));
    } else {
        put(&table(&settings, &rows, &surroundings, &args.config.display().to_string()));
    }
    if good { Ok(()) } else { Err(Stop::Silent) }
}

/// All origins side by side: one that does not answer delays no other.
async fn probe(settings: &Settings, write: bool) -> Result<Vec<Row>, Stop> {
    let metrics = Metrics::register(&Registry::new());
    let metrics = metrics.map_err(|e| Stop::Failed(format!("metrics: {e}")))?;
    let probes = settings.backends.iter().map(|backend| one(backend, &metrics, write));
    Ok(futures::future::join_all(probes).await)
}

async fn one(backend: &BackendSettings, metrics: &Metrics, write: bool) -> Row {
    let opened = backends::open(backend.name.as_str(), &backend.origin, metrics).await;
    let found = match opened {
        Ok(opened) => Ok(backends::probe(&opened, write && !backend.read_only).await),
        Err(error) => Err(error.to_string()),
    };
    Row {
        name: backend.name.to_string(),
        kind: backend.kind,
        credential: backend.credential.clone(),
        found,
    }
}

/// What this machine must have: a mount point, a directory for the cache.
fn surroundings(settings: &Settings) -> Vec<(String, Option<String>)> {
    let mut found = Vec::new();
    if let Some(mount) = &settings.mount {
        let point = mount.point.display();
        let problem = match fusemount::check_mount_point(&mount.point) {
            MountPointState::Free => None,
            MountPointState::Missing => Some(format!("does not exist: mkdir -p {point}")),
            MountPointState::NotDirectory => Some("is not a directory".to_owned()),
            // The sidecar that this file is for is running already.
            MountPointState::Busy(by) if by.starts_with("`warpdrive`") => None,
            MountPointState::Busy(by) => Some(format!("is in use by {by}")),
            MountPointState::Stale => {
                Some("has a dead mount on it: `warpdrive run --force` detaches it".to_owned())
            }
        };
        found.push((format!("mount point {point}"), problem));
        let device = std::path::Path::new("/dev/fuse");
        if !device.exists() {
            let what = "is not there: `warpdrive run --no-mount` serves S3 without it";
            found.push(("/dev/fuse".to_owned(), Some(what.to_owned())));
        }
    }
    if let Some((path, _)) = &settings.cache.disk {
        // The directory is made at the start; what must be there is a directory above it.
        let existing = path.ancestors().find(|p| p.exists());
        let problem = match existing {
            Some(dir) if !dir.is_dir() => Some(format!("{} is not a directory", dir.display())),
            Some(dir) if tempfile::tempfile_in(dir).is_err() => {
                Some(format!("{} cannot be written", dir.display()))
            }
            Some(_) => None,
            None => Some("has no directory above it".to_owned()),
        };
        found.push((format!("cache {}", path.display()), problem));
    }
    found
}

fn word(step: &ProbeStep) -> String {
    match step {
        ProbeStep::Ok(_) => "ok".to_owned(),
        ProbeStep::Failed(kind, _) => format!("FAILED {}", kind.name()),
        ProbeStep::Skipped(_) => "-".to_owned(),
    }
}

fn table(
    settings: &Settings,
    rows: &[Row],
    surroundings: &[(String, Option<String>)],
    file: &str,
) -> String {
    const HEAD: [&str; 9] = [
        "backend",
        "type",
        "credential",
        "accepted",
        "reachable",
        "latency",
        "list",
        "read",
        "write",
    ];
    let mut lines: Vec<Vec<String>> = vec![HEAD.iter().map(|s| (*s).to_owned()).collect()];
    let mut details = String::new();
    for row in rows {
        let mut cells = vec![row.name.clone(), row.kind.to_owned(), row.credential.clone()];
        match &row.found {
            Ok(report) => {
                let latency = report
                    .latency
                    .map_or("-".to_owned(), |l| format!("{:.1} ms", l.as_secs_f64() * 1000.0));
                cells.extend([
                    word(&report.credential),
                    word(&report.reach),
                    latency,
                    word(&report.list),
                    word(&report.read),
                    word(&report.write),
                ]);
                for (name, step) in report.steps() {
                    let why = match step {
                        ProbeStep::Ok(_) => continue,
                        ProbeStep::Failed(_, why) => why.as_str(),
                        ProbeStep::Skipped(why) => why,
                    };
                    // Writing to a String cannot fail.
                    let _ = writeln!(details, "  {} {name}: {why}", row.name);
                }
            }
            Err(why) => {
                cells.extend(["-", "FAILED", "-", "-", "-", "-"].map(str::to_owned));
                let _ = writeln!(details, "  {}: {why}", row.name);
            }
        }
        lines.push(cells);
    }
    let widths: Vec<usize> = (0..HEAD.len())
        .map(|column| lines.iter().map(|l| l[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut out = format!("{file}: valid\n\n");
    for line in &lines {
        let cells: Vec<String> = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell}{}", " ".repeat(width - cell.chars().count())))
            .collect();
        let _ = writeln!(out, "{}", cells.join("  ").trim_end());
    }
    if !details.is_empty() {
        let _ = write!(out, "\n{details}");
    }
    out.push('\n');
    for (what, problem) in surroundings {
        let _ = writeln!(out, "{what}: {}", problem.as_deref().unwrap_or("ok"));
    }
    for note in &settings.notes {
        let _ = writeln!(out, "note: {note}");
    }
    out
}

fn document(
    settings: &Settings,
    rows: &[Row],
    surroundings: &[(String, Option<String>)],
    good: bool,
) -> Value {
    let step = |step: &ProbeStep| match step {
        ProbeStep::Ok(took) => json!({"result": "ok", "seconds": took.as_secs_f64()}),
        ProbeStep::Failed(kind, why) => {
            json!({"result": "failed", "kind": kind.name(), "why": why})
        }
        ProbeStep::Skipped(why) => json!({"result": "skipped", "why": why}),
    };
    let backend = |row: &Row| {
        let mut document = json!({
            "name": row.name, "type": row.kind, "credential": row.credential, "ok": row.is_ok(),
        });
        match &row.found {
            Ok(report) => {
                for (name, found) in report.steps() {
                    document[name] = step(found);
                }
                document["latency_seconds"] = json!(report.latency.map(|l| l.as_secs_f64()));
            }
            Err(why) => document["error"] = json!(why),
        }
        document
    };
    json!({
        "ok": good,
        "backends": rows.iter().map(backend).collect::<Vec<_>>(),
        "machine": surroundings.iter().map(|(what, problem)| {
            json!({"what": what, "ok": problem.is_none(), "problem": problem})
        }).collect::<Vec<_>>(),
        "notes": settings.notes,
    })
}
