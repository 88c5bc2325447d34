//! Checks of `head` and `get`.

use futures::{FutureExt, StreamExt};

use super::{Check, Checked, Subject, ensure, ensure_eq, kind_of, pattern, said};
use crate::{ByteRange, ErrorKind, GetOptions, ReaderId, StoreExt};

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("ranges of every kind", |s| ranges(s).boxed()),
    ("an empty object", |s| empty(s).boxed()),
    ("if_match on get", |s| if_match(s).boxed()),
    ("one tag everywhere", |s| tags(s).boxed()),
    ("absent objects", |s| absent(s).boxed()),
    ("a large object in pieces", |s| large(s).boxed()),
    ("a dropped body", |s| dropped(s).boxed()),
    ("whole versions only", |s| versions(s).boxed()),
];

async fn ranges(s: &Subject) -> Checked {
    let bytes = pattern(1000, 1);
    s.put("o", bytes.clone()).await.map_err(said("put"))?;
    let good = [
        ByteRange::Full,
        ByteRange::Bounded(0, 1),
        ByteRange::Bounded(0, 1000),
        ByteRange::Bounded(17, 170),
        ByteRange::Bounded(999, 1000),
        ByteRange::Bounded(900, 5000),
        ByteRange::From(0),
        ByteRange::From(999),
        ByteRange::Suffix(1),
        ByteRange::Suffix(1000),
        ByteRange::Suffix(9000),
    ];
    for range in good {
        let expected = range.resolve(1000).expect("a satisfiable range");
        let options = GetOptions { range, if_match: None, reader: ReaderId(7) };
        let got = s.store.get(&s.key("o"), options).await.map_err(said("get"))?;
        ensure_eq!(got.range, expected, "range of {range:?}");
        ensure_eq!(got.meta.size, 1000, "size with {range:?}");
        let found: Vec<_> = got.body.collect().await;
        let found: crate::Result<Vec<_>> = found.into_iter().collect();
        let found = found.map_err(said("body"))?.concat();
        let wanted = &bytes[expected.start as usize..expected.end as usize];
        ensure!(found == wanted, "other bytes for {range:?}");
    }
    for range in [ByteRange::From(1000), ByteRange::Bounded(1000, 1001), ByteRange::Suffix(0)] {
        let got = s.store.get_bytes(&s.key("o"), range).await;
        ensure_eq!(kind_of(&got), Some(ErrorKind::InvalidRange), "{range:?}");
    }
    Ok(())
}

async fn empty(s: &Subject) -> Checked {
    s.put("o", "").await.map_err(said("put"))?;
    let meta = s.head("o").await.map_err(said("head"))?;
    ensure_eq!(meta.size, 0, "size");
    let all = s.store.get_bytes(&s.key("o"), ByteRange::Full).await.map_err(said("get"))?;
    ensure!(all.is_empty(), "{} bytes", all.len());
    let some = s.store.get_bytes(&s.key("o"), ByteRange::From(0)).await;
    ensure_eq!(kind_of(&some), Some(ErrorKind::InvalidRange), "range of an empty object");
    Ok(())
}

async fn if_match(s: &Subject) -> Checked {
    let first = s.put("o", pattern(300, 1)).await.map_err(said("put"))?.etag;
    let ask = |etag: &crate::ETag| GetOptions {
        range: ByteRange::Bounded(1, 5),
        if_match: Some(etag.clone()),
        reader: ReaderId::NONE,
    };
    let got = s.store.get(&s.key("o"), ask(&first)).await.map_err(said("get"))?;
    ensure_eq!(got.meta.etag, first, "tag");
    drop(got);
    let second = s.put("o", pattern(300, 2)).await.map_err(said("second put"))?.etag;
    ensure!(first != second, "other bytes have the same tag {first}");
    let old = s.store.get(&s.key("o"), ask(&first)).await;
    ensure_eq!(kind_of(&old), Some(ErrorKind::PreconditionFailed), "the old version");
    s.store.get(&s.key("o"), ask(&second)).await.map_err(said("get of the new version"))?;
    Ok(())
}

async fn tags(s: &Subject) -> Checked {
    let written = s.put("o", pattern(100, 3)).await.map_err(said("put"))?;
    let head = s.head("o").await.map_err(said("head"))?;
    let got = s.store.get(&s.key("o"), GetOptions::default()).await.map_err(said("get"))?;
    let listed = s.store.walk(&s.prefix).next().await;
    let listed = listed.ok_or("not listed")?.map_err(said("list"))?;
    ensure_eq!(listed.key, s.key("o"), "listed key");
    let stat = s.store.stat(&s.key("o")).await.map_err(said("stat"))?;
    let all = [(&head, "head"), (&stat, "stat"), (&got.meta, "get"), (&listed.meta, "list")];
    for (meta, from) in all {
        ensure_eq!(meta.etag, written.etag, "tag from {from}");
        ensure_eq!(meta.size, 100, "size from {from}");
        let apart = match meta.last_modified.duration_since(head.last_modified) {
            Ok(later) => later,
            Err(earlier) => earlier.duration(),
        };
        // HTTP dates have a resolution of one second, listings of one millisecond.
        ensure!(apart.as_millis() <= 1000, "time from {from} is {apart:?} away from head's");
    }
    ensure!(head.attributes.is_some(), "head has no attributes");
    Ok(())
}

async fn absent(s: &Subject) -> Checked {
    ensure_eq!(kind_of(&s.head("no").await), Some(ErrorKind::NotFound), "head");
    for range in [ByteRange::Full, ByteRange::From(5)] {
        let got = s.store.get_bytes(&s.key("no"), range).await;
        ensure_eq!(kind_of(&got), Some(ErrorKind::NotFound), "get {range:?}");
    }
    s.store.delete(&s.key("no"), None).await.map_err(said("delete of what is not there"))
}

async fn large(s: &Subject) -> Checked {
    let bytes = pattern(9_000_001, 4);
    s.put("o", bytes.clone()).await.map_err(said("put"))?;
    let all = s.store.get_bytes(&s.key("o"), ByteRange::Full).await.map_err(said("get"))?;
    ensure!(all == bytes, "other bytes");
    let range = ByteRange::Bounded(4_194_300, 8_388_700);
    let part = s.store.get_bytes(&s.key("o"), range).await.map_err(said("ranged get"))?;
    ensure!(part == bytes[4_194_300..8_388_700], "other bytes in the middle");
    Ok(())
}

async fn dropped(s: &Subject) -> Checked {
    let bytes = pattern(3_000_000, 5);
    s.put("o", bytes.clone()).await.map_err(said("put"))?;
    for _ in 0..8 {
        let got = s.store.get(&s.key("o"), GetOptions::default()).await.map_err(said("get"))?;
        let mut body = got.body;
        let first = body.next().await.ok_or("no first piece")?.map_err(said("first piece"))?;
        ensure!(bytes.starts_with(&first), "other bytes in the first piece");
        drop(body);
        // Polled once, then dropped: the request may or may not have been sent.
        drop(s.store.get(&s.key("o"), GetOptions::default()).now_or_never());
    }
    let all = s.store.get_bytes(&s.key("o"), ByteRange::Full).await.map_err(said("last get"))?;
    ensure!(all == bytes, "other bytes after dropped bodies");
    Ok(())
}

async fn versions(s: &Subject) -> Checked {
    let versions: Vec<_> = (0..4).map(|v| pattern(400_000, 10 + v)).collect();
    s.put("o", versions[0].clone()).await.map_err(said("put"))?;
    let writes = async {
        for version in &versions {
            s.put("o", version.clone()).await.map_err(said("overwriting put"))?;
        }
        Ok::<_, String>(())
    };
    let reads = async {
        for _ in 0..8 {
            // An error is allowed while the object changes; a mixture never is.
            if let Ok(bytes) = s.store.get_bytes(&s.key("o"), ByteRange::Full).await {
                ensure!(versions.contains(&bytes), "a mixture of versions");
            }
        }
        Ok(())
    };
    futures::try_join!(writes, reads).map(|((), ())| ())
}
