//! What a sidecar does because it is a container of a pod: how it ends, and what it leaves to read.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use testkit::Process;

use super::support::{Home, ask, can_mount, get, output, program, until};

/// What a busy machine may take beyond what is asked for.
const SLACK: Duration = Duration::from_secs(8);

fn message(home: &Home) -> String {
    std::fs::read_to_string(home.path("termination")).unwrap_or_default()
}

/// The option that names the termination message of a test.
fn log_option(home: &Home) -> [String; 2] {
    ["--termination-log".to_owned(), home.path("termination").display().to_string()]
}

#[test]
fn a_start_that_fails_leaves_its_reason() {
    let home = Home::new();
    let log = log_option(&home);
    for more in [&["--no-supervise"][..], &["--supervise"]] {
        let mut command = home.command("run", &["--no-mount", "--set", "cache.max_sise=1GB"]);
        let (code, _, stderr) = output(command.args(&log).args(more));
        assert_eq!(code, 2, "{stderr}");
        let said = message(&home);
        assert!(said.contains("--set cache.max_sise: is not a known key"), "{more:?}: {said}");
        assert!(said.contains("write `max_size`") && said.len() <= 4096, "{said}");
        std::fs::remove_file(home.path("termination")).unwrap();
    }
    // Something that is found later.
    let _taken = TcpListener::bind(("127.0.0.1", home.s3)).unwrap();
    let (code, _, stderr) = output(home.command("run", &["--no-mount"]).args(&log));
    assert_eq!(code, 1, "{stderr}");
    assert!(message(&home).contains(&format!("s3.listen 127.0.0.1:{}", home.s3)), "{stderr}");
}

#[test]
fn crashes_that_do_not_end_leave_their_reason() {
    let home = Home::new();
    let log = log_option(&home);
    let options = ["--no-mount", "--supervise", "--max-crashes", "1", &log[0], &log[1]];
    let sidecar = home.run(&options);
    let worker = get(home.admin, "/status").unwrap().json()["pid"].as_i64().unwrap();
    let worker = rustix::process::Pid::from_raw(i32::try_from(worker).unwrap()).unwrap();
    rustix::process::kill_process(worker, Signal::KILL).unwrap();
    let status = sidecar.process.wait(Duration::from_secs(20)).unwrap();
    assert_eq!(status.code(), Some(1), "{}", sidecar.log());
    let said = message(&home);
    assert!(said.contains("signal 9 (SIGKILL)") && said.contains("giving up"), "{said}");
}

/// A client that begins to send an object and does not go on.
fn slow_upload(port: u16, key: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let head =
        format!("PUT /data/{key} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 99\r\n\r\nabc");
    stream.write_all(head.as_bytes()).unwrap();
    stream
}

fn is_writing(home: &Home) -> Option<()> {
    let metrics = get(home.admin, "/metrics")?;
    let line = "warpdrive_s3_requests_in_flight 1";
    metrics.text().lines().any(|found| found == line).then_some(())
}

#[test]
fn what_was_not_finished_is_in_the_termination_message() {
    let home = Home::new();
    home.configure("drain_timeout: 1s");
    let log = log_option(&home);
    for (supervise, turn) in [("--no-supervise", "one"), ("--supervise", "two")] {
        let sidecar = home.run(&["--no-mount", supervise, &log[0], &log[1]]);
        let begun = ask(home.s3, "POST", &format!("/data/{turn}-left?uploads"), &[], b"").unwrap();
        let id = begun.text().split("<UploadId>").nth(1).unwrap().split('<').next().unwrap();
        let mut client = slow_upload(home.s3, &format!("{turn}-cut"));
        until("the upload does not begin", || is_writing(&home));
        sidecar.process.signal(Signal::TERM);
        // While it drains it lives and says why it takes no work.
        let why = until("it drains unseen", || {
            get(home.admin, "/readyz").filter(|answer| answer.status == 503)
        });
        assert!(why.text().starts_with("not ready: it was told to end"), "{}", why.text());
        assert_eq!(get(home.admin, "/livez").unwrap().status, 200);
        let ended = sidecar.process.wait(Duration::from_secs(3) + SLACK).unwrap();
        assert!(ended.success(), "{}", sidecar.log());
        let mut heard = Vec::new();
        let _ = client.read_to_end(&mut heard);
        assert!(!heard.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&heard));
        assert!(!home.path(&format!("origin/{turn}-cut")).exists());
        let said = message(&home);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 2, "{said}");
        assert_eq!(lines[0], format!("cut off: PutObject of s3://data/{turn}-cut"));
        assert!(lines[1].contains(&format!("s3://data/{turn}-left, id {id}")), "{said}");
    }
    // An end with nothing left takes the message of an earlier one away.
    let sidecar = home.run(&["--no-mount", &log[0], &log[1]]);
    assert_eq!(sidecar.stop(), Some(0), "{}", sidecar.log());
    assert_eq!(message(&home), "");
}

/// A mount that cannot be ended is no reason to forget what clients lost.
#[test]
fn a_failed_unmount_leaves_what_was_not_finished_in_the_message() {
    let name = "a_failed_unmount_leaves_what_was_not_finished_in_the_message";
    if !can_mount(name) || !rustix::process::geteuid().is_root() {
        println!("SKIPPED {name}: a holder needs root");
        return;
    }
    let home = Home::new();
    home.configure("drain_timeout: 1s");
    let log = log_option(&home);
    let sidecar = home.run(&["--no-supervise", &log[0], &log[1]]);
    let holder = get(home.admin, "/status").unwrap().json()["holder"]["pid"].as_i64().unwrap();
    let holder = rustix::process::Pid::from_raw(i32::try_from(holder).unwrap()).unwrap();
    let _client = slow_upload(home.s3, "cut");
    until("the upload does not begin", || is_writing(&home));
    // It answers nothing, so the mount cannot be ended in time.
    rustix::process::kill_process(holder, Signal::STOP).unwrap();
    sidecar.process.signal(Signal::TERM);
    let ended = sidecar.process.wait(Duration::from_secs(3) + SLACK);
    rustix::process::kill_process(holder, Signal::CONT).unwrap();
    let said = message(&home);
    assert_eq!(ended.and_then(|ended| ended.code()), Some(1), "{}", sidecar.log());
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert!(lines[0].contains("the mount does not end in time"), "{said}");
    assert_eq!(lines[1], "cut off: PutObject of s3://data/cut");
    // The holder hears late that it is to end, or ends with its mount.
    let _ = rustix::mount::unmount(home.path("mnt"), rustix::mount::UnmountFlags::DETACH);
    until("the holder runs on", || rustix::process::test_kill_process(holder).err());
}

#[test]
fn an_upload_in_flight_may_finish_and_a_second_signal_waits_for_none() {
    let home = Home::new();
    home.configure("drain_timeout: 1m");
    let sidecar = home.run(&["--no-mount"]);
    let mut client = slow_upload(home.s3, "finished");
    until("the upload does not begin", || is_writing(&home));
    sidecar.process.signal(Signal::TERM);
    sidecar.wait_for("stopping; a second signal");
    client.write_all(&[b'x'; 96]).unwrap();
    let mut heard = Vec::new();
    client.read_to_end(&mut heard).unwrap();
    assert!(heard.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&heard));
    assert!(sidecar.process.wait(Duration::from_secs(20)).unwrap().success());
    assert_eq!(std::fs::metadata(home.path("origin/finished")).unwrap().len(), 99);
    let sidecar = home.run(&["--no-mount"]);
    let _client = slow_upload(home.s3, "cut");
    until("the upload does not begin", || is_writing(&home));
    sidecar.process.signal(Signal::TERM);
    sidecar.wait_for("stopping; a second signal");
    let begun = Instant::now();
    sidecar.process.signal(Signal::TERM);
    assert!(sidecar.process.wait(SLACK).is_some(), "{}", sidecar.log());
    assert!(begun.elapsed() < SLACK);
}

/// An origin that takes connections and says nothing, a client that waits for it: alive and ready.
#[test]
fn an_origin_that_hangs_is_no_reason_to_be_killed() {
    let home = Home::new();
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    let backend = format!(
        "  - {{name: hangs, type: s3, config: {{bucket: b, region: r, path_style: true, \
         endpoint: \"http://{}\", access_key: a, secret_key: s}}, allow_inline_secrets: true}}",
        origin.local_addr().unwrap()
    );
    home.configure_with("access: anonymous", &backend, "drain_timeout: 0s");
    let sidecar = home.run(&["--no-mount"]);
    let waiting: Vec<TcpStream> = (0..16)
        .map(|key| {
            let mut stream = TcpStream::connect(("127.0.0.1", home.s3)).unwrap();
            write!(stream, "GET /hangs/{key} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n").unwrap();
            stream
        })
        .collect();
    origin.accept().unwrap();
    let admin = format!("http://127.0.0.1:{}", home.admin);
    for question in ["--live", "--ready"] {
        let (code, _, said) = output(program().args(["probe", question, "--admin", &admin]));
        assert_eq!(code, 0, "{said}");
    }
    drop(waiting);
    assert_eq!(sidecar.stop(), Some(0), "{}", sidecar.log());
}

#[test]
fn warm_waits_for_the_sidecar_and_ends_at_once() {
    let home = Home::new();
    let admin = format!("http://127.0.0.1:{}", home.admin);
    let arguments = ["warm", "--admin", &admin, "--wait", "60s", "--bucket", "data"];
    let spawn = |name: &str| {
        let mut command = program();
        command.args(arguments);
        Process::spawn("warm", command, &home.path(name)).unwrap()
    };
    let said = |name: &str| std::fs::read_to_string(home.path(name)).unwrap_or_default();
    let waiting = |name: &str| said(name).contains("waiting for the sidecar at").then_some(());
    let stopped = spawn("stopped.log");
    until("nothing is said", || waiting("stopped.log"));
    stopped.signal(Signal::TERM);
    assert_eq!(stopped.wait(SLACK).unwrap().code(), Some(130), "{}", said("stopped.log"));
    let warm = spawn("warm.log");
    until("nothing is said", || waiting("warm.log"));
    let sidecar = home.run(&["--no-mount"]);
    assert!(warm.wait(Duration::from_secs(30)).unwrap().success(), "{}", said("warm.log"));
    let said = said("warm.log");
    assert!(said.contains("verified resident: 2 of 2 objects"), "{said}");
    // No terminal, so nothing that moves.
    assert!(!said.contains(['\r', '\u{1b}']), "{said}");
    // What cannot be had is a failure with its reason.
    let list = home.path("list");
    std::fs::write(&list, "data/no-such-key\n").unwrap();
    let (code, stdout, stderr) =
        output(program().args(["warm", "--admin", &admin, "--list"]).arg(&list));
    assert_eq!(code, 1, "{stdout}{stderr}");
    assert!(stdout.contains("data/no-such-key:"), "{stdout}");
    assert_eq!(sidecar.stop(), Some(0), "{}", sidecar.log());
}

#[test]
fn a_cache_of_another_pod_is_left_alone_and_said() {
    let home = Home::new();
    let sidecar = home.run(&["--no-mount"]);
    let mut second = home.command("run", &["--no-mount", "--no-supervise"]);
    second.env("KUBERNETES_SERVICE_HOST", "10.0.0.1").args(log_option(&home));
    let (code, _, stderr) = output(&mut second);
    assert_eq!(code, 1, "{stderr}");
    for part in ["is used by process", "pods cannot share a cache", "warpdrive.io/cache"] {
        assert!(message(&home).contains(part), "{part}: {stderr}");
    }
    // As another pod had written it.
    let lock = std::fs::read_to_string(home.path("cache/lock")).unwrap();
    let pid = lock.split(' ').next().unwrap();
    std::fs::write(home.path("cache/lock"), format!("{pid} trainer-0\n")).unwrap();
    let (code, _, stderr) = output(&mut home.command("run", &["--no-mount", "--no-supervise"]));
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains(&format!("process {pid} of `trainer-0`")), "{stderr}");
    assert_eq!(sidecar.stop(), Some(0), "{}", sidecar.log());
}

/// A `hostPath` belongs to root; the sidecar is user 65534.
#[test]
fn a_cache_that_may_not_be_written_is_said_with_what_would_help() {
    let has = |name: &str| Path::new("/usr/bin").join(name).exists();
    if !rustix::process::geteuid().is_root() || !has("setpriv") {
        println!("SKIPPED a_cache_that_may_not_be_written_is_said_with_what_would_help: not root");
        return;
    }
    let home = Home::new();
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(home.folder.path(), open).unwrap();
    std::fs::create_dir(home.path("cache")).unwrap();
    let inner = home.command("run", &["--no-mount", "--no-supervise"]);
    // Where this user may go, also when the repository is somebody's home.
    let copy = home.path("warpdrive");
    std::fs::copy(inner.get_program(), &copy).unwrap();
    let mut command = std::process::Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&copy);
    command.args(inner.get_args()).current_dir("/");
    let sidecar = Process::spawn("warpdrive", command, &home.path("log")).unwrap();
    let said = || std::fs::read_to_string(home.path("log")).unwrap_or_default();
    until("nothing is said", || said().contains("give user 65534 the directory").then_some(()));
    // It serves without, as it does when a disk fails.
    until("it is not ready", || (get(home.admin, "/readyz")?.status == 200).then_some(()));
    sidecar.signal(Signal::TERM);
    assert!(sidecar.wait(Duration::from_secs(20)).unwrap().success(), "{}", said());
}
