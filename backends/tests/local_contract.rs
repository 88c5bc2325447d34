//! The contract on a directory, through everything that `open` adds; and what directories are as
//! keys.

// What a test sets up must work; clippy knows only functions marked as tests as such.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use backends::{LocalConfig, Metrics, OriginConfig, OriginKind, Policy};
use bytes::Bytes;
use store::testing::MemoryStore;
use store::testing::contract::{self, Differences};
use store::{
    Body, ByteRange, Condition, CopyOptions, ErrorKind, GetOptions, ListPage, ListRequest,
    ObjectKey, PutOptions, Store, StoreExt,
};

async fn open(root: &Path, nfs: bool) -> Arc<dyn Store> {
    let kind = OriginKind::Local(LocalConfig { root: root.into(), nfs });
    let config = OriginConfig { kind, policy: Policy::default() };
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    backends::open("files", &config, &metrics).await.unwrap().store
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

fn make(root: &Path, keys: &[&str]) {
    for key in keys {
        let path = root.join(key);
        std::fs::create_dir_all(if key.ends_with('/') { &path } else { path.parent().unwrap() })
            .unwrap();
        if !key.ends_with('/') {
            std::fs::write(path, "x").unwrap();
        }
    }
}

fn names(page: &ListPage) -> (Vec<String>, Vec<String>) {
    let keys = page.entries.iter().map(|entry| entry.key.to_string()).collect();
    (keys, page.common_prefixes.clone())
}

async fn kind_of_put(
    store: &Arc<dyn Store>,
    name: &str,
    condition: Condition,
) -> Option<ErrorKind> {
    let options = PutOptions { condition, ..PutOptions::default() };
    let put = store.put(&key(name), Body::from(Bytes::new()), options).await;
    put.err().map(|error| error.kind())
}

#[tokio::test]
async fn directories_keep_the_contract() {
    for nfs in [false, true] {
        let root = tempfile::tempdir().unwrap();
        let kind = OriginKind::Local(LocalConfig { root: root.path().into(), nfs });
        let config = OriginConfig { kind, policy: Policy::default() };
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let opened = backends::open("files", &config, &metrics).await.unwrap();
        assert_eq!(
            opened.identity,
            format!("local {}", root.path().canonicalize().unwrap().display())
        );
        let differences = Differences {
            refused_keys: Some(|key| {
                let segment = |s: &str| matches!(s, "" | "." | "..") || s.len() > 255;
                key.split('/').any(segment)
            }),
            file_hides_directory: true,
            ..Differences::default()
        };
        contract::run(Arc::clone(&opened.store), differences).await.assert();
        let report = backends::probe(&opened, true).await;
        assert!(report.is_ok(), "{report:?}");
    }
}

#[tokio::test]
async fn empty_directories_are_listed_as_a_bucket_lists_them() {
    let keys = [
        "a!",
        "a/",
        "a0",
        "b/c/",
        "b/c0",
        "b/d/e/",
        "b/d/f/",
        "b/g",
        "m/n/o/p/",
        "x-/",
        "x/y",
        "z/",
        "\u{e9}/",
        "\u{e9}!/z",
        "\u{ff5e}/",
        "\u{1f600}/",
    ];
    for nfs in [false, true] {
        let root = tempfile::tempdir().unwrap();
        make(root.path(), &keys);
        let here = open(root.path(), nfs).await;
        // What the store keeps for itself never counts.
        here.put_bytes(&key("gone/1"), "x").await.unwrap();
        here.delete(&key("gone/1"), None).await.unwrap();
        let model = MemoryStore::new();
        for key in keys {
            model.insert(key, "");
        }
        let mut compared = 0;
        for prefix in ["", "a", "a/", "b", "b/", "b/c/", "b/d", "b/d/", "m/n/o/p/", "q/", "x", "z/"]
        {
            for delimiter in [None, Some("/"), Some("c/"), Some("d"), Some("/e")] {
                for start_after in [None, Some("a/"), Some("b/c"), Some("b/d/e/"), Some("m/n/")] {
                    for max_keys in [1, 2, 3, 1000] {
                        let mut wanted = ListRequest {
                            prefix: prefix.into(),
                            delimiter: delimiter.map(Into::into),
                            start_after: start_after.map(Into::into),
                            max_keys,
                            ..ListRequest::default()
                        };
                        let mut asked = wanted.clone();
                        for page in 0.. {
                            let expected = model.list(&wanted).await.unwrap();
                            let got = here.list(&asked).await.unwrap();
                            assert_eq!(names(&got), names(&expected), "page {page} of {asked:?}");
                            assert_eq!(got.next.is_some(), expected.next.is_some(), "{asked:?}");
                            compared += 1;
                            let Some(next) = expected.next else { break };
                            wanted.token = Some(next);
                            asked.token = got.next;
                        }
                    }
                }
            }
        }
        assert!(compared > 1000, "{compared} pages");
        // Another process, which has no walk that waits, goes on at the same place.
        let mut request = ListRequest { max_keys: 1, ..ListRequest::default() };
        let mut found = Vec::new();
        loop {
            let page = open(root.path(), nfs).await.list(&request).await.unwrap();
            found.extend(names(&page).0);
            request.token = page.next;
            if request.token.is_none() {
                break;
            }
        }
        let mut sorted = keys.map(str::to_owned);
        sorted.sort_unstable();
        assert_eq!(found, sorted);
    }
}

#[tokio::test]
async fn a_key_that_ends_in_a_slash_is_a_directory() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path(), false).await;
    let written =
        store.put(&key("a/b/"), Body::from(Bytes::new()), PutOptions::default()).await.unwrap();
    assert!(root.path().join("a/b").is_dir());
    let head = store.head(&key("a/b/")).await.unwrap();
    assert_eq!((head.size, &head.etag), (0, &written.etag));
    assert!(head.etag.as_str().ends_with("-1"));
    assert_eq!(store.stat(&key("a/b/")).await.unwrap().etag, head.etag);
    let got = store.get(&key("a/b/"), GetOptions::default()).await.unwrap();
    assert_eq!((&got.meta.etag, got.range.clone()), (&head.etag, 0..0));
    assert!(store.get_bytes(&key("a/b/"), ByteRange::Full).await.unwrap().is_empty());
    let page = store.list(&ListRequest::default()).await.unwrap();
    assert_eq!(names(&page).0, ["a/b/"]);
    let listed = &page.entries[0].meta;
    assert_eq!((listed.size, &listed.etag), (0, &head.etag));
    assert_eq!(listed.last_modified, head.last_modified);
    // Again is the same; a directory that is not empty exists too, and is not listed.
    assert_eq!(kind_of_put(&store, "a/b/", Condition::None).await, None);
    assert_eq!(store.head(&key("a/")).await.unwrap().size, 0);
    for absent in ["c/", "a/b/c/", "a//", "/", "../", "a/../", ".warpdrive/", ".warpdrive/tmp/"] {
        let head = store.head(&key(absent)).await;
        assert_eq!(head.unwrap_err().kind(), ErrorKind::NotFound, "{absent}");
    }
    // Conditions.
    let present = kind_of_put(&store, "a/b/", Condition::IfAbsent).await;
    assert_eq!(present, Some(ErrorKind::PreconditionFailed));
    let other = Condition::IfMatch(head.etag.clone());
    assert_eq!(kind_of_put(&store, "c/", other.clone()).await, Some(ErrorKind::PreconditionFailed));
    assert_eq!(kind_of_put(&store, "a/b/", other).await, None);
    assert!(!root.path().join("c").exists());
    assert_eq!(kind_of_put(&store, "c/", Condition::IfAbsent).await, None);
    // Deleting: with everything above it that it leaves empty, as a file's deletion does.
    let wrong = store.delete(&key("c/"), Some(&head.etag)).await;
    assert_eq!(wrong.unwrap_err().kind(), ErrorKind::PreconditionFailed);
    let right = store.head(&key("c/")).await.unwrap().etag;
    store.delete(&key("c/"), Some(&right)).await.unwrap();
    assert!(!root.path().join("c").exists());
    store.delete(&key("c/"), None).await.unwrap();
    store.delete(&key("a/"), None).await.unwrap();
    assert!(root.path().join("a/b").exists(), "a directory that was not empty");
    store.delete(&key("a/b/"), None).await.unwrap();
    assert!(!root.path().join("a").exists() && root.path().exists());
    store.put_bytes(&key("k"), "x").await.unwrap();
    for nothing in ["/", "../", ".warpdrive/", ".warpdrive/tmp/"] {
        store.delete(&key(nothing), None).await.unwrap();
    }
    assert!(root.path().join(".warpdrive/tmp").exists());
}

#[tokio::test]
async fn what_a_directory_cannot_be_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path(), false).await;
    make(root.path(), &["file", "d/f"]);
    std::os::unix::fs::symlink("d", root.path().join("link")).unwrap();
    let refused = Some(ErrorKind::UnsupportedKey);
    let bytes = store.put_bytes(&key("new/"), "bytes").await;
    assert_eq!(bytes.err().map(|error| error.kind()), refused);
    assert!(!root.path().join("new").exists());
    for name in ["/", "new//", "/new/", "new/./", "../new/", ".warpdrive/x/", ".warpdrive/"] {
        assert_eq!(kind_of_put(&store, name, Condition::None).await, refused, "{name}");
    }
    let short = Body { size: 0, ..Body::from(Bytes::from_static(b"more than it says")) };
    let short = store.put(&key("new/"), short, PutOptions::default()).await;
    assert!(short.is_err());
    assert!(!root.path().join("new").exists());
    for file in ["file/", "file/x/"] {
        let put = kind_of_put(&store, file, Condition::None).await;
        assert_eq!(put, Some(ErrorKind::Conflict), "{file}");
        assert_eq!(store.head(&key(file)).await.unwrap_err().kind(), ErrorKind::NotFound);
        store.delete(&key(file), None).await.unwrap();
    }
    assert!(root.path().join("file").is_file());
    // A link to a directory is none.
    assert_eq!(store.head(&key("link/")).await.unwrap_err().kind(), ErrorKind::NotFound);
    store.delete(&key("link/"), None).await.unwrap();
    assert!(root.path().join("link").exists() && root.path().join("d/f").exists());
    let upload = store.start_upload(&key("new/"), PutOptions::default()).await;
    assert_eq!(upload.err().map(|error| error.kind()), refused);
    let copy = store.copy(&key("file"), &key("new/"), CopyOptions::default()).await;
    assert_eq!(copy.err().map(|error| error.kind()), refused);
    assert!(!root.path().join("new").exists());
}

#[tokio::test]
async fn writes_show_no_empty_directory_on_their_way() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path(), false).await;
    let writer = {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for _ in 0..100 {
                store.put_bytes(&key("a/b/c"), "x").await.unwrap();
                store.delete(&key("a/b/c"), None).await.unwrap();
            }
        })
    };
    let mut listings = 0;
    while !writer.is_finished() {
        for delimiter in [None, Some("b/".to_owned())] {
            let request = ListRequest { delimiter, ..ListRequest::default() };
            let page = store.list(&request).await.unwrap();
            let (keys, _) = names(&page);
            assert!(keys.is_empty() || keys == ["a/b/c"], "{keys:?}");
            listings += 1;
        }
    }
    writer.await.unwrap();
    assert!(listings > 10, "{listings}");
}
