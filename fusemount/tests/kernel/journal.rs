//! What programs have open when a worker is killed means the same to the next one.

use std::fs::File;
use std::io::{BufRead, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fusemount::{Metrics, Mount, MountConfig};
use store::testing::MemoryStore;

use crate::child::{Part, path};
use crate::harness::{can_mount, pattern, runtime};
use crate::holder::Held;
use crate::passthrough::{Copies, FROM_FILE, FROM_STORE, map_shared, namespace, unmap, whole};

const SOCKET: &str = "FUSEMOUNT_TEST_SOCKET";
/// Where the local files of the worker are.
const COPIES: &str = "FUSEMOUNT_TEST_COPIES";
/// Copies come and go while the worker serves.
const RESTLESS: &str = "FUSEMOUNT_TEST_RESTLESS";

const FILE_BYTES: usize = 300_000;
const FILES: usize = 6;
/// More than one page of the kernel's reads, and of the listings of the origin.
const ENTRIES: usize = 2_500;

fn name(number: usize) -> String {
    format!("file{number}")
}

fn store() -> MemoryStore {
    let store = MemoryStore::new();
    (0..FILES).for_each(|n| _ = store.insert(&name(n), pattern(FILE_BYTES, FROM_STORE)));
    (0..ENTRIES).for_each(|n| _ = store.insert(&format!("many/{n:05}"), "x"));
    store
}

/// Serves the mount of a holder until it is told `end`. `opens` has it say what is open.
#[test]
fn serves() {
    let Some(target) = path() else { return };
    let socket = PathBuf::from(std::env::var_os(SOCKET).unwrap());
    let dir = PathBuf::from(std::env::var_os(COPIES).unwrap());
    let (namespace, copies, _) = namespace(&dir, &store());
    copies.adopt();
    let mut config = MountConfig::new(target);
    config.holder = Some(socket.clone());
    config.journal = Some(socket.with_extension("journal"));
    config.metadata_ttl = Duration::from_millis(300);
    let registry = prometheus::Registry::new();
    let metrics = Metrics::register(&registry).unwrap();
    let runtime = runtime();
    let handle = runtime.handle().clone();
    let mount = Mount::open(Arc::new(namespace), config, metrics, handle).unwrap();
    println!("serving: {}", mount.notes().join("; "));
    if std::env::var_os(RESTLESS).is_some() {
        std::thread::spawn(move || move_about(&copies));
    }
    for line in std::io::stdin().lock().lines() {
        match line.unwrap().as_str() {
            "opens" => {
                let families = registry.gather();
                let value = |name: &str| {
                    let family = families.iter().find(|family| family.name() == name);
                    family.map_or(0.0, |family| family.get_metric()[0].get_gauge().get_value())
                };
                let of = |mode: &str| {
                    let opens = families.iter().find(|f| f.name() == "warpdrive_fuse_opens_total");
                    let metrics = opens.map_or(&[][..], |opens| opens.get_metric());
                    let of = metrics.iter().filter(|metric| {
                        metric.get_label().iter().any(|label| label.value() == mode)
                    });
                    of.map(|metric| metric.get_counter().get_value()).sum::<f64>()
                };
                let open = value("warpdrive_fuse_open_files");
                println!(
                    "opens: {} {} {}",
                    whole(open),
                    whole(of("passthrough")),
                    whole(of("cached"))
                );
            }
            _ => break,
        }
    }
    drop(mount);
}

/// Copies appear, are evicted and are found bad.
fn move_about(copies: &Copies) {
    for step in 0.. {
        let name = name(step % FILES);
        copies.complete(&name, &pattern(FILE_BYTES, FROM_FILE));
        std::thread::sleep(Duration::from_millis(5));
        let fate = copies.remove(&name);
        if step % 7 == 0 { fate.condemn() } else { fate.evict() }
    }
}

struct Served {
    held: Held,
    copies: PathBuf,
    restless: bool,
    worker: Option<Part>,
}

impl Served {
    fn start(restless: bool) -> Option<Self> {
        if !can_mount() {
            return None;
        }
        let held = Held::start(&[])?;
        let copies = held.target.with_extension("copies");
        std::fs::create_dir(&copies).unwrap();
        let mut served = Self { held, copies, restless, worker: None };
        served.next_worker();
        Some(served)
    }

    /// Kills the worker, if there is one, and starts another.
    fn next_worker(&mut self) {
        if let Some(mut worker) = self.worker.take() {
            worker.kill();
        }
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(SOCKET, &self.held.socket).env(COPIES, &self.copies);
        if self.restless {
            command.env(RESTLESS, "yes");
        }
        let mut worker = Part::start_as(command, "journal::serves", &self.held.target);
        worker.wait_for("serving:");
        self.worker = Some(worker);
    }

    /// Files open now; opens in passthrough and in cached mode that this worker has answered.
    fn opens(&mut self) -> [u64; 3] {
        let worker = self.worker.as_mut().unwrap();
        worker.say("opens");
        let said = worker.wait_for("opens: ");
        let mut numbers = said.split(' ').map(|number| number.parse().expect(&said));
        [numbers.next().unwrap(), numbers.next().unwrap(), numbers.next().unwrap()]
    }

    fn path(&self, name: &str) -> PathBuf {
        self.held.target.join("data").join(name)
    }

    fn wait_for_releases(&mut self) {
        self.wait_for_open(0);
    }

    /// Waits until so many are open: nobody waits for the kernel to say that one was closed.
    fn wait_for_open(&mut self, count: u64) {
        let until = Instant::now() + Duration::from_secs(10);
        while self.opens()[0] > count {
            assert!(Instant::now() < until, "{:?}", self.opens());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn complete(served: &Served, name: &str) {
    std::fs::write(served.copies.join(name), pattern(FILE_BYTES, FROM_FILE)).unwrap();
}

fn read(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn what_is_open_is_read_on_in_its_mode() {
    let Some(mut served) = Served::start(false) else { return };
    // The first worker has found no copies: restart it with one.
    complete(&served, "file0");
    served.next_worker();
    let (local, stored) = (pattern(FILE_BYTES, FROM_FILE), pattern(FILE_BYTES, FROM_STORE));
    let through = File::open(served.path("file0")).unwrap();
    let cached = File::open(served.path("file1")).unwrap();
    let (through_map, cached_map) =
        (map_shared(&through, FILE_BYTES), map_shared(&cached, FILE_BYTES));
    let many = served.path("many");
    let inodes = [through.metadata().unwrap().ino(), cached.metadata().unwrap().ino()];
    let times = std::fs::metadata(&many).unwrap().modified().unwrap();
    assert_eq!(served.opens(), [2, 1, 1]);
    // From now on the other one is complete, and the first is not.
    complete(&served, "file1");
    std::fs::remove_file(served.copies.join("file0")).unwrap();
    for _ in 0..3 {
        served.next_worker();
        served.wait_for_open(2);
        assert_eq!(served.opens(), [2, 0, 0]);
        // Descriptors, by which no name is looked up again.
        assert_eq!(through.metadata().unwrap().ino(), inodes[0]);
        assert_eq!(cached.metadata().unwrap().ino(), inodes[1]);
        let mut bytes = vec![0; FILE_BYTES];
        let _ = rustix::fs::fadvise(&cached, 0, None, rustix::fs::Advice::DontNeed);
        cached.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == stored);
        through.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == local);
        // Another mode would be EIO.
        assert!(read(&served.path("file0")) == local);
        assert!(read(&served.path("file1")) == stored);
        assert_eq!(std::fs::metadata(served.path("file0")).unwrap().ino(), inodes[0]);
        assert_eq!(std::fs::metadata(&many).unwrap().modified().unwrap(), times);
    }
    assert!(through_map == local && cached_map == stored);
    // A mapping of pages that the worker gave is an open file; one of the local file is not.
    unmap(cached_map);
    drop((through, cached));
    served.wait_for_releases();
    // Now nobody has them open, and each is in the mode that fits it.
    assert!(read(&served.path("file0")) == stored);
    assert!(read(&served.path("file1")) == local);
}

#[test]
fn a_directory_that_is_half_read_is_read_to_its_end() {
    let Some(mut served) = Served::start(false) else { return };
    let expected: Vec<String> = (0..ENTRIES).map(|n| format!("{n:05}")).collect();
    let mut entries = std::fs::read_dir(served.path("many")).unwrap();
    let mut names = Vec::new();
    for turn in 0.. {
        if turn % 400 == 0 {
            served.next_worker();
        }
        let Some(entry) = entries.next() else { break };
        names.push(entry.unwrap().file_name().into_string().unwrap());
    }
    names.sort();
    assert!(names == expected, "{} names", names.len());
}

/// Workers are killed while four threads open, read and close files whose copies come and go, and
/// list: no call fails, no byte is wrong, and at the end nothing is counted as open.
#[test]
fn kills_while_files_are_opened_and_closed_are_not_noticed() {
    let Some(mut served) = Served::start(true) else { return };
    let end = AtomicBool::new(false);
    let (local, stored) = (pattern(FILE_BYTES, FROM_FILE), pattern(FILE_BYTES, FROM_STORE));
    let paths: Vec<PathBuf> = (0..FILES).map(|n| served.path(&name(n))).collect();
    let many = served.path("many");
    let rounds = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|n| {
                let (paths, many, end, local, stored) = (&paths, &many, &end, &local, &stored);
                scope.spawn(move || {
                    let mut rounds = 0;
                    while !end.load(Ordering::Relaxed) {
                        let path = &paths[(rounds + n) % FILES];
                        let other = (rounds % 3 == 0).then(|| File::open(path).unwrap());
                        let bytes = read(path);
                        assert!(bytes == *stored || bytes == *local);
                        assert_eq!(std::fs::metadata(path).unwrap().len(), FILE_BYTES as u64);
                        if n == 0 && rounds % 20 == 0 {
                            assert_eq!(std::fs::read_dir(many).unwrap().count(), ENTRIES);
                        }
                        drop(other);
                        rounds += 1;
                    }
                    rounds
                })
            })
            .collect();
        for kill in 0..15 {
            std::thread::sleep(Duration::from_millis(60 + 17 * (kill % 5)));
            served.next_worker();
        }
        end.store(true, Ordering::Relaxed);
        readers.into_iter().map(|reader| reader.join().unwrap()).sum::<usize>()
    });
    assert!(rounds > 50, "{rounds}");
    served.wait_for_releases();
}
