//! Checks of multi-part uploads.

use bytes::Bytes;
use futures::{FutureExt, TryStreamExt};

use super::{Check, Checked, Subject, ensure, ensure_eq, kind_of, pattern, said};
use crate::{
    Attributes, Body, ByteRange, Condition, ETag, ErrorKind, PartEntry, PutOptions, StoreExt,
    UploadId, UploadListRequest,
};

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("parts in order", |s| sorted(s).boxed()),
    ("parts out of order, replaced and left out", |s| unsorted(s).boxed()),
    ("one small part", |s| single(s).boxed()),
    ("upload attributes", |s| attributes(s).boxed()),
    ("completion that names wrong parts", |s| wrong_parts(s).boxed()),
    ("completion conditions", |s| conditions(s).boxed()),
    ("abort", |s| abort(s).boxed()),
    ("a part whose body fails", |s| failing_part(s).boxed()),
    ("listing parts", |s| list_parts(s).boxed()),
    ("listing uploads", |s| list_uploads(s).boxed()),
];

impl Subject {
    fn part_bytes(&self, seed: u64) -> Bytes {
        pattern(self.differences.min_part_bytes.max(70_000), seed)
    }

    async fn begin(&self, rest: &str) -> std::result::Result<UploadId, String> {
        let key = self.key(rest);
        let begun = self.store.start_upload(&key, PutOptions::default());
        begun.await.map_err(said("start"))
    }

    async fn part(
        &self,
        rest: &str,
        upload: &UploadId,
        number: u16,
        bytes: Bytes,
    ) -> std::result::Result<PartEntry, String> {
        let size = bytes.len() as u64;
        let key = self.key(rest);
        let part = self.store.put_part(&key, upload, number, Body::from(bytes));
        let part = part.await.map_err(said("part"))?;
        ensure_eq!((part.number, part.size), (number, size), "number and size of a part");
        Ok(part)
    }

    async fn complete(
        &self,
        rest: &str,
        upload: &UploadId,
        parts: &[(u16, ETag)],
    ) -> crate::Result<crate::Written> {
        self.store.complete_upload(&self.key(rest), upload, parts, Condition::None).await
    }

    async fn holds(&self, rest: &str, expected: &[Bytes]) -> Checked {
        let found = self.store.get_bytes(&self.key(rest), ByteRange::Full).await;
        ensure!(found.map_err(said("get"))? == expected.concat(), "other bytes");
        Ok(())
    }
}

async fn sorted(s: &Subject) -> Checked {
    let upload = s.begin("o").await?;
    let bytes = [s.part_bytes(1), s.part_bytes(2), pattern(1234, 3)];
    let mut parts = Vec::new();
    for (number, bytes) in (1u16..).zip(&bytes) {
        let part = s.part("o", &upload, number, bytes.clone()).await?;
        parts.push((number, part.etag));
    }
    ensure_eq!(kind_of(&s.head("o").await), Some(ErrorKind::NotFound), "head before completion");
    let seen: Vec<_> = s.store.walk(&s.prefix).try_collect().await.map_err(said("list"))?;
    ensure!(seen.is_empty(), "listed before completion: {seen:?}");
    let written = s.complete("o", &upload, &parts).await.map_err(said("complete"))?;
    let meta = s.head("o").await.map_err(said("head"))?;
    ensure_eq!(meta.etag, written.etag, "tag");
    s.holds("o", &bytes).await
}

async fn unsorted(s: &Subject) -> Checked {
    let upload = s.begin("o").await?;
    let bytes = [s.part_bytes(4), s.part_bytes(5), pattern(99, 6)];
    let last = s.part("o", &upload, 9, bytes[2].clone()).await?.etag;
    s.part("o", &upload, 2, s.part_bytes(40)).await?;
    s.part("o", &upload, 3, s.part_bytes(41)).await?;
    let middle = s.part("o", &upload, 5, bytes[1].clone()).await?.etag;
    let first = s.part("o", &upload, 2, bytes[0].clone()).await?.etag;
    let parts = [(2, first), (5, middle), (9, last)];
    s.complete("o", &upload, &parts).await.map_err(said("complete"))?;
    s.holds("o", &bytes).await
}

async fn single(s: &Subject) -> Checked {
    let upload = s.begin("o").await?;
    let part = s.part("o", &upload, 1, Bytes::from_static(b"x")).await?.etag;
    s.complete("o", &upload, &[(1, part)]).await.map_err(said("complete"))?;
    s.holds("o", &[Bytes::from_static(b"x")]).await
}

async fn attributes(s: &Subject) -> Checked {
    if s.differences.no_attributes {
        return Ok(());
    }
    let mut wanted = Attributes { content_type: Some("image/png".into()), ..Attributes::default() };
    if !s.differences.no_user_metadata {
        wanted.user.insert("owner".into(), "team".into());
    }
    let options = PutOptions { attributes: wanted.clone(), condition: Condition::None };
    let upload = s.store.start_upload(&s.key("o"), options).await.map_err(said("start"))?;
    let part = s.part("o", &upload, 1, Bytes::from_static(b"x")).await?.etag;
    s.complete("o", &upload, &[(1, part)]).await.map_err(said("complete"))?;
    let meta = s.head("o").await.map_err(said("head"))?;
    let found = meta.attributes.ok_or("head has no attributes")?;
    ensure_eq!(found.content_type, wanted.content_type, "content type");
    ensure_eq!(found.user, wanted.user, "user metadata");
    Ok(())
}

async fn wrong_parts(s: &Subject) -> Checked {
    let upload = s.begin("o").await?;
    // Large enough that its size is not what is wrong first.
    let part = s.part("o", &upload, 1, s.part_bytes(1)).await?.etag;
    let never = [(1, part.clone()), (2, part)];
    let done = s.complete("o", &upload, &never).await;
    ensure_eq!(kind_of(&done), Some(ErrorKind::InvalidPart), "a part that was never uploaded");
    if !s.differences.no_part_tags {
        let wrong = ETag::parse("0123456789abcdef0123456789abcdef");
        let done = s.complete("o", &upload, &[(1, wrong)]).await;
        ensure_eq!(kind_of(&done), Some(ErrorKind::InvalidPart), "a wrong tag");
    }
    ensure_eq!(kind_of(&s.head("o").await), Some(ErrorKind::NotFound), "head");
    s.store.abort_upload(&s.key("o"), &upload).await.map_err(said("abort"))
}

async fn conditions(s: &Subject) -> Checked {
    if s.differences.no_complete_condition {
        return Ok(());
    }
    s.put("o", "here").await.map_err(said("put"))?;
    let upload = s.begin("o").await?;
    let part = s.part("o", &upload, 1, Bytes::from_static(b"new")).await?.etag;
    let parts = [(1, part)];
    let done = s.store.complete_upload(&s.key("o"), &upload, &parts, Condition::IfAbsent).await;
    ensure_eq!(kind_of(&done), Some(ErrorKind::PreconditionFailed), "over an object");
    s.holds("o", &[Bytes::from_static(b"here")]).await
}

async fn abort(s: &Subject) -> Checked {
    let upload = s.begin("o").await?;
    let part = s.part("o", &upload, 1, pattern(100, 1)).await?.etag;
    s.store.abort_upload(&s.key("o"), &upload).await.map_err(said("abort"))?;
    ensure_eq!(kind_of(&s.head("o").await), Some(ErrorKind::NotFound), "head");
    if !s.differences.forgets_aborts {
        let body = Body::from(Bytes::from_static(b"late"));
        let late = s.store.put_part(&s.key("o"), &upload, 2, body).await;
        ensure_eq!(kind_of(&late), Some(ErrorKind::NoSuchUpload), "part after abort");
        let done = s.complete("o", &upload, &[(1, part)]).await;
        ensure_eq!(kind_of(&done), Some(ErrorKind::NoSuchUpload), "completion after abort");
        let again = s.store.abort_upload(&s.key("o"), &upload).await;
        ensure_eq!(kind_of(&again), Some(ErrorKind::NoSuchUpload), "second abort");
    }
    Ok(())
}

async fn failing_part(s: &Subject) -> Checked {
    let upload = s.begin("o").await?;
    let good = s.part("o", &upload, 1, pattern(1000, 1)).await?.etag;
    let digest = crate::Error::new(ErrorKind::BadDigest, "crc32 differs");
    let pieces = futures::stream::iter([Ok(pattern(1000, 2)), Err(digest)]);
    let body = Body::new(2000, Box::pin(pieces));
    let bad = s.store.put_part(&s.key("o"), &upload, 1, body).await;
    ensure_eq!(kind_of(&bad), Some(ErrorKind::BadDigest), "a failing body");
    s.complete("o", &upload, &[(1, good)]).await.map_err(said("complete"))?;
    s.holds("o", &[pattern(1000, 1)]).await
}

async fn list_parts(s: &Subject) -> Checked {
    let upload = s.begin("o").await?;
    let mut expected = Vec::new();
    for number in [1u16, 2, 3, 7] {
        let part = s.part("o", &upload, number, pattern(100 + number as usize, 1)).await?;
        expected.push((part.number, part.etag, part.size));
    }
    let key = s.key("o");
    if s.differences.no_list_parts {
        let listed = s.store.list_parts(&key, &upload, None, 10).await;
        ensure_eq!(kind_of(&listed), Some(ErrorKind::Unsupported), "list of parts");
    } else {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = s.store.list_parts(&key, &upload, after, 3).await;
            let page = page.map_err(said("list of parts"))?;
            ensure!(page.parts.len() <= 3, "{} parts in a page of 3", page.parts.len());
            found.extend(page.parts.into_iter().map(|p| (p.number, p.etag, p.size)));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        ensure_eq!(found, expected, "parts");
    }
    s.store.abort_upload(&key, &upload).await.map_err(said("abort"))
}

async fn list_uploads(s: &Subject) -> Checked {
    let request = UploadListRequest { prefix: s.prefix.clone(), after: None, max_uploads: 1000 };
    if s.differences.no_list_uploads {
        let listed = s.store.list_uploads(&request).await;
        ensure_eq!(kind_of(&listed), Some(ErrorKind::Unsupported), "list of uploads");
        return Ok(());
    }
    let mut begun = Vec::new();
    for name in ["a", "b", "b", "c d"] {
        begun.push((s.key(name), s.begin(name).await?));
    }
    let mut requests = vec![request.clone()];
    if s.differences.lists_uploads_by_key {
        let whole =
            |name: &&str| UploadListRequest { prefix: s.key(name).to_string(), ..request.clone() };
        requests = ["a", "b", "c d"].iter().map(whole).collect();
    }
    let mut found = Vec::new();
    for request in &requests {
        let listed = s.store.list_uploads(request).await.map_err(said("list of uploads"))?;
        found.extend(listed.uploads.into_iter().map(|u| (u.key, u.upload)));
    }
    ensure!(found.is_sorted_by_key(|(key, _)| key.clone()), "uploads are not in order of key");
    found.sort();
    begun.sort();
    ensure_eq!(found, begun, "uploads");
    for (key, upload) in &begun {
        s.store.abort_upload(key, upload).await.map_err(said("abort"))?;
    }
    let left = s.store.list_uploads(&request).await.map_err(said("second list of uploads"))?;
    ensure!(left.uploads.is_empty(), "left after abort: {:?}", left.uploads);
    Ok(())
}
