//! A part of a bucket as a bucket: every key below one prefix, without it.
//!
//! Invariant: no key outside of the prefix is ever read, written or listed. A key that is too long
//! together with the prefix is [`ErrorKind::UnsupportedKey`].

use std::sync::Arc;

use async_trait::async_trait;
use store::{
    Body, Condition, CopyOptions, ETag, Error, ErrorKind, GetOptions, GetResult, ListPage,
    ListRequest, ObjectKey, ObjectMeta, PartEntry, PartList, PutOptions, Result, Store, UploadId,
    UploadList, UploadListRequest, Written,
};

/// The decorator.
#[derive(Debug)]
pub(crate) struct Prefixed {
    inner: Arc<dyn Store>,
    /// Not empty, ends with a slash.
    prefix: String,
}

/// `prefix` as origins have it: empty, or without a slash at its beginning and with one at its end.
pub(crate) fn normal(prefix: &str) -> String {
    let prefix = prefix.trim_start_matches('/');
    if prefix.is_empty() || prefix.ends_with('/') {
        prefix.to_owned()
    } else {
        format!("{prefix}/")
    }
}

/// The store below `prefix`; the store itself where that is empty.
pub(crate) fn below(inner: Arc<dyn Store>, prefix: &str) -> Arc<dyn Store> {
    let prefix = normal(prefix);
    if prefix.is_empty() { inner } else { Arc::new(Prefixed { inner, prefix }) }
}

impl Prefixed {
    fn full(&self, key: &ObjectKey) -> Result<ObjectKey> {
        ObjectKey::new(format!("{}{key}", self.prefix)).map_err(|error| {
            let context = format!("`{key}` is too long below prefix `{}`", self.prefix);
            Error::new(ErrorKind::UnsupportedKey, context).with_source(error)
        })
    }

    /// The key without the prefix; `None` for the prefix itself, which is no key below it.
    fn short(&self, key: &ObjectKey) -> Option<ObjectKey> {
        let rest = key.as_str().strip_prefix(&self.prefix)?;
        ObjectKey::new(rest).ok()
    }
}

#[async_trait]
impl Store for Prefixed {
    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        self.inner.head(&self.full(key)?).await
    }

    async fn stat(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        self.inner.stat(&self.full(key)?).await
    }

    async fn get(&self, key: &ObjectKey, options: GetOptions) -> Result<GetResult> {
        self.inner.get(&self.full(key)?, options).await
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        let inner = ListRequest {
            prefix: format!("{}{}", self.prefix, request.prefix),
            start_after: request.start_after.as_ref().map(|a| format!("{}{a}", self.prefix)),
            ..request.clone()
        };
        let mut page = self.inner.list(&inner).await?;
        page.entries = std::mem::take(&mut page.entries)
            .into_iter()
            .filter_map(|mut entry| {
                entry.key = self.short(&entry.key)?;
                Some(entry)
            })
            .collect();
        for name in &mut page.common_prefixes {
            if let Some(rest) = name.strip_prefix(&self.prefix) {
                *name = rest.to_owned();
            }
        }
        Ok(page)
    }

    async fn put(&self, key: &ObjectKey, body: Body, options: PutOptions) -> Result<Written> {
        self.inner.put(&self.full(key)?, body, options).await
    }

    async fn start_upload(&self, key: &ObjectKey, options: PutOptions) -> Result<UploadId> {
        self.inner.start_upload(&self.full(key)?, options).await
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u16,
        body: Body,
    ) -> Result<PartEntry> {
        self.inner.put_part(&self.full(key)?, upload, number, body).await
    }

    async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[(u16, ETag)],
        condition: Condition,
    ) -> Result<Written> {
        self.inner.complete_upload(&self.full(key)?, upload, parts, condition).await
    }

    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        self.inner.abort_upload(&self.full(key)?, upload).await
    }

    async fn list_parts(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        after: Option<u16>,
        max_parts: usize,
    ) -> Result<PartList> {
        self.inner.list_parts(&self.full(key)?, upload, after, max_parts).await
    }

    async fn list_uploads(&self, request: &UploadListRequest) -> Result<UploadList> {
        let after = request.after.as_ref();
        let inner = UploadListRequest {
            prefix: format!("{}{}", self.prefix, request.prefix),
            after: after.map(|(key, id)| (format!("{}{key}", self.prefix), id.clone())),
            max_uploads: request.max_uploads,
        };
        let mut list = self.inner.list_uploads(&inner).await?;
        list.uploads = std::mem::take(&mut list.uploads)
            .into_iter()
            .filter_map(|mut upload| {
                upload.key = self.short(&upload.key)?;
                Some(upload)
            })
            .collect();
        Ok(list)
    }

    async fn copy(
        &self,
        from: &ObjectKey,
        to: &ObjectKey,
        options: CopyOptions,
    ) -> Result<Written> {
        self.inner.copy(&self.full(from)?, &self.full(to)?, options).await
    }

    async fn delete(&self, key: &ObjectKey, if_match: Option<&ETag>) -> Result<()> {
        self.inner.delete(&self.full(key)?, if_match).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::testing::{MemoryStore, contract};

    #[test]
    fn prefixes_are_normal() {
        for (given, expected) in [("", ""), ("/", ""), ("a", "a/"), ("/a/b/", "a/b/")] {
            assert_eq!(normal(given), expected);
        }
    }

    #[tokio::test]
    async fn a_part_of_a_bucket_keeps_the_contract() {
        let whole = MemoryStore::new();
        whole.insert("outside", "1");
        whole.insert("in", "2");
        whole.insert("in/", "marker");
        let part = below(Arc::new(whole.clone()), "in");
        // The longest keys of the contract do not fit below a prefix.
        let differences = contract::Differences {
            refused_keys: Some(|key| key.len() > 1024 - 3),
            ..contract::Differences::default()
        };
        contract::run(Arc::clone(&part), differences).await.assert();
        part.put(
            &ObjectKey::new("x").unwrap(),
            Body::from(bytes::Bytes::new()),
            PutOptions::default(),
        )
        .await
        .unwrap();
        whole.head(&ObjectKey::new("in/x").unwrap()).await.unwrap();
        let page = part.list(&ListRequest::default()).await.unwrap();
        assert!(page.entries.iter().all(|e| !e.key.as_str().contains("outside")));
        assert!(page.entries.iter().any(|e| e.key.as_str() == "x"));
    }
}
