//! `warpdrive warm`, with and without a running sidecar.

use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use testkit::Process;

use crate::support::{Home, bytes, get, output};

const MIB: usize = 1 << 20;

fn report(home: &Home, arguments: &[&str]) -> (i32, Value) {
    let mut all = vec!["--json"];
    all.extend(arguments);
    let (code, stdout, stderr) = output(&mut home.command("warm", &all));
    let document = serde_json::from_str(&stdout);
    (code, document.unwrap_or_else(|e| panic!("{code}: {e}: {stdout}{stderr}")))
}

#[test]
fn by_itself_and_then_not_again() {
    let home = Home::new();
    let (code, stdout, stderr) = output(&mut home.command("warm", &["--bucket", "data"]));
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(stdout.contains("verified resident: 2 of 2 objects"), "{stdout}");
    assert!(stderr.contains("no sidecar runs"), "{stderr}");
    let (code, again) = report(&home, &[]);
    assert_eq!(code, 0, "{again}");
    assert_eq!(again["already_resident_bytes"], again["bytes"], "{again}");
    // The next sidecar finds it all.
    let sidecar = home.run(&["--no-mount"]);
    assert!(get(home.s3, "/data/sub/numbers.bin").unwrap().body == bytes(3_000_000));
    let status = get(home.admin, "/status").unwrap().json();
    assert_eq!(status["cache"]["fetch"]["bytes"], 0, "{}", sidecar.log());
    assert_eq!(sidecar.stop(), Some(0));
}

#[test]
fn in_the_running_sidecar() {
    let home = Home::new();
    let sidecar = home.run(&["--no-mount"]);
    let (code, stdout, stderr) = output(&mut home.command("warm", &["--glob", "sub/*.bin"]));
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(stderr.contains("in the sidecar at http://127.0.0.1"), "{stderr}");
    assert!(stdout.contains("verified resident: 1 of 1 objects"), "{stdout}");
    let before = get(home.admin, "/status").unwrap().json()["cache"]["fetch"]["bytes"].clone();
    assert_eq!(before, 3_000_000);
    get(home.s3, "/data/sub/numbers.bin").unwrap();
    let after = get(home.admin, "/status").unwrap().json()["cache"]["fetch"]["bytes"].clone();
    assert_eq!(before, after, "a warmed object was fetched again");
    let jobs = get(home.admin, "/warm").unwrap().json();
    assert_eq!(jobs[0]["state"], "done", "{jobs}");
    assert_eq!(sidecar.stop(), Some(0));
}

#[test]
fn what_is_not_there_is_named_and_fails() {
    let home = Home::new();
    home.write("keys", b"# a list\ndata/hello.txt\ns3://data/sub/numbers.bin\n\ndata/missing\n");
    let list = home.path("keys").display().to_string();
    let (code, found) = report(&home, &["--list", &list]);
    assert_eq!(code, 1, "{found}");
    assert_eq!(found["resident_objects"], 2, "{found}");
    assert_eq!(found["not_resident"][0]["key"], "missing", "{found}");
    let (code, _, stderr) = output(&mut home.command("warm", &["--bucket", "dta"]));
    assert_eq!(code, 2);
    assert!(stderr.contains("there are: data"), "{stderr}");
}

#[test]
fn large_objects_can_be_left_out() {
    let home = Home::new();
    let (code, found) = report(&home, &["--max-size", "1MiB"]);
    assert_eq!(code, 0, "{found}");
    assert_eq!((&found["objects"], &found["left_out_objects"]), (&1.into(), &1.into()), "{found}");
}

#[test]
fn more_than_fits_is_not_called_resident() {
    let home = Home::new();
    let text = std::fs::read_to_string(home.path("warpdrive.yaml")).unwrap();
    home.write("warpdrive.yaml", text.replace("max_size: 256MiB", "max_size: 64MiB").as_bytes());
    for index in 0..20 {
        home.write(&format!("origin/big-{index:02}"), &bytes(8 * MIB));
    }
    let (code, found) = report(&home, &["--prefix", "big-"]);
    assert_eq!(code, 1, "{found}");
    assert_eq!(found["objects"], 20);
    let resident = found["resident_objects"].as_u64().unwrap();
    assert!(resident < 20, "160 MiB do not fit into 64 MiB: {found}");
    assert_eq!(found["not_resident_objects"].as_u64().unwrap(), 20 - resident);
}

#[test]
fn an_interrupted_warm_goes_on_where_it_was() {
    let home = Home::new();
    for index in 0..24 {
        home.write(&format!("origin/part-{index:02}"), &bytes(MIB));
    }
    let arguments = ["--prefix", "part-", "--rate", "8MiB", "--parallel", "2"];
    let command = home.command("warm", &arguments);
    let log = home.path("warm-log");
    let process = Process::spawn("warpdrive-warm", command, &log).unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    process.signal(Signal::INT);
    let status = process.wait(Duration::from_secs(20)).unwrap();
    let text = std::fs::read_to_string(&log).unwrap();
    assert_eq!(status.code(), Some(130), "{text}");
    assert!(text.contains("not everything was seen: interrupted"), "{text}");
    let (code, found) = report(&home, &["--prefix", "part-"]);
    assert_eq!(code, 0, "{found}");
    assert_eq!(found["resident_objects"], 24);
    let kept = found["already_resident_bytes"].as_u64().unwrap();
    assert!(kept >= MIB as u64, "nothing was kept: {found}\n{text}");
    assert!(kept < 24 * MIB as u64, "it was not interrupted: {found}");
}

#[test]
fn an_interrupted_command_ends_its_job_in_the_sidecar() {
    let home = Home::new();
    for index in 0..24 {
        home.write(&format!("origin/part-{index:02}"), &bytes(MIB));
    }
    let sidecar = home.run(&["--no-mount"]);
    let mut command = home.command("warm", &["--prefix", "part-", "--rate", "4MiB"]);
    command.stdin(Stdio::null());
    let process = Process::spawn("warpdrive-warm", command, &home.path("warm-log")).unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while get(home.admin, "/warm").unwrap().json().as_array().unwrap().is_empty() {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(20));
    }
    process.signal(Signal::INT);
    assert_eq!(process.wait(Duration::from_secs(20)).unwrap().code(), Some(130));
    let job = get(home.admin, "/warm/1").unwrap().json();
    assert_eq!(job["state"], "done", "{job}");
    assert_eq!(sidecar.stop(), Some(0));
}

#[test]
fn a_locked_cache_without_an_answer_is_said() {
    let home = Home::new();
    let sidecar = home.run(&["--no-mount"]);
    let text = std::fs::read_to_string(home.path("warpdrive.yaml")).unwrap();
    let elsewhere = testkit::free_port().to_string();
    home.write("warpdrive.yaml", text.replace(&home.admin.to_string(), &elsewhere).as_bytes());
    let (code, _, stderr) = output(&mut home.command("warm", &[]));
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("--admin"), "{stderr}");
    let admin = format!("http://127.0.0.1:{}", home.admin);
    let (code, stdout, stderr) = output(&mut home.command("warm", &["--admin", &admin]));
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert_eq!(sidecar.stop(), Some(0));
}
