//! `warpdrive demo`, from its start to nothing left.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use testkit::Process;

use crate::support::{can_mount, is_mounted, output, program};

fn wait_for(log: &Path, process: &Process) -> String {
    let until = Instant::now() + Duration::from_mins(1);
    loop {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        if text.contains("Ctrl-C ends it") {
            return text;
        }
        assert!(process.is_running() && Instant::now() < until, "{text}");
        std::thread::sleep(Duration::from_millis(30));
    }
}

#[test]
fn it_serves_what_it_says_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = program();
    command.arg("demo").env("TMPDIR", folder.path());
    let log = folder.path().join("log");
    let process = Process::spawn("warpdrive-demo", command, &log).unwrap();
    let text = wait_for(&log, &process);
    let pasted: Vec<&str> = text
        .lines()
        .skip_while(|line| !line.starts_with("paste one"))
        .skip(1)
        .take_while(|line| !line.is_empty())
        .collect();
    let mount = can_mount("it_serves_what_it_says_and_leaves_nothing");
    assert_eq!(pasted.len(), if mount { 3 } else { 2 }, "{text}");
    if mount {
        let (code, stdout, stderr) = output(Command::new("sh").arg("-c").arg(pasted[0]));
        assert_eq!(code, 0, "{stdout}{stderr}");
        assert!(
            stdout.contains("samples.parquet") && stdout.contains("train-000003.tar"),
            "{stdout}"
        );
        // The sums of the mount are those of the origin.
        let line =
            stdout.lines().find(|l| l.ends_with("mnt/demo/shards/train-000000.tar")).unwrap();
        let origin = line.split_whitespace().nth(1).unwrap().replace("mnt/demo", "origin");
        let (_, direct, _) = output(Command::new("sha256sum").arg(origin));
        assert_eq!(line.split(' ').next(), direct.split(' ').next());
    }
    let stats = pasted.last().unwrap().replace("--watch", "");
    let (code, stdout, stderr) = output(Command::new("sh").arg("-c").arg(stats));
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("demo"), "{stdout}");
    process.signal(Signal::INT);
    let ended = process.wait(Duration::from_secs(20)).unwrap();
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(ended.success(), "{text}");
    let left: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["log"], "{text}");
}

#[test]
fn a_given_directory_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("demo");
    let arguments = ["demo", "--seconds", "1", "--no-mount", "--dir"];
    let (code, stdout, stderr) = output(program().args(arguments).arg(&dir));
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(dir.join("origin/tables/samples.parquet").exists());
    assert!(!is_mounted(&dir.join("mnt")));
    // What was made is a configuration that can be gone on from.
    let (code, stdout, _) = output(program().args(["check", "-c"]).arg(dir.join("warpdrive.yaml")));
    assert_eq!(code, 0, "{stdout}");
}
