//! Memory has a bound, whatever is asked of the program at once.

// The functions that the tests share are tests too; the lint sees only the marked ones.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;
use system_tests::load::{Kind, Reader};
use system_tests::{DataSet, Home, no_mount, processes, program, s3_backend};
use testkit::{Link, Origin, Throttle};

const MIB: u64 = 1 << 20;

/// A memory cgroup of our own (version 1 or 2), removed when it is dropped.
struct Limit {
    folder: PathBuf,
    peak: &'static str,
}

impl Limit {
    /// `None` where none can be made: then the process's own peak is all there is to look at.
    fn new(bytes: u64) -> Option<Limit> {
        let text = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let below = |controller: &str| {
            text.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':').skip(1);
                let found = fields.next()?.split(',').any(|name| name == controller);
                let path = fields.next()?;
                found.then(|| path.trim_start_matches('/').to_owned())
            })
        };
        let name = format!("warpdrive-test-{}", std::process::id());
        let one = || {
            let parent = Path::new("/sys/fs/cgroup/memory").join(below("memory")?);
            Limit::at(
                parent.join(&name),
                "memory.limit_in_bytes",
                "memory.max_usage_in_bytes",
                bytes,
            )
        };
        let two = || {
            let parent = Path::new("/sys/fs/cgroup").join(below("")?);
            Limit::at(parent.join(&name), "memory.max", "memory.peak", bytes)
        };
        one().or_else(two)
    }

    fn at(folder: PathBuf, limit: &str, peak: &'static str, bytes: u64) -> Option<Limit> {
        std::fs::create_dir(&folder).ok()?;
        // From here on dropping it removes the group.
        let made = Limit { folder, peak };
        std::fs::write(made.folder.join(limit), bytes.to_string()).ok()?;
        Some(made)
    }

    /// A shell that joins the group and then becomes `program`.
    fn command(&self, program: &Command) -> Command {
        let mut command = Command::new("/bin/sh");
        let join = "echo $$ > \"$0\" && exec \"$@\"";
        command.args(["-c", join]).arg(self.folder.join("cgroup.procs"));
        command.arg(program.get_program()).args(program.get_args());
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.current_dir(program.get_current_dir().unwrap());
        command
    }

    fn number(&self, file: &str) -> Option<u64> {
        std::fs::read_to_string(self.folder.join(file)).ok()?.trim().parse().ok()
    }

    /// How often the kernel ended a process of the group.
    fn kills(&self) -> u64 {
        let read = |name: &str| std::fs::read_to_string(self.folder.join(name)).unwrap_or_default();
        let text = read("memory.oom_control") + &read("memory.events");
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.and_then(|count| count.trim().parse().ok()).unwrap_or_default()
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        // It must be empty first; what was killed takes a moment to leave.
        for _ in 0..100 {
            if std::fs::remove_dir(&self.folder).is_ok() || !self.folder.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Resident bytes of a process that are its own: pages of files that it maps are not.
fn own_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_files_read_at_once_stay_within_memory() {
    const FILES: u64 = 1000;
    const LIMIT_BYTES: u64 = 512 * MIB;
    const TIER_BYTES: u64 = 128 * MIB;
    if let Some(skipped) = no_mount() {
        skipped.say();
        return;
    }
    let origin = testkit::start!(Origin::versitygw());
    origin.create_bucket("bucket").await;
    let set = DataSet::new("set", FILES, &[MIB], 1);
    set.put_into(&origin, "bucket").await;
    // As far away as an origin is: without a delay there are never many requests in flight.
    let link = Throttle::start(
        origin.address(),
        Link { latency: Duration::from_millis(20), bytes_per_second: None },
    );
    let mut backend = s3_backend("origin", &origin, "bucket", &link.endpoint());
    // The defaults: a thousand requests at once to a server that shares two cores take their time.
    for section in ["timeouts", "retry"] {
        backend.as_object_mut().unwrap().remove(section);
    }
    let home = Home::new(&[backend], |config| {
        config["cache"]["memory"] = json!(format!("{}MiB", TIER_BYTES / MIB));
        config["cache"]["memory_limit"] = json!(format!("{}MiB", (TIER_BYTES + 192 * MIB) / MIB));
        config["cache"]["max_size"] = json!("4GiB");
        config["cache"]["min_free"] = json!("64MiB");
    });
    let limit = Limit::new(LIMIT_BYTES);
    let command = home.command("run");
    assert_eq!(command.get_program(), program());
    let sidecar = if let Some(limit) = &limit {
        home.start_command(limit.command(&command))
    } else {
        println!("no memory cgroup can be made here: only the resident memory is looked at");
        home.start_command(command)
    };
    sidecar.ready().await;
    let reader = Reader::start(Kind::Many, &set, &home.mount_point().join("origin"), home.path());

    // The process is `exec`ed by the shell, so its number is the one that was started.
    let pid = sidecar.process().pid();
    let peak = Arc::new(AtomicU64::new(0));
    let sampled = Arc::clone(&peak);
    let sampling = tokio::spawn(async move {
        loop {
            sampled.fetch_max(own_memory(pid), Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    // Every thread of the reader finishes its first file before it looks whether to end.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let seen = reader.end();
    sampling.abort();
    let peak = peak.load(Ordering::Relaxed);
    println!("{FILES} files at once: {}", seen.summary());
    println!(
        "own memory at most {} MiB, resident {} MiB",
        peak >> 20,
        sidecar.peak_memory_bytes() >> 20
    );
    if let Some(limit) = &limit {
        let used = limit.number(limit.peak).unwrap_or_default();
        println!(
            "cgroup: at most {} MiB of {} MiB, page cache included",
            used >> 20,
            LIMIT_BYTES >> 20
        );
        assert_eq!(limit.kills(), 0, "the kernel ended a process of the group");
    }
    let log = home.log();
    assert!(seen.is_clean(), "{}\n{}", seen.summary(), &log[log.len().saturating_sub(3000)..]);
    assert!(seen.passes >= 1 && seen.bytes >= set.bytes(), "{}", seen.summary());
    assert!(processes::state(pid).is_some(), "the program has ended");
    let bound = TIER_BYTES + 256 * MIB;
    assert!(peak <= bound, "{} MiB of its own, {} MiB allowed", peak >> 20, bound >> 20);
    assert_eq!(sidecar.stop(), Some(0));
}
