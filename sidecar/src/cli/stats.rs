//! `warpdrive stats`: what a running sidecar is doing, for people.
//!
//! Invariant: it shows what `/status` says and adds nothing but rates between two looks.

use std::fmt::Write;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::client::{self, Client};
use super::{StatsArgs, Stop, put, small_runtime};
use crate::config::about;

/// Often enough to see a burst, seldom enough to read.
const EVERY: Duration = Duration::from_secs(1);

pub(super) fn stats(args: &StatsArgs) -> Result<(), Stop> {
    let (client, _) = client::find(&args.place)?;
    let Some(client) = client else {
        return Err(Stop::Unusable("the file has `admin.enabled: false`".to_owned()));
    };
    let runtime = small_runtime()?;
    runtime.block_on(async {
        tokio::select! {
            shown = show(&client, args) => shown,
            // The usual end of --watch.
            _ = tokio::signal::ctrl_c() => Ok(()),
        }
    })
}

async fn show(client: &Client, args: &StatsArgs) -> Result<(), Stop> {
    use std::io::IsTerminal;
    let clear = args.watch && !args.json && std::io::stdout().is_terminal();
    let mut before: Option<(Instant, Value)> = None;
    loop {
        let status: Value = client.get("/status").await?;
        let at = Instant::now();
        let text = if args.json {
            format!("{status}\n")
        } else {
            let since = before.as_ref().map(|(then, old)| (at - *then, old));
            page(&status, since)
        };
        if clear {
            // Cursor home, and everything after it erased.
            put("\x1b[H\x1b[2J");
        }
        put(&text);
        if !args.watch {
            return Ok(());
        }
        before = Some((at, status));
        tokio::time::sleep(EVERY).await;
    }
}

fn number(status: &Value, path: &str) -> u64 {
    status.pointer(path).and_then(Value::as_u64).unwrap_or(0)
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or("-")
}

/// One look. Writing to a String cannot fail.
fn page(status: &Value, since: Option<(Duration, &Value)>) -> String {
    let mut out = String::new();
    let uptime = status["uptime_seconds"].as_f64().unwrap_or(0.0);
    let _ = writeln!(
        out,
        "warpdrive {}  pid {}  up {}  {}  memory {}",
        text(status, "/version"),
        number(status, "/pid"),
        span(uptime),
        if status["ready"] == true { "ready" } else { "not ready" },
        about(number(status, "/resident_memory_bytes")),
    );
    let _ = writeln!(out, "mount {}   S3 {}", text(status, "/mount"), text(status, "/s3"));
    let (hits, misses) = (number(status, "/cache/hits"), number(status, "/cache/misses"));
    let rate = if hits + misses == 0 {
        "-".to_owned()
    } else {
        format!("{:.1} %", 100.0 * hits as f64 / (hits + misses) as f64)
    };
    let _ = writeln!(out, "\ncache   hits {hits}  misses {misses}  hit rate {rate}");
    for tier in ["memory", "disk"] {
        let at = |key: &str| number(status, &format!("/cache/{tier}/{key}"));
        if status.pointer(&format!("/cache/{tier}")).is_some_and(|tier| !tier.is_null()) {
            let _ = writeln!(
                out,
                "  {tier:<7}{} of {}  hits {}  evictions {}",
                about(at("bytes")),
                about(at("capacity_bytes")),
                at("hits"),
                at("evictions"),
            );
        }
    }
    if status.pointer("/cache/disk_state/up") == Some(&Value::Bool(false)) {
        let _ = writeln!(
            out,
            "  disk tier is not in use: {}",
            text(status, "/cache/disk_state/reason")
        );
    }
    let _ = writeln!(
        out,
        "  fetched {} in {} requests  in flight {}  failed {}  joined {}",
        about(number(status, "/cache/fetch/bytes")),
        number(status, "/cache/fetch/requests"),
        number(status, "/cache/fetch/in_flight"),
        number(status, "/cache/fetch/failures"),
        number(status, "/cache/fetch/joins"),
    );
    let _ = writeln!(
        out,
        "  read ahead {}  used {}  wasted {}  stale answers {}",
        about(number(status, "/cache/prefetch/bytes")),
        number(status, "/cache/prefetch/hits"),
        number(status, "/cache/prefetch/wasted"),
        number(status, "/cache/stale_served"),
    );
    if let Some((took, old)) = since {
        let seconds = took.as_secs_f64().max(0.001);
        let rate =
            |path: &str| number(status, path).saturating_sub(number(old, path)) as f64 / seconds;
        let _ = writeln!(
            out,
            "  now: {:.0} hits/s  {:.0} misses/s  {}/s from origins",
            rate("/cache/hits"),
            rate("/cache/misses"),
            about(whole(rate("/cache/fetch/bytes"))),
        );
    }
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
    out
}

/// A rate or a time as a whole number; negative ones are zero.
#[allow(clippy::cast_sign_loss)] // not below zero
pub(super) fn whole(value: f64) -> u64 {
    value.max(0.0).round() as u64
}

/// A number of seconds for people.
fn span(seconds: f64) -> String {
    let whole = whole(seconds);
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
        let page = page(&new, Some((Duration::from_secs(2), &old)));
        for part in [
            "up 1h1m",
            "hit rate 90.0 %",
            "30 hits/s",
            "disk full",
            "train",
            "note: n1",
            "1.0 KiB of 2.0 KiB",
        ] {
            assert!(page.contains(part), "{part}\n{page}");
        }
    }
}
