//! What a listing says while the origin is away: the objects that are here as files.

use store::{ErrorKind, ListRequest};

use super::*;

/// Names of a listing, a page of `max_keys` after the other: keys and common prefixes.
async fn names(rig: &Rig, prefix: &str, max_keys: usize) -> store::Result<Vec<String>> {
    let mut request = ListRequest {
        prefix: prefix.into(),
        delimiter: Some("/".into()),
        max_keys,
        ..ListRequest::default()
    };
    let mut names = Vec::new();
    loop {
        let page = rig.store.list(&request).await?;
        assert!(page.entries.len() + page.common_prefixes.len() <= max_keys);
        names.extend(page.entries.iter().map(|entry| entry.key.to_string()));
        names.extend(page.common_prefixes);
        let Some(next) = page.next else { break };
        request.token = Some(next);
    }
    names.sort();
    Ok(names)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_in_an_outage_files_are_listed_and_found() {
    let dir = tempfile::tempdir().unwrap();
    let config = on(dir.path(), 4 * MIB, 256 * MIB);
    let memory = MemoryStore::new();
    let keys = ["a/b/1", "a/b/2", "a/c", "a/d/x", "top"];
    for (n, name) in keys.iter().enumerate() {
        memory.insert(name, content(n as u64, 3 * BLOCK + 7));
    }
    memory.insert("a/never-read", content(9, 3 * BLOCK));
    let first = rig(&config, &memory).await;
    for name in keys {
        first.full(name).await;
        first.copy_soon(name).await;
    }
    first.store.delete(&key("a/d/x"), None).await.unwrap();
    first.cache.close().await;
    drop(first);

    let second = rig(&config, &memory).await;
    second.origin.set_down(true);
    for max_keys in [1, 2, 1000] {
        assert_eq!(names(&second, "", max_keys).await.unwrap(), ["a/", "top"], "{max_keys}");
        assert_eq!(names(&second, "a/", max_keys).await.unwrap(), ["a/b/", "a/c"], "{max_keys}");
        assert_eq!(names(&second, "a/b/", max_keys).await.unwrap(), ["a/b/1", "a/b/2"]);
    }
    assert!(second.cache.stats().stale_served >= 9);
    // That nothing is there is not known.
    assert!(names(&second, "none/", 1000).await.unwrap_err().kind().is_outage());
    // Only in an outage, and what was begun in one goes on with the origin.
    let request =
        ListRequest { max_keys: 1, delimiter: Some("/".into()), ..ListRequest::default() };
    let begun = second.store.list(&request).await.unwrap();
    second.origin.set_down(false);
    memory.insert("new", content(1, 10));
    let rest = ListRequest { token: begun.next, max_keys: 1000, ..request };
    let rest = second.store.list(&rest).await.unwrap();
    let rest: Vec<String> = rest.entries.iter().map(|entry| entry.key.to_string()).collect();
    assert_eq!(rest, ["new", "top"]);
    assert_eq!(names(&second, "a/", 1000).await.unwrap(), ["a/b/", "a/c", "a/never-read"]);
    let refused = store::testing::Fault::Fail(ErrorKind::PermissionDenied);
    second.origin.inject(store::testing::Operation::List, refused);
    let error = names(&second, "a/b", 1000).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_stale_if_error_files_are_not_listed() {
    let dir = tempfile::tempdir().unwrap();
    let config = on(dir.path(), 4 * MIB, 256 * MIB);
    let policy = StorePolicy { stale_if_error: Duration::ZERO, ..StorePolicy::default() };
    let rig = rig_with(&config, &MemoryStore::new(), policy).await;
    rig.memory.insert("a/b", content(1, 3 * BLOCK));
    rig.full("a/b").await;
    rig.copy_soon("a/b").await;
    rig.origin.set_down(true);
    assert!(names(&rig, "a/", 1000).await.unwrap_err().kind().is_outage());
}
