//! `warpdrive run`: serving, stopping, and refusing to start.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::{HeaderMap, Method};
use rustix::process::Signal;
use testkit::{Credentials, sign};

use crate::support::{Home, ask, bytes, can_mount, get, is_mounted, output, program};

#[test]
fn one_object_over_both_front_ends_then_sigterm() {
    let home = Home::new();
    let mount = can_mount("one_object_over_both_front_ends_then_sigterm");
    let sidecar = home.run(if mount { &[] } else { &["--no-mount"] });
    let wanted = bytes(3_000_000);
    let got = get(home.s3, "/data/sub/numbers.bin").unwrap();
    assert_eq!(got.status, 200, "{}", sidecar.log());
    assert!(got.body == wanted);
    assert_eq!(get(home.s3, "/data/hello.txt").unwrap().text(), "hello, world\n");
    assert_eq!(get(home.s3, "/nowhere/x").unwrap().status, 404);
    if mount {
        assert!(is_mounted(&home.path("mnt")));
        assert!(std::fs::read(home.path("mnt/data/sub/numbers.bin")).unwrap() == wanted);
        let names = std::fs::read_dir(home.path("mnt/data")).unwrap();
        let mut names: Vec<_> = names.map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["hello.txt", "sub"]);
    }
    let log = sidecar.log();
    assert!(log.contains("export AWS_ENDPOINT_URL_S3=http://127.0.0.1:"), "{log}");
    assert_eq!(sidecar.stop(), Some(0), "{}", sidecar.log());
    assert!(!is_mounted(&home.path("mnt")));
    assert!(get(home.admin, "/livez").is_none());
    assert!(get(home.s3, "/data/hello.txt").is_none());
}

#[test]
fn a_restart_keeps_the_warm_cache() {
    let home = Home::new();
    let misses = |home: &Home| {
        let status = get(home.admin, "/status").unwrap().json();
        status["cache"]["fetch"]["bytes"].as_u64().unwrap()
    };
    let sidecar = home.run(&["--no-mount"]);
    get(home.s3, "/data/sub/numbers.bin").unwrap();
    assert!(misses(&home) >= 3_000_000);
    assert_eq!(sidecar.stop(), Some(0));
    let sidecar = home.run(&["--no-mount"]);
    assert!(get(home.s3, "/data/sub/numbers.bin").unwrap().body == bytes(3_000_000));
    assert_eq!(misses(&home), 0, "{}", sidecar.log());
    assert_eq!(sidecar.stop(), Some(0));
}

#[test]
fn sigint_stops_as_sigterm_does() {
    let home = Home::new();
    let sidecar = home.run(&["--no-mount"]);
    sidecar.process.signal(Signal::INT);
    let status = sidecar.process.wait(Duration::from_secs(15)).unwrap();
    assert_eq!(status.code(), Some(0), "{}", sidecar.log());
}

#[test]
fn a_second_signal_exits_at_once() {
    if !can_mount("a_second_signal_exits_at_once") {
        return;
    }
    let home = Home::new();
    home.configure("drain_timeout: 60s");
    let sidecar = home.run(&[]);
    // A busy mount: the drain waits for whoever has it open.
    let held = std::fs::File::open(home.path("mnt/data/hello.txt")).unwrap();
    sidecar.process.signal(Signal::TERM);
    sidecar.wait_for("second signal exits at once");
    std::thread::sleep(Duration::from_millis(700));
    assert!(sidecar.process.is_running(), "did not wait: {}", sidecar.log());
    assert_eq!(get(home.admin, "/readyz").unwrap().status, 503);
    let begun = Instant::now();
    sidecar.process.signal(Signal::TERM);
    let status = sidecar.process.wait(Duration::from_secs(10)).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(status.code(), Some(130), "{}", sidecar.log());
    assert!(!is_mounted(&home.path("mnt")));
    drop(held);
}

#[test]
fn a_busy_mount_is_detached_when_the_drain_is_over() {
    if !can_mount("a_busy_mount_is_detached_when_the_drain_is_over") {
        return;
    }
    let home = Home::new();
    home.configure("drain_timeout: 2s");
    let sidecar = home.run(&[]);
    let held = std::fs::File::open(home.path("mnt/data/hello.txt")).unwrap();
    assert_eq!(sidecar.stop(), Some(0), "{}", sidecar.log());
    assert!(!is_mounted(&home.path("mnt")));
    drop(held);
}

#[test]
fn a_dead_mount_needs_force() {
    if !can_mount("a_dead_mount_needs_force") {
        return;
    }
    let home = Home::new();
    // Without a holder a mount dies with its process.
    home.configure("fuse: {holder: none}");
    let sidecar = home.run(&[]);
    sidecar.process.kill();
    drop(sidecar);
    assert!(is_mounted(&home.path("mnt")));
    let (code, _, stderr) = output(&mut home.command("run", &[]));
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("--force"), "{stderr}");
    let sidecar = home.run(&["--force"]);
    assert!(home.path("mnt/data/hello.txt").exists());
    assert_eq!(sidecar.stop(), Some(0));
    assert!(!is_mounted(&home.path("mnt")));
}

#[test]
fn a_generated_key_opens_the_endpoint_and_only_it() {
    let home = Home::new();
    let file = home.path("keys");
    home.configure_with(&format!("credentials_file: {}", file.display()), "", "");
    let sidecar = home.run(&["--no-mount"]);
    assert_eq!(get(home.s3, "/data/hello.txt").unwrap().status, 403);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(&file).unwrap();
    let value = |key: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(key)).unwrap();
        line.trim_start_matches([' ', '=']).trim().to_owned()
    };
    let credentials = Credentials {
        access_key: value("aws_access_key_id"),
        secret_key: value("aws_secret_access_key"),
        region: "us-east-1".to_owned(),
    };
    assert!(!sidecar.log().contains(&credentials.secret_key));
    let endpoint = format!("http://127.0.0.1:{}", home.s3);
    let path = "/data/hello.txt";
    let signed =
        sign(&credentials, Method::GET, &endpoint, path, &[], &HeaderMap::new(), Bytes::new());
    let headers: Vec<(&str, &str)> =
        signed.headers().iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
    let got = ask(home.s3, "GET", path, &headers, b"").unwrap();
    assert_eq!((got.status, got.text()), (200, "hello, world\n"));

    // The same key for AWS clients over the container endpoint, with the token and not without.
    let log = sidecar.log();
    let token = log.split("AWS_CONTAINER_AUTHORIZATION_TOKEN=").nth(1).unwrap();
    let token = token.lines().next().unwrap();
    assert_eq!(get(home.admin, "/credentials").unwrap().status, 403);
    let wrong = [("authorization", "0123")];
    assert_eq!(ask(home.admin, "GET", "/credentials", &wrong, b"").unwrap().status, 403);
    let right = [("authorization", token)];
    let document = ask(home.admin, "GET", "/credentials", &right, b"").unwrap().json();
    assert_eq!(document["AccessKeyId"], credentials.access_key);
    assert_eq!(document["SecretAccessKey"], credentials.secret_key);

    assert_eq!(sidecar.stop(), Some(0));
    assert!(!file.exists(), "a key that opens nothing was left");

    // In a pod nobody could tell the token to the other containers, and loopback is the pod's own.
    home.configure_with("access: generated, credentials_token: false", "", "");
    let sidecar = home.run(&["--no-mount"]);
    let document = get(home.admin, "/credentials").unwrap().json();
    assert!(document["SecretAccessKey"].as_str().is_some_and(|key| !key.is_empty()));
    assert!(!sidecar.log().contains("AWS_CONTAINER_AUTHORIZATION_TOKEN"), "{}", sidecar.log());
    assert_eq!(sidecar.stop(), Some(0));
}

#[test]
fn an_origin_that_is_down_does_not_keep_the_others() {
    let home = Home::new();
    let dead = testkit::free_port();
    let backend = format!(
        "  - {{name: lost, type: s3, config: {{bucket: b, endpoint: \"http://127.0.0.1:{dead}\"}}, \
         retry: {{max: 1}}, timeouts: {{connect: 500ms, call: 2s}}}}"
    );
    home.configure_with("access: anonymous", &backend, "");
    let sidecar = home.run(&["--no-mount"]);
    assert_eq!(get(home.s3, "/data/hello.txt").unwrap().text(), "hello, world\n");
    sidecar.wait_for("cannot be listed now");
    assert_eq!(sidecar.log().matches("cannot be listed now").count(), 1, "{}", sidecar.log());
    let lost = get(home.s3, "/lost/x").unwrap();
    assert_eq!(lost.status, 503, "{}", lost.text());
    assert_eq!(sidecar.stop(), Some(0));
}

#[test]
fn a_wrong_file_is_refused_with_everything_that_is_wrong() {
    let home = Home::new();
    home.write("warpdrive.yaml", b"mountpoint: /x\nbackends: [{name: a, type: s4}]\n");
    let (code, stdout, stderr) = output(&mut home.command("run", &[]));
    assert_eq!((code, stdout.as_str()), (2, ""));
    let file = home.path("warpdrive.yaml");
    let expected = format!(
        "warpdrive: {}: 2 problems\n  \
         mountpoint: is not a known key\n    fix: write `mount_point`, or remove it\n  \
         backends[0].type: `s4` is not a type of backend that is built\n    \
         fix: types: local, nfs, s3, azureblob, gcs\n",
        file.display()
    );
    assert_eq!(stderr, expected);
}

#[test]
fn what_is_taken_or_missing_is_said_in_a_sentence() {
    let home = Home::new();
    let taken = std::net::TcpListener::bind(("127.0.0.1", home.s3)).unwrap();
    let file = home.path("keys");
    home.configure_with(&format!("credentials_file: {}", file.display()), "", "");
    let (code, _, stderr) = output(&mut home.command("run", &["--no-mount"]));
    assert_eq!(code, 1);
    assert!(!file.exists(), "a key that opens nothing was left");
    assert!(stderr.contains("s3.listen") && stderr.contains("in use"), "{stderr}");
    drop(taken);
    // Somebody's own credentials are neither replaced at the start nor removed at the end.
    let theirs = b"[default]\naws_access_key_id = AKIAMINE\naws_secret_access_key = mine\n";
    home.write("keys", theirs);
    let (code, _, stderr) = output(&mut home.command("run", &["--no-mount"]));
    assert_eq!(code, 1);
    assert!(stderr.contains("s3.credentials_file") && stderr.contains("name a file"), "{stderr}");
    assert_eq!(std::fs::read(&file).unwrap(), theirs);
    std::fs::remove_file(&file).unwrap();
    let missing = home.path("nowhere").display().to_string();
    if can_mount("what_is_taken_or_missing_is_said_in_a_sentence") {
        let (code, _, stderr) = output(&mut home.command("run", &["--mount-point", &missing]));
        assert_eq!(code, 1);
        assert!(stderr.contains("mkdir -p"), "{stderr}");
    }
    let (code, _, stderr) = output(program().args(["run", "-c", &missing]));
    assert_eq!(code, 2);
    assert!(stderr.contains("nowhere"), "{stderr}");
}

#[test]
fn one_cache_directory_has_one_sidecar() {
    let home = Home::new();
    let sidecar = home.run(&["--no-mount"]);
    let other = Home::new();
    let text = std::fs::read_to_string(other.path("warpdrive.yaml")).unwrap();
    let ours = home.path("cache").display().to_string();
    let theirs = other.path("cache").display().to_string();
    other.write("warpdrive.yaml", text.replace(&theirs, &ours).as_bytes());
    let (code, _, stderr) = output(&mut other.command("run", &["--no-mount"]));
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("cache directory"), "{stderr}");
    assert_eq!(sidecar.stop(), Some(0));
}

#[test]
fn notes_on_what_is_not_built_are_said_once() {
    let home = Home::new();
    home.configure("telemetry: {enabled: true, sink: stdout}");
    let sidecar = home.run(&["--no-mount"]);
    assert!(sidecar.log().contains("note      telemetry.enabled: telemetry is not built"));
    assert_eq!(sidecar.stop(), Some(0));
}

#[test]
fn a_directory_of_a_server_that_is_away_is_served_when_it_comes() {
    let home = Home::new();
    let export = home.path("export");
    let backend =
        format!("  - {{name: shared, type: nfs, config: {{path: {}}}}}", export.display());
    home.configure_with("access: anonymous", &backend, "");
    let sidecar = home.run(&["--no-mount"]);
    assert_eq!(get(home.s3, "/data/hello.txt").unwrap().text(), "hello, world\n");
    assert_eq!(get(home.s3, "/shared/x").unwrap().status, 503);
    let health = get(home.admin, "/healthz").unwrap().json();
    assert_eq!(health["status"], "degraded", "{health}");
    std::fs::create_dir(&export).unwrap();
    std::fs::write(export.join("late"), b"here").unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while get(home.s3, "/shared/late").unwrap().status != 200 {
        assert!(Instant::now() < until, "{}", sidecar.log());
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(get(home.s3, "/shared/late").unwrap().text(), "here");
    assert_eq!(get(home.admin, "/healthz").unwrap().json()["status"], "ok");
    assert_eq!(sidecar.stop(), Some(0));
}

#[test]
fn a_directory_that_is_not_there_is_a_mistake() {
    let home = Home::new();
    let gone = home.path("gone").display().to_string();
    let backend = format!("  - {{name: lost, type: local, config: {{path: {gone}}}}}");
    home.configure_with("access: anonymous", &backend, "");
    let (code, _, stderr) = output(&mut home.command("run", &["--no-mount"]));
    assert_eq!(code, 1);
    assert!(stderr.contains(&gone), "{stderr}");
}

#[test]
fn the_service_manager_is_told() {
    let home = Home::new();
    let socket = home.path("notify.sock");
    let listener = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    listener.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    let heard = || {
        let mut buffer = [0u8; 512];
        let count = listener.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    };
    let mut command = home.command("run", &["--no-mount"]);
    command.env("NOTIFY_SOCKET", &socket);
    let process = testkit::Process::spawn("warpdrive", command, &home.path("log")).unwrap();
    assert!(heard().contains("READY=1"));
    assert_eq!(get(home.admin, "/readyz").unwrap().status, 200);
    process.signal(Signal::TERM);
    assert!(heard().contains("STOPPING=1"));
    assert!(process.wait(Duration::from_secs(15)).unwrap().success());
}
