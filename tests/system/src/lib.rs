//! Drives the built `warpdrive` as a process, for the tests of what crosses crates.
//!
//! Invariant: a [`Sidecar`] is ready when it is handed out, and is ended, unmounted and removed when
//! it is dropped. Nothing here knows how the program is made; it is reached as a user reaches it.

mod dataset;
pub mod load;
pub mod processes;
mod ways;

pub use dataset::{DataSet, Object};
pub use processes::built;
pub use ways::read_in_every_way;

use bytes::Bytes;
use reqwest::StatusCode;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use testkit::{Process, Running, Skipped};

/// A debug build on a busy machine of two cores is ready in one or two.
const READY_WITHIN: Duration = Duration::from_mins(1);
/// Draining is given five in the configuration of the tests.
const END_WITHIN: Duration = Duration::from_secs(20);

/// The program that `cargo build` made beside this test, or the one that `WARPDRIVE_BIN` names.
///
/// # Panics
/// When it was not built.
pub fn program() -> PathBuf {
    std::env::var_os("WARPDRIVE_BIN").map_or_else(|| built("warpdrive"), PathBuf::from)
}

/// Why no mount can be made here; `None` when it can.
pub fn no_mount() -> Option<Skipped> {
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    match device {
        Err(error) => Some(Skipped::new("mount", format!("/dev/fuse: {error}"))),
        Ok(_) if rustix::process::geteuid().is_root() => None,
        Ok(_) if Path::new("/usr/bin/fusermount3").exists() => None,
        Ok(_) => Some(Skipped::new("mount", "neither root nor fusermount3")),
    }
}

/// A folder for a sidecar's configuration, cache and mount point; it outlives restarts.
#[derive(Debug)]
pub struct Home {
    folder: tempfile::TempDir,
    config: Value,
    environment: Vec<(String, String)>,
    mounted: bool,
}

impl Home {
    /// A configuration over `backends`, with S3 open to everyone on loopback, short timeouts and
    /// long lives of what is cached; mounted where a mount can be made. `change` may alter it.
    pub fn new(backends: &[Value], change: impl FnOnce(&mut Value)) -> Home {
        let folder = tempfile::Builder::new()
            .prefix("warpdrive-system-")
            .tempdir()
            .expect("the temporary folder is writable");
        let mount = folder.path().join("mnt");
        std::fs::create_dir(&mount).expect("the folder is new and ours");
        let mounted = no_mount().is_none();
        let mut config = json!({
            "mount_point": mount,
            "fuse": { "enabled": mounted },
            "cache": {
                "path": folder.path().join("cache"),
                "max_size": "1GiB",
                "memory": "64MiB",
                "block_size": "1MiB",
                "stale_ttl": "60s",
                "negative_ttl": "1s",
            },
            "backends": backends,
            "s3": { "listen": format!("127.0.0.1:{}", testkit::free_port()), "access": "anonymous" },
            "admin": { "listen": format!("127.0.0.1:{}", testkit::free_port()) },
            "metrics": { "enabled": false },
            "drain_timeout": "5s",
            "state_dir": folder.path().join("state"),
        });
        change(&mut config);
        let environment = Vec::new();
        Home { folder, config, environment, mounted }
    }

    /// Adds a variable that the configuration refers to.
    #[must_use]
    pub fn with_variable(mut self, name: &str, value: &str) -> Home {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts the program and waits until it is ready.
    ///
    /// # Panics
    /// When it ends or is not ready in a minute; with its log.
    pub async fn start(&self) -> Sidecar<'_> {
        self.start_with(&[]).await
    }

    /// The same with more arguments of `run`.
    pub async fn start_with(&self, arguments: &[&str]) -> Sidecar<'_> {
        let mut command = self.command("run");
        command.args(arguments);
        let sidecar = self.start_command(command);
        sidecar.ready().await;
        sidecar
    }

    /// `warpdrive SUBCOMMAND -c FILE`, to be altered before it is started.
    pub fn command(&self, subcommand: &str) -> Command {
        let path = self.folder.path().join("config.yaml");
        // JSON is YAML.
        std::fs::write(&path, self.config.to_string()).expect("the folder is ours");
        let mut command = Command::new(program());
        command.arg(subcommand).arg("-c").arg(&path).env("HOME", self.folder.path());
        command.env_remove("WARPDRIVE_CONFIG").current_dir(self.folder.path());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts a command that becomes the program, and does not wait.
    pub fn start_command(&self, command: Command) -> Sidecar<'_> {
        let process = Process::spawn("warpdrive", command, &self.folder.path().join("log"))
            .expect("the program can be started");
        let address = |section: &str| {
            format!("http://{}", self.config[section]["listen"].as_str().unwrap_or_default())
        };
        Sidecar {
            home: self,
            process,
            endpoint: address("s3"),
            admin: address("admin"),
            client: reqwest::Client::builder().no_proxy().build().expect("a plain client"),
        }
    }

    /// The configuration, to be altered between two starts.
    pub fn config(&mut self) -> &mut Value {
        &mut self.config
    }

    /// The process that holds this home's mount, where it is one of its own.
    pub fn holder(&self) -> Option<u32> {
        let ours = processes::with_argument(&self.folder.path().to_string_lossy());
        let holds =
            |pid: &u32| processes::arguments(*pid).get(1).is_some_and(|word| word == "mountd");
        ours.into_iter().find(holds)
    }

    /// Where the program mounts.
    pub fn mount_point(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    /// The folder of everything: `cache`, `log`, `mnt`.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// What the program printed last.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        unmount(&self.mount_point());
        // A holder outlives its worker on purpose. The folder's name is this test's alone.
        for pid in processes::with_argument(&self.folder.path().to_string_lossy()) {
            processes::signal(pid, Signal::KILL);
        }
    }
}

/// Detaches a mount that a killed sidecar left behind; nothing when there is none.
fn unmount(mount_point: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let wanted = mount_point.to_string_lossy();
    if mounts.lines().any(|line| line.split(' ').nth(1) == Some(&wanted)) {
        let _ = rustix::mount::unmount(mount_point, rustix::mount::UnmountFlags::DETACH);
    }
}

/// A running `warpdrive run`.
#[derive(Debug)]
pub struct Sidecar<'home> {
    home: &'home Home,
    process: Process,
    endpoint: String,
    admin: String,
    client: reqwest::Client,
}

impl Sidecar<'_> {
    /// The URL of the S3 endpoint.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Waits until the program says that it is ready; how long that took.
    ///
    /// # Panics
    /// When it ends or is not ready in a minute; with its log.
    pub async fn ready(&self) -> Duration {
        let begun = Instant::now();
        while !self.is_ready().await {
            assert!(self.process.is_running(), "ended early\n{}", self.process.log_tail());
            let waited = begun.elapsed();
            assert!(waited < READY_WITHIN, "not ready\n{}", self.process.log_tail());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        begun.elapsed()
    }

    /// Whether the program says that it is ready.
    pub async fn is_ready(&self) -> bool {
        let answer = self.client.get(format!("{}/readyz", self.admin)).send().await;
        answer.is_ok_and(|answer| answer.status() == StatusCode::OK)
    }

    /// The process, to look at or to signal.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The process that serves: the program itself, or the child that it supervises; `None` between
    /// the end of one and the start of the next.
    pub fn worker(&self) -> Option<u32> {
        let program = self.process.pid();
        if !processes::arguments(program).iter().any(|argument| argument == "--supervise") {
            return Some(program);
        }
        let runs = |pid: &u32| processes::arguments(*pid).get(1).is_some_and(|word| word == "run");
        processes::children(program).into_iter().find(runs)
    }

    /// The process that holds the mount, where it is one of its own.
    pub fn holder(&self) -> Option<u32> {
        self.home.holder()
    }

    /// A path of the mount; `None` where no mount could be made.
    pub fn mounted(&self, path: &str) -> Option<PathBuf> {
        self.home.mounted.then(|| self.home.mount_point().join(path))
    }

    /// GET of `bucket/key` with a range such as `bytes=0-9`. A body that breaks off is an error.
    pub async fn get(
        &self,
        path: &str,
        range: Option<&str>,
    ) -> Result<(StatusCode, Bytes), String> {
        let mut request = self.client.get(format!("{}/{path}", self.endpoint));
        if let Some(range) = range {
            request = request.header("range", range);
        }
        let answer = request.send().await.map_err(|error| format!("{error:?}"))?;
        let status = answer.status();
        let body = answer.bytes().await.map_err(|error| format!("{error:?}"))?;
        Ok((status, body))
    }

    /// PUT of `bucket/key`.
    pub async fn put(&self, path: &str, body: impl Into<Bytes>) -> Result<StatusCode, String> {
        let request = self.client.put(format!("{}/{path}", self.endpoint)).body(body.into());
        Ok(request.send().await.map_err(|error| format!("{error:?}"))?.status())
    }

    /// The body of a page of the admin endpoint.
    pub async fn admin(&self, path: &str) -> String {
        let answer = self.client.get(format!("{}{path}", self.admin)).send().await;
        match answer {
            Ok(answer) => answer.text().await.unwrap_or_default(),
            Err(error) => panic!("{path}: {error:?}"),
        }
    }

    /// `/status` of the admin endpoint.
    pub async fn status(&self) -> Value {
        serde_json::from_str(&self.admin("/status").await).expect("the status is JSON")
    }

    /// The process id that `/status` names; `None` while nobody answers.
    pub async fn status_pid(&self) -> Option<u32> {
        let answer = self.client.get(format!("{}/status", self.admin)).send().await.ok()?;
        let status: Value = serde_json::from_str(&answer.text().await.ok()?).ok()?;
        status["pid"].as_u64()?.try_into().ok()
    }

    /// Has the program fetch what lies below a prefix of a bucket, and waits until it says that all
    /// of it is on its disk.
    ///
    /// # Panics
    /// When it is not, after a minute.
    pub async fn warm(&self, bucket: &str, prefix: &str) {
        let body = json!({ "buckets": [bucket], "prefix": prefix }).to_string();
        let asked = self.client.post(format!("{}/warm", self.admin)).body(body).send().await;
        let job = asked.expect("the program runs").text().await.unwrap_or_default();
        let job: Value = serde_json::from_str(&job).unwrap_or_else(|e| panic!("{e}: {job}"));
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            let job = self.admin(&format!("/warm/{}", job["id"])).await;
            let now: Value = serde_json::from_str(&job).unwrap_or_else(|e| panic!("{e}: {job}"));
            match now["state"].as_str() {
                Some("done") => return,
                Some("running") => assert!(Instant::now() < deadline, "still runs: {job}"),
                _ => panic!("{job}"),
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// A series with labels, as the exposition writes it: `name{label="value"}`.
    pub async fn series(&self, name: &str, label: &str) -> f64 {
        let text = self.admin("/metrics").await;
        let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// The sum of a series over all its labels; zero when there is none.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.admin("/metrics").await;
        text.lines()
            .filter(|line| line.split(['{', ' ']).next() == Some(name))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// The most memory that the process has held, in bytes.
    pub fn peak_memory_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid()));
        let status = status.expect("the process runs");
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
        let kib = line.split_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok());
        kib.expect("the kernel tells the peak in KiB") * 1024
    }

    /// SIGTERM; returns the exit code once the process has ended.
    ///
    /// # Panics
    /// When it has not ended after 20 seconds.
    pub fn stop(self) -> Option<i32> {
        self.process.signal(Signal::TERM);
        self.ended()
    }

    /// Waits for the end of a process that was told to end; its exit code.
    ///
    /// # Panics
    /// When it has not ended after 20 seconds.
    pub fn ended(self) -> Option<i32> {
        let status = self.process.wait(END_WITHIN);
        let status = status.unwrap_or_else(|| panic!("still running\n{}", self.process.log_tail()));
        status.code()
    }
}

/// An S3 backend for `origin`, reached at `endpoint` (a proxy, or the origin's own); timeouts are
/// short and retries few, so that a test of a lost origin ends soon.
pub fn s3_backend(name: &str, origin: &Running, bucket: &str, endpoint: &str) -> Value {
    json!({
        "name": name,
        "type": "s3",
        "config": { "endpoint": endpoint, "region": origin.region(), "bucket": bucket },
        "auth": {
            "method": "static",
            "access_key_id": origin.access_key(),
            "secret_access_key": origin.secret_key(),
        },
        // Test keys, made up in this repository.
        "allow_inline_secrets": true,
        "timeouts": { "connect": "1s", "first_byte": "2s", "idle": "2s", "call": "5s" },
        "retry": { "max": 3, "backoff": "20ms", "backoff_max": "200ms" },
        "breaker": { "failures": 1000, "cooldown": "1s" },
    })
}

/// Bytes that are the same at every run and differ between any two offsets that a reader could
/// confuse (a linear congruential generator with the constants of Knuth's MMIX).
pub fn content(bytes: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(2) | 1;
    let mut made = Vec::with_capacity(bytes + 8);
    while made.len() < bytes {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        made.extend_from_slice(&(state >> 16).to_le_bytes()[..6]);
    }
    made.truncate(bytes);
    made.into()
}
