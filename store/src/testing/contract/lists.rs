//! Checks of `list`, against the reference store with the same keys.

use futures::{FutureExt, TryStreamExt};

use super::{Check, Checked, Subject, ensure, ensure_eq, kind_of, said};
use crate::testing::MemoryStore;
use crate::{ByteRange, ErrorKind, ListRequest, ObjectKey, Store, StoreExt};

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("listing order, paging and delimiters", |s| like_the_model(s).boxed()),
    ("keys of every kind", |s| keys(s).boxed()),
    ("a file beside a directory", |s| beside(s).boxed()),
];

/// Names whose byte order differs from the order of a directory walk, of locales and of UTF-16.
const NAMES: &[&str] = &[
    "a!b",
    "a-1/x",
    "a-1/y",
    "a.txt",
    "a/1",
    "a/2/3",
    "a/2/4",
    "a0",
    "ab/c-d/e",
    "ab/c/d",
    "b",
    "c-ab-1",
    "c-ab-2",
    "z",
    "\u{e9}/1",
    "\u{e9}a",
    "\u{ffee}",
    "\u{1f680}",
];

/// Everything that a listing yields, page by page, in the order of pages.
async fn all(
    store: &dyn Store,
    request: &ListRequest,
) -> crate::Result<(Vec<String>, Vec<String>)> {
    let (mut keys, mut prefixes) = (Vec::new(), Vec::new());
    let mut request = request.clone();
    loop {
        let page = store.list(&request).await?;
        let count = page.entries.len() + page.common_prefixes.len();
        if count > request.max_keys {
            let text = format!("{count} entries in a page of {}", request.max_keys);
            return Err(crate::Error::new(ErrorKind::Internal, text));
        }
        keys.extend(page.entries.iter().map(|e| e.key.to_string()));
        prefixes.extend(page.common_prefixes);
        match page.next {
            Some(token) => request.token = Some(token),
            None => return Ok((keys, prefixes)),
        }
    }
}

async fn like_the_model(s: &Subject) -> Checked {
    let model = MemoryStore::new();
    // Without a name in U+E000 to U+FFFF both orders are the same.
    let same_order = |name: &&&str| !s.differences.utf16_order || **name != "\u{ffee}";
    for name in NAMES.iter().filter(same_order) {
        s.put(name, name.as_bytes()).await.map_err(said("put"))?;
        model.insert(s.key(name).as_str(), name.as_bytes());
    }
    let listed: Vec<_> = s.store.walk(&s.prefix).try_collect().await.map_err(said("walk"))?;
    for entry in &listed {
        let size = entry.key.as_str().len() - s.prefix.len();
        ensure_eq!(entry.meta.size, size as u64, "size of {}", entry.key);
    }
    let mut requests = Vec::new();
    for delimiter in [None, Some("/"), Some("-"), Some("ab"), Some("2/")] {
        for prefix in ["", "a", "a/", "a/2", "c-ab", "\u{e9}", "none"] {
            for max_keys in [1, 2, 3, 1000] {
                requests.push(ListRequest {
                    prefix: format!("{}{prefix}", s.prefix),
                    delimiter: delimiter.map(str::to_owned),
                    max_keys,
                    ..ListRequest::default()
                });
            }
        }
        for after in ["", "a", "a.txt", "a/2", "a/2/3", "b0", "\u{e9}/1", "\u{1f680}"] {
            requests.push(ListRequest {
                prefix: s.prefix.clone(),
                delimiter: delimiter.map(str::to_owned),
                start_after: Some(format!("{}{after}", s.prefix)),
                max_keys: 4,
                ..ListRequest::default()
            });
        }
    }
    for request in requests {
        let expected = all(&model, &request).await.map_err(said("the model"))?;
        let found = all(&*s.store, &request).await.map_err(said("list"))?;
        ensure_eq!(found, expected, "{request:?}");
    }
    Ok(())
}

async fn keys(s: &Subject) -> Checked {
    let longest = "l".repeat(1024 - s.prefix.len() - 250) + "/" + &"m".repeat(249);
    let odd = [
        "sp ace",
        " lead",
        "trail ",
        "plus+",
        "percent%",
        "percent%41",
        "percent%2F",
        "equals=&amp;",
        "question?x=y",
        "hash#",
        "quote\"'`",
        "back\\slash",
        "tilde~",
        "star*",
        "colon:",
        "semi;,",
        "at@!$()",
        "brackets[]{}<>|^",
        "\u{fc}n\u{ef}/\u{6587}\u{5b57}",
        "e\u{301}",
        "\u{1f680}",
        "d/",
        "d/d/",
        "a//b",
        "//",
        "./x",
        "../x",
        "x/./y",
        "x/../y",
        ".",
        "..",
        ".hidden",
        "...",
        "tab\t",
        "line\n",
        "one\u{1}",
        "del\u{7f}",
        &longest,
    ];
    let mut kept = Vec::new();
    for name in odd {
        let key = s.key(name);
        let bytes = name.as_bytes().to_vec();
        if s.differences.refused_keys.is_some_and(|refused| refused(key.as_str())) {
            let put = s.put(name, bytes).await;
            ensure_eq!(kind_of(&put), Some(ErrorKind::UnsupportedKey), "put of {name:?}");
            continue;
        }
        s.put(name, bytes.clone()).await.map_err(|e| format!("put of {name:?} failed: {e:?}"))?;
        kept.push((key, bytes));
    }
    for (key, bytes) in &kept {
        let text = key.as_str();
        let found = s.store.get_bytes(key, ByteRange::Full).await;
        let found = found.map_err(|e| format!("get of {text:?} failed: {e:?}"))?;
        ensure!(found == *bytes, "{text:?} has the bytes of another key");
        s.store.head(key).await.map_err(|e| format!("head of {text:?} failed: {e:?}"))?;
    }
    let mut expected: Vec<ObjectKey> = kept.iter().map(|(key, _)| key.clone()).collect();
    expected.sort();
    let list = || async {
        let found: crate::Result<Vec<_>> =
            s.store.walk(&s.prefix).map_ok(|entry| entry.key).try_collect().await;
        found.map_err(said("list"))
    };
    ensure_eq!(list().await?, expected, "listed keys");
    for (key, _) in &kept {
        s.store.delete(key, None).await.map_err(|e| format!("delete of {key:?} failed: {e:?}"))?;
    }
    ensure_eq!(list().await?, Vec::<ObjectKey>::new(), "keys left");
    Ok(())
}

async fn beside(s: &Subject) -> Checked {
    s.put("x", "file").await.map_err(said("put"))?;
    let below = s.put("x/y", "below").await;
    if s.differences.file_hides_directory {
        ensure_eq!(kind_of(&below), Some(ErrorKind::Conflict), "put below a file");
    } else {
        below.map_err(said("put below a file"))?;
        let request = ListRequest { prefix: s.prefix.clone(), ..ListRequest::default() };
        let (keys, _) = all(&*s.store, &request).await.map_err(said("list"))?;
        let listed = if s.differences.file_hides_listing { 1 } else { 2 };
        ensure_eq!(keys.len(), listed, "keys listed");
    }
    let file = s.store.get_bytes(&s.key("x"), ByteRange::Full).await.map_err(said("get"))?;
    ensure!(file == "file", "the file was changed");
    Ok(())
}
