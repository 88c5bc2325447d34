//! What the tests of survival share: who reads what, and how a worker is ended.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use system_tests::load::{HANG, Kind, Reader, Seen};
use system_tests::{DataSet, Home, Sidecar, no_mount, processes};
use testkit::{FaultyHttp, Skipped};

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;

/// Why no holder of its own can be had here: it mounts, which needs root.
pub(crate) fn no_holder() -> Option<Skipped> {
    let user = rustix::process::geteuid();
    let why = || Skipped::new("holder", "a holder of its own needs root");
    no_mount().or_else(|| (!user.is_root()).then(why))
}

/// Leaves a test where nothing can be held, and says so.
macro_rules! need_holder {
    () => {
        if let Some(skipped) = $crate::setting::no_holder() {
            skipped.say();
            return;
        }
    };
}
pub(crate) use need_holder;

/// A supervisor that expects to see many crashes.
pub(crate) const SUPERVISED: &[&str] = &["--supervise", "--max-crashes", "1000"];

/// Numbers that look random and are the same in each run (a linear congruential generator).
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn between(&mut self, from: u64, to: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        from + (self.0 >> 33) % (to - from)
    }
}

pub(crate) fn local(folder: &Path) -> Value {
    json!({ "name": "origin", "type": "local", "config": { "root": folder } })
}

/// A home over a directory with these objects.
pub(crate) fn home_over(set: &DataSet, folder: &Path, change: impl FnOnce(&mut Value)) -> Home {
    set.write_into(folder);
    Home::new(&[local(folder)], |config| {
        config["cache"]["stale_ttl"] = json!("10m");
        config["cache"]["min_free"] = json!("64MiB");
        change(config);
    })
}

/// A reader of each kind of `set`.
pub(crate) fn one_of_each(set: &DataSet, home: &Home) -> Vec<Reader> {
    let root = home.mount_point().join("origin");
    [Kind::Sequential, Kind::Random, Kind::Mapped, Kind::Walk]
        .map(|kind| Reader::start(kind, set, &root, home.path()))
        .into()
}

/// No error, no wrong byte, and no reader that did nothing.
pub(crate) fn assert_clean(seen: &[(Kind, Seen)], home: &Home) {
    for (kind, seen) in seen {
        assert!(seen.is_clean(), "{kind:?}: {}\n{}", seen.summary(), tail(home));
        assert!(seen.operations > 0, "a {kind:?} reader did nothing");
    }
}

pub(crate) fn tail(home: &Home) -> String {
    let log = home.log();
    let from = log.len().saturating_sub(6000);
    let from = (from..log.len()).find(|at| log.is_char_boundary(*at)).unwrap_or_default();
    log[from..].to_owned()
}

/// Kills the worker with SIGKILL as soon as there is one.
///
/// # Panics
/// When there is none within [`HANG`]: the supervisor has given up.
pub(crate) fn kill_worker(sidecar: &Sidecar<'_>, home: &Home) {
    let begun = Instant::now();
    loop {
        if sidecar.worker().is_some_and(|pid| processes::signal(pid, Signal::KILL)) {
            return;
        }
        assert!(sidecar.process().is_running(), "the supervisor has ended\n{}", tail(home));
        assert!(begun.elapsed() < HANG, "no worker comes back\n{}", tail(home));
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// How many of the bytes of `set` can be read whole through the mount, and are right.
pub(crate) fn readable_bytes(set: &DataSet, home: &Home) -> u64 {
    let mut bytes = 0;
    for object in &set.objects {
        if let Ok(found) = std::fs::read(home.mount_point().join("origin").join(&object.key)) {
            object.verify(0, &found);
            bytes += found.len() as u64;
        }
    }
    bytes
}

/// Bytes that were asked of the origin below a prefix.
pub(crate) fn asked_below(proxy: &FaultyHttp, prefix: &str, set: &DataSet) -> u64 {
    let requests = proxy.requests();
    let gets = requests.iter().filter(|r| r.method == "GET" && r.target.contains(prefix));
    let asked = gets.map(|request| {
        let whole = set.objects.iter().find(|o| request.target.contains(&o.key));
        let range = request.range.as_deref().and_then(|range| {
            let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
            Some(to.parse::<u64>().ok()? + 1 - from.parse::<u64>().ok()?)
        });
        // A listing has neither, and is no body of an object.
        range.or(whole.map(|object| object.bytes)).unwrap_or_default()
    });
    asked.sum()
}
