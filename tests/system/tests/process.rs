//! The process itself: start, drain, memory, and a cache directory that is not as it should be.

// The functions that the tests share are tests too; the lint sees only the marked ones.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use std::time::Duration;
use system_tests::{Home, content, no_mount, program};
use tempfile::TempDir;

fn local(folder: &TempDir) -> Value {
    json!({ "name": "local", "type": "local", "config": { "root": folder.path() } })
}

fn is_mounted(home: &Home) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.contains(home.mount_point().to_str().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_starts_serves_drains_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "from the directory").unwrap();
    let home = Home::new(&[local(&folder)], |_| {});
    let sidecar = home.start().await;
    assert_eq!(sidecar.get("local/file", None).await.unwrap().1, "from the directory");
    match sidecar.mounted("local/file") {
        Some(path) => {
            assert_eq!(std::fs::read_to_string(path).unwrap(), "from the directory");
            assert!(is_mounted(&home));
        }
        None => no_mount().unwrap().say(),
    }
    assert!(sidecar.admin("/livez").await.len() < 1000);
    assert!(sidecar.metric("warpdrive_cache_miss_total").await >= 1.0);
    assert_eq!(sidecar.stop(), Some(0), "{}", home.log());
    assert!(!is_mounted(&home), "unmounted at the end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_in_flight_is_finished_before_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let body = content(48 << 20, 7);
    std::fs::write(folder.path().join("large"), &body).unwrap();
    let home = Home::new(&[local(&folder)], |_| {});
    let sidecar = home.start().await;
    let url = format!("{}/local/large", sidecar.endpoint());
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut answer = client.get(url).send().await.unwrap();
    let mut read = answer.chunk().await.unwrap().unwrap().to_vec();
    sidecar.process().signal(rustix::process::Signal::TERM);
    while let Some(chunk) = answer.chunk().await.unwrap() {
        read.extend_from_slice(&chunk);
    }
    assert!(read == body, "the answer was cut");
    assert_eq!(sidecar.ended(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_uploads_at_once_stay_within_memory() {
    const UPLOADS: usize = 16;
    const EACH: usize = 32 << 20;
    /// The memory tier of the tests (64 MiB) and 256 MiB.
    const LIMIT_BYTES: u64 = (64 + 256) << 20;
    let folder = tempfile::tempdir().unwrap();
    let home = Home::new(&[local(&folder)], |_| {});
    let sidecar = home.start().await;
    let body = content(EACH, 8);
    let mut uploads = tokio::task::JoinSet::new();
    for number in 0..UPLOADS {
        let url = format!("{}/local/up{number}", sidecar.endpoint());
        let body = body.clone();
        uploads.spawn(async move {
            let client = reqwest::Client::builder().no_proxy().build().unwrap();
            let answer = client.put(url).body(body).send().await.unwrap();
            assert!(answer.status().is_success(), "{answer:?}");
        });
    }
    let all = async {
        while let Some(done) = uploads.join_next().await {
            done.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(90), all).await.expect("the uploads end");
    for number in 0..UPLOADS {
        assert!(std::fs::read(folder.path().join(format!("up{number}"))).unwrap() == body);
    }
    let peak = sidecar.peak_memory_bytes();
    println!("peak memory: {} MiB", peak >> 20);
    assert!(peak <= LIMIT_BYTES, "{} MiB", peak >> 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_cache_directory_is_a_slow_cache_and_no_wrong_one() {
    let folder = tempfile::tempdir().unwrap();
    let body = content(12 << 20, 9);
    std::fs::write(folder.path().join("file"), &body).unwrap();
    let home = Home::new(&[local(&folder)], |_| {});
    let sidecar = home.start().await;
    assert!(sidecar.get("local/file", None).await.unwrap().1 == body);
    assert_eq!(sidecar.stop(), Some(0));

    // Every tenth byte of every file of the cache is turned over.
    let mut folders = vec![home.path().join("cache")];
    let mut damaged = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.is_file() {
                damaged += damage(&entry);
            }
        }
    }
    assert!(damaged > 0, "the cache left nothing on the disk");
    let sidecar = home.start().await;
    assert!(sidecar.get("local/file", None).await.unwrap().1 == body, "a damaged block was served");
    assert!(
        sidecar.get("local/file", Some("bytes=7000000-7999999")).await.unwrap().1
            == body.slice(7_000_000..8_000_000)
    );
}

/// Turns over bytes of the written regions of a file, sparse holes excepted; returns how many.
fn damage(path: &std::path::Path) -> usize {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut buffer = vec![0; 1 << 20];
    let (mut at, mut turned) = (0, 0);
    loop {
        let count = file.read_at(&mut buffer, at).unwrap();
        if count == 0 {
            return turned;
        }
        if buffer[..count].iter().any(|byte| *byte != 0) {
            for byte in buffer[..count].iter_mut().step_by(10) {
                *byte = !*byte;
                turned += 1;
            }
            file.write_at(&buffer[..count], at).unwrap();
        }
        at += count as u64;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_on_one_cache_directory_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let home = Home::new(&[local(&folder)], |_| {});
    let _sidecar = home.start().await;
    let other = tempfile::tempdir().unwrap();
    let refused = std::process::Command::new(program())
        .args(["run", "-c"])
        .arg(write_config(other.path(), &home))
        .output();
    let refused = refused.unwrap();
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr).to_lowercase();
    assert!(said.contains("lock") || said.contains("in use") || said.contains("another"), "{said}");
}

/// A configuration over `other` with the cache directory of `home`.
fn write_config(other: &std::path::Path, home: &Home) -> std::path::PathBuf {
    let path = other.join("second.yaml");
    let config = json!({
        "fuse": { "enabled": false },
        "cache": { "path": home.path().join("cache"), "max_size": "1GiB", "memory": "64MiB" },
        "backends": [{ "name": "local", "type": "local", "config": { "root": other } }],
        "s3": { "listen": format!("127.0.0.1:{}", testkit::free_port()), "access": "anonymous" },
        "admin": { "listen": format!("127.0.0.1:{}", testkit::free_port()) },
        "metrics": { "enabled": false },
    });
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

#[test]
fn a_wrong_configuration_is_refused_with_every_problem_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wrong.yaml");
    std::fs::write(
        &path,
        "cache: {max_sise: 5GB}\nbackends:\n  - {name: x, type: ftp}\n  - {name: y, type: s3}\n",
    )
    .unwrap();
    let refused =
        std::process::Command::new(program()).args(["check", "-c"]).arg(&path).output().unwrap();
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr);
    for expected in ["max_size", "backends[0]", "ftp", "backends[1]"] {
        assert!(said.contains(expected), "{expected} is not in\n{said}");
    }
}
