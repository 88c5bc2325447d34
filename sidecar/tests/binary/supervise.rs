//! `warpdrive run --supervise`: started again after a crash, and not after anything else.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use testkit::Process;

use crate::support::{Home, Running, SOON, get, output, until};

/// The worker of a sidecar that is ready.
fn worker(home: &Home) -> Option<i32> {
    let status = get(home.admin, "/status")?;
    (status.status == 200).then(|| status.json()["pid"].as_i64().unwrap() as i32)
}

fn kill(pid: i32, signal: Signal) {
    // It may be gone: that is what some tests are about.
    let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
}

fn children(pid: u32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    text.unwrap_or_default().split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    // What is its own: pages of the program's file are shared with the worker.
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}

fn end(sidecar: &Running<'_>, signal: Signal) -> Option<i32> {
    sidecar.process.signal(signal);
    let status = sidecar.process.wait(Duration::from_secs(20));
    status.unwrap_or_else(|| panic!("still runs: {}", sidecar.log())).code()
}

#[test]
fn a_worker_that_is_killed_is_started_again() {
    let home = Home::new();
    let sidecar = home.run(&["--no-mount", "--supervise"]);
    let mut pid = worker(&home).unwrap();
    for kills in 1..=3 {
        kill(pid, Signal::KILL);
        pid = until("no other worker", || worker(&home).filter(|now| *now != pid));
        until("not ready", || get(home.admin, "/readyz").filter(|answer| answer.status == 200));
        assert_eq!(get(home.s3, "/data/hello.txt").unwrap().text(), "hello, world\n");
        let status = get(home.admin, "/status").unwrap().json();
        assert_eq!(status["restarts"], kills, "{status}");
    }
    assert!(sidecar.log().contains("was killed by signal 9 (SIGKILL)"), "{}", sidecar.log());
    // A few MiB beside the worker is what it may cost.
    let kib = resident_kib(sidecar.process.pid());
    assert!(kib < 8 << 10, "the supervisor has {kib} KiB of its own");
    assert_eq!(end(&sidecar, Signal::TERM), Some(0), "{}", sidecar.log());
    assert!(get(home.admin, "/livez").is_none());
}

/// A start that fails for want of something ends nothing, and loses no listening socket.
#[test]
fn a_worker_that_cannot_be_started_for_a_moment_is_started_later() {
    let home = Home::new();
    let sidecar = home.run(&["--no-mount", "--supervise"]);
    let pid = worker(&home).unwrap();
    let supervisor = Pid::from_raw(sidecar.process.pid().cast_signed());
    let none = Rlimit { current: Some(3), ..getrlimit(Resource::Nofile) };
    let before = prlimit(supervisor, Resource::Nofile, none).unwrap();
    kill(pid, Signal::KILL);
    sidecar.wait_for("the worker cannot be started");
    prlimit(supervisor, Resource::Nofile, before).unwrap();
    until("no other worker", || worker(&home).filter(|now| *now != pid));
    assert_eq!(get(home.s3, "/data/hello.txt").unwrap().text(), "hello, world\n");
    assert_eq!(end(&sidecar, Signal::TERM), Some(0), "{}", sidecar.log());
}

#[test]
fn a_crash_loop_is_given_up() {
    let home = Home::new();
    let command = home.command("run", &["--no-mount", "--supervise", "--max-crashes", "4"]);
    let log = home.path("log");
    let process = Process::spawn("warpdrive", command, &log).unwrap();
    let mut killed = Vec::new();
    let status = until("the supervisor goes on", || {
        for pid in children(process.pid()) {
            kill(pid, Signal::SEGV);
            if !killed.contains(&pid) {
                killed.push(pid);
            }
        }
        process.wait(Duration::from_millis(1))
    });
    let log = std::fs::read_to_string(log).unwrap();
    assert_eq!(status.code(), Some(1), "{log}");
    assert_eq!(killed.len(), 4, "{log}");
    assert!(log.contains("its crash number 4 within a minute: giving up"), "{log}");
}

#[test]
fn what_cannot_work_is_not_tried_again() {
    let home = Home::new();
    let taken = std::net::TcpListener::bind(("127.0.0.1", home.s3)).unwrap();
    let (code, _, stderr) = output(&mut home.command("run", &["--no-mount", "--supervise"]));
    assert_eq!(code, 1, "{stderr}");
    assert_eq!(stderr.matches("s3.listen").count(), 1, "{stderr}");
    drop(taken);
    home.write("warpdrive.yaml", b"mountpoint: /x\n");
    let (code, _, stderr) = output(&mut home.command("run", &["--no-mount", "--supervise"]));
    assert_eq!(code, 2, "{stderr}");
    assert_eq!(stderr.matches("is not a known key").count(), 1, "{stderr}");
}

#[test]
fn signals_reach_the_worker() {
    let home = Home::new();
    for signal in [Signal::INT, Signal::HUP, Signal::TERM] {
        let sidecar = home.run(&["--no-mount", "--supervise"]);
        let pid = worker(&home).unwrap();
        sidecar.process.signal(Signal::USR1);
        sidecar.wait_for("asked by SIGUSR1");
        assert_eq!(worker(&home), Some(pid));
        assert_eq!(end(&sidecar, signal), Some(0), "{signal:?} {}", sidecar.log());
        assert!(sidecar.log().contains("stopping; a second signal"), "{}", sidecar.log());
    }
}

#[test]
fn a_worker_does_not_outlive_its_supervisor() {
    let home = Home::new();
    let sidecar = home.run(&["--no-mount", "--supervise"]);
    let pid = worker(&home).unwrap();
    sidecar.process.signal(Signal::KILL);
    until("the worker stays", || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
    assert!(sidecar.log().contains("drained"), "not in order: {}", sidecar.log());
}

#[test]
fn a_worker_that_ends_by_itself_ends_the_supervisor() {
    let home = Home::new();
    let sidecar = home.run(&["--no-mount", "--supervise"]);
    kill(worker(&home).unwrap(), Signal::TERM);
    let status = sidecar.process.wait(Duration::from_secs(20)).unwrap();
    assert_eq!(status.code(), Some(0), "{}", sidecar.log());
}

#[test]
fn the_service_manager_hears_the_supervisor() {
    let home = Home::new();
    let socket = home.path("notify.sock");
    let listener = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    listener.set_read_timeout(Some(SOON)).unwrap();
    let heard_before = |word: &str| {
        let mut all = Vec::new();
        loop {
            let mut buffer = [0_u8; 512];
            let count = listener.recv(&mut buffer).unwrap();
            let said = String::from_utf8_lossy(&buffer[..count]).trim_end().to_owned();
            if said == word {
                return all;
            }
            all.push(said);
        }
    };
    // What it has the manager keep over a restart: one socket, in place of the one before.
    let stored = ["FDSTOREREMOVE=1\nFDNAME=s3", "FDSTORE=1\nFDNAME=s3"];
    let mut command = home.command("run", &["--no-mount", "--supervise"]);
    command.env("NOTIFY_SOCKET", &socket);
    let process = Process::spawn("warpdrive", command, &home.path("log")).unwrap();
    assert_eq!(heard_before("READY=1"), stored);
    kill(worker(&home).unwrap(), Signal::KILL);
    assert_eq!(heard_before("READY=1"), stored);
    process.signal(Signal::TERM);
    assert_eq!(heard_before("STOPPING=1"), [""; 0]);
    assert!(process.wait(Duration::from_secs(15)).unwrap().success());
}

/// In a process namespace of its own, as in a container.
#[test]
fn the_first_process_supervises_and_reaps() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED the_first_process_supervises_and_reaps: needs root");
        return;
    }
    let home = Home::new();
    let inner = home.command("run", &["--no-mount"]);
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child"]).arg(inner.get_program());
    command.args(inner.get_args()).env("XDG_RUNTIME_DIR", home.folder.path());
    let process = Process::spawn("unshare", command, &home.path("log")).unwrap();
    until("not ready", || get(home.admin, "/readyz").filter(|answer| answer.status == 200));
    let first = until("no first process", || children(process.pid()).first().copied());
    let before = until("no worker", || children(first.cast_unsigned()).first().copied());
    // A process whose parent ends becomes a child of the first one, and must not stay a zombie.
    let mut orphan = Command::new("nsenter");
    let script = "sleep 0.1 & sleep 0.1 & exit 0";
    orphan.args(["-t", &first.to_string(), "-p", "sh", "-c", script]);
    let (code, _, stderr) = output(&mut orphan);
    assert_eq!(code, 0, "{stderr}");
    until("orphans stay", || (children(first.cast_unsigned()) == [before]).then_some(()));
    kill(before, Signal::KILL);
    until("no other worker", || {
        children(first.cast_unsigned()).into_iter().find(|now| *now != before)
    });
    until("not ready", || get(home.admin, "/readyz").filter(|answer| answer.status == 200));
    kill(first, Signal::TERM);
    let status = process.wait(Duration::from_secs(20)).unwrap();
    let log = std::fs::read_to_string(home.path("log")).unwrap();
    assert_eq!(status.code(), Some(0), "{log}");
}
