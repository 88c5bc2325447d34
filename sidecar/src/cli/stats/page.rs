//! The page of `warpdrive stats`: what `/status` says, in an order that a person reads.
//!
//! Invariant: it adds nothing but rates, shares and words for the machine's names; what the sidecar
//! does not say (an older one) is left out, not guessed. It fits one screen for a few backends.

use std::fmt::Write;
use std::time::Duration;

use serde_json::Value;

use crate::config::about;

/// Data sets that are shown; the others are counted.
const MOST_SETS: usize = 6;
/// Reasons that are shown of a list.
const MOST_REASONS: usize = 6;

/// One look. Writing to a String cannot fail.
pub(super) fn page(status: &Value, since: Option<(Duration, &Value)>) -> String {
    let mut out = String::new();
    head(&mut out, status);
    cache(&mut out, status);
    files(&mut out, status);
    origins(&mut out, status);
    if let Some((took, old)) = since {
        rates(&mut out, status, took, old);
    }
    opens(&mut out, status);
    sets(&mut out, status);
    backends(&mut out, status);
    out
}

fn head(out: &mut String, status: &Value) {
    let _ = writeln!(
        out,
        "warpdrive {}  pid {}  up {}  {}  memory {}",
        text(status, "/version"),
        number(status, "/pid"),
        span(status["uptime_seconds"].as_f64().unwrap_or(0.0)),
        if status["ready"] == true { "ready" } else { "not ready" },
        about(number(status, "/resident_memory_bytes")),
    );
    let _ = writeln!(out, "mount {}{}", text(status, "/mount"), holder(status));
    if let Some(lost) = status["mount_lost"].as_str() {
        let _ = writeln!(out, "mount LOST: {lost}");
    }
    let _ = write!(out, "S3    {}", text(status, "/s3"));
    match status["restarts"].as_u64() {
        Some(0) => out.push_str("   supervised\n"),
        Some(count) => _ = writeln!(out, "   supervised, started again {}", times(count)),
        None => out.push('\n'),
    }
}

/// Who holds the mount, after its place.
fn holder(status: &Value) -> String {
    let pid = status.pointer("/holder/pid").and_then(Value::as_u64);
    let pid = pid.map_or_else(String::new, |pid| format!(" {pid}"));
    let what = match status.pointer("/holder/kind").and_then(Value::as_str) {
        Some("own") => format!("held by its own process{pid}"),
        Some("given") => format!("held by mountd{pid}"),
        Some("none") => "ends with this process (no holder)".to_owned(),
        _ => return String::new(),
    };
    let resumed = match status.pointer("/holder/resumed") {
        Some(Value::Bool(true)) => ", resumed from an earlier worker",
        _ => "",
    };
    match number(status, "/holder/remounts") {
        0 => format!("   {what}{resumed}"),
        count => format!("   {what}{resumed}, mounted again {}", times(count)),
    }
}

fn cache(out: &mut String, status: &Value) {
    let (hits, misses) = (number(status, "/cache/hits"), number(status, "/cache/misses"));
    let rate = share(hits, hits + misses);
    let _ = writeln!(out, "\ncache   hits {hits}  misses {misses}  hit rate {rate}");
    for (tier, name) in [("memory", "memory"), ("disk", "blocks")] {
        let at = |key: &str| number(status, &format!("/cache/{tier}/{key}"));
        if status.pointer(&format!("/cache/{tier}")).is_some_and(|tier| !tier.is_null()) {
            let _ = writeln!(
                out,
                "  {name:<8}{} of {}  hits {}  evictions {}",
                about(at("bytes")),
                about(at("capacity_bytes")),
                at("hits"),
                at("evictions"),
            );
        }
    }
    if status.pointer("/cache/disk_state/up") == Some(&Value::Bool(false)) {
        let why = text(status, "/cache/disk_state/reason");
        let _ = writeln!(out, "  disk tier is not in use: {why}");
    }
}

fn files(out: &mut String, status: &Value) {
    let Some(tier) = status.pointer("/cache/files").filter(|tier| tier.is_object()) else { return };
    let at = |key: &str| number(tier, &format!("/{key}"));
    let _ = writeln!(
        out,
        "  files   {} of {}  {} whole objects, {} being written  evictions {}",
        about(at("bytes")),
        about(at("capacity_bytes")),
        at("files"),
        at("parts"),
        at("evictions"),
    );
    let _ = writeln!(
        out,
        "          published {} ({} written, {} of it from blocks)  verified again {}  \
         in doubt {}  bad {}",
        at("published"),
        about(at("written_bytes")),
        about(at("promoted_bytes")),
        about(at("scrubbed_bytes")),
        at("suspect"),
        at("bad"),
    );
    let refused = counts(&tier["refused"]);
    if !refused.is_empty() {
        let shown: Vec<String> = refused
            .iter()
            .take(MOST_REASONS)
            .map(|(reason, count)| format!("{} {count}", refusal(reason)))
            .collect();
        let _ = writeln!(out, "          did not become files: {}", shown.join(", "));
    }
    if tier.pointer("/state/up") == Some(&Value::Bool(false)) {
        let why = text(tier, "/state/reason");
        let _ = writeln!(out, "          takes no new objects: {why}");
    }
    let free = status["disk_free_bytes"].as_u64();
    if let (Some(free), Some(least)) = (free, status["disk_min_free_bytes"].as_u64()) {
        let system = text(tier, "/file_system");
        let (free, least) = (about(free), about(least));
        let _ = writeln!(out, "          {system}, {free} free (cache.min_free {least})");
    }
}

/// Why an object did not become a file.
fn refusal(reason: &str) -> String {
    match reason {
        "not_admitted" | "retained" => "no room beside what is kept".to_owned(),
        "given_up" => "gave way to others".to_owned(),
        "too_many_parts" => "too many at once".to_owned(),
        other => other.replace('_', " "),
    }
}

fn origins(out: &mut String, status: &Value) {
    let at = |key: &str| number(status, &format!("/cache/{key}"));
    let _ = writeln!(
        out,
        "origins fetched {} in {} requests  in flight {}  failed {}  joined {}  stale answers {}",
        about(at("fetch/bytes")),
        at("fetch/requests"),
        at("fetch/in_flight"),
        at("fetch/failures"),
        at("fetch/joins"),
        at("stale_served"),
    );
    let _ = writeln!(
        out,
        "        read ahead {}  blocks of it used {}  wasted {}",
        about(at("prefetch/bytes")),
        at("prefetch/hits"),
        at("prefetch/wasted"),
    );
}

fn rates(out: &mut String, status: &Value, took: Duration, old: &Value) {
    let seconds = took.as_secs_f64().max(0.001);
    let rate = |path: &str| {
        super::whole(number(status, path).saturating_sub(number(old, path)) as f64 / seconds)
    };
    let opened = opened(status).saturating_sub(opened(old)) as f64 / seconds;
    let _ = writeln!(
        out,
        "now     {} hits/s  {} misses/s  {} opens/s  {}/s from origins",
        rate("/cache/hits"),
        rate("/cache/misses"),
        super::whole(opened),
        about(rate("/cache/fetch/bytes")),
    );
}

fn opened(status: &Value) -> u64 {
    let opens = status["opens"].as_array();
    opens.into_iter().flatten().map(|open| number(open, "/count")).sum()
}

/// Files that were opened: how the kernel gets their bytes, and why not faster.
fn opens(out: &mut String, status: &Value) {
    let opens = status["opens"].as_array().map_or(&[][..], Vec::as_slice);
    let all = opened(status);
    if all == 0 {
        return;
    }
    let passed = opens.iter().filter(|open| open["mode"] == "passthrough");
    let passed: u64 = passed.map(|open| number(open, "/count")).sum();
    let _ = writeln!(
        out,
        "\nopens   {all} of files  {passed} read by the kernel from the cache's files ({})",
        share(passed, all),
    );
    let mut others: Vec<&Value> =
        opens.iter().filter(|open| open["mode"] != "passthrough").collect();
    others.sort_by_key(|open| std::cmp::Reverse(number(open, "/count")));
    for open in others.into_iter().take(MOST_REASONS) {
        let reason = text(open, "/reason");
        let _ = writeln!(out, "  {:>8}  {}", number(open, "/count"), fallback(reason));
    }
}

/// Why the kernel did not read a file by itself, and what would change that.
fn fallback(reason: &str) -> String {
    let words = match reason {
        "no_file_tier" => "the cache keeps no files: set cache.path, and cache.files.enabled: true",
        "small" => "small: stays a block (cache.files.min_size)",
        "incomplete" => "not whole in the cache yet: read it whole, or `warpdrive warm` it",
        "suspect" => "being verified before it is handed out again",
        "old_kernel" => "the kernel cannot: Linux 6.9 with CONFIG_FUSE_PASSTHROUGH can",
        "no_privilege" => {
            "no privilege to register files: let `warpdrive mountd` hold the mount (fuse.holder)"
        }
        "stacked_file_system" => {
            "cache.path is on a stacked file system: use ext4 or xfs, an emptyDir or a hostPath"
        }
        "register_failed" => "registering failed: tried again, see the log",
        "opens_unknown" => "the journal of what is open was lost: it is so until the next mount",
        "in_use_cached" => "open the slower way elsewhere: switches when that is closed",
        "turned_off" => "turned off (fuse.passthrough: off)",
        other => return other.replace('_', " "),
    };
    words.to_owned()
}

/// What admission decided for each data set.
fn sets(out: &mut String, status: &Value) {
    let sets = status.pointer("/cache/files/sets").and_then(Value::as_array);
    let mut sets: Vec<&Value> = sets.into_iter().flatten().collect();
    if sets.is_empty() {
        return;
    }
    sets.sort_by_key(|set| std::cmp::Reverse(number(set, "/resident_bytes")));
    let _ = writeln!(out, "\ndata sets");
    for set in sets.iter().take(MOST_SETS) {
        let store = number(set, "/store_id");
        let backends = status["backends"].as_array().into_iter().flatten();
        let backend = backends.into_iter().find(|b| b["store_id"].as_u64() == Some(store));
        let backend = backend.map_or("-", |backend| text(backend, "/name"));
        let why = match text(set, "/why") {
            "no_repeats" => "hardly anything was read twice",
            "full_passes" => "it is read in full passes",
            "some_return_early" => "some objects return early",
            "pinned" => "configured (retention)",
            other => other,
        };
        let does = match (text(set, "/mode"), text(set, "/activity")) {
            (_, "idle") => "makes room: not read any more".to_owned(),
            ("keep", _) => format!("keeps what it has: {why}"),
            ("evict", _) => format!("evicts: {why}"),
            (other, _) => format!("{other}: {why}"),
        };
        let _ = writeln!(
            out,
            "  {:<28} {} of {} objects, {}  hits {}  {does}",
            format!("{backend}/{}", set["prefix"].as_str().unwrap_or("")),
            number(set, "/resident_objects"),
            number(set, "/objects"),
            about(number(set, "/resident_bytes")),
            share(number(set, "/hits"), number(set, "/uses")),
        );
    }
    if sets.len() > MOST_SETS {
        let _ = writeln!(out, "  and {} more", sets.len() - MOST_SETS);
    }
}

fn backends(out: &mut String, status: &Value) {
    let _ = writeln!(out);
    for backend in status["backends"].as_array().into_iter().flatten() {
        let _ = writeln!(
            out,
            "{:<16} {:<10} {}  {}",
            text(backend, "/name"),
            text(backend, "/type"),
            text(backend, "/identity"),
            text(backend, "/health"),
        );
    }
    for job in status["warm_jobs"].as_array().into_iter().flatten() {
        if job["state"] == "running" {
            let _ = writeln!(out, "warm job {} runs", number(job, "/id"));
        }
    }
    for note in status["notes"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let _ = writeln!(out, "note: {note}");
    }
}

fn number(status: &Value, path: &str) -> u64 {
    status.pointer(path).and_then(Value::as_u64).unwrap_or(0)
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or("-")
}

fn times(count: u64) -> String {
    if count == 1 { "once".to_owned() } else { format!("{count} times") }
}

fn share(part: u64, all: u64) -> String {
    if all == 0 {
        return "-".to_owned();
    }
    format!("{:.1} %", 100.0 * part as f64 / all as f64)
}

/// What was counted by reason, the most frequent first.
fn counts(by_reason: &Value) -> Vec<(&str, u64)> {
    let pairs = by_reason.as_object().into_iter().flatten();
    let pairs = pairs.map(|(reason, count)| (reason.as_str(), count.as_u64().unwrap_or(0)));
    let mut pairs: Vec<(&str, u64)> = pairs.filter(|(_, count)| *count > 0).collect();
    pairs.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    pairs
}

/// A number of seconds for people.
fn span(seconds: f64) -> String {
    let whole = super::whole(seconds);
    match (whole / 86_400, whole / 3600 % 24, whole / 60 % 60, whole % 60) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) => format!("{m}m{s}s"),
        (0, h, m, _) => format!("{h}h{m}m"),
        (d, h, _, _) => format!("{d}d{h}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(status: &Value, since: Option<(Duration, &Value)>, parts: &[&str]) -> String {
        let page = page(status, since);
        for part in parts {
            assert!(page.contains(part), "{part}\n{page}");
        }
        page
    }

    #[test]
    fn a_page_says_rates_and_health() {
        let status = |hits: u64| {
            json!({
                "version": "1", "pid": 7, "uptime_seconds": 3700.0, "ready": true, "s3": "http://x",
                "cache": {"hits": hits, "misses": 10, "memory": {"bytes": 1024, "capacity_bytes": 2048},
                          "disk": null, "disk_state": {"up": false, "reason": "disk full"}},
                "backends": [{"name": "train", "type": "s3", "identity": "s3://b", "health": "ok"}],
                "notes": ["n1"],
            })
        };
        let (old, new) = (status(30), status(90));
        let since = Some((Duration::from_secs(2), &old));
        let parts = [
            "up 1h1m",
            "hit rate 90.0 %",
            "30 hits/s",
            "disk full",
            "train",
            "note: n1",
            "1.0 KiB of 2.0 KiB",
        ];
        shown(&new, since, &parts);
    }

    #[test]
    fn a_page_says_who_holds_the_mount_and_how_files_are_opened() {
        let status = json!({
            "mount": "/data", "restarts": 2, "mount_lost": "the holder of the mount has died",
            "holder": {"kind": "own", "pid": 12, "resumed": true, "remounts": 1},
            "disk_free_bytes": 5_u64 << 30, "disk_min_free_bytes": 1_u64 << 30,
            "opens": [
                {"mode": "passthrough", "reason": "registered", "count": 90},
                {"mode": "cached", "reason": "incomplete", "count": 3},
                {"mode": "cached", "reason": "stacked_file_system", "count": 7},
            ],
            "cache": {"files": {
                "state": {"up": false, "reason": "the file system is full"}, "file_system": "ext4",
                "files": 4, "parts": 1, "bytes": 1 << 20, "capacity_bytes": 1 << 30,
                "published": 5, "bad": 1, "refused": {"not_admitted": 3, "given_up": 0},
                "sets": [{"store_id": 9, "prefix": "imagenet/", "mode": "keep", "activity": "active",
                          "why": "full_passes", "resident_objects": 2, "objects": 4,
                          "resident_bytes": 2048, "hits": 1, "uses": 2}],
            }},
            "backends": [{"name": "train", "store_id": 9}],
        });
        let parts = [
            "held by its own process 12, resumed from an earlier worker, mounted again once",
            "mount LOST: the holder",
            "started again 2 times",
            "(90.0 %)",
            "       7  cache.path is on a stacked file system",
            "no room beside what is kept 3",
            "takes no new objects: the file system is full",
            "ext4, 5.0 GiB free (cache.min_free 1.0 GiB)",
            "train/imagenet/",
            "2 of 4 objects, 2.0 KiB  hits 50.0 %  keeps what it has: it is read in full passes",
        ];
        let page = shown(&status, None, &parts);
        assert!(page.find("stacked").unwrap() < page.find("not whole").unwrap(), "{page}");
        assert!(!page.contains("gave way"), "{page}");
        assert!(page.lines().count() <= 40, "{page}");
    }

    #[test]
    fn an_empty_answer_is_a_page() {
        assert!(page(&json!({}), Some((Duration::ZERO, &json!([])))).contains("warpdrive"));
    }
}
