//! `warpdrive probe` against a sidecar that is not there, is there, and hangs.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use rustix::process::Signal;
use testkit::Process;

use super::support::{Home, can_mount, output, program, until};

/// Exit code and what was said.
fn probe(arguments: &[&str]) -> (i32, String) {
    let (code, _, stderr) = output(program().arg("probe").args(arguments));
    (code, stderr)
}

#[test]
fn a_probe_without_a_question_is_refused() {
    assert_eq!(probe(&[]).0, 2);
    assert_eq!(probe(&["--wait", "1s"]).0, 2);
    assert_eq!(probe(&["--live", "--admin", "https://example.org"]).0, 2);
    assert_eq!(probe(&["--s3", "example.org:80"]).0, 2);
}

#[test]
fn what_is_missing_is_said_in_one_sentence() {
    let home = Home::new();
    let (admin, s3) =
        (format!("http://127.0.0.1:{}", home.admin), format!("127.0.0.1:{}", home.s3));
    let socket = home.path("no.sock").display().to_string();
    let mount = home.path("mnt").display().to_string();
    for (arguments, wanted) in [
        (vec!["--live", "--admin", &admin], "nothing listens at"),
        (vec!["--ready", "--admin", &admin], "nothing listens at"),
        (vec!["--s3", &s3], "the S3 endpoint: nothing listens at"),
        (vec!["--holder", &socket], "no mount holder answers on"),
        (vec!["--mount", &mount], "no mount of warpdrive is at"),
    ] {
        let (code, said) = probe(&arguments);
        assert_eq!(code, 1, "{said}");
        assert!(said.contains(wanted) && said.trim_end().lines().count() == 1, "{said}");
    }
}

#[test]
fn a_probe_waits_for_a_sidecar_and_sees_its_end() {
    if !can_mount("a_probe_waits_for_a_sidecar_and_sees_its_end") {
        return;
    }
    let home = Home::new();
    let (admin, s3) =
        (format!("http://127.0.0.1:{}", home.admin), format!("127.0.0.1:{}", home.s3));
    let mount = home.path("mnt").display().to_string();
    let all = ["--live", "--ready", "--admin", &admin, "--s3", &s3, "--mount", &mount];
    let waiting = [&all[..], &["--wait", "60s"]].concat();
    let mut command = program();
    command.arg("probe").args(&waiting);
    let waiting = Process::spawn("probe", command, &home.path("probe.log")).unwrap();
    let sidecar = home.run(&[]);
    assert!(waiting.wait(Duration::from_secs(30)).unwrap().success(), "{}", waiting.log_tail());
    assert_eq!(probe(&all), (0, String::new()));
    assert_eq!(sidecar.stop(), Some(0), "{}", sidecar.log());
    for one in [&all[..4], &all[4..6], &all[6..]] {
        assert_eq!(probe(one).0, 1, "{one:?}");
    }
}

/// A worker that is stopped answers nothing, and neither does its mount: the probe ends anyway, and
/// leaves nothing that keeps its reader waiting.
#[test]
fn a_probe_ends_also_where_nothing_answers() {
    if !can_mount("a_probe_ends_also_where_nothing_answers") {
        return;
    }
    let home = Home::new();
    let sidecar = home.run(&["--no-supervise"]);
    let (admin, s3) =
        (format!("http://127.0.0.1:{}", home.admin), format!("127.0.0.1:{}", home.s3));
    let mount = home.path("mnt").display().to_string();
    sidecar.process.signal(Signal::STOP);
    let begun = Instant::now();
    for one in [vec!["--live", "--admin", &admin], vec!["--s3", &s3], vec!["--mount", &mount]] {
        let (code, said) = probe(&[&one[..], &["--timeout", "300ms", "--wait", "500ms"]].concat());
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("does not answer"), "{said}");
    }
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    sidecar.process.signal(Signal::CONT);
    until("the mount answers again", || (probe(&["--mount", &mount]).0 == 0).then_some(()));
    assert_eq!(sidecar.stop(), Some(0), "{}", sidecar.log());
}

/// Who is stopped accepts nobody, and those who ask fill its queue: the next one would wait for ever.
#[test]
fn a_probe_ends_also_where_nobody_accepts() {
    let home = Home::new();
    for (kind, question) in [(SocketType::STREAM, "--live"), (SocketType::SEQPACKET, "--holder")] {
        let path = home.path(&format!("full{question}"));
        let address = SocketAddrUnix::new(&path).unwrap();
        let socket = |flags| socket_with(AddressFamily::UNIX, kind, flags, None).unwrap();
        let listener = socket(SocketFlags::CLOEXEC);
        bind(&listener, &address).unwrap();
        listen(&listener, 1).unwrap();
        let mut waiting = Vec::new();
        loop {
            waiting.push(socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK));
            if connect(waiting.last().unwrap(), &address).is_err() {
                break;
            }
        }
        let admin = format!("unix:{}", path.display());
        let path = path.display().to_string();
        let asked = match question {
            "--live" => vec![question, "--admin", &admin],
            _ => vec![question, &path],
        };
        let mut command = program();
        command.arg("probe").args(asked).args(["--timeout", "300ms", "--wait", "500ms"]);
        let probe = Process::spawn("probe", command, &home.path("probe.log")).unwrap();
        let ended = probe.wait(Duration::from_secs(20));
        let said = std::fs::read_to_string(home.path("probe.log")).unwrap();
        let ended = ended.unwrap_or_else(|| panic!("{question} still runs: {said}"));
        assert_eq!(ended.code(), Some(1), "{said}");
        let wanted = ["does not answer in time", "no mount holder answers on"];
        assert!(wanted.iter().any(|wanted| said.contains(wanted)), "{said}");
        std::fs::remove_file(home.path("probe.log")).unwrap();
    }
}

#[test]
fn an_answer_that_is_no_readiness_is_repeated_until_it_is() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = format!("http://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        for turn in 0..4 {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            _ = stream.read(&mut request);
            let answer: &[u8] = if turn < 3 {
                b"HTTP/1.1 503 Service Unavailable\r\n\r\nnot ready: starting\n"
            } else {
                b"HTTP/1.1 200 OK\r\n\r\nready\n"
            };
            stream.write_all(answer).unwrap();
        }
    });
    let (code, said) = probe(&["--ready", "--admin", &admin]);
    assert!(code == 1 && said.contains("answers 503: not ready: starting"), "{said}");
    assert_eq!(probe(&["--ready", "--admin", &admin, "--wait", "30s"]), (0, String::new()));
    server.join().unwrap();
}
