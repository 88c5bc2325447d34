//! The file system against a model: a map of keys, and what a tree of them must look like.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use store::testing::{Fault, FaultyStore, MemoryStore, Operation};
use store::{BucketName, Residency, Resident};

use super::*;

const LONG: Duration = Duration::from_mins(10);

/// A file system over one bucket at `/data`, and what is behind it.
struct Fixture {
    fs: FileSystem,
    store: MemoryStore,
    faulty: FaultyStore,
}

fn bucket(name: &str, store: Arc<dyn store::Store>) -> Bucket {
    Bucket {
        name: BucketName::new(name).unwrap(),
        store,
        residency: None,
        read_only: true,
        created: SystemTime::UNIX_EPOCH,
    }
}

/// No passthrough and no journal.
fn plain(namespace: Namespace, options: Options) -> FileSystem {
    let registrar = Arc::new(crate::registrar::Unavailable::new("a test"));
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    FileSystem::new(Arc::new(namespace), registrar, None, metrics, options)
}

/// Of no request of the kernel.
const NONE: Unique = Unique::new(0);

fn fixture(ttl: Duration, page_entries: usize) -> Fixture {
    let store = MemoryStore::new();
    let faulty = FaultyStore::new(Arc::new(store.clone()));
    let namespace = Namespace::builder()
        .bucket(bucket("main", Arc::new(faulty.clone())))
        .unwrap()
        .mount("/data", &BucketName::new("main").unwrap(), "")
        .unwrap()
        .build();
    let options = Options { metadata_ttl: ttl, patience: Duration::from_secs(1), page_entries };
    Fixture { fs: plain(namespace, options), store, faulty }
}

impl Fixture {
    async fn walk(&self, path: &str) -> Result<Attributes> {
        let mut at = self.fs.attributes(NodeId::ROOT)?;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            at = self.fs.lookup(at.id, OsStr::new(name), NONE).await?;
        }
        Ok(at)
    }

    async fn open(&self, path: &str) -> Result<(NodeId, u64)> {
        let id = self.walk(path).await?.id;
        Ok((id, self.fs.open(id, NONE).await?.0))
    }

    async fn read_all(&self, path: &str) -> Result<Vec<u8>> {
        let (id, handle) = self.open(path).await?;
        let mut all = Vec::new();
        loop {
            let piece = self.fs.read(id, handle, all.len() as u64, 5).await?;
            if piece.is_empty() {
                return Ok(all);
            }
            all.extend_from_slice(&piece);
        }
    }

    /// Names, in the order given, taking `step` entries of each answer.
    async fn list(&self, id: NodeId, step: usize) -> Result<Vec<(String, bool)>> {
        let handle = self.fs.open_directory(id)?;
        let mut names = Vec::new();
        let mut offset = 0;
        loop {
            let (_, entries) = self.fs.entries(id, handle, offset).await?;
            if entries.is_empty() {
                self.fs.release_directory(handle);
                return Ok(names);
            }
            for entry in entries.into_iter().take(step) {
                offset = entry.next;
                if !entry.special {
                    let directory = entry.kind == EntryKind::Directory;
                    names.push((entry.name.to_string(), directory));
                }
            }
        }
    }
}

/// What a directory must hold: names, and whether each is a directory.
fn model_directory(keys: &BTreeMap<String, Vec<u8>>, prefix: &str) -> BTreeMap<String, bool> {
    let is_name = |name: &str| !matches!(name, "" | "." | "..");
    let mut names = BTreeMap::new();
    for key in keys.keys() {
        let Some(rest) = key.strip_prefix(prefix) else { continue };
        match rest.split_once('/') {
            Some((name, _)) if is_name(name) => _ = names.insert(name.to_owned(), true),
            None if is_name(rest) => _ = names.entry(rest.to_owned()).or_insert(false),
            _ => {}
        }
    }
    names
}

#[derive(Debug, Clone)]
enum Step {
    Put(String, u8),
    Remove(usize),
    Open(usize),
    ReadOpen(usize),
    Check(usize),
}

fn key() -> impl Strategy<Value = String> {
    // Names that sort on both sides of the slash, that clash, and that no path can have.
    let segment = prop::sample::select(vec![
        "a", "a", "a", "a-", "a.txt", "a0", "b", "\u{e9}", " ", "%2F", ".", "..", "",
    ]);
    prop::collection::vec(segment, 1..4)
        .prop_map(|segments| segments.join("/"))
        .prop_filter("a key is not empty", |key| !key.is_empty())
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (key(), 0..3u8).prop_map(|(key, content)| Step::Put(key, content)),
        1 => (0..100usize).prop_map(Step::Remove),
        2 => (0..100usize).prop_map(Step::Open),
        2 => (0..100usize).prop_map(Step::ReadOpen),
        1 => (1..4usize).prop_map(Step::Check),
    ]
}

fn content(key: &str, seed: u8) -> Vec<u8> {
    format!("{key}#{seed}").repeat(usize::from(seed) + 1).into_bytes()
}

/// Everything that can be seen equals the model, by listing and by name.
async fn check(f: &Fixture, keys: &BTreeMap<String, Vec<u8>>, step: usize) {
    let mut open = vec![String::new()];
    let mut seen = BTreeSet::new();
    while let Some(prefix) = open.pop() {
        let path = format!("data/{prefix}");
        let id = f.walk(&path).await.unwrap().id;
        let listed = f.list(id, step).await.unwrap();
        let expected = model_directory(keys, &prefix);
        let as_map: BTreeMap<String, bool> = listed.iter().cloned().collect();
        assert_eq!(as_map.len(), listed.len(), "a name is given once: {listed:?}");
        assert_eq!(as_map, expected, "directory `{prefix}`");
        for (name, directory) in expected {
            let key = format!("{prefix}{name}");
            let attributes = f.walk(&format!("data/{key}")).await.unwrap();
            assert_eq!(attributes.directory, directory, "`{key}`");
            if directory {
                open.push(format!("{key}/"));
            } else {
                assert_eq!(attributes.size, keys[&key].len() as u64);
                assert_eq!(f.read_all(&format!("data/{key}")).await.unwrap(), keys[&key]);
                seen.insert(key);
            }
        }
    }
    for key in keys.keys() {
        let is_path = ObjectKey::new(key.as_str()).unwrap().is_path();
        let clash = keys.keys().any(|other| other.starts_with(&format!("{key}/")));
        assert_eq!(seen.contains(key), is_path && !clash, "`{key}`");
    }
    assert_eq!(f.walk("data/nothing").await.unwrap_err().errno, Errno::NOENT);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn the_tree_is_that_of_the_model(
        steps in prop::collection::vec(step(), 1..40),
        page in 1..5usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let f = fixture(Duration::ZERO, page);
            let mut keys: BTreeMap<String, Vec<u8>> = BTreeMap::new();
            let mut handles: Vec<(String, Vec<u8>, NodeId, u64)> = Vec::new();
            let nth = |keys: &BTreeMap<String, Vec<u8>>, n: usize| {
                keys.keys().nth(n % keys.len().max(1)).cloned()
            };
            for step in steps {
                match step {
                    Step::Put(key, seed) => {
                        let bytes = content(&key, seed);
                        f.store.insert(&key, bytes.clone());
                        keys.insert(key, bytes);
                    }
                    Step::Remove(n) => if let Some(key) = nth(&keys, n) {
                        f.store.remove(&key);
                        keys.remove(&key);
                    },
                    // The path of any other key spells another key.
                    Step::Open(n) => if let Some(key) = nth(&keys, n)
                        && ObjectKey::new(key.as_str()).unwrap().is_path()
                        && let Ok((id, handle)) = f.open(&format!("data/{key}")).await
                    {
                        handles.push((key.clone(), keys[&key].clone(), id, handle));
                    },
                    Step::ReadOpen(n) => if !handles.is_empty() {
                        let (key, was, id, handle) = &handles[n % handles.len()];
                        prop_assert_eq!(f.fs.attributes(*id).unwrap().size, was.len() as u64);
                        match f.fs.read(*id, *handle, 1, 1 << 20).await {
                            Ok(bytes) => prop_assert_eq!(&bytes[..], &was[1..]),
                            Err(failure) => {
                                prop_assert_eq!(failure.errno, Errno::STALE);
                                prop_assert_ne!(keys.get(key), Some(was));
                            }
                        }
                    },
                    Step::Check(step) => check(&f, &keys, step).await,
                }
            }
            check(&f, &keys, 2).await;
            // Whatever the kernel knows it can take back.
            let known: Vec<NodeId> = f.fs.nodes.ids();
            f.fs.forget(known.into_iter().map(|id| (id, u64::MAX)));
            prop_assert_eq!(f.fs.node_count(), 0);
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn lookups_after_a_listing_ask_the_origin_nothing() {
    let f = fixture(LONG, 1000);
    for n in 0..5000 {
        f.store.insert(&format!("d/{n:05}"), "x");
    }
    f.store.insert("d/sub/x", "x");
    let directory = f.walk("data/d").await.unwrap().id;
    f.faulty.calls().reset();
    assert_eq!(f.list(directory, 77).await.unwrap().len(), 5001);
    assert_eq!(f.faulty.calls().of(Operation::List), 6, "one for each page");
    f.faulty.calls().reset();
    for n in 0..5000 {
        let name = format!("{n:05}");
        assert_eq!(f.fs.lookup(directory, OsStr::new(&name), NONE).await.unwrap().size, 1);
    }
    assert!(f.fs.lookup(directory, OsStr::new("sub"), NONE).await.unwrap().directory);
    // The version of a file is asked of the store below, where it is a cache that has just seen
    // the listing; whether a name is a directory is not asked again.
    assert_eq!(f.faulty.calls().of(Operation::Head), 5000);
    assert_eq!(f.faulty.calls().total(), 5000);
    f.faulty.calls().reset();
    // Opening asks once for the version, of which a cache below knows the answer; never a listing.
    f.open("data/d/00001").await.unwrap();
    assert_eq!(f.faulty.calls().of(Operation::List), 0);
    assert_eq!(f.faulty.calls().of(Operation::Head), 2, "one to find it, one to open it");
}

#[tokio::test(start_paused = true)]
async fn a_page_is_as_old_as_its_question() {
    let f = fixture(Duration::from_secs(5), 10);
    for n in 0..20 {
        f.store.insert(&format!("{n:02}/x"), "x");
    }
    let id = f.walk("data").await.unwrap().id;
    let handle = f.fs.open_directory(id).unwrap();
    let (mut offset, mut pages) = (0, 0);
    let asked = tokio::time::Instant::now();
    loop {
        let (_, entries) = f.fs.entries(id, handle, offset).await.unwrap();
        let Some(last) = entries.last() else { break };
        assert!(pages != 2 || last.asked == asked, "the second page was asked for with the first");
        offset = last.next;
        pages += 1;
        if pages == 2 {
            // The next page has been asked for; its reader takes its time.
            tokio::time::sleep(Duration::from_secs(6)).await;
        }
    }
    assert_eq!(pages, 3, "the heading and two pages");
    // By now the last page is older than names are believed.
    f.faulty.calls().reset();
    assert!(f.fs.lookup(id, OsStr::new("15"), NONE).await.unwrap().directory);
    assert_eq!(f.faulty.calls().of(Operation::List), 1);
}

#[tokio::test(start_paused = true)]
async fn a_change_below_is_seen_within_the_ttl_and_costs_no_listing() {
    let f = fixture(LONG, 1000);
    f.store.insert("d/file", "old");
    f.store.insert("d/other", "x");
    let directory = f.walk("data/d").await.unwrap().id;
    f.list(directory, 10).await.unwrap();
    f.faulty.calls().reset();
    f.store.insert("d/file", "newer");
    assert_eq!(f.walk("data/d/file").await.unwrap().size, 5);
    assert_eq!(f.faulty.calls().of(Operation::List), 0);
    f.store.remove("d/file");
    assert_eq!(f.walk("data/d/file").await.unwrap_err().errno, Errno::NOENT);
    f.store.insert("d/file/below", "x");
    assert!(f.walk("data/d/file").await.unwrap().directory);
}

#[tokio::test(start_paused = true)]
async fn a_name_within_its_ttl_is_answered_while_the_origin_is_away() {
    let f = fixture(LONG, 1000);
    f.store.insert("d/file", "x");
    let directory = f.walk("data/d").await.unwrap().id;
    f.list(directory, 10).await.unwrap();
    f.faulty.set_down(true);
    assert_eq!(f.walk("data/d/file").await.unwrap().size, 1);
    f.faulty.set_down(false);
    f.faulty.inject(Operation::Head, Fault::Fail(ErrorKind::PermissionDenied));
    assert_eq!(f.walk("data/d/file").await.unwrap().size, 1);
    f.faulty.inject(Operation::Head, Fault::Hang);
    let began = tokio::time::Instant::now();
    assert_eq!(f.walk("data/d/file").await.unwrap().size, 1);
    assert_eq!(began.elapsed(), Duration::from_secs(1), "the patience");
}

#[tokio::test(start_paused = true)]
async fn a_known_file_costs_one_head_past_its_ttl() {
    let f = fixture(Duration::from_secs(5), 1000);
    f.store.insert("file", "x");
    f.walk("data/file").await.unwrap();
    tokio::time::advance(Duration::from_secs(6)).await;
    f.faulty.calls().reset();
    f.walk("data/file").await.unwrap();
    assert_eq!(f.faulty.calls().of(Operation::Head), 1);
    assert_eq!(f.faulty.calls().of(Operation::List), 0);
}

#[tokio::test]
async fn opening_what_has_changed_is_estale_and_the_next_lookup_is_right() {
    let f = fixture(LONG, 1000);
    f.store.insert("file", "old");
    let old = f.walk("data/file").await.unwrap();
    f.store.insert("file", "newer");
    // The kernel may still believe the name, but what is opened is never the wrong version.
    assert_eq!(f.fs.open(old.id, NONE).await.unwrap_err().errno, Errno::STALE);
    let new = f.walk("data/file").await.unwrap();
    assert_ne!(new.id, old.id);
    assert_eq!(f.read_all("data/file").await.unwrap(), b"newer");
    f.store.remove("file");
    assert_eq!(f.fs.open(new.id, NONE).await.unwrap_err().errno, Errno::STALE);
    assert_eq!(f.walk("data/file").await.unwrap_err().errno, Errno::NOENT);
}

#[tokio::test(start_paused = true)]
async fn what_is_cached_stays_reachable_while_the_origin_is_away() {
    let f = fixture(Duration::ZERO, 1000);
    f.store.insert("d/file", "x");
    f.walk("data/d/file").await.unwrap();
    // The listing fails and the metadata comes, as from a cache.
    f.faulty.inject(Operation::List, Fault::Fail(ErrorKind::Unavailable));
    assert_eq!(f.walk("data/d/file").await.unwrap().size, 1);
    // A listing that hangs is not waited for longer than the patience.
    f.faulty.inject(Operation::List, Fault::Hang);
    assert_eq!(f.walk("data/d/file").await.unwrap().size, 1);
    f.store.insert("new", "x");
    f.faulty.inject(Operation::List, Fault::Hang);
    assert_eq!(f.walk("data/new").await.unwrap().size, 1);
    f.faulty.set_down(true);
    assert!(f.walk("data/d").await.unwrap().directory);
    assert_eq!(f.walk("data/unknown").await.unwrap_err().errno, Errno::IO);
    f.faulty.set_down(false);
    f.store.remove("d/file");
    assert_eq!(f.walk("data/d").await.unwrap_err().errno, Errno::NOENT);
}

#[tokio::test]
async fn lists_that_are_forbidden_do_not_hide_a_file() {
    let f = fixture(Duration::ZERO, 1000);
    f.store.insert("file", "x");
    f.faulty.inject(Operation::List, Fault::Fail(ErrorKind::PermissionDenied));
    assert_eq!(f.walk("data/file").await.unwrap().size, 1);
    f.faulty.inject(Operation::List, Fault::Fail(ErrorKind::PermissionDenied));
    assert_eq!(f.walk("data/none").await.unwrap_err().errno, Errno::ACCESS);
}

#[tokio::test]
async fn wrong_bodies_are_errors_and_never_bytes() {
    let f = fixture(LONG, 1000);
    f.store.insert("file", vec![7; 200_000]);
    let (id, handle) = f.open("data/file").await.unwrap();
    let faults = [
        (Fault::EndAfter(70_000), Errno::IO),
        (Fault::EndAfter(0), Errno::IO),
        (Fault::CutAfter(70_000), Errno::IO),
        (Fault::WrongETag(store::ETag::parse("other")), Errno::STALE),
        (Fault::Fail(ErrorKind::NotFound), Errno::STALE),
        (Fault::Fail(ErrorKind::PreconditionFailed), Errno::STALE),
        (Fault::Fail(ErrorKind::PermissionDenied), Errno::ACCESS),
        (Fault::Fail(ErrorKind::Throttled), Errno::IO),
    ];
    for (fault, errno) in faults {
        f.faulty.inject(Operation::Get, fault.clone());
        let failure = f.fs.read(id, handle, 0, 1 << 20).await.unwrap_err();
        assert_eq!(failure.errno, errno, "{fault:?}");
    }
    assert_eq!(f.fs.read(id, handle, 0, 1 << 20).await.unwrap().len(), 200_000);
    assert_eq!(f.fs.read(id, handle, 199_999, 10).await.unwrap().len(), 1);
    assert!(f.fs.read(id, handle, 200_000, 10).await.unwrap().is_empty());
    assert!(f.fs.read(id, handle, u64::MAX, 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn an_open_directory_can_be_read_from_any_offset() {
    let f = fixture(LONG, 3);
    for n in 0..50 {
        f.store.insert(&format!("{n:02}"), "x");
    }
    let id = f.walk("data").await.unwrap().id;
    let handle = f.fs.open_directory(id).unwrap();
    let mut in_order = Vec::new();
    let mut offset = 0;
    loop {
        let (_, entries) = f.fs.entries(id, handle, offset).await.unwrap();
        let Some(last) = entries.last() else { break };
        offset = last.next;
        in_order.extend(entries);
    }
    assert_eq!(in_order.len(), 52);
    for start in [51usize, 0, 1, 2, 30, 29, 7, 50, 3] {
        let (_, entries) = f.fs.entries(id, handle, start as u64).await.unwrap();
        assert_eq!(entries[0].name, in_order[start].name, "offset {start}");
        // A handle that is not known finds its place too.
        let (_, entries) = f.fs.entries(id, 4711, start as u64).await.unwrap();
        assert_eq!(entries[0].name, in_order[start].name, "offset {start}");
    }
    f.store.insert("00-new", "x");
    let (_, entries) = f.fs.entries(id, handle, 0).await.unwrap();
    assert_eq!(&*entries[0].name, ".");
    assert_eq!(f.list(id, 9).await.unwrap().len(), 51, "a new look shows what is new");
}

#[tokio::test(start_paused = true)]
async fn the_next_page_is_fetched_while_this_one_is_read() {
    let f = fixture(LONG, 10);
    for n in 0..100 {
        f.store.insert(&format!("{n:02}"), "x");
    }
    let id = f.walk("data").await.unwrap().id;
    let second = Duration::from_secs(1);
    for _ in 0..10 {
        f.faulty.inject(Operation::List, Fault::Delay(second));
    }
    let began = tokio::time::Instant::now();
    let handle = f.fs.open_directory(id).unwrap();
    let mut offset = 0;
    loop {
        let (_, entries) = f.fs.entries(id, handle, offset).await.unwrap();
        let Some(last) = entries.last() else { break };
        offset = last.next;
        if entries.len() == 10 {
            tokio::time::sleep(second).await;
        }
    }
    assert_eq!(offset, 102);
    let took = began.elapsed();
    assert!(took < second * 12, "ten pages of a second and ten readings of a second: {took:?}");
    assert_eq!(f.faulty.calls().of(Operation::List), 10);
}

#[tokio::test]
async fn nested_mount_paths_hide_keys_and_lead_to_their_buckets() {
    let (outer, inner) = (MemoryStore::new(), MemoryStore::new());
    outer.insert("deep/b/hidden", "outer");
    outer.insert("deep/b2", "outer");
    outer.insert("deep/c", "outer");
    inner.insert("sub/x", "inner");
    inner.insert("elsewhere", "inner");
    let [a, b] = ["a", "b"].map(|name| BucketName::new(name).unwrap());
    let namespace = Namespace::builder()
        .bucket(bucket("a", Arc::new(outer.clone())))
        .unwrap()
        .bucket(bucket("b", Arc::new(inner)))
        .unwrap()
        .mount("/data", &a, "")
        .unwrap()
        .mount("/data/deep/b", &b, "sub/")
        .unwrap()
        .mount("/only/far/away", &b, "")
        .unwrap()
        .build();
    let options =
        Options { metadata_ttl: LONG, patience: Duration::from_secs(1), page_entries: 1000 };
    let fs = plain(namespace, options);
    let f = Fixture { fs, store: outer.clone(), faulty: FaultyStore::new(Arc::new(outer)) };
    let names = async |path: &str| {
        let id = f.walk(path).await.unwrap().id;
        let mut names: Vec<String> =
            f.list(id, 100).await.unwrap().into_iter().map(|(name, _)| name).collect();
        names.sort();
        names
    };
    assert_eq!(names("").await, ["data", "only"]);
    assert_eq!(names("data").await, ["deep"]);
    assert_eq!(names("data/deep").await, ["b", "b2", "c"]);
    assert_eq!(names("data/deep/b").await, ["x"]);
    assert_eq!(names("only/far").await, ["away"]);
    assert_eq!(names("only/far/away").await, ["elsewhere", "sub"]);
    assert_eq!(f.read_all("data/deep/b/x").await.unwrap(), b"inner");
    assert_eq!(f.walk("data/deep/b/hidden").await.unwrap_err().errno, Errno::NOENT);
    assert_eq!(f.walk("elsewhere").await.unwrap_err().errno, Errno::NOENT);
}

#[derive(Debug)]
struct Half;

#[async_trait::async_trait]
impl Residency for Half {
    async fn residency(&self, _: &ObjectKey, _: &store::ETag, size: u64) -> Resident {
        Resident { bytes: size / 2, of: size }
    }

    async fn local_copy(
        &self,
        _: &ObjectKey,
        _: &store::ETag,
        _: u64,
    ) -> std::result::Result<store::LocalCopy, store::NoCopy> {
        Err(store::NoCopy::Incomplete)
    }
}

#[tokio::test]
async fn extended_attributes_tell_version_object_and_residency() {
    let store = MemoryStore::new();
    let etag = store.insert("dir/file", "1234");
    let namespace = Namespace::builder()
        .bucket(Bucket { residency: Some(Arc::new(Half)), ..bucket("a", Arc::new(store.clone())) })
        .unwrap()
        .mount("/", &BucketName::new("a").unwrap(), "")
        .unwrap()
        .build();
    let options =
        Options { metadata_ttl: LONG, patience: Duration::from_secs(1), page_entries: 1000 };
    let fs = plain(namespace, options);
    let faulty = FaultyStore::new(Arc::new(store.clone()));
    let f = Fixture { fs, store, faulty };
    let id = f.walk("dir/file").await.unwrap().id;
    let get = async |id: NodeId, name: &str| f.fs.attribute(id, OsStr::new(name)).await;
    assert_eq!(get(id, ETAG).await.unwrap(), etag.as_str());
    assert_eq!(get(id, OBJECT).await.unwrap(), "a/dir/file");
    assert_eq!(get(id, RESIDENCY).await.unwrap(), "2/4");
    assert_eq!(get(id, CONTENT_TYPE).await.unwrap_err().errno, Errno::NODATA);
    assert_eq!(get(id, "user.other").await.unwrap_err().errno, Errno::NODATA);
    assert_eq!(f.fs.attribute_names(id).unwrap().len(), 4);
    let directory = f.walk("dir").await.unwrap().id;
    assert_eq!(get(directory, ETAG).await.unwrap_err().errno, Errno::NODATA);
    assert!(f.fs.attribute_names(directory).unwrap().is_empty());
}

#[tokio::test]
async fn names_that_no_key_has() {
    use std::os::unix::ffi::OsStrExt;
    let f = fixture(LONG, 1000);
    f.store.insert("file", "x");
    let id = f.walk("data").await.unwrap().id;
    let lookup = async |name: &[u8]| f.fs.lookup(id, OsStr::from_bytes(name), NONE).await;
    assert_eq!(lookup(b"\xff\xfe").await.unwrap_err().errno, Errno::NOENT);
    assert_eq!(lookup(&[b'x'; 256]).await.unwrap_err().errno, Errno::NAMETOOLONG);
    assert_eq!(lookup(&[b'x'; 255]).await.unwrap_err().errno, Errno::NOENT);
    let file = f.walk("data/file").await.unwrap().id;
    assert_eq!(f.fs.lookup(file, OsStr::new("x"), NONE).await.unwrap_err().errno, Errno::NOTDIR);
    assert_eq!(f.fs.open(id, NONE).await.unwrap_err().errno, Errno::ISDIR);
    assert_eq!(f.fs.open_directory(file).unwrap_err().errno, Errno::NOTDIR);
    assert_eq!(f.fs.attributes(NodeId(12345)).unwrap_err().errno, Errno::STALE);
    assert_eq!(f.fs.seek(file, 0, false).unwrap(), 0);
    assert_eq!(f.fs.seek(file, 0, true).unwrap(), 1);
    assert_eq!(f.fs.seek(file, 1, true).unwrap_err().errno, Errno::NXIO);
}

mod restart;
mod survey;
