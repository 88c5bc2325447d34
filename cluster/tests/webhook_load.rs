//! The webhook as a process of its own under the load of the design: 200 reviews a second on one core,
//! at p99 of at most 2 ms and 20 MiB.
//!
//! Prints what it measured. The bounds that it asserts are wide, because a test shares its machine and
//! runs an unoptimised program: half as much again of resident pages, most of which are of the program's
//! file and shrink with it. What the process allocates and its processor time are asserted as they are;
//! latency (ten times, in the best of several rounds) only for a program that is named:
//!
//! ```text
//! cargo build --release -p sidecar
//! WARPDRIVE=target/release/warpdrive cargo test -p cluster --test webhook_load -- --nocapture
//! ```

// Tests say what they do in their names; in their helpers a panic is the failure of a test.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used)]

#[path = "webhook/kubernetes.rs"]
mod kubernetes;
#[path = "webhook/support.rs"]
mod support;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};
use support::*;
use testkit::{Process, Skipped};

const RATE: u32 = 200;
/// Of a round.
const SECONDS: u32 = 4;
/// As many as it takes to meet the design's bound, at most this many.
const ROUNDS: usize = 5;
/// An API server keeps up to 25 idle connections.
const CONNECTIONS: usize = 16;
const P99_DESIGN: Duration = Duration::from_millis(2);
const P99_BOUND: Duration = Duration::from_millis(20);
/// A core is busy for 40 % of the time with that.
const PROCESSOR_BOUND_MS: f64 = 2.0;
/// The design's bound, for the program that is shipped.
const RESIDENT_DESIGN_KIB: u64 = 20 * 1024;
/// The same for one of the development profile, whose code is larger by half.
const RESIDENT_BOUND_KIB: u64 = 30 * 1024;
/// What is not of the program's file: this would grow under load.
const ALLOCATED_BOUND_KIB: u64 = 6 * 1024;

/// The program that was built beside this test, or the one that `WARPDRIVE` names.
fn program() -> Result<PathBuf, Skipped> {
    if let Some(path) = std::env::var_os("WARPDRIVE") {
        // Tests run in the folder of their crate.
        let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        return Ok(root.join(path));
    }
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().with_file_name("warpdrive");
    if path.exists() {
        Ok(path)
    } else {
        Err(Skipped::new("warpdrive", "not built: cargo build -p sidecar"))
    }
}

/// Whether somebody measures, with a program and a machine for it.
fn is_named() -> bool {
    std::env::var_os("WARPDRIVE").is_some()
}

struct Served {
    process: Process,
    address: SocketAddr,
    plain: SocketAddr,
}

impl Served {
    fn of_files(authority: &Authority, program: PathBuf) -> Self {
        let mut command = Command::new(program);
        command.arg("webhook").arg("--tls-cert").arg(authority.certificate());
        command.arg("--tls-key").arg(authority.key());
        Self::start(command, &authority.folder.path().join("webhook.log"))
    }

    fn start(mut command: Command, log: &Path) -> Self {
        command.args([
            "--listen",
            "127.0.0.1:0",
            "--metrics",
            "127.0.0.1:0",
            "--shutdown-delay",
            "100ms",
        ]);
        command.args(["--log-format", "json"]);
        let process = Process::spawn("webhook", command, log).unwrap();
        let begun = Instant::now();
        let field = |name: &str| {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            let mut lines = text
                .lines()
                .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
            let found = lines.find_map(|line| Some(line[name].as_str()?.to_owned()));
            found.filter(|_| text.contains("webhook listens"))
        };
        loop {
            if let (Some(listen), Some(metrics)) = (field("listen"), field("metrics")) {
                let plain = metrics.trim_start_matches("http://").trim_end_matches("/metrics");
                let (address, plain) = (listen.parse().unwrap(), plain.parse().unwrap());
                return Self { process, address, plain };
            }
            assert!(begun.elapsed() < LIMIT && process.is_running(), "{}", process.log_tail());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.process.pid().cast_signed()).unwrap()
    }

    /// A line of `/proc/PID/status`, in KiB or plain.
    fn status(&self, name: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap().split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Processor time that it has used, in ticks of 10 ms.
    fn ticks(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.process.pid())).unwrap();
        let fields: Vec<&str> = text.rsplit_once(") ").unwrap().1.split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// Asserts that it is as small as it should be, now and at its largest.
    fn is_small(&self) {
        let bound = if is_named() { RESIDENT_DESIGN_KIB } else { RESIDENT_BOUND_KIB };
        let (peak, allocated) = (self.status("VmHWM"), self.status("RssAnon"));
        assert!(peak <= bound, "{peak} KiB resident\n{}", self.process.log_tail());
        assert!(allocated <= ALLOCATED_BOUND_KIB, "{allocated} KiB allocated");
        // One that serves, and one that looks up names.
        assert!(self.status("Threads") <= 2);
    }

    fn memory(&self) -> String {
        let mib = |name| self.status(name) as f64 / 1024.0;
        format!("{:.1} MiB resident ({:.1} its own)", mib("VmRSS"), mib("RssAnon"))
    }
}

/// How long an API server takes for a new pod: the median, and what one of a hundred exceeds.
async fn admissions(pods: &Api<Pod>, labelled: bool) -> (Duration, Duration) {
    let mut pod = training_pod("admitted");
    let metadata = pod["metadata"].as_object_mut().unwrap();
    metadata.retain(|key, _| key == "name" || (key == "labels" && labelled));
    pod["spec"]["volumes"].as_array_mut().unwrap().pop();
    pod["spec"]["containers"][0]["volumeMounts"].as_array_mut().unwrap().pop();
    let pod: Pod = serde_json::from_value(pod).unwrap();
    let params = PostParams { dry_run: true, ..PostParams::default() };
    let mut took = Vec::new();
    for _ in 0..400 {
        let begun = Instant::now();
        let admitted = pods.create(&params, &pod).await.unwrap();
        took.push(begun.elapsed());
        let containers = admitted.spec.unwrap().init_containers.unwrap_or_default();
        assert_eq!(containers.len(), if labelled { 3 } else { 1 });
    }
    took.sort_unstable();
    (took[200], took[396])
}

/// Reviews at the design's rate; how long each took, sorted.
async fn round(caller: &Caller, address: SocketAddr, body: &bytes::Bytes) -> Vec<Duration> {
    // Each connection sends at its moments, however late the answer before was: what waits counts.
    let begun = Instant::now() + Duration::from_millis(200);
    let senders: Vec<_> = (0..CONNECTIONS as u32)
        .map(|index| {
            let (caller, body) = (caller.clone(), body.clone());
            tokio::spawn(async move {
                let mut sender = caller.open(address).await.unwrap();
                let mut took = Vec::new();
                for turn in (index..RATE * SECONDS).step_by(CONNECTIONS) {
                    let due = begun + turn * Duration::from_secs(1) / RATE;
                    tokio::time::sleep_until(due.into()).await;
                    sender.ready().await.unwrap();
                    // The timer's own lateness (up to 1 ms) is the client's, not the webhook's.
                    let sent = Instant::now().min(due + Duration::from_millis(2));
                    let answer = sender.send_request(post(body.clone())).await.unwrap();
                    let (status, answer) = collected(answer).await;
                    took.push(sent.elapsed());
                    assert!(status == 200 && answer.len() > 1000);
                }
                took
            })
        })
        .collect();
    let mut took = Vec::new();
    for sender in senders {
        took.extend(sender.await.unwrap());
    }
    took.sort_unstable();
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_reviews_a_second_on_one_core() {
    let program = match program() {
        Ok(program) => program,
        Err(skipped) => return skipped.say(),
    };
    let authority = Authority::new();
    let served = Served::of_files(&authority, program);
    let mut core = CpuSet::new();
    core.set(0);
    sched_setaffinity(Some(served.pid()), &core).unwrap();
    until("it is ready", || async { get(served.plain, "/readyz").await.0 == 200 }).await;
    println!("at rest: {}, {} threads", served.memory(), served.status("Threads"));

    let caller = Caller::trusting(&authority.bundle());
    let body: bytes::Bytes = review(&training_pod("resnet")).to_string().into();
    println!(
        "reviews of {} bytes, {RATE} a second over {CONNECTIONS} connections for {SECONDS} s",
        body.len()
    );
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        let ticks = served.ticks();
        let took = round(&caller, served.address, &body).await;
        let at = |per_mille: usize| took[(took.len() - 1) * per_mille / 1000];
        let each = (served.ticks() - ticks) as f64 * 10.0 / took.len() as f64;
        println!(
            "latency: p50 {:.2?}, p99 {:.2?}, p99.9 {:.2?}, most {:.2?}; {each:.2} ms of processor time a review",
            at(500),
            at(990),
            at(999),
            at(1000)
        );
        assert_eq!(took.len() as u32, RATE * SECONDS);
        assert!(each <= PROCESSOR_BOUND_MS, "{each} ms of processor time");
        best = best.min(at(990));
        if best <= P99_DESIGN {
            break;
        }
    }
    println!(
        "under load: {}, peak {:.1} MiB",
        served.memory(),
        served.status("VmHWM") as f64 / 1024.0
    );
    // On a machine that builds at the same time this measures the builds.
    if is_named() {
        assert!(best <= P99_BOUND, "p99 {best:?}");
    }

    // A new connection for each review, as after a restart of the API servers.
    let ticks = served.ticks();
    let begun = Instant::now();
    for _ in 0..200 {
        assert_eq!(caller.send(served.address, body.clone()).await.0, 200);
    }
    let each = (served.ticks() - ticks) as f64 * 10.0 / 200.0;
    println!(
        "each on a connection of its own: {:.2?} a review, {each:.2} ms of processor time",
        begun.elapsed() / 200
    );
    println!(
        "in the end: {}, peak {:.1} MiB",
        served.memory(),
        served.status("VmHWM") as f64 / 1024.0
    );
    served.is_small();
    served.process.signal(rustix::process::Signal::TERM);
    assert_eq!(served.process.wait(LIMIT).unwrap().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_own_authority_takes_no_more_than_that() {
    let found = tokio::task::spawn_blocking(kubernetes::cluster).await.unwrap();
    let (program, cluster) = match (program(), found) {
        (Ok(program), Ok(cluster)) => (program, cluster),
        (Err(skipped), _) => return skipped.say(),
        (_, Err(skipped)) => return skipped.report(),
    };
    let folder = tempfile::tempdir().unwrap();
    let api: Api<MutatingWebhookConfiguration> = Api::all(cluster.client("admin").await);
    let mut command = Command::new(program);
    command.args(["webhook", "--secret", "default/load", "--webhook-configuration", "load"]);
    // All of it happens while it is measured: renewals, a new authority, writes.
    command.args(["--dns-name", "127.0.0.1", "--resync", "500ms", "--settle", "1s"]);
    command.args(["--certificate-lifetime", "3s", "--ca-lifetime", "12s"]);
    command.arg("--kubeconfig").arg(cluster.kubeconfig("admin"));
    let served = Served::start(command, &folder.path().join("webhook.log"));
    let configuration = serde_json::json!({"metadata": {"name": "load"}, "webhooks": [{
        "name": "load.inject.warpdrive.io",
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "clientConfig": {"url": format!("https://{}/mutate", served.address)},
        "objectSelector": {"matchLabels": {"warpdrive.io/inject": "true"}},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
    }]});
    let configuration = serde_json::from_value(configuration).unwrap();
    api.create(&PostParams::default(), &configuration).await.unwrap();
    until("it is ready", || async { get(served.plain, "/readyz").await.0 == 200 }).await;
    println!("at rest: {}, {} threads", served.memory(), served.status("Threads"));
    for _ in 0..4 {
        let configuration = api.get("load").await.unwrap();
        let bundle = configuration.webhooks.unwrap()[0].client_config.ca_bundle.clone().unwrap().0;
        let caller = Caller::trusting(&String::from_utf8(bundle).unwrap());
        let body: bytes::Bytes = review(&training_pod("resnet")).to_string().into();
        round(&caller, served.address, &body).await;
    }
    let peak = served.status("VmHWM");
    println!(
        "under load: {}, {} threads, peak {peak} KiB",
        served.memory(),
        served.status("Threads")
    );
    let pods: Api<Pod> = Api::namespaced(cluster.client("admin").await, "default");
    let (without, with) = (admissions(&pods, false).await, admissions(&pods, true).await);
    println!(
        "an API server admits a pod in {:.2?} (p99 {:.2?}) without, {:.2?} (p99 {:.2?}) with the webhook",
        without.0, without.1, with.0, with.1
    );
    served.is_small();
}
