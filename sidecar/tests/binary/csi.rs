//! The node service as kubelet drives it: gRPC over its sockets, real holders, real mounts.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::process::{Pid, Signal, kill_process};
use testkit::Process;

use crate::support::{Home, Running, can_mount, get, program, until};

/// True where this test can have a node.
fn can_be_node(test: &str) -> bool {
    if !can_mount(test) {
        return false;
    }
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED {test}: the node service needs root");
        return false;
    }
    let probe = Path::new("/sys/fs/cgroup").join(format!("warpdrive-test-{}", std::process::id()));
    let root = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let root = root
        .lines()
        .find(|line| line.contains(" - cgroup"))
        .and_then(|line| line.split(' ').nth(4));
    let probe = root.map_or(probe.clone(), |root| Path::new(root).join(probe.file_name().unwrap()));
    if let Err(error) = fs::create_dir(&probe) {
        println!("SKIPPED {test}: no control group can be made: {error}");
        return false;
    }
    fs::remove_dir(&probe).unwrap();
    true
}

/// What a call came to: `grpc-status`, `grpc-message` (percent-encoded) and the message.
#[derive(Debug, PartialEq)]
struct Answer {
    code: u32,
    words: String,
    body: Vec<u8>,
}

/// One unary gRPC call over a local socket.
fn call(socket: &Path, method: &str, message: &[u8]) -> Option<Answer> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answered = runtime.block_on(async {
        let limit = Duration::from_mins(1);
        tokio::time::timeout(limit, exchange(socket, method, message)).await
    });
    answered.expect("a call that hangs")
}

async fn exchange(socket: &Path, method: &str, message: &[u8]) -> Option<Answer> {
    let stream = TokioIo::new(tokio::net::UnixStream::connect(socket).await.ok()?);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.ok()?;
    tokio::spawn(connection);
    let mut framed = vec![0];
    framed.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    framed.extend(message);
    let request = hyper::Request::post(format!("http://localhost{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from(framed)))
        .unwrap();
    let (head, body) = sender.send_request(request).await.ok()?.into_parts();
    let collected = body.collect().await.ok()?;
    let trailers = collected.trailers().cloned().unwrap_or_default();
    // An error without a message has its status in the head.
    let text = |name: &str| {
        let value = trailers.get(name).or_else(|| head.headers.get(name))?;
        Some(value.to_str().unwrap().to_owned())
    };
    let code = text("grpc-status")?.parse().unwrap();
    let words = text("grpc-message").unwrap_or_default().replace("%20", " ").replace("%60", "`");
    let body = collected.to_bytes();
    let body = body.get(5..).unwrap_or_default().to_vec();
    Some(Answer { code, words, body })
}

/// A field of a message whose value is bytes.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = value.len();
    while length > 127 {
        out.push(length as u8 | 128);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend(value);
    out
}

const OK: u32 = 0;
const INVALID_ARGUMENT: u32 = 3;
const ALREADY_EXISTS: u32 = 6;
const UNIMPLEMENTED: u32 = 12;
const INTERNAL: u32 = 13;

/// A pod as kubelet knows it.
struct Pod {
    uid: String,
    folder: PathBuf,
}

impl Pod {
    fn target(&self, volume: &str) -> PathBuf {
        self.folder.join("volumes/kubernetes.io~csi").join(volume).join("mount")
    }

    fn mount(&self) -> PathBuf {
        self.target("warpdrive-mount")
    }

    fn socket(&self) -> PathBuf {
        self.target("warpdrive-socket")
    }
}

/// A node: kubelet's directory and the node service, in a home with an origin.
struct Node {
    home: Home,
    metrics: u16,
    more: &'static [&'static str],
    service: Process,
}

impl Node {
    /// Workers of tests are root.
    fn start() -> Self {
        Self::start_with(&["--allow-root-worker"])
    }

    fn start_with(more: &'static [&'static str]) -> Self {
        let home = Home::new();
        for folder in ["k/pods", "p"] {
            fs::create_dir_all(home.path(folder)).unwrap();
        }
        let metrics = testkit::free_port();
        let service = Self::service(&home, metrics, more);
        let node = Self { home, metrics, more, service };
        node.wait();
        node
    }

    fn service(home: &Home, metrics: u16, more: &[&str]) -> Process {
        let mut command = program();
        command.args(["csi", "--node-name", "node-1", "--log-level", "debug"]);
        command.arg("--kubelet-dir").arg(home.path("k")).arg("--plugin-dir").arg(home.path("p"));
        command.args(["--patience", "1m", "--metrics", &format!("127.0.0.1:{metrics}")]).args(more);
        Process::spawn("warpdrive csi", command, &home.path("csi.log")).unwrap()
    }

    fn wait(&self) {
        until("the node service does not serve", || {
            assert!(self.service.is_running(), "{}", self.log());
            let probe = call(&self.driver(), "/csi.v1.Identity/Probe", b"")?;
            (probe.code == OK).then_some(())
        });
    }

    fn restart(&mut self) {
        self.service = Self::service(&self.home, self.metrics, self.more);
        self.wait();
    }

    fn kill(&self) {
        kill(self.service.pid());
        self.service.wait(Duration::from_secs(10)).unwrap();
    }

    fn log(&self) -> String {
        fs::read_to_string(self.home.path("csi.log")).unwrap_or_default()
    }

    fn driver(&self) -> PathBuf {
        self.home.path("p/csi.sock")
    }

    /// What kubelet does before it calls.
    fn pod(&self) -> Pod {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let (next, process) = (NEXT.fetch_add(1, Ordering::Relaxed), std::process::id());
        let uid = format!("{process:08x}-0000-4000-8000-{next:012x}");
        let folder = self.home.path("k/pods").join(&uid);
        let pod = Pod { uid, folder };
        for target in [pod.mount(), pod.socket()] {
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::write(target.with_file_name("vol_data.json"), "{}").unwrap();
        }
        pod
    }

    fn publish(&self, pod: &Pod, target: &Path, attributes: &[(&str, &str)]) -> Answer {
        let mut message = field(1, b"csi-0123");
        message.extend(field(4, target.as_os_str().as_encoded_bytes()));
        // VolumeCapability: mount, access mode SINGLE_NODE_WRITER.
        message.extend(field(5, &[0x12, 0, 0x1a, 2, 0x08, 1]));
        let of_kubelet = [
            ("csi.storage.k8s.io/pod.uid", &*pod.uid),
            ("csi.storage.k8s.io/pod.name", "trainer"),
            ("csi.storage.k8s.io/pod.namespace", "ml"),
            ("csi.storage.k8s.io/serviceAccount.name", "default"),
            ("csi.storage.k8s.io/ephemeral", "true"),
        ];
        for (name, value) in of_kubelet.iter().chain(attributes) {
            let pair = [field(1, name.as_bytes()), field(2, value.as_bytes())].concat();
            message.extend(field(8, &pair));
        }
        call(&self.driver(), "/csi.v1.Node/NodePublishVolume", &message).expect("an answer")
    }

    fn publish_mount(&self, pod: &Pod) -> Answer {
        self.publish(pod, &pod.mount(), &[("role", "mount"), ("workerUid", "65534")])
    }

    fn publish_socket(&self, pod: &Pod) -> Answer {
        self.publish(pod, &pod.socket(), &[("role", "socket")])
    }

    fn publish_both(&self, pod: &Pod) {
        for answer in [self.publish_socket(pod), self.publish_mount(pod)] {
            assert_eq!(answer.code, OK, "{answer:?}: {}", self.log());
        }
    }

    fn unpublish(&self, target: &Path) -> Answer {
        let message =
            [field(1, b"csi-0123"), field(2, target.as_os_str().as_encoded_bytes())].concat();
        call(&self.driver(), "/csi.v1.Node/NodeUnpublishVolume", &message).expect("an answer")
    }

    /// The pod's worker, in a home of its own, so that the node can be started again beside it. It
    /// finds the socket through its volume, as it does in a container: at a shorter path, since an
    /// address has 107 bytes.
    fn worker<'a>(pod: &Pod, home: &'a Home) -> Running<'a> {
        let _ = std::os::unix::fs::symlink(pod.socket(), home.path("holder"));
        home.run(&["--holder", home.path("holder/mount.sock").to_str().unwrap()])
    }

    fn record(&self, pod: &Pod) -> Option<serde_json::Value> {
        let text = fs::read(self.home.path("p/records").join(format!("{}.json", pod.uid))).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn holder(&self, pod: &Pod) -> u32 {
        let record = self.record(pod).unwrap();
        u32::try_from(record["mount"]["holder"]["pid"].as_u64().unwrap()).unwrap()
    }

    fn metric(&self, series: &str) -> f64 {
        let answer = get(self.metrics, "/metrics").unwrap();
        let line =
            answer.text().lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {series}")).parse().unwrap()
    }

    /// The objects of the origin, each whole.
    fn assert_origin_is_whole(&self) {
        let hello = fs::read(self.home.path("origin/hello.txt")).unwrap();
        assert_eq!(hello, b"hello, world\n");
        assert_eq!(
            fs::metadata(self.home.path("origin/sub/numbers.bin")).unwrap().len(),
            3_000_000
        );
    }

    /// Takes a pod's volumes away, in this order, and looks that nothing of it is left.
    fn assert_goes(&self, pod: &Pod, targets: [PathBuf; 2]) {
        for target in targets {
            assert_eq!(self.unpublish(&target).code, OK, "{}", self.log());
        }
        self.assert_nothing_left(pod);
    }

    fn assert_nothing_left(&self, pod: &Pod) {
        assert!(!pod.mount().exists(), "{}", self.log());
        assert!(!pod.socket().exists(), "{}", self.log());
        assert_eq!(self.record(pod), None);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&pod.uid), "{mounts}");
        let left: Vec<_> = fs::read_dir(self.home.path("p/pods"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert!(!left.iter().any(|name| *name == *pod.uid), "{left:?}");
        assert!(!groups().contains(&pod.uid), "{}", groups());
        self.assert_origin_is_whole();
    }
}

impl Drop for Node {
    /// A test that failed has left holders and mounts.
    fn drop(&mut self) {
        self.service.stop();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let below = self.home.path("k").display().to_string();
        for target in mounts.lines().filter_map(|line| line.split(' ').nth(4)) {
            if target.starts_with(&below) {
                let _ = unmount(target, UnmountFlags::DETACH | UnmountFlags::FORCE);
            }
        }
    }
}

/// The names of all control groups of holders.
fn groups() -> String {
    let mut names = String::new();
    let roots = fs::read_to_string("/proc/self/mountinfo").unwrap();
    for root in roots.lines().filter(|line| line.contains(" - cgroup")) {
        let folder = Path::new(root.split(' ').nth(4).unwrap()).join("warpdrive-holders");
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            names.push_str(entry.file_name().to_str().unwrap());
            names.push('\n');
        }
    }
    names
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::KILL).unwrap();
}

fn is_running(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.trim().is_empty() && !rest.contains(" Z "))
}

fn hello(folder: &Path) -> std::io::Result<Vec<u8>> {
    fs::read(folder.join("data/hello.txt"))
}

#[test]
fn kubelet_is_answered() {
    if !can_be_node("kubelet_is_answered") {
        return;
    }
    let node = Node::start();
    let registration = node.home.path("k/plugins_registry/csi.warpdrive.io-reg.sock");
    let info = call(&registration, "/pluginregistration.Registration/GetInfo", b"").unwrap();
    let endpoint = node.home.path("k/plugins/csi.warpdrive.io/csi.sock");
    let wanted = [
        field(1, b"CSIPlugin"),
        field(2, b"csi.warpdrive.io"),
        field(3, endpoint.as_os_str().as_encoded_bytes()),
        field(4, b"1.0.0"),
    ];
    assert_eq!((info.code, info.body), (OK, wanted.concat()));
    assert!(node.metric("warpdrive_csi_registered") < 0.5);
    let status = |path: &str| get(node.metrics, path).map(|answer| answer.status);
    assert_eq!((status("/readyz"), status("/livez")), (Some(503), Some(200)));
    let told = "/pluginregistration.Registration/NotifyRegistrationStatus";
    assert_eq!(call(&registration, told, &[0x08, 1]).unwrap().code, OK);
    assert!(node.metric("warpdrive_csi_registered") > 0.5);
    until("it is ready", || (status("/readyz") == Some(200)).then_some(()));

    let driver = node.driver();
    let info = call(&driver, "/csi.v1.Identity/GetPluginInfo", b"").unwrap();
    assert!(info.body.starts_with(&field(1, b"csi.warpdrive.io")), "{info:?}");
    let info = call(&driver, "/csi.v1.Node/NodeGetInfo", b"").unwrap();
    assert_eq!(info.body, field(1, b"node-1"));
    for method in ["/csi.v1.Identity/GetPluginCapabilities", "/csi.v1.Node/NodeGetCapabilities"] {
        assert_eq!(call(&driver, method, b"").unwrap().body, b"");
    }
    let others = ["/csi.v1.Node/NodeStageVolume", "/csi.v1.Controller/CreateVolume", "/x", "/"];
    for method in others {
        assert_eq!(call(&driver, method, b"").unwrap().code, UNIMPLEMENTED, "{method}");
    }
    // Each socket serves its own.
    assert_eq!(call(&registration, "/csi.v1.Identity/Probe", b"").unwrap().code, UNIMPLEMENTED);
    // No message at all.
    assert_eq!(
        call(&driver, "/csi.v1.Node/NodePublishVolume", b"").unwrap().code,
        INVALID_ARGUMENT
    );
    assert_ne!(call(&driver, "/csi.v1.Node/NodePublishVolume", &[0xff; 9]).unwrap().code, OK);
    for socket in [&driver, &registration] {
        assert_eq!(fs::metadata(socket).unwrap().permissions().mode() & 0o777, 0o600);
    }

    // One that is removed comes back; at the end they go.
    fs::remove_file(&registration).unwrap();
    until("the socket is not made again", || {
        call(&registration, "/pluginregistration.Registration/GetInfo", b"").map(drop)
    });
    node.service.signal(Signal::TERM);
    let ended =
        node.service.wait(Duration::from_secs(15)).unwrap_or_else(|| panic!("{}", node.log()));
    assert!(ended.success());
    assert!(!driver.exists() && !registration.exists());
}

#[test]
fn a_wrong_volume_is_refused_and_nothing_is_made() {
    if !can_be_node("a_wrong_volume_is_refused_and_nothing_is_made") {
        return;
    }
    let node = Node::start_with(&[]);
    let pod = node.pod();
    let (target, etc) = (pod.mount(), PathBuf::from("/etc"));
    let says = |target: &Path, attributes: &[(&str, &str)], words: &str| {
        let answer = node.publish(&pod, target, attributes);
        assert_eq!(answer.code, INVALID_ARGUMENT, "{answer:?}");
        assert!(answer.words.contains(words), "{answer:?}");
    };
    says(&target, &[("role", "mount"), ("bucket", "b")], "bucket");
    says(&target, &[("role", "mount"), ("workerUid", "0")], "--allow-root-worker");
    says(&target, &[("role", "mount"), ("csi.storage.k8s.io/ephemeral", "false")], "inline");
    says(&etc, &[("role", "mount")], "--kubelet-dir");
    says(&node.home.path("k/pods"), &[("role", "mount")], "--kubelet-dir");
    assert_eq!(node.unpublish(&etc).code, INVALID_ARGUMENT);
    node.assert_nothing_left(&pod);
    let refused = "warpdrive_csi_calls_total{call=\"publish\",outcome=\"refused\"}";
    assert!((node.metric(refused) - 5.0).abs() < 0.1);

    // What is no directory of ours is left alone.
    fs::create_dir(&target).unwrap();
    fs::write(target.join("precious"), "x").unwrap();
    assert_eq!(node.unpublish(&target).code, INTERNAL);
    assert_eq!(fs::read(target.join("precious")).unwrap(), b"x");
    fs::remove_file(target.join("precious")).unwrap();
    mount_bind(node.home.path("origin"), &target).unwrap();
    assert_eq!(node.unpublish(&target).code, INTERNAL);
    assert_eq!(node.publish_mount(&pod).code, INTERNAL);
    assert_eq!(fs::read_dir(&target).unwrap().count(), 2);
    unmount(&target, UnmountFlags::empty()).unwrap();
    assert_eq!(node.unpublish(&target).code, OK);
    node.assert_nothing_left(&pod);
}

#[test]
fn a_pod_has_its_mount_in_either_order_and_again() {
    if !can_be_node("a_pod_has_its_mount_in_either_order_and_again") {
        return;
    }
    let node = Node::start();
    for socket_first in [true, false] {
        let pod = node.pod();
        let mut calls: [fn(&Node, &Pod) -> Answer; 2] = [Node::publish_socket, Node::publish_mount];
        if !socket_first {
            calls.reverse();
        }
        for publish in calls.iter().chain(&calls) {
            let answer = publish(&node, &pod);
            assert_eq!(answer.code, OK, "{answer:?}: {}", node.log());
        }
        let other = node.publish(&pod, &pod.mount(), &[("role", "mount"), ("workerUid", "7")]);
        assert_eq!(other.code, ALREADY_EXISTS, "{other:?}");
        let second = node.publish(&pod, &pod.target("second"), &[("role", "mount")]);
        assert_eq!(second.code, INVALID_ARGUMENT, "{second:?}");

        let holder = node.holder(&pod);
        // Nothing of the service's own control groups.
        let groups = fs::read_to_string(format!("/proc/{holder}/cgroup")).unwrap();
        assert!(groups.lines().all(|line| line.contains("/warpdrive-holders/")), "{groups}");
        // No network, no session but its own.
        let own = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        let its = |kind: &str| fs::read_link(format!("/proc/{holder}/ns/{kind}")).unwrap();
        assert_ne!(own("net"), its("net"));
        assert_eq!(own("mnt"), its("mnt"));

        // SYS_ADMIN, KILL, DAC_OVERRIDE, CHOWN.
        let status = fs::read_to_string(format!("/proc/{holder}/status")).unwrap();
        assert!(status.contains("CapEff:\t0000000000200023\n"), "{status}");

        // The socket's folder cannot be written through the pod's volume.
        let written = fs::write(pod.socket().join("x"), "x").unwrap_err();
        assert_eq!(Errno::from_io_error(&written), Some(Errno::ROFS));
        let home = Home::new();
        let worker = Node::worker(&pod, &home);
        assert_eq!(hello(&pod.mount()).unwrap(), b"hello, world\n");
        assert_eq!(worker.stop(), Some(0));
        drop(worker);

        let mut targets = [pod.mount(), pod.socket()];
        if socket_first {
            targets.reverse();
        }
        for target in targets.iter().chain(&targets) {
            let answer = node.unpublish(target);
            assert_eq!(answer.code, OK, "{answer:?}: {}", node.log());
        }
        assert!(!is_running(holder));
        node.assert_nothing_left(&pod);
    }
    until("holders are counted", || (node.metric("warpdrive_csi_holders") < 0.5).then_some(()));
}

#[test]
fn a_mount_outlives_the_service() {
    if !can_be_node("a_mount_outlives_the_service") {
        return;
    }
    let mut node = Node::start();
    let pod = node.pod();
    node.publish_both(&pod);
    let holder = node.holder(&pod);
    let home = Home::new();
    let worker = Node::worker(&pod, &home);
    let file = fs::File::open(pod.mount().join("data/sub/numbers.bin")).unwrap();
    for killed in [true, false] {
        if killed {
            node.kill();
        } else {
            node.service.signal(Signal::TERM);
            assert!(node.service.wait(Duration::from_secs(15)).unwrap().success());
        }
        assert!(is_running(holder), "{}", node.log());
        assert_eq!(hello(&pod.mount()).unwrap(), b"hello, world\n");
        node.restart();
        assert_eq!(hello(&pod.mount()).unwrap(), b"hello, world\n");
        // Known to the successor: nothing new is started.
        node.publish_both(&pod);
        assert_eq!(node.holder(&pod), holder);
    }
    let mut piece = [0; 16];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut piece, 2_000_000).unwrap();
    drop(file);
    assert_eq!(worker.stop(), Some(0));
    for target in [pod.mount(), pod.socket()] {
        assert_eq!(node.unpublish(&target).code, OK, "{}", node.log());
    }
    assert!(!is_running(holder));
    node.assert_nothing_left(&pod);
}

#[test]
fn a_holder_that_dies_is_told_and_the_next_containers_have_a_mount() {
    if !can_be_node("a_holder_that_dies_is_told_and_the_next_containers_have_a_mount") {
        return;
    }
    let node = Node::start();
    let pod = node.pod();
    node.publish_both(&pod);
    let home = Home::new();
    let worker = Node::worker(&pod, &home);
    // As a container has the volume.
    mount_bind(pod.mount(), home.path("mnt")).unwrap();
    assert_eq!(hello(&home.path("mnt")).unwrap(), b"hello, world\n");
    let first = node.holder(&pod);
    kill(first);
    until("its end is noticed", || {
        (node.metric("warpdrive_csi_holder_deaths_total") > 0.5).then_some(())
    });
    assert!(node.log().contains("ml/trainer"), "{}", node.log());
    // Who has it keeps it, and fails at once.
    let error = fs::read_dir(home.path("mnt")).unwrap_err();
    assert_eq!(Errno::from_io_error(&error), Some(Errno::NOTCONN));
    // Who starts now has a new one, with the same worker.
    until("it is mounted again", || {
        hello(&pod.mount()).ok().filter(|text| text == b"hello, world\n")
    });
    assert_ne!(node.holder(&pod), first);
    assert_eq!(node.publish_mount(&pod).code, OK, "{}", node.log());
    unmount(home.path("mnt"), UnmountFlags::DETACH).unwrap();
    drop(worker);
    kill(node.holder(&pod));
    node.assert_goes(&pod, [pod.socket(), pod.mount()]);
}

#[test]
fn what_pods_left_while_the_service_was_down_goes() {
    if !can_be_node("what_pods_left_while_the_service_was_down_goes") {
        return;
    }
    let mut node = Node::start();
    let (gone, stays, lost) = (node.pod(), node.pod(), node.pod());
    for pod in [&gone, &stays, &lost] {
        node.publish_both(pod);
    }
    let holders = [&gone, &stays, &lost].map(|pod| node.holder(pod));
    node.kill();
    // Somebody has cleaned up after one pod by hand.
    for target in [gone.mount(), gone.socket()] {
        unmount(&target, UnmountFlags::DETACH).unwrap();
        fs::remove_dir(&target).unwrap();
    }
    fs::remove_dir_all(&gone.folder).unwrap();
    // Of another the record is lost.
    fs::remove_file(node.home.path("p/records").join(format!("{}.json", lost.uid))).unwrap();
    node.restart();
    until("its holder goes", || (!is_running(holders[0])).then_some(()));
    until("its traces go", || (!groups().contains(&gone.uid)).then_some(()));
    assert!(is_running(holders[1]), "{}", node.log());
    for target in [lost.mount(), lost.socket(), stays.socket(), stays.mount()] {
        let answer = node.unpublish(&target);
        assert_eq!(answer.code, OK, "{answer:?}: {}", node.log());
    }
    until("the holder that no record names goes", || (!is_running(holders[2])).then_some(()));
    node.assert_nothing_left(&gone);
    node.assert_nothing_left(&stays);
}

#[test]
fn a_record_of_another_release_ends_no_mount() {
    if !can_be_node("a_record_of_another_release_ends_no_mount") {
        return;
    }
    let mut node = Node::start();
    let pod = node.pod();
    node.publish_both(&pod);
    let holder = node.holder(&pod);
    let home = Home::new();
    let worker = Node::worker(&pod, &home);
    node.kill();
    let path = node.home.path("p/records").join(format!("{}.json", pod.uid));
    let mut record = node.record(&pod).unwrap();
    let mount = record["mount"].take();
    record["mounts"] = serde_json::json!([mount]);
    record["mount"] = serde_json::json!("see mounts");
    fs::write(&path, record.to_string()).unwrap();
    node.restart();
    // The watch has looked, and what no record names would be gone.
    until("it is published", || (node.metric("warpdrive_csi_holders") > 0.5).then_some(()));
    std::thread::sleep(Duration::from_secs(3));
    assert!(is_running(holder), "{}", node.log());
    assert_eq!(hello(&pod.mount()).unwrap(), b"hello, world\n");
    node.publish_both(&pod);
    assert_eq!(node.holder(&pod), holder);
    assert_eq!(worker.stop(), Some(0));
    node.assert_goes(&pod, [pod.mount(), pod.socket()]);
}

#[test]
fn what_another_kubelet_directory_has_is_left_alone() {
    if !can_be_node("what_another_kubelet_directory_has_is_left_alone") {
        return;
    }
    let mut node = Node::start();
    let pod = node.pod();
    node.publish_both(&pod);
    let holder = node.holder(&pod);
    node.kill();
    // As if the pod's folder were somewhere that this service cannot see.
    let path = node.home.path("p/records").join(format!("{}.json", pod.uid));
    let before = fs::read_to_string(&path).unwrap();
    let (from, to) = (node.home.path("k/pods"), node.home.path("elsewhere/pods"));
    let moved = before.replace(from.to_str().unwrap(), to.to_str().unwrap());
    assert_ne!(before, moved);
    fs::write(&path, &moved).unwrap();
    node.restart();
    until("it is told", || node.log().contains("not in --kubelet-dir").then_some(()));
    std::thread::sleep(Duration::from_secs(3));
    assert!(is_running(holder), "{}", node.log());
    assert_eq!(fs::read_to_string(&path).unwrap(), moved);
    node.kill();
    fs::write(&path, before).unwrap();
    node.restart();
    node.assert_goes(&pod, [pod.mount(), pod.socket()]);
}

#[test]
fn root_is_no_worker_where_the_node_does_not_say_so() {
    if !can_be_node("root_is_no_worker_where_the_node_does_not_say_so") {
        return;
    }
    let node = Node::start_with(&[]);
    let pod = node.pod();
    node.publish_both(&pod);
    let home = Home::new();
    std::os::unix::fs::symlink(pod.socket(), home.path("holder")).unwrap();
    let socket = home.path("holder/mount.sock");
    let worker = home.command("run", &["--holder", socket.to_str().unwrap()]);
    let worker = Process::spawn("warpdrive", worker, &home.path("refused.log")).unwrap();
    let ended = worker.wait(Duration::from_mins(1)).expect("it is refused");
    let asked = (ended.success(), fs::read_to_string(home.path("refused.log")).unwrap());
    assert!(!asked.0 && asked.1.contains("may not be a worker"), "{asked:?}");
    node.assert_goes(&pod, [pod.mount(), pod.socket()]);
}

/// Unpublishing never deletes through a mount, whoever is alive or dead behind it.
#[test]
fn no_unpublish_deletes_at_the_origin() {
    if !can_be_node("no_unpublish_deletes_at_the_origin") {
        return;
    }
    let mut node = Node::start();
    let states: [fn(&mut Node, &Pod, &Running<'_>); 5] = [
        |_, _, _| {},
        |_, _, worker| kill(worker.process.pid()),
        |node, pod, _| kill(node.holder(pod)),
        |node, _, _| {
            node.kill();
            node.restart();
        },
        |node, pod, _| {
            node.kill();
            fs::remove_file(node.home.path("p/records").join(format!("{}.json", pod.uid))).unwrap();
            node.restart();
        },
    ];
    for (number, state) in states.into_iter().enumerate() {
        let pod = node.pod();
        node.publish_both(&pod);
        let home = Home::new();
        let worker = Node::worker(&pod, &home);
        assert_eq!(hello(&pod.mount()).unwrap(), b"hello, world\n");
        state(&mut node, &pod, &worker);
        for target in [pod.mount(), pod.socket()] {
            let answer = node.unpublish(&target);
            assert_eq!(answer.code, OK, "state {number}: {answer:?}: {}", node.log());
            // kubelet removes what is left of the volume: a file, and a directory that has to be empty.
            fs::remove_file(target.with_file_name("vol_data.json")).unwrap();
            fs::remove_dir(target.parent().unwrap()).unwrap();
        }
        assert_eq!(fs::read(home.path("origin/hello.txt")).unwrap(), b"hello, world\n");
        assert_eq!(fs::metadata(home.path("origin/sub/numbers.bin")).unwrap().len(), 3_000_000);
        drop(worker);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&pod.uid), "state {number}: {mounts}");
    }
}

#[test]
fn dead_mounts_of_ended_pods_are_swept() {
    if !can_be_node("dead_mounts_of_ended_pods_are_swept") {
        return;
    }
    let node = Node::start();
    let pod = node.pod();
    let folder = pod.folder.join("volumes/kubernetes.io~empty-dir/warpdrive-mount/data");
    fs::create_dir_all(&folder).unwrap();
    let mut mountd = program();
    mountd.arg("mountd").arg("--mount-point").arg(&folder);
    mountd.arg("--socket").arg(node.home.path("mountd.sock"));
    let mountd = Process::spawn("mountd", mountd, &node.home.path("mountd.log")).unwrap();
    let is_mounted = || {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        table.lines().any(|line| line.split(' ').nth(4) == folder.to_str())
    };
    until("it is mounted", || is_mounted().then_some(()));

    // Groups as kubelet makes them: of a pod that goes on, and of this one.
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let root = table.lines().find(|line| line.contains(" - cgroup ") && line.ends_with(",pids"));
    let root = root.or_else(|| table.lines().find(|line| line.contains(" - cgroup2 ")));
    let kubepods = Path::new(root.unwrap().split(' ').nth(4).unwrap())
        .join(format!("kubepods-{}", std::process::id()));
    let group = |uid: &str| {
        let group = kubepods.join(format!("pod{uid}"));
        fs::create_dir_all(&group).unwrap();
        let mut sleep = std::process::Command::new("sleep");
        let sleep = Process::spawn(
            "sleep",
            {
                sleep.arg("600");
                sleep
            },
            &node.home.path("sleep.log"),
        )
        .unwrap();
        fs::write(group.join("cgroup.procs"), sleep.pid().to_string()).unwrap();
        (group, sleep)
    };
    let (other, own) = (group("another"), group(&pod.uid));
    kill(mountd.pid());
    mountd.wait(Duration::from_secs(10)).unwrap();
    std::thread::sleep(Duration::from_secs(9));
    assert!(is_mounted(), "a pod that runs keeps its dead mount: {}", node.log());
    own.1.kill();
    until("it is swept", || (!is_mounted()).then_some(()));
    let swept = || node.metric("warpdrive_csi_swept_mounts_total");
    until("it is counted", || ((swept() - 1.0).abs() < 0.1).then_some(()));
    // What kubelet could not do before.
    fs::remove_dir_all(&pod.folder).unwrap();
    other.1.kill();
    until("its groups go", || fs::remove_dir(&own.0).ok());
    until("its groups go", || fs::remove_dir(&other.0).ok());
    fs::remove_dir(&kubepods).unwrap();
}

#[test]
fn a_second_service_waits_for_the_first() {
    if !can_be_node("a_second_service_waits_for_the_first") {
        return;
    }
    let mut node = Node::start();
    let pod = node.pod();
    node.publish_both(&pod);
    let second = Node::service(&node.home, testkit::free_port(), node.more);
    until("it waits", || node.log().contains("another node service runs").then_some(()));
    assert_eq!(node.publish_mount(&pod).code, OK);
    node.service.signal(Signal::TERM);
    assert!(node.service.wait(Duration::from_secs(15)).unwrap().success());
    node.service = second;
    node.wait();
    node.assert_goes(&pod, [pod.mount(), pod.socket()]);
}
