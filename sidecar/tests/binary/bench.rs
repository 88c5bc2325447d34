//! `warpdrive bench`, end to end in small sizes.

use std::collections::HashSet;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::Process;

use super::support::{can_mount, output, program};

/// Nothing of a bench whose work folder is below `folder` is left.
fn assert_clean(folder: &Path) {
    let left: Vec<_> = std::fs::read_dir(folder).unwrap().flatten().map(|e| e.path()).collect();
    let work: Vec<_> = left.iter().filter(|p| p.to_string_lossy().contains("bench-")).collect();
    assert!(work.is_empty(), "{work:?}");
    let name = folder.display().to_string();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&name), "{mounts}");
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let environ = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let environ = String::from_utf8_lossy(&environ);
        assert!(
            !environ.contains(&format!("WARPDRIVE_BENCH={name}")),
            "{}",
            entry.path().display()
        );
    }
}

fn quick(folder: &Path, more: &[&str]) -> (i32, String, String) {
    let mut command = program();
    command.args(["bench", "--quick", "--time", "4m", "--dir"]).arg(folder);
    command.arg("--json").arg(folder.join("a.json")).arg("--html").arg(folder.join("a.html"));
    output(command.args(more))
}

fn report(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("a.json")).unwrap()).unwrap()
}

/// `workload target` of every row.
fn rows(report: &Value) -> HashSet<String> {
    let rows = report["rows"].as_array().unwrap().iter();
    rows.map(|row| format!("{} {}", row["workload"], row["target"]).replace('"', "")).collect()
}

fn skipped(report: &Value) -> String {
    report["skipped"].to_string()
}

#[test]
fn the_endpoint_is_measured_without_a_mount_and_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let wanted = "s3-1k,s3-8m,s3-cold,s3-cold-slow,s3-epochs,write";
    let (code, out, err) = quick(folder.path(), &["--targets", "s3", "--only", wanted]);
    assert_eq!(code, 0, "{out}{err}");
    let report = report(folder.path());
    let found = rows(&report);
    for row in wanted.split(',').chain(["memory"]) {
        assert!(found.contains(&format!("{row} s3")), "{row} of {found:?}: {}", skipped(&report));
        assert!(out.contains(row), "{out}");
    }
    for row in report["rows"].as_array().unwrap() {
        let spread = &row["value"];
        let number = |name: &str| spread[name].as_f64().unwrap();
        assert!(number("min") <= number("median") && number("median") <= number("max"), "{row}");
        if row["workload"] != "s3-epochs" {
            assert!(number("min") > 0.0, "{row}");
        }
    }
    // What a checkpoint through the mount would be is said, not left out.
    assert!(skipped(&report).contains("the mount is read-only: not built"));
    let settings = report["targets"].to_string();
    assert!(
        settings.contains("cache.max_size") && !settings.contains("bench-secret"),
        "{settings}"
    );
    let page = std::fs::read_to_string(folder.path().join("a.html")).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    assert!(page.contains("<svg") && page.contains("s3-8m"));
    assert_clean(folder.path());
}

#[test]
fn the_mount_is_measured_beside_plain_files_and_nothing_is_left() {
    if !can_mount("the_mount_is_measured_beside_plain_files_and_nothing_is_left") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let wanted = "seq-warm,rand-4k,readers-16,small-warm,mmap-seq,mmap-rand,small-cold,rand-cold,\
                  shared-cold,restart,walk,epochs";
    let (code, out, err) = quick(folder.path(), &["--targets", "mount", "--only", wanted]);
    assert_eq!(code, 0, "{out}{err}");
    let report = report(folder.path());
    let found = rows(&report);
    for row in wanted.split(',').chain(["memory"]) {
        // A tree is planted where the origin keeps plain files, as MinIO does not.
        let missing = skipped(&report);
        let may_lack = row == "walk" && missing.contains("no plain files");
        assert!(may_lack || found.contains(&format!("{row} mount")), "{row}: {missing}");
    }
    let warm = report["rows"].as_array().unwrap().iter().find(|r| r["workload"] == "seq-warm");
    assert_eq!(warm.unwrap()["against"], "plain");
    assert!(!report["goals"].as_array().unwrap().is_empty());
    assert_clean(folder.path());
}

#[test]
fn an_interrupted_bench_cleans_up_and_keeps_what_it_measured() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = program();
    command.args(["bench", "--time", "5m", "--size", "1GiB", "--targets", "s3", "--only", "s3-1m"]);
    command.args(["--repetitions", "99", "--dir"]).arg(folder.path()).stdin(Stdio::null());
    let log = folder.path().join("log");
    let process = Process::spawn("bench", command, &log).unwrap();
    let until = Instant::now() + Duration::from_mins(1);
    let printed = || std::fs::read_to_string(&log).unwrap();
    while !printed().contains("filling the cache") {
        assert!(process.is_running() && Instant::now() < until, "{}", printed());
        std::thread::sleep(Duration::from_millis(20));
    }
    process.signal(rustix::process::Signal::INT);
    let status = process.wait(Duration::from_secs(30)).unwrap_or_else(|| panic!("{}", printed()));
    assert_eq!(status.code(), Some(130), "{}", printed());
    assert_clean(folder.path());
}

#[test]
fn two_reports_are_compared_and_a_loss_can_fail() {
    let folder = tempfile::tempdir().unwrap();
    let row = |workload: &str, samples: [f64; 3]| {
        let mut sorted = samples;
        sorted.sort_by(f64::total_cmp);
        let spread = serde_json::json!({
            "median": sorted[1], "min": sorted[0], "max": sorted[2], "samples": samples,
        });
        serde_json::json!({
            "workload": workload, "target": "mount", "unit": "MiB/s", "higher_is_better": true,
            "value": spread, "against": "plain", "reference": spread, "ratio": spread,
            "more": {}, "note": "",
        })
    };
    let write = |name: &str, rows: Vec<Value>| {
        let report = serde_json::json!({
            "layout": 1, "version": "0.1.0", "began": "2026-01-02 03:04:05 UTC", "seconds": 1.0,
            "cut_short": null, "repetitions": 3, "machine": [], "conditions": [], "targets": [],
            "rows": rows, "goals": [], "skipped": [],
        });
        let path = folder.path().join(name);
        std::fs::write(&path, report.to_string()).unwrap();
        path
    };
    let before = write("a.json", vec![row("seq-warm", [0.9, 0.92, 0.94]), row("walk", [1.0; 3])]);
    let after = write("b.json", vec![row("seq-warm", [0.5, 0.46, 0.48]), row("walk", [1.0; 3])]);
    let compare = |more: &[&str]| {
        let mut command = program();
        output(command.args(["bench", "compare"]).arg(&before).arg(&after).args(more))
    };
    let (code, out, _) = compare(&[]);
    assert_eq!(code, 0);
    assert!(out.contains("seq-warm") && out.contains("WORSE") && !out.contains("walk"), "{out}");
    assert_eq!(compare(&["--fail-above", "60%"]).0, 0);
    let (code, _, err) = compare(&["--fail-above", "10%"]);
    assert!(code == 1 && err.contains("worse by 48%"), "{code} {err}");
    let (code, _, err) = output(program().args(["bench", "compare", "/dev/null"]).arg(&after));
    assert!(code == 2 && err.contains("no report of a bench"), "{code} {err}");
}

#[test]
fn what_there_is_to_measure_is_listed_and_wrong_names_are_refused() {
    let (code, out, _) = output(program().args(["bench", "--list"]));
    assert_eq!(code, 0);
    for name in ["seq-warm", "s3-8m", "kill", "mount-cached", "rclone", "juicefs", "nginx"] {
        assert!(out.contains(name), "{name} of {out}");
    }
    let (code, _, err) = output(program().args(["bench", "--only", "seq-wram"]));
    assert!(code == 2 && err.contains("is it `seq-warm`"), "{code} {err}");
    let (code, _, err) = output(program().args(["bench", "--size", "1MiB"]));
    assert!(code != 0 && err.contains("1 MiB may be used"), "{code} {err}");
}
