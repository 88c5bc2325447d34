//! Checks of `put`, `copy` and `delete`.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::{FutureExt, StreamExt, stream};

use super::{Check, Checked, Subject, ensure, ensure_eq, kind_of, pattern, said};
use crate::{
    Attributes, Body, ByteRange, Condition, CopyOptions, ETag, Error, ErrorKind, PutOptions,
    StoreExt,
};

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("a body in pieces", |s| pieces(s).boxed()),
    ("a body that fails", |s| failing(s).boxed()),
    ("a body of another length", |s| lengths(s).boxed()),
    ("a cancelled put", |s| cancelled(s).boxed()),
    ("attributes", |s| attributes(s).boxed()),
    ("put if absent", |s| if_absent(s).boxed()),
    ("put if match", |s| if_match(s).boxed()),
    ("copy", |s| copy(s).boxed()),
    ("copy conditions", |s| copy_conditions(s).boxed()),
    ("delete", |s| delete(s).boxed()),
    ("delete if match", |s| delete_if_match(s).boxed()),
];

fn body(size: u64, pieces: Vec<crate::Result<Bytes>>) -> Body {
    Body::new(size, stream::iter(pieces).boxed())
}

async fn unchanged(s: &Subject, rest: &str, expected: &Bytes) -> Checked {
    let found = s.store.get_bytes(&s.key(rest), ByteRange::Full).await.map_err(said("get"))?;
    ensure!(found == *expected, "the object was changed");
    Ok(())
}

async fn pieces(s: &Subject) -> Checked {
    let bytes = pattern(200_000, 1);
    let parts: Vec<_> = bytes.chunks(7_001).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
    let key = s.key("o");
    let put = s.store.put(&key, body(200_000, parts), PutOptions::default());
    put.await.map_err(said("put"))?;
    unchanged(s, "o", &bytes).await
}

async fn failing(s: &Subject) -> Checked {
    let old = pattern(500, 2);
    s.put("old", old.clone()).await.map_err(said("put"))?;
    // 200 KB fails within one buffer, 12 MB where a store would send in several requests.
    for size in [200_000u64, 12_000_000] {
        for key in ["old", "new"] {
            let half = pattern(size as usize / 2, 3);
            let digest = Error::new(ErrorKind::BadDigest, "crc32 differs");
            let parts: Vec<_> =
                half.chunks(100_000).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
            let parts = parts.into_iter().chain([Err(digest)]).collect();
            let put = s.store.put(&s.key(key), body(size, parts), PutOptions::default()).await;
            ensure_eq!(kind_of(&put), Some(ErrorKind::BadDigest), "put of {size} bytes to {key}");
        }
    }
    ensure_eq!(kind_of(&s.head("new").await), Some(ErrorKind::NotFound), "head of a failed put");
    unchanged(s, "old", &old).await
}

async fn lengths(s: &Subject) -> Checked {
    for size in [99u64, 101] {
        let parts = vec![Ok(pattern(60, 1)), Ok(pattern(40, 2))];
        let put = s.store.put(&s.key("o"), body(size, parts), PutOptions::default()).await;
        ensure_eq!(kind_of(&put), Some(ErrorKind::IncompleteBody), "100 bytes for {size}");
        ensure_eq!(kind_of(&s.head("o").await), Some(ErrorKind::NotFound), "head after {size}");
    }
    Ok(())
}

async fn cancelled(s: &Subject) -> Checked {
    let stalls = stream::iter([Ok(pattern(70_000, 1))]).chain(stream::pending()).boxed();
    let key = s.key("o");
    let put = s.store.put(&key, Body::new(140_000, stalls), PutOptions::default());
    let ended = tokio::time::timeout(std::time::Duration::from_millis(300), put).await;
    ensure!(ended.is_err(), "a put without its bytes ended: {ended:?}");
    ensure_eq!(kind_of(&s.head("o").await), Some(ErrorKind::NotFound), "head of a cancelled put");
    s.put("o", "later").await.map_err(said("put after a cancelled one"))?;
    unchanged(s, "o", &Bytes::from_static(b"later")).await
}

fn sample(s: &Subject) -> Attributes {
    let mut wanted = Attributes::default();
    if !s.differences.no_attributes {
        wanted.content_type = Some("image/png".into());
        if !s.differences.only_content_type {
            wanted.cache_control = Some("max-age=60".into());
            wanted.content_disposition = Some("attachment; filename=\"a b.png\"".into());
            wanted.content_encoding = Some("br".into());
            wanted.content_language = Some("de, en".into());
        }
        if !s.differences.no_user_metadata {
            let user = [("mtime", "1700000000.5"), ("owner", "team a/b+c")];
            wanted.user = user.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        }
    }
    wanted
}

async fn has(s: &Subject, rest: &str, wanted: &Attributes) -> Checked {
    let meta = s.head(rest).await.map_err(said("head"))?;
    let found = meta.attributes.ok_or("head has no attributes")?;
    let known = |a: &Attributes| {
        (
            a.cache_control.clone(),
            a.content_disposition.clone(),
            a.content_encoding.clone(),
            a.content_language.clone(),
            a.user.clone(),
        )
    };
    if wanted.content_type.is_some() {
        ensure_eq!(found.content_type, wanted.content_type, "content type of {rest}");
    }
    ensure_eq!(known(&found), known(wanted), "attributes of {rest}");
    Ok(())
}

async fn attributes(s: &Subject) -> Checked {
    let wanted = sample(s);
    let options = PutOptions { attributes: wanted.clone(), condition: Condition::None };
    let key = s.key("o");
    let put = s.store.put(&key, Body::from(Bytes::from_static(b"1")), options);
    put.await.map_err(said("put"))?;
    has(s, "o", &wanted).await?;
    let got = s.store.get(&s.key("o"), crate::GetOptions::default()).await.map_err(said("get"))?;
    if let Some(found) = got.meta.attributes {
        ensure_eq!(found.user, wanted.user, "user metadata from get");
    }
    s.put("o", "2").await.map_err(said("put without attributes"))?;
    let meta = s.head("o").await.map_err(said("head"))?;
    let user = meta.attributes.map(|a| a.user.clone()).unwrap_or_default();
    ensure_eq!(user, BTreeMap::new(), "user metadata after an overwrite without");
    Ok(())
}

async fn if_absent(s: &Subject) -> Checked {
    if s.differences.no_put_if_absent {
        return Ok(());
    }
    let put = |bytes: &'static str| {
        let options = PutOptions { condition: Condition::IfAbsent, ..PutOptions::default() };
        let key = s.key("o");
        async move { s.store.put(&key, Body::from(Bytes::from_static(bytes.as_bytes())), options).await }
    };
    put("first").await.map_err(said("first put"))?;
    let second = put("second").await;
    ensure_eq!(kind_of(&second), Some(ErrorKind::PreconditionFailed), "second put");
    unchanged(s, "o", &Bytes::from_static(b"first")).await
}

async fn if_match(s: &Subject) -> Checked {
    if s.differences.no_put_if_match {
        return Ok(());
    }
    let put = |bytes: &'static str, etag: &ETag| {
        let condition = Condition::IfMatch(etag.clone());
        let options = PutOptions { condition, ..PutOptions::default() };
        let key = s.key("o");
        async move { s.store.put(&key, Body::from(Bytes::from_static(bytes.as_bytes())), options).await }
    };
    let first = s.put("o", "first").await.map_err(said("put"))?.etag;
    let second = put("second", &first).await.map_err(said("put over the known version"))?.etag;
    let stale = put("third", &first).await;
    ensure_eq!(kind_of(&stale), Some(ErrorKind::PreconditionFailed), "put over an old version");
    ensure_eq!(s.head("o").await.map_err(said("head"))?.etag, second, "tag");
    unchanged(s, "o", &Bytes::from_static(b"second")).await
}

async fn copy(s: &Subject) -> Checked {
    let (bytes, wanted) = (pattern(50_000, 6), sample(s));
    let options = PutOptions { attributes: wanted.clone(), condition: Condition::None };
    let (from, to) = (s.key("from +%\u{e9}"), s.key("d/to"));
    let put = s.store.put(&from, Body::from(bytes.clone()), options);
    put.await.map_err(said("put"))?;
    let copied = s.store.copy(&from, &to, CopyOptions::default()).await.map_err(said("copy"))?;
    unchanged(s, "d/to", &bytes).await?;
    has(s, "d/to", &wanted).await?;
    ensure_eq!(s.head("d/to").await.map_err(said("head"))?.etag, copied.etag, "tag");
    if !s.differences.no_attributes {
        let attributes =
            Attributes { content_type: Some("text/x-new".into()), ..Default::default() };
        let options =
            CopyOptions { attributes: Some(attributes.clone()), ..CopyOptions::default() };
        s.store.copy(&to, &to, options).await.map_err(said("copy onto itself"))?;
        let expected = if s.differences.copy_keeps_headers {
            Attributes {
                user: BTreeMap::new(),
                ..Attributes { content_type: attributes.content_type, ..wanted }
            }
        } else {
            attributes
        };
        has(s, "d/to", &expected).await?;
        unchanged(s, "d/to", &bytes).await?;
    }
    let none = s.store.copy(&s.key("none"), &s.key("x"), CopyOptions::default()).await;
    ensure_eq!(kind_of(&none), Some(ErrorKind::NotFound), "copy of what is not there");
    Ok(())
}

async fn copy_conditions(s: &Subject) -> Checked {
    if s.differences.no_copy_condition {
        return Ok(());
    }
    let etag = s.put("from", "bytes").await.map_err(said("put"))?.etag;
    let wrong = ETag::parse("0123456789abcdef0123456789abcdef");
    let copy = |etag: ETag| {
        let options = CopyOptions { source_if_match: Some(etag), ..CopyOptions::default() };
        let (from, to) = (s.key("from"), s.key("to"));
        async move { s.store.copy(&from, &to, options).await }
    };
    ensure_eq!(kind_of(&copy(wrong).await), Some(ErrorKind::PreconditionFailed), "wrong source");
    ensure_eq!(kind_of(&s.head("to").await), Some(ErrorKind::NotFound), "head of a failed copy");
    copy(etag).await.map_err(said("copy of the known version"))?;
    Ok(())
}

async fn delete(s: &Subject) -> Checked {
    s.put("d/o", "bytes").await.map_err(said("put"))?;
    s.put("d/p", "bytes").await.map_err(said("put"))?;
    s.store.delete(&s.key("d/o"), None).await.map_err(said("delete"))?;
    ensure_eq!(
        kind_of(&s.head("d/o").await),
        Some(ErrorKind::NotFound),
        "head of a deleted object"
    );
    s.store.delete(&s.key("d/o"), None).await.map_err(said("second delete"))?;
    s.head("d/p").await.map_err(said("head of a neighbour"))?;
    // `d` is no object, only a prefix.
    s.store.delete(&s.key("d"), None).await.map_err(said("delete of a prefix"))?;
    s.head("d/p").await.map_err(said("head of a neighbour after delete of the prefix"))?;
    Ok(())
}

async fn delete_if_match(s: &Subject) -> Checked {
    if s.differences.no_delete_if_match {
        return Ok(());
    }
    let etag = s.put("o", "bytes").await.map_err(said("put"))?.etag;
    let wrong = ETag::parse("0123456789abcdef0123456789abcdef");
    let refused = s.store.delete(&s.key("o"), Some(&wrong)).await;
    ensure_eq!(kind_of(&refused), Some(ErrorKind::PreconditionFailed), "delete of another version");
    s.head("o").await.map_err(said("head after a refused delete"))?;
    s.store.delete(&s.key("o"), Some(&etag)).await.map_err(said("delete of the known version"))?;
    ensure_eq!(kind_of(&s.head("o").await), Some(ErrorKind::NotFound), "head of a deleted object");
    Ok(())
}
