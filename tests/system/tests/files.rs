//! Whole objects as plain files, which the kernel reads for itself: what is served from where, what
//! the cache directory takes, and what is done to it behind the program's back.

// The functions that the tests share are tests too; the lint sees only the marked ones.
#![allow(clippy::unwrap_used)]

#[path = "files/places.rs"]
mod places;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use serde_json::{Value, json};
use system_tests::load::{Kind, Reader};
use system_tests::{DataSet, Home, Object, Sidecar, no_mount, read_in_every_way, s3_backend};
use testkit::{FaultyHttp, Origin, Skipped};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// How soon a file that was read whole is published, on a busy machine.
const PUBLISHED_WITHIN: Duration = Duration::from_secs(20);

/// Why the kernel cannot be given files here.
fn no_passthrough() -> Option<Skipped> {
    let root = rustix::process::geteuid().is_root();
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|n| n.trim().parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    no_mount().or_else(|| match () {
        () if !root => Some(Skipped::new("passthrough", "needs root")),
        () if version < (6, 9) => Some(Skipped::new("passthrough", "needs Linux 6.9")),
        () => None,
    })
}

/// Leaves a test where the kernel cannot read files for itself, and says so.
macro_rules! need_passthrough {
    () => {
        if let Some(skipped) = $crate::no_passthrough() {
            skipped.say();
            return;
        }
    };
}
use need_passthrough;

fn local(folder: &Path) -> Value {
    json!({ "name": "origin", "type": "local", "config": { "root": folder } })
}

/// A home over a directory with these objects.
fn home_over(set: &DataSet, folder: &Path, change: impl FnOnce(&mut Value)) -> Home {
    set.write_into(folder);
    Home::new(&[local(folder)], |config| {
        config["cache"]["stale_ttl"] = json!("10m");
        config["cache"]["min_free"] = json!("64MiB");
        change(config);
    })
}

fn path_of(home: &Home, object: &Object) -> PathBuf {
    home.mount_point().join("origin").join(&object.key)
}

/// Reads and verifies every object whole.
fn read_all(set: &DataSet, home: &Home) {
    for object in &set.objects {
        let found = std::fs::read(path_of(home, object));
        let found = found.unwrap_or_else(|e| panic!("{}: {e}\n{}", object.key, home.log()));
        assert_eq!(found.len() as u64, object.bytes, "{}", object.key);
        object.verify(0, &found);
    }
}

/// How many opens the kernel serves for itself so far.
async fn passthroughs(sidecar: &Sidecar<'_>) -> f64 {
    sidecar.series("warpdrive_fuse_opens_total", "mode=\"passthrough\"").await
}

/// Opens by mode and reason, for messages.
async fn opens(sidecar: &Sidecar<'_>) -> String {
    let text = sidecar.admin("/metrics").await;
    let lines = text.lines().filter(|line| line.starts_with("warpdrive_fuse_opens_total"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Opens each object until an open of it is in passthrough.
async fn wait_published(set: &DataSet, home: &Home, sidecar: &Sidecar<'_>) {
    let deadline = Instant::now() + PUBLISHED_WITHIN;
    for object in &set.objects {
        loop {
            let before = passthroughs(sidecar).await;
            drop(File::open(path_of(home, object)).unwrap());
            if passthroughs(sidecar).await > before {
                break;
            }
            let opens = opens(sidecar).await;
            assert!(
                Instant::now() < deadline,
                "{} is no file\n{opens}\n{}",
                object.key,
                home.log()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Every regular file below a folder with the bytes that it takes on the disk.
fn files_below(folder: &Path) -> BTreeMap<PathBuf, u64> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        // A folder or a file may be gone by the time that it is looked at.
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => folders.push(entry.path()),
                Ok(meta) if meta.is_file() => drop(found.insert(entry.path(), meta.blocks() * 512)),
                _ => {}
            }
        }
    }
    found
}

/// What the files of a cache directory take, by the folder or kind that they belong to.
fn by_place(files: &BTreeMap<PathBuf, u64>, cache: &Path) -> String {
    let mut places: BTreeMap<String, u64> = BTreeMap::new();
    for (path, bytes) in files {
        let inside = path.strip_prefix(cache).unwrap_or(path);
        let mut parts = inside.components().map(|part| part.as_os_str().to_string_lossy());
        let (first, second) = (parts.next(), parts.next());
        let shard = second.as_ref().is_some_and(|name| name.len() <= 2);
        let second = second.filter(|_| !shard && inside.components().count() > 2);
        let place = [first.unwrap_or_default(), second.unwrap_or_default()].join("/");
        *places.entry(place).or_default() += bytes;
    }
    let each = places.into_iter().map(|(place, bytes)| format!("{place} {} KiB", bytes >> 10));
    each.collect::<Vec<_>>().join(", ")
}

/// The file in the cache that holds an object whole. The name is the cache's affair, so it is told
/// by its bytes.
fn cached_file(object: &Object, home: &Home) -> PathBuf {
    let files = files_below(&home.path().join("cache"));
    let holds = |path: &PathBuf| {
        let Ok(file) = File::open(path) else { return false };
        let mut found = vec![0; 4096.min(object.bytes as usize)];
        file.metadata().is_ok_and(|meta| meta.len() == object.bytes)
            && file.read_exact_at(&mut found, 0).is_ok()
            && object.difference(0, &found).is_none()
    };
    let mut all = files.into_keys();
    all.find(holds).unwrap_or_else(|| panic!("no file holds {}", object.key))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_whole_is_read_by_the_kernel_also_after_a_restart_without_the_origin() {
    need_passthrough!();
    let origin = testkit::start!(Origin::versitygw());
    origin.create_bucket("bucket").await;
    let set = DataSet::new("set", 12, &[200 * KIB, MIB, 5 * MIB], 1);
    set.put_into(&origin, "bucket").await;
    let proxy = FaultyHttp::start(origin.address());
    let home = Home::new(&[s3_backend("origin", &origin, "bucket", &proxy.endpoint())], |config| {
        config["cache"]["stale_ttl"] = json!("10m");
        config["cache"]["min_free"] = json!("64MiB");
    });
    let sidecar = home.start().await;
    read_all(&set, &home);
    let fetched = proxy.body_bytes();
    assert!(fetched <= set.bytes() + set.bytes() / 50 + 100 * KIB, "{fetched} of {}", set.bytes());
    wait_published(&set, &home, &sidecar).await;
    let before = passthroughs(&sidecar).await;
    read_all(&set, &home);
    let opened = passthroughs(&sidecar).await - before;
    assert!(opened >= set.objects.len() as f64, "{opened} opens\n{}", opens(&sidecar).await);
    assert_eq!(sidecar.stop(), Some(0), "{}", home.log());

    // Names are asked for again, bytes are not.
    proxy.reset_counts();
    let sidecar = home.start().await;
    read_all(&set, &home);
    let opened = passthroughs(&sidecar).await;
    assert!(opened >= set.objects.len() as f64, "{opened} opens\n{}", opens(&sidecar).await);
    let of_objects = |r: &testkit::SeenRequest| r.method == "GET" && r.target.contains("/object-");
    let asked: Vec<_> = proxy.requests().into_iter().filter(of_objects).collect();
    assert!(asked.is_empty(), "{asked:?}");

    // Nothing at all is asked for where the origin is gone, on either front end.
    origin.stop();
    read_all(&set, &home);
    for object in &set.objects {
        let path = format!("origin/{}", object.key);
        let (status, body) = sidecar.get(&path, None).await.unwrap();
        assert!(status.is_success() && body.len() as u64 == object.bytes, "{path}: {status}");
        object.verify(0, &body);
    }
    assert_eq!(sidecar.stop(), Some(0), "{}", home.log());

    // Also after one more restart: the cache knows the names and the metadata of what it holds.
    let sidecar = home.start().await;
    read_all(&set, &home);
    for object in &set.objects {
        let path = format!("origin/{}", object.key);
        let (status, body) = sidecar.get(&path, None).await.unwrap();
        assert!(status.is_success(), "{path}: {status}\n{}", home.log());
        object.verify(0, &body);
    }
    assert_eq!(sidecar.stop(), Some(0), "{}", home.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_to_read_works_in_every_mode() {
    if let Some(skipped) = no_mount() {
        skipped.say();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let set = DataSet::new("set", 6, &[20 * KIB, 300 * KIB, 5 * MIB], 1);
    for passthrough in ["off", "auto"] {
        let home = home_over(&set, folder.path(), |config| {
            config["fuse"]["passthrough"] = json!(passthrough);
        });
        let sidecar = home.start().await;
        for pass in ["cold", "warm"] {
            for object in &set.objects {
                println!("passthrough {passthrough}, {pass}: {}", object.key);
                read_in_every_way(object, &path_of(&home, object), scratch.path());
            }
        }
        let large: Vec<Object> =
            set.objects.iter().filter(|o| o.bytes > 64 * KIB + 100).cloned().collect();
        let large = DataSet { objects: large };
        if passthrough == "auto" && no_passthrough().is_none() {
            wait_published(&large, &home, &sidecar).await;
            let before = passthroughs(&sidecar).await;
            for object in &large.objects {
                read_in_every_way(object, &path_of(&home, object), scratch.path());
            }
            let opened = passthroughs(&sidecar).await - before;
            assert!(opened >= 6.0 * large.objects.len() as f64, "{}", opens(&sidecar).await);
        } else {
            assert!(passthroughs(&sidecar).await < 0.5, "{}", opens(&sidecar).await);
        }
        assert_eq!(sidecar.stop(), Some(0), "{}", home.log());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_processes_map_the_same_files_while_they_become_whole() {
    if let Some(skipped) = no_mount() {
        skipped.say();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let set = DataSet::new("set", 10, &[300 * KIB, 6 * MIB], 1);
    let home = home_over(&set, folder.path(), |_| {});
    let sidecar = home.start().await;
    let root = home.mount_point().join("origin");
    let start = |kind| Reader::start(kind, &set, &root, home.path());
    let mapping = [Kind::Mapped; 4].map(start);
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Somebody reads them whole, so that opens of both modes come to be wanted at once.
    let reading = [Kind::Sequential, Kind::Random].map(start);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let readers = mapping.into_iter().chain(reading).collect();
    for (kind, seen) in Reader::end_all(readers) {
        assert!(seen.is_clean(), "{kind:?}: {}\n{}", seen.summary(), home.log());
    }
    println!("{}", opens(&sidecar).await);
    assert_eq!(sidecar.stop(), Some(0), "{}", home.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cache_directory_keeps_to_its_size_under_churn() {
    const MAX_BYTES: u64 = 160 * MIB;
    if let Some(skipped) = no_mount() {
        skipped.say();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let set = DataSet::new("set", 260, &[100 * KIB, 700 * KIB, 4 * MIB], 1);
    assert!(set.bytes() > 2 * MAX_BYTES);
    let home = home_over(&set, folder.path(), |config| {
        config["cache"]["max_size"] = json!("160MiB");
        config["cache"]["memory"] = json!("32MiB");
        // What is resident makes room, so that there is churn.
        config["cache"]["retention"] = json!("evict");
    });
    let sidecar = home.start().await;
    let root = home.mount_point().join("origin");
    let readers = vec![
        Reader::start(Kind::Sequential, &set, &root, home.path()),
        Reader::start(Kind::Random, &set, &root, home.path()),
    ];
    let (begun, cache) = (Instant::now(), home.path().join("cache"));
    let (mut most, mut over, mut places) = (0, 0.0, String::new());
    while begun.elapsed() < Duration::from_secs(10) {
        let files = files_below(&cache);
        let bytes: u64 = files.values().sum();
        // A file takes whole blocks of the file system, and the directory's own are none of ours.
        let slack = files.len() as u64 * 4 * KIB;
        if bytes > most {
            (most, places) = (bytes, by_place(&files, &cache));
        }
        over = f64::max(over, bytes as f64 / (MAX_BYTES + slack) as f64);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (kind, seen) in Reader::end_all(readers) {
        assert!(seen.is_clean(), "{kind:?}: {}\n{}", seen.summary(), home.log());
    }
    let opens = opens(&sidecar).await;
    println!("at most {} of {} MiB on the disk: {places}\n{opens}", most >> 20, MAX_BYTES >> 20);
    assert!(over <= 1.01, "{} of {} MiB: {places}", most >> 20, MAX_BYTES >> 20);
    assert!(most > MAX_BYTES / 2, "only {} MiB: nothing was tested", most >> 20);
    assert_eq!(sidecar.stop(), Some(0), "{}", home.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_somebody_spoiled_are_found_and_replaced() {
    need_passthrough!();
    let folder = tempfile::tempdir().unwrap();
    let set = DataSet::new("set", 4, &[3 * MIB], 1);
    let home = home_over(&set, folder.path(), |config| {
        // So fast that a test can wait for it.
        config["cache"]["files"] = json!({ "scrub_rate": "1GiB" });
    });
    for restart in [false, true] {
        let sidecar = home.start().await;
        read_all(&set, &home);
        wait_published(&set, &home, &sidecar).await;
        let mut running = Some(sidecar);
        if restart {
            assert_eq!(running.take().unwrap().stop(), Some(0), "{}", home.log());
        }
        let [gone, short, long, flipped] =
            [0, 1, 2, 3].map(|which: usize| cached_file(&set.objects[which], &home));
        std::fs::remove_file(gone).unwrap();
        let open = |path: &Path| File::options().write(true).open(path).unwrap();
        open(&short).set_len(MIB).unwrap();
        open(&long).set_len(5 * MIB).unwrap();
        open(&flipped).write_all_at(&[0xa5; 100], MIB).unwrap();
        let sidecar = match running {
            Some(sidecar) => sidecar,
            None => home.start().await,
        };
        // The first three are seen when the file is opened; the last needs somebody to look inside.
        let sound = DataSet { objects: set.objects[..3].to_vec() };
        read_all(&sound, &home);
        let deadline = Instant::now() + PUBLISHED_WITHIN;
        while std::fs::read(&flipped).is_ok_and(|b| set.objects[3].difference(0, &b).is_some()) {
            assert!(Instant::now() < deadline, "restart {restart}: not found\n{}", home.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let bad = sidecar.metric("warpdrive_cache_file_bad_total").await;
        assert!(bad >= 1.0, "restart {restart}: {bad} counted");
        read_all(&set, &home);
        wait_published(&set, &home, &sidecar).await;
        read_all(&set, &home);
        assert_eq!(sidecar.stop(), Some(0), "{}", home.log());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_file_keeps_its_version_and_a_new_open_sees_the_new_one() {
    need_passthrough!();
    let origin = testkit::start!(Origin::versitygw());
    origin.create_bucket("bucket").await;
    let set = DataSet::new("set", 2, &[6 * MIB], 1);
    set.put_into(&origin, "bucket").await;
    let home =
        Home::new(&[s3_backend("origin", &origin, "bucket", &origin.endpoint())], |config| {
            config["cache"]["stale_ttl"] = json!("1s");
            config["cache"]["min_free"] = json!("64MiB");
        });
    let sidecar = home.start().await;
    let [whole, part] = &set.objects[..] else { unreachable!() };
    let complete = DataSet { objects: vec![whole.clone()] };
    read_all(&complete, &home);
    wait_published(&complete, &home, &sidecar).await;
    let mut first = vec![0; 64 << 10];
    let (old_whole, old_part) =
        (File::open(path_of(&home, whole)).unwrap(), File::open(path_of(&home, part)).unwrap());
    old_part.read_exact_at(&mut first, 0).unwrap();
    part.verify(0, &first);

    // As long as before, so that nothing but the version tells them apart.
    let newer: Vec<Object> =
        set.objects.iter().map(|o| Object { seed: o.seed + 100, ..o.clone() }).collect();
    let newer = DataSet { objects: newer };
    newer.put_into(&origin, "bucket").await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    read_all(&newer, &home);

    // The old handles: what was whole reads on, the other gives its version or says that it is gone.
    let mut found = vec![0; whole.bytes as usize];
    old_whole.read_exact_at(&mut found, 0).unwrap();
    whole.verify(0, &found);
    let mut piece = vec![0; 64 << 10];
    for at in (0..part.bytes).step_by(piece.len()) {
        match old_part.read_at(&mut piece, at) {
            Ok(count) => part.verify(at, &piece[..count]),
            Err(error) => assert_eq!(error.raw_os_error(), Some(Errno::STALE.raw_os_error())),
        }
    }
    wait_published(&newer, &home, &sidecar).await;
    read_all(&newer, &home);
    old_whole.read_exact_at(&mut found, 0).unwrap();
    whole.verify(0, &found);
    drop((old_whole, old_part));
    read_all(&newer, &home);
    assert_eq!(sidecar.stop(), Some(0), "{}", home.log());
}
