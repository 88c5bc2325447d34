//! Workers that die at any moment, and a kernel that goes on with the next one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use store::{CopyFate, ETag, LocalCopy};

use super::*;
use crate::backing::Mode;
use crate::registrar::Registrar;

/// A holder: what it has registered survives a worker.
#[derive(Debug, Default)]
struct Holder {
    registered: Mutex<(u32, HashMap<u64, u32>)>,
    /// A worker has served.
    begun: AtomicBool,
    /// It does not answer.
    stalled: AtomicBool,
    /// How often it was asked.
    calls: AtomicU32,
}

impl Registrar for Holder {
    fn register(&self, node: u64, _: std::os::fd::BorrowedFd<'_>) -> std::io::Result<u32> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if self.stalled.load(Ordering::Relaxed) {
            return Err(Errno::TIMEDOUT.into());
        }
        let mut registered = self.registered.lock();
        if let Some(id) = registered.1.get(&node) {
            return Ok(*id);
        }
        registered.0 += 1;
        let id = registered.0;
        registered.1.insert(node, id);
        Ok(id)
    }

    fn release(&self, backing: u32) -> std::io::Result<()> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if self.stalled.load(Ordering::Relaxed) {
            return Err(Errno::TIMEDOUT.into());
        }
        self.registered.lock().1.retain(|_, id| *id != backing);
        Ok(())
    }

    fn inherited(&self) -> Vec<(u64, u32)> {
        self.registered.lock().1.iter().map(|(node, id)| (*node, *id)).collect()
    }

    fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    fn unavailable(&self) -> Option<&str> {
        None
    }
}

/// A cache of whole files that does what it is told.
#[derive(Debug, Default)]
struct Copies(Mutex<HashMap<String, Arc<CopyFate>>>);

#[async_trait]
impl Residency for Copies {
    async fn residency(&self, _: &ObjectKey, _: &ETag, size: u64) -> Resident {
        Resident { bytes: 0, of: size }
    }

    async fn local_copy(
        &self,
        key: &ObjectKey,
        _: &ETag,
        _: u64,
    ) -> std::result::Result<LocalCopy, NoCopy> {
        let fate = self.0.lock().get(key.as_str()).cloned().ok_or(NoCopy::Incomplete)?;
        let file = Arc::new(std::fs::File::open("/dev/null").unwrap());
        Ok(LocalCopy { file, fate })
    }
}

/// One inode of the kernel.
#[derive(Debug, Default)]
struct Inode {
    lookups: u64,
    size: u64,
    directory: bool,
    opens: Vec<Mode>,
}

struct World {
    store: MemoryStore,
    namespace: Arc<Namespace>,
    copies: Arc<Copies>,
    holder: Arc<Holder>,
    dir: tempfile::TempDir,
    fs: FileSystem,
    kernel: HashMap<NodeId, Inode>,
    /// Numbers of requests.
    unique: u64,
    /// True once a forget was lost with a worker, so that nodes may be held for too long.
    lost: bool,
}

/// When the worker dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    Never,
    /// With the request done and not answered.
    Unanswered,
    /// The next one as well.
    Twice,
}

fn options() -> Options {
    Options { metadata_ttl: LONG, patience: Duration::from_secs(1), page_entries: 3 }
}

impl World {
    fn new() -> Self {
        let store = MemoryStore::new();
        let copies = Arc::new(Copies::default());
        let mut bucket = bucket("main", Arc::new(store.clone()));
        bucket.residency = Some(copies.clone());
        let namespace = Namespace::builder()
            .bucket(bucket)
            .unwrap()
            .mount("/data", &BucketName::new("main").unwrap(), "")
            .unwrap()
            .build();
        let namespace = Arc::new(namespace);
        let holder = Arc::new(Holder::default());
        let dir = tempfile::tempdir().unwrap();
        let fs = worker(&namespace, &holder, dir.path());
        let kernel = HashMap::new();
        Self { store, namespace, copies, holder, dir, fs, kernel, unique: 0, lost: false }
    }

    /// The worker dies, and another takes its place.
    fn kill(&mut self) {
        let next = tempfile::tempdir().unwrap();
        let left = std::fs::read_dir(self.dir.path()).unwrap().map(std::result::Result::unwrap);
        for file in left {
            std::fs::copy(file.path(), next.path().join(file.file_name())).unwrap();
        }
        self.dir = next;
        self.fs = worker(&self.namespace, &self.holder, self.dir.path());
    }

    fn request(&mut self) -> Unique {
        self.unique += 2;
        Unique::new(self.unique)
    }

    /// Does something until a worker lives to answer it.
    async fn until_answered<T>(
        &mut self,
        death: Death,
        work: impl AsyncFn(&FileSystem, Unique) -> T,
    ) -> T {
        let mut unique = self.request();
        let deaths = [Death::Never, Death::Unanswered, Death::Twice];
        for _ in 0..deaths.iter().position(|d| *d == death).unwrap() {
            work(&self.fs, unique).await;
            self.kill();
            unique = Unique::new(unique.number() | 1 << 63);
        }
        work(&self.fs, unique).await
    }

    async fn lookup(&mut self, parent: NodeId, name: &str, death: Death) -> Option<NodeId> {
        let name = OsStr::new(name);
        let found =
            self.until_answered(death, async |fs, unique| fs.lookup(parent, name, unique).await);
        let found = found.await.ok()?;
        self.learn(found);
        Some(found.id)
    }

    fn learn(&mut self, attributes: Attributes) {
        let inode = self.kernel.entry(attributes.id).or_default();
        inode.lookups += 1;
        inode.size = attributes.size;
        inode.directory = attributes.directory;
    }

    /// Reads a directory with attributes, in pieces, each of which may be the last of a worker.
    async fn list(&mut self, id: NodeId, step: usize, deaths: &[Death]) -> Vec<String> {
        let handle = self.fs.open_directory(id).unwrap();
        let (mut names, mut offset, mut turn) = (Vec::new(), 0, 0);
        loop {
            let death = deaths[turn % deaths.len()];
            turn += 1;
            let entries = self.until_answered(death, async |fs, unique| {
                let (directory, entries) = fs.entries(id, handle, offset).await.unwrap();
                let mut given = Vec::new();
                for entry in entries {
                    let attributes = (!entry.special)
                        .then(|| fs.remember(&directory, &entry.name, &entry.kind, unique));
                    if given.len() == step {
                        fs.forget(attributes.map(|attributes| (attributes.id, 1)));
                        break;
                    }
                    given.push((entry, attributes));
                }
                fs.remembered(unique);
                given
            });
            let entries = entries.await;
            if entries.is_empty() {
                self.fs.release_directory(handle);
                return names;
            }
            for (entry, attributes) in entries {
                offset = entry.next;
                if let Some(attributes) = attributes {
                    names.push(entry.name.to_string());
                    self.learn(attributes);
                }
            }
        }
    }

    async fn open(&mut self, id: NodeId, death: Death) {
        let opened = self.until_answered(death, async |fs, unique| fs.open(id, unique).await).await;
        let Ok((_, mode)) = opened else { return };
        let inode = self.kernel.get_mut(&id).unwrap();
        assert!(inode.opens.iter().all(|other| *other == mode), "EIO: {mode:?} in {inode:?}");
        if let Mode::Passthrough(backing) = mode {
            assert_eq!(self.holder.registered.lock().1.get(&id.0), Some(&backing), "EIO");
        }
        inode.opens.push(mode);
    }

    async fn release(&mut self, id: NodeId, death: Death) {
        if self.kernel.get_mut(&id).unwrap().opens.pop().is_some() {
            self.until_answered(death, async |fs, unique| fs.release(id, unique)).await;
        }
    }

    fn forget(&mut self, id: NodeId) {
        if let Some(inode) = self.kernel.get(&id)
            && inode.opens.is_empty()
        {
            self.fs.forget([(id, inode.lookups)]);
            self.kernel.remove(&id);
        }
    }

    /// The worker knows all that the kernel knows, and no more unless a forget was lost.
    fn check(&self) {
        for (id, inode) in &self.kernel {
            let attributes = self.fs.attributes(*id).expect("ESTALE for a node that is known");
            assert_eq!((attributes.size, attributes.directory), (inode.size, inode.directory));
        }
        if !self.lost {
            assert_eq!(self.fs.node_count(), self.kernel.len());
        }
        let open: usize = self.kernel.values().map(|inode| inode.opens.len()).sum();
        assert_eq!(self.fs.backing().open_count(), open as u64);
    }
}

fn worker(namespace: &Arc<Namespace>, holder: &Arc<Holder>, dir: &std::path::Path) -> FileSystem {
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    let journal = Journal::open(dir, 1, holder.has_begun()).unwrap();
    let begun = holder;
    let (namespace, holder) = (Arc::clone(namespace), Arc::clone(holder));
    let fs = FileSystem::new(namespace, holder, Some(journal), metrics, options());
    fs.backing().negotiated(true);
    begun.begun.store(true, Ordering::Relaxed);
    fs
}

#[derive(Debug, Clone)]
enum Event {
    Put(usize, u8),
    Remove(usize),
    Lookup(usize, Death),
    List(usize, usize, Vec<Death>),
    Open(usize, Death),
    Release(usize, Death),
    Forget(usize),
    Complete(usize),
    Lose(usize, bool),
    Kill,
    Sweep,
}

const KEYS: [&str; 6] = ["a", "b", "d/a", "d/b", "d/e/a", "f/a"];

fn event() -> impl Strategy<Value = Event> {
    let death = || prop_oneof![6 => Just(Death::Never), 2 => Just(Death::Unanswered), 1 => Just(Death::Twice)];
    let node = || 0..60usize;
    prop_oneof![
        3 => (0..6usize, 0..3u8).prop_map(|(key, seed)| Event::Put(key, seed)),
        1 => (0..6usize).prop_map(Event::Remove),
        8 => (0..6usize, death()).prop_map(|(key, death)| Event::Lookup(key, death)),
        2 => (node(), 1..5usize, prop::collection::vec(death(), 1..4))
            .prop_map(|(node, step, deaths)| Event::List(node, step, deaths)),
        8 => (node(), death()).prop_map(|(node, death)| Event::Open(node, death)),
        7 => (node(), death()).prop_map(|(node, death)| Event::Release(node, death)),
        4 => node().prop_map(Event::Forget),
        3 => (0..6usize).prop_map(Event::Complete),
        2 => (0..6usize, any::<bool>()).prop_map(|(key, bad)| Event::Lose(key, bad)),
        3 => Just(Event::Kill),
        1 => Just(Event::Sweep),
    ]
}

async fn run(events: Vec<Event>) {
    let mut world = World::new();
    world.store.insert("a", "x");
    for event in events {
        let nodes: Vec<NodeId> = {
            let mut nodes: Vec<_> = world.kernel.keys().copied().collect();
            nodes.sort_unstable();
            nodes
        };
        let pick = |n: usize| (!nodes.is_empty()).then(|| nodes[n % nodes.len()]);
        match event {
            Event::Put(key, seed) => {
                let content = content(KEYS[key], seed);
                world.store.insert(KEYS[key], content);
            }
            Event::Remove(key) => {
                world.store.remove(KEYS[key]);
            }
            Event::Lookup(key, death) => {
                let mut at = NodeId::ROOT;
                for name in std::iter::once("data").chain(KEYS[key].split('/')) {
                    let Some(found) = world.lookup(at, name, death).await else { break };
                    at = found;
                }
            }
            Event::List(node, step, deaths) => {
                if let Some(id) = pick(node)
                    && world.kernel[&id].directory
                {
                    world.lost |= deaths.iter().any(|death| *death != Death::Never);
                    world.list(id, step, &deaths).await;
                }
            }
            Event::Open(node, death) => {
                if let Some(id) = pick(node)
                    && !world.kernel[&id].directory
                {
                    world.open(id, death).await;
                }
            }
            Event::Release(node, death) => {
                if let Some(id) = pick(node) {
                    world.release(id, death).await;
                }
            }
            Event::Forget(node) => {
                if let Some(id) = pick(node) {
                    world.forget(id);
                    world.lost = true;
                }
            }
            Event::Complete(key) => {
                let mut copies = world.copies.0.lock();
                copies.entry(KEYS[key].to_owned()).or_default();
            }
            Event::Lose(key, bad) => {
                if let Some(fate) = world.copies.0.lock().remove(KEYS[key]) {
                    if bad { fate.condemn() } else { fate.evict() }
                }
            }
            Event::Kill => world.kill(),
            Event::Sweep => world.fs.backing().sweep(),
        }
        world.check();
    }
    // Everything is released and forgotten: nothing is left.
    world.kill();
    let nodes: Vec<NodeId> = world.kernel.keys().copied().collect();
    for id in nodes {
        while !world.kernel[&id].opens.is_empty() {
            world.release(id, Death::Never).await;
        }
        world.forget(id);
    }
    assert_eq!(world.fs.backing().open_count(), 0);
    if !world.lost {
        assert_eq!(world.fs.node_count(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever a kernel asks and whenever workers die, each node that it knows means the same to
    /// the next one, no open mixes modes, and every open is counted exactly.
    #[test]
    fn a_worker_goes_on_where_the_one_before_ended(
        events in prop::collection::vec(event(), 1..50),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(events));
    }
}

#[tokio::test]
async fn a_directory_is_read_on_where_the_worker_before_ended() {
    let mut world = World::new();
    let names: Vec<String> = (0..50).map(|n| format!("{n:02}")).collect();
    for name in &names {
        world.store.insert(&format!("d/{name}"), "x");
    }
    let data = world.lookup(NodeId::ROOT, "data", Death::Never).await.unwrap();
    let directory = world.lookup(data, "d", Death::Never).await.unwrap();
    for (step, deaths) in [
        (7, vec![Death::Unanswered]),
        (1, vec![Death::Twice, Death::Never]),
        (4, vec![Death::Never, Death::Unanswered, Death::Never]),
    ] {
        assert_eq!(world.list(directory, step, &deaths).await, names);
    }
}

#[tokio::test]
async fn directories_keep_their_time() {
    let mut world = World::new();
    let before = world.fs.attributes(NodeId::ROOT).unwrap();
    std::thread::sleep(Duration::from_millis(3));
    world.kill();
    assert_eq!(world.fs.attributes(NodeId::ROOT).unwrap(), before);
}

/// Without a journal the next worker does not know what is open, but the holder knows what is
/// registered: whoever has it open, another open gets the same.
#[tokio::test]
async fn what_a_holder_has_registered_is_used_without_a_journal() {
    let mut world = World::new();
    world.store.insert("a", "x");
    world.copies.0.lock().insert("a".into(), Arc::default());
    let data = world.lookup(NodeId::ROOT, "data", Death::Never).await.unwrap();
    let file = world.lookup(data, "a", Death::Never).await.unwrap();
    world.open(file, Death::Never).await;
    std::fs::remove_file(world.dir.path().join("nodes.journal")).unwrap();
    world.copies.0.lock().clear();
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    let (namespace, holder) = (Arc::clone(&world.namespace), Arc::clone(&world.holder));
    world.fs = FileSystem::new(namespace, holder, None, metrics, options());
    assert_eq!(world.lookup(NodeId::ROOT, "data", Death::Never).await, Some(data));
    assert_eq!(world.lookup(data, "a", Death::Never).await, Some(file));
    world.open(file, Death::Never).await;
    assert_eq!(world.kernel[&file].opens.len(), 2);
    world.fs.forget([(file, 1)]);
    world.fs.backing().sweep();
    assert!(world.holder.registered.lock().1.is_empty());
}

/// A worker that lost the journal does not know which nodes are open in which mode: one that is
/// registered counts as open, and the others are opened as cached, which joins what is open so.
#[tokio::test]
async fn without_its_journal_a_worker_mixes_no_modes() {
    let mut world = World::new();
    let data = world.lookup(NodeId::ROOT, "data", Death::Never).await.unwrap();
    let mut files = Vec::new();
    for name in ["a", "b"] {
        world.store.insert(name, "x");
        files.push(world.lookup(data, name, Death::Never).await.unwrap());
    }
    world.copies.0.lock().insert("a".into(), Arc::default());
    for file in &files {
        world.open(*file, Death::Never).await;
    }
    world.copies.0.lock().insert("b".into(), Arc::default());
    // The next worker finds the journal that this one has begun.
    for _ in 0..2 {
        std::fs::remove_file(world.dir.path().join("nodes.journal")).unwrap_or_default();
        for _ in 0..2 {
            world.kill();
            assert_eq!(world.lookup(NodeId::ROOT, "data", Death::Never).await, Some(data));
            for (file, name) in files.iter().zip(["a", "b"]) {
                assert_eq!(world.lookup(data, name, Death::Never).await, Some(*file));
                world.fs.backing().sweep();
                world.open(*file, Death::Never).await;
                world.release(*file, Death::Never).await;
                world.open(*file, Death::Never).await;
            }
        }
    }
    assert!(matches!(world.kernel[&files[0]].opens[..], [Mode::Passthrough(_), ..]));
    assert!(world.kernel[&files[1]].opens.iter().all(|mode| *mode == Mode::Cached));
}

/// Who waits for a holder that does not answer waits once, not once for each registration.
#[tokio::test(start_paused = true)]
async fn a_stalled_holder_is_asked_once_in_a_while() {
    let mut world = World::new();
    let data = world.lookup(NodeId::ROOT, "data", Death::Never).await.unwrap();
    let names = ["a", "b", "c", "d"];
    for name in names {
        world.store.insert(name, "x");
        world.copies.0.lock().insert(name.into(), Arc::default());
        let file = world.lookup(data, name, Death::Never).await.unwrap();
        world.open(file, Death::Never).await;
        world.release(file, Death::Never).await;
    }
    assert_eq!(world.holder.registered.lock().1.len(), names.len());
    for name in names {
        world.copies.0.lock()[name].evict();
    }
    world.holder.stalled.store(true, Ordering::Relaxed);
    let before = world.holder.calls.load(Ordering::Relaxed);
    for _ in 0..3 {
        world.fs.backing().sweep();
    }
    assert_eq!(world.holder.calls.load(Ordering::Relaxed), before + 1);
    world.holder.stalled.store(false, Ordering::Relaxed);
    tokio::time::advance(Duration::from_secs(6)).await;
    world.fs.backing().sweep();
    assert!(world.holder.registered.lock().1.is_empty());
}
