//! Origins that are away or hang: every call returns in bounded time, and nothing else waits.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use store::ErrorKind;
use store::testing::{Fault, Operation};

use crate::child::{Part, SIGNALLED_BYTES, signal_thread};
use crate::harness::{Mounted, pattern};

const MIB: usize = 1 << 20;

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

/// Ends within the time, or is killed and fails the test.
fn ends_within(child: &mut Child, limit: Duration) -> Duration {
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > limit {
            let state = std::fs::read_to_string(format!("/proc/{}/status", child.id()));
            let _ = child.kill();
            panic!("still there after {limit:?}: {}", state.unwrap_or_default());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    began.elapsed()
}

fn quiet(program: &str, path: &std::path::Path) -> Child {
    Command::new(program)
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn an_outage_fails_at_once_and_is_over_when_it_is_over() {
    let Some(m) = Mounted::new(|store| {
        store.insert("d/file", pattern(4 * MIB, 1));
    }) else {
        return;
    };
    let open = File::open(m.path("d/file")).unwrap();
    m.wait_for_ttl();
    m.faulty.set_down(true);
    let began = Instant::now();
    let mut buffer = [0; 4096];
    assert_eq!(errno(open.read_at(&mut buffer, 3 << 20)), Some(libc::EIO));
    assert_eq!(errno(std::fs::metadata(m.path("d/file"))), Some(libc::EIO));
    assert_eq!(errno(std::fs::metadata(m.path("d/unknown"))), Some(libc::EIO));
    assert!(ls_fails(&m, "d"));
    // The directory was there: what a cache holds below it can be reached.
    assert!(std::fs::metadata(m.path("d")).unwrap().is_dir());
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    m.faulty.set_down(false);
    assert_eq!(m.names("d"), ["file"]);
    open.read_exact_at(&mut buffer, 3 << 20).unwrap();
    assert!(m.read("d/file") == pattern(4 * MIB, 1));
    let failed = m.metric("warpdrive_fuse_errors_total", Some(("errno", "EIO")));
    assert!(failed >= 4.0, "{failed}");
}

fn ls_fails(m: &Mounted, directory: &str) -> bool {
    let entries = std::fs::read_dir(m.path(directory)).unwrap();
    entries.into_iter().any(|entry| entry.is_err())
}

#[test]
fn ls_of_an_origin_that_hangs_ends_by_the_operation_timeout() {
    let Some(m) = Mounted::new(|store| _ = store.insert("d/file", "x")) else { return };
    std::fs::metadata(m.path("d")).unwrap();
    for _ in 0..10 {
        m.faulty.inject(Operation::List, Fault::Hang);
    }
    let mut ls = quiet("ls", &m.path("d"));
    let took = ends_within(&mut ls, Duration::from_secs(8));
    assert!(took >= Duration::from_secs(1), "it did hang: {took:?}");
    assert!(!ls.wait().unwrap().success());
}

#[test]
fn a_read_that_hangs_times_out_and_holds_up_nobody() {
    let Some(m) = Mounted::new(|store| {
        store.insert("hangs", pattern(4 * MIB, 1));
        store.insert("works", pattern(MIB, 2));
    }) else {
        return;
    };
    let hanging = File::open(m.path("hangs")).unwrap();
    std::thread::scope(|scope| {
        let many: Vec<_> = (0..8)
            .map(|n| {
                m.faulty.inject(Operation::Get, Fault::HangAfter(1000));
                let hanging = &hanging;
                scope.spawn(move || {
                    let began = Instant::now();
                    let mut buffer = [0; 512];
                    let result = errno(hanging.read_at(&mut buffer, n * 400_000));
                    (result, began.elapsed())
                })
            })
            .collect();
        // Let them take their faults.
        while m.faulty.calls().of(Operation::Get) < 8 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let began = Instant::now();
        assert!(m.read("works") == pattern(MIB, 2));
        assert_eq!(m.names(""), ["hangs", "works"]);
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        for reader in many {
            let (result, took) = reader.join().unwrap();
            assert!(took < Duration::from_secs(8), "{took:?}");
            // The kernel reads a page again when a read ahead of it failed.
            assert!(matches!(result, None | Some(libc::ETIMEDOUT | libc::EIO)), "{result:?}");
        }
    });
    assert!(m.read("hangs") == pattern(4 * MIB, 1));
}

#[test]
fn a_reader_of_an_origin_that_hangs_can_be_killed() {
    // The operation timeout is far away: it is the signal that ends the wait.
    let Some(m) = Mounted::with(
        |store| {
            store.insert("file", pattern(4 * MIB, 1));
            store.insert("d/x", "x");
        },
        |config| config.operation_timeout = Duration::from_mins(1),
    ) else {
        return;
    };
    for signal in ["-KILL", "-INT", "-TERM"] {
        for (program, path, operation) in [
            ("cat", "file", Operation::Get),
            ("cat", "file", Operation::Head),
            ("ls", "d", Operation::List),
        ] {
            m.wait_for_ttl();
            m.faulty.calls().reset();
            for _ in 0..20 {
                m.faulty.inject(operation, Fault::Hang);
            }
            let mut child = quiet(program, &m.path(path));
            let began = Instant::now();
            while m.faulty.calls().of(operation) == 0 {
                assert!(began.elapsed() < Duration::from_secs(5), "{program} asked for nothing");
                std::thread::sleep(Duration::from_millis(5));
            }
            std::thread::sleep(Duration::from_millis(50));
            assert!(child.try_wait().unwrap().is_none(), "{program} did not hang");
            let killed = Command::new("kill").args([signal, &child.id().to_string()]).status();
            assert!(killed.unwrap().success());
            let took = ends_within(&mut child, Duration::from_secs(5));
            eprintln!("{signal} {program} {operation:?}: {took:?}");
            assert!(!child.wait().unwrap().success());
            m.faulty.clear();
        }
    }
    assert!(m.metric("warpdrive_fuse_interrupted_total", None) > 0.0);
    assert!(m.read("file") == pattern(4 * MIB, 1));
}

#[test]
fn a_signal_that_is_handled_does_not_fail_a_read() {
    let Some(m) = Mounted::with(
        |store| {
            store.insert("d/mapped", pattern(SIGNALLED_BYTES, 5));
            store.insert("d/read", pattern(SIGNALLED_BYTES, 5));
        },
        |config| config.operation_timeout = Duration::from_mins(1),
    ) else {
        return;
    };
    let mut part = Part::start("child::goes_on_after_signals", &m.path("d"));
    let thread = part.wait_for("thread: ");
    for word in ["mapped: ", "read: "] {
        m.faulty.calls().reset();
        for _ in 0..3 {
            m.faulty.inject(Operation::Get, Fault::Delay(Duration::from_secs(1)));
        }
        part.say("go");
        let began = Instant::now();
        while m.faulty.calls().of(Operation::Get) == 0 {
            assert!(began.elapsed() < Duration::from_secs(5), "it asked for nothing");
            std::thread::sleep(Duration::from_millis(5));
        }
        let status = format!("/proc/{}/task/{thread}/status", part.id());
        signal_thread(part.id(), &thread);
        let status = std::fs::read_to_string(status).unwrap();
        let pending = status.lines().find(|line| line.starts_with("SigPnd:")).unwrap();
        assert!(pending.ends_with("4000"), "it waits for the read: {pending}");
        let handled: u32 = part.wait_for(word).parse().unwrap();
        assert!(handled >= 1, "the handler ran");
        assert!(began.elapsed() >= Duration::from_secs(1), "the read was slow");
        m.faulty.clear();
    }
    part.finish();
    let given_up = m.metric("warpdrive_fuse_interrupted_total", None);
    assert!(given_up < 1.0, "{given_up}");
}

#[test]
fn faults_are_errors_or_the_right_bytes() {
    let bytes = pattern(3 * MIB, 7);
    let Some(m) = Mounted::new(|store| _ = store.insert("file", bytes.clone())) else { return };
    let faults = [
        Fault::Fail(ErrorKind::Unavailable),
        Fault::Fail(ErrorKind::Throttled),
        Fault::Fail(ErrorKind::PermissionDenied),
        Fault::Fail(ErrorKind::Corrupted),
        Fault::CutAfter(100_000),
        Fault::EndAfter(100_000),
        Fault::WrongETag(store::ETag::parse("other")),
        Fault::Delay(Duration::from_millis(200)),
        Fault::SlowBody(Duration::from_millis(20)),
    ];
    for fault in faults {
        for _ in 0..3 {
            m.faulty.inject(Operation::Get, fault.clone());
        }
        let slow = matches!(fault, Fault::Delay(_) | Fault::SlowBody(_));
        match std::fs::read(m.path("file")) {
            Ok(got) => assert!(got == bytes, "{fault:?}"),
            Err(error) => assert!(!slow, "{fault:?}: {error}"),
        }
        m.faulty.clear();
        // Nothing wrong stays in the kernel's pages.
        assert!(m.read("file") == bytes, "{fault:?}");
        // Another version, so that the next round begins without pages.
        m.store.insert("file", pattern(100, 3));
        assert_eq!(m.read("file").len(), 100);
        m.store.insert("file", bytes.clone());
    }
}
