//! A mount that a holder keeps, and workers that come and go.

#![allow(unsafe_code)] // Mappings.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fusemount::{
    HolderConfig, Metrics, Mount, MountConfig, MountError, MountPointState, check_mount_point,
    hold, spawn_holder,
};
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, send, socket_with,
};
use rustix::process::{Pid, Signal, kill_process};
use store::testing::MemoryStore;
use store::{BucketName, Namespace};
use tempfile::TempDir;

use crate::child::{Part, hear, path};
use crate::harness::{Detached, bucket, can_mount, pattern, runtime};

const SOCKET: &str = "FUSEMOUNT_TEST_SOCKET";
const PATIENCE_MS: &str = "FUSEMOUNT_TEST_PATIENCE_MS";
const UIDS: &str = "FUSEMOUNT_TEST_UIDS";
const LOOPS: &str = "FUSEMOUNT_TEST_LOOPS";
const TAKE_OVER: &str = "FUSEMOUNT_TEST_TAKE_OVER";

/// Files of every worker, in its one directory, each with the pattern of its number.
const FILES: u64 = 8;
const FILE_BYTES: usize = 300_000;

const KILLS: u32 = 100;

/// As long as anything here may take that does not wait on purpose.
const SOON: Duration = Duration::from_secs(10);

/// Holds the mount point until it ends.
#[test]
fn holds() {
    let Some(path) = path() else { return };
    let mut config = HolderConfig::new(path, std::env::var_os(SOCKET).unwrap());
    config.allow_other = true;
    if let Ok(patience) = std::env::var(PATIENCE_MS) {
        config.patience = Duration::from_millis(patience.parse().unwrap());
    }
    if let Ok(loops) = std::env::var(LOOPS) {
        config.loops = loops.parse().unwrap();
    }
    if let Ok(uids) = std::env::var(UIDS) {
        config.uids = uids.split(',').map(|uid| uid.parse().unwrap()).collect();
    }
    config.grace = Duration::from_millis(500);
    match hold(config) {
        Ok(()) => println!("held"),
        Err(error) => {
            eprintln!("mountd: {error}");
            println!("refused: {error}");
        }
    }
}

fn namespace() -> Arc<Namespace> {
    let store = MemoryStore::new();
    for number in 0..FILES {
        store.insert(&format!("file{number}"), pattern(FILE_BYTES, number));
    }
    let namespace = Namespace::builder()
        .bucket(bucket("main", Arc::new(store)))
        .unwrap()
        .mount("/", &BucketName::new("main").unwrap(), "")
        .unwrap();
    Arc::new(namespace.build())
}

fn worker_config(target: &Path, socket: &Path) -> MountConfig {
    let mut config = MountConfig::new(target);
    config.holder = Some(socket.to_owned());
    config.journal = Some(socket.with_extension("journal"));
    config.metadata_ttl = Duration::from_millis(300);
    config.operation_timeout = Duration::from_secs(5);
    config
}

fn open(config: MountConfig, runtime: &tokio::runtime::Runtime) -> Result<Mount, MountError> {
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    Mount::open(namespace(), config, metrics, runtime.handle().clone())
}

/// Serves the mount of a holder until it is told to do something else: `unmount`, `drop`, or to
/// wait for what the holder does.
#[test]
fn serves() {
    let Some(path) = path() else { return };
    let socket = PathBuf::from(std::env::var_os(SOCKET).unwrap());
    let runtime = runtime();
    let mut config = worker_config(&path, &socket);
    config.take_over = std::env::var_os(TAKE_OVER).is_some();
    let mount = match open(config, &runtime) {
        Ok(mount) => mount,
        Err(error) => return println!("refused: {error}"),
    };
    println!("serving: {}", mount.notes().join("; "));
    let (told, mut tells) = tokio::sync::mpsc::channel(1);
    std::thread::spawn(move || _ = told.blocking_send(hear()));
    runtime.block_on(async {
        tokio::select! {
            word = tells.recv() => match word.as_deref() {
                Some("unmount") => {
                    mount.unmount(Duration::from_millis(300)).await.unwrap();
                    println!("unmounted");
                }
                // Unwinds as a panic does, without a report that reads like a failure of a test.
                Some("panic") => std::panic::resume_unwind(Box::new("as told")),
                _ => drop(mount),
            },
            () = mount.leave_requested() => {
                mount.abandon().await;
                println!("left");
                // It goes on with something else, as a gateway that is drained does.
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            () = mount.holder_lost() => {
                mount.ended().await;
                println!("lost");
            }
        }
    });
}

/// A holder in a process of its own, with its mount point and its socket.
pub(crate) struct Held {
    holder: Part,
    pub(crate) target: PathBuf,
    pub(crate) socket: PathBuf,
    _dir: TempDir,
}

impl Held {
    pub(crate) fn start(variables: &[(&str, &str)]) -> Option<Self> {
        if !can_mount() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        // For workers of other users.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let target = dir.path().join("mnt");
        std::fs::create_dir(&target).unwrap();
        let socket = dir.path().join("holder");
        let holder = start_holder(&target, &socket, variables);
        Some(Self { holder, target, socket, _dir: dir })
    }

    fn worker(&self) -> Part {
        let mut worker = self.start_worker(Command::new(std::env::current_exe().unwrap()));
        worker.wait_for("serving:");
        worker
    }

    fn start_worker(&self, mut command: Command) -> Part {
        command.env(SOCKET, &self.socket);
        Part::start_as(command, "holder::serves", &self.target)
    }

    fn file(&self, number: u64) -> PathBuf {
        self.target.join(format!("file{number}"))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(Detached(&self.target));
    }
}

fn start_holder(target: &Path, socket: &Path, variables: &[(&str, &str)]) -> Part {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(SOCKET, socket).envs(variables.iter().copied());
    let holder = Part::start_as(command, "holder::holds", target);
    let began = Instant::now();
    while raw_connection(socket).is_none() {
        assert!(began.elapsed() < SOON, "no holder");
        std::thread::sleep(Duration::from_millis(5));
    }
    holder
}

fn raw_connection(socket: &Path) -> Option<rustix::fd::OwnedFd> {
    let address = SocketAddrUnix::new(socket).unwrap();
    let flags = SocketFlags::CLOEXEC;
    let ours = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    connect(&ours, &address).ok().map(|()| ours)
}

fn signal(part: &Part, signal: Signal) {
    let pid = Pid::from_raw(part.id().cast_signed()).unwrap();
    kill_process(pid, signal).unwrap();
}

fn is_mounted(path: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads at random places of a file that stays open, past the page cache. Returns when it is told,
/// with the number of reads and the longest.
fn reads_at_random(path: &Path, number: u64, stop: &AtomicBool) -> (u64, Duration) {
    let file = File::open(path).unwrap();
    let whole = pattern(FILE_BYTES, number);
    let (mut state, mut count, mut worst) = (number + 1, 0, Duration::ZERO);
    let mut buffer = vec![0; 5000];
    while !stop.load(Ordering::Relaxed) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let at = (state >> 33) as usize % (FILE_BYTES - buffer.len());
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        let began = Instant::now();
        file.read_exact_at(&mut buffer, at as u64).unwrap();
        worst = worst.max(began.elapsed());
        assert!(buffer == whole[at..at + buffer.len()]);
        count += 1;
    }
    (count, worst)
}

/// Maps a file, compares it and unmaps it, until it is told to end. A failure is SIGBUS, so this is a
/// process of its own.
#[test]
fn maps_again_and_again() {
    let Some(path) = path() else { return };
    let whole = pattern(FILE_BYTES, 2);
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    std::thread::spawn(move || {
        hear();
        told.store(true, Ordering::Relaxed);
    });
    println!("ready");
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let file = File::open(&path).unwrap();
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        // SAFETY: a new read-only mapping of a file that does not change, unmapped after its use.
        unsafe {
            let (prot, flags) = (libc::PROT_READ, libc::MAP_SHARED);
            let at = libc::mmap(std::ptr::null_mut(), FILE_BYTES, prot, flags, file.as_raw_fd(), 0);
            assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
            assert!(std::slice::from_raw_parts(at.cast::<u8>(), FILE_BYTES) == whole);
            assert_eq!(libc::munmap(at, FILE_BYTES), 0);
        }
        count += 1;
    }
    println!("compared: {count}");
}

/// In a thread, so that a test can look how long it takes.
fn reads_later(path: PathBuf) -> std::thread::JoinHandle<std::io::Result<Vec<u8>>> {
    std::thread::spawn(move || read(&path))
}

fn within<T>(limit: Duration, thread: std::thread::JoinHandle<T>) -> T {
    let began = Instant::now();
    while !thread.is_finished() {
        assert!(began.elapsed() < limit, "stuck for {limit:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
    thread.join().unwrap()
}

#[test]
fn a_killed_worker_is_followed_by_another_and_readers_only_wait() {
    let Some(held) = Held::start(&[]) else { return };
    let mut worker = held.worker();
    assert!(read(&held.file(3)).unwrap() == pattern(FILE_BYTES, 3));
    worker.kill();
    // Nobody is there: this waits.
    let waiting = reads_later(held.file(4));
    std::thread::sleep(Duration::from_millis(100));
    assert!(!waiting.is_finished());
    let _second = held.worker();
    assert!(within(SOON, waiting).unwrap() == pattern(FILE_BYTES, 4));
    assert_eq!(std::fs::read_dir(&held.target).unwrap().count(), FILES as usize);
}

#[test]
fn a_hundred_kills_under_load_give_no_error_and_no_wrong_byte() {
    let Some(held) = Held::start(&[]) else { return };
    let mut worker = held.worker();
    let stop = Arc::new(AtomicBool::new(false));
    let count = Arc::new(AtomicU64::new(0));
    let mut readers = Vec::new();
    for reader in 0..4_u64 {
        let (stop, count, target) = (Arc::clone(&stop), Arc::clone(&count), held.target.clone());
        readers.push(std::thread::spawn(move || {
            let mut worst = Duration::ZERO;
            let mut turn = reader;
            while !stop.load(Ordering::Relaxed) {
                let number = turn % FILES;
                turn += 1;
                let began = Instant::now();
                if turn % 5 == 0 {
                    let names = std::fs::read_dir(&target).unwrap();
                    assert_eq!(names.map(Result::unwrap).count(), FILES as usize);
                    let missing = std::fs::metadata(target.join("missing")).unwrap_err();
                    assert_eq!(missing.raw_os_error(), Some(libc::ENOENT));
                    let size = std::fs::metadata(target.join(format!("file{number}")));
                    assert_eq!(size.unwrap().len(), FILE_BYTES as u64);
                } else {
                    let path = target.join(format!("file{number}"));
                    assert!(read(&path).unwrap() == pattern(FILE_BYTES, number));
                }
                worst = worst.max(began.elapsed());
                count.fetch_add(1, Ordering::Relaxed);
            }
            worst
        }));
    }
    let mut random = Vec::new();
    for number in 0..2 {
        let (stop, path) = (Arc::clone(&stop), held.file(number));
        random.push(std::thread::spawn(move || reads_at_random(&path, number, &stop)));
    }
    let mut maps = Part::start("holder::maps_again_and_again", &held.file(2));
    maps.wait_for("ready");
    for _ in 0..KILLS {
        let before = count.load(Ordering::Relaxed);
        let began = Instant::now();
        while count.load(Ordering::Relaxed) < before + 10 {
            assert!(began.elapsed() < SOON, "readers are stuck");
            let failed = readers.iter().any(std::thread::JoinHandle::is_finished)
                || random.iter().any(std::thread::JoinHandle::is_finished);
            assert!(!failed, "a reader failed");
            std::thread::sleep(Duration::from_millis(1));
        }
        worker.kill();
        worker = held.worker();
    }
    stop.store(true, Ordering::Relaxed);
    let worst = readers.into_iter().map(|reader| within(SOON, reader)).max().unwrap();
    let count = count.load(Ordering::Relaxed);
    println!("{KILLS} kills, {count} files read, the longest took {worst:?}");
    maps.say("stop");
    assert_ne!(maps.wait_for("compared: "), "0");
    maps.finish();
    // Nothing of a dead worker is kept.
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", held.holder.id())).unwrap();
    let descriptors = descriptors.count();
    assert!(descriptors < 40, "{descriptors}");
    for reader in random {
        let (count, worst) = within(SOON, reader);
        assert!(count > 0);
        println!("{count} random reads of an open file, the longest took {worst:?}");
    }
}

#[test]
fn a_stopped_worker_only_delays() {
    let Some(held) = Held::start(&[]) else { return };
    let worker = held.worker();
    signal(&worker, Signal::STOP);
    let waiting = reads_later(held.file(1));
    std::thread::sleep(Duration::from_secs(10));
    assert!(!waiting.is_finished());
    signal(&worker, Signal::CONT);
    assert!(within(SOON, waiting).unwrap() == pattern(FILE_BYTES, 1));
}

#[test]
fn requests_fail_when_no_worker_comes_and_a_late_one_heals_the_mount() {
    let Some(mut held) = Held::start(&[(PATIENCE_MS, "700")]) else { return };
    let mut worker = held.worker();
    let file = File::open(held.file(1)).unwrap();
    worker.kill();
    for _ in 0..3 {
        let error = within(SOON, reads_later(held.file(2))).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    }
    // Forgets and releases have no answer, and do not stop the holder.
    drop(file);
    signal(&held.holder, Signal::CONT);
    let _late = held.worker();
    assert!(within(SOON, reads_later(held.file(2))).unwrap() == pattern(FILE_BYTES, 2));
    assert_eq!(std::fs::metadata(held.file(5)).unwrap().size(), FILE_BYTES as u64);
    signal(&held.holder, Signal::TERM);
    held.holder.wait_for("held");
}

#[test]
fn a_mount_that_nobody_came_for_is_let_go_and_comes_back_with_a_worker() {
    let Some(held) = Held::start(&[(PATIENCE_MS, "300")]) else { return };
    let target = held.target.clone();
    let waiting = std::thread::spawn(move || std::fs::read_dir(target).map(Iterator::count));
    // Either it waited and fails, or it came after the mount was gone.
    let seen = within(SOON, waiting);
    assert!(matches!(seen, Err(_) | Ok(0)), "{seen:?}");
    let began = Instant::now();
    while is_mounted(&held.target) {
        assert!(began.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(10));
    }
    let _worker = held.worker();
    assert!(read(&held.file(2)).unwrap() == pattern(FILE_BYTES, 2));
}

#[test]
fn without_its_holder_a_mount_ends_cleanly_and_the_next_holder_begins_anew() {
    let Some(mut held) = Held::start(&[]) else { return };
    let mut worker = held.worker();
    let mut file = File::open(held.file(1)).unwrap();
    held.holder.kill();
    worker.wait_for("lost");
    let error = within(SOON, reads_later(held.file(2))).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN), "{error}");
    let error = within(SOON, std::thread::spawn(move || file.read_to_end(&mut Vec::new())));
    let errno = error.unwrap_err().raw_os_error();
    assert!(matches!(errno, Some(libc::ENOTCONN | libc::ECONNABORTED)), "{errno:?}");
    assert_eq!(check_mount_point(&held.target), MountPointState::Stale);
    worker.finish();
    // Neither the dead mount nor the dead socket is in its way.
    held.holder = start_holder(&held.target, &held.socket, &[]);
    let _worker = held.worker();
    assert!(read(&held.file(2)).unwrap() == pattern(FILE_BYTES, 2));
}

#[test]
fn a_second_worker_is_refused_and_a_second_holder_too() {
    let Some(held) = Held::start(&[]) else { return };
    let worker = held.worker();
    let mut second = held.start_worker(Command::new(std::env::current_exe().unwrap()));
    let refused = second.wait_for("refused:");
    assert!(refused.contains(&format!("process {}", worker.id())), "{refused}");
    assert!(refused.contains("--take-over"), "{refused}");
    second.finish();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(SOCKET, &held.socket);
    let mut other = Part::start_as(command, "holder::holds", &held.target);
    let refused = other.wait_for("refused:");
    assert!(refused.contains("already listens"), "{refused}");
    other.finish();
    assert!(read(&held.file(2)).unwrap() == pattern(FILE_BYTES, 2));
}

#[test]
fn a_newcomer_takes_over_from_a_worker_that_goes_on_living() {
    let Some(held) = Held::start(&[]) else { return };
    let mut first = held.worker();
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, path) = (Arc::clone(&stop), held.file(3));
    let reader = std::thread::spawn(move || {
        let mut count = 0;
        while !stopped.load(Ordering::Relaxed) {
            assert!(read(&path).unwrap() == pattern(FILE_BYTES, 3));
            count += 1;
        }
        count
    });
    for _ in 0..5 {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(TAKE_OVER, "yes");
        let mut next = held.start_worker(command);
        first.wait_for("left");
        next.wait_for("serving:");
        // The first still runs for a while, and reads nothing that is not its own any more.
        assert!(read(&held.file(4)).unwrap() == pattern(FILE_BYTES, 4));
        first = next;
    }
    stop.store(true, Ordering::Relaxed);
    assert!(within(SOON, reader) > 0);
}

#[test]
fn a_worker_that_does_not_leave_is_killed() {
    let Some(held) = Held::start(&[]) else { return };
    let stuck = held.worker();
    signal(&stuck, Signal::STOP);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(TAKE_OVER, "yes");
    let mut next = held.start_worker(command);
    next.wait_for("serving:");
    assert!(read(&held.file(4)).unwrap() == pattern(FILE_BYTES, 4));
}

#[test]
fn a_worker_that_nobody_waits_for_any_more_is_not_killed() {
    let Some(held) = Held::start(&[]) else { return };
    let worker = held.worker();
    signal(&worker, Signal::STOP);
    let newcomer = raw_connection(&held.socket).unwrap();
    send(&newcomer, &packet(ATTACH, 1, 1), SendFlags::NOSIGNAL).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    drop(newcomer);
    // Longer than a worker has to leave.
    std::thread::sleep(Duration::from_millis(5500));
    let status = std::fs::read_to_string(format!("/proc/{}/stat", worker.id())).unwrap();
    assert!(status.contains(") T "), "{status}");
    // It was asked to leave, and does so once it can.
    signal(&worker, Signal::CONT);
    let waiting = reads_later(held.file(1));
    let mut worker = worker;
    worker.wait_for("left");
    let _next = held.worker();
    assert!(within(SOON, waiting).unwrap() == pattern(FILE_BYTES, 1));
}

#[test]
fn users_who_may_not_are_refused_and_others_need_no_privilege() {
    let Some(held) = Held::start(&[(UIDS, "54321,54322")]) else { return };
    let as_user = |uid: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", uid, "--regid", uid, "--clear-groups", "--"]);
        command.arg(std::env::current_exe().unwrap());
        held.start_worker(command)
    };
    let mut stranger = as_user("54320");
    let refused = stranger.wait_for("refused:");
    assert!(refused.contains("may not be a worker"), "{refused}");
    let mut worker = as_user("54322");
    worker.wait_for("serving:");
    assert!(read(&held.file(6)).unwrap() == pattern(FILE_BYTES, 6));
}

#[test]
fn a_socket_for_nobody_else_is_closed_to_others() {
    let Some(held) = Held::start(&[]) else { return };
    assert_eq!(std::fs::metadata(&held.socket).unwrap().mode() & 0o777, 0o600);
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "54320", "--regid", "54320", "--clear-groups", "--"]);
    command.arg(std::env::current_exe().unwrap());
    let mut stranger = held.start_worker(command);
    let refused = stranger.wait_for("refused:");
    assert!(refused.contains("denied"), "{refused}");
}

#[test]
fn peers_that_say_nothing_or_nonsense_are_in_nobodys_way() {
    let Some(held) = Held::start(&[]) else { return };
    let silent: Vec<_> = (0..40).map(|_| raw_connection(&held.socket).unwrap()).collect();
    let _worker = held.worker();
    for seed in 0..200 {
        let Some(peer) = raw_connection(&held.socket) else { panic!("the holder is gone") };
        let mut bytes = pattern(1 + (seed as usize * 7) % 600, seed);
        if seed % 2 == 0 {
            let length = bytes.len().min(4);
            bytes[..length].copy_from_slice(&b"wdh1"[..length]);
        }
        // It may have been dropped before.
        let _ = send(&peer, &bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }
    assert!(read(&held.file(2)).unwrap() == pattern(FILE_BYTES, 2));
    drop(silent);
    assert!(read(&held.file(3)).unwrap() == pattern(FILE_BYTES, 3));
}

/// A message as `fusemount` would send it: kind, flag, number; nothing else.
fn packet(kind: u8, flag: u8, number: u32) -> Vec<u8> {
    let mut packet = b"wdh1".to_vec();
    packet.extend([kind, flag, 0, 0]);
    packet.extend(number.to_le_bytes());
    packet.extend([0; 12]);
    packet
}

const ATTACH: u8 = 1;
const READY: u8 = 2;
const UNMOUNT: u8 = 6;

#[test]
fn a_worker_that_dies_before_it_reads_is_in_nobodys_way() {
    let Some(held) = Held::start(&[]) else { return };
    for _ in 0..3 {
        let half = raw_connection(&held.socket).unwrap();
        send(&half, &packet(ATTACH, 0, 1), SendFlags::NOSIGNAL).unwrap();
        // An answer to INIT that is none.
        send(&half, &packet(READY, 0, 2), SendFlags::NOSIGNAL).unwrap();
        // All but the one that would unmount.
        for kind in (0..=20).filter(|kind| *kind != UNMOUNT) {
            // A busy holder lets packets wait, and then no more of them.
            let _ = send(&half, &packet(kind, 1, 3), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
            let _ = send(&half, &[kind; 3], SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        }
        drop(half);
    }
    let _worker = held.worker();
    assert!(read(&held.file(2)).unwrap() == pattern(FILE_BYTES, 2));
}

#[test]
fn any_number_of_event_loops_is_made_possible() {
    for loops in ["0", "1", "1000"] {
        let Some(held) = Held::start(&[(LOOPS, loops)]) else { return };
        let mut worker = held.worker();
        assert!(read(&held.file(2)).unwrap() == pattern(FILE_BYTES, 2));
        worker.kill();
        let _next = held.worker();
        assert!(read(&held.file(3)).unwrap() == pattern(FILE_BYTES, 3));
    }
}

fn cpu_ticks(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<_> = status.rsplit(") ").next().unwrap().split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn a_holder_that_waits_sleeps() {
    let Some(held) = Held::start(&[(PATIENCE_MS, "50")]) else { return };
    let mut worker = held.worker();
    let asked = raw_connection(&held.socket).unwrap();
    let slept = |held: &Held| {
        let before = cpu_ticks(held.holder.id());
        std::thread::sleep(Duration::from_millis(600));
        cpu_ticks(held.holder.id()) - before
    };
    // Turning takes 60 ticks of a hundredth.
    assert!(slept(&held) < 20, "with a worker");
    worker.kill();
    within(SOON, reads_later(held.file(1))).unwrap_err();
    assert!(slept(&held) < 20, "without");
    drop(asked);
    assert!(slept(&held) < 20, "after a peer has gone");
}

#[test]
fn a_worker_unmounts_when_told_and_the_holder_ends_with_it() {
    let Some(mut held) = Held::start(&[]) else { return };
    let mut worker = held.worker();
    // Busy, so it takes its deadline and is then detached.
    let mut file = File::open(held.file(1)).unwrap();
    worker.say("unmount");
    worker.wait_for("unmounted");
    worker.finish();
    held.holder.wait_for("held");
    assert!(!is_mounted(&held.target));
    assert!(!held.socket.exists());
    let errno = file.read_to_end(&mut Vec::new()).unwrap_err().raw_os_error();
    assert!(matches!(errno, Some(libc::ENOTCONN | libc::ECONNABORTED | libc::EIO)), "{errno:?}");
}

#[test]
fn a_holder_that_is_told_to_end_unmounts() {
    for signal_name in [Signal::TERM, Signal::INT, Signal::HUP] {
        let Some(mut held) = Held::start(&[]) else { return };
        let mut worker = held.worker();
        let file = File::open(held.file(1)).unwrap();
        signal(&held.holder, signal_name);
        held.holder.wait_for("held");
        assert!(!is_mounted(&held.target));
        assert!(!held.socket.exists());
        worker.wait_for("lost");
        worker.finish();
        drop(file);
    }
}

#[test]
fn an_unmount_by_someone_else_ends_worker_and_holder() {
    let Some(mut held) = Held::start(&[]) else { return };
    let mut worker = held.worker();
    crate::harness::run("umount", &[held.target.as_os_str()]);
    worker.say("drop");
    worker.finish();
    held.holder.wait_for("held");
    assert!(!held.socket.exists());
}

#[test]
fn dropped_or_panicked_over_a_mount_is_left_to_the_next() {
    let Some(held) = Held::start(&[]) else { return };
    for word in ["drop", "panic"] {
        let mut worker = held.worker();
        assert!(read(&held.file(3)).unwrap() == pattern(FILE_BYTES, 3));
        worker.say(word);
        let waiting = reads_later(held.file(4));
        // Before the process has ended it may still have the mount.
        let ended = || {
            let status = std::fs::read_to_string(format!("/proc/{}/stat", worker.id())).unwrap();
            status.contains(") Z ")
        };
        let began = Instant::now();
        while !ended() {
            assert!(began.elapsed() < SOON, "the worker goes on");
            std::thread::sleep(Duration::from_millis(5));
        }
        let _next = held.worker();
        assert!(within(SOON, waiting).unwrap() == pattern(FILE_BYTES, 4));
    }
}

#[test]
fn one_process_can_leave_a_mount_and_join_it_again() {
    let Some(held) = Held::start(&[]) else { return };
    let runtime = runtime();
    for turn in 0..10 {
        let mount = open(worker_config(&held.target, &held.socket), &runtime).unwrap();
        assert_eq!(mount.mount_point(), held.target);
        let path = held.file(turn % FILES);
        let seed = turn % FILES;
        // Not from this thread: it would wait for itself if nobody answered.
        assert!(within(SOON, reads_later(path)).unwrap() == pattern(FILE_BYTES, seed));
        runtime.block_on(mount.abandon());
    }
    let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let left = threads.filter(|task| {
        std::fs::read(task.path().join("comm")).is_ok_and(|name| name.starts_with(b"mount-holder"))
    });
    // Tests beside this one have at most none: their workers are processes.
    let began = Instant::now();
    let count = left.count();
    assert!(count <= 1 || began.elapsed() > SOON, "{count} threads are left");
}

#[test]
fn a_workstation_starts_its_own_holder_and_finds_it_again() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("mnt");
    std::fs::create_dir(&target).unwrap();
    let _detached = Detached(&target);
    let socket = dir.path().join("holder");
    let command = || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "holder::holds", "--nocapture", "--test-threads=1"]);
        command.env(SOCKET, &socket).env("FUSEMOUNT_TEST_CHILD_PATH", &target);
        command
    };
    let log = dir.path().join("log");
    let runtime = runtime();
    for _ in 0..2 {
        let found = spawn_holder(command(), &target, &socket, Some(&log)).unwrap();
        assert_eq!(found, socket);
        let mount = open(worker_config(&target, &socket), &runtime).unwrap();
        assert!(within(SOON, reads_later(target.join("file1"))).unwrap() == pattern(FILE_BYTES, 1));
        drop(mount);
    }
    assert_eq!(std::fs::read_to_string(&log).unwrap().matches("holding").count(), 1);
    let other = dir.path().join("other");
    let refused = spawn_holder(command(), &other, &socket, None).unwrap_err().to_string();
    assert!(refused.contains("name another socket"), "{refused}");
    let mount = open(worker_config(&target, &socket), &runtime).unwrap();
    runtime.block_on(mount.unmount(Duration::from_secs(1))).unwrap();
    assert!(!is_mounted(&target));
    // One that cannot begin says why.
    let nowhere = dir.path().join("nowhere");
    let mut command = command();
    command.env("FUSEMOUNT_TEST_CHILD_PATH", &nowhere);
    let refused = spawn_holder(command, &nowhere, &socket, None).unwrap_err().to_string();
    assert!(refused.contains("does not exist"), "{refused}");
}

#[test]
fn a_holder_is_small() {
    let Some(held) = Held::start(&[]) else { return };
    let _worker = held.worker();
    assert!(read(&held.file(2)).unwrap() == pattern(FILE_BYTES, 2));
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", held.holder.id()));
    let rollup = rollup.unwrap();
    let kib = rollup.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).unwrap();
    let kib: u64 = kib.trim().trim_end_matches(" kB").parse().unwrap();
    println!("{kib} KiB of its own");
    assert!(kib < 8 << 10, "{kib} KiB");
}

/// Lines of code: not empty, no comment, no import, no test. The protocol and the system calls that
/// holder and worker share (`wire`, `device`, `system`, `registrations`) are counted by themselves.
#[test]
fn a_holder_is_at_most_five_hundred_lines() {
    fn lines(file: &Path) -> usize {
        let text = std::fs::read_to_string(file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        let mut importing = false;
        let counts = |line: &&str| {
            let line = line.trim();
            let import =
                importing || line.starts_with("use ") || line.starts_with("pub(crate) use ");
            importing = import && !line.ends_with(';');
            !import && !line.is_empty() && !line.starts_with("//")
        };
        code.lines().filter(counts).count()
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let shared = ["wire.rs", "device.rs", "system.rs", "registrations.rs"];
    let mut files = vec![source.join("holder.rs")];
    let modules = std::fs::read_dir(source.join("holder")).unwrap();
    files.extend(modules.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()));
    let (mut own, mut both) = (0, 0);
    for file in files {
        let name = file.file_name().unwrap().to_str().unwrap();
        *if shared.contains(&name) { &mut both } else { &mut own } += lines(&file);
    }
    println!("{own} lines of a holder's own, {both} of both sides");
    assert!((100..=500).contains(&own), "{own} lines");
    assert!((100..=300).contains(&both), "{both} lines");
}

#[test]
fn a_mount_without_a_holder_is_dead_when_it_is_abandoned() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let _detached = Detached(dir.path());
    let runtime = runtime();
    let mount = open(MountConfig::new(dir.path()), &runtime).unwrap();
    let path = dir.path().join("file3");
    assert!(within(SOON, reads_later(path.clone())).unwrap() == pattern(FILE_BYTES, 3));
    runtime.block_on(mount.abandon());
    let error = within(SOON, reads_later(dir.path().join("file4"))).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN), "{error}");
    assert_eq!(check_mount_point(dir.path()), MountPointState::Stale);
}
