//! A mounted namespace for one test.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fusemount::{Metrics, Mount, MountConfig};
use store::testing::{FaultyStore, MemoryStore};
use store::{Bucket, BucketName, Namespace};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// A namespace with one bucket at `/data`, mounted.
pub(crate) struct Mounted {
    pub(crate) store: MemoryStore,
    pub(crate) faulty: FaultyStore,
    pub(crate) registry: prometheus::Registry,
    pub(crate) runtime: Runtime,
    pub(crate) mount: Option<Mount>,
    pub(crate) root: PathBuf,
    ttl: Duration,
    _dir: TempDir,
}

/// True where mounting is possible; otherwise says why not.
pub(crate) fn can_mount() -> bool {
    let missing = if !Path::new("/dev/fuse").exists() {
        "there is no /dev/fuse"
    } else if !rustix::process::geteuid().is_root() {
        "this is not root"
    } else {
        return true;
    };
    eprintln!("skipped: {missing}");
    false
}

pub(crate) fn bucket(name: &str, store: Arc<dyn store::Store>) -> Bucket {
    Bucket {
        name: BucketName::new(name).unwrap(),
        store,
        residency: None,
        read_only: true,
        created: SystemTime::now(),
    }
}

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

impl Mounted {
    /// Mounts with short times, so that tests of timeouts are short.
    pub(crate) fn new(fill: impl FnOnce(&MemoryStore)) -> Option<Self> {
        Self::with(fill, |_| {})
    }

    pub(crate) fn with(
        fill: impl FnOnce(&MemoryStore),
        change: impl FnOnce(&mut MountConfig),
    ) -> Option<Self> {
        let store = MemoryStore::new();
        fill(&store);
        let faulty = FaultyStore::new(Arc::new(store.clone()));
        let name = BucketName::new("main").unwrap();
        let namespace = Namespace::builder()
            .bucket(bucket("main", Arc::new(faulty.clone())))
            .unwrap()
            .mount("/data", &name, "")
            .unwrap()
            .build();
        Self::of(store, faulty, namespace, change)
    }

    pub(crate) fn of(
        store: MemoryStore,
        faulty: FaultyStore,
        namespace: Namespace,
        change: impl FnOnce(&mut MountConfig),
    ) -> Option<Self> {
        if !can_mount() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("mnt");
        std::fs::create_dir(&root).unwrap();
        let mut config = MountConfig::new(&root);
        config.metadata_ttl = Duration::from_millis(300);
        config.operation_timeout = Duration::from_secs(2);
        change(&mut config);
        let ttl = config.metadata_ttl;
        let registry = prometheus::Registry::new();
        let metrics = Metrics::register(&registry).unwrap();
        let runtime = runtime();
        let mount =
            Mount::open(Arc::new(namespace), config, metrics, runtime.handle().clone()).unwrap();
        Some(Self { store, faulty, registry, runtime, mount: Some(mount), root, ttl, _dir: dir })
    }

    /// A path below `/data`.
    pub(crate) fn path(&self, key: &str) -> PathBuf {
        self.root.join("data").join(key)
    }

    pub(crate) fn read(&self, key: &str) -> Vec<u8> {
        std::fs::read(self.path(key)).unwrap()
    }

    /// Names in a directory, sorted, directories with a slash.
    pub(crate) fn names(&self, directory: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(directory)).unwrap().map(Result::unwrap);
        let mut names: Vec<String> = entries
            .map(|entry| {
                let slash = if entry.file_type().unwrap().is_dir() { "/" } else { "" };
                format!("{}{slash}", entry.file_name().to_str().unwrap())
            })
            .collect();
        names.sort();
        names
    }

    /// Longer than names are believed.
    pub(crate) fn wait_for_ttl(&self) {
        std::thread::sleep(self.ttl + Duration::from_millis(50));
    }

    /// The value of a counter or gauge, summed over the given label values.
    pub(crate) fn metric(&self, name: &str, label: Option<(&str, &str)>) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name).unwrap();
        let wanted = family.get_metric().iter().filter(|metric| {
            label.is_none_or(|(key, value)| {
                metric.get_label().iter().any(|l| l.name() == key && l.value() == value)
            })
        });
        wanted.map(|metric| metric.get_counter().get_value() + metric.get_gauge().get_value()).sum()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(mount) = self.mount.take() {
            // A failed test may have left files open: then it is detached.
            let gone = self.runtime.block_on(mount.unmount(Duration::from_secs(1)));
            if let Err(error) = gone {
                eprintln!("unmounting failed: {error}");
            }
        }
        // Whatever happened: nothing stays mounted.
        drop(Detached(&self.root));
    }
}

/// Runs a program; its output, which must be a success.
pub(crate) fn run(program: &str, args: &[&std::ffi::OsStr]) -> String {
    let output = attempt(program, args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn attempt(program: &str, args: &[&std::ffi::OsStr]) -> Output {
    Command::new(program).args(args).env("LC_ALL", "C").output().unwrap()
}

/// Detaches whatever is mounted at a path when the test ends.
pub(crate) struct Detached<'a>(pub(crate) &'a Path);

impl Drop for Detached<'_> {
    fn drop(&mut self) {
        let flags = rustix::mount::UnmountFlags::DETACH;
        while rustix::mount::unmount(self.0, flags).is_ok() {}
    }
}

/// Bytes that differ everywhere, so that a shifted or repeated piece is seen.
pub(crate) fn pattern(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}
