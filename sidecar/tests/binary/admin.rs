//! The admin endpoint, `stats`, and what else needs no origin.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::{Home, ask, get, get_unix, output, program};

#[test]
fn health_metrics_and_status() {
    let home = Home::new();
    let metrics = testkit::free_port();
    home.configure(&format!("metrics: {{enabled: true, addr: \"127.0.0.1:{metrics}\"}}"));
    let sidecar = home.run(&["--no-mount"]);
    get(home.s3, "/data/hello.txt").unwrap();
    assert_eq!(get(home.admin, "/livez").unwrap().status, 200);
    let health = get(home.admin, "/healthz").unwrap().json();
    assert_eq!(health["status"], "ok", "{health}");
    assert_eq!(health["checks"]["backend:data"], "ok", "{health}");
    let text = get(home.admin, "/metrics").unwrap();
    for series in [
        "warpdrive_cache_hit_total",
        "warpdrive_cache_miss_total",
        "warpdrive_cache_size_bytes",
        "warpdrive_cache_evictions_total",
        "warpdrive_cache_utilization_ratio",
        "warpdrive_backend_request_duration_seconds_count{backend=\"data\"",
        "warpdrive_backend_bytes_read_total{backend=\"data\"}",
        "warpdrive_readahead_hit_total",
        "warpdrive_readahead_wasted_total",
        "warpdrive_auth_refresh_total{provider=\"local\",status=\"success\"} 1",
        "warpdrive_build_info{version=",
        "process_resident_memory_bytes",
    ] {
        assert!(text.text().contains(series), "{series}\n{}", text.text());
    }
    assert!(!text.text().contains("hello.txt"), "a key is a label");
    assert!(get(metrics, "/metrics").unwrap().text().contains("warpdrive_cache_hit_total"));
    assert_eq!(get(metrics, "/status").unwrap().status, 404);
    let status = get(home.admin, "/status").unwrap().json();
    assert_eq!(status["backends"][0]["name"], "data");
    assert_eq!(status["ready"], true);
    assert!(status["cache"]["memory"]["capacity_bytes"].as_u64().unwrap() > 0);
    assert_eq!(sidecar.stop(), Some(0));
}

#[test]
fn requests_that_are_not_for_it_are_refused() {
    let home = Home::new();
    let sidecar = home.run(&["--no-mount"]);
    let evil = [("host", "evil.example:80")];
    assert_eq!(ask(home.admin, "GET", "/status", &evil, b"").unwrap().status, 421);
    let named = format!("localhost:{}", home.admin);
    let named = [("host", named.as_str())];
    assert_eq!(ask(home.admin, "GET", "/status", &named, b"").unwrap().status, 200);
    assert_eq!(get(home.admin, "/nothing").unwrap().status, 404);
    assert_eq!(ask(home.admin, "DELETE", "/status", &[], b"").unwrap().status, 405);
    assert_eq!(get(home.admin, "/warm/77").unwrap().status, 404);
    assert_eq!(get(home.admin, "/warm/x").unwrap().status, 404);
    for body in
        [&b"{"[..], b"{\"bucketz\": []}", b"{\"buckets\": [\"nope\"]}", b"{\"glob\": \"[\"}"]
    {
        let answer = ask(home.admin, "POST", "/warm", &[], body).unwrap();
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert!(answer.json()["error"].is_string());
    }
    // A page of some site that a browser on this machine shows.
    let page = [("origin", "https://evil.example")];
    for (method, path) in [("POST", "/warm"), ("DELETE", "/warm/1"), ("OPTIONS", "/warm")] {
        assert_eq!(ask(home.admin, method, path, &page, b"{}").unwrap().status, 403, "{method}");
    }
    assert_eq!(get(home.admin, "/warm").unwrap().json().as_array().unwrap().len(), 0);
    assert_eq!(ask(home.admin, "GET", "/livez", &page, b"").unwrap().status, 200);
    // No generated key, nothing to give.
    assert_eq!(get(home.admin, "/credentials").unwrap().status, 404);
    assert_eq!(sidecar.stop(), Some(0));
}

#[test]
fn warm_requests_are_read_two_at_a_time() {
    let home = Home::new();
    let sidecar = home.run(&["--no-mount"]);
    let ask_for_one = || ask(home.admin, "POST", "/warm", &[], b"{\"prefix\": \"sub/\"}").unwrap();
    let slow: Vec<_> = (0..2)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", home.admin)).unwrap();
            let host = format!("127.0.0.1:{}", home.admin);
            write!(stream, "POST /warm HTTP/1.1\r\nhost: {host}\r\ncontent-length: 9\r\n\r\n{{")
                .unwrap();
            stream
        })
        .collect();
    let until = Instant::now() + Duration::from_mins(1);
    while ask_for_one().status != 429 {
        assert!(Instant::now() < until, "a third body was read beside two others");
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(slow);
    while ask_for_one().status != 202 {
        assert!(Instant::now() < until, "permits were not given back");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(sidecar.stop(), Some(0));
}

#[test]
fn it_can_be_a_unix_socket() {
    let home = Home::new();
    let socket = home.path("admin.sock");
    home.configure(&format!("admin: {{listen: \"unix:{}\"}}", socket.display()));
    let log = home.path("log");
    let process =
        testkit::Process::spawn("warpdrive", home.command("run", &["--no-mount"]), &log).unwrap();
    let until = std::time::Instant::now() + std::time::Duration::from_mins(1);
    while get_unix(&socket, "/readyz").is_none_or(|a| a.status != 200) {
        assert!(
            process.is_running() && std::time::Instant::now() < until,
            "{}",
            process.log_tail()
        );
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let (code, stdout, stderr) = output(&mut home.command("stats", &[]));
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("data") && stdout.contains("ready"), "{stdout}");
    process.signal(rustix::process::Signal::TERM);
    assert!(process.wait(std::time::Duration::from_secs(15)).unwrap().success());
    assert!(!socket.exists());
}

#[test]
fn stats_for_people_and_for_programs() {
    let home = Home::new();
    let (code, _, stderr) = output(&mut home.command("stats", &[]));
    assert_eq!(code, 1);
    assert!(stderr.contains("no sidecar answers"), "{stderr}");
    let sidecar = home.run(&["--no-mount"]);
    get(home.s3, "/data/hello.txt").unwrap();
    let (code, stdout, _) = output(&mut home.command("stats", &[]));
    assert_eq!(code, 0);
    assert!(stdout.contains("hit rate") && stdout.contains("data"), "{stdout}");
    let admin = format!("http://127.0.0.1:{}", home.admin);
    let (code, stdout, _) = output(program().args(["stats", "--json", "--admin", &admin]));
    assert_eq!(code, 0);
    let document: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(document["pid"], sidecar.process.pid());
    assert_eq!(sidecar.stop(), Some(0));
}

#[test]
fn completions_and_version() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, stdout, _) = output(program().args(["completions", shell]));
        assert!(code == 0 && stdout.contains("warpdrive"), "{shell}");
    }
    let (code, stdout, _) = output(program().arg("--version"));
    assert_eq!((code, stdout), (0, format!("warpdrive {}\n", env!("CARGO_PKG_VERSION"))));
    let (code, _, stderr) = output(program().arg("runn"));
    assert!(code == 2 && stderr.contains("'run'"), "{stderr}");
}
