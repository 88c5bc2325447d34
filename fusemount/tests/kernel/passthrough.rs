//! Passthrough: the kernel reads local files, past this process. Each local file here holds other
//! bytes than the store does, so that every byte tells where it came from.

#![allow(unsafe_code)] // System calls that the standard library does not have.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use fusemount::MountConfig;
use store::testing::{FaultyStore, MemoryStore};
use store::{
    BucketName, CopyFate, ETag, LocalCopy, Namespace, NoCopy, ObjectKey, Residency, Resident,
};

use crate::child::Part;
use crate::harness::{Detached, Mounted, bucket, can_mount, pattern};

const MIB: usize = 1 << 20;

/// Of what the store has, and of what local files have.
pub(crate) const FROM_STORE: u64 = 1;
pub(crate) const FROM_FILE: u64 = 2;

/// A cache of whole files that does what it is told.
#[derive(Debug)]
pub(crate) struct Copies {
    dir: PathBuf,
    copies: Mutex<HashMap<String, LocalCopy>>,
}

impl Copies {
    pub(crate) fn new(dir: &Path) -> Arc<Self> {
        Arc::new(Self { dir: dir.to_owned(), copies: Mutex::default() })
    }

    /// From now on there is a copy with these bytes.
    pub(crate) fn complete(&self, key: &str, bytes: &[u8]) {
        let path = self.dir.join(key.replace('/', "_"));
        // By rename, as the cache does it: who is killed leaves whole files.
        let part = self.dir.join(".part");
        std::fs::write(&part, bytes).unwrap();
        std::fs::rename(&part, &path).unwrap();
        let copy = LocalCopy { file: Arc::new(File::open(path).unwrap()), fate: Arc::default() };
        self.copies.lock().unwrap().insert(key.to_owned(), copy);
    }

    /// Whatever files there are become copies.
    pub(crate) fn adopt(&self) {
        for entry in std::fs::read_dir(&self.dir).unwrap().map(Result::unwrap) {
            let file = Arc::new(File::open(entry.path()).unwrap());
            let key = entry.file_name().into_string().unwrap();
            if !key.starts_with('.') {
                let copy = LocalCopy { file, fate: Arc::default() };
                self.copies.lock().unwrap().insert(key, copy);
            }
        }
    }

    /// Takes the copy away, and its file. What became of it is to be said by the caller.
    pub(crate) fn remove(&self, key: &str) -> Arc<CopyFate> {
        std::fs::remove_file(self.dir.join(key.replace('/', "_"))).unwrap();
        self.copies.lock().unwrap().remove(key).unwrap().fate
    }
}

#[async_trait]
impl Residency for Copies {
    async fn residency(&self, _: &ObjectKey, _: &ETag, size: u64) -> Resident {
        Resident { bytes: 0, of: size }
    }

    async fn local_copy(&self, key: &ObjectKey, _: &ETag, _: u64) -> Result<LocalCopy, NoCopy> {
        self.copies.lock().unwrap().get(key.as_str()).cloned().ok_or(NoCopy::Incomplete)
    }
}

/// A mount whose cache of whole files is in `dir`.
pub(crate) fn mounted(
    dir: &Path,
    fill: impl FnOnce(&MemoryStore),
    change: impl FnOnce(&mut MountConfig),
) -> Option<(Mounted, Arc<Copies>)> {
    let store = MemoryStore::new();
    fill(&store);
    let (namespace, copies, faulty) = namespace(dir, &store);
    Some((Mounted::of(store, faulty, namespace, change)?, copies))
}

pub(crate) fn namespace(dir: &Path, store: &MemoryStore) -> (Namespace, Arc<Copies>, FaultyStore) {
    let faulty = FaultyStore::new(Arc::new(store.clone()));
    let copies = Copies::new(dir);
    let mut bucket = bucket("main", Arc::new(faulty.clone()));
    bucket.residency = Some(copies.clone());
    let name = BucketName::new("main").unwrap();
    let namespace =
        Namespace::builder().bucket(bucket).unwrap().mount("/data", &name, "").unwrap().build();
    (namespace, copies, faulty)
}

/// The value of a counter.
#[allow(clippy::cast_sign_loss)] // None is negative.
pub(crate) fn whole(value: f64) -> u64 {
    value as u64
}

fn opens(m: &Mounted, mode: &str) -> u64 {
    whole(m.metric("warpdrive_fuse_opens_total", Some(("mode", mode))))
}

fn opens_because(m: &Mounted, reason: &str) -> u64 {
    whole(m.metric("warpdrive_fuse_opens_total", Some(("reason", reason))))
}

fn reads(m: &Mounted) -> u64 {
    whole(m.metric("warpdrive_fuse_read_bytes_total", None))
}

fn open_files(m: &Mounted) -> u64 {
    whole(m.metric("warpdrive_fuse_open_files", None))
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < until, "not within 10 s: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// All releases have arrived: the kernel sends them after `close` has returned.
fn wait_for_releases(m: &Mounted) {
    wait_until("every release", || open_files(m) == 0);
}

pub(crate) fn map_shared(file: &File, size: usize) -> &'static [u8] {
    // SAFETY: a mapping of a file that nobody writes; it is left to the end of the process.
    unsafe {
        let at = libc::mmap(
            std::ptr::null_mut(),
            size,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        std::slice::from_raw_parts(at.cast::<u8>(), size)
    }
}

/// Ends a mapping, which nobody may look at any more.
pub(crate) fn unmap(mapped: &'static [u8]) {
    // SAFETY: it was made by `map_shared`, and the caller has no other reference to it.
    assert_eq!(unsafe { libc::munmap(mapped.as_ptr().cast_mut().cast(), mapped.len()) }, 0);
}

/// Reads whole aligned pages with `O_DIRECT`.
fn read_direct(path: &Path, size: usize) -> Vec<u8> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
    let layout = std::alloc::Layout::from_size_align(MIB, 4096).unwrap();
    let mut all = Vec::with_capacity(size);
    // SAFETY: the buffer is as large as every read into it, and freed with its layout.
    unsafe {
        let buffer = std::alloc::alloc_zeroed(layout);
        while all.len() < size {
            let offset = i64::try_from(all.len()).unwrap();
            let n = libc::pread(file.as_raw_fd(), buffer.cast(), MIB, offset);
            assert!(n > 0, "{}", std::io::Error::last_os_error());
            all.extend_from_slice(std::slice::from_raw_parts(buffer, usize::try_from(n).unwrap()));
        }
        std::alloc::dealloc(buffer, layout);
    }
    all
}

fn send_file(path: &Path, size: usize) -> Vec<u8> {
    let (from, mut to) = (File::open(path).unwrap(), tempfile::tempfile().unwrap());
    let mut sent = 0;
    while sent < size {
        // SAFETY: a system call on two open descriptors.
        let n = unsafe {
            libc::sendfile(to.as_raw_fd(), from.as_raw_fd(), std::ptr::null_mut(), size - sent)
        };
        assert!(n > 0, "{}", std::io::Error::last_os_error());
        sent += usize::try_from(n).unwrap();
    }
    let mut all = Vec::new();
    to.seek(SeekFrom::Start(0)).unwrap();
    to.read_to_end(&mut all).unwrap();
    all
}

/// Every way that a program has to read a file.
fn read_every_way(path: &Path, expected: &[u8]) {
    let size = expected.len();
    assert_eq!(std::fs::metadata(path).unwrap().len(), size as u64);
    assert!(std::fs::read(path).unwrap() == expected, "read");
    let file = File::open(path).unwrap();
    let mut piece = vec![0; 5000];
    for offset in [0, 4095, 123_457, size - 5000] {
        file.read_exact_at(&mut piece, offset as u64).unwrap();
        assert!(piece == expected[offset..offset + 5000], "pread at {offset}");
    }
    assert_eq!(file.read_at(&mut piece, size as u64).unwrap(), 0, "past the end");
    assert!(map_shared(&file, size) == expected, "mmap");
    drop(file);
    assert!(send_file(path, size) == expected, "sendfile");
    assert!(read_direct(path, size) == expected, "O_DIRECT");
    // splice through a pipe, as `cat` does it where it can.
    let spliced = Command::new("sh").arg("-c").arg("cat \"$0\" | cat").arg(path).output().unwrap();
    assert!(spliced.stdout == expected, "splice");
}

#[test]
fn reads_of_a_complete_object_come_from_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let size = 3 * MIB + 777;
    let Some((m, copies)) = mounted(
        dir.path(),
        |store| {
            store.insert("a/file", pattern(size, FROM_STORE));
        },
        |_| {},
    ) else {
        return;
    };
    copies.complete("a/file", &pattern(size, FROM_FILE));
    read_every_way(&m.path("a/file"), &pattern(size, FROM_FILE));
    assert_eq!(reads(&m), 0, "no read came here");
    assert_eq!(opens(&m, "cached"), 0);
    assert!(opens(&m, "passthrough") >= 5);
}

#[test]
fn reads_of_an_incomplete_object_work_in_every_way_too() {
    let dir = tempfile::tempdir().unwrap();
    let size = 3 * MIB + 777;
    let Some((m, _)) = mounted(
        dir.path(),
        |store| {
            store.insert("a/file", pattern(size, FROM_STORE));
        },
        |_| {},
    ) else {
        return;
    };
    read_every_way(&m.path("a/file"), &pattern(size, FROM_STORE));
    assert_eq!(opens(&m, "passthrough"), 0);
    let counted = opens_because(&m, "incomplete");
    assert!(counted >= 5);
}

/// Opens of one inode in two modes are EIO in the kernel, so an object that becomes complete while
/// it is open stays as it is until nobody has it open.
#[test]
fn an_object_that_becomes_complete_switches_at_the_next_first_open() {
    let dir = tempfile::tempdir().unwrap();
    let Some((m, copies)) = mounted(
        dir.path(),
        |store| {
            store.insert("file", pattern(MIB, FROM_STORE));
        },
        |_| {},
    ) else {
        return;
    };
    let path = m.path("file");
    let (stored, local) = (pattern(MIB, FROM_STORE), pattern(MIB, FROM_FILE));
    let first = File::open(&path).unwrap();
    copies.complete("file", &local);
    assert_eq!(std::fs::read(&path).unwrap(), stored, "the first is still open");
    let in_use = opens_because(&m, "in_use_cached");
    assert_eq!(in_use, 1);
    drop(first);
    wait_for_releases(&m);
    let second = File::open(&path).unwrap();
    let mut piece = [0; 100];
    second.read_exact_at(&mut piece, 0).unwrap();
    assert_eq!(piece, local[..100]);

    // And back: evicted while it is open, it goes on; so does who opens it now.
    copies.remove("file").evict();
    assert_eq!(std::fs::read(&path).unwrap(), local);
    second.read_exact_at(&mut piece, MIB as u64 - 100).unwrap();
    assert_eq!(piece, local[MIB - 100..]);
    drop(second);
    wait_for_releases(&m);
    assert_eq!(std::fs::read(&path).unwrap(), stored);
}

#[test]
fn an_evicted_file_gives_its_space_back() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // A file system of its own cannot be unmounted while any of its files is open or registered.
    let disk = dir.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", &disk, "tmpfs", flags, c"size=64m").unwrap();
    let detached = Detached(&disk);
    let fill = |store: &MemoryStore| _ = store.insert("file", pattern(MIB, FROM_STORE));
    let (m, copies) = mounted(&disk, fill, |_| {}).unwrap();
    copies.complete("file", &pattern(MIB, FROM_FILE));
    for _ in 0..3 {
        assert_eq!(m.read("file"), pattern(MIB, FROM_FILE));
        wait_for_releases(&m);
    }
    let kept = opens_because(&m, "kept");
    assert_eq!(kept, 2, "a registration is kept from one open to the next");
    let unmount = || rustix::mount::unmount(&disk, rustix::mount::UnmountFlags::empty()).is_ok();
    assert!(!unmount());
    copies.remove("file").evict();
    wait_until("the file is free", unmount);
    drop(detached);
}

/// Those who have a bad copy open keep it; nobody else gets it, and a lookup gives another node.
#[test]
fn a_copy_that_turned_out_bad_is_given_to_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let Some((m, copies)) = mounted(
        dir.path(),
        |store| {
            store.insert("file", pattern(MIB, FROM_STORE));
        },
        |_| {},
    ) else {
        return;
    };
    let path = m.path("file");
    let bad = pattern(MIB, FROM_FILE);
    copies.complete("file", &bad);
    let old = File::open(&path).unwrap();
    let mapped = map_shared(&old, MIB);
    copies.remove("file").condemn();
    assert_eq!(std::fs::read(&path).unwrap(), pattern(MIB, FROM_STORE));
    let (before, now) = (old.metadata().unwrap(), std::fs::metadata(&path).unwrap());
    assert_ne!(before.ino(), now.ino(), "another node");
    let better = pattern(MIB, 3);
    wait_for_one(&m);
    copies.complete("file", &better);
    assert_eq!(std::fs::read(&path).unwrap(), better);
    assert_eq!(std::fs::metadata(&path).unwrap().ino(), now.ino());
    let mut piece = [0; 100];
    old.read_exact_at(&mut piece, 500).unwrap();
    assert_eq!(piece, bad[500..600], "who has it open keeps it");
    assert_eq!(mapped, bad);
}

fn wait_for_one(m: &Mounted) {
    wait_until("all but one release", || open_files(m) == 1);
}

/// More opens than registrations are kept, and more files open at once than that.
#[test]
fn ten_thousand_files_can_be_open_at_once() {
    const FILES: usize = 10_000;
    let dir = tempfile::tempdir().unwrap();
    let name = |i: usize| format!("d/{i:05}");
    // SAFETY: system calls on a structure of their own.
    let limit = unsafe {
        let mut limit = std::mem::zeroed::<libc::rlimit>();
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
    };
    let files = FILES.min(limit.saturating_sub(500) / 2);
    let Some((m, copies)) = mounted(
        dir.path(),
        |store| {
            (0..files).for_each(|i| _ = store.insert(&name(i), format!("s{i:05}").into_bytes()));
        },
        |_| {},
    ) else {
        return;
    };
    (0..files).for_each(|i| copies.complete(&name(i), format!("f{i:05}").as_bytes()));
    let open: Vec<File> = (0..files).map(|i| File::open(m.path(&name(i))).unwrap()).collect();
    for (i, mut file) in open.iter().enumerate() {
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, format!("f{i:05}"));
    }
    drop(open);
    wait_for_releases(&m);
    for i in (0..files).step_by(7) {
        assert_eq!(m.read(&name(i)), format!("f{i:05}").into_bytes());
    }
    assert_eq!(reads(&m), 0);
    assert_eq!(opens(&m, "cached"), 0);
}

/// Four threads open, read and close three files for two seconds, while copies appear, are evicted
/// and are found bad. Every open succeeds, and gives the bytes of one of the two.
#[test]
fn parallel_opens_while_copies_come_and_go_never_fail() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["a", "b", "c"];
    let size = 200_000;
    let Some((m, copies)) = mounted(
        dir.path(),
        |store| names.iter().for_each(|name| _ = store.insert(name, pattern(size, FROM_STORE))),
        |_| {},
    ) else {
        return;
    };
    let (stored, local) = (pattern(size, FROM_STORE), pattern(size, FROM_FILE));
    let end = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|n| {
                let (m, end, stored, local) = (&m, &end, &stored, &local);
                scope.spawn(move || {
                    let mut rounds = 0;
                    while !end.load(Ordering::Relaxed) {
                        let path = m.path(names[(rounds + n) % 3]);
                        let mut file = File::open(&path).unwrap();
                        let again = rounds % 3 == 0;
                        let other = again.then(|| File::open(&path).unwrap());
                        let mut bytes = Vec::new();
                        file.read_to_end(&mut bytes).unwrap();
                        assert!(bytes == *stored || bytes == *local, "{}", bytes.len());
                        if let Some(other) = other {
                            let mut piece = [0; 1000];
                            other.read_exact_at(&mut piece, 100_000).unwrap();
                            let at = 100_000..101_000;
                            assert!(piece == stored[at.clone()] || piece == local[at]);
                        }
                        rounds += 1;
                    }
                    rounds
                })
            })
            .collect();
        let until = Instant::now() + Duration::from_secs(2);
        let mut step = 0;
        while Instant::now() < until {
            let name = names[step % 3];
            copies.complete(name, &local);
            std::thread::sleep(Duration::from_millis(7));
            let fate = copies.remove(name);
            if step % 5 == 0 {
                fate.condemn();
            } else {
                fate.evict();
            }
            std::thread::sleep(Duration::from_millis(3));
            step += 1;
        }
        end.store(true, Ordering::Relaxed);
        readers.into_iter().map(|reader| reader.join().unwrap()).sum::<usize>()
    });
    assert!(rounds > 100, "{rounds} rounds");
    assert!(opens(&m, "passthrough") > 0);
    assert!(opens(&m, "cached") > 0);
    wait_for_releases(&m);
    assert_eq!(whole(m.metric("warpdrive_fuse_errors_total", Some(("errno", "EIO")))), 0);
}

/// Several processes map one file, as loaders of model weights do.
#[test]
fn processes_share_a_mapping_in_both_modes() {
    let dir = tempfile::tempdir().unwrap();
    let size = 4 * MIB;
    let Some((m, copies)) = mounted(
        dir.path(),
        |store| {
            store.insert("complete", pattern(size, FROM_STORE));
            store.insert("incomplete", pattern(size, FROM_STORE));
        },
        |_| {},
    ) else {
        return;
    };
    copies.complete("complete", &pattern(size, FROM_FILE));
    let mut parts = Vec::new();
    for name in ["complete", "incomplete"] {
        for _ in 0..3 {
            parts.push((name, Part::start("passthrough::maps", &m.path(name))));
        }
    }
    for (name, part) in &mut parts {
        let seed = if *name == "complete" { FROM_FILE } else { FROM_STORE };
        assert_eq!(part.wait_for("MAPPED"), seed.to_string(), "{name}");
    }
    for (_, mut part) in parts {
        part.say("end");
        part.finish();
    }
    assert_eq!(
        reads(&m),
        size as u64,
        "the pages of one are shared, those of the other not asked for"
    );
}

/// Maps a file, says whose bytes it holds, and waits.
#[test]
fn maps() {
    let Some(path) = crate::child::path() else { return };
    let file = File::open(path).unwrap();
    let size = 4 * MIB;
    let mapped = map_shared(&file, size);
    drop(file);
    let seed = [FROM_STORE, FROM_FILE].into_iter().find(|seed| mapped == pattern(size, *seed));
    println!("MAPPED {}", seed.map_or("neither".to_owned(), |seed| seed.to_string()));
    crate::child::hear();
}

#[test]
fn passthrough_can_be_turned_off() {
    let dir = tempfile::tempdir().unwrap();
    let fill = |store: &MemoryStore| _ = store.insert("file", pattern(MIB, FROM_STORE));
    let Some((m, copies)) = mounted(dir.path(), fill, |config| config.passthrough = false) else {
        return;
    };
    copies.complete("file", &pattern(MIB, FROM_FILE));
    assert_eq!(m.read("file"), pattern(MIB, FROM_STORE));
    assert_eq!((opens(&m, "passthrough"), opens_because(&m, "turned_off")), (0, 1));
}

/// In a user namespace this process may mount and not register: reads come here, and are counted.
#[test]
fn without_the_privilege_reads_go_through_the_process() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount"]).arg(std::env::current_exe().unwrap());
    let mut part = Part::start_as(command, "passthrough::serves_without_privilege", dir.path());
    let said = part.wait_for("SERVED");
    part.finish();
    if let Some(reason) = said.strip_prefix("no mount: ") {
        eprintln!("skipped: {reason}");
        return;
    }
    assert_eq!(said, "cached no_privilege 2");
}

#[test]
fn serves_without_privilege() {
    let Some(path) = crate::child::path() else { return };
    let store = MemoryStore::new();
    store.insert("file", pattern(MIB, FROM_STORE));
    let (namespace, copies, _) = namespace(&path, &store);
    copies.complete("file", &pattern(MIB, FROM_FILE));
    let root = path.join("mnt");
    std::fs::create_dir(&root).unwrap();
    let registry = prometheus::Registry::new();
    let metrics = fusemount::Metrics::register(&registry).unwrap();
    let runtime = crate::harness::runtime();
    let config = MountConfig::new(&root);
    let handle = runtime.handle().clone();
    let mount = match fusemount::Mount::open(Arc::new(namespace), config, metrics, handle) {
        Ok(mount) => mount,
        Err(error) => {
            println!("SERVED no mount: {error}");
            return;
        }
    };
    for _ in 0..2 {
        assert_eq!(std::fs::read(root.join("data/file")).unwrap(), pattern(MIB, FROM_STORE));
    }
    let families = registry.gather();
    let opens = families.iter().find(|f| f.name() == "warpdrive_fuse_opens_total").unwrap();
    let said: Vec<String> = opens
        .get_metric()
        .iter()
        .map(|metric| {
            let labels: Vec<_> =
                metric.get_label().iter().map(prometheus::proto::LabelPair::value).collect();
            format!("{} {}", labels.join(" "), metric.get_counter().get_value())
        })
        .collect();
    println!("SERVED {}", said.join(", "));
    runtime.block_on(mount.unmount(Duration::from_secs(1))).unwrap();
}

/// Prints what opening, reading and closing costs in each way: run it with `--ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn what_opening_costs() {
    const FILES: usize = 2000;
    let size = 128 << 10;
    let dir = tempfile::tempdir().unwrap();
    let name = |n: usize| format!("{n:05}");
    let fill = |store: &MemoryStore| {
        (0..FILES).for_each(|n| _ = store.insert(&name(n), pattern(size, FROM_STORE)));
    };
    let Some((m, copies)) = mounted(dir.path(), fill, |_| {}) else { return };
    let root = m.path("");
    let mut buffer = vec![0; size];
    let mut round = |what: &str, root: &Path| {
        let began = Instant::now();
        for n in 0..FILES {
            let opened = File::open(root.join(name(n))).unwrap();
            opened.read_exact_at(&mut buffer, 0).unwrap();
        }
        println!("{what}: {:?}", began.elapsed() / FILES as u32);
    };
    for _ in 0..2 {
        round("cached", &root);
    }
    (0..FILES).for_each(|n| copies.complete(&name(n), &pattern(size, FROM_FILE)));
    std::thread::sleep(Duration::from_millis(1200));
    for _ in 0..4 {
        round("plain", dir.path());
        round("passthrough", &root);
    }
}
