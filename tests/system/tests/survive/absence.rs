//! Nobody to serve: a worker that does not come back, one that comes back late, a holder that dies,
//! and a worker that hands over to the next.

use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::Signal;
use serde_json::json;
use system_tests::load::{HANG, Kind, Reader};
use system_tests::{DataSet, Home, processes};

use crate::setting::{
    KIB, MIB, SUPERVISED, assert_clean, home_over, need_holder, one_of_each, readable_bytes, tail,
};

/// How soon everything must be over once nobody can answer any more.
const SOON: Duration = Duration::from_secs(5);

fn set() -> DataSet {
    DataSet::new("set", 40, &[30 * KIB, 300 * KIB, 2 * MIB], 1)
}

/// What a call gets when a mount has lost whoever answered: in flight, and afterwards.
const LOST: [Errno; 2] = [Errno::CONNABORTED, Errno::NOTCONN];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_holder_is_a_clean_end_and_the_next_start_cleans_up() {
    need_holder!();
    let folder = tempfile::tempdir().unwrap();
    let set = set();
    let home = home_over(&set, folder.path(), |_| {});
    let sidecar = home.start_with(SUPERVISED).await;
    let root = home.mount_point().join("origin");
    let readers = [Kind::Sequential, Kind::Random, Kind::Walk]
        .map(|kind| Reader::start_until_error(kind, &set, &root, home.path()));
    tokio::time::sleep(Duration::from_millis(700)).await;

    let holder = sidecar.holder().expect("a holder of its own");
    assert!(processes::signal(holder, Signal::KILL));
    // The worker may go on alone or end; what it may not is leave readers without an answer.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let worker = sidecar.worker();
    sidecar.process().kill();
    if let Some(worker) = worker {
        processes::signal(worker, Signal::KILL);
    }
    let begun = Instant::now();
    for reader in readers {
        let pid = reader.pid();
        let seen = reader.ended(SOON);
        let lost: u64 = LOST.iter().map(|errno| seen.errors_of(errno.raw_os_error())).sum();
        assert_eq!((seen.error_count(), seen.wrong), (lost, 0), "{}", seen.summary());
        assert!(lost > 0, "{}", seen.summary());
        assert_eq!(processes::state(pid), None, "a reader is stuck");
    }
    println!("readers had ended {:.1?} after the last process", begun.elapsed());
    let left = processes::with_argument(&home.path().to_string_lossy());
    let stuck = left.iter().filter(|pid| processes::state(**pid) == Some('D')).count();
    assert_eq!(stuck, 0, "stuck in the kernel: {left:?}");
    drop(sidecar);

    let sidecar = home.start_with(SUPERVISED).await;
    assert_eq!(readable_bytes(&set, &home), set.bytes());
    assert_eq!(sidecar.stop(), Some(0), "{}", tail(&home));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_worker_readers_get_errors_in_time_and_a_late_worker_heals_the_mount() {
    need_holder!();
    let folder = tempfile::tempdir().unwrap();
    let set = set();
    let home = home_over(&set, folder.path(), |config| {
        config["fuse"]["holder_patience"] = json!("2s");
    });
    let sidecar = home.start().await;
    let root = home.mount_point().join("origin");
    // Not mapped: what such a reader gets for an error is a signal.
    let readers = [Kind::Sequential, Kind::Random, Kind::Walk]
        .map(|kind| Reader::start(kind, &set, &root, home.path()));
    tokio::time::sleep(Duration::from_millis(700)).await;
    sidecar.process().kill();
    drop(sidecar);
    tokio::time::sleep(Duration::from_secs(5)).await;
    // Whoever asks now is told at once.
    let begun = Instant::now();
    let refused = tokio::task::spawn_blocking({
        let path = root.join("not asked for yet");
        move || std::fs::metadata(path)
    });
    let refused = tokio::time::timeout(SOON, refused).await.expect("an answer").unwrap();
    let errno = refused.unwrap_err().raw_os_error();
    assert_eq!(errno, Some(Errno::IO.raw_os_error()), "{}", tail(&home));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());

    let sidecar = home.start().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    for (kind, seen) in Reader::end_all(readers.into()) {
        assert_eq!(seen.wrong, 0, "{}", seen.summary());
        let refused = seen.errors_of(Errno::IO.raw_os_error());
        assert!(refused > 0, "{kind:?} was never told: {}", seen.summary());
        assert_eq!(refused, seen.error_count(), "{kind:?}: {}", seen.summary());
        assert!(
            seen.since_error > 0,
            "{kind:?} was not healed: {}\n{}",
            seen.summary(),
            tail(&home)
        );
        assert!(seen.longest.0 < HANG, "{kind:?}: {}", seen.summary());
    }
    assert_eq!(readable_bytes(&set, &home), set.bytes());
    assert_eq!(sidecar.stop(), Some(0), "{}", tail(&home));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_program_takes_over_under_load() {
    need_holder!();
    let folder = tempfile::tempdir().unwrap();
    let set = set();
    let home = home_over(&set, folder.path(), |_| {});
    let mut sidecar = home.start_with(SUPERVISED).await;
    let readers = one_of_each(&set, &home);
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let before = sidecar.process().pid();
        let begun = Instant::now();
        let mut command = home.command("run");
        command.args(SUPERVISED).arg("--take-over");
        let next = home.start_command(command);
        // The addresses are the same: who answers is told by its own number.
        wait_for_worker(&next, &home).await;
        println!("taken over from {before} in {:.1?}", begun.elapsed());
        assert_eq!(sidecar.ended(), Some(0), "the one before ends in order\n{}", tail(&home));
        sidecar = next;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_clean(&Reader::end_all(readers), &home);
    assert_eq!(sidecar.stop(), Some(0), "{}", tail(&home));
}

/// Waits until it is the worker of this sidecar that answers.
async fn wait_for_worker(sidecar: &system_tests::Sidecar<'_>, home: &Home) {
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < HANG, "the next one does not serve\n{}", tail(home));
        assert!(sidecar.process().is_running(), "the next one has ended\n{}", tail(home));
        if sidecar.is_ready().await
            && let Some(worker) = sidecar.worker()
            && sidecar.status_pid().await == Some(worker)
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
