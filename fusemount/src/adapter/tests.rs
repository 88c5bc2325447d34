//! Requests as the kernel writes them, to an adapter that a socket stands in front of.

use std::io::{Read, Write};
use std::time::SystemTime;

use fuser::{Config, Session, SessionACL};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use store::testing::MemoryStore;
use store::{Bucket, BucketName, Namespace};

use super::*;
use crate::Metrics;
use crate::config::MountConfig;
use crate::registrar::Unavailable;

/// Opcodes of `linux/fuse.h` that change something, with bodies that are long enough for each.
const MUTATIONS: [(u32, &str); 16] = [
    (4, "setattr"),
    (6, "symlink"),
    (8, "mknod"),
    (9, "mkdir"),
    (10, "unlink"),
    (11, "rmdir"),
    (12, "rename"),
    (13, "link"),
    (14, "open"),
    (16, "write"),
    (21, "setxattr"),
    (24, "removexattr"),
    (35, "create"),
    (43, "fallocate"),
    (45, "rename"),
    (47, "copy_file_range"),
];

/// Opcodes that only read, or end something, or begin the session.
const READING: [u32; 28] = [
    1, 2, 3, 5, 15, 17, 18, 20, 22, 23, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 36, 37, 38, 39, 40,
    42, 44, 46,
];

/// An adapter, and what the kernel would hold.
struct Kernel {
    socket: std::fs::File,
    adapter: Adapter,
    metrics: prometheus::Registry,
    unique: u64,
    runtime: tokio::runtime::Runtime,
}

impl Kernel {
    fn new() -> Self {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
        let bucket = Bucket {
            name: BucketName::new("b").unwrap(),
            store: Arc::new(MemoryStore::new()),
            residency: None,
            read_only: false,
            created: SystemTime::UNIX_EPOCH,
        };
        let name = bucket.name.clone();
        let namespace =
            Namespace::builder().bucket(bucket).unwrap().mount("/b", &name, "").unwrap();
        let registry = prometheus::Registry::new();
        let metrics = Metrics::register(&registry).unwrap();
        let _entered = runtime.enter();
        let adapter = Adapter::new(
            Arc::new(namespace.build()),
            &MountConfig::new(Path::new("/nowhere")),
            metrics,
            runtime.handle().clone(),
            Arc::new(Unavailable::new("a test")),
        );
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        let mut kernel = Self {
            socket: ours.into(),
            adapter: adapter.clone(),
            metrics: registry,
            unique: 1,
            runtime,
        };
        // INIT of protocol 7.31: major, minor, readahead, flags.
        let mut init = Vec::new();
        for word in [7_u32, 31, 1 << 17, 0] {
            init.extend(word.to_ne_bytes());
        }
        kernel.send(26, &init);
        let mut options = Config::default();
        options.n_threads = Some(1);
        let session = Session::from_fd(adapter, theirs, SessionACL::All, options).unwrap();
        std::thread::spawn(move || session.run());
        assert_eq!(kernel.answer(), 0, "INIT");
        kernel
    }

    fn send(&mut self, opcode: u32, body: &[u8]) {
        self.unique += 2;
        let mut request = Vec::new();
        request.extend(u32::try_from(40 + body.len()).unwrap().to_ne_bytes());
        request.extend(opcode.to_ne_bytes());
        request.extend(self.unique.to_ne_bytes());
        request.extend(1_u64.to_ne_bytes());
        request.extend([0; 16]);
        request.extend(body);
        self.socket.write_all(&request).unwrap();
    }

    /// The error of the next answer, which must be that of the last request.
    fn answer(&mut self) -> i32 {
        let mut answer = vec![0; 1 << 16];
        let length = self.socket.read(&mut answer).unwrap();
        assert!(length >= 16);
        assert_eq!(answer[8..16], self.unique.to_ne_bytes());
        i32::from_ne_bytes(answer[4..8].try_into().unwrap())
    }

    fn ask(&mut self, opcode: u32, body: &[u8]) -> i32 {
        self.send(opcode, body);
        self.answer()
    }

    #[allow(clippy::cast_sign_loss)] // Counters go up from 0.
    fn counted(&self, operation: &str, gate: &str) -> u64 {
        let families = self.metrics.gather();
        let family = families.iter().find(|f| f.name() == "warpdrive_fuse_mutations_total");
        let series = family.into_iter().flat_map(prometheus::proto::MetricFamily::get_metric);
        let is = |metric: &&prometheus::proto::Metric| {
            let labels = metric.get_label();
            let has = |name, value| labels.iter().any(|l| l.name() == name && l.value() == value);
            has("operation", operation) && has("gate", gate)
        };
        series.filter(is).map(|metric| metric.get_counter().get_value() as u64).sum()
    }
}

/// A body that each of them can be read from: numbers, then names.
fn body(opcode: u32) -> Vec<u8> {
    let numbers = match opcode {
        4 => 88,
        8 | 35 | 45 => 16,
        9 | 12 | 13 | 14 | 21 => 8,
        16 => 40,
        43 => 32,
        47 => 56,
        _ => 0,
    };
    let mut body = vec![0; numbers];
    if opcode == 14 {
        // O_WRONLY.
        body[0] = 1;
    }
    if opcode == 21 {
        // The length of the value, "two" and a zero.
        body[0] = 4;
    }
    if opcode != 16 {
        body.extend(b"one\0two\0");
    }
    body
}

#[test]
fn every_mutation_passes_the_gate() {
    let mut kernel = Kernel::new();
    let refused = -Errno::ROFS.raw_os_error();
    let rename = |name: &str| if name == "rename" { 2 } else { 1 };
    for (gate, counted) in [("waiting", "closed"), ("open", "open"), ("closed", "closed")] {
        match gate {
            "open" => kernel.adapter.gate().open(),
            "closed" => kernel.adapter.gate().close(),
            _ => {}
        }
        let before: Vec<u64> =
            MUTATIONS.iter().map(|(_, name)| kernel.counted(name, counted)).collect();
        for (opcode, name) in MUTATIONS {
            assert_eq!(kernel.ask(opcode, &body(opcode)), refused, "{name} while {gate}");
        }
        for ((_, name), before) in MUTATIONS.iter().zip(before) {
            assert_eq!(kernel.counted(name, counted), before + rename(name), "{name} while {gate}");
        }
    }
    // Opening to read, and to cut what is read.
    let truncating = [&(libc::O_TRUNC.cast_unsigned()).to_ne_bytes()[..], &[0; 4]].concat();
    let before = kernel.counted("open", "closed");
    assert_eq!(kernel.ask(14, &truncating), refused);
    assert_eq!(kernel.ask(14, &[0; 8]), -Errno::ISDIR.raw_os_error());
    assert_eq!(kernel.counted("open", "closed"), before + 1);
    drop(kernel.runtime);
}

#[test]
fn what_is_not_known_changes_nothing() {
    let mut kernel = Kernel::new();
    kernel.adapter.gate().open();
    let known = |opcode: &u32| {
        READING.contains(opcode) || MUTATIONS.iter().any(|(known, _)| known == opcode)
    };
    for opcode in (1..64).filter(|opcode| !known(opcode)) {
        let answer = kernel.ask(opcode, &[0; 128]);
        assert!(answer == -Errno::NOSYS.raw_os_error(), "{opcode}: {answer}");
    }
    drop(kernel.runtime);
}
