//! A mount that outlives its worker: crashes, upgrades, and what is left afterwards (nothing).

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use testkit::Process;

use crate::support::{Home, SOON, bytes, can_mount, get, is_mounted, output, program, until};

/// True where this test can have a holder.
fn can_hold(test: &str) -> bool {
    if !can_mount(test) {
        return false;
    }
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED {test}: a holder needs root");
        return false;
    }
    true
}

fn status(home: &Home) -> Option<Value> {
    let ready = get(home.admin, "/readyz").filter(|answer| answer.status == 200);
    ready.and_then(|_| get(home.admin, "/status")).map(|answer| answer.json())
}

fn worker(home: &Home) -> Option<i32> {
    status(home).map(|status| status["pid"].as_i64().unwrap() as i32)
}

fn holder(home: &Home) -> i32 {
    let status = status(home).unwrap();
    assert_eq!(status["holder"]["kind"], "own", "{status}");
    status["holder"]["pid"].as_i64().unwrap() as i32
}

fn kill(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

fn is_running(pid: i32) -> bool {
    // A zombie has ended; who started it may not have looked yet.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.trim().is_empty() && !rest.contains(" Z "))
}

fn log(home: &Home) -> String {
    std::fs::read_to_string(home.path("log")).unwrap_or_default()
}

/// Nothing is left of a sidecar that ended in order.
fn assert_nothing_left(home: &Home, holder: i32) {
    assert!(!is_mounted(&home.path("mnt")), "{}", log(home));
    assert!(!is_running(holder), "the holder runs on: {}", log(home));
    assert!(
        !home.path("state").exists(),
        "{:?}",
        std::fs::read_dir(home.path("state"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect::<Vec<_>>()
    );
}

/// Reads and looks at files until it is dropped; every answer must be right.
struct Reader {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    ended: mpsc::Receiver<Result<(), String>>,
}

impl Reader {
    fn start(home: &Home) -> Self {
        let (folder, wanted) = (home.path("mnt/data"), bytes(3_000_000));
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (said, ended) = mpsc::channel();
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&rounds));
        std::thread::spawn(move || {
            let read = || -> Result<(), String> {
                let words = |e: std::io::Error| e.to_string();
                // Held over every crash.
                let held = std::fs::File::open(folder.join("sub/numbers.bin")).map_err(words)?;
                while !stopped.load(Ordering::Relaxed) {
                    let round = counted.fetch_add(1, Ordering::Relaxed) as usize;
                    let at = round * 77_777 % (wanted.len() - 4096);
                    let mut piece = [0; 4096];
                    held.read_exact_at(&mut piece, at as u64).map_err(words)?;
                    if piece[..] != wanted[at..at + 4096] {
                        return Err(format!("wrong bytes at {at}"));
                    }
                    let text = std::fs::read(folder.join("hello.txt")).map_err(words)?;
                    if text != b"hello, world\n" {
                        return Err(format!("wrong text of {} bytes", text.len()));
                    }
                    let names = std::fs::read_dir(&folder).map_err(words)?.count();
                    if names != 2 {
                        return Err(format!("{names} names"));
                    }
                    // The kernel's copies would need no worker.
                    rustix::fs::fadvise(&held, 0, None, rustix::fs::Advice::DontNeed)
                        .map_err(|e| words(e.into()))?;
                }
                Ok(())
            };
            let _ = said.send(read());
        });
        Self { stop, rounds, ended }
    }

    /// Waits until it got on since this was called.
    fn gets_on(&self) {
        let before = self.rounds.load(Ordering::Relaxed);
        until("the reader does not get on", || {
            (self.rounds.load(Ordering::Relaxed) > before + 2).then_some(())
        });
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        let said = self.ended.recv_timeout(SOON).expect("the reader hangs");
        assert_eq!(said, Ok(()));
    }
}

#[test]
fn readers_ride_through_kills_of_a_supervised_worker() {
    if !can_hold("readers_ride_through_kills_of_a_supervised_worker") {
        return;
    }
    let home = Home::new();
    home.configure_with(&format!("credentials_file: {}", home.path("keys").display()), "", "");
    let sidecar = home.run(&["--supervise"]);
    let keys = std::fs::read_to_string(home.path("keys")).unwrap();
    let holding = holder(&home);
    let reader = Reader::start(&home);
    let mut pid = worker(&home).unwrap();
    for restarts in 1..=5 {
        reader.gets_on();
        kill(pid, Signal::KILL);
        pid = until("no other worker", || worker(&home).filter(|now| *now != pid));
        let status = status(&home).unwrap();
        assert_eq!(status["restarts"], restarts, "{status}");
        assert_eq!(status["holder"]["resumed"], true, "{status}");
        assert_eq!(holder(&home), holding);
    }
    reader.gets_on();
    reader.end();
    // Clients of S3 have a key that goes on.
    assert_eq!(std::fs::read_to_string(home.path("keys")).unwrap(), keys);
    assert_eq!(sidecar.stop(), Some(0), "{}", sidecar.log());
    assert!(!home.path("keys").exists());
    assert_nothing_left(&home, holding);
}

#[test]
fn a_mount_waits_for_the_next_start() {
    if !can_hold("a_mount_waits_for_the_next_start") {
        return;
    }
    let home = Home::new();
    let sidecar = home.run(&[]);
    let holding = holder(&home);
    let reader = Reader::start(&home);
    reader.gets_on();
    sidecar.process.kill();
    drop(sidecar);
    assert!(is_mounted(&home.path("mnt")) && is_running(holding));
    let sidecar = home.run(&[]);
    reader.gets_on();
    reader.end();
    assert_eq!(holder(&home), holding);
    assert_eq!(sidecar.stop(), Some(0), "{}", sidecar.log());
    assert_nothing_left(&home, holding);
}

#[test]
fn a_newer_process_takes_a_running_mount_over() {
    if !can_hold("a_newer_process_takes_a_running_mount_over") {
        return;
    }
    let home = Home::new();
    let old = home.run(&[]);
    let holding = holder(&home);
    let old_pid = worker(&home).unwrap();
    // Without being told to, nobody is replaced.
    let (code, _, stderr) = output(&mut home.command("run", &[]));
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains(&format!("process {old_pid} serves")), "{stderr}");
    assert!(stderr.contains("--take-over"), "{stderr}");
    let reader = Reader::start(&home);
    reader.gets_on();
    let command = home.command("run", &["--take-over"]);
    let new = Process::spawn("warpdrive", command, &home.path("log-of-new")).unwrap();
    let status = old.process.wait(SOON).expect("the old worker stays");
    assert_eq!(status.code(), Some(0), "{}", old.log());
    let new_pid = until("no new worker", || worker(&home).filter(|now| *now != old_pid));
    assert_eq!(new_pid.cast_unsigned(), new.pid());
    reader.gets_on();
    reader.end();
    assert_eq!(get(home.s3, "/data/hello.txt").unwrap().text(), "hello, world\n");
    assert_eq!(holder(&home), holding);
    new.signal(Signal::TERM);
    assert!(new.wait(Duration::from_secs(20)).unwrap().success());
    assert_nothing_left(&home, holding);
}

#[test]
fn a_take_over_of_nothing_is_a_start_and_without_a_holder_an_error() {
    if !can_hold("a_take_over_of_nothing_is_a_start_and_without_a_holder_an_error") {
        return;
    }
    let home = Home::new();
    let sidecar = home.run(&["--take-over"]);
    assert!(is_mounted(&home.path("mnt")));
    assert_eq!(sidecar.stop(), Some(0), "{}", sidecar.log());
    let (code, _, stderr) = output(&mut home.command("run", &["--take-over", "--holder", "none"]));
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("fuse.holder"), "{stderr}");
}

#[test]
fn a_holder_that_is_killed_is_replaced() {
    if !can_hold("a_holder_that_is_killed_is_replaced") {
        return;
    }
    let home = Home::new();
    let sidecar = home.run(&[]);
    let first = holder(&home);
    kill(first, Signal::KILL);
    sidecar.wait_for("mounted again");
    assert_eq!(std::fs::read(home.path("mnt/data/hello.txt")).unwrap(), b"hello, world\n");
    let status = status(&home).unwrap();
    assert_eq!(status["holder"]["remounts"], 1, "{status}");
    assert_eq!(status["mount_lost"], Value::Null, "{status}");
    let second = holder(&home);
    assert_ne!(first, second);
    // Somebody who unmounts is not worked against.
    let (code, _, stderr) = output(std::process::Command::new("umount").arg(home.path("mnt")));
    assert_eq!(code, 0, "{stderr}");
    sidecar.wait_for("although nobody asked this sidecar");
    let health = get(home.admin, "/healthz").unwrap().json();
    assert_eq!(health["status"], "degraded", "{health}");
    assert_eq!(get(home.s3, "/data/hello.txt").unwrap().text(), "hello, world\n");
    assert_eq!(sidecar.stop(), Some(0), "{}", sidecar.log());
    assert!(!is_mounted(&home.path("mnt")) && !is_running(second));
}

/// A mountd of somebody else's: what it has mounted is left to it.
#[test]
fn a_worker_serves_the_mount_of_a_given_holder() {
    if !can_hold("a_worker_serves_the_mount_of_a_given_holder") {
        return;
    }
    let home = Home::new();
    let socket = home.path("mountd.sock");
    let holder = |log: &Path| {
        let mut command = program();
        command.arg("mountd").arg("--mount-point").arg(home.path("mnt")).arg("--socket");
        command.arg(&socket).args(["--grace", "1s"]);
        let process = Process::spawn("mountd", command, log).unwrap();
        until("the holder does not listen", || socket.exists().then_some(()));
        process
    };
    let first = holder(&home.path("mountd.log"));
    let given = socket.display().to_string();
    let sidecar = home.run(&["--holder", &given]);
    assert_eq!(status(&home).unwrap()["holder"]["kind"], "given");
    let reader = Reader::start(&home);
    reader.gets_on();
    // An orderly end of the worker leaves the mount to the next one.
    assert_eq!(sidecar.stop(), Some(0), "{}", sidecar.log());
    assert!(is_mounted(&home.path("mnt")) && first.is_running());
    drop(sidecar);
    let sidecar = home.run(&["--holder", &given]);
    reader.gets_on();
    reader.end();
    // A holder that dies is waited for.
    first.kill();
    sidecar.wait_for("the holder of the mount is gone");
    let lost = until("nothing is said", || {
        let status = get(home.admin, "/status")?.json();
        status["mount_lost"].as_str().map(str::to_owned)
    });
    assert!(lost.contains("the holder of the mount is gone"), "{lost}");
    let ready = get(home.admin, "/readyz").unwrap();
    assert!(ready.status == 503 && ready.text().contains("is gone"), "{}", ready.text());
    assert_eq!(get(home.s3, "/data/hello.txt").unwrap().status, 200);
    let second = holder(&home.path("mountd.log"));
    sidecar.wait_for("mounted again");
    assert_eq!(std::fs::read(home.path("mnt/data/hello.txt")).unwrap(), b"hello, world\n");
    assert_eq!(sidecar.stop(), Some(0), "{}", sidecar.log());
    second.signal(Signal::TERM);
    assert!(second.wait(Duration::from_secs(20)).unwrap().success());
    assert!(!is_mounted(&home.path("mnt")) && !socket.exists());
}

#[test]
fn a_start_that_fails_leaves_a_waiting_mount_to_the_next() {
    if !can_hold("a_start_that_fails_leaves_a_waiting_mount_to_the_next") {
        return;
    }
    let home = Home::new();
    let taken = std::net::TcpListener::bind(("127.0.0.1", home.s3)).unwrap();
    let (code, _, stderr) = output(&mut home.command("run", &[]));
    assert_eq!(code, 1, "{stderr}");
    assert!(!is_mounted(&home.path("mnt")), "a start that failed left a mount");
    drop(taken);
    let sidecar = home.run(&[]);
    let holding = holder(&home);
    sidecar.process.kill();
    drop(sidecar);
    // Something else that is wrong, found after the mount was attached to.
    let text = std::fs::read_to_string(home.path("warpdrive.yaml")).unwrap();
    home.write(
        "warpdrive.yaml",
        text.replace("127.0.0.1:", "192.0.2.1:")
            .replace(&format!("192.0.2.1:{}", home.admin), &format!("127.0.0.1:{}", home.admin))
            .replace("access: anonymous", "access: generated")
            .as_bytes(),
    );
    let (code, _, stderr) = output(&mut home.command("run", &[]));
    assert_eq!(code, 1, "{stderr}");
    assert!(is_mounted(&home.path("mnt")) && is_running(holding), "{stderr}");
    home.write("warpdrive.yaml", text.as_bytes());
    let sidecar = home.run(&[]);
    assert_eq!(holder(&home), holding);
    assert_eq!(std::fs::read(home.path("mnt/data/hello.txt")).unwrap(), b"hello, world\n");
    assert_eq!(sidecar.stop(), Some(0), "{}", sidecar.log());
    assert_nothing_left(&home, holding);
}

#[test]
fn without_a_holder_the_start_says_what_is_lost() {
    if !can_mount("without_a_holder_the_start_says_what_is_lost") {
        return;
    }
    let home = Home::new();
    if !rustix::process::geteuid().is_root() {
        let sidecar = home.run(&[]);
        assert!(sidecar.log().contains("A crash of this process ends the mount"));
        assert_eq!(sidecar.stop(), Some(0));
        return;
    }
    // Root without the capability, as in most containers; fusermount3 has no more of it.
    let mut command = std::process::Command::new("setpriv");
    command.args(["--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]);
    let inner = home.command("run", &["--no-mount"]);
    if output(std::process::Command::new("setpriv").arg("--help")).0 != 0 {
        println!("SKIPPED without_a_holder_the_start_says_what_is_lost: no setpriv");
        return;
    }
    let arguments = inner.get_args().filter(|argument| *argument != "--no-mount");
    command.arg(inner.get_program()).args(arguments);
    let (code, _, stderr) = output(&mut command);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("--no-mount"), "{stderr}");
}

#[test]
fn mountd_teaches() {
    let (code, help, _) = output(program().args(["mountd", "--help"]));
    assert_eq!(code, 0);
    for part in ["CAP_SYS_ADMIN", "--allow-uid", "warpdrive run -c", "--take-over", "Examples:"] {
        assert!(help.contains(part), "{part}\n{help}");
    }
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["mountd", "--mount-point", "/nowhere/at/all", "--socket"];
    let (code, _, stderr) = output(program().args(arguments).arg(folder.path().join("s")));
    assert_eq!(code, 1, "{stderr}");
    assert!(!stderr.trim().is_empty());
}

/// Who holds: a process started as in a pod, with one second of grace.
fn mountd(home: &Home, point: &Path) -> Process {
    let socket = home.path("mountd.sock");
    let mut command = program();
    command.arg("mountd").arg("--mount-point").arg(point).arg("--socket").arg(&socket);
    command.args(["--grace", "1s", "--allow-other", "--allow-uid", "65534"]);
    let process = Process::spawn("mountd", command, &home.path("mountd.log")).unwrap();
    until("the holder does not listen", || fusemount_answers(&socket).then_some(()));
    process
}

fn fusemount_answers(socket: &Path) -> bool {
    output(program().arg("probe").arg("--holder").arg(socket)).0 == 0
}

#[test]
fn a_holder_makes_its_mount_point_and_leaves_nothing_at_the_end() {
    if !can_hold("a_holder_makes_its_mount_point_and_leaves_nothing_at_the_end") {
        return;
    }
    let home = Home::new();
    let point = home.path("mnt/data");
    let holder = mountd(&home, &point);
    assert!(is_mounted(&point));
    let given = home.path("mountd.sock").display().to_string();
    let sidecar = home.run(&["--holder", &given, "--mount-point", point.to_str().unwrap()]);
    // A program that stays in the mount, one that keeps a file open, and a mount on the mount.
    let stays = std::process::Command::new("sleep").arg("60").current_dir(&point).spawn().unwrap();
    let stays = std::cell::RefCell::new(stays);
    let open = std::fs::File::open(point.join("data/hello.txt")).unwrap();
    let over = home.path("over");
    std::fs::create_dir(&over).unwrap();
    let on = std::process::Command::new("mount").arg("--bind").arg(&over).arg(&point).status();
    assert!(on.unwrap().success());
    let begun = std::time::Instant::now();
    holder.signal(Signal::TERM);
    assert!(holder.wait(Duration::from_secs(20)).unwrap().success(), "{}", holder.log_tail());
    // One second of grace; the rest is what a busy machine takes.
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert!(!is_mounted(&point));
    drop(open);
    stays.borrow_mut().kill().unwrap();
    stays.borrow_mut().wait().unwrap();
    // Nothing is left that a recursive delete could walk through or stumble over.
    std::fs::remove_dir(&point).unwrap();
    assert_eq!(sidecar.stop(), Some(0), "{}", sidecar.log());
}

#[test]
fn a_holder_clears_what_a_killed_one_left() {
    if !can_hold("a_holder_clears_what_a_killed_one_left") {
        return;
    }
    let home = Home::new();
    let point = home.path("mnt/data");
    for _ in 0..2 {
        let holder = mountd(&home, &point);
        holder.signal(Signal::KILL);
        let _ = holder.wait(Duration::from_secs(20)).unwrap();
        std::fs::remove_file(home.path("mountd.sock")).unwrap();
        assert!(is_mounted(&point), "a dead mount");
    }
    let holder = mountd(&home, &point);
    holder.signal(Signal::TERM);
    assert!(holder.wait(Duration::from_secs(20)).unwrap().success(), "{}", holder.log_tail());
    assert!(!is_mounted(&point));
}

/// As in a pod that shares its process namespace: the guard is not the first process, and guards.
#[test]
fn a_guarded_holder_that_is_killed_leaves_no_mount() {
    if !can_hold("a_guarded_holder_that_is_killed_leaves_no_mount") {
        return;
    }
    let home = Home::new();
    let point = home.path("mnt/data");
    let socket = home.path("mountd.sock");
    let mut command = program();
    command.args(["mountd", "--guard", "--allow-other", "--mount-point"]).arg(&point);
    command.arg("--socket").arg(&socket);
    let guard = Process::spawn("mountd", command, &home.path("mountd.log")).unwrap();
    until("the holder does not listen", || fusemount_answers(&socket).then_some(()));
    assert!(is_mounted(&point));
    let list = format!("/proc/{0}/task/{0}/children", guard.pid());
    let holder: i32 = std::fs::read_to_string(list).unwrap().trim().parse().unwrap();
    kill_process(Pid::from_raw(holder).unwrap(), Signal::KILL).unwrap();
    assert_eq!(guard.wait(Duration::from_secs(20)).unwrap().code(), Some(1));
    assert!(!is_mounted(&point));
    assert!(guard.log_tail().contains("taken away"), "{}", guard.log_tail());
}

/// Containers start side by side: the one that needs the holder waits for it.
#[test]
fn a_given_holder_that_is_not_there_yet_is_waited_for() {
    if !can_hold("a_given_holder_that_is_not_there_yet_is_waited_for") {
        return;
    }
    let home = Home::new();
    let point = home.path("mnt/data");
    let given = home.path("mountd.sock").display().to_string();
    let arguments = ["--holder", &given, "--mount-point", point.to_str().unwrap()];
    // One that never comes is given up, with what to do.
    let impatient = [&arguments[..], &["--holder-wait", "300ms"]].concat();
    let (code, _, stderr) = output(&mut home.command("run", &impatient));
    assert!(code == 1 && stderr.contains("start `warpdrive mountd` first"), "{stderr}");
    let log = home.path("waiting.log");
    let waits = |name| Process::spawn(name, home.command("run", &arguments), &log).unwrap();
    // SIGTERM ends the waiting.
    let stopped = waits("stopped");
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    let waiting = || said().contains("waiting for the holder of the mount").then_some(());
    until("nothing is said", waiting);
    stopped.signal(Signal::TERM);
    assert!(stopped.wait(Duration::from_secs(10)).unwrap().success(), "{}", stopped.log_tail());
    std::fs::remove_file(&log).unwrap();
    let worker = waits("worker");
    until("nothing is said", waiting);
    let holder = mountd(&home, &point);
    let hello = point.join("data/hello.txt");
    let served = || (std::fs::read(&hello).ok()? == b"hello, world\n").then_some(());
    until("the mount is not served", served);
    worker.signal(Signal::TERM);
    assert!(worker.wait(Duration::from_secs(20)).unwrap().success(), "{}", worker.log_tail());
    holder.signal(Signal::TERM);
    assert!(holder.wait(Duration::from_secs(20)).unwrap().success(), "{}", holder.log_tail());
}
