//! A home for a sidecar, the sidecar itself, and a client of one request a connection.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::Process;

/// A debug build on a busy machine of two cores.
const READY_WITHIN: Duration = Duration::from_mins(1);

/// What a debug build on a busy machine needs for a few starts.
pub(crate) const SOON: Duration = Duration::from_mins(1);

/// Looks again and again until there is something; fails after [`SOON`].
pub(crate) fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + SOON;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warpdrive"));
    command.env_remove("WARPDRIVE_ADMIN").env_remove("WARPDRIVE_LOG").env_remove("NOTIFY_SOCKET");
    command
}

/// Runs a command to its end.
pub(crate) fn output(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap_or(-1), text(stdout), text(stderr))
}

/// False, with a printed reason, where nothing can be mounted.
pub(crate) fn can_mount(test: &str) -> bool {
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    match opened {
        Ok(_) if rustix::process::geteuid().is_root() => true,
        Ok(_) if Path::new("/usr/bin/fusermount3").exists() => true,
        Ok(_) => {
            println!("SKIPPED {test}: neither root nor fusermount3");
            false
        }
        Err(error) => {
            println!("SKIPPED {test}: /dev/fuse: {error}");
            false
        }
    }
}

pub(crate) fn is_mounted(path: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let path = path.to_string_lossy();
    mounts.lines().any(|line| line.split(' ').nth(1) == Some(&path))
}

/// A folder with an origin, a cache, a mount point and a configuration.
pub(crate) struct Home {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) s3: u16,
    pub(crate) admin: u16,
}

impl Home {
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("warpdrive-test-").tempdir().unwrap();
        for name in ["origin/sub", "mnt"] {
            std::fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        let home = Self { folder, s3: testkit::free_port(), admin: testkit::free_port() };
        home.write("origin/hello.txt", b"hello, world\n");
        home.write("origin/sub/numbers.bin", &bytes(3_000_000));
        home.configure("");
        home
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    /// Writes the configuration: one local backend `data`, anonymous S3, and `more`.
    pub(crate) fn configure(&self, more: &str) {
        self.configure_with("access: anonymous", "", more);
    }

    /// The same with another `s3` section and more backends.
    pub(crate) fn configure_with(&self, s3: &str, backends: &str, more: &str) {
        let mut text = String::new();
        let at = |name: &str| self.path(name).display().to_string();
        writeln!(text, "mount_point: {}", at("mnt")).unwrap();
        writeln!(text, "cache: {{path: {}, max_size: 256MiB, memory: 64MiB}}", at("cache"))
            .unwrap();
        writeln!(
            text,
            "backends:\n  - {{name: data, type: local, config: {{path: {}}}}}",
            at("origin")
        )
        .unwrap();
        writeln!(text, "{backends}").unwrap();
        writeln!(text, "s3: {{listen: \"127.0.0.1:{}\", {s3}}}", self.s3).unwrap();
        if !more.contains("admin:") {
            writeln!(text, "admin: {{listen: \"127.0.0.1:{}\"}}", self.admin).unwrap();
        }
        if !more.contains("state_dir") {
            writeln!(text, "state_dir: {}", at("state")).unwrap();
        }
        if !more.contains("drain_timeout") {
            writeln!(text, "drain_timeout: 4s").unwrap();
        }
        writeln!(text, "{more}").unwrap();
        std::fs::write(self.path("warpdrive.yaml"), text).unwrap();
    }

    /// `warpdrive COMMAND -c FILE ARGUMENTS`.
    pub(crate) fn command(&self, command: &str, arguments: &[&str]) -> Command {
        let mut program = program();
        program.arg(command).arg("-c").arg(self.path("warpdrive.yaml")).args(arguments);
        program.env("XDG_RUNTIME_DIR", self.folder.path());
        program
    }

    /// Starts `warpdrive run` and waits until it is ready.
    pub(crate) fn run(&self, arguments: &[&str]) -> Running<'_> {
        let log = self.path("log");
        // Appended to by every start; what the last start printed is looked for.
        let _ = std::fs::remove_file(&log);
        let process = Process::spawn("warpdrive", self.command("run", arguments), &log).unwrap();
        let running = Running { home: self, process };
        let until = Instant::now() + READY_WITHIN;
        loop {
            assert!(running.process.is_running(), "{}", running.process.log_tail());
            assert!(Instant::now() < until, "not ready: {}", running.process.log_tail());
            if get(self.admin, "/readyz").is_some_and(|answer| answer.status == 200) {
                return running;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Home {
    /// A test that failed has left a holder, which ends with its mount.
    fn drop(&mut self) {
        let point = self.path("mnt");
        if is_mounted(&point) {
            let _ = rustix::mount::unmount(&point, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// Bytes without a short period.
pub(crate) fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|i| (i * 31 + i / 256 * 7) as u8).collect()
}

pub(crate) struct Running<'a> {
    pub(crate) home: &'a Home,
    pub(crate) process: Process,
}

impl Running<'_> {
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.home.path("log")).unwrap()
    }

    /// Waits for a line of the log.
    pub(crate) fn wait_for(&self, text: &str) {
        let until = Instant::now() + Duration::from_secs(20);
        while !self.log().contains(text) {
            assert!(Instant::now() < until, "no `{text}` in {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// SIGTERM, then the exit code.
    pub(crate) fn stop(&self) -> Option<i32> {
        self.process.signal(rustix::process::Signal::TERM);
        let status = self.process.wait(Duration::from_secs(15));
        status.unwrap_or_else(|| panic!("still runs: {}", self.log())).code()
    }
}

/// An answer of a server.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }
}

/// GET from a port of loopback; `None` where nobody listens.
pub(crate) fn get(port: u16, path: &str) -> Option<Answer> {
    ask(port, "GET", path, &[], b"")
}

pub(crate) fn ask(
    port: u16,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Option<Answer> {
    let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    exchange(stream, &format!("127.0.0.1:{port}"), method, path, headers, body)
}

pub(crate) fn get_unix(socket: &Path, path: &str) -> Option<Answer> {
    let stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    exchange(stream, "localhost", "GET", path, &[], b"")
}

fn exchange(
    mut stream: impl Read + Write,
    host: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Option<Answer> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        write!(head, "host: {host}\r\n").unwrap();
    }
    if !body.is_empty() {
        write!(head, "content-length: {}\r\n", body.len()).unwrap();
    }
    for (name, value) in headers {
        write!(head, "{name}: {value}\r\n").unwrap();
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let mut body = answer[end + 4..].to_vec();
    if head.contains("transfer-encoding: chunked") {
        body = unchunk(&body);
    }
    Some(Answer { status, body })
}

fn unchunk(mut rest: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(line) = rest.windows(2).position(|w| w == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
        if size == 0 {
            break;
        }
        out.extend_from_slice(&rest[line + 2..line + 2 + size]);
        rest = &rest[line + 4 + size..];
    }
    out
}
