//! Paths find their buckets, and collisions are refused.

// Helpers outside of #[test] functions are test code too.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::SystemTime;

use store::testing::MemoryStore;
use store::{Bucket, BucketName, Namespace};

fn bucket(name: &str) -> Bucket {
    Bucket {
        name: BucketName::new(name).unwrap(),
        store: Arc::new(MemoryStore::new()),
        residency: None,
        read_only: false,
        created: SystemTime::UNIX_EPOCH,
    }
}

fn federation() -> Namespace {
    let [a, b, c] = ["a", "b", "c"].map(|n| BucketName::new(n).unwrap());
    Namespace::builder()
        .bucket(bucket("a"))
        .unwrap()
        .bucket(bucket("b"))
        .unwrap()
        .bucket(bucket("c"))
        .unwrap()
        .mount("/data", &a, "")
        .unwrap()
        .mount("/data/deep/b", &b, "sub/")
        .unwrap()
        .mount("/c", &c, "")
        .unwrap()
        .build()
}

#[test]
fn the_longest_mount_path_wins() {
    let ns = federation();
    let at = |path: &str| ns.locate(path).map(|l| (l.bucket.name.to_string(), l.key));
    assert_eq!(at("/data/x/y"), Some(("a".into(), "x/y".into())));
    assert_eq!(at("/data"), Some(("a".into(), String::new())));
    assert_eq!(at("/data/deep/b/x"), Some(("b".into(), "sub/x".into())));
    assert_eq!(at("/data/deep/b"), Some(("b".into(), "sub".into())));
    assert_eq!(at("/data/deep/bb"), Some(("a".into(), "deep/bb".into())));
    assert_eq!(at("/datax"), None);
    assert_eq!(at("/"), None);
}

#[test]
fn mounts_show_up_in_the_directories_above() {
    let ns = federation();
    assert_eq!(ns.mount_names("/"), ["c", "data"]);
    assert_eq!(ns.mount_names("/data"), ["deep"]);
    assert_eq!(ns.mount_names("/data/deep"), ["b"]);
    assert!(ns.mount_names("/data/deep/b").is_empty());
}

#[test]
fn collisions_are_named() {
    let a = BucketName::new("a").unwrap();
    let with_a = || Namespace::builder().bucket(bucket("a")).unwrap();
    assert!(with_a().bucket(bucket("a")).is_err());
    assert!(with_a().mount("/x", &a, "").unwrap().mount("/x/", &a, "p/").is_err());
    assert!(with_a().mount("x", &a, "").is_err());
    assert!(with_a().mount("/x/../y", &a, "").is_err());
    assert!(with_a().mount("/x", &a, "p").is_err());
    assert!(with_a().mount("/x", &BucketName::new("z").unwrap(), "").is_err());
}
