//! What a directory does differently from a bucket.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use store::testing::contract::{self, Differences};
use store::{ByteRange, StoreExt};

use super::*;

struct Fixture {
    store: LocalStore,
    root: tempfile::TempDir,
}

fn fixture() -> Fixture {
    let root = tempfile::tempdir().unwrap();
    let store = LocalStore::open(root.path(), false).unwrap();
    Fixture { store, root }
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

impl Fixture {
    fn write(&self, path: &str, bytes: &str) {
        let path = self.root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    async fn keys(&self, prefix: &str) -> Vec<String> {
        let keys = self.store.walk(prefix).map_ok(|entry| entry.key.to_string());
        keys.try_collect().await.unwrap()
    }

    async fn read(&self, name: &str) -> Result<String> {
        let bytes = self.store.get_bytes(&key(name), ByteRange::Full).await?;
        Ok(String::from_utf8(bytes.to_vec()).unwrap())
    }
}

fn differences() -> Differences {
    Differences {
        refused_keys: Some(|key| {
            !key.split('/').all(|s| !matches!(s, "" | "." | "..") && s.len() <= 255)
        }),
        file_hides_directory: true,
        ..Differences::default()
    }
}

#[tokio::test]
async fn both_ways_of_attributes_keep_the_contract() {
    for nfs in [false, true] {
        let root = tempfile::tempdir().unwrap();
        let store = LocalStore::open(root.path(), nfs).unwrap();
        contract::run(Arc::new(store), differences()).await.assert();
        let left = std::fs::read_dir(root.path().join(".warpdrive/tmp")).unwrap().count();
        assert_eq!(left, 0, "temporary files left");
    }
}

#[tokio::test]
async fn links_are_followed_within_the_root_only() {
    let f = fixture();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "no").unwrap();
    f.write("blobs/1", "one");
    f.write("d/real", "x");
    symlink("../blobs/1", f.root.path().join("d/in")).unwrap();
    symlink(outside.path().join("secret"), f.root.path().join("d/out")).unwrap();
    symlink("../../../../../../etc/passwd", f.root.path().join("d/up")).unwrap();
    symlink(outside.path(), f.root.path().join("outdir")).unwrap();
    symlink("d", f.root.path().join("indir")).unwrap();
    symlink("nowhere", f.root.path().join("d/broken")).unwrap();
    symlink("loop", f.root.path().join("loop")).unwrap();
    assert_eq!(f.keys("").await, ["blobs/1", "d/in", "d/real"]);
    assert_eq!(f.read("d/in").await.unwrap(), "one");
    for bad in ["d/out", "d/up", "outdir/secret", "indir/real", "d/broken", "loop"] {
        assert!(f.read(bad).await.is_err(), "{bad}");
    }
    f.store.put_bytes(&key("d/in"), "new").await.unwrap();
    assert_eq!(f.read("blobs/1").await.unwrap(), "one", "a link's target was overwritten");
    assert!(f.store.put_bytes(&key("outdir/new"), "x").await.is_err());
    assert!(!outside.path().join("new").exists());
    f.store.delete(&key("d/out"), None).await.unwrap();
    assert!(outside.path().join("secret").exists());
}

#[tokio::test]
async fn own_files_are_no_objects() {
    let f = fixture();
    let upload = f.store.start_upload(&key("k"), PutOptions::default()).await.unwrap();
    f.store.put_bytes(&key("k"), "x").await.unwrap();
    assert_eq!(f.keys("").await, ["k"]);
    assert_eq!(f.keys(".warpdrive/").await, Vec::<String>::new());
    let about = format!(".warpdrive/uploads/{}/about.json", upload.0);
    assert!(f.root.path().join(&about).exists());
    assert_eq!(f.read(&about).await.unwrap_err().kind(), ErrorKind::NotFound);
    let put = f.store.put_bytes(&key(".warpdrive/x"), "x").await;
    assert_eq!(put.unwrap_err().kind(), ErrorKind::UnsupportedKey);
}

#[tokio::test]
async fn directories_without_objects_vanish() {
    let f = fixture();
    f.store.put_bytes(&key("a/b/c/1"), "1").await.unwrap();
    f.store.put_bytes(&key("a/2"), "2").await.unwrap();
    std::fs::create_dir(f.root.path().join("empty")).unwrap();
    let request = ListRequest { delimiter: Some("/".into()), ..ListRequest::default() };
    assert_eq!(f.store.list(&request).await.unwrap().common_prefixes, ["a/", "empty/"]);
    f.store.delete(&key("a/b/c/1"), None).await.unwrap();
    assert!(!f.root.path().join("a/b").exists() && f.root.path().join("a/2").exists());
    f.store.delete(&key("a/2"), None).await.unwrap();
    assert!(!f.root.path().join("a").exists() && f.root.path().exists());
    f.store.put_bytes(&key("empty"), "an empty directory makes room").await.unwrap();
    assert_eq!(f.keys("").await, ["empty"]);
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_read_is_an_error() {
    let f = fixture();
    let old = vec![b'o'; 3 << 20];
    let path = f.root.path().join("k");
    std::fs::write(&path, &old).unwrap();
    let mut got = f.store.get(&key("k"), GetOptions::default()).await.unwrap();
    got.body.next().await.unwrap().unwrap();
    std::fs::write(&path, vec![b'n'; 3 << 20]).unwrap();
    let rest: Vec<_> = got.body.collect().await;
    assert_eq!(rest.len(), 1);
    assert_eq!(rest[0].as_ref().unwrap_err().kind(), ErrorKind::PreconditionFailed);
    // Replaced by rename instead, the old bytes are read to their end.
    let mut got = f.store.get(&key("k"), GetOptions::default()).await.unwrap();
    got.body.next().await.unwrap().unwrap();
    f.store.put_bytes(&key("k"), "other").await.unwrap();
    let rest: Vec<_> = got.body.try_collect().await.unwrap();
    assert!(rest.concat().iter().all(|b| *b == b'n'));
}

#[tokio::test]
async fn names_that_are_no_keys_are_counted() {
    let f = fixture();
    f.write("good", "1");
    let bad = std::ffi::OsStr::from_bytes(b"bad\xff");
    std::fs::write(f.root.path().join(bad), "2").unwrap();
    let page = f.store.list(&ListRequest::default()).await.unwrap();
    assert_eq!((page.entries.len(), page.skipped), (1, 1));
    // A directory that holds nothing else is not empty, and not listed.
    std::fs::create_dir(f.root.path().join("d")).unwrap();
    std::fs::write(f.root.path().join("d").join(bad), "3").unwrap();
    let page = f.store.list(&ListRequest::default()).await.unwrap();
    assert_eq!((page.entries.len(), page.skipped), (1, 2));
    // Nor is an empty one whose key would be too long.
    let long = vec!["n".repeat(250); 5].join("/");
    let _ = std::fs::remove_dir_all(f.root.path().join("d"));
    std::fs::create_dir_all(f.root.path().join(long)).unwrap();
    let page = f.store.list(&ListRequest::default()).await.unwrap();
    assert_eq!((page.entries.len(), page.skipped), (1, 2));
    let rolled = ListRequest { delimiter: Some("/".into()), ..ListRequest::default() };
    assert!(f.store.list(&rolled).await.unwrap().common_prefixes.is_empty());
}

#[tokio::test]
async fn an_upload_survives_a_restart() {
    let f = fixture();
    let mut options = PutOptions::default();
    options.attributes.content_type = Some("image/png".into());
    let upload = f.store.start_upload(&key("k"), options).await.unwrap();
    let body = Body::from(bytes::Bytes::from_static(b"part"));
    let part = f.store.put_part(&key("k"), &upload, 3, body).await.unwrap();
    let again = LocalStore::open(f.root.path(), false).unwrap();
    let listed = again.list_parts(&key("k"), &upload, None, 10).await.unwrap();
    assert_eq!(listed.parts, std::slice::from_ref(&part));
    again.complete_upload(&key("k"), &upload, &[(3, part.etag)], Condition::None).await.unwrap();
    assert_eq!(f.read("k").await.unwrap(), "part");
    let attributes = f.store.head(&key("k")).await.unwrap().attributes.unwrap();
    assert_eq!(attributes.content_type.as_deref(), Some("image/png"));
    let left = std::fs::read_dir(f.root.path().join(".warpdrive/uploads")).unwrap().count();
    assert_eq!(left, 0);
    for id in ["../../k", "", "00", &"0".repeat(32)] {
        let aborted = f.store.abort_upload(&key("k"), &UploadId(id.into())).await;
        assert_eq!(aborted.unwrap_err().kind(), ErrorKind::NoSuchUpload, "{id}");
    }
}

#[tokio::test]
async fn concurrent_creations_have_one_winner() {
    let f = fixture();
    let wins = futures::stream::iter(0..16)
        .map(|n| {
            let store = f.store.clone();
            async move {
                let options =
                    PutOptions { condition: Condition::IfAbsent, ..PutOptions::default() };
                let body = Body::from(bytes::Bytes::from(n.to_string()));
                store.put(&key("k"), body, options).await.is_ok()
            }
        })
        .buffer_unordered(16)
        .filter(|won| std::future::ready(*won))
        .count()
        .await;
    assert_eq!(wins, 1);
}

#[tokio::test]
async fn a_large_directory_is_paged_quickly() {
    let f = fixture();
    for directory in 0..20 {
        std::fs::create_dir(f.root.path().join(format!("d{directory:02}"))).unwrap();
        for file in 0..1000 {
            let name = format!("d{directory:02}/f{file:04}");
            std::fs::File::create(f.root.path().join(name)).unwrap();
        }
    }
    let keys = f.keys("").await;
    assert_eq!(keys.len(), 20_000);
    assert!(keys.is_sorted());
    assert_eq!(f.keys("d07/f09").await.len(), 100);
    // A page without a walk that waits (another process answers) says the same.
    let request = ListRequest { max_keys: 700, ..ListRequest::default() };
    let first = f.store.list(&request).await.unwrap();
    let other = LocalStore::open(f.root.path(), false).unwrap();
    let request = ListRequest { token: first.next, ..request };
    let (here, there) =
        (f.store.list(&request).await.unwrap(), other.list(&request).await.unwrap());
    assert_eq!(here.entries, there.entries);
    assert_eq!(here.entries[0].key.as_str(), keys[700]);
}

#[tokio::test]
async fn missing_and_wrong_roots_are_told_apart() {
    let f = fixture();
    let kind = |path: &std::path::Path| LocalStore::open(path, false).unwrap_err().kind();
    assert_eq!(kind(&f.root.path().join("none")), ErrorKind::NoSuchBucket);
    f.write("file", "x");
    assert_eq!(kind(&f.root.path().join("file")), ErrorKind::InvalidInput);
}

#[test]
fn a_time_past_the_calendar_is_its_last_second() {
    let mut stat = rustix::fs::stat("/").unwrap();
    let last = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    for late in [400_000_000_000, i64::MAX] {
        stat.st_mtime = late;
        assert_eq!(tree::Version::of(&stat).last_modified(), last);
    }
    stat.st_mtime = -1;
    assert_eq!(tree::Version::of(&stat).last_modified(), SystemTime::UNIX_EPOCH);
}

#[tokio::test]
async fn a_body_in_tiny_pieces_holds_only_so_many() {
    /// A piece that is counted as long as anybody holds it.
    struct Counted(Arc<AtomicUsize>);
    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            b"x"
        }
    }
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
    let f = fixture();
    let (held, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&most);
    let pieces = futures::stream::iter(0..10_000).map(move |_| {
        seen.fetch_max(held.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        Ok(Bytes::from_owner(Counted(Arc::clone(&held))))
    });
    let body = Body::new(10_000, pieces.boxed());
    f.store.put(&key("k"), body, PutOptions::default()).await.unwrap();
    assert_eq!(f.read("k").await.unwrap().len(), 10_000);
    let most = most.load(Ordering::Relaxed);
    assert!(most <= 65, "{most} pieces were held at once");
}
